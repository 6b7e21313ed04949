//! The self test of a device: a few steps whose scores the CPU has computed, to be met bit for bit.

use std::ops::Range;

use kernels::Isa;
use kernels::attention::KvType;
use kernels::draw::{self, Draw};

use super::device::Want;
use crate::forward::{Forward, Limits, Step};
use crate::kv::{KvCache, blocks_for};
use crate::model::Model;
use crate::sampler::{History, RankedDraw, Sampler, SamplingParams};
use crate::team::Team;

/// A prompt and the scores that follow it, each step continuing with the best token of the one before.
#[derive(Clone, Debug)]
pub(super) struct KnownAnswer {
    pub prompt: Vec<u32>,
    pub scores: Vec<Vec<f32>>,
}

impl KnownAnswer {
    /// Computes the answer with such a KV cache on this thread.
    ///
    /// # Errors
    /// The operating system's, when the team can't be made.
    pub(super) fn compute(model: &Model, kv_type: KvType, isa: Isa) -> std::io::Result<Self> {
        let weights = &model.weights;
        let params = &weights.params;
        let vocab = u32::try_from(params.vocab).expect("a vocabulary is bounded");
        let prompt: Vec<u32> = (0..PROMPT_TOKENS).map(|i| (i * 7919 + 3) % vocab).collect();
        let team = Team::start(1, |_| {})?;
        let limits = Limits { rows_max: FORWARD_ROWS, logits_max: 1 };
        let mut forward = Forward::new(isa, params, 1, limits);
        let positions = prompt.len() + STEPS;
        let mut kv = KvCache::new(params, kv_type, weights.context.max(positions), 1, blocks_for(positions));
        kv.reserve(0, positions).expect("the cache holds one sequence");
        let mut scores: Vec<Vec<f32>> = Vec::with_capacity(STEPS);
        let mut step = Step::default();
        for i in 0..STEPS {
            step.clear();
            match scores.last() {
                None => step.push(0, 0, &prompt, true),
                Some(last) => step.push(0, prompt.len() + i - 1, &[best(last)], true),
            }
            forward.run(&team, weights, &mut kv, &step, &|_, _, _| {});
            scores.push(forward.logits(0).to_vec());
        }
        Ok(Self { prompt, scores })
    }

    /// Positions that the test takes.
    pub(super) fn positions(&self) -> usize {
        self.prompt.len() + self.scores.len()
    }

    /// Forms step `i` of the test for at most `slots` slots, and what is wanted of each: two sequences first, of one of
    /// which only a token is asked, as of most; then one alone, in each way.
    pub(super) fn form(&self, i: usize, slots: Range<usize>, step: &mut Step, wants: &mut Vec<Want>) {
        let wanted: &[Want] = match i {
            _ if self.is_near(i) => &[Want::Scores],
            0 => &[Want::Scores, Want::Best],
            1 => &[Want::Scores, Want::Drawn(DRAW)],
            2 => &[Want::Scores],
            3 => &[Want::Best],
            _ => &[Want::Ranked(RANKED)],
        };
        step.clear();
        wants.clear();
        for (slot, want) in slots.zip(wanted) {
            match i.checked_sub(1) {
                _ if self.is_near(i) => step.push(slot, 0, &self.prompt, true),
                None => step.push(slot, 0, &self.prompt, true),
                Some(last) => step.push(slot, self.prompt.len() + last, &[best(&self.scores[last])], true),
            }
            wants.push(*want);
        }
    }

    /// Whether step `i`, after all others, is the prompt once more, computed on tensor cores: with rounding of its own.
    pub(super) fn is_near(&self, i: usize) -> bool {
        i == self.scores.len()
    }

    /// Whether the scores of step `i` are these, bit for bit, or near; what differs.
    pub(super) fn check(&self, i: usize, scores: &[f32]) -> Result<(), String> {
        if self.is_near(i) {
            return self.check_near(scores);
        }
        let expected = &self.scores[i];
        let differ = expected.iter().zip(scores).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        if differ == 0 && expected.len() == scores.len() {
            return Ok(());
        }
        Err(format!("step {i}: {differ} of {} scores differ", expected.len()))
    }

    fn check_near(&self, scores: &[f32]) -> Result<(), String> {
        let pairs = self.scores[0].iter().zip(scores).map(|(a, b)| (f64::from(*a), f64::from(*b)));
        let (apart, whole) =
            pairs.fold((0.0, 0.0), |(apart, whole), (a, b)| (apart + (a - b) * (a - b), whole + a * a));
        let distance = (apart / whole).sqrt();
        // None where they are no numbers.
        if distance <= NEAR {
            Ok(())
        } else {
            Err(format!("on tensor cores: scores are {distance:.3} of their size apart"))
        }
    }

    /// Whether the token that is wanted of step `i` is this one.
    pub(super) fn check_token(&self, i: usize, want: &Want, token: Option<u32>) -> Result<(), String> {
        let expected = chosen(want, &self.scores[i]);
        if token == expected { Ok(()) } else { Err(format!("step {i}: the token is {token:?}, not {expected:?}")) }
    }
}

/// The token that is wanted of these scores; `None` where none is above minus infinity.
pub(super) fn chosen(want: &Want, scores: &[f32]) -> Option<u32> {
    match want {
        Want::Drawn(draw) => {
            draw::draw(Isa::detect(), *draw, scores).map(|token| u32::try_from(token).expect("a vocabulary is bounded"))
        }
        Want::Ranked(RankedDraw { draw, count, top_p, min_p }) => {
            let params = SamplingParams {
                temperature: 1.0 / draw.factor,
                top_k: *count,
                top_p: *top_p,
                min_p: *min_p,
                seed: draw.seed,
                ..SamplingParams::default()
            };
            let (mut sampler, history) = (Sampler::new(scores.len()), History::with_capacity(0));
            let sampled = sampler.sample(&mut scores.to_vec(), &params, &history, draw.position);
            sampled.ok().map(|sampled| sampled.token)
        }
        Want::Best | Want::Scores => scores.iter().any(|score| *score > f32::NEG_INFINITY).then(|| best(scores)),
    }
}

/// The lowest id of the greatest score.
pub(super) fn best(scores: &[f32]) -> u32 {
    let mut best = 0;
    for (i, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = i;
        }
    }
    u32::try_from(best).expect("a vocabulary is bounded")
}

const DRAW: Draw = Draw { seed: 1, position: 2, factor: 0.5 };
const RANKED: RankedDraw = RankedDraw { draw: DRAW, count: 20, top_p: 0.9, min_p: 0.01 };
/// What the forward pass is sized for; more than the prompt.
const FORWARD_ROWS: usize = 64;
/// How far scores may be apart where attention is rounded otherwise: activations of one byte turn the last bit of a result into one
/// part in 127 of some others.
const NEAR: f64 = 0.1;
const PROMPT_TOKENS: u32 = 4;
const STEPS: usize = 5;
