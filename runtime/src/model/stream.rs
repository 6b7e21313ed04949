//! One pass over a file: its bytes in order, read ahead, hashed if that is wanted, and handed to the threads that pack.
//!
//! One thread reads, one hashes (the same where one packs), and each range goes to the packing thread that has the fewest
//! bytes to do. So a file is read once, and the hash is that of the bytes that were packed.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::direct::{DirectReader, Slot};
use super::load::Job;
use super::{Error, Source, spawn};

/// How a file is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reading {
    /// Through the page cache if it has half of the file already, else past it.
    #[default]
    Auto,
    Buffered,
    Direct,
}

/// How a file was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// It is part of the binary.
    Embedded,
    /// Through the page cache, and why.
    Buffered { why: String },
    /// By io_uring past the page cache; whether into registered buffers.
    Direct { fixed: bool },
}

/// What a pass over a file found.
#[derive(Clone, Debug)]
pub struct Pass {
    /// Of the whole file, where that was wanted.
    pub sha256: Option<[u8; 32]>,
    pub route: Route,
    pub bytes: u64,
    pub time: Duration,
}

impl fmt::Display for Pass {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.bytes as f64 / 1e6 / self.time.as_secs_f64().max(1e-9);
        let hashed = if self.sha256.is_some() { "read, hashed" } else { "read" };
        write!(f, "{} MiB {hashed} and packed at {rate:.0} MB/s, ", self.bytes >> 20)?;
        match &self.route {
            Route::Embedded => write!(f, "out of the binary"),
            Route::Buffered { why } => write!(f, "through the page cache ({why})"),
            Route::Direct { fixed: true } => write!(f, "by io_uring past the page cache"),
            Route::Direct { fixed: false } => write!(f, "by io_uring past the page cache, buffers not registered"),
        }
    }
}

/// Some of the file and what is to be made of it.
struct Piece<'a> {
    range: Range<u64>,
    job: Option<Job<'a>>,
}

/// Bytes for a job, with the memory that holds them.
enum Bytes {
    Embedded(&'static [u8]),
    Slot(Slot),
}

impl Bytes {
    fn data(&self) -> &[u8] {
        match self {
            Self::Embedded(data) => data,
            Self::Slot(slot) => slot.bytes(),
        }
    }

