//! The turns of an executor: what comes from other threads is handed on, and clients are let in, until the shard is
//! drained.
//!
//! A panic in a turn ends the streams of this shard, since what it was about to hand on is lost, and nothing else: its
//! connections stay, and the next turn follows at once. A task that lets clients in or keeps the time begins anew by
//! itself. Where the executor itself breaks down, [`super::life`] makes another. Each counts as a fall, and too many of
//! them end the process.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::tls::Tls;
use super::{Arrivals, Shard, connection, doors, shutdown};
#[cfg(test)]
use crate::engine::faults::{self, Fault};
use crate::executor::{self, Holder, Listener, Rings, Turns, contain, held_by};
use crate::falls::Falls;

/// What outlives a turn that panics.
struct Serving<'a> {
    arrivals: &'a mut Arrivals,
    listeners: Vec<Rc<Listener>>,
    rings: Rings,
    turns: Option<Turns>,
    draining: bool,
    cut: bool,
    /// Falls of leaders whose streams were ended.
    restarts_seen: Box<[u64]>,
}

/// The falls of an executor.
#[derive(Default)]
pub(super) struct Fallen {
    falls: RefCell<Falls>,
    pub(super) given_up: Cell<bool>,
    /// Its executor has broken down, and no other has taken its place yet.
    pub(super) is_down: Cell<bool>,
    /// It was counted among those that listen.
    pub(super) has_listened: Cell<bool>,
}

impl Shard {
    /// Serves the clients of `listeners` until it is drained; `gone_since` is when the executor before this one broke
    /// down.
    ///
    /// # Errors
    /// When the driver fails, or it breaks down too often.
    pub(super) async fn serve(
        self: &Rc<Self>,
        arrivals: &mut Arrivals,
        listeners: &[OwnedFd],
        gone_since: Option<Instant>,
    ) -> io::Result<()> {
        let shard = self;
        let listeners = listeners.iter().map(|fd| Listener::new(fd.try_clone()?).map(Rc::new));
        let mut serving = Serving {
            arrivals,
            listeners: listeners.collect::<io::Result<_>>()?,
            rings: Rings::new(Arc::clone(&shard.doorbell))?,
            turns: if shard.may_spin { Turns::new()? } else { None },
            draining: false,
            cut: false,
            restarts_seen: shard.control.restarts(),
        };
        if !shard.fallen.has_listened.replace(true) {
            shard.control.listening.fetch_add(1, Ordering::SeqCst);
        }
        for listener in &serving.listeners {
            let listener = Rc::clone(listener);
            shard.keep_up(move |shard| accept(shard, Rc::clone(&listener)));
        }
        shard.keep_up(keep_time);
        if let Some(since) = gone_since {
            shard.fallen.is_down.set(false);
            shard.metrics.observe_rebuild(since.elapsed());
        }
        loop {
            if let Some(ended) = contain(shard.take_turns(&mut serving)).await {
                return ended;
            }
            shard.fell();
            shard.end_streams();
        }
    }

    async fn take_turns(self: &Rc<Self>, serving: &mut Serving<'_>) -> io::Result<()> {
        let Serving { arrivals, listeners, rings, turns, draining, cut, restarts_seen } = serving;
        let control = &self.control;
        let door = &self.doors[self.index];
        let restarts = || control.metrics.iter().map(|metrics| metrics.step.restarts.get());
        loop {
            if self.fallen.given_up.get() {
                return Err(io::Error::other("it broke down too often"));
            }
            held_by(Holder::Delivery, || self.deliver(&mut arrivals.events));
            self.waiting.tell(&self.aside);
            if !restarts().eq(restarts_seen.iter().copied()) {
                self.end_lost_streams(restarts_seen);
            }
            self.end_cut_streams();
            held_by(Holder::Order, || self.obey(&mut arrivals.orders));
            self.guides.deliver();
            for socket in arrivals.connections.try_iter() {
                door.took();
                self.metrics.requests.handed_over.add(1);
                welcome(self, socket);
            }
            if control.is_draining() && !*draining {
                *draining = true;
                listeners.iter().for_each(|listener| listener.shut_down());
                self.close_idle();
            }
            if control.is_cutting() && !*cut {
                *cut = true;
                self.cut();
                self.cut_jobs();
                self.guides.cut();
            }
            let done = self.peers.borrow().is_empty() && self.streams.borrow().is_empty();
            if *draining && done && !door.is_knocked_at() {
                return Ok(());
            }
            let (events, orders) = (&arrivals.events, &arrivals.orders);
            let mail = || {
                !events.is_empty() || !orders.is_empty() || door.is_knocked_at() || self.waiting.has_news(&self.aside)
            };
            let mail = || mail() || self.guides.have_come();
            let quiet = || self.gpus.are_quiet() && self.hosts.are_quiet() && !self.fallen.given_up.get();
            let news = || mail() || !quiet() || !restarts().eq(restarts_seen.iter().copied());
            let busy = || news() || control.is_draining() != *draining || control.is_cutting() != *cut;
            if let Some(turns) = turns {
                let until = Instant::now() + self.spin_time();
                while !busy() && Instant::now() < until {
                    turns.take().await?;
                }
            }
            rings.sleep_unless(busy).await?;
        }
    }

