//! HTTP/1.1 (RFC 9110, 9112) as a state machine: bytes in, whole requests out; responses into a buffer.

mod chunked;
mod connection;
mod error;
mod head;
mod request;
mod response;
mod scan;

pub use connection::{CONTINUE, Connection, Phase};
pub use error::HttpError;
pub(crate) use head::{is_host, is_token};
pub use request::{Method, Request};
pub use response::{Body, Response, write_error, write_json, write_last_error};
pub(crate) use response::{CHUNK_END, CHUNK_SIZE_DIGITS};

/// What a connection may make us hold. Each is a bound on bytes or a count that a peer controls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Request line, header fields and their line ends; over it 431.
    pub head_bytes_max: usize,
    /// Request target alone; over it 414.
    pub target_bytes_max: usize,
    /// Header fields of a request, at most [`Limits::HEADERS_CAP`]; over it 431.
    pub headers_max: usize,
    /// Decoded body; over it 413.
    pub body_bytes_max: usize,
    /// Received bytes not yet taken by a request, beyond one head: how far a client may pipeline ahead.
    pub pipelined_bytes_max: usize,
}

impl Limits {
    /// The most header fields any configuration may allow.
    pub const HEADERS_CAP: usize = 128;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes_max: 16 << 10,
            target_bytes_max: 8 << 10,
            headers_max: 64,
            body_bytes_max: 4 << 20,
            pipelined_bytes_max: 64 << 10,
        }
    }
}
