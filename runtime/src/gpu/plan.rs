//! The phases of a step, and the order of its rows on the device.

use super::abi::{
    EPILOGUE_ADD, EPILOGUE_RELU2, EPILOGUE_SILU, EPILOGUE_STORE, PHASE_ATTEND, PHASE_EMBED, PHASE_GREEDY, PHASE_HEAD,
    PHASE_LINEAR, PHASE_QUANTIZE, Phase, TILES_MAX, to_i32,
};
use super::layout::{Content, Matrix, WeightLayout, WorkLayout};
use super::shape::Shape;
use crate::forward::Step;
use kernels::dense::PIECE_TILE_ROWS;
use kernels::ternary::FRAGMENT_BYTES;

/// Where the regions begin in device memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub(super) weights: u64,
    pub(super) work: u64,
}

/// The phases of a whole step on `blocks` blocks. The last [`HEAD_PHASES`] are needed for logits only.
pub(super) fn phases(
    shape: &Shape,
    layout: &WeightLayout,
    work: &WorkLayout,
    at: Addresses,
    blocks: usize,
) -> Vec<Phase> {
    let mut plan = Plan { shape, layout, at, blocks, first_block: 0, phases: Vec::new() };
    let (x, buffer) = (at.work + work.x as u64, |offset: usize| at.work + offset as u64);
    let (hidden, items) = (to_i32(shape.hidden as usize), to_i32(shape.hidden as usize / 8));
    let rows = to_i32(shape.vocab as usize);
    let embedding = plan.weights(Content::Embedding);
    plan.phases.push(Phase {
        weights: embedding,
        output: x,
        kind: PHASE_EMBED,
        rows,
        cols: hidden,
        items,
        ..Phase::default()
    });
    let gate = if shape.silu == 1 { EPILOGUE_SILU } else { EPILOGUE_RELU2 };
    for layer in 0..shape.layers as usize {
        plan.linear(layer, Matrix::Qkv, x, buffer(work.qkv), EPILOGUE_STORE);
        plan.phases.push(Phase { kind: PHASE_ATTEND, rows: to_i32(layer), ..Phase::default() });
        plan.linear(layer, Matrix::Output, buffer(work.attention), x, EPILOGUE_ADD);
        plan.linear(layer, Matrix::GateUp, x, buffer(work.ffn), gate);
        plan.linear(layer, Matrix::Down, buffer(work.ffn), x, EPILOGUE_ADD);
    }
    let head = layout.offset(Content::Head).map_or(embedding, |offset| at.weights + offset as u64);
    plan.phases.push(Phase {
        weights: head,
        gamma: plan.weights(Content::OutputGamma),
        input: x,
        output: buffer(work.logits),
        kind: PHASE_HEAD,
        rows,
        cols: hidden,
        tiles: to_i32((shape.vocab as usize).div_ceil(PIECE_TILE_ROWS)),
        items,
        eps: shape.norm_eps,
        ..Phase::default()
    });
    plan.phases.push(Phase { kind: PHASE_GREEDY, ..Phase::default() });
    plan.phases
}

/// Phases at the end of a step that only rows with logits need.
pub(super) const HEAD_PHASES: usize = 2;

struct Plan<'a> {
    shape: &'a Shape,
    layout: &'a WeightLayout,
    at: Addresses,
    blocks: usize,
    first_block: usize,
    phases: Vec<Phase>,
}

