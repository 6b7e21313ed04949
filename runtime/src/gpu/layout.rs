//! Where everything of a model lies in device memory: pure arithmetic on its shape, the same on both sides of the
//! process boundary.

use kernels::dense::PIECE_TILE_ROWS;
use kernels::ternary::{FRAGMENT_BYTES, FRAGMENT_COLS, HALF_TILE_ROWS, TILE_ROWS};

use super::abi::{CHOOSE_ROWS, LAUNCH_ROWS, SCREEN_ROWS, SPLIT};
use super::shape::Shape;

/// The stacked matrices of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Matrix {
    Qkv,
    Output,
    GateUp,
    Down,
}

/// What a part of the weight region holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Tiles(usize, Matrix),
    Scales(usize, Matrix),
    /// Norm weights of the matrix's input.
    Gamma(usize, Matrix),
    Embedding,
    Head,
    OutputGamma,
    Rope,
}

/// A part of the weight region.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) content: Content,
    pub(super) offset: usize,
    pub(super) bytes: usize,
}

/// The weight region.
#[derive(Clone, Debug)]
pub(super) struct WeightLayout {
    pub(super) parts: Vec<Part>,
    pub(super) bytes: usize,
}

impl Matrix {
    pub(super) const ALL: [Self; 4] = [Self::Qkv, Self::Output, Self::GateUp, Self::Down];

    pub(super) fn cols(self, shape: &Shape) -> usize {
        match self {
            Self::Qkv | Self::GateUp => shape.hidden as usize,
            Self::Output => shape.query_width(),
            Self::Down => shape.feed_forward as usize,
        }
    }

    /// Row tiles of 16; gate and up share each of theirs.
    pub(super) fn row_tiles(self, shape: &Shape) -> usize {
        match self {
            Self::Qkv => shape.qkv_width().div_ceil(TILE_ROWS),
            Self::Output | Self::Down => (shape.hidden as usize).div_ceil(TILE_ROWS),
            Self::GateUp => (shape.feed_forward as usize).div_ceil(HALF_TILE_ROWS),
        }
    }

    /// Rows of the matrix as the kernel counts them.
    pub(super) fn rows(self, shape: &Shape) -> usize {
        match self {
            Self::Qkv => shape.qkv_width(),
            Self::Output | Self::Down => shape.hidden as usize,
            Self::GateUp => 2 * shape.feed_forward as usize,
        }
    }

    /// Tiles of 128 columns.
    pub(super) fn items(self, shape: &Shape) -> usize {
        self.cols(shape).div_ceil(FRAGMENT_COLS)
    }
}

impl WeightLayout {
    /// The layout of a model of `shape`, whose head is a matrix of its own where it is `untied`.
    pub(super) fn new(shape: &Shape, untied: bool) -> Self {
        let mut layout = Self { parts: Vec::new(), bytes: 0 };
        for layer in 0..shape.layers as usize {
            for matrix in Matrix::ALL {
                let tiles = matrix.row_tiles(shape);
                layout.push(Content::Tiles(layer, matrix), tiles * matrix.items(shape) * FRAGMENT_BYTES);
                layout.push(Content::Scales(layer, matrix), tiles * 4 * size_of::<f32>());
                layout.push(Content::Gamma(layer, matrix), matrix.cols(shape) * size_of::<f32>());
            }
        }
        let hidden = shape.hidden as usize;
        let table = (shape.vocab as usize).next_multiple_of(PIECE_TILE_ROWS) * hidden * shape.table_value_bytes();
        layout.push(Content::Embedding, table);
        if untied {
            layout.push(Content::Head, table);
        }
        layout.push(Content::OutputGamma, hidden * size_of::<f32>());
        layout.push(Content::Rope, shape.context as usize * 2 * shape.rope_half as usize * size_of::<f32>());
        layout
    }

    fn push(&mut self, content: Content, bytes: usize) {
        self.parts.push(Part { content, offset: self.bytes, bytes });
        self.bytes = (self.bytes + bytes).next_multiple_of(ALIGN_BYTES);
    }

    /// Where a part begins.
    pub(super) fn offset(&self, content: Content) -> Option<usize> {
        self.parts.iter().find(|part| part.content == content).map(|part| part.offset)
    }
}

/// The screen of the head: its rows as bytes, and what they leave out.
#[derive(Clone, Copy, Debug)]
pub(super) struct ScreenLayout {
    /// Row tiles of 16; 512-byte loads of each.
    pub(super) tiles: usize,
    pub(super) items: usize,
    pub(super) rows: usize,
    pub(super) bytes: usize,
}

