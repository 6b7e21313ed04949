//! `bitnetd serve`.

use std::process::ExitCode;

use super::placement::{self, Format};
use super::progress_bar;
use crate::config::{Config, Reload};
use crate::gpu::Cards;
use crate::log::{self, info, warning};
use crate::probe::Io;
use crate::registry::{self, State, StateFile};
use crate::server::{self, Models, Plan};
use crate::signals::Signals;
use crate::tuned::Tuned;

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Whatever keeps it from serving.
pub(super) fn run(config: &Config, reload: &Reload) -> Result<ExitCode, Box<dyn std::error::Error>> {
    log::set_level(config.log_level);
    let tuned = Tuned::read_or_say(config.tuning_cache.as_deref(), |line| info!("{line}"));
    let config = &Config { tuned, ..config.clone() };
    let signals = Signals::block()?;
    log::write_beside().map_err(|source| server::Error::Start { what: "the log's thread", source })?;
    // Buffers of a generation that leaves are then given back, whatever else is held.
    tuning::memory::map_blocks_from(MAPPED_BLOCK_BYTES);
    tuning::raise_locked_memory();
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
    for (ordinal, device) in plan.cards.used.iter().zip(&plan.placement.devices) {
        info!("{}", placement::of_device(*ordinal, device));
    }
    for note in &plan.placement.notes {
        warning!("{note}");
    }
    match &plan.io {
        Io::IoUring => info!("kernels: {}, sockets: io_uring", config.isa.name()),
        Io::Glommio => info!("kernels: {}, sockets: io_uring by glommio", config.isa.name()),
        Io::Epoll { reason } => info!("kernels: {}, sockets: epoll ({reason})", config.isa.name()),
    }
    let state = config.state_dir.as_deref().map(StateFile::in_directory).transpose()?;
    let saved = match &state {
        Some(file) => file.read()?,
        None => State::default(),
    };
    let bar = progress_bar("loading");
    let progress = |done, total| {
        if total >= PROGRESS_BYTES_MIN {
            bar(done, total);
        }
    };
    let started = registry::load_all(config, &plan.placement, &saved, &progress)?;
    match server::serve(config, &plan, Models { started, state }, &signals, reload) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error.into()),
    }
}

/// Prints which threads would run where, and where the memory would go.
///
/// # Errors
/// When the placement isn't possible, or a model does not fit.
pub(super) fn print_placement(config: &Config, format: Format) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let topology = tuning::Topology::read(std::path::Path::new("/sys"))?;
    let cards = Cards::find(config);
    let placement = tuning::plan_with_devices(&topology, config.shards, config.workers, &cards.nodes())?;
    let budgets = registry::budgets(config, &placement)?;
    match format {
        Format::Tree => print!("{}", placement::tree(&topology, (&placement, &cards.used), &budgets)),
        Format::Json => println!("{}", placement::object(&topology, (&placement, &cards.used), &budgets)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Descriptors that are no client connections: rings, listeners, events, the model file.
const DESCRIPTORS_RESERVED: usize = 64;
/// Blocks that are mappings of their own: the limit that glibc begins with.
const MAPPED_BLOCK_BYTES: usize = 128 << 10;
/// Smaller files load too fast for a bar.
const PROGRESS_BYTES_MIN: u64 = 128 << 20;
