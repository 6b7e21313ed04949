//! Who may change what is served, and what the endpoints around models say.

use gguf::TensorType;
use runtime::cli::synth::{self, Preset};
use serde_json::{Value, json};

use crate::models::{Folder, SECRET_SHA256, sha256};
use crate::server::{PATIENCE, Server, becomes_true, bitnetd, run_to_end};

#[test]
fn without_a_key_nothing_changes_what_is_served() {
    let server = Server::start(&[]);
    for (method, path) in
        [("POST", "/v1/models/load"), ("POST", "/v1/models/swap"), ("DELETE", "/v1/models/bitnetd-tiny")]
    {
        let body = if method == "POST" { "{}" } else { "" };
        let answer = server.connect().request(method, path, "Authorization: Bearer a\r\n", body);
        assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (403, Some("AUTHORIZATION_FAILED")));
    }
    assert_eq!(server.get("/v1/models/bitnetd-tiny/status").json()["health"], "healthy");
    let ended = run_to_end(&mut bitnetd(&["serve", "--require-authentication"]));
    assert!(ended.code == Some(1) && ended.words.contains("api_keys"), "{ended:?}");
    let ended = run_to_end(&mut bitnetd(&["serve", "--api-key", "in clear"]));
    assert!(ended.code == Some(1) && !ended.words.contains("in clear"), "{ended:?}");
}

