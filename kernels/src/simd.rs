//! Sixteen float lanes: the small vector trait that every float kernel is written over, and its dispatch.
//!
//! An implementation is a proof token (as [`crate::Avx2`]) or [`Portable`]; its methods are the only place that
//! touches instructions. All operations are IEEE 754 single operations, so a kernel gives the same bits on each.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pairs;
mod portable;

pub(crate) use pairs::{PairKernel, Pairs, dispatch_pairs, pair};
pub(crate) use portable::Portable;

use std::cell::Cell;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::FloatIsa;
use crate::Isa;
#[cfg(target_arch = "x86_64")]
use crate::{Avx2, Avx512Bw};

/// Float lanes of one virtual vector, on every ISA.
pub(crate) const LANES: usize = 16;
/// Divisors for which no step of [`Simd::quotient`] overflows or underflows.
pub(crate) const QUOTIENT_DIVISORS: std::ops::RangeInclusive<f32> = 1e-15..=1e15;

/// Divisors of [`Simd::part_of_sum`]: sums of weights of which the greatest is 1.
pub(crate) const SUMS: std::ops::RangeInclusive<f32> = 1.0..=1e9;

/// Operations on 16 lanes of f32, given by a proof that their instructions exist.
///
/// Results for NaN inputs are NaN, of unspecified payload. Everything must be `#[inline(always)]`: the bodies get
/// their instructions from the `#[target_feature]` function that they end up in, see [`dispatch`].
pub(crate) trait Simd: Copy {
    /// 16 lanes of f32.
    type F: Copy;
    /// 16 lanes of f64.
    type D: Copy;

    /// Rows of an attention tile, and vectors side by side in it: as many accumulators as stay in registers.
    const TILE_ROWS: usize;
    /// See [`Simd::TILE_ROWS`]; 1 or 2.
    const TILE_WIDTH: usize;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, x: &[f32; LANES]) -> Self::F;
    fn store(self, v: Self::F, out: &mut [f32; LANES]);
    /// Values that other threads may have neighbours of.
    fn load_cells(self, x: &[Cell<f32>; LANES]) -> Self::F;
    fn store_cells(self, v: Self::F, out: &[Cell<f32>; LANES]);
    /// Exact conversion from F16 bits.
    fn load_f16(self, x: &[u16; LANES]) -> Self::F;
    /// Conversion to F16 bits, round to nearest even; overflow to infinity.
    fn store_f16(self, v: Self::F, out: &mut [u16; LANES]);

    /// The nearest whole numbers, ties to even, of values within the range of 16 bits.
    fn store_i16(self, v: Self::F, out: &mut [i16; LANES]);

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b` as [`div`](Self::div) gives it, for an `inverse` that is `1 / b` rounded to nearest, `a` zero or of a
    /// magnitude in `1 ..= 2^32`, and `b` in [`QUOTIENT_DIVISORS`].
    #[inline(always)]
    fn quotient(self, a: Self::F, b: Self::F, _inverse: Self::F) -> Self::F {
        self.div(a, b)
    }
    /// The same for any `a`, and `b` in [`SUMS`].
    #[inline(always)]
    fn part_of_sum(self, a: Self::F, b: Self::F, _inverse: Self::F) -> Self::F {
        self.div(a, b)
    }
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a > b ? a : b`: the second where one is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? a : b`: the second where one is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// Lane by lane `v` where `x > 0`, else 0.
    fn where_positive(self, x: Self::F, v: Self::F) -> Self::F;
    /// `p * 2^n` rounded once, for |p| in `[0.5, 2]` and integers n in `[-150, 129]`.
    fn scale_pow2(self, p: Self::F, n: Self::F) -> Self::F;
    /// The same where `x > least` or `x` is no number; `p * 2^n` is 0 elsewhere. (AVX-512 takes 200 cycles for a vector in
    /// which something underflows.)
    #[inline(always)]
    fn scale_pow2_above(self, p: Self::F, n: Self::F, _x: Self::F, _least: Self::F) -> Self::F {
        self.scale_pow2(p, n)
    }
    /// Lane l is `v`'s where `l < count`, else `rest`'s.
    fn first_lanes(self, v: Self::F, count: usize, rest: Self::F) -> Self::F;

    fn zero_f64(self) -> Self::D;
    /// `acc + v`, lane by lane in f64.
    fn add_f64(self, acc: Self::D, v: Self::F) -> Self::D;
    fn store_f64(self, v: Self::D, out: &mut [f64; LANES]);

    /// Asks for the cache line of an address, into L2: the misses of L1 are too few to keep memory busy (T0 gives
    /// three quarters of the bandwidth at context 4096). No effect on results.
    fn prefetch<T>(self, line: *const T);

    /// Runs `kernel` in a function of its own. What is inlined into one grows with every shape of a tile, and compilers take
    /// more than twice the time for twice the loops.
    fn apart<K: Kernel>(self, kernel: K) -> K::Output;

    /// Up to 16 values; the lanes past the slice's end are `rest`.
    #[inline(always)]
    fn load_part(self, x: &[f32], rest: f32) -> Self::F {
        if let Ok(whole) = x.try_into() {
            return self.load(whole);
        }
        let mut padded = [rest; LANES];
        padded[..x.len()].copy_from_slice(x);
        self.load(&padded)
    }

    /// Writes the first `out.len()` lanes, 16 at most.
    #[inline(always)]
    fn store_part(self, v: Self::F, out: &mut [f32]) {
        if let Ok(whole) = out.try_into() {
            return self.store(v, whole);
        }
        let mut padded = [0.0; LANES];
        self.store(v, &mut padded);
        out.copy_from_slice(&padded[..out.len()]);
    }

    /// Sum of the lanes by the one fixed tree: l and l+8, then +4, +2, +1.
    #[inline(always)]
    fn sum(self, v: Self::F) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        for half in [8, 4, 2, 1] {
            for l in 0..half {
                lanes[l] += lanes[l + half];
            }
        }
        lanes[0]
    }

    /// [`Simd::sum`] in f64.
    #[inline(always)]
    fn sum_f64(self, v: Self::D) -> f64 {
        let mut lanes = [0.0; LANES];
        self.store_f64(v, &mut lanes);
        for half in [8, 4, 2, 1] {
            for l in 0..half {
                lanes[l] += lanes[l + half];
            }
        }
        lanes[0]
    }

    /// Greatest lane, by the tree of [`Simd::sum`].
    #[inline(always)]
    fn greatest(self, v: Self::F) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        for half in [8, 4, 2, 1] {
            for l in 0..half {
                lanes[l] = if lanes[l] > lanes[l + half] { lanes[l] } else { lanes[l + half] };
            }
        }
        lanes[0]
    }
}

/// A computation written once over [`Simd`]; `run` must be `#[inline(always)]`.
pub(crate) trait Kernel {
    type Output;
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Runs `kernel` compiled for `isa`: the one branch of an operation.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "enters the functions compiled for an instruction set")]
pub(crate) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa.floats() {
        FloatIsa::Portable => kernel.run(Portable),
        // SAFETY: the token proves that AVX2, FMA and F16C exist.
        FloatIsa::Avx2(proof) => unsafe { run_avx2(proof, kernel) },
        // SAFETY: the token proves that AVX-512 F, BW, DQ and VL exist, and those of AVX2.
        FloatIsa::Avx512Bw(proof) => unsafe { run_avx512(proof, kernel) },
        FloatIsa::Neon(_) => unreachable!("no proof exists on this machine"),
    }
}

