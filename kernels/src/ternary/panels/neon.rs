//! Panels on NEON: codes are unpacked once, a block at a time, for products of dwords or of matrices of two rows.
#![expect(unsafe_code, reason = "loads and calls of functions with target features")]

use std::arch::aarch64::{
    int8x16_t, int32x4_t, uint8x16_t, vaddq_s32, vcombine_s32, vdup_n_s32, vdupq_n_s8, vdupq_n_s32, vld1_s32,
    vreinterpretq_s8_s32, vreinterpretq_s8_u8, vreinterpretq_s32_s8, vreinterpretq_u8_s8, vreinterpretq_u8_s32,
    vset_lane_s32, vuzp1q_s32, vuzp2q_s32, vzip1q_s32, vzip2q_s32,
};
use std::ops::Range;

use super::super::layout::{TILE_ROWS, Tile};
use super::super::neon_dotprod::codes as codes_of;
use super::{BLOCK_PAIRS, Codes, PAIR, PanelJob, Room, Sums, panel_count, parts};
use crate::neon::{dot_lane, load, load_signed, load_sums, matrix, prefetch_far, store, store_sums};
use crate::{Neon, NeonDotprod, NeonI8mm};

/// Blocks of row tiles, blocks of columns, pairs, panels: a pair's codes stay in the first-level cache while those
/// columns of all panels pass by. What is unpacked next is asked for in even parts meanwhile.
pub(super) fn linear<M: Multiply>(proof: M, job: &PanelJob<'_>, room: &mut Room<'_>) {
    let (n, tiles) = (job.n(), job.tiles_per_row());
    let (blocks, panels) = (tiles.div_ceil(BLOCK_TILES), panel_count(n));
    for first in (0..job.pairs()).step_by(BLOCK_PAIRS) {
        let pairs = first..(first + BLOCK_PAIRS).min(job.pairs());
        for (block, columns) in parts(0..tiles, blocks).enumerate() {
            let codes = &mut room.codes[..4 * columns.len()];
            for (i, pair) in pairs.clone().enumerate() {
                for side in 0..PAIR {
                    match job.row_tile(pair, side) {
                        Some(tiles) => proof.unpack(&tiles[columns.clone()], side, codes),
                        None => codes.iter_mut().for_each(|codes| codes.0[side] = [0; 4 * TILE_ROWS]),
                    }
                }
                for (rows, ahead) in parts(0..n, panels).zip(parts(columns.clone(), panels)) {
                    ask(job, pair + 1, ahead);
                    let x = &job.panel(&rows)[4 * columns.start * rows.len()..][..codes.len() * rows.len()];
                    let place = if blocks == 1 { 0 } else { i * n + rows.start };
                    let sums = &mut room.sums[place..][..rows.len()];
                    proof.multiply(codes, x, sums, block == 0);
                    if block + 1 == blocks {
                        job.finish(proof.neon(), pair, rows.start, sums);
                    }
                }
            }
        }
    }
}

/// Asks for tiles of a pair that are unpacked next.
#[inline(always)]
fn ask(job: &PanelJob<'_>, pair: usize, columns: Range<usize>) {
    for side in 0..PAIR {
        if let Some(tiles) = job.upcoming(pair, side) {
            tiles[columns.clone()].iter().for_each(|tile| prefetch_far(tile.as_ptr(), 0));
        }
    }
}

/// How an instruction set multiplies: the order of its codes, and its products.
pub(super) trait Multiply: Copy {
    fn neon(self) -> Neon;
    /// Codes of a row tile, a byte each.
    fn unpack(self, tiles: &[Tile], side: usize, codes: &mut [Codes]);
    /// Adds the products of a pair of row tiles with the rows of a panel; `first` starts from zero.
    fn multiply(self, codes: &[Codes], x: &[[i8; 4]], sums: &mut [Sums], first: bool);
}

impl Multiply for NeonDotprod {
    fn neon(self) -> Neon {
        Self::neon(self)
    }

    fn unpack(self, tiles: &[Tile], side: usize, codes: &mut [Codes]) {
        // SAFETY: the token proves that NEON exists.
        unsafe { unpack_fields(tiles, side, codes) }
    }

    fn multiply(self, codes: &[Codes], x: &[[i8; 4]], sums: &mut [Sums], first: bool) {
        // SAFETY: the token proves that these instructions exist.
        unsafe { multiply_dwords(codes, x, sums, first) }
    }
}

impl Multiply for NeonI8mm {
    fn neon(self) -> Neon {
        self.dotprod().neon()
    }

    fn unpack(self, tiles: &[Tile], side: usize, codes: &mut [Codes]) {
        // SAFETY: the token proves that NEON exists.
        unsafe { unpack_matrices(tiles, side, codes) }
    }

