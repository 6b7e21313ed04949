//! The packed ternary layout and the view of a matrix in it.

use std::fmt;

/// Rows of a tile: one per 32-bit lane of a 512-bit register.
pub const TILE_ROWS: usize = 16;
/// Columns of a tile: four 2-bit fields of four bytes.
pub const TILE_COLS: usize = 16;
/// Bytes of a tile: one cache line.
pub const TILE_BYTES: usize = 64;
/// Most columns of a matrix. The kernels sum `64 * code * q` in 32 bits: `128 * 128 * 4` a tile and lane, at most
/// `2^16 * COLS_MAX / 16 = 2^30`.
pub const COLS_MAX: usize = 1 << 18;

/// Tiles whose sums of products fit 16 bits where `vpmaddubsw` makes them. A pair of products is in -512 ..= 508 (codes
/// to 2, `q` in -128 ..= 127), a tile adds four pairs to each 16-bit sum: 16 tiles give -32768 ..= 32512, the whole of an
/// i16 and not a pair more.
#[cfg(target_arch = "x86_64")]
pub(super) const TILES_EXACT_IN_I16: usize = 16;

/// 16 rows x 16 columns; [`TernaryMatrix`] says how.
pub type Tile = [u8; TILE_BYTES];

const _: () = assert!(size_of::<Tile>() * 4 == TILE_ROWS * TILE_COLS);
const _: () = assert!(TILE_ROWS * 4 == TILE_BYTES);
const _: () = assert!(COL_STEP.is_multiple_of(TILE_COLS));

/// Columns of the packed form: `cols` rounded up to a multiple of 64.
#[must_use]
pub const fn padded_cols(cols: usize) -> usize {
    cols.next_multiple_of(COL_STEP)
}

/// Bytes of the packed form of a `rows` x `cols` matrix.
#[must_use]
pub const fn packed_bytes(rows: usize, cols: usize) -> usize {
    rows.div_ceil(TILE_ROWS) * row_tile_bytes(cols)
}

/// Activations of the columns `4s .. 4s + 4` of a tile, as the dword that meets field `s`.
///
/// A plain expression: a closure, as `array::map` takes one, has the target features of the kernel around it, and the
/// library function between them keeps it from being inlined (0.03 times the speed in a build without LTO).
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn word(x: &[i8; TILE_COLS], s: usize) -> i32 {
    let bytes = [
        x[4 * s].cast_unsigned(),
        x[4 * s + 1].cast_unsigned(),
        x[4 * s + 2].cast_unsigned(),
        x[4 * s + 3].cast_unsigned(),
    ];
    i32::from_ne_bytes(bytes)
}

/// Bytes of 16 rows.
pub(super) const fn row_tile_bytes(cols: usize) -> usize {
    padded_cols(cols) / TILE_COLS * TILE_BYTES
}

/// Why bytes are no matrix of the named shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShapeError {
    /// The slice has another length than the shape needs.
    Bytes { got: usize, need: usize },
    /// More columns than sums can hold, or than the element layout allows (none, or no whole blocks).
    Cols { got: usize, max: usize, multiple_of: usize },
}

impl fmt::Display for ShapeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes { got, need } => write!(f, "matrix has {got} bytes, its shape needs {need}"),
            Self::Cols { got, max, multiple_of } => {
                write!(f, "matrix has {got} columns, allowed are 1 to {max} in multiples of {multiple_of}")
            }
        }
    }
}

impl std::error::Error for ShapeError {}

/// A packed matrix of `rows` x `cols` ternary weights and its scale: y = scale * W x.
///
/// The bytes are [`Tile`]s, row tile after row tile (16 rows each), columns ascending in each: 16 rows are one
/// contiguous stream. Byte `4 * r + j` of a tile holds, in bits `2 * s .. 2 * s + 2`, the code `w + 1` (0, 1 or 2) of
/// its row `r` and its column `4 * s + j` (`r` in 0..16; `j`, `s` in 0..4). So 32-bit lane `r` belongs to row `r`, and
/// `(tile >> 2 * s) & 0x03030303` are the four codes that meet the four activations `4 * s .. 4 * s + 4`, one
/// broadcast 32-bit word, in a `u8 x i8` dot product: no shuffle, no horizontal sum.
///
/// Rows are padded to 16, columns to a multiple of 64, with code 1 (weight zero). Align the bytes to 64 for speed;
/// nothing else depends on it.
#[derive(Clone, Copy, Debug)]
pub struct TernaryMatrix<'a> {
    tiles: &'a [Tile],
    rows: usize,
    cols: usize,
    scale: f32,
}

impl<'a> TernaryMatrix<'a> {
    /// A view of `bytes`, written by [`pack_codes`](super::pack_codes) or [`pack_i2s`](super::pack_i2s).
    ///
    /// # Errors
    /// [`ShapeError`] where `bytes` is not exactly [`packed_bytes`] long, or `cols` is 0 or above [`COLS_MAX`].
    pub fn new(bytes: &'a [u8], rows: usize, cols: usize, scale: f32) -> Result<Self, ShapeError> {
        if cols == 0 || cols > COLS_MAX {
            return Err(ShapeError::Cols { got: cols, max: COLS_MAX, multiple_of: 1 });
        }
        let need = rows.div_ceil(TILE_ROWS).saturating_mul(row_tile_bytes(cols));
        if bytes.len() != need {
            return Err(ShapeError::Bytes { got: bytes.len(), need });
        }
        Ok(Self { tiles: bytes.as_chunks().0, rows, cols, scale })
    }

    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    #[must_use]
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// The packed bytes.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.tiles.as_flattened()
    }

    /// Tiles of one row tile.
    pub(super) fn tiles_per_row(&self) -> usize {
        padded_cols(self.cols) / TILE_COLS
    }

    /// The tiles of the row tiles `range`.
    pub(super) fn row_tiles(&self, range: std::ops::Range<usize>) -> &'a [Tile] {
        &self.tiles[range.start * self.tiles_per_row()..range.end * self.tiles_per_row()]
    }
}

const COL_STEP: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_lengths_and_widths_are_refused() {
        let bytes = vec![0x55; packed_bytes(17, 65)];
        assert_eq!(bytes.len(), 2 * 8 * 64);
        assert!(TernaryMatrix::new(&bytes, 17, 65, 1.0).is_ok());
        assert_eq!(TernaryMatrix::new(&bytes, 33, 65, 1.0).unwrap_err(), ShapeError::Bytes { got: 1024, need: 1536 });
        assert!(matches!(TernaryMatrix::new(&bytes, 17, 0, 1.0), Err(ShapeError::Cols { got: 0, .. })));
        assert!(matches!(TernaryMatrix::new(&bytes, 17, COLS_MAX + 1, 1.0), Err(ShapeError::Cols { .. })));
        assert!(matches!(TernaryMatrix::new(&bytes, usize::MAX, 65, 1.0), Err(ShapeError::Bytes { .. })));
    }
}
