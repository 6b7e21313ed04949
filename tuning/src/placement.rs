//! The plan of shards and workers on cpus.
use std::fmt;

use crate::cpu::{CpuId, NodeId};
use crate::error::Error;
use crate::topology::{Core, CoreKind, Node, Topology};

/// Shards and the cpus of their threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    pub shards: Vec<ShardPlacement>,
    /// Of each device, in the order in which they were given.
    pub devices: Vec<DevicePlacement>,
    /// Usable cpus that are no device's, ascending.
    pub others: Vec<CpuId>,
    /// What the operator should know of it.
    pub notes: Vec<Note>,
}

/// The cpus of one shard; all of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardPlacement {
    pub node: NodeId,
    /// Where its weights and its KV cache should lie: its node, or the nearest one that has memory.
    pub memory_node: NodeId,
    /// Affinity set of the executor: one cpu where it has a place of its own, else the cpus over which it floats.
    pub executor: Vec<CpuId>,
    /// One cpu for each worker, the leader first; no two of one core.
    pub workers: Vec<CpuId>,
}

/// The cpus of one device, on which nothing else is placed: those of its feeder thread and of its worker process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePlacement {
    pub node: NodeId,
    /// One for each of them, or one for both; none where no core is to spare: then they go where there is room.
    pub cpus: Vec<CpuId>,
}

impl DevicePlacement {
    /// The feeder's cpu.
    #[must_use]
    pub fn feeder(&self) -> Option<CpuId> {
        self.cpus.first().copied()
    }

    /// The worker process's.
    #[must_use]
    pub fn worker(&self) -> Option<CpuId> {
        self.cpus.last().copied()
    }
}

/// A placement that was asked for, or that the machine leaves no better choice than.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// More workers than the quota lets run.
    PastQuota { workers: usize, quota_millicpus: u64 },
    /// A node without memory.
    FarMemory { node: NodeId, memory_node: NodeId },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PastQuota { workers, quota_millicpus } => write!(
                f,
                "the cgroup's quota is {}.{:03} cpus and {workers} workers are wanted: the kernel will hold them up",
                quota_millicpus / 1000,
                quota_millicpus % 1000
            ),
            Self::FarMemory { node, memory_node } => {
                write!(f, "{node} has no memory, its shards read that of {memory_node}")
            }
        }
    }
}

/// Plans shards and workers.
///
/// `shards`: `None` is one for each node, or as few nodes as the cgroup's quota lets work. More than there are nodes are
/// spread by cores, within L3 groups where these part into shards of about the same size; fewer leave the smaller nodes
/// idle, as a shard never crosses a node.
///
/// `workers`, for each shard: `None` is one for each physical core that the operator isolated or, where there are cores
/// of two kinds, for each fast one; else for each core, less the executor's own where the shard has
/// [`OWN_CORE_CORES_MIN`] cores or more. It is no more than the quota lets run.
///
/// The executor sits on a core without workers if there is one, on a slow one first and never on an isolated one if
/// there are others; else on the SMT siblings that workers leave free; else it floats over all the shard's cpus.
///
/// # Errors
/// [`Error::ShardsZero`], [`Error::WorkersZero`], [`Error::ShardsPastCores`], [`Error::WorkersPastCores`].
pub fn plan(topology: &Topology, shards: Option<usize>, workers: Option<usize>) -> Result<Placement, Error> {
    plan_with_devices(topology, shards, workers, &[])
}

