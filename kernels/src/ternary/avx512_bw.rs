//! AVX-512 without VNNI: `vpmaddubsw` on whole tiles, 16-bit sums for as long as they are exact.
#![expect(unsafe_code, reason = "loads, prefetches and calls of functions with target features")]

use std::arch::x86_64::{
    __m128i, __m512, __m512i, _CMP_ORD_Q, _MM_HINT_T0, _mm_mask_storeu_epi8, _mm_prefetch, _mm_storeu_si128,
    _mm512_add_epi16, _mm512_add_epi32, _mm512_and_si512, _mm512_cmp_ps_mask, _mm512_cvtsepi32_epi8, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_madd_epi16, _mm512_maddubs_epi16, _mm512_maskz_cvtps_epi32, _mm512_maskz_loadu_ps,
    _mm512_mul_ps, _mm512_packs_epi16, _mm512_packs_epi32, _mm512_permutexvar_epi32, _mm512_reduce_add_epi32,
    _mm512_set1_epi8, _mm512_set1_epi16, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setr_epi32, _mm512_setzero_si512,
    _mm512_srli_epi16, _mm512_storeu_si512,
};
use std::ops::Range;

use super::layout::{TILE_ROWS, TILES_EXACT_IN_I16, Tile, word};
use super::linear::{Finish, Job};
use crate::Avx512Bw;

/// The instruction that converts rounds half to even; what it makes of a NaN is masked away, and the one that narrows
/// clamps.
pub(super) fn round(_: Avx512Bw, x: &[f32], scale: f32, q: &mut [i8]) -> i32 {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn body(x: &[f32], scale: f32, q: &mut [i8]) -> i32 {
        let mut sums = [_mm512_setzero_si512(); FOUR];
        let (fours, x) = x.as_chunks::<{ FOUR * TILE_ROWS }>();
        let (byte_fours, q) = q.as_chunks_mut::<{ FOUR * TILE_ROWS }>();
        // Dwords of quarter i of four registers, to be those of one after another.
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        for (x, q) in fours.iter().zip(byte_fours) {
            let mut rounded = [_mm512_setzero_si512(); FOUR];
            for i in 0..FOUR {
                rounded[i] = nearest(load_floats(&x[i * TILE_ROWS..][..TILE_ROWS]), scale);
                sums[i] = _mm512_add_epi32(sums[i], rounded[i]);
            }
            let [a, b, c, d] = rounded;
            let bytes = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
            let bytes = _mm512_permutexvar_epi32(order, bytes);
            // SAFETY: 64 writable bytes; the store has no alignment requirement.
            unsafe { _mm512_storeu_si512(q.as_mut_ptr().cast(), bytes) };
        }
        for (x, q) in x.chunks(TILE_ROWS).zip(q.chunks_mut(TILE_ROWS)) {
            let rounded = nearest(load_floats(x), scale);
            store_bytes(_mm512_cvtsepi32_epi8(rounded), q);
            sums[0] = _mm512_add_epi32(sums[0], rounded);
        }
        _mm512_reduce_add_epi32(_mm512_add_epi32(
            _mm512_add_epi32(sums[0], sums[1]),
            _mm512_add_epi32(sums[2], sums[3]),
        ))
    }
    // SAFETY: the token proves that these instructions exist.
    unsafe { body(x, scale, q) }
}

/// Registers whose numbers make one of bytes.
const FOUR: usize = 4;

/// The nearest whole numbers of values times `scale`, 0 for a NaN.
#[target_feature(enable = "avx512f")]
#[inline]
fn nearest(x: __m512, scale: f32) -> __m512i {
    let values = _mm512_mul_ps(x, _mm512_set1_ps(scale));
    let numbers = _mm512_cmp_ps_mask::<_CMP_ORD_Q>(values, values);
    _mm512_maskz_cvtps_epi32(numbers, values)
}

/// At most 16 floats; the lanes past them are 0.
#[target_feature(enable = "avx512f")]
#[inline]
fn load_floats(x: &[f32]) -> __m512 {
    if let Some(x) = x.first_chunk::<16>() {
        // SAFETY: 64 readable bytes; the load has no alignment requirement.
        return unsafe { _mm512_loadu_ps(x.as_ptr()) };
    }
    // SAFETY: the mask leaves out what is past the slice.
    unsafe { _mm512_maskz_loadu_ps((1 << x.len()) - 1, x.as_ptr()) }
}

/// At most 16 bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline]
fn store_bytes(bytes: __m128i, q: &mut [i8]) {
    if let Some(q) = q.first_chunk_mut::<16>() {
        // SAFETY: 16 writable bytes; the store has no alignment requirement.
        return unsafe { _mm_storeu_si128(q.as_mut_ptr().cast(), bytes) };
    }
    // SAFETY: the mask leaves out what is past the slice.
    unsafe { _mm_mask_storeu_epi8(q.as_mut_ptr(), (1 << q.len()) - 1, bytes) }
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
