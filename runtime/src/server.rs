//! Brings a server up and takes it down: placement, model, shards, readiness, drain.

#[cfg(test)]
#[expect(unsafe_code, reason = "a signal to one thread of the process")]
mod tests;

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use net::tls::Identity;
use tuning::{Placement, Topology};

use crate::certificate::{self, TlsFiles};
use crate::config::{Config, GpuChoice, IoChoice, Reload, Reloaded};
use crate::engine::{self, Bells, Engine, LANES_MAX, Lane, Link, Neighbours};
use crate::gpu::{Cards, Feeders, Inventory, ShardPort};
use crate::guide::{Beside, Compiler};
use crate::listen;
use crate::local::LocalSocket;
use crate::log::{self, info, warning};
use crate::mailbox::Doorbell;
use crate::metrics::ShardMetrics;
use crate::otlp::{self, Tracer};
use crate::probe::{self, Io};
use crate::registry::{Held, Message, ORDERS_MAX, Registry, ShardEnds, Started, StateFile};
use crate::shard::{Arrivals, Aside, Control, CpuPlace, Door, Served, Shard, ShardLink, Terms};
use crate::signals::{Signals, Told};
use crate::team::Team;
use crate::watch::Watch;
use crate::watchdog::{Look, Watchdog};

/// Why a server doesn't come up, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Machine(#[from] tuning::Error),
    #[error(transparent)]
    Certificate(#[from] certificate::Error),
    #[error("can't listen on {place}: {source}")]
    Listen { place: String, source: std::io::Error },
    #[error("io_uring was asked for and can't be used: {0}")]
    NoIoUring(String),
    #[error("{what}: {source}")]
    Start { what: &'static str, source: std::io::Error },
    #[error("{wanted} GPUs were asked for, {found} can be used{}", reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    TooFewGpus { wanted: usize, found: usize, reason: Option<String> },
    #[error("shard {0} ended by itself")]
    ShardEnded(usize),
    #[error("streams were cut {0}")]
    Cut(Cause),
}

/// Why a drain did not wait for the last stream.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum Cause {
    #[error("after the drain timeout of {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("by a second signal")]
    Signal,
    #[error("since a shard's leader has ended")]
    LostLeader,
}

/// A placement and the socket driver, decided before the model is loaded.
pub struct Plan {
    pub placement: Placement,
    pub cards: Cards,
    pub io: Io,
    pub address: Option<SocketAddr>,
    pub local: Option<LocalSocket>,
    /// What the port speaks TLS by, where it does.
    pub identity: Option<Arc<Identity>>,
}

impl Plan {
    /// Looks at the machine and makes sure that the address is free.
    ///
    /// # Errors
    /// When the placement isn't possible, the address is taken, io_uring was demanded and is refused, or certificate and
    /// key are none.
    pub fn make(config: &Config) -> Result<Self, Error> {
        let identity = config.tls.as_ref().map(TlsFiles::read).transpose()?;
        let topology = Topology::read(Path::new("/sys"))?;
        let cards = Cards::find(config);
        let placement = tuning::plan_with_devices(&topology, config.shards, config.workers, &cards.nodes())?;
        let io = match config.io {
            IoChoice::Epoll => Io::Epoll { reason: "epoll was asked for".into() },
            IoChoice::Auto => probe::probe(placement.shards.len()),
            IoChoice::IoUring | IoChoice::Glommio => match probe::probe(placement.shards.len()) {
                Io::Epoll { reason } => return Err(Error::NoIoUring(reason)),
                _ if config.io == IoChoice::Glommio => Io::Glommio,
                io => io,
            },
        };
        // Every listener shares its port, so that a second server would go unnoticed: this one does not share.
        let address = config.listen.map(|address| {
            let fail = |source| Error::Listen { place: address.to_string(), source };
            bind(address).and_then(|alone| alone.local_addr()).map_err(fail)
        });
        let address = address.transpose()?;
        let local = config.listen_unix.as_ref().map(|(path, mode)| {
            let fail = |source| Error::Listen { place: path.display().to_string(), source };
            LocalSocket::bind(path, *mode).map_err(fail)
        });
        Ok(Self { placement, cards, io, address, local: local.transpose()?, identity })
    }

    /// All kernel workers.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.placement.shards.iter().map(|shard| shard.workers.len()).sum()
    }
}

