//! Schemas of request bodies.

use serde_json::{Map, Value, json};

use super::{named, object};
use crate::api::admin::{NAME_BYTES_MAX, PATH_BYTES_MAX, TEST_PROMPT_CHARS_MAX, TEST_PROMPTS_MAX, ValidationConfig};
use crate::api::constraint::{
    CHOICES_MAX, GRAMMAR_BYTES_MAX, NAME_BYTES_MAX as SCHEMA_NAME_BYTES_MAX, SCHEMA_BYTES_MAX,
};
use crate::api::embeddings::EMBEDDING_INPUTS_MAX;
use crate::api::ending::STOP_TOKENS_MAX;
use crate::api::fields::LOGIT_BIAS_MAX;
use crate::api::generate::{Endpoint, GenerateRequest, LOGPROBS_MAX, PROMPT_CHARS_MAX, SEQUENCES_PER_REQUEST_MAX};
use crate::api::messages::{MESSAGES_MAX, PREDICTION_BYTES_MAX};
use crate::api::rendering::{EFFORT_BYTES_MAX, TEMPLATE_BYTES_MAX};
use crate::api::responses::{INCLUDABLE, METADATA_CHARS_MAX, METADATA_NAME_CHARS_MAX, METADATA_PAIRS_MAX, PARTS};
use crate::api::stats::STATS_HOURS_MAX;
use crate::api::tools::{CALL_ID_BYTES_MAX, TOOL_CALLS_MAX, TOOLS_BYTES_MAX, TOOLS_MAX};

pub(super) fn schemas() -> Map<String, Value> {
    let named = [
        ("ChatCompletionRequest", chat()),
        ("ResponseRequest", response()),
        ("CompletionRequest", completion()),
        ("InferenceRequest", inference()),
        ("EmbeddingsRequest", embeddings()),
        ("TokenizeRequest", tokenize()),
        ("DetokenizeRequest", detokenize()),
        ("LoadRequest", load()),
        ("SwapRequest", swap()),
        ("ResponseFormat", response_format()),
        ("StructuredOutputs", structured_outputs()),
        ("Tool", tool()),
        ("ToolChoice", tool_choice()),
        ("FunctionTool", flat_tool()),
        ("InputItem", input_item()),
        ("Message", message()),
        ("Prompt", prompt(SEQUENCES_PER_REQUEST_MAX)),
        ("Input", prompt(EMBEDDING_INPUTS_MAX)),
        ("Tokens_of_request", token_ids()),
    ];
    named.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect()
}

/// What may stand in the query of `GET /v1/stats`.
pub(super) fn parameters_of_stats() -> Value {
    json!([
        {"name": "time_range", "in": "query", "description": format!("Hours or days, up to {STATS_HOURS_MAX} hours"),
            "schema": {"type": "string", "pattern": "^[0-9]{1,3}[hd]$", "default": "24h"}},
        {"name": "include_details", "in": "query", "description": "Adds the shards, and minutes or hours one by one",
            "schema": {"type": "boolean", "default": false}},
    ])
}

fn chat() -> Value {
    let mut properties = openai(Endpoint::Chat);
    properties.extend(fields(json!({
        "messages": {"type": "array", "minItems": 1, "maxItems": MESSAGES_MAX, "items": named("Message")},
        "max_completion_tokens": {"type": "integer", "minimum": 1, "description": "Goes before max_tokens"},
        "logprobs": {"type": "boolean", "default": false},
        "top_logprobs": {"type": "integer", "minimum": 0, "maximum": LOGPROBS_MAX, "description": "With logprobs only"},
        "modalities": {"type": "array", "items": {"enum": ["text"]}},
        "prediction": prediction(),
        "return_token_ids": return_token_ids(),
        "tools": tools("Tool", "response_format"),
        "tool_choice": named("ToolChoice"),
        "parallel_tool_calls": parallel_tool_calls(),
    })));
    properties.extend(rendering());
    let mut schema = object(&["messages"], Value::Object(properties));
    schema["examples"] =
        json!([{"messages": [{"role": "user", "content": "Once upon a time"}], "max_tokens": 16, "stream": true}]);
    schema
}

