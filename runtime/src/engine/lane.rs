//! One generation as one shard computes it: weights, KV cache, buffers, queue, and a step at a time.

use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

#[cfg(test)]
use super::faults;
use super::pool::Pool;
use super::{Event, Finish, GenerationId, Link, Sampled, TokenLogprobs, push};
use crate::forward::{Forward, Logits, Reach, Segment, Step};
use crate::guide::{Beside, Guide};
use crate::kv::{KvCache, SWEEPS_KEPT};
use crate::metrics::{GenerationMetrics, ShardMetrics};
use crate::model::Model;
use crate::sampler::Sampler;
use crate::schedule::{Company, Counts, NewSequence, Pace, QueueFull, Scheduler, Sequence, StepRows, StreamId};
use crate::shared::PerWorker;
use crate::speculate::{DRAFT_TOKENS_MAX, Speculation, Speculator};
use crate::team::Team;

/// Limits of one generation on one shard.
#[derive(Clone, Copy, Debug)]
pub struct LaneLimits {
    pub slots_max: usize,
    pub waiting_max: usize,
    /// Longest step that running sequences should feel.
    pub itl_target: Duration,
    pub speculation: Speculation,
    /// How long KV memory that nobody uses is kept; `None` for ever.
    pub kv_idle: Option<Duration>,
}

/// A generation with all that its steps need. A step computes rows of one lane; lanes take turns.
pub struct Lane {
    id: GenerationId,
    model: Arc<Model>,
    forward: Forward,
    kv: KvCache,
    scheduler: Scheduler,
    samplers: PerWorker<Sampler>,
    sampled: PerWorker<Option<Sampled>>,
    step: Step,
    pace: Pace,
    /// Most prompt rows of a step.
    prompt_rows_max: usize,
    speculator: Speculator,
    /// Of an embedding model, whose sequences end with their last state.
    pool: Option<Pool>,
    metrics: Arc<GenerationMetrics>,
    /// Time between two sweeps for memory that nobody uses, and when the next one is.
    sweep_every: Option<Duration>,
    next_sweep: Option<Instant>,
    /// No further sequence comes: it leaves with its last one.
    closing: bool,
}

impl Lane {
    /// A lane without sequences, for a team of `workers`. Everything that it will ever allocate is allocated here.
    #[must_use]
    pub fn new(
        id: GenerationId,
        model: Arc<Model>,
        workers: usize,
        forward: Forward,
        kv: KvCache,
        limits: LaneLimits,
        metrics: Arc<GenerationMetrics>,
    ) -> Self {
        let params = &model.weights.params;
        let vocab = if params.pooling.is_some() { 0 } else { params.vocab };
        let rows_max = forward.limits().rows_max;
        let cheaper_rows = PROMPT_ROWS_MIN.max(workers * PROMPT_ROWS_PER_WORKER);
        Self {
            prompt_rows_max: if params.pooling.is_some() { rows_max } else { rows_max.min(cheaper_rows) },
            pool: Pool::new(params, limits.slots_max),
            id,
            samplers: PerWorker::new(workers, || Sampler::new(vocab)),
            sampled: PerWorker::new(forward.limits().logits_max, || None),
            scheduler: Scheduler::new(limits.slots_max, limits.waiting_max).with_logits(forward.limits().logits_max),
            pace: Pace::new(limits.itl_target),
            speculator: Speculator::new(
                limits.speculation,
                forward.limits().logits_max.saturating_sub(limits.slots_max),
            ),
            step: Step::with_capacity(forward.limits()),
            model,
            forward,
            kv,
            metrics,
            sweep_every: limits.kv_idle.map(|idle| idle / SWEEPS_KEPT),
            next_sweep: None,
            closing: false,
        }
    }

    /// Which generation it computes.
    #[must_use]
    pub fn id(&self) -> GenerationId {
        self.id
    }

