//! The attention call: rows in chunks, chunks in tiles, positions in splits; by all splits of a sequence, or by some of
//! them, whose parts are merged when all are there.

use std::cell::Cell;
use std::ops::Range;

use super::ahead::{Ahead, Reading};
#[cfg(target_arch = "x86_64")]
use super::amx_bytes::{AmxBytes, ByteScratch, HEAD_DIM_MAX};
use super::bytes::Bytes;
use super::halves::Halves;
use super::rows::{RowPlace, Rows, WIDE_ROWS_MAX};
use super::tile::{Divisor, Format, RowState, Tile, TileScratch, column, merge_row};
use super::wide::{Wide, WideScratch};
use super::{CHAIN, KvType, KvView, SPLIT};
#[cfg(target_arch = "x86_64")]
use crate::AmxInt8;
use crate::simd::{Kernel, LANES, PairKernel, Pairs, Simd, dispatch, dispatch_pairs};
#[cfg(target_arch = "x86_64")]
use crate::tiles::{TILE_ROWS, Tiles};
use crate::{Columns, Isa};

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

/// Successive positions that attend: query i stands at `first_position + i` and sees positions 0 to its own, which must
/// be in the cache. Its heads are `values[i * stride..][..group * head_dim]`.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    pub first_position: usize,
    pub count: usize,
    pub values: &'a [f32],
    pub stride: usize,
}

impl Queries<'_> {
    /// Splits that the last of them sees, a few or none for all.
    #[must_use]
    pub fn splits(&self) -> usize {
        (self.first_position + self.count).div_ceil(SPLIT)
    }
}

/// What is likely to be read after a call; a part or nothing of it may be given.
#[derive(Clone, Copy, Debug)]
pub struct Then<'a> {
    /// Keys and values.
    pub cache: Option<Reading<'a>>,
    /// Values of queries that lie as those of the call do.
    pub queries: &'a [f32],
}

impl Then<'_> {
    pub const NOTHING: Self = Self { cache: None, queries: &[] };
}

/// What splits gave, each for all rows of the queries: `states[split][row]` and `outputs[split][row][vector]`.
#[derive(Debug)]
pub struct Parts<'a> {
    pub states: &'a mut [RowState],
    pub outputs: &'a mut [[f32; LANES]],
}

/// Vectors of a row's outputs in [`Parts`].
#[must_use]
pub const fn part_vectors(head_dim: usize) -> usize {
    head_dim.div_ceil(LANES)
}

/// Working memory of [`attend`], for one thread; nothing is allocated after it.
#[derive(Debug)]
pub struct Scratch {
    head_dim_max: usize,
    /// Packed queries, each tile `[..][tile rows]`, and the factors of their scores.
    packed: Vec<u32>,
    factors: Vec<f32>,
    /// Queries of many rows, rounded to F16, in chains.
    q: Vec<[f32; CHAIN]>,
    places: Vec<RowPlace>,
    states: Vec<RowState>,
    /// Unscaled outputs, `[row][vectors]`.
    outputs: Vec<[f32; LANES]>,
    tile: TileScratch,
    wide: WideScratch,
    #[cfg(target_arch = "x86_64")]
    bytes: ByteScratch,
}

impl Scratch {
    /// For heads of up to `head_dim_max` values.
    #[must_use]
    pub fn new(head_dim_max: usize) -> Self {
        let vectors = part_vectors(head_dim_max);
        Self {
            head_dim_max,
            packed: vec![0; WIDE_ROWS_MAX * head_dim_max],
            factors: vec![0.0; WIDE_ROWS_MAX],
            q: vec![[0.0; CHAIN]; WIDE_ROWS_MAX * head_dim_max.div_ceil(CHAIN)],
            places: vec![RowPlace::default(); WIDE_ROWS_MAX],
            states: vec![RowState::default(); WIDE_ROWS_MAX],
            outputs: vec![[0.0; LANES]; WIDE_ROWS_MAX * vectors],
            tile: TileScratch::new(vectors),
            wide: WideScratch::new(head_dim_max),
            #[cfg(target_arch = "x86_64")]
            bytes: ByteScratch::new(head_dim_max),
        }
    }
}

/// Attention of `queries` over one KV head; their results go to `out` as their values come. What is likely to be read
/// next, `then`, is asked for at the end.
///
/// Queries are rounded to F16, or as [`super::bytes`] says; softmax weights and sums of them are f32.
///
/// # Panics
/// If `head_dim` is below 16 or above the scratch's or not the cache's, or a slice, the block table or the pool is too
/// short.
pub fn attend(
    isa: Isa,
    shape: Shape,
    (kv, then): (KvView<'_>, Then<'_>),
    queries: Queries<'_>,
    out: Columns<'_>,
    scratch: &mut Scratch,
) {
    run(isa, Attend { shape, kv, then, queries, scratch, to: To::Results { out } });
}

