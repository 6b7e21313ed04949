//! The bytes of an answer, in the shape of its endpoint: one body at the end, or events as tokens come.

use net::api::{self, ChatChoice, CompletionChoice, Endpoint, FinishReason, GenerateRequest, InferenceReply, Usage};
use net::error::{ApiError, Dialect};
use net::http::{self, Request, Response};
use net::sse::{Complete, Framing, OpenAiStream, OwnStream, Progress, TextLogprobs};

use super::super::answer::count;
use super::super::choice::Choice;
use super::super::connection::unix_ms;
use super::super::peer::Writer;
use super::super::unix_time;
use super::{Clock, Shard, Work, lost, rate};
use crate::model::Model;

/// How one request is answered.
pub(super) struct Reply<'a> {
    request: &'a Request,
    id: &'a str,
    endpoint: Endpoint,
    form: Form,
    begun: bool,
    /// Whether it had begun when the last words were left.
    parted: Option<bool>,
    tokens_max: u64,
    /// Characters of each choice that were sent; legacy log-probabilities count from them.
    sent_chars: Vec<usize>,
}

enum Form {
    Whole,
    OpenAi(OpenAiStream),
    Own(OwnStream),
}

impl<'a> Reply<'a> {
    pub(super) fn new(
        model: &Model,
        endpoint: Endpoint,
        request: &'a Request,
        id: &'a str,
        generate: &GenerateRequest,
        work: &Work,
    ) -> Self {
        let framing = Framing::of(&Response::event_stream(request, id));
        let (created, model) = (unix_time().as_secs(), model.name.as_str());
        let usage = generate.include_usage;
        let form = match endpoint {
            Endpoint::InferenceStream => Form::Own(OwnStream::new(framing)),
            Endpoint::Chat if generate.stream => {
                Form::OpenAi(OpenAiStream::chat(framing, &format!("chatcmpl-{id}"), created, model, usage))
            }
            Endpoint::Completion if generate.stream => {
                Form::OpenAi(OpenAiStream::completion(framing, &format!("cmpl-{id}"), created, model, usage))
            }
            _ => Form::Whole,
        };
        let choices = work.prompts.len() * work.n as usize;
        let tokens_max = work.tokens_max.iter().map(|max| *max as u64 * u64::from(work.n)).sum();
        Self { request, id, endpoint, form, begun: false, parted: None, tokens_max, sent_chars: vec![0; choices] }
    }

    pub(super) fn is_stream(&self) -> bool {
        !matches!(self.form, Form::Whole)
    }

    /// Whether nothing but the end of the connection tells the client where a stream ends.
    pub(super) fn ends_by_close(&self) -> bool {
        self.is_stream() && self.request.is_http_1_0()
    }

    /// Whether bytes of the answer were written, so that an error can't be a status any more.
    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    /// Head and first events of a stream.
    fn begin(&mut self, shard: &Shard, work_echoes: &[String], writer: &mut Writer) {
        if self.begun || !self.is_stream() {
            return;
        }
        self.begun = true;
        count(shard, writer, 200);
        Response::event_stream(self.request, self.id).write_head(&mut writer.out);
        let Form::OpenAi(stream) = &self.form else { return };
        let per_prompt = self.sent_chars.len() / work_echoes.len().max(1);
        for (index, sent) in (0_u32..).zip(&mut self.sent_chars) {
            stream.begin(&mut writer.out, index);
            if let Some(echo) = work_echoes.get(index as usize / per_prompt) {
                stream.text(&mut writer.out, index, echo, None);
                *sent += echo.chars().count();
            }
        }
    }

    /// One token of `choice`, whose certain text lies in `ready`.
    pub(super) fn token(
        &mut self,
        shard: &Shard,
        work: &Work,
        choice: &mut Choice,
        token: u32,
        clock: &Clock,
        writer: &mut Writer,
    ) {
        self.begin(shard, &work.echoes, writer);
        match &self.form {
            Form::Whole => {}
            Form::OpenAi(_) => self.send_text(choice, writer),
            Form::Own(stream) => {
                let position = choice.tokens - 1;
                stream.token(&mut writer.out, &choice.ready, token, position, unix_ms());
                choice.ready.clear();
                if choice.tokens.is_multiple_of(PROGRESS_EVERY_TOKENS) {
                    stream.progress(&mut writer.out, &progress(choice.tokens, self.tokens_max, clock));
                }
            }
        }
    }

