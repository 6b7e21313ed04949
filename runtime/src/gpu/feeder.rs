//! The logic of a feeder: brings its device up, tests it, batches sequences continuously, and hands them back where the
//! device fails. No clock, no threads, no I/O of its own: time is an argument, ports and device are traits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::device::{Device, Fault, Want};
use super::health::Health;
use super::known::KnownAnswer;
use super::route::Costs;
use super::status::{State, Status};
use crate::engine::{Event, Sampled, cached_event, choose, next_event};
use crate::forward::Step;
use crate::kv::BlockTables;
use crate::model::Model;
use crate::sampler::Sampler;
use crate::schedule::{NewSequence, Pace, Scheduler, StreamId};

/// From a shard to a feeder.
#[derive(Debug)]
pub enum GpuCommand {
    /// The shard took a credit for it.
    Start(Box<NewSequence>),
    Cancel(StreamId),
    /// The shard takes no more sequences of the generation that the device serves, and wants its own back.
    Close,
}

/// The rings from and to the shards.
pub(super) trait Ports {
    fn receive(&mut self) -> Option<GpuCommand>;
    /// To the shard that the event's stream belongs to.
    fn send(&mut self, event: Event);
    /// Wakes the shards that were sent something.
    fn ring(&mut self);
}

/// Tells the operator; the control thread's log, or a test.
pub(super) trait Journal {
    fn up(&mut self, status: &Status);
    fn fault(&mut self, status: &Status, fault: &Fault, returned: usize, retry_in: Duration);
}

/// What a feeder is sized for.
#[derive(Clone, Copy, Debug)]
pub(super) struct FeederLimits {
    pub shards: usize,
    pub slots: usize,
    /// Sequences beyond the slots.
    pub waiting_max: usize,
    pub rows_max: usize,
    pub context: usize,
    pub itl_target: Duration,
    pub prefix_cache: bool,
}

impl FeederLimits {
    fn tables(&self, blocks: usize) -> BlockTables {
        let tables = BlockTables::new(self.context, self.slots, blocks);
        if self.prefix_cache { tables.with_prefixes() } else { tables }
    }
}

/// When a feeder wants to look again at the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// At once: a step is about to be done.
    None,
    Until(Instant),
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// The generation was closed: the device never comes back.
    Retired,
    Down {
        retry_at: Instant,
    },
    Starting,
    /// Step `index` of the self test is computed.
    Testing {
        index: usize,
        begun: Instant,
    },
    Stepping {
        begun: Instant,
        expected: Duration,
    },
    Idle {
        probe_at: Instant,
    },
}

/// A device and the sequences on it.
pub(super) struct Feeder<D, J> {
    device: D,
    journal: J,
    model: Arc<Model>,
    known: KnownAnswer,
    limits: FeederLimits,
    scheduler: Scheduler,
    tables: BlockTables,
    sampler: Sampler,
    pace: Pace,
    step: Step,
    wants: Vec<Want>,
    health: Health,
    stage: Stage,
    /// Shards that have closed the generation.
    closed: usize,
    status: Arc<Status>,
}

impl<D: Device, J: Journal> Feeder<D, J> {
    /// A feeder whose device is brought up by the first turn.
    #[must_use]
    pub(super) fn new(
        device: D,
        journal: J,
        model: Arc<Model>,
        known: KnownAnswer,
        limits: FeederLimits,
        status: Arc<Status>,
        now: Instant,
    ) -> Self {
        Self {
            device,
            journal,
            sampler: Sampler::new(model.weights.params.vocab),
            model,
            known,
            scheduler: Scheduler::new(limits.slots, limits.waiting_max),
            tables: limits.tables(0),
            pace: Pace::new(limits.itl_target),
            step: Step::default(),
            wants: Vec::with_capacity(limits.slots),
            health: Health::default(),
            stage: Stage::Down { retry_at: now },
            closed: 0,
            status,
            limits,
        }
    }

    #[cfg(test)]
    pub(super) fn device(&self) -> &D {
        &self.device
    }

    #[cfg(test)]
    pub(super) fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// One turn of the loop.
    pub(super) fn turn(&mut self, now: Instant, ports: &mut impl Ports) -> Rest {
        self.receive(ports);
        let rest = match self.advance(now, ports) {
            Ok(rest) => rest,
            Err(fault) => self.fail(&fault, now, ports),
        };
        ports.ring();
        rest
    }

    /// Whether every shard has closed the generation: nothing more will come.
    pub(super) fn is_over(&self) -> bool {
        self.closed == self.limits.shards
    }

    fn is_up(&self) -> bool {
        matches!(self.stage, Stage::Stepping { .. } | Stage::Idle { .. } | Stage::Testing { .. })
    }