impl Plan<'_> {
    fn weights(&self, content: Content) -> u64 {
        self.at.weights + self.layout.offset(content).expect("the layout holds every part") as u64
    }

    fn linear(&mut self, layer: usize, matrix: Matrix, input: u64, output: u64, epilogue: i32) {
        let shape = self.shape;
        let gamma = self.weights(Content::Gamma(layer, matrix));
        let (cols, eps) = (to_i32(matrix.cols(shape)), shape.norm_eps);
        let sub_norm = matches!(matrix, Matrix::Output | Matrix::Down);
        let plain = i32::from(sub_norm && shape.sub_norms == 0);
        self.phases.push(Phase { gamma, input, kind: PHASE_QUANTIZE, cols, eps, plain, ..Phase::default() });
        let (tiles_at, scales_at) =
            (self.weights(Content::Tiles(layer, matrix)), self.weights(Content::Scales(layer, matrix)));
        let (rows, items, gates) = (matrix.rows(shape), matrix.items(shape), matrix == Matrix::GateUp);
        // No block has more than so many row tiles of one phase.
        let most = TILES_MAX * self.blocks;
        for tile in (0..matrix.row_tiles(shape)).step_by(most) {
            let tiles = (matrix.row_tiles(shape) - tile).min(most);
            self.phases.push(Phase {
                weights: tiles_at + (tile * items * FRAGMENT_BYTES) as u64,
                scales: scales_at + (tile * 16) as u64,
                input,
                output: output + (tile * if gates { 8 } else { 16 } * 4) as u64,
                kind: PHASE_LINEAR,
                epilogue,
                rows: to_i32((rows - tile * 16).min(tiles * 16)),
                cols,
                tiles: to_i32(tiles),
                items: to_i32(items),
                stride: to_i32(if gates { rows / 2 } else { rows }),
                first_block: to_i32(self.first_block),
                eps,
                ..Phase::default()
            });
            self.first_block = (self.first_block + tiles) % self.blocks;
        }
    }
}

/// The rows of a step in the device's order: single rows first, then the runs of prompts, cut into tiles.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// Rows of the step.
    pub(super) rows: Vec<usize>,
    /// The segment of each row.
    pub(super) segments: Vec<usize>,
    /// How many of the rows stand alone.
    pub(super) decodes: usize,
    /// First row and rows of each tile.
    pub(super) tiles: Vec<u32>,
    /// Where the rows with logits are, in the order of the step's logits.
    pub(super) picks: Vec<usize>,
}

impl Order {
    /// Orders the rows of `step`; a tile holds at most `tile_rows`.
    pub(super) fn arrange(&mut self, step: &Step, tile_rows: usize) {
        let Self { rows, segments, decodes, tiles, picks } = self;
        rows.clear();
        segments.clear();
        tiles.clear();
        picks.clear();
        picks.resize(step.logits.len(), 0);
        for (alone, index) in
            [true, false].into_iter().flat_map(|alone| (0..step.segments.len()).map(move |i| (alone, i)))
        {
            let segment = step.segments[index];
            if (segment.rows == 1) != alone {
                continue;
            }
            let first = rows.len();
            for row in segment.first_row..segment.first_row + segment.rows {
                if let Ok(entry) = step.logits.binary_search(&row) {
                    picks[entry] = rows.len();
                }
                rows.push(row);
                segments.push(index);
            }
            if !alone {
                for tile in (0..segment.rows).step_by(tile_rows) {
                    let count = tile_rows.min(segment.rows - tile);
                    tiles.extend([first + tile, count].map(|value| u32::try_from(value).expect("rows are few")));
                }
            }
        }
        *decodes = step.segments.iter().filter(|segment| segment.rows == 1).count();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_rows_come_first_and_prompts_in_tiles() {
        let mut step = Step::default();
        step.push(1, 0, &[1, 2, 3, 4, 5], true);
        step.push(0, 9, &[1], true);
        step.push(2, 4, &[5, 6], false);
        step.push(3, 7, &[5], true);
        let mut order = Order::default();
        for _ in 0..2 {
            order.arrange(&step, 4);
            assert_eq!(order.rows, [5, 8, 0, 1, 2, 3, 4, 6, 7]);
            assert_eq!(order.segments, [1, 3, 0, 0, 0, 0, 0, 2, 2]);
            assert_eq!((order.decodes, order.tiles.as_slice()), (2, &[2, 4, 6, 1, 7, 2][..]));
            assert_eq!(order.picks, [6, 0, 1]);
        }
    }
}
