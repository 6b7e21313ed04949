//! Bytes to typed requests and events, and back; no I/O, and no clock but that of TLS for its tickets.
#![forbid(unsafe_code)]

pub mod api;
pub mod auth;
pub mod base64;
pub mod cors;
pub mod date;
pub mod error;
pub mod forwarded;
pub mod http;
pub mod json;
pub mod sse;
pub mod tls;
pub mod trace;
