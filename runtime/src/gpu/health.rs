//! When a device that failed is tried again: back-off, and a breaker for one that keeps failing. No clock of its own.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The faults of a device so far.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Recent faults, oldest first.
    faults: VecDeque<Instant>,
    backoff: Duration,
    up_since: Option<Instant>,
}

impl Health {
    /// The device failed: when to try again. A device that stayed up for a while begins with the shortest pause.
    pub(super) fn fault(&mut self, now: Instant) -> Instant {
        let stayed = self.up_since.take().is_some_and(|since| now.saturating_duration_since(since) >= STAYED_UP);
        self.backoff = if stayed || self.backoff.is_zero() { BACKOFF_MIN } else { (self.backoff * 2).min(BACKOFF_MAX) };
        self.faults.push_back(now);
        while self.faults.front().is_some_and(|first| now.saturating_duration_since(*first) > BREAKER_WINDOW) {
            self.faults.pop_front();
        }
        now + if self.is_tripped() { BREAKER_PAUSE } else { self.backoff }
    }

    /// The device is up and has passed its test.
    pub(super) fn up(&mut self, now: Instant) {
        self.up_since = Some(now);
    }

    /// Whether it failed so often that it is left alone for long.
    #[must_use]
    pub(super) fn is_tripped(&self) -> bool {
        self.faults.len() >= BREAKER_FAULTS
    }
}

const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A device that was up for so long has recovered.
const STAYED_UP: Duration = Duration::from_secs(60);
/// So many faults within the window trip the breaker.
const BREAKER_FAULTS: usize = 6;
const BREAKER_WINDOW: Duration = Duration::from_secs(600);
const BREAKER_PAUSE: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_then_the_breaker_trips_and_a_long_time_up_forgives() {
        let mut health = Health::default();
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..6 {
            let retry = health.fault(now);
            pauses.push((retry - now).as_millis());
            now = retry;
        }
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 300_000]);
        assert!(health.is_tripped());
        now += BREAKER_WINDOW;
        health.up(now);
        now += STAYED_UP;
        assert_eq!(health.fault(now) - now, BACKOFF_MIN);
        assert!(!health.is_tripped());
    }
}
