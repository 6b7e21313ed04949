//! Sixteen lanes as two AVX2 registers.
#![expect(unsafe_code, reason = "instructions of AVX2, FMA and F16C, and their loads and stores")]

use std::cell::Cell;

use super::{Kernel, LANES, Simd};
use crate::Avx2;
use crate::ahead::ask_far;
use std::arch::x86_64::{
    __m256, __m256d, _CMP_GT_OQ, _MM_FROUND_TO_NEAREST_INT, _mm_add_ps, _mm_cvtss_f32, _mm_loadu_si128, _mm_max_ps,
    _mm_movehdup_ps, _mm_movehl_ps, _mm_storeu_si128, _mm256_add_epi32, _mm256_add_pd, _mm256_add_ps, _mm256_and_ps,
    _mm256_blendv_ps, _mm256_castps256_ps128, _mm256_castsi256_ps, _mm256_cmp_ps, _mm256_cvtph_ps, _mm256_cvtps_epi32,
    _mm256_cvtps_pd, _mm256_cvtps_ph, _mm256_div_ps, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps, _mm256_packs_epi32, _mm256_permute4x64_epi64, _mm256_set1_epi32,
    _mm256_set1_ps, _mm256_setzero_pd, _mm256_slli_epi32, _mm256_srai_epi32, _mm256_storeu_pd, _mm256_storeu_ps,
    _mm256_storeu_si256, _mm256_sub_epi32, _mm256_sub_ps,
};

macro_rules! lanewise {
    ($($name:ident($($arg:ident),+) = $instruction:ident;)+) => {$(
        #[inline(always)]
        fn $name(self, $($arg: Self::F),+) -> Self::F {
            // SAFETY: self proves that the instruction exists.
            let low = unsafe { $instruction($($arg[0]),+) };
            // SAFETY: as above.
            let high = unsafe { $instruction($($arg[1]),+) };
            [low, high]
        }
    )+};
}

impl Simd for Avx2 {
    type F = [__m256; 2];
    type D = [__m256d; 4];

    const TILE_ROWS: usize = 6;
    const TILE_WIDTH: usize = 1;

    lanewise! {
        add(a, b) = _mm256_add_ps;
        sub(a, b) = _mm256_sub_ps;
        mul(a, b) = _mm256_mul_ps;
        div(a, b) = _mm256_div_ps;
        fma(a, b, c) = _mm256_fmadd_ps;
        max(a, b) = _mm256_max_ps;
        min(a, b) = _mm256_min_ps;
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        // SAFETY: self proves AVX2.
        [unsafe { _mm256_set1_ps(x) }; 2]
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        // SAFETY: the first 8 of 16 readable floats; self proves AVX2.
        let low = unsafe { _mm256_loadu_ps(x[..8].as_ptr()) };
        // SAFETY: the last 8 of 16 readable floats; self proves AVX2.
        let high = unsafe { _mm256_loadu_ps(x[8..].as_ptr()) };
        [low, high]
    }

    #[inline(always)]
    fn store(self, v: Self::F, out: &mut [f32; LANES]) {
        // SAFETY: the first 8 of 16 writable floats; self proves AVX2.
        unsafe { _mm256_storeu_ps(out[..8].as_mut_ptr(), v[0]) };
        // SAFETY: the last 8 of 16 writable floats; self proves AVX2.
        unsafe { _mm256_storeu_ps(out[8..].as_mut_ptr(), v[1]) };
    }

    #[inline(always)]
    fn load_cells(self, x: &[Cell<f32>; LANES]) -> Self::F {
        self.load(&std::array::from_fn(|l| x[l].get()))
    }

    #[inline(always)]
    fn store_cells(self, v: Self::F, out: &[Cell<f32>; LANES]) {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        for (cell, v) in out.iter().zip(lanes) {
            cell.set(v);
        }
    }

