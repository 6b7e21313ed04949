//! How fresh connections find a shard: the one that accepted them, or one that has fewer.
//!
//! Streams live long, and a hash spreads few of them badly (twice the mean at 16 over 8 shards): a shard hands a
//! connection over before its first byte if another has clearly fewer.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError};

use crate::mailbox::Doorbell;

/// The way into a shard, as all shards see it.
pub struct Door {
    /// Connections that the shard has or will have.
    open: AtomicUsize,
    /// Those that it has not taken yet.
    waiting: AtomicUsize,
    sender: SyncSender<OwnedFd>,
    bell: Arc<Doorbell>,
}

impl Door {
    /// A door, and what comes in by it; `bell` tells its shard.
    #[must_use]
    pub fn new(bell: Arc<Doorbell>) -> (Self, Receiver<OwnedFd>) {
        let (sender, arrivals) = std::sync::mpsc::sync_channel(ARRIVALS_MAX);
        (Self { open: AtomicUsize::new(0), waiting: AtomicUsize::new(0), sender, bell }, arrivals)
    }

    /// Whether somebody waits to be taken.
    pub(super) fn is_knocked_at(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// One that came by [`place`] was taken.
    pub(super) fn took(&self) {
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    /// A connection of this shard has ended.
    pub(super) fn left(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    fn give(&self, socket: OwnedFd) -> Result<(), OwnedFd> {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        match self.sender.try_send(socket) {
            Ok(()) => {
                self.bell.ring();
                Ok(())
            }
            Err(TrySendError::Full(socket) | TrySendError::Disconnected(socket)) => {
                self.open.fetch_sub(1, Ordering::Relaxed);
                self.waiting.fetch_sub(1, Ordering::SeqCst);
                Err(socket)
            }
        }
    }
}

/// Gives a fresh connection that shard `own` has accepted to the shard with the fewest; `Some` is for `own`.
pub(super) fn place(doors: &[Door], own: usize, socket: OwnedFd) -> Option<OwnedFd> {
    let open = |door: &Door| door.open.load(Ordering::Relaxed);
    let fewest = doors.iter().min_by_key(|door| open(door)).expect("there is a shard");
    let socket = if open(&doors[own]) >= open(fewest) + MARGIN {
        match fewest.give(socket) {
            Ok(()) => return None,
            Err(socket) => socket,
        }
    } else {
        socket
    };
    doors[own].open.fetch_add(1, Ordering::Relaxed);
    Some(socket)
}

/// How many more connections a shard must have before it hands one over, which costs a wake-up.
const MARGIN: usize = 2;
/// Connections that may be on their way to a shard.
const ARRIVALS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn socket() -> OwnedFd {
        std::os::unix::net::UnixStream::pair().unwrap().0.into()
    }

    #[test]
    fn whoever_accepts_the_shards_stay_even() {
        let made: Vec<_> = (0..4).map(|_| Door::new(Arc::new(Doorbell::new().unwrap()))).collect();
        let (doors, arrivals): (Vec<Door>, Vec<_>) = made.into_iter().unzip();
        let mut kept = 0;
        for _ in 0..40 {
            kept += usize::from(place(&doors, 1, socket()).is_some());
        }
        let given: Vec<usize> = arrivals.iter().map(|arrivals| arrivals.try_iter().count()).collect();
        assert_eq!((kept + given.iter().sum::<usize>(), given[1]), (40, 0));
        assert!(kept <= 12 && given.iter().enumerate().all(|(shard, &n)| shard == 1 || n >= 9), "{kept} {given:?}");
    }

    #[test]
    fn what_a_shard_cannot_take_stays() {
        let (door, arrivals) = Door::new(Arc::new(Doorbell::new().unwrap()));
        let doors = [door, Door::new(Arc::new(Doorbell::new().unwrap())).0];
        drop(arrivals);
        for open in 1..10 {
            assert!(place(&doors, 1, socket()).is_some());
            assert_eq!(doors[1].open.load(Ordering::Relaxed), open);
        }
        assert_eq!(doors[0].open.load(Ordering::Relaxed), 0);
        assert!(!doors[0].is_knocked_at());
    }
}
