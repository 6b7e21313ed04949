//! Many rows over an int8 cache on AMX, as in prompts: 16 rows at a time meet tiles of 64 dimensions, or positions.
//!
//! Whole numbers of 16 bits go in two bytes, `256 high + low`, of which each has sums of its own; a float holds either
//! exactly, so that one fused product and sum rounds as the sum of [`super::bytes`] does.
#![expect(unsafe_code, reason = "instructions without intrinsics")]

use std::arch::asm;

use super::ahead::Ahead;
use super::bytes::{scale_weights, step_of, store_whole, widen_scales};
use super::cache::greatest_magnitude;
use super::rows::{Rows, WIDE_ROWS_MAX};
use super::tile::{Aligned, Divisor, RowState, column, greatest, merged, soften};
use super::{BLOCK, GROUP, KvView, SPLIT};
use crate::simd::{LANES, Pairs, Simd};
use crate::tiles::{TILE_ROWS, Tiles};
use crate::zeros::{Zeroed, Zeros};

/// Dimensions of a head for which a float holds every sum of low bytes: 512 times 255 times 127.
pub(super) const HEAD_DIM_MAX: usize = 512;

/// Working memory of a pass.
#[derive(Debug)]
pub(super) struct ByteScratch {
    /// The keys of a split, `[block][quads]` of two groups of positions, and the values, `[vectors / 2][SPLIT / 4]`.
    keys: Zeros<Quads>,
    values: Zeros<Quads>,
    /// High and low bytes of a row's query, and what its scores are multiplied by.
    queries: Vec<u8>,
    factors: Vec<f32>,
    tile: Box<TileRoom>,
}

/// Four bytes of each of 16 positions, or dimensions, and of 16 more.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Quads([[u32; LANES]; 2]);

// SAFETY: nothing but numbers, in cache lines.
unsafe impl Zeroed for Quads {}

/// 32 sums of a row.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Sums([[i32; LANES]; 2]);

/// Of 16 rows over a split.
#[derive(Debug)]
#[repr(C, align(64))]
struct TileRoom {
    /// Scores, then softmax weights.
    weights: [[f32; SPLIT]; TILE_ROWS],
    /// Of the weights high and low bytes.
    bytes: [[[u8; SPLIT]; 2]; TILE_ROWS],
    /// Of high bytes, then of low ones.
    sums: [Sums; 2 * TILE_ROWS],
}

impl ByteScratch {
    pub(super) fn new(head_dim_max: usize) -> Self {
        let head_dim = padded(head_dim_max.min(HEAD_DIM_MAX));
        Self {
            keys: Zeros::new(SPLIT / BLOCK * head_dim / 4),
            values: Zeros::new(head_dim.div_ceil(2 * LANES) * SPLIT / 4),
            queries: vec![0; WIDE_ROWS_MAX * 2 * head_dim],
            factors: vec![0.0; WIDE_ROWS_MAX],
            tile: Box::new(TileRoom {
                weights: [[0.0; SPLIT]; TILE_ROWS],
                bytes: [[[0; SPLIT]; 2]; TILE_ROWS],
                sums: [Sums([[0; LANES]; 2]); 2 * TILE_ROWS],
            }),
        }
    }
}

/// Dimensions in whole tiles.
const fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(DEPTH)
}

/// What multiplies.
pub(super) trait Multiply {
    /// Sums of the products of 16 rows' high bytes, and of their low bytes, with `b`, a tile for each 16 quads. The rows lie
    /// `stride` bytes apart, low bytes half of it behind the high ones.
    fn multiply(&self, a: &[u8], stride: usize, b: &[Quads], sums: &mut [Sums; 2 * TILE_ROWS]);
}

/// Rows of ascending positions over all splits that they see.
pub(super) struct AmxBytes<'a> {
    pub(super) scale: f32,
    pub(super) kv: KvView<'a>,
    pub(super) rows: Rows<'a>,
    pub(super) ahead: Ahead<'a>,
    pub(super) scratch: &'a mut ByteScratch,
    pub(super) states: &'a mut [RowState],
    /// `[row][vector]`.
    pub(super) outputs: &'a mut [[f32; LANES]],
}

