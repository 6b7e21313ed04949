//! HTTP/1.1 responses as a state machine: bytes in, body out, no I/O.

/// One response, fed as its bytes arrive.
#[derive(Debug)]
pub(crate) struct Response {
    state: State,
    line: Vec<u8>,
    status: u16,
    keep_alive: bool,
    request_id: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    Length { left: u64 },
    ChunkSize,
    ChunkData { left: u64 },
    ChunkEnd,
    Trailer,
    UntilClose,
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("response head is malformed")]
    Head,
    #[error("response head is longer than {LINE_BYTES_MAX} bytes")]
    HeadTooLong,
    #[error("chunk framing is malformed")]
    Chunk,
    #[error("bytes after the end of the response")]
    Surplus,
}

impl Response {
    pub(crate) fn new() -> Self {
        Self { state: State::Head, line: Vec::new(), status: 0, keep_alive: false, request_id: None }
    }

    /// 0 until the head has been read.
    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    /// `x-request-id`, where the server gave one.
    pub(crate) fn request_id(&self) -> Option<&str> {
        self.request_id.as_deref()
    }

    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether the connection can carry another request after this response.
    pub(crate) fn is_reusable(&self) -> bool {
        self.is_done() && self.keep_alive
    }

    /// The peer has closed: true if that ends the response rather than cutting it.
    pub(crate) fn ends_with_close(&mut self) -> bool {
        if self.state == State::UntilClose {
            self.state = State::Done;
        }
        self.is_done()
    }

    /// Takes the next bytes and hands on those of the body.
    ///
    /// # Errors
    /// [`Malformed`]; the connection is then of no more use.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], mut body: impl FnMut(u16, &[u8])) -> Result<(), Malformed> {
        while !bytes.is_empty() {
            match self.state {
                State::Head => {
                    if let Some(head) = take_until(&mut self.line, &mut bytes, b"\r\n\r\n", Malformed::HeadTooLong)? {
                        self.begin(&head)?;
                    }
                }
                State::Length { left } => {
                    let (part, left) = split(&mut bytes, left);
                    body(self.status, part);
                    self.state = if left == 0 { State::Done } else { State::Length { left } };
                }
                State::ChunkSize => {
                    if let Some(line) = take_until(&mut self.line, &mut bytes, b"\r\n", Malformed::Chunk)? {
                        let left = chunk_size(&line)?;
                        self.state = if left == 0 { State::Trailer } else { State::ChunkData { left } };
                    }
                }
                State::ChunkData { left } => {
                    let (part, left) = split(&mut bytes, left);
                    body(self.status, part);
                    self.state = if left == 0 { State::ChunkEnd } else { State::ChunkData { left } };
                }
                State::ChunkEnd => {
                    if let Some(line) = take_until(&mut self.line, &mut bytes, b"\r\n", Malformed::Chunk)? {
                        if !line.is_empty() {
                            return Err(Malformed::Chunk);
                        }
                        self.state = State::ChunkSize;
                    }
                }
                State::Trailer => {
                    if let Some(line) = take_until(&mut self.line, &mut bytes, b"\r\n", Malformed::Chunk)?
                        && line.is_empty()
                    {
                        self.state = State::Done;
                    }
                }
                State::UntilClose => {
                    body(self.status, bytes);
                    bytes = &[];
                }
                State::Done => return Err(Malformed::Surplus),
            }
        }
        Ok(())
    }

    fn begin(&mut self, head: &[u8]) -> Result<(), Malformed> {
        let head = str::from_utf8(head).map_err(|_| Malformed::Head)?;
        let mut lines = head.split("\r\n");
        let status_line = lines.next().ok_or(Malformed::Head)?;
        let version_and_rest = status_line.split_once(' ').ok_or(Malformed::Head)?;
        let (version, rest) = version_and_rest;
        let status = rest.split(' ').next().and_then(|digits| digits.parse().ok()).ok_or(Malformed::Head)?;
        if !version.starts_with("HTTP/1.") || !(100..600).contains(&status) {
            return Err(Malformed::Head);
        }
        if (100..200).contains(&status) {
            return Ok(());
        }
        self.status = status;
        self.keep_alive = version == "HTTP/1.1";
        let (mut length, mut chunked) = (None, false);
        for line in lines {
            let (name, value) = line.split_once(':').ok_or(Malformed::Head)?;
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = Some(value.parse().map_err(|_| Malformed::Head)?),
                "transfer-encoding" => chunked = value.eq_ignore_ascii_case("chunked"),
                "x-request-id" => self.request_id = Some(value.to_owned()),
                "connection" => self.keep_alive = !value.eq_ignore_ascii_case("close"),
                _ => {}
            }
        }
        self.state = match length {
            _ if chunked => State::ChunkSize,
            _ if status == 204 || status == 304 => State::Done,
            Some(0) => State::Done,
            Some(left) => State::Length { left },
            None => State::UntilClose,
        };
        Ok(())
    }
}

