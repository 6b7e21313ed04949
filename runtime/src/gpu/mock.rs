//! A device that does what a test tells it, and a feeder on it under a clock of the test's own.

mod guides;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kernels::attention::KvType;

use super::assign::Assignment;
use super::device::{Device, Fault, STEPS_MAX, Started, Want, entry_of};
use super::feeder::{Feeder, FeederLimits, GpuCommand, Journal, Ports, Rest};
use super::known::{KnownAnswer, chosen};
use super::shape::Shape;
use super::status::{Identity, PromptAttention, State, Status};
use crate::engine::{Event, Finish, GenerationId};
use crate::forward::Step;
use crate::guide::Beside;
use crate::kv::BlockTables;
use crate::mailbox::Doorbell;
use crate::model::{LoadOptions, Model, Source};
use crate::sampler::SamplingParams;
use crate::schedule::{NewSequence, StreamId};

/// What the device does at its next chance.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Well,
    Fails,
    Hangs,
    Lies,
    Panics,
    /// Has no scores but minus infinity.
    Mute,
    /// Is done with each step at the second look.
    Takes,
    /// Takes so long for each, by the clock on the wall.
    Lasts(Duration),
}

/// Every sequence of it continues with its last token plus one.
struct Mock {
    mood: Mood,
    starts: usize,
    /// Scores of the entries of the steps under way, the oldest first, and whether each is wanted.
    under_way: VecDeque<Vec<(Vec<f32>, Want)>>,
    flat: Vec<f32>,
    known: Vec<Vec<f32>>,
    testing: usize,
    /// KV blocks.
    blocks: usize,
    /// Whether the oldest step was looked at.
    is_seen: bool,
    /// When that began.
    begun: Instant,
    /// Rows of each step, and how many of their tokens were not known yet.
    steps: Vec<(usize, usize)>,
}

impl Device for Mock {
    fn assign(&mut self, assignment: Option<&Assignment>) {
        self.known = assignment.map(|assignment| assignment.known.scores.clone()).unwrap_or_default();
    }

    fn start(&mut self) -> Result<(), Fault> {
        self.starts += 1;
        self.testing = 0;
        self.under_way.clear();
        Ok(())
    }

    fn poll_start(&mut self) -> Result<Option<Started>, Fault> {
        Ok(Some(Started { name: "mock".into(), kv_blocks: self.blocks, memory_bytes: 0 }))
    }

    fn submit(&mut self, step: &Step, _: &BlockTables, tensor_rows: &[usize], wants: &[Want]) {
        assert_eq!(step.segments.len(), tensor_rows.len());
        assert!(step.logits.len() == wants.len() && self.under_way.len() < STEPS_MAX);
        let token = |row: usize| {
            let token = step.tokens[row];
            let before = |entry: usize| &self.under_way.back().expect("a step before")[entry];
            entry_of(token).map(before).map_or(token, |(scores, want)| chosen(want, scores).unwrap_or(0))
        };
        let mut scores: Vec<Vec<f32>> = step.logits.iter().map(|row| self.answer(token(*row))).collect();
        // A self test, also a later one: no sequence has these slots.
        if step.segments.iter().any(|segment| segment.slot >= SLOTS) {
            let mut known = self.known[self.testing % self.known.len()].clone();
            known[0] += f32::from(u8::from(self.mood == Mood::Lies));
            scores = vec![known; wants.len()];
            self.testing += 1;
        }
        let unknown = step.tokens.iter().filter(|token| entry_of(**token).is_some()).count();
        self.steps.push((step.tokens.len(), unknown));
        if self.under_way.is_empty() {
            self.begun = Instant::now();
        }
        self.under_way.push_back(scores.into_iter().zip(wants.iter().copied()).collect());
    }

