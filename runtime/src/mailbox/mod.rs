//! How the executor of a shard and its leader wake each other: two bells beside the two bounded rings.
//!
//! Both follow one protocol. The sleeper says that it sleeps, looks at its ring once more, and only then sleeps; the
//! ringer puts its record into the ring first and then asks whether the other sleeps. Sequentially consistent
//! exchanges on both sides leave no order in which the record is missed (`tests/mailbox_model.rs` tries them all).
#![expect(unsafe_code, reason = "eventfd system calls")]

mod bell;
mod sync {
    pub(super) use std::sync::atomic::{AtomicBool, Ordering};
}
mod futex {
    pub(super) use crate::futex::Word;
}

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use bell::Asleep;
pub use bell::LeaderBell;

/// Wakes the executor, which sleeps in its driver until the descriptor is readable.
pub struct Doorbell {
    fd: OwnedFd,
    /// What is written to instead, where that is another descriptor.
    other_end: Option<OwnedFd>,
    asleep: Asleep,
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
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, other_end: None, asleep: Asleep::default() })
    }

    /// A bell for drivers that wait for sockets only.
    ///
    /// # Errors
    /// When no descriptors are to be had.
    pub fn socket() -> std::io::Result<Self> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        Ok(Self { fd: ours.into(), other_end: Some(theirs.into()), asleep: Asleep::default() })
    }

    /// The descriptor that becomes readable.
    #[must_use]
    pub fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Wakes the sleeper if it sleeps: one system call then, none otherwise.
    pub fn ring(&self) {
        if self.asleep.must_be_woken() {
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
        self.asleep.prepare();
    }

    /// Called by the sleeper when that look found something, or when it is awake again.
    pub fn awake(&self) {
        self.asleep.awake();
        let mut rings = 0_u64;
        // SAFETY: eight writable bytes; an empty counter reads as `EAGAIN`.
        unsafe { libc::read(self.fd.as_raw_fd(), (&raw mut rings).cast(), size_of::<u64>()) };
    }
}

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
                Err(_) => bell.sleep_unless(1000, || !consumer.is_empty()),
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
