//! The logic of a feeder: brings its device up, tests it, batches sequences continuously, and hands them back where the
//! device fails. No clock, no threads, no I/O of its own: time is an argument, ports and device are traits.

mod flight;
mod sets;
mod trial;

use std::any::Any;
use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tuning::CpuId;

use super::abi;
use super::assign::Assignment;
use super::device::{Device, Fault, STEPS_MAX, Want};
use super::health::Health;
use super::route::Costs;
use super::sampling::Samplers;
use super::status::{PromptAttention, State, Status};
use crate::engine::{Event, GenerationId, Sampled, cached_event, next_event};
use crate::forward::Step;
use crate::guide::Beside;
use crate::kv::{BlockTables, blocks_for};
use crate::schedule::{Company, LONGER_ON_GPUS, NewSequence, Pace, Scheduler, StepRows, StreamId};
use flight::{Flight, has_logits, waits_for, want};
use sets::sets_time;

/// From a shard to a feeder.
#[derive(Debug)]
pub enum GpuCommand {
    /// Of that generation; the shard took a credit for it.
    Start(GenerationId, Box<NewSequence>),
    Cancel(StreamId),
    /// The shard takes no more sequences of a generation, and wants its own back.
    Close(GenerationId),
}

/// The rings from and to the shards.
pub(super) trait Ports {
    fn receive(&mut self) -> Option<GpuCommand>;
    /// What to serve from now on, if that has changed.
    fn assignment(&mut self) -> Option<Box<Assignment>>;
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
#[derive(Clone, Debug)]
pub(super) struct FeederLimits {
    pub slots: usize,
    /// Sequences beyond the slots.
    pub waiting_max: usize,
    pub rows_max: usize,
    pub itl_target: Duration,
    pub prefix_cache: bool,
    pub prompt_attention: PromptAttention,
    /// Threads that choose tokens from scores, this one included.
    pub samplers: usize,
    /// Where the others go, if this one has a cpu of its own.
    pub sampler_cpus: Option<Arc<[CpuId]>>,
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
    /// There is nothing to serve.
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
    /// Step `index` of those that show what steps cost is computed.
    Trying {
        index: usize,
        begun: Instant,
    },
    /// At least one step is under way.
    Stepping,
    Idle {
        probe_at: Instant,
    },
}

/// A device and the sequences on it.
pub(super) struct Feeder<D, J> {
    device: D,
    journal: J,
    served: Option<Box<Assignment>>,
    limits: FeederLimits,
    scheduler: Scheduler,
    tables: BlockTables,
    samplers: Samplers,
    /// Where slow guides are while the steps go on.
    beside: Beside,
    pace: Pace,
    /// Steps that the device has, the oldest first, and places for more.
    flights: VecDeque<Flight>,
    spare: Vec<Flight>,
    /// When the device was done with the last step.
    done_at: Instant,
    /// When those came that wait for a slot.
    arrivals: Vec<(StreamId, Instant)>,
    health: Health,
    stage: Stage,
    status: Arc<Status>,
}

impl<D: Device, J: Journal> Feeder<D, J> {
    /// A feeder with nothing to serve yet.
    #[must_use]
    pub(super) fn new(
        (device, journal): (D, J),
        limits: FeederLimits,
        status: Arc<Status>,
        beside: Beside,
        now: Instant,
    ) -> Self {
        Self {
            device,
            journal,
            served: None,
            samplers: Samplers::new(0, limits.slots, 1, None),
            scheduler: new_scheduler(&limits),
            tables: BlockTables::new(0, limits.slots, 0),
            beside,
            pace: Pace::new(limits.itl_target).with_longer(LONGER_ON_GPUS),
            flights: VecDeque::with_capacity(STEPS_MAX),
            spare: (0..STEPS_MAX).map(|_| Flight::new(limits.slots, now)).collect(),
            done_at: now,
            arrivals: Vec::with_capacity(limits.slots + limits.waiting_max),
            health: Health::default(),
            stage: Stage::Retired,
            status,
            limits,
        }
    }

