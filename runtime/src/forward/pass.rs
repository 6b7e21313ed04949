//! The phases of a forward pass. Every worker runs the same phases in the same order; within one, units of work go to
//! whoever asks first, and barriers separate phases that write from phases that read.
//!
//! Per layer: (norm, quantise) -> q, k, v with RoPE and the KV store -> attention -> (sub norm, quantise) -> output
//! projection and residual -> (norm, quantise) -> gate and up -> (sub norm, quantise) -> down and residual. A step of
//! one row normalises in every worker by itself, which costs less than a barrier. Embedding models may have a norm for
//! the input of each projection, so that layers computed together have an input each, and norms of what a block adds.
#![expect(unsafe_code, reason = "workers write disjoint parts of shared buffers, see each SAFETY line")]

use std::cell::Cell;
use std::ops::Range;

use kernels::attention;
use kernels::dense::DenseScratch;
use kernels::ternary::{self, Factored, Gating, PanelScratch, Panels, Product};
use kernels::{Columns, Isa, activation, dense, norm, rope};

use super::Step;
use super::attend::{AttendParts, AttendPlan};
use super::buffers::{RowBuffers, Scratch, UNIT_ROWS_MAX, head_unit_rows};
use super::head::{COUNTERS_AROUND, HeadPlan, HeadRows};
use super::inputs::{Input, InputNorms, OwnRow, Quantized, Rows};
use super::probe::Phase;
use crate::kv::KvCache;
use crate::model::{Activation, Layer, Linear, LinearView, Weights};
use crate::shared::{PerWorker, SharedFrom};
use crate::team::Member;
use crate::tuned::Tuned;

pub(super) struct Pass<'a> {
    pub(super) isa: Isa,
    pub(super) tuned: &'a Tuned,
    pub(super) weights: &'a Weights,
    pub(super) kv: &'a KvCache,
    pub(super) step: &'a Step,
    /// From the first row of `step` on.
    pub(super) buffers: RowBuffers<'a>,
    pub(super) scratch: &'a PerWorker<Scratch>,
    /// From the first entry of the step's logits on, and which entry that is for `each`.
    pub(super) logits: SharedFrom<'a, f32>,
    pub(super) first_logit: usize,
    pub(super) vocab: usize,
    pub(super) attend_plan: &'a AttendPlan,
    pub(super) attend_parts: &'a AttendParts,
    pub(super) plan: &'a HeadPlan,
    pub(super) head: HeadRows<'a>,
    pub(super) each: &'a (dyn Fn(usize, &mut [f32], usize) + Sync),
}

