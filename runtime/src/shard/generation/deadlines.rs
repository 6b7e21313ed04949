//! When the parts of a request happened, and by when they must.

use std::cell::Cell;
use std::time::{Duration, Instant};

use net::api::{EmbeddingsRequest, GenerateRequest};
use net::error::{ApiError, Code};

use crate::shard::admission::Estimate;

/// When things happened to a request.
pub(in crate::shard) struct Clock {
    pub(in crate::shard) arrival: Instant,
    pub(in crate::shard) admitted: Option<Instant>,
    pub(in crate::shard) first_token: Option<Instant>,
    pub(in crate::shard) last_token: Cell<Option<Instant>>,
}

/// The longest that any request may take to be computed, to its first token, and in all.
#[derive(Clone, Copy, Debug)]
pub struct TimeLimits {
    pub queue: Option<Duration>,
    pub first_token: Option<Duration>,
    pub total: Duration,
}

/// What a request says of its time, in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::shard) struct Wishes {
    queue: Option<u64>,
    first_token: Option<u64>,
    total: Option<u64>,
}

/// Moments by which a request must have come so far.
#[derive(Clone, Copy, Debug)]
pub(in crate::shard) struct Deadlines {
    queue: Option<Instant>,
    first_token: Option<Instant>,
    total: Instant,
}

impl From<&GenerateRequest> for Wishes {
    fn from(request: &GenerateRequest) -> Self {
        Self { queue: request.queue_timeout_ms, first_token: request.first_token_timeout_ms, total: request.timeout_ms }
    }
}

impl From<&EmbeddingsRequest> for Wishes {
    fn from(request: &EmbeddingsRequest) -> Self {
        Self { queue: request.queue_timeout_ms, first_token: None, total: request.timeout_ms }
    }
}

impl Clock {
    pub(in crate::shard) fn new(arrival: Instant) -> Self {
        Self { arrival, admitted: None, first_token: None, last_token: Cell::new(None) }
    }

    /// Seconds from arrival to the last token so far.
    pub(in crate::shard) fn elapsed(&self) -> Duration {
        self.last_token.get().map_or(Duration::ZERO, |last| last.saturating_duration_since(self.arrival))
    }
}

impl Deadlines {
    /// Of a request that came at `arrival`: what it wishes, as far as that is within `limits`.
    pub(in crate::shard) fn new(wishes: Wishes, limits: &TimeLimits, arrival: Instant) -> Self {
        let within = |wish: Option<u64>, limit: Option<Duration>| {
            let wish = wish.map(Duration::from_millis);
            // A time beyond what the clock counts is none.
            arrival.checked_add(wish.into_iter().chain(limit).min()?)
        };
        Self {
            queue: within(wishes.queue, limits.queue),
            first_token: within(wishes.first_token, limits.first_token),
            total: within(wishes.total, Some(limits.total)).unwrap_or(arrival + limits.total),
        }
    }

    /// Whether a request that came at `arrival` will miss one of them, as far as is known.
    pub(in crate::shard) fn will_miss(&self, arrival: Instant, estimate: &Estimate) -> bool {
        let after = |time: Duration, by: Option<Instant>| by.is_some_and(|by| by.duration_since(arrival) < time);
        after(estimate.queue, self.queue)
            || after(estimate.first_token, self.first_token)
            || after(estimate.first_token, Some(self.total))
    }

    /// The next one that counts, as far as the request has come.
    pub(in crate::shard) fn next(&self, clock: &Clock) -> Instant {
        self.counting(clock).into_iter().flatten().min().unwrap_or(self.total)
    }

    /// What is to be said of a request that has not come far enough until `now`.
    pub(in crate::shard) fn overdue(&self, clock: &Clock, now: Instant) -> Option<ApiError> {
        let [queue, first_token, total] = self.counting(clock).map(|at| at.is_some_and(|at| at <= now));
        let late = |message| ApiError::new(408, Code::InferenceFailed, message);
        match () {
            () if total => Some(late("the request took longer than its timeout")),
            () if queue => Some(ApiError::overloaded("no place came free within `queue_timeout_ms`", RETRY_QUEUE)),
            () if first_token => Some(late("the first token took longer than `first_token_timeout_ms`")),
            () => None,
        }
    }

    /// Those of queue, first token and whole that count still.
    fn counting(&self, clock: &Clock) -> [Option<Instant>; 3] {
        let queue = self.queue.filter(|_| clock.admitted.is_none() && clock.first_token.is_none());
        [queue, self.first_token.filter(|_| clock.first_token.is_none()), Some(self.total)]
    }
}

/// When a place may have come free.
const RETRY_QUEUE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_deadline_counts_until_its_part_has_happened() {
        let arrival = Instant::now();
        let at = |ms| arrival + Duration::from_millis(ms);
        let deadlines = Deadlines { queue: Some(at(10)), first_token: Some(at(20)), total: at(30) };
        let mut clock = Clock::new(arrival);
        assert_eq!(deadlines.next(&clock), at(10));
        assert_eq!(deadlines.overdue(&clock, at(9)), None);
        assert_eq!(deadlines.overdue(&clock, at(10)).map(|error| error.status), Some(429));
        clock.admitted = Some(at(5));
        assert_eq!((deadlines.next(&clock), deadlines.overdue(&clock, at(19))), (at(20), None));
        assert_eq!(deadlines.overdue(&clock, at(20)).map(|error| error.status), Some(408));
        clock.first_token = Some(at(6));
        assert_eq!((deadlines.next(&clock), deadlines.overdue(&clock, at(29))), (at(30), None));
        assert!(deadlines.overdue(&clock, at(30)).is_some());
    }

    #[test]
    fn a_wish_can_only_shorten_what_the_server_allows() {
        let (arrival, ms) = (Instant::now(), Duration::from_millis);
        let limits = TimeLimits { queue: Some(ms(10)), first_token: None, total: ms(100) };
        let deadlines = |wishes| Deadlines::new(wishes, &limits, arrival);
        let of = |deadlines: Deadlines| {
            let since = |at: Instant| u64::try_from(at.duration_since(arrival).as_millis()).unwrap();
            (deadlines.queue.map(since), deadlines.first_token.map(since), since(deadlines.total))
        };
        assert_eq!(of(deadlines(Wishes::default())), (Some(10), None, 100));
        let short = Wishes { queue: Some(1), first_token: Some(2), total: Some(3) };
        assert_eq!(of(deadlines(short)), (Some(1), Some(2), 3));
        let long = Wishes { queue: Some(11), first_token: Some(500), total: Some(u64::MAX) };
        assert_eq!(of(deadlines(long)), (Some(10), Some(500), 100));
    }

    #[test]
    fn what_is_known_to_come_too_late_is_known_at_once() {
        let arrival = Instant::now();
        let ms = Duration::from_millis;
        let deadlines =
            Deadlines { queue: Some(arrival + ms(10)), first_token: Some(arrival + ms(20)), total: arrival + ms(30) };
        let misses = |queue, first_token| {
            deadlines.will_miss(arrival, &Estimate { queue: ms(queue), first_token: ms(first_token) })
        };
        assert_eq!([misses(10, 20), misses(11, 20), misses(10, 21)], [false, true, true]);
        let patient = Deadlines { queue: None, first_token: None, ..deadlines };
        assert!(!patient.will_miss(arrival, &Estimate { queue: ms(50), first_token: ms(30) }));
        assert!(patient.will_miss(arrival, &Estimate { queue: ms(0), first_token: ms(31) }));
    }
}
