//! Requests of the Responses API: what they come down to, what is refused by name, and what is repeated of them.
#![expect(clippy::unwrap_used, reason = "a test helper that fails is a failed test")]

mod request;

use net::api::{Constraint, Endpoint, GenerateRequest, Message, Prompt, Role, ToolChoice};
use net::error::ApiError;
use net::json::Reader;
use request::{OPENAI, param, parse, with};
use serde_json::{Value, json};

fn response(fields: &str) -> Result<GenerateRequest, ApiError> {
    with(Endpoint::Responses, fields)
}

fn messages(request: GenerateRequest) -> Vec<Message> {
    let Prompt::Messages(messages) = request.prompt else { panic!("no messages") };
    messages
}

fn input(json: &str) -> Result<GenerateRequest, ApiError> {
    parse(Endpoint::Responses, &format!("{{\"input\":{json}}}"))
}

/// What the answer repeats of a request.
fn repeated(request: &GenerateRequest) -> Value {
    let fields = str::from_utf8(request.parameters.as_deref().unwrap()).unwrap();
    serde_json::from_str(&format!("{{{}}}", &fields[1..])).unwrap()
}

#[test]
fn a_conversation_is_that_of_a_chat() {
    let items = r#"{"instructions":"Be kind.","input":[
        {"role":"developer","content":"d"},
        {"type":"message","role":"user","content":[{"type":"input_text","text":"a"},{"type":"input_text","text":"b"}]},
        {"type":"reasoning","id":"rs_1","summary":[],"encrypted_content":null},
        {"type":"message","id":"msg_1","status":"completed","role":"assistant",
            "content":[{"type":"output_text","text":"c","annotations":[],"logprobs":[]}]},
        {"type":"function_call","id":"fc_1","call_id":"c1","name":"f","arguments":"{\"x\":1}","status":"completed"},
        {"type":"function_call","call_id":"c2","name":"g","arguments":""},
        {"type":"function_call_output","call_id":"c2","output":"2"},
        {"type":"function_call_output","call_id":"c1","output":[{"type":"input_text","text":"1"}]},
        {"type":"function_call","call_id":"c3","name":"f","arguments":"{}"},
        {"type":"function_call_output","call_id":"c3","output":""}]}"#;
    let chat = r#"{"messages":[{"role":"system","content":"Be kind."},{"role":"developer","content":"d"},
        {"role":"user","content":"a\nb"},
        {"role":"assistant","content":"c","tool_calls":[
            {"id":"c1","type":"function","function":{"name":"f","arguments":"{\"x\":1}"}},
            {"id":"c2","type":"function","function":{"name":"g","arguments":""}}]},
        {"role":"tool","tool_call_id":"c2","content":"2"},{"role":"tool","tool_call_id":"c1","content":"1"},
        {"role":"assistant","content":null,"tool_calls":[
            {"id":"c3","type":"function","function":{"name":"f","arguments":"{}"}}]},
        {"role":"tool","tool_call_id":"c3","content":""}]}"#;
    let request = parse(Endpoint::Responses, items).unwrap();
    assert_eq!(messages(request), messages(parse(Endpoint::Chat, chat).unwrap()));
    let plain = messages(input("\"hi\"").unwrap());
    assert!(plain.len() == 1 && plain[0].role == Role::User && plain[0].content == "hi");
}

