//! Everything that can befall a GPU: no stream loses a token, and the device comes back where it can.

use std::path::PathBuf;
use std::process::Command;

use crate::driver::{
    PATIENCE, PROMPT_LAUNCHES, Streamed, TEST_LAUNCHES, count, healthy, request, serve, stream, stream_in_time, workers,
};
use crate::server::{Server, becomes_true, bitnetd, run_to_end};

const ANSWER: u32 = 110;
/// A launch in the midst of an answer, counted from its request on. An idle device is tested now and then: should that come
/// just before the answer, it is still one of the answer's.
const MIDST: usize = TEST_LAUNCHES + 6;
const _: () = assert!(PROMPT_LAUNCHES < MIDST && MIDST < PROMPT_LAUNCHES + ANSWER as usize / 2);

/// What streams say that run at a time: tokens, finish reason and device of each.
fn company(server: &Server, device: &str, max_tokens: u32) -> Vec<Streamed> {
    std::thread::scope(|scope| {
        let streams = ["ab", "ba", "aab"].map(|prompt| {
            let mut body = request(device, max_tokens);
            body["prompt"] = prompt.into();
            scope.spawn(move || stream(server, &body))
        });
        streams.map(|stream| stream.join().unwrap()).into()
    })
}

/// A stream during which launch [`MIDST`] ends in `fault` says what the CPU says, and afterwards the device serves again.
fn survives(fault: &str, kind: &str) {
    let once: PathBuf = [env!("CARGO_TARGET_TMPDIR"), &format!("{fault}-{}", std::process::id())].iter().collect();
    let _ = std::fs::remove_file(&once);
    let server = &serve(&[(fault, &MIDST.to_string()), ("ONCE", once.to_str().unwrap())], &[]);
    healthy(server, 1);
    let (expected, finish, _) = stream(server, &request("cpu", ANSWER));
    std::fs::write(&once, "").unwrap();
    let fallen_back = (expected.clone(), finish.clone(), "cpu".to_owned());
    assert_eq!(stream(server, &request("gpu", ANSWER)), fallen_back);
    assert!(!once.exists(), "the fault has happened");
    assert_eq!(count(server, "bitnet_device_fallbacks_total", ""), 1.0);
    assert_eq!(count(server, "bitnet_gpu_faults_total", &format!("kind=\"{kind}\"")), 1.0);
    assert!(becomes_true(PATIENCE, || count(server, "bitnet_gpu_starts_total", "") == 2.0));
    healthy(server, 1);
    // The beginning of the answer is enough: a token takes the emulator long.
    let (tokens, _, device) = stream(server, &request("gpu", 4));
    assert_eq!((tokens.as_slice(), device.as_str()), (&expected[..4], "cuda:0"));
}

#[test]
fn a_sticky_error_in_the_midst_of_a_stream_is_not_seen_by_its_client() {
    survives("LAUNCH", "driver");
}

#[test]
fn a_step_that_never_ends_is_given_up() {
    survives("HANG", "hang");
}

#[test]
fn a_worker_that_ends_is_replaced() {
    survives("EXIT", "worker");
}

#[test]
fn a_sticky_error_in_a_replayed_step_is_not_seen_by_any_of_its_clients() {
    let once: PathBuf = [env!("CARGO_TARGET_TMPDIR"), &format!("REPLAY-{}", std::process::id())].iter().collect();
    let _ = std::fs::remove_file(&once);
    let server = &serve(&[("REPLAY", "100"), ("ONCE", once.to_str().unwrap())], &[]);
    healthy(server, 1);
    let expected = company(server, "cpu", ANSWER);
    std::fs::write(&once, "").unwrap();
    for (expected, (tokens, finish, _)) in expected.iter().zip(company(server, "gpu", ANSWER)) {
        assert_eq!((&expected.0, &expected.1), (&tokens, &finish));
    }
    assert!(!once.exists(), "the fault has happened");
    assert_eq!(count(server, "bitnet_gpu_faults_total", "kind=\"driver\""), 1.0);
    assert!(count(server, "bitnet_device_fallbacks_total", "") >= 2.0, "two streams at least were in the step");
    healthy(server, 1);
}

#[test]
fn a_driver_that_does_not_record_is_used_all_the_same_and_named_once() {
    for what in ["begin", "end", "instantiate"] {
        let server = serve(&[("RECORD", what)], &[]);
        healthy(&server, 1);
        let on_gpu = company(&server, "gpu", 4);
        for (cpu, gpu) in company(&server, "cpu", 4).iter().zip(&on_gpu) {
            assert_eq!((&cpu.0, &cpu.1, "cuda:0"), (&gpu.0, &gpu.1, gpu.2.as_str()));
        }
        let first = server.first_words.clone();
        server.terminate();
        let words = first + &server.ended().words;
        assert_eq!(words.matches("no further steps are recorded").count(), 1, "{words}");
    }
}

