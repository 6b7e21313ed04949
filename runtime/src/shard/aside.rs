//! What would hold an executor, done beside it: bodies, texts and conversations above a size are read and cut into tokens on
//! a thread of low priority that each shard has for it, what takes least first.
//!
//! Small ones stay on the executor: they take less than the way there and back.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use net::error::ApiError;
use net::http::Request;
use net::json::Reader;

use super::peer::Peer;
use super::{RETRY_DRAINING, Shard, generation};
use crate::executor::{Holder, Signal, held_by};
use crate::mailbox::Doorbell;

/// The way to a thread beside a shard.
pub struct Aside {
    jobs: SyncSender<Job>,
    /// Jobs that have not ended.
    open: Arc<AtomicUsize>,
    ended: Arc<AtomicU64>,
}

/// Who waits there.
#[derive(Default)]
pub(super) struct Waiting {
    ended_seen: Cell<u64>,
    wakes: RefCell<HashMap<u64, Rc<Signal>>>,
    number: Cell<u64>,
}

struct Job {
    /// Who has waited long goes before who takes little.
    due: Instant,
    number: u64,
    work: Box<dyn FnOnce(&mut Reader) + Send>,
}

impl Aside {
    /// Starts the thread of shard `index`, which lives as long as this; it rings `doorbell` where a job has ended.
    ///
    /// # Errors
    /// When there can be no further thread.
    pub fn start(index: usize, doorbell: Arc<Doorbell>) -> io::Result<Self> {
        let (jobs, incoming) = sync_channel(JOBS_MAX);
        let (open, ended): (Arc<AtomicUsize>, Arc<AtomicU64>) = Default::default();
        let (still_open, has_ended) = (Arc::clone(&open), Arc::clone(&ended));
        std::thread::Builder::new().name(format!("aside-{index}")).spawn(move || {
            // Where it may not, it takes turns with the others.
            let _ = tuning::give_way();
            work(&incoming, || {
                still_open.fetch_sub(1, Ordering::Relaxed);
                has_ended.fetch_add(1, Ordering::Release);
                doorbell.ring();
            });
        })?;
        Ok(Self { jobs, open, ended })
    }

    /// Hands `work` over; what comes of it arrives at the receiver that is given back. `None` where too much waits.
    fn begin<T: Send + 'static>(
        &self,
        (number, bytes): (u64, usize),
        work: impl FnOnce(&mut Reader) -> T + Send + 'static,
    ) -> Option<(Receiver<T>, Arc<()>)> {
        if self.open.load(Ordering::Relaxed) >= JOBS_MAX {
            return None;
        }
        let (out, result) = sync_channel(1);
        // What nobody waits for any more is not done.
        let wanted = Arc::new(());
        let is_wanted = Arc::downgrade(&wanted);
        let work = move |reader: &mut Reader| {
            if is_wanted.strong_count() > 0 {
                // Whoever wanted it may have left meanwhile.
                let _ = out.try_send(work(reader));
            }
        };
        let due = Instant::now() + TIME_PER_BYTE * u32::try_from(bytes).unwrap_or(u32::MAX);
        self.open.fetch_add(1, Ordering::Relaxed);
        let sent = self.jobs.try_send(Job { due, number, work: Box::new(work) });
        assert!(sent.is_ok(), "no more jobs are open than the channel holds, and its thread outlives every panic");
        Some((result, wanted))
    }
}

impl Waiting {
    /// Whether jobs have ended that nobody was told of.
    pub(super) fn has_news(&self, aside: &Aside) -> bool {
        aside.ended.load(Ordering::Acquire) != self.ended_seen.get()
    }

    /// Wakes those who wait, if any of their jobs may have ended.
    pub(super) fn tell(&self, aside: &Aside) {
        if self.has_news(aside) {
            self.ended_seen.set(aside.ended.load(Ordering::Acquire));
            self.wake_all();
        }
    }

    pub(super) fn wake_all(&self) {
        self.wakes.borrow().values().for_each(|wake| wake.notify());
    }

    fn next_number(&self) -> u64 {
        self.number.set(self.number.get() + 1);
        self.number.get()
    }
}

/// Does the jobs of a shard until it is gone.
fn work(incoming: &Receiver<Job>, ended: impl Fn()) {
    let (mut jobs, mut reader) = (BinaryHeap::with_capacity(JOBS_MAX), Reader::new());
    loop {
        if jobs.is_empty() {
            let Ok(job) = incoming.recv() else { return };
            jobs.push(Reverse(job));
        }
        jobs.extend(incoming.try_iter().map(Reverse));
        let Some(Reverse(job)) = jobs.pop() else { continue };
        if catch_unwind(AssertUnwindSafe(|| (job.work)(&mut reader))).is_err() {
            reader = Reader::new();
        }
        ended();
    }
}

