//! TLS of a connection: its session between the task that reads and the one that writes, and what the handshakes of all
//! clients may take of an executor.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use net::error::{ApiError, Dialect};
use net::http;
use net::tls::{Identity, Received, Refusal, SealError, Session};

use super::connection::unix_ms;
use super::peer::{Peer, Writer};
use super::{Shard, answer};
use crate::executor::{self, Holder, held_by};

/// What the tasks of a connection share of its session.
pub(super) struct Tls {
    session: RefCell<Session>,
    refusal: Cell<Option<Refusal>>,
    pace: Rc<Pace>,
}

impl Tls {
    pub(super) fn new(identity: &Identity, pace: Rc<Pace>) -> Self {
        Self { session: RefCell::new(identity.session()), refusal: Cell::new(None), pace }
    }

    /// Deciphers what was read, into `inbox`; whether more may come.
    pub(super) async fn receive(
        &self,
        bytes: &mut [u8],
        inbox: &RefCell<Vec<u8>>,
        is_closed: impl Fn() -> bool,
    ) -> bool {
        if self.refusal.get().is_some() {
            return true;
        }
        let received = if self.session.borrow().is_open() {
            self.session.borrow_mut().receive(bytes, &mut inbox.borrow_mut())
        } else {
            let Some(place) = self.pace.wait(is_closed).await else { return false };
            let begun = Instant::now();
            let shake = || self.session.borrow_mut().receive(bytes, &mut inbox.borrow_mut());
            let received = held_by(Holder::Handshake, shake);
            self.pace.took(place, begun.elapsed());
            received
        };
        match received {
            Ok(Received::More) => true,
            Ok(Received::End) => false,
            Err(refusal) => {
                self.refusal.set(Some(refusal));
                // What else a client says that is being told why it is refused is read and forgotten: closing over it would
                // take the words with it.
                !self.session.borrow().is_open()
            }
        }
    }

    /// Whether the client speaks no TLS, and is answered in clear.
    pub(super) fn is_clear(&self) -> bool {
        self.refusal.get() == Some(Refusal::Clear)
    }

    /// Puts `plain` into records, behind those that wait to be sent.
    pub(super) fn seal(&self, plain: &[u8]) -> Result<(), SealError> {
        if plain.is_empty() { Ok(()) } else { self.session.borrow_mut().seal(plain) }
    }

    /// Says that nothing more will be sent.
    pub(super) fn close(&self) {
        self.session.borrow_mut().close();
    }

    pub(super) fn has_records(&self) -> bool {
        self.session.borrow().has_records()
    }

    pub(super) fn take_records(&self) -> Vec<u8> {
        self.session.borrow_mut().take_records()
    }

    pub(super) fn give_back(&self, sent: Vec<u8>) {
        self.session.borrow_mut().give_back(sent);
    }

    /// The records of `words`, which are the last; empty where the session can't say them.
    pub(super) fn last_records(&self, words: &[u8]) -> Vec<u8> {
        // What broke down may have broken down in here.
        let Ok(mut session) = self.session.try_borrow_mut() else { return Vec::new() };
        if session.seal(words).is_err() {
            return Vec::new();
        }
        session.close();
        session.take_records()
    }
}

/// Brings a client's session up; whether it can be spoken to. One that can't has been told why, as far as it can be.
pub(super) async fn shake_hands(shard: &Shard, peer: &Peer, writer: &mut Writer) -> bool {
    let Some(tls) = &peer.tls else { return true };
    let counts = &shard.metrics.handshakes;
    let until = Instant::now() + HANDSHAKE_MAX;
    loop {
        if tls.session.borrow().is_open() {
            let kind = if tls.session.borrow().is_resumed() { &counts.resumed } else { &counts.full };
            kind.add(1);
            // Tickets may wait for the first answer.
            peer.wake_at.set(None);
            return true;
        }
        if let Some(refusal) = tls.refusal.get() {
            counts.refused[refusal as usize].add(1);
            if refusal == Refusal::Clear {
                refuse_clear(shard, writer);
            }
            return false;
        }
        let wrote = writer.flush().await;
        if peer.gone.get() || wrote.is_err() {
            counts.left.add(1);
            return false;
        }
        if Instant::now() >= until {
            counts.timed_out.add(1);
            return false;
        }
        peer.wake_at.set(Some(until));
        peer.wake.wait().await;
    }
}