    /// Whether guides have come back that no turn has looked for.
    pub(super) fn has_news(&self) -> bool {
        self.beside.has_news()
    }

    #[cfg(test)]
    pub(super) fn device(&self) -> &D {
        &self.device
    }

    #[cfg(test)]
    pub(super) fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// One turn of the loop. What breaks down in it is a fault like others: nothing of the device is trusted any more, and
    /// its sequences go on elsewhere.
    pub(super) fn turn(&mut self, now: Instant, ports: &mut impl Ports) -> Rest {
        let turned = catch_unwind(AssertUnwindSafe(|| {
            if let Some(assignment) = ports.assignment() {
                self.assign(assignment, now, ports);
            }
            self.take_guides_back();
            self.receive(now, ports);
            self.advance(now, ports)
        }));
        let rest = match turned {
            Ok(Ok(rest)) => rest,
            Ok(Err(fault)) => self.fail(&fault, now, ports),
            Err(panic) => {
                self.samplers = self.new_samplers();
                self.fail(&Fault::Panicked(words_of(&*panic)), now, ports)
            }
        };
        ports.ring();
        rest
    }

    /// Serves another generation: the device is brought up anew, its sequences go on elsewhere.
    fn assign(&mut self, assignment: Box<Assignment>, now: Instant, ports: &mut impl Ports) {
        self.take_down(ports);
        self.device.assign(Some(&assignment));
        self.status.set_generation(assignment.generation);
        self.status.set_costs(Costs::default());
        self.status.set_state(State::Starting);
        self.served = Some(assignment);
        self.samplers = self.new_samplers();
        self.pace = Pace::new(self.limits.itl_target).with_longer(LONGER_ON_GPUS);
        self.health = Health::default();
        self.stage = Stage::Down { retry_at: now };
    }

    /// Serves nothing, and holds nothing of what it served.
    fn retire(&mut self, ports: &mut impl Ports) {
        self.take_down(ports);
        self.device.assign(None);
        self.served = None;
        self.status.set_state(State::Retired);
        self.stage = Stage::Retired;
    }

    fn new_samplers(&self) -> Samplers {
        let vocab = self.served.as_ref().map_or(0, |served| served.model.weights.params.vocab);
        Samplers::new(vocab, self.limits.slots, self.limits.samplers, self.limits.sampler_cpus.clone())
    }

    fn serves(&self, generation: GenerationId) -> bool {
        self.served.as_ref().is_some_and(|served| served.generation == generation)
    }

    /// Among how many best the device draws.
    fn ranked_max(&self) -> usize {
        self.served.as_ref().map_or(0, |served| abi::ranked_max(served.model.weights.params.vocab))
    }

    fn new_tables(&self, blocks: usize) -> BlockTables {
        let context = self.served.as_ref().map_or(0, |served| served.model.weights.context);
        let tables = BlockTables::new(context, self.limits.slots + TEST_SLOTS, blocks);
        if self.limits.prefix_cache { tables.with_prefixes() } else { tables }
    }

    fn is_up(&self) -> bool {
        matches!(self.stage, Stage::Stepping | Stage::Idle { .. } | Stage::Testing { .. } | Stage::Trying { .. })
    }

