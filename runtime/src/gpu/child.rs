//! A device in a worker process of its own: started, fed with weights and steps, watched, killed.
#![expect(unsafe_code, reason = "memory shared with the worker, whose turns the header's words take")]

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kernels::draw::{Draw, halves};
use tuning::format_cpus;

use super::Cpus;
use super::abi::{DRAW_WORDS, NO_TOKEN, TILE_WORDS};
use super::assign::Assignment;
use super::batch::prompt_pairs;
use super::device::{Device, Fault, STEPS_MAX, Started, Want, entry_of};
use super::graphs::padded_rows;
use super::images::image_for;
use super::pack::Packer;
use super::plan::Order;
use super::shape::Shape;
use super::wire::{BEFORE_FIRST, FAILED, Offsets, PLACES, READY, Region, STAGE_BYTES, place};
use crate::forward::Step;
use crate::kv::BlockTables;
use crate::model::Model;
use crate::sampler::RankedDraw;

/// Device `ordinal` of the driver, behind a process boundary.
pub(super) struct ChildDevice {
    ordinal: usize,
    cpus: Option<Cpus>,
    model: Option<Arc<Model>>,
    shape: Shape,
    offsets: Offsets,
    running: Option<Running>,
    /// Numbers of the newest step and of the last one whose results were used; the order of the rows of those between.
    newest: u64,
    used: u64,
    orders: [Order; PLACES],
    /// Rows of scores of the steps between.
    scores: [usize; PLACES],
    looked: Instant,
}

struct Running {
    child: Child,
    region: Region,
    packer: Option<Packer>,
    beat: u32,
    beat_at: Instant,
}

impl ChildDevice {
    /// A device without a model, whose worker process gets these cpus.
    #[must_use]
    pub(super) fn new(ordinal: usize, cpus: Option<Cpus>) -> Self {
        let shape = Shape::default();
        Self {
            ordinal,
            cpus,
            model: None,
            shape,
            offsets: Offsets::new(&shape),
            running: None,
            newest: BEFORE_FIRST,
            used: BEFORE_FIRST,
            orders: Default::default(),
            scores: [0; PLACES],
            looked: Instant::now(),
        }
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("a device is used while it is up")
    }
}

impl Device for ChildDevice {
    fn assign(&mut self, assignment: Option<&Assignment>) {
        self.stop();
        self.model = assignment.map(|assignment| Arc::clone(&assignment.model));
        self.shape = assignment.map(|assignment| assignment.shape).unwrap_or_default();
        self.offsets = Offsets::new(&self.shape);
    }

    fn start(&mut self) -> Result<(), Fault> {
        self.stop();
        let spawn = |error: std::io::Error| Fault::Spawn(error.to_string());
        let weights = &self.model.as_ref().expect("a device is brought up with a model").weights;
        let region = Region::create(&self.shape, weights.head.is_some()).map_err(spawn)?;
        let input = region.fd().try_clone_to_owned().map_err(spawn)?;
        let mut worker = Command::new("/proc/self/exe");
        worker.args(["gpu-worker", "--device", &self.ordinal.to_string()]);
        if let Some(cpus) = &self.cpus {
            worker.args(["--cpu", &cpus.worker.0.to_string(), "--other-cpus", &format_cpus(&cpus.others)]);
        }
        let child = worker.stdin(Stdio::from(input)).stdout(Stdio::null()).spawn().map_err(spawn)?;
        let packer = Some(Packer::new(self.shape, weights));
        (self.newest, self.used) = (BEFORE_FIRST, BEFORE_FIRST);
        self.running = Some(Running { child, region, packer, beat: 0, beat_at: Instant::now() });
        Ok(())
    }

    fn poll_start(&mut self) -> Result<Option<Started>, Fault> {
        let model = self.model.as_ref().expect("a device is brought up with a model");
        let (stage, weights) = (self.offsets.stage, &model.weights);
        let running = self.running.as_mut().expect("a device is asked after once it was started");
        running.check_alive()?;
        running.check_beat()?;
        running.fill_stage(stage, weights);
        let header = running.region.header();
        if header.state.load(Ordering::Acquire) != READY {
            return Ok(None);
        }
        Ok(Some(Started {
            name: header.name(),
            kv_blocks: header.kv_blocks.load(Ordering::Relaxed) as usize,
            memory_bytes: header.memory_bytes.load(Ordering::Relaxed),
        }))
    }

