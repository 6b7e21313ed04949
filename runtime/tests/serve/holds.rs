//! What would hold a shard is done beside it, or in pieces.

use serde_json::{Value, json};

use crate::clients::{Client, logged_tokens, streamed_text};
use crate::server::Server;

const COMPLETIONS: &str = "/v1/completions";

#[test]
fn long_bodies_and_texts_are_read_beside_the_executor_and_answered_as_short_ones() {
    let server = Server::start(&["--shards", "1"]);
    let aside = || server.metric("bitnet_aside_jobs_total");
    let ids = |count| format!("{{\"max_tokens\":1,\"prompt\":[{}]}}", vec!["9"; count].join(","));
    assert_eq!(server.post(COMPLETIONS, &ids(8)).status, 200);
    assert_eq!(aside(), 0.0);
    let refused = server.post(COMPLETIONS, &ids(300_000));
    assert_eq!((refused.status, refused.json()["error"]["param"].as_str()), (400, Some("prompt")));
    assert_eq!(aside(), 2.0, "its body, then its prompt");
    let broken = server.post(COMPLETIONS, &ids(100_000)[1..]);
    assert_eq!(broken.status, 400);
    assert_eq!(aside(), 3.0);
    // The same text in one piece and as a conversation that is long by its messages alone.
    let messages = vec![json!({"role": "user", "content": ""}); 30];
    let tokenized = server.ask("/v1/tokenize", &json!({"messages": messages}));
    assert!(tokenized["count"].as_u64() > Some(30), "{tokenized}");
    assert_eq!(aside(), 4.0, "a short body");
    // The connection serves on, and its next body is its own.
    let mut client = Client::clear(server.address);
    for _ in 0..2 {
        assert_eq!(client.post(COMPLETIONS, ids(50_000).as_bytes()).status, 400);
        assert_eq!(client.post(COMPLETIONS, ids(8).as_bytes()).status, 200);
    }
}

#[test]
fn a_client_that_leaves_while_its_body_is_read_leaves_nothing_behind() {
    let server = Server::start(&["--shards", "1"]);
    let body = format!("{{\"prompt\":[{}]}}", vec!["9"; 500_000].join(","));
    for _ in 0..4 {
        Client::clear(server.address).send_post(COMPLETIONS, body.as_bytes());
    }
    let answer = server.ask(COMPLETIONS, &json!({"prompt": "a", "max_tokens": 2}));
    assert_eq!(answer["usage"]["completion_tokens"], 2);
    server.terminate();
    assert_eq!(server.ended().code, Some(0));
}

#[test]
fn a_long_answer_comes_in_pieces_and_says_the_same_as_its_stream() {
    let server = Server::start(&[]);
    let ask = json!({"prompt": "Once", "n": 8, "max_tokens": 48, "logprobs": 20, "temperature": 0, "ignore_eos": true});
    let answer = server.post(COMPLETIONS, &ask.to_string());
    assert_eq!((answer.status, answer.header("transfer-encoding")), (200, Some("chunked")));
    assert!(answer.body.len() > 100_000, "{} bytes", answer.body.len());
    let whole = answer.json();
    let short = server.post(COMPLETIONS, &json!({"prompt": "Once", "max_tokens": 2}).to_string());
    assert!(short.header("content-length").is_some());

    let mut streaming = ask.clone();
    streaming["stream"] = json!(true);
    let chunks = server.post(COMPLETIONS, &streaming.to_string()).chunks();
    for index in 0..8 {
        let logprobs = &whole["choices"][index]["logprobs"];
        assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 48);
        let of_choice = chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == index);
        let joined: Vec<Value> =
            of_choice.filter_map(|choice| choice["logprobs"]["top_logprobs"].as_array()).flatten().cloned().collect();
        assert_eq!(logprobs["top_logprobs"].as_array(), Some(&joined));
    }

    // Without chunks its end is the connection's.
    let mut old = Client::clear(server.address);
    let body = ask.to_string();
    let fields = format!("Content-Type: application/json\r\nContent-Length: {}", body.len());
    old.send(format!("POST {COMPLETIONS} HTTP/1.0\r\n{fields}\r\n\r\n{body}").as_bytes());
    let answer = old.answer();
    assert_eq!((answer.status, answer.header("transfer-encoding")), (200, None));
    assert_eq!(answer.json()["choices"], whole["choices"]);
}

#[test]
fn an_echo_is_sent_in_pieces_to_every_choice_also_where_nothing_is_generated() {
    let server = Server::start(&[]);
    let prompt = "a b c d ".repeat(20);
    for max_tokens in [0, 2] {
        let mut ask = json!({"prompt": prompt, "n": 3, "max_tokens": max_tokens, "echo": true, "temperature": 0});
        let whole = server.ask(COMPLETIONS, &ask);
        ask["stream"] = json!(true);
        let chunks = server.post(COMPLETIONS, &ask.to_string()).chunks();
        for index in 0..3 {
            let text = streamed_text(&chunks, index);
            assert!(text.starts_with(&prompt), "{text}");
            assert_eq!(whole["choices"][index as usize]["text"], text);
            let ends = chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == index);
            assert_eq!(ends.filter(|choice| !choice["finish_reason"].is_null()).count(), 1);
        }
    }
}

#[test]
fn tokens_without_a_text_have_their_log_probabilities_in_a_stream_too() {
    let server = Server::start(&[]);
    let model = include_bytes!("../../assets/bitnetd-tiny-i2_s.gguf");
    let gguf = gguf::Gguf::parse(model, model.len() as u64).unwrap();
    let end = gguf.metadata().u32("tokenizer.ggml.eos_token_id").unwrap().unwrap();
    let bias = json!({end.to_string(): 100});
    let ask = json!({
        "prompt": "Once", "n": 2, "max_tokens": 5, "logit_bias": bias, "ignore_eos": true, "logprobs": 1, "stream": true,
    });
    let answer = server.post(COMPLETIONS, &ask.to_string());
    assert_eq!((logged_tokens(&answer), streamed_text(&answer.chunks(), 0)), (10, String::new()));
}
