//! Second forms of feed-forward weights from which a step of one row reads only what doesn't meet a zero.

use std::ops::Range;

use kernels::ternary::{self, ColumnMatrix, RowMatrix, TernaryMatrix};
use tuning::NodeId;
use tuning::memory::Arena;

use super::weights::{Layer, Linear, LinearView, Storage, Weights};
use super::{Activation, Error, HyperParameters, spawn};

/// The up projections row by row and the down projections column by column, of models whose squared ReLU makes zeros.
pub(super) struct Skips {
    arena: Arena,
    layers: Vec<Forms>,
}

/// Bytes of the second form of an up projection and of all forms of a layer; `None` for models that have none.
pub(super) fn form_bytes(params: &HyperParameters, layers: &[Layer]) -> Option<(usize, usize)> {
    let fits = |l: &Layer| l.gate.is_ternary() && l.up.is_ternary() && l.down.is_ternary();
    let narrow = params.feed_forward <= ternary::COLUMN_COLS_MAX;
    if params.family.activation() != Activation::SquaredRelu || !narrow || !layers.iter().all(fits) {
        return None;
    }
    let (hidden, ffn) = (params.hidden, params.feed_forward);
    let up_bytes = if hidden < ROW_COLS_MIN { 0 } else { ternary::row_bytes(ffn, hidden) };
    Some((up_bytes, up_bytes + ternary::column_bytes(hidden, ffn, COLUMN_LINES)))
}

/// Where the forms of a layer lie.
#[derive(Clone)]
struct Forms {
    up: Range<usize>,
    down: Range<usize>,
}

impl Skips {
    pub(super) fn bytes(&self) -> usize {
        self.arena.len()
    }

    pub(super) fn arena(&self) -> &Arena {
        &self.arena
    }

    pub(super) fn replica(&self, node: NodeId) -> Result<Self, tuning::Error> {
        Ok(Self { arena: self.arena.copied_to(node)?, layers: self.layers.clone() })
    }

    pub(super) fn lock(&mut self) {
        self.arena.lock();
    }
}

impl Weights {
    /// Packs the second forms where the model makes zeros and all of its feed-forward weights are ternary. `threads`
    /// take part; the memory should lie on `node`.
    pub(super) fn pack_skips(&mut self, threads: usize, node: Option<NodeId>) -> Result<(), Error> {
        let Some((up_bytes, layer_bytes)) = form_bytes(&self.params, &self.layers) else { return Ok(()) };
        let mut arena = Arena::zeroed(layer_bytes * self.layers.len(), node)?;
        let jobs: Vec<_> = self.layers.iter().zip(arena.as_mut_slice().chunks_exact_mut(layer_bytes)).collect();
        let mut shares: Vec<Vec<_>> = (0..threads.max(1)).map(|_| Vec::new()).collect();
        for (index, job) in jobs.into_iter().enumerate() {
            shares[index % threads.max(1)].push(job);
        }
        let weights = &*self;
        std::thread::scope(|scope| {
            for share in shares {
                let pack = move || {
                    for (layer, out) in share {
                        let (up, down) = out.split_at_mut(up_bytes);
                        if !up.is_empty() {
                            ternary::pack_rows(weights.ternary(&layer.up), up);
                        }
                        ternary::pack_columns(weights.ternary(&layer.down), COLUMN_LINES, down);
                    }
                };
                spawn(scope, pack)?;
            }
            Ok::<_, Error>(())
        })?;
        let layers = (0..self.layers.len()).map(|i| {
            let start = i * layer_bytes;
            Forms { up: start..start + up_bytes, down: start + up_bytes..start + layer_bytes }
        });
        self.skips = Some(Skips { layers: layers.collect(), arena });
        Ok(())
    }

    fn ternary(&self, linear: &Linear) -> TernaryMatrix<'_> {
        match self.view(linear) {
            LinearView::Ternary(matrix) => matrix,
            LinearView::Dense(_) => unreachable!("only ternary layers have second forms"),
        }
    }

    /// The up projection of layer `index` row by row, where that form is kept.
    #[must_use]
    pub fn up_rows(&self, index: usize) -> Option<RowMatrix<'_>> {
        let (skips, linear) = (self.skips.as_ref()?, &self.layers[index].up);
        let bytes = &skips.arena.as_slice()[skips.layers[index].up.clone()];
        let Storage::Ternary { scale } = linear.storage else { return None };
        if bytes.is_empty() {
            return None;
        }
        Some(RowMatrix::new(bytes, linear.rows, linear.cols, scale).expect("the form has its size"))
    }

    /// The down projection of layer `index` column by column, where that form is kept.
    #[must_use]
    pub fn down_columns(&self, index: usize) -> Option<ColumnMatrix<'_>> {
        let (skips, linear) = (self.skips.as_ref()?, &self.layers[index].down);
        let bytes = &skips.arena.as_slice()[skips.layers[index].down.clone()];
        let Storage::Ternary { scale } = linear.storage else { return None };
        let matrix = ColumnMatrix::new(bytes, linear.rows, linear.cols, COLUMN_LINES, scale);
        Some(matrix.expect("the form has its size"))
    }
}

/// Shorter rows cost more by themselves than the others save: of the default model (512 columns, 47 % of the rows) up
/// took a sixth longer than without.
const ROW_COLS_MIN: usize = 1536;
/// Lines of a column that lie together. One makes the most units of work: 2560 x 6912 with 46 % of the columns takes
/// 205 us on one core, 192 with five lines.
const COLUMN_LINES: usize = 1;
