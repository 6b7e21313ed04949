//! TL1 and TL2, the lookup-table layouts of bitnet.cpp: bytes to codes and back.
//!
//! A matrix of M rows and K columns lies in tiles of `rows` x `cols` (bitnet.cpp's BM and BK), which a file does not
//! give; within one, rows come in groups of `group_rows` (bm). Two weights a, b make the pair 3 a + b + 4, 0 to 8, in a
//! nibble; three make the triple 9 a + 3 b + c, a nibble of its size (0 to 13) and a bit of its sign. The high nibble
//! of a byte holds the columns that come first.
//!
//! **TL1**: pairs only. By tile row, tile column, group, step of `by` = 256 / bm columns, 16 rows, 4 columns: 16 bytes,
//! one a row, of two pairs. Padding to 32 bytes, f32 scale, 28 unused bytes.
//!
//! **TL2**: the first columns, as many as make whole tiles, are triples, the others pairs. First the sizes: by tile row,
//! tile column, group of 32 rows, 6 columns: 32 bytes, one a row (rows 0-7, 16-23, 8-15, 24-31 of the group), of two
//! triples. Then the signs: by tile row, tile column, group, 24 columns: 16 words of 16 bits, bit 15 - (2 u + h) of word
//! c is the sign of triple u in row 16 h + c. Then the pairs: by tile row, 32 columns, group, 4 columns: 32 bytes, rows
//! as before. Padding to the size that [`TensorType::tensor_bytes`] gives, with the scale as in TL1.

use super::{I2S_TAIL_BYTES, i2s_tail};
use crate::TensorType;

/// Tile sizes of one matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileShape {
    /// BM.
    pub rows: usize,
    /// BK.
    pub cols: usize,
    /// bm: 32, or 64 for TL1.
    pub group_rows: usize,
}

/// Why a matrix can't lie in such tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TileError {
    #[error("{0} is no layout of tiles")]
    Kind(&'static str),
    #[error("{rows} rows are no multiple of a tile's {tile_rows}")]
    Rows { rows: usize, tile_rows: usize },
    #[error("a tile's {tile_rows} rows are no multiple of a group's {group_rows}")]
    TileRows { tile_rows: usize, group_rows: usize },
    #[error("groups of {found} rows, {kind} has {wanted}")]
    GroupRows { kind: &'static str, found: usize, wanted: &'static str },
    #[error("a tile's {tile_cols} columns are no multiple of {wanted}")]
    TileCols { tile_cols: usize, wanted: usize },
    #[error("{cols} columns leave {left} behind whole tiles of {tile_cols}, {wanted}")]
    Cols { cols: usize, tile_cols: usize, left: usize, wanted: &'static str },
    #[error("a tile of no rows or columns")]
    Empty,
}

/// Rows that are unpacked at a time.
pub const BAND_ROWS: usize = 32;

/// The layout of one matrix, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiled {
    kind: TensorType,
    rows: usize,
    cols: usize,
    tile: TileShape,
    /// Columns that are triples; 0 for TL1.
    triple_cols: usize,
    /// Bytes of the whole tensor.
    bytes: usize,
}

