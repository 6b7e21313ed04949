//! Drafts change no token, no end and no limit: only how many steps an answer takes.
#![expect(clippy::unwrap_used, reason = "a model that cannot be loaded fails the test")]
#![expect(dead_code, reason = "the harness serves tests of logits too")]

mod harness;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use harness::load;
use kernels::Isa;
use kernels::attention::KvType;
use runtime::engine::{Command, Engine, Event, Finish, GenerationId, Guests, Lane, LaneLimits, Link};
use runtime::forward::{Forward, Limits};
use runtime::guide::Beside;
use runtime::kv::{KvCache, blocks_for};
use runtime::mailbox::{Doorbell, LeaderBell};
use runtime::metrics::{GenerationMetrics, ShardMetrics};
use runtime::model::Model;
use runtime::sampler::SamplingParams;
use runtime::schedule::{NewSequence, StreamId};
use runtime::speculate::Speculation;
use runtime::team::Team;

/// What a sequence asks for.
#[derive(Clone)]
struct Request {
    prompt: Vec<u32>,
    tokens_max: usize,
    sampling: SamplingParams,
    stop_at_end: bool,
}

#[derive(Debug, PartialEq)]
struct Answer {
    tokens: Vec<u32>,
    logprobs: Vec<Option<u32>>,
    finish: Option<Finish>,
}

/// How an engine computes.
#[derive(Clone, Copy)]
struct Setup {
    speculation: Speculation,
    workers: usize,
    slots_max: usize,
    rows_max: usize,
}

const OFF: Setup = Setup { speculation: Speculation::Off, workers: 1, slots_max: 64, rows_max: 256 };

#[test]
fn no_setting_changes_an_answer() {
    let model = Arc::new(load(None));
    let requests = requests(&model);
    let (expected, drafted, _) = answers(&model, OFF, &requests);
    assert_eq!(drafted, 0);
    assert!(expected.iter().zip(&requests).all(|(answer, request)| answer.tokens.len() <= request.tokens_max));
    for (length, workers, slots_max, rows_max) in [(1, 2, 3, 32), (3, 1, 64, 256), (3, 2, 5, 5), (8, 1, 1, 64)] {
        let setup = Setup { speculation: Speculation::Fixed(length), workers, slots_max, rows_max };
        let (got, drafted, accepted) = answers(&model, setup, &requests);
        assert_eq!(got, expected, "drafts of {length}, {workers} workers, {slots_max} slots, {rows_max} rows");
        assert!(0 < accepted && accepted < drafted, "{accepted} of {drafted}");
    }
    for (speculation, slots_max) in [(Speculation::Auto, 1), (Speculation::Fast, 1), (Speculation::Fast, 3)] {
        let setup = Setup { speculation, workers: 2, slots_max, rows_max: 256 };
        assert_eq!(answers(&model, setup, &requests).0, expected, "{speculation:?}, {slots_max} slots");
    }
}

#[test]
fn an_end_inside_a_draft_ends_the_answer() {
    let model = Arc::new(load(None));
    let end = (0..).find(|&token| model.tokenizer.is_end_of_generation(token)).unwrap();
    let word = (end + 1..).find(|&token| !model.tokenizer.is_end_of_generation(token)).unwrap();
    // After one word the text has ended twice: the draft begins with the end, which comes in one of several cases.
    let prompt = vec![word, word, end, word, word, end, word];
    // So hot that one is drawn about as often as the other, whatever the model thinks of them.
    let base = SamplingParams { temperature: 8.0, ..SamplingParams::default() };
    let request = |seed| Request {
        prompt: prompt.clone(),
        tokens_max: 20,
        sampling: SamplingParams { seed, logit_bias: vec![(word, 1000.0), (end, 1000.0)], ..base.clone() },
        stop_at_end: true,
    };
    let requests: Vec<Request> = (0..64).map(request).collect();
    let (expected, ..) = answers(&model, OFF, &requests);
    let after_one = expected.iter().filter(|answer| answer.tokens == [word] && answer.finish == Some(Finish::Stop));
    assert!(after_one.count() > 0, "some answer must end where its draft says so");
    for speculation in [Speculation::Fixed(1), Speculation::Fixed(8), Speculation::Auto] {
        assert_eq!(answers(&model, Setup { speculation, slots_max: 2, ..OFF }, &requests).0, expected);
    }
}

#[test]
fn every_limit_is_met_exactly() {
    let model = Arc::new(load(None));
    for tokens_max in 1..=12 {
        let prompt = vec![5; 20];
        let sampling = SamplingParams { temperature: 0.0, logit_bias: vec![(5, 1000.0)], ..SamplingParams::default() };
        let request = Request { prompt, tokens_max, sampling, stop_at_end: true };
        let setup = Setup { speculation: Speculation::Fixed(8), slots_max: 1, ..OFF };
        let (got, drafted, accepted) = answers(&model, setup, std::slice::from_ref(&request));
        assert_eq!((got[0].tokens.len(), got[0].finish), (tokens_max, Some(Finish::Length)));
        assert_eq!(drafted, accepted, "a loop is guessed right");
        assert!(tokens_max <= 2 || drafted > 0, "{tokens_max}");
    }
}

