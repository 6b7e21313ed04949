//! One tile of rows over one split of positions: scores, softmax weights, weighted values, merge.

use super::ahead::{Ahead, LINE};
use super::{KvView, SPLIT};
use crate::math::{exp, exp_lanes, exp_of};
use crate::simd::{LANES, SUMS, Simd};

/// Rows of the largest tile of any ISA.
pub(super) const ROWS_MAX: usize = 8;

/// Running softmax of one row: greatest score and sum of weights relative to it.
#[derive(Clone, Copy, Debug, Default)]
pub struct RowState {
    pub(super) max: f32,
    pub(super) sum: f32,
}

/// How a type of cache is computed with.
pub(super) trait Format: Copy {
    type S: Simd;
    /// Whether prompts go by [`super::wide`].
    const WIDE: bool;
    /// Rows that a tile computes for three.
    const THREE: usize;

    fn simd(self) -> Self::S;

    /// [`Tile::run`], in a function of its own.
    fn run<const R: usize>(self, tile: Tile<'_, '_, R>);

    /// Elements of a packed query.
    fn packed_len(self, head_dim: usize) -> usize;

    /// Lays a row's query out as column `row` of a tile of `width` rows, and gives the factor of its scores.
    fn pack(self, q: &[f32], scale: f32, place: (usize, usize), packed: &mut [u32]) -> f32;

    /// Scores of the first `longest` positions, and of those that share their groups.
    fn score<const R: usize>(self, tile: &mut Tile<'_, '_, R>, longest: usize);

    /// Sums of the values times their weights for the rows of the tile, into its scratch.
    fn mix<const R: usize>(self, tile: &mut Tile<'_, '_, R>);
}

/// What begins at a cache line: of vectors that don't, one in two loads takes two.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Aligned<T>(pub(super) T);

/// Working memory of a tile.
#[derive(Debug)]
pub(super) struct TileScratch {
    /// Scores, then softmax weights, of each row.
    pub(super) weights: Box<Aligned<[[f32; SPLIT]; ROWS_MAX]>>,
    /// Weighted values of the split, `[vector][row]`.
    pub(super) outputs: Vec<Aligned<[f32; LANES]>>,
    /// Of an int8 cache the weights as pairs of 16 bits, and the sums of the values.
    pub(super) weight_pairs: Box<Aligned<[[u32; SPLIT / 2]; ROWS_MAX]>>,
    pub(super) sums: Vec<Aligned<[i32; LANES]>>,
}

impl TileScratch {
    pub(super) fn new(vectors_max: usize) -> Self {
        Self {
            weights: Box::new(Aligned([[0.0; SPLIT]; ROWS_MAX])),
            outputs: vec![Aligned([0.0; LANES]); vectors_max * ROWS_MAX],
            weight_pairs: Box::new(Aligned([[0; SPLIT / 2]; ROWS_MAX])),
            sums: vec![Aligned([0; LANES]); vectors_max * ROWS_MAX],
        }
    }
}

/// First dimension of vector `v` of a value row: the last vector overlaps the one before where `head_dim` is no
/// multiple of 16, and computes the shared dimensions again, to the same bits.
#[inline(always)]
pub(super) fn column(v: usize, head_dim: usize) -> usize {
    (v * LANES).min(head_dim - LANES)
}

/// R rows over one split.
pub(super) struct Tile<'a, 'v, const R: usize> {
    pub(super) head_dim: usize,
    pub(super) kv: KvView<'v>,
    pub(super) split: usize,
    /// Nothing came before that the split's part is added to.
    pub(super) fresh: bool,
    /// Positions of the split that each row sees; 0 for padding.
    pub(super) seen: [usize; R],
    /// Queries as their format packs them, and the factors of their scores.
    pub(super) q: &'a [[u32; R]],
    pub(super) factors: [f32; R],
    pub(super) ahead: &'a mut Ahead<'v>,
    pub(super) scratch: &'a mut TileScratch,
    /// One per row, without padding.
    pub(super) states: &'a mut [RowState],
    /// `[row][vector]`, without padding.
    pub(super) outputs: &'a mut [[f32; LANES]],
}

impl<const R: usize> Tile<'_, '_, R> {
    #[inline(always)]
    pub(super) fn run<F: Format>(mut self, format: F) {
        let s = format.simd();
        let longest = self.seen.into_iter().max().unwrap_or(0);
        if longest == 0 {
            return;
        }
        format.score(&mut self, longest);
        // A loop each: what a row waits for is done beside the others.
        let mut parts = [RowState::default(); R];
        for (r, part) in parts.iter_mut().enumerate() {
            if self.seen[r] > 0 {
                part.max = greatest(s, &mut self.scratch.weights.0[r], self.seen[r]);
            }
        }
        // Memory would be idle meanwhile.
        let lines = self.head_dim / 2;
        let asks = self.ahead.take(s, lines * LINE);
        for (r, part) in parts.iter_mut().enumerate() {
            if self.seen[r] > 0 {
                for line in r * lines / R..(r + 1) * lines / R {
                    asks.line(s, line);
                }
                *part = soften(s, &mut self.scratch.weights.0[r], self.seen[r], part.max);
            }
        }
        format.mix(&mut self);
        for (r, part) in parts.into_iter().enumerate() {
            if self.seen[r] > 0 {
                self.merge(s, r, part);
            }
        }
    }

