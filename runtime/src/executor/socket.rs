//! Sockets of an executor: who connects, what is read, what is written.

use std::future::poll_fn;
use std::io;
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::pin::{Pin, pin};
use std::time::Duration;

use futures_lite::{AsyncRead, AsyncWrite};
use monoio::buf::IoBuf;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt, OwnedReadHalf, OwnedWriteHalf, Splitable};
use socket2::Socket;

use super::{Backend, backend};

/// Waits for a listening socket's clients.
pub struct Listener {
    socket: Socket,
    waiting: Waiting,
}

/// Who tells that a client is there. glommio has no wait for a listener: it takes the client itself.
enum Waiting {
    Monoio(monoio::net::TcpListener),
    Glommio(glommio::net::TcpListener),
}

impl Listener {
    /// Registers a listening socket, of whatever family, with the executor that runs on this thread.
    ///
    /// # Errors
    /// The system's.
    #[expect(unsafe_code, reason = "glommio takes listeners as bare descriptors")]
    pub fn new(socket: impl Into<OwnedFd>) -> io::Result<Self> {
        let socket = Socket::from(socket.into());
        socket.set_nonblocking(true)?;
        let copy = socket.try_clone()?;
        let waiting = match backend() {
            Backend::MonoioUring | Backend::MonoioEpoll => {
                Waiting::Monoio(monoio::net::TcpListener::from_std(copy.into())?)
            }
            Backend::Glommio => {
                let fd = copy.into_raw_fd();
                // SAFETY: the descriptor is a listener's and owned by nobody else.
                Waiting::Glommio(unsafe { glommio::net::TcpListener::from_raw_fd(fd) })
            }
        };
        Ok(Self { socket, waiting })
    }

    /// The next client. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// The system's; [`Self::shut_down`] makes every later call fail.
    pub async fn accept(&self) -> io::Result<OwnedFd> {
        match &self.waiting {
            Waiting::Monoio(ready) => loop {
                match self.socket.accept() {
                    Ok((stream, _)) => return Ok(stream.into()),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.readable(false).await?,
                    Err(error) => return Err(error),
                }
            },
            Waiting::Glommio(listener) => borrow(&listener.accept().await?).try_clone_to_owned(),
        }
    }

    /// Takes no more clients: a waiting [`Self::accept`] fails.
    pub fn shut_down(&self) {
        // One that can't be shut down is shut down.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

/// glommio's streams know their descriptor only as a number.
#[expect(unsafe_code, reason = "a bare descriptor is borrowed")]
fn borrow(stream: &glommio::net::TcpStream) -> BorrowedFd<'_> {
    // SAFETY: the stream owns the descriptor for as long as the borrow lasts.
    unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) }
}

/// What a client sends.
pub enum ReadHalf {
    Monoio {
        half: OwnedReadHalf<monoio::net::TcpStream>,
        /// Reads since the last that had to wait.
        at_once: u32,
    },
    Glommio(glommio::net::TcpStream),
}

/// What is sent to a client.
pub enum WriteHalf {
    Monoio(OwnedWriteHalf<monoio::net::TcpStream>),
    Glommio(glommio::net::TcpStream),
}

/// Registers a connected socket with the executor that runs on this thread. The descriptor given with the halves stays
/// open as long as the writing one lives.
///
/// # Errors
/// The system's.
#[expect(unsafe_code, reason = "glommio takes streams as bare descriptors")]
pub fn halves(socket: OwnedFd) -> io::Result<(ReadHalf, WriteHalf, RawFd)> {
    match backend() {
        backend @ (Backend::MonoioUring | Backend::MonoioEpoll) => {
            let stream = TcpStream::from(socket);
            // io_uring waits for sockets that block, and fails on others; epoll's calls must not block.
            stream.set_nonblocking(backend == Backend::MonoioEpoll)?;
            let stream = monoio::net::TcpStream::from_std(stream)?;
            let fd = stream.as_raw_fd();
            let (read, write) = stream.into_split();
            Ok((ReadHalf::Monoio { half: read, at_once: 0 }, WriteHalf::Monoio(write), fd))
        }
        Backend::Glommio => {
            // A glommio stream can't be split without a lock: each half has a descriptor of its own.
            let copy = socket.try_clone()?;
            let take = |socket: OwnedFd| {
                // SAFETY: the descriptor is a stream's and owned by nobody else.
                unsafe { glommio::net::TcpStream::from_raw_fd(socket.into_raw_fd()) }
            };
            let (read, write) = (take(copy), take(socket));
            let fd = write.as_raw_fd();
            Ok((ReadHalf::Glommio(read), WriteHalf::Glommio(write), fd))
        }
    }
}

