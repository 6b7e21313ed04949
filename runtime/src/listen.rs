//! The listening sockets of the shards: one port for all, over which the kernel spreads connections.
#![expect(unsafe_code, reason = "a socket option that no crate has")]

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, Socket, Type};
use tuning::CpuId;

/// Opens a listener for each shard, in their order. Clients' sockets inherit their options.
///
/// With `steering`, the cpus of each shard, a connection goes to the shard that has the cpu which received its first
/// packet, and by hash where none has it; without, always by hash.
///
/// # Errors
/// When the address can't be listened on, or the kernel refuses to steer.
pub fn listeners(address: SocketAddr, count: usize, steering: Option<&[Vec<CpuId>]>) -> io::Result<Vec<TcpListener>> {
    let listeners = (0..count).map(|_| listener(address, count > 1)).collect::<io::Result<Vec<_>>>()?;
    if let (Some(cpus), Some(first)) = (steering, listeners.first())
        && count > 1
    {
        steer(first, &program(cpus))?;
    }
    Ok(listeners)
}

fn listener(address: SocketAddr, share_port: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(share_port)?;
    socket.set_nodelay(true)?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    set_unsent_max(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    Ok(socket.into())
}

/// What the kernel takes of a stream before its client has taken what was sent.
fn set_unsent_max(socket: &Socket) -> io::Result<()> {
    set_option(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, &UNSENT_BYTES_MAX)
}

/// Gives the program to the group of sockets that share the port.
fn steer(listener: &TcpListener, program: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::Error::other("too many cpus to steer by"))?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    set_option(listener.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, &program)
}

fn set_option<T>(fd: i32, level: i32, name: i32, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).expect("options are small");
    // SAFETY: the value is readable for its size, as is all that it points to.
    let result = unsafe { libc::setsockopt(fd, level, name, std::ptr::from_ref(value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Classic BPF that returns the number of the shard that has the cpu on which it runs, and a number that no shard has,
/// which means by hash, where none has it.
fn program(cpus: &[Vec<CpuId>]) -> Vec<libc::sock_filter> {
    let step = |code: u32, jump_if_false: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).expect("operation codes have 16 bits"),
        jt: 0,
        jf: jump_if_false,
        k,
    };
    let mut program = vec![step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, CPU_OF_PACKET)];
    for (shard, cpus) in cpus.iter().enumerate() {
        for cpu in cpus {
            program.push(step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, cpu.0));
            program.push(step(libc::BPF_RET | libc::BPF_K, 0, u32::try_from(shard).unwrap_or(u32::MAX)));
        }
    }
    program.push(step(libc::BPF_RET | libc::BPF_K, 0, u32::MAX));
    program
}

/// `SKF_AD_OFF + SKF_AD_CPU` of linux/filter.h: the offset under which a filter loads the number of its cpu.
const CPU_OF_PACKET: u32 = (-0x1000_i32 + 36) as u32;
const LISTEN_BACKLOG: i32 = 4096;
/// The kernel doubles it for its own bookkeeping. What it holds for a client that doesn't read is bounded, too.
const SEND_BUFFER_BYTES: usize = 128 << 10;
/// Tokens that wait should wait as ids with us, not as bytes in the kernel.
const UNSENT_BYTES_MAX: libc::c_int = 16 << 10;
