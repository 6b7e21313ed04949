//! The attention phase: which pieces of work it has, and each of them.
//!
//! A piece is a tile of rows of a segment over all positions that they see, or, where few and long sequences would keep
//! some workers waiting, a run of splits of positions of few rows; who finishes the last run of a sequence and head puts
//! the parts together. A unit of work is a piece and a KV head.
#![expect(unsafe_code, reason = "workers write disjoint parts of shared buffers, see each SAFETY line")]

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use kernels::Columns;
use kernels::attention::{self, Parts, Queries, Reading, RowState, SPLIT, Shape, Then};

use super::buffers::Scratch;
use super::pass::{Pass, QUERY_TILE, QUERY_TILE_MAX};
use super::{Limits, Segment, Step};
use crate::model::HyperParameters;
use crate::shared::Shared;
use crate::team::{Member, Padded};

/// The pieces of a step.
#[derive(Default)]
pub(super) struct AttendPlan {
    pieces: Vec<Piece>,
    workers: usize,
    kv_heads: usize,
    /// Rows times splits that there is room for the parts of.
    parts_max: usize,
}

#[derive(Clone, Copy)]
struct Piece {
    segment: Segment,
    /// Rows of the segment.
    first: usize,
    rows: usize,
    cut: Option<Cut>,
}

/// Some splits of a segment that was cut.
#[derive(Clone, Copy)]
struct Cut {
    start: usize,
    end: usize,
    /// Of how many.
    pieces: u32,
    /// Which of the segments that were cut, and how many rows times splits the others before it have.
    nth: usize,
    before: usize,
}

/// What pieces that are runs of splits leave for each other.
pub(super) struct AttendParts {
    states: Shared<RowState>,
    /// Finished pieces of each segment that was cut, for each KV head.
    finished: Box<[Padded<AtomicU32>]>,
}

impl AttendPlan {
    pub(super) fn new(params: &HyperParameters, workers: usize, limits: Limits) -> Self {
        let units = workers * UNITS_PER_WORKER;
        // Segments that are cut have more splits than a unit, so they are fewer than units by KV heads.
        let splits = params.context.div_ceil(SPLIT).min(CONTEXT_SPLITS_MAX);
        let parts_max = if workers == 1 { 0 } else { (units / params.kv_heads + CUT_ROWS_MAX) * splits };
        Self { pieces: Vec::with_capacity(limits.rows_max + 2 * units), workers, kv_heads: params.kv_heads, parts_max }
    }

    /// Makes the pieces of `step`.
    pub(super) fn make(&mut self, step: &Step) {
        let splits = |segment: &Segment| (segment.first_position + segment.rows).div_ceil(SPLIT);
        let all: usize = step.segments.iter().map(|s| s.rows.div_ceil(QUERY_TILE) * splits(s) * self.kv_heads).sum();
        let most = all.div_ceil(self.workers * UNITS_PER_WORKER).max(1);
        let tiles: usize = step.segments.iter().map(|s| s.rows.div_ceil(QUERY_TILE)).sum();
        // Larger ones widen keys and values less often; still enough of them for every worker.
        let many = tiles * self.kv_heads >= self.workers * UNITS_PER_WORKER * 4;
        let tile = if many { QUERY_TILE_MAX } else { QUERY_TILE };
        let (mut nth, mut before) = (0, 0);
        self.pieces.clear();
        for &segment in &step.segments {
            let (rows, splits) = (segment.rows, splits(&segment));
            if rows <= CUT_ROWS_MAX && splits > most && before + rows * splits <= self.parts_max {
                let each = splits.div_ceil(splits.div_ceil(most));
                let pieces = u32::try_from(splits.div_ceil(each)).expect("a context is bounded");
                for start in (0..splits).step_by(each) {
                    let cut = Some(Cut { start, end: splits.min(start + each), pieces, nth, before });
                    self.pieces.push(Piece { segment, first: 0, rows, cut });
                }
                (nth, before) = (nth + 1, before + rows * splits);
                continue;
            }
            // The last rows see most: whoever takes the first ones at the end keeps the others waiting least.
            for first in (0..rows).step_by(tile).rev() {
                self.pieces.push(Piece { segment, first, rows: tile.min(rows - first), cut: None });
            }
        }
    }
}

impl AttendParts {
    /// Floats of all outputs, which lie in the step's buffers.
    pub(super) fn output_floats(params: &HyperParameters, plan: &AttendPlan) -> usize {
        plan.parts_max * params.heads * attention::part_vectors(params.head_dim) * LANES
    }