    /// Adds the split's part of row r to what the splits before it gave.
    #[inline(always)]
    fn merge<S: Simd>(&mut self, s: S, r: usize, part: RowState) {
        let vectors = self.head_dim.div_ceil(LANES);
        let state = &mut self.states[r];
        let outputs = &mut self.outputs[r * vectors..][..vectors];
        let parts = self.scratch.outputs[..vectors * R].as_chunks::<R>().0;
        if self.fresh {
            *state = part;
            for (output, part) in outputs.iter_mut().zip(parts) {
                *output = part[r].0;
            }
            return;
        }
        merge_row(s, (state, outputs), part, parts.iter().map(|part| &part[r].0));
    }
}

/// Adds the part of one more split to a row's state and sums.
#[inline(always)]
pub(super) fn merge_row<'p, S: Simd>(
    s: S,
    (state, outputs): (&mut RowState, &mut [[f32; LANES]]),
    part: RowState,
    parts: impl Iterator<Item = &'p [f32; LANES]>,
) {
    let [old, new];
    (*state, [old, new]) = merged(*state, part);
    let (old, new) = (s.splat(old), s.splat(new));
    for (output, part) in outputs.iter_mut().zip(parts) {
        let sum = s.fma(s.load(part), new, s.mul(s.load(output), old));
        s.store(sum, output);
    }
}

/// The state of two parts of a row together, and what the sums of each are multiplied by.
#[inline(always)]
pub(super) fn merged(old: RowState, new: RowState) -> (RowState, [f32; 2]) {
    let max = if old.max > new.max { old.max } else { new.max };
    let factors = [exp(old.max - max), exp(new.max - max)];
    (RowState { max, sum: new.sum.mul_add(factors[1], old.sum * factors[0]) }, factors)
}

/// The greatest of the first `count` scores; the rest of their last group becomes minus infinity.
#[inline(always)]
pub(super) fn greatest<S: Simd>(s: S, scores: &mut [f32; SPLIT], count: usize) -> f32 {
    let groups = &mut scores.as_chunks_mut::<LANES>().0[..count.div_ceil(LANES)];
    if let Some(last) = groups.last_mut() {
        let live = (count - 1) % LANES + 1;
        s.store(s.first_lanes(s.load(last), live, s.splat(f32::NEG_INFINITY)), last);
    }
    // Four chains: one would wait for itself. The greatest is the same whatever the order.
    let mut max = [s.splat(f32::NEG_INFINITY); 4];
    for four in groups.chunks(4) {
        for (max, group) in max.iter_mut().zip(four) {
            *max = s.max(s.load(group), *max);
        }
    }
    s.greatest(s.max(s.max(max[0], max[1]), s.max(max[2], max[3])))
}

/// Turns scores into weights `exp(score - max)`, those past the first `count` of the last group into 0.
#[inline(always)]
pub(super) fn soften<S: Simd>(s: S, scores: &mut [f32; SPLIT], count: usize, max: f32) -> RowState {
    let (mut sum, greatest) = (s.splat(0.0), s.splat(max));
    let groups = &mut scores.as_chunks_mut::<LANES>().0[..count.div_ceil(LANES)];
    let (fours, rest) = if S::TILE_WIDTH == 2 { groups.as_chunks_mut::<4>() } else { (&mut [][..], groups) };
    for four in fours {
        let mut weights = [greatest; 4];
        for (weight, group) in weights.iter_mut().zip(&*four) {
            *weight = s.sub(s.load(group), greatest);
        }
        weights = exp_of(s, weights);
        for (weight, group) in weights.into_iter().zip(four) {
            sum = s.add(sum, weight);
            s.store(weight, group);
        }
    }
    for group in rest {
        let weight = exp_lanes(s, s.sub(s.load(group), greatest));
        sum = s.add(sum, weight);
        s.store(weight, group);
    }
    RowState { max, sum: s.sum(sum) }
}

/// What the sums of a row are divided by in the end: the sum of its weights.
#[derive(Clone, Copy)]
pub(super) struct Divisor<F> {
    sum: F,
    inverse: F,
    usual: bool,
}

impl<F: Copy> Divisor<F> {
    #[inline(always)]
    pub(super) fn of<S: Simd<F = F>>(s: S, state: RowState) -> Self {
        Self::new(s, state.sum, 1.0 / state.sum)
    }

    /// Of a sum and 1 over it.
    #[inline(always)]
    pub(super) fn new<S: Simd<F = F>>(s: S, sum: f32, inverse: f32) -> Self {
        Self { sum: s.splat(sum), inverse: s.splat(inverse), usual: SUMS.contains(&sum) }
    }

    #[inline(always)]
    pub(super) fn divide<S: Simd<F = F>>(self, s: S, value: F) -> F {
        if self.usual { s.part_of_sum(value, self.sum, self.inverse) } else { s.div(value, self.sum) }
    }
}
