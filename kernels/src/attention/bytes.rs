//! Tiles over an int8 cache: queries and softmax weights are rounded to 15 bits and a sign, products of whole numbers are
//! exact in 32 bits.
//!
//! A row's query has one step, the greatest magnitude over 32767, and so have its weights in each split, after they have
//! been multiplied by the scales of the values: what is lost is little beside what the cache lost.

#![expect(clippy::needless_range_loop, reason = "register tiles are indexed by row and vector, as they are defined")]

use super::ahead::{Ahead, Asks};
use super::cache::greatest_magnitude;
use super::halves::widest;
use super::tile::{Aligned, Format, Tile, TileScratch, column};
use super::{BLOCK, GROUP, KvView, SPLIT};
use crate::simd::{LANES, PairKernel, Pairs, Simd, pair};

/// The format, computed with the operations of `P`.
#[derive(Clone, Copy)]
pub(super) struct Bytes<P>(pub(super) P);

/// [`Tile::run`] for one instruction set.
struct OfBytes<'a, 'v, const R: usize>(Tile<'a, 'v, R>);

impl<const R: usize> PairKernel for OfBytes<'_, '_, R> {
    type Output = ();

    #[inline(always)]
    fn run<P: Pairs>(self, p: P) {
        self.0.run(Bytes(p));
    }
}

impl<P: Pairs> Format for Bytes<P> {
    type S = P::Floats;
    const WIDE: bool = false;
    const THREE: usize = 4;

    #[inline(always)]
    fn simd(self) -> P::Floats {
        self.0.floats()
    }

    #[inline(always)]
    fn run<const R: usize>(self, tile: Tile<'_, '_, R>) {
        self.0.apart_pairs(OfBytes(tile));
    }

    fn packed_len(self, head_dim: usize) -> usize {
        head_dim.div_ceil(2)
    }

    #[inline(always)]
    fn pack(self, q: &[f32], scale: f32, (row, width): (usize, usize), packed: &mut [u32]) -> f32 {
        let s = self.simd();
        let (step, inverse) = step_of(greatest_magnitude(s, q));
        let mut whole = [0; LANES];
        for (q, packed) in q.chunks(LANES).zip(packed.chunks_mut(LANES / 2 * width)) {
            store_whole(s, s.mul(s.load_part(q, 0.0), s.splat(inverse)), &mut whole);
            for (packed, [low, high]) in packed.chunks_exact_mut(width).zip(whole.as_chunks().0) {
                packed[row] = pair(*low, *high);
            }
        }
        step * scale
    }

    #[inline(always)]
    fn score<const R: usize>(self, tile: &mut Tile<'_, '_, R>, longest: usize) {
        let pairs = tile.q.len();
        for block in 0..longest.div_ceil(BLOCK) {
            let (keys, scales) = tile.kv.byte_keys(tile.split * (SPLIT / BLOCK) + block);
            let scales = scales.as_chunks().0;
            for group in (0..BLOCK / GROUP).step_by(P::Floats::TILE_WIDTH) {
                let place = block * BLOCK + group * GROUP;
                let keys = &keys[group * pairs..];
                if P::Floats::TILE_WIDTH == 2 {
                    score_groups::<P, R, 2>(self.0, tile, (keys, &scales[group..]), place);
                } else {
                    score_groups::<P, R, 1>(self.0, tile, (keys, &scales[group..]), place);
                }
            }
        }
    }

    #[inline(always)]
    fn mix<const R: usize>(self, tile: &mut Tile<'_, '_, R>) {
        let s = self.simd();
        let (head_dim, rows) = (tile.head_dim, tile.states.len());
        let vectors = head_dim.div_ceil(LANES);
        let longest = tile.seen.into_iter().max().unwrap_or(0).div_ceil(BLOCK) * BLOCK;
        let mut scales = Aligned([[0.0; LANES]; SPLIT / LANES]);
        let scales = &mut scales.0[..longest / LANES];
        widen_scales(s, (&tile.kv, tile.split), scales);
        let mut steps = [0.0; R];
        for r in 0..rows {
            steps[r] = round_weights(s, tile, r, scales);
        }
        let TileScratch { outputs, weight_pairs, sums, .. } = &mut *tile.scratch;
        sums[..vectors * R].fill(Aligned([0; LANES]));
        let weights = weight_pairs.0.first_chunk::<R>().expect("a tile has ROWS_MAX rows at most");
        for start in (0..longest).step_by(BLOCK) {
            let values = tile.kv.byte_values((tile.split * SPLIT + start) / BLOCK).0;
            let mixing = Mixing { head_dim, values, weights, start };
            mixing.run(self.0, sums, tile.ahead);
        }
        for (v, sums) in sums[..vectors * R].as_chunks::<R>().0.iter().enumerate() {
            for r in 0..R {
                let sum = self.0.to_floats(self.0.load_sums(&sums[r].0));
                s.store(s.mul(sum, s.splat(steps[r])), &mut outputs[v * R + r].0);
            }
        }
    }
}

