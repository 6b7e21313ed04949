//! Sixteen lanes as one AVX-512 register.
#![expect(unsafe_code, reason = "instructions of AVX-512, and their loads and stores")]

use std::arch::x86_64::{
    __m512, _mm_cvtph_ps, _mm_cvtsi32_si128, _mm_cvtss_f32, _mm_loadu_si128, _mm256_loadu_si256, _mm512_castsi512_ps,
    _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_mul_ps, _mm512_set1_ps, _mm512_slli_epi32, _mm512_storeu_ps,
};

use super::lanes::{Kernel, LANES, Lanes};
use crate::Avx512Bw;
use crate::ahead::ask_far;

pub(super) fn run<K: Kernel>(proof: Avx512Bw, kernel: K) {
    // SAFETY: the token proves that these instructions exist.
    unsafe { body(proof, kernel) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
#[inline(never)]
fn body<K: Kernel>(proof: Avx512Bw, kernel: K) {
    kernel.run(proof);
}

impl Lanes for Avx512Bw {
    type V = __m512;
    const TILE_TOKENS: usize = 6;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: self proves AVX-512 F.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::V {
        // SAFETY: 16 readable floats; self proves AVX-512 F.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: Self::V, out: &mut [f32; LANES]) {
        // SAFETY: 16 writable floats; self proves AVX-512 F.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: self proves AVX-512 F.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: self proves AVX-512 F.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn widen_f32(self, x: &[u8; 64]) -> Self::V {
        // SAFETY: 64 readable bytes, no alignment needed; self proves AVX-512 F.
        unsafe { _mm512_loadu_ps(x.as_ptr().cast()) }
    }

    #[inline(always)]
    fn widen_f16(self, x: &[u8; 32]) -> Self::V {
        // SAFETY: 32 readable bytes, no alignment needed; self proves AVX.
        let half = unsafe { _mm256_loadu_si256(x.as_ptr().cast()) };
        // SAFETY: self proves AVX-512 F.
        unsafe { _mm512_cvtph_ps(half) }
    }

    #[inline(always)]
    fn widen_bf16(self, x: &[u8; 32]) -> Self::V {
        // SAFETY: 32 readable bytes, no alignment needed; self proves AVX.
        let half = unsafe { _mm256_loadu_si256(x.as_ptr().cast()) };
        // SAFETY: self proves AVX-512 F.
        let wide = unsafe { _mm512_cvtepu16_epi32(half) };
        // SAFETY: self proves AVX-512 F.
        let bits = unsafe { _mm512_slli_epi32::<16>(wide) };
        // SAFETY: self proves AVX-512 F.
        unsafe { _mm512_castsi512_ps(bits) }
    }

    /// A byte shuffle from a broadcast in place of the sign extension, and an exponent pattern with a subtraction in place
    /// of the conversion, were no faster (Q8_0 14 and 13 GB/s against 14.7, Q6_K 10.5 and 9 against 11).
    #[inline(always)]
    fn widen_i8(self, x: &[i8; LANES]) -> Self::V {
        // SAFETY: 16 readable bytes, no alignment needed; SSE2 is part of x86-64.
        let bytes = unsafe { _mm_loadu_si128(x.as_ptr().cast()) };
        // SAFETY: self proves AVX-512 F.
        let wide = unsafe { _mm512_cvtepi8_epi32(bytes) };
        // SAFETY: self proves AVX-512 F.
        unsafe { _mm512_cvtepi32_ps(wide) }
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