/// Moves bytes up to and with `end` out of `bytes`; `None` keeps what has come so far in `line`.
fn take_until(
    line: &mut Vec<u8>,
    bytes: &mut &[u8],
    end: &[u8],
    too_long: Malformed,
) -> Result<Option<Vec<u8>>, Malformed> {
    let (last, &byte_end) = (end.len(), end.last().expect("an end has bytes"));
    while let Some(at) = bytes.iter().position(|byte| *byte == byte_end) {
        line.extend_from_slice(&bytes[..=at]);
        *bytes = &bytes[at + 1..];
        if line.ends_with(end) {
            let mut taken = std::mem::take(line);
            taken.truncate(taken.len() - last);
            return Ok(Some(taken));
        }
    }
    line.extend_from_slice(bytes);
    *bytes = &[];
    if line.len() > LINE_BYTES_MAX { Err(too_long) } else { Ok(None) }
}

fn split<'a>(bytes: &mut &'a [u8], left: u64) -> (&'a [u8], u64) {
    let taken = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
    let (part, rest) = bytes.split_at(taken);
    *bytes = rest;
    (part, left - taken as u64)
}

fn chunk_size(line: &[u8]) -> Result<u64, Malformed> {
    let text = str::from_utf8(line).map_err(|_| Malformed::Chunk)?;
    let digits = text.split(';').next().unwrap_or_default().trim();
    if digits.starts_with('+') {
        return Err(Malformed::Chunk);
    }
    u64::from_str_radix(digits, 16).map_err(|_| Malformed::Chunk)
}

const LINE_BYTES_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(parts: &[&[u8]]) -> Result<(Response, String), Malformed> {
        let (mut response, mut text) = (Response::new(), Vec::new());
        for part in parts {
            response.feed(part, |_, bytes| text.extend_from_slice(bytes))?;
        }
        Ok((response, String::from_utf8(text).unwrap()))
    }

    #[test]
    fn chunked_body_survives_a_split_at_every_byte() {
        let bytes = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n5\r\nhello\r\nA;x=y\r\n, world\r\n!\r\n0\r\nT: 1\r\n\r\n";
        for at in 0..bytes.len() {
            let (response, text) = read(&[&bytes[..at], &bytes[at..]]).unwrap();
            assert_eq!((response.status(), text.as_str()), (200, "hello, world\r\n!"));
            assert!(response.is_reusable());
        }
    }

    #[test]
    fn length_and_close_end_a_body() {
        let (response, text) =
            read(&[b"HTTP/1.1 429 Too Many\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbusy"]).unwrap();
        assert_eq!(
            (response.status(), text.as_str(), response.is_done(), response.is_reusable()),
            (429, "busy", true, false)
        );
        let (mut response, text) = read(&[b"HTTP/1.0 200 OK\r\n\r\nto the end"]).unwrap();
        assert!(!response.is_done() && response.ends_with_close());
        assert_eq!(text, "to the end");
        let (mut cut, _) = read(&[b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"]).unwrap();
        assert!(!cut.ends_with_close());
    }

    #[test]
    fn nonsense_is_malformed() {
        for bytes in [
            &b"SSH-2.0\r\n\r\n"[..],
            b"HTTP/1.1 abc\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nnocolon\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
        ] {
            assert!(read(&[bytes]).is_err(), "{}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(read(&[&[b'a'; LINE_BYTES_MAX + 1]]).unwrap_err(), Malformed::HeadTooLong);
    }
}
