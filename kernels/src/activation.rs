//! Gated activations of the feed-forward part, and the residual sum.

use crate::Isa;
use crate::math::exp_lanes;
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// `out = gate^2 * up` where `gate > 0`, else 0 whatever `up` is, all slices of one length.
///
/// So the rows of an up projection whose gate is not positive need not be computed.
///
/// # Panics
/// If the lengths differ.
pub fn relu2_mul(isa: Isa, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert_eq!(gate.len(), up.len(), "one factor per gate");
    assert_eq!(gate.len(), out.len(), "one result per gate");
    dispatch(isa, Relu2 { gate, up, out });
}

/// `out = gate / (1 + exp(-gate)) * up`, all slices of one length.
///
/// # Panics
/// If the lengths differ.
pub fn silu_mul(isa: Isa, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert_eq!(gate.len(), up.len(), "one factor per gate");
    assert_eq!(gate.len(), out.len(), "one result per gate");
    dispatch(isa, Silu { gate, up, out });
}

/// `out = gelu(gate) * up`, all slices of one length, by the tanh form: gate / (1 + exp(-2 sqrt(2/pi) (gate + 0.044715
/// gate^3))).
///
/// # Panics
/// If the lengths differ.
pub fn gelu_mul(isa: Isa, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert_eq!(gate.len(), up.len(), "one factor per gate");
    assert_eq!(gate.len(), out.len(), "one result per gate");
    dispatch(isa, Gelu { gate, up, out });
}

/// `x *= factor`.
pub fn scale(isa: Isa, x: &mut [f32], factor: f32) {
    dispatch(isa, Scale { x, factor });
}

/// `x += y`, both of one length.
///
/// # Panics
/// If the lengths differ.
pub fn add_assign(isa: Isa, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "one summand per value");
    dispatch(isa, AddAssign { x, y });
}

/// [`relu2_mul`] of 16 values.
#[inline(always)]
pub(crate) fn relu2_lanes<S: Simd>(s: S, gate: S::F, up: S::F) -> S::F {
    s.where_positive(gate, s.mul(s.mul(gate, gate), up))
}

/// [`silu_mul`] of 16 values.
#[inline(always)]
pub(crate) fn silu_lanes<S: Simd>(s: S, gate: S::F, up: S::F) -> S::F {
    let decay = exp_lanes(s, s.sub(s.splat(0.0), gate));
    s.mul(s.div(gate, s.add(s.splat(1.0), decay)), up)
}

struct Relu2<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Relu2<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for ((gate, up), out) in self.gate.chunks(LANES).zip(self.up.chunks(LANES)).zip(self.out.chunks_mut(LANES)) {
            s.store_part(relu2_lanes(s, s.load_part(gate, 0.0), s.load_part(up, 0.0)), out);
        }
    }
}

struct Silu<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Silu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for ((gate, up), out) in self.gate.chunks(LANES).zip(self.up.chunks(LANES)).zip(self.out.chunks_mut(LANES)) {
            s.store_part(silu_lanes(s, s.load_part(gate, 0.0), s.load_part(up, 0.0)), out);
        }
    }
}

struct Gelu<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Gelu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for ((gate, up), out) in self.gate.chunks(LANES).zip(self.up.chunks(LANES)).zip(self.out.chunks_mut(LANES)) {
            let (gate, up) = (s.load_part(gate, 0.0), s.load_part(up, 0.0));
            let inner = s.fma(s.mul(gate, gate), s.splat(GELU_CUBE), s.splat(GELU_LINEAR));
            let decay = exp_lanes(s, s.sub(s.splat(0.0), s.mul(gate, inner)));
            s.store_part(s.mul(s.div(gate, s.add(s.splat(1.0), decay)), up), out);
        }
    }
}

struct Scale<'a> {
    x: &'a mut [f32],
    factor: f32,
}

impl Kernel for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for x in self.x.chunks_mut(LANES) {
            s.store_part(s.mul(s.load_part(x, 0.0), s.splat(self.factor)), x);
        }
    }
}

struct AddAssign<'a> {
    x: &'a mut [f32],
    y: &'a [f32],
}