    #[inline(always)]
    fn load_f16(self, x: &[u16; LANES]) -> Self::F {
        // SAFETY: the first 8 of 16 readable halves; self proves AVX2.
        let low = unsafe { _mm_loadu_si128(x[..8].as_ptr().cast()) };
        // SAFETY: the last 8 of 16 readable halves; self proves AVX2.
        let high = unsafe { _mm_loadu_si128(x[8..].as_ptr().cast()) };
        // SAFETY: self proves F16C.
        let low = unsafe { _mm256_cvtph_ps(low) };
        // SAFETY: self proves F16C.
        let high = unsafe { _mm256_cvtph_ps(high) };
        [low, high]
    }

    #[inline(always)]
    fn store_f16(self, v: Self::F, out: &mut [u16; LANES]) {
        // SAFETY: self proves F16C.
        let low = unsafe { _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[0]) };
        // SAFETY: self proves F16C.
        let high = unsafe { _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[1]) };
        // SAFETY: the first 8 of 16 writable halves; self proves AVX2.
        unsafe { _mm_storeu_si128(out[..8].as_mut_ptr().cast(), low) };
        // SAFETY: the last 8 of 16 writable halves; self proves AVX2.
        unsafe { _mm_storeu_si128(out[8..].as_mut_ptr().cast(), high) };
    }

    #[inline(always)]
    fn store_i16(self, v: Self::F, out: &mut [i16; LANES]) {
        // SAFETY: self proves AVX.
        let low = unsafe { _mm256_cvtps_epi32(v[0]) };
        // SAFETY: self proves AVX.
        let high = unsafe { _mm256_cvtps_epi32(v[1]) };
        // SAFETY: self proves AVX2.
        let packed = unsafe { _mm256_packs_epi32(low, high) };
        // SAFETY: self proves AVX2.
        let ordered = unsafe { _mm256_permute4x64_epi64::<0b11_01_10_00>(packed) };
        // SAFETY: 16 writable 16-bit numbers; self proves AVX.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), ordered) };
    }

    #[inline(always)]
    fn scale_pow2(self, p: Self::F, n: Self::F) -> Self::F {
        [scale_half(self, p[0], n[0]), scale_half(self, p[1], n[1])]
    }

    #[inline(always)]
    fn where_positive(self, x: Self::F, v: Self::F) -> Self::F {
        let zero = self.splat(0.0);
        let mut kept = v;
        for (half, kept) in kept.iter_mut().enumerate() {
            // SAFETY: self proves AVX2.
            let positive = unsafe { _mm256_cmp_ps::<_CMP_GT_OQ>(x[half], zero[half]) };
            // SAFETY: self proves AVX2.
            *kept = unsafe { _mm256_and_ps(positive, *kept) };
        }
        kept
    }

    #[inline(always)]
    fn first_lanes(self, v: Self::F, count: usize, rest: Self::F) -> Self::F {
        let flags: [f32; LANES] = std::array::from_fn(|l| f32::from_bits(if l < count { u32::MAX } else { 0 }));
        let mask = self.load(&flags);
        // SAFETY: self proves AVX2.
        let low = unsafe { _mm256_blendv_ps(rest[0], v[0], mask[0]) };
        // SAFETY: self proves AVX2.
        let high = unsafe { _mm256_blendv_ps(rest[1], v[1], mask[1]) };
        [low, high]
    }

    #[inline(always)]
    fn zero_f64(self) -> Self::D {
        // SAFETY: self proves AVX2.
        [unsafe { _mm256_setzero_pd() }; 4]
    }

    #[inline(always)]
    fn add_f64(self, acc: Self::D, v: Self::F) -> Self::D {
        let mut sum = acc;
        for (half, v) in v.into_iter().enumerate() {
            // SAFETY: self proves AVX2.
            let low = unsafe { _mm256_castps256_ps128(v) };
            // SAFETY: self proves AVX2.
            let high = unsafe { _mm256_extractf128_ps::<1>(v) };
            for (quarter, v) in [low, high].into_iter().enumerate() {
                // SAFETY: self proves AVX2.
                let wide = unsafe { _mm256_cvtps_pd(v) };
                let sum = &mut sum[2 * half + quarter];
                // SAFETY: self proves AVX2.
                *sum = unsafe { _mm256_add_pd(*sum, wide) };
            }
        }
        sum
    }

    #[inline(always)]
    fn store_f64(self, v: Self::D, out: &mut [f64; LANES]) {
        for (out, v) in out.as_chunks_mut::<4>().0.iter_mut().zip(v) {
            // SAFETY: 4 writable doubles; self proves AVX2.
            unsafe { _mm256_storeu_pd(out.as_mut_ptr(), v) };
        }
    }

    #[inline(always)]
    fn sum(self, v: Self::F) -> f32 {
        // SAFETY: self proves AVX.
        sum_8(self, unsafe { _mm256_add_ps(v[0], v[1]) })
    }

    #[inline(always)]
    fn greatest(self, v: Self::F) -> f32 {
        // SAFETY: self proves AVX.
        greatest_8(self, unsafe { _mm256_max_ps(v[0], v[1]) })
    }

    #[inline(always)]
    fn apart<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: self proves what the function is compiled for.
        unsafe { super::run_avx2(self, kernel) }
    }

    #[inline(always)]
    fn prefetch<T>(self, line: *const T) {
        ask_far(line);
    }
}

