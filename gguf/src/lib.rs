//! GGUF files: bytes to a validated view and back.
//!
//! [`Gguf::parse`] checks every count, size and offset of a file against the bytes that are there and
//! hands out borrowed views; nothing is copied but the two tables. [`writer`] makes files, [`blocks`] and
//! [`ternary`] know the layouts of the tensor data.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, versions 2 and 3, little endian.
#![forbid(unsafe_code)]

pub mod blocks;
mod cursor;
mod error;
mod metadata;
mod parse;
mod tensor;
pub mod ternary;
pub mod writer;

pub use error::{Error, Part, ShapeError};
pub use metadata::{Array, ArrayIter, F32s, I32s, Metadata, Strings, Value, ValueKind};
pub use parse::Gguf;
pub use tensor::{OtherType, TensorInfo, TensorType};

/// The first four bytes of a file.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// Alignment of tensor data where `general.alignment` is absent.
pub const ALIGNMENT_DEFAULT: u64 = 32;
/// Smallest `general.alignment`; the specification wants a multiple of 8.
pub const ALIGNMENT_MIN: u64 = 8;
/// Largest `general.alignment` accepted.
pub const ALIGNMENT_MAX: u64 = 1 << 20;
/// Longest metadata key; the specification's limit.
pub const KEY_BYTES_MAX: u64 = (1 << 16) - 1;
/// Longest tensor name; the specification's limit.
pub const TENSOR_NAME_BYTES_MAX: u64 = 64;
/// Most dimensions of a tensor.
pub const DIMS_MAX: u32 = 4;
/// Most metadata entries; real files have a few dozen.
pub const METADATA_COUNT_MAX: u64 = 1 << 16;
/// Most tensors; the largest mixture-of-experts models have about ten thousand.
pub const TENSOR_COUNT_MAX: u64 = 1 << 16;
/// Most bytes before the tensor data; vocabularies of 260,000 tokens with merges take 15 MiB.
pub const HEADER_BYTES_MAX: u64 = 256 << 20;
