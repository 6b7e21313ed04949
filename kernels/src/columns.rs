//! Where results go: some columns of a matrix whose other columns are others'.

use std::cell::Cell;

/// Columns of a row-major matrix whose other columns other threads may write meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    /// From the first row's first column to the last row's last one.
    pub cells: &'a [Cell<f32>],
    /// Elements from a row to the next.
    pub stride: usize,
}