impl Pass<'_> {
    pub(super) fn run(&self, member: Member<'_>) {
        // SAFETY: each worker asks for its own scratch, once.
        let scratch = unsafe { self.scratch.get(member.index) };
        if let Some(probe) = &mut scratch.probe {
            probe.begin();
        }
        self.embed(member);
        Self::barrier(member, scratch, Phase::Embed);
        for (index, layer) in self.weights.layers.iter().enumerate() {
            let counter = COUNTERS_AROUND + index * COUNTERS_PER_LAYER;
            self.attention_block(member, scratch, (index, layer), counter);
            self.feed_forward_block(member, scratch, (index, layer), counter + 6);
        }
        self.head(member, scratch);
    }

    /// Waits for the others after `phase`.
    pub(super) fn barrier(member: Member<'_>, scratch: &mut Scratch, phase: Phase) {
        scratch.lap(phase);
        member.barrier();
        scratch.lap(Phase::Wait);
    }

    pub(super) fn rows(&self) -> usize {
        self.step.tokens.len()
    }

    fn embed(&self, member: Member<'_>) {
        let (weights, hidden) = (self.weights, self.weights.params.hidden);
        while let Some(row) = member.claim(0, self.rows()) {
            // SAFETY: the row was claimed by this worker alone.
            let x = unsafe { self.buffers.x.write(row * hidden..(row + 1) * hidden) };
            match weights.view(&weights.embedding) {
                LinearView::Dense(table) => {
                    dense::dequantize_row(self.isa, table, self.step.tokens[row] as usize, x);
                }
                LinearView::Ternary(_) => unreachable!("the loader keeps embeddings dense"),
            }
            if let Some(factor) = weights.params.embedding_scale {
                activation::scale(self.isa, x, factor);
            }
        }
    }

    fn attention_block(
        &self,
        member: Member<'_>,
        scratch: &mut Scratch,
        (index, layer): (usize, &Layer),
        counter: usize,
    ) {
        let params = &self.weights.params;
        let rows = Rows {
            buffer: self.buffers.x,
            width: params.hidden,
            count: self.rows(),
            pick: None,
            norm: Some(&layer.attn_norm),
            inputs: InputNorms::of([&layer.q, &layer.k, &layer.v]),
            floats: [&layer.q, &layer.k, &layer.v].iter().any(|l| !l.is_ternary()),
            gated: false,
        };
        self.prepare(member, scratch, &rows, counter);
        self.project(member, scratch, (index, layer), counter + 1);
        Self::barrier(member, scratch, Phase::Project);
        self.attend(member, scratch, index, counter + 2);
        Self::barrier(member, scratch, Phase::Attend);
        let rows = Rows {
            buffer: self.buffers.attention,
            width: params.attention_width(),
            count: self.rows(),
            pick: None,
            norm: layer.attn_sub_norm.as_deref(),
            inputs: InputNorms::NONE,
            floats: !layer.o.is_ternary(),
            gated: false,
        };
        self.prepare(member, scratch, &rows, counter + 3);
        self.linear_to_residual(member, scratch, (&layer.o, layer.attn_post_norm.as_deref()), counter + 4);
        Self::barrier(member, scratch, Phase::Output);
    }

    fn feed_forward_block(
        &self,
        member: Member<'_>,
        scratch: &mut Scratch,
        (index, layer): (usize, &Layer),
        counter: usize,
    ) {
        let params = &self.weights.params;
        let rows = Rows {
            buffer: self.buffers.x,
            width: params.hidden,
            count: self.rows(),
            pick: None,
            norm: Some(&layer.ffn_norm),
            inputs: InputNorms::of([&layer.gate, &layer.up]),
            floats: !layer.gate.is_ternary() || !layer.up.is_ternary(),
            gated: false,
        };
        self.prepare(member, scratch, &rows, counter);
        match self.up_rows(index) {
            Some(up_rows) => self.gate_then_up(member, scratch, (layer, up_rows), counter + 1),
            None => self.gate_and_up(member, scratch, layer, counter + 1),
        }
        Self::barrier(member, scratch, Phase::GateUp);
        let rows = Rows {
            buffer: self.buffers.ffn,
            width: params.feed_forward,
            count: self.rows(),
            pick: None,
            norm: layer.ffn_sub_norm.as_deref(),
            inputs: InputNorms::NONE,
            floats: !layer.down.is_ternary(),
            gated: true,
        };
        self.prepare(member, scratch, &rows, counter + 2);
        match self.down_columns(index, scratch) {
            Some(columns) => self.down_to_residual(member, scratch, (layer, columns), counter + 3),
            None => {
                self.linear_to_residual(member, scratch, (&layer.down, layer.ffn_post_norm.as_deref()), counter + 3);
            }
        }
        Self::barrier(member, scratch, Phase::Down);
    }

    /// `out` (rows x range) = range of W times each input row.
    pub(super) fn linear(
        &self,
        linear: &Linear,
        range: Range<usize>,
        input: Input<'_>,
        out: &mut [f32],
        work: &mut Work<'_>,
    ) {
        let width = range.len();
        match (self.weights.view(linear), input.quantized) {
            (LinearView::Ternary(matrix), Quantized::Panels(x)) => {
                let product = Product::Plain(Factored { matrix, factor: linear.output_scale.unwrap_or(1.0) });
                let out = Columns { cells: Cell::from_mut(out).as_slice_of_cells(), stride: width };
                return ternary::linear_panels(self.isa, product, range, usize::MAX, x, out, work.panels);
            }
            (LinearView::Ternary(w), Quantized::Rows(x)) => {
                let isa = self.tuned.isa(w.rows(), w.cols(), x.scale.len()).unwrap_or(self.isa);
                ternary::linear(isa, w, range, x, out);
            }
            (LinearView::Dense(w), _) => dense::linear(self.isa, w, range, input.floats, out, work.dense),
        }
        if let Some(scale) = linear.output_scale {
            for value in out {
                *value *= scale;
            }
        }
    }

    /// The weights and the panels, where a linear layer can write its results to their places by itself.
    fn direct<'s>(&'s self, linear: &Linear, input: Input<'s>) -> Option<(Factored<'s>, Panels<'s>)> {
        match (self.weights.view(linear), input.quantized) {
            (LinearView::Ternary(matrix), Quantized::Panels(x)) => {
                Some((Factored { matrix, factor: linear.output_scale.unwrap_or(1.0) }, x))
            }
            _ => None,
        }
    }

    /// Puts the columns `range` of `product` in their places in a buffer of rows of `width`; `next` is where this worker is
    /// likely to go on.
    fn write_directly(
        &self,
        product: Product<'_>,
        x: Panels<'_>,
        (range, next): (Range<usize>, usize),
        (buffer, width): (SharedFrom<'_, f32>, usize),
        panels: &mut PanelScratch,
    ) {
        let end = (x.scale.len() - 1) * width + range.end;
        // SAFETY: the columns of `range` were claimed by this worker alone.
        let cells = unsafe { buffer.cells(range.start..end) };
        ternary::linear_panels(self.isa, product, range, next, x, Columns { cells, stride: width }, panels);
    }

    /// Queries, keys and values: a unit is a run of whole heads, rotated and stored by the worker that computed it.
    fn project(&self, member: Member<'_>, scratch: &mut Scratch, (index, layer): (usize, &Layer), counter: usize) {
        let (params, n) = (&self.weights.params, self.rows());
        let unit = head_unit_rows(params.head_dim);
        let kv_units = layer.k.rows.div_ceil(unit);
        let units = kv_units + layer.q.rows.div_ceil(unit);
        let inputs = InputNorms::of([&layer.q, &layer.k, &layer.v]);
        while let Some(claimed) = member.claim(counter, units) {
            let (own, first, second, mut work) = scratch.split();
            let [q_input, k_input, v_input] = [0, 1, 2].map(|i| self.input_of(own, inputs.place(i), params.hidden, n));
            if claimed < kv_units {
                let range = claimed * unit..layer.k.rows.min((claimed + 1) * unit);
                let (k, v) = (&mut first[..n * range.len()], &mut second[..n * range.len()]);
                self.linear(&layer.k, range.clone(), k_input, k, &mut work);
                self.linear(&layer.v, range.clone(), v_input, v, &mut work);
                self.rotate(range.len(), layer.k_norm.as_deref(), k);
                self.store(index, range, k, v);
            } else {
                let start = (claimed - kv_units) * unit;
                let range = start..layer.q.rows.min(start + unit);
                let width = params.attention_width();
                let q_norm = layer.q_norm.as_deref();
                if let Some((w, x)) = self.direct(&layer.q, q_input) {
                    let place = (range.clone(), start + unit * member.team_size());
                    self.write_directly(Product::Plain(w), x, place, (self.buffers.q, width), work.panels);
                    self.rotate_queries(width, q_norm, range);
                } else {
                    let q = &mut first[..n * range.len()];
                    self.linear(&layer.q, range.clone(), q_input, q, &mut work);
                    self.rotate(range.len(), q_norm, q);
                    self.scatter(self.buffers.q, width, range, q);
                }
            }
        }
    }

    /// Applies the norm of a head, where there is one, and RoPE to `rows x width` values, each row whole heads.
    fn rotate(&self, width: usize, norm: Option<&[f32]>, values: &mut [f32]) {
        for segment in &self.step.segments {
            for i in 0..segment.rows {
                let row = &mut values[(segment.first_row + i) * width..][..width];
                self.rotate_row(segment.first_position + i, norm, row);
            }
        }
    }

    /// The same for the columns `range` of the queries, in their places.
    fn rotate_queries(&self, width: usize, norm: Option<&[f32]>, range: Range<usize>) {
        for segment in &self.step.segments {
            for i in 0..segment.rows {
                let at = (segment.first_row + i) * width;
                // SAFETY: the columns of `range` were claimed by this worker alone.
                let row = unsafe { self.buffers.q.write(at + range.start..at + range.end) };
                self.rotate_row(segment.first_position + i, norm, row);
            }
        }
    }

    fn rotate_row(&self, position: usize, norm: Option<&[f32]>, row: &mut [f32]) {
        let params = &self.weights.params;
        for head in row.chunks_exact_mut(params.head_dim) {
            if let Some(weight) = norm {
                norm::rms_norm_in_place(self.isa, head, weight, params.norm_eps);
            }
            rope::apply(self.isa, &self.weights.rope, params.family.rope_kind(), position, head);
        }
    }

    /// Puts keys and values of the heads in `range` into the cache.
    fn store(&self, layer: usize, range: Range<usize>, k: &[f32], v: &[f32]) {
        let (head_dim, width) = (self.weights.params.head_dim, range.len());
        for segment in &self.step.segments {
            for i in 0..segment.rows {
                let (row, position) = (segment.first_row + i, segment.first_position + i);
                for (j, head) in (range.start / head_dim..range.end / head_dim).enumerate() {
                    // SAFETY: the heads of `range` were claimed by this worker alone; attention reads after a barrier.
                    let block = unsafe { self.kv.head_block(segment.slot, layer, head, position) };
                    let at = row * width + j * head_dim;
                    let (k, v) = (&k[at..at + head_dim], &v[at..at + head_dim]);
                    attention::store(self.isa, self.kv.layout(), block, position % attention::BLOCK, k, v);
                }
            }
        }
    }

    /// Copies `rows x range` values to the columns `range` of a shared buffer.
    fn scatter(&self, buffer: SharedFrom<'_, f32>, width: usize, range: Range<usize>, values: &[f32]) {
        for (row, part) in values.chunks_exact(range.len()).enumerate() {
            // SAFETY: the columns of `range` were claimed by this worker alone.
            let to = unsafe { buffer.write(row * width + range.start..row * width + range.end) };
            to.copy_from_slice(part);
        }
    }

    /// A linear layer whose results are added to the residual stream, normalised first where there is a norm for that.
    fn linear_to_residual(
        &self,
        member: Member<'_>,
        scratch: &mut Scratch,
        (linear, post_norm): (&Linear, Option<&[f32]>),
        counter: usize,
    ) {
        let (n, hidden) = (self.rows(), self.weights.params.hidden);
        let unit = unit_rows(linear.rows, n, member.team_size());
        while let Some(claimed) = member.claim(counter, linear.rows.div_ceil(unit)) {
            let range = claimed * unit..linear.rows.min((claimed + 1) * unit);
            let (own, first, _, mut work) = scratch.split();
            let input = self.input(own, linear.cols, n);
            if let Some((w, x)) = self.direct(linear, input) {
                let (product, to) = match post_norm {
                    None => (Product::Added(w), self.buffers.x),
                    Some(_) => (Product::Plain(w), self.buffers.added),
                };
                let place = (range.clone(), range.start + unit * member.team_size());
                self.write_directly(product, x, place, (to, hidden), work.panels);
                continue;
            }
            let out = &mut first[..n * range.len()];
            self.linear(linear, range.clone(), input, out, &mut work);
            if post_norm.is_some() {
                self.scatter(self.buffers.added, hidden, range, out);
                continue;
            }
            for (row, part) in out.chunks_exact(range.len()).enumerate() {
                // SAFETY: the columns of `range` were claimed by this worker alone.
                let x = unsafe { self.buffers.x.write(row * hidden + range.start..row * hidden + range.end) };
                activation::add_assign(self.isa, x, part);
            }
        }
        if let Some(weight) = post_norm {
            member.barrier();
            self.add_normed(member, weight, counter + 1);
        }
    }

    /// Normalises what a block adds, row by row, and adds it.
    fn add_normed(&self, member: Member<'_>, weight: &[f32], counter: usize) {
        let params = &self.weights.params;
        while let Some(row) = member.claim(counter, self.rows()) {
            let range = row * params.hidden..(row + 1) * params.hidden;
            // SAFETY: the row was claimed by this worker alone; the phase before wrote it.
            let added = unsafe { self.buffers.added.write(range.clone()) };
            // SAFETY: as above.
            let x = unsafe { self.buffers.x.write(range) };
            norm::rms_norm_in_place(self.isa, added, weight, params.norm_eps);
            activation::add_assign(self.isa, x, added);
        }
    }

    fn gate_and_up(&self, member: Member<'_>, scratch: &mut Scratch, layer: &Layer, counter: usize) {
        let (params, n) = (&self.weights.params, self.rows());
        let unit = unit_rows(params.feed_forward, n, member.team_size());
        let inputs = InputNorms::of([&layer.gate, &layer.up]);
        let gating = match params.family.activation() {
            Activation::SquaredRelu => Some(Gating::SquaredRelu),
            Activation::Silu => Some(Gating::Silu),
            Activation::Gelu => None,
        };
        let gating = gating.filter(|_| inputs.count == 1);
        while let Some(claimed) = member.claim(counter, params.feed_forward.div_ceil(unit)) {
            let range = claimed * unit..params.feed_forward.min((claimed + 1) * unit);
            let (own, first, second, mut work) = scratch.split();
            let [input, up_input] = [0, 1].map(|i| self.input_of(own, inputs.place(i), params.hidden, n));
            let direct = (self.direct(&layer.gate, input), self.direct(&layer.up, input), gating);
            if let (Some((gate, x)), Some((up, _)), Some(gating)) = direct {
                let to = (self.buffers.ffn, params.feed_forward);
                let place = (range.clone(), range.start + unit * member.team_size());
                self.write_directly(Product::Gated { gate, up, gating }, x, place, to, work.panels);
                continue;
            }
            let (gate, up) = (&mut first[..n * range.len()], &mut second[..n * range.len()]);
            self.linear(&layer.gate, range.clone(), input, gate, &mut work);
            self.linear(&layer.up, range.clone(), up_input, up, &mut work);
            for (row, (gate, up)) in gate.chunks_exact(range.len()).zip(up.chunks_exact(range.len())).enumerate() {
                let at = row * params.feed_forward;
                // SAFETY: the columns of `range` were claimed by this worker alone.
                let out = unsafe { self.buffers.ffn.write(at + range.start..at + range.end) };
                match params.family.activation() {
                    Activation::SquaredRelu => activation::relu2_mul(self.isa, gate, up, out),
                    Activation::Silu => activation::silu_mul(self.isa, gate, up, out),
                    Activation::Gelu => activation::gelu_mul(self.isa, gate, up, out),
                }
            }
        }
    }

    /// All logits of the wanted rows.
    pub(super) fn full_head(&self, member: Member<'_>, scratch: &mut Scratch) {
        let (weights, n) = (self.weights, self.step.logits.len());
        let (head, vocab) = (weights.head(), self.vocab);
        let rows = self.head_rows();
        self.prepare(member, scratch, &rows, 1);
        let unit = unit_rows(vocab, n, member.team_size());
        while let Some(claimed) = member.claim(2, vocab.div_ceil(unit)) {
            let range = claimed * unit..vocab.min((claimed + 1) * unit);
            let (own, first, _, mut work) = scratch.split();
            let out = &mut first[..n * range.len()];
            self.linear(head, range.clone(), self.input(own, weights.params.hidden, n), out, &mut work);
            self.scatter(self.logits, vocab, range, out);
        }
    }

    /// The wanted rows, normalised: the input of the head.
    pub(super) fn head_rows(&self) -> Rows<'_> {
        Rows {
            buffer: self.buffers.x,
            width: self.weights.params.hidden,
            count: self.step.logits.len(),
            pick: Some(&self.step.logits),
            norm: Some(&self.weights.output_norm),
            inputs: InputNorms::NONE,
            floats: !self.weights.head().is_ternary(),
            gated: false,
        }
    }
}

