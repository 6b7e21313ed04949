//! What the operator is told of shards that broke down or were held up: few lines, whatever happens.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::executor::Holder;
use crate::metrics::ShardMetrics;

/// What of one shard's numbers was told already.
pub struct Watch {
    metrics: Arc<ShardMetrics>,
    restarts: u64,
    rebuilds: u64,
    stalls: [u64; Holder::ALL.len()],
    stalls_told: Option<Instant>,
}

impl Watch {
    /// Nothing of `metrics` was told yet.
    #[must_use]
    pub fn new(metrics: Arc<ShardMetrics>) -> Self {
        Self { metrics, restarts: 0, rebuilds: 0, stalls: Default::default(), stalls_told: None }
    }

    /// Lines about what is new, to follow the name of the shard.
    pub fn look(&mut self, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        let step = &self.metrics.step;
        let restarts = step.restarts.get();
        if restarts > self.restarts {
            let ms = step.restart_us.get().div_ceil(1000);
            lines.push(format!("broke down and is back after {ms} ms; its streams ended with an error"));
            self.restarts = restarts;
        }
        let requests = &self.metrics.requests;
        let rebuilds = requests.rebuilds.get();
        if rebuilds > self.rebuilds {
            let ms = requests.rebuild_us.get().div_ceil(1000);
            lines.push(format!("has a new executor after {ms} ms; its connections were closed, streams with an error"));
            self.rebuilds = rebuilds;
        }
        if self.stalls_told.is_none_or(|told| now.duration_since(told) >= STALLS_TOLD_EVERY) {
            lines.extend(self.stalls(now));
        }
        lines
    }

    fn stalls(&mut self, now: Instant) -> Option<String> {
        let counts = self.metrics.stalls.each_ref().map(|stalls| stalls.count.get());
        let holders = Holder::ALL.iter().filter_map(|holder| {
            let (new, stalls) = (counts[*holder as usize] - self.stalls[*holder as usize], &self.metrics.stalls);
            let longest_ms = stalls[*holder as usize].longest_us.get() as f64 / 1e3;
            (new > 0).then(|| format!("{new} times by {} (longest since start {longest_ms:.1} ms)", holder.name()))
        });
        let holders: Vec<String> = holders.collect();
        if holders.is_empty() {
            return None;
        }
        (self.stalls, self.stalls_told) = (counts, Some(now));
        Some(format!("was held longer than 1 ms {}", holders.join(", ")))
    }
}

/// At most one line about stalls of a shard in this time.
const STALLS_TOLD_EVERY: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalls_are_told_seldom_and_restarts_at_once() {
        let metrics = Arc::new(ShardMetrics::default());
        let mut watch = Watch::new(Arc::clone(&metrics));
        let start = Instant::now();
        assert!(watch.look(start).is_empty());
        metrics.stalls[Holder::Tokenizer as usize].count.add(3);
        metrics.stalls[Holder::Tokenizer as usize].longest_us.set(4_200);
        let line = "was held longer than 1 ms 3 times by tokenizer (longest since start 4.2 ms)";
        assert_eq!(watch.look(start), [line]);
        metrics.stalls[Holder::Task as usize].count.add(1);
        metrics.observe_restart(Duration::from_micros(36_200));
        let soon = start + STALLS_TOLD_EVERY / 2;
        let restart = "broke down and is back after 37 ms; its streams ended with an error";
        assert_eq!(watch.look(soon), [restart]);
        metrics.observe_rebuild(Duration::from_micros(1_700));
        let rebuild = "has a new executor after 2 ms; its connections were closed, streams with an error";
        assert_eq!(watch.look(soon), [rebuild]);
        metrics.stalls[Holder::Tokenizer as usize].count.add(1);
        let later = start + STALLS_TOLD_EVERY;
        let line = "was held longer than 1 ms 1 times by task (longest since start 0.0 ms), 1 times by tokenizer (longest \
                    since start 4.2 ms)";
        assert_eq!(watch.look(later), [line]);
        assert!(watch.look(later + STALLS_TOLD_EVERY).is_empty());
    }
}
