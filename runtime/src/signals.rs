//! Signals as values that the main thread waits for.
#![expect(unsafe_code, reason = "signal mask system calls")]

use std::io::{self, IsTerminal};
use std::mem::MaybeUninit;
use std::time::Duration;

/// Lets a pipe whose reader is gone end this process, as is usual for commands: `bitnetd inspect FILE | head` is no error.
pub fn end_with_the_reader() {
    // SAFETY: no handler of ours is replaced, and none is set.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// What a signal says to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Drain and end.
    End,
    /// Read the configuration again.
    Reload,
    /// Its name; nothing follows from it.
    Nothing(&'static str),
}

/// Signals that would end the process, blocked in every thread that is started later.
pub struct Signals {
    set: libc::sigset_t,
    /// SIGHUP means that the terminal is gone, and not that settings are to be read again.
    on_terminal: bool,
}

impl Signals {
    /// Blocks them in this thread and those that it starts.
    ///
    /// # Errors
    /// The kernel's.
    pub fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: the set is written before it is read.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: initialised by the line above.
        let mut set = unsafe { set.assume_init() };
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2] {
            // SAFETY: a valid set and a valid signal.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: a valid set; the old mask is not wanted.
        let code = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if code != 0 {
            return Err(io::Error::from_raw_os_error(code));
        }
        Ok(Self { set, on_terminal: io::stderr().is_terminal() })
    }

    /// Waits for a signal, at most `timeout`.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> Option<Told> {
        let timeout = libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
        };
        // SAFETY: a valid set and timeout; details of the signal are not wanted.
        match unsafe { libc::sigtimedwait(&raw const self.set, std::ptr::null_mut(), &raw const timeout) } {
            libc::SIGTERM | libc::SIGINT => Some(Told::End),
            libc::SIGHUP if self.on_terminal => Some(Told::End),
            libc::SIGHUP => Some(Told::Reload),
            libc::SIGUSR1 => Some(Told::Nothing("SIGUSR1")),
            libc::SIGUSR2 => Some(Told::Nothing("SIGUSR2")),
            _ => None,
        }
    }
}
