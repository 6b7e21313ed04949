//! What a benchmark asks of a forward pass beside its results: how long each phase takes, and how much of the
//! feed-forward is zero. Off unless asked for; a server never asks.

use std::time::Instant;

/// A phase of a step. Waiting at a barrier is a phase of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Embed,
    /// Norms and quantisation before the linear layers.
    Prepare,
    /// Queries, keys and values, rotated and stored.
    Project,
    Attend,
    /// The output projection.
    Output,
    GateUp,
    Down,
    /// Inputs of the head: norm, and planes for the screen.
    HeadRows,
    /// All logits, or bounds of them.
    HeadAll,
    /// Which tokens could matter.
    HeadSelect,
    /// Logits of the tokens that could.
    HeadExact,
    /// The sampler.
    Each,
    Wait,
}

impl Phase {
    pub const ALL: [Self; 13] = [
        Self::Embed,
        Self::Prepare,
        Self::Project,
        Self::Attend,
        Self::Output,
        Self::GateUp,
        Self::Down,
        Self::HeadRows,
        Self::HeadAll,
        Self::HeadSelect,
        Self::HeadExact,
        Self::Each,
        Self::Wait,
    ];
}

/// What was found, of all workers and steps together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Findings {
    /// Steps, each counted by every worker.
    steps: usize,
    seconds: [f64; Phase::ALL.len()],
    /// Results of the gated unit, how many of them aren't zero, and how many int8 inputs of down that became of them.
    gated: usize,
    gated_live: usize,
    down_live: usize,
}

impl Findings {
    /// Seconds of a step that a worker spent in `phase`, on average; together they are the step.
    #[must_use]
    pub fn seconds(&self, phase: Phase) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let steps = self.steps.max(1) as f64;
        self.seconds[phase as usize] / steps
    }

    /// Which shares of the gated unit's results and of down's int8 inputs aren't zero; `None` without a step.
    #[must_use]
    pub fn live_shares(&self) -> Option<(f64, f64)> {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let share = |live: usize| live as f64 / self.gated as f64;
        (self.gated > 0).then(|| (share(self.gated_live), share(self.down_live)))
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (sum, seconds) in self.seconds.iter_mut().zip(other.seconds) {
            *sum += seconds;
        }
        self.steps += other.steps;
        self.gated += other.gated;
        self.gated_live += other.gated_live;
        self.down_live += other.down_live;
    }
}

/// One worker's part.
pub(super) struct Probe {
    since: Instant,
    findings: Findings,
}

impl Probe {
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), findings: Findings::default() }
    }

    /// A step is to be computed.
    pub(super) fn count_step(&mut self) {
        self.findings.steps += 1;
    }

    /// Its worker begins, or goes on with other rows: what went before is nobody's.
    pub(super) fn begin(&mut self) {
        self.since = Instant::now();
    }

    /// Since the last call was `phase`.
    pub(super) fn lap(&mut self, phase: Phase) {
        let now = Instant::now();
        self.findings.seconds[phase as usize] += (now - self.since).as_secs_f64();
        self.since = now;
    }

    /// One row of the gated unit's results.
    pub(super) fn count_gated(&mut self, gated: &[f32]) {
        self.findings.gated += gated.len();
        self.findings.gated_live += gated.iter().filter(|value| **value != 0.0).count();
    }

    /// What became of them: down's input.
    pub(super) fn count_down(&mut self, quantized: &[i8]) {
        self.findings.down_live += quantized.iter().filter(|value| **value != 0).count();
    }

    pub(super) fn take(&mut self) -> Findings {
        std::mem::take(&mut self.findings)
    }
}
