//! `GET /openapi.json`: what the server offers, from the router's own table. Limits and defaults are those of the parsers
//! (`net/tests/openapi.rs` asks them), answers those that a running server gives (`runtime/tests/serve/openapi.rs`).

mod answers;
mod requests;

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::route::{Access, Route, described};
use crate::error::{Code, Dialect};
use crate::http::Method;

/// The document as JSON, made when it is first asked for.
pub fn openapi() -> &'static [u8] {
    static DOCUMENT: LazyLock<Vec<u8>> = LazyLock::new(|| document().to_string().into_bytes());
    &DOCUMENT
}

fn document() -> Value {
    let mut paths = Map::new();
    for (path, methods) in described() {
        let operations = methods.iter().map(|(method, route)| {
            let mut operation = operation(route, *method);
            if let Some(name) = path.split_once('{').and_then(|(_, rest)| rest.split_once('}')) {
                operation["parameters"] = json!([parameter_of_path(name.0)]);
            }
            (method.as_str().to_ascii_lowercase(), operation)
        });
        paths.insert(path.clone(), Value::Object(operations.collect()));
    }
    let mut schemas = requests::schemas();
    schemas.extend(answers::schemas());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "bitnetd",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Inference server for ternary (BitNet b1.58) models",
            "description": "Every GET is also a HEAD, and every path answers OPTIONS. Every answer has the field \
                `x-request-id`. In JSON of requests null means absent. Fields that are not described here are refused on \
                the own endpoints, and on those of OpenAI's API ignored, unless they would change the answer.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer",
                    "description": "An API key, or a token (JWT, HS256) whose scopes open endpoints."},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    })
}

/// What one method of one path does.
fn operation(route: &Route<'_>, method: Method) -> Value {
    let Told { id, summary, request, answer, errors } = tell(route);
    let mut responses = Map::new();
    for (status, response) in answer {
        responses.insert(status.to_string(), response);
    }
    let guards: &[u16] = match route.access() {
        Access::Open => &[],
        Access::Keyed(_) | Access::Guarded(_) => &[401, 403],
    };
    let body_errors: &[u16] = if method == Method::Post { &[400, 408, 411, 413, 415] } else { &[] };
    // Any of them may be limited in its rate.
    for status in guards.iter().chain(body_errors).chain(errors).chain(&[429]) {
        responses.entry(status.to_string()).or_insert_with(|| error(*status, route.dialect()));
    }
    let mut operation = json!({
        "operationId": id,
        "summary": summary,
        "tags": [if route.dialect() == Dialect::OpenAi { "OpenAI" } else { "own" }],
        "security": security(route.access()),
        "responses": responses,
    });
    if *route == Route::Stats {
        operation["parameters"] = requests::parameters_of_stats();
    }
    if let Some(schema) = request {
        operation["requestBody"] =
            json!({"required": true, "content": {"application/json": {"schema": named(schema)}}});
    }
    operation
}

struct Told {
    id: &'static str,
    summary: &'static str,
    /// Name of the body's schema.
    request: Option<&'static str>,
    answer: Vec<(u16, Value)>,
    /// Statuses of refusals, beyond those of any body and of any key.
    errors: &'static [u16],
}

/// Every route, so that one without a description does not compile.
fn tell(route: &Route<'_>) -> Told {
    let told =
        |id, summary, request, answer, errors| Told { id, summary, request, answer: vec![(200, answer)], errors };
    let generation: &[u16] = &[404, 429, 500, 503];
    match route {
        Route::ChatCompletions => told(
            "createChatCompletion",
            "Answer a conversation",
            Some("ChatCompletionRequest"),
            either("ChatCompletion", "ChatCompletionChunk"),
            generation,
        ),
        Route::Responses => told(
            "createResponse",
            "Answer a conversation, by the Responses API; nothing is kept of it",
            Some("ResponseRequest"),
            response_answer(),
            generation,
        ),
        Route::Completions => told(
            "createCompletion",
            "Continue prompts",
            Some("CompletionRequest"),
            either("Completion", "CompletionChunk"),
            generation,
        ),
        Route::Embeddings => told(
            "createEmbedding",
            "Vectors of texts, by models that are made for it",
            Some("EmbeddingsRequest"),
            json_answer("Embeddings", "The vectors, in the order of the inputs"),
            generation,
        ),
        Route::Inference => told(
            "infer",
            "Continue a prompt",
            Some("InferenceRequest"),
            json_answer("Inference", "The text with what it took"),
            generation,
        ),
        Route::InferenceStream => told(
            "inferStream",
            "Continue a prompt, as a stream of named events",
            Some("InferenceRequest"),
            own_stream(),
            generation,
        ),
        Route::Tokenize => told(
            "tokenize",
            "Cut a text into tokens",
            Some("TokenizeRequest"),
            json_answer("Tokens", "The tokens"),
            &[404],
        ),
        Route::Detokenize => told(
            "detokenize",
            "Join tokens to a text",
            Some("DetokenizeRequest"),
            json_answer("Text", "The text; what is not UTF-8 becomes U+FFFD"),
            &[404],
        ),
        route => tell_of_the_server(route),
    }
}

