//! How many requests of each kind a client may make in a minute. One table for all shards: a place holds the time at which
//! a client's bucket is full again, so that a request costs one compare and swap.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use net::api::Route;
use net::error::ApiError;
use net::http::Request;

use crate::schedule::ClientId;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateClass {
    /// What computes.
    Inference,
    /// What changes what is served.
    Models,
    /// Probes, metrics, the page.
    Health,
    /// What else is asked about the server.
    Stats,
}

/// Requests a minute, by class; `None` for any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits([Option<u32>; RateClass::ALL.len()]);

/// The buckets of all clients. Those whose hashes meet share one.
pub(super) struct Rates {
    limits: RateLimits,
    full_at_us: Box<[AtomicU64]>,
    hasher: RandomState,
}

/// What a client has left after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Left {
    limit: u32,
    remaining: u64,
    full_in: Duration,
    /// The request is one too many.
    retry_after: Option<Duration>,
}

impl RateClass {
    /// In the order of their places.
    pub const ALL: [Self; 4] = [Self::Inference, Self::Models, Self::Health, Self::Stats];

    /// As it is configured.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Inference => "inference",
            Self::Models => "models",
            Self::Health => "health",
            Self::Stats => "stats",
        }
    }

    fn of(route: &Route<'_>) -> Option<Self> {
        match route {
            Route::ChatCompletions
            | Route::Responses
            | Route::Completions
            | Route::Embeddings
            | Route::Inference
            | Route::InferenceStream
            | Route::Tokenize
            | Route::Detokenize => Some(Self::Inference),
            Route::LoadModel | Route::SwapModel | Route::DeleteModel(_) => Some(Self::Models),
            Route::Health | Route::HealthLive | Route::HealthReady | Route::Metrics | Route::OpenApi | Route::Page => {
                Some(Self::Health)
            }
            Route::Models
            | Route::Model(_)
            | Route::ModelStatus(_)
            | Route::Receipt(_)
            | Route::Devices
            | Route::Stats => Some(Self::Stats),
            Route::Options(_) => None,
        }
    }
}

impl RateLimits {
    /// With so many requests a minute of one class.
    pub fn set(&mut self, class: RateClass, per_minute: u32) {
        self.0[class as usize] = Some(per_minute);
    }

    fn are_off(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }
}

impl Rates {
    /// `None` where nothing is limited.
    pub(super) fn new(limits: RateLimits) -> Option<Self> {
        let places = || (0..CLIENTS_MAX * RateClass::ALL.len()).map(|_| AtomicU64::new(0)).collect();
        (!limits.are_off()).then(|| Self { limits, full_at_us: places(), hasher: RandomState::new() })
    }

    /// Takes `route` off what `client` has, `now` after the start, and has every answer to `request` say what is left.
    ///
    /// # Errors
    /// 429 where nothing was left.
    pub(super) fn check(
        &self,
        client: ClientId,
        route: &Route<'_>,
        request: &mut Request,
        now: Duration,
    ) -> Result<(), ApiError> {
        let Some((class, limit)) = RateClass::of(route).and_then(|class| Some((class, self.limits.0[class as usize]?)))
        else {
            return Ok(());
        };
        let left = self.take(client, class, limit, now);
        request.add_answer_field("X-RateLimit-Limit", &left.limit.to_string());
        request.add_answer_field("X-RateLimit-Remaining", &left.remaining.to_string());
        request.add_answer_field("X-RateLimit-Reset", &left.full_in.as_millis().div_ceil(1000).to_string());
        let Some(retry_after) = left.retry_after else { return Ok(()) };
        let message = format!("more than {limit} requests a minute of class `{}`", class.name());
        Err(ApiError::overloaded(message, retry_after))
    }

    /// A bucket of `limit` requests that fills up in a minute.
    fn take(&self, client: ClientId, class: RateClass, limit: u32, now: Duration) -> Left {
        let now_us = u64::try_from(now.as_micros()).unwrap_or(u64::MAX / 2);
        let each_us = MINUTE_US / u64::from(limit);
        let hash = usize::try_from(self.hasher.hash_one(client.0) % CLIENTS_MAX as u64).unwrap_or(0);
        let place = &self.full_at_us[hash * RateClass::ALL.len() + class as usize];
        let spend = |full_at: u64| {
            let full_at = full_at.max(now_us) + each_us;
            (full_at - now_us <= MINUTE_US).then_some(full_at)
        };
        let (full_at, retry_after) = match place.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend) {
            Ok(before) => (before.max(now_us) + each_us, None),
            Err(full_at) => (full_at, Some(Duration::from_micros(full_at + each_us - now_us - MINUTE_US))),
        };
        let full_in_us = full_at - now_us;
        Left {
            limit,
            remaining: MINUTE_US.saturating_sub(full_in_us) / each_us,
            full_in: Duration::from_micros(full_in_us),
            retry_after,
        }
    }
}

/// Requests a minute of one class.
pub const RATE_MAX: u32 = 1_000_000;
const MINUTE_US: u64 = 60_000_000;
/// Clients that have buckets of their own, if their hashes part evenly.
const CLIENTS_MAX: usize = 1 << 14;

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: ClientId = ClientId(7);

    fn rates(per_minute: u32) -> Rates {
        let mut limits = RateLimits::default();
        limits.set(RateClass::Inference, per_minute);
        Rates::new(limits).unwrap()
    }

    #[test]
    fn a_bucket_empties_and_fills_up_in_a_minute() {
        let rates = rates(3);
        let take = |seconds: u64| rates.take(CLIENT, RateClass::Inference, 3, Duration::from_secs(seconds));
        let now = 1000;
        assert_eq!([take(now), take(now), take(now)].map(|left| left.remaining), [2, 1, 0]);
        let refused = take(now);
        assert_eq!((refused.remaining, refused.retry_after), (0, Some(Duration::from_secs(20))));
        assert_eq!(take(now + 19).retry_after, Some(Duration::from_secs(1)), "what is refused costs nothing");
        assert_eq!(take(now + 20).retry_after, None);
        assert!(take(now + 20).retry_after.is_some());
        assert_eq!(take(now + 81).remaining, 2, "it holds no more than its limit");
    }

    #[test]
    fn the_largest_limit_is_no_division_by_zero_and_classes_are_apart() {
        let most = rates(RATE_MAX);
        assert!(
            (0..1000).all(|_| most.take(CLIENT, RateClass::Inference, RATE_MAX, Duration::ZERO).retry_after.is_none())
        );
        let rates = rates(1);
        assert_eq!(rates.take(CLIENT, RateClass::Inference, 1, Duration::ZERO).retry_after, None);
        assert!(rates.take(CLIENT, RateClass::Inference, 1, Duration::ZERO).retry_after.is_some());
        assert_eq!(rates.take(CLIENT, RateClass::Stats, 1, Duration::ZERO).retry_after, None);
        assert!(Rates::new(RateLimits::default()).is_none());
    }

    #[test]
    fn threads_together_get_no_more_than_the_limit() {
        let rates = rates(1000);
        let taken = || {
            (0..600).filter(|_| rates.take(CLIENT, RateClass::Inference, 1000, Duration::ZERO).retry_after.is_none())
        };
        let total: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| taken().count())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(total, 1000);
    }
}
