//! Sets of tokens that take long are computed beside the steps of a shard or a GPU, at low priority, so that a slow grammar
//! delays its own answer only: its sequence sits out the steps until its guide is back.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use llguidance::CancellationHandle;

use super::Guide;
#[cfg(test)]
use crate::engine::faults;
use crate::mailbox::{Doorbell, LeaderBell};
use crate::shared::PerWorker;

/// The ways to the threads beside a leader or a feeder.
pub struct Beside {
    jobs: SyncSender<Job>,
    /// For sets that take so long that others must not wait behind them.
    long_jobs: SyncSender<Job>,
    /// A guide whose sets take longer on average has no place in steps.
    pub(super) slow: Duration,
    news: Arc<News>,
    /// Guides that had come back when they were last looked for.
    seen: u64,
}

/// Who is told that guides have come back.
struct News {
    done: AtomicU64,
    ring: Box<dyn Fn() + Send + Sync>,
}

/// Where a guide comes back, once; whoever drops it before ends its work.
pub(super) struct Errand {
    back: Arc<OnceLock<PerWorker<Guide>>>,
    forwards: Arc<[Forward; MOVES_MAX]>,
    /// What ends it; `None` once the guide is back.
    work: Option<CancellationHandle>,
}

/// Who else is to be told, where the sequence has moved on meanwhile.
#[derive(Default)]
struct Forward {
    to: OnceLock<Arc<News>>,
    /// Set by the first of two: who is to be told, and the guide that is back. The second one tells.
    met: AtomicBool,
}

struct Job {
    guide: PerWorker<Guide>,
    back: Arc<OnceLock<PerWorker<Guide>>>,
    forwards: Arc<[Forward; MOVES_MAX]>,
}

impl News {
    fn tell(&self) {
        self.done.fetch_add(1, Ordering::SeqCst);
        (self.ring)();
    }
}

impl Errand {
    /// The guide, once it is back.
    pub(super) fn take(&mut self) -> Option<PerWorker<Guide>> {
        let guide = Arc::get_mut(&mut self.back)?.take()?;
        self.work = None;
        Some(guide)
    }

    /// Has `beside`'s owner told, who has the sequence from now on.
    ///
    /// # Panics
    /// When it has moved on so often before.
    pub(super) fn follow(&self, beside: &Beside) {
        let mut forwards = self.forwards.iter();
        let forward = forwards.find(|forward| forward.to.set(Arc::clone(&beside.news)).is_ok());
        if forward.expect("a sequence moves on twice").met.swap(true, Ordering::SeqCst) {
            beside.news.tell();
        }
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
    /// Starts the threads of shard `index` of so many workers, which live as long as this; they ring `bell` where a guide comes back.
    ///
    /// # Errors
    /// When there can be no further thread.
    pub fn start(index: usize, workers: usize, bell: &Arc<LeaderBell>) -> io::Result<Self> {
        let bell = Arc::clone(bell);
        Self::start_named((&format!("guides-{index}"), workers), SLOW, move || bell.ring())
    }

    /// The same for the GPU of that number, whose steps are shorter and have more company; its workers are those that choose tokens.
    ///
    /// # Errors
    /// As [`Beside::start`].
    pub fn start_for_gpu(ordinal: usize, workers: usize, bell: &Arc<Doorbell>) -> io::Result<Self> {
        let bell = Arc::clone(bell);
        Self::start_named((&format!("guides-g{ordinal}"), workers), SLOW_ON_GPUS, move || bell.ring())
    }

    fn start_named(
        (name, workers): (&str, usize),
        slow: Duration,
        ring: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let news = Arc::new(News { done: AtomicU64::new(0), ring: Box::new(ring) });
        let threads = workers.div_ceil(WORKERS_PER_THREAD);
        let jobs = start(name, threads, &news)?;
        let long_jobs = start(&format!("{name}.long"), threads, &news)?;
        Ok(Self { jobs, long_jobs, slow, news, seen: 0 })
    }

    /// Hands a guide over; it comes back where no more of them may wait.
    pub(super) fn begin(&mut self, guide: PerWorker<Guide>) -> Result<Errand, PerWorker<Guide>> {
        let (mut guide, work) = Guide::cancellable(guide);
        let jobs = if guide.get_mut(0).pace.is_long() { &self.long_jobs } else { &self.jobs };
        let (back, forwards) = (Arc::default(), Arc::default());
        match jobs.try_send(Job { guide, back: Arc::clone(&back), forwards: Arc::clone(&forwards) }) {
            Ok(()) => Ok(Errand { back, forwards, work: Some(work) }),
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => Err(job.guide),
        }
    }

    /// Whether guides have come back that the owner has not looked for.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.news.done.load(Ordering::SeqCst) != self.seen
    }

    /// Whether that is so; the owner looks for them now.
    pub fn take_news(&mut self) -> bool {
        let done = self.news.done.load(Ordering::SeqCst);
        std::mem::replace(&mut self.seen, done) != done
    }
}

/// What threads have in common that wait for the same jobs.
#[expect(clippy::disallowed_types, reason = "these threads are no shard's, and who gives them jobs takes no lock")]
type Incoming = std::sync::Mutex<Receiver<Job>>;

/// Starts threads that tell `news` of each guide that they are done with.
fn start(name: &str, threads: usize, news: &Arc<News>) -> io::Result<SyncSender<Job>> {
    let (jobs, incoming) = sync_channel(JOBS_MAX);
    let incoming = Arc::new(Incoming::new(incoming));
    for _ in 0..threads {
        let (news, incoming) = (Arc::clone(news), Arc::clone(&incoming));
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Where it may not, it takes turns with the others; short ones, so that it holds nobody up for long.
            let _ = tuning::give_way();
            let _ = tuning::take_short_turns();
            work(&incoming, &news);
        })?;
    }
    Ok(jobs)
}

/// Each sequence has one guide in the queue at most: they take turns. Whoever waits for the next job has the lock.
fn work(incoming: &Incoming, news: &News) {
    let next = || incoming.lock().expect("nothing breaks down under it").recv();
    while let Ok(Job { mut guide, back, forwards }) = next() {
        // Its client may have left meanwhile.
        if Arc::strong_count(&back) > 1 {
            compute(guide.get_mut(0));
            let _ = back.set(guide);
        } else {
            drop(guide);
        }
        drop(back);
        news.tell();
        for forward in forwards.iter().filter(|forward| forward.met.swap(true, Ordering::SeqCst)) {
            forward.to.get().expect("it was said before they met").tell();
        }
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

/// A guide whose sets take longer on average has no place in the steps of a shard, until they take a quarter of it: more than any
/// work on automata may take of one set, as ordinary guides now and then have to do, and than what a machine that others use adds to it.
const SLOW: Duration = Duration::from_millis(4);
/// The same in those of a GPU, which take 1 to 3 ms for hundreds of sequences.
const SLOW_ON_GPUS: Duration = Duration::from_millis(1);
/// Workers for each thread of either kind: while others take steps, slow sets have a part of the cores, at low priority.
const WORKERS_PER_THREAD: usize = 4;
/// Times that a sequence moves on while its guide is away: to another device, then to a leader.
const MOVES_MAX: usize = 2;
/// Guides that may wait for the threads of a kind; what finds no room is computed in a step.
const JOBS_MAX: usize = 1024;
