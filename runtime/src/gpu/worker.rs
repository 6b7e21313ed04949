//! The worker process: the only one that talks to the CUDA driver. A sticky error, a hang or a crash costs this process,
//! never the server.
#![expect(unsafe_code, reason = "memory shared with the server, and process system calls")]

use std::cell::RefCell;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tuning::CpuId;

use super::abi::{self, DRAW_WORDS, LAUNCH_ROWS, Phase, SCREEN_ROWS, SPLIT, Step, TILE_WORDS, to_i32};
use super::batch::{self, Draws};
use super::cuda::{self, Address, Card, Context, Failure, Graph};
use super::graphs::{Graphs, Head, Key, buckets, padded_rows, padded_splits};
use super::images::Image;
use super::layout::{Content, ScreenLayout, WeightLayout, WorkLayout};
use super::plan::{Addresses, Plan};
use super::shape::Shape;
use super::wire::{BEFORE_FIRST, LOADING, Offsets, PLACES, READY, Region, STAGE_BYTES, place, tiles_max};
use crate::log;

/// The cpu of a worker's own thread, and those of the threads that the driver starts.
pub type Cpus = (CpuId, Vec<CpuId>);

/// Runs `bitnetd gpu-worker`: serves the steps of the server whose shared memory is standard input.
#[must_use]
pub fn run(ordinal: usize, cpus: Option<&Cpus>) -> ExitCode {
    // What started it had but one.
    if let Some((_, others)) = cpus {
        pin(others);
    }
    let input = std::io::stdin();
    let opened = duplicate(input.as_fd()).and_then(Region::open);
    let (region, shape, untied) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            log::say(format_args!("bitnetd gpu-worker: {error}"));
            return ExitCode::FAILURE;
        }
    };
    if let Err(failure) = die_with(region.header().host_pid.load(Ordering::Relaxed)) {
        region.header().fail(failure.code, &failure.text);
        return ExitCode::FAILURE;
    }
    let opened = Worker::open(ordinal, &region, shape, untied);
    // The driver has its threads by now.
    if let Some((cpu, _)) = cpus {
        pin(&[*cpu]);
    }
    let result = opened.and_then(|worker| worker.serve());
    if let Err(failure) = result {
        region.header().fail(failure.code, &failure.text);
    }
    // The context may be beyond repair: nothing of it is given back, the process ends.
    ExitCode::FAILURE
}

/// A worker that can't be pinned runs all the same.
fn pin(cpus: &[CpuId]) {
    if let Err(error) = tuning::pin(cpus) {
        log::say(format_args!("bitnetd gpu-worker: {error}"));
    }
}

/// The devices of this machine as JSON, for a server that asks before it starts a worker.
#[must_use]
pub fn list() -> String {
    let cards = cuda::load().and_then(|()| (0..cuda::count()?).map(Card::open).collect::<Result<Vec<_>, _>>());
    match cards {
        Ok(cards) => {
            let cards = cards.iter().map(|card| {
                let image = card.image().map(|image| image.name);
                let (major, minor) = card.capability;
                serde_json::json!({"name": card.name, "capability": format!("{major}.{minor}"), "image": image,
                    "memory_bytes": card.memory_bytes, "multiprocessors": card.blocks, "bus": card.bus})
            });
            serde_json::json!({"devices": cards.collect::<Vec<_>>()}).to_string()
        }
        Err(failure) => serde_json::json!({"error": failure.text}).to_string(),
    }
}

fn duplicate(fd: BorrowedFd<'_>) -> std::io::Result<File> {
    fd.try_clone_to_owned().map(File::from)
}

/// Ends this process when the server `pid` does.
fn die_with(pid: u32) -> Result<(), Failure> {
    // SAFETY: no pointers are involved.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if std::os::unix::process::parent_id() == pid {
        Ok(())
    } else {
        Err(Failure { code: -1, text: "the server is gone".into() })
    }
}

/// A step that is recorded before there is one of its kind.
struct Usual {
    /// Of any step whose input lies where this one's does.
    number: u64,
    rows: usize,
    stored: bool,
    head: Head,
}

struct Worker<'r> {
    region: &'r Region,
    offsets: Offsets,
    shape: Shape,
    context: Context,
    blocks: usize,
    sm_90: bool,
    weights: Address,
    work: Address,
    kv_pool: Address,
    input: Address,
    /// The region, as the device knows it.
    shared: Address,
    layout: WeightLayout,
    work_layout: WorkLayout,
    plan: Plan,
    /// The plan's phases on the device.
    phases: Address,
    graphs: RefCell<Graphs>,
}

