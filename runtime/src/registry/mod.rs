//! The served models: names, their generations, and the thread that loads, swaps and frees them beside the shards.
//!
//! The control thread alone owns the registry. Shards get orders through one bounded ring each and acknowledge them;
//! clients' wishes come as messages, one at a time. Every lane and replica is made and freed on this thread.

mod budget;
mod cross;
mod facts;
mod load;
mod orders;
mod paths;
mod startup;
mod state;
mod swap;
mod trial;
mod watch;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use net::api::{DevicePreference, LoadReply, LoadRequest, QuantizationPreference, ValidationResult, ValidationResults};
use net::error::{ApiError, Code};
use rtrb::{Consumer, Producer};
use tuning::Placement;

use crate::config::Config;
use crate::engine::{GenerationId, LANES_MAX, Lane, LaneLimits, guests_max};
use crate::forward::{Forward, Limits};
use crate::gpu::GpuOrders;
use crate::kv::{KnownBlocks, KvCache};
use crate::log::{info, warning};
use crate::mailbox::Doorbell;
use crate::metrics::GenerationMetrics;
use crate::model::{self, Model, Pooling, Source};
use crate::shard::{Control, Served};

pub use budget::Budget;
pub use facts::{Facts, hex};
pub use load::{LoadError, LoadPlan, Loaded, load};
pub use orders::{JobReply, JobRequest, Message, Order, Outcome};
pub use paths::AllowedDirectories;
pub use startup::{StartError, Started, budgets, load_all};
use state::{Saved, Version};
pub use state::{State, StateFile};
use trial::Tried;

/// What the control thread holds of a shard.
pub struct ShardEnds {
    pub orders: Producer<Order>,
    pub doorbell: Arc<Doorbell>,
    pub closed: Consumer<Lane>,
}

/// A generation that shards know.
pub struct Held {
    facts: Arc<Facts>,
    replicas: Vec<Arc<Model>>,
    metrics: Arc<[Arc<GenerationMetrics>]>,
    /// Lanes that leaders have.
    lanes: usize,
}

/// A served name.
struct Name {
    name: String,
    configured: Option<PathBuf>,
    active: Held,
    /// Loaded and idle, for a swap back.
    standby: Option<Held>,
    /// Files that were good before the active one, the latest first.
    earlier: Vec<Version>,
}

/// Everything that changes what is served.
pub struct Registry {
    config: Config,
    placement: Placement,
    control: Arc<Control>,
    shards: Vec<ShardEnds>,
    inbox: Receiver<Message>,
    gpus: GpuOrders,
    names: Vec<Name>,
    /// Closed generations with requests that have not ended.
    leaving: Vec<Held>,
    generations: u32,
    orders: u64,
    state: Option<StateFile>,
}

impl Held {
    /// What a generation is for each of the shards: what executors know, and the lane of their leaders.
    ///
    /// # Errors
    /// When there is no address space for a KV cache.
    pub fn make(
        config: &Config,
        placement: &Placement,
        loaded: Loaded,
    ) -> Result<(Self, Vec<(Served, Lane)>), tuning::Error> {
        let shards = placement.shards.len();
        let metrics: Arc<[_]> = (0..shards).map(|_| Arc::new(GenerationMetrics::default())).collect();
        let facts = Arc::new(loaded.facts);
        let kv_blocks = usize::try_from(loaded.budget.kv_blocks).expect("bounded by memory");
        let tables = if shares_prefixes(config, &loaded.replicas[0]) { shards } else { 0 };
        let known: Arc<[_]> = (0..tables).map(|_| Arc::new(KnownBlocks::new(kv_blocks))).collect();
        let make = |(index, model): (usize, &Arc<Model>)| {
            let served = Served {
                id: facts.generation,
                model: Arc::clone(model),
                facts: Arc::clone(&facts),
                metrics: Arc::clone(&metrics[index]),
                everywhere: Arc::clone(&metrics),
                known: Arc::clone(&known),
            };
            let lane = make_lane(config, placement, index, &served, kv_blocks)?;
            Ok((served, lane))
        };
        let parts = loaded.replicas.iter().enumerate().map(make).collect::<Result<_, tuning::Error>>()?;
        Ok((Self { facts, replicas: loaded.replicas, metrics, lanes: shards }, parts))
    }

    /// Whether nobody but this thread has anything of it.
    fn is_free(&self) -> bool {
        let own = |model: &Arc<Model>| self.replicas.iter().filter(|other| Arc::ptr_eq(model, other)).count();
        self.lanes == 0 && self.replicas.iter().all(|model| Arc::strong_count(model) == own(model))
    }
}