#[test]
fn items_that_are_none_are_refused_by_place() {
    let message = r#"{"role":"user","content":"a"}"#;
    for (json, at) in [
        ("1", "input"),
        ("{}", "input"),
        ("[]", "input"),
        ("[1]", "input[0]"),
        ("[\"a\"]", "input[0]"),
        ("[{}]", "input[0].role"),
        (r#"[{"type":1}]"#, "input[0].type"),
        (r#"[{"type":"web_search_call"}]"#, "input[0].type"),
        (r#"[{"type":"item_reference","id":"x"}]"#, "input[0].type"),
        (r#"[{"role":"tool","content":"a"}]"#, "input[0].role"),
        (r#"[{"role":"user"}]"#, "input[0].content"),
        (r#"[{"role":"user","content":1}]"#, "input[0].content"),
        (r#"[{"role":"user","content":[]}]"#, "input[0].content"),
        (r#"[{"role":"user","content":[{"type":"input_image","image_url":"x"}]}]"#, "input[0].content[0].type"),
        (r#"[{"role":"user","content":[{"type":"input_text"}]}]"#, "input[0].content[0].text"),
        (r#"[{"type":"function_call","call_id":"c","name":"f"}]"#, "input[0].arguments"),
        (r#"[{"type":"function_call","name":"f","arguments":""}]"#, "input[0].call_id"),
        (r#"[{"type":"function_call","call_id":"c","arguments":""}]"#, "input[0].name"),
        (r#"[{"type":"function_call","call_id":"c","name":"f","arguments":"{"}]"#, "input[0].arguments"),
        (r#"[{"type":"function_call_output","call_id":"c","output":"a"}]"#, "input[0].call_id"),
        (r#"[{"type":"function_call_output","output":"a"}]"#, "input[0].call_id"),
        (
            r#"[{"type":"function_call","call_id":"c","name":"f","arguments":""},
             {"type":"function_call_output","call_id":"c"}]"#,
            "input[1].output",
        ),
        (r#"[{"type":"reasoning","summary":[]}]"#, "input"),
        (r#"[{"type":"reasoning","summary":[{"type":"summary_text","text":"a"}]}]"#, "input[0].summary"),
        (r#"[{"type":"reasoning","encrypted_content":"a"}]"#, "input[0].encrypted_content"),
    ] {
        assert_eq!(param(input(json)), at, "{json}");
    }
    let many = |count: usize| format!("[{}]", vec![message; count].join(","));
    assert!(input(&many(4096)).is_ok());
    assert_eq!(param(input(&many(4097))), "input");
    let call = r#"{"type":"function_call","call_id":"c","name":"f","arguments":""}"#;
    assert!(input(&format!("[{}]", vec![call; 128].join(","))).is_ok());
    assert_eq!(param(input(&format!("[{}]", vec![call; 129].join(",")))), "input[128]");
}

#[test]
fn what_needs_a_memory_or_changes_the_answer_is_refused_by_name() {
    for (field, value, at) in [
        ("previous_response_id", "\"resp_1\"", ""),
        ("conversation", "\"conv_1\"", ""),
        ("conversation", "{\"id\":\"conv_1\"}", ""),
        ("prompt", "{\"id\":\"pmpt_1\"}", ""),
        ("background", "true", ""),
        ("background", "1", ""),
        ("truncation", "\"auto\"", ""),
        ("context_management", "[{\"type\":\"compaction\"}]", ""),
        ("moderation", "{\"model\":\"m\"}", ""),
        ("messages", "[]", ""),
        ("logprobs", "true", ""),
        ("top_logprobs", "1", ""),
        ("top_logprobs", "21", ""),
        ("include", "\"message.output_text.logprobs\"", ""),
        ("include", "[\"unheard.of\"]", "include[0]"),
        ("store", "1", ""),
        ("instructions", "[]", ""),
        ("metadata", "[]", ""),
        ("metadata", "{\"a\":1}", "metadata.a"),
        ("max_tool_calls", "0", ""),
        ("safety_identifier", "1", ""),
        ("prompt_cache_key", "[]", ""),
        ("reasoning", "\"low\"", ""),
        ("reasoning", "{\"effort\":\"\"}", "reasoning.effort"),
        ("text", "\"a\"", ""),
        ("text", "{\"format\":{}}", "text.format.type"),
        ("text", "{\"format\":{\"type\":\"grammar\"}}", "text.format.type"),
        ("text", "{\"format\":{\"type\":\"json_schema\",\"schema\":{}}}", "text.format.name"),
        ("text", "{\"format\":{\"type\":\"json_schema\",\"name\":\"a\"}}", "text.format.schema"),
        ("text", "{\"format\":{\"type\":\"json_schema\",\"name\":\"a\",\"schema\":1}}", "text.format.schema"),
        ("tools", "[{\"type\":\"web_search\"}]", "tools[0].type"),
        ("tools", "[{\"type\":\"custom\",\"name\":\"a\"}]", "tools[0].type"),
        ("tools", "[{\"type\":\"function\"}]", "tools[0].name"),
        ("tools", "[{\"type\":\"function\",\"function\":{\"name\":\"a\"}}]", "tools[0].name"),
        ("tools", "[{\"type\":\"function\",\"name\":\"a\",\"parameters\":1}]", "tools[0].parameters"),
        ("tools", "[{\"type\":\"function\",\"name\":\"a\",\"defer_loading\":true}]", "tools[0].defer_loading"),
        ("tools", "[{\"type\":\"function\",\"name\":\"a\"},{\"type\":\"function\",\"name\":\"a\"}]", "tools[1].name"),
        ("tool_choice", "\"required\"", ""),
        ("tool_choice", "{\"type\":\"web_search_preview\"}", "tool_choice.type"),
        ("tool_choice", "{\"type\":\"function\",\"name\":\"x\"}", "tool_choice.name"),
        ("tool_choice", "{\"type\":\"allowed_tools\",\"mode\":\"auto\"}", "tool_choice.tools"),
    ] {
        let at = if at.is_empty() { field } else { at };
        assert_eq!(param(response(&format!("\"{field}\":{value}"))), at, "{field} {value}");
    }
    let pairs = |count: usize| (0..count).map(|at| format!("\"{at}\":\"\"")).collect::<Vec<_>>().join(",");
    assert!(response(&format!("\"metadata\":{{{}}}", pairs(16))).is_ok());
    assert_eq!(param(response(&format!("\"metadata\":{{{}}}", pairs(17)))), "metadata");
    let long = |chars: usize| format!("\"metadata\":{{\"a\":\"{}\"}}", "é".repeat(chars));
    assert!(response(&long(512)).is_ok() && response(&long(513)).is_err());
    assert_eq!(param(response("\"text\":{\"format\":{\"type\":\"json_object\"}},\"regex\":\"a\"")), "regex");
}

#[test]
fn tools_formats_and_words_mean_what_they_mean_in_a_chat() {
    let flat = r#""tools":[{"type":"function","name":"f","description":"d","parameters":{"type":"object"},"strict":true},
        {"name":"g","type":"function","strict":null}],"parallel_tool_calls":false"#;
    let nested = r#""tools":[{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object"},
        "strict":true}},{"type":"function","function":{"name":"g"}}],"parallel_tool_calls":false"#;
    for (of_response, of_chat) in [
        ("\"auto\"", "\"auto\""),
        ("\"required\"", "\"required\""),
        ("\"none\"", "\"none\""),
        (r#"{"type":"function","name":"g"}"#, r#"{"type":"function","function":{"name":"g"}}"#),
        (
            r#"{"type":"allowed_tools","mode":"required","tools":[{"type":"function","name":"g"}]}"#,
            r#"{"type":"allowed_tools","allowed_tools":{"mode":"required","tools":[{"type":"function","function":{"name":"g"}}]}}"#,
        ),
    ] {
        let request = response(&format!("{flat},\"tool_choice\":{of_response}")).unwrap();
        let chat = with(Endpoint::Chat, &format!("{nested},\"tool_choice\":{of_chat}")).unwrap();
        assert_eq!(request.constraint, chat.constraint, "{of_response}");
        assert_eq!(repeated(&request)["tool_choice"], serde_json::from_str::<Value>(of_response).unwrap());
    }
    let schema = r#"{"type":"object","properties":{"b":{},"a":{}}}"#;
    let format = format!(r#""text":{{"format":{{"type":"json_schema","name":"n","strict":true,"schema":{schema}}}}}"#);
    let request = response(&format).unwrap();
    assert_eq!(request.constraint, Some(Constraint::JsonSchema(schema.into())));
    assert_eq!(request.constrained_by, "text.format");
    assert_eq!(repeated(&request)["text"]["format"]["name"], "n");
    assert_eq!(response(r#""text":{"format":{"type":"text"},"verbosity":"low"}"#).unwrap().constraint, None);
    let both = response(&format!("{flat},{format}")).unwrap();
    let tools = both.tools().unwrap();
    assert!(tools.choice == ToolChoice::Auto && tools.content.is_some() && !tools.parallel);
    let request = response(
        r#""max_output_tokens":7,"include":["message.output_text.logprobs"],"top_logprobs":2,
        "reasoning":{"effort":"low","summary":"auto"},"seed":5,"top_k":3,"priority":"high","timeout_ms":9,"store":true,
        "stream":true,"stream_options":{"include_obfuscation":false},"background":false,"truncation":"disabled""#,
    );
    let request = request.unwrap();
    assert_eq!((request.max_tokens, request.logprobs, request.seed, request.top_k), (Some(7), Some(2), Some(5), 3));
    assert_eq!(request.rendering.variables, [("reasoning_effort".to_owned(), "\"low\"".to_owned())]);
    assert_eq!(response("\"include\":[\"reasoning.encrypted_content\"]").unwrap().logprobs, None);
    for endpoint in OPENAI {
        let repeats = with(endpoint, "\"seed\":1").unwrap().parameters.is_some();
        assert_eq!(repeats, endpoint == Endpoint::Responses);
    }
}

#[test]
fn what_was_asked_is_repeated() {
    let all = json!({"background": false, "instructions": null, "max_output_tokens": null, "max_tool_calls": null,
        "metadata": {}, "parallel_tool_calls": true, "previous_response_id": null, "prompt_cache_key": null,
        "reasoning": {"effort": null, "summary": null}, "safety_identifier": null, "service_tier": "default",
        "store": false, "temperature": 1.0, "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [],
        "top_logprobs": 0, "top_p": 1.0, "truncation": "disabled", "user": null});
    assert_eq!(repeated(&response("\"store\":true,\"user\":null,\"service_tier\":\"flex\"").unwrap()), all);
    let given = json!({"instructions": "a\"\u{1}é", "max_output_tokens": 3, "metadata": {"k": "v"}, "temperature": 0,
        "top_p": 0.5, "user": "u", "prompt_cache_key": "p", "safety_identifier": "s", "parallel_tool_calls": false,
        "reasoning": {"effort": "high"}, "tools": [{"type": "function", "name": "f", "parameters": null}]});
    let body = given.to_string();
    let got = repeated(&response(&body[1..body.len() - 1]).unwrap());
    for (name, value) in given.as_object().unwrap() {
        let expected = if name == "reasoning" { json!({"effort": "high", "summary": null}) } else { value.clone() };
        assert_eq!(got[name], expected, "{name}");
    }
    assert_eq!(got.as_object().unwrap().len(), all.as_object().unwrap().len());
}

#[test]
fn mutated_requests_are_taken_or_refused() {
    let seed = r#"{"input":[{"role":"user","content":[{"type":"input_text","text":"a"}]},{"type":"function_call","call_id":"c",
        "name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c","output":"b"},{"type":"reasoning",
        "summary":[]}],"tools":[{"type":"function","name":"f","parameters":{}}],"tool_choice":{"type":"function","name":"f"},
        "text":{"format":{"type":"json_schema","name":"n","schema":{}}},"metadata":{"a":"b"},"include":[],"n":1}"#;
    let pieces = ["\"", "{", "}", "[", "]", ",", ":", "null", "1e999", "\"type\":", "\"call_id\":", "\\ud800", "\u{0}"];
    let (mut reader, mut state, mut taken) = (Reader::new(), 0x9e37_79b9_7f4a_7c15_u64, 0);
    let mut below = |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % bound as u64) as usize
    };
    for _ in 0..5000 {
        let mut body = seed.as_bytes().to_vec();
        for _ in 0..=below(2) {
            let at = below(body.len());
            match below(4) {
                0 => body[at] ^= 1 << below(8),
                1 => drop(body.drain(at..(at + below(12)).min(body.len()))),
                2 => drop(body.splice(at..at, pieces[below(pieces.len())].bytes())),
                _ => {
                    let (from, len) = (below(body.len()), below(24));
                    let copied = body[from..(from + len).min(body.len())].to_vec();
                    drop(body.splice(at..at, copied));
                }
            }
        }
        match GenerateRequest::parse(Endpoint::Responses, &mut reader, &mut body) {
            Ok(request) => {
                repeated(&request);
                taken += 1;
            }
            Err(error) => assert!(error.status == 400 && error.message.len() < 600, "{error:?}"),
        }
    }
    assert!(taken > 50, "{taken}");
}