#[test]
fn keys_open_what_their_scopes_say() {
    let folder = Folder::new();
    let (model, other) = (folder.synth("a.gguf", 1), folder.synth("b.gguf", 2));
    let key = format!("reader={SECRET_SHA256}:model:read");
    let directory = folder.text("");
    let arguments = ["--model", &model, "--api-key", &key, "--allowed-model-directory", &directory];
    let server = Server::start(&[&arguments[..], &["--require-authentication"]].concat());
    let status = |method: &str, path: &str, headers: &str, body: &str| {
        let answer = server.connect().request(method, path, headers, body);
        let challenged = answer.header("www-authenticate") == Some("Bearer");
        assert_eq!(answer.status == 401, challenged, "{}", answer.text());
        answer.status
    };
    let good = "Authorization: Bearer secret\r\nContent-Type: application/json\r\n";
    let load = json!({"model_path": other}).to_string();
    for (method, path, body, wanted) in [
        ("GET", "/v1/models", "", 200),
        ("GET", "/v1/models/a/status", "", 200),
        ("POST", "/v1/completions", r#"{"prompt":"a","max_tokens":1}"#, 200),
        ("POST", "/v1/models/load", &load, 403),
        ("POST", "/v1/models/swap", "{}", 403),
        ("DELETE", "/v1/models/a", "", 403),
    ] {
        assert_eq!(status(method, path, good, body), wanted, "{method} {path}");
        assert_eq!(status(method, path, "", body), 401, "{method} {path} without a key");
        assert_eq!(status(method, path, "X-API-Key: Secret\r\n", body), 401, "{method} {path} with another key");
    }
    for path in ["/health/live", "/health/ready", "/metrics"] {
        assert_eq!(status("GET", path, "", ""), 200, "{path}");
    }
}

#[test]
fn models_are_loaded_served_by_name_and_removed() {
    let folder = Folder::new();
    let (_, second) = (folder.synth("first.gguf", 1), folder.synth("second.gguf", 2));
    let server = folder.serve("first.gguf", &[]);
    let names = || -> Vec<String> {
        let list = server.get("/v1/models").json();
        list["data"].as_array().unwrap().iter().map(|card| card["id"].as_str().unwrap().to_owned()).collect()
    };
    let answer = server.admin("POST", "/v1/models/load", &json!({"model_path": second}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let loaded = answer.json();
    assert_eq!((&loaded["model_id"], &loaded["status"]), (&json!("second"), &json!("loaded")));
    assert_eq!(loaded["model_metadata"]["sha256"], sha256(&second).as_str());
    assert_eq!(loaded["model_metadata"]["vocab_size"], 1024);
    assert_eq!(loaded["validation_results"]["gguf_validation"]["passed"], true);
    assert_eq!(names(), ["m", "second"]);
    let ask = |model: &str| {
        let body = json!({"model": model, "prompt": "Once", "max_tokens": 8, "temperature": 0, "ignore_eos": true});
        server.ask("/v1/completions", &body)["choices"][0]["text"].clone()
    };
    assert_ne!(ask("m"), ask("second"), "each name has its own weights");

    let again = server.admin("POST", "/v1/models/load", &json!({"model_path": second}));
    assert_eq!(again.status, 409, "{}", again.text());
    let gpu = json!({"model_path": second, "model_id": "x", "device_preference": "gpu"});
    assert_eq!(server.admin("POST", "/v1/models/load", &gpu).json()["error"]["code"], "DEVICE_UNAVAILABLE");
    let layout = json!({"model_path": second, "model_id": "x", "quantization_format": "tl1"});
    assert_eq!(server.admin("POST", "/v1/models/load", &layout).json()["error"]["code"], "QUANTIZATION_ERROR");

    assert_eq!(server.admin("DELETE", "/v1/models/none", &Value::Null).status, 404);
    let mut stream = server.connect();
    let body = json!({"model": "second", "prompt": "a", "max_tokens": 900, "ignore_eos": true, "stream": true});
    stream.send_post("/v1/completions", body.to_string().as_bytes());
    assert!(becomes_true(PATIENCE, || server.status("second")["performance"]["running"] == 1));
    let removed = server.admin("DELETE", "/v1/models/second", &Value::Null);
    assert_eq!(removed.status, 204, "{}", removed.text());
    let chunks = stream.answer().chunks();
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length", "running streams finish");
    assert_eq!(names(), ["m"]);
    assert_eq!(server.get("/v1/models/second/status").status, 404);
    let gone = server.connect().post("/v1/completions", br#"{"model":"second","prompt":"a"}"#);
    assert_eq!((gone.status, gone.json()["error"]["code"].as_str()), (404, Some("MODEL_NOT_FOUND")));
}

#[test]
fn a_load_may_ask_for_cross_validation() {
    let folder = Folder::new();
    let path = folder.synth("m.gguf", 1);
    let server = folder.serve("m.gguf", &[]);
    let default = std::path::Path::new(&path).with_file_name("default.gguf");
    std::fs::write(&default, include_bytes!("../../assets/bitnetd-tiny-i2_s.gguf")).unwrap();
    let load = |timeout_s: u32| {
        let config = json!({"enable_cross_validation": true, "validation_samples": 1, "timeout_seconds": timeout_s});
        server.admin("POST", "/v1/models/load", &json!({"model_path": default, "validation_config": config}))
    };
    let answer = load(200);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let crossed = &answer.json()["validation_results"]["cross_validation"];
    assert_eq!(crossed["passed"], true);
    assert!(crossed["message"].as_str().unwrap().contains("85 of 85 tensors bit-equal"), "{crossed}");
}

#[test]
fn many_models_are_served_from_the_start() {
    let folder = Folder::new();
    let (first, second) = (folder.synth("a.gguf", 1), folder.synth("b.gguf", 2));
    let server = Server::start(&["--model", &format!("one={first}"), "--model", &second]);
    assert_eq!(server.active("one"), sha256(&first));
    assert_eq!(server.active("b"), sha256(&second));
    let body = json!({"prompt": "Once", "max_tokens": 2, "temperature": 0});
    assert_eq!(server.ask("/v1/completions", &body)["model"], "one", "the first is the default");
    let ended =
        run_to_end(&mut bitnetd(&["serve", "--model", &format!("x={first}"), "--model", &format!("x={second}")]));
    assert!(ended.code == Some(1) && ended.words.contains("`x`"), "{ended:?}");
}

#[test]
fn a_layout_that_is_asked_for_is_the_models() {
    let folder = Folder::new();
    let (first, second) = (folder.synth("a.gguf", 1), folder.text("b.gguf"));
    synth::write(&folder.path("b.gguf"), Preset::Tiny, TensorType::Tl1, TensorType::F16, 1, |_, _| {}).unwrap();
    let server = Server::start(&["--model", &format!("i2s={first}"), "--model", &format!("tl1={second}")]);
    for model in ["i2s", "tl1"] {
        for wanted in ["auto", "i2s", "tl1", "tl2"] {
            let body = json!({"model": model, "prompt": "a", "max_tokens": 1, "quantization_preference": wanted});
            let answer = server.post("/v1/inference", &body.to_string());
            let expected = if wanted == "auto" || wanted == model { 200 } else { 400 };
            assert_eq!(answer.status, expected, "{body}: {}", answer.text());
        }
    }
}

#[test]
fn a_receipt_says_what_served_a_request() {
    let folder = Folder::new();
    let model = folder.synth("a.gguf", 1);
    let server = folder.serve("a.gguf", &[]);
    let body = json!({"prompt": "Once upon", "max_tokens": 5, "seed": 77, "ignore_eos": true, "n": 2});
    let answer = server.post("/v1/completions", &body.to_string());
    let id = answer.header("x-request-id").unwrap().to_owned();
    let receipt = server.get(&format!("/v1/receipts/{id}")).json();
    assert_eq!(receipt["model_sha256"], sha256(&model).as_str(), "{receipt}");
    for (field, wanted) in [
        ("request_id", json!(id)),
        ("model_id", json!("m")),
        ("generation", json!(0)),
        ("quantization", json!("I2_S")),
        ("device", json!("cpu")),
        ("fallback", json!(false)),
        ("seed", json!(77)),
        ("sequences", json!(2)),
        ("prompt_tokens", answer.json()["usage"]["prompt_tokens"].clone()),
        ("completion_tokens", json!(10)),
        ("outcome", json!("length")),
    ] {
        assert_eq!(receipt[field], wanted, "{field} in {receipt}");
    }
    assert!(receipt["first_token_ms"].as_f64() <= receipt["total_ms"].as_f64(), "{receipt}");
    for id in ["00000000-0000-4000-8000-000000000000", "x", "%2e%2e"] {
        assert_eq!(server.get(&format!("/v1/receipts/{id}")).status, 404);
    }
}
