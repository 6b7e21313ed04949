//! Checks of a host, on trees of files that look like one.

use std::fs;
use std::path::PathBuf;

use tuning::checks::{Check, Level, Roots, check};

struct Host(PathBuf);

impl Host {
    /// Two cpus in one node; `well` says whether everything is as it should be.
    fn new(name: &str, well: bool) -> Self {
        let host = Self(std::env::temp_dir().join(format!("bitnetd-checks-{}-{name}", std::process::id())));
        let pick = |good, bad| if well { good } else { bad };
        host.write("sys/devices/system/cpu/online", "0-1");
        host.write("sys/devices/system/node/online", "0");
        host.write("sys/devices/system/node/node0/cpulist", "0-1");
        for cpu in 0..2 {
            let folder = format!("sys/devices/system/cpu/cpu{cpu}");
            host.write(&format!("{folder}/cpufreq/scaling_governor"), pick("performance", "powersave"));
            host.write(&format!("{folder}/cpuidle/state0/latency"), "1");
            host.write(&format!("{folder}/cpuidle/state0/disable"), "0");
            host.write(&format!("{folder}/cpuidle/state3/latency"), "133");
            host.write(&format!("{folder}/cpuidle/state3/disable"), pick("1", "0"));
        }
        let clock = "sys/devices/system/clocksource/clocksource0";
        host.write(&format!("{clock}/available_clocksource"), "tsc hpet");
        host.write(&format!("{clock}/current_clocksource"), pick("tsc", "hpet"));
        let pages = pick("always [madvise] never", "always madvise [never]");
        host.write("sys/kernel/mm/transparent_hugepage/enabled", pages);
        host.write("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", pick("512", "0"));
        host.write("proc/sys/kernel/osrelease", pick("6.1.0-13-amd64", "5.15.0-1-generic"));
        host.write("proc/sys/kernel/io_uring_disabled", pick("0", "2"));
        host.write("proc/sys/kernel/numa_balancing", pick("0", "1"));
        host.write("proc/sys/vm/swappiness", pick("1", "60"));
        host.write("proc/swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 8 0 -2\n");
        host.write("proc/sys/net/core/somaxconn", pick("4096", "128"));
        let (memory, files) =
            pick("unlimited unlimited;65536 1048576", "65536 65536;1024 4096").split_once(';').expect("two limits");
        let limits = format!("Limit Soft Hard Units\nMax locked memory {memory} bytes\nMax open files {files} files\n");
        host.write("proc/self/limits", &limits);
        host
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().expect("below the host")).expect("a folder of the test's own");
        fs::write(path, format!("{text}\n")).expect("a file of the test's own");
    }

    fn check(&self) -> Vec<Check> {
        check(Roots { sys: &self.0.join("sys"), proc: &self.0.join("proc") }).expect("well-formed files")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // What is left over harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn levels(checks: &[Check]) -> Vec<(&'static str, Level)> {
    checks.iter().map(|check| (check.id, check.level)).collect()
}

#[test]
fn a_host_that_is_well_has_nothing_to_change() {
    let checks = Host::new("well", true).check();
    assert!(checks.len() > 10, "{checks:?}");
    for check in checks {
        assert_eq!((check.level, check.writes.len(), check.advice), (Level::Good, 0, None), "{check}");
        assert!(check.to_string().starts_with("good "), "{check}");
    }
}

#[test]
fn each_setting_that_is_wrong_is_found() {
    let host = Host::new("unwell", false);
    let checks = host.check();
    let bad: Vec<_> = levels(&checks).into_iter().filter(|(_, level)| *level != Level::Good).collect();
    let expected = [
        ("kernel", Level::Warning),
        ("io_uring", Level::Warning),
        ("transparent huge pages", Level::Warning),
        ("accept backlog", Level::Advice),
        ("locked memory", Level::Warning),
        ("open files", Level::Warning),
        ("clock source", Level::Warning),
        ("swappiness", Level::Advice),
        ("frequency governor", Level::Warning),
        ("sleeping states", Level::Advice),
        ("pool of huge pages", Level::Advice),
    ];
    // One node needs no balancing, nor is it harmed by it.
    assert_eq!(bad, expected);
    let governor = checks.iter().find(|check| check.id == "frequency governor").unwrap();
    assert_eq!(governor.current, "powersave on cpu 0-1");
    assert_eq!(governor.writes.len(), 2);
}

#[test]
fn what_is_written_makes_it_good_and_can_be_undone() {
    let host = Host::new("fix", false);
    let before = host.check();
    let writes: Vec<_> = before.iter().flat_map(|check| &check.writes).collect();
    writes.iter().for_each(|write| write.apply().unwrap());
    let open: Vec<_> =
        host.check().into_iter().filter(|check| check.level != Level::Good).map(|check| check.id).collect();
    assert_eq!(open, ["kernel", "locked memory", "open files", "pool of huge pages"], "what no file changes");
    for write in writes {
        fs::write(&write.path, &write.was).unwrap();
    }
    assert_eq!(levels(&host.check()), levels(&before));
}

#[test]
fn several_nodes_want_no_balancing_and_a_quota_is_named() {
    let host = Host::new("nodes", false);
    host.write("sys/devices/system/node/online", "0-1");
    host.write("sys/devices/system/node/node0/cpulist", "0");
    host.write("sys/devices/system/node/node1/cpulist", "1");
    host.write("proc/self/cgroup", "0::/box");
    host.write("sys/fs/cgroup/box/cpu.max", "150000 100000");
    let checks = host.check();
    let of = |id: &str| checks.iter().find(|check| check.id == id).unwrap_or_else(|| panic!("{checks:?}"));
    assert_eq!(of("NUMA balancing").level, Level::Warning);
    assert_eq!((of("cpu quota").level, of("cpu quota").current.as_str()), (Level::Warning, "1.5 cpus"));
}

#[test]
fn a_machine_that_tells_nothing_is_no_error() {
    let host = Host(std::env::temp_dir().join(format!("bitnetd-checks-{}-bare", std::process::id())));
    host.write("sys/devices/system/cpu/online", "0");
    assert_eq!(levels(&host.check()), [("cpu quota", Level::Good)]);
}
