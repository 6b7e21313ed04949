//! Wrong requests: each gets its error, and the server lives on.

use std::io::Write;

use serde_json::{Value, json};

use crate::server::{MODEL, PATIENCE, Server};

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = r#""messages":[{"role":"user","content":"Hi"}]"#;

#[track_caller]
fn assert_error(status: u16, code: &str, param: &Value, server: &Server, path: &str, body: &[u8]) {
    let shown = String::from_utf8_lossy(&body[..body.len().min(200)]);
    let answer = server.connect().post(path, body);
    assert_eq!(answer.status, status, "{path} {shown}: {}", answer.text());
    let error = answer.json()["error"].clone();
    assert_eq!(error["code"], code, "{path} {shown}: {error}");
    assert_eq!(&error["param"], param, "{path} {shown}: {error}");
    assert!(error["message"].as_str().is_some_and(|message| (1..1000).contains(&message.len())), "{error}");
    assert!(error["type"].is_string(), "{error}");
    assert!(answer.header("x-request-id").is_some());
    assert!(!matches!(status, 429 | 503) || answer.header("retry-after").is_some(), "{path} {shown}");
    assert!(answer.header("date").is_some_and(|date| date.ends_with(" GMT")));
}

#[test]
fn bad_bodies_are_refused_with_the_field_at_fault() {
    let server = Server::start(&[]);
    let field = |name: &str| json!(name);
    let none = Value::Null;
    let bad = "INVALID_REQUEST";
    let out = "VALIDATION_FAILED";
    let deep = "[".repeat(100_000);
    let chat = |more: &str| format!("{{{MESSAGES},{more}}}").into_bytes();
    for body in [
        &b"{"[..],
        b"",
        b"null",
        b"[]",
        b"{\"messages\":\"\xff\xfe\"}",
        b"{\"n\":1e999}",
        b"{\"n\":99999999999999999999}",
        deep.as_bytes(),
    ] {
        assert_error(400, bad, &none, &server, CHAT, body);
    }
    assert_error(400, out, &field("messages"), &server, CHAT, b"{}");
    assert_error(400, out, &field("messages"), &server, CHAT, b"{\"messages\":[]}");
    for (name, value) in [
        ("temperature", "3"),
        ("temperature", "\"1\""),
        ("temperature", "-0.1"),
        ("top_p", "2"),
        ("n", "0"),
        ("n", "129"),
        ("n", "1.5"),
        ("max_tokens", "-1"),
        ("max_tokens", "0"),
        ("max_tokens", "4294967296"),
        ("stream", "1"),
        ("tools", "{}"),
        ("top_logprobs", "21"),
        ("timeout_ms", "0"),
        ("priority", "\"urgent\""),
    ] {
        assert_error(400, out, &field(name), &server, CHAT, &chat(&format!("\"{name}\":{value}")));
    }
    let long = json!({"messages": [{"role": "user", "content": "fox ".repeat(5000)}]}).to_string();
    assert_error(400, out, &field("messages"), &server, CHAT, long.as_bytes());
    assert_error(404, "MODEL_NOT_FOUND", &field("model"), &server, CHAT, &chat("\"model\":\"gpt-5\""));
    let endless = chat(&format!("\"model\":\"{}\"", "x".repeat(100_000)));
    assert_error(404, "MODEL_NOT_FOUND", &field("model"), &server, CHAT, &endless);
    let completions = "/v1/completions";
    assert_error(400, out, &field("prompt"), &server, completions, b"{\"prompt\":[8192]}");
    assert_error(400, out, &field("prompt[0]"), &server, completions, b"{\"prompt\":[-1]}");
    assert_error(400, out, &field("suffix"), &server, completions, b"{\"prompt\":\"a\",\"suffix\":\"b\"}");
    for path in ["/v1/inference", "/v1/inference/stream"] {
        assert_error(400, out, &field("prompt"), &server, path, b"{\"prompt\":\"\"}");
        assert_error(400, out, &field("unheard_of"), &server, path, b"{\"prompt\":\"a\",\"unheard_of\":1}");
        let answer = server.post(path, "{\"prompt\":\"a\",\"max_tokens\":2049}");
        let error = answer.json()["error"].clone();
        assert!(error["recovery_suggestions"].is_array() && error["timestamp"].is_string(), "{error}");
        assert_eq!(error["request_id"].as_str(), answer.header("x-request-id"));
    }
    assert_error(
        503,
        "DEVICE_UNAVAILABLE",
        &field("device_preference"),
        &server,
        "/v1/inference",
        b"{\"prompt\":\"a\",\"device_preference\":\"gpu\"}",
    );
    assert_error(400, bad, &none, &server, "/v1/tokenize", b"{\"content\":\"\xff\xfe\"}");
    assert_error(400, out, &field("tokens"), &server, "/v1/detokenize", b"{\"tokens\":[8192]}");
    assert_eq!(server.get("/v1/models/gpt-5").status, 404);
    assert_eq!(server.get("/health/ready").status, 200);
    assert!(server.becomes_quiet());
}

