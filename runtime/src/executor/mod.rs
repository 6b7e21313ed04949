//! The executor of a shard: the little that a shard asks of one, over monoio (io_uring or epoll) and glommio.
//!
//! Which one runs is known per thread, so that what is built on it names none. Tasks must not wake themselves to yield:
//! monoio would run nothing else.

mod contain;
mod signal;
mod socket;
mod stalls;
mod tasks;

use std::cell::Cell;
use std::io;
use std::time::Duration;

pub use contain::contain;
pub use signal::{Rings, Signal, Turns};
pub use socket::{Listener, ReadHalf, WriteHalf, halves};
pub use stalls::{Holder, count_stalls, give_way, held_by, is_long};
pub use tasks::end_tasks;

use crate::probe::{Io, RING_ENTRIES};

/// Whose tasks, timers and sockets this thread uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backend {
    MonoioUring,
    MonoioEpoll,
    Glommio,
}

thread_local! {
    static BACKEND: Cell<Option<Backend>> = const { Cell::new(None) };
}

fn backend() -> Backend {
    BACKEND.get().expect("called from within an executor")
}

/// Runs `main` and everything it spawns on this thread until it ends. Where the executor itself panics, its tasks stay
/// until [`end_tasks`], and another may follow.
///
/// # Errors
/// When the driver can't be made.
pub fn run<T>(io: &Io, main: impl Future<Output = T>) -> io::Result<T> {
    let result = run_tasks(io, main);
    end_tasks();
    result
}

fn run_tasks<T>(io: &Io, main: impl Future<Output = T>) -> io::Result<T> {
    BACKEND.set(Some(match io {
        Io::IoUring => Backend::MonoioUring,
        Io::Epoll { .. } => Backend::MonoioEpoll,
        Io::Glommio => Backend::Glommio,
    }));
    match io {
        Io::IoUring => {
            let mut ring = io_uring_06::IoUring::builder();
            // -31 % cpu per request and +40 to +75 % requests per second against a ring without them.
            ring.setup_coop_taskrun().setup_single_issuer();
            let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
                .with_entries(RING_ENTRIES)
                .uring_builder(ring)
                .enable_timer()
                .build()?;
            Ok(runtime.block_on(main))
        }
        Io::Epoll { .. } => {
            let mut runtime = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().enable_timer().build()?;
            Ok(runtime.block_on(main))
        }
        Io::Glommio => Ok(glommio_executor(RING_ENTRIES as usize)?.run(main)),
    }
}

/// One queue, a short preemption timer and memory for few operations: with glommio's defaults a wake by another
/// thread may come 100 ms late while a task runs. Where io_uring is refused, it panics: ask [`crate::probe`] before.
fn glommio_executor(ring_entries: usize) -> io::Result<glommio::LocalExecutor> {
    glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound)
        .io_memory(GLOMMIO_MEMORY_BYTES)
        .ring_depth(ring_entries)
        .preempt_timer(Duration::from_micros(100))
        .make()
        .map_err(io::Error::from)
}

/// Runs `task` beside the others of this thread, and notes turns of it that hold them up. One that panics has ended.
pub fn spawn(task: impl Future<Output = ()> + 'static) {
    // Boxed before anything goes around it, since each async function has its argument and what it makes of it: a
    // connection took 83 KiB otherwise, most of them unused.
    let task = Box::pin(task);
    let task = tasks::hold(async {
        contain(stalls::watched(task)).await;
    });
    match backend() {
        Backend::MonoioUring | Backend::MonoioEpoll => drop(monoio::spawn(task)),
        Backend::Glommio => drop(glommio::spawn_local(task).detach()),
    }
}

/// Lets other tasks run for `time`; monoio's timers have a resolution of 1 ms.
pub async fn sleep(time: Duration) {
    match backend() {
        Backend::MonoioUring | Backend::MonoioEpoll => monoio::time::sleep(time).await,
        Backend::Glommio => glommio::timer::sleep(time).await,
    }
}

const GLOMMIO_MEMORY_BYTES: usize = 1 << 20;
