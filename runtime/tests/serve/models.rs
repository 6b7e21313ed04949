//! Model files of the tests' own, and a client that may load and swap them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use gguf::TensorType;
use runtime::cli::synth::{self, Preset};
use serde_json::{Value, json};

use crate::clients::{Answer, Client};
use crate::server::Server;

/// A folder with models, gone with it.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("bitnetd-models-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path.canonicalize().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> String {
        std::fs::write(self.path(name), bytes).unwrap();
        self.text(name)
    }

    /// A small model of random weights.
    pub(crate) fn synth(&self, name: &str, seed: u64) -> String {
        self.synth_as(name, Preset::Tiny, seed)
    }

    pub(crate) fn synth_as(&self, name: &str, preset: Preset, seed: u64) -> String {
        synth::write(&self.path(name), preset, TensorType::I2S, TensorType::F16, seed, |_, _| {}).unwrap();
        self.text(name)
    }

    /// A server of this folder's models, `model` first, with a key for everything.
    pub(crate) fn serve(&self, model: &str, arguments: &[&str]) -> Server {
        Server::start(&self.arguments(model, arguments).iter().map(String::as_str).collect::<Vec<_>>())
    }

    pub(crate) fn arguments(&self, model: &str, more: &[&str]) -> Vec<String> {
        let model = format!("m={}", self.text(model));
        let key = format!("ops={SECRET_SHA256}:model:read,model:write,model:manage");
        let directory = self.0.to_str().unwrap();
        let ours = ["--model", &model, "--allowed-model-directory", directory, "--api-key", &key];
        ours.iter().chain(more).map(|&argument| argument.to_owned()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left over harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Client {
    /// A request with the key.
    pub(crate) fn admin(&mut self, method: &str, path: &str, body: &str) -> Answer {
        self.request(method, path, &format!("Authorization: Bearer {SECRET}\r\n"), body)
    }

    pub(crate) fn request(&mut self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        self.send(format!("{method} {path} HTTP/1.1\r\nHost: test\r\n{headers}{length}\r\n{body}").as_bytes());
        self.answer()
    }
}

impl Server {
    pub(crate) fn admin(&self, method: &str, path: &str, body: &Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.connect().admin(method, path, &body)
    }

    /// A swap of the model `m` that must be answered.
    pub(crate) fn swap(&self, path: &str, more: &Value) -> Value {
        let answer = self.try_swap(path, more);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    pub(crate) fn try_swap(&self, path: &str, more: &Value) -> Answer {
        let mut body = json!({"new_model_path": path, "target_model_id": "m"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.admin("POST", "/v1/models/swap", &body)
    }

    pub(crate) fn status(&self, model: &str) -> Value {
        let answer = self.get(&format!("/v1/models/{model}/status"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// SHA-256 of the active version.
    pub(crate) fn active(&self, model: &str) -> String {
        let status = self.status(model);
        let versions = status["versions"].as_array().unwrap();
        let active = versions.iter().find(|version| version["state"] == "active").unwrap();
        active["metadata"]["sha256"].as_str().unwrap().to_owned()
    }

    /// A short greedy answer.
    pub(crate) fn greedy(&self, tokens: u32) -> String {
        let body = json!({"model": "m", "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": true});
        self.ask("/v1/completions", &body)["choices"][0]["text"].as_str().unwrap().to_owned()
    }
}

pub(crate) fn sha256(path: impl AsRef<Path>) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(std::fs::read(path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) const PROMPT: &str = "Once upon a time";
pub(crate) const SECRET: &str = "secret";
// printf %s secret | sha256sum
pub(crate) const SECRET_SHA256: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