impl AmxBytes<'_> {
    #[inline(always)]
    pub(super) fn run<P: Pairs>(mut self, p: P, unit: &impl Multiply) {
        let rows = self.rows.count();
        self.pack(p.floats());
        for split in 0..self.rows.splits() {
            self.turn(split);
            // Earlier rows have seen all that they see.
            let first = self.rows.first_that_sees(split * SPLIT) / TILE_ROWS * TILE_ROWS;
            let asked = SPLIT / BLOCK * self.kv.layout.head_block_len() * TILE_ROWS / (rows - first);
            for first in (first..rows).step_by(TILE_ROWS) {
                self.ahead.ask(p.floats(), asked);
                self.tile(p, unit, split, first);
            }
        }
    }

    /// Rounds the queries as [`super::bytes`] does.
    #[inline(always)]
    fn pack<S: Simd>(&mut self, s: S) {
        let width = padded(self.rows.head_dim);
        let mut whole = [0; LANES];
        for row in 0..self.rows.count().next_multiple_of(TILE_ROWS) {
            let (high, low) = self.scratch.queries[row * 2 * width..][..2 * width].split_at_mut(width);
            if row >= self.rows.count() {
                high.fill(0);
                low.fill(0);
                continue;
            }
            let q = self.rows.query(row);
            let (step, inverse) = step_of(greatest_magnitude(s, q));
            self.scratch.factors[row] = step * self.scale;
            high[q.len()..].fill(0);
            low[q.len()..].fill(0);
            for ((q, high), low) in q.chunks(LANES).zip(high.chunks_mut(LANES)).zip(low.chunks_mut(LANES)) {
                store_whole(s, s.mul(s.load_part(q, 0.0), s.splat(inverse)), &mut whole);
                part(&whole, high, low);
            }
        }
    }

    /// Lays the keys and values of a split out as tiles. What lies beyond them meets zeros only.
    #[inline(always)]
    fn turn(&mut self, split: usize) {
        let head_dim = self.rows.head_dim;
        let vectors = head_dim.div_ceil(LANES);
        let longest = self.rows.seen(self.rows.count() - 1, split);
        let block_quads = padded(head_dim) / 4;
        for block in 0..longest.div_ceil(BLOCK) {
            let index = split * (SPLIT / BLOCK) + block;
            let keys = self.kv.byte_keys(index).0;
            let pairs = keys.len() / (BLOCK / GROUP);
            let (first, second) = keys.split_at(pairs);
            let quads = &mut self.scratch.keys[block * block_quads..][..block_quads];
            for (group, keys) in [first, second].into_iter().enumerate() {
                for (quads, keys) in quads.iter_mut().zip(keys.chunks(2)) {
                    quads.0[group] = interleave(&keys[0], keys.get(1).unwrap_or(&keys[0]));
                }
            }
            let values = self.kv.byte_values(index).0;
            for (quad, values) in values.chunks_exact(2 * head_dim).enumerate() {
                let (first, second) = values.split_at(head_dim);
                for v in 0..vectors {
                    let at = column(v, head_dim);
                    let (first, second) = (first[at..].first_chunk(), second[at..].first_chunk());
                    let quads = &mut self.scratch.values[v / 2 * (SPLIT / 4) + block * (BLOCK / 4) + quad];
                    quads.0[v % 2] = interleave(first.expect("a vector"), second.expect("a vector"));
                }
            }
        }
    }

    /// 16 rows over a split.
    #[inline(always)]
    fn tile<P: Pairs>(&mut self, p: P, unit: &impl Multiply, split: usize, first: usize) {
        let s = p.floats();
        let rows = first..self.rows.count().min(first + TILE_ROWS);
        let longest = self.rows.seen(rows.end - 1, split);
        self.score(p, unit, split, (first, rows.len(), longest));
        let (mut parts, mut steps) = ([RowState::default(); TILE_ROWS], [0.0; TILE_ROWS]);
        let room = &mut *self.scratch.tile;
        for (r, row) in rows.clone().enumerate() {
            let seen = self.rows.seen(row, split);
            if seen > 0 {
                parts[r].max = greatest(s, &mut room.weights[r], seen);
            }
        }
        let mut factors = [[0.0; 2]; TILE_ROWS];
        for (r, row) in rows.clone().enumerate() {
            let seen = self.rows.seen(row, split);
            if seen == 0 {
                continue;
            }
            let part = soften(s, &mut room.weights[r], seen, parts[r].max);
            (self.states[row], factors[r]) = if split == 0 { (part, [0.0; 2]) } else { merged(self.states[row], part) };
        }
        let end = longest.next_multiple_of(DEPTH);
        let mut scales = Aligned([[0.0; LANES]; SPLIT / LANES]);
        widen_scales(s, (&self.kv, split), &mut scales.0[..longest.div_ceil(BLOCK) * (BLOCK / LANES)]);
        for (r, row) in rows.clone().enumerate() {
            let weights = &mut room.weights[r].as_chunks_mut().0[..end / LANES];
            let inverse;
            (steps[r], inverse) = scale_weights(s, &scales.0, weights, self.rows.seen(row, split));
            let mut whole = [0; LANES];
            let [high, low] = &mut room.bytes[r];
            for ((group, high), low) in weights.iter().zip(high.chunks_mut(LANES)).zip(low.chunks_mut(LANES)) {
                store_whole(s, s.mul(s.load(group), s.splat(inverse)), &mut whole);
                part_of_weights(&whole, high, low);
            }
        }
        self.mix(p, unit, split, (first, rows.len(), end), (&steps, &factors));
    }

    #[inline(always)]
    fn score<P: Pairs>(
        &mut self,
        p: P,
        unit: &impl Multiply,
        split: usize,
        (first, count, longest): (usize, usize, usize),
    ) {
        let s = p.floats();
        let width = padded(self.rows.head_dim);
        let queries = &self.scratch.queries[first * 2 * width..][..TILE_ROWS * 2 * width];
        let room = &mut *self.scratch.tile;
        for block in 0..longest.div_ceil(BLOCK) {
            let keys = &self.scratch.keys[block * width / 4..][..width / 4];
            unit.multiply(queries, 2 * width, keys, &mut room.sums);
            let scales = self.kv.byte_keys(split * (SPLIT / BLOCK) + block).1.as_chunks().0;
            let scales = [s.load_f16(&scales[0]), s.load_f16(&scales[1])];
            for r in 0..count {
                let factor = s.splat(self.scratch.factors[first + r]);
                let scores = room.weights[r][block * BLOCK..][..BLOCK].as_chunks_mut().0;
                for w in 0..2 {
                    let score = s.mul(s.mul(whole_sum(p, &room.sums, r, w), scales[w]), factor);
                    s.store(score, &mut scores[w]);
                }
            }
        }
    }

    /// Weighted values, merged with what the splits before gave; behind the last one the results.
    #[inline(always)]
    fn mix<P: Pairs>(
        &mut self,
        p: P,
        unit: &impl Multiply,
        split: usize,
        (first, count, end): (usize, usize, usize),
        (steps, factors): (&[f32; TILE_ROWS], &[[f32; 2]; TILE_ROWS]),
    ) {
        let s = p.floats();
        let head_dim = self.rows.head_dim;
        let vectors = head_dim.div_ceil(LANES);
        let room = &mut *self.scratch.tile;
        let mut divisors = [None; TILE_ROWS];
        for (r, divisor) in divisors[..count].iter_mut().enumerate() {
            if self.rows.position(first + r) / SPLIT == split {
                *divisor = Some(Divisor::of(s, self.states[first + r]));
            }
        }
        for pair in 0..vectors.div_ceil(2) {
            let values = &self.scratch.values[pair * (SPLIT / 4)..][..end / 4];
            unit.multiply(room.bytes.as_flattened().as_flattened(), 2 * SPLIT, values, &mut room.sums);
            for r in 0..count {
                let row = first + r;
                if self.rows.position(row) < split * SPLIT {
                    continue;
                }
                let [old, new] = factors[r];
                for v in 2 * pair..vectors.min(2 * pair + 2) {
                    let output = &mut self.outputs[row * vectors + v];
                    let mut value = s.mul(whole_sum(p, &room.sums, r, v % 2), s.splat(steps[r]));
                    if split > 0 {
                        value = s.fma(value, s.splat(new), s.mul(s.load(output), s.splat(old)));
                    }
                    if let Some(divisor) = divisors[r] {
                        let to = self.rows.result(row)[column(v, head_dim)..].first_chunk().expect("a whole vector");
                        s.store_cells(divisor.divide(s, value), to);
                    } else {
                        s.store(value, output);
                    }
                }
            }
        }
    }
}

