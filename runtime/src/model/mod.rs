//! A model: where its bytes come from, what they say, and the packed weights that a replica computes with.

use std::sync::Arc;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use gguf::Gguf;
use tuning::NodeId;

use crate::text::{ChatTemplate, TemplateError, Tokenizer, TokenizerError};

mod direct;
mod head_copy;
mod load;
mod params;
mod skips;
mod source;
mod stream;
mod tensors;
mod tiles;
mod weights;

pub use load::{Footprint, HeadScreen, LoadOptions, check, footprint, load};
pub use params::{Activation, Family, HyperParameters, Pooling};
pub use source::{Source, TILES_FILE};
pub use stream::{Pass, Reading, Route};
pub(crate) use tensors::{Decoded, Tensors};
pub use tiles::Tiles;
pub use weights::{Layer, Linear, LinearView, Weights};

/// A model that can be served: weights, tokenizer and chat template. `quantization` is the name of the ternary layout
/// in its file.
pub struct Model {
    pub name: String,
    pub weights: Weights,
    pub tokenizer: Arc<Tokenizer>,
    pub template: Arc<ChatTemplate>,
    pub quantization: &'static str,
    /// A longer text has more tokens than the context holds.
    pub text_bytes_max: usize,
    pub load_time: Duration,
    /// How the file was read.
    pub pass: Pass,
}

impl Model {
    /// Loads the model of `source` under `name`. `progress` gets bytes done and bytes in all.
    ///
    /// # Errors
    /// Whatever is wrong with the file: see [`Error`].
    pub fn load(
        source: &Source,
        name: String,
        options: LoadOptions,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<Self, Error> {
        Self::load_as(source, name, options, false, progress)
    }

    /// As [`Model::load`], with the SHA-256 of the file in [`Model::pass`].
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_hashed(
        source: &Source,
        name: String,
        options: LoadOptions,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<Self, Error> {
        Self::load_as(source, name, options, true, progress)
    }

    fn load_as(
        source: &Source,
        name: String,
        options: LoadOptions,
        hash: bool,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<Self, Error> {
        let started = Instant::now();
        let header = source.header()?;
        let gguf = Gguf::parse(&header, source.bytes())?;
        let metadata = gguf.metadata();
        let tokenizer = Tokenizer::from_gguf(metadata)?;
        // An embedding model's template is a left-over of the model that it was made from: nothing renders it.
        let template = match Family::of(metadata)?.is_embedding() {
            true => None,
            false => metadata.str("tokenizer.chat_template")?,
        };
        let template = ChatTemplate::for_tokenizer(template, &tokenizer)?;
        let (weights, pass) = load(source, &gguf, options, hash, progress)?;
        if tokenizer.vocab_len() > weights.params.vocab {
            let (tokens, rows) = (tokenizer.vocab_len(), weights.params.vocab);
            return Err(Error::BadShape(format!("the tokenizer has {tokens} tokens, the embedding {rows} rows")));
        }
        let ternary = gguf.tensors().iter().find(|tensor| tensor.kind.is_ternary());
        let quantization = ternary.map_or("dense", |tensor| tensor.kind.name());
        let longest = (0..weights.params.vocab).map(|id| tokenizer.token_text(id as u32).len()).max().unwrap_or(0);
        let text_bytes_max = weights.context.saturating_mul(longest.max(1));
        let load_time = started.elapsed();
        let (tokenizer, template) = (Arc::new(tokenizer), Arc::new(template));
        Ok(Self { name, weights, tokenizer, template, quantization, text_bytes_max, load_time, pass })
    }

    /// The same model with weights on `node`.
    ///
    /// # Errors
    /// When there is no memory for them.
    pub fn replica(&self, node: NodeId) -> Result<Self, tuning::Error> {
        Ok(Self {
            name: self.name.clone(),
            weights: self.weights.replica(node)?,
            tokenizer: Arc::clone(&self.tokenizer),
            template: Arc::clone(&self.template),
            pass: self.pass.clone(),
            quantization: self.quantization,
            text_bytes_max: self.text_bytes_max,
            load_time: self.load_time,
        })
    }

    /// Tokens of a text that the chat template made.
    #[must_use]
    pub fn template_tokens(&self, rendered: &str) -> Vec<u32> {
        let mut tokens = Vec::new();
        self.tokenizer.encode_chat(rendered, &mut tokens);
        tokens
    }
}

/// A thread of `scope`, if there can be a further one.
pub(crate) fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>, Error> {
    std::thread::Builder::new().spawn_scoped(scope, work).map_err(Error::Thread)
}

/// Why a model can't be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("can't read {what}")]
    Io { what: String, source: std::io::Error },
    #[error(transparent)]
    Malformed(#[from] gguf::Error),
    #[error("metadata lacks `{0}`")]
    MissingKey(String),
    #[error("`{key}` is {value}, allowed are {limit}")]
    OutOfRange { key: String, value: String, limit: String },
    #[error("architecture `{0}` is not supported: only bitnet-b1.58, bitnet-25, bitnet, llama, qwen3 and gemma3 are")]
    UnknownArchitecture(String),
    #[error("tensor `{0}` is missing")]
    MissingTensor(String),
    #[error("tensor `{name}` is {got}, the hyper-parameters want {wanted}")]
    TensorShape { name: String, got: String, wanted: String },
    #[error("tensor `{name}`: {why}")]
    BadTensor { name: String, why: String },
    #[error("{0}")]
    BadShape(String),
    #[error("{0} is not supported")]
    Unsupported(String),
    #[error("{what}: {source}")]
    Tiles { what: String, source: gguf::ternary::TableError },
    #[error(
        "tensor `{name}` is {kind} of {rows} rows and {cols} columns, whose tile sizes are not known: put bitnet.cpp's \
         `{TILES_FILE}` beside the model"
    )]
    NoTiles { name: String, kind: &'static str, rows: usize, cols: usize },
    #[error(transparent)]
    Memory(#[from] tuning::Error),
    #[error("can't start a thread to load it with")]
    Thread(#[source] std::io::Error),
    #[error("the tokenizer can't be built: {0}")]
    Tokenizer(#[from] TokenizerError),
    #[error("the chat template can't be compiled: {0}")]
    Template(#[from] TemplateError),
}
