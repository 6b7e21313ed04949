//! Packing of ternary codes, plain or as a GGUF `I2_S` tensor, into tiles.

use std::fmt;
use std::ops::Range;

use super::layout::{TILE_COLS, TILE_ROWS, Tile, packed_bytes, row_tile_bytes};

/// The unused fourth code (3) was found; every weight must be 0, 1 or 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code3Found {
    /// Row of the matrix.
    pub row: usize,
}

impl fmt::Display for Code3Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "row {} holds code 3, ternary codes are 0 to 2", self.row)
    }
}

impl std::error::Error for Code3Found {}

/// Packs row-major codes (`w + 1`, one a byte, whole rows of `cols`) into `out`.
///
/// # Errors
/// [`Code3Found`] where a code is above 2; what `out` then holds is no matrix.
///
/// # Panics
/// Where `codes` is not whole rows or `out` is not [`packed_bytes`] long.
pub fn pack_codes(codes: &[u8], cols: usize, out: &mut [u8]) -> Result<(), Code3Found> {
    assert!(cols > 0 && codes.len().is_multiple_of(cols), "codes are whole rows");
    let rows = codes.len() / cols;
    assert_eq!(out.len(), packed_bytes(rows, cols), "packed length");
    if let Some(row) = codes.chunks_exact(cols).position(|row| row.iter().fold(0, |most, &code| most.max(code)) > 2) {
        return Err(Code3Found { row });
    }
    out.fill(FOUR_ZERO_WEIGHTS);
    for (row_tile, tiles) in out.chunks_exact_mut(row_tile_bytes(cols)).enumerate() {
        let first = row_tile * TILE_ROWS;
        for (r, row) in codes[first * cols..].chunks_exact(cols).take(TILE_ROWS).enumerate() {
            pack_row(row, r, tiles.as_chunks_mut().0);
        }
    }
    Ok(())
}

/// Packs `rows` of an `I2_S` tensor into `out`. `data` are the codes of the whole tensor: over the flat row-major
/// index in blocks of 128 elements of 32 bytes, element `j` of a block in byte `j % 32` at bit `6 - 2 * (j / 32)`.
/// Rows of whole blocks (`cols` a multiple of 128) take the fast path.
///
/// # Errors
/// [`Code3Found`] with its row; what `out` then holds is no matrix.
///
/// # Panics
/// Where `rows` does not start at a multiple of 16, `data` ends before the last of its blocks, or `out` is not
/// [`packed_bytes`] long.
pub fn pack_i2s(data: &[u8], rows: Range<usize>, cols: usize, out: &mut [u8]) -> Result<(), Code3Found> {
    assert!(rows.start.is_multiple_of(TILE_ROWS) && rows.start <= rows.end, "rows start at a row tile");
    assert!(cols > 0 && data.len() >= (rows.end * cols).div_ceil(BLOCK) * BLOCK_BYTES, "data hold all rows");
    assert_eq!(out.len(), packed_bytes(rows.len(), cols), "packed length");
    if !cols.is_multiple_of(BLOCK) || !rows.len().is_multiple_of(TILE_ROWS) {
        out.fill(FOUR_ZERO_WEIGHTS);
    }
    let mut codes = vec![0; if cols.is_multiple_of(BLOCK) { 0 } else { cols + 2 * BLOCK }];
    for (i, row) in rows.enumerate() {
        let start = i / TILE_ROWS * row_tile_bytes(cols);
        let tiles = out[start..start + row_tile_bytes(cols)].as_chunks_mut().0;
        if cols.is_multiple_of(BLOCK) {
            let blocks = data[row * cols / 4..(row + 1) * cols / 4].as_chunks().0;
            pack_blocks(blocks, i % TILE_ROWS, tiles).map_err(|()| Code3Found { row })?;
        } else {
            let codes = unpack_row(data, row * cols..(row + 1) * cols, &mut codes);
            if codes.iter().fold(0, |most, &code| most.max(code)) > 2 {
                return Err(Code3Found { row });
            }
            pack_row(codes, i % TILE_ROWS, tiles);
        }
    }
    Ok(())
}

/// The codes of flat elements `range`, unpacked with the rest of their blocks into `out`.
fn unpack_row<'o>(data: &[u8], range: Range<usize>, out: &'o mut [u8]) -> &'o [u8] {
    let first = range.start / BLOCK;
    let blocks = &data.as_chunks::<BLOCK_BYTES>().0[first..range.end.div_ceil(BLOCK)];
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        for (quarter, out) in out.as_chunks_mut::<BLOCK_BYTES>().0.iter_mut().enumerate() {
            for (code, byte) in out.iter_mut().zip(block) {
                *code = (byte >> (6 - 2 * quarter)) & 3;
            }
        }
    }
    &out[range.start - first * BLOCK..range.end - first * BLOCK]
}

/// Puts the codes of one row into row `r` of `tiles`, which hold code 1 there: four columns are a word, and a tile has
/// four words of a row in one, two bits apart.
fn pack_row(codes: &[u8], r: usize, tiles: &mut [Tile]) {
    let (whole, rest) = codes.as_chunks::<TILE_COLS>();
    let mut last = [1; TILE_COLS];
    last[..rest.len()].copy_from_slice(rest);
    for (codes, tile) in whole.iter().chain((!rest.is_empty()).then_some(&last)).zip(tiles) {
        let word = (0..4).fold(0, |packed, s| packed | word(codes, s) << (2 * s));
        tile[4 * r..4 * r + 4].copy_from_slice(&word.to_le_bytes());
    }
}

