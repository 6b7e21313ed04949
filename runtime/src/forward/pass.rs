//! The phases of a forward pass. Every worker runs the same phases in the same order; within one, units of work go to
//! whoever asks first, and barriers separate phases that write from phases that read.
//!
//! Per layer: (norm, quantise) -> q, k, v with RoPE and the KV store -> attention -> (sub norm, quantise) -> output
//! projection and residual -> (norm, quantise) -> gate and up -> (sub norm, quantise) -> down and residual. A step of
//! one row normalises in every worker by itself, which costs less than a barrier.
#![expect(unsafe_code, reason = "workers write disjoint parts of shared buffers, see each SAFETY line")]

use std::cell::Cell;
use std::ops::Range;

use kernels::attention::{self, Shape};
use kernels::dense::DenseScratch;
use kernels::ternary::{self, Activations, Columns, Factored, Gating, PanelScratch, Panels, Product};
use kernels::{Isa, activation, dense, norm, rope};

use super::buffers::{Buffers, Scratch, UNIT_ROWS_MAX, head_unit_rows};
use super::head::{COUNTERS_AROUND, HeadBuffers, HeadPlan};
use super::probe::{Phase, Probe};
use super::{Segment, Step};
use crate::kv::KvCache;
use crate::model::{Activation, Layer, Linear, LinearView, Weights};
use crate::shared::{PerWorker, Shared};
use crate::team::Member;
use crate::tuned::Tuned;

pub(super) struct Pass<'a> {
    pub(super) isa: Isa,
    pub(super) tuned: &'a Tuned,
    pub(super) weights: &'a Weights,
    pub(super) kv: &'a KvCache,
    pub(super) step: &'a Step,
    pub(super) buffers: &'a Buffers,
    pub(super) scratch: &'a PerWorker<Scratch>,
    pub(super) logits: &'a Shared<f32>,
    pub(super) vocab: usize,
    pub(super) plan: &'a HeadPlan,
    pub(super) head: &'a HeadBuffers,
    pub(super) each: &'a (dyn Fn(usize, &mut [f32], usize) + Sync),
}

/// The input of a linear layer: int8 for ternary weights, f32 for the others.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    quantized: Quantized<'a>,
    floats: &'a [f32],
}

