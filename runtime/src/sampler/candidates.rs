//! The tokens that may be drawn: selection by rank and by mass without sorting the vocabulary.

use super::exp::{exp_nonpositive, weight_sum};
use super::{History, SamplingParams};

/// Reusable space for selections.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// Ordered keys of tokens: see [`key`].
    keys: Vec<u64>,
    /// Weight of the candidate with the same index, 1 for the best token.
    weights: Vec<f32>,
    /// Raw logits of tokens that penalties change, by id.
    touched: Vec<(u32, f32)>,
}

impl Candidates {
    pub(super) fn with_capacity(vocab_len: usize) -> Self {
        Self {
            keys: Vec::with_capacity(vocab_len),
            weights: Vec::with_capacity(vocab_len),
            touched: Vec::with_capacity(vocab_len.min(1 << 12)),
        }
    }

    /// Draws a token by top-k, top-p or min-p. `max` is the largest logit, `random` is in [0, 1).
    pub(super) fn draw(
        &mut self,
        logits: &[f32],
        max: f32,
        inverse_temperature: f32,
        params: &SamplingParams,
        random: f64,
    ) -> u32 {
        let weight = |logit: f32| exp_nonpositive((logit - max) * inverse_temperature);
        let top_k = usize::try_from(params.top_k).unwrap_or(usize::MAX);
        let by_mass = params.top_p < 1.0;
        if top_k > 0 && top_k < logits.len() {
            self.keep_best(logits, top_k);
            self.weigh(weight);
            let total = self.weights.iter().fold(0.0, |sum, &w| sum + f64::from(w));
            if by_mass {
                self.keep_mass(f64::from(params.top_p) * total);
            }
        } else if by_mass {
            let total = weight_sum(logits, max, inverse_temperature);
            self.keep_nucleus(logits, max, inverse_temperature, f64::from(params.top_p) * total);
        } else {
            self.gather(logits, max - min_p_reach(params.min_p) / inverse_temperature);
            self.weigh(weight);
        }
        let floor = if params.min_p > 0.0 { params.min_p.min(1.0) } else { 0.0 };
        pick(&self.keys, &self.weights, floor, random)
    }

    /// Draws by min-p alone from tokens in order of id, the only ones within its reach of `max`.
    pub(super) fn draw_few(
        &mut self,
        logits: impl Iterator<Item = (u32, f32)>,
        max: f32,
        params: &SamplingParams,
        random: f64,
    ) -> u32 {
        let inverse_temperature = 1.0 / params.temperature;
        let bar = max - min_p_reach(params.min_p) / inverse_temperature;
        self.keys.clear();
        self.keys.extend(logits.filter(|&(_, logit)| logit >= bar).map(|(id, logit)| key(logit, id)));
        self.weigh(|logit| exp_nonpositive((logit - max) * inverse_temperature));
        pick(&self.keys, &self.weights, params.min_p.min(1.0), random)
    }