impl PartialEq for Job {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Job {}

impl PartialOrd for Job {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Job {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

/// A job that is waited for.
struct Wait<'a> {
    waiting: &'a Waiting,
    number: u64,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.waiting.wakes.borrow_mut().remove(&self.number);
    }
}

impl Shard {
    /// Does `work`, which is about as much as `bytes` of text, beside the executor, where that is worth it. `None` where the
    /// client is gone meanwhile.
    ///
    /// # Errors
    /// 429 where too much waits for that thread, 503 where the server ends, 500 where the work broke down.
    pub(super) async fn aside<T: Send + 'static>(
        &self,
        peer: &Peer,
        (holder, bytes): (Holder, usize),
        work: impl FnOnce(&mut Reader) -> T + Send + 'static,
    ) -> Result<Option<T>, ApiError> {
        if bytes <= HERE_BYTES_MAX {
            return Ok(Some(held_by(holder, || work(&mut self.json.borrow_mut()))));
        }
        let number = self.waiting.next_number();
        let Some((result, _wanted)) = self.aside.begin((number, bytes), work) else {
            self.metrics.requests.outcomes.refused_queue.add(1);
            return Err(generation::queue_full());
        };
        self.metrics.requests.aside.add(1);
        self.waiting.wakes.borrow_mut().insert(number, Rc::clone(&peer.wake));
        let _wait = Wait { waiting: &self.waiting, number };
        loop {
            match result.try_recv() {
                Ok(result) => return Ok(Some(result)),
                Err(TryRecvError::Disconnected) => return Err(ApiError::internal("the request could not be read")),
                Err(TryRecvError::Empty) => {}
            }
            if self.control.is_cutting() {
                return Err(ApiError::unavailable("the server is shutting down", RETRY_DRAINING));
            }
            if peer.gone.get() {
                self.metrics.requests.outcomes.cancelled.add(1);
                return Ok(None);
            }
            peer.wake.wait().await;
        }
    }

    /// Reads the body of `request`, as [`Self::aside`].
    ///
    /// # Errors
    /// Those of `parse` as well.
    pub(super) async fn read_body<T: Send + 'static>(
        &self,
        peer: &Peer,
        request: &mut Request,
        parse: impl FnOnce(&mut Reader, &mut [u8]) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<Option<T>, ApiError> {
        let mut body = std::mem::take(&mut request.body);
        let bytes = body.len();
        let parsed = self.aside(peer, (Holder::Json, bytes), move |reader| {
            let parsed = parse(reader, &mut body);
            (parsed, body)
        });
        let Some((parsed, body)) = parsed.await? else { return Ok(None) };
        // The buffer serves the next request.
        request.body = body;
        parsed.map(Some)
    }
}

/// What an executor does itself. The worst texts take it 0.12 us a byte, the worst bodies 0.03 us.
const HERE_BYTES_MAX: usize = 4 << 10;
/// What others wait for a job of that length, if it came before them.
const TIME_PER_BYTE: Duration = Duration::from_micros(1);
/// Jobs of a shard that may be waiting or at work; with bodies of 4 MiB their memory is that which bodies may take.
const JOBS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn aside() -> Aside {
        Aside::start(0, Arc::new(Doorbell::new().unwrap())).unwrap()
    }

    fn recv<T>((result, _wanted): (Receiver<T>, Arc<()>)) -> Result<T, std::sync::mpsc::RecvError> {
        result.recv()
    }

    #[test]
    fn small_jobs_go_before_big_ones_that_have_not_waited_long() {
        let aside = aside();
        let (go, may_go) = sync_channel::<()>(0);
        let held = aside.begin((1, 0), move |_| may_go.recv().is_ok()).unwrap();
        let (order, ended) = sync_channel(2);
        let job = |number, bytes| {
            let order = order.clone();
            aside.begin((number, bytes), move |_| order.send(bytes).unwrap()).unwrap()
        };
        let jobs = [job(2, 100_000_000), job(3, 10_000)];
        go.send(()).unwrap();
        jobs.into_iter().for_each(|job| recv(job).unwrap());
        assert_eq!(ended.try_iter().collect::<Vec<_>>(), [10_000, 100_000_000]);
        assert_eq!(recv(held), Ok(true));
    }

    #[test]
    fn jobs_are_bounded_and_those_that_nobody_wants_are_not_done() {
        let (aside, waiting) = (aside(), Waiting::default());
        let (go, may_go) = sync_channel::<()>(0);
        let held = aside.begin((0, 0), move |_| may_go.recv().is_ok()).unwrap();
        let job = |number: u64| aside.begin((number, 0), move |_| number).unwrap();
        let mut others: Vec<_> = (1..JOBS_MAX as u64).map(job).collect();
        assert!(aside.begin((0, 0), |_| ()).is_none());
        let (result, _) = others.remove(0);
        go.send(()).unwrap();
        assert!(result.recv().is_err(), "it was dropped undone");
        assert_eq!(others.into_iter().map(|job| recv(job).unwrap()).sum::<u64>(), (2..JOBS_MAX as u64).sum::<u64>());
        assert_eq!(recv(held), Ok(true));
        while aside.open.load(Ordering::Relaxed) > 0 {
            std::thread::yield_now();
        }
        let wake = Rc::<Signal>::default();
        waiting.wakes.borrow_mut().insert(1, Rc::clone(&wake));
        drop(Wait { waiting: &waiting, number: 1 });
        assert!(waiting.wakes.borrow().is_empty());
        while aside.ended.load(Ordering::Acquire) < JOBS_MAX as u64 {
            std::thread::yield_now();
        }
        assert!(waiting.has_news(&aside));
        waiting.tell(&aside);
        assert!(!waiting.has_news(&aside));
        assert!(aside.begin((0, 0), |_| ()).is_some());
    }

    #[test]
    fn a_job_that_breaks_down_ends_alone() {
        let aside = aside();
        let told = std::hint::black_box(true);
        assert!(recv(aside.begin((1, 0), move |_| assert!(!told, "told to fail")).unwrap()).is_err());
        assert_eq!(recv(aside.begin((2, 0), |_| 7).unwrap()), Ok(7));
    }
}
