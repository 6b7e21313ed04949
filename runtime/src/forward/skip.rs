//! The feed-forward phases of a step of one row that leave out what meets a zero: rows of up whose gate is not
//! positive, columns of down whose activation is zero.
#![expect(unsafe_code, reason = "workers write disjoint parts of shared buffers, see each SAFETY line")]

use kernels::activation;
use kernels::ternary::{self, ColumnMatrix, RowActivations, RowMatrix};

use super::buffers::Scratch;
use super::pass::{Pass, unit_rows};
use crate::model::Layer;
use crate::team::Member;

impl Pass<'_> {
    /// The up projection of layer `index` row by row, where this step may skip.
    pub(super) fn up_rows(&self, index: usize) -> Option<RowMatrix<'_>> {
        if self.rows() == 1 && ternary::skips(self.isa) { self.weights.up_rows(index) } else { None }
    }

    /// The down projection of layer `index` column by column, where this step may skip and enough columns meet a zero.
    /// All workers prepared the same row and so decide the same.
    pub(super) fn down_columns(&self, index: usize, scratch: &mut Scratch) -> Option<ColumnMatrix<'_>> {
        if self.rows() != 1 || !ternary::skips(self.isa) {
            return None;
        }
        let columns = self.weights.down_columns(index)?;
        scratch.live_columns.find(&scratch.quantized[..columns.cols()]);
        let most = columns.cols() * ternary::live_columns_percent_max(self.isa);
        (scratch.live_columns.count() * 100 <= most).then_some(columns)
    }

    /// Gate first, then the rows of up whose gate is positive.
    pub(super) fn gate_then_up(
        &self,
        member: Member<'_>,
        scratch: &mut Scratch,
        (layer, up_rows): (&Layer, RowMatrix<'_>),
        counter: usize,
    ) {
        let (hidden, ffn) = (self.weights.params.hidden, self.weights.params.feed_forward);
        let unit = unit_rows(ffn, 1, member.team_size());
        let mut live = std::mem::take(&mut scratch.live_rows);
        let mut permuted = std::mem::take(&mut scratch.permuted);
        ternary::permute_row(&scratch.quantized[..hidden], &mut permuted);
        while let Some(claimed) = member.claim(counter, ffn.div_ceil(unit)) {
            let range = claimed * unit..ffn.min((claimed + 1) * unit);
            let x = RowActivations { q: &permuted, scale: scratch.scale[0], sum: scratch.sum[0] };
            let (own, first, second, mut work) = scratch.split();
            let (gate, up) = (&mut first[..range.len()], &mut second[..range.len()]);
            let input = self.input(own, hidden, 1);
            self.linear(&layer.gate, range.clone(), input, gate, &mut work);
            let live = positive_rows(gate, &mut live);
            if live.len() * 100 <= range.len() * LIVE_ROWS_PERCENT_MAX {
                ternary::linear_rows(self.isa, up_rows, range.start, live, x, up);
                if let Some(scale) = layer.up.output_scale {
                    up.iter_mut().for_each(|up| *up *= scale);
                }
            } else {
                self.linear(&layer.up, range.clone(), input, up, &mut work);
            }
            // SAFETY: the columns of `range` were claimed by this worker alone.
            let out = unsafe { self.buffers.ffn.write(range) };
            // Whatever `up` holds where the gate isn't positive does not matter.
            activation::relu2_mul(self.isa, gate, up, out);
        }
        (scratch.live_rows, scratch.permuted) = (live, permuted);
    }

    /// Down by its live columns, added to the residual.
    pub(super) fn down_to_residual(
        &self,
        member: Member<'_>,
        scratch: &mut Scratch,
        (layer, columns): (&Layer, ColumnMatrix<'_>),
        counter: usize,
    ) {
        let unit = columns.block_rows();
        while let Some(claimed) = member.claim(counter, columns.rows().div_ceil(unit)) {
            let range = claimed * unit..columns.rows().min((claimed + 1) * unit);
            let out = &mut scratch.first[..range.len()];
            let scale_and_sum = (scratch.scale[0], scratch.sum[0]);
            ternary::linear_columns(self.isa, columns, range.clone(), &scratch.live_columns, scale_and_sum, out);
            if let Some(scale) = layer.down.output_scale {
                out.iter_mut().for_each(|out| *out *= scale);
            }
            // SAFETY: the columns of `range` were claimed by this worker alone.
            let x = unsafe { self.buffers.x.write(range) };
            activation::add_assign(self.isa, x, out);
        }
    }
}

/// Which of `gate` are positive, in ascending order; no branch on any of them, since none can be foretold.
fn positive_rows<'a>(gate: &[f32], list: &'a mut [u32]) -> &'a [u32] {
    let mut count = 0;
    for (row, &gate) in (0_u32..).zip(gate) {
        // Never more written than read.
        list[count] = row;
        count += usize::from(gate > 0.0);
    }
    &list[..count]
}

/// Up to this share skipping is faster than streaming everything (one core, 6912 x 2560): 75 % of the rows take 259 us,
/// everything 278; with AVX2 331 and 368.
const LIVE_ROWS_PERCENT_MAX: usize = 80;
