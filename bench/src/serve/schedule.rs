//! Seeded random numbers, and the arrival times of an open loop.
use std::time::Duration;

/// SplitMix64 (Steele, Lea, Flood 2014): small, seedable by any number, good enough to draw words and gaps.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// Streams of different `index` under one seed are independent.
    pub(crate) fn new(seed: u64, index: u64) -> Self {
        let mut mixed = Self(index);
        Self(seed ^ mixed.next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in 0..1, never 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Poisson arrivals: times since the start, ascending, exponential gaps of mean 1 / `per_second`.
pub(crate) fn poisson(seed: u64, per_second: f64, count: u32) -> Vec<Duration> {
    let mut random = Random::new(seed, u64::MAX);
    let mut at_s = 0.0;
    let arrival = |_| {
        at_s += -(1.0 - random.unit()).ln() / per_second;
        Duration::from_secs_f64(at_s.min(SECONDS_MAX))
    };
    (0..count).map(arrival).collect()
}

/// A year: beyond any run, inside what a Duration holds.
const SECONDS_MAX: f64 = 3.2e7;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_have_the_rate_and_the_spread_of_a_poisson_process() {
        let times = poisson(7, 50.0, 20_000);
        let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean * 50.0 - 1.0).abs() < 0.03, "{mean}");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.05);
    }

    #[test]
    fn seed_decides() {
        assert_eq!(poisson(1, 3.0, 100), poisson(1, 3.0, 100));
        assert_ne!(poisson(1, 3.0, 100), poisson(2, 3.0, 100));
    }
}
