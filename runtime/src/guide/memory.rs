//! What the automata of all guides take together, about, and when that is so much that no further ones are made.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{BYTES_PER_FUEL, GROWTH_BYTES_MAX, GUIDE_BYTES};

/// The memory for guides.
pub(super) struct Memory {
    taken_bytes: AtomicU64,
    bytes_max: u64,
}

/// What one guide takes of it, until it is dropped.
pub(super) struct Share {
    memory: Arc<Memory>,
    grown_bytes: u64,
}

impl Memory {
    pub(super) fn new(bytes_max: u64) -> Arc<Self> {
        Arc::new(Self { taken_bytes: AtomicU64::new(0), bytes_max })
    }

    /// What a guide takes; `None` where there is no room for another.
    pub(super) fn share(self: &Arc<Self>) -> Option<Share> {
        self.share_of(0)
    }

    fn share_of(self: &Arc<Self>, grown_bytes: u64) -> Option<Share> {
        let bytes = GUIDE_BYTES + grown_bytes;
        let before = self.taken_bytes.fetch_add(bytes, Ordering::Relaxed);
        let share = Share { memory: Arc::clone(self), grown_bytes };
        (before.saturating_add(bytes) <= self.bytes_max).then_some(share)
    }
}

impl Share {
    /// Counts what automata grow by for so much work. A guide that is there grows as far as its states allow, whatever others
    /// take: its answer has begun.
    pub(super) fn grow(&mut self, fuel: u64) {
        let bytes = fuel.saturating_mul(BYTES_PER_FUEL).min(GROWTH_BYTES_MAX - self.grown_bytes);
        self.memory.taken_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.grown_bytes += bytes;
    }

    /// Another one as large.
    pub(super) fn again(&self) -> Option<Self> {
        self.memory.share_of(self.grown_bytes)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.memory.taken_bytes.fetch_sub(GUIDE_BYTES + self.grown_bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_is_free_again_and_growth_ends() {
        let memory = Memory::new(2 * GUIDE_BYTES + GROWTH_BYTES_MAX);
        let mut first = memory.share().unwrap();
        let second = first.again().unwrap();
        first.grow(u64::MAX);
        first.grow(1);
        assert_eq!(memory.taken_bytes.load(Ordering::Relaxed), 2 * GUIDE_BYTES + GROWTH_BYTES_MAX);
        assert!(memory.share().is_none() && first.again().is_none() && second.again().is_none());
        drop(first);
        let third = second.again().unwrap();
        drop((second, third));
        assert_eq!(memory.taken_bytes.load(Ordering::Relaxed), 0, "also of those that were refused");
    }
}
