//! How the executor of a shard and its leader wake each other: two bells beside the two bounded rings.
//!
//! Both follow one protocol. The sleeper says that it sleeps, looks at its ring once more, and only then sleeps; the
//! ringer puts its record into the ring first and then asks whether the other sleeps. Sequentially consistent
//! exchanges on both sides leave no order in which the record is missed.
#![expect(unsafe_code, reason = "eventfd system calls")]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

use crate::futex;

/// Wakes the executor, which sleeps in its driver until the descriptor is readable.
pub struct Doorbell {
    fd: OwnedFd,
    /// What is written to instead, where that is another descriptor.
    other_end: Option<OwnedFd>,
    asleep: AtomicBool,
}

impl Doorbell {
    /// A bell that nobody has rung.
    ///
    /// # Errors
    /// When no descriptor is to be had.
    pub fn new() -> std::io::Result<Self> {
        // SAFETY: no pointers are involved.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and owned by nobody else.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, other_end: None, asleep: AtomicBool::new(false) })
    }

    /// A bell for drivers that wait for sockets only.
    ///
    /// # Errors
    /// When no descriptors are to be had.
    pub fn socket() -> std::io::Result<Self> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        Ok(Self { fd: ours.into(), other_end: Some(theirs.into()), asleep: AtomicBool::new(false) })
    }

    /// The descriptor that becomes readable.
    #[must_use]
    pub fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Wakes the sleeper if it sleeps: one system call then, none otherwise.
    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            let one = 1_u64;
            // SAFETY: eight readable bytes; a full counter needs no further ring.
            unsafe {
                libc::write(
                    self.other_end.as_ref().unwrap_or(&self.fd).as_raw_fd(),
                    (&raw const one).cast(),
                    size_of::<u64>(),
                )
            };
        }
    }

    /// Called by the sleeper before its last look at the ring.
    pub fn prepare_sleep(&self) {
        self.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Called by the sleeper when that look found something, or when it is awake again.
    pub fn awake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
        let mut rings = 0_u64;
        // SAFETY: eight writable bytes; an empty counter reads as `EAGAIN`.
        unsafe { libc::read(self.fd.as_raw_fd(), (&raw mut rings).cast(), size_of::<u64>()) };
    }
}

/// Wakes the leader, which sleeps on a futex.
#[derive(Default)]
pub struct LeaderBell {
    rings: AtomicU32,
    asleep: AtomicBool,
}

impl LeaderBell {
    /// Wakes the leader if it sleeps.
    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            self.rings.fetch_add(1, Ordering::SeqCst);
            futex::wake_all(&self.rings);
        }
    }

    /// Sleeps until a ring, unless `busy` says that there is work already.
    pub fn sleep_unless(&self, busy: impl Fn() -> bool) {
        for _ in 0..SPINS_BEFORE_SLEEP {
            if busy() {
                return;
            }
            std::hint::spin_loop();
        }
        let rings = self.rings.load(Ordering::SeqCst);
        self.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        while self.asleep.load(Ordering::SeqCst) {
            if busy() {
                self.asleep.store(false, Ordering::SeqCst);
                return;
            }
            futex::wait(&self.rings, rings);
            if self.rings.load(Ordering::SeqCst) != rings {
                return;
            }
        }
    }
}

/// A leader out of work looks this often for more before it sleeps: about 10 us.
const SPINS_BEFORE_SLEEP: u32 = 1_000;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn no_ring_is_lost_between_leader_and_ringer() {
        let bell = Arc::new(LeaderBell::default());
        let (mut producer, mut consumer) = rtrb::RingBuffer::<u32>::new(4);
        let ringer = Arc::clone(&bell);
        let sender = std::thread::spawn(move || {
            for i in 0..100_000 {
                while producer.push(i).is_err() {
                    std::thread::yield_now();
                }
                ringer.ring();
            }
        });
        let mut expected = 0;
        while expected < 100_000 {
            match consumer.pop() {
                Ok(value) => {
                    assert_eq!(value, expected);
                    expected += 1;
                }
                Err(_) => bell.sleep_unless(|| !consumer.is_empty()),
            }
        }
        sender.join().unwrap();
    }

    #[test]
    fn a_doorbell_is_readable_only_when_the_sleeper_slept() {
        let bell = Doorbell::new().unwrap();
        let mut word = [0_u8; 8];
        let mut read = || {
            // SAFETY: eight writable bytes.
            unsafe { libc::read(bell.raw_fd(), word.as_mut_ptr().cast(), 8) }
        };
        bell.ring();
        assert_eq!(read(), -1);
        bell.prepare_sleep();
        bell.ring();
        bell.ring();
        assert_eq!(read(), 8);
        assert_eq!(read(), -1);
    }
}
