//! A model tried on the thread that loaded it, before any shard knows of it: greedy answers and best tokens.

use std::time::{Duration, Instant};

use kernels::Isa;

use crate::forward::{Forward, Limits, Step};
use crate::kv::{KvCache, blocks_for};
use crate::model::Model;
use crate::sampler::{History, Sampler, SamplingParams};
use crate::team::Team;

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

/// Everything that one sequence on this thread needs.
pub(super) struct Trial<'m> {
    model: &'m Model,
    team: Team,
    forward: Forward,
    kv: KvCache,
    sampler: Sampler,
    deadline: (Instant, Duration),
}

/// A greedy answer and how fast its tokens came, the first one apart.
pub(super) struct Answer {
    pub tokens: Vec<u32>,
    pub decode: Duration,
}

impl<'m> Trial<'m> {
    /// Sized for prompts of at most so many tokens; gives up `timeout` after `started`.
    ///
    /// # Errors
    /// When no team can be had.
    pub(super) fn new(model: &'m Model, isa: Isa, started: Instant, timeout: Duration) -> Result<Self, TrialError> {
        let params = &model.weights.params;
        let positions = model.weights.context.min(POSITIONS_MAX);
        Ok(Self {
            model,
            team: Team::start(1, |_| {})?,
            forward: Forward::new(isa, params, 1, Limits { rows_max: ROWS, logits_max: ROWS }),
            kv: KvCache::new(params, positions, 1, blocks_for(positions)),
            sampler: Sampler::new(params.vocab),
            deadline: (started + timeout, timeout),
        })
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
        self.restart(prompt.len() + ANSWER_TOKENS);
        let mut history = History::with_capacity(prompt.len() + ANSWER_TOKENS);
        history.push_prompt(prompt);
        let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let (mut tokens, mut computed, mut first) = (Vec::new(), 0, None);
        let mut pending = prompt.to_vec();
        while tokens.len() < ANSWER_TOKENS {
            let rows = self.feed(&pending, computed)?;
            computed += pending.len();
            let position = computed as u64;
            let choice = self.sampler.sample(self.forward.logits(rows - 1), &greedy, &history, position);
            let token = choice.map_err(|_| TrialError::NoNumbers(computed))?.token;
            first.get_or_insert_with(Instant::now);
            if self.model.tokenizer.is_end_of_generation(token) {
                break;
            }
            history.push_output(token);
            tokens.push(token);
            pending = vec![token];
        }
        if tokens.is_empty() {
            return Err(TrialError::NoAnswer);
        }
        Ok(Answer { tokens, decode: first.map_or(Duration::ZERO, |first| first.elapsed()) })
    }

    /// The best next token after each of `tokens`.
    ///
    /// # Errors
    /// As for an answer.
    pub(super) fn best_tokens(&mut self, tokens: &[u32]) -> Result<Vec<u32>, TrialError> {
        self.restart(tokens.len());
        let mut best = Vec::with_capacity(tokens.len());
        let (history, greedy) =
            (History::with_capacity(1), SamplingParams { temperature: 0.0, ..SamplingParams::default() });
        for (index, chunk) in tokens.chunks(ROWS).enumerate() {
            let start = index * ROWS;
            let rows = self.feed(chunk, start)?;
            for row in 0..rows {
                let choice = self.sampler.sample(self.forward.logits(row), &greedy, &history, (start + row + 1) as u64);
                best.push(choice.map_err(|_| TrialError::NoNumbers(start + row + 1))?.token);
            }
        }
        Ok(best)
    }

    fn restart(&mut self, positions: usize) {
        self.kv.release(0);
        self.kv.reserve(0, positions).expect("the cache holds what a prompt was checked for");
    }

