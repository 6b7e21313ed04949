//! Streams read back: chunk framing undone, events split, data parsed by another JSON reader.
#![expect(clippy::unwrap_used, reason = "a test helper that fails is a failed test")]

use net::api::{FinishReason, Logprobs, Usage};
use net::error::ApiError;
use net::sse::{Complete, Framing, OpenAiStream, OwnStream, Progress, TextLogprobs};
use proptest::prelude::{any, proptest};
use serde_json::{Value, json};

/// Undoes the chunked coding; every chunk must be whole and the last one empty if `ended`.
fn dechunk(mut wire: &[u8], ended: bool) -> Vec<Vec<u8>> {
    let mut chunks = Vec::new();
    while !wire.is_empty() {
        let line_end = wire.windows(2).position(|pair| pair == b"\r\n").unwrap();
        let size = usize::from_str_radix(str::from_utf8(&wire[..line_end]).unwrap(), 16).unwrap();
        let data = &wire[line_end + 2..];
        assert_eq!(&data[size..size + 2], b"\r\n");
        if size == 0 {
            assert!(ended && data.len() == 2);
            return chunks;
        }
        chunks.push(data[..size].to_vec());
        wire = &data[size + 2..];
    }
    assert!(!ended);
    chunks
}

/// (event name, data) of one event.
fn event(chunk: &[u8]) -> (Option<String>, String) {
    let text = str::from_utf8(chunk).unwrap();
    let lines = text.strip_suffix("\n\n").unwrap();
    let (mut name, mut data) = (None, None);
    for line in lines.split('\n') {
        match line.split_once(": ").unwrap() {
            ("event", value) => name = Some(value.to_owned()),
            ("data", value) => assert!(data.replace(value.to_owned()).is_none()),
            other => panic!("{other:?}"),
        }
    }
    (name, data.unwrap())
}

fn data(chunk: &[u8]) -> Value {
    let (name, data) = event(chunk);
    assert_eq!(name, None);
    serde_json::from_str(&data).unwrap()
}

#[test]
fn a_chat_stream_reads_as_openai_writes_it() {
    let stream = OpenAiStream::chat(Framing::Chunked, "chatcmpl-1", 1_700_000_000, "m\"1", true);
    let mut out = Vec::new();
    stream.begin(&mut out, 0, true, None);
    stream.text(&mut out, 0, "Hé\n\"\u{1f600}", None, None);
    stream.finish(&mut out, 0, FinishReason::Length, None);
    stream.done(&mut out, &Usage { prompt_tokens: 5, completion_tokens: 2, cached_tokens: 4 });
    let chunks = dechunk(&out, true);
    assert_eq!(chunks.len(), 5);
    let head = |choices: Value, usage: Value| {
        json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "m\"1",
               "choices": choices, "usage": usage})
    };
    let choice =
        |delta: Value, reason: Value| json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason}]);
    let first = json!({"role": "assistant", "content": ""});
    assert_eq!(data(&chunks[0]), head(choice(first, Value::Null), Value::Null));
    assert_eq!(data(&chunks[1]), head(choice(json!({"content": "Hé\n\"\u{1f600}"}), Value::Null), Value::Null));
    assert_eq!(data(&chunks[2]), head(choice(json!({}), json!("length")), Value::Null));
    let usage = json!({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7,
                       "prompt_tokens_details": {"cached_tokens": 4}});
    assert_eq!(data(&chunks[3]), head(json!([]), usage));
    assert_eq!(chunks[4], b"data: [DONE]\n\n");
}

#[test]
fn calls_stream_as_openai_writes_them() {
    let stream = OpenAiStream::chat(Framing::Chunked, "c", 1, "m", false);
    let mut out = Vec::new();
    stream.begin(&mut out, 2, false, None);
    stream.call(&mut out, 2, 1, 0xab, "f");
    stream.arguments(&mut out, 2, 1, "{\"é");
    stream.finish(&mut out, 2, FinishReason::ToolCalls, None);
    let choices: Vec<Value> = dechunk(&out, false).iter().map(|chunk| data(chunk)["choices"][0].clone()).collect();
    let id = format!("call_{:032x}", 0xab);
    assert!(id.len() <= 40);
    let begun = json!({"index": 1, "id": id, "type": "function", "function": {"name": "f", "arguments": ""}});
    let deltas = [
        json!({"role": "assistant", "content": null}),
        json!({"tool_calls": [begun]}),
        json!({"tool_calls": [{"index": 1, "function": {"arguments": "{\"é"}}]}),
        json!({}),
    ];
    for (choice, delta) in choices.iter().zip(&deltas) {
        assert_eq!((&choice["index"], &choice["delta"]), (&json!(2), delta));
    }
    assert_eq!((choices.len(), &choices[3]["finish_reason"]), (4, &json!("tool_calls")));
}

