//! What the tasks of one connection share: received bytes, deadlines, and who wakes whom.

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::shutdown;
use super::tls::Tls;
use crate::executor::{ReadHalf, Signal, WriteHalf, contain};
use crate::otlp::Computed;
use crate::receipts::Receipt;

/// One client connection.
pub(super) struct Peer {
    pub(super) fd: RawFd,
    /// It came by the Unix socket, whose permissions say who may.
    pub(super) is_local: bool,
    /// Where it speaks TLS.
    pub(super) tls: Option<Tls>,
    /// Its address, once that was asked; none on the Unix socket.
    pub(super) address: OnceCell<Option<IpAddr>>,
    /// Received and not yet looked at; bounded by [`INBOX_BYTES_MAX`] and one read.
    pub(super) inbox: RefCell<Vec<u8>>,
    /// The client has sent its last byte, or is gone.
    pub(super) gone: Cell<bool>,
    /// A request is being answered.
    pub(super) busy: Cell<bool>,
    /// Wakes the connection's task.
    pub(super) wake: Rc<Signal>,
    /// Wakes the reading task, which waits for room.
    room: Signal,
    closed: Cell<bool>,
    /// The reading task is over.
    pub(super) read_ended: Signal,
    /// When the task wants to be woken even if nothing arrives.
    pub(super) wake_at: Cell<Option<Instant>>,
    /// When a write that doesn't proceed is given up.
    write_until: Cell<Option<Instant>>,
    /// What is to be said if the executor breaks down under the answer in progress: all of a refusal, or an event that
    /// ends the stream.
    parting: RefCell<Vec<u8>>,
    /// The request in progress is traced; then what computed its answer, once that has ended.
    pub(super) is_traced: Cell<bool>,
    pub(super) computed: RefCell<Option<Computed>>,
    /// When every write is given up, as the server ends.
    writes_end: Cell<Option<Instant>>,
}

impl Peer {
    pub(super) fn new(fd: RawFd, is_local: bool, tls: Option<Tls>) -> Self {
        Self {
            fd,
            is_local,
            tls,
            address: OnceCell::new(),
            inbox: RefCell::default(),
            gone: Cell::new(false),
            busy: Cell::new(false),
            wake: Rc::default(),
            room: Signal::default(),
            closed: Cell::new(false),
            read_ended: Signal::default(),
            wake_at: Cell::new(None),
            write_until: Cell::new(None),
            parting: RefCell::default(),
            is_traced: Cell::new(false),
            computed: RefCell::default(),
            writes_end: Cell::new(None),
        }
    }

    /// What seals all that is sent, where that is not in clear.
    fn sealed(&self) -> Option<&Tls> {
        self.tls.as_ref().filter(|tls| !tls.is_clear())
    }

    /// Whether nothing was received that is not answered yet.
    pub(super) fn is_idle(&self) -> bool {
        !self.busy.get() && self.inbox.borrow().is_empty()
    }

    /// Gives up writes that are still on their way at `until`.
    pub(super) fn end_writes_at(&self, until: Instant) {
        self.writes_end.set(Some(until));
        self.write_until.set(self.write_until.get().map(|at| at.min(until)));
    }

    /// Wakes or cuts off what has waited until `now`.
    pub(super) fn check_deadlines(&self, now: Instant) {
        if self.write_until.get().is_some_and(|at| at <= now) {
            shutdown(self.fd);
        }
        if self.wake_at.get().is_some_and(|at| at <= now) {
            self.wake.notify();
        }
    }

    /// The answer in progress has ended.
    pub(super) fn end_answer(&self) {
        self.busy.set(false);
        self.parting.borrow_mut().clear();
    }

    /// Keeps what a trace tells of the model's work.
    pub(super) fn computed(&self, model: &str, receipt: Receipt) {
        if self.is_traced.get() {
            *self.computed.borrow_mut() = Some(Computed { model: model.to_owned(), receipt });
        }
    }

    /// Ends the connection outside any executor, with what is left to say where nothing is half written.
    pub(super) fn part(&self) {
        let words = self.parting.take();
        if !words.is_empty() && self.write_until.get().is_none() {
            match &self.tls {
                Some(tls) => send_at_once(self.fd, &tls.last_records(&words)),
                None => send_at_once(self.fd, &words),
            }
        }
        shutdown(self.fd);
    }

    /// Takes at most `max` of the received bytes; `out` is empty.
    pub(super) fn take_inbox(&self, max: usize, out: &mut Vec<u8>) {
        let mut inbox = self.inbox.borrow_mut();
        if inbox.len() <= max {
            std::mem::swap(&mut *inbox, out);
        } else {
            out.extend(inbox.drain(..max));
        }
        self.room.notify();
    }

