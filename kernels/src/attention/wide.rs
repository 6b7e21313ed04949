//! Many rows over the same positions, as in prompts: keys and values are widened to f32 once for all of them.

#![expect(clippy::needless_range_loop, reason = "register tiles are indexed by row and vector, as they are defined")]

use std::ops::Range;

use super::ahead::Ahead;
use super::halves::round;
use super::rows::{Rows, WIDE_ROWS_MAX};
use super::tile::{Divisor, RowState, column, merged, soften};
use super::{BLOCK, CHAIN, GROUP, KvView, SPLIT};
use crate::simd::{Kernel, LANES, Simd};

/// Working memory of a pass.
#[derive(Debug)]
pub(super) struct WideScratch {
    /// Scores, then softmax weights, of a split.
    weights: Vec<Weights>,
    /// The keys of a block, or two columns of vectors of a split's values.
    wide: Vec<Line>,
    merges: Vec<Merge>,
}

/// A vector that crosses no cache line: one in two loads of others takes two.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// Weights of a row, in whole cache lines.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Weights {
    of: [f32; SPLIT],
    /// Of each lane the greatest score so far; it keeps rows from lying in the same lines of a first-level cache, too.
    greatest: [f32; LANES],
}

/// What becomes of a row's sums of a split.
#[derive(Clone, Copy, Debug, Default)]
struct Merge {
    /// Factors of the sums before and of these.
    old: f32,
    new: f32,
    /// Of all weights so far, and 1 over it.
    sum: f32,
    inverse: f32,
}

impl WideScratch {
    pub(super) fn new(head_dim_max: usize) -> Self {
        Self {
            weights: vec![Weights { of: [0.0; SPLIT], greatest: [0.0; LANES] }; WIDE_ROWS_MAX],
            wide: vec![Line([0.0; LANES]); (head_dim_max * BLOCK / GROUP).max(2 * SPLIT)],
            merges: vec![Merge::default(); WIDE_ROWS_MAX],
        }
    }
}

/// Rows of ascending positions over all splits that they see.
pub(super) struct Wide<'a> {
    pub(super) scale: f32,
    pub(super) kv: KvView<'a>,
    pub(super) rows: Rows<'a>,
    /// Room for queries rounded to F16, `[chain][row]`: the rows of a tile lie a fixed distance apart, so that its products
    /// need no sums of addresses.
    pub(super) q: &'a mut [[f32; CHAIN]],
    pub(super) ahead: Ahead<'a>,
    /// Queries that are likely to be read next.
    pub(super) next: &'a [f32],
    pub(super) scratch: &'a mut WideScratch,
    pub(super) states: &'a mut [RowState],
    /// `[row][vector]`.
    pub(super) outputs: &'a mut [[f32; LANES]],
}

/// Runs a method of a tile for the rows from `$first` to `$end`, as many at a time as there are registers for.
macro_rules! in_tiles {
    ($simd:ty, $first:expr, $end:expr, |$row:ident, $rows:ident| $call:expr) => {
        let mut $row = $first;
        while $row < $end {
            match ($end - $row).min(<$simd>::TILE_ROWS) {
                8.. => {
                    const $rows: usize = 8;
                    $call;
                    $row += $rows;
                }
                6..8 => {
                    const $rows: usize = 6;
                    $call;
                    $row += $rows;
                }
                4..6 => {
                    const $rows: usize = 4;
                    $call;
                    $row += $rows;
                }
                2..4 => {
                    const $rows: usize = 2;
                    $call;
                    $row += $rows;
                }
                _ => {
                    const $rows: usize = 1;
                    $call;
                    $row += $rows;
                }
            }
        }
    };
}

impl<'a> Wide<'a> {
    #[inline(always)]
    pub(super) fn run<S: Simd>(mut self, s: S) {
        let rows = self.rows.count();
        for split in 0..self.rows.splits() {
            // Earlier rows have seen all that they see.
            let first = self.rows.first_that_sees(split * SPLIT);
            self.score(s, split);
            for start in (first..rows).step_by(SOFT_ROWS) {
                self.soften(s, split, start..rows.min(start + SOFT_ROWS));
            }
            self.mix(s, split, first);
        }
    }