/// The sums of a row as the nearest floats.
#[inline(always)]
fn whole_sum<P: Pairs>(p: P, sums: &[Sums; 2 * TILE_ROWS], r: usize, side: usize) -> <P::Floats as Simd>::F {
    let (high, low) = (p.load_sums(&sums[r].0[side]), p.load_sums(&sums[TILE_ROWS + r].0[side]));
    let s = p.floats();
    s.fma(p.to_floats(high), s.splat(256.0), p.to_floats(low))
}

/// High and low bytes of up to 16 numbers.
#[inline(always)]
fn part(whole: &[i16; LANES], high: &mut [u8], low: &mut [u8]) {
    for ((whole, high), low) in whole.iter().zip(high).zip(low) {
        [*low, *high] = whole.to_le_bytes();
    }
}

/// The same of 16.
#[inline(always)]
fn part_of_weights(whole: &[i16; LANES], high: &mut [u8], low: &mut [u8]) {
    let high: &mut [u8; LANES] = high.try_into().expect("a whole vector");
    let low: &mut [u8; LANES] = low.try_into().expect("a whole vector");
    part(whole, high, low);
}

/// Pairs of bytes to quads.
#[inline(always)]
fn interleave(first: &[u16; LANES], second: &[u16; LANES]) -> [u32; LANES] {
    let mut quads = [0; LANES];
    for l in 0..LANES {
        quads[l] = u32::from(first[l]) | u32::from(second[l]) << 16;
    }
    quads
}

