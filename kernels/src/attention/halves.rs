//! Tiles over an F16 cache: keys and values are widened, products are f32.

#![expect(clippy::needless_range_loop, reason = "register tiles are indexed by row and vector, as they are defined")]

use super::ahead::{Ahead, Asks};
use super::tile::{Aligned, Format, Tile, TileScratch, column};
use super::{BLOCK, CHAIN, GROUP, SPLIT};
use crate::simd::{Kernel, LANES, Simd};

/// The format, computed with the operations of `S`.
#[derive(Clone, Copy)]
pub(super) struct Halves<S>(pub(super) S);

/// [`Tile::run`] for one instruction set.
struct OfHalves<'a, 'v, const R: usize>(Tile<'a, 'v, R>);

impl<const R: usize> Kernel for OfHalves<'_, '_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.0.run(Halves(s));
    }
}

impl<S: Simd> Format for Halves<S> {
    type S = S;
    const WIDE: bool = true;
    const THREE: usize = 3;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline(always)]
    fn run<const R: usize>(self, tile: Tile<'_, '_, R>) {
        self.0.apart(OfHalves(tile));
    }

    fn packed_len(self, head_dim: usize) -> usize {
        head_dim
    }

    /// Rounds the query to F16.
    #[inline(always)]
    fn pack(self, q: &[f32], scale: f32, (row, width): (usize, usize), packed: &mut [u32]) -> f32 {
        match width {
            1 => lay_out::<S, 1>(self.0, q, row, packed),
            2 => lay_out::<S, 2>(self.0, q, row, packed),
            3 => lay_out::<S, 3>(self.0, q, row, packed),
            4 => lay_out::<S, 4>(self.0, q, row, packed),
            6 => lay_out::<S, 6>(self.0, q, row, packed),
            _ => lay_out::<S, 8>(self.0, q, row, packed),
        }
        scale
    }

    #[inline(always)]
    fn score<const R: usize>(self, tile: &mut Tile<'_, '_, R>, longest: usize) {
        for block in 0..longest.div_ceil(BLOCK) {
            let keys = tile.kv.block(tile.split * (SPLIT / BLOCK) + block).0;
            let groups = (longest - block * BLOCK).div_ceil(GROUP).min(BLOCK / GROUP);
            let width = if groups == 2 { S::TILE_WIDTH } else { 1 };
            for group in (0..groups).step_by(width) {
                let place = block * BLOCK + group * GROUP;
                let keys = &keys[group * tile.head_dim..][..width * tile.head_dim];
                if width == 2 {
                    score_groups::<S, R, 2>(self.0, tile, keys, place);
                } else {
                    score_groups::<S, R, 1>(self.0, tile, keys, place);
                }
            }
        }
    }

    /// The positions that all rows see go in tiles; the few after, which only later queries see, row by row: a position
    /// that a row does not see never enters its sum.
    #[inline(always)]
    fn mix<const R: usize>(self, tile: &mut Tile<'_, '_, R>) {
        let (head_dim, kv, seen, rows) = (tile.head_dim, tile.kv, tile.seen, tile.states.len());
        let vectors = head_dim.div_ceil(LANES);
        let TileScratch { weights, outputs, .. } = &mut *tile.scratch;
        outputs[..vectors * R].fill(Aligned([0.0; LANES]));
        let common = seen[..rows].iter().copied().min().unwrap_or(0);
        let weights = weights.0.first_chunk::<R>().expect("a tile has ROWS_MAX rows at most");
        for start in (0..common).step_by(BLOCK) {
            let values = kv.block((tile.split * SPLIT + start) / BLOCK).1;
            let count = (common - start).min(BLOCK);
            let mixing = Mixing { head_dim, values, weights, start, count };
            mixing.run(self.0, outputs, (R, 0), tile.ahead);
        }
        for r in 0..rows {
            let mut start = common;
            while start < seen[r] {
                let slot = start % BLOCK;
                let count = (seen[r] - start).min(BLOCK - slot);
                let values = &kv.block((tile.split * SPLIT + start) / BLOCK).1[slot * head_dim..];
                let weights = std::array::from_ref(&weights[r]);
                let mixing = Mixing { head_dim, values, weights, start, count };
                mixing.run(self.0, outputs, (R, r), &mut Ahead::nothing(kv));
                start += count;
            }
        }
    }
}

