//! What the C library's allocator does with big blocks.

/// Makes blocks of at least `bytes` mappings of their own, given back to the system as soon as they are freed; whether
/// the allocator can be told so.
///
/// glibc raises its own limit with every such block that is freed, up to 32 MiB: later ones then come from a heap that
/// shrinks at its end only, and zeroed ones are written where fresh pages would have done.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "an option of the C library")]
pub fn map_blocks_from(bytes: usize) -> bool {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    // SAFETY: no pointers are involved.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, bytes) == 1 }
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
    }
}
