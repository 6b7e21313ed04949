//! GPUs: for each a feeder thread that batches sequences for a worker process, which alone talks to the driver.
//!
//! A shard that chooses a GPU for a sequence takes a credit of it and sends the sequence to its feeder; tokens come back
//! as events like those of the shard's own leader. A device that fails hands every sequence back as it stands, and the
//! CPU goes on with the same tokens, since both compute the same bits.

mod abi;
mod batch;
mod child;
mod cuda;
mod device;
mod feeder;
mod health;
mod images;
mod known;
mod layout;
mod pack;
mod plan;
mod ports;
mod route;
mod shape;
mod status;
mod threads;
mod wire;
pub mod worker;

#[cfg(test)]
mod mock;

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::engine::GenerationId;
use crate::log::{info, warning};
use crate::mailbox::Doorbell;
use crate::model::Model;
use crate::probe::{self, Io};

pub use device::FaultKind;
pub use feeder::GpuCommand;
pub use ports::ShardPort;
pub use route::{Costs, Load, Work, choose};
pub use status::{State, Status};

use child::ChildDevice;
use device::Fault;
use feeder::{Feeder, FeederLimits, Journal};
use known::KnownAnswer;
use ports::{FeederPort, RingPorts};
use shape::Shape;

/// A device that the driver listed.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Card {
    pub name: String,
    /// Compute capability, `major.minor`.
    pub capability: String,
    /// The compiled kernels that it takes; `None` where there are none for it.
    pub image: Option<String>,
    pub memory_bytes: u64,
    pub multiprocessors: usize,
}

/// The devices of this machine and what became of them.
#[derive(Debug, Default)]
pub struct Inventory {
    pub cards: Vec<Card>,
    /// Why none is used, where none is.
    pub unused: Option<String>,
    /// Those that are used.
    pub devices: Vec<Arc<Status>>,
}

impl Inventory {
    /// Asks the driver, through a process of its own, and keeps the devices that `model` can run on, at most `most`.
    #[must_use]
    pub fn take(model: &Model, generation: GenerationId, most: usize) -> Self {
        let cards = match list() {
            Ok(cards) => cards,
            Err(reason) => return Self { unused: Some(reason), ..Self::default() },
        };
        if let Err(reason) = Shape::of(&model.weights, SLOTS, ROWS_MAX) {
            return Self { cards, unused: Some(reason.to_string()), devices: Vec::new() };
        }
        let usable = cards.iter().enumerate().filter_map(|(ordinal, card)| Some((ordinal, card, card.image.as_ref()?)));
        let devices = usable.take(most).map(|(ordinal, card, image)| {
            let identity = (ordinal, card.name.clone(), card.memory_bytes, image.clone());
            Arc::new(Status::new(identity, SLOTS, generation))
        });
        let devices: Vec<Arc<Status>> = devices.collect();
        let unused = devices.is_empty().then(|| "no device of compute capability 8.0 or above".to_owned());
        Self { cards, unused, devices }
    }
}

#[derive(serde::Deserialize)]
struct Listing {
    devices: Option<Vec<Card>>,
    error: Option<String>,
}

fn list() -> Result<Vec<Card>, String> {
    let output = Command::new("/proc/self/exe")
        .args(["gpu-worker", "--list"])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("the driver can't be asked: {error}"))?;
    let listing: Listing = serde_json::from_slice(&output.stdout)
        .map_err(|_| format!("the driver was asked and gave no answer ({})", output.status))?;
    listing.devices.ok_or_else(|| listing.error.unwrap_or_default())
}

/// Feeders that are about to start, and what their shards need of them.
pub struct Feeders {
    pending: Vec<Pending>,
}

struct Pending {
    status: Arc<Status>,
    bell: Arc<Doorbell>,
    ports: Vec<FeederPort>,
}

