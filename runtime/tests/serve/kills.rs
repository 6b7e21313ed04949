//! kill -9 at any point of a swap: the next server serves a good model, and the new one once it was reported.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::models::{Folder, sha256};
use crate::server::{Server, pause};

#[test]
fn a_server_killed_during_a_swap_serves_the_last_good_model_when_it_starts_again() {
    let rounds = if cfg!(debug_assertions) { 10 } else { 100 };
    let folder = Folder::new();
    let files = [folder.synth("a.gguf", 1), folder.synth("b.gguf", 2)];
    let hashes = files.each_ref().map(sha256);
    let state = folder.text("state");
    let arguments = folder.arguments("a.gguf", &["--state-dir", &state, "--swap-watch-seconds", "0"]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut server = Server::start(&arguments);
    let answers = {
        let first = server.greedy(16);
        server.swap(&files[1], &json!({}));
        [first, server.greedy(16)]
    };
    // How long a swap takes here, so that the kills fall into it.
    let timed = |file: &String| {
        let started = Instant::now();
        server.swap(file, &json!({}));
        u64::try_from(started.elapsed().as_micros()).unwrap()
    };
    let swap_us = [0, 1, 0, 1, 0].map(|file: usize| timed(&files[file])).into_iter().min().unwrap();
    let (mut active, mut random, mut reported, mut longest) = (0, 7_u64, 0, Duration::ZERO);
    for round in 0..rounds {
        let other = 1 - active;
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let delay = Duration::from_micros((random >> 33) % (swap_us * 5 / 4));
        let body = json!({"new_model_path": files[other], "target_model_id": "m"}).to_string();
        let (mut client, kill_at) = (server.connect(), Instant::now() + delay);
        let completed = std::thread::scope(|scope| {
            let request = scope.spawn(move || {
                let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    client.admin("POST", "/v1/models/swap", &body)
                }));
                answer.is_ok_and(|answer| answer.status == 200 && answer.json()["status"] == "completed")
            });
            pause(kill_at.saturating_duration_since(Instant::now()));
            server.kill();
            request.join().unwrap()
        });
        let started = Instant::now();
        server = Server::start(&arguments);
        longest = longest.max(started.elapsed());
        let hash = server.active("m");
        let now = hashes.iter().position(|known| *known == hash);
        let now = now.unwrap_or_else(|| panic!("round {round}: an unknown version {hash} is served"));
        assert!(now == other || !completed, "round {round}: a swap that was reported is forgotten");
        assert_eq!(server.greedy(16), answers[now], "round {round}");
        reported += usize::from(completed);
        active = now;
    }
    println!("{rounds} kills within {swap_us} us, {reported} after the answer; ready again in {longest:?} at most");
}

#[test]
fn a_file_that_was_replaced_is_passed_over() {
    let folder = Folder::new();
    let (a, b) = (folder.synth("a.gguf", 1), folder.synth("b.gguf", 2));
    let arguments = folder.arguments("a.gguf", &["--state-dir", &folder.text("state"), "--swap-watch-seconds", "0"]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let server = Server::start(&arguments);
    server.swap(&b, &json!({}));
    let third = folder.synth("c.gguf", 3);
    let loaded = server.admin("POST", "/v1/models/load", &json!({"model_path": third, "model_id": "c"}));
    assert_eq!(loaded.status, 200, "{}", loaded.text());
    drop(server);
    let server = Server::start(&arguments);
    assert_eq!((server.active("m"), server.active("c")), (sha256(&b), sha256(&third)));
    drop(server);
    folder.synth("b.gguf", 9);
    let server = Server::start(&arguments);
    assert!(server.first_words.contains("passed over"), "{}", server.first_words);
    assert_eq!(server.active("m"), sha256(&a));
    drop(server);
    // A configuration that names another file than before goes first.
    let arguments = folder.arguments("c.gguf", &["--state-dir", &folder.text("state")]);
    let server = Server::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(server.active("m"), sha256(&third));
}