    /// The `count` best tokens with their logits, best first.
    pub(super) fn best(&mut self, logits: &[f32], count: usize) -> impl Iterator<Item = (u32, f32)> + '_ {
        self.keep_best(logits, count);
        self.keys.iter().map(|&key| (token_of(key), logit_of(key)))
    }

    /// The `count` best in order. Keeps at most twice as many at a time: few tokens pass the bar that rises with them.
    fn keep_best(&mut self, logits: &[f32], count: usize) {
        self.keys.clear();
        if count == 0 {
            return;
        }
        let room = count.saturating_mul(2).max(64);
        let mut bar = f32::NEG_INFINITY;
        for (block, base) in logits.chunks(BLOCK).zip((0u32..).step_by(BLOCK)) {
            // One comparison a block where nothing passes; ties with the bar lose, their ids are larger.
            if self.keys.len() >= count && !block.iter().fold(false, |any, &logit| any | (logit > bar)) {
                continue;
            }
            for (id, &logit) in (base..).zip(block) {
                if self.keys.len() < count || logit > bar {
                    self.keys.push(key(logit, id));
                    if self.keys.len() >= room {
                        self.keys.select_nth_unstable(count - 1);
                        self.keys.truncate(count);
                        bar = logit_of(self.keys[count - 1]);
                    }
                }
            }
        }
        if self.keys.len() > count {
            self.keys.select_nth_unstable(count - 1);
            self.keys.truncate(count);
        }
        self.keys.sort_unstable();
    }

    /// All tokens with at least the logit `bar`, in order of id.
    fn gather(&mut self, logits: &[f32], bar: f32) {
        self.keys.clear();
        for (block, base) in logits.chunks(BLOCK).zip((0u32..).step_by(BLOCK)) {
            if block.iter().fold(false, |any, &logit| any | (logit >= bar)) {
                let passing = (base..).zip(block).filter(|&(_, &logit)| logit >= bar);
                self.keys.extend(passing.map(|(id, &logit)| key(logit, id)));
            }
        }
    }

    fn weigh(&mut self, weight: impl Fn(f32) -> f32) {
        self.weights.clear();
        self.weights.extend(self.keys.iter().map(|&key| weight(logit_of(key))));
    }

    /// Of ordered candidates the fewest best that hold `mass`.
    fn keep_mass(&mut self, mass: f64) {
        let mut sum = 0.0;
        let reached = self.weights.iter().position(|&weight| {
            sum += f64::from(weight);
            sum >= mass
        });
        let count = reached.map_or(self.keys.len(), |at| at + 1);
        self.keys.truncate(count);
        self.weights.truncate(count);
    }

    /// Of all tokens the fewest best that hold `mass`: a histogram of distances from the best finds the bin in which
    /// the mass is reached, and only that bin is sorted. The bins above it stand in order of id.
    fn keep_nucleus(&mut self, logits: &[f32], max: f32, inverse_temperature: f32, mass: f64) {
        // Nearly always a few hundred tokens near the best hold the mass; all are looked at only if not.
        for reach in [NEAR, f32::INFINITY] {
            let bar = max - reach / inverse_temperature;
            self.gather(logits, bar);
            let mut bins = [0f64; BINS];
            for &key in &self.keys {
                let distance = (logit_of(key) - max) * inverse_temperature;
                bins[bin_of(distance)] += f64::from(exp_nonpositive(distance));
            }
            let mut above = 0.0;
            for (bin, &held) in bins.iter().enumerate() {
                if above + held >= mass {
                    self.cut_in_bin(bin, mass - above, |logit| (logit - max) * inverse_temperature);
                    return;
                }
                above += held;
            }
        }
        // Rounding left the sum of the bins just short of the mass: every token stays.
        self.weigh(|logit| exp_nonpositive((logit - max) * inverse_temperature));
    }

    /// Drops what lies beyond `bin`, and of the bin itself all but the fewest best that hold `mass`.
    fn cut_in_bin(&mut self, bin: usize, mass: f64, distance: impl Fn(f32) -> f32) {
        let bin_of_key = |key: u64| bin_of(distance(logit_of(key)));
        self.keys.retain(|&key| bin_of_key(key) <= bin);
        // Stable partition by hand: bins above in order of id, then the boundary bin.
        let mut kept = 0;
        for at in 0..self.keys.len() {
            if bin_of_key(self.keys[at]) < bin {
                self.keys.swap(kept, at);
                kept += 1;
            }
        }
        self.keys[kept..].sort_unstable();
        let mut sum = 0.0;
        let reached = self.keys[kept..].iter().position(|&key| {
            sum += f64::from(exp_nonpositive(distance(logit_of(key))));
            sum >= mass
        });
        if let Some(at) = reached {
            self.keys.truncate(kept + at + 1);
        }
        self.weigh(|logit| exp_nonpositive(distance(logit)));
    }

    /// Remembers the logits of tokens that bias and penalties are about to change, if anybody will ask.
    pub(super) fn save_touched(&mut self, logits: &[f32], params: &SamplingParams, history: &History, wanted: bool) {
        self.touched.clear();
        if wanted {
            let ids = params.logit_bias.iter().map(|&(id, _)| id).chain(history.seen().iter().map(|seen| seen.token));
            self.touched.extend(ids.filter_map(|id| logits.get(id as usize).map(|&logit| (id, logit))));
        }
    }

    /// The logit of a token before [`save_touched`](Self::save_touched), if it was to change.
    pub(super) fn saved(&self, token: u32) -> Option<f32> {
        self.touched.iter().find(|&&(id, _)| id == token).map(|&(_, logit)| logit)
    }
}

/// Distance from the best logit, in units of temperature, within which every token of the share `min_p` is: a little more,
/// since the weights themselves decide.
pub(super) fn min_p_reach(min_p: f32) -> f32 {
    SLACK - libm::logf(min_p.min(1.0))
}

/// The token at `random` of the sum of weights that reach `floor`.
fn pick(keys: &[u64], weights: &[f32], floor: f32, random: f64) -> u32 {
    let allowed = |&&weight: &&f32| weight >= floor;
    let total = weights.iter().filter(allowed).fold(0.0, |sum, &weight| sum + f64::from(weight));
    let target = random * total;
    let mut sum = 0.0;
    let mut last = 0;
    for (at, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight >= floor && **weight > 0.0) {
        sum += f64::from(weight);
        last = at;
        if sum > target {
            break;
        }
    }
    token_of(keys[last])
}

