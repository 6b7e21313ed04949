//! A whole request: its head as bytes with spans, so that reuse costs no allocation.

use std::ops::Range;

use super::response::write_field;

/// Methods this server frames. Others are 501.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
    Trace,
}

impl Method {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
            Self::Trace => "TRACE",
        }
    }

    pub(super) fn parse(token: &[u8]) -> Option<Self> {
        [Self::Get, Self::Head, Self::Post, Self::Put, Self::Patch, Self::Delete, Self::Options, Self::Trace]
            .into_iter()
            .find(|method| method.as_str().as_bytes() == token)
    }

    /// A request with this method is expected to say how long its body is.
    pub(super) fn has_body(self) -> bool {
        matches!(self, Self::Post | Self::Put | Self::Patch)
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct HeaderSpan {
    pub(super) name: Span,
    pub(super) value: Span,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Span {
    pub(super) fn range(self) -> Range<usize> {
        self.start..self.end
    }
}

/// One request, head and decoded body. Give it back with [`super::Connection::recycle`] so that the next one
/// reuses its buffers.
#[derive(Debug)]
pub struct Request {
    pub(super) method: Method,
    pub(super) minor_version: u8,
    pub(super) keep_alive: bool,
    /// Request line and fields as they came.
    pub(super) head: Vec<u8>,
    pub(super) path: Span,
    pub(super) query: Option<Span>,
    pub(super) headers: Vec<HeaderSpan>,
    /// Fields of every answer, whatever it says.
    pub(super) answer_fields: Vec<u8>,
    /// When it is answered, in Unix seconds.
    pub(super) unix_s: Option<u64>,
    /// Decoded body; a JSON parser may unescape inside it.
    pub body: Vec<u8>,
}

impl Request {
    pub fn method(&self) -> Method {
        self.method
    }

    /// HTTP/1.0 clients know no chunked coding.
    pub fn is_http_1_0(&self) -> bool {
        self.minor_version == 0
    }

    /// Whether the connection stays open after the answer, as far as the client is concerned.
    pub fn keep_alive(&self) -> bool {
        self.keep_alive
    }

    /// Path of the target, not percent-decoded: begins with `/`, or is `*`.
    pub fn path(&self) -> &str {
        self.ascii(self.path)
    }

    /// Query of the target without its `?`.
    pub fn query(&self) -> Option<&str> {
        self.query.map(|span| self.ascii(span))
    }

    /// Value of the first field of this name, in any case, without surrounding blanks.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// As [`Request::header`], if it is visible ASCII or UTF-8.
    pub fn header_str(&self, name: &str) -> Option<&str> {
        self.header(name).and_then(|value| str::from_utf8(value).ok())
    }

    /// All fields in their order.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.headers.iter().map(|header| (self.ascii(header.name), &self.head[header.value.range()]))
    }

    /// Gives every answer to this request a field. A line end in a value would be a hole, so it is dropped.
    pub fn add_answer_field(&mut self, name: &str, value: &str) {
        write_field(&mut self.answer_fields, name, value);
    }

    /// Gives every answer to this request the date of that Unix second: RFC 9110 section 6.6.1.
    pub fn set_answer_time(&mut self, unix_s: u64) {
        self.unix_s = Some(unix_s);
    }

    /// What was added so far.
    pub fn answer_fields(&self) -> &[u8] {
        &self.answer_fields
    }

    fn ascii(&self, span: Span) -> &str {
        str::from_utf8(&self.head[span.range()]).expect("targets and field names are checked to be ASCII")
    }
}