    fn receive(&mut self, ports: &mut impl Ports) {
        while let Some(command) = ports.receive() {
            match command {
                GpuCommand::Start(sequence) if self.is_up() => {
                    if let Err(full) = self.scheduler.submit(*sequence) {
                        self.give_back(*full.0, ports);
                    }
                }
                GpuCommand::Start(sequence) => self.give_back(*sequence, ports),
                GpuCommand::Close => {
                    self.closed += 1;
                    self.take_down(ports);
                    self.status.set_state(State::Retired);
                    self.stage = Stage::Retired;
                }
                GpuCommand::Cancel(stream) => {
                    let before = self.scheduler.running() + self.scheduler.waiting();
                    self.scheduler.cancel(stream, &mut self.tables);
                    if self.scheduler.running() + self.scheduler.waiting() < before {
                        self.status.give_credit();
                    }
                }
            }
        }
    }

    fn give_back(&mut self, sequence: NewSequence, ports: &mut impl Ports) {
        self.status.returned.add(1);
        self.status.give_credit();
        ports.send(Event::Returned(Box::new(sequence)));
    }

    fn advance(&mut self, now: Instant, ports: &mut impl Ports) -> Result<Rest, Fault> {
        match self.stage {
            Stage::Retired => Ok(Rest::Until(now + PROBE_EVERY)),
            Stage::Down { retry_at } if now < retry_at => Ok(Rest::Until(retry_at)),
            Stage::Down { .. } => {
                self.status.set_state(State::Starting);
                self.status.starts.add(1);
                self.device.start()?;
                self.stage = Stage::Starting;
                Ok(Rest::Until(now + START_LOOK_EVERY))
            }
            Stage::Starting => {
                let Some(started) = self.device.poll_start()? else { return Ok(Rest::Until(now + START_LOOK_EVERY)) };
                self.status.set_started(&started);
                self.tables = self.limits.tables(started.kv_blocks);
                self.status.set_state(State::Testing);
                Ok(self.begin_test(0, now))
            }
            Stage::Testing { index, begun } => self.look_at_test(index, begun, now, ports),
            Stage::Stepping { begun, expected } => {
                if self.device.poll_step()? {
                    let elapsed = self.device.step_time().unwrap_or(now.saturating_duration_since(begun));
                    self.finish_step(elapsed, ports);
                    return Ok(self.begin_step(now, ports));
                }
                let waited = now.saturating_duration_since(begun);
                if waited > HANG_MIN.max(expected * HANG_FACTOR) {
                    return Err(Fault::Hang(waited));
                }
                let soon = begun + sleep_time(expected);
                Ok(if now < soon { Rest::Until(soon) } else { Rest::None })
            }
            Stage::Idle { probe_at } => {
                if self.scheduler.running() + self.scheduler.waiting() > 0 {
                    return Ok(self.begin_step(now, ports));
                }
                Ok(if now < probe_at { Rest::Until(probe_at) } else { self.begin_test(0, now) })
            }
        }
    }

    /// Slots of the test: the second one asks for the best token only, as most sequences do.
    fn test_slots(&self) -> usize {
        self.limits.slots.min(2)
    }

    fn begin_test(&mut self, index: usize, now: Instant) -> Rest {
        let slots = self.test_slots();
        if index == 0 {
            for slot in 0..slots {
                self.tables.reserve(slot, self.known.positions()).expect("a device holds two short sequences");
            }
        }
        self.known.form(index, 0..slots, &mut self.step);
        self.wants.clear();
        self.wants.extend([Want::Scores, Want::Best].into_iter().take(slots));
        self.device.submit(&self.step, &self.tables, &self.wants);
        self.stage = Stage::Testing { index, begun: now };
        Rest::None
    }

    fn look_at_test(
        &mut self,
        index: usize,
        begun: Instant,
        now: Instant,
        ports: &mut impl Ports,
    ) -> Result<Rest, Fault> {
        let elapsed = now.saturating_duration_since(begun);
        if !self.device.poll_step()? {
            return if elapsed > TEST_STEP_MAX { Err(Fault::Hang(elapsed)) } else { Ok(Rest::None) };
        }
        self.known.check(index, self.device.scores(0)).map_err(Fault::WrongResult)?;
        if self.wants.len() > 1 {
            self.known.check_best(index, self.device.best(1)).map_err(Fault::WrongResult)?;
        }
        self.observe_costs(self.device.step_time().unwrap_or(elapsed));
        if index + 1 < self.known.scores.len() {
            return Ok(self.begin_test(index + 1, now));
        }
        (0..self.test_slots()).for_each(|slot| self.tables.release(slot));
        self.status.tests.add(1);
        if self.status.state() != State::Healthy {
            self.health.up(now);
            self.status.set_state(State::Healthy);
            self.journal.up(&self.status);
        }
        Ok(self.begin_step(now, ports))
    }