    /// Runs a task that the shard can't do without: one that panics begins anew.
    fn keep_up<T: Future<Output = ()>>(self: &Rc<Self>, task: impl Fn(Rc<Self>) -> T + 'static) {
        let shard = Rc::clone(self);
        executor::spawn(async move {
            while contain(task(Rc::clone(&shard))).await.is_none() {
                if shard.fell() {
                    return;
                }
            }
        });
    }

    /// Counts a fall; whether the shard is given up.
    pub(super) fn fell(&self) -> bool {
        self.metrics.requests.restarts.add(1);
        if self.fallen.falls.borrow_mut().fell(Instant::now()) {
            self.fallen.given_up.set(true);
            self.doorbell.ring();
        }
        self.fallen.given_up.get()
    }

    /// How long the next token may take if it is worth looking for: where steps are long, a wake-up is nothing to them.
    fn spin_time(&self) -> Duration {
        let step = Duration::from_secs_f64(self.load_of(self.index).costs.decode_s.clamp(0.0, 1.0));
        if self.streams.borrow().is_empty() || step > SPIN_STEP_MAX { Duration::ZERO } else { step * 3 / 2 }
    }

    /// Ends the connections that have no request in progress.
    fn close_idle(&self) {
        for peer in self.peers.borrow().values().filter(|peer| peer.is_idle()) {
            shutdown(peer.fd);
        }
    }

    /// Ends running streams with an error, and soon also those whose clients don't take what they were sent.
    fn cut(&self) {
        for (inbox, _) in self.streams.borrow().values() {
            inbox.cut.set(true);
            inbox.wake.notify();
        }
        self.waiting.wake_all();
        let until = Instant::now() + CUT_WRITE_MAX;
        for peer in self.peers.borrow().values() {
            peer.end_writes_at(until);
        }
    }
}

async fn accept(shard: Rc<Shard>, listener: Rc<Listener>) {
    loop {
        match listener.accept().await {
            Ok(socket) => {
                #[cfg(test)]
                assert!(!faults::strikes(Fault::Accept), "told to fail");
                if let Some(socket) = doors::place(&shard.doors, shard.index, socket) {
                    welcome(&shard, socket);
                }
            }
            Err(_) if shard.control.is_draining() => return,
            // Out of descriptors, or a client that left already: the next one may have more luck.
            Err(_) => executor::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// Serves a fresh connection that is counted as this shard's.
fn welcome(shard: &Rc<Shard>, socket: OwnedFd) {
    let is_local = socket2::SockRef::from(&socket).local_addr().is_ok_and(|address| address.is_unix());
    let terms = shard.terms();
    let identity = terms.identity.as_deref().filter(|_| !is_local);
    if shard.peers.borrow().len() >= shard.config.connections_max {
        shard.metrics.requests.outcomes.refused_connections.add(1);
        connection::turn_away(shard, &socket, identity.is_some());
    } else if let Ok(halves) = executor::halves(socket) {
        let tls = identity.map(|identity| Tls::new(identity, Rc::clone(&shard.handshake_pace)));
        let inside = Inside(Rc::clone(shard));
        executor::spawn(async move { connection::run(&inside.0, halves, is_local, tls).await });
        return;
    }
    shard.doors[shard.index].left();
}

/// A connection that is counted at its shard's door, until it has ended in whatever way.
struct Inside(Rc<Shard>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.doors[self.0.index].left();
    }
}

/// Wakes what has waited too long. All deadlines of a shard are looked at here, so that none is a timer of its own.
async fn keep_time(shard: Rc<Shard>) {
    let mut beats = 0_u64;
    loop {
        #[cfg(test)]
        assert!(!faults::strikes(Fault::Timer), "told to fail");
        if beats.is_multiple_of(BEATS_PER_MEMORY_LOOK) {
            shard.rss_bytes.set(tuning::memory::rss_bytes().unwrap_or(0));
        }
        beats += 1;
        shard.metrics.requests.turns.add(1);
        shard.metrics.requests.connections.set(shard.peers.borrow().len() as u64);
        let now = Instant::now();
        for peer in shard.peers.borrow().values() {
            peer.check_deadlines(now);
        }
        shard.close_generations();
        if shard.config.kv_idle.is_some_and(|idle| beats.is_multiple_of(beats_of(idle / KV_LOOKS))) {
            shard.bell.ring();
        }
        executor::sleep(BEAT).await;
    }
}

/// Beats that last about as long as `time`.
fn beats_of(time: Duration) -> u64 {
    u64::try_from(time.as_millis() / BEAT.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// Steps that take longer wake the executor.
const SPIN_STEP_MAX: Duration = Duration::from_millis(1);
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
/// How often deadlines are looked at.
const BEAT: Duration = Duration::from_millis(100);
const BEATS_PER_MEMORY_LOOK: u64 = 10;
/// How often a leader that sleeps is woken within the time that unused KV memory is kept, to give it back.
const KV_LOOKS: u32 = 8;
/// What a client gets to take the error that ends its stream.
const CUT_WRITE_MAX: Duration = Duration::from_secs(1);
