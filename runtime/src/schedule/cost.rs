//! What a step costs, learned from steps: least squares with forgetting over a fixed part, the rows of each kind and the
//! positions that they look at.

use std::time::Duration;

/// The rows of a step: sequences that decode (with their drafts), and prompts; and the positions that they look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepRows {
    pub decode_rows: usize,
    pub decode_positions: usize,
    pub prompt_rows: usize,
    pub prompt_positions: usize,
}

impl StepRows {
    /// Adds `rows` rows of a sequence that decodes, the first of them at `first`.
    pub fn add_decode(&mut self, first: usize, rows: usize) {
        self.decode_rows += rows;
        self.decode_positions += positions(first, rows);
    }

    /// Adds `rows` rows of a prompt, the first of them at `first`.
    pub fn add_prompt(&mut self, first: usize, rows: usize) {
        self.prompt_rows += rows;
        self.prompt_positions += positions(first, rows);
    }

    /// Of a step with the rows that decode alone: its fixed part, they, and the positions that they look at.
    fn decodes(&self) -> [f64; 3] {
        [1.0, count(self.decode_rows), count(self.decode_positions) / POSITIONS_UNIT]
    }

    fn prompts(&self) -> [f64; 2] {
        [count(self.prompt_rows), count(self.prompt_positions) / POSITIONS_UNIT]
    }
}

#[expect(clippy::cast_precision_loss, reason = "rows and positions are few")]
fn count(count: usize) -> f64 {
    count as f64
}

/// Positions that a run of rows looks at, each row at itself and all before it.
fn positions(first: usize, rows: usize) -> usize {
    rows * first + rows * (rows + 1) / 2
}

/// Seconds of a step as a sum of non-negative costs.
///
/// What decoding takes is learned from steps without prompts alone, what prompts take from what the others took beyond it.
/// Were both learned from all steps, what rows of one kind cost more beside the other would be laid to the few that
/// decode, and estimates of many of them would be too high: the first steps of 32 prompts at once took 0.8 s in place of
/// 0.2 (2B shape).
#[derive(Clone, Debug)]
pub struct CostModel {
    decodes: Fit<3>,
    prompts: Fit<2>,
}

impl Default for CostModel {
    fn default() -> Self {
        Self { decodes: Fit::new(DECODES_KEPT), prompts: Fit::new(PROMPTS_KEPT) }
    }
}

impl CostModel {
    /// Learns from a step.
    pub fn observe(&mut self, rows: &StepRows, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64().max(SECONDS_MIN);
        if rows.prompt_rows == 0 {
            return self.decodes.observe(rows.decodes(), seconds, seconds);
        }
        let rest = seconds - self.decodes.estimate_s(rows.decodes());
        // Where decoding was slower than it is now, prompts don't become free at once.
        let least = (self.prompts.estimate_s(rows.prompts()) * REST_OF_ESTIMATE_MIN).max(seconds * REST_OF_STEP_MIN);
        self.prompts.observe(rows.prompts(), rest.max(least), seconds);
    }

    /// Seconds that a step of such rows takes; 0 before any was seen.
    #[must_use]
    pub fn estimate_s(&self, rows: &StepRows) -> f64 {
        self.decodes.estimate_s(rows.decodes()) + self.prompts.estimate_s(rows.prompts())
    }

    /// Seconds that a prompt row adds, and what it adds for each position that it looks at; `None` before any was seen.
    #[must_use]
    pub fn prompt_costs(&self) -> Option<(f64, f64)> {
        let [row_s, unit_s] = self.prompts.costs;
        (self.prompts.products[0][0] > 0.0).then_some((row_s.max(ROW_SECONDS_MIN), unit_s / POSITIONS_UNIT))
    }
}

/// Seconds as a sum of features, each times a cost that is not negative: least squares with forgetting.
#[derive(Clone, Debug)]
struct Fit<const N: usize> {
    kept: f64,
    /// Weighted sums over what was seen: products of features, and features times seconds.
    products: [[f64; N]; N],
    sums: [f64; N],
    /// Seconds of one of each feature.
    costs: [f64; N],
}

impl<const N: usize> Fit<N> {
    /// One that keeps a share of `kept` of what it knows beside what comes next.
    fn new(kept: f64) -> Self {
        Self { kept, products: [[0.0; N]; N], sums: [0.0; N], costs: [0.0; N] }
    }

