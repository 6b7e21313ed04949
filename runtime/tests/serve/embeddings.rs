//! Embedding models over HTTP: vectors as OpenAI has them, the same whatever shares the steps, and clear refusals.

use runtime::cli::synth::Preset;
use serde_json::{Value, json};

use crate::models::Folder;
use crate::server::Server;

const EMBEDDINGS: &str = "/v1/embeddings";

fn vector(answer: &Value, index: usize) -> Vec<f32> {
    let numbers = answer["data"][index]["embedding"].as_array().unwrap();
    numbers.iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

/// Base64 to bytes.
fn decode(text: &str) -> Vec<u8> {
    const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = |letter: char| u32::try_from(LETTERS.find(letter).unwrap()).unwrap();
    let letters: Vec<u32> = text.trim_end_matches('=').chars().map(bits).collect();
    let bytes = letters.chunks(4).flat_map(|chunk| {
        let word = chunk.iter().fold(0, |word, bits| word << 6 | bits) << (6 * (4 - chunk.len()));
        word.to_be_bytes()[1..chunk.len()].to_vec()
    });
    bytes.collect()
}

/// A server with both kinds of models: `m` gives embeddings, `g` text.
fn serve(folder: &Folder, preset: Preset) -> Server {
    folder.synth_as("embed.gguf", preset, 1);
    let generator = format!("g={}", folder.synth("text.gguf", 1));
    folder.serve("embed.gguf", &["--model", &generator])
}

#[test]
fn vectors_have_length_1_and_do_not_depend_on_what_shares_their_steps() {
    let folder = Folder::new();
    for preset in [Preset::TinyQwen3, Preset::TinyGemma3] {
        let server = serve(&folder, preset);
        // More inputs than slots, of lengths from one token to several steps.
        let texts: Vec<String> = (0..70).map(|i| "the thing ".repeat(1 + i * i % 40) + &i.to_string()).collect();
        let together = server.ask(EMBEDDINGS, &json!({"model": "m", "input": texts}));
        assert_eq!((together["object"].as_str(), together["model"].as_str()), (Some("list"), Some("m")));
        assert_eq!(together["data"].as_array().unwrap().len(), texts.len());
        for index in [0, 1, 39, 69] {
            assert_eq!(together["data"][index]["index"], index);
            let alone = server.ask(EMBEDDINGS, &json!({"input": texts[index]}));
            assert_eq!(vector(&alone, 0), vector(&together, index), "{} {index}", preset.name());
            let length: f32 = vector(&alone, 0).iter().map(|value| value * value).sum();
            assert!((length - 1.0).abs() < 1e-5, "{length}");
        }
        assert_ne!(vector(&together, 0), vector(&together, 1));
        let single = server.ask(EMBEDDINGS, &json!({"input": [1, 2, 3]}));
        assert_eq!((&single["usage"]["prompt_tokens"], &single["usage"]["total_tokens"]), (&json!(3), &json!(3)));
        let several = server.ask(EMBEDDINGS, &json!({"input": [[1, 2, 3], [7]]}));
        assert_eq!((vector(&several, 0), several["usage"]["prompt_tokens"].as_u64()), (vector(&single, 0), Some(4)));
        assert!(server.becomes_quiet());
    }
}

#[test]
fn base64_holds_the_same_numbers_and_texts_are_framed_by_their_tokens() {
    let folder = Folder::new();
    let server = serve(&folder, Preset::TinyQwen3);
    let floats = vector(&server.ask(EMBEDDINGS, &json!({"input": "the fox"})), 0);
    let encoded = server.ask(EMBEDDINGS, &json!({"input": "the fox", "encoding_format": "base64", "dimensions": 256}));
    let text = encoded["data"][0]["embedding"].as_str().unwrap();
    let decoded: Vec<f32> = decode(text).as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    assert_eq!(decoded, floats);
    let tokens = server.ask("/v1/tokenize", &json!({"model": "m", "content": "the fox", "add_special": true}));
    let again = server.ask(EMBEDDINGS, &json!({"input": tokens["tokens"]}));
    assert_eq!(vector(&again, 0), floats);
}

#[test]
fn each_kind_of_model_refuses_what_the_other_does() {
    let folder = Folder::new();
    let server = serve(&folder, Preset::TinyQwen3);
    let refused = |path: &str, body: Value, param: &str, says: &str| {
        let answer = server.post(path, &body.to_string());
        let error = &answer.json()["error"];
        assert_eq!((answer.status, error["param"].as_str()), (400, Some(param)), "{path} {error}");
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
    };
    let messages = json!([{"role": "user", "content": "hi"}]);
    refused("/v1/chat/completions", json!({"model": "m", "messages": messages}), "model", "/v1/embeddings");
    refused("/v1/completions", json!({"model": "m", "prompt": "hi"}), "model", "/v1/embeddings");
    refused("/v1/inference", json!({"model": "m", "prompt": "hi"}), "model", "/v1/embeddings");
    refused(EMBEDDINGS, json!({"model": "g", "input": "hi"}), "model", "generates text");
    refused(EMBEDDINGS, json!({"input": "hi", "dimensions": 64}), "dimensions", "256");
    refused(EMBEDDINGS, json!({"input": [4096]}), "input", "vocabulary");
    refused(EMBEDDINGS, json!({"input": [[1], vec![1; 600]]}), "input[1]", "512");
    refused(EMBEDDINGS, json!({"input": ["a", "b ".repeat(5000)]}), "input", "512");
    assert_eq!(server.post(EMBEDDINGS, "{\"model\":\"x\",\"input\":\"a\"}").status, 404);
    assert_eq!(server.get(EMBEDDINGS).status, 405);

    let models = server.get("/v1/models").json();
    let of = |id: &str| models["data"].as_array().unwrap().iter().find(|card| card["id"] == id).unwrap().clone();
    assert_eq!((&of("m")["kind"], &of("m")["dimensions"]), (&json!("embedding"), &json!(256)));
    assert_eq!((&of("g")["kind"], &of("g")["dimensions"]), (&json!("generation"), &Value::Null));
}

#[test]
fn an_embedding_model_is_swapped_for_another_one_and_for_none_of_the_other_kind() {
    let folder = Folder::new();
    let server = serve(&folder, Preset::TinyQwen3);
    let second = folder.synth_as("second.gguf", Preset::TinyQwen3, 2);
    let embed = || vector(&server.ask(EMBEDDINGS, &json!({"model": "m", "input": "the fox"})), 0);
    let first = embed();
    let answer = server.try_swap(&folder.text("text.gguf"), &json!({}));
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (400, Some("VALIDATION_FAILED")));
    assert_eq!(embed(), first);
    let answer = server.try_swap(&second, &json!({}));
    assert_eq!((answer.status, answer.json()["status"].as_str()), (200, Some("completed")), "{}", answer.text());
    assert_ne!(embed(), first);
    let beside = json!({"model_path": folder.text("embed.gguf"), "model_id": "n",
        "validation_config": {"enable_cross_validation": true, "validation_samples": 1}});
    let loaded = server.admin("POST", "/v1/models/load", &beside);
    assert_eq!(loaded.status, 200, "{}", loaded.text());
    assert_eq!(vector(&server.ask(EMBEDDINGS, &json!({"model": "n", "input": "the fox"})), 0), first);
}
