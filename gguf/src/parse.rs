//! The parser: from the bytes of a file, or of its beginning, to tables that can be trusted.

use crate::cursor::{Cursor, PartRef};
use crate::error::{Error, clip};
use crate::metadata::{Array, Metadata, Value, ValueKind};
use crate::tensor::{TensorInfo, TensorType};
use crate::{
    ALIGNMENT_DEFAULT, ALIGNMENT_MAX, ALIGNMENT_MIN, DIMS_MAX, KEY_BYTES_MAX, MAGIC, METADATA_COUNT_MAX,
    TENSOR_COUNT_MAX, TENSOR_NAME_BYTES_MAX,
};

/// A checked view of a file: all names, values and extents hold.
#[derive(Clone, Debug)]
pub struct Gguf<'a> {
    bytes: &'a [u8],
    version: u32,
    alignment: u64,
    data_offset: u64,
    metadata: Metadata<'a>,
    tensors: Vec<TensorInfo<'a>>,
    /// Indices of `tensors` in the order of their names.
    by_name: Vec<u32>,
}

impl<'a> Gguf<'a> {
    /// Reads and checks everything up to the tensor data, and where that data lies.
    ///
    /// `bytes` is the beginning of a file of `file_bytes` bytes, or all of it. Where the header goes on behind `bytes`
    /// but inside the file the answer is [`Error::NeedMore`]: read at least so much, better twice as much, and parse
    /// again. Memory is used for the two tables only, in proportion to the bytes that are there.
    pub fn parse(bytes: &'a [u8], file_bytes: u64) -> Result<Self, Error> {
        let bytes = &bytes[..bytes.len().min(usize::try_from(file_bytes).unwrap_or(usize::MAX))];
        let mut cursor = Cursor::new(bytes, file_bytes);
        let (version, tensor_count, metadata_count) = read_preamble(&mut cursor)?;
        let mut entries = Vec::new();
        for index in 0..metadata_count {
            entries.push(read_entry(&mut cursor, index)?);
        }
        let metadata = Metadata::new(entries)?;
        let alignment = read_alignment(&metadata)?;
        let mut tensors = Vec::new();
        for index in 0..tensor_count {
            tensors.push(read_tensor(&mut cursor, index, alignment)?);
        }
        let by_name = sort_names(&tensors)?;
        // The header is at most HEADER_BYTES_MAX long, so this cannot overflow.
        let data_offset = cursor.position().next_multiple_of(alignment);
        place_tensors(&mut tensors, data_offset, file_bytes)?;
        Ok(Self { bytes, version, alignment, data_offset, metadata, tensors, by_name })
    }

    /// Format version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Alignment of each tensor's start, in bytes.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Where the tensor data starts, in bytes from the start of the file.
    pub fn data_offset(&self) -> u64 {
        self.data_offset
    }

    pub fn metadata(&self) -> &Metadata<'a> {
        &self.metadata
    }

    /// The tensors in the file's order.
    pub fn tensors(&self) -> &[TensorInfo<'a>] {
        &self.tensors
    }

    pub fn tensor(&self, name: &str) -> Option<&TensorInfo<'a>> {
        let found = self.by_name.binary_search_by_key(&name, |&index| self.tensors[index as usize].name).ok()?;
        Some(&self.tensors[self.by_name[found] as usize])
    }

    /// The data of a tensor, `None` where it is not within the bytes given to [`Gguf::parse`].
    pub fn data(&self, tensor: &TensorInfo<'_>) -> Option<&'a [u8]> {
        let start = usize::try_from(tensor.offset).ok()?;
        let bytes = usize::try_from(tensor.bytes).ok()?;
        self.bytes.get(start..start.checked_add(bytes)?)
    }
}

