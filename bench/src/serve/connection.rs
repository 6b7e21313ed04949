//! One client connection and the request that is on it.
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use super::http::{Malformed, Response};
use super::report::{Failed, Failure, Finished};
use super::request::{Ask, Endpoint, Meaning, Shape, message_in, tokens_in};
use super::sse::EventStream;
use super::wire::{Place, Wire};

#[derive(Debug)]
pub(crate) struct Connection {
    stream: Wire,
    /// Responses that came whole: a connection that has served may have been closed by the time it is used again.
    served: u32,
    flight: Option<Flight>,
}

/// A request between its arrival and the end of its answer.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) index: u32,
    pub(crate) arrival: Instant,
    ask: Ask,
    sent_bytes: usize,
    response: Response,
    has_answer: bool,
    events: EventStream,
    /// Of an answer that is no stream, and of an error.
    body: Vec<u8>,
    answer: Answer,
    is_armed: bool,
}

#[derive(Debug, Default)]
struct Answer {
    first: Option<Instant>,
    last: Option<Instant>,
    gaps: Vec<Duration>,
    text: String,
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
    Settled { settled: Settled, reusable: bool },
    /// Closed before a byte of the answer, as an idle connection may be: the request goes to another.
    Stale(Box<Flight>),
    /// Closed while idle.
    IdleClosed,
}

/// A request that is over.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) index: u32,
    pub(crate) arrival: Instant,
    pub(crate) outcome: Outcome,
}

#[derive(Debug)]
pub(crate) enum Outcome {
    Finished(Finished),
    Failed(Failed),
    /// The client left in mid stream, as it was asked to, after so many tokens.
    HungUp {
        tokens: u64,
        request_id: Option<String>,
    },
}

impl Flight {
    pub(crate) fn new(index: u32, ask: Ask, arrival: Instant) -> Self {
        Self {
            index,
            arrival,
            ask,
            sent_bytes: 0,
            response: Response::new(),
            has_answer: false,
            events: EventStream::default(),
            body: Vec::new(),
            answer: Answer::default(),
            is_armed: false,
        }
    }

    /// When the client leaves, told once, as soon as it is known.
    pub(crate) fn arm(&mut self) -> Option<Instant> {
        let at = self.answer.first? + self.ask.hang_up_after?;
        (!std::mem::replace(&mut self.is_armed, true)).then_some(at)
    }

    /// The client has left.
    pub(crate) fn hang_up(self) -> Settled {
        let outcome =
            Outcome::HungUp { tokens: self.answer.events(), request_id: self.response.request_id().map(str::to_owned) };
        Settled { index: self.index, arrival: self.arrival, outcome }
    }

    pub(crate) fn fail(self, failure: Failure, message: String, now: Instant) -> Settled {
        let after = now.saturating_duration_since(self.arrival);
        let outcome = Outcome::Failed(Failed { failure, message, after });
        Settled { index: self.index, arrival: self.arrival, outcome }
    }

    fn receive(&mut self, bytes: &[u8], now: Instant) -> Result<(), Malformed> {
        self.has_answer = true;
        let (events, answer, collected, shape) = (&mut self.events, &mut self.answer, &mut self.body, self.ask.shape);
        self.response.feed(bytes, |status, body| match shape {
            Shape::Stream(endpoint) if status == 200 => {
                events.feed(body, |event, data| answer.take(endpoint, event, data, now));
            }
            _ if collected.len() < BODY_BYTES_MAX => collected.extend_from_slice(body),
            _ => {}
        })
    }

    fn settle(self, now: Instant) -> Settled {
        let (answer, arrival) = (&self.answer, self.arrival);
        match self.response.status() {
            200 => {}
            status => {
                let message = message_in(&String::from_utf8_lossy(&self.body));
                return self.fail(Failure::Status(status), message, now);
            }
        }
        if let Some(message) = &answer.error {
            let message = message.clone();
            return self.fail(Failure::Stream, message, now);
        }
        if answer.ended.is_none() && matches!(self.ask.shape, Shape::Stream(_)) {
            return self.fail(Failure::Stream, "the stream ended without its last event".to_owned(), now);
        }
        let tokens = match self.ask.shape {
            Shape::Stream(_) => answer.completion_tokens.unwrap_or(answer.events()),
            Shape::Body => tokens_in(&self.body),
        };
        let finished = Finished {
            ttft: answer.first.map(|first| first.duration_since(arrival)),
            end_to_end: now.duration_since(arrival),
            tokens,
            prompt_tokens: answer.prompt_tokens,
            gaps: self.answer.gaps,
            text: self.answer.text,
        };
        Settled { index: self.index, arrival, outcome: Outcome::Finished(finished) }
    }
}

impl Answer {
    /// Events that carried text.
    fn events(&self) -> u64 {
        self.gaps.len() as u64 + u64::from(self.first.is_some())
    }

    fn take(&mut self, endpoint: Endpoint, event: &str, data: &str, now: Instant) {
        match endpoint.meaning(event, data) {
            Meaning::Token(text) => {
                self.text.push_str(&text);
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
    /// Begins to connect; what [`Connection::begin`] puts on it is sent as soon as that is done.
    pub(crate) fn open(place: &Place) -> io::Result<Self> {
        Ok(Self { stream: place.open()?, served: 0, flight: None })
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.stream.socket().as_raw_fd()
    }

    /// Puts a request on an idle connection; a [`Connection::turn`] sends it.
    pub(crate) fn begin(&mut self, flight: Flight) {
        assert!(self.flight.is_none(), "one request at a time");
        self.flight = Some(flight);
    }

    /// The request that is under way.
    pub(crate) fn flight(&mut self) -> Option<&mut Flight> {
        self.flight.as_mut()
    }

    /// Takes the request that is under way off the connection, which is of no more use then.
    pub(crate) fn abandon(&mut self) -> Option<Flight> {
        self.flight.take()
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
        while flight.sent_bytes < flight.ask.bytes.len() && send_error.is_none() {
            match self.stream.write(&flight.ask.bytes[flight.sent_bytes..]) {
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
                        let settled = flight.fail(Failure::Malformed, malformed.to_string(), now);
                        return Turn::Settled { settled, reusable: false };
                    }
                    if flight.response.is_done() {
                        let reusable = flight.response.is_reusable() && flight.sent_bytes == flight.ask.bytes.len();
                        self.served += 1;
                        return Turn::Settled { settled: flight.settle(now), reusable };
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
        let now = Instant::now();
        if flight.response.ends_with_close() {
            return Turn::Settled { settled: flight.settle(now), reusable: false };
        }
        if self.served > 0 && !flight.has_answer {
            return Turn::Stale(Box::new(Flight::new(flight.index, flight.ask, flight.arrival)));
        }
        let failure = if flight.sent_bytes == 0 { Failure::Connect } else { Failure::Cut };
        let message =
            error.map_or_else(|| "closed before the end of the response".to_owned(), |error| error.to_string());
        Turn::Settled { settled: flight.fail(failure, message, now), reusable: false }
    }
}

const BODY_BYTES_MAX: usize = 64 << 10;
