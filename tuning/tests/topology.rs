//! Topology and placement from fake sysfs trees.
#![expect(clippy::unwrap_used, reason = "a test that cannot write its tree has failed")]
use std::fs;
use std::path::PathBuf;

use tuning::{
    CoreKind, CpuId, Error, NodeId, Note, Topology, format_cpus, parse_cpus, pci_node, plan, plan_with_devices,
};

/// Nodes by their numbers; each node's L3 groups; each group's cores; each core's cpus.
type Shape = Vec<(u32, Vec<Vec<Vec<u32>>>)>;

/// A machine written as a sysfs tree.
struct Machine {
    root: PathBuf,
}

/// A machine whose siblings are numbered as Linux does on x86: all first threads, then all second. The last L3 group of a
/// node may be smaller than the others.
fn regular(nodes: u32, cores: u32, smt: u32, cores_per_l3: u32) -> Shape {
    let node = |n: u32| {
        let core = |c: u32| (0..smt).map(|s| n * cores + c + s * nodes * cores).collect::<Vec<u32>>();
        let cores: Vec<Vec<u32>> = (0..cores).map(core).collect();
        (n, cores.chunks(cores_per_l3 as usize).map(<[_]>::to_vec).collect())
    };
    (0..nodes).map(node).collect()
}

fn list(ids: impl IntoIterator<Item = u32>) -> String {
    ids.into_iter().map(|id| id.to_string()).collect::<Vec<_>>().join(",")
}

impl Machine {
    fn new(name: &str, nodes: u32, cores: u32, smt: u32) -> Self {
        Self::of(&format!("{name}-{nodes}-{cores}-{smt}"), &regular(nodes, cores, smt, 4))
    }

    fn of(name: &str, shape: &Shape) -> Self {
        let machine = Self { root: std::env::temp_dir().join(format!("tuning-{}-{name}", std::process::id())) };
        machine.write("devices/system/node/online", &list(shape.iter().map(|(node, _)| *node)));
        let mut online = Vec::new();
        for (node, groups) in shape {
            let folder = format!("devices/system/node/node{node}");
            let cpus: Vec<u32> = groups.iter().flatten().flatten().copied().collect();
            machine.write(&format!("{folder}/cpulist"), &list(cpus.iter().copied()));
            machine.write(&format!("{folder}/meminfo"), &format!("Node {node} MemTotal:   {} kB\n", 1024 * (node + 1)));
            // 10 for itself, more for those that are further away by number.
            let distances = shape.iter().map(|(other, _)| 10 + 2 * other.abs_diff(*node)).map(|d| d.to_string());
            machine.write(&format!("{folder}/distance"), &distances.collect::<Vec<_>>().join(" "));
            online.extend(cpus);
            for group in groups {
                let l3: Vec<u32> = group.iter().flatten().copied().collect();
                for core in group {
                    core.iter().for_each(|cpu| machine.write_cpu(*cpu, core, &l3));
                }
            }
        }
        machine.write("devices/system/cpu/online", &list(online));
        machine
    }

