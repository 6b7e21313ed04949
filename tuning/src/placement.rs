//! The plan of shards and workers on cpus.
use std::fmt;

use crate::cpu::{CpuId, NodeId, format_cpus};
use crate::error::Error;
use crate::topology::{Core, Node, Topology};

/// Shards and the cpus of their threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    pub shards: Vec<ShardPlacement>,
}

/// The cpus of one shard; all of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardPlacement {
    pub node: NodeId,
    /// Affinity set of the executor: one cpu where it has a place of its own, else the cpus over which it floats.
    pub executor: Vec<CpuId>,
    /// One cpu for each worker, the leader first.
    pub workers: Vec<CpuId>,
}

/// Plans shards and workers.
///
/// `shards`: `None` is one for each node. More than there are nodes are spread by cores; fewer leave the smaller nodes idle,
/// as a shard never crosses a node.
///
/// `workers`, for each shard: `None` is one for each physical core, less the executor's own where the shard has
/// [`OWN_CORE_CORES_MIN`] cores or more. A number above the shard's cores is obeyed and pinned round-robin.
///
/// The executor sits on a core without workers if there is one, else on the SMT siblings that workers leave free,
/// else it floats over all the shard's cpus. Two workers share a core only if there are more workers than cores.
///
/// # Errors
/// [`Error::ShardsZero`], [`Error::WorkersZero`], [`Error::ShardsPastCores`], [`Error::WorkersPastLimit`].
pub fn plan(topology: &Topology, shards: Option<usize>, workers: Option<usize>) -> Result<Placement, Error> {
    let shards = shards.unwrap_or(topology.nodes.len());
    let cores = topology.core_count();
    if shards == 0 {
        return Err(Error::ShardsZero);
    }
    if shards > cores {
        return Err(Error::ShardsPastCores { shards, cores });
    }
    match workers {
        Some(0) => return Err(Error::WorkersZero),
        Some(workers) if workers > WORKERS_MAX => {
            return Err(Error::WorkersPastLimit { workers, limit: WORKERS_MAX });
        }
        _ => {}
    }
    let counts = shards_by_node(&topology.nodes, shards);
    let placed = topology
        .nodes
        .iter()
        .zip(counts)
        .flat_map(|(node, count)| split(&node.cores, count).map(move |cores| place_shard(node.id, cores, workers)));
    Ok(Placement { shards: placed.collect() })
}

/// How many shards each node gets: always to the node with the most cores for each shard that it would then have.
fn shards_by_node(nodes: &[Node], shards: usize) -> Vec<usize> {
    let mut counts = vec![0; nodes.len()];
    for _ in 0..shards {
        // First every node gets one, the biggest before the smaller; the lowest id wins among equals.
        let next = (0..nodes.len())
            .filter(|&i| counts[i] < nodes[i].cores.len())
            .min_by(|&a, &b| {
                let (cores_a, cores_b) = (nodes[a].cores.len(), nodes[b].cores.len());
                let empty_first = (counts[a] > 0).cmp(&(counts[b] > 0));
                empty_first.then((cores_b * (counts[a] + 1)).cmp(&(cores_a * (counts[b] + 1))))
            })
            .expect("there are no more shards than cores");
        counts[next] += 1;
    }
    counts
}

/// Cuts cores into `count` runs whose lengths differ by at most one.
fn split(cores: &[Core], count: usize) -> impl Iterator<Item = &[Core]> {
    (0..count).map(move |i| &cores[i * cores.len() / count..(i + 1) * cores.len() / count])
}

fn place_shard(node: NodeId, cores: &[Core], workers: Option<usize>) -> ShardPlacement {
    let worker_count = workers.unwrap_or(if cores.len() >= OWN_CORE_CORES_MIN { cores.len() - 1 } else { cores.len() });
    // The executor takes the shard's first core: the one to which devices send interrupts if nobody moved them.
    let (executor_core, worker_cores) = if worker_count < cores.len() { cores.split_at(1) } else { cores.split_at(0) };
    let workers: Vec<CpuId> = worker_cores.iter().cycle().take(worker_count).map(|core| core.cpus[0]).collect();
    let free_siblings = || cores.iter().flat_map(|core| core.cpus[1..].iter().copied()).collect::<Vec<_>>();
    let all = || cores.iter().flat_map(|core| core.cpus.iter().copied()).collect::<Vec<_>>();
    let mut executor = match executor_core.first() {
        Some(core) => vec![core.cpus[0]],
        None => free_siblings(),
    };
    if executor.is_empty() {
        executor = all();
    }
    executor.sort_unstable();
    ShardPlacement { node, executor, workers }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, shard) in self.shards.iter().enumerate() {
            let executor = format_cpus(&shard.executor);
            let workers: Vec<String> = shard.workers.iter().map(|cpu| cpu.0.to_string()).collect();
            writeln!(
                f,
                "shard {index} on {}: executor on cpu {executor}, workers on cpu {}",
                shard.node,
                workers.join(" ")
            )?;
        }
        Ok(())
    }
}

