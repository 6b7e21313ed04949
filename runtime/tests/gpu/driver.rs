//! The emulated driver: built once, put before the server, told its faults.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::{Value, json};

use crate::clients::Answer;
use crate::server::{Server, becomes_true, bitnetd};

/// Three small layers, so that the emulator needs well under a second for a token.
pub(crate) const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/oracle/models/tiny-b158-i2_s.gguf");
/// Launches of a step with a prompt, three layers, the screened head, what the server is told; and of a self test: one such step, one
/// of two rows, both also with the whole head of a row, and three of a single row, the last with a draw among the best few.
pub(crate) const PROMPT_LAUNCHES: usize = 1 + 3 * 10 + 4 + 1;
pub(crate) const TEST_LAUNCHES: usize = PROMPT_LAUNCHES + 1 + (1 + 3 * 9 + 4 + 2) + 3 + 2 + (1 + 7);
/// Longer than the emulator needs for anything here on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// Waits for a device, 10 s each, that are enough for one to come up on a busy machine.
const WAITS_MAX: usize = 12;

/// The folder with `libcuda.so.1` and `libnvidia-ml.so.1`.
fn library() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("emulated-cuda-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/cuda");
        let mut compiler = Command::new("g++");
        compiler.args(["-std=c++17", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o"]);
        compiler.arg(folder.join("libnvidia-ml.so.1")).arg(sources.join("emulator/nvml.cpp"));
        assert!(compiler.status().unwrap().success(), "the emulated management library does not compile");
        let mut compiler = Command::new("g++");
        compiler.args(["-std=c++17", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]);
        compiler.args(["-ffp-contract=off", "-o"]).arg(folder.join("libcuda.so.1"));
        if std::fs::read_to_string("/proc/cpuinfo").unwrap().contains(" fma ") {
            compiler.arg("-mfma");
        }
        compiler.arg("-I").arg(&sources).arg(sources.join("emulator/driver.cpp")).arg("-lpthread");
        assert!(compiler.status().unwrap().success(), "the emulated driver does not compile");
        // The other name that the driver is looked for by, so that no real one is found before.
        let link = folder.join("libcuda.so");
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink("libcuda.so.1", link).unwrap();
        folder
    })
}

/// A server with an emulated GPU and these faults, as environment variables of the driver, or of the management library.
pub(crate) fn serve(faults: &[(&str, &str)], arguments: &[&str]) -> Server {
    serve_model(MODEL, faults, arguments)
}

/// The same with another model, as the command line has it.
pub(crate) fn serve_model(model: &str, faults: &[(&str, &str)], arguments: &[&str]) -> Server {
    let mut command = bitnetd(&["serve", "--port", "0", "--model", model, "--shards", "1", "--workers", "1"]);
    command.args(arguments).env("LD_LIBRARY_PATH", library());
    for (name, value) in faults {
        command
            .env(if name.starts_with("NVML_") { format!("FAKE_{name}") } else { format!("FAKE_CUDA_{name}") }, value);
    }
    Server::spawn(&mut command)
}

/// Waits until so many devices are healthy.
pub(crate) fn healthy(server: &Server, devices: usize) {
    let count = || count(server, "bitnet_gpu_state", "state=\"healthy\"");
    assert!(becomes_true(PATIENCE, || count() == devices as f64), "{} devices are healthy", count());
}

/// The sum of a metric's samples with that label.
pub(crate) fn count(server: &Server, name: &str, label: &str) -> f64 {
    let text = server.get("/metrics").text();
    let lines = text.lines().filter(|line| line.starts_with(&format!("{name}{{")) && line.contains(label));
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

pub(crate) fn request(device: &str, max_tokens: u32) -> Value {
    json!({"prompt": "ab", "max_tokens": max_tokens, "temperature": 0, "device_preference": device})
}

/// The tokens of a streamed answer, and what it says at its end: finish reason and device.
pub(crate) type Streamed = (Vec<(u64, u64, String)>, String, String);

pub(crate) fn stream(server: &Server, body: &Value) -> Streamed {
    read(&server.post("/v1/inference/stream", &body.to_string()))
}

/// The same, asked for again where the wait for a device was too short for this machine; who does not wait at all is through
/// with its tries at once.
pub(crate) fn stream_in_time(server: &Server, body: &Value) -> Streamed {
    let mut answers = (0..WAITS_MAX).map(|_| server.post("/v1/inference/stream", &body.to_string()));
    read(&answers.find(|answer| answer.status != 503).expect("the device comes back"))
}

fn read(answer: &Answer) -> Streamed {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let (mut tokens, mut finish, mut device) = (Vec::new(), String::new(), String::new());
    for event in answer.events() {
        let data: Value = serde_json::from_str(&event.data).unwrap();
        match event.name.as_str() {
            "token" => tokens.push((
                data["position"].as_u64().unwrap(),
                data["token_id"].as_u64().unwrap(),
                data["text"].as_str().unwrap().to_owned(),
            )),
            "metrics" => device = data["device"].as_str().unwrap().to_owned(),
            "complete" => finish = data["finish_reason"].as_str().unwrap().to_owned(),
            "error" => panic!("the stream failed: {data}"),
            _ => {}
        }
    }
    (tokens, finish, device)
}

/// Worker processes of a server.
pub(crate) fn workers(server: &Server) -> Vec<u32> {
    let parent = server.pid();
    let processes =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    processes
        .filter(|pid: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let fields = stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned()).unwrap_or_default();
            fields.split(' ').nth(1).and_then(|ppid| ppid.parse().ok()) == Some(parent)
        })
        .collect()
}