    fn receive(&mut self, now: Instant, ports: &mut impl Ports) {
        while let Some(command) = ports.receive() {
            match command {
                GpuCommand::Start(generation, sequence) if self.is_up() && self.serves(generation) => {
                    let stream = sequence.stream;
                    sequence.follow_guide(&self.beside);
                    match self.scheduler.submit(*sequence) {
                        Ok(()) => self.arrivals.push((stream, now)),
                        Err(full) => self.give_back(*full.0, ports),
                    }
                }
                GpuCommand::Start(_, sequence) => self.give_back(*sequence, ports),
                GpuCommand::Close(generation) if self.serves(generation) => self.retire(ports),
                GpuCommand::Close(_) => {}
                GpuCommand::Cancel(stream) => {
                    let before = self.scheduler.running() + self.scheduler.waiting();
                    self.scheduler.cancel(stream, &mut self.tables);
                    self.arrivals.retain(|(of, _)| *of != stream);
                    if self.scheduler.running() + self.scheduler.waiting() < before {
                        self.status.give_credit();
                        // Nothing may follow before the next test.
                        self.publish();
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
                self.tables = self.new_tables(started.kv_blocks);
                self.status.set_state(State::Testing);
                Ok(self.begin_test(0, now))
            }
            Stage::Testing { index, begun } => self.look_at_test(index, begun, now, ports),
            Stage::Trying { index, begun } => self.look_at_trial(index, begun, now, ports),
            Stage::Stepping => {
                if self.device.poll_step()? {
                    self.finish_step(now, ports);
                    return Ok(self.begin_steps(now, ports));
                }
                if self.compute_sets() {
                    return Ok(Rest::None);
                }
                let oldest = self.flights.front_mut().expect("steps are under way in this stage");
                oldest.is_unseen = false;
                let (begun, expected) = (oldest.begun.max(self.done_at), oldest.expected);
                let waited = now.saturating_duration_since(begun);
                if waited > HANG_MIN.max(expected * HANG_FACTOR) {
                    return Err(Fault::Hang(waited));
                }
                let soon = begun + sleep_time(expected);
                Ok(if now < soon { Rest::Until(soon.min(now + SLEEP_MAX)) } else { Rest::None })
            }
            Stage::Idle { probe_at } => {
                if self.scheduler.running() + self.scheduler.waiting() > 0 {
                    let rest = self.begin_steps(now, ports);
                    if !matches!(self.stage, Stage::Idle { .. }) {
                        return Ok(rest);
                    }
                    // All wait for their guides.
                    self.stage = Stage::Idle { probe_at };
                }
                Ok(if now < probe_at { Rest::Until(probe_at) } else { self.begin_probe(now) })
            }
        }
    }

    /// The self test once more, where it has room beside sequences that wait for their guides.
    fn begin_probe(&mut self, now: Instant) -> Rest {
        let known = &self.served.as_ref().expect("a device that is up has a model").known;
        if self.tables.blocks_free() >= self.test_slots().len() * blocks_for(known.positions()) {
            return self.begin_test(0, now);
        }
        self.stage = Stage::Idle { probe_at: now + PROBE_EVERY };
        Rest::Until(now + PROBE_EVERY)
    }

    /// Slots of the self test, which no sequence gets.
    fn test_slots(&self) -> Range<usize> {
        let first = self.limits.slots;
        first..first + first.min(TEST_SLOTS)
    }

    fn begin_test(&mut self, index: usize, now: Instant) -> Rest {
        let slots = self.test_slots();
        let known = &self.served.as_ref().expect("a device under test has a model").known;
        if index == 0 {
            for slot in slots.clone() {
                self.tables.reserve(slot, known.positions()).expect("a device holds two short sequences");
            }
        }
        let mut flight = self.spare.pop().expect("nothing is under way before a test");
        known.form(index, slots, &mut flight.step, &mut flight.wants);
        let by_tensor = known.is_near(index);
        flight.tensor_rows.clear();
        flight.tensor_rows.extend(flight.step.segments.iter().map(|segment| if by_tensor { segment.rows } else { 0 }));
        self.device.submit(&flight.step, &self.tables, &flight.tensor_rows, &flight.wants);
        self.flights.push_back(flight);
        self.stage = Stage::Testing { index, begun: now };
        Rest::None
    }

    /// The step of a test or trial that began at `begun`, once it is computed.
    fn landed(&mut self, begun: Instant, now: Instant) -> Result<Option<Flight>, Fault> {
        if self.device.poll_step()? {
            return Ok(self.flights.pop_front());
        }
        let elapsed = now.saturating_duration_since(begun);
        if elapsed > TEST_STEP_MAX { Err(Fault::Hang(elapsed)) } else { Ok(None) }
    }

    fn look_at_test(
        &mut self,
        index: usize,
        begun: Instant,
        now: Instant,
        ports: &mut impl Ports,
    ) -> Result<Rest, Fault> {
        let Some(flight) = self.landed(begun, now)? else { return Ok(Rest::None) };
        let known = &self.served.as_ref().expect("a device under test has a model").known;
        for (entry, want) in flight.wants.iter().enumerate() {
            match want {
                Want::Scores => known.check(index, self.device.scores()),
                Want::Best | Want::Drawn(_) | Want::Ranked(_) => {
                    known.check_token(index, want, self.device.token(entry))
                }
            }
            .map_err(Fault::WrongResult)?;
        }
        let steps = known.scores.len() + usize::from(self.limits.prompt_attention == PromptAttention::Tensor);
        let is_last = index + 1 == steps;
        self.device.advance();
        self.spare.push(flight);
        if !is_last {
            return Ok(self.begin_test(index + 1, now));
        }
        self.test_slots().for_each(|slot| self.tables.release(slot));
        self.status.tests.add(1);
        if self.status.state() == State::Healthy { Ok(self.begin_steps(now, ports)) } else { Ok(self.try_step(0, now)) }
    }

    /// Gives the device as many steps as it takes at a time, or rests where there is nothing to compute.
    fn begin_steps(&mut self, now: Instant, ports: &mut impl Ports) -> Rest {
        while self.flights.len() < STEPS_MAX && self.begin_step(now, ports) {}
        self.publish();
        let Some(oldest) = self.flights.front() else {
            self.stage = Stage::Idle { probe_at: now + PROBE_EVERY };
            return Rest::Until(now + PROBE_EVERY);
        };
        let soon = oldest.begun.max(self.done_at) + sleep_time(oldest.expected);
        self.stage = Stage::Stepping;
        Rest::Until(soon.min(now + SLEEP_MAX))
    }

    /// Begins the next step, which may follow one whose tokens are not known yet; `false` where there is nothing to compute
    /// before they are.
    fn begin_step(&mut self, now: Instant, ports: &mut impl Ports) -> bool {
        let mut next = self.spare.pop().expect("fewer steps than places are under way");
        next.clear();
        // Whose token is chosen here has to be waited for: meanwhile the others go on by themselves, and there is room for the
        // scores of one step.
        if !self.flights.back().is_some_and(|flight| flight.wants.contains(&Want::Scores)) {
            self.form_step(&mut next, now, ports);
        }
        let ranked_max = self.ranked_max();
        let Self { scheduler, tables, pace, flights, .. } = self;
        if let Some(before) = flights.back() {
            before.extend(scheduler, tables, &mut next, ranked_max);
        }
        if next.step.tokens.is_empty() {
            self.spare.push(next);
            return false;
        }
        self.device.submit(&next.step, tables, &next.tensor_rows, &next.wants);
        next.begun = now;
        (next.sets_due, next.is_unseen) = (next.wants.contains(&Want::Scores), false);
        next.expected = Duration::try_from_secs_f64(pace.estimate_s(&rows(&next.step))).unwrap_or_default();
        flights.push_back(next);
        true
    }

    /// Takes in who waits, and gives `next` the rows whose tokens are known.
    fn form_step(&mut self, next: &mut Flight, now: Instant, ports: &mut impl Ports) {
        let ranked_max = self.ranked_max();
        let Self { scheduler, tables, pace, limits, arrivals, status, samplers, beside, .. } = self;
        scheduler.admit(tables, |stream| {
            if let Some(at) = arrivals.iter().position(|(of, _)| *of == stream) {
                status.queue.observe_duration(now.saturating_duration_since(arrivals.swap_remove(at).1));
            }
            ports.send(Event::Admitted(stream));
        });
        let is_felt = scheduler.has_quick(beside);
        scheduler.step_aside(beside, is_felt);
        let mut demand = scheduler.demand();
        let ahead = self.flights.back().map_or(0, |before| before.continuing(scheduler, &mut demand.decodes));
        let budget = pace.prompt_budget(&demand, 0.0, limits.rows_max);
        let company = if ahead > 0 { Company::Ahead } else { Company::Nobody };
        scheduler.limit_sets(sets_time(pace.estimate_s(&demand.decodes), samplers.threads()), company);
        scheduler.form(&mut next.step, tables, limits.rows_max - ahead, budget);
        let by_tensor = limits.prompt_attention == PromptAttention::Tensor;
        for segment in &next.step.segments {
            let sequence = scheduler.sequence_mut(segment.slot).expect("a segment belongs to a sequence");
            next.streams.push(sequence.stream);
            // What follows the prompt has the bits that it was decoded with, also where it is computed once more.
            let of_prompt = sequence.prompt_len.saturating_sub(segment.first_position).min(segment.rows);
            next.tensor_rows.push(if by_tensor { of_prompt } else { 0 });
            sequence.computed += segment.rows;
            if sequence.computed == sequence.tokens.len() {
                next.wants.push(want(sequence, segment.first_position + segment.rows, ranked_max));
            }
        }
    }

    /// Uses the results of the oldest step, which is done.
    fn finish_step(&mut self, now: Instant, ports: &mut impl Ports) {
        let flight = self.flights.pop_front().expect("a step is done");
        let elapsed = now.saturating_duration_since(flight.begun.max(self.done_at));
        self.done_at = now;
        self.observe_costs(&flight.step, (!flight.is_unseen).then_some(elapsed));
        self.status.tensor_rows.add(flight.tensor_rows.iter().sum::<usize>() as u64);
        #[expect(clippy::cast_precision_loss, reason = "rows are few")]
        let (rows, sequences) = (flight.step.tokens.len() as f64, flight.wants.len() as f64);
        if !flight.is_unseen {
            self.status.steps.observe_duration(elapsed);
        }
        self.status.rows.observe(rows);
        self.status.sequences.observe(sequences);
        let Self { samplers, scheduler, device, .. } = self;
        samplers.clear();
        let with_logits = flight.step.segments.iter().zip(&flight.streams).filter(|(s, _)| has_logits(&flight.step, s));
        for ((segment, stream), _) in with_logits.zip(&flight.wants).filter(|(_, want)| **want == Want::Scores) {
            let still = waits_for(scheduler.sequence(segment.slot), segment, *stream);
            samplers.add(still.then_some(segment.slot));
        }
        if !samplers.is_empty() {
            samplers.choose(scheduler, device.scores());
        }
        let model = &self.served.as_ref().expect("steps are those of a model").model;
        let (mut entry, mut scored) = (0, 0);
        for (segment, stream) in flight.step.segments.iter().zip(&flight.streams) {
            if !has_logits(&flight.step, segment) {
                continue;
            }
            let sampled = if flight.wants[entry] == Want::Scores {
                scored += 1;
                self.samplers.take(scored - 1)
            } else {
                self.device.token(entry).map(|token| Sampled { token, logprobs: None })
            };
            entry += 1;
            // One that ended, was cancelled or pushed out since the step began has left its slot.
            if !waits_for(self.scheduler.sequence(segment.slot), segment, *stream) {
                continue;
            }
            let sequence = self.scheduler.sequence_mut(segment.slot).expect("it waits");
            // It was chosen before the token before it put a guide to work: it is computed again, and chosen here.
            if sequence.waits_for_guide() || sequence.is_guided() && flight.wants[entry - 1] != Want::Scores {
                sequence.computed = sequence.tokens.len() - 1;
                continue;
            }
            if let Some(event) = cached_event(sequence) {
                ports.send(event);
            }
            // What breaks down from here on finds the sequence with a token that its client has, too.
            let (event, ended) = next_event(model, sequence, sampled, now);
            ports.send(event);
            self.status.tokens.add(1);
            if ended {
                self.scheduler.finish(segment.slot, &mut self.tables);
                self.status.give_credit();
            }
        }
        self.device.advance();
        self.spare.push(flight);
    }

    /// Counts a step, and learns from what it took if that is known.
    fn observe_costs(&mut self, step: &Step, elapsed: Option<Duration>) {
        let rows = rows(step);
        self.status.prompt_rows.add(rows.prompt_rows as u64);
        let Some(elapsed) = elapsed else { return };
        self.pace.observe(&rows, elapsed);
        let (decode_s, decode_rows) = self.pace.decode_costs();
        self.status.set_costs(Costs { decode_s, decode_rows, prefill_row_s: self.pace.prefill_row_s() });
    }

    fn publish(&mut self) {
        let used = self.tables.blocks() - self.tables.blocks_free();
        self.status.kv_blocks_used.set(used as u64);
        self.status.beside.set(self.scheduler.beside() as u64);
        self.status.guides_beside.add(self.scheduler.take_counts().guides_beside);
    }

    /// Takes the device down; its sequences go back as they stand, to go on elsewhere.
    fn fail(&mut self, fault: &Fault, now: Instant, ports: &mut impl Ports) -> Rest {
        let returned = self.take_down(ports);
        let retry_at = self.health.fault(now);
        self.status.count_fault(fault.kind());
        self.status.set_state(if self.health.is_tripped() { State::Tripped } else { State::Down });
        self.stage = if self.served.is_some() { Stage::Down { retry_at } } else { Stage::Retired };
        self.journal.fault(&self.status, fault, returned, retry_at.saturating_duration_since(now));
        Rest::Until(retry_at)
    }

    /// Stops the device and gives back all its sequences; how many.
    fn take_down(&mut self, ports: &mut impl Ports) -> usize {
        self.device.stop();
        self.spare.extend(self.flights.drain(..));
        // One may be missing after a panic.
        self.spare.resize_with(STEPS_MAX, || Flight::new(self.limits.slots, self.done_at));
        self.arrivals.clear();
        let sequences = self.scheduler.take_all(&mut self.tables);
        let returned = sequences.len();
        sequences.into_iter().for_each(|sequence| self.give_back(sequence, ports));
        self.tables = self.new_tables(0);
        self.publish();
        returned
    }
}

/// On tensor cores, keys and values of a prompt are not the bits that decoding gives: nobody's prompt is another's answer.
fn new_scheduler(limits: &FeederLimits) -> Scheduler {
    let scheduler = Scheduler::new(limits.slots, limits.waiting_max);
    match limits.prompt_attention {
        PromptAttention::Exact => scheduler,
        PromptAttention::Tensor => scheduler.sharing_prompts_only(),
    }
}

/// What a panic says.
fn words_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

/// How long to sleep through a step: it may well be shorter than expected.
fn sleep_time(expected: Duration) -> Duration {
    (expected * 3 / 4).saturating_sub(LOOK_BEFORE)
}

/// What a step has: single rows count as rows that decode.
fn rows(step: &Step) -> StepRows {
    let mut rows = StepRows::default();
    for segment in &step.segments {
        match segment.rows {
            1 => rows.add_decode(segment.first_position, 1),
            count => rows.add_prompt(segment.first_position, count),
        }
    }
    rows
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
/// It looks so often all the same: a step that is done sooner than expected is followed by the one that waits behind it, and
/// the device has nothing to do from the end of that one on.
const SLEEP_MAX: Duration = Duration::from_micros(200);
/// Sequences of the self test.
const TEST_SLOTS: usize = 2;
/// An idle device is tested so often.
const PROBE_EVERY: Duration = Duration::from_secs(15);
