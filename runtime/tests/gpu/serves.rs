//! A GPU that works.

use std::cell::RefCell;

use gguf::TensorType;
use runtime::cli::synth::{self, Preset};
use serde_json::{Value, json};

use crate::driver::{PATIENCE, count, healthy, request, serve, serve_model, stream, workers};
use crate::models::Folder;
use crate::server::{Server, becomes_true};

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

    // What is chosen on the device is chosen as here.
    let drawn = |device: &str, fields: &Value| {
        let mut body = request(device, 12);
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        stream(&server, &body).0
    };
    for fields in [
        json!({"temperature": 1.0, "seed": 1, "top_k": 2}),
        json!({"temperature": 2.0, "seed": 2, "top_k": 20, "top_p": 0.8}),
        json!({"temperature": 2.0, "seed": 3, "top_k": 19, "top_p": 0.3}),
        json!({"temperature": 2.0, "seed": 4, "top_k": 21}),
    ] {
        assert_eq!(drawn("gpu", &fields), drawn("cpu", &fields), "{fields}");
    }

    let devices: Value = server.get("/v1/devices").json();
    let [cpu, gpu] = &devices["data"].as_array().unwrap()[..] else { panic!("{devices}") };
    assert_eq!((&cpu["kind"], &gpu["id"], &gpu["state"]), (&json!("cpu"), &json!("cuda:0"), &json!("healthy")));
    assert_eq!(
        (&gpu["prompt_attention"], count(&server, "bitnet_gpu_tensor_prompt_rows_total", "")),
        (&json!("exact"), 0.0)
    );
    assert!(gpu["decode_step_ms"].as_f64().unwrap() > 0.0, "{gpu}");
    assert_eq!(count(&server, "bitnet_gpu_tokens_total", ""), 61.0);
    assert_eq!(count(&server, "bitnet_device_fallbacks_total", ""), 0.0);
    assert!(becomes_true(PATIENCE, || count(&server, "bitnet_gpu_sequences", "") == 0.0));
}

#[test]
fn a_prompt_past_one_split_of_the_cache_says_what_it_says_on_the_cpu() {
    let server = serve(&[], &[]);
    healthy(&server, 1);
    let ask = |device: &str| {
        let mut body = request(device, 12);
        let fields = json!({"prompt": "abba".repeat(90), "temperature": 1.5, "seed": 7});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        server.ask("/v1/inference", &body)
    };
    let (cpu, gpu) = (ask("cpu"), ask("gpu"));
    assert_eq!((&gpu["text"], &gpu["device_used"]), (&cpu["text"], &json!("cuda:0")));
    assert!(count(&server, "bitnet_gpu_prompt_rows_total", "") > 256.0);
}

#[test]
fn over_an_int8_cache_the_gpu_says_what_the_cpu_says_in_longer_sequences_and_in_company() {
    let f16 = serve(&[], &[]);
    let server = &serve(&[], &["--kv-cache-type", "int8"]);
    healthy(server, 1);
    healthy(&f16, 1);
    let ask = |server: &Server, device: &str, words: usize| {
        let mut body = request(device, 12);
        let fields = json!({"prompt": "abba".repeat(words), "temperature": 1.5, "seed": 7, "top_k": 20});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let answer = server.ask("/v1/inference", &body);
        (answer["text"].as_str().unwrap().to_owned(), answer["device_used"].as_str().unwrap().to_owned())
    };
    let words = [1, 30, 90];
    let on_gpu = std::thread::scope(|scope| {
        let answers: Vec<_> = words.iter().map(|words| scope.spawn(|| ask(server, "gpu", *words))).collect();
        answers.into_iter().map(|answer| answer.join().unwrap()).collect::<Vec<_>>()
    });
    for (words, (text, device)) in words.iter().zip(&on_gpu) {
        assert_eq!((device.as_str(), &ask(server, "cpu", *words).0), ("cuda:0", text), "{words} words");
    }
    assert_eq!(ask(server, "gpu", 90), on_gpu[2], "alone");
    assert_ne!(ask(&f16, "gpu", 90).0, on_gpu[2].0, "F16 is another cache");
    assert_eq!(count(server, "bitnet_gpu_faults_total", ""), 0.0);
}