fn refuse_clear(shard: &Shard, writer: &mut Writer) {
    let error = ApiError::invalid_request("this port speaks HTTPS only: the same request with https:// will do");
    http::write_error(&mut writer.out, None, &shard.request_id(), &error, Dialect::OpenAi, unix_ms());
    answer::count(shard, writer, error.status);
}

/// Keeps what handshakes take of an executor to a share, however many clients come: tokens of those that are here go on.
pub(super) struct Pace {
    /// When a handshake may begin that finds no other before it; what is past is saved time, up to [`BURST`].
    next: Cell<Instant>,
    /// Of a handshake's turn, a moving average.
    cost: Cell<Duration>,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { next: Cell::new(Instant::now()), cost: Cell::new(FIRST_COST) }
    }

    /// Waits for a place among the handshakes of this executor, and gives what was set aside for it; `None` if the
    /// connection was closed meanwhile.
    async fn wait(&self, is_closed: impl Fn() -> bool) -> Option<Duration> {
        let place = self.cost.get();
        let at = self.take(place, Instant::now());
        loop {
            let now = Instant::now();
            if at <= now {
                return Some(place);
            }
            executor::sleep((at - now).min(CLOSED_LOOKED_AT_EVERY)).await;
            if is_closed() {
                self.took(place, Duration::ZERO);
                return None;
            }
        }
    }

    /// When a turn that takes `place` may begin.
    fn take(&self, place: Duration, now: Instant) -> Instant {
        let at = self.next.get().max(now.checked_sub(BURST).unwrap_or(now));
        self.next.set(at + place * SHARE);
        at
    }

    /// A turn for which `place` was set aside has taken `time`.
    fn took(&self, place: Duration, time: Duration) {
        let next = self.next.get() + time * SHARE;
        self.next.set(next.checked_sub(place * SHARE).unwrap_or(next));
        self.cost.set((self.cost.get() * 7 + time) / 8);
    }
}

/// For a whole handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Handshakes take one part of an executor's time in so many, once there is no saved time left.
const SHARE: u32 = 4;
/// A burst of handshakes may take a quarter of this at once.
const BURST: Duration = Duration::from_millis(100);
/// Of a handshake with an ECDSA key, until some were timed.
const FIRST_COST: Duration = Duration::from_micros(200);
const CLOSED_LOOKED_AT_EVERY: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshakes_take_a_quarter_of_the_time_once_a_burst_is_through() {
        let pace = Pace::new();
        let begun = Instant::now() + Duration::from_secs(60);
        let cost = Duration::from_millis(1);
        let (mut now, mut at_once, mut count) = (begun, 0, 0);
        // As many as come, for a second.
        while now < begun + Duration::from_secs(1) {
            let at = pace.take(pace.cost.get(), now);
            at_once += u32::from(at <= now);
            now = now.max(at) + cost;
            pace.took(pace.cost.get(), cost);
            count += 1;
        }
        assert!((20..60).contains(&at_once) && (250..300).contains(&count), "{at_once} at once, {count} in a second");
        assert!(pace.cost.get() > cost / 2 && pace.cost.get() <= cost, "{:?}", pace.cost.get());
    }

    #[test]
    fn who_takes_nothing_delays_nobody() {
        let pace = Pace::new();
        let now = Instant::now() + Duration::from_secs(60);
        for _ in 0..100_000 {
            let place = pace.cost.get();
            let at = pace.take(place, now);
            assert!(at <= now);
            pace.took(place, Duration::ZERO);
        }
    }
}
