//! Answers read back: head fields with httparse, bodies with another JSON reader.
#![expect(clippy::unwrap_used, reason = "a test helper that fails is a failed test")]

use std::collections::HashMap;
use std::time::Duration;

use net::api::{
    Choice, CompletionBody, Component, ContentBody, FinishReason, InferenceReply, Logprobs, ModelCard, TokensBody,
    Usage, write_health, write_inference, write_models,
};
use net::error::{ApiError, Dialect};
use net::http::{Body, Connection, HttpError, Limits, Request, Response, write_error, write_json};
use serde_json::{Value, json};

fn request(head: &[u8]) -> Request {
    let mut connection = Connection::new(Limits::default());
    connection.receive(head).unwrap();
    connection.next().unwrap().unwrap()
}

/// Status, fields by lower-case name (each at most once) and body.
fn read(wire: &[u8]) -> (u16, HashMap<String, String>, Vec<u8>) {
    let mut slots = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut slots);
    let httparse::Status::Complete(head) = response.parse(wire).unwrap() else { panic!("partial") };
    let mut fields = HashMap::new();
    for header in response.headers.iter() {
        let value = String::from_utf8(header.value.to_vec()).unwrap();
        assert!(fields.insert(header.name.to_ascii_lowercase(), value).is_none(), "{} repeated", header.name);
    }
    (response.code.unwrap(), fields, wire[head..].to_vec())
}

fn json_of(write: impl FnOnce(&mut Vec<u8>)) -> Value {
    let mut out = Vec::new();
    write(&mut out);
    serde_json::from_slice(&out).unwrap_or_else(|error| panic!("{error}: {}", out.escape_ascii()))
}

#[test]
fn a_json_answer_states_its_length() {
    let mut out = Vec::new();
    write_json(&mut out, &request(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), "id-1", 200, b"{}");
    let (status, fields, body) = read(&out);
    assert_eq!((status, body.as_slice()), (200, b"{}".as_slice()));
    assert_eq!(fields["content-type"], "application/json");
    assert_eq!(fields["content-length"], "2");
    assert_eq!(fields["x-request-id"], "id-1");
    assert_eq!(fields["cache-control"], "no-store");
    assert!(!fields.contains_key("connection"));
}

