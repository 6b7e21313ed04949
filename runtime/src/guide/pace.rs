//! Whether the sets of a guide take so long that they have no place in steps: arithmetic on what a clock said of earlier ones.

use std::time::{Duration, Instant};

/// What is known of the sets of one guide.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// What the last one took.
    pub(super) last: Duration,
    /// Sets that are still timed by the time that their thread had a core, since one before took long.
    watched: u32,
    /// A moving average of those that were timed so.
    mean: Duration,
    is_slow: bool,
    /// What all of those took.
    spent: Duration,
    /// What it still owes of that where the sets of a step are limited.
    owed: Duration,
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
        let long = Duration::from_millis(4);
        Self { last: long, watched: WATCHED, mean: long, is_slow: true, spent: Duration::ZERO, owed: long }
    }

    pub(super) fn observe(&mut self, took: Duration) {
        (self.last, self.owed) = (took, took);
        if self.watched > 0 {
            self.mean = (self.mean * (KEPT - 1) + took) / KEPT;
            self.spent += took;
        }
        self.watched = if took > LONG { WATCHED } else { self.watched.saturating_sub(1) };
        if self.watched == 0 {
            self.mean = Duration::ZERO;
        }
    }

    /// Whether the next one has no place in a step, where those of a guide may take `most` on average: once they take more, until they
    /// take a quarter of it.
    pub(super) fn is_slow(&mut self, most: Duration) -> bool {
        self.is_slow = self.mean > if self.is_slow { most / 4 } else { most };
        self.is_slow
    }

    /// Whether that was so when it was last asked.
    pub(super) fn was_slow(self) -> bool {
        self.is_slow
    }

    /// Whether they have taken more than an answer's may.
    pub(super) fn is_over(self) -> bool {
        self.spent > SETS_TIME_MAX
    }

    /// What the next one is likely to take of a step that others may want it for; nothing where that isn't worth a look.
    pub(super) fn wanted(self) -> Duration {
        if self.last > CHEAP { self.last } else { Duration::ZERO }
    }

    /// Whether the last one took so long that the next one must not hold up the sets of others either.
    pub(super) fn is_long(self) -> bool {
        self.last > LONG_BESIDE
    }

    /// What it owes before the next one has its turn in a step that has a share for it: so they take turns, and those that take
    /// less more often.
    pub(super) fn owed(self) -> Duration {
        self.owed
    }

    /// Has it owe that much less.
    pub(super) fn pay(&mut self, share: Duration) {
        self.owed = self.owed.saturating_sub(share);
    }
}

/// What those sets of an answer may take of a core's time that follow a long one: a set of an ambiguous grammar takes seconds.
pub(crate) const SETS_TIME_MAX: Duration = Duration::from_secs(60);
/// Sets that count of those before.
const KEPT: u32 = 4;
/// Sets that take less are in every step that wants them.
const CHEAP: Duration = Duration::from_micros(100);
/// A set that takes longer by the clock on the wall is reason to look at those that follow.
const LONG: Duration = Duration::from_millis(1);
/// Sets that follow one that took longer are beside the steps of a shard or a GPU whoever is there, by threads of their own: those
/// of an ambiguous grammar (`e: e e | /[a-z ]/`) take seconds after some hundred tokens.
const LONG_BESIDE: Duration = Duration::from_millis(20);
/// How many sets in a row must take less before it is no longer looked at so closely.
const WATCHED: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Duration = Duration::from_millis(4);

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    #[test]
    fn a_guide_is_slow_by_its_second_long_set_and_quick_after_a_few_short_ones() {
        let mut pace = Pace::default();
        for took in [20, 30, 40_000, 20, 30] {
            pace.observe(us(took));
            assert!(!pace.is_slow(SLOW), "the thread may have waited for its core");
        }
        pace.observe(us(40_000));
        assert!(pace.is_slow(SLOW));
        let mut sets = 0;
        while pace.is_slow(SLOW) {
            pace.observe(us(100));
            sets += 1;
        }
        assert!((4..12).contains(&sets), "{sets}");
        (0..8).for_each(|_| pace.observe(us(5_000)));
        assert!(pace.is_slow(SLOW));
        (0..8).for_each(|_| pace.observe(us(2_000)));
        assert!(pace.is_slow(SLOW), "neither here nor there");
        assert!(!Pace { is_slow: false, ..pace }.is_slow(SLOW) && Pace { is_slow: false, ..pace }.is_slow(us(1_000)));
    }

    #[test]
    fn sets_take_turns_by_what_they_take() {
        let share = us(200);
        for (took, expected) in [(90, 12), (200, 12), (500, 4), (1_900, 2)] {
            let mut pace = Pace::default();
            let mut turns = 0;
            for _ in 0..12 {
                let has_turn = pace.owed() <= share;
                pace.pay(share);
                if has_turn {
                    pace.observe(us(took));
                    turns += 1;
                }
            }
            assert_eq!(turns, expected, "{took}");
        }
    }

    #[test]
    fn now_and_then_a_long_set_leaves_a_guide_quick() {
        let mut pace = Pace::default();
        for _ in 0..10 {
            (0..2).for_each(|_| pace.observe(us(6_000)));
            (0..8).for_each(|_| pace.observe(us(30)));
            assert!(!pace.is_slow(SLOW));
        }
    }
}