/// The part that each of `splits` has in that, of few queries, to be put together by [`merge`].
///
/// # Panics
/// As [`attend`], or if there are more than [`PART_ROWS_MAX`] rows, or `parts` are not those of the splits.
pub fn attend_splits(
    isa: Isa,
    shape: Shape,
    (kv, then): (KvView<'_>, Option<Reading<'_>>),
    queries: Queries<'_>,
    (splits, parts): (Range<usize>, Parts<'_>),
    scratch: &mut Scratch,
) {
    let rows = queries.count * shape.group;
    assert!(rows <= PART_ROWS_MAX, "{rows} rows, {PART_ROWS_MAX} at most");
    assert_eq!(parts.states.len(), splits.len() * rows, "a state for each split and row");
    assert_eq!(parts.outputs.len(), parts.states.len() * part_vectors(shape.head_dim), "an output for each");
    let then = Then { cache: then, queries: &[] };
    run(isa, Attend { shape, kv, then, queries, scratch, to: To::Parts { splits, parts } });
}

/// Puts the parts of all splits together, to the bits of [`attend`]; uses them up.
///
/// # Panics
/// If `parts` are not those of all splits, or `out` is too short.
pub fn merge(isa: Isa, shape: Shape, queries: Queries<'_>, parts: Parts<'_>, out: Columns<'_>) {
    let rows = queries.count * shape.group;
    assert_eq!(parts.states.len(), queries.splits() * rows, "a state for each split and row");
    assert_eq!(parts.outputs.len(), parts.states.len() * part_vectors(shape.head_dim), "an output for each");
    dispatch(isa, Merge { shape, queries, parts, out });
}

fn run(isa: Isa, call: Attend<'_>) {
    let (Shape { head_dim, .. }, layout, most) = (call.shape, call.kv.layout, call.scratch.head_dim_max);
    assert!(head_dim >= LANES, "head_dim {head_dim} below {LANES}");
    assert!(head_dim <= most, "head_dim {head_dim} above {most}");
    assert_eq!(head_dim, layout.head_dim, "the cache's head_dim");
    match layout.kv_type {
        KvType::F16 => dispatch(isa, call),
        KvType::Int8 => match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::AmxInt8(proof) if call.fits_tiles() => dispatch_pairs(isa, OnTiles { call, proof }),
            _ => dispatch_pairs(isa, call),
        },
    }
}

struct Attend<'a> {
    shape: Shape,
    kv: KvView<'a>,
    then: Then<'a>,
    queries: Queries<'a>,
    scratch: &'a mut Scratch,
    to: To<'a>,
}

/// What becomes of the splits.
enum To<'a> {
    /// All of them together.
    Results { out: Columns<'a> },
    /// Some of them, each by itself.
    Parts { splits: Range<usize>, parts: Parts<'a> },
}

impl Kernel for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.compute(Halves(s));
    }
}

impl PairKernel for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<P: Pairs>(self, p: P) {
        self.compute(Bytes(p));
    }
}

/// Rows of an int8 cache that go by AMX's tiles.
#[cfg(target_arch = "x86_64")]
struct OnTiles<'a> {
    call: Attend<'a>,
    proof: AmxInt8,
}

#[cfg(target_arch = "x86_64")]
impl PairKernel for OnTiles<'_> {
    type Output = ();

    #[inline(always)]
    fn run<P: Pairs>(self, p: P) {
        let Attend { shape, kv, then, queries, scratch, to } = self.call;
        let (Shape { head_dim, group, scale }, To::Results { out }) = (shape, to) else {
            return;
        };
        let (rows, tiles) = (queries.count * group, Tiles::new(self.proof, [TILE_ROWS; 2]));
        for first in (0..rows).step_by(WIDE_ROWS_MAX) {
            let count = (rows - first).min(WIDE_ROWS_MAX);
            let end = queries.first_position + (first + count - 1) / group + 1;
            let call = AmxBytes {
                scale,
                kv,
                rows: Rows::new((head_dim, group), first, queries, out, &mut scratch.places[..count]),
                ahead: Ahead::new(p.floats(), Reading { kv, start: SPLIT, end }, then.cache),
                scratch: &mut scratch.bytes,
                states: &mut scratch.states[..count],
                outputs: &mut scratch.outputs[..count * part_vectors(head_dim)],
            };
            call.run(p, &tiles);
        }
    }
}

