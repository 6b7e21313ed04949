//! The phases of a step, and the order of its rows on the device.

use std::cmp::Reverse;
use std::ops::Range;

use super::abi::{
    EPILOGUE_ADD, EPILOGUE_RELU2, EPILOGUE_SILU, EPILOGUE_STORE, PHASE_ATTEND, PHASE_CHOOSE, PHASE_COPY, PHASE_EMBED,
    PHASE_GREEDY, PHASE_HEAD, PHASE_LINEAR, PHASE_QUANTIZE, PHASE_SCREEN, Phase, SPLIT, TENSOR_PAIRS, TENSOR_SPLIT,
    TILE_WORDS, TILES_MAX, TOKEN_COLS_MAX, to_i32,
};
use super::layout::{Content, Matrix, ScreenLayout, WeightLayout, WorkLayout};
use super::shape::Shape;
use crate::forward::{Segment, Step};
use kernels::dense::PIECE_TILE_ROWS;
use kernels::ternary::FRAGMENT_BYTES;

/// Where the regions begin in device memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub(super) weights: u64,
    pub(super) work: u64,
    pub(super) screen: u64,
}

/// What the kernels are told to do, a list of phases for each kind of launch.
#[derive(Debug)]
pub(super) struct Plan {
    /// All lists, as they lie on the device.
    pub(super) phases: Vec<Phase>,
    /// Embedding and layers.
    pub(super) layers: Range<usize>,
    /// All logits of rows that went through the layers, and the best of each.
    pub(super) head: Range<usize>,
    /// One row, by `step_1`: a whole step that gives the best token, and a step but for the head. Empty where the device or
    /// the model is not made for it.
    pub(super) token: Range<usize>,
    pub(super) token_layers: Range<usize>,
    /// The head by its screen.
    pub(super) screen: Phase,
    pub(super) choose: Phase,
}

impl Plan {
    /// The plan on `blocks` blocks; `one_row` where the device has `step_1`.
    pub(super) fn new(
        shape: &Shape,
        layout: &WeightLayout,
        work: &WorkLayout,
        at: Addresses,
        (blocks, one_row): (usize, bool),
    ) -> Self {
        let screen_layout = ScreenLayout::new(shape);
        let buffer = |offset: usize| at.work + offset as u64;
        let hidden = to_i32(shape.hidden as usize);
        let mut builder = Builder { shape, layout, at, blocks, first_block: 0, tagged: false, phases: Vec::new() };
        builder.layers([work.x, work.qkv, work.attention, work.ffn].map(buffer));
        let layers = 0..builder.phases.len();
        let head = Phase {
            weights: layout
                .offset(Content::Head)
                .map_or_else(|| builder.weights(Content::Embedding), |o| at.weights + o as u64),
            gamma: builder.weights(Content::OutputGamma),
            input: buffer(work.x),
            output: buffer(work.logits),
            kind: PHASE_HEAD,
            rows: to_i32(shape.vocab as usize),
            cols: hidden,
            tiles: to_i32((shape.vocab as usize).div_ceil(PIECE_TILE_ROWS)),
            items: to_i32(shape.hidden as usize / 16 * shape.table_value_bytes()),
            eps: shape.norm_eps,
            wide: to_i32(shape.wide as usize),
            ..Phase::default()
        };
        let greedy = Phase { kind: PHASE_GREEDY, ..Phase::default() };
        builder.phases.extend([head, greedy]);
        let mut plan = Self {
            layers: layers.clone(),
            head: layers.end..builder.phases.len(),
            token: 0..0,
            token_layers: 0..0,
            screen: Phase {
                weights: at.screen,
                scales: at.screen + screen_layout.rows as u64,
                output: buffer(work.upper),
                kind: PHASE_SCREEN,
                tiles: to_i32(screen_layout.tiles),
                items: to_i32(screen_layout.items),
                ..head
            },
            choose: Phase { input: buffer(work.upper), kind: PHASE_CHOOSE, ..head },
            phases: Vec::new(),
        };
        if one_row && shape.widest_padded() <= TOKEN_COLS_MAX {
            let start = builder.phases.len();
            (builder.first_block, builder.tagged) = (0, true);
            let x = buffer(work.token_x);
            builder.layers([x, buffer(work.token_qkv), buffer(work.token_attention), buffer(work.token_ffn)]);
            let (end, order) = (builder.phases.len(), builder.next_order());
            builder.phases.extend([
                Phase { input: x, order, ..plan.screen },
                Phase { order: order + 1, ..plan.choose },
                Phase { order: order + 2, ..greedy },
            ]);
            plan.token = start..builder.phases.len();
            builder.phases.extend_from_within(start..end);
            let copy =
                Phase { input: x, output: buffer(work.x), kind: PHASE_COPY, cols: hidden, order, ..Phase::default() };
            builder.phases.push(copy);
            plan.token_layers = plan.token.end..builder.phases.len();
        }
        plan.phases = builder.phases;
        plan
    }
}

