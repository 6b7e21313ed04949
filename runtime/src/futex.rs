//! Waiting for a 32-bit word to change, across threads of this process.
#![expect(unsafe_code, reason = "the futex system call")]

use std::sync::atomic::{AtomicU32, Ordering};

/// Sleeps while `word` holds `expected`; may return early.
pub fn wait(word: &AtomicU32, expected: u32) {
    // SAFETY: the word outlives the call; a null timeout means none.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            expected,
            std::ptr::null::<libc::timespec>(),
        );
    }
}

/// Wakes every thread that waits for `word`.
pub fn wake_all(word: &AtomicU32) {
    // SAFETY: the word outlives the call.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, i32::MAX);
    }
}

/// A number that threads wait to see changed.
#[derive(Default)]
pub struct Word(AtomicU32);

impl Word {
    /// The number.
    #[must_use]
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }

    /// Changes it, and wakes everyone who waits.
    pub fn add_one_and_wake(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        wake_all(&self.0);
    }

    /// Sleeps while it is `number`; may return early.
    pub fn wait_while(&self, number: u32) {
        wait(&self.0, number);
    }
}