    /// Scores of the rows that see anything of the split, a block of keys after the other; keys that no row of a tile sees
    /// are left out. What is read next, keys and values of a block for each block of keys, is asked for meanwhile.
    #[inline(always)]
    fn score<S: Simd>(&mut self, s: S, split: usize) {
        let rows = self.rows.count();
        let longest = self.rows.seen(rows - 1, split);
        for start in (0..longest).step_by(BLOCK) {
            let keys = self.kv.block((split * SPLIT + start) / BLOCK).0;
            let groups = (longest - start).div_ceil(GROUP).min(BLOCK / GROUP);
            for (group, keys) in keys.chunks_exact(self.rows.head_dim).take(groups).enumerate() {
                for (key, wide) in keys.iter().zip(self.scratch.wide.as_chunks_mut::<{ BLOCK / GROUP }>().0) {
                    s.store(s.load_f16(key), &mut wide[group].0);
                }
            }
            let first = self.rows.first_that_sees(split * SPLIT + start);
            let asked = 2 * BLOCK * self.rows.head_dim * S::TILE_ROWS / (rows - first);
            in_tiles!(S, first, rows, |row, R| {
                self.ahead.ask(s, asked);
                if split == 0 && start == 0 {
                    self.round_queries(s, row..row + R);
                }
                let groups = (self.rows.seen(row + R - 1, split) - start).div_ceil(GROUP).min(BLOCK / GROUP);
                if groups == 2 && S::TILE_WIDTH == 2 {
                    s.apart(ScoreTile::<R, 2> { wide: self, row, group: 0, place: (split, start) });
                } else {
                    for group in 0..groups {
                        let place = (split, start + group * GROUP);
                        s.apart(ScoreTile::<R, 1> { wide: self, row, group, place });
                    }
                }
            });
        }
    }

    /// Rounds the queries of some rows just before they are wanted for the first time, and asks for as many that come next:
    /// all at once they would be waited for.
    #[inline(always)]
    fn round_queries<S: Simd>(&mut self, s: S, rows: Range<usize>) {
        let count = self.rows.count();
        for row in rows.clone() {
            for (chain, part) in self.rows.query(row).chunks(CHAIN).enumerate() {
                round(s, part, &mut self.q[chain * count + row][..part.len()]);
            }
        }
        for row in rows.end..count.min(rows.end + rows.len()) {
            for line in self.rows.query(row).chunks(LANES) {
                s.prefetch(line.as_ptr());
            }
        }
    }

    /// Scores of R rows and W groups of keys, to position `place` of the split and the following, and the greatest so far;
    /// minus infinity where a row does not see.
    #[inline(always)]
    fn score_tile<S: Simd, const R: usize, const W: usize>(
        &mut self,
        s: S,
        row: usize,
        group: usize,
        (split, place): (usize, usize),
    ) {
        let (head_dim, rows) = (self.rows.head_dim, self.rows.count());
        let mut total = [[s.splat(0.0); W]; R];
        let keys = &self.scratch.wide.as_chunks().0[..head_dim];
        for (chain, keys) in keys.chunks(CHAIN).enumerate() {
            let q = self.q[chain * rows + row..].first_chunk().expect("rows of the pass");
            let sum = match keys.first_chunk::<CHAIN>() {
                Some(keys) => multiply(s, q, keys, group),
                None => multiply(s, q, keys, group),
            };
            if chain == 0 {
                // A sum of products of halves is no negative zero, so that adding it to nothing changes nothing.
                total = sum;
                continue;
            }
            for r in 0..R {
                for w in 0..W {
                    total[r][w] = s.add(total[r][w], sum[r][w]);
                }
            }
        }
        let (scale, nothing) = (s.splat(self.scale), s.splat(f32::NEG_INFINITY));
        for r in 0..R {
            for w in 0..W {
                total[r][w] = s.mul(total[r][w], scale);
            }
        }
        if self.rows.seen(row, split) < place + W * GROUP {
            for r in 0..R {
                for w in 0..W {
                    let live = self.rows.seen(row + r, split).saturating_sub(place + w * GROUP);
                    total[r][w] = s.first_lanes(total[r][w], live, nothing);
                }
            }
        }
        for r in 0..R {
            let Weights { of, greatest } = &mut self.scratch.weights[row + r];
            let mut most = if place == 0 { nothing } else { s.load(greatest) };
            let scores = of[place..][..W * GROUP].as_chunks_mut::<LANES>().0;
            for w in 0..W {
                most = s.max(total[r][w], most);
                s.store(total[r][w], &mut scores[w]);
            }
            s.store(most, greatest);
        }
    }

