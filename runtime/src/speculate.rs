//! Speculation without a second model: drafts of the next tokens out of a sequence's own text, or out of what its client
//! expects the answer to be, and how many of them are worth their rows.
//!
//! A draft is verified in one step: its rows are computed behind the sequence's last token, each is sampled as if the
//! tokens before it were right, and the first one that is not ends the draft. So the answer is that of plain decoding, bit
//! for bit. Keys and values of refused tokens stay behind the computed positions, where nobody looks before they are
//! written again.

use std::str::FromStr;
use std::time::Duration;

use crate::sampler::SamplingParams;
use crate::schedule::Scheduler;

/// Whether sequences draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speculation {
    Off,
    /// As many tokens as pay, by measured acceptance and cost, in steps that last about as long as without: who reads along
    /// gets even gaps.
    Auto,
    /// As many tokens as pay, however long their steps are.
    Fast,
    /// Up to so many tokens whenever there is a draft.
    Fixed(usize),
}

impl Speculation {
    /// Rows of logits that drafts take in a step beside those of the sequences.
    #[must_use]
    pub fn rows_max(self) -> usize {
        if self == Self::Off { 0 } else { DRAFT_ROWS_MAX }
    }
}

/// `auto`, `fast`, `off` or a number of tokens.
impl FromStr for Speculation {
    type Err = NoSuchSpeculation;

    fn from_str(text: &str) -> Result<Self, NoSuchSpeculation> {
        match text {
            "auto" => Ok(Self::Auto),
            "fast" => Ok(Self::Fast),
            "off" => Ok(Self::Off),
            _ => match text.parse() {
                Ok(count) if (1..=DRAFT_TOKENS_MAX).contains(&count) => Ok(Self::Fixed(count)),
                _ => Err(NoSuchSpeculation),
            },
        }
    }
}

/// A setting that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("auto, fast, off and 1 to {DRAFT_TOKENS_MAX} tokens")]
pub struct NoSuchSpeculation;

/// What a sequence guesses about its next tokens.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    tokens: [u32; DRAFT_TOKENS_MAX],
    len: usize,
    /// How many of them the step computes; the others are only compared.
    rows: usize,
    /// Moving average of guesses that were right; none before the first.
    acceptance: Option<f64>,
}

impl Draft {
    /// The tokens that the step computes behind the last one.
    #[must_use]
    pub fn rows(&self) -> &[u32] {
        &self.tokens[..self.rows]
    }

    /// Computes none of it.
    pub fn give_up(&mut self) {
        self.rows = 0;
    }

    fn clear(&mut self) {
        (self.len, self.rows) = (0, 0);
    }

    /// Guesses that the text goes on as `predicted` does behind its end, else as it did itself after the latest of the longest
    /// repetitions of its end, at most `max` tokens. A repetition that reaches the end goes on with the guess itself.
    fn look_up(&mut self, text: &[u32], predicted: &[u32], max: usize) {
        self.clear();
        let max = max.min(DRAFT_TOKENS_MAX);
        if let Some(found) = behind(text, predicted) {
            let rest = &predicted[found..];
            self.len = max.min(rest.len());
            self.tokens[..self.len].copy_from_slice(&rest[..self.len]);
            return;
        }
        let before = text.len().saturating_sub(1);
        let Some(found) = behind(text, &text[..before]) else { return };
        self.len = max;
        for i in 0..self.len {
            self.tokens[i] = text.get(found + i).copied().unwrap_or_else(|| self.tokens[found + i - text.len()]);
        }
    }
}

/// The place in `place` behind the latest of the longest repetitions of the end of `text`.
fn behind(text: &[u32], place: &[u32]) -> Option<usize> {
    let last = text.len().checked_sub(1)?;
    let (mut longest, mut found) = (NGRAM_MIN - 1, None);
    for at in (place.len().saturating_sub(LOOK_BACK_MAX)..place.len()).rev() {
        if place[at] != text[last] {
            continue;
        }
        let goes_on = |&i: &usize| i <= at && i <= last && place[at - i] == text[last - i];
        let length = (1..NGRAM_MAX).take_while(goes_on).count() + 1;
        if length > longest {
            (longest, found) = (length, Some(at + 1));
            if length == NGRAM_MAX {
                break;
            }
        }
    }
    found
}

/// How a lane drafts, and what it has learned of the costs.
#[derive(Debug)]
pub struct Speculator {
    setting: Speculation,
    /// Rows of drafts that fit a step.
    rows_spare: usize,
    /// Acceptance over all sequences: what a new one starts from.
    prior: f64,
    /// Moving average of the seconds of a step of so many rows, none of them a prompt's; 0 where none was seen.
    seconds: [f64; COSTED_ROWS_MAX + 1],
}

