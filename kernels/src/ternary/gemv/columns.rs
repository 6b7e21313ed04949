//! Columns of weights, each contiguous over a block of rows: columns that meet a zero are never read.

use std::ops::Range;

use super::super::layout::{ShapeError, TILE_BYTES, TILE_COLS, TILE_ROWS, TernaryMatrix, Tile};
use super::super::linear::{Finish, Scaled};
use super::super::pack::transpose;
use crate::Isa;

/// Rows in one line of a column.
pub(super) const LINE_ROWS: usize = 4 * TILE_BYTES;
/// Most columns of a [`ColumnMatrix`]: the kernels sum `64 * code * q` in 32 bits, four columns at a time, at most
/// `2^16 * COLUMN_COLS_MAX / 4 = 2^30`.
pub const COLUMN_COLS_MAX: usize = 1 << 16;

/// Bytes of the column form of a `rows` x `cols` matrix in blocks of `lines` lines.
#[must_use]
pub const fn column_bytes(rows: usize, cols: usize, lines: usize) -> usize {
    rows.div_ceil(LINE_ROWS * lines) * cols * lines * TILE_BYTES
}

/// A `rows` x `cols` matrix of ternary weights in blocks of `256 * lines` rows; in a block column after column, each
/// `lines` lines of 64 bytes. Rows are padded with weights of zero.
///
/// Byte `4 * l + g` of a line holds, in bits `2 * s .. 2 * s + 2`, the code `w + 1` of row `64 * g + 16 * s + l` of its
/// 256 (`l` in 0..16; `g`, `s` in 0..4). A dword turned by one, two and three bytes beside that of three other columns
/// gives, by selecting bytes, four dwords which hold four columns of the same rows: the operand of `vpdpbusd`.
#[derive(Clone, Copy, Debug)]
pub struct ColumnMatrix<'a> {
    tiles: &'a [Tile],
    rows: usize,
    cols: usize,
    lines: usize,
    scale: f32,
}

impl<'a> ColumnMatrix<'a> {
    /// A view of `bytes`, written by [`pack_columns`] with the same `lines`.
    ///
    /// # Errors
    /// [`ShapeError`] where `bytes` is not exactly [`column_bytes`] long, or there are no columns or more than
    /// [`COLUMN_COLS_MAX`].
    pub fn new(bytes: &'a [u8], rows: usize, cols: usize, lines: usize, scale: f32) -> Result<Self, ShapeError> {
        if cols == 0 || cols > COLUMN_COLS_MAX {
            return Err(ShapeError::Cols { got: cols, max: COLUMN_COLS_MAX, multiple_of: 1 });
        }
        let need = column_bytes(rows, cols, lines);
        if bytes.len() != need {
            return Err(ShapeError::Bytes { got: bytes.len(), need });
        }
        Ok(Self { tiles: bytes.as_chunks().0, rows, cols, lines, scale })
    }

    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Rows of a block.
    #[must_use]
    pub fn block_rows(&self) -> usize {
        LINE_ROWS * self.lines
    }

    /// Lines of a column in a block.
    pub(super) fn lines(&self) -> usize {
        self.lines
    }

    /// All columns of a block, [`ColumnMatrix::lines`] lines each.
    pub(super) fn block(&self, index: usize) -> &'a [Tile] {
        let len = self.cols * self.lines;
        &self.tiles[index * len..(index + 1) * len]
    }
}

/// Writes `w` column by column into `out`.
///
/// # Panics
/// Where `out` is not [`column_bytes`] long.
pub fn pack_columns(w: TernaryMatrix<'_>, lines: usize, out: &mut [u8]) {
    assert_eq!(out.len(), column_bytes(w.rows(), w.cols(), lines), "column form length");
    out.fill(FOUR_ZERO_WEIGHTS);
    let tile_rows = w.rows().div_ceil(TILE_ROWS);
    for index in 0..tile_rows {
        let (line, part) = (index / 16, index % 16);
        let (g, s) = (part / 4, part % 4);
        // The four row tiles of one byte are written together, with the first of them.
        if s != 0 {
            continue;
        }
        let block = out.as_chunks_mut::<TILE_BYTES>().0;
        let block = &mut block[line / lines * w.cols() * lines..][..w.cols() * lines];
        let rows: [&[Tile]; 4] =
            std::array::from_fn(|s| if index + s < tile_rows { w.row_tiles(index + s..index + s + 1) } else { &[] });
        for i in 0..w.cols().div_ceil(TILE_COLS) {
            for l in 0..TILE_ROWS {
                let words = rows.map(|tiles| tiles.get(i).map_or(ZERO_WEIGHTS, |tile| lane(tile, l)));
                for (at, word) in transpose(words).into_iter().enumerate() {
                    for (j, byte) in word.to_le_bytes().into_iter().enumerate() {
                        let column = TILE_COLS * i + 4 * at + j;
                        if column < w.cols() {
                            block[column * lines + line % lines][4 * l + g] = byte;
                        }
                    }
                }
            }
        }
    }
}

fn lane(tile: &Tile, l: usize) -> u32 {
    u32::from_le_bytes([tile[4 * l], tile[4 * l + 1], tile[4 * l + 2], tile[4 * l + 3]])
}

