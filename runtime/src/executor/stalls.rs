//! Who held an executor so long that others felt it: every turn of every task is timed, and so is what is known to take
//! long in some of them.

use std::cell::{Cell, OnceCell};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::metrics::ShardMetrics;

/// What can hold an executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A task, in what none of the others names: parsing, answers, bookkeeping of a connection.
    Task,
    /// Tokens and refusals of a turn on their way to the requests.
    Delivery,
    /// An order of the control thread.
    Order,
    Json,
    Template,
    Tokenizer,
    /// Keys of a TLS session.
    Handshake,
}

impl Holder {
    pub const ALL: [Self; 7] =
        [Self::Task, Self::Delivery, Self::Order, Self::Json, Self::Template, Self::Tokenizer, Self::Handshake];

    /// As metrics and the log call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Task => "task",
            Self::Delivery => "delivery",
            Self::Order => "order",
            Self::Json => "json",
            Self::Template => "template",
            Self::Tokenizer => "tokenizer",
            Self::Handshake => "handshake",
        }
    }
}

thread_local! {
    /// Of the shard that this thread executes.
    static METRICS: OnceCell<Arc<ShardMetrics>> = const { OnceCell::new() };
    /// When the current turn began.
    static BEGUN: Cell<Option<Instant>> = const { Cell::new(None) };
    /// Time of the current turn that was reported already.
    static REPORTED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Counts what holds this thread, for `metrics`.
pub fn count_stalls(metrics: Arc<ShardMetrics>) {
    // A thread executes one shard.
    let _ = METRICS.with(|cell| cell.set(metrics));
}

/// Runs `work`, and reports it by name if it takes too long.
pub fn held_by<T>(holder: Holder, work: impl FnOnce() -> T) -> T {
    let (started, before) = (Instant::now(), REPORTED.get());
    let result = work();
    // What was reported in it counts once.
    let elapsed = started.elapsed().saturating_sub(REPORTED.get().saturating_sub(before));
    if elapsed > STALL {
        report(holder, elapsed);
        REPORTED.set(REPORTED.get() + elapsed);
    }
    result
}

/// `task`, with each of its turns timed.
pub(super) async fn watched<T>(task: impl Future<Output = T>) -> T {
    let mut task = pin!(task);
    poll_fn(|context| {
        REPORTED.set(Duration::ZERO);
        let started = Instant::now();
        BEGUN.set(Some(started));
        let poll = task.as_mut().poll(context);
        let elapsed = started.elapsed().saturating_sub(REPORTED.get());
        if elapsed > STALL {
            report(Holder::Task, elapsed);
        }
        poll
    })
    .await
}

/// Whether the task of this turn has held the others long enough.
#[must_use]
pub fn is_long() -> bool {
    BEGUN.get().is_some_and(|begun| begun.elapsed() >= TURN)
}

/// Lets others have a turn where this one was long; monoio takes up to a millisecond for them.
pub async fn give_way() {
    if is_long() {
        super::sleep(Duration::ZERO).await;
    }
}

fn report(holder: Holder, elapsed: Duration) {
    METRICS.with(|cell| {
        let Some(metrics) = cell.get() else { return };
        let stalls = &metrics.stalls[holder as usize];
        let us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        stalls.longest_us.set(stalls.longest_us.get().max(us));
        stalls.count.add(1);
    });
}

/// What a shard should never be held for.
const STALL: Duration = Duration::from_millis(1);
/// What a task takes at a time where it has more to do.
const TURN: Duration = Duration::from_micros(500);

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;

    fn hold(time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn who_holds_the_thread_is_counted_once() {
        let metrics = Arc::new(ShardMetrics::default());
        let counts = |metrics: &ShardMetrics| metrics.stalls.each_ref().map(|stalls| stalls.count.get());
        // Nobody to count for yet.
        held_by(Holder::Json, || hold(2 * STALL));
        count_stalls(Arc::clone(&metrics));
        let mut context = Context::from_waker(Waker::noop());
        let mut task = pin!(watched(async {
            held_by(Holder::Tokenizer, || hold(3 * STALL));
            7
        }));
        assert!(task.as_mut().poll(&mut context).is_ready());
        let task_count = counts(&metrics)[Holder::Task as usize];
        assert_eq!(counts(&metrics)[Holder::Tokenizer as usize], 1);
        assert!(metrics.stalls[Holder::Tokenizer as usize].longest_us.get() >= 3_000);
        let mut task = pin!(watched(async { hold(2 * STALL) }));
        assert!(task.as_mut().poll(&mut context).is_ready());
        assert_eq!(
            counts(&metrics)[Holder::Task as usize],
            task_count + 1,
            "what was reported before counts for nobody else"
        );
        assert_eq!(counts(&metrics)[Holder::Json as usize], 0);
    }

    #[test]
    fn a_turn_is_long_from_its_own_beginning_on() {
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..2 {
            let mut task = pin!(watched(async {
                hold(TURN);
                is_long()
            }));
            assert_eq!(task.as_mut().poll(&mut context), std::task::Poll::Ready(true));
        }
        let begun = Instant::now();
        let mut task = pin!(watched(async { is_long() }));
        let is_long = task.as_mut().poll(&mut context) == std::task::Poll::Ready(true);
        assert!(!is_long || begun.elapsed() >= TURN);
    }
}
