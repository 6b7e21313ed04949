//! The memory that a server and its GPU worker process share: a header of words, a stage for weights, steps and their
//! results, each step in a place by its number.
//!
//! One side writes a part, then a word of the header; the other reads the word, then the part. The results are written
//! by the device itself, the word `done` last.
#![expect(unsafe_code, reason = "memory shared with another process and with a device")]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

use super::abi::{DRAW_WORDS, PROMPT_PAIRS_LEAST, SPLIT, TILE_WORDS};
use super::device::STEPS_MAX;
use super::shape::Shape;

/// Where a worker is, after 0 for one that is starting. The device is open; weights are wanted.
pub(super) const LOADING: u32 = 1;
pub(super) const READY: u32 = 2;
/// `fault_code` and `fault_text` say why.
pub(super) const FAILED: u32 = 3;

/// Words at the start of the region.
#[repr(C)]
pub(super) struct Header {
    pub(super) magic: AtomicU64,
    pub(super) host_pid: AtomicU32,
    /// 1 where the head is a matrix of its own.
    pub(super) untied: AtomicU32,
    shape: [AtomicU32; SHAPE_WORDS],
    /// Where the worker is: one of the constants above.
    pub(super) state: AtomicU32,
    /// Moves while the worker does.
    pub(super) beat: AtomicU32,
    pub(super) fault_code: AtomicI32,
    fault_text: [AtomicU8; TEXT_BYTES],
    name: [AtomicU8; TEXT_BYTES],
    pub(super) capability: AtomicU32,
    pub(super) kv_blocks: AtomicU32,
    pub(super) memory_bytes: AtomicU64,
    /// Bytes in each half of the stage, and where they go; 0 bytes: free to fill.
    pub(super) stage_bytes: [AtomicU32; 2],
    pub(super) stage_offset: [AtomicU64; 2],
    /// 1 after the last stage was filled.
    pub(super) weights_end: AtomicU32,
    /// Low half of the number of the newest step, at most [`STEPS_MAX`] after the last one that is done.
    pub(super) submitted: AtomicU32,
    pub(super) steps: [StepWords; PLACES],
    /// 1 while the worker sleeps on `submitted`.
    pub(super) asleep: AtomicU32,
}

/// How large a step is.
#[repr(C)]
pub(super) struct StepWords {
    pub(super) rows: AtomicU32,
    /// Rows that stand alone; 1 where some of them are successive ones of a prompt.
    pub(super) decodes: AtomicU32,
    pub(super) stored: AtomicU32,
    pub(super) sequences: AtomicU32,
    pub(super) tiles: AtomicU32,
    /// How many of the tiles are for tensor cores, the last ones.
    pub(super) tensor_tiles: AtomicU32,
    /// Rows of which a token is wanted, whether any of them is drawn among all or among the best few, and rows of which all
    /// scores are wanted.
    pub(super) chosen: AtomicU32,
    pub(super) drawn: AtomicU32,
    pub(super) ranked: AtomicU32,
    pub(super) scores: AtomicU32,
}

/// Byte offsets of the parts, from the shape alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offsets {
    pub(super) stage: usize,
    /// What is copied to the device for a step: its number, then these. The offsets are those of the first place; the input
    /// of the next ones follows, each `input_bytes` further on.
    pub(super) input: usize,
    pub(super) ids: usize,
    pub(super) positions: usize,
    pub(super) sequences: usize,
    /// Rows whose logits are wanted: first those of which a token is, then those of scores; what the tokens depend on.
    pub(super) picked: usize,
    pub(super) draws: usize,
    pub(super) tables: usize,
    /// Only of steps with prompts.
    pub(super) tiles: usize,
    pub(super) input_bytes: usize,
    /// What the device writes: the number of the last step that is done; of steps in the first place the tokens of the rows, the chosen
    /// ones in the rows whose logits were wanted, followed `ids_bytes` further on by those of the next one; scores.
    pub(super) done: usize,
    pub(super) chosen: usize,
    pub(super) ids_bytes: usize,
    pub(super) logits: usize,
    pub(super) bytes: usize,
}

impl Offsets {
    pub(super) fn new(shape: &Shape) -> Self {
        let (rows, slots) = (shape.rows_max as usize, shape.slots as usize);
        let mut at = size_of::<Header>().next_multiple_of(PAGE_BYTES);
        let mut take = |bytes: usize| {
            let start = at;
            at = (start + bytes).next_multiple_of(LINE_BYTES);
            start
        };
        let stage = take(2 * STAGE_BYTES);
        let input = take(8);
        let (ids, positions, sequences) = (take(rows * 4), take(rows * 4), take(rows * 4));
        let (picked, draws) = (take(slots * 4), take(slots * DRAW_WORDS * 4));
        // One more is that of rows which only fill up a step: the device's own.
        let tables = take((slots + 1) * shape.table_stride() * 4);
        let tiles = take(tiles_max(shape) * TILE_WORDS * 4);
        let input_bytes = take(0) - input;
        take((PLACES - 1) * input_bytes);
        let (done, chosen) = (take(8), take(rows * 4));
        let ids_bytes = take(0) - chosen;
        take((PLACES - 1) * ids_bytes);
        let logits = take(slots * shape.vocab as usize * 4);
        let bytes = at.next_multiple_of(PAGE_BYTES);
        Self {
            stage,
            input,
            ids,
            positions,
            sequences,
            picked,
            draws,
            tables,
            tiles,
            input_bytes,
            done,
            chosen,
            ids_bytes,
            logits,
            bytes,
        }
    }

