//! The server's side of one HTTP/1.1 connection: received bytes in, whole requests out, in order.

use super::chunked::Decoder;
use super::head::{self, Framing, RequestLine};
use super::request::{Method, Request, Span};
use super::scan::{Scan, Scanned};
use super::{HttpError, Limits};

/// The interim answer when [`Connection::wants_continue`] says so.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What the connection is waiting for, so that the owner of the clock can apply the right deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Between requests: no byte of the next one is here.
    Idle,
    /// A request head has begun.
    Head,
    /// A head is whole and its body is not.
    Body,
    /// No request will come any more: the peer asked to close, or broke the protocol.
    Closed,
}

/// Feed it with [`receive`](Self::receive), take requests with [`next`](Self::next) until it gives none, answer each
/// before taking the next one, and give its buffers back with [`recycle`](Self::recycle).
#[derive(Debug)]
pub struct Connection {
    limits: Limits,
    /// Received bytes; those before `taken` are consumed.
    input: Vec<u8>,
    taken: usize,
    state: State,
    /// Buffers of an answered request.
    spare: Option<Request>,
}

#[derive(Debug)]
enum State {
    Head { scan: Scan, line: Option<RequestLine>, blank_lines: u8 },
    Body { request: Request, body: BodyState, continue_wanted: bool },
    Closed,
    Failed(HttpError),
}

#[derive(Debug)]
enum BodyState {
    Length { remaining: usize },
    Chunked(Decoder),
}

impl Connection {
    pub fn new(limits: Limits) -> Self {
        Self { limits, input: Vec::new(), taken: 0, state: State::new_head(), spare: None }
    }

    /// How many more bytes [`receive`](Self::receive) takes now; at 0, stop reading until a request was taken.
    pub fn room(&self) -> usize {
        (self.limits.head_bytes_max + self.limits.pipelined_bytes_max).saturating_sub(self.input.len() - self.taken)
    }

