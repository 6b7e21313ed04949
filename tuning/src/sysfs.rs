//! What sysfs says of nodes, cores and caches. Missing files never fail; malformed ones do.
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::cpu::{CpuId, NodeId, parse_cpus, parse_ids};
use crate::error::Error;
use crate::topology::{Core, CoreKind};

/// Online nodes; none where the kernel knows no nodes.
pub(crate) fn node_ids(root: &Path) -> Result<Vec<NodeId>, Error> {
    match fs::read_to_string(root.join("devices/system/node/online")) {
        Ok(list) => Ok(parse_ids(&list)?.into_iter().map(NodeId).collect()),
        Err(_) => Ok(Vec::new()),
    }
}

/// Cpus of a node; none where it has only memory.
pub(crate) fn node_cpus(root: &Path, id: NodeId) -> Result<Vec<CpuId>, Error> {
    Ok(read_list(&node_folder(root, id).join("cpulist"))?.unwrap_or_default())
}

/// The node that the PCI device at `bus` (`domain:bus:device.function`) hangs on; `None` where the kernel does not say.
#[must_use]
pub fn pci_node(root: &Path, bus: &str) -> Option<NodeId> {
    let folder = root.join("bus/pci/devices").join(bus.to_ascii_lowercase());
    // -1 is no node.
    let id = fs::read_to_string(folder.join("numa_node")).ok()?.trim().parse().ok()?;
    Some(NodeId(id))
}

/// Installed memory of a node; `None` where the kernel does not say.
pub(crate) fn node_memory_bytes(root: &Path, id: NodeId) -> Option<u64> {
    let meminfo = fs::read_to_string(node_folder(root, id).join("meminfo")).ok()?;
    let (_, after) = meminfo.split_once("MemTotal:")?;
    let kib: u64 = after.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// The node that gives `id` its memory: itself, or the nearest online one that has memory which `allowed` lets be used, the
/// lowest among equals.
pub(crate) fn memory_node(root: &Path, id: NodeId, online: &[NodeId], allowed: Option<&[NodeId]>) -> NodeId {
    let has_memory = |node: NodeId| {
        node_memory_bytes(root, node) != Some(0) && allowed.is_none_or(|allowed| allowed.contains(&node))
    };
    if has_memory(id) {
        return id;
    }
    let distances = fs::read_to_string(node_folder(root, id).join("distance")).unwrap_or_default();
    // One distance for each online node, in their order.
    let distances = distances.split_whitespace().map(|distance| distance.parse::<u32>().unwrap_or(u32::MAX));
    let near = distances.chain(std::iter::repeat(u32::MAX)).zip(online);
    let with_memory = near.filter(|(_, node)| has_memory(**node));
    with_memory.min().map_or(id, |(_, node)| *node)
}

/// The physical cores of `cpus`; those that share a last-level cache are neighbours.
pub(crate) fn cores_of(root: &Path, cpus: &[CpuId], slow: &BTreeSet<CpuId>) -> Result<Vec<Core>, Error> {
    let mut unplaced: BTreeSet<CpuId> = cpus.iter().copied().collect();
    let mut cores = Vec::new();
    while let Some(cpu) = unplaced.pop_first() {
        let folder = cpu_folder(root, cpu);
        let siblings = match read_list(&folder.join("topology/core_cpus_list"))? {
            Some(siblings) => siblings,
            None => read_list(&folder.join("topology/thread_siblings_list"))?.unwrap_or_default(),
        };
        let mut core = vec![cpu];
        core.extend(siblings.into_iter().filter(|sibling| unplaced.remove(sibling)));
        let l3 = last_level_cache(&folder)?.unwrap_or(cpus[0]);
        let kind = if slow.contains(&cpu) { CoreKind::Efficient } else { CoreKind::Performance };
        cores.push(Core { cpus: core, l3, kind });
    }
    cores.sort_by_key(|core| (core.l3, core.cpus[0]));
    Ok(cores)
}

/// Which of `cpus` are of a slower kind than the fastest: by the kernel's capacities where it gives them, else as the
/// processor's own event counters part them.
pub(crate) fn slow_cpus(root: &Path, cpus: &BTreeSet<CpuId>) -> Result<BTreeSet<CpuId>, Error> {
    let capacity = |cpu: &CpuId| {
        let text = fs::read_to_string(cpu_folder(root, *cpu).join("cpu_capacity")).ok()?;
        Some((*cpu, text.trim().parse::<u32>().ok()?))
    };
    let capacities: Vec<(CpuId, u32)> = cpus.iter().filter_map(capacity).collect();
    if let Some(most) = capacities.iter().map(|(_, capacity)| *capacity).max() {
        let is_slow = |capacity: u32| u64::from(capacity) * SLOW_SHARE.1 < u64::from(most) * SLOW_SHARE.0;
        return Ok(capacities.into_iter().filter(|(_, capacity)| is_slow(*capacity)).map(|(cpu, _)| cpu).collect());
    }
    let mut slow = BTreeSet::new();
    for name in ["cpu_atom", "cpu_lowpower"] {
        slow.extend(read_list(&root.join("devices").join(name).join("cpus"))?.unwrap_or_default());
    }
    slow.retain(|cpu| cpus.contains(cpu));
    // Of one kind, they are slower than none.
    Ok(if slow.len() == cpus.len() { BTreeSet::new() } else { slow })
}

/// Cpus that are online; `None` where the kernel does not say.
pub(crate) fn online_cpus(root: &Path) -> Result<Option<Vec<CpuId>>, Error> {
    read_list(&root.join("devices/system/cpu/online"))
}

/// Cpus among which the scheduler moves nothing (`isolcpus=` and isolated cpuset partitions).
pub(crate) fn isolated_cpus(root: &Path) -> Result<Vec<CpuId>, Error> {
    Ok(read_list(&root.join("devices/system/cpu/isolated"))?.unwrap_or_default())
}

pub(crate) fn read_list(path: &Path) -> Result<Option<Vec<CpuId>>, Error> {
    match fs::read_to_string(path) {
        Ok(list) => parse_cpus(&list).map(Some),
        Err(_) => Ok(None),
    }
}

/// The lowest cpu of those that share the L3 of the cpu in `folder`; `None` if it has no L3.
fn last_level_cache(folder: &Path) -> Result<Option<CpuId>, Error> {
    for index in 0..CACHE_INDEX_MAX {
        let cache = folder.join(format!("cache/index{index}"));
        let Ok(level) = fs::read_to_string(cache.join("level")) else { break };
        if level.trim() == "3" {
            return Ok(read_list(&cache.join("shared_cpu_list"))?.and_then(|cpus| cpus.first().copied()));
        }
    }
    Ok(None)
}

fn node_folder(root: &Path, id: NodeId) -> std::path::PathBuf {
    root.join(format!("devices/system/node/{id}"))
}

fn cpu_folder(root: &Path, cpu: CpuId) -> std::path::PathBuf {
    root.join(format!("devices/system/cpu/{cpu}"))
}

const CACHE_INDEX_MAX: usize = 16;
/// A cpu of less than three quarters of the greatest capacity is of another kind, not a favoured core's neighbour.
const SLOW_SHARE: (u64, u64) = (3, 4);
