//! The attention call: rows in chunks, chunks in tiles, positions in splits.

use super::tile::{RowState, Tile, TileScratch, column};
use super::wide::{WIDE_ROWS_MAX, Wide, WideScratch};
use super::{KvView, SPLIT};
use crate::Isa;
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// What the heads of a call have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Values of one head; 16 at least.
    pub head_dim: usize,
    /// Query heads that share the KV head.
    pub group: usize,
    /// Factor of the scores, 1 / sqrt(`head_dim`).
    pub scale: f32,
}

/// Working memory of [`attend`], for one thread; nothing is allocated after it.
#[derive(Debug)]
pub struct Scratch {
    head_dim_max: usize,
    /// Queries rounded to F16: of a few rows, each tile `[head_dim][tile rows]`; of many, `[row][head_dim]`.
    q: Vec<f32>,
    row: Vec<f32>,
    states: Vec<RowState>,
    /// Unscaled outputs, `[row][vectors]`.
    outputs: Vec<[f32; LANES]>,
    tile: TileScratch,
    wide: WideScratch,
}

impl Scratch {
    /// For heads of up to `head_dim_max` values.
    #[must_use]
    pub fn new(head_dim_max: usize) -> Self {
        let vectors = head_dim_max.div_ceil(LANES);
        Self {
            head_dim_max,
            q: vec![0.0; WIDE_ROWS_MAX * head_dim_max],
            row: vec![0.0; head_dim_max],
            states: vec![RowState::default(); WIDE_ROWS_MAX],
            outputs: vec![[0.0; LANES]; WIDE_ROWS_MAX * vectors],
            tile: TileScratch::new(vectors),
            wide: WideScratch::new(head_dim_max),
        }
    }
}

/// Attention of `queries` successive positions, from `first_position` on, over one KV head.
///
/// Query i stands at position `first_position + i` and sees positions 0 to its own, which must be in the cache. Its
/// `group` heads are `q[i * q_stride..][..group * head_dim]`, their results go to `out` likewise. q is rounded to F16;
/// scores, softmax weights and sums are f32.
///
/// # Panics
/// If `head_dim` is below 16 or above the scratch's, or a slice, the block table or the pool is too short.
#[expect(
    clippy::too_many_arguments,
    reason = "two strided matrices, each with its stride, and their place in the cache"
)]
pub fn attend(
    isa: Isa,
    shape: Shape,
    kv: KvView<'_>,
    first_position: usize,
    queries: usize,
    q: &[f32],
    q_stride: usize,
    out: &mut [f32],
    out_stride: usize,
    scratch: &mut Scratch,
) {
    assert!(shape.head_dim >= LANES, "head_dim {} below {LANES}", shape.head_dim);
    assert!(shape.head_dim <= scratch.head_dim_max, "head_dim {} above {}", shape.head_dim, scratch.head_dim_max);
    dispatch(isa, Attend { shape, kv, first_position, queries, q, q_stride, out, out_stride, scratch });
}

struct Attend<'a> {
    shape: Shape,
    kv: KvView<'a>,
    first_position: usize,
    queries: usize,
    q: &'a [f32],
    q_stride: usize,
    out: &'a mut [f32],
    out_stride: usize,
    scratch: &'a mut Scratch,
}

impl Kernel for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let rows = self.queries * self.shape.group;
        let mut first = 0;
        while first < rows {
            let count = (rows - first).min(WIDE_ROWS_MAX);
            if count >= WIDE_TILES_MIN * S::TILE_ROWS {
                self.wide(s, first, count);
            } else {
                self.narrow(s, first, count);
            }
            for row in 0..count {
                self.finish(s, first, row);
            }
            first += count;
        }
    }
}