fn tell_of_the_server(route: &Route<'_>) -> Told {
    let told =
        |id, summary, request, answer, errors| Told { id, summary, request, answer: vec![(200, answer)], errors };
    let own_health = |id, summary| Told {
        id,
        summary,
        request: None,
        answer: vec![(200, json_answer("Health", "It is")), (503, json_answer("Health", "It is not"))],
        errors: &[],
    };
    let nothing = vec![(204, json!({"description": "Done; requests that had begun have ended"}))];
    match route {
        Route::Models => told("listModels", "Models that are served", None, json_answer("Models", "All of them"), &[]),
        Route::Model(_) => told("getModel", "A model that is served", None, json_answer("Model", "The model"), &[404]),
        Route::ModelStatus(_) => told(
            "getModelStatus",
            "Versions of a model that are loaded, what they take and how they do",
            None,
            json_answer("ModelStatus", "The state of the model"),
            &[404],
        ),
        Route::LoadModel => told(
            "loadModel",
            "Load a model file and serve it under a name of its own",
            Some("LoadRequest"),
            json_answer("Loaded", "It passed its checks and is served"),
            &[404, 409, 500, 503],
        ),
        Route::SwapModel => told(
            "swapModel",
            "Serve another file under a name, by a switch that fails no request",
            Some("SwapRequest"),
            json_answer("Swap", "How the swap ended; what does not pass is rolled back"),
            &[404, 409, 500, 503],
        ),
        Route::DeleteModel(_) => Told {
            id: "deleteModel",
            summary: "Stop serving a model",
            request: None,
            answer: nothing,
            errors: &[404, 409, 500, 503],
        },
        Route::Receipt(_) => told(
            "getReceipt",
            "What served one of the last requests",
            None,
            json_answer("Receipt", "The receipt"),
            &[404],
        ),
        Route::Devices => told("listDevices", "What computes here", None, json_answer("Devices", "All devices"), &[]),
        Route::Stats => told(
            "stats",
            "What the server has done in a time, from what it has counted since it started",
            None,
            json_answer("Stats", "The numbers"),
            &[400],
        ),
        Route::Health => own_health("health", "Whether the server, its models and its queue do well"),
        Route::HealthLive => told("live", "Whether the shard turns", None, json_answer("Health", "It does"), &[]),
        Route::HealthReady => own_health("ready", "Whether requests are taken"),
        Route::Metrics => told(
            "metrics",
            "Metrics in the text format of Prometheus, or of OpenMetrics for those who would rather have it (Accept)",
            None,
            metrics_answer(),
            &[404],
        ),
        Route::OpenApi => told(
            "openapi",
            "This document",
            None,
            json!({"description": "The document", "content": {"application/json": {"schema": {"type": "object"}}}}),
            &[],
        ),
        Route::Page => told("page", "A chat and live charts", None, other_answer("text/html", "The page"), &[]),
        Route::ChatCompletions
        | Route::Responses
        | Route::Completions
        | Route::Embeddings
        | Route::Inference
        | Route::InferenceStream
        | Route::Tokenize
        | Route::Detokenize => unreachable!("told of above"),
        Route::Options(_) => unreachable!("no place in the table leads here"),
    }
}

fn security(access: Access) -> Value {
    let by = |scopes: &[&str]| json!([{"bearer": scopes}, {"key": scopes}]);
    match access {
        Access::Open => json!([]),
        Access::Guarded(scope) => by(&[scope.as_str()]),
        // Anyone may, unless the server is configured to want a key of everyone.
        Access::Keyed(scope) => {
            let scope: Vec<&str> = scope.iter().map(|scope| scope.as_str()).collect();
            let mut ways = by(&scope);
            ways.as_array_mut().expect("made above").insert(0, json!({}));
            ways
        }
    }
}

fn parameter_of_path(name: &str) -> Value {
    json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}})
}

