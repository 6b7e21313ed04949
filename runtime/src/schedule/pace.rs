//! How much of a step prompts may take: pure arithmetic on the measured cost of earlier steps.
//!
//! Running streams wait for every row of a step, and prompts for every decode row. A lone prompt makes steps
//! [`LONGER`] times as long (on a GPU [`LONGER_ON_GPUS`]), also where decoding alone misses the inter-token target. The last of many prompts would do so
//! when all others decode, so that streams will see steps of that length in any case: all steps with prompts may take as
//! much. Few long steps do more than many short ones, as rows cost less where they are many. Within the target, who waits
//! for a first token counts as much as who waits for a next one: prompts get as much time as decode rows take, times the
//! prompts for each sequence that decodes.

use std::time::Duration;

use super::cost::{CostModel, PromptBudget, StepRows};

/// Who wants something of the next steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Rows of the sequences that decode, without their drafts.
    pub decodes: StepRows,
    /// The same once all decode that have a slot or get a free one, but for one of those who have no token yet.
    pub crowd: StepRows,
    /// Sequences that have no token yet.
    pub prompts: usize,
}

/// What steps cost on one device, and how long they should be.
#[derive(Debug)]
pub struct Pace {
    itl_target_s: f64,
    longer: f64,
    model: CostModel,
    /// Most prompt rows that a step has had.
    prompt_rows_seen: usize,
    /// Steps with rows of both kinds since the last one without prompts.
    mixed: u32,
    /// Moving averages over steps without prompt rows: duration and rows.
    decode_s: f64,
    decode_rows: f64,
}

impl Pace {
    /// One that knows no cost yet.
    #[must_use]
    pub fn new(itl_target: Duration) -> Self {
        Self {
            itl_target_s: itl_target.as_secs_f64(),
            longer: LONGER,
            model: CostModel::default(),
            prompt_rows_seen: 0,
            mixed: 0,
            decode_s: 0.0,
            decode_rows: 0.0,
        }
    }

    /// The same, whose lone prompts make steps `longer` times as long.
    #[must_use]
    pub fn with_longer(self, longer: f64) -> Self {
        Self { longer, ..self }
    }

    /// Learns from a step.
    #[expect(clippy::cast_precision_loss, reason = "rows are few")]
    pub fn observe(&mut self, rows: &StepRows, elapsed: Duration) {
        self.foresee(rows, elapsed);
        if rows.prompt_rows == 0 {
            average(&mut self.decode_s, elapsed.as_secs_f64());
            average(&mut self.decode_rows, rows.decode_rows as f64);
        }
    }

    /// Learns what a step of such rows takes from one that was computed for nobody.
    pub fn foresee(&mut self, rows: &StepRows, elapsed: Duration) {
        self.model.observe(rows, elapsed);
        self.prompt_rows_seen = self.prompt_rows_seen.max(rows.prompt_rows);
        match (rows.decode_rows, rows.prompt_rows) {
            (_, 0) => self.mixed = 0,
            (0, _) => {}
            _ => self.mixed += 1,
        }
    }

    /// What prompts may take of a step of at most `rows_max` rows, now and then nothing, where sequences that decode wait
    /// `beside_s` for other steps between two of theirs already.
    #[must_use]
    pub fn prompt_budget(&self, demand: &Demand, beside_s: f64, rows_max: usize) -> PromptBudget {
        let Demand { decodes, crowd, prompts } = demand;
        if decodes.decode_rows > 0 && self.mixed >= MIXED_MAX {
            return PromptBudget::of_rows(0);
        }
        let step_s = self.model.estimate_s(decodes);
        let left_s = self.itl_target_s - step_s - beside_s;
        let seconds = if decodes.decode_rows > 0 {
            let crowd_s = self.model.estimate_s(crowd) + beside_s;
            prompt_seconds((step_s + beside_s, crowd_s), left_s, *prompts, decodes.decode_rows, self.longer)
        } else if beside_s > 0.0 {
            left_s.max(beside_s)
        } else {
            self.itl_target_s * IDLE_TARGETS - step_s
        };
        // The least rows keep to the target too, or where that is missed already make steps no longer than this.
        let seconds_most = if decodes.decode_rows > 0 {
            seconds.max(left_s).max((step_s + beside_s) * (LONGEST - 1.0))
        } else {
            f64::INFINITY
        };
        // How a few rows went says little about many.
        let rows_max = rows_max.min((self.prompt_rows_seen * ROWS_GROWTH).max(FIRST_ROWS));
        let rows_min = CHUNK_ROWS_MIN.min(rows_max);
        match self.prompt_costs() {
            Some((row_s, position_s)) => PromptBudget { seconds, row_s, position_s, rows_min, seconds_most, rows_max },
            None => PromptBudget::of_rows(rows_max.min(FIRST_ROWS)),
        }
    }