#[test]
fn prompts_on_tensor_cores_get_the_same_answer_whatever_came_before_and_beside() {
    let server = &serve(&[], &["--gpu-prompt-attention", "tensor"]);
    healthy(server, 1);
    let ask = |prompt: &str| {
        let mut body = request("gpu", 12);
        let fields = json!({"prompt": prompt, "temperature": 1.5, "seed": 7});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let answer = server.ask("/v1/inference", &body);
        assert_eq!(answer["device_used"], "cuda:0");
        answer["text"].as_str().unwrap().to_owned()
    };
    let prompts: Vec<String> = (0..4).map(|i| "abba".repeat(90) + &"b".repeat(i)).collect();
    let together = std::thread::scope(|scope| {
        let answers: Vec<_> = prompts.iter().map(|prompt| scope.spawn(|| ask(prompt))).collect();
        answers.into_iter().map(|answer| answer.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(count(server, "bitnet_gpu_tensor_prompt_rows_total", "") > 256.0);
    // With the prompt known but for its last block, then after an answer that goes on from it.
    let alone = ask(&prompts[0]);
    assert_eq!(alone, together[0]);
    let longer = prompts[0].clone() + &alone;
    let first = ask(&longer);
    assert_eq!([ask(&longer), ask(&prompts[0])], [first, alone]);
    // The same from nothing.
    let fresh = serve(&[], &["--gpu-prompt-attention", "tensor", "--prefix-cache", "false"]);
    healthy(&fresh, 1);
    let mut body = request("gpu", 12);
    let fields = json!({"prompt": prompts[3], "temperature": 1.5, "seed": 7});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    assert_eq!(fresh.ask("/v1/inference", &body)["text"], json!(together[3]));
    let devices: Value = fresh.get("/v1/devices").json();
    assert_eq!(devices["data"][1]["prompt_attention"], "tensor", "{devices}");
    assert_eq!(count(&fresh, "bitnet_gpu_faults_total", ""), 0.0);
}

#[test]
fn streams_in_company_say_what_each_says_alone_whatever_their_sampling() {
    let server = &serve(&[], &[]);
    healthy(server, 1);
    let body = |device: &str, i: u32| {
        let mut body = request(device, 6 + i);
        let sampling = match i {
            0..=1 => json!({}),
            2 => json!({"temperature": 0.7, "seed": 2, "top_k": 20, "top_p": 0.9}),
            3 => json!({"temperature": 1.5, "seed": 3, "top_k": 7}),
            _ => json!({"temperature": 1.5, "seed": i}),
        };
        body.as_object_mut().unwrap().extend(sampling.as_object().unwrap().clone());
        body["prompt"] = "ab".repeat(i as usize + 1).into();
        body
    };
    let together = |device: &'static str| {
        std::thread::scope(|scope| {
            let streams: Vec<_> = (0..7).map(|i| scope.spawn(move || stream(server, &body(device, i)))).collect();
            streams.into_iter().map(|stream| stream.join().unwrap()).collect::<Vec<_>>()
        })
    };
    for (cpu, gpu) in together("cpu").iter().zip(together("gpu")) {
        assert_eq!((&cpu.0, &cpu.1, "cuda:0"), (&gpu.0, &gpu.1, gpu.2.as_str()));
    }
}

#[test]
fn the_management_library_is_read_and_what_it_does_not_say_is_absent() {
    let server = serve(&[("NVML_WITHOUT", "power ecc"), ("NVML_XID", "48")], &[]);
    let read = |name: &str| {
        let text = server.get("/metrics").text();
        let line = text.lines().find(|line| line.starts_with(&format!("bitnet_gpu_{name}{{")));
        line.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap())
    };
    assert!(becomes_true(PATIENCE, || read("last_xid") == Some(48.0)), "{}", server.get("/metrics").text());
    for (name, value) in [
        ("utilization_ratio", 0.75),
        ("memory_utilization_ratio", 0.5),
        ("memory_used_bytes", 600.0),
        ("temperature_celsius", 41.0),
        ("clock_hertz", 1.98e9),
        ("memory_clock_hertz", 2.619e9),
        ("xid_errors_total", 1.0),
    ] {
        assert_eq!(read(name), Some(value), "{name}");
    }
    assert_eq!((read("power_watts"), read("ecc_corrected_total"), read("ecc_uncorrected_total")), (None, None, None));
    let first = server.first_words.clone();
    server.terminate();
    let words = first + &server.ended().words;
    assert!(words.contains("cuda:0: the driver reports Xid 48"), "{words}");

    let server = serve(&[("NVML_WITHOUT", "init")], &[]);
    healthy(&server, 1);
    assert!(!server.get("/metrics").text().contains("bitnet_gpu_utilization_ratio"));
    let first = server.first_words.clone();
    server.terminate();
    let words = first + &server.ended().words;
    assert_eq!(words.matches("no readings of the GPUs: nvmlInit_v2: error 3").count(), 1, "{words}");
}

#[test]
fn a_swapped_in_model_gets_the_gpu_and_streams_of_the_old_one_end_as_they_would_have() {
    let folder = Folder::new();
    let (a, b) = (folder.synth("a.gguf", 1), folder.synth("b.gguf", 2));
    let arguments = folder.arguments("a.gguf", &["--swap-watch-seconds", "0"]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let server = serve_model(arguments[1], &[], &arguments[2..]);
    healthy(&server, 1);
    let expected = stream(&server, &request("cpu", 60));
    std::thread::scope(|scope| {
        let steps = count(&server, "bitnet_gpu_step_rows_count", "");
        let streamed = scope.spawn(|| stream(&server, &request("gpu", 60)));
        assert!(becomes_true(PATIENCE, || count(&server, "bitnet_gpu_step_rows_count", "") > steps));
        assert_eq!(server.swap(&b, &json!({}))["status"], "completed");
        let (tokens, finish, device) = streamed.join().unwrap();
        assert_eq!((&tokens, &finish), (&expected.0, &expected.1));
        assert!(["cpu", "cuda:0"].contains(&device.as_str()), "{device}");
    });
    // The swap is answered before the GPUs are told.
    assert!(becomes_true(PATIENCE, || count(&server, "bitnet_gpu_starts_total", "") == 2.0));
    healthy(&server, 1);
    let (on_cpu, finish, _) = stream(&server, &request("cpu", 6));
    assert_ne!(on_cpu, expected.0[..6]);
    assert_eq!(stream(&server, &request("gpu", 6)), (on_cpu, finish, "cuda:0".to_owned()));
    assert_eq!(count(&server, "bitnet_gpu_faults_total", ""), 0.0);
    assert_eq!(server.swap(&a, &json!({}))["status"], "completed");
    assert!(becomes_true(PATIENCE, || count(&server, "bitnet_gpu_starts_total", "") == 3.0));
}

#[test]
fn a_head_that_is_not_of_halves_gives_the_same_text_there() {
    let folder = Folder::new();
    let path = folder.path("q8.gguf");
    synth::write(&path, Preset::Tiny, TensorType::I2S, TensorType::Q8_0, 3, |_, _| {}).unwrap();
    let server = serve_model(&folder.text("q8.gguf"), &[], &[]);
    healthy(&server, 1);
    let (on_cpu, finish, _) = stream(&server, &request("cpu", 8));
    assert_eq!(stream(&server, &request("gpu", 8)), (on_cpu, finish, "cuda:0".to_owned()));
    assert_eq!(count(&server, "bitnet_gpu_faults_total", ""), 0.0);
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
    let spread = becomes_true(PATIENCE, || {
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
    assert!(becomes_true(PATIENCE, || count(&server, "bitnet_gpu_sequences", "") == 0.0));
}

/// Fewer than a server takes at a time.
const STREAMS_MAX: usize = 16;