    /// Steps of one row, then two of several that decode and two of a prompt, and in fresh memory one of one row, so that every
    /// page and every code path of these is warm and the model's scores are known to be numbers: before the first request
    /// comes it is known what a step costs, and what each kind of row adds to it.
    ///
    /// # Panics
    /// When they are not.
    #[expect(clippy::cast_possible_truncation, reason = "a vocabulary fits 32 bits")]
    pub(super) fn warm_up(&mut self, team: &Team, metrics: &ShardMetrics) {
        let model = Arc::clone(&self.model);
        let (params, token) = (&model.weights.params, model.tokenizer.bos().unwrap_or(0));
        // The first step meets cold pages. What a step takes whatever its rows is known before what rows add to it.
        self.try_step(team, &[token], 1);
        let mut rows = StepRows::default();
        rows.add_decode(0, 1);
        let elapsed = self.try_step(team, &[token], 1);
        self.pace.observe(&rows, elapsed);
        if self.pool.is_none() {
            let most = self.forward.limits().rows_max.min(params.context);
            let tokens: Vec<u32> = (0..WARM_UP_PROMPT.min(most) as u32).map(|i| i % params.vocab as u32).collect();
            let count = WARM_UP_DECODES.min(tokens.len()).min(self.forward.limits().logits_max);
            let (mut decodes, mut prompt) = (StepRows::default(), StepRows::default());
            decodes.add_decode(0, count);
            prompt.add_prompt(0, tokens.len());
            for (rows, count, scored) in [(decodes, count, count), (prompt, tokens.len(), 1)] {
                // The first of each kind meets code and buffers that are cold.
                let elapsed = [(); 2].map(|()| self.try_step(team, &tokens[..count], scored));
                self.pace.foresee(&rows, elapsed[0].min(elapsed[1]));
            }
            self.forward.forget(params);
            self.try_step(team, &[token], 1);
        }
        metrics.set_costs(self.pace.decode_costs(), self.pace.prefill_row_s());
    }

    /// How long a step takes of `tokens` one after the other, of which the last `scored` ones are each followed by the best.
    fn try_step(&mut self, team: &Team, tokens: &[u32], scored: usize) -> Duration {
        self.kv.reserve(0, tokens.len()).expect("a cache holds one sequence");
        let Self { model, forward, kv, step, .. } = self;
        step.clear();
        step.push(0, 0, tokens, false);
        for row in tokens.len() - scored..tokens.len() {
            step.logits.push(row);
            if tokens.len() > 1 {
                step.want_best(Reach { count: 1, distance: 0.0, draw: None }, std::iter::empty());
            }
        }
        let started = Instant::now();
        forward.run_to_choose(team, &model.weights, kv, step, &|_, logits, _| {
            let is_score = |logit: &f32| logit.is_finite() || *logit == f32::NEG_INFINITY && tokens.len() > 1;
            let logits = match &logits {
                Logits::All(logits) => &**logits,
                Logits::Few(few) => few.logits,
            };
            assert!(logits.iter().all(is_score), "the model's first scores are no numbers");
        });
        let elapsed = started.elapsed();
        self.kv.release(0);
        elapsed
    }

    /// Begins anew after a panic in one of its steps: without sequences and without known blocks. Its buffers hold nothing
    /// that a step does not write before it reads it.
    pub(super) fn clear(&mut self, team: &Team) {
        let vocab = self.model.weights.params.vocab;
        self.scheduler.clear();
        self.kv.tables_mut().clear();
        self.samplers = PerWorker::new(team.size(), || Sampler::new(vocab));
        self.sampled = PerWorker::new(self.forward.limits().logits_max, || None);
        self.step.clear();
        if let Some(pool) = &mut self.pool {
            pool.clear_all();
        }
    }

    pub(super) fn submit(&mut self, sequence: NewSequence) -> Result<(), QueueFull> {
        self.scheduler.submit(sequence)
    }

    /// Takes in a sequence that was accepted elsewhere; its guide may be beside the steps of where it was.
    pub(super) fn resume(&mut self, sequence: NewSequence, beside: &Beside) {
        sequence.follow_guide(beside);
        self.scheduler.resume(sequence);
    }

    pub(super) fn cancel(&mut self, stream: StreamId) {
        self.scheduler.cancel(stream, self.kv.tables_mut());
    }

    /// Cancels every sequence that came from shard `shard`.
    pub(super) fn cancel_all_of(&mut self, shard: usize) {
        for stream in self.scheduler.streams().filter(|stream| stream.shard() == shard).collect::<Vec<_>>() {
            self.cancel(stream);
        }
    }

    pub(super) fn close(&mut self) {
        self.closing = true;
    }

    /// Whether it has nothing to do and never will again.
    pub(super) fn is_over(&self) -> bool {
        self.closing && self.running() + self.waiting() == 0
    }

    pub(super) fn running(&self) -> usize {
        self.scheduler.running()
    }

    pub(super) fn waiting(&self) -> usize {
        self.scheduler.waiting()
    }

    /// KV blocks that have memory.
    pub(super) fn kv_resident(&self) -> usize {
        self.kv.tables().resident()
    }