    /// Computes `tokens`; the logits of the last chunk's rows are there then, and how many they are.
    fn feed(&mut self, tokens: &[u32], first_position: usize) -> Result<usize, TrialError> {
        let mut rows = 0;
        for (index, chunk) in tokens.chunks(ROWS).enumerate() {
            if Instant::now() > self.deadline.0 {
                return Err(TrialError::Timeout(self.deadline.1));
            }
            let mut step = Step::default();
            step.push(0, first_position + index * ROWS, chunk, false);
            step.logits.extend(0..chunk.len());
            rows = chunk.len();
            self.forward.run(&self.team, &self.model.weights, &mut self.kv, &step, &|_, _, _| {});
            for row in 0..rows {
                if self.forward.logits(row).iter().any(|logit| !logit.is_finite()) {
                    return Err(TrialError::NoNumbers(first_position + index * ROWS + row + 1));
                }
            }
        }
        Ok(rows)
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
    /// Part of equal best tokens over prompts and answers of the old model, where both cut texts alike.
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
    isa: Isa,
    new: &Model,
    old: Option<(&Model, bool)>,
    prompts: &[String],
    (started, timeout): (Instant, Duration),
) -> Result<Tried, TrialError> {
    let begun = Instant::now();
    let mut trial = Trial::new(new, isa, started, timeout)?;
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
        let mut before = Trial::new(old, isa, started, timeout)?;
        let (mut rate, mut best) = (Rate::default(), (Vec::new(), Vec::new()));
        for text in prompts {
            // What the old model can't do is not the new one's fault.
            let Ok(prompt) = before.prompt(text) else { continue };
            let Ok(answer) = before.answer(&prompt) else { continue };
            rate.add(&answer);
            if same_tokens {
                let all: Vec<u32> = prompt.iter().chain(&answer.tokens).copied().collect();
                best.0.extend(before.best_tokens(&all)?);
                best.1.extend(trial.best_tokens(&all)?);
            }
        }
        tried.agreement = (!best.0.is_empty()).then(|| agreement(&best.0, &best.1));
        let rates = tried.tokens_per_s.zip(rate.tokens_per_s());
        tried.performance_delta = rates.map(|(new, old)| new / old - 1.0);
    }
    tried.duration = begun.elapsed();
    Ok(tried)
}

/// Tokens after the first of their answers, and how long they took.
#[derive(Default)]
struct Rate {
    tokens: usize,
    time: Duration,
}

impl Rate {
    fn add(&mut self, answer: &Answer) {
        self.tokens += answer.tokens.len() - 1;
        self.time += answer.decode;
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

/// Tokens of an answer to a test prompt.
pub(super) const ANSWER_TOKENS: usize = 16;
/// Positions of a test prompt and its answer: 256 characters are at most as many bytes times four, a token each.
const POSITIONS_MAX: usize = 1024 + 2 * ANSWER_TOKENS;
/// Rows of a step.
const ROWS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LoadOptions, Source};

    #[test]
    fn models_of_every_shape_are_tried() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/oracle/models");
        for name in ["tiny-b158-i2_s.gguf", "tiny-bitnet-i2_s.gguf", "tiny-llama-hd-i2_s.gguf"] {
            let options = LoadOptions { threads: 1, node: None, context_max: 512 };
            let source = Source::open(&folder.join(name)).unwrap();
            let model = Model::load(&source, name.into(), options, &|_, _| {}).unwrap();
            let prompts = ["a b c ".repeat(20), "x".to_owned()];
            let deadline = (Instant::now(), Duration::from_secs(60));
            let tried = try_model(Isa::detect(), &model, Some((&model, true)), &prompts, deadline).unwrap();
            assert_eq!((tried.answers.len(), tried.agreement), (2, Some(1.0)), "{name}");
        }
    }

    #[test]
    fn an_answer_is_what_the_best_tokens_say() {
        let options = LoadOptions { threads: 1, node: None, context_max: 512 };
        let model = Model::load(&Source::embedded(), "tiny".into(), options, &|_, _| {}).unwrap();
        let mut trial = Trial::new(&model, Isa::detect(), Instant::now(), Duration::from_secs(60)).unwrap();
        let prompt = trial.prompt("Once upon a time there was a little girl who lived in a big, big house").unwrap();
        let answer = trial.answer(&prompt).unwrap();
        let all: Vec<u32> = prompt.iter().chain(&answer.tokens).copied().collect();
        let best = trial.best_tokens(&all).unwrap();
        assert_eq!(best[prompt.len() - 1..][..answer.tokens.len()], answer.tokens);
        assert!((agreement(&best, &best) - 1.0).abs() < 1e-12);
        assert!(matches!(trial.prompt(&"a b ".repeat(4000)), Err(TrialError::PromptTooLong { .. })));
        let mut late = Trial::new(&model, Isa::detect(), Instant::now(), Duration::ZERO).unwrap();
        assert!(matches!(late.answer(&prompt), Err(TrialError::Timeout(_))));
    }
}
