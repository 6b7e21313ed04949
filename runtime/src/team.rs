//! A team of pinned threads that runs one job at a time, all members together, with cheap barriers inside the job.
//!
//! The calling thread is member 0 (the leader). A member that finds no job spins briefly, then parks on a futex.
#![expect(unsafe_code, reason = "a job borrowed by the leader is run by other threads for as long as the leader waits")]

use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use crate::futex;

/// Keeps what one thread writes off the cache lines that others read.
#[derive(Default)]
#[repr(align(128))]
pub struct Padded<T>(pub T);

/// Work counters of a job: each gives out the units of one phase. They belong to what the job computes, not to the
/// team, so that one team serves models of any depth.
#[derive(Default)]
pub struct Counters(Box<[Padded<AtomicUsize>]>);

impl Counters {
    /// So many counters.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self((0..count).map(|_| Padded::default()).collect())
    }

    /// All units of all phases are to be given out.
    fn reset(&self) {
        for counter in &self.0 {
            counter.0.store(0, Ordering::Relaxed);
        }
    }
}

#[derive(Clone, Copy)]
struct Job<'a> {
    run: &'a (dyn Fn(Member<'_>) + Sync),
    counters: &'a Counters,
}

struct Shared {
    size: u32,
    epoch: Padded<AtomicU32>,
    parked: Padded<AtomicU32>,
    arrived: Padded<AtomicU32>,
    turn: Padded<AtomicU32>,
    finished: Padded<AtomicU32>,
    poisoned: AtomicBool,
    stopping: AtomicBool,
    job: UnsafeCell<Option<Job<'static>>>,
}

// SAFETY: `job` is written by the leader only while every member waits for the next epoch, and read by members only
// between the epoch's release store and their `finished` increment, which the leader awaits.
unsafe impl Sync for Shared {}
// SAFETY: as above; nothing else in it is bound to a thread.
unsafe impl Send for Shared {}

/// The threads. Dropping it ends them.
pub struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    setup: Arc<Setup>,
    /// Only one thread at a time has it, and no job can: two jobs at once would have one cell.
    _leader: PhantomData<Cell<()>>,
}

type Setup = dyn Fn(usize) + Send + Sync;

/// One thread's view of a running job.
#[derive(Clone, Copy)]
pub struct Member<'a> {
    pub index: usize,
    /// Members that share the units: all of the team, or this one alone.
    size: u32,
    shared: &'a Shared,
    counters: &'a Counters,
}

impl Team {
    /// Starts `size - 1` threads beside the caller. `setup(index)` runs first on each of them (pinning, names).
    ///
    /// # Errors
    /// The operating system's, when a thread can't be started.
    pub fn start(size: usize, setup: impl Fn(usize) + Send + Sync + 'static) -> std::io::Result<Self> {
        let setup: Arc<Setup> = Arc::new(setup);
        Self::start_with(size, &setup)
    }

    /// New threads in place of these, which a panic has made useless.
    ///
    /// # Errors
    /// As [`Team::start`].
    pub fn renew(&mut self) -> std::io::Result<()> {
        *self = Self::start_with(self.size(), &self.setup)?;
        Ok(())
    }

