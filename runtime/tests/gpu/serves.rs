//! A GPU that works.

use std::cell::RefCell;

use serde_json::{Value, json};

use crate::driver::{count, healthy, request, serve, stream, workers};
use crate::server::becomes_true;

#[test]
fn the_gpu_says_what_the_cpu_says_whatever_the_sampling_and_both_are_listed() {
    let server = serve(&[], &[]);
    healthy(&server, 1);
    let (on_cpu, finish, device) = stream(&server, &request("cpu", 8));
    assert_eq!((on_cpu.len(), finish.as_str(), device.as_str()), (8, "length", "cpu"));
    assert_eq!(stream(&server, &request("gpu", 8)), (on_cpu, finish, "cuda:0".to_owned()));

    let sampled = |device: &str| {
        let mut body = request(device, 5);
        let fields = json!({"temperature": 1.5, "seed": 7, "repetition_penalty": 1.3, "top_k": 40});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        server.ask("/v1/inference", &body)
    };
    let (cpu, gpu) = (sampled("cpu"), sampled("gpu"));
    assert_eq!((&gpu["text"], &gpu["device_used"]), (&cpu["text"], &json!("cuda:0")));

    let devices: Value = server.get("/v1/devices").json();
    let [cpu, gpu] = &devices["data"].as_array().unwrap()[..] else { panic!("{devices}") };
    assert_eq!((&cpu["kind"], &gpu["id"], &gpu["state"]), (&json!("cpu"), &json!("cuda:0"), &json!("healthy")));
    assert!(gpu["decode_step_ms"].as_f64().unwrap() > 0.0, "{gpu}");
    assert_eq!(count(&server, "bitnet_gpu_tokens_total", ""), 13.0);
    assert_eq!(count(&server, "bitnet_device_fallbacks_total", ""), 0.0);
    assert!(becomes_true(crate::driver::PATIENCE, || count(&server, "bitnet_gpu_sequences", "") == 0.0));
}

#[test]
fn a_slow_gpu_gets_only_what_asks_for_it_and_its_worker_ends_with_the_server() {
    let server = serve(&[], &["--gpu", "1"]);
    healthy(&server, 1);
    assert_eq!(stream(&server, &request("auto", 4)).2, "cpu");
    let worker = workers(&server)[0];
    server.terminate();
    let ended = server.ended();
    assert_eq!(ended.code, Some(0), "{}", ended.words);
    assert!(!std::path::Path::new(&format!("/proc/{worker}")).exists());
}

#[test]
fn sequences_are_placed_on_several_gpus_and_cancelled_ones_leave() {
    let server = serve(&[("DEVICES", "2")], &["--device", "gpu", "--gpu", "2"]);
    healthy(&server, 2);
    let expected = stream(&server, &request("cpu", 6)).0;
    let has_stepped = |device| count(&server, "bitnet_gpu_step_rows_count", &format!("device=\"{device}\"")) > 0.0;
    // Two that run at a time are on two devices. Streams are added until that is seen, since any of them may have ended
    // before the next one came.
    let clients = RefCell::new(Vec::new());
    let spread = becomes_true(crate::driver::PATIENCE, || {
        if clients.borrow().len() < STREAMS_MAX {
            let mut client = server.connect();
            client.send_post("/v1/inference/stream", request("auto", 200).to_string().as_bytes());
            assert_eq!(client.head().status, 200);
            clients.borrow_mut().push(client);
        }
        ["cuda:0", "cuda:1"].into_iter().all(has_stepped)
    });
    assert!(spread, "{}", server.get("/metrics").text());
    let (tokens, _, device) = stream(&server, &request("auto", 6));
    assert_eq!((tokens, device.starts_with("cuda:")), (expected, true));
    drop(clients);
    assert!(becomes_true(crate::driver::PATIENCE, || count(&server, "bitnet_gpu_sequences", "") == 0.0));
}

/// Fewer than a server takes at a time.
const STREAMS_MAX: usize = 16;
