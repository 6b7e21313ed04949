//! Which pages to ask for: the pools of huge pages against what is wanted, largest pages first.
use std::fmt;
use std::fs;
use std::path::Path;

use crate::cpu::NodeId;

/// The pages behind an [`Arena`](super::Arena).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// 1 GiB pages of the hugetlb pool, all of them committed.
    Huge1G,
    /// 2 MiB pages of the hugetlb pool, all of them committed.
    Huge2M,
    /// Pages of the base size, which the kernel was asked to merge to 2 MiB (`MADV_HUGEPAGE`).
    TransparentHuge,
    /// Pages of the base size.
    Plain,
}

/// A pool that had too few pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    pub kind: PageKind,
    pub wanted: u64,
    pub free: u64,
}

/// Pages of the hugetlb pools that may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pools {
    pub(super) free_1g: u64,
    pub(super) free_2m: u64,
}

impl PageKind {
    /// Of the hugetlb pool that it comes from; of the pages that are merged otherwise.
    pub(super) fn page_bytes(self) -> usize {
        match self {
            Self::Huge1G => 1 << 30,
            Self::Huge2M | Self::TransparentHuge => HUGE_PAGE_BYTES,
            Self::Plain => BASE_PAGE_BYTES,
        }
    }

    fn pages_for(self, bytes: usize) -> u64 {
        bytes.div_ceil(self.page_bytes()) as u64
    }

    pub(super) fn is_of_a_pool(self) -> bool {
        matches!(self, Self::Huge1G | Self::Huge2M)
    }
}

impl fmt::Display for PageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Huge1G => "1 GiB pages",
            Self::Huge2M => "2 MiB pages",
            Self::TransparentHuge => "transparent huge pages",
            Self::Plain => "plain pages",
        })
    }
}

impl Pools {
    /// Below `sys`. Pages that somebody has reserved don't count; those of one node can be counted only without
    /// reservations.
    pub(super) fn read(sys: &Path, node: Option<NodeId>) -> Self {
        let read = |path: &Path| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
        let free = |name: &str| {
            let pool = sys.join("kernel/mm/hugepages").join(name);
            let free = read(&pool.join("free_hugepages")).unwrap_or(0);
            let unreserved = free.saturating_sub(read(&pool.join("resv_hugepages")).unwrap_or(0));
            let on_node = |node| read(&sys.join(format!("devices/system/node/{node}/hugepages/{name}/free_hugepages")));
            node.and_then(on_node).map_or(unreserved, |on_node| on_node.min(unreserved))
        };
        Self { free_1g: free("hugepages-1048576kB"), free_2m: free("hugepages-2048kB") }
    }

    fn free(self, kind: PageKind) -> u64 {
        match kind {
            PageKind::Huge1G => self.free_1g,
            PageKind::Huge2M => self.free_2m,
            PageKind::TransparentHuge | PageKind::Plain => 0,
        }
    }

    /// Kinds of pool pages to try for `len_bytes`, in order, and the pools that are too small for it.
    pub(super) fn candidates(self, len_bytes: usize) -> (Vec<PageKind>, Vec<Shortage>) {
        let (mut enough, mut short) = (Vec::new(), Vec::new());
        for (kind, len_min) in [(PageKind::Huge1G, HUGE_1G_LEN_MIN), (PageKind::Huge2M, HUGE_PAGE_BYTES)] {
            let (wanted, free) = (kind.pages_for(len_bytes), self.free(kind));
            match len_bytes >= len_min {
                true if free >= wanted => enough.push(kind),
                true => short.push(Shortage { kind, wanted, free }),
                false => {}
            }
        }
        (enough, short)
    }
}

/// Whether the kernel may be asked for transparent huge pages.
pub(super) fn transparent_huge_pages_allowed(sys: &Path) -> bool {
    let modes = fs::read_to_string(sys.join("kernel/mm/transparent_hugepage/enabled"));
    modes.is_ok_and(|modes| !modes.contains("[never]"))
}

pub(super) const HUGE_PAGE_BYTES: usize = 2 << 20;
/// The largest base page of the supported architectures (aarch64 kernels with 64 KiB pages).
pub(super) const BASE_PAGE_BYTES: usize = 64 << 10;
/// From here on a 1 GiB page is at least half used.
const HUGE_1G_LEN_MIN: usize = 1 << 29;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn largest_pages_that_suffice_go_first() {
        let pools = |free_1g, free_2m| Pools { free_1g, free_2m };
        let shortage = |kind, wanted, free| Shortage { kind, wanted, free };
        let (g, m) = (PageKind::Huge1G, PageKind::Huge2M);
        let len = (1 << 30) + 1;
        assert_eq!(pools(2, 513).candidates(len), (vec![g, m], vec![]));
        assert_eq!(pools(1, 513).candidates(len), (vec![m], vec![shortage(g, 2, 1)]));
        assert_eq!(pools(0, 512).candidates(len), (vec![], vec![shortage(g, 2, 0), shortage(m, 513, 512)]));
        // A page of 1 GiB for less than half of it would be waste, pages of 2 MiB for a few KiB as well.
        assert_eq!(pools(9, 256).candidates((1 << 29) - 1), (vec![m], vec![]));
        assert_eq!(pools(9, 9).candidates(HUGE_PAGE_BYTES - 1), (vec![], vec![]));
        assert_eq!(pools(9, 9).candidates(0), (vec![], vec![]));
        assert_eq!(pools(u64::MAX, 0).candidates(usize::MAX).0, [g]);
    }

    #[test]
    fn pools_are_read_per_node_and_less_what_is_reserved() {
        let root = std::env::temp_dir().join(format!("tuning-pools-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let none = Pools::read(&root, Some(NodeId(0)));
        write("kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "100\n");
        write("kernel/mm/hugepages/hugepages-2048kB/resv_hugepages", "30\n");
        write("kernel/mm/hugepages/hugepages-1048576kB/free_hugepages", "4\n");
        let everywhere = Pools::read(&root, None);
        write("devices/system/node/node1/hugepages/hugepages-1048576kB/free_hugepages", "1\n");
        write("devices/system/node/node1/hugepages/hugepages-2048kB/free_hugepages", "90\n");
        let on_node = Pools::read(&root, Some(NodeId(1)));
        let never = (transparent_huge_pages_allowed(&root), {
            write("kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n");
            transparent_huge_pages_allowed(&root)
        });
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(none, Pools { free_1g: 0, free_2m: 0 });
        assert_eq!(everywhere, Pools { free_1g: 4, free_2m: 70 });
        assert_eq!(on_node, Pools { free_1g: 1, free_2m: 70 });
        assert_eq!(never, (false, false));
    }
}
