//! One client connection and the request that is on it.
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use super::epoll;
use super::http::{Malformed, Response};
use super::report::{Failure, Finished};
use super::request::{Endpoint, Meaning, message_in};
use super::sse::EventStream;

#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    /// Responses that came whole: a connection that has served may have been closed by the time it is used again.
    served: u32,
    flight: Option<Flight>,
}

/// A request between its arrival and the end of its answer.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) arrival: Instant,
    endpoint: Endpoint,
    request: Vec<u8>,
    sent_bytes: usize,
    response: Response,
    has_answer: bool,
    events: EventStream,
    error_body: Vec<u8>,
    answer: Answer,
}

#[derive(Debug, Default)]
struct Answer {
    first: Option<Instant>,
    last: Option<Instant>,
    gaps: Vec<Duration>,
    completion_tokens: Option<u64>,
    prompt_tokens: Option<u64>,
    ended: Option<Instant>,
    error: Option<String>,
}

/// What became of a connection when its socket was looked at.
#[derive(Debug)]
pub(crate) enum Turn {
    /// Nothing more to do until the next edge.
    Wait,
    /// The request is settled; the connection can be kept if `reusable`.
    Settled { outcome: Outcome, reusable: bool },
    /// Closed before a byte of the answer, as an idle connection may be: the request goes to another.
    Stale(Box<Flight>),
    /// Closed while idle.
    IdleClosed,
}

pub(crate) type Outcome = Result<Finished, (Failure, String)>;

impl Flight {
    pub(crate) fn new(endpoint: Endpoint, request: Vec<u8>, arrival: Instant) -> Self {
        Self {
            arrival,
            endpoint,
            request,
            sent_bytes: 0,
            response: Response::new(),
            has_answer: false,
            events: EventStream::default(),
            error_body: Vec::new(),
            answer: Answer::default(),
        }
    }

    fn receive(&mut self, bytes: &[u8], now: Instant) -> Result<(), Malformed> {
        self.has_answer = true;
        let (events, answer, error_body, endpoint) =
            (&mut self.events, &mut self.answer, &mut self.error_body, self.endpoint);
        self.response.feed(bytes, |status, body| {
            if status == 200 {
                events.feed(body, |event, data| answer.take(endpoint, event, data, now));
            } else if error_body.len() < ERROR_BODY_BYTES_MAX {
                error_body.extend_from_slice(body);
            }
        })
    }

    fn outcome(self, now: Instant) -> Outcome {
        let answer = self.answer;
        match self.response.status() {
            200 => {}
            status => return Err((Failure::Status(status), message_in(&String::from_utf8_lossy(&self.error_body)))),
        }
        if let Some(message) = answer.error {
            return Err((Failure::Stream, message));
        }
        if answer.ended.is_none() {
            return Err((Failure::Stream, "the stream ended without its last event".to_owned()));
        }
        let events = answer.gaps.len() as u64 + u64::from(answer.first.is_some());
        Ok(Finished {
            ttft: answer.first.map(|first| first.duration_since(self.arrival)),
            gaps: answer.gaps,
            end_to_end: now.duration_since(self.arrival),
            tokens: answer.completion_tokens.unwrap_or(events),
            prompt_tokens: answer.prompt_tokens,
        })
    }
}

impl Answer {
    fn take(&mut self, endpoint: Endpoint, event: &str, data: &str, now: Instant) {
        match endpoint.meaning(event, data) {
            Meaning::Token => {
                if let Some(last) = self.last.replace(now) {
                    self.gaps.push(now.duration_since(last));
                }
                self.first.get_or_insert(now);
            }
            Meaning::Usage { prompt_tokens, completion_tokens } => {
                self.prompt_tokens = prompt_tokens;
                self.completion_tokens = Some(completion_tokens);
                if endpoint.ends_with_usage() {
                    self.ended = Some(now);
                }
            }
            Meaning::End => self.ended = Some(now),
            Meaning::Error(message) => {
                self.error.get_or_insert(message);
            }
            Meaning::Other => {}
        }
    }
}

impl Connection {
    /// Begins to connect; `flight` is sent as soon as that is done.
    pub(crate) fn open(address: &SocketAddr, flight: Flight) -> io::Result<Self> {
        Ok(Self { stream: epoll::connect(address)?, served: 0, flight: Some(flight) })
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Puts a request on an idle connection; a [`Connection::turn`] sends it.
    pub(crate) fn begin(&mut self, flight: Flight) {
        assert!(self.flight.is_none(), "one request at a time");
        self.flight = Some(flight);
    }

    /// The arrival of the request that is under way.
    pub(crate) fn arrival(&self) -> Option<Instant> {
        self.flight.as_ref().map(|flight| flight.arrival)
    }

    /// Sends and receives until the socket would block or the request is settled.
    pub(crate) fn turn(&mut self, buffer: &mut [u8]) -> Turn {
        let Some(mut flight) = self.flight.take() else {
            return match self.stream.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Turn::Wait,
                _ => Turn::IdleClosed,
            };
        };
        let mut send_error = None;
        while flight.sent_bytes < flight.request.len() && send_error.is_none() {
            match self.stream.write(&flight.request[flight.sent_bytes..]) {
                Ok(count) => flight.sent_bytes += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A server that refuses may close before it has read all: what it said can still be read.
                Err(error) => send_error = Some(error),
            }
        }
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return self.lost(flight, send_error),
                Ok(count) => {
                    let now = Instant::now();
                    if let Err(malformed) = flight.receive(&buffer[..count], now) {
                        let outcome = Err((Failure::Malformed, malformed.to_string()));
                        return Turn::Settled { outcome, reusable: false };
                    }
                    if flight.response.is_done() {
                        let reusable = flight.response.is_reusable() && flight.sent_bytes == flight.request.len();
                        self.served += 1;
                        return Turn::Settled { outcome: flight.outcome(now), reusable };
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && send_error.is_none() => {
                    self.flight = Some(flight);
                    return Turn::Wait;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.lost(flight, Some(send_error.unwrap_or(error))),
            }
        }
    }

    fn lost(&self, mut flight: Flight, error: Option<io::Error>) -> Turn {
        if flight.response.ends_with_close() {
            return Turn::Settled { outcome: flight.outcome(Instant::now()), reusable: false };
        }
        if self.served > 0 && !flight.has_answer {
            return Turn::Stale(Box::new(Flight::new(flight.endpoint, flight.request, flight.arrival)));
        }
        let failure = if flight.sent_bytes == 0 { Failure::Connect } else { Failure::Cut };
        let message =
            error.map_or_else(|| "closed before the end of the response".to_owned(), |error| error.to_string());
        Turn::Settled { outcome: Err((failure, message)), reusable: false }
    }
}

const ERROR_BODY_BYTES_MAX: usize = 64 << 10;
