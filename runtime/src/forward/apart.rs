//! Steps of which every worker takes some sequences through all layers by itself.
//!
//! Rows that all workers compute together cost them seven barriers a layer, and each puts the activations of all rows in
//! panels. Where the weights are so few that every worker may read all of them, each computes its own rows instead and
//! waits for nobody: no row needs another sequence's. The bits are the same, as those of a row never depend on its batch.

use std::ops::Range;

use kernels::Isa;

use super::attend::AttendPlan;
use super::head::{COUNTERS_AROUND, HeadCounts, HeadPlan};
use super::{Limits, Part, Segment, Step, pass};
use crate::model::{HyperParameters, Weights};
use crate::team::{Counters, Member};

/// The shares of a step, the same number for each worker; none where the model's steps never go apart.
pub(super) struct Apart {
    shares: Vec<Share>,
    workers: usize,
    /// How many of the shares each worker has in this step.
    each: usize,
    /// How many positions a row attends to in the time that its linear layers take.
    row_positions: usize,
    /// Fewest rows of a share on average: where each worker has one, and where it has several.
    rows_min: usize,
    rows_min_of_several: usize,
    /// Whether the weights stay in the cache of every worker.
    near: bool,
    /// Gives out the shares of each worker.
    pub(super) counters: Counters,
}

/// Some rows of a step, which one worker takes through all layers.
#[derive(Default)]
pub(super) struct Share {
    pub(super) step: Step,
    /// Where its rows are in the buffers, and its logits among those of the step.
    pub(super) first_row: usize,
    pub(super) first_logit: usize,
    /// Which share it is.
    pub(super) index: usize,
    pub(super) attend_plan: AttendPlan,
    pub(super) head_plan: HeadPlan,
    pub(super) counters: Counters,
}

impl Apart {
    pub(super) fn new(params: &HyperParameters, workers: usize, limits: Limits) -> Self {
        let (width, kv_width) = (params.attention_width(), params.kv_heads * params.head_dim);
        let layer = params.hidden * (2 * (width + kv_width) + 3 * params.feed_forward);
        let weights = params.layers * layer;
        let few = weights <= WEIGHTS_MAX && !params.family.is_embedding();
        let workers = if few && workers > 1 { workers } else { 0 };
        let near = weights <= NEAR_WEIGHTS_MAX;
        Self {
            shares: (0..workers * SHARES_MAX).map(|index| Share::new(params, limits, index)).collect(),
            workers,
            each: 1,
            row_positions: layer / (2 * width * PRODUCTS_PER_FLOAT),
            rows_min: if near { 1 } else { 2 },
            rows_min_of_several: if near { 16 } else { 32 },
            near: near && workers > 0,
            counters: Counters::new(workers),
        }
    }

    /// Most shares of a step.
    pub(super) fn shares_max(&self) -> usize {
        self.shares.len()
    }

    /// Whether `step` is a few rows of one sequence that one worker computes about as soon as all of them: layers of so few
    /// weights cost no more than their barriers, and the other cores have time for sockets and clients.
    pub(super) fn is_for_one(&self, step: &Step) -> bool {
        let [segment] = step.segments[..] else { return false };
        self.near && segment.rows <= ALONE_ROWS_MAX && segment.first_position < self.row_positions
    }

    /// Cuts `step` into shares, several for each worker where it has rows for them: who is held up has one taken from it.
    /// `false` where the step is better computed together.
    pub(super) fn cut(&mut self, step: &Step) -> bool {
        let rows = step.tokens.len();
        if self.workers == 0 || rows < self.workers * self.rows_min {
            return false;
        }
        let several = (rows / (self.workers * self.rows_min_of_several)).clamp(1, SHARES_MAX);
        (1..=several).rev().any(|each| self.cut_into(each, step))
    }

