//! The packed weights of one replica: read-only, in one arena, shared by all workers of a node.

use kernels::dense::{DenseKind, DenseMatrix};
use kernels::rope::Rope;
use kernels::screen::ScreenMatrix;
use kernels::ternary::TernaryMatrix;
use tuning::NodeId;
use tuning::memory::{Arena, Backing};

use super::HyperParameters;
use super::skips::Skips;

/// One linear layer: y = W x, W is `rows` x `cols`, kept in the replica's arena.
#[derive(Clone, Debug)]
pub struct Linear {
    pub rows: usize,
    pub cols: usize,
    pub(super) storage: Storage,
    pub(super) start: usize,
    pub(super) bytes: usize,
    /// Factor on the result, from an optional `.scale` tensor.
    pub output_scale: Option<f32>,
    /// Norm of its own input, after that which it shares with its neighbours: queries, keys, values, gate and up of
    /// embedding models.
    pub input_norm: Option<Vec<f32>>,
}

/// How the weights of a linear layer are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Storage {
    Ternary { scale: f32 },
    Dense(DenseKind),
}

/// The weights of a linear layer as the kernels take them.
#[derive(Clone, Copy)]
pub enum LinearView<'a> {
    Ternary(TernaryMatrix<'a>),
    Dense(DenseMatrix<'a>),
}

/// One transformer block.
#[derive(Clone)]
pub struct Layer {
    pub attn_norm: Vec<f32>,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    /// Of each head of queries and of keys, before RoPE.
    pub q_norm: Option<Vec<f32>>,
    pub k_norm: Option<Vec<f32>>,
    pub attn_sub_norm: Option<Vec<f32>>,
    pub o: Linear,
    /// Of what attention adds.
    pub attn_post_norm: Option<Vec<f32>>,
    pub ffn_norm: Vec<f32>,
    pub gate: Linear,
    pub up: Linear,
    pub ffn_sub_norm: Option<Vec<f32>>,
    pub down: Linear,
    /// Of what the feed-forward part adds.
    pub ffn_post_norm: Option<Vec<f32>>,
}

/// A replica: everything that a forward pass reads.
pub struct Weights {
    pub params: HyperParameters,
    pub embedding: Linear,
    pub layers: Vec<Layer>,
    pub output_norm: Vec<f32>,
    /// The head of its own; `None` where it is tied to the embedding.
    pub head: Option<Linear>,
    pub rope: Rope,
    /// Most positions of a sequence: the model's context, or less where the operator said so.
    pub context: usize,
    pub(super) arena: Arena,
    pub(super) skips: Option<Skips>,
    /// The int8 copy of the head, if it has one.
    pub(super) screen: Option<Screen>,
}

/// Where the int8 copy of the head is, its greatest norm of a row, and for how many rows it pays.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen {
    pub(super) start: usize,
    pub(super) bytes: usize,
    pub(super) weight_max: f32,
    pub(super) rows_min: usize,
}

impl Linear {
    /// Bytes that its weights take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the input must be quantised to int8 first.
    #[must_use]
    pub fn is_ternary(&self) -> bool {
        matches!(self.storage, Storage::Ternary { .. })
    }
}

impl Weights {
    /// The weights of `linear`, which belongs to this replica.
    #[must_use]
    pub fn view(&self, linear: &Linear) -> LinearView<'_> {
        let bytes = &self.arena.as_slice()[linear.start..linear.start + linear.bytes];
        let Linear { rows, cols, .. } = *linear;
        match linear.storage {
            Storage::Ternary { scale } => {
                LinearView::Ternary(TernaryMatrix::new(bytes, rows, cols, scale).expect("the loader sized the matrix"))
            }
            Storage::Dense(kind) => {
                LinearView::Dense(DenseMatrix::new(kind, bytes, rows, cols).expect("the loader sized the matrix"))
            }
        }
    }

    /// The layer that turns the last hidden state into logits.
    #[must_use]
    pub fn head(&self) -> &Linear {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// All linear layers and tables, with the names of their tensors less the `.weight`.
    pub fn linears(&self) -> impl Iterator<Item = (String, &Linear)> {
        let layers = self.layers.iter().enumerate().flat_map(|(index, layer)| {
            let parts = [
                ("attn_q", &layer.q),
                ("attn_k", &layer.k),
                ("attn_v", &layer.v),
                ("attn_output", &layer.o),
                ("ffn_gate", &layer.gate),
                ("ffn_up", &layer.up),
                ("ffn_down", &layer.down),
            ];
            parts.map(|(part, linear)| (format!("blk.{index}.{part}"), linear))
        });
        let embedding = std::iter::once(("token_embd".to_owned(), &self.embedding));
        embedding.chain(layers).chain(self.head.iter().map(|head| ("output".to_owned(), head)))
    }

    /// The int8 copy of the head, which tells the tokens that could be among the best; `None` where the head has none.
    #[must_use]
    pub fn screen(&self) -> Option<ScreenMatrix<'_>> {
        let Screen { start, bytes, weight_max, .. } = self.screen?;
        match self.view(self.head()) {
            LinearView::Dense(head) => {
                ScreenMatrix::new(&self.arena.as_slice()[start..start + bytes], &head, weight_max)
            }
            LinearView::Ternary(_) => None,
        }
    }

    /// Fewest rows of a step for which the int8 copy of the head pays; `None` where the head has none.
    #[must_use]
    pub fn screen_rows_min(&self) -> Option<usize> {
        Some(self.screen?.rows_min)
    }

    /// Bytes of the int8 copy of the head.
    #[must_use]
    pub fn screen_bytes(&self) -> usize {
        self.screen.map_or(0, |screen| screen.bytes)
    }

    /// The same weights in memory of `node`, locked as these are.
    pub(super) fn replica(&self, node: NodeId) -> Result<Self, tuning::Error> {
        let skips = self.skips.as_ref().map(|skips| skips.replica(node)).transpose()?;
        let mut replica = Self {
            params: self.params.clone(),
            embedding: self.embedding.clone(),
            layers: self.layers.clone(),
            output_norm: self.output_norm.clone(),
            head: self.head.clone(),
            rope: self.rope.clone(),
            context: self.context,
            arena: self.arena.copied_to(node)?,
            skips,
            screen: self.screen,
        };
        replica.lock();
        Ok(replica)
    }

    /// Keeps the weights in memory, as far as the limit on locked memory allows.
    pub(super) fn lock(&mut self) {
        self.arena.lock();
        if let Some(skips) = &mut self.skips {
            skips.lock();
        }
    }

    /// What the weights lie in, and their second forms if they have such.
    pub fn backings(&self) -> impl Iterator<Item = Backing> {
        std::iter::once(&self.arena).chain(self.skips.as_ref().map(Skips::arena)).map(Arena::backing)
    }

    /// Bytes of the packed weights, second forms included.
    #[must_use]
    pub fn packed_bytes(&self) -> usize {
        self.arena.len() + self.skips.as_ref().map_or(0, Skips::bytes)
    }

    /// Bytes that one decode step of one sequence reads, without its KV cache: all linear layers and the head.
    #[must_use]
    pub fn bytes_per_token(&self) -> usize {
        let layers: usize = self
            .layers
            .iter()
            .flat_map(|l| [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down])
            .map(|linear| linear.bytes)
            .sum();
        layers + if self.params.pooling.is_some() { 0 } else { self.head().bytes }
    }
}
