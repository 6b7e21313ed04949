//! The forward pass: one step of rows through all layers, run by a whole team of workers.

mod apart;
mod attend;
mod buffers;
mod head;
mod inputs;
mod logits;
mod pass;
mod probe;
mod skip;

use std::ops::Range;

use kernels::Isa;
use kernels::draw::Draw;

use crate::kv::KvCache;
use crate::model::{HyperParameters, Weights};
use crate::shared::PerWorker;
use crate::team::{Counters, Team};
use crate::tuned::Tuned;

use apart::Apart;
use attend::{AttendParts, AttendPlan};
use buffers::{Buffers, Scratch};
pub use head::HeadCounts;
use head::{HeadBuffers, HeadPlan};
pub use logits::{Few, Logits};
use probe::Probe;
pub use probe::{Findings, Phase};

/// Consecutive rows of one sequence: a decode (one row) or a chunk of its prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The sequence's slot in the KV cache.
    pub slot: usize,
    pub first_row: usize,
    pub rows: usize,
    /// Position of the first row in its sequence.
    pub first_position: usize,
}

/// The rows of one forward pass.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// One token per row.
    pub tokens: Vec<u32>,
    /// Which sequence each run of rows belongs to; they cover the rows in order.
    pub segments: Vec<Segment>,
    /// Rows whose logits are wanted, ascending.
    pub logits: Vec<usize>,
    /// Which of them, entry by entry; all where there is none.
    best: Vec<Best>,
    /// Tokens of `best`, entry after entry.
    also: Vec<u32>,
}

/// What an entry of [`Step::logits`] wants; how many of the step's `also` are its own.
#[derive(Clone, Copy, Debug)]
struct Best {
    reach: Option<Reach>,
    also: usize,
}

/// Which logits matter to the sampler of a row: those of the `count` best tokens, and of all within `distance` of the last
/// of these; the best by the scores of a draw, where there is one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reach {
    pub count: usize,
    pub distance: f32,
    pub draw: Option<Draw>,
}

impl Step {
    /// Forgets the rows, keeps the memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.segments.clear();
        self.logits.clear();
        self.best.clear();
        self.also.clear();
    }

    /// With room for whatever `limits` allow, each entry of `logits` with as many tokens as [`Step::want_best`] takes.
    #[must_use]
    pub fn with_capacity(limits: Limits) -> Self {
        Self {
            tokens: Vec::with_capacity(limits.rows_max),
            segments: Vec::with_capacity(limits.rows_max),
            logits: Vec::with_capacity(limits.logits_max),
            best: Vec::with_capacity(limits.logits_max),
            also: Vec::with_capacity(limits.logits_max * ALSO_MAX),
        }
    }

    /// The last entry of `logits` wants only what is within reach, and the tokens `also`, whose logits the sampler is about
    /// to change: the others may be minus infinity. With too many of these it wants all.
    pub fn want_best(&mut self, reach: Reach, also: impl Iterator<Item = u32>) {
        let before = self.also.len();
        self.also.extend(also.take(ALSO_MAX + 1));
        let count = self.also.len() - before;
        self.best.resize(self.logits.len() - 1, Best { reach: None, also: 0 });
        if count > ALSO_MAX {
            self.also.truncate(before);
            return;
        }
        self.best.push(Best { reach: Some(reach), also: count });
    }

    /// Asks for these rows, ascending, in place of those asked for before, and for all that they give.
    pub fn want_rows(&mut self, rows: impl Iterator<Item = usize>) {
        self.logits.clear();
        self.best.clear();
        self.also.clear();
        self.logits.extend(rows);
    }

    /// Adds `tokens` of the sequence in `slot` from `first_position` on; `logits` asks for those of the last one.
    pub fn push(&mut self, slot: usize, first_position: usize, tokens: &[u32], logits: bool) {
        self.segments.push(Segment { slot, first_row: self.tokens.len(), rows: tokens.len(), first_position });
        self.tokens.extend_from_slice(tokens);
        if logits {
            self.logits.push(self.tokens.len() - 1);
        }
    }

    /// What each entry of `logits` wants: all, or the best and the tokens of `also` in that range.
    fn wanted(&self) -> impl Iterator<Item = Option<(Reach, Range<usize>)>> {
        let mut start = 0;
        (0..self.logits.len()).map(move |i| {
            let best = self.best.get(i)?;
            let also = start..start + best.also;
            start = also.end;
            Some((best.reach?, also))
        })
    }
}