/// Whether the sequences of a model share what they have in common. Poolings other than the last state's need the states
/// of positions that a shared prefix leaves out.
fn shares_prefixes(config: &Config, model: &Model) -> bool {
    config.prefix_cache && model.weights.params.pooling.is_none_or(|pooling| pooling == Pooling::Last)
}

/// Everything that the shard with that index needs to compute `served`.
fn make_lane(
    config: &Config,
    placement: &Placement,
    index: usize,
    served: &Served,
    kv_blocks: usize,
) -> Result<Lane, tuning::Error> {
    let (place, shards) = (&placement.shards[index], placement.shards.len());
    let (params, workers) = (&served.model.weights.params, place.workers.len());
    let (slots_max, waiting_max) = (config.slots_max.div_ceil(shards), config.waiting_max.div_ceil(shards));
    let logits_max = match params.pooling {
        None => slots_max + config.speculation.rows_max(),
        Some(Pooling::Mean) => config.rows_max,
        Some(Pooling::First | Pooling::Last) => slots_max,
    };
    let limits = Limits { rows_max: config.rows_max, logits_max };
    let forward = Forward::new(config.isa, params, workers, limits).tuned(&config.tuned);
    let (context, room, node) = (served.model.weights.context, (slots_max, kv_blocks), Some(place.memory_node));
    let kv = KvCache::on_node(params, config.kv_type, context, room, node)?;
    let kv = match served.known.get(index) {
        Some(known) => kv.with_prefixes().keeping_at_most(config.prefix_cache_share).published_in(Arc::clone(known)),
        None => kv,
    };
    // Sequences of other shards come beside those that its own executor takes in.
    let guests_max = if served.known.is_empty() { 0 } else { (shards - 1) * guests_max(slots_max, shards) };
    let (itl_target, speculation) = (config.itl_target, config.speculation);
    let (waiting_max, kv_idle) = (waiting_max + guests_max, config.kv_idle);
    let limits = LaneLimits { slots_max, waiting_max, itl_target, speculation, kv_idle };
    Ok(Lane::new(served.id, Arc::clone(&served.model), workers, forward, kv, limits, Arc::clone(&served.metrics)))
}

impl Registry {
    /// The registry of a server that serves `models` already.
    #[must_use]
    pub fn new(
        config: Config,
        placement: Placement,
        control: Arc<Control>,
        shards: Vec<ShardEnds>,
        inbox: Receiver<Message>,
        models: Vec<(Option<PathBuf>, Held)>,
        state: Option<StateFile>,
    ) -> Self {
        let name = |(configured, active): (Option<PathBuf>, Held)| Name {
            name: active.facts.name.clone(),
            configured,
            active,
            standby: None,
            earlier: Vec::new(),
        };
        let names: Vec<Name> = models.into_iter().map(name).collect();
        let generations = names.iter().map(|name| name.active.facts.generation.0 + 1).max().unwrap_or(0);
        Self {
            config,
            placement,
            control,
            shards,
            inbox,
            gpus: GpuOrders::default(),
            names,
            leaving: Vec::new(),
            generations,
            orders: 0,
            state,
        }
    }

    /// With GPUs, which serve what the first name does.
    #[must_use]
    pub fn with_gpus(self, gpus: GpuOrders) -> Self {
        Self { gpus, ..self }
    }

