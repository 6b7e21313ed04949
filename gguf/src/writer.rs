//! Writes files: the tables first, then the tensor data streamed in order, so that large models need little memory.
//!
//! ```
//! use gguf::{TensorType, writer::Writer};
//! let mut writer = Writer::new(3);
//! writer.kv("general.architecture", "bitnet-b1.58").kv("bitnet-b1.58.block_count", 1u32);
//! writer.array("tokenizer.ggml.scores", &[0.0f32; 4]).strings("tokenizer.ggml.tokens", ["a", "b", "c", "d"]);
//! writer.tensor("output_norm.weight", &[2], TensorType::F32)?;
//! let mut body = writer.write_header(Vec::new())?;
//! body.write_tensor(&[0, 0, 128, 63, 0, 0, 128, 63])?;
//! let file = body.finish()?;
//! assert_eq!(gguf::Gguf::parse(&file, file.len() as u64)?.tensors().len(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::io::{self, Write};

use crate::error::{Error, clip};
use crate::metadata::{Array, Value, ValueKind};
use crate::{ALIGNMENT_DEFAULT, ALIGNMENT_MAX, DIMS_MAX, Gguf, MAGIC, TensorType};

/// Why a file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The tables would not pass [`Gguf::parse`].
    #[error("file would be refused: {0}")]
    Refused(#[from] Error),
    #[error("tensor {name:?} has {wanted} bytes, given were {found}")]
    TensorBytes { name: String, wanted: u64, found: u64 },
    #[error("data given after the last tensor")]
    NoTensorLeft,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A number or a bool that arrays can hold.
pub trait Element: Copy {
    const KIND: ValueKind;
    fn put(self, bytes: &mut Vec<u8>);
}

macro_rules! elements {
    ($($number:ty => $kind:ident),*) => {$(
        impl Element for $number {
            const KIND: ValueKind = ValueKind::$kind;
            fn put(self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&self.to_le_bytes());
            }
        }
        impl From<$number> for Value<'_> {
            fn from(value: $number) -> Self {
                Self::$kind(value)
            }
        }
    )*};
}
elements!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64, f32 => F32, f64 => F64);

impl Element for bool {
    const KIND: ValueKind = ValueKind::Bool;
    fn put(self, bytes: &mut Vec<u8>) {
        bytes.push(self.into());
    }
}

impl From<bool> for Value<'_> {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(value: &'a str) -> Self {
        Self::String(value.as_bytes())
    }
}

impl<'a> From<Array<'a>> for Value<'a> {
    fn from(value: Array<'a>) -> Self {
        Self::Array(value)
    }
}

/// The tables of a file to be.
///
/// Metadata is encoded as it is given. What a reader would refuse (a key twice, a bad alignment) is refused by
/// [`Writer::write_header`], which parses what it is about to write.
#[derive(Clone, Debug)]
pub struct Writer {
    version: u32,
    alignment: u64,
    metadata: Vec<u8>,
    metadata_count: u64,
    tensors: Vec<Planned>,
}

#[derive(Clone, Debug)]
struct Planned {
    name: String,
    dims: Vec<u64>,
    kind: TensorType,
    bytes: u64,
}

impl Writer {
    /// An empty file of format version 2 or 3.
    pub fn new(version: u32) -> Self {
        Self { version, alignment: ALIGNMENT_DEFAULT, metadata: Vec::new(), metadata_count: 0, tensors: Vec::new() }
    }

