//! Two rows of logits: do they choose the same token, and how far apart are the distributions? Or two hidden states of
//! an embedding model: how near are their directions?

use std::fmt;

use serde::Serialize;

/// Figures over all positions.
#[derive(Clone, Debug, Serialize)]
pub struct Scores {
    pub positions: usize,
    /// Share of positions whose best token is the reference's, or leads it by less than the tie tolerance; of an
    /// embedding model the mean cosine.
    pub accuracy: f64,
    pub cosine_mean: f64,
    pub cosine_min: f64,
    /// Of models that choose tokens.
    #[serde(flatten)]
    pub choices: Option<Choices>,
}

/// Figures of the tokens chosen and of their distributions.
#[derive(Clone, Debug, Serialize)]
pub struct Choices {
    /// The accuracy without any tolerance.
    pub top1_agreement: f64,
    /// Of our distribution from the reference's, in nats.
    pub kl_mean: f64,
    pub kl_max: f64,
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
    pub cosine: f64,
    #[serde(flatten)]
    pub choice: Option<Choice>,
}

/// What each chooses at a position.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Choice {
    pub token: u32,
    pub token_reference: u32,
    /// How much the reference's logits prefer its token to ours.
    pub lead: f64,
    pub kl: f64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sample, position, cosine, choice } = self;
        match choice {
            Some(Choice { token, token_reference, kl, .. }) => {
                write!(f, "text {sample} position {position} (token {token} for {token_reference}, KL {kl:.2e})")
            }
            None => write!(f, "text {sample} position {position} (cosine {cosine:.6})"),
        }
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
    /// Two hidden states.
    pub(super) fn add_states(&mut self, (sample, position): (usize, usize), ours: &[f32], theirs: &[f32]) {
        self.positions.push(Position { sample, position, cosine: cosine(ours, theirs), choice: None });
    }

    /// Two rows of logits, and the token that follows.
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
        let choice = Some(Choice { token, token_reference, lead, kl });
        self.positions.push(Position { sample, position, cosine, choice });
    }

    /// The figures, and the `count` positions that differ most.
    pub(super) fn finish(mut self, count: usize) -> (Scores, Vec<Position>) {
        let positions = self.positions.len();
        let choices = self.choices();
        let mean = |of: &dyn Fn(&Position) -> f64| self.positions.iter().map(of).sum::<f64>() / positions.max(1) as f64;
        let cosine_mean = mean(&|p| p.cosine);
        let accuracy = match &choices {
            Some(_) => self.accurate as f64 / positions.max(1) as f64,
            None => cosine_mean,
        };
        let cosine_min = self.positions.iter().map(|p| p.cosine).fold(1.0, f64::min);
        let scores = Scores { positions, accuracy, cosine_mean, cosine_min, choices };
        let badness = |p: &Position| {
            let badness = p.choice.as_ref().map_or(1.0 - p.cosine, |choice| choice.kl);
            if badness.is_nan() { f64::INFINITY } else { badness }
        };
        self.positions.sort_by(|a, b| badness(b).total_cmp(&badness(a)));
        // Equal rows are no worst ones.
        self.positions.retain(|p| badness(p) != 0.0);
        self.positions.truncate(count);
        (scores, self.positions)
    }

    fn choices(&self) -> Option<Choices> {
        let choices: Vec<&Choice> = self.positions.iter().filter_map(|position| position.choice.as_ref()).collect();
        if choices.is_empty() {
            return None;
        }
        let count = choices.len() as f64;
        let same = choices.iter().filter(|c| c.kl.is_finite() && c.token == c.token_reference).count();
        let perplexity = |sum: f64| libm::exp(-sum / self.next.2.max(1) as f64);
        let (ours, theirs) = (perplexity(self.next.0), perplexity(self.next.1));
        Some(Choices {
            top1_agreement: same as f64 / count,
            kl_mean: choices.iter().map(|c| c.kl).sum::<f64>() / count,
            kl_max: choices.iter().map(|c| c.kl).fold(0.0, f64::max),
            perplexity: ours,
            perplexity_reference: theirs,
            perplexity_difference: ours / theirs - 1.0,
        })
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
        let choices = scores.choices.unwrap();
        assert_eq!((scores.accuracy, choices.top1_agreement, choices.kl_max), (1.0, 1.0, 0.0));
        assert!(worst.is_empty());
        assert!((scores.cosine_min - 1.0).abs() < 1e-12 && choices.perplexity_difference == 0.0);
    }

    #[test]
    fn the_worst_position_comes_first_and_another_token_counts() {
        let (near, far) = ([1.0f32, 2.0, 3.0], [3.0f32, 2.0, 1.0]);
        let (scores, worst) = scores(&[(&near, &near), (&far, &near), (&near, &near)]);
        assert_eq!((scores.accuracy, scores.positions), (2.0 / 3.0, 3));
        let choice = worst[0].choice.as_ref().unwrap();
        assert_eq!((worst[0].position, choice.token, choice.token_reference, choice.lead), (1, 0, 2, 2.0));
    }

    #[test]
    fn a_near_tie_is_accurate_but_no_agreement() {
        let (ours, theirs) = ([1.001f32, 1.0, -5.0, 5.0 - 10.0], [1.0f32, 1.001, -5.0, -5.0]);
        let (scores, _) = scores(&[(&ours, &theirs)]);
        assert_eq!((scores.accuracy, scores.choices.unwrap().top1_agreement), (1.0, 0.0));
    }

    #[test]
    fn numbers_that_are_none_are_no_agreement() {
        let (scores, worst) = scores(&[(&[f32::NAN; 3], &[1.0, 2.0, 3.0])]);
        assert_eq!((scores.accuracy, scores.choices.unwrap().top1_agreement), (0.0, 0.0));
        assert!(worst[0].choice.as_ref().unwrap().kl.is_nan());
    }

    #[test]
    fn hidden_states_are_compared_by_direction() {
        let mut comparison = Comparison::default();
        comparison.add_states((0, 0), &[1.0, 0.0], &[2.0, 0.0]);
        comparison.add_states((0, 1), &[1.0, 0.0], &[0.0, 1.0]);
        let (scores, worst) = comparison.finish(5);
        assert_eq!((scores.accuracy, scores.cosine_min, worst[0].position, worst.len()), (0.5, 0.0, 1, 1));
        assert!(scores.choices.is_none());
        let mut comparison = Comparison::default();
        comparison.add_states((0, 0), &[f32::NAN, 0.0], &[1.0, 0.0]);
        assert!(comparison.finish(5).0.accuracy.is_nan());
    }
}
