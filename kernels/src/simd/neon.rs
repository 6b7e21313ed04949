//! Sixteen lanes as four NEON registers.
#![expect(unsafe_code, reason = "instructions of NEON, and their loads and stores")]

use std::arch::aarch64::{
    float32x4_t, float64x2_t, int32x4_t, uint32x4_t, vaddq_f32, vaddq_f64, vaddq_s32, vbslq_f32, vcgtq_f32,
    vcombine_s16, vcvt_f64_f32, vcvt_high_f64_f32, vcvtnq_s32_f32, vcvtq_f32_s32, vdivq_f32, vdupq_n_f32, vdupq_n_f64,
    vdupq_n_s16, vdupq_n_s32, vfmaq_f32, vget_low_f32, vget_low_s8, vget_low_s16, vld1_u16, vld1q_f32, vld1q_s8,
    vld1q_s32, vmlal_high_s16, vmlal_s16, vmovl_high_s8, vmovl_s8, vmulq_f32, vqmovn_s32, vreinterpretq_f32_s32,
    vreinterpretq_s16_s32, vreinterpretq_s32_s16, vreinterpretq_u32_f32, vshlq_n_s32, vshrq_n_s32, vst1_u16, vst1q_f32,
    vst1q_f64, vst1q_s16, vst1q_s32, vsubq_f32, vsubq_s32, vuzp1q_s8, vuzp2q_s8,
};
use std::cell::Cell;

use super::{Kernel, LANES, PairKernel, Pairs, Simd};
use crate::{Neon, neon};

macro_rules! lanewise {
    ($($name:ident($($arg:ident),+) = $instruction:expr;)+) => {$(
        #[inline(always)]
        fn $name(self, $($arg: Self::F),+) -> Self::F {
            let mut all = [self.four(0.0); 4];
            for (quarter, out) in all.iter_mut().enumerate() {
                $(let $arg = $arg[quarter];)+
                // SAFETY: self proves NEON.
                *out = unsafe { $instruction };
            }
            all
        }
    )+};
}

impl Neon {
    #[inline(always)]
    fn four(self, x: f32) -> float32x4_t {
        // SAFETY: self proves NEON.
        unsafe { vdupq_n_f32(x) }
    }

    /// Lanes of `a` where `mask` says so, else of `b`.
    #[inline(always)]
    fn choose(self, mask: uint32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: self proves NEON.
        unsafe { vbslq_f32(mask, a, b) }
    }

    #[inline(always)]
    fn greater(self, a: float32x4_t, b: float32x4_t) -> uint32x4_t {
        // SAFETY: self proves NEON.
        unsafe { vcgtq_f32(a, b) }
    }

    /// `p * 2^n` in two exact halves of n, so that only the last product can round.
    #[inline(always)]
    fn scale_quarter(self, p: float32x4_t, n: float32x4_t) -> float32x4_t {
        // SAFETY: self proves NEON.
        let n = unsafe { vcvtnq_s32_f32(n) };
        // SAFETY: self proves NEON.
        let first = unsafe { vshrq_n_s32::<1>(n) };
        // SAFETY: self proves NEON.
        let second = unsafe { vsubq_s32(n, first) };
        let mut scaled = p;
        for part in [first, second] {
            // SAFETY: self proves NEON.
            let bias = unsafe { vdupq_n_s32(127) };
            // SAFETY: self proves NEON.
            let exponent = unsafe { vaddq_s32(part, bias) };
            // SAFETY: self proves NEON.
            let bits = unsafe { vshlq_n_s32::<23>(exponent) };
            // SAFETY: self proves NEON.
            let power = unsafe { vreinterpretq_f32_s32(bits) };
            // SAFETY: self proves NEON.
            scaled = unsafe { vmulq_f32(scaled, power) };
        }
        scaled
    }
}

impl Simd for Neon {
    type F = [float32x4_t; 4];
    type D = [float64x2_t; 8];

    /// 6 x 4 sums leave 8 of 32 registers for what is multiplied.
    const TILE_ROWS: usize = 6;
    const TILE_WIDTH: usize = 1;

    lanewise! {
        add(a, b) = vaddq_f32(a, b);
        sub(a, b) = vsubq_f32(a, b);
        mul(a, b) = vmulq_f32(a, b);
        div(a, b) = vdivq_f32(a, b);
        fma(a, b, c) = vfmaq_f32(c, a, b);
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [self.four(x); 4]
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        let mut v = self.splat(0.0);
        for (v, x) in v.iter_mut().zip(x.as_chunks::<4>().0) {
            // SAFETY: 4 readable floats; self proves NEON.
            *v = unsafe { vld1q_f32(x.as_ptr()) };
        }
        v
    }

