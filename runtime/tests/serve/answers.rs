//! Right requests and what they are answered with.

use serde_json::{Value, json};

use crate::clients::streamed_text;
use crate::server::{MODEL, Server};

fn chat(max_tokens: u32, more: &Value) -> Value {
    let messages = json!([{"role": "user", "content": "Tell me a story about a fox."}]);
    let mut body = json!({"model": MODEL, "messages": messages, "max_tokens": max_tokens, "temperature": 0});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

#[test]
fn a_chat_is_answered_sensibly_and_alike_each_time_and_streamed() {
    let server = Server::start(&[]);
    let answer = server.ask(CHAT, &chat(24, &json!({})));
    let text = content(&answer);
    assert!(text.to_lowercase().contains("fox"), "{text}");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let usage = &answer["usage"];
    assert_eq!(usage["completion_tokens"], 24);
    assert_eq!(
        usage["total_tokens"].as_u64().unwrap(),
        usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap()
    );
    assert_eq!(content(&server.ask(CHAT, &chat(24, &json!({})))), text);

    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    let streamed = server.post(CHAT, &chat(24, &more).to_string());
    let chunks = streamed.chunks();
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert!(chunks.len() > 20, "tokens come one by one: {} chunks", chunks.len());
    assert_eq!(streamed_text(&chunks, 0), text);
    let [.., last_choice, last] = &chunks[..] else { panic!("no chunks") };
    assert_eq!(
        (&last_choice["choices"][0]["delta"], &last_choice["choices"][0]["finish_reason"]),
        (&json!({}), &json!("length"))
    );
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), usage));

    let seeded = json!({"temperature": 2, "seed": 5, "n": 3});
    let whole = server.ask(CHAT, &chat(16, &seeded));
    let mut streaming = chat(16, &seeded);
    streaming["stream"] = json!(true);
    let chunks = server.post(CHAT, &streaming.to_string()).chunks();
    for index in 0..3 {
        let choice = &whole["choices"][index];
        assert_eq!(choice["index"], index);
        assert_eq!(choice["message"]["content"], streamed_text(&chunks, index as u64));
    }
    assert_ne!(whole["choices"][0]["message"], whole["choices"][1]["message"], "choices have seeds of their own");
}

#[test]
fn stop_strings_end_an_answer_and_are_not_shown_even_across_tokens() {
    let server = Server::start(&[]);
    let text = content(&server.ask(CHAT, &chat(24, &json!({})))).to_owned();
    let pieces = server.ask("/v1/tokenize", &json!({"content": text, "with_pieces": true}));
    let first_tokens: String =
        pieces["tokens"].as_array().unwrap()[..4].iter().map(|t| t["piece"].as_str().unwrap()).collect();
    let boundary = first_tokens.len();
    // From inside the fourth token into the fifth.
    let stop = &text[boundary - 2..boundary + 2];
    let expected = &text[..text.find(stop).unwrap()];
    let whole = server.ask(CHAT, &chat(24, &json!({"stop": stop})));
    assert_eq!((content(&whole), &whole["choices"][0]["finish_reason"]), (expected, &json!("stop")));
    let chunks = server.post(CHAT, &chat(24, &json!({"stop": [stop], "stream": true})).to_string()).chunks();
    assert_eq!(streamed_text(&chunks, 0), expected);
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
}

/// The answer as one body; its stream must be the same.
fn both(server: &Server, max_tokens: u32, more: &Value) -> Value {
    let answer = server.ask(CHAT, &chat(max_tokens, more));
    let mut body = chat(max_tokens, more);
    body["stream"] = json!(true);
    let chunks = server.post(CHAT, &body.to_string()).chunks();
    assert_eq!(streamed_text(&chunks, 0), content(&answer), "{more}");
    let finish = &chunks.last().unwrap()["choices"][0]["finish_reason"];
    assert_eq!(finish, &answer["choices"][0]["finish_reason"], "{more}");
    answer
}

fn pieces(server: &Server, text: &str) -> Vec<(u64, String)> {
    let answer = server.ask("/v1/tokenize", &json!({"content": text, "with_pieces": true}));
    let tokens = answer["tokens"].as_array().unwrap().iter();
    tokens.map(|token| (token["id"].as_u64().unwrap(), token["piece"].as_str().unwrap().to_owned())).collect()
}

