//! AVX-512 VNNI: what its kernels share. One `vpdpbusd` takes 16 rows x 4 columns of one activation row.
#![expect(unsafe_code, reason = "loads, stores and prefetches")]

use std::arch::x86_64::{
    __m512i, _mm_prefetch, _mm512_add_epi32, _mm512_loadu_si512, _mm512_srai_epi32, _mm512_storeu_si512,
};

use super::layout::{TILE_ROWS, Tile};

/// Merges the sums of fields that were not shifted down: field `s` of `SPLIT` counts `4^s`-fold, exactly (`COLS_MAX` keeps
/// it inside 32 bits).
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

/// Asks for the line `ahead` bytes behind the start of `tile`.
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
