//! Responses as they go over the wire: whole, and as events in their order, byte for byte.
#![expect(clippy::unwrap_used, reason = "a test helper that fails is a failed test")]

use net::api::{CallReply, FinishReason, Logprobs, ResponseAnswer, ResponseBody, ResponseHead, Usage};
use net::error::ApiError;
use net::sse::{Framing, ResponseStream};
use serde_json::{Value, json};

fn head() -> ResponseHead<'static> {
    ResponseHead { id: 0xa, created_s: 5, model: "m".into(), parameters: b",\"store\":false" }
}

const USAGE: Usage = Usage { prompt_tokens: 7, completion_tokens: 2, cached_tokens: 4 };
const RESPONSE_ID: &str = "resp_0000000000000000000000000000000a";
const MESSAGE_ID: &str = "msg_0000000000000000000000000000000a";

/// An answer as it comes in steps: (new text, calls so far, why it ended).
type Step<'a> = (&'a str, &'a [CallReply<'a>], Option<FinishReason>);

struct Streamed {
    wire: Vec<u8>,
    most: usize,
}

fn stream(framing: Framing, steps: &[Step<'_>], logprobs: Option<&Logprobs>) -> Streamed {
    let mut stream = ResponseStream::new(framing, head());
    let (mut wire, mut most) = (Vec::new(), 0);
    for (text, calls, finish) in steps {
        let call_of = |index: usize| calls.get(index).copied();
        let answer = ResponseAnswer {
            text: "",
            call_of: &call_of,
            logprobs,
            piece_of: &|token| [b"a".as_slice(), b"\xc3"][token as usize % 2],
            finish: *finish,
            usage: USAGE,
            completed_s: 9,
        };
        let mut text = (*text).to_owned();
        loop {
            let start = wire.len();
            if !stream.advance(&mut wire, &mut text, &answer) {
                assert_eq!(wire.len(), start);
                break;
            }
            most = most.max(wire.len() - start);
        }
        assert!(text.is_empty());
        assert_eq!(stream.is_over(), finish.is_some());
        assert!(!stream.is_within_event());
    }
    stream.end(&mut wire);
    Streamed { wire, most }
}

/// Events, whose names and numbers must be right.
fn events(wire: &[u8]) -> Vec<Value> {
    let text = str::from_utf8(wire).unwrap();
    let blocks = text.split_terminator("\n\n").enumerate();
    let events = blocks.map(|(at, block)| {
        let (name, data) = block.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!((&data["type"], &data["sequence_number"]), (&json!(name), &json!(at)));
        data
    });
    events.collect()
}

#[test]
fn a_text_comes_in_this_order_byte_for_byte() {
    let steps: [Step<'_>; 4] =
        [("", &[], None), ("Hé\"", &[], None), ("!", &[], None), ("", &[], Some(FinishReason::Stop))];
    let got = stream(Framing::UntilClose, &steps, None).wire;
    let place = format!("\"item_id\":\"{MESSAGE_ID}\",\"output_index\":0,\"content_index\":0");
    let message = |status: &str, content: &str| {
        format!(
            "{{\"type\":\"message\",\"id\":\"{MESSAGE_ID}\",\"status\":\"{status}\",\"role\":\"assistant\",\"content\":[{content}]}}"
        )
    };
    let part =
        |text: &str| format!("{{\"type\":\"output_text\",\"annotations\":[],\"logprobs\":[],\"text\":\"{text}\"}}");
    let response = |status: &str, completed: &str, output: &str, usage: &str| {
        format!(
            "{{\"id\":\"{RESPONSE_ID}\",\"object\":\"response\",\"created_at\":5,\"model\":\"m\",\"status\":\"{status}\",\
             \"completed_at\":{completed},\"error\":null,\"incomplete_details\":null,\"output\":[{output}],\
             \"usage\":{usage},\"store\":false}}"
        )
    };
    let begun = response("in_progress", "null", "", "null");
    let usage = "{\"input_tokens\":7,\"input_tokens_details\":{\"cached_tokens\":4,\"cache_write_tokens\":0},\"output_tokens\":2,\
        \"output_tokens_details\":{\"reasoning_tokens\":0},\"total_tokens\":9}";
    let done = message("completed", &part("Hé\\\"!"));
    let expected: String = [
        ("response.created", format!("\"response\":{begun}")),
        ("response.in_progress", format!("\"response\":{begun}")),
        ("response.output_item.added", format!("\"output_index\":0,\"item\":{}", message("in_progress", ""))),
        ("response.content_part.added", format!("{place},\"part\":{}", part(""))),
        ("response.output_text.delta", format!("{place},\"delta\":\"Hé\\\"\",\"logprobs\":[]")),
        ("response.output_text.delta", format!("{place},\"delta\":\"!\",\"logprobs\":[]")),
        ("response.output_text.done", format!("{place},\"text\":\"Hé\\\"!\",\"logprobs\":[]")),
        ("response.content_part.done", format!("{place},\"part\":{}", part("Hé\\\"!"))),
        ("response.output_item.done", format!("\"output_index\":0,\"item\":{done}")),
        ("response.completed", format!("\"response\":{}", response("completed", "9", &done, usage))),
    ]
    .iter()
    .enumerate()
    .map(|(at, (name, rest))| {
        format!("event: {name}\ndata: {{\"type\":\"{name}\",\"sequence_number\":{at},{rest}}}\n\n")
    })
    .collect();
    assert_eq!(str::from_utf8(&got).unwrap(), expected);
    assert_eq!(events(&got).len(), 10);
    let chunked = stream(Framing::Chunked, &steps, None).wire;
    assert!(chunked.ends_with(b"\n\n\r\n0\r\n\r\n") && !chunked.windows(6).any(|word| word == b"[DONE]"));
}

fn whole(text: &str, calls: &[CallReply<'_>], finish: FinishReason, logprobs: Option<&Logprobs>) -> Value {
    let head = head();
    let call_of = |index: usize| calls.get(index).copied();
    let answer = ResponseAnswer {
        text,
        call_of: &call_of,
        logprobs,
        piece_of: &|_| b"a",
        finish: Some(finish),
        usage: USAGE,
        completed_s: 9,
    };
    let (mut body, mut out) = (ResponseBody::new(&head, &answer), Vec::new());
    loop {
        let start = out.len();
        let done = body.write_piece(&mut out);
        assert!(out.len() - start < 128 << 10, "a piece has {} bytes", out.len() - start);
        if done {
            return serde_json::from_slice(&out).unwrap();
        }
    }
}

#[test]
fn calls_follow_the_text_or_stand_in_its_place() {
    let call = |id, arguments, is_complete| CallReply { id, name: "f", arguments, is_complete };
    let begun = [call(1, "{\"a\":", false)];
    let second = [call(1, "{\"a\":1}", true), call(2, "", false)];
    let all = [call(1, "{\"a\":1}", true), call(2, "{", false)];
    for text in ["", "Well: "] {
        let cut = Some(FinishReason::Length);
        let steps: [Step<'_>; 4] = [(text, &[], None), ("", &begun, None), ("", &second, None), ("", &all, cut)];
        let events = events(&stream(Framing::UntilClose, &steps, None).wire);
        let names: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
        let message = [
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
        ];
        let (delta, done) = ("response.function_call_arguments.delta", "response.function_call_arguments.done");
        let first = ["response.output_item.added", delta, delta, done, "response.output_item.done"];
        let second = ["response.output_item.added", delta, done, "response.output_item.done"];
        let expected = [
            &["response.created", "response.in_progress"][..],
            if text.is_empty() { &[] } else { &message },
            &first,
            &second,
            &["response.incomplete"],
        ];
        assert_eq!(names, expected.concat());
        let offset = usize::from(!text.is_empty());
        let (last, calls) = (events.last().unwrap(), &events[2 + 6 * offset..]);
        assert_eq!(calls[0]["item"]["status"], "in_progress");
        assert_eq!((&calls[0]["item"]["arguments"], &calls[0]["output_index"]), (&json!(""), &json!(offset)));
        assert_eq!((&calls[3]["arguments"], &calls[3]["name"]), (&json!("{\"a\":1}"), &json!("f")));
        assert_eq!((&calls[3]["item_id"], &calls[3]["output_index"]), (&calls[0]["item"]["id"], &json!(offset)));
        let item = |id: u128, arguments: &str, status: &str| {
            json!({"type": "function_call", "id": format!("fc_{id:032x}"), "call_id": format!("call_{id:032x}"),
                "status": status, "name": "f", "arguments": arguments})
        };
        assert_eq!(calls[4]["item"], item(1, "{\"a\":1}", "completed"));
        assert_eq!(calls[8]["item"], item(2, "{", "incomplete"));
        assert_eq!(last["response"], whole(text, &all, FinishReason::Length, None));
        let output = last["response"]["output"].as_array().unwrap();
        assert_eq!((&output[offset], output.len()), (&calls[4]["item"], 2 + offset));
        if offset == 1 {
            assert_eq!((&output[0]["status"], &output[0]["content"][0]["text"]), (&json!("completed"), &json!(text)));
        }
        assert_eq!(last["response"]["incomplete_details"], json!({"reason": "max_output_tokens"}));
    }
}

#[test]
fn an_answer_of_nothing_is_a_message_without_text() {
    let response = whole("", &[], FinishReason::Stop, None);
    assert_eq!(response["output"][0]["content"][0]["text"], "");
    let steps: [Step<'_>; 1] = [("", &[], Some(FinishReason::Length))];
    let events = events(&stream(Framing::UntilClose, &steps, None).wire);
    assert_eq!(events.len(), 8);
    assert_eq!(events[7]["type"], "response.incomplete");
    assert_eq!(events[7]["response"]["output"], json!([events[6]["item"]]));
    assert_eq!(events[6]["item"]["status"], "incomplete");
}

#[test]
fn long_answers_come_in_pieces() {
    let mut logprobs = Logprobs::default();
    let top: Vec<(u32, f32)> = (0..20).map(|token| (token * 2, -0.5 * token as f32)).collect();
    (0..100).for_each(|_| logprobs.push(0, -1.5, &top));
    let text = "\u{1}\u{1f600}".repeat(5_000);
    let steps: [Step<'_>; 2] = [("a", &[], None), (&text, &[], Some(FinishReason::Stop))];
    let Streamed { wire, most } = stream(Framing::UntilClose, &steps, Some(&logprobs));
    let events = events(&wire);
    // One delta is as long as what came at once; else nothing is.
    let longest_delta = events.iter().filter_map(|event| event["delta"].as_str()).map(str::len).max().unwrap();
    assert!(most < 2 * longest_delta + (128 << 10), "{most}");
    let text = format!("a{text}");
    let last = &events.last().unwrap()["response"];
    let deltas: Vec<&Value> = events.iter().filter(|event| event["type"] == "response.output_text.delta").collect();
    let streamed: String = deltas.iter().map(|event| event["delta"].as_str().unwrap()).collect();
    let tokens: Vec<&Value> = deltas.iter().flat_map(|event| event["logprobs"].as_array().unwrap()).collect();
    assert!(streamed == text && deltas.len() > 4);
    let part = &last["output"][0]["content"][0];
    assert_eq!(tokens, part["logprobs"].as_array().unwrap().iter().collect::<Vec<_>>());
    assert!(tokens.len() == 100 && tokens[0]["top_logprobs"].as_array().unwrap().len() == 20);
    assert!(part["text"] == text.as_str() && *last == whole(&text, &[], FinishReason::Stop, Some(&logprobs)));
    let done = events.iter().find(|event| event["type"] == "response.output_text.done").unwrap();
    assert!(done["text"] == text.as_str() && done["logprobs"] == part["logprobs"]);
}

#[test]
fn a_failure_ends_the_stream_with_a_numbered_event() {
    let error = ApiError::internal("it \"broke\"");
    for begun in [false, true] {
        let mut stream = ResponseStream::new(Framing::UntilClose, head());
        let mut wire = Vec::new();
        let none = |_: usize| None;
        let answer = ResponseAnswer {
            text: "",
            call_of: &none,
            logprobs: None,
            piece_of: &|_| b"",
            finish: None,
            usage: Usage::default(),
            completed_s: 0,
        };
        let mut text = if begun { "a".to_owned() } else { String::new() };
        while begun && stream.advance(&mut wire, &mut text, &answer) {}
        let mut last_words = wire.clone();
        stream.error(&mut last_words, &error);
        let mut words = events(&last_words);
        let word = words.pop().unwrap();
        assert_eq!((&word["type"], &word["code"]), (&json!("error"), &json!("INTERNAL_ERROR")));
        assert_eq!((&word["message"], &word["param"]), (&json!("it \"broke\""), &Value::Null));
        stream.fail(&mut wire, &error);
        assert!(stream.is_over());
        let events = events(&wire);
        assert_eq!(events[0]["type"], "response.created");
        assert_eq!(events.len(), if begun { 6 } else { 2 });
        let last = events.last().unwrap();
        assert_eq!((&last["type"], &last["response"]["status"]), (&json!("response.failed"), &json!("failed")));
        assert_eq!(last["response"]["error"], json!({"code": "server_error", "message": "it \"broke\""}));
        assert_eq!((&last["response"]["output"], &last["response"]["usage"]), (&json!([]), &Value::Null));
    }
}
