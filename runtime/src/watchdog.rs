//! Tells systemd that the server lives, as long as every shard does: what a thread of its own would tell means nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::metrics::ShardMetrics;

/// Decides when systemd is told, from what the shards' threads count as they go.
pub struct Watchdog {
    period: Duration,
    told: Option<Instant>,
    pulses: Vec<Pulse>,
    silent: bool,
}

/// What there is to do after a look at the shards.
#[derive(Debug, PartialEq, Eq)]
pub enum Look {
    Nothing,
    Tell,
    /// Told once: from now on systemd hears nothing, and ends the process.
    Stuck {
        shard: usize,
        thread: &'static str,
        for_: Duration,
    },
}

impl Watchdog {
    /// `period` is the time after which systemd ends a process that it has not heard of.
    #[must_use]
    pub fn new(period: Duration, shards: &[Arc<ShardMetrics>], now: Instant) -> Self {
        let pulses = shards.iter().map(|metrics| Pulse::new(Arc::clone(metrics), now)).collect();
        Self { period, told: None, pulses, silent: false }
    }

    /// To be called much more often than once a period.
    pub fn look(&mut self, now: Instant) -> Look {
        let bound = self.period / 2;
        let mut stuck = None;
        for (shard, pulse) in self.pulses.iter_mut().enumerate() {
            let (thread, for_) = pulse.stillness(now);
            if for_ > bound {
                stuck = stuck.or(Some(Look::Stuck { shard, thread, for_ }));
            }
        }
        match stuck {
            Some(_) if self.silent => Look::Nothing,
            Some(stuck) => {
                (self.told, self.silent) = (None, true);
                stuck
            }
            None if self.told.is_some_and(|told| now.duration_since(told) < self.period / 4) => Look::Nothing,
            None => {
                (self.told, self.silent) = (Some(now), false);
                Look::Tell
            }
        }
    }
}

/// How far a shard's threads had come, and when that was last seen to change.
struct Pulse {
    metrics: Arc<ShardMetrics>,
    turns: (u64, Instant),
    steps: (u64, Instant),
}

impl Pulse {
    fn new(metrics: Arc<ShardMetrics>, now: Instant) -> Self {
        Self { metrics, turns: (0, now), steps: (0, now) }
    }

    /// The thread of the shard that has stood still for longest, and how long. A leader whose sequences wait
    /// for their guides has no steps to take, nor has one without sequences.
    fn stillness(&mut self, now: Instant) -> (&'static str, Duration) {
        let step = &self.metrics.step;
        advance(&mut self.turns, self.metrics.requests.turns.get(), false, now);
        let broke_down = step.restarts.get();
        let is_idle = step.under_way.get() == 0 && step.running.get() <= step.beside.get();
        advance(&mut self.steps, step.duration.count() + broke_down, is_idle, now);
        let (executor, leader) = (now.duration_since(self.turns.1), now.duration_since(self.steps.1));
        if executor >= leader { ("executor", executor) } else { ("leader", leader) }
    }
}

fn advance(seen: &mut (u64, Instant), count: u64, idle: bool, now: Instant) {
    if idle || count != seen.0 {
        *seen = (count, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(40);

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_shard_that_turns_is_told_of_four_times_a_period() {
        let (start, metrics) = (Instant::now(), Arc::new(ShardMetrics::default()));
        let mut dog = Watchdog::new(PERIOD, &[Arc::clone(&metrics)], start);
        let told = (0..80).filter(|second| {
            metrics.requests.turns.add(1);
            dog.look(at(start, *second)) == Look::Tell
        });
        assert_eq!(told.count(), 8);
    }

    #[test]
    fn an_executor_that_stands_still_ends_the_telling_until_it_turns_again() {
        let (start, metrics) = (Instant::now(), [Arc::new(ShardMetrics::default()), Arc::new(ShardMetrics::default())]);
        let mut dog = Watchdog::new(PERIOD, &metrics, start);
        let turn = |shard: usize| metrics[shard].requests.turns.add(1);
        (0..2).for_each(turn);
        assert_eq!(dog.look(start), Look::Tell);
        turn(0);
        assert_eq!(dog.look(at(start, 20)), Look::Tell);
        turn(0);
        let stuck = Look::Stuck { shard: 1, thread: "executor", for_: Duration::from_secs(21) };
        assert_eq!(dog.look(at(start, 21)), stuck);
        turn(0);
        assert_eq!(dog.look(at(start, 35)), Look::Nothing);
        turn(1);
        assert_eq!(dog.look(at(start, 36)), Look::Tell);
    }

    #[test]
    fn a_leader_counts_only_while_it_has_sequences() {
        let (start, metrics) = (Instant::now(), Arc::new(ShardMetrics::default()));
        let mut dog = Watchdog::new(PERIOD, &[Arc::clone(&metrics)], start);
        let mut look = |second| {
            metrics.requests.turns.add(1);
            dog.look(at(start, second))
        };
        assert_eq!(look(100), Look::Tell);
        metrics.step.running.set(3);
        assert_eq!(look(115), Look::Tell);
        metrics.step.duration.observe(0.5);
        assert_eq!(look(130), Look::Tell);
        assert_eq!(look(150), Look::Tell);
        assert_eq!(look(151), Look::Stuck { shard: 0, thread: "leader", for_: Duration::from_secs(21) });
        metrics.step.restarts.add(1);
        assert_eq!(look(152), Look::Tell);
        metrics.step.beside.set(3);
        assert_eq!(look(200), Look::Tell, "all wait for their guides");
        metrics.step.beside.set(2);
        assert_eq!(look(221), Look::Stuck { shard: 0, thread: "leader", for_: Duration::from_secs(21) });
        metrics.step.beside.set(3);
        assert_eq!(look(230), Look::Tell);
        metrics.step.under_way.set(1);
        assert_eq!(look(250), Look::Tell);
        let stuck = Look::Stuck { shard: 0, thread: "leader", for_: Duration::from_secs(21) };
        assert_eq!(look(251), stuck, "a guide came back, what is published is of before that");
    }
}