fn response() -> Value {
    let mut properties = openai(Endpoint::Responses);
    properties.remove("n");
    let format = json!({
        "type": {"enum": ["text", "json_object", "json_schema"]},
        "name": function_name(),
        "schema": {"type": "object", "description": format!("With json_schema: of at most {SCHEMA_BYTES_MAX} bytes")},
        "description": {"type": "string"},
        "strict": {"type": "boolean", "description": "Every schema is kept to, with it or without"},
    });
    let function = object(&["type", "name"], json!({"type": {"enum": ["function"]}, "name": function_name()}));
    let some = json!({
        "type": {"enum": ["allowed_tools"]},
        "mode": {"enum": ["auto", "required"]},
        "tools": {"type": "array", "minItems": 1, "maxItems": TOOLS_MAX, "items": function},
    });
    properties.extend(fields(json!({
        "input": {"anyOf": [{"type": "string"},
            {"type": "array", "minItems": 1, "maxItems": MESSAGES_MAX, "items": named("InputItem")}],
            "description": "The whole conversation, since nothing is kept; a string is a message of the user"},
        "instructions": {"type": "string", "description": "A system message before all others"},
        "max_output_tokens": {"type": "integer", "minimum": 1, "description": "Goes before max_tokens"},
        "max_tool_calls": {"type": "integer", "minimum": 1, "description": "Of tools that servers run; here are none"},
        "include": {"type": "array", "items": {"enum": INCLUDABLE},
            "description": "Log-probabilities; the rest belongs to items that no answer has"},
        "top_logprobs": {"type": "integer", "minimum": 0, "maximum": LOGPROBS_MAX,
            "description": "With `include` of message.output_text.logprobs only"},
        "metadata": {"type": "object", "additionalProperties": {"type": "string", "maxLength": METADATA_CHARS_MAX},
            "description": format!("Repeated in the answer: {METADATA_PAIRS_MAX} pairs with names of \
                {METADATA_NAME_CHARS_MAX} characters at most")},
        "text": object(&[], json!({"format": {"anyOf": [object(&["type"], format)]}})),
        "reasoning": object(&[], json!({"effort": {"type": "string", "minLength": 1, "maxLength": EFFORT_BYTES_MAX,
            "description": "A variable of the chat template"}})),
        "tools": tools("FunctionTool", "text.format"),
        "tool_choice": {"anyOf": [{"enum": ["none", "auto", "required"]}, function,
            object(&["type", "mode", "tools"], some)], "description": "As in a chat"},
        "parallel_tool_calls": parallel_tool_calls(),
        "store": {"type": "boolean", "description": "Nothing is kept either way"},
        "background": {"enum": [false]},
        "truncation": {"enum": ["disabled"], "default": "disabled"},
        "safety_identifier": {"type": "string"},
        "prompt_cache_key": {"type": "string"},
    })));
    properties.extend(rendering());
    let mut schema = object(&["input"], Value::Object(properties));
    schema["examples"] = json!([{"input": "Once upon a time", "temperature": 0, "stream": true}]);
    schema
}

/// How a conversation becomes a prompt.
fn rendering() -> Map<String, Value> {
    fields(json!({
        "chat_template_kwargs": {"type": "object", "description": format!("Further variables of the chat template, \
            {TEMPLATE_BYTES_MAX} bytes at most; a template passes over those that it doesn't know")},
        "reasoning_effort": {"type": "string", "minLength": 1, "maxLength": EFFORT_BYTES_MAX,
            "description": "A variable of the chat template"},
        "add_generation_prompt": {"type": "boolean", "default": true,
            "description": "Whether the prompt ends with the beginning of the assistant's message"},
        "continue_final_message": {"type": "boolean", "default": false,
            "description": "Whether the answer goes on with the last message, one of the assistant"},
    }))
}

fn tools(schema: &str, format: &str) -> Value {
    json!({"type": "array", "maxItems": TOOLS_MAX, "uniqueItems": true, "items": named(schema),
        "description": format!("Functions that the answers may call, of distinct names, {TOOLS_BYTES_MAX} bytes \
            at most. A template of the model that knows <tool_call> is told of them, else a system message is. \
            A {format} in JSON is that of answers that call nothing. Not with ignore_eos, regex, choice or \
            grammar; stop strings end texts, not calls")})
}

fn parallel_tool_calls() -> Value {
    json!({"type": "boolean", "default": true, "description": "Whether an answer may make several calls"})
}