    /// Adds an entry; a value read from another file is copied as it is. `general.alignment` sets the alignment.
    pub fn kv<'v>(&mut self, key: &str, value: impl Into<Value<'v>>) -> &mut Self {
        let value = value.into();
        if let ("general.alignment", Value::U32(alignment)) = (key, value) {
            self.alignment = alignment.into();
        }
        self.entry(key, value.kind());
        match value {
            Value::U8(v) => v.put(&mut self.metadata),
            Value::I8(v) => v.put(&mut self.metadata),
            Value::U16(v) => v.put(&mut self.metadata),
            Value::I16(v) => v.put(&mut self.metadata),
            Value::U32(v) => v.put(&mut self.metadata),
            Value::I32(v) => v.put(&mut self.metadata),
            Value::U64(v) => v.put(&mut self.metadata),
            Value::I64(v) => v.put(&mut self.metadata),
            Value::F32(v) => v.put(&mut self.metadata),
            Value::F64(v) => v.put(&mut self.metadata),
            Value::Bool(v) => v.put(&mut self.metadata),
            Value::String(v) => put_string(&mut self.metadata, v),
            Value::Array(v) => {
                v.kind().id().put(&mut self.metadata);
                (v.len() as u64).put(&mut self.metadata);
                self.metadata.extend_from_slice(v.bytes());
            }
        }
        self
    }

    /// Adds an array of numbers or bools.
    pub fn array<T: Element>(&mut self, key: &str, values: &[T]) -> &mut Self {
        self.entry(key, ValueKind::Array);
        T::KIND.id().put(&mut self.metadata);
        (values.len() as u64).put(&mut self.metadata);
        for &value in values {
            value.put(&mut self.metadata);
        }
        self
    }

    /// Adds an array of strings, which need not be UTF-8.
    pub fn strings<S: AsRef<[u8]>>(&mut self, key: &str, values: impl IntoIterator<Item = S>) -> &mut Self {
        self.entry(key, ValueKind::Array);
        ValueKind::String.id().put(&mut self.metadata);
        let count_at = self.metadata.len();
        let mut count = 0u64;
        count.put(&mut self.metadata);
        for value in values {
            put_string(&mut self.metadata, value.as_ref());
            count += 1;
        }
        self.metadata[count_at..count_at + 8].copy_from_slice(&count.to_le_bytes());
        self
    }

    /// Adds a tensor, the contiguous dimension first. Its data comes in this order too.
    pub fn tensor(&mut self, name: &str, dims: &[u64], kind: TensorType) -> Result<&mut Self, Error> {
        if !(1..=DIMS_MAX as usize).contains(&dims.len()) {
            return Err(Error::DimCount { name: clip(name), count: u32::try_from(dims.len()).unwrap_or(u32::MAX) });
        }
        let mut padded = [1; DIMS_MAX as usize];
        padded[..dims.len()].copy_from_slice(dims);
        let bytes = kind.tensor_bytes(&padded).map_err(|source| Error::Shape { name: clip(name), source })?;
        self.tensors.push(Planned { name: name.to_owned(), dims: dims.to_vec(), kind, bytes });
        Ok(self)
    }

    /// Bytes of each tensor's data, in order.
    pub fn tensor_bytes(&self) -> impl ExactSizeIterator<Item = u64> {
        self.tensors.iter().map(|tensor| tensor.bytes)
    }

    /// Writes everything before the tensor data, after checking that it reads back.
    pub fn write_header<W: Write>(&self, mut out: W) -> Result<Body<W>, WriteError> {
        let (header, data_bytes) = self.header()?;
        Gguf::parse(&header, (header.len() as u64).saturating_add(data_bytes))?;
        out.write_all(&header)?;
        let tensors = self.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.bytes)).collect();
        let file_bytes = header.len() as u64 + data_bytes;
        Ok(Body { out, tensors, index: 0, written: 0, alignment: self.alignment, file_bytes })
    }

    /// The bytes before the tensor data, padded, and how many follow.
    fn header(&self) -> Result<(Vec<u8>, u64), Error> {
        // A bad alignment is refused when the header is parsed.
        let alignment = self.alignment.clamp(1, ALIGNMENT_MAX);
        let mut bytes = MAGIC.to_vec();
        self.version.put(&mut bytes);
        (self.tensors.len() as u64).put(&mut bytes);
        self.metadata_count.put(&mut bytes);
        bytes.extend_from_slice(&self.metadata);
        let mut offset = 0u64;
        for tensor in &self.tensors {
            put_string(&mut bytes, tensor.name.as_bytes());
            (tensor.dims.len() as u32).put(&mut bytes);
            for &dim in &tensor.dims {
                dim.put(&mut bytes);
            }
            tensor.kind.id().put(&mut bytes);
            offset.put(&mut bytes);
            offset = offset
                .checked_add(tensor.bytes)
                .and_then(|end| end.checked_next_multiple_of(alignment))
                .ok_or_else(|| Error::OffsetOverflow { name: clip(&tensor.name), offset })?;
        }
        let padding = padding(bytes.len() as u64, alignment);
        bytes.resize(bytes.len() + padding, 0);
        Ok((bytes, offset))
    }

    fn entry(&mut self, key: &str, kind: ValueKind) {
        put_string(&mut self.metadata, key.as_bytes());
        kind.id().put(&mut self.metadata);
        self.metadata_count += 1;
    }
}

/// The tensor data of a file whose header is written.
#[derive(Debug)]
pub struct Body<W> {
    out: W,
    tensors: Vec<(String, u64)>,
    index: usize,
    /// Bytes of the current tensor that are written.
    written: u64,
    alignment: u64,
    file_bytes: u64,
}

impl<W: Write> Body<W> {
    /// Size of the finished file.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Writes the next tensor's whole data, and the padding behind it.
    pub fn write_tensor(&mut self, data: &[u8]) -> Result<(), WriteError> {
        let (name, wanted) = self.tensors.get(self.index).ok_or(WriteError::NoTensorLeft)?;
        let found = self.written + data.len() as u64;
        if found != *wanted {
            return Err(WriteError::TensorBytes { name: clip(name), wanted: *wanted, found });
        }
        self.write_piece(data)
    }

    /// Writes the next bytes of the current tensor; after its last one the padding, and the next tensor is current.
    pub fn write_piece(&mut self, piece: &[u8]) -> Result<(), WriteError> {
        let (name, wanted) = self.tensors.get(self.index).ok_or(WriteError::NoTensorLeft)?;
        let found = self.written + piece.len() as u64;
        if found > *wanted {
            return Err(WriteError::TensorBytes { name: clip(name), wanted: *wanted, found });
        }
        self.out.write_all(piece)?;
        self.written = found;
        if found == *wanted {
            self.out.write_all(&vec![0; padding(found, self.alignment)])?;
            self.index += 1;
            self.written = 0;
        }
        Ok(())
    }

    /// Flushes and hands the output back, once all tensors are written.
    pub fn finish(mut self) -> Result<W, WriteError> {
        if let Some((name, wanted)) = self.tensors.get(self.index) {
            return Err(WriteError::TensorBytes { name: clip(name), wanted: *wanted, found: self.written });
        }
        self.out.flush()?;
        Ok(self.out)
    }
}

fn padding(bytes: u64, alignment: u64) -> usize {
    // Below the alignment, which is at most ALIGNMENT_MAX in a header that was parsed.
    (bytes.next_multiple_of(alignment) - bytes) as usize
}

fn put_string(bytes: &mut Vec<u8>, string: &[u8]) {
    (string.len() as u64).put(bytes);
    bytes.extend_from_slice(string);
}
