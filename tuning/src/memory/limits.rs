//! How much memory there is for this process, and how much it has.
use std::fs;
use std::path::Path;

use crate::cgroup;
use crate::cpu::NodeId;
use crate::error::Error;

/// Bytes that this process can still commit without swapping or being killed:
/// the least of the system's `MemAvailable`, what every cgroup above the process leaves (v1 and v2), and what its own
/// limits of address space and data do.
///
/// # Errors
/// [`Error::Read`] or [`Error::FieldMissing`] if `/proc/meminfo` is not there or has no `MemAvailable`.
pub fn available_memory_bytes() -> Result<u64, Error> {
    available_below(Path::new("/sys"), Path::new("/proc"))
}

/// Bytes that can be had on one node: what is free, and half of what the kernel can take back; `None` where it does not
/// say. A hint, since memory spills from node to node.
#[must_use]
pub fn available_node_bytes(node: NodeId) -> Option<u64> {
    available_on_node(Path::new("/sys"), node)
}

/// Resident bytes of this process.
///
/// # Errors
/// [`Error::Read`] or [`Error::FieldMissing`] if `/proc/self/status` does not say.
pub fn rss_bytes() -> Result<u64, Error> {
    kib_field(Path::new("/proc/self/status"), "VmRSS")
}

/// The most resident bytes that this process has had.
///
/// # Errors
/// [`Error::Read`] or [`Error::FieldMissing`] if `/proc/self/status` does not say.
pub fn peak_rss_bytes() -> Result<u64, Error> {
    kib_field(Path::new("/proc/self/status"), "VmHWM")
}

fn available_below(sys: &Path, proc_root: &Path) -> Result<u64, Error> {
    let system = kib_field(&proc_root.join("meminfo"), "MemAvailable")?;
    let groups = cgroup::folders(sys, proc_root, "memory");
    let limits = groups.iter().filter_map(|folder| left_in_group(folder)).chain(left_to_process(proc_root));
    Ok(limits.fold(system, u64::min))
}

/// What `ulimit -v` and `ulimit -d` leave, where they are set.
fn left_to_process(proc_root: &Path) -> impl Iterator<Item = u64> {
    let (limits, status) = (proc_root.join("self/limits"), proc_root.join("self/status"));
    let text = fs::read_to_string(limits).unwrap_or_default();
    [("Max address space", "VmSize"), ("Max data size", "VmData")].into_iter().filter_map(move |(name, used)| {
        let soft = text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?;
        // `unlimited` is no number.
        let limit = soft.parse::<u64>().ok()?;
        Some(limit.saturating_sub(kib_field(&status, used).ok()?))
    })
}

fn available_on_node(sys: &Path, node: NodeId) -> Option<u64> {
    let text = fs::read_to_string(sys.join(format!("devices/system/node/{node}/meminfo"))).ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.split_once(name).map(|(_, value)| value))?;
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    let reclaimable = ["Inactive(file):", "Active(file):", "SReclaimable:"].into_iter().filter_map(field);
    Some(field("MemFree:")?.saturating_add(reclaimable.fold(0, u64::saturating_add) / 2))
}

/// Limit less use; page cache that nobody has touched lately is given back by the kernel before it kills.
fn left_in_group(folder: &Path) -> Option<u64> {
    let unified = || Some((number(folder, "memory.max")?, number(folder, "memory.current")?, "inactive_file"));
    let legacy = || {
        Some((
            number(folder, "memory.limit_in_bytes")?,
            number(folder, "memory.usage_in_bytes")?,
            "total_inactive_file",
        ))
    };
    let (limit, used, cache_field) = unified().or_else(legacy)?;
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let cache =
        stat.lines().find_map(|line| line.strip_prefix(cache_field)?.strip_prefix(' ')?.parse().ok()).unwrap_or(0u64);
    Some(limit.saturating_sub(used.saturating_sub(cache)))
}

/// `None` for a missing file and for `max`, which is no limit.
fn number(folder: &Path, name: &str) -> Option<u64> {
    fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
}

