//! Sixteen lanes as one AVX-512 register.
#![expect(unsafe_code, reason = "instructions of AVX-512, and their loads and stores")]

use super::{Kernel, LANES, Simd};
use crate::Avx512Bw;
use crate::ahead::ask_far;
use std::arch::x86_64::{
    __m256, __m512, __m512d, _CMP_GE_OQ, _CMP_GT_OQ, _CMP_LE_OQ, _CMP_NLE_UQ, _MM_FROUND_CUR_DIRECTION,
    _MM_FROUND_TO_NEAREST_INT, _mm256_add_ps, _mm256_loadu_si256, _mm256_max_ps, _mm256_storeu_si256, _mm512_abs_ps,
    _mm512_add_pd, _mm512_add_ps, _mm512_castps512_ps256, _mm512_cmp_ps_mask, _mm512_cvt_roundph_ps,
    _mm512_cvtepi32_epi16, _mm512_cvtps_epi32, _mm512_cvtps_pd, _mm512_cvtps_ph, _mm512_div_ps, _mm512_extractf32x8_ps,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_blend_ps, _mm512_mask_cmp_ps_mask, _mm512_maskz_mov_ps,
    _mm512_maskz_scalef_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_scalef_ps, _mm512_set1_ps,
    _mm512_setzero_pd, _mm512_storeu_pd, _mm512_storeu_ps, _mm512_sub_ps,
};
use std::cell::Cell;

macro_rules! lanewise {
    ($($name:ident($($arg:ident),+) = $instruction:ident;)+) => {$(
        #[inline(always)]
        fn $name(self, $($arg: Self::F),+) -> Self::F {
            // SAFETY: self proves that the instruction exists.
            unsafe { $instruction($($arg),+) }
        }
    )+};
}

impl Simd for Avx512Bw {
    type F = __m512;
    type D = [__m512d; 2];

    const TILE_ROWS: usize = 8;
    const TILE_WIDTH: usize = 2;

    lanewise! {
        add(a, b) = _mm512_add_ps;
        sub(a, b) = _mm512_sub_ps;
        mul(a, b) = _mm512_mul_ps;
        div(a, b) = _mm512_div_ps;
        fma(a, b, c) = _mm512_fmadd_ps;
        max(a, b) = _mm512_max_ps;
        min(a, b) = _mm512_min_ps;
        scale_pow2(p, n) = _mm512_scalef_ps;
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        // SAFETY: self proves AVX-512 F.
        unsafe { _mm512_set1_ps(x) }
    }

    /// Markstein's division: after the first step `q` is one of the two floats around `a / b`, from which the second
    /// rounds correctly (Muller and others, Handbook of Floating-Point Arithmetic, division with a fused
    /// multiply-add). The divider takes 16 cycles, a twentieth of the products of 2560 columns.
    #[inline(always)]
    fn quotient(self, a: Self::F, b: Self::F, inverse: Self::F) -> Self::F {
        let minus = self.sub(self.splat(0.0), b);
        let q = self.mul(a, inverse);
        let q = self.fma(self.fma(minus, q, a), inverse, q);
        self.fma(self.fma(minus, q, a), inverse, q)
    }

    /// By [`quotient`](Simd::quotient)'s steps where nothing in them can underflow or overflow, nor lose the sign of a zero.
    #[inline(always)]
    fn part_of_sum(self, a: Self::F, b: Self::F, inverse: Self::F) -> Self::F {
        // SAFETY: self proves AVX-512 F.
        let magnitude = unsafe { _mm512_abs_ps(a) };
        // SAFETY: as above.
        let large = unsafe { _mm512_cmp_ps_mask::<_CMP_GE_OQ>(magnitude, self.splat(PARTS_MIN)) };
        // SAFETY: as above.
        let usual = unsafe { _mm512_mask_cmp_ps_mask::<_CMP_LE_OQ>(large, magnitude, self.splat(1.0 / PARTS_MIN)) };
        if usual == u16::MAX { self.quotient(a, b, inverse) } else { self.div(a, b) }
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        // SAFETY: 16 readable floats; self proves AVX-512 F.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: Self::F, out: &mut [f32; LANES]) {
        // SAFETY: 16 writable floats; self proves AVX-512 F.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), v) };
    }