    /// Scores of some rows to weights. A loop each: what a row waits for is done beside the others.
    #[inline(always)]
    fn soften<S: Simd>(&mut self, s: S, split: usize, rows: Range<usize>) {
        let mut max = [0.0; SOFT_ROWS];
        for (row, max) in rows.clone().zip(&mut max) {
            *max = s.greatest(s.load(&self.scratch.weights[row].greatest));
        }
        for (row, max) in rows.zip(max) {
            let count = self.rows.seen(row, split);
            let part = soften(s, &mut self.scratch.weights[row].of, count, max);
            let (state, [old, new]) = if split == 0 { (part, [0.0; 2]) } else { merged(self.states[row], part) };
            self.states[row] = state;
            self.scratch.merges[row] = Merge { old, new, sum: state.sum, inverse: 1.0 / state.sum };
        }
    }

    /// Adds the weighted values of the split to the outputs of the rows from `first` on, some columns after the other.
    #[inline(always)]
    fn mix<S: Simd>(&mut self, s: S, split: usize, first: usize) {
        let (rows, vectors) = (self.rows.count(), self.rows.head_dim.div_ceil(LANES));
        let longest = self.rows.seen(rows - 1, split);
        let mut v = 0;
        while v < vectors {
            let width = if v + 1 < vectors { S::TILE_WIDTH } else { 1 };
            match width {
                2 => self.widen_values::<S, 2>(s, (split, longest), v),
                _ => self.widen_values::<S, 1>(s, (split, longest), v),
            }
            in_tiles!(S, first, rows, |row, R| {
                if width == 2 {
                    s.apart(MixTile::<R, 2> { wide: self, split, row, v });
                } else {
                    s.apart(MixTile::<R, 1> { wide: self, split, row, v });
                }
            });
            v += width;
        }
    }

    /// W vectors of the values of the first `longest` positions, and of those that share their blocks. All loads of some
    /// positions before their stores: a load waits for a store to the same place of another page.
    #[inline(always)]
    fn widen_values<S: Simd, const W: usize>(&mut self, s: S, (split, longest): (usize, usize), v: usize) {
        let head_dim = self.rows.head_dim;
        let wide = self.scratch.wide.as_chunks_mut::<W>().0.as_chunks_mut::<BLOCK>().0;
        let columns: [usize; W] = std::array::from_fn(|w| column(v + w, head_dim));
        for (block, wide) in wide.iter_mut().take(longest.div_ceil(BLOCK)).enumerate() {
            let values = self.kv.block(split * (SPLIT / BLOCK) + block).1;
            for (values, wide) in values.chunks_exact(8 * head_dim).zip(wide.as_chunks_mut::<8>().0) {
                let mut loaded = [[s.splat(0.0); W]; 8];
                for (values, loaded) in values.chunks_exact(head_dim).zip(&mut loaded) {
                    for w in 0..W {
                        loaded[w] = s.load_f16(values[columns[w]..].first_chunk().expect("a whole vector"));
                    }
                }
                for (wide, loaded) in wide.iter_mut().zip(loaded) {
                    for w in 0..W {
                        s.store(loaded[w], &mut wide[w].0);
                    }
                }
            }
        }
    }

    /// Asks for what is far, of some rows behind their last split: where the results of the next columns belong, and as many
    /// columns of the queries that come next.
    #[inline(always)]
    fn ask_far<S: Simd, const W: usize>(&self, s: S, split: usize, rows: Range<usize>, v: usize) {
        for row in rows {
            if self.rows.position(row) / SPLIT > split {
                continue;
            }
            for w in 0..W {
                let start = (v + w) * LANES;
                if let Some(result) = self.rows.result(row).get(start + W * LANES..) {
                    s.prefetch(result.as_ptr());
                }
                s.prefetch(self.rows.following(self.next, row, start).as_ptr());
            }
        }
    }

