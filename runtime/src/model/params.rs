//! Hyper-parameters of a model, read from GGUF metadata and checked against each other and against named limits.

use gguf::Metadata;
use kernels::rope::RopeKind;

use super::Error;

/// The model families whose graphs are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `bitnet-b1.58` (alias `bitnet-25`): squared ReLU, sub norms, tied head.
    BitnetB158,
    /// `bitnet`: SiLU, sub norms, tied head.
    Bitnet,
    /// `llama`: SiLU, no sub norms, interleaved RoPE, head of its own where the file has one.
    Llama,
    /// `qwen3`, an embedding model: SiLU, norms of queries and keys, input norms for each projection.
    Qwen3,
    /// `gemma3`, an embedding model: as qwen3 with GELU, scaled embeddings and a norm of what each block adds.
    Gemma3,
}

/// What the feed-forward gate goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    SquaredRelu,
    Silu,
    /// The tanh form.
    Gelu,
}

/// Which hidden states of a text become its embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    Mean,
    /// The first token's.
    First,
    /// The last token's.
    Last,
}

impl Pooling {
    /// As people and programs are told.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::First => "cls",
            Self::Last => "last",
        }
    }
}

/// Checked hyper-parameters: every count is at least 1 and inside its limit.
#[derive(Clone, Debug)]
pub struct HyperParameters {
    pub family: Family,
    pub architecture: String,
    pub name: Option<String>,
    pub vocab: usize,
    /// Most positions that the model was made for.
    pub context: usize,
    pub hidden: usize,
    pub layers: usize,
    pub feed_forward: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub rope_dims: usize,
    pub rope_base: f32,
    /// Factor on the angles: 1 / the linear scaling factor.
    pub rope_scale: f32,
    pub norm_eps: f32,
    /// Factor of the attention scores.
    pub attention_scale: f32,
    /// Factor on the embeddings of the tokens.
    pub embedding_scale: Option<f32>,
    /// Of embedding models; `None` for those that generate.
    pub pooling: Option<Pooling>,
}

impl Family {
    fn by_architecture(name: &str) -> Option<Self> {
        match name {
            "bitnet-b1.58" | "bitnet-25" => Some(Self::BitnetB158),
            "bitnet" => Some(Self::Bitnet),
            "llama" => Some(Self::Llama),
            "qwen3" => Some(Self::Qwen3),
            "gemma3" => Some(Self::Gemma3),
            _ => None,
        }
    }

    /// That of a file.
    ///
    /// # Errors
    /// A missing key or an architecture that is not known.
    pub(super) fn of(metadata: &Metadata<'_>) -> Result<Self, Error> {
        let architecture =
            metadata.str("general.architecture")?.ok_or(Error::MissingKey("general.architecture".into()))?;
        Self::by_architecture(architecture).ok_or_else(|| Error::UnknownArchitecture(architecture.to_owned()))
    }

    /// What the gate goes through.
    #[must_use]
    pub fn activation(self) -> Activation {
        match self {
            Self::BitnetB158 => Activation::SquaredRelu,
            Self::Bitnet | Self::Llama | Self::Qwen3 => Activation::Silu,
            Self::Gemma3 => Activation::Gelu,
        }
    }

    /// Whether there are norms before the attention output and before `ffn_down`.
    #[must_use]
    pub fn has_sub_norms(self) -> bool {
        matches!(self, Self::BitnetB158 | Self::Bitnet)
    }

    /// Whether it gives vectors, not tokens: queries and keys are normalised then, and any projection may have a norm of
    /// its input.
    #[must_use]
    pub fn is_embedding(self) -> bool {
        matches!(self, Self::Qwen3 | Self::Gemma3)
    }

    /// Whether what attention and feed-forward add is normalised.
    #[must_use]
    pub fn has_post_norms(self) -> bool {
        self == Self::Gemma3
    }