/// `p * 2^n` in two exact halves of n, so that only the last product can round.
#[inline(always)]
fn scale_half(_proof: Avx2, p: __m256, n: __m256) -> __m256 {
    // SAFETY: the token proves AVX2.
    let n = unsafe { _mm256_cvtps_epi32(n) };
    // SAFETY: the token proves AVX2.
    let first = unsafe { _mm256_srai_epi32::<1>(n) };
    // SAFETY: the token proves AVX2.
    let second = unsafe { _mm256_sub_epi32(n, first) };
    let mut scaled = p;
    for part in [first, second] {
        // SAFETY: the token proves AVX2.
        let bias = unsafe { _mm256_set1_epi32(127) };
        // SAFETY: the token proves AVX2.
        let exponent = unsafe { _mm256_add_epi32(part, bias) };
        // SAFETY: the token proves AVX2.
        let bits = unsafe { _mm256_slli_epi32::<23>(exponent) };
        // SAFETY: the token proves AVX2.
        let power = unsafe { _mm256_castsi256_ps(bits) };
        // SAFETY: the token proves AVX2.
        scaled = unsafe { _mm256_mul_ps(scaled, power) };
    }
    scaled
}

/// The last three steps of the tree of [`Simd::sum`] and [`Simd::greatest`]: lanes 4 apart, 2 apart, the last two.
macro_rules! tree_of_8 {
    ($name:ident, $instruction:ident) => {
        #[inline(always)]
        pub(super) fn $name(_proof: Avx2, v: __m256) -> f32 {
            // SAFETY: the token proves AVX.
            let low = unsafe { _mm256_castps256_ps128(v) };
            // SAFETY: the token proves AVX.
            let high = unsafe { _mm256_extractf128_ps::<1>(v) };
            // SAFETY: every x86-64 machine has SSE.
            let four = unsafe { $instruction(low, high) };
            // SAFETY: as above.
            let upper = unsafe { _mm_movehl_ps(four, four) };
            // SAFETY: as above.
            let two = unsafe { $instruction(four, upper) };
            // SAFETY: the token proves SSE3.
            let odd = unsafe { _mm_movehdup_ps(two) };
            // SAFETY: every x86-64 machine has SSE.
            let one = unsafe { $instruction(two, odd) };
            // SAFETY: as above.
            unsafe { _mm_cvtss_f32(one) }
        }
    };
}

tree_of_8!(sum_8, _mm_add_ps);
tree_of_8!(greatest_8, _mm_max_ps);