    fn cut_into(&mut self, each: usize, step: &Step) -> bool {
        let shares = self.workers * each;
        let all: usize = step.segments.iter().map(|segment| self.cost(segment)).sum();
        let (mut start, mut before) = (0, 0);
        for index in 0..shares {
            let (mut end, mut cost) = (start, 0);
            while let Some(segment) = step.segments.get(end) {
                let next = self.cost(segment);
                // It belongs to the share that its middle lies in.
                if (2 * (before + cost) + next) * shares > 2 * all * (index + 1) {
                    break;
                }
                (cost, end) = (cost + next, end + 1);
            }
            if cost * shares * 100 > all * LARGEST_SHARE_PERCENT {
                return false;
            }
            let share = &mut self.shares[index];
            share.first_row = step.segments.get(start).map_or(0, |segment| segment.first_row);
            share.first_logit = share.step.copy_segments(step, start..end);
            (start, before) = (end, before + cost);
        }
        self.each = each;
        true
    }

    /// Plans what is done with each share of the step that was cut.
    pub(super) fn plan(&mut self, isa: Isa, weights: &Weights) {
        for share in &mut self.shares[..self.workers * self.each] {
            share.attend_plan.make(&share.step);
            share.head_plan.make(isa, weights, &share.step);
        }
    }

    /// The next share for `member`, of its own or of those that another worker has not come to. Its own are the same
    /// sequences from step to step, whose keys and values lie in its cache.
    pub(super) fn claim(&self, member: Member<'_>) -> Option<&Share> {
        (0..self.workers).find_map(|offset| {
            let whose = (member.index + offset) % self.workers;
            let nth = member.claim(whose, self.each)?;
            Some(&self.shares[whose * self.each + nth])
        })
    }

    /// How the rows of the last step got their logits, if it went apart, and its screened rows found so many tokens.
    pub(super) fn count(&mut self, found: &[u32], vocab: usize) -> HeadCounts {
        let mut all = HeadCounts::default();
        for share in &mut self.shares[..self.workers * self.each] {
            all.add(share.head_plan.count(&found[share.first_logit..], vocab));
        }
        all
    }

    /// What a segment costs, in positions that a row attends to.
    fn cost(&self, segment: &Segment) -> usize {
        segment.rows * (self.row_positions + segment.first_position + segment.rows / 2)
    }
}

impl<'a> From<&'a Share> for Part<'a> {
    fn from(share: &'a Share) -> Self {
        let Share { step, attend_plan, head_plan, .. } = share;
        let (place, first_logit) = ((share.first_row, share.index), share.first_logit);
        Part { step, place, first_logit, attend_plan, head_plan }
    }
}

impl Share {
    fn new(params: &HyperParameters, limits: Limits, index: usize) -> Self {
        Self {
            step: Step::with_capacity(limits),
            first_row: 0,
            first_logit: 0,
            index,
            attend_plan: AttendPlan::new(params, 1, limits),
            head_plan: HeadPlan::with_capacity(limits.logits_max),
            counters: Counters::new(params.layers * pass::COUNTERS_PER_LAYER + COUNTERS_AROUND),
        }
    }
}

impl Step {
    /// Becomes the rows of some segments of another step; which of that step's entries of `logits` is its first.
    fn copy_segments(&mut self, from: &Self, segments: Range<usize>) -> usize {
        self.clear();
        let segments = &from.segments[segments];
        let first = segments.first().map_or(0, |segment| segment.first_row);
        let end = segments.last().map_or(0, |segment| segment.first_row + segment.rows);
        self.tokens.extend_from_slice(&from.tokens[first..end]);
        let moved = |segment: &Segment| Segment { first_row: segment.first_row - first, ..*segment };
        self.segments.extend(segments.iter().map(moved));
        let entry = |row: usize| from.logits.partition_point(|wanted| *wanted < row);
        let entries = entry(first)..entry(end);
        self.logits.extend(from.logits[entries.clone()].iter().map(|row| row - first));
        let known = from.best.len();
        let best = entries.start.min(known)..entries.end.min(known);
        let also = |entries: Range<usize>| from.best[entries].iter().map(|best| best.also).sum::<usize>();
        let before = also(0..best.start);
        self.also.extend_from_slice(&from.also[before..before + also(best.clone())]);
        self.best.extend_from_slice(&from.best[best]);
        entries.start
    }
}

