//! The Responses API: the answers of a chat in another form, whole and as events.

use serde_json::{Value, json};

use crate::clients::Answer;
use crate::server::{MODEL, PATIENCE, Server, becomes_true};

const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";

fn with(mut body: Value, more: &Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// The data of the events of a stream, whose names and numbers must be right.
fn events(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let events = answer.events().into_iter().enumerate().map(|(at, event)| {
        let data: Value = serde_json::from_str(&event.data).unwrap();
        assert_eq!((&data["type"], &data["sequence_number"]), (&json!(event.name), &json!(at)));
        data
    });
    events.collect()
}

/// A response without what differs from one to the next: ids, times, and what was found in the cache.
fn plain(response: &Value) -> Value {
    fn clear(value: &mut Value) {
        if let Some(fields) = value.as_object_mut() {
            for name in ["id", "call_id", "created_at", "completed_at", "cached_tokens"] {
                fields.remove(name);
            }
            fields.values_mut().for_each(clear);
        }
        value.as_array_mut().into_iter().flatten().for_each(clear);
    }
    let mut response = response.clone();
    clear(&mut response);
    response
}

#[test]
fn a_response_says_what_a_chat_says_whole_and_streamed() {
    let server = Server::start(&[]);
    let (system, said) = ("You tell stories.", "Tell me a story about a fox.");
    let more = json!({"temperature": 1, "seed": 5, "stop": ["zzz"]});
    let chat = json!({"model": MODEL, "max_tokens": 24, "logprobs": true, "top_logprobs": 2,
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": said}]});
    let chat = server.ask(CHAT, &with(chat, &more));
    let asked = json!({"model": MODEL, "max_output_tokens": 24, "instructions": system,
        "input": [{"role": "user", "content": [{"type": "input_text", "text": said}]}], "metadata": {"a": "b"},
        "include": ["message.output_text.logprobs"], "top_logprobs": 2});
    let asked = with(asked, &more);
    let whole = server.ask(RESPONSES, &asked);
    let choice = &chat["choices"][0];
    let part = &whole["output"][0]["content"][0];
    assert_eq!((&part["text"], &part["logprobs"]), (&choice["message"]["content"], &choice["logprobs"]["content"]));
    assert_eq!((&choice["finish_reason"], &whole["status"]), (&json!("length"), &json!("incomplete")));
    assert_eq!(whole["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!((&whole["metadata"], &whole["store"]), (&json!({"a": "b"}), &json!(false)));
    for (ours, theirs) in
        [("input_tokens", "prompt_tokens"), ("output_tokens", "completion_tokens"), ("total_tokens", "total_tokens")]
    {
        assert_eq!(whole["usage"][ours], chat["usage"][theirs]);
    }
    let streamed = events(&server.post(RESPONSES, &with(asked, &json!({"stream": true})).to_string()));
    let last = streamed.last().unwrap();
    assert_eq!(last["type"], "response.incomplete");
    assert_eq!(plain(&last["response"]), plain(&whole));
    let deltas: Vec<&Value> = streamed.iter().filter(|event| event["type"] == "response.output_text.delta").collect();
    assert!(deltas.len() > 20, "tokens come one by one: {}", deltas.len());
    let text: String = deltas.iter().map(|event| event["delta"].as_str().unwrap()).collect();
    assert_eq!(part["text"], text);
    let logprobs: Vec<&Value> = deltas.iter().flat_map(|event| event["logprobs"].as_array().unwrap()).collect();
    assert_eq!(logprobs, part["logprobs"].as_array().unwrap().iter().collect::<Vec<_>>());
    // One that ends by itself, by the words of a constraint.
    let ended = server.ask(RESPONSES, &json!({"input": said, "choice": ["yes", "no"]}));
    assert!(["yes", "no"].map(Value::from).contains(&ended["output"][0]["content"][0]["text"]), "{ended}");
    assert!(
        ended["status"] == "completed" && ended["completed_at"].as_u64() >= ended["created_at"].as_u64(),
        "{ended}"
    );
    let format = json!({"type": "json_schema", "name": "n", "schema": {"enum": [{"a": 1}]}});
    let ended = server.ask(RESPONSES, &json!({"input": said, "text": {"format": format}}));
    let text = ended["output"][0]["content"][0]["text"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(text).unwrap(), json!({"a": 1}));
    assert_eq!(ended["text"]["format"], format);
}

#[test]
fn calls_are_items_and_come_back_with_what_they_gave() {
    let server = Server::start(&[]);
    let parameters = json!({"type": "object", "properties": {"eggs": {"enum": [1, 2]}}, "required": ["eggs"],
        "additionalProperties": false});
    let said = json!([{"role": "user", "content": "Tell me about a hen."}]);
    let more = json!({"model": MODEL, "temperature": 1, "seed": 3, "tool_choice": "required"});
    let function = json!({"name": "hen", "description": "It's one.", "parameters": parameters});
    let chat = json!({"messages": said, "max_tokens": 100, "tools": [{"type": "function", "function": function}]});
    let chat = server.ask(CHAT, &with(chat, &more));
    let tools = json!([with(json!({"type": "function"}), &function)]);
    let asked = with(json!({"input": said, "max_output_tokens": 100, "tools": tools}), &more);
    let whole = server.ask(RESPONSES, &asked);
    let calls = chat["choices"][0]["message"]["tool_calls"].as_array().unwrap();
    let items = whole["output"].as_array().unwrap();
    assert_eq!(calls.len(), items.len());
    for (call, item) in calls.iter().zip(items) {
        assert_eq!((&item["type"], &item["name"]), (&json!("function_call"), &call["function"]["name"]));
        assert_eq!(item["arguments"], call["function"]["arguments"]);
    }
    assert_eq!(whole["tools"], tools);
    let streamed = events(&server.post(RESPONSES, &with(asked.clone(), &json!({"stream": true})).to_string()));
    let last = &streamed.last().unwrap()["response"];
    assert_eq!(plain(last), plain(&whole));
    for (index, item) in last["output"].as_array().unwrap().iter().enumerate() {
        let of = |kind: &str| {
            let kind = format!("response.function_call_arguments.{kind}");
            streamed.iter().filter(move |event| event["type"] == kind && event["output_index"] == index)
        };
        let deltas: String = of("delta").map(|event| event["delta"].as_str().unwrap()).collect();
        assert_eq!((&item["arguments"], of("done").count()), (&json!(deltas), 1));
        assert!(of("done").all(|event| event["item_id"] == item["id"] && event["arguments"] == item["arguments"]));
    }
    // The output goes on as it came.
    let (mut input, mut messages) = (said.as_array().unwrap().clone(), said.as_array().unwrap().clone());
    input.extend(items.iter().cloned());
    messages.push(chat["choices"][0]["message"].clone());
    for (item, call) in items.iter().zip(calls) {
        input.push(json!({"type": "function_call_output", "call_id": item["call_id"], "output": "two"}));
        messages.push(json!({"role": "tool", "tool_call_id": call["id"], "content": "two"}));
    }
    let none = json!({"tool_choice": "none", "temperature": 0});
    let next = server.ask(RESPONSES, &with(with(asked, &none), &json!({"input": input, "max_output_tokens": 12})));
    let chat = with(json!({"model": MODEL, "messages": messages, "max_tokens": 12}), &none);
    assert_eq!(next["output"][0]["content"][0]["text"], server.ask(CHAT, &chat)["choices"][0]["message"]["content"]);
}

#[test]
fn what_is_wrong_is_refused_and_who_leaves_costs_nothing() {
    let server = Server::start(&[]);
    let huge = json!({"input": "fox ".repeat(20_000)}).to_string();
    let escaped = json!({"input": "a", "user": "\u{7f}".repeat(200_000)}).to_string();
    let parameters = json!({"type": "object", "properties": {"x": {"type": "string", "pattern": "("}}});
    let tool = json!({"type": "function", "name": "f", "parameters": parameters});
    let broken_tool = json!({"input": "a", "tools": [tool], "tool_choice": "required"}).to_string();
    let wide = json!({"input": vec![json!({"role": "user", "content": "fox ".repeat(50)}); 1000]}).to_string();
    for (body, param) in [
        ("{}", "input"),
        (r#"{"input":[]}"#, "input"),
        (r#"{"input":{"role":"user"}}"#, "input"),
        (r#"{"input":[{"type":"function_call_output","call_id":"c","output":"a"}]}"#, "input[0].call_id"),
        (r#"{"input":"a","previous_response_id":"resp_1"}"#, "previous_response_id"),
        (r#"{"input":"a","stream":true,"background":true}"#, "background"),
        (r#"{"input":"a","stream":true,"regex":"("}"#, "regex"),
        (&escaped, "user"),
        (&broken_tool, "tools[0].parameters"),
        (&huge, "input"),
        (&wide, "input"),
    ] {
        let answer = server.post(RESPONSES, body);
        assert_eq!((answer.status, answer.json()["error"]["param"].as_str()), (400, Some(param)), "{}", answer.text());
    }
    for method in ["GET", "DELETE"] {
        let answer = server.connect().request(method, "/v1/responses/resp_1", "", "");
        assert!(answer.status == 404 && answer.text().contains("no response is kept"), "{}", answer.text());
    }
    let answer = server.post("/v1/responses/compact", r#"{"input":"a"}"#);
    assert!(answer.status == 404 && !answer.text().contains("no response is kept"), "{}", answer.text());
    let mut client = server.connect();
    client.send_post(RESPONSES, br#"{"input":"a","stream":true,"ignore_eos":true}"#);
    let mut begun = Vec::new();
    assert!(client.head().status == 200 && client.chunk(&mut begun));
    assert!(begun.starts_with(b"event: response.created\n"), "{}", begun.escape_ascii());
    drop(client);
    assert!(becomes_true(PATIENCE, || server.cancelled() == 1.0) && server.becomes_quiet());
}
