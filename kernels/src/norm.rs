//! RMS normalisation.

use crate::Isa;
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// `out = x * (1 / sqrt(mean(x^2) + eps)) * weight`, all slices of one length.
///
/// ggml's order, so that later int8 roundings fall as in the reference: squares rounded to f32 and summed in f64,
/// the mean rounded to f32, then f32 throughout, `x * scale` first and the weight after.
///
/// # Panics
/// If the lengths differ.
pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    rms_norm_ahead(isa, x, weight, eps, out, &[]);
}

/// [`rms_norm`], and what is known of the results by the way: the greatest magnitude among them, NaN passed over. Asks for
/// `ahead` meanwhile, where the next call reads on.
///
/// # Panics
/// If the lengths differ.
pub fn rms_norm_ahead(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32], ahead: &[f32]) -> f32 {
    assert_eq!(x.len(), weight.len(), "one weight per value");
    assert_eq!(x.len(), out.len(), "one result per value");
    if x.is_empty() { 0.0 } else { dispatch(isa, RmsNorm { x, weight, eps, out, ahead }) }
}

/// [`rms_norm`] of `x` into itself.
///
/// # Panics
/// If the lengths differ.
pub fn rms_norm_in_place(isa: Isa, x: &mut [f32], weight: &[f32], eps: f32) {
    assert_eq!(x.len(), weight.len(), "one weight per value");
    if !x.is_empty() {
        dispatch(isa, RmsNormInPlace { x, weight, eps });
    }
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
    ahead: &'a [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        // Half of it in each pass: asked for in one, memory is idle in the other and in what comes between two rows.
        let (early, late) = self.ahead.as_chunks::<LANES>().0.split_at(self.ahead.len() / LANES / 2);
        let scale = s.splat(factor(s, self.x, self.eps, early));
        let (x, x_rest) = self.x.as_chunks::<LANES>();
        let (weight, weight_rest) = self.weight.as_chunks::<LANES>();
        let (out, out_rest) = self.out.as_chunks_mut::<LANES>();
        // Two chains each: one would wait for itself. The second of two where one is NaN.
        let (mut greatest, mut least) = ([s.splat(0.0); 2], [s.splat(0.0); 2]);
        let ((x, x_last), (weight, weight_last)) = (x.as_chunks::<2>(), weight.as_chunks::<2>());
        let (out, out_last) = out.as_chunks_mut::<2>();
        for (i, ((x, w), out)) in x.iter().zip(weight).zip(out).enumerate() {
            if let Some(line) = late.get(i) {
                s.prefetch(line.as_ptr());
            }
            for side in 0..2 {
                let y = s.mul(s.mul(s.load(&x[side]), scale), s.load(&w[side]));
                s.store(y, &mut out[side]);
                (greatest[side], least[side]) = (s.max(y, greatest[side]), s.min(y, least[side]));
            }
        }
        for ((x, w), out) in x_last.iter().zip(weight_last).zip(out_last) {
            let y = s.mul(s.mul(s.load(x), scale), s.load(w));
            s.store(y, out);
            (greatest[0], least[0]) = (s.max(y, greatest[0]), s.min(y, least[0]));
        }
        if !x_rest.is_empty() {
            let y = s.mul(s.mul(s.load_part(x_rest, 0.0), scale), s.load_part(weight_rest, 0.0));
            s.store_part(y, out_rest);
            (greatest[1], least[1]) = (s.max(y, greatest[1]), s.min(y, least[1]));
        }
        let (greatest, least) = (s.max(greatest[0], greatest[1]), s.min(least[0], least[1]));
        s.greatest(s.max(greatest, s.sub(s.splat(0.0), least)))
    }
}

struct RmsNormInPlace<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for RmsNormInPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let scale = s.splat(factor(s, self.x, self.eps, &[]));
        for (x, w) in self.x.chunks_mut(LANES).zip(self.weight.chunks(LANES)) {
            let y = s.mul(s.load_part(x, 0.0), scale);
            s.store_part(s.mul(y, s.load_part(w, 0.0)), x);
        }
    }
}

