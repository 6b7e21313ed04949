//! Schemas of answers.

use serde_json::{Map, Value, json};

use super::{codes, named, object};

pub(super) fn schemas() -> Map<String, Value> {
    let mut all = Map::new();
    for group in [errors(), openai(), responses(), own(), models(), server(), stats()] {
        match group {
            Value::Object(schemas) => all.extend(schemas),
            _ => unreachable!("each group names its schemas"),
        }
    }
    all
}

fn errors() -> Value {
    let common = json!({
        "message": text(),
        "type": text(),
        "param": {"type": ["string", "null"], "description": "The field at fault"},
        "code": {"enum": codes()},
    });
    let mut own = common.clone();
    own["request_id"] = text();
    own["timestamp"] = time();
    own["details"] = object(&["status"], json!({"status": count(), "retry_after_ms": count()}));
    own["recovery_suggestions"] = list(text());
    let names = ["message", "type", "param", "code"];
    let own_names = [&names[..], &["request_id", "timestamp", "details", "recovery_suggestions"]].concat();
    json!({
        "Error": object(&["error"], json!({"error": object(&names, common)})),
        "OwnError": object(&["error"], json!({"error": object(&own_names, own)})),
    })
}

fn openai() -> Value {
    let finish = json!({"enum": ["stop", "length", "tool_calls", null]});
    let ids = || list(count());
    let whole = |kind: &str, choice: Value| {
        object(
            &["id", "object", "created", "model", "choices", "usage"],
            json!({"id": text(), "object": {"const": kind}, "created": count(), "model": text(),
                "choices": list(choice), "usage": named("Usage"), "prompt_token_ids": ids()}),
        )
    };
    let chunk = |kind: &str, choice: Value| {
        object(
            &["id", "object", "created", "model", "choices"],
            json!({"id": text(), "object": {"const": kind}, "created": count(), "model": text(),
                "choices": list(choice), "usage": {"anyOf": [named("Usage"), {"type": "null"}]},
                "prompt_token_ids": ids()}),
        )
    };
    let function = json!({"name": text(), "arguments": text()});
    let called = json!({"id": text(), "type": {"const": "function"}, "function": all_of(function.clone())});
    let message = object(
        &["role", "content", "refusal"],
        json!({"role": {"const": "assistant"}, "content": maybe("string"), "refusal": {"type": "null"},
            "tool_calls": list(all_of(called.clone()))}),
    );
    // Its id, type and name come first, then the arguments piece by piece.
    let mut begun = called;
    (begun["index"], begun["function"]) = (count(), object(&["arguments"], function));
    let delta = object(
        &[],
        json!({"role": {"const": "assistant"}, "content": maybe("string"),
            "tool_calls": list(object(&["index", "function"], begun))}),
    );
    let chat = |part: &str, schema: Value| {
        object(
            &["index", part, "logprobs", "finish_reason"],
            json!({"index": count(), part: schema, "logprobs": or_null("ChatLogprobs"), "finish_reason": finish,
                "token_ids": ids()}),
        )
    };
    let completion = object(
        &["index", "text", "logprobs", "finish_reason"],
        json!({"index": count(), "text": text(), "logprobs": or_null("CompletionLogprobs"), "finish_reason": finish,
            "prompt_token_ids": ids(), "token_ids": ids()}),
    );
    json!({
        "ChatCompletion": whole("chat.completion", chat("message", message)),
        "ChatCompletionChunk": chunk("chat.completion.chunk", chat("delta", delta)),
        "Completion": whole("text_completion", completion.clone()),
        "CompletionChunk": chunk("text_completion", completion),
        "Usage": all_of(json!({"prompt_tokens": count(), "completion_tokens": count(), "total_tokens": count(),
            "prompt_tokens_details": all_of(json!({"cached_tokens": count()}))})),
        "ChatLogprobs": all_of(json!({"content": list(token_logprobs()), "refusal": {"type": "null"}})),
        "CompletionLogprobs": all_of(json!({
            "tokens": list(text()),
            "token_logprobs": list(json!({"type": ["number", "null"]})),
            "top_logprobs": list(json!({"type": ["object", "null"], "additionalProperties": number()})),
            "text_offset": list(count()),
        })),
        "Embeddings": all_of(json!({
            "object": {"const": "list"},
            "data": list(all_of(json!({
                "object": {"const": "embedding"},
                "index": count(),
                "embedding": {"anyOf": [list(number()), {"type": "string", "contentEncoding": "base64",
                    "description": "Little-endian f32"}]},
            }))),
            "model": text(),
            "usage": all_of(json!({"prompt_tokens": count(), "total_tokens": count()})),
        })),
    })
}

fn token_logprobs() -> Value {
    let token = json!({"token": text(), "logprob": number(), "bytes": list(count())});
    let mut with_top = token.clone();
    with_top["top_logprobs"] = list(all_of(token));
    all_of(with_top)
}

