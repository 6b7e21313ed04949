//! Chooses the next token from logits. The same logits, parameters, seed and position give the same token everywhere.
//!
//! Order of the steps: what is allowed at all, where an answer has a form to keep to; logit bias; repetition penalty (Hugging Face: prompt and output tokens, positive logits divided,
//! negative ones multiplied); frequency and presence penalty (OpenAI: output tokens only, subtracted); what is forbidden yet; temperature;
//! top-k; top-p; min-p; one draw. Without these three the draw is the best of perturbed logits (`kernels::draw`), so that it
//! too depends on few tokens. Each filter keeps at least one token and works on what the one before it kept. Tokens are ordered
//! by logit, equal ones by id. Log-probabilities are those of the raw logits, before all of this.

mod candidates;
mod exp;
mod history;
mod philox;

use candidates::Candidates;
use exp::weight_sum;
pub use history::{History, Seen};
use kernels::Isa;
use kernels::draw::{self, Draw};

use crate::forward::{Few, Reach};

/// How a request wants its tokens chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 takes the best token; must not be negative.
    pub temperature: f32,
    /// Most tokens to draw from; 0 is off.
    pub top_k: u32,
    /// Smallest set of best tokens with at least this share of the probability; 1 is off.
    pub top_p: f32,
    /// Smallest share of the best token's probability; 0 is off.
    pub min_p: f32,
    /// 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once for every time the token was given; 0 is off.
    pub frequency_penalty: f32,
    /// Subtracted if the token was given; 0 is off.
    pub presence_penalty: f32,
    /// Added to the logits of tokens; ids outside the vocabulary are passed over.
    pub logit_bias: Vec<(u32, f32)>,
    /// Tokens that are not chosen for positions before `forbidden_until`.
    pub forbidden: Vec<u32>,
    pub forbidden_until: u64,
    pub seed: u64,
    /// `Some(n)`: the log-probability of the token and of the n best ones.
    pub logprobs: Option<u8>,
}

impl SamplingParams {
    /// Whether the choice is the best raw logit and nothing else is asked: scores need not be seen.
    #[must_use]
    pub fn takes_best(&self) -> bool {
        (self.top_k == 1 || self.is_greedy()) && self.logprobs.is_none() && !changes_logits(self)
    }
}

impl SamplingParams {
    /// The draw for `position`, where the choice is one from the raw logits and nothing else is asked.
    #[must_use]
    pub fn plain_draw(&self, position: u64) -> Option<Draw> {
        if changes_logits(self) {
            return None;
        }
        self.reach(position).and_then(|reach| reach.draw)
    }
}

/// A draw among the `count` best raw logits: of these the fewest that hold the share `top_p`, of which those count that have
/// at least the share `min_p` of the best one's weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankedDraw {
    pub draw: Draw,
    pub count: u32,
    pub top_p: f32,
    pub min_p: f32,
}

impl SamplingParams {
    /// The draw for `position`, where the choice is one among the best raw logits and nothing else is asked.
    #[must_use]
    pub fn ranked_draw(&self, position: u64) -> Option<RankedDraw> {
        let Self { top_k: count, top_p, min_p, .. } = *self;
        let is_one = count > 1 && !self.is_greedy() && self.logprobs.is_none() && !changes_logits(self);
        is_one.then(|| RankedDraw { draw: self.draw(position), count, top_p, min_p })
    }
}

impl Default for SamplingParams {
    /// Nothing but the model's own distribution, seed 0.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            forbidden: Vec::new(),
            forbidden_until: 0,
            seed: 0,
            logprobs: None,
        }
    }
}

impl SamplingParams {
    /// Which logits the choice for `position` depends on, beside those of [`changed`](Self::changed); `None` if on all.
    #[must_use]
    pub fn reach(&self, position: u64) -> Option<Reach> {
        if self.logprobs.is_some() {
            return None;
        }
        if self.top_k == 1 || self.is_greedy() {
            return Some(Reach { count: 1, distance: 0.0, draw: None });
        }
        if self.top_k > 0 {
            let count = usize::try_from(self.top_k).unwrap_or(usize::MAX);
            return Some(Reach { count, distance: 0.0, draw: None });
        }
        if self.top_p < 1.0 {
            return None;
        }
        if self.min_p > 0.0 {
            let distance = candidates::min_p_reach(self.min_p) / (1.0 / self.temperature);
            return Some(Reach { count: 1, distance, draw: None });
        }
        Some(Reach { count: 1, distance: 0.0, draw: Some(self.draw(position)) })
    }