#[test]
fn a_text_stream_has_no_role_and_no_usage_unless_asked() {
    let stream = OpenAiStream::completion(Framing::Chunked, "cmpl-1", 1, "m", false);
    let mut out = Vec::new();
    stream.begin(&mut out, 3, true, None);
    assert!(out.is_empty());
    stream.text(&mut out, 3, "a", None, None);
    stream.finish(&mut out, 3, FinishReason::Stop, None);
    stream.done(&mut out, &Usage::default());
    let chunks = dechunk(&out, true);
    assert_eq!(chunks.len(), 3);
    let expected = json!({"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m",
                          "choices": [{"index": 3, "text": "a", "logprobs": null, "finish_reason": null}]});
    assert_eq!(data(&chunks[0]), expected);
    assert_eq!(data(&chunks[1])["choices"][0]["finish_reason"], "stop");
    assert_eq!(data(&chunks[1])["choices"][0]["text"], "");
}

#[test]
fn logprobs_have_the_shape_of_their_endpoint() {
    let pieces = [b"h\xc3".as_slice(), b"\xa9 ", b"z", b"\xa9", b"x"];
    let mut tokens = Logprobs::default();
    tokens.push(0, -2.0, &[]);
    tokens.push(1, f32::NEG_INFINITY, &[(3, -0.5), (4, -1.25)]);
    tokens.push(2, -0.25, &[]);
    let piece_of = |token: u32| pieces[token as usize];
    let logprobs = Some(TextLogprobs { tokens: &tokens, from: 0, piece_of: &piece_of, text_offset: 10 });
    let mut out = Vec::new();
    OpenAiStream::chat(Framing::Chunked, "i", 1, "m", false).text(&mut out, 0, "hé z", logprobs, None);
    OpenAiStream::completion(Framing::Chunked, "i", 1, "m", false).text(&mut out, 0, "hé z", logprobs, None);
    let chunks = dechunk(&out, false);
    let chat = data(&chunks[0])["choices"][0]["logprobs"].clone();
    assert_eq!(chat["content"][0]["token"], "h\u{fffd}");
    assert_eq!(chat["content"][0]["bytes"], json!([104, 195]));
    assert_eq!(chat["content"][0]["top_logprobs"], json!([]));
    assert_eq!(chat["content"][1]["logprob"], -9999.0);
    let best = json!({"token": "\u{fffd}", "logprob": -0.5, "bytes": [169]});
    assert_eq!(chat["content"][1]["top_logprobs"][0], best);
    let legacy = data(&chunks[1])["choices"][0]["logprobs"].clone();
    let expected = json!({
        "tokens": ["bytes:\\x68\\xc3", "bytes:\\xa9\\x20", "z"],
        "token_logprobs": [-2.0, -9999.0, -0.25],
        "top_logprobs": [null, {"bytes:\\xa9": -0.5, "x": -1.25}, null],
        "text_offset": [10, 12, 13],
    });
    assert_eq!(legacy, expected);
}

#[test]
fn many_logprobs_make_events_of_bounded_length() {
    let mut tokens = Logprobs::default();
    (0..2000).for_each(|token| tokens.push(token, -1.0, &[(token, -1.0); 20]));
    let piece_of = |_| b"piece".as_slice();
    for stream in [OpenAiStream::chat, OpenAiStream::completion] {
        let stream = stream(Framing::Chunked, "i", 1, "m", false);
        let (mut out, mut from) = (Vec::new(), 0);
        while from < tokens.len() {
            let before = from;
            let logprobs = TextLogprobs { tokens: &tokens, from, piece_of: &piece_of, text_offset: 5 * from };
            from = stream.text(&mut out, 0, if from == 0 { "all" } else { "" }, Some(logprobs), None);
            assert!(from > before);
        }
        let chunks = dechunk(&out, false);
        assert!(chunks.len() > 20 && chunks.iter().all(|chunk| chunk.len() < 32 << 10));
        let counted: usize = chunks
            .iter()
            .map(|chunk| {
                let logprobs = data(chunk)["choices"][0]["logprobs"].clone();
                logprobs["content"].as_array().or(logprobs["text_offset"].as_array()).unwrap().len()
            })
            .sum();
        assert_eq!(counted, 2000);
    }
}

