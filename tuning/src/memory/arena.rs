//! Anonymous zeroed memory in the largest pages that the machine gives.
#![expect(unsafe_code, reason = "mappings are raw memory; everything above sees slices")]
use std::io;
use std::ops;
use std::path::Path;
use std::ptr::NonNull;
use std::slice;

use super::backing::{Backing, Binding, Locking, Residency, huge_percent};
use super::pages::{BASE_PAGE_BYTES, HUGE_PAGE_BYTES, PageKind, Pools, Shortage, transparent_huge_pages_allowed};
use super::syscalls::{self, Advice, Range};
use crate::cpu::NodeId;
use crate::error::Error;
use crate::rlimits;

/// An owned range of zeroed memory, aligned to a page at least, to 2 MiB if it is that big.
///
/// Not backed by a file: a file that changes cannot turn a read into a SIGBUS.
#[derive(Debug)]
pub struct Arena {
    data: NonNull<u8>,
    len_bytes: usize,
    /// What is mapped, rounding included.
    mapping: Range,
    pages: PageKind,
    shortages: Vec<Shortage>,
    binding: Binding,
    locking: Locking,
}

// SAFETY: an Arena owns its mapping; shared access reads only, writing needs `&mut`.
unsafe impl Send for Arena {}
// SAFETY: as above; there is no interior mutability.
unsafe impl Sync for Arena {}

impl Arena {
    /// Memory for `len_bytes` that will all be used, as weights are.
    ///
    /// Takes 1 GiB pages of the hugetlb pool if they suffice, else 2 MiB ones, else transparent ones, else plain ones.
    /// `node` is the preference, not a cage: a full node spills to the next instead of calling the OOM killer.
    ///
    /// # Errors
    /// [`Error::Map`] if there is no memory or address space, [`Error::Bind`] if the node does not exist.
    pub fn zeroed(len_bytes: usize, node: Option<NodeId>) -> Result<Self, Error> {
        let (candidates, shortages) = Pools::read(Path::new(SYS), node).candidates(len_bytes);
        for kind in candidates {
            if let Some(mut arena) = Self::from_pool(len_bytes, node, kind)? {
                arena.shortages = shortages;
                return Ok(arena);
            }
        }
        let mut arena = Self::from_base_pages(len_bytes, node, 0)?;
        arena.shortages = shortages;
        Ok(arena)
    }

    /// Address space for `len_bytes` of which pages are committed when touched first, as a KV pool's are.
    ///
    /// # Errors
    /// As [`Arena::zeroed`].
    pub fn reserve(len_bytes: usize, node: Option<NodeId>) -> Result<Self, Error> {
        Self::from_base_pages(len_bytes, node, libc::MAP_NORESERVE)
    }

    /// The same bytes in memory of `node`.
    ///
    /// # Errors
    /// As [`Arena::zeroed`].
    pub fn copied_to(&self, node: NodeId) -> Result<Self, Error> {
        let mut copy = Self::zeroed(self.len_bytes, Some(node))?;
        copy.as_mut_slice().copy_from_slice(self.as_slice());
        Ok(copy)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.len_bytes
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len_bytes == 0
    }

    #[must_use]
    pub fn page_kind(&self) -> PageKind {
        self.pages
    }

