//! How a server ends: it finishes what runs, unless it is told to hurry.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::clients::{Client, logged_tokens};
use crate::server::{PATIENCE, Server, becomes_true, bitnetd, pause};

fn streaming(server: &Server, max_tokens: u32) -> Client {
    let mut client = server.connect();
    let body = json!({"prompt": "Once", "max_tokens": max_tokens, "ignore_eos": true, "stream": true});
    client.send_post("/v1/completions", body.to_string().as_bytes());
    assert_eq!(client.head().status, 200);
    client
}

/// A client that asks for more than the buffers of both sides take, and does not read.
fn unread(server: &Server, max_tokens: u32) -> Client {
    let mut client = server.connect();
    let body = json!({
        "prompt": "a", "n": 8, "max_tokens": max_tokens, "ignore_eos": true, "stream": true, "logprobs": 20,
    });
    client.send_post("/v1/completions", body.to_string().as_bytes());
    client
}

/// What is left of a stream whose head was read.
fn rest_of_stream(client: &mut Client) -> String {
    let mut body = Vec::new();
    while client.chunk(&mut body) {}
    String::from_utf8(body).unwrap()
}

#[test]
fn a_drain_finishes_streams_takes_nothing_new_and_ends_with_0() {
    let server = Server::start_on_all_cores(&[]);
    let mut streams: Vec<_> = (0..8).map(|_| streaming(&server, 40)).collect();
    // It holds the drain up until it is read.
    let mut unread = unread(&server, 300);
    let mut idle = server.connect();
    assert_eq!(idle.get("/health").status, 200);
    server.terminate();
    assert!(becomes_true(PATIENCE, || TcpStream::connect(server.address).is_err()), "still listening");
    assert_eq!(idle.rest(), b"", "idle connections are closed");
    for client in &mut streams {
        let text = rest_of_stream(client);
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        assert_eq!(text.matches("\"text\":").count(), 41, "40 tokens and the end: {text}");
    }
    assert_eq!(logged_tokens(&unread.answer()), 8 * 300, "its client reads late, and all");
    let ended = server.ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn a_second_signal_and_the_drain_timeout_cut_streams_with_an_error() {
    for (timeout, signals) in [("30", 2), ("0", 1), ("1", 1)] {
        let server = Server::start_on_all_cores(&["--drain-timeout", timeout]);
        let mut client = streaming(&server, 1000);
        let _unread = unread(&server, 1000);
        let mut response = server.connect();
        response.send_post("/v1/responses", br#"{"input":"Once","ignore_eos":true,"stream":true}"#);
        assert_eq!(response.head().status, 200);
        assert!(becomes_true(PATIENCE, || server.metric("bitnet_requests_running") >= 10.0));
        let started = Instant::now();
        for signal in 0..signals {
            assert!(signal == 0 || becomes_true(PATIENCE, || TcpStream::connect(server.address).is_err()));
            server.terminate();
        }
        let text = rest_of_stream(&mut client);
        assert!(text.contains("data: {\"error\":{"), "{text}");
        assert!(text.contains("SERVICE_UNAVAILABLE") && !text.contains("[DONE]"), "{text}");
        let text = rest_of_stream(&mut response);
        let (_, last) = text.rsplit_once("event: ").unwrap();
        assert!(last.starts_with("response.failed\ndata: ") && last.contains("\"code\":\"server_error\""), "{text}");
        let ended = server.ended();
        // Nobody waited for the client that does not read, which has 30 s.
        assert!(started.elapsed() < Duration::from_secs(25), "{:?}", started.elapsed());
        assert_eq!(ended.code, Some(1), "{ended:?}");
        let cause = if signals == 2 { "by a second signal" } else { "after the drain timeout" };
        assert!(ended.words.contains(&format!("streams were cut {cause}")), "{ended:?}");
    }
}

#[test]
fn other_signals_end_nothing() {
    let server = Server::start_on_all_cores(&[]);
    let mut client = streaming(&server, 60);
    ["HUP", "USR1", "USR2"].into_iter().for_each(|name| server.signal(name));
    let text = rest_of_stream(&mut client);
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    assert_eq!(server.get("/health").status, 200);
    server.terminate();
    let ended = server.ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.words.contains("SIGHUP: there is no configuration file to read again"), "{ended:?}");
}

#[test]
fn a_server_whose_log_nobody_reads_serves_and_ends() {
    let (reader, writer) = std::io::pipe().unwrap();
    // Another opening of the same pipe, which alone does not wait for room.
    let mut filling = std::fs::OpenOptions::new();
    let filling = filling.write(true).custom_flags(libc::O_NONBLOCK);
    let mut filling = filling.open(format!("/proc/self/fd/{}", writer.as_raw_fd())).unwrap();
    for part in [4096, 1] {
        while filling.write(&vec![b'x'; part]).is_ok() {}
    }
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = bitnetd(&["serve", "--port", &port.to_string()]);
    let mut server = command.stderr(writer).spawn().unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let serves = || TcpStream::connect(address).is_ok() && Client::clear(address).get("/health/ready").status == 200;
    assert!(becomes_true(PATIENCE, serves), "it waits for its log");
    assert!(Command::new("kill").arg(server.id().to_string()).status().unwrap().success());
    let deadline = Instant::now() + PATIENCE;
    while server.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "it waits for its log");
        pause(Duration::from_millis(5));
    }
    assert_eq!(server.wait().unwrap().code(), Some(0));
    drop(reader);
}

/// What a service manager hears, up to one message that `ends`.
fn heard_until(socket: &UnixDatagram, ends: &str) -> Vec<String> {
    let (mut heard, mut buffer) = (Vec::new(), [0; 256]);
    loop {
        let length = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{error} after {heard:?}"));
        let lines = String::from_utf8_lossy(&buffer[..length]).into_owned();
        heard.extend(lines.lines().map(str::to_owned));
        if heard.last().is_some_and(|last| last == ends) {
            return heard;
        }
    }
}

#[test]
fn a_service_manager_hears_of_readiness_of_life_and_of_the_end() {
    let path = std::env::temp_dir().join(format!("bitnetd-notify-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = bitnetd(&["serve", "--port", "0"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "800000");
    let server = Server::spawn(&mut command);
    assert_eq!(heard_until(&socket, "READY=1"), ["READY=1"]);
    for _ in 0..3 {
        assert_eq!(heard_until(&socket, "WATCHDOG=1"), ["WATCHDOG=1"]);
    }
    server.terminate();
    let heard = heard_until(&socket, "STOPPING=1");
    assert!(heard.iter().all(|line| line == "WATCHDOG=1" || line == "STOPPING=1"), "{heard:?}");
    assert_eq!(server.ended().code, Some(0));
    std::fs::remove_file(&path).unwrap();
}
