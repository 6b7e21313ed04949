//! A file becomes a generation: memory asked for first, hash and replicas next, and the file must stay what it was.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gguf::Gguf;
use net::error::{ApiError, Code};
use tuning::{NodeId, Placement};

use super::facts::{Facts, FileIdentity, Hash, hash_source, hash_tokenizer, hex};
use crate::config::Config;
use crate::engine::GenerationId;
use crate::kv::{KvCache, blocks_for};
use crate::model::{self, HyperParameters, LoadOptions, Model, Source};
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
    /// KV blocks of each shard.
    pub kv_blocks: usize,
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
    #[error("it took {} ms to load, {} are allowed", .got.as_millis(), .allowed.as_millis())]
    TooSlow { got: Duration, allowed: Duration },
}

impl From<LoadError> for ApiError {
    fn from(error: LoadError) -> Self {
        let (status, code) = match &error {
            LoadError::TooBig { .. } | LoadError::Model(model::Error::Memory(_)) => (503, Code::MemoryExhausted),
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
    let free_bytes = check_memory(&gguf, &plan, nodes.len())?;
    let options = |node| LoadOptions {
        threads: plan.threads,
        node: Some(node),
        context_max: plan.config.context_max,
        head_screen: plan.config.head_screen,
    };
    let (sha256, replicas) = std::thread::scope(|scope| {
        let hash = scope.spawn(|| hash_source(source));
        let load = |node: &NodeId| {
            let model = Model::load(source, plan.name.clone(), options(*node), progress)?;
            Ok((*node, Arc::new(model)))
        };
        let replicas = nodes.iter().map(load).collect::<Result<Vec<_>, model::Error>>();
        (hash.join().expect("hashing does not panic"), replicas)
    });
    let (sha256, replicas) = (sha256?, replicas?);
    if let Some(wanted) = plan.expected.filter(|wanted| *wanted != sha256) {
        return Err(LoadError::WrongHash { got: hex(&sha256), wanted: hex(&wanted) });
    }
    if identity(source)? != before {
        return Err(LoadError::Changed);
    }
    let model = &replicas[0].1;
    let self_test = self_test(model, plan.config.isa, plan.threads)?;
    let kv_blocks = kv_blocks(&plan, model, free_bytes)?;
    let block_bytes = KvCache::block_bytes(&model.weights.params) as u64;
    let shards = plan.placement.shards.len() as u64;
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
        kv_bytes: kv_blocks as u64 * block_bytes * shards,
        loaded_unix_ms: unix_ms(),
        load_time: started.elapsed(),
    };
    let replica_of =
        |node: NodeId| replicas.iter().find(|(other, _)| *other == node).map(|(_, model)| Arc::clone(model));
    let shards = plan.placement.shards.iter();
    let replicas = shards.map(|shard| replica_of(shard.memory_node).expect("every node got its replica")).collect();
    Ok(Loaded { facts, replicas, kv_blocks, self_test })
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

/// Refuses what can't fit before anything is taken for it; else the memory that is free without it.
fn check_memory(gguf: &Gguf<'_>, plan: &LoadPlan<'_>, replicas: usize) -> Result<u64, LoadError> {
    let free = tuning::memory::available_memory_bytes().map_err(model::Error::from)?;
    let free_bytes = free.saturating_sub(plan.reserved_bytes);
    let weights: u64 = gguf.tensors().iter().map(|tensor| tensor.bytes).sum();
    let rows = gguf.tensor("token_embd.weight").map_or(0, gguf::TensorInfo::rows);
    let vocab = usize::try_from(rows).map_err(|_| model::Error::BadShape("too many rows".into()))?;
    let params = HyperParameters::from_metadata(gguf.metadata(), vocab)?;
    let shards = plan.placement.shards.len() as u64;
    let context = params.context.min(plan.config.context_max);
    let sequence = (blocks_for(context) * KvCache::block_bytes(&params)) as u64;
    let wanted_bytes = weights.saturating_mul(replicas as u64).saturating_add(weights / PACKING_SLACK)
        + shards * (buffer_bytes(plan.config, &params, shards) + sequence);
    if wanted_bytes > free_bytes {
        return Err(LoadError::TooBig { wanted_bytes, free_bytes });
    }
    Ok(free_bytes - wanted_bytes)
}

/// Activations, logits and samplers of one shard, about.
fn buffer_bytes(config: &Config, params: &HyperParameters, shards: u64) -> u64 {
    let slots = (config.slots_max as u64).div_ceil(shards);
    let row = params.hidden + 2 * params.widest() + 2 * params.attention_width() + params.feed_forward;
    4 * (config.rows_max as u64 * row as u64 + slots * params.vocab as u64)
}

/// KV blocks of one shard: enough for every slot at full context, as far as the memory budget goes.
fn kv_blocks(plan: &LoadPlan<'_>, model: &Model, free_bytes: u64) -> Result<usize, LoadError> {
    let shards = plan.placement.shards.len() as u64;
    let block_bytes = KvCache::block_bytes(&model.weights.params) as u64;
    let per_sequence = blocks_for(model.weights.context) as u64;
    let bytes_max = plan.kv_bytes_max.or(plan.config.kv_bytes_max).unwrap_or(free_bytes / KV_MEMORY_SHARE) / shards;
    let wanted = per_sequence * (plan.config.slots_max as u64).div_ceil(shards);
    let blocks = wanted.min(bytes_max / block_bytes);
    if blocks < per_sequence {
        let wanted_bytes = per_sequence * block_bytes * shards;
        return Err(LoadError::TooBig { wanted_bytes, free_bytes: bytes_max * shards });
    }
    Ok(usize::try_from(blocks).expect("bounded by memory"))
}

/// Milliseconds since 1970.
pub(super) fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Packed weights are larger than those of the file by less than one part in this many.
const PACKING_SLACK: u64 = 16;
/// The KV cache takes at most one part in this many of the free memory by default.
const KV_MEMORY_SHARE: u64 = 3;
const RETRY_MEMORY: Duration = Duration::from_secs(30);
