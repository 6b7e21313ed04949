//! Nodes, cores, SMT siblings and L3 groups, as sysfs shows them to this process.
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::affinity::allowed_cpus;
use crate::cgroup;
use crate::cpu::{CpuId, NodeId, parse_cpus, parse_ids};
use crate::error::Error;

/// The part of the machine that this process may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Nodes with at least one usable cpu, ascending by id; never empty. Nodes of memory alone are left out.
    pub nodes: Vec<Node>,
}

/// One NUMA node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub id: NodeId,
    /// Usable cpus, ascending; never empty.
    pub cpus: Vec<CpuId>,
    /// The same cpus by physical core; cores that share an L3 are neighbours.
    pub cores: Vec<Core>,
    /// Installed memory of the node; `None` where the kernel does not say.
    pub memory_bytes: Option<u64>,
}

/// One physical core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Core {
    /// Usable SMT siblings, ascending; never empty.
    pub cpus: Vec<CpuId>,
    /// The lowest cpu that shares this core's last-level cache: equal for cores of one L3 group.
    pub l3: CpuId,
}

impl Topology {
    /// Reads a sysfs tree (`/sys`), cut down to this process' affinity mask and cpuset.
    ///
    /// To be called before threads are pinned: the mask is the calling thread's.
    ///
    /// Missing files never fail: without nodes there is one node, without sibling lists every cpu is a core,
    /// without cache files a node is one L3 group.
    ///
    /// # Errors
    /// [`Error::NoCpus`] if nothing is left, [`Error::CpuList`] if the kernel's files are malformed.
    pub fn read(root: &Path) -> Result<Self, Error> {
        let allowed = allowed_cpus().ok();
        Self::read_within(root, Path::new("/proc"), allowed.as_deref())
    }

    /// As [`Topology::read`], with another `/proc` (for the cgroup's name) and another affinity mask; `None` allows all.
    ///
    /// # Errors
    /// As [`Topology::read`].
    pub fn read_within(root: &Path, proc_root: &Path, allowed: Option<&[CpuId]>) -> Result<Self, Error> {
        let usable = usable_cpus(root, proc_root, allowed)?;
        let mut unplaced = usable.clone();
        let mut nodes = Vec::new();
        for id in node_ids(root)? {
            let folder = root.join(format!("devices/system/node/node{id}"));
            let on_node = read_list(&folder.join("cpulist"))?.unwrap_or_default();
            let cpus: Vec<CpuId> = on_node.into_iter().filter(|cpu| unplaced.remove(cpu)).collect();
            if !cpus.is_empty() {
                nodes.push((NodeId(id), cpus, node_memory_bytes(&folder)));
            }
        }
        if !unplaced.is_empty() {
            match nodes.first_mut() {
                Some((_, cpus, _)) => {
                    cpus.extend(unplaced);
                    cpus.sort_unstable();
                }
                None => nodes.push((NodeId(0), unplaced.into_iter().collect(), None)),
            }
        }
        let nodes = nodes
            .into_iter()
            .map(|(id, cpus, memory_bytes)| Ok(Node { id, cores: cores_of(root, &cpus)?, cpus, memory_bytes }))
            .collect::<Result<_, Error>>()?;
        Ok(Self { nodes })
    }

    /// Physical cores of all nodes.
    #[must_use]
    pub fn core_count(&self) -> usize {
        self.nodes.iter().map(|node| node.cores.len()).sum()
    }

    /// Logical cpus of all nodes.
    #[must_use]
    pub fn cpu_count(&self) -> usize {
        self.nodes.iter().map(|node| node.cpus.len()).sum()
    }
}

impl Node {
    /// Cpus by last-level cache, groups in the order of their cores.
    #[must_use]
    pub fn l3_groups(&self) -> Vec<Vec<CpuId>> {
        let by_l3 = self.cores.chunk_by(|a, b| a.l3 == b.l3);
        by_l3.map(|cores| cores.iter().flat_map(|core| core.cpus.iter().copied()).collect()).collect()
    }
}

fn usable_cpus(root: &Path, proc_root: &Path, allowed: Option<&[CpuId]>) -> Result<BTreeSet<CpuId>, Error> {
    let online = match read_list(&root.join("devices/system/cpu/online"))? {
        Some(cpus) => cpus,
        None => match allowed {
            Some(cpus) => cpus.to_vec(),
            None => (0u32..).take(std::thread::available_parallelism().map_or(1, usize::from)).map(CpuId).collect(),
        },
    };
    let mut usable: BTreeSet<CpuId> = online.into_iter().collect();
    if let Some(allowed) = allowed {
        usable.retain(|cpu| allowed.contains(cpu));
    }
    if let Some(cpuset) = cpuset(root, proc_root)? {
        usable.retain(|cpu| cpuset.contains(cpu));
    }
    if usable.is_empty() { Err(Error::NoCpus) } else { Ok(usable) }
}

/// The effective cpuset: of the nearest group that has one.
fn cpuset(root: &Path, proc_root: &Path) -> Result<Option<Vec<CpuId>>, Error> {
    for folder in cgroup::folders(root, proc_root, "cpuset") {
        for name in ["cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"] {
            match read_list(&folder.join(name))? {
                Some(cpus) if !cpus.is_empty() => return Ok(Some(cpus)),
                _ => {}
            }
        }
    }
    Ok(None)
}

fn node_ids(root: &Path) -> Result<Vec<u32>, Error> {
    match fs::read_to_string(root.join("devices/system/node/online")) {
        Ok(list) => parse_ids(&list),
        Err(_) => Ok(Vec::new()),
    }
}

fn node_memory_bytes(folder: &Path) -> Option<u64> {
    let meminfo = fs::read_to_string(folder.join("meminfo")).ok()?;
    let (_, after) = meminfo.split_once("MemTotal:")?;
    let kib: u64 = after.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

fn cores_of(root: &Path, cpus: &[CpuId]) -> Result<Vec<Core>, Error> {
    let mut unplaced: BTreeSet<CpuId> = cpus.iter().copied().collect();
    let mut cores = Vec::new();
    while let Some(cpu) = unplaced.pop_first() {
        let folder = root.join(format!("devices/system/cpu/cpu{}", cpu.0));
        let siblings = match read_list(&folder.join("topology/core_cpus_list"))? {
            Some(siblings) => siblings,
            None => read_list(&folder.join("topology/thread_siblings_list"))?.unwrap_or_default(),
        };
        let mut core = vec![cpu];
        core.extend(siblings.into_iter().filter(|sibling| unplaced.remove(sibling)));
        let l3 = last_level_cache(&folder)?.unwrap_or(cpus[0]);
        cores.push(Core { cpus: core, l3 });
    }
    cores.sort_by_key(|core| (core.l3, core.cpus[0]));
    Ok(cores)
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

fn read_list(path: &Path) -> Result<Option<Vec<CpuId>>, Error> {
    match fs::read_to_string(path) {
        Ok(list) => parse_cpus(&list).map(Some),
        Err(_) => Ok(None),
    }
}

const CACHE_INDEX_MAX: usize = 16;
