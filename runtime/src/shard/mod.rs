//! The executor side of a shard: its listener, its connections, and the mailbox to its leader.

mod admin;
mod admission;
mod answer;
mod aside;
mod body;
mod choice;
mod client;
mod connection;
mod doors;
mod embeddings;
mod generation;
mod gpus;
mod guides;
mod hosts;
mod life;
mod models;
mod peer;
mod probe;
mod rates;
mod stats;
mod terms;
mod tls;
mod tokens;
mod turns;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::os::fd::{OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use net::api::SwapStatus;
use net::http::Request;
use rtrb::{Consumer, Producer};

use crate::config::Config;
#[cfg(test)]
use crate::engine::faults::{self, Fault};
use crate::engine::{Command, Event, Finish, Host, guests_max};
use crate::executor::Signal;
use crate::gpu::{Costs, Inventory, Load, ShardPort};
use crate::guide::Compiler;
use crate::mailbox::{Doorbell, LeaderBell};
use crate::metrics::{History, ShardMetrics, Totals};
use crate::otlp::{RequestSpan, TraceCounts, Tracer};
use crate::receipts::Receipts;
use crate::registry::{Message, ORDERS_MAX, Order};
use crate::schedule::{NewSequence, StreamId};
use admission::{Admission, Standing, prompt_share};
use gpus::{Gpus, Placed};
use guides::Guides;
use hosts::Hosts;
use models::Models;
use peer::Peer;
use rates::Rates;
use tls::Pace;
use turns::Fallen;

pub use admission::AdmissionLimits;
pub use aside::Aside;
pub use doors::Door;
pub use generation::TimeLimits;
pub use models::Served;
pub use rates::{RATE_MAX, RateClass, RateLimits};
pub use terms::Terms;

/// The CPUs of a shard's workers, for those who ask what there is.
pub struct CpuPlace {
    pub node: String,
    pub cpus: String,
}

/// What all shards and the control thread know of each other.
pub struct Control {
    pub started: Instant,
    pub started_unix_s: u64,
    pub metrics: Arc<[Arc<ShardMetrics>]>,
    pub workers: usize,
    /// Of each shard.
    pub receipts: Box<[Receipts]>,
    pub history: History,
    rates: Option<Rates>,
    pub traces: Arc<TraceCounts>,
    /// A load, swap or removal is in progress.
    operating: AtomicBool,
    swaps: [AtomicU64; 3],
    pub cpus: Vec<CpuPlace>,
    pub inventory: Inventory,
    listening: AtomicUsize,
    ready: AtomicBool,
    draining: AtomicBool,
    cutting: AtomicBool,
}

impl Control {
    /// A server that is neither ready nor draining.
    #[must_use]
    pub fn new(
        started: Instant,
        metrics: Arc<[Arc<ShardMetrics>]>,
        workers: usize,
        (cpus, inventory): (Vec<CpuPlace>, Inventory),
    ) -> Self {
        Self {
            started,
            started_unix_s: unix_time().as_secs(),
            receipts: metrics.iter().map(|_| Receipts::default()).collect(),
            history: History::default(),
            rates: None,
            traces: Arc::default(),
            metrics,
            workers,
            operating: AtomicBool::new(false),
            swaps: Default::default(),
            cpus,
            inventory,
            listening: AtomicUsize::new(0),
            ready: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            cutting: AtomicBool::new(false),
        }
    }

    /// The same with limits of what a client may ask for.
    #[must_use]
    pub fn with_rates(self, limits: RateLimits) -> Self {
        Self { rates: Rates::new(limits), ..self }
    }

    /// Shards that have their listener.
    #[must_use]
    pub fn listening(&self) -> usize {
        self.listening.load(Ordering::SeqCst)
    }

    /// Every shard has done its first step.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::SeqCst);
    }

    /// No new work from now on.
    pub fn start_drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Running streams end now.
    pub fn cut(&self) {
        self.cutting.store(true, Ordering::SeqCst);
    }

    /// Requests in progress.
    #[must_use]
    pub fn active_requests(&self) -> u64 {
        self.metrics.iter().map(|metrics| metrics.requests.active.get()).sum()
    }

    /// What all shards have counted, `seconds` after the start.
    #[must_use]
    pub fn totals(&self, seconds: u64) -> Totals {
        let cpu = Duration::from_secs_f64(answer::cpu_seconds());
        let cpu_us = u64::try_from(cpu.as_micros()).unwrap_or(u64::MAX);
        Totals::take(self.metrics.iter().map(|shard| &**shard), seconds, cpu_us)
    }

    /// How often the leader of each shard has begun anew.
    fn restarts(&self) -> Box<[u64]> {
        self.metrics.iter().map(|metrics| metrics.step.restarts.get()).collect()
    }

