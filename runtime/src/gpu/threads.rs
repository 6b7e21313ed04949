//! The loop of a feeder's thread.
//!
//! A plain thread: an executor has nothing else to run here. One of glommio 0.9 lost a timer once, on kernel 6.18: the
//! feeder, and with it every stream of its device, slept for ever.
#![expect(unsafe_code, reason = "waiting for a descriptor with nanosecond timeout")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::device::Device;
use super::feeder::{Feeder, Journal, Rest};
use super::ports::RingPorts;
use crate::mailbox::Doorbell;

/// Runs `feeder` until `stopping`.
pub(super) fn run<D: Device, J: Journal>(
    mut feeder: Feeder<D, J>,
    mut ports: RingPorts,
    bell: &Doorbell,
    stopping: &AtomicBool,
) {
    // Sleeps end when they should, not up to 50 us later.
    // SAFETY: no pointers are involved.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
    while !stopping.load(Ordering::SeqCst) {
        let now = Instant::now();
        match feeder.turn(now, &mut ports) {
            Rest::Until(until) if until > now => {
                bell.prepare_sleep();
                if ports.is_empty() && !feeder.has_news() && !stopping.load(Ordering::SeqCst) {
                    sleep(bell, until);
                }
                bell.awake();
            }
            Rest::Until(_) => {}
            Rest::None => (0..SPINS_PER_TURN).for_each(|_| std::hint::spin_loop()),
        }
    }
}

/// Until the bell rings, at most until `until`.
fn sleep(bell: &Doorbell, until: Instant) {
    let time = until.saturating_duration_since(Instant::now());
    let time = libc::timespec {
        tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: time.subsec_nanos().into(),
    };
    let mut poll = libc::pollfd { fd: bell.raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one descriptor to poll and a timeout, both alive; the signal mask stays.
    unsafe { libc::ppoll(&raw mut poll, 1, &raw const time, std::ptr::null()) };
}

/// Looks at the device's word between two turns: about 0.2 us.
const SPINS_PER_TURN: u32 = 8;
