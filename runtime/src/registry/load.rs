//! A file becomes a generation: memory asked for first, hash and replicas next, and the file must stay what it was.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gguf::Gguf;
use net::error::{ApiError, Code};
use tuning::{NodeId, Placement};

use super::budget::{Budget, NodeRoom, Wants};
use super::facts::{Facts, FileIdentity, Hash, hash_tokenizer, hex};
use crate::config::Config;
use crate::engine::GenerationId;
use crate::model::{self, LoadOptions, Model, Source};
use crate::selftest::{self, SelfTest, self_test};

/// What is to be loaded, and how.
pub struct LoadPlan<'a> {
    pub config: &'a Config,
    pub placement: &'a Placement,
    pub generation: GenerationId,
    /// Threads that read and pack.
    pub threads: usize,
    /// The served name.
    pub name: String,
    pub path: Option<PathBuf>,
    pub expected: Option<Hash>,
    /// Memory that other generations may still take.
    pub reserved_bytes: u64,
    /// Memory for the KV cache of all shards; `None` takes what is fit.
    pub kv_bytes_max: Option<u64>,
}

/// A file in memory: a replica for each shard, those of one node the same.
pub struct Loaded {
    pub facts: Facts,
    pub replicas: Vec<Arc<Model>>,
    pub budget: Budget,
    pub self_test: SelfTest,
}

/// Why a file is no generation.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Model(#[from] model::Error),
    #[error("the file's SHA-256 is {got}, {wanted} was asked for")]
    WrongHash { got: String, wanted: String },
    #[error("the file changed while it was read")]
    Changed,
    #[error("it fails its self test: {0}")]
    SelfTest(#[from] selftest::Failure),
    #[error("{wanted_bytes} bytes of memory are needed for it, {free_bytes} are free")]
    TooBig { wanted_bytes: u64, free_bytes: u64 },
    #[error("a KV cache of {wanted_bytes} bytes was asked for, {free_bytes} are free beside the weights and buffers")]
    CacheTooBig { wanted_bytes: u64, free_bytes: u64 },
    #[error(
        "the KV cache may take {allowed_bytes} bytes, {wanted_bytes} are needed for a sequence of full context on each shard"
    )]
    CacheTooSmall { wanted_bytes: u64, allowed_bytes: u64 },
    #[error("it took {} ms to load, {} are allowed", .got.as_millis(), .allowed.as_millis())]
    TooSlow { got: Duration, allowed: Duration },
}

impl From<LoadError> for ApiError {
    fn from(error: LoadError) -> Self {
        let (status, code) = match &error {
            LoadError::TooBig { .. }
            | LoadError::CacheTooBig { .. }
            | LoadError::Model(model::Error::Memory(_) | model::Error::Thread(_)) => (503, Code::MemoryExhausted),
            LoadError::TooSlow { .. } => (408, Code::ModelLoadFailed),
            LoadError::Model(model::Error::Io { .. }) => (500, Code::ModelLoadFailed),
            LoadError::Model(
                model::Error::Unsupported(_) | model::Error::NoTiles { .. } | model::Error::Tiles { .. },
            ) => (400, Code::QuantizationError),
            _ => (400, Code::ModelLoadFailed),
        };
        let refused = Self::new(status, code, format!("the model can't be loaded: {}", chain(&error)));
        if status == 503 { refused.with_retry_after(RETRY_MEMORY) } else { refused }
    }
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let part = cause.to_string();
        if !text.ends_with(&part) {
            text = format!("{text}: {part}");
        }
        source = cause.source();
    }
    text
}