#[test]
fn streams_of_a_device_that_fails_go_on_on_another() {
    let once: PathBuf = [env!("CARGO_TARGET_TMPDIR"), &format!("OTHER-{}", std::process::id())].iter().collect();
    let _ = std::fs::remove_file(&once);
    let faults = [("DEVICES", "2"), ("LAUNCH", &MIDST.to_string()), ("ONCE", once.to_str().unwrap())];
    let server = &serve(&faults, &["--gpu", "2"]);
    healthy(server, 2);
    let expected = stream(server, &request("cpu", ANSWER));
    std::fs::write(&once, "").unwrap();
    let (tokens, finish, device) = stream(server, &request("gpu", ANSWER));
    assert_eq!((&tokens, &finish), (&expected.0, &expected.1));
    assert!(!once.exists() && device.starts_with("cuda:"), "it ended on {device}");
    assert_eq!(count(server, "bitnet_device_fallbacks_total", ""), 1.0);
    assert_eq!(count(server, "bitnet_gpu_tokens_total", ""), f64::from(ANSWER));
    healthy(server, 2);
}

/// A server whose device was lost and does not come back while the file exists.
fn losing(name: &str, arguments: &[&str]) -> (Server, PathBuf) {
    let wait: PathBuf = [env!("CARGO_TARGET_TMPDIR"), &format!("{name}-{}", std::process::id())].iter().collect();
    let _ = std::fs::remove_file(&wait);
    let server = serve(&[("WAIT", wait.to_str().unwrap())], arguments);
    healthy(&server, 1);
    std::fs::write(&wait, "").unwrap();
    let [worker] = workers(&server)[..] else { panic!("a device has one worker") };
    assert!(Command::new("kill").args(["-KILL", &worker.to_string()]).status().unwrap().success());
    // So the loss is seen, if the device was not just being tested: then nobody gets it.
    let answer = server.post("/v1/inference", &request("gpu", 4).to_string());
    assert!(answer.status == 503 || answer.json()["device_used"] == "cpu", "{}", answer.text());
    (server, wait)
}

#[test]
fn who_wants_a_gpu_waits_for_one_that_comes_back() {
    let (server, wait) = &losing("WAIT", &[]);
    let (expected, finish, _) = stream(server, &request("cpu", 4));
    std::thread::scope(|scope| {
        let patient = scope.spawn(|| stream_in_time(server, &request("gpu", 4)));
        std::fs::remove_file(wait).unwrap();
        assert_eq!(patient.join().unwrap(), (expected, finish, "cuda:0".to_owned()));
    });
}

#[test]
fn who_wants_a_gpu_waits_no_longer_than_it_may() {
    let (server, wait) = losing("HURRY", &["--queue-timeout-ms", "2000"]);
    let refused = server.post("/v1/inference", &request("gpu", 4).to_string());
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert!(refused.text().contains("queue_timeout_ms"), "{}", refused.text());
    std::fs::remove_file(wait).unwrap();
}

/// The device never becomes healthy, and the CPU serves.
fn stays_down(faults: &[(&str, &str)], kind: &str) {
    let server = serve(faults, &[]);
    let fault = || count(&server, "bitnet_gpu_faults_total", &format!("kind=\"{kind}\""));
    assert!(becomes_true(PATIENCE, || fault() >= 2.0), "{kind}: {}", server.get("/metrics").text());
    assert_eq!(count(&server, "bitnet_gpu_state", "state=\"healthy\""), 0.0);
    assert_eq!(stream(&server, &request("auto", 4)).2, "cpu");
    let refused = server.post("/v1/inference", &request("gpu", 4).to_string());
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.text().contains("DEVICE_UNAVAILABLE"), "{}", refused.text());
}

#[test]
fn a_device_without_memory_stays_down() {
    stays_down(&[("ALLOC", "3")], "out_of_memory");
}

#[test]
fn a_device_that_computes_wrongly_is_never_used() {
    // The first copies to the host are the scores of the self test.
    stays_down(&[("FLIP", "0")], "wrong_result");
}

#[test]
fn a_machine_without_a_usable_driver_serves_from_the_cpu_and_says_why() {
    for (faults, reason) in [
        (&[("INIT", "100")][..], "cuInit: CUDA_ERROR_NO_DEVICE"),
        (&[("VERSION", "11080")], "the CUDA driver is of version 11080"),
        (&[("DEVICES", "0")], "no device of compute capability"),
        (&[("CAPABILITY", "75")], "no device of compute capability"),
    ] {
        let server = serve(faults, &[]);
        assert!(server.first_words.contains(reason), "{}", server.first_words);
        assert!(server.get("/v1/devices").text().contains(reason));
        assert_eq!(stream(&server, &request("auto", 4)).2, "cpu");
    }
    let mut command = bitnetd(&["serve", "--port", "0", "--gpu", "1"]);
    command.env_remove("LD_LIBRARY_PATH");
    let ended = run_to_end(&mut command);
    if ended.words.contains("libcuda.so.1 can't be loaded") {
        assert_eq!(ended.code, Some(1), "{}", ended.words);
    }
}
