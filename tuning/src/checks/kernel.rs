//! Settings of the whole kernel: io_uring, memory, clock, sockets, limits of this process.

use super::{Change, Check, File, Level, Roots, Setting, number, read};

pub(super) fn check(roots: Roots<'_>, nodes: usize) -> Vec<Check> {
    let of_nodes = if nodes > 1 { &OF_NODES[..] } else { &[] };
    let mut checks: Vec<Check> = ALWAYS.iter().chain(of_nodes).filter_map(|setting| setting.look(roots)).collect();
    checks.extend(limit(roots, "locked memory", "Max locked memory", u64::MAX));
    checks.extend(limit(roots, "open files", "Max open files", OPEN_FILES_MIN));
    checks.extend(clock(roots));
    checks.extend(swap(roots));
    checks
}

fn clock(roots: Roots<'_>) -> Option<Check> {
    let available = read(&roots.sys.join("devices/system/clocksource/clocksource0/available_clocksource"))?;
    let has_tsc = available.split_whitespace().any(|name| name == "tsc");
    let change = match has_tsc {
        true => Change::Write("tsc"),
        false => Change::Advice("The kernel found the tsc unstable: see its log."),
    };
    Setting { change, ..CLOCK }.look(roots)
}

fn swap(roots: Roots<'_>) -> Option<Check> {
    let devices = read(&roots.proc.join("swaps"))?.lines().skip(1).count();
    if devices > 0 {
        return SWAPPINESS.look(roots);
    }
    let check = Setting { is_good: |_| true, ..SWAPPINESS }.look(roots)?;
    Some(Check { current: "no swap".into(), ..check })
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

fn is_zero(value: &str) -> bool {
    value == "0"
}

fn is_since_6_1(release: &str) -> bool {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next(), parts.next()) >= (Some(6), Some(1))
}

/// What is looked at on every machine, as far as its kernel has it.
const ALWAYS: [Setting; 6] = [
    Setting {
        id: "kernel",
        level: Level::Warning,
        file: File::Proc("sys/kernel/osrelease"),
        is_good: is_since_6_1,
        wanted: "6.1 or later",
        why: "Older ones lack what keeps io_uring from interrupting workers.",
        change: Change::Advice("Install a newer kernel."),
    },
    Setting {
        id: "io_uring",
        level: Level::Warning,
        file: File::Proc("sys/kernel/io_uring_disabled"),
        is_good: is_zero,
        wanted: "0 (allowed to all)",
        why: "Where it is refused, sockets go by epoll and files through the page cache.",
        change: Change::Write("0"),
    },
    Setting {
        id: "transparent huge pages",
        level: Level::Warning,
        file: File::Sys("kernel/mm/transparent_hugepage/enabled"),
        is_good: |word| word != "never",
        wanted: "madvise or always",
        why: "Without huge pages weights and KV cache are read more slowly, unless there is a pool of huge pages.",
        change: Change::Write("madvise"),
    },
    Setting {
        id: "accept backlog",
        level: Level::Advice,
        file: File::Proc("sys/net/core/somaxconn"),
        is_good: |value| number(value).is_some_and(|value| value >= 4096),
        wanted: "4096 or more",
        why: "Clients that connect all at once wait in it; what does not fit is tried again after a second.",
        change: Change::Write("4096"),
    },
    Setting {
        id: "SYN backlog",
        level: Level::Advice,
        file: File::Proc("sys/net/ipv4/tcp_max_syn_backlog"),
        is_good: |value| number(value).is_some_and(|value| value >= 1024),
        wanted: "1024 or more",
        why: "As the accept backlog, for connections that are being made.",
        change: Change::Write("4096"),
    },
    Setting {
        id: "listener migration",
        level: Level::Advice,
        file: File::Proc("sys/net/ipv4/tcp_migrate_req"),
        is_good: |value| value == "1",
        wanted: "1",
        why: "Connections that wait at a listener that is closed move on to another one, in place of a reset, when a server on \
              the same port ends.",
        change: Change::Write("1"),
    },
];

/// What matters with several NUMA nodes.
const OF_NODES: [Setting; 2] = [
    Setting {
        id: "NUMA balancing",
        level: Level::Warning,
        file: File::Proc("sys/kernel/numa_balancing"),
        is_good: is_zero,
        wanted: "0",
        why: "It takes pages away from workers to see who reads them; replicas are on their nodes already.",
        change: Change::Write("0"),
    },
    Setting {
        id: "zone reclaim",
        level: Level::Warning,
        file: File::Proc("sys/vm/zone_reclaim_mode"),
        is_good: is_zero,
        wanted: "0",
        why: "A node that is full of file pages would make an allocation wait for their eviction.",
        change: Change::Write("0"),
    },
];

const CLOCK: Setting = Setting {
    id: "clock source",
    level: Level::Warning,
    file: File::Sys("devices/system/clocksource/clocksource0/current_clocksource"),
    is_good: |name| matches!(name, "tsc" | "kvm-clock" | "hyperv_clocksource_tsc_page" | "arch_sys_counter"),
    wanted: "tsc, or that of the hypervisor",
    why: "Others make every look at the clock a system call.",
    change: Change::Write("tsc"),
};

const SWAPPINESS: Setting = Setting {
    id: "swappiness",
    level: Level::Advice,
    file: File::Proc("sys/vm/swappiness"),
    is_good: |value| number(value).is_some_and(|value| value <= 10),
    wanted: "10 at most, or no swap",
    why: "A page of a stack or of a buffer that was swapped out stops a step.",
    change: Change::Write("1"),
};

const OPEN_FILES_MIN: u64 = 16_384;