/// What an input is made of.
fn input_item() -> Value {
    let part = object(&["type", "text"], json!({"type": {"enum": PARTS}, "text": {"type": "string"}}));
    let content = json!({"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": part}]});
    let id = json!({"type": "string", "minLength": 1, "maxLength": CALL_ID_BYTES_MAX});
    let message = object(
        &["role", "content"],
        json!({"type": {"enum": ["message"]}, "role": {"enum": ["system", "developer", "user", "assistant"]},
            "content": content}),
    );
    let call = object(
        &["type", "call_id", "name", "arguments"],
        json!({"type": {"enum": ["function_call"]}, "call_id": id, "name": function_name(),
            "arguments": {"type": "string", "description": "The text of a JSON object"}}),
    );
    let output = object(
        &["type", "call_id", "output"],
        json!({"type": {"enum": ["function_call_output"]}, "call_id": id, "output": content}),
    );
    let reasoning = object(&["type"], json!({"type": {"enum": ["reasoning"]}}));
    json!({"anyOf": [message, call, output, reasoning],
        "description": "A message; a call of the assistant, which belongs to its message just before; what came of a call \
            that stands before; reasoning that is empty"})
}

fn completion() -> Value {
    let mut properties = openai(Endpoint::Completion);
    properties.extend(fields(json!({
        "prompt": named("Prompt"),
        "logprobs": {"type": "integer", "minimum": 0, "maximum": LOGPROBS_MAX,
            "description": "With echo also of the prompt's tokens, the first of which has null"},
        "echo": {"type": "boolean", "default": false, "description": "The answer begins with the prompt"},
        "return_token_ids": return_token_ids(),
        "best_of": {"type": "integer", "minimum": 1, "description": "n, if it is given"},
        "tool_choice": {"enum": ["none", "auto"]},
    })));
    let mut schema = object(&["prompt"], Value::Object(properties));
    schema["examples"] = json!([{"prompt": "Once upon a time", "max_tokens": 16}]);
    schema
}

fn return_token_ids() -> Value {
    json!({"type": "boolean", "default": false,
        "description": "Adds prompt_token_ids and token_ids; a stream's chunks have the ids that came since the last one"})
}

/// What both of OpenAI's endpoints know.
fn openai(endpoint: Endpoint) -> Map<String, Value> {
    let defaults = GenerateRequest::defaults(endpoint);
    let max_tokens = match defaults.max_tokens {
        Some(max) => json!({"type": "integer", "minimum": 0, "default": max, "description": "0 with `echo` only"}),
        None => {
            json!({"type": "integer", "minimum": 1, "description": "As many as the context has room for if absent"})
        }
    };
    fields(json!({
        "model": {"type": "string", "description": "The first model of the server if absent"},
        "max_tokens": max_tokens,
        "temperature": {"type": "number", "minimum": 0, "maximum": 2, "default": defaults.temperature,
            "description": "0 always takes the best token"},
        "top_p": {"type": "number", "minimum": 0, "maximum": 1, "default": defaults.top_p},
        "top_k": {"type": "integer", "minimum": -1, "default": defaults.top_k, "description": "0 and -1 are off"},
        "min_p": {"type": "number", "minimum": 0, "maximum": 1, "default": defaults.min_p},
        "repetition_penalty": penalty(),
        "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2, "default": defaults.frequency_penalty},
        "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2, "default": defaults.presence_penalty},
        "logit_bias": {"type": "object", "maxProperties": LOGIT_BIAS_MAX, "description": "By token id",
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}},
        "seed": {"type": "integer", "description": "The same seed gives the same answer; one is drawn if absent"},
        "stop": {"anyOf": [stop_string(1024), {"type": "array", "maxItems": 16, "items": stop_string(1024)}]},
        "stop_token_ids": {"type": "array", "maxItems": STOP_TOKENS_MAX,
            "items": {"type": "integer", "minimum": 0, "maximum": u32::MAX}, "description": "Tokens that end an answer"},
        "min_tokens": {"type": "integer", "minimum": 0, "default": defaults.ending.tokens_min,
            "description": "Before so many tokens nothing ends an answer; not above max_tokens, not with a constraint"},
        "include_stop_str_in_output": {"type": "boolean", "default": defaults.ending.shows_stop},
        "skip_special_tokens": {"type": "boolean", "default": !defaults.ending.shows_control,
            "description": "Otherwise control tokens are shown by their names"},
        "n": {"type": "integer", "minimum": 1, "maximum": SEQUENCES_PER_REQUEST_MAX, "default": defaults.n,
            "description": format!("Answers to each prompt; with all prompts {SEQUENCES_PER_REQUEST_MAX} at most")},
        "ignore_eos": {"type": "boolean", "default": defaults.ignore_eos},
        "stream": {"type": "boolean", "default": defaults.stream},
        "stream_options": object(&[], json!({"include_usage": {"type": "boolean", "default": defaults.include_usage}})),
        "priority": priority(),
        "timeout_ms": milliseconds("For the whole request"),
        "queue_timeout_ms": milliseconds("Until it is computed"),
        "first_token_timeout_ms": milliseconds("Until its first token"),
        "user": {"type": "string"},
        "response_format": named("ResponseFormat"),
        "structured_outputs": named("StructuredOutputs"),
        "guided_json": {"type": "object", "description": "A JSON schema, vLLM's word for it"},
        "guided_regex": text_of_grammar("As regex"),
        "guided_choice": choices("As choice"),
        "guided_grammar": text_of_grammar("As grammar"),
        "json_schema": {"type": "object", "description": "As guided_json"},
        "regex": text_of_grammar("The whole answer matches it; like choice, grammar and response_format one of its kind"),
        "choice": choices("The answer is one of these"),
        "grammar": text_of_grammar(
            "The answer is a text of this grammar: Lark (`start: ..`), or GBNF (`root ::= ..`) as llama.cpp reads it"
        ),
    }))
}

