//! The step loop of a shard, run by its leader: commands in, steps through the forward pass, tokens out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rtrb::{Consumer, Producer};

use crate::forward::{Forward, Step};
use crate::kv::KvCache;
use crate::mailbox::{Doorbell, LeaderBell};
use crate::metrics::ShardMetrics;
use crate::model::Model;
use crate::pace::Pace;
use crate::sampler::Sampler;
use crate::schedule::{NewSequence, Scheduler, Sequence, StreamId};
use crate::shared::PerWorker;
use crate::team::Team;

/// From the executor to the leader.
#[derive(Debug)]
pub enum Command {
    Start(Box<NewSequence>),
    Cancel(StreamId),
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// An end-of-generation token, or a stop string.
    Stop,
    /// The token limit of the request or of the context.
    Length,
    /// The model gave no usable scores.
    Failed,
}

/// From the leader to the executor.
#[derive(Debug)]
pub enum Event {
    /// The sequence left the queue.
    Admitted(StreamId),
    /// The queue is full.
    Refused(StreamId),
    /// One token of the answer, perhaps the last.
    Token { stream: StreamId, sampled: Sampled, finish: Option<Finish> },
    /// The end without a further token.
    End { stream: StreamId, finish: Finish },
}

/// A chosen token and what the request wants to know of the choice.
#[derive(Debug)]
pub struct Sampled {
    pub token: u32,
    pub logprobs: Option<Box<TokenLogprobs>>,
}

/// Natural logarithms of probabilities under the raw scores.
#[derive(Debug)]
pub struct TokenLogprobs {
    pub logprob: f32,
    /// The best tokens, best first.
    pub top: Vec<(u32, f32)>,
}

/// Limits of a step loop.
#[derive(Clone, Copy, Debug)]
pub struct EngineLimits {
    pub slots_max: usize,
    pub waiting_max: usize,
    /// Longest step that running sequences should feel.
    pub itl_target: Duration,
}

/// The two ends that the leader holds, and what it needs to wake the other side.
pub struct Link {
    pub commands: Consumer<Command>,
    pub events: Producer<Event>,
    pub doorbell: Arc<Doorbell>,
    pub bell: Arc<LeaderBell>,
    pub stopping: Arc<AtomicBool>,
}

/// Everything that a shard computes with.
pub struct Engine {
    model: Arc<Model>,
    team: Team,
    forward: Forward,
    kv: KvCache,
    scheduler: Scheduler,
    link: Link,
    metrics: Arc<ShardMetrics>,
    samplers: PerWorker<Sampler>,
    sampled: PerWorker<Option<Sampled>>,
    step: Step,
    pace: Pace,
}

impl Engine {
    /// Assembles a step loop; nothing runs yet.
    #[must_use]
    pub fn new(
        model: Arc<Model>,
        team: Team,
        forward: Forward,
        kv: KvCache,
        limits: EngineLimits,
        link: Link,
        metrics: Arc<ShardMetrics>,
    ) -> Self {
        let workers = team.size();
        let vocab = model.weights.params.vocab;
        Self {
            samplers: PerWorker::new(workers, || Sampler::new(vocab)),
            sampled: PerWorker::new(forward.limits().logits_max, || None),
            scheduler: Scheduler::new(limits.slots_max, limits.waiting_max),
            pace: Pace::new(limits.itl_target),
            step: Step::default(),
            model,
            team,
            forward,
            kv,
            link,
            metrics,
        }
    }

    /// One step of one row, so that every page and every code path of a step is warm, and the model's scores are
    /// known to be numbers.
    ///
    /// # Panics
    /// When they are not.
    pub fn warm_up(&mut self) {
        self.kv.reserve(0, 1).expect("a cache holds one sequence");
        self.step.clear();
        self.step.push(0, 0, &[self.model.tokenizer.bos().unwrap_or(0)], true);
        let Self { model, team, forward, kv, step, .. } = self;
        forward.run(team, &model.weights, kv, step, &|_, logits, _| {
            assert!(logits.iter().all(|logit| logit.is_finite()), "the model's first scores are no numbers");
        });
        self.kv.release(0);
    }

    /// Runs until the executor has said `stopping` and every sequence has ended, or the executor is gone.
    pub fn run(mut self) {
        while !self.link.events.is_abandoned() {
            self.receive();
            let Self { scheduler, kv, link, .. } = &mut self;
            scheduler.admit(kv, |stream| push(link, Event::Admitted(stream)));
            let prefill_rows = self.pace.prefill_rows(self.scheduler.decoding(), self.forward.limits().rows_max);
            if self.scheduler.form(&mut self.step, self.forward.limits().rows_max, prefill_rows) {
                self.step();
            } else if self.link.stopping.load(Ordering::SeqCst) && self.link.commands.is_empty() {
                return;
            } else {
                self.publish();
                let (commands, stopping) = (&self.link.commands, &self.link.stopping);
                self.link.bell.sleep_unless(|| !commands.is_empty() || stopping.load(Ordering::SeqCst));
            }
        }
    }

