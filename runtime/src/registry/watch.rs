//! Whether a generation does worse than the one it is measured against: pure arithmetic on what both have counted.

use std::ops::Sub;
use std::sync::Arc;

use crate::metrics::GenerationMetrics;

/// Counts of one generation over all shards, up to a moment or between two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sample {
    pub succeeded: u64,
    pub failed: u64,
    pub gaps: u64,
    pub gaps_us: u64,
    /// Tokens of greedy answers that were compared with the other generation's, and how many were the same.
    pub compared: u64,
    pub agreed: u64,
}

impl Sample {
    /// What `metrics` say now.
    #[must_use]
    pub(super) fn now(metrics: &[Arc<GenerationMetrics>]) -> Self {
        let sum = |field: fn(&GenerationMetrics) -> u64| metrics.iter().map(|shard| field(shard)).sum();
        Self {
            succeeded: sum(|m| m.succeeded.get()),
            failed: sum(|m| m.failed.get()),
            gaps: sum(|m| m.gaps.get()),
            gaps_us: sum(|m| m.gaps_us.get()),
            compared: sum(|m| m.compared.get()),
            agreed: sum(|m| m.agreed.get()),
        }
    }

    /// Requests that ended.
    #[must_use]
    pub(super) fn requests(&self) -> u64 {
        self.succeeded + self.failed
    }

    /// Mean gap between the tokens of a sequence.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    pub(super) fn mean_gap_ms(&self) -> Option<f64> {
        (self.gaps > 0).then(|| self.gaps_us as f64 / self.gaps as f64 / 1e3)
    }

    /// Part of the compared tokens that were the same.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    pub(super) fn agreement(&self) -> Option<f64> {
        (self.compared > 0).then(|| self.agreed as f64 / self.compared as f64)
    }

    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    fn failed_ratio(&self) -> f64 {
        if self.requests() == 0 { 0.0 } else { self.failed as f64 / self.requests() as f64 }
    }
}

impl Sub for Sample {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            succeeded: self.succeeded - earlier.succeeded,
            failed: self.failed - earlier.failed,
            gaps: self.gaps - earlier.gaps,
            gaps_us: self.gaps_us - earlier.gaps_us,
            compared: self.compared - earlier.compared,
            agreed: self.agreed - earlier.agreed,
        }
    }
}

/// What keeps `new` from taking the place of `old`, if anything does. A step of the new one reads `size_ratio` times
/// the bytes; only what is slower than that explains counts. `agreement_min` bounds the part of equal greedy tokens.
#[must_use]
pub(super) fn judge(new: &Sample, old: &Sample, size_ratio: f64, agreement_min: Option<f64>) -> Option<String> {
    let (failed, before) = (new.failed_ratio(), old.failed_ratio());
    if failed > before + FAILED_RATIO_SLACK {
        return Some(format!("{} of {} requests failed, {:.1} % before", new.failed, new.requests(), before * 100.0));
    }
    if let (Some(agreement), Some(min)) = (new.agreement(), agreement_min)
        && agreement < min
    {
        return Some(format!("{agreement:.4} of {} greedy tokens are the old ones, {min} is wanted", new.compared));
    }
    if new.gaps < GAPS_MIN || old.gaps < GAPS_MIN {
        return None;
    }
    let (gap, before) = (new.mean_gap_ms()?, old.mean_gap_ms()?);
    let allowed = before * size_ratio.max(1.0) * GAP_RATIO_MAX + GAP_SLACK_MS;
    (gap > allowed).then(|| format!("{gap:.1} ms between tokens, {before:.1} before, {allowed:.1} allowed"))
}

/// Requests that may fail beyond the old generation's rate.
const FAILED_RATIO_SLACK: f64 = 0.01;
/// Fewer gaps say nothing.
const GAPS_MIN: u64 = 50;
/// How much longer gaps may become beyond what the model's size explains: both generations may have run at once.
const GAP_RATIO_MAX: f64 = 2.0;
/// What a busy machine may add to the few gaps of a small model.
const GAP_SLACK_MS: f64 = 10.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(succeeded: u64, failed: u64, gap_ms: u64) -> Sample {
        Sample { succeeded, failed, gaps: 1000, gaps_us: 1_000_000 * gap_ms, compared: 0, agreed: 0 }
    }

    #[test]
    fn as_good_as_before_passes() {
        let old = sample(100, 0, 10);
        assert_eq!(judge(&sample(50, 0, 10), &old, 1.0, Some(0.99)), None);
        assert_eq!(judge(&Sample::default(), &old, 1.0, None), None);
        assert_eq!(judge(&sample(50, 0, 29), &old, 1.0, None), None);
        assert_eq!(judge(&sample(50, 50, 10), &sample(50, 50, 10), 1.0, None), None);
        let few = Sample { gaps: 10, gaps_us: 10_000_000, ..Sample::default() };
        assert_eq!(judge(&few, &old, 1.0, None), None, "few gaps say nothing");
    }

    #[test]
    fn failures_slowness_and_other_answers_are_told() {
        let old = sample(100, 0, 10);
        let reason = |new| judge(&new, &old, 1.0, Some(0.9)).unwrap_or_default();
        assert!(reason(sample(9, 1, 10)).contains("1 of 10 requests failed"));
        assert!(reason(sample(50, 0, 31)).contains("31.0 ms between tokens"));
        let other = Sample { compared: 100, agreed: 80, ..sample(50, 0, 10) };
        assert!(reason(other).contains("0.8000 of 100 greedy tokens"));
    }

    #[test]
    fn a_bigger_model_may_take_as_much_longer() {
        let old = sample(100, 0, 10);
        assert!(judge(&sample(50, 0, 60), &old, 1.0, None).is_some());
        assert_eq!(judge(&sample(50, 0, 60), &old, 3.0, None), None);
        assert!(judge(&sample(50, 0, 71), &old, 3.0, None).is_some());
        assert!(judge(&sample(50, 0, 31), &old, 0.5, None).is_some(), "a smaller one need not be faster");
    }
}
