//! The small JSON files of a checkpoint, read whole within a bound.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// Why a file gives nothing.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    #[error("can't read {path}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{0} is larger than {JSON_BYTES_MAX} bytes")]
    TooLarge(PathBuf),
    #[error("{path} is not as it should be: {source}")]
    Malformed { path: PathBuf, source: serde_json::Error },
}

/// Largest file; the tokenizer of a vocabulary of 262,144 tokens has 35 MB.
const JSON_BYTES_MAX: u64 = 128 << 20;

pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, JsonError> {
    let bytes = read_bytes(path)?;
    serde_json::from_slice(&bytes).map_err(|source| JsonError::Malformed { path: path.to_owned(), source })
}

/// `None` where there is no such file.
pub(super) fn read_optional<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, JsonError> {
    if path.exists() { read(path).map(Some) } else { Ok(None) }
}

pub(super) fn read_bytes(path: &Path) -> Result<Vec<u8>, JsonError> {
    let fail = |source| JsonError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(JSON_BYTES_MAX + 1).read_to_end(&mut bytes)).map_err(fail)?;
    if bytes.len() as u64 > JSON_BYTES_MAX {
        return Err(JsonError::TooLarge(path.to_owned()));
    }
    Ok(bytes)
}