    /// Appends what the socket gave.
    ///
    /// # Errors
    /// [`HttpError::PipelineOverflow`] if `bytes` is longer than [`room`](Self::room); the connection is over then.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), HttpError> {
        let bytes = match &mut self.state {
            State::Closed | State::Failed(_) => return Ok(()),
            // Straight into the body, without a stop in the input.
            State::Body { request, body: BodyState::Length { remaining }, .. } if self.taken == self.input.len() => {
                let (body, rest) = bytes.split_at((*remaining).min(bytes.len()));
                request.body.extend_from_slice(body);
                *remaining -= body.len();
                rest
            }
            _ => bytes,
        };
        if bytes.len() > self.room() {
            return Err(self.fail(HttpError::PipelineOverflow));
        }
        if self.taken > 0 {
            self.input.drain(..self.taken);
            self.taken = 0;
        }
        self.input.extend_from_slice(bytes);
        Ok(())
    }

    /// The next whole request, or None until more bytes come.
    ///
    /// # Errors
    /// The stream is no HTTP request, or one over a limit. Answer with the error's status and close: every later call
    /// gives the same error.
    #[expect(clippy::should_implement_trait, reason = "the name of the pull API; a fallible one is no Iterator")]
    pub fn next(&mut self) -> Result<Option<Request>, HttpError> {
        match self.advance() {
            Ok(request) => Ok(request),
            Err(error) => Err(self.fail(error)),
        }
    }

    /// True once for a request whose client waits for [`CONTINUE`] before it sends the body.
    pub fn wants_continue(&mut self) -> bool {
        match &mut self.state {
            State::Body { continue_wanted, .. } => std::mem::take(continue_wanted),
            _ => false,
        }
    }

    /// What is being waited for, as of the last [`next`](Self::next).
    pub fn phase(&self) -> Phase {
        match &self.state {
            State::Head { blank_lines: 0, .. } if self.taken == self.input.len() => Phase::Idle,
            State::Head { .. } => Phase::Head,
            State::Body { .. } => Phase::Body,
            State::Closed | State::Failed(_) => Phase::Closed,
        }
    }

    /// Body bytes of the current request so far, to tell a slow sender from a stopped one.
    pub fn body_bytes(&self) -> usize {
        match &self.state {
            State::Body { request, .. } => request.body.len(),
            _ => 0,
        }
    }

    /// Takes back the buffers of an answered request.
    pub fn recycle(&mut self, request: Request) {
        if request.body.capacity() <= RETAINED_BYTES_MAX {
            self.spare = Some(request);
        }
    }

    fn fail(&mut self, error: HttpError) -> HttpError {
        self.state = State::Failed(error);
        self.input = Vec::new();
        self.taken = 0;
        self.spare = None;
        error
    }

    fn advance(&mut self) -> Result<Option<Request>, HttpError> {
        if let State::Head { .. } = self.state
            && !self.advance_head()?
        {
            return Ok(None);
        }
        match &mut self.state {
            State::Head { .. } | State::Closed => return Ok(None),
            State::Failed(error) => return Err(*error),
            State::Body { request, body, continue_wanted } => {
                let input = &self.input[self.taken..];
                *continue_wanted &= input.is_empty();
                let (taken, done) = body.advance(input, &mut request.body, self.limits.body_bytes_max)?;
                self.taken += taken;
                if !done {
                    return Ok(None);
                }
            }
        }
        let State::Body { request, .. } = std::mem::replace(&mut self.state, State::new_head()) else {
            return Ok(None);
        };
        if !request.keep_alive {
            self.state = State::Closed;
            self.input = Vec::new();
            self.taken = 0;
        }
        Ok(Some(request))
    }

    /// Scans for the head's end; true once its body may be read.
    fn advance_head(&mut self) -> Result<bool, HttpError> {
        loop {
            let State::Head { scan, line, blank_lines } = &mut self.state else { return Ok(true) };
            let section = &self.input[self.taken..];
            let (limit, too_large) = match line {
                Some(_) => (self.limits.head_bytes_max, HttpError::HeadTooLarge),
                None => (self.limits.request_line_bytes_max(), HttpError::TargetTooLong),
            };
            match scan.advance(section, limit, too_large)? {
                Scanned::Partial => return Ok(false),
                Scanned::FirstLine { len } => {
                    *line = Some(RequestLine::parse(&section[..len], self.limits.target_bytes_max)?);
                }
                Scanned::End { end } => match line.take() {
                    Some(line) => {
                        self.begin_body(&line, end)?;
                        return Ok(true);
                    }
                    // An empty line before the request line: RFC 9112 section 2.2 asks to skip one.
                    None if *blank_lines < BLANK_LINES_MAX => {
                        self.taken += end;
                        *blank_lines += 1;
                        *scan = Scan::default();
                    }
                    None => return Err(HttpError::RequestLine),
                },
            }
        }
    }

    fn begin_body(&mut self, line: &RequestLine, end: usize) -> Result<(), HttpError> {
        let mut request = self.spare.take().unwrap_or_else(Request::empty);
        request.body.clear();
        request.head.clear();
        request.answer_fields.clear();
        request.unix_s = None;
        request.head.extend_from_slice(&self.input[self.taken..self.taken + end]);
        self.taken += end;
        let fields = head::parse_fields(&mut request, line, &self.limits)?;
        request.method = line.method;
        request.minor_version = line.minor_version;
        request.path = line.path;
        request.query = line.query;
        request.keep_alive = fields.keep_alive;
        let body = match fields.framing {
            Framing::None => BodyState::Length { remaining: 0 },
            Framing::Length(remaining) => {
                // A declared length is only a promise: reserve no more than a small body's worth for it.
                request.body.reserve(remaining.min(RETAINED_BYTES_MAX));
                BodyState::Length { remaining }
            }
            Framing::Chunked => BodyState::Chunked(Decoder::new()),
        };
        let continue_wanted = fields.expects_continue && !matches!(body, BodyState::Length { remaining: 0 });
        self.state = State::Body { request, body, continue_wanted };
        Ok(())
    }
}

impl State {
    fn new_head() -> Self {
        Self::Head { scan: Scan::default(), line: None, blank_lines: 0 }
    }
}

impl BodyState {
    /// Bytes taken from `input`, and whether the body is whole.
    fn advance(&mut self, input: &[u8], out: &mut Vec<u8>, bytes_max: usize) -> Result<(usize, bool), HttpError> {
        match self {
            Self::Length { remaining } => {
                let taken = (*remaining).min(input.len());
                out.extend_from_slice(&input[..taken]);
                *remaining -= taken;
                Ok((taken, *remaining == 0))
            }
            Self::Chunked(decoder) => {
                let taken = decoder.decode(input, out, bytes_max)?;
                Ok((taken, decoder.is_done()))
            }
        }
    }
}

impl Limits {
    /// Room for the longest method that is implemented and the version around the target.
    fn request_line_bytes_max(&self) -> usize {
        (self.target_bytes_max + "OPTIONS  HTTP/1.1\r\n".len() + 1).min(self.head_bytes_max)
    }
}

impl Request {
    fn empty() -> Self {
        Self {
            method: Method::Get,
            minor_version: 1,
            keep_alive: false,
            head: Vec::new(),
            path: Span::default(),
            query: None,
            headers: Vec::new(),
            answer_fields: Vec::new(),
            unix_s: None,
            body: Vec::new(),
        }
    }
}

/// Empty lines skipped before a request line.
const BLANK_LINES_MAX: u8 = 2;
/// A body buffer up to this size is kept for the next request, and reserved for a declared length.
const RETAINED_BYTES_MAX: usize = 64 << 10;
