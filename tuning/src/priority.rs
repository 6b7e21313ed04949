//! Who goes first on a busy core.
#![expect(unsafe_code, reason = "priorities are libc calls")]

/// Makes the calling thread, and threads that it starts later, give way to threads of ordinary priority: it gets
/// about a tenth of a core that such a thread wants for itself. Needs no privilege; whether it was granted.
pub fn give_way() -> bool {
    // SAFETY: no pointers are involved; on Linux the call is about the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) == 0 }
}

/// The kernel weighs it at 110 of an ordinary thread's 1024.
const NICE: libc::c_int = 10;

#[cfg(test)]
mod tests {
    #[test]
    fn only_the_calling_thread_gives_way() {
        // SAFETY: no pointers are involved.
        let nice = || unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        let before = nice();
        let given = std::thread::spawn(move || {
            assert!(super::give_way());
            nice()
        });
        assert_eq!(given.join().unwrap(), super::NICE.max(before));
        assert_eq!(nice(), before);
    }
}