    fn receive(&mut self) {
        while let Ok(command) = self.link.commands.pop() {
            match command {
                Command::Start(sequence) => {
                    if let Err(full) = self.scheduler.submit(*sequence) {
                        push(&mut self.link, Event::Refused(full.0.stream));
                    }
                }
                Command::Cancel(stream) => self.scheduler.cancel(stream, &mut self.kv),
            }
        }
        self.link.doorbell.ring();
    }

    fn step(&mut self) {
        let started = Instant::now();
        let Self { model, team, forward, kv, scheduler, samplers, sampled, step, .. } = self;
        let step = &*step;
        let (scheduler, samplers, sampled) = (&*scheduler, &*samplers, &*sampled);
        forward.run(team, &model.weights, kv, step, &|i, logits, worker| {
            #[cfg(test)]
            assert!(!FAIL_NEXT_STEP.swap(false, Ordering::SeqCst), "told to fail");
            let slot = logits_slot(step, i);
            let sequence = scheduler.sequence(slot).expect("a row belongs to a sequence");
            sample(samplers, sampled, (i, worker), sequence, logits);
        });
        let elapsed = started.elapsed();
        let decode_rows = self.step.segments.iter().filter(|segment| segment.rows == 1).count();
        self.pace.observe(decode_rows, self.step.tokens.len() - decode_rows, elapsed);
        self.metrics.observe_step(elapsed, self.step.tokens.len(), self.step.logits.len());
        self.advance();
        self.publish();
        self.link.doorbell.ring();
    }

    /// Moves every sequence of the step on and sends its token.
    fn advance(&mut self) {
        let mut logits = 0;
        for index in 0..self.step.segments.len() {
            let segment = self.step.segments[index];
            let sequence = self.scheduler.sequence_mut(segment.slot).expect("a segment belongs to a sequence");
            sequence.computed += segment.rows;
            if sequence.computed < sequence.tokens.len() {
                continue;
            }
            let sampled = self.sampled.get_mut(logits).take();
            logits += 1;
            let (event, ended) = next_event(&self.model, sequence, sampled);
            if ended {
                self.scheduler.finish(segment.slot, &mut self.kv);
            }
            push(&mut self.link, event);
        }
    }

    fn publish(&self) {
        self.metrics.set_queue(self.scheduler.running(), self.scheduler.waiting());
        self.metrics.set_kv(self.kv.blocks() - self.kv.blocks_free(), self.kv.blocks());
    }
}

fn next_event(model: &Model, sequence: &mut Sequence, sampled: Option<Sampled>) -> (Event, bool) {
    let stream = sequence.stream;
    let Some(sampled) = sampled else { return (Event::End { stream, finish: Finish::Failed }, true) };
    if sequence.stop_at_end && model.tokenizer.is_end_of_generation(sampled.token) {
        return (Event::End { stream, finish: Finish::Stop }, true);
    }
    sequence.push(sampled.token);
    let finish = (sequence.generated() >= sequence.tokens_max).then_some(Finish::Length);
    (Event::Token { stream, sampled, finish }, finish.is_some())
}

/// The ring holds the events of several steps; an executor that is behind for longer is waited for, one that is gone
/// is not.
fn push(link: &mut Link, event: Event) {
    let mut event = event;
    while let Err(rtrb::PushError::Full(back)) = link.events.push(event) {
        if link.events.is_abandoned() {
            return;
        }
        event = back;
        link.doorbell.ring();
        std::thread::yield_now();
    }
}

/// Slot of the `i`-th logits row of a step.
fn logits_slot(step: &Step, i: usize) -> usize {
    let row = step.logits[i];
    let at = step.segments.partition_point(|segment| segment.first_row + segment.rows <= row);
    step.segments[at].slot
}

#[expect(unsafe_code, reason = "each worker has its sampler, each row its place for the result")]
fn sample(
    samplers: &PerWorker<Sampler>,
    sampled: &PerWorker<Option<Sampled>>,
    (i, worker): (usize, usize),
    sequence: &Sequence,
    logits: &mut [f32],
) {
    // SAFETY: the forward pass calls this on worker `worker` only.
    let sampler = unsafe { samplers.get(worker) };
    // SAFETY: the forward pass calls this once for row `i`, and nobody else looks before the pass ends.
    let result = unsafe { sampled.get(i) };
    let position = sequence.tokens.len() as u64;
    let choice = sampler.sample(logits, &sequence.sampling, &sequence.history, position).ok();
    *result = choice.map(|choice| Sampled {
        token: choice.token,
        logprobs: choice
            .logprob
            .map(|logprob| Box::new(TokenLogprobs { logprob, top: sampler.top_logprobs().to_vec() })),
    });
}

/// Makes a worker panic in the next step of any engine of this process.
#[cfg(test)]
pub(crate) static FAIL_NEXT_STEP: AtomicBool = AtomicBool::new(false);