    /// Whether the caller may start a load, swap or removal, as nobody else does.
    pub(crate) fn begin_operation(&self) -> bool {
        !self.operating.swap(true, Ordering::SeqCst)
    }

    pub(crate) fn end_operation(&self) {
        self.operating.store(false, Ordering::SeqCst);
    }

    pub(crate) fn is_operating(&self) -> bool {
        self.operating.load(Ordering::Relaxed)
    }

    pub(crate) fn count_swap(&self, status: SwapStatus) {
        self.swaps[status as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Swaps by how they ended.
    pub(crate) fn swaps(&self) -> [(&'static str, u64); 3] {
        let count = |status: SwapStatus| self.swaps[status as usize].load(Ordering::Relaxed);
        [
            ("completed", count(SwapStatus::Completed)),
            ("rolled_back", count(SwapStatus::RolledBack)),
            ("failed", count(SwapStatus::Failed)),
        ]
    }

    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed) && !self.is_draining()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    fn is_cutting(&self) -> bool {
        self.cutting.load(Ordering::Relaxed)
    }
}

/// The ends that the executor holds.
pub struct ShardLink {
    pub commands: Producer<Command>,
    pub outbox: SyncSender<Message>,
    pub doorbell: Arc<Doorbell>,
    pub bell: Arc<LeaderBell>,
    pub gpus: Vec<ShardPort>,
    pub aside: Aside,
    /// The other shards' leaders, by shard.
    pub hosts: Vec<Option<Host>>,
    /// Of all shards.
    pub doors: Arc<[Door]>,
    /// The executor has a core of its own and need not sleep.
    pub may_spin: bool,
    /// Where requests are traced.
    pub tracer: Option<Tracer>,
    /// Where constraints are compiled.
    pub compiler: Compiler,
    pub terms: Arc<Terms>,
}

/// What comes to an executor from other threads.
pub struct Arrivals {
    pub events: Consumer<Event>,
    pub orders: Consumer<Order>,
    pub connections: Receiver<OwnedFd>,
}

/// State of one executor; lives and dies on its thread.
pub struct Shard {
    index: usize,
    config: Config,
    models: Models,
    aside: Aside,
    waiting: aside::Waiting,
    gpus: Gpus,
    hosts: Hosts,
    slots_max: usize,
    control: Arc<Control>,
    metrics: Arc<ShardMetrics>,
    commands: RefCell<Producer<Command>>,
    doorbell: Arc<Doorbell>,
    bell: Arc<LeaderBell>,
    doors: Arc<[Door]>,
    may_spin: bool,
    tracer: Option<Tracer>,
    guides: Guides,
    terms: RefCell<Arc<Terms>>,
    handshake_pace: Rc<Pace>,
    outbox: SyncSender<Message>,
    jobs: RefCell<HashMap<u64, Rc<admin::Job>>>,
    /// A canary's answer is being compared; one at a time.
    comparing: Cell<bool>,
    streams: RefCell<HashMap<StreamId, (Rc<Inbox>, usize)>>,
    sequences_max: usize,
    admission: Admission,
    peers: RefCell<HashMap<u64, Rc<Peer>>>,
    fallen: Fallen,
    json: RefCell<net::json::Reader>,
    counter: Cell<u64>,
    random: Cell<u64>,
    rss_bytes: Cell<u64>,
    /// What the log-probabilities of requests that are being answered may come to.
    logprobs_bytes: Cell<usize>,
    /// Of request bodies that are on their way or being answered.
    body_bytes: Cell<usize>,
}

/// Events of one request, in the order of its choices' tokens.
pub struct Inbox {
    events: RefCell<VecDeque<(usize, Event, Instant)>>,
    wake: Rc<Signal>,
    cut: Cell<bool>,
    /// The GPU that has its sequences; `None` for the CPU.
    device: Cell<Option<usize>>,
}

impl Shard {
    /// A shard that takes `sequences` (in slots, in the queue) at a time.
    #[must_use]
    pub fn new(
        index: usize,
        config: Config,
        models: Vec<Served>,
        control: Arc<Control>,
        link: ShardLink,
        (slots_max, waiting_max): (usize, usize),
    ) -> Self {
        let metrics = Arc::clone(&control.metrics[index]);
        let gpus = Gpus::new(link.gpus);
        let hosts = Hosts::new(link.hosts, guests_max(slots_max, control.metrics.len()));
        let admission = Admission::new(config.admission, control.metrics.len());
        Self {
            index,
            config,
            models: Models::new(models),
            aside: link.aside,
            waiting: aside::Waiting::default(),
            control,
            metrics,
            commands: RefCell::new(link.commands),
            doorbell: link.doorbell,
            bell: link.bell,
            doors: link.doors,
            may_spin: link.may_spin,
            tracer: link.tracer,
            guides: Guides::new(link.compiler),
            terms: RefCell::new(link.terms),
            handshake_pace: Rc::new(Pace::new()),
            outbox: link.outbox,
            jobs: RefCell::default(),
            comparing: Cell::new(false),
            logprobs_bytes: Cell::new(0),
            streams: RefCell::default(),
            sequences_max: slots_max + waiting_max + gpus.slots(),
            admission,
            slots_max,
            gpus,
            hosts,
            peers: RefCell::default(),
            fallen: Fallen::default(),
            json: RefCell::default(),
            counter: Cell::new(StreamId::first_of(index)),
            random: Cell::new(fresh_random()),
            rss_bytes: Cell::new(0),
            body_bytes: Cell::new(0),
        }
    }

    /// Hands the leader's events to the requests that wait for them.
    fn deliver(&self, events: &mut Consumer<Event>) {
        if events.is_empty() && self.gpus.are_quiet() && self.hosts.are_quiet() {
            return;
        }
        let now = Instant::now();
        while let Ok(event) = events.pop() {
            self.deliver_one(event, now);
        }
        self.gpus.receive(|event| self.deliver_one(event, now), |placed, sequence| self.resume(placed, sequence));
        self.hosts.receive(|event| self.deliver_one(event, now));
    }

    /// Has a sequence that a device gave back go on where it is done soonest now.
    fn resume(&self, placed: Placed, sequence: Box<NewSequence>) {
        let again = self.gpus.place_again(self.cpu_load(), placed, &sequence);
        if let Some((inbox, _)) = self.streams.borrow().get(&sequence.stream) {
            inbox.device.set(again.map(|placed| placed.device));
        }
        if let Some(placed) = again {
            self.gpus.start(placed, sequence);
            return;
        }
        let sent = self.commands.borrow_mut().push(Command::Resume { generation: placed.generation, sequence });
        assert!(sent.is_ok(), "every stream has room for two commands");
        self.bell.ring();
    }

    /// Ends the streams of leaders that broke down since `seen`. They have forgotten all that was sent to them before; what
    /// they got meanwhile is cancelled.
    fn end_lost_streams(&self, seen: &mut [u64]) {
        let restarts = self.control.restarts();
        self.lose(|stream| {
            let leader = self.hosts.host_of(stream).unwrap_or(self.index);
            !self.gpus.has(stream) && restarts[leader] != seen[leader]
        });
        seen.copy_from_slice(&restarts);
    }

    /// Ends the streams on shards that have given up on this one: some of their events were lost.
    fn end_cut_streams(&self) {
        while let Some(host) = self.hosts.take_cut() {
            self.lose(|stream| self.hosts.host_of(stream) == Some(host));
        }
    }

    /// Ends all streams, since some of their events were lost.
    fn end_streams(&self) {
        self.lose(|_| true);
    }

    /// Cancels streams and ends their requests with an error.
    fn lose(&self, is_lost: impl Fn(StreamId) -> bool) {
        let streams = self.streams.borrow();
        let lost = streams.iter().filter(|(stream, _)| is_lost(**stream));
        let lost: Vec<(StreamId, Rc<Inbox>, usize)> =
            lost.map(|(stream, (inbox, choice))| (*stream, Rc::clone(inbox), *choice)).collect();
        drop(streams);
        let now = Instant::now();
        for (stream, inbox, choice) in lost {
            self.cancel(stream);
            inbox.events.borrow_mut().push_back((choice, Event::End { stream, finish: Finish::Lost }, now));
            inbox.wake.notify();
        }
    }

    fn deliver_one(&self, event: Event, now: Instant) {
        #[cfg(test)]
        assert!(!faults::strikes(Fault::Executor), "told to fail");
        let (stream, last) = (event.stream(), event.is_last());
        let mut streams = self.streams.borrow_mut();
        // A stream that was cancelled meanwhile has no inbox any more.
        let Some((inbox, choice)) = streams.get(&stream) else { return };
        inbox.events.borrow_mut().push_back((*choice, event, now));
        inbox.wake.notify();
        if last {
            streams.remove(&stream);
        }
    }

    /// What the CPU has to do and what that costs, as far as is known.
    fn cpu_load(&self) -> Load {
        let load = self.load_of(self.index);
        // Of a burst the leader's own count says nothing before its next step.
        let started = self.own_streams().saturating_sub(self.gpus.placed());
        Load { sequences: load.sequences.max(started), ..load }
    }

    /// The same of any shard.
    fn load_of(&self, index: usize) -> Load {
        let step = &self.control.metrics[index].step;
        let float = |cell: &crate::metrics::Cell| f64::from_bits(cell.get());
        let costs = Costs {
            decode_s: float(&step.decode_s_bits),
            decode_rows: float(&step.decode_rows_bits),
            prefill_row_s: float(&step.prefill_row_s_bits),
        };
        let sequences = usize::try_from(step.running.get() + step.waiting.get()).unwrap_or(usize::MAX);
        Load { costs, sequences, slots: self.slots_max, kind: usize::MAX }
    }

    /// How full it is, and how soon it computes prompts.
    fn standing(&self) -> Standing {
        // As the executor counts them: the leader counts one that has ended for a moment longer.
        let (sequences, slots) = (self.own_streams(), self.slots_max + self.gpus.slots());
        Standing { sequences, slots, ..self.standing_of(self.index) }
    }

    /// How a shard stands by what its leader says.
    fn standing_of(&self, index: usize) -> Standing {
        let (load, step) = (self.load_of(index), &self.control.metrics[index].step);
        let prompts = usize::try_from(step.prompts.get()).unwrap_or(usize::MAX);
        let decoding = load.sequences.saturating_sub(prompts);
        // A row of a sequence that decodes costs about what one of a prompt does.
        #[expect(clippy::cast_precision_loss, reason = "sequences are few")]
        let joining = prompts.min(self.slots_max.saturating_sub(decoding)) as f64;
        let Costs { decode_s, prefill_row_s, .. } = load.costs;
        let costs = (decode_s, decode_s + joining * prefill_row_s);
        Standing {
            sequences: load.sequences,
            sequences_max: self.sequences_max,
            slots: self.slots_max,
            kv_blocks_used: step.kv_blocks_used.get(),
            kv_blocks: step.kv_blocks.get(),
            prompt_row_s: prefill_row_s,
            prompt_share: prompt_share(self.config.itl_target.as_secs_f64(), costs, decoding, prompts),
        }
    }

    /// Streams that no other shard computes.
    fn own_streams(&self) -> usize {
        self.streams.borrow().len() - self.hosts.placed()
    }

    /// Sends a command; `false` if there is no room for it and for the cancellations that may still come.
    fn start(&self, command: Command) -> bool {
        let mut commands = self.commands.borrow_mut();
        // What a device gives back takes a command of its own.
        let room = commands.slots() > self.own_streams() + self.gpus.placed() + ORDERS_MAX;
        let sent = room && commands.push(command).is_ok();
        self.bell.ring();
        sent
    }

    /// Sends a command of the control thread, or a cancellation.
    fn command(&self, command: Command) {
        let sent = self.commands.borrow_mut().push(command);
        assert!(sent.is_ok(), "every order and every stream that was started has room for its command");
        self.bell.ring();
    }

    fn cancel(&self, stream: StreamId) {
        if self.streams.borrow_mut().remove(&stream).is_none() {
            return;
        }
        if self.gpus.cancel(stream) || self.hosts.cancel(stream) {
            return;
        }
        self.command(Command::Cancel(stream));
    }

    fn next_id(&self) -> u64 {
        self.counter.set(self.counter.get() + 1);
        self.counter.get()
    }

    /// splitmix64: names requests and seeds those that give no seed.
    fn next_random(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The span of a request that has just come, if it is traced.
    fn begin_span(&self, peer: &Peer, request: &Request) -> Option<Box<RequestSpan>> {
        let span = self.tracer.as_ref()?.begin(request, || self.next_random(), unix_time());
        peer.is_traced.set(span.is_some());
        span
    }

    /// Hands a request's span over, whose answer has ended.
    fn end_span(&self, span: Option<Box<RequestSpan>>, peer: &Peer, status: u16) {
        if let (Some(mut span), Some(tracer)) = (span, &self.tracer) {
            span.end = unix_time().max(span.start);
            span.status = status;
            span.computed = peer.computed.take();
            peer.is_traced.set(false);
            tracer.end(span);
        }
    }

    /// A random UUID (version 4).
    fn request_id(&self) -> String {
        let (a, b) = (self.next_random(), self.next_random());
        format!(
            "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
            a >> 32,
            a >> 16 & 0xffff,
            a & 0xfff,
            0x8000 | b >> 48 & 0x3fff,
            b & 0xffff_ffff_ffff
        )
    }
}

/// Ends both directions of a socket; pending operations on it return.
#[expect(unsafe_code, reason = "a socket system call")]
fn shutdown(fd: RawFd) {
    // SAFETY: no pointers are involved; a descriptor that is no open socket is an ignored error.
    unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
}

fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn fresh_random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// When a client that meets a server on its way down may try again.
const RETRY_DRAINING: Duration = Duration::from_secs(5);
