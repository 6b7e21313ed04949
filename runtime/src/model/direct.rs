//! Reads a file past the page cache: io_uring, O_DIRECT, registered buffers, several ranges in flight.
#![expect(unsafe_code, reason = "the kernel writes into buffers that this reader owns meanwhile")]

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use io_uring::{IoUring, opcode, types};
use tuning::memory::Arena;

/// A buffer of page-aligned memory and its place among the registered ones.
pub(super) struct Slot {
    memory: Arena,
    index: u16,
    /// Where the wanted bytes begin in it, and how many there are.
    skip: usize,
    len: usize,
}

impl Slot {
    /// Slots that hold ranges of `range_bytes_max` bytes wherever they begin.
    pub(super) fn several(count: u16, range_bytes_max: usize) -> Result<Vec<Self>, tuning::Error> {
        let bytes = (range_bytes_max + 2 * ALIGN_BYTES).next_multiple_of(ALIGN_BYTES);
        let slot = |index| Ok(Self { memory: Arena::reserve(bytes, None)?, index, skip: 0, len: 0 });
        (0..count).map(slot).collect()
    }

    /// Its number among the slots.
    pub(super) fn index(&self) -> u16 {
        self.index
    }

    /// The bytes that were read into it last.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory.as_slice()[self.skip..self.skip + self.len]
    }

    /// Room for `len` bytes from the front.
    pub(super) fn room(&mut self, len: usize) -> &mut [u8] {
        (self.skip, self.len) = (0, len);
        &mut self.memory.as_mut_slice()[..len]
    }
}

/// Ranges of one file on their way into slots. Slots belong to it while the kernel writes into them.
pub(super) struct DirectReader {
    file: File,
    file_bytes: u64,
    ring: IoUring,
    /// Whether the slots are registered, so that the kernel doesn't look their pages up for each read.
    fixed: bool,
    reads: Vec<Option<Read>>,
    in_flight: usize,
}

/// A range on its way.
struct Read {
    slot: Slot,
    /// First byte of the file that goes into the slot.
    start: u64,
    pieces_left: usize,
    /// Pieces that the kernel did not give, or not whole: they are read again another way.
    failed: Vec<Range<usize>>,
}

impl DirectReader {
    /// Reads `file` of `file_bytes` into `slots`.
    ///
    /// # Errors
    /// Where the file system has no direct reads, or io_uring is refused.
    pub(super) fn new(file: &File, file_bytes: u64, slots: &mut [Slot]) -> io::Result<Self> {
        // The same file, also where its path leads elsewhere by now.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)?;
        let ring = IoUring::new(RING_ENTRIES)?;
        let buffers: Vec<libc::iovec> = slots
            .iter_mut()
            .map(|slot| libc::iovec { iov_base: slot.memory.as_mut_ptr().as_ptr().cast(), iov_len: slot.memory.len() })
            .collect();
        // SAFETY: the registration pins the pages of the slots; reads into them are made only while this reader owns them.
        let fixed = unsafe { ring.submitter().register_buffers(&buffers) }.is_ok();
        let reads = slots.iter().map(|_| None).collect();
        let mut reader = Self { file: direct, file_bytes, ring, fixed, reads, in_flight: 0 };
        reader.try_one(&mut slots[0])?;
        Ok(reader)
    }

    /// One small read: file systems may open files for direct reads and then refuse them.
    fn try_one(&mut self, slot: &mut Slot) -> io::Result<()> {
        if self.file_bytes == 0 {
            return Ok(());
        }
        let room = &mut slot.memory.as_mut_slice()[..ALIGN_BYTES];
        self.file.read_at(room, 0).map(|_| ())
    }

    /// Begins to read `range` into `slot`.
    pub(super) fn start(&mut self, slot: Slot, range: &Range<u64>) -> io::Result<()> {
        let mut slot = slot;
        let align = ALIGN_BYTES as u64;
        let start = range.start / align * align;
        let count = |bytes: u64| usize::try_from(bytes).expect("a range fits its slot");
        (slot.skip, slot.len) = (count(range.start - start), count(range.end - range.start));
        let bytes = count(range.end.next_multiple_of(align) - start);
        let (base, index) = (slot.memory.as_mut_ptr().as_ptr(), usize::from(slot.index));
        assert!(bytes <= slot.memory.len() && self.reads[index].is_none(), "a free slot that holds the range");
        let pieces = (0..bytes).step_by(PIECE_BYTES);
        self.reads[index] = Some(Read { slot, start, pieces_left: pieces.len(), failed: Vec::new() });
        for at in pieces {
            let len = PIECE_BYTES.min(bytes - at);
            let (to, fd) = (base.wrapping_add(at), types::Fd(self.file.as_raw_fd()));
            let (len, offset) = (u32::try_from(len).expect("a piece is small"), start + at as u64);
            let entry = if self.fixed {
                opcode::ReadFixed::new(fd, to, len, u16::try_from(index).expect("few slots")).offset(offset).build()
            } else {
                opcode::Read::new(fd, to, len).offset(offset).build()
            };
            self.push(&entry.user_data(tag(index, at)))?;
        }
        self.ring.submit()?;
        Ok(())
    }