/// Plans shards and workers, and cpus of their own for devices that are fed from these nodes, or from any.
///
/// A device gets a core with siblings, or two cores without, of a shard of its node: such as executor and workers leave,
/// or, where `workers` is `None`, such as workers would have, as long as the shard keeps [`WORKERS_BESIDE_DEVICES_MIN`] of
/// them.
///
/// # Errors
/// Those of [`plan`].
pub fn plan_with_devices(
    topology: &Topology,
    shards: Option<usize>,
    workers: Option<usize>,
    devices: &[Option<NodeId>],
) -> Result<Placement, Error> {
    let sizes: Vec<usize> = topology.nodes.iter().map(|node| node.cores.len()).collect();
    let cpus_max = topology.quota_millicpus.map(|quota| usize::try_from(quota / 1000).unwrap_or(usize::MAX).max(1));
    let shards = shards.unwrap_or_else(|| nodes_needed(&sizes, cpus_max));
    let cores = topology.core_count();
    if shards == 0 {
        return Err(Error::ShardsZero);
    }
    if workers == Some(0) {
        return Err(Error::WorkersZero);
    }
    if shards > cores {
        return Err(Error::ShardsPastCores { shards, cores });
    }
    let workers_max = cpus_max.map_or(usize::MAX, |cpus| less_own_core((cpus / shards).max(1)));
    let mut parts = Vec::with_capacity(shards);
    for (node, count) in topology.nodes.iter().zip(spread(&sizes, shards)) {
        let cores = split(node, count, workers.unwrap_or(1)).into_iter();
        parts.extend(cores.map(|cores| Shard { topology, node, cores, devices: 0 }));
    }
    let hosts: Vec<usize> = devices.iter().map(|node| choose_host(&mut parts, *node)).collect();
    let (mut placed, mut spared) = (Vec::with_capacity(shards), Vec::with_capacity(shards));
    for part in &parts {
        let (shard, cpus) = part.place(workers, workers_max)?;
        placed.push(shard);
        spared.push(cpus.into_iter());
    }
    let of_host =
        |host: usize| DevicePlacement { node: parts[host].node.id, cpus: spared[host].next().unwrap_or_default() };
    let devices: Vec<DevicePlacement> = hosts.into_iter().map(of_host).collect();
    let mut others: Vec<CpuId> = topology.nodes.iter().flat_map(|node| node.cpus.iter().copied()).collect();
    others.retain(|cpu| devices.iter().all(|device| !device.cpus.contains(cpu)));
    others.sort_unstable();
    let notes = notes(topology, &placed);
    Ok(Placement { shards: placed, devices, others, notes })
}

/// The shard of `node`, or of any, that has the fewest devices: it gets one more.
fn choose_host(shards: &mut [Shard<'_>], node: Option<NodeId>) -> usize {
    let is_near = |shard: &Shard<'_>| Some(shard.node.id) == node;
    let anywhere = !shards.iter().any(is_near);
    let near = (0..shards.len()).filter(|&i| anywhere || is_near(&shards[i]));
    let host = near.min_by_key(|&i| shards[i].devices).expect("there is a shard");
    shards[host].devices += 1;
    host
}

/// As many of the biggest nodes as it takes to use `cpus_max` cores, all where that is no limit.
fn nodes_needed(sizes: &[usize], cpus_max: Option<usize>) -> usize {
    let mut sizes = sizes.to_vec();
    sizes.sort_unstable_by_key(|size| std::cmp::Reverse(*size));
    let mut cores = 0;
    let enough = sizes.iter().position(|size| {
        cores += size;
        cpus_max.is_some_and(|cpus| cores >= cpus)
    });
    enough.map_or(sizes.len(), |index| index + 1)
}

/// How many of `count` shards each part of so many cores gets: always the part with the most cores for each shard that
/// it would then have.
fn spread(sizes: &[usize], count: usize) -> Vec<usize> {
    let mut counts = vec![0; sizes.len()];
    for _ in 0..count {
        // First every part gets one, the biggest before the smaller; the first wins among equals.
        let next = (0..sizes.len())
            .filter(|&i| counts[i] < sizes[i])
            .min_by(|&a, &b| {
                let empty_first = (counts[a] > 0).cmp(&(counts[b] > 0));
                empty_first.then((sizes[b] * (counts[a] + 1)).cmp(&(sizes[a] * (counts[b] + 1))))
            })
            .expect("there are no more shards than cores");
        counts[next] += 1;
    }
    counts
}

/// The cores of each of `count` shards of a node: parts of L3 groups, unless that makes a shard of less than half the cores
/// of another or of less than `cores_min`; else runs whose lengths differ by at most one.
fn split(node: &Node, count: usize, cores_min: usize) -> Vec<&[Core]> {
    let groups: Vec<&[Core]> = node.l3_groups().collect();
    if count >= groups.len() {
        let sizes: Vec<usize> = groups.iter().map(|group| group.len()).collect();
        let parts = groups.into_iter().zip(spread(&sizes, count)).flat_map(|(group, count)| runs(group, count));
        let parts: Vec<&[Core]> = parts.collect();
        let (least, most) =
            parts.iter().fold((usize::MAX, 0), |(least, most), part| (least.min(part.len()), most.max(part.len())));
        if 2 * least >= most && least >= cores_min {
            return parts;
        }
    }
    runs(&node.cores, count).collect()
}

/// Cuts cores into `count` runs whose lengths differ by at most one.
fn runs(cores: &[Core], count: usize) -> impl Iterator<Item = &[Core]> {
    (0..count).map(move |i| &cores[i * cores.len() / count..(i + 1) * cores.len() / count])
}

/// The cores of a shard to be.
struct Shard<'a> {
    topology: &'a Topology,
    node: &'a Node,
    cores: &'a [Core],
    devices: usize,
}

