//! Opening and loading a model for a command, with a progress bar for big ones.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::model::{Error, LoadOptions, Model, Source};

/// Why there is no model.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: Error },
    /// The message names the file already, or there is none.
    #[error(transparent)]
    Other(#[from] Error),
}

/// Loads the model at `path`, or the one inside the binary. Its name is `name`, or follows from the file's.
///
/// # Errors
/// Whatever is wrong with the file.
pub fn load_model(name: Option<&str>, path: Option<&Path>, options: LoadOptions) -> Result<Model, LoadError> {
    let source = match path {
        Some(path) => Source::open(path)?,
        None => Source::embedded(),
    };
    let file_name = path.and_then(Path::file_stem).map(|stem| stem.to_string_lossy().into_owned());
    let name = name.map(str::to_owned).or(file_name).unwrap_or_else(|| DEFAULT_MODEL_NAME.to_owned());
    let bar = progress_bar("loading");
    let big = source.bytes() >= PROGRESS_BYTES_MIN;
    let model = Model::load(&source, name, options, &|done, total| {
        if big {
            bar(done, total);
        }
    });
    model.map_err(|source| match path {
        Some(path) if !matches!(source, Error::Io { .. }) => LoadError::File { path: path.to_owned(), source },
        _ => source.into(),
    })
}

/// A bar on standard error, where that is a terminal; any thread may move it.
pub fn progress_bar(verb: &'static str) -> impl Fn(u64, u64) + Sync {
    let shown = AtomicU64::new(u64::MAX);
    let terminal = std::io::stderr().is_terminal();
    move |done, total| {
        let percent = (done * 100).checked_div(total).unwrap_or(100);
        if !terminal || shown.swap(percent, Ordering::Relaxed) == percent {
            return;
        }
        let filled = usize::try_from(percent).unwrap_or(100) * BAR_WIDTH / 100;
        let end = if done == total { "\n" } else { "" };
        let line = format!("\r{verb} [{:<BAR_WIDTH$}] {percent:3} % of {} MiB{end}", "=".repeat(filled), total >> 20);
        // A bar that can't be drawn is no reason to stop.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

const DEFAULT_MODEL_NAME: &str = "bitnetd-tiny";
const PROGRESS_BYTES_MIN: u64 = 128 << 20;
const BAR_WIDTH: usize = 40;