/// Magic, version, counts: 24 bytes.
const PREAMBLE_BYTES: u64 = 4 + 4 + 8 + 8;
/// A key of one byte and its length, a type, a value of one byte.
const ENTRY_BYTES_MIN: u64 = 8 + 1 + 4 + 1;
/// A name of one byte and its length, one dimension and their count, type, offset.
const TENSOR_ENTRY_BYTES_MIN: u64 = 8 + 1 + 4 + 8 + 4 + 8;

fn read_preamble(cursor: &mut Cursor<'_>) -> Result<(u32, u64, u64), Error> {
    let magic = cursor.array()?;
    if magic != MAGIC {
        return Err(Error::Magic { found: magic });
    }
    let version = cursor.u32()?;
    match version {
        2 | 3 => {}
        _ if matches!(version.swap_bytes(), 1..=3) => return Err(Error::BigEndian),
        _ => return Err(Error::Version { version }),
    }
    let tensors = cursor.u64()?;
    let metadata = cursor.u64()?;
    if tensors > TENSOR_COUNT_MAX {
        return Err(Error::TensorCount { count: tensors });
    }
    if metadata > METADATA_COUNT_MAX {
        return Err(Error::MetadataCount { count: metadata });
    }
    let file_bytes = cursor.file_bytes();
    if PREAMBLE_BYTES + metadata * ENTRY_BYTES_MIN + tensors * TENSOR_ENTRY_BYTES_MIN > file_bytes {
        return Err(Error::Counts { metadata, tensors, file_bytes });
    }
    Ok((version, tensors, metadata))
}

fn read_entry<'a>(cursor: &mut Cursor<'a>, index: u64) -> Result<(&'a str, Value<'a>), Error> {
    cursor.part = PartRef::Key(index);
    let bytes = cursor.u64()?;
    if !(1..=KEY_BYTES_MAX).contains(&bytes) {
        return Err(Error::KeyLength { index, bytes });
    }
    let key = std::str::from_utf8(cursor.take(bytes)?).map_err(|_| Error::KeyUtf8 { index })?;
    cursor.part = PartRef::Value(key);
    let kind = read_kind(cursor, key)?;
    let value = match kind {
        ValueKind::String => Value::String(cursor.string()?),
        ValueKind::Array => Value::Array(read_array(cursor, key)?),
        _ => {
            let width = kind.fixed_bytes().expect("neither string nor array");
            let bytes = cursor.take(width as u64)?;
            Value::from_bytes(kind, bytes).ok_or_else(|| Error::BoolValue { key: clip(key), found: bytes[0] })?
        }
    };
    Ok((key, value))
}

fn read_kind(cursor: &mut Cursor<'_>, key: &str) -> Result<ValueKind, Error> {
    let id = cursor.u32()?;
    ValueKind::from_id(id).ok_or_else(|| Error::ValueType { key: clip(key), id })
}

fn read_array<'a>(cursor: &mut Cursor<'a>, key: &str) -> Result<Array<'a>, Error> {
    const STRING_BYTES_MIN: u64 = 8;
    let kind = read_kind(cursor, key)?;
    if kind == ValueKind::Array {
        return Err(Error::NestedArray { key: clip(key) });
    }
    let count = cursor.u64()?;
    let width = kind.fixed_bytes().map_or(STRING_BYTES_MIN, |width| width as u64);
    let too_long = || Error::ArrayLength { key: clip(key), count, file_bytes: cursor.file_bytes() };
    let bytes_min = count.checked_mul(width).filter(|&bytes| bytes <= cursor.remaining()).ok_or_else(too_long)?;
    let len = usize::try_from(count).map_err(|_| too_long())?;
    let start = cursor.position();
    cursor.expect(bytes_min)?;
    if kind == ValueKind::String {
        for _ in 0..count {
            cursor.string()?;
        }
    } else {
        let bytes = cursor.take(bytes_min)?;
        if let (ValueKind::Bool, Some(&found)) = (kind, bytes.iter().find(|&&byte| byte > 1)) {
            return Err(Error::BoolValue { key: clip(key), found });
        }
    }
    Ok(Array::new(kind, len, cursor.since(start)))
}

