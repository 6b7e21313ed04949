//! Models that take each other's place while clients are served.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::clients::{Client, streamed_text};
use crate::models::{Folder, PROMPT, sha256};
use crate::server::{PATIENCE, Server, becomes_true, pause};

#[test]
fn a_swap_reports_what_it_measured_and_a_swap_back_costs_no_load() {
    let folder = Folder::new();
    let (a, b) = (folder.synth("a.gguf", 1), folder.synth("b.gguf", 2));
    let server = folder.serve("a.gguf", &["--swap-watch-seconds", "0"]);
    let before = server.greedy(16);
    let health = json!({"inference_test_prompts": ["Once upon a time", "a"]});
    let more = json!({"swap_strategy": "blue_green", "sha256": sha256(&b), "health_check_config": health});
    let swap = server.swap(&b, &more);
    assert_eq!((&swap["status"], &swap["strategy"]), (&json!("completed"), &json!("blue_green")), "{swap}");
    assert_eq!(swap["previous_model_metadata"]["sha256"], sha256(&a).as_str());
    assert_eq!(swap["new_model_metadata"]["sha256"], sha256(&b).as_str());
    let phases = &swap["swap_phases"];
    let phase = |name: &str| phases[name].as_f64().unwrap();
    let sum = phase("validation_duration_ms") + phase("swap_duration_ms") + phase("health_check_duration_ms");
    assert!(sum > 0.0 && sum <= swap["total_duration_ms"].as_f64().unwrap(), "{swap}");
    let comparison = &swap["quantization_comparison"];
    assert_eq!(comparison["format_changed"], false);
    assert!((-1.0..=0.0).contains(&comparison["accuracy_delta"].as_f64().unwrap()), "{swap}");
    assert!(comparison["performance_delta"].is_f64(), "{swap}");
    assert_eq!(swap["health_check_results"]["overall_healthy"], true);
    assert_eq!(swap["health_check_results"]["individual_checks"].as_array().unwrap().len(), 3, "{swap}");
    assert_eq!(swap["rollback_info"]["rollback_performed"], false);
    assert_eq!(server.active("m"), sha256(&b));
    assert_ne!(server.greedy(16), before);
    let states: Vec<Value> =
        server.status("m")["versions"].as_array().unwrap().iter().map(|version| version["state"].clone()).collect();
    assert_eq!(states, ["standby", "active"]);

    let back = server.swap(&a, &json!({}));
    assert_eq!(back["status"], "completed");
    assert_eq!(server.greedy(16), before);
    let generation = &server.status("m")["versions"][0]["generation"];
    assert_eq!(generation, 0, "the standby generation itself serves again, not a second copy");
    assert_eq!(server.metric("bitnet_model_swaps_total{outcome=\"completed\"}"), 2.0);
}

#[test]
fn a_second_swap_meanwhile_is_refused_and_rolling_switches_too() {
    let folder = Folder::new();
    let (_, b) = (folder.synth("a.gguf", 1), folder.synth("b.gguf", 2));
    let server = folder.serve("a.gguf", &["--swap-watch-seconds", "0"]);
    // It waits for requests, which come once the others have been refused.
    let canary = json!({"share": 0.5, "requests": 2, "timeout_seconds": 300});
    let more = json!({"swap_strategy": "rolling", "canary": canary});
    std::thread::scope(|scope| {
        let first = scope.spawn(|| server.swap(&b, &more));
        assert!(becomes_true(PATIENCE, || server.status("m")["operation_in_progress"] == true));
        let second = server.try_swap(&b, &json!({}));
        assert_eq!(second.status, 409, "{}", second.text());
        assert!(second.header("retry-after").is_some());
        assert_eq!(server.admin("DELETE", "/v1/models/m", &Value::Null).status, 409);
        while !first.is_finished() {
            server.greedy(2);
        }
        assert_eq!(first.join().unwrap()["status"], "completed");
    });
    assert_eq!(server.active("m"), sha256(&b));
}

