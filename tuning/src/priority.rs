//! Who goes first on a busy core.
#![expect(unsafe_code, reason = "priorities are libc calls")]

use std::time::Duration;

/// Makes the calling thread, and threads that it starts later, give way to threads of ordinary priority: it gets
/// about a tenth of a core that such a thread wants for itself. Needs no privilege; whether it was granted.
pub fn give_way() -> bool {
    // SAFETY: no pointers are involved; on Linux the call is about the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) == 0 }
}

/// Gives the calling thread short turns: it is interrupted sooner, and in return goes before threads with longer turns
/// as soon as it has something to do. Needs no privilege; whether it was granted. Kernels before 6.12 grant it and take
/// no notice.
pub fn take_short_turns() -> bool {
    let mut attributes = SchedAttr::default();
    let size = size_of::<SchedAttr>() as libc::c_uint;
    // SAFETY: `attributes` is writable and of the size that is passed; 0 is the calling thread, and no flags.
    let known = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    attributes.size = size;
    attributes.runtime_ns = TURN_NS;
    // SAFETY: `attributes` is readable and says its own size; 0 is the calling thread, and no flags.
    known == 0 && unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) == 0 }
}

/// How long the calling thread has had a core.
#[must_use]
pub fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable. The clock is there on every Linux; else the time is 0.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs().try_into().unwrap_or(0))
}

/// The kernel's `struct sched_attr` in its first version.
#[derive(Debug, Default)]
#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    /// Of a thread of ordinary priority: the length of its turns.
    runtime_ns: u64,
    deadline_ns: u64,
    period_ns: u64,
}

/// The shortest turn that kernels grant.
const TURN_NS: u64 = 100_000;
/// The kernel weighs it at 110 of an ordinary thread's 1024.
const NICE: libc::c_int = 10;

#[cfg(test)]
mod tests {
    #[test]
    fn a_thread_knows_how_long_it_has_had_a_core() {
        let begun = super::thread_time();
        while super::thread_time() < begun + std::time::Duration::from_millis(1) {}
        let other = std::thread::spawn(super::thread_time).join().unwrap();
        assert!(other < super::thread_time());
    }

    #[test]
    fn short_turns_are_granted_to_anybody() {
        assert!(std::thread::spawn(super::take_short_turns).join().unwrap());
    }

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