    #[inline(always)]
    fn store(self, v: Self::F, out: &mut [f32; LANES]) {
        for (v, out) in v.into_iter().zip(out.as_chunks_mut::<4>().0) {
            // SAFETY: 4 writable floats; self proves NEON.
            unsafe { vst1q_f32(out.as_mut_ptr(), v) };
        }
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
        let mut v = self.splat(0.0);
        for (v, x) in v.iter_mut().zip(x.as_chunks::<4>().0) {
            // SAFETY: 4 readable halves; self proves NEON.
            let halves = unsafe { vld1_u16(x.as_ptr()) };
            // SAFETY: self proves NEON.
            *v = unsafe { neon::widen(halves) };
        }
        v
    }

    #[inline(always)]
    fn store_f16(self, v: Self::F, out: &mut [u16; LANES]) {
        for (v, out) in v.into_iter().zip(out.as_chunks_mut::<4>().0) {
            // SAFETY: self proves NEON.
            let halves = unsafe { neon::narrow(v) };
            // SAFETY: 4 writable halves; self proves NEON.
            unsafe { vst1_u16(out.as_mut_ptr(), halves) };
        }
    }

    #[inline(always)]
    fn store_i16(self, v: Self::F, out: &mut [i16; LANES]) {
        for (half, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            // SAFETY: self proves NEON.
            let low = unsafe { vcvtnq_s32_f32(v[2 * half]) };
            // SAFETY: self proves NEON.
            let high = unsafe { vcvtnq_s32_f32(v[2 * half + 1]) };
            // SAFETY: self proves NEON.
            let low = unsafe { vqmovn_s32(low) };
            // SAFETY: self proves NEON.
            let high = unsafe { vqmovn_s32(high) };
            // SAFETY: self proves NEON.
            let both = unsafe { vcombine_s16(low, high) };
            // SAFETY: 8 writable numbers; self proves NEON.
            unsafe { vst1q_s16(out.as_mut_ptr(), both) };
        }
    }

    /// No instruction of its own: NEON's greatest is NaN where one is.
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        let mut all = b;
        for (a, b) in a.into_iter().zip(&mut all) {
            *b = self.choose(self.greater(a, *b), a, *b);
        }
        all
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        let mut all = b;
        for (a, b) in a.into_iter().zip(&mut all) {
            *b = self.choose(self.greater(*b, a), a, *b);
        }
        all
    }

    #[inline(always)]
    fn where_positive(self, x: Self::F, v: Self::F) -> Self::F {
        let mut kept = v;
        for (x, kept) in x.into_iter().zip(&mut kept) {
            *kept = self.choose(self.greater(x, self.four(0.0)), *kept, self.four(0.0));
        }
        kept
    }

    #[inline(always)]
    fn scale_pow2(self, p: Self::F, n: Self::F) -> Self::F {
        let mut scaled = p;
        for (p, n) in scaled.iter_mut().zip(n) {
            *p = self.scale_quarter(*p, n);
        }
        scaled
    }

    #[inline(always)]
    fn first_lanes(self, v: Self::F, count: usize, rest: Self::F) -> Self::F {
        let flags: [f32; LANES] = std::array::from_fn(|l| f32::from_bits(if l < count { u32::MAX } else { 0 }));
        let (flags, mut all) = (self.load(&flags), rest);
        for (quarter, rest) in all.iter_mut().enumerate() {
            // SAFETY: self proves NEON.
            let mask = unsafe { vreinterpretq_u32_f32(flags[quarter]) };
            *rest = self.choose(mask, v[quarter], *rest);
        }
        all
    }

    #[inline(always)]
    fn zero_f64(self) -> Self::D {
        // SAFETY: self proves NEON.
        [unsafe { vdupq_n_f64(0.0) }; 8]
    }

    #[inline(always)]
    fn add_f64(self, acc: Self::D, v: Self::F) -> Self::D {
        let mut sum = acc;
        for (quarter, v) in v.into_iter().enumerate() {
            // SAFETY: self proves NEON.
            let low = unsafe { vget_low_f32(v) };
            // SAFETY: self proves NEON.
            let low = unsafe { vcvt_f64_f32(low) };
            // SAFETY: self proves NEON.
            let high = unsafe { vcvt_high_f64_f32(v) };
            for (half, v) in [low, high].into_iter().enumerate() {
                let sum = &mut sum[2 * quarter + half];
                // SAFETY: self proves NEON.
                *sum = unsafe { vaddq_f64(*sum, v) };
            }
        }
        sum
    }

    #[inline(always)]
    fn store_f64(self, v: Self::D, out: &mut [f64; LANES]) {
        for (out, v) in out.as_chunks_mut::<2>().0.iter_mut().zip(v) {
            // SAFETY: 2 writable doubles; self proves NEON.
            unsafe { vst1q_f64(out.as_mut_ptr(), v) };
        }
    }

    #[inline(never)]
    fn apart<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn prefetch<T>(self, line: *const T) {
        neon::prefetch_far(line, 0);
    }
}

