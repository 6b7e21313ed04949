//! A model: where its bytes come from, what they say, and the packed weights that a replica computes with.

mod load;
mod params;
mod source;
mod weights;

pub use load::{LoadOptions, load};
pub use params::{Activation, Family, HyperParameters};
pub use source::Source;
pub use weights::{Layer, Linear, LinearView, Weights};

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
    #[error("architecture `{0}` is not supported: only bitnet-b1.58, bitnet-25, bitnet and llama are")]
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
    #[error(transparent)]
    Memory(#[from] tuning::Error),
    #[error("the tokenizer can't be built: {0}")]
    Tokenizer(String),
    #[error("the chat template can't be compiled: {0}")]
    Template(String),
}