#[test]
fn a_generation_that_fails_live_requests_is_taken_back() {
    let folder = Folder::new();
    folder.synth("a.gguf", 1);
    let tiny = include_bytes!("../fixtures/oracle/models/tiny-llama-hd-i2_s.gguf");
    folder.write("good.gguf", tiny);
    // A token's embedding is no number: test prompts pass, live ones do not.
    let mut bytes = tiny.to_vec();
    let parsed = gguf::Gguf::parse(tiny, tiny.len() as u64).unwrap();
    let embedding = parsed.tensor("token_embd.weight").unwrap();
    let row_bytes = (embedding.bytes / embedding.rows()) as usize;
    let bad_token = 70;
    let at = embedding.offset as usize + bad_token * row_bytes;
    bytes[at..at + row_bytes].fill(0xff);
    let bad = folder.write("bad.gguf", &bytes);
    let server = folder.serve("good.gguf", &["--swap-watch-seconds", "20"]);
    let good = server.active("m");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let swap = scope.spawn(|| {
            let more = json!({"health_check_config": {"inference_test_prompts": ["x"]}});
            let swap = server.try_swap(&bad, &more);
            stop.store(true, Ordering::SeqCst);
            swap
        });
        let body = json!({"model": "m", "prompt": [bad_token], "max_tokens": 4, "ignore_eos": true}).to_string();
        while !stop.load(Ordering::SeqCst) {
            let answer = server.post("/v1/completions", &body);
            assert!(matches!(answer.status, 200 | 500), "{}", answer.text());
            pause(Duration::from_millis(10));
        }
        let swap = swap.join().unwrap();
        assert_eq!(swap.status, 200, "{}", swap.text());
        let swap = swap.json();
        assert_eq!(swap["status"], "rolled_back", "{swap}");
        assert_eq!(swap["health_check_results"]["overall_healthy"], false);
        let rollback = &swap["rollback_info"];
        assert!(rollback["rollback_reason"].as_str().unwrap().contains("requests failed"), "{swap}");
        assert!(rollback["rollback_duration_ms"].as_f64().unwrap() < 20_000.0, "{swap}");
    });
    assert_eq!(server.active("m"), good);
    assert_eq!(server.metric("bitnet_model_swaps_total{outcome=\"rolled_back\"}"), 1.0);
    let answer = server.post("/v1/completions", &json!({"prompt": [70], "max_tokens": 4}).to_string());
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn a_canary_is_promoted_or_sent_away_by_what_it_does() {
    let folder = Folder::new();
    let a = folder.synth("a.gguf", 1);
    let b = folder.synth("b.gguf", 2);
    let mut same = std::fs::read(&a).unwrap();
    // Padding behind the last tensor: another file, the same answers.
    same.extend_from_slice(&[0; 32]);
    let same = folder.write("same.gguf", &same);
    let server = folder.serve("a.gguf", &["--swap-watch-seconds", "0"]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| {
            let body = json!({"model": "m", "prompt": PROMPT, "max_tokens": 8, "temperature": 0}).to_string();
            let mut client = server.connect();
            while !stop.load(Ordering::SeqCst) {
                assert_eq!(client.post("/v1/completions", body.as_bytes()).status, 200);
            }
        });
        let canary = json!({"share": 0.25, "requests": 10, "timeout_seconds": 60});
        let more = json!({"canary": canary, "health_check_config": {"accuracy_threshold": 0.9}});
        // Its trial on the control thread already shows that it answers otherwise.
        assert_eq!(server.try_swap(&b, &more).json()["error"]["code"], "CROSS_VALIDATION_FAILED");
        let swap = server.swap(&same, &more);
        assert_eq!(swap["status"], "completed", "{swap}");
        let check = &swap["health_check_results"]["individual_checks"][0];
        assert_eq!((&check["name"], &check["healthy"]), (&json!("canary"), &json!(true)), "{swap}");
        assert!(check["message"].as_str().unwrap().contains("1.0000 of"), "{swap}");
        stop.store(true, Ordering::SeqCst);
    });
    let late = json!({"canary": {"requests": 10, "timeout_seconds": 1}});
    let swap = server.swap(&b, &late);
    assert_eq!(swap["status"], "rolled_back", "nobody came: {swap}");
    assert_eq!(server.active("m"), sha256(&same));
}

#[test]
fn fifty_swaps_under_64_streams_fail_and_mix_none() {
    let swaps = if cfg!(debug_assertions) { 12 } else { 50 };
    let folder = Folder::new();
    let files = [folder.synth("a.gguf", 1), folder.synth("b.gguf", 2)];
    let server = folder.serve("a.gguf", &["--swap-watch-seconds", "0"]);
    let mut texts = vec![server.greedy(TOKENS)];
    server.swap(&files[1], &json!({}));
    texts.push(server.greedy(TOKENS));
    server.swap(&files[0], &json!({}));
    assert_ne!(texts[0], texts[1]);
    // Buffers have their size after the first rounds.
    let memory = || server.metric("bitnet_system_memory_usage_bytes") / f64::from(1 << 20);
    let (done, streams) = (AtomicBool::new(false), AtomicUsize::new(0));
    run_streams(&server, &texts, &done, &streams, || pause(Duration::from_secs(2)));
    pause(Duration::from_millis(1500));
    let memory_before = memory();
    done.store(false, Ordering::SeqCst);
    // Each swap is compared with as long a time without one right after it, so that what else this machine does, and
    // the load that the clients are, weighs on both.
    let (mut durations, mut rounds) = (Vec::new(), Vec::new());
    let gaps = run_streams(&server, &texts, &done, &streams, || {
        for round in 0..swaps {
            let began = Instant::now();
            let swap = server.swap(&files[(round + 1) % 2], &json!({}));
            assert_eq!(swap["status"], "completed", "{swap}");
            durations.push(swap["total_duration_ms"].as_f64().unwrap());
            let swapped = Instant::now();
            pause(swapped - began);
            rounds.push([began, swapped, Instant::now()]);
        }
    });
    let longest = |from: Instant, to: Instant| {
        let within = gaps.iter().filter(|(at, _)| (from..to).contains(at));
        within.map(|(_, gap)| *gap).fold(0.0, f64::max)
    };
    let [swapping, quiet] = [0, 1].map(|part| middle(rounds.iter().map(|times| longest(times[part], times[part + 1]))));
    let added = middle(rounds.iter().map(|times| longest(times[0], times[1]) - longest(times[1], times[2])));
    assert!(server.becomes_quiet());
    assert!(becomes_true(PATIENCE, || memory() < memory_before + 32.0), "{} of {memory_before}", memory());
    durations.sort_by(f64::total_cmp);
    println!(
        "{swaps} swaps under {CLIENTS} clients, {} streams: {:.0} ms in the middle, {:.0} ms at most; longest gap of a swap \
         {swapping:.1} ms, of as long without one {quiet:.1}, {added:.1} more (all in the middle of the rounds); memory \
         {memory_before:.0} MiB before, {:.0} after",
        streams.load(Ordering::SeqCst),
        durations[swaps / 2],
        durations[swaps - 1],
        memory(),
    );
    assert!(added <= ADDED_GAP_MS_MAX, "a swap adds {added:.1} ms to the longest gap");
    assert_eq!(server.status("m")["versions"].as_array().unwrap().len(), 1);
}