/// Pairs lie apart: first the first numbers of all lanes as 16 numbers of 16 bits, then the second ones.
impl Pairs for Neon {
    type Floats = Self;
    type I = [int32x4_t; 4];

    #[inline(always)]
    fn floats(self) -> Self {
        self
    }

    #[inline(never)]
    fn apart_pairs<K: PairKernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn zero(self) -> Self::I {
        // SAFETY: self proves NEON.
        [unsafe { vdupq_n_s32(0) }; 4]
    }

    #[inline(always)]
    fn load_sums(self, x: &[i32; LANES]) -> Self::I {
        let mut v = Pairs::zero(self);
        for (v, x) in v.iter_mut().zip(x.as_chunks::<4>().0) {
            // SAFETY: 4 readable numbers; self proves NEON.
            *v = unsafe { vld1q_s32(x.as_ptr()) };
        }
        v
    }

    #[inline(always)]
    fn store_sums(self, v: Self::I, out: &mut [i32; LANES]) {
        for (v, out) in v.into_iter().zip(out.as_chunks_mut::<4>().0) {
            // SAFETY: 4 writable numbers; self proves NEON.
            unsafe { vst1q_s32(out.as_mut_ptr(), v) };
        }
    }

    #[inline(always)]
    fn load_pairs(self, x: &[u16; LANES]) -> Self::I {
        // SAFETY: the first 16 of 32 readable bytes; self proves NEON.
        let low = unsafe { vld1q_s8(x[..8].as_ptr().cast()) };
        // SAFETY: the last 16 of 32 readable bytes; self proves NEON.
        let high = unsafe { vld1q_s8(x[8..].as_ptr().cast()) };
        // SAFETY: self proves NEON.
        let first = unsafe { vuzp1q_s8(low, high) };
        // SAFETY: self proves NEON.
        let second = unsafe { vuzp2q_s8(low, high) };
        let mut all = Pairs::zero(self);
        for (bytes, all) in [first, second].into_iter().zip(all.as_chunks_mut::<2>().0) {
            // SAFETY: self proves NEON.
            let low = unsafe { vget_low_s8(bytes) };
            // SAFETY: self proves NEON.
            let low = unsafe { vmovl_s8(low) };
            // SAFETY: self proves NEON.
            let high = unsafe { vmovl_high_s8(bytes) };
            // SAFETY: self proves NEON.
            all[0] = unsafe { vreinterpretq_s32_s16(low) };
            // SAFETY: self proves NEON.
            all[1] = unsafe { vreinterpretq_s32_s16(high) };
        }
        all
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the halves are wanted")]
    fn splat_pair(self, pair: u32) -> Self::I {
        let mut all = Pairs::zero(self);
        for (number, all) in [pair as i16, (pair >> 16) as i16].into_iter().zip(all.as_chunks_mut::<2>().0) {
            // SAFETY: self proves NEON.
            let eight = unsafe { vdupq_n_s16(number) };
            // SAFETY: self proves NEON.
            *all = [unsafe { vreinterpretq_s32_s16(eight) }; 2];
        }
        all
    }

    #[inline(always)]
    fn add_products(self, sum: Self::I, a: Self::I, b: Self::I) -> Self::I {
        let mut all = sum;
        for (i, (a, b)) in a.into_iter().zip(b).enumerate() {
            // Of the first numbers, then of the second ones, each in two registers of 8 lanes.
            let lanes = i % 2 * 2;
            // SAFETY: self proves NEON.
            let a = unsafe { vreinterpretq_s16_s32(a) };
            // SAFETY: self proves NEON.
            let b = unsafe { vreinterpretq_s16_s32(b) };
            // SAFETY: self proves NEON.
            let a_low = unsafe { vget_low_s16(a) };
            // SAFETY: self proves NEON.
            let b_low = unsafe { vget_low_s16(b) };
            // SAFETY: self proves NEON.
            all[lanes] = unsafe { vmlal_s16(all[lanes], a_low, b_low) };
            // SAFETY: self proves NEON.
            all[lanes + 1] = unsafe { vmlal_high_s16(all[lanes + 1], a, b) };
        }
        all
    }

    #[inline(always)]
    fn to_floats(self, v: Self::I) -> [float32x4_t; 4] {
        let mut floats = self.splat(0.0);
        for (float, v) in floats.iter_mut().zip(v) {
            // SAFETY: self proves NEON.
            *float = unsafe { vcvtq_f32_s32(v) };
        }
        floats
    }
}