/// 1 / sqrt(mean(x^2) + eps). Asks for `ahead` meanwhile, a line for two vectors.
#[inline(always)]
fn factor<S: Simd>(s: S, x: &[f32], eps: f32, ahead: &[[f32; LANES]]) -> f32 {
    // Two accumulators hide the latency of the f64 sums.
    let mut squares = [s.zero_f64(); 2];
    let (vectors, rest) = x.as_chunks::<LANES>();
    let (pairs, last) = vectors.as_chunks::<2>();
    for (i, [first, second]) in pairs.iter().enumerate() {
        if let Some(line) = ahead.get(i) {
            s.prefetch(line.as_ptr());
        }
        let (a, b) = (s.load(first), s.load(second));
        squares[0] = s.add_f64(squares[0], s.mul(a, a));
        squares[1] = s.add_f64(squares[1], s.mul(b, b));
    }
    // The last pair, which is not whole.
    let (first, second) = match last {
        [first] => (&first[..], rest),
        _ => (rest, &rest[..0]),
    };
    let (a, b) = (s.load_part(first, 0.0), s.load_part(second, 0.0));
    squares[0] = s.add_f64(squares[0], s.mul(a, a));
    squares[1] = s.add_f64(squares[1], s.mul(b, b));
    let sum = s.sum_f64(squares[0]) + s.sum_f64(squares[1]);
    let mean = (sum / x.len() as f64) as f32;
    1.0 / (mean + eps).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Draw, lengths, same_bits};

    #[test]
    fn every_isa_gives_the_same_bits_at_every_length() {
        let mut draw = Draw::new(7);
        for n in lengths() {
            let (x, w) = (draw.floats(n, 40.0), draw.floats(n, 2.0));
            let mut expected = vec![0.0; n];
            rms_norm(Isa::Portable, &x, &w, 1e-5, &mut expected);
            for isa in Isa::available() {
                let mut out = vec![f32::NAN; n];
                let greatest = rms_norm_ahead(isa, &x, &w, 1e-5, &mut out, &w[n / 3..]);
                same_bits(&out, &expected, isa.name());
                assert_eq!(greatest, expected.iter().fold(0.0, |most, y| y.abs().max(most)), "{} {n}", isa.name());
                out.copy_from_slice(&x);
                rms_norm_in_place(isa, &mut out, &w, 1e-5);
                same_bits(&out, &expected, isa.name());
            }
        }
    }

    #[test]
    fn result_is_near_the_f64_formula() {
        let mut draw = Draw::new(8);
        for n in [1, 64, 2560, 6912] {
            let (x, w) = (draw.floats(n, 5.0), draw.floats(n, 2.0));
            let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n as f64;
            let mut out = vec![0.0; n];
            rms_norm(Isa::detect(), &x, &w, 1e-6, &mut out);
            for i in 0..n {
                let truth = f64::from(x[i]) / (mean + 1e-6).sqrt() * f64::from(w[i]);
                assert!((f64::from(out[i]) - truth).abs() <= 4e-7 * truth.abs(), "{i}: {} {truth}", out[i]);
            }
        }
    }

    #[test]
    fn nan_is_passed_over_where_the_greatest_is_sought() {
        let (mut x, mut out) = ([0.5; 40], [0.0; 40]);
        (x[3], x[39]) = (f32::NAN, -7.0);
        for isa in Isa::available() {
            assert_eq!(rms_norm_ahead(isa, &x, &[1.0; 40], 1e-5, &mut out, &[]), 0.0, "{}: all are NaN", isa.name());
            let mut weight = [1.0; 40];
            weight[5] = f32::NAN;
            x[3] = 0.5;
            let greatest = rms_norm_ahead(isa, &x, &weight, 1e-5, &mut out, &[]);
            assert_eq!(greatest.to_bits(), (-out[39]).to_bits(), "{}", isa.name());
            x[3] = f32::NAN;
        }
    }

    #[test]
    fn zeros_stay_zero() {
        let mut out = [1.0; 20];
        rms_norm(Isa::detect(), &[0.0; 20], &[1.5; 20], 1e-5, &mut out);
        assert_eq!(out, [0.0; 20]);
    }
}
