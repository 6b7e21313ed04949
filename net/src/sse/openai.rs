//! OpenAI's chunks: everything but the piece is built once per stream.

use super::Framing;
use crate::api::{
    FinishReason, Logprobs, LogprobsWriter, PIECE_BYTES, PieceOf, Shape, TokenIds, Usage, write_call_id, write_usage,
};
use crate::error::{ApiError, Dialect};
use crate::json::{write_string, write_u64};

/// Template of one stream of chat or text completions.
#[derive(Debug)]
pub struct OpenAiStream {
    kind: Kind,
    framing: Framing,
    include_usage: bool,
    /// `data: {"id":..,"object":..,"created":..,"model":..`, then `[,"usage":null],"choices":[{"index":`
    prefix: Vec<u8>,
    base_len: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Chat,
    Completion,
}

/// Log-probabilities of the tokens of one piece of text.
#[derive(Clone, Copy)]
pub struct TextLogprobs<'a, 'p> {
    pub tokens: &'a Logprobs,
    /// The first that was not sent yet.
    pub from: usize,
    pub piece_of: PieceOf<'p>,
    /// Characters of the answer before this piece; legacy completions report it.
    pub text_offset: usize,
}

impl OpenAiStream {
    /// Chunks of `POST /v1/chat/completions`. `created_s` is Unix seconds.
    pub fn chat(framing: Framing, id: &str, created_s: u64, model: &str, include_usage: bool) -> Self {
        Self::new(Kind::Chat, framing, id, created_s, model, include_usage)
    }

    /// Chunks of `POST /v1/completions`. `created_s` is Unix seconds.
    pub fn completion(framing: Framing, id: &str, created_s: u64, model: &str, include_usage: bool) -> Self {
        Self::new(Kind::Completion, framing, id, created_s, model, include_usage)
    }

    fn new(kind: Kind, framing: Framing, id: &str, created_s: u64, model: &str, include_usage: bool) -> Self {
        let mut prefix = b"data: {\"id\":".to_vec();
        write_string(&mut prefix, id);
        prefix.extend_from_slice(match kind {
            Kind::Chat => b",\"object\":\"chat.completion.chunk\",\"created\":",
            Kind::Completion => b",\"object\":\"text_completion\",\"created\":",
        });
        write_u64(&mut prefix, created_s);
        prefix.extend_from_slice(b",\"model\":");
        write_string(&mut prefix, model);
        let base_len = prefix.len();
        if include_usage {
            prefix.extend_from_slice(b",\"usage\":null");
        }
        prefix.extend_from_slice(b",\"choices\":[{\"index\":");
        Self { kind, framing, include_usage, prefix, base_len }
    }

    /// Appends the first delta of choice `index`, which names the role; nothing for text completions. `has_text` is false
    /// where there will be calls alone. Of `ids` it has the prompt's.
    pub fn begin(&self, out: &mut Vec<u8>, index: u32, has_text: bool, ids: Option<TokenIds<'_>>) {
        if self.kind == Kind::Chat {
            self.choice(out, index, |out| {
                out.extend_from_slice(b",\"delta\":{\"role\":\"assistant\",\"content\":");
                out.extend_from_slice(if has_text { b"\"\"" } else { b"null" });
                out.extend_from_slice(b"},\"logprobs\":null,\"finish_reason\":null}]");
                if let Some(ids) = ids {
                    ids.write_prompt(out);
                }
                out.extend_from_slice(b"}\n\n");
            });
        }
    }

    /// Appends the beginning of the call `call` of choice `index`.
    pub fn call(&self, out: &mut Vec<u8>, index: u32, call: usize, id: u128, name: &str) {
        self.delta(out, index, |out| {
            out.extend_from_slice(b"\"tool_calls\":[{\"index\":");
            write_u64(out, call as u64);
            out.extend_from_slice(b",\"id\":");
            write_call_id(out, id);
            out.extend_from_slice(b",\"type\":\"function\",\"function\":{\"name\":");
            write_string(out, name);
            out.extend_from_slice(b",\"arguments\":\"\"}}]");
        });
    }