/// The kernel takes the rings of a killed server down after its end, and frees its port only then: one that is taken is
/// asked for again for a moment.
fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let deadline = Instant::now() + PORT_PATIENCE;
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                pause(PORT_ASKED_EVERY);
            }
            result => return result,
        }
    }
}

/// What is served at the start, and where it is remembered.
pub struct Models {
    pub started: Vec<Started>,
    pub state: Option<StateFile>,
}

/// Serves `models` until a termination signal, then drains; `reload` is where settings can be read again.
///
/// # Errors
/// When a shard can't start or ends by itself, and when streams had to be cut.
pub fn serve(config: &Config, plan: &Plan, models: Models, signals: &Signals, reload: &Reload) -> Result<(), Error> {
    let started = Instant::now();
    let count = plan.placement.shards.len();
    let metrics: Arc<[Arc<ShardMetrics>]> = (0..count).map(|_| Arc::new(ShardMetrics::default())).collect();
    let cpus = plan
        .placement
        .shards
        .iter()
        .map(|shard| CpuPlace { node: shard.node.to_string(), cpus: tuning::format_cpus(&shard.workers) });
    let inventory = models.started.first().map(|model| take_inventory(config, plan, &model.loaded.replicas[0]));
    let inventory = inventory.transpose()?.unwrap_or_default();
    let fail = |what| move |source| Error::Start { what, source };
    let (feeders, gpu_ports) = Feeders::connect(&inventory, count).map_err(fail("a GPU's descriptors"))?;
    let devices = (cpus.collect(), inventory);
    let control = Control::new(started, Arc::clone(&metrics), plan.workers(), devices).with_rates(config.rates);
    let control = Arc::new(control);
    let traced = config.otlp.as_ref().map(|otlp| otlp::start(otlp, count, &control.traces));
    let (mut tracers, _exporter) = traced.transpose().map_err(fail("the thread that sends traces"))?.unzip();
    let weights_bytes: u64 = models.started.iter().map(|model| model.loaded.facts.replicas_bytes()).sum();
    let names: Vec<String> = models.started.iter().map(|model| format!("`{}`", model.loaded.facts.name)).collect();
    let mut parts: Vec<(Vec<Served>, Vec<Lane>)> = (0..count).map(|_| Default::default()).collect();
    let mut held = Vec::with_capacity(models.started.len());
    for Started { configured, loaded } in models.started {
        let (generation, of_shards) = Held::make(config, &plan.placement, loaded)?;
        held.push((configured, generation));
        for (shard, (served, lane)) in parts.iter_mut().zip(of_shards) {
            shard.0.push(served);
            shard.1.push(lane);
        }
    }
    let (outbox, inbox) = std::sync::mpsc::sync_channel(MESSAGES_MAX * count);
    let (mut shards, mut ends) = (Vec::with_capacity(count), Vec::with_capacity(count));
    let (ways, entrances) = make_entrances(config, plan)?;
    let slots_max = config.slots_max.div_ceil(count);
    let mut between = engine::connect(&ways.bells, engine::guests_max(slots_max, count)).into_iter();
    let compiler = Compiler::start().map_err(fail("the thread that compiles grammars"))?;
    let terms = Terms::of(config, plan.identity.clone());
    for (index, ((parts, gpus), entrance)) in parts.into_iter().zip(gpu_ports).zip(entrances).enumerate() {
        let between = between.next().unwrap_or_default();
        let tracer = tracers.as_mut().and_then(Vec::pop);
        let ways_in = (entrance, ways.clone(), gpus, between, (tracer, compiler.clone(), Arc::clone(&terms)));
        let (shard, end) = start_shard(config, plan, index, parts, ways_in, &control, outbox.clone())?;
        shards.push(shard);
        ends.push(end);
    }
    let bells: Vec<Arc<Doorbell>> = ways.bells.iter().map(|bells| Arc::clone(&bells.executor)).collect();
    let (feeders, gpus) = feeders.start(config, &bells, &plan.placement).map_err(fail("a GPU's feeder"))?;
    // Only executors hold it now, so that the control thread ends with them.
    drop(outbox);
    let registry =
        Registry::new(config.clone(), plan.placement.clone(), Arc::clone(&control), ends, inbox, held, models.state)
            .with_gpus(gpus);
    let control_thread = std::thread::Builder::new().name("control".into()).spawn(move || registry.run());
    control_thread.map_err(|source| Error::Start { what: "the control thread", source })?;
    for (index, shard) in shards.iter().enumerate() {
        while !shard.ready.load(Ordering::Acquire) {
            if shard.is_over() {
                return shards.remove(index).failure(index);
            }
            pause(Duration::from_millis(1));
        }
    }
    while control.listening() < count {
        if let Some(index) = shards.iter().position(Running::is_over) {
            return shards.remove(index).failure(index);
        }
        pause(Duration::from_millis(1));
    }
    control.set_ready();
    notify(&[sd_notify::NotifyState::Ready]);
    give_back_start(weights_bytes);
    if let Some(local) = &plan.local {
        info!("serving {} on {}", names.join(", "), local.path().display());
    }
    if let Some(address) = plan.address {
        let scheme = if plan.identity.is_some() { "https" } else { "http" };
        info!("serving {} on {scheme}://{address}", names.join(", "));
    }
    if let Some(index) = watch_over(&control, &shards, signals, terms, reload) {
        end_streams(&control, &shards);
        return shards.remove(index).failure(index);
    }
    let ended = drain(config, &control, shards, signals);
    drop(feeders);
    ended
}