    fn into_slot(self) -> Option<Slot> {
        match self {
            Self::Embedded(_) => None,
            Self::Slot(slot) => Some(slot),
        }
    }
}

/// What a thread gives back. The last to do so gives the memory with it.
struct Done {
    bytes: Arc<Bytes>,
    /// Of a packing thread.
    packed: Option<Packed>,
}

struct Packed {
    worker: usize,
    bytes: u64,
    result: Result<(), Error>,
}

/// Runs all `jobs`, whose ranges don't overlap, on `threads` threads beside the one that reads. `hash` takes in the whole
/// file, else only the ranges of the jobs are read. `progress` gets bytes done.
pub(super) fn run(
    source: &Source,
    jobs: Vec<Job<'_>>,
    threads: usize,
    hash: bool,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Pass, Error> {
    let started = Instant::now();
    let pieces = pieces(jobs, hash.then_some(source.bytes()));
    let bytes = pieces.iter().map(|piece| piece.range.end - piece.range.start).sum();
    let mut feed = Feed::open(source, &pieces)?;
    let route = feed.route();
    let sha256 = std::thread::scope(|scope| {
        // Room for everything, so that no thread ever waits to put something in.
        let (done_in, done) = sync_channel(2 * pieces.len());
        let packers: Vec<SyncSender<(Job<'_>, Arc<Bytes>)>> = (0..threads.max(1))
            .map(|worker| {
                let (jobs_in, jobs) = sync_channel(pieces.len());
                let done_in = done_in.clone();
                spawn(scope, move || pack(worker, &jobs, &done_in, progress)).map(|_| jobs_in)
            })
            .collect::<Result<_, Error>>()?;
        let (hashing, hasher) = match (hash, threads) {
            (false, _) => (Hashing::Off, None),
            // Beside others' work there is no hurry.
            (true, ..=1) => (Hashing::Here(Sha256::new()), None),
            (true, _) => {
                let (bytes_in, bytes) = sync_channel(pieces.len());
                (Hashing::Beside(bytes_in), Some(spawn(scope, move || hash_all(&bytes, &done_in))?))
            }
        };
        let (busy, unhashed) = (vec![0; packers.len()], 0);
        let here = Reader { feed: &mut feed, hashing, unhashed, busy, packers, done }.run(pieces)?;
        Ok::<_, Error>(here.or_else(|| hasher.map(|hasher| hasher.join().expect("hashing does not panic"))))
    })?;
    Ok(Pass { sha256, route, bytes, time: started.elapsed() })
}

/// Jobs in the order of the file; with all bytes between them, if the file is of `whole` bytes.
fn pieces(jobs: Vec<Job<'_>>, whole: Option<u64>) -> Vec<Piece<'_>> {
    let mut jobs = jobs;
    jobs.sort_by_key(|job| job.range().start);
    let mut pieces = Vec::with_capacity(jobs.len());
    let mut at = 0;
    for job in jobs {
        let range = job.range();
        if whole.is_some() {
            fill_gap(&mut pieces, at..range.start);
        }
        at = range.end;
        pieces.push(Piece { range, job: Some(job) });
    }
    if let Some(end) = whole {
        fill_gap(&mut pieces, at..end);
    }
    pieces
}

fn fill_gap(pieces: &mut Vec<Piece<'_>>, gap: Range<u64>) {
    let starts = (gap.start..gap.end).step_by(usize::try_from(GAP_BYTES_MAX).expect("small"));
    pieces.extend(starts.map(|start| Piece { range: start..(start + GAP_BYTES_MAX).min(gap.end), job: None }));
}

/// A packing thread.
fn pack(
    worker: usize,
    jobs: &Receiver<(Job<'_>, Arc<Bytes>)>,
    done: &SyncSender<Done>,
    progress: &(dyn Fn(u64) + Sync),
) {
    while let Ok((job, bytes)) = jobs.recv() {
        let packed_bytes = job.packed_bytes() as u64;
        let packed = Packed { worker, result: job.run(bytes.data()), bytes: bytes.data().len() as u64 };
        progress(packed_bytes);
        // A reader that is gone has an error to tell.
        let _ = done.send(Done { bytes, packed: Some(packed) });
    }
}

/// The hashing thread: takes bytes in the order of the file.
fn hash_all(pieces: &Receiver<Arc<Bytes>>, done: &SyncSender<Done>) -> [u8; 32] {
    let mut hash = Sha256::new();
    while let Ok(bytes) = pieces.recv() {
        hash.update(bytes.data());
        let _ = done.send(Done { bytes, packed: None });
    }
    hash.finalize().into()
}

/// Where bytes come from.
enum Feed<'s> {
    Embedded(&'static [u8]),
    Buffered { file: &'s File, name: String, free: Vec<Slot>, why: String },
    Direct { file: &'s File, name: String, free: Vec<Slot>, reader: Box<DirectReader> },
}

impl<'s> Feed<'s> {
    fn open(source: &'s Source, pieces: &[Piece<'_>]) -> Result<Self, Error> {
        let (file, bytes, path, reading) = match source {
            Source::Embedded(bytes) => return Ok(Self::Embedded(bytes)),
            Source::File { file, bytes, path, reading } => (file, *bytes, path, *reading),
        };
        let longest = pieces.iter().map(|piece| piece.range.end - piece.range.start).max().unwrap_or(0);
        let longest = usize::try_from(longest).map_err(|_| Error::BadShape("a tensor is beyond memory".into()))?;
        let name = path.display().to_string();
        let mut free = Slot::several(SLOTS, longest)?;
        let cached = cached_percent(file, bytes);
        let why = match (reading, cached) {
            (Reading::Buffered, _) => "as was asked for".to_owned(),
            (Reading::Auto, Some(percent)) if percent >= CACHED_PERCENT_MIN => format!("{percent} % of it were there"),
            (Reading::Auto, None) => "what of it is there is not known".to_owned(),
            _ => match DirectReader::new(file, bytes, &mut free) {
                Ok(reader) => return Ok(Self::Direct { file, name, free, reader: Box::new(reader) }),
                Err(error) => format!("direct reads are refused: {error}"),
            },
        };
        Ok(Self::Buffered { file, name, free, why })
    }

    fn route(&self) -> Route {
        match self {
            Self::Embedded(_) => Route::Embedded,
            Self::Buffered { why, .. } => Route::Buffered { why: why.clone() },
            Self::Direct { reader, .. } => Route::Direct { fixed: reader.is_fixed() },
        }
    }

    /// Ranges that may be on their way at a time: others than direct reads are there at once.
    fn ahead(&self) -> usize {
        if matches!(self, Self::Direct { .. }) { usize::from(SLOTS) } else { 1 }
    }

    /// Begins to read a range; `None` if every slot is in use. The number tells which it was.
    fn start(&mut self, range: &Range<u64>) -> Option<Result<Started, Error>> {
        match self {
            Self::Embedded(bytes) => {
                let part = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
                let ended = || io_error("the embedded model", std::io::ErrorKind::UnexpectedEof.into());
                let part = bytes.get(part(range.start)..part(range.end)).ok_or_else(ended);
                Some(part.map(|part| Started::Ready(Bytes::Embedded(part))))
            }
            Self::Buffered { file, name, free, .. } => {
                let mut slot = free.pop()?;
                let len = usize::try_from(range.end - range.start).expect("slots hold the longest range");
                let result = file.read_exact_at(slot.room(len), range.start);
                Some(result.map(|()| Started::Ready(Bytes::Slot(slot))).map_err(|error| io_error(name, error)))
            }
            Self::Direct { name, free, reader, .. } => {
                let slot = free.pop()?;
                let index = slot.index();
                Some(reader.start(slot, range).map(|()| Started::Reading(index)).map_err(|error| io_error(name, error)))
            }
        }
    }

    fn finish(&mut self, started: Started) -> Result<Bytes, Error> {
        match (started, self) {
            (Started::Reading(index), Self::Direct { file, name, reader, .. }) => {
                reader.finish(index, file).map(Bytes::Slot).map_err(|error| io_error(name, error))
            }
            (Started::Ready(bytes), _) => Ok(bytes),
            (Started::Reading(_), _) => unreachable!("only direct reads go on by themselves"),
        }
    }

    fn give_back(&mut self, slot: Slot) {
        match self {
            Self::Embedded(_) => {}
            Self::Buffered { free, .. } | Self::Direct { free, .. } => free.push(slot),
        }
    }
}

/// A range that was started.
enum Started {
    Ready(Bytes),
    /// On its way into this slot.
    Reading(u16),
}

/// Who hashes.
enum Hashing {
    Off,
    Here(Sha256),
    Beside(SyncSender<Arc<Bytes>>),
}

/// The thread that reads.
struct Reader<'f, 's, 'a> {
    feed: &'f mut Feed<'s>,
    hashing: Hashing,
    /// Ranges that another thread has not hashed yet.
    unhashed: usize,
    packers: Vec<SyncSender<(Job<'a>, Arc<Bytes>)>>,
    /// Bytes that each packer has not done yet.
    busy: Vec<u64>,
    done: Receiver<Done>,
}

impl<'a> Reader<'_, '_, 'a> {
    /// The hash, where it is made here.
    fn run(mut self, pieces: Vec<Piece<'a>>) -> Result<Option<[u8; 32]>, Error> {
        let mut pieces = pieces.into_iter().peekable();
        let mut started: VecDeque<(Started, Option<Job<'a>>)> = VecDeque::new();
        loop {
            while let Ok(done) = self.done.try_recv() {
                self.take_back(done)?;
            }
            while started.len() < self.feed.ahead()
                && let Some(piece) = pieces.peek()
                && let Some(begun) = self.feed.start(&piece.range)
            {
                let piece = pieces.next().expect("looked at above");
                started.push_back((begun?, piece.job));
            }
            match started.pop_front() {
                Some((begun, job)) => {
                    let bytes = self.feed.finish(begun)?;
                    self.hand_out(job, bytes);
                }
                None if self.is_idle() && pieces.peek().is_none() => break,
                None => {
                    let done = self.done.recv().expect("packers outlive their reader");
                    self.take_back(done)?;
                }
            }
        }
        Ok(if let Hashing::Here(hash) = self.hashing { Some(hash.finalize().into()) } else { None })
    }

    fn hand_out(&mut self, job: Option<Job<'a>>, bytes: Bytes) {
        let bytes = Arc::new(bytes);
        match &mut self.hashing {
            Hashing::Off => {}
            Hashing::Here(hash) => hash.update(bytes.data()),
            Hashing::Beside(hasher) => {
                self.unhashed += 1;
                let sent = hasher.send(Arc::clone(&bytes));
                assert!(sent.is_ok(), "the hashing thread outlives its reader");
            }
        }
        let Some(job) = job else { return self.free(bytes) };
        let len = bytes.data().len() as u64;
        let idlest = (0..self.busy.len()).min_by_key(|&worker| self.busy[worker]).expect("there is a packer");
        self.busy[idlest] += len;
        let sent = self.packers[idlest].send((job, bytes));
        assert!(sent.is_ok(), "packers outlive their reader");
    }

    fn take_back(&mut self, done: Done) -> Result<(), Error> {
        self.free(done.bytes);
        let Some(Packed { worker, bytes, result }) = done.packed else {
            self.unhashed -= 1;
            return Ok(());
        };
        self.busy[worker] -= bytes;
        result
    }

    fn is_idle(&self) -> bool {
        self.unhashed == 0 && self.busy.iter().all(|bytes| *bytes == 0)
    }

    /// Frees the memory of `bytes` if nobody else has them.
    fn free(&mut self, bytes: Arc<Bytes>) {
        if let Some(slot) = Arc::into_inner(bytes).and_then(Bytes::into_slot) {
            self.feed.give_back(slot);
        }
    }
}

/// Share of a file that is in the page cache; `None` where the kernel does not tell.
#[expect(unsafe_code, reason = "a system call that the C library has no function for")]
fn cached_percent(file: &File, bytes: u64) -> Option<u64> {
    #[repr(C)]
    struct Whole {
        offset: u64,
        len: u64,
    }
    let (range, mut counts) = (Whole { offset: 0, len: bytes }, [0_u64; 5]);
    // SAFETY: the kernel reads the range and writes five numbers: cached, dirty, in write-back, evicted, lately evicted.
    let status =
        unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const range, counts.as_mut_ptr(), 0_u32) };
    // SAFETY: no pointers are involved.
    let page_bytes = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?.max(1);
    let pages = bytes.div_ceil(page_bytes).max(1);
    (status == 0).then(|| (counts[0] * 100 / pages).min(100))
}

fn io_error(what: &str, source: std::io::Error) -> Error {
    Error::Io { what: what.to_owned(), source }
}

/// Ranges that are read ahead, packed and waited for at a time.
const SLOTS: u16 = 6;
const GAP_BYTES_MAX: u64 = 1 << 20;
/// Where the page cache has so much of a file, reading it there is faster.
const CACHED_PERCENT_MIN: u64 = 50;
/// The same number on every architecture.
const SYS_CACHESTAT: libc::c_long = 451;

#[cfg(test)]
mod tests {
    use super::super::{HeadScreen, LoadOptions, Model};
    use super::*;

    struct Scratch(std::path::PathBuf);

    impl Scratch {
        fn new(name: &str, bytes: &[u8]) -> Self {
            let path = std::env::temp_dir().join(format!("bitnetd-stream-{}-{name}", std::process::id()));
            std::fs::write(&path, bytes).unwrap();
            Self(path)
        }

        fn source(&self, reading: Reading) -> Source {
            Source::open(&self.0).unwrap().read_by(reading)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    const READINGS: [Reading; 3] = [Reading::Auto, Reading::Buffered, Reading::Direct];

    fn default_model() -> &'static [u8] {
        let Source::Embedded(bytes) = Source::embedded() else { unreachable!("it is embedded") };
        bytes
    }

    fn load(source: &Source, threads: usize) -> Result<Model, Error> {
        let options = LoadOptions { threads, node: None, context_max: 64, head_screen: HeadScreen::WhereItPays };
        Model::load_hashed(source, "streamed".into(), options, &|_, _| {})
    }

    #[test]
    fn every_route_hashes_and_packs_the_same() {
        let expected = load(&Source::embedded(), 1).unwrap();
        assert_eq!(expected.pass.route, Route::Embedded);
        let sha256: [u8; 32] = Sha256::digest(default_model()).into();
        assert_eq!(expected.pass.sha256, Some(sha256));
        let scratch = Scratch::new("routes", default_model());
        for (reading, threads) in READINGS.into_iter().flat_map(|reading| [(reading, 1), (reading, 3)]) {
            let model = load(&scratch.source(reading), threads).unwrap();
            let Pass { sha256: got, route, bytes, .. } = &model.pass;
            assert_eq!((*got, *bytes), (Some(sha256), default_model().len() as u64), "{reading:?}");
            assert!(model.weights.arena.as_slice() == expected.weights.arena.as_slice(), "{reading:?}");
            match reading {
                Reading::Buffered => assert!(matches!(route, Route::Buffered { .. })),
                Reading::Direct => match route {
                    Route::Direct { .. } => {}
                    Route::Buffered { why } => assert!(why.contains("refused"), "{why}"),
                    Route::Embedded => panic!("it is a file"),
                },
                Reading::Auto => assert!(*route != Route::Embedded),
            }
        }
    }

    #[test]
    fn file_that_is_cut_meanwhile_is_an_error() {
        for reading in READINGS {
            let scratch = Scratch::new(&format!("cut-{reading:?}"), default_model());
            let source = scratch.source(reading);
            let file = std::fs::OpenOptions::new().write(true).open(&scratch.0).unwrap();
            // Behind the header and most of the weights.
            file.set_len(default_model().len() as u64 * 9 / 10).unwrap();
            assert!(matches!(load(&source, 2), Err(Error::Io { .. })), "{reading:?}");
        }
    }

    #[test]
    fn bad_weights_in_the_middle_end_the_pass() {
        let Source::Embedded(bytes) = Source::embedded() else { unreachable!("it is embedded") };
        let gguf = gguf::Gguf::parse(bytes, bytes.len() as u64).unwrap();
        let bad = gguf.tensor("blk.3.ffn_up.weight").unwrap();
        let at = usize::try_from(bad.offset).unwrap();
        let mut bytes = bytes.to_vec();
        bytes[at + 100] = 0xff;
        for reading in READINGS {
            let scratch = Scratch::new(&format!("bad-{reading:?}"), &bytes);
            match load(&scratch.source(reading), 2) {
                Err(Error::BadTensor { name, .. }) => assert_eq!(name, "blk.3.ffn_up.weight"),
                other => panic!("{reading:?}: {:?}", other.err()),
            }
        }
    }

    #[test]
    fn replica_is_the_same_model() {
        let model = load(&Source::embedded(), 2).unwrap();
        let replica = model.replica(tuning::NodeId(0)).unwrap();
        assert!(model.weights.arena.as_slice() == replica.weights.arena.as_slice());
        assert_ne!(model.weights.arena.as_slice().as_ptr(), replica.weights.arena.as_slice().as_ptr());
        assert_eq!(model.weights.packed_bytes(), replica.weights.packed_bytes());
        for layer in 0..model.weights.layers.len() {
            let bytes = |model: &Model| model.weights.down_columns(layer).is_some();
            assert_eq!(bytes(&model), bytes(&replica));
        }
    }
}
