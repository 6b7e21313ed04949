//! Topology and placement from fake sysfs trees.
#![expect(clippy::unwrap_used, reason = "a test that cannot write its tree has failed")]
use std::fs;
use std::path::PathBuf;

use tuning::{CpuId, Error, NodeId, Topology, format_cpus, parse_cpus, plan};

/// A machine to be written as a sysfs tree; siblings are numbered as Linux does on x86: all first threads, then all second.
struct Machine {
    root: PathBuf,
    nodes: u32,
    cores: u32,
    smt: u32,
}

impl Machine {
    fn new(name: &str, nodes: u32, cores: u32, smt: u32) -> Self {
        let root = std::env::temp_dir().join(format!("tuning-{}-{name}-{nodes}-{cores}-{smt}", std::process::id()));
        Self { root, nodes, cores, smt }.written()
    }

    fn written(self) -> Self {
        let threads = self.nodes * self.cores;
        let cpus = threads * self.smt;
        self.write("devices/system/cpu/online", &format!("0-{}\n", cpus - 1));
        self.write("devices/system/node/online", &format!("0-{}\n", self.nodes - 1));
        for node in 0..self.nodes {
            let (first, last) = (node * self.cores, (node + 1) * self.cores - 1);
            let ranges: Vec<String> =
                (0..self.smt).map(|s| format!("{}-{}", first + s * threads, last + s * threads)).collect();
            let folder = format!("devices/system/node/node{node}");
            self.write(&format!("{folder}/cpulist"), &ranges.join(","));
            self.write(&format!("{folder}/meminfo"), &format!("Node {node} MemTotal:   {} kB\n", 1024 * (node + 1)));
        }
        for cpu in 0..cpus {
            let core = cpu % threads;
            let siblings: Vec<String> = (0..self.smt).map(|s| (core + s * threads).to_string()).collect();
            self.write(&format!("devices/system/cpu/cpu{cpu}/topology/core_cpus_list"), &siblings.join(","));
            // Four cores to an L3, as on the chiplets of a Zen 2.
            let first = core / 4 * 4;
            let last = (first + 3).min(core / self.cores * self.cores + self.cores - 1);
            let l3: Vec<String> =
                (0..self.smt).map(|s| format!("{}-{}", first + s * threads, last + s * threads)).collect();
            self.write(&format!("devices/system/cpu/cpu{cpu}/cache/index0/level"), "1\n");
            self.write(&format!("devices/system/cpu/cpu{cpu}/cache/index1/level"), "3\n");
            self.write(&format!("devices/system/cpu/cpu{cpu}/cache/index1/shared_cpu_list"), &l3.join(","));
        }
        self
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
            assert_eq!(node.l3_groups().len(), 2);
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
    assert_eq!((topology.core_count(), topology.nodes[0].l3_groups().len()), (8, 1));
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
fn malformed_tree_is_an_error() {
    let machine = Machine::new("malformed", 1, 2, 1);
    machine.write("devices/system/cpu/online", "0-x\n");
    assert!(matches!(machine.read_within(None), Err(Error::CpuList { .. })));
}

#[test]
fn this_machine_is_read_and_planned() {
    let topology = Topology::read(std::path::Path::new("/sys")).unwrap();
    let placement = plan(&topology, None, None).unwrap();
    assert_eq!(placement.shards.len(), topology.nodes.len());
    let allowed = tuning::allowed_cpus().unwrap();
    assert!(placement.shards.iter().all(|shard| shard.workers.iter().all(|cpu| allowed.contains(cpu))));
}
