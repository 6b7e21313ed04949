//! One answer in the making: tokens in, whole characters and calls out, stop strings never shown.

use net::api::{Ending, FinishReason, Logprobs};

use crate::engine::{Finish, Sampled};
use crate::model::Model;
use crate::text::{CALL_OPEN, Call, CallReader, Detokenizer, StopMatcher};

/// The text side of one sequence.
pub(super) struct Choice {
    pub(super) index: u32,
    /// Which prompt of the request it continues.
    pub(super) prompt: usize,
    detokenizer: Detokenizer,
    /// Where it may call tools; stop strings end its text only.
    reader: Option<CallReader>,
    stops: StopMatcher,
    stop_tokens: Box<[u32]>,
    /// Whether what stops the text is shown, and so many tokens go by before it is looked for.
    shows_stop: bool,
    tokens_min: u64,
    shows_control: bool,
    decoded: String,
    /// What of it is text.
    content: String,
    /// Text that may be sent.
    pub(super) ready: String,
    /// Log-probabilities of tokens whose text was not sent yet; those of calls, which are no text, are not kept.
    pub(super) logprobs: Logprobs,
    /// Of them, those before what may be the beginning of a call.
    text_logprobs: usize,
    pub(super) with_logprobs: bool,
    /// Ids that were not sent yet, where they were asked for.
    pub(super) token_ids: Option<Vec<u32>>,
    pub(super) tokens: u64,
    /// Tokens of its prompt that were found in the KV cache.
    pub(super) cached_tokens: u64,
    pub(super) last_token: u32,
    pub(super) finish: Option<FinishReason>,
}

impl Choice {
    pub(super) fn new(
        index: u32,
        prompt: usize,
        ending: &Ending,
        with_logprobs: bool,
        reader: Option<CallReader>,
    ) -> Self {
        Self {
            index,
            prompt,
            detokenizer: Detokenizer::new(),
            reader,
            stops: StopMatcher::new(&ending.strings).showing(ending.shows_stop),
            stop_tokens: ending.tokens.as_slice().into(),
            shows_stop: ending.shows_stop,
            tokens_min: u64::from(ending.tokens_min),
            shows_control: ending.shows_control,
            decoded: String::new(),
            content: String::new(),
            ready: String::new(),
            logprobs: Logprobs::default(),
            text_logprobs: 0,
            with_logprobs,
            token_ids: None,
            tokens: 0,
            cached_tokens: 0,
            last_token: 0,
            finish: None,
        }
    }

    /// Takes the next tokens of its prompt.
    pub(super) fn score(&mut self, tokens: &[Sampled]) {
        for Sampled { token, logprobs } in tokens {
            if let Some(logprobs) = logprobs {
                self.logprobs.push(*token, logprobs.logprob, &logprobs.top);
            }
        }
    }

    /// Takes one token. Its text, as far as it is certain, is added to `ready`. A stop string sets `finish`.
    pub(super) fn push(&mut self, model: &Model, sampled: &Sampled, finish: Option<Finish>) {
        self.tokens += 1;
        self.last_token = sampled.token;
        if let Some(ids) = &mut self.token_ids {
            ids.push(sampled.token);
        }
        let stops = self.stop_tokens.contains(&sampled.token);
        let is_shown = !stops || self.shows_stop;
        if let Some(logprobs) = sampled.logprobs.as_ref().filter(|_| is_shown && self.calls().is_empty()) {
            self.logprobs.push(sampled.token, logprobs.logprob, &logprobs.top);
        }
        let piece = if is_shown { self.piece(model, sampled.token) } else { &[] };
        self.decoded.clear();
        self.detokenizer.push(piece, &mut self.decoded);
        if self.take_decoded() {
            self.finish = Some(FinishReason::Stop);
        } else if let Some(finish) = if stops { Some(Finish::Stop) } else { finish } {
            self.end(finish);
        }
    }

    /// The log-probabilities so far were sent.
    pub(super) fn clear_logprobs(&mut self) {
        self.logprobs.clear();
        self.text_logprobs = 0;
    }

    /// Whether it is over and its last tokens have no text, whose log-probabilities nothing takes along.
    pub(super) fn has_silent_end(&self) -> bool {
        self.finish.is_some() && self.ready.is_empty() && !self.logprobs.is_empty()
    }

    /// Ends the answer: what was held back is certain now.
    pub(super) fn end(&mut self, finish: Finish) {
        self.decoded.clear();
        self.detokenizer.finish(&mut self.decoded);
        let mut stopped = self.take_decoded();
        if let Some(reader) = self.reader.as_mut().filter(|_| !stopped) {
            self.content.clear();
            reader.finish(&mut self.content);
            self.sort_logprobs(true);
            stopped = self.stops.push(&self.content, &mut self.ready).is_some();
        }
        if !stopped {
            self.stops.finish(&mut self.ready);
        }
        self.finish = Some(match finish {
            Finish::Length if !stopped => FinishReason::Length,
            _ if self.reader.as_ref().is_some_and(CallReader::has_called) => FinishReason::ToolCalls,
            _ => FinishReason::Stop,
        });
    }

    /// The calls that it has begun.
    pub(super) fn calls(&self) -> &[Call] {
        self.reader.as_ref().map_or(&[], CallReader::calls)
    }

    /// Adds what was decoded to what it belongs to; whether that ends the text.
    fn take_decoded(&mut self) -> bool {
        let text = match &mut self.reader {
            None => &self.decoded,
            Some(reader) => {
                self.content.clear();
                reader.push(&self.decoded, &mut self.content);
                &self.content
            }
        };
        let stopped = if self.tokens <= self.tokens_min {
            self.ready.push_str(text);
            false
        } else {
            self.stops.push(text, &mut self.ready).is_some()
        };
        self.sort_logprobs(false);
        if !self.calls().is_empty() {
            // No text follows.
            self.stops.finish(&mut self.ready);
        }
        stopped
    }

    /// Lets go of the log-probabilities of what turned out to be a call, or, where the answer `is_over`, the beginning of one.
    fn sort_logprobs(&mut self, is_over: bool) {
        let Some(reader) = &self.reader else { return };
        if reader.is_in_text() {
            self.text_logprobs = self.logprobs.len();
        } else if is_over || !reader.calls().is_empty() {
            self.logprobs.truncate(self.text_logprobs);
        }
    }

    /// The bytes of a token. A control token has none, but some models have one to begin a call with.
    fn piece<'m>(&self, model: &'m Model, token: u32) -> &'m [u8] {
        let tokenizer = &model.tokenizer;
        if self.reader.is_some() && tokenizer.is_control(token) && tokenizer.token_text(token) == CALL_OPEN.as_bytes() {
            return CALL_OPEN.as_bytes();
        }
        if self.shows_control && tokenizer.is_control(token) {
            tokenizer.token_text(token)
        } else {
            tokenizer.piece(token)
        }
    }
}