    fn push(&mut self, entry: &io_uring::squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: the entry's buffer is part of a slot in `reads`, which stays there until the read has ended.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                self.in_flight += 1;
                return Ok(());
            }
            self.ring.submit()?;
        }
    }

    /// The slot of `index` when its range has been read; pieces that could not be are read from `other`.
    pub(super) fn finish(&mut self, index: u16, other: &File) -> io::Result<Slot> {
        let index = usize::from(index);
        while self.reads[index].as_ref().is_some_and(|read| read.pieces_left > 0) {
            self.reap()?;
        }
        let Read { mut slot, start, failed, .. } = self.reads[index].take().expect("a range was started into it");
        for piece in failed {
            let from = start + piece.start as u64;
            let end = piece.end.min(slot.skip + slot.len);
            if piece.start < end {
                other.read_exact_at(&mut slot.memory.as_mut_slice()[piece.start..end], from)?;
            }
        }
        Ok(slot)
    }

    /// Waits for at least one piece.
    fn reap(&mut self) -> io::Result<()> {
        match self.ring.submit_and_wait(1) {
            // Busy is a ring full of what is taken out below.
            Err(error) if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY)) => return Err(error),
            _ => {}
        }
        let completions: Vec<(u64, i32)> =
            self.ring.completion().map(|entry| (entry.user_data(), entry.result())).collect();
        for (data, result) in completions {
            self.in_flight -= 1;
            let (index, at) = untag(data);
            let read = self.reads[index].as_mut().expect("pieces belong to a range that was started");
            read.pieces_left -= 1;
            let wanted = (read.slot.skip + read.slot.len).min(at + PIECE_BYTES);
            let got = at + usize::try_from(result).unwrap_or(0);
            if got < wanted {
                read.failed.push(at..wanted);
            }
        }
        Ok(())
    }

    /// Whether the kernel has the slots' pages at hand.
    pub(super) fn is_fixed(&self) -> bool {
        self.fixed
    }
}

impl Drop for DirectReader {
    fn drop(&mut self) {
        // The kernel may still write into slots that would be unmapped.
        while self.in_flight > 0 {
            self.reap().expect("a ring that took reads gives them back");
        }
    }
}

fn tag(index: usize, at: usize) -> u64 {
    (index as u64) << 48 | at as u64
}

fn untag(data: u64) -> (usize, usize) {
    let part = |bits: u64| usize::try_from(bits).expect("made from a usize");
    (part(data >> 48), part(data & ((1 << 48) - 1)))
}

/// What devices and file systems in use want of offsets, lengths and memory. One that wants more refuses, and is read
/// through the page cache.
const ALIGN_BYTES: usize = 4096;
/// Size of one read.
const PIECE_BYTES: usize = 1 << 20;
const RING_ENTRIES: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(std::path::PathBuf, Vec<u8>);

    impl Scratch {
        fn new(name: &str, len: usize) -> Self {
            let path = std::env::temp_dir().join(format!("bitnetd-direct-{}-{name}", std::process::id()));
            let bytes: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
            std::fs::write(&path, &bytes).unwrap();
            Self(path, bytes)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    /// `None` where the kernel or the file system refuses.
    fn reader(file: &File, slots: &mut [Slot]) -> Option<DirectReader> {
        match DirectReader::new(file, file.metadata().unwrap().len(), slots) {
            Ok(reader) => Some(reader),
            Err(error) => {
                eprintln!("skipped: {error}");
                None
            }
        }
    }

    #[test]
    fn ranges_of_any_place_and_length_are_read() {
        let scratch = Scratch::new("ranges", 3 * PIECE_BYTES + 777);
        let file = File::open(&scratch.0).unwrap();
        let mut slots = Slot::several(2, 3 * PIECE_BYTES + 777).unwrap();
        let Some(mut reader) = reader(&file, &mut slots) else { return };
        for (start, len) in
            [(0, 1), (1, 4096), (4095, 2), (4096, 4096), (0, scratch.1.len()), (PIECE_BYTES - 5, 10), (7, 0)]
                .into_iter()
                .chain([(scratch.1.len() - 1, 1), (scratch.1.len() - 778, 778)])
        {
            let slot = slots.pop().unwrap();
            let index = slot.index;
            reader.start(slot, &(start as u64..(start + len) as u64)).unwrap();
            let slot = reader.finish(index, &file).unwrap();
            assert!(slot.bytes() == &scratch.1[start..start + len], "{start} + {len}");
            slots.insert(0, slot);
        }
    }

    #[test]
    fn file_that_was_cut_meanwhile_is_an_error_and_no_stale_byte() {
        let scratch = Scratch::new("cut", 2 * PIECE_BYTES);
        let file = OpenOptions::new().read(true).write(true).open(&scratch.0).unwrap();
        let mut slots = Slot::several(1, 2 * PIECE_BYTES).unwrap();
        let Some(mut reader) = reader(&file, &mut slots) else { return };
        file.set_len(PIECE_BYTES as u64 + 10).unwrap();
        reader.start(slots.pop().unwrap(), &(0..2 * PIECE_BYTES as u64)).unwrap();
        let error = reader.finish(0, &file).err().expect("the file is too short");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn dropping_a_reader_waits_for_the_kernel() {
        let scratch = Scratch::new("dropped", 4 * PIECE_BYTES);
        let file = File::open(&scratch.0).unwrap();
        for _ in 0..20 {
            let mut slots = Slot::several(2, 4 * PIECE_BYTES).unwrap();
            let Some(mut reader) = reader(&file, &mut slots) else { return };
            for slot in slots {
                reader.start(slot, &(0..4 * PIECE_BYTES as u64)).unwrap();
            }
            assert!(reader.in_flight > 0);
            drop(reader);
        }
    }
}
