//! What a server begins with: the configured models, in the last good version of each, and those that were loaded on
//! request before it ended.

use std::path::{Path, PathBuf};

use tuning::Placement;

use super::budget::Budget;
use super::facts::hex;
use super::load::{LoadError, LoadPlan, Loaded, budget, load};
use super::state::{self, Saved, State, Version};
use crate::config::Config;
use crate::engine::GenerationId;
use crate::log::{info, warning};
use crate::model::{self, Source};

/// A loaded model and the file that the configuration names for it.
pub struct Started {
    pub configured: Option<PathBuf>,
    pub loaded: Loaded,
}

/// Why a server has nothing to begin with.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: LoadError },
    #[error(transparent)]
    Other(#[from] LoadError),
    #[error(transparent)]
    State(#[from] state::Error),
    #[error("two models are named `{0}`")]
    SameName(String),
}

/// Loads everything that is to be served, in the order of the configuration. `progress` gets bytes done and bytes in
/// all of one file.
///
/// # Errors
/// When a configured model can't be loaded in any version.
pub fn load_all(
    config: &Config,
    placement: &Placement,
    state: &State,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Vec<Started>, StartError> {
    let wanted = wanted(config)?;
    let is_configured = |saved: &Saved| wanted.iter().any(|(name, _)| *name == saved.name);
    let on_request = state.models.iter().filter(|saved| saved.configured.is_none() && !is_configured(saved));
    let on_request: Vec<&Saved> = on_request.collect();
    let mut loader =
        Loader { config, placement, progress, models: wanted.len() + on_request.len(), started: Vec::new() };
    for (name, configured) in &wanted {
        let saved = state.models.iter().find(|saved| saved.name == *name);
        loader.configured(name, configured.as_deref(), saved)?;
    }
    for saved in on_request {
        if !loader.last_good(&saved.name, None, &saved.versions) {
            warning!("model `{}`, loaded on request before, is served no more", saved.name);
        }
    }
    Ok(loader.started)
}

/// Where the memory of the configured models would go, in their order.
///
/// # Errors
/// When a file is no model, or does not fit.
pub fn budgets(config: &Config, placement: &Placement) -> Result<Vec<(String, Budget)>, StartError> {
    let wanted = wanted(config)?;
    let models = wanted.len() as u64;
    let mut budgets: Vec<(String, Budget)> = Vec::with_capacity(wanted.len());
    for (name, path) in wanted {
        let taken = |budget: &Budget| budget.replicas * budget.replica_bytes + budget.kv_bytes();
        let reserved_bytes = budgets.iter().map(|(_, budget)| taken(budget)).sum();
        let plan = LoadPlan { reserved_bytes, ..plan(config, placement, models, &name, path.as_deref()) };
        let fail = |source| file_error(path.as_deref(), source);
        let source = open(path.as_deref()).map_err(fail)?;
        let budget = source.header().map_err(LoadError::from).and_then(|header| {
            let gguf = gguf::Gguf::parse(&header, source.bytes()).map_err(model::Error::from)?;
            budget(&source, &gguf, &plan)
        });
        budgets.push((name, budget.map_err(fail)?));
    }
    Ok(budgets)
}

/// Names and files of the configured models.
fn wanted(config: &Config) -> Result<Vec<(String, Option<PathBuf>)>, StartError> {
    let mut wanted: Vec<(String, Option<PathBuf>)> = config
        .models
        .iter()
        .map(|(name, path)| (name.clone().unwrap_or_else(|| stem(path)), Some(path.clone())))
        .collect();
    if wanted.is_empty() {
        wanted.push((EMBEDDED_NAME.to_owned(), None));
    }
    if let Some((name, _)) = wanted.iter().enumerate().find_map(|(i, w)| wanted[..i].iter().find(|o| o.0 == w.0)) {
        return Err(StartError::SameName(name.clone()));
    }
    Ok(wanted)
}

fn open(path: Option<&Path>) -> Result<Source, LoadError> {
    Ok(path.map_or_else(|| Ok(Source::embedded()), Source::open)?)
}

fn file_error(path: Option<&Path>, source: LoadError) -> StartError {
    match path {
        // These name the file already.
        Some(path) if !matches!(source, LoadError::Model(model::Error::Io { .. })) => {
            StartError::File { path: path.to_owned(), source }
        }
        _ => StartError::Other(source),
    }
}

/// How one of `models` models is loaded at the start.
fn plan<'a>(
    config: &'a Config,
    placement: &'a Placement,
    models: u64,
    name: &str,
    path: Option<&Path>,
) -> LoadPlan<'a> {
    LoadPlan {
        config,
        placement,
        generation: GenerationId(0),
        threads: placement.shards.iter().map(|shard| shard.workers.len()).sum(),
        name: name.to_owned(),
        path: path.map(Path::to_owned),
        expected: None,
        reserved_bytes: 0,
        kv_bytes_max: config.kv_bytes_max.map(|bytes| bytes / models),
    }
}