    #[must_use]
    pub fn binding(&self) -> Binding {
        self.binding
    }

    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `data` starts `len_bytes` of mapped, initialised (zeroed by the kernel) bytes that live as long as self.
        unsafe { slice::from_raw_parts(self.data.as_ptr(), self.len_bytes) }
    }

    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and `&mut self` makes this the only access.
        unsafe { slice::from_raw_parts_mut(self.data.as_ptr(), self.len_bytes) }
    }

    /// Where the first byte is, for those who share the memory by rules of their own.
    #[must_use]
    pub fn as_mut_ptr(&mut self) -> NonNull<u8> {
        self.data
    }

    /// Keeps all of it in memory from now on, as far as the limit on locked memory allows; commits what wasn't touched.
    pub fn lock(&mut self) -> Locking {
        self.locking = if self.pages.is_of_a_pool() {
            Locking::OfPool
        } else {
            match syscalls::lock(Range { start: self.data, bytes: self.len_bytes }) {
                Ok(()) => Locking::Locked,
                Err(error) => {
                    let is_limit = matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::EAGAIN | libc::EPERM));
                    Locking::Refused { limit_bytes: rlimits::locked_memory_bytes().filter(|_| is_limit) }
                }
            }
        };
        self.locking
    }

    /// Gives what of `bytes` fills pages (as large as base pages are on any machine) back to the system: it is zero again,
    /// and no memory until it is touched.
    ///
    /// # Errors
    /// The kernel's, as for pages that are locked.
    ///
    /// # Panics
    /// When the range is not inside the arena.
    pub fn give_back(&mut self, bytes: ops::Range<usize>) -> io::Result<()> {
        assert!(bytes.start <= bytes.end && bytes.end <= self.len_bytes, "a range of the arena");
        let page_bytes = syscalls::page_bytes();
        let (start, end) = (bytes.start.next_multiple_of(page_bytes), bytes.end / page_bytes * page_bytes);
        if start >= end || self.pages.is_of_a_pool() {
            return Ok(());
        }
        // SAFETY: both ends lie inside the arena.
        let start_ptr = unsafe { self.data.add(start) };
        // SAFETY: `&mut self` is the only access to these pages, and zeros are bytes as good as any.
        unsafe { syscalls::discard(Range { start: start_ptr, bytes: end - start }) }
    }

    /// What it lies in, as far as the machine tells. Looks at some thousand of its pages.
    #[must_use]
    pub fn backing(&self) -> Backing {
        let node = match self.binding {
            Binding::FirstTouch => None,
            Binding::Preferred(node) | Binding::Refused(node) => Some(node),
        };
        let transparent = self.pages == PageKind::TransparentHuge;
        let huge = transparent.then(|| huge_percent(Path::new(SMAPS), self.data.as_ptr().addr()));
        Backing {
            bytes: self.len_bytes,
            pages: self.pages,
            shortages: self.shortages.clone(),
            binding: self.binding,
            locking: self.locking,
            residency: node.and_then(|node| self.residency(node).ok()),
            huge_percent: huge.and_then(Result::ok).flatten(),
        }
    }

    /// On which nodes its pages are.
    ///
    /// # Errors
    /// The kernel's, as where it has no NUMA or a sandbox forbids to ask.
    pub fn residency(&self, node: NodeId) -> io::Result<Residency> {
        let step = (self.len_bytes / PAGES_LOOKED_AT).next_multiple_of(PAGE_BYTES_MIN).max(PAGE_BYTES_MIN);
        let addresses: Vec<*const u8> = (0..self.len_bytes)
            .step_by(step)
            .map(|offset| self.data.as_ptr().cast_const().wrapping_add(offset))
            .collect();
        Ok(Residency::count(&syscalls::nodes_of(&addresses)?, node))
    }

    /// `None` if the pool's pages cannot all be had after all.
    fn from_pool(len_bytes: usize, node: Option<NodeId>, pages: PageKind) -> Result<Option<Self>, Error> {
        let flag = if pages == PageKind::Huge1G { libc::MAP_HUGE_1GB } else { libc::MAP_HUGE_2MB };
        let mapping_bytes = round_up(len_bytes, pages.page_bytes())?;
        let Ok(mapping) = syscalls::map(mapping_bytes, libc::MAP_HUGETLB | flag) else { return Ok(None) };
        let mut arena = Self::over(mapping, mapping.start, len_bytes, pages);
        arena.prefer(node)?;
        // Committed now, while failure is a return value: a pool or cgroup limit that runs dry later is a SIGBUS.
        Ok(syscalls::advise(arena.mapping, Advice::Populate).is_ok().then_some(arena))
    }

    fn from_base_pages(len_bytes: usize, node: Option<NodeId>, flags: libc::c_int) -> Result<Self, Error> {
        let big = len_bytes >= HUGE_PAGE_BYTES;
        let slack = if big { HUGE_PAGE_BYTES } else { 0 };
        let mapping_bytes = round_up(len_bytes.max(1), BASE_PAGE_BYTES)?;
        let mapping_bytes = mapping_bytes.checked_add(slack).ok_or(Error::MapPastAddressSpace { bytes: len_bytes })?;
        let refused = |source| Error::Map { bytes: mapping_bytes, source };
        let mapping = syscalls::map(mapping_bytes, flags).map_err(refused)?;
        let offset = if big { mapping.start.as_ptr().align_offset(HUGE_PAGE_BYTES) } else { 0 };
        assert!(offset <= slack, "alignment of a byte pointer takes less than one page");
        // SAFETY: offset and the bytes behind it are inside the mapping; nobody knows of the rest yet.
        let mapping = unsafe { syscalls::cut(mapping, offset, mapping_bytes - slack) };
        let mut arena = Self::over(mapping, mapping.start, len_bytes, PageKind::Plain);
        arena.prefer(node)?;
        let ask = big && transparent_huge_pages_allowed(Path::new(SYS));
        if ask && syscalls::advise(arena.mapping, Advice::HugePages).is_ok() {
            arena.pages = PageKind::TransparentHuge;
        }
        Ok(arena)
    }

    fn over(mapping: Range, data: NonNull<u8>, len_bytes: usize, pages: PageKind) -> Self {
        let (binding, locking) = (Binding::FirstTouch, Locking::Unlocked);
        Self { data, len_bytes, mapping, pages, shortages: Vec::new(), binding, locking }
    }

    fn prefer(&mut self, node: Option<NodeId>) -> Result<(), Error> {
        let Some(node) = node else { return Ok(()) };
        self.binding = match syscalls::prefer_node(self.mapping, node) {
            Ok(()) => Binding::Preferred(node),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => Binding::Refused(node),
            Err(source) => return Err(Error::Bind { node, source }),
        };
        Ok(())
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping is owned by self and nothing can borrow from it any more.
        unsafe { syscalls::unmap(self.mapping) };
    }
}

