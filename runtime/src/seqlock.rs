//! Words that one thread writes and any thread reads: a reader who saw the writer at work looks again, and nobody waits for
//! anybody.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// `N` words that belong together. The writer makes the number of turns odd, writes, and makes it even.
pub(crate) struct Place<const N: usize> {
    turn: AtomicU64,
    words: [AtomicU64; N],
}

impl<const N: usize> Place<N> {
    pub(crate) fn new() -> Self {
        Self { turn: AtomicU64::new(0), words: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// Only one thread calls this.
    pub(crate) fn write(&self, words: [u64; N]) {
        let turn = self.turn.load(Ordering::Relaxed);
        self.turn.store(turn + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        for (word, value) in self.words.iter().zip(words) {
            word.store(value, Ordering::Relaxed);
        }
        self.turn.store(turn + 2, Ordering::Release);
    }

    /// `None` for a place that nobody wrote yet.
    pub(crate) fn read(&self) -> Option<[u64; N]> {
        loop {
            let turn = self.turn.load(Ordering::Acquire);
            if turn == 0 {
                return None;
            }
            let words = std::array::from_fn(|i| self.words[i].load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            if turn.is_multiple_of(2) && self.turn.load(Ordering::Relaxed) == turn {
                return Some(words);
            }
            std::hint::spin_loop();
        }
    }
}
