//! Answers that must look like something: JSON of a schema, a regular expression, one of several, a grammar.

use serde_json::{Value, json};

use crate::clients::streamed_text;
use crate::server::{MODEL, Server};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn chat(max_tokens: u32, more: &Value) -> Value {
    let messages = json!([{"role": "user", "content": "Tell me about a fox."}]);
    let mut body = json!({"model": MODEL, "messages": messages, "max_tokens": max_tokens, "temperature": 1});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn schema(schema: &Value) -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "answer", "strict": true, "schema": schema}})
}

fn texts(answer: &Value) -> Vec<(String, String)> {
    let choices = answer["choices"].as_array().unwrap();
    let text = |choice: &Value| match &choice["text"] {
        Value::String(text) => text.clone(),
        _ => choice["message"]["content"].as_str().unwrap().to_owned(),
    };
    choices.iter().map(|choice| (text(choice), choice["finish_reason"].as_str().unwrap().to_owned())).collect()
}

fn fox() -> Value {
    json!({
        "type": "object",
        "properties": {
            "colour": {"enum": ["red", "grey", "white"]},
            "age": {"type": "integer", "minimum": 0, "maximum": 15},
            "weight": {"type": "number", "minimum": 0, "maximum": 9},
            "code": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{2}$"},
            "cubs": {"type": "array", "maxItems": 2, "items": {"type": "object", "properties": {
                "name": {"type": "string", "maxLength": 8}}, "required": ["name"], "additionalProperties": false}},
        },
        "required": ["colour", "age", "weight", "code", "cubs"],
        "additionalProperties": false,
    })
}

fn assert_is_fox(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys.len(), 5, "{text}");
    assert!(["red", "grey", "white"].contains(&value["colour"].as_str().unwrap()), "{text}");
    assert!(value["age"].as_f64().is_some_and(|age| age.fract() == 0.0 && (0.0..=15.0).contains(&age)), "{text}");
    assert!((0.0..=9.0).contains(&value["weight"].as_f64().unwrap()), "{text}");
    let code = value["code"].as_str().unwrap().as_bytes();
    let right = code.len() == 4 && code[..2].iter().all(u8::is_ascii_uppercase);
    assert!(right && code[2..].iter().all(u8::is_ascii_digit), "{text}");
    let cubs = value["cubs"].as_array().unwrap();
    let short = |cub: &Value| cub.as_object().unwrap().len() == 1 && cub["name"].as_str().unwrap().chars().count() <= 8;
    assert!(cubs.len() <= 2 && cubs.iter().all(short), "{text}");
}

#[test]
fn json_of_a_schema_comes_whole_and_streamed_and_alike() {
    let server = Server::start(&[]);
    let mut complete = 0;
    for seed in 0..6 {
        let more = json!({"response_format": schema(&fox()), "n": 4, "seed": 100 * seed, "logprobs": seed == 3});
        let whole = server.ask(CHAT, &chat(400, &more));
        for (text, finish) in texts(&whole) {
            if finish == "stop" {
                assert_is_fox(&text);
                complete += 1;
            } else {
                assert!(text.starts_with('{'), "{text}");
            }
        }
        let mut streaming = chat(400, &more);
        streaming["stream"] = json!(true);
        let chunks = server.post(CHAT, &streaming.to_string()).chunks();
        for (index, (text, _)) in (0..).zip(texts(&whole)) {
            assert_eq!(streamed_text(&chunks, index), text);
        }
        if seed == 3 {
            let entries = whole["choices"][0]["logprobs"]["content"].as_array().unwrap();
            let joined: String = entries.iter().map(|entry| entry["token"].as_str().unwrap()).collect();
            assert_eq!(joined, texts(&whole)[0].0);
            assert!(entries.iter().all(|entry| entry["logprob"].as_f64().unwrap() <= 0.0));
        }
    }
    assert!(complete >= 20, "{complete} of 24 answers came to their end");
    let objects = server.ask(CHAT, &chat(300, &json!({"response_format": {"type": "json_object"}, "n": 4, "seed": 1})));
    for (text, finish) in texts(&objects) {
        let parsed = serde_json::from_str::<Value>(&text);
        assert!(text.starts_with('{') && (finish == "length" || parsed.unwrap().is_object()), "{text}");
    }
}