    /// The end of `choice`, which may release text that was held back.
    pub(super) fn end(&mut self, shard: &Shard, work: &Work, choice: &mut Choice, writer: &mut Writer) {
        self.begin(shard, &work.echoes, writer);
        if matches!(self.form, Form::OpenAi(_)) {
            self.send_text(choice, writer);
        }
    }

    fn send_text(&mut self, choice: &mut Choice, writer: &mut Writer) {
        let Form::OpenAi(stream) = &self.form else { return };
        let sent = &mut self.sent_chars[choice.index as usize];
        if !choice.ready.is_empty() {
            let logprobs =
                (!choice.logprobs.is_empty()).then_some(TextLogprobs { tokens: &choice.logprobs, text_offset: *sent });
            stream.text(&mut writer.out, choice.index, &choice.ready, logprobs);
            if logprobs.is_some() {
                *sent += choice.ready.chars().count();
            }
            choice.ready.clear();
            choice.logprobs.clear();
        }
        if let Some(reason) = choice.finish {
            stream.finish(&mut writer.out, choice.index, reason);
        }
    }

    /// The end of the answer.
    pub(super) fn finish(
        &mut self,
        shard: &Shard,
        model: &Model,
        choices: &[Choice],
        work: &Work,
        clock: &Clock,
        writer: &mut Writer,
    ) {
        self.begin(shard, &work.echoes, writer);
        let usage = Usage {
            prompt_tokens: work.prompts.iter().map(|prompt| prompt.len() as u64).sum(),
            completion_tokens: choices.iter().map(|choice| choice.tokens).sum(),
            // The choices of a prompt share it: what the first one had to compute was computed.
            cached_tokens: choices.iter().step_by(work.n as usize).map(|choice| choice.cached_tokens).sum(),
        };
        match &self.form {
            Form::Whole => self.write_whole((shard, model), choices, work, &usage, clock, writer),
            Form::OpenAi(stream) => stream.done(&mut writer.out, &usage),
            Form::Own(stream) => {
                let elapsed_ms = clock.elapsed().as_secs_f64() * 1e3;
                for choice in choices.iter().filter(|choice| !choice.ready.is_empty()) {
                    // Text that only the end made certain belongs to the last token.
                    let position = choice.tokens.saturating_sub(1);
                    stream.token(&mut writer.out, &choice.ready, choice.last_token, position, unix_ms());
                }
                stream.metrics(&mut writer.out, shard.gpus.label(work.device), memory_mb(shard));
                stream.complete(
                    &mut writer.out,
                    &Complete {
                        total_tokens: usage.completion_tokens,
                        inference_time_ms: elapsed_ms,
                        finish_reason: choices.first().and_then(|c| c.finish).unwrap_or(FinishReason::Stop),
                        request_id: self.id,
                    },
                );
            }
        }
    }