    /// Gives a KV block that nobody has used for long back to the system; whether there may be more.
    pub(super) fn give_back_idle(&mut self, now: Instant) -> bool {
        let Some(every) = self.sweep_every else { return false };
        if self.next_sweep.is_none_or(|at| at <= now) {
            self.next_sweep = Some(now + every);
            self.kv.tables_mut().sweep();
        }
        self.kv.give_back_one()
    }

    /// Sequences that have no token yet.
    pub(super) fn prompts(&self) -> usize {
        self.scheduler.prompts()
    }

    /// Prompt tokens that are still to be computed.
    pub(super) fn prompt_tokens(&self) -> usize {
        self.scheduler.prompt_tokens()
    }

    /// KV blocks in use and in all.
    pub(super) fn kv_blocks(&self) -> (usize, usize) {
        let tables = self.kv.tables();
        (tables.blocks() - tables.blocks_free(), tables.blocks())
    }

    /// What a step of its decoding sequences takes, as far as is known: other lanes' steps are felt that much more.
    pub(super) fn decode_estimate_s(&self) -> f64 {
        self.pace.estimate_s(&self.scheduler.decode_rows())
    }

    /// Whether any sequence in it has no slow guide.
    pub(super) fn has_quick(&mut self, beside: &Beside) -> bool {
        self.scheduler.has_quick(beside)
    }

    /// Admits whom it can and forms the next step; `false` where there is nothing to compute. Sequences of other lanes
    /// wait `beside_s` for their own steps already; `is_felt`: any of all lanes has no slow guide.
    #[expect(clippy::cast_precision_loss, reason = "workers are few")]
    pub(super) fn form(&mut self, link: &mut Link, beside_s: f64, is_felt: bool) -> bool {
        let Self { scheduler, kv, forward, pace, prompt_rows_max, speculator, samplers, step, .. } = self;
        scheduler.admit(kv.tables_mut(), |stream| push(link, Event::Admitted(stream)));
        scheduler.step_aside(&mut link.beside, is_felt);
        let rows_max = forward.limits().rows_max;
        let budget = pace.prompt_budget(&scheduler.demand(), beside_s, *prompt_rows_max);
        if let Some(pool) = &self.pool {
            let formed = scheduler.form(step, kv.tables_mut(), rows_max, budget);
            pool.want(step, scheduler);
            return formed;
        }
        let step_s = pace.estimate_s(&scheduler.decode_rows()) + beside_s;
        let sets_s = (step_s * SETS_SHARE).max(SETS_S_LEAST) * samplers.count() as f64;
        let company = if beside_s > 0.0 { Company::Others } else { Company::Nobody };
        scheduler.limit_sets(Duration::from_secs_f64(sets_s), company);
        speculator.plan(scheduler, rows_max);
        scheduler.form(step, kv.tables_mut(), rows_max, budget)
    }

    /// Sequences that wait for their guides.
    pub(super) fn beside(&self) -> usize {
        self.scheduler.beside()
    }

    pub(super) fn take_guides_back(&mut self) {
        self.scheduler.take_guides_back();
    }

    /// Computes the formed step on `team` and sends its tokens; whether those of earlier steps are still in the ring.
    pub(super) fn step(&mut self, team: &Team, link: &mut Link, metrics: &ShardMetrics) -> bool {
        let started = Instant::now();
        let Self { model, forward, kv, scheduler, samplers, sampled, step, .. } = self;
        let step = &*step;
        let (scheduler, samplers, sampled) = (&*scheduler, &*samplers, &*sampled);
        if self.pool.is_some() {
            forward.run(team, &model.weights, kv, step, &|_, _, _| {});
            self.observe(started, started.elapsed(), metrics);
            self.embed(link);
            return false;
        }
        #[cfg(test)]
        let begun = step.segments.iter().any(|segment| {
            scheduler.sequence(segment.slot).is_some_and(|sequence| sequence.generated() >= faults::TOKENS_MIN)
        });
        #[cfg(test)]
        let told_to_fail = std::sync::atomic::AtomicBool::new(begun && faults::strikes(faults::Fault::Worker));
        #[cfg(test)]
        assert!(!(begun && faults::strikes(faults::Fault::Leader)), "told to fail");
        forward.run_to_choose(team, &model.weights, kv, step, &|i, logits, worker| {
            #[cfg(test)]
            assert!(!told_to_fail.swap(false, Ordering::Relaxed), "told to fail");
            let (segment, row) = logits_row(step, i);
            let sequence = scheduler.sequence(segment.slot).expect("a row belongs to a sequence");
            let position = segment.first_position + row;
            match logits {
                Logits::All(logits) if !sequence.scored(position..position + 1).is_empty() => {
                    score(samplers, sampled, (i, worker), (sequence, position), logits);
                }
                logits => {
                    // The rows of a decoding sequence are its last token and its draft; of a prompt only the last row is sampled.
                    let ahead = if sequence.pending() == 1 { row } else { 0 };
                    sample(samplers, sampled, (i, worker), (sequence, ahead), logits);
                }
            }
        });
        metrics.observe_head(self.forward.head_counts());
        let ended = Instant::now();
        self.observe(started, ended.saturating_duration_since(started), metrics);
        let is_behind = link.executor_is_behind();
        self.advance(link, ended, metrics);
        is_behind
    }

