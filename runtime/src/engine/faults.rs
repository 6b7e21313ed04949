//! Faults that tests of this crate bring about; they are no part of any other build.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Where to panic.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// In the step loop.
    Leader = 1,
    /// In the forward pass, on whichever worker is first.
    Worker = 2,
    /// In an executor's turn, as it hands an event on.
    Executor = 3,
    /// In the task that lets clients in.
    Accept = 4,
    /// In the task that keeps the time.
    Timer = 5,
    /// In the loop of an executor's driver, as it wakes the main task.
    Driver = 6,
    /// In a thread beside a leader or a feeder, as it computes what a guide allows.
    Guide = 7,
}

/// Enough for the answer to have begun.
pub(super) const TOKENS_MIN: usize = 3;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Makes `fault` strike this shard: a step with a sequence that has [`TOKENS_MIN`] tokens, or what its executor does next
/// of that kind.
pub(crate) fn inject(fault: Fault, shard: u16) {
    NEXT.store(fault as u64 | u64::from(shard) << 8, Ordering::SeqCst);
}

/// Whether an injected fault has not struck yet.
pub(crate) fn is_pending() -> bool {
    NEXT.load(Ordering::SeqCst) != 0
}

/// Whether `fault` strikes the thread of a shard that this is now; it does so once.
pub(crate) fn strikes(fault: Fault) -> bool {
    if !is_pending() {
        return false;
    }
    let thread = std::thread::current();
    let kind = match fault {
        Fault::Leader | Fault::Worker => "leader-",
        Fault::Guide => "guides-",
        _ => "shard-",
    };
    // A feeder's are as good as a shard's.
    let number = |name: &str| name.trim_start_matches('g').trim_end_matches(".long").parse::<u16>().ok();
    let shard = thread.name().and_then(|name| number(name.strip_prefix(kind)?));
    let wanted = shard.map(|shard| fault as u64 | u64::from(shard) << 8);
    wanted.is_some_and(|wanted| NEXT.compare_exchange(wanted, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok())
}

/// The right to have faults in this process, or a server that must have none.
pub(crate) struct Turn;

static TAKEN: AtomicBool = AtomicBool::new(false);

impl Turn {
    #[expect(clippy::disallowed_methods, reason = "this test waits for others")]
    pub(crate) fn take() -> Self {
        while TAKEN.swap(true, Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(10));
        }
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TAKEN.store(false, Ordering::SeqCst);
    }
}