    /// Begins the next step, or rests where there is nothing to compute.
    fn begin_step(&mut self, now: Instant, ports: &mut impl Ports) -> Rest {
        let Self { scheduler, tables, step, wants, pace, limits, .. } = self;
        scheduler.admit(tables, |stream| ports.send(Event::Admitted(stream)));
        let budget = pace.prompt_budget(&scheduler.decode_rows(), 0.0, limits.rows_max);
        if !scheduler.form(step, tables, limits.rows_max, budget) {
            self.stage = Stage::Idle { probe_at: now + PROBE_EVERY };
            self.publish();
            return Rest::Until(now + PROBE_EVERY);
        }
        wants.clear();
        for segment in &step.segments {
            let sequence = scheduler.sequence(segment.slot).expect("a segment belongs to a sequence");
            if sequence.computed + segment.rows == sequence.tokens.len() {
                wants.push(if sequence.sampling.takes_best() { Want::Best } else { Want::Scores });
            }
        }
        self.device.submit(step, tables, wants);
        let expected = self.expected();
        self.stage = Stage::Stepping { begun: now, expected };
        self.publish();
        Rest::Until(now + sleep_time(expected))
    }

    /// How long the formed step should take.
    fn expected(&self) -> Duration {
        let seconds = self.pace.estimate_s(&self.scheduler.rows_of(&self.step));
        Duration::try_from_secs_f64(seconds).unwrap_or_default()
    }

    fn finish_step(&mut self, elapsed: Duration, ports: &mut impl Ports) {
        self.observe_costs(elapsed);
        #[expect(clippy::cast_precision_loss, reason = "rows are few")]
        let (rows, sequences) = (self.step.tokens.len() as f64, self.wants.len() as f64);
        self.status.steps.observe_duration(elapsed);
        self.status.rows.observe(rows);
        self.status.sequences.observe(sequences);
        let mut entry = 0;
        for index in 0..self.step.segments.len() {
            let segment = self.step.segments[index];
            // One that was cancelled while the step ran has left its slot.
            let logits = self.step.logits.binary_search(&(segment.first_row + segment.rows - 1)).is_ok();
            entry += usize::from(logits);
            let Some(sequence) = self.scheduler.sequence_mut(segment.slot) else { continue };
            sequence.computed += segment.rows;
            if !logits {
                continue;
            }
            let sampled = match self.wants[entry - 1] {
                Want::Best => Some(Sampled { token: self.device.best(entry - 1), logprobs: None }),
                Want::Scores => choose(&mut self.sampler, sequence, 0, self.device.scores(entry - 1)),
            };
            if let Some(event) = cached_event(sequence) {
                ports.send(event);
            }
            let (event, ended) = next_event(&self.model, sequence, sampled);
            self.status.tokens.add(1);
            if ended {
                self.scheduler.finish(segment.slot, &mut self.tables);
                self.status.give_credit();
            }
            ports.send(event);
        }
    }

    fn observe_costs(&mut self, elapsed: Duration) {
        let rows = self.scheduler.rows_of(&self.step);
        self.pace.observe(&rows, elapsed);
        self.status.prompt_rows.add(rows.prompt_rows as u64);
        let (decode_s, decode_rows) = self.pace.decode_costs();
        self.status.set_costs(Costs { decode_s, decode_rows, prefill_row_s: self.pace.prefill_row_s() });
    }

    fn publish(&self) {
        let used = self.tables.blocks() - self.tables.blocks_free();
        self.status.kv_blocks_used.set(used as u64);
    }

    /// Takes the device down; its sequences go back as they stand, to go on elsewhere.
    fn fail(&mut self, fault: &Fault, now: Instant, ports: &mut impl Ports) -> Rest {
        let returned = self.take_down(ports);
        let retry_at = self.health.fault(now);
        self.status.count_fault(fault.kind());
        self.status.set_state(if self.health.is_tripped() { State::Tripped } else { State::Down });
        self.stage = Stage::Down { retry_at };
        self.journal.fault(&self.status, fault, returned, retry_at.saturating_duration_since(now));
        Rest::Until(retry_at)
    }

    /// Stops the device and gives back all its sequences; how many.
    fn take_down(&mut self, ports: &mut impl Ports) -> usize {
        self.device.stop();
        let sequences = self.scheduler.take_all(&mut self.tables);
        let returned = sequences.len();
        sequences.into_iter().for_each(|sequence| self.give_back(sequence, ports));
        self.tables = self.limits.tables(0);
        self.publish();
        returned
    }
}

/// How long to sleep through a step: it may well be shorter than expected.
fn sleep_time(expected: Duration) -> Duration {
    (expected * 3 / 4).saturating_sub(LOOK_BEFORE)
}

/// A device that comes up is looked at so often; each look moves weights.
const START_LOOK_EVERY: Duration = Duration::from_millis(1);
/// A step of the self test that takes longer never ends: the first ones of a card may be slow.
const TEST_STEP_MAX: Duration = Duration::from_secs(30);
/// A step that takes longer than this and than so many times what was expected never ends.
const HANG_MIN: Duration = Duration::from_secs(2);
const HANG_FACTOR: u32 = 20;
/// A feeder that sleeps through a step wakes so long before its expected end and then keeps looking.
const LOOK_BEFORE: Duration = Duration::from_micros(150);
/// An idle device is tested so often.
const PROBE_EVERY: Duration = Duration::from_secs(15);