impl Shard<'_> {
    /// Its own cpus, and those of its devices.
    fn place(&self, workers: Option<usize>, workers_max: usize) -> Result<(ShardPlacement, Vec<Vec<CpuId>>), Error> {
        let cores = self.cores.len();
        let count = workers.unwrap_or_else(|| self.beside_devices(self.workers_wanted().min(workers_max)));
        if count > cores {
            return Err(Error::WorkersPastCores { workers: count, node: self.node.id, cores });
        }
        let mut rest: Vec<&Core> = self.cores.iter().collect();
        let own = (count < cores).then(|| {
            // Among equals the first core: the one to which devices send interrupts if nobody moved them.
            let best = (0..cores).min_by_key(|&i| (self.is_isolated(rest[i]), rest[i].kind != CoreKind::Efficient));
            rest.remove(best.expect("a shard has a core"))
        });
        rest.sort_by_key(|core| (core.kind, !self.is_isolated(core)));
        let workers: Vec<CpuId> = rest[..count].iter().map(|core| core.cpus[0]).collect();
        let executor = own.map_or_else(|| self.shared_cpus(), |core| vec![core.cpus[0]]);
        let (node, memory_node) = (self.node.id, self.node.memory_node);
        let devices = self.device_cpus(&rest[count..]);
        Ok((ShardPlacement { node, memory_node, executor, workers }, devices))
    }

    /// Cores that a device would have to itself.
    fn cores_per_device(&self) -> usize {
        if self.cores[0].cpus.len() > 1 { 1 } else { 2 }
    }

    /// What is left of so many workers where devices take cores: first those that nobody has, then theirs.
    fn beside_devices(&self, workers: usize) -> usize {
        let spare = self.cores.len().saturating_sub(workers + 1);
        let lacking = (self.devices * self.cores_per_device()).saturating_sub(spare);
        workers - lacking.min(workers.saturating_sub(WORKERS_BESIDE_DEVICES_MIN))
    }

    /// Two cpus for each device, or one, out of cores that are left.
    fn device_cpus(&self, left: &[&Core]) -> Vec<Vec<CpuId>> {
        let each = (left.len() / self.devices.max(1)).clamp(1, self.cores_per_device());
        let cpus = |cores: &[&Core]| cores.iter().flat_map(|core| core.cpus.iter().copied()).take(2).collect();
        left.chunks(each).take(self.devices).map(cpus).collect()
    }

    /// Workers where nobody says how many.
    fn workers_wanted(&self) -> usize {
        let isolated = self.cores.iter().any(|core| self.is_isolated(core));
        let meant = |core: &&Core| core.kind == CoreKind::Performance && self.is_isolated(core) == isolated;
        match self.cores.iter().filter(meant).count() {
            0 => less_own_core(self.cores.len()),
            count if count == self.cores.len() => less_own_core(count),
            count => count,
        }
    }

    /// Where an executor without a core of its own floats. It doesn't float over isolated cpus, where nothing moves it.
    fn shared_cpus(&self) -> Vec<CpuId> {
        let floating = |cpus: &mut dyn Iterator<Item = CpuId>| {
            let mut cpus: Vec<CpuId> = cpus.filter(|cpu| !self.topology.is_isolated(*cpu)).collect();
            cpus.sort_unstable();
            (!cpus.is_empty()).then_some(cpus)
        };
        let siblings = || self.cores.iter().flat_map(|core| core.cpus[1..].iter().copied());
        let all = || self.cores.iter().flat_map(|core| core.cpus.iter().copied());
        let last = || siblings().last().or(all().last()).into_iter().collect();
        floating(&mut siblings()).or_else(|| floating(&mut all())).unwrap_or_else(last)
    }

    fn is_isolated(&self, core: &Core) -> bool {
        self.topology.is_isolated(core.cpus[0])
    }
}

