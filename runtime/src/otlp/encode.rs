//! Spans as OTLP in JSON: ids as hexadecimal digits, 64-bit numbers as strings.

use std::time::Duration;

use serde_json::{Value, json};

use super::RequestSpan;

/// One request to the collector.
pub(super) fn encode(service_name: &str, requests: &[RequestSpan]) -> Vec<u8> {
    let spans: Vec<Value> = requests.iter().flat_map(spans_of).collect();
    let resource = [text("service.name", service_name), text("service.version", env!("CARGO_PKG_VERSION"))];
    let scope = json!({"name": "bitnetd", "version": env!("CARGO_PKG_VERSION")});
    let whole = json!({"resourceSpans": [{
        "resource": {"attributes": resource},
        "scopeSpans": [{"scope": scope, "spans": spans}],
    }]});
    whole.to_string().into_bytes()
}

/// A request, and the parts of its time.
fn spans_of(request: &RequestSpan) -> Vec<Value> {
    let mut server = span(request, request.span_id, request.parent_id, (request.start, request.end));
    let name =
        request.route.as_ref().map_or_else(|| request.method.to_owned(), |route| format!("{} {route}", request.method));
    server["name"] = json!(name);
    server["kind"] = json!(KIND_SERVER);
    server["attributes"] = attributes(request).into();
    if !request.state.is_empty() {
        server["traceState"] = json!(request.state);
    }
    if request.status >= 500 || request.status == 0 {
        server["status"] = json!({"code": STATUS_ERROR});
    }
    let mut spans = vec![server];
    let parts = (1..).zip(parts(request)).map(|(number, (name, from, to))| {
        let mut part = span(request, child_id(request.span_id, number), Some(request.span_id), (from, to));
        part["name"] = json!(name);
        part["kind"] = json!(KIND_INTERNAL);
        part
    });
    spans.extend(parts);
    spans
}

fn span(request: &RequestSpan, id: u64, parent: Option<u64>, (start, end): (Duration, Duration)) -> Value {
    let mut span = json!({
        "traceId": format!("{:032x}", request.trace_id),
        "spanId": format!("{id:016x}"),
        "startTimeUnixNano": start.as_nanos().to_string(),
        "endTimeUnixNano": end.as_nanos().to_string(),
    });
    if let Some(parent) = parent {
        span["parentSpanId"] = json!(format!("{parent:016x}"));
    }
    span
}

fn attributes(request: &RequestSpan) -> Vec<Value> {
    let mut all =
        vec![text("http.request.method", request.method), text("url.path", &request.path), text("url.scheme", "http")];
    all.extend(request.route.as_ref().map(|route| text("http.route", route)));
    if request.status > 0 {
        all.push(number("http.response.status_code", u64::from(request.status)));
    }
    if request.status >= 500 {
        all.push(text("error.type", &request.status.to_string()));
    }
    let Some(computed) = &request.computed else { return all };
    let receipt = &computed.receipt;
    let operation = match request.route.as_deref() {
        Some("/v1/chat/completions" | "/v1/responses") => "chat",
        Some("/v1/embeddings") => "embeddings",
        _ => "text_completion",
    };
    all.extend([
        text("gen_ai.operation.name", operation),
        text("gen_ai.provider.name", "bitnetd"),
        text("gen_ai.request.model", &computed.model),
        text("gen_ai.response.model", &computed.model),
        number("gen_ai.usage.input_tokens", receipt.prompt_tokens),
        number("gen_ai.usage.output_tokens", receipt.completion_tokens),
        json!({"key": "gen_ai.response.finish_reasons",
            "value": {"arrayValue": {"values": [{"stringValue": receipt.outcome.as_str()}]}}}),
        text("bitnetd.device", &receipt.device.name()),
        text("bitnetd.request_id", &crate::receipts::format_id(receipt.id)),
    ]);
    all
}

/// Waiting for a place, the prompt, the tokens after the first, as far as it came.
fn parts(request: &RequestSpan) -> Vec<(&'static str, Duration, Duration)> {
    let Some(computed) = &request.computed else { return Vec::new() };
    let receipt = &computed.receipt;
    let at = |us: u64| request.start.saturating_add(Duration::from_micros(us)).min(request.end);
    let (admitted, ended) = (receipt.queue_us, receipt.total_us);
    let mut parts = Vec::with_capacity(3);
    match receipt.first_token_us {
        Some(first) => {
            parts.push(("queue", at(0), at(admitted)));
            parts.push(("prefill", at(admitted), at(first)));
            parts.push(("decode", at(first), at(ended)));
        }
        // Vectors have no tokens; what never got a place has nothing but its wait.
        None if admitted > 0 => {
            parts.push(("queue", at(0), at(admitted)));
            parts.push(("prefill", at(admitted), at(ended)));
        }
        None => parts.push(("queue", at(0), at(ended))),
    }
    parts
}

/// Ids of parts need only differ from each other and from all others: a mix of the request's own.
fn child_id(span_id: u64, number: u64) -> u64 {
    let mixed = (span_id ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 31) | 1
}

fn text(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

fn number(key: &str, value: u64) -> Value {
    json!({"key": key, "value": {"intValue": value.to_string()}})
}

/// Of the enumerations of OTLP.
const KIND_INTERNAL: u8 = 1;
const KIND_SERVER: u8 = 2;
const STATUS_ERROR: u8 = 2;

#[cfg(test)]
mod tests {
    use super::super::Computed;
    use super::*;
    use crate::receipts::{Outcome, Receipt};

    #[test]
    fn a_request_has_its_parts_within_it() {
        let receipt = Receipt {
            outcome: Outcome::Length,
            prompt_tokens: 3,
            completion_tokens: 4,
            queue_us: 10,
            first_token_us: Some(30),
            total_us: 500,
            ..Receipt::default()
        };
        let request = RequestSpan {
            trace_id: 0xabc,
            span_id: 5,
            parent_id: Some(9),
            state: "a=1".into(),
            method: "POST",
            path: "/v1/chat/completions".into(),
            route: Some("/v1/chat/completions".into()),
            start: Duration::from_secs(1),
            end: Duration::from_secs(1) + Duration::from_micros(100),
            status: 200,
            computed: Some(Computed { model: "m\"".into(), receipt }),
        };
        let body: Value = serde_json::from_slice(&encode("s", &[request])).unwrap();
        let spans = body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap();
        let names: Vec<&str> = spans.iter().map(|span| span["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["POST /v1/chat/completions", "queue", "prefill", "decode"]);
        assert_eq!((&spans[0]["parentSpanId"], &spans[0]["traceState"]), (&json!("0000000000000009"), &json!("a=1")));
        assert!(spans[0].get("status").is_none());
        for part in &spans[1..] {
            assert_eq!(part["parentSpanId"], spans[0]["spanId"]);
            assert_eq!(part["traceId"], "00000000000000000000000000000abc");
        }
        assert_eq!(spans[3]["startTimeUnixNano"], "1000030000");
        assert_eq!(spans[3]["endTimeUnixNano"], "1000100000", "no part ends after its request");
        let mut ids: Vec<&str> = spans.iter().map(|span| span["spanId"].as_str().unwrap()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 4);
        let attributes = spans[0]["attributes"].to_string();
        for part in ["{\"intValue\":\"4\"}", "gen_ai.usage.output_tokens", "\"chat\"", "\"length\"", "m\\\""] {
            assert!(attributes.contains(part), "{part} in {attributes}");
        }
    }
}