    /// The place of a part of the input of step `number`.
    pub(super) fn of_step(&self, number: u64, input: usize) -> usize {
        input + place(number) * self.input_bytes
    }

    /// The place of the tokens of step `number`, chosen ones among them.
    pub(super) fn chosen_of(&self, number: u64) -> usize {
        self.chosen + place(number) * self.ids_bytes
    }
}

/// Most tiles of a step's prompts.
pub(super) fn tiles_max(shape: &Shape) -> usize {
    // There is a shape without heads until a model is there.
    let group = (shape.heads / shape.kv_heads.max(1)).max(1) as usize;
    // The last tile of a sequence's rows may be less than whole, on tensor cores and without.
    let rows = (shape.rows_max as usize).div_ceil((PROMPT_PAIRS_LEAST / group).max(1)) + 2 * shape.slots as usize;
    rows * (shape.context as usize).div_ceil(SPLIT)
}

/// The mapped region.
pub(super) struct Region {
    base: NonNull<u8>,
    bytes: usize,
    file: File,
}

// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl Send for Region {}

/// Places of steps: what is copied for one comes before the step before it is done, which may still read what the one before that has
/// left.
pub(super) const PLACES: usize = STEPS_MAX + 1;

/// Which of the places of steps is that of step `number`.
pub(super) fn place(number: u64) -> usize {
    usize::try_from(number % PLACES as u64).expect("places are few")
}

/// As much of a step's number as `submitted` holds.
pub(super) fn low_half(number: u64) -> u32 {
    u32::try_from(number & u64::from(u32::MAX)).expect("32 bits")
}

