//! A replica's weights in the layout of the GPU kernels, a piece at a time from the CPU's packed ones.

use kernels::Isa;
use kernels::dense::{PIECE_TILE_ROWS, pack_pieces, pack_wide_pieces};
use kernels::ternary::{FRAGMENT_BYTES, HALF_TILE_ROWS, HalfTile, pack_fragments};

use super::layout::{Content, Matrix, Part, WeightLayout};
use super::shape::Shape;
use crate::model::{Layer, Linear, LinearView, Weights};

/// Walks through the weight region from its first byte to its last.
pub(super) struct Packer {
    shape: Shape,
    layout: WeightLayout,
    part: usize,
    /// Bytes of the part that are done.
    done: usize,
}

impl Packer {
    pub(super) fn new(shape: Shape, weights: &Weights) -> Self {
        Self { layout: WeightLayout::new(&shape, weights.head.is_some()), shape, part: 0, done: 0 }
    }

    /// Fills `out` with the next bytes of the region: their offset and count, `None` after the last.
    pub(super) fn next(&mut self, weights: &Weights, out: &mut [u8]) -> Option<(usize, usize)> {
        let part = self.layout.parts.get(self.part)?;
        let start = part.offset + self.done;
        let mut filled = 0;
        while let Some(part) = self.layout.parts.get(self.part).copied() {
            let gap = part.offset + self.done - start - filled;
            let unit = self.unit_bytes(&part, out.len());
            if filled + gap + unit.min(part.bytes - self.done) > out.len() {
                break;
            }
            out[filled..filled + gap].fill(0);
            filled += gap;
            let bytes = unit.min(part.bytes - self.done);
            self.pack(&part, weights, &mut out[filled..filled + bytes]);
            (filled, self.done) = (filled + bytes, self.done + bytes);
            if self.done == part.bytes {
                (self.part, self.done) = (self.part + 1, 0);
            }
        }
        assert!(filled > 0, "a unit fits the buffer");
        Some((start, filled))
    }

    /// Bytes that are packed at a time: a row tile, or as much of a table as there is room for.
    fn unit_bytes(&self, part: &Part, room: usize) -> usize {
        match part.content {
            Content::Tiles(_, matrix) => matrix.items(&self.shape) * FRAGMENT_BYTES,
            Content::Embedding | Content::Head => {
                PIECE_TILE_ROWS * self.shape.hidden as usize * self.shape.table_value_bytes()
            }
            Content::Rope => self.cos_sin_bytes() * (room / 4 / self.cos_sin_bytes()).max(1),
            Content::Scales(..) | Content::Gamma(..) | Content::OutputGamma => part.bytes,
        }
    }

    /// Of the cosines and sines of a position, and more than none where nothing rotates.
    fn cos_sin_bytes(&self) -> usize {
        (2 * self.shape.rope_half as usize * size_of::<f32>()).max(1)
    }

    fn pack(&self, part: &Part, weights: &Weights, out: &mut [u8]) {
        let unit = self.done / out.len().max(1);
        match part.content {
            Content::Tiles(layer, matrix) => {
                let halves = [2 * unit, 2 * unit + 1].map(|half| {
                    let (linear, first_row) = self.source(&weights.layers[layer], matrix, half)?;
                    let LinearView::Ternary(matrix) = weights.view(linear) else { return None };
                    Some(HalfTile { matrix, first_row })
                });
                pack_fragments(halves, out);
            }
            Content::Scales(layer, matrix) => {
                for (half, pair) in out.chunks_exact_mut(8).enumerate() {
                    let source = self.source(&weights.layers[layer], matrix, half);
                    let scales = source.map_or([0.0, 1.0], |(linear, _)| {
                        let LinearView::Ternary(matrix) = weights.view(linear) else { return [0.0, 1.0] };
                        [matrix.scale(), linear.output_scale.unwrap_or(1.0)]
                    });
                    copy_floats(&scales, pair);
                }
            }
            Content::Gamma(layer, matrix) => {
                let layer = &weights.layers[layer];
                let gamma = match matrix {
                    Matrix::Qkv => Some(&layer.attn_norm),
                    Matrix::Output => layer.attn_sub_norm.as_ref(),
                    Matrix::GateUp => Some(&layer.ffn_norm),
                    Matrix::Down => layer.ffn_sub_norm.as_ref(),
                };
                match gamma {
                    Some(gamma) => copy_floats(gamma, out),
                    // Rows that are rounded as they are.
                    None => out.chunks_exact_mut(4).for_each(|bytes| bytes.copy_from_slice(&1.0_f32.to_le_bytes())),
                }
            }
            Content::Embedding | Content::Head => {
                let linear = if part.content == Content::Head { weights.head() } else { &weights.embedding };
                let LinearView::Dense(matrix) = weights.view(linear) else { unreachable!("the shape was checked") };
                if self.shape.wide == 1 {
                    pack_wide_pieces(Isa::detect(), matrix, unit, out);
                } else {
                    pack_pieces(matrix, unit, out);
                }
            }
            Content::OutputGamma => copy_floats(&weights.output_norm, out),
            Content::Rope => {
                let first = self.done / self.cos_sin_bytes();
                let mut cos_sin = vec![0.0; weights.rope.cos_sin_len()];
                for (i, out) in out.chunks_exact_mut(self.cos_sin_bytes()).enumerate() {
                    weights.rope.cos_sin(Isa::detect(), first + i, &mut cos_sin);
                    copy_floats(&cos_sin, out);
                }
            }
        }
    }

    /// The linear layer whose eight rows make half tile `half` of a stacked matrix, and the first of them.
    fn source<'l>(&self, layer: &'l Layer, matrix: Matrix, half: usize) -> Option<(&'l Linear, usize)> {
        let stack: &[&'l Linear] = match matrix {
            Matrix::Qkv => &[&layer.q, &layer.k, &layer.v],
            Matrix::Output => &[&layer.o],
            Matrix::Down => &[&layer.down],
            Matrix::GateUp => {
                let linear = if half.is_multiple_of(2) { &layer.gate } else { &layer.up };
                return Some((linear, half / 2 * HALF_TILE_ROWS));
            }
        };
        let mut row = half * HALF_TILE_ROWS;
        for linear in stack {
            if row < linear.rows {
                return Some((linear, row));
            }
            row -= linear.rows;
        }
        None
    }
}

fn copy_floats(values: &[f32], out: &mut [u8]) {
    for (value, bytes) in values.iter().zip(out.chunks_exact_mut(4)) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
}
