//! One client's TLS session: records in, plain bytes out, and back.

use std::sync::Arc;

use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic};
use rustls::{Error, HandshakeKind, ServerConfig};

/// Feed it with [`receive`](Self::receive), put answers into records with [`seal`](Self::seal) once it
/// [`is_open`](Self::is_open), and send what [`take_records`](Self::take_records) gives, which includes the handshake's.
pub struct Session {
    connection: UnbufferedServerConnection,
    /// Received and not yet whole: the beginning of a record, or records of a handshake message that goes on. rustls
    /// remembers places in it, so that it has to see the same bytes at every call.
    incoming: Vec<u8>,
    /// Records to be sent, in the order in which they were sealed.
    outgoing: Vec<u8>,
    is_open: bool,
    /// It has failed, or said that nothing more is sent.
    is_over: bool,
    /// Before it was open.
    received_bytes: usize,
}

/// What may follow received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    More,
    /// The client has said that it sends nothing more.
    End,
}

/// Why a client can't be spoken to; a record that tells it may have to be sent still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// It speaks HTTP without TLS: an answer in clear is what it understands.
    Clear,
    /// What it sends is no TLS, or breaks its rules.
    Malformed,
    /// It has no version, cipher suite or signature in common with this side.
    Incompatible,
    /// None of the protocols that it offers is `http/1.1`.
    Protocol,
    /// It refuses this side: an unknown authority, say.
    Alert,
    /// Its handshake is longer than any has to be.
    TooLong,
    /// This side's fault.
    Internal,
}

impl Refusal {
    pub const ALL: [Self; 7] =
        [Self::Clear, Self::Malformed, Self::Incompatible, Self::Protocol, Self::Alert, Self::TooLong, Self::Internal];

    /// As metrics call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Clear => "no_tls",
            Self::Malformed => "malformed",
            Self::Incompatible => "incompatible",
            Self::Protocol => "alpn",
            Self::Alert => "alert",
            Self::TooLong => "too_long",
            Self::Internal => "internal",
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::PeerIncompatible(_) => Self::Incompatible,
            Error::NoApplicationProtocol => Self::Protocol,
            Error::AlertReceived(_) => Self::Alert,
            Error::General(_)
            | Error::FailedToGetCurrentTime
            | Error::FailedToGetRandomBytes
            | Error::EncryptError
            | Error::Other(_) => Self::Internal,
            _ => Self::Malformed,
        }
    }
}

/// Nothing can be sent any more: the session has failed, is closed, or its keys are used up.
#[derive(Debug, thiserror::Error)]
#[error("the TLS session sends nothing any more")]
pub struct SealError;

impl Session {
    /// # Errors
    /// When the settings allow none.
    pub(super) fn new(config: Arc<ServerConfig>) -> Result<Self, Error> {
        Ok(Self {
            connection: UnbufferedServerConnection::new(config)?,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            is_open: false,
            is_over: false,
            received_bytes: 0,
        })
    }

    /// Whether the handshake was done.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Whether it goes on from an earlier one, by a ticket.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.connection.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Takes what the socket gave, deciphers it where it lies, and appends to `plain` what it says.
    ///
    /// # Errors
    /// When the client can't be spoken to: send the records that there are, and close. `plain` has what came before.
    pub fn receive(&mut self, bytes: &mut [u8], plain: &mut Vec<u8>) -> Result<Received, Refusal> {
        if !self.is_open {
            if self.received_bytes == 0 && bytes.first().is_some_and(u8::is_ascii_uppercase) {
                return Err(Refusal::Clear);
            }
            self.received_bytes += bytes.len();
            if self.received_bytes > HANDSHAKE_BYTES_MAX {
                return Err(Refusal::TooLong);
            }
        }
        let result = if self.incoming.is_empty() {
            let (used, result) = self.advance(bytes, plain);
            self.incoming.extend_from_slice(&bytes[used..]);
            result
        } else {
            let mut incoming = std::mem::take(&mut self.incoming);
            incoming.extend_from_slice(bytes);
            let (used, result) = self.advance(&mut incoming, plain);
            incoming.drain(..used);
            // Most of what comes is whole: nothing is kept for the rest.
            if !incoming.is_empty() {
                self.incoming = incoming;
            }
            result
        };
        result.map_err(|error| {
            self.is_over = true;
            self.collect_alert();
            Refusal::from(error)
        })
    }