fn kib_field(path: &Path, field: &'static str) -> Result<u64, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let kib = text.lines().find_map(|line| {
        let value = line.strip_prefix(field)?.strip_prefix(':')?;
        value.split_whitespace().next()?.parse::<u64>().ok()
    });
    kib.and_then(|kib| kib.checked_mul(1024)).ok_or_else(|| Error::FieldMissing { path: path.to_owned(), field })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("tuning-limits-{}-{name}", std::process::id()));
            for (path, text) in files {
                let path = root.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Self(root)
        }

        fn available(&self) -> Result<u64, Error> {
            available_below(&self.0.join("sys"), &self.0.join("proc"))
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:  1000 kB\n");

    #[test]
    fn without_groups_the_system_decides() {
        assert_eq!(Tree::new("plain", &[MEMINFO]).available().unwrap(), 1_024_000);
    }

    #[test]
    fn unified_group_limits_and_counts_idle_cache_as_free() {
        let tree = Tree::new(
            "v2",
            &[
                MEMINFO,
                ("proc/self/cgroup", "0::/a/b\n"),
                ("sys/fs/cgroup/a/b/memory.max", "max\n"),
                ("sys/fs/cgroup/a/b/memory.current", "300000\n"),
                ("sys/fs/cgroup/a/memory.max", "500000\n"),
                ("sys/fs/cgroup/a/memory.current", "400000\n"),
                ("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 50000\nactive_file 9\n"),
            ],
        );
        assert_eq!(tree.available().unwrap(), 150_000);
    }

    #[test]
    fn legacy_group_limits() {
        let tree = Tree::new(
            "v1",
            &[
                MEMINFO,
                ("proc/self/cgroup", "4:memory:/job\n1:cpu:/\n"),
                ("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "700000\n"),
                ("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "900000\n"),
                ("sys/fs/cgroup/memory/job/memory.stat", "total_inactive_file 300000\n"),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ("sys/fs/cgroup/memory/memory.usage_in_bytes", "900000\n"),
            ],
        );
        assert_eq!(tree.available().unwrap(), 100_000);
    }

    #[test]
    fn limits_of_the_process_count() {
        let limits = |space: &str, data: &str| {
            format!(
                "Limit                     Soft Limit           Hard Limit           Units     \n\
                 Max data size             {data:<20} unlimited            bytes     \n\
                 Max stack size            8388608              unlimited            bytes     \n\
                 Max address space         {space:<20} unlimited            bytes     \n"
            )
        };
        let available = |name, space: &str, data: &str| {
            let status = ("proc/self/status", "VmPeak: 9 kB\nVmSize:  300 kB\nVmRSS: 1 kB\nVmData:  100 kB\n");
            Tree::new(name, &[MEMINFO, ("proc/self/limits", &limits(space, data)), status]).available().unwrap()
        };
        assert_eq!(available("unlimited", "unlimited", "unlimited"), 1_024_000);
        assert_eq!(available("space", "409600", "unlimited"), 102_400);
        assert_eq!(available("data", "unlimited", "122880"), 20_480);
        assert_eq!(available("spent", "204800", "unlimited"), 0);
        assert_eq!(available("roomy", "1000000000", "1000000000"), 1_024_000);
    }

    #[test]
    fn each_node_has_its_own() {
        let meminfo = "\nNode 1 MemTotal:       9000 kB\nNode 1 MemFree:        1000 kB\nNode 1 Active(file):    200 kB\n\
                       Node 1 Inactive(file):  300 kB\nNode 1 KReclaimable:   9999 kB\nNode 1 SReclaimable:    100 kB\n";
        let folder = "sys/devices/system/node";
        let files = [
            (format!("{folder}/node0/meminfo"), "Node 0 MemTotal: 5 kB\nNode 0 MemFree: 3 kB\n"),
            (format!("{folder}/node1/meminfo"), meminfo),
            (format!("{folder}/node2/meminfo"), "Node 2 MemTotal: 5 kB\n"),
            (format!("{folder}/node3/meminfo"), "Node 3 MemFree: many\n"),
        ];
        let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        let tree = Tree::new("nodes", &files);
        let available = |node| available_on_node(&tree.0.join("sys"), NodeId(node));
        let kib = |kib: u64| Some(kib * 1024);
        assert_eq!([0, 1, 2, 3, 4].map(available), [kib(3), kib(1300), None, None, None]);
    }

    #[test]
    fn missing_files_are_named() {
        assert!(matches!(Tree::new("none", &[]).available(), Err(Error::Read { .. })));
        let tree = Tree::new("old", &[("proc/meminfo", "MemTotal: 5 kB\n")]);
        assert!(matches!(tree.available(), Err(Error::FieldMissing { field: "MemAvailable", .. })));
    }

    #[test]
    fn this_process_is_measured() {
        assert!(available_memory_bytes().unwrap() > 0);
        assert!(peak_rss_bytes().unwrap() >= rss_bytes().unwrap());
    }
}
