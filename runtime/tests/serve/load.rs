//! Many clients at once: those who leave, those who read slowly, those for whom there is no room.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::clients::logged_tokens;
use crate::server::{PATIENCE, Server, becomes_true, pause};

const COMPLETIONS: &str = "/v1/completions";

fn body(max_tokens: u32, stream: bool) -> Vec<u8> {
    let body = json!({
        "prompt": "Once upon a time", "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true, "stream": stream,
        "stream_options": if stream { json!({"include_usage": true}) } else { json!(null) },
    });
    body.to_string().into_bytes()
}

#[test]
fn clients_that_leave_at_any_point_free_their_places() {
    let server = Server::start_on_all_cores(&[]);
    let descriptors = server.descriptors();
    let mut random = 1_u64;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    for round in 0..10 {
        let mut clients = Vec::new();
        for _ in 0..10 {
            let mut client = server.connect();
            let stream = next(4) > 0;
            let request = body(900, stream);
            if next(8) == 0 {
                // Half a request.
                client.send(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n{");
            } else {
                client.send_post(COMPLETIONS, &request);
            }
            clients.push((client, stream));
        }
        pause(Duration::from_millis(next(120)));
        for (client, stream) in &mut clients {
            if *stream && next(2) == 0 {
                client.stream().set_read_timeout(Some(Duration::from_millis(20))).unwrap();
                let mut some = [0; 700];
                // Nothing may have come yet.
                let _ = client.stream().read(&mut some);
            }
        }
        drop(clients);
        if round % 3 == 2 {
            assert!(server.becomes_quiet(), "after {round} rounds:\n{}", server.get("/metrics").text());
        }
    }
    assert!(server.becomes_quiet());
    assert!(server.cancelled() > 50.0);
    assert_eq!(server.metric("bitnet_active_inference_requests"), 0.0);
    assert!(becomes_true(PATIENCE, || server.descriptors() <= descriptors), "descriptors leak");
}

#[test]
fn a_hundred_clients_at_once_are_all_served() {
    // Unoptimised kernels make fewer tokens in the same time.
    let tokens = if cfg!(debug_assertions) { 10 } else { 100 };
    let server = Server::start_on_all_cores(&[]);
    let mut clients: Vec<_> = (0..100).map(|_| server.connect()).collect();
    for (index, client) in clients.iter_mut().enumerate() {
        client.send_post(COMPLETIONS, &body(tokens, index % 2 == 0));
    }
    let mut texts = Vec::new();
    for (index, client) in clients.iter_mut().enumerate() {
        let answer = client.answer();
        assert_eq!(answer.status, 200, "{}", answer.text());
        let (usage, text) = if index % 2 == 0 {
            let chunks = answer.chunks();
            (chunks.last().unwrap()["usage"].clone(), crate::clients::streamed_text(&chunks, 0))
        } else {
            let answer = answer.json();
            (answer["usage"].clone(), answer["choices"][0]["text"].as_str().unwrap().to_owned())
        };
        assert_eq!(usage["completion_tokens"], tokens);
        texts.push(text);
    }
    assert!(texts.iter().all(|text| *text == texts[0]), "one prompt, one answer, whoever else is served");
}

#[test]
fn what_has_no_place_is_refused_at_once_and_told_when_to_come_back() {
    let server = Server::start_on_all_cores(&["--max-concurrent-requests", "2", "--max-queued-requests", "2"]);
    let mut running: Vec<_> = (0..4).map(|_| server.connect()).collect();
    for client in &mut running {
        client.send_post(COMPLETIONS, &body(900, true));
    }
    let is_full = || server.metric("bitnet_requests_running") + server.metric("bitnet_requests_waiting") == 4.0;
    assert!(becomes_true(PATIENCE, is_full));
    assert_eq!(server.get("/health/ready").status, 503);
    assert_eq!(server.get("/health/live").status, 200);
    let mut fastest = Duration::MAX;
    for _ in 0..10 {
        let started = Instant::now();
        let answer = server.post(COMPLETIONS, std::str::from_utf8(&body(4, true)).unwrap());
        fastest = fastest.min(started.elapsed());
        assert_eq!(answer.status, 429, "{}", answer.text());
        assert_eq!(answer.json()["error"]["code"], "RATE_LIMIT_EXCEEDED");
        let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        let milliseconds: u64 = answer.header("retry-after-ms").unwrap().parse().unwrap();
        assert!(seconds >= 1 && milliseconds <= seconds * 1000);
    }
    assert!(fastest < Duration::from_millis(500), "{fastest:?}");
    let too_many = server.post(COMPLETIONS, r#"{"prompt":"a","n":5}"#);
    assert_eq!((too_many.status, too_many.json()["error"]["param"].as_str()), (400, Some("n")));
    drop(running);
    assert!(server.becomes_quiet());
    assert!(server.cancelled() >= 1.0);
    let mut next = server.connect();
    assert_eq!(next.post(COMPLETIONS, &body(2, false)).status, 200);

    let server = Server::start_on_all_cores(&["--max-concurrent-requests", "2", "--max-queued-requests", "0"]);
    let answer = server.connect().post(COMPLETIONS, &body(2, false));
    assert_eq!(answer.status, 200, "without a queue a free place is enough: {}", answer.text());
}

#[test]
fn clients_that_do_not_read_hold_nobody_up() {
    let server = Server::start_on_all_cores(&[]);
    let mut silent: Vec<_> = (0..4).map(|_| server.connect()).collect();
    // More bytes than the buffers of both sides take.
    let logprobs = r#"{"prompt":"a","max_tokens":300,"temperature":0,"ignore_eos":true,"stream":true,"logprobs":20}"#;
    for client in &mut silent {
        client.send_post(COMPLETIONS, logprobs.as_bytes());
    }
    let started = Instant::now();
    let mut client = server.connect();
    assert_eq!(client.post(COMPLETIONS, &body(40, true)).status, 200);
    // A writer that blocked its shard would stand still until its deadline of 30 s.
    assert!(started.elapsed() < Duration::from_secs(25), "{:?}", started.elapsed());
    assert!(server.becomes_quiet(), "their sequences end although nobody reads them");
    for client in &mut silent {
        assert_eq!(logged_tokens(&client.answer()), 300, "nothing is lost for one who comes late");
    }
}

#[test]
fn bodies_that_never_end_take_bounded_memory_and_no_small_request_its_place() {
    let server = Server::start_on_all_cores(&[]);
    let before = server.resident_bytes();
    let mut head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 4194304\r\n\r\n".to_vec();
    head.resize((4 << 20) - 1, b' ');
    let clients: Vec<_> = (0..100).map(|_| server.connect()).collect();
    for client in &clients {
        // One that is refused may be closed under its bytes.
        let _ = client.stream().write_all(&head);
    }
    assert!(becomes_true(PATIENCE, || server.metric("bitnet_http_responses_total{class=\"5xx\"}") >= 30.0));
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 400 << 20, "{grown} bytes");
    assert_eq!(server.post(COMPLETIONS, r#"{"prompt":"a","max_tokens":2}"#).status, 200);
    drop(clients);
    // A body as long as they may be.
    let padded = r#"{"prompt":"a","max_tokens":2}"#.to_owned() + &" ".repeat((4 << 20) - 100);
    assert!(becomes_true(PATIENCE, || server.post(COMPLETIONS, &padded).status == 200));
}

#[test]
fn answers_that_are_asked_for_ahead_take_bounded_memory() {
    const AHEAD: usize = 1500;
    let server = Server::start_on_all_cores(&[]);
    let before = server.resident_bytes();
    let ahead = b"GET /openapi.json HTTP/1.1\r\nHost:\r\n\r\n".repeat(AHEAD);
    let mut clients: Vec<_> = (0..10).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(|client| client.send(&ahead));
    let grown = || server.resident_bytes().saturating_sub(before);
    // None reads yet: as many answers are made as their sockets take.
    assert!(becomes_true(PATIENCE, || server.metric("bitnet_http_responses_total{class=\"2xx\"}") >= 30.0));
    assert!(!becomes_true(Duration::from_millis(500), || grown() > 48 << 20), "{} bytes", grown());
    for _ in 0..AHEAD {
        assert_eq!(clients[0].answer().status, 200);
    }
}

#[test]
fn a_client_for_whom_there_is_no_connection_is_told_so() {
    let server = Server::start_on_all_cores(&["--max-connections", "2"]);
    let mut inside = [server.connect(), server.connect()];
    for client in &mut inside {
        assert_eq!(client.get("/health/live").status, 200);
    }
    let mut outside = server.connect();
    let answer = outside.answer();
    assert_eq!(
        (answer.status, answer.header("retry-after"), answer.header("connection")),
        (503, Some("1"), Some("close"))
    );
    assert_eq!(answer.json()["error"]["code"], "SERVICE_UNAVAILABLE");
    assert_eq!(outside.rest(), b"");
    let metrics = inside[0].get("/metrics").text();
    assert!(metrics.contains("bitnet_admission_rejections_total{reason=\"connections\"} 1\n"), "{metrics}");
}

#[test]
fn an_idle_connection_takes_little_memory() {
    let server = Server::start_on_all_cores(&[]);
    // Code that the start gave back is there again.
    assert_eq!(server.metric("bitnet_requests_running"), 0.0);
    let before = server.resident_bytes();
    let clients: Vec<_> = (0..500).map(|_| server.connect()).collect();
    assert!(becomes_true(PATIENCE, || server.metric("bitnet_connections") >= 500.0));
    let each = server.resident_bytes().saturating_sub(before) / clients.len() as u64;
    assert!(each < 48 << 10, "{each} bytes");
}

#[test]
fn connections_leave_no_descriptors_behind() {
    let server = Server::start_on_all_cores(&[]);
    server.get("/health");
    assert!(becomes_true(PATIENCE, || server.metric("bitnet_connections") <= 1.0));
    let before = server.descriptors();
    for round in 0..2000 {
        let mut client = server.connect();
        match round % 4 {
            0 => {}
            1 => client.send(b"GET /hea"),
            2 => drop(client.get("/health/live")),
            _ => client.finish_sending(),
        }
    }
    assert!(becomes_true(PATIENCE, || server.descriptors() <= before), "{} of {before}", server.descriptors());
    assert_eq!(server.get("/health/live").status, 200);
}

#[test]
fn an_idle_server_sleeps() {
    for io in ["auto", "epoll"] {
        let server = Server::start_on_all_cores(&["--io", io]);
        assert_eq!(server.connect().post(COMPLETIONS, &body(4, true)).status, 200);
        let idle_client = server.connect();
        let sleeps = || {
            let before = server.cpu_time();
            pause(Duration::from_secs(1));
            server.cpu_time() - before <= Duration::from_millis(50)
        };
        assert!(becomes_true(PATIENCE, sleeps), "{io}: it takes more than 50 ms of each second");
        drop(idle_client);
    }
}
