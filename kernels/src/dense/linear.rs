//! `y = W x` in float: element `k` of a row goes to lane `k % 16` of the sum by fused multiply-add, `k` ascending; the
//! lanes merge by one fixed tree. Same bits on every ISA and for every number of activation rows.

use std::marker::PhantomData;
use std::ops::Range;

use super::format::{Bf16, F16, F32, Format, Q4_0, Q6K, Q8_0};
use super::lanes::{Kernel, LANES, Lanes, TILE_ROWS, tree};
use super::matrix::{DenseKind, DenseMatrix};
use super::portable::Portable;
use crate::{FloatIsa, Isa};

/// Working memory of [`linear`]; grows to the largest number of activation rows seen and stays.
#[derive(Clone, Debug, Default)]
pub struct DenseScratch {
    /// `PANEL_ROWS` dequantised rows of at most `PANEL_COLS` columns.
    weights: Box<Panel>,
    /// Lane sums of `PANEL_ROWS` rows x n.
    sums: Vec<Group>,
}

/// Sixteen floats in a cache line of their own.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Group([f32; LANES]);

/// Decoded weights, `PANEL_ROWS` rows of `PANEL_GROUPS`.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Panel([[f32; LANES]; PANEL_ROWS * PANEL_GROUPS]);

impl Default for Panel {
    fn default() -> Self {
        Self([[0.0; LANES]; PANEL_ROWS * PANEL_GROUPS])
    }
}

impl DenseScratch {
    /// Scratch for calls of at most `n_max` activation rows: these do not allocate.
    #[must_use]
    pub fn new(n_max: usize) -> Self {
        let mut scratch = Self::default();
        scratch.grow(n_max);
        scratch
    }

    fn grow(&mut self, n: usize) {
        if n > 1 && self.sums.len() < PANEL_ROWS * n {
            self.sums.resize(PANEL_ROWS * n, Group::default());
        }
    }
}

/// `out[t][r] = sum over k of w[r][k] * x[t][k]` for the rows `rows` of `w`; `x` is `n x cols`, `out` is
/// `n x rows.len()`.
///
/// # Panics
/// Where `rows` leaves the matrix, `x` is not whole rows or `out` has another length.
pub fn linear(
    isa: Isa,
    w: DenseMatrix<'_>,
    rows: Range<usize>,
    x: &[f32],
    out: &mut [f32],
    scratch: &mut DenseScratch,
) {
    assert!(rows.start <= rows.end && rows.end <= w.rows(), "rows lie in the matrix");
    assert!(x.len().is_multiple_of(w.cols()), "activations are whole rows");
    let n = x.len() / w.cols();
    assert_eq!(out.len(), n * rows.len(), "output length");
    if out.is_empty() {
        return;
    }
    scratch.grow(n);
    run(isa, Linear { w, rows, x, n, out, scratch });
}

/// `out[i]` becomes what [`linear`] gives for row `rows[i]` and the one activation row `x`.
///
/// # Panics
/// Where a row is not in the matrix, `x` is not one row or `out` has another length than `rows`.
pub fn linear_rows(isa: Isa, w: DenseMatrix<'_>, rows: &[u32], x: &[f32], out: &mut [f32]) {
    assert!(rows.iter().all(|&row| (row as usize) < w.rows()), "rows lie in the matrix");
    assert_eq!(x.len(), w.cols(), "one activation row");
    assert_eq!(out.len(), rows.len(), "output length");
    run(isa, Scattered { w, rows, x, out });
}

/// Row `row` of `w` as floats.
///
/// # Panics
/// Where `row` is not in the matrix or `out` is not `cols` long.
pub fn dequantize_row(isa: Isa, w: DenseMatrix<'_>, row: usize, out: &mut [f32]) {
    assert!(row < w.rows(), "row lies in the matrix");
    assert_eq!(out.len(), w.cols(), "output length");
    run(isa, DequantizeRow { w, row, out });
}

fn run(isa: Isa, kernel: impl Kernel) {
    match isa.floats() {
        #[cfg(target_arch = "x86_64")]
        FloatIsa::Avx2(proof) => super::avx2::run(proof, kernel),
        #[cfg(target_arch = "x86_64")]
        FloatIsa::Avx512Bw(proof) => super::avx512::run(proof, kernel),
        #[cfg(target_arch = "aarch64")]
        FloatIsa::Neon(proof) => super::neon::run(proof, kernel),
        FloatIsa::Portable => kernel.run(Portable),
        _ => unreachable!("no proof exists on this machine"),
    }
}

