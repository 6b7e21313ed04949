//! A server of known behaviour for the tests of the load generator.
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// How the fake answers; the head of each answer says whether it ends the connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Behaviour {
    pub(crate) tokens: u32,
    pub(crate) first_token: Duration,
    pub(crate) gap: Duration,
    pub(crate) fault: Fault,
    /// Requests on one connection before it is closed without a word; 0 closes never.
    pub(crate) requests_per_connection: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    Status(u16),
    CutAfterTwoTokens,
    ErrorEvent,
    NoDone,
    Garbage,
    Silence,
}

/// Serves on a port of its own until the test process ends.
pub(crate) fn start(behaviour: Behaviour) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    let address = listener.local_addr().expect("a bound socket has an address");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = move || {
                let _ = converse(&stream, behaviour);
            };
            let _ = thread::Builder::new().stack_size(128 << 10).spawn(serve);
        }
    });
    address
}

fn converse(stream: &TcpStream, behaviour: Behaviour) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut served = 0;
    loop {
        let (path, body) = read_request(&mut reader)?;
        match path.as_str() {
            "/v1/models" => plain(stream, 200, r#"{"data":[{"id":"fake"}]}"#)?,
            // Two tokens to a word.
            "/v1/tokenize" => {
                plain(stream, 200, &format!("{{\"tokens\":[{}0]}}", "1,".repeat(2 * body.split(' ').count() - 1)))?;
            }
            _ => answer(stream, &path, behaviour)?,
        }
        served += 1;
        if served == behaviour.requests_per_connection {
            return Ok(());
        }
    }
}

fn read_request(reader: &mut impl BufRead) -> std::io::Result<(String, String)> {
    let (mut path, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end() {
            "" => break,
            head if path.is_empty() => path = head.split(' ').nth(1).unwrap_or_default().to_owned(),
            header => {
                if let Some(value) = header.strip_prefix("Content-Length: ") {
                    length = value.parse().unwrap_or(0);
                }
            }
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok((path, String::from_utf8_lossy(&body).into_owned()))
}

fn plain(mut stream: &TcpStream, status: u16, body: &str) -> std::io::Result<()> {
    stream.write_all(format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes())
}

fn answer(mut stream: &TcpStream, path: &str, behaviour: Behaviour) -> std::io::Result<()> {
    match behaviour.fault {
        Fault::Status(status) => return plain(stream, status, r#"{"error":{"message":"no room"}}"#),
        Fault::Garbage => return stream.write_all(b"what is this\r\n\r\n"),
        Fault::Silence => {
            pause(Duration::from_secs(60));
            return Ok(());
        }
        _ => {}
    }
    let own = path.starts_with("/v1/inference");
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    chunk(stream, ":\n\n")?;
    pause(behaviour.first_token);
    for position in 0..behaviour.tokens {
        if position > 0 {
            pause(behaviour.gap);
        }
        match (own, path.ends_with("/chat/completions")) {
            (true, _) => chunk(
                stream,
                &format!("event: token\ndata: {{\"type\":\"token\",\"text\":\"a\",\"position\":{position}}}\n\n"),
            )?,
            (_, true) => chunk(stream, "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n")?,
            _ => chunk(stream, "data: {\"choices\":[{\"text\":\"a\"}]}\n\n")?,
        }
        if behaviour.fault == Fault::CutAfterTwoTokens && position == 1 {
            return stream.shutdown(std::net::Shutdown::Both);
        }
    }
    let tokens = behaviour.tokens;
    match behaviour.fault {
        Fault::ErrorEvent => chunk(stream, "data: {\"error\":{\"message\":\"lost a shard\"}}\n\n")?,
        Fault::NoDone => {}
        _ if own => chunk(stream, &format!("event: complete\ndata: {{\"total_tokens\":{tokens}}}\n\n"))?,
        _ => {
            chunk(
                stream,
                &format!(
                    "data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":5,\"completion_tokens\":{tokens}}}}}\n\n"
                ),
            )?;
            chunk(stream, "data: [DONE]\n\n")?;
        }
    }
    stream.write_all(b"0\r\n\r\n")
}

fn chunk(mut stream: &TcpStream, text: &str) -> std::io::Result<()> {
    stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes())
}

fn pause(time: Duration) {
    let until = Instant::now() + time;
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        thread::park_timeout(left);
    }
}
