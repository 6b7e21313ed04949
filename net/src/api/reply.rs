//! JSON bodies of successful answers, written field by field into a buffer.

use crate::date;
use crate::json::{write_f32, write_f64, write_string, write_string_lossy, write_u64};

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// End of sequence or a stop string.
    Stop,
    /// max_tokens, or the context is full.
    Length,
}

impl FinishReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// Token counts over all sequences of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// Prompt tokens whose KV came from a cache.
    pub cached_tokens: u64,
}

/// Log-probability of a chosen token, and of the best ones at its position.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprob {
    /// The token's piece, not always UTF-8.
    pub token: Vec<u8>,
    /// Natural logarithm; None for an echoed first token, which nothing predicts.
    pub logprob: Option<f32>,
    pub top: Vec<(Vec<u8>, f32)>,
}

/// One answer of a chat completion.
#[derive(Debug, Clone, Copy)]
pub struct ChatChoice<'a> {
    pub index: u32,
    pub content: &'a str,
    pub finish_reason: FinishReason,
    pub logprobs: Option<&'a [Logprob]>,
}

/// One answer of a legacy completion.
#[derive(Debug, Clone, Copy)]
pub struct CompletionChoice<'a> {
    pub index: u32,
    pub text: &'a str,
    pub finish_reason: FinishReason,
    pub logprobs: Option<&'a [Logprob]>,
}

/// Answer of `POST /v1/inference`.
#[derive(Debug, Clone, Copy)]
pub struct InferenceReply<'a> {
    pub text: &'a str,
    pub tokens_generated: u64,
    pub inference_time_ms: f64,
    pub tokens_per_second: f64,
    pub model_id: &'a str,
    pub request_id: &'a str,
    pub quantization_used: &'a str,
    /// `cpu` or `cuda:N`
    pub device_used: &'a str,
    /// Most rows that shared a step with this request.
    pub batch_size: u64,
    pub queue_time_ms: f64,
    pub processing_time_ms: f64,
    pub memory_usage_mb: f64,
}

/// A served model.
#[derive(Debug, Clone, Copy)]
pub struct ModelCard<'a> {
    pub id: &'a str,
    /// Unix seconds.
    pub created_s: u64,
    /// Positions of its context.
    pub context_max: u32,
    /// Length of its vectors, of an embedding model.
    pub dimensions: Option<u32>,
}

/// A token and its bytes.
#[derive(Debug, Clone, Copy)]
pub struct TokenPiece<'a> {
    pub id: u32,
    pub piece: &'a [u8],
}

/// One line of a health answer.
#[derive(Debug, Clone, Copy)]
pub struct Component<'a> {
    pub name: &'a str,
    /// `healthy`, `degraded` or `unhealthy`
    pub status: &'a str,
    pub message: &'a str,
}

