//! Safetensors files: a length, a JSON table, bytes. Nothing is trusted: every range is checked against the file, and
//! only what is asked for is read.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use gguf::TensorType;
use gguf::blocks::dequantize_row;
use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};

use super::json::{self, JsonError};

/// Why a checkpoint can't be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("can't read {path}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Json(#[from] JsonError),
    #[error("{path}: the table has {bytes} bytes, the file {file_bytes}, allowed are {TABLE_BYTES_MAX}")]
    Table { path: PathBuf, bytes: u64, file_bytes: u64 },
    #[error("{path}: the table is malformed: {source}")]
    Malformed { path: PathBuf, source: serde_json::Error },
    #[error("the index names {0:?}, which is no file beside it")]
    FileName(String),
    #[error("{0} has neither model.safetensors nor model.safetensors.index.json")]
    NoWeights(PathBuf),
    #[error("tensor `{0}` is there twice")]
    Twice(String),
    #[error("tensor `{name}` takes bytes {start} to {end}, of {bytes}")]
    Range { name: String, start: u64, end: u64, bytes: u64 },
    #[error("tensor `{name}` of shape {shape:?} and type {dtype} has {found} bytes, not {wanted}")]
    Size { name: String, shape: Vec<u64>, dtype: String, found: u64, wanted: String },
    #[error("tensor `{0}` is missing")]
    Missing(String),
    #[error("tensor `{name}` is of type {dtype}, which can't be used here")]
    Dtype { name: String, dtype: String },
    #[error("tensor `{name}` has the shape {shape:?}, wanted is {wanted}")]
    Shape { name: String, shape: Vec<u64>, wanted: String },
}

/// All tensors of a checkpoint, over all its files.
#[derive(Debug)]
pub(super) struct Checkpoint {
    files: Vec<(PathBuf, File)>,
    tensors: BTreeMap<String, Entry>,
}

/// Where a tensor is.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    file: usize,
    pub(super) dtype: String,
    pub(super) shape: Vec<u64>,
    offset: u64,
    bytes: u64,
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The table in its order, with every repetition.
struct Table(Vec<(String, RawEntry)>);

