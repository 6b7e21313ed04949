//! A request to the collector: HTTP/1.1 over a connection of its own, with one deadline for all of it.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::time::{Duration, Instant};

use super::Headers;

/// Where the collector is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `HOST:PORT`
    authority: String,
    /// Of the endpoint, without `/` at its end.
    base: String,
}

/// Why a text is no endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoEndpoint {
    #[error("http://HOST:PORT; TLS is not built in: a collector on this host can speak it")]
    Https,
    #[error("http://HOST:PORT, where a path may follow")]
    Malformed,
}

/// Why a collector has not taken a batch.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("its answer is no HTTP")]
    NoHttp,
    #[error("it answered with status {0}")]
    Status(u16),
}

impl FromStr for Endpoint {
    type Err = NoEndpoint;

    fn from_str(text: &str) -> Result<Self, NoEndpoint> {
        if text.starts_with("https://") {
            return Err(NoEndpoint::Https);
        }
        let rest = text.strip_prefix("http://").ok_or(NoEndpoint::Malformed)?;
        let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'@' | b'?' | b'#' | b'"' | b'\\');
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let host_end = authority.rfind(']').map_or(0, |end| end + 1);
        let (host, port) = authority[host_end..]
            .split_once(':')
            .map_or((authority, None), |(more, port)| (&authority[..host_end + more.len()], Some(port)));
        let port = port.map_or(Ok(80), |port| port.parse::<u16>().map_err(|_| NoEndpoint::Malformed))?;
        if host.is_empty() || !rest.bytes().all(plain) {
            return Err(NoEndpoint::Malformed);
        }
        Ok(Self { authority: format!("{host}:{port}"), base: path.trim_end_matches('/').to_owned() })
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}{}", self.authority, self.base)
    }
}

/// Sends `body` to `path` below the endpoint; all of it takes `time` at most, but for the resolver.
pub(super) fn post(
    endpoint: &Endpoint,
    path: &str,
    headers: &Headers,
    body: &[u8],
    time: Duration,
) -> Result<(), Failure> {
    let mut head = format!(
        "POST {}{path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n",
        endpoint.base,
        endpoint.authority,
        body.len()
    );
    for (name, value) in &headers.0 {
        write!(head, "{name}: {value}\r\n").expect("a String takes every write");
    }
    head.push_str("\r\n");
    let deadline = Instant::now() + time;
    let mut stream = connect(endpoint, deadline)?;
    let mut left = [head.as_bytes(), body].concat();
    while !left.is_empty() {
        stream.set_write_timeout(Some(remaining(deadline)?))?;
        let sent = stream.write(&left)?;
        if sent == 0 {
            return Err(io::Error::from(io::ErrorKind::WriteZero).into());
        }
        left.drain(..sent);
    }
    match status(&mut stream, deadline)? {
        200..300 => Ok(()),
        status => Err(Failure::Status(status)),
    }
}

fn connect(endpoint: &Endpoint, deadline: Instant) -> io::Result<TcpStream> {
    let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in endpoint.authority.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, remaining(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// The status of the answer, whose rest nobody needs.
fn status(stream: &mut TcpStream, deadline: Instant) -> Result<u16, Failure> {
    let mut line = [0; "HTTP/1.1 200".len()];
    let mut filled = 0;
    while filled < line.len() {
        stream.set_read_timeout(Some(remaining(deadline)?))?;
        match stream.read(&mut line[filled..])? {
            0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            count => filled += count,
        }
    }
    let line = str::from_utf8(&line).map_err(|_| Failure::NoHttp)?;
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..)?.parse().ok());
    status.filter(|status| (100..600).contains(status)).ok_or(Failure::NoHttp)
}

fn remaining(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_http_with_a_host() {
        for (text, authority, base) in [
            ("http://localhost:4318", "localhost:4318", ""),
            ("http://collector", "collector:80", ""),
            ("http://[::1]:4318/", "[::1]:4318", ""),
            ("http://a:1/otlp/", "a:1", "/otlp"),
        ] {
            let wanted = Endpoint { authority: authority.into(), base: base.into() };
            assert_eq!(text.parse(), Ok(wanted), "{text}");
        }
        assert_eq!("https://a:4318".parse::<Endpoint>(), Err(NoEndpoint::Https));
        for text in [
            "",
            "a:4318",
            "grpc://a",
            "http://",
            "http://:1",
            "http://a:x",
            "http://a b",
            "http://u@a",
            "http://a/\r\n",
            "http://a:99999",
            "http://a/?q",
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(NoEndpoint::Malformed), "{text}");
        }
    }
}
