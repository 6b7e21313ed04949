//! A model tried on the thread that loaded it, before any shard knows of it: greedy answers and best tokens, or
//! embeddings.

use std::time::{Duration, Instant};

use kernels::attention::KvType;
use kernels::{Isa, softmax};

use crate::model::Model;
use crate::replay::Replay;

/// Why a model does not pass.
#[derive(Debug, thiserror::Error)]
pub(super) enum TrialError {
    #[error("the test prompt has {tokens} tokens and no room for an answer in a context of {context}")]
    PromptTooLong { tokens: usize, context: usize },
    #[error("its scores are no numbers after {0} tokens")]
    NoNumbers(usize),
    #[error("it answers the test prompt with nothing")]
    NoAnswer,
    #[error("the trial took longer than {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("a thread for the trial can't be started: {0}")]
    Start(#[from] std::io::Error),
}

/// A model on this thread, with a time limit.
pub(super) struct Trial<'m> {
    model: &'m Model,
    isa: Isa,
    replay: Replay<'m>,
    deadline: (Instant, Duration),
}

/// A greedy answer and the best tokens along prompt and answer; of an embedding model the bits of the vector.
pub(super) struct Answer {
    pub tokens: Vec<u32>,
    pub best: Vec<u32>,
    /// How many tokens took how long: those after the first, or a text's.
    pub timed: (usize, Duration),
}

impl<'m> Trial<'m> {
    /// Gives up `timeout` after `started`.
    ///
    /// # Errors
    /// When no team can be had.
    pub(super) fn new(
        model: &'m Model,
        (isa, kv_type): (Isa, KvType),
        started: Instant,
        timeout: Duration,
    ) -> Result<Self, TrialError> {
        let replay = Replay::new(model, isa, kv_type, 1, model.weights.context.min(POSITIONS_MAX))?;
        Ok(Self { model, isa, replay, deadline: (started + timeout, timeout) })
    }

    /// Tokens of a test prompt that leaves room for an answer.
    ///
    /// # Errors
    /// When it doesn't.
    pub(super) fn prompt(&self, text: &str) -> Result<Vec<u32>, TrialError> {
        let mut tokens = Vec::new();
        self.model.tokenizer.encode(text, true, true, &mut tokens);
        let context = self.model.weights.context.min(POSITIONS_MAX);
        if tokens.is_empty() || tokens.len() + ANSWER_TOKENS > context {
            return Err(TrialError::PromptTooLong { tokens: tokens.len(), context });
        }
        Ok(tokens)
    }

    /// The best continuation, as a greedy request gets it from a shard.
    ///
    /// # Errors
    /// Where the model gives no usable scores, ends at once, or is too slow.
    pub(super) fn answer(&mut self, prompt: &[u32]) -> Result<Answer, TrialError> {
        self.check_time()?;
        let started = Instant::now();
        if self.model.weights.params.pooling.is_some() {
            let vector = self.replay.embedding(prompt).ok_or(TrialError::NoNumbers(prompt.len()))?;
            let tokens = vector.iter().map(|value| value.to_bits()).collect();
            return Ok(Answer { tokens, best: Vec::new(), timed: (prompt.len(), started.elapsed()) });
        }
        self.replay.greedy(prompt, 1);
        let first = started.elapsed();
        self.check_time()?;
        let started = Instant::now();
        let tokens = self.replay.greedy(prompt, ANSWER_TOKENS);
        let decode = started.elapsed().saturating_sub(first);
        if tokens.is_empty() {
            return Err(TrialError::NoAnswer);
        }
        let best = self.best_tokens(&[prompt, &tokens].concat())?;
        Ok(Answer { timed: (tokens.len() - 1, decode), tokens, best })
    }

    /// The best next token after each of `tokens`.
    ///
    /// # Errors
    /// As for an answer.
    pub(super) fn best_tokens(&mut self, tokens: &[u32]) -> Result<Vec<u32>, TrialError> {
        self.check_time()?;
        let (isa, mut best, mut broken) = (self.isa, Vec::with_capacity(tokens.len()), None);
        self.replay.sequence(tokens, |position, logits| {
            if broken.is_none() && !logits.iter().all(|logit| logit.is_finite()) {
                broken = Some(position + 1);
            }
            best.push(u32::try_from(softmax::argmax(isa, logits)).expect("a vocabulary has 32-bit ids"));
        });
        broken.map_or(Ok(best), |tokens| Err(TrialError::NoNumbers(tokens)))
    }

    fn check_time(&self) -> Result<(), TrialError> {
        let (deadline, timeout) = self.deadline;
        if Instant::now() > deadline { Err(TrialError::Timeout(timeout)) } else { Ok(()) }
    }
}

/// What a trial found.
#[derive(Debug, Default)]
pub(super) struct Tried {
    pub prompts: Vec<Vec<u32>>,
    /// The answer to each; empty where none was made.
    pub answers: Vec<Vec<u32>>,
    /// Decoding on one thread that gives way to all others.
    pub tokens_per_s: Option<f64>,
    /// Part of equal best tokens over prompts and answers of the old model, or mean cosine of their embeddings, where both
    /// cut texts alike.
    pub agreement: Option<f64>,
    /// Tokens per second relative to the old model's, less 1.
    pub performance_delta: Option<f64>,
    pub duration: Duration,
}

