//! Where the process' cgroups keep their files, for v1, v2 and mixed hierarchies.
use std::fs;
use std::path::{Path, PathBuf};

/// Folders to ask for files of `controller`, from the process' own group up to the root, v2 before v1.
///
/// `sys` and `proc_root` are `/sys` and `/proc`. Inside a container the path of `/proc/self/cgroup` may lead nowhere;
/// the roots are always among the candidates.
pub(crate) fn folders(sys: &Path, proc_root: &Path, controller: &str) -> Vec<PathBuf> {
    let lines = fs::read_to_string(proc_root.join("self/cgroup")).unwrap_or_default();
    let mut found = Vec::new();
    let unified = [sys.join("fs/cgroup"), sys.join("fs/cgroup/unified")];
    let legacy = sys.join("fs/cgroup").join(controller);
    for line in lines.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        if controllers.is_empty() {
            for root in &unified {
                push_chain(&mut found, root, path);
            }
        } else if controllers.split(',').any(|name| name == controller) {
            push_chain(&mut found, &legacy, path);
        }
    }
    for root in unified.into_iter().chain([legacy]) {
        if !found.contains(&root) {
            found.push(root);
        }
    }
    found
}

/// Cpu time that the process may use, in thousandths of a cpu: the least quota of the groups above it, v1 and v2.
pub(crate) fn quota_millicpus(sys: &Path, proc_root: &Path) -> Option<u64> {
    let groups = folders(sys, proc_root, "cpu");
    groups.iter().filter_map(|folder| unified_quota(folder).or_else(|| legacy_quota(folder))).min()
}

/// `cpu.max`: quota and period in microseconds; a quota of `max` is none.
fn unified_quota(folder: &Path) -> Option<u64> {
    let text = fs::read_to_string(folder.join("cpu.max")).ok()?;
    let (quota, period) = text.trim().split_once(' ')?;
    millicpus(quota, period)
}

/// A legacy quota of -1 is none.
fn legacy_quota(folder: &Path) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    millicpus(&read("cpu.cfs_quota_us")?, &read("cpu.cfs_period_us")?)
}

fn millicpus(quota: &str, period: &str) -> Option<u64> {
    let (quota, period): (u64, u64) = (quota.trim().parse().ok()?, period.trim().parse().ok()?);
    quota.checked_mul(1000)?.checked_div(period)
}

fn push_chain(found: &mut Vec<PathBuf>, root: &Path, path: &str) {
    let relative = Path::new(path.trim_start_matches('/'));
    // A group outside the cgroup namespace is written with `..`: its files are not visible from here.
    if relative.components().any(|part| part == std::path::Component::ParentDir) {
        return;
    }
    found.extend(
        relative
            .ancestors()
            .map(|ancestor| if ancestor.as_os_str().is_empty() { root.to_path_buf() } else { root.join(ancestor) }),
    );
}