    /// What a prompt row adds, and what each position that it looks at; `None` where too few were seen to say so.
    fn prompt_costs(&self) -> Option<(f64, f64)> {
        self.model.prompt_costs().filter(|_| self.prompt_rows_seen >= LEARN_ROWS_MIN)
    }

    /// Seconds that a step of such rows should take; 0 where there are none, and before any step was seen.
    #[must_use]
    pub fn estimate_s(&self, rows: &StepRows) -> f64 {
        if rows.decode_rows + rows.prompt_rows == 0 { 0.0 } else { self.model.estimate_s(rows) }
    }

    /// Moving averages over steps without prompt rows: seconds and rows.
    #[must_use]
    pub fn decode_costs(&self) -> (f64, f64) {
        (self.decode_s, self.decode_rows)
    }

    /// What a prompt row of some context adds to a step, in seconds; 0 where it is not known.
    #[must_use]
    pub fn prefill_row_s(&self) -> f64 {
        self.prompt_costs().map_or(0.0, |(row_s, position_s)| row_s + position_s * SOME_CONTEXT)
    }
}

/// What `prompts` prompts get of a step, in seconds, where `decoding` sequences wait `waited_s` between two tokens without
/// them, all but the last prompt will wait `crowd_s`, `left_s` is left of the target, and a lone prompt makes steps `longer`
/// times as long.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "sequences are few")]
pub fn prompt_seconds(
    (waited_s, crowd_s): (f64, f64),
    left_s: f64,
    prompts: usize,
    decoding: usize,
    longer: f64,
) -> f64 {
    let each_s = waited_s * (prompts as f64 / decoding as f64);
    each_s.min(left_s).max(crowd_s.max(waited_s) * longer - waited_s)
}

fn average(value: &mut f64, sample: f64) {
    *value = if *value == 0.0 { sample } else { *value * 0.8 + sample * 0.2 };
}

