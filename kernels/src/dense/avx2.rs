//! Sixteen lanes as two AVX2 registers.
#![expect(unsafe_code, reason = "instructions of AVX2, and their loads and stores")]

use std::arch::x86_64::{
    __m256, _mm_cvtph_ps, _mm_cvtsi32_si128, _mm_cvtss_f32, _mm_loadl_epi64, _mm_loadu_si128, _mm256_castsi256_ps,
    _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_mul_ps, _mm256_set1_ps, _mm256_slli_epi32, _mm256_storeu_ps,
};

use super::lanes::{Kernel, LANES, Lanes};
use crate::Avx2;
use crate::ahead::ask_far;

pub(super) fn run<K: Kernel>(proof: Avx2, kernel: K) {
    // SAFETY: the token proves that these instructions exist.
    unsafe { body(proof, kernel) }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
fn body<K: Kernel>(proof: Avx2, kernel: K) {
    kernel.run(proof);
}

impl Lanes for Avx2 {
    type V = [__m256; 2];
    const TILE_TOKENS: usize = 2;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: self proves AVX.
        [unsafe { _mm256_set1_ps(x) }; 2]
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::V {
        let mut v = self.splat(0.0);
        for (v, x) in v.iter_mut().zip(x.as_chunks::<8>().0) {
            // SAFETY: 8 readable floats; self proves AVX.
            *v = unsafe { _mm256_loadu_ps(x.as_ptr()) };
        }
        v
    }

    #[inline(always)]
    fn store(self, v: Self::V, out: &mut [f32; LANES]) {
        for (v, out) in v.into_iter().zip(out.as_chunks_mut::<8>().0) {
            // SAFETY: 8 writable floats; self proves AVX.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), v) }
        }
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        let mut v = a;
        for (v, b) in v.iter_mut().zip(b) {
            // SAFETY: self proves AVX.
            *v = unsafe { _mm256_mul_ps(*v, b) };
        }
        v
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        let mut v = c;
        for (v, (a, b)) in v.iter_mut().zip(a.into_iter().zip(b)) {
            // SAFETY: self proves FMA.
            *v = unsafe { _mm256_fmadd_ps(a, b, *v) };
        }
        v
    }

    #[inline(always)]
    fn widen_f32(self, x: &[u8; 64]) -> Self::V {
        let mut v = self.splat(0.0);
        for (v, x) in v.iter_mut().zip(x.as_chunks::<32>().0) {
            // SAFETY: 32 readable bytes, no alignment needed; self proves AVX.
            *v = unsafe { _mm256_loadu_ps(x.as_ptr().cast()) };
        }
        v
    }

    #[inline(always)]
    fn widen_f16(self, x: &[u8; 32]) -> Self::V {
        let mut v = self.splat(0.0);
        for (v, x) in v.iter_mut().zip(x.as_chunks::<16>().0) {
            // SAFETY: 16 readable bytes, no alignment needed; SSE2 is part of x86-64.
            let half = unsafe { _mm_loadu_si128(x.as_ptr().cast()) };
            // SAFETY: self proves F16C.
            *v = unsafe { _mm256_cvtph_ps(half) };
        }
        v
    }

    #[inline(always)]
    fn widen_bf16(self, x: &[u8; 32]) -> Self::V {
        let mut v = self.splat(0.0);
        for (v, x) in v.iter_mut().zip(x.as_chunks::<16>().0) {
            // SAFETY: 16 readable bytes, no alignment needed; SSE2 is part of x86-64.
            let half = unsafe { _mm_loadu_si128(x.as_ptr().cast()) };
            // SAFETY: self proves AVX2.
            let wide = unsafe { _mm256_cvtepu16_epi32(half) };
            // SAFETY: self proves AVX2.
            let bits = unsafe { _mm256_slli_epi32::<16>(wide) };
            // SAFETY: self proves AVX.
            *v = unsafe { _mm256_castsi256_ps(bits) };
        }
        v
    }

    #[inline(always)]
    fn widen_i8(self, x: &[i8; LANES]) -> Self::V {
        let mut v = self.splat(0.0);
        for (v, x) in v.iter_mut().zip(x.as_chunks::<8>().0) {
            // SAFETY: 8 readable bytes, no alignment needed; SSE2 is part of x86-64.
            let bytes = unsafe { _mm_loadl_epi64(x.as_ptr().cast()) };
            // SAFETY: self proves AVX2.
            let wide = unsafe { _mm256_cvtepi8_epi32(bytes) };
            // SAFETY: self proves AVX.
            *v = unsafe { _mm256_cvtepi32_ps(wide) };
        }
        v
    }

    #[inline(always)]
    fn half(self, bits: u16) -> f32 {
        // SAFETY: SSE2 is part of x86-64.
        let bits = unsafe { _mm_cvtsi32_si128(i32::from(bits)) };
        // SAFETY: self proves F16C.
        let wide = unsafe { _mm_cvtph_ps(bits) };
        // SAFETY: SSE is part of x86-64.
        unsafe { _mm_cvtss_f32(wide) }
    }

    #[inline(always)]
    fn outline<K: Kernel>(self, kernel: K) {
        run(self, kernel);
    }

    #[inline(always)]
    fn prefetch(self, bytes: &[u8], ahead: usize) {
        ask_far(bytes.as_ptr().wrapping_add(ahead));
    }
}
