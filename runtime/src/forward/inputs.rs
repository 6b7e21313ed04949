//! The inputs of linear layers: rows of a buffer, normalised and rounded to int8, in rows or in panels.
#![expect(unsafe_code, reason = "workers write disjoint parts of shared buffers, see each SAFETY line")]

use std::ops::Range;

use kernels::norm;
use kernels::ternary::{self, Activations, PanelOrder, Panels};

use super::buffers::{INPUTS_MAX, Scratch};
use super::pass::Pass;
use super::probe::{Phase, Probe};
use crate::model::Linear;
use crate::shared::SharedFrom;
use crate::team::Member;

/// The input of a linear layer: int8 for ternary weights, f32 for the others.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) quantized: Quantized<'a>,
    pub(super) floats: &'a [f32],
    width: usize,
}

impl Input<'_> {
    /// Some of the rows.
    pub(super) fn part(self, rows: Range<usize>) -> Self {
        let quantized = match self.quantized {
            Quantized::Rows(x) => Quantized::Rows(Activations {
                q: &x.q[rows.start * x.stride..],
                scale: &x.scale[rows.clone()],
                sum: &x.sum[rows.clone()],
                ..x
            }),
            Quantized::Panels(x) => Quantized::Panels(x.part(rows.clone())),
        };
        Self { quantized, floats: &self.floats[rows.start * self.width..rows.end * self.width], ..self }
    }
}

/// Many rows go in panels where the instruction set prefers it.
#[derive(Clone, Copy)]
pub(super) enum Quantized<'a> {
    Rows(Activations<'a>),
    Panels(Panels<'a>),
}

/// Where the rows of a linear's input come from.
pub(super) struct Rows<'a> {
    pub(super) buffer: SharedFrom<'a, f32>,
    pub(super) width: usize,
    pub(super) count: usize,
    /// Row of the buffer that input row `i` is, where they are not the same.
    pub(super) pick: Option<&'a [usize]>,
    pub(super) norm: Option<&'a [f32]>,
    /// Norms after that one, for an input each.
    pub(super) inputs: InputNorms<'a>,
    /// Whether any weight that reads this input is dense.
    pub(super) floats: bool,
    /// Whether they are what a gated unit gave.
    pub(super) gated: bool,
}

/// Norms of the inputs of linear layers that are computed together: one input for all where none has a norm of its own.
#[derive(Clone, Copy)]
pub(super) struct InputNorms<'a> {
    norms: [Option<&'a [f32]>; INPUTS_MAX],
    pub(super) count: usize,
}

impl<'a> InputNorms<'a> {
    pub(super) const NONE: Self = Self { norms: [None; INPUTS_MAX], count: 1 };

    pub(super) fn of<const N: usize>(linears: [&'a Linear; N]) -> Self {
        let mut norms = [None; INPUTS_MAX];
        for (norm, linear) in norms.iter_mut().zip(linears) {
            *norm = linear.input_norm.as_deref();
        }
        Self { norms, count: if norms.iter().any(Option::is_some) { N } else { 1 } }
    }

    /// Which input the layer of this place reads.
    pub(super) fn place(&self, linear: usize) -> usize {
        linear.min(self.count - 1)
    }
}

/// The input that a worker prepared for itself: one row, or the panels of few.
#[derive(Clone, Copy)]
pub(super) struct OwnRow<'a> {
    pub(super) row: &'a [f32],
    pub(super) quantized: &'a [i8],
    pub(super) panels: &'a [i8],
    pub(super) scale: &'a [f32],
    pub(super) sum: &'a [i32],
}

