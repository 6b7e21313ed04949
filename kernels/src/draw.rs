//! A draw from a softmax as the best of perturbed scores: the token with the greatest `factor * logit + noise` is a draw
//! from `softmax(factor * logit)` where the noise of each token is an independent Gumbel number (Gumbel 1954;
//! Yellott 1977). So a draw needs no sum over all tokens, only the few whose scores could be the greatest, which the
//! [screen](crate::screen) finds as it finds the greatest logits.
//!
//! The noise is a function of seed, position and token, in single IEEE operations: the same bits on every machine.

use crate::Isa;
use crate::simd::{Kernel, Simd, dispatch};

/// What a draw depends on beside the logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    pub seed: u64,
    pub position: u64,
    /// One over the temperature: finite and positive.
    pub factor: f32,
}

/// Tokens whose noise is made together.
pub(crate) const BLOCK: usize = 64;
/// More than any noise.
pub(crate) const NOISE_MAX: f32 = 24.0;

/// The token of `logits` that `draw` gives, the first of equal ones; `None` where none is above minus infinity. NaN is
/// passed over.
#[must_use]
pub fn draw(isa: Isa, draw: Draw, logits: &[f32]) -> Option<usize> {
    dispatch(isa, Best { draw, logits })
}

/// The same of some tokens in ascending order and their logits, where no other one has a logit above minus infinity.
#[must_use]
pub fn draw_of(isa: Isa, draw: Draw, logits: impl Iterator<Item = (u32, f32)>) -> Option<u32> {
    dispatch(isa, BestOf { draw, logits })
}

struct BestOf<I> {
    draw: Draw,
    logits: I,
}

impl<I: Iterator<Item = (u32, f32)>> Kernel for BestOf<I> {
    type Output = Option<u32>;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Option<u32> {
        let factor = f64::from(self.draw.factor);
        let (mut best, mut at) = (f64::NEG_INFINITY, None);
        let (mut known, mut noises) = (None, [0.0; BLOCK]);
        for (token, logit) in self.logits {
            let block = token / BLOCK_U32;
            if known != Some(block) {
                (known, noises) = (Some(block), noise(&self.draw, block));
            }
            let score = f64::from(logit) * factor + f64::from(noises[(token % BLOCK_U32) as usize]);
            if score > best {
                (best, at) = (score, Some(token));
            }
        }
        at
    }
}

struct Best<'a> {
    draw: Draw,
    logits: &'a [f32],
}

impl Kernel for Best<'_> {
    type Output = Option<usize>;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Option<usize> {
        let factor = f64::from(self.draw.factor);
        let (mut best, mut at) = (f64::NEG_INFINITY, None);
        for (block, logits) in (0_u32..).zip(self.logits.chunks(BLOCK)) {
            if !logits.iter().fold(false, |any, &logit| any | (logit > f32::NEG_INFINITY)) {
                continue;
            }
            let noise = noise(&self.draw, block);
            let mut scores = [f64::NEG_INFINITY; BLOCK];
            for ((score, &logit), noise) in scores.iter_mut().zip(logits).zip(noise) {
                *score = f64::from(logit) * factor + f64::from(noise);
            }
            let mut lanes = [f64::NEG_INFINITY; 8];
            for scores in scores.as_chunks::<8>().0 {
                for (lane, &score) in lanes.iter_mut().zip(scores) {
                    *lane = if score > *lane { score } else { *lane };
                }
            }
            let greatest = lanes.into_iter().fold(f64::NEG_INFINITY, f64::max);
            if greatest > best {
                best = greatest;
                at = scores.iter().position(|&score| score == greatest).map(|i| block as usize * BLOCK + i);
            }
        }
        at
    }
}

