//! Latency histograms, counts, and how they are told.
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::connection::{Outcome, Settled};
use super::load::Arrivals;

/// The latency that a client was promised; without limits every finished request is good.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Slo {
    pub(crate) ttft_ms: Option<f64>,
    pub(crate) itl_ms: Option<f64>,
}

/// A finished request as its client saw it.
#[derive(Clone, Debug)]
pub(crate) struct Finished {
    /// From arrival to the first event that carried text; `None` if the answer was empty.
    pub(crate) ttft: Option<Duration>,
    /// Between neighbouring events that carried text.
    pub(crate) gaps: Vec<Duration>,
    /// From arrival to the end of the stream.
    pub(crate) end_to_end: Duration,
    /// Tokens by the server's count, else events.
    pub(crate) tokens: u64,
    pub(crate) prompt_tokens: Option<u64>,
    pub(crate) text: String,
}

/// A request that has no complete answer.
#[derive(Clone, Debug)]
pub(crate) struct Failed {
    pub(crate) failure: Failure,
    pub(crate) message: String,
    pub(crate) after: Duration,
}

pub(crate) struct Report {
    slo: Slo,
    /// Microseconds.
    ttft: Histogram<u64>,
    itl: Histogram<u64>,
    tpot: Histogram<u64>,
    end_to_end: Histogram<u64>,
    /// From arrival to a 429 or 503.
    refused: Histogram<u64>,
    finished: u64,
    good: u64,
    tokens: u64,
    prompt_tokens: u64,
    failures: BTreeMap<Failure, (u64, String)>,
    elapsed: Duration,
}

/// Why a request has no complete answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Failure {
    Status(u16),
    Connect,
    /// Closed or reset before the end of the response.
    Cut,
    /// An error event in the stream, or no event that ends it.
    Stream,
    Malformed,
    Timeout,
}

impl Failure {
    fn name(self) -> String {
        match self {
            Self::Status(status) => status.to_string(),
            Self::Connect => "connect".to_owned(),
            Self::Cut => "cut".to_owned(),
            Self::Stream => "stream".to_owned(),
            Self::Malformed => "malformed".to_owned(),
            Self::Timeout => "timeout".to_owned(),
        }
    }

    /// Refused by a server that protects itself: what it is for.
    fn is_excused(self) -> bool {
        matches!(self, Self::Status(429 | 503))
    }
}

impl Report {
    pub(crate) fn new(slo: Slo) -> Self {
        let histogram = || Histogram::new_with_bounds(1, MICROSECONDS_MAX, 3).expect("bounds and digits are in range");
        Self {
            slo,
            ttft: histogram(),
            itl: histogram(),
            tpot: histogram(),
            end_to_end: histogram(),
            refused: histogram(),
            finished: 0,
            good: 0,
            tokens: 0,
            prompt_tokens: 0,
            failures: BTreeMap::new(),
            elapsed: Duration::ZERO,
        }
    }

    pub(crate) fn add(&mut self, settled: &Settled) {
        match &settled.outcome {
            Outcome::Finished(finished) => self.add_finished(finished),
            Outcome::Failed(failed) => self.add_failure(failed),
            Outcome::HungUp { .. } => {}
        }
    }

    fn add_finished(&mut self, finished: &Finished) {
        self.finished += 1;
        self.tokens += finished.tokens;
        self.prompt_tokens += finished.prompt_tokens.unwrap_or(0);
        self.end_to_end.saturating_record(microseconds(finished.end_to_end));
        finished.gaps.iter().for_each(|gap| self.itl.saturating_record(microseconds(*gap)));
        if let Some(ttft) = finished.ttft {
            self.ttft.saturating_record(microseconds(ttft));
        }
        let between: Duration = finished.gaps.iter().sum();
        // Tokens that came with the first event have no gap of their own: one fewer than all share the time between.
        if let Some(mean) = microseconds(between).checked_div(finished.tokens.saturating_sub(1)) {
            self.tpot.saturating_record(mean);
        }
        let within = |limit_ms: Option<f64>, time: Option<&Duration>| match (limit_ms, time) {
            (Some(limit_ms), Some(time)) => time.as_secs_f64() * 1e3 <= limit_ms,
            _ => true,
        };
        let is_good =
            within(self.slo.ttft_ms, finished.ttft.as_ref()) && within(self.slo.itl_ms, finished.gaps.iter().max());
        self.good += u64::from(is_good);
    }

    /// Counts a failure; the first message of each kind is kept.
    fn add_failure(&mut self, failed: &Failed) {
        self.failures.entry(failed.failure).or_insert_with(|| (0, failed.message.clone())).0 += 1;
        if failed.failure.is_excused() {
            self.refused.saturating_record(microseconds(failed.after));
        }
    }

    pub(crate) fn set_elapsed(&mut self, elapsed: Duration) {
        self.elapsed = elapsed;
    }

    pub(crate) fn failed(&self) -> u64 {
        self.failures.values().map(|(count, _)| count).sum()
    }