/// Responses, and the data of their events.
fn responses() -> Value {
    let progress = json!({"enum": ["in_progress", "completed", "incomplete"]});
    let nullable = |schema: Value| json!({"anyOf": [schema, {"type": "null"}]});
    let event = |names: &[&str], mut properties: Value| {
        (properties["type"], properties["sequence_number"]) = (json!({"enum": names}), count());
        all_of(properties)
    };
    let of_item = |names: &[&str], mut properties: Value| {
        (properties["item_id"], properties["output_index"]) = (text(), count());
        event(names, properties)
    };
    let logprobs = list(token_logprobs());
    let part = all_of(
        json!({"type": {"const": "output_text"}, "text": text(), "annotations": {"type": "array", "maxItems": 0},
        "logprobs": logprobs}),
    );
    let message = all_of(json!({"type": {"const": "message"}, "id": text(), "status": progress,
        "role": {"const": "assistant"}, "content": list(part.clone())}));
    let call = all_of(json!({"type": {"const": "function_call"}, "id": text(), "status": progress, "call_id": text(),
        "name": text(), "arguments": text()}));
    let usage = all_of(json!({"input_tokens": count(), "output_tokens": count(), "total_tokens": count(),
        "input_tokens_details": all_of(json!({"cached_tokens": count(), "cache_write_tokens": {"const": 0,
            "description": "What is kept for prompts to come is not counted"}})),
        "output_tokens_details": all_of(json!({"reasoning_tokens": {"const": 0}}))}));
    json!({
        "Response": all_of(json!({
            "id": text(),
            "object": {"const": "response"},
            "created_at": count(),
            "completed_at": maybe("integer"),
            "model": text(),
            "status": {"enum": ["in_progress", "completed", "incomplete", "failed"]},
            "error": nullable(all_of(json!({"code": text(), "message": text()}))),
            "incomplete_details": nullable(all_of(json!({"reason": {"const": "max_output_tokens"}}))),
            "output": list(named("ResponseItem")),
            "usage": nullable(usage),
            "instructions": maybe("string"),
            "max_output_tokens": maybe("integer"),
            "max_tool_calls": maybe("integer"),
            "metadata": {"type": "object", "additionalProperties": text()},
            "parallel_tool_calls": flag(),
            "prompt_cache_key": maybe("string"),
            "safety_identifier": maybe("string"),
            "temperature": number(),
            "tool_choice": {"type": ["string", "object"]},
            "tools": list(json!({"type": "object"})),
            "top_logprobs": count(),
            "top_p": number(),
            "user": maybe("string"),
            "text": all_of(json!({"format": {"type": "object"}})),
            "reasoning": all_of(json!({"effort": maybe("string"), "summary": {"type": "null"}})),
            "background": {"const": false},
            "previous_response_id": {"type": "null"},
            "service_tier": {"const": "default"},
            "store": {"const": false},
            "truncation": {"const": "disabled"},
        })),
        "ResponseItem": {"anyOf": [message, call]},
        "ResponseEvent": event(
            &["response.created", "response.in_progress", "response.completed", "response.incomplete", "response.failed"],
            json!({"response": named("Response")}),
        ),
        "ResponseItemEvent": event(
            &["response.output_item.added", "response.output_item.done"],
            json!({"output_index": count(), "item": named("ResponseItem")}),
        ),
        "ResponsePartEvent": of_item(
            &["response.content_part.added", "response.content_part.done"],
            json!({"content_index": count(), "part": part}),
        ),
        "ResponseTextDelta": of_item(&["response.output_text.delta"],
            json!({"content_index": count(), "delta": text(), "logprobs": logprobs})),
        "ResponseTextDone": of_item(&["response.output_text.done"],
            json!({"content_index": count(), "text": text(), "logprobs": logprobs})),
        "ResponseArgumentsDelta": of_item(&["response.function_call_arguments.delta"], json!({"delta": text()})),
        "ResponseArgumentsDone": of_item(&["response.function_call_arguments.done"],
            json!({"name": text(), "arguments": text()})),
        "ResponseErrorEvent": event(&["error"],
            json!({"code": {"enum": codes()}, "message": text(), "param": maybe("string")})),
    })
}