/// Appends OpenAI's `chat.completion`. `created_s` is Unix seconds.
pub fn write_chat_completion(
    out: &mut Vec<u8>,
    id: &str,
    created_s: u64,
    model: &str,
    choices: &[ChatChoice<'_>],
    usage: &Usage,
) {
    write_completion_head(out, id, "chat.completion", created_s, model);
    for (at, choice) in choices.iter().enumerate() {
        separate(out, at);
        out.extend_from_slice(b"{\"index\":");
        write_u64(out, u64::from(choice.index));
        out.extend_from_slice(b",\"message\":{\"role\":\"assistant\",\"content\":");
        write_string(out, choice.content);
        out.extend_from_slice(b",\"refusal\":null},\"logprobs\":");
        match choice.logprobs {
            Some(logprobs) => write_chat_logprobs(out, logprobs),
            None => out.extend_from_slice(b"null"),
        }
        write_finish_reason(out, choice.finish_reason);
    }
    write_completion_tail(out, usage);
}

/// Appends OpenAI's `text_completion`. `created_s` is Unix seconds.
pub fn write_completion(
    out: &mut Vec<u8>,
    id: &str,
    created_s: u64,
    model: &str,
    choices: &[CompletionChoice<'_>],
    usage: &Usage,
) {
    write_completion_head(out, id, "text_completion", created_s, model);
    for (at, choice) in choices.iter().enumerate() {
        separate(out, at);
        out.extend_from_slice(b"{\"index\":");
        write_u64(out, u64::from(choice.index));
        out.extend_from_slice(b",\"text\":");
        write_string(out, choice.text);
        out.extend_from_slice(b",\"logprobs\":");
        match choice.logprobs {
            Some(logprobs) => write_completion_logprobs(out, logprobs, 0),
            None => out.extend_from_slice(b"null"),
        }
        write_finish_reason(out, choice.finish_reason);
    }
    write_completion_tail(out, usage);
}

fn write_completion_head(out: &mut Vec<u8>, id: &str, object: &str, created_s: u64, model: &str) {
    out.extend_from_slice(b"{\"id\":");
    write_string(out, id);
    out.extend_from_slice(b",\"object\":\"");
    out.extend_from_slice(object.as_bytes());
    out.extend_from_slice(b"\",\"created\":");
    write_u64(out, created_s);
    out.extend_from_slice(b",\"model\":");
    write_string(out, model);
    out.extend_from_slice(b",\"choices\":[");
}

fn write_finish_reason(out: &mut Vec<u8>, finish_reason: FinishReason) {
    out.extend_from_slice(b",\"finish_reason\":\"");
    out.extend_from_slice(finish_reason.as_str().as_bytes());
    out.extend_from_slice(b"\"}");
}

fn write_completion_tail(out: &mut Vec<u8>, usage: &Usage) {
    out.extend_from_slice(b"],\"usage\":");
    write_usage(out, usage);
    out.push(b'}');
}

pub(crate) fn write_usage(out: &mut Vec<u8>, usage: &Usage) {
    out.extend_from_slice(b"{\"prompt_tokens\":");
    write_u64(out, usage.prompt_tokens);
    out.extend_from_slice(b",\"completion_tokens\":");
    write_u64(out, usage.completion_tokens);
    out.extend_from_slice(b",\"total_tokens\":");
    write_u64(out, usage.prompt_tokens.saturating_add(usage.completion_tokens));
    out.extend_from_slice(b",\"prompt_tokens_details\":{\"cached_tokens\":");
    write_u64(out, usage.cached_tokens);
    out.extend_from_slice(b"}}");
}

/// Chat shape: `{"content":[{token,logprob,bytes,top_logprobs}]}`.
pub(crate) fn write_chat_logprobs(out: &mut Vec<u8>, logprobs: &[Logprob]) {
    out.extend_from_slice(b"{\"content\":[");
    for (at, token) in logprobs.iter().enumerate() {
        separate(out, at);
        write_token_logprob(out, &token.token, token.logprob.unwrap_or(0.0));
        out.extend_from_slice(b",\"top_logprobs\":[");
        for (at, (piece, logprob)) in token.top.iter().enumerate() {
            separate(out, at);
            write_token_logprob(out, piece, *logprob);
            out.push(b'}');
        }
        out.extend_from_slice(b"]}");
    }
    out.extend_from_slice(b"],\"refusal\":null}");
}

/// An object left open for more fields.
fn write_token_logprob(out: &mut Vec<u8>, piece: &[u8], logprob: f32) {
    out.extend_from_slice(b"{\"token\":");
    write_string_lossy(out, piece);
    out.extend_from_slice(b",\"logprob\":");
    write_logprob(out, logprob);
    out.extend_from_slice(b",\"bytes\":");
    write_byte_array(out, piece);
}

/// Legacy shape: four parallel arrays; `text_offset` counts characters and starts where this piece of text does.
pub(crate) fn write_completion_logprobs(out: &mut Vec<u8>, logprobs: &[Logprob], text_offset: usize) {
    out.extend_from_slice(b"{\"tokens\":[");
    for (at, token) in logprobs.iter().enumerate() {
        separate(out, at);
        write_piece_key(out, &token.token);
    }
    out.extend_from_slice(b"],\"token_logprobs\":[");
    for (at, token) in logprobs.iter().enumerate() {
        separate(out, at);
        match token.logprob {
            Some(logprob) => write_logprob(out, logprob),
            None => out.extend_from_slice(b"null"),
        }
    }
    out.extend_from_slice(b"],\"top_logprobs\":[");
    for (at, token) in logprobs.iter().enumerate() {
        separate(out, at);
        if token.top.is_empty() {
            out.extend_from_slice(b"null");
            continue;
        }
        out.push(b'{');
        for (at, (piece, logprob)) in token.top.iter().enumerate() {
            separate(out, at);
            write_piece_key(out, piece);
            out.push(b':');
            write_logprob(out, *logprob);
        }
        out.push(b'}');
    }
    out.extend_from_slice(b"],\"text_offset\":[");
    let mut offset = text_offset;
    for (at, token) in logprobs.iter().enumerate() {
        separate(out, at);
        write_u64(out, offset as u64);
        // Characters begun by this token: continuation bytes belong to an earlier one.
        offset += token.token.iter().filter(|&&byte| byte & 0xc0 != 0x80).count();
    }
    out.extend_from_slice(b"]}");
}

/// OpenAI's floor for what is practically impossible; JSON has no -inf.
fn write_logprob(out: &mut Vec<u8>, logprob: f32) {
    write_f32(out, logprob.max(-9999.0));
}

/// A piece as a key: `bytes:\xNN..` as OpenAI spells what is not UTF-8, so that keys stay distinct.
fn write_piece_key(out: &mut Vec<u8>, piece: &[u8]) {
    match str::from_utf8(piece) {
        Ok(text) => write_string(out, text),
        Err(_) => {
            let mut key = String::from("bytes:");
            piece.iter().for_each(|byte| key.push_str(&format!("\\x{byte:02x}")));
            write_string(out, &key);
        }
    }
}

/// Appends the answer of `POST /v1/inference`.
pub fn write_inference(out: &mut Vec<u8>, reply: &InferenceReply<'_>) {
    out.extend_from_slice(b"{\"text\":");
    write_string(out, reply.text);
    out.extend_from_slice(b",\"tokens_generated\":");
    write_u64(out, reply.tokens_generated);
    out.extend_from_slice(b",\"inference_time_ms\":");
    write_f64(out, reply.inference_time_ms);
    out.extend_from_slice(b",\"tokens_per_second\":");
    write_f64(out, reply.tokens_per_second);
    out.extend_from_slice(b",\"model_id\":");
    write_string(out, reply.model_id);
    out.extend_from_slice(b",\"request_id\":");
    write_string(out, reply.request_id);
    out.extend_from_slice(b",\"quantization_used\":");
    write_string(out, reply.quantization_used);
    out.extend_from_slice(b",\"device_used\":");
    write_string(out, reply.device_used);
    out.extend_from_slice(b",\"performance_metrics\":{\"batch_size\":");
    write_u64(out, reply.batch_size);
    out.extend_from_slice(b",\"queue_time_ms\":");
    write_f64(out, reply.queue_time_ms);
    out.extend_from_slice(b",\"processing_time_ms\":");
    write_f64(out, reply.processing_time_ms);
    out.extend_from_slice(b",\"memory_usage_mb\":");
    write_f64(out, reply.memory_usage_mb);
    out.extend_from_slice(b"}}");
}

/// Appends the list of `GET /v1/models`.
pub fn write_models(out: &mut Vec<u8>, models: &[ModelCard<'_>]) {
    out.extend_from_slice(b"{\"object\":\"list\",\"data\":[");
    for (at, model) in models.iter().enumerate() {
        separate(out, at);
        write_model(out, model);
    }
    out.extend_from_slice(b"]}");
}

/// Appends one model object.
pub fn write_model(out: &mut Vec<u8>, model: &ModelCard<'_>) {
    out.extend_from_slice(b"{\"id\":");
    write_string(out, model.id);
    out.extend_from_slice(b",\"object\":\"model\",\"created\":");
    write_u64(out, model.created_s);
    out.extend_from_slice(b",\"owned_by\":\"bitnetd\",\"max_model_len\":");
    write_u64(out, u64::from(model.context_max));
    match model.dimensions {
        Some(dimensions) => {
            out.extend_from_slice(b",\"kind\":\"embedding\",\"dimensions\":");
            write_u64(out, u64::from(dimensions));
        }
        None => out.extend_from_slice(b",\"kind\":\"generation\""),
    }
    out.push(b'}');
}

/// Appends the answer of tokenize: ids, or with `with_pieces` objects of id and piece. A piece that is not UTF-8 is
/// an array of its bytes.
pub fn write_tokenized<'a>(out: &mut Vec<u8>, tokens: impl IntoIterator<Item = TokenPiece<'a>>, with_pieces: bool) {
    out.extend_from_slice(b"{\"tokens\":[");
    let mut count = 0;
    for token in tokens {
        separate(out, count);
        count += 1;
        if !with_pieces {
            write_u64(out, u64::from(token.id));
            continue;
        }
        out.extend_from_slice(b"{\"id\":");
        write_u64(out, u64::from(token.id));
        out.extend_from_slice(b",\"piece\":");
        match str::from_utf8(token.piece) {
            Ok(text) => write_string(out, text),
            Err(_) => write_byte_array(out, token.piece),
        }
        out.push(b'}');
    }
    out.extend_from_slice(b"],\"count\":");
    write_u64(out, count as u64);
    out.push(b'}');
}

/// Appends the answer of detokenize; what is not UTF-8 becomes U+FFFD.
pub fn write_detokenized(out: &mut Vec<u8>, content: &[u8]) {
    out.extend_from_slice(b"{\"content\":");
    write_string_lossy(out, content);
    out.push(b'}');
}

/// Appends a health body: `status` of the whole, then its components.
pub fn write_health(out: &mut Vec<u8>, status: &str, unix_ms: u64, components: &[Component<'_>]) {
    out.extend_from_slice(b"{\"status\":");
    write_string(out, status);
    out.extend_from_slice(b",\"timestamp\":\"");
    date::write_rfc3339(out, unix_ms);
    out.extend_from_slice(b"\",\"components\":{");
    for (at, component) in components.iter().enumerate() {
        separate(out, at);
        write_string(out, component.name);
        out.extend_from_slice(b":{\"status\":");
        write_string(out, component.status);
        out.extend_from_slice(b",\"message\":");
        write_string(out, component.message);
        out.push(b'}');
    }
    out.extend_from_slice(b"}}");
}

fn write_byte_array(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'[');
    for (at, byte) in bytes.iter().enumerate() {
        separate(out, at);
        write_u64(out, u64::from(*byte));
    }
    out.push(b']');
}

fn separate(out: &mut Vec<u8>, index: usize) {
    if index > 0 {
        out.push(b',');
    }
}
