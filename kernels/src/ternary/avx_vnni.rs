//! AVX-VNNI: one 256-bit `vpdpbusd` for 8 rows x 4 columns of one activation row.
#![expect(unsafe_code, reason = "loads, prefetches and calls of functions with target features")]

use std::arch::x86_64::{
    __m256i, _MM_HINT_T0, _mm_prefetch, _mm256_add_epi32, _mm256_and_si256, _mm256_dpbusd_avx_epi32,
    _mm256_loadu_si256, _mm256_set1_epi8, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_srai_epi32,
    _mm256_srli_epi32, _mm256_storeu_si256,
};
use std::ops::Range;

use super::layout::{TILE_ROWS, Tile, word};
use super::linear::{Finish, Job};
use crate::AvxVnni;

pub(super) fn linear<F: Finish>(_: AvxVnni, job: Job<'_>, finish: F, out: &mut [F::Out]) {
    // SAFETY: the token proves that these instructions exist.
    unsafe { blocks(job, finish, out) }
}

#[target_feature(enable = "avx2,avxvnni")]
fn blocks<F: Finish>(job: Job<'_>, finish: F, out: &mut [F::Out]) {
    for (tiles, tokens) in job.blocks(TOKENS_MAX) {
        match tokens.len() {
            1 => panel::<F, 1, 4>(job, finish, out, tiles, tokens.start),
            2 => panel::<F, 2, 2>(job, finish, out, tiles, tokens.start),
            3 => panel::<F, 3, 2>(job, finish, out, tiles, tokens.start),
            4 => panel::<F, 4, 1>(job, finish, out, tiles, tokens.start),
            _ => panel::<F, 5, 1>(job, finish, out, tiles, tokens.start),
        }
    }
}

/// Row tiles `tiles` against activation rows `start .. start + N`.
#[target_feature(enable = "avx2,avxvnni")]
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

/// Sums of `code * q` for one row tile and `N` activation rows; halves are rows 0 to 7 and 8 to 15. Fields take turns at
/// `SPLIT` sums, since few rows make few chains of dependent instructions. With 4 of them codes are not shifted down, as
/// in the 512-bit kernel.
#[target_feature(enable = "avx2,avxvnni")]
#[inline]
fn dot<const N: usize, const SPLIT: usize>(w: &[Tile], x: [&[[i8; 16]]; N]) -> [[__m256i; 2]; N] {
    let x: [_; N] = std::array::from_fn(|t| &x[t][..w.len()]);
    let mut acc = [[[_mm256_setzero_si256(); SPLIT]; 2]; N];
    for (i, tile) in w.iter().enumerate() {
        let mut fields = load(tile);
        prefetch(tile);
        for s in 0..4 {
            let mask = _mm256_set1_epi8(if SPLIT == 4 { 3 << (2 * s) } else { 3 });
            let codes = [_mm256_and_si256(fields[0], mask), _mm256_and_si256(fields[1], mask)];
            if SPLIT < 4 {
                fields = [_mm256_srli_epi32::<2>(fields[0]), _mm256_srli_epi32::<2>(fields[1])];
            }
            for t in 0..N {
                let q = _mm256_set1_epi32(word(&x[t][i], s));
                for half in 0..2 {
                    let acc = &mut acc[t][half][s % SPLIT];
                    *acc = _mm256_dpbusd_avx_epi32(*acc, codes[half], q);
                }
            }
        }
    }
    let mut sums = [[_mm256_setzero_si256(); 2]; N];
    for t in 0..N {
        for half in 0..2 {
            sums[t][half] = merge(acc[t][half]);
        }
    }
    sums
}

#[target_feature(enable = "avx2")]
#[inline]
fn merge<const SPLIT: usize>(acc: [__m256i; SPLIT]) -> __m256i {
    match SPLIT {
        1 => return acc[0],
        2 => return _mm256_add_epi32(acc[0], acc[1]),
        _ => {}
    }
    let low = _mm256_add_epi32(acc[0], _mm256_srai_epi32::<2>(acc[1]));
    let high = _mm256_add_epi32(_mm256_srai_epi32::<4>(acc[2]), _mm256_srai_epi32::<6>(acc[3]));
    _mm256_add_epi32(low, high)
}

#[target_feature(enable = "avx2")]
#[inline]
fn load(tile: &Tile) -> [__m256i; 2] {
    let (low, high) = (tile.as_ptr(), tile[32..].as_ptr());
    // SAFETY: the first half of a tile is 32 readable bytes; the load has no alignment requirement.
    let low = unsafe { _mm256_loadu_si256(low.cast()) };
    // SAFETY: so is the second half.
    let high = unsafe { _mm256_loadu_si256(high.cast()) };
    [low, high]
}

/// Row tiles follow one another in memory: what lies ahead is the next row tile at the end of this one.
#[inline(always)]
fn prefetch(tile: &Tile) {
    // SAFETY: a prefetch reads nothing that a program can see and never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(tile.as_ptr().wrapping_add(PREFETCH_BYTES).cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn lanes(v: [__m256i; 2]) -> [i32; TILE_ROWS] {
    let mut lanes = [0_i32; TILE_ROWS];
    for (lanes, v) in lanes.as_chunks_mut::<8>().0.iter_mut().zip(v) {
        // SAFETY: the part has 32 writable bytes; the store has no alignment requirement.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), v) }
    }
    lanes
}

/// 5 rows x 2 halves of sums leave 6 registers for fields, codes, mask and word.
const TOKENS_MAX: usize = 5;
const PREFETCH_BYTES: usize = 2048;
