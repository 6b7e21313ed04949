//! The bytes of an answer, in the shape of its endpoint: one body at the end, or events as tokens come.

use net::api::{
    self, CallReply, CompletionBody, Endpoint, FinishReason, GenerateRequest, InferenceReply, PieceOf, ResponseAnswer,
    ResponseBody, ResponseHead, TokenIds, ToolChoice, Usage,
};
use net::error::{ApiError, Dialect};
use net::http::{self, Request, Response};
use net::sse::{Complete, Framing, OpenAiStream, OwnStream, Progress, ResponseStream, TextLogprobs};

use super::super::answer::count;
use super::super::body;
use super::super::choice::Choice;
use super::super::connection::unix_ms;
use super::super::peer::{Peer, Writer};
use super::super::unix_time;
use super::{Clock, Shard, Work, lost, rate};
use crate::model::Model;
use crate::receipts;

/// How one request is answered.
pub(super) struct Reply<'a> {
    request: &'a Request,
    id: &'a str,
    endpoint: Endpoint,
    form: Form<'a>,
    begun: bool,
    /// Whether it had begun when the last words were left, and which event of a response was next.
    parted: Option<(bool, u64)>,
    /// What the answer of a response repeats.
    parameters: &'a [u8],
    /// Unix seconds.
    created_s: u64,
    tokens_max: u64,
    /// What the ids of calls are counted from.
    call_id: u128,
    /// Whether there can be text beside calls.
    has_text: bool,
    /// Of each choice, of an OpenAI stream.
    sent: Vec<Sent>,
    /// The choice that had more to send than was room for.
    owing: Option<usize>,
}

/// What of a choice was sent.
#[derive(Clone, Copy, Default)]
struct Sent {
    begun: bool,
    /// Ids of the prompt.
    prompt: bool,
    /// Bytes of the prompt.
    echo: usize,
    /// Characters of the tokens whose log-probabilities were sent; legacy ones count from them.
    chars: usize,
    /// Log-probabilities of the text that is being sent.
    logprobs: usize,
    /// Calls that were sent, the last one as far as `arguments` bytes of it, if it was begun.
    calls: usize,
    is_in_call: bool,
    arguments: usize,
    finished: bool,
}

/// Whose answer it is: the shard, its model, and what was asked.
pub(super) type Of<'s> = (&'s Shard, &'s Model, &'s Work);

/// A whole answer.
pub(super) type Answer<'s> = (&'s Model, &'s [Choice], &'s Work, &'s Clock);

enum Form<'a> {
    Whole,
    OpenAi(OpenAiStream),
    Response(Box<ResponseStream<'a>>),
    Own(OwnStream),
}