#[test]
fn patterns_choices_and_grammars_end_where_they_are_complete() {
    let server = Server::start(&[]);
    let ask = |path: &str, more: Value| {
        let mut body = chat(60, &more);
        body["n"] = json!(6);
        if path == COMPLETIONS {
            body.as_object_mut().unwrap().remove("messages");
            body["prompt"] = json!("Once upon a time");
        }
        server.ask(path, &body)
    };
    for path in [CHAT, COMPLETIONS] {
        for (text, finish) in texts(&ask(path, json!({"choice": ["the fox", "the hen", "nobody"], "seed": 3}))) {
            assert!(["the fox", "the hen", "nobody"].contains(&&*text) && finish == "stop", "{text} {finish}");
        }
        for (text, finish) in texts(&ask(path, json!({"regex": "[ab]{3}-[0-9]{2}", "seed": 4}))) {
            let bytes = text.as_bytes();
            let right = bytes.len() == 6 && bytes[..3].iter().all(|byte| b"ab".contains(byte)) && bytes[3] == b'-';
            assert!(right && bytes[4..].iter().all(u8::is_ascii_digit) && finish == "stop", "{text} {finish}");
        }
        let grammar = "start: animal (\", \" animal)~0..2 \".\"\nanimal: \"fox\" | \"hen\"\n";
        let gbnf = "root ::= animal (\", \" animal){0,2} \".\" # as llama.cpp has it\nanimal ::= \"fox\" | \"hen\"\n";
        for (text, finish) in texts(&ask(path, json!({"grammar": gbnf, "seed": 5, "temperature": 2}))) {
            let animals: Vec<&str> = text.strip_suffix('.').unwrap().split(", ").collect();
            assert!(animals.iter().all(|animal| ["fox", "hen"].contains(animal)) && animals.len() <= 3, "{text}");
            assert_eq!(finish, "stop");
        }
        for (text, finish) in texts(&ask(path, json!({"grammar": grammar, "seed": 5, "temperature": 2}))) {
            let animals: Vec<&str> = text.strip_suffix('.').unwrap().split(", ").collect();
            assert!(animals.iter().all(|animal| ["fox", "hen"].contains(animal)) && animals.len() <= 3, "{text}");
            assert_eq!(finish, "stop");
        }
    }
    let one = server.ask(CHAT, &chat(60, &json!({"choice": ["the fox"], "temperature": 0})));
    let tokens = server.ask("/v1/tokenize", &json!({"content": "the fox"}))["tokens"].as_array().unwrap().len() as u64;
    assert!((1..=7).contains(&one["usage"]["completion_tokens"].as_u64().unwrap()) && tokens > 0, "{one}");
    // Cut short by its limit or by a stop string, all the same.
    let cut = server.ask(CHAT, &chat(2, &json!({"regex": "a{200}"})));
    let (text, finish) = &texts(&cut)[0];
    assert!(!text.is_empty() && text.bytes().all(|byte| byte == b'a') && finish == "length", "{text}");
    let stopped = server.ask(CHAT, &chat(60, &json!({"regex": "ab{5}cd", "stop": ["bc"]})));
    assert_eq!(texts(&stopped)[0], ("abbbb".to_owned(), "stop".to_owned()));
}

#[test]
fn what_can_t_be_kept_to_is_refused_and_harms_nobody() {
    let server = Server::start(&[]);
    for (more, param) in [
        (json!({"regex": "a("}), "regex"),
        (json!({"grammar": "start: nothing"}), "grammar"),
        (json!({"grammar": "root ::= \"a\"\nb ::= (\"c\""}), "grammar"),
        (json!({"grammar": "root ::= \"a\"\nstart: \"b\""}), "grammar"),
        (json!({"response_format": schema(&json!({"type": "strnig"}))}), "response_format"),
        (json!({"response_format": schema(&json!({"$ref": "#"}))}), "response_format"),
        (json!({"regex": format!("{}a{}", "(".repeat(30_000), ")".repeat(30_000))}), "regex"),
    ] {
        for stream in [false, true] {
            let mut body = chat(400, &more);
            body["stream"] = json!(stream);
            let answer = server.post(CHAT, &body.to_string());
            let error = &answer.json()["error"];
            assert_eq!((answer.status, &error["param"]), (400, &json!(param)), "{error}");
            assert!(error["message"].as_str().unwrap().len() < 500, "{error}");
        }
    }
    // Compiled, but behind its first bracket more may follow than is looked at.
    let properties: serde_json::Map<String, Value> =
        (0..2500).map(|i| (format!("name number {i}"), json!({"type": "integer"}))).collect();
    let wide = json!({"response_format": schema(&json!({"type": "object", "properties": properties}))});
    for stream in [false, true] {
        let mut body = chat(9, &wide);
        body["stream"] = json!(stream);
        let answer = server.post(CHAT, &body.to_string());
        assert!(answer.status == 400 && answer.text().contains("became too complex"), "{}", answer.text());
    }
    let answer = server.ask(CHAT, &chat(30, &json!({"choice": ["yes"]})));
    assert_eq!(texts(&answer)[0].0, "yes");
}

#[test]
fn constrained_and_free_answers_are_the_same_alone_and_together() {
    let server = Server::start(&[]);
    let free =
        |seed: u64| chat(48, &json!({"seed": seed, "temperature": if seed.is_multiple_of(2) { 1.0 } else { 0.0 }}));
    let bound = |seed: u64| match seed % 3 {
        0 => chat(200, &json!({"seed": seed, "response_format": schema(&fox())})),
        1 => chat(200, &json!({"seed": seed, "regex": "([a-z]{1,8} ){3,9}end", "presence_penalty": 0.5})),
        _ => {
            chat(200, &json!({"seed": seed, "choice": ["the fox", "the hen", "the fox and the hen"], "temperature": 0}))
        }
    };
    let bodies: Vec<Value> = (0..16).map(free).chain((0..6).map(bound)).collect();
    let choices = |body: &Value| server.ask(CHAT, body)["choices"].clone();
    let alone: Vec<Value> = bodies.iter().map(choices).collect();
    let together: Vec<Value> = std::thread::scope(|scope| {
        let threads: Vec<_> = bodies.iter().map(|body| scope.spawn(|| choices(body))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
}