/// Gives back what of the program only the start has run, and what it has freed, and says what is left.
fn give_back_start(weights_bytes: u64) {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    tuning::memory::give_back_free();
    let given = match tuning::memory::give_back_program() {
        Ok(bytes) => format!("{} MiB of the program were given back", mib(bytes)),
        Err(error) => format!("what only the start has run can't be given back: {error}"),
    };
    if let Ok(resident_bytes) = tuning::memory::rss_bytes() {
        info!("memory: {} MiB are resident, {} MiB of them weights; {given}", mib(resident_bytes), mib(weights_bytes));
    }
}

/// Keeps counts, tells of life, warns and reads the configuration again, until a signal to end; the shard that ended by
/// itself, if one did.
fn watch_over(
    control: &Control,
    shards: &[Running],
    signals: &Signals,
    mut terms: Arc<Terms>,
    reload: &Reload,
) -> Option<usize> {
    let mut kept_s = 0;
    let mut watches: Vec<Watch> = control.metrics.iter().map(|metrics| Watch::new(Arc::clone(metrics))).collect();
    let period = sd_notify::watchdog_enabled();
    let mut watchdog = period.map(|period| Watchdog::new(period, &control.metrics, Instant::now()));
    loop {
        match signals.wait(SHARDS_LOOKED_AT_EVERY) {
            Some(Told::End) => return None,
            Some(Told::Reload) => read_again(reload, &mut terms),
            Some(Told::Nothing(signal)) => info!("{signal}: nothing follows from it, and this goes on"),
            None => {}
        }
        let now_s = control.started.elapsed().as_secs();
        control.history.keep(|| control.totals(now_s), now_s, std::mem::replace(&mut kept_s, now_s));
        tell_of_life(watchdog.as_mut());
        for (index, watch) in watches.iter_mut().enumerate() {
            watch.look(Instant::now()).into_iter().for_each(|line| warning!("shard {index} {line}"));
        }
        if let Some(index) = shards.iter().position(Running::is_over) {
            return Some(index);
        }
    }
}

/// Takes keys, secret, whether they are wanted and the log level from the configuration as it is now, and certificate and
/// key from their files; where it is wrong, nothing, and where these are, all but them.
fn read_again(reload: &Reload, terms: &mut Arc<Terms>) {
    if reload.file().is_none() && terms.identity.is_none() {
        warning!("SIGHUP: there is no configuration file to read again, and nothing changes");
        return;
    }
    let Reloaded { config, later } = match reload.read() {
        Ok(reloaded) => reloaded,
        Err(error) => {
            warning!("SIGHUP: nothing changes: {error}");
            return;
        }
    };
    let identity = terms.identity.as_ref().map(|before| {
        let Some(files) = &config.tls else { return Arc::clone(before) };
        files.read().unwrap_or_else(|error| {
            warning!("SIGHUP: certificate and key stay what they were: {error}");
            Arc::clone(before)
        })
    });
    Terms::replace(terms, &config, identity);
    log::set_level(config.log_level);
    let (keys, secret) = (config.keys.api_keys.len(), if config.keys.jwt.is_some() { "a" } else { "no" });
    let wanted = if config.require_authentication { "wanted" } else { "not wanted" };
    let what = reload.file().map_or_else(|| "the certificate".to_owned(), |file| file.display().to_string());
    info!(
        "SIGHUP: {what} was read again: {keys} API keys and {secret} token secret, {wanted} for every request; log level {}",
        config.log_level.name(),
    );
    if !later.is_empty() {
        warning!("SIGHUP: only a new start takes what has changed of {}", later.join(", "));
    }
}

