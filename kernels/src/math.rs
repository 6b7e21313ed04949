//! Scalar functions that every ISA agrees on: exp, log and the F16 conversions.

use crate::simd::Simd;

/// e^x within 1 ulp, the bits of the vector kernels; -inf and underflow give 0, overflow infinity, NaN NaN.
///
/// Cody-Waite reduction to |r| <= ln(2)/2, then a minimax polynomial of degree 6 (relative error 3.7e-9).
#[must_use]
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let high = if EXP_MAX < x { EXP_MAX } else { x };
    let x = if EXP_MIN > high { EXP_MIN } else { high };
    let n = x.mul_add(LOG2_E, ROUND) - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    let mut p = EXP_COEFFICIENTS[0];
    for c in &EXP_COEFFICIENTS[1..] {
        p = p.mul_add(r, *c);
    }
    scale_pow2((r * r).mul_add(p, r) + 1.0, n)
}

/// [`exp`] of 16 lanes.
#[inline(always)]
pub(crate) fn exp_lanes<S: Simd>(s: S, x: S::F) -> S::F {
    let [exp] = exp_of(s, [x]);
    exp
}

/// [`exp`] of N vectors, step by step for all of them: each step waits for the one before, and a scheduler that holds
/// whole vectors one behind the other holds too few (20 cycles a vector of a softmax, four at a time 9).
#[inline(always)]
pub(crate) fn exp_of<S: Simd, const N: usize>(s: S, mut x: [S::F; N]) -> [S::F; N] {
    let round = s.splat(ROUND);
    for x in &mut x {
        *x = s.max(s.splat(EXP_MIN), s.min(s.splat(EXP_MAX), *x));
    }
    let mut n = x;
    for n in &mut n {
        *n = s.sub(s.fma(*n, s.splat(LOG2_E), round), round);
    }
    let mut r = x;
    for (r, n) in r.iter_mut().zip(n) {
        *r = s.fma(n, s.splat(-LN_2_HIGH), *r);
    }
    for (r, n) in r.iter_mut().zip(n) {
        *r = s.fma(n, s.splat(-LN_2_LOW), *r);
    }
    let mut p = [s.splat(EXP_COEFFICIENTS[0]); N];
    for c in &EXP_COEFFICIENTS[1..] {
        for (p, r) in p.iter_mut().zip(r) {
            *p = s.fma(*p, r, s.splat(*c));
        }
    }
    for (p, r) in p.iter_mut().zip(r) {
        *p = s.add(s.fma(s.mul(r, r), *p, r), s.splat(1.0));
    }
    for ((p, n), x) in p.iter_mut().zip(n).zip(x) {
        *p = s.scale_pow2_above(*p, n, x, s.splat(EXP_MIN));
    }
    p
}

/// `p * 2^n` for |p| in [0.5, 2] and integers n in [-150, 129]: two exact powers, so only the last product rounds.
#[inline(always)]
pub(crate) fn scale_pow2(p: f32, n: f32) -> f32 {
    let n = n as i32;
    let first = n >> 1;
    p * pow2(first) * pow2(n - first)
}

