//! Files that must not be served: each is refused with its reason, and what is served stays as it was.

use std::fs::File;
use std::os::unix::fs::symlink;

use gguf::writer::Writer;
use gguf::{Gguf, TensorType};
use serde_json::json;

use crate::models::{Folder, sha256};
use crate::server::{PATIENCE, Server, becomes_true};

/// A file of a model, to be spoilt.
struct Bytes(Vec<u8>);

impl Bytes {
    /// What follows the first of `text`.
    fn after(&mut self, text: &str) -> &mut [u8] {
        let at = self.0.windows(text.len()).position(|window| window == text.as_bytes()).unwrap();
        &mut self.0[at + text.len()..]
    }

    /// Replaces a 32-bit value of the metadata.
    fn set(mut self, key: &str, value: u32) -> Vec<u8> {
        self.after(key)[4..8].copy_from_slice(&value.to_le_bytes());
        self.0
    }

    /// Replaces the first of `old` by text of the same length.
    fn replace(mut self, old: &str, new: &str) -> Vec<u8> {
        assert_eq!(old.len(), new.len());
        let end = self.0.len() - self.after(old).len();
        self.0[end - old.len()..end].copy_from_slice(new.as_bytes());
        self.0
    }

    /// Overwrites bytes of a tensor, counted from its start or from its end.
    fn tensor(mut self, name: &str, at: i64, bytes: &[u8]) -> Vec<u8> {
        let parsed = Gguf::parse(&self.0, self.0.len() as u64).unwrap();
        let tensor = parsed.tensor(name).unwrap();
        let start =
            if at < 0 { tensor.offset + tensor.bytes - at.unsigned_abs() } else { tensor.offset + at.unsigned_abs() };
        let start = usize::try_from(start).unwrap();
        self.0[start..start + bytes.len()].copy_from_slice(bytes);
        self.0
    }
}

/// A file that says it holds a model of a size that no machine has; it takes no room on the disk.
fn huge(folder: &Folder) -> String {
    let mut writer = Writer::new(3);
    writer.kv("general.architecture", "bitnet-b1.58");
    for (key, value) in [
        ("vocab_size", 1024_u32),
        ("context_length", 512),
        ("embedding_length", 65_536),
        ("block_count", 1),
        ("feed_forward_length", 768),
        ("attention.head_count", 64),
    ] {
        writer.kv(&format!("bitnet-b1.58.{key}"), value);
    }
    writer.kv("tokenizer.ggml.model", "gpt2");
    writer.strings("tokenizer.ggml.tokens", (0..1024).map(|token| format!("t{token}")));
    writer.tensor("token_embd.weight", &[65_536, 1024], TensorType::F16).unwrap();
    // Beyond any memory, within what a file may be.
    writer.tensor("blk.0.ffn_up.weight", &[65_536, 1 << 27], TensorType::I2S).unwrap();
    let file = writer.write_header(File::create(folder.path("huge.gguf")).unwrap()).unwrap();
    let bytes = file.file_bytes();
    drop(file);
    let file = File::options().write(true).open(folder.path("huge.gguf")).unwrap();
    file.set_len(bytes).unwrap();
    folder.text("huge.gguf")
}

