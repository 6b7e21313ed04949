//! The protocol of sleepers and ringers, and the bell of a leader, which sleeps on a futex.
//!
//! Names no atomic of its own: `tests/mailbox_model.rs` compiles this file with those of a model checker.

use super::futex::Word;
use super::sync::{AtomicBool, Ordering};

/// Whether one thread sleeps, or is about to. Changed by exchanges only: each sees the one before it, and so what was
/// written to the ring before that one. With a plain store instead, a wake-up can be lost.
pub(super) struct Asleep(AtomicBool);

impl Default for Asleep {
    fn default() -> Self {
        Self(AtomicBool::new(false))
    }
}

impl Asleep {
    /// Asked by a ringer whose record is in the ring: whether it has to wake the sleeper. One ringer of many is told so.
    pub(super) fn must_be_woken(&self) -> bool {
        self.0.swap(false, Ordering::SeqCst)
    }

    /// Said by the sleeper before its last look at the ring.
    pub(super) fn prepare(&self) {
        let _ = self.0.swap(true, Ordering::SeqCst);
    }

    /// Said by the sleeper when that look found something, or when it is awake again.
    pub(super) fn awake(&self) {
        let _ = self.0.swap(false, Ordering::SeqCst);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Wakes the leader, which sleeps on a futex.
#[derive(Default)]
pub struct LeaderBell {
    rings: Word,
    asleep: Asleep,
}

impl LeaderBell {
    /// Wakes the leader if it sleeps.
    pub fn ring(&self) {
        if self.asleep.must_be_woken() {
            self.rings.add_one_and_wake();
        }
    }

    /// Sleeps until a ring, unless `busy` says that there is work already; looks `spins` times before it sleeps.
    pub fn sleep_unless(&self, spins: u32, busy: impl Fn() -> bool) {
        for _ in 0..spins {
            if busy() {
                return;
            }
            std::hint::spin_loop();
        }
        let rings = self.rings.get();
        self.asleep.prepare();
        while self.asleep.is_set() {
            if busy() {
                self.asleep.awake();
                return;
            }
            self.rings.wait_while(rings);
            if self.rings.get() != rings {
                return;
            }
        }
    }
}