/// Workers on so many cores.
fn less_own_core(cores: usize) -> usize {
    if cores >= OWN_CORE_CORES_MIN { cores - 1 } else { cores }
}

fn notes(topology: &Topology, shards: &[ShardPlacement]) -> Vec<Note> {
    let workers: usize = shards.iter().map(|shard| shard.workers.len()).sum();
    let past = |quota: &u64| *quota < 1000 * workers as u64;
    let quota =
        topology.quota_millicpus.filter(past).map(|quota_millicpus| Note::PastQuota { workers, quota_millicpus });
    let mut far: Vec<(NodeId, NodeId)> = shards.iter().map(|shard| (shard.node, shard.memory_node)).collect();
    far.retain(|(node, memory_node)| node != memory_node);
    far.dedup();
    let far = far.into_iter().map(|(node, memory_node)| Note::FarMemory { node, memory_node });
    quota.into_iter().chain(far).collect()
}

/// From this many cores on, a shard can spare one for its executor.
const OWN_CORE_CORES_MIN: usize = 8;
/// So many workers a shard keeps whatever devices it feeds: the CPU goes on where they fail.
const WORKERS_BESIDE_DEVICES_MIN: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    /// `nodes` nodes of `cores` cores of `smt` cpus, four cores to an L3; siblings are numbered as Linux does on x86: second
    /// halves last.
    fn machine(nodes: u32, cores: u32, smt: u32) -> Topology {
        let node = |n: u32| {
            let first = n * cores;
            let core = |c: u32| Core {
                cpus: (0..smt).map(|s| CpuId(s * nodes * cores + c)).collect(),
                l3: CpuId(first + (c - first) / 4 * 4),
                kind: CoreKind::Performance,
            };
            let cores: Vec<Core> = (first..first + cores).map(core).collect();
            let mut cpus: Vec<CpuId> = cores.iter().flat_map(|core| core.cpus.clone()).collect();
            cpus.sort_unstable();
            Node { id: NodeId(n), cpus, cores, memory_bytes: None, memory_node: NodeId(n) }
        };
        Topology { nodes: (0..nodes).map(node).collect(), isolated: Vec::new(), quota_millicpus: None }
    }

    fn cpus(ids: impl IntoIterator<Item = u32>) -> Vec<CpuId> {
        ids.into_iter().map(CpuId).collect()
    }

    #[track_caller]
    fn assert_places(topology: &Topology, wanted: (Option<usize>, Option<usize>), places: &[(&str, &str)]) {
        let placement = plan(topology, wanted.0, wanted.1).unwrap();
        let format = |cpus: &[CpuId]| crate::format_cpus(cpus);
        let got: Vec<(String, String)> =
            placement.shards.iter().map(|shard| (format(&shard.executor), format(&shard.workers))).collect();
        let got: Vec<(&str, &str)> = got.iter().map(|(executor, workers)| (&**executor, &**workers)).collect();
        assert_eq!(got, places);
    }

    #[test]
    fn impossible_plans_are_refused() {
        let machine = machine(1, 2, 2);
        assert!(matches!(plan(&machine, Some(0), None), Err(Error::ShardsZero)));
        assert!(matches!(plan(&machine, None, Some(0)), Err(Error::WorkersZero)));
        assert!(matches!(plan(&machine, Some(3), None), Err(Error::ShardsPastCores { shards: 3, cores: 2 })));
        let error = plan(&machine, None, Some(3)).unwrap_err();
        assert!(matches!(error, Error::WorkersPastCores { workers: 3, cores: 2, .. }), "{error}");
        assert!(matches!(plan(&machine, Some(2), Some(2)), Err(Error::WorkersPastCores { workers: 2, cores: 1, .. })));
        assert!(matches!(plan(&machine, Some(usize::MAX), None), Err(Error::ShardsPastCores { .. })));
        assert!(matches!(plan(&machine, None, Some(usize::MAX)), Err(Error::WorkersPastCores { .. })));
    }

    #[test]
    fn small_machine_uses_every_core_and_the_executor_floats() {
        assert_places(&machine(1, 2, 1), (None, None), &[("0-1", "0-1")]);
    }

    #[test]
    fn small_machine_with_smt_keeps_the_executor_off_the_workers() {
        assert_places(&machine(1, 4, 2), (None, None), &[("4-7", "0-3")]);
    }

    #[test]
    fn eight_cores_spare_one_for_the_executor() {
        assert_places(&machine(2, 8, 2), (None, None), &[("0", "1-7"), ("8", "9-15")]);
    }

    #[test]
    fn fewer_workers_than_cores_free_a_core_for_the_executor() {
        assert_places(&machine(1, 2, 1), (None, Some(1)), &[("0", "1")]);
    }

    #[test]
    fn shards_are_spread_over_nodes_by_cores() {
        assert_eq!(spread(&[8, 2], 1), [1, 0]);
        assert_eq!(spread(&[8, 2], 2), [1, 1]);
        assert_eq!(spread(&[8, 2], 5), [4, 1]);
        assert_eq!(spread(&[8, 2], 10), [8, 2]);
    }

    #[test]
    fn shards_keep_to_their_l3_group_where_there_are_enough_of_them() {
        // Two groups of four cores: three shards in thirds would cut one of them.
        assert_places(&machine(1, 8, 1), (Some(2), None), &[("0-3", "0-3"), ("4-7", "4-7")]);
        assert_places(&machine(1, 8, 1), (Some(3), None), &[("0-1", "0-1"), ("2-3", "2-3"), ("4-7", "4-7")]);
        // Three groups for two shards: halves.
        assert_places(&machine(1, 12, 1), (Some(2), None), &[("0-5", "0-5"), ("6-11", "6-11")]);
        // A group of one core would make a shard of one.
        assert_places(&machine(1, 9, 1), (Some(3), None), &[("0-2", "0-2"), ("3-5", "3-5"), ("6-8", "6-8")]);
        // Parts of groups have no room for three workers.
        let threes = [("0-2", "0-2"), ("3-5", "3-5"), ("6-8", "6-8"), ("9-11", "9-11")];
        assert_places(&machine(1, 12, 1), (Some(4), Some(3)), &threes);
    }

    #[test]
    fn efficient_cores_take_the_executor_and_workers_only_on_request() {
        let mut hybrid = machine(1, 6, 1);
        hybrid.nodes[0].cores[2..].iter_mut().for_each(|core| core.kind = CoreKind::Efficient);
        assert_places(&hybrid, (None, None), &[("2", "0-1")]);
        assert_places(&hybrid, (None, Some(4)), &[("2", "0-1,3-4")]);
        assert_places(&hybrid, (None, Some(6)), &[("0-5", "0-5")]);
        assert_places(&hybrid, (None, Some(1)), &[("2", "0")]);
    }

    #[test]
    fn isolated_cores_take_the_workers_and_no_floating_executor() {
        let mut machine = machine(1, 4, 1);
        machine.isolated = cpus(1..4);
        assert_places(&machine, (None, None), &[("0", "1-3")]);
        assert_places(&machine, (None, Some(4)), &[("0", "1-3,0")]);
        assert_places(&machine, (None, Some(2)), &[("0", "1-2")]);
        machine.isolated = cpus(0..4);
        assert_places(&machine, (None, None), &[("3", "0-3")]);
    }

    #[test]
    fn quota_bounds_workers_and_nodes() {
        let mut machine = machine(4, 8, 1);
        machine.quota_millicpus = Some(3_500);
        assert_places(&machine, (None, None), &[("0", "1-3")]);
        machine.quota_millicpus = Some(12_000);
        assert_places(&machine, (None, None), &[("0", "1-6"), ("8", "9-14")]);
        machine.quota_millicpus = Some(8_000);
        assert_places(&machine, (None, None), &[("0", "1-7")]);
        machine.quota_millicpus = Some(200);
        assert_places(&machine, (None, None), &[("0", "1")]);
        assert_eq!(plan(&machine, None, None).unwrap().notes, [Note::PastQuota { workers: 1, quota_millicpus: 200 }]);
        machine.quota_millicpus = Some(3_500);
        let placement = plan(&machine, Some(1), Some(4)).unwrap();
        assert_eq!(placement.shards[0].workers.len(), 4, "what is asked for is done");
        assert_eq!(
            placement.notes[0].to_string(),
            "the cgroup's quota is 3.500 cpus and 4 workers are wanted: the kernel will hold them up"
        );
    }

    /// Executor and workers of each shard, then the cpus of each device.
    #[track_caller]
    fn assert_spares(topology: &Topology, workers: Option<usize>, devices: &[Option<u32>], expected: &[&str]) {
        let devices: Vec<Option<NodeId>> = devices.iter().map(|node| node.map(NodeId)).collect();
        let placement = plan_with_devices(topology, None, workers, &devices).unwrap();
        let format = |cpus: &[CpuId]| crate::format_cpus(cpus);
        let shard = |shard: &ShardPlacement| format!("{} {}", format(&shard.executor), format(&shard.workers));
        let mut got: Vec<String> = placement.shards.iter().map(shard).collect();
        got.extend(placement.devices.iter().map(|device| format(&device.cpus)));
        assert_eq!(got, expected);
    }

    #[test]
    fn a_device_gets_cpus_that_nobody_else_has_where_workers_are_many() {
        assert_spares(&machine(1, 16, 1), None, &[None], &["0 1-13", "14-15"]);
        assert_spares(&machine(1, 16, 2), None, &[None, None], &["0 1-13", "14,30", "15,31"]);
        assert_spares(&machine(1, 8, 2), None, &[None, None], &["0 1-6", "7,15", ""]);
        assert_spares(&machine(1, 8, 1), None, &[None], &["0 1-6", "7"]);
        assert_spares(&machine(1, 4, 2), None, &[None], &["4-7 0-3", ""]);
        assert_spares(&machine(1, 2, 1), None, &[None], &["0-1 0-1", ""]);
        // Cores that were left free anyway.
        assert_spares(&machine(1, 4, 1), Some(1), &[None], &["0 1", "2-3"]);
        assert_spares(&machine(1, 4, 1), Some(1), &[None; 3], &["0 1", "2", "3", ""]);
        assert_spares(&machine(1, 4, 1), Some(3), &[None], &["0 1-3", ""]);
    }

    #[test]
    fn a_device_is_fed_from_its_node_and_never_from_the_executor_s_core() {
        let two = machine(2, 16, 2);
        assert_spares(&two, None, &[Some(1)], &["0 1-15", "16 17-30", "31,63"]);
        assert_spares(&two, None, &[Some(1), Some(1), Some(0)], &["0 1-14", "16 17-29", "30,62", "31,63", "15,47"]);
        assert_spares(&two, None, &[Some(7), None], &["0 1-14", "16 17-30", "15,47", "31,63"]);
        let mut hybrid = machine(1, 12, 1);
        hybrid.nodes[0].cores[8..].iter_mut().for_each(|core| core.kind = CoreKind::Efficient);
        assert_spares(&hybrid, None, &[None], &["8 0-7", "9-10"]);
        let mut isolated = machine(1, 12, 1);
        isolated.isolated = cpus(4..12);
        assert_spares(&isolated, None, &[None], &["0 4-11", "1-2"]);
        let placement = plan_with_devices(&two, None, None, &[Some(NodeId(1))]).unwrap();
        assert_eq!((placement.others.len(), placement.devices[0].node), (62, NodeId(1)));
        assert_eq!((placement.devices[0].feeder(), placement.devices[0].worker()), (Some(CpuId(31)), Some(CpuId(63))));
    }

    #[test]
    fn every_plan_keeps_the_rules() {
        for (nodes, cores, smt) in [1, 2, 4, 8]
            .into_iter()
            .flat_map(|n| [1, 2, 3, 7, 8, 9, 64].map(|c| (n, c)))
            .flat_map(|(n, c)| [1, 2, 4].map(|s| (n, c, s)))
        {
            let machine = machine(nodes, cores, smt);
            for (shards, workers) in [1, 2, nodes as usize, 3 * nodes as usize]
                .into_iter()
                .flat_map(|shards| [None, Some(1), Some(2)].map(|workers| (shards, workers)))
            {
                match plan(&machine, Some(shards), workers) {
                    Ok(placement) => assert_keeps_the_rules(&machine, &placement, (shards, workers)),
                    Err(Error::ShardsPastCores { .. }) => assert!(shards > machine.core_count()),
                    Err(error) => {
                        let least = cores as usize / shards.div_ceil(nodes as usize);
                        assert!(workers.is_some_and(|workers| workers > least), "{error}");
                    }
                }
            }
        }
    }

    fn assert_keeps_the_rules(machine: &Topology, placement: &Placement, (shards, workers): (usize, Option<usize>)) {
        assert_eq!(placement.shards.len(), shards);
        let mut cores_seen = Vec::new();
        for shard in &placement.shards {
            let node = machine.nodes.iter().find(|node| node.id == shard.node).unwrap();
            assert!(!shard.executor.is_empty() && !shard.workers.is_empty());
            assert!(shard.executor.iter().chain(&shard.workers).all(|cpu| node.cpus.contains(cpu)));
            assert!(workers.is_none_or(|workers| shard.workers.len() == workers));
            let core_of = |cpu: &CpuId| node.cores.iter().position(|core| core.cpus.contains(cpu)).unwrap();
            cores_seen.extend(shard.workers.iter().map(|cpu| (node.id, core_of(cpu))));
            let apart = shard.executor.iter().all(|cpu| !shard.workers.contains(cpu));
            assert!(apart || node.cores[0].cpus.len() == 1 && shard.workers.len() < OWN_CORE_CORES_MIN);
            let neighbours = placement.shards.iter().filter(|other| other.node == node.id).count();
            if node.cores.len().is_multiple_of(4) && neighbours.is_multiple_of(node.l3_groups().count()) {
                let l3 = |cpu: &CpuId| node.cores[core_of(cpu)].l3;
                assert!(shard.workers.iter().all(|cpu| l3(cpu) == l3(&shard.workers[0])), "{placement:?}");
            }
        }
        let workers = cores_seen.len();
        cores_seen.sort_unstable();
        cores_seen.dedup();
        assert_eq!(cores_seen.len(), workers, "two workers on one core: {placement:?}");
    }
}
