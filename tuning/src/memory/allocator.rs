//! What the C library's allocator does with big blocks.

#[cfg(target_env = "gnu")]
use std::sync::atomic::{AtomicUsize, Ordering};

/// Makes blocks of at least `bytes` mappings of their own, given back to the system as soon as they are freed; whether
/// the allocator can be told so.
///
/// glibc raises its own limit with every such block that is freed, up to 32 MiB: later ones then come from a heap that
/// shrinks at its end only, and zeroed ones are written where fresh pages would have done.
#[cfg(target_env = "gnu")]
pub fn map_blocks_from(bytes: usize) -> bool {
    MAPPED_FROM.store(bytes, Ordering::Relaxed);
    set_threshold(bytes)
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "an option of the C library")]
fn set_threshold(bytes: usize) -> bool {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    // SAFETY: no pointers are involved.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, bytes) == 1 }
}

/// What `make` makes; meanwhile blocks from four pages on are mappings of their own, so that zeroed ones take no memory before they
/// are touched: a heap that had others in their place writes to them. Nothing else where [`map_blocks_from`] was not called.
#[cfg(target_env = "gnu")]
pub fn untouched<T>(make: impl FnOnce() -> T) -> T {
    let usual = MAPPED_FROM.load(Ordering::Relaxed);
    if usual > UNTOUCHED_FROM {
        set_threshold(UNTOUCHED_FROM);
    }
    let made = make();
    if usual > UNTOUCHED_FROM {
        set_threshold(usual);
    }
    made
}

/// Other allocators have no such option.
#[cfg(not(target_env = "gnu"))]
pub fn untouched<T>(make: impl FnOnce() -> T) -> T {
    make()
}

/// Other allocators have no such option.
#[cfg(not(target_env = "gnu"))]
pub fn map_blocks_from(_bytes: usize) -> bool {
    false
}

/// Gives what is free in the allocator's heaps back to the system, as far as it fills pages; whether it had any.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "a call of the C library")]
pub fn give_back_free() -> bool {
    // SAFETY: blocks that are in use stay where they are.
    unsafe { libc::malloc_trim(0) == 1 }
}

/// Other allocators are not asked.
#[cfg(not(target_env = "gnu"))]
pub fn give_back_free() -> bool {
    false
}

/// Bytes of [`map_blocks_from`], 0 before it was called.
#[cfg(target_env = "gnu")]
static MAPPED_FROM: AtomicUsize = AtomicUsize::new(0);
/// Bytes from which blocks are mappings while [`untouched`] makes something.
#[cfg(target_env = "gnu")]
const UNTOUCHED_FROM: usize = 16 << 10;

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use crate::memory::rss_bytes;

    #[test]
    fn freed_blocks_go_back_and_zeroed_ones_cost_nothing_before_they_are_touched() {
        assert!(super::map_blocks_from(1 << 20));
        for _ in 0..3 {
            drop(std::hint::black_box(vec![1_u8; 24 << 20]));
        }
        let before = rss_bytes().unwrap();
        let untouched: Vec<Vec<u8>> = (0..8).map(|_| std::hint::black_box(vec![0; 24 << 20])).collect();
        // Other tests run beside this one and hold some megabytes of their own.
        assert!(rss_bytes().unwrap() < before + (96 << 20), "192 MiB that nobody touched");
        drop(untouched);
        // A heap that had blocks of this size writes to the next ones; mappings are new.
        let made = || (0..256).map(|_| std::hint::black_box(vec![0_u8; 100 << 10])).collect::<Vec<_>>();
        (0..2).for_each(|_| drop((0..256).map(|_| std::hint::black_box(vec![1_u8; 100 << 10])).collect::<Vec<_>>()));
        let before = rss_bytes().unwrap();
        let blocks = super::untouched(made);
        assert!(rss_bytes().unwrap() < before + (12 << 20), "25 MiB that nobody touched");
        drop(blocks);
    }
}