    /// Appends a piece of the arguments of the call `call` of choice `index`.
    pub fn arguments(&self, out: &mut Vec<u8>, index: u32, call: usize, piece: &str) {
        self.delta(out, index, |out| {
            out.extend_from_slice(b"\"tool_calls\":[{\"index\":");
            write_u64(out, call as u64);
            out.extend_from_slice(b",\"function\":{\"arguments\":");
            write_string(out, piece);
            out.extend_from_slice(b"}}]");
        });
    }

    /// Appends a piece of text of choice `index`, with as many of its log-probabilities as make no long event: the first that
    /// has to come with another piece, which may be empty.
    pub fn text(
        &self,
        out: &mut Vec<u8>,
        index: u32,
        text: &str,
        logprobs: Option<TextLogprobs<'_, '_>>,
        ids: Option<TokenIds<'_>>,
    ) -> usize {
        let mut next = 0;
        self.choice(out, index, |out| {
            out.extend_from_slice(match self.kind {
                Kind::Chat => b",\"delta\":{\"content\":",
                Kind::Completion => b",\"text\":",
            });
            write_string(out, text);
            if self.kind == Kind::Chat {
                out.push(b'}');
            }
            out.extend_from_slice(b",\"logprobs\":");
            if let Some(TextLogprobs { tokens: logprobs, from, piece_of, text_offset }) = logprobs {
                let shape = if self.kind == Kind::Chat { Shape::Chat } else { Shape::Completion };
                next = LogprobsWriter { shape, logprobs, piece_of }.write_from(out, from, text_offset, PIECE_BYTES);
            } else {
                out.extend_from_slice(b"null");
            }
            out.extend_from_slice(b",\"finish_reason\":null");
            close(out, ids);
        });
        next
    }

    /// Appends the last chunk of choice `index`.
    pub fn finish(&self, out: &mut Vec<u8>, index: u32, reason: FinishReason, ids: Option<TokenIds<'_>>) {
        self.choice(out, index, |out| {
            out.extend_from_slice(match self.kind {
                Kind::Chat => b",\"delta\":{},\"logprobs\":null,\"finish_reason\":\"",
                Kind::Completion => b",\"text\":\"\",\"logprobs\":null,\"finish_reason\":\"",
            });
            out.extend_from_slice(reason.as_str().as_bytes());
            out.push(b'"');
            close(out, ids);
        });
    }

    /// Appends what follows the last choice: the usage chunk if it was asked for, `[DONE]`, the body's end.
    pub fn done(&self, out: &mut Vec<u8>, usage: &Usage) {
        if self.include_usage {
            self.framing.frame(out, |out| {
                out.extend_from_slice(&self.prefix[..self.base_len]);
                out.extend_from_slice(b",\"choices\":[],\"usage\":");
                write_usage(out, usage);
                out.extend_from_slice(b"}\n\n");
            });
        }
        self.framing.frame(out, |out| out.extend_from_slice(b"data: [DONE]\n\n"));
        self.framing.end(out);
    }

    /// Appends an error after the first byte of the stream, and the body's end.
    pub fn error(&self, out: &mut Vec<u8>, error: &ApiError) {
        self.framing.frame(out, |out| {
            out.extend_from_slice(b"data: ");
            error.write_body(out, Dialect::OpenAi, "", 0);
            out.extend_from_slice(b"\n\n");
        });
        self.framing.end(out);
    }

    /// Appends a keep-alive comment.
    pub fn keep_alive(&self, out: &mut Vec<u8>) {
        self.framing.keep_alive(out);
    }

    /// A delta of a chat, without log-probabilities.
    fn delta(&self, out: &mut Vec<u8>, index: u32, write: impl FnOnce(&mut Vec<u8>)) {
        self.choice(out, index, |out| {
            out.extend_from_slice(b",\"delta\":{");
            write(out);
            out.extend_from_slice(b"},\"logprobs\":null,\"finish_reason\":null}]}\n\n");
        });
    }

    fn choice(&self, out: &mut Vec<u8>, index: u32, write: impl FnOnce(&mut Vec<u8>)) {
        self.framing.frame(out, |out| {
            out.extend_from_slice(&self.prefix);
            write_u64(out, u64::from(index));
            write(out);
        });
    }
}

/// The end of a chunk's only choice, and of the chunk.
fn close(out: &mut Vec<u8>, ids: Option<TokenIds<'_>>) {
    if let Some(ids) = ids {
        ids.write(out);
    }
    out.extend_from_slice(b"}]}\n\n");
}