    fn poll_step(&mut self) -> Result<bool, Fault> {
        match self.mood {
            Mood::Fails => Err(Fault::Driver { code: 700, text: "told to fail".into() }),
            Mood::Hangs => Ok(false),
            Mood::Panics => panic!("told to"),
            Mood::Well | Mood::Lies | Mood::Mute => Ok(true),
            Mood::Lasts(time) => Ok(self.begun.elapsed() >= time),
            Mood::Takes => Ok(std::mem::replace(&mut self.is_seen, true)),
        }
    }

    fn token(&self, i: usize) -> Option<u32> {
        let (scores, want) = &self.under_way[0][i];
        chosen(want, scores)
    }

    fn scores(&mut self) -> &mut [f32] {
        let wanted = self.under_way[0].iter().filter(|(_, want)| *want == Want::Scores);
        self.flat = wanted.flat_map(|(scores, _)| scores.iter().copied()).collect();
        &mut self.flat
    }

    fn advance(&mut self) {
        self.under_way.pop_front();
        (self.is_seen, self.begun) = (false, Instant::now());
    }

    fn stop(&mut self) {}
}

impl Mock {
    fn answer(&self, token: u32) -> Vec<f32> {
        if self.mood == Mood::Mute {
            return vec![f32::NEG_INFINITY; self.known[0].len()];
        }
        let mut scores = vec![0.0; self.known[0].len()];
        let next = (token as usize + 1) % scores.len();
        scores[next] = 1.0;
        scores
    }
}

/// Commands to come and events that came.
#[derive(Default)]
struct Queues {
    commands: Vec<GpuCommand>,
    assignment: Option<Box<Assignment>>,
    events: Vec<Event>,
    /// Whose sequences are counted at each event, and how many they were.
    status: Option<Arc<Status>>,
    in_flight: Vec<usize>,
}

impl Ports for Queues {
    fn receive(&mut self) -> Option<GpuCommand> {
        (!self.commands.is_empty()).then(|| self.commands.remove(0))
    }

    fn assignment(&mut self) -> Option<Box<Assignment>> {
        self.assignment.take()
    }

    fn send(&mut self, event: Event) {
        self.in_flight.extend(self.status.as_ref().map(|status| status.in_flight()));
        self.events.push(event);
    }

    fn ring(&mut self) {}
}

struct Silent;

impl Journal for Silent {
    fn up(&mut self, _: &Status) {}
    fn fault(&mut self, _: &Status, _: &Fault, _: usize, _: Duration) {}
}

struct Scene {
    feeder: Feeder<Mock, Silent>,
    queues: Queues,
    status: Arc<Status>,
    now: Instant,
    assignment: Assignment,
    number: usize,
}

impl Scene {
    fn new() -> Self {
        let options = LoadOptions {
            threads: 1,
            node: None,
            context_max: 256,
            head_screen: crate::model::HeadScreen::WhereItPays,
        };
        let model = Model::load(&Source::embedded(), "tiny".into(), options, &|_, _| {}).unwrap();
        let known = KnownAnswer::compute(&model, KvType::F16, kernels::Isa::detect()).unwrap();
        let device = Mock {
            mood: Mood::Well,
            starts: 0,
            under_way: VecDeque::new(),
            flat: Vec::new(),
            known: Vec::new(),
            testing: 0,
            blocks: 64,
            is_seen: false,
            begun: Instant::now(),
            steps: Vec::new(),
        };
        let limits = FeederLimits {
            slots: SLOTS,
            waiting_max: 4,
            rows_max: 64,
            itl_target: Duration::from_millis(50),
            prompt_attention: PromptAttention::Exact,
            prefix_cache: true,
            samplers: 2,
            sampler_cpus: None,
        };
        let status = Arc::new(Status::new(Identity::default(), 4, 0));
        let now = Instant::now();
        let shape = Shape::of(&model.weights, KvType::F16, limits.slots, limits.rows_max).unwrap();
        let bell = Arc::new(Doorbell::new().unwrap());
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        // Of its own, so that a fault which strikes the threads of one strikes no other's.
        let number = BESIDE + COUNT.fetch_add(1, Ordering::Relaxed);
        let beside = Beside::start_for_gpu(number, 2, &bell).unwrap();
        let feeder = Feeder::new((device, Silent), limits, Arc::clone(&status), beside, now);
        let assignment = Assignment { generation: GenerationId(0), model: Arc::new(model), shape, known };
        let queues = Queues { assignment: Some(Box::new(assignment.clone())), ..Queues::default() };
        Self { feeder, queues, status, now, assignment, number }
    }