/// Calls a generic method with the [`Format`] of a kind.
macro_rules! by_kind {
    ($kind:expr, $self:ident.$method:ident($($arg:expr),*)) => {
        match $kind {
            DenseKind::F32 => $self.$method::<S, F32>($($arg),*),
            DenseKind::F16 => $self.$method::<S, F16>($($arg),*),
            DenseKind::Bf16 => $self.$method::<S, Bf16>($($arg),*),
            DenseKind::Q8_0 => $self.$method::<S, Q8_0>($($arg),*),
            DenseKind::Q6K => $self.$method::<S, Q6K>($($arg),*),
            DenseKind::Q4_0 => $self.$method::<S, Q4_0>($($arg),*),
        }
    };
}

struct DequantizeRow<'a> {
    w: DenseMatrix<'a>,
    row: usize,
    out: &'a mut [f32],
}

impl Kernel for DequantizeRow<'_> {
    #[inline(always)]
    fn run<S: Lanes>(self, lanes: S) {
        by_kind!(self.w.kind(), self.by_format(lanes));
    }
}

impl DequantizeRow<'_> {
    #[inline(always)]
    fn by_format<S: Lanes, F: Format>(self, lanes: S) {
        let bytes = self.w.row(self.row);
        dequantize::<S, F>(lanes, bytes, 0, self.out.as_chunks_mut().0);
        for k in self.w.tail() {
            self.out[k] = self.w.float(bytes, k);
        }
    }
}

/// Fills `out`, whole blocks of `F`, from the start of `bytes`; asks for what lies `ahead` bytes behind them.
#[inline(always)]
fn dequantize<S: Lanes, F: Format>(lanes: S, bytes: &[u8], ahead: usize, out: &mut [[f32; LANES]]) {
    let mut opened = F::empty(lanes);
    for (out, bytes) in out.chunks_exact_mut(F::COLS / LANES).zip(bytes.chunks_exact(F::BYTES)) {
        for line in 0..F::BYTES.div_ceil(64) {
            lanes.prefetch(bytes, ahead + line * 64);
        }
        F::open(lanes, bytes, &mut opened);
        for (g, out) in out.iter_mut().enumerate() {
            lanes.store(F::group(lanes, bytes, &opened, g), out);
        }
    }
}

/// Single rows, wherever they are.
struct Scattered<'a> {
    w: DenseMatrix<'a>,
    rows: &'a [u32],
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Scattered<'_> {
    #[inline(always)]
    fn run<S: Lanes>(self, lanes: S) {
        by_kind!(self.w.kind(), self.by_format(lanes));
    }
}

impl Scattered<'_> {
    #[inline(always)]
    fn by_format<S: Lanes, F: Format>(mut self, lanes: S) {
        let (fours, rest) = self.rows.as_chunks::<SCATTERED_ROWS>();
        for (i, four) in fours.iter().enumerate() {
            let next = fours.get(i + 1).unwrap_or(four);
            self.some::<S, F, SCATTERED_ROWS>(lanes, i * SCATTERED_ROWS, (four, next));
        }
        for (i, row) in rest.iter().enumerate() {
            self.some::<S, F, 1>(lanes, fours.len() * SCATTERED_ROWS + i, (&[*row], &[*row]));
        }
    }

    /// The results from `first` on, of the rows `rows`; `next` come after them.
    #[inline(always)]
    fn some<S: Lanes, F: Format, const R: usize>(
        &mut self,
        lanes: S,
        first: usize,
        (rows, next): (&[u32; R], &[u32; R]),
    ) {
        let rows: [_; R] = std::array::from_fn(|r| self.w.row(rows[r] as usize));
        let next = std::array::from_fn(|r| self.w.row(next[r] as usize));
        let mut sums = [Group::default(); R];
        lanes.outline(Dot::<F, R> { rows, next: Some(next), x: self.x, sums: &mut sums, format: PhantomData });
        for (r, Group(mut sums)) in sums.into_iter().enumerate() {
            add_tail(self.w, rows[r], self.x, &mut sums);
            self.out[first + r] = tree(&sums);
        }
    }
}

/// Adds the columns after the last whole group.
#[inline(always)]
fn add_tail(w: DenseMatrix<'_>, row: &[u8], x: &[f32], sums: &mut [f32; LANES]) {
    for k in w.tail() {
        sums[k % LANES] = w.float(row, k).mul_add(x[k], sums[k % LANES]);
    }
}

struct Linear<'a> {
    w: DenseMatrix<'a>,
    rows: Range<usize>,
    x: &'a [f32],
    n: usize,
    out: &'a mut [f32],
    scratch: &'a mut DenseScratch,
}

impl Kernel for Linear<'_> {
    #[inline(always)]
    fn run<S: Lanes>(mut self, lanes: S) {
        if self.n == 1 {
            by_kind!(self.w.kind(), self.vector(lanes));
        } else {
            self.matrix(lanes);
        }
    }
}

