//! One client connection: requests in order, an answer each, until either side has had enough.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{OwnedFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use net::error::{ApiError, Code, Dialect};
use net::http::{self, CONTINUE, Limits, Phase, Request};
use net::tls;

use super::peer::{Peer, Writer, read};
use super::tls::{Tls, shake_hands};
use super::{Shard, answer, unix_time};
use crate::executor::{self, ReadHalf, WriteHalf, contain};

/// Serves a client until either closes.
pub(super) async fn run(
    shard: &Rc<Shard>,
    (read_half, write_half, fd): (ReadHalf, WriteHalf, RawFd),
    is_local: bool,
    tls: Option<Tls>,
) {
    let peer = Rc::new(Peer::new(fd, is_local, tls));
    let id = shard.next_id();
    shard.peers.borrow_mut().insert(id, Rc::clone(&peer));
    executor::spawn(read(read_half, Rc::clone(&peer)));
    let mut writer = Writer::new(write_half, Rc::clone(&peer));
    // Whatever breaks here, the connection ends in good order.
    contain(async {
        if shake_hands(shard, &peer, &mut writer).await {
            converse(shard, &peer, &mut writer).await;
        }
        linger(&peer, &mut writer).await;
    })
    .await;
    peer.close();
    super::shutdown(peer.fd);
    // The descriptor stays open, and so its number taken, until nobody can shut it down by mistake.
    peer.read_ended.wait().await;
    shard.peers.borrow_mut().remove(&id);
    if shard.control.is_draining() {
        shard.doorbell.ring();
    }
}

/// Tells a client for whom there is no place, as far as its socket takes it at once.
pub(super) fn turn_away(shard: &Shard, socket: &OwnedFd, speaks_tls: bool) {
    let mut answer = Vec::new();
    if speaks_tls {
        answer.extend_from_slice(&tls::NO_PLACE);
    } else {
        let error = ApiError::unavailable("as many connections are open as may be", RETRY_CONNECTION);
        http::write_error(&mut answer, None, &shard.request_id(), &error, Dialect::OpenAi, unix_ms());
        shard.metrics.requests.answers[4].add(1);
    }
    let socket = socket2::SockRef::from(socket);
    // Closing over bytes that nobody has read would take the answer with it. Whatever fails here, the client is turned away.
    let _ = socket.set_nonblocking(true);
    let _ = (&*socket).write(&answer);
    let _ = socket.shutdown(Shutdown::Write);
    let _ = (&*socket).read(&mut [0; 4096]);
}

async fn converse(shard: &Rc<Shard>, peer: &Rc<Peer>, writer: &mut Writer) {
    let mut connection = http::Connection::new(Limits::default());
    let mut share = BodyShare { shard, bytes: 0 };
    loop {
        share.set(0);
        let mut request = match next_request(&mut share, peer, &mut connection, writer).await {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(error) => {
                let status = error.status;
                let id = shard.request_id();
                http::write_error(&mut writer.out, None, &id, &error, Dialect::OpenAi, unix_ms());
                answer::count(shard, writer, status);
                return;
            }
        };
        peer.busy.set(true);
        let span = shard.begin_span(peer, &request);
        let (sends, before) = (writer.sends, writer.out.len());
        let open = contain(answer::answer(shard, peer, &mut request, writer)).await;
        peer.end_answer();
        if open.is_none() && writer.sends == sends {
            writer.out.truncate(before);
            broken(shard, &request, writer);
        }
        shard.end_span(span, peer, writer.status);
        let Some(open) = open else { return };
        if !open || !request.keep_alive() || shard.control.is_draining() {
            return;
        }
        connection.recycle(request);
        // Answers to pipelined requests go out together, as many as are no burden.
        let together = !peer.inbox.borrow().is_empty() && !writer.is_full();
        if !together && writer.flush().await.is_err() {
            return;
        }
        // Who sends many requests at once must not hold the executor; others wait for their socket before the next one.
        if !peer.inbox.borrow().is_empty() || connection.phase() != Phase::Idle {
            executor::give_way().await;
        }
    }
}

/// What the body of a connection's request takes of what all bodies of a shard may.
struct BodyShare<'s> {
    shard: &'s Shard,
    bytes: usize,
}

