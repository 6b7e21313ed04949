//! Sixteen lanes in plain Rust: the definition that the other instruction sets must match.

use std::cell::Cell;

use super::{Kernel, LANES, Simd};
use crate::math::{f16_to_f32, f32_to_f16};

/// No instruction is assumed, so nothing has to be proved.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Simd for Portable {
    type F = [f32; LANES];
    type D = [f64; LANES];

    const TILE_ROWS: usize = 4;
    const TILE_WIDTH: usize = 1;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        *x
    }

    #[inline(always)]
    fn store(self, v: Self::F, out: &mut [f32; LANES]) {
        *out = v;
    }

    #[inline(always)]
    fn load_cells(self, x: &[Cell<f32>; LANES]) -> Self::F {
        std::array::from_fn(|l| x[l].get())
    }

    #[inline(always)]
    fn store_cells(self, v: Self::F, out: &[Cell<f32>; LANES]) {
        for (cell, v) in out.iter().zip(v) {
            cell.set(v);
        }
    }

    #[inline(always)]
    fn load_f16(self, x: &[u16; LANES]) -> Self::F {
        x.map(f16_to_f32)
    }

    #[inline(always)]
    fn store_f16(self, v: Self::F, out: &mut [u16; LANES]) {
        *out = v.map(f32_to_f16);
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|l| a[l] + b[l])
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|l| a[l] - b[l])
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|l| a[l] * b[l])
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|l| a[l] / b[l])
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|l| a[l].mul_add(b[l], c[l]))
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|l| if a[l] > b[l] { a[l] } else { b[l] })
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|l| if a[l] < b[l] { a[l] } else { b[l] })
    }

    #[inline(always)]
    fn where_positive(self, x: Self::F, v: Self::F) -> Self::F {
        std::array::from_fn(|l| if x[l] > 0.0 { v[l] } else { 0.0 })
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "within the range of 16 bits")]
    fn store_i16(self, v: Self::F, out: &mut [i16; LANES]) {
        for (out, v) in out.iter_mut().zip(v) {
            *out = v.round_ties_even() as i16;
        }
    }

    #[inline(always)]
    fn scale_pow2(self, p: Self::F, n: Self::F) -> Self::F {
        std::array::from_fn(|l| crate::math::scale_pow2(p[l], n[l]))
    }

    #[inline(always)]
    fn first_lanes(self, v: Self::F, count: usize, rest: Self::F) -> Self::F {
        std::array::from_fn(|l| if l < count { v[l] } else { rest[l] })
    }

    #[inline(always)]
    fn zero_f64(self) -> Self::D {
        [0.0; LANES]
    }

    #[inline(always)]
    fn add_f64(self, acc: Self::D, v: Self::F) -> Self::D {
        std::array::from_fn(|l| acc[l] + f64::from(v[l]))
    }

    #[inline(always)]
    fn store_f64(self, v: Self::D, out: &mut [f64; LANES]) {
        *out = v;
    }

    #[inline(never)]
    fn apart<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn prefetch<T>(self, _line: *const T) {}
}
