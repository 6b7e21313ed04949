//! The OpenAPI document against a running server: each answer has the shape that is described, and nothing more.

use serde_json::{Value, json};

use crate::clients::Answer;
use crate::models::Folder;
use crate::server::Server;

struct Document(Value);

impl Document {
    fn of(server: &Server) -> Self {
        let answer = server.get("/openapi.json");
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
        Self(answer.json())
    }

    fn meant<'d>(&'d self, schema: &'d Value) -> &'d Value {
        schema["$ref"].as_str().map_or(schema, |reference| self.0.pointer(&reference[1..]).unwrap())
    }

    /// The schema of that answer.
    fn schema(&self, method: &str, path: &str, status: u16, media_type: &str) -> &Value {
        let responses = &self.0["paths"][path][method]["responses"];
        let schema = &responses[status.to_string()]["content"][media_type]["schema"];
        assert!(schema.is_object(), "{method} {path} {status} {media_type} is not described");
        schema
    }

    /// Why `value` is not what `schema` says; fields that no schema names count.
    fn fault(&self, schema: &Value, value: &Value, at: &str) -> Option<String> {
        let schema = self.meant(schema);
        let fault = |what: String| Some(format!("{at}: {what}"));
        if let Some(ways) = schema["anyOf"].as_array() {
            let faults: Vec<String> = ways.iter().filter_map(|way| self.fault(way, value, at)).collect();
            return if faults.len() < ways.len() { None } else { fault(faults.join(" and ")) };
        }
        if schema.get("const").is_some_and(|only| only != value) {
            return fault(format!("{value} is not {}", schema["const"]));
        }
        if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
            return fault(format!("{value} is not among {}", schema["enum"]));
        }
        let kinds: Vec<&str> = match &schema["type"] {
            Value::String(kind) => vec![kind],
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
            _ => return None,
        };
        let is = |kind: &&str| match *kind {
            "null" => value.is_null(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_u64() || value.is_i64(),
            "number" => value.is_number(),
            "string" => value.is_string(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            other => panic!("{other} is no type"),
        };
        if !kinds.iter().any(is) {
            return fault(format!("{value} is no {kinds:?}"));
        }
        if let Some(items) = value.as_array() {
            let mut items = items.iter().enumerate();
            return items.find_map(|(i, item)| self.fault(&schema["items"], item, &format!("{at}[{i}]")));
        }
        let fields = value.as_object()?;
        let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
        if let Some(missing) = required.into_iter().find(|name| !fields.contains_key(*name)) {
            return fault(format!("{missing} is missing"));
        }
        fields.iter().find_map(|(name, value)| {
            let property = schema["properties"].get(name).or(schema.get("additionalProperties"));
            let at = format!("{at}.{name}");
            match property {
                Some(property) => self.fault(property, value, &at),
                None if schema.get("properties").is_none() => None,
                None => Some(format!("{at} is not described")),
            }
        })
    }

    #[track_caller]
    fn check(&self, method: &str, path: &str, answer: &Answer) {
        let schema = self.schema(method, path, answer.status, "application/json");
        let fault = self.fault(schema, &answer.json(), path);
        assert_eq!(fault, None, "{} {}", answer.status, answer.text());
    }
}

#[test]
fn answers_have_the_shape_that_is_described() {
    let folder = Folder::new();
    let (_, second) = (folder.synth("a.gguf", 1), folder.synth("b.gguf", 2));
    let server = folder.serve("a.gguf", &[]);
    let document = Document::of(&server);
    let tool = json!({"type": "function", "function": {"name": "f"}});
    let mut receipt = String::new();
    for (path, body) in [
        ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 2})),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 2, "logprobs": true, "top_logprobs": 2}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 2, "tools": [tool], "tool_choice": "required"}),
        ),
        (
            "/v1/responses",
            json!({"input": "a", "max_output_tokens": 2, "include": ["message.output_text.logprobs"], "top_logprobs": 2}),
        ),
        (
            "/v1/responses",
            json!({"input": "a", "max_output_tokens": 2, "tools": [{"type": "function", "name": "f"}], "tool_choice": "required"}),
        ),
        ("/v1/completions", json!({"prompt": "a", "max_tokens": 2, "logprobs": 1, "n": 2})),
        ("/v1/inference", json!({"prompt": "a", "max_tokens": 2})),
        ("/v1/tokenize", json!({"content": "a b"})),
        ("/v1/tokenize", json!({"content": "a b", "with_pieces": true})),
        ("/v1/detokenize", json!({"tokens": [1, 2]})),
    ] {
        let answer = server.post(path, &body.to_string());
        assert_eq!(answer.status, 200, "{path} {}", answer.text());
        document.check("post", path, &answer);
        answer.header("x-request-id").unwrap().clone_into(&mut receipt);
        document.check("post", path, &server.post(path, "{"));
        document.check("post", path, &server.post(path, r#"{"model":"none","prompt":1}"#));
    }
    let inferred = server.post("/v1/inference", r#"{"prompt":"a","max_tokens":1}"#);
    inferred.header("x-request-id").unwrap().clone_into(&mut receipt);
    for (described, path) in [
        ("/v1/models", "/v1/models"),
        ("/v1/models/{id}", "/v1/models/m"),
        ("/v1/models/{id}", "/v1/models/none"),
        ("/v1/models/{id}/status", "/v1/models/m/status"),
        ("/v1/models/{id}/status", "/v1/models/none/status"),
        ("/v1/receipts/{request_id}", &*format!("/v1/receipts/{receipt}")),
        ("/v1/receipts/{request_id}", "/v1/receipts/none"),
        ("/v1/devices", "/v1/devices"),
        ("/v1/stats", "/v1/stats?time_range=30d&include_details=true"),
        ("/v1/stats", "/v1/stats?time_range=0h"),
        ("/health", "/health"),
        ("/health/live", "/health/live"),
        ("/health/ready", "/health/ready"),
    ] {
        document.check("get", described, &server.get(path));
    }
    document.check("post", "/v1/models/load", &server.post("/v1/models/load", "{}"));
    let loaded = server.admin("POST", "/v1/models/load", &json!({"model_path": second}));
    assert_eq!(loaded.status, 200, "{}", loaded.text());
    document.check("post", "/v1/models/load", &loaded);
    let swap = json!({"new_model_path": second, "target_model_id": "m"});
    let swapped = server.admin("POST", "/v1/models/swap", &swap);
    assert_eq!(swapped.status, 200, "{}", swapped.text());
    document.check("post", "/v1/models/swap", &swapped);
    document.check("post", "/v1/models/swap", &server.admin("POST", "/v1/models/swap", &json!({})));
}

#[test]
fn events_have_the_shape_that_is_described() {
    let server = Server::start(&[]);
    let document = Document::of(&server);
    let tool = json!({"type": "function", "function": {"name": "f"}});
    let described = |path: &str| {
        document.0["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]["x-event-data"].clone()
    };
    for (path, body) in [
        ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "a"}], "logprobs": true})),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "a"}], "tools": [tool], "tool_choice": "required"}),
        ),
        ("/v1/completions", json!({"prompt": "a", "logprobs": 1})),
    ] {
        let mut body = body;
        (body["max_tokens"], body["stream"]) = (json!(3), json!(true));
        body["stream_options"] = json!({"include_usage": true});
        let chunks = server.post(path, &body.to_string()).chunks();
        assert!(chunks.len() > 2);
        for chunk in chunks {
            assert_eq!(document.fault(&described(path), &chunk, path), None, "{chunk}");
        }
    }
    let path = "/v1/responses";
    for body in [
        json!({"input": "a", "max_output_tokens": 3, "include": ["message.output_text.logprobs"], "stream": true}),
        json!({"input": "a", "max_output_tokens": 90, "stream": true, "tools": [{"type": "function", "name": "f"}],
            "tool_choice": "required", "parallel_tool_calls": false}),
    ] {
        let events = server.post(path, &body.to_string()).events();
        assert!(events.len() > 6, "{events:?}");
        for event in &events {
            let data = serde_json::from_str(&event.data).unwrap();
            assert_eq!(document.fault(&described(path)[&event.name], &data, path), None, "{data}");
        }
    }
    let path = "/v1/inference/stream";
    let events = server.post(path, r#"{"prompt":"a","max_tokens":40}"#).events();
    let mut names: Vec<&str> = events.iter().map(|event| event.name.as_str()).collect();
    for event in &events {
        let data = serde_json::from_str(&event.data).unwrap();
        assert_eq!(document.fault(&described(path)[&event.name], &data, path), None, "{data}");
    }
    names.dedup();
    assert!(names.contains(&"token") && names.ends_with(&["metrics", "complete"]), "{names:?}");
}

#[test]
fn the_document_needs_no_key_and_names_what_each_endpoint_wants() {
    let key = format!("ops={}:model:read", "0".repeat(64));
    let server = Server::start(&["--api-key", &key, "--require-authentication"]);
    let document = Document::of(&server);
    for (path, operations) in document.0["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let place = path.replace("{id}", "x").replace("{request_id}", "x");
            let body = if method == "post" { "{}" } else { "" };
            let answer = server.connect().request(&method.to_ascii_uppercase(), &place, "", body);
            let open = operation["security"] == json!([]);
            assert_eq!(answer.status == 401, !open, "{method} {path} gave {}", answer.status);
            let described = &operation["responses"][answer.status.to_string()];
            assert!(described.is_object(), "{method} {path}: {} is not described", answer.status);
            if answer.status == 401 {
                document.check(method, path, &answer);
            }
        }
    }
}
