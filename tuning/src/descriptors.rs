//! How many files and sockets the process may have open.
#![expect(unsafe_code, reason = "resource limits are libc calls")]

/// Raises the soft limit to the hard one and says what it is now; 0 where the kernel does not tell.
///
/// Distributions keep the soft limit at 1,024 for programs that use `select`; a server with more connections asks for more.
pub fn raise_open_files() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is live and writable for the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return 0;
    }
    let soft = limit.rlim_cur;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is live for the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == 0 { limit.rlim_max } else { soft }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_second_raise_changes_nothing() {
        let first = super::raise_open_files();
        assert!(first > 0);
        assert_eq!(super::raise_open_files(), first);
    }
}