/// The noise of the tokens `BLOCK * block ..+ BLOCK`: above -4 and below [`NOISE_MAX`].
#[inline(always)]
pub(crate) fn noise(draw: &Draw, block: u32) -> [f32; BLOCK] {
    let [low, high] = halves(draw.position);
    let mut counter = [[low; LANES], [high; LANES], [0; LANES], [STREAM; LANES]];
    for l in 0..LANES_U32 {
        counter[2][l as usize] = block.wrapping_mul(LANES_U32).wrapping_add(l);
    }
    let words = philox(counter, halves(draw.seed));
    let mut noise = [0.0; BLOCK];
    for (noise, words) in noise.as_chunks_mut::<LANES>().0.iter_mut().zip(&words) {
        for (noise, &word) in noise.iter_mut().zip(words) {
            *noise = gumbel(word);
        }
    }
    noise
}

/// `-ln(-ln(1 - v))` for `v = (word + 1/2) / 2^32`: an exponential number of full relative precision where it is small,
/// since the smallest of many is what wins, and its logarithm.
#[inline(always)]
fn gumbel(word: u32) -> f32 {
    // Each from an integer of its own, so that neither loses bits to cancellation.
    let v = (word as f32 + 0.5) * UNIT;
    let rest = ((!word) as f32 + 0.5) * UNIT;
    let (exponent, mantissa) = parts(rest);
    let small = v <= 0.5;
    let exponential = -ln(if small { 0.0 } else { exponent }, if small { -v } else { mantissa });
    let (exponent, mantissa) = parts(exponential);
    -ln(exponent, mantissa)
}

/// `e` and `t` in -0.5 .. 0 of `x = 2^e (1 + t)`, for a positive normal number.
#[inline(always)]
fn parts(x: f32) -> (f32, f32) {
    let bits = x.to_bits();
    let exponent = (bits >> 23).cast_signed() - 126;
    (exponent as f32, f32::from_bits(bits & 0x007f_ffff | 0x3f00_0000) - 1.0)
}

/// `ln(2^e (1 + t)) = e ln(2) + 2 artanh(t / (2 + t))`, `t` in -0.5 ..= 0: the series' next term is below 2e-9 of the sum.
#[inline(always)]
fn ln(e: f32, t: f32) -> f32 {
    let z = t / (2.0 + t);
    let square = z * z;
    let mut sum = 1.0 / 15.0;
    for odd in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0] {
        sum = sum * square + 1.0 / odd;
    }
    e * std::f32::consts::LN_2 + 2.0 * (z + z * square * sum)
}

/// Philox4x32-10 in lanes: random words as a function of counter and key (Salmon and others, "Parallel random numbers: as
/// easy as 1, 2, 3", 2011).
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "the words of a product")]
pub fn philox<const N: usize>(mut counter: [[u32; N]; 4], mut key: [u32; 2]) -> [[u32; N]; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let mut next = [[0; N]; 4];
        for l in 0..N {
            let first = u64::from(MULTIPLIERS[0]) * u64::from(counter[0][l]);
            let second = u64::from(MULTIPLIERS[1]) * u64::from(counter[2][l]);
            next[0][l] = (second >> 32) as u32 ^ counter[1][l] ^ key[0];
            next[1][l] = second as u32;
            next[2][l] = (first >> 32) as u32 ^ counter[3][l] ^ key[1];
            next[3][l] = first as u32;
        }
        counter = next;
    }
    counter
}

/// Low and high word.
#[must_use]
pub fn halves(wide: u64) -> [u32; 2] {
    let bytes = wide.to_le_bytes();
    let (words, _) = bytes.as_chunks::<4>();
    [u32::from_le_bytes(words[0]), u32::from_le_bytes(words[1])]
}