    pub(crate) fn has_unexcused_failures(&self) -> bool {
        self.failures.keys().any(|failure| !failure.is_excused())
    }

    fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Those that there are, in microseconds.
    pub(crate) fn latencies(&self) -> impl Iterator<Item = (&'static str, &Histogram<u64>)> {
        let all = [
            ("ttft", &self.ttft),
            ("itl", &self.itl),
            ("tpot", &self.tpot),
            ("end_to_end", &self.end_to_end),
            ("refused", &self.refused),
        ];
        all.into_iter().filter(|(name, histogram)| *name != "refused" || !histogram.is_empty())
    }

    pub(crate) fn goodput(&self) -> f64 {
        self.per_second(self.good)
    }

    pub(crate) fn requests_per_second(&self) -> f64 {
        self.per_second(self.finished)
    }

    pub(crate) fn tokens_per_second(&self) -> f64 {
        self.per_second(self.tokens)
    }

    /// Refused with 429 or 503.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.len()
    }

    /// A quantile of a latency in milliseconds; 0 where it was never measured.
    pub(crate) fn quantile_ms(&self, latency: &str, quantile: f64) -> f64 {
        let found = self.latencies().find(|(name, _)| *name == latency);
        found.map_or(0.0, |(_, histogram)| milliseconds(histogram.value_at_quantile(quantile)))
    }

    pub(crate) fn to_json(&self, endpoint: &str, url: &str, arrivals: &Arrivals, seed: u64) -> Value {
        let failures: serde_json::Map<String, Value> = self
            .failures
            .iter()
            .map(|(failure, (count, message))| (failure.name(), json!({ "count": count, "first": message })))
            .collect();
        let mut report = json!({
            "url": url,
            "endpoint": endpoint,
            "load_machine": tuning::host::cpu_model(),
            "seed": seed,
            "requests": { "finished": self.finished, "failed": self.failed(), "failures": failures },
            "elapsed_s": self.elapsed.as_secs_f64(),
            "tokens": self.tokens,
            "prompt_tokens": self.prompt_tokens,
            "tokens_per_s": self.per_second(self.tokens),
            "requests_per_s": self.per_second(self.finished),
            "goodput_per_s": self.per_second(self.good),
            "slo": { "ttft_ms": self.slo.ttft_ms, "itl_ms": self.slo.itl_ms },
        });
        match arrivals {
            Arrivals::Open { per_second } => report["rate_per_s"] = json!(per_second),
            Arrivals::Closed { streams } => report["concurrency"] = json!(streams),
            Arrivals::Listed(_) => {}
        }
        for (name, histogram) in self.latencies() {
            let mut values: serde_json::Map<String, Value> = QUANTILES
                .iter()
                .map(|(name, quantile)| {
                    ((*name).to_owned(), json!(milliseconds(histogram.value_at_quantile(*quantile))))
                })
                .collect();
            values.insert("mean".to_owned(), json!(histogram.mean() / 1e3));
            values.insert("n".to_owned(), json!(histogram.len()));
            report[format!("{name}_ms")] = Value::Object(values);
        }
        report
    }

    pub(crate) fn to_table(&self) -> String {
        let mut text = format!("{:<12}", "ms");
        for (name, _) in QUANTILES {
            let _ = write!(text, "{name:>12}");
        }
        let _ = writeln!(text, "{:>10}", "n");
        for (name, histogram) in self.latencies() {
            let _ = write!(text, "{:<12}", name.replace("end_to_end", "end to end"));
            for (_, quantile) in QUANTILES {
                let _ = write!(text, "{:>12.3}", milliseconds(histogram.value_at_quantile(quantile)));
            }
            let _ = writeln!(text, "{:>10}", histogram.len());
        }
        let (tokens, requests, good) =
            (self.per_second(self.tokens), self.per_second(self.finished), self.per_second(self.good));
        let _ = writeln!(
            text,
            "{tokens:.1} tokens/s, {requests:.2} requests/s, {} finished, {} failed in {:.2} s",
            self.finished,
            self.failed(),
            self.elapsed.as_secs_f64()
        );
        if self.slo.ttft_ms.is_some() || self.slo.itl_ms.is_some() {
            let _ = writeln!(
                text,
                "goodput {good:.2} requests/s, {} of {} finished inside the limits",
                self.good, self.finished
            );
        }
        self.failures().for_each(|failure| {
            let _ = writeln!(text, "{failure}");
        });
        text
    }

    /// A line for each kind of failure.
    pub(crate) fn failures(&self) -> impl Iterator<Item = String> {
        let line = |(failure, (count, message)): (&Failure, &(u64, String))| {
            format!("failed with {}: {count}, first: {message}", failure.name())
        };
        self.failures.iter().map(line)
    }

    /// Name and text of one file for each latency, in the percentile format of the HDR histogram tools, in milliseconds.
    pub(crate) fn to_hgrm(&self) -> Vec<(&'static str, String)> {
        self.latencies().map(|(name, histogram)| (name, hgrm(histogram))).collect()
    }
}