impl Step {
    /// Adds a row to the last segment, with its logits: a token that is not certain yet.
    pub fn push_draft(&mut self, token: u32) {
        self.segments.last_mut().expect("a draft follows a token").rows += 1;
        self.logits.push(self.tokens.len());
        self.tokens.push(token);
    }
}

/// What a forward pass is sized for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub rows_max: usize,
    pub logits_max: usize,
}

/// Called for each entry of a step's logits, see [`Forward::run`].
type Each<'a> = &'a (dyn Fn(usize, &mut [f32], usize) + Sync);

/// The same for [`Forward::run_to_choose`].
type EachChoice<'a> = &'a (dyn Fn(usize, Logits<'_>, usize) + Sync);

/// Whom a step tells its logits, and whether they may be [`Few`].
#[derive(Clone, Copy)]
struct Told<'a> {
    each: EachChoice<'a>,
    few: bool,
}

/// Rows that go through the layers together: a step, or a worker's share of it.
#[derive(Clone, Copy)]
struct Part<'a> {
    step: &'a Step,
    /// Where its rows are in the buffers: the first row, and how many shares lie before.
    place: (usize, usize),
    /// Where its logits are among those of the whole step.
    first_logit: usize,
    attend_plan: &'a AttendPlan,
    head_plan: &'a HeadPlan,
}

/// Buffers of the forward pass of one shard.
pub struct Forward {
    isa: Isa,
    limits: Limits,
    buffers: Buffers,
    scratch: PerWorker<Scratch>,
    /// Where the logits of the last step are.
    logits_start: usize,
    counters: Counters,
    attend_plan: AttendPlan,
    attend_parts: AttendParts,
    plan: HeadPlan,
    head: HeadBuffers,
    apart: Apart,
    counts: HeadCounts,
    /// Of a row's logits or hidden state.
    width: usize,
    tuned: Tuned,
}

impl Forward {
    /// Buffers for `workers` workers and at most `limits` rows.
    #[must_use]
    pub fn new(isa: Isa, params: &HyperParameters, workers: usize, limits: Limits) -> Self {
        let headed = Limits { logits_max: if params.pooling.is_some() { 0 } else { limits.logits_max }, ..limits };
        let attend_plan = AttendPlan::new(params, workers, limits);
        let apart = Apart::new(params, workers, limits);
        Self {
            isa,
            limits,
            attend_parts: AttendParts::new(params, &attend_plan),
            buffers: Buffers::new(params, limits, apart.shares_max(), AttendParts::output_floats(params, &attend_plan)),
            attend_plan,
            scratch: PerWorker::new(workers, || Scratch::new(params, limits)),
            logits_start: 0,
            counters: Counters::new(params.layers * pass::COUNTERS_PER_LAYER + head::COUNTERS_AROUND),
            plan: HeadPlan::with_capacity(limits.logits_max),
            head: HeadBuffers::new(params, headed),
            apart,
            counts: HeadCounts::default(),
            width: params.output_width(),
            tuned: Tuned::default(),
        }
    }

    /// The same, with what was measured on this host.
    #[must_use]
    pub fn tuned(self, tuned: &Tuned) -> Self {
        Self { tuned: tuned.clone(), ..self }
    }

    /// Takes new memory for everything, none of it touched yet: what steps of many rows left would stay resident, 16 MiB of
    /// logits of 32 rows of 128,256 tokens.
    pub fn forget(&mut self, params: &HyperParameters) {
        let tuned = std::mem::take(&mut self.tuned);
        let new = || Self::new(self.isa, params, self.scratch.count(), self.limits);
        *self = Self { tuned, ..tuning::memory::untouched(new) };
    }