    /// Does what clients ask for until the executors are gone.
    pub fn run(mut self) {
        tuning::give_way();
        self.assign_gpus();
        loop {
            let patience = if self.leaving.is_empty() { IDLE_LOOK_EVERY } else { LEAVING_LOOK_EVERY };
            match self.inbox.recv_timeout(patience) {
                Ok(Message::Job { shard, job, request }) => {
                    // What a file brings about must end neither this thread nor the wait of its client.
                    let answer = catch_unwind(AssertUnwindSafe(|| self.perform(*request)));
                    let answer = answer.unwrap_or_else(|_| Err(ApiError::internal("the operation broke down")));
                    self.control.end_operation();
                    self.send(shard, Order::Answer { job, answer: Box::new(answer) });
                    self.assign_gpus();
                }
                // Of an order that was given up.
                Ok(Message::Done { .. }) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.free();
        }
    }

    fn assign_gpus(&mut self) {
        if let Some(Name { active, .. }) = self.names.first() {
            self.gpus.serve(&active.replicas[0], active.facts.generation, self.config.isa);
        }
    }

    fn perform(&mut self, request: JobRequest) -> Result<JobReply, ApiError> {
        self.free();
        match request {
            JobRequest::Load(request) => self.load(&request).map(JobReply::Loaded),
            JobRequest::Swap { id, request } => self.swap(id, &request).map(JobReply::Swapped),
            JobRequest::Delete { name } => self.delete(&name).map(|()| JobReply::Deleted),
        }
    }

    fn load(&mut self, request: &LoadRequest) -> Result<LoadReply, ApiError> {
        let started = Instant::now();
        if request.device_preference == DevicePreference::Gpu {
            let message = "no GPU is available on this server";
            let error = ApiError::new(503, Code::DeviceUnavailable, message).with_param("device_preference");
            return Err(error.with_retry_after(RETRY_DEVICE));
        }
        let (source, path) = self.config.allowed_directories.open(&request.model_path, "model_path")?;
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let name = request.model_id.clone().or(stem).unwrap_or_default();
        if self.names.iter().any(|known| known.name == name) {
            let message = format!("model `{name}` is served already: swap it");
            return Err(ApiError::new(409, Code::InvalidRequest, message).with_param("model_id"));
        }
        let loaded = self.load_file(&source, path, &name, request.sha256, request.cache_bytes_max)?;
        check_quantization(request.quantization_format, loaded.facts.quantization)?;
        let deadline = (started, request.validation.timeout);
        let tried = self.try_loaded(&loaded, None, &[], deadline)?;
        let crossed =
            request.validation.cross_validation.then(|| cross::cross_validation(&source, &loaded, request, started));
        let crossed = crossed.transpose()?;
        let held = self.open(loaded)?;
        let (facts, generation) = (Arc::clone(&held.facts), held.facts.generation);
        self.names.push(Name {
            name: name.clone(),
            configured: None,
            active: held,
            standby: None,
            earlier: Vec::new(),
        });
        if let Err(error) = self.save().and_then(|()| self.route(&name, Some(generation), None)) {
            let name = self.names.pop().expect("pushed above");
            self.close(name.active);
            return Err(error);
        }
        let load_time = started.elapsed();
        info!("model `{name}` loaded: {}, {:.2} s in all", describe_load(&facts), load_time.as_secs_f64());
        Ok(LoadReply {
            model_id: name,
            status: "loaded",
            load_time_ms: ms(load_time),
            model_metadata: facts.metadata(),
            validation_results: ValidationResults { cross_validation: crossed, ..validation_results(&facts, &tried) },
        })
    }

    fn delete(&mut self, name: &str) -> Result<(), ApiError> {
        let index = self.index(name)?;
        self.route(name, None, None)?;
        let removed = self.names.remove(index);
        let generation = removed.active.facts.generation;
        if let Err(error) = self.save() {
            // It would be back after the next start, so it is served on.
            self.names.insert(index, removed);
            self.route(name, Some(generation), None)?;
            return Err(error);
        }
        let name = removed;
        self.close(name.active);
        if let Some(standby) = name.standby {
            self.close(standby);
        }
        // Every request has a time limit, but for who takes its answer in slowly: others must not wait for that.
        let until = Instant::now() + self.config.time_limits.total;
        while self.leaving.iter().any(|held| held.facts.generation == generation) && Instant::now() < until {
            pause(LEAVING_LOOK_EVERY);
            self.free();
            if self.control.is_draining() {
                break;
            }
        }
        Ok(())
    }

    fn index(&self, name: &str) -> Result<usize, ApiError> {
        self.names.iter().position(|known| known.name == name).ok_or_else(|| ApiError::model_not_found(name))
    }

    /// Loads a file beside everything that runs.
    fn load_file(
        &mut self,
        source: &Source,
        path: PathBuf,
        name: &str,
        expected: Option<facts::Hash>,
        kv_bytes_max: Option<u64>,
    ) -> Result<Loaded, ApiError> {
        let standby = self.names.iter().filter_map(|name| name.standby.as_ref());
        let held = self.names.iter().map(|name| &name.active).chain(standby).chain(&self.leaving);
        let (reserved_bytes, count) =
            held.fold((0, 0), |(bytes, count), held| (bytes + held.facts.kv_bytes, count + 1));
        if count + 1 >= LANES_MAX {
            let message = format!("{count} generations are held, limit {}", LANES_MAX - 1);
            return Err(ApiError::unavailable(message, RETRY_GENERATIONS));
        }
        let generation = GenerationId(self.generations);
        self.generations += 1;
        let plan = LoadPlan {
            config: &self.config,
            placement: &self.placement,
            generation,
            threads: 1,
            name: name.to_owned(),
            path: Some(path),
            expected,
            reserved_bytes,
            kv_bytes_max,
        };
        Ok(load(source, plan, &|_, _| {})?)
    }

    /// Runs the test prompts on this thread, against the model that is served as `old`.
    fn try_loaded(
        &self,
        loaded: &Loaded,
        old: Option<&Held>,
        prompts: &[String],
        (started, timeout): (Instant, Duration),
    ) -> Result<Tried, ApiError> {
        if started.elapsed() > timeout {
            return Err(LoadError::TooSlow { got: started.elapsed(), allowed: timeout }.into());
        }
        if let Some(held) = old {
            same_kind(&loaded.replicas[0], &held.replicas[0])?;
        }
        let standard = [TEST_PROMPT.to_owned()];
        let prompts = if prompts.is_empty() { &standard[..] } else { prompts };
        let old = old.map(|held| (&*held.replicas[0], held.facts.tokenizer == loaded.facts.tokenizer));
        trial::try_model((self.config.isa, self.config.kv_type), &loaded.replicas[0], old, prompts, (started, timeout))
            .map_err(|error| {
                let status = if matches!(error, trial::TrialError::Timeout(_)) { 408 } else { 400 };
                ApiError::new(status, Code::ModelLoadFailed, format!("the model does not pass its trial: {error}"))
            })
    }

    /// Makes a generation known to every shard; no request reaches it yet.
    fn open(&mut self, loaded: Loaded) -> Result<Held, ApiError> {
        let (held, parts) = Held::make(&self.config, &self.placement, loaded)
            .map_err(|error| LoadError::from(model::Error::from(error)))?;
        let mut orders = Vec::with_capacity(parts.len());
        for (shard, (served, lane)) in parts.into_iter().enumerate() {
            let order = self.next_order();
            self.send(shard, Order::Open { order, served, lane: Box::new(lane) });
            orders.push(order);
        }
        self.wait(&orders, ORDER_TIMEOUT)?;
        Ok(held)
    }

    /// Lets no further request reach a generation; it is freed when the last one has ended.
    fn close(&mut self, held: Held) {
        let orders: Vec<u64> = (0..self.shards.len())
            .map(|shard| {
                let order = self.next_order();
                self.send(shard, Order::Close { order, generation: held.facts.generation });
                order
            })
            .collect();
        self.leaving.push(held);
        // Executors that don't answer are ending, and so is the process.
        let _ = self.wait(&orders, ORDER_TIMEOUT);
    }

    /// Sends new requests for `name` to `active`, on all shards at once.
    fn route(
        &mut self,
        name: &str,
        active: Option<GenerationId>,
        canary: Option<(GenerationId, f32)>,
    ) -> Result<(), ApiError> {
        let shards = 0..self.shards.len();
        let orders: Vec<u64> = shards.map(|shard| self.route_shard(shard, name, active, canary)).collect();
        self.wait(&orders, ORDER_TIMEOUT).map(|_| ())
    }

    fn route_shard(
        &mut self,
        shard: usize,
        name: &str,
        active: Option<GenerationId>,
        canary: Option<(GenerationId, f32)>,
    ) -> u64 {
        let order = self.next_order();
        self.send(shard, Order::Route { order, name: name.to_owned(), active, canary });
        order
    }

    fn next_order(&mut self) -> u64 {
        self.orders += 1;
        self.orders
    }

    fn send(&mut self, shard: usize, order: Order) {
        let ends = &mut self.shards[shard];
        let mut order = order;
        while let Err(rtrb::PushError::Full(back)) = ends.orders.push(order) {
            if ends.orders.is_abandoned() {
                return;
            }
            order = back;
            ends.doorbell.ring();
            pause(LEAVING_LOOK_EVERY);
        }
        ends.doorbell.ring();
    }

    /// The outcomes of `orders`, when all of them have one.
    fn wait(&mut self, orders: &[u64], timeout: Duration) -> Result<Vec<Outcome>, ApiError> {
        let deadline = Instant::now() + timeout;
        let mut outcomes: Vec<Option<Outcome>> = orders.iter().map(|_| None).collect();
        while outcomes.iter().any(Option::is_none) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.inbox.recv_timeout(left) {
                Ok(Message::Done { order, outcome }) => {
                    // Others are of orders that were given up.
                    if let Some(at) = orders.iter().position(|wanted| *wanted == order) {
                        outcomes[at] = Some(outcome);
                    }
                }
                Ok(Message::Job { shard, job, .. }) => {
                    self.send(shard, Order::Answer { job, answer: Box::new(Err(busy())) });
                }
                Err(RecvTimeoutError::Timeout) => return Err(ApiError::internal("a shard does not answer")),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(ApiError::unavailable("the server is shutting down", RETRY_GENERATIONS));
                }
            }
        }
        Ok(outcomes.into_iter().flatten().collect())
    }

    /// Frees what came back.
    fn free(&mut self) {
        for shard in &mut self.shards {
            while let Ok(lane) = shard.closed.pop() {
                if let Some(held) = self.leaving.iter_mut().find(|held| held.facts.generation == lane.id()) {
                    held.lanes -= 1;
                }
            }
        }
        self.leaving.retain(|held| {
            if held.is_free() {
                info!("generation {} of `{}` is freed", held.facts.generation.0, held.facts.name);
            }
            !held.is_free()
        });
    }

    /// Writes what is served to the state file, if there is one.
    fn save(&self) -> Result<(), ApiError> {
        let Some(file) = &self.state else { return Ok(()) };
        let version = |held: &Held| {
            let path = held.facts.path.clone()?;
            Some(Version { path, sha256: hex(&held.facts.sha256) })
        };
        let saved = |name: &Name| Saved {
            name: name.name.clone(),
            configured: name.configured.clone(),
            versions: version(&name.active).into_iter().chain(name.earlier.iter().cloned()).collect(),
        };
        file.write(&State { models: self.names.iter().map(saved).collect() }).map_err(|error| {
            warning!("{error}");
            ApiError::internal(format!("what is served can't be remembered: {error}"))
        })
    }
}

