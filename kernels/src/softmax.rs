//! Softmax over logits, as the sampler needs it, and the greatest logit.

use crate::Isa;
use crate::math::{self, exp_lanes};
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Greatest logit and the sum of `exp((logit - greatest) * inv_temperature)`, the sum in f64.
///
/// NaN logits make the sum NaN; all-`-inf` logits too. `inv_temperature` is finite and not negative.
///
/// # Panics
/// If `logits` is empty.
#[must_use]
pub fn max_and_sum_exp(isa: Isa, logits: &[f32], inv_temperature: f32) -> (f32, f64) {
    let max = logits[argmax(isa, logits)];
    (max, dispatch(isa, SumExp { logits, max, inv_temperature }))
}

/// Replaces each logit by `exp((logit - max) * inv_temperature)` and returns their sum in f64: divided by it they are
/// probabilities.
pub fn exp_in_place(isa: Isa, logits: &mut [f32], max: f32, inv_temperature: f32) -> f64 {
    dispatch(isa, ExpInPlace { logits, max, inv_temperature })
}

/// Natural logarithm of the probability of `logit`, from the results of [`max_and_sum_exp`] at the same temperature.
#[must_use]
pub fn log_probability(logit: f32, max: f32, sum_exp: f64, inv_temperature: f32) -> f64 {
    (f64::from(logit) - f64::from(max)) * f64::from(inv_temperature) - math::log(sum_exp)
}

/// Index of the greatest logit; the lowest of equals; NaN counts as `-inf`.
///
/// # Panics
/// If `logits` is empty.
#[must_use]
pub fn argmax(isa: Isa, logits: &[f32]) -> usize {
    assert!(!logits.is_empty(), "the greatest of no logits");
    dispatch(isa, ArgMax { logits })
}

struct SumExp<'a> {
    logits: &'a [f32],
    max: f32,
    inv_temperature: f32,
}

impl Kernel for SumExp<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let mut sum = s.zero_f64();
        for part in self.logits.chunks(LANES) {
            sum = s.add_f64(sum, weights(s, part, self.max, self.inv_temperature));
        }
        s.sum_f64(sum)
    }
}

struct ExpInPlace<'a> {
    logits: &'a mut [f32],
    max: f32,
    inv_temperature: f32,
}

impl Kernel for ExpInPlace<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let mut sum = s.zero_f64();
        for part in self.logits.chunks_mut(LANES) {
            let e = weights(s, part, self.max, self.inv_temperature);
            sum = s.add_f64(sum, e);
            s.store_part(e, part);
        }
        s.sum_f64(sum)
    }
}

/// `exp((logit - max) * inv_temperature)` of up to 16 logits, 0 in the lanes past them.
#[inline(always)]
fn weights<S: Simd>(s: S, part: &[f32], max: f32, inv_temperature: f32) -> S::F {
    let below = s.sub(s.load_part(part, max), s.splat(max));
    let e = exp_lanes(s, s.mul(below, s.splat(inv_temperature)));
    if part.len() < LANES { s.first_lanes(e, part.len(), s.splat(0.0)) } else { e }
}

struct ArgMax<'a> {
    logits: &'a [f32],
}

impl Kernel for ArgMax<'_> {
    type Output = usize;

    /// The first strip that holds the greatest value is remembered, and only that strip is searched.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let mut best = f32::NEG_INFINITY;
        let mut best_strip = 0;
        for (strip, logits) in self.logits.chunks(STRIP).enumerate() {
            let mut lanes = [s.splat(f32::NEG_INFINITY); 4];
            for part in logits.chunks(4 * LANES) {
                for (max, part) in lanes.iter_mut().zip(part.chunks(LANES)) {
                    // The new value goes first: max gives the second of two where one is NaN.
                    *max = s.max(s.load_part(part, f32::NEG_INFINITY), *max);
                }
            }
            let greatest = s.greatest(s.max(s.max(lanes[0], lanes[1]), s.max(lanes[2], lanes[3])));
            if greatest > best {
                best = greatest;
                best_strip = strip;
            }
        }
        if best == f32::NEG_INFINITY {
            return 0;
        }
        let start = best_strip * STRIP;
        start + self.logits[start..].iter().position(|&x| x == best).expect("the strip holds its greatest value")
    }
}

/// Logits per strip of [`argmax`].
const STRIP: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Draw, lengths, same_bits};

    #[test]
    fn every_isa_gives_the_same_bits_at_every_length() {
        let mut draw = Draw::new(6);
        for n in lengths().filter(|&n| n > 0) {
            let logits = draw.floats(n, 25.0);
            let (max, sum) = max_and_sum_exp(Isa::Portable, &logits, 0.7);
            let mut expected = logits.clone();
            assert_eq!(exp_in_place(Isa::Portable, &mut expected, max, 0.7).to_bits(), sum.to_bits());
            for isa in Isa::available() {
                let got = max_and_sum_exp(isa, &logits, 0.7);
                assert_eq!((got.0.to_bits(), got.1.to_bits()), (max.to_bits(), sum.to_bits()), "{} {n}", isa.name());
                let mut e = logits.clone();
                assert_eq!(exp_in_place(isa, &mut e, max, 0.7).to_bits(), sum.to_bits());
                same_bits(&e, &expected, isa.name());
            }
        }
    }

    #[test]
    fn log_probabilities_are_near_f64() {
        let logits = Draw::new(9).floats(128_256, 12.0);
        let truth = logits.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
        let (max, sum) = max_and_sum_exp(Isa::detect(), &logits, 1.0);
        for &logit in &logits[..1000] {
            assert!((log_probability(logit, max, sum, 1.0) - (f64::from(logit) - truth)).abs() < 1e-7);
        }
    }

    #[test]
    fn lowest_index_wins_and_nan_never_does() {
        let mut draw = Draw::new(10);
        for isa in Isa::available() {
            for n in [1, 2, 15, 16, 17, 64, 65, 1024, 1025, 5000] {
                let mut logits = draw.floats(n, 1.0);
                logits[draw.below(n)] = f32::NAN;
                let (a, b) = (draw.below(n), draw.below(n));
                logits[a] = 2.0;
                logits[b] = 2.0;
                assert_eq!(argmax(isa, &logits), a.min(b), "{} of {n}", isa.name());
            }
            assert_eq!(argmax(isa, &[f32::NAN, f32::NEG_INFINITY, f32::NAN]), 0);
            assert_eq!(argmax(isa, &[f32::NAN, -3.0, f32::NAN]), 1);
            assert_eq!(argmax(isa, &[-0.0, 0.0]), 0);
        }
    }
}
