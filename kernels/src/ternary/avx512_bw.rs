//! AVX-512 without VNNI: `vpmaddubsw` on whole tiles, 16-bit sums for as long as they are exact.
#![expect(unsafe_code, reason = "loads, prefetches and calls of functions with target features")]

use std::arch::x86_64::{
    __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_add_epi16, _mm512_add_epi32, _mm512_and_si512, _mm512_loadu_si512,
    _mm512_madd_epi16, _mm512_maddubs_epi16, _mm512_set1_epi8, _mm512_set1_epi16, _mm512_set1_epi32,
    _mm512_setzero_si512, _mm512_srli_epi16, _mm512_storeu_si512,
};
use std::ops::Range;

use super::layout::{TILE_ROWS, TILES_EXACT_IN_I16, Tile, word};
use super::linear::{Finish, Job};
use super::quantize::{Quantized, quantize_lanes};
use crate::Avx512Bw;

pub(super) fn quantize(_: Avx512Bw, x: &[f32], q: &mut [i8]) -> Quantized {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn body(x: &[f32], q: &mut [i8]) -> Quantized {
        quantize_lanes(x, q)
    }
    // SAFETY: the token proves that these instructions exist.
    unsafe { body(x, q) }
}

pub(super) fn linear<F: Finish>(_: Avx512Bw, job: Job<'_>, finish: F, out: &mut [F::Out]) {
    // SAFETY: the token proves that these instructions exist.
    unsafe { blocks(job, finish, out) }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn blocks<F: Finish>(job: Job<'_>, finish: F, out: &mut [F::Out]) {
    for (tiles, tokens) in job.blocks(TOKENS_MAX) {
        macro_rules! by_len {
            ($($n:literal => $rows:literal),*) => {
                match tokens.len() {
                    $($n => panel::<F, $rows, $n>(job, finish, out, tiles, tokens.start),)*
                    _ => unreachable!("blocks have at most TOKENS_MAX activation rows"),
                }
            };
        }
        by_len!(1 => 1, 2 => 2, 3 => 2, 4 => 2, 5 => 2, 6 => 2);
    }
}

/// Row tiles `tiles` against activation rows `start .. start + N`, `R` row tiles at a time.
#[target_feature(enable = "avx512f,avx512bw")]
fn panel<F: Finish, const R: usize, const N: usize>(
    job: Job<'_>,
    finish: F,
    out: &mut [F::Out],
    tiles: Range<usize>,
    start: usize,
) {
    let x: [_; N] = std::array::from_fn(|t| job.x_row(start + t));
    let mut index = tiles.start;
    while index + R <= tiles.end {
        let acc = dot::<R, N>(std::array::from_fn(|r| job.row_tile(index + r)), x);
        for (r, acc) in acc.into_iter().enumerate() {
            for (t, acc) in acc.into_iter().enumerate() {
                job.store(finish, out, index + r, start + t, lanes(acc));
            }
        }
        index += R;
    }
    while index < tiles.end {
        let [acc] = dot::<1, N>([job.row_tile(index)], x);
        for (t, acc) in acc.into_iter().enumerate() {
            job.store(finish, out, index, start + t, lanes(acc));
        }
        index += 1;
    }
}

/// Sums of `code * q` for `R` row tiles and `N` activation rows.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn dot<const R: usize, const N: usize>(w: [&[Tile]; R], x: [&[[i8; 16]]; N]) -> [[__m512i; N]; R] {
    let mask = _mm512_set1_epi8(3);
    let ones = _mm512_set1_epi16(1);
    let tiles = w[0].len();
    let mut acc = [[_mm512_setzero_si512(); N]; R];
    for first in (0..tiles).step_by(TILES_EXACT_IN_I16) {
        let run = TILES_EXACT_IN_I16.min(tiles - first);
        let w: [_; R] = std::array::from_fn(|r| &w[r][first..first + run]);
        let x: [_; N] = std::array::from_fn(|t| &x[t][first..first + run]);
        let mut short = [[_mm512_setzero_si512(); N]; R];
        for i in 0..run {
            let mut fields = [_mm512_setzero_si512(); R];
            for r in 0..R {
                fields[r] = load(&w[r][i]);
                prefetch(&w[r][i]);
            }
            for s in 0..4 {
                let mut codes = [_mm512_setzero_si512(); R];
                for r in 0..R {
                    codes[r] = _mm512_and_si512(fields[r], mask);
                    fields[r] = _mm512_srli_epi16::<2>(fields[r]);
                }
                for t in 0..N {
                    let q = _mm512_set1_epi32(word(&x[t][i], s));
                    for r in 0..R {
                        short[r][t] = _mm512_add_epi16(short[r][t], _mm512_maddubs_epi16(codes[r], q));
                    }
                }
            }
        }
        for r in 0..R {
            for t in 0..N {
                acc[r][t] = _mm512_add_epi32(acc[r][t], _mm512_madd_epi16(short[r][t], ones));
            }
        }
    }
    acc
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load(tile: &Tile) -> __m512i {
    // SAFETY: a tile is 64 readable bytes; the load has no alignment requirement.
    unsafe { _mm512_loadu_si512(tile.as_ptr().cast()) }
}

/// Row tiles follow one another in memory: what lies ahead is the next row tile at the end of this one.
#[inline(always)]
fn prefetch(tile: &Tile) {
    // SAFETY: a prefetch reads nothing that a program can see and never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(tile.as_ptr().wrapping_add(PREFETCH_BYTES).cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn lanes(v: __m512i) -> [i32; TILE_ROWS] {
    let mut lanes = [0; TILE_ROWS];
    // SAFETY: the array has 64 writable bytes; the store has no alignment requirement.
    unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), v) }
    lanes
}

/// 2 row tiles x 6 rows of 16-bit sums and as many of 32 bits leave 8 registers for fields, codes and words.
const TOKENS_MAX: usize = 6;
const PREFETCH_BYTES: usize = 2048;
