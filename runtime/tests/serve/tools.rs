//! Calls of tools, whole and streamed, forced and free.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::clients::streamed_text;
use crate::models::Folder;
use crate::server::{MODEL, Server};

const CHAT: &str = "/v1/chat/completions";

fn tool(name: &str, parameters: &Value) -> Value {
    json!({"type": "function", "function": {"name": name, "description": "It's one.", "parameters": parameters}})
}

fn fox() -> Value {
    json!({"type": "object", "properties": {"colour": {"enum": ["red", "grey \"}<tool_call>"]}, "tame": {"type": "boolean"}},
        "required": ["colour", "tame"], "additionalProperties": false})
}

fn hen() -> Value {
    json!({"type": "object", "properties": {"eggs": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["eggs"],
        "additionalProperties": false})
}

fn chat(more: &Value) -> Value {
    let messages = json!([{"role": "user", "content": "Tell me about a fox."}]);
    let tools = json!([tool("fox", &fox()), tool("hen", &hen())]);
    let mut body = json!({"model": MODEL, "messages": messages, "tools": tools, "max_tokens": 200, "temperature": 1});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn named(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name}})
}

#[track_caller]
fn assert_fits(call: &Value) {
    let arguments = call["function"]["arguments"].as_str().unwrap();
    let value: Value = serde_json::from_str(arguments).unwrap_or_else(|error| panic!("{error}: {call}"));
    let right = match call["function"]["name"].as_str().unwrap() {
        "fox" => {
            value["tame"].is_boolean() && ["red", "grey \"}<tool_call>"].contains(&value["colour"].as_str().unwrap())
        }
        "hen" => value["eggs"].as_f64().is_some_and(|eggs| (0.0..=9.0).contains(&eggs)),
        _ => false,
    };
    assert!(right && call["type"] == "function", "{call}");
}

/// The message of a choice as its deltas make it, calls without their ids, and why it ended.
fn streamed(chunks: &[Value], index: usize) -> Value {
    let (mut calls, mut finish) = (Vec::<Value>::new(), Value::Null);
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
    for choice in choices.filter(|choice| choice["index"] == index) {
        assert!(finish.is_null(), "a delta after the end: {choice}");
        finish = choice["finish_reason"].clone();
        for delta in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let at = usize::try_from(delta["index"].as_u64().unwrap()).unwrap();
            let function = &delta["function"];
            if at == calls.len() {
                assert!(delta["id"].as_str().unwrap().starts_with("call_") && delta["type"] == "function", "{delta}");
                assert_eq!(function["arguments"], "", "{delta}");
                calls.push(json!({"name": function["name"], "arguments": ""}));
            } else {
                assert!(delta.get("id").is_none() && function.get("name").is_none(), "{delta}");
                assert_eq!(at + 1, calls.len(), "calls come one after the other: {delta}");
                let so_far = calls[at]["arguments"].as_str().unwrap().to_owned();
                calls[at]["arguments"] = (so_far + function["arguments"].as_str().unwrap()).into();
            }
        }
    }
    json!({"content": streamed_text(chunks, index as u64), "calls": calls, "finish": finish})
}

/// The same of a whole answer.
fn whole(choice: &Value) -> Value {
    let calls = choice["message"]["tool_calls"].as_array().into_iter().flatten();
    let calls: Vec<Value> = calls.map(|call| call["function"].clone()).collect();
    json!({"content": choice["message"]["content"].as_str().unwrap_or_default(), "calls": calls, "finish": choice["finish_reason"]})
}

