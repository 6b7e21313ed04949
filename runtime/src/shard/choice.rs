//! One answer in the making: tokens in, whole characters out, stop strings never shown.

use net::api::{FinishReason, Logprobs};

use crate::engine::{Finish, Sampled};
use crate::model::Model;
use crate::text::{Detokenizer, StopMatcher};

/// The text side of one sequence.
pub(super) struct Choice {
    pub(super) index: u32,
    /// Which prompt of the request it continues.
    pub(super) prompt: usize,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    decoded: String,
    /// Text that may be sent.
    pub(super) ready: String,
    /// Log-probabilities of tokens whose text was not sent yet.
    pub(super) logprobs: Logprobs,
    pub(super) with_logprobs: bool,
    pub(super) tokens: u64,
    /// Tokens of its prompt that were found in the KV cache.
    pub(super) cached_tokens: u64,
    pub(super) last_token: u32,
    pub(super) finish: Option<FinishReason>,
}

impl Choice {
    pub(super) fn new(index: u32, prompt: usize, stops: &[String], with_logprobs: bool) -> Self {
        Self {
            index,
            prompt,
            detokenizer: Detokenizer::new(),
            stops: StopMatcher::new(stops),
            decoded: String::new(),
            ready: String::new(),
            logprobs: Logprobs::default(),
            with_logprobs,
            tokens: 0,
            cached_tokens: 0,
            last_token: 0,
            finish: None,
        }
    }

    /// Takes one token. Its text, as far as it is certain, is added to `ready`. A stop string sets `finish`.
    pub(super) fn push(&mut self, model: &Model, sampled: &Sampled, finish: Option<Finish>) {
        self.tokens += 1;
        self.last_token = sampled.token;
        if let Some(logprobs) = &sampled.logprobs {
            self.logprobs.push(sampled.token, logprobs.logprob, &logprobs.top);
        }
        self.decoded.clear();
        self.detokenizer.push(model.tokenizer.piece(sampled.token), &mut self.decoded);
        if self.stops.push(&self.decoded, &mut self.ready).is_some() {
            self.finish = Some(FinishReason::Stop);
        } else if let Some(finish) = finish {
            self.end(finish);
        }
    }

    /// Whether it is over and its last tokens have no text, whose log-probabilities nothing takes along.
    pub(super) fn has_silent_end(&self) -> bool {
        self.finish.is_some() && self.ready.is_empty() && !self.logprobs.is_empty()
    }

    /// Ends the answer: what was held back is certain now.
    pub(super) fn end(&mut self, finish: Finish) {
        self.decoded.clear();
        self.detokenizer.finish(&mut self.decoded);
        let stopped = self.stops.push(&self.decoded, &mut self.ready).is_some();
        if !stopped {
            self.stops.finish(&mut self.ready);
        }
        self.finish = Some(match finish {
            Finish::Length if !stopped => FinishReason::Length,
            _ => FinishReason::Stop,
        });
    }
}
