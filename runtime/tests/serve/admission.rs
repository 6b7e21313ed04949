//! Who is taken in and who is not: deadlines, a queue that closes step by step, waits that are known beforehand.

use std::time::{Duration, Instant};

use runtime::cli::synth::Preset;
use serde_json::{Value, json};

use crate::clients::{Answer, Client};
use crate::models::{Folder, SECRET_SHA256};
use crate::server::{PATIENCE, Server, becomes_true};

const COMPLETIONS: &str = "/v1/completions";

fn body(max_tokens: u32, more: &Value) -> String {
    let mut body = json!({
        "prompt": "Once upon a time", "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true, "stream": false
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body.to_string()
}

const STARTED: &str = "bitnet_inference_requests_total";

/// Streams that keep slots and queue taken as long as they are held, each for the time of a thousand tokens.
fn hold(server: &Server, count: usize) -> Vec<Client> {
    let before = server.metric(STARTED);
    let mut clients: Vec<Client> = (0..count).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send_post(COMPLETIONS, body(1000, &json!({"stream": true})).as_bytes());
    }
    assert!(becomes_true(PATIENCE, || server.metric(STARTED) - before == count as f64));
    assert!(becomes_true(PATIENCE, || server.metric("bitnet_requests_running") > 0.0));
    clients
}

fn retry_after_ms(answer: &Answer) -> u64 {
    let milliseconds: u64 = answer.header("retry-after-ms").unwrap().parse().unwrap();
    let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert_eq!(seconds, milliseconds.div_ceil(1000));
    milliseconds
}

#[test]
fn a_request_that_does_not_get_far_enough_in_time_ends_with_an_error() {
    // Slots that are all taken for as long as a thousand steps of 64 sequences take, on a fast machine some seconds: once
    // one came free, it would be known how long others wait.
    let server = Server::start(&["--max-concurrent-requests", "64"]);
    let running = hold(&server, 64);
    assert!(becomes_true(PATIENCE, || server.metric("bitnet_requests_running") == 64.0));
    // Who is known to come too late is refused at once; the slower the machine, the more time it takes not to be.
    let given_time = |of: &str, stream: bool| {
        let times = [250, 500, 1000, 2000, 4000].into_iter();
        let mut answers = times.map(|ms| server.post(COMPLETIONS, &body(4, &json!({of: ms, "stream": stream}))));
        answers.find(|answer| !answer.text().contains("it would take")).unwrap()
    };
    let waits = given_time("queue_timeout_ms", false);
    assert_eq!((waits.status, retry_after_ms(&waits)), (429, 1000), "{}", waits.text());
    assert!(waits.text().contains("queue_timeout_ms"), "{}", waits.text());
    let waits = given_time("first_token_timeout_ms", false);
    assert_eq!(waits.status, 408, "{}", waits.text());
    let stream = given_time("first_token_timeout_ms", true);
    assert_eq!(stream.status, 408, "nothing of the stream was sent");
    let waits = given_time("timeout_ms", false);
    assert_eq!(waits.status, 408, "{}", waits.text());
    drop(running);
    assert!(server.becomes_quiet());
    assert!(server.cancelled() >= 1.0);
}

#[test]
fn the_queue_closes_for_low_priorities_first_and_says_when_to_come_back() {
    let server = Server::start(&["--max-concurrent-requests", "8", "--max-queued-requests", "32"]);
    let mut running = hold(&server, 30);
    let low = server.post(COMPLETIONS, &body(4, &json!({"priority": "low"})));
    assert_eq!((low.status, retry_after_ms(&low)), (429, 2000), "{}", low.text());
    assert_eq!(server.get("/health/ready").status, 200);
    running.extend(hold(&server, 7));
    assert_eq!(server.get("/health/ready").status, 503);
    let mut fastest = Duration::MAX;
    for _ in 0..20 {
        let mut client = server.connect();
        let started = Instant::now();
        let answer = client.post(COMPLETIONS, body(4, &json!({"priority": "high"})).as_bytes());
        fastest = fastest.min(started.elapsed());
        assert_eq!((answer.status, retry_after_ms(&answer)), (429, 5000), "{}", answer.text());
    }
    assert!(fastest < Duration::from_millis(500), "{fastest:?}");
    assert!(server.metric("bitnet_admission_rejections_total{reason=\"queue_full\"}") >= 21.0);
    drop(running);
    assert!(server.becomes_quiet());
    assert!(server.cancelled() >= 1.0);
    assert_eq!(server.post(COMPLETIONS, &body(4, &json!({"priority": "low"}))).status, 200);
}

#[test]
fn a_wait_that_is_known_to_be_too_long_is_refused_at_once() {
    let server = Server::start(&["--max-concurrent-requests", "1"]);
    // Slots are kept for as long as fifty tokens take.
    for _ in 0..2 {
        assert_eq!(server.post(COMPLETIONS, &body(50, &json!({}))).status, 200);
    }
    let _running = hold(&server, 3);
    let late = server.post(COMPLETIONS, &body(4, &json!({"queue_timeout_ms": 1})));
    assert_eq!(late.status, 429, "{}", late.text());
    assert!(late.text().contains("it would take"), "{}", late.text());
    assert!(retry_after_ms(&late) >= 2000);
    assert_eq!(server.metric("bitnet_admission_rejections_total{reason=\"deadline\"}"), 1.0);
}

#[test]
fn prompt_tokens_that_wait_are_bounded() {
    let server = Server::start(&["--max-concurrent-requests", "1", "--max-queued-tokens", "70"]);
    let held = hold(&server, 3);
    let started = server.metric(STARTED);
    let long = json!({"prompt": (0..50).collect::<Vec<u32>>()});
    let mut waits = server.connect();
    waits.send_post(COMPLETIONS, body(4, &long).as_bytes());
    assert!(becomes_true(PATIENCE, || server.metric(STARTED) == started + 1.0));
    let refused = server.post(COMPLETIONS, &body(4, &long));
    assert_eq!((refused.status, retry_after_ms(&refused)), (429, 5000), "{}", refused.text());
    let mut short = server.connect();
    short.send_post(COMPLETIONS, body(4, &json!({"prompt": [1, 2, 3]})).as_bytes());
    assert!(becomes_true(PATIENCE, || server.metric(STARTED) == started + 2.0));
    drop(held);
    assert_eq!((waits.answer().status, short.answer().status), (200, 200));
    assert_eq!(server.post(COMPLETIONS, &body(4, &long)).status, 200);
}

#[test]
fn what_the_server_allows_holds_for_requests_that_ask_for_more_or_for_nothing() {
    let server = Server::start(&["--max-concurrent-requests", "1", "--queue-timeout-ms", "50"]);
    // Four answers, one after the other: one alone may end before its client leaves.
    let mut running = server.connect();
    running.send_post(COMPLETIONS, body(1000, &json!({"stream": true, "n": 4})).as_bytes());
    assert!(becomes_true(PATIENCE, || server.metric("bitnet_requests_running") > 0.0));
    for wish in [json!({}), json!({"queue_timeout_ms": 60_000})] {
        let waits = server.post(COMPLETIONS, &body(4, &wish));
        assert_eq!((waits.status, retry_after_ms(&waits)), (429, 1000), "{}", waits.text());
        assert!(waits.text().contains("queue_timeout_ms"), "{}", waits.text());
    }
    drop(running);
    assert!(server.becomes_quiet());
    assert!(server.cancelled() >= 1.0);
}

#[test]
fn embeddings_are_taken_in_and_refused_as_other_requests_are() {
    let folder = Folder::new();
    let file = folder.synth_as("embed.gguf", Preset::TinyQwen3, 1);
    let (directory, key) = (folder.text(""), format!("ops={SECRET_SHA256}:model:write"));
    let limits = ["--max-concurrent-requests", "2", "--max-queued-requests", "8", "--max-queued-tokens", "60"];
    let rights = ["--allowed-model-directory", &directory, "--api-key", &key];
    let server = Server::start(&[&limits[..], &rights].concat());
    let loaded = server.admin("POST", "/v1/models/load", &json!({"model_path": file, "model_id": "e"}));
    assert_eq!(loaded.status, 200, "{}", loaded.text());
    let embed = |tokens: u32, more: Value| {
        let mut body = json!({"model": "e", "input": (0..tokens).collect::<Vec<u32>>()});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post("/v1/embeddings", &body.to_string())
    };
    assert_eq!(embed(100, json!({})).status, 200, "nobody waits");
    let mut running = hold(&server, 3);
    let long = embed(100, json!({}));
    assert_eq!((long.status, retry_after_ms(&long)), (429, 5000), "{}", long.text());
    assert_eq!(embed(3, json!({})).status, 200);
    running.extend(hold(&server, 6));
    let low = embed(3, json!({"priority": "low"}));
    assert_eq!((low.status, retry_after_ms(&low)), (429, 2000), "{}", low.text());
    running.extend(hold(&server, 1));
    let full = embed(3, json!({"priority": "high"}));
    assert_eq!((full.status, retry_after_ms(&full)), (429, 5000), "{}", full.text());
    drop(running);
    assert!(server.becomes_quiet());
    assert!(server.cancelled() >= 1.0);
    assert_eq!(embed(100, json!({"queue_timeout_ms": 60_000, "priority": "low"})).status, 200);
    assert_eq!(embed(3, json!({"queue_timeout_ms": 0})).status, 400);
}
