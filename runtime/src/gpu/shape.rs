//! The shape of a model as the kernels see it, and whether they can run it at all.

use kernels::attention::{BLOCK, KvType};
use kernels::dense::DenseKind;
use kernels::rope::RopeKind;

use super::abi::{HEAD_DIM_MAX, head_block_bytes};
use super::wire::SHAPE_WORDS;
use crate::kv::blocks_for;
use crate::model::{Activation, Linear, LinearView, Weights};

/// Numbers that a worker process needs to lay out and run a model; they cross a process boundary as words.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Shape {
    pub hidden: u32,
    pub layers: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub feed_forward: u32,
    pub vocab: u32,
    pub rope_half: u32,
    /// 1: value 2 i rotates with 2 i + 1; 0: value i with i + `rope_half`.
    pub rope_pairs: u32,
    /// 1: SiLU; 0: squared ReLU.
    pub silu: u32,
    /// 1: attention output and gated values are normalised before they are rounded.
    pub sub_norms: u32,
    /// 1: head and embedding are kept as floats; 0: they are F16.
    pub wide: u32,
    /// 1: keys and values are bytes; 0: they are F16.
    pub kv_bytes: u32,
    pub context: u32,
    pub norm_eps: f32,
    /// Sequences with blocks of their own.
    pub slots: u32,
    /// Rows of one step.
    pub rows_max: u32,
}

/// Why a model stays on the CPU.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unsupported {
    #[error("{what} is {kind}: the GPU kernels take {taken} there")]
    Layout { what: &'static str, kind: String, taken: &'static str },
    #[error("{what} is {got}, the GPU kernels take {limit}")]
    Size { what: &'static str, got: usize, limit: &'static str },
    #[error("it is an embedding model: the GPU kernels have no norms of inputs, queries and keys")]
    Embedding,
}

impl Shape {
    /// The shape of `weights` with such a KV cache, for `slots` sequences and steps of `rows_max` rows.
    ///
    /// # Errors
    /// What the kernels can't run.
    pub(super) fn of(weights: &Weights, kv_type: KvType, slots: usize, rows_max: usize) -> Result<Self, Unsupported> {
        let params = &weights.params;
        if params.pooling.is_some() {
            return Err(Unsupported::Embedding);
        }
        for layer in &weights.layers {
            let linears = [&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down];
            if linears.iter().any(|linear| !linear.is_ternary()) {
                return Err(layout("a linear layer", weights, linears, "ternary weights"));
            }
        }
        let tables = [weights.head(), &weights.embedding].map(|linear| weights.view(linear));
        if !tables.iter().all(|table| matches!(table, LinearView::Dense(_))) {
            return Err(Unsupported::Layout {
                what: "the head or the embedding",
                kind: "ternary".into(),
                taken: "dense ones",
            });
        }
        let is_half =
            |table: &LinearView<'_>| matches!(table, LinearView::Dense(matrix) if matrix.kind() == DenseKind::F16);
        let sizes = [
            (
                "head size",
                params.head_dim,
                params.head_dim.is_multiple_of(8) && params.head_dim <= HEAD_DIM_MAX,
                "multiples of 8 to 128",
            ),
            ("hidden size", params.hidden, params.hidden.is_multiple_of(16), "multiples of 16"),
            ("feed-forward size", params.feed_forward, params.feed_forward.is_multiple_of(4), "multiples of 4"),
        ];
        if let Some((what, got, _, limit)) = sizes.into_iter().find(|(_, _, fits, _)| !fits) {
            return Err(Unsupported::Size { what, got, limit });
        }
        let word = |value: usize| u32::try_from(value).expect("hyper-parameters are bounded");
        Ok(Self {
            hidden: word(params.hidden),
            layers: word(params.layers),
            heads: word(params.heads),
            kv_heads: word(params.kv_heads),
            head_dim: word(params.head_dim),
            feed_forward: word(params.feed_forward),
            vocab: word(params.vocab),
            rope_half: word(params.rope_dims / 2),
            rope_pairs: u32::from(params.family.rope_kind() == RopeKind::Norm),
            silu: u32::from(params.family.activation() == Activation::Silu),
            sub_norms: u32::from(params.family.has_sub_norms()),
            wide: u32::from(!tables.iter().all(is_half)),
            kv_bytes: u32::from(kv_type == KvType::Int8),
            context: word(weights.context),
            norm_eps: params.norm_eps,
            slots: word(slots),
            rows_max: word(rows_max),
        })
    }

    /// As words, in the order of the fields.
    pub(super) fn words(&self) -> [u32; SHAPE_WORDS] {
        [
            self.hidden,
            self.layers,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.feed_forward,
            self.vocab,
            self.rope_half,
            self.rope_pairs,
            self.silu,
            self.sub_norms,
            self.wide,
            self.kv_bytes,
            self.context,
            self.norm_eps.to_bits(),
            self.slots,
            self.rows_max,
        ]
    }

    pub(super) fn from_words(words: [u32; SHAPE_WORDS]) -> Self {
        let [
            hidden,
            layers,
            heads,
            kv_heads,
            head_dim,
            feed_forward,
            vocab,
            rope_half,
            rope_pairs,
            silu,
            sub_norms,
            wide,
            kv_bytes,
            context,
            eps,
            slots,
            rows_max,
        ] = words;
        let norm_eps = f32::from_bits(eps);
        Self {
            hidden,
            layers,
            heads,
            kv_heads,
            head_dim,
            feed_forward,
            vocab,
            rope_half,
            rope_pairs,
            silu,
            sub_norms,
            wide,
            kv_bytes,
            context,
            norm_eps,
            slots,
            rows_max,
        }
    }

    pub(super) fn group(&self) -> usize {
        (self.heads / self.kv_heads) as usize
    }

    pub(super) fn query_width(&self) -> usize {
        (self.heads * self.head_dim) as usize
    }

    pub(super) fn qkv_width(&self) -> usize {
        ((self.heads + 2 * self.kv_heads) * self.head_dim) as usize
    }

    /// Bytes of an element of head and embedding.
    pub(super) fn table_value_bytes(&self) -> usize {
        if self.wide == 1 { size_of::<f32>() } else { size_of::<u16>() }
    }

    /// The widest input of a linear layer, in whole weight tiles.
    pub(super) fn widest_padded(&self) -> usize {
        let widest = (self.hidden as usize).max(self.feed_forward as usize).max(self.query_width());
        widest.next_multiple_of(kernels::ternary::FRAGMENT_COLS)
    }

    /// Entries of a sequence's block table.
    pub(super) fn table_stride(&self) -> usize {
        blocks_for(self.context as usize)
    }

    /// Bytes of a KV block over all layers.
    pub(super) fn block_bytes(&self) -> usize {
        let (heads, dim) = ((self.layers * self.kv_heads) as usize, self.head_dim as usize);
        heads * if self.kv_bytes == 1 { head_block_bytes(dim) } else { 2 * BLOCK * dim * size_of::<u16>() }
    }
}

fn layout<'a>(
    what: &'static str,
    weights: &Weights,
    linears: impl IntoIterator<Item = &'a Linear>,
    taken: &'static str,
) -> Unsupported {
    let kinds = linears.into_iter().filter_map(|linear| match weights.view(linear) {
        LinearView::Dense(matrix) => Some(format!("{:?}", matrix.kind())),
        LinearView::Ternary(_) => None,
    });
    Unsupported::Layout { what, kind: kinds.last().unwrap_or_else(|| "ternary".into()), taken }
}
