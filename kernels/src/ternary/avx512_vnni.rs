//! AVX-512 VNNI: one `vpdpbusd` for 16 rows x 4 columns of one activation row.
#![expect(unsafe_code, reason = "loads, prefetches and calls of functions with target features")]

use std::arch::x86_64::{
    __m512i, _MM_HINT_T1, _mm_prefetch, _mm512_add_epi32, _mm512_and_si512, _mm512_dpbusd_epi32, _mm512_loadu_si512,
    _mm512_set1_epi8, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_srai_epi32, _mm512_srli_epi32,
    _mm512_storeu_si512,
};

use super::layout::{TILE_ROWS, Tile, word};
use super::linear::{Finish, Job};
use crate::Avx512Vnni;

pub(super) fn linear<F: Finish>(proof: Avx512Vnni, job: Job<'_>, finish: F, out: &mut [F::Out]) {
    if job.n() <= super::gemv::avx512_vnni::FEW_MAX {
        return super::gemv::avx512_vnni::few(proof, job, finish, out);
    }
    // SAFETY: the token proves that these instructions exist.
    unsafe { blocks(job, finish, out) }
}

/// Blocks of rows that stay in the second-level cache while all activation rows pass by, in near-equal groups of at
/// most [`TOKENS_MAX`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn blocks<F: Finish>(job: Job<'_>, finish: F, out: &mut [F::Out]) {
    let block = (ROW_BLOCK_BYTES / job.row_tile_bytes()).max(1).next_multiple_of(2);
    for first in (0..job.row_tiles()).step_by(block) {
        let end = (first + block).min(job.row_tiles());
        let groups = job.n().div_ceil(TOKENS_MAX);
        for group in 0..groups {
            let start = group * job.n() / groups;
            let len = (group + 1) * job.n() / groups - start;
            macro_rules! by_len {
                ($($n:literal => $rows:literal x $split:literal),*) => {
                    match len { $($n => panel::<F, $rows, $n, $split>(job, finish, out, first..end, start),)* _ => unreachable!() }
                };
            }
            by_len!(4 => 2 x 1, 5 => 2 x 1, 6 => 2 x 1, 7 => 2 x 1, 8 => 2 x 1,
                9 => 2 x 1, 10 => 2 x 1, 11 => 2 x 1, 12 => 2 x 1);
        }
    }
}

/// Row tiles `range` against activation rows `start .. start + N`, `R` row tiles at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn panel<F: Finish, const R: usize, const N: usize, const SPLIT: usize>(
    job: Job<'_>,
    finish: F,
    out: &mut [F::Out],
    range: std::ops::Range<usize>,
    start: usize,
) {
    // Built by closures on purpose: filled by loops, the arrays cost address arithmetic in the hot loop (n = 512: 64 %
    // of the int8 peak against 91 %).
    let x: [_; N] = std::array::from_fn(|t| job.x_row(start + t));
    let mut index = range.start;
    while index + R <= range.end {
        let acc = dot::<R, N, SPLIT>(std::array::from_fn(|r| job.row_tile(index + r)), x);
        for (r, acc) in acc.into_iter().enumerate() {
            for (t, acc) in acc.into_iter().enumerate() {
                job.store(finish, out, index + r, start + t, lanes(acc));
            }
        }
        index += R;
    }
    while index < range.end {
        let [acc] = dot::<1, N, SPLIT>([job.row_tile(index)], x);
        for (t, acc) in acc.into_iter().enumerate() {
            job.store(finish, out, index, start + t, lanes(acc));
        }
        index += 1;
    }
}

/// Sums of `code * q` for `R` row tiles and `N` activation rows.
///
/// With `SPLIT` 4 each field `s` has its own sum and is not shifted down: its codes count `4^s`-fold and the sum is
/// shifted at the end, exactly (`COLS_MAX` keeps it inside 32 bits). That saves the shifts where registers allow.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn dot<const R: usize, const N: usize, const SPLIT: usize>(w: [&[Tile]; R], x: [&[[i8; 16]]; N]) -> [[__m512i; N]; R] {
    let tiles = w[0].len();
    let w: [_; R] = std::array::from_fn(|r| &w[r][..tiles]);
    let x: [_; N] = std::array::from_fn(|t| &x[t][..tiles]);
    let mut acc = [[[_mm512_setzero_si512(); SPLIT]; N]; R];
    for i in 0..tiles {
        let mut fields = [_mm512_setzero_si512(); R];
        for r in 0..R {
            fields[r] = load(&w[r][i]);
            prefetch::<_MM_HINT_T1>(&w[0][0], (tiles * R + i * R + r) * size_of::<Tile>());
        }
        for s in 0..4 {
            let mask = _mm512_set1_epi8(if SPLIT == 4 { 3 << (2 * s) } else { 3 });
            let mut codes = [_mm512_setzero_si512(); R];
            for r in 0..R {
                codes[r] = _mm512_and_si512(fields[r], mask);
                if SPLIT == 1 {
                    fields[r] = _mm512_srli_epi32::<2>(fields[r]);
                }
            }
            for t in 0..N {
                let q = _mm512_set1_epi32(word(&x[t][i], s));
                for r in 0..R {
                    let acc = &mut acc[r][t][s % SPLIT];
                    *acc = _mm512_dpbusd_epi32(*acc, codes[r], q);
                }
            }
        }
    }
    let mut sums = [[_mm512_setzero_si512(); N]; R];
    for r in 0..R {
        for t in 0..N {
            sums[r][t] = merge(acc[r][t]);
        }
    }
    sums
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn merge<const SPLIT: usize>(acc: [__m512i; SPLIT]) -> __m512i {
    if SPLIT == 1 {
        return acc[0];
    }
    if SPLIT == 2 {
        return _mm512_add_epi32(acc[0], _mm512_srai_epi32::<2>(acc[1]));
    }
    let low = _mm512_add_epi32(acc[0], _mm512_srai_epi32::<2>(acc[1]));
    let high = _mm512_add_epi32(_mm512_srai_epi32::<4>(acc[2]), _mm512_srai_epi32::<6>(acc[3]));
    _mm512_add_epi32(low, high)
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn load(tile: &Tile) -> __m512i {
    // SAFETY: a tile is 64 readable bytes; the load has no alignment requirement.
    unsafe { _mm512_loadu_si512(tile.as_ptr().cast()) }
}

/// Row tiles follow one another in memory: what lies ahead is the next row tile at the end of this one. Several at once
/// ask for their successors in the order of addresses, since each is too short a stream to run ahead of itself
/// (2560 columns, 2 rows: 14 GB/s of weights with a prefetch 2 KiB ahead in each).
#[inline(always)]
pub(super) fn prefetch<const HINT: i32>(tile: &Tile, ahead: usize) {
    // SAFETY: a prefetch reads nothing that a program can see and never faults.
    unsafe { _mm_prefetch::<HINT>(tile.as_ptr().wrapping_add(ahead).cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn lanes(v: __m512i) -> [i32; TILE_ROWS] {
    let mut lanes = [0; TILE_ROWS];
    // SAFETY: the array has 64 writable bytes; the store has no alignment requirement.
    unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), v) }
    lanes
}

/// Activation rows of one register tile: 2 row tiles x 12 sums leave 8 registers for codes and words.
const TOKENS_MAX: usize = 12;
/// Half of a second-level cache of 512 KiB.
const ROW_BLOCK_BYTES: usize = 256 << 10;
