//! Linear layers with float or block-quantised weights, used as they stand in a GGUF file.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod format;
mod lanes;
mod linear;
mod matrix;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pieces;
mod portable;

pub use linear::{DenseScratch, dequantize_row, linear, linear_rows};
pub use matrix::{DenseKind, DenseMatrix};
pub use pieces::{PIECE_TILE_ROWS, pack_pieces, pack_wide_pieces};
