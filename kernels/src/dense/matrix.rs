//! The kinds of dense weights and the view of a matrix of them.

use std::ops::Range;

use crate::math::f16_to_f32;
use crate::ternary::ShapeError;

/// Element layout, all little-endian, as ggml defines it. Blocks lie along a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenseKind {
    F32,
    F16,
    Bf16,
    /// 32 elements in 34 bytes: f16 `d`, 32 x i8 `q`; `w = d * q`.
    Q8_0,
    /// 256 elements in 210 bytes: 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 x i8 `scale` (one for each
    /// 16 elements), f16 `d`; `w = (d * scale) * (q - 32)`.
    Q6K,
    /// 32 elements in 18 bytes: f16 `d`, 16 bytes, of which the low nibbles are elements 0 to 15 and the high ones 16
    /// to 31; `w = d * (q - 8)`.
    Q4_0,
}

impl DenseKind {
    /// Elements of a block; 1 for plain floats.
    #[must_use]
    pub const fn block_cols(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 => 32,
            Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => 34,
            Self::Q6K => 210,
            Self::Q4_0 => 18,
        }
    }

    /// Bytes of a row of `cols` elements, a multiple of [`block_cols`](Self::block_cols).
    #[must_use]
    pub const fn row_bytes(self, cols: usize) -> usize {
        cols / self.block_cols() * self.block_bytes()
    }
}

/// `rows` x `cols` weights, row after row without gaps.
#[derive(Clone, Copy, Debug)]
pub struct DenseMatrix<'a> {
    kind: DenseKind,
    bytes: &'a [u8],
    rows: usize,
    cols: usize,
}

impl<'a> DenseMatrix<'a> {
    /// A view of `bytes`; any alignment.
    ///
    /// # Errors
    /// [`ShapeError`] where `cols` is no positive multiple of the kind's block, or `bytes` has another length.
    pub fn new(kind: DenseKind, bytes: &'a [u8], rows: usize, cols: usize) -> Result<Self, ShapeError> {
        let multiple_of = kind.block_cols();
        if cols == 0 || cols > COLS_MAX || !cols.is_multiple_of(multiple_of) {
            return Err(ShapeError::Cols { got: cols, max: COLS_MAX, multiple_of });
        }
        let need = rows.saturating_mul(kind.row_bytes(cols));
        if bytes.len() != need {
            return Err(ShapeError::Bytes { got: bytes.len(), need });
        }
        Ok(Self { kind, bytes, rows, cols })
    }

    #[must_use]
    pub fn kind(&self) -> DenseKind {
        self.kind
    }

    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of row `index`.
    #[inline]
    pub(super) fn row(&self, index: usize) -> &'a [u8] {
        let row_bytes = self.kind.row_bytes(self.cols);
        &self.bytes[index * row_bytes..(index + 1) * row_bytes]
    }

    /// Columns after the last whole pair of 16-column groups; only plain floats have any.
    #[inline]
    pub(super) fn tail(&self) -> Range<usize> {
        self.cols / 32 * 32..self.cols
    }

    /// Element `k` of a row of plain floats; the column tail of other kinds is empty.
    #[inline]
    pub(super) fn float(&self, row: &[u8], k: usize) -> f32 {
        match self.kind {
            DenseKind::F32 => f32::from_le_bytes(row.as_chunks().0[k]),
            DenseKind::F16 => f16_to_f32(u16::from_le_bytes(row.as_chunks().0[k])),
            DenseKind::Bf16 => bf16_to_f32(u16::from_le_bytes(row.as_chunks().0[k])),
            DenseKind::Q8_0 | DenseKind::Q6K | DenseKind::Q4_0 => unreachable!("blocks are whole pairs of groups"),
        }
    }
}

/// The exact value of bfloat16 `bits`.
#[inline]
pub(super) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Far above any model; keeps byte counts of a row far from overflow.
const COLS_MAX: usize = 1 << 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_lengths_and_broken_blocks_are_refused() {
        assert!(DenseMatrix::new(DenseKind::Q6K, &[0; 420], 2, 256).is_ok());
        assert_eq!(
            DenseMatrix::new(DenseKind::Q6K, &[0; 420], 1, 255).unwrap_err(),
            ShapeError::Cols { got: 255, max: COLS_MAX, multiple_of: 256 }
        );
        assert_eq!(
            DenseMatrix::new(DenseKind::F16, &[0; 420], 2, 106).unwrap_err(),
            ShapeError::Bytes { got: 420, need: 424 }
        );
        assert!(DenseMatrix::new(DenseKind::F32, &[], 0, 0).is_err());
        assert!(DenseMatrix::new(DenseKind::F32, &[], usize::MAX, 8).is_err());
    }
}
