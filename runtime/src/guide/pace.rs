//! Whether the sets of a guide take so long that they have no place in steps: arithmetic on what a clock said of earlier ones.

use std::time::{Duration, Instant};

/// What is known of the sets of one guide.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// What the last one took.
    pub(super) last: Duration,
    /// Sets that are still timed by the time that their thread had a core, since one before took long.
    watched: u32,
    is_slow: bool,
}

impl Pace {
    /// Times a set. The clock on the wall costs next to nothing, but a thread that waits for its core makes any set long: what
    /// took long by it is only watched from then on.
    pub(super) fn time<T>(&mut self, set: impl FnOnce() -> T) -> T {
        if self.watched > 0 {
            let begun = tuning::thread_time();
            let made = set();
            self.observe(tuning::thread_time().saturating_sub(begun));
            return made;
        }
        let begun = Instant::now();
        let made = set();
        self.observe(begun.elapsed());
        made
    }

    /// Of one whose next set goes beside the steps.
    #[cfg(test)]
    pub(super) fn slow() -> Self {
        Self { last: SLOW, watched: WATCHED, is_slow: true }
    }

    fn observe(&mut self, took: Duration) {
        self.last = took;
        if took > SLOW {
            self.is_slow |= self.watched > 0;
            self.watched = WATCHED;
        } else if self.watched > 0 {
            self.watched -= 1;
            self.is_slow &= self.watched > 0;
        }
    }

    /// Whether the next one has no place in a step.
    pub(super) fn is_slow(self) -> bool {
        self.is_slow
    }
}

/// A set that takes longer is one too long for a step, unless it is the only one among many.
const SLOW: Duration = Duration::from_millis(2);
/// How many sets in a row must take less before a guide counts as quick again.
const WATCHED: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    #[test]
    fn a_guide_is_slow_after_two_long_sets_and_quick_after_many_short_ones() {
        let mut pace = Pace::default();
        for took in [20, 30, 40_000, 20] {
            pace.observe(us(took));
            assert!(!pace.is_slow(), "the thread may have waited for its core");
        }
        pace.observe(us(2_100));
        assert!(pace.is_slow());
        for _ in 1..WATCHED {
            pace.observe(us(1_000));
            assert!(pace.is_slow());
        }
        pace.observe(us(1_000));
        assert!(!pace.is_slow());
        pace.observe(us(3_000));
        assert!(!pace.is_slow(), "it begins anew");
    }

    #[test]
    fn one_long_set_among_many_leaves_a_guide_quick() {
        let mut pace = Pace::default();
        for _ in 0..10 {
            pace.observe(us(4_000));
            (0..WATCHED).for_each(|_| pace.observe(us(30)));
            assert!(!pace.is_slow() && pace.watched == 0);
        }
    }
}
