//! How many files the process may have open, and how much memory it may lock.
#![expect(unsafe_code, reason = "resource limits are libc calls")]

/// Raises the soft limit to the hard one and says what it is now; 0 where the kernel does not tell.
///
/// Distributions keep the soft limit at 1,024 for programs that use `select`; a server with more connections asks for more.
pub fn raise_open_files() -> u64 {
    raise(libc::RLIMIT_NOFILE)
}

/// Raises the soft limit on locked memory to the hard one and says what it is now, in bytes. Rings of io_uring count
/// against it, too.
pub fn raise_locked_memory() -> u64 {
    raise(libc::RLIMIT_MEMLOCK)
}

/// The limit on locked memory; `None` where there is none.
pub(crate) fn locked_memory_bytes() -> Option<u64> {
    get(libc::RLIMIT_MEMLOCK).map(|limit| limit.rlim_cur).filter(|bytes| *bytes != libc::RLIM_INFINITY)
}

fn raise(resource: libc::__rlimit_resource_t) -> u64 {
    let Some(mut limit) = get(resource) else { return 0 };
    let soft = limit.rlim_cur;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is live for the call.
    if unsafe { libc::setrlimit(resource, &raw const limit) } == 0 { limit.rlim_max } else { soft }
}

fn get(resource: libc::__rlimit_resource_t) -> Option<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is live and writable for the call.
    (unsafe { libc::getrlimit(resource, &raw mut limit) } == 0).then_some(limit)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_second_raise_changes_nothing() {
        for raise in [super::raise_open_files, super::raise_locked_memory] {
            let first = raise();
            assert!(first > 0);
            assert_eq!(raise(), first);
        }
    }
}
