//! Sixteen lanes as four NEON registers.
#![expect(unsafe_code, reason = "instructions of NEON, and their loads and stores")]

use std::arch::aarch64::{
    float32x4_t, vcvtq_f32_s32, vdupq_n_f32, vfmaq_f32, vget_high_s16, vget_low_s8, vget_low_s16, vld1_u8, vld1q_f32,
    vld1q_s8, vld1q_u8, vmovl_high_s8, vmovl_s8, vmovl_s16, vmulq_f32, vreinterpret_u16_u8, vreinterpretq_f32_u8,
    vreinterpretq_f32_u32, vshll_n_u16, vst1q_f32,
};

use super::lanes::{Kernel, LANES, Lanes};
use crate::math::f16_to_f32;
use crate::{Neon, neon};

pub(super) fn run<K: Kernel>(proof: Neon, kernel: K) {
    // SAFETY: the token proves that these instructions exist.
    unsafe { body(proof, kernel) }
}

#[target_feature(enable = "neon")]
#[inline(never)]
fn body<K: Kernel>(proof: Neon, kernel: K) {
    kernel.run(proof);
}

impl Lanes for Neon {
    type V = [float32x4_t; 4];
    /// 4 rows x 1 x 4 sums; a second activation row would leave no register for what is multiplied.
    const TILE_TOKENS: usize = 1;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: self proves NEON.
        [unsafe { vdupq_n_f32(x) }; 4]
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::V {
        let mut v = self.splat(0.0);
        for (v, x) in v.iter_mut().zip(x.as_chunks::<4>().0) {
            // SAFETY: 4 readable floats; self proves NEON.
            *v = unsafe { vld1q_f32(x.as_ptr()) };
        }
        v
    }

    #[inline(always)]
    fn store(self, v: Self::V, out: &mut [f32; LANES]) {
        for (v, out) in v.into_iter().zip(out.as_chunks_mut::<4>().0) {
            // SAFETY: 4 writable floats; self proves NEON.
            unsafe { vst1q_f32(out.as_mut_ptr(), v) }
        }
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        let mut v = a;
        for (v, b) in v.iter_mut().zip(b) {
            // SAFETY: self proves NEON.
            *v = unsafe { vmulq_f32(*v, b) };
        }
        v
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        let mut v = c;
        for (v, (a, b)) in v.iter_mut().zip(a.into_iter().zip(b)) {
            // SAFETY: self proves NEON.
            *v = unsafe { vfmaq_f32(*v, a, b) };
        }
        v
    }

    #[inline(always)]
    fn widen_f32(self, x: &[u8; 64]) -> Self::V {
        let mut v = self.splat(0.0);
        for (v, x) in v.iter_mut().zip(x.as_chunks::<16>().0) {
            // SAFETY: 16 readable bytes, no alignment needed; self proves NEON.
            let bits = unsafe { vld1q_u8(x.as_ptr()) };
            // SAFETY: self proves NEON.
            *v = unsafe { vreinterpretq_f32_u8(bits) };
        }
        v
    }

    #[inline(always)]
    fn widen_f16(self, x: &[u8; 32]) -> Self::V {
        let mut v = self.splat(0.0);
        for (v, x) in v.iter_mut().zip(x.as_chunks::<8>().0) {
            // SAFETY: 8 readable bytes, no alignment needed; self proves NEON.
            let bits = unsafe { vld1_u8(x.as_ptr()) };
            // SAFETY: self proves NEON.
            let halves = unsafe { vreinterpret_u16_u8(bits) };
            // SAFETY: self proves NEON.
            *v = unsafe { neon::widen(halves) };
        }
        v
    }

    #[inline(always)]
    fn widen_bf16(self, x: &[u8; 32]) -> Self::V {
        let mut v = self.splat(0.0);
        for (v, x) in v.iter_mut().zip(x.as_chunks::<8>().0) {
            // SAFETY: 8 readable bytes, no alignment needed; self proves NEON.
            let bits = unsafe { vld1_u8(x.as_ptr()) };
            // SAFETY: self proves NEON.
            let halves = unsafe { vreinterpret_u16_u8(bits) };
            // SAFETY: self proves NEON.
            let bits = unsafe { vshll_n_u16::<16>(halves) };
            // SAFETY: self proves NEON.
            *v = unsafe { vreinterpretq_f32_u32(bits) };
        }
        v
    }

    #[inline(always)]
    fn widen_i8(self, x: &[i8; LANES]) -> Self::V {
        // SAFETY: 16 readable bytes; self proves NEON.
        let bytes = unsafe { vld1q_s8(x.as_ptr()) };
        // SAFETY: self proves NEON.
        let low = unsafe { vget_low_s8(bytes) };
        // SAFETY: self proves NEON.
        let low = unsafe { vmovl_s8(low) };
        // SAFETY: self proves NEON.
        let high = unsafe { vmovl_high_s8(bytes) };
        let mut v = self.splat(0.0);
        for (eight, v) in [low, high].into_iter().zip(v.as_chunks_mut::<2>().0) {
            // SAFETY: self proves NEON.
            let low = unsafe { vget_low_s16(eight) };
            // SAFETY: self proves NEON.
            let high = unsafe { vget_high_s16(eight) };
            for (four, v) in [low, high].into_iter().zip(v) {
                // SAFETY: self proves NEON.
                let wide = unsafe { vmovl_s16(four) };
                // SAFETY: self proves NEON.
                *v = unsafe { vcvtq_f32_s32(wide) };
            }
        }
        v
    }

    #[inline(always)]
    fn half(self, bits: u16) -> f32 {
        f16_to_f32(bits)
    }

    #[inline(always)]
    fn outline<K: Kernel>(self, kernel: K) {
        run(self, kernel);
    }

    #[inline(always)]
    fn prefetch(self, bytes: &[u8], ahead: usize) {
        neon::prefetch_far(bytes.as_ptr(), ahead);
    }
}
