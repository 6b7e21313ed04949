//! Events of `POST /v1/inference/stream`: each has a name, and its data repeats it as `type`.

use super::Framing;
use crate::api::FinishReason;
use crate::date;
use crate::error::ApiError;
use crate::json::{write_f64, write_string, write_u64};

/// Writer of one stream; it holds nothing but the framing.
#[derive(Debug, Clone, Copy)]
pub struct OwnStream {
    framing: Framing,
}

/// Data of `progress`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    pub tokens_generated: u64,
    pub tokens_per_second: f64,
    pub estimated_remaining_ms: f64,
}

/// Data of `complete`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Complete<'a> {
    pub total_tokens: u64,
    pub inference_time_ms: f64,
    pub finish_reason: FinishReason,
    pub request_id: &'a str,
}

impl OwnStream {
    pub fn new(framing: Framing) -> Self {
        Self { framing }
    }

    /// Appends a token; `position` counts generated tokens from 0.
    pub fn token(&self, out: &mut Vec<u8>, text: &str, token_id: u32, position: u64, unix_ms: u64) {
        self.framing.frame(out, |out| {
            out.extend_from_slice(b"event: token\ndata: {\"type\":\"token\",\"text\":");
            write_string(out, text);
            out.extend_from_slice(b",\"token_id\":");
            write_u64(out, u64::from(token_id));
            out.extend_from_slice(b",\"position\":");
            write_u64(out, position);
            out.extend_from_slice(b",\"timestamp\":\"");
            date::write_rfc3339(out, unix_ms);
            out.extend_from_slice(b"\"}\n\n");
        });
    }

    pub fn progress(&self, out: &mut Vec<u8>, progress: &Progress) {
        self.framing.frame(out, |out| {
            out.extend_from_slice(b"event: progress\ndata: {\"type\":\"progress\",\"tokens_generated\":");
            write_u64(out, progress.tokens_generated);
            out.extend_from_slice(b",\"tokens_per_second\":");
            write_f64(out, progress.tokens_per_second);
            out.extend_from_slice(b",\"estimated_remaining_ms\":");
            write_f64(out, progress.estimated_remaining_ms);
            out.extend_from_slice(b"}\n\n");
        });
    }

    /// Appends the device (`cpu` or `cuda:N`) and the memory in use.
    pub fn metrics(&self, out: &mut Vec<u8>, device: &str, memory_usage_mb: f64) {
        self.framing.frame(out, |out| {
            out.extend_from_slice(b"event: metrics\ndata: {\"type\":\"metrics\",\"device\":");
            write_string(out, device);
            out.extend_from_slice(b",\"memory_usage_mb\":");
            write_f64(out, memory_usage_mb);
            out.extend_from_slice(b"}\n\n");
        });
    }

    /// Appends an error and the body's end.
    pub fn error(&self, out: &mut Vec<u8>, error: &ApiError) {
        self.framing.frame(out, |out| {
            out.extend_from_slice(b"event: error\ndata: {\"type\":\"error\",\"code\":\"");
            out.extend_from_slice(error.code.as_str().as_bytes());
            out.extend_from_slice(b"\",\"message\":");
            write_string(out, &error.message);
            out.extend_from_slice(b",\"details\":{\"status\":");
            write_u64(out, u64::from(error.status));
            out.extend_from_slice(b"}}\n\n");
        });
        self.framing.end(out);
    }

    /// Appends the last event and the body's end.
    pub fn complete(&self, out: &mut Vec<u8>, complete: &Complete<'_>) {
        self.framing.frame(out, |out| {
            out.extend_from_slice(b"event: complete\ndata: {\"type\":\"complete\",\"total_tokens\":");
            write_u64(out, complete.total_tokens);
            out.extend_from_slice(b",\"inference_time_ms\":");
            write_f64(out, complete.inference_time_ms);
            out.extend_from_slice(b",\"finish_reason\":\"");
            out.extend_from_slice(complete.finish_reason.as_str().as_bytes());
            out.extend_from_slice(b"\",\"request_id\":");
            write_string(out, complete.request_id);
            out.extend_from_slice(b"}\n\n");
        });
        self.framing.end(out);
    }

    /// Appends a keep-alive comment.
    pub fn keep_alive(&self, out: &mut Vec<u8>) {
        self.framing.keep_alive(out);
    }
}