    /// Processes whole records at the start of `buffer`; how many of its bytes are done with.
    fn advance(&mut self, buffer: &mut [u8], plain: &mut Vec<u8>) -> (usize, Result<Received, Error>) {
        let (mut used, mut received) = (0, Received::More);
        loop {
            let UnbufferedStatus { mut discard, state } = self.connection.process_tls_records(&mut buffer[used..]);
            let mut waits = false;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        match record {
                            Ok(record) => {
                                discard += record.discard;
                                plain.extend_from_slice(record.payload);
                            }
                            Err(error) => return (used + discard, Err(error)),
                        }
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut record)) => {
                    append(&mut self.outgoing, ALERT_BYTES, |room| {
                        record.encode(room).map_err(|error| required_to_encode(&error))
                    });
                }
                // Sent in order with all others.
                Ok(ConnectionState::TransmitTlsData(sent)) => sent.done(),
                Ok(ConnectionState::PeerClosed) => received = Received::End,
                Ok(ConnectionState::BlockedHandshake | ConnectionState::Closed) => waits = true,
                Ok(ConnectionState::WriteTraffic(_)) => {
                    self.is_open = true;
                    waits = true;
                }
                // Early data is never allowed, since what it asks for may be asked again by anyone.
                Ok(_) => return (used + discard, Err(Error::General("an unknown state".to_owned()))),
                Err(error) => return (used + discard, Err(error)),
            }
            used += discard;
            if waits {
                return (used, Ok(received));
            }
        }
    }

    /// The alert that tells a client why it is refused. What has failed must not be looked at again: only while there are
    /// records is nothing received looked for.
    fn collect_alert(&mut self) {
        while self.connection.wants_write() {
            match self.connection.process_tls_records(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(mut record)) => {
                    append(&mut self.outgoing, ALERT_BYTES, |room| {
                        record.encode(room).map_err(|error| required_to_encode(&error))
                    });
                }
                _ => return,
            }
        }
    }

    /// Appends `plain` to the records to be sent.
    ///
    /// # Errors
    /// When nothing can be sent any more.
    pub fn seal(&mut self, plain: &[u8]) -> Result<(), SealError> {
        if self.is_over || !self.is_open {
            return Err(SealError);
        }
        let records = plain.len().div_ceil(RECORD_BYTES);
        self.write(plain.len() + records * RECORD_OVERHEAD_BYTES, |traffic, room| traffic.encrypt(plain, room))
    }

    /// Appends the record after which nothing more is sent.
    pub fn close(&mut self) {
        if self.is_over || !self.is_open {
            return;
        }
        self.is_over = true;
        // Where it can't be said, the end of the connection says it.
        let _ = self.write(ALERT_BYTES, |traffic, room| traffic.queue_close_notify(room));
    }

    fn write(
        &mut self,
        size: usize,
        mut put: impl FnMut(&mut WriteTraffic<'_, ServerConnectionData>, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> Result<(), SealError> {
        loop {
            let UnbufferedStatus { discard, state } = self.connection.process_tls_records(&mut self.incoming);
            let written = match state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => Some(append(&mut self.outgoing, size, |room| {
                    put(&mut traffic, room).map_err(|error| required_to_encrypt(&error))
                })),
                Ok(ConnectionState::EncodeTlsData(mut record)) => {
                    append(&mut self.outgoing, ALERT_BYTES, |room| {
                        record.encode(room).map_err(|error| required_to_encode(&error))
                    });
                    None
                }
                Ok(ConnectionState::TransmitTlsData(sent)) => {
                    sent.done();
                    None
                }
                _ => Some(false),
            };
            self.incoming.drain(..discard);
            match written {
                Some(true) => return Ok(()),
                Some(false) => return Err(SealError),
                None => {}
            }
        }
    }

    /// Whether there are records to be sent.
    #[must_use]
    pub fn has_records(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Records to be sent before any that are sealed from now on.
    #[must_use]
    pub fn take_records(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.outgoing)
    }

    /// Takes back the buffer of records that were sent, for those to come.
    pub fn give_back(&mut self, mut sent: Vec<u8>) {
        if self.outgoing.is_empty() && sent.capacity() <= RETAINED_BYTES_MAX {
            sent.clear();
            self.outgoing = sent;
        }
    }
}

/// Appends what `put` writes into the room that it needs, `size` bytes by all that is known; it gives what it wrote, or what
/// it needs, or nothing where it can't. Whether it could.
fn append(out: &mut Vec<u8>, mut size: usize, mut put: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>) -> bool {
    let start = out.len();
    loop {
        out.resize(start + size, 0);
        match put(&mut out[start..]) {
            Ok(written) => {
                out.truncate(start + written);
                return true;
            }
            Err(Some(needed)) if needed > size => size = needed,
            Err(_) => {
                out.truncate(start);
                return false;
            }
        }
    }
}

fn required_to_encode(error: &EncodeError) -> Option<usize> {
    match error {
        EncodeError::InsufficientSize(error) => Some(error.required_size),
        EncodeError::AlreadyEncoded => None,
    }
}

fn required_to_encrypt(error: &EncryptError) -> Option<usize> {
    match error {
        EncryptError::InsufficientSize(error) => Some(error.required_size),
        EncryptError::EncryptExhausted => None,
    }
}

/// A client's hello with all that it may have takes 2 to 4 KiB, and the first request may come with the handshake's end.
const HANDSHAKE_BYTES_MAX: usize = 64 << 10;
/// Plain bytes of a record at most (RFC 8446 section 5.1).
const RECORD_BYTES: usize = 16 << 10;
/// What sealing adds to each: head, nonce, kind and tag of the suites that there are.
const RECORD_OVERHEAD_BYTES: usize = 32;
/// The smallest record of our own; others say what they need.
const ALERT_BYTES: usize = 64;
/// A buffer up to this size is kept for the next records, which are small in streams.
const RETAINED_BYTES_MAX: usize = 18 << 10;