    /// Turns until the feeder rests for longer than steps take.
    fn settle(&mut self) {
        for _ in 0..200 {
            if let Rest::Until(until) = self.feeder.turn(self.now, &mut self.queues)
                && until > self.now + Duration::from_millis(100)
            {
                return;
            }
            self.now += Duration::from_millis(2);
        }
    }

    fn start(&mut self, id: u64, prompt: &[u32], tokens_max: usize) {
        self.start_with(id, prompt, tokens_max, greedy());
    }

    fn start_with(&mut self, id: u64, prompt: &[u32], tokens_max: usize, sampling: SamplingParams) {
        let sequence = NewSequence::new(StreamId(id), prompt.to_vec(), tokens_max, sampling, self.now);
        self.submit(NewSequence { stop_at_end: false, ..sequence });
    }

    fn submit(&mut self, sequence: NewSequence) {
        assert!(self.status.take_credit());
        self.queues.commands.push(GpuCommand::Start(self.assignment.generation, Box::new(sequence)));
    }

    fn tokens(&self, id: u64) -> Vec<u32> {
        let of = |event: &Event| match event {
            Event::Token { stream, sampled, .. } if stream.0 == id => Some(sampled.token),
            _ => None,
        };
        self.queues.events.iter().filter_map(of).collect()
    }

    fn returned(&self) -> Vec<(u64, &[u32], usize)> {
        let sequences = self.queues.events.iter().filter_map(|event| match event {
            Event::Returned(sequence) => Some(sequence.as_ref()),
            _ => None,
        });
        sequences.map(|sequence| (sequence.stream.0, sequence.tokens.as_slice(), sequence.generated)).collect()
    }
}

#[test]
fn sequences_are_batched_after_the_self_test_and_credits_come_back() {
    let mut scene = Scene::new();
    scene.settle();
    assert_eq!((scene.status.state(), scene.status.tests.get()), (State::Healthy, 1));
    scene.start(1, &[10, 20, 30], 3);
    scene.start(2, &[100], 4);
    scene.settle();
    assert_eq!((scene.tokens(1), scene.tokens(2)), (vec![31, 32, 33], vec![101, 102, 103, 104]));
    assert_eq!((scene.status.in_flight(), scene.returned().len()), (0, 0));
    let steps = &scene.feeder.device().steps[TEST_STEPS..];
    assert_eq!(steps, [(4, 0), (2, 2), (2, 2), (1, 1)], "prompts and single rows share steps, which follow unawaited");
}

#[test]
fn others_go_ahead_of_a_stream_whose_tokens_are_chosen_here_and_it_is_in_every_second_step() {
    let mut scene = Scene::new();
    scene.settle();
    scene.start(1, &[10], 4);
    scene.start_with(2, &[50], 3, SamplingParams { top_p: 0.5, temperature: 1e-3, ..SamplingParams::default() });
    scene.settle();
    assert_eq!((scene.tokens(1), scene.tokens(2)), (vec![11, 12, 13, 14], vec![51, 52, 53]));
    let steps = &scene.feeder.device().steps[TEST_STEPS..];
    assert_eq!(steps, [(2, 0), (1, 1), (2, 1), (1, 1), (1, 0)]);
}

