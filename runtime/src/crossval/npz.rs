//! Recorded logits in NumPy's `.npz`: a ZIP file of arrays, stored, not compressed (`numpy.savez`).
//!
//! `tokens` (n integers) and `logits` (n x vocabulary floats) are one sequence; several are `tokens.0`, `logits.0`,
//! `tokens.1` and so on. The central directory says where the arrays are; every size is checked against the bytes that
//! are there.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use gguf::blocks::f16_to_f32;

use super::Error;
use crate::model::Model;

/// Sequences and the logits that something else computed for them.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    tokens: Vec<Vec<u32>>,
    logits: Vec<Vec<f32>>,
    vocab: usize,
}

/// What is wrong with an `.npz` file.
#[derive(Debug, thiserror::Error)]
pub enum NpzError {
    #[error("can't read it")]
    Io(#[from] std::io::Error),
    #[error("{bytes} bytes, at most {NPZ_BYTES_MAX} are read")]
    TooLarge { bytes: u64 },
    #[error("it is no ZIP file, or it is cut off")]
    NoDirectory,
    #[error("ZIP entry {index}: {what}")]
    Entry { index: usize, what: &'static str },
    #[error("array `{name}` is compressed: write it with numpy.savez, not savez_compressed")]
    Compressed { name: String },
    #[error("array `{name}`: {what}")]
    Array { name: String, what: &'static str },
    #[error("there is no array `{name}`")]
    Missing { name: String },
    #[error("`tokens` of {tokens} with `logits` of {rows} x {cols}, in sequence {sequence}")]
    Shape { sequence: usize, tokens: usize, rows: usize, cols: usize },
}

/// Largest file: the logits of 4,000 positions of a vocabulary of 128,000 in f32.
const NPZ_BYTES_MAX: u64 = 2 << 30;
const ENTRIES_MAX: usize = 1024;

impl Recorded {
    /// Reads a file.
    ///
    /// # Errors
    /// When it can't be read or is not as it should be.
    pub fn open(path: &Path) -> Result<Self, NpzError> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        if bytes > NPZ_BYTES_MAX {
            return Err(NpzError::TooLarge { bytes });
        }
        let mut data = Vec::new();
        file.take(NPZ_BYTES_MAX).read_to_end(&mut data)?;
        Self::parse(&data)
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// When they are not as they should be.
    pub fn parse(data: &[u8]) -> Result<Self, NpzError> {
        let arrays = directory(data)?;
        let find = |name: String| {
            let found = arrays.iter().find(|(found, _)| *found == name);
            found.map(|(_, array)| *array).ok_or(NpzError::Missing { name })
        };
        let numbered = !arrays.iter().any(|(name, _)| name == "tokens");
        let count = arrays.iter().filter(|(name, _)| name.starts_with("tokens")).count();
        let mut recorded = Self { tokens: Vec::new(), logits: Vec::new(), vocab: 0 };
        for sequence in 0..count.max(1) {
            let name = |part: &str| if numbered { format!("{part}.{sequence}") } else { part.to_owned() };
            let tokens = integers(&name("tokens"), find(name("tokens"))?)?;
            let (logits, rows, cols) = matrix(&name("logits"), find(name("logits"))?)?;
            let vocab = if sequence == 0 { cols } else { recorded.vocab };
            if tokens.is_empty() || rows != tokens.len() || cols != vocab || cols == 0 {
                return Err(NpzError::Shape { sequence, tokens: tokens.len(), rows, cols });
            }
            recorded.vocab = vocab;
            recorded.tokens.push(tokens);
            recorded.logits.push(logits);
            if !numbered {
                break;
            }
        }
        Ok(recorded)
    }

    pub(super) fn logits(&self) -> &[Vec<f32>] {
        &self.logits
    }

    /// The sequences, if this model can be fed them.
    pub(super) fn checked_sequences(&self, model: &Model) -> Result<Vec<Vec<u32>>, Error> {
        let (vocab, context) = (model.weights.params.vocab, model.weights.context);
        if self.vocab != vocab {
            return Err(Error::Vocabulary { ours: vocab, theirs: self.vocab });
        }
        for tokens in &self.tokens {
            if tokens.len() > context {
                return Err(Error::TooLong { found: tokens.len(), context });
            }
            if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocab) {
                return Err(Error::Token { token, vocab });
            }
        }
        Ok(self.tokens.clone())
    }
}

/// Names, without `.npy`, and bytes of the entries.
fn directory(data: &[u8]) -> Result<Vec<(String, &[u8])>, NpzError> {
    const END: [u8; 4] = *b"PK\x05\x06";
    const END_BYTES: usize = 22;
    const COMMENT_BYTES_MAX: usize = 65_535;
    // The record is the last thing but for a comment.
    let last = data.len().checked_sub(END_BYTES).ok_or(NpzError::NoDirectory)?;
    let first = last.saturating_sub(COMMENT_BYTES_MAX);
    let end = (first..=last).rev().find(|&at| data[at..].starts_with(&END)).ok_or(NpzError::NoDirectory)?;
    let count = usize::from(u16_at(data, end + 10).ok_or(NpzError::NoDirectory)?);
    let mut at = u32_at(data, end + 16).ok_or(NpzError::NoDirectory)? as usize;
    if count > ENTRIES_MAX {
        return Err(NpzError::Entry { index: count, what: "too many" });
    }
    let mut arrays = Vec::new();
    for index in 0..count {
        let entry = |what| NpzError::Entry { index, what };
        let (name, bytes, next) = directory_entry(data, at, index)?;
        let name = std::str::from_utf8(name).map_err(|_| entry("its name is no UTF-8"))?;
        if let Some(name) = name.strip_suffix(".npy") {
            arrays.push((name.to_owned(), bytes));
        }
        at = next;
    }
    Ok(arrays)
}

/// Name and bytes of the entry whose record in the directory is at `at`, and where the next record is.
fn directory_entry(data: &[u8], at: usize, index: usize) -> Result<(&[u8], &[u8], usize), NpzError> {
    let entry = |what| NpzError::Entry { index, what };
    let cut = || entry("its record is cut off");
    if data.get(at..).is_none_or(|rest| !rest.starts_with(b"PK\x01\x02")) {
        return Err(entry("its record is not there"));
    }
    let number = |offset: usize| u16_at(data, at + offset).map(usize::from).ok_or_else(cut);
    let long = |offset: usize| u32_at(data, at + offset).map(|value| value as usize).ok_or_else(cut);
    let (method, crc) = (number(10)?, u32_at(data, at + 16).ok_or_else(cut)?);
    let (packed, size, local) = (long(20)?, long(24)?, long(42)?);
    let (name_bytes, extra_bytes, comment_bytes) = (number(28)?, number(30)?, number(32)?);
    let name = data.get(at + RECORD_BYTES..at + RECORD_BYTES + name_bytes).ok_or_else(cut)?;
    if method != 0 {
        return Err(NpzError::Compressed { name: String::from_utf8_lossy(name).chars().take(64).collect() });
    }
    if packed != size || size == u32::MAX as usize || local == u32::MAX as usize {
        return Err(entry("it is larger than 4 GiB or its sizes differ"));
    }
    if data.get(local..).is_none_or(|rest| !rest.starts_with(b"PK\x03\x04")) {
        return Err(entry("its header is not there"));
    }
    let local_name = u16_at(data, local + 26).map(usize::from).ok_or_else(cut)?;
    let local_extra = u16_at(data, local + 28).map(usize::from).ok_or_else(cut)?;
    let start = local + LOCAL_BYTES + local_name + local_extra;
    let bytes = data.get(start..).and_then(|rest| rest.get(..size)).ok_or_else(|| entry("its data are cut off"))?;
    if crc32(bytes) != crc {
        return Err(entry("its checksum is wrong"));
    }
    Ok((name, bytes, at + RECORD_BYTES + name_bytes + extra_bytes + comment_bytes))
}

const RECORD_BYTES: usize = 46;
const LOCAL_BYTES: usize = 30;

/// An NPY array: element type, shape, data.
fn array<'a>(name: &str, bytes: &'a [u8]) -> Result<(String, Vec<usize>, &'a [u8]), NpzError> {
    let fail = |what| NpzError::Array { name: name.to_owned(), what };
    if !bytes.starts_with(b"\x93NUMPY") {
        return Err(fail("it is no NPY array"));
    }
    let cut = || fail("its header is cut off");
    let (header_at, header_bytes) = match bytes.get(6) {
        Some(1) => (10, u16_at(bytes, 8).map(usize::from).ok_or_else(cut)?),
        Some(2 | 3) => (12, u32_at(bytes, 8).ok_or_else(cut)? as usize),
        _ => return Err(fail("its version is not 1 to 3")),
    };
    let header = bytes.get(header_at..).and_then(|rest| rest.get(..header_bytes)).ok_or_else(cut)?;
    let header = std::str::from_utf8(header).map_err(|_| fail("its header is no text"))?;
    if !header.contains("'fortran_order': False") {
        return Err(fail("it is not in C order"));
    }
    let kind = header.split_once("'descr': '").and_then(|(_, rest)| rest.split_once('\''));
    let kind = kind.ok_or_else(|| fail("its header has no element type"))?.0.to_owned();
    let shape = header.split_once("'shape': (").and_then(|(_, rest)| rest.split_once(')'));
    let shape = shape.ok_or_else(|| fail("its header has no shape"))?.0;
    let dims = shape.split(',').map(str::trim).filter(|dim| !dim.is_empty());
    let dims: Result<Vec<usize>, _> = dims.map(str::parse).collect();
    Ok((kind, dims.map_err(|_| fail("its shape is no list of numbers"))?, &bytes[header_at + header_bytes..]))
}

fn integers(name: &str, bytes: &[u8]) -> Result<Vec<u32>, NpzError> {
    let fail = |what| NpzError::Array { name: name.to_owned(), what };
    let (kind, shape, data) = array(name, bytes)?;
    let wide: Vec<i64> = match kind.as_str() {
        "<i4" => data.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b).into()).collect(),
        "<u4" => data.as_chunks().0.iter().map(|&b| u32::from_le_bytes(b).into()).collect(),
        "<i8" => data.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect(),
        _ => return Err(fail("it holds no int32, uint32 or int64")),
    };
    if shape != [wide.len()] {
        return Err(fail("its data are not as long as its shape, or it has not one dimension"));
    }
    wide.iter().map(|&id| u32::try_from(id).map_err(|_| fail("a token is no u32"))).collect()
}