/// The GPUs that the configuration allows and the first model can run on.
fn take_inventory(config: &Config, plan: &Plan, model: &crate::model::Model) -> Result<Inventory, Error> {
    if config.gpu == GpuChoice::Off {
        return Ok(Inventory::default());
    }
    let inventory = Inventory::take(&plan.cards, model, config.waiting_max);
    for card in &inventory.cards {
        let image = card.image.as_deref().unwrap_or("none");
        info!(
            "GPU: {}, {} MiB, compute capability {}, kernels: {image}",
            card.name,
            card.memory_bytes >> 20,
            card.capability
        );
    }
    match (&inventory.unused, config.gpu) {
        (reason, GpuChoice::Count(wanted)) if inventory.devices.len() < wanted || reason.is_some() => {
            let found = inventory.devices.len();
            Err(Error::TooFewGpus { wanted, found, reason: reason.clone() })
        }
        (Some(reason), _) => {
            info!("no GPU is used: {reason}");
            Ok(inventory)
        }
        _ => Ok(inventory),
    }
}

/// The threads of a running shard.
struct Running {
    executor: JoinHandle<std::io::Result<()>>,
    leader: JoinHandle<()>,
    ready: Arc<AtomicBool>,
    stopping: Arc<AtomicBool>,
    doorbell: Arc<Doorbell>,
}

impl Running {
    /// Whether the leader ended although its executor had not.
    fn lost_leader(&self) -> bool {
        self.leader.is_finished() && !self.stopping.load(Ordering::SeqCst)
    }

    fn is_over(&self) -> bool {
        self.executor.is_finished() || self.leader.is_finished()
    }

    fn failure(self, index: usize) -> Result<(), Error> {
        if self.executor.is_finished()
            && let Ok(Err(source)) = self.executor.join()
        {
            return Err(Error::Start { what: "a shard's executor", source });
        }
        Err(Error::ShardEnded(index))
    }
}

/// Where a shard's clients come in.
struct Entrance {
    listeners: Vec<OwnedFd>,
    connections: Receiver<OwnedFd>,
}

/// What all shards have of each.
#[derive(Clone)]
struct Ways {
    doors: Arc<[Door]>,
    bells: Arc<[Bells]>,
}

/// What comes to one shard from outside it, and goes out.
type WaysIn = (Entrance, Ways, Vec<ShardPort>, Neighbours, (Option<Tracer>, Compiler, Arc<Terms>));

fn make_entrances(config: &Config, plan: &Plan) -> Result<(Ways, Vec<Entrance>), Error> {
    let shards = &plan.placement.shards;
    let owned = |shard: &tuning::ShardPlacement| [&shard.executor[..], &shard.workers].concat();
    let cpus: Option<Vec<_>> = config.steer_by_cpu.then(|| shards.iter().map(owned).collect());
    let mut listeners: Vec<Vec<OwnedFd>> = shards.iter().map(|_| Vec::with_capacity(2)).collect();
    if let Some(address) = plan.address {
        let fail = |source| Error::Listen { place: address.to_string(), source };
        let tcp = listen::listeners(address, shards.len(), cpus.as_deref()).map_err(fail)?;
        listeners.iter_mut().zip(tcp).for_each(|(all, listener)| all.push(listener.into()));
    }
    // The first shard takes the clients of the Unix socket in, and hands them over as any.
    if let (Some(local), Some(first)) = (&plan.local, listeners.first_mut()) {
        let fail = |source| Error::Listen { place: local.path().display().to_string(), source };
        first.push(local.listener().map_err(fail)?);
    }
    let nothing = || Vec::with_capacity(shards.len());
    let (mut doors, mut bells, mut entrances) =
        (nothing(), Vec::with_capacity(shards.len()), Vec::with_capacity(shards.len()));
    for listeners in listeners {
        // glommio waits for sockets only.
        let doorbell = if plan.io == Io::Glommio { Doorbell::socket() } else { Doorbell::new() };
        let doorbell = doorbell.map_err(|source| Error::Start { what: "an event descriptor", source })?;
        let doorbell = Arc::new(doorbell);
        let (door, connections) = Door::new(Arc::clone(&doorbell));
        doors.push(door);
        bells.push(Bells { executor: doorbell, leader: Arc::default(), stopping: Arc::default() });
        entrances.push(Entrance { listeners, connections });
    }
    Ok((Ways { doors: doors.into(), bells: bells.into() }, entrances))
}

