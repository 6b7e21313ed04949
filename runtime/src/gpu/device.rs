//! What a feeder asks of a device, and how a device fails.

use std::time::Duration;

use kernels::draw::Draw;

use super::assign::Assignment;
use crate::forward::Step;
use crate::kv::BlockTables;
use crate::sampler::RankedDraw;

/// A device that computes steps in their order. No call waits for it: starts and steps are begun, then asked after.
pub(super) trait Device {
    /// Takes the model that it will be brought up with, or none; a device that is up is stopped.
    fn assign(&mut self, assignment: Option<&Assignment>);

    /// Begins to bring the device up, from nothing.
    ///
    /// # Errors
    /// When that can't even begin.
    fn start(&mut self) -> Result<(), Fault>;

    /// What is known once it is up; `None` while it is coming up.
    ///
    /// # Errors
    /// When it won't come up.
    fn poll_start(&mut self) -> Result<Option<Started>, Fault>;

    /// Begins a step behind those under way, of which there are fewer than [`STEPS_MAX`]. For each entry of `step.logits`,
    /// `wants` says what is wanted of it; of each segment the first `tensor_rows` have their attention on tensor cores. A token may
    /// be [`token_of`] an entry of the step begun before.
    fn submit(&mut self, step: &Step, tables: &BlockTables, tensor_rows: &[usize], wants: &[Want]);

    /// Whether the oldest step is done.
    ///
    /// # Errors
    /// When it never will be.
    fn poll_step(&mut self) -> Result<bool, Fault>;

    /// The token of entry `i` of the logits of the oldest step, which is done: the best one, or the draw's; `None` where none
    /// has a logit above minus infinity.
    fn token(&self, i: usize) -> Option<u32>;

    /// The scores of the oldest step, which is done: a row for each of its entries that wanted them.
    fn scores(&mut self) -> &mut [f32];

    /// Forgets the oldest step, which is done, and its results.
    fn advance(&mut self);

    /// Takes the device down at once; whatever it computes is lost.
    fn stop(&mut self);
}

/// Steps that are under way at a time: one is computed while the next one waits behind it.
pub(super) const STEPS_MAX: usize = 2;

/// As a token of a step: the one that entry `i` of the step before gives.
pub(super) fn token_of(i: usize) -> u32 {
    u32::try_from(i).expect("rows are few") | TOKEN_OF
}

/// The entry that a token of a step stands for, if it does.
pub(super) fn entry_of(token: u32) -> Option<usize> {
    (token & TOKEN_OF != 0).then_some((token & !TOKEN_OF) as usize)
}

/// Vocabularies are smaller.
const TOKEN_OF: u32 = 1 << 31;

/// What is wanted of a row's logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Want {
    /// The token with the greatest, the lowest id among equals.
    Best,
    /// The token of a draw.
    Drawn(Draw),
    /// The token of a draw among the best few, [`RANKED_MAX`](super::abi::RANKED_MAX) at most.
    Ranked(RankedDraw),
    /// All of them.
    Scores,
}

/// What a device says when it is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Started {
    pub name: String,
    /// KV blocks that it has room for.
    pub kv_blocks: usize,
    pub memory_bytes: u64,
}

/// How a device fails. After any of these it is taken down and brought up anew.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("{text}")]
    Driver { code: i32, text: String },
    #[error("its worker process ended: {0}")]
    Exited(String),
    #[error("its worker process can't be started: {0}")]
    Spawn(String),
    #[error("a step is not done after {0:?}")]
    Hang(Duration),
    #[error("it is not up after {0:?} without progress")]
    Stuck(Duration),
    #[error("the self test gave other scores than the CPU ({0})")]
    WrongResult(String),
    #[error("its feeder broke down: {0}")]
    Panicked(String),
}

impl Fault {
    /// The value of a metric's label.
    #[must_use]
    pub(super) fn kind(&self) -> FaultKind {
        match self {
            Self::Driver { code: OUT_OF_MEMORY, .. } => FaultKind::OutOfMemory,
            Self::Driver { .. } => FaultKind::Driver,
            Self::Exited(_) | Self::Spawn(_) => FaultKind::Worker,
            Self::Hang(_) | Self::Stuck(_) => FaultKind::Hang,
            Self::WrongResult(_) => FaultKind::WrongResult,
            Self::Panicked(_) => FaultKind::Feeder,
        }
    }
}

/// Kinds of faults that are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    Driver,
    OutOfMemory,
    Worker,
    Hang,
    WrongResult,
    Feeder,
}

impl FaultKind {
    pub const ALL: [Self; 6] =
        [Self::Driver, Self::OutOfMemory, Self::Worker, Self::Hang, Self::WrongResult, Self::Feeder];

    /// The value of a metric's label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Driver => "driver",
            Self::OutOfMemory => "out_of_memory",
            Self::Worker => "worker",
            Self::Hang => "hang",
            Self::WrongResult => "wrong_result",
            Self::Feeder => "feeder",
        }
    }
}

/// `CUDA_ERROR_OUT_OF_MEMORY`.
const OUT_OF_MEMORY: i32 = 2;