impl Region {
    /// A new region of zeros for a worker of `shape`.
    pub(super) fn create(shape: &Shape, untied: bool) -> io::Result<Self> {
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(c"bitnetd-gpu".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and owned by nobody else.
        let file = unsafe { File::from_raw_fd(fd) };
        let bytes = Offsets::new(shape).bytes;
        file.set_len(bytes as u64)?;
        let mut region = Self::map(file, bytes)?;
        // SAFETY: nobody else has the region yet.
        let done: &mut [u64] = unsafe { region.write(Offsets::new(shape).done, 1) };
        done[0] = BEFORE_FIRST;
        let header = region.header();
        header.submitted.store(low_half(BEFORE_FIRST), Ordering::Relaxed);
        for (word, value) in header.shape.iter().zip(shape.words()) {
            word.store(value, Ordering::Relaxed);
        }
        header.host_pid.store(std::process::id(), Ordering::Relaxed);
        header.untied.store(u32::from(untied), Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Release);
        Ok(region)
    }

    /// The region that a server made; its shape and whether the head is a matrix of its own.
    pub(super) fn open(file: File) -> io::Result<(Self, Shape, bool)> {
        let bytes = usize::try_from(file.metadata()?.len()).unwrap_or(0);
        let foreign = || io::Error::new(io::ErrorKind::InvalidData, "standard input is no region of this version");
        if bytes < size_of::<Header>() {
            return Err(foreign());
        }
        let region = Self::map(file, bytes)?;
        let header = region.header();
        let shape = Shape::from_words(std::array::from_fn(|i| header.shape[i].load(Ordering::Relaxed)));
        if header.magic.load(Ordering::Acquire) != MAGIC || Offsets::new(&shape).bytes != bytes {
            return Err(foreign());
        }
        let untied = header.untied.load(Ordering::Relaxed) == 1;
        Ok((region, shape, untied))
    }

    fn map(file: File, bytes: usize) -> io::Result<Self> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping of a file of that length, placed by the kernel.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, file.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { base: NonNull::new(base.cast()).expect("a mapping is not null"), bytes, file })
    }

    pub(super) fn header(&self) -> &Header {
        // SAFETY: the mapping is page-aligned, longer than a header, and all fields are atomics, valid in any state.
        unsafe { self.base.cast::<Header>().as_ref() }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn address(&self, offset: usize) -> *mut c_void {
        assert!(offset < self.bytes, "an offset lies in the region");
        // SAFETY: inside the mapping, by the line above.
        unsafe { self.base.as_ptr().add(offset).cast() }
    }

    /// The number of the last step whose results are here.
    pub(super) fn done(&self, offsets: &Offsets) -> u64 {
        // SAFETY: eight aligned bytes of the mapping, which only the device writes once a worker has it.
        let word = unsafe { self.address(offsets.done).cast::<u64>().read_volatile() };
        fence(Ordering::Acquire);
        word
    }

    /// `count` values from `offset` on, to read.
    ///
    /// # Safety
    /// Neither the other process nor the device writes them meanwhile.
    pub(super) unsafe fn read<T: Plain>(&self, offset: usize, count: usize) -> &[T] {
        assert!(offset.is_multiple_of(align_of::<T>()) && offset + count * size_of::<T>() <= self.bytes);
        // SAFETY: inside the mapping and aligned, by the line above; any bytes are a value; nobody writes them.
        unsafe { std::slice::from_raw_parts(self.address(offset).cast(), count) }
    }

    /// `count` values from `offset` on, to write.
    ///
    /// # Safety
    /// Neither the other process nor the device uses them meanwhile.
    pub(super) unsafe fn write<T: Plain>(&mut self, offset: usize, count: usize) -> &mut [T] {
        assert!(offset.is_multiple_of(align_of::<T>()) && offset + count * size_of::<T>() <= self.bytes);
        // SAFETY: as above, and used by nobody else.
        unsafe { std::slice::from_raw_parts_mut(self.address(offset).cast(), count) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made, used no more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

impl Header {
    /// Says why the worker ends.
    pub(super) fn fail(&self, code: i32, text: &str) {
        self.fault_code.store(code, Ordering::Relaxed);
        store_text(&self.fault_text, text);
        self.state.store(FAILED, Ordering::Release);
    }

    pub(super) fn fault_text(&self) -> String {
        load_text(&self.fault_text)
    }

    pub(super) fn set_name(&self, name: &str) {
        store_text(&self.name, name);
    }

    pub(super) fn name(&self) -> String {
        load_text(&self.name)
    }

    /// Gives the worker a step, whose parts are written.
    pub(super) fn submit(&self, number: u64) {
        self.submitted.store(low_half(number), Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if self.asleep.swap(0, Ordering::SeqCst) == 1 {
            // SAFETY: the word outlives the call.
            unsafe { libc::syscall(libc::SYS_futex, self.submitted.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
        }
    }

    /// Whether `begun` is no longer the newest step.
    pub(super) fn has_step_after(&self, begun: u64) -> bool {
        self.submitted.load(Ordering::Acquire) != low_half(begun)
    }

    /// Sleeps until `begun` is no longer the newest step, at most `timeout`.
    pub(super) fn wait_for_step(&self, begun: u64, timeout: Duration) {
        let seen = low_half(begun);
        self.asleep.store(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if self.submitted.load(Ordering::SeqCst) == seen {
            let timeout = libc::timespec {
                tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
                tv_nsec: timeout.subsec_nanos().into(),
            };
            // SAFETY: the word and the timeout outlive the call.
            unsafe {
                libc::syscall(libc::SYS_futex, self.submitted.as_ptr(), libc::FUTEX_WAIT, seen, &raw const timeout)
            };
        }
        self.asleep.store(0, Ordering::SeqCst);
    }
}

/// Types of which any bytes are a value.
pub(super) trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for u32 {}
impl Plain for u64 {}
impl Plain for f32 {}

fn store_text(to: &[AtomicU8; TEXT_BYTES], text: &str) {
    let bytes = text.bytes().take(TEXT_BYTES - 1).chain(std::iter::repeat(0));
    to.iter().zip(bytes).for_each(|(to, byte)| to.store(byte, Ordering::Relaxed));
}

fn load_text(from: &[AtomicU8; TEXT_BYTES]) -> String {
    let bytes: Vec<u8> = from.iter().map(|byte| byte.load(Ordering::Relaxed)).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) const SHAPE_WORDS: usize = 17;
/// Bytes of each half of the stage: a row tile of the widest model's head fits several times.
pub(super) const STAGE_BYTES: usize = 8 << 20;
const TEXT_BYTES: usize = 256;
const PAGE_BYTES: usize = 4096;
const LINE_BYTES: usize = 256;
/// Names the layout of this file; a worker of another version refuses it.
const MAGIC: u64 = u64::from_le_bytes(*b"bitngpu9");
/// Where the numbers of steps begin: shortly before their low half wraps, so that no worker and no test lives without it.
pub(super) const BEFORE_FIRST: u64 = u32::MAX as u64 - 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_opens_with_the_shape_it_was_made_for_and_no_other_file_does() {
        let shape = Shape {
            vocab: 100,
            heads: 1,
            kv_heads: 1,
            slots: 3,
            rows_max: 5,
            context: 64,
            norm_eps: 0.5,
            ..Shape::default()
        };
        let mut region = Region::create(&shape, true).unwrap();
        region.header().fail(7, "seven");
        let offsets = Offsets::new(&shape);
        // SAFETY: nobody else uses this region.
        let logits: &mut [f32] = unsafe { region.write(offsets.logits, 300) };
        logits[299] = 2.0;
        let copy = region.fd().try_clone_to_owned().unwrap();
        let (other, seen, untied) = Region::open(copy.into()).unwrap();
        assert_eq!((seen, untied, other.header().fault_text().as_str()), (shape, true, "seven"));
        // SAFETY: as above.
        assert_eq!(unsafe { other.read::<f32>(offsets.logits, 300) }[299], 2.0);
        assert!(Region::open(File::open("/dev/null").unwrap()).is_err());
        assert!(Region::open(File::open("/proc/self/exe").unwrap()).is_err());
    }
}