/// Runs `kernel` compiled for `isa`. NEON is in every build for aarch64: it needs no function of its own.
#[cfg(target_arch = "aarch64")]
pub(crate) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa.floats() {
        FloatIsa::Neon(proof) => kernel.run(proof),
        _ => kernel.run(Portable),
    }
}

/// Runs `kernel`; no other ISA has a token here.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) fn dispatch<K: Kernel>(_isa: Isa, kernel: K) -> K::Output {
    kernel.run(Portable)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
fn run_avx2<K: Kernel>(proof: Avx2, kernel: K) -> K::Output {
    kernel.run(proof)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
#[inline(never)]
fn run_avx512<K: Kernel>(proof: Avx512Bw, kernel: K) -> K::Output {
    kernel.run(proof)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math;

    /// Bits of every operation on one set of inputs.
    struct Probe<'a>(&'a [f32; LANES], &'a [f32; LANES], &'a [f32; LANES]);

    impl Kernel for Probe<'_> {
        type Output = Vec<u64>;
        fn run<S: Simd>(self, s: S) -> Vec<u64> {
            let (a, b, c) = (s.load(self.0), s.load(self.1), s.load(self.2));
            let mut half = [0; LANES];
            s.store_f16(a, &mut half);
            let p = s.first_lanes(s.splat(1.25), 9, s.splat(0.75));
            let n = s.max(s.splat(-150.0), s.min(s.splat(129.0), s.load(&std::array::from_fn(|l| self.0[l].trunc()))));
            let vectors = [
                s.add(a, b),
                s.sub(a, b),
                s.mul(a, b),
                s.div(a, b),
                s.fma(a, b, c),
                s.max(a, b),
                s.min(a, b),
                s.where_positive(a, b),
                s.scale_pow2(p, n),
                s.load_f16(&half),
                s.first_lanes(a, 0, b),
                s.first_lanes(a, 7, b),
                s.first_lanes(a, 16, b),
            ];
            let mut bits: Vec<u64> = half.iter().map(|&h| u64::from(h)).collect();
            for v in vectors {
                let mut lanes = [0.0; LANES];
                s.store(v, &mut lanes);
                bits.extend(lanes.iter().map(|x| u64::from(x.to_bits())));
                bits.extend([u64::from(s.sum(v).to_bits()), u64::from(s.greatest(v).to_bits())]);
            }
            bits.push(s.sum_f64(s.add_f64(s.add_f64(s.zero_f64(), a), c)).to_bits());
            bits
        }
    }

    #[test]
    fn every_isa_gives_the_bits_of_portable() {
        let mut state = 1u32;
        for round in 0..2000 {
            let mut draw = |span: f32| {
                std::array::from_fn(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * span
                })
            };
            let span = [1e-7, 0.01, 3.0, 160.0, 7e4][round % 5];
            let (a, b, c) = (draw(span), draw(1.0), draw(span));
            let expected = dispatch(Isa::Portable, Probe(&a, &b, &c));
            for isa in Isa::available() {
                assert_eq!(dispatch(isa, Probe(&a, &b, &c)), expected, "{} round {round}", isa.name());
            }
        }
    }

    /// Whole numbers divided both ways.
    struct Divide<'a>(&'a [f32; LANES], f32);

    impl Kernel for Divide<'_> {
        type Output = [[f32; LANES]; 2];
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let mut out = [[0.0; LANES]; 2];
            let (a, b) = (s.load(self.0), s.splat(self.1));
            s.store(s.quotient(a, b, s.splat(1.0 / self.1)), &mut out[0]);
            s.store(s.div(a, b), &mut out[1]);
            out
        }
    }

    #[test]
    fn quotients_are_those_of_a_division() {
        let mut state = 1u32;
        let mut draw = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state
        };
        for round in 0..200_000_u32 {
            let bits = match round % 4 {
                // Mantissas of all zeros, all ones and neighbours are the hard ones.
                0 => (draw() >> 9 & 7).wrapping_sub(3) & 0x007f_ffff,
                _ => draw() >> 9,
            };
            let divisor = f32::from_bits((127 - 49 + draw() % 98) << 23 | bits);
            let divisor = divisor.clamp(*QUOTIENT_DIVISORS.start(), *QUOTIENT_DIVISORS.end());
            let whole: [f32; LANES] = std::array::from_fn(|l| (draw().cast_signed() >> (l * 2)) as f32);
            for isa in Isa::available() {
                let [fast, exact] = dispatch(isa, Divide(&whole, divisor)).map(|values| values.map(f32::to_bits));
                assert_eq!(fast, exact, "{} {whole:?} / {divisor:e}", isa.name());
            }
        }
    }

    /// Floats divided by a sum both ways.
    struct Share<'a>(&'a [f32; LANES], f32);

    impl Kernel for Share<'_> {
        type Output = [[f32; LANES]; 2];
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let mut out = [[0.0; LANES]; 2];
            let (a, b) = (s.load(self.0), s.splat(self.1));
            s.store(s.part_of_sum(a, b, s.splat(1.0 / self.1)), &mut out[0]);
            s.store(s.div(a, b), &mut out[1]);
            out
        }
    }

    #[test]
    fn parts_of_sums_are_those_of_a_division() {
        let mut state = 7u32;
        let mut draw = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state
        };
        let odd = [0.0, -0.0, f32::INFINITY, f32::MAX, f32::MIN_POSITIVE, -1e-44, 1e-15, 1e15, 9.9e-16, 1.1e15];
        for round in 0..200_000_usize {
            let mantissa = if round % 4 == 0 { (draw() >> 9 & 7).wrapping_sub(3) & 0x007f_ffff } else { draw() >> 9 };
            let sum = f32::from_bits((127 + draw() % 29) << 23 | mantissa);
            // Magnitudes within the usual ones, of all kinds, or an odd one among them.
            let (low, span) = if round % 3 == 0 { (0, 255) } else { (127 - 49, 98) };
            let mut parts: [f32; LANES] =
                std::array::from_fn(|_| f32::from_bits((low + draw() % span) << 23 | draw() & 0x807f_ffff));
            if round % 5 == 0 {
                parts[round / 5 % LANES] = odd[round / 80 % odd.len()];
            }
            for isa in Isa::available() {
                let [fast, exact] = dispatch(isa, Share(&parts, sum)).map(|values| values.map(f32::to_bits));
                assert_eq!(fast, exact, "{} {parts:?} / {sum:e}", isa.name());
            }
        }
    }

    /// F16 conversions of one vector, there and back.
    struct HalfRoundTrip<'a>(&'a [u16; LANES]);

    impl Kernel for HalfRoundTrip<'_> {
        type Output = ([f32; LANES], [u16; LANES]);
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let v = s.load_f16(self.0);
            let (mut wide, mut narrow) = ([0.0; LANES], [0; LANES]);
            s.store(v, &mut wide);
            s.store_f16(v, &mut narrow);
            (wide, narrow)
        }
    }

    #[test]
    fn f16_vectors_convert_like_the_scalar_for_all_values() {
        for start in (0..=u16::MAX).step_by(LANES) {
            let half = std::array::from_fn(|l| start + l as u16);
            for isa in Isa::available() {
                let (wide, narrow) = dispatch(isa, HalfRoundTrip(&half));
                for l in 0..LANES {
                    assert_eq!(wide[l].to_bits(), math::f16_to_f32(half[l]).to_bits(), "{} {:#x}", isa.name(), half[l]);
                    assert_eq!(narrow[l], math::f32_to_f16(wide[l]), "{} {:#x}", isa.name(), half[l]);
                }
            }
        }
    }
}