/// Many rows go in panels where the instruction set prefers it.
#[derive(Clone, Copy)]
enum Quantized<'a> {
    Rows(Activations<'a>),
    Panels(Panels<'a>),
}

/// Where the rows of a linear's input come from.
pub(super) struct Rows<'a> {
    buffer: &'a Shared<f32>,
    width: usize,
    count: usize,
    /// Row of the buffer that input row `i` is, where they are not the same.
    pick: Option<&'a [usize]>,
    norm: Option<&'a [f32]>,
    /// Whether any weight that reads this input is dense.
    floats: bool,
    /// Whether they are what a gated unit gave.
    gated: bool,
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
            self.feed_forward_block(member, scratch, (index, layer), counter + 5);
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
            buffer: &self.buffers.x,
            width: params.hidden,
            count: self.rows(),
            pick: None,
            norm: Some(&layer.attn_norm),
            floats: [&layer.q, &layer.k, &layer.v].iter().any(|l| !l.is_ternary()),
            gated: false,
        };
        self.prepare(member, scratch, &rows, counter);
        self.project(member, scratch, (index, layer), counter + 1);
        Self::barrier(member, scratch, Phase::Project);
        self.attend(member, scratch, index, counter + 2);
        Self::barrier(member, scratch, Phase::Attend);
        let rows = Rows {
            buffer: &self.buffers.attention,
            width: params.attention_width(),
            count: self.rows(),
            pick: None,
            norm: layer.attn_sub_norm.as_deref(),
            floats: !layer.o.is_ternary(),
            gated: false,
        };
        self.prepare(member, scratch, &rows, counter + 3);
        self.linear_to_residual(member, scratch, &layer.o, counter + 4);
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
            buffer: &self.buffers.x,
            width: params.hidden,
            count: self.rows(),
            pick: None,
            norm: Some(&layer.ffn_norm),
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
            buffer: &self.buffers.ffn,
            width: params.feed_forward,
            count: self.rows(),
            pick: None,
            norm: layer.ffn_sub_norm.as_deref(),
            floats: !layer.down.is_ternary(),
            gated: true,
        };
        self.prepare(member, scratch, &rows, counter + 2);
        match self.down_columns(index, scratch) {
            Some(columns) => self.down_to_residual(member, scratch, (layer, columns), counter + 3),
            None => self.linear_to_residual(member, scratch, &layer.down, counter + 3),
        }
        Self::barrier(member, scratch, Phase::Down);
    }

    /// Normalises and quantises the input of the next linear layers: into the worker's own scratch for one row, into
    /// the shared buffers, with a barrier, for more.
    fn prepare(&self, member: Member<'_>, scratch: &mut Scratch, rows: &Rows<'_>, counter: usize) {
        if rows.count == 1 {
            self.normalise(rows, 0, &mut scratch.row);
            let padded = ternary::padded_cols(rows.width);
            let quantized = ternary::quantize(self.isa, &scratch.row[..rows.width], &mut scratch.quantized[..padded]);
            (scratch.scale, scratch.sum) = ([quantized.scale], [quantized.sum]);
            if let (true, Some(probe)) = (rows.gated && member.index == 0, &mut scratch.probe) {
                // SAFETY: the previous phase wrote this row, this one only reads it.
                probe.count(unsafe { rows.buffer.read(0..rows.width) }, &scratch.quantized[..padded]);
            }
            scratch.lap(Phase::Prepare);
            return;
        }
        let (stride, padded) = (ternary::activation_stride(rows.width), ternary::padded_cols(rows.width));
        if ternary::prefers_panels(self.isa, rows.count) {
            while let Some(index) = member.claim(counter, ternary::panel_count(rows.count)) {
                let panel = ternary::panel_rows(rows.count, index);
                let together = &mut scratch.together[..panel.len() * padded];
                for (row, q) in panel.clone().zip(together.chunks_exact_mut(padded)) {
                    self.prepare_row(rows, row, (&mut scratch.row, &mut scratch.probe), q);
                }
                // SAFETY: the panel was claimed by this worker alone.
                let q = unsafe { self.buffers.quantized.write(panel.start * padded..panel.end * padded) };
                ternary::interleave(together, panel.len(), q);
            }
        } else {
            while let Some(row) = member.claim(counter, rows.count) {
                // SAFETY: the row was claimed by this worker alone.
                let q = unsafe { self.buffers.quantized.write(row * stride..row * stride + padded) };
                self.prepare_row(rows, row, (&mut scratch.row, &mut scratch.probe), q);
            }
        }
        Self::barrier(member, scratch, Phase::Prepare);
    }

    /// Normalises and quantises a row that this worker claimed.
    fn prepare_row(
        &self,
        rows: &Rows<'_>,
        row: usize,
        (normed, probe): (&mut [f32], &mut Option<Probe>),
        q: &mut [i8],
    ) {
        let normed = &mut normed[..rows.width];
        self.normalise(rows, row, normed);
        if rows.floats {
            // SAFETY: the row was claimed by this worker alone.
            let floats = unsafe { self.buffers.normed.write(row * rows.width..(row + 1) * rows.width) };
            floats.copy_from_slice(normed);
        }
        let quantized = ternary::quantize(self.isa, normed, q);
        // SAFETY: as above.
        let scale = unsafe { self.buffers.scale.write(row..row + 1) };
        scale[0] = quantized.scale;
        // SAFETY: as above.
        let sum = unsafe { self.buffers.sum.write(row..row + 1) };
        sum[0] = quantized.sum;
        if let (true, Some(probe)) = (rows.gated, probe) {
            // SAFETY: the previous phase wrote this row, this one only reads it.
            probe.count(unsafe { rows.buffer.read(row * rows.width..(row + 1) * rows.width) }, q);
        }
    }

    pub(super) fn normalise(&self, rows: &Rows<'_>, row: usize, out: &mut [f32]) {
        let from = rows.pick.map_or(row, |pick| pick[row]) * rows.width;
        // SAFETY: the previous phase wrote this buffer, this one only reads it.
        let source = unsafe { rows.buffer.read(from..from + rows.width) };
        match rows.norm {
            Some(weight) => {
                norm::rms_norm(self.isa, source, weight, self.weights.params.norm_eps, &mut out[..rows.width]);
            }
            None => out[..rows.width].copy_from_slice(source),
        }
    }

    /// The prepared input of `count` rows of `width`.
    pub(super) fn input<'s>(&'s self, own: OwnRow<'s>, width: usize, count: usize) -> Input<'s> {
        let padded = ternary::padded_cols(width);
        if count == 1 {
            return Input {
                quantized: Quantized::Rows(Activations {
                    q: &own.quantized[..padded],
                    stride: padded,
                    scale: own.scale,
                    sum: own.sum,
                }),
                floats: &own.row[..width],
            };
        }
        let stride = ternary::activation_stride(width);
        // SAFETY: written before the barrier of `prepare`, only read until the next one.
        let q = unsafe { self.buffers.quantized.read(0..count * stride) };
        // SAFETY: as above.
        let scale = unsafe { self.buffers.scale.read(0..count) };
        // SAFETY: as above.
        let sum = unsafe { self.buffers.sum.read(0..count) };
        // SAFETY: as above.
        let floats = unsafe { self.buffers.normed.read(0..count * width) };
        let quantized = if ternary::prefers_panels(self.isa, count) {
            Quantized::Panels(Panels { q: &q[..count * padded], scale, sum })
        } else {
            Quantized::Rows(Activations { q, stride, scale, sum })
        };
        Input { quantized, floats }
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
                return ternary::linear_panels(self.isa, product, range, x, out, work.panels);
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

    /// Puts the columns `range` of `product` in their places in a buffer of rows of `width`.
    fn write_directly(
        &self,
        product: Product<'_>,
        x: Panels<'_>,
        range: Range<usize>,
        (buffer, width): (&Shared<f32>, usize),
        panels: &mut PanelScratch,
    ) {
        let end = (x.scale.len() - 1) * width + range.end;
        // SAFETY: the columns of `range` were claimed by this worker alone.
        let cells = unsafe { buffer.cells(range.start..end) };
        ternary::linear_panels(self.isa, product, range, x, Columns { cells, stride: width }, panels);
    }

    /// Queries, keys and values: a unit is a run of whole heads, rotated and stored by the worker that computed it.
    fn project(&self, member: Member<'_>, scratch: &mut Scratch, (index, layer): (usize, &Layer), counter: usize) {
        let (params, n) = (&self.weights.params, self.rows());
        let unit = head_unit_rows(params.head_dim);
        let kv_units = layer.k.rows.div_ceil(unit);
        let units = kv_units + layer.q.rows.div_ceil(unit);
        while let Some(claimed) = member.claim(counter, units) {
            let (own, first, second, mut work) = scratch.split();
            let input = self.input(own, params.hidden, n);
            if claimed < kv_units {
                let range = claimed * unit..layer.k.rows.min((claimed + 1) * unit);
                let (k, v) = (&mut first[..n * range.len()], &mut second[..n * range.len()]);
                self.linear(&layer.k, range.clone(), input, k, &mut work);
                self.linear(&layer.v, range.clone(), input, v, &mut work);
                self.store(index, range, k, v);
            } else {
                let start = (claimed - kv_units) * unit;
                let range = start..layer.q.rows.min(start + unit);
                let width = params.attention_width();
                if let Some((w, x)) = self.direct(&layer.q, input) {
                    self.write_directly(Product::Plain(w), x, range.clone(), (&self.buffers.q, width), work.panels);
                    self.rotate_queries(width, range);
                } else {
                    let q = &mut first[..n * range.len()];
                    self.linear(&layer.q, range.clone(), input, q, &mut work);
                    self.rotate(range.len(), q);
                    self.scatter(&self.buffers.q, width, range, q);
                }
            }
        }
    }

    /// Applies RoPE to `rows x width` values, each row whole heads.
    fn rotate(&self, width: usize, values: &mut [f32]) {
        for segment in &self.step.segments {
            for i in 0..segment.rows {
                let row = &mut values[(segment.first_row + i) * width..][..width];
                self.rotate_row(segment.first_position + i, row);
            }
        }
    }

    /// The same for the columns `range` of the queries, in their places.
    fn rotate_queries(&self, width: usize, range: Range<usize>) {
        for segment in &self.step.segments {
            for i in 0..segment.rows {
                let at = (segment.first_row + i) * width;
                // SAFETY: the columns of `range` were claimed by this worker alone.
                let row = unsafe { self.buffers.q.write(at + range.start..at + range.end) };
                self.rotate_row(segment.first_position + i, row);
            }
        }
    }

    fn rotate_row(&self, position: usize, row: &mut [f32]) {
        let params = &self.weights.params;
        for head in row.chunks_exact_mut(params.head_dim) {
            rope::apply(self.isa, &self.weights.rope, params.family.rope_kind(), position, head);
        }
    }

    /// Rotates the keys and puts keys and values of the heads in `range` into the cache.
    fn store(&self, layer: usize, range: Range<usize>, k: &mut [f32], v: &[f32]) {
        let (head_dim, width) = (self.weights.params.head_dim, range.len());
        self.rotate(width, k);
        for segment in &self.step.segments {
            for i in 0..segment.rows {
                let (row, position) = (segment.first_row + i, segment.first_position + i);
                for (j, head) in (range.start / head_dim..range.end / head_dim).enumerate() {
                    // SAFETY: the heads of `range` were claimed by this worker alone; attention reads after a barrier.
                    let block = unsafe { self.kv.head_block(segment.slot, layer, head, position) };
                    let at = row * width + j * head_dim;
                    let (k, v) = (&k[at..at + head_dim], &v[at..at + head_dim]);
                    attention::store(self.isa, block, head_dim, position % attention::BLOCK, k, v);
                }
            }
        }
    }

    /// Copies `rows x range` values to the columns `range` of a shared buffer.
    fn scatter(&self, buffer: &Shared<f32>, width: usize, range: Range<usize>, values: &[f32]) {
        for (row, part) in values.chunks_exact(range.len()).enumerate() {
            // SAFETY: the columns of `range` were claimed by this worker alone.
            let to = unsafe { buffer.write(row * width + range.start..row * width + range.end) };
            to.copy_from_slice(part);
        }
    }

    /// A unit is one kv head of one segment, or of a tile of its rows.
    fn attend(&self, member: Member<'_>, scratch: &mut Scratch, layer: usize, counter: usize) {
        let params = &self.weights.params;
        let tiles: usize = self.step.segments.iter().map(|s| s.rows.div_ceil(QUERY_TILE)).sum();
        let mut cursor = TileCursor { segments: &self.step.segments, segment: 0, tiles_before: 0 };
        while let Some(unit) = member.claim(counter, tiles * params.kv_heads) {
            let (segment, tile) = cursor.find(unit / params.kv_heads);
            let first = tile * QUERY_TILE;
            let rows = QUERY_TILE.min(segment.rows - first);
            self.attend_tile(scratch, layer, unit % params.kv_heads, segment, first..first + rows);
        }
    }

    fn attend_tile(&self, scratch: &mut Scratch, layer: usize, head: usize, segment: Segment, rows: Range<usize>) {
        let params = &self.weights.params;
        let group = params.heads / params.kv_heads;
        #[expect(clippy::cast_precision_loss, reason = "head_dim is small")]
        let shape = Shape { head_dim: params.head_dim, group, scale: 1.0 / (params.head_dim as f32).sqrt() };
        let (width, part) = (params.attention_width(), group * params.head_dim);
        let (row, count) = (segment.first_row + rows.start, rows.len());
        let columns = head * part..(head + 1) * part;
        // SAFETY: queries were written before the last barrier and are only read now.
        let q = unsafe { self.buffers.q.read(row * width + columns.start..(row + count - 1) * width + columns.end) };
        // SAFETY: keys and values were stored before the last barrier; nobody stores in this phase.
        let kv = unsafe { self.kv.view(segment.slot, layer, head) };
        let out = &mut scratch.first[..count * part];
        let position = segment.first_position + rows.start;
        attention::attend(self.isa, shape, kv, position, count, q, width, out, part, &mut scratch.attention);
        for (i, values) in out.chunks_exact(part).enumerate() {
            let at = (row + i) * width;
            // SAFETY: these rows and this head were claimed by this worker alone.
            let to = unsafe { self.buffers.attention.write(at + columns.start..at + columns.end) };
            to.copy_from_slice(values);
        }
    }

    fn linear_to_residual(&self, member: Member<'_>, scratch: &mut Scratch, linear: &Linear, counter: usize) {
        let (n, hidden) = (self.rows(), self.weights.params.hidden);
        let unit = unit_rows(linear.rows, n, member.team_size());
        while let Some(claimed) = member.claim(counter, linear.rows.div_ceil(unit)) {
            let range = claimed * unit..linear.rows.min((claimed + 1) * unit);
            let (own, first, _, mut work) = scratch.split();
            let input = self.input(own, linear.cols, n);
            if let Some((w, x)) = self.direct(linear, input) {
                self.write_directly(Product::Added(w), x, range, (&self.buffers.x, hidden), work.panels);
                continue;
            }
            let out = &mut first[..n * range.len()];
            self.linear(linear, range.clone(), input, out, &mut work);
            for (row, part) in out.chunks_exact(range.len()).enumerate() {
                // SAFETY: the columns of `range` were claimed by this worker alone.
                let x = unsafe { self.buffers.x.write(row * hidden + range.start..row * hidden + range.end) };
                activation::add_assign(self.isa, x, part);
            }
        }
    }

    fn gate_and_up(&self, member: Member<'_>, scratch: &mut Scratch, layer: &Layer, counter: usize) {
        let (params, n) = (&self.weights.params, self.rows());
        let unit = unit_rows(params.feed_forward, n, member.team_size());
        while let Some(claimed) = member.claim(counter, params.feed_forward.div_ceil(unit)) {
            let range = claimed * unit..params.feed_forward.min((claimed + 1) * unit);
            let (own, first, second, mut work) = scratch.split();
            let input = self.input(own, params.hidden, n);
            if let (Some((gate, x)), Some((up, _))) = (self.direct(&layer.gate, input), self.direct(&layer.up, input)) {
                let gating = match params.family.activation() {
                    Activation::SquaredRelu => Gating::SquaredRelu,
                    Activation::Silu => Gating::Silu,
                };
                let to = (&self.buffers.ffn, params.feed_forward);
                self.write_directly(Product::Gated { gate, up, gating }, x, range, to, work.panels);
                continue;
            }
            let (gate, up) = (&mut first[..n * range.len()], &mut second[..n * range.len()]);
            self.linear(&layer.gate, range.clone(), input, gate, &mut work);
            self.linear(&layer.up, range.clone(), input, up, &mut work);
            for (row, (gate, up)) in gate.chunks_exact(range.len()).zip(up.chunks_exact(range.len())).enumerate() {
                let at = row * params.feed_forward;
                // SAFETY: the columns of `range` were claimed by this worker alone.
                let out = unsafe { self.buffers.ffn.write(at + range.start..at + range.end) };
                match params.family.activation() {
                    Activation::SquaredRelu => activation::relu2_mul(self.isa, gate, up, out),
                    Activation::Silu => activation::silu_mul(self.isa, gate, up, out),
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
            buffer: &self.buffers.x,
            width: self.weights.params.hidden,
            count: self.step.logits.len(),
            pick: Some(&self.step.logits),
            norm: Some(&self.weights.output_norm),
            floats: !self.weights.head().is_ternary(),
            gated: false,
        }
    }
}

/// The input row that a worker prepared for itself.
#[derive(Clone, Copy)]
pub(super) struct OwnRow<'a> {
    row: &'a [f32],
    quantized: &'a [i8],
    scale: &'a [f32],
    sum: &'a [i32],
}

/// Working memory of the linear layers.
pub(super) struct Work<'a> {
    panels: &'a mut PanelScratch,
    dense: &'a mut DenseScratch,
}