fn inference() -> Value {
    let defaults = GenerateRequest::defaults(Endpoint::Inference);
    let properties = json!({
        "prompt": {"type": "string", "minLength": 1, "maxLength": PROMPT_CHARS_MAX},
        "model": {"type": "string", "description": "The first model of the server if absent"},
        "max_tokens": {"type": "integer", "minimum": 1, "maximum": 2048, "default": defaults.max_tokens},
        "temperature": {"type": "number", "minimum": 0, "maximum": 2, "default": defaults.temperature},
        "top_p": {"type": "number", "minimum": 0, "maximum": 1, "default": defaults.top_p},
        "top_k": {"type": "integer", "minimum": 1, "maximum": 1000, "default": defaults.top_k},
        "repetition_penalty": penalty(),
        "stop_sequences": {"type": "array", "maxItems": 10, "items": stop_string(64)},
        "seed": {"type": "integer", "minimum": 0, "maximum": u32::MAX},
        "priority": priority(),
        "quantization_preference": quantization(),
        "device_preference": device(),
    });
    closed(object(&["prompt"], properties), json!({"prompt": "Once upon a time", "max_tokens": 16}))
}

fn embeddings() -> Value {
    let properties = json!({
        "model": {"type": "string", "description": "The first model of the server if absent"},
        "input": named("Input"),
        "encoding_format": {"enum": ["float", "base64"], "default": "float"},
        "dimensions": {"type": "integer", "minimum": 1, "description": "The length of the model's vectors, if it is given"},
        "priority": priority(),
        "timeout_ms": milliseconds("For the whole request"),
        "queue_timeout_ms": milliseconds("Until the first input is computed"),
    });
    let mut schema = object(&["input"], properties);
    schema["examples"] = json!([{"input": ["a text", "another"]}]);
    schema
}

fn tokenize() -> Value {
    let properties = json!({
        "model": {"type": "string"},
        "content": {"type": "string", "description": "This, or messages"},
        "messages": {"type": "array", "minItems": 1, "maxItems": MESSAGES_MAX, "items": named("Message")},
        "add_special": {"type": "boolean", "default": false},
        "parse_special": {"type": "boolean", "default": true},
        "with_pieces": {"type": "boolean", "default": false},
    });
    closed(object(&[], properties), json!({"content": "Once upon a time", "with_pieces": true}))
}

fn detokenize() -> Value {
    let properties = json!({"model": {"type": "string"}, "tokens": named("Tokens_of_request")});
    closed(object(&["tokens"], properties), json!({"tokens": [1, 2, 3]}))
}