fn start_shard(
    config: &Config,
    plan: &Plan,
    index: usize,
    (served, lanes): (Vec<Served>, Vec<Lane>),
    (entrance, ways, gpus, Neighbours { hosts, guests }, (tracer, compiler, terms)): WaysIn,
    control: &Arc<Control>,
    outbox: SyncSender<Message>,
) -> Result<(Running, ShardEnds), Error> {
    let fail = |what| move |source| Error::Start { what, source };
    let place = plan.placement.shards[index].clone();
    let shards = plan.placement.shards.len();
    let (slots_max, waiting_max) = (config.slots_max.div_ceil(shards), config.waiting_max.div_ceil(shards));
    let gpu_slots: usize = gpus.iter().map(|port| port.status.slots).sum();
    let sequences_max = slots_max + waiting_max + gpu_slots;
    let (commands_in, commands) = rtrb::RingBuffer::new(COMMANDS_PER_SLOT * sequences_max + ORDERS_MAX);
    let (orders_in, orders) = rtrb::RingBuffer::new(ORDERS_MAX);
    let (closed, closed_out) = rtrb::RingBuffer::new(LANES_MAX);
    let (events, events_out) = rtrb::RingBuffer::new(EVENTS_PER_SLOT * slots_max + waiting_max);
    let Entrance { listeners, connections } = entrance;
    let Bells { executor: doorbell, leader: bell, stopping } = ways.bells[index].clone();
    let ready = Arc::new(AtomicBool::new(false));
    let metrics = Arc::clone(&control.metrics[index]);

    let link = Link {
        commands,
        events,
        closed,
        guests,
        beside: Beside::start(index, place.workers.len(), &bell).map_err(fail("the threads beside a leader"))?,
        doorbell: Arc::clone(&doorbell),
        bell: Arc::clone(&bell),
        stopping: Arc::clone(&stopping),
    };
    let (leader_cpus, leader_ready) = (place.workers.clone(), Arc::clone(&ready));
    let leader = std::thread::Builder::new().name(worker_name(index, 0)).spawn(move || {
        pin(&leader_cpus[..1]);
        let team = Team::start(leader_cpus.len(), move |member| {
            tuning::name_thread(&worker_name(index, member));
            pin(&leader_cpus[member..=member]);
        });
        match team {
            Ok(team) => {
                let mut engine = Engine::new(team, lanes, link, metrics);
                engine.warm_up();
                leader_ready.store(true, Ordering::Release);
                engine.run();
            }
            Err(error) => warning!("shard {index}: workers can't be started: {error}"),
        }
    });
    let leader = leader.map_err(fail("a leader thread"))?;
    let aside = Aside::start(index, Arc::clone(&doorbell)).map_err(fail("the thread beside an executor"))?;
    let shard_link = ShardLink {
        commands: commands_in,
        aside,
        outbox,
        doorbell: Arc::clone(&doorbell),
        bell,
        gpus,
        hosts,
        doors: Arc::clone(&ways.doors),
        tracer,
        compiler,
        terms,
        may_spin: config.executor_spin && place.executor.len() == 1 && !place.workers.contains(&place.executor[0]),
    };
    let arrivals = Arrivals { events: events_out, orders, connections };
    let farewell = Farewell { index, bells: Arc::clone(&ways.bells) };
    let (config, control) = (config.clone(), Arc::clone(control));
    let io = plan.io.clone();
    let executor = std::thread::Builder::new().name(executor_name(index)).spawn(move || {
        let _farewell = farewell;
        pin(&place.executor);
        // Where workers have the same cores, it goes before them: it has little to do, and clients wait for it.
        tuning::take_short_turns();
        let shard = Shard::new(index, config, served, control, shard_link, (slots_max, waiting_max));
        shard.run(&io, arrivals, &listeners)
    });
    let executor = executor.map_err(fail("an executor thread"))?;
    let ends = ShardEnds { orders: orders_in, doorbell: Arc::clone(&doorbell), closed: closed_out };
    Ok((Running { executor, leader, ready, stopping, doorbell }, ends))
}

/// The thread name of the executor of a shard.
#[must_use]
pub fn executor_name(shard: usize) -> String {
    format!("shard-{shard}")
}