    fn start_with(size: usize, setup: &Arc<Setup>) -> std::io::Result<Self> {
        assert!(size >= 1, "a team has at least its leader");
        let shared = Arc::new(Shared {
            size: u32::try_from(size).expect("a team fits one machine"),
            epoch: Padded::default(),
            parked: Padded::default(),
            arrived: Padded::default(),
            turn: Padded::default(),
            finished: Padded::default(),
            poisoned: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            job: UnsafeCell::new(None),
        });
        let threads = Vec::with_capacity(size - 1);
        let mut team = Self { shared, threads, setup: Arc::clone(setup), _leader: PhantomData };
        for index in 1..size {
            let (shared, setup) = (Arc::clone(&team.shared), Arc::clone(setup));
            let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                setup(index);
                member_loop(&shared, index);
            })?;
            team.threads.push(thread);
        }
        Ok(team)
    }

    /// How many members there are, the leader included.
    #[must_use]
    pub fn size(&self) -> usize {
        self.shared.size as usize
    }

    /// Runs `job` on every member and returns when all are done. `counters` start at 0.
    ///
    /// # Panics
    /// When a member panicked in the job, here or before: the team is then of no further use.
    pub fn run(&self, counters: &Counters, job: &(dyn Fn(Member<'_>) + Sync)) {
        let (shared, job) = (&*self.shared, Job { run: job, counters });
        assert!(!shared.poisoned.load(Ordering::Relaxed), "a member of this team panicked before");
        counters.reset();
        shared.finished.0.store(0, Ordering::Relaxed);
        // SAFETY: the lifetime is only stretched until the wait below, which outlasts every use.
        let job_static = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(job) };
        // SAFETY: no member reads the cell before the epoch changes (see `Shared`).
        unsafe { *shared.job.get() = Some(job_static) };
        shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        if shared.parked.0.load(Ordering::SeqCst) > 0 {
            futex::wake_all(&shared.epoch.0);
        }
        let outcome =
            catch_unwind(AssertUnwindSafe(|| (job.run)(Member { index: 0, size: shared.size, shared, counters })));
        if outcome.is_err() {
            shared.poisoned.store(true, Ordering::SeqCst);
        }
        wait_until(|| shared.finished.0.load(Ordering::Acquire) == shared.size - 1);
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
        assert!(!shared.poisoned.load(Ordering::Relaxed), "a member of this team panicked");
    }

    /// Runs `job` on the calling thread, all units its own, and leaves the others asleep.
    pub fn run_alone(&self, counters: &Counters, job: impl FnOnce(Member<'_>)) {
        counters.reset();
        job(Member { index: 0, size: 1, shared: &self.shared, counters });
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        futex::wake_all(&self.shared.epoch.0);
        for thread in self.threads.drain(..) {
            // A member that panicked has already poisoned the team.
            let _ = thread.join();
        }
    }
}

impl<'a> Member<'a> {
    /// The same thread by itself: it waits for nobody, and all units of `counters`, which start at 0, are its own.
    #[must_use]
    pub fn alone(self, counters: &'a Counters) -> Self {
        counters.reset();
        Self { size: 1, counters, ..self }
    }

    /// Waits until every member is here.
    ///
    /// # Panics
    /// When another member panicked, so that no one waits for it for ever.
    pub fn barrier(&self) {
        let shared = self.shared;
        if self.size == 1 {
            return;
        }
        let turn = shared.turn.0.load(Ordering::Relaxed);
        if shared.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == shared.size {
            shared.arrived.0.store(0, Ordering::Relaxed);
            shared.turn.0.store(turn.wrapping_add(1), Ordering::Release);
            return;
        }
        wait_until(|| {
            shared.turn.0.load(Ordering::Acquire) != turn || {
                assert!(!shared.poisoned.load(Ordering::Relaxed), "a member of this team panicked");
                false
            }
        });
    }

    /// The next unit of work of `counter`, below `units`. Each unit goes to exactly one member.
    #[must_use]
    pub fn claim(&self, counter: usize, units: usize) -> Option<usize> {
        if self.size == 1 {
            let counter = &self.counters.0[counter].0;
            let unit = counter.load(Ordering::Relaxed);
            counter.store(unit + 1, Ordering::Relaxed);
            return (unit < units).then_some(unit);
        }
        let unit = self.counters.0[counter].0.fetch_add(1, Ordering::Relaxed);
        (unit < units).then_some(unit)
    }

    /// How many members share the units.
    #[must_use]
    pub fn team_size(&self) -> usize {
        self.size as usize
    }
}

fn member_loop(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        seen = await_epoch(shared, seen);
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        // SAFETY: the leader wrote the cell before it raised the epoch and waits for `finished` before it writes again.
        let job = unsafe { *shared.job.get() }.expect("an epoch comes with its job");
        if catch_unwind(AssertUnwindSafe(|| {
            (job.run)(Member { index, size: shared.size, shared, counters: job.counters });
        }))
        .is_err()
        {
            shared.poisoned.store(true, Ordering::SeqCst);
        }
        shared.finished.0.fetch_add(1, Ordering::Release);
    }
}