impl Linear<'_> {
    /// One activation row: weights are decoded into registers and used once.
    #[inline(always)]
    fn vector<S: Lanes, F: Format>(&mut self, lanes: S) {
        let mut row = self.rows.start;
        while row < self.rows.end {
            let left = self.rows.end - row;
            row += if F::COLS > VECTOR_LONG_BLOCK && left >= 4 {
                self.vector_rows::<S, F, 4>(lanes, row)
            } else if left >= 2 {
                self.vector_rows::<S, F, 2>(lanes, row)
            } else {
                self.vector_rows::<S, F, 1>(lanes, row)
            };
        }
    }

    /// Rows `row ..+ R`; returns `R`.
    #[inline(always)]
    fn vector_rows<S: Lanes, F: Format, const R: usize>(&mut self, lanes: S, row: usize) -> usize {
        let mut sums = [Group::default(); R];
        let rows = std::array::from_fn(|r| self.w.row(row + r));
        lanes.outline(Dot::<F, R> { rows, next: None, x: self.x, sums: &mut sums, format: PhantomData });
        for (r, sums) in sums.iter().enumerate() {
            self.finish(row + r, 0, sums.0);
        }
        R
    }

    /// Several activation rows: panels of weights are decoded once into the first-level cache.
    #[inline(always)]
    fn matrix<S: Lanes>(&mut self, lanes: S) {
        let groups = self.w.tail().start / LANES;
        for first in self.rows.clone().step_by(PANEL_ROWS) {
            let rows = first..(first + PANEL_ROWS).min(self.rows.end);
            self.scratch.sums[..PANEL_ROWS * self.n].fill(Group::default());
            for start in (0..groups).step_by(PANEL_GROUPS) {
                let len = PANEL_GROUPS.min(groups - start);
                by_kind!(self.w.kind(), self.panel(lanes, rows.clone(), start, len));
                self.multiply(lanes, rows.len(), start, len);
            }
            for row in rows.clone() {
                for t in 0..self.n {
                    self.finish(row, t, self.scratch.sums[(row - first) * self.n + t].0);
                }
            }
        }
    }

    /// Decodes the groups `start ..+ len` of `rows`, and asks for those that come next.
    #[inline(always)]
    fn panel<S: Lanes, F: Format>(&mut self, lanes: S, rows: Range<usize>, start: usize, len: usize) {
        let row_bytes = self.w.row(rows.start).len();
        let (first, piece) = (start * LANES / F::COLS * F::BYTES, len * LANES / F::COLS * F::BYTES);
        let last = start + len == self.w.tail().start / LANES;
        let ahead = if last { PANEL_ROWS * row_bytes - first } else { piece };
        for (row, panel) in rows.zip(self.scratch.weights.0.chunks_exact_mut(PANEL_GROUPS)) {
            dequantize::<S, F>(lanes, &self.w.row(row)[first..], ahead, &mut panel[..len]);
        }
    }

    /// Adds the products of `rows` panel rows and all activation rows over the groups `start ..+ len`.
    #[inline(always)]
    fn multiply<S: Lanes>(&mut self, lanes: S, rows: usize, start: usize, len: usize) {
        let tiles = self.n.div_ceil(S::TILE_TOKENS);
        for tile in 0..tiles {
            let t = tile * self.n / tiles;
            let tokens = (tile + 1) * self.n / tiles - t;
            let mut row = 0;
            while row < rows {
                let height = if rows - row >= TILE_ROWS { TILE_ROWS } else { 1 };
                let tile = Tile { row, t, start, len };
                macro_rules! by_size {
                    ($($n:literal),*) => {
                        match (height, tokens) {
                            $((TILE_ROWS, $n) if $n <= S::TILE_TOKENS => self.tile::<S, TILE_ROWS, $n>(lanes, tile),)*
                            $((_, $n) if $n <= S::TILE_TOKENS => self.tile::<S, 1, $n>(lanes, tile),)*
                            _ => unreachable!("tiles have at most TILE_TOKENS activation rows"),
                        }
                    };
                }
                by_size!(1, 2, 3, 4, 5, 6);
                row += height;
            }
        }
    }

    #[inline(always)]
    fn tile<S: Lanes, const R: usize, const N: usize>(&mut self, lanes: S, tile: Tile) {
        let Tile { row, t, start, len } = tile;
        let DenseScratch { weights, sums } = &mut *self.scratch;
        let w = std::array::from_fn(|r| &weights.0[(row + r) * PANEL_GROUPS..][..len]);
        let x = std::array::from_fn(|i| &self.x[(t + i) * self.w.cols()..].as_chunks().0[start..start + len]);
        let sums = &mut sums[row * self.n + t..(row + R - 1) * self.n + t + N];
        lanes.outline(Product::<R, N> { w, x, sums, n: self.n });
    }

    /// Adds the columns after the last whole group and merges the lanes.
    #[inline(always)]
    fn finish(&mut self, row: usize, t: usize, mut sums: [f32; LANES]) {
        add_tail(self.w, self.w.row(row), &self.x[t * self.w.cols()..], &mut sums);
        self.out[t * self.rows.len() + row - self.rows.start] = tree(&sums);
    }
}