fn named(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

fn json_answer(schema: &str, description: &str) -> Value {
    json!({"description": description, "content": {"application/json": {"schema": named(schema)}}})
}

fn other_answer(media_type: &str, description: &str) -> Value {
    json!({"description": description, "content": {media_type: {"schema": {"type": "string"}}}})
}

fn metrics_answer() -> Value {
    let mut answer = other_answer("text/plain; version=0.0.4", "The metrics");
    answer["content"]["application/openmetrics-text; version=1.0.0"] = json!({"schema": {"type": "string"}});
    answer
}

/// One body, or with `stream` events of OpenAI's form.
fn either(whole: &str, chunk: &str) -> Value {
    let mut answer = json_answer(whole, "The answer, or with `stream` its pieces as they come");
    answer["content"]["text/event-stream"] = json!({
        "schema": {"type": "string", "description": format!(
            "Events `data: JSON` whose data is a {chunk}, then `data: [DONE]`. Where something fails after the first \
             event, the last one is an Error. Lines that begin with a colon keep the connection alive."
        )},
        "x-event-data": named(chunk),
    });
    answer
}

/// One body, or with `stream` events with names.
fn response_answer() -> Value {
    let kinds = [
        ("response.created", "ResponseEvent"),
        ("response.in_progress", "ResponseEvent"),
        ("response.output_item.added", "ResponseItemEvent"),
        ("response.content_part.added", "ResponsePartEvent"),
        ("response.output_text.delta", "ResponseTextDelta"),
        ("response.output_text.done", "ResponseTextDone"),
        ("response.content_part.done", "ResponsePartEvent"),
        ("response.function_call_arguments.delta", "ResponseArgumentsDelta"),
        ("response.function_call_arguments.done", "ResponseArgumentsDone"),
        ("response.output_item.done", "ResponseItemEvent"),
        ("response.completed", "ResponseEvent"),
        ("response.incomplete", "ResponseEvent"),
        ("response.failed", "ResponseEvent"),
        ("error", "ResponseErrorEvent"),
    ];
    let events: Map<String, Value> = kinds.iter().map(|(name, schema)| ((*name).to_owned(), named(schema))).collect();
    let mut answer = json_answer("Response", "The answer, or with `stream` its pieces as they come");
    answer["content"]["text/event-stream"] = json!({
        "schema": {"type": "string", "description":
            "Events with a name; one of the last four is the last. Data repeats the name as its type and counts events from \
             0. Lines that begin with a colon keep the connection alive."},
        "x-event-data": events,
    });
    answer
}

fn own_stream() -> Value {
    let names = ["token", "progress", "metrics", "error", "complete"];
    let events: Map<String, Value> =
        names.iter().map(|name| ((*name).to_owned(), named(&format!("Event_{name}")))).collect();
    json!({"description": "The pieces as they come", "content": {"text/event-stream": {
        "schema": {"type": "string", "description":
            "Events with a name; `complete` or `error` is the last. Data repeats the name as its type. Lines that begin \
             with a colon keep the connection alive."},
        "x-event-data": events,
    }}})
}

fn error(status: u16, dialect: Dialect) -> Value {
    let (description, wait) = match status {
        400 => ("The request is wrong; `param` names the field", false),
        401 => ("A key is needed", false),
        403 => (
            "The key lacks the scope, the endpoint is off, or the browser's page is of an origin that is not listed",
            false,
        ),
        404 => ("No such thing", false),
        408 => ("The request did not arrive in time, or took longer than its timeout", false),
        409 => ("Another load, swap or removal is in progress, or the name is taken", false),
        411 => ("The body has no length", false),
        413 => ("The body is too large", false),
        415 => ("The body is no JSON in UTF-8", false),
        429 => (
            "Not now: the queue is full, or too slow for the request's time limits, or the client has used up its rate",
            true,
        ),
        503 => ("The server is shutting down, or lacks the device or the memory", true),
        _ => ("The server failed", false),
    };
    let schema = if dialect == Dialect::OpenAi { "Error" } else { "OwnError" };
    let mut response = json_answer(schema, description);
    if wait {
        let field =
            |description: &str| json!({"description": description, "schema": {"type": "integer", "minimum": 1}});
        response["headers"] =
            json!({"Retry-After": field("Seconds to wait"), "retry-after-ms": field("Milliseconds to wait")});
    }
    response
}

/// An object whose `required` fields are always there.
fn object(required: &[&str], properties: Value) -> Value {
    let mut object = json!({"type": "object", "required": required});
    object["properties"] = properties;
    object
}

fn codes() -> Vec<&'static str> {
    Code::ALL.iter().map(|code| code.as_str()).collect()
}
