//! What all shards have counted, kept each minute for a day and each hour for 30 days: the main thread writes, any shard reads.

use std::sync::OnceLock;

use super::{Histogram, ShardMetrics};
use crate::seqlock::Place;

/// A counter whose totals are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    Started,
    Stop,
    Length,
    Cancelled,
    Failed,
    RefusedQueue,
    RefusedMemory,
    RefusedDeadline,
    RefusedDraining,
    RefusedConnections,
    RefusedRate,
    PromptTokens,
    GeneratedTokens,
    Succeeded,
    Redirected,
    ClientErrors,
    ServerErrors,
    Drafted,
    Accepted,
    PrefixQueries,
    PrefixHits,
    Preempted,
    ShardRestarts,
    ExecutorRestarts,
}

impl Count {
    const ALL: [Self; 24] = [
        Self::Started,
        Self::Stop,
        Self::Length,
        Self::Cancelled,
        Self::Failed,
        Self::RefusedQueue,
        Self::RefusedMemory,
        Self::RefusedDeadline,
        Self::RefusedDraining,
        Self::RefusedConnections,
        Self::RefusedRate,
        Self::PromptTokens,
        Self::GeneratedTokens,
        Self::Succeeded,
        Self::Redirected,
        Self::ClientErrors,
        Self::ServerErrors,
        Self::Drafted,
        Self::Accepted,
        Self::PrefixQueries,
        Self::PrefixHits,
        Self::Preempted,
        Self::ShardRestarts,
        Self::ExecutorRestarts,
    ];

    fn of(self, shard: &ShardMetrics) -> u64 {
        let (requests, step) = (&shard.requests, &shard.step);
        let outcomes = &requests.outcomes;
        let cell = match self {
            Self::Started => &requests.started,
            Self::Stop => &outcomes.stop,
            Self::Length => &outcomes.length,
            Self::Cancelled => &outcomes.cancelled,
            Self::Failed => &outcomes.failed,
            Self::RefusedQueue => &outcomes.refused_queue,
            Self::RefusedMemory => &outcomes.refused_memory,
            Self::RefusedDeadline => &outcomes.refused_deadline,
            Self::RefusedDraining => &outcomes.refused_draining,
            Self::RefusedConnections => &outcomes.refused_connections,
            Self::RefusedRate => &outcomes.refused_rate,
            Self::PromptTokens => &requests.prompt_tokens,
            Self::GeneratedTokens => &requests.generated_tokens,
            Self::Succeeded => &requests.answers[1],
            Self::Redirected => &requests.answers[2],
            Self::ClientErrors => &requests.answers[3],
            Self::ServerErrors => &requests.answers[4],
            Self::Drafted => &step.drafted_tokens,
            Self::Accepted => &step.accepted_tokens,
            Self::PrefixQueries => &step.prefix_queries,
            Self::PrefixHits => &step.prefix_hits,
            Self::Preempted => &step.preempted,
            Self::ShardRestarts => &step.restarts,
            Self::ExecutorRestarts => &requests.restarts,
        };
        cell.get()
    }
}

/// A histogram whose totals are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timed {
    FirstToken,
    InterToken,
    Queue,
    Request,
    Step,
    StepRows,
    StepSequences,
}

impl Timed {
    const ALL: [Self; 7] = [
        Self::FirstToken,
        Self::InterToken,
        Self::Queue,
        Self::Request,
        Self::Step,
        Self::StepRows,
        Self::StepSequences,
    ];

    fn of(self, shard: &ShardMetrics) -> &Histogram {
        match self {
            Self::FirstToken => &shard.requests.first_token,
            Self::InterToken => &shard.requests.inter_token,
            Self::Queue => &shard.requests.queue,
            Self::Request => &shard.requests.end_to_end,
            Self::Step => &shard.step.duration,
            Self::StepRows => &shard.step.rows,
            Self::StepSequences => &shard.step.sequences,
        }
    }
}

