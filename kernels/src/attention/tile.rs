//! One tile of rows over one split of positions: scores, softmax weights, weighted values, merge.

#![expect(clippy::needless_range_loop, reason = "register tiles are indexed by row and vector, as they are defined")]

use super::{BLOCK, CHAIN, GROUP, KvView, SPLIT};
use crate::math::{exp, exp_lanes};
use crate::simd::{LANES, Simd};

/// Rows of the largest tile of any ISA.
pub(super) const ROWS_MAX: usize = 8;

/// Running softmax of one row: greatest score and sum of weights relative to it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RowState {
    pub(super) max: f32,
    pub(super) sum: f32,
}

/// Working memory of a tile.
#[derive(Debug)]
pub(super) struct TileScratch {
    /// Scores, then softmax weights, of each row.
    weights: Box<[[f32; SPLIT]; ROWS_MAX]>,
    /// Weighted values of the split, `[vector][row]`.
    outputs: Vec<[f32; LANES]>,
}

impl TileScratch {
    pub(super) fn new(vectors_max: usize) -> Self {
        Self { weights: Box::new([[0.0; SPLIT]; ROWS_MAX]), outputs: vec![[0.0; LANES]; vectors_max * ROWS_MAX] }
    }
}

/// First dimension of vector `v` of a value row: the last vector overlaps the one before where `head_dim` is no
/// multiple of 16, and computes the shared dimensions again, to the same bits.
#[inline(always)]
pub(super) fn column(v: usize, head_dim: usize) -> usize {
    (v * LANES).min(head_dim - LANES)
}

/// R rows over one split.
pub(super) struct Tile<'a, const R: usize> {
    pub(super) head_dim: usize,
    pub(super) scale: f32,
    pub(super) kv: KvView<'a>,
    pub(super) split: usize,
    /// Positions of the split that each row sees; 0 for padding.
    pub(super) seen: [usize; R],
    pub(super) q: &'a [[f32; R]],
    pub(super) scratch: &'a mut TileScratch,
    /// One per row, without padding.
    pub(super) states: &'a mut [RowState],
    /// `[row][vector]`, without padding.
    pub(super) outputs: &'a mut [[f32; LANES]],
}

