//! What a feeder shows of its device: state, credits, costs and counts, read by shards and by whoever scrapes.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use super::device::{FaultKind, Started};
use super::nvml::Readings;
use super::route::Costs;
use crate::engine::GenerationId;
use crate::metrics::{Cell, Histogram, ROWS, STEP_SECONDS};

/// Where a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Being brought up, weights on their way.
    Starting = 0,
    /// Up; its answers are compared with the CPU's.
    Testing = 1,
    Healthy = 2,
    /// Failed; it is tried again after a pause.
    Down = 3,
    /// Failed too often in a short time; the pause is long.
    Tripped = 4,
    /// There is nothing that it could serve.
    Retired = 5,
}

impl State {
    pub const ALL: [Self; 6] = [Self::Starting, Self::Testing, Self::Healthy, Self::Down, Self::Tripped, Self::Retired];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Testing => "testing",
            Self::Healthy => "healthy",
            Self::Down => "down",
            Self::Tripped => "tripped",
            Self::Retired => "retired",
        }
    }
}

/// How GPUs compute the attention of prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PromptAttention {
    /// With the bits of a CPU's.
    #[default]
    Exact,
    /// On tensor cores.
    Tensor,
}

impl PromptAttention {
    pub const ALL: [Self; 2] = [Self::Exact, Self::Tensor];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Tensor => "tensor",
        }
    }
}

/// What a device is.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    pub ordinal: usize,
    pub name: String,
    pub memory_bytes: u64,
    /// The compiled kernels that it takes.
    pub image: String,
    /// Where it is on the bus.
    pub bus: String,
    /// How it computes the attention of prompts.
    pub prompt_attention: PromptAttention,
}

/// One device. The feeder writes, except for credits, which shards take.
#[derive(Debug)]
pub struct Status {
    pub ordinal: usize,
    pub name: String,
    pub memory_bytes: u64,
    pub image: String,
    pub bus: String,
    pub prompt_attention: PromptAttention,
    /// What the driver's management library says of it.
    pub readings: Readings,
    /// Sequences that it computes at a time, and that it takes: more may wait there.
    pub slots: usize,
    pub capacity: usize,
    generation: AtomicU32,
    state: AtomicU8,
    in_flight: AtomicUsize,
    decode_s: AtomicU64,
    decode_rows: AtomicU64,
    prefill_row_s: AtomicU64,
    kv_blocks: AtomicU32,
    /// Faults since it was up.
    faults_in_row: AtomicU32,
    pub steps: Histogram,
    pub rows: Histogram,
    pub sequences: Histogram,
    pub queue: Histogram,
    pub tokens: Cell,
    pub prompt_rows: Cell,
    pub tensor_rows: Cell,
    pub starts: Cell,
    pub tests: Cell,
    pub returned: Cell,
    pub kv_blocks_used: Cell,
    /// Sequences whose guides compute beside the steps, and guides that came back from there.
    pub beside: Cell,
    pub guides_beside: Cell,
    faults: [Cell; FaultKind::ALL.len()],
    /// The name that answers give: `cuda:N`.
    label: OnceLock<String>,
}

impl Status {
    /// A device that is starting, at which `waiting_max` sequences may wait for one of its `slots`.
    #[must_use]
    pub fn new(identity: Identity, slots: usize, waiting_max: usize) -> Self {
        let Identity { ordinal, name, memory_bytes, image, bus, prompt_attention } = identity;
        Self {
            ordinal,
            name,
            memory_bytes,
            image,
            bus,
            prompt_attention,
            readings: Readings::default(),
            slots,
            capacity: slots + waiting_max,
            generation: AtomicU32::new(UNTOLD.0),
            state: AtomicU8::new(State::Starting as u8),
            in_flight: AtomicUsize::new(0),
            decode_s: AtomicU64::new(0),
            decode_rows: AtomicU64::new(0),
            prefill_row_s: AtomicU64::new(0),
            kv_blocks: AtomicU32::new(0),
            faults_in_row: AtomicU32::new(0),
            steps: Histogram::new(STEP_SECONDS),
            rows: Histogram::new(ROWS),
            sequences: Histogram::new(ROWS),
            queue: Histogram::new(STEP_SECONDS),
            tokens: Cell::default(),
            prompt_rows: Cell::default(),
            tensor_rows: Cell::default(),
            starts: Cell::default(),
            tests: Cell::default(),
            returned: Cell::default(),
            kv_blocks_used: Cell::default(),
            beside: Cell::default(),
            guides_beside: Cell::default(),
            faults: Default::default(),
            label: OnceLock::new(),
        }
    }

    /// The name that answers give: `cuda:N`.
    #[must_use]
    pub fn label(&self) -> &str {
        self.label.get_or_init(|| format!("cuda:{}", self.ordinal))
    }

