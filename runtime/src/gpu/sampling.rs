//! Tokens chosen from the scores that a device gave, by several threads at a time.
#![expect(unsafe_code, reason = "each row and each thread has its own place")]

use std::sync::Arc;

use tuning::CpuId;

use crate::engine::{Sampled, choose};
use crate::sampler::Sampler;
use crate::schedule::Scheduler;
use crate::shared::PerWorker;
use crate::team::{Counters, Member, Team};

/// The threads, and what they chose last.
pub(super) struct Samplers {
    team: Team,
    counters: Counters,
    samplers: PerWorker<Sampler>,
    /// Slots of the rows of scores; none for a row that nobody wants any more.
    slots: Vec<Option<usize>>,
    sampled: PerWorker<Option<Sampled>>,
}

impl Samplers {
    /// So many threads, the calling one among them, for steps of at most `rows_max` rows of `vocab` scores; the others run on
    /// `cpus`, or where the calling one may.
    pub(super) fn new(vocab: usize, rows_max: usize, threads: usize, cpus: Option<Arc<[CpuId]>>) -> Self {
        let setup = move |_| {
            // They run all the same where that is refused.
            let _ = cpus.as_ref().map(|cpus| tuning::pin(cpus));
        };
        let team = Team::start(threads, setup).or_else(|_| Team::start(1, |_| {}));
        let team = team.expect("a team of one starts no thread");
        Self {
            samplers: PerWorker::new(team.size(), || Sampler::new(vocab)),
            team,
            counters: Counters::new(1),
            slots: Vec::with_capacity(rows_max),
            sampled: PerWorker::new(rows_max, || None),
        }
    }

    /// Forgets the rows of the step before.
    pub(super) fn clear(&mut self) {
        self.slots.clear();
    }

    /// The next row of scores is the sequence's in `slot`, or nobody's.
    pub(super) fn add(&mut self, slot: Option<usize>) {
        self.slots.push(slot);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(super) fn threads(&self) -> usize {
        self.team.size()
    }

    /// Has the guide of each row's sequence say what may come next, for when the scores are there.
    pub(super) fn look_ahead(&mut self, scheduler: &Scheduler) {
        let slots = &self.slots;
        self.each(|i, _| {
            let sequence = slots[i].and_then(|slot| scheduler.sequence(slot));
            // SAFETY: a step has one row of scores of a sequence, and every row is claimed once.
            if let Some(guide) = sequence.and_then(|s| s.guide.as_ref()).and_then(|guide| unsafe { guide.get() }) {
                let _ = guide.allowed();
            }
        });
    }

    /// Chooses a token from each row of `scores`, which are changed.
    pub(super) fn choose(&mut self, scheduler: &Scheduler, scores: &mut [f32]) {
        let Self { samplers, slots, sampled, .. } = &*self;
        let mut rows = scores.chunks_exact_mut(scores.len() / slots.len());
        let rows = PerWorker::new(slots.len(), || rows.next().expect("a row of scores for each slot"));
        self.each(|i, member| {
            // SAFETY: every row is claimed once.
            let row = unsafe { rows.get(i) };
            // SAFETY: likewise its result.
            let result = unsafe { sampled.get(i) };
            // SAFETY: every member has its own.
            let sampler = unsafe { samplers.get(member) };
            let sequence = slots[i].and_then(|slot| scheduler.sequence(slot));
            *result = sequence.and_then(|sequence| {
                // SAFETY: a step has one row of scores of a sequence.
                let guide = sequence.guide.as_ref().and_then(|guide| unsafe { guide.get() });
                choose(sampler, sequence, guide, 0, row)
            });
        });
    }

    /// Does `work` for each row, given the row and the thread that does it; a single row is not worth waking others.
    fn each(&self, work: impl Fn(usize, usize) + Sync) {
        let rows = self.slots.len();
        let claim = |member: Member<'_>| {
            while let Some(i) = member.claim(0, rows) {
                work(i, member.index);
            }
        };
        match rows {
            0 => {}
            1 => self.team.run_alone(&self.counters, claim),
            _ => self.team.run(&self.counters, &claim),
        }
    }

    /// What was chosen from row `i`; `None` where it holds no scores.
    pub(super) fn take(&mut self, i: usize) -> Option<Sampled> {
        self.sampled.get_mut(i).take()
    }
}
