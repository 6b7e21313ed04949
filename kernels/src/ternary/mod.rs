//! Linear layers with ternary weights: int8 activations, exact int32 sums, one float scale per matrix.
//!
//! [`quantize`] turns a row of activations into int8, [`linear`] multiplies. Weights are packed once, at load, into
//! the layout that [`TernaryMatrix`] documents; it is the same on every machine and serves every [`Isa`](crate::Isa).

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512_bw;
#[cfg(target_arch = "x86_64")]
mod avx512_vnni;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
mod fragments;
mod gemv;
mod layout;
mod linear;
#[cfg(target_arch = "aarch64")]
mod neon_dotprod;
mod pack;
mod panels;
mod portable;
mod quantize;

pub use fragments::{FRAGMENT_BYTES, FRAGMENT_COLS, HALF_TILE_ROWS, HalfTile, pack_fragments};
pub use gemv::{
    COLUMN_COLS_MAX, ColumnMatrix, LiveColumns, RowActivations, RowMatrix, column_bytes, linear_columns, linear_rows,
    live_columns_percent_max, pack_columns, pack_rows, permute_row, permuted_cols, row_bytes, skips,
};
pub use layout::{
    COLS_MAX, ShapeError, TILE_BYTES, TILE_COLS, TILE_ROWS, TernaryMatrix, Tile, packed_bytes, padded_cols,
};
pub use linear::{Activations, activation_stride, linear, linear_raw};
pub use pack::{Code3Found, pack_codes, pack_i2s};
pub use panels::{
    Factored, Gating, PANEL_ROWS_MAX, PANEL_UNIT_ROWS, PanelOrder, PanelScratch, Panels, Product, interleave,
    linear_panels, panel_count, panel_rows, prefers_panels, prefers_rows, rows_at_once,
};
pub use quantize::{Quantized, quantize, quantize_within};