impl BodyShare<'_> {
    fn set(&mut self, bytes: usize) {
        self.shard.body_bytes.set(self.shard.body_bytes.get() - self.bytes + bytes);
        self.bytes = bytes;
    }

    /// A small body always has room; the connections are counted.
    fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        self.set(bytes);
        if bytes > SMALL_BODY_BYTES && self.shard.body_bytes.get() > BODIES_BYTES_MAX {
            let message = format!("request bodies take more than the {} MiB that they may", BODIES_BYTES_MAX >> 20);
            return Err(ApiError::new(503, Code::MemoryExhausted, message).with_retry_after(RETRY_BODIES));
        }
        Ok(())
    }
}

impl Drop for BodyShare<'_> {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// The answer where making one has panicked.
fn broken(shard: &Shard, request: &Request, writer: &mut Writer) {
    answer::count(shard, writer, 500);
    let error = ApiError::internal("the answer could not be made");
    let dialect = net::api::dialect_of(request.path());
    http::write_error(&mut writer.out, Some(request), &shard.request_id(), &error, dialect, unix_ms());
}

/// The next request; `None` when the client has closed or stayed silent between requests.
async fn next_request(
    share: &mut BodyShare<'_>,
    peer: &Peer,
    connection: &mut http::Connection,
    writer: &mut Writer,
) -> Result<Option<Request>, ApiError> {
    let shard = share.shard;
    let mut bytes = Vec::new();
    let (mut phase, mut since) = (Phase::Idle, Instant::now());
    let mut body_bytes = 0;
    loop {
        if let Some(request) = connection.next()? {
            peer.wake_at.set(None);
            return Ok(Some(request));
        }
        if connection.wants_continue() {
            writer.out.extend_from_slice(CONTINUE);
        }
        if writer.flush().await.is_err() {
            return Ok(None);
        }
        if !peer.inbox.borrow().is_empty() {
            bytes.clear();
            peer.take_inbox(connection.room().max(1), &mut bytes);
            connection.receive(&bytes)?;
            share.grow(connection.body_bytes())?;
            continue;
        }
        if peer.gone.get() || connection.phase() == Phase::Closed {
            return Ok(None);
        }
        let now = Instant::now();
        let progress = connection.phase() == Phase::Body && connection.body_bytes() >= body_bytes + BODY_BYTES_MIN;
        if connection.phase() != phase || progress {
            (phase, since, body_bytes) = (connection.phase(), now, connection.body_bytes());
        }
        let patience = match phase {
            Phase::Idle if shard.control.is_draining() => Duration::ZERO,
            Phase::Idle | Phase::Closed => IDLE_MAX,
            Phase::Head => HEAD_MAX,
            Phase::Body => BODY_STALL_MAX,
        };
        if now >= since + patience {
            return if phase == Phase::Idle { Ok(None) } else { Err(ApiError::request_timeout()) };
        }
        peer.wake_at.set(Some(since + patience));
        peer.wake.wait().await;
    }
}

/// Sends what is left and waits a moment for the client to close: closing with unread bytes would make the kernel
/// reset the connection and take the answer with it.
async fn linger(peer: &Peer, writer: &mut Writer) {
    if writer.finish().await.is_err() || peer.gone.get() {
        return;
    }
    shutdown_write(peer);
    let until = Instant::now() + LINGER_MAX;
    let mut ignored = Vec::new();
    while !peer.gone.get() && Instant::now() < until {
        ignored.clear();
        peer.take_inbox(usize::MAX, &mut ignored);
        peer.wake_at.set(Some(until));
        peer.wake.wait().await;
    }
}

#[expect(unsafe_code, reason = "a socket system call")]
fn shutdown_write(peer: &Peer) {
    // SAFETY: no pointers are involved.
    unsafe { libc::shutdown(peer.fd, libc::SHUT_WR) };
}

pub(super) fn unix_ms() -> u64 {
    u64::try_from(unix_time().as_millis()).unwrap_or(u64::MAX)
}

/// Between requests.
const IDLE_MAX: Duration = Duration::from_secs(75);
/// For a whole request head.
const HEAD_MAX: Duration = Duration::from_secs(10);
/// For each [`BODY_BYTES_MIN`] of a body.
const BODY_STALL_MAX: Duration = Duration::from_secs(10);
const BODY_BYTES_MIN: usize = 4 << 10;
/// Connections come and go.
const RETRY_CONNECTION: Duration = Duration::from_secs(1);
/// Bodies of a shard: 64 of the longest.
const BODIES_BYTES_MAX: usize = 256 << 20;
const SMALL_BODY_BYTES: usize = 64 << 10;
/// A body is here or given up by then.
const RETRY_BODIES: Duration = Duration::from_secs(5);
const LINGER_MAX: Duration = Duration::from_secs(1);