    fn write_whole(
        &self,
        (shard, model): (&Shard, &Model),
        choices: &[Choice],
        work: &Work,
        usage: &Usage,
        clock: &Clock,
        writer: &mut Writer,
    ) {
        count(shard, writer, 200);
        let (created, name) = (unix_time().as_secs(), model.name.as_str());
        let mut body = Vec::with_capacity(512 + choices.iter().map(|choice| choice.ready.len()).sum::<usize>());
        match self.endpoint {
            Endpoint::Chat => {
                let choices = choices.iter().map(|choice| ChatChoice {
                    index: choice.index,
                    content: &choice.ready,
                    finish_reason: choice.finish.unwrap_or(FinishReason::Stop),
                    logprobs: choice.with_logprobs.then_some(&choice.logprobs[..]),
                });
                let choices: Vec<_> = choices.collect();
                api::write_chat_completion(&mut body, &format!("chatcmpl-{}", self.id), created, name, &choices, usage);
            }
            Endpoint::Completion => {
                let texts: Vec<String> = choices.iter().map(|choice| echoed(choice, work)).collect();
                let choices = choices.iter().zip(&texts).map(|(choice, text)| CompletionChoice {
                    index: choice.index,
                    text,
                    finish_reason: choice.finish.unwrap_or(FinishReason::Stop),
                    logprobs: choice.with_logprobs.then_some(&choice.logprobs[..]),
                });
                let choices: Vec<_> = choices.collect();
                api::write_completion(&mut body, &format!("cmpl-{}", self.id), created, name, &choices, usage);
            }
            Endpoint::Inference | Endpoint::InferenceStream => {
                let elapsed = clock.elapsed();
                let admitted = clock.admitted.unwrap_or(clock.arrival);
                let queue = admitted.saturating_duration_since(clock.arrival);
                api::write_inference(
                    &mut body,
                    &InferenceReply {
                        text: choices.first().map_or("", |choice| &choice.ready),
                        tokens_generated: usage.completion_tokens,
                        inference_time_ms: elapsed.as_secs_f64() * 1e3,
                        tokens_per_second: rate(usage.completion_tokens, elapsed),
                        model_id: name,
                        request_id: self.id,
                        quantization_used: model.quantization,
                        device_used: shard.gpus.label(work.device),
                        batch_size: shard.metrics.step.running.get().max(1),
                        queue_time_ms: queue.as_secs_f64() * 1e3,
                        processing_time_ms: elapsed.saturating_sub(queue).as_secs_f64() * 1e3,
                        memory_usage_mb: memory_mb(shard),
                    },
                );
            }
        }
        http::write_json(&mut writer.out, self.request, self.id, 200, &body);
    }

    /// An error where the answer has begun.
    pub(super) fn error(&self, writer: &mut Writer, error: &ApiError) {
        match &self.form {
            Form::Whole => {}
            Form::OpenAi(stream) => stream.error(&mut writer.out, error),
            Form::Own(stream) => stream.error(&mut writer.out, error),
        }
    }

    /// Leaves the words that end the answer with an error if the executor breaks down while it waits.
    pub(super) fn leave_words(&mut self, writer: &Writer) {
        if self.parted.replace(self.begun) == Some(self.begun) {
            return;
        }
        let error = lost();
        writer.part_with(|out| match &self.form {
            Form::OpenAi(stream) if self.begun => stream.error(out, &error),
            Form::Own(stream) if self.begun => stream.error(out, &error),
            _ => http::write_last_error(out, self.request, self.id, &error, self.dialect(), unix_ms()),
        });
    }

    fn dialect(&self) -> Dialect {
        api::dialect_of(self.request.path())
    }

    /// A comment that keeps the connection alive; begins the stream where it has not begun.
    pub(super) fn keep_alive(&mut self, shard: &Shard, work: &Work, writer: &mut Writer) {
        self.begin(shard, &work.echoes, writer);
        match &self.form {
            Form::Whole => {}
            Form::OpenAi(stream) => stream.keep_alive(&mut writer.out),
            Form::Own(stream) => stream.keep_alive(&mut writer.out),
        }
    }
}

fn echoed(choice: &Choice, work: &Work) -> String {
    work.echoes.get(choice.prompt).map_or_else(|| choice.ready.clone(), |echo| format!("{echo}{}", choice.ready))
}

#[expect(clippy::cast_precision_loss, reason = "token counts are small")]
fn progress(tokens: u64, tokens_max: u64, clock: &Clock) -> Progress {
    let tokens_per_second = rate(tokens, clock.elapsed());
    let remaining = tokens_max.saturating_sub(tokens) as f64;
    let estimated_remaining_ms = if tokens_per_second > 0.0 { remaining / tokens_per_second * 1e3 } else { 0.0 };
    Progress { tokens_generated: tokens, tokens_per_second, estimated_remaining_ms }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn memory_mb(shard: &Shard) -> f64 {
    shard.rss_bytes.get() as f64 / f64::from(1 << 20)
}

const PROGRESS_EVERY_TOKENS: u64 = 16;
