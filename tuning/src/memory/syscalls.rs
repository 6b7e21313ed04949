//! The system calls behind an arena, each as thin as it can be.
#![expect(unsafe_code, reason = "mappings are raw memory")]
use std::io;
use std::ptr::{self, NonNull};

use super::pages::{BASE_PAGE_BYTES, HUGE_PAGE_BYTES};
use crate::cpu::NodeId;

/// A mapping of this process: its first byte and its length.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub(super) start: NonNull<u8>,
    pub(super) bytes: usize,
}

/// Maps anonymous zeroed memory.
pub(super) fn map(bytes: usize, flags: libc::c_int) -> io::Result<Range> {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags);
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches no memory that is in use.
    let address = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let start = NonNull::new(address.cast()).expect("the kernel maps nothing at address 0 unasked");
    Ok(Range { start, bytes })
}

/// Gives a mapping back.
///
/// # Safety
/// Nothing borrows from it, and nobody uses it any more.
pub(super) unsafe fn unmap(range: Range) {
    // SAFETY: the caller's word.
    unsafe { libc::munmap(range.start.as_ptr().cast(), range.bytes) };
}

/// Leaves `bytes` of a mapping from `offset` on, both in whole pages, and gives the rest back. A huge page that covers both is
/// never made then, or there would be memory behind the end that counts as nobody's.
///
/// # Safety
/// Nobody uses the rest, and the range lies inside the mapping.
pub(super) unsafe fn cut(range: Range, offset: usize, bytes: usize) -> Range {
    // SAFETY: the caller's word.
    let start = unsafe { range.start.add(offset) };
    // SAFETY: as above; the end of the mapping at most.
    let end = unsafe { start.add(bytes) };
    for rest in [Range { start: range.start, bytes: offset }, Range { start: end, bytes: range.bytes - offset - bytes }]
    {
        if rest.bytes > 0 {
            // SAFETY: the caller's word.
            unsafe { unmap(rest) };
        }
    }
    Range { start, bytes }
}

/// Takes the memory of pages away; what is read there next is zero.
///
/// # Safety
/// Nobody else uses what is in them, and zeros are valid for whoever comes next.
pub(super) unsafe fn discard(range: Range) -> io::Result<()> {
    // SAFETY: the caller's word.
    ok(unsafe { libc::madvise(range.start.as_ptr().cast(), range.bytes, libc::MADV_DONTNEED) })
}

/// Bytes of a small page of this kernel.
pub(super) fn page_bytes() -> usize {
    // SAFETY: no pointers are involved.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).ok().filter(|bytes| bytes.is_power_of_two()).unwrap_or(BASE_PAGE_BYTES)
}

/// Advice on how memory is backed; none of those used changes what is in it.
#[derive(Clone, Copy)]
pub(super) enum Advice {
    HugePages,
    /// Commits everything now.
    Populate,
}

/// Asks for 2 MiB pages for those parts of `values` that fill some; whether the kernel agreed. What is in them stays.
pub fn prefer_huge_pages<T>(values: &mut [T]) -> bool {
    let start = values.as_mut_ptr().cast::<u8>();
    let (slack, bytes) = (start.align_offset(HUGE_PAGE_BYTES), size_of_val(values));
    let whole = bytes.saturating_sub(slack) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    if whole == 0 {
        return false;
    }
    let start = NonNull::new(start.wrapping_add(slack)).expect("an address inside a slice");
    advise(Range { start, bytes: whole }, Advice::HugePages).is_ok()
}

pub(super) fn advise(range: Range, advice: Advice) -> io::Result<()> {
    let advice = match advice {
        Advice::HugePages => libc::MADV_HUGEPAGE,
        Advice::Populate => libc::MADV_POPULATE_WRITE,
    };
    // SAFETY: the advice changes how the pages are backed, never what is in them.
    ok(unsafe { libc::madvise(range.start.as_ptr().cast(), range.bytes, advice) })
}

/// Makes the kernel take pages from `node` as long as it has any.
pub(super) fn prefer_node(range: Range, node: NodeId) -> io::Result<()> {
    let mut mask = [0u64; NODE_MASK_WORDS];
    let bit = node.0 as usize;
    *mask.get_mut(bit / 64).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))? |= 1 << (bit % 64);
    // The kernel reads one bit less than it is told.
    let mask_bits = 64 * NODE_MASK_WORDS + 1;
    let (address, bytes) = (range.start.as_ptr(), range.bytes);
    // SAFETY: the mask has the bits announced; only the policy for pages to come changes.
    let status =
        unsafe { libc::syscall(libc::SYS_mbind, address, bytes, libc::MPOL_PREFERRED, mask.as_ptr(), mask_bits, 0) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The node of the page at each of `addresses`; a negative number (an error code) where there is none.
pub(super) fn nodes_of(addresses: &[*const u8]) -> io::Result<Vec<libc::c_int>> {
    let mut nodes = vec![-libc::ENOENT; addresses.len()];
    let (count, own_process, no_targets) = (addresses.len(), 0, ptr::null::<libc::c_int>());
    // SAFETY: without targets nothing is moved: the kernel reads `count` addresses and writes as many nodes.
    let status = unsafe {
        libc::syscall(libc::SYS_move_pages, own_process, count, addresses.as_ptr(), no_targets, nodes.as_mut_ptr(), 0)
    };
    if status == 0 { Ok(nodes) } else { Err(io::Error::last_os_error()) }
}

/// Keeps pages in memory; touches those that were not.
pub(super) fn lock(range: Range) -> io::Result<()> {
    // SAFETY: no byte is read or written on our behalf; the range is a mapping of this process.
    ok(unsafe { libc::mlock(range.start.as_ptr().cast(), range.bytes) })
}

fn ok(status: libc::c_int) -> io::Result<()> {
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const NODE_MASK_WORDS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_changes_no_value_and_small_slices_get_none() {
        assert!(!prefer_huge_pages::<u32>(&mut []));
        assert!(!prefer_huge_pages(&mut [1_u8; 100]));
        let mut values: Vec<u32> = (0..3 << 20).collect();
        // Whether the kernel has such pages is its own affair.
        prefer_huge_pages(&mut values[1..]);
        assert!(values.iter().copied().eq(0..3 << 20));
    }
}