    /// How RoPE pairs the elements of a head.
    #[must_use]
    pub fn rope_kind(self) -> RopeKind {
        if self == Self::Llama { RopeKind::Norm } else { RopeKind::Neox }
    }

    /// Whether an `output.weight` is used where there is one (bitnet graphs always tie the head).
    #[must_use]
    pub fn may_untie_head(self) -> bool {
        self == Self::Llama
    }
}

impl HyperParameters {
    /// Reads `general.architecture` and the keys below it. `embedding_rows` is the row count of `token_embd.weight`,
    /// which is the vocabulary size.
    ///
    /// # Errors
    /// An unknown architecture, a missing key, a value outside its limit, or values that don't fit each other.
    pub fn from_metadata(metadata: &Metadata<'_>, embedding_rows: usize) -> Result<Self, Error> {
        let family = Family::of(metadata)?;
        let architecture = metadata.str("general.architecture")?.unwrap_or_default();
        let keys = Keys { metadata, architecture };
        let hidden = keys.count("embedding_length", HIDDEN_MAX)?;
        let heads = keys.count("attention.head_count", HEADS_MAX)?;
        let kv_heads = keys.count_or("attention.head_count_kv", HEADS_MAX, heads)?;
        if heads % kv_heads != 0 {
            return Err(Error::BadShape(format!("{heads} heads can't share {kv_heads} key-value heads")));
        }
        let head_dim = match keys.optional("attention.key_length", HEAD_DIM_MAX)? {
            Some(length) => length,
            None if hidden % heads == 0 => hidden / heads,
            None => return Err(Error::BadShape(format!("hidden size {hidden} is no multiple of {heads} heads"))),
        };
        let value_dim = keys.count_or("attention.value_length", HEAD_DIM_MAX, head_dim)?;
        if head_dim < HEAD_DIM_MIN {
            return Err(Error::BadShape(format!("heads of {head_dim} values, {HEAD_DIM_MIN} at least are supported")));
        }
        if value_dim != head_dim {
            return Err(Error::BadShape(format!("key length {head_dim} and value length {value_dim} differ")));
        }
        let rope_dims = keys.count_or("rope.dimension_count", HEAD_DIM_MAX, head_dim)?;
        if rope_dims > head_dim || !rope_dims.is_multiple_of(2) {
            return Err(Error::BadShape(format!("{rope_dims} RoPE dimensions in a head of {head_dim}")));
        }
        let vocab = keys.count_or("vocab_size", VOCAB_MAX, embedding_rows)?;
        if vocab != embedding_rows {
            return Err(Error::BadShape(format!("vocab_size is {vocab}, token_embd.weight has {embedding_rows} rows")));
        }
        let norm_eps = keys.float("attention.layer_norm_rms_epsilon", 0.0, 1.0)?.unwrap_or(NORM_EPS_DEFAULT);
        let layers = keys.count("block_count", LAYERS_MAX)?;
        // llama.cpp tells the 27B model, whose queries are scaled by the width of a head without `key_length`, by its depth.
        let scaled_dim =
            if family == Family::Gemma3 && layers == GEMMA3_27B_LAYERS { hidden / heads } else { head_dim };
        Ok(Self {
            family,
            architecture: architecture.to_owned(),
            name: metadata.str("general.name")?.map(str::to_owned),
            vocab,
            context: keys.count("context_length", CONTEXT_MAX)?,
            hidden,
            layers,
            feed_forward: keys.count("feed_forward_length", FEED_FORWARD_MAX)?,
            heads,
            kv_heads,
            head_dim,
            rope_dims,
            rope_base: keys.float("rope.freq_base", 1.0, 1e12)?.unwrap_or(ROPE_BASE_DEFAULT),
            rope_scale: rope_scale(&keys)?,
            norm_eps,
            attention_scale: 1.0 / (scaled_dim as f32).sqrt(),
            embedding_scale: (family == Family::Gemma3).then(|| (hidden as f32).sqrt()),
            pooling: if family.is_embedding() { Some(pooling(&keys)?) } else { None },
        })
    }