impl<'r> Worker<'r> {
    /// Takes the device and all the memory that it will need.
    fn open(ordinal: usize, region: &'r Region, shape: Shape, untied: bool) -> Result<Self, Failure> {
        cuda::load()?;
        let card = Card::open(ordinal)?;
        let (major, minor) = card.capability;
        let image: &Image = card.image().ok_or_else(|| Failure {
            code: -1,
            text: format!("{} has compute capability {major}.{minor}, 8.0 at least is needed", card.name),
        })?;
        let layout = WeightLayout::new(&shape, untied);
        let work_layout = WorkLayout::new(&shape);
        let offsets = Offsets::new(&shape);
        let plan_at = |at| Plan::new(&shape, &layout, &work_layout, at, (card.blocks, image.sm_90));
        let nowhere = plan_at(Addresses { weights: 0, work: 0, screen: 0 });
        let shared = |rows| abi::shared_bytes(&shape, image.sm_90, rows, abi::HEAD_TOKENS_MAX, nowhere.layers.len());
        let token_shared = abi::token_shared_bytes(&shape, nowhere.token.len().max(nowhere.token_layers.len()));
        let shared_max = [8, 16, LAUNCH_ROWS].map(shared).into_iter().max().unwrap_or(0);
        let shared_max = if nowhere.token.is_empty() { shared_max } else { shared_max.max(token_shared) };
        let context = Context::new(&card, image, shared_max)?;
        let header = region.header();
        header.set_name(&card.name);
        header.capability.store(u32::try_from(major * 10 + minor).unwrap_or(0), Ordering::Relaxed);
        header.memory_bytes.store(card.memory_bytes, Ordering::Relaxed);
        header.beat.fetch_add(1, Ordering::Relaxed);
        let shared = context.register(region.address(0), region.bytes())?;

        let weights = context.allocate(layout.bytes)?;
        let work = context.allocate(work_layout.bytes)?;
        let screen = context.allocate(ScreenLayout::new(&shape).bytes)?;
        let input = context.allocate(PLACES * offsets.input_bytes)?;
        let plan = plan_at(Addresses { weights, work, screen });
        let phases = context.allocate(size_of_val(&plan.phases[..]))?;
        let wanted = shape.slots as usize * shape.table_stride();
        let room = context.free_bytes()? / 10 * 9 / shape.block_bytes();
        let blocks = wanted.min(room);
        if blocks < shape.table_stride() {
            let text = format!("{room} KV blocks fit its memory, one sequence needs {}", shape.table_stride());
            return Err(Failure { code: 2, text });
        }
        // The last block is that of rows which only fill up a step.
        let kv_pool = context.allocate((blocks + 1) * shape.block_bytes())?;
        context.zero(work, work_layout.bytes)?;
        // step_1's tags wrap in its third launch. By then every value that it reads was written, none has the tag 0 of before.
        let last_order = plan.phases[plan.token.clone()].last().map_or(0, |phase| phase.order.cast_unsigned());
        let first_tag = [0_u32.wrapping_sub(2 * last_order)];
        context.upload(work + work_layout.barrier as u64 + 4, first_tag.as_ptr().cast(), 4)?;
        let (own_block, own_table) = ([to_word(blocks)], shape.slots as usize * shape.table_stride() * 4);
        for place in 0..PLACES {
            let table = place * offsets.input_bytes + offsets.tables - offsets.input + own_table;
            context.upload(input + table as u64, own_block.as_ptr().cast(), 4)?;
        }
        context.synchronize()?;
        header.kv_blocks.store(to_word(blocks), Ordering::Relaxed);
        let (blocks, sm_90) = (card.blocks, image.sm_90);
        context.upload_phases(phases, &plan.phases)?;
        Ok(Self {
            region,
            offsets,
            shape,
            context,
            blocks,
            sm_90,
            weights,
            work,
            kv_pool,
            input,
            shared,
            layout,
            work_layout,
            plan,
            phases,
            graphs: RefCell::default(),
        })
    }