impl Kernel for AddAssign<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, y) in self.x.chunks_mut(LANES).zip(self.y.chunks(LANES)) {
            s.store_part(s.add(s.load_part(x, 0.0), s.load_part(y, 0.0)), x);
        }
    }
}

/// 2 sqrt(2/pi).
const GELU_LINEAR: f32 = 1.595_769;
/// The same times 0.044715.
const GELU_CUBE: f32 = 0.071_354_82;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Draw, lengths, same_bits};

    type Gated = fn(Isa, &[f32], &[f32], &mut [f32]);

    #[test]
    fn every_isa_gives_the_same_bits_at_every_length() {
        let mut draw = Draw::new(3);
        for n in lengths() {
            let (gate, up) = (draw.floats(n, 30.0), draw.floats(n, 3.0));
            for f in [relu2_mul as Gated, silu_mul, gelu_mul] {
                let mut expected = vec![0.0; n];
                f(Isa::Portable, &gate, &up, &mut expected);
                for isa in Isa::available() {
                    let mut out = vec![f32::NAN; n];
                    f(isa, &gate, &up, &mut out);
                    same_bits(&out, &expected, isa.name());
                }
            }
            let expected: Vec<f32> = gate.iter().zip(&up).map(|(a, b)| a + b).collect();
            for isa in Isa::available() {
                let mut sum = gate.clone();
                add_assign(isa, &mut sum, &up);
                same_bits(&sum, &expected, isa.name());
            }
            let expected: Vec<f32> = gate.iter().map(|x| x * 25.298_22).collect();
            for isa in Isa::available() {
                let mut scaled = gate.clone();
                scale(isa, &mut scaled, 25.298_22);
                same_bits(&scaled, &expected, isa.name());
            }
        }
    }

    #[test]
    fn squared_relu_is_exact_and_zero_below_zero() {
        let mut out = [9.0; 4];
        relu2_mul(Isa::detect(), &[3.0, -3.0, 0.5, -0.0], &[2.0, 5.0, -8.0, 1.0], &mut out);
        assert_eq!(out, [18.0, 0.0, -2.0, 0.0]);
        for isa in Isa::available() {
            let up = [f32::INFINITY, f32::NAN, -1.0, 7.0];
            relu2_mul(isa, &[0.0, -1.0, -2.0, f32::NAN], &up, &mut out);
            assert_eq!(out.map(f32::to_bits), [0; 4], "{isa:?}");
        }
    }

    #[test]
    fn silu_is_near_the_f64_formula() {
        let mut draw = Draw::new(4);
        let (gate, up) = (draw.floats(5000, 90.0), draw.floats(5000, 2.0));
        let mut out = vec![0.0; 5000];
        silu_mul(Isa::detect(), &gate, &up, &mut out);
        for i in 0..out.len() {
            let g = f64::from(gate[i]);
            let truth = g / (1.0 + (-g).exp()) * f64::from(up[i]);
            assert!((f64::from(out[i]) - truth).abs() <= 4e-7 * truth.abs() + 1e-36, "{g}: {} {truth}", out[i]);
        }
    }

    #[test]
    fn gelu_is_near_the_f64_formula() {
        let mut draw = Draw::new(5);
        let (gate, up) = (draw.floats(5000, 12.0), draw.floats(5000, 2.0));
        let mut out = vec![0.0; 5000];
        gelu_mul(Isa::detect(), &gate, &up, &mut out);
        for i in 0..out.len() {
            let g = f64::from(gate[i]);
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044_715 * g * g * g);
            let truth = 0.5 * g * (1.0 + inner.tanh()) * f64::from(up[i]);
            // The exponent's rounding weighs as much as the exponent is large; tanh itself cancels far below zero.
            let bound = (4e-7 + 2.5e-7 * inner.abs()) * truth.abs() + 1e-14;
            assert!((f64::from(out[i]) - truth).abs() <= bound, "{g}: {} {truth}", out[i]);
        }
        gelu_mul(Isa::detect(), &[1e30, -1e30, 0.0], &[1.0; 3], &mut out[..3]);
        assert_eq!(out[..3], [1e30, 0.0, 0.0]);
    }
}
