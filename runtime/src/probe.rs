//! Whether io_uring may be used here, asked of the kernel before any runtime makes a ring.
//!
//! A container's seccomp filter, `kernel.io_uring_disabled` or a small RLIMIT_MEMLOCK refuse it; serving then goes
//! through epoll.

use io_uring::{IoUring, Probe, opcode};

/// How sockets are driven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Io {
    IoUring,
    /// io_uring was refused, and why; or epoll was asked for.
    Epoll {
        reason: String,
    },
    /// io_uring by glommio, for comparison.
    Glommio,
}

/// Makes `rings` rings of the size and with the flags that the executors will use, and drops them again.
#[must_use]
pub fn probe(rings: usize) -> Io {
    let mut made: Vec<IoUring> = Vec::with_capacity(rings);
    for _ in 0..rings {
        match IoUring::builder().setup_coop_taskrun().setup_single_issuer().build(RING_ENTRIES) {
            Ok(ring) => made.push(ring),
            Err(error) => return Io::Epoll { reason: format!("io_uring is refused: {error}") },
        }
    }
    let mut operations = Probe::new();
    let Some(ring) = made.first() else { return Io::IoUring };
    if let Err(error) = ring.submitter().register_probe(&mut operations) {
        return Io::Epoll { reason: format!("io_uring can't be asked for its operations: {error}") };
    }
    match NEEDED.iter().find(|(_, code)| !operations.is_supported(*code)) {
        Some((name, _)) => Io::Epoll { reason: format!("this kernel's io_uring lacks {name}") },
        None => Io::IoUring,
    }
}

/// Submission queue entries of an executor's ring.
pub const RING_ENTRIES: u32 = 1024;

const NEEDED: [(&str, u8); 6] = [
    ("accept", opcode::Accept::CODE),
    ("recv", opcode::Recv::CODE),
    ("send", opcode::Send::CODE),
    ("poll", opcode::PollAdd::CODE),
    ("timeout", opcode::Timeout::CODE),
    ("cancel", opcode::AsyncCancel::CODE),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_answers_without_a_panic() {
        match probe(2) {
            Io::IoUring | Io::Glommio => {}
            Io::Epoll { reason } => assert!(!reason.is_empty()),
        }
    }
}