impl Scratch {
    /// The own input row beside the buffers that are written from it.
    pub(super) fn split(&mut self) -> (OwnRow<'_>, &mut [f32], &mut [f32], Work<'_>) {
        let own = OwnRow { row: &self.row, quantized: &self.quantized, scale: &self.scale, sum: &self.sum };
        let work = Work { panels: &mut self.panels, dense: &mut self.dense };
        (own, &mut self.first, &mut self.second, work)
    }
}

/// Finds the segment of a query tile; tiles are asked for in ascending order.
struct TileCursor<'a> {
    segments: &'a [Segment],
    segment: usize,
    tiles_before: usize,
}

impl TileCursor<'_> {
    fn find(&mut self, tile: usize) -> (Segment, usize) {
        loop {
            let segment = self.segments[self.segment];
            let tiles = segment.rows.div_ceil(QUERY_TILE);
            if tile < self.tiles_before + tiles {
                return (segment, tile - self.tiles_before);
            }
            self.tiles_before += tiles;
            self.segment += 1;
        }
    }
}

/// Output rows of a unit: about [`UNITS_PER_WORKER`] units a worker, whole pairs of 16-row tiles, bounded by the
/// scratch and, where many input rows share them, by the cache.
pub(super) fn unit_rows(rows: usize, n: usize, workers: usize) -> usize {
    let most = if n > CACHED_INPUT_ROWS { ternary::PANEL_UNIT_ROWS } else { UNIT_ROWS_MAX };
    rows.div_ceil(workers * UNITS_PER_WORKER).next_multiple_of(2 * ternary::TILE_ROWS).min(most)
}

/// Query rows of one attention unit.
pub(super) const QUERY_TILE: usize = 32;
const UNITS_PER_WORKER: usize = 6;
const CACHED_INPUT_ROWS: usize = 8;
pub(super) const COUNTERS_PER_LAYER: usize = 9;