    fn serve(self) -> Result<(), Failure> {
        let mut usual = self.usual_steps().into_iter();
        self.load_weights(&mut usual)?;
        self.context.launch_batch(&batch::pack_screen(&self.plan.screen, self.plan.choose.weights))?;
        let header = self.region.header();
        for step in usual {
            self.record(&step)?;
        }
        header.state.store(READY, Ordering::Release);
        let mut begun = BEFORE_FIRST;
        loop {
            header.beat.fetch_add(1, Ordering::Relaxed);
            if header.has_step_after(begun) {
                begun += 1;
                self.step(begun)?;
            } else if self.region.done(&self.offsets) == begun {
                self.wait_for_step(begun);
            } else {
                self.look(begun)?;
            }
        }
    }

    /// What most steps will be: of short sequences, whose tokens are all the best, some drawn, or some drawn among the best few,
    /// or with rows of prompts.
    fn usual_steps(&self) -> Vec<Usual> {
        let draws = [(false, false), (true, false), (false, true)];
        let heads = draws.map(|(among_all, among_best)| (false, Head::Tokens(Draws { among_all, among_best })));
        let kinds = [heads.as_slice(), &[(true, Head::Apart)]].concat();
        let of_rows = |rows: usize| {
            kinds.iter().flat_map(move |&(stored, head)| {
                (PLACES..2 * PLACES).map(move |number| Usual { number: number as u64, rows, stored, head })
            })
        };
        buckets(self.shape.slots as usize).flat_map(of_rows).collect()
    }

