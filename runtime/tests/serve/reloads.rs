//! The configuration read again while a server runs.

use serde_json::json;

use crate::models::{Folder, SECRET, SECRET_SHA256};
use crate::server::{PATIENCE, Server, becomes_true, bitnetd};

// printf %s other | sha256sum
const OTHER_SHA256: &str = "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa";

#[test]
fn a_changed_file_changes_who_may_do_what_and_a_broken_one_nothing() {
    let folder = Folder::new();
    let write = |text: &str| folder.write("bitnetd.toml", format!("port = 0\n{text}").as_bytes());
    let keys = |key: &str| format!("api_keys = [\"ops={key}:model:read\"]\n");
    let config = write(&(keys(SECRET_SHA256) + "require_authentication = true\nmax_connections = 100\n"));
    let server = Server::spawn(&mut bitnetd(&["serve", "--config", &config]));
    let status = |key: &str| {
        let fields = format!("Authorization: Bearer {key}\r\n");
        server.connect().request("GET", "/v1/models", &fields, "").status
    };
    assert_eq!((status(SECRET), status("other"), server.get("/v1/models").status), (200, 401, 401));
    // A connection that was open before, on whichever shard it is.
    let mut open = server.connect();
    let body = json!({"prompt": "Once", "max_tokens": 300, "ignore_eos": true, "stream": true}).to_string();
    assert_eq!(open.get("/health/live").status, 200);
    let mut stream = server.connect();
    let fields = format!("Authorization: Bearer {SECRET}\r\nContent-Length: {}\r\n", body.len());
    stream.send(format!("POST /v1/completions HTTP/1.1\r\nHost: a\r\n{fields}\r\n{body}").as_bytes());
    assert_eq!(stream.head().status, 200);

    for broken in ["api_keys = [\n", "api_keys = [\"in clear\"]\n", "require_authentication = true\n", "prot = 1\n"] {
        write(broken);
        server.signal("HUP");
    }
    std::fs::remove_file(&config).unwrap();
    server.signal("HUP");
    write(&(keys(OTHER_SHA256) + "require_authentication = true\nmax_connections = 200\nlog_level = \"warn\"\n"));
    server.signal("HUP");
    assert!(becomes_true(PATIENCE, || status("other") == 200));
    // Shards take what is new one after the other.
    assert!(becomes_true(PATIENCE, || (status(SECRET), server.get("/v1/models").status) == (401, 401)));
    let with_other = "Authorization: Bearer other\r\n";
    let open = std::cell::RefCell::new(open);
    assert!(becomes_true(PATIENCE, || open.borrow_mut().request("GET", "/v1/models", with_other, "").status == 200));
    let mut text = Vec::new();
    while stream.chunk(&mut text) {}
    assert!(String::from_utf8(text).unwrap().ends_with("data: [DONE]\n\n"), "what has begun goes on");

    write(&keys(OTHER_SHA256));
    server.signal("HUP");
    assert!(becomes_true(PATIENCE, || server.get("/v1/models").status == 200), "no key is wanted any more");
    // Of two signals that wait, the hang-up goes first.
    write("api_keys = [\"in clear\"]\n");
    server.signal("HUP");
    server.terminate();
    let ended = server.ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let words = &ended.words;
    assert!(words.contains("only a new start takes what has changed of max_connections\n"), "{words}");
    assert!(words.contains("SIGHUP: nothing changes: ") && !words.contains("in clear"), "{words}");
    assert!(words.contains("was read again: 1 API keys and no token secret, not wanted"), "{words}");
}
