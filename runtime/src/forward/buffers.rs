//! The memory of a forward pass, all of it taken before the first step.

use kernels::attention;
use kernels::dense::DenseScratch;
use kernels::screen::{ScreenInput, SelectScratch};
use kernels::ternary::{self, LiveColumns, PanelScratch};

use super::Limits;
use super::inputs::OWN_PANELS_ROWS_MAX;
use super::probe::{Phase, Probe};
use crate::model::HyperParameters;
use crate::shared::{Shared, SharedFrom};

/// Row-major activations shared by the workers; `n` below is the rows of a step.
pub(super) struct Buffers {
    /// n x hidden: the residual stream; behind it n x [`between_norms`]: what lies between two norms. Rows that are computed
    /// together have theirs one behind the other, so that a step touches no more than its own. Behind all rows are parts of
    /// attention, then, from where what lay between norms was, logits.
    floats: Shared<f32>,
    /// n x rotated dimensions: cosines and sines of a row's position.
    cos_sin: Shared<f32>,
    /// n x widest: the input of the next linear layer, for those whose weights are no ternary ones. Where layers that
    /// are computed together have norms of their inputs, an input for each, one after the other.
    normed: Shared<f32>,
    /// n x the width's stride: the same as int8, in rows or in panels.
    quantized: Shared<i8>,
    scale: Shared<f32>,
    sum: Shared<i32>,
    /// Rows that there is room for.
    rows_max: usize,
    /// n x hidden: what a block adds, before its norm; empty where there is none.
    added: Shared<f32>,
}

/// The same from one row on, for rows that are computed together.
#[derive(Clone, Copy)]
pub(super) struct RowBuffers<'a> {
    /// n x hidden: the residual stream.
    pub(super) x: SharedFrom<'a, f32>,
    /// n x rotated dimensions.
    pub(super) cos_sin: SharedFrom<'a, f32>,
    pub(super) normed: SharedFrom<'a, f32>,
    pub(super) quantized: SharedFrom<'a, i8>,
    pub(super) scale: SharedFrom<'a, f32>,
    pub(super) sum: SharedFrom<'a, i32>,
    pub(super) rows_max: usize,
    /// n x (heads x head_dim): rotated queries.
    pub(super) q: SharedFrom<'a, f32>,
    /// n x (heads x head_dim): attention output.
    pub(super) attention: SharedFrom<'a, f32>,
    /// n x feed_forward: activated gate times up, where queries and attention output were: neither outlives the norms before
    /// the other is written.
    pub(super) ffn: SharedFrom<'a, f32>,
    pub(super) added: SharedFrom<'a, f32>,
    /// What splits of few rows leave for each other, behind all rows that are computed together.
    pub(super) parts: SharedFrom<'a, f32>,
}

/// What one worker writes by itself.
pub(super) struct Scratch {
    /// Output of a linear unit; a second one for its partner (key and value, gate and up).
    pub(super) first: Vec<f32>,
    pub(super) second: Vec<f32>,
    /// One row, normalised.
    pub(super) row: Vec<f32>,
    /// One row, quantised: the input of a single-row step.
    pub(super) quantized: Vec<i8>,
    pub(super) scale: [f32; 1],
    pub(super) sum: [i32; 1],
    /// The same in the order that rows of weights want, and which columns of it aren't zero.
    pub(super) permuted: Vec<i8>,
    pub(super) live_columns: LiveColumns,
    /// Rows of a unit of the up projection whose gate is positive.
    pub(super) live_rows: Vec<u32>,
    /// Rows of one panel, quantised.
    pub(super) together: Vec<i8>,
    /// All rows of a step of few, in panels.
    pub(super) own_panels: Vec<i8>,
    pub(super) panels: PanelScratch,
    pub(super) dense: DenseScratch,
    pub(super) screen: ScreenInput,
    pub(super) select: SelectScratch,
    pub(super) attention: attention::Scratch,
    pub(super) probe: Option<Probe>,
}

impl Buffers {
    /// For as many rows as `limits` allow, in up to `shares` shares, with so many floats for parts of attention.
    pub(super) fn new(params: &HyperParameters, limits: Limits, shares: usize, parts: usize) -> Self {
        let n = limits.rows_max;
        let inputs = if params.family.is_embedding() { INPUTS_MAX } else { 1 };
        let several = |widest: usize, hidden: usize| n * widest.max(inputs * hidden);
        let stride = ternary::activation_stride;
        // Steps of few rows would touch a page of 2 MiB in each of them.
        let few = FEW_ROWS.min(n);
        let floats = floats_of(params);
        let behind = parts.max(limits.logits_max * params.output_width()) + LINE_FLOATS;
        Self {
            floats: Shared::new(n * floats + behind).in_huge_pages_from(few * floats),
            cos_sin: Shared::new(n * params.rope_dims),
            normed: Shared::new(several(params.widest(), params.hidden)).in_huge_pages_from(few * params.widest()),
            quantized: Shared::new(several(stride(params.widest()), stride(params.hidden)))
                .in_huge_pages_from(few * stride(params.widest())),
            scale: Shared::new(n * inputs + shares * GAP),
            sum: Shared::new(n * inputs + shares * GAP),
            rows_max: n,
            added: Shared::new(if params.family.has_post_norms() { n * params.hidden } else { 0 }),
        }
    }

