//! What a feeder runs on: a glommio executor where io_uring is allowed, a plain thread where it is not.

use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use glommio::net::TcpStream;

use super::device::Device;
use super::feeder::{Feeder, Journal, Rest};
use super::ports::RingPorts;
use crate::executor::glommio_executor;
use crate::mailbox::Doorbell;

/// Waits on the thread or executor that runs the feeder.
trait Sleeper {
    /// Until the bell rings, at most until `until`.
    async fn sleep(&self, bell: &Doorbell, until: Instant);
}

/// Runs `feeder` until `stopping`, on io_uring if it `may_use_uring`.
pub(super) fn run<D: Device, J: Journal>(
    mut feeder: Feeder<D, J>,
    mut ports: RingPorts,
    bell: &Doorbell,
    stopping: &AtomicBool,
    may_use_uring: bool,
) -> Result<(), String> {
    if !may_use_uring {
        block_on(serve(&mut feeder, &mut ports, bell, stopping, &ThreadSleeper));
        return Ok(());
    }
    let executor = glommio_executor(RING_DEPTH).map_err(|error| format!("no glommio executor: {error}"))?;
    executor.run(async {
        let sleeper = GlommioSleeper::new(bell).map_err(|error| format!("no bell for the executor: {error}"))?;
        serve(&mut feeder, &mut ports, bell, stopping, &sleeper).await;
        Ok(())
    })
}

async fn serve<D: Device, J: Journal>(
    feeder: &mut Feeder<D, J>,
    ports: &mut RingPorts,
    bell: &Doorbell,
    stopping: &AtomicBool,
    sleeper: &impl Sleeper,
) {
    while !stopping.load(Ordering::SeqCst) && !feeder.is_over() {
        let now = Instant::now();
        match feeder.turn(now, ports) {
            Rest::Until(until) if until > now => {
                bell.prepare_sleep();
                if ports.is_empty() && !stopping.load(Ordering::SeqCst) {
                    sleeper.sleep(bell, until).await;
                }
                bell.awake();
            }
            Rest::Until(_) => {}
            Rest::None => (0..SPINS_PER_TURN).for_each(|_| std::hint::spin_loop()),
        }
    }
}

/// Blocks its thread.
struct ThreadSleeper;

impl Sleeper for ThreadSleeper {
    #[expect(unsafe_code, reason = "waiting for a descriptor with nanosecond timeout")]
    async fn sleep(&self, bell: &Doorbell, until: Instant) {
        let time = until.saturating_duration_since(Instant::now());
        let time = libc::timespec {
            tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: time.subsec_nanos().into(),
        };
        let mut poll = libc::pollfd { fd: bell.raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor to poll and a timeout, both alive; the signal mask stays.
        unsafe { libc::ppoll(&raw mut poll, 1, &raw const time, std::ptr::null()) };
    }
}

/// Waits in the executor's ring.
struct GlommioSleeper {
    stream: TcpStream,
}

impl GlommioSleeper {
    #[expect(unsafe_code, reason = "the executor polls a duplicate of the bell's descriptor")]
    fn new(bell: &Doorbell) -> std::io::Result<Self> {
        let fd: RawFd = bell.raw_fd();
        // SAFETY: no pointers are involved.
        let copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) };
        if copy < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: the duplicate is owned by nobody else. It is a stream socket, of which only readability is asked.
        Ok(Self { stream: unsafe { TcpStream::from_raw_fd(copy) } })
    }
}

impl Sleeper for GlommioSleeper {
    async fn sleep(&self, _: &Doorbell, until: Instant) {
        let time = until.saturating_duration_since(Instant::now());
        let mut byte = [0];
        // A ring, the timeout or an error: the loop looks again in any case.
        let _ = glommio::timer::timeout(time, self.stream.peek(&mut byte)).await;
    }
}

/// Runs a future whose waits block the thread themselves.
fn block_on(future: impl Future<Output = ()>) {
    let mut future = std::pin::pin!(future);
    while future.as_mut().poll(&mut Context::from_waker(Waker::noop())) == Poll::Pending {}
}

const RING_DEPTH: usize = 128;
/// Looks at the device's word between two turns: about 0.2 us.
const SPINS_PER_TURN: u32 = 8;
