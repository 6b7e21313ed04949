//! Nodes, cores, SMT siblings and L3 groups, as sysfs shows them to this process.
use std::collections::BTreeSet;
use std::path::Path;

use crate::affinity::allowed_cpus;
use crate::cgroup;
use crate::cpu::{CpuId, NodeId};
use crate::error::Error;
use crate::sysfs;

/// The part of the machine that this process may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Nodes with at least one usable cpu, ascending by id; never empty. Nodes of memory alone are left out.
    pub nodes: Vec<Node>,
    /// Usable cpus that the operator keeps the scheduler away from, ascending. A thread whose set has several of them
    /// stays on the one where it happens to be.
    pub isolated: Vec<CpuId>,
    /// Cpu time that the process' groups leave it, in thousandths of a cpu; `None` without a quota.
    pub quota_millicpus: Option<u64>,
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
    /// Where its memory comes from: the node itself, or the nearest one with memory if it has none or the cpuset keeps the
    /// process from it.
    pub memory_node: NodeId,
}

/// One physical core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Core {
    /// Usable SMT siblings, ascending; never empty.
    pub cpus: Vec<CpuId>,
    /// The lowest cpu that shares this core's last-level cache: equal for cores of one L3 group.
    pub l3: CpuId,
    pub kind: CoreKind,
}

/// Machines with cores of two kinds have both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CoreKind {
    /// As fast as any usable core, about.
    Performance,
    /// Slower than others.
    Efficient,
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
        let slow = sysfs::slow_cpus(root, &usable)?;
        let online = sysfs::node_ids(root)?;
        let memory = cpuset(root, proc_root, &["cpuset.mems.effective", "cpuset.effective_mems", "cpuset.mems"])?;
        let memory: Option<Vec<NodeId>> = memory.map(|nodes| nodes.into_iter().map(|node| NodeId(node.0)).collect());
        let nodes = cpus_by_node(root, &online, &usable)?.into_iter().map(|(id, cpus)| {
            Ok(Node {
                id,
                cores: sysfs::cores_of(root, &cpus, &slow)?,
                cpus,
                memory_bytes: sysfs::node_memory_bytes(root, id),
                memory_node: sysfs::memory_node(root, id, &online, memory.as_deref()),
            })
        });
        let nodes = nodes.collect::<Result<_, Error>>()?;
        let mut isolated = sysfs::isolated_cpus(root)?;
        isolated.retain(|cpu| usable.contains(cpu));
        Ok(Self { nodes, isolated, quota_millicpus: cgroup::quota_millicpus(root, proc_root) })
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

    /// Whether the scheduler is kept away from `cpu`.
    #[must_use]
    pub fn is_isolated(&self, cpu: CpuId) -> bool {
        self.isolated.binary_search(&cpu).is_ok()
    }
}

impl Node {
    /// Cores by last-level cache.
    pub fn l3_groups(&self) -> impl Iterator<Item = &[Core]> {
        self.cores.chunk_by(|a, b| a.l3 == b.l3)
    }
}

fn usable_cpus(root: &Path, proc_root: &Path, allowed: Option<&[CpuId]>) -> Result<BTreeSet<CpuId>, Error> {
    let online = match sysfs::online_cpus(root)? {
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
    let names = ["cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"];
    if let Some(cpuset) = cpuset(root, proc_root, &names)? {
        usable.retain(|cpu| cpuset.contains(cpu));
    }
    if usable.is_empty() { Err(Error::NoCpus) } else { Ok(usable) }
}

/// What the effective cpuset says in the first of the files `names` that is not empty: of the nearest group that has one.
/// Nodes are written as cpus are.
fn cpuset(root: &Path, proc_root: &Path, names: &[&str]) -> Result<Option<Vec<CpuId>>, Error> {
    for folder in cgroup::folders(root, proc_root, "cpuset") {
        for name in names {
            match sysfs::read_list(&folder.join(name))? {
                Some(cpus) if !cpus.is_empty() => return Ok(Some(cpus)),
                _ => {}
            }
        }
    }
    Ok(None)
}

/// Every usable cpu with its node; those without one join the first.
fn cpus_by_node(root: &Path, online: &[NodeId], usable: &BTreeSet<CpuId>) -> Result<Vec<(NodeId, Vec<CpuId>)>, Error> {
    let mut unplaced = usable.clone();
    let mut nodes = Vec::new();
    for id in online {
        let on_node = sysfs::node_cpus(root, *id)?;
        let cpus: Vec<CpuId> = on_node.into_iter().filter(|cpu| unplaced.remove(cpu)).collect();
        if !cpus.is_empty() {
            nodes.push((*id, cpus));
        }
    }
    if !unplaced.is_empty() {
        match nodes.first_mut() {
            Some((_, cpus)) => {
                cpus.extend(unplaced);
                cpus.sort_unstable();
            }
            None => nodes.push((NodeId(0), unplaced.into_iter().collect())),
        }
    }
    Ok(nodes)
}