    /// Lets the reading task end.
    pub(super) fn close(&self) {
        self.closed.set(true);
        self.room.notify();
    }
}

/// Reads for as long as the connection lives, also while an answer is being written, so that a client who leaves is
/// noticed at once. No read is ever cancelled.
pub(super) async fn read(half: ReadHalf, peer: Rc<Peer>) {
    contain(fill_inbox(half, &peer)).await;
    peer.gone.set(true);
    peer.wake.notify();
    peer.read_ended.notify();
}

async fn fill_inbox(mut half: ReadHalf, peer: &Peer) {
    let mut buffer = vec![0; READ_BYTES];
    while !peer.closed.get() {
        if peer.inbox.borrow().len() >= INBOX_BYTES_MAX {
            peer.room.wait().await;
            continue;
        }
        let (result, back) = half.read(buffer).await;
        buffer = back;
        match result {
            Ok(0) | Err(_) => break,
            Ok(count) => match &peer.tls {
                None => peer.inbox.borrow_mut().extend_from_slice(&buffer[..count]),
                Some(tls) => {
                    if !tls.receive(&mut buffer[..count], &peer.inbox, || peer.closed.get()).await {
                        break;
                    }
                }
            },
        }
        peer.wake.notify();
    }
}

/// The writing half with its buffer.
pub(super) struct Writer {
    half: WriteHalf,
    peer: Rc<Peer>,
    pub(super) out: Vec<u8>,
    /// How often something was sent.
    pub(super) sends: u64,
    /// Of the last answer.
    pub(super) status: u16,
    /// Until when the piece of a long answer must be taken, and what of it was sent.
    piece: Option<(Instant, usize)>,
}

impl Writer {
    pub(super) fn new(half: WriteHalf, peer: Rc<Peer>) -> Self {
        Self { half, peer, out: Vec::with_capacity(OUT_BYTES), sends: 0, status: 0, piece: None }
    }

    /// Whether so much waits to be sent that more would only take memory.
    pub(super) fn is_full(&self) -> bool {
        self.out.len() >= OUT_BYTES_MAX
    }

    /// What is to be said if the executor breaks down from now on. Where earlier answers wait to be sent it would be
    /// taken for one of them: nothing is said then.
    pub(super) fn part_with(&self, words: impl FnOnce(&mut Vec<u8>)) {
        let mut parting = self.peer.parting.borrow_mut();
        parting.clear();
        if self.out.is_empty() {
            words(&mut parting);
        }
    }

    /// Sends what is in `out`, which is a small piece of a long answer: several have the time of a big one.
    pub(super) async fn flush_piece(&mut self) -> io::Result<()> {
        let sent = self.piece.map_or(0, |(_, sent)| sent) + self.out.len();
        let until = self.piece.map_or_else(|| Instant::now() + WRITE_STALL_MAX, |(until, _)| until);
        let result = self.flush_until(Some(until)).await;
        self.piece = (sent < PIECE_BYTES_MAX).then_some((until, sent));
        result
    }

    /// Sends what is in `out`: one send for everything that came together since the last, unless it is a big body.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        self.piece = None;
        self.flush_until(None).await
    }

    /// Sends what is in `out`, after which nothing more is sent.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        if self.out.len() > PIECE_BYTES_MAX {
            self.flush().await?;
        }
        if let Some(tls) = self.peer.sealed() {
            // One send for both.
            tls.seal(&self.out).map_err(io::Error::other)?;
            self.out.clear();
            tls.close();
        }
        self.flush().await
    }

    async fn flush_until(&mut self, until: Option<Instant>) -> io::Result<()> {
        if self.peer.sealed().is_some() {
            return self.flush_sealed(until).await;
        }
        if self.out.is_empty() {
            return Ok(());
        }
        self.sends += 1;
        let mut out = std::mem::take(&mut self.out);
        let (mut result, mut sent) = (Ok(()), 0);
        while sent < out.len() && result.is_ok() {
            self.set_write_until(until);
            let end = out.len().min(sent + PIECE_BYTES_MAX);
            (result, out) = self.half.write_all(out, sent..end).await;
            sent = end;
        }
        self.peer.write_until.set(None);
        out.clear();
        // One big answer must not take memory for as long as its connection lives.
        self.out = if out.capacity() > OUT_BYTES_MAX { Vec::with_capacity(OUT_BYTES) } else { out };
        result
    }

    /// The same in records, behind those that wait to be sent.
    async fn flush_sealed(&mut self, until: Option<Instant>) -> io::Result<()> {
        let peer = Rc::clone(&self.peer);
        let Some(tls) = peer.sealed() else { return Ok(()) };
        self.sends += u64::from(!self.out.is_empty());
        let (mut result, mut sent) = (Ok(()), 0);
        while result.is_ok() && (sent < self.out.len() || tls.has_records()) {
            let end = self.out.len().min(sent + PIECE_BYTES_MAX);
            result = tls.seal(&self.out[sent..end]).map_err(io::Error::other);
            sent = end;
            if result.is_ok() {
                self.set_write_until(until);
                let mut records = tls.take_records();
                let all = 0..records.len();
                (result, records) = self.half.write_all(records, all).await;
                tls.give_back(records);
            }
        }
        peer.write_until.set(None);
        self.out.clear();
        result
    }

    fn set_write_until(&self, until: Option<Instant>) {
        let until = until.unwrap_or_else(|| Instant::now() + WRITE_STALL_MAX);
        self.peer.write_until.set(Some(self.peer.writes_end.get().map_or(until, |end| end.min(until))));
    }
}