    pub(super) fn new(params: &HyperParameters, plan: &AttendPlan) -> Self {
        Self {
            states: Shared::new(plan.parts_max * params.heads),
            finished: (0..plan.workers * UNITS_PER_WORKER + params.kv_heads).map(|_| Padded::default()).collect(),
        }
    }
}

impl Pass<'_> {
    pub(super) fn attend(&self, member: Member<'_>, scratch: &mut Scratch, layer: usize, counter: usize) {
        let (pieces, kv_heads) = (&self.attend_plan.pieces, self.weights.params.kv_heads);
        while let Some(unit) = member.claim(counter, pieces.len() * kv_heads) {
            let (piece, head) = (pieces[unit / kv_heads], unit % kv_heads);
            // What this worker is likely to go on with.
            let next = unit + member.team_size();
            let then = pieces.get(next / kv_heads).map_or(Then::NOTHING, |piece| {
                // SAFETY: keys and values were stored before the last barrier; nobody stores in this phase.
                let kv = unsafe { self.kv.view(piece.segment.slot, layer, next % kv_heads) };
                let queries = self.attend_queries(*piece, &self.attend_columns(next % kv_heads));
                let seen = queries.first_position + queries.count;
                let (start, end) = piece.cut.map_or((0, seen), |cut| (cut.start * SPLIT, seen.min(cut.end * SPLIT)));
                Then { cache: Some(Reading { kv, start, end }), queries: queries.values }
            });
            match piece.cut {
                None => self.attend_whole(scratch, (layer, head), piece, then),
                Some(cut) => self.attend_cut(scratch, (layer, head), (piece, cut), then.cache),
            }
        }
    }

    fn attend_shape(&self) -> Shape {
        let params = &self.weights.params;
        Shape { head_dim: params.head_dim, group: params.heads / params.kv_heads, scale: params.attention_scale }
    }

    /// The columns of a head's queries and results.
    fn attend_columns(&self, head: usize) -> Range<usize> {
        let part = self.weights.params.attention_width() / self.weights.params.kv_heads;
        head * part..(head + 1) * part
    }

    fn attend_queries(&self, piece: Piece, columns: &Range<usize>) -> Queries<'_> {
        let width = self.weights.params.attention_width();
        let (row, count) = (piece.segment.first_row + piece.first, piece.rows);
        let range = row * width + columns.start..(row + count - 1) * width + columns.end;
        // SAFETY: queries were written before the last barrier and are only read now.
        let values = unsafe { self.buffers.q.read(range) };
        Queries { first_position: piece.segment.first_position + piece.first, count, values, stride: width }
    }

    fn attend_whole(&self, scratch: &mut Scratch, (layer, head): (usize, usize), piece: Piece, then: Then<'_>) {
        let columns = self.attend_columns(head);
        let queries = self.attend_queries(piece, &columns);
        // SAFETY: keys and values were stored before the last barrier; nobody stores in this phase.
        let kv = unsafe { self.kv.view(piece.segment.slot, layer, head) };
        let out = self.attend_results(piece, &columns);
        attention::attend(self.isa, self.attend_shape(), (kv, then), queries, out, &mut scratch.attention);
    }

    fn attend_cut(
        &self,
        scratch: &mut Scratch,
        (layer, head): (usize, usize),
        (piece, cut): (Piece, Cut),
        then: Option<Reading<'_>>,
    ) {
        let (params, shape) = (&self.weights.params, self.attend_shape());
        let (columns, vectors) = (self.attend_columns(head), attention::part_vectors(params.head_dim));
        let queries = self.attend_queries(piece, &columns);
        // SAFETY: keys and values were stored before the last barrier; nobody stores in this phase.
        let kv = unsafe { self.kv.view(piece.segment.slot, layer, head) };
        let (rows, splits) = (piece.rows * shape.group, queries.splits());
        let first = cut.before * params.heads + head * splits * rows;
        let parts_of = |splits: Range<usize>| {
            let range = first + splits.start * rows..first + splits.end * rows;
            let outputs = range.start * vectors * LANES..range.end * vectors * LANES;
            // SAFETY: these splits of this segment and head are this worker's, by the claim or as the last one to finish.
            let states = unsafe { self.attend_parts.states.write(range) };
            // SAFETY: as above.
            let outputs = unsafe { self.buffers.parts.write(outputs) };
            Parts { states, outputs: outputs.as_chunks_mut().0 }
        };
        let part = (cut.start..cut.end, parts_of(cut.start..cut.end));
        attention::attend_splits(self.isa, shape, (kv, then), queries, part, &mut scratch.attention);
        let finished = &self.attend_parts.finished[cut.nth * params.kv_heads + head].0;
        // Releases this part, and acquires those of all others where it is the last.
        if finished.fetch_add(1, Ordering::AcqRel) + 1 < cut.pieces {
            return;
        }
        finished.store(0, Ordering::Relaxed);
        attention::merge(self.isa, shape, queries, parts_of(0..splits), self.attend_results(piece, &columns));
    }

    fn attend_results(&self, piece: Piece, columns: &Range<usize>) -> Columns<'_> {
        let width = self.weights.params.attention_width();
        let (row, count) = (piece.segment.first_row + piece.first, piece.rows);
        let range = row * width + columns.start..(row + count - 1) * width + columns.end;
        // SAFETY: one worker alone has results for these rows and this head: by the claim, or as the last one to finish.
        Columns { cells: unsafe { self.buffers.attention.cells(range) }, stride: width }
    }
}