fn own() -> Value {
    let device = json!({"type": "string", "pattern": "^(cpu|cuda:[0-9]+)$"});
    let event = |name: &str, mut properties: Value| {
        properties["type"] = json!({"const": name});
        all_of(properties)
    };
    json!({
        "Inference": all_of(json!({
            "text": text(),
            "tokens_generated": count(),
            "inference_time_ms": number(),
            "tokens_per_second": number(),
            "model_id": text(),
            "request_id": text(),
            "quantization_used": text(),
            "device_used": device,
            "performance_metrics": all_of(json!({"batch_size": count(), "queue_time_ms": number(),
                "processing_time_ms": number(), "memory_usage_mb": number()})),
        })),
        "Event_token": event("token", json!({"text": text(), "token_id": count(), "position": count(), "timestamp": time()})),
        "Event_progress": event("progress",
            json!({"tokens_generated": count(), "tokens_per_second": number(), "estimated_remaining_ms": number()})),
        "Event_metrics": event("metrics", json!({"device": device, "memory_usage_mb": number()})),
        "Event_error": event("error", json!({"code": {"enum": codes()}, "message": text(), "details": {"type": "object"}})),
        "Event_complete": event("complete", json!({"total_tokens": count(), "inference_time_ms": number(),
            "finish_reason": {"enum": ["stop", "length"]}, "request_id": text()})),
        "Tokens": all_of(json!({
            "tokens": {"anyOf": [list(count()), list(all_of(json!({
                "id": count(),
                "piece": {"anyOf": [text(), list(count())], "description": "Bytes where it is no UTF-8"},
            })))]},
            "count": count(),
        })),
        "Text": all_of(json!({"content": text()})),
    })
}

fn models() -> Value {
    let check = all_of(json!({"passed": flag(), "duration_ms": number(), "message": text()}));
    let validation = object(
        &["gguf_validation", "quantization_validation", "performance_validation"],
        json!({"gguf_validation": check, "quantization_validation": check, "performance_validation": check,
            "cross_validation": check}),
    );
    let version = json!({"generation": count(), "state": {"enum": ["active", "canary", "standby"]},
        "metadata": named("ModelMetadata"), "loaded_at": time(), "load_time_ms": number()});
    json!({
        "Model": object(
            &["id", "object", "created", "owned_by", "max_model_len", "kind"],
            json!({"id": text(), "object": {"const": "model"}, "created": count(), "owned_by": text(),
                "max_model_len": count(), "kind": {"enum": ["generation", "embedding"]}, "dimensions": count()}),
        ),
        "Models": all_of(json!({"object": {"const": "list"}, "data": list(named("Model"))})),
        "ModelMetadata": all_of(json!({"file_size_bytes": count(), "parameter_count": count(),
            "quantization_format": text(), "architecture": text(), "vocab_size": count(), "context_length": count(),
            "sha256": text()})),
        "ModelStatus": all_of(json!({
            "model_id": text(),
            "health": {"enum": ["healthy", "degraded"]},
            "operation_in_progress": flag(),
            "versions": list(all_of(version)),
            "resources": all_of(json!({"weights_bytes": count(), "kv_cache_bytes": count(), "replicas": count()})),
            "performance": all_of(json!({"requests_total": count(), "requests_failed": count(),
                "generated_tokens": count(), "running": count(), "waiting": count(),
                "mean_inter_token_ms": maybe("number")})),
        })),
        "Loaded": all_of(json!({"model_id": text(), "status": {"const": "loaded"}, "load_time_ms": number(),
            "model_metadata": named("ModelMetadata"), "validation_results": validation})),
        "Swap": all_of(json!({
            "swap_id": text(),
            "status": {"enum": ["completed", "rolled_back", "failed"]},
            "strategy": {"enum": ["atomic", "blue_green", "rolling"]},
            "total_duration_ms": number(),
            "previous_model_metadata": named("ModelMetadata"),
            "new_model_metadata": named("ModelMetadata"),
            "swap_phases": all_of(json!({"validation_duration_ms": number(), "swap_duration_ms": number(),
                "health_check_duration_ms": number()})),
            "quantization_comparison": all_of(json!({"format_changed": flag(), "accuracy_delta": maybe("number"),
                "performance_delta": maybe("number")})),
            "health_check_results": all_of(json!({"overall_healthy": flag(), "individual_checks": list(all_of(
                json!({"name": text(), "healthy": flag(), "message": text(), "duration_ms": number()})))})),
            "rollback_info": all_of(json!({"rollback_performed": flag(), "rollback_reason": maybe("string"),
                "rollback_duration_ms": maybe("number")})),
        })),
        "Receipt": all_of(json!({"request_id": text(), "model_id": text(), "model_sha256": text(),
            "generation": count(), "quantization": text(), "kernels": text(), "isa": text(), "device": text(),
            "fallback": flag(), "shard": count(), "seed": count(), "prompt_tokens": count(),
            "completion_tokens": count(), "sequences": count(),
            "outcome": {"enum": ["stop", "length", "failed", "cancelled"]}, "received_at": time(),
            "queue_ms": number(), "first_token_ms": maybe("number"), "total_ms": number()})),
    })
}