impl Attend<'_> {
    /// Rows `first..first + count`, few of them; a row is one head of one query, heads fastest.
    ///
    /// Splits outside, tiles inside: a split's keys and values stay in L2 while all rows use them.
    #[inline(always)]
    fn narrow<S: Simd>(&mut self, s: S, first: usize, count: usize) {
        for tile in (0..count).step_by(S::TILE_ROWS) {
            self.pack(s, first, tile, (count - tile).min(S::TILE_ROWS));
        }
        for split in 0..=self.position(first + count - 1) / SPLIT {
            for tile in (0..count).step_by(S::TILE_ROWS) {
                let rows = (count - tile).min(S::TILE_ROWS);
                match tile_width(rows) {
                    1 => self.tile::<S, 1>(s, split, first, tile, rows),
                    2 => self.tile::<S, 2>(s, split, first, tile, rows),
                    3 => self.tile::<S, 3>(s, split, first, tile, rows),
                    4 => self.tile::<S, 4>(s, split, first, tile, rows),
                    6 => self.tile::<S, 6>(s, split, first, tile, rows),
                    _ => self.tile::<S, 8>(s, split, first, tile, rows),
                }
            }
        }
    }

    /// The same for many rows.
    #[inline(always)]
    fn wide<S: Simd>(&mut self, s: S, first: usize, count: usize) {
        let Shape { head_dim, group, scale } = self.shape;
        for row in 0..count {
            let q = &self.q[(first + row) / group * self.q_stride + (first + row) % group * head_dim..][..head_dim];
            round(s, q, &mut self.scratch.q[row * head_dim..][..head_dim]);
        }
        let scratch = &mut *self.scratch;
        let wide = Wide {
            head_dim,
            scale,
            kv: self.kv,
            first_position: self.first_position,
            first_row: first,
            group,
            q: &scratch.q[..count * head_dim],
            scratch: &mut scratch.wide,
            states: &mut scratch.states[..count],
            outputs: &mut scratch.outputs[..count * head_dim.div_ceil(LANES)],
        };
        wide.run(s);
    }

    fn position(&self, row: usize) -> usize {
        self.first_position + row / self.shape.group
    }

    /// Rounds the rows of a tile to F16 and lays them out as its `[head_dim][R]`.
    #[inline(always)]
    fn pack<S: Simd>(&mut self, s: S, first: usize, tile: usize, rows: usize) {
        let Shape { head_dim, group, .. } = self.shape;
        let width = tile_width(rows);
        let packed = &mut self.scratch.q[tile * head_dim..][..width * head_dim];
        packed.fill(0.0);
        for r in 0..rows {
            let row = first + tile + r;
            let q = &self.q[row / group * self.q_stride + row % group * head_dim..][..head_dim];
            let rounded = &mut self.scratch.row[..head_dim];
            round(s, q, rounded);
            for (packed, q) in packed.chunks_exact_mut(width).zip(rounded) {
                packed[r] = *q;
            }
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const R: usize>(&mut self, s: S, split: usize, first: usize, tile: usize, rows: usize) {
        let mut seen = [0; R];
        for (r, seen) in seen[..rows].iter_mut().enumerate() {
            *seen = (self.position(first + tile + r) + 1).saturating_sub(split * SPLIT).min(SPLIT);
        }
        let Shape { head_dim, scale, .. } = self.shape;
        let vectors = head_dim.div_ceil(LANES);
        let scratch = &mut *self.scratch;
        let tile = Tile {
            head_dim,
            scale,
            kv: self.kv,
            split,
            seen,
            q: scratch.q[tile * head_dim..][..R * head_dim].as_chunks().0,
            scratch: &mut scratch.tile,
            states: &mut scratch.states[tile..tile + rows],
            outputs: &mut scratch.outputs[tile * vectors..][..rows * vectors],
        };
        tile.run(s);
    }

    /// Divides a row's output by the sum of its weights.
    #[inline(always)]
    fn finish<S: Simd>(&mut self, s: S, first: usize, row: usize) {
        let Shape { head_dim, group, .. } = self.shape;
        let vectors = head_dim.div_ceil(LANES);
        let sum = s.splat(self.scratch.states[row].sum);
        let place = (first + row) / group * self.out_stride + (first + row) % group * head_dim;
        let out = &mut self.out[place..][..head_dim];
        for (v, output) in self.scratch.outputs[row * vectors..][..vectors].iter().enumerate() {
            s.store_part(s.div(s.load(output), sum), &mut out[column(v, head_dim)..][..LANES]);
        }
    }
}

/// The nearest F16 values.
#[inline(always)]
fn round<S: Simd>(s: S, values: &[f32], rounded: &mut [f32]) {
    let mut half = [0; LANES];
    for (value, rounded) in values.chunks(LANES).zip(rounded.chunks_mut(LANES)) {
        s.store_f16(s.load_part(value, 0.0), &mut half);
        s.store_part(s.load_f16(&half), rounded);
    }
}

/// Rows that a tile computes to cover `rows`: those past them are zeros.
fn tile_width(rows: usize) -> usize {
    match rows {
        5 => 6,
        7 => 8,
        _ => rows,
    }
}

/// From so many tiles of rows on, keys and values are widened to f32 for all of them.
const WIDE_TILES_MIN: usize = 3;
