//! Where results go: some columns of a matrix whose other columns are others'.

use std::cell::Cell;

/// Columns of a row-major matrix whose other columns other threads may write meanwhile: rows start `stride` apart.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    pub cells: &'a [Cell<f32>],
    pub stride: usize,
}