    fn multiply(self, codes: &[Codes], x: &[[i8; 4]], sums: &mut [Sums], first: bool) {
        // SAFETY: the token proves that these instructions exist.
        unsafe { multiply_matrices(codes, x, sums, first) }
    }
}

/// Field after field, as tiles have them: 16 rows x 4 columns.
#[target_feature(enable = "neon")]
fn unpack_fields(tiles: &[Tile], side: usize, codes: &mut [Codes]) {
    for (tile, codes) in tiles.iter().zip(codes.as_chunks_mut::<4>().0) {
        for (quarter, bytes) in tile.as_chunks::<16>().0.iter().enumerate() {
            for (field, codes) in codes_of::<1>(load(bytes)).into_iter().zip(&mut *codes) {
                store(vreinterpretq_u8_s8(field), &mut codes.0[side].as_chunks_mut().0[quarter]);
            }
        }
    }
}

/// Two fields after two: 8 matrices of 2 rows x 8 columns.
#[target_feature(enable = "neon")]
fn unpack_matrices(tiles: &[Tile], side: usize, codes: &mut [Codes]) {
    for (tile, codes) in tiles.iter().zip(codes.as_chunks_mut::<4>().0) {
        for (quarter, bytes) in tile.as_chunks::<16>().0.iter().enumerate() {
            let fields = codes_of::<1>(load(bytes));
            for (fields, codes) in fields.as_chunks::<2>().0.iter().zip(codes.as_chunks_mut::<2>().0) {
                let (a, b) = (vreinterpretq_s32_s8(fields[0]), vreinterpretq_s32_s8(fields[1]));
                let places = codes[quarter / 2].0[side].as_chunks_mut().0;
                store(vreinterpretq_u8_s32(vzip1q_s32(a, b)), &mut places[quarter % 2 * 2]);
                store(vreinterpretq_u8_s32(vzip2q_s32(a, b)), &mut places[quarter % 2 * 2 + 1]);
            }
        }
    }
}

#[target_feature(enable = "neon,dotprod")]
fn multiply_dwords(codes: &[Codes], x: &[[i8; 4]], sums: &mut [Sums], first: bool) {
    let n = sums.len();
    for rows in parts(0..n, n.div_ceil(DWORD_ROWS)) {
        let (x, sums) = (&x[rows.start..], &mut sums[rows.clone()]);
        for side in 0..PAIR {
            match rows.len() {
                1 => dwords::<1>(codes, side, (x, n), sums, first),
                2 => dwords::<2>(codes, side, (x, n), sums, first),
                3 => dwords::<3>(codes, side, (x, n), sums, first),
                4 => dwords::<4>(codes, side, (x, n), sums, first),
                5 => dwords::<5>(codes, side, (x, n), sums, first),
                _ => dwords::<6>(codes, side, (x, n), sums, first),
            }
        }
    }
}

/// A row tile against N activation rows, whose runs of 4 columns lie `n` apart.
#[target_feature(enable = "neon,dotprod")]
#[inline(never)]
fn dwords<const N: usize>(codes: &[Codes], side: usize, (x, n): (&[[i8; 4]], usize), sums: &mut [Sums], first: bool) {
    let mut acc = [[vdupq_n_s32(0); 4]; N];
    for (codes, x) in codes.iter().zip(x.chunks(n)) {
        let x: &[_; N] = x.first_chunk().expect("a run of each row");
        let mut q = [vdupq_n_s8(0); 2];
        for (q, x) in q.iter_mut().zip(x.chunks(4)) {
            *q = up_to_four(x);
        }
        for (quarter, codes) in codes.0[side].as_chunks::<16>().0.iter().enumerate() {
            let codes = signed(load(codes));
            for t in 0..N {
                acc[t][quarter] = dot_at(acc[t][quarter], codes, q[t / 4], t % 4);
            }
        }
    }
    for (acc, sums) in acc.into_iter().zip(sums) {
        for (acc, sums) in acc.into_iter().zip(sums.0[side].as_chunks_mut().0) {
            put(acc, sums, first);
        }
    }
}

#[target_feature(enable = "neon,i8mm")]
fn multiply_matrices(codes: &[Codes], x: &[[i8; 4]], sums: &mut [Sums], first: bool) {
    let n = sums.len();
    let twos = n.div_ceil(2);
    for rows in parts(0..twos, twos.div_ceil(MATRIX_TWOS)) {
        let rows = 2 * rows.start..n.min(2 * rows.end);
        let (x, sums) = (&x[rows.start..], &mut sums[rows.clone()]);
        for side in 0..PAIR {
            match rows.len() {
                1 => matrices::<1, 1>(codes, side, (x, n), sums, first),
                2 => matrices::<2, 1>(codes, side, (x, n), sums, first),
                3 => matrices::<3, 2>(codes, side, (x, n), sums, first),
                4 => matrices::<4, 2>(codes, side, (x, n), sums, first),
                5 => matrices::<5, 3>(codes, side, (x, n), sums, first),
                _ => matrices::<6, 3>(codes, side, (x, n), sums, first),
            }
        }
    }
}