impl Tiled {
    /// The layout of a matrix of `rows` x `cols` in tiles of this shape.
    pub fn new(kind: TensorType, rows: usize, cols: usize, tile: TileShape) -> Result<Self, TileError> {
        let TileShape { rows: tile_rows, cols: tile_cols, group_rows } = tile;
        if tile_rows == 0 || tile_cols == 0 || rows == 0 || cols == 0 {
            return Err(TileError::Empty);
        }
        let (group_fits, groups, unit) = match kind {
            TensorType::Tl1 => (group_rows == 32 || group_rows == 64, "32 or 64", 256 / group_rows.clamp(1, 256)),
            TensorType::Tl2 | TensorType::Tl2Later => (group_rows == 32, "32", TL2_TILE_COLS_UNIT),
            _ => return Err(TileError::Kind(kind.name())),
        };
        if !group_fits {
            return Err(TileError::GroupRows { kind: kind.name(), found: group_rows, wanted: groups });
        }
        if !tile_rows.is_multiple_of(group_rows) {
            return Err(TileError::TileRows { tile_rows, group_rows });
        }
        if !rows.is_multiple_of(tile_rows) {
            return Err(TileError::Rows { rows, tile_rows });
        }
        if !tile_cols.is_multiple_of(unit) {
            return Err(TileError::TileCols { tile_cols, wanted: unit });
        }
        let left = cols % tile_cols;
        let (left_fits, wanted, triple_cols) = match kind {
            TensorType::Tl1 => (left == 0, "TL1 wants none", 0),
            _ => {
                let fits = left.is_multiple_of(TL2_PAIR_COLS) && left <= TL2_PAIR_COLS_MAX;
                (fits, "TL2 wants multiples of 32 up to 256", cols - left)
            }
        };
        let dims = [cols as u64, rows as u64, 1, 1];
        let bytes = kind.tensor_bytes(&dims).ok().and_then(|bytes| usize::try_from(bytes).ok());
        match bytes {
            Some(bytes) if left_fits => Ok(Self { kind, rows, cols, tile, triple_cols, bytes }),
            _ => Err(TileError::Cols { cols, tile_cols, left, wanted }),
        }
    }

    /// The tiles.
    pub fn tile(&self) -> TileShape {
        self.tile
    }

    /// Bytes of the whole tensor, tail included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Unpacks rows `32 * band..` of a whole tensor: 32 rows of codes, row-major. A nibble that means nothing gives
    /// code 3.
    ///
    /// # Panics
    /// If `data` is no whole tensor, `out` not 32 rows long, or there is no such band.
    pub fn codes(&self, data: &[u8], band: usize, out: &mut [u8]) {
        assert_eq!(data.len(), self.bytes, "a whole tensor");
        assert_eq!(out.len(), BAND_ROWS * self.cols, "a whole band");
        assert!(band < self.rows / BAND_ROWS, "a band of the matrix");
        match self.kind {
            TensorType::Tl1 => self.tl1_codes(data, band, out),
            _ => self.tl2_codes(data, band, out),
        }
    }

    /// The scale of a whole tensor; not checked to be finite.
    ///
    /// # Panics
    /// If `data` is shorter.
    pub fn scale(&self, data: &[u8]) -> f32 {
        let tail = &data[self.bytes - I2S_TAIL_BYTES..];
        f32::from_le_bytes(*tail.first_chunk().expect("the tail holds the scale"))
    }

    /// Packs a whole matrix, the inverse of [`Tiled::codes`]; codes are 0 to 2.
    ///
    /// # Panics
    /// If `codes` is no whole matrix.
    pub fn pack(&self, codes: &[u8], scale: f32) -> Vec<u8> {
        assert_eq!(codes.len(), self.rows * self.cols, "a whole matrix");
        let mut data = vec![0; self.bytes];
        for (band, codes) in codes.chunks_exact(BAND_ROWS * self.cols).enumerate() {
            match self.kind {
                TensorType::Tl1 => self.tl1_pack(codes, band, &mut data),
                _ => self.tl2_pack(codes, band, &mut data),
            }
        }
        let tail = self.bytes - I2S_TAIL_BYTES;
        data[tail..].copy_from_slice(&i2s_tail(scale));
        data
    }

    /// Tells `each` 4 columns in order where the 16 bytes of their 16 rows of TL1 lie.
    fn tl1_places(&self, row: usize, mut each: impl FnMut(usize, usize)) {
        let Self { cols, tile, .. } = *self;
        let step_cols = 256 / tile.group_rows;
        let (tile_row, group, sixteen) =
            (row / tile.rows, row % tile.rows / tile.group_rows, row % tile.group_rows / SIXTEEN);
        let groups = tile.rows / tile.group_rows;
        let (sixteens, steps, fours) = (tile.group_rows / SIXTEEN, tile.cols / step_cols, step_cols / 4);
        for tile_col in 0..cols / tile.cols {
            let first = ((tile_row * (cols / tile.cols) + tile_col) * groups + group) * steps;
            for step in 0..steps {
                let at = ((first + step) * sixteens + sixteen) * fours;
                let col = tile_col * tile.cols + step * step_cols;
                for four in 0..fours {
                    each(col + 4 * four, (at + four) * SIXTEEN);
                }
            }
        }
    }

