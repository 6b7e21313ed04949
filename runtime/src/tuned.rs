//! Which instruction set multiplies each ternary shape fastest: measured on a host, kept in a file, used where it fits.
//!
//! All instruction sets give the same bits, so a file can make a server slow, never wrong.

use std::io::Write;
use std::path::Path;

use kernels::Isa;
use serde::{Deserialize, Serialize};

/// What was measured on this host; nothing, by default.
#[derive(Clone, Debug, Default)]
pub struct Tuned {
    choices: Vec<Choice>,
}

/// The best for `rows` x `cols` weights from so many activation rows on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    pub rows: usize,
    pub cols: usize,
    pub tokens: usize,
    pub isa: Isa,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("it has {got} bytes, allowed are {FILE_BYTES_MAX}")]
    TooLong { got: u64 },
    #[error("it was measured on another host or by another version")]
    OtherHost,
    #[error("it has {0}x{1} weights that no model has, or an instruction set that this host has not")]
    Entry(usize, usize),
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct File {
    host: Host,
    choices: Vec<Entry>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    rows: usize,
    cols: usize,
    tokens: usize,
    isa: String,
}

/// What a measurement holds for.
#[derive(Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct Host {
    version: String,
    cpu: String,
    isas: Vec<String>,
    caches: Vec<String>,
}

impl Host {
    fn here() -> Self {
        let size = |index| std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size"));
        Self {
            version: concat!(env!("CARGO_PKG_VERSION"), " kernels 1").to_owned(),
            cpu: tuning::host::cpu_model(),
            isas: Isa::available().into_iter().map(|isa| isa.name().to_owned()).collect(),
            caches: (0..CACHES_MAX).map_while(|index| size(index).ok()).map(|size| size.trim().to_owned()).collect(),
        }
    }
}

impl Tuned {
    /// The instruction set for `n` activation rows; none where the common one is best, or nothing is known.
    #[must_use]
    pub fn isa(&self, rows: usize, cols: usize, n: usize) -> Option<Isa> {
        let fits = |choice: &&Choice| (choice.rows, choice.cols) == (rows, cols) && choice.tokens <= n;
        self.choices.iter().filter(fits).max_by_key(|choice| choice.tokens).map(|choice| choice.isa)
    }

    /// How many choices it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.choices.len()
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.choices.is_empty()
    }

    /// Replaces what is known of the shapes that `choices` name.
    pub fn replace(&mut self, choices: &[Choice]) {
        let named = |old: &Choice| choices.iter().any(|new| (new.rows, new.cols) == (old.rows, old.cols));
        self.choices.retain(|old| !named(old));
        self.choices.extend_from_slice(choices);
    }

    /// The file at `path`; `None` where there is none.
    ///
    /// # Errors
    /// Whatever makes the file unusable here.
    pub fn read(path: &Path) -> Result<Option<Self>, CacheError> {
        let got = match std::fs::metadata(path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if got > FILE_BYTES_MAX {
            return Err(CacheError::TooLong { got });
        }
        let file: File = serde_json::from_slice(&std::fs::read(path)?)?;
        if file.host != Host::here() {
            return Err(CacheError::OtherHost);
        }
        let choice = |entry: &Entry| {
            let isa = entry.isa.parse().ok()?;
            let plausible = entry.rows > 0 && (1..=kernels::ternary::COLS_MAX).contains(&entry.cols);
            plausible.then_some(Choice { rows: entry.rows, cols: entry.cols, tokens: entry.tokens, isa })
        };
        let check = |entry| choice(entry).ok_or(CacheError::Entry(entry.rows, entry.cols));
        Ok(Some(Self { choices: file.choices.iter().map(check).collect::<Result<_, _>>()? }))
    }

    /// Reads the file at `path` and says in a line whether it is used; without a file there is nothing to say.
    #[must_use]
    pub fn read_or_say(path: Option<&Path>, say: impl FnOnce(String)) -> Self {
        let Some(path) = path else { return Self::default() };
        match Self::read(path) {
            Ok(None) => Self::default(),
            Ok(Some(tuned)) => {
                say(format!("kernels tuned by {}: {} choices", path.display(), tuned.len()));
                tuned
            }
            Err(error) => {
                say(format!("kernel tuning {} is ignored: {error}", path.display()));
                Self::default()
            }
        }
    }

    /// Writes the file whole or not at all, and the folders that it lies in.
    ///
    /// # Errors
    /// The operating system's.
    pub fn write(&self, path: &Path) -> Result<(), CacheError> {
        let entry = |choice: &Choice| Entry {
            rows: choice.rows,
            cols: choice.cols,
            tokens: choice.tokens,
            isa: choice.isa.name().to_owned(),
        };
        let file = File { host: Host::here(), choices: self.choices.iter().map(entry).collect() };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}", std::process::id()));
        let draft = Path::new(&name);
        let mut out = std::fs::File::create(draft)?;
        let written = out.write_all(&serde_json::to_vec_pretty(&file)?).and_then(|()| out.sync_all());
        if let Err(error) = written.and_then(|()| std::fs::rename(draft, path)) {
            // What is left of it is of no use, and the first error is the one to tell.
            let _ = std::fs::remove_file(draft);
            return Err(error.into());
        }
        Ok(())
    }
}

