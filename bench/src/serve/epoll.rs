//! Readiness of many sockets on one thread: edge-triggered epoll and connects that do not block.
#![expect(unsafe_code, reason = "std has neither epoll nor a non-blocking connect")]
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

#[derive(Debug)]
pub(crate) struct Epoll {
    fd: OwnedFd,
}

impl Epoll {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: the call takes a flag and touches no memory of ours.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Reports every later edge of `fd`, readable and writable, under `key`. Closing the descriptor ends it.
    pub(crate) fn add(&self, fd: RawFd, key: u64) -> io::Result<()> {
        let interest = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        let mut event = libc::epoll_event { events: interest as u32, u64: key };
        // SAFETY: `event` is live for the call, which copies it.
        check(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) })?;
        Ok(())
    }

    /// Replaces `keys` by those with an edge, waiting for one at most `timeout`; a signal ends the wait early.
    pub(crate) fn wait(&self, keys: &mut Vec<u64>, timeout: Duration) -> io::Result<()> {
        keys.clear();
        let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let timeout = libc::timespec {
            tv_sec: timeout.as_secs().min(TIMEOUT_S_MAX) as libc::time_t,
            tv_nsec: libc::c_long::from(timeout.subsec_nanos().cast_signed()),
        };
        // ppoll for its nanoseconds: epoll_wait counts in milliseconds, and arrivals come between.
        // SAFETY: one pollfd and the timespec are live for the call; a null signal mask changes none.
        let ready = retry_later(unsafe { libc::ppoll(&raw mut poll, 1, &raw const timeout, ptr::null()) })?;
        if ready == 0 {
            return Ok(());
        }
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_PER_WAIT];
        let room = EVENTS_PER_WAIT as libc::c_int;
        // SAFETY: `events` has room for the number of events that is passed.
        let count = retry_later(unsafe { libc::epoll_wait(self.fd.as_raw_fd(), events.as_mut_ptr(), room, 0) })?;
        keys.extend(events.iter().take(count as usize).map(|event| event.u64));
        Ok(())
    }
}

/// A socket on its way to `address`: writable once connected, in error if refused.
pub(crate) fn connect(address: &SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: the call takes integers and touches no memory of ours.
    let fd = check(unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
    let stream = TcpStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
    stream.set_nodelay(true)?;
    let status = match address {
        SocketAddr::V4(v4) => {
            let raw = libc::sockaddr_in {
                sin_family: family as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: `raw` is a live sockaddr_in of the size that is passed.
            unsafe { libc::connect(fd, (&raw const raw).cast(), size_of_val(&raw) as libc::socklen_t) }
        }
        SocketAddr::V6(v6) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: family as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: `raw` is a live sockaddr_in6 of the size that is passed.
            unsafe { libc::connect(fd, (&raw const raw).cast(), size_of_val(&raw) as libc::socklen_t) }
        }
    };
    match check(status) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(stream),
    }
}

/// Lets the process open as many descriptors as it may, and its waits end on time, also beside a server that keeps all
/// cores busy; none of this is needed to go on.
pub(crate) fn raise_limits() {
    tuning::raise_open_files();
    tuning::take_short_turns();
    // SAFETY: this prctl takes an integer; the default slack of 50 us would delay arrivals.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
}

fn check(status: libc::c_int) -> io::Result<libc::c_int> {
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(status) }
}

fn retry_later(status: libc::c_int) -> io::Result<libc::c_int> {
    match check(status) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        other => other,
    }
}

const EVENTS_PER_WAIT: usize = 256;
const TIMEOUT_S_MAX: u64 = 3600;