/// The columns of a row of activations that are not zero, four to a word.
#[derive(Debug, Default)]
pub struct LiveColumns {
    columns: Vec<u32>,
    words: Vec<[i8; 4]>,
    count: usize,
}

impl LiveColumns {
    /// Memory for rows of at most `cols` columns.
    #[must_use]
    pub fn with_capacity(cols: usize) -> Self {
        let cols = cols.next_multiple_of(4);
        Self { columns: vec![0; cols], words: Vec::with_capacity(cols / 4), count: 0 }
    }

    /// Finds the columns of `q` that aren't zero.
    ///
    /// # Panics
    /// Where `q` is longer than the capacity.
    pub fn find(&mut self, q: &[i8]) {
        assert!(q.len() <= self.columns.len(), "the row fits the list");
        let columns = &mut self.columns[..];
        let mut count = 0;
        for (column, &q) in (0_u32..).zip(q) {
            // Never more written than read.
            columns[count] = column;
            count += usize::from(q != 0);
        }
        self.count = count;
        self.words.clear();
        // Rounded up to whole words by columns whose activation counts as zero.
        let whole = count.next_multiple_of(4);
        columns[count..whole].fill(0);
        for (i, four) in columns[..whole].as_chunks::<4>().0.iter().enumerate() {
            let mut word = [0; 4];
            for (j, word) in word.iter_mut().enumerate() {
                *word = if 4 * i + j < count { q[four[j] as usize] } else { 0 };
            }
            self.words.push(word);
        }
    }

    /// How many columns count.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    pub(super) fn columns(&self) -> &[[u32; 4]] {
        &self.columns.as_chunks::<4>().0[..self.words.len()]
    }

    pub(super) fn words(&self) -> &[[i8; 4]] {
        &self.words
    }
}

/// `out[r] = ((acc - sum) as f32) / scale * w.scale` for the rows `rows` of `w` and one row of activations, whose
/// columns that aren't zero are `live`.
///
/// # Panics
/// Where `rows` does not start at a block or leaves the matrix, `out` has another length, or a column of `live` is none
/// of the matrix.
pub fn linear_columns(
    isa: Isa,
    w: ColumnMatrix<'_>,
    rows: Range<usize>,
    live: &LiveColumns,
    (scale, sum): (f32, i32),
    out: &mut [f32],
) {
    assert!(rows.start.is_multiple_of(w.block_rows()), "rows start at a block");
    assert!(rows.start <= rows.end && rows.end <= w.rows() && out.len() == rows.len(), "rows lie in the matrix");
    assert!(live.columns().as_flattened().iter().all(|&column| (column as usize) < w.cols()), "columns exist");
    let first = rows.start / w.block_rows();
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(proof) => {
            super::avx512_vnni::columns(proof, w, first, live, (scale, sum), Scaled(w.scale), out);
        }
        #[cfg(target_arch = "x86_64")]
        Isa::AmxInt8(proof) => {
            super::avx512_vnni::columns(proof.vnni(), w, first, live, (scale, sum), Scaled(w.scale), out);
        }
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni(proof) => {
            super::narrow::avx_vnni::columns(proof, w, first, live, (scale, sum), Scaled(w.scale), out);
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bw(proof) => {
            super::narrow::avx2::columns(proof.avx2(), w, first, live, (scale, sum), Scaled(w.scale), out);
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(proof) => super::narrow::avx2::columns(proof, w, first, live, (scale, sum), Scaled(w.scale), out),
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDotprod(proof) => {
            super::neon::columns(proof, w, first, live, (scale, sum), Scaled(w.scale), out);
        }
        #[cfg(target_arch = "aarch64")]
        Isa::NeonI8mm(proof) => {
            super::neon::columns(proof.dotprod(), w, first, live, (scale, sum), Scaled(w.scale), out);
        }
        _ => portable(w, first, live, (scale, sum), out),
    }
}

fn portable(w: ColumnMatrix<'_>, first: usize, live: &LiveColumns, (scale, sum): (f32, i32), out: &mut [f32]) {
    let pairs = || live.columns().as_flattened().iter().zip(live.words().as_flattened());
    for (i, out) in out.chunks_mut(w.block_rows()).enumerate() {
        let block = w.block(first + i);
        for (line, out) in out.chunks_mut(LINE_ROWS).enumerate() {
            let mut acc = [0_i32; LINE_ROWS];
            for (&column, &q) in pairs() {
                let codes = &block[column as usize * w.lines + line];
                for (row, acc) in acc.iter_mut().enumerate() {
                    let byte = codes[4 * (row % 16) + row / 64];
                    *acc += i32::from((byte >> (2 * (row / 16 % 4))) & 3) * i32::from(q);
                }
            }
            for (out, acc) in out.iter_mut().zip(acc) {
                *out = Scaled(w.scale).finish(acc.wrapping_sub(sum), scale);
            }
        }
    }
}

/// Code 1 four times, and in all bytes of a word.
const FOUR_ZERO_WEIGHTS: u8 = 0b01_01_01_01;
const ZERO_WEIGHTS: u32 = 0x5555_5555;