    fn tl1_codes(&self, data: &[u8], band: usize, out: &mut [u8]) {
        for (half, out) in out.chunks_exact_mut(SIXTEEN * self.cols).enumerate() {
            self.tl1_places(band * BAND_ROWS + half * SIXTEEN, |col, at| {
                let bytes: &[u8; SIXTEEN] = data[at..].first_chunk().expect("places lie in the tensor");
                for (byte, row) in bytes.iter().zip(out.chunks_exact_mut(self.cols)) {
                    row[col..col + 4].copy_from_slice(&TWO_PAIRS[usize::from(*byte)]);
                }
            });
        }
    }

    fn tl1_pack(&self, codes: &[u8], band: usize, data: &mut [u8]) {
        for (half, codes) in codes.chunks_exact(SIXTEEN * self.cols).enumerate() {
            self.tl1_places(band * BAND_ROWS + half * SIXTEEN, |col, at| {
                for (row, byte) in data[at..at + SIXTEEN].iter_mut().enumerate() {
                    let four = &codes[row * self.cols + col..][..4];
                    *byte = pair(&four[..2]) << 4 | pair(&four[2..]);
                }
            });
        }
    }

    /// First byte of each 32 of TL2's triples and pairs, in order: column, columns of a nibble, place, and for triples
    /// the place of the signs with the index of the first triple among its 8.
    fn tl2_places(&self, band: usize) -> impl Iterator<Item = Place> + use<> {
        let Self { rows, cols, tile, triple_cols, .. } = *self;
        let groups = tile.rows / BAND_ROWS;
        let (tile_row, group) = (band / groups, band % groups);
        let signs_at = rows * triple_cols / 6;
        let pairs_at = signs_at + rows * triple_cols / 24;
        let block = move |of: usize, index: usize| (tile_row * of + index) * groups + group;
        let triples = (0..triple_cols).step_by(6).map(move |col| {
            let (index, within) = (col / tile.cols, col % tile.cols);
            let block = block(triple_cols / tile.cols, index);
            let signs = signs_at + (block * (tile.cols / 24) + within / 24) * BAND_ROWS;
            let at = (block * (tile.cols / 6) + within / 6) * BAND_ROWS;
            Place { col, at, signs: Some((signs, within % 24 / 3)) }
        });
        let pairs = (triple_cols..cols).step_by(4).map(move |col| {
            let (index, within) = ((col - triple_cols) / TL2_PAIR_COLS, (col - triple_cols) % TL2_PAIR_COLS);
            let block = block((cols - triple_cols) / TL2_PAIR_COLS, index);
            Place { col, at: pairs_at + (block * (TL2_PAIR_COLS / 4) + within / 4) * BAND_ROWS, signs: None }
        });
        triples.chain(pairs)
    }

    fn tl2_codes(&self, data: &[u8], band: usize, out: &mut [u8]) {
        for Place { col, at, signs } in self.tl2_places(band) {
            let bytes: &[u8; BAND_ROWS] = data[at..].first_chunk().expect("places lie in the tensor");
            match signs {
                None => {
                    for (&byte, &row) in bytes.iter().zip(&BYTE_ROW) {
                        let to = row * self.cols + col;
                        out[to..to + 4].copy_from_slice(&TWO_PAIRS[usize::from(byte)]);
                    }
                }
                Some((signs, first)) => {
                    let signs: &[u8; BAND_ROWS] = data[signs..].first_chunk().expect("signs lie in the tensor");
                    for (&byte, &row) in bytes.iter().zip(&BYTE_ROW) {
                        let word = usize::from(u16::from_le_bytes([signs[row % 16 * 2], signs[row % 16 * 2 + 1]]));
                        // The sign of the second triple is two bits below that of the first.
                        let pair = word >> (13 - 2 * first - row / 16);
                        let index = (pair & 1) << 9 | (pair >> 2 & 1) << 8 | usize::from(byte);
                        let to = row * self.cols + col;
                        out[to..to + 6].copy_from_slice(&TWO_TRIPLES[index]);
                    }
                }
            }
        }
    }