#[test]
fn stop_tokens_and_the_least_length_decide_where_an_answer_ends() {
    let server = Server::start(&[]);
    let text = content(&server.ask(CHAT, &chat(24, &json!({})))).to_owned();
    let tokens = pieces(&server, &text);
    let (stop, piece) = &tokens[5];
    let first = tokens.iter().position(|(id, _)| id == stop).unwrap();
    let before: String = tokens[..first].iter().map(|(_, piece)| piece.as_str()).collect();
    let hidden = both(&server, 24, &json!({"stop_token_ids": [stop]}));
    assert_eq!((content(&hidden), &hidden["choices"][0]["finish_reason"]), (before.as_str(), &json!("stop")));
    assert_eq!(hidden["usage"]["completion_tokens"], first + 1);
    let shown = both(&server, 24, &json!({"stop_token_ids": [stop], "include_stop_str_in_output": true}));
    assert_eq!(content(&shown), format!("{before}{piece}"));
    let logprobs = json!({"stop_token_ids": [stop], "logprobs": true});
    let told = server.ask(CHAT, &chat(24, &logprobs))["choices"][0]["logprobs"]["content"].clone();
    assert_eq!(told.as_array().unwrap().len(), first, "what is not shown has none");
    let word = piece.trim();
    let at = text.find(word).unwrap() + word.len();
    let shown = both(&server, 24, &json!({"stop": [word], "include_stop_str_in_output": true}));
    assert_eq!(content(&shown), &text[..at]);
    // Not before its time, and the same text until then.
    let later = both(&server, 24, &json!({"stop": [word], "min_tokens": 24}));
    assert_eq!((content(&later), &later["choices"][0]["finish_reason"]), (text.as_str(), &json!("length")));
    let (end, _) = pieces(&server, "<|eot_id|>").pop().unwrap();
    let ends = |min: u32| json!({"min_tokens": min, "logit_bias": {end.to_string(): 100}});
    assert_eq!(both(&server, 24, &ends(0))["usage"]["completion_tokens"], 0);
    let five = both(&server, 24, &ends(5));
    assert_eq!(
        (&five["usage"]["completion_tokens"], &five["choices"][0]["finish_reason"]),
        (&json!(5), &json!("stop"))
    );
    assert!(text.starts_with(content(&five)) && !content(&five).is_empty(), "{five}");
    let forbidden = both(&server, 24, &json!({"min_tokens": 24, "stop_token_ids": [stop]}));
    assert!(!content(&forbidden).starts_with(&format!("{before}{piece}")), "{forbidden}");
    let refused = server.post(CHAT, &chat(24, &json!({"stop_token_ids": [u32::MAX]})).to_string());
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("stop_token_ids")));
}

#[test]
fn control_tokens_are_shown_on_demand() {
    let server = Server::start(&[]);
    let (header, _) = pieces(&server, "<|start_header_id|>").pop().unwrap();
    let bias = json!({header.to_string(): 100});
    assert_eq!(content(&both(&server, 3, &json!({"logit_bias": bias}))), "");
    let shown = both(&server, 3, &json!({"logit_bias": bias, "skip_special_tokens": false}));
    assert_eq!(content(&shown), "<|start_header_id|>".repeat(3));
}

#[test]
fn an_answer_goes_on_with_the_last_message() {
    let server = Server::start(&[]);
    let text = content(&server.ask(CHAT, &chat(24, &json!({})))).to_owned();
    let begun: String = pieces(&server, &text)[..8].iter().map(|(_, piece)| piece.as_str()).collect();
    let said =
        json!([{"role": "user", "content": "Tell me a story about a fox."}, {"role": "assistant", "content": begun}]);
    let more =
        json!({"messages": said, "continue_final_message": true, "chat_template_kwargs": {"enable_thinking": false}});
    assert_eq!(content(&both(&server, 16, &more)), &text[begun.len()..]);
}

#[test]
fn log_probabilities_echo_and_token_prompts() {
    let server = Server::start(&[]);
    let answer = server.ask(CHAT, &chat(4, &json!({"logprobs": true, "top_logprobs": 2})));
    let entries = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(entries.len(), 4);
    for entry in entries {
        assert!(entry["logprob"].as_f64().unwrap() <= 0.0);
        assert_eq!(entry["top_logprobs"].as_array().unwrap().len(), 2);
        assert_eq!(entry["top_logprobs"][0]["token"], entry["token"], "greedy takes the best");
    }
    let joined: String = entries.iter().map(|entry| entry["token"].as_str().unwrap()).collect();
    assert_eq!(joined, content(&answer));

    let prompt = "Once upon a time";
    let echo = json!({"prompt": prompt, "max_tokens": 4, "temperature": 0, "echo": true});
    let answer = server.ask(COMPLETIONS, &echo);
    let text = answer["choices"][0]["text"].as_str().unwrap();
    assert!(text.contains(prompt), "{text}");
    let legacy = json!({"prompt": prompt, "max_tokens": 4, "temperature": 0, "logprobs": 2});
    let answer = server.ask(COMPLETIONS, &legacy);
    let logprobs = &answer["choices"][0]["logprobs"];
    let lengths =
        ["tokens", "token_logprobs", "top_logprobs", "text_offset"].map(|key| logprobs[key].as_array().unwrap().len());
    assert!(lengths.iter().all(|length| *length == lengths[0] && *length >= 4), "{logprobs}");

    let plain = json!({"prompt": prompt, "max_tokens": 8, "temperature": 0});
    let by_text = server.ask(COMPLETIONS, &plain);
    let tokens = server.ask("/v1/tokenize", &json!({"content": prompt, "add_special": true}))["tokens"].clone();
    let by_tokens = server.ask(COMPLETIONS, &json!({"prompt": tokens, "max_tokens": 8, "temperature": 0}));
    assert_eq!(by_tokens["choices"], by_text["choices"]);
    assert_eq!(by_tokens["usage"], by_text["usage"]);
    let several = json!({"prompt": [tokens, tokens], "max_tokens": 8, "temperature": 0});
    let several = server.ask(COMPLETIONS, &several);
    assert_eq!(several["choices"][1]["text"], by_text["choices"][0]["text"]);
    let nothing = server.ask(COMPLETIONS, &json!({"prompt": prompt, "max_tokens": 0, "echo": true}));
    assert_eq!(nothing["usage"]["completion_tokens"], 0);
}