impl<const R: usize> Tile<'_, R> {
    #[inline(always)]
    pub(super) fn run<S: Simd>(mut self, s: S) {
        let longest = self.seen.into_iter().max().unwrap_or(0);
        if longest == 0 {
            return;
        }
        self.score(s, longest);
        // A loop each: what a row waits for is done beside the others.
        let mut parts = [RowState::default(); R];
        for r in 0..R {
            if self.seen[r] > 0 {
                parts[r].max = greatest(s, &mut self.scratch.weights[r], self.seen[r]);
            }
        }
        for r in 0..R {
            if self.seen[r] > 0 {
                parts[r] = soften(s, &mut self.scratch.weights[r], self.seen[r], parts[r].max);
            }
        }
        self.mix(s);
        for (r, part) in parts.into_iter().enumerate() {
            if self.seen[r] > 0 {
                self.merge(s, r, part);
            }
        }
    }

    /// Scores of the first `longest` positions, and of those that share their groups.
    #[inline(always)]
    fn score<S: Simd>(&mut self, s: S, longest: usize) {
        for block in 0..longest.div_ceil(BLOCK) {
            let (keys, values) = self.kv.block(self.split * (SPLIT / BLOCK) + block, self.head_dim);
            // What follows: the next block's keys, or the values of the split.
            let next = if (block + 1) * BLOCK < longest {
                self.kv.block(self.split * (SPLIT / BLOCK) + block + 1, self.head_dim).0.as_flattened()
            } else if block == 0 {
                values
            } else {
                self.kv.block(self.split * (SPLIT / BLOCK), self.head_dim).1
            };
            let groups = (longest - block * BLOCK).div_ceil(GROUP).min(BLOCK / GROUP);
            let width = if groups == 2 { S::TILE_WIDTH } else { 1 };
            for group in (0..groups).step_by(width) {
                let place = block * BLOCK + group * GROUP;
                let keys = &keys[group * self.head_dim..][..width * self.head_dim];
                let next = &next[group * self.head_dim * GROUP..][..width * self.head_dim * GROUP];
                if width == 2 {
                    self.score_groups::<S, 2>(s, keys, next, place);
                } else {
                    self.score_groups::<S, 1>(s, keys, next, place);
                }
            }
        }
    }

    /// Scores of W groups of keys, to position `place` of the split and the following.
    #[inline(always)]
    fn score_groups<S: Simd, const W: usize>(&mut self, s: S, keys: &[[u16; GROUP]], next: &[u16], place: usize) {
        let mut total = [[s.splat(0.0); W]; R];
        for (chain, q) in self.q.chunks(CHAIN).enumerate() {
            let mut keys_of_chain = [keys; W];
            for (w, keys_of_chain) in keys_of_chain.iter_mut().enumerate() {
                *keys_of_chain = &keys[w * self.head_dim + chain * CHAIN..][..q.len()];
            }
            let next = &next[chain * CHAIN * W * GROUP..][..q.len() * W * GROUP];
            let mut sum = [[s.splat(0.0); W]; R];
            for (d, q) in q.iter().enumerate() {
                s.prefetch(&next[d * W * GROUP..]);
                let mut k = [s.splat(0.0); W];
                for w in 0..W {
                    k[w] = s.load_f16(&keys_of_chain[w][d]);
                }
                for r in 0..R {
                    let q = s.splat(q[r]);
                    for w in 0..W {
                        sum[r][w] = s.fma(q, k[w], sum[r][w]);
                    }
                }
            }
            for r in 0..R {
                for w in 0..W {
                    total[r][w] = s.add(total[r][w], sum[r][w]);
                }
            }
        }
        let scale = s.splat(self.scale);
        for r in 0..R {
            let scores = self.scratch.weights[r][place..][..W * GROUP].as_chunks_mut::<LANES>().0;
            for w in 0..W {
                s.store(s.mul(total[r][w], scale), &mut scores[w]);
            }
        }
    }

    /// Sums of the values times their weights, in the order of positions, for the rows of the tile.
    ///
    /// The positions that all rows see go in tiles; the few after, which only later queries see, row by row: a position
    /// that a row does not see never enters its sum.
    #[inline(always)]
    fn mix<S: Simd>(&mut self, s: S) {
        let vectors = self.head_dim.div_ceil(LANES);
        self.scratch.outputs[..vectors * R].fill([0.0; LANES]);
        let rows = self.states.len();
        let common = if rows == R { self.seen.into_iter().min().unwrap_or(0) } else { self.common_of(rows) };
        let TileScratch { weights, outputs } = &mut *self.scratch;
        let weights = weights.first_chunk::<R>().expect("a tile has ROWS_MAX rows at most");
        for start in (0..common).step_by(BLOCK) {
            let values = self.kv.block((self.split * SPLIT + start) / BLOCK, self.head_dim).1;
            let next = if start + BLOCK < common {
                self.kv.block((self.split * SPLIT + start) / BLOCK + 1, self.head_dim).1
            } else {
                values
            };
            let count = (common - start).min(BLOCK);
            let mixing = Mixing { head_dim: self.head_dim, values, next, weights, start, count };
            mixing.run(s, outputs, R, 0);
        }
        for r in 0..rows {
            let mut start = common;
            while start < self.seen[r] {
                let slot = start % BLOCK;
                let count = (self.seen[r] - start).min(BLOCK - slot);
                let values = self.kv.block((self.split * SPLIT + start) / BLOCK, self.head_dim).1;
                let weights = std::array::from_ref(&weights[r]);
                let mixing = Mixing {
                    head_dim: self.head_dim,
                    values: &values[slot * self.head_dim..],
                    next: &[],
                    weights,
                    start,
                    count,
                };
                mixing.run(s, outputs, R, r);
                start += count;
            }
        }
    }

    /// Positions that the first `rows` rows all see.
    fn common_of(&self, rows: usize) -> usize {
        self.seen[..rows].iter().copied().min().unwrap_or(0)
    }

    /// Adds the split's part of row r to what the splits before it gave.
    #[inline(always)]
    fn merge<S: Simd>(&mut self, s: S, r: usize, part: RowState) {
        let vectors = self.head_dim.div_ceil(LANES);
        let state = &mut self.states[r];
        let outputs = &mut self.outputs[r * vectors..][..vectors];
        let parts = self.scratch.outputs[..vectors * R].as_chunks::<R>().0;
        if self.split == 0 {
            *state = part;
            for (output, part) in outputs.iter_mut().zip(parts) {
                *output = part[r];
            }
            return;
        }
        let [old, new];
        (*state, [old, new]) = merged(*state, part);
        let (old, new) = (s.splat(old), s.splat(new));
        for (output, part) in outputs.iter_mut().zip(parts) {
            let sum = s.fma(s.load(&part[r]), new, s.mul(s.load(output), old));
            s.store(sum, output);
        }
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
    let mut sum = s.splat(0.0);
    for group in &mut scores.as_chunks_mut::<LANES>().0[..count.div_ceil(LANES)] {
        let weight = exp_lanes(s, s.sub(s.load(group), s.splat(max)));
        sum = s.add(sum, weight);
        s.store(weight, group);
    }
    RowState { max, sum: s.sum(sum) }
}