    fn tl2_pack(&self, codes: &[u8], band: usize, data: &mut [u8]) {
        for Place { col, at, signs } in self.tl2_places(band) {
            for (p, &row) in BYTE_ROW.iter().enumerate() {
                let from = &codes[row * self.cols + col..];
                let Some((signs, first)) = signs else {
                    data[at + p] = pair(&from[..2]) << 4 | pair(&from[2..4]);
                    continue;
                };
                let (high, low) = (triple(&from[..3]), triple(&from[3..6]));
                data[at + p] = high.unsigned_abs() << 4 | low.unsigned_abs();
                let bit = |u: usize, value: i8| u16::from(value < 0) << (15 - (2 * u + row / 16));
                let word = &mut data[signs + row % 16 * 2..][..2];
                let bits = (bit(first, high) | bit(first + 1, low)).to_le_bytes();
                word.iter_mut().zip(bits).for_each(|(byte, bits)| *byte |= bits);
            }
        }
    }
}

/// Where 32 bytes lie and what is in them.
struct Place {
    col: usize,
    at: usize,
    signs: Option<(usize, usize)>,
}

fn pair(codes: &[u8]) -> u8 {
    3 * codes[0] + codes[1]
}

fn triple(codes: &[u8]) -> i8 {
    (9 * codes[0] + 3 * codes[1] + codes[2]).cast_signed() - 13
}

const fn pairs() -> [[u8; 2]; 16] {
    let mut table = [[3; 2]; 16];
    let mut index = 0;
    while index < 9 {
        table[index as usize] = [index / 3, index % 3];
        index += 1;
    }
    table
}

/// Of positive triples, then of negative ones.
const fn triples() -> [[[u8; 3]; 16]; 2] {
    let mut table = [[[3; 3]; 16]; 2];
    let mut size = 0;
    while size < 14 {
        // -13 is the codes 0, 0, 0.
        let (up, down) = (13 + size, 13 - size);
        table[0][size as usize] = [up / 9, up / 3 % 3, up % 3];
        table[1][size as usize] = [down / 9, down / 3 % 3, down % 3];
        size += 1;
    }
    table
}

/// The four codes of each byte of two pairs.
const fn two_pairs() -> [[u8; 4]; 256] {
    let (pairs, mut table) = (pairs(), [[0; 4]; 256]);
    let mut byte = 0;
    while byte < 256 {
        let (high, low) = (pairs[byte >> 4], pairs[byte & 15]);
        table[byte] = [high[0], high[1], low[0], low[1]];
        byte += 1;
    }
    table
}

/// The six codes of each byte of two triples, by the byte, the sign of the first in bit 8, that of the second in bit 9.
const fn two_triples() -> [[u8; 6]; 1024] {
    let (triples, mut table) = (triples(), [[0; 6]; 1024]);
    let mut index = 0;
    while index < 1024 {
        let (high, low) = (triples[index >> 8 & 1][index >> 4 & 15], triples[index >> 9][index & 15]);
        table[index] = [high[0], high[1], high[2], low[0], low[1], low[2]];
        index += 1;
    }
    table
}