    /// The generation that it serves.
    #[must_use]
    pub fn generation(&self) -> GenerationId {
        GenerationId(self.generation.load(Ordering::Acquire))
    }

    /// Whether it serves `generation`, or has not been told yet what to serve.
    #[must_use]
    pub fn may_serve(&self, generation: GenerationId) -> bool {
        [generation, UNTOLD].contains(&self.generation())
    }

    pub(super) fn set_generation(&self, generation: GenerationId) {
        self.generation.store(generation.0, Ordering::Release);
    }

    #[must_use]
    pub fn state(&self) -> State {
        State::ALL[usize::from(self.state.load(Ordering::Acquire)).min(State::ALL.len() - 1)]
    }

    pub(super) fn set_state(&self, state: State) {
        if state == State::Healthy {
            self.faults_in_row.store(0, Ordering::Relaxed);
        }
        self.state.store(state as u8, Ordering::Release);
    }

    /// Whether it will be healthy soon, as far as one can tell: it is being brought up, and has not failed at that before.
    #[must_use]
    pub fn is_coming(&self) -> bool {
        let starts = matches!(self.state(), State::Starting | State::Testing | State::Down);
        starts && self.faults_in_row.load(Ordering::Relaxed) <= 1
    }

    /// A place for one more sequence, if the device is healthy and has one.
    #[must_use]
    pub fn take_credit(&self) -> bool {
        if self.state() != State::Healthy {
            return false;
        }
        let taken = self.in_flight.fetch_add(1, Ordering::Relaxed) < self.capacity;
        if !taken {
            self.give_credit();
        }
        taken
    }

    /// Gives a place back.
    pub fn give_credit(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Sequences that it has or that are on their way to it.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// What work costs there, as far as is known.
    #[must_use]
    pub fn costs(&self) -> Costs {
        let float = |bits: &AtomicU64| f64::from_bits(bits.load(Ordering::Relaxed));
        Costs {
            decode_s: float(&self.decode_s),
            decode_rows: float(&self.decode_rows),
            prefill_row_s: float(&self.prefill_row_s),
        }
    }

    pub(super) fn set_costs(&self, costs: Costs) {
        self.decode_s.store(costs.decode_s.to_bits(), Ordering::Relaxed);
        self.decode_rows.store(costs.decode_rows.to_bits(), Ordering::Relaxed);
        self.prefill_row_s.store(costs.prefill_row_s.to_bits(), Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn be_healthy(&self, generation: GenerationId, costs: Costs) {
        self.set_generation(generation);
        self.set_costs(costs);
        self.set_state(State::Healthy);
    }

    pub(super) fn set_started(&self, started: &Started) {
        self.kv_blocks.store(u32::try_from(started.kv_blocks).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    #[must_use]
    pub fn kv_blocks(&self) -> u32 {
        self.kv_blocks.load(Ordering::Relaxed)
    }

    pub(super) fn count_fault(&self, kind: FaultKind) {
        self.faults[kind as usize].add(1);
        self.faults_in_row.fetch_add(1, Ordering::Relaxed);
    }

    #[must_use]
    pub fn faults(&self, kind: FaultKind) -> u64 {
        self.faults[kind as usize].get()
    }
}

/// What a device serves that was not told what to serve.
const UNTOLD: GenerationId = GenerationId(u32::MAX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credits_are_given_while_the_device_is_healthy_and_has_room() {
        let status = Status::new(Identity { ordinal: 1, ..Identity::default() }, 1, 1);
        assert!(!status.take_credit(), "it is only starting");
        status.set_state(State::Healthy);
        assert!(status.take_credit() && status.take_credit() && !status.take_credit());
        status.give_credit();
        assert!(status.take_credit());
        status.set_state(State::Down);
        status.give_credit();
        assert!(!status.take_credit());
        assert_eq!((status.in_flight(), status.label()), (1, "cuda:1"));
    }

    #[test]
    fn a_device_that_fails_to_come_back_is_not_waited_for() {
        let status = Status::new(Identity::default(), 2, 0);
        assert!(status.is_coming() && status.may_serve(GenerationId(3)), "it starts");
        status.set_generation(GenerationId(2));
        assert!(status.may_serve(GenerationId(2)) && !status.may_serve(GenerationId(3)));
        status.set_state(State::Healthy);
        assert!(!status.is_coming(), "it is there");
        for (fault, coming) in [(1, true), (2, false)] {
            status.count_fault(FaultKind::Worker);
            status.set_state(State::Down);
            assert_eq!(status.is_coming(), coming, "after {fault}");
        }
        status.set_state(State::Healthy);
        status.count_fault(FaultKind::Worker);
        status.set_state(State::Tripped);
        assert!(!status.is_coming(), "it is left alone for long");
        status.set_state(State::Starting);
        assert!(status.is_coming());
        status.set_state(State::Retired);
        assert!(!status.is_coming());
    }
}