impl<'a> Reply<'a> {
    pub(super) fn new(
        model: &Model,
        endpoint: Endpoint,
        request: &'a Request,
        id: &'a str,
        generate: &'a GenerateRequest,
        work: &Work,
    ) -> Self {
        let framing = Framing::of(&Response::event_stream(request, id));
        let (call_id, parameters) =
            (receipts::parse_id(id).unwrap_or_default(), generate.parameters.as_deref().unwrap_or_default());
        let (created, model) = (unix_time().as_secs(), model.name.as_str());
        let usage = generate.include_usage;
        let form = match endpoint {
            Endpoint::InferenceStream => Form::Own(OwnStream::new(framing)),
            Endpoint::Chat if generate.stream => {
                Form::OpenAi(OpenAiStream::chat(framing, &format!("chatcmpl-{id}"), created, model, usage))
            }
            Endpoint::Responses if generate.stream => {
                let model = model.to_owned();
                let head = ResponseHead { id: call_id, created_s: created, model, parameters };
                Form::Response(Box::new(ResponseStream::new(framing, head)))
            }
            Endpoint::Completion if generate.stream => {
                Form::OpenAi(OpenAiStream::completion(framing, &format!("cmpl-{id}"), created, model, usage))
            }
            _ => Form::Whole,
        };
        let choices = work.prompts.len() * work.n as usize;
        let tokens_max = work.tokens_max.iter().map(|max| *max as u64 * u64::from(work.n)).sum();
        let sent = vec![Sent::default(); choices];
        let has_text = generate.tools().is_none_or(|tools| tools.choice == ToolChoice::Auto);
        let (begun, parted, owing, created_s) = (false, None, None, created);
        Self {
            request,
            id,
            endpoint,
            form,
            begun,
            parted,
            parameters,
            created_s,
            tokens_max,
            call_id,
            has_text,
            sent,
            owing,
        }
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

    /// Head of a stream.
    fn begin(&mut self, shard: &Shard, writer: &mut Writer) {
        if self.begun || !self.is_stream() {
            return;
        }
        self.begun = true;
        count(shard, writer, 200);
        Response::event_stream(self.request, self.id).write_head(&mut writer.out);
    }

    /// One token of `choice`, whose certain text lies in `ready`.
    pub(super) fn token(&mut self, of: Of<'_>, choice: &mut Choice, token: u32, clock: &Clock, writer: &mut Writer) {
        self.begin(of.0, writer);
        match &self.form {
            Form::Whole => {}
            Form::OpenAi(_) => self.send(of, choice, writer),
            Form::Response(_) => self.send_response(of, choice, writer),
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
    pub(super) fn end(&mut self, of: Of<'_>, choice: &mut Choice, writer: &mut Writer) {
        self.begin(of.0, writer);
        match &self.form {
            Form::OpenAi(_) => self.send(of, choice, writer),
            Form::Response(_) => self.send_response(of, choice, writer),
            Form::Whole | Form::Own(_) => {}
        }
    }

    /// Sends what was no room for; where all `choices` are over, also of those that ended without a token. Whether nothing is
    /// left.
    pub(super) fn go_on(&mut self, of: Of<'_>, choices: &mut [Choice], is_over: bool, writer: &mut Writer) -> bool {
        if let Form::Response(stream) = &self.form {
            if self.owing.take().is_some() || is_over && !stream.is_over() {
                self.begin(of.0, writer);
                self.send_response(of, &mut choices[0], writer);
            }
            return self.owing.is_none();
        }
        if let Some(owing) = self.owing.take() {
            self.send(of, &mut choices[owing], writer);
        }
        if is_over && matches!(self.form, Form::OpenAi(_)) {
            self.begin(of.0, writer);
            while self.owing.is_none()
                && let Some(choice) = choices.iter_mut().find(|choice| !self.sent[choice.index as usize].finished)
            {
                self.send(of, choice, writer);
            }
        }
        self.owing.is_none()
    }

    /// Sends what `choice` has, event by event, and remembers it where that is more than there is room for.
    fn send(&mut self, (_, model, work): Of<'_>, choice: &mut Choice, writer: &mut Writer) {
        let Form::OpenAi(stream) = &self.form else { return };
        let (index, sent) = (choice.index, &mut self.sent[choice.index as usize]);
        let echo = work.echoes.get(choice.prompt).map_or("", String::as_str);
        let piece_of = |token| model.tokenizer.piece(token);
        loop {
            if writer.is_full() {
                self.owing = Some(index as usize);
                return;
            }
            if !sent.begun {
                sent.begun = true;
                let answer = &[];
                let ids = choice.token_ids.is_some().then(|| TokenIds { prompt: &work.prompts[choice.prompt], answer });
                stream.begin(&mut writer.out, index, self.has_text, ids);
                // Of a completion this was nothing.
                sent.prompt = self.endpoint == Endpoint::Chat;
            } else if sent.echo < echo.len() {
                let part = api::beginning(&echo[sent.echo..]);
                stream.text(&mut writer.out, index, part, None, sent.ids(choice, work));
                sent.took_ids(choice);
                sent.echo += part.len();
            } else if !choice.ready.is_empty() || sent.logprobs > 0 || choice.has_silent_end() {
                let (tokens, from) = (&choice.logprobs, sent.logprobs);
                let logprobs = (!tokens.is_empty()).then_some(TextLogprobs {
                    tokens,
                    from,
                    piece_of: &piece_of,
                    text_offset: sent.chars,
                });
                let ids = sent.ids(choice, work);
                sent.logprobs = stream.text(&mut writer.out, index, &choice.ready, logprobs, ids);
                if logprobs.is_some() {
                    sent.chars += tokens.chars(from..sent.logprobs, &piece_of);
                }
                choice.ready.clear();
                sent.took_ids(choice);
                if sent.logprobs == choice.logprobs.len() {
                    choice.clear_logprobs();
                    sent.logprobs = 0;
                }
            } else if !sent.send_call(stream, choice, (self.call_id, work), writer) {
                break;
            }
        }
        if let Some(reason) = choice.finish
            && !sent.finished
        {
            stream.finish(&mut writer.out, index, reason, sent.ids(choice, work));
            sent.took_ids(choice);
            sent.finished = true;
        }
    }

    /// The same of a response, whose events at the end repeat all of it.
    fn send_response(&mut self, (_, model, work): Of<'_>, choice: &mut Choice, writer: &mut Writer) {
        let Form::Response(stream) = &mut self.form else { return };
        let mut text = std::mem::take(&mut choice.ready);
        let piece_of = |token| model.tokenizer.piece(token);
        let call_of = |index| call_at(self.call_id, choice, work, index);
        let answer = answer_of(choice, work, &call_of, &piece_of, "");
        while !writer.is_full() && stream.advance(&mut writer.out, &mut text, &answer) {}
        if writer.is_full() {
            self.owing = Some(0);
        }
        if stream.is_within_event() {
            // Nothing may come in between.
            writer.part_with(|_| {});
            self.parted = None;
        }
        choice.ready = text;
    }

    /// The end of a stream.
    pub(super) fn finish(&mut self, shard: &Shard, (_, choices, work, clock): Answer<'_>, writer: &mut Writer) {
        self.begin(shard, writer);
        let usage = usage(choices, work);
        match &self.form {
            Form::Whole => {}
            Form::OpenAi(stream) => stream.done(&mut writer.out, &usage),
            Form::Response(stream) => stream.end(&mut writer.out),
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

    /// Sends an answer that is no stream. `false` where the connection can't go on.
    pub(super) async fn send_whole(&self, shard: &Shard, peer: &Peer, answer: Answer<'_>, writer: &mut Writer) -> bool {
        let (model, choices, work, clock) = answer;
        let (created, name) = (unix_time().as_secs(), model.name.as_str());
        let usage = usage(choices, work);
        let piece_of = |token| model.tokenizer.piece(token);
        if let (Endpoint::Responses, [choice]) = (self.endpoint, choices) {
            let head = ResponseHead {
                id: self.call_id,
                created_s: self.created_s,
                model: name.to_owned(),
                parameters: self.parameters,
            };
            let call_of = |index| call_at(self.call_id, choice, work, index);
            let answer = answer_of(choice, work, &call_of, &piece_of, &choice.ready);
            let mut body = ResponseBody::new(&head, &answer);
            return body::send(shard, peer, self.request, self.id, writer, |out| body.write_piece(out)).await;
        }
        let calls: Vec<Vec<CallReply<'_>>> = choices.iter().map(|choice| self.calls(choice, work)).collect();
        let parts: Vec<_> = choices
            .iter()
            .zip(&calls)
            .map(|(choice, calls)| api::Choice {
                index: choice.index,
                echo: work.echoes.get(choice.prompt).map_or("", String::as_str),
                text: &choice.ready,
                calls,
                finish_reason: choice.finish.unwrap_or(FinishReason::Stop),
                logprobs: choice.with_logprobs.then_some(&choice.logprobs),
                token_ids: Sent::default().ids(choice, work),
            })
            .collect();
        let id = match self.endpoint {
            Endpoint::Chat => format!("chatcmpl-{}", self.id),
            Endpoint::Completion => format!("cmpl-{}", self.id),
            Endpoint::Responses | Endpoint::Inference | Endpoint::InferenceStream => {
                let write = |out: &mut Vec<u8>| write_inference(out, shard, self.id, (model, choices, work, clock));
                return body::send(shard, peer, self.request, self.id, writer, write).await;
            }
        };
        let make = if self.endpoint == Endpoint::Chat { CompletionBody::chat } else { CompletionBody::completion };
        let mut body = make(&id, created, name, &parts, usage, &piece_of);
        body::send(shard, peer, self.request, self.id, writer, |out| body.write_piece(out)).await
    }

    fn calls<'c>(&self, choice: &'c Choice, work: &'c Work) -> Vec<CallReply<'c>> {
        (0..).map_while(|index| call_at(self.call_id, choice, work, index)).collect()
    }

    /// An error where the answer has begun.
    pub(super) fn error(&mut self, writer: &mut Writer, error: &ApiError) {
        match &mut self.form {
            Form::Whole => {}
            Form::OpenAi(stream) => stream.error(&mut writer.out, error),
            Form::Response(stream) => stream.fail(&mut writer.out, error),
            Form::Own(stream) => stream.error(&mut writer.out, error),
        }
    }

    /// Leaves the words that end the answer with an error if the executor breaks down while it waits.
    pub(super) fn leave_words(&mut self, writer: &Writer) {
        let next = if let Form::Response(stream) = &self.form { stream.sequence() } else { 0 };
        if self.parted.replace((self.begun, next)) == Some((self.begun, next)) {
            return;
        }
        let error = lost();
        writer.part_with(|out| match &self.form {
            Form::OpenAi(stream) if self.begun => stream.error(out, &error),
            Form::Response(stream) if self.begun => stream.error(out, &error),
            Form::Own(stream) if self.begun => stream.error(out, &error),
            _ => http::write_last_error(out, self.request, self.id, &error, self.dialect(), unix_ms()),
        });
    }

    fn dialect(&self) -> Dialect {
        api::dialect_of(self.request.path())
    }

    /// A comment that keeps the connection alive; begins the stream where it has not begun.
    pub(super) fn keep_alive(&mut self, shard: &Shard, writer: &mut Writer) {
        self.begin(shard, writer);
        match &self.form {
            Form::Whole => {}
            Form::OpenAi(stream) => stream.keep_alive(&mut writer.out),
            Form::Response(stream) => stream.keep_alive(&mut writer.out),
            Form::Own(stream) => stream.keep_alive(&mut writer.out),
        }
    }
}

impl Sent {
    /// What a chunk has of ids, where they were asked for: those that were not sent.
    fn ids<'c>(&self, choice: &'c Choice, work: &'c Work) -> Option<TokenIds<'c>> {
        let answer = choice.token_ids.as_deref()?;
        Some(TokenIds { prompt: if self.prompt { &[] } else { &work.prompts[choice.prompt] }, answer })
    }

    /// They were sent.
    fn took_ids(&mut self, choice: &mut Choice) {
        self.prompt = true;
        if let Some(ids) = &mut choice.token_ids {
            ids.clear();
        }
    }

    /// Sends the next event of a call; whether there was one.
    fn send_call(&mut self, stream: &OpenAiStream, choice: &Choice, of: (u128, &Work), writer: &mut Writer) -> bool {
        let Some(call) = choice.calls().get(self.calls) else { return false };
        let (index, rest) = (choice.index, &call.arguments[self.arguments..]);
        if !self.is_in_call {
            let id = id_of_call(of.0, index, self.calls);
            stream.call(&mut writer.out, index, self.calls, id, of.1.name_of(call));
            self.is_in_call = true;
        } else if !rest.is_empty() {
            let part = api::beginning(rest);
            stream.arguments(&mut writer.out, index, self.calls, part);
            self.arguments += part.len();
        } else if call.is_complete {
            *self = Self { calls: self.calls + 1, is_in_call: false, arguments: 0, ..*self };
        } else {
            return false;
        }
        true
    }
}

/// The call of that index, if the choice has begun it.
fn call_at<'c>(request: u128, choice: &'c Choice, work: &'c Work, index: usize) -> Option<CallReply<'c>> {
    let call = choice.calls().get(index)?;
    Some(CallReply {
        id: id_of_call(request, choice.index, index),
        name: work.name_of(call),
        arguments: &call.arguments,
        is_complete: call.is_complete,
    })
}

/// What a response says of the only choice.
fn answer_of<'t, 'c>(
    choice: &'c Choice,
    work: &Work,
    call_of: &'c dyn Fn(usize) -> Option<CallReply<'c>>,
    piece_of: PieceOf<'c>,
    text: &'t str,
) -> ResponseAnswer<'t, 'c> {
    let logprobs = choice.with_logprobs.then_some(&choice.logprobs);
    let (mut total, mut completed_s) = (Usage::default(), 0);
    if choice.finish.is_some() {
        (total, completed_s) = (usage(std::slice::from_ref(choice), work), unix_time().as_secs());
    }
    ResponseAnswer { text, call_of, logprobs, piece_of, finish: choice.finish, usage: total, completed_s }
}

/// Distinct within the request, and as the request's is random, within all of them.
fn id_of_call(request: u128, choice: u32, call: usize) -> u128 {
    request.wrapping_add((u128::from(choice) + 1) << 32 | call as u128)
}

fn usage(choices: &[Choice], work: &Work) -> Usage {
    Usage {
        prompt_tokens: work.prompts.iter().map(|prompt| prompt.len() as u64).sum(),
        completion_tokens: choices.iter().map(|choice| choice.tokens).sum(),
        // The choices of a prompt share it: what the first one had to compute was computed.
        cached_tokens: choices.iter().step_by(work.n as usize).map(|choice| choice.cached_tokens).sum(),
    }
}

/// Appends the answer of our own endpoint, which is short; it is the last piece.
fn write_inference(out: &mut Vec<u8>, shard: &Shard, id: &str, (model, choices, work, clock): Answer<'_>) -> bool {
    let elapsed = clock.elapsed();
    let admitted = clock.admitted.unwrap_or(clock.arrival);
    let queue = admitted.saturating_duration_since(clock.arrival);
    let tokens = usage(choices, work).completion_tokens;
    let reply = InferenceReply {
        text: choices.first().map_or("", |choice| &choice.ready),
        tokens_generated: tokens,
        inference_time_ms: elapsed.as_secs_f64() * 1e3,
        tokens_per_second: rate(tokens, elapsed),
        model_id: model.name.as_str(),
        request_id: id,
        quantization_used: model.quantization,
        device_used: shard.gpus.label(work.device),
        batch_size: shard.metrics.step.running.get().max(1),
        queue_time_ms: queue.as_secs_f64() * 1e3,
        processing_time_ms: elapsed.saturating_sub(queue).as_secs_f64() * 1e3,
        memory_usage_mb: memory_mb(shard),
    };
    api::write_inference(out, &reply);
    true
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
