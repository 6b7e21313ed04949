//! GPUs: for each a feeder thread that batches sequences for a worker process, which alone talks to the driver.
//!
//! A shard that chooses a GPU for a sequence takes a credit of it and sends the sequence to its feeder; tokens come back
//! as events like those of the shard's own leader. A device that fails hands every sequence back as it stands, and
//! another one or the CPU goes on with the same tokens, since all compute the same bits (but for prompts on tensor cores, where that is asked for).

mod abi;
mod assign;
mod batch;
mod child;
mod cuda;
mod device;
mod feeder;
mod graphs;
mod health;
mod images;
mod known;
mod layout;
mod nvml;
mod pack;
mod plan;
mod ports;
mod route;
mod sampling;
mod shape;
mod status;
mod threads;
mod wire;
pub mod worker;

#[cfg(test)]
mod mock;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kernels::attention::KvType;
use tuning::{CpuId, DevicePlacement, NodeId, Placement};

use crate::config::{Config, GpuChoice};
use crate::guide::Beside;
use crate::log::{info, warning};
use crate::mailbox::Doorbell;
use crate::model::Model;

pub use assign::GpuOrders;
pub use device::FaultKind;
pub use feeder::GpuCommand;
pub use nvml::Reading;
pub use ports::ShardPort;
pub(crate) use ports::pair;
pub use route::{Costs, Load, Work, choose};
pub use status::{Identity, PromptAttention, State, Status};

use child::ChildDevice;
use device::Fault;
use feeder::{Feeder, FeederLimits, Journal};
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
    /// Where it is on the bus: `domain:bus:device.function`.
    pub bus: String,
}

/// The devices of this machine as the driver lists them.
#[derive(Clone, Debug)]
pub struct Cards {
    /// Or why there are none.
    listed: Result<Vec<Card>, String>,
    /// Numbers of those that are used: there are kernels for them, and the configuration allows so many.
    pub used: Vec<usize>,
    kv_type: KvType,
    prompt_attention: PromptAttention,
}

impl Cards {
    /// Asks the driver, unless `config` wants none.
    #[must_use]
    pub fn find(config: &Config) -> Self {
        let (most, listed) = match config.gpu {
            GpuChoice::Off => (0, Ok(Vec::new())),
            GpuChoice::Auto => (usize::MAX, list()),
            GpuChoice::Count(count) => (count, list()),
        };
        let usable = listed.iter().flatten().enumerate().filter(|(_, card)| card.image.is_some());
        let used = usable.map(|(ordinal, _)| ordinal).take(most).collect();
        Self { listed, used, kv_type: config.kv_type, prompt_attention: config.gpu_prompt_attention }
    }

    /// The nodes that the used ones hang on, where that is known.
    #[must_use]
    pub fn nodes(&self) -> Vec<Option<NodeId>> {
        let listed: Vec<&Card> = self.listed.iter().flatten().collect();
        let node = |&ordinal: &usize| tuning::pci_node(Path::new("/sys"), &listed[ordinal].bus);
        self.used.iter().map(node).collect()
    }
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
    /// The used ones of `cards`, at each of which so many sequences may wait; says why they don't run `model`, if so.
    #[must_use]
    pub fn take(cards: &Cards, model: &Model, waiting_max: usize) -> Self {
        let listed = match &cards.listed {
            Ok(listed) => listed.clone(),
            Err(reason) => return Self { unused: Some(reason.clone()), ..Self::default() },
        };
        let devices = cards.used.iter().map(|&ordinal| {
            let card = &listed[ordinal];
            let identity = Identity {
                ordinal,
                name: card.name.clone(),
                memory_bytes: card.memory_bytes,
                image: card.image.clone().unwrap_or_default(),
                bus: card.bus.clone(),
                prompt_attention: cards.prompt_attention,
            };
            Arc::new(Status::new(identity, SLOTS, waiting_max))
        });
        let devices: Vec<Arc<Status>> = devices.collect();
        let none = devices.is_empty().then(|| "no device of compute capability 8.0 or above".to_owned());
        // A later model may be one that they can run.
        let unused = none.or_else(|| {
            Shape::of(&model.weights, cards.kv_type, SLOTS, ROWS_MAX).err().map(|reason| reason.to_string())
        });
        Self { cards: listed, unused, devices }
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
            let bell = Arc::new(Doorbell::new()?);
            let (ours, theirs): (Vec<_>, Vec<_>) =
                (0..shards).map(|_| pair(status, &bell)).map(|(shard, feeder)| (feeder, shard)).unzip();
            shard_ports.iter_mut().zip(theirs).for_each(|(ports, port)| ports.push(port));
            pending.push(Pending { status: Arc::clone(status), bell, ports: ours });
        }
        Ok((Self { pending }, shard_ports))
    }

    /// Starts a thread for each device, which serves nothing before it is told to; `bells` are the shards'.
    ///
    /// # Errors
    /// When a thread can't be started.
    pub fn start(
        self,
        config: &Config,
        bells: &[Arc<Doorbell>],
        placement: &Placement,
    ) -> std::io::Result<(RunningFeeders, GpuOrders)> {
        let (mut running, mut orders) = (RunningFeeders::default(), GpuOrders::new(config.kv_type));
        let devices: Vec<Arc<Status>> = self.pending.iter().map(|pending| Arc::clone(&pending.status)).collect();
        running.watcher = if devices.is_empty() { None } else { Some(nvml::Watcher::start(devices)?) };
        for (index, Pending { status, bell, ports }) in self.pending.into_iter().enumerate() {
            let cpus = placement.devices.get(index).and_then(|device| Cpus::of(device, &placement.others));
            let ports = RingPorts::new(ports, orders.add(&bell), bells.to_vec());
            let config = config.clone();
            let (stopping, own_bell) = (Arc::clone(&running.stopping), Arc::clone(&bell));
            // Here, where no thread has been given a cpu of its own.
            let beside = Beside::start_for_gpu(status.ordinal, samplers(), &bell)?;
            let thread = std::thread::Builder::new().name(feeder_name(status.ordinal)).spawn(move || {
                feed(&config, &status, (ports, cpus, beside), &own_bell, &stopping);
            })?;
            running.threads.push((thread, bell));
        }
        Ok((running, orders))
    }
}

