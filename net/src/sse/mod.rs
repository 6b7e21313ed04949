//! Server-sent events, each framed as one HTTP chunk in place, as pieces of long bodies are.

mod openai;
mod own;
mod response;

pub use openai::{OpenAiStream, TextLogprobs};
pub use own::{Complete, OwnStream, Progress};
pub use response::ResponseStream;

use crate::http::{Body, CHUNK_END, CHUNK_SIZE_DIGITS, Response};

/// How events lie in the response body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// One HTTP chunk an event.
    Chunked,
    /// For HTTP/1.0: the bare events; the connection's end ends them.
    UntilClose,
}

impl Framing {
    /// The framing that a response's head has announced.
    pub fn of(response: &Response<'_>) -> Self {
        if response.body == Body::Chunked { Self::Chunked } else { Self::UntilClose }
    }

    /// Appends a comment that keeps proxies and clients from giving up.
    pub fn keep_alive(self, out: &mut Vec<u8>) {
        self.frame(out, |out| out.extend_from_slice(b":\n\n"));
    }

    /// Appends the end of the body.
    pub fn end(self, out: &mut Vec<u8>) {
        if self == Self::Chunked {
            out.extend_from_slice(b"0\r\n\r\n");
        }
    }

    /// Appends what `write` appends, as one chunk. The size goes in front with leading zeros, so nothing moves.
    pub fn frame(self, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
        if self == Self::UntilClose {
            return write(out);
        }
        let start = out.len();
        out.extend_from_slice(b"000000\r\n");
        let data = out.len();
        write(out);
        let mut size = out.len() - data;
        assert!(size < 1 << (4 * CHUNK_SIZE_DIGITS), "an event is far smaller than 16 MiB");
        for digit in out[start..start + CHUNK_SIZE_DIGITS].iter_mut().rev() {
            *digit = b"0123456789abcdef"[size & 15];
            size >>= 4;
        }
        out.extend_from_slice(CHUNK_END);
    }
}
