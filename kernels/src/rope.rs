//! Rotary position embedding: cosines and sines of a position, applied to one head at a time.

use crate::Isa;
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Which values of a head form the pairs that are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeKind {
    /// Value i with value i + `rot_dims` / 2 (bitnet, bitnet-b1.58, qwen3, gemma3).
    Neox,
    /// Value 2i with value 2i + 1 (llama).
    Norm,
}

/// What the angles of a model's positions are made from.
///
/// The angle of pair i at position p is `p * freq_scale * freq_base^(-2i / rot_dims) / freq_factors[i]`, in f32 and by
/// repeated multiplication, as `ggml_rope_cache_init` does it: angles in f64 are nearer to the formula, but flip F16
/// keys and later int8 activations against the reference (3.5e-3 instead of 1.4e-7 in the logits after 13 tokens).
#[derive(Clone, Debug)]
pub struct Rope {
    half: usize,
    /// From the angle of a pair to that of the next.
    ratio: f32,
    freq_scale: f32,
    freq_factors: Option<Box<[f32]>>,
}

impl Rope {
    /// `rot_dims` is even and at most `head_dim`; `freq_scale` is 1 or the reciprocal of a linear scaling factor;
    /// `freq_factors` has `rot_dims / 2` divisors (`rope_freqs.weight`).
    ///
    /// # Panics
    /// If the sizes contradict each other.
    #[must_use]
    pub fn new(
        head_dim: usize,
        rot_dims: usize,
        freq_base: f32,
        freq_scale: f32,
        freq_factors: Option<Box<[f32]>>,
    ) -> Self {
        assert!(rot_dims.is_multiple_of(2) && rot_dims <= head_dim, "{rot_dims} of {head_dim} dimensions rotated");
        let half = rot_dims / 2;
        assert!(freq_factors.as_ref().is_none_or(|f| f.len() == half), "one frequency factor per pair");
        let ratio = libm::pow(f64::from(freq_base), -2.0 / rot_dims as f64) as f32;
        Self { half, ratio, freq_scale, freq_factors }
    }

    /// Floats that [`Rope::cos_sin`] writes for a position, `rot_dims`.
    #[must_use]
    pub fn cos_sin_len(&self) -> usize {
        2 * self.half
    }

    /// Cosines of the angles of all pairs at `position`, then their sines: `[2][rot_dims / 2]`.
    ///
    /// # Panics
    /// If `out` is not [`Rope::cos_sin_len`] long.
    pub fn cos_sin(&self, isa: Isa, position: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cos_sin_len(), "a cosine and a sine per pair");
        let (cos, sin) = out.split_at_mut(self.half);
        let mut angle = position as f32;
        for (i, to) in cos.iter_mut().enumerate() {
            *to = self.freq_scale * (angle / self.freq_factors.as_ref().map_or(1.0, |f| f[i]));
            angle *= self.ratio;
        }
        dispatch(isa, CosSin { angles_to_cos: cos, sin });
    }
}

struct CosSin<'a> {
    angles_to_cos: &'a mut [f32],
    sin: &'a mut [f32],
}

impl Kernel for CosSin<'_> {
    type Output = ();

    /// Scalar source: the pairs do not interact, so the compiler vectorises it and the bits stay.
    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        for (cos, sin) in self.angles_to_cos.iter_mut().zip(self.sin) {
            (*cos, *sin) = cos_sin(*cos);
        }
    }
}

/// Cosine and sine, computed in f64 to some 2 units in its last place: but for one value in 2^27 or so what comes out is the
/// f32 that is nearest. Angles beyond 10^6 lose places as their own distances grow.
#[inline(always)]
fn cos_sin(angle: f32) -> (f32, f32) {
    let angle = f64::from(angle);
    // To the nearest whole number of quarter turns, which lies in the last bits of the sum.
    let quarters = angle * std::f64::consts::FRAC_2_PI + TO_WHOLE;
    let (n, quadrant) = (quarters - TO_WHOLE, quarters.to_bits());
    let rest = ((angle - n * QUARTER[0]) - n * QUARTER[1]) - n * QUARTER[2];
    let square = rest * rest;
    let sin = rest + rest * square * polynomial(SIN, square);
    let cos = (1.0 - 0.5 * square) + square * square * polynomial(COS, square);
    let (cos, sin) = if quadrant & 1 == 0 { (cos, sin) } else { (sin, cos) };
    let sign = |negative: u64| (negative & 2) << 62;
    let signed = |value: f64, sign: u64| f64::from_bits(value.to_bits() ^ sign) as f32;
    (signed(cos, sign(quadrant.wrapping_add(1))), signed(sin, sign(quadrant)))
}

#[inline(always)]
fn polynomial<const N: usize>(coefficients: [f64; N], x: f64) -> f64 {
    let mut sum = coefficients[N - 1];
    for i in (0..N - 1).rev() {
        sum = sum * x + coefficients[i];
    }
    sum
}

