//! One row of activations with NEON's dot products: chosen rows, chosen columns.
#![expect(unsafe_code, reason = "calls of functions with target features")]

use std::arch::aarch64::{
    int32x4_t, uint8x16_t, vaddq_s32, vaddvq_s32, vdupq_n_s32, vdupq_n_u8, vreinterpretq_s8_s32, vreinterpretq_u8_u16,
    vreinterpretq_u16_u8, vzip1q_u8, vzip1q_u16, vzip2q_u8, vzip2q_u16,
};

use super::super::layout::{TILE_BYTES, Tile};
use super::super::linear::Finish;
use super::super::neon_dotprod::{codes, merge};
use super::columns::{ColumnMatrix, LINE_ROWS, LiveColumns};
use super::rows::{LINE_COLS, RowActivations, RowMatrix};
use crate::NeonDotprod;
use crate::neon::{dot, load, load_signed, prefetch, store_sums};

pub(super) fn rows<F: Finish>(
    _: NeonDotprod,
    w: RowMatrix<'_>,
    first: usize,
    live: &[u32],
    x: RowActivations<'_>,
    finish: F,
    out: &mut [F::Out],
) {
    for (i, &row) in live.iter().enumerate() {
        let next = live[(i + ROWS_AHEAD).min(live.len() - 1)];
        let (this, next) = (w.row(first + row as usize), w.row(first + next as usize));
        // SAFETY: the token proves that these instructions exist.
        let sum = unsafe { row_dot(this, next, x.q.as_chunks().0) };
        out[row as usize] = finish.finish(sum.wrapping_sub(x.sum), x.scale);
    }
}

/// Sum of `code * q` of a row; `next` is asked for meanwhile.
#[target_feature(enable = "neon,dotprod")]
fn row_dot(row: &[Tile], next: &[Tile], q: &[[i8; LINE_COLS]]) -> i32 {
    let next = &next[..row.len()];
    // Of each quarter of a line, as `codes` makes them.
    let mut acc = [[vdupq_n_s32(0); 3]; 4];
    for ((line, next), q) in row.iter().zip(next).zip(q) {
        prefetch(next, 0);
        let q = q.as_chunks::<16>().0;
        for (quarter, acc) in acc.iter_mut().enumerate() {
            let codes = codes::<3>(load(&line.as_chunks().0[quarter]));
            for s in 0..4 {
                acc[s % 3] = dot(acc[s % 3], codes[s], load_signed(&q[4 * s + quarter]));
            }
        }
    }
    let mut sum = vdupq_n_s32(0);
    for acc in acc {
        sum = vaddq_s32(sum, merge(acc));
    }
    vaddvq_s32(sum)
}

pub(super) fn columns<F: Finish>(
    _: NeonDotprod,
    w: ColumnMatrix<'_>,
    first: usize,
    live: &LiveColumns,
    (scale, sum): (f32, i32),
    finish: F,
    out: &mut [F::Out],
) {
    for (i, out) in out.chunks_mut(w.block_rows()).enumerate() {
        let block = w.block(first + i);
        for (line, out) in out.chunks_mut(LINE_ROWS).enumerate() {
            let mut sums = [0; LINE_ROWS];
            for part in 0..PARTS {
                // SAFETY: the token proves that these instructions exist.
                unsafe { part_dot(&block[line..], w.lines(), live, part, &mut sums) }
            }
            for (out, acc) in out.iter_mut().zip(sums) {
                *out = finish.finish(acc.wrapping_sub(sum), scale);
            }
        }
    }
}

/// Sums of `code * q` of the rows in bytes `16 * part ..+ 16` of the lines, whose line of column `c` is
/// `block[c * lines]`. Interleaved, the bytes of four columns become dwords of a row each.
#[target_feature(enable = "neon,dotprod")]
fn part_dot(block: &[Tile], lines: usize, live: &LiveColumns, part: usize, sums: &mut [i32; LINE_ROWS]) {
    let columns = live.columns();
    let mut acc = [[vdupq_n_s32(0); 4]; 4];
    for (i, (four, q)) in columns.iter().zip(live.words()).enumerate() {
        if part == 0 {
            let next = &columns[(i + COLUMN_WORDS_AHEAD).min(columns.len() - 1)];
            next.iter().for_each(|&column| prefetch(&block[column as usize * lines], 0));
        }
        let mut v = [vdupq_n_u8(0); 4];
        for (v, &column) in v.iter_mut().zip(four) {
            *v = load(&block[column as usize * lines].as_chunks().0[part]);
        }
        let q = vreinterpretq_s8_s32(vdupq_n_s32(i32::from_ne_bytes(q.map(i8::cast_unsigned))));
        for (fields, acc) in interleaved(v).into_iter().zip(&mut acc) {
            let codes = codes::<1>(fields);
            for s in 0..4 {
                acc[s] = dot(acc[s], codes[s], q);
            }
        }
    }
    for (quarter, acc) in acc.into_iter().enumerate() {
        for (s, acc) in acc.into_iter().enumerate() {
            for (d, sum) in lanes(acc).into_iter().enumerate() {
                let byte = TILE_BYTES / PARTS * part + 4 * quarter + d;
                sums[64 * (byte % 4) + 16 * s + byte / 4] = sum;
            }
        }
    }
}

/// Byte `i` of each of four registers, for all `i` in turn.
#[target_feature(enable = "neon")]
#[inline]
fn interleaved(v: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
    let (first, second) = (vreinterpretq_u16_u8(vzip1q_u8(v[0], v[1])), vreinterpretq_u16_u8(vzip1q_u8(v[2], v[3])));
    let (third, fourth) = (vreinterpretq_u16_u8(vzip2q_u8(v[0], v[1])), vreinterpretq_u16_u8(vzip2q_u8(v[2], v[3])));
    [
        vreinterpretq_u8_u16(vzip1q_u16(first, second)),
        vreinterpretq_u8_u16(vzip2q_u16(first, second)),
        vreinterpretq_u8_u16(vzip1q_u16(third, fourth)),
        vreinterpretq_u8_u16(vzip2q_u16(third, fourth)),
    ]
}

#[target_feature(enable = "neon")]
#[inline]
fn lanes(v: int32x4_t) -> [i32; 4] {
    let mut lanes = [0; 4];
    store_sums(v, &mut lanes);
    lanes
}

/// Parts of a line that make four registers of dwords each.
const PARTS: usize = 4;
const ROWS_AHEAD: usize = 8;
const COLUMN_WORDS_AHEAD: usize = 16;
