//! AVX-VNNI: one `vpdpbusd` for 8 rows x 4 columns of one plane.
#![expect(unsafe_code, reason = "loads, stores, prefetches and calls of functions with target features")]

use std::arch::x86_64::{
    __m256i, _MM_HINT_T0, _mm_prefetch, _mm256_dpbusd_avx_epi32, _mm256_loadu_si256, _mm256_set1_epi32,
    _mm256_setzero_si256, _mm256_storeu_si256,
};

use super::bounds::{Job, Part, Planes, Sums, few_products, fine_products, word};
use super::layout::Tile;
use crate::AvxVnni;

pub(super) fn run(_: AvxVnni, job: Job<'_>, sums: &mut [Sums]) {
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    fn body(job: Job<'_>, sums: &mut [Sums]) {
        job.run(sums, |w, planes, sums| products(w, planes, sums), few_products, fine_products);
    }
    // SAFETY: the token proves that these instructions exist.
    unsafe { body(job, sums) }
}

/// All planes in parts of at most 6.
#[target_feature(enable = "avx2,avxvnni")]
fn products(w: [&[Tile]; 2], planes: Planes<'_>, sums: &mut [Sums]) {
    for (tiles, sums) in w.into_iter().zip(sums.chunks_exact_mut(planes.len())) {
        for part in planes.parts(6) {
            match part.len {
                1 => dot::<1>(tiles, part, sums),
                2 => dot::<2>(tiles, part, sums),
                3 => dot::<3>(tiles, part, sums),
                4 => dot::<4>(tiles, part, sums),
                5 => dot::<5>(tiles, part, sums),
                _ => dot::<6>(tiles, part, sums),
            }
        }
    }
}

/// Sums of one tile row with the planes of `part`; halves are rows 0 to 7 and 8 to 15.
#[target_feature(enable = "avx2,avxvnni")]
#[inline]
fn dot<const N: usize>(tiles: &[Tile], part: Part<'_>, sums: &mut [Sums]) {
    let mut acc = [[_mm256_setzero_si256(); 2]; N];
    for (i, tile) in tiles.iter().enumerate() {
        let x: &[_; N] = part.dwords[i * part.stride..].first_chunk().expect("a dword of each plane");
        let [low, high] = tile.as_chunks::<32>().0 else { unreachable!("a tile is two halves") };
        let codes = [load(low), load(high)];
        _mm_prefetch::<_MM_HINT_T0>(tile.as_ptr().wrapping_add(PREFETCH_BYTES).cast());
        for t in 0..N {
            let q = _mm256_set1_epi32(word(x[t]));
            for half in 0..2 {
                acc[t][half] = _mm256_dpbusd_avx_epi32(acc[t][half], codes[half], q);
            }
        }
    }
    for (acc, sums) in acc.into_iter().zip(&mut sums[part.start..]) {
        for (acc, sums) in acc.into_iter().zip(sums.as_chunks_mut::<8>().0) {
            store(acc, sums);
        }
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn load(half: &[u8; 32]) -> __m256i {
    // SAFETY: 32 readable bytes; the load has no alignment requirement.
    unsafe { _mm256_loadu_si256(half.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn store(v: __m256i, sums: &mut [i32; 8]) {
    // SAFETY: 32 writable bytes; the store has no alignment requirement.
    unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), v) }
}

const PREFETCH_BYTES: usize = 2048;
