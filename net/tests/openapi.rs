//! The OpenAPI document against the router and the parsers: what it says is so, and nothing is left out.
#![expect(clippy::unwrap_used, reason = "a test helper that fails is a failed test")]

use net::api::{
    DetokenizeRequest, EmbeddingsRequest, Endpoint, GenerateRequest, LoadRequest, SwapRequest, TokenizeRequest,
    openapi, route,
};
use net::error::ApiError;
use net::http::Method;
use net::json::Reader;
use serde_json::{Map, Value, json};

fn document() -> Value {
    serde_json::from_slice(openapi()).unwrap()
}

fn fields(value: &Value) -> &Map<String, Value> {
    value.as_object().unwrap_or_else(|| panic!("no object: {value}"))
}

/// What a schema means, its reference followed.
fn meant<'d>(document: &'d Value, schema: &'d Value) -> &'d Value {
    match schema["$ref"].as_str() {
        Some(reference) => document.pointer(&reference[1..]).unwrap_or_else(|| panic!("{reference} leads nowhere")),
        None => schema,
    }
}

#[test]
fn every_described_path_is_routed_and_has_no_further_methods() {
    let document = document();
    let methods = [Method::Get, Method::Post, Method::Put, Method::Patch, Method::Delete, Method::Trace];
    let mut ids = Vec::new();
    for (path, operations) in fields(&document["paths"]) {
        let plain: String = path
            .split('{')
            .map(|part| part.split_once('}').map_or(part, |(_, rest)| rest))
            .collect::<Vec<_>>()
            .join("x");
        for method in methods {
            let described = operations.get(method.as_str().to_ascii_lowercase());
            assert_eq!(route(method, &plain).is_ok(), described.is_some(), "{method:?} {path}");
            let Some(operation) = described else { continue };
            ids.push(operation["operationId"].as_str().unwrap().to_owned());
            assert!(operation["summary"].as_str().is_some_and(|summary| !summary.is_empty()), "{path}");
            assert!(fields(&operation["responses"]).keys().any(|status| status.starts_with('2')), "{path}");
            assert_eq!(operation["requestBody"].is_object(), method == Method::Post, "{method:?} {path}");
            let in_path = operation["parameters"][0]["in"] == "path";
            assert_eq!(in_path, path.contains('{'), "{path}");
        }
    }
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count, "an operation's id stands twice");
    // Those that nobody may forget, as programs know them.
    for path in
        ["/v1/chat/completions", "/v1/models/{id}/status", "/v1/receipts/{request_id}", "/metrics", "/openapi.json"]
    {
        assert!(document["paths"][path].is_object(), "{path}");
    }
}

