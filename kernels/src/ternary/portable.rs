//! The reference kernel: no instruction set, one row tile and one activation row at a time.

use super::layout::{TILE_ROWS, Tile};
use super::linear::{Finish, Job};

pub(super) fn linear<F: Finish>(job: Job<'_>, finish: F, out: &mut [F::Out]) {
    for index in 0..job.row_tiles() {
        for t in 0..job.n() {
            job.store(finish, out, index, t, dot(job.row_tile(index), job.x_row(t)));
        }
    }
}

/// Sums of `code * q`, a lane for each row. Wrapping: codes are at most 2 and columns at most `COLS_MAX` in a valid
/// matrix, other bytes must not panic.
fn dot(tiles: &[Tile], x: &[[i8; 16]]) -> [i32; TILE_ROWS] {
    let mut acc = [0_i32; TILE_ROWS];
    for (tile, x) in tiles.iter().zip(x) {
        for (acc, bytes) in acc.iter_mut().zip(tile.as_chunks::<4>().0) {
            for s in 0..4 {
                for (j, byte) in bytes.iter().enumerate() {
                    *acc += i32::from((byte >> (2 * s)) & 3) * i32::from(x[4 * s + j]);
                }
            }
        }
    }
    acc
}