/// 409: one change at a time.
#[must_use]
pub fn busy() -> ApiError {
    ApiError::new(409, Code::InvalidRequest, "another load, swap or removal is in progress")
        .with_retry_after(RETRY_BUSY)
}

/// Refuses to put a model in the place of one whose requests it can't answer.
fn same_kind(new: &Model, old: &Model) -> Result<(), ApiError> {
    let kind = |model: &Model| match model.weights.params.pooling {
        Some(_) => format!("gives embeddings of {} values", model.weights.params.hidden),
        None => "generates text".to_owned(),
    };
    let (new, old) = (kind(new), kind(old));
    if new == old {
        return Ok(());
    }
    let message = format!("the file holds a model that {new}, the served one {old}: load it under another name");
    Err(ApiError::new(400, Code::ValidationFailed, message))
}

fn check_quantization(wanted: QuantizationPreference, got: &'static str) -> Result<(), ApiError> {
    let name = match wanted {
        QuantizationPreference::Auto => return Ok(()),
        QuantizationPreference::I2s => "I2_S",
        QuantizationPreference::Tl1 => "TL1",
        QuantizationPreference::Tl2 => "TL2",
    };
    if name == got {
        return Ok(());
    }
    let message = format!("the file's ternary tensors are {got}, {name} was asked for");
    Err(ApiError::new(400, Code::QuantizationError, message).with_param("quantization_format"))
}