/// A model's file spoilt in many ways, each by its name.
fn spoilt(good: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let copy = || Bytes(good.to_vec());
    let nan = f32::NAN.to_le_bytes();
    vec![
        ("empty", Vec::new()),
        ("text", b"This is a text and no model.\n".to_vec()),
        ("stump", good[..100].to_vec()),
        ("no tensors", good[..good.len() / 3].to_vec()),
        ("last byte missing", good[..good.len() - 1].to_vec()),
        ("future version", {
            let mut b = good.to_vec();
            b[4] = 99;
            b
        }),
        ("big endian", {
            let mut b = good.to_vec();
            b[4..8].reverse();
            b
        }),
        ("tensor count", {
            let mut b = good.to_vec();
            b[8..16].fill(0xff);
            b
        }),
        ("architecture", copy().replace("bitnet-b1.58", "mamba-b1.580")),
        ("layers", copy().set("bitnet-b1.58.block_count", 4)),
        ("no layers", copy().set("bitnet-b1.58.block_count", 0)),
        ("hidden size", copy().set("bitnet-b1.58.embedding_length", 128)),
        ("feed forward", copy().set("bitnet-b1.58.feed_forward_length", 512)),
        ("heads", copy().set("bitnet-b1.58.attention.head_count", 3)),
        ("vocabulary", copy().set("bitnet-b1.58.vocab_size", 1000)),
        ("renamed tensor", copy().replace("blk.1.ffn_gate", "blk.1.ffn_gave")),
        ("tensor type", copy().replace("blk.2.attn_q.weight", "blk.2.attn_k.weight")),
        ("NaN scale", copy().tensor("blk.0.ffn_up.weight", -32, &nan)),
        ("infinite scale", copy().tensor("blk.1.attn_q.weight", -32, &f32::INFINITY.to_le_bytes())),
        ("code 3", copy().tensor("blk.1.attn_v.weight", 5, &[0xff])),
        ("NaN norm", copy().tensor("blk.2.ffn_norm.weight", 8, &nan)),
        ("NaN output norm", copy().tensor("output_norm.weight", 0, &nan)),
        ("NaN embedding", copy().tensor("token_embd.weight", 0, &[0xff; 512])),
        ("tokenizer", copy().replace("gpt2", "gpt9")),
        ("no tokens", copy().replace("tokenizer.ggml.tokens", "tokenizer.ggml.tokans")),
    ]
}

/// A model of a few hundred megabytes of zeros, which takes no room on the disk.
fn roomy(folder: &Folder) -> String {
    let (hidden, ffn, layers) = (4096_u64, 16_384, 8);
    let mut writer = Writer::new(3);
    writer.kv("general.architecture", "llama");
    for (key, value) in [
        ("vocab_size", 1024_u32),
        ("context_length", 64),
        ("embedding_length", 4096),
        ("block_count", 8),
        ("feed_forward_length", 16_384),
        ("attention.head_count", 32),
        ("attention.head_count_kv", 1),
    ] {
        writer.kv(&format!("llama.{key}"), value);
    }
    writer.kv("tokenizer.ggml.model", "gpt2").kv("tokenizer.ggml.pre", "llama-bpe");
    writer.strings("tokenizer.ggml.tokens", (0..1024).map(|token| format!("t{token}")));
    writer.strings("tokenizer.ggml.merges", ["t h"]);
    writer.tensor("token_embd.weight", &[hidden, 1024], TensorType::F16).unwrap();
    writer.tensor("output_norm.weight", &[hidden], TensorType::F32).unwrap();
    for layer in 0..layers {
        for norm in ["attn_norm", "ffn_norm"] {
            writer.tensor(&format!("blk.{layer}.{norm}.weight"), &[hidden], TensorType::F32).unwrap();
        }
        for (name, cols, rows) in [
            ("attn_q", hidden, hidden),
            ("attn_k", hidden, 128),
            ("attn_v", hidden, 128),
            ("attn_output", hidden, hidden),
            ("ffn_gate", hidden, ffn),
            ("ffn_up", hidden, ffn),
            ("ffn_down", ffn, hidden),
        ] {
            writer.tensor(&format!("blk.{layer}.{name}.weight"), &[cols, rows], TensorType::I2S).unwrap();
        }
    }
    let path = folder.path("roomy.gguf");
    let bytes = writer.write_header(File::create(&path).unwrap()).unwrap().file_bytes();
    File::options().write(true).open(&path).unwrap().set_len(bytes).unwrap();
    folder.text("roomy.gguf")
}

/// Lets the server have so many bytes of address space from now on.
#[expect(unsafe_code, reason = "a limit of another process")]
fn limit_memory(server: &Server, bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    let pid = libc::pid_t::try_from(server.pid()).unwrap();
    // SAFETY: the limit is readable, and nothing is written back.
    let result = unsafe { libc::prlimit(pid, libc::RLIMIT_AS, &raw const limit, std::ptr::null_mut()) };
    assert_eq!(result, 0);
}