    fn submit(&mut self, step: &Step, tables: &BlockTables, tensor_rows: &[usize], wants: &[Want]) {
        let Self { running, offsets, shape, orders, .. } = self;
        let region = &mut running.as_mut().expect("a device is given steps while it is up").region;
        let number = self.newest + 1;
        assert!(number - self.used <= STEPS_MAX as u64, "a step has a place");
        let (before, own) = (place(self.newest), place(number));
        let capability = region.header().capability.load(Ordering::Relaxed).cast_signed();
        let sm_90 = image_for(capability / 10, capability % 10).is_some_and(|image| image.sm_90);
        // Where scores are wanted, the self test's among them, prompts are in tiles.
        let singles_max = if wants.contains(&Want::Scores) { 0 } else { shape.slots as usize };
        orders[own].arrange(step, tensor_rows, (prompt_pairs(sm_90), shape.group()), singles_max);
        let (order, before) = (&orders[own], &orders[before]);
        let (rows, stride, sequences) = (order.rows.len(), shape.table_stride(), step.segments.len());
        let fits = rows <= shape.rows_max as usize && sequences.max(wants.len()) <= shape.slots as usize;
        assert!(fits, "a step fits the region");
        // Rows that stand alone are filled up with ones that nobody looks at.
        let padded = if order.decodes == rows { padded_rows(rows, shape.slots as usize) } else { rows };
        let at = |input| offsets.of_step(number, input);
        // SAFETY: the worker and the device are done with the last step of this place, and have not been given this one.
        let ids: &mut [u32] = unsafe { region.write(at(offsets.ids), padded) };
        ids[rows..].fill(0);
        for (id, row) in ids.iter_mut().zip(&order.rows) {
            let token = step.tokens[*row];
            *id = entry_of(token).map_or(token, |entry| !word(before.picks[entry]));
        }
        // SAFETY: as above.
        let positions: &mut [u32] = unsafe { region.write(at(offsets.positions), padded) };
        positions[rows..].fill(0);
        for ((to, row), index) in positions.iter_mut().zip(&order.rows).zip(&order.segments) {
            let segment = &step.segments[*index];
            *to = word(segment.first_position + row - segment.first_row);
        }
        // SAFETY: as above.
        let of: &mut [u32] = unsafe { region.write(at(offsets.sequences), padded) };
        of[rows..].fill(shape.slots);
        of.iter_mut().zip(&order.segments).for_each(|(to, index)| *to = word(*index));
        // SAFETY: as above.
        let tiles: &mut [u32] = unsafe { region.write(at(offsets.tiles), order.tiles.len() * TILE_WORDS) };
        tiles.copy_from_slice(order.tiles.as_flattened());
        // SAFETY: as above.
        let table: &mut [u32] = unsafe { region.write(at(offsets.tables), sequences * stride) };
        for (to, segment) in table.chunks_exact_mut(stride).zip(&step.segments) {
            let blocks = tables.table(segment.slot);
            to[..blocks.len()].copy_from_slice(blocks);
        }
        // SAFETY: as above.
        let picked: &mut [u32] = unsafe { region.write(at(offsets.picked), wants.len() + padded - rows) };
        let scored = |are: bool| order.picks.iter().zip(wants).filter(move |(_, want)| (**want == Want::Scores) == are);
        let rows_picked = scored(false).chain(scored(true)).map(|(row, _)| *row).chain(rows..padded);
        picked.iter_mut().zip(rows_picked).for_each(|(to, row)| *to = word(row));
        // SAFETY: as above.
        let draws: &mut [u32] = unsafe { region.write(at(offsets.draws), (wants.len() + padded - rows) * DRAW_WORDS) };
        let (draws, _) = draws.as_chunks_mut::<DRAW_WORDS>();
        draws[wants.len()..].fill([0; DRAW_WORDS]);
        draws.iter_mut().zip(scored(false)).for_each(|(to, (_, want))| *to = draw_words(want));
        // SAFETY: as above.
        let number_there: &mut [u64] = unsafe { region.write(at(offsets.input), 1) };
        number_there[0] = number;
        self.scores[own] = wants.iter().filter(|want| **want == Want::Scores).count();
        let words = &region.header().steps[own];
        words.rows.store(word(rows), Ordering::Relaxed);
        words.decodes.store(word(order.decodes), Ordering::Relaxed);
        words.stored.store(u32::from(order.stored), Ordering::Relaxed);
        words.sequences.store(word(sequences), Ordering::Relaxed);
        words.tiles.store(word(order.tiles.len()), Ordering::Relaxed);
        words.tensor_tiles.store(word(order.tensor_tiles), Ordering::Relaxed);
        words.chosen.store(word(wants.len() - self.scores[own]), Ordering::Relaxed);
        let drawn = wants.iter().any(|want| matches!(want, Want::Drawn(_)));
        words.drawn.store(u32::from(drawn), Ordering::Relaxed);
        let ranked = wants.iter().any(|want| matches!(want, Want::Ranked(_)));
        words.ranked.store(u32::from(ranked), Ordering::Relaxed);
        words.scores.store(word(self.scores[own]), Ordering::Relaxed);
        region.header().submit(number);
        (self.newest, self.looked) = (number, Instant::now());
    }