    fn write_cpu(&self, cpu: u32, core: &[u32], l3: &[u32]) {
        let folder = format!("devices/system/cpu/cpu{cpu}");
        self.write(&format!("{folder}/topology/core_cpus_list"), &list(core.iter().copied()));
        self.write(&format!("{folder}/cache/index0/level"), "1\n");
        self.write(&format!("{folder}/cache/index1/level"), "3\n");
        self.write(&format!("{folder}/cache/index1/shared_cpu_list"), &list(l3.iter().copied()));
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn remove(&self, path: &str) {
        let path = self.root.join(path);
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }

    fn read(&self) -> Topology {
        self.read_within(None).unwrap()
    }

    fn read_within(&self, allowed: Option<&str>) -> Result<Topology, Error> {
        let allowed = allowed.map(|list| parse_cpus(list).unwrap());
        Topology::read_within(&self.root, &self.root.join("proc"), allowed.as_deref())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

#[test]
fn trees_of_one_to_eight_nodes_are_read_and_planned() {
    for (nodes, smt) in [1, 2, 4, 8].into_iter().flat_map(|nodes| [(nodes, 1), (nodes, 2)]) {
        let topology = Machine::new("sizes", nodes, 8, smt).read();
        assert_eq!(topology.nodes.len(), nodes as usize);
        assert_eq!(topology.core_count(), 8 * nodes as usize);
        assert_eq!(topology.cpu_count(), (8 * nodes * smt) as usize);
        for (node, id) in topology.nodes.iter().zip(0u32..) {
            assert_eq!(node.id, NodeId(id));
            assert_eq!(node.memory_bytes, Some((1 << 20) * u64::from(id + 1)));
            assert!(node.cores.iter().all(|core| core.cpus.len() == smt as usize));
            assert_eq!(node.l3_groups().count(), 2);
        }
        let placement = plan(&topology, None, None).unwrap();
        assert_eq!(placement.shards.len(), nodes as usize);
        for (shard, id) in placement.shards.iter().zip(0u32..) {
            assert_eq!(shard.node, NodeId(id));
            assert_eq!(format_cpus(&shard.executor), (8 * id).to_string());
            assert_eq!(format_cpus(&shard.workers), format!("{}-{}", 8 * id + 1, 8 * id + 7));
        }
    }
}

#[test]
fn offline_cpus_are_left_out() {
    let machine = Machine::new("offline", 2, 4, 2);
    machine.write("devices/system/cpu/online", "0-2,4-9\n");
    let topology = machine.read();
    assert_eq!(format_cpus(&topology.nodes[0].cpus), "0-2,8-9");
    assert_eq!(format_cpus(&topology.nodes[1].cpus), "4-7");
    assert_eq!(topology.nodes[0].cores[1].cpus, [CpuId(1), CpuId(9)]);
    assert_eq!(topology.nodes[0].cores[2].cpus, [CpuId(2)]);
}

#[test]
fn affinity_mask_and_cpuset_cut_the_machine_down() {
    let machine = Machine::new("cpuset", 4, 4, 1);
    machine.write("proc/self/cgroup", "0::/kubepods/pod7\n");
    machine.write("fs/cgroup/kubepods/cpuset.cpus.effective", "0-9\n");
    let topology = machine.read_within(Some("2-15")).unwrap();
    let nodes: Vec<(u32, String)> = topology.nodes.iter().map(|node| (node.id.0, format_cpus(&node.cpus))).collect();
    assert_eq!(nodes, [(0, "2-3".to_owned()), (1, "4-7".to_owned()), (2, "8-9".to_owned())]);
    machine.write("fs/cgroup/kubepods/pod7/cpuset.cpus.effective", "12\n");
    assert_eq!(machine.read().nodes[0].id, NodeId(3));
    assert!(matches!(machine.read_within(Some("0-3")), Err(Error::NoCpus)));
}

#[test]
fn legacy_cpuset_is_obeyed() {
    let machine = Machine::new("legacy", 1, 4, 1);
    machine.write("proc/self/cgroup", "3:cpuset:/job\n");
    machine.write("fs/cgroup/cpuset/job/cpuset.effective_cpus", "1-2\n");
    assert_eq!(format_cpus(&machine.read().nodes[0].cpus), "1-2");
}

#[test]
fn sibling_that_is_not_allowed_does_not_hide_its_core() {
    let machine = Machine::new("sibling", 1, 2, 2);
    let topology = machine.read_within(Some("1-2")).unwrap();
    let cores: Vec<&[CpuId]> = topology.nodes[0].cores.iter().map(|core| core.cpus.as_slice()).collect();
    assert_eq!(cores, [[CpuId(1)].as_slice(), [CpuId(2)].as_slice()]);
}

#[test]
fn missing_files_fall_back() {
    let machine = Machine::new("bare", 2, 2, 2);
    machine.remove("devices/system/node");
    let topology = machine.read();
    assert_eq!(topology.nodes.len(), 1);
    assert_eq!((topology.nodes[0].memory_bytes, topology.nodes[0].cores.len()), (None, 4));
    machine.remove("devices/system/cpu/cpu0");
    for cpu in 1..8 {
        machine.remove(&format!("devices/system/cpu/cpu{cpu}"));
    }
    let topology = machine.read();
    assert_eq!((topology.core_count(), topology.nodes[0].l3_groups().count()), (8, 1));
    machine.remove("devices/system/cpu/online");
    assert_eq!(format_cpus(&machine.read_within(Some("3,5")).unwrap().nodes[0].cpus), "3,5");
    assert!(machine.read().cpu_count() >= 1);
}

#[test]
fn cpus_without_a_node_join_the_first() {
    let machine = Machine::new("stray", 2, 2, 1);
    machine.write("devices/system/node/node1/cpulist", "3\n");
    assert_eq!(format_cpus(&machine.read().nodes[0].cpus), "0-2");
}

#[test]
fn node_of_memory_alone_is_no_place_for_a_shard() {
    let machine = Machine::new("memory", 2, 2, 1);
    machine.write("devices/system/node/online", "0-2\n");
    machine.write("devices/system/node/node2/cpulist", "\n");
    assert_eq!(machine.read().nodes.len(), 2);
}

#[test]
fn node_without_memory_takes_that_of_the_nearest() {
    let machine = Machine::new("memoryless", 4, 2, 1);
    for node in [1, 2] {
        machine.write(&format!("devices/system/node/node{node}/meminfo"), "Node MemTotal:       0 kB\n");
    }
    let topology = machine.read();
    let memory: Vec<u32> = topology.nodes.iter().map(|node| node.memory_node.0).collect();
    assert_eq!(memory, [0, 0, 3, 3]);
    let placement = plan(&topology, None, None).unwrap();
    assert_eq!(placement.shards[2].memory_node, NodeId(3));
    assert_eq!(placement.notes[0], Note::FarMemory { node: NodeId(1), memory_node: NodeId(0) });
    assert_eq!(placement.notes.len(), 2);
    // Without distances there is still memory somewhere.
    machine.remove("devices/system/node/node1/distance");
    assert_eq!(machine.read().nodes[1].memory_node, NodeId(0));
}

#[test]
fn memory_that_the_cpuset_forbids_is_as_if_it_were_not_there() {
    let machine = Machine::new("mems", 3, 2, 1);
    let memory = || machine.read().nodes.iter().map(|node| (node.id.0, node.memory_node.0)).collect::<Vec<_>>();
    machine.write("proc/self/cgroup", "0::/job\n");
    // Cpus of two nodes, memory of one.
    machine.write("fs/cgroup/job/cpuset.cpus.effective", "0-3\n");
    machine.write("fs/cgroup/job/cpuset.mems.effective", "1\n");
    assert_eq!(memory(), [(0, 1), (1, 1)]);
    let placement = plan(&machine.read(), None, None).unwrap();
    assert_eq!(placement.notes, [Note::FarMemory { node: NodeId(0), memory_node: NodeId(1) }]);
    // Cpus of one node, memory of two: there is no replica that nobody reads.
    machine.write("fs/cgroup/job/cpuset.cpus.effective", "2-3\n");
    machine.write("fs/cgroup/job/cpuset.mems.effective", "0-1\n");
    assert_eq!(memory(), [(1, 1)]);
    assert_eq!(plan(&machine.read(), None, None).unwrap().shards.len(), 1);
    // And memory only where it has no cpu.
    machine.write("fs/cgroup/job/cpuset.mems.effective", "2\n");
    assert_eq!(memory(), [(1, 2)]);
}

#[test]
fn sub_numa_nodes_and_chiplets_part_the_machine() {
    // Two sockets in two nodes each, 2 chiplets of 4 cores and 8 threads a node.
    let machine = Machine::of("subnuma", &regular(4, 8, 2, 4));
    let topology = machine.read();
    assert!(topology.nodes.iter().all(|node| node.l3_groups().count() == 2 && node.cpus.len() == 16));
    let placement = plan(&topology, Some(8), None).unwrap();
    for (index, shard) in placement.shards.iter().enumerate() {
        let node = &topology.nodes[index / 2];
        assert_eq!(shard.node, node.id);
        let group: Vec<CpuId> = node.l3_groups().nth(index % 2).unwrap().iter().map(|core| core.cpus[0]).collect();
        assert_eq!(shard.workers, group);
        assert!(shard.executor.iter().all(|cpu| !shard.workers.contains(cpu)));
    }
}

#[test]
fn sparse_numbers_are_kept() {
    let shape = vec![(3, vec![vec![vec![40, 41], vec![96, 97]]]), (17, vec![vec![vec![7]], vec![vec![300, 5000]]])];
    let topology = Machine::of("sparse", &shape).read();
    assert_eq!(topology.nodes.iter().map(|node| node.id.0).collect::<Vec<_>>(), [3, 17]);
    let placement = plan(&topology, None, None).unwrap();
    let places: Vec<(u32, String, String)> = placement
        .shards
        .iter()
        .map(|shard| (shard.node.0, format_cpus(&shard.executor), format_cpus(&shard.workers)))
        .collect();
    assert_eq!(places, [(3, "41,97".into(), "40,96".into()), (17, "5000".into(), "7,300".into())]);
}

#[test]
fn hybrid_cores_are_told_apart() {
    let shape = vec![(0, vec![vec![vec![0, 1], vec![2, 3], vec![4], vec![5], vec![6], vec![7]]])];
    let machine = Machine::of("hybrid", &shape);
    machine.write("devices/cpu_core/cpus", "0-3\n");
    machine.write("devices/cpu_atom/cpus", "4-7\n");
    let kinds = |topology: &Topology| {
        topology.nodes[0].cores.iter().map(|core| core.kind == CoreKind::Efficient).collect::<Vec<bool>>()
    };
    let by_counters = machine.read();
    assert_eq!(kinds(&by_counters), [false, false, true, true, true, true]);
    let shard = plan(&by_counters, None, None).unwrap().shards.remove(0);
    assert_eq!((format_cpus(&shard.executor), format_cpus(&shard.workers)), ("4".into(), "0,2".into()));
    // Only slow ones are left: they are what there is.
    let slow = machine.read_within(Some("4-7")).unwrap();
    assert_eq!(kinds(&slow), [false; 4]);
    assert_eq!(plan(&slow, None, None).unwrap().shards[0].workers.len(), 4);
    // Capacities go first: a favoured core among fast ones makes the others no slow ones.
    for (cpu, capacity) in [(0, 1024), (1, 1024), (2, 970), (3, 970), (4, 400), (5, 400), (6, 970), (7, 970)] {
        machine.write(&format!("devices/system/cpu/cpu{cpu}/cpu_capacity"), &capacity.to_string());
    }
    assert_eq!(kinds(&machine.read()), [false, false, true, true, false, false]);
}

#[test]
fn container_of_three_cpus_is_all_there_is() {
    let machine = Machine::of("container", &regular(2, 8, 2, 8));
    machine.write("proc/self/cgroup", "0::/\n");
    machine.write("fs/cgroup/cpuset.cpus.effective", "6,7,22\n");
    let topology = machine.read();
    // 6 and 22 are one core.
    let shard = plan(&topology, None, None).unwrap().shards.remove(0);
    assert_eq!((format_cpus(&shard.executor), format_cpus(&shard.workers)), ("22".into(), "6-7".into()));
    assert!(matches!(plan(&topology, None, Some(3)), Err(Error::WorkersPastCores { workers: 3, cores: 2, .. })));
    assert!(matches!(plan(&topology, Some(3), None), Err(Error::ShardsPastCores { shards: 3, cores: 2 })));
}

#[test]
fn isolated_cpus_are_for_workers() {
    let machine = Machine::of("isolated", &regular(1, 8, 1, 8));
    machine.write("devices/system/cpu/isolated", "2-5,100\n");
    let shard = plan(&machine.read(), None, None).unwrap().shards.remove(0);
    assert_eq!((format_cpus(&shard.executor), format_cpus(&shard.workers)), ("0".into(), "2-5".into()));
    // As the kernel starts processes: none of them is in the mask.
    let shard = plan(&machine.read_within(Some("0-1,6-7")).unwrap(), None, None).unwrap().shards.remove(0);
    assert_eq!((format_cpus(&shard.executor), format_cpus(&shard.workers)), ("0-1,6-7".into(), "0-1,6-7".into()));
}

#[test]
fn the_least_quota_above_the_process_counts() {
    let machine = Machine::new("quota", 2, 8, 1);
    assert_eq!(machine.read().quota_millicpus, None);
    machine.write("proc/self/cgroup", "0::/a/b\n");
    machine.write("fs/cgroup/a/b/cpu.max", "max 100000\n");
    assert_eq!(machine.read().quota_millicpus, None);
    machine.write("fs/cgroup/a/cpu.max", "450000 100000\n");
    assert_eq!(machine.read().quota_millicpus, Some(4500));
    assert_eq!(plan(&machine.read(), None, None).unwrap().shards[0].workers.len(), 4);
    machine.write("fs/cgroup/a/b/cpu.max", "rubbish\n");
    assert_eq!(machine.read().quota_millicpus, Some(4500));
    machine.write("fs/cgroup/a/cpu.max", "450000 0\n");
    assert_eq!(machine.read().quota_millicpus, None);
    machine.write("proc/self/cgroup", "4:cpu,cpuacct:/job\n");
    machine.write("fs/cgroup/cpu/job/cpu.cfs_quota_us", "150000\n");
    machine.write("fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n");
    machine.write("fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
    machine.write("fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
    assert_eq!(machine.read().quota_millicpus, Some(1500));
}

#[test]
fn malformed_tree_is_an_error() {
    for path in [
        "devices/system/cpu/online",
        "devices/system/cpu/isolated",
        "devices/system/node/online",
        "devices/system/node/node0/cpulist",
        "devices/system/cpu/cpu1/topology/core_cpus_list",
        "devices/system/cpu/cpu1/cache/index1/shared_cpu_list",
        "devices/cpu_atom/cpus",
        "fs/cgroup/cpuset.cpus.effective",
    ] {
        let machine = Machine::new("malformed", 1, 2, 1);
        machine.write(path, "0-x\n");
        assert!(matches!(machine.read_within(None), Err(Error::CpuList { .. })), "{path}");
    }
}

#[test]
fn this_machine_is_read_and_planned() {
    let topology = Topology::read(std::path::Path::new("/sys")).unwrap();
    let placement = plan(&topology, None, None).unwrap();
    assert_eq!(placement.shards.len(), topology.nodes.len());
    let allowed = tuning::allowed_cpus().unwrap();
    assert!(placement.shards.iter().all(|shard| shard.workers.iter().all(|cpu| allowed.contains(cpu))));
}

#[test]
fn devices_are_fed_from_the_node_they_hang_on() {
    let machine = Machine::new("pci", 2, 16, 2);
    machine.write("bus/pci/devices/0000:c1:00.0/numa_node", "1\n");
    machine.write("bus/pci/devices/0000:02:00.0/numa_node", "-1\n");
    machine.write("bus/pci/devices/0000:03:00.0/numa_node", "many");
    let buses = ["0000:C1:00.0", "0000:02:00.0", "0000:03:00.0", "0000:04:00.0"];
    let nodes = buses.map(|bus| pci_node(&machine.root, bus));
    assert_eq!(nodes, [Some(NodeId(1)), None, None, None]);
    let topology = machine.read();
    let placement = plan_with_devices(&topology, None, None, &nodes[..2]).unwrap();
    let cpus: Vec<(u32, String)> =
        placement.devices.iter().map(|device| (device.node.0, format_cpus(&device.cpus))).collect();
    assert_eq!(cpus, [(1, "31,63".to_owned()), (0, "15,47".to_owned())]);
    let cores =
        |cpu: &CpuId| topology.nodes.iter().flat_map(|node| &node.cores).position(|core| core.cpus.contains(cpu));
    for shard in &placement.shards {
        let mut taken = shard.executor.iter().chain(&shard.workers).map(cores);
        assert!(
            taken.all(|core| placement.devices.iter().all(|device| !device
                .cpus
                .iter()
                .map(cores)
                .any(|own| own == core)))
        );
    }
    // Cut down to a few cpus, there is no core to spare.
    let narrow = machine.read_within(Some("0-3,32-35")).unwrap();
    assert!(
        plan_with_devices(&narrow, None, None, &nodes[..2])
            .unwrap()
            .devices
            .iter()
            .all(|device| device.cpus.is_empty())
    );
}
