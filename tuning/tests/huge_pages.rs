//! Pages of the hugetlb pool, where this machine lets us reserve some: in a process of its own, since the pool is everybody's.
#![expect(clippy::unwrap_used, reason = "a test that cannot read the pool has failed")]
use std::fs;
use std::path::Path;

use tuning::NodeId;
use tuning::memory::{Arena, Locking, PageKind};

/// Four more pages than the pool had, for as long as it lives.
struct FourPages {
    before: String,
}

impl FourPages {
    fn reserve() -> Option<Self> {
        let before = fs::read_to_string(POOL.0).ok()?;
        let wanted = before.trim().parse::<u64>().ok()? + 4;
        let free_before = free();
        let pages = Self { before };
        fs::write(POOL.0, wanted.to_string()).ok()?;
        (free() >= free_before + 4).then_some(pages)
    }
}

impl Drop for FourPages {
    fn drop(&mut self) {
        // A pool that can't be made smaller again was not ours to make larger.
        let _ = fs::write(POOL.0, &self.before);
    }
}

fn free() -> u64 {
    fs::read_to_string(POOL.1).unwrap().trim().parse().unwrap()
}

#[test]
fn pages_of_a_pool_are_taken_locked_and_given_back() {
    let node = Path::new("/sys/devices/system/node/node0").exists().then_some(NodeId(0));
    for _ in 0..ATTEMPTS {
        let Some(_pages) = FourPages::reserve() else {
            eprintln!("skipped: no huge pages can be reserved here");
            return;
        };
        let had = free();
        let mut arena = Arena::zeroed(LEN_BYTES, node).unwrap();
        if arena.page_kind() != PageKind::Huge2M {
            // Another process was faster.
            continue;
        }
        assert!(free() <= had - 4);
        assert_eq!(arena.lock(), Locking::OfPool);
        let backing = arena.backing();
        assert!(backing.residency.is_none_or(|residency| residency.absent == 0), "{backing}");
        assert!(backing.shortages.is_empty() && backing.to_string().contains("in 2 MiB pages"), "{backing}");
        arena.as_mut_slice().fill(7);
        assert!(arena.as_slice().iter().all(|byte| *byte == 7));
        drop(arena);
        assert!(free() + 4 >= had, "pages are given back");
        return;
    }
    eprintln!("skipped: others take the pages that are reserved here");
}

#[test]
fn a_pool_that_is_too_small_is_named() {
    let arena = Arena::zeroed(1 << 30, None).unwrap();
    if arena.page_kind() == PageKind::TransparentHuge || arena.page_kind() == PageKind::Plain {
        let backing = arena.backing().to_string();
        assert!(backing.contains("of 512 2 MiB pages are free") && backing.contains("of 1 1 GiB pages"), "{backing}");
    }
}

/// How many pages there should be, and how many nobody has.
const POOL: (&str, &str) = (
    "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
    "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
);
const LEN_BYTES: usize = 3 * (2 << 20) + 5;
const ATTEMPTS: usize = 5;
