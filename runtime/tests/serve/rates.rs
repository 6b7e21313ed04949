//! How many requests a client may make, where that is limited.

use crate::models::SECRET_SHA256;
use crate::server::{Server, bitnetd, run_to_end};

#[test]
fn limits_that_are_none_keep_the_server_from_starting() {
    let ended = run_to_end(bitnetd(&["serve", "--port", "0"]).env("BITNET_RATE_LIMITS", "inference=0"));
    assert!(ended.code == Some(1) && ended.words.contains("rate_limits"), "{ended:?}");
}

#[test]
fn a_client_beyond_its_limit_is_told_when_to_come_back() {
    let key = format!("ops={SECRET_SHA256}:model:read");
    let server = Server::start(&["--rate-limit", "inference=3,stats=2", "--api-key", &key]);
    let body = r#"{"prompt":"a","max_tokens":1}"#;
    let ask = |fields: &str| server.connect().request("POST", "/v1/completions", fields, body);
    for remaining in ["2", "1", "0"] {
        let answer = ask("");
        assert_eq!((answer.status, answer.header("x-ratelimit-limit")), (200, Some("3")));
        assert_eq!(answer.header("x-ratelimit-remaining"), Some(remaining));
    }
    // Each connection of an address counts, whichever shard has it, and so do requests that are wrong.
    let refused = ask("");
    assert_eq!((refused.status, refused.header("x-ratelimit-remaining")), (429, Some("0")));
    assert_eq!(refused.json()["error"]["code"], "RATE_LIMIT_EXCEEDED");
    let seconds = |name: &str| refused.header(name).unwrap().parse::<u64>().unwrap();
    assert!((1..=20).contains(&seconds("retry-after")) && (1..=60).contains(&seconds("x-ratelimit-reset")));
    assert!(seconds("retry-after-ms") > 0);
    assert_eq!(server.metric("bitnet_admission_rejections_total{reason=\"rate_limit\"}"), 1.0);

    // Another class, and another client, have limits of their own; what is not limited says nothing of it.
    assert_eq!(server.get("/v1/models").header("x-ratelimit-remaining"), Some("1"));
    let keyed = ask("Authorization: Bearer secret\r\n");
    assert_eq!((keyed.status, keyed.header("x-ratelimit-remaining")), (200, Some("2")));
    let health = server.get("/health/live");
    assert!(health.status == 200 && health.header("x-ratelimit-limit").is_none());
}

#[test]
fn clients_of_a_listed_proxy_have_limits_of_their_own_and_others_cannot_forge_theirs() {
    let body = r#"{"prompt":"a","max_tokens":1}"#;
    let remaining = |server: &Server, fields: &str| {
        let answer = server.connect().request("POST", "/v1/completions", fields, body);
        answer.header("x-ratelimit-remaining").map(str::to_owned)
    };
    let of = |number: &str| Some(number.to_owned());
    let server = Server::start(&["--rate-limit", "inference=3", "--trusted-proxy", "10.0.0.0/8,127.0.0.1"]);
    assert_eq!(remaining(&server, "X-Forwarded-For: 1.1.1.1\r\n"), of("2"));
    assert_eq!(remaining(&server, "X-Forwarded-For: 2.2.2.2\r\n"), of("2"));
    assert_eq!(remaining(&server, "X-Forwarded-For: 3.3.3.3, 1.1.1.1, 10.9.9.9\r\n"), of("1"));
    let server = Server::start(&["--rate-limit", "inference=3", "--trusted-proxy", "10.0.0.0/8"]);
    assert_eq!(remaining(&server, "X-Forwarded-For: 1.1.1.1\r\n"), of("2"));
    assert_eq!(remaining(&server, "X-Forwarded-For: 2.2.2.2\r\n"), of("1"));
    let ended = run_to_end(bitnetd(&["serve", "--port", "0"]).args(["--trusted-proxy", "10.0.0.1/8"]));
    assert!(ended.code == Some(1) && ended.words.contains("trusted_proxies"), "{ended:?}");
}