    fn observe(&mut self, started: Instant, elapsed: Duration, metrics: &ShardMetrics) {
        let sequences = self.step.segments.iter().filter_map(|segment| self.scheduler.sequence(segment.slot));
        for sequence in sequences.filter(|sequence| sequence.is_at_its_beginning()) {
            metrics.step.first_step.observe_duration(started.saturating_duration_since(sequence.arrival));
        }
        let decodes = |segment: &&Segment| self.scheduler.sequence(segment.slot).is_some_and(|s| s.pending() == 1);
        let drafted: usize = self.step.segments.iter().filter(decodes).map(|segment| segment.rows - 1).sum();
        let (rows, counted) = (self.step.tokens.len(), self.scheduler.rows_of(&self.step));
        // The head of scored rows is no part of what a prompt takes.
        let scores = |segment: &Segment| {
            let positions = segment.first_position..segment.first_position + segment.rows;
            self.scheduler.sequence(segment.slot).is_some_and(|sequence| !sequence.scored(positions).is_empty())
        };
        if !self.step.segments.iter().any(scores) {
            self.pace.observe(&counted, elapsed);
        }
        if counted.prompt_rows == 0 {
            self.speculator.observe(rows, drafted, elapsed);
        }
        metrics.observe_step(elapsed, rows, self.step.logits.len() - drafted);
        metrics.set_costs(self.pace.decode_costs(), self.pace.prefill_row_s());
    }

    /// Moves every sequence of the step on and sends its tokens.
    fn advance(&mut self, link: &mut Link, now: Instant, metrics: &ShardMetrics) {
        let mut logits = 0;
        for index in 0..self.step.segments.len() {
            let segment = self.step.segments[index];
            let sequence = self.scheduler.sequence_mut(segment.slot).expect("a segment belongs to a sequence");
            if sequence.pending() == 1 {
                self.accept(segment, logits, (link, now), metrics);
                logits += segment.rows;
                continue;
            }
            let scored = sequence.scored(sequence.computed..sequence.computed + segment.rows);
            sequence.computed += segment.rows;
            if !scored.is_empty() {
                let entries = logits..logits + scored.len();
                logits = entries.end;
                let tokens: Option<Box<[_]>> = entries.map(|i| self.sampled.get_mut(i).take()).collect();
                let stream = sequence.stream;
                let Some(tokens) = tokens else {
                    logits += usize::from(sequence.computed == sequence.tokens.len());
                    self.scheduler.finish(segment.slot, self.kv.tables_mut());
                    push(link, Event::End { stream, finish: Finish::Failed });
                    continue;
                };
                sequence.scoring.iter_mut().for_each(|scoring| scoring.done = scored.end);
                push(link, Event::Scored { stream, tokens });
            }
            if sequence.computed < sequence.tokens.len() {
                continue;
            }
            let sampled = self.sampled.get_mut(logits).take();
            logits += 1;
            if let Some(event) = cached_event(sequence) {
                push(link, event);
            }
            metrics.step.sampled_tokens.add(u64::from(sampled.is_some()));
            let (event, ended) = next_event(&self.model, sequence, sampled, now);
            if ended {
                self.scheduler.finish(segment.slot, self.kv.tables_mut());
            }
            push(link, event);
        }
    }