/// The step of numbers whose greatest magnitude is `most`, and its inverse; none of either where they are all but 0.
#[inline(always)]
pub(super) fn step_of(most: f32) -> (f32, f32) {
    if most > LEAST { (most / WHOLE_MAX, WHOLE_MAX / most) } else { (0.0, 0.0) }
}

/// The nearest whole numbers, a NaN being the least.
#[inline(always)]
pub(super) fn store_whole<S: Simd>(s: S, v: S::F, whole: &mut [i16; LANES]) {
    s.store_i16(s.min(s.max(v, s.splat(-WHOLE_MAX)), s.splat(WHOLE_MAX)), whole);
}

/// The scales of the values of a split.
#[inline(always)]
pub(super) fn widen_scales<S: Simd>(s: S, (kv, split): (&KvView<'_>, usize), scales: &mut [[f32; LANES]]) {
    for (block, scales) in scales.chunks_mut(BLOCK / LANES).enumerate() {
        let halves = kv.byte_values(split * (SPLIT / BLOCK) + block).1.as_chunks().0;
        for (half, scale) in halves.iter().zip(scales) {
            s.store(s.load_f16(half), scale);
        }
    }
}

/// Multiplies the weights of a row by the scales of the values and rounds them; 0 from the positions that it does not
/// see up to the last that has a scale. Their step.
#[inline(always)]
fn round_weights<S: Simd, const R: usize>(s: S, tile: &mut Tile<'_, '_, R>, r: usize, scales: &[[f32; LANES]]) -> f32 {
    let TileScratch { weights, weight_pairs, .. } = &mut *tile.scratch;
    let weights = &mut weights.0[r].as_chunks_mut().0[..scales.len()];
    let (step, inverse) = scale_weights(s, scales, weights, tile.seen[r]);
    let mut whole = [0; LANES];
    for (group, pairs) in weights.iter().zip(weight_pairs.0[r].as_chunks_mut::<{ LANES / 2 }>().0) {
        store_whole(s, s.mul(s.load(group), s.splat(inverse)), &mut whole);
        for (out, [low, high]) in pairs.iter_mut().zip(whole.as_chunks().0) {
            *out = pair(*low, *high);
        }
    }
    step
}

/// Multiplies the weights of a row by the scales of the values, and makes those past the first `seen` 0; their step and its
/// inverse.
#[inline(always)]
pub(super) fn scale_weights<S: Simd>(
    s: S,
    scales: &[[f32; LANES]],
    weights: &mut [[f32; LANES]],
    seen: usize,
) -> (f32, f32) {
    let (mut most, whole) = (s.splat(0.0), seen / LANES);
    for (g, (group, scales)) in weights.iter_mut().zip(scales).enumerate() {
        let mut weight = s.mul(s.load(group), s.load(scales));
        if g >= whole {
            // Nobody has written the others' scales.
            weight = s.first_lanes(weight, seen.saturating_sub(g * LANES).min(LANES), s.splat(0.0));
        }
        most = s.max(weight, most);
        s.store(weight, group);
    }
    step_of(s.greatest(most))
}

/// Scores of W groups of keys, to position `place` of the split and the following.
#[inline(always)]
fn score_groups<P: Pairs, const R: usize, const W: usize>(
    p: P,
    tile: &mut Tile<'_, '_, R>,
    (keys, scales): (&[[u16; GROUP]], &[[u16; LANES]]),
    place: usize,
) {
    let pairs = tile.q.len();
    let asks = tile.ahead.take(p.floats(), W * pairs * GROUP);
    let mut keys_of_group = [keys; W];
    for (w, keys_of_group) in keys_of_group.iter_mut().enumerate() {
        *keys_of_group = &keys[w * pairs..][..pairs];
    }
    let mut sum = [[p.zero(); W]; R];
    for (d, q) in tile.q.iter().enumerate() {
        asks.step::<P::Floats, W>(p.floats(), d);
        sum = multiply(p, q, keys_of_group.map(|keys| &keys[d]), sum);
    }
    let s = p.floats();
    for w in 0..W {
        let scale = s.load_f16(&scales[w]);
        for r in 0..R {
            let score = s.mul(s.mul(p.to_floats(sum[r][w]), scale), s.splat(tile.factors[r]));
            s.store(score, &mut tile.scratch.weights.0[r][place..].as_chunks_mut::<LANES>().0[w]);
        }
    }
}

/// Adds the products of a pair of dimensions, or of positions.
#[inline(always)]
fn multiply<P: Pairs, const R: usize, const W: usize>(
    p: P,
    factors: &[u32; R],
    pairs: [&[u16; LANES]; W],
    mut sum: [[P::I; W]; R],
) -> [[P::I; W]; R] {
    let mut loaded = [p.zero(); W];
    for w in 0..W {
        loaded[w] = p.load_pairs(pairs[w]);
    }
    for r in 0..R {
        let factor = p.splat_pair(factors[r]);
        for w in 0..W {
            sum[r][w] = p.add_products(sum[r][w], factor, loaded[w]);
        }
    }
    sum
}

/// Values of one block times the weights of R rows.
struct Mixing<'a, const R: usize> {
    head_dim: usize,
    values: &'a [u16],
    weights: &'a [[u32; SPLIT / 2]; R],
    /// First position of the block in the split.
    start: usize,
}

