//! How many prompt rows a step may take: pure arithmetic on the measured cost of earlier steps.
//!
//! Running streams wait for every row of a step. Prompts get what is left of the inter-token target after the decode
//! rows, and never less than the decode rows themselves take: a step with a chunk then lasts at most the target or
//! twice a step without, whichever is longer, and prompts go on also where decoding alone misses the target.

use std::time::Duration;

/// Cost model of one shard.
#[derive(Debug)]
pub struct Pace {
    itl_target_s: f64,
    /// Moving averages over steps without prompt rows: duration and rows.
    decode_s: f64,
    decode_rows: f64,
    /// Moving average of what a prompt row adds to a step.
    prefill_row_s: f64,
}

impl Pace {
    /// A model that knows no cost yet.
    #[must_use]
    pub fn new(itl_target: Duration) -> Self {
        Self { itl_target_s: itl_target.as_secs_f64(), decode_s: 0.0, decode_rows: 0.0, prefill_row_s: 0.0 }
    }

    /// Learns from a step of so many rows.
    #[expect(clippy::cast_precision_loss, reason = "rows are few")]
    pub fn observe(&mut self, decode_rows: usize, prefill_rows: usize, elapsed: Duration) {
        let elapsed = elapsed.as_secs_f64();
        if prefill_rows == 0 {
            average(&mut self.decode_s, elapsed);
            average(&mut self.decode_rows, decode_rows as f64);
        } else if prefill_rows >= LEARN_ROWS_MIN {
            let added = (elapsed - self.decode_estimate_s(decode_rows)).max(elapsed * ADDED_SHARE_MIN);
            average(&mut self.prefill_row_s, added / prefill_rows as f64);
        }
    }

    /// Most prompt rows beside `decode_rows` in a step of at most `rows_max`, where sequences that decode wait
    /// `beside_s` for other steps between two of theirs already.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
    pub fn prefill_rows(&self, decode_rows: usize, beside_s: f64, rows_max: usize) -> usize {
        if self.prefill_row_s == 0.0 {
            return FIRST_ROWS.min(rows_max);
        }
        let budget_s = if decode_rows == 0 && beside_s == 0.0 {
            self.itl_target_s * IDLE_TARGETS
        } else {
            let decode_s = self.decode_estimate_s(decode_rows) + beside_s;
            (self.itl_target_s - decode_s).max(decode_s)
        };
        ((budget_s / self.prefill_row_s) as usize).max(CHUNK_ROWS_MIN).min(rows_max)
    }

    /// What a step of so many decode rows takes; 0 before any was seen. A step streams the weights once however few
    /// its rows are, so it never costs less than those seen.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "rows are few")]
    pub fn decode_estimate_s(&self, rows: usize) -> f64 {
        if rows == 0 || self.decode_rows == 0.0 {
            return 0.0;
        }
        self.decode_s * (rows as f64 / self.decode_rows).max(1.0)
    }
}

impl Pace {
    /// Moving averages over steps without prompt rows: seconds and rows.
    #[must_use]
    pub fn decode_costs(&self) -> (f64, f64) {
        (self.decode_s, self.decode_rows)
    }

    /// Moving average of what a prompt row adds to a step, in seconds.
    #[must_use]
    pub fn prefill_row_s(&self) -> f64 {
        self.prefill_row_s
    }
}

fn average(value: &mut f64, sample: f64) {
    *value = if *value == 0.0 { sample } else { *value * 0.8 + sample * 0.2 };
}

/// Chunks of fewer rows say little about the cost of a row.
const LEARN_ROWS_MIN: usize = 8;
/// Share of a step that its prompt rows are charged at least, should decoding have got cheaper meanwhile.
const ADDED_SHARE_MIN: f64 = 0.1;
/// While nobody waits for a next token a step may take so many targets: new arrivals and cancellations wait for it.
const IDLE_TARGETS: f64 = 4.0;
/// Chunk of the first prompt, before any cost is known.
const FIRST_ROWS: usize = 64;
/// Smallest chunk: below it a prompt would never end.
const CHUNK_ROWS_MIN: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: f64) -> Duration {
        Duration::from_secs_f64(ms / 1e3)
    }

    #[test]
    fn the_first_chunk_is_small_and_an_idle_shard_takes_long_steps() {
        let mut pace = Pace::new(ms(50.0));
        assert_eq!(pace.prefill_rows(0, 0.0, 512), 64);
        pace.observe(0, 64, ms(64.0));
        assert_eq!(pace.prefill_rows(0, 0.0, 512), 200);
    }

    #[test]
    fn a_chunk_fills_what_decoding_leaves_of_the_target() {
        let mut pace = Pace::new(ms(50.0));
        pace.observe(0, 64, ms(64.0));
        pace.observe(4, 0, ms(10.0));
        assert_eq!(pace.prefill_rows(4, 0.0, 512), 40);
        assert_eq!(pace.prefill_rows(2, 0.0, 512), 40);
    }

    #[test]
    fn prompts_get_as_much_time_as_decoding_where_that_misses_the_target() {
        let mut pace = Pace::new(ms(50.0));
        pace.observe(0, 64, ms(64.0));
        pace.observe(16, 0, ms(100.0));
        assert_eq!(pace.prefill_rows(16, 0.0, 512), 100);
        assert_eq!(pace.prefill_rows(32, 0.0, 512), 200);
        assert_eq!(pace.prefill_rows(32, 0.0, 128), 128);
    }

    #[test]
    fn a_prompt_is_short_also_where_only_others_would_feel_it() {
        let mut pace = Pace::new(ms(50.0));
        pace.observe(0, 64, ms(64.0));
        assert_eq!(pace.prefill_rows(0, 0.010, 512), 40);
        assert_eq!(pace.prefill_rows(0, 0.100, 512), 100);
    }

    #[test]
    fn a_chunk_never_vanishes() {
        let mut pace = Pace::new(ms(1.0));
        pace.observe(0, 64, ms(6400.0));
        pace.observe(1, 0, ms(0.5));
        assert_eq!(pace.prefill_rows(1, 0.0, 512), 16);
    }
}