impl Pass<'_> {
    /// Normalises and quantises the input of the next linear layers: into the worker's own scratch for one row, into
    /// the shared buffers, with a barrier, for more.
    pub(super) fn prepare(&self, member: Member<'_>, scratch: &mut Scratch, rows: &Rows<'_>, counter: usize) {
        if self.is_alone(rows.count) {
            let greatest = self.normalise(rows, 0, &mut scratch.row);
            let padded = ternary::padded_cols(rows.width);
            let (normed, q) = (&scratch.row[..rows.width], &mut scratch.quantized[..padded]);
            let quantized = self.quantize(normed, greatest, q);
            (scratch.scale, scratch.sum) = ([quantized.scale], [quantized.sum]);
            if let (true, Some(probe)) = (rows.gated && member.index == 0, &mut scratch.probe) {
                // SAFETY: the previous phase wrote this row, this one only reads it.
                probe.count_gated(unsafe { rows.buffer.read(0..rows.width) });
                probe.count_down(&scratch.quantized[..padded]);
            }
            scratch.lap(Phase::Prepare);
            return;
        }
        let (stride, padded) = (ternary::activation_stride(rows.width), ternary::padded_cols(rows.width));
        let inputs = rows.inputs.count;
        let in_panels = self.interleaves(rows.count, rows.width);
        if in_panels && rows.count > OWN_PANELS_ROWS_MAX {
            let panels = ternary::panel_count(rows.count);
            while let Some(index) = member.claim(counter, panels * inputs) {
                let (input, panel) = (index / panels, ternary::panel_rows(rows.count, index % panels));
                let together = &mut scratch.together[..panel.len() * padded];
                for (row, q) in panel.clone().zip(together.chunks_exact_mut(padded)) {
                    let own = (&mut scratch.row[..], &mut scratch.probe);
                    self.prepare_row(rows, (input, row, panel.end), own, || &mut *q);
                }
                let first = input * self.buffers.rows_max * stride;
                let range = first + panel.start * padded..first + panel.end * padded;
                // SAFETY: the panel was claimed by this worker alone.
                let q = unsafe { self.buffers.quantized.write(range) };
                ternary::interleave(self.isa, together, padded, (panel.len(), rows.count), q);
            }
        } else {
            let together = (rows.count / (RUNS_PER_WORKER * member.team_size())).clamp(1, ROWS_TOGETHER_MAX);
            let units = rows.count.div_ceil(together);
            let in_place = rows.gated && self.gated_stay(rows.count, rows.width);
            while let Some(index) = member.claim(counter, units * inputs) {
                let (input, first) = (index / units, index % units * together);
                let end = rows.count.min(first + together);
                for row in first..end {
                    let own = (&mut scratch.row[..], &mut scratch.probe);
                    if in_place {
                        let first = row * (rows.width + LINE_FLOATS);
                        // SAFETY: the row was claimed by this worker alone, and its floats, among which these are, are not looked
                        // at any more.
                        let q = || unsafe { rows.buffer.write_bytes(first..first + padded / size_of::<f32>()) };
                        self.prepare_row(rows, (input, row, end), own, q);
                        continue;
                    }
                    let first = (input * self.buffers.rows_max + row) * stride;
                    // SAFETY: the row was claimed by this worker alone.
                    let q = || unsafe { self.buffers.quantized.write(first..first + padded) };
                    self.prepare_row(rows, (input, row, end), own, q);
                }
            }
        }
        Self::barrier(member, scratch, Phase::Prepare);
        if in_panels && rows.count <= OWN_PANELS_ROWS_MAX {
            for input in 0..inputs {
                let first = input * self.buffers.rows_max * stride;
                // SAFETY: written before the barrier, only read until the next one.
                let q = unsafe { self.buffers.quantized.read(first..first + rows.count * stride) };
                let own = &mut scratch.own_panels[input * rows.count * padded..];
                for index in 0..ternary::panel_count(rows.count) {
                    let panel = ternary::panel_rows(rows.count, index);
                    let to = &mut own[panel.start * padded..panel.end * padded];
                    let from = &q[panel.start * stride..];
                    ternary::interleave(self.isa, from, stride, (panel.len(), rows.count), to);
                }
            }
            scratch.lap(Phase::Prepare);
        }
    }

    /// Whether so many rows of so many columns have to change places before they are multiplied.
    fn interleaves(&self, count: usize, width: usize) -> bool {
        ternary::prefers_panels(self.isa, count) && !ternary::prefers_rows(self.isa, count, width)
    }

    /// Whether the input is the one row that every worker prepares for itself: it has room for one input.
    fn is_alone(&self, count: usize) -> bool {
        count == 1 && !self.weights.params.family.is_embedding()
    }

    /// Whether so many rows of what a gated unit gave become int8 where they are, among their own floats: those of 128 rows of
    /// a 2B model are 0.9 MB that no other place has to hold. Each begins a cache line further into its floats than the one
    /// before, so that they are spread over the sets of the first-level cache as other inputs are.
    fn gated_stay(&self, count: usize, width: usize) -> bool {
        let fits = ternary::padded_cols(width) + count * LINE_BYTES <= width * size_of::<f32>();
        ternary::prefers_rows(self.isa, count, width) && fits && width.is_multiple_of(2 * LINE_FLOATS)
    }

    /// Normalises and quantises a row that this worker claimed, for one of its inputs; those before `end` are its own, too.
    /// `q` is where it goes, called once its floats have been read.
    fn prepare_row<'q>(
        &self,
        rows: &Rows<'_>,
        (input, row, end): (usize, usize, usize),
        (normed, probe): (&mut [f32], &mut Option<Probe>),
        q: impl FnOnce() -> &'q mut [i8],
    ) {
        let normed = &mut normed[..rows.width];
        let mut probe = probe.as_mut().filter(|_| rows.gated && row.is_multiple_of(PROBED_ROWS));
        if let Some(probe) = &mut probe {
            // SAFETY: the previous phase wrote this row, and this worker alone writes to it in this one.
            probe.count_gated(unsafe { rows.buffer.read(row * rows.width..(row + 1) * rows.width) });
        }
        let mut greatest = self.normalise_before(rows, (row, end), normed);
        if let Some(weight) = rows.inputs.norms[input] {
            norm::rms_norm_in_place(self.isa, normed, weight, self.weights.params.norm_eps);
            greatest = None;
        }
        let place = input * self.buffers.rows_max + row;
        if rows.floats {
            // SAFETY: the row was claimed by this worker alone.
            let floats = unsafe { self.buffers.normed.write(place * rows.width..(place + 1) * rows.width) };
            floats.copy_from_slice(normed);
        }
        let q = q();
        let quantized = self.quantize(normed, greatest, q);
        // SAFETY: as above.
        let scale = unsafe { self.buffers.scale.write(place..place + 1) };
        scale[0] = quantized.scale;
        // SAFETY: as above.
        let sum = unsafe { self.buffers.sum.write(place..place + 1) };
        sum[0] = quantized.sum;
        if let Some(probe) = probe {
            probe.count_down(q);
        }
    }

    /// The greatest magnitude of the results, where it was found by the way. Asks for the row behind this one meanwhile.
    pub(super) fn normalise(&self, rows: &Rows<'_>, row: usize, out: &mut [f32]) -> Option<f32> {
        self.normalise_before(rows, (row, rows.count), out)
    }

    /// The same; asks for no row from `end` on.
    fn normalise_before(&self, rows: &Rows<'_>, (row, end): (usize, usize), out: &mut [f32]) -> Option<f32> {
        let from = rows.pick.map_or(row, |pick| pick[row]) * rows.width;
        // SAFETY: the previous phase wrote this row; in this one nobody else writes to it.
        let source = unsafe { rows.buffer.read(from..from + rows.width) };
        let out = &mut out[..rows.width];
        let Some(weight) = rows.norm else {
            out.copy_from_slice(source);
            return None;
        };
        let next = from + rows.width;
        let ahead = if row + 1 < end && rows.pick.is_none() { next..next + rows.width } else { 0..0 };
        // SAFETY: as above.
        let ahead = unsafe { rows.buffer.read(ahead) };
        Some(norm::rms_norm_ahead(self.isa, source, weight, self.weights.params.norm_eps, out, ahead))
    }

    fn quantize(&self, values: &[f32], greatest: Option<f32>, q: &mut [i8]) -> ternary::Quantized {
        match greatest {
            Some(greatest) => ternary::quantize_within(self.isa, values, greatest, q),
            None => ternary::quantize(self.isa, values, q),
        }
    }

    /// The prepared input of `count` rows of `width`.
    pub(super) fn input<'s>(&'s self, own: OwnRow<'s>, width: usize, count: usize) -> Input<'s> {
        self.input_of(own, 0, width, count)
    }

    /// The same of what a gated unit gave.
    pub(super) fn gated_input<'s>(&'s self, own: OwnRow<'s>, width: usize, count: usize) -> Input<'s> {
        if !self.gated_stay(count, width) {
            return self.input(own, width, count);
        }
        // SAFETY: written before the barrier of `prepare`, only read until the next one.
        let q = unsafe { self.buffers.ffn.read_bytes(0..count * width) };
        // SAFETY: as above.
        let scale = unsafe { self.buffers.scale.read(0..count) };
        // SAFETY: as above.
        let sum = unsafe { self.buffers.sum.read(0..count) };
        // SAFETY: as above.
        let floats = unsafe { self.buffers.normed.read(0..count * width) };
        let order = PanelOrder::Rows { stride: (width + LINE_FLOATS) * size_of::<f32>() };
        Input { quantized: Quantized::Panels(Panels { q, order, scale, sum }), floats, width }
    }

    /// The same where several inputs were prepared.
    pub(super) fn input_of<'s>(&'s self, own: OwnRow<'s>, input: usize, width: usize, count: usize) -> Input<'s> {
        let padded = ternary::padded_cols(width);
        if self.is_alone(count) {
            return Input {
                quantized: Quantized::Rows(Activations {
                    q: &own.quantized[..padded],
                    stride: padded,
                    scale: own.scale,
                    sum: own.sum,
                }),
                floats: &own.row[..width],
                width,
            };
        }
        let stride = ternary::activation_stride(width);
        let first = input * self.buffers.rows_max;
        // SAFETY: written before the barrier of `prepare`, only read until the next one.
        let q = unsafe { self.buffers.quantized.read(first * stride..(first + count) * stride) };
        // SAFETY: as above.
        let scale = unsafe { self.buffers.scale.read(first..first + count) };
        // SAFETY: as above.
        let sum = unsafe { self.buffers.sum.read(first..first + count) };
        // SAFETY: as above.
        let floats = unsafe { self.buffers.normed.read(first * width..(first + count) * width) };
        let quantized = if ternary::prefers_rows(self.isa, count, width) {
            Quantized::Panels(Panels { q, order: PanelOrder::Rows { stride }, scale, sum })
        } else if ternary::prefers_panels(self.isa, count) {
            let q = if count <= OWN_PANELS_ROWS_MAX { &own.panels[input * count * padded..] } else { q };
            Quantized::Panels(Panels { q: &q[..count * padded], order: PanelOrder::Interleaved, scale, sum })
        } else {
            Quantized::Rows(Activations { q, stride, scale, sum })
        };
        Input { quantized, floats, width }
    }
}

/// Up to so many rows every worker puts all of them in panels for itself, which takes less than waiting for whoever
/// quantises the last panel.
pub(super) const OWN_PANELS_ROWS_MAX: usize = 64;
/// Runs of rows that a worker takes, where they stay in rows, and most rows of one: while it normalises a row, it asks for the one
/// behind in its run, of whose lines others wrote their share. (32 rows of 2560 columns between two threads, in C: runs of 2 rows
/// 12.7 us, of 4, 8 and 16 rows 11.0, 10.1 and 9.7.)
const RUNS_PER_WORKER: usize = 2;
const ROWS_TOGETHER_MAX: usize = 16;
/// Bytes of a cache line, and floats of it.
const LINE_BYTES: usize = 64;
const LINE_FLOATS: usize = LINE_BYTES / size_of::<f32>();
/// Of so many rows a benchmark looks at one: to look at all of them would take as long as to quantise them.
const PROBED_ROWS: usize = 16;