/// Counts and histograms since the start, or between two moments.
#[derive(Clone, Debug, PartialEq)]
pub struct Totals {
    /// Seconds since the start; between two moments, how many lie between them.
    pub seconds: u64,
    /// Processor time of the process.
    pub cpu_us: u64,
    counts: [u64; Count::ALL.len()],
    histograms: [[u64; BUCKETS_MAX]; Timed::ALL.len()],
    sums: [f64; Timed::ALL.len()],
}

/// How values spread, as far as buckets say.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    bounds: &'static [f64],
    counts: [u64; BUCKETS_MAX],
    sum: f64,
}

impl Totals {
    /// Nothing was counted.
    const ZERO: Self = Self {
        seconds: 0,
        cpu_us: 0,
        counts: [0; Count::ALL.len()],
        histograms: [[0; BUCKETS_MAX]; Timed::ALL.len()],
        sums: [0.0; Timed::ALL.len()],
    };

    /// What `shards` have counted so far.
    pub fn take<'s>(shards: impl Iterator<Item = &'s ShardMetrics> + Clone, seconds: u64, cpu_us: u64) -> Self {
        let mut totals = Self { seconds, cpu_us, ..Self::ZERO };
        for shard in shards {
            for (total, count) in totals.counts.iter_mut().zip(Count::ALL) {
                *total += count.of(shard);
            }
            for (i, timed) in Timed::ALL.into_iter().enumerate() {
                let histogram = timed.of(shard);
                for (total, count) in totals.histograms[i].iter_mut().zip(&histogram.counts) {
                    *total += count.get();
                }
                totals.sums[i] += f64::from_bits(histogram.sum_bits.get());
            }
        }
        totals
    }

    /// What was counted between `earlier` and this.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut between = self.clone();
        between.seconds = self.seconds.saturating_sub(earlier.seconds);
        between.cpu_us = self.cpu_us.saturating_sub(earlier.cpu_us);
        let pairs = between.counts.iter_mut().zip(earlier.counts);
        let buckets = between.histograms.as_flattened_mut().iter_mut().zip(earlier.histograms.as_flattened());
        pairs.for_each(|(count, before)| *count = count.saturating_sub(before));
        buckets.for_each(|(count, before)| *count = count.saturating_sub(*before));
        between.sums.iter_mut().zip(earlier.sums).for_each(|(sum, before)| *sum = (*sum - before).max(0.0));
        between
    }

    #[must_use]
    pub fn count(&self, count: Count) -> u64 {
        self.counts[count as usize]
    }

    #[must_use]
    pub fn spread(&self, timed: Timed) -> Spread {
        let bounds = match timed {
            Timed::FirstToken | Timed::Queue | Timed::Request => super::REQUEST_SECONDS,
            Timed::InterToken | Timed::Step => super::STEP_SECONDS,
            Timed::StepRows | Timed::StepSequences => super::ROWS,
        };
        Spread { bounds, counts: self.histograms[timed as usize], sum: self.sums[timed as usize] }
    }

    fn to_words(&self) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        let values = [self.seconds, self.cpu_us].into_iter().chain(self.counts);
        let values = values.chain(self.histograms.as_flattened().iter().copied());
        let values = values.chain(self.sums.map(f64::to_bits));
        words.iter_mut().zip(values).for_each(|(word, value)| *word = value);
        words
    }

    fn from_words(words: &[u64; WORDS]) -> Self {
        let mut values = words.iter().copied();
        let mut next = || values.next().unwrap_or_default();
        let mut totals = Self { seconds: next(), cpu_us: next(), ..Self::ZERO };
        totals.counts.fill_with(&mut next);
        totals.histograms.as_flattened_mut().fill_with(&mut next);
        totals.sums.fill_with(|| f64::from_bits(next()));
        totals
    }
}

