//! What the machine can refuse.
use std::io;
use std::path::PathBuf;

use crate::cpu::NodeId;

/// Why the machine could not be read, planned for or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel wrote a cpu list that has another form than `0-3,8`.
    #[error("cpu list `{list}` is malformed at `{part}`")]
    CpuList { list: String, part: String },
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} has no field `{field}`")]
    FieldMissing { path: PathBuf, field: &'static str },
    #[error("no cpu is left for this process: affinity mask and cpuset allow none that is online")]
    NoCpus,
    #[error("a placement needs at least one shard")]
    ShardsZero,
    #[error("a shard needs at least one worker")]
    WorkersZero,
    #[error("{shards} shards asked for, the process may use {cores} cores")]
    ShardsPastCores { shards: usize, cores: usize },
    /// Two workers on one core would wait for each other at every barrier.
    #[error(
        "{workers} workers per shard asked for, a shard on {node} has {cores} cores of its own: ask for fewer workers or \
         fewer shards"
    )]
    WorkersPastCores { workers: usize, node: NodeId, cores: usize },
    #[error("cannot pin thread to cpus {cpus}: {source}")]
    Pin { cpus: String, source: io::Error },
    #[error("cannot read the affinity mask of the process: {source}")]
    Affinity { source: io::Error },
    #[error("cannot map {bytes} bytes of memory: {source}")]
    Map { bytes: usize, source: io::Error },
    #[error("{bytes} bytes are more than the address space holds")]
    MapPastAddressSpace { bytes: usize },
    #[error("cannot prefer memory of {node}: {source}")]
    Bind { node: NodeId, source: io::Error },
}