fn ids(answer: &Value) -> Vec<String> {
    let choices = answer["choices"].as_array().unwrap().iter();
    let calls = choices.flat_map(|choice| choice["message"]["tool_calls"].as_array().into_iter().flatten());
    calls.map(|call| call["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn forced_calls_fit_their_schemas_whole_and_streamed_and_alike() {
    let server = Server::start(&[]);
    let (mut all_ids, mut id_count, mut complete) = (HashSet::new(), 0, 0);
    for (choice, parallel) in
        [(named("fox"), true), (named("hen"), false), (json!("required"), false), (json!("required"), true)]
    {
        let more = json!({"tool_choice": choice, "parallel_tool_calls": parallel, "n": 2, "seed": 0, "stop": ["e"]});
        let answer = server.ask(CHAT, &chat(&more));
        let answers = answer["choices"].as_array().unwrap();
        for choice in answers {
            assert!(choice["message"]["content"].is_null() && choice["logprobs"].is_null(), "{choice}");
            let calls = choice["message"]["tool_calls"].as_array().unwrap();
            let is_cut = choice["finish_reason"] == "length";
            assert!(is_cut || choice["finish_reason"] == "tool_calls", "{choice}");
            calls[..calls.len() - usize::from(is_cut)].iter().for_each(assert_fits);
            assert!(calls.len() == 1 || parallel && more["tool_choice"] == "required", "{choice}");
            if let Some(name) = more["tool_choice"]["function"]["name"].as_str() {
                assert_eq!(calls[0]["function"]["name"], name);
            }
            complete += usize::from(!is_cut);
        }
        let tokens = answer["usage"]["completion_tokens"].as_u64().unwrap();
        assert!((answers.len() as u64..=2 * 200).contains(&tokens), "{answer}");
        let ids = ids(&answer);
        assert!(ids.iter().all(|id| id.starts_with("call_") && id.len() <= 40), "{ids:?}");
        id_count += ids.len();
        all_ids.extend(ids);
        let mut streaming = chat(&more);
        (streaming["stream"], streaming["stream_options"]) = (json!(true), json!({"include_usage": true}));
        let mut chunks = server.post(CHAT, &streaming.to_string()).chunks();
        let mut usage = chunks.pop().unwrap()["usage"].clone();
        // The prompt may have been found in the cache meanwhile.
        usage["prompt_tokens_details"] = answer["usage"]["prompt_tokens_details"].clone();
        assert_eq!(usage, answer["usage"]);
        for (index, choice) in answers.iter().enumerate() {
            assert_eq!(streamed(&chunks, index), whole(choice), "{more}");
        }
        assert!(chunks.iter().all(|chunk| chunk["choices"][0]["delta"]["content"].is_null()));
    }
    assert_eq!(all_ids.len(), id_count, "ids are distinct");
    assert!(complete >= 5, "{complete} of 8 answers came to their end");
}

/// A model whose vocabulary has the marker as one token, and the id of that token.
fn with_marker(folder: &Folder, name: &str) -> u32 {
    let path = folder.synth(name, 5);
    let mut bytes = std::fs::read(&path).unwrap();
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    // Two tokens that nothing else uses, in as many bytes.
    let fillers = [text("t000300"), text("t000301")].concat();
    let places: Vec<usize> =
        bytes.windows(fillers.len()).enumerate().filter(|(_, w)| *w == fillers).map(|(at, _)| at).collect();
    let [at] = places[..] else { panic!("{} places have them", places.len()) };
    let marker = [text("<tool_call>"), text("t01")].concat();
    bytes[at..at + marker.len()].copy_from_slice(&marker);
    std::fs::write(&path, bytes).unwrap();
    300
}

#[test]
fn a_model_that_begins_a_call_is_held_to_it() {
    let folder = Folder::new();
    let marker = with_marker(&folder, "a.gguf");
    let server = folder.serve("a.gguf", &[]);
    // Its context holds no more than this, byte by byte.
    let ask = |more: Value| {
        let tools = json!([{"type": "function", "function": {"name": "f"}}]);
        let messages = json!([{"role": "user", "content": "Hi"}]);
        let mut body = json!({"model": "m", "messages": messages, "tools": tools, "max_tokens": 100,
            "logit_bias": {marker.to_string(): 100}});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let (mut complete, mut most) = (0, 0);
    for (seed, parallel) in [(1, false), (2, false), (3, false), (4, true)] {
        let more = json!({"parallel_tool_calls": parallel, "seed": seed, "n": 2});
        let answer = server.ask(CHAT, &ask(more.clone()));
        let mut streaming = ask(more);
        streaming["stream"] = json!(true);
        let chunks = server.post(CHAT, &streaming.to_string()).chunks();
        assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
        for (index, choice) in answer["choices"].as_array().unwrap().iter().enumerate() {
            assert_eq!(streamed(&chunks, index), whole(choice));
            assert_eq!(streamed_text(&chunks, index as u64), "", "nothing of a call is text");
            let calls = choice["message"]["tool_calls"].as_array().unwrap();
            let is_cut = choice["finish_reason"] == "length";
            for call in &calls[..calls.len() - usize::from(is_cut)] {
                let arguments = call["function"]["arguments"].as_str().unwrap();
                assert!(
                    call["function"]["name"] == "f" && serde_json::from_str::<Value>(arguments).unwrap() == json!({}),
                    "{call}"
                );
            }
            assert!(choice["message"]["content"].is_null() && (parallel || calls.len() == 1), "{choice}");
            complete += usize::from(choice["finish_reason"] == "tool_calls");
            most = most.max(calls.len());
        }
    }
    assert!(complete >= 4 && most > 1, "{complete} of 8 answers came to their end, {most} calls in one");
    // Where the tools may not be called, and where there are none, the same is text.
    for more in [json!({"tool_choice": "none"}), json!({"tools": []})] {
        let mut body = ask(json!({"max_tokens": 3, "temperature": 0}));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = server.ask(CHAT, &body);
        let message = &answer["choices"][0]["message"];
        assert_eq!((&message["content"], message.get("tool_calls")), (&"<tool_call>".repeat(3).into(), None));
    }
}

#[test]
fn free_answers_stay_text_and_know_of_the_tools() {
    let server = Server::start(&[]);
    for more in [
        json!({"max_tokens": 24}),
        json!({"max_tokens": 24, "tool_choice": "auto", "n": 2}),
        json!({"max_tokens": 24, "temperature": 0, "stop": ["."]}),
    ] {
        let answer = server.ask(CHAT, &chat(&more));
        for choice in answer["choices"].as_array().unwrap() {
            let message = choice["message"].as_object().unwrap();
            assert!(message["content"].is_string() && !message.contains_key("tool_calls"), "{choice}");
            assert!(["stop", "length"].contains(&choice["finish_reason"].as_str().unwrap()), "{choice}");
        }
        let mut streaming = chat(&more);
        streaming["seed"] = json!(3);
        let seeded = server.ask(CHAT, &streaming);
        streaming["stream"] = json!(true);
        let chunks = server.post(CHAT, &streaming.to_string()).chunks();
        assert_eq!(streamed(&chunks, 0), whole(&seeded["choices"][0]));
    }
    let prompt_tokens = |body: &Value| server.ask(CHAT, body)["usage"]["prompt_tokens"].as_u64().unwrap();
    let short = |more: Value| {
        let mut body = chat(&json!({"max_tokens": 1}));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        prompt_tokens(&body)
    };
    let (told, untold) = (short(json!({})), short(json!({"tool_choice": "none"})));
    assert!(told > untold + 50 && untold == short(json!({"tools": []})), "{told} {untold}");
    let call =
        json!({"id": "call_1", "type": "function", "function": {"name": "fox", "arguments": "{\"tame\": true}"}});
    let history = json!({"messages": [
        {"role": "user", "content": "Tell me about a fox."},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "It is red."},
    ]});
    assert!(short(history.clone()) > told + 20);
    let mut alone = history;
    (alone["tools"], alone["tool_choice"]) = (json!([]), json!(null));
    assert!(short(alone) > untold + 20);
}

#[test]
fn log_probabilities_are_those_of_the_text_beside_calls() {
    let server = Server::start(&[]);
    let bytes = |told: &Value| -> Vec<u8> {
        let tokens = told["content"].as_array().unwrap().iter();
        tokens.flat_map(|token| serde_json::from_value::<Vec<u8>>(token["bytes"].clone()).unwrap()).collect()
    };
    for tool_choice in [json!("auto"), json!("required"), named("fox")] {
        let more =
            json!({"logprobs": true, "top_logprobs": 2, "tool_choice": tool_choice, "max_tokens": 60, "seed": 1});
        let answer = &server.ask(CHAT, &chat(&more))["choices"][0];
        let content = answer["message"]["content"].as_str().unwrap_or_default();
        assert_eq!(String::from_utf8_lossy(&bytes(&answer["logprobs"])), content, "{answer}");
        assert_eq!(content.is_empty(), tool_choice != "auto", "{answer}");
        let mut streaming = chat(&more);
        streaming["stream"] = json!(true);
        let chunks = server.post(CHAT, &streaming.to_string()).chunks();
        let told = chunks.iter().map(|chunk| &chunk["choices"][0]["logprobs"]).filter(|told| !told.is_null());
        assert_eq!(told.flat_map(bytes).collect::<Vec<u8>>(), bytes(&answer["logprobs"]));
    }
}

#[test]
fn wrong_and_hostile_tools_are_refused_with_their_field_and_harm_nobody() {
    let server = Server::start(&[]);
    let with = |parameters: &Value| json!([tool("fox", &fox()), tool("bad", parameters)]);
    let nine = json!({"anyOf": vec![json!({}); 9]});
    let deep = (0..27).fold(json!({}), |inner, _| json!({"properties": {"a": inner}}));
    let at = "tools[1].function.parameters";
    for (more, param) in [
        (json!({"tools": with(&json!({"type": "strnig"}))}), at),
        (json!({"tools": with(&json!({"type": "array"}))}), at),
        (json!({"tools": with(&json!({"$ref": "#"}))}), at),
        (json!({"tools": with(&json!({"allOf": vec![nine.clone(); 4]}))}), at),
        (json!({"tools": with(&json!({"properties": {"a": {"pattern": "(("}}}))}), at),
        (json!({"tools": [tool("fox", &fox()), tool("fox", &hen())]}), "tools[1].function.name"),
        (json!({"tools": [tool("a fox", &fox())]}), "tools[0].function.name"),
        (json!({"tool_choice": "any"}), "tool_choice"),
        (json!({"tool_choice": named("cow")}), "tool_choice.function.name"),
        (json!({"regex": "a"}), "tools"),
        (json!({"response_format": format_of(&json!({"type": "strnig"}))}), "response_format"),
        (json!({"response_format": format_of(&json!({"allOf": vec![nine.clone(); 4]}))}), "response_format"),
        (json!({"guided_json": {"$ref": "#"}}), "guided_json"),
        (json!({"choice": ["a"]}), "tools"),
        (json!({"ignore_eos": true}), "ignore_eos"),
    ] {
        for stream in [false, true] {
            let mut body = chat(&more);
            body["stream"] = json!(stream);
            let answer = server.post(CHAT, &body.to_string());
            let error = &answer.json()["error"];
            assert_eq!((answer.status, &error["param"]), (400, &json!(param)), "{error}");
            assert!(error["message"].as_str().unwrap().len() < 500, "{error}");
        }
    }
    let nested = json!({"tools": with(&deep), "tool_choice": named("fox")});
    assert_eq!(ids(&server.ask(CHAT, &chat(&nested))).len(), 1, "what is only deep is taken");
    // Compiled, but behind its first bracket more may follow than is looked at.
    let properties: serde_json::Map<String, Value> =
        (0..2500).map(|i| (format!("n{i}"), json!({"type": "integer"}))).collect();
    let wide = tool("wide", &json!({"type": "object", "properties": properties}));
    for stream in [false, true] {
        let call =
            |name: &str| json!({"tools": [tool("fox", &fox()), wide], "tool_choice": named(name), "stream": stream});
        // Too much for the context of this model to be told of, whatever is called.
        let answer = server.post(CHAT, &chat(&call("wide")).to_string());
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!("messages")), "{}", answer.text());
    }
    let answer = server.ask(CHAT, &chat(&json!({"tool_choice": named("fox")})));
    assert_eq!(ids(&answer).len(), 1);
    assert_eq!(server.get("/health/ready").status, 200);
}