impl Spread {
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// `None` where there are no values.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    pub fn mean(&self) -> Option<f64> {
        (self.count() > 0).then(|| self.sum / self.count() as f64)
    }

    /// The value below which that share of them lies, taken as spread evenly in its bucket; beyond the last bound, that.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let wanted = self.count() as f64 * share;
        let mut before = 0.0;
        for (i, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let count = *count as f64;
            if before + count >= wanted {
                let upper = self.bounds.get(i).or(self.bounds.last())?;
                let lower = if i == 0 { 0.0 } else { self.bounds.get(i - 1)?.min(*upper) };
                return Some(lower + (upper - lower) * ((wanted - before) / count).clamp(0.0, 1.0));
            }
            before += count;
        }
        None
    }
}

/// Totals at the ends of minutes and hours.
pub struct History {
    minutes: Ring,
    hours: Ring,
}

struct Ring {
    every_s: u64,
    /// Each takes memory once its time has come: all of them are 3 MB.
    places: Box<[OnceLock<Box<Place<WORDS>>>]>,
}

impl Default for History {
    fn default() -> Self {
        let ring = |every_s, kept| Ring { every_s, places: (0..kept).map(|_| OnceLock::new()).collect() };
        Self { minutes: ring(MINUTE_S, MINUTES_MAX), hours: ring(HOUR_S, HOURS_MAX) }
    }
}

impl History {
    /// Keeps `totals` where a minute or an hour has ended since the last time. Only one thread calls this.
    pub fn keep(&self, totals: impl Fn() -> Totals, now_s: u64, last_s: u64) {
        for ring in [&self.minutes, &self.hours] {
            if now_s / ring.every_s > last_s / ring.every_s {
                let place = usize::try_from(now_s / ring.every_s).unwrap_or(0) % ring.places.len();
                ring.places[place].get_or_init(|| Box::new(Place::new())).write(totals().to_words());
            }
        }
    }

    /// The totals at the start of a range of so many seconds, or a little earlier; zero where the start is as near.
    #[must_use]
    pub fn before(&self, now_s: u64, range_s: u64) -> Totals {
        let ring = if range_s <= HOUR_S * 24 { &self.minutes } else { &self.hours };
        let Some(from_s) = now_s.checked_sub(range_s) else { return Totals::ZERO };
        ring.kept(now_s)
            .filter(|totals| totals.seconds <= from_s)
            .max_by_key(|totals| totals.seconds)
            .unwrap_or(Totals::ZERO)
    }

    /// The totals of the ends of minutes, or of hours where the range is long, within it, in order.
    #[must_use]
    pub fn within(&self, now_s: u64, range_s: u64) -> Vec<Totals> {
        let ring = if range_s <= TIMELINE_OF_MINUTES_S { &self.minutes } else { &self.hours };
        let from_s = now_s.saturating_sub(range_s);
        let mut found: Vec<Totals> = ring.kept(now_s).filter(|totals| totals.seconds > from_s).collect();
        found.sort_by_key(|totals| totals.seconds);
        found
    }
}

impl Ring {
    /// A place that was to be written over and was not, as the writer was late, is too old to be believed.
    fn kept(&self, now_s: u64) -> impl Iterator<Item = Totals> {
        let oldest_s = now_s.saturating_sub(self.every_s * (self.places.len() as u64 + 1));
        let read = self.places.iter().filter_map(|place| place.get()?.read()).map(|words| Totals::from_words(&words));
        read.filter(move |totals| totals.seconds >= oldest_s)
    }
}

const MINUTE_S: u64 = 60;
const HOUR_S: u64 = 3600;
/// A day, and one so that its start is known.
const MINUTES_MAX: usize = 24 * 60 + 1;
/// 30 days, as above.
const HOURS_MAX: usize = 30 * 24 + 1;
/// The longest range that is told minute by minute.
const TIMELINE_OF_MINUTES_S: u64 = 6 * HOUR_S;
/// Of the histogram with the most bounds, and one above them.
const BUCKETS_MAX: usize = 19;
const WORDS: usize = 2 + Count::ALL.len() + Timed::ALL.len() * (BUCKETS_MAX + 1);

