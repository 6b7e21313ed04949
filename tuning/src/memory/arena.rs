//! Anonymous zeroed memory in the largest pages that the machine gives.
#![expect(unsafe_code, reason = "mappings are raw memory; everything above sees slices")]
use std::fs;
use std::io;
use std::ptr::{self, NonNull};
use std::slice;

use crate::cpu::NodeId;
use crate::error::Error;

/// The pages behind an [`Arena`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// 2 MiB pages of the hugetlb pool, all of them committed.
    Huge2M,
    /// Pages of the base size, which the kernel was asked to merge to 2 MiB (`MADV_HUGEPAGE`).
    TransparentHuge,
    /// Pages of the base size.
    Plain,
}

/// Whether the pages come from the node that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// No node was asked for.
    FirstTouch,
    /// The kernel takes pages from this node as long as it has any.
    Preferred(NodeId),
    /// The kernel has no NUMA policy, or a sandbox forbids to set one: pages come from where they are touched first.
    Refused(NodeId),
}

/// An owned range of zeroed memory, aligned to a page at least, to 2 MiB if it is that big.
///
/// Not backed by a file: a file that changes cannot turn a read into a SIGBUS.
#[derive(Debug)]
pub struct Arena {
    data: NonNull<u8>,
    len_bytes: usize,
    /// What was mapped, alignment slack and rounding included.
    mapping: NonNull<u8>,
    mapping_bytes: usize,
    page_kind: PageKind,
    binding: Binding,
}

// SAFETY: an Arena owns its mapping; shared access reads only, writing needs `&mut`.
unsafe impl Send for Arena {}
// SAFETY: as above; there is no interior mutability.
unsafe impl Sync for Arena {}

impl Arena {
    /// Memory for `len_bytes` that will all be used, as weights are.
    ///
    /// Takes 2 MiB pages of the hugetlb pool if they suffice, else transparent ones, else plain ones.
    /// `node` is the preference, not a cage: a full node spills to the next instead of calling the OOM killer.
    ///
    /// # Errors
    /// [`Error::Map`] if there is no memory or address space, [`Error::Bind`] if the node does not exist.
    pub fn zeroed(len_bytes: usize, node: Option<NodeId>) -> Result<Self, Error> {
        if len_bytes >= HUGE_PAGE_BYTES
            && let Some(arena) = Self::from_huge_pool(len_bytes, node)?
        {
            return Ok(arena);
        }
        Self::from_base_pages(len_bytes, node, 0)
    }

