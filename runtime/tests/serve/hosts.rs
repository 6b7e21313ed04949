//! Hosts that have little: it serves with less, or says in a line what is missing, and harms no file.
#![expect(unsafe_code, reason = "a child that limits itself before it starts")]

use std::os::unix::process::CommandExt;
use std::process::Command;

use serde_json::{Value, json};

use crate::models::Folder;
use crate::server::{PATIENCE, Server, becomes_true, bitnetd, run_to_end};

/// `bitnetd` with a limit of its own.
fn limited(resource: libc::__rlimit_resource_t, value: u64, arguments: &[&str]) -> Command {
    let mut command = bitnetd(arguments);
    let limit = move || {
        let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
        // Else a file that becomes too long ends the process before it can say so.
        // SAFETY: no handler is set, the signal is ignored.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        // SAFETY: the limit outlives the call.
        if unsafe { libc::setrlimit(resource, &raw const limit) } == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    // SAFETY: between fork and exec only two system calls are made.
    unsafe { command.pre_exec(limit) };
    command
}

fn assert_serves(server: &Server) {
    server.ask("/v1/completions", &json!({"prompt": "Once", "max_tokens": 4, "temperature": 0}));
}

#[test]
fn a_file_that_there_is_no_room_for_leaves_the_one_before() {
    let folder = Folder::new();
    let path = folder.write("model.gguf", b"precious");
    let ended = run_to_end(limited(libc::RLIMIT_FSIZE, 1 << 16, &["synth", "--preset", "tiny"]).arg(&path));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_eq!(std::fs::read(folder.path("model.gguf")).unwrap(), b"precious");
    assert!(ended.words.contains(&path) && !ended.words.contains("panicked"), "{ended:?}");
    let files = std::fs::read_dir(folder.path("")).unwrap().count();
    assert_eq!(files, 1, "no part of a file is left over");
}

#[test]
fn little_address_space_is_made_do_with_or_named() {
    let mut served = 0;
    for mib in [256, 320, 400, 512, 1024] {
        let mut child = limited(libc::RLIMIT_AS, mib << 20, &["serve", "--port", "0"]);
        match Server::try_spawn(&mut child) {
            Ok(server) => {
                assert_serves(&server);
                served = mib;
            }
            Err(words) => {
                let last = words.lines().last().unwrap_or_default();
                assert!(last.starts_with("bitnetd: ") && !words.contains("panicked"), "{mib} MiB: {words}");
            }
        }
    }
    assert_eq!(served, 1024, "what is there is enough for the smallest model");
}

#[test]
fn connections_beyond_the_descriptors_that_there_are_wait_their_turn() {
    let server = Server::spawn(&mut limited(libc::RLIMIT_NOFILE, 64, &["serve", "--port", "0"]));
    assert!(server.first_words.contains("64 open files are allowed"), "{}", server.first_words);
    let mut clients: Vec<_> = (0..100).map(|_| server.connect()).collect();
    // Those inside are served whoever waits outside, and each that leaves lets one in.
    while let Some(mut client) = clients.pop() {
        assert_eq!(clients.first_mut().unwrap_or(&mut client).get("/health/live").status, 200);
    }
    assert_serves(&server);
    server.terminate();
    assert_eq!(server.ended().code, Some(0));
}

#[test]
fn a_state_that_can_t_be_written_keeps_what_is_served() {
    let folder = Folder::new();
    let (_, second) = (folder.synth("a.gguf", 1), folder.synth("b.gguf", 2));
    let (state, away) = (folder.path("state"), folder.path("away"));
    let server = folder.serve("a.gguf", &["--state-dir", &folder.text("state"), "--swap-watch-seconds", "0"]);
    let load = json!({"model_path": second, "model_id": "second"});
    let remove = || server.admin("DELETE", "/v1/models/second", &Value::Null);
    let names = || server.get("/v1/models").json()["data"].as_array().unwrap().len();
    assert_eq!(server.admin("POST", "/v1/models/load", &load).status, 200);
    let answer = server.greedy(8);
    std::fs::rename(&state, &away).unwrap();
    for refused in [remove(), server.try_swap(&second, &json!({}))] {
        assert!(refused.status == 500 || refused.json()["status"] == "rolled_back", "{}", refused.text());
        assert!(refused.text().contains("remembered"), "{}", refused.text());
    }
    assert_eq!((names(), server.greedy(8)), (2, answer));
    let body = json!({"model": "second", "prompt": "a", "max_tokens": 2});
    server.ask("/v1/completions", &body);
    let third = json!({"model_path": second, "model_id": "third"});
    assert_eq!(server.admin("POST", "/v1/models/load", &third).status, 500);
    std::fs::rename(&away, &state).unwrap();
    assert_eq!(remove().status, 204);
    assert!(becomes_true(PATIENCE, || names() == 1));
}