#[test]
fn draws_among_the_best_few_go_ahead_like_others_and_those_among_too_many_do_not() {
    for (count, expected) in [(50, &[(2, 0), (2, 2), (2, 2)][..]), (300, &[(2, 0), (1, 1), (2, 1), (1, 0)])] {
        let mut scene = Scene::new();
        scene.settle();
        let cold = SamplingParams { top_k: count, top_p: 0.9, temperature: 1e-3, ..SamplingParams::default() };
        scene.start(1, &[10], 3);
        scene.start_with(2, &[50], 3, cold);
        scene.settle();
        assert_eq!((scene.tokens(1), scene.tokens(2)), (vec![11, 12, 13], vec![51, 52, 53]));
        let steps = &scene.feeder.device().steps[TEST_STEPS..];
        assert_eq!(steps, expected, "{count}");
    }
}

#[test]
fn a_stream_that_ends_or_leaves_while_its_next_step_is_under_way_is_forgotten_at_once() {
    let mut scene = Scene::new();
    scene.settle();
    scene.start(1, &[10], 100);
    for _ in 0..6 {
        scene.feeder.turn(scene.now, &mut scene.queues);
        scene.now += Duration::from_millis(2);
    }
    let before = scene.tokens(1).len();
    scene.queues.commands.push(GpuCommand::Cancel(StreamId(1)));
    scene.start(2, &[60], 3);
    scene.settle();
    assert_eq!((scene.tokens(1).len(), scene.tokens(2)), (before, vec![61, 62, 63]));
    assert_eq!(scene.status.in_flight(), 0);
}

#[test]
fn a_fault_gives_every_sequence_back_as_it_stands_and_the_device_comes_back() {
    let mut scene = Scene::new();
    scene.settle();
    scene.start(1, &[10], 100);
    scene.start(2, &[50, 60], 100);
    for _ in 0..8 {
        scene.feeder.turn(scene.now, &mut scene.queues);
        scene.now += Duration::from_millis(2);
    }
    scene.feeder.device_mut().mood = Mood::Fails;
    scene.feeder.turn(scene.now, &mut scene.queues);
    assert_eq!((scene.status.state(), scene.status.in_flight()), (State::Down, 0));
    let returned: Vec<(u64, Vec<u32>, usize)> =
        scene.returned().into_iter().map(|(id, tokens, generated)| (id, tokens.to_vec(), generated)).collect();
    assert_eq!(returned.len(), 2);
    for (id, tokens, generated) in returned {
        assert_eq!(tokens[tokens.len() - generated..], scene.tokens(id), "each token was sent once");
    }
    assert!(!scene.status.take_credit());
    scene.feeder.device_mut().mood = Mood::Well;
    scene.now += Duration::from_millis(300);
    scene.settle();
    assert_eq!((scene.status.state(), scene.feeder.device().starts), (State::Healthy, 2));
}

#[test]
fn a_step_that_never_ends_and_scores_that_differ_are_faults() {
    let mut scene = Scene::new();
    scene.settle();
    scene.start(1, &[10], 100);
    scene.feeder.turn(scene.now, &mut scene.queues);
    scene.feeder.device_mut().mood = Mood::Hangs;
    scene.now += Duration::from_millis(1900);
    scene.feeder.turn(scene.now, &mut scene.queues);
    assert_eq!(scene.status.state(), State::Healthy, "it may only be slow");
    scene.now += Duration::from_millis(200);
    scene.feeder.turn(scene.now, &mut scene.queues);
    assert_eq!((scene.status.state(), scene.returned().len()), (State::Down, 1));
    scene.feeder.device_mut().mood = Mood::Lies;
    scene.now += Duration::from_millis(300);
    scene.settle();
    assert_eq!(scene.status.faults(super::FaultKind::WrongResult), 1);
    assert_eq!(scene.status.faults(super::FaultKind::Hang), 1);
}

