//! Threads run where the printed placement says, under the names that it says.

use std::collections::BTreeMap;
use std::process::Stdio;

use serde_json::Value;

use crate::server::{PATIENCE, Server, becomes_true, bitnetd, run_to_end};

/// What `--print-placement=json` says with `arguments`.
fn placement(arguments: &[&str]) -> Value {
    let output = bitnetd(&["serve", "--print-placement=json"]).args(arguments).stdout(Stdio::piped()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Names of threads and the cpus that they should be allowed.
fn wanted(placement: &Value) -> BTreeMap<String, Vec<u64>> {
    let cpus = |value: &Value| value.as_array().unwrap().iter().map(|cpu| cpu.as_u64().unwrap()).collect();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut threads = BTreeMap::new();
    for shard in placement["shards"].as_array().unwrap() {
        let executor = &shard["executor"];
        threads.insert(text(&executor["thread"]), cpus(&executor["cpus"]));
        for worker in shard["workers"].as_array().unwrap() {
            threads.insert(text(&worker["thread"]), vec![worker["cpu"].as_u64().unwrap()]);
        }
    }
    threads
}

/// Names of the threads of `server` and the cpus that the kernel allows them.
fn threads(server: &Server) -> BTreeMap<String, Vec<u64>> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    let tasks = tasks.filter_map(|task| {
        let task = task.ok()?.path();
        let name = std::fs::read_to_string(task.join("comm")).ok()?;
        let status = std::fs::read_to_string(task.join("status")).ok()?;
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        let cpus = tuning::parse_cpus(allowed).ok()?.iter().map(|cpu| u64::from(cpu.0)).collect();
        Some((name.trim().to_owned(), cpus))
    });
    tasks.collect()
}

#[test]
fn threads_run_where_the_placement_says() {
    let cores = placement(&["--workers", "1"])["nodes"].as_array().unwrap().iter().fold(0, |count, node| {
        let groups = node["l3_groups"].as_array().unwrap().iter();
        count + groups.map(|group| group["cores"].as_array().unwrap().len()).sum::<usize>()
    });
    let shards = cores.min(2).to_string();
    for arguments in [&[][..], &["--shards", &shards, "--workers", "1"][..]] {
        let wanted = wanted(&placement(arguments));
        let server = Server::start_on_all_cores(arguments);
        let holds = || {
            let threads = threads(&server);
            wanted.iter().all(|(name, cpus)| threads.get(name) == Some(cpus))
        };
        assert!(becomes_true(PATIENCE, holds), "wanted {wanted:?}, got {:?}", threads(&server));
    }
}

#[test]
fn placements_that_are_impossible_are_refused() {
    let cases = [(["--shards", "1000"], "1000 shards asked for"), (["--workers", "1000"], "1000 workers per shard")];
    for (arguments, words) in cases {
        for print in [&["serve", "--print-placement"][..], &["serve", "--port", "0"]] {
            let ended = run_to_end(bitnetd(print).args(arguments));
            assert!(ended.code == Some(1) && ended.words.contains(words), "{ended:?}");
        }
    }
    let ended = run_to_end(&mut bitnetd(&["serve", "--print-placement=picture"]));
    assert!(ended.code == Some(2) && ended.words.contains("tree, json"), "{ended:?}");
}

#[test]
fn the_tree_names_every_thread() {
    let output = bitnetd(&["serve", "--print-placement"]).stdout(Stdio::piped()).output().unwrap();
    let tree = String::from_utf8(output.stdout).unwrap();
    assert!(tree.contains("memory for `bitnetd-tiny`: ") && tree.contains("KV cache"), "{tree}");
    for name in wanted(&placement(&[])).keys() {
        assert!(tree.contains(name.as_str()), "{name} is not in\n{tree}");
    }
}

#[test]
fn the_host_is_checked_and_the_exit_code_says_whether_something_matters() {
    let output = bitnetd(&["tune", "check", "--json"]).stdout(Stdio::piped()).output().unwrap();
    let checks: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(checks.iter().any(|check| check["id"] == "locked memory"), "{checks:?}");
    let warned = checks.iter().any(|check| check["level"] == "warning");
    assert_eq!(output.status.code(), Some(i32::from(warned)), "{checks:?}");
    // A script for people: every line is a comment or what `apply` would do.
    let output = bitnetd(&["tune", "script"]).stdout(Stdio::piped()).output().unwrap();
    let script = String::from_utf8(output.stdout).unwrap();
    let is_fine =
        |line: &str| line.is_empty() || line.starts_with('#') || line == "set -eu" || line.starts_with("echo ");
    assert!(script.starts_with("#!/bin/sh\n") && script.lines().all(is_fine), "{script}");
}
