//! Web pages of other origins: what their browsers ask, and what they are told.

use serde_json::json;

use crate::clients::Answer;
use crate::models::SECRET_SHA256;
use crate::server::{Server, bitnetd, run_to_end};

const LISTED: &str = "https://chat.example";
const UNLISTED: &str = "https://evil.example";
const ASKS: &str = "Access-Control-Request-Method: POST\r\n\
                    Access-Control-Request-Headers: authorization, content-type, x-stainless-lang\r\n";

fn ask(server: &Server, method: &str, path: &str, fields: &str, body: &str) -> Answer {
    server.connect().request(method, path, fields, body)
}

fn names_no_origin(answer: &Answer) -> bool {
    !answer.headers.iter().any(|(name, _)| name.starts_with("access-control-"))
}

#[test]
fn origins_that_are_none_keep_the_server_from_starting() {
    for (text, word) in [("https://a.example/", "SCHEME://HOST"), ("null", "sandboxed"), ("*,https://a", "alone")] {
        let ended = run_to_end(bitnetd(&["serve", "--port", "0"]).env("BITNET_ALLOWED_ORIGINS", text));
        assert!(ended.code == Some(1) && ended.words.contains("allowed_origins"), "{text}: {ended:?}");
        assert!(ended.words.contains(word), "{text}: {ended:?}");
    }
}

#[test]
fn without_listed_origins_no_answer_names_one_and_other_sites_change_nothing() {
    let server = Server::start(&[]);
    let origin = format!("Origin: {LISTED}\r\n");
    let preflight = ask(&server, "OPTIONS", "/v1/completions", &format!("{origin}{ASKS}"), "");
    assert_eq!((preflight.status, preflight.header("allow")), (204, Some("POST, OPTIONS")));
    assert!(names_no_origin(&preflight) && preflight.header("vary").is_none(), "{preflight:?}");
    assert!(names_no_origin(&ask(&server, "GET", "/v1/models", &origin, "")));
    let body = r#"{"prompt":"a","max_tokens":1}"#;
    for site in ["cross-site", "same-site"] {
        let refused = ask(&server, "POST", "/v1/completions", &format!("{origin}Sec-Fetch-Site: {site}\r\n"), body);
        assert_eq!(refused.status, 403);
        let error = refused.json()["error"].clone();
        assert_eq!(error["code"], "AUTHORIZATION_FAILED");
        assert!(error["message"].as_str().unwrap().contains(LISTED), "{error}");
    }
    assert_eq!(server.metric("bitnet_inference_requests_total"), 0.0, "nothing was computed for them");
    let own = format!("{origin}Sec-Fetch-Site: same-origin\r\n");
    assert_eq!(ask(&server, "POST", "/v1/completions", &own, body).status, 200, "its own page, behind a proxy");
}

#[test]
fn a_listed_origin_is_let_in_by_exact_match_on_every_kind_of_answer() {
    let key = format!("ops={SECRET_SHA256}:model:read");
    let other = "http://localhost:3000";
    let server = Server::start(&[
        "--allowed-origin",
        &format!("{LISTED},{other}"),
        "--api-key",
        &key,
        "--require-authentication",
    ]);
    let listed = format!("Origin: {LISTED}\r\nSec-Fetch-Site: cross-site\r\n");

    // Asked without a key, as browsers do.
    let preflight = ask(&server, "OPTIONS", "/v1/chat/completions", &format!("{listed}{ASKS}"), "");
    assert_eq!(preflight.status, 204);
    for (name, value) in [
        ("access-control-allow-origin", LISTED),
        ("access-control-allow-methods", "POST, OPTIONS"),
        ("access-control-allow-headers", "authorization, content-type, x-stainless-lang"),
        ("access-control-max-age", "7200"),
        ("vary", "Origin"),
        ("allow", "POST, OPTIONS"),
    ] {
        assert_eq!(preflight.header(name), Some(value), "{name} in {preflight:?}");
    }
    assert_eq!(preflight.header("access-control-allow-credentials"), None);

    let good = format!("{listed}Authorization: Bearer secret\r\n");
    let body = json!({"prompt": "a", "max_tokens": 2, "stream": true}).to_string();
    for (method, path, fields, body, status) in [
        ("GET", "/v1/models", &good, "", 200),
        ("POST", "/v1/completions", &good, r#"{"prompt":"a","max_tokens":1}"#, 200),
        ("POST", "/v1/completions", &good, &body, 200),
        ("POST", "/v1/completions", &good, "{", 400),
        ("GET", "/v1/models", &listed, "", 401),
        ("DELETE", "/v1/models/x", &good, "", 403),
        ("GET", "/nothing", &good, "", 404),
        ("POST", "/v1/models", &good, "{}", 405),
        ("GET", "/health/live", &listed, "", 200),
    ] {
        let answer = ask(&server, method, path, fields, body);
        assert_eq!(answer.status, status, "{method} {path}");
        assert_eq!(answer.header("access-control-allow-origin"), Some(LISTED), "{method} {path}: {answer:?}");
        assert!(answer.header("access-control-expose-headers").is_some_and(|names| names.contains("x-request-id")));
        assert_eq!(answer.header("vary"), Some("Origin"), "{method} {path}");
    }

    for origin in [UNLISTED, "http://chat.example", "https://chat.example:444", "http://localhost", "null"] {
        let fields = format!("Origin: {origin}\r\n");
        let preflight = ask(&server, "OPTIONS", "/v1/chat/completions", &format!("{fields}{ASKS}"), "");
        assert!(preflight.status == 204 && names_no_origin(&preflight), "{origin}: {preflight:?}");
        assert_eq!(preflight.header("vary"), Some("Origin"));
        assert!(names_no_origin(&ask(&server, "GET", "/health/live", &fields, "")), "{origin}");
        let posted = format!("{fields}Sec-Fetch-Site: cross-site\r\nAuthorization: Bearer secret\r\n");
        let refused = ask(&server, "POST", "/v1/completions", &posted, "{}");
        assert!(refused.status == 403 && names_no_origin(&refused), "{origin}: {refused:?}");
    }

    // Answers of one connection do not take over what an earlier request was told.
    let mut client = server.connect();
    assert!(!names_no_origin(&client.request("GET", "/health/live", &listed, "")));
    assert!(names_no_origin(&client.request("GET", "/health/live", "", "")));
}

#[test]
fn every_origin_is_let_in_where_that_is_written() {
    let server = Server::start(&["--allowed-origin", "*"]);
    let fields = format!("Origin: {UNLISTED}\r\nSec-Fetch-Site: cross-site\r\n");
    let answer = ask(&server, "POST", "/v1/completions", &fields, r#"{"prompt":"a","max_tokens":1}"#);
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, Some("*")));
    assert_eq!(answer.header("access-control-allow-credentials"), None);
}