    /// Moves every text of the step on and sends the embeddings of those that are done.
    fn embed(&mut self, link: &mut Link) {
        let pool = self.pool.as_mut().expect("a lane of an embedding model has a pool");
        let mut state = 0;
        for segment in &self.step.segments {
            if segment.first_position == 0 {
                pool.clear(segment.slot);
            }
            while self.step.logits.get(state).is_some_and(|row| *row < segment.first_row + segment.rows) {
                pool.add(segment.slot, self.forward.logits(state));
                state += 1;
            }
            let sequence = self.scheduler.sequence_mut(segment.slot).expect("a segment belongs to a sequence");
            sequence.computed += segment.rows;
            if sequence.pending() > 0 {
                continue;
            }
            let stream = sequence.stream;
            push(
                link,
                match pool.embedding(segment.slot) {
                    Some(vector) => Event::Embedding { stream, vector },
                    None => Event::End { stream, finish: Finish::Failed },
                },
            );
            self.scheduler.finish(segment.slot, self.kv.tables_mut());
        }
    }

    /// Moves a decoding sequence on by one token, and by one more for each token of its draft that was right. `logits` is
    /// the entry of its first row.
    fn accept(&mut self, segment: Segment, logits: usize, (link, now): (&mut Link, Instant), metrics: &ShardMetrics) {
        let sequence = self.scheduler.sequence_mut(segment.slot).expect("a segment belongs to a sequence");
        if let Some(event) = cached_event(sequence) {
            push(link, event);
        }
        let (mut given, mut count, mut over) = ([0; DRAFT_TOKENS_MAX + 1], 0, None);
        for ahead in 0..segment.rows {
            let sampled = self.sampled.get_mut(logits + ahead).take();
            if over.is_some() {
                continue;
            }
            sequence.computed += 1;
            let token = sampled.as_ref().map(|sampled| sampled.token);
            let (event, ended) = next_event(&self.model, sequence, sampled, now);
            push(link, event);
            if let Some(token) = token {
                given[count] = token;
                count += 1;
            }
            // What was drafted behind the beginning of a call was chosen without its guide.
            if ended || sequence.is_guided() || token != sequence.draft.rows().get(ahead).copied() {
                over = Some(ended);
            }
        }
        self.speculator.learn(&mut sequence.draft, &given[..count]);
        metrics.step.sampled_tokens.add(count as u64);
        metrics.observe_draft(segment.rows - 1, count.saturating_sub(1));
        if over == Some(true) {
            self.scheduler.finish(segment.slot, self.kv.tables_mut());
        }
    }

    /// What the scheduler has counted since this was last asked.
    pub(super) fn take_counts(&mut self) -> Counts {
        self.scheduler.take_counts()
    }

    /// Tells the outside how it stands.
    pub(super) fn publish(&self) {
        self.metrics.running.set(self.running() as u64);
        self.metrics.waiting.set(self.waiting() as u64);
    }
}

/// What is to be said before the first token of a sequence whose prompt was known in part.
pub(crate) fn cached_event(sequence: &Sequence) -> Option<Event> {
    let is_first = sequence.generated() == 0 && sequence.cached() > 0;
    is_first.then(|| Event::Cached { stream: sequence.stream, tokens: sequence.cached() })
}

/// Moves a sequence on by the token that was chosen for it at `at`; what to say of it, and whether it has ended.
pub(crate) fn next_event(
    model: &Model,
    sequence: &mut Sequence,
    sampled: Option<Sampled>,
    at: Instant,
) -> (Event, bool) {
    let stream = sequence.stream;
    if sequence.tokens_max == 0 {
        // Only its prompt was asked for.
        return (Event::End { stream, finish: Finish::Length }, true);
    }
    let end = |sequence: &mut Sequence| {
        let guide = sequence.guide.as_mut()?.get_mut();
        let complete = guide.is_complete().then_some(Finish::Stop);
        if guide.has_failed() { Some(Finish::Unguided) } else { complete }
    };
    let Some(sampled) = sampled else {
        return (Event::End { stream, finish: end(sequence).unwrap_or(Finish::Failed) }, true);
    };
    if sequence.stop_at_end && model.tokenizer.is_end_of_generation(sampled.token) {
        return (Event::End { stream, finish: Finish::Stop }, true);
    }
    sequence.push(sampled.token);
    let finish = match end(sequence) {
        Some(Finish::Unguided) => return (Event::End { stream, finish: Finish::Unguided }, true),
        None => (sequence.generated() >= sequence.tokens_max).then_some(Finish::Length),
        finish => finish,
    };
    (Event::Token { stream, sampled, at, finish }, finish.is_some())
}