    /// Tokens whose logits bias and penalties change, and those that may be forbidden.
    pub fn changed<'a>(&'a self, history: &'a History) -> impl Iterator<Item = u32> + 'a {
        let seen = if changes_seen(self) { history.seen() } else { &[] };
        let biased = self.logit_bias.iter().map(|&(token, _)| token);
        biased.chain(self.forbidden.iter().copied()).chain(seen.iter().map(|seen| seen.token))
    }

    fn draw(&self, position: u64) -> Draw {
        Draw { seed: self.seed, position, factor: 1.0 / self.temperature }
    }

    fn is_greedy(&self) -> bool {
        !(self.temperature > 0.0 && (1.0 / self.temperature).is_finite())
    }
}

/// The choice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    pub token: u32,
    /// Natural logarithm of the token's probability under the raw logits; with `logprobs` only.
    pub logprob: Option<f32>,
}

/// Why no token was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    #[error("all {count} logits are minus infinity or not numbers")]
    NoFiniteLogit { count: usize },
}

/// Space for choosing, reused from token to token; one per shard is enough.
#[derive(Debug)]
pub struct Sampler {
    isa: Isa,
    candidates: Candidates,
    top_logprobs: Vec<(u32, f32)>,
}

impl Sampler {
    /// With space for `vocab_len` tokens: nothing is allocated while sampling.
    pub fn new(vocab_len: usize) -> Self {
        Self {
            isa: Isa::detect(),
            candidates: Candidates::with_capacity(vocab_len),
            top_logprobs: Vec::with_capacity(256),
        }
    }

    /// As [`sample`](Self::sample), of the tokens that have their bit in `allowed` (32 to a word). Log-probabilities are
    /// those among all tokens.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn sample_allowed(
        &mut self,
        allowed: &[u32],
        logits: &mut [f32],
        params: &SamplingParams,
        history: &History,
        position: u64,
    ) -> Result<Sampled, SampleError> {
        self.sample_of(Some(allowed), logits, params, history, position)
    }

    /// Chooses the token for `position` of a sequence whose tokens so far are `history`. `logits` are changed.
    ///
    /// NaN counts as minus infinity, plus infinity as the largest number.
    ///
    /// # Errors
    /// [`SampleError::NoFiniteLogit`] if no token has a probability.
    pub fn sample(
        &mut self,
        logits: &mut [f32],
        params: &SamplingParams,
        history: &History,
        position: u64,
    ) -> Result<Sampled, SampleError> {
        self.sample_of(None, logits, params, history, position)
    }

    fn sample_of(
        &mut self,
        allowed: Option<&[u32]>,
        logits: &mut [f32],
        params: &SamplingParams,
        history: &History,
        position: u64,
    ) -> Result<Sampled, SampleError> {
        let raw_max = clean(logits).ok_or(SampleError::NoFiniteLogit { count: logits.len() })?;
        let log_sum = params.logprobs.map(|top| self.take_logprobs(logits, raw_max, top));
        let logprob = |logit: f32, log_sum: f32| (logit - raw_max) - log_sum;
        if let Some(allowed) = allowed {
            forbid_others(logits, allowed);
        }
        if !changes_logits(params) && allowed.is_none() {
            let token = self.choose(logits, raw_max, params, position);
            return Ok(Sampled { token, logprob: log_sum.map(|sum| logprob(logits[token as usize], sum)) });
        }
        // Penalties touch few tokens: their raw logits are kept aside for the log-probability.
        self.candidates.save_touched(logits, params, history, log_sum.is_some());
        penalise(logits, params, history);
        if position < params.forbidden_until {
            forbid(logits, &params.forbidden);
        }
        let max = clean(logits).ok_or(SampleError::NoFiniteLogit { count: logits.len() })?;
        let token = self.choose(logits, max, params, position);
        let raw = self.candidates.saved(token).unwrap_or(logits[token as usize]);
        Ok(Sampled { token, logprob: log_sum.map(|sum| logprob(raw, sum)) })
    }

    /// As [`sample`](Self::sample), where [`reach`](SamplingParams::reach) looks for one token and nothing changes a logit: all
    /// tokens but these are out of reach.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn sample_few(&mut self, few: Few<'_>, params: &SamplingParams, position: u64) -> Result<Sampled, SampleError> {
        let error = SampleError::NoFiniteLogit { count: few.logits.len() };
        let numbers = || few.each().map(|(token, logit)| (token, number(logit)));
        let max = numbers().map(|(_, logit)| logit).fold(f32::NEG_INFINITY, f32::max);
        if max == f32::NEG_INFINITY {
            return Err(error);
        }
        let token = if params.top_k == 1 || params.is_greedy() {
            numbers().find(|(_, logit)| *logit == max).map(|(token, _)| token)
        } else if params.min_p > 0.0 {
            let random = philox::uniform(params.seed, position);
            Some(self.candidates.draw_few(numbers(), max, params, random))
        } else {
            draw::draw_of(self.isa, params.draw(position), numbers())
        };
        Ok(Sampled { token: token.ok_or(error)?, logprob: None })
    }

    /// Natural logarithm of the probability of `token` under the raw `logits`, which are cleaned; the `top` best tokens are
    /// told by [`top_logprobs`](Self::top_logprobs).
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn score(&mut self, logits: &mut [f32], token: u32, top: u8) -> Result<f32, SampleError> {
        let max = clean(logits).ok_or(SampleError::NoFiniteLogit { count: logits.len() })?;
        let log_sum = self.take_logprobs(logits, max, top);
        Ok((logits[token as usize] - max) - log_sum)
    }

    /// The best tokens of the last call with `logprobs`, best first, with their log-probabilities.
    pub fn top_logprobs(&self) -> &[(u32, f32)] {
        &self.top_logprobs
    }

    fn choose(&mut self, logits: &[f32], max: f32, params: &SamplingParams, position: u64) -> u32 {
        if params.top_k == 1 || params.is_greedy() {
            return argmax(logits, max);
        }
        let ranks = params.top_k > 0 && usize::try_from(params.top_k).is_ok_and(|top_k| top_k < logits.len());
        if !ranks && params.top_p >= 1.0 && params.min_p <= 0.0 {
            let token = draw::draw(self.isa, params.draw(position), logits).expect("`max` is one of the logits");
            return u32::try_from(token).expect("ids fit u32");
        }
        let random = philox::uniform(params.seed, position);
        self.candidates.draw(logits, max, 1.0 / params.temperature, params, random)
    }

    /// Fills `top_logprobs`; the answer is the logarithm of the sum of e^(logit - max).
    #[expect(clippy::cast_possible_truncation, reason = "a logarithm of 1 to 2^32")]
    fn take_logprobs(&mut self, logits: &[f32], max: f32, top: u8) -> f32 {
        let log_sum = libm::log(weight_sum(logits, max, 1.0)) as f32;
        self.top_logprobs.clear();
        let best = self.candidates.best(logits, usize::from(top));
        self.top_logprobs.extend(best.map(|(token, logit)| (token, (logit - max) - log_sum)));
        log_sum
    }
}

