//! Everything that can be wrong with a file, one variant a fault.

use std::fmt;

use crate::{
    ALIGNMENT_MAX, ALIGNMENT_MIN, DIMS_MAX, HEADER_BYTES_MAX, KEY_BYTES_MAX, METADATA_COUNT_MAX, TENSOR_COUNT_MAX,
    TENSOR_NAME_BYTES_MAX,
};

/// Why a file, or a value of its metadata, was refused.
///
/// Names that come from the file are clipped to 128 bytes and printed escaped.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The header goes on past the prefix that was given, not past the file: read more and parse again.
    #[error("header goes on to byte {at_least} at least, past the prefix given")]
    NeedMore { at_least: u64 },
    #[error("{part} ends at byte {end_bytes}, file has {file_bytes}")]
    Truncated { part: Part, end_bytes: u64, file_bytes: u64 },
    #[error("header goes on to byte {end_bytes}, limit {HEADER_BYTES_MAX}")]
    HeaderTooLarge { end_bytes: u64 },

    #[error("magic is {found:?}, not \"GGUF\"")]
    Magic { found: [u8; 4] },
    #[error("big-endian file, only little-endian ones are read")]
    BigEndian,
    #[error("version {version}, only 2 and 3 are read")]
    Version { version: u32 },
    #[error("{count} metadata entries, limit {METADATA_COUNT_MAX}")]
    MetadataCount { count: u64 },
    #[error("{count} tensors, limit {TENSOR_COUNT_MAX}")]
    TensorCount { count: u64 },
    #[error("{metadata} metadata entries and {tensors} tensors do not fit in {file_bytes} bytes")]
    Counts { metadata: u64, tensors: u64, file_bytes: u64 },

    #[error("key of metadata entry {index} has {bytes} bytes, allowed are 1 to {KEY_BYTES_MAX}")]
    KeyLength { index: u64, bytes: u64 },
    #[error("key of metadata entry {index} is not UTF-8")]
    KeyUtf8 { index: u64 },
    #[error("key {key:?} occurs twice")]
    DuplicateKey { key: String },
    #[error("value of {key:?} has unknown type {id}")]
    ValueType { key: String, id: u32 },
    #[error("value of {key:?} holds {found} as a bool, allowed are 0 and 1")]
    BoolValue { key: String, found: u8 },
    #[error("value of {key:?} is an array of arrays, which is not supported")]
    NestedArray { key: String },
    #[error("array {key:?} of {count} elements does not fit in {file_bytes} bytes")]
    ArrayLength { key: String, count: u64, file_bytes: u64 },
    #[error("general.alignment has type {found}, not u32")]
    AlignmentType { found: &'static str },
    #[error("general.alignment is {found}, not a power of two from {ALIGNMENT_MIN} to {ALIGNMENT_MAX}")]
    Alignment { found: u64 },

    #[error("name of tensor {index} has {bytes} bytes, allowed are 1 to {TENSOR_NAME_BYTES_MAX}")]
    TensorNameLength { index: u64, bytes: u64 },
    #[error("name of tensor {index} is not UTF-8")]
    TensorNameUtf8 { index: u64 },
    #[error("tensor {name:?} occurs twice")]
    DuplicateTensor { name: String },
    #[error("tensor {name:?} has {count} dimensions, allowed are 1 to {DIMS_MAX}")]
    DimCount { name: String, count: u32 },
    #[error("tensor {name:?} has unknown type {id}")]
    TensorType { name: String, id: u32 },
    #[error("tensor {name:?}: {source}")]
    Shape { name: String, source: ShapeError },
    #[error("tensor {name:?} starts at {offset} in the data, no multiple of the alignment {alignment}")]
    Misaligned { name: String, offset: u64, alignment: u64 },
    #[error("tensor {name:?} starts at {offset} in the data, more than 64 bits can address")]
    OffsetOverflow { name: String, offset: u64 },
    #[error("tensor {name:?} ends at {end_bytes}, file has {file_bytes} bytes")]
    TensorPastEnd { name: String, end_bytes: u64, file_bytes: u64 },
    #[error("tensors {first:?} and {second:?} overlap")]
    Overlap { first: String, second: String },

    #[error("value of {key:?} is {found}, not {wanted}")]
    WrongType { key: String, wanted: &'static str, found: &'static str },
    #[error("value of {key:?} is out of range for {wanted}")]
    OutOfRange { key: String, wanted: &'static str },
    #[error("value of {key:?} is not UTF-8")]
    NotUtf8 { key: String },
}

impl Error {
    /// True where the file may be right but is of a kind that this crate does not read.
    pub fn is_unsupported(&self) -> bool {
        matches!(
            self,
            Self::BigEndian | Self::Version { version: 1 | 4.. } | Self::NestedArray { .. } | Self::TensorType { .. }
        )
    }
}

/// What was being read when the file ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Magic, version and the two counts.
    Header,
    /// Key and type of the metadata entry with this index.
    Key(u64),
    /// Value of this key.
    Value(String),
    /// Entry of the tensor table with this index.
    Tensor(u64),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => write!(f, "file header"),
            Self::Key(index) => write!(f, "key of metadata entry {index}"),
            Self::Value(key) => write!(f, "value of {key:?}"),
            Self::Tensor(index) => write!(f, "table entry of tensor {index}"),
        }
    }
}

/// Why dimensions do not make a tensor of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    #[error("dimension {index} is zero")]
    ZeroDim { index: usize },
    #[error("number of elements does not fit in 63 bits")]
    ElementsOverflow,
    #[error("size in bytes does not fit in 64 bits")]
    BytesOverflow,
    #[error("{elements} elements are no multiple of the block of {block_elements}")]
    PartialBlock { elements: u64, block_elements: u64 },
    #[error("rows of {cols} elements, {kind} needs {cols_min} at least")]
    RowTooShort { kind: &'static str, cols: u64, cols_min: u64 },
}

/// An owned copy of a name from the file for an error, clipped.
pub(crate) fn clip(name: &str) -> String {
    const CLIP_BYTES: usize = 128;
    if name.len() <= CLIP_BYTES {
        return name.to_owned();
    }
    let end = (0..=CLIP_BYTES).rev().find(|&end| name.is_char_boundary(end)).unwrap_or(0);
    format!("{}...", &name[..end])
}