impl<'a> Attend<'a> {
    /// Whether there are rows enough, and none too long, for AMX's tiles.
    #[cfg(target_arch = "x86_64")]
    fn fits_tiles(&self) -> bool {
        let rows = self.queries.count * self.shape.group;
        let whole = matches!(self.to, To::Results { .. });
        whole && rows >= AMX_ROWS_MIN && self.shape.head_dim <= HEAD_DIM_MAX
    }

    #[inline(always)]
    fn compute<F: Format>(mut self, format: F) {
        let rows = self.queries.count * self.shape.group;
        for first in (0..rows).step_by(WIDE_ROWS_MAX) {
            let count = (rows - first).min(WIDE_ROWS_MAX);
            let whole = matches!(self.to, To::Results { .. });
            if F::WIDE && whole && count >= WIDE_TILES_MIN * F::S::TILE_ROWS {
                self.wide(format.simd(), first, count);
                continue;
            }
            self.pack(format, first, count);
            self.narrow(format, first, count);
            if whole {
                for row in 0..count {
                    self.finish(format.simd(), first, row);
                }
            }
        }
    }

    /// Divides a row's output by the sum of its weights.
    #[inline(always)]
    fn finish<S: Simd>(&mut self, s: S, first: usize, row: usize) {
        let Shape { head_dim, group, .. } = self.shape;
        let To::Results { out } = self.to else { return };
        let vectors = part_vectors(head_dim);
        let (state, outputs) = (self.scratch.states[row], &self.scratch.outputs[row * vectors..][..vectors]);
        let place = (first + row) / group * out.stride + (first + row) % group * head_dim;
        divide(s, state, outputs, &out.cells[place..][..head_dim]);
    }

    fn position(&self, row: usize) -> usize {
        self.queries.first_position + row / self.shape.group
    }

    /// Packs the queries of rows `first..first + count`, tile by tile.
    #[inline(always)]
    fn pack<F: Format>(&mut self, format: F, first: usize, count: usize) {
        let Shape { head_dim, scale, group } = self.shape;
        let Queries { values, stride, .. } = self.queries;
        let query = |row: usize| &values[row / group * stride + row % group * head_dim..][..head_dim];
        for tile in (0..count).step_by(F::S::TILE_ROWS) {
            let rows = (count - tile).min(F::S::TILE_ROWS);
            let width = tile_width::<F>(rows);
            let packed = &mut self.scratch.packed[tile * head_dim..][..width * format.packed_len(head_dim)];
            packed.fill(0);
            for r in 0..rows {
                let row = first + tile + r;
                self.scratch.factors[tile + r] = format.pack(query(row), scale, (r, width), packed);
            }
        }
    }

    /// The wanted splits of rows `first..first + count`; a row is one head of one query, heads fastest.
    ///
    /// Splits outside, tiles inside: a split's keys and values stay in L2 while all rows use them.
    #[inline(always)]
    fn narrow<F: Format>(&mut self, format: F, first: usize, count: usize) {
        let seen = self.position(first + count - 1) + 1;
        let splits = match &self.to {
            To::Results { .. } => 0..seen.div_ceil(SPLIT),
            To::Parts { splits, .. } => splits.clone(),
        };
        let (start, end) = (splits.start * SPLIT, seen.min(splits.end * SPLIT));
        let mut ahead = Ahead::new(format.simd(), Reading { kv: self.kv, start, end }, self.then.cache);
        for (nth, split) in splits.enumerate() {
            for tile in (0..count).step_by(F::S::TILE_ROWS) {
                let rows = (count - tile).min(F::S::TILE_ROWS);
                // Later tiles find the split in the cache.
                let mut none = Ahead::nothing(self.kv);
                let ahead = if tile == 0 { &mut ahead } else { &mut none };
                let place = Place { split, part: nth * count, first: first + tile, tile, rows };
                match tile_width::<F>(rows) {
                    1 => self.tile::<F, 1>(format, place, ahead),
                    2 => self.tile::<F, 2>(format, place, ahead),
                    3 => self.tile::<F, 3>(format, place, ahead),
                    4 => self.tile::<F, 4>(format, place, ahead),
                    6 => self.tile::<F, 6>(format, place, ahead),
                    _ => self.tile::<F, 8>(format, place, ahead),
                }
            }
        }
    }