    /// Learns that such features took `seconds` of a step of `step_s`.
    fn observe(&mut self, features: [f64; N], seconds: f64, step_s: f64) {
        // Relative errors count: a long step says no more than a short one, and one that was disturbed says little.
        for (i, feature) in features.iter().enumerate() {
            let feature = feature / step_s;
            for (product, other) in self.products[i].iter_mut().zip(&features) {
                *product = *product * self.kept + feature * other / step_s;
            }
            self.sums[i] = self.sums[i] * self.kept + feature * seconds / step_s;
        }
        (0..SWEEPS).for_each(|_| self.descend());
    }

    /// Moves each cost to where the squared error is least, the others as they are.
    fn descend(&mut self) {
        for i in 0..N {
            let own = self.products[i][i];
            if own * SECONDS_MIN < f64::EPSILON {
                continue;
            }
            let explained: f64 = self.products[i].iter().zip(&self.costs).map(|(product, cost)| product * cost).sum();
            self.costs[i] = (self.costs[i] + (self.sums[i] - explained) / own).max(0.0);
        }
    }

    fn estimate_s(&self, features: [f64; N]) -> f64 {
        features.iter().zip(&self.costs).map(|(feature, cost)| feature * cost).sum()
    }
}

/// What the prompts of a step may take.
#[derive(Clone, Copy, Debug)]
pub struct PromptBudget {
    pub seconds: f64,
    pub row_s: f64,
    pub position_s: f64,
    /// Rows that are taken at least, as far as they cost no more than `seconds_most`, and a few of them whatever they cost: below
    /// it a prompt would never end.
    pub rows_min: usize,
    /// What those may take beside `seconds`: at least as much, infinite where nobody waits for the step.
    pub seconds_most: f64,
    pub rows_max: usize,
}

impl PromptBudget {
    /// A number of rows, whatever they cost.
    #[must_use]
    pub fn of_rows(rows: usize) -> Self {
        Self { seconds: 0.0, row_s: 0.0, position_s: 0.0, rows_min: rows, seconds_most: f64::INFINITY, rows_max: rows }
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.rows_max == 0 || self.seconds <= 0.0 && (self.rows_min == 0 || self.seconds_most <= 0.0)
    }

    /// How many of `pending` rows from position `first` on fit what is left.
    #[must_use]
    pub fn rows(&self, first: usize, pending: usize) -> usize {
        let least = self.fit(first, self.seconds_most).max(ROWS_LEAST).min(self.rows_min);
        self.fit(first, self.seconds).max(least).min(self.rows_max).min(pending)
    }

    /// How many rows from position `first` on fit so many seconds.
    #[expect(clippy::cast_precision_loss, reason = "rows and positions are few")]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive number, saturated")]
    fn fit(&self, first: usize, seconds: f64) -> usize {
        if seconds == f64::INFINITY {
            return usize::MAX;
        }
        // row_s * n + position_s * (first * n + n * n / 2) = seconds, solved for n without cancellation.
        let (linear, square) = (self.row_s + self.position_s * (first as f64 + 0.5), self.position_s / 2.0);
        let root = (linear * linear + 4.0 * square * seconds.max(0.0)).sqrt();
        if linear > 0.0 { (2.0 * seconds.max(0.0) / (linear + root)) as usize } else { 0 }
    }

    /// Spends what `rows` rows from `first` on cost.
    #[expect(clippy::cast_precision_loss, reason = "rows and positions are few")]
    pub fn spend(&mut self, first: usize, rows: usize) {
        let seconds = self.row_s * rows as f64 + self.position_s * positions(first, rows) as f64;
        self.seconds -= seconds;
        self.seconds_most -= seconds;
        self.rows_min = self.rows_min.saturating_sub(rows);
        self.rows_max -= rows;
    }
}