#[inline(always)]
fn pow2(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

/// Natural logarithm, the same on every machine.
#[must_use]
pub fn log(x: f64) -> f64 {
    libm::log(x)
}

/// The value of F16 bits; exact, NaN quietened.
#[must_use]
#[inline(always)]
pub fn f16_to_f32(half: u16) -> f32 {
    let sign = u32::from(half & 0x8000) << 16;
    let rest = u32::from(half & 0x7fff) << 13;
    let magnitude = if half & 0x7c00 == 0x7c00 {
        let quiet = if rest > 0x0f80_0000 { 0x0040_0000 } else { 0 };
        0x7000_0000 | rest | quiet
    } else {
        // An f32 with F16's exponent is too small by 2^112, subnormals included.
        (f32::from_bits(rest) * f32::from_bits((112 + 127) << 23)).to_bits()
    };
    f32::from_bits(sign | magnitude)
}

/// F16 bits nearest to `x`, ties to even; 65520 and above give infinity, NaN stays NaN.
#[must_use]
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "every branch yields 16 bits")]
pub fn f32_to_f16(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16) as u16 & 0x8000;
    let magnitude = x.to_bits() & 0x7fff_ffff;
    let half = if magnitude > 0x7f80_0000 {
        0x7e00 | (magnitude >> 13) & 0x3ff
    } else if magnitude >= 0x477f_f000 {
        0x7c00
    } else if magnitude < 0x3880_0000 {
        // Below 2^-14 the step is 2^-24, which is the step of f32 at 0.5: the sum rounds as wanted.
        (f32::from_bits(magnitude) + 0.5).to_bits() - 0.5f32.to_bits()
    } else {
        (magnitude - (112 << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13
    };
    sign | half as u16
}

/// Past these exp is infinite or zero; they keep `n` inside the range of [`scale_pow2`].
const EXP_MAX: f32 = 89.0;
const EXP_MIN: f32 = -104.0;
/// 1.5 * 2^23: adding and subtracting it rounds to an integer.
const ROUND: f32 = 12_582_912.0;
const LOG2_E: f32 = std::f32::consts::LOG2_E;
const LN_2_HIGH: f32 = std::f32::consts::LN_2;
/// ln(2) - `LN_2_HIGH`.
const LN_2_LOW: f32 = -1.904_654_2e-9;
/// Minimax fit of (e^r - 1 - r) / r^2, highest power first.
const EXP_COEFFICIENTS: [f32; 5] = [0.001_381_453_8, 0.008_368_745, 0.041_668_39, 0.166_665_21, 0.499_999_94];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::simd::{Kernel, LANES, dispatch};

    struct Exp([f32; LANES]);

    impl Kernel for Exp {
        type Output = [f32; LANES];
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let mut out = [0.0; LANES];
            s.store(exp_lanes(s, s.load(&self.0)), &mut out);
            out
        }
    }

    #[test]
    fn exp_is_within_one_ulp_of_f64() {
        let mut worst = 0.0f64;
        for step in 0..4_000_000 {
            let x = -103.9 + step as f32 * (192.6 / 4_000_000.0);
            let (got, truth) = (exp(x), f64::from(x).exp());
            if truth >= f64::from(f32::MAX) {
                continue;
            }
            let ulp = f64::from(got.next_up()) - f64::from(got);
            worst = worst.max((f64::from(got) - truth).abs() / ulp);
        }
        assert!(worst < 1.0, "{worst} ulp");
    }

    #[test]
    fn exp_keeps_its_limits() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(88.73), f32::INFINITY);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(88.72) < f32::INFINITY);
        assert!(exp(-103.0) > 0.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn exp_has_the_same_bits_on_every_isa() {
        let special = [f32::NEG_INFINITY, f32::INFINITY, 0.0, -0.0, -104.5, 88.9, -87.5, 1e-40];
        for step in 0..200_000 {
            let swept = |l| -105.0 + (step * LANES + l) as f32 * 6.1e-5;
            let x = std::array::from_fn(|l| special.get(step).copied().unwrap_or_else(|| swept(l)));
            for isa in Isa::available() {
                let got = dispatch(isa, Exp(x));
                for l in 0..LANES {
                    assert_eq!(got[l].to_bits(), exp(x[l]).to_bits(), "{} exp({})", isa.name(), x[l]);
                }
            }
        }
        for isa in Isa::available() {
            assert!(dispatch(isa, Exp([f32::NAN; LANES])).iter().all(|x| x.is_nan()));
        }
    }

    #[test]
    fn every_f16_survives_the_round_trip() {
        for half in 0..=u16::MAX {
            let wide = f16_to_f32(half);
            let quiet = if wide.is_nan() { 0x200 } else { 0 };
            assert_eq!(f32_to_f16(wide), half | quiet, "{half:#x}");
        }
        assert_eq!(f16_to_f32(0x3c00), 1.0);
        assert_eq!(f16_to_f32(0x7bff), 65504.0);
        assert_eq!(f16_to_f32(1), 2.0f32.powi(-24));
        assert_eq!(f16_to_f32(0x8400), -(2.0f32.powi(-14)));
        assert_eq!(f16_to_f32(0xfc00), f32::NEG_INFINITY);
    }

    #[test]
    fn f16_rounds_to_nearest_even_between_all_neighbours() {
        for half in 0..0x7c00u16 {
            let (low, high) = (f16_to_f32(half), f16_to_f32(half + 1));
            let high = if high.is_infinite() { 65536.0 } else { high };
            let middle = (low + high) / 2.0;
            assert_eq!(f32_to_f16(middle), half + (half & 1), "{half:#x}");
            assert_eq!(f32_to_f16(middle.next_down()), half);
            assert_eq!(f32_to_f16(middle.next_up()), half + 1);
            assert_eq!(f32_to_f16(-middle.next_up()), 0x8000 | (half + 1));
        }
        assert_eq!(f32_to_f16(f32::MIN_POSITIVE), 0);
        assert_eq!(f32_to_f16(1e30), 0x7c00);
    }
}