static TWO_PAIRS: [[u8; 4]; 256] = two_pairs();
static TWO_TRIPLES: [[u8; 6]; 1024] = two_triples();
const SIXTEEN: usize = 16;
/// Row within its group of each byte of 32.
const BYTE_ROW: [usize; BAND_ROWS] = [
    0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30,
    31,
];
/// Bytes of 6 columns and sign words of 24 must come out even; bitnet.cpp's kernels want this much.
const TL2_TILE_COLS_UNIT: usize = 96;
const TL2_PAIR_COLS: usize = 32;
/// For more the tensor's size has no room.
const TL2_PAIR_COLS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(count: usize) -> Vec<u8> {
        let mut state = 5u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % 3) as u8
        };
        (0..count).map(|_| next()).collect()
    }

    fn shape(rows: usize, cols: usize, group_rows: usize) -> TileShape {
        TileShape { rows, cols, group_rows }
    }

    #[test]
    fn packed_matrices_come_back() {
        for (kind, rows, cols, tile) in [
            (TensorType::Tl1, 64, 128, shape(64, 64, 64)),
            (TensorType::Tl1, 96, 72, shape(32, 8, 32)),
            (TensorType::Tl1, 128, 96, shape(64, 32, 32)),
            (TensorType::Tl2, 32, 288, shape(32, 96, 32)),
            (TensorType::Tl2, 128, 256, shape(64, 96, 32)),
            (TensorType::Tl2, 64, 416, shape(64, 192, 32)),
            (TensorType::Tl2Later, 64, 256, shape(64, 288, 32)),
        ] {
            let layout = Tiled::new(kind, rows, cols, tile).unwrap();
            let codes = codes(rows * cols);
            let data = layout.pack(&codes, 0.375);
            assert_eq!(layout.scale(&data), 0.375);
            let mut back = vec![9; codes.len()];
            for (band, out) in back.chunks_exact_mut(BAND_ROWS * cols).enumerate() {
                layout.codes(&data, band, out);
            }
            assert!(back == codes, "{} {rows} {cols} {tile:?}", kind.name());
        }
    }

    #[test]
    fn any_bytes_give_codes_up_to_3() {
        for (kind, tile) in [(TensorType::Tl1, shape(32, 64, 32)), (TensorType::Tl2, shape(32, 96, 32))] {
            let layout = Tiled::new(kind, 32, 448, tile).unwrap();
            for byte in 0..=255 {
                let mut out = vec![9; 32 * 448];
                layout.codes(&vec![byte; layout.bytes()], 0, &mut out);
                assert!(out.iter().all(|&code| code <= 3), "{byte}");
                let sound = byte >> 4 < 9 && byte & 15 < 9;
                assert!(!sound || out.iter().all(|&code| code < 3), "{byte}");
            }
        }
    }

    #[test]
    fn tiles_that_do_not_fit_are_refused() {
        let refused = |kind, rows, cols, tile| Tiled::new(kind, rows, cols, tile).unwrap_err();
        let (tl1, tl2) = (TensorType::Tl1, TensorType::Tl2);
        assert_eq!(refused(TensorType::I2S, 32, 256, shape(32, 96, 32)), TileError::Kind("I2_S"));
        assert_eq!(refused(tl1, 32, 256, shape(0, 64, 32)), TileError::Empty);
        assert_eq!(refused(tl2, 32, 256, shape(32, 0, 32)), TileError::Empty);
        assert_eq!(refused(tl2, 48, 256, shape(32, 96, 32)), TileError::Rows { rows: 48, tile_rows: 32 });
        assert_eq!(refused(tl1, 96, 256, shape(96, 64, 64)), TileError::TileRows { tile_rows: 96, group_rows: 64 });
        assert!(matches!(refused(tl2, 64, 256, shape(64, 96, 64)), TileError::GroupRows { found: 64, .. }));
        assert!(matches!(refused(tl1, 64, 256, shape(64, 64, 0)), TileError::GroupRows { found: 0, .. }));
        assert_eq!(refused(tl2, 32, 256, shape(32, 64, 32)), TileError::TileCols { tile_cols: 64, wanted: 96 });
        assert_eq!(refused(tl1, 64, 256, shape(64, 66, 64)), TileError::TileCols { tile_cols: 66, wanted: 4 });
        assert!(matches!(refused(tl1, 32, 250, shape(32, 64, 32)), TileError::Cols { left: 58, .. }));
        assert!(matches!(refused(tl2, 32, 300, shape(32, 96, 32)), TileError::Cols { left: 12, .. }));
        // 288 columns of pairs are more than the size has room for.
        assert!(matches!(refused(tl2, 32, 672, shape(32, 384, 32)), TileError::Cols { left: 288, .. }));
        // TL2 rows have 256 columns at least.
        assert!(matches!(refused(tl2, 32, 192, shape(32, 96, 32)), TileError::Cols { .. }));
        assert!(Tiled::new(tl2, usize::MAX - 31, 256, shape(32, 96, 32)).is_err());
    }
}