/// The middle one of some values.
fn middle(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Ends clients also where what they wait for has failed.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Streams without a pause until `work` is done; the gaps between events, in ms, each with its end.
fn run_streams(
    server: &Server,
    texts: &[String],
    done: &AtomicBool,
    streams: &AtomicUsize,
    work: impl FnOnce(),
) -> Vec<(Instant, f64)> {
    std::thread::scope(|scope| {
        let client = || {
            let (mut client, mut gaps) = (server.connect(), Vec::new());
            while !done.load(Ordering::SeqCst) {
                let text = stream(&mut client, &mut gaps);
                assert!(texts.contains(&text), "a stream of two generations, or of none: {text}");
                streams.fetch_add(1, Ordering::SeqCst);
            }
            gaps
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        let stop = Stop(done);
        work();
        drop(stop);
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    })
}

fn stream(client: &mut Client, gaps: &mut Vec<(Instant, f64)>) -> String {
    let body = json!({
        "model": "m", "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": true, "stream": true,
    });
    client.send_post("/v1/completions", body.to_string().as_bytes());
    let mut answer = client.head();
    assert_eq!(answer.status, 200);
    let mut last: Option<Instant> = None;
    while client.chunk(&mut answer.body) {
        let now = Instant::now();
        gaps.extend(last.map(|last| (now, (now - last).as_secs_f64() * 1e3)));
        last = Some(now);
    }
    streamed_text(&answer.chunks(), 0)
}

const CLIENTS: usize = 64;
/// What a swap may add to the longest gap between two tokens of a stream. Without optimisation a candidate's trial takes
/// many times as long of a core that streams want.
const ADDED_GAP_MS_MAX: f64 = if cfg!(debug_assertions) { 200.0 } else { 20.0 };
const TOKENS: u32 = 48;

#[test]
fn a_model_that_is_removed_answers_those_who_wait_to_begin() {
    let folder = Folder::new();
    let path = folder.synth("a.gguf", 1);
    let server = folder.serve("a.gguf", &[]);
    let load = json!({"model_path": path, "model_id": "gone"});
    assert_eq!(server.admin("POST", "/v1/models/load", &load).status, 200);
    let body = |model: &str, constraint: &Value| {
        let mut body = json!({"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 4});
        body.as_object_mut().unwrap().extend(constraint.as_object().unwrap().clone());
        body.to_string()
    };
    let mut stream = server.connect();
    let long = json!({"ignore_eos": true, "max_tokens": 200, "stream": true});
    stream.send_post("/v1/chat/completions", body("m", &long).as_bytes());
    // Schemas that keep the compiler busy: whoever asks for a constraint now has a model and no place at its leader yet.
    let busy = |seed: usize| {
        let property = |at: usize| {
            (
                format!("p{at}"),
                json!({"type": "string", "pattern": format!("^[a-z]{{1,{}}}x?[0-9]{{1,{}}}$", 900 + at, 800 + seed)}),
            )
        };
        let properties: serde_json::Map<String, Value> = (0..30).map(property).collect();
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema":
            {"type": "object", "properties": properties}}}})
    };
    let send = |body: String| {
        let mut client = server.connect();
        client.send_post("/v1/chat/completions", body.as_bytes());
        client
    };
    let mut waiting: Vec<_> = (0..8).map(|seed| send(body("m", &busy(seed)))).collect();
    waiting.extend((0..8).map(|at| send(body("gone", &json!({"choice": ["yes", "no", format!("{at}")]})))));
    pause(Duration::from_millis(20));
    assert_eq!(server.admin("DELETE", "/v1/models/gone", &Value::Null).status, 204);
    for client in &mut waiting {
        let answer = client.answer();
        // Who came after it was removed is told so.
        assert!(matches!(answer.status, 200 | 404), "{}", answer.text());
    }
    let chunks = stream.answer().chunks();
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
    assert_eq!(server.metric("bitnet_shard_restarts_total"), 0.0);
}