/// A row tile against N activation rows, which make so many `TWOS`; their runs of 4 columns lie `n` apart.
#[target_feature(enable = "neon,i8mm")]
#[inline(never)]
fn matrices<const N: usize, const TWOS: usize>(
    codes: &[Codes],
    side: usize,
    (x, n): (&[[i8; 4]], usize),
    sums: &mut [Sums],
    first: bool,
) {
    let mut acc = [[vdupq_n_s32(0); 8]; TWOS];
    for (codes, x) in codes.as_chunks::<2>().0.iter().zip(x.chunks(2 * n)) {
        let low: &[_; N] = x.first_chunk().expect("a run of each row");
        let high: &[_; N] = x[n..].first_chunk().expect("a run of each row");
        let mut q = [vdupq_n_s8(0); TWOS];
        for (q, (low, high)) in q.iter_mut().zip(low.chunks(2).zip(high.chunks(2))) {
            let (low, high) = (vreinterpretq_s32_s8(up_to_four(low)), vreinterpretq_s32_s8(up_to_four(high)));
            *q = vreinterpretq_s8_s32(vzip1q_s32(low, high));
        }
        for (half, codes) in codes.iter().enumerate() {
            for (two, codes) in codes.0[side].as_chunks::<16>().0.iter().enumerate() {
                let codes = signed(load(codes));
                for t in 0..TWOS {
                    acc[t][4 * half + two] = matrix(acc[t][4 * half + two], codes, q[t]);
                }
            }
        }
    }
    for (acc, sums) in acc.into_iter().zip(sums.chunks_mut(2)) {
        for (quarter, acc) in acc.as_chunks::<2>().0.iter().enumerate() {
            let by_row = [vuzp1q_s32(acc[0], acc[1]), vuzp2q_s32(acc[0], acc[1])];
            for (acc, sums) in by_row.into_iter().zip(&mut *sums) {
                put(acc, &mut sums.0[side].as_chunks_mut().0[quarter], first);
            }
        }
    }
}

/// Adds four sums to those before, unless they are the `first`.
#[target_feature(enable = "neon")]
#[inline]
fn put(acc: int32x4_t, sums: &mut [i32; 4], first: bool) {
    store_sums(if first { acc } else { vaddq_s32(acc, load_sums(sums)) }, sums);
}

/// The runs of up to four rows, zeros behind them.
#[target_feature(enable = "neon")]
#[inline]
fn up_to_four(x: &[[i8; 4]]) -> int8x16_t {
    if let Ok(four) = x.as_flattened().try_into() {
        return load_signed(four);
    }
    let (twos, one) = x.as_chunks::<2>();
    let mut halves = [vdup_n_s32(0); 2];
    for (half, two) in halves.iter_mut().zip(twos) {
        // SAFETY: 8 readable bytes; the load has no alignment requirement.
        *half = unsafe { vld1_s32(two.as_ptr().cast()) };
    }
    if let [one] = one {
        halves[twos.len()] = vset_lane_s32::<0>(i32::from_ne_bytes(one.map(i8::cast_unsigned)), vdup_n_s32(0));
    }
    vreinterpretq_s8_s32(vcombine_s32(halves[0], halves[1]))
}

/// Codes are far from a sign.
#[target_feature(enable = "neon")]
#[inline]
fn signed(codes: uint8x16_t) -> int8x16_t {
    vreinterpretq_s8_u8(codes)
}

/// [`dot_lane`] of a lane that is known where the loop around is unrolled.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn dot_at(sum: int32x4_t, a: int8x16_t, b: int8x16_t, lane: usize) -> int32x4_t {
    match lane {
        0 => dot_lane::<0>(sum, a, b),
        1 => dot_lane::<1>(sum, a, b),
        2 => dot_lane::<2>(sum, a, b),
        _ => dot_lane::<3>(sum, a, b),
    }
}

/// Tiles of a row tile that are unpacked at a time: 20 KiB of codes, in a first-level cache.
pub(super) const BLOCK_TILES: usize = 40;
/// Activation rows that meet a row tile together: 24 sums leave 8 of 32 registers for codes and activations.
const DWORD_ROWS: usize = 6;
/// The same in twos.
const MATRIX_TWOS: usize = 3;