/// Most ternary weights of a model whose workers read all of them each.
const WEIGHTS_MAX: usize = 128 << 20;
/// Most of one whose workers do so for few rows: half of a second-level cache. (2 rows on 2 workers: a model of 2.4 million
/// weights decodes 29600 tok/s in place of 20400, one of 37 million 2410 in place of 3230. Of 680 million weights 8 rows
/// 401 in place of 417, 32 rows 458 in place of 452.)
const NEAR_WEIGHTS_MAX: usize = 4 << 20;
/// Most rows of a sequence that one worker of such a model computes alone. (One row on 1 and 2 workers 16,400 and 14,600 to
/// 16,300 tok/s, a prompt of 16 rows 0.30 and 0.26 ms.)
const ALONE_ROWS_MAX: usize = 8;
/// Most shares of a worker.
const SHARES_MAX: usize = 4;
/// Steps whose largest share would be more of an average one than that are cut into fewer, or not at all.
const LARGEST_SHARE_PERCENT: usize = 125;
/// Products of the linear layers in the time of one product of attention.
const PRODUCTS_PER_FLOAT: usize = 8;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;
    use crate::forward::Reach;
    use crate::team::Team;

    fn apart(workers: usize) -> Apart {
        Apart {
            shares: (0..workers * SHARES_MAX).map(|_| Share::default()).collect(),
            workers,
            each: 1,
            row_positions: 100,
            rows_min: 2,
            rows_min_of_several: 4,
            near: false,
            counters: Counters::new(workers),
        }
    }

    /// A step of segments of (first position, rows), whose last rows want logits.
    fn step(segments: &[(usize, usize)]) -> Step {
        let mut step = Step::default();
        for (slot, &(first_position, rows)) in segments.iter().enumerate() {
            step.push(slot, first_position, &vec![u32::try_from(slot).unwrap(); rows], true);
        }
        step
    }

    #[test]
    fn every_segment_is_in_one_share_with_its_tokens_and_logits() {
        for workers in 2..5 {
            let mut apart = apart(workers);
            for count in 2 * workers..40 {
                let step = step(&(0..count).map(|i| (i, 1 + i % 2)).collect::<Vec<_>>());
                if !apart.cut(&step) {
                    assert!(count < 8 * workers, "{count} like sequences part evenly");
                    continue;
                }
                let (mut slot, mut row, mut entry) = (0, 0, 0);
                for share in apart.shares[..workers * apart.each].iter().filter(|share| !share.step.tokens.is_empty()) {
                    assert_eq!((share.first_row, share.first_logit), (row, entry));
                    for (i, segment) in share.step.segments.iter().enumerate() {
                        let whole = step.segments[slot];
                        assert_eq!((segment.slot, segment.rows), (whole.slot, whole.rows));
                        assert_eq!(
                            (segment.first_position, segment.first_row),
                            (whole.first_position, whole.first_row - row)
                        );
                        assert_eq!(share.step.logits[i], segment.first_row + segment.rows - 1);
                        slot += 1;
                    }
                    let rows = share.step.tokens.len();
                    assert_eq!(share.step.tokens, step.tokens[row..row + rows]);
                    (row, entry) = (row + rows, entry + share.step.logits.len());
                }
                assert_eq!((slot, row, entry), (count, step.tokens.len(), count), "nothing is left out");
            }
        }
    }

    #[test]
    fn uneven_steps_and_few_rows_stay_together() {
        let mut apart = apart(2);
        assert!(!apart.cut(&step(&[])), "nothing");
        assert!(!apart.cut(&step(&[(0, 1), (0, 1)])), "a row each");
        assert!(!apart.cut(&step(&[(0, 64)])), "a prompt alone");
        assert!(!apart.cut(&step(&[(0, 64), (3, 1), (9, 1)])), "a prompt among others");
        assert!(!apart.cut(&step(&[(5000, 1), (3, 1), (9, 1), (1, 1)])), "one that attends to much");
        assert!(!apart.cut(&step(&[(0, 2); 3])), "two on one side");
        assert!(apart.cut(&step(&[(0, 64), (0, 60)])), "two prompts");
        assert!(apart.cut(&step(&[(5000, 1), (4500, 1)].repeat(2))));
        apart.rows_min = 1;
        assert!(apart.cut(&step(&[(0, 1), (0, 1)])));
        assert!(!self::apart(0).cut(&step(&[(0, 1); 32])), "a model or a team that never goes apart");
    }

    #[test]
    fn few_rows_of_one_sequence_of_a_small_model_are_for_one_worker() {
        let one = Apart { near: true, ..apart(2) };
        for (segments, is_for_one) in [
            (&[(0, 1)][..], true),
            (&[(99, ALONE_ROWS_MAX)], true),
            (&[(0, ALONE_ROWS_MAX + 1)], false),
            (&[(100, 1)], false),
            (&[(0, 1), (0, 1)], false),
            (&[], false),
        ] {
            assert_eq!(one.is_for_one(&step(segments)), is_for_one, "{segments:?}");
            assert!(!apart(2).is_for_one(&step(segments)), "a model whose weights are many");
        }
    }

    #[test]
    fn workers_have_several_shares_where_there_are_rows_for_them() {
        let mut apart = apart(2);
        for (rows, each) in [(8, 1), (16, 2), (24, 3), (32, 4), (100, 4)] {
            assert!(apart.cut(&step(&vec![(7, 1); rows])));
            assert_eq!(apart.each, each, "{rows} rows");
        }
        assert!(apart.cut(&step(&[(0, 30), (0, 31)])));
        assert_eq!(apart.each, 1, "a prompt is not cut");
    }

    #[test]
    fn shares_of_one_who_is_held_up_are_taken_by_others() {
        let mut apart = apart(3);
        assert!(apart.cut(&step(&[(7, 1); 48])));
        assert_eq!(apart.each, 4);
        let team = Team::start(3, |_| {}).unwrap();
        let (begun, left) = (AtomicBool::new(false), AtomicUsize::new(11));
        team.run(&apart.counters, &|member| {
            let wait = |done: &dyn Fn() -> bool| {
                while !done() {
                    std::thread::yield_now();
                }
            };
            if member.index == 1 {
                // It computes one of its own until the others have all else.
                assert_eq!(apart.claim(member).expect("nobody else has begun").first_row, 16);
                begun.store(true, Ordering::Release);
                wait(&|| left.load(Ordering::Acquire) == 0);
            }
            wait(&|| begun.load(Ordering::Acquire));
            while apart.claim(member).is_some() {
                left.fetch_sub(1, Ordering::Release);
            }
        });
        assert_eq!(left.into_inner(), 0);
    }

    #[test]
    fn what_rows_want_goes_with_them() {
        let reach = |count| Reach { count, distance: 0.5, draw: None };
        let mut whole = Step::default();
        for slot in 0..6_u32 {
            whole.push(slot as usize, 7, &[slot], true);
            // The last two want all.
            if slot < 4 {
                whole.want_best(reach(1 + slot as usize), (0..slot).map(|token| 10 * slot + token));
            }
        }
        let wants = |step: &Step| -> Vec<_> {
            let also = |range: Range<usize>| step.also[range].to_vec();
            step.wanted().map(|wanted| wanted.map(|(reach, range)| (reach, also(range)))).collect()
        };
        let mut apart = apart(2);
        assert!(apart.cut(&whole));
        let parts: Vec<_> = apart.shares[..2 * apart.each].iter().flat_map(|share| wants(&share.step)).collect();
        assert_eq!(parts, wants(&whole));
        assert_eq!(parts[3], Some((reach(4), vec![30, 31, 32])));
        assert!(parts[4..].iter().all(Option::is_none));
    }
}
