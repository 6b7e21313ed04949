//! AVX2: codes and activations as 16-bit words, since `vpmaddubsw` could not hold two products of whole bytes.
#![expect(unsafe_code, reason = "loads, stores and calls of functions with target features")]

use std::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_and_si256, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_set1_epi16,
    _mm256_set1_epi32, _mm256_setzero_si256, _mm256_slli_epi16, _mm256_srai_epi16, _mm256_srli_epi16,
    _mm256_storeu_si256,
};

use super::bounds::{Job, Part, Planes, Sums, few_products, fine_products, word};
use super::layout::Tile;
use crate::Avx2;

pub(super) fn run(_: Avx2, job: Job<'_>, sums: &mut [Sums]) {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn body(job: Job<'_>, sums: &mut [Sums]) {
        job.run(sums, |w, planes, sums| products(w, planes, sums), few_products, fine_products);
    }
    // SAFETY: the token proves that these instructions exist.
    unsafe { body(job, sums) }
}

/// All planes in parts of at most 3, which is what registers hold.
#[target_feature(enable = "avx2")]
fn products(w: [&[Tile]; 2], planes: Planes<'_>, sums: &mut [Sums]) {
    for (tiles, sums) in w.into_iter().zip(sums.chunks_exact_mut(planes.len())) {
        for part in planes.parts(3) {
            match part.len {
                1 => dot::<1>(tiles, part, sums),
                2 => dot::<2>(tiles, part, sums),
                _ => dot::<3>(tiles, part, sums),
            }
        }
    }
}

/// Sums of one tile row with the planes of `part`; halves are rows 0 to 7 and 8 to 15.
#[target_feature(enable = "avx2")]
#[inline]
fn dot<const N: usize>(tiles: &[Tile], part: Part<'_>, sums: &mut [Sums]) {
    let even = _mm256_set1_epi16(0xff);
    let mut acc = [[_mm256_setzero_si256(); 2]; N];
    for (i, tile) in tiles.iter().enumerate() {
        let x: &[_; N] = part.dwords[i * part.stride..].first_chunk().expect("a dword of each plane");
        let [low, high] = tile.as_chunks::<32>().0 else { unreachable!("a tile is two halves") };
        let codes = [load(low), load(high)];
        let evens = [_mm256_and_si256(codes[0], even), _mm256_and_si256(codes[1], even)];
        let odds = [_mm256_srli_epi16::<8>(codes[0]), _mm256_srli_epi16::<8>(codes[1])];
        for t in 0..N {
            let q = _mm256_set1_epi32(word(x[t]));
            let (q_even, q_odd) = (_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(q)), _mm256_srai_epi16::<8>(q));
            for half in 0..2 {
                let even = _mm256_madd_epi16(evens[half], q_even);
                let odd = _mm256_madd_epi16(odds[half], q_odd);
                acc[t][half] = _mm256_add_epi32(acc[t][half], _mm256_add_epi32(even, odd));
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