impl Speculator {
    /// Nothing is known yet. Steps have room for `rows_spare` rows of drafts.
    #[must_use]
    pub fn new(setting: Speculation, rows_spare: usize) -> Self {
        Self { setting, rows_spare, prior: PRIOR, seconds: [0.0; COSTED_ROWS_MAX + 1] }
    }

    /// Makes the drafts of the next step, of at most `rows_max` rows. With a prompt in the step, or with so many sequences
    /// that their own rows use the machine well, nobody drafts and nothing is looked up.
    pub fn plan(&mut self, scheduler: &mut Scheduler, rows_max: usize) {
        if self.setting == Speculation::Off {
            return;
        }
        let decoding = scheduler.decoding();
        let busy = decoding != scheduler.running() - scheduler.beside() || decoding > SEQUENCES_MAX;
        let mut room = self.rows_spare.min(rows_max.saturating_sub(decoding));
        if busy && !matches!(self.setting, Speculation::Fixed(_)) {
            room = 0;
        }
        let longest_s = self.longest_s(decoding);
        #[expect(clippy::cast_precision_loss, reason = "sequences are few")]
        let (mut rows, mut tokens) = (decoding, decoding as f64);
        for sequence in scheduler.decoding_mut() {
            let is_guided = sequence.is_guided();
            let draft = &mut sequence.draft;
            draft.clear();
            if room == 0 || is_guided || reads_history(&sequence.sampling) {
                continue;
            }
            // The row of the last token gives one token without any draft.
            let left = sequence.tokens_max - (sequence.tokens.len() - sequence.prompt_len);
            draft.look_up(&sequence.tokens, &sequence.predicted, left.saturating_sub(1));
            let acceptance = *draft.acceptance.get_or_insert(self.prior);
            draft.rows = match self.setting {
                Speculation::Fixed(most) => draft.len.min(most).min(room),
                _ => self.worth(rows, tokens, acceptance, (draft.len.min(room), longest_s)),
            };
            rows += draft.rows;
            room -= draft.rows;
            tokens += expected(acceptance, draft.rows);
        }
    }

    /// Seconds that a step of so many sequences may take with its drafts.
    fn longest_s(&self, decoding: usize) -> f64 {
        match (self.setting, self.estimate_s(decoding)) {
            (Speculation::Auto, Some(plain_s)) => plain_s * LONGER_MAX,
            _ => f64::INFINITY,
        }
    }

    /// How many of at most `most` draft tokens make a step of `rows` rows, which gives `tokens` tokens, give the most tokens a
    /// second within `longest_s`.
    fn worth(&self, rows: usize, tokens: f64, acceptance: f64, (most, longest_s): (usize, f64)) -> usize {
        let Some(seconds) = self.estimate_s(rows) else { return 0 };
        let (mut best, mut rate) = (0, tokens / seconds * GAIN_MIN);
        for count in 1..=most {
            let known = self.estimate_s(rows + count).filter(|_| self.is_within(rows + count, longest_s));
            let Some(seconds) = known else { break };
            let faster = (tokens + expected(acceptance, count)) / seconds;
            if faster > rate {
                (best, rate) = (count, faster);
            }
        }
        best
    }

    /// Whether a step of so many rows takes `longest_s` at most, by what it or one of a row less took; any may, where that is
    /// no limit.
    fn is_within(&self, rows: usize, longest_s: f64) -> bool {
        let seen = self.seconds.get(rows - 1..=rows).and_then(|near| near.iter().rfind(|seconds| **seconds > 0.0));
        longest_s.is_infinite() || seen.is_some_and(|seconds| *seconds <= longest_s)
    }

    /// Seconds of a step of so many rows. One that was never seen is taken to cost a little more than the next smaller one,
    /// so that it is tried; nothing is known before the first step.
    fn estimate_s(&self, rows: usize) -> Option<f64> {
        let known = self.seconds.get(..=rows)?.iter().rposition(|&seconds| seconds > 0.0)?;
        #[expect(clippy::cast_precision_loss, reason = "rows are few")]
        let more = 1.0 + UNSEEN_ROW_COST * (rows - known) as f64;
        Some(self.seconds[known] * more)
    }

    /// Learns from a step of `rows` rows without a prompt, `drafted` of them drafts.
    pub fn observe(&mut self, rows: usize, drafted: usize, elapsed: Duration) {
        let Some(seconds) = self.seconds.get_mut(rows) else { return };
        let sample = elapsed.as_secs_f64();
        *seconds = if *seconds == 0.0 { sample } else { *seconds + (sample - *seconds) * COST_WEIGHT };
        let floor = *seconds;
        if drafted == 0 {
            // One step that was disturbed must not end drafting for ever: what is not tried is forgiven in time, but where gaps
            // are to be even no long step is tried every other second.
            let forgiveness = if self.setting == Speculation::Auto { FORGIVENESS_EVEN } else { FORGIVENESS };
            for seconds in self.seconds[rows + 1..].iter_mut().filter(|seconds| **seconds > floor) {
                *seconds *= forgiveness;
            }
        }
    }