/// Added to a number below 2^51, it leaves no place for fractions.
const TO_WHOLE: f64 = 6_755_399_441_055_744.0;
/// A quarter turn in parts of 33 bits, whose products with whole numbers below 2^20 are exact, and the rest.
const QUARTER: [f64; 3] = [
    f64::from_bits(0x3ff9_21fb_5440_0000),
    f64::from_bits(0x3dd0_b461_1a60_0000),
    f64::from_bits(0x3ba3_198a_2e03_7073),
];
/// Taylor's series behind the first term of the sine and the first two of the cosine: up to an eighth of a turn what is left out
/// is below 2^-60.
const SIN: [f64; 8] = [
    -1.0 / 6.0,
    1.0 / 120.0,
    -1.0 / 5_040.0,
    1.0 / 362_880.0,
    -1.0 / 39_916_800.0,
    1.0 / 6_227_020_800.0,
    -1.0 / 1_307_674_368_000.0,
    1.0 / 355_687_428_096_000.0,
];
const COS: [f64; 8] = [
    1.0 / 24.0,
    -1.0 / 720.0,
    1.0 / 40_320.0,
    -1.0 / 3_628_800.0,
    1.0 / 479_001_600.0,
    -1.0 / 87_178_291_200.0,
    1.0 / 20_922_789_888_000.0,
    -1.0 / 6_402_373_705_728_000.0,
];

/// Rotates one head (`head_dim` values, of which the first `rot_dims` change) by what [`Rope::cos_sin`] gave for its position.
///
/// Pair (a, b) becomes (a cos - b sin, a sin + b cos): the second product of each rounded, the first fused to it, as C
/// compilers usually contract such a line.
///
/// # Panics
/// If `x` is shorter than `cos_sin`.
pub fn apply(isa: Isa, cos_sin: &[f32], kind: RopeKind, x: &mut [f32]) {
    let (cos, sin) = cos_sin.split_at(cos_sin.len() / 2);
    let rotated = &mut x[..cos_sin.len()];
    match kind {
        RopeKind::Neox => dispatch(isa, Halves { cos, sin, x: rotated }),
        RopeKind::Norm => dispatch(isa, Pairs { cos, sin, x: rotated }),
    }
}

struct Halves<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    x: &'a mut [f32],
}

impl Kernel for Halves<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (low, high) = self.x.split_at_mut(self.cos.len());
        let (lows, low) = low.as_chunks_mut::<LANES>();
        let (highs, high) = high.as_chunks_mut::<LANES>();
        let ((cosines, cos), (sines, sin)) = (self.cos.as_chunks::<LANES>(), self.sin.as_chunks::<LANES>());
        for ((a, b), (cos, sin)) in lows.iter_mut().zip(highs).zip(cosines.iter().zip(sines)) {
            let turned = turn(s, [s.load(a), s.load(b)], [s.load(cos), s.load(sin)]);
            s.store(turned[0], a);
            s.store(turned[1], b);
        }
        if !low.is_empty() {
            let (cos, sin) = (s.load_part(cos, 0.0), s.load_part(sin, 0.0));
            let turned = turn(s, [s.load_part(low, 0.0), s.load_part(high, 0.0)], [cos, sin]);
            s.store_part(turned[0], low);
            s.store_part(turned[1], high);
        }
    }
}

#[inline(always)]
fn turn<S: Simd>(s: S, [a, b]: [S::F; 2], [cos, sin]: [S::F; 2]) -> [S::F; 2] {
    let minus_b = s.mul(b, s.splat(-1.0));
    [s.fma(a, cos, s.mul(minus_b, sin)), s.fma(a, sin, s.mul(b, cos))]
}

struct Pairs<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    x: &'a mut [f32],
}