/// Values of one block times the weights of R rows.
struct Mixing<'a, const R: usize> {
    head_dim: usize,
    /// Of the first position and the following.
    values: &'a [u16],
    /// What is read next, to be prefetched.
    next: &'a [u16],
    weights: &'a [[f32; SPLIT]; R],
    /// First position in `weights`.
    start: usize,
    count: usize,
}

impl<const R: usize> Mixing<'_, R> {
    /// Adds to `outputs[vector * stride + row..][..R]` for every vector.
    #[inline(always)]
    fn run<S: Simd>(&self, s: S, outputs: &mut [[f32; LANES]], stride: usize, row: usize) {
        let vectors = self.head_dim.div_ceil(LANES);
        let mut v = 0;
        while v < vectors {
            if S::TILE_WIDTH == 2 && v + 1 < vectors {
                self.columns::<S, 2>(s, v, &mut outputs[v * stride + row..], stride);
                v += 2;
            } else {
                self.columns::<S, 1>(s, v, &mut outputs[v * stride + row..], stride);
                v += 1;
            }
        }
    }

    /// W vectors of the values, from vector `v` on.
    #[inline(always)]
    fn columns<S: Simd, const W: usize>(&self, s: S, v: usize, outputs: &mut [[f32; LANES]], stride: usize) {
        let mut columns = [0; W];
        let mut sum = [[s.splat(0.0); W]; R];
        for w in 0..W {
            columns[w] = column(v + w, self.head_dim);
            for r in 0..R {
                sum[r][w] = s.load(&outputs[w * stride + r]);
            }
        }
        for (p, values) in self.values.chunks_exact(self.head_dim).take(self.count).enumerate() {
            // In the order of memory, though the values are read by columns: 1.2x from memory (T0, context 4096).
            if let Some(line) = self.next.get((v * BLOCK + p * W) * LANES..) {
                s.prefetch(line);
            }
            let mut value = [s.splat(0.0); W];
            for w in 0..W {
                let (values, _) = values[columns[w]..].as_chunks::<LANES>();
                value[w] = s.load_f16(&values[0]);
            }
            for r in 0..R {
                let weight = s.splat(self.weights[r][self.start + p]);
                for w in 0..W {
                    sum[r][w] = s.fma(weight, value[w], sum[r][w]);
                }
            }
        }
        for w in 0..W {
            for r in 0..R {
                s.store(sum[r][w], &mut outputs[w * stride + r]);
            }
        }
    }
}
