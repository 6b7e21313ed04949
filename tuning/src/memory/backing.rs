//! What an arena got: pages, node, lock; and what the machine says of it afterwards.
use std::fmt;
use std::io;
use std::path::Path;

use super::pages::{PageKind, Shortage};
use crate::cpu::NodeId;

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

/// Whether pages may leave memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locking {
    /// Nobody asked for it.
    Unlocked,
    Locked,
    /// Pages of a pool never leave.
    OfPool,
    /// The limit on locked memory is less, or locking is forbidden.
    Refused {
        limit_bytes: Option<u64>,
    },
}

/// Where pages are, of those that were looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Residency {
    pub on_node: usize,
    pub elsewhere: usize,
    /// Not touched yet, or swapped out.
    pub absent: usize,
}

/// All of it, for a line of a log.
#[derive(Clone, Debug)]
pub struct Backing {
    pub bytes: usize,
    pub pages: PageKind,
    /// Pools of larger pages that were too small.
    pub shortages: Vec<Shortage>,
    pub binding: Binding,
    pub locking: Locking,
    /// `None` where no node was asked for, or the kernel does not tell.
    pub residency: Option<Residency>,
    /// Percent of the memory that is in huge pages, where these are transparent and the kernel tells.
    pub huge_percent: Option<u64>,
}

impl Residency {
    /// Counts nodes as the kernel tells them: negative ones are none.
    pub(super) fn count(nodes: &[i32], wanted: NodeId) -> Self {
        let mut counts = Self { on_node: 0, elsewhere: 0, absent: 0 };
        for node in nodes {
            match u32::try_from(*node) {
                Ok(node) if node == wanted.0 => counts.on_node += 1,
                Ok(_) => counts.elsewhere += 1,
                Err(_) => counts.absent += 1,
            }
        }
        counts
    }

    /// Share of the pages that are elsewhere, in percent, rounded up.
    #[must_use]
    pub fn elsewhere_percent(self) -> usize {
        (100 * self.elsewhere).div_ceil((self.on_node + self.elsewhere).max(1))
    }
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB in {}", self.bytes.div_ceil(1 << 20), self.pages)?;
        let huge = self.huge_percent.map(|percent| format!("{percent} % of them huge"));
        let short = self.shortages.iter().map(|s| format!("{} of {} {} are free", s.free, s.wanted, s.kind));
        let why: Vec<String> = huge.into_iter().chain(short).collect();
        if !why.is_empty() {
            write!(f, " ({})", why.join(", "))?;
        }
        match (self.binding, self.residency) {
            (Binding::FirstTouch, _) => {}
            (Binding::Refused(node), None) => write!(f, ", {node} was asked for and could not be")?,
            (Binding::Preferred(node), None) => write!(f, ", bound to {node}")?,
            (Binding::Preferred(node) | Binding::Refused(node), Some(residency)) => {
                match residency.elsewhere_percent() {
                    0 => write!(f, ", all on {node}")?,
                    percent => write!(f, ", {percent} % of it not on {node}")?,
                }
            }
        }
        match self.locking {
            Locking::Unlocked => Ok(()),
            Locking::Locked | Locking::OfPool => write!(f, ", locked"),
            Locking::Refused { limit_bytes: Some(limit) } => {
                write!(f, ", not locked: RLIMIT_MEMLOCK is {} KiB", limit >> 10)
            }
            Locking::Refused { limit_bytes: None } => write!(f, ", not locked: it is forbidden"),
        }
    }
}

/// Percent of the mapping with the byte at `address` that is in huge pages, by the `smaps` of a process.
pub(super) fn huge_percent(smaps: &Path, address: usize) -> io::Result<Option<u64>> {
    let text = std::fs::read_to_string(smaps)?;
    let mut lines = text.lines().skip_while(|line| !holds(line, address)).skip(1);
    let mut kib = |name: &str| {
        let line = lines.find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    // In this order.
    let (Some(resident), Some(huge)) = (kib("Rss:"), kib("AnonHugePages:")) else { return Ok(None) };
    Ok((huge * 100).checked_div(resident))
}

/// Whether a line is the head of the mapping with `address`: `7f12-7f34 rw-p ..`.
fn holds(line: &str, address: usize) -> bool {
    let parse = |text: &str| usize::from_str_radix(text, 16).ok();
    let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
    let range = range.and_then(|(first, end)| Some(parse(first)?..parse(end)?));
    range.is_some_and(|range| range.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backing() -> Backing {
        Backing {
            bytes: 700 << 20,
            pages: PageKind::TransparentHuge,
            shortages: vec![Shortage { kind: PageKind::Huge2M, wanted: 350, free: 3 }],
            binding: Binding::Preferred(NodeId(1)),
            locking: Locking::Refused { limit_bytes: Some(8 << 20) },
            residency: Some(Residency::count(&[1, 1, 0, -2, 1], NodeId(1))),
            huge_percent: Some(97),
        }
    }

    #[test]
    fn one_line_says_what_was_got() {
        let line = "700 MiB in transparent huge pages (97 % of them huge, 3 of 350 2 MiB pages are free), 25 % of it not \
                    on node1, not locked: RLIMIT_MEMLOCK is 8192 KiB";
        assert_eq!(backing().to_string(), line);
        let best = Backing {
            pages: PageKind::Huge1G,
            shortages: vec![],
            locking: Locking::OfPool,
            residency: Some(Residency { on_node: 9, elsewhere: 0, absent: 0 }),
            huge_percent: None,
            ..backing()
        };
        assert_eq!(best.to_string(), "700 MiB in 1 GiB pages, all on node1, locked");
        let sandbox = Backing {
            pages: PageKind::Plain,
            binding: Binding::Refused(NodeId(0)),
            residency: None,
            locking: Locking::Refused { limit_bytes: None },
            ..best
        };
        let line = "700 MiB in plain pages, node0 was asked for and could not be, not locked: it is forbidden";
        assert_eq!(sandbox.to_string(), line);
    }

    #[test]
    fn pages_are_counted_by_where_they_are() {
        let residency = Residency::count(&[0, 2, -14, 0, 0], NodeId(0));
        assert_eq!(residency, Residency { on_node: 3, elsewhere: 1, absent: 1 });
        assert_eq!(residency.elsewhere_percent(), 25);
        assert_eq!(Residency::count(&[-2, -2], NodeId(0)).elsewhere_percent(), 0);
        // One page of many is not rounded away.
        assert_eq!(Residency { on_node: 9_999, elsewhere: 1, absent: 0 }.elsewhere_percent(), 1);
    }

    #[test]
    fn smaps_of_the_right_mapping_are_read() {
        let path = std::env::temp_dir().join(format!("tuning-smaps-{}", std::process::id()));
        let text = "1000-2000 r--p 0 00:00 0\nRss:   4 kB\nAnonHugePages:  4 kB\n\
                    7f0000-7f8000 rw-p 0 00:00 0\nSize:  32 kB\nRss:  2000 kB\nAnonHugePages:  1500 kB\n\
                    7f8000-7f9000 rw-p 0 00:00 0\nSize:  32 kB\nRss:  0 kB\nAnonHugePages:  0 kB\n";
        std::fs::write(&path, text).unwrap();
        let percents = [0x7f_7fff, 0x7f_8000, 0x9999_0000].map(|address| huge_percent(&path, address).unwrap());
        std::fs::write(&path, "rubbish\n-\n7f0000-xyz rw-p\n").unwrap();
        let rubbish = huge_percent(&path, 0x7f_0000).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!((percents, rubbish), ([Some(75), None, None], None));
    }
}