struct Loader<'a> {
    config: &'a Config,
    placement: &'a Placement,
    progress: &'a (dyn Fn(u64, u64) + Sync),
    models: usize,
    started: Vec<Started>,
}

impl Loader<'_> {
    fn configured(&mut self, name: &str, path: Option<&Path>, saved: Option<&Saved>) -> Result<(), StartError> {
        if let Some(saved) = saved {
            if saved.configured.as_deref() != path {
                info!("model `{name}`: the configuration names another file than before, which goes first");
            } else if self.last_good(name, path, &saved.versions) {
                return Ok(());
            }
        }
        self.load(name, path, path, None)
    }

    /// Loads the first of `versions` that is still what it was; whether there was one.
    fn last_good(&mut self, name: &str, configured: Option<&Path>, versions: &[Version]) -> bool {
        for version in versions {
            match self.load(name, configured, Some(&version.path), Some(version)) {
                Ok(()) => return true,
                Err(error) => warning!("model `{name}`: a version that was served is passed over: {error}"),
            }
        }
        false
    }

    fn load(
        &mut self,
        name: &str,
        configured: Option<&Path>,
        path: Option<&Path>,
        version: Option<&Version>,
    ) -> Result<(), StartError> {
        let fail = |source| file_error(path, source);
        let source = open(path).map_err(fail)?;
        let plan = LoadPlan {
            generation: GenerationId(u32::try_from(self.started.len()).expect("few models")),
            expected: version.and_then(|version| net::auth::parse_sha256(&version.sha256)),
            reserved_bytes: self.started.iter().map(|started| started.loaded.facts.kv_bytes).sum(),
            ..plan(self.config, self.placement, self.models as u64, name, path)
        };
        let loaded = load(&source, plan, self.progress).map_err(fail)?;
        let (facts, model) = (&loaded.facts, &loaded.replicas[0]);
        let params = &model.weights.params;
        info!(
            "model `{name}` ({}, {}, {} layers, vocabulary {}, sha256 {}) loaded in {:.2} s",
            facts.architecture,
            facts.quantization,
            params.layers,
            facts.vocab,
            &hex(&facts.sha256)[..12],
            facts.load_time.as_secs_f64(),
        );
        info!("file: {}", model.pass);
        info!("memory: {}", loaded.budget);
        for backing in loaded.replicas.iter().flat_map(|replica| replica.weights.backings()) {
            info!("weights: {backing}");
        }
        let test = &loaded.self_test;
        let how = if test.whole_step { "a whole step" } else { "parts of every layer" };
        let ms = test.took.as_secs_f64() * 1e3;
        info!("self test passed in {ms:.0} ms: known answers, {how} as the portable kernels, {:?}", test.text);
        for note in model.tokenizer.notes() {
            warning!("{note}");
        }
        self.started.push(Started { configured: configured.map(Path::to_owned), loaded });
        Ok(())
    }
}

fn stem(path: &Path) -> String {
    path.file_stem().map_or_else(|| EMBEDDED_NAME.to_owned(), |stem| stem.to_string_lossy().into_owned())
}

const EMBEDDED_NAME: &str = "bitnetd-tiny";