    /// Columns of the attention output: all heads side by side.
    #[must_use]
    pub fn attention_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Values that a row of a step gives: logits, or the hidden state of an embedding model.
    #[must_use]
    pub fn output_width(&self) -> usize {
        if self.pooling.is_some() { self.hidden } else { self.vocab }
    }

    /// The widest input of any linear layer.
    #[must_use]
    pub fn widest(&self) -> usize {
        self.hidden.max(self.feed_forward).max(self.attention_width())
    }
}

struct Keys<'m, 'a> {
    metadata: &'m Metadata<'a>,
    architecture: &'m str,
}

impl Keys<'_, '_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn optional(&self, key: &str, max: usize) -> Result<Option<usize>, Error> {
        let name = self.name(key);
        let Some(value) = self.metadata.u64(&name)? else { return Ok(None) };
        match usize::try_from(value) {
            Ok(value) if (1..=max).contains(&value) => Ok(Some(value)),
            _ => Err(Error::OutOfRange { key: name, value: value.to_string(), limit: format!("1 to {max}") }),
        }
    }

    fn count(&self, key: &str, max: usize) -> Result<usize, Error> {
        self.optional(key, max)?.ok_or_else(|| Error::MissingKey(self.name(key)))
    }

    fn count_or(&self, key: &str, max: usize, default: usize) -> Result<usize, Error> {
        Ok(self.optional(key, max)?.unwrap_or(default))
    }

    fn float(&self, key: &str, min: f32, max: f32) -> Result<Option<f32>, Error> {
        let name = self.name(key);
        let Some(value) = self.metadata.f32(&name)? else { return Ok(None) };
        if (min..=max).contains(&value) {
            return Ok(Some(value));
        }
        Err(Error::OutOfRange { key: name, value: value.to_string(), limit: format!("{min} to {max}") })
    }
}

fn rope_scale(keys: &Keys<'_, '_>) -> Result<f32, Error> {
    let kind = keys.metadata.str(&keys.name("rope.scaling.type"))?.unwrap_or("none");
    let factor = keys.float("rope.scaling.factor", 1e-6, 1e6)?.unwrap_or(1.0);
    match kind {
        "none" => Ok(1.0),
        "linear" => Ok(1.0 / factor),
        other => Err(Error::Unsupported(format!("RoPE scaling of type `{other}`"))),
    }
}

/// llama.cpp's numbers; the last token's state where a file says nothing, as these models were trained for. What would make
/// another graph of it is refused.
fn pooling(keys: &Keys<'_, '_>) -> Result<Pooling, Error> {
    if keys.metadata.bool(&keys.name("attention.causal"))? == Some(false) {
        return Err(Error::Unsupported("attention that looks at later tokens".into()));
    }
    if keys.optional("attention.sliding_window", CONTEXT_MAX)?.is_some() {
        return Err(Error::Unsupported("attention within a sliding window".into()));
    }
    match keys.metadata.u32(&keys.name("pooling_type"))? {
        Some(1) => Ok(Pooling::Mean),
        Some(2) => Ok(Pooling::First),
        None | Some(3) => Ok(Pooling::Last),
        Some(other) => Err(Error::Unsupported(format!("pooling of type {other}"))),
    }
}

const GEMMA3_27B_LAYERS: usize = 62;
const HIDDEN_MAX: usize = 1 << 16;
const HEADS_MAX: usize = 1 << 10;
/// One vector of the attention kernel.
const HEAD_DIM_MIN: usize = 16;
const HEAD_DIM_MAX: usize = 1 << 10;
const LAYERS_MAX: usize = 1 << 10;
const FEED_FORWARD_MAX: usize = 1 << 18;
const VOCAB_MAX: usize = 1 << 22;
const CONTEXT_MAX: usize = 1 << 24;
const ROPE_BASE_DEFAULT: f32 = 10_000.0;
const NORM_EPS_DEFAULT: f32 = 1e-5;