/// Segment of the `i`-th logits row of a step, and which row of it that is.
fn logits_row(step: &Step, i: usize) -> (Segment, usize) {
    let row = step.logits[i];
    let at = step.segments.partition_point(|segment| segment.first_row + segment.rows <= row);
    (step.segments[at], row - step.segments[at].first_row)
}

/// How likely the token of the prompt behind `position` is.
#[expect(unsafe_code, reason = "each worker has its sampler, each row its place for the result")]
fn score(
    samplers: &PerWorker<Sampler>,
    sampled: &PerWorker<Option<Sampled>>,
    (i, worker): (usize, usize),
    (sequence, position): (&Sequence, usize),
    logits: &mut [f32],
) {
    // SAFETY: the forward pass calls this on worker `worker` only.
    let sampler = unsafe { samplers.get(worker) };
    // SAFETY: the forward pass calls this once for row `i`, and nobody else looks before the pass ends.
    let result = unsafe { sampled.get(i) };
    let (token, top) = (sequence.tokens[position + 1], sequence.scoring.map_or(0, |scoring| scoring.top));
    *result = sampler.score(logits, token, top).ok().map(|logprob| {
        let logprobs = TokenLogprobs { logprob, top: sampler.top_logprobs().to_vec() };
        Sampled { token, logprobs: Some(Box::new(logprobs)) }
    });
}

#[expect(unsafe_code, reason = "each worker has its sampler, each row its place for the result")]
fn sample(
    samplers: &PerWorker<Sampler>,
    sampled: &PerWorker<Option<Sampled>>,
    (i, worker): (usize, usize),
    (sequence, ahead): (&Sequence, usize),
    logits: Logits<'_>,
) {
    // SAFETY: the forward pass calls this on worker `worker` only.
    let sampler = unsafe { samplers.get(worker) };
    // SAFETY: the forward pass calls this once for row `i`, and nobody else looks before the pass ends.
    let result = unsafe { sampled.get(i) };
    let logits = match logits {
        Logits::All(logits) => logits,
        // Who has a guide wants all.
        Logits::Few(few) => {
            let position = (sequence.tokens.len() + ahead) as u64;
            let choice = sampler.sample_few(few, &sequence.sampling, position).ok();
            *result = choice.map(|choice| Sampled { token: choice.token, logprobs: None });
            return;
        }
    };
    // SAFETY: a sequence whose guide is at work drafts nothing, so that this is its only row.
    let mut guide = sequence.guide.as_ref().and_then(|guide| unsafe { guide.get() });
    *result = choose(sampler, sequence, guide.as_deref_mut(), ahead, logits);
    // All workers at once: behind the step it would be the leader alone.
    if let (Some(guide), Some(sampled)) = (guide, result) {
        guide.push_ahead(sampled.token);
    }
}

/// The token `ahead` places after the next one of a sequence from its logits, which are changed; `None` where they are
/// no scores, or its `guide` fails.
pub(crate) fn choose(
    sampler: &mut Sampler,
    sequence: &Sequence,
    guide: Option<&mut Guide>,
    ahead: usize,
    logits: &mut [f32],
) -> Option<Sampled> {
    let position = (sequence.tokens.len() + ahead) as u64;
    let Sequence { sampling, history, .. } = sequence;
    let choice = match guide {
        Some(guide) => sampler.sample_allowed(guide.allowed()?, logits, sampling, history, position),
        None => sampler.sample(logits, sampling, history, position),
    };
    let choice = choice.ok()?;
    let logprobs = |logprob| Box::new(TokenLogprobs { logprob, top: sampler.top_logprobs().to_vec() });
    Some(Sampled { token: choice.token, logprobs: choice.logprob.map(logprobs) })
}

/// What sets of allowed tokens that take long may take of the time of a step, and of one that takes little, in seconds.
const SETS_SHARE: f64 = 0.25;
const SETS_S_LEAST: f64 = 2.0e-3;
/// Steps with more prompt rows than these take as long for each row, or little less, and touch more memory: 2B shape on two cores
/// with AMX, prompts of 64, 96, 128, 160 and 256 tokens in one step 677 to 705, 845 to 857, 875 to 902, 855 to 862 and 922 to
/// 943 tok/s.
const PROMPT_ROWS_PER_WORKER: usize = 64;
const PROMPT_ROWS_MIN: usize = 128;
/// Rows of the steps that tell what many sequences and prompts cost, 0.2 s of a model of two billion weights on two cores.
const WARM_UP_DECODES: usize = 32;
const WARM_UP_PROMPT: usize = 64;
