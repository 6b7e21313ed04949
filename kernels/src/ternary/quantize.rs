//! Activations to int8: one scale a row, as bitnet.cpp defines it.

use super::layout::padded_cols;
use crate::simd::{Kernel, LANES, Simd, dispatch};
use crate::{FloatIsa, Isa};

/// What [`quantize`] found of a row: `x` is about `q / scale`; `sum` is the sum of all `q`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantized {
    pub scale: f32,
    pub sum: i32,
}

/// Quantises one row: `amax = max(1e-5, max |x|)` and `scale = 127 / amax` in f64, the scale rounded to f32, then
/// `q = clamp(x * scale rounded half to even, -128, 127)`. The tail of `q` is zeroed.
///
/// A NaN counts as 0; an infinity makes the scale and every `q` 0 (a product by that scale is then NaN).
///
/// # Panics
/// Where `q` is not `padded_cols(x.len())` long.
pub fn quantize(isa: Isa, x: &[f32], q: &mut [i8]) -> Quantized {
    quantize_within(isa, x, dispatch(isa, Greatest(x)), q)
}

/// [`quantize`] where `max |x|` is known already: a NaN is passed over in it.
///
/// # Panics
/// Where `q` is not `padded_cols(x.len())` long.
pub fn quantize_within(isa: Isa, x: &[f32], greatest: f32, q: &mut [i8]) -> Quantized {
    assert_eq!(q.len(), padded_cols(x.len()), "q is padded");
    #[expect(clippy::cast_possible_truncation, reason = "the definition rounds the f64 quotient to f32")]
    let scale = (127.0 / f64::from(greatest).max(1e-5)) as f32;
    let (q, rest) = q.split_at_mut(x.len());
    rest.fill(0);
    let sum = match isa.floats() {
        #[cfg(target_arch = "x86_64")]
        FloatIsa::Avx2(proof) => super::avx2::round(proof, x, scale, q),
        #[cfg(target_arch = "x86_64")]
        FloatIsa::Avx512Bw(proof) => super::avx512_bw::round(proof, x, scale, q),
        // NEON is in every build for aarch64.
        FloatIsa::Portable | FloatIsa::Neon(_) => round_lanes(x, scale, q),
        #[cfg(not(target_arch = "x86_64"))]
        _ => unreachable!("no proof exists on this machine"),
    };
    Quantized { scale, sum }
}

struct Greatest<'a>(&'a [f32]);

impl Kernel for Greatest<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (mut greatest, mut least) = (s.splat(0.0), s.splat(0.0));
        for x in self.0.chunks(LANES) {
            let x = s.load_part(x, 0.0);
            // The second where one is NaN.
            (greatest, least) = (s.max(x, greatest), s.min(x, least));
        }
        s.greatest(s.max(greatest, s.sub(s.splat(0.0), least)))
    }
}

/// Fills `q` and gives its sum; the definition, in a form that compilers vectorise.
#[inline(always)]
pub(super) fn round_lanes(x: &[f32], scale: f32, q: &mut [i8]) -> i32 {
    let (x_blocks, x_tail) = x.as_chunks::<BLOCK>();
    let (q_blocks, q_tail) = q.as_chunks_mut::<BLOCK>();
    let mut lane_sum = [0_i32; BLOCK];
    for (x, q) in x_blocks.iter().zip(q_blocks) {
        for ((sum, q), &x) in lane_sum.iter_mut().zip(q).zip(x) {
            *q = nearest(x * scale);
            *sum += i32::from(*q);
        }
    }
    let mut sum = lane_sum.iter().sum();
    for (&x, q) in x_tail.iter().zip(q_tail) {
        *q = nearest(x * scale);
        sum += i32::from(*q);
    }
    sum
}

/// Half to even by adding 1.5 * 2^23, right for `|x| < 2^22` (here at most 128); 0 for NaN.
#[inline(always)]
fn nearest(x: f32) -> i8 {
    const SHIFTER: f32 = 12_582_912.0;
    let mantissa = (x + SHIFTER).to_bits() & 0x007f_ffff;
    #[expect(clippy::cast_possible_wrap, reason = "23 bits")]
    let rounded = mantissa as i32 - 0x0040_0000;
    let rounded = if x.is_nan() { 0 } else { rounded };
    #[expect(clippy::cast_possible_truncation, reason = "clamped")]
    let q = rounded.clamp(-128, 127) as i8;
    q
}

const BLOCK: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn on_all(x: &[f32]) -> (Vec<i8>, Quantized) {
        let mut first = None;
        for isa in Isa::available() {
            let mut q = vec![77; padded_cols(x.len())];
            let found = quantize(isa, x, &mut q);
            let sum: i32 = q.iter().map(|&q| i32::from(q)).sum();
            assert_eq!(found.sum, sum);
            let (want_q, want) = first.get_or_insert_with(|| (q.clone(), found));
            assert_eq!(&q, want_q, "{}", isa.name());
            assert_eq!((found.scale.to_bits(), found.sum), (want.scale.to_bits(), want.sum), "{}", isa.name());
        }
        first.unwrap()
    }

    #[test]
    fn halves_round_to_even() {
        // amax 127 makes the scale 1.
        let x = [127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5, 0.49999997, -127.0];
        let (q, found) = on_all(&x);
        assert_eq!(q[..11], [127, 0, 2, 2, 0, -2, -2, 126, -126, 0, -127]);
        assert!(q[11..].iter().all(|&q| q == 0));
        assert_eq!(found.scale, 1.0);
    }

    #[test]
    fn zeros_tiny_and_huge_rows_keep_their_scales() {
        let (q, found) = on_all(&[0.0; 70]);
        assert_eq!((q, found.scale, found.sum), (vec![0; 128], 12_700_000.0, 0));
        let (q, found) = on_all(&[1e-7, -1e-38, 1e-40, -1e-5]);
        assert_eq!((q[..4].to_vec(), found.scale), (vec![1, 0, 0, -127], 12_700_000.0));
        let (q, _) = on_all(&[f32::MAX, -f32::MAX, 1e37]);
        assert_eq!(q[..3], [127, -127, 4]);
    }

    #[test]
    fn nan_and_infinity_are_defined() {
        let (q, found) = on_all(&[f32::NAN, 1.0, -f32::NAN, -0.5]);
        assert_eq!((q[..4].to_vec(), found.scale), (vec![0, 127, 0, -64], 127.0));
        let mut x = vec![1.0; 40];
        x[37] = f32::NEG_INFINITY;
        x[3] = f32::NAN;
        assert_eq!(on_all(&x), (vec![0; 64], Quantized { scale: 0.0, sum: 0 }));
    }

    #[test]
    fn lengths_around_the_blocks_agree_with_the_definition() {
        let mut state = 1_u32;
        for len in [0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 2560] {
            let x: Vec<f32> = (0..len)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    f32::from((state >> 16) as i16) / 3000.0
                })
                .collect();
            let (q, found) = on_all(&x);
            let amax = x.iter().fold(1e-5_f64, |max, x| max.max(f64::from(x.abs())));
            assert_eq!(found.scale, (127.0 / amax) as f32);
            for (x, q) in x.iter().zip(&q) {
                assert_eq!(f32::from(*q), (x * found.scale).round_ties_even().clamp(-128.0, 127.0));
            }
        }
    }
}
