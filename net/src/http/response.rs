//! Responses appended to an output buffer.

use std::time::Duration;

use super::Request;
use crate::date;
use crate::error::{ApiError, Dialect};
use crate::json::write_u64;

/// What follows a response's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// 204 and 304: no body, no length.
    None,
    /// That many bytes; they are not sent in answer to HEAD.
    Length(usize),
    /// Chunks, as [`crate::sse::Framing`] writes them.
    Chunked,
    /// For HTTP/1.0: bytes until the connection closes.
    UntilClose,
}

/// Head of a response.
#[derive(Debug, Clone, Copy)]
pub struct Response<'a> {
    /// 200..=599.
    pub status: u16,
    pub content_type: &'a str,
    pub body: Body,
    /// False adds `Connection: close`.
    pub keep_alive: bool,
    /// The client speaks HTTP/1.0, where keep-alive must be confirmed.
    pub http_1_0: bool,
    pub request_id: &'a str,
    /// Unix seconds for the Date field; None if the caller has no clock.
    pub unix_s: Option<u64>,
    pub retry_after: Option<Duration>,
    pub allow: Option<&'a str>,
    /// Adds `Cache-Control: no-store`.
    pub no_store: bool,
    /// Whole lines that the request asks for, as [`Request::add_answer_field`] made them.
    pub fields: &'a [u8],
}

pub(crate) const JSON: &str = "application/json";

impl<'a> Response<'a> {
    /// An answer to `request`, in the framing that its version allows; nothing is cached.
    pub fn new(request: &'a Request, request_id: &'a str, status: u16, content_type: &'a str, body: Body) -> Self {
        let until_close = body == Body::Chunked && request.is_http_1_0();
        Self {
            status,
            content_type,
            body: if until_close { Body::UntilClose } else { body },
            keep_alive: request.keep_alive() && !until_close,
            http_1_0: request.is_http_1_0(),
            request_id,
            unix_s: request.unix_s,
            retry_after: None,
            allow: None,
            no_store: true,
            fields: request.answer_fields(),
        }
    }

    /// Head of a stream of events in answer to `request`.
    pub fn event_stream(request: &'a Request, request_id: &'a str) -> Self {
        Self::new(request, request_id, 200, "text/event-stream", Body::Chunked)
    }

    /// Answer to a stream that is no request: closes.
    pub fn closing(request_id: &'a str, status: u16, unix_s: u64) -> Self {
        Self {
            status,
            content_type: JSON,
            body: Body::Length(0),
            keep_alive: false,
            http_1_0: false,
            request_id,
            unix_s: Some(unix_s),
            retry_after: None,
            allow: None,
            no_store: true,
            fields: &[],
        }
    }

    /// Appends status line and fields with the empty line that ends them.
    pub fn write_head(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"HTTP/1.1 ");
        write_u64(out, u64::from(self.status));
        out.push(b' ');
        out.extend_from_slice(reason(self.status).as_bytes());
        out.extend_from_slice(b"\r\n");
        if !matches!(self.body, Body::None) {
            write_field(out, "Content-Type", self.content_type);
        }
        match self.body {
            Body::Length(length) => {
                out.extend_from_slice(b"Content-Length: ");
                write_u64(out, length as u64);
                out.extend_from_slice(b"\r\n");
            }
            Body::Chunked => write_field(out, "Transfer-Encoding", "chunked"),
            Body::None | Body::UntilClose => {}
        }
        match (self.keep_alive, self.http_1_0) {
            (false, _) => write_field(out, "Connection", "close"),
            (true, true) => write_field(out, "Connection", "keep-alive"),
            (true, false) => {}
        }
        if let Some(unix_s) = self.unix_s {
            out.extend_from_slice(b"Date: ");
            date::write_http_date(out, unix_s);
            out.extend_from_slice(b"\r\n");
        }
        write_field(out, "x-request-id", self.request_id);
        if let Some(retry_after) = self.retry_after {
            let ms = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX).max(1);
            out.extend_from_slice(b"Retry-After: ");
            write_u64(out, ms.div_ceil(1000));
            out.extend_from_slice(b"\r\nretry-after-ms: ");
            write_u64(out, ms);
            out.extend_from_slice(b"\r\n");
        }
        if self.status == 401 {
            write_field(out, "WWW-Authenticate", "Bearer");
        }
        if let Some(allow) = self.allow {
            write_field(out, "Allow", allow);
        }
        if self.no_store {
            write_field(out, "Cache-Control", "no-store");
        }
        out.extend_from_slice(self.fields);
        out.extend_from_slice(b"\r\n");
    }

    /// Appends the head and `body`, whose length it states; `head_only` answers HEAD.
    pub fn write(&self, out: &mut Vec<u8>, body: &[u8], head_only: bool) {
        Self { body: Body::Length(body.len()), ..*self }.write_head(out);
        if !head_only {
            out.extend_from_slice(body);
        }
    }
}

/// Appends a whole JSON answer to `request`.
pub fn write_json(out: &mut Vec<u8>, request: &Request, request_id: &str, status: u16, body: &[u8]) {
    let head_only = request.method() == super::Method::Head;
    Response::new(request, request_id, status, JSON, Body::Length(body.len())).write(out, body, head_only);
}

/// Appends a whole error answer. `request` is None if the bytes were no request: then the connection must close.
pub fn write_error(
    out: &mut Vec<u8>,
    request: Option<&Request>,
    request_id: &str,
    error: &ApiError,
    dialect: Dialect,
    unix_ms: u64,
) {
    let response = match request {
        Some(request) => Response::new(request, request_id, error.status, JSON, Body::Length(0)),
        None => Response::closing(request_id, error.status, unix_ms / 1000),
    };
    let head_only = request.is_some_and(|request| request.method() == super::Method::Head);
    write_error_as(out, &response, error, dialect, unix_ms, head_only);
}

/// Appends a whole error answer to `request` after which the connection closes.
pub fn write_last_error(
    out: &mut Vec<u8>,
    request: &Request,
    request_id: &str,
    error: &ApiError,
    dialect: Dialect,
    unix_ms: u64,
) {
    let closing = Response::closing(request_id, error.status, unix_ms / 1000);
    let response = Response { fields: request.answer_fields(), ..closing };
    write_error_as(out, &response, error, dialect, unix_ms, request.method() == super::Method::Head);
}

fn write_error_as(
    out: &mut Vec<u8>,
    response: &Response<'_>,
    error: &ApiError,
    dialect: Dialect,
    unix_ms: u64,
    head_only: bool,
) {
    let mut body = Vec::with_capacity(256);
    error.write_body(&mut body, dialect, response.request_id, unix_ms);
    Response { retry_after: error.retry_after, allow: error.allow, ..*response }.write(out, &body, head_only);
}

/// Names and values are ours or checked; a line end in a value would still be a hole, so it is dropped here.
pub(super) fn write_field(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend(value.bytes().filter(|byte| !byte.is_ascii_control()));
    out.extend_from_slice(b"\r\n");
}

/// Reason phrases of RFC 9110 section 15 and RFC 6585.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

/// Hexadecimal digits of a chunk size that is filled in afterwards: chunks up to 16 MiB.
pub(crate) const CHUNK_SIZE_DIGITS: usize = 6;
pub(crate) const CHUNK_END: &[u8] = b"\r\n";