    /// Learns how a draft fared; `given` is what the sequence got, a token or more. A draft of which nothing was computed
    /// shows by its first token what it would have been worth.
    pub fn learn(&mut self, draft: &mut Draft, given: &[u32]) {
        let trials = draft.rows.max(1).min(draft.len);
        for (guess, token) in draft.tokens[..trials].iter().zip(given) {
            let hit = f64::from(u8::from(guess == token));
            let acceptance = draft.acceptance.get_or_insert(self.prior);
            *acceptance += (hit - *acceptance) * ACCEPTANCE_WEIGHT;
            self.prior += (hit - self.prior) * PRIOR_WEIGHT;
        }
    }
}

/// Tokens that a draft of so many gives on average.
fn expected(acceptance: f64, count: usize) -> f64 {
    (0..count).fold((0.0, 1.0), |(sum, chance), _| (sum + chance * acceptance, chance * acceptance)).0
}

/// Whether earlier tokens change the scores: then a row can't be sampled before the tokens ahead of it are certain.
fn reads_history(params: &SamplingParams) -> bool {
    params.repetition_penalty != 1.0 || params.frequency_penalty != 0.0 || params.presence_penalty != 0.0
}

/// Most tokens of a draft.
pub const DRAFT_TOKENS_MAX: usize = 8;
/// Most rows of all drafts of a step.
const DRAFT_ROWS_MAX: usize = 16;
/// More sequences than this use the machine well without drafts.
const SEQUENCES_MAX: usize = 4;
const COSTED_ROWS_MAX: usize = SEQUENCES_MAX + DRAFT_ROWS_MAX;
/// Tokens at the end of the text that must have come before, and those that are compared at most.
const NGRAM_MIN: usize = 2;
const NGRAM_MAX: usize = 4;
/// Tokens that are looked through, about 2 us.
pub const LOOK_BACK_MAX: usize = 4096;
/// Acceptance before anything is known.
const PRIOR: f64 = 0.5;
const ACCEPTANCE_WEIGHT: f64 = 0.1;
const PRIOR_WEIGHT: f64 = 0.02;
const COST_WEIGHT: f64 = 0.3;
/// Share of a step that a row of an unseen number is taken to cost.
const UNSEEN_ROW_COST: f64 = 0.1;
/// How many times as long as without them a step may take with drafts, so that gaps stay even. (One stream of a 2B model, p99 of
/// the gaps 1.19 times p50 without drafts, with steps of up to 1.15 times 1.25 to 1.29, without a limit 1.68 to 1.76.)
const LONGER_MAX: f64 = 1.1;
/// How much faster a draft must promise to be.
const GAIN_MIN: f64 = 1.05;
const FORGIVENESS: f64 = 0.999;
const FORGIVENESS_EVEN: f64 = 0.9998;

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(text: &[u32], max: usize) -> Vec<u32> {
        let mut draft = Draft::default();
        draft.look_up(text, &[], max);
        draft.tokens[..draft.len].to_vec()
    }

    #[test]
    fn what_is_predicted_goes_before_what_was() {
        let guess = |text: &[u32], predicted: &[u32]| {
            let mut draft = Draft::default();
            draft.look_up(text, predicted, 3);
            draft.tokens[..draft.len].to_vec()
        };
        assert_eq!(guess(&[1, 2, 3, 4, 5, 1, 2], &[9, 1, 2, 7, 8, 6, 5]), [7, 8, 6]);
        assert_eq!(guess(&[1, 2], &[1, 2, 7]), [7], "it has an end");
        assert_eq!(guess(&[0, 1, 2], &[1, 2]), [0; 0], "and behind it nothing is guessed");
        assert_eq!(guess(&[5, 1, 2], &[1, 2, 7, 5, 1, 2, 8]), [8], "the longest repetition");
        assert_eq!(guess(&[1, 2, 3, 1, 2], &[2, 1, 3]), [3, 1, 2], "its own where the other knows nothing");
        assert_eq!(guess(&[2], &[1, 2, 3]), [0; 0]);
        assert_eq!(guess(&[], &[1, 2, 3]), [0; 0]);
    }

    #[test]
    fn a_text_goes_on_as_it_did_before() {
        assert_eq!(guess(&[1, 2, 3, 4, 5, 9, 1, 2], 3), [3, 4, 5]);
        assert_eq!(guess(&[1, 2, 3, 4, 5, 9, 1, 2], 2), [3, 4]);
    }

    #[test]
    fn the_longest_repetition_goes_before_the_latest() {
        assert_eq!(guess(&[7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2], 1), [3]);
        assert_eq!(guess(&[7, 1, 2, 3, 7, 1, 2, 4, 7, 1, 2], 1), [4]);
    }

    #[test]
    fn a_loop_goes_on_with_itself() {
        assert_eq!(guess(&[5, 6, 5, 6, 5, 6], 5), [5, 6, 5, 6, 5]);
        assert_eq!(guess(&[4; 9], 8), [4; 8]);
    }

    #[test]
    fn nothing_is_guessed_without_a_repetition_or_room() {
        for text in [&[][..], &[1], &[1, 1], &[1, 2, 3], &[1, 2, 9, 2]] {
            assert_eq!(guess(text, 8), [0; 0], "{text:?}");
        }
        assert_eq!(guess(&[4; 9], 0), [0; 0]);
    }

    #[test]
    fn only_what_lies_within_reach_is_looked_through() {
        let mut text = vec![1, 2, 3];
        text.extend(10..10 + LOOK_BACK_MAX as u32);
        text.extend([1, 2]);
        assert_eq!(guess(&text, 1), [0; 0]);
        assert_eq!(guess(&text[4..], 1), [0; 0]);
        assert_eq!(guess(&[&text[..3], &text[9..]].concat(), 1), [3]);
    }

    fn ms(ms: f64) -> Duration {
        Duration::from_secs_f64(ms / 1e3)
    }

    /// What a lone sequence drafts.
    fn worth(speculator: &Speculator, acceptance: f64, most: usize) -> usize {
        speculator.worth(1, 1.0, acceptance, (most, speculator.longest_s(1)))
    }

    #[test]
    fn drafts_are_as_long_as_they_pay() {
        let mut speculator = Speculator::new(Speculation::Fast, DRAFT_ROWS_MAX);
        assert_eq!(worth(&speculator, 0.9, 8), 0, "no step was seen");
        for (rows, cost) in [(1, 10.0), (2, 10.5), (3, 10.9), (4, 11.4), (5, 25.0)] {
            speculator.observe(rows, rows - 1, ms(cost));
        }
        assert_eq!(worth(&speculator, 0.9, 8), 3);
        assert_eq!(worth(&speculator, 0.9, 2), 2);
        assert_eq!(worth(&speculator, 0.08, 8), 0);
        speculator.setting = Speculation::Auto;
        assert_eq!(worth(&speculator, 0.9, 8), 2, "steps stay about as long as they were");
        speculator.seconds[3..].fill(0.0);
        assert_eq!(worth(&speculator, 0.9, 8), 2, "one row more than was seen is tried");
        speculator.observe(2, 1, ms(20.0));
        assert_eq!(worth(&speculator, 0.9, 8), 0);
    }

    #[test]
    fn a_cost_that_was_once_great_is_tried_again_later() {
        for (setting, range) in [(Speculation::Fast, 100..2000), (Speculation::Auto, 5000..20_000)] {
            let mut speculator = Speculator::new(setting, DRAFT_ROWS_MAX);
            (1..=9).for_each(|rows| speculator.observe(rows, rows - 1, ms(if rows == 1 { 10.0 } else { 100.0 })));
            assert_eq!(worth(&speculator, 0.9, 8), 0);
            let steps = (1..100_000).find(|_| {
                speculator.observe(1, 0, ms(10.0));
                worth(&speculator, 0.9, 8) > 0
            });
            assert!(steps.is_some_and(|steps| range.contains(&steps)), "{setting:?}: {steps:?}");
        }
    }

    #[test]
    fn acceptance_is_learned_from_drafts_that_cost_nothing() {
        let mut speculator = Speculator::new(Speculation::Auto, DRAFT_ROWS_MAX);
        let mut draft = Draft::default();
        draft.look_up(&[4; 9], &[], 8);
        (0..50).for_each(|_| speculator.learn(&mut draft, &[4]));
        assert!(draft.acceptance.unwrap() > 0.95);
        (0..50).for_each(|_| speculator.learn(&mut draft, &[5]));
        assert!(draft.acceptance.unwrap() < 0.05);
        draft.rows = 3;
        let before = draft.acceptance.unwrap();
        speculator.learn(&mut draft, &[4, 4, 9]);
        assert!(draft.acceptance.unwrap() > before, "two of three were right");
    }

    #[test]
    fn settings_are_parsed_or_refused() {
        assert_eq!("auto".parse(), Ok(Speculation::Auto));
        assert_eq!("fast".parse(), Ok(Speculation::Fast));
        assert_eq!("off".parse(), Ok(Speculation::Off));
        assert_eq!("8".parse(), Ok(Speculation::Fixed(8)));
        for bad in ["", "0", "9", "-1", "on", "18446744073709551616"] {
            assert_eq!(bad.parse::<Speculation>(), Err(NoSuchSpeculation), "{bad}");
        }
    }
}
