//! What a shard counts about itself: plain numbers with one writer each, read by whoever scrapes.

mod gpu;
mod history;
mod openmetrics;
mod render;
mod vllm;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use net::tls::Refusal;

pub use gpu::render_gpus;
pub use history::{Count, History, Spread, Timed, Totals};
pub use openmetrics::{OPENMETRICS, from_prometheus, is_preferred};
pub use render::{Process, render};
pub use vllm::render_vllm;

use crate::executor::Holder;
use crate::forward::HeadCounts;
use crate::schedule::Counts;

/// A number that only one thread changes, so that a change costs no locked instruction.
#[derive(Debug, Default)]
pub struct Cell(AtomicU64);

impl Cell {
    /// The value now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Replaces the value.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Adds to the value.
    pub fn add(&self, value: u64) {
        self.set(self.get() + value);
    }
}

/// Counts by upper bound, with one writer.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    counts: Box<[Cell]>,
    sum_bits: Cell,
}

impl Histogram {
    pub(crate) fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| Cell::default()).collect();
        Self { bounds, counts, sum_bits: Cell::default() }
    }

    /// Counts one value.
    pub fn observe(&self, value: f64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        self.counts[at].add(1);
        self.sum_bits.set((f64::from_bits(self.sum_bits.get()) + value).to_bits());
    }

    /// How many values were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().map(Cell::get).sum()
    }

    /// Counts a duration, in seconds.
    pub fn observe_duration(&self, value: Duration) {
        self.observe(value.as_secs_f64());
    }
}

/// Ways in which a request ends, the labels of `bitnet_request_success_total` and of the refusals.
#[derive(Debug, Default)]
pub struct Outcomes {
    pub stop: Cell,
    pub length: Cell,
    pub cancelled: Cell,
    pub failed: Cell,
    pub refused_queue: Cell,
    pub refused_memory: Cell,
    pub refused_deadline: Cell,
    pub refused_draining: Cell,
    pub refused_connections: Cell,
    pub refused_rate: Cell,
}

/// Rows of the output head, by how they got their logits, and logits computed one by one.
#[derive(Debug, Default)]
pub struct HeadMetrics {
    pub full: Cell,
    pub screened: Cell,
    pub undecided: Cell,
    pub exact: Cell,
}

/// What the leader of a shard counts.
#[derive(Debug)]
pub struct StepMetrics {
    pub duration: Histogram,
    pub rows: Histogram,
    pub sequences: Histogram,
    /// From a request that was read to the first step with rows of it.
    pub first_step: Histogram,
    /// Tokens that were chosen, whoever still wanted them.
    pub sampled_tokens: Cell,
    /// Tokens of drafts that were computed, and those that were right.
    pub drafted_tokens: Cell,
    pub accepted_tokens: Cell,
    pub head: HeadMetrics,
    /// 1 while a step is under way.
    pub under_way: Cell,
    pub running: Cell,
    /// Those of them whose guides compute beside the steps: no step is due for them.
    pub beside: Cell,
    pub waiting: Cell,
    /// Sequences that have no token yet, and the tokens of their prompts that are still to be computed.
    pub prompts: Cell,
    pub prompt_tokens: Cell,
    /// Sequences that were pushed out of their slots.
    pub preempted: Cell,
    /// Guides that came back from beside the steps.
    pub guides_beside: Cell,
    /// Tokens that were looked up in the KV cache, and those that were found.
    pub prefix_queries: Cell,
    pub prefix_hits: Cell,
    pub kv_blocks_used: Cell,
    pub kv_blocks_resident: Cell,
    pub kv_blocks: Cell,
    /// Moving averages of what steps cost, as bits of f64: see [`crate::schedule::Pace`].
    pub decode_s_bits: Cell,
    pub decode_rows_bits: Cell,
    pub prefill_row_s_bits: Cell,
    /// Times that the leader broke down and began anew, and how long it was gone the last time.
    pub restarts: Cell,
    pub restart_us: Cell,
}