impl<const R: usize> Mixing<'_, R> {
    /// Adds to `sums[vector * R..][..R]` for every vector.
    #[inline(always)]
    fn run<P: Pairs>(&self, p: P, sums: &mut [Aligned<[i32; LANES]>], ahead: &mut Ahead<'_>) {
        let vectors = self.head_dim.div_ceil(LANES);
        let widest = widest::<P::Floats, R>();
        let mut v = 0;
        for pass in self.start / BLOCK * vectors.div_ceil(widest).. {
            if v >= vectors {
                break;
            }
            // As for F16.
            let width = if (v + widest) * LANES <= self.head_dim { widest } else { 1 };
            let asks = if pass % 8 == 7 { ahead.again() } else { ahead.take(p.floats(), width * BLOCK / 2 * LANES) };
            let sums = &mut sums[v * R..];
            match width {
                4 => self.columns::<P, 4>(p, v, sums, &asks),
                2 => self.columns::<P, 2>(p, v, sums, &asks),
                _ => self.columns::<P, 1>(p, v, sums, &asks),
            }
            v += width;
        }
    }

    /// W vectors of the values, from vector `v` on.
    #[inline(always)]
    fn columns<P: Pairs, const W: usize>(&self, p: P, v: usize, sums: &mut [Aligned<[i32; LANES]>], asks: &Asks<'_>) {
        let mut sum = [[p.zero(); W]; R];
        for w in 0..W {
            for r in 0..R {
                sum[r][w] = p.load_sums(&sums[w * R + r].0);
            }
        }
        let first = column(v, self.head_dim);
        let mut values = self.values.chunks_exact(self.head_dim);
        let start = self.start / 2;
        assert!(start + BLOCK / 2 <= SPLIT / 2, "positions of a split");
        for i in 0..BLOCK / 2 {
            let Some(values) = values.next() else { break };
            let values: &[_; W] = values[first..].as_chunks().0.first_chunk().expect("vectors of the head");
            asks.step::<P::Floats, W>(p.floats(), i);
            let mut weights = [0; R];
            for r in 0..R {
                weights[r] = self.weights[r][start + i];
            }
            sum = multiply(p, &weights, values.each_ref(), sum);
        }
        for w in 0..W {
            for r in 0..R {
                p.store_sums(sum[r][w], &mut sums[w * R + r].0);
            }
        }
    }
}

/// Whole numbers of 16 bits, so that the sum of two products by a byte fits 32 bits by far.
const WHOLE_MAX: f32 = 32_767.0;
/// Below it the inverse of a step would be no number.
const LEAST: f32 = 1e-30;