    #[inline(always)]
    fn tile<F: Format, const R: usize>(&mut self, format: F, place: Place, ahead: &mut Ahead<'a>) {
        if R > F::S::TILE_ROWS {
            return;
        }
        let Place { split, part, first, tile, rows } = place;
        let mut seen = [0; R];
        for (r, seen) in seen[..rows].iter_mut().enumerate() {
            *seen = (self.position(first + r) + 1).saturating_sub(split * SPLIT).min(SPLIT);
        }
        let head_dim = self.shape.head_dim;
        let vectors = part_vectors(head_dim);
        let scratch = &mut *self.scratch;
        let mut factors = [0.0; R];
        factors[..rows].copy_from_slice(&scratch.factors[tile..tile + rows]);
        let (fresh, at, states, outputs) = match &mut self.to {
            To::Results { .. } => (split == 0, tile, &mut scratch.states[..], &mut scratch.outputs[..]),
            To::Parts { parts, .. } => (true, part + tile, &mut *parts.states, &mut *parts.outputs),
        };
        let tile = Tile {
            head_dim,
            kv: self.kv,
            split,
            fresh,
            seen,
            q: scratch.packed[tile * head_dim..][..R * format.packed_len(head_dim)].as_chunks().0,
            factors,
            ahead,
            scratch: &mut scratch.tile,
            states: &mut states[at..at + rows],
            outputs: &mut outputs[at * vectors..][..rows * vectors],
        };
        format.run(tile);
    }

    /// All splits of many rows.
    #[inline(always)]
    fn wide<S: Simd>(&mut self, s: S, first: usize, count: usize) {
        let Shape { head_dim, group, scale } = self.shape;
        let To::Results { out } = self.to else { return };
        let end = self.position(first + count - 1) + 1;
        let scratch = &mut *self.scratch;
        let wide = Wide {
            scale,
            kv: self.kv,
            rows: Rows::new((head_dim, group), first, self.queries, out, &mut scratch.places[..count]),
            q: &mut scratch.q[..count * head_dim.div_ceil(CHAIN)],
            ahead: Ahead::new(s, Reading { kv: self.kv, start: 0, end }, self.then.cache),
            next: self.then.queries,
            scratch: &mut scratch.wide,
            states: &mut scratch.states[..count],
            outputs: &mut scratch.outputs[..count * part_vectors(head_dim)],
        };
        wide.run(s);
    }
}

/// A tile of rows over a split.
#[derive(Clone, Copy)]
struct Place {
    split: usize,
    /// First row of the split in the parts.
    part: usize,
    /// First row among all, and in this chunk of them.
    first: usize,
    tile: usize,
    rows: usize,
}

struct Merge<'a> {
    shape: Shape,
    queries: Queries<'a>,
    parts: Parts<'a>,
    out: Columns<'a>,
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Shape { head_dim, group, .. } = self.shape;
        let (vectors, rows) = (part_vectors(head_dim), self.queries.count * group);
        let (states, later_states) = self.parts.states.split_at_mut(rows);
        let (outputs, later_outputs) = self.parts.outputs.split_at_mut(rows * vectors);
        for row in 0..rows {
            let position = self.queries.first_position + row / group;
            let (state, output) = (&mut states[row], &mut outputs[row * vectors..][..vectors]);
            for split in 0..position / SPLIT {
                let at = split * rows + row;
                let part = later_outputs[at * vectors..][..vectors].iter();
                merge_row(s, (state, output), later_states[at], part);
            }
            let place = row / group * self.out.stride + row % group * head_dim;
            divide(s, *state, output, &self.out.cells[place..][..head_dim]);
        }
    }
}

/// A row's output divided by the sum of its weights.
#[inline(always)]
fn divide<S: Simd>(s: S, state: RowState, outputs: &[[f32; LANES]], out: &[Cell<f32>]) {
    let (divisor, head_dim) = (Divisor::of(s, state), out.len());
    for (v, output) in outputs.iter().enumerate() {
        let out = out[column(v, head_dim)..].first_chunk().expect("a whole vector");
        s.store_cells(divisor.divide(s, s.load(output)), out);
    }
}

/// Rows that a tile computes to cover `rows`: those past them are zeros.
fn tile_width<F: Format>(rows: usize) -> usize {
    match rows {
        3 => F::THREE,
        5 => 6,
        7 => 8,
        _ => rows,
    }
}

/// Most rows of which splits are computed by themselves.
pub const PART_ROWS_MAX: usize = WIDE_ROWS_MAX;
/// From so many tiles of rows on, keys and values are widened to f32 for all of them.
const WIDE_TILES_MIN: usize = 3;
/// From so many rows on, keys and values are laid out as tiles for all of them.
#[cfg(target_arch = "x86_64")]
const AMX_ROWS_MIN: usize = 16;
