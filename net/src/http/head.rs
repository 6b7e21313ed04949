//! Meaning of a whole request head: request line, field syntax by httparse, framing, Host, Connection, Expect.

use super::request::{HeaderSpan, Method, Request, Span};
use super::{HttpError, Limits};

/// Request line, RFC 9112 section 3: one space between its three parts, nothing more.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestLine {
    pub(super) method: Method,
    pub(super) minor_version: u8,
    pub(super) path: Span,
    pub(super) query: Option<Span>,
    /// First byte after the line's CR LF.
    pub(super) end: usize,
}

/// How the body's end is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    None,
    Length(usize),
    Chunked,
}

/// What the fields say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields {
    pub(super) framing: Framing,
    pub(super) keep_alive: bool,
    pub(super) expects_continue: bool,
}

impl RequestLine {
    /// `line` is without its CR LF and holds no control character but HTAB.
    pub(super) fn parse(line: &[u8], target_bytes_max: usize) -> Result<Self, HttpError> {
        let mut parts = line.split(|&byte| byte == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(HttpError::RequestLine);
        };
        if method.is_empty() || !method.iter().all(|&byte| is_token(byte)) || target.is_empty() {
            return Err(HttpError::RequestLine);
        }
        let minor_version = match version {
            b"HTTP/1.1" => 1,
            b"HTTP/1.0" => 0,
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
                return Err(HttpError::Version);
            }
            _ => return Err(HttpError::RequestLine),
        };
        if target.len() > target_bytes_max {
            return Err(HttpError::TargetTooLong);
        }
        let method = Method::parse(method).ok_or(HttpError::MethodUnknown)?;
        let start = method.as_str().len() + 1;
        let (path, query) = parse_target(target, method)?;
        let shift = |span: Span| Span { start: span.start + start, end: span.end + start };
        Ok(Self { method, minor_version, path: shift(path), query: query.map(shift), end: line.len() + 2 })
    }
}

/// Origin, absolute (http, https) or, with OPTIONS, asterisk form; RFC 9112 section 3.2.
fn parse_target(target: &[u8], method: Method) -> Result<(Span, Option<Span>), HttpError> {
    if target == b"*" {
        let whole = Span { start: 0, end: 1 };
        return if method == Method::Options { Ok((whole, None)) } else { Err(HttpError::Target) };
    }
    let path_start = if target[0] == b'/' { 0 } else { after_authority(target)? };
    let mut query_start = None;
    let mut at = path_start;
    while let Some(&byte) = target.get(at) {
        match byte {
            b'%' if !target.get(at + 1..at + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) => {
                return Err(HttpError::Target);
            }
            b'?' if query_start.is_none() => query_start = Some(at + 1),
            b'%' => {}
            _ if is_target_byte(byte) => {}
            _ => return Err(HttpError::Target),
        }
        at += 1;
    }
    let path_end = query_start.map_or(target.len(), |start| start - 1);
    let query = query_start.map(|start| Span { start, end: target.len() });
    let path = match path_start == path_end {
        // `http://host` means `http://host/`: a slash of the scheme stands in for the one left out.
        true => Span { start: SCHEMES[0].len() - 1, end: SCHEMES[0].len() },
        false => Span { start: path_start, end: path_end },
    };
    Ok((path, query))
}

/// Length of `http://host` or `https://host` at the start of `target`.
fn after_authority(target: &[u8]) -> Result<usize, HttpError> {
    let is_prefix =
        |scheme: &&str| target.get(..scheme.len()).is_some_and(|have| have.eq_ignore_ascii_case(scheme.as_bytes()));
    let start = SCHEMES.iter().find(|scheme| is_prefix(scheme)).ok_or(HttpError::Target)?.len();
    let rest = &target[start..];
    let len = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    if len == 0 || !is_host(&rest[..len]) {
        return Err(HttpError::Target);
    }
    Ok(start + len)
}

/// Reads the fields of `request.head` after its request line into `request.headers` and says what they mean.
pub(super) fn parse_fields(request: &mut Request, line: &RequestLine, limits: &Limits) -> Result<Fields, HttpError> {
    let mut slots = [httparse::EMPTY_HEADER; Limits::HEADERS_CAP];
    let headers_max = limits.headers_max.min(Limits::HEADERS_CAP);
    let head = &request.head;
    let headers = match httparse::parse_headers(&head[line.end..], &mut slots[..headers_max]) {
        Ok(httparse::Status::Complete((_, headers))) => headers,
        Err(httparse::Error::TooManyHeaders) => return Err(HttpError::TooManyHeaders),
        Err(httparse::Error::HeaderName) => return Err(HttpError::HeaderName),
        Ok(httparse::Status::Partial) | Err(_) => return Err(HttpError::HeaderValue),
    };
    let span = |bytes: &[u8]| {
        let start = bytes.as_ptr() as usize - head.as_ptr() as usize;
        Span { start, end: start + bytes.len() }
    };
    request.headers.clear();
    request.headers.extend(
        headers.iter().map(|header| HeaderSpan { name: span(header.name.as_bytes()), value: span(header.value) }),
    );
    interpret(headers, line, limits)
}

