//! Settings of the whole kernel: io_uring, memory, clock, sockets, limits of this process.

use super::{Check, Level, Roots, Setting, number, read};

pub(super) fn check(roots: Roots<'_>, nodes: usize) -> Vec<Check> {
    let mut checks: Vec<Check> = [version(roots), io_uring(roots), clock(roots)].into_iter().flatten().collect();
    checks.extend(limit(roots, "locked memory", "Max locked memory", u64::MAX));
    checks.extend(limit(roots, "open files", "Max open files", OPEN_FILES_MIN));
    checks.extend([transparent_pages(roots), swap(roots)].into_iter().flatten());
    if nodes > 1 {
        checks.extend([numa_balancing(roots), zone_reclaim(roots)].into_iter().flatten());
    }
    checks.extend([backlog(roots), half_open(roots), migration(roots)].into_iter().flatten());
    checks
}

fn version(roots: Roots<'_>) -> Option<Check> {
    let setting = Setting {
        id: "kernel",
        level: Level::Warning,
        wanted: "6.1 or later",
        why: "Older ones lack what keeps io_uring from interrupting workers.",
        value: None,
        advice: Some("Install a newer kernel."),
    };
    setting.look(&roots.proc.join("sys/kernel/osrelease"), |release| {
        let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
        (parts.next(), parts.next()) >= (Some(6), Some(1))
    })
}

fn io_uring(roots: Roots<'_>) -> Option<Check> {
    let setting = Setting {
        id: "io_uring",
        level: Level::Warning,
        wanted: "0 (allowed to all)",
        why: "Where it is refused, sockets go by epoll and files through the page cache.",
        value: Some("0"),
        advice: None,
    };
    setting.look(&roots.proc.join("sys/kernel/io_uring_disabled"), |value| value == "0")
}

fn clock(roots: Roots<'_>) -> Option<Check> {
    let folder = roots.sys.join("devices/system/clocksource/clocksource0");
    let has_tsc = read(&folder.join("available_clocksource"))?.split_whitespace().any(|name| name == "tsc");
    let setting = Setting {
        id: "clock source",
        level: Level::Warning,
        wanted: "tsc, or kvm-clock in a virtual machine",
        why: "Others make every look at the clock a system call.",
        value: has_tsc.then_some("tsc"),
        advice: (!has_tsc).then_some("The kernel found the tsc unstable: see its log."),
    };
    let fast = |name: &str| matches!(name, "tsc" | "kvm-clock" | "hyperv_clocksource_tsc_page" | "arch_sys_counter");
    setting.look(&folder.join("current_clocksource"), fast)
}

/// A limit of this process, as the next server gets it.
fn limit(roots: Roots<'_>, id: &'static str, line: &str, wanted: u64) -> Option<Check> {
    let limits = read(&roots.proc.join("self/limits"))?;
    let values = limits.lines().find_map(|text| text.strip_prefix(line))?;
    // Soft, hard, unit: the server raises its soft limit to the hard one.
    let hard = values.split_whitespace().nth(1)?;
    let good = hard == "unlimited" || hard.parse().is_ok_and(|value: u64| value >= wanted);
    let memory = wanted == u64::MAX;
    Some(Check {
        id,
        level: if good { Level::Good } else { Level::Warning },
        current: hard.to_owned(),
        wanted: if memory { "unlimited".into() } else { format!("{wanted} or more") },
        why: match memory {
            true => "Weights that can't be locked may be swapped out; rings of io_uring count, too.",
            false => "Every connection is a descriptor.",
        },
        writes: Vec::new(),
        advice: (!good).then_some(match memory {
            true => "In a unit: LimitMEMLOCK=infinity; in a shell, as root: ulimit -l unlimited.",
            false => "In a unit: LimitNOFILE=65536; in a shell, as root: ulimit -n 65536.",
        }),
    })
}

fn transparent_pages(roots: Roots<'_>) -> Option<Check> {
    let setting = Setting {
        id: "transparent huge pages",
        level: Level::Warning,
        wanted: "madvise or always",
        why: "Without huge pages weights and KV cache are read more slowly, unless there is a pool of huge pages.",
        value: Some("madvise"),
        advice: None,
    };
    setting.look(&roots.sys.join("kernel/mm/transparent_hugepage/enabled"), |word| word != "never")
}

fn swap(roots: Roots<'_>) -> Option<Check> {
    let devices = read(&roots.proc.join("swaps"))?.lines().skip(1).count();
    let setting = Setting {
        id: "swappiness",
        level: Level::Advice,
        wanted: "10 at most, or no swap",
        why: "A page of a stack or of a buffer that was swapped out stops a step.",
        value: Some("1"),
        advice: None,
    };
    let is_low = |value: &str| devices == 0 || number(value).is_some_and(|value| value <= 10);
    setting
        .look(&roots.proc.join("sys/vm/swappiness"), is_low)
        .map(|check| Check { current: if devices == 0 { "no swap".into() } else { check.current }, ..check })
}

fn numa_balancing(roots: Roots<'_>) -> Option<Check> {
    let setting = Setting {
        id: "NUMA balancing",
        level: Level::Warning,
        wanted: "0",
        why: "It takes pages away from workers to see who reads them; replicas are on their nodes already.",
        value: Some("0"),
        advice: None,
    };
    setting.look(&roots.proc.join("sys/kernel/numa_balancing"), |value| value == "0")
}

fn zone_reclaim(roots: Roots<'_>) -> Option<Check> {
    let setting = Setting {
        id: "zone reclaim",
        level: Level::Warning,
        wanted: "0",
        why: "A node that is full of file pages would make an allocation wait for their eviction.",
        value: Some("0"),
        advice: None,
    };
    setting.look(&roots.proc.join("sys/vm/zone_reclaim_mode"), |value| value == "0")
}

fn backlog(roots: Roots<'_>) -> Option<Check> {
    let setting = Setting {
        id: "accept backlog",
        level: Level::Advice,
        wanted: "4096 or more",
        why: "Clients that connect all at once wait in it; what does not fit is tried again after a second.",
        value: Some("4096"),
        advice: None,
    };
    setting.look(&roots.proc.join("sys/net/core/somaxconn"), at_least(BACKLOG_MIN))
}

fn half_open(roots: Roots<'_>) -> Option<Check> {
    let setting = Setting {
        id: "SYN backlog",
        level: Level::Advice,
        wanted: "1024 or more",
        why: "As the accept backlog, for connections that are being made.",
        value: Some("4096"),
        advice: None,
    };
    setting.look(&roots.proc.join("sys/net/ipv4/tcp_max_syn_backlog"), at_least(SYN_BACKLOG_MIN))
}

fn migration(roots: Roots<'_>) -> Option<Check> {
    let setting = Setting {
        id: "listener migration",
        level: Level::Advice,
        wanted: "1",
        why: "Connections that wait at a listener that is closed move on to another one, in place of a reset, when a server \
              on the same port ends.",
        value: Some("1"),
        advice: None,
    };
    setting.look(&roots.proc.join("sys/net/ipv4/tcp_migrate_req"), |value| value == "1")
}

fn at_least(least: u64) -> impl Fn(&str) -> bool {
    move |value| number(value).is_some_and(|value| value >= least)
}

const OPEN_FILES_MIN: u64 = 16_384;
const BACKLOG_MIN: u64 = 4096;
const SYN_BACKLOG_MIN: u64 = 1024;
