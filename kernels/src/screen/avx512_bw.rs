//! AVX-512 without VNNI: codes and activations as 16-bit words, whole tiles.
#![expect(unsafe_code, reason = "loads, stores and calls of functions with target features")]

use std::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_and_si512, _mm512_loadu_si512, _mm512_madd_epi16, _mm512_set1_epi16,
    _mm512_set1_epi32, _mm512_setzero_si512, _mm512_slli_epi16, _mm512_srai_epi16, _mm512_srli_epi16,
    _mm512_storeu_si512,
};

use super::bounds::{Job, Part, Planes, Sums, few_products, fine_products, word};
use super::layout::Tile;
use crate::Avx512Bw;

pub(super) fn run(_: Avx512Bw, job: Job<'_>, sums: &mut [Sums]) {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn body(job: Job<'_>, sums: &mut [Sums]) {
        job.run(sums, |w, planes, sums| products(w, planes, sums), few_products, fine_products);
    }
    // SAFETY: the token proves that these instructions exist.
    unsafe { body(job, sums) }
}

/// All planes in parts of at most 6.
#[target_feature(enable = "avx512f,avx512bw")]
fn products(w: [&[Tile]; 2], planes: Planes<'_>, sums: &mut [Sums]) {
    for part in planes.parts(6) {
        match part.len {
            1 => dot::<1>(w, part, planes.len(), sums),
            2 => dot::<2>(w, part, planes.len(), sums),
            3 => dot::<3>(w, part, planes.len(), sums),
            4 => dot::<4>(w, part, planes.len(), sums),
            5 => dot::<5>(w, part, planes.len(), sums),
            _ => dot::<6>(w, part, planes.len(), sums),
        }
    }
}

/// Sums of both tile rows with the planes of `part`.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn dot<const N: usize>(w: [&[Tile]; 2], part: Part<'_>, planes: usize, sums: &mut [Sums]) {
    let even = _mm512_set1_epi16(0xff);
    let mut acc = [[_mm512_setzero_si512(); N]; 2];
    for (i, (first, second)) in w[0].iter().zip(w[1]).enumerate() {
        let x: &[_; N] = part.dwords[i * part.stride..].first_chunk().expect("a dword of each plane");
        let codes = [load(first), load(second)];
        let evens = [_mm512_and_si512(codes[0], even), _mm512_and_si512(codes[1], even)];
        let odds = [_mm512_srli_epi16::<8>(codes[0]), _mm512_srli_epi16::<8>(codes[1])];
        for t in 0..N {
            let q = _mm512_set1_epi32(word(x[t]));
            let (q_even, q_odd) = (_mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(q)), _mm512_srai_epi16::<8>(q));
            for r in 0..2 {
                let (even, odd) = (_mm512_madd_epi16(evens[r], q_even), _mm512_madd_epi16(odds[r], q_odd));
                acc[r][t] = _mm512_add_epi32(acc[r][t], _mm512_add_epi32(even, odd));
            }
        }
    }
    for (r, acc) in acc.into_iter().enumerate() {
        for (t, acc) in acc.into_iter().enumerate() {
            store(acc, &mut sums[r * planes + part.start + t]);
        }
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load(tile: &Tile) -> __m512i {
    // SAFETY: a tile is 64 readable bytes; the load has no alignment requirement.
    unsafe { _mm512_loadu_si512(tile.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(v: __m512i, sums: &mut Sums) {
    // SAFETY: 64 writable bytes; the store has no alignment requirement.
    unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), v) }
}
