//! A blocking HTTP client that does what a test wants, be it right or wrong.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, StreamOwned};
use serde_json::Value;

use crate::secured::{self, Wire};
use crate::server::PATIENCE;

/// One connection.
pub(crate) struct Client {
    reader: BufReader<Wire>,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// One event of a stream: its name, if it has one, and its data.
#[derive(Debug, PartialEq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) data: String,
}

impl Client {
    pub(crate) fn clear(address: SocketAddr) -> Self {
        Self { reader: BufReader::new(Wire::Clear(Self::socket(address))) }
    }

    /// One whose handshake is done.
    pub(crate) fn secure(address: SocketAddr, config: &Arc<ClientConfig>) -> Self {
        let (mut connection, mut socket) = (secured::connection(config, address), Self::socket(address));
        connection.complete_io(&mut socket).unwrap();
        Self { reader: BufReader::new(Wire::Tls(Box::new(StreamOwned::new(connection, socket)))) }
    }

    fn socket(address: SocketAddr) -> TcpStream {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        self.reader.get_ref().socket()
    }

    /// Whose certificate the server has shown, or that of the session that goes on.
    pub(crate) fn certificate(&self) -> Option<CertificateDer<'static>> {
        let Wire::Tls(stream) = self.reader.get_ref() else { return None };
        stream.conn.peer_certificates().map(|chain| chain[0].clone().into_owned())
    }

    /// Whether the server closes, and says so where there is TLS.
    pub(crate) fn ends_well(&mut self) -> bool {
        matches!(self.reader.read(&mut [0]), Ok(0))
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).unwrap();
    }

    pub(crate) fn send_post(&mut self, path: &str, body: &[u8]) {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.send(&[head.as_bytes(), body].concat());
    }

    pub(crate) fn post(&mut self, path: &str, body: &[u8]) -> Answer {
        self.send_post(path, body);
        self.answer()
    }

    pub(crate) fn get(&mut self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes());
        self.answer()
    }

    /// Status and header fields.
    pub(crate) fn head(&mut self) -> Answer {
        let status_line = self.line();
        assert!(status_line.starts_with("HTTP/1.1 "), "`{status_line}` is no status line");
        let status = status_line[9..12].parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let line = self.line();
            if line.is_empty() {
                return Answer { status, headers, body: Vec::new() };
            }
            let (name, value) = line.split_once(": ").unwrap();
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
    }

    /// The next answer with its body.
    pub(crate) fn answer(&mut self) -> Answer {
        let mut answer = self.head();
        if let Some(length) = answer.header("content-length") {
            answer.body = vec![0; length.parse().unwrap()];
            self.reader.read_exact(&mut answer.body).unwrap();
        } else if answer.header("transfer-encoding").is_some() {
            while self.chunk(&mut answer.body) {}
        } else if answer.status != 204 {
            self.reader.read_to_end(&mut answer.body).unwrap();
        }
        answer
    }

    /// Appends one chunk; `false` after the last.
    pub(crate) fn chunk(&mut self, body: &mut Vec<u8>) -> bool {
        let size = usize::from_str_radix(&self.line(), 16).unwrap();
        let start = body.len();
        body.resize(start + size, 0);
        self.reader.read_exact(&mut body[start..]).unwrap();
        assert_eq!(self.line(), "");
        size > 0
    }

    /// Reads until the server closes; what came.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A reset after the last byte is an end, too.
        let _ = self.reader.read_to_end(&mut bytes);
        bytes
    }

    /// Says that nothing more will be sent.
    pub(crate) fn finish_sending(&self) {
        self.stream().shutdown(Shutdown::Write).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        assert!(line.ends_with("\r\n"), "`{line}` has no end");
        line.truncate(line.len() - 2);
        line
    }
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The events of a stream; comments are passed over.
    pub(crate) fn events(&self) -> Vec<Event> {
        assert_eq!(self.header("content-type"), Some("text/event-stream"));
        let text = self.text();
        let blocks = text.split_terminator("\n\n").filter(|block| !block.starts_with(':'));
        let events = blocks.map(|block| {
            let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            Event { name: field("event: ").to_owned(), data: field("data: ").to_owned() }
        });
        events.collect()
    }

    /// The data of an OpenAI stream, whose end must be marked.
    pub(crate) fn chunks(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.text());
        let mut events = self.events();
        assert_eq!(events.pop().map(|event| event.data), Some("[DONE]".to_owned()), "{}", self.text());
        events.iter().map(|event| serde_json::from_str(&event.data).unwrap()).collect()
    }
}

/// The text of one choice of a chat stream.
pub(crate) fn streamed_text(chunks: &[Value], index: u64) -> String {
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
    let texts = choices
        .filter(|choice| choice["index"] == index)
        .map(|choice| choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default());
    texts.collect()
}

/// Tokens with log-probabilities in a streamed completion.
pub(crate) fn logged_tokens(answer: &Answer) -> usize {
    let chunks = answer.chunks();
    chunks.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"]["tokens"].as_array()).map(Vec::len).sum()
}
