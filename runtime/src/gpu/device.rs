//! What a feeder asks of a device, and how a device fails.

use std::time::Duration;

use crate::forward::Step;
use crate::kv::BlockTables;

/// A device that computes steps, one at a time. No call waits for it: starts and steps are begun, then asked after.
pub(super) trait Device {
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

    /// Begins a step. For each entry of `step.logits`, `wants` says what is wanted of it.
    fn submit(&mut self, step: &Step, tables: &BlockTables, wants: &[Want]);

    /// Whether the step is done.
    ///
    /// # Errors
    /// When it never will be.
    fn poll_step(&mut self) -> Result<bool, Fault>;

    /// How long the device itself took for the last step, where it says so.
    fn step_time(&self) -> Option<Duration>;

    /// The best token of entry `i` of the last step's logits.
    fn best(&self, i: usize) -> u32;

    /// The scores of entry `i` of the last step's logits, which wanted them.
    fn scores(&mut self, i: usize) -> &mut [f32];

    /// Takes the device down at once; whatever it computes is lost.
    fn stop(&mut self);
}

/// What is wanted of a row's logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// The token with the greatest, the lowest id among equals.
    Best,
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
}

impl FaultKind {
    pub const ALL: [Self; 5] = [Self::Driver, Self::OutOfMemory, Self::Worker, Self::Hang, Self::WrongResult];

    /// The value of a metric's label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Driver => "driver",
            Self::OutOfMemory => "out_of_memory",
            Self::Worker => "worker",
            Self::Hang => "hang",
            Self::WrongResult => "wrong_result",
        }
    }
}

/// `CUDA_ERROR_OUT_OF_MEMORY`.
const OUT_OF_MEMORY: i32 = 2;