fn matrix(name: &str, bytes: &[u8]) -> Result<(Vec<f32>, usize, usize), NpzError> {
    let fail = |what| NpzError::Array { name: name.to_owned(), what };
    let (kind, shape, data) = array(name, bytes)?;
    let values: Vec<f32> = match kind.as_str() {
        "<f2" => data.as_chunks().0.iter().map(|&b| f16_to_f32(u16::from_le_bytes(b))).collect(),
        "<f4" => data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        "<f8" => data.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b) as f32).collect(),
        _ => return Err(fail("it holds no float16, float32 or float64")),
    };
    match shape[..] {
        [rows, cols] if rows.checked_mul(cols) == Some(values.len()) => Ok((values, rows, cols)),
        _ => Err(fail("its data are not as long as its shape, or it has not two dimensions")),
    }
}

fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    data.get(at..)?.first_chunk().map(|&bytes| u16::from_le_bytes(bytes))
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..)?.first_chunk().map(|&bytes| u32::from_le_bytes(bytes))
}

/// The CRC of ZIP (polynomial 0xedb88320).
fn crc32(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = crc_table();
    !data.iter().fold(!0, |crc, &byte| TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8))
}

const fn crc_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let (mut value, mut bit) = (index as u32, 0);
        while bit < 8 {
            value = if value & 1 == 1 { 0xedb8_8320 ^ (value >> 1) } else { value >> 1 };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
}

#[cfg(test)]
mod tests;
