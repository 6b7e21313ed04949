//! `bitnetd serve`.

use std::process::ExitCode;
use std::sync::Arc;

use super::load_model;
use crate::config::Config;
use crate::log::{self, info, warning};
use crate::model::{LoadOptions, Model};
use crate::probe::Io;
use crate::server::{self, Plan};
use crate::signals::Termination;

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Whatever keeps it from serving.
pub(super) fn run(config: &Config) -> Result<ExitCode, Box<dyn std::error::Error>> {
    log::set_level(config.log_level);
    let termination = Termination::block()?;
    let open_files_max = tuning::raise_open_files();
    if open_files_max < (config.connections_max + DESCRIPTORS_RESERVED) as u64 {
        warning!("{open_files_max} open files are allowed, {} connections would need more", config.connections_max);
    }
    let plan = Plan::make(config)?;
    for (index, shard) in plan.placement.shards.iter().enumerate() {
        info!(
            "shard {index} on {}: executor on cpu {}, {} workers on cpu {}",
            shard.node,
            tuning::format_cpus(&shard.executor),
            shard.workers.len(),
            tuning::format_cpus(&shard.workers)
        );
    }
    match &plan.io {
        Io::IoUring => info!("kernels: {}, sockets: io_uring", config.isa.name()),
        Io::Epoll { reason } => info!("kernels: {}, sockets: epoll ({reason})", config.isa.name()),
    }
    let models = load_replicas(config, &plan)?;
    for note in models[0].tokenizer.notes() {
        warning!("{note}");
    }
    match server::serve(config, &plan, &[models], &termination) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error.into()),
    }
}

/// One replica per NUMA node, shared by the shards of that node.
fn load_replicas(config: &Config, plan: &Plan) -> Result<Vec<Arc<Model>>, Box<dyn std::error::Error>> {
    let shards = &plan.placement.shards;
    let mut replicas: Vec<(tuning::NodeId, Arc<Model>)> = Vec::new();
    let mut models = Vec::with_capacity(shards.len());
    for shard in shards {
        let known = replicas.iter().find(|(node, _)| *node == shard.node);
        let model = match known {
            Some((_, model)) => Arc::clone(model),
            None => {
                let options =
                    LoadOptions { threads: plan.workers(), node: Some(shard.node), context_max: config.context_max };
                let (name, path) = match &config.model {
                    Some((name, path)) => (name.as_deref(), Some(path.as_path())),
                    None => (None, None),
                };
                let model = Arc::new(load_model(name, path, options)?);
                describe(&model, shard.node);
                replicas.push((shard.node, Arc::clone(&model)));
                model
            }
        };
        models.push(model);
    }
    Ok(models)
}

fn describe(model: &Model, node: tuning::NodeId) {
    let params = &model.weights.params;
    info!(
        "model `{}` ({}, {}, {} layers, vocabulary {}) loaded on {node} in {:.2} s: {} MiB of weights in {:?} pages",
        model.name,
        params.architecture,
        model.quantization,
        params.layers,
        params.vocab,
        model.load_time.as_secs_f64(),
        model.weights.packed_bytes() >> 20,
        model.weights.page_kind(),
    );
}

/// Descriptors that are no client connections: rings, listeners, events, the model file.
const DESCRIPTORS_RESERVED: usize = 64;