/// Bytes of address space in use.
fn address_space(server: &Server) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", server.pid())).unwrap();
    statm.split(' ').next().unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn memory_that_the_system_refuses_refuses_the_candidate() {
    let folder = Folder::new();
    folder.synth("served.gguf", 1);
    let good = folder.synth("good.gguf", 2);
    let roomy = roomy(&folder);
    let server = folder.serve("served.gguf", &["--swap-watch-seconds", "0"]);
    let before = (server.active("m"), server.greedy(16));
    // Some room for threads and small things, none for weights of half a gigabyte.
    limit_memory(&server, address_space(&server) + (256 << 20));
    for (path, body) in [
        ("/v1/models/swap", json!({"new_model_path": roomy, "target_model_id": "m"})),
        ("/v1/models/load", json!({"model_path": roomy, "model_id": "n"})),
    ] {
        let answer = server.admin("POST", path, &body);
        let code = answer.json()["error"]["code"].clone();
        assert_eq!((answer.status, code.as_str()), (503, Some("MEMORY_EXHAUSTED")), "{}", answer.text());
        assert!(answer.header("retry-after").is_some());
        assert_eq!((server.active("m"), server.greedy(16)), before);
    }
    limit_memory(&server, libc::RLIM_INFINITY);
    assert_eq!(server.swap(&good, &json!({}))["status"], "completed");
}

#[test]
fn thirty_kinds_of_bad_candidates_are_refused_and_change_nothing() {
    let folder = Folder::new();
    let served = folder.synth("served.gguf", 1);
    let good = std::fs::read(folder.synth("good.gguf", 2)).unwrap();
    let server = folder.serve("served.gguf", &["--swap-watch-seconds", "0"]);
    let before = (server.active("m"), server.greedy(16));
    let memory = || server.metric("bitnet_system_memory_usage_bytes") / f64::from(1 << 20);

    for (name, bytes) in &spoilt(&good) {
        assert_ne!(*bytes, good, "{name} is spoilt");
        let path = folder.write("bad.gguf", bytes);
        for (method, body) in [
            ("/v1/models/swap", json!({"new_model_path": path, "target_model_id": "m"})),
            ("/v1/models/load", json!({"model_path": path, "model_id": "n"})),
        ] {
            let answer = server.admin("POST", method, &body);
            assert!(answer.status >= 400, "{name}: {}", answer.text());
            let error = &answer.json()["error"];
            assert!((400..500).contains(&answer.status) && error["code"] == "MODEL_LOAD_FAILED", "{name}: {error}");
            assert!(error["message"].as_str().unwrap().len() > 30, "{name}: {error}");
        }
    }
    let memory_before = memory();
    let good = folder.text("good.gguf");
    let wrong_hash = json!({"sha256": sha256(&served)});
    let other_answers = json!({"health_check_config": {"accuracy_threshold": 1.0}});
    folder.write("secret.gguf", b"x");
    let elsewhere = Folder::new();
    let outside = elsewhere.synth("outside.gguf", 3);
    symlink(&outside, folder.path("link.gguf")).unwrap();
    for (name, path, more, status, code) in [
        ("wrong hash", good.clone(), wrong_hash, 400, "MODEL_LOAD_FAILED"),
        ("other answers", good.clone(), other_answers, 400, "CROSS_VALIDATION_FAILED"),
        ("too big", huge(&folder), json!({}), 503, "MEMORY_EXHAUSTED"),
        ("missing", folder.text("missing.gguf"), json!({}), 404, "MODEL_NOT_FOUND"),
        ("folder", folder.text(""), json!({}), 400, "VALIDATION_FAILED"),
        ("outside", outside.clone(), json!({}), 403, "AUTHORIZATION_FAILED"),
        ("link", folder.text("link.gguf"), json!({}), 403, "AUTHORIZATION_FAILED"),
        ("climbing", folder.text("../x/a.gguf"), json!({}), 400, "VALIDATION_FAILED"),
    ] {
        let answer = server.try_swap(&path, &more);
        let got = (answer.status, answer.json()["error"]["code"].as_str().unwrap().to_owned());
        assert_eq!(got, (status, code.to_owned()), "{name}: {}", answer.text());
    }
    assert_eq!((server.active("m"), server.greedy(16)), before);
    assert_eq!(server.status("m")["versions"].as_array().unwrap().len(), 1, "nothing is left of them");
    assert_eq!(server.get("/v1/models").json()["data"].as_array().unwrap().len(), 1);
    assert!(becomes_true(PATIENCE, || memory() < memory_before + 16.0), "{} of {memory_before}", memory());
    let swap = server.swap(&good, &json!({}));
    assert_eq!(swap["status"], "completed", "the good one passes: {swap}");
}
