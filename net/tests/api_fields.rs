//! Every field of every schema: defaults, both ends of each range, wrong types, and what is refused by name.
#![expect(clippy::unwrap_used, reason = "a test helper that fails is a failed test")]

mod request;

use net::api::{
    Constraint, DetokenizeRequest, DevicePreference, Endpoint, Message, Priority, Prompt, QuantizationPreference, Role,
    TokenizeInput, TokenizeRequest, ToolCall, ToolChoice,
};
use net::json::Reader;
use request::{OPENAI, param, parse, with};

const OWN: [Endpoint; 2] = [Endpoint::Inference, Endpoint::InferenceStream];

#[test]
fn each_endpoint_has_its_defaults() {
    let chat = parse(Endpoint::Chat, r#"{"messages":[{"role":"user","content":"a"}],"model":null}"#).unwrap();
    assert_eq!((chat.max_tokens, chat.temperature, chat.top_p, chat.top_k), (None, 1.0, 1.0, 0));
    assert_eq!((chat.n, chat.stream, chat.logprobs, chat.seed, chat.model), (1, false, None, None, None));
    let completion = parse(Endpoint::Completion, r#"{"prompt":"a"}"#).unwrap();
    assert_eq!((completion.max_tokens, completion.temperature), (Some(16), 1.0));
    assert_eq!(completion.prompt, Prompt::Text(vec!["a".into()]));
    for endpoint in OWN {
        let own = parse(endpoint, r#"{"prompt":"a"}"#).unwrap();
        assert_eq!((own.max_tokens, own.temperature, own.top_p, own.top_k), (Some(100), 0.7, 0.9, 50));
        assert_eq!((own.repetition_penalty, own.stream), (1.0, endpoint == Endpoint::InferenceStream));
        assert_eq!(own.device_preference, DevicePreference::Auto);
    }
}

/// (endpoints, field, accepted values, refused values)
type Range<'a> = (&'a [Endpoint], &'a str, &'a [&'a str], &'a [&'a str]);

#[test]
fn every_range_ends_where_it_says() {
    const ALL: [Endpoint; 4] = [Endpoint::Chat, Endpoint::Completion, Endpoint::Inference, Endpoint::InferenceStream];
    let number = ["\"1\"", "[]", "{}", "true"];
    let ranges: &[Range<'_>] = &[
        (&ALL, "temperature", &["0", "0.0", "2", "2.0", "1e0", "-0.0", "null"], &["-0.001", "2.001", "1e999"]),
        (&ALL, "top_p", &["0", "1", "0.5", "null"], &["-1e-9", "1.000001", "2"]),
        (&OPENAI, "top_k", &["-1", "0", "1", "4294967295", "5.0"], &["-2", "4294967296", "1.5"]),
        (&OWN, "top_k", &["1", "1000"], &["0", "1001", "-1", "1.5"]),
        (&OPENAI, "min_p", &["0", "1"], &["-0.1", "1.1"]),
        (&ALL, "repetition_penalty", &["0.001", "1", "2"], &["0", "-1", "2.001"]),
        (&OPENAI, "frequency_penalty", &["-2", "2", "0.5"], &["-2.001", "2.001"]),
        (&OPENAI, "presence_penalty", &["-2", "2"], &["-2.001", "2.001"]),
        (&[Endpoint::Chat, Endpoint::Completion], "n", &["1", "128"], &["0", "-1", "129", "1.5", "4294967297"]),
        (&[Endpoint::Responses], "n", &["1"], &["0", "2", "128"]),
        (&[Endpoint::Responses], "max_output_tokens", &["1", "4294967295", "null"], &["0", "-1", "1.5"]),
        (&OPENAI, "max_tokens", &["1", "4294967295"], &["0", "-1", "4294967296", "1.5"]),
        (&OWN, "max_tokens", &["1", "2048"], &["0", "2049", "-1"]),
        (&[Endpoint::Chat], "max_completion_tokens", &["1", "9"], &["0", "-1"]),
        (&OPENAI, "seed", &["0", "-9223372036854775808", "9223372036854775807"], &["9223372036854775808", "0.5"]),
        (&OWN, "seed", &["0", "4294967295"], &["-1", "4294967296"]),
        (&[Endpoint::Completion], "logprobs", &["0", "20"], &["-1", "21"]),
        (&OPENAI, "timeout_ms", &["1", "9223372036854775807"], &["0", "-1"]),
        (&OPENAI, "queue_timeout_ms", &["1", "9223372036854775807"], &["0", "-1"]),
        (&OPENAI, "first_token_timeout_ms", &["1", "9223372036854775807"], &["0", "-1"]),
        (&[Endpoint::Completion], "best_of", &["1"], &["0", "2"]),
    ];
    for (endpoints, field, accepted, refused) in ranges {
        for &endpoint in *endpoints {
            for value in *accepted {
                let result = with(endpoint, &format!("\"{field}\":{value}"));
                assert!(result.is_ok(), "{endpoint:?} {field} {value}: {}", result.unwrap_err());
            }
            for value in refused.iter().chain(&number) {
                let error = with(endpoint, &format!("\"{field}\":{value}")).unwrap_err();
                let named = error.param.as_deref() == Some(*field) || *value == "1e999";
                assert!(named && error.status == 400, "{endpoint:?} {field} {value}: {error:?}");
            }
        }
    }
}

#[test]
fn log_probabilities_of_a_prompt_are_refused() {
    assert!(with(Endpoint::Completion, "\"echo\":true,\"logprobs\":0").is_ok());
    assert!(with(Endpoint::Completion, "\"echo\":false,\"logprobs\":0").is_ok());
}

#[test]
fn an_error_says_what_it_got() {
    for (field, got) in [
        ("\"n\":129", "`n` must be an integer in 1..=128, got 129"),
        ("\"n\":1.5", "`n` must be an integer in 1..=128, got 1.5"),
        ("\"n\":18446744073709551615", "`n` must be an integer in 1..=128, got 18446744073709551615"),
        ("\"n\":\"1\"", "`n` must be an integer in 1..=128, got a string"),
        ("\"temperature\":2.5", "`temperature` must be a number in 0..=2, got 2.5"),
        ("\"temperature\":-1e300", "`temperature` must be a number in 0..=2, got -1e300"),
        ("\"stream\":1", "`stream` must be true or false, got 1"),
        ("\"model\":[]", "`model` must be a string, got an array"),
        ("\"logit_bias\":true", "`logit_bias` must be an object, got true"),
    ] {
        assert_eq!(with(Endpoint::Completion, field).unwrap_err().message, got);
    }
}

#[test]
fn flags_strings_and_words_are_typed() {
    for endpoint in OPENAI {
        for field in ["stream", "ignore_eos"] {
            assert!(with(endpoint, &format!("\"{field}\":true")).is_ok());
            for value in ["1", "\"true\"", "[]"] {
                assert_eq!(param(with(endpoint, &format!("\"{field}\":{value}"))), field);
            }
        }
        for field in ["model", "user"] {
            assert!(with(endpoint, &format!("\"{field}\":\"x\"")).is_ok());
            assert_eq!(param(with(endpoint, &format!("\"{field}\":1"))), field);
        }
    }
    for endpoint in [Endpoint::Chat, Endpoint::Inference] {
        for (word, priority) in [("low", Priority::Low), ("normal", Priority::Normal), ("high", Priority::High)] {
            assert_eq!(with(endpoint, &format!("\"priority\":\"{word}\"")).unwrap().priority, priority);
        }
        for (number, priority) in [
            ("-1", Priority::High),
            ("-9223372036854775808", Priority::High),
            ("0", Priority::Normal),
            ("0.0", Priority::Normal),
            ("1", Priority::Low),
            ("9223372036854775807", Priority::Low),
        ] {
            assert_eq!(with(endpoint, &format!("\"priority\":{number}")).unwrap().priority, priority, "{number}");
        }
        for value in ["\"urgent\"", "\"0\"", "1.5", "1e300", "9223372036854775808", "true", "[]", "{}"] {
            assert_eq!(param(with(endpoint, &format!("\"priority\":{value}"))), "priority", "{value}");
        }
    }
    let own = with(Endpoint::Inference, r#""device_preference":"gpu","quantization_preference":"tl2""#).unwrap();
    assert_eq!(own.device_preference, DevicePreference::Gpu);
    assert_eq!(own.quantization_preference, QuantizationPreference::Tl2);
    assert_eq!(param(with(Endpoint::Inference, "\"device_preference\":\"tpu\"")), "device_preference");
    assert_eq!(param(with(Endpoint::Inference, "\"quantization_preference\":\"q4\"")), "quantization_preference");
}

#[test]
fn stop_strings_are_bounded() {
    let strings = |count: usize, chars: usize| {
        let items: Vec<_> = (0..count).map(|_| format!("\"{}\"", "é".repeat(chars))).collect();
        format!("[{}]", items.join(","))
    };
    for endpoint in OPENAI {
        assert_eq!(with(endpoint, "\"stop\":\"x\"").unwrap().ending.strings, ["x"]);
        assert!(with(endpoint, "\"stop\":[]").unwrap().ending.strings.is_empty());
        assert!(with(endpoint, &format!("\"stop\":{}", strings(16, 1024))).is_ok());
        assert_eq!(param(with(endpoint, &format!("\"stop\":{}", strings(17, 1)))), "stop");
        assert_eq!(param(with(endpoint, &format!("\"stop\":{}", strings(2, 1025)))), "stop[0]");
        assert_eq!(param(with(endpoint, "\"stop\":[\"a\",\"\"]")), "stop[1]");
        assert_eq!(param(with(endpoint, "\"stop\":\"\"")), "stop");
        assert_eq!(param(with(endpoint, "\"stop\":[1]")), "stop[0]");
    }
    assert_eq!(with(Endpoint::Inference, "\"stop_sequences\":[\"a\",\"b\"]").unwrap().ending.strings, ["a", "b"]);
    assert!(with(Endpoint::Inference, &format!("\"stop_sequences\":{}", strings(10, 64))).is_ok());
    for value in [strings(11, 1), "\"a\"".into()] {
        assert_eq!(param(with(Endpoint::Inference, &format!("\"stop_sequences\":{value}"))), "stop_sequences");
    }
    assert_eq!(
        param(with(Endpoint::Inference, &format!("\"stop_sequences\":{}", strings(1, 65)))),
        "stop_sequences[0]"
    );
}

#[test]
fn own_prompts_have_1_to_8192_characters() {
    for (count, passes) in [(0, false), (1, true), (8192, true), (8193, false)] {
        let body = format!("{{\"prompt\":\"{}\"}}", "é".repeat(count));
        assert_eq!(parse(Endpoint::Inference, &body).is_ok(), passes, "{count}");
    }
}

#[test]
fn prompts_take_four_shapes() {
    let prompt = |json: &str| parse(Endpoint::Completion, &format!("{{\"prompt\":{json}}}")).map(|r| r.prompt);
    assert_eq!(prompt("\"a\""), Ok(Prompt::Text(vec!["a".into()])));
    assert_eq!(prompt("[\"a\",\"\"]"), Ok(Prompt::Text(vec!["a".into(), String::new()])));
    assert_eq!(prompt("[1,2,4294967295]"), Ok(Prompt::Tokens(vec![vec![1, 2, u32::MAX]])));
    assert_eq!(prompt("[[1],[2,3]]"), Ok(Prompt::Tokens(vec![vec![1], vec![2, 3]])));
    for (json, at) in [
        ("[]", "prompt"),
        ("1", "prompt"),
        ("{}", "prompt"),
        ("true", "prompt"),
        ("[true]", "prompt"),
        ("[1.5]", "prompt"),
        ("[null]", "prompt"),
        ("[1,\"a\"]", "prompt[1]"),
        ("[1,-1]", "prompt[1]"),
        ("[4294967296]", "prompt[0]"),
        ("[\"a\",1]", "prompt[1]"),
        ("[[1],[]]", "prompt[1]"),
        ("[[1],2]", "prompt[1]"),
        ("[[1],[\"a\"]]", "prompt[1][0]"),
        ("[[]]", "prompt[0]"),
    ] {
        assert_eq!(prompt(json).unwrap_err().param.as_deref(), Some(at), "{json}");
    }
    let many = |count: usize| format!("[{}]", vec!["\"a\""; count].join(","));
    assert!(prompt(&many(128)).is_ok());
    assert_eq!(prompt(&many(129)).unwrap_err().param.as_deref(), Some("prompt"));
    let body = format!("{{\"prompt\":{},\"n\":2}}", many(65));
    assert_eq!(param(parse(Endpoint::Completion, &body)), "n");
    for endpoint in OPENAI {
        let name = endpoint.prompt_field();
        assert_eq!(param(parse(endpoint, "{}")), name);
        assert_eq!(param(parse(endpoint, &format!("{{\"{name}\":null}}"))), name);
    }
}

#[test]
fn messages_hold_text_of_known_roles() {
    let messages = |json: &str| parse(Endpoint::Chat, &format!("{{\"messages\":{json}}}")).map(|r| r.prompt);
    let parsed = messages(
        r#"[{"role":"developer","content":"s"},{"role":"user","name":"n","content":[{"type":"text","text":"a"},
        {"type":"text","text":"b"}]},{"role":"assistant","content":"","tool_calls":[],"refusal":null},
        {"role":"tool","content":"t","tool_call_id":"c"}]"#,
    );
    let message = |role, content: &str| Message {
        role,
        content: content.into(),
        name: None,
        tool_calls: Vec::new(),
        tool_call_id: None,
    };
    let expected = vec![
        message(Role::System, "s"),
        Message { name: Some("n".into()), ..message(Role::User, "a\nb") },
        message(Role::Assistant, ""),
        Message { tool_call_id: Some("c".into()), ..message(Role::Tool, "t") },
    ];
    assert_eq!(parsed, Ok(Prompt::Messages(expected)));
    for (json, at) in [
        ("[]", "messages"),
        ("\"a\"", "messages"),
        ("{}", "messages"),
        ("[1]", "messages[0]"),
        ("[[]]", "messages[0]"),
        (r#"[{"content":"a"}]"#, "messages[0].role"),
        (r#"[{"role":"user"}]"#, "messages[0].content"),
        (r#"[{"role":"king","content":"a"}]"#, "messages[0].role"),
        (r#"[{"role":1,"content":"a"}]"#, "messages[0].role"),
        (r#"[{"role":"user","content":1}]"#, "messages[0].content"),
        (r#"[{"role":"user","content":[]}]"#, "messages[0].content"),
        (r#"[{"role":"user","content":["a"]}]"#, "messages[0].content[0]"),
        (r#"[{"role":"user","content":[{"text":"a"}]}]"#, "messages[0].content[0].type"),
        (r#"[{"role":"user","content":[{"type":"text"}]}]"#, "messages[0].content[0].text"),
        (
            r#"[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]"#,
            "messages[0].content[0].type",
        ),
        (r#"[{"role":"user","content":"a"},{"role":"tool","content":"a"}]"#, "messages[1].tool_call_id"),
        (r#"[{"role":"tool","content":"a","tool_call_id":""}]"#, "messages[0].tool_call_id"),
        (r#"[{"role":"assistant","content":null}]"#, "messages[0].content"),
        (r#"[{"role":"assistant","tool_calls":[]}]"#, "messages[0].content"),
        (r#"[{"role":"assistant","tool_calls":{}}]"#, "messages[0].tool_calls"),
        (r#"[{"role":"assistant","tool_calls":[1]}]"#, "messages[0].tool_calls[0]"),
        (r#"[{"role":"assistant","tool_calls":[{"function":{"name":"f"}}]}]"#, "messages[0].tool_calls[0].id"),
        (r#"[{"role":"assistant","tool_calls":[{"id":"c"}]}]"#, "messages[0].tool_calls[0].function.name"),
        (
            r#"[{"role":"assistant","tool_calls":[{"id":"c","function":{"name":"f g"}}]}]"#,
            "messages[0].tool_calls[0].function.name",
        ),
        (
            r#"[{"role":"assistant","tool_calls":[{"id":"c","type":"custom","function":{"name":"f"}}]}]"#,
            "messages[0].tool_calls[0].type",
        ),
        (
            r#"[{"role":"assistant","tool_calls":[{"id":"c","function":{"name":"f","arguments":"[1]"}}]}]"#,
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            r#"[{"role":"assistant","tool_calls":[{"id":"c","function":{"name":"f","arguments":"{\"a\":"}}]}]"#,
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            r#"[{"role":"assistant","tool_calls":[{"id":"c","function":{"name":"f","arguments":{}}}]}]"#,
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            r#"[{"role":"user","content":"a","tool_calls":[{"id":"c","function":{"name":"f"}}]}]"#,
            "messages[0].tool_calls",
        ),
        (r#"[{"role":"user","role":"user","content":"a"}]"#, "messages[0].role"),
        (r#"[{"role":"user","content":"a","name":1}]"#, "messages[0].name"),
    ] {
        assert_eq!(messages(json).unwrap_err().param.as_deref(), Some(at), "{json}");
    }
}

#[test]
fn constraints_are_taken_one_at_a_time() {
    let named =
        |schema: &str| format!(r#""response_format":{{"type":"json_schema","json_schema":{{"name":"a",{schema}}}}}"#);
    for endpoint in OPENAI {
        let taken = |fields: &str| with(endpoint, fields).unwrap().constraint;
        assert_eq!(taken(r#""response_format":{"type":"text"}"#), None);
        assert_eq!(taken(r#""response_format":null,"regex":null"#), None);
        assert_eq!(taken(r#""response_format":{"type":"json_object"}"#), Some(Constraint::JsonObject));
        assert_eq!(taken(&named(r#""strict":true"#)), Some(Constraint::JsonObject));
        // As it came: the order of properties is that of the answer's.
        let schema =
            r#"{"type":"object","properties":{"z":{"enum":["a\"\n",1.5,-2,18446744073709551615,null,true]},"a":{}}}"#;
        let spaced = schema.replace(',', " , ");
        assert_eq!(taken(&named(&format!("\"schema\":{spaced}"))), Some(Constraint::JsonSchema(schema.into())));
        assert_eq!(taken(r#""regex":"a+""#), Some(Constraint::Regex("a+".into())));
        assert_eq!(taken(r#""choice":["a","b"]"#), Some(Constraint::Choice(vec!["a".into(), "b".into()])));
        assert_eq!(taken(r#""grammar":"start: A""#), Some(Constraint::Grammar("start: A".into())));
        let long = "a".repeat(64 << 10);
        for (fields, at) in [
            (r#""regex":"""#.into(), "regex"),
            (r#""regex":["a"]"#.into(), "regex"),
            (format!("\"regex\":\"{long}a\""), "regex"),
            (format!("\"grammar\":\"{long}a\""), "grammar"),
            (r#""choice":[]"#.into(), "choice"),
            (r#""choice":"a""#.into(), "choice"),
            (r#""choice":["a",""]"#.into(), "choice[1]"),
            (r#""choice":["a",1]"#.into(), "choice[1]"),
            (format!("\"choice\":[\"a\"{}]", ",\"a\"".repeat(1024)), "choice"),
            (format!("\"choice\":[\"{long}\",\"a\"]"), "choice"),
            (r#""response_format":"json_object""#.into(), "response_format"),
            (r#""response_format":{}"#.into(), "response_format.type"),
            (r#""response_format":{"type":"xml"}"#.into(), "response_format.type"),
            (r#""response_format":{"type":"json_schema"}"#.into(), "response_format.json_schema"),
            (r#""response_format":{"type":"json_schema","json_schema":{}}"#.into(), "response_format.json_schema.name"),
            (named(r#""schema":[]"#), "response_format.json_schema.schema"),
            (named(&format!("\"schema\":{{\"const\":\"{long}{long}\"}}")), "response_format.json_schema.schema"),
            (named(r#""strict":1"#), "response_format.json_schema.strict"),
            (r#""regex":"a","choice":["a"]"#.into(), "choice"),
            (r#""grammar":"a","response_format":{"type":"json_object"}"#.into(), "response_format"),
            (r#""regex":"a","ignore_eos":true"#.into(), "ignore_eos"),
        ] {
            assert_eq!(param(with(endpoint, &fields)), at, "{fields:.200}");
        }
        assert!(with(endpoint, &format!("\"regex\":\"{long}\"")).is_ok());
        assert!(with(endpoint, r#""response_format":{"type":"text"},"regex":"a""#).is_ok());
    }
    assert_eq!(param(with(Endpoint::Inference, r#""regex":"a""#)), "regex");
}

#[test]
fn calls_of_a_conversation_are_read() {
    let call = |id: &str, name: &str, arguments: &str| ToolCall {
        id: id.into(),
        name: name.into(),
        arguments: arguments.into(),
    };
    let body = r#"{"messages":[{"role":"assistant","content":null,"tool_calls":[
        {"id":"a","type":"function","function":{"name":"f","arguments":" {\"x\": [1, \"é\"]}\n"}},
        {"id":"b","function":{"name":"g-2","arguments":""}}, {"id":"c","function":{"name":"h"}}]}]}"#;
    let Prompt::Messages(messages) = parse(Endpoint::Chat, body).unwrap().prompt else { panic!("no messages") };
    let expected = [call("a", "f", r#"{"x": [1, "é"]}"#), call("b", "g-2", "{}"), call("c", "h", "{}")];
    assert_eq!((messages[0].content.as_str(), &messages[0].tool_calls[..]), ("", &expected[..]));
}

#[test]
fn tools_are_taken_with_their_choice() {
    let tool = |name: &str| {
        format!(r#"{{"type":"function","function":{{"name":"{name}","parameters":{{"type":"object","x":[1.5]}}}}}}"#)
    };
    let two = format!(
        r#""tools":[{},{{"type":"function","function":{{"name":"g","strict":true,"description":"d"}}}}]"#,
        tool("f")
    );
    let tools = |fields: &str| with(Endpoint::Chat, fields).map(|request| request.tools().cloned());
    let taken = tools(&two).unwrap().unwrap();
    assert_eq!((taken.choice, taken.parallel), (ToolChoice::Auto, true));
    assert_eq!((taken.list[0].name.as_str(), taken.list[0].definition.as_str()), ("f", &*tool("f")));
    assert_eq!(taken.list[0].parameters.as_deref(), Some(r#"{"type":"object","x":[1.5]}"#));
    assert_eq!((taken.list[1].name.as_str(), &taken.list[1].parameters), ("g", &None));
    let choice =
        |choice: &str| tools(&format!("{two},\"tool_choice\":{choice}")).map(|tools| tools.map(|tools| tools.choice));
    assert_eq!(choice(r#""required""#), Ok(Some(ToolChoice::Required)));
    assert_eq!(choice(r#""auto""#), Ok(Some(ToolChoice::Auto)));
    assert_eq!(choice("null"), Ok(Some(ToolChoice::Auto)));
    assert_eq!(choice(r#""none""#), Ok(None));
    assert_eq!(choice(r#"{"type":"function","function":{"name":"g"}}"#), Ok(Some(ToolChoice::Named(1))));
    assert!(!tools(&format!("\"parallel_tool_calls\":false,{two}")).unwrap().unwrap().parallel);
    let among = |mode: &str, names: &[&str]| {
        let names: Vec<_> =
            names.iter().map(|name| format!(r#"{{"type":"function","function":{{"name":"{name}"}}}}"#)).collect();
        let names = names.join(",");
        tools(&format!(
            r#"{two},"tool_choice":{{"type":"allowed_tools","allowed_tools":{{"mode":"{mode}","tools":[{names}]}}}}"#
        ))
    };
    let taken = among("auto", &["g"]).unwrap().unwrap();
    assert_eq!((taken.choice, taken.list.len(), taken.list[0].name.as_str()), (ToolChoice::Auto, 1, "g"));
    let taken = among("required", &["g", "f"]).unwrap().unwrap();
    assert_eq!((taken.choice, taken.list.len()), (ToolChoice::Required, 2));
    for (mode, names, at) in [
        ("any", &["f"][..], "tool_choice.allowed_tools.mode"),
        ("auto", &[], "tool_choice.allowed_tools.tools"),
        ("auto", &["f", "h"], "tool_choice.allowed_tools.tools[1].function.name"),
    ] {
        assert_eq!(among(mode, names).unwrap_err().param.as_deref(), Some(at));
    }
    // Said before the tools or after them.
    let before = format!(r#""tool_choice":{{"type":"function","function":{{"name":"f"}}}},{two}"#);
    assert_eq!(tools(&before).unwrap().unwrap().choice, ToolChoice::Named(0));
    let many = |count: usize| {
        format!("\"tools\":[{}]", (0..count).map(|i| tool(&format!("f{i}"))).collect::<Vec<_>>().join(","))
    };
    assert_eq!(tools(&many(128)).unwrap().unwrap().list.len(), 128);
    let long = "d".repeat(100 << 10);
    let wordy = |name: &str| format!(r#"{{"type":"function","function":{{"name":"{name}","description":"{long}"}}}}"#);
    for (fields, at) in [
        (many(129), "tools"),
        (format!("\"tools\":[{},{},{}]", wordy("a"), wordy("b"), wordy("c")), "tools"),
        ("\"tools\":{}".into(), "tools"),
        ("\"tools\":[1]".into(), "tools[0]"),
        ("\"tools\":[{}]".into(), "tools[0].type"),
        (r#""tools":[{"type":"function"}]"#.into(), "tools[0].function"),
        (r#""tools":[{"type":"custom","function":{"name":"f"}}]"#.into(), "tools[0].type"),
        (r#""tools":[{"type":"function","function":{}}]"#.into(), "tools[0].function.name"),
        (r#""tools":[{"type":"function","function":{"name":"a.b"}}]"#.into(), "tools[0].function.name"),
        (
            r#""tools":[{"type":"function","function":{"name":"f","parameters":[]}}]"#.into(),
            "tools[0].function.parameters",
        ),
        (r#""tools":[{"type":"function","function":{"name":"f","strict":1}}]"#.into(), "tools[0].function.strict"),
        (format!("\"tools\":[{},{}]", tool("f"), tool("f")), "tools[1].function.name"),
        (format!("{two},\"tool_choice\":\"any\""), "tool_choice"),
        (format!("{two},\"tool_choice\":{{}}"), "tool_choice.type"),
        (format!(r#"{two},"tool_choice":{{"type":"function"}}"#), "tool_choice.function.name"),
        (
            format!(r#"{two},"tool_choice":{{"type":"function","function":{{"name":"h"}}}}"#),
            "tool_choice.function.name",
        ),
        (format!("{two},\"parallel_tool_calls\":1"), "parallel_tool_calls"),
        (format!("{two},\"ignore_eos\":true"), "ignore_eos"),
        (format!("{two},\"regex\":\"a\""), "tools"),
        (r#""tool_choice":"required""#.into(), "tool_choice"),
        (r#""tools":[],"tool_choice":"required""#.into(), "tool_choice"),
    ] {
        assert_eq!(param(with(Endpoint::Chat, &fields)), at, "{fields:.200}");
    }
    assert!(with(Endpoint::Chat, &format!("{two},\"tool_choice\":\"none\",\"logprobs\":true,\"regex\":\"a\"")).is_ok());
    assert!(with(Endpoint::Chat, &format!("{two},\"logprobs\":true")).is_ok());
    assert_eq!(param(with(Endpoint::Completion, &two)), "tools");
}

#[test]
fn what_would_change_the_answer_is_refused_by_name() {
    for endpoint in OPENAI {
        for (field, value) in [
            ("tool_choice", "\"required\""),
            ("functions", "[{}]"),
            ("function_call", "{\"name\":\"f\"}"),
            ("suffix", "\"x\""),
            ("use_beam_search", "true"),
            ("prompt_logprobs", "1"),
            ("return_tokens_as_token_ids", "true"),
            ("length_penalty", "1.5"),
            ("repeat_penalty", "1.1"),
            ("n_predict", "5"),
        ] {
            assert_eq!(param(with(endpoint, &format!("\"{field}\":{value}"))), field, "{value}");
        }
        for harmless in [
            "\"tools\":[]",
            "\"tools\":null",
            "\"tool_choice\":\"none\"",
            "\"tool_choice\":\"auto\"",
            "\"parallel_tool_calls\":true",
            "\"response_format\":{\"type\":\"text\"}",
            "\"suffix\":null",
            "\"suffix\":\"\"",
            "\"min_tokens\":0",
            "\"length_penalty\":1.0",
            "\"typical_p\":1",
            "\"skip_special_tokens\":true",
            "\"add_generation_prompt\":true",
            "\"include_stop_str_in_output\":false",
            "\"use_beam_search\":false",
            "\"metadata\":{\"a\":\"b\"}",
            "\"store\":true",
            "\"service_tier\":\"auto\"",
            "\"x_unknown\":[1,{\"a\":[]}]",
            "\"stop\":null",
        ] {
            assert!(with(endpoint, harmless).is_ok(), "{harmless}");
        }
    }
    for (field, value) in
        [("add_generation_prompt", "false"), ("chat_template_kwargs", "{\"a\":1}"), ("continue_final_message", "true")]
    {
        assert_eq!(param(with(Endpoint::Completion, &format!("\"{field}\":{value}"))), field);
    }
    assert_eq!(param(with(Endpoint::Chat, "\"modalities\":[\"text\",\"audio\"]")), "modalities");
    assert!(with(Endpoint::Chat, "\"modalities\":[\"text\"]").is_ok());
    assert_eq!(param(with(Endpoint::Chat, "\"web_search_options\":{}")), "web_search_options");
    assert_eq!(param(with(Endpoint::Chat, "\"prompt\":\"a\"")), "prompt");
    assert_eq!(param(with(Endpoint::Chat, "\"echo\":true")), "echo");
    assert_eq!(param(with(Endpoint::Completion, "\"messages\":[]")), "messages");
    assert!(with(Endpoint::Completion, "\"n\":3,\"best_of\":3").is_ok());
}

#[test]
fn own_endpoints_refuse_unknown_fields() {
    for endpoint in OWN {
        for field in ["x", "min_p", "stop", "n", "stream", "Prompt", "timeout_ms", "", "prompt "] {
            assert_eq!(param(with(endpoint, &format!("\"{field}\":1"))), field);
        }
    }
}

#[test]
fn streams_and_logprobs_agree_across_fields() {
    for endpoint in OPENAI {
        assert_eq!(param(with(endpoint, "\"stream_options\":{\"include_usage\":true}")), "stream_options");
        assert_eq!(param(with(endpoint, "\"stream_options\":1")), "stream_options");
        let inner = "\"stream\":true,\"stream_options\":{\"include_usage\":1}";
        assert_eq!(param(with(endpoint, inner)), "stream_options.include_usage");
        let request = with(endpoint, "\"stream_options\":{\"include_usage\":true,\"x\":1},\"stream\":true").unwrap();
        assert!(request.stream && request.include_usage);
    }
    assert_eq!(with(Endpoint::Chat, "\"logprobs\":true").unwrap().logprobs, Some(0));
    assert_eq!(with(Endpoint::Chat, "\"top_logprobs\":20,\"logprobs\":true").unwrap().logprobs, Some(20));
    assert_eq!(with(Endpoint::Chat, "\"logprobs\":false").unwrap().logprobs, None);
    assert_eq!(param(with(Endpoint::Chat, "\"top_logprobs\":1")), "top_logprobs");
    assert_eq!(param(with(Endpoint::Chat, "\"top_logprobs\":21,\"logprobs\":true")), "top_logprobs");
    assert_eq!(param(with(Endpoint::Chat, "\"logprobs\":1")), "logprobs");
    assert_eq!(with(Endpoint::Chat, "\"max_completion_tokens\":5,\"max_tokens\":9").unwrap().max_tokens, Some(5));
    assert_eq!(with(Endpoint::Completion, "\"echo\":true,\"max_tokens\":0").unwrap().max_tokens, Some(0));
}

#[test]
fn logit_bias_is_a_sorted_map_of_ids() {
    for endpoint in OPENAI {
        let request = with(endpoint, "\"logit_bias\":{\"50\":-100,\"3\":100,\"4294967295\":0.5}").unwrap();
        assert_eq!(request.logit_bias, [(3, 100.0), (50, -100.0), (u32::MAX, 0.5)]);
        for (value, at) in [
            ("[]", "logit_bias"),
            ("{\"a\":1}", "logit_bias.a"),
            ("{\"-1\":1}", "logit_bias.-1"),
            ("{\"+1\":1}", "logit_bias.+1"),
            ("{\"4294967296\":1}", "logit_bias.4294967296"),
            ("{\"1\":101}", "logit_bias.1"),
            ("{\"1\":-100.5}", "logit_bias.1"),
            ("{\"1\":\"1\"}", "logit_bias.1"),
            ("{\"1\":1,\"01\":2}", "logit_bias"),
            ("{\"1\":1,\"1\":2}", "logit_bias"),
        ] {
            assert_eq!(param(with(endpoint, &format!("\"logit_bias\":{value}"))), at, "{value}");
        }
        let entries: Vec<_> = (0..1025).map(|id| format!("\"{id}\":1")).collect();
        assert_eq!(param(with(endpoint, &format!("\"logit_bias\":{{{}}}", entries.join(",")))), "logit_bias");
        assert!(with(endpoint, &format!("\"logit_bias\":{{{}}}", entries[1..].join(","))).is_ok());
    }
}

#[test]
fn tokenize_and_detokenize_are_strict() {
    let tokenize = |body: &str| TokenizeRequest::parse(&mut Reader::new(), &mut body.as_bytes().to_vec());
    let request = tokenize(r#"{"content":"","add_special":true,"parse_special":false,"with_pieces":true}"#).unwrap();
    assert_eq!(request.input, TokenizeInput::Content(String::new()));
    assert!(request.add_special && !request.parse_special && request.with_pieces);
    assert!(matches!(
        tokenize(r#"{"messages":[{"role":"user","content":"a"}]}"#).unwrap().input,
        TokenizeInput::Messages(messages) if messages.len() == 1
    ));
    for (body, at) in [
        ("{}", "content"),
        (r#"{"content":1}"#, "content"),
        (r#"{"content":"a","x":1}"#, "x"),
        (r#"{"content":"a","messages":[{"role":"user","content":"a"}]}"#, "content"),
        (r#"{"content":"a","add_special":1}"#, "add_special"),
    ] {
        assert_eq!(tokenize(body).unwrap_err().param.as_deref(), Some(at), "{body}");
    }
    let detokenize = |body: &str| DetokenizeRequest::parse(&mut Reader::new(), &mut body.as_bytes().to_vec());
    assert_eq!(detokenize(r#"{"tokens":[0,1],"model":"m"}"#).unwrap().tokens, [0, 1]);
    assert!(detokenize(r#"{"tokens":[]}"#).unwrap().tokens.is_empty());
    for (body, at) in [
        ("{}", "tokens"),
        (r#"{"tokens":1}"#, "tokens"),
        (r#"{"tokens":[-1]}"#, "tokens[0]"),
        (r#"{"tokens":["1"]}"#, "tokens[0]"),
        (r#"{"tokens":[[1]]}"#, "tokens[0]"),
        (r#"{"tokens":[],"y":1}"#, "y"),
    ] {
        assert_eq!(detokenize(body).unwrap_err().param.as_deref(), Some(at), "{body}");
    }
}
