//! The configuration file read again while a server runs: what may change then is taken, what may not is named.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{Config, Error, Settings};

/// Where settings came from at the start.
pub struct Reload {
    /// Flags and environment, which go before the file.
    given: Settings,
    file: Option<PathBuf>,
    /// With the file as it was.
    started: Settings,
}

/// The settings as they are written now.
pub struct Reloaded {
    pub config: Config,
    /// Keys that differ from the start's and hold from the next one on.
    pub later: Vec<String>,
}

impl Reload {
    /// Of a server that `started` with what was `given` and with `file`.
    #[must_use]
    pub fn new(given: Settings, file: Option<PathBuf>, started: Settings) -> Self {
        Self { given, file, started }
    }

    /// The file, if the server has one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Reads the file again; without one, what was given holds.
    ///
    /// # Errors
    /// As at the start.
    pub fn read(&self) -> Result<Reloaded, Error> {
        let settings = match &self.file {
            Some(file) => self.given.clone().or_file(file)?,
            None => self.given.clone(),
        };
        let (before, now) = (fields(&self.started), fields(&settings));
        let keys: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
        // Other files hold at any time, but a port speaks TLS or does not.
        let has_tls = |settings: &Settings| settings.tls_cert.is_some();
        let keeps_tls = has_tls(&self.started) == has_tls(&settings);
        let at_any_time = |key: &str| AT_ANY_TIME.contains(&key) || keeps_tls && OF_TLS.contains(&key);
        let differs = |key: &&String| !at_any_time(key) && before.get(*key) != now.get(*key);
        let later = keys.into_iter().filter(differs).cloned().collect();
        Ok(Reloaded { config: settings.validate()?, later })
    }
}

fn fields(settings: &Settings) -> Map<String, Value> {
    match serde_json::to_value(settings) {
        Ok(Value::Object(fields)) => fields,
        _ => unreachable!("settings are written as an object"),
    }
}

/// What a running server takes from the file, `jwt_secret` besides, which is never written.
const OF_TLS: [&str; 2] = ["tls_cert", "tls_key"];
const AT_ANY_TIME: [&str; 3] = ["api_keys", "require_authentication", "log_level"];