impl Feeders {
    /// Rings between every device and `shards` shards; the shards' ends, shard by shard.
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn connect(inventory: &Inventory, shards: usize) -> std::io::Result<(Self, Vec<Vec<ShardPort>>)> {
        let mut pending = Vec::with_capacity(inventory.devices.len());
        let mut shard_ports: Vec<Vec<ShardPort>> = (0..shards).map(|_| Vec::new()).collect();
        for status in &inventory.devices {
            let bell = Arc::new(Doorbell::socket()?);
            let (ours, theirs): (Vec<_>, Vec<_>) =
                (0..shards).map(|_| ports::pair(status, &bell)).map(|(shard, feeder)| (feeder, shard)).unzip();
            shard_ports.iter_mut().zip(theirs).for_each(|(ports, port)| ports.push(port));
            pending.push(Pending { status: Arc::clone(status), bell, ports: ours });
        }
        Ok((Self { pending }, shard_ports))
    }

    /// Starts a thread for each device; `bells` are the shards'.
    ///
    /// # Errors
    /// When a thread can't be started.
    pub fn start(
        self,
        config: &Config,
        model: &Arc<Model>,
        bells: &[Arc<Doorbell>],
    ) -> std::io::Result<RunningFeeders> {
        let mut running = RunningFeeders::default();
        for Pending { status, bell, ports } in self.pending {
            let ports = RingPorts::new(ports, bells.to_vec());
            let (config, model) = (config.clone(), Arc::clone(model));
            let (stopping, own_bell) = (Arc::clone(&running.stopping), Arc::clone(&bell));
            let thread = std::thread::Builder::new().name(format!("gpu-{}", status.ordinal)).spawn(move || {
                if let Err(reason) = feed(&config, &model, &status, ports, &own_bell, &stopping) {
                    warning!("{} is not used: {reason}", status.label());
                    status.set_state(State::Tripped);
                }
            })?;
            running.threads.push((thread, bell));
        }
        Ok(running)
    }
}

/// The feeders' threads; dropping them ends them and their workers.
#[derive(Default)]
pub struct RunningFeeders {
    threads: Vec<(JoinHandle<()>, Arc<Doorbell>)>,
    stopping: Arc<AtomicBool>,
}

impl Drop for RunningFeeders {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        for (thread, bell) in self.threads.drain(..) {
            bell.ring();
            if thread.join().is_err() {
                warning!("a GPU feeder ended by itself");
            }
        }
    }
}

/// The life of a feeder's thread.
fn feed(
    config: &Config,
    model: &Arc<Model>,
    status: &Arc<Status>,
    ports: RingPorts,
    bell: &Doorbell,
    stopping: &AtomicBool,
) -> Result<(), String> {
    let shape = Shape::of(&model.weights, SLOTS, ROWS_MAX).map_err(|error| error.to_string())?;
    let known = KnownAnswer::compute(model, config.isa).map_err(|error| error.to_string())?;
    let limits = FeederLimits {
        shards: ports.shards(),
        slots: SLOTS,
        waiting_max: SLOTS,
        rows_max: ROWS_MAX,
        context: model.weights.context,
        itl_target: config.itl_target,
        prefix_cache: config.prefix_cache,
    };
    let device = ChildDevice::new(status.ordinal, Arc::clone(model), shape);
    let now = Instant::now();
    let feeder = Feeder::new(device, Log, Arc::clone(model), known, limits, Arc::clone(status), now);
    let may_use_uring = match probe::probe(1) {
        Io::IoUring | Io::Glommio => true,
        Io::Epoll { reason } => {
            info!("{}: fed from a plain thread ({reason})", status.label());
            false
        }
    };
    threads::run(feeder, ports, bell, stopping, may_use_uring)
}

/// Says what happens to a device where the operator looks.
struct Log;

impl Journal for Log {
    fn up(&mut self, status: &Status) {
        let costs = status.costs();
        info!(
            "{} ({}, {}) is up after its self test: {} KV blocks, {:.2} ms a step",
            status.label(),
            status.name,
            status.image,
            status.kv_blocks(),
            costs.decode_s * 1e3,
        );
    }

    fn fault(&mut self, status: &Status, fault: &Fault, returned: usize, retry_in: Duration) {
        warning!(
            "{} is down: {fault}; {returned} sequences go on on the CPU, next try in {:.2} s",
            status.label(),
            retry_in.as_secs_f64(),
        );
    }
}

/// Sequences that a device computes at a time.
pub const SLOTS: usize = 256;
/// Rows of one step of a device.
const ROWS_MAX: usize = 512;