#[test]
fn http_is_strict_and_speaks_old_and_new() {
    let server = Server::start(&[]);
    let status = |request: &[u8]| {
        let mut client = server.connect();
        client.send(request);
        client.head().status
    };
    let too_long_target = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(9 << 10));
    let too_big_head = format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}\r\n\r\n", "a".repeat(17 << 10));
    for (expected, request) in [
        (400, &b"GET / HTTP/1.1\r\n\r\n"[..]),
        (400, b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        (400, b"GET /health HTTP/1.1\nHost: a\n\n"),
        (400, b"GET /health HTTP/1.1\r\nHost : a\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"),
        (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
        (404, b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n"),
        (405, b"GET /v1/chat/completions HTTP/1.1\r\nHost: a\r\n\r\n"),
        (405, b"DELETE /health HTTP/1.1\r\nHost: a\r\n\r\n"),
        (413, b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 67108864\r\n\r\n"),
        (414, too_long_target.as_bytes()),
        (415, b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}"),
        (431, too_big_head.as_bytes()),
        (505, b"GET /health HTTP/2.0\r\nHost: a\r\n\r\n"),
    ] {
        let shown = String::from_utf8_lossy(&request[..request.len().min(80)]);
        assert_eq!(status(request), expected, "{shown}");
        assert_eq!(server.get("/health/live").status, 200, "after {shown}");
    }

    let mut client = server.connect();
    client.send(b"OPTIONS /health HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = client.answer();
    assert_eq!((answer.status, answer.header("allow")), (204, Some("GET, HEAD, OPTIONS")));
    client.send(b"HEAD /health HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = client.head();
    assert!(answer.status == 200 && answer.header("content-length") != Some("0"));
    client.send(b"GET /v1/completions HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = client.answer();
    assert_eq!((answer.status, answer.header("allow")), (405, Some("POST, OPTIONS")));

    // Answers to pipelined requests come in order, the last one also after the client's end.
    let body = json!({"model": MODEL, "prompt": "a", "max_tokens": 2, "temperature": 0}).to_string();
    let mut three = b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n".to_vec();
    write!(three, "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    three.extend_from_slice(b"GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    client.send(&three);
    assert_eq!(client.answer().json()["object"], "list");
    assert_eq!(client.answer().json()["usage"]["completion_tokens"], 2);
    let last = client.answer();
    assert_eq!((last.status, last.header("connection")), (200, Some("close")));
    assert_eq!(client.rest(), b"");

    // A body that comes byte by byte, in chunks.
    let mut client = server.connect();
    client.send(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    for byte in body.bytes() {
        client.send(&[b'1', b'\r', b'\n', byte, b'\r', b'\n']);
    }
    client.send(b"0\r\n\r\n");
    assert_eq!(client.answer().json()["usage"]["completion_tokens"], 2);

    // HTTP/1.0 knows no chunks: the stream ends with the connection, also for a client that would keep it.
    let streaming = body.replace("\"prompt\"", "\"stream\":true,\"prompt\"");
    for wish in ["", "Connection: keep-alive\r\n"] {
        let mut client = server.connect();
        client.stream().set_read_timeout(Some(PATIENCE)).unwrap();
        let length = streaming.len();
        let request = format!("POST /v1/completions HTTP/1.0\r\n{wish}Content-Length: {length}\r\n\r\n{streaming}");
        client.send(request.as_bytes());
        let answer = client.answer();
        assert_eq!((answer.header("transfer-encoding"), answer.header("connection")), (None, Some("close")), "{wish}");
        assert!(!answer.chunks().is_empty());
    }
}
