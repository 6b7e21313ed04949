//! Sixteen lanes as an array.

use super::lanes::{Kernel, LANES, Lanes};
use super::matrix::bf16_to_f32;
use crate::math::f16_to_f32;

#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Lanes for Portable {
    type V = [f32; LANES];
    const TILE_TOKENS: usize = 2;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::V {
        *x
    }

    #[inline(always)]
    fn store(self, v: Self::V, out: &mut [f32; LANES]) {
        *out = v;
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|l| a[l] * b[l])
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|l| a[l].mul_add(b[l], c[l]))
    }

    #[inline(always)]
    fn widen_f32(self, x: &[u8; 64]) -> Self::V {
        std::array::from_fn(|l| f32::from_le_bytes(x.as_chunks().0[l]))
    }

    #[inline(always)]
    fn widen_f16(self, x: &[u8; 32]) -> Self::V {
        std::array::from_fn(|l| f16_to_f32(u16::from_le_bytes(x.as_chunks().0[l])))
    }

    #[inline(always)]
    fn widen_bf16(self, x: &[u8; 32]) -> Self::V {
        std::array::from_fn(|l| bf16_to_f32(u16::from_le_bytes(x.as_chunks().0[l])))
    }

    #[inline(always)]
    fn widen_i8(self, x: &[i8; LANES]) -> Self::V {
        x.map(f32::from)
    }

    #[inline(always)]
    fn half(self, bits: u16) -> f32 {
        f16_to_f32(bits)
    }

    #[inline(always)]
    fn outline<K: Kernel>(self, kernel: K) {
        kernel.run(self);
    }

    #[inline(always)]
    fn prefetch(self, _bytes: &[u8], _ahead: usize) {}
}