    #[inline(always)]
    fn load_cells(self, x: &[Cell<f32>; LANES]) -> Self::F {
        // SAFETY: 16 readable floats, since a cell has the layout of its value; self proves AVX-512 F.
        unsafe { _mm512_loadu_ps(x.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store_cells(self, v: Self::F, out: &[Cell<f32>; LANES]) {
        // SAFETY: 16 floats that a shared reference may write, for they are cells; self proves AVX-512 F.
        unsafe { _mm512_storeu_ps(out.as_ptr().cast_mut().cast(), v) };
    }

    #[inline(always)]
    fn load_f16(self, x: &[u16; LANES]) -> Self::F {
        // SAFETY: 16 readable halves; self proves AVX.
        let half = unsafe { _mm256_loadu_si256(x.as_ptr().cast()) };
        // Not `_mm512_cvtph_ps`, which says that it raises no exceptions: that form takes no operand from memory.
        // SAFETY: self proves AVX-512 F.
        unsafe { _mm512_cvt_roundph_ps::<_MM_FROUND_CUR_DIRECTION>(half) }
    }

    #[inline(always)]
    fn store_f16(self, v: Self::F, out: &mut [u16; LANES]) {
        // SAFETY: self proves AVX-512 F.
        let half = unsafe { _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v) };
        // SAFETY: 16 writable halves; self proves AVX.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), half) };
    }

    #[inline(always)]
    fn store_i16(self, v: Self::F, out: &mut [i16; LANES]) {
        // SAFETY: self proves AVX-512 F.
        let whole = unsafe { _mm512_cvtps_epi32(v) };
        // SAFETY: self proves AVX-512 F.
        let narrow = unsafe { _mm512_cvtepi32_epi16(whole) };
        // SAFETY: 16 writable 16-bit numbers; self proves AVX.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), narrow) };
    }

    #[inline(always)]
    fn where_positive(self, x: Self::F, v: Self::F) -> Self::F {
        let zero = self.splat(0.0);
        // SAFETY: self proves AVX-512 F.
        let positive = unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, zero) };
        // SAFETY: self proves AVX-512 F.
        unsafe { _mm512_maskz_mov_ps(positive, v) }
    }

    #[inline(always)]
    fn scale_pow2_above(self, p: Self::F, n: Self::F, x: Self::F, least: Self::F) -> Self::F {
        // SAFETY: self proves AVX-512 F.
        let above = unsafe { _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(x, least) };
        // SAFETY: as above.
        unsafe { _mm512_maskz_scalef_ps(above, p, n) }
    }

    #[inline(always)]
    fn first_lanes(self, v: Self::F, count: usize, rest: Self::F) -> Self::F {
        let mask = if count < LANES { (1u16 << count) - 1 } else { u16::MAX };
        // SAFETY: self proves AVX-512 F.
        unsafe { _mm512_mask_blend_ps(mask, rest, v) }
    }

    #[inline(always)]
    fn zero_f64(self) -> Self::D {
        // SAFETY: self proves AVX-512 F.
        [unsafe { _mm512_setzero_pd() }; 2]
    }

    #[inline(always)]
    fn add_f64(self, acc: Self::D, v: Self::F) -> Self::D {
        let mut sum = acc;
        for (sum, v) in sum.iter_mut().zip(halves(self, v)) {
            // SAFETY: self proves AVX-512 F.
            let wide = unsafe { _mm512_cvtps_pd(v) };
            // SAFETY: self proves AVX-512 F.
            *sum = unsafe { _mm512_add_pd(*sum, wide) };
        }
        sum
    }

    #[inline(always)]
    fn store_f64(self, v: Self::D, out: &mut [f64; LANES]) {
        for (out, v) in out.as_chunks_mut::<8>().0.iter_mut().zip(v) {
            // SAFETY: 8 writable doubles; self proves AVX-512 F.
            unsafe { _mm512_storeu_pd(out.as_mut_ptr(), v) };
        }
    }

    #[inline(always)]
    fn sum(self, v: Self::F) -> f32 {
        let [low, high] = halves(self, v);
        // SAFETY: self proves AVX.
        super::avx2::sum_8(self.avx2(), unsafe { _mm256_add_ps(low, high) })
    }

    #[inline(always)]
    fn greatest(self, v: Self::F) -> f32 {
        let [low, high] = halves(self, v);
        // SAFETY: self proves AVX.
        super::avx2::greatest_8(self.avx2(), unsafe { _mm256_max_ps(low, high) })
    }

    #[inline(always)]
    fn apart<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: self proves what the function is compiled for.
        unsafe { super::run_avx512(self, kernel) }
    }

    #[inline(always)]
    fn prefetch<T>(self, line: *const T) {
        ask_far(line);
    }
}

/// The least magnitude, and one over the greatest, that goes by [`Simd::quotient`].
const PARTS_MIN: f32 = 1e-15;

/// Lanes 0 to 7 and 8 to 15.
#[inline(always)]
fn halves(_proof: Avx512Bw, v: __m512) -> [__m256; 2] {
    // SAFETY: the token proves AVX-512 F.
    let low = unsafe { _mm512_castps512_ps256(v) };
    // SAFETY: the token proves AVX-512 DQ.
    let high = unsafe { _mm512_extractf32x8_ps::<1>(v) };
    [low, high]
}
