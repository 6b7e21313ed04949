//! The order in which GPU kernels read a dense matrix: pieces of 16 rows x 16 columns, as F16 where it is that, else as floats.

use super::linear::dequantize_row;
use super::matrix::{DenseKind, DenseMatrix};
use crate::Isa;

/// Rows of a piece tile: two pieces.
pub const PIECE_TILE_ROWS: usize = 32;

/// Fills `out` with the row tile `index` of an F16 matrix: for every 16 columns two pieces of 16 rows, in each of them
/// 8 columns of a row in 16 bytes, row after row. Rows past the matrix are zero.
///
/// # Panics
/// Where the matrix is not F16, its columns are no multiple of 16, or `out` is not [`PIECE_TILE_ROWS`] rows long.
pub fn pack_pieces(matrix: DenseMatrix<'_>, index: usize, out: &mut [u8]) {
    assert!(matrix.kind() == DenseKind::F16 && matrix.cols().is_multiple_of(16), "an F16 matrix of whole pieces");
    assert_eq!(out.len(), PIECE_TILE_ROWS * matrix.cols() * 2, "one row tile");
    let first = index * PIECE_TILE_ROWS;
    let rows = matrix.rows().saturating_sub(first).min(PIECE_TILE_ROWS);
    if rows < PIECE_TILE_ROWS {
        out.fill(0);
    }
    for row in 0..rows {
        let source = matrix.row(first + row).as_chunks::<16>().0;
        for (k, eight) in source.iter().enumerate() {
            out[(k / 2 * 64 + row * 2 + k % 2) * 16..][..16].copy_from_slice(eight);
        }
    }
}

/// The same of any matrix as floats, which are what the kernels here multiply with: a piece's 8 columns of a row are two
/// loads of 4 that lie 16 rows apart.
///
/// # Panics
/// Where the columns are no multiple of 16, or `out` is not [`PIECE_TILE_ROWS`] rows long.
pub fn pack_wide_pieces(isa: Isa, matrix: DenseMatrix<'_>, index: usize, out: &mut [u8]) {
    let cols = matrix.cols();
    assert!(cols.is_multiple_of(16), "whole pieces");
    assert_eq!(out.len(), PIECE_TILE_ROWS * cols * 4, "one row tile");
    let first = index * PIECE_TILE_ROWS;
    let rows = matrix.rows().saturating_sub(first).min(PIECE_TILE_ROWS);
    if rows < PIECE_TILE_ROWS {
        out.fill(0);
    }
    let mut values = vec![0.0; cols];
    for row in 0..rows {
        dequantize_row(isa, matrix, first + row, &mut values);
        for (k, four) in values.as_chunks::<4>().0.iter().enumerate() {
            let piece = k / 4 * 2 + row / 16;
            let at = ((piece * 2 + k % 2) * 32 + row % 16 * 2 + k % 4 / 2) * 16;
            for (value, bytes) in four.iter().zip(out[at..][..16].as_chunks_mut::<4>().0) {
                *bytes = value.to_le_bytes();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_pieces_hold_the_floats_of_any_matrix() {
        let (rows, cols) = (37, 64);
        // Blocks of a scale and 32 bytes.
        let block = |i: usize| (0..34).map(move |j| if j == 1 { 0x3c } else { (i * 7 + j * 3) as u8 });
        let bytes: Vec<u8> = (0..rows * cols / 32).flat_map(block).collect();
        let matrix = DenseMatrix::new(DenseKind::Q8_0, &bytes, rows, cols).unwrap();
        let mut expected = vec![0.0; cols];
        for index in 0..2 {
            let mut out = vec![0xff; PIECE_TILE_ROWS * cols * 4];
            pack_wide_pieces(Isa::detect(), matrix, index, &mut out);
            for row in 0..PIECE_TILE_ROWS {
                let source = index * PIECE_TILE_ROWS + row;
                expected.fill(0.0);
                if source < rows {
                    dequantize_row(Isa::detect(), matrix, source, &mut expected);
                }
                for (col, expected) in expected.iter().enumerate() {
                    let piece = col / 16 * 2 + row / 16;
                    let load = piece * 2 + col % 8 / 4;
                    let at = (load * 32 + row % 16 * 2 + col % 16 / 8) * 16 + col % 4 * 4;
                    let got = f32::from_le_bytes(out[at..at + 4].try_into().unwrap());
                    assert_eq!(got.to_bits(), expected.to_bits(), "row {source}, column {col}");
                }
            }
        }
    }

    #[test]
    fn rows_lie_in_pieces_and_missing_ones_are_zero() {
        let (rows, cols) = (37, 48);
        let halves: Vec<u16> = (0..rows * cols).map(|i| i as u16 + 1).collect();
        let bytes: Vec<u8> = halves.iter().flat_map(|half| half.to_le_bytes()).collect();
        let matrix = DenseMatrix::new(DenseKind::F16, &bytes, rows, cols).unwrap();
        for index in 0..2 {
            let mut out = vec![0xff; PIECE_TILE_ROWS * cols * 2];
            pack_pieces(matrix, index, &mut out);
            for row in 0..PIECE_TILE_ROWS {
                for col in 0..cols {
                    let piece = col / 16 * 2 + row / 16;
                    let at = (piece * 32 + row % 16 * 2 + col % 16 / 8) * 16 + col % 8 * 2;
                    let source = index * PIECE_TILE_ROWS + row;
                    let expected = if source < rows { halves[source * cols + col] } else { 0 };
                    assert_eq!(u16::from_le_bytes([out[at], out[at + 1]]), expected, "row {source}, column {col}");
                }
            }
        }
    }
}
