//! The int8 copy of a matrix: its layout and the view of it.

#[cfg(target_arch = "x86_64")]
use std::ops::Range;

use super::activations::ScreenRow;
use crate::dense::DenseMatrix;

/// Rows of a group: what is skipped as a whole, and what work is cut into.
pub const GROUP_ROWS: usize = 64;
/// Most columns: `255 * 127 * COLS_MAX` is below 2^31.
pub const COLS_MAX: usize = 1 << 16;

/// Rows of a tile row: one for each 32-bit lane of a 512-bit register.
pub(super) const TILE_ROWS: usize = 16;
/// 16 rows x 4 columns: byte `4 * r + j` is `q + 128` of row `r` and column `j`, so that lane `r` meets one broadcast
/// dword of four activations.
pub(super) type Tile = [u8; 64];
/// The code of `q` 0.
pub(super) const CODE_ZERO: u8 = 128;
/// What is known of the rows of a group: all scales, then all `A`, then all `V`, little-endian f32.
pub(super) type Facts = [[[u8; 4]; GROUP_ROWS]; 3];

pub(super) const TILE_ROWS_PER_GROUP: usize = GROUP_ROWS / TILE_ROWS;

/// Columns of the copy.
pub(super) const fn padded_cols(cols: usize) -> usize {
    cols.next_multiple_of(16)
}

/// Tiles of 16 rows.
pub(super) const fn tiles_per_row(cols: usize) -> usize {
    padded_cols(cols) / 4
}

/// Bytes of a group of rows: its tiles, 16 rows at a time, then its facts.
#[must_use]
pub const fn group_bytes(cols: usize) -> usize {
    TILE_ROWS_PER_GROUP * tiles_per_row(cols) * size_of::<Tile>() + size_of::<Facts>()
}

/// Bytes of the copy of a `rows` x `cols` matrix: whole groups, then for each group its greatest `A` and `V`.
#[must_use]
pub const fn packed_bytes(rows: usize, cols: usize) -> usize {
    rows.div_ceil(GROUP_ROWS) * (group_bytes(cols) + size_of::<[[u8; 4]; 2]>())
}

/// The int8 copy of a matrix of `rows` x `cols`; [`pack`](super::pack) makes it, the module says what it means.
#[derive(Clone, Copy, Debug)]
pub struct ScreenMatrix<'a> {
    groups: &'a [u8],
    greatest: &'a [[[u8; 4]; 2]],
    rows: usize,
    cols: usize,
    weight_max: f32,
}

impl<'a> ScreenMatrix<'a> {
    /// A view of the bytes that [`pack`](super::pack) made of `w`, for which it gave `weight_max`. `None` where some
    /// row of `w` is not finite or longer than [`COLS_MAX`]: such a matrix has no copy.
    ///
    /// # Panics
    /// Where `bytes` has another length than [`packed_bytes`].
    #[must_use]
    pub fn new(bytes: &'a [u8], w: &DenseMatrix<'_>, weight_max: f32) -> Option<Self> {
        let (rows, cols) = (w.rows(), w.cols());
        assert_eq!(bytes.len(), packed_bytes(rows, cols), "the copy has the size of its shape");
        let (groups, greatest) = bytes.split_at(rows.div_ceil(GROUP_ROWS) * group_bytes(cols));
        let greatest = greatest.as_chunks::<4>().0.as_chunks::<2>().0;
        (cols <= COLS_MAX && weight_max.is_finite()).then_some(Self { groups, greatest, rows, cols, weight_max })
    }

    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Whether products with an activation row of these norms stay far from overflow.
    #[must_use]
    pub(super) fn admits(&self, norm: f32, rest: f32) -> bool {
        // NaN fails.
        self.weight_max * norm < NORM_MAX && self.weight_max * rest < NORM_MAX && norm < NORM_MAX
    }

    /// More than the magnitude of any product with an activation row that is admitted, and of any bound of it: `|f|` is at
    /// most `(A + V) X`, a bound as far away again as twice `A X + V D`.
    pub(super) fn bound_max(&self, x: &ScreenRow) -> f32 {
        self.weight_max * (3.0 * x.norm + 2.0 * x.rest) * 1.001
    }

    /// Greatest `A` and `V` of group `group`.
    pub(super) fn greatest(&self, group: usize) -> (f32, f32) {
        let [spread, length] = self.greatest[group];
        (f32::from_le_bytes(spread), f32::from_le_bytes(length))
    }

    /// Tiles of rows `16 * index ..+ 16`.
    #[inline(always)]
    pub(super) fn tile_row(&self, index: usize) -> &'a [Tile] {
        let tiles = tiles_per_row(self.cols);
        let group = self.group(index / TILE_ROWS_PER_GROUP).as_chunks().0;
        &group[index % TILE_ROWS_PER_GROUP * tiles..][..tiles]
    }

    /// Facts of the rows of a group.
    #[inline(always)]
    pub(super) fn facts(&self, group: usize) -> &'a Facts {
        let bytes = self.group(group);
        let numbers = bytes[bytes.len() - size_of::<Facts>()..].as_chunks::<4>().0;
        numbers.as_chunks().0.as_chunks().0.first().expect("a group ends with its facts")
    }

    /// All of some groups.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn bytes(&self, groups: Range<usize>) -> &'a [u8] {
        let bytes = group_bytes(self.cols);
        &self.groups[groups.start * bytes..groups.end * bytes]
    }

    #[inline(always)]
    fn group(&self, group: usize) -> &'a [u8] {
        let bytes = group_bytes(self.cols);
        &self.groups[group * bytes..][..bytes]
    }
}

/// Products of norms stay below this: the greatest f32 is 3.4e38.
const NORM_MAX: f32 = 1e36;
