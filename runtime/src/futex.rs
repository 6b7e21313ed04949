//! Waiting for a 32-bit word to change, across threads of this process.
#![expect(unsafe_code, reason = "the futex system call")]

use std::sync::atomic::AtomicU32;

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