    /// For `rows` rows from `row` on, behind so many shares; where a model has several inputs for layers that are computed
    /// together there are no shares.
    pub(super) fn starting_at(
        &self,
        params: &HyperParameters,
        (row, shares): (usize, usize),
        rows: usize,
    ) -> RowBuffers<'_> {
        let widest = params.widest();
        let x = row * floats_of(params);
        let between = x + rows * params.hidden;
        RowBuffers {
            x: self.floats.from(x),
            cos_sin: self.cos_sin.from(row * params.rope_dims),
            normed: self.normed.from(row * widest),
            // No row is longer, whatever it is the input of.
            quantized: self.quantized.from(row * ternary::activation_stride(widest)),
            scale: self.scale.from(row + shares * GAP),
            sum: self.sum.from(row + shares * GAP),
            rows_max: self.rows_max,
            q: self.floats.from(between),
            attention: self.floats.from(between + rows * params.attention_width()),
            ffn: self.floats.from(between),
            added: self.added.from(row * params.hidden),
            parts: self.floats.from((x + rows * floats_of(params)).next_multiple_of(LINE_FLOATS)),
        }
    }

    /// Where the logits of a step of `rows` rows are. Where they go through the head together, what lay between norms is not
    /// needed any more by then; of shares, each in its own time, it may be.
    pub(super) fn logits_start(params: &HyperParameters, rows: usize, together: bool) -> usize {
        let floats = if together { params.hidden } else { floats_of(params) };
        (rows * floats).next_multiple_of(LINE_FLOATS)
    }

    /// From float `start` on.
    pub(super) fn floats_from(&self, start: usize) -> SharedFrom<'_, f32> {
        self.floats.from(start)
    }

    pub(super) fn floats_mut(&mut self) -> &mut [f32] {
        self.floats.as_mut_slice()
    }
}

impl Scratch {
    pub(super) fn new(params: &HyperParameters, limits: Limits) -> Self {
        let widest = params.widest();
        let inputs = if params.family.is_embedding() { INPUTS_MAX } else { 1 };
        let own_cols = ternary::padded_cols(widest).max(inputs * ternary::padded_cols(params.hidden));
        Self {
            first: vec![0.0; limits.rows_max * unit_rows_max(params)],
            second: vec![0.0; limits.rows_max * unit_rows_max(params)],
            row: vec![0.0; widest],
            quantized: vec![0; ternary::padded_cols(widest)],
            scale: [0.0],
            sum: [0],
            permuted: vec![0; ternary::permuted_cols(params.hidden)],
            live_columns: LiveColumns::with_capacity(params.feed_forward),
            together: vec![0; ternary::PANEL_ROWS_MAX * ternary::padded_cols(widest)],
            own_panels: vec![0; OWN_PANELS_ROWS_MAX.min(limits.rows_max) * own_cols],
            panels: PanelScratch::new(widest, limits.rows_max),
            live_rows: vec![0; UNIT_ROWS_MAX],
            dense: DenseScratch::new(limits.logits_max),
            screen: ScreenInput::new(limits.logits_max, params.hidden),
            select: SelectScratch::new(params.vocab),
            attention: attention::Scratch::new(params.head_dim),
            probe: None,
        }
    }

    /// The time since the last call went into `phase`.
    pub(super) fn lap(&mut self, phase: Phase) {
        if let Some(probe) = &mut self.probe {
            probe.lap(phase);
        }
    }
}

/// Floats of a row: its residual stream, and what lies between two norms.
fn floats_of(params: &HyperParameters) -> usize {
    params.hidden + between_norms(params)
}

/// Floats of a row between two norms: queries and attention output, or what gate and up gave.
fn between_norms(params: &HyperParameters) -> usize {
    params.feed_forward.max(2 * params.attention_width())
}

/// The most output rows that one worker computes at a time.
pub(super) fn unit_rows_max(params: &HyperParameters) -> usize {
    UNIT_ROWS_MAX.max(head_unit_rows(params.head_dim))
}

/// Output rows of a unit that holds whole heads and whole 16-row tiles.
pub(super) fn head_unit_rows(head_dim: usize) -> usize {
    let tile = ternary::TILE_ROWS;
    head_dim * tile / gcd(head_dim, tile)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// What lies between the single numbers of two shares, so that their workers never write to one cache line.
const GAP: usize = LINE_FLOATS;
/// Floats of a cache line.
const LINE_FLOATS: usize = 16;
/// Rows of the buffers that lie in small pages, so that a step of fewer touches no more than it writes: of a 2B model 128 rows
/// take 1400 of them, fewer than a core's second table of pages holds.
const FEW_ROWS: usize = 128;
/// Queries, keys and values.
pub(super) const INPUTS_MAX: usize = 3;
/// Rows of W that a worker takes at a time: enough to hide the claim, few enough to balance and to stay in cache.
pub(super) const UNIT_ROWS_MAX: usize = 256;