#[test]
fn every_reference_leads_somewhere_and_every_schema_is_used() {
    fn references<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
        match value {
            Value::Object(fields) => {
                if let Some(reference) = fields.get("$ref") {
                    found.push(reference.as_str().unwrap());
                }
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let document = document();
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 50);
    for reference in &found {
        assert!(document.pointer(&reference[1..]).is_some(), "{reference} leads nowhere");
    }
    for name in fields(&document["components"]["schemas"]).keys() {
        let reference = format!("#/components/schemas/{name}");
        assert!(found.contains(&reference.as_str()), "nothing refers to {name}");
    }
}

fn parse(path: &str, body: &Value) -> Result<(), ApiError> {
    let (mut reader, mut body) = (Reader::new(), body.to_string().into_bytes());
    let generate =
        |endpoint, reader: &mut Reader, body: &mut [u8]| GenerateRequest::parse(endpoint, reader, body).map(drop);
    match path {
        "/v1/chat/completions" => generate(Endpoint::Chat, &mut reader, &mut body),
        "/v1/responses" => generate(Endpoint::Responses, &mut reader, &mut body),
        "/v1/completions" => generate(Endpoint::Completion, &mut reader, &mut body),
        "/v1/inference" => generate(Endpoint::Inference, &mut reader, &mut body),
        "/v1/inference/stream" => generate(Endpoint::InferenceStream, &mut reader, &mut body),
        "/v1/embeddings" => EmbeddingsRequest::parse(&mut reader, &mut body).map(drop),
        "/v1/tokenize" => TokenizeRequest::parse(&mut reader, &mut body).map(drop),
        "/v1/detokenize" => DetokenizeRequest::parse(&mut reader, &mut body).map(drop),
        "/v1/models/load" => LoadRequest::parse(&mut reader, &mut body).map(drop),
        "/v1/models/swap" => SwapRequest::parse(&mut reader, &mut body).map(drop),
        _ => panic!("{path} has a body that is not tested"),
    }
}

/// Values that a schema says are good, and such that it says are bad.
fn samples(document: &Value, schema: &Value) -> (Vec<Value>, Vec<Value>) {
    let schema = meant(document, schema);
    let bound = |name: &str| schema[name].as_f64();
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    if let Some(words) = schema["enum"].as_array() {
        return (words.clone(), vec![json!("unheard-of"), json!({})]);
    }
    match schema["type"].as_str() {
        Some("boolean") => (good, bad) = (vec![json!(true), json!(false)], vec![json!("true"), json!(1)]),
        Some(kind @ ("integer" | "number")) => {
            let whole = kind == "integer";
            let number = |value: f64| if whole { json!(value as i64) } else { json!(value) };
            let beyond = if whole { 1.0 } else { 0.001 };
            good.extend(bound("minimum").map(number));
            good.extend(bound("maximum").map(number));
            bad.extend(bound("minimum").map(|least| number(least - beyond)));
            bad.extend(bound("exclusiveMinimum").map(number));
            bad.extend(bound("maximum").map(|most| number(most + beyond)));
            good.extend(schema.get("default").filter(|default| !default.is_null()).cloned());
            bad.extend([json!("1"), json!([])]);
            bad.extend(whole.then(|| json!(1.5)));
        }
        Some("string") => {
            let length = |name: &str| schema[name].as_u64().map(|length| length as usize);
            good.extend(length("minLength").map(|least| json!("a".repeat(least))));
            good.extend(length("maxLength").map(|most| json!("a".repeat(most))));
            bad.extend(length("minLength").map(|least| json!("a".repeat(least - 1))));
            bad.extend(length("maxLength").map(|most| json!("a".repeat(most + 1))));
            bad.extend(schema["pattern"].as_str().map(|_| json!("a b")));
            bad.extend([json!(1), json!([])]);
        }
        Some("array") => {
            let (items, bad_items) = samples(document, &schema["items"]);
            let item = items.first().cloned().unwrap_or(json!("a"));
            let many = |count: u64| Value::Array(vec![item.clone(); count as usize]);
            good.push(many(1));
            let most = schema["maxItems"].as_u64().filter(|_| schema["uniqueItems"] != true);
            good.extend(most.map(many));
            bad.extend(schema["maxItems"].as_u64().map(|most| many(most + 1)));
            bad.extend(schema["minItems"].as_u64().map(|least| many(least - 1)));
            bad.extend(bad_items.into_iter().map(|item| json!([item])));
            bad.push(json!({}));
        }
        Some("object") if schema["properties"].is_object() => {
            let mut whole = Map::new();
            for name in schema["required"].as_array().unwrap() {
                let name = name.as_str().unwrap();
                let (values, _) = samples(document, &schema["properties"][name]);
                whole.insert(name.to_owned(), values.first().cloned().unwrap_or(json!("a")));
            }
            good.push(Value::Object(whole.clone()));
            bad.push(json!(1));
            for (name, property) in fields(&schema["properties"]) {
                let (_, values) = samples(document, property);
                let with = |value: &Value| {
                    whole.iter().map(|(k, v)| (k.clone(), v.clone())).chain([(name.clone(), value.clone())])
                };
                bad.extend(values.iter().map(|value| Value::Object(with(value).collect())));
            }
            if schema["additionalProperties"] == false {
                bad.push(json!({"unheard_of": 1}));
            }
        }
        Some("object") => bad.push(json!(1)),
        _ => {
            let ways: Vec<_> =
                schema["anyOf"].as_array().into_iter().flatten().map(|way| samples(document, way)).collect();
            good.extend(ways.iter().flat_map(|(good, _)| good.clone()));
            bad.push(json!({"a": 1}));
        }
    }
    (good, bad)
}

#[test]
fn parsers_take_what_is_described_and_refuse_what_is_not() {
    let document = document();
    let mut tried = 0;
    for (path, operations) in fields(&document["paths"]) {
        let Some(body) = operations["post"].get("requestBody") else { continue };
        let schema = meant(&document, &body["content"]["application/json"]["schema"]);
        let example = schema["examples"][0].clone();
        parse(path, &example).unwrap_or_else(|error| panic!("{path} {example}: {error}"));
        for name in schema["required"].as_array().unwrap() {
            let mut body = example.clone();
            fields_of(&mut body).remove(name.as_str().unwrap());
            assert!(parse(path, &body).is_err(), "{path} without {name}");
        }
        let unknown = with(path, &example, "unheard_of", json!(1));
        assert_eq!(parse(path, &unknown).is_err(), schema["additionalProperties"] == false, "{path}");
        for (name, property) in fields(&schema["properties"]) {
            let (good, bad) = samples(&document, property);
            for value in good {
                tried += 1;
                let body = with(path, &example, name, value);
                parse(path, &body).unwrap_or_else(|error| panic!("{path} {:.300}: {error}", body.to_string()));
            }
            for value in bad {
                tried += 1;
                let body = with(path, &example, name, value);
                let error = parse(path, &body).err().unwrap_or_else(|| panic!("{path} took {:.300}", body.to_string()));
                let param = error.param.unwrap_or_default();
                assert!(error.status == 400 && param.starts_with(name.as_str()), "{path} {body:.300}: {param}");
            }
        }
    }
    assert!(tried > 500, "{tried}");
}

fn fields_of(body: &mut Value) -> &mut Map<String, Value> {
    body.as_object_mut().unwrap()
}

/// `body` with one field more, and with what that field can't be without.
fn with(path: &str, body: &Value, name: &str, value: Value) -> Value {
    let mut body = body.clone();
    let fields = fields_of(&mut body);
    match name {
        "top_logprobs" if path == "/v1/responses" => {
            fields.insert("include".into(), json!(["message.output_text.logprobs"]));
        }
        "top_logprobs" => drop(fields.insert("logprobs".into(), json!(true))),
        "stream_options" => drop(fields.insert("stream".into(), json!(true))),
        "max_tokens" if value == 0 && path == "/v1/completions" => drop(fields.insert("echo".into(), json!(true))),
        "best_of" => {
            fields.insert(name.to_owned(), value.clone());
            fields.insert("n".into(), value.clone());
        }
        "tool_choice" if path == "/v1/chat/completions" => {
            let tool = json!({"type": "function", "function": {"name": "a"}});
            fields.insert("tools".into(), json!([tool]));
        }
        "tool_choice" if path == "/v1/responses" => {
            fields.insert("tools".into(), json!([{"type": "function", "name": "a"}]));
        }
        "continue_final_message" => {
            let name = if path == "/v1/responses" { "input" } else { "messages" };
            fields.insert(name.into(), json!([{"role": "assistant", "content": "a"}]));
        }
        // With `content` these are refused.
        "messages" => drop(fields.remove("content")),
        _ => {}
    }
    fields.insert(name.to_owned(), value);
    body
}