#[test]
fn who_counts_tokens_drafts_none() {
    let model = Arc::new(load(None));
    let sampling = SamplingParams { frequency_penalty: 0.1, temperature: 0.0, ..SamplingParams::default() };
    let request = Request { prompt: vec![5; 20], tokens_max: 20, sampling, stop_at_end: false };
    let setup = Setup { speculation: Speculation::Fixed(8), ..OFF };
    assert_eq!(answers(&model, setup, &[request]).1, 0);
}

/// Texts that repeat themselves, to be gone on with in all the ways there are.
fn requests(model: &Model) -> Vec<Request> {
    let story = "Once upon a time there was a fox. The fox sat on a tree. The fox saw a bird. ";
    let mut requests = Vec::new();
    for (index, repeats) in [1, 2, 4].into_iter().enumerate() {
        let mut prompt = Vec::new();
        model.tokenizer.encode(&story.repeat(repeats), true, true, &mut prompt);
        prompt.truncate(120);
        for way in 0..7 {
            let base = SamplingParams { temperature: 0.3, seed: index as u64, ..SamplingParams::default() };
            let sampling = match way {
                0 => SamplingParams { temperature: 0.0, ..base },
                1 => base,
                2 => SamplingParams { top_k: 40, top_p: 0.95, temperature: 1.0, ..base },
                3 => SamplingParams { min_p: 0.02, repetition_penalty: 1.1, frequency_penalty: 0.2, ..base },
                4 => SamplingParams { temperature: 0.0, logprobs: Some(2), ..base },
                5 => SamplingParams { logit_bias: vec![(300, 2.0)], ..base },
                _ => SamplingParams { presence_penalty: 0.5, ..base },
            };
            requests.push(Request { prompt: prompt.clone(), tokens_max: 24, sampling, stop_at_end: way % 2 == 0 });
        }
    }
    requests
}

/// The answers of an engine to requests that all wait when it starts; draft tokens computed, and those that were right.
fn answers(model: &Arc<Model>, setup: Setup, requests: &[Request]) -> (Vec<Answer>, u64, u64) {
    let Setup { speculation, workers, slots_max, rows_max } = setup;
    // No position more than the longest request needs: a draft that goes beyond would be noticed.
    let positions = requests.iter().map(|request| request.prompt.len() + request.tokens_max).max().unwrap();
    let (mut commands_in, commands) = rtrb::RingBuffer::new(requests.len());
    let (events, mut events_out) = rtrb::RingBuffer::new(requests.len() * 32);
    let (closed, _closed_out) = rtrb::RingBuffer::new(1);
    for (stream, request) in requests.iter().cloned().enumerate() {
        let sequence = Box::new(NewSequence {
            stop_at_end: request.stop_at_end,
            ..NewSequence::new(
                StreamId(stream as u64),
                request.prompt,
                request.tokens_max,
                request.sampling,
                Instant::now(),
            )
        });
        commands_in.push(Command::Start { generation: GenerationId(0), sequence }).ok().unwrap();
    }
    let params = &model.weights.params;
    let limits = Limits { rows_max, logits_max: slots_max + speculation.rows_max() };
    let forward = Forward::new(Isa::detect(), params, workers, limits);
    let kv = KvCache::new(params, KvType::F16, positions, slots_max, slots_max * blocks_for(positions));
    let itl_target = Duration::from_millis(20);
    let limits = LaneLimits { slots_max, waiting_max: requests.len(), itl_target, speculation, kv_idle: None };
    let metrics = Arc::new(GenerationMetrics::default());
    let lane = Lane::new(GenerationId(0), Arc::clone(model), workers, forward, kv, limits, metrics);
    let bell = Arc::new(LeaderBell::default());
    let link = Link {
        commands,
        events,
        closed,
        guests: Guests::default(),
        beside: Beside::start(0, 1, &bell).unwrap(),
        doorbell: Arc::new(Doorbell::new().unwrap()),
        bell,
        stopping: Arc::new(AtomicBool::new(true)),
    };
    let metrics = Arc::new(ShardMetrics::default());
    Engine::new(Team::start(workers, |_| {}).unwrap(), vec![lane], link, Arc::clone(&metrics)).run();
    let empty = || Answer { tokens: Vec::new(), logprobs: Vec::new(), finish: None };
    let mut answers: Vec<Answer> = requests.iter().map(|_| empty()).collect();
    while let Ok(event) = events_out.pop() {
        let (stream, end) = match event {
            Event::Token { stream, sampled, finish, .. } => {
                let answer = &mut answers[stream.0 as usize];
                assert_eq!(answer.finish, None, "nothing comes after the end");
                answer.tokens.push(sampled.token);
                answer.logprobs.push(sampled.logprobs.map(|logprobs| logprobs.logprob.to_bits()));
                (stream, finish)
            }
            Event::End { stream, finish } => (stream, Some(finish)),
            Event::Admitted(_) | Event::Cached { .. } => continue,
            Event::Refused(stream) => panic!("{stream:?} is refused"),
            Event::Embedding { stream, .. } => panic!("{stream:?} is embedded"),
            Event::Scored { stream, .. } => panic!("{stream:?} asked for no scores"),
            Event::Returned(sequence) => panic!("{:?} is returned by a leader", sequence.stream),
        };
        let answer = &mut answers[stream.0 as usize];
        assert!(answer.finish.is_none() || end.is_none(), "one end");
        answer.finish = answer.finish.or(end);
    }
    (answers, metrics.step.drafted_tokens.get(), metrics.step.accepted_tokens.get())
}