fn hgrm(histogram: &Histogram<u64>) -> String {
    let mut text = format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    for step in histogram.iter_quantiles(HGRM_TICKS_PER_HALF) {
        let (value, quantile) = (milliseconds(step.value_iterated_to()), step.quantile_iterated_to());
        let count = histogram.count_between(0, step.value_iterated_to());
        let _ = match quantile {
            q if q < 1.0 => writeln!(text, "{value:12.3} {q:14.12} {count:10} {:14.2}", 1.0 / (1.0 - q)),
            q => writeln!(text, "{value:12.3} {q:14.12} {count:10}"),
        };
    }
    let _ = writeln!(
        text,
        "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]",
        histogram.mean() / 1e3,
        histogram.stdev() / 1e3
    );
    let _ =
        writeln!(text, "#[Max     = {:12.3}, Total count    = {:12}]", milliseconds(histogram.max()), histogram.len());
    let _ = writeln!(text, "#[Buckets = {:12}, SubBuckets     = {:12}]", histogram.buckets(), HGRM_SUB_BUCKETS);
    text
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn milliseconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1e3
}

const QUANTILES: [(&str, f64); 5] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];
/// An hour: the longest latency that is told apart.
const MICROSECONDS_MAX: u64 = 3_600_000_000;
const HGRM_TICKS_PER_HALF: u32 = 5;
/// Of a histogram of three digits.
const HGRM_SUB_BUCKETS: u32 = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(ttft_ms: u64, gaps_ms: &[u64]) -> Finished {
        let gaps: Vec<Duration> = gaps_ms.iter().map(|ms| Duration::from_millis(*ms)).collect();
        let ttft = Duration::from_millis(ttft_ms);
        let end_to_end = ttft + gaps.iter().sum();
        Finished {
            ttft: Some(ttft),
            tokens: gaps.len() as u64 + 1,
            gaps,
            end_to_end,
            prompt_tokens: Some(3),
            text: String::new(),
        }
    }

    #[test]
    fn percentiles_goodput_and_rates_are_those_of_the_requests() {
        let mut report = Report::new(Slo { ttft_ms: Some(100.0), itl_ms: Some(20.0) });
        for ttft_ms in 1..=100 {
            report.add_finished(&finished(ttft_ms, &[10, 12]));
        }
        report.add_finished(&finished(500, &[10]));
        report.add_finished(&finished(50, &[10, 30]));
        report.set_elapsed(Duration::from_secs(2));
        let json = report.to_json("chat", "http://h", &Arrivals::Closed { streams: 3 }, 1);
        assert_eq!(json["goodput_per_s"], 50.0);
        assert_eq!(json["requests_per_s"], 51.0);
        assert_eq!(json["tokens"], 305);
        assert_eq!(json["prompt_tokens"], 306);
        assert_eq!(json["ttft_ms"]["n"], 102);
        let p50 = json["ttft_ms"]["p50"].as_f64().unwrap();
        assert!((50.0..52.0).contains(&p50), "{p50}");
        assert!((499.0..501.0).contains(&json["ttft_ms"]["max"].as_f64().unwrap()));
        assert!((10.9..11.1).contains(&json["tpot_ms"]["p50"].as_f64().unwrap()));
        assert!(report.to_table().contains("goodput 50.00"));
    }

    #[test]
    fn only_refusals_are_excused() {
        let mut report = Report::new(Slo::default());
        let mut fail = |status, message: &str| {
            let (failure, after) = (Failure::Status(status), Duration::from_millis(2));
            report.add_failure(&Failed { failure, message: message.to_owned(), after });
            report.has_unexcused_failures()
        };
        assert!(!fail(429, "busy") && !fail(503, "draining"));
        assert!(fail(500, "first") && fail(500, "second"));
        assert_eq!((report.refused(), report.quantile_ms("refused", 1.0)), (2, 2.0));
        assert_eq!(report.failed(), 4);
        let json = report.to_json("chat", "", &Arrivals::Open { per_second: 1.0 }, 1);
        assert_eq!(json["requests"]["failures"]["500"], json!({ "count": 2, "first": "first" }));
    }

    #[test]
    fn hgrm_ends_at_the_maximum_and_counts_everything() {
        let mut report = Report::new(Slo::default());
        (1..=1000).for_each(|ms| report.add_finished(&finished(ms, &[])));
        let files = report.to_hgrm();
        let text = &files.iter().find(|(name, _)| *name == "ttft").unwrap().1;
        let rows: Vec<Vec<f64>> = text
            .lines()
            .skip(2)
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().map(|cell| cell.parse().unwrap()).collect())
            .collect();
        assert!(rows.is_sorted_by(|a, b| a[0] <= b[0] && a[1] <= b[1] && a[2] <= b[2]));
        let last = rows.last().unwrap();
        assert_eq!((last[1], last[2]), (1.0, 1000.0));
        assert!((last[0] - 1000.0).abs() < 1.0);
        assert!(text.contains("#[Max"));
    }
}