/// A register tile: panel rows from `row`, activation rows from `t`, `len` column groups from `start`.
#[derive(Clone, Copy)]
struct Tile {
    row: usize,
    t: usize,
    start: usize,
    len: usize,
}

/// Lane sums of `R` rows over the whole groups of columns. Meanwhile `next` are asked for, or the `R` rows behind these in
/// the order of their addresses: `R` streams that each end after a row are too short for the machine's own prefetching.
struct Dot<'a, F, const R: usize> {
    rows: [&'a [u8]; R],
    next: Option<[&'a [u8]; R]>,
    x: &'a [f32],
    sums: &'a mut [Group; R],
    format: PhantomData<F>,
}

impl<F: Format, const R: usize> Kernel for Dot<'_, F, R> {
    #[inline(always)]
    fn run<S: Lanes>(self, lanes: S) {
        let mut opened = [F::empty(lanes); R];
        let mut sums = [lanes.splat(0.0); R];
        for (block, x) in self.x.as_chunks::<LANES>().0.chunks_exact(F::COLS / LANES).enumerate() {
            if let Some(next) = self.next {
                for next in next {
                    for line in 0..F::BYTES.div_ceil(64) {
                        lanes.prefetch(next, block * F::BYTES + line * 64);
                    }
                }
            } else {
                for line in 0..(R * F::BYTES).div_ceil(64) {
                    lanes.prefetch(self.rows[0], R * self.rows[0].len() + block * R * F::BYTES + line * 64);
                }
            }
            let mut bytes = self.rows;
            for (bytes, opened) in bytes.iter_mut().zip(&mut opened) {
                *bytes = &bytes[block * F::BYTES..][..F::BYTES];
                F::open(lanes, bytes, opened);
            }
            for (g, x) in x.iter().enumerate() {
                let x = lanes.load(x);
                for r in 0..R {
                    sums[r] = lanes.fma(F::group(lanes, bytes[r], &opened[r], g), x, sums[r]);
                }
            }
        }
        for (sum, out) in sums.into_iter().zip(self.sums) {
            lanes.store(sum, &mut out.0);
        }
    }
}

/// Adds the products of `R` decoded rows and `N` activation rows to their lane sums, which lie `n` apart by row.
struct Product<'a, const R: usize, const N: usize> {
    w: [&'a [[f32; LANES]]; R],
    x: [&'a [[f32; LANES]]; N],
    sums: &'a mut [Group],
    n: usize,
}

impl<const R: usize, const N: usize> Kernel for Product<'_, R, N> {
    #[inline(always)]
    fn run<S: Lanes>(self, lanes: S) {
        let len = self.w[0].len();
        let (mut w, mut x) = (self.w, self.x);
        for w in &mut w {
            *w = &w[..len];
        }
        for x in &mut x {
            *x = &x[..len];
        }
        let mut sums = [[lanes.splat(0.0); N]; R];
        for (r, sums) in sums.iter_mut().enumerate() {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = lanes.load(&self.sums[r * self.n + i].0);
            }
        }
        for k in 0..len {
            let mut weights = [lanes.splat(0.0); R];
            for r in 0..R {
                weights[r] = lanes.load(&w[r][k]);
            }
            for i in 0..N {
                let x = lanes.load(&x[i][k]);
                for r in 0..R {
                    sums[r][i] = lanes.fma(weights[r], x, sums[r][i]);
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            for (i, sum) in sums.into_iter().enumerate() {
                lanes.store(sum, &mut self.sums[r * self.n + i].0);
            }
        }
    }
}

/// One activation row goes through two rows of weights at once, which is as fast as memory (F16: 25 GB/s, with four
/// 23; Q8_0: 18 and 15), or through four where a block is longer than this and its decoding is what takes the time
/// (Q6_K: 9 GB/s with two, 12.5 with four).
const VECTOR_LONG_BLOCK: usize = 32;
/// Rows of [`linear_rows`] that go together: one alone waits for its sum, and for memory.
const SCATTERED_ROWS: usize = 4;
/// Rows and 16-column groups of a decoded panel: 16 KiB; columns are whole blocks of every kind.
const PANEL_ROWS: usize = 8;
const PANEL_GROUPS: usize = 32;

const _: () = assert!((PANEL_GROUPS * LANES).is_multiple_of(256));