/// A query, rounded, as column `row` of a tile of W rows.
#[inline(always)]
fn lay_out<S: Simd, const W: usize>(s: S, q: &[f32], row: usize, packed: &mut [u32]) {
    let mut rounded = [0.0; LANES];
    for (q, packed) in q.chunks(LANES).zip(packed.as_chunks_mut::<W>().0.chunks_mut(LANES)) {
        round(s, q, &mut rounded[..q.len()]);
        for (packed, q) in packed.iter_mut().zip(rounded) {
            packed[row] = q.to_bits();
        }
    }
}

/// The nearest F16 values.
#[inline(always)]
pub(super) fn round<S: Simd>(s: S, values: &[f32], rounded: &mut [f32]) {
    let mut half = [0; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    let (whole_rounded, rest_rounded) = rounded.as_chunks_mut::<LANES>();
    for (value, rounded) in whole.iter().zip(whole_rounded) {
        s.store_f16(s.load(value), &mut half);
        s.store(s.load_f16(&half), rounded);
    }
    if !rest.is_empty() {
        s.store_f16(s.load_part(rest, 0.0), &mut half);
        s.store_part(s.load_f16(&half), rest_rounded);
    }
}

/// Scores of W groups of keys, to position `place` of the split and the following.
#[inline(always)]
fn score_groups<S: Simd, const R: usize, const W: usize>(
    s: S,
    tile: &mut Tile<'_, '_, R>,
    keys: &[[u16; GROUP]],
    place: usize,
) {
    let mut total = [[s.splat(0.0); W]; R];
    for (part, q) in tile.q.chunks(ASKING * CHAIN).enumerate() {
        let asks = tile.ahead.take(s, q.len() * W * GROUP);
        for (chain, q) in q.chunks(CHAIN).enumerate() {
            let mut keys_of_chain = [keys; W];
            for (w, keys_of_chain) in keys_of_chain.iter_mut().enumerate() {
                *keys_of_chain = &keys[w * tile.head_dim + (part * ASKING + chain) * CHAIN..][..q.len()];
            }
            let sum = multiply_chain(s, q, keys_of_chain, (&asks, chain * CHAIN));
            for r in 0..R {
                for w in 0..W {
                    total[r][w] = s.add(total[r][w], sum[r][w]);
                }
            }
        }
    }
    for r in 0..R {
        let scale = s.splat(tile.factors[r]);
        let scores = tile.scratch.weights.0[r][place..][..W * GROUP].as_chunks_mut::<LANES>().0;
        for w in 0..W {
            s.store(s.mul(total[r][w], scale), &mut scores[w]);
        }
    }
}

/// The products of a chain of dimensions. It asks for what its dimensions are to ask for, the first one as `step`.
#[inline(always)]
fn multiply_chain<S: Simd, const R: usize, const W: usize>(
    s: S,
    q: &[[u32; R]],
    keys: [&[[u16; GROUP]]; W],
    (asks, step): (&Asks<'_>, usize),
) -> [[S::F; W]; R] {
    let mut sum = [[s.splat(0.0); W]; R];
    let (twos, last) = q.as_chunks::<2>();
    let keys_of_twos = keys.map(|keys| keys.as_chunks::<2>().0);
    for (i, q) in twos.iter().enumerate() {
        for odd in 0..2 {
            asks.step::<S, W>(s, step + 2 * i + odd);
            sum = multiply(s, &q[odd], keys_of_twos.map(|keys| &keys[i][odd]), sum);
        }
    }
    if let [q] = last {
        sum = multiply(s, q, keys.map(|keys| &keys[2 * twos.len()]), sum);
    }
    sum
}

/// Adds the products of a dimension.
#[inline(always)]
fn multiply<S: Simd, const R: usize, const W: usize>(
    s: S,
    q: &[u32; R],
    keys: [&[u16; GROUP]; W],
    mut sum: [[S::F; W]; R],
) -> [[S::F; W]; R] {
    let mut k = [s.splat(0.0); W];
    for w in 0..W {
        k[w] = s.load_f16(keys[w]);
    }
    for r in 0..R {
        let q = s.splat(f32::from_bits(q[r]));
        for w in 0..W {
            sum[r][w] = s.fma(q, k[w], sum[r][w]);
        }
    }
    sum
}

/// Values of one block times the weights of R rows.
struct Mixing<'a, const R: usize> {
    head_dim: usize,
    /// Of the first position and the following.
    values: &'a [u16],
    weights: &'a [[f32; SPLIT]; R],
    /// First position in `weights`.
    start: usize,
    count: usize,
}

impl<const R: usize> Mixing<'_, R> {
    /// Adds to `outputs[vector * stride + row..][..R]` for every vector.
    #[inline(always)]
    fn run<S: Simd>(
        &self,
        s: S,
        outputs: &mut [Aligned<[f32; LANES]>],
        (stride, row): (usize, usize),
        ahead: &mut Ahead<'_>,
    ) {
        let vectors = self.head_dim.div_ceil(LANES);
        let widest = widest::<S, R>();
        let mut v = 0;
        for pass in self.start / BLOCK * vectors.div_ceil(widest).. {
            if v >= vectors {
                break;
            }
            // The softmax has asked for a piece of 128 dimensions, so that one pass in 16 of those asks for none.
            let width = if (v + widest) * LANES <= self.head_dim { widest } else { 1 };
            let asks = if pass % 16 == 15 { ahead.again() } else { ahead.take(s, width * BLOCK * LANES) };
            let outputs = &mut outputs[v * stride + row..];
            match width {
                4 => self.columns::<S, 4>(s, v, (outputs, stride), &asks),
                2 => self.columns::<S, 2>(s, v, (outputs, stride), &asks),
                _ => self.columns::<S, 1>(s, v, (outputs, stride), &asks),
            }
            v += width;
        }
    }

    /// W vectors of the values, from vector `v` on.
    #[inline(always)]
    fn columns<S: Simd, const W: usize>(
        &self,
        s: S,
        v: usize,
        (outputs, stride): (&mut [Aligned<[f32; LANES]>], usize),
        asks: &Asks<'_>,
    ) {
        let mut sum = [[s.splat(0.0); W]; R];
        for w in 0..W {
            for r in 0..R {
                sum[r][w] = s.load(&outputs[w * stride + r].0);
            }
        }
        let first = column(v, self.head_dim);
        let mut values = self.values.chunks_exact(self.head_dim);
        assert!(self.start + self.count <= SPLIT, "positions of a split");
        for p in 0..self.count {
            let Some(values) = values.next() else { break };
            let values: &[_; W] = values[first..].as_chunks().0.first_chunk().expect("vectors of the head");
            asks.step::<S, W>(s, p);
            let mut value = [s.splat(0.0); W];
            for w in 0..W {
                value[w] = s.load_f16(&values[w]);
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
                s.store(sum[r][w], &mut outputs[w * stride + r].0);
            }
        }
    }
}

/// Vectors of values side by side, for which there are registers.
#[inline(always)]
pub(super) const fn widest<S: Simd, const R: usize>() -> usize {
    if S::TILE_WIDTH == 2 && R <= 4 { 4 } else { S::TILE_WIDTH }
}

/// Chains of dimensions that ask together for what comes: those of two groups of keys for a page.
const ASKING: usize = 2;