    /// The sums of R rows and W vectors, in the order of positions, merged with what the splits before gave; behind the last
    /// one the results: stores to lines that are far wait beside the products of the next tile.
    #[inline(always)]
    fn mix_tile<S: Simd, const R: usize, const W: usize>(&mut self, s: S, split: usize, row: usize, v: usize) {
        let vectors = self.rows.head_dim.div_ceil(LANES);
        let weights = self.scratch.weights[row..].first_chunk::<R>().expect("rows of the pass");
        let wide = self.scratch.wide.as_chunks::<W>().0.first_chunk::<SPLIT>().expect("room for a split");
        let (common, longest) = (self.rows.seen(row, split), self.rows.seen(row + R - 1, split));
        self.ask_far::<S, W>(s, split, row..row + R, v);
        let mut sum = [[s.splat(0.0); W]; R];
        assert!(common <= SPLIT && longest <= SPLIT, "positions of a split");
        for p in 0..common {
            let mut value = [s.splat(0.0); W];
            for w in 0..W {
                value[w] = s.load(&wide[p][w].0);
            }
            for r in 0..R {
                let weight = s.splat(weights[r].of[p]);
                for w in 0..W {
                    sum[r][w] = s.fma(weight, value[w], sum[r][w]);
                }
            }
        }
        // A position that a row does not see never enters its sum.
        for p in common..longest {
            for r in 0..R {
                if p < self.rows.seen(row + r, split) {
                    let weight = s.splat(weights[r].of[p]);
                    for w in 0..W {
                        sum[r][w] = s.fma(weight, s.load(&wide[p][w].0), sum[r][w]);
                    }
                }
            }
        }
        for r in 0..R {
            let Merge { old, new, sum: weight, inverse } = self.scratch.merges[row + r];
            let last = self.rows.position(row + r) / SPLIT == split;
            let (to, divisor) = (self.rows.result(row + r), Divisor::new(s, weight, inverse));
            let outputs = &mut self.outputs[(row + r) * vectors + v..][..W];
            for (w, output) in outputs.iter_mut().enumerate() {
                let mut value = sum[r][w];
                if split > 0 {
                    value = s.fma(value, s.splat(new), s.mul(s.load(output), s.splat(old)));
                }
                if last {
                    let to = to[column(v + w, self.rows.head_dim)..].first_chunk().expect("a whole vector");
                    s.store_cells(divisor.divide(s, value), to);
                } else {
                    s.store(value, output);
                }
            }
        }
    }
}

/// [`Wide::score_tile`], in a function of its own.
struct ScoreTile<'w, 'a, const R: usize, const W: usize> {
    wide: &'w mut Wide<'a>,
    row: usize,
    group: usize,
    place: (usize, usize),
}

impl<const R: usize, const W: usize> Kernel for ScoreTile<'_, '_, R, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.wide.score_tile::<S, R, W>(s, self.row, self.group, self.place);
    }
}

/// [`Wide::mix_tile`], in a function of its own.
struct MixTile<'w, 'a, const R: usize, const W: usize> {
    wide: &'w mut Wide<'a>,
    split: usize,
    row: usize,
    v: usize,
}

impl<const R: usize, const W: usize> Kernel for MixTile<'_, '_, R, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.wide.mix_tile::<S, R, W>(s, self.split, self.row, self.v);
    }
}

/// Rows whose weights are made together: their scores fit a first-level cache.
const SOFT_ROWS: usize = 8;

/// Products of a chain of dimensions with the keys of W groups from `group` on.
#[inline(always)]
fn multiply<S: Simd, const R: usize, const W: usize>(
    s: S,
    q: &[[f32; CHAIN]; R],
    keys: &[[Line; BLOCK / GROUP]],
    group: usize,
) -> [[S::F; W]; R] {
    let mut sum = [[s.splat(0.0); W]; R];
    for (d, keys) in keys.iter().enumerate().take(CHAIN) {
        let keys: &[Line; W] = keys[group..].first_chunk().expect("groups of the block");
        let mut k = [s.splat(0.0); W];
        for w in 0..W {
            k[w] = s.load(&keys[w].0);
        }
        for r in 0..R {
            let q = s.splat(q[r][d]);
            for w in 0..W {
                sum[r][w] = s.fma(q, k[w], sum[r][w]);
            }
        }
    }
    sum
}