/// The feeders' threads; dropping them ends them and their workers.
#[derive(Default)]
pub struct RunningFeeders {
    threads: Vec<(JoinHandle<()>, Arc<Doorbell>)>,
    stopping: Arc<AtomicBool>,
    watcher: Option<nvml::Watcher>,
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

/// The thread that feeds a device.
#[must_use]
pub fn feeder_name(ordinal: usize) -> String {
    format!("gpu-{ordinal}")
}

/// The cpus of a device that has some of its own, and those that its other threads have to keep to.
#[derive(Clone, Debug)]
struct Cpus {
    feeder: CpuId,
    worker: CpuId,
    others: Arc<[CpuId]>,
}

impl Cpus {
    fn of(device: &DevicePlacement, others: &[CpuId]) -> Option<Self> {
        Some(Self { feeder: device.feeder()?, worker: device.worker()?, others: others.into() })
    }
}

/// Threads that choose tokens from scores, where a thread is asked that may run anywhere.
fn samplers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).div_ceil(4).min(SAMPLERS_MAX)
}

/// The life of a feeder's thread.
fn feed(
    config: &Config,
    status: &Arc<Status>,
    (ports, cpus, beside): (RingPorts, Option<Cpus>, Beside),
    bell: &Doorbell,
    stopping: &AtomicBool,
) {
    // Asked before this thread has but one.
    let samplers = samplers();
    if let Some(Err(error)) = cpus.as_ref().map(|cpus| tuning::pin(&[cpus.feeder])) {
        warning!("{error}");
    }
    let limits = FeederLimits {
        slots: SLOTS,
        waiting_max: config.waiting_max,
        rows_max: ROWS_MAX,
        itl_target: config.itl_target,
        prefix_cache: config.prefix_cache,
        prompt_attention: config.gpu_prompt_attention,
        samplers,
        sampler_cpus: cpus.as_ref().map(|cpus| Arc::clone(&cpus.others)),
    };
    let device = ChildDevice::new(status.ordinal, cpus);
    let feeder = Feeder::new((device, Log), limits, Arc::clone(status), beside, Instant::now());
    threads::run(feeder, ports, bell, stopping);
}

/// Says what happens to a device where the operator looks.
struct Log;

impl Journal for Log {
    fn up(&mut self, status: &Status) {
        let costs = status.costs();
        info!(
            "{} ({}, {}) is up after its self test: {} KV blocks, attention of prompts {}, {:.2} ms a step of {:.0} rows",
            status.label(),
            status.name,
            status.image,
            status.kv_blocks(),
            status.prompt_attention.name(),
            costs.decode_s * 1e3,
            costs.decode_rows,
        );
    }

    fn fault(&mut self, status: &Status, fault: &Fault, returned: usize, retry_in: Duration) {
        warning!(
            "{} is down: {fault}; {returned} sequences go on elsewhere, next try in {:.2} s",
            status.label(),
            retry_in.as_secs_f64(),
        );
    }
}

/// Sequences that a device computes at a time.
pub const SLOTS: usize = 512;
/// Threads that choose tokens for one device, which are idle unless a step has rows whose tokens are not chosen there.
const SAMPLERS_MAX: usize = 8;
/// Rows of one step of a device: one of each sequence, and some of prompts beside them.
const ROWS_MAX: usize = SLOTS + 256;