impl Kernel for Pairs<'_> {
    type Output = ();

    /// Scalar source: the pairs do not interact, so the compiler vectorises it and the bits stay.
    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        for ([a, b], (cos, sin)) in self.x.as_chunks_mut::<2>().0.iter_mut().zip(self.cos.iter().zip(self.sin)) {
            (*a, *b) = (a.mul_add(*cos, -*b * sin), a.mul_add(*sin, *b * cos));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Draw, same_bits};

    const HEADS: [(usize, usize); 7] = [(64, 64), (128, 128), (100, 100), (80, 32), (256, 256), (6, 2), (16, 0)];

    fn cos_sin_at(isa: Isa, rope: &Rope, position: usize) -> Vec<f32> {
        let mut cos_sin = vec![f32::NAN; rope.cos_sin_len()];
        rope.cos_sin(isa, position, &mut cos_sin);
        cos_sin
    }

    #[test]
    fn every_isa_gives_the_same_bits() {
        let mut draw = Draw::new(1);
        for (head_dim, rot_dims) in HEADS {
            let rope = Rope::new(head_dim, rot_dims, 5e5, 1.0, None);
            for kind in [RopeKind::Neox, RopeKind::Norm] {
                for position in [0, 1, 37, 99, 131_071, 1 << 24] {
                    let x = draw.floats(head_dim, 10.0);
                    let plain = cos_sin_at(Isa::Portable, &rope, position);
                    let mut expected = x.clone();
                    apply(Isa::Portable, &plain, kind, &mut expected);
                    for isa in Isa::available() {
                        let own = cos_sin_at(isa, &rope, position);
                        same_bits(&own, &plain, isa.name());
                        let mut got = x.clone();
                        apply(isa, &own, kind, &mut got);
                        same_bits(&got, &expected, isa.name());
                    }
                }
            }
        }
    }

    #[test]
    fn rotation_is_near_the_f64_formula() {
        let mut draw = Draw::new(2);
        for (head_dim, rot_dims) in HEADS {
            let half = rot_dims / 2;
            let factors: Box<[f32]> = (0..half).map(|i| 1.0 + i as f32 / 8.0).collect();
            let rope = Rope::new(head_dim, rot_dims, 1e4, 0.25, Some(factors.clone()));
            for (kind, position) in [(RopeKind::Neox, 4096usize), (RopeKind::Norm, 4096), (RopeKind::Neox, 3)] {
                let x = draw.floats(head_dim, 4.0);
                let mut got = x.clone();
                apply(Isa::detect(), &cos_sin_at(Isa::detect(), &rope, position), kind, &mut got);
                for (i, factor) in factors.iter().enumerate() {
                    let (ia, ib) = if kind == RopeKind::Neox { (i, i + half) } else { (2 * i, 2 * i + 1) };
                    let frequency = 1e4f64.powf(-2.0 * i as f64 / rot_dims as f64) * 0.25 / f64::from(*factor);
                    let angle = position as f64 * frequency;
                    let (sin, cos) = angle.sin_cos();
                    let (a, b) = (f64::from(x[ia]), f64::from(x[ib]));
                    // Each multiplication of the angle, and the ratio in it, is off by half a unit in the last place.
                    let bound = 1e-6 + 8.0 * angle * (i + 2) as f64 * f64::from(f32::EPSILON);
                    assert!((f64::from(got[ia]) - (a * cos - b * sin)).abs() < bound, "{kind:?} pair {i}");
                    assert!((f64::from(got[ib]) - (a * sin + b * cos)).abs() < bound, "{kind:?} pair {i}");
                }
                same_bits(&got[rot_dims..], &x[rot_dims..], "dimensions that are not rotated");
            }
        }
    }

    #[test]
    fn angles_are_products_of_f32() {
        let rope = Rope::new(64, 64, 5e5, 1.0, None);
        let ratio = 5e5f64.powf(-2.0 / 64.0) as f32;
        let angle = 999.0f32 * ratio * ratio * ratio;
        let got = cos_sin_at(Isa::detect(), &rope, 999);
        assert_eq!((got[3], got[32 + 3]), (f64::from(angle).cos() as f32, f64::from(angle).sin() as f32));
    }

    #[test]
    fn position_zero_changes_nothing() {
        let rope = Rope::new(64, 64, 1e4, 1.0, None);
        let x = Draw::new(5).floats(64, 1.0);
        let mut got = x.clone();
        apply(Isa::detect(), &cos_sin_at(Isa::detect(), &rope, 0), RopeKind::Norm, &mut got);
        assert_eq!(got, x);
    }

    /// Against another implementation in f64, of the positions and bases that models have.
    #[test]
    fn cosines_and_sines_are_the_nearest_floats() {
        for (base, positions) in [(1e4, 0..4096), (5e5, 0..4096), (1e6, 28_672..32_768), (5e5, 126_976..131_072)] {
            let rope = Rope::new(128, 128, base, 1.0, None);
            let ratio = rope.ratio;
            for position in positions {
                let got = cos_sin_at(Isa::detect(), &rope, position);
                let mut angle = position as f32;
                for (cos, sin) in got[..64].iter().zip(&got[64..]) {
                    let wanted = libm::sincos(f64::from(angle));
                    assert_eq!((*sin, *cos), (wanted.0 as f32, wanted.1 as f32), "{angle}");
                    angle *= ratio;
                }
            }
        }
        let mut draw = Draw::new(9);
        for angle in draw.floats(20_000, 1e6).into_iter().chain([1e9, -1e9, 1e12]) {
            let (cos, sin) = cos_sin(angle);
            let wanted = libm::sincos(f64::from(angle));
            let bound = 1e-7 + f64::from(angle.abs()) * 1e-15;
            assert!((f64::from(sin) - wanted.0).abs() < bound && (f64::from(cos) - wanted.1).abs() < bound, "{angle}");
        }
    }
}