fn changes_logits(params: &SamplingParams) -> bool {
    !params.logit_bias.is_empty() || !params.forbidden.is_empty() || changes_seen(params)
}

fn changes_seen(params: &SamplingParams) -> bool {
    params.repetition_penalty != 1.0 || params.frequency_penalty != 0.0 || params.presence_penalty != 0.0
}

/// Bias and penalties, in that order.
fn penalise(logits: &mut [f32], params: &SamplingParams, history: &History) {
    for &(token, bias) in &params.logit_bias {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit += bias;
        }
    }
    let penalty = if params.repetition_penalty > 0.0 { params.repetition_penalty } else { 1.0 };
    for seen in history.seen() {
        let Some(logit) = logits.get_mut(seen.token as usize) else { continue };
        *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        if seen.output_count > 0 {
            #[expect(clippy::cast_precision_loss, reason = "counts are bounded by the context")]
            let count = seen.output_count as f32;
            *logit -= params.frequency_penalty * count + params.presence_penalty;
        }
    }
}

/// Takes these tokens out.
fn forbid(logits: &mut [f32], forbidden: &[u32]) {
    for token in forbidden {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// Takes every token without a bit in `allowed` out.
fn forbid_others(logits: &mut [f32], allowed: &[u32]) {
    let words = allowed.iter().copied().chain(std::iter::repeat(0));
    for (block, word) in logits.chunks_mut(32).zip(words) {
        match word {
            0 => block.fill(f32::NEG_INFINITY),
            u32::MAX => {}
            _ => {
                for (bit, logit) in block.iter_mut().enumerate() {
                    *logit = if word >> bit & 1 == 1 { *logit } else { f32::NEG_INFINITY };
                }
            }
        }
    }
}

/// A logit as a number below plus infinity, minus infinity where it is none.
fn number(logit: f32) -> f32 {
    // Written as comparisons, which NaN fails: one instruction each, no call.
    let logit = if logit > f32::NEG_INFINITY { logit } else { f32::NEG_INFINITY };
    if logit < f32::MAX { logit } else { f32::MAX }
}

/// Makes every logit a number below plus infinity; the largest, `None` if that is minus infinity.
fn clean(logits: &mut [f32]) -> Option<f32> {
    let mut lanes = [f32::NEG_INFINITY; 8];
    let (blocks, rest) = logits.as_chunks_mut::<8>();
    for block in blocks.iter_mut() {
        for (lane, logit) in lanes.iter_mut().zip(block) {
            *logit = number(*logit);
            *lane = if *logit > *lane { *logit } else { *lane };
        }
    }
    for (lane, logit) in lanes.iter_mut().zip(rest) {
        *logit = number(*logit);
        *lane = if *logit > *lane { *logit } else { *lane };
    }
    let max = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
    (max > f32::NEG_INFINITY).then_some(max)
}

/// The smallest id with the largest logit.
fn argmax(logits: &[f32], max: f32) -> u32 {
    const BLOCK: usize = 64;
    // Whole blocks first: a look at each logit by itself would take as long as a small model's layer.
    let has_max = |block: &[f32]| block.iter().fold(false, |has, &logit| has | (logit == max));
    let block = logits.chunks(BLOCK).position(has_max).expect("`max` is one of the logits");
    let at = logits[block * BLOCK..].iter().position(|&logit| logit == max).expect("the block has it");
    u32::try_from(block * BLOCK + at).expect("ids fit u32")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(logits: &[f32], params: &SamplingParams, position: u64) -> u32 {
        let mut sampler = Sampler::new(logits.len());
        sampler.sample(&mut logits.to_vec(), params, &History::with_capacity(0), position).unwrap().token
    }

    /// Pseudo-random logits with a long flat tail, as models give.
    fn model_like(count: u32) -> Vec<f32> {
        let square = |u: f64| u * u;
        #[expect(clippy::cast_possible_truncation, reason = "test data")]
        let logit = |id: u32| (square(square(square(philox::uniform(7, u64::from(id))))) * 24.0 - 8.0) as f32;
        (0..count).map(logit).collect()
    }

    #[test]
    fn temperature_zero_takes_the_first_of_the_best() {
        let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        assert_eq!(sample(&[1.0, 3.0, f32::NAN, 3.0], &params, 0), 1);
        assert_eq!(sample(&[1.0, 3.0, f32::INFINITY, 3.0], &params, 0), 2);
        let top_1 = SamplingParams { top_k: 1, ..SamplingParams::default() };
        assert_eq!(sample(&[1.0, 3.0, 3.0], &top_1, 5), 1);
    }

    /// Of a row that the screen went through, minus infinity and what could be chosen or not.
    #[test]
    fn few_tokens_give_the_choice_of_all() {
        let all = model_like(3000);
        let base = SamplingParams { seed: 3, ..SamplingParams::default() };
        let (mut sampler, history) = (Sampler::new(all.len()), History::with_capacity(0));
        for odd in [f32::NAN, f32::NEG_INFINITY, 3.0] {
            for params in [
                base.clone(),
                SamplingParams { temperature: 0.0, ..base.clone() },
                SamplingParams { top_k: 1, ..base.clone() },
                SamplingParams { temperature: 0.3, ..base.clone() },
                SamplingParams { min_p: 0.05, ..base.clone() },
                SamplingParams { min_p: 0.5, temperature: 2.5, ..base.clone() },
            ] {
                for position in 0..40 {
                    let mut rest = vec![f32::NEG_INFINITY; all.len()];
                    let is_left = |id: u32| all[id as usize] > -4.0 || id as u64 % 40 == position;
                    let tokens: Vec<u32> = (0..3000).filter(|id| is_left(*id)).collect();
                    tokens.iter().for_each(|id| rest[*id as usize] = all[*id as usize]);
                    rest[tokens[0] as usize] = odd;
                    let logits: Vec<f32> = tokens.iter().map(|id| rest[*id as usize]).collect();
                    let few = Few { tokens: &tokens, logits: &logits };
                    let want = sampler.sample(&mut rest, &params, &history, position).unwrap();
                    assert_eq!(sampler.sample_few(few, &params, position).unwrap(), want, "{params:?}");
                }
            }
        }
        for logits in [&[][..], &[f32::NAN, f32::NEG_INFINITY]] {
            let few = Few { tokens: &[5, 9][..logits.len()], logits };
            let error = SampleError::NoFiniteLogit { count: logits.len() };
            assert_eq!(sampler.sample_few(few, &base, 0), Err(error));
        }
    }

    #[test]
    fn logits_without_a_number_are_an_error() {
        let mut sampler = Sampler::new(3);
        let (params, history) = (SamplingParams::default(), History::with_capacity(0));
        for mut logits in [vec![], vec![f32::NAN, f32::NEG_INFINITY]] {
            let count = logits.len();
            let answer = sampler.sample(&mut logits, &params, &history, 0);
            assert_eq!(answer, Err(SampleError::NoFiniteLogit { count }));
        }
    }

    #[test]
    fn draws_follow_the_distribution() {
        let logits = [0.0f32, 1.0, 2.0, f32::NEG_INFINITY];
        let total: f64 = (0..3).map(|l| f64::from(l).exp()).sum();
        for params in [
            SamplingParams::default(),
            SamplingParams { top_k: 3, ..SamplingParams::default() },
            SamplingParams { top_p: 0.9999, ..SamplingParams::default() },
            SamplingParams { min_p: 0.1, ..SamplingParams::default() },
        ] {
            let mut counts = [0u32; 4];
            for position in 0..20_000 {
                counts[sample(&logits, &params, position) as usize] += 1;
            }
            for (logit, &count) in logits.iter().zip(&counts) {
                let expected = f64::from(*logit).exp() / total * 20_000.0;
                assert!((f64::from(count) - expected).abs() < 4.0 * expected.sqrt() + 0.5, "{counts:?} {params:?}");
            }
        }
    }

    #[test]
    fn filters_keep_what_they_say() {
        let logits: Vec<f32> = [0.5f32, 0.3, 0.1, 0.06, 0.04].iter().map(|p| p.ln()).collect();
        let kept = |params: SamplingParams| {
            let mut seen: Vec<u32> = (0..4000).map(|position| sample(&logits, &params, position)).collect();
            seen.sort_unstable();
            seen.dedup();
            seen
        };
        let base = SamplingParams::default();
        assert_eq!(kept(SamplingParams { top_k: 2, ..base.clone() }), [0, 1]);
        assert_eq!(kept(SamplingParams { top_p: 0.85, ..base.clone() }), [0, 1, 2]);
        assert_eq!(kept(SamplingParams { top_p: 0.0, ..base.clone() }), [0]);
        assert_eq!(kept(SamplingParams { min_p: 0.15, ..base.clone() }), [0, 1, 2]);
        assert_eq!(kept(SamplingParams { top_k: 4, top_p: 0.99, min_p: 0.5, ..base.clone() }), [0, 1]);
        assert_eq!(kept(SamplingParams { logit_bias: vec![(0, -100.0), (99, 1.0)], top_k: 2, ..base }), [1, 2]);
    }

    #[test]
    fn penalties_are_those_of_their_definitions() {
        let mut history = History::with_capacity(8);
        history.push_prompt(&[0, 1]);
        history.push_output(2);
        history.push_output(2);
        let params = SamplingParams {
            repetition_penalty: 2.0,
            frequency_penalty: 0.25,
            presence_penalty: 1.0,
            logit_bias: vec![(3, 0.5)],
            ..SamplingParams::default()
        };
        let mut logits = [4.0, -4.0, 8.0, 1.0];
        penalise(&mut logits, &params, &history);
        assert_eq!(logits, [2.0, -8.0, 2.5, 1.5]);
    }

    #[test]
    fn only_allowed_tokens_are_chosen_whatever_the_others_score() {
        let logits = model_like(100);
        let (best, params) =
            (argmax(&logits, logits.iter().copied().fold(f32::MIN, f32::max)), SamplingParams::default());
        let allowed: Vec<u32> = (0..100).filter(|id| id % 7 == 3 && *id != best).collect();
        let mut words = [0_u32; 3];
        allowed.iter().filter(|id| **id < 96).for_each(|id| words[*id as usize / 32] |= 1 << (id % 32));
        let (mut sampler, history) = (Sampler::new(100), History::with_capacity(0));
        let mut sample = |words: &[u32], params: &SamplingParams, position| {
            sampler.sample_allowed(words, &mut logits.clone(), params, &history, position)
        };
        for params in [
            params.clone(),
            SamplingParams { temperature: 0.0, ..params.clone() },
            SamplingParams { top_k: 2, logprobs: Some(3), ..params.clone() },
            SamplingParams { top_p: 0.5, logit_bias: vec![(best, 100.0)], ..params.clone() },
        ] {
            for position in 0..50 {
                let token = sample(&words, &params, position).unwrap().token;
                assert!(allowed.contains(&token) && token < 96, "{token} with {params:?}");
            }
        }
        assert!(sample(&[], &params, 0).is_err());
        let all = [u32::MAX; 4];
        assert_eq!(sample(&all, &params, 9).unwrap().token, tests::sample(&logits, &params, 9));
        // Among all tokens, so that a forced one may be improbable.
        let logprobs = SamplingParams { logprobs: Some(1), ..params };
        let forced = sample(&[1 << 5], &logprobs, 0).unwrap();
        let free = sample(&[1 << 5 | 1 << 6], &logprobs, 0).unwrap();
        assert_eq!(forced.token, 5);
        assert!(forced.logprob.unwrap() < -1.0 && (free.token != 5 || free.logprob == forced.logprob));
    }

    #[test]
    fn log_probabilities_are_those_of_the_raw_logits() {
        let mut sampler = Sampler::new(4);
        let params = SamplingParams {
            temperature: 0.0,
            logit_bias: vec![(2, 100.0)],
            logprobs: Some(2),
            ..SamplingParams::default()
        };
        let logits = [0.5f32.ln() + 3.0, 0.25f32.ln() + 3.0, 0.125f32.ln() + 3.0, 0.125f32.ln() + 3.0];
        let sampled = sampler.sample(&mut logits.clone(), &params, &History::with_capacity(0), 0).unwrap();
        assert_eq!(sampled.token, 2);
        assert!((sampled.logprob.unwrap() - 0.125f32.ln()).abs() < 1e-5);
        let top = sampler.top_logprobs();
        assert_eq!([top[0].0, top[1].0], [0, 1]);
        assert!((top[1].1 - 0.25f32.ln()).abs() < 1e-5);
    }

    #[test]
    fn choices_are_pinned() {
        let logits = model_like(5000);
        let draw = |params: &SamplingParams| [0, 1, 2, 3].map(|position| sample(&logits, params, position));
        let base = SamplingParams { seed: 42, temperature: 0.8, ..SamplingParams::default() };
        let ours = [
            draw(&base),
            draw(&SamplingParams { top_k: 50, top_p: 0.9, ..base.clone() }),
            draw(&SamplingParams { top_p: 0.9, ..base.clone() }),
            draw(&SamplingParams { min_p: 0.05, ..base }),
        ];
        assert_eq!(ours, PINNED);
    }

    const PINNED: [[u32; 4]; 4] =
        [[2916, 3997, 471, 1262], [61, 3443, 3779, 4463], [3847, 3347, 4411, 3997], [3779, 4814, 4411, 3997]];

    /// Not a check but a measurement: `cargo test --release -p runtime sampler_speed -- --ignored --nocapture`.
    #[test]
    #[ignore = "a measurement"]
    fn sampler_speed() {
        let logits = model_like(128_256);
        let mut sampler = Sampler::new(logits.len());
        let mut scratch = logits.clone();
        let history = History::with_capacity(16);
        let base = SamplingParams { temperature: 0.8, ..SamplingParams::default() };
        for (name, params) in [
            ("greedy", SamplingParams { temperature: 0.0, ..base.clone() }),
            ("greedy, logprobs", SamplingParams { temperature: 0.0, logprobs: Some(5), ..base.clone() }),
            ("temperature", base.clone()),
            ("top-k 50", SamplingParams { top_k: 50, ..base.clone() }),
            ("top-k 50, top-p", SamplingParams { top_k: 50, top_p: 0.9, ..base.clone() }),
            ("top-p 0.9", SamplingParams { top_p: 0.9, ..base.clone() }),
            ("top-p 0.999, hot", SamplingParams { top_p: 0.999, temperature: 2.0, ..base.clone() }),
            ("min-p 0.05", SamplingParams { min_p: 0.05, ..base }),
        ] {
            let mut best = f64::MAX;
            for position in 0..200 {
                scratch.copy_from_slice(&logits);
                let start = std::time::Instant::now();
                sampler.sample(&mut scratch, &params, &history, position).unwrap();
                best = best.min(start.elapsed().as_secs_f64());
            }
            println!("{name}: {:.0} us", best * 1e6);
        }
    }
}