/// Floats of a vector of a part's outputs.
const LANES: usize = 16;
/// Pieces of a phase for each worker, where there are long sequences to cut.
const UNITS_PER_WORKER: usize = 6;
/// Rows of a segment that is cut: a token, or one with drafts.
const CUT_ROWS_MAX: usize = 4;
/// Splits of a sequence that parts are kept for, each of a few sequences; longer ones are cut where only one is long.
const CONTEXT_SPLITS_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(workers: usize) -> AttendPlan {
        AttendPlan { pieces: Vec::with_capacity(64), workers, kv_heads: 5, parts_max: 1000 }
    }

    fn step(sequences: &[(usize, usize)]) -> Step {
        let mut step = Step::default();
        for (slot, &(first_position, rows)) in sequences.iter().enumerate() {
            step.push(slot, first_position, &vec![0; rows], false);
        }
        step
    }

    /// Splits of each piece, none of an uncut one.
    fn cuts(plan: &AttendPlan) -> Vec<Option<(usize, usize)>> {
        plan.pieces.iter().map(|piece| piece.cut.map(|cut| (cut.start, cut.end))).collect()
    }

    #[test]
    fn one_long_sequence_is_cut_for_several_workers_and_not_for_one() {
        let mut plan = plan(2);
        plan.make(&step(&[(4095, 1)]));
        assert_eq!(cuts(&plan), [Some((0, 6)), Some((6, 12)), Some((12, 16))]);
        assert!(plan.pieces.iter().all(|piece| piece.cut.is_some_and(|cut| cut.pieces == 3)));
        plan.workers = 16;
        plan.make(&step(&[(4095, 1)]));
        assert_eq!(cuts(&plan).len(), 16);
        (plan.workers, plan.parts_max) = (1, 0);
        plan.make(&step(&[(4095, 1)]));
        assert_eq!(cuts(&plan), [None]);
    }

    #[test]
    fn many_sequences_are_not_cut_but_for_one_that_is_much_longer() {
        let mut plan = plan(2);
        plan.make(&step(&[(600, 1); 16]));
        assert_eq!(cuts(&plan), [None; 16]);
        let mut sequences = [(100, 1); 16];
        sequences[7] = (8191, 1);
        plan.make(&step(&sequences));
        let cuts = cuts(&plan);
        assert_eq!(cuts.iter().filter(|cut| cut.is_none()).count(), 15);
        assert_eq!(cuts.iter().flatten().map(|(start, end)| end - start).sum::<usize>(), 32);
    }

    #[test]
    fn rows_of_a_prompt_go_in_tiles_and_what_finds_no_room_stays_whole() {
        let mut plan = plan(2);
        plan.make(&step(&[(0, 70), (2000, 1)]));
        let rows: Vec<usize> = plan.pieces.iter().map(|piece| piece.rows).collect();
        assert_eq!(rows[..3], [6, 32, 32]);
        assert!(plan.pieces[..3].iter().all(|piece| piece.cut.is_none()));
        plan.make(&step(&[(0, 350)]));
        let rows: Vec<usize> = plan.pieces.iter().map(|piece| piece.rows).collect();
        assert_eq!(rows, [30, 64, 64, 64, 64, 64]);
        assert_eq!(plan.pieces.last().map(|piece| piece.first), Some(0));
        plan.parts_max = 15;
        plan.make(&step(&[(4095, 1)]));
        assert_eq!(cuts(&plan), [None]);
    }
}