fn await_epoch(shared: &Shared, seen: u32) -> u32 {
    for _ in 0..IDLE_TURNS {
        for _ in 0..SPINS {
            let epoch = shared.epoch.0.load(Ordering::Acquire);
            if epoch != seen {
                return epoch;
            }
            std::hint::spin_loop();
        }
        std::thread::yield_now();
    }
    shared.parked.0.fetch_add(1, Ordering::SeqCst);
    let epoch = loop {
        let epoch = shared.epoch.0.load(Ordering::SeqCst);
        if epoch != seen {
            break epoch;
        }
        futex::wait(&shared.epoch.0, seen);
    };
    shared.parked.0.fetch_sub(1, Ordering::SeqCst);
    epoch
}

/// Spins, then gives the core away between looks: a member that lost its core to another thread needs one to go on.
fn wait_until(mut done: impl FnMut() -> bool) {
    loop {
        for _ in 0..SPINS {
            if done() {
                return;
            }
            std::hint::spin_loop();
        }
        std::thread::yield_now();
    }
}

/// Looks before the core is offered to others.
const SPINS: u32 = 250;
/// How often a member does so before it parks.
const IDLE_TURNS: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_claimed_exactly_once_and_barriers_hold() {
        let team = Team::start(3, |_| {}).unwrap();
        let counters = Counters::new(64);
        for _ in 0..200 {
            let hits: Vec<AtomicUsize> = (0..64 * 10).map(|_| AtomicUsize::new(0)).collect();
            team.run(&counters, &|member| {
                for phase in 0..64 {
                    while let Some(unit) = member.claim(phase, 10) {
                        hits[phase * 10 + unit].fetch_add(1, Ordering::Relaxed);
                    }
                    member.barrier();
                    assert!(hits[phase * 10..phase * 10 + 10].iter().all(|h| h.load(Ordering::Relaxed) == 1));
                }
            });
        }
    }

    #[test]
    fn members_alone_take_all_units_of_their_own_and_wait_for_nobody() {
        let team = Team::start(3, |_| {}).unwrap();
        let own: Vec<Counters> = (0..3).map(|_| Counters::new(2)).collect();
        for _ in 0..50 {
            let taken = AtomicUsize::new(0);
            team.run(&Counters::new(0), &|member| {
                let member = member.alone(&own[member.index]);
                // Others do not come here.
                if member.index < 2 {
                    assert_eq!(member.team_size(), 1);
                    for phase in 0..2 {
                        let units = std::iter::from_fn(|| member.claim(phase, 5));
                        assert_eq!(units.collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
                        member.barrier();
                        taken.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            assert_eq!(taken.into_inner(), 4);
        }
    }

    #[test]
    fn the_leader_alone_takes_all_units_and_wakes_nobody() {
        let team = Team::start(3, |_| {}).unwrap();
        let counters = Counters::new(1);
        let epoch = team.shared.epoch.0.load(Ordering::Relaxed);
        for _ in 0..3 {
            let mut units = Vec::new();
            team.run_alone(&counters, |member| {
                member.barrier();
                units.extend(std::iter::from_fn(|| member.claim(0, 4)));
            });
            assert_eq!(units, [0, 1, 2, 3]);
        }
        assert_eq!(team.shared.epoch.0.load(Ordering::Relaxed), epoch);
        team.run(&counters, &|member| member.barrier());
    }

    #[test]
    fn a_panic_of_a_member_reaches_the_leader() {
        let team = Team::start(2, |_| {}).unwrap();
        let result = catch_unwind(AssertUnwindSafe(|| {
            team.run(&Counters::new(0), &|member| {
                assert!(member.index == 0, "told to fail");
                member.barrier();
            });
        }));
        assert!(result.is_err());
    }

    #[test]
    fn a_renewed_team_works_with_the_same_setup() {
        let set_up = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&set_up);
        let mut team = Team::start(3, move |index| {
            seen.fetch_add(index, Ordering::SeqCst);
        })
        .unwrap();
        let counters = Counters::new(0);
        let fall = |member: Member<'_>| assert!(member.index != 2, "told to fail");
        assert!(catch_unwind(AssertUnwindSafe(|| team.run(&counters, &fall))).is_err());
        assert!(catch_unwind(AssertUnwindSafe(|| team.run(&counters, &|_| {}))).is_err(), "it is of no use any more");
        team.renew().unwrap();
        let ran = AtomicUsize::new(0);
        team.run(&counters, &|_| {
            ran.fetch_add(1, Ordering::SeqCst);
        });
        assert_eq!((team.size(), ran.into_inner(), set_up.load(Ordering::SeqCst)), (3, 3, 6));
    }
}