fn round_up(bytes: usize, page_bytes: usize) -> Result<usize, Error> {
    bytes.checked_next_multiple_of(page_bytes).ok_or(Error::MapPastAddressSpace { bytes })
}

const SYS: &str = "/sys";
const SMAPS: &str = "/proc/self/smaps";
/// Pages of an arena that are looked at to see where it is.
const PAGES_LOOKED_AT: usize = 4096;
const PAGE_BYTES_MIN: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::rss_bytes;

    #[test]
    fn arena_is_zeroed_aligned_and_writable() {
        for len_bytes in [0, 1, 4095, 64 << 10, HUGE_PAGE_BYTES - 1, HUGE_PAGE_BYTES, 3 * HUGE_PAGE_BYTES + 17] {
            let mut arena = Arena::zeroed(len_bytes, None).unwrap();
            assert_eq!((arena.len(), arena.as_slice().len()), (len_bytes, len_bytes));
            assert!(arena.as_slice().iter().all(|byte| *byte == 0));
            let alignment = if len_bytes >= HUGE_PAGE_BYTES { HUGE_PAGE_BYTES } else { 4096 };
            assert_eq!(arena.as_slice().as_ptr().align_offset(alignment), 0);
            arena.as_mut_slice().fill(0xA5);
            assert!(arena.as_slice().iter().all(|byte| *byte == 0xA5));
        }
    }

    #[test]
    fn small_arena_does_not_waste_a_huge_page() {
        assert_eq!(Arena::zeroed(4096, None).unwrap().page_kind(), PageKind::Plain);
    }

    #[test]
    fn node_zero_is_preferred_or_the_refusal_is_told() {
        let arena = Arena::zeroed(4 << 20, Some(NodeId(0))).unwrap();
        assert!(matches!(arena.binding(), Binding::Preferred(NodeId(0)) | Binding::Refused(NodeId(0))));
        assert_eq!(Arena::zeroed(4096, None).unwrap().binding(), Binding::FirstTouch);
    }

    #[test]
    fn touched_pages_are_where_they_should_be() {
        let mut arena = Arena::zeroed(4 << 20, Some(NodeId(0))).unwrap();
        let Ok(before) = arena.residency(NodeId(0)) else {
            // A kernel without NUMA, or a sandbox.
            assert_eq!(arena.backing().residency, None);
            return;
        };
        arena.as_mut_slice().fill(1);
        let after = arena.residency(NodeId(0)).unwrap();
        assert!(after.absent == 0 && after.on_node + after.elsewhere == 1024, "{before:?} {after:?}");
        assert_eq!(after.elsewhere, arena.residency(NodeId(0)).unwrap().elsewhere);
        // Whoever asks for another node is told that nothing is there.
        assert_eq!(arena.residency(NodeId(999)).unwrap().on_node, 0);
        // A machine of one node has nowhere else to go.
        if !Path::new("/sys/devices/system/node/node1").exists() {
            assert_eq!(after.elsewhere, 0);
        }
        assert_eq!(Arena::zeroed(0, Some(NodeId(0))).unwrap().residency(NodeId(0)).unwrap().on_node, 0);
    }

    #[test]
    fn lock_holds_or_says_what_forbids_it() {
        let locked_kib = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let mut arena = Arena::reserve(4 << 20, None).unwrap();
        assert_eq!(arena.backing().locking, Locking::Unlocked);
        let locking = arena.lock();
        match locking {
            Locking::Locked => assert!(locked_kib() >= 4096),
            Locking::Refused { limit_bytes } => assert!(limit_bytes.is_none_or(|limit| limit < 4 << 20)),
            Locking::Unlocked | Locking::OfPool => panic!("{locking:?}"),
        }
        assert_eq!(arena.backing().locking, locking);
    }

    #[test]
    fn absent_node_is_an_error_and_not_a_crash() {
        for node in [NodeId(1000), NodeId(1_000_000)] {
            match Arena::zeroed(4 << 20, Some(node)) {
                Ok(arena) => assert_eq!(arena.binding(), Binding::Refused(node)),
                Err(error) => assert!(matches!(error, Error::Bind { .. })),
            }
        }
    }

    #[test]
    fn reservation_costs_nothing_until_touched() {
        let before = rss_bytes().unwrap();
        let mut arena = Arena::reserve(8 << 30, None).unwrap();
        arena.as_mut_slice()[4 << 30] = 7;
        assert_eq!(arena.as_slice()[4 << 30], 7);
        // Other tests run beside this one and hold some megabytes of their own.
        assert!(rss_bytes().unwrap() < before + (256 << 20));
    }

    #[test]
    fn no_huge_page_reaches_far_beyond_the_end() {
        let before = rss_bytes().unwrap();
        let touched = |_| {
            let mut arena = Arena::zeroed(HUGE_PAGE_BYTES + 1, None).unwrap();
            arena.as_mut_slice().fill(1);
            arena
        };
        let arenas: Vec<Arena> = (0..96).map(touched).collect();
        // A second huge page for the last byte of each would make it 384 MiB; other tests hold some of their own.
        assert!(rss_bytes().unwrap() < before + (300 << 20), "{} arenas of 2 MiB and a byte", arenas.len());
    }

    #[test]
    fn what_is_given_back_is_zero_again_and_its_neighbours_stay() {
        let mut arena = Arena::reserve(4 << 20, None).unwrap();
        arena.as_mut_slice().fill(7);
        let page = syscalls::page_bytes();
        arena.give_back(page - 1..1 << 20).unwrap();
        arena.give_back(5 << 19..(5 << 19) + page + 1).unwrap();
        arena.give_back(100..200).unwrap();
        for (at, byte) in arena.as_slice().iter().enumerate() {
            let gone = (page..1 << 20).contains(&at) || (5 << 19..(5 << 19) + page).contains(&at);
            assert_eq!(*byte, if gone { 0 } else { 7 }, "byte {at}");
        }
        arena.as_mut_slice()[page] = 9;
        assert_eq!(arena.as_slice()[page..page + 2], [9, 0]);
    }

    #[test]
    #[should_panic(expected = "a range of the arena")]
    fn nothing_beyond_the_arena_is_given_back() {
        let mut arena = Arena::reserve(1 << 20, None).unwrap();
        let _ = arena.give_back(0..(1 << 20) + 1);
    }

    #[test]
    fn more_than_the_address_space_is_an_error() {
        assert!(Arena::zeroed(usize::MAX, None).is_err());
        assert!(Arena::reserve(usize::MAX / 2, None).is_err());
    }

    #[test]
    fn arena_crosses_threads() {
        let mut arena = Arena::zeroed(1 << 20, None).unwrap();
        arena.as_mut_slice()[5] = 9;
        let (left, right) = std::thread::scope(|scope| {
            let left = scope.spawn(|| arena.as_slice()[5]);
            let right = scope.spawn(|| arena.as_slice()[6]);
            (left.join().unwrap(), right.join().unwrap())
        });
        assert_eq!((left, right), (9, 0));
    }
}