impl<'de> Deserialize<'de> for Table {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Table;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a table of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Table, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Table(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// The checkpoint of a folder: one file, or the files that its index names.
    pub(super) fn open(folder: &Path) -> Result<Self, Error> {
        let (index, single) = (folder.join("model.safetensors.index.json"), folder.join("model.safetensors"));
        let mut names: Vec<String> = if index.exists() {
            json::read::<Index>(&index)?.weight_map.into_values().collect()
        } else if single.exists() {
            vec!["model.safetensors".to_owned()]
        } else {
            return Err(Error::NoWeights(folder.to_owned()));
        };
        names.sort_unstable();
        names.dedup();
        let mut checkpoint = Self { files: Vec::new(), tensors: BTreeMap::new() };
        for name in names {
            // A name with a folder in it could lead anywhere.
            if name.contains('/') || name.starts_with('.') || name.is_empty() {
                return Err(Error::FileName(name));
            }
            checkpoint.add(folder.join(name))?;
        }
        Ok(checkpoint)
    }

    fn add(&mut self, path: PathBuf) -> Result<(), Error> {
        let fail = |source| Error::Io { path: path.clone(), source };
        let file = File::open(&path).map_err(fail)?;
        let file_bytes = file.metadata().map_err(fail)?.len();
        let mut length = [0; 8];
        file.read_exact_at(&mut length, 0).map_err(fail)?;
        let bytes = u64::from_le_bytes(length);
        if bytes > TABLE_BYTES_MAX || bytes > file_bytes.saturating_sub(8) {
            return Err(Error::Table { path, bytes, file_bytes });
        }
        let mut table = vec![0; bytes as usize];
        file.read_exact_at(&mut table, 8).map_err(fail)?;
        let table = serde_json::from_slice(&table);
        let Table(entries) = table.map_err(|source| Error::Malformed { path: path.clone(), source })?;
        let data = 8 + bytes;
        for (name, raw) in entries {
            let entry = checked(name.clone(), raw, self.files.len(), data, file_bytes - data)?;
            if self.tensors.insert(name.clone(), entry).is_some() {
                return Err(Error::Twice(name));
            }
        }
        self.files.push((path, file));
        Ok(())
    }

    /// A tensor by its name, with or without the `model.` in front.
    pub(super) fn find(&self, name: &str) -> Option<&Entry> {
        let bare = || self.tensors.get(name.strip_prefix("model.")?);
        self.tensors.get(name).or_else(bare)
    }

    pub(super) fn get(&self, name: &str) -> Result<&Entry, Error> {
        self.find(name).ok_or_else(|| Error::Missing(name.to_owned()))
    }

    /// Reads the last element of each tensor of a known type; how many tensors there are.
    pub(super) fn check(&self) -> Result<usize, Error> {
        for entry in self.tensors.values() {
            let elements = entry.shape.iter().product::<u64>() as usize;
            if matches!(entry.dtype.as_str(), "F32" | "F16" | "BF16") && elements > 0 {
                self.floats(entry, elements - 1, 1)?;
            }
        }
        Ok(self.tensors.len())
    }

    /// Bytes of the tensor from `first` on.
    pub(super) fn read(&self, entry: &Entry, first: u64, out: &mut [u8]) -> Result<(), Error> {
        assert!(first + out.len() as u64 <= entry.bytes, "within the tensor");
        let (path, file) = &self.files[entry.file];
        let read = file.read_exact_at(out, entry.offset + first);
        read.map_err(|source| Error::Io { path: path.clone(), source })
    }

    /// `count` elements from element `first` on as f32.
    pub(super) fn floats(&self, entry: &Entry, first: usize, count: usize) -> Result<Vec<f32>, Error> {
        let kind = match entry.dtype.as_str() {
            "F32" => TensorType::F32,
            "F16" => TensorType::F16,
            "BF16" => TensorType::BF16,
            _ => return Err(Error::Dtype { name: entry.name.clone(), dtype: entry.dtype.clone() }),
        };
        let width = kind.block_bytes() as usize;
        let mut bytes = vec![0; count * width];
        self.read(entry, (first * width) as u64, &mut bytes)?;
        let mut values = vec![0.0; count];
        dequantize_row(kind, &bytes, count, &mut values).expect("one element is one block");
        Ok(values)
    }
}

impl Entry {
    /// Refuses any other shape.
    pub(super) fn expect(&self, shape: &[usize]) -> Result<(), Error> {
        if self.shape.iter().map(|&dim| dim as usize).eq(shape.iter().copied()) {
            return Ok(());
        }
        Err(Error::Shape { name: self.name.clone(), shape: self.shape.clone(), wanted: format!("{shape:?}") })
    }
}

fn checked(name: String, raw: RawEntry, file: usize, data: u64, bytes: u64) -> Result<Entry, Error> {
    let [start, end] = raw.data_offsets;
    if start > end || end > bytes {
        return Err(Error::Range { name, start, end, bytes });
    }
    let elements = raw.shape.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim));
    let wanted = element_bytes(&raw.dtype).zip(elements).and_then(|(width, elements)| width.checked_mul(elements));
    // A type that isn't known is refused where its tensor is used.
    if element_bytes(&raw.dtype).is_some() && wanted != Some(end - start) {
        let wanted = wanted.map_or_else(|| "so many".to_owned(), |bytes| bytes.to_string());
        return Err(Error::Size { name, shape: raw.shape, dtype: raw.dtype, found: end - start, wanted });
    }
    Ok(Entry { name, file, dtype: raw.dtype, shape: raw.shape, offset: data + start, bytes: end - start })
}

fn element_bytes(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F64" | "I64" | "U64" => 8,
        "F32" | "I32" | "U32" => 4,
        "F16" | "BF16" | "I16" | "U16" => 2,
        "U8" | "I8" | "BOOL" => 1,
        _ => return None,
    })
}