/// From this many cores on, a shard can spare one for its executor.
const OWN_CORE_CORES_MIN: usize = 8;
/// The most workers of one shard: beyond the cores of any node in sight, short of exhausting threads.
pub const WORKERS_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    /// `nodes` nodes of `cores` cores of `smt` cpus; siblings are numbered as Linux does on x86: second halves last.
    fn machine(nodes: u32, cores: u32, smt: u32) -> Topology {
        let node = |n: u32| {
            let first = n * cores;
            let core =
                |c: u32| Core { cpus: (0..smt).map(|s| CpuId(s * nodes * cores + c)).collect(), l3: CpuId(first) };
            let cores: Vec<Core> = (first..first + cores).map(core).collect();
            let mut cpus: Vec<CpuId> = cores.iter().flat_map(|core| core.cpus.clone()).collect();
            cpus.sort_unstable();
            Node { id: NodeId(n), cpus, cores, memory_bytes: None }
        };
        Topology { nodes: (0..nodes).map(node).collect() }
    }

    fn cpus(ids: impl IntoIterator<Item = u32>) -> Vec<CpuId> {
        ids.into_iter().map(CpuId).collect()
    }

    #[test]
    fn small_machine_uses_every_core_and_the_executor_floats() {
        let placement = plan(&machine(1, 2, 1), None, None).unwrap();
        assert_eq!(placement.shards, [ShardPlacement { node: NodeId(0), executor: cpus(0..2), workers: cpus(0..2) }]);
    }

    #[test]
    fn small_machine_with_smt_keeps_the_executor_off_the_workers() {
        let placement = plan(&machine(1, 4, 2), None, None).unwrap();
        assert_eq!(placement.shards, [ShardPlacement { node: NodeId(0), executor: cpus(4..8), workers: cpus(0..4) }]);
    }

    #[test]
    fn eight_cores_spare_one_for_the_executor() {
        let placement = plan(&machine(2, 8, 2), None, None).unwrap();
        assert_eq!(placement.shards[1], ShardPlacement { node: NodeId(1), executor: cpus([8]), workers: cpus(9..16) });
    }

    #[test]
    fn fewer_workers_than_cores_free_a_core_for_the_executor() {
        let placement = plan(&machine(1, 2, 1), None, Some(1)).unwrap();
        assert_eq!(placement.shards, [ShardPlacement { node: NodeId(0), executor: cpus([0]), workers: cpus([1]) }]);
    }

    #[test]
    fn more_workers_than_cores_go_round_robin() {
        let placement = plan(&machine(1, 2, 1), None, Some(5)).unwrap();
        assert_eq!(placement.shards[0].workers, cpus([0, 1, 0, 1, 0]));
        assert_eq!(placement.shards[0].executor, cpus(0..2));
    }

    #[test]
    fn shards_are_spread_over_nodes_by_cores() {
        let mut uneven = machine(2, 8, 1);
        uneven.nodes[1].cores.truncate(2);
        assert_eq!(shards_by_node(&uneven.nodes, 1), [1, 0]);
        assert_eq!(shards_by_node(&uneven.nodes, 2), [1, 1]);
        assert_eq!(shards_by_node(&uneven.nodes, 5), [4, 1]);
        assert_eq!(shards_by_node(&uneven.nodes, 10), [8, 2]);
    }

    #[test]
    fn impossible_plans_are_refused() {
        let machine = machine(1, 2, 2);
        assert!(matches!(plan(&machine, Some(0), None), Err(Error::ShardsZero)));
        assert!(matches!(plan(&machine, None, Some(0)), Err(Error::WorkersZero)));
        assert!(matches!(plan(&machine, Some(3), None), Err(Error::ShardsPastCores { shards: 3, cores: 2 })));
        assert!(matches!(plan(&machine, None, Some(513)), Err(Error::WorkersPastLimit { .. })));
    }

    #[test]
    fn every_plan_keeps_the_rules() {
        for (nodes, cores, smt) in [1, 2, 4, 8]
            .into_iter()
            .flat_map(|n| [1, 2, 3, 7, 8, 9, 64].map(|c| (n, c)))
            .flat_map(|(n, c)| [1, 2, 4].map(|s| (n, c, s)))
        {
            let machine = machine(nodes, cores, smt);
            for shards in [1, 2, nodes as usize, 3 * nodes as usize] {
                let Ok(placement) = plan(&machine, Some(shards), None) else {
                    assert!(shards > machine.core_count());
                    continue;
                };
                assert_eq!(placement.shards.len(), shards);
                let mut seen = Vec::new();
                for shard in &placement.shards {
                    let node = machine.nodes.iter().find(|node| node.id == shard.node).unwrap();
                    assert!(!shard.executor.is_empty() && !shard.workers.is_empty());
                    assert!(shard.executor.iter().chain(&shard.workers).all(|cpu| node.cpus.contains(cpu)));
                    seen.extend(shard.workers.iter().map(|cpu| {
                        node.cores.iter().position(|core| core.cpus.contains(cpu)).map(|core| (node.id, core)).unwrap()
                    }));
                    let apart = shard.executor.iter().all(|cpu| !shard.workers.contains(cpu));
                    assert!(apart || smt == 1 && shard.workers.len() < OWN_CORE_CORES_MIN);
                }
                let workers = seen.len();
                seen.sort_unstable();
                seen.dedup();
                assert_eq!(seen.len(), workers, "two workers on one core: {placement}");
            }
        }
    }
}