/// Packs whole `I2_S` blocks of one row. 16 bytes of a block are four words; word `s` holds in field `g` (from the
/// top) columns `32 * g + 4 * s ..+ 4`, and the tile of those columns wants them in field `s` (from the bottom): a 4x4
/// transpose of 2-bit fields.
fn pack_blocks(blocks: &[[u8; BLOCK_BYTES]], r: usize, tiles: &mut [Tile]) -> Result<(), ()> {
    let mut code3 = 0;
    for (block, tiles) in blocks.iter().zip(tiles.as_chunks_mut::<8>().0) {
        for (half, bytes) in block.as_chunks::<16>().0.iter().enumerate() {
            let words: [u32; 4] = std::array::from_fn(|s| word(bytes, s));
            code3 |= words.iter().fold(0, |seen, w| seen | (w & (w >> 1)));
            for (g, word) in transpose(words).into_iter().rev().enumerate() {
                tiles[2 * g + half][4 * r..4 * r + 4].copy_from_slice(&word.to_le_bytes());
            }
        }
    }
    if code3 & 0x5555_5555 == 0 { Ok(()) } else { Err(()) }
}

fn word(bytes: &[u8; 16], s: usize) -> u32 {
    u32::from_le_bytes([bytes[4 * s], bytes[4 * s + 1], bytes[4 * s + 2], bytes[4 * s + 3]])
}

/// In each byte of four words: field `g` of word `s` becomes field `s` of word `g`.
pub(super) fn transpose(w: [u32; 4]) -> [u32; 4] {
    const EVEN: u32 = 0x3333_3333;
    const LOW: u32 = 0x0f0f_0f0f;
    let even = [(w[0] & EVEN) | (w[1] & EVEN) << 2, (w[2] & EVEN) | (w[3] & EVEN) << 2];
    let odd = [((w[0] >> 2) & EVEN) | (w[1] & !EVEN), ((w[2] >> 2) & EVEN) | (w[3] & !EVEN)];
    [
        (even[0] & LOW) | (even[1] & LOW) << 4,
        (odd[0] & LOW) | (odd[1] & LOW) << 4,
        ((even[0] >> 4) & LOW) | (even[1] & !LOW),
        ((odd[0] >> 4) & LOW) | (odd[1] & !LOW),
    ]
}

/// Elements and bytes of an `I2_S` block.
const BLOCK: usize = 128;
const BLOCK_BYTES: usize = 32;
/// Code 1 four times.
const FOUR_ZERO_WEIGHTS: u8 = 0b01_01_01_01;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ternary::TernaryMatrix;

    fn codes(len: usize) -> Vec<u8> {
        let mut state = 7_u32;
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8 % 3
            })
            .collect()
    }

    fn i2s(codes: &[u8]) -> Vec<u8> {
        let mut data = vec![0; codes.len().div_ceil(BLOCK) * BLOCK_BYTES];
        for (i, code) in codes.iter().enumerate() {
            data[i / BLOCK * BLOCK_BYTES + i % 32] |= code << (6 - 2 * (i % BLOCK / 32));
        }
        data
    }

    #[test]
    fn a_tile_holds_its_codes_where_the_layout_says() {
        let (rows, cols) = (19, 70);
        let codes = codes(rows * cols);
        let mut out = vec![0; packed_bytes(rows, cols)];
        pack_codes(&codes, cols, &mut out).unwrap();
        let matrix = TernaryMatrix::new(&out, rows, cols, 1.0).unwrap();
        for row in 0..32 {
            for col in 0..128 {
                let tile = matrix.row_tiles(row / 16..row / 16 + 1)[col / 16];
                let got = (tile[4 * (row % 16) + col % 4] >> (2 * (col % 16 / 4))) & 3;
                let want = if row < rows && col < cols { codes[row * cols + col] } else { 1 };
                assert_eq!(got, want, "{row} {col}");
            }
        }
    }

    #[test]
    fn i2s_packs_as_its_codes_do() {
        for (rows, cols) in [(16, 128), (17, 256), (5, 384), (33, 64), (18, 100), (40, 1)] {
            let codes = codes(rows * cols);
            let data = i2s(&codes);
            let mut want = vec![0; packed_bytes(rows, cols)];
            pack_codes(&codes, cols, &mut want).unwrap();
            let mut got = vec![0xff; want.len()];
            pack_i2s(&data, 0..rows, cols, &mut got).unwrap();
            assert_eq!(got, want, "{rows} {cols}");
            if rows > 16 {
                let mut part = vec![0; packed_bytes(rows - 16, cols)];
                pack_i2s(&data, 16..rows, cols, &mut part).unwrap();
                assert_eq!(part, want[row_tile_bytes(cols)..]);
            }
        }
    }

    #[test]
    fn code_3_is_found_in_its_row() {
        for cols in [128, 100] {
            for row in [0, 15, 16, 20] {
                let mut codes = codes(21 * cols);
                codes[row * cols + 77] = 3;
                let mut out = vec![0; packed_bytes(21, cols)];
                assert_eq!(pack_i2s(&i2s(&codes), 0..21, cols, &mut out), Err(Code3Found { row }));
                assert_eq!(pack_codes(&codes, cols, &mut out), Err(Code3Found { row }));
            }
        }
    }
}