#[test]
fn own_events_repeat_their_name() {
    let stream = OwnStream::new(Framing::Chunked);
    let mut out = Vec::new();
    stream.token(&mut out, "a\"b", 7, 0, 1500);
    stream.progress(&mut out, &Progress { tokens_generated: 1, tokens_per_second: 2.5, estimated_remaining_ms: 4.0 });
    stream.metrics(&mut out, "cpu", 12.5);
    let complete =
        Complete { total_tokens: 1, inference_time_ms: 3.5, finish_reason: FinishReason::Stop, request_id: "r" };
    stream.complete(&mut out, &complete);
    let expected = [
        json!({"type": "token", "text": "a\"b", "token_id": 7, "position": 0, "timestamp": "1970-01-01T00:00:01.500Z"}),
        json!({"type": "progress", "tokens_generated": 1, "tokens_per_second": 2.5, "estimated_remaining_ms": 4.0}),
        json!({"type": "metrics", "device": "cpu", "memory_usage_mb": 12.5}),
        json!({"type": "complete", "total_tokens": 1, "inference_time_ms": 3.5, "finish_reason": "stop",
               "request_id": "r"}),
    ];
    let chunks = dechunk(&out, true);
    assert_eq!(chunks.len(), expected.len());
    for (chunk, expected) in chunks.iter().zip(&expected) {
        let (name, data) = event(chunk);
        let data: Value = serde_json::from_str(&data).unwrap();
        assert_eq!(name.as_deref(), data["type"].as_str());
        assert_eq!(&data, expected);
    }
}

#[test]
fn an_error_ends_either_stream() {
    let error = ApiError::unavailable("draining \"now\"", std::time::Duration::from_secs(1));
    let mut out = Vec::new();
    OpenAiStream::chat(Framing::Chunked, "i", 1, "m", false).error(&mut out, &error);
    let chunks = dechunk(&out, true);
    assert_eq!(data(&chunks[0])["error"]["code"], "SERVICE_UNAVAILABLE");
    out.clear();
    OwnStream::new(Framing::Chunked).error(&mut out, &error);
    let (name, data) = event(&dechunk(&out, true)[0]);
    let data: Value = serde_json::from_str(&data).unwrap();
    assert_eq!((name.as_deref(), &data["type"]), (Some("error"), &json!("error")));
    assert_eq!((&data["code"], &data["details"]["status"]), (&json!("SERVICE_UNAVAILABLE"), &json!(503)));
}

#[test]
fn a_stream_to_http_1_0_has_no_chunks() {
    let stream = OpenAiStream::chat(Framing::UntilClose, "i", 1, "m", false);
    let mut out = Vec::new();
    stream.keep_alive(&mut out);
    assert_eq!(out, b":\n\n");
    out.clear();
    stream.done(&mut out, &Usage::default());
    assert_eq!(out, b"data: [DONE]\n\n");
}

#[test]
fn keep_alive_is_one_comment() {
    let mut out = Vec::new();
    OwnStream::new(Framing::Chunked).keep_alive(&mut out);
    assert_eq!(dechunk(&out, false), [b":\n\n".to_vec()]);
}

proptest! {
    #[test]
    fn any_piece_reads_back(text in any::<String>(), id in any::<String>(), model in any::<String>(), index in any::<u32>()) {
        let mut out = Vec::new();
        let stream = OpenAiStream::chat(Framing::Chunked, &id, 1, &model, false);
        stream.text(&mut out, index, &text, None, None);
        OwnStream::new(Framing::Chunked).token(&mut out, &text, 1, 2, 3);
        let chunks = dechunk(&out, false);
        let chat = data(&chunks[0]);
        assert_eq!(chat["choices"][0]["delta"]["content"].as_str(), Some(text.as_str()));
        assert_eq!(chat["choices"][0]["index"].as_u64(), Some(u64::from(index)));
        assert_eq!((chat["id"].as_str(), chat["model"].as_str()), (Some(id.as_str()), Some(model.as_str())));
        let token: Value = serde_json::from_str(&event(&chunks[1]).1).unwrap();
        assert_eq!(token["text"].as_str(), Some(text.as_str()));
    }
}