/// The thread name of a worker of a shard; worker 0 is the leader.
#[must_use]
pub fn worker_name(shard: usize, member: usize) -> String {
    if member == 0 { format!("leader-{shard}") } else { format!("worker-{shard}.{member}") }
}

/// Tells all leaders that the executor of a shard is gone, also where a panic took it.
struct Farewell {
    index: usize,
    bells: Arc<[Bells]>,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        self.bells[self.index].stopping.store(true, Ordering::SeqCst);
        self.bells.iter().for_each(|bells| bells.leader.ring());
    }
}

/// A thread that can't be pinned runs all the same.
fn pin(cpus: &[tuning::CpuId]) {
    if let Err(error) = tuning::pin(cpus) {
        warning!("{error}");
    }
}

fn drain(config: &Config, control: &Control, shards: Vec<Running>, signals: &Signals) -> Result<(), Error> {
    info!("draining: running streams have {} s", config.drain_timeout.as_secs());
    notify(&[sd_notify::NotifyState::Stopping]);
    control.start_drain();
    let mut failed = None;
    let deadline = Instant::now() + config.drain_timeout;
    let (mut told, mut cut) = (false, None);
    for shard in &shards {
        shard.doorbell.ring();
    }
    while shards.iter().any(|shard| !shard.executor.is_finished()) {
        let asked_again = signals.wait(Duration::from_millis(10)) == Some(Told::End);
        failed = failed.or(shards.iter().position(Running::lost_leader));
        if !told && (asked_again || failed.is_some() || Instant::now() >= deadline) {
            told = true;
            let cause = match (asked_again, failed) {
                (_, Some(_)) => Cause::LostLeader,
                (true, _) => Cause::Signal,
                (false, None) => Cause::Timeout(config.drain_timeout),
            };
            cut = (control.active_requests() > 0).then_some(cause);
            control.cut();
            for shard in &shards {
                shard.doorbell.ring();
            }
        }
    }
    for (index, shard) in shards.into_iter().enumerate() {
        let (executor, leader) = (shard.executor.join(), shard.leader.join());
        if !matches!(executor, Ok(Ok(()))) || leader.is_err() {
            failed = Some(index);
        }
    }
    info!("stopped");
    match failed {
        Some(index) => Err(Error::ShardEnded(index)),
        None => cut.map_or(Ok(()), |cause| Err(Error::Cut(cause))),
    }
}

/// Ends every stream with an error after a shard has ended by itself, so that no client waits for what never comes.
fn end_streams(control: &Control, shards: &[Running]) {
    notify(&[sd_notify::NotifyState::Stopping]);
    control.start_drain();
    control.cut();
    let deadline = Instant::now() + END_STREAMS_MAX;
    while shards.iter().any(|shard| !shard.executor.is_finished()) && Instant::now() < deadline {
        for shard in shards {
            shard.doorbell.ring();
        }
        pause(Duration::from_millis(10));
    }
}

#[expect(clippy::disallowed_methods, reason = "the control thread waits for shards to come up")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

fn tell_of_life(watchdog: Option<&mut Watchdog>) {
    match watchdog.map(|watchdog| watchdog.look(Instant::now())) {
        Some(Look::Tell) => notify(&[sd_notify::NotifyState::Watchdog]),
        Some(Look::Stuck { shard, thread, for_ }) => {
            let seconds = for_.as_secs();
            warning!(
                "shard {shard}: its {thread} has stood still for {seconds} s; systemd is not told that the server lives"
            );
        }
        Some(Look::Nothing) | None => {}
    }
}

/// systemd is told where it listens; elsewhere nothing happens.
fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warning!("systemd can't be told: {error}");
    }
}

/// How long a taken port is asked for again.
const PORT_PATIENCE: Duration = Duration::from_secs(1);
const PORT_ASKED_EVERY: Duration = Duration::from_millis(10);
/// How soon a shard that ended by itself is noticed.
const SHARDS_LOOKED_AT_EVERY: Duration = Duration::from_millis(100);
/// What streams get to take their error event after a shard has ended.
const END_STREAMS_MAX: Duration = Duration::from_secs(2);
/// Commands that may be on their way for each sequence: its start, here or as one that a GPU gave back, and its
/// cancellation.
const COMMANDS_PER_SLOT: usize = 2;
/// Tokens that an executor may be behind by before the leader waits for it.
const EVENTS_PER_SLOT: usize = 64;
/// Messages to the control thread that may wait, of each shard: every order's end and a few clients' wishes.
const MESSAGES_MAX: usize = 2 * ORDERS_MAX;
