//! Greedy answers and embeddings that no client waits for: checks of a generation after a switch, and comparisons with a canary's.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{Inbox, Served, Shard};
use crate::engine::{Command, Event, Finish};
use crate::executor::{self, Signal, contain};
use crate::registry::Outcome;
use crate::sampler::SamplingParams;
use crate::schedule::{NewSequence, Priority, StreamId};

/// The tokens of an answer or the bits of an embedding, or why there are none.
pub(super) async fn run(
    shard: &Rc<Shard>,
    served: &Served,
    prompt: Box<[u32]>,
    tokens_max: usize,
    priority: Priority,
) -> Outcome {
    let tokens_max = if served.model.weights.params.pooling.is_some() { 0 } else { tokens_max };
    let (mut tokens, failed) =
        (Vec::with_capacity(tokens_max), |failed| Outcome::Probed { answer: Vec::new(), failed });
    if prompt.is_empty() || prompt.len() + tokens_max > served.model.weights.context {
        return failed(Some("the prompt does not fit the context"));
    }
    let wake = Rc::new(Signal::default());
    let inbox =
        Inbox { events: Default::default(), wake: Rc::clone(&wake), cut: Cell::new(false), device: Cell::new(None) };
    let inbox = Rc::new(inbox);
    let stream = StreamId(shard.next_id());
    let sampling = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let new = NewSequence::new(stream, prompt.into_vec(), tokens_max, sampling, Instant::now());
    let sequence = NewSequence { priority, ..new };
    shard.streams.borrow_mut().insert(stream, (Rc::clone(&inbox), 0));
    if !shard.start(Command::Start { generation: served.id, sequence: Box::new(sequence) }) {
        shard.streams.borrow_mut().remove(&stream);
        return failed(Some(QUEUE_FULL));
    }
    loop {
        let event = inbox.events.borrow_mut().pop_front();
        match event {
            Some((_, Event::Token { sampled, finish, .. }, _)) => {
                tokens.push(sampled.token);
                if finish.is_some() {
                    return Outcome::Probed { answer: tokens, failed: None };
                }
            }
            Some((_, Event::Embedding { vector, .. }, _)) => {
                return Outcome::Probed { answer: vector.iter().map(|value| value.to_bits()).collect(), failed: None };
            }
            Some((_, Event::End { finish: Finish::Failed, .. }, _)) => {
                return failed(Some("the scores are no numbers"));
            }
            Some((_, Event::End { finish: Finish::Lost, .. }, _)) => return failed(Some(BROKE_DOWN)),
            Some((_, Event::End { .. }, _)) => return Outcome::Probed { answer: tokens, failed: None },
            Some((_, Event::Refused(_), _)) => return failed(Some(QUEUE_FULL)),
            Some((_, Event::Admitted(_) | Event::Cached { .. } | Event::Scored { .. } | Event::Returned(_), _)) => {}
            None if inbox.cut.get() => {
                shard.cancel(stream);
                return failed(Some("the server is shutting down"));
            }
            None => wake.wait().await,
        }
    }
}

/// As [`run`], and waits for a place where the queue is full: a busy server is no fault of the model.
pub(super) async fn run_when_there_is_room(
    shard: &Rc<Shard>,
    served: &Served,
    prompt: &[u32],
    tokens_max: usize,
) -> Outcome {
    loop {
        let outcome = contain(run(shard, served, prompt.into(), tokens_max, Priority::High)).await;
        let outcome = outcome.unwrap_or_else(broken);
        if !matches!(outcome, Outcome::Probed { failed: Some(QUEUE_FULL), .. }) || shard.control.is_draining() {
            return outcome;
        }
        executor::sleep(RETRY_EVERY).await;
    }
}

/// What is to be said of a probe that the shard did not come to the end of.
pub(super) fn broken() -> Outcome {
    Outcome::Probed { answer: Vec::new(), failed: Some(BROKE_DOWN) }
}

/// Compares a canary's greedy answer with the one of `reference` to the same prompt; the canary's counts take the
/// result. Positions after the first difference say nothing.
pub(super) async fn compare(
    shard: Rc<Shard>,
    canary: Rc<Served>,
    reference: Rc<Served>,
    prompt: Box<[u32]>,
    answer: Vec<u32>,
) {
    let answered = contain(run(&shard, &reference, prompt, answer.len().max(1), Priority::Low)).await;
    if let Some(Outcome::Probed { answer: tokens, failed: None }) = answered {
        let agreed = tokens.iter().zip(&answer).take_while(|(a, b)| a == b).count();
        let longest = tokens.len().max(answer.len());
        canary.metrics.compared.add(if agreed < longest { agreed + 1 } else { agreed } as u64);
        canary.metrics.agreed.add(agreed as u64);
    }
    shard.comparing.set(false);
}

const QUEUE_FULL: &str = "the queue is full";
const BROKE_DOWN: &str = "its shard broke down";
const RETRY_EVERY: Duration = Duration::from_millis(50);