fn load() -> Value {
    let defaults = ValidationConfig::default();
    let validation = json!({
        "enable_cross_validation": {"type": "boolean", "default": defaults.cross_validation},
        "min_accuracy": {"type": "number", "minimum": 0.9, "maximum": 1, "default": 0.99},
        "validation_samples": {"type": "integer", "minimum": 1, "maximum": 4096, "default": defaults.samples},
        "timeout_seconds": {"type": "integer", "minimum": 1, "maximum": 3600, "default": defaults.timeout.as_secs()},
    });
    let cache = json!({
        "enable_kv_cache": {"enum": [true]},
        "cache_size_mb": {"type": "integer", "minimum": 1, "maximum": 1 << 24},
    });
    let properties = json!({
        "model_path": path(),
        "model_id": model_name(),
        "sha256": sha256(),
        "validation_config": inner(validation),
        "device_preference": device(),
        "quantization_format": quantization(),
        "cache_config": inner(cache),
    });
    closed(object(&["model_path"], properties), json!({"model_path": "/var/lib/bitnetd/models/model.gguf"}))
}

fn swap() -> Value {
    let health = json!({
        "inference_test_prompts": {"type": "array", "maxItems": TEST_PROMPTS_MAX,
            "items": {"type": "string", "minLength": 1, "maxLength": TEST_PROMPT_CHARS_MAX}},
        "accuracy_threshold": {"type": "number", "minimum": 0, "maximum": 1},
    });
    let canary = json!({
        "share": {"type": "number", "minimum": 0.001, "maximum": 0.5, "default": 0.1},
        "requests": {"type": "integer", "minimum": 1, "maximum": 100_000, "default": 20},
        "timeout_seconds": {"type": "integer", "minimum": 1, "maximum": 3600, "default": 60},
    });
    let properties = json!({
        "new_model_path": path(),
        "target_model_id": model_name(),
        "sha256": sha256(),
        "swap_strategy": {"enum": ["atomic", "blue_green", "rolling"], "default": "atomic"},
        "rollback_on_failure": {"type": "boolean", "default": true},
        "validation_timeout_seconds": {"type": "integer", "minimum": 10, "maximum": 300, "default": 30},
        "health_check_config": inner(health),
        "canary": inner(canary),
    });
    let example = json!({"new_model_path": "/var/lib/bitnetd/models/new.gguf", "target_model_id": "model"});
    closed(object(&["new_model_path", "target_model_id"], properties), example)
}

fn message() -> Value {
    let function = json!({
        "name": function_name(),
        "arguments": {"type": "string", "description": "The text of a JSON object"},
    });
    let id = json!({"type": "string", "minLength": 1, "maxLength": CALL_ID_BYTES_MAX});
    let call = object(
        &["id", "function"],
        json!({"id": id, "type": {"enum": ["function"]}, "function": object(&["name"], function)}),
    );
    object(
        &["role", "content"],
        json!({
            "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
            "content": {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": text_part()}],
                "description": "May be null with tool_calls"},
            "name": {"type": "string"},
            "tool_calls": {"type": "array", "maxItems": TOOL_CALLS_MAX, "items": call,
                "description": "With role assistant"},
            "tool_call_id": {"type": "string", "minLength": 1, "maxLength": CALL_ID_BYTES_MAX,
                "description": "With role tool"},
        }),
    )
}

fn text_part() -> Value {
    object(&["type", "text"], json!({"type": {"enum": ["text"]}, "text": {"type": "string"}}))
}

fn tool() -> Value {
    let function = object(&["name"], Value::Object(function()));
    object(&["type", "function"], json!({"type": {"enum": ["function"]}, "function": function}))
}

/// As the Responses API writes it.
fn flat_tool() -> Value {
    let mut properties = function();
    properties.insert("type".into(), json!({"enum": ["function"]}));
    object(&["type", "name"], Value::Object(properties))
}

fn function() -> Map<String, Value> {
    fields(json!({
        "name": function_name(),
        "description": {"type": "string"},
        "parameters": {"type": "object",
            "description": format!("The JSON schema of an object, of at most {SCHEMA_BYTES_MAX} bytes; no arguments if absent")},
        "strict": {"type": "boolean", "description": "Every schema is kept to, with it or without"},
    }))
}

fn tool_choice() -> Value {
    let function = object(&["name"], json!({"name": function_name()}));
    let named = object(&["type", "function"], json!({"type": {"enum": ["function"]}, "function": function}));
    let some = object(
        &["mode", "tools"],
        json!({
            "mode": {"enum": ["auto", "required"]},
            "tools": {"type": "array", "minItems": 1, "maxItems": TOOLS_MAX, "items": named},
        }),
    );
    let among = object(&["type", "allowed_tools"], json!({"type": {"enum": ["allowed_tools"]}, "allowed_tools": some}));
    json!({"anyOf": [{"enum": ["none", "auto", "required"]}, named, among],
        "description": "auto: as the model likes; required: one call or more; a function: one call of it; \
            allowed_tools: the same among some"})
}