/// Answers `prompts` with `new`, and compares it with `old` where there is one; `same_tokens` says that the two have
/// the same tokenizer.
///
/// # Errors
/// Where `new` does not pass.
pub(super) fn try_model(
    way: (Isa, KvType),
    new: &Model,
    old: Option<(&Model, bool)>,
    prompts: &[String],
    (started, timeout): (Instant, Duration),
) -> Result<Tried, TrialError> {
    let begun = Instant::now();
    let mut trial = Trial::new(new, way, started, timeout)?;
    let mut tried = Tried::default();
    let mut rate = Rate::default();
    for text in prompts {
        let prompt = trial.prompt(text)?;
        let answer = trial.answer(&prompt)?;
        rate.add(&answer);
        tried.prompts.push(prompt);
        tried.answers.push(answer.tokens);
    }
    tried.tokens_per_s = rate.tokens_per_s();
    if let Some((old, same_tokens)) = old {
        let mut before = Trial::new(old, way, started, timeout)?;
        let (mut rate, mut best, mut cosines) = (Rate::default(), (Vec::new(), Vec::new()), Vec::new());
        for text in prompts {
            // What the old model can't do is not the new one's fault.
            let Ok(prompt) = before.prompt(text) else { continue };
            let Ok(answer) = before.answer(&prompt) else { continue };
            rate.add(&answer);
            if same_tokens && new.weights.params.pooling.is_some() {
                cosines.push(cosine(&answer.tokens, &trial.answer(&prompt)?.tokens));
            } else if same_tokens {
                best.1.extend(trial.best_tokens(&[&prompt[..], &answer.tokens].concat())?);
                best.0.extend(answer.best);
            }
        }
        tried.agreement = match (cosines.len(), best.0.len()) {
            (0, 0) => None,
            (0, _) => Some(agreement(&best.0, &best.1)),
            (count, _) => Some(cosines.iter().sum::<f64>() / count as f64),
        };
        let rates = tried.tokens_per_s.zip(rate.tokens_per_s());
        tried.performance_delta = rates.map(|(new, old)| new / old - 1.0);
    }
    tried.duration = begun.elapsed();
    Ok(tried)
}

/// Tokens after the first of their answers, or of the texts, and how long they took.
#[derive(Default)]
struct Rate {
    tokens: usize,
    time: Duration,
}

impl Rate {
    fn add(&mut self, answer: &Answer) {
        self.tokens += answer.timed.0;
        self.time += answer.timed.1;
    }

    #[expect(clippy::cast_precision_loss, reason = "tokens are few")]
    fn tokens_per_s(&self) -> Option<f64> {
        (self.tokens > 0 && !self.time.is_zero()).then(|| self.tokens as f64 / self.time.as_secs_f64())
    }
}

/// Part of the positions at which both chose the same token.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "positions are few")]
pub(super) fn agreement(one: &[u32], other: &[u32]) -> f64 {
    let equal = one.iter().zip(other).filter(|(a, b)| a == b).count();
    if one.is_empty() { 1.0 } else { equal as f64 / one.len() as f64 }
}

/// Of two vectors of length 1, given as their bits.
fn cosine(one: &[u32], other: &[u32]) -> f64 {
    let value = |bits: &u32| f64::from(f32::from_bits(*bits));
    one.iter().zip(other).map(|(a, b)| value(a) * value(b)).sum()
}

/// Tokens of an answer to a test prompt.
pub(super) const ANSWER_TOKENS: usize = 16;
/// Positions of a test prompt and its answer: 256 characters are at most as many bytes times four, a token each.
const POSITIONS_MAX: usize = 1024 + 2 * ANSWER_TOKENS;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{HeadScreen, LoadOptions, Source};

    #[test]
    fn models_of_every_shape_are_tried() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/oracle/models");
        for name in ["tiny-b158-i2_s.gguf", "tiny-bitnet-i2_s.gguf", "tiny-llama-hd-i2_s.gguf"] {
            let options = LoadOptions { threads: 1, node: None, context_max: 512, head_screen: HeadScreen::Off };
            let source = Source::open(&folder.join(name)).unwrap();
            let model = Model::load(&source, name.into(), options, &|_, _| {}).unwrap();
            let prompts = ["a b c ".repeat(20), "x".to_owned()];
            let deadline = (Instant::now(), Duration::from_secs(60));
            let tried =
                try_model((Isa::detect(), KvType::F16), &model, Some((&model, true)), &prompts, deadline).unwrap();
            assert_eq!((tried.answers.len(), tried.agreement), (2, Some(1.0)), "{name}");
        }
    }

    #[test]
    fn an_answer_is_what_the_best_tokens_say() {
        let options = LoadOptions { threads: 1, node: None, context_max: 512, head_screen: HeadScreen::Off };
        let model = Model::load(&Source::embedded(), "tiny".into(), options, &|_, _| {}).unwrap();
        let mut trial =
            Trial::new(&model, (Isa::detect(), KvType::F16), Instant::now(), Duration::from_secs(60)).unwrap();
        let prompt = trial.prompt("Once upon a time there was a little girl who lived in a big, big house").unwrap();
        let answer = trial.answer(&prompt).unwrap();
        let all: Vec<u32> = prompt.iter().chain(&answer.tokens).copied().collect();
        let best = trial.best_tokens(&all).unwrap();
        assert_eq!(best, answer.best);
        assert_eq!(best[prompt.len() - 1..][..answer.tokens.len()], answer.tokens);
        assert!((agreement(&best, &best) - 1.0).abs() < 1e-12);
        assert!(matches!(trial.prompt(&"a b ".repeat(4000)), Err(TrialError::PromptTooLong { .. })));
        let mut late = Trial::new(&model, (Isa::detect(), KvType::F16), Instant::now(), Duration::ZERO).unwrap();
        assert!(matches!(late.answer(&prompt), Err(TrialError::Timeout(_))));
    }
}
