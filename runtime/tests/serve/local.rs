//! The Unix socket beside the port or in its place, and tokens.

use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use crate::models::Folder;
use crate::server::{PATIENCE, Server, becomes_true, bitnetd, run_to_end};

/// Status and body of one request over the socket.
fn ask(socket: &Path, method: &str, path: &str, body: &str) -> (u16, Value) {
    try_ask(socket, method, path, body).unwrap()
}

/// The same where a server may be on its way down or up.
fn try_ask(socket: &Path, method: &str, path: &str, body: &str) -> std::io::Result<(u16, Value)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all((head + body).as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let Some((_, body)) = answer.split_once("\r\n\r\n") else { return Err(std::io::ErrorKind::UnexpectedEof.into()) };
    Ok((answer[9..12].parse().unwrap(), serde_json::from_str(body).unwrap_or(Value::Null)))
}

#[test]
fn the_socket_answers_beside_the_port_and_lets_its_users_change_models() {
    let folder = Folder::new();
    let (model, second, socket) = (folder.synth("a.gguf", 1), folder.synth("b.gguf", 2), folder.path("s"));
    let directory = folder.text("");
    let path = folder.text("s");
    let both = ["--model", &model, "--allowed-model-directory", &directory, "--listen-unix", &path];
    for io in ["auto", "epoll"] {
        let arguments = [&both[..], &["--listen-unix-mode", "640", "--io", io]].concat();
        let server = Server::start(&arguments);
        let file = std::fs::symlink_metadata(&socket).unwrap();
        assert!(file.file_type().is_socket() && file.permissions().mode() & 0o777 == 0o640);
        let completion = r#"{"prompt":"a","max_tokens":4,"temperature":0}"#;
        let (status, answer) = ask(&socket, "POST", "/v1/completions", completion);
        let by_port = server.ask("/v1/completions", &serde_json::from_str(completion).unwrap());
        assert_eq!((status, &answer["choices"]), (200, &by_port["choices"]));
        let swap = json!({"new_model_path": second, "target_model_id": "a"}).to_string();
        assert_eq!(server.post("/v1/models/swap", &swap).status, 403, "the port wants a key");
        let (status, answer) = ask(&socket, "POST", "/v1/models/swap", &swap);
        assert_eq!((status, answer["status"].as_str()), (200, Some("completed")), "{answer}");
        // A second server gets neither the port nor the socket.
        let ended = run_to_end(&mut bitnetd(&[&["serve"], &both[..]].concat()));
        assert!(ended.code == Some(1) && ended.words.contains("a server listens there"), "{ended:?}");
        server.terminate();
        assert_eq!(server.ended().code, Some(0));
        assert!(!socket.exists());
    }
}

#[test]
fn a_socket_that_a_killed_server_left_is_replaced_and_keys_hold_there_too() {
    let folder = Folder::new();
    let (socket, path) = (folder.path("s"), folder.text("s"));
    folder.synth("a.gguf", 1);
    let start = || {
        let mut child = bitnetd(&["serve"]);
        child.args(folder.arguments("a.gguf", &["--listen-unix", &path]));
        child.spawn().unwrap()
    };
    let mut first = start();
    let answers = || try_ask(&socket, "GET", "/health/ready", "").is_ok_and(|(status, _)| status == 200);
    assert!(becomes_true(PATIENCE, answers));
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(socket.exists());
    let mut second = start();
    assert!(becomes_true(PATIENCE, answers));
    assert_eq!(ask(&socket, "POST", "/v1/models/swap", "{}").0, 401);
    second.kill().unwrap();
    second.wait().unwrap();
}

#[test]
fn a_log_that_nobody_can_write_to_ends_no_server() {
    let folder = Folder::new();
    let (socket, path) = (folder.path("s"), folder.text("s"));
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut server = bitnetd(&["serve", "--listen-unix", &path]).stderr(full()).spawn().unwrap();
    let answers = || try_ask(&socket, "GET", "/health/ready", "").is_ok_and(|(status, _)| status == 200);
    let serves = becomes_true(PATIENCE, answers);
    let status = std::process::Command::new("kill").args(["-TERM", &server.id().to_string()]).status().unwrap();
    assert!(serves && status.success());
    assert_eq!(server.wait().unwrap().code(), Some(0));
    let mut failing = bitnetd(&["serve", "--model", "/nothing"]);
    assert_eq!(failing.stderr(full()).status().unwrap().code(), Some(1));
}

#[test]
fn tokens_open_what_their_scopes_say() {
    let folder = Folder::new();
    let (model, other, directory) = (folder.synth("a.gguf", 1), folder.synth("b.gguf", 2), folder.text(""));
    let arguments = ["--model", &model, "--allowed-model-directory", &directory, "--jwt-secret", SECRET];
    let server = Server::start(&[&arguments[..], &["--require-authentication"]].concat());
    let status = |method: &str, path: &str, token: &str, body: &str| {
        let headers = format!("Authorization: Bearer {token}\r\nContent-Type: application/json\r\n");
        server.connect().request(method, path, &headers, body).status
    };
    let load = json!({"model_path": other}).to_string();
    assert_eq!(status("POST", "/v1/models/swap", GOOD, "{}"), 403);
    for token in [OLD, UNSIGNED, "secret", ""] {
        assert_eq!(status("POST", "/v1/models/load", token, &load), 401, "{token}");
    }
    assert_eq!(status("POST", "/v1/models/load", GOOD, &load), 200);
    assert_eq!(status("GET", "/v1/models", GOOD, ""), 200);
    let ended = run_to_end(&mut bitnetd(&["serve", "--jwt-secret", "hunter2"]));
    assert!(ended.code == Some(1) && !ended.words.contains("hunter2"), "{ended:?}");
}

const SECRET: &str = "a secret of more than 32 bytes, for tests";
/// `{"exp":4102444800,"scope":"model:read model:write"}`
const GOOD: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJleHAiOjQxMDI0NDQ4MDAsInNjb3BlIjoibW9kZWw6cmVhZCBtb2RlbDp3cml0ZSJ9.dzBcIabNiVubsptYTpWfgcNCuGf8f7SuAMNO1BAyzAc";
/// The same, with an end in 2001.
const OLD: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJleHAiOjEwMDAwMDAwMDAsInNjb3BlIjoibW9kZWw6cmVhZCBtb2RlbDp3cml0ZSJ9.7GinzlWDZKBUv-fN7s4-lrDsTOOMDsMXaooSLq4Ep9Y";
/// The claims of the first under `{"alg":"none"}`.
const UNSIGNED: &str =
    "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.eyJleHAiOjQxMDI0NDQ4MDAsInNjb3BlIjoibW9kZWw6cmVhZCBtb2RlbDp3cml0ZSJ9.";