    /// The limits it was made for.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Computes `step`: keys and values go into `kv`, and `each(i, logits, worker)` is called once for each entry `i`
    /// of `step.logits`, on whichever worker is free.
    pub fn run(&mut self, team: &Team, weights: &Weights, kv: &mut KvCache, step: &Step, each: Each<'_>) {
        let each = |i: usize, logits: Logits<'_>, worker: usize| match logits {
            Logits::All(logits) => each(i, logits, worker),
            Logits::Few(_) => unreachable!("rows are told whole"),
        };
        self.run_and_tell(team, (weights, kv), step, Told { each: &each, few: false });
    }

    /// The same for who needs no more of an entry than what its token is chosen from. [`Forward::logits`] has nothing of
    /// entries of which [`Few`] were told.
    pub fn run_to_choose(
        &mut self,
        team: &Team,
        weights: &Weights,
        kv: &mut KvCache,
        step: &Step,
        each: EachChoice<'_>,
    ) {
        self.run_and_tell(team, (weights, kv), step, Told { each, few: true });
    }

    fn run_and_tell(&mut self, team: &Team, (weights, kv): (&Weights, &mut KvCache), step: &Step, told: Told<'_>) {
        assert!(step.tokens.len() <= self.limits.rows_max, "a step fits the buffers");
        assert!(step.logits.len() <= self.limits.logits_max, "a step's logits fit the buffer");
        self.scratch.iter_mut().filter_map(|scratch| scratch.probe.as_mut()).for_each(Probe::count_step);
        let at = (weights, &*kv, told);
        let vocab = weights.params.vocab;
        let apart = self.apart.cut(step);
        self.logits_start = Buffers::logits_start(&weights.params, step.tokens.len(), !apart);
        if apart {
            self.apart.plan(self.isa, weights);
            let this = &*self;
            team.run(&this.apart.counters, &|member| {
                while let Some(share) = this.apart.claim(member) {
                    if !share.step.tokens.is_empty() {
                        this.pass(at, share.into()).run(member.alone(&share.counters));
                    }
                }
            });
            self.counts = self.apart.count(self.head.counts(), vocab);
            return;
        }
        self.plan.make(self.isa, weights, step);
        self.attend_plan.make(step);
        let (attend_plan, head_plan) = (&self.attend_plan, &self.plan);
        let pass = self.pass(at, Part { step, place: (0, 0), first_logit: 0, attend_plan, head_plan });
        if self.apart.is_for_one(step) {
            team.run_alone(&self.counters, |member| pass.run(member));
        } else {
            team.run(&self.counters, &|member| pass.run(member));
        }
        self.counts = self.plan.count(self.head.counts(), vocab);
    }

    fn pass<'a>(&'a self, (weights, kv, told): (&'a Weights, &'a KvCache, Told<'a>), part: Part<'a>) -> pass::Pass<'a> {
        let params = &weights.params;
        pass::Pass {
            isa: self.isa,
            tuned: &self.tuned,
            weights,
            kv,
            step: part.step,
            buffers: self.buffers.starting_at(params, part.place, part.step.tokens.len()),
            scratch: &self.scratch,
            logits: self.buffers.floats_from(self.logits_start + part.first_logit * self.width),
            first_logit: part.first_logit,
            vocab: params.vocab,
            attend_plan: part.attend_plan,
            attend_parts: &self.attend_parts,
            plan: part.head_plan,
            head: self.head.starting_at(params, part.first_logit),
            told,
        }
    }

    /// How the rows of the last step got their logits.
    #[must_use]
    pub fn head_counts(&self) -> HeadCounts {
        self.counts
    }

    /// From now on steps note what [`Findings`] holds.
    pub fn probe(&mut self) {
        for scratch in self.scratch.iter_mut() {
            scratch.probe = Some(Probe::new());
        }
    }

    /// What the workers noted since the last call.
    #[must_use]
    pub fn findings(&mut self) -> Findings {
        let mut all = Findings::default();
        for probe in self.scratch.iter_mut().filter_map(|scratch| scratch.probe.as_mut()) {
            all.add(&probe.take());
        }
        all
    }

    /// The logits of entry `i` of the last step, minus infinity where they do not matter to [`Step::want_best`]; of an
    /// embedding model the row's normalised hidden state.
    #[must_use]
    pub fn logits(&mut self, i: usize) -> &mut [f32] {
        let start = self.logits_start + i * self.width;
        &mut self.buffers.floats_mut()[start..start + self.width]
    }
}

/// Most tokens that [`Step::want_best`] takes beside the best.
const ALSO_MAX: usize = 1024;