/// Sends as much of `bytes` as the socket takes now.
#[expect(unsafe_code, reason = "a socket system call")]
fn send_at_once(fd: RawFd, bytes: &[u8]) {
    // SAFETY: the bytes are readable for their length; a client that is gone is an ignored error.
    unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
}

const READ_BYTES: usize = 8 << 10;
const INBOX_BYTES_MAX: usize = 64 << 10;
const OUT_BYTES: usize = 2 << 10;
const OUT_BYTES_MAX: usize = 64 << 10;
/// So much of an answer must be taken within [`WRITE_STALL_MAX`]: 8 KiB a second do.
const PIECE_BYTES_MAX: usize = 256 << 10;
/// A client that takes a piece of an answer no sooner is cut off.
const WRITE_STALL_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc::sync_channel;

    use super::*;
    use crate::executor;
    use crate::probe::Io;

    #[test]
    fn who_takes_a_big_answer_slowly_has_time_for_each_piece_of_it() {
        // Twice what a socket holds, and more.
        const HALF_BYTES: usize = 32 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = listener.accept().unwrap().0;
        let (half, is_half) = sync_channel(1);
        let (go_on, may_go_on) = sync_channel::<()>(1);
        let serving = async {
            let (_reading, writing, fd) = executor::halves(socket.into()).unwrap();
            let peer = Rc::new(Peer::new(fd, false, None));
            let mut writer = Writer::new(writing, Rc::clone(&peer));
            writer.out = vec![7; 2 * HALF_BYTES];
            executor::spawn(async move { writer.flush().await.unwrap() });
            let pause = || executor::sleep(Duration::from_millis(1));
            while peer.write_until.get().is_none() {
                pause().await;
            }
            let first = peer.write_until.get();
            let taking = std::thread::spawn(move || {
                let mut bytes = vec![0; HALF_BYTES];
                client.read_exact(&mut bytes).unwrap();
                half.send(()).unwrap();
                if may_go_on.recv().is_ok() {
                    client.read_exact(&mut bytes).unwrap();
                }
            });
            while is_half.try_recv().is_err() {
                pause().await;
            }
            assert!(peer.write_until.get() > first, "the whole has the time of a piece");
            go_on.send(()).unwrap();
            while peer.write_until.get().is_some() {
                pause().await;
            }
            taking.join().unwrap();
        };
        executor::run(&Io::Epoll { reason: String::new() }, serving).unwrap();
    }

    #[test]
    fn small_pieces_of_a_long_answer_have_the_time_of_a_big_one() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = listener.accept().unwrap().0;
        let taking = std::thread::spawn(move || io::copy(&mut client, &mut io::sink()).unwrap());
        let serving = async {
            let (_reading, writing, fd) = executor::halves(socket.into()).unwrap();
            let peer = Rc::new(Peer::new(fd, false, None));
            let mut writer = Writer::new(writing, Rc::clone(&peer));
            let mut ends = Vec::new();
            for _ in 0..2 * PIECE_BYTES_MAX / (64 << 10) {
                writer.out = vec![7; 64 << 10];
                writer.flush_piece().await.unwrap();
                ends.push(writer.piece.map(|(until, _)| until));
            }
            let (first, second) = ends.split_at(4);
            assert!(first[0].is_some() && first[..3].iter().all(|end| *end == first[0]), "{ends:?}");
            assert!(second[0] > first[0] && first[3].is_none() && second[3].is_none(), "{ends:?}");
            shutdown(fd);
        };
        executor::run(&Io::Epoll { reason: String::new() }, serving).unwrap();
        assert_eq!(taking.join().unwrap(), 2 * PIECE_BYTES_MAX as u64);
    }
}
