//! Calls without a model: walks through their grammars, markers in every spelling, tools that are at fault.

use std::sync::Arc;

use net::api::{Constraint, JsonContent, Tool, ToolChoice, Tools};
use serde_json::{Value, json};

use super::compiler::Library;
use super::tests::{compile, default_tokenizer, walk};
use super::{GuideError, Guided};
use crate::text::{CALL_CLOSE, CALL_OPEN, Call, CallReader, NAME_OPEN, Tokenizer, forced};

fn weather() -> Value {
    json!({"type": "object", "properties": {"city": {"enum": ["Oslo", "Ürümqi \"}"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"], "additionalProperties": false})
}

fn tool(name: &str, parameters: Option<Value>) -> Tool {
    Tool { name: name.into(), definition: "{}".into(), parameters: parameters.map(|schema| schema.to_string()) }
}

/// Three tools, of which one name begins another.
fn tools(choice: ToolChoice, parallel: bool) -> Arc<Tools> {
    let nested = json!({"$defs": {"on": {"type": "boolean"}}, "properties": {"on": {"$ref": "#/$defs/on"}}, "required": ["on"],
        "additionalProperties": false});
    let list = vec![tool("get", None), tool("get_weather", Some(weather())), tool("switch-1", Some(nested))];
    Arc::new(Tools { list, choice, parallel, content: None })
}

fn read(tools: &Arc<Tools>, text: &str) -> (String, Vec<Call>, bool) {
    let (mut reader, mut content) = (CallReader::new(Arc::clone(tools), ""), String::new());
    reader.push(text, &mut content);
    reader.finish(&mut content);
    (content, reader.calls().to_vec(), reader.has_called())
}

#[track_caller]
fn assert_fits(call: &Call) {
    let value: Value = serde_json::from_str(&call.arguments).unwrap_or_else(|error| panic!("{error}: {call:?}"));
    let fields = value.as_object().unwrap();
    let right = match call.tool {
        0 => fields.is_empty(),
        1 => {
            let city = ["Oslo", "Ürümqi \"}"].contains(&value["city"].as_str().unwrap());
            city && value["days"].as_f64().is_some_and(|days| (1.0..=9.0).contains(&days)) && fields.len() == 2
        }
        _ => value["on"].is_boolean() && fields.len() == 1,
    };
    assert!(right && call.is_complete, "{call:?}");
}

#[test]
fn every_walk_makes_calls_of_the_tools_schemas() {
    let tokenizer = default_tokenizer();
    let mut library = Library::default();
    for (choice, parallel) in [
        (ToolChoice::Auto, true),
        (ToolChoice::Auto, false),
        (ToolChoice::Required, true),
        (ToolChoice::Required, false),
        (ToolChoice::Named(1), true),
        (ToolChoice::Named(2), false),
    ] {
        let tools = tools(choice, parallel);
        let beginning = if choice == ToolChoice::Auto { CALL_OPEN.into() } else { forced(&tools) };
        let (mut most, mut seen) = (0, [false; 3]);
        for seed in 0..30 {
            let mut guide = compile(&mut library, &tokenizer, &Constraint::Tools(Arc::clone(&tools))).unwrap();
            let walk = walk(&mut guide, &tokenizer, seed, 4000);
            assert!(walk.ended && !walk.failed, "{choice:?} {parallel}: {}", walk.text);
            let text = format!("{beginning}{}", walk.text);
            let (content, calls, has_called) = read(&tools, &text);
            assert!(content.is_empty() && has_called, "{text}");
            calls.iter().for_each(assert_fits);
            calls.iter().for_each(|call| seen[call.tool] = true);
            most = most.max(calls.len());
            let closes = text.matches(CALL_CLOSE).count();
            let several = parallel && !matches!(choice, ToolChoice::Named(_));
            assert_eq!(closes, if several { calls.len() } else { 0 }, "{text}");
            if let ToolChoice::Named(named) = choice {
                assert!(calls.len() == 1 && calls[0].tool == named, "{text}");
            }
        }
        let is_named = matches!(choice, ToolChoice::Named(_));
        assert_eq!((most > 1, seen == [true; 3]), (parallel && !is_named, !is_named), "{choice:?} {parallel}");
        assert!(most <= 32);
    }
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let mut tokens = Vec::new();
    tokenizer.encode(text, false, false, &mut tokens);
    tokens
}

/// Tokens of the bytes of a text, one each where there are such.
fn spell(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let of = |byte: u8| (0..tokenizer.vocab_len() as u32).find(|id| tokenizer.piece(*id) == [byte]);
    text.bytes().map(|byte| of(byte).unwrap_or_else(|| panic!("no token is byte {byte}"))).collect()
}

fn free(library: &mut Library, tokenizer: &Arc<Tokenizer>) -> (Arc<Tools>, Guided) {
    let tools = tools(ToolChoice::Auto, true);
    let guide = compile(library, tokenizer, &Constraint::Tools(Arc::clone(&tools))).unwrap();
    (tools, Guided::from(guide))
}

#[test]
fn a_guide_is_put_to_work_by_its_marker_alone() {
    let tokenizer = default_tokenizer();
    let mut library = Library::default();
    for before in ["", "Once upon a time, ", "<", "<<tool", "<tool_call", "a <tool_kit> é"] {
        for marker in [encode(&tokenizer, CALL_OPEN), spell(&tokenizer, CALL_OPEN)] {
            let (tools, mut guided) = free(&mut library, &tokenizer);
            for token in encode(&tokenizer, before) {
                guided.push(token);
                assert!(!guided.is_at_work() && !guided.get_mut().is_complete(), "{before}");
            }
            // A tokenizer may begin a text with a space.
            for (i, token) in marker.iter().enumerate() {
                assert!(!guided.is_at_work(), "{before} {i}");
                guided.push(*token);
            }
            assert!(guided.is_at_work(), "{before}");
            let walk = walk(guided.get_mut(), &tokenizer, 7, 4000);
            let text = format!("{before}{CALL_OPEN}{}", walk.text);
            let (content, calls, has_called) = read(&tools, &text);
            assert!(walk.ended && has_called && content == before, "{text}");
            calls.iter().for_each(assert_fits);
        }
    }
}

/// The guide and the reader of the text must agree on what is a call, also where a token reaches over the marker's end.
#[test]
fn what_follows_a_marker_in_its_token_begins_a_call_or_is_text() {
    let tokenizer = default_tokenizer();
    let mut library = Library::default();
    let begin = spell(&tokenizer, &CALL_OPEN[..CALL_OPEN.len() - 1]);
    let ids = 0..tokenizer.vocab_len() as u32;
    let over: Vec<u32> = ids.filter(|id| tokenizer.piece(*id).starts_with(b">")).collect();
    assert!(!over.is_empty());
    for token in over {
        let (tools, mut guided) = free(&mut library, &tokenizer);
        begin.iter().chain([&token]).for_each(|token| guided.push(*token));
        let text = format!("{}{}", &CALL_OPEN[..CALL_OPEN.len() - 1], String::from_utf8_lossy(tokenizer.piece(token)));
        let whole = |rest: &str| read(&tools, &format!("{text}{rest}")).2;
        if guided.is_at_work() {
            let walk = walk(guided.get_mut(), &tokenizer, 3, 4000);
            assert!(walk.ended && whole(&walk.text), "{text}{}", walk.text);
            continue;
        }
        assert!(!whole(&format!("{NAME_OPEN}get\", \"arguments\": {{}}}}")), "{text}");
        // A marker that comes later counts.
        spell(&tokenizer, CALL_OPEN).iter().for_each(|token| guided.push(*token));
        assert!(guided.is_at_work(), "{text}");
    }
    // By hand, as vocabularies may have it.
    for (bytes, fits) in [
        (&b""[..], true),
        (b"\n", true),
        (b"\n{\"name\": \"get_w", true),
        (b"{\"name\": \"get\", \"arguments\": {", true),
        (b"x", false),
        (b"{\"name\": \"got", false),
        (b"\n\n\n\n\n\n\n\n\n", false),
        (b"\xff", false),
    ] {
        let (_, mut guided) = free(&mut library, &tokenizer);
        let words = guided.get_mut().matcher.tok_env().unwrap();
        assert_eq!(guided.get_mut().takes(bytes, &words), fits, "{}", String::from_utf8_lossy(bytes));
        assert!(!guided.get_mut().has_failed());
    }
}

#[test]
fn a_tool_that_is_at_fault_is_named() {
    let tokenizer = default_tokenizer();
    let mut library = Library::default();
    for (parameters, word) in [
        (json!({"type": "string"}), "object"),
        (json!({"type": ["object", "null"]}), "object"),
        (json!({"type": "object", "properties": {"a": {"type": "strnig"}}}), "strnig"),
        (json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}), "none"),
        (json!({"$ref": "#"}), ""),
        (json!({"allOf": vec![json!({"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}); 24]}), "alternatives"),
        (
            json!({"properties": {"a": {"type": "integer", "minimum": 2, "maximum": 1}}, "required": ["a"]}),
            "nsatisfiable",
        ),
    ] {
        let list = vec![tool("good", Some(weather())), tool("bad", Some(parameters.clone()))];
        for choice in [ToolChoice::Auto, ToolChoice::Required, ToolChoice::Named(1)] {
            let constraint =
                Constraint::Tools(Arc::new(Tools { list: list.clone(), choice, parallel: true, content: None }));
            let error = compile(&mut library, &tokenizer, &constraint).err();
            let Some(error @ GuideError::Tool(1, _)) = error else { panic!("{choice:?} {parameters}: {error:?}") };
            assert_eq!(error.field("tools", false), "tools[1].function.parameters");
            let text = error.to_string();
            assert!(text.contains(word) && text.len() < 400 && !text.contains('\n'), "{parameters}: {text}");
        }
    }
}

#[test]
fn as_many_tools_as_a_request_may_have_are_compiled_and_kept_apart() {
    let tokenizer = default_tokenizer();
    let list = (0..128).map(|i| tool(&format!("tool_{i}"), Some(json!({"type": "object",
        "properties": {format!("a{i}"): {"type": "string", "maxLength": 4}, "list": {"type": "array", "maxItems": 2, "items": {"type": "null"}}},
        "required": [format!("a{i}")], "additionalProperties": false}))));
    let tools = Arc::new(Tools { list: list.collect(), choice: ToolChoice::Required, parallel: false, content: None });
    let mut library = Library::default();
    for seed in 0..10 {
        let mut guide = compile(&mut library, &tokenizer, &Constraint::Tools(Arc::clone(&tools))).unwrap();
        let walk = walk(&mut guide, &tokenizer, seed, 4000);
        let (_, calls, has_called) = read(&tools, &format!("{}{}", forced(&tools), walk.text));
        assert!(walk.ended && has_called, "{}", walk.text);
        let value: Value = serde_json::from_str(&calls[0].arguments).unwrap();
        assert!(value[format!("a{}", calls[0].tool)].is_string(), "{calls:?}");
    }
}

fn with_content(tools: &Tools, schema: Option<&Value>) -> Arc<Tools> {
    let content = Some(JsonContent { schema: schema.map(Value::to_string), field: "response_format" });
    Arc::new(Tools { content, ..tools.clone() })
}

#[test]
fn an_answer_with_a_form_is_calls_or_of_its_schema() {
    let tokenizer = default_tokenizer();
    let mut library = Library::default();
    // A text that looks like a call, and one that looks like a marker, as values of the schema.
    let trap = format!("{CALL_OPEN}{NAME_OPEN}get\", \"arguments\": {{}}}}{CALL_CLOSE}");
    let schema = json!({"type": "object", "properties": {"a": {"enum": [trap, "<tool_c"]}}, "required": ["a"],
        "additionalProperties": false});
    for (parallel, schema) in [(true, Some(schema)), (false, Some(json!({"enum": [trap, 7]}))), (true, None)] {
        let tools = with_content(&tools(ToolChoice::Auto, parallel), schema.as_ref());
        let constraint = Constraint::Tools(Arc::clone(&tools));
        let (mut called, mut said) = (0, 0);
        for seed in 0..60 {
            let mut guided = Guided::from(compile(&mut library, &tokenizer, &constraint).unwrap());
            assert!(guided.is_at_work(), "from its first token on");
            let walk = walk(guided.get_mut(), &tokenizer, seed, if schema.is_some() { 4000 } else { 60 });
            assert!(!walk.failed && (walk.ended || schema.is_none()), "{}", walk.text);
            let (content, calls, has_called) = read(&tools, &walk.text);
            if walk.text.starts_with('<') {
                assert!(
                    content.is_empty() && (has_called || !walk.ended) && (parallel || calls.len() <= 1),
                    "{}",
                    walk.text
                );
                calls.iter().filter(|call| call.is_complete).for_each(assert_fits);
                called += 1;
            } else {
                assert!(calls.is_empty() && content == walk.text, "{}", walk.text);
                assert!(schema.is_some() || walk.text.starts_with('{'), "{}", walk.text);
                if walk.ended {
                    let value: Value = serde_json::from_str(&walk.text).unwrap();
                    let fits = value == trap || value == 7 || ["<tool_c", &trap].iter().any(|text| value["a"] == *text);
                    assert!(fits || schema.is_none(), "{value}");
                }
                said += 1;
            }
        }
        assert!(called > 3 && said > 3, "{called} answers called, {said} did not");
    }
}

#[test]
fn a_form_that_is_at_fault_is_named() {
    let tokenizer = default_tokenizer();
    let mut library = Library::default();
    let hostile = json!({"allOf": vec![json!({"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}); 24]});
    for schema in [json!({"type": "strnig"}), json!({"$ref": "#/$defs/none"}), json!({"$ref": "#"}), hostile] {
        let good = with_content(&tools(ToolChoice::Auto, true), Some(&schema));
        let error = compile(&mut library, &tokenizer, &Constraint::Tools(Arc::clone(&good))).err().unwrap();
        assert_eq!(error.field("tools", false), "response_format", "{schema}: {error}");
        // A tool that is at fault too goes first.
        let list = vec![tool("bad", Some(json!({"type": "strnig"})))];
        let bad = Arc::new(Tools { list, ..(*good).clone() });
        let error = compile(&mut library, &tokenizer, &Constraint::Tools(bad)).err().unwrap();
        assert_eq!(error.field("tools", false), "tools[0].function.parameters", "{schema}: {error}");
        assert!(error.to_string().len() < 400);
    }
}