fn server() -> Value {
    let status = json!({"enum": ["healthy", "degraded", "unhealthy"]});
    let cpu = all_of(json!({"id": {"const": "cpu"}, "kind": {"const": "cpu"}, "node": text(), "cpus": text(),
        "state": text(), "isa": text()}));
    let gpu = all_of(json!({"id": text(), "kind": {"const": "gpu"}, "name": text(), "state": text(),
        "reason": maybe("string"), "compute_capability": text(), "kernels": maybe("string"),
        "prompt_attention": {"enum": ["exact", "tensor", null]}, "memory_bytes": count(),
        "multiprocessors": count(), "sequences": maybe("integer"), "sequences_max": maybe("integer"),
        "decode_step_ms": maybe("number"), "prefill_ms_per_token": maybe("number")}));
    json!({
        "Health": all_of(json!({"status": status, "timestamp": time(), "components": {"type": "object",
            "additionalProperties": all_of(json!({"status": status, "message": text()}))}})),
        "Device": {"anyOf": [cpu, gpu]},
        "Devices": all_of(json!({
            "object": {"const": "list"},
            "data": list(named("Device")),
            "model": {"anyOf": [all_of(json!({"id": text(), "quantization": text()})), {"type": "null"}]},
            "unused_gpus": {"type": ["string", "null"], "description": "Why there are GPUs that are not used"},
        })),
    })
}

fn stats() -> Value {
    let counts =
        |names: &[&str]| all_of(Value::Object(names.iter().map(|name| ((*name).to_owned(), count())).collect()));
    let spread = named("Spread");
    let timeline = all_of(json!({"ended_at": time(), "seconds": count(), "requests_started": count(),
        "requests_failed": count(), "generated_tokens": count(), "time_to_first_token_ms": spread}));
    let shards =
        counts(&["shard", "requests_active", "connections", "running", "waiting", "kv_blocks_used", "kv_blocks"]);
    json!({
        "Spread": all_of(json!({"count": count(), "mean": maybe("number"), "p50": maybe("number"),
            "p95": maybe("number"), "p99": maybe("number")})),
        "Stats": object(
            &["time_range_seconds", "since", "covered_seconds", "server_stats", "inference_stats", "device_stats",
                "batch_stats"],
            json!({
                "time_range_seconds": count(),
                "since": {"type": "string", "format": "date-time", "description":
                    "From when on it is counted: the start of the range to the minute (beyond a day the hour), or of the server"},
                "covered_seconds": number(),
                "server_stats": all_of(json!({"started_at": time(), "uptime_seconds": number(), "draining": flag(),
                    "shards": count(), "workers": count(), "connections": count(), "responses_total": count(),
                    "responses": counts(&["2xx", "3xx", "4xx", "5xx"]), "shard_restarts": count(),
                    "executor_restarts": count(),
                    "swaps_since_start": counts(&["completed", "rolled_back", "failed"])})),
                "inference_stats": all_of(json!({"requests_started": count(), "requests_active": count(),
                    "requests_per_second": number(),
                    "sequences_finished": counts(&["stop", "length", "cancelled", "failed"]),
                    "rejected": counts(&["queue_full", "memory", "deadline", "draining", "connections", "rate_limit"]),
                    "prompt_tokens": count(), "generated_tokens": count(), "generated_tokens_per_second": number(),
                    "prefix_cache_hit_ratio": maybe("number"), "time_to_first_token_ms": spread,
                    "inter_token_ms": spread, "queue_ms": spread, "request_ms": spread})),
                "device_stats": all_of(json!({"devices": list(named("Device")), "cpu_seconds": number(),
                    "cpu_utilization_ratio": number(), "memory_resident_bytes": count()})),
                "batch_stats": all_of(json!({"steps": count(), "step_ms": spread, "rows_mean": maybe("number"),
                    "sequences_mean": maybe("number"), "running": count(), "waiting": count(),
                    "kv_cache_usage_ratio": number(), "preemptions": count(), "drafted_tokens": count(),
                    "accepted_tokens": count()})),
                "details": all_of(json!({"shards": list(shards), "timeline": list(timeline)})),
            }),
        ),
    })
}

/// An object all of whose fields are always there.
fn all_of(properties: Value) -> Value {
    let names: Vec<&str> = properties.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    let mut all = json!({"type": "object", "required": names});
    all["properties"] = properties;
    all
}

fn text() -> Value {
    json!({"type": "string"})
}

fn time() -> Value {
    json!({"type": "string", "format": "date-time"})
}

fn number() -> Value {
    json!({"type": "number"})
}

fn count() -> Value {
    json!({"type": "integer", "minimum": 0})
}

fn flag() -> Value {
    json!({"type": "boolean"})
}

fn list(items: Value) -> Value {
    let mut list = json!({"type": "array"});
    list["items"] = items;
    list
}

fn maybe(kind: &str) -> Value {
    json!({"type": [kind, "null"]})
}

fn or_null(schema: &str) -> Value {
    json!({"anyOf": [named(schema), {"type": "null"}]})
}
