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

use super::attend::{AttendParts, AttendPlan};
use super::buffers::{RowBuffers, Scratch, UNIT_ROWS_MAX, head_unit_rows};
use super::head::{COUNTERS_AROUND, HeadPlan, HeadRows};
use super::inputs::{Input, InputNorms, OwnRow, Quantized, Rows};
use super::probe::Phase;
use super::{Step, Told};
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
    pub(super) told: Told<'a>,
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
            // SAFETY: as above.
            let cos_sin = unsafe { self.buffers.cos_sin.write(self.cos_sin_of(row)) };
            match weights.view(&weights.embedding) {
                LinearView::Dense(table) => {
                    dense::dequantize_row(self.isa, table, self.step.tokens[row] as usize, x);
                }
                LinearView::Ternary(_) => unreachable!("the loader keeps embeddings dense"),
            }
            if let Some(factor) = weights.params.embedding_scale {
                activation::scale(self.isa, x, factor);
            }
            let position = self.position(row);
            weights.rope.cos_sin(self.isa, position, cos_sin);
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
        self.linear_to_residual(member, scratch, (&layer.o, layer.attn_post_norm.as_deref(), false), counter + 4);
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
                let down = (&layer.down, layer.ffn_post_norm.as_deref(), true);
                self.linear_to_residual(member, scratch, down, counter + 3);
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

    /// Puts the part `own` of `product` in its place in a buffer of rows of `width`; this worker is likely to go on with the row
    /// of W that is `ahead` of its first one.
    fn write_directly(
        &self,
        product: Product<'_>,
        x: Panels<'_>,
        (own, ahead): (&Part, usize),
        (buffer, width): (SharedFrom<'_, f32>, usize),
        panels: &mut PanelScratch,
    ) {
        let (rows, range) = (own.rows.clone(), own.range.clone());
        // SAFETY: these columns of these rows were claimed by this worker alone.
        let cells = unsafe { buffer.cells(rows.start * width + range.start..(rows.end - 1) * width + range.end) };
        let next = range.start + ahead;
        ternary::linear_panels(self.isa, product, range, next, x.part(rows), Columns { cells, stride: width }, panels);
    }

    /// Queries, keys and values: a unit is a run of whole heads, rotated and stored by the worker that computed it.
    fn project(&self, member: Member<'_>, scratch: &mut Scratch, (index, layer): (usize, &Layer), counter: usize) {
        let (params, n) = (&self.weights.params, self.rows());
        let unit = head_unit_rows(params.head_dim);
        let of_kv = self.parts(&layer.k, unit);
        let of_q = Parts { height: layer.q.rows, units: layer.q.rows.div_ceil(unit), ..of_kv };
        let inputs = InputNorms::of([&layer.q, &layer.k, &layer.v]);
        // Of the same rows first keys and values, then queries.
        while let Some(claimed) = member.claim(counter, of_kv.blocks * (of_kv.units + of_q.units)) {
            let (block, claimed) = (claimed / (of_kv.units + of_q.units), claimed % (of_kv.units + of_q.units));
            let (scratch_row, first, second, mut work) = scratch.split();
            let [q_input, k_input, v_input] =
                [0, 1, 2].map(|i| self.input_of(scratch_row, inputs.place(i), params.hidden, n));
            if claimed < of_kv.units {
                let own = of_kv.part(block, claimed);
                let len = own.rows.len() * own.range.len();
                let (k, v) = (&mut first[..len], &mut second[..len]);
                let [k_input, v_input] = [k_input, v_input].map(|input| input.part(own.rows.clone()));
                self.linear(&layer.k, own.range.clone(), k_input, k, &mut work);
                self.linear(&layer.v, own.range.clone(), v_input, v, &mut work);
                self.rotate(own.range.len(), layer.k_norm.as_deref(), own.rows.clone(), k);
                self.store(index, &own, k, v);
            } else {
                let own = of_q.part(block, claimed - of_kv.units);
                let width = params.attention_width();
                let q_norm = layer.q_norm.as_deref();
                if let Some((w, x)) = self.direct(&layer.q, q_input) {
                    let place = (&own, unit * member.team_size());
                    self.write_directly(Product::Plain(w), x, place, (self.buffers.q, width), work.panels);
                    self.rotate_queries(width, q_norm, &own);
                } else {
                    let q = &mut first[..own.rows.len() * own.range.len()];
                    self.linear(&layer.q, own.range.clone(), q_input.part(own.rows.clone()), q, &mut work);
                    self.rotate(own.range.len(), q_norm, own.rows.clone(), q);
                    self.scatter(self.buffers.q, width, &own, q);
                }
            }
        }
    }

    /// How the work of a layer is cut for all rows of the step.
    fn parts(&self, linear: &Linear, unit: usize) -> Parts {
        Parts::of(self.isa, self.rows(), linear, unit)
    }

    /// Rows of the step, and for each the slot and the position that it belongs to.
    fn placed(&self, rows: Range<usize>) -> impl Iterator<Item = (usize, usize, usize)> {
        self.step.segments.iter().flat_map(move |segment| {
            let end = rows.end.min(segment.first_row + segment.rows);
            let own = rows.start.max(segment.first_row)..end;
            own.map(move |row| (row, segment.slot, segment.first_position + row - segment.first_row))
        })
    }

    /// Applies the norm of a head, where there is one, and RoPE to `rows x width` values, each row whole heads.
    fn rotate(&self, width: usize, norm: Option<&[f32]>, rows: Range<usize>, values: &mut [f32]) {
        for row in rows.clone() {
            self.rotate_row(row, norm, &mut values[(row - rows.start) * width..][..width]);
        }
    }

    /// The same for queries in their places.
    fn rotate_queries(&self, width: usize, norm: Option<&[f32]>, own: &Part) {
        for row in own.rows.clone() {
            let at = row * width;
            // SAFETY: these columns of these rows were claimed by this worker alone.
            let values = unsafe { self.buffers.q.write(at + own.range.start..at + own.range.end) };
            self.rotate_row(row, norm, values);
        }
    }

    /// The position of a row in its sequence.
    fn position(&self, row: usize) -> usize {
        let segments = &self.step.segments;
        let segment = &segments[segments.partition_point(|segment| segment.first_row + segment.rows <= row)];
        segment.first_position + row - segment.first_row
    }

    /// Where the cosines and sines of a row are.
    fn cos_sin_of(&self, row: usize) -> Range<usize> {
        let len = self.weights.rope.cos_sin_len();
        row * len..(row + 1) * len
    }

    fn rotate_row(&self, row: usize, norm: Option<&[f32]>, values: &mut [f32]) {
        let params = &self.weights.params;
        // SAFETY: they were written before the first barrier and are only read now.
        let cos_sin = unsafe { self.buffers.cos_sin.read(self.cos_sin_of(row)) };
        for head in values.chunks_exact_mut(params.head_dim) {
            if let Some(weight) = norm {
                norm::rms_norm_in_place(self.isa, head, weight, params.norm_eps);
            }
            rope::apply(self.isa, cos_sin, params.family.rope_kind(), head);
        }
    }

    /// Puts keys and values of whole heads into the cache.
    fn store(&self, layer: usize, own: &Part, k: &[f32], v: &[f32]) {
        let (head_dim, width) = (self.weights.params.head_dim, own.range.len());
        for (row, slot, position) in self.placed(own.rows.clone()) {
            for (j, head) in (own.range.start / head_dim..own.range.end / head_dim).enumerate() {
                // SAFETY: these heads of these rows were claimed by this worker alone; attention reads after a barrier.
                let block = unsafe { self.kv.head_block(slot, layer, head, position) };
                let at = (row - own.rows.start) * width + j * head_dim;
                let (k, v) = (&k[at..at + head_dim], &v[at..at + head_dim]);
                attention::store(self.isa, self.kv.layout(), block, position % attention::BLOCK, k, v);
            }
        }
    }

    /// Copies `rows x range` values to their places in a shared buffer.
    fn scatter(&self, buffer: SharedFrom<'_, f32>, width: usize, own: &Part, values: &[f32]) {
        for (row, part) in own.rows.clone().zip(values.chunks_exact(own.range.len())) {
            // SAFETY: these columns of these rows were claimed by this worker alone.
            let to = unsafe { buffer.write(row * width + own.range.start..row * width + own.range.end) };
            to.copy_from_slice(part);
        }
    }

    /// A linear layer whose results are added to the residual stream, normalised first where there is a norm for that; `gated`
    /// says that its input is what a gated unit gave.
    fn linear_to_residual(
        &self,
        member: Member<'_>,
        scratch: &mut Scratch,
        (linear, post_norm, gated): (&Linear, Option<&[f32]>, bool),
        counter: usize,
    ) {
        let (n, hidden) = (self.rows(), self.weights.params.hidden);
        let unit = unit_rows(linear.rows, n, member.team_size());
        let parts = self.parts(linear, unit);
        while let Some(claimed) = member.claim(counter, parts.blocks * parts.units) {
            let own = parts.part(claimed / parts.units, claimed % parts.units);
            let (scratch_row, first, _, mut work) = scratch.split();
            let input = if gated {
                self.gated_input(scratch_row, linear.cols, n)
            } else {
                self.input(scratch_row, linear.cols, n)
            };
            if let Some((w, x)) = self.direct(linear, input) {
                let (product, to) = match post_norm {
                    None => (Product::Added(w), self.buffers.x),
                    Some(_) => (Product::Plain(w), self.buffers.added),
                };
                self.write_directly(product, x, (&own, unit * member.team_size()), (to, hidden), work.panels);
                continue;
            }
            let out = &mut first[..own.rows.len() * own.range.len()];
            self.linear(linear, own.range.clone(), input.part(own.rows.clone()), out, &mut work);
            if post_norm.is_some() {
                self.scatter(self.buffers.added, hidden, &own, out);
                continue;
            }
            for (row, part) in own.rows.clone().zip(out.chunks_exact(own.range.len())) {
                let at = row * hidden;
                // SAFETY: these columns of these rows were claimed by this worker alone.
                let x = unsafe { self.buffers.x.write(at + own.range.start..at + own.range.end) };
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
        let parts = self.parts(&layer.gate, unit);
        while let Some(claimed) = member.claim(counter, parts.blocks * parts.units) {
            let own = parts.part(claimed / parts.units, claimed % parts.units);
            let (scratch_row, first, second, mut work) = scratch.split();
            let [input, up_input] = [0, 1].map(|i| self.input_of(scratch_row, inputs.place(i), params.hidden, n));
            let direct = (self.direct(&layer.gate, input), self.direct(&layer.up, input), gating);
            if let (Some((gate, x)), Some((up, _)), Some(gating)) = direct {
                let (product, to) = (Product::Gated { gate, up, gating }, (self.buffers.ffn, params.feed_forward));
                self.write_directly(product, x, (&own, unit * member.team_size()), to, work.panels);
                continue;
            }
            let (range, width) = (&own.range, own.range.len());
            let (gate, up) = (&mut first[..own.rows.len() * width], &mut second[..own.rows.len() * width]);
            let [input, up_input] = [input, up_input].map(|input| input.part(own.rows.clone()));
            self.linear(&layer.gate, range.clone(), input, gate, &mut work);
            self.linear(&layer.up, range.clone(), up_input, up, &mut work);
            for (row, (gate, up)) in own.rows.clone().zip(gate.chunks_exact(width).zip(up.chunks_exact(width))) {
                let at = row * params.feed_forward;
                // SAFETY: these columns of these rows were claimed by this worker alone.
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
            let own = Part { rows: 0..n, range: claimed * unit..vocab.min((claimed + 1) * unit) };
            let (scratch_row, first, _, mut work) = scratch.split();
            let out = &mut first[..n * own.range.len()];
            let input = self.input(scratch_row, weights.params.hidden, n);
            self.linear(head, own.range.clone(), input, out, &mut work);
            self.scatter(self.logits, vocab, &own, out);
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

/// What a worker claims of a linear layer: some rows of the input, and some rows of W, columns of the output.
struct Part {
    rows: Range<usize>,
    range: Range<usize>,
}

/// All of a linear layer: blocks of input rows that stay in a cache while all units of rows of W meet them.
#[derive(Clone, Copy)]
struct Parts {
    n: usize,
    at_once: usize,
    height: usize,
    unit: usize,
    blocks: usize,
    units: usize,
}

impl Parts {
    fn of(isa: Isa, n: usize, linear: &Linear, unit: usize) -> Self {
        let at_once = if linear.is_ternary() { ternary::rows_at_once(isa, n, linear.cols) } else { n };
        let (height, units) = (linear.rows, linear.rows.div_ceil(unit));
        Self { n, at_once, height, unit, blocks: n.div_ceil(at_once.max(1)), units }
    }

    fn part(&self, block: usize, unit: usize) -> Part {
        let cut = |index: usize, size: usize, end: usize| index * size..end.min((index + 1) * size);
        Part { rows: cut(block, self.at_once, self.n), range: cut(unit, self.unit, self.height) }
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
/// scratch and, where many input rows share them, by the cache. Smaller ones, down to half of that, where they leave the workers
/// less uneven shares: of 6912 rows 36 units of 192 for two workers, where 27 of 256 are 14 and 13.
pub(super) fn unit_rows(rows: usize, n: usize, workers: usize) -> usize {
    let most = if n > CACHED_INPUT_ROWS { ternary::PANEL_UNIT_ROWS } else { UNIT_ROWS_MAX };
    let pair = 2 * ternary::TILE_ROWS;
    let wanted = rows.div_ceil(workers * UNITS_PER_WORKER).next_multiple_of(pair).min(most);
    let largest_share = |unit: usize| rows.div_ceil(unit).div_ceil(workers) * unit;
    let units = (1..=wanted / pair).rev().map(|pairs| pairs * pair).filter(|unit| unit * 2 >= wanted);
    units.min_by_key(|&unit| largest_share(unit) * workers * SHARE_STEPS / rows).unwrap_or(wanted)
}

/// Shares that differ by less than one in so many count as even.
const SHARE_STEPS: usize = 64;
/// Query rows of one attention unit, and where there are many of them.
pub(super) const QUERY_TILE: usize = 32;
pub(super) const QUERY_TILE_MAX: usize = 2 * QUERY_TILE;
pub(super) const UNITS_PER_WORKER: usize = 6;
const CACHED_INPUT_ROWS: usize = 8;
pub(super) const COUNTERS_PER_LAYER: usize = 11;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_leave_workers_even_shares() {
        for (rows, n, workers, unit) in [
            (2560, 1, 2, 160),
            (6912, 8, 2, 192),
            (6912, 32, 2, 128),
            (2560, 32, 2, 128),
            (4096, 1, 2, 256),
            (6912, 32, 8, 96),
            (128_256, 1, 2, 256),
            (128_256, 32, 1, 128),
            (64, 1, 1, 32),
            (16, 5, 4, 32),
        ] {
            assert_eq!(unit_rows(rows, n, workers), unit, "{rows} rows, {n} of input, {workers} workers");
        }
    }
}