/// A number that is the smaller the larger the logit, of equal logits the smaller the id.
#[inline]
fn key(logit: f32, id: u32) -> u64 {
    let bits = (logit + 0.0).to_bits();
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(!ascending) << 32 | u64::from(id)
}

#[inline]
fn token_of(key: u64) -> u32 {
    u32::try_from(key & 0xffff_ffff).expect("32 bits")
}

#[inline]
fn logit_of(key: u64) -> f32 {
    let ascending = !u32::try_from(key >> 32).expect("32 bits");
    f32::from_bits(if ascending >> 31 == 1 { ascending & !(1 << 31) } else { !ascending })
}

/// Bins of an eighth of a nat, the last one open.
#[inline]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates, and min follows")]
fn bin_of(distance: f32) -> usize {
    ((distance * -8.0) as usize).min(BINS - 1)
}

const BLOCK: usize = 64;
const BINS: usize = 768;
/// Distance from the best logit, in units of temperature, within which the mass is looked for first.
const NEAR: f32 = 12.0;
/// More than the error of the logarithm and of the weights.
const SLACK: f32 = 0.01;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Ids by logit, then id; and their probabilities at the temperature.
    fn naive(logits: &[f32], temperature: f64) -> Vec<(u32, f64)> {
        let mut order: Vec<(u32, f32)> = (0u32..).zip(logits.iter().copied()).collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let max = f64::from(order[0].1);
        let weights: Vec<f64> = order.iter().map(|&(_, l)| ((f64::from(l) - max) / temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        order.iter().zip(weights).map(|(&(id, _), weight)| (id, weight / total)).collect()
    }

    /// How many of the best hold the mass.
    fn count_for(order: &[(u32, f64)], mass: f64) -> usize {
        let mut sum = 0.0;
        let reached = order.iter().position(|(_, p)| {
            sum += p;
            sum >= mass
        });
        reached.map_or(order.len(), |at| at + 1)
    }

    fn max_of(logits: &[f32]) -> f32 {
        logits.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }

    proptest! {
        #[test]
        fn the_best_are_those_of_a_sort(logits in prop::collection::vec(-4i8..4, 1..700), count in 0usize..300) {
            let logits: Vec<f32> = logits.into_iter().map(|l| f32::from(l) * 0.5).collect();
            let mut candidates = Candidates::with_capacity(logits.len());
            let ours: Vec<u32> = candidates.best(&logits, count).map(|(id, _)| id).collect();
            let right: Vec<u32> = naive(&logits, 1.0).iter().take(count).map(|&(id, _)| id).collect();
            prop_assert_eq!(ours, right);
        }

        #[test]
        fn the_nucleus_is_that_of_a_sort(
            logits in prop::collection::vec(-30f32..5.0, 1..700), top_p in 0f32..1.0, temperature in 0.1f32..4.0,
        ) {
            let params = SamplingParams { top_p, ..SamplingParams::default() };
            let mut candidates = Candidates::with_capacity(logits.len());
            let token = candidates.draw(&logits, max_of(&logits), 1.0 / temperature, &params, 0.5);
            let order = naive(&logits, f64::from(temperature));
            let (fewest, most) = (count_for(&order, f64::from(top_p) - 1e-5), count_for(&order, f64::from(top_p) + 1e-5));
            prop_assert!((fewest..=most).contains(&candidates.keys.len()), "{} of {fewest}..={most}", candidates.keys.len());
            let mut ours: Vec<u32> = candidates.keys.iter().map(|&key| token_of(key)).collect();
            prop_assert!(ours.contains(&token));
            let mut right: Vec<u32> = order[..ours.len()].iter().map(|&(id, _)| id).collect();
            ours.sort_unstable();
            right.sort_unstable();
            prop_assert_eq!(ours, right);
        }

        #[test]
        fn keys_order_by_logit_then_id(a in -1e9f32..1e9, b in -1e9f32..1e9, ids in (0u32..9, 0u32..9)) {
            prop_assert_eq!(logit_of(key(a, ids.0)), a);
            prop_assert_eq!(key(a, 3) < key(b, 4), a >= b);
            prop_assert_eq!(key(a, ids.0).cmp(&key(a, ids.1)), ids.0.cmp(&ids.1));
        }
    }
}