#[test]
fn own_endpoints_infer_stream_and_tokenise() {
    let server = Server::start(&[]);
    let body = json!({"prompt": "Once upon a time", "max_tokens": 20, "temperature": 0});
    let whole = server.ask("/v1/inference", &body);
    assert_eq!(
        (&whole["tokens_generated"], &whole["model_id"], &whole["device_used"]),
        (&json!(20), &json!(MODEL), &json!("cpu"))
    );
    assert!(whole["tokens_per_second"].as_f64().unwrap() > 0.0);

    let streamed = server.post("/v1/inference/stream", &body.to_string());
    let events = streamed.events();
    let data: Vec<Value> = events.iter().map(|event| serde_json::from_str(&event.data).unwrap()).collect();
    assert!(events.iter().zip(&data).all(|(event, data)| data["type"] == event.name.as_str()));
    let tokens: Vec<&Value> = data.iter().filter(|data| data["type"] == "token").collect();
    assert!(tokens.iter().enumerate().all(|(position, token)| token["position"] == position), "{tokens:?}");
    let text: String = tokens.iter().map(|token| token["text"].as_str().unwrap()).collect();
    assert_eq!(whole["text"], text);
    for name in ["progress", "metrics"] {
        assert!(events.iter().any(|event| event.name == name), "{name}");
    }
    let last = data.last().unwrap();
    assert_eq!(
        (&last["type"], &last["total_tokens"], &last["finish_reason"]),
        (&json!("complete"), &json!(20), &json!("length"))
    );
    assert_eq!(last["request_id"].as_str(), streamed.header("x-request-id"));

    for text in ["The quick brown fox.", " zwölf Boxkämpfer \u{1f98a}\n\n\tend", "", "a\u{0}b"] {
        let tokens = server.ask("/v1/tokenize", &json!({"content": text}))["tokens"].clone();
        let back = server.ask("/v1/detokenize", &json!({"tokens": tokens}));
        assert_eq!(back["content"], text);
    }
}

#[test]
fn models_health_and_metrics() {
    let server = Server::start(&[]);
    let models = server.get("/v1/models").json();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!(MODEL)));
    assert_eq!(server.get(&format!("/v1/models/{MODEL}")).json(), models["data"][0]);
    for path in ["/health", "/health/live", "/health/ready"] {
        let answer = server.get(path);
        assert_eq!((answer.status, answer.header("cache-control")), (200, Some("no-store")), "{path}");
        assert_eq!(answer.json()["status"], "healthy", "{path}");
    }
    let counters = [
        "bitnet_inference_requests_total",
        "bitnet_generation_tokens_total",
        "bitnet_prompt_tokens_total",
        "bitnet_time_to_first_token_seconds_count",
        "bitnet_inter_token_latency_seconds_count",
        "bitnet_e2e_request_latency_seconds_count",
        "bitnet_step_duration_seconds_count",
        "bitnet_request_success_total",
    ];
    let before = counters.map(|name| server.metric(name));
    server.ask(CHAT, &chat(4, &json!({})));
    let after = counters.map(|name| server.metric(name));
    for ((name, before), after) in counters.iter().zip(before).zip(after) {
        assert!(after > before, "{name} stays at {before}");
    }
    let answer = server.get("/metrics");
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    check_exposition(&answer.text());
}

/// Prometheus text 0.0.4: comments or `name{labels} number`, each family declared once and before its samples.
fn check_exposition(text: &str) {
    assert!(text.ends_with('\n'));
    let mut families = Vec::new();
    for line in text.lines() {
        if let Some(declaration) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declaration.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(!families.contains(&name), "{name} is declared twice");
            families.push(name);
        } else if !line.starts_with("# HELP ") {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().unwrap().is_finite(), "{line}");
            let name = series.split('{').next().unwrap();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            let family = families.last().unwrap();
            assert!(*family == name || *family == base, "{line} stands under {family}");
            assert!(!series.contains('{') || series.ends_with('}'), "{line}");
        }
    }
}