fn format_of(schema: &Value) -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}})
}

#[test]
fn an_answer_with_a_format_is_calls_or_keeps_it_whole_and_streamed() {
    let server = Server::start(&[]);
    // Ends soon, whatever is drawn.
    let schema = json!({"type": "object", "properties": {"kind": {"enum": ["<tool_call>", "fox"]}}, "required": ["kind"],
        "additionalProperties": false});
    let first = |token: &str| {
        let tokens = server.ask("/v1/tokenize", &json!({"content": token}))["tokens"].clone();
        tokens[tokens.as_array().unwrap().len() - 1].as_u64().unwrap().to_string()
    };
    let (brace, less) = (first("{"), first("<"));
    for (bias, calls) in [(&brace, false), (&less, true)] {
        for tool_choice in [json!("auto"), json!(null)] {
            let more = json!({"response_format": format_of(&schema), "tool_choice": tool_choice, "n": 2, "seed": 4,
                "parallel_tool_calls": false, "logit_bias": {bias.as_str(): 100}});
            let answer = server.ask(CHAT, &chat(&more));
            let mut streaming = chat(&more);
            streaming["stream"] = json!(true);
            let chunks = server.post(CHAT, &streaming.to_string()).chunks();
            for (index, choice) in answer["choices"].as_array().unwrap().iter().enumerate() {
                assert_eq!(streamed(&chunks, index), whole(choice), "{more}");
                let made = choice["message"]["tool_calls"].as_array();
                if choice["finish_reason"] == "length" {
                    continue;
                }
                if calls {
                    made.unwrap().iter().for_each(assert_fits);
                    assert!(
                        choice["message"]["content"].is_null() && choice["finish_reason"] == "tool_calls",
                        "{choice}"
                    );
                } else {
                    let text = choice["message"]["content"].as_str().unwrap();
                    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
                    assert!(value["kind"] == "<tool_call>" || value["kind"] == "fox", "{value}");
                    assert!(made.is_none() && choice["finish_reason"] == "stop", "{choice}");
                }
            }
        }
    }
    // What must be called is called; what must not, not.
    let forced = json!({"response_format": format_of(&schema), "tool_choice": named("hen"), "seed": 1});
    assert_eq!(ids(&server.ask(CHAT, &chat(&forced))).len(), 1);
    let none = json!({"response_format": format_of(&schema), "tool_choice": "none", "seed": 1});
    let answer = &server.ask(CHAT, &chat(&none))["choices"][0]["message"]["content"];
    assert!(serde_json::from_str::<Value>(answer.as_str().unwrap()).unwrap()["kind"].is_string(), "{answer}");
}

#[test]
fn calls_are_the_same_alone_and_together() {
    let server = Server::start(&[]);
    let body = |seed: u64| match seed % 4 {
        0 => chat(&json!({"seed": seed, "tool_choice": "required"})),
        1 => chat(&json!({"seed": seed, "tool_choice": named("hen")})),
        2 => chat(&json!({"seed": seed, "max_tokens": 40})),
        _ => chat(&json!({"seed": seed, "tools": [], "max_tokens": 40})),
    };
    let bodies: Vec<Value> = (0..8).map(body).collect();
    let answer = |body: &Value| whole(&server.ask(CHAT, body)["choices"][0]);
    let alone: Vec<Value> = bodies.iter().map(answer).collect();
    let together: Vec<Value> = std::thread::scope(|scope| {
        let threads: Vec<_> = bodies.iter().map(|body| scope.spawn(|| answer(body))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
}
