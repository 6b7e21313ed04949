//! Chunked body (RFC 9112 section 7.1), decoded as it comes; stricter than the RFC where leniency has been abused.

use super::HttpError;
use super::head::is_token;
use super::scan::{Scan, Scanned};

/// Decoder state between any two bytes.
#[derive(Debug)]
pub(super) struct Decoder {
    state: State,
    /// Chunk-size and extension bytes of all chunks, against a body of overhead only.
    overhead_bytes: usize,
}

#[derive(Debug)]
enum State {
    Size { value: u64, digits: u32 },
    Extension(Extension),
    SizeLf { value: u64 },
    Data { remaining: usize },
    DataCr,
    DataLf,
    Trailer(Scan),
    Done,
}

/// Inside `;name[="quoted"|=token]`, no blanks.
#[derive(Debug)]
struct Extension {
    value: u64,
    part: Part,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    NameStart,
    Name,
    ValueStart,
    Value,
    Quoted,
    QuotedPair,
    QuotedEnd,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self { state: State::Size { value: 0, digits: 0 }, overhead_bytes: 0 }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Decodes from `input` into `body` until the body ends or the input does; returns the bytes taken.
    pub(super) fn decode(
        &mut self,
        input: &[u8],
        body: &mut Vec<u8>,
        body_bytes_max: usize,
    ) -> Result<usize, HttpError> {
        let mut at = 0;
        while at < input.len() {
            match &mut self.state {
                State::Done => break,
                State::Data { remaining } => {
                    let len = (*remaining).min(input.len() - at);
                    body.extend_from_slice(&input[at..at + len]);
                    *remaining -= len;
                    at += len;
                    if *remaining == 0 {
                        self.state = State::DataCr;
                    }
                }
                State::Trailer(scan) => match trailer(scan, &input[at..])? {
                    Some(end) => {
                        at += end;
                        self.state = State::Done;
                    }
                    // The section stays in the input until it is whole.
                    None => break,
                },
                _ => {
                    self.framing_byte(input[at], body.len(), body_bytes_max)?;
                    at += 1;
                }
            }
        }
        Ok(at)
    }

    fn framing_byte(&mut self, byte: u8, body_bytes: usize, body_bytes_max: usize) -> Result<(), HttpError> {
        self.state = match (&mut self.state, byte) {
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size { value: 0, digits: 0 },
            (State::DataCr | State::DataLf, _) => return Err(HttpError::ChunkEnd),
            (State::SizeLf { value: 0 }, b'\n') => State::Trailer(Scan::default()),
            (State::SizeLf { value }, b'\n') => {
                State::Data { remaining: usize::try_from(*value).map_err(|_| HttpError::BodyTooLarge)? }
            }
            (State::SizeLf { .. }, _) => return Err(HttpError::ChunkSize),
            (State::Size { value, digits: 1.. }, b'\r') => State::SizeLf { value: *value },
            (State::Size { value, digits: 1.. }, b';') => {
                State::Extension(Extension { value: *value, part: Part::NameStart })
            }
            (State::Size { value, digits }, _) => {
                let digit = char::from(byte).to_digit(16).ok_or(HttpError::ChunkSize)?;
                if *digits == CHUNK_SIZE_DIGITS_MAX {
                    return Err(HttpError::ChunkSize);
                }
                let value = *value * 16 + u64::from(digit);
                if value > (body_bytes_max - body_bytes.min(body_bytes_max)) as u64 {
                    return Err(HttpError::BodyTooLarge);
                }
                State::Size { value, digits: *digits + 1 }
            }
            (State::Extension(extension), b'\r') if extension.part.may_end() => {
                State::SizeLf { value: extension.value }
            }
            (State::Extension(extension), _) => {
                self.overhead_bytes += 1;
                if self.overhead_bytes > EXTENSION_BYTES_MAX {
                    return Err(HttpError::ChunkExtension);
                }
                extension.part = extension.part.next(byte).ok_or(HttpError::ChunkExtension)?;
                return Ok(());
            }
            (State::Data { .. } | State::Trailer(_) | State::Done, _) => {
                unreachable!("decode takes these states itself")
            }
        };
        Ok(())
    }
}

impl Part {
    fn may_end(self) -> bool {
        matches!(self, Self::Name | Self::Value | Self::QuotedEnd)
    }

    fn next(self, byte: u8) -> Option<Self> {
        let text = byte == b'\t' || (byte >= 0x20 && byte != 0x7f);
        match (self, byte) {
            (Self::Name | Self::Value | Self::QuotedEnd, b';') => Some(Self::NameStart),
            (Self::Name, b'=') => Some(Self::ValueStart),
            (Self::NameStart | Self::Name, _) if is_token(byte) => Some(Self::Name),
            (Self::ValueStart, b'"') => Some(Self::Quoted),
            (Self::ValueStart | Self::Value, _) if is_token(byte) => Some(Self::Value),
            (Self::Quoted, b'"') => Some(Self::QuotedEnd),
            (Self::Quoted, b'\\') => Some(Self::QuotedPair),
            (Self::Quoted | Self::QuotedPair, _) if text => Some(Self::Quoted),
            _ => None,
        }
    }
}

/// Checks and drops the trailer section; its length if it is whole.
fn trailer(scan: &mut Scan, input: &[u8]) -> Result<Option<usize>, HttpError> {
    loop {
        match scan.advance(input, TRAILER_BYTES_MAX, HttpError::Trailer)? {
            Scanned::Partial => return Ok(None),
            Scanned::FirstLine { .. } => {}
            Scanned::End { end } => {
                let mut slots = [httparse::EMPTY_HEADER; TRAILERS_MAX];
                let parsed = httparse::parse_headers(&input[..end], &mut slots);
                let Ok(httparse::Status::Complete((_, fields))) = parsed else { return Err(HttpError::Trailer) };
                // Framing and routing may not change after the fact: RFC 9110 section 6.5.1.
                let forbidden = |name: &str| FORBIDDEN_TRAILERS.iter().any(|field| field.eq_ignore_ascii_case(name));
                return if fields.iter().any(|field| forbidden(field.name)) {
                    Err(HttpError::Trailer)
                } else {
                    Ok(Some(end))
                };
            }
        }
    }
}

const CHUNK_SIZE_DIGITS_MAX: u32 = 16;
/// Extension bytes of one whole body.
const EXTENSION_BYTES_MAX: usize = 1024;
const TRAILER_BYTES_MAX: usize = 4096;
const TRAILERS_MAX: usize = 16;
const FORBIDDEN_TRAILERS: [&str; 6] =
    ["content-length", "transfer-encoding", "host", "authorization", "content-type", "content-encoding"];