struct Builder<'a> {
    shape: &'a Shape,
    layout: &'a WeightLayout,
    at: Addresses,
    blocks: usize,
    first_block: usize,
    /// Values have tags: 8 bytes instead of 4, and rows are rounded by the linear phases themselves.
    tagged: bool,
    phases: Vec<Phase>,
}

impl Builder<'_> {
    fn weights(&self, content: Content) -> u64 {
        self.at.weights + self.layout.offset(content).expect("the layout holds every part") as u64
    }

    /// Of a phase that waits for the one before it.
    fn next_order(&self) -> i32 {
        self.phases.last().map_or(1, |phase| phase.order + 1)
    }

    /// Embedding and layers, with these buffers: x, qkv, attention and gated values.
    fn layers(&mut self, [x, qkv, attention, ffn]: [u64; 4]) {
        let shape = self.shape;
        self.phases.push(Phase {
            weights: self.weights(Content::Embedding),
            output: x,
            kind: PHASE_EMBED,
            rows: to_i32(shape.vocab as usize),
            cols: to_i32(shape.hidden as usize),
            wide: to_i32(shape.wide as usize),
            order: 1,
            ..Phase::default()
        });
        let gate = if shape.silu == 1 { EPILOGUE_SILU } else { EPILOGUE_RELU2 };
        for layer in 0..shape.layers as usize {
            self.linear(layer, Matrix::Qkv, x, qkv, EPILOGUE_STORE);
            let order = self.next_order();
            let plain = to_i32(shape.kv_bytes as usize);
            self.phases.push(Phase { kind: PHASE_ATTEND, rows: to_i32(layer), plain, order, ..Phase::default() });
            self.linear(layer, Matrix::Output, attention, x, EPILOGUE_ADD);
            self.linear(layer, Matrix::GateUp, x, ffn, gate);
            self.linear(layer, Matrix::Down, ffn, x, EPILOGUE_ADD);
        }
    }

    fn linear(&mut self, layer: usize, matrix: Matrix, input: u64, output: u64, epilogue: i32) {
        let (shape, order) = (self.shape, self.next_order());
        let (cols, eps) = (to_i32(matrix.cols(shape)), shape.norm_eps);
        let sub_norm = matches!(matrix, Matrix::Output | Matrix::Down);
        let plain = i32::from(sub_norm && shape.sub_norms == 0);
        let gamma = self.weights(Content::Gamma(layer, matrix));
        let mut gamma_of_linear = gamma;
        if !self.tagged {
            self.phases.push(Phase { gamma, input, kind: PHASE_QUANTIZE, cols, eps, plain, order, ..Phase::default() });
            gamma_of_linear = 0;
        }
        let (tiles_at, scales_at) =
            (self.weights(Content::Tiles(layer, matrix)), self.weights(Content::Scales(layer, matrix)));
        let (rows, items, gates) = (matrix.rows(shape), matrix.items(shape), matrix == Matrix::GateUp);
        let value_bytes = if self.tagged { 8 } else { 4 };
        // No block has more than so many row tiles of one phase.
        let most = TILES_MAX * self.blocks;
        for tile in (0..matrix.row_tiles(shape)).step_by(most) {
            let tiles = (matrix.row_tiles(shape) - tile).min(most);
            self.phases.push(Phase {
                weights: tiles_at + (tile * items * FRAGMENT_BYTES) as u64,
                scales: scales_at + (tile * 16) as u64,
                gamma: gamma_of_linear,
                input,
                output: output + (tile * if gates { 8 } else { 16 } * value_bytes) as u64,
                kind: PHASE_LINEAR,
                epilogue,
                rows: to_i32((rows - tile * 16).min(tiles * 16)),
                cols,
                tiles: to_i32(tiles),
                items: to_i32(items),
                stride: to_i32(if gates { rows / 2 } else { rows }),
                first_block: to_i32(self.first_block),
                eps,
                order,
                // Who wrote `output` last: the embedding or DOWN three phases before OUTPUT, OUTPUT two before DOWN.
                residual: order - if matrix == Matrix::Output { 3 } else { 2 },
                plain,
                wide: 0,
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
    /// How many of the rows stand alone; whether some of these are successive ones of a prompt, which is so only where all do.
    pub(super) decodes: usize,
    pub(super) stored: bool,
    /// First row, rows, split and first position of each tile; those that see most positions of their split come first, and those
    /// for tensor cores after the others.
    pub(super) tiles: Vec<[u32; TILE_WORDS]>,
    pub(super) tensor_tiles: usize,
    /// Where the rows with logits are, in the order of the step's logits.
    pub(super) picks: Vec<usize>,
}

/// How the attention of a row is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Alone,
    Exact,
    Tensor,
}

impl Order {
    /// Orders the rows of `step`, of whose segments the first so many rows are for tensor cores; a tile holds at most `pairs` pairs
    /// of a row and one of `group` query heads. At most `singles_max` rows may stand alone where some are successive.
    pub(super) fn arrange(
        &mut self,
        step: &Step,
        tensor_rows: &[usize],
        (pairs, group): (usize, usize),
        singles_max: usize,
    ) {
        let Self { rows, segments, decodes, stored, tiles, tensor_tiles, picks } = self;
        *stored = are_few(step, tensor_rows, singles_max);
        rows.clear();
        segments.clear();
        tiles.clear();
        picks.clear();
        picks.resize(step.logits.len(), 0);
        for form in [Form::Alone, Form::Exact, Form::Tensor] {
            let first_tile = tiles.len();
            let (tile_rows, length) =
                if form == Form::Tensor { (TENSOR_PAIRS / group, TENSOR_SPLIT) } else { (pairs / group, SPLIT) };
            for (index, (segment, &tensor)) in step.segments.iter().zip(tensor_rows).enumerate() {
                let own = match form {
                    Form::Tensor => 0..tensor,
                    _ if (form == Form::Alone) == (*stored || segment.rows == 1 && tensor == 0) => tensor..segment.rows,
                    _ => 0..0,
                };
                let first = rows.len();
                for row in own.clone().map(|row| segment.first_row + row) {
                    if let Ok(entry) = step.logits.binary_search(&row) {
                        picks[entry] = rows.len();
                    }
                    rows.push(row);
                    segments.push(index);
                }
                if form == Form::Alone || own.is_empty() {
                    continue;
                }
                for tile in own.clone().step_by(tile_rows) {
                    let (count, position) = (tile_rows.min(own.end - tile), segment.first_position + tile);
                    let of_split = |split| [first + tile - own.start, count, split, position];
                    let splits = (0..(position + count).div_ceil(length)).map(of_split);
                    tiles.extend(splits.map(|tile| tile.map(|value| u32::try_from(value).expect("rows are few"))));
                }
            }
            // In place, and the same order every time.
            tiles[first_tile..].sort_unstable_by_key(|tile| {
                let [first, rows, split, position] = *tile;
                (Reverse((position + rows - split * length as u32).min(length as u32)), split, first)
            });
            *tensor_tiles = tiles.len() - first_tile;
            if form == Form::Alone {
                *decodes = rows.len();
            }
        }
    }
}

/// Whether there are prompts whose rows are better computed as single ones, after all have stored their keys and values: few rows, of
/// which none has many positions to look at for itself. Such a step is recorded like one without prompts.
fn are_few(step: &Step, tensor_rows: &[usize], singles_max: usize) -> bool {
    let parts = |segment: &Segment| segment.rows * (segment.first_position + segment.rows).div_ceil(SPLIT);
    let of_prompts = step.segments.iter().filter(|segment| segment.rows > 1).map(parts).sum::<usize>();
    (1..=SINGLE_ROWS_MAX).contains(&of_prompts)
        && step.tokens.len() <= singles_max
        && tensor_rows.iter().all(|rows| *rows == 0)
}

/// Steps whose prompts have more rows, or more splits to look at by their rows, have them in tiles: a prompt of 256 rows beside 8
/// others takes as long either way (2B shape, H100).
const SINGLE_ROWS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_all_stand_alone() {
        let mut step = Step::default();
        step.push(1, 250, &[1, 2, 3], true);
        step.push(0, 9, &[1], true);
        let mut order = Order::default();
        for (singles_max, stored) in [(4, true), (3, false)] {
            order.arrange(&step, &[0; 2], (4, 1), singles_max);
            assert_eq!(
                (order.stored, order.decodes, order.tiles.is_empty()),
                (stored, if stored { 4 } else { 1 }, stored)
            );
        }
        order.arrange(&step, &[0; 2], (4, 1), 4);
        assert_eq!(
            (&order.rows[..], &order.segments[..], &order.picks[..]),
            (&[0, 1, 2, 3][..], &[0, 0, 0, 1][..], &[2, 3][..])
        );
        order.arrange(&step, &[3, 0], (4, 1), 4);
        assert!(!order.stored, "rows for tensor cores");
        step.push(2, 7000, &[1; 10], true);
        order.arrange(&step, &[0; 3], (4, 1), 100);
        assert!(!order.stored, "each would look at many positions");
        step.clear();
        step.push(0, 9, &[1], true);
        order.arrange(&step, &[0], (4, 1), 100);
        assert!(!order.stored, "no prompt");
    }

    #[test]
    fn single_rows_come_first_and_prompts_in_tiles() {
        let mut step = Step::default();
        step.push(1, 0, &[1, 2, 3, 4, 5], true);
        step.push(0, 9, &[1], true);
        step.push(2, 4, &[5, 6], false);
        step.push(3, 7, &[5], true);
        let mut order = Order::default();
        for _ in 0..2 {
            order.arrange(&step, &[0; 4], (4, 1), 1);
            assert_eq!(order.rows, [5, 8, 0, 1, 2, 3, 4, 6, 7]);
            assert_eq!(order.segments, [1, 3, 0, 0, 0, 0, 0, 2, 2]);
            assert_eq!(order.decodes, 2);
            assert_eq!(order.tiles, [[7, 2, 0, 4], [6, 1, 0, 4], [2, 4, 0, 0]]);
            assert_eq!(order.picks, [6, 0, 1]);
        }
    }

    #[test]
    fn tiles_that_see_most_of_their_split_come_first() {
        let mut step = Step::default();
        step.push(0, 250, &[1; 10], true);
        step.push(1, 510, &[1; 3], true);
        let mut order = Order::default();
        order.arrange(&step, &[0; 2], (6, 1), 1);
        let expected =
            [[0, 6, 0, 250], [6, 4, 0, 256], [10, 3, 0, 510], [10, 3, 1, 510], [6, 4, 1, 256], [10, 3, 2, 510]];
        assert_eq!(order.tiles, expected);
    }

    #[test]
    fn rows_for_tensor_cores_come_last_and_never_alone() {
        let mut step = Step::default();
        step.push(0, 9, &[1], true);
        step.push(1, 1020, &[1; 70], true);
        step.push(2, 5, &[1; 2], true);
        step.push(3, 5, &[1], true);
        let mut order = Order::default();
        order.arrange(&step, &[1, 69, 0, 0], (32, 2), 100);
        assert_eq!((order.decodes, order.rows.len(), order.tensor_tiles), (1, 74, 7));
        assert_eq!(order.rows[..5], [73, 70, 71, 72, 0]);
        let (exact, tensor) = order.tiles.split_at(order.tiles.len() - order.tensor_tiles);
        assert_eq!(exact.iter().map(|tile| (tile[0], tile[1], tile[3])).collect::<Vec<_>>()[..2], [(1, 1, 1089); 2]);
        let expected = [
            [5, 32, 0, 1020],
            [37, 32, 0, 1052],
            [69, 5, 0, 1084],
            [69, 5, 1, 1084],
            [37, 32, 1, 1052],
            [5, 32, 1, 1020],
        ];
        assert_eq!(tensor[..6], expected);
        assert_eq!((tensor[6], &order.picks[..]), ([4, 1, 0, 9], &[4, 1, 3, 0][..]));
    }
}
