//! AVX2: `vpmaddubsw` on half tiles (8 rows), 16-bit sums for as long as they are exact.
#![expect(unsafe_code, reason = "loads and calls of functions with target features")]

use std::arch::x86_64::{
    __m256i, _MM_HINT_T0, _mm_prefetch, _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32,
    _mm256_setzero_si256, _mm256_srli_epi16, _mm256_storeu_si256,
};
use std::ops::Range;

use super::layout::{TILE_ROWS, TILES_EXACT_IN_I16, Tile, word};
use super::linear::{Finish, Job};
use super::quantize::round_lanes;
use crate::Avx2;

pub(super) fn round(_: Avx2, x: &[f32], scale: f32, q: &mut [i8]) -> i32 {
    #[target_feature(enable = "avx2,fma")]
    fn body(x: &[f32], scale: f32, q: &mut [i8]) -> i32 {
        round_lanes(x, scale, q)
    }
    // SAFETY: the token proves that these instructions exist.
    unsafe { body(x, scale, q) }
}

pub(super) fn linear<F: Finish>(_: Avx2, job: Job<'_>, finish: F, out: &mut [F::Out]) {
    // SAFETY: the token proves that these instructions exist.
    unsafe { blocks(job, finish, out) }
}

#[target_feature(enable = "avx2")]
fn blocks<F: Finish>(job: Job<'_>, finish: F, out: &mut [F::Out]) {
    for (tiles, tokens) in job.blocks(TOKENS_MAX) {
        match tokens.len() {
            1 => panel::<F, 1>(job, finish, out, tiles, tokens.start),
            2 => panel::<F, 2>(job, finish, out, tiles, tokens.start),
            3 => panel::<F, 3>(job, finish, out, tiles, tokens.start),
            _ => panel::<F, 4>(job, finish, out, tiles, tokens.start),
        }
    }
}

/// Row tiles `tiles` against activation rows `start .. start + N`.
#[target_feature(enable = "avx2")]
fn panel<F: Finish, const N: usize>(job: Job<'_>, finish: F, out: &mut [F::Out], tiles: Range<usize>, start: usize) {
    let x: [_; N] = std::array::from_fn(|t| job.x_row(start + t));
    for index in tiles {
        let acc = dot::<N>(job.row_tile(index), x);
        for (t, acc) in acc.into_iter().enumerate() {
            job.store(finish, out, index, start + t, lanes(acc));
        }
    }
}

/// Sums of `code * q` for one row tile and `N` activation rows; halves are rows 0 to 7 and 8 to 15.
#[target_feature(enable = "avx2")]
#[inline]
fn dot<const N: usize>(w: &[Tile], x: [&[[i8; 16]]; N]) -> [[__m256i; 2]; N] {
    let mask = _mm256_set1_epi8(3);
    let ones = _mm256_set1_epi16(1);
    let mut acc = [[_mm256_setzero_si256(); 2]; N];
    for first in (0..w.len()).step_by(TILES_EXACT_IN_I16) {
        let run = TILES_EXACT_IN_I16.min(w.len() - first);
        let w = &w[first..first + run];
        let x: [_; N] = std::array::from_fn(|t| &x[t][first..first + run]);
        let mut short = [[_mm256_setzero_si256(); 2]; N];
        for i in 0..run {
            let mut fields = load(&w[i]);
            prefetch(&w[i]);
            for s in 0..4 {
                let codes = [_mm256_and_si256(fields[0], mask), _mm256_and_si256(fields[1], mask)];
                fields = [_mm256_srli_epi16::<2>(fields[0]), _mm256_srli_epi16::<2>(fields[1])];
                for t in 0..N {
                    let q = _mm256_set1_epi32(word(&x[t][i], s));
                    for half in 0..2 {
                        short[t][half] = _mm256_add_epi16(short[t][half], _mm256_maddubs_epi16(codes[half], q));
                    }
                }
            }
        }
        for t in 0..N {
            for half in 0..2 {
                acc[t][half] = _mm256_add_epi32(acc[t][half], _mm256_madd_epi16(short[t][half], ones));
            }
        }
    }
    acc
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

/// 4 rows x 2 halves of 16-bit sums, 4 registers for fields and codes; the 32-bit sums live in memory.
const TOKENS_MAX: usize = 4;
const PREFETCH_BYTES: usize = 2048;
