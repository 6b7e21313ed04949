//! SIGTERM and SIGINT as values that the main thread waits for.
#![expect(unsafe_code, reason = "signal mask system calls")]

use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

/// Lets a pipe whose reader is gone end this process, as is usual for commands: `bitnetd inspect FILE | head` is no error.
pub fn end_with_the_reader() {
    // SAFETY: no handler of ours is replaced, and none is set.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Termination signals, blocked in every thread that is started later.
pub struct Termination {
    set: libc::sigset_t,
}

impl Termination {
    /// Blocks SIGTERM and SIGINT in this thread and those that it starts.
    ///
    /// # Errors
    /// The kernel's.
    pub fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: the set is written before it is read.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: initialised by the line above.
        let mut set = unsafe { set.assume_init() };
        for signal in [libc::SIGTERM, libc::SIGINT] {
            // SAFETY: a valid set and a valid signal.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: a valid set; the old mask is not wanted.
        let code = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if code != 0 {
            return Err(io::Error::from_raw_os_error(code));
        }
        Ok(Self { set })
    }

    /// Waits for a termination signal, at most `timeout`; whether one came.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> bool {
        let timeout = libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
        };
        // SAFETY: a valid set and timeout; details of the signal are not wanted.
        unsafe { libc::sigtimedwait(&raw const self.set, std::ptr::null_mut(), &raw const timeout) > 0 }
    }
}