impl Multiply for Tiles {
    #[inline(always)]
    fn multiply(&self, a: &[u8], stride: usize, b: &[Quads], sums: &mut [Sums; 2 * TILE_ROWS]) {
        assert_eq!(self.rows(), [TILE_ROWS; 2], "tiles of this size");
        check(a, stride, b);
        let (high, line) = (a.as_ptr(), size_of::<Quads>());
        // SAFETY: `check` has seen that the slices hold what is read in so many steps; `sums` are as many as four tiles hold;
        // `new` had the proof that the instructions exist, and configured the tiles. They hold nothing between calls.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm6, [{b} + {line}*1]",
                "tileloadd tmm4, [{high} + {stride}*1]",
                "tileloadd tmm7, [{b} + {line}*1 + 64]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{low} + {stride}*1]",
                "tdpbssd tmm1, tmm4, tmm7",
                "tdpbusd tmm2, tmm5, tmm6",
                "tdpbusd tmm3, tmm5, tmm7",
                "add {high}, 64",
                "add {low}, 64",
                "add {b}, 2048",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + {line}*1], tmm0",
                "tilestored [{sums} + {line}*1 + 64], tmm1",
                "tilestored [{sums} + {line}*1 + 2048], tmm2",
                "tilestored [{sums} + {line}*1 + 2112], tmm3",
                sums = in(reg) sums.as_mut_ptr(),
                line = in(reg) line,
                stride = in(reg) stride,
                b = inout(reg) b.as_ptr() => _,
                high = inout(reg) high => _,
                low = inout(reg) high.wrapping_add(stride / 2) => _,
                steps = inout(reg) b.len() / TILE_ROWS => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

/// That `a` and `b` hold whole tiles of 16 rows.
#[inline(always)]
fn check(a: &[u8], stride: usize, b: &[Quads]) {
    let steps = b.len() / TILE_ROWS;
    assert!(steps > 0 && b.len().is_multiple_of(TILE_ROWS), "whole tiles");
    assert!(
        stride.is_multiple_of(2) && stride / 2 >= steps * DEPTH && a.len() == TILE_ROWS * stride,
        "rows of all steps"
    );
}

// Rows of quads and of sums lie a line apart, 16 of them 2048 bytes.
const _: () = assert!(size_of::<Quads>() == 128 && size_of::<Sums>() == 128 && TILE_ROWS == LANES);

/// Dimensions, or positions, that one instruction sums over.
const DEPTH: usize = 64;

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::rows::RowPlace;
    use super::super::{KvLayout, KvPool, KvType, Queries, Scratch, Shape, Then, attend, part_vectors, store};
    use super::*;
    use crate::simd::Portable;
    use crate::testing::Draw;
    use crate::{Columns, Isa};

