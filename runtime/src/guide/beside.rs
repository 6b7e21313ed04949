//! Sets of tokens that take long are computed beside the steps of a shard, at low priority, so that a slow grammar delays its
//! own answer only: its sequence sits out the steps until its guide is back.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use llguidance::CancellationHandle;

use super::Guide;
#[cfg(test)]
use crate::engine::faults;
use crate::mailbox::LeaderBell;
use crate::shared::PerWorker;

/// The ways to the threads beside a leader.
pub struct Beside {
    jobs: SyncSender<Job>,
    /// For sets that take so long that others must not wait behind them.
    long_jobs: SyncSender<Job>,
    /// Guides that have come back, and those that the leader has looked for.
    done: Arc<AtomicU64>,
    seen: u64,
}

/// Where a guide comes back, once; whoever drops it before ends its work.
pub(super) struct Errand {
    back: Arc<OnceLock<PerWorker<Guide>>>,
    /// What ends it; `None` once the guide is back.
    work: Option<CancellationHandle>,
}

struct Job {
    guide: PerWorker<Guide>,
    back: Arc<OnceLock<PerWorker<Guide>>>,
}

impl Errand {
    /// The guide, once it is back.
    pub(super) fn take(&mut self) -> Option<PerWorker<Guide>> {
        let guide = Arc::get_mut(&mut self.back)?.take()?;
        self.work = None;
        Some(guide)
    }
}

impl Drop for Errand {
    fn drop(&mut self) {
        if let Some(work) = &self.work {
            work.cancel();
        }
    }
}

impl Beside {
    /// Starts the threads of shard `index`, which live as long as this; they ring `bell` where a guide comes back.
    ///
    /// # Errors
    /// When there can be no further thread.
    pub fn start(index: usize, bell: &Arc<LeaderBell>) -> io::Result<Self> {
        let done = Arc::new(AtomicU64::new(0));
        let start = |name| start(name, Arc::clone(&done), Arc::clone(bell));
        let (jobs, long_jobs) = (start(format!("guides-{index}"))?, start(format!("guides-{index}.long"))?);
        Ok(Self { jobs, long_jobs, done, seen: 0 })
    }

    /// Hands a guide over; it comes back where no more of them may wait.
    pub(super) fn begin(&mut self, guide: PerWorker<Guide>) -> Result<Errand, PerWorker<Guide>> {
        let (mut guide, work) = Guide::cancellable(guide);
        let jobs = if guide.get_mut(0).pace.last > LONG { &self.long_jobs } else { &self.jobs };
        let back = Arc::default();
        match jobs.try_send(Job { guide, back: Arc::clone(&back) }) {
            Ok(()) => Ok(Errand { back, work: Some(work) }),
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => Err(job.guide),
        }
    }

    /// Whether guides have come back that the leader has not looked for.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.done.load(Ordering::SeqCst) != self.seen
    }

    /// Whether that is so; the leader looks for them now.
    pub fn take_news(&mut self) -> bool {
        let done = self.done.load(Ordering::SeqCst);
        std::mem::replace(&mut self.seen, done) != done
    }
}

/// Starts a thread that adds one to `done` and rings `bell` for each guide that it is done with.
fn start(name: String, done: Arc<AtomicU64>, bell: Arc<LeaderBell>) -> io::Result<SyncSender<Job>> {
    let (jobs, incoming) = sync_channel(JOBS_MAX);
    std::thread::Builder::new().name(name).spawn(move || {
        // Where it may not, it takes turns with the others; short ones, so that it holds nobody up for long.
        let _ = tuning::give_way();
        let _ = tuning::take_short_turns();
        work(&incoming, || {
            done.fetch_add(1, Ordering::SeqCst);
            bell.ring();
        });
    })?;
    Ok(jobs)
}

/// Each sequence has one guide in the queue at most: they take turns.
fn work(incoming: &Receiver<Job>, done: impl Fn()) {
    while let Ok(Job { mut guide, back }) = incoming.recv() {
        // Its client may have left meanwhile.
        if Arc::strong_count(&back) > 1 {
            compute(guide.get_mut(0));
            let _ = back.set(guide);
        } else {
            drop(guide);
        }
        drop(back);
        done();
    }
}

/// Whatever breaks down in it fails its own answer only.
fn compute(guide: &mut Guide) {
    let computed = catch_unwind(AssertUnwindSafe(|| {
        #[cfg(test)]
        assert!(!faults::strikes(faults::Fault::Guide), "told to fail");
        _ = guide.allowed();
    }));
    guide.failed |= computed.is_err();
}

/// Sets that follow one that took longer are made by a thread of their own: those of an ambiguous grammar (`e: e e | /[a-z ]/`)
/// take seconds after some hundred tokens.
const LONG: Duration = Duration::from_millis(20);
/// Guides that may wait for one thread; what finds no room is computed in a step.
const JOBS_MAX: usize = 1024;
