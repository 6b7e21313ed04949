//! NEON's dot products: one `sdot` for 4 rows x 4 columns of one activation row, whose dword is picked from 16 columns.
#![expect(unsafe_code, reason = "calls of functions with target features")]

use std::arch::aarch64::{
    int8x16_t, int32x4_t, uint8x16_t, vaddq_s32, vandq_u8, vdupq_n_s8, vdupq_n_s32, vdupq_n_u8, vreinterpretq_s8_u8,
    vshrq_n_s32, vshrq_n_u8,
};
use std::ops::Range;

use super::layout::{TILE_ROWS, Tile};
use super::linear::{Finish, Job};
use crate::NeonDotprod;
use crate::neon::{dot_lane, load, load_signed, prefetch, store_sums};

pub(super) fn linear<F: Finish>(_: NeonDotprod, job: Job<'_>, finish: F, out: &mut [F::Out]) {
    // SAFETY: the token proves that these instructions exist.
    unsafe { blocks(job, finish, out) }
}

#[target_feature(enable = "neon,dotprod")]
fn blocks<F: Finish>(job: Job<'_>, finish: F, out: &mut [F::Out]) {
    for (tiles, tokens) in job.blocks(TOKENS_MAX) {
        match tokens.len() {
            1 => panel::<F, 1, 3>(job, finish, out, tiles, tokens.start),
            2 => panel::<F, 2, 3>(job, finish, out, tiles, tokens.start),
            3 => panel::<F, 3, 1>(job, finish, out, tiles, tokens.start),
            4 => panel::<F, 4, 1>(job, finish, out, tiles, tokens.start),
            _ => panel::<F, 5, 1>(job, finish, out, tiles, tokens.start),
        }
    }
}

/// Row tiles `tiles` against activation rows `start .. start + N`.
#[target_feature(enable = "neon,dotprod")]
fn panel<F: Finish, const N: usize, const SPLIT: usize>(
    job: Job<'_>,
    finish: F,
    out: &mut [F::Out],
    tiles: Range<usize>,
    start: usize,
) {
    let x: [_; N] = std::array::from_fn(|t| job.x_row(start + t));
    for index in tiles {
        let acc = dot::<N, SPLIT>(job.row_tile(index), x);
        for (t, acc) in acc.into_iter().enumerate() {
            job.store(finish, out, index, start + t, lanes(acc));
        }
    }
}

/// Sums of `code * q` for one row tile and `N` activation rows; quarters are 4 rows each. `SPLIT` is that of [`codes`].
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn dot<const N: usize, const SPLIT: usize>(w: &[Tile], x: [&[[i8; 16]]; N]) -> [[int32x4_t; 4]; N] {
    let x: [_; N] = std::array::from_fn(|t| &x[t][..w.len()]);
    let mut acc = [[[vdupq_n_s32(0); SPLIT]; 4]; N];
    for (i, tile) in w.iter().enumerate() {
        // Row tiles follow one another in memory: what lies ahead is the next row tile at the end of this one.
        prefetch(tile, PREFETCH_BYTES);
        let mut q = [vdupq_n_s8(0); N];
        for t in 0..N {
            q[t] = load_signed(&x[t][i]);
        }
        for (quarter, bytes) in tile.as_chunks::<16>().0.iter().enumerate() {
            let codes = codes::<SPLIT>(load(bytes));
            for t in 0..N {
                let acc = &mut acc[t][quarter];
                acc[0] = dot_lane::<0>(acc[0], codes[0], q[t]);
                acc[1 % SPLIT] = dot_lane::<1>(acc[1 % SPLIT], codes[1], q[t]);
                acc[2 % SPLIT] = dot_lane::<2>(acc[2 % SPLIT], codes[2], q[t]);
                acc[0] = dot_lane::<3>(acc[0], codes[3], q[t]);
            }
        }
    }
    let mut sums = [[vdupq_n_s32(0); 4]; N];
    for t in 0..N {
        for quarter in 0..4 {
            sums[t][quarter] = merge(acc[t][quarter]);
        }
    }
    sums
}

/// The codes of the four fields. With `SPLIT` sums, 3 or 1: with 3 of them the fields 1 and 2 stay where they are, 4 and 16
/// times what they count, and have sums of their own. Field 3 would be negative there.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn codes<const SPLIT: usize>(fields: uint8x16_t) -> [int8x16_t; 4] {
    let mask = vdupq_n_u8(3);
    let (second, third) = if SPLIT == 3 {
        (vandq_u8(fields, vdupq_n_u8(3 << 2)), vandq_u8(fields, vdupq_n_u8(3 << 4)))
    } else {
        (vandq_u8(vshrq_n_u8::<2>(fields), mask), vandq_u8(vshrq_n_u8::<4>(fields), mask))
    };
    [
        vreinterpretq_s8_u8(vandq_u8(fields, mask)),
        vreinterpretq_s8_u8(second),
        vreinterpretq_s8_u8(third),
        vreinterpretq_s8_u8(vshrq_n_u8::<6>(fields)),
    ]
}

/// The sums of all fields, of the sums that [`codes`] makes of them.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn merge<const SPLIT: usize>(acc: [int32x4_t; SPLIT]) -> int32x4_t {
    if SPLIT == 1 {
        return acc[0];
    }
    vaddq_s32(acc[0], vaddq_s32(vshrq_n_s32::<2>(acc[1]), vshrq_n_s32::<4>(acc[2])))
}

#[target_feature(enable = "neon")]
#[inline]
fn lanes(v: [int32x4_t; 4]) -> [i32; TILE_ROWS] {
    let mut lanes = [0_i32; TILE_ROWS];
    for (lanes, v) in lanes.as_chunks_mut::<4>().0.iter_mut().zip(v) {
        store_sums(v, lanes);
    }
    lanes
}

/// 5 rows x 4 quarters of sums and 5 of activations leave 7 of 32 registers for codes and masks; with three sums for each
/// field, 2 rows leave 6.
const TOKENS_MAX: usize = 5;
const PREFETCH_BYTES: usize = 2048;