/// Working memory of the linear layers.
pub(super) struct Work<'a> {
    panels: &'a mut PanelScratch,
    dense: &'a mut DenseScratch,
}

impl Scratch {
    /// The own input row beside the buffers that are written from it.
    pub(super) fn split(&mut self) -> (OwnRow<'_>, &mut [f32], &mut [f32], Work<'_>) {
        let own = OwnRow {
            row: &self.row,
            quantized: &self.quantized,
            panels: &self.own_panels,
            scale: &self.scale,
            sum: &self.sum,
        };
        let work = Work { panels: &mut self.panels, dense: &mut self.dense };
        (own, &mut self.first, &mut self.second, work)
    }
}

/// Output rows of a unit: about [`UNITS_PER_WORKER`] units a worker, whole pairs of 16-row tiles, bounded by the
/// scratch and, where many input rows share them, by the cache.
pub(super) fn unit_rows(rows: usize, n: usize, workers: usize) -> usize {
    let most = if n > CACHED_INPUT_ROWS { ternary::PANEL_UNIT_ROWS } else { UNIT_ROWS_MAX };
    rows.div_ceil(workers * UNITS_PER_WORKER).next_multiple_of(2 * ternary::TILE_ROWS).min(most)
}

/// Query rows of one attention unit, and where there are many of them.
pub(super) const QUERY_TILE: usize = 32;
pub(super) const QUERY_TILE_MAX: usize = 2 * QUERY_TILE;
pub(super) const UNITS_PER_WORKER: usize = 6;
const CACHED_INPUT_ROWS: usize = 8;
pub(super) const COUNTERS_PER_LAYER: usize = 11;