/// Before a step with so many prompt rows was seen, their cost is not known.
const LEARN_ROWS_MIN: usize = 8;
/// Steps take at most so many times the prompt rows that one has had before.
const ROWS_GROWTH: usize = 4;
/// How many times as long a lone prompt makes steps: the longest gaps beside it stay under twice those without it.
pub const LONGER: f64 = 1.4;
/// The same on a GPU, where a step with prompts has a price of its own, its launches, so that fewer parts are cheaper.
pub const LONGER_ON_GPUS: f64 = 1.95;
/// After so many steps with prompts and rows that decode one has the latter alone, so that what these take stays known.
const MIXED_MAX: u32 = 32;
/// While nobody waits for a next token a step may take so many targets: new arrivals and cancellations wait for it.
const IDLE_TARGETS: f64 = 4.0;
/// Chunk of the first prompt, before any cost is known.
const FIRST_ROWS: usize = 64;
/// Smallest chunk, as far as it makes steps no more than [`LONGEST`] times as long: below it a prompt would never end.
const CHUNK_ROWS_MIN: usize = 16;
/// 16 streams of a 2B model on two cores without AMX, where 16 rows of a prompt of 2100 tokens made steps of 49 ms 108 long: the
/// longest gaps (p99) were 2.3 times as long as without the prompt, and so are 1.6 to 1.8 times.
const LONGEST: f64 = 1.7;
/// Positions that a prompt row looks at, about, where one number must do.
const SOME_CONTEXT: f64 = 256.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: f64) -> Duration {
        Duration::from_secs_f64(ms / 1e3)
    }

    fn decodes(count: usize) -> StepRows {
        let mut rows = StepRows::default();
        (0..count).for_each(|_| rows.add_decode(0, 1));
        rows
    }

    fn prompt(count: usize) -> StepRows {
        let mut rows = StepRows::default();
        rows.add_prompt(0, count);
        rows
    }

    /// 2 ms, 1 ms a decode row, 0.5 ms a prompt row, and nothing for positions.
    fn learned(itl_target: Duration) -> Pace {
        let mut pace = Pace::new(itl_target);
        for i in 0..300 {
            let (decode_rows, prompt_rows) = (i % 7, if i % 2 == 0 { 1 + i * 13 % 90 } else { 0 });
            let mut rows = decodes(decode_rows);
            rows.add_prompt(0, prompt_rows);
            pace.observe(&rows, ms(2.0 + decode_rows as f64 + 0.5 * prompt_rows as f64));
        }
        pace
    }

    fn rows_of(budget: PromptBudget) -> usize {
        budget.rows(0, 10_000)
    }

    fn near(got: usize, expected: usize) {
        assert!(got.abs_diff(expected) * 10 <= expected, "{got}, not about {expected}");
    }

    /// So many that decode, so many prompts, and a place for each of them.
    fn demand(decoding: usize, prompts: usize) -> Demand {
        Demand { decodes: decodes(decoding), crowd: decodes(decoding + prompts.saturating_sub(1)), prompts }
    }

    /// The same where those that decode have all places.
    fn full(decoding: usize, prompts: usize) -> Demand {
        Demand { crowd: decodes(decoding), ..demand(decoding, prompts) }
    }

    #[test]
    fn the_first_chunks_are_small_and_an_idle_shard_takes_long_steps() {
        let mut pace = Pace::new(ms(50.0));
        assert_eq!(rows_of(pace.prompt_budget(&demand(0, 1), 0.0, 512)), 64);
        pace.observe(&prompt(4), ms(1.0));
        assert_eq!(rows_of(pace.prompt_budget(&demand(0, 1), 0.0, 512)), 64, "four rows say nothing");
        pace.observe(&prompt(32), ms(1.0));
        assert_eq!(rows_of(pace.prompt_budget(&demand(0, 1), 0.0, 512)), 128, "cheap rows grow step by step");
        near(rows_of(learned(ms(25.0)).prompt_budget(&demand(0, 1), 0.0, 512)), 196);
    }

    #[test]
    fn a_chunk_fills_what_decoding_leaves_of_the_target() {
        let pace = learned(ms(50.0));
        near(rows_of(pace.prompt_budget(&full(4, 40), 0.0, 512)), 88);
        near(rows_of(pace.prompt_budget(&full(10, 40), 0.0, 512)), 76);
        near(rows_of(pace.prompt_budget(&full(10, 20), 0.0, 512)), 48);
        near(rows_of(pace.prompt_budget(&full(10, 10), 20.0e-3, 512)), 38);
    }

    #[test]
    fn a_lone_prompt_takes_less_than_decoding_and_many_what_the_last_of_them_will() {
        let pace = learned(ms(45.0));
        near(rows_of(pace.prompt_budget(&demand(20, 1), 0.0, 512)), 17);
        near(rows_of(pace.prompt_budget(&demand(10, 1), 10.0e-3, 512)), 17);
        let step_s = |decoding, prompts| {
            let budget = pace.prompt_budget(&demand(decoding, prompts), 0.0, 512);
            pace.estimate_s(&decodes(decoding)) + budget.seconds
        };
        let last_s = step_s(31, 1);
        assert!((last_s - LONGER * 33.0e-3).abs() < 2.0e-3, "{last_s} s");
        for decoding in [1, 8, 16, 30] {
            assert!((step_s(decoding, 32 - decoding) - last_s).abs() < 1.0e-6, "beside {decoding}");
        }
    }

    #[test]
    fn prompts_go_on_where_decoding_alone_misses_the_target() {
        let pace = learned(ms(50.0));
        near(rows_of(pace.prompt_budget(&demand(40, 1), 0.0, 512)), 33);
        near(rows_of(pace.prompt_budget(&demand(98, 1), 0.0, 512)), 80);
        assert_eq!(rows_of(pace.prompt_budget(&demand(98, 1), 0.0, 60)), 60);
        near(rows_of(pace.prompt_budget(&full(40, 1000), 0.0, 512)), 33);
    }

    #[test]
    fn a_prompt_is_short_also_where_only_others_would_feel_it() {
        let pace = learned(ms(50.0));
        near(rows_of(pace.prompt_budget(&demand(0, 1), 10.0e-3, 512)), 76);
        near(rows_of(pace.prompt_budget(&demand(0, 1), 100.0e-3, 512)), 200);
    }

    #[test]
    fn now_and_then_rows_that_decode_have_a_step_to_themselves() {
        let mut pace = learned(ms(50.0));
        let mut mixed = decodes(10);
        mixed.add_prompt(0, 20);
        pace.observe(&decodes(10), ms(12.0));
        for _ in 0..MIXED_MAX {
            assert!(rows_of(pace.prompt_budget(&demand(10, 1), 0.0, 512)) >= CHUNK_ROWS_MIN);
            pace.observe(&mixed, ms(22.0));
        }
        assert!(pace.prompt_budget(&demand(10, 1), 0.0, 512).is_spent());
        assert!(rows_of(pace.prompt_budget(&demand(0, 1), 0.0, 512)) > 0, "nobody decodes");
        pace.observe(&decodes(10), ms(12.0));
        assert!(rows_of(pace.prompt_budget(&demand(10, 1), 0.0, 512)) > 0);
    }

    #[test]
    fn a_chunk_never_vanishes_nor_makes_steps_too_long() {
        let pace = learned(ms(1.0));
        let rows = |decoding, rows_max| rows_of(pace.prompt_budget(&demand(decoding, 1), 0.0, rows_max));
        assert_eq!((rows(1, 512), rows(1, 3)), (4, 3), "3 ms make 2.1 more");
        near(rows(8, 512), 14);
        assert_eq!(rows_of(learned(ms(50.0)).prompt_budget(&full(30, 1), 0.0, 512)), 25, "32 ms make 12.8 more");
        assert_eq!(rows_of(learned(ms(12.0)).prompt_budget(&demand(1, 1), 0.0, 512)), 16, "the target leaves time");
    }
}
