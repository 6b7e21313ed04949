//! Settings of cores: frequency, sleep, quota; and the pools of huge pages of their nodes.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Check, Level, Roots, Write, number, read};
use crate::cpu::{CpuId, format_cpus};
use crate::topology::Topology;

pub(super) fn check(roots: Roots<'_>, topology: &Topology) -> Vec<Check> {
    let mut cpus: Vec<CpuId> = topology.nodes.iter().flat_map(|node| node.cpus.iter().copied()).collect();
    cpus.sort_unstable();
    let found = [governor(roots.sys, &cpus), sleep(roots.sys, &cpus), Some(quota(topology)), pools(roots.sys)];
    found.into_iter().flatten().collect()
}

fn folder(sys: &Path, cpu: CpuId) -> PathBuf {
    sys.join(format!("devices/system/cpu/cpu{}", cpu.0))
}

fn governor(sys: &Path, cpus: &[CpuId]) -> Option<Check> {
    let files = cpus.iter().map(|cpu| (*cpu, folder(sys, *cpu).join("cpufreq/scaling_governor")));
    let known: Vec<_> = files.filter_map(|(cpu, path)| Some((cpu, read(&path)?, path))).collect();
    let (_, first, _) = known.first()?;
    let first = first.clone();
    let slow: Vec<_> = known.into_iter().filter(|(_, governor, _)| governor != "performance").collect();
    let current = match slow.first() {
        None => first,
        Some((_, name, _)) => {
            let cpus: Vec<CpuId> = slow.iter().map(|(cpu, ..)| *cpu).collect();
            format!("{name} on cpu {}", format_cpus(&cpus))
        }
    };
    let write = |(_, was, path): (CpuId, String, PathBuf)| Write { path, value: "performance".into(), was };
    Some(Check {
        id: "frequency governor",
        level: if slow.is_empty() { Level::Good } else { Level::Warning },
        current,
        wanted: "performance".into(),
        why: "Others lower the clock between requests, so that the first tokens of each come late.",
        writes: slow.into_iter().map(write).collect(),
        advice: None,
    })
}

/// Sleeping states from which a core takes long to wake.
fn sleep(sys: &Path, cpus: &[CpuId]) -> Option<Check> {
    let states = cpus.iter().flat_map(|cpu| idle_states(&folder(sys, *cpu)));
    let known: Vec<_> = states.collect();
    if known.is_empty() {
        return None;
    }
    let deep: Vec<_> =
        known.into_iter().filter(|(latency_us, enabled, _)| *enabled && *latency_us > WAKE_MAX_US).collect();
    let longest = deep.iter().map(|(latency_us, ..)| *latency_us).max();
    let write =
        |(_, _, state): (u64, bool, PathBuf)| Write { path: state.join("disable"), value: "1".into(), was: "0".into() };
    Some(Check {
        id: "sleeping states",
        level: if deep.is_empty() { Level::Good } else { Level::Advice },
        current: longest.map_or_else(
            || format!("none takes longer than {WAKE_MAX_US} us to wake from"),
            |longest| format!("up to {longest} us to wake from"),
        ),
        wanted: format!("{WAKE_MAX_US} us at most"),
        why: "A request that finds its core asleep waits for it to wake, several times on its way. Idle cores then use more power.",
        writes: deep.into_iter().map(write).collect(),
        advice: None,
    })
}

/// Time to wake in microseconds, whether the state may be taken, and its folder.
fn idle_states(cpu: &Path) -> Vec<(u64, bool, PathBuf)> {
    let Ok(entries) = fs::read_dir(cpu.join("cpuidle")) else { return Vec::new() };
    let state = |path: PathBuf| {
        let latency_us = number(&read(&path.join("latency"))?)?;
        Some((latency_us, read(&path.join("disable"))? == "0", path))
    };
    let mut states: Vec<_> = entries.filter_map(|entry| state(entry.ok()?.path())).collect();
    states.sort_by(|a, b| a.2.cmp(&b.2));
    states
}

fn quota(topology: &Topology) -> Check {
    let quota = topology.quota_millicpus;
    #[expect(clippy::cast_precision_loss, reason = "thousandths of cpus")]
    let current = quota.map_or_else(|| "none".to_owned(), |quota| format!("{} cpus", quota as f64 / 1e3));
    Check {
        id: "cpu quota",
        level: if quota.is_none() { Level::Good } else { Level::Warning },
        current,
        wanted: "none".into(),
        why: "A group that has used up its share stands still for the rest of the period, up to 0.1 s.",
        writes: Vec::new(),
        advice: quota.map(|_| "Give whole cpus in its place: AllowedCPUs= of a unit, a cpuset of a container."),
    }
}

/// Pools of huge pages, in all nodes together: the only kind of page that is sure to be huge.
fn pools(sys: &Path) -> Option<Check> {
    let pool = |size: &str| number(&read(&sys.join("kernel/mm/hugepages").join(size).join("nr_hugepages"))?);
    let (large, huge) = (pool("hugepages-2048kB")?, pool("hugepages-1048576kB").unwrap_or(0));
    let some = large + huge > 0;
    Some(Check {
        id: "pool of huge pages",
        level: if some { Level::Good } else { Level::Advice },
        current: format!("{large} of 2 MiB, {huge} of 1 GiB"),
        wanted: "enough for the weights of each node, as `bitnetd serve` says at its start".into(),
        why: "Transparent ones are taken in their place where memory is not too fragmented.",
        writes: Vec::new(),
        advice: (!some).then_some(
            "For each node N: echo PAGES > /sys/devices/system/node/nodeN/hugepages/hugepages-2048kB/nr_hugepages, soon after \
             boot.",
        ),
    })
}

/// Sleeping states that take longer are worth a word.
const WAKE_MAX_US: u64 = 20;