impl ReadHalf {
    /// Fills `buffer` from its start with what there is, and gives it back: 0 is the client's end.
    pub async fn read(&mut self, mut buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        match self {
            Self::Monoio { half, at_once } => {
                // On epoll a client who always has more to say would never let monoio come to its timers: only once all
                // tasks wait does it look at them.
                if *at_once == READS_AT_ONCE_MAX {
                    *at_once = 0;
                    super::sleep(Duration::ZERO).await;
                }
                let mut reading = pin!(half.read(buffer));
                let mut looks = 0;
                let result = poll_fn(|context| {
                    looks += 1;
                    reading.as_mut().poll(context)
                });
                let result = result.await;
                *at_once = if looks == 1 { *at_once + 1 } else { 0 };
                result
            }
            Self::Glommio(stream) => {
                glommio::executor().yield_if_needed().await;
                let result = poll_fn(|context| Pin::new(&mut *stream).poll_read(context, &mut buffer)).await;
                (result, buffer)
            }
        }
    }
}

impl WriteHalf {
    /// Sends all of that part of `bytes`, and gives the buffer back.
    pub async fn write_all(&mut self, bytes: Vec<u8>, part: Range<usize>) -> (io::Result<()>, Vec<u8>) {
        match self {
            Self::Monoio(half) => {
                let (result, part) = half.write_all(bytes.slice(part)).await;
                (result.map(|_| ()), part.into_inner())
            }
            Self::Glommio(stream) => {
                let Range { start: mut sent, end } = part;
                while sent < end {
                    match poll_fn(|context| Pin::new(&mut *stream).poll_write(context, &bytes[sent..end])).await {
                        Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), bytes),
                        Ok(count) => sent += count,
                        Err(error) => return (Err(error), bytes),
                    }
                }
                (Ok(()), bytes)
            }
        }
    }
}

/// Waits for a descriptor of another's to become readable.
pub(super) enum Readable {
    Monoio(monoio::net::UnixStream),
    /// A socket; glommio waits for no others.
    Glommio(glommio::net::TcpStream),
}

impl Readable {
    /// # Errors
    /// When the descriptor can't be duplicated or registered.
    #[expect(unsafe_code, reason = "the driver polls a duplicate of the descriptor")]
    pub(super) fn new(fd: RawFd) -> io::Result<Self> {
        // SAFETY: no pointers are involved.
        let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
        if copy < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(match backend() {
            Backend::MonoioUring | Backend::MonoioEpoll => {
                // SAFETY: the duplicate is owned by nobody else. The driver only polls it for readability, which every
                // descriptor has; nothing is received through the socket type.
                let stream = unsafe { std::os::unix::net::UnixStream::from_raw_fd(copy) };
                Self::Monoio(monoio::net::UnixStream::from_std(stream)?)
            }
            // SAFETY: the duplicate is owned by nobody else. It is only peeked at.
            Backend::Glommio => Self::Glommio(unsafe { glommio::net::TcpStream::from_raw_fd(copy) }),
        })
    }

    /// # Errors
    /// The driver's.
    pub(super) async fn wait(&self) -> io::Result<()> {
        match self {
            Self::Monoio(stream) => stream.readable(false).await,
            Self::Glommio(stream) => Ok(stream.peek(&mut [0]).await.map(|_| ())?),
        }
    }
}

/// Reads that a client may have answered without a wait before others get a turn, of at most a timer's millisecond.
const READS_AT_ONCE_MAX: u32 = 64;