fn function_name() -> Value {
    json!({"type": "string", "pattern": format!("^[A-Za-z0-9_-]{{1,{SCHEMA_NAME_BYTES_MAX}}}$")})
}

fn response_format() -> Value {
    let schema = json!({
        "name": function_name(),
        "description": {"type": "string"},
        "schema": {"type": "object", "description": format!("A JSON schema of at most {SCHEMA_BYTES_MAX} bytes")},
        "strict": {"type": "boolean", "description": "Every schema is kept to, with it or without"},
    });
    let properties = json!({
        "type": {"enum": ["text", "json_object", "json_schema"]},
        "json_schema": object(&["name"], schema),
        "schema": {"type": "object", "description": "The schema without a name, as llama-server takes it"},
    });
    object(&["type"], properties)
}

fn prediction() -> Value {
    let content = json!({"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": text_part()}]});
    let mut schema = object(&["type", "content"], json!({"type": {"enum": ["content"]}, "content": content}));
    schema["description"] = json!(format!(
        "What the answer is expected to be, {PREDICTION_BYTES_MAX} bytes at most: where \
        it is so, it comes sooner; it never becomes another"
    ));
    schema
}

/// vLLM's.
fn structured_outputs() -> Value {
    let mut schema = object(
        &[],
        json!({
            "json": {"type": "object", "description": "A JSON schema"},
            "json_object": {"type": "boolean"},
            "regex": text_of_grammar("As regex"),
            "choice": choices("As choice"),
            "grammar": text_of_grammar("As grammar"),
        }),
    );
    schema["description"] = json!("One of these");
    schema
}

fn prompt(count_max: usize) -> Value {
    json!({"anyOf": [
        {"type": "string"},
        {"type": "array", "minItems": 1, "maxItems": count_max, "items": {"type": "string"}},
        named("Tokens_of_request"),
        {"type": "array", "minItems": 1, "maxItems": count_max, "items": named("Tokens_of_request")},
    ]})
}

fn token_ids() -> Value {
    json!({"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": u32::MAX}})
}

/// No other fields are known.
fn closed(mut schema: Value, example: Value) -> Value {
    schema["additionalProperties"] = json!(false);
    schema["examples"] = Value::Array(vec![example]);
    schema
}

fn inner(properties: Value) -> Value {
    let mut schema = object(&[], properties);
    schema["additionalProperties"] = json!(false);
    schema
}

fn fields(properties: Value) -> Map<String, Value> {
    match properties {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

fn penalty() -> Value {
    json!({"type": "number", "exclusiveMinimum": 0, "maximum": 2, "default": 1, "description": "1 is off"})
}

fn text_of_grammar(description: &str) -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": GRAMMAR_BYTES_MAX, "description": description})
}

fn choices(description: &str) -> Value {
    json!({"type": "array", "minItems": 1, "maxItems": CHOICES_MAX, "items": {"type": "string", "minLength": 1},
        "description": description})
}

fn stop_string(chars_max: usize) -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": chars_max})
}

fn priority() -> Value {
    json!({"anyOf": [{"enum": ["low", "normal", "high"]}, {"type": "integer"}], "default": "normal",
        "description": "As an integer, below 0 is high, 0 normal, above 0 low"})
}

fn milliseconds(description: &str) -> Value {
    json!({"type": "integer", "minimum": 1, "description": description})
}

fn quantization() -> Value {
    json!({"enum": ["auto", "i2s", "tl1", "tl2"], "default": "auto"})
}

fn device() -> Value {
    json!({"enum": ["auto", "cpu", "gpu"], "default": "auto"})
}

fn path() -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": PATH_BYTES_MAX, "description": "In an allowed directory"})
}

fn model_name() -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": NAME_BYTES_MAX, "pattern": "^[A-Za-z0-9_.:/-]+$"})
}

fn sha256() -> Value {
    json!({"type": "string", "pattern": "^[0-9A-Fa-f]{64}$", "description": "The file is refused unless it has this hash"})
}