#[test]
fn head_gets_the_length_without_the_body() {
    let mut out = Vec::new();
    write_json(&mut out, &request(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"), "i", 200, b"{}");
    let (_, fields, body) = read(&out);
    assert_eq!((fields["content-length"].as_str(), body.len()), ("2", 0));
}

#[test]
fn an_error_carries_retry_after_in_both_forms() {
    let error = ApiError::overloaded("queue is full", Duration::from_millis(1250));
    let mut out = Vec::new();
    let request = request(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    write_error(&mut out, Some(&request), "i", &error, Dialect::Own, 0);
    let (status, fields, body) = read(&out);
    assert_eq!(status, 429);
    assert_eq!((fields["retry-after"].as_str(), fields["retry-after-ms"].as_str()), ("2", "1250"));
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["error"]["request_id"], "i");
}

#[test]
fn a_method_that_is_not_allowed_names_those_that_are() {
    let error = ApiError::method_not_allowed("GET, HEAD");
    let mut out = Vec::new();
    write_error(&mut out, Some(&request(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")), "i", &error, Dialect::OpenAi, 0);
    let (status, fields, _) = read(&out);
    assert_eq!((status, fields["allow"].as_str()), (405, "GET, HEAD"));
}

#[test]
fn a_broken_stream_is_answered_and_closed() {
    let mut out = Vec::new();
    write_error(&mut out, None, "i", &HttpError::HeadTooLarge.into(), Dialect::OpenAi, 0);
    let (status, fields, body) = read(&out);
    assert_eq!((status, fields["connection"].as_str()), (431, "close"));
    assert_eq!(fields["content-length"], body.len().to_string());
}

#[test]
fn a_request_id_cannot_split_the_head() {
    let mut out = Vec::new();
    write_json(&mut out, &request(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), "x\r\nSet-Cookie: a", 200, b"");
    assert!(!read(&out).1.contains_key("set-cookie"));
}

#[test]
fn a_stream_is_chunked_unless_the_client_is_http_1_0() {
    let new = request(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let old = request(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let mut out = Vec::new();
    let response = Response::event_stream(&new, "i");
    Response { unix_s: Some(784_111_777), ..response }.write_head(&mut out);
    let (_, fields, _) = read(&out);
    assert_eq!(
        (fields["transfer-encoding"].as_str(), fields["content-type"].as_str()),
        ("chunked", "text/event-stream")
    );
    assert_eq!(fields["date"], "Sun, 06 Nov 1994 08:49:37 GMT");
    assert!(!fields.contains_key("content-length"));
    out.clear();
    let response = Response::event_stream(&old, "i");
    assert_eq!((response.body, response.keep_alive), (Body::UntilClose, false));
    response.write_head(&mut out);
    let (_, fields, _) = read(&out);
    assert!(!fields.contains_key("transfer-encoding") && fields["connection"] == "close");
}

#[test]
fn http_1_0_keep_alive_is_confirmed() {
    let mut out = Vec::new();
    write_json(&mut out, &request(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"), "i", 200, b"{}");
    assert_eq!(read(&out).1["connection"], "keep-alive");
}

#[test]
fn no_content_has_no_length() {
    let request = request(b"OPTIONS / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut out = Vec::new();
    let response = Response::new(&request, "i", 204, "", Body::None);
    Response { allow: Some("GET"), ..response }.write_head(&mut out);
    let (status, fields, _) = read(&out);
    assert_eq!((status, fields["allow"].as_str()), (204, "GET"));
    assert!(!fields.contains_key("content-length") && !fields.contains_key("content-type"));
}

#[test]
fn completions_have_openai_s_shape() {
    let usage = Usage { prompt_tokens: 3, completion_tokens: 4, cached_tokens: 0 };
    let usage_json = json!({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7,
                            "prompt_tokens_details": {"cached_tokens": 0}});
    let finish_reason = FinishReason::Stop;
    let choices = [0, 1].map(|index| Choice {
        index,
        echo: "",
        text: "a\n",
        calls: &[],
        finish_reason,
        logprobs: None,
        token_ids: None,
    });
    let piece_of = |_| b"a".as_slice();
    let chat = json_of(|out| assert!(CompletionBody::chat("c", 9, "m", &choices, usage, &piece_of).write_piece(out)));
    let choice_json = |index: u32| {
        json!({"index": index, "message": {"role": "assistant", "content": "a\n", "refusal": null},
               "logprobs": null, "finish_reason": "stop"})
    };
    let expected = json!({"id": "c", "object": "chat.completion", "created": 9, "model": "m",
                          "choices": [choice_json(0), choice_json(1)], "usage": usage_json});
    assert_eq!(chat, expected);
    let mut logprobs = Logprobs::default();
    logprobs.push(7, -1.0, &[(7, -1.0)]);
    let finish_reason = FinishReason::Length;
    let choices = [Choice {
        index: 0,
        echo: "p",
        text: "a",
        calls: &[],
        finish_reason,
        logprobs: Some(&logprobs),
        token_ids: None,
    }];
    let text =
        json_of(|out| assert!(CompletionBody::completion("c", 9, "m", &choices, usage, &piece_of).write_piece(out)));
    let logprobs_json =
        json!({"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"a": -1.0}], "text_offset": [0]});
    let expected = json!({"id": "c", "object": "text_completion", "created": 9, "model": "m", "usage": usage_json,
        "choices": [{"index": 0, "text": "pa", "logprobs": logprobs_json, "finish_reason": "length"}]});
    assert_eq!(text, expected);
}

#[test]
fn own_answers_have_their_fields() {
    let reply = InferenceReply {
        text: "t",
        tokens_generated: 2,
        inference_time_ms: 1.5,
        tokens_per_second: f64::INFINITY,
        model_id: "m",
        request_id: "r",
        quantization_used: "i2s",
        device_used: "cpu",
        batch_size: 1,
        queue_time_ms: 0.25,
        processing_time_ms: f64::NAN,
        memory_usage_mb: 3.0,
    };
    let inference = json_of(|out| write_inference(out, &reply));
    assert_eq!((&inference["text"], &inference["tokens_generated"]), (&json!("t"), &json!(2)));
    assert!(inference["tokens_per_second"].is_number());
    assert_eq!(inference["performance_metrics"]["queue_time_ms"], 0.25);
    let models =
        json_of(|out| write_models(out, &[ModelCard { id: "m", created_s: 1, context_max: 64, dimensions: Some(8) }]));
    let model = json!({"id": "m", "object": "model", "created": 1, "owned_by": "bitnetd", "max_model_len": 64,
        "kind": "embedding", "dimensions": 8});
    assert_eq!(models, json!({"object": "list", "data": [model]}));
    let (tokens, text_of) = ([1, 2], |token| if token == 1 { b"a".as_slice() } else { b"\xff" });
    let tokenized =
        |text_of| json_of(|out| assert!(TokensBody { tokens: &tokens, text_of, written: 0 }.write_piece(out)));
    assert_eq!(tokenized(None), json!({"tokens": [1, 2], "count": 2}));
    assert_eq!(tokenized(Some(&text_of))["tokens"], json!([{"id": 1, "piece": "a"}, {"id": 2, "piece": [255]}]));
    let content = json_of(|out| assert!(ContentBody { content: "a\u{fffd}", written: None }.write_piece(out)));
    assert_eq!(content, json!({"content": "a\u{fffd}"}));
    let component = Component { name: "model", status: "healthy", message: "m" };
    let health = json_of(|out| write_health(out, "healthy", 0, &[component]));
    assert_eq!(health["components"]["model"], json!({"status": "healthy", "message": "m"}));
}
