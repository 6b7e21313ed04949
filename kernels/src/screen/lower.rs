//! Lower bounds of the results of all rows: int8 products, then the bound of the module's proof.

use std::ops::Range;

use super::activations::{ScreenRow, ScreenRows, plane_stride};
use super::layout::{CODE_ZERO, GROUP_ROWS, ScreenMatrix, TILE_ROWS, TILE_ROWS_PER_GROUP, Tile, tiles_per_row};
use super::portable;
use crate::Isa;

/// Working memory of [`lower_bounds`]; grows to the most activation rows seen and stays.
#[derive(Clone, Debug, Default)]
pub struct LowerScratch {
    /// Index of each plane in use, in order.
    planes: Vec<usize>,
    /// Integer sums of two tile rows, each with all planes.
    sums: Vec<Sums>,
}

/// Sums of 16 rows with one plane.
pub(super) type Sums = [i32; TILE_ROWS];

impl LowerScratch {
    /// For calls of at most `n_max` activation rows: these do not allocate.
    #[must_use]
    pub fn new(n_max: usize) -> Self {
        Self { planes: Vec::with_capacity(2 * n_max), sums: vec![[0; TILE_ROWS]; 2 * 2 * n_max] }
    }
}

/// `out[t][r]` becomes a lower bound of what [`dense::linear`](crate::dense::linear) gives for the rows of the groups
/// `groups` and each activation row; `out` has for each of them as many columns as these groups have rows.
///
/// # Panics
/// Where the groups are not in the matrix or a slice has a length that does not fit.
pub fn lower_bounds(
    isa: Isa,
    w: ScreenMatrix<'_>,
    groups: Range<usize>,
    x: ScreenRows<'_>,
    out: &mut [f32],
    scratch: &mut LowerScratch,
) {
    let rows = groups.start * GROUP_ROWS..w.rows().min(groups.end * GROUP_ROWS);
    let stride = plane_stride(w.cols());
    assert!(!rows.is_empty() && groups.end <= w.rows().div_ceil(GROUP_ROWS), "groups lie in the matrix");
    assert_eq!(x.planes.len(), x.rows.len() * 2 * stride, "room for two planes of each row");
    assert_eq!(out.len(), x.rows.len() * rows.len(), "output length");
    scratch.planes.clear();
    for (t, row) in x.rows.iter().enumerate() {
        scratch.planes.extend((0..row.planes).map(|plane| (2 * t + plane) * stride));
    }
    let count = scratch.planes.len();
    if scratch.sums.len() < 2 * count {
        scratch.sums.resize(2 * count, [0; TILE_ROWS]);
    }
    let planes = Planes { values: x.planes, starts: &scratch.planes, tiles: tiles_per_row(w.cols()) };
    let sums = &mut scratch.sums[..2 * count];
    let job = Job { w, rows, x: x.rows, planes, out };
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(proof) => super::avx2::run(proof, job, sums),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(proof) => super::avx512::run(proof, job, sums),
        _ => job.run(sums, portable::products),
    }
}

/// The planes that a call multiplies with.
#[derive(Clone, Copy)]
pub(super) struct Planes<'a> {
    values: &'a [i8],
    starts: &'a [usize],
    tiles: usize,
}

impl<'a> Planes<'a> {
    #[inline(always)]
    pub(super) fn len(self) -> usize {
        self.starts.len()
    }

    /// Plane `index` in dwords of four columns, one for each tile.
    #[inline(always)]
    pub(super) fn dwords(self, index: usize) -> &'a [[i8; 4]] {
        &self.values[self.starts[index]..].as_chunks().0[..self.tiles]
    }
}

/// The four activations of a dword, as a register takes them.
#[inline(always)]
pub(super) fn word(dword: [i8; 4]) -> i32 {
    let [a, b, c, d] = dword;
    i32::from_ne_bytes([a.cast_unsigned(), b.cast_unsigned(), c.cast_unsigned(), d.cast_unsigned()])
}

/// A checked call.
pub(super) struct Job<'a> {
    w: ScreenMatrix<'a>,
    rows: Range<usize>,
    x: &'a [ScreenRow],
    planes: Planes<'a>,
    out: &'a mut [f32],
}

impl Job<'_> {
    /// Goes through the tile rows two at a time. `products` fills the sums of two tile rows: those of the first with all
    /// planes, then those of the second.
    #[inline(always)]
    pub(super) fn run(mut self, sums: &mut [Sums], products: impl Fn([&[Tile]; 2], Planes<'_>, &mut [Sums])) {
        let tile_rows = self.rows.start / TILE_ROWS..self.rows.end.div_ceil(TILE_ROWS);
        // A group is whole pairs.
        for first in tile_rows.step_by(2) {
            products([self.w.tile_row(first), self.w.tile_row(first + 1)], self.planes, sums);
            let (low, high) = sums.split_at(self.planes.len());
            self.finish(first, low);
            if (first + 1) * TILE_ROWS < self.rows.end {
                self.finish(first + 1, high);
            }
        }
    }

    /// Lower bounds of one tile row.
    #[inline(always)]
    fn finish(&mut self, tile_row: usize, sums: &[Sums]) {
        let facts = self.w.facts(tile_row / TILE_ROWS_PER_GROUP);
        let at = tile_row % TILE_ROWS_PER_GROUP * TILE_ROWS;
        let mut numbers = [[0.0; TILE_ROWS]; 3];
        for (numbers, facts) in numbers.iter_mut().zip(facts) {
            for (number, bytes) in numbers.iter_mut().zip(&facts[at..]) {
                *number = f32::from_le_bytes(*bytes);
            }
        }
        let start = tile_row * TILE_ROWS - self.rows.start;
        let width = self.rows.len();
        let mut plane = 0;
        for (t, x) in self.x.iter().enumerate() {
            let lower = bounds(x, &numbers, &sums[plane..plane + x.planes]);
            plane += x.planes;
            let out = &mut self.out[t * width..(t + 1) * width][start..];
            if let Some(out) = out.first_chunk_mut() {
                *out = lower;
            } else {
                out.copy_from_slice(&lower[..out.len()]);
            }
        }
    }
}

#[inline(always)]
fn bounds(x: &ScreenRow, [scale, spread, length]: &[[f32; TILE_ROWS]; 3], sums: &[Sums]) -> [f32; TILE_ROWS] {
    let mut product = [0.0; TILE_ROWS];
    for (sums, (step, sum)) in sums.iter().zip(x.step.into_iter().zip(x.sum)) {
        // The codes are `q + CODE_ZERO`.
        let zero = i32::from(CODE_ZERO) * sum;
        for (product, sum) in product.iter_mut().zip(sums) {
            *product += step * (sum - zero) as f32;
        }
    }
    let mut lower = [0.0; TILE_ROWS];
    for l in 0..TILE_ROWS {
        lower[l] = product[l] * scale[l] - (spread[l] * x.norm + length[l] * x.rest);
    }
    lower
}