#[test]
fn a_feeder_that_breaks_down_gives_its_sequences_back_and_goes_on() {
    let mut scene = Scene::new();
    scene.settle();
    scene.start(1, &[10], 100);
    scene.start_with(2, &[50], 100, SamplingParams::default());
    for _ in 0..4 {
        scene.feeder.turn(scene.now, &mut scene.queues);
        scene.now += Duration::from_millis(2);
    }
    scene.feeder.device_mut().mood = Mood::Panics;
    scene.feeder.turn(scene.now, &mut scene.queues);
    assert_eq!((scene.status.state(), scene.returned().len(), scene.status.in_flight()), (State::Down, 2, 0));
    assert_eq!(scene.status.faults(super::FaultKind::Feeder), 1);
    scene.feeder.device_mut().mood = Mood::Well;
    scene.now += Duration::from_millis(300);
    scene.settle();
    scene.start(3, &[20], 2);
    scene.settle();
    assert_eq!((scene.status.state(), scene.tokens(3)), (State::Healthy, vec![21, 22]));
}

#[test]
fn a_stream_without_scores_fails_as_on_the_cpu_whatever_its_sampling() {
    let mut scene = Scene::new();
    scene.settle();
    scene.feeder.device_mut().mood = Mood::Mute;
    scene.start(1, &[10], 5);
    scene.start_with(2, &[20], 5, SamplingParams { temperature: 1.0, ..SamplingParams::default() });
    scene.start_with(3, &[30], 5, SamplingParams { temperature: 1.0, top_k: 5, ..SamplingParams::default() });
    scene.settle();
    for id in 1..=3 {
        let of = |event: &&Event| event.stream() == StreamId(id) && event.is_last();
        let last: Vec<&Event> = scene.queues.events.iter().filter(of).collect();
        assert!(matches!(last[..], [Event::End { finish: Finish::Failed, .. }]), "{id}: {last:?}");
    }
    assert_eq!((scene.status.state(), scene.status.in_flight()), (State::Healthy, 0), "the device is as it was");
}

#[test]
fn a_closed_generation_retires_its_device_and_loses_nothing() {
    let mut scene = Scene::new();
    scene.settle();
    scene.start(1, &[10], 100);
    scene.feeder.turn(scene.now, &mut scene.queues);
    scene.queues.commands.push(GpuCommand::Close(GenerationId(7)));
    scene.feeder.turn(scene.now, &mut scene.queues);
    assert_eq!((scene.status.state(), scene.returned().len()), (State::Healthy, 0), "another is closed");
    scene.queues.commands.push(GpuCommand::Close(GenerationId(0)));
    scene.feeder.turn(scene.now, &mut scene.queues);
    assert_eq!((scene.status.state(), scene.returned().len()), (State::Retired, 1));
}

#[test]
fn another_generation_takes_the_place_of_the_one_before_and_never_gets_its_sequences() {
    let mut scene = Scene::new();
    scene.settle();
    scene.start(1, &[10], 100);
    scene.feeder.turn(scene.now, &mut scene.queues);
    let next = Assignment { generation: GenerationId(1), ..scene.assignment.clone() };
    scene.queues.assignment = Some(Box::new(next.clone()));
    // On its way when the generation changes.
    scene.start(2, &[20], 100);
    scene.feeder.turn(scene.now, &mut scene.queues);
    assert_eq!((scene.returned().len(), scene.status.in_flight(), scene.status.generation()), (2, 0, GenerationId(1)));
    scene.settle();
    scene.queues.commands.push(GpuCommand::Close(GenerationId(0)));
    scene.assignment = next;
    scene.start(3, &[30], 2);
    scene.settle();
    assert_eq!((scene.status.state(), scene.tokens(3)), (State::Healthy, vec![31, 32]));
    assert_eq!(scene.feeder.device().starts, 2);
}

fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, ..SamplingParams::default() }
}

/// The number of the first scene's device, for faults beside its steps.
const BESIDE: usize = 1000;
/// Steps of the self test, which come first, and those that are tried for what they cost.
const TEST_STEPS: usize = 5 + 3;
const SLOTS: usize = 4;
