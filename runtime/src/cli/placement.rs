//! What `serve --print-placement` shows: which thread runs where, and whose memory it reads.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};
use tuning::{CoreKind, CpuId, DevicePlacement, Node, Placement, Topology, format_cpus};

use crate::registry::Budget;

/// How the placement is printed.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum Format {
    /// For people.
    Tree,
    /// One object.
    Json,
}

/// A line on where a device's threads run.
pub(super) fn of_device(ordinal: usize, device: &DevicePlacement) -> String {
    let threads = match (device.feeder(), device.worker()) {
        (Some(feeder), Some(worker)) if feeder != worker => {
            format!("feeder on cpu {}, worker process on cpu {}", feeder.0, worker.0)
        }
        (Some(cpu), _) => format!("feeder and worker process on cpu {}", cpu.0),
        _ => "feeder and worker process have no core of their own".into(),
    };
    format!("cuda:{ordinal} of {}: {threads}", device.node)
}

/// Threads by cpu; an executor that floats is on each of its cpus.
fn roles(placement: &Placement, devices: &[usize]) -> BTreeMap<CpuId, Vec<String>> {
    let mut roles = BTreeMap::<CpuId, Vec<String>>::new();
    for (index, shard) in placement.shards.iter().enumerate() {
        let floats = if shard.executor.len() > 1 { " (floats)" } else { "" };
        for cpu in &shard.executor {
            roles.entry(*cpu).or_default().push(format!("{}{floats}", crate::server::executor_name(index)));
        }
        for (member, cpu) in shard.workers.iter().enumerate() {
            roles.entry(*cpu).or_default().push(crate::server::worker_name(index, member));
        }
    }
    for (ordinal, device) in devices.iter().zip(&placement.devices) {
        let threads =
            [(device.feeder(), crate::gpu::feeder_name(*ordinal)), (device.worker(), worker_process(*ordinal))];
        for (cpu, name) in threads {
            cpu.into_iter().for_each(|cpu| roles.entry(cpu).or_default().push(name.clone()));
        }
    }
    roles
}

fn worker_process(ordinal: usize) -> String {
    format!("gpu-worker-{ordinal}")
}

/// Nodes, their L3 groups, cores and cpus with the threads on them; shards by the node that has their replica.
pub(super) fn tree(
    topology: &Topology,
    (placement, devices): (&Placement, &[usize]),
    budgets: &[(String, Budget)],
) -> String {
    let roles = roles(placement, devices);
    let workers: usize = placement.shards.iter().map(|shard| shard.workers.len()).sum();
    let mut out = format!(
        "{} and {} on {}: {} and {} that may be used{}\n",
        plural(placement.shards.len(), "shard"),
        plural(workers, "worker"),
        plural(topology.nodes.len(), "node"),
        plural(topology.core_count(), "core"),
        plural(topology.cpu_count(), "cpu"),
        topology.quota_millicpus.map_or_else(String::new, |q| format!(", cpu time of {}.{:03}", q / 1000, q % 1000)),
    );
    for node in &topology.nodes {
        let memory = node.memory_bytes.map_or_else(|| "memory of unknown size".into(), gib);
        let _ = writeln!(out, "{}: cpu {}, {memory}", node.id, format_cpus(&node.cpus));
        for group in node.l3_groups() {
            let cpus: Vec<CpuId> = group.iter().flat_map(|core| core.cpus.iter().copied()).collect();
            let _ = writeln!(out, "├─ L3 of cpu {}", format_cpus(&sorted(cpus)));
            for (index, core) in group.iter().enumerate() {
                let branch = if index + 1 == group.len() { "└─" } else { "├─" };
                let kind = if core.kind == CoreKind::Efficient { " (efficient)" } else { "" };
                let cpus = core.cpus.iter().map(|cpu| {
                    let isolated = if topology.is_isolated(*cpu) { " isolated" } else { "" };
                    let threads = roles.get(cpu).map_or_else(|| "-".into(), |threads| threads.join(" "));
                    format!("cpu {}{isolated}: {threads}", cpu.0)
                });
                let _ = writeln!(out, "│  {branch} core{kind}  {}", cpus.collect::<Vec<_>>().join("  |  "));
            }
        }
        let _ = writeln!(out, "└─ {}", replica(node, placement));
    }
    for (ordinal, device) in devices.iter().zip(&placement.devices) {
        let _ = writeln!(out, "{}", of_device(*ordinal, device));
    }
    for (name, budget) in budgets {
        let _ = writeln!(out, "memory for `{name}`: {budget}");
    }
    for note in &placement.notes {
        let _ = writeln!(out, "note: {note}");
    }
    out
}