/// What the executor of a shard counts.
#[derive(Debug)]
pub struct RequestMetrics {
    pub started: Cell,
    pub active: Cell,
    pub connections: Cell,
    /// Connections that another shard accepted.
    pub handed_over: Cell,
    /// Sequences that another shard computed, whose cache knew their beginning.
    pub routed: Cell,
    /// Times that the executor broke down and went on.
    pub restarts: Cell,
    /// Times that a new one took its place, and how long there was none the last time.
    pub rebuilds: Cell,
    pub rebuild_us: Cell,
    pub outcomes: Outcomes,
    pub prompt_tokens: Cell,
    pub generated_tokens: Cell,
    pub queue: Histogram,
    pub first_token: Histogram,
    pub inter_token: Histogram,
    /// From a token that was chosen to its bytes in the socket, of the oldest token of each send.
    pub token_write: Histogram,
    pub prefill: Histogram,
    pub decode: Histogram,
    pub end_to_end: Histogram,
    pub tokens_per_second: Histogram,
    /// Bodies, texts and conversations that were read beside the executor, since they are long.
    pub aside: Cell,
    /// HTTP answers by status class: 1xx to 5xx.
    pub answers: [Cell; 5],
    /// Turns of the executor's housekeeping: a shard whose number stands still is stuck.
    pub turns: Cell,
}

/// Handshakes of TLS, by how they ended.
#[derive(Debug, Default)]
pub struct HandshakeMetrics {
    pub full: Cell,
    pub resumed: Cell,
    /// By [`Refusal`].
    pub refused: [Cell; Refusal::ALL.len()],
    /// Clients that went before it was done, and those that took too long.
    pub left: Cell,
    pub timed_out: Cell,
}

/// How often something held an executor for too long, and the longest time in microseconds.
#[derive(Debug, Default)]
pub struct Stalls {
    pub count: Cell,
    pub longest_us: Cell,
}

/// What one shard counts of one generation.
#[derive(Debug, Default)]
pub struct GenerationMetrics {
    /// The leader's: sequences in slots and in the queue.
    pub running: Cell,
    pub waiting: Cell,
    /// The executor's: requests that were started, that ended well, and that the model failed.
    pub requests: Cell,
    pub succeeded: Cell,
    pub failed: Cell,
    pub generated_tokens: Cell,
    /// Gaps between tokens of a sequence, and their sum.
    pub gaps: Cell,
    pub gaps_us: Cell,
    /// Greedy tokens that were compared with another generation's, and those that were the same.
    pub compared: Cell,
    pub agreed: Cell,
}

/// All numbers of one shard.
#[derive(Debug)]
pub struct ShardMetrics {
    pub step: StepMetrics,
    pub requests: RequestMetrics,
    pub handshakes: HandshakeMetrics,
    /// By [`Holder`].
    pub stalls: [Stalls; Holder::ALL.len()],
}

impl Default for ShardMetrics {
    fn default() -> Self {
        Self {
            handshakes: HandshakeMetrics::default(),
            stalls: Default::default(),
            step: StepMetrics {
                duration: Histogram::new(STEP_SECONDS),
                rows: Histogram::new(ROWS),
                sequences: Histogram::new(ROWS),
                first_step: Histogram::new(OWN_SECONDS),
                sampled_tokens: Cell::default(),
                drafted_tokens: Cell::default(),
                accepted_tokens: Cell::default(),
                head: HeadMetrics::default(),
                under_way: Cell::default(),
                running: Cell::default(),
                beside: Cell::default(),
                waiting: Cell::default(),
                prompts: Cell::default(),
                prompt_tokens: Cell::default(),
                preempted: Cell::default(),
                guides_beside: Cell::default(),
                prefix_queries: Cell::default(),
                prefix_hits: Cell::default(),
                kv_blocks_used: Cell::default(),
                kv_blocks_resident: Cell::default(),
                kv_blocks: Cell::default(),
                decode_s_bits: Cell::default(),
                decode_rows_bits: Cell::default(),
                prefill_row_s_bits: Cell::default(),
                restarts: Cell::default(),
                restart_us: Cell::default(),
            },
            requests: RequestMetrics {
                started: Cell::default(),
                active: Cell::default(),
                connections: Cell::default(),
                handed_over: Cell::default(),
                routed: Cell::default(),
                restarts: Cell::default(),
                rebuilds: Cell::default(),
                rebuild_us: Cell::default(),
                outcomes: Outcomes::default(),
                prompt_tokens: Cell::default(),
                generated_tokens: Cell::default(),
                queue: Histogram::new(REQUEST_SECONDS),
                first_token: Histogram::new(REQUEST_SECONDS),
                inter_token: Histogram::new(STEP_SECONDS),
                token_write: Histogram::new(OWN_SECONDS),
                prefill: Histogram::new(REQUEST_SECONDS),
                decode: Histogram::new(REQUEST_SECONDS),
                end_to_end: Histogram::new(REQUEST_SECONDS),
                tokens_per_second: Histogram::new(TOKENS_PER_SECOND),
                aside: Cell::default(),
                answers: Default::default(),
                turns: Cell::default(),
            },
        }
    }
}