fn interpret(headers: &[httparse::Header<'_>], line: &RequestLine, limits: &Limits) -> Result<Fields, HttpError> {
    let mut host = None;
    let mut content_length = None;
    let mut codings = Codings::default();
    let (mut close, mut keep_alive, mut expects_continue) = (false, line.minor_version == 1, false);
    for header in headers {
        let (name, value) = (header.name, header.value);
        if name.eq_ignore_ascii_case("host") {
            if host.replace(value).is_some() {
                return Err(HttpError::HostRepeated);
            }
            if !is_host(value) {
                return Err(HttpError::Host);
            }
        } else if name.eq_ignore_ascii_case("content-length") {
            if content_length.replace(parse_content_length(value)?).is_some() {
                return Err(HttpError::ContentLengthRepeated);
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            codings.add(value);
        } else if name.eq_ignore_ascii_case("connection") {
            for option in list(value) {
                close |= option.eq_ignore_ascii_case(b"close");
                keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            }
        } else if name.eq_ignore_ascii_case("expect") {
            if !value.eq_ignore_ascii_case(b"100-continue") {
                return Err(HttpError::Expectation);
            }
            expects_continue = true;
        }
    }
    if host.is_none() && line.minor_version == 1 {
        return Err(HttpError::HostMissing);
    }
    if codings.present && content_length.is_some() {
        return Err(HttpError::AmbiguousLength);
    }
    let framing = match content_length {
        Some(length) if length > limits.body_bytes_max as u64 => return Err(HttpError::BodyTooLarge),
        Some(length) => Framing::Length(usize::try_from(length).map_err(|_| HttpError::BodyTooLarge)?),
        None if codings.present => codings.framing(line.minor_version)?,
        None if line.method.has_body() => return Err(HttpError::LengthRequired),
        None => Framing::None,
    };
    // A 1.0 client does not wait for the interim answer: RFC 9110 section 10.1.1.
    expects_continue &= line.minor_version == 1;
    Ok(Fields { framing, keep_alive: keep_alive && !close, expects_continue })
}

/// Transfer codings over all fields of the name, in order.
#[derive(Default)]
struct Codings {
    present: bool,
    chunked: usize,
    last_is_chunked: bool,
    others: usize,
}

impl Codings {
    fn add(&mut self, value: &[u8]) {
        self.present = true;
        // An empty element counts as another coding: nothing but the exact list is believed.
        for coding in value.split(|&byte| byte == b',').map(trim) {
            self.last_is_chunked = coding.eq_ignore_ascii_case(b"chunked");
            self.chunked += usize::from(self.last_is_chunked);
            self.others += usize::from(!self.last_is_chunked);
        }
    }

    fn framing(&self, minor_version: u8) -> Result<Framing, HttpError> {
        if minor_version == 0 || !self.last_is_chunked || self.chunked != 1 {
            return Err(HttpError::TransferEncoding);
        }
        if self.others > 0 { Err(HttpError::TransferCodingUnknown) } else { Ok(Framing::Chunked) }
    }
}

/// Digits only; leading zeros are fine, 2^64 is not.
fn parse_content_length(value: &[u8]) -> Result<u64, HttpError> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(HttpError::ContentLength);
    }
    value
        .iter()
        .try_fold(0_u64, |length, digit| length.checked_mul(10)?.checked_add(u64::from(digit - b'0')))
        .ok_or(HttpError::ContentLength)
}

fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(trim)
}

fn trim(value: &[u8]) -> &[u8] {
    value.trim_ascii()
}

/// uri-host [":" port] of RFC 9110 section 7.2; empty is legal. Commas are not believed: they come from joined fields.
pub(crate) fn is_host(value: &[u8]) -> bool {
    let (host, rest) = if value.first() == Some(&b'[') {
        let Some(end) = value.iter().position(|&byte| byte == b']') else { return false };
        let literal = &value[1..end];
        if literal.is_empty() || !literal.iter().all(|&byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.')) {
            return false;
        }
        (&[][..], &value[end + 1..])
    } else {
        value.split_at(value.iter().position(|&byte| byte == b':').unwrap_or(value.len()))
    };
    let port = match rest {
        [] => rest,
        [b':', port @ ..] => port,
        _ => return false,
    };
    let is_host_byte = |byte: &u8| {
        byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b';')
            || matches!(byte, b'=' | b'%')
    };
    host.iter().all(is_host_byte) && port.len() <= 5 && port.iter().all(u8::is_ascii_digit)
}

/// pchar, `/` and `?` of RFC 3986 without `%`.
fn is_target_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',')
        || matches!(byte, b';' | b'=' | b':' | b'@' | b'/' | b'?')
}

/// tchar of RFC 9110 section 5.6.2.
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`')
        || matches!(byte, b'|' | b'~')
}

const SCHEMES: [&str; 2] = ["http://", "https://"];