    /// Address space for `len_bytes` of which pages are committed when touched first, as a KV pool's are.
    ///
    /// # Errors
    /// As [`Arena::zeroed`].
    pub fn reserve(len_bytes: usize, node: Option<NodeId>) -> Result<Self, Error> {
        Self::from_base_pages(len_bytes, node, libc::MAP_NORESERVE)
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
        self.page_kind
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

    /// `None` if the pool is too small or its pages cannot all be had on `node`.
    fn from_huge_pool(len_bytes: usize, node: Option<NodeId>) -> Result<Option<Self>, Error> {
        let mapping_bytes = round_up(len_bytes, HUGE_PAGE_BYTES)?;
        if huge_pages_free(node) < (mapping_bytes / HUGE_PAGE_BYTES) as u64 {
            return Ok(None);
        }
        let Ok(mapping) = map(mapping_bytes, libc::MAP_HUGETLB | libc::MAP_HUGE_2MB) else { return Ok(None) };
        let page_kind = PageKind::Huge2M;
        let mut arena =
            Self { data: mapping, len_bytes, mapping, mapping_bytes, page_kind, binding: Binding::FirstTouch };
        arena.prefer(node)?;
        // Committed now, while failure is a return value: a pool or cgroup limit that runs dry later is a SIGBUS.
        Ok(arena.advise(libc::MADV_POPULATE_WRITE).is_ok().then_some(arena))
    }

    fn from_base_pages(len_bytes: usize, node: Option<NodeId>, flags: libc::c_int) -> Result<Self, Error> {
        let big = len_bytes >= HUGE_PAGE_BYTES;
        let slack = if big { HUGE_PAGE_BYTES } else { 0 };
        let mapping_bytes = round_up(len_bytes.max(1), BASE_PAGE_BYTES)?;
        let mapping_bytes = mapping_bytes.checked_add(slack).ok_or(Error::MapPastAddressSpace { bytes: len_bytes })?;
        let mapping = map(mapping_bytes, flags).map_err(|source| Error::Map { bytes: mapping_bytes, source })?;
        let offset = if big { mapping.as_ptr().align_offset(HUGE_PAGE_BYTES) } else { 0 };
        assert!(offset <= slack, "alignment of a byte pointer takes less than one page");
        // SAFETY: the mapping is `slack` longer than `len_bytes`, so the offset stays inside it.
        let data = unsafe { mapping.add(offset) };
        let page_kind = PageKind::Plain;
        let mut arena = Self { data, len_bytes, mapping, mapping_bytes, page_kind, binding: Binding::FirstTouch };
        arena.prefer(node)?;
        if big && transparent_huge_pages_allowed() && arena.advise(libc::MADV_HUGEPAGE).is_ok() {
            arena.page_kind = PageKind::TransparentHuge;
        }
        Ok(arena)
    }

    fn prefer(&mut self, node: Option<NodeId>) -> Result<(), Error> {
        let Some(node) = node else { return Ok(()) };
        let refused = |code| Error::Bind { node, source: io::Error::from_raw_os_error(code) };
        let mut mask = [0u64; NODE_MASK_WORDS];
        let bit = node.0 as usize;
        *mask.get_mut(bit / 64).ok_or_else(|| refused(libc::EINVAL))? |= 1 << (bit % 64);
        // The kernel reads one bit less than it is told.
        let mask_bits = 64 * NODE_MASK_WORDS + 1;
        let (address, bytes) = (self.mapping.as_ptr(), self.mapping_bytes);
        // SAFETY: the range is this arena's own mapping and the mask has the bits announced; only page policy changes.
        let status = unsafe {
            libc::syscall(libc::SYS_mbind, address, bytes, libc::MPOL_PREFERRED, mask.as_ptr(), mask_bits, 0)
        };
        let error = io::Error::last_os_error();
        self.binding = match error.raw_os_error() {
            _ if status == 0 => Binding::Preferred(node),
            Some(libc::ENOSYS | libc::EPERM) => Binding::Refused(node),
            _ => return Err(Error::Bind { node, source: error }),
        };
        Ok(())
    }

    fn advise(&self, advice: libc::c_int) -> io::Result<()> {
        let (address, bytes) = (self.mapping.as_ptr().cast(), self.mapping_bytes);
        // SAFETY: the range is this arena's own mapping; the two advices used change how it is backed, never its contents.
        let status = unsafe { libc::madvise(address, bytes, advice) };
        if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping is owned by self and nothing can borrow from it any more.
        unsafe { libc::munmap(self.mapping.as_ptr().cast(), self.mapping_bytes) };
    }
}

fn map(bytes: usize, flags: libc::c_int) -> io::Result<NonNull<u8>> {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags);
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches no memory that is in use.
    let address = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(NonNull::new(address.cast()).expect("the kernel maps nothing at address 0 unasked"))
}

fn round_up(bytes: usize, page_bytes: usize) -> Result<usize, Error> {
    bytes.checked_next_multiple_of(page_bytes).ok_or(Error::MapPastAddressSpace { bytes })
}

/// Pages of the pool that nobody holds or has reserved; those of one node can be counted only without reservations.
fn huge_pages_free(node: Option<NodeId>) -> u64 {
    let read = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let pool = "/sys/kernel/mm/hugepages/hugepages-2048kB";
    let free = read(&format!("{pool}/free_hugepages")).unwrap_or(0);
    let unreserved = free.saturating_sub(read(&format!("{pool}/resv_hugepages")).unwrap_or(0));
    let on_node = node
        .and_then(|node| read(&format!("/sys/devices/system/node/{node}/hugepages/hugepages-2048kB/free_hugepages")));
    on_node.map_or(unreserved, |on_node| on_node.min(unreserved))
}

fn transparent_huge_pages_allowed() -> bool {
    fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").is_ok_and(|modes| !modes.contains("[never]"))
}

const HUGE_PAGE_BYTES: usize = 2 << 20;
/// The largest base page of the supported architectures (aarch64 kernels with 64 KiB pages).
const BASE_PAGE_BYTES: usize = 64 << 10;
const NODE_MASK_WORDS: usize = 16;

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