/// Loads `source`. `progress` gets bytes done and bytes in all of one replica.
///
/// # Errors
/// Whatever is wrong with the file, its hash, or the memory; nothing is held then.
pub fn load(source: &Source, plan: LoadPlan<'_>, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<Loaded, LoadError> {
    let started = Instant::now();
    let before = identity(source)?;
    let header = source.header()?;
    let gguf = Gguf::parse(&header, source.bytes()).map_err(model::Error::from)?;
    let nodes = nodes(plan.placement);
    let budget = budget(source, &gguf, &plan)?;
    let options = LoadOptions {
        threads: plan.threads,
        node: nodes.first().copied(),
        context_max: plan.config.context_max,
        head_screen: plan.config.head_screen,
    };
    let model = Arc::new(Model::load_hashed(source, plan.name.clone(), options, progress)?);
    let sha256 = model.pass.sha256.expect("hashing was asked for");
    if let Some(wanted) = plan.expected.filter(|wanted| *wanted != sha256) {
        return Err(LoadError::WrongHash { got: hex(&sha256), wanted: hex(&wanted) });
    }
    if identity(source)? != before {
        return Err(LoadError::Changed);
    }
    // By a thread of its own, whose heap shrinks once it is done: buffers to come would fill the holes in this one's, and
    // zeroing them there touches all of them.
    let test = || self_test(&model, plan.config.isa, plan.config.kv_type, plan.threads);
    let tested = std::thread::scope(|scope| Ok::<_, model::Error>(model::spawn(scope, test)?.join()))?;
    let self_test = tested.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let replicas = replicate(&model, &nodes)?;
    let facts = Facts {
        generation: plan.generation,
        name: plan.name,
        path: plan.path,
        sha256,
        identity: before,
        tokenizer: hash_tokenizer(&gguf)?,
        file_bytes: source.bytes(),
        parameters: gguf.tensors().iter().map(gguf::TensorInfo::elements).sum(),
        tensors: gguf.tensors().len(),
        quantization: model.quantization,
        architecture: model.weights.params.architecture.clone(),
        vocab: model.weights.params.vocab,
        context: model.weights.context,
        weights_bytes: model.weights.packed_bytes() as u64,
        bytes_per_token: model.weights.bytes_per_token() as u64,
        replicas: nodes.len() as u64,
        kv_bytes: budget.kv_bytes(),
        loaded_unix_ms: unix_ms(),
        load_time: started.elapsed(),
    };
    let replica_of =
        |node: NodeId| replicas.iter().find(|(other, _)| *other == node).map(|(_, model)| Arc::clone(model));
    let shards = plan.placement.shards.iter();
    let replicas = shards.map(|shard| replica_of(shard.memory_node).expect("every node got its replica")).collect();
    Ok(Loaded { facts, replicas, budget, self_test })
}

/// The model for each of `nodes`, the first of which has it: the others copy it all at once.
fn replicate(model: &Arc<Model>, nodes: &[NodeId]) -> Result<Vec<(NodeId, Arc<Model>)>, model::Error> {
    std::thread::scope(|scope| {
        let copy = |node: &NodeId| {
            let node = *node;
            model::spawn(scope, move || Ok((node, Arc::new(model.replica(node)?))))
        };
        let copies: Vec<_> = nodes.iter().skip(1).map(copy).collect::<Result<_, model::Error>>()?;
        let first = nodes.iter().take(1).map(|node| Ok((*node, Arc::clone(model))));
        first.chain(copies.into_iter().map(|copy| copy.join().expect("copying does not panic"))).collect()
    })
}

/// What tells that a file is still the same.
pub(super) fn identity(source: &Source) -> Result<Option<FileIdentity>, LoadError> {
    let Source::File { file, path, .. } = source else { return Ok(None) };
    let fail = |source| model::Error::Io { what: path.display().to_string(), source };
    let facts = |m: Metadata| (m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec());
    Ok(Some(facts(file.metadata().map_err(fail)?)))
}

fn nodes(placement: &Placement) -> Vec<NodeId> {
    let mut nodes: Vec<NodeId> = placement.shards.iter().map(|shard| shard.memory_node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}

/// Where the memory of `source` would go.
///
/// # Errors
/// When the file is no model, or it can't fit.
pub(super) fn budget(source: &Source, gguf: &Gguf<'_>, plan: &LoadPlan<'_>) -> Result<Budget, LoadError> {
    let free = tuning::memory::available_memory_bytes().map_err(model::Error::from)?;
    let free_bytes = free.saturating_sub(plan.reserved_bytes);
    // A header that promises more than there is costs nothing further.
    let wanted_bytes = gguf.tensors().iter().fold(0_u64, |sum, tensor| sum.saturating_add(tensor.bytes));
    if wanted_bytes > free_bytes {
        return Err(LoadError::TooBig { wanted_bytes, free_bytes });
    }
    let footprint = model::footprint(source, gguf, plan.config.head_screen)?;
    let nodes = nodes(plan.placement);
    let wants = Wants {
        config: plan.config,
        free_bytes,
        nodes: &rooms(plan, &nodes),
        replicas: nodes.len(),
        shards: plan.placement.shards.len(),
        kv_bytes_max: plan.kv_bytes_max,
    };
    Budget::plan(wants, &footprint)
}

/// What each of several nodes has for its shards; what other generations may still take is spread over all of them.
fn rooms(plan: &LoadPlan<'_>, nodes: &[NodeId]) -> Vec<NodeRoom> {
    if nodes.len() < 2 {
        return Vec::new();
    }
    let reserved_bytes = plan.reserved_bytes / nodes.len() as u64;
    let room = |node: &NodeId| {
        let shards = plan.placement.shards.iter().filter(|shard| shard.memory_node == *node).count() as u64;
        let free_bytes = tuning::memory::available_node_bytes(*node)?.saturating_sub(reserved_bytes);
        Some(NodeRoom { node: *node, free_bytes, shards })
    };
    nodes.iter().filter_map(room).collect()
}

/// Milliseconds since 1970.
pub(super) fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

const RETRY_MEMORY: Duration = Duration::from_secs(30);
