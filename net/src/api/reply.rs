//! JSON bodies of short answers, written field by field into a buffer.

use crate::date;
use crate::json::{write_f64, write_string, write_u64};

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// End of sequence or a stop string.
    Stop,
    /// max_tokens, or the context is full.
    Length,
    /// It calls tools, and waits for what they say.
    ToolCalls,
}

impl FinishReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
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

/// One line of a health answer.
#[derive(Debug, Clone, Copy)]
pub struct Component<'a> {
    pub name: &'a str,
    /// `healthy`, `degraded` or `unhealthy`
    pub status: &'a str,
    pub message: &'a str,
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

/// Appends the id of a call as a JSON string, short enough for OpenAI's limit of 40 characters.
pub(crate) fn write_call_id(out: &mut Vec<u8>, id: u128) {
    out.extend_from_slice(format!("\"call_{id:032x}\"").as_bytes());
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

fn separate(out: &mut Vec<u8>, index: usize) {
    if index > 0 {
        out.push(b',');
    }
}