impl ShardMetrics {
    /// The leader broke down and began anew.
    pub fn observe_restart(&self, gone: Duration) {
        self.step.restart_us.set(u64::try_from(gone.as_micros()).unwrap_or(u64::MAX));
        self.step.restarts.add(1);
    }

    /// A new executor took the place of one that broke down.
    pub fn observe_rebuild(&self, gone: Duration) {
        self.requests.rebuild_us.set(u64::try_from(gone.as_micros()).unwrap_or(u64::MAX));
        self.requests.rebuilds.add(1);
    }

    /// One step of `rows` rows, `sequences` of which gave a token.
    #[expect(clippy::cast_precision_loss, reason = "rows are few")]
    pub fn observe_step(&self, elapsed: Duration, rows: usize, sequences: usize) {
        self.step.duration.observe_duration(elapsed);
        self.step.rows.observe(rows as f64);
        self.step.sequences.observe(sequences as f64);
    }

    /// The draft of one sequence in a step.
    pub fn observe_draft(&self, drafted: usize, accepted: usize) {
        if drafted > 0 {
            self.step.drafted_tokens.add(drafted as u64);
            self.step.accepted_tokens.add(accepted as u64);
        }
    }

    /// The head of one step.
    pub fn observe_head(&self, counts: HeadCounts) {
        let head = &self.step.head;
        head.full.add(counts.full as u64);
        head.screened.add(counts.screened as u64);
        head.undecided.add(counts.undecided as u64);
        head.exact.add(counts.exact as u64);
    }

    /// Sequences in slots and in the queue, those of them without a token, and prompt tokens that are still to be computed.
    pub fn set_queue(&self, (running, waiting): (usize, usize), prompts: usize, prompt_tokens: usize) {
        self.step.prompts.set(prompts as u64);
        self.step.running.set(running as u64);
        self.step.waiting.set(waiting as u64);
        self.step.prompt_tokens.set(prompt_tokens as u64);
    }

    /// What a lane's scheduler has counted since the last time.
    pub fn count_schedule(&self, counts: Counts) {
        self.step.preempted.add(counts.preempted);
        self.step.guides_beside.add(counts.guides_beside);
        self.step.prefix_queries.add(counts.prefix_queries);
        self.step.prefix_hits.add(counts.prefix_hits);
    }

    /// What steps cost: seconds and rows of steps without prompt rows, seconds that a prompt row adds.
    pub fn set_costs(&self, (decode_s, decode_rows): (f64, f64), prefill_row_s: f64) {
        self.step.decode_s_bits.set(decode_s.to_bits());
        self.step.decode_rows_bits.set(decode_rows.to_bits());
        self.step.prefill_row_s_bits.set(prefill_row_s.to_bits());
    }

    /// KV blocks in use, those that have memory, and all.
    pub fn set_kv(&self, used: usize, resident: usize, all: usize) {
        self.step.kv_blocks_used.set(used as u64);
        self.step.kv_blocks_resident.set(resident as u64);
        self.step.kv_blocks.set(all as u64);
    }
}

pub(crate) const STEP_SECONDS: &[f64] =
    &[0.0005, 0.001, 0.002, 0.004, 0.006, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0];
/// What the server itself adds.
const OWN_SECONDS: &[f64] = &[
    10e-6, 20e-6, 30e-6, 50e-6, 75e-6, 100e-6, 150e-6, 200e-6, 300e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 25e-3, 0.1, 0.5,
];
const REQUEST_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0];
pub(crate) const ROWS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];
const TOKENS_PER_SECOND: &[f64] = &[1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 60.0, 80.0, 120.0, 200.0, 400.0, 800.0, 1600.0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_below_the_first_bound_that_holds_it() {
        let histogram = Histogram::new(&[1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 7.0] {
            histogram.observe(value);
        }
        let counts: Vec<u64> = histogram.counts.iter().map(Cell::get).collect();
        assert_eq!(counts, [2, 1, 1]);
        assert!((f64::from_bits(histogram.sum_bits.get()) - 10.0).abs() < 1e-12);
    }
}
