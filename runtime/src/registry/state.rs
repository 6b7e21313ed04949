//! What is served, on disk, so that a server started again after any end serves the last good models.
//!
//! The file is replaced as a whole: written beside, made durable, renamed, and the rename made durable. Whoever reads
//! it finds the old state or the new one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The file in the state directory.
pub struct StateFile {
    directory: PathBuf,
}

/// The served models, in the order of their names' coming.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    pub models: Vec<Saved>,
}

/// A served name.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    pub name: String,
    /// What the configuration named when this was written, if it did: another file there goes before.
    pub configured: Option<PathBuf>,
    /// The last good version, then those that were good before it.
    pub versions: Vec<Version>,
}

/// A file that was served.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Version {
    pub path: PathBuf,
    pub sha256: String,
}

/// Why there is no state.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the state in {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("the state in {path} is damaged: {source}")]
    Damaged { path: PathBuf, source: serde_json::Error },
}

impl StateFile {
    /// In `directory`, which is made if it is not there.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn in_directory(directory: &Path) -> Result<Self, Error> {
        fs::create_dir_all(directory).map_err(|source| Error::Io { path: directory.to_owned(), source })?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// What was written last; nothing where nothing was.
    ///
    /// # Errors
    /// When it can't be read or is no state.
    pub fn read(&self) -> Result<State, Error> {
        let path = self.path();
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| Error::Damaged { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(State::default()),
            Err(source) => Err(Error::Io { path, source }),
        }
    }

    /// Replaces it.
    ///
    /// # Errors
    /// When it can't be written; the old one is still there then.
    pub fn write(&self, state: &State) -> Result<(), Error> {
        let (path, partial) = (self.path(), self.directory.join(PARTIAL_NAME));
        let write = || {
            let bytes = serde_json::to_vec_pretty(state).map_err(io::Error::other)?;
            let mut file = File::create(&partial)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&partial, &path)?;
            File::open(&self.directory)?.sync_all()
        };
        write().map_err(|source| Error::Io { path: path.clone(), source })
    }

    fn path(&self) -> PathBuf {
        self.directory.join(NAME)
    }
}

const NAME: &str = "models.json";
const PARTIAL_NAME: &str = "models.json.partial";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_half_a_file_is_never_seen() {
        let directory = std::env::temp_dir().join(format!("bitnetd-state-{}", std::process::id()));
        let file = StateFile::in_directory(&directory).unwrap();
        assert_eq!(file.read().unwrap(), State::default());
        let version = Version { path: "/m/a.gguf".into(), sha256: "ab".into() };
        let state = State { models: vec![Saved { name: "a".into(), configured: None, versions: vec![version] }] };
        file.write(&state).unwrap();
        fs::write(directory.join(PARTIAL_NAME), b"{\"mod").unwrap();
        assert_eq!(file.read().unwrap(), state);
        file.write(&State::default()).unwrap();
        assert_eq!(file.read().unwrap(), State::default());
        fs::write(file.path(), b"{\"mod").unwrap();
        assert!(matches!(file.read(), Err(Error::Damaged { .. })));
        fs::remove_dir_all(&directory).unwrap();
    }
}