const LANES: usize = BLOCK / 4;
const LANES_U32: u32 = 16;
const BLOCK_U32: u32 = 4 * LANES_U32;
const _: () = assert!(LANES_U32 as usize == LANES && BLOCK_U32 as usize == BLOCK);
/// The counter's last word: other streams of a seed have others.
const STREAM: u32 = 1;
/// 2^-32.
const UNIT: f32 = 1.0 / 4_294_967_296.0;
const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    struct Noise(Draw, u32);

    impl Kernel for Noise {
        type Output = [f32; BLOCK];
        #[inline(always)]
        fn run<S: Simd>(self, _: S) -> [f32; BLOCK] {
            noise(&self.0, self.1)
        }
    }

    const DRAW: Draw = Draw { seed: 0x1234_5678_9abc_def0, position: 1 << 33 | 7, factor: 1.25 };

    #[test]
    fn words_become_gumbel_numbers() {
        for word in (0..=u32::MAX).step_by(65_521).chain([0, 1, 2, 1 << 31, (1 << 31) - 1, u32::MAX]) {
            let v = (f64::from(word) + 0.5) / 4_294_967_296.0;
            let right = -(-(-v).ln_1p()).ln();
            let ours = f64::from(gumbel(word));
            assert!((ours - right).abs() < 2e-6, "{word}: {ours} {right}");
            assert!(ours > -4.0 && ours < f64::from(NOISE_MAX));
        }
    }

    #[test]
    fn every_isa_makes_the_same_noise() {
        for block in [0, 1, 77, u32::MAX] {
            let want = dispatch(Isa::Portable, Noise(DRAW, block)).map(f32::to_bits);
            for isa in Isa::available() {
                assert_eq!(dispatch(isa, Noise(DRAW, block)).map(f32::to_bits), want, "{}", isa.name());
            }
        }
        let other = |draw| dispatch(Isa::Portable, Noise(draw, 0));
        assert_ne!(other(DRAW), other(Draw { seed: 1, ..DRAW }));
        assert_ne!(other(DRAW), other(Draw { position: 7, ..DRAW }));
    }

    #[test]
    fn a_draw_is_the_first_of_the_greatest_scores() {
        let mut random = testing::Draw::new(3);
        for count in [0, 1, 63, 64, 65, 1000] {
            let mut logits = random.floats(count, 4.0);
            for at in (0..count).step_by(3) {
                logits[at] = [f32::NEG_INFINITY, f32::NAN][at % 2];
            }
            let score = |i: usize| {
                let noise = dispatch(Isa::Portable, Noise(DRAW, (i / BLOCK) as u32))[i % BLOCK];
                f64::from(logits[i]) * f64::from(DRAW.factor) + f64::from(noise)
            };
            let numbers = (0..count).filter(|&i| logits[i] > f32::NEG_INFINITY);
            let want = numbers.reduce(|best, i| if score(i) > score(best) { i } else { best });
            for isa in Isa::available() {
                assert_eq!(draw(isa, DRAW, &logits), want, "{} of {count}", isa.name());
                let all = (0_u32..).zip(logits.iter().copied());
                let few = all.filter(|(token, _)| token % 5 < 3 || Some(*token as usize) == want);
                assert_eq!(draw_of(isa, DRAW, few).map(|token| token as usize), want, "{} of few", isa.name());
            }
        }
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits: Vec<f32> = (0..200).map(|i| (i % 7) as f32 * 0.5 - (i / 100) as f32).collect();
        let weight = |i: usize| f64::from(logits[i] * DRAW.factor).exp();
        let total: f64 = (0..logits.len()).map(weight).sum();
        let mut counts = vec![0_u32; logits.len()];
        let draws = 40_000;
        for position in 0..draws {
            counts[draw(Isa::detect(), Draw { position, ..DRAW }, &logits).unwrap()] += 1;
        }
        let chi_square: f64 = (counts.iter().enumerate())
            .map(|(i, &count)| {
                let expected = weight(i) / total * draws as f64;
                (f64::from(count) - expected).powi(2) / expected
            })
            .sum();
        // 199 degrees of freedom: mean 199, deviation 20.
        assert!((119.0..279.0).contains(&chi_square), "{chi_square}");
    }
}