fn validation_results(facts: &Facts, tried: &Tried) -> ValidationResults {
    let rate = tried.tokens_per_s.unwrap_or(0.0);
    ValidationResults {
        gguf_validation: ValidationResult {
            passed: true,
            duration_ms: ms(facts.load_time),
            message: format!("{} tensors, tokenizer and template are sound, {}", facts.tensors, describe_load(facts)),
        },
        quantization_validation: ValidationResult {
            passed: true,
            duration_ms: ms(facts.load_time),
            message: format!("every {} tensor packs, every scale is a number", facts.quantization),
        },
        performance_validation: ValidationResult {
            passed: true,
            duration_ms: ms(tried.duration),
            message: format!("{rate:.1} tokens per second on one thread of low priority"),
        },
        cross_validation: None,
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn describe_load(facts: &Facts) -> String {
    let seconds = facts.load_time.as_secs_f64();
    let (mb, rate) = (facts.file_bytes as f64 / 1e6, facts.file_bytes as f64 / 1e6 / seconds);
    format!("{mb:.1} MB hashed and packed in {seconds:.3} s ({rate:.0} MB/s)")
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[expect(clippy::disallowed_methods, reason = "the control thread waits beside the shards")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// What a model is tried with where nobody says.
const TEST_PROMPT: &str = "Once upon a time";
const IDLE_LOOK_EVERY: Duration = Duration::from_secs(1);
const LEAVING_LOOK_EVERY: Duration = Duration::from_millis(10);
/// An executor acknowledges within one turn of its loop.
const ORDER_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_BUSY: Duration = Duration::from_secs(1);
const RETRY_DEVICE: Duration = Duration::from_secs(10);
const RETRY_GENERATIONS: Duration = Duration::from_secs(5);
/// Orders that may be on their way to a shard.
pub const ORDERS_MAX: usize = 64;