/// Longest table, that of safetensors itself; a model of thousands of tensors has under 1 MB.
const TABLE_BYTES_MAX: u64 = 100_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{SystemTime, UNIX_EPOCH};

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
            let path = std::env::temp_dir().join(format!("bitnetd-safetensors-{}-{nanos}", std::process::id()));
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn open(&self, bytes: &[u8]) -> Result<Checkpoint, Error> {
            std::fs::write(self.0.join("model.safetensors"), bytes).unwrap();
            Checkpoint::open(&self.0)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            // A folder that is left over harms nobody.
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn file(table: &str, data: &[u8]) -> Vec<u8> {
        [&(table.len() as u64).to_le_bytes()[..], table.as_bytes(), data].concat()
    }

    const GOOD: &str = r#"{"__metadata__":{"format":"pt"},"model.a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
        "b":{"dtype":"BF16","shape":[1,2],"data_offsets":[8,12]}}"#;

    #[test]
    fn tensors_are_read_with_and_without_their_prefix() {
        let folder = Folder::new();
        let data = [1.5f32.to_le_bytes(), (-2.0f32).to_le_bytes(), [0x80, 0x3f, 0, 0xc0]].concat();
        let checkpoint = folder.open(&file(GOOD, &data)).unwrap();
        assert_eq!(checkpoint.floats(checkpoint.get("model.a").unwrap(), 0, 2).unwrap(), [1.5, -2.0]);
        let b = checkpoint.get("model.b").unwrap();
        assert_eq!(checkpoint.floats(b, 1, 1).unwrap(), [-2.0]);
        assert!(b.expect(&[1, 2]).is_ok() && matches!(b.expect(&[2]), Err(Error::Shape { .. })));
        assert!(matches!(checkpoint.get("c"), Err(Error::Missing(name)) if name == "c"));
    }

    #[test]
    fn hostile_tables_are_refused() {
        let folder = Folder::new();
        let table = |entry: &str| file(&format!(r#"{{"t":{entry}}}"#), &[0; 16]);
        type E = Error;
        assert!(matches!(folder.open(b"short"), Err(E::Io { .. })));
        assert!(matches!(folder.open(&u64::MAX.to_le_bytes()), Err(E::Table { .. })));
        assert!(matches!(folder.open(&9u64.to_le_bytes()), Err(E::Table { .. })));
        for text in ["", "[]", "{", r#"{"t":1}"#, r#"{"t":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#] {
            assert!(matches!(folder.open(&file(text, &[0; 16])), Err(E::Malformed { .. })), "{text}");
        }
        let deep = "[".repeat(100_000);
        assert!(matches!(folder.open(&file(&format!(r#"{{"__metadata__":{deep}"#), &[])), Err(E::Malformed { .. })));
        for offsets in ["[0,17]", "[8,4]", "[18446744073709551615,18446744073709551615]"] {
            let entry = format!(r#"{{"dtype":"F32","shape":[1],"data_offsets":{offsets}}}"#);
            assert!(matches!(folder.open(&table(&entry)), Err(E::Range { .. })), "{offsets}");
        }
        for shape in ["[3]", "[4294967296,4294967296]", "[18446744073709551615]", "[]"] {
            let entry = format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[0,8]}}"#);
            assert!(matches!(folder.open(&table(&entry)), Err(E::Size { .. })), "{shape}");
        }
        let twice = r#"{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
        assert!(matches!(folder.open(&file(twice, &[0; 4])), Err(E::Twice(name)) if name == "t"));
    }

    #[test]
    fn every_prefix_and_every_changed_byte_is_refused_or_read_without_a_panic() {
        let folder = Folder::new();
        let good = file(GOOD, &[0; 12]);
        for end in 0..good.len() {
            assert!(folder.open(&good[..end]).is_err(), "{end}");
        }
        for at in 0..good.len() {
            for flip in [1, 0x20, 0xff] {
                let mut bytes = good.clone();
                bytes[at] ^= flip;
                let _ = folder.open(&bytes);
            }
        }
    }

    #[test]
    fn an_index_that_leads_elsewhere_is_refused() {
        let folder = Folder::new();
        for name in ["../model.safetensors", "/etc/passwd", "", ".hidden"] {
            let index = serde_json::json!({ "weight_map": { "t": name } }).to_string();
            std::fs::write(folder.0.join("model.safetensors.index.json"), index).unwrap();
            assert!(matches!(Checkpoint::open(&folder.0), Err(Error::FileName(_))), "{name}");
        }
    }
}