fn read_alignment(metadata: &Metadata<'_>) -> Result<u64, Error> {
    let found = match metadata.get("general.alignment") {
        None => return Ok(ALIGNMENT_DEFAULT),
        Some(&Value::U32(found)) => u64::from(found),
        Some(value) => return Err(Error::AlignmentType { found: value.kind().name() }),
    };
    if found.is_power_of_two() && (ALIGNMENT_MIN..=ALIGNMENT_MAX).contains(&found) {
        Ok(found)
    } else {
        Err(Error::Alignment { found })
    }
}

/// One entry of the table, its offset still counted from the start of the data.
fn read_tensor<'a>(cursor: &mut Cursor<'a>, index: u64, alignment: u64) -> Result<TensorInfo<'a>, Error> {
    cursor.part = PartRef::Tensor(index);
    let name_bytes = cursor.u64()?;
    if !(1..=TENSOR_NAME_BYTES_MAX).contains(&name_bytes) {
        return Err(Error::TensorNameLength { index, bytes: name_bytes });
    }
    let name = std::str::from_utf8(cursor.take(name_bytes)?).map_err(|_| Error::TensorNameUtf8 { index })?;
    let dim_count = cursor.u32()?;
    if !(1..=DIMS_MAX).contains(&dim_count) {
        return Err(Error::DimCount { name: clip(name), count: dim_count });
    }
    let mut dims = [1; DIMS_MAX as usize];
    for dim in &mut dims[..dim_count as usize] {
        *dim = cursor.u64()?;
    }
    let id = cursor.u32()?;
    let offset = cursor.u64()?;
    let kind = TensorType::from_id(id).ok_or_else(|| Error::TensorType { name: clip(name), id })?;
    let bytes = kind.tensor_bytes(&dims).map_err(|source| Error::Shape { name: clip(name), source })?;
    if !offset.is_multiple_of(alignment) {
        return Err(Error::Misaligned { name: clip(name), offset, alignment });
    }
    Ok(TensorInfo { name, dims, dim_count, kind, offset, bytes })
}

fn sort_names(tensors: &[TensorInfo<'_>]) -> Result<Vec<u32>, Error> {
    let mut by_name: Vec<u32> = (0..).take(tensors.len()).collect();
    let name = |index: u32| tensors[index as usize].name;
    by_name.sort_unstable_by_key(|&index| name(index));
    match by_name.windows(2).find(|pair| name(pair[0]) == name(pair[1])) {
        Some(pair) => Err(Error::DuplicateTensor { name: clip(name(pair[0])) }),
        None => Ok(by_name),
    }
}

/// Makes the offsets absolute and checks that the tensors lie in the file, apart from each other.
fn place_tensors(tensors: &mut [TensorInfo<'_>], data_offset: u64, file_bytes: u64) -> Result<(), Error> {
    for tensor in &mut *tensors {
        let overflow = || Error::OffsetOverflow { name: clip(tensor.name), offset: tensor.offset };
        let start = data_offset.checked_add(tensor.offset).ok_or_else(overflow)?;
        let end_bytes = start.checked_add(tensor.bytes).ok_or_else(overflow)?;
        if end_bytes > file_bytes {
            return Err(Error::TensorPastEnd { name: clip(tensor.name), end_bytes, file_bytes });
        }
        tensor.offset = start;
    }
    let mut by_offset: Vec<&TensorInfo<'_>> = tensors.iter().collect();
    by_offset.sort_unstable_by_key(|tensor| tensor.offset);
    match by_offset.windows(2).find(|pair| pair[0].offset + pair[0].bytes > pair[1].offset) {
        Some(pair) => Err(Error::Overlap { first: clip(pair[0].name), second: clip(pair[1].name) }),
        None => Ok(()),
    }
}
