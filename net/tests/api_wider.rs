//! Fields that clients of vLLM and llama-server send, and what spans tools, formats and templates.
#![expect(clippy::unwrap_used, reason = "a test helper that fails is a failed test")]

mod request;

use net::api::{Constraint, Ending, Endpoint, JsonContent, PromptEnd, Rendering};
use net::error::ApiError;
use request::{OPENAI, param, parse, with};

#[test]
fn what_others_call_a_constraint_is_taken_and_errors_name_it() {
    let schema = || Some(Constraint::JsonSchema(r#"{"type":"null"}"#.into()));
    let choice = || Some(Constraint::Choice(vec!["a".into()]));
    let regex = || Some(Constraint::Regex("a+".into()));
    let grammar = || Some(Constraint::Grammar("start: A".into()));
    for endpoint in OPENAI {
        for (fields, expected, field) in [
            (r#""guided_json":{"type":"null"}"#, schema(), "guided_json"),
            (r#""json_schema":{"type": "null"}"#, schema(), "json_schema"),
            (r#""guided_regex":"a+""#, regex(), "guided_regex"),
            (r#""guided_choice":["a"]"#, choice(), "guided_choice"),
            (r#""guided_grammar":"start: A""#, grammar(), "guided_grammar"),
            (r#""structured_outputs":{"json":{"type":"null"},"regex":null}"#, schema(), "structured_outputs"),
            (r#""structured_outputs":{"regex":"a+","json_object":false}"#, regex(), "structured_outputs"),
            (r#""structured_outputs":{"choice":["a"],"structural_tag":""}"#, choice(), "structured_outputs"),
            (r#""structured_outputs":{"grammar":"start: A"}"#, grammar(), "structured_outputs"),
            (r#""structured_outputs":{"json_object":true}"#, Some(Constraint::JsonObject), "structured_outputs"),
            (r#""structured_outputs":{},"guided_json":null"#, None, ""),
            (r#""response_format":{"type":"json_object","schema":{"type":"null"}}"#, schema(), "response_format"),
            (r#""response_format":{"type":"json_schema","schema":{"type":"null"}}"#, schema(), "response_format"),
        ] {
            let request = with(endpoint, fields).unwrap();
            assert_eq!((request.constraint, request.constrained_by), (expected, field), "{fields}");
        }
        for (fields, at) in [
            (r#""guided_json":"{}""#, "guided_json"),
            (r#""guided_choice":[1]"#, "guided_choice[0]"),
            (r#""json_schema":[]"#, "json_schema"),
            (r#""structured_outputs":"a""#, "structured_outputs"),
            (r#""structured_outputs":{"regex":""}"#, "structured_outputs.regex"),
            (r#""structured_outputs":{"json":1}"#, "structured_outputs.json"),
            (r#""structured_outputs":{"structural_tag":"a"}"#, "structured_outputs.structural_tag"),
            (r#""structured_outputs":{"regex":"a","choice":["a"]}"#, "structured_outputs.choice"),
            (r#""guided_regex":"a","regex":"a""#, "regex"),
            (r#""response_format":{"type":"json_object","schema":[]}"#, "response_format.schema"),
            (r#""guided_json":{},"ignore_eos":true"#, "ignore_eos"),
        ] {
            assert_eq!(param(with(endpoint, fields)), at, "{fields}");
        }
    }
}

#[test]
fn a_format_of_json_beside_tools_is_that_of_the_text() {
    let tools = r#""tools":[{"type":"function","function":{"name":"f"}}]"#;
    let content = |fields: &str| {
        let request = with(Endpoint::Chat, &format!("{tools},{fields}"))?;
        assert_eq!(request.constrained_by, "tools");
        Ok::<_, ApiError>(request.tools().unwrap().content.clone())
    };
    let json = |schema: Option<&str>, field| Ok(Some(JsonContent { schema: schema.map(String::from), field }));
    let object = r#""response_format":{"type":"json_object"}"#;
    assert_eq!(content(object), json(None, "response_format"));
    assert_eq!(content(r#""guided_json":{"type":"null"}"#), json(Some(r#"{"type":"null"}"#), "guided_json"));
    assert_eq!(content(r#""response_format":{"type":"text"}"#), Ok(None));
    // Where something must be called, there is no text.
    assert_eq!(content(&format!("{object},\"tool_choice\":\"required\"")), Ok(None));
    let named = r#""tool_choice":{"type":"function","function":{"name":"f"}}"#;
    assert_eq!(content(&format!("{object},{named}")), Ok(None));
    let none = with(Endpoint::Chat, &format!("{object},{tools},\"tool_choice\":\"none\"")).unwrap();
    assert_eq!((none.constraint, none.constrained_by), (Some(Constraint::JsonObject), "response_format"));
    for other in [r#""regex":"a""#, r#""choice":["a"]"#, r#""guided_grammar":"start: A""#] {
        assert_eq!(param(with(Endpoint::Chat, &format!("{other},{tools}"))), "tools", "{other}");
    }
}

#[test]
fn a_chat_says_how_its_template_is_filled() {
    let chat = |fields: &str| with(Endpoint::Chat, fields).map(|request| request.rendering);
    let variables = |fields: &str| {
        let variables = chat(fields).unwrap().variables;
        variables.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
    };
    assert_eq!(chat(r#""chat_template_kwargs":{}"#), Ok(Rendering::default()));
    assert_eq!(
        variables(r#""chat_template_kwargs":{"enable_thinking":false,"a":{"b":[1.5,null,"\""]},"n":null}"#),
        ["enable_thinking=false", r#"a={"b":[1.5,null,"\""]}"#]
    );
    assert_eq!(variables(r#""reasoning_effort":"low""#), [r#"reasoning_effort="low""#]);
    let both = r#""reasoning_effort":"low","chat_template_kwargs":{"reasoning_effort":"high"}"#;
    assert_eq!(variables(both), [r#"reasoning_effort="high""#]);
    assert_eq!(chat(r#""add_generation_prompt":true"#).unwrap().end, PromptEnd::Opened);
    assert_eq!(chat(r#""add_generation_prompt":false"#).unwrap().end, PromptEnd::Closed);
    let of_last = |last: &str, fields: &str| {
        parse(Endpoint::Chat, &format!(r#"{{"messages":[{{"role":"user","content":"a"}},{last}],{fields}}}"#))
    };
    let said = r#"{"role":"assistant","content":"a"}"#;
    for fields in [r#""continue_final_message":true"#, r#""add_generation_prompt":false,"continue_final_message":true"#]
    {
        assert_eq!(of_last(said, fields).unwrap().rendering.end, PromptEnd::Continued);
        for last in [
            r#"{"role":"user","content":"a"}"#,
            r#"{"role":"assistant","content":" \n"}"#,
            r#"{"role":"assistant","content":"a","tool_calls":[{"id":"a","function":{"name":"f"}}]}"#,
        ] {
            assert_eq!(param(of_last(last, fields)), "continue_final_message", "{last}");
        }
    }
    let twice = r#""add_generation_prompt":true,"continue_final_message":true"#;
    assert_eq!(param(of_last(said, twice)), "continue_final_message");
    let forced = r#""tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"required""#;
    assert_eq!(param(of_last(said, &format!("{forced},\"continue_final_message\":true"))), "continue_final_message");
    assert_eq!(param(of_last(said, &format!("\"add_generation_prompt\":false,{forced}"))), "add_generation_prompt");
    let long = "a".repeat(64 << 10);
    for (fields, at) in [
        (r#""chat_template_kwargs":[]"#.into(), "chat_template_kwargs"),
        (r#""chat_template_kwargs":"a""#.into(), "chat_template_kwargs"),
        (r#""chat_template_kwargs":{"messages":[]}"#.into(), "chat_template_kwargs.messages"),
        (r#""chat_template_kwargs":{"tools":[]}"#.into(), "chat_template_kwargs.tools"),
        (r#""chat_template_kwargs":{"bos_token":"a"}"#.into(), "chat_template_kwargs.bos_token"),
        (r#""chat_template_kwargs":{"a":1,"a":2}"#.into(), "chat_template_kwargs.a"),
        (format!("\"chat_template_kwargs\":{{\"a\":\"{long}\"}}"), "chat_template_kwargs"),
        (format!("\"chat_template_kwargs\":{{\"{long}\":1}}"), "chat_template_kwargs"),
        (r#""reasoning_effort":1"#.into(), "reasoning_effort"),
        (format!("\"reasoning_effort\":\"{}\"", &long[..0]), "reasoning_effort"),
        (r#""add_generation_prompt":0"#.into(), "add_generation_prompt"),
        (r#""continue_final_message":"no""#.into(), "continue_final_message"),
    ] {
        assert_eq!(param(with(Endpoint::Chat, &fields)), at, "{fields:.200}");
    }
    let fits = format!("\"chat_template_kwargs\":{{\"a\":\"{}\"}}", &long[3..]);
    assert!(chat(&fits).is_ok());
    let many: Vec<_> = (0..129).map(|i| format!("\"a{i}\":1")).collect();
    assert_eq!(
        with(Endpoint::Chat, &format!("\"chat_template_kwargs\":{{{}}}", many.join(","))).unwrap_err().status,
        400
    );
}

#[test]
fn what_ends_an_answer_is_bounded_and_typed() {
    for endpoint in OPENAI {
        let ending = |fields: &str| with(endpoint, fields).map(|request| request.ending);
        assert_eq!(ending("\"stop_token_ids\":[],\"min_tokens\":0"), Ok(Ending::default()));
        let fields = "\"stop_token_ids\":[7,4294967295],\"min_tokens\":3,\"max_tokens\":3,\"stop\":\"a\",\
            \"include_stop_str_in_output\":true,\"skip_special_tokens\":false";
        let all = Ending {
            strings: vec!["a".into()],
            tokens: vec![7, u32::MAX],
            tokens_min: 3,
            shows_stop: true,
            shows_control: true,
        };
        assert_eq!(ending(fields), Ok(all));
        let ids = |count: usize| format!("\"stop_token_ids\":[{}]", vec!["1"; count].join(","));
        assert_eq!(ending(&ids(128)).unwrap().tokens.len(), 128);
        for (fields, at) in [
            (ids(129), "stop_token_ids"),
            ("\"stop_token_ids\":1".into(), "stop_token_ids"),
            ("\"stop_token_ids\":[-1]".into(), "stop_token_ids[0]"),
            ("\"stop_token_ids\":[1,\"2\"]".into(), "stop_token_ids[1]"),
            ("\"min_tokens\":-1".into(), "min_tokens"),
            ("\"min_tokens\":1.5".into(), "min_tokens"),
            ("\"min_tokens\":4,\"max_tokens\":3".into(), "min_tokens"),
            ("\"min_tokens\":1,\"regex\":\"a\"".into(), "min_tokens"),
            ("\"include_stop_str_in_output\":1".into(), "include_stop_str_in_output"),
            ("\"skip_special_tokens\":\"no\"".into(), "skip_special_tokens"),
        ] {
            assert_eq!(param(with(endpoint, &fields)), at, "{fields:.100}");
        }
    }
    assert_eq!(param(with(Endpoint::Inference, "\"min_tokens\":1")), "min_tokens");
}

#[test]
fn a_prediction_is_a_text() {
    let prediction = |json: &str| with(Endpoint::Chat, &format!("\"prediction\":{json}")).map(|r| r.prediction);
    assert_eq!(prediction(r#"{"type":"content","content":"a"}"#), Ok(Some("a".into())));
    let parts = r#"{"type":"content","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}"#;
    assert_eq!(prediction(parts), Ok(Some("a\nb".into())));
    assert_eq!(prediction("null"), Ok(None));
    let of = |bytes: usize| format!(r#"{{"type":"content","content":"{}"}}"#, "a".repeat(bytes));
    assert!(prediction(&of(64 << 10)).is_ok());
    for (json, at) in [
        (of((64 << 10) + 1), "prediction.content"),
        ("\"a\"".into(), "prediction"),
        ("{}".into(), "prediction.type"),
        (r#"{"type":"content"}"#.into(), "prediction.content"),
        (r#"{"type":"text","content":"a"}"#.into(), "prediction.type"),
        (r#"{"type":"content","content":1}"#.into(), "prediction.content"),
    ] {
        assert_eq!(prediction(&json).unwrap_err().param.as_deref(), Some(at), "{json:.80}");
    }
}