    /// Records such a step before there is one.
    fn record(&self, step: &Usual) -> Result<(), Failure> {
        let &Usual { number, rows, stored, head } = step;
        self.recorded(number, (rows, 1), stored, head)?;
        self.region.header().beat.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Copies what the server stages until it says that there is no more. While it has to wait it records some of the `usual` steps.
    fn load_weights(&self, usual: &mut impl Iterator<Item = Usual>) -> Result<(), Failure> {
        let header = self.region.header();
        header.state.store(LOADING, Ordering::Release);
        loop {
            // Asked before the stage is looked at, so that its last part is not missed.
            let (end, mut moved) = (header.weights_end.load(Ordering::Acquire) == 1, false);
            for half in 0..2 {
                let bytes = header.stage_bytes[half].load(Ordering::Acquire) as usize;
                if bytes == 0 {
                    continue;
                }
                let offset = header.stage_offset[half].load(Ordering::Relaxed);
                let fits = usize::try_from(offset).is_ok_and(|offset| offset + bytes <= self.layout.bytes);
                assert!(fits && bytes <= STAGE_BYTES, "the server stages parts of the weights");
                let from = self.region.address(self.offsets.stage + half * STAGE_BYTES);
                self.context.upload(self.weights + offset, from, bytes)?;
                self.context.synchronize()?;
                header.stage_bytes[half].store(0, Ordering::Release);
                header.beat.fetch_add(1, Ordering::Relaxed);
                moved = true;
            }
            if !moved {
                if end {
                    return Ok(());
                }
                match usual.next() {
                    Some(step) => self.record(&step)?,
                    None => header.wait_for_step(BEFORE_FIRST, Duration::from_millis(1)),
                }
            }
        }
    }

    /// Waits for a step after `begun`: asking for a while, then asleep.
    fn wait_for_step(&self, begun: u64) {
        let header = self.region.header();
        let until = Instant::now() + SPIN_BEFORE_SLEEP;
        loop {
            for _ in 0..SPINS_PER_LOOK {
                if header.has_step_after(begun) {
                    return;
                }
                std::hint::spin_loop();
            }
            if Instant::now() >= until {
                header.wait_for_step(begun, BEAT_EVERY);
                return;
            }
        }
    }

    /// Begins all that step `number` asks for: one copy in, beside the step before, its launches, copies of scores, and last a launch that
    /// tells its tokens and number.
    fn step(&self, number: u64) -> Result<(), Failure> {
        let (words, offsets) = (&self.region.header().steps[place(number)], &self.offsets);
        let count = |word: &std::sync::atomic::AtomicU32| word.load(Ordering::Relaxed) as usize;
        let (rows, decodes, sequences) = (count(&words.rows), count(&words.decodes), count(&words.sequences));
        let (tiles, tensor_tiles) = (count(&words.tiles), count(&words.tensor_tiles));
        let stored = count(&words.stored) == 1;
        let (chosen, scores) = (count(&words.chosen), count(&words.scores));
        let draws = Draws { among_all: count(&words.drawn) == 1, among_best: count(&words.ranked) == 1 };
        let fits = rows <= self.shape.rows_max as usize
            && decodes <= rows
            && (decodes == rows || !stored)
            && tensor_tiles <= tiles
            && tiles <= tiles_max(&self.shape);
        assert!(fits && sequences.max(chosen + scores) <= self.shape.slots as usize, "a step fits the region");
        let bytes = offsets.tables - offsets.input + sequences * self.shape.table_stride() * 4;
        let from = self.region.address(offsets.of_step(number, offsets.input));
        self.context.upload_aside(self.input_of(number, offsets.input), from, bytes)?;
        if tiles > 0 {
            let from = self.region.address(offsets.of_step(number, offsets.tiles));
            self.context.upload_aside(self.input_of(number, offsets.tiles), from, tiles * TILE_WORDS * 4)?;
        }
        // SAFETY: the server wrote them before it submitted the step, and waits for it to be done.
        let positions: &[u32] = unsafe { self.region.read(offsets.of_step(number, offsets.positions), rows) };
        let splits = positions.iter().max().map_or(1, |position| *position as usize / SPLIT + 1);
        assert!(splits <= self.shape.context as usize / SPLIT + 1, "positions are inside the context");
        let step = self.arguments(number, rows, splits);
        let with_token = rows == 1 && decodes == 1 && !self.plan.token.is_empty();
        // The step kernels of more rows know F16 only.
        let alone = rows == 1 && decodes == 1 && self.shape.kv_bytes == 0;
        let head = if chosen == rows { Head::Tokens(draws) } else { Head::Apart };
        let mut whole = with_token && head == Head::Tokens(Draws::default());
        let mut told = false;
        self.context.wait_for_uploads()?;
        if with_token {
            self.launch_token(step, whole)?;
        } else if alone {
            self.launch_step(step, &self.plan.layers)?;
        } else if decodes == rows {
            self.launch_singles(number, step, stored, head)?;
            whole = head != Head::Apart;
            told = whole;
        } else {
            let (prompts, prompt_tiles) = (rows - decodes, tiles - tensor_tiles);
            self.launch_layers(step, batch::Rows { decodes, prompts, prompt_tiles, tensor_tiles, stored })?;
        }
        if !whole {
            self.launch_screened_heads(number, step, chosen, draws)?;
        }
        self.launch_heads(number, step, chosen, scores)?;
        if told { Ok(()) } else { self.context.launch_batch(&batch::tell(&step)) }
    }

    /// Rows that stand alone, with their tokens where `head` says so: replayed, if the driver records.
    fn launch_singles(&self, number: u64, step: Step, stored: bool, head: Head) -> Result<(), Failure> {
        let (rows, splits) = (step.tokens.unsigned_abs() as usize, step.splits_max.unsigned_abs() as usize);
        match self.recorded(number, (rows, splits), stored, head)? {
            Some(graph) => self.context.replay(graph),
            None => self.launch_rows(number, step, stored, head),
        }
    }

    /// The recording for the bucket of such a step, of so many rows and splits.
    fn recorded(
        &self,
        number: u64,
        (rows, splits): (usize, usize),
        stored: bool,
        head: Head,
    ) -> Result<Option<Graph>, Failure> {
        let rows = padded_rows(rows, self.shape.slots as usize);
        let splits = padded_splits(splits, self.shape.context as usize);
        let key = Key { rows, splits, stored, head, place: place(number) };
        let step = self.arguments(number, rows, splits);
        self.graphs.borrow_mut().get(&self.context, key, || self.launch_rows(number, step, stored, head))
    }

    fn launch_rows(&self, number: u64, step: Step, stored: bool, head: Head) -> Result<(), Failure> {
        let rows = step.tokens.unsigned_abs() as usize;
        let alone = batch::Rows { decodes: rows, stored, ..batch::Rows::default() };
        match batch::rows_beside(alone, self.limits()) {
            0 => self.launch_layers(step, alone)?,
            beside => self.launch_parts(step, rows - beside)?,
        }
        let Head::Tokens(draws) = head else { return Ok(()) };
        self.launch_screened_heads(number, step, rows, draws)?;
        self.context.launch_batch(&batch::tell(&step))
    }

    /// The tokens of the first `count` picked rows.
    fn launch_screened_heads(&self, number: u64, step: Step, count: usize, draws: Draws) -> Result<(), Failure> {
        for first in (0..count).step_by(SCREEN_ROWS) {
            let picked = self.input_of(number, self.offsets.picked + 4 * first);
            let drawn = self.input_of(number, self.offsets.draws + 4 * DRAW_WORDS * first);
            let drawn = if draws == Draws::default() { 0 } else { drawn };
            let step = Step { tokens: to_i32((count - first).min(SCREEN_ROWS)), picked, draws: drawn, ..step };
            let Plan { screen, choose, .. } = &self.plan;
            let (phases, limits) = ((screen, choose), self.limits());
            batch::screened_head(phases, &step, draws, limits, |launch| self.context.launch_batch(launch))?;
        }
        Ok(())
    }

    /// All logits of `count` picked rows after the first `before`, copied to where the server looks for them.
    fn launch_heads(&self, number: u64, step: Step, before: usize, count: usize) -> Result<(), Failure> {
        let row_bytes = self.shape.vocab as usize * 4;
        for first in (0..count).step_by(self.head_rows()) {
            let some = (count - first).min(self.head_rows());
            let picked = self.input_of(number, self.offsets.picked + 4 * (before + first));
            let head_tokens = to_i32(abi::head_tokens(some, self.blocks));
            self.launch_step(Step { tokens: to_i32(some), picked, head_tokens, ..step }, &self.plan.head)?;
            let to = self.region.address(self.offsets.logits + first * row_bytes);
            self.context.download(to, self.work + self.work_layout.logits as u64, some * row_bytes)?;
        }
        Ok(())
    }

    /// Rows that the blocks of one launch compute logits of.
    fn head_rows(&self) -> usize {
        LAUNCH_ROWS.min(abi::HEAD_TOKENS_MAX * self.blocks)
    }

    /// The place of a part of the input of step `number` on the device.
    fn input_of(&self, number: u64, offset: usize) -> Address {
        self.input + (self.offsets.of_step(number, offset) - self.offsets.input) as u64
    }

    /// All rows through the layers, by the batch kernels.
    fn launch_layers(&self, step: Step, rows: batch::Rows) -> Result<(), Failure> {
        let layers = &self.plan.phases[self.plan.layers.clone()];
        batch::launches(layers, &step, rows, self.limits(), |launch| self.context.launch_batch(launch))
    }

    /// Rows that decode through the layers in two parts side by side, the second one from row `first` on.
    fn launch_parts(&self, step: Step, first: usize) -> Result<(), Failure> {
        let (context, limits, widest) = (&self.context, self.limits(), self.shape.widest_padded());
        let layers = &self.plan.phases[self.plan.layers.clone()];
        let moved: Vec<Phase> = layers.iter().map(|phase| batch::phase_from(phase, first)).collect();
        let rows = step.tokens.unsigned_abs() as usize;
        let of = |decodes| batch::Rows { decodes, ..batch::Rows::default() };
        context.part()?;
        let (step, second) = (batch::step_of(&step, 0..first, widest), batch::step_of(&step, first..rows, widest));
        batch::launches(layers, &step, of(first), limits, |launch| context.launch_batch(launch))?;
        batch::launches(&moved, &second, of(rows - first), limits, |launch| context.launch_beside(launch))?;
        context.meet()
    }

    fn limits(&self) -> batch::Limits {
        batch::Limits { multiprocessors: self.blocks, cluster_max: if self.sm_90 { 8 } else { 1 } }
    }

    /// Some of the plan's phases, by a step kernel.
    fn launch_step(&self, step: Step, phases: &Range<usize>) -> Result<(), Failure> {
        let (rows, head_tokens) = (step.tokens.unsigned_abs() as usize, step.head_tokens.unsigned_abs() as usize);
        let shared = abi::shared_bytes(&self.shape, self.sm_90, rows, head_tokens, phases.len());
        let (_, name) = abi::kernel_for(rows);
        self.context.launch(name, self.blocks, shared, self.phases_at(phases), &step)
    }

    /// A step of one row: with its best token, or but for the head.
    fn launch_token(&self, step: Step, best: bool) -> Result<(), Failure> {
        let (plan, work) = (&self.plan, &self.work_layout);
        let phases = if best { &plan.token } else { &plan.token_layers };
        let step =
            Step { qkv: self.work + work.token_qkv as u64, attention: self.work + work.token_attention as u64, ..step };
        let shared = abi::token_shared_bytes(&self.shape, phases.len());
        let name = abi::token_kernel(&self.shape);
        self.context.launch(name, self.blocks, shared, self.phases_at(phases), &step)
    }

    fn phases_at(&self, phases: &Range<usize>) -> (Address, usize) {
        (self.phases + (phases.start * size_of::<Phase>()) as u64, phases.len())
    }

    /// Buffers and shape of a launch of so many rows of step `number`.
    fn arguments(&self, number: u64, rows: usize, splits: usize) -> Step {
        let (shape, work, offsets) = (&self.shape, &self.work_layout, &self.offsets);
        let buffer = |offset: usize| self.work + offset as u64;
        let rope = self.layout.offset(Content::Rope).expect("the layout holds every part") as u64;
        #[expect(clippy::cast_precision_loss, reason = "heads are small")]
        let score_scale = 1.0 / (shape.head_dim as f32).sqrt();
        Step {
            tokens: to_i32(rows),
            hidden: to_i32(shape.hidden as usize),
            vocab: to_i32(shape.vocab as usize),
            layers: to_i32(shape.layers as usize),
            heads: to_i32(shape.heads as usize),
            kv_heads: to_i32(shape.kv_heads as usize),
            head_dim: to_i32(shape.head_dim as usize),
            rope_half: to_i32(shape.rope_half as usize),
            rope_pairs: to_i32(shape.rope_pairs as usize),
            unit_heads: to_i32(abi::unit_heads(shape, rows, splits, self.blocks)),
            group: to_i32(shape.group()),
            splits_max: to_i32(splits),
            table_stride: to_i32(shape.table_stride()),
            head_tokens: to_i32(abi::head_tokens(rows, self.blocks)),
            score_scale,
            token_ids: self.input_of(number, offsets.ids),
            positions: self.input_of(number, offsets.positions),
            sequences: self.input_of(number, offsets.sequences),
            prompt_tiles: self.input_of(number, offsets.tiles),
            block_table: self.input_of(number, offsets.tables),
            kv_pool: self.kv_pool,
            rope: self.weights + rope,
            qkv: buffer(work.qkv),
            attention: buffer(work.attention),
            partial: buffer(work.partial),
            arrived: buffer(work.arrived),
            quantized: buffer(work.quantized),
            quantized_scale: buffer(work.quantized_scale),
            quantized_sum: buffer(work.quantized_sum),
            logits: buffer(work.logits),
            best: buffer(work.best),
            lower: buffer(work.lower),
            queries: buffer(work.queries),
            query_factors: buffer(work.query_factors),
            barrier: buffer(work.barrier),
            screened: buffer(work.screened),
            screen_rows: buffer(work.screen_rows),
            normed: buffer(work.normed),
            chosen: buffer(work.chosen),
            earlier: self.input_of(number.wrapping_sub(1), offsets.ids),
            told: self.shared + offsets.chosen_of(number) as u64,
            done: self.shared + offsets.done as u64,
            number: self.input_of(number, offsets.input),
            ..Step::default()
        }
    }

    /// Waits until step `begun` is done or there is another one to begin. The device's own word comes soonest; now and then
    /// the driver is asked whether there will be one.
    fn look(&self, begun: u64) -> Result<(), Failure> {
        let header = self.region.header();
        for _ in 0..LOOKS_PER_QUERY {
            if self.region.done(&self.offsets) == begun || header.has_step_after(begun) {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        if self.context.is_idle()? && self.region.done(&self.offsets) != begun {
            return Err(Failure { code: -1, text: "the device is idle without having given results".into() });
        }
        std::thread::yield_now();
        Ok(())
    }
}

fn to_word(value: usize) -> u32 {
    u32::try_from(value).expect("rows and blocks fit 32 bits")
}

/// A worker that waits for its next step asks for so long before it sleeps: longer than a server forms a step.
const SPIN_BEFORE_SLEEP: Duration = Duration::from_micros(500);
const SPINS_PER_LOOK: u32 = 100;
/// A sleeping worker moves its beat so often.
const BEAT_EVERY: Duration = Duration::from_millis(200);
/// Looks at the device's word between two questions to the driver, which cost about a microsecond each.
const LOOKS_PER_QUERY: u32 = 500;
