//! The tokens of prompt and answer as numbers, for whoever asks for them.

use serde_json::{Value, json};

use crate::clients::streamed_text;
use crate::server::Server;

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn body(path: &str, more: &Value) -> Value {
    let mut body = json!({"max_tokens": 24, "temperature": 0.9, "seed": 5, "return_token_ids": true});
    match path {
        CHAT => body["messages"] = json!([{"role": "user", "content": "Tell me a story."}]),
        _ => body["prompt"] = json!("Once upon a time"),
    }
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}")).clone()
}

/// The prompt's ids, as often as chunks had them, and the ids of choice `index` of all chunks.
fn streamed_ids(path: &str, chunks: &[Value], index: u64) -> (Vec<Value>, Vec<Value>) {
    let (mut prompts, mut answer) = (Vec::new(), Vec::new());
    for chunk in chunks.iter().filter(|chunk| chunk["choices"][0]["index"] == index) {
        let choice = &chunk["choices"][0];
        let prompt = if path == CHAT { chunk.get("prompt_token_ids") } else { choice.get("prompt_token_ids") };
        assert!(prompt.is_none() || answer.is_empty(), "the prompt's come first");
        prompts.extend(prompt.cloned());
        if choice["delta"].get("role").is_none() {
            answer.extend(list(&choice["token_ids"]));
        }
    }
    (prompts, answer)
}

#[test]
fn ids_are_the_same_whole_and_streamed_and_make_the_text() {
    let server = Server::start(&[]);
    for (path, more) in [(COMPLETIONS, json!({"n": 3})), (CHAT, json!({"n": 3})), (COMPLETIONS, json!({"logprobs": 1}))]
    {
        let whole = server.ask(path, &body(path, &more));
        let mut body = body(path, &more);
        body["stream"] = json!(true);
        let chunks = server.post(path, &body.to_string()).chunks();
        let choices = list(&whole["choices"]);
        let mut completion_tokens = 0;
        for (choice, index) in choices.iter().zip(0..) {
            let prompt = if path == CHAT { &whole["prompt_token_ids"] } else { &choice["prompt_token_ids"] };
            assert_eq!(list(prompt).len() as u64, whole["usage"]["prompt_tokens"].as_u64().unwrap());
            let ids = list(&choice["token_ids"]);
            completion_tokens += ids.len() as u64;
            let text = if path == CHAT { &choice["message"]["content"] } else { &choice["text"] };
            assert_eq!(server.ask("/v1/detokenize", &json!({"tokens": ids}))["content"], *text);
            assert_eq!(streamed_ids(path, &chunks, index), (vec![prompt.clone()], ids), "{path} {index}");
            assert_eq!(streamed_text(&chunks, index), text.as_str().unwrap());
        }
        assert_eq!(whole["usage"]["completion_tokens"], completion_tokens);
    }
    // What a prompt's ids are for: they are a prompt.
    let greedy = json!({"temperature": 0});
    let first = server.ask(COMPLETIONS, &body(COMPLETIONS, &greedy));
    let again = json!({"temperature": 0, "prompt": first["choices"][0]["prompt_token_ids"], "return_token_ids": false});
    let again = server.ask(COMPLETIONS, &body(COMPLETIONS, &again));
    assert_eq!(again["choices"][0]["text"], first["choices"][0]["text"]);
    assert!(again["choices"][0].get("token_ids").is_none() && again["choices"][0].get("prompt_token_ids").is_none());
    let echo = json!({"temperature": 0, "echo": true, "stream": true});
    let chunks = server.post(COMPLETIONS, &body(COMPLETIONS, &echo).to_string()).chunks();
    let expected = (vec![first["choices"][0]["prompt_token_ids"].clone()], list(&first["choices"][0]["token_ids"]));
    assert_eq!(streamed_ids(COMPLETIONS, &chunks, 0), expected);
}

#[test]
fn tokens_that_are_not_shown_have_ids_too() {
    let server = Server::start(&[]);
    for path in [COMPLETIONS, CHAT] {
        let shown = |choice: &Value| {
            let text = if path == CHAT { &choice["message"]["content"] } else { &choice["text"] };
            text.as_str().unwrap().to_owned()
        };
        let free = server.ask(path, &body(path, &json!({"temperature": 0, "ignore_eos": true})));
        let (text, ids) = (shown(&free["choices"][0]), list(&free["choices"][0]["token_ids"]));
        let middle: String = text.chars().skip(text.chars().count() / 2).take(4).collect();
        let more = json!({"temperature": 0, "ignore_eos": true, "stop": middle});
        let stopped = server.ask(path, &body(path, &more));
        let choice = &stopped["choices"][0];
        let kept = list(&choice["token_ids"]);
        assert_eq!((choice["finish_reason"].as_str(), &ids[..kept.len()]), (Some("stop"), &kept[..]));
        assert_eq!(stopped["usage"]["completion_tokens"], kept.len());
        let whole = server.ask("/v1/detokenize", &json!({"tokens": kept}))["content"].as_str().unwrap().to_owned();
        assert!(whole.contains(&middle) && !shown(choice).contains(&middle), "{whole}");
        let mut body = body(path, &more);
        body["stream"] = json!(true);
        let chunks = server.post(path, &body.to_string()).chunks();
        assert_eq!(streamed_ids(path, &chunks, 0).1, kept, "{path}");
    }
    let refused = server.post("/v1/responses", &json!({"input": "a", "return_token_ids": true}).to_string());
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("return_token_ids")));
}