/// Who reads this node's copy of the weights.
fn replica(node: &Node, placement: &Placement) -> String {
    let readers = placement.shards.iter().enumerate().filter(|(_, shard)| shard.memory_node == node.id);
    let readers: Vec<String> = readers.map(|(index, _)| index.to_string()).collect();
    match readers.len() {
        0 => "no replica".into(),
        1 => format!("replica of the weights, KV cache: shard {}", readers[0]),
        _ => format!("replica of the weights, KV caches: shards {}", readers.join(" ")),
    }
}

/// The same for programs.
pub(super) fn object(
    topology: &Topology,
    (placement, devices): (&Placement, &[usize]),
    budgets: &[(String, Budget)],
) -> Value {
    let ids = |cpus: &[CpuId]| cpus.iter().map(|cpu| cpu.0).collect::<Vec<u32>>();
    let core = |core: &tuning::Core| {
        let kind = if core.kind == CoreKind::Efficient { "efficient" } else { "performance" };
        json!({"cpus": ids(&core.cpus), "kind": kind})
    };
    let node = |node: &Node| {
        let groups: Vec<Value> =
            node.l3_groups().map(|group| json!({"cores": group.iter().map(core).collect::<Vec<_>>()})).collect();
        json!({
            "node": node.id.0, "memory_bytes": node.memory_bytes, "memory_node": node.memory_node.0, "l3_groups": groups,
        })
    };
    let shard = |(index, shard): (usize, &tuning::ShardPlacement)| {
        let threads = shard
            .workers
            .iter()
            .enumerate()
            .map(|(member, cpu)| json!({"thread": crate::server::worker_name(index, member), "cpu": cpu.0}));
        json!({
            "shard": index, "node": shard.node.0, "memory_node": shard.memory_node.0,
            "executor": {"thread": crate::server::executor_name(index), "cpus": ids(&shard.executor)},
            "workers": threads.collect::<Vec<_>>(),
        })
    };
    let device = |(ordinal, device): (&usize, &DevicePlacement)| {
        json!({
            "device": ordinal, "node": device.node.0,
            "feeder": {"thread": crate::gpu::feeder_name(*ordinal), "cpu": device.feeder().map(|cpu| cpu.0)},
            "worker": {"process": worker_process(*ordinal), "cpu": device.worker().map(|cpu| cpu.0)},
        })
    };
    let memory = |(name, budget): &(String, Budget)| {
        json!({
            "model": name, "free_bytes": budget.free_bytes, "replicas": budget.replicas,
            "replica_bytes": budget.replica_bytes, "buffer_bytes_per_shard": budget.buffer_bytes,
            "kv_blocks_per_shard": budget.kv_blocks, "kv_bytes": budget.kv_bytes(),
        })
    };
    json!({
        "memory": budgets.iter().map(memory).collect::<Vec<_>>(),
        "nodes": topology.nodes.iter().map(node).collect::<Vec<_>>(),
        "isolated": ids(&topology.isolated),
        "quota_millicpus": topology.quota_millicpus,
        "shards": placement.shards.iter().enumerate().map(shard).collect::<Vec<_>>(),
        "devices": devices.iter().zip(&placement.devices).map(device).collect::<Vec<_>>(),
        "notes": placement.notes.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn sorted(mut cpus: Vec<CpuId>) -> Vec<CpuId> {
    cpus.sort_unstable();
    cpus
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit after the point")]
fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use tuning::{Core, NodeId};

    use super::*;

    fn core(cpus: &[u32], l3: u32, kind: CoreKind) -> Core {
        Core { cpus: cpus.iter().map(|cpu| CpuId(*cpu)).collect(), l3: CpuId(l3), kind }
    }

    /// Two cores with siblings and a slow one on node 0, two isolated cores of one cpu on node 2.
    fn machine() -> Topology {
        let fast = CoreKind::Performance;
        let cores = [
            vec![core(&[0, 4], 0, fast), core(&[1, 5], 0, fast), core(&[2], 0, CoreKind::Efficient)],
            vec![core(&[3], 3, fast), core(&[7], 7, fast)],
        ];
        let nodes = [0, 2].into_iter().zip(cores).map(|(id, cores)| Node {
            id: NodeId(id),
            cpus: sorted(cores.iter().flat_map(|core| core.cpus.clone()).collect()),
            cores,
            memory_bytes: (id == 0).then_some(24 << 30),
            memory_node: NodeId(0),
        });
        Topology { nodes: nodes.collect(), isolated: vec![CpuId(3), CpuId(7)], quota_millicpus: Some(4500) }
    }

    #[test]
    fn every_thread_is_drawn_where_it_runs() {
        let machine = machine();
        let placement = tuning::plan(&machine, None, None).unwrap();
        let expected = "\
2 shards and 4 workers on 2 nodes: 5 cores and 7 cpus that may be used, cpu time of 4.500
node0: cpu 0-2,4-5, 24.0 GiB
├─ L3 of cpu 0-2,4-5
│  ├─ core  cpu 0: leader-0  |  cpu 4: -
│  ├─ core  cpu 1: worker-0.1  |  cpu 5: -
│  └─ core (efficient)  cpu 2: shard-0
└─ replica of the weights, KV caches: shards 0 1
node2: cpu 3,7, memory of unknown size
├─ L3 of cpu 3
│  └─ core  cpu 3 isolated: leader-1
├─ L3 of cpu 7
│  └─ core  cpu 7 isolated: shard-1 worker-1.1
└─ no replica
note: node2 has no memory, its shards read that of node0
";
        assert_eq!(tree(&machine, (&placement, &[]), &[]), expected);
    }

    #[test]
    fn programs_get_the_same() {
        let machine = machine();
        let got = object(&machine, (&tuning::plan(&machine, None, None).unwrap(), &[]), &[]);
        assert_eq!(got["shards"][0]["executor"], json!({"thread": "shard-0", "cpus": [2]}));
        assert_eq!(got["shards"][1]["workers"][1], json!({"thread": "worker-1.1", "cpu": 7}));
        assert_eq!(got["nodes"][0]["l3_groups"][0]["cores"][2], json!({"cpus": [2], "kind": "efficient"}));
        assert_eq!(got["nodes"][1]["memory_node"], 0);
        assert_eq!(got["isolated"], json!([3, 7]));
    }

    #[test]
    fn threads_of_devices_are_drawn_where_cpus_are_kept_for_them() {
        let cores: Vec<Core> = (0..9).map(|cpu| core(&[cpu, cpu + 9], 0, CoreKind::Performance)).collect();
        let node = Node {
            id: NodeId(0),
            cpus: (0..18).map(CpuId).collect(),
            cores,
            memory_bytes: None,
            memory_node: NodeId(0),
        };
        let machine = Topology { nodes: vec![node], isolated: Vec::new(), quota_millicpus: None };
        let placement = tuning::plan_with_devices(&machine, None, None, &[None; 3]).unwrap();
        // The driver lists a device between them that is not used.
        let drawn = tree(&machine, (&placement, &[0, 2, 3]), &[]);
        for line in [
            "│  ├─ core  cpu 7: gpu-0  |  cpu 16: gpu-worker-0\n",
            "│  └─ core  cpu 8: gpu-2  |  cpu 17: gpu-worker-2\n",
            "cuda:0 of node0: feeder on cpu 7, worker process on cpu 16\n",
            "cuda:3 of node0: feeder and worker process have no core of their own\n",
        ] {
            assert!(drawn.contains(line), "{line} is not in\n{drawn}");
        }
        let got = object(&machine, (&placement, &[0, 2, 3]), &[]);
        assert_eq!(got["devices"][1]["worker"], json!({"process": "gpu-worker-2", "cpu": 17}));
        assert_eq!(got["devices"][2]["feeder"], json!({"thread": "gpu-3", "cpu": null}));
    }
}