#[cfg(test)]
mod tests {
    use super::*;

    fn run(history: &History, shard: &ShardMetrics, from_s: u64, to_s: u64) {
        for now_s in from_s + 1..=to_s {
            shard.requests.started.add(1);
            history.keep(|| Totals::take([shard].into_iter(), now_s, now_s), now_s, now_s - 1);
        }
    }

    #[test]
    fn a_range_counts_from_the_last_end_of_a_minute_or_hour_before_it() {
        let (history, shard) = (History::default(), ShardMetrics::default());
        let counted = |now_s: u64, range_s: u64| {
            let now = Totals::take([&shard].into_iter(), now_s, now_s);
            let between = now.since(&history.before(now_s, range_s));
            assert_eq!(between.count(Count::Started), between.seconds, "a request was counted each second");
            between.seconds
        };
        run(&history, &shard, 0, 1000);
        assert_eq!(counted(1000, HOUR_S), 1000, "all since the start");
        run(&history, &shard, 1000, 30 * HOUR_S + 59);
        let now_s = 30 * HOUR_S + 59;
        assert_eq!(counted(now_s, HOUR_S), HOUR_S + 59);
        assert_eq!(counted(now_s, 24 * HOUR_S), 24 * HOUR_S + 59);
        assert_eq!(counted(now_s, 25 * HOUR_S), 25 * HOUR_S + 59);
        assert_eq!(counted(now_s, 30 * 24 * HOUR_S), now_s);
        let timeline = history.within(now_s, 2 * HOUR_S);
        assert_eq!((timeline.len(), timeline[0].seconds), (120, 28 * HOUR_S + 60));
        assert_eq!(history.within(now_s, 12 * HOUR_S).len(), 12);
        assert!(counted(now_s, 0) < 60);
    }

    #[test]
    fn totals_read_back_and_differences_are_never_below_zero() {
        let shard = ShardMetrics::default();
        shard.requests.generated_tokens.add(7);
        shard.requests.first_token.observe(0.02);
        shard.step.duration.observe(100.0);
        let totals = Totals::take([&shard, &shard].into_iter(), 5, 6);
        assert_eq!(Totals::from_words(&totals.to_words()), totals);
        assert_eq!(totals.count(Count::GeneratedTokens), 14);
        assert_eq!(totals.since(&totals), Totals::ZERO);
        assert_eq!(Totals::ZERO.since(&totals), Totals::ZERO);
        let bounds = Timed::ALL.map(|timed| totals.spread(timed).bounds == timed.of(&shard).bounds);
        assert_eq!(bounds, [true; 7]);
        assert!(Timed::ALL.iter().all(|timed| timed.of(&shard).counts.len() <= BUCKETS_MAX));
    }

    #[test]
    fn quantiles_lie_in_their_buckets() {
        let shard = ShardMetrics::default();
        let spread = |shard: &ShardMetrics| Totals::take([shard].into_iter(), 0, 0).spread(Timed::FirstToken);
        assert_eq!((spread(&shard).mean(), spread(&shard).quantile(0.5)), (None, None));
        (0..100).for_each(|i| shard.requests.first_token.observe(if i < 90 { 0.004 } else { 0.2 }));
        let spread_now = spread(&shard);
        assert!((spread_now.mean().unwrap() - 0.0236).abs() < 1e-9);
        let within = |share: f64, low: f64, high: f64| {
            let value = spread_now.quantile(share).unwrap();
            assert!((low..=high).contains(&value), "{share}: {value}");
        };
        within(0.5, 0.0025, 0.005);
        within(0.95, 0.1, 0.25);
        within(1.0, 0.1, 0.25);
        shard.requests.first_token.observe(1e6);
        assert_eq!(spread(&shard).quantile(1.0), Some(160.0));
    }
}
