//! Products with one row of activations: streaming whole matrices, or only the rows and columns that count.
//!
//! A feed-forward block with squared ReLU multiplies most rows of its up projection by zero, and feeds its down
//! projection mostly zeros. [`RowMatrix`] keeps rows contiguous, so that rows which don't count are never read;
//! [`ColumnMatrix`] keeps columns contiguous, so that columns which meet a zero aren't. Both give the integers of
//! [`linear`](super::linear()), bit for bit.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx512_vnni;
mod columns;
#[cfg(target_arch = "x86_64")]
mod narrow;
#[cfg(target_arch = "aarch64")]
mod neon;
mod rows;

pub use columns::{COLUMN_COLS_MAX, ColumnMatrix, LiveColumns, column_bytes, linear_columns, pack_columns};
pub use rows::{RowActivations, RowMatrix, linear_rows, pack_rows, permute_row, permuted_cols, row_bytes};

use crate::Isa;

/// Whether `isa` has kernels of its own for [`linear_rows`] and [`linear_columns`]; elsewhere they are correct, but
/// slower than reading everything.
#[must_use]
pub fn skips(isa: Isa) -> bool {
    !matches!(isa, Isa::Portable)
}

/// Up to this share of columns, in percent, [`linear_columns`] is faster on `isa` than reading everything. On one core
/// (2560 x 6912, everything and 46 % of the columns): AVX-512 VNNI 265 and 205 us, AVX-VNNI 337 and 340, AVX2 365 and 432.
#[must_use]
pub fn live_columns_percent_max(isa: Isa) -> usize {
    match isa {
        Isa::Avx512Vnni(_) | Isa::AmxInt8(_) => 70,
        Isa::AvxVnni(_) => 43,
        Isa::Avx2(_) | Isa::Avx512Bw(_) => 37,
        // As AVX-VNNI, which spends its instructions alike; never measured.
        Isa::NeonDotprod(_) | Isa::NeonI8mm(_) => 43,
        Isa::Portable => 0,
    }
}