    fn poll_step(&mut self) -> Result<bool, Fault> {
        let running = self.running.as_mut().expect("a device has a step while it is up");
        if running.region.done(&self.offsets) > self.used {
            return Ok(true);
        }
        let now = Instant::now();
        if now.saturating_duration_since(self.looked) > LOOK_EVERY {
            self.looked = now;
            running.check_alive()?;
        }
        Ok(false)
    }

    fn token(&self, i: usize) -> Option<u32> {
        let oldest = self.used + 1;
        let at = self.offsets.chosen_of(oldest) + 4 * self.orders[place(oldest)].picks[i];
        // SAFETY: the step is done, and no other one was given its place.
        let token: &[u32] = unsafe { self.running().region.read(at, 1) };
        Some(token[0]).filter(|token| *token != NO_TOKEN)
    }

    fn scores(&mut self) -> &mut [f32] {
        let count = self.scores[place(self.used + 1)] * self.shape.vocab as usize;
        let running = self.running.as_mut().expect("a device has results while it is up");
        // SAFETY: the step is done, and none that wants scores was given since.
        unsafe { running.region.write(self.offsets.logits, count) }
    }

    fn advance(&mut self) {
        self.used += 1;
    }

    fn stop(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        // One that has ended already is no concern.
        let _ = running.child.kill();
        let _ = running.child.wait();
    }
}

impl Drop for ChildDevice {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Running {
    /// Whether the worker says that it failed, or is gone.
    fn check_alive(&mut self) -> Result<(), Fault> {
        let header = self.region.header();
        if header.state.load(Ordering::Acquire) == FAILED {
            return Err(Fault::Driver { code: header.fault_code.load(Ordering::Relaxed), text: header.fault_text() });
        }
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            // Its last words may have come after the look above.
            Ok(Some(_)) if self.region.header().state.load(Ordering::Acquire) == FAILED => self.check_alive(),
            Ok(Some(status)) => Err(Fault::Exited(status.to_string())),
            Err(error) => Err(Fault::Exited(error.to_string())),
        }
    }

    fn check_beat(&mut self) -> Result<(), Fault> {
        let beat = self.region.header().beat.load(Ordering::Relaxed);
        if beat != self.beat {
            (self.beat, self.beat_at) = (beat, Instant::now());
        }
        let still = self.beat_at.elapsed();
        if still > START_STILL_MAX { Err(Fault::Stuck(still)) } else { Ok(()) }
    }

    /// Fills each half of the stage that is free with the next weights.
    fn fill_stage(&mut self, stage: usize, weights: &crate::model::Weights) {
        for half in 0..2 {
            let Some(packer) = &mut self.packer else { return };
            if self.region.header().stage_bytes[half].load(Ordering::Acquire) != 0 {
                continue;
            }
            // SAFETY: the worker said that it is done with this half.
            let out = unsafe { self.region.write(stage + half * STAGE_BYTES, STAGE_BYTES) };
            let filled = packer.next(weights, out);
            let header = self.region.header();
            if let Some((offset, bytes)) = filled {
                header.stage_offset[half].store(offset as u64, Ordering::Relaxed);
                header.stage_bytes[half].store(word(bytes), Ordering::Release);
            } else {
                header.weights_end.store(1, Ordering::Release);
                self.packer = None;
            }
        }
    }
}

/// As the kernels read it; zeros for what is no draw.
fn draw_words(want: &Want) -> [u32; DRAW_WORDS] {
    let (Draw { seed, position, factor }, [count, top_p, min_p]) = match *want {
        Want::Drawn(draw) => (draw, [0; 3]),
        Want::Ranked(RankedDraw { draw, count, top_p, min_p }) => (draw, [count, top_p.to_bits(), min_p.to_bits()]),
        Want::Best | Want::Scores => return [0; DRAW_WORDS],
    };
    let ([seed_low, seed_high], [low, high]) = (halves(seed), halves(position));
    [seed_low, seed_high, low, high, factor.to_bits(), count, top_p, min_p]
}

fn word(value: usize) -> u32 {
    u32::try_from(value).expect("rows, positions and stages fit 32 bits")
}

/// How often the worker is looked after while a step runs.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// A worker that comes up may stand still for so long: a driver compiles for its device, a card wakes up.
const START_STILL_MAX: Duration = Duration::from_secs(60);