    /// The products by their definition.
    struct Emulated;

    impl Multiply for Emulated {
        fn multiply(&self, a: &[u8], stride: usize, b: &[Quads], sums: &mut [Sums; 2 * TILE_ROWS]) {
            check(a, stride, b);
            for (r, row) in a.chunks(stride).enumerate() {
                let (high, low) = row.split_at(stride / 2);
                for n in 0..2 * LANES {
                    let byte =
                        |k: usize| i32::from(b[k / 4].0[n / LANES][n % LANES].to_le_bytes()[k % 4].cast_signed());
                    let of = |a: &dyn Fn(usize) -> i32| (0..4 * b.len()).map(|k| a(k) * byte(k)).sum::<i32>();
                    sums[r].0[n / LANES][n % LANES] = of(&|k| i32::from(high[k].cast_signed()));
                    sums[TILE_ROWS + r].0[n / LANES][n % LANES] = of(&|k| i32::from(low[k]));
                }
            }
        }
    }

    #[test]
    fn emulated_tiles_give_the_bits_of_the_definition() {
        let mut draw = Draw::new(21);
        let cases: [(usize, usize, usize, usize); 5] =
            [(128, 4, 0, 70), (16, 1, 0, 17), (80, 3, 250, 40), (33, 2, 500, 30), (100, 5, 255, 3)];
        for (head_dim, group, first, count) in cases {
            let layout = KvLayout { kv_type: KvType::Int8, head_dim, heads: 1 };
            let positions = first + count;
            let blocks = positions.div_ceil(BLOCK);
            let mut pool = vec![0x7e01; layout.pool_len(blocks)];
            for p in 0..positions {
                let block = &mut pool[layout.start(p / BLOCK, 0)..][..layout.head_block_len()];
                store(
                    Isa::Portable,
                    &layout,
                    block,
                    p % BLOCK,
                    &draw.floats(head_dim, 3.0),
                    &draw.floats(head_dim, 1.0),
                );
            }
            let table: Vec<u32> = (0..blocks as u32).collect();
            let kv = KvView { pool: KvPool::from(&pool[..]), table: &table, layout, head: 0 };
            let (width, scale) = (group * head_dim, 1.0 / (head_dim as f32).sqrt());
            let values = draw.floats(count * width, 2.0);
            let queries = Queries { first_position: first, count, values: &values, stride: width };
            let (want, got) = (vec![Cell::new(0.0); count * width], vec![Cell::new(0.0); count * width]);
            let shape = Shape { head_dim, group, scale };
            let out = Columns { cells: &want, stride: width };
            attend(Isa::Portable, shape, (kv, Then::NOTHING), queries, out, &mut Scratch::new(head_dim));
            let mut places = vec![RowPlace::default(); (count * group).min(WIDE_ROWS_MAX)];
            let rows = places.len();
            let out = Columns { cells: &got, stride: width };
            let tiled = AmxBytes {
                scale,
                kv,
                rows: Rows::new((head_dim, group), 0, queries, out, &mut places),
                ahead: Ahead::nothing(kv),
                scratch: &mut ByteScratch::new(head_dim),
                states: &mut vec![RowState::default(); rows],
                outputs: &mut vec![[0.0; LANES]; rows * part_vectors(head_dim)],
            };
            tiled.run(Portable, &Emulated);
            for (i, (got, want)) in got.iter().zip(&want).enumerate().take(rows / group * width) {
                assert_eq!(got.get().to_bits(), want.get().to_bits(), "{head_dim} {i}");
            }
        }
    }
}
