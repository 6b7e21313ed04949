//! The worker process: the only one that talks to the CUDA driver. A sticky error, a hang or a crash costs this process,
//! never the server.
#![expect(unsafe_code, reason = "memory shared with the server, and process system calls")]

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::abi::{self, LAUNCH_ROWS, Phase, SPLIT, Step, to_i32};
use super::batch;
use super::cuda::{self, Address, Card, Context, Failure};
use super::images::Image;
use super::layout::{Content, WeightLayout, WorkLayout};
use super::plan::{self, Addresses, HEAD_PHASES};
use super::shape::Shape;
use super::wire::{LOADING, Offsets, READY, Region, STAGE_BYTES};

/// Runs `bitnetd gpu-worker`: serves the steps of the server whose shared memory is standard input.
#[must_use]
pub fn run(ordinal: usize) -> ExitCode {
    let input = std::io::stdin();
    let opened = duplicate(input.as_fd()).and_then(Region::open);
    let (region, shape, untied) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            eprintln!("bitnetd gpu-worker: {error}");
            return ExitCode::FAILURE;
        }
    };
    if let Err(failure) = die_with(region.header().host_pid.load(Ordering::Relaxed)) {
        region.header().fail(failure.code, &failure.text);
        return ExitCode::FAILURE;
    }
    let result = Worker::open(ordinal, &region, shape, untied).and_then(|worker| worker.serve());
    if let Err(failure) = result {
        region.header().fail(failure.code, &failure.text);
    }
    // The context may be beyond repair: nothing of it is given back, the process ends.
    ExitCode::FAILURE
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
                    "memory_bytes": card.memory_bytes, "multiprocessors": card.blocks})
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
    layout: WeightLayout,
    work_layout: WorkLayout,
    /// The phases of a step, here and on the device.
    phases: Vec<Phase>,
    phases_there: Address,
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
        let count = |at| plan::phases(&shape, &layout, &work_layout, at, card.blocks);
        let phase_count = count(Addresses { weights: 0, work: 0 }).len();
        let shared = |rows| abi::shared_bytes(&shape, image.sm_90, rows, abi::HEAD_TOKENS_MAX, phase_count);
        let shared_max = [8, 16, LAUNCH_ROWS].map(shared).into_iter().max().unwrap_or(0);
        let context = Context::new(&card, image, shared_max)?;
        let header = region.header();
        header.set_name(&card.name);
        header.capability.store(u32::try_from(major * 10 + minor).unwrap_or(0), Ordering::Relaxed);
        header.memory_bytes.store(card.memory_bytes, Ordering::Relaxed);
        header.beat.fetch_add(1, Ordering::Relaxed);
        context.register(region.address(0), region.bytes())?;

        let weights = context.allocate(layout.bytes)?;
        let work = context.allocate(work_layout.bytes)?;
        let input = context.allocate(offsets.input_end - offsets.input)?;
        let phases = count(Addresses { weights, work });
        let phases_there = context.allocate(size_of_val(&phases[..]))?;
        let wanted = shape.slots as usize * shape.table_stride();
        let room = context.free_bytes()? / 10 * 9 / shape.block_bytes();
        let blocks = wanted.min(room);
        if blocks < shape.table_stride() {
            let text = format!("{room} KV blocks fit its memory, one sequence needs {}", shape.table_stride());
            return Err(Failure { code: 2, text });
        }
        let kv_pool = context.allocate(blocks * shape.block_bytes())?;
        context.zero(work, work_layout.bytes)?;
        context.synchronize()?;
        header.kv_blocks.store(u32::try_from(blocks).unwrap_or(u32::MAX), Ordering::Relaxed);
        let (blocks, sm_90) = (card.blocks, image.sm_90);
        context.upload_phases(phases_there, &phases)?;
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
            layout,
            work_layout,
            phases,
            phases_there,
        })
    }

    fn serve(mut self) -> Result<(), Failure> {
        self.load_weights()?;
        let header = self.region.header();
        header.state.store(READY, Ordering::Release);
        let mut seen = 0;
        loop {
            header.beat.fetch_add(1, Ordering::Relaxed);
            let number = self.next_step(seen);
            if number != seen {
                seen = number;
                let begun = Instant::now();
                self.step()?;
                self.finish(number)?;
                let ns = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
                header.finished_ns.store(ns, Ordering::Relaxed);
                header.finished.store(number, Ordering::Release);
            }
        }
    }

    /// Copies what the server stages until it says that there is no more.
    fn load_weights(&mut self) -> Result<(), Failure> {
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
                header.wait_for_step(0, Duration::from_millis(1));
            }
        }
    }

    /// The number of the newest step: after a while of asking, or of sleep.
    fn next_step(&self, seen: u32) -> u32 {
        let header = self.region.header();
        let until = Instant::now() + SPIN_BEFORE_SLEEP;
        loop {
            for _ in 0..SPINS_PER_LOOK {
                let number = header.submitted.load(Ordering::Acquire);
                if number != seen {
                    return number;
                }
                std::hint::spin_loop();
            }
            if Instant::now() >= until {
                header.wait_for_step(seen, BEAT_EVERY);
                return header.submitted.load(Ordering::Acquire);
            }
        }
    }

    /// Begins all that the newest step asks for: one copy in, its launches, copies out, and last its number.
    fn step(&self) -> Result<(), Failure> {
        let (header, offsets) = (self.region.header(), &self.offsets);
        let count = |word: &std::sync::atomic::AtomicU32| word.load(Ordering::Relaxed) as usize;
        let (rows, decodes, sequences) = (count(&header.rows), count(&header.decodes), count(&header.sequences));
        let (tiles, picks) = (count(&header.tiles), count(&header.picks));
        let fits = rows <= self.shape.rows_max as usize && decodes <= rows && tiles <= rows;
        assert!(fits && sequences.max(picks) <= self.shape.slots as usize, "a step fits the region");
        let bytes = offsets.tables - offsets.input + sequences * self.shape.table_stride() * 4;
        self.context.upload(self.input, self.region.address(offsets.input), bytes)?;
        // SAFETY: the server wrote them before it submitted the step, and waits for it to be done.
        let positions: &[u32] = unsafe { self.region.read(offsets.positions, decodes) };
        let splits = positions.iter().max().map_or(1, |position| *position as usize / SPLIT + 1);
        assert!(splits <= self.shape.context as usize / SPLIT + 1, "positions are inside the context");
        if rows == decodes && rows == picks && rows <= STEP_ROWS.min(self.head_rows()) {
            self.launch_step(self.arguments(rows, splits), 0, self.phases.len())?;
            self.download_scores(0, picks)?;
        } else {
            self.launch_layers(rows, decodes, tiles, splits)?;
            for first in (0..picks).step_by(self.head_rows()) {
                let some = (picks - first).min(self.head_rows());
                let mut step = self.arguments(some, splits);
                step.picked = self.input_at(offsets.picked + 4 * first);
                self.launch_step(step, self.phases.len() - HEAD_PHASES, HEAD_PHASES)?;
                self.download_scores(first, some)?;
            }
        }
        self.context.download(self.region.address(offsets.best), self.input_at(offsets.ids), rows * 4)?;
        self.context.download(self.region.address(offsets.done), self.input, 8)
    }

    /// Rows that the blocks of one launch compute logits of.
    fn head_rows(&self) -> usize {
        LAUNCH_ROWS.min(abi::HEAD_TOKENS_MAX * self.blocks)
    }

    fn input_at(&self, offset: usize) -> Address {
        self.input + (offset - self.offsets.input) as u64
    }

    /// Begins the copies of those of the `count` rows of scores, entries of the step's logits from `first` on, that are
    /// wanted.
    fn download_scores(&self, first: usize, count: usize) -> Result<(), Failure> {
        let row_bytes = self.shape.vocab as usize * 4;
        // SAFETY: as in `step`.
        let wants: &[u32] = unsafe { self.region.read(self.offsets.wants + 4 * first, count) };
        for (row, want) in wants.iter().enumerate().filter(|(_, want)| **want > 0) {
            let place = *want as usize - 1;
            assert!(place < self.shape.slots as usize, "scores have room");
            let from = self.work + (self.work_layout.logits + row * row_bytes) as u64;
            self.context.download(self.region.address(self.offsets.logits + place * row_bytes), from, row_bytes)?;
        }
        Ok(())
    }

    /// All rows through the layers, by the batch kernels.
    fn launch_layers(&self, rows: usize, decodes: usize, tiles: usize, splits: usize) -> Result<(), Failure> {
        let mut step = self.arguments(rows, splits);
        step.unit_heads = to_i32(abi::unit_heads(&self.shape, decodes.max(1), splits, self.blocks));
        let rows = batch::Rows { decodes, prompts: rows - decodes, prompt_tiles: tiles };
        let limits = batch::Limits { multiprocessors: self.blocks, cluster_max: if self.sm_90 { 8 } else { 1 } };
        let layers = &self.phases[..self.phases.len() - HEAD_PHASES];
        batch::launches(layers, &step, rows, limits, |launch| self.context.launch_batch(launch))
    }

    /// `count` phases from `first` on, by a step kernel.
    fn launch_step(&self, step: Step, first: usize, count: usize) -> Result<(), Failure> {
        let (rows, head_tokens) = (step.tokens.unsigned_abs() as usize, step.head_tokens.unsigned_abs() as usize);
        let shared = abi::shared_bytes(&self.shape, self.sm_90, rows, head_tokens, count);
        let phases = self.phases_there + (first * size_of::<Phase>()) as u64;
        self.context.launch(self.blocks, shared, (phases, count), &step)
    }

    /// Buffers and shape of a launch of so many rows.
    fn arguments(&self, rows: usize, splits: usize) -> Step {
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
            token_ids: self.input_at(offsets.ids),
            positions: self.input_at(offsets.positions),
            sequences: self.input_at(offsets.sequences),
            prompt_tiles: self.input_at(offsets.tiles),
            block_table: self.input_at(offsets.tables),
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
            barrier: buffer(work.barrier),
            ..Step::default()
        }
    }

    /// Waits for the results of a step. The device's own word comes soonest; now and then the driver is asked whether
    /// there will be one.
    fn finish(&self, number: u32) -> Result<(), Failure> {
        loop {
            for _ in 0..LOOKS_PER_QUERY {
                if self.region.done(&self.offsets) == number {
                    return Ok(());
                }
                std::hint::spin_loop();
            }
            if self.context.is_idle()? && self.region.done(&self.offsets) != number {
                return Err(Failure { code: -1, text: "the device is idle without having given results".into() });
            }
            self.region.header().beat.fetch_add(1, Ordering::Relaxed);
            std::thread::yield_now();
        }
    }
}

/// A worker that waits for its next step asks for so long before it sleeps: longer than a server forms a step.
const SPIN_BEFORE_SLEEP: Duration = Duration::from_micros(500);
const SPINS_PER_LOOK: u32 = 100;
/// A sleeping worker moves its beat so often.
const BEAT_EVERY: Duration = Duration::from_millis(200);
/// Looks at the device's word between two questions to the driver, which cost about a microsecond each.
const LOOKS_PER_QUERY: u32 = 500;
/// Steps of at most so many rows, all of them decoding, are one launch of a step kernel.
const STEP_ROWS: usize = 8;
