//! Two rows of logits: do they choose the same token, and how far apart are the distributions?

use std::fmt;

use serde::Serialize;

/// Figures over all positions.
#[derive(Clone, Debug, Serialize)]
pub struct Scores {
    pub positions: usize,
    /// Share of positions whose best token is the reference's, or leads it by less than the tie tolerance.
    pub accuracy: f64,
    /// The same without any tolerance.
    pub top1_agreement: f64,
    /// Of our distribution from the reference's, in nats.
    pub kl_mean: f64,
    pub kl_max: f64,
    pub cosine_mean: f64,
    pub cosine_min: f64,
    /// Of the tokens that follow.
    pub perplexity: f64,
    pub perplexity_reference: f64,
    /// Relative difference of the two.
    pub perplexity_difference: f64,
}

/// One position.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Position {
    pub sample: usize,
    pub position: usize,
    pub token: u32,
    pub token_reference: u32,
    /// How much the reference's logits prefer its token to ours.
    pub lead: f64,
    pub kl: f64,
    pub cosine: f64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sample, position, token, token_reference, kl, .. } = self;
        write!(f, "text {sample} position {position} (token {token} for {token_reference}, KL {kl:.2e})")
    }
}

/// Collects positions.
#[derive(Default)]
pub(super) struct Comparison {
    positions: Vec<Position>,
    accurate: usize,
    /// Sums of log-probabilities of the tokens that follow, and their number.
    next: (f64, f64, usize),
}

impl Comparison {
    pub(super) fn add(&mut self, (sample, position): (usize, usize), ours: &[f32], theirs: &[f32], next: Option<u32>) {
        let (token, token_reference) = (best(ours), best(theirs));
        let lead = f64::from(theirs[token_reference]) - f64::from(theirs[token]);
        let (log_ours, log_theirs) = (log_sum_exp(ours), log_sum_exp(theirs));
        let kl: f64 = ours
            .iter()
            .zip(theirs)
            .map(|(&ours, &theirs)| {
                let (ours, theirs) = (f64::from(ours) - log_ours, f64::from(theirs) - log_theirs);
                libm::exp(theirs) * (theirs - ours)
            })
            .sum();
        if let Some(next) = next {
            self.next.0 += f64::from(ours[next as usize]) - log_ours;
            self.next.1 += f64::from(theirs[next as usize]) - log_theirs;
            self.next.2 += 1;
        }
        // Logits that are no numbers choose nothing.
        if kl.is_finite() && (token == token_reference || lead <= TIE_LEAD * deviation(theirs)) {
            self.accurate += 1;
        }
        let cosine = cosine(ours, theirs);
        let (token, token_reference) = (token as u32, token_reference as u32);
        self.positions.push(Position { sample, position, token, token_reference, lead, kl, cosine });
    }

    /// The figures, and the `count` positions of the greatest KL.
    pub(super) fn finish(mut self, count: usize) -> (Scores, Vec<Position>) {
        let positions = self.positions.len();
        let share = |count: usize| count as f64 / positions.max(1) as f64;
        let mean = |of: &dyn Fn(&Position) -> f64| self.positions.iter().map(of).sum::<f64>() / positions.max(1) as f64;
        let perplexity = |sum: f64| libm::exp(-sum / self.next.2.max(1) as f64);
        let (ours, theirs) = (perplexity(self.next.0), perplexity(self.next.1));
        let scores = Scores {
            positions,
            accuracy: share(self.accurate),
            top1_agreement: share(
                self.positions.iter().filter(|p| p.kl.is_finite() && p.token == p.token_reference).count(),
            ),
            kl_mean: mean(&|p| p.kl),
            kl_max: self.positions.iter().map(|p| p.kl).fold(0.0, f64::max),
            cosine_mean: mean(&|p| p.cosine),
            cosine_min: self.positions.iter().map(|p| p.cosine).fold(1.0, f64::min),
            perplexity: ours,
            perplexity_reference: theirs,
            perplexity_difference: ours / theirs - 1.0,
        };
        let badness = |p: &Position| if p.kl.is_nan() { f64::INFINITY } else { p.kl };
        self.positions.sort_by(|a, b| badness(b).total_cmp(&badness(a)));
        // Equal rows are no worst ones.
        self.positions.retain(|p| p.kl != 0.0);
        self.positions.truncate(count);
        (scores, self.positions)
    }
}

/// The lowest of equals; NaN counts as the least.
fn best(logits: &[f32]) -> usize {
    let mut best = 0;
    for (index, &logit) in logits.iter().enumerate() {
        if logit > logits[best] || logits[best].is_nan() {
            best = index;
        }
    }
    best
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let most = f64::from(logits[best(logits)]);
    most + libm::log(logits.iter().map(|&logit| libm::exp(f64::from(logit) - most)).sum::<f64>())
}

fn deviation(logits: &[f32]) -> f64 {
    let count = logits.len() as f64;
    let mean = logits.iter().map(|&logit| f64::from(logit)).sum::<f64>() / count;
    (logits.iter().map(|&logit| (f64::from(logit) - mean) * (f64::from(logit) - mean)).sum::<f64>() / count).sqrt()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let sizes = (dot(a, a) * dot(b, b)).sqrt();
    if sizes == 0.0 { f64::from(u8::from(dot(a, a) == dot(b, b))) } else { dot(a, b) / sizes }
}

/// Lead, in standard deviations of the row, below which either of two tokens may be the best: an activation that lies
/// between two int8 values is rounded by the last bit of a float.
const TIE_LEAD: f64 = 0.02;

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(rows: &[(&[f32], &[f32])]) -> (Scores, Vec<Position>) {
        let mut comparison = Comparison::default();
        for (position, (ours, theirs)) in rows.iter().enumerate() {
            comparison.add((0, position), ours, theirs, Some(0));
        }
        comparison.finish(2)
    }

    #[test]
    fn equal_rows_are_equal_in_every_figure() {
        let row = [1.0, -2.0, 3.5, 0.0];
        let (scores, worst) = scores(&[(&row, &row)]);
        assert_eq!((scores.accuracy, scores.top1_agreement, scores.kl_max), (1.0, 1.0, 0.0));
        assert!(worst.is_empty());
        assert!((scores.cosine_min - 1.0).abs() < 1e-12 && scores.perplexity_difference == 0.0);
    }

    #[test]
    fn the_worst_position_comes_first_and_another_token_counts() {
        let (near, far) = ([1.0f32, 2.0, 3.0], [3.0f32, 2.0, 1.0]);
        let (scores, worst) = scores(&[(&near, &near), (&far, &near), (&near, &near)]);
        assert_eq!((scores.accuracy, scores.positions), (2.0 / 3.0, 3));
        assert_eq!((worst[0].position, worst[0].token, worst[0].token_reference, worst[0].lead), (1, 0, 2, 2.0));
    }

    #[test]
    fn a_near_tie_is_accurate_but_no_agreement() {
        let (ours, theirs) = ([1.001f32, 1.0, -5.0, 5.0 - 10.0], [1.0f32, 1.001, -5.0, -5.0]);
        let (scores, _) = scores(&[(&ours, &theirs)]);
        assert_eq!((scores.accuracy, scores.top1_agreement), (1.0, 0.0));
    }

    #[test]
    fn numbers_that_are_none_are_no_agreement() {
        let (scores, worst) = scores(&[(&[f32::NAN; 3], &[1.0, 2.0, 3.0])]);
        assert_eq!((scores.accuracy, scores.top1_agreement), (0.0, 0.0));
        assert!(worst[0].kl.is_nan());
    }
}