/// Rows that are taken whatever they cost.
const ROWS_LEAST: usize = 4;
/// Positions of one unit, so that all features are of about one size.
const POSITIONS_UNIT: f64 = 256.0;
/// Share of what was learned of prompts, and of decoding, that a step leaves: steps of some ten seconds at most count, and
/// fewer of those without prompts, which may be rare.
const PROMPTS_KEPT: f64 = 0.98;
const DECODES_KEPT: f64 = 0.95;
/// Prompts are taken to have taken at least so much of what they were expected to, and of their step.
const REST_OF_ESTIMATE_MIN: f64 = 0.5;
const REST_OF_STEP_MIN: f64 = 0.05;
const SWEEPS: usize = 16;
/// A step is taken to last at least so long.
const SECONDS_MIN: f64 = 1e-6;
/// A prompt row is taken to cost at least so much.
const ROW_SECONDS_MIN: f64 = 1e-7;

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with such costs, some of it by chance.
    fn true_s(rows: &StepRows, noise: f64) -> f64 {
        let ([fixed, decodes, looked], [prompts, prompt_looked]) = (rows.decodes(), rows.prompts());
        (fixed * 4e-3 + decodes * 3e-4 + looked * 2e-5 + prompts * 2e-4 + prompt_looked * 4e-5) * noise
    }

    fn draw(state: &mut u64) -> usize {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) as usize
    }

    fn some_rows(random: &mut u64) -> StepRows {
        let mut rows = StepRows::default();
        (0..draw(random) % 9).for_each(|_| rows.add_decode(draw(random) % 1500, 1));
        if draw(random).is_multiple_of(2) || rows.decode_rows == 0 {
            rows.add_prompt(draw(random) % 1500, 1 + draw(random) % 200);
        }
        rows
    }

    #[test]
    fn costs_are_found_through_noise_and_steps_that_were_disturbed() {
        let (mut model, mut random) = (CostModel::default(), 3);
        for i in 0..600 {
            let rows = some_rows(&mut random);
            let noise = if i % 50 == 0 { 8.0 } else { 0.95 + (draw(&mut random) % 100) as f64 / 1000.0 };
            model.observe(&rows, Duration::from_secs_f64(true_s(&rows, noise)));
        }
        for _ in 0..100 {
            let rows = some_rows(&mut random);
            let (got, expected) = (model.estimate_s(&rows), true_s(&rows, 1.0));
            assert!((got / expected - 1.0).abs() < 0.25, "{rows:?}: {got} of {expected}");
        }
    }

    #[test]
    fn what_has_become_dearer_is_learned_again() {
        let (mut model, mut random) = (CostModel::default(), 4);
        for slow in [1.0, 3.0] {
            for _ in 0..300 {
                let rows = some_rows(&mut random);
                model.observe(&rows, Duration::from_secs_f64(true_s(&rows, slow)));
            }
            let rows = some_rows(&mut random);
            assert!((model.estimate_s(&rows) / true_s(&rows, slow) - 1.0).abs() < 0.1);
        }
    }

    #[test]
    fn one_kind_of_step_alone_is_known_as_it_is() {
        let mut model = CostModel::default();
        assert_eq!((model.estimate_s(&StepRows::default()), model.prompt_costs()), (0.0, None));
        let mut rows = StepRows::default();
        rows.add_decode(100, 1);
        (0..20).for_each(|_| model.observe(&rows, Duration::from_millis(10)));
        assert!((model.estimate_s(&rows) - 0.01).abs() < 1e-4);
        assert_eq!(model.prompt_costs(), None);
        (0..2000).for_each(|_| model.observe(&rows, Duration::from_millis(10)));
        assert!(model.decodes.costs.iter().all(|cost| cost.is_finite()));
    }

    #[test]
    fn a_budget_holds_what_its_rows_cost_and_never_nothing() {
        let all = f64::INFINITY;
        let budget = PromptBudget {
            seconds: 0.010,
            row_s: 1e-4,
            position_s: 1e-7,
            rows_min: 16,
            seconds_most: all,
            rows_max: 512,
        };
        let at = |first| budget.rows(first, 10_000);
        assert_eq!((at(0), at(1000), at(100_000)), (95, 49, 16));
        assert_eq!((budget.rows(0, 7), PromptBudget { rows_max: 30, ..budget }.rows(0, 99)), (7, 30));
        let mut rest = budget;
        rest.spend(0, 60);
        assert_eq!((rest.rows(0, 99), rest.rows_max, rest.is_spent()), (37, 452, false));
        rest.spend(0, 60);
        assert!(rest.is_spent() && rest.rows(0, 99) == 0);
        // The least rows are fewer where they cost too much.
        let short = PromptBudget { seconds_most: 0.1, ..budget };
        let at = |first| short.rows(first, 10_000);
        assert_eq!((at(0), at(100_000), at(1_000_000)), (95, 9, 4));
        let mut rest = short;
        rest.spend(100_000, 9);
        assert!(!rest.is_spent());
        rest.spend(100_000, 4);
        assert!(rest.is_spent());
        let mut rows = PromptBudget::of_rows(20);
        assert_eq!(rows.rows(5000, 99), 20);
        rows.spend(0, 20);
        assert!(rows.is_spent());
    }
}
