//! A device that does what a test tells it, and a feeder on it under a clock of the test's own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::device::{Device, Fault, Started, Want};
use super::feeder::{Feeder, FeederLimits, GpuCommand, Journal, Ports, Rest};
use super::known::{KnownAnswer, best};
use super::status::{State, Status};
use crate::engine::{Event, GenerationId};
use crate::forward::Step;
use crate::kv::BlockTables;
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
}

/// Every sequence of it continues with its last token plus one.
struct Mock {
    mood: Mood,
    starts: usize,
    scores: Vec<Vec<f32>>,
    known: Vec<Vec<f32>>,
    testing: usize,
    steps: Vec<usize>,
}

impl Device for Mock {
    fn start(&mut self) -> Result<(), Fault> {
        self.starts += 1;
        self.testing = 0;
        Ok(())
    }

    fn poll_start(&mut self) -> Result<Option<Started>, Fault> {
        Ok(Some(Started { name: "mock".into(), kv_blocks: 64, memory_bytes: 0 }))
    }

    fn submit(&mut self, step: &Step, _: &BlockTables, wants: &[Want]) {
        assert_eq!(step.logits.len(), wants.len());
        self.steps.push(step.tokens.len());
        self.scores = step.logits.iter().map(|row| self.answer(step.tokens[*row])).collect();
        if self.testing < self.known.len() {
            let mut known = self.known[self.testing].clone();
            known[0] += f32::from(u8::from(self.mood == Mood::Lies));
            self.scores = vec![known; wants.len()];
            self.testing += 1;
        }
    }

    fn poll_step(&mut self) -> Result<bool, Fault> {
        match self.mood {
            Mood::Fails => Err(Fault::Driver { code: 700, text: "told to fail".into() }),
            Mood::Hangs => Ok(false),
            Mood::Well | Mood::Lies => Ok(true),
        }
    }

    fn step_time(&self) -> Option<Duration> {
        Some(Duration::from_millis(1))
    }

    fn best(&self, i: usize) -> u32 {
        best(&self.scores[i])
    }

    fn scores(&mut self, i: usize) -> &mut [f32] {
        &mut self.scores[i]
    }

    fn stop(&mut self) {}
}

impl Mock {
    fn answer(&self, token: u32) -> Vec<f32> {
        let mut scores = vec![0.0; self.known[0].len()];
        scores[token as usize + 1] = 1.0;
        scores
    }
}

/// Commands to come and events that came.
#[derive(Default)]
struct Queues {
    commands: Vec<GpuCommand>,
    events: Vec<Event>,
}

impl Ports for Queues {
    fn receive(&mut self) -> Option<GpuCommand> {
        (!self.commands.is_empty()).then(|| self.commands.remove(0))
    }

    fn send(&mut self, event: Event) {
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
        let known = KnownAnswer::compute(&model, kernels::Isa::detect()).unwrap();
        let device = Mock {
            mood: Mood::Well,
            starts: 0,
            scores: Vec::new(),
            known: known.scores.clone(),
            testing: 0,
            steps: Vec::new(),
        };
        let limits = FeederLimits {
            shards: 1,
            slots: 4,
            waiting_max: 4,
            rows_max: 64,
            context: 256,
            itl_target: Duration::from_millis(50),
            prefix_cache: true,
        };
        let status = Arc::new(Status::new((0, "mock".into(), 0, String::new()), 4, GenerationId(0)));
        let now = Instant::now();
        let feeder = Feeder::new(device, Silent, Arc::new(model), known, limits, Arc::clone(&status), now);
        Self { feeder, queues: Queues::default(), status, now }
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
        assert!(self.status.take_credit());
        let sampling = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        self.queues.commands.push(GpuCommand::Start(Box::new(NewSequence {
            stop_at_end: false,
            ..NewSequence::new(StreamId(id), prompt.to_vec(), tokens_max, sampling, self.now)
        })));
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
    assert_eq!(scene.feeder.device().steps[3..], [4, 2, 2, 1], "prompts and single rows share steps");
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
fn a_closed_generation_retires_its_device_and_loses_nothing() {
    let mut scene = Scene::new();
    scene.settle();
    scene.start(1, &[10], 100);
    scene.feeder.turn(scene.now, &mut scene.queues);
    scene.queues.commands.push(GpuCommand::Close);
    scene.feeder.turn(scene.now, &mut scene.queues);
    assert_eq!((scene.status.state(), scene.returned().len()), (State::Retired, 1));
    assert!(scene.feeder.is_over());
}