const FILE_BYTES_MAX: u64 = 1 << 20;
const CACHES_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(rows: usize, tokens: usize, isa: Isa) -> Choice {
        Choice { rows, cols: 256, tokens, isa }
    }

    fn path(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("bitnetd-tuned-{}", std::process::id())).join(name)
    }

    #[test]
    fn a_shape_gets_its_choice_from_its_number_of_rows_on() {
        let mut tuned = Tuned::default();
        tuned.replace(&[choice(64, 4, Isa::detect()), choice(64, 1, Isa::Portable), choice(32, 2, Isa::Portable)]);
        assert_eq!(tuned.isa(64, 256, 3), Some(Isa::Portable));
        assert_eq!(tuned.isa(64, 256, 4), Some(Isa::detect()));
        assert_eq!(tuned.isa(64, 256, 500), Some(Isa::detect()));
        assert_eq!((tuned.isa(32, 256, 1), tuned.isa(64, 512, 9)), (None, None));
        tuned.replace(&[choice(64, 8, Isa::Portable)]);
        assert_eq!((tuned.isa(64, 256, 4), tuned.isa(32, 256, 2)), (None, Some(Isa::Portable)));
    }

    #[test]
    fn a_file_comes_back_as_it_was_written() {
        let path = path("whole/kernels.json");
        assert!(Tuned::read(&path).unwrap().is_none());
        let mut tuned = Tuned::default();
        tuned.replace(&Isa::available().into_iter().map(|isa| choice(64, 1, isa)).collect::<Vec<_>>());
        tuned.write(&path).unwrap();
        assert_eq!(Tuned::read(&path).unwrap().unwrap().choices, tuned.choices);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn a_corrupt_or_foreign_file_is_ignored_with_one_line() {
        let path = path("bad/kernels.json");
        let mut tuned = Tuned::default();
        tuned.replace(&[choice(64, 1, Isa::Portable)]);
        tuned.write(&path).unwrap();
        let good = std::fs::read_to_string(&path).unwrap();
        let cpu = serde_json::to_string(&tuning::host::cpu_model()).unwrap();
        for bad in [
            String::new(),
            good[..good.len() / 2].to_owned(),
            good.replace(&cpu, "\"another\""),
            good.replace("kernels 1", "kernels 0"),
            good.replace("\"rows\": 64", "\"rows\": 0"),
            good.replace("\"isa\": \"portable\"", "\"isa\": \"sse9\""),
            good.replace("\"rows\"", "\"raws\""),
            good.clone() + &" ".repeat(1 << 20),
        ] {
            assert_ne!(bad, good);
            std::fs::write(&path, bad).unwrap();
            let mut said = Vec::new();
            assert!(Tuned::read_or_say(Some(&path), |line| said.push(line)).is_empty());
            assert!(said.len() == 1 && said[0].contains("is ignored"), "{said:?}");
        }
    }
}