impl ScreenLayout {
    pub(super) fn new(shape: &Shape) -> Self {
        let tiles = (shape.vocab as usize).div_ceil(TILE_ROWS);
        let items = (shape.hidden as usize).next_multiple_of(FRAGMENT_COLS) / SCREEN_COLS;
        let rows = tiles * items * FRAGMENT_BYTES;
        Self { tiles, items, rows, bytes: rows + tiles * TILE_ROWS * 4 * size_of::<f32>() }
    }
}

/// The region that a step computes in; zero before the first.
#[derive(Clone, Copy, Debug)]
pub(super) struct WorkLayout {
    pub(super) x: usize,
    pub(super) ffn: usize,
    pub(super) qkv: usize,
    pub(super) attention: usize,
    pub(super) partial: usize,
    pub(super) arrived: usize,
    pub(super) quantized: usize,
    pub(super) quantized_scale: usize,
    pub(super) quantized_sum: usize,
    pub(super) logits: usize,
    pub(super) best: usize,
    pub(super) lower: usize,
    pub(super) queries: usize,
    /// Of an int8 cache, for each query head of a row.
    pub(super) query_factors: usize,
    pub(super) barrier: usize,
    /// Of the screened head: upper bounds, bytes of activations, what they leave out, normalised rows.
    pub(super) upper: usize,
    pub(super) screened: usize,
    pub(super) screen_rows: usize,
    pub(super) normed: usize,
    /// The best of each [`CHOOSE_ROWS`] tokens.
    pub(super) chosen: usize,
    /// Of a step of one row: values with their tags.
    pub(super) token_x: usize,
    pub(super) token_qkv: usize,
    pub(super) token_attention: usize,
    pub(super) token_ffn: usize,
    pub(super) bytes: usize,
}

impl WorkLayout {
    pub(super) fn new(shape: &Shape) -> Self {
        let mut bytes = 0;
        let mut take = |count: usize, size: usize| {
            let at = bytes;
            bytes = (at + count * size).next_multiple_of(ALIGN_BYTES);
            at
        };
        let (rows, heads, dim) = (shape.rows_max as usize, shape.heads as usize, shape.head_dim as usize);
        let splits = shape.context as usize / SPLIT + 1;
        let (hidden, padded) = (shape.hidden as usize, (shape.hidden as usize).next_multiple_of(FRAGMENT_COLS));
        Self {
            x: take(rows * hidden, 4),
            // Gate and up come in whole half tiles.
            ffn: take(rows * (shape.feed_forward as usize).next_multiple_of(HALF_TILE_ROWS), 4),
            qkv: take(rows * shape.qkv_width(), 4),
            attention: take(rows * shape.query_width(), 4),
            partial: take(rows * heads * splits * (dim + 2), 4),
            arrived: take(rows * heads, 4),
            quantized: take(rows.next_multiple_of(QUANTIZED_ROWS) * shape.widest_padded(), 1),
            quantized_scale: take(rows, 4),
            quantized_sum: take(rows, 4),
            logits: take(LAUNCH_ROWS * shape.vocab as usize, 4),
            best: take(LAUNCH_ROWS.max(SCREEN_ROWS), 8),
            lower: take(LAUNCH_ROWS.max(SCREEN_ROWS), 4),
            queries: take(rows * shape.query_width(), 2),
            query_factors: take(rows * heads * shape.kv_bytes as usize, 4),
            barrier: take(2, 4),
            upper: take(
                SCREEN_ROWS * (shape.vocab as usize + 2 * (shape.vocab as usize).div_ceil(SCREEN_TILE_ROWS)),
                4,
            ),
            screened: take((2 * SCREEN_ROWS).next_multiple_of(QUANTIZED_ROWS) * padded, 1),
            screen_rows: take(SCREEN_ROWS, 16),
            normed: take(SCREEN_ROWS * hidden, 4),
            chosen: take(SCREEN_ROWS * (shape.vocab as usize).div_ceil(CHOOSE_ROWS), 16),
            token_x: take(hidden, 8),
            token_qkv: take(shape.qkv_width(), 8),
            token_attention: take(shape.query_width(), 8),
            token_ffn: take((shape.feed_forward as usize).next_multiple_of(HALF_TILE_ROWS), 8),
            bytes,
        }
    }
}

/// Rows of one tile of the screen, whose greatest bounds above and below are kept behind all bounds.
const SCREEN_TILE_ROWS: usize = 16;
/// Columns of one load of the screen.
const SCREEN_COLS: usize = 32;
/// Linear kernels read rows in tiles of so many.
const QUANTIZED_ROWS: usize = 128;
/// What loads of 16 bytes and whole cache lines want.
const ALIGN_BYTES: usize = 256;
