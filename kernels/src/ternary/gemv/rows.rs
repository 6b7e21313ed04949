//! Rows of weights, each contiguous: what is read is only what was asked for.

use super::super::layout::{ShapeError, TILE_BYTES, TILE_ROWS, TernaryMatrix, Tile};
use super::super::linear::{Finish, Scaled};
use crate::Isa;

/// Columns in one line of a row.
pub(super) const LINE_COLS: usize = 4 * TILE_BYTES;

/// Bytes of the row form of a `rows` x `cols` matrix.
#[must_use]
pub const fn row_bytes(rows: usize, cols: usize) -> usize {
    rows * cols.div_ceil(LINE_COLS) * TILE_BYTES
}

/// Length of a row of activations in the order of [`permute_row`].
#[must_use]
pub const fn permuted_cols(cols: usize) -> usize {
    cols.next_multiple_of(LINE_COLS)
}

/// A `rows` x `cols` matrix of ternary weights, row after row, each padded to whole lines of 64 bytes with weights of
/// zero.
///
/// Byte `4 * d + j` of line `b` holds, in bits `2 * s .. 2 * s + 2`, the code `w + 1` of column
/// `256 * b + 16 * d + 4 * s + j` (`d` in 0..16; `j`, `s` in 0..4): dword `d` is lane `row % 16` of the `16 * b + d`-th
/// tile of a [`TernaryMatrix`].
#[derive(Clone, Copy, Debug)]
pub struct RowMatrix<'a> {
    lines: &'a [Tile],
    rows: usize,
    cols: usize,
    scale: f32,
}

impl<'a> RowMatrix<'a> {
    /// A view of `bytes`, written by [`pack_rows`].
    ///
    /// # Errors
    /// [`ShapeError`] where `bytes` is not exactly [`row_bytes`] long.
    pub fn new(bytes: &'a [u8], rows: usize, cols: usize, scale: f32) -> Result<Self, ShapeError> {
        let need = row_bytes(rows, cols);
        if bytes.len() != need {
            return Err(ShapeError::Bytes { got: bytes.len(), need });
        }
        Ok(Self { lines: bytes.as_chunks().0, rows, cols, scale })
    }

    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    pub(super) fn lines_per_row(&self) -> usize {
        self.cols.div_ceil(LINE_COLS)
    }

    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> &'a [Tile] {
        &self.lines[row * self.lines_per_row()..(row + 1) * self.lines_per_row()]
    }
}

/// Writes `w` row by row into `out`.
///
/// # Panics
/// Where `out` is not [`row_bytes`] long.
pub fn pack_rows(w: TernaryMatrix<'_>, out: &mut [u8]) {
    assert_eq!(out.len(), row_bytes(w.rows(), w.cols()), "row form length");
    out.fill(FOUR_ZERO_WEIGHTS);
    let row_len = row_bytes(1, w.cols());
    for (index, rows) in out.chunks_mut(TILE_ROWS * row_len).enumerate() {
        for (i, tile) in w.row_tiles(index..index + 1).iter().enumerate() {
            for (row, lane) in rows.chunks_exact_mut(row_len).zip(tile.as_chunks::<4>().0) {
                row[4 * i..4 * i + 4].copy_from_slice(lane);
            }
        }
    }
}

/// One quantised row in the order that [`RowMatrix`] meets it.
#[derive(Clone, Copy, Debug)]
pub struct RowActivations<'a> {
    /// Written by [`permute_row`].
    pub q: &'a [i8],
    pub scale: f32,
    pub sum: i32,
}

/// Brings a quantised row into the order of [`RowActivations`]: of each 256 columns first those of field 0, then those
/// of the others. Columns past the end of `q` are 0.
///
/// # Panics
/// Where `out` is not whole groups of 256 or shorter than `q`.
pub fn permute_row(q: &[i8], out: &mut [i8]) {
    assert!(out.len().is_multiple_of(LINE_COLS) && out.len() >= q.len(), "the permuted row holds whole lines");
    for (b, out) in out.as_chunks_mut::<LINE_COLS>().0.iter_mut().enumerate() {
        let mut line = [0; LINE_COLS];
        let part = &q[(b * LINE_COLS).min(q.len())..q.len().min((b + 1) * LINE_COLS)];
        line[..part.len()].copy_from_slice(part);
        for (d, columns) in line.as_chunks::<16>().0.iter().enumerate() {
            for s in 0..4 {
                out[64 * s + 4 * d..][..4].copy_from_slice(&columns[4 * s..4 * s + 4]);
            }
        }
    }
}

/// `out[i] = ((acc - sum) as f32) / scale * w.scale` for the rows `first + i` with `i` in `live`; the other elements of
/// `out` keep what they hold.
///
/// # Panics
/// Where a row is none of the matrix or of `out`, or `x` is not [`permuted_cols`] long.
pub fn linear_rows(isa: Isa, w: RowMatrix<'_>, first: usize, live: &[u32], x: RowActivations<'_>, out: &mut [f32]) {
    assert_eq!(x.q.len(), permuted_cols(w.cols()), "activations fill whole lines");
    assert!(first + out.len() <= w.rows(), "rows lie in the matrix");
    assert!(live.iter().all(|&i| (i as usize) < out.len()), "rows lie in the output");
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(proof) => super::avx512_vnni::rows(proof, w, first, live, x, Scaled(w.scale), out),
        #[cfg(target_arch = "x86_64")]
        Isa::AmxInt8(proof) => super::avx512_vnni::rows(proof.vnni(), w, first, live, x, Scaled(w.scale), out),
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni(proof) => super::narrow::avx_vnni::rows(proof, w, first, live, x, Scaled(w.scale), out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bw(proof) => super::narrow::avx2::rows(proof.avx2(), w, first, live, x, Scaled(w.scale), out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(proof) => super::narrow::avx2::rows(proof, w, first, live, x, Scaled(w.scale), out),
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDotprod(proof) => super::neon::rows(proof, w, first, live, x, Scaled(w.scale), out),
        #[cfg(target_arch = "aarch64")]
        Isa::NeonI8mm(proof) => super::neon::rows(proof.dotprod(), w, first, live, x, Scaled(w.scale), out),
        _ => {
            for &i in live {
                let acc = dot(w.row(first + i as usize), x.q);
                out[i as usize] = Scaled(w.scale).finish(acc.wrapping_sub(x.sum), x.scale);
            }
        }
    }
}

fn dot(row: &[Tile], q: &[i8]) -> i32 {
    let mut acc = 0_i32;
    for (line, q) in row.iter().zip(q.as_chunks::<LINE_COLS>().0) {
        for s in 0..4 {
            for (byte, &q) in line.iter().zip(&q[64 * s..64 * s + 64]) {
                acc += i32::from((byte >> (2 * s)) & 3) * i32::from(q);
            }
        }
    }
    acc
}

/// Code 1 four times.
const FOUR_ZERO_WEIGHTS: u8 = 0b01_01_01_01;
