//! The order in which GPU kernels read ternary weights: operands of a 16 x 8 x 32 matrix instruction, ready in registers.

use super::layout::{TILE_ROWS, TernaryMatrix};

/// Rows of a fragment tile whose source may differ from the other half's.
pub const HALF_TILE_ROWS: usize = 8;
/// Columns of a fragment tile.
pub const FRAGMENT_COLS: usize = 128;
/// Bytes of a fragment tile of 16 x 128 weights.
pub const FRAGMENT_BYTES: usize = 512;

/// Eight rows of a matrix from `first_row`, a multiple of 8; rows past the matrix are zero.
#[derive(Clone, Copy, Debug)]
pub struct HalfTile<'a> {
    pub matrix: TernaryMatrix<'a>,
    pub first_row: usize,
}

/// Fills `out`, whole fragment tiles of [`FRAGMENT_BYTES`], with the 16 rows of `halves`; columns past a matrix and
/// halves that are `None` are zero weights.
///
/// Lane `4 g + t` of a tile owns 16 bytes, word `s` of them the columns `32 s .. 32 s + 32`. Bits `8 j + 2 r` of the
/// word hold the code of row `g + 8 (r & 1)`, column `32 s + 16 (r >> 1) + 4 t + j`: bits `2 t` of byte `j` of that
/// row in tile `2 s + (r >> 1)` of the CPU's layout.
///
/// # Panics
/// Where `out` is no whole tiles, or a half begins at a row that is no multiple of 8 or far past its matrix.
pub fn pack_fragments(halves: [Option<HalfTile<'_>>; 2], out: &mut [u8]) {
    let (tiles, rest) = out.as_chunks_mut::<FRAGMENT_BYTES>();
    assert!(rest.is_empty(), "whole tiles");
    for (item, tile) in tiles.iter_mut().enumerate() {
        for s in 0..4 {
            let rows: [[u32; HALF_TILE_ROWS]; 4] =
                std::array::from_fn(|r| half_rows(halves[r & 1], item * TILES + 2 * s + (r >> 1)));
            for lane in 0..LANES {
                let (g, t) = (lane / 4, lane % 4);
                let mut word = 0;
                for (r, rows) in rows.iter().enumerate() {
                    word |= (rows[g] >> (2 * t) & FIELDS) << (2 * r);
                }
                tile[16 * lane + 4 * s..][..4].copy_from_slice(&word.to_le_bytes());
            }
        }
    }
}

/// The words of eight rows in one tile of 16 columns.
fn half_rows(half: Option<HalfTile<'_>>, tile: usize) -> [u32; HALF_TILE_ROWS] {
    let Some(HalfTile { matrix, first_row }) = half else { return [ZERO_WEIGHTS; HALF_TILE_ROWS] };
    assert!(first_row.is_multiple_of(HALF_TILE_ROWS), "halves begin at multiples of 8");
    if tile >= matrix.tiles_per_row() || first_row >= matrix.rows().next_multiple_of(TILE_ROWS) {
        return [ZERO_WEIGHTS; HALF_TILE_ROWS];
    }
    let row_tile = first_row / TILE_ROWS;
    let words = matrix.row_tiles(row_tile..row_tile + 1)[tile].as_chunks::<4>().0;
    std::array::from_fn(|g| u32::from_le_bytes(words[first_row % TILE_ROWS + g]))
}

const LANES: usize = 32;
/// Tiles of 16 columns in a fragment tile.
const TILES: usize = 8;
const FIELDS: u32 = 0x0303_0303;
/// Code 1 in every field.
const ZERO_WEIGHTS: u32 = 0x5555_5555;

#[cfg(test)]
mod tests {
    use super::super::{pack_codes, packed_bytes};
    use super::*;

    #[test]
    fn every_weight_lies_where_the_matrix_instruction_wants_it_and_the_rest_is_zero() {
        let (rows, cols) = (21, 200);
        let codes: Vec<u8> = (0..rows * cols).map(|i| (i * 7919 % 31 % 3) as u8).collect();
        let mut packed = vec![0; packed_bytes(rows, cols)];
        pack_codes(&codes, cols, &mut packed).unwrap();
        let matrix = TernaryMatrix::new(&packed, rows, cols, 1.0).unwrap();
        let half = |first_row| Some(HalfTile { matrix, first_row });
        for (halves, firsts) in [
            ([half(0), half(8)], [Some(0), Some(8)]),
            ([half(16), half(8)], [Some(16), Some(8)]),
            ([half(24), None], [Some(24), None]),
            ([None, half(32)], [None, Some(32)]),
        ] {
            let mut out = vec![0xff; 2 * FRAGMENT_BYTES];
            pack_fragments(halves, &mut out);
            for row in 0..16 {
                for col in 0..256 {
                    let (s, r) = (col % 128 / 32, row / 8 + 2 * (col % 32 / 16));
                    let (lane, j) = (row % 8 * 4 + col % 16 / 4, col % 4);
                    let byte = out[col / 128 * FRAGMENT_BYTES + lane * 16 + s * 4 + j];
                    let source = firsts[row / 8].map(|first| first + row % 8);
                    let expected = match source {
                        Some(source) if source < rows && col < cols => codes[source * cols + col],
                        _ => 1,
                    };
                    assert_eq!(byte >> (2 * r) & 3, expected, "row {row} of {source:?}, column {col}");
                }
            }
        }
    }
}
