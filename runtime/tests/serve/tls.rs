//! TLS as its users and its enemies meet it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::clients::{Answer, Client, streamed_text};
use crate::models::Folder;
use crate::secured::{self, certificate, config, file};
use crate::server::{PATIENCE, Server, becomes_true, bitnetd, run_to_end};

const COMPLETIONS: &str = "/v1/completions";

fn start(arguments: &[&str]) -> Server {
    let (certificate, key) = (file("ecdsa.pem"), file("ecdsa.key"));
    Server::start(&[&["--tls-cert", &certificate, "--tls-key", &key], arguments].concat())
}

fn body(max_tokens: u32) -> Value {
    json!({"prompt": "Once upon a time", "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true, "stream": true})
}

fn failures(server: &Server, reason: &str) -> f64 {
    server.metric(&format!("bitnet_tls_handshake_failures_total{{reason=\"{reason}\"}}"))
}

/// What comes back for bytes that are sent as they are.
fn raw(server: &Server, bytes: &[u8]) -> Vec<u8> {
    let mut client = Client::clear(server.address);
    client.send(bytes);
    client.rest()
}

#[test]
fn everything_is_as_in_the_clear() {
    let clear = Server::start(&[]);
    let expected = streamed_text(&clear.post(COMPLETIONS, &body(60).to_string()).chunks(), 0);
    let mut long = body(200);
    long["stream"] = json!(false);
    long["logprobs"] = json!(20);
    long["ignored"] = json!("x".repeat(900_000));
    let long_answer = clear.ask(COMPLETIONS, &long);
    for io in ["epoll", "io_uring"] {
        let server = start(&["--io", io]);
        assert!(server.first_words.contains("until Mon, 01 Jan 2120 00:00:00 GMT"), "{}", server.first_words);
        for is_old in [false, true] {
            let mut client = Client::secure(server.address, &Arc::new(config(is_old)));
            // Several requests in one send, answered in order.
            let request = body(60).to_string();
            let head = format!("POST {COMPLETIONS} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", request.len());
            let get = "GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n";
            client.send([&head, &request, get, &head, &request, get].map(str::as_bytes).concat().as_slice());
            for _ in 0..2 {
                let chunks = client.answer().chunks();
                assert!(chunks.len() > 50, "tokens come one by one: {} chunks", chunks.len());
                assert_eq!(streamed_text(&chunks, 0), expected);
                assert_eq!(client.answer().status, 200);
            }
            // Nearly a megabyte in chunks, and an answer of many records.
            client.send(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
            for part in long.to_string().as_bytes().chunks(50_000) {
                client.send(&[format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat());
            }
            client.send(b"0\r\n\r\n");
            let answer = client.answer();
            assert!(
                answer.body.len() > 50_000 && answer.json()["choices"] == long_answer["choices"],
                "{io}: they differ"
            );
            // Told to end, it says so, and the client knows that nothing was cut off.
            client.send(b"GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            assert_eq!(client.answer().status, 200);
            assert!(client.ends_well());
        }
    }
}

#[test]
fn a_client_comes_back_by_its_ticket_to_any_shard() {
    let server = start(&["--shards", "2", "--workers", "1"]);
    for is_old in [false, true] {
        let before = server.metric("bitnet_tls_handshakes_total{kind=\"resumed\"}");
        let config = Arc::new(config(is_old));
        for _ in 0..6 {
            let mut client = Client::secure(server.address, &config);
            assert_eq!(client.get("/health/live").status, 200);
        }
        // Who asks for the number came back as well.
        assert_eq!(server.metric("bitnet_tls_handshakes_total{kind=\"resumed\"}"), before + 6.0);
    }
    assert_eq!(server.metric("bitnet_tls_certificate_expiry_timestamp_seconds"), 4_733_510_400.0);
}

#[test]
fn what_is_no_tls_gets_no_further() {
    let server = start(&[]);
    let clear = raw(&server, b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
    let clear = String::from_utf8(clear).unwrap();
    assert!(clear.starts_with("HTTP/1.1 400 ") && clear.contains("https://"), "{clear}");
    // A hello of TLS 1.1.
    let hello = [&[22, 3, 1, 0, 45, 1, 0, 0, 41, 3, 2][..], &[7; 32], &[0, 0, 2, 0xc0, 0x13, 1, 0]].concat();
    assert_eq!(raw(&server, &hello)[..6], [21, 3, 3, 0, 2, 2], "a fatal alert");
    assert_eq!(raw(&server, &[0xa5; 20_000])[..1], [21]);
    assert_eq!(raw(&server, &[22, 3, 3, 0xff, 0xff, 1])[..1], [21]);
    let mut other = config(false);
    other.alpn_protocols = vec![b"h2".to_vec()];
    let mut connection = secured::connection(&Arc::new(other), server.address);
    let mut socket = TcpStream::connect(server.address).unwrap();
    assert!(connection.complete_io(&mut socket).is_err() && connection.alpn_protocol().is_none());
    for (reason, count) in [("no_tls", 1.0), ("incompatible", 1.0), ("malformed", 2.0), ("alpn", 1.0)] {
        assert!(becomes_true(PATIENCE, || failures(&server, reason) == count), "{reason}");
    }
    // Nothing, and half a hello: both have their time and no more.
    let mut silent = [&b""[..], &hello[..20]].map(|bytes| {
        let mut client = Client::clear(server.address);
        client.send(bytes);
        client
    });
    // One that leaves.
    drop(Client::clear(server.address));
    assert!(becomes_true(PATIENCE, || failures(&server, "left") == 1.0));
    silent.iter_mut().for_each(|client| assert_eq!(client.rest(), b""));
    assert_eq!(failures(&server, "timeout"), 2.0);
    // Where there is no TLS, a hello of it is refused at once.
    let answer = String::from_utf8(raw(&Server::start(&[]), &hello)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[test]
fn a_flood_of_handshakes_leaves_streams_and_descriptors() {
    let server = start(&["--io", "epoll"]);
    let mut stream = server.connect();
    let mut request = body(400);
    request["stream_options"] = json!({"include_usage": true});
    stream.send_post(COMPLETIONS, request.to_string().as_bytes());
    let descriptors = server.descriptors();
    let config = Arc::new({
        let mut config = config(false);
        config.resumption = rustls::client::Resumption::disabled();
        config
    });
    let mut hello = Vec::new();
    secured::connection(&config, server.address).write_tls(&mut hello).unwrap();
    for round in 0..1000 {
        match round % 4 {
            0 => drop(Client::secure(server.address, &config)),
            1 => Client::clear(server.address).send(&hello),
            2 => Client::clear(server.address).send(&hello[..round % hello.len()]),
            _ => assert_eq!(Client::secure(server.address, &config).get("/health/live").status, 200),
        }
    }
    assert_eq!(stream.answer().chunks().last().unwrap()["usage"]["completion_tokens"], 400);
    assert!(becomes_true(PATIENCE, || server.descriptors() <= descriptors), "{} descriptors", server.descriptors());
}

#[test]
fn who_leaves_or_reads_nothing_is_alone_with_that() {
    let server = start(&[]);
    let descriptors = server.descriptors();
    // No word of an end from these, and not even all of what they have to read.
    for _ in 0..8 {
        let mut client = server.connect();
        client.send_post(COMPLETIONS, body(1000).to_string().as_bytes());
        assert_eq!(client.head().status, 200);
    }
    assert!(server.becomes_quiet() && server.cancelled() == 8.0, "{}", server.cancelled());
    let mut slow = server.connect();
    let much = json!({"prompt": "a", "n": 8, "max_tokens": 600, "ignore_eos": true, "stream": true, "logprobs": 20});
    slow.send_post(COMPLETIONS, much.to_string().as_bytes());
    for _ in 0..4 {
        let chunks = server.post(COMPLETIONS, &body(50).to_string()).chunks();
        assert!(chunks.len() > 50, "{} chunks", chunks.len());
    }
    assert_eq!(crate::clients::logged_tokens(&slow.answer()), 8 * 600, "it reads late, and all");
    drop(slow);
    assert!(becomes_true(PATIENCE, || server.descriptors() <= descriptors), "{} descriptors", server.descriptors());
}

#[test]
fn a_renewed_certificate_is_for_new_connections_and_a_broken_one_for_nobody() {
    let folder = Folder::new();
    let put = |name: &str, of: &str| folder.write(name, &std::fs::read(file(of)).unwrap());
    let (certificate_path, key_path) = (put("tls.pem", "ecdsa.pem"), put("tls.key", "ecdsa.key"));
    let shown = |server: &Server| {
        let client = Client::secure(server.address, &Arc::new(config(false)));
        client.certificate().unwrap()
    };
    // With a file of settings and without one.
    let settings = format!("port = 0\ntls_cert = {certificate_path:?}\ntls_key = {key_path:?}\n");
    let settings = folder.write("bitnetd.toml", settings.as_bytes());
    for arguments in
        [vec!["--config", &settings], vec!["--port", "0", "--tls-cert", &certificate_path, "--tls-key", &key_path]]
    {
        put("tls.pem", "ecdsa.pem");
        put("tls.key", "ecdsa.key");
        let server = Server::spawn(&mut bitnetd(&[&["serve"], &arguments[..]].concat()));
        let ticket = Arc::new(config(false));
        let mut open = Client::secure(server.address, &ticket);
        assert_eq!(open.get("/health/live").status, 200);
        assert_eq!(open.certificate(), Some(certificate("ecdsa.pem")));
        let mut stream = server.connect();
        stream.send_post(COMPLETIONS, body(300).to_string().as_bytes());
        assert_eq!(stream.head().status, 200);
        // Half of a renewal: a certificate that is not the key's.
        put("tls.pem", "rsa.pem");
        server.signal("HUP");
        put("tls.key", "encrypted.key");
        server.signal("HUP");
        put("tls.key", "rsa.key");
        server.signal("HUP");
        assert!(becomes_true(PATIENCE, || shown(&server) == certificate("rsa.pem")));
        // An old ticket is no way around it.
        assert_eq!(Client::secure(server.address, &ticket).certificate(), Some(certificate("rsa.pem")));
        assert_eq!(open.get("/health/live").status, 200);
        let mut text = Vec::new();
        while stream.chunk(&mut text) {}
        assert!(text.ends_with(b"data: [DONE]\n\n"), "what has begun goes on");
        std::fs::remove_file(&key_path).unwrap();
        server.signal("HUP");
        server.terminate();
        let ended = server.ended();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let kept = ended.words.matches("SIGHUP: certificate and key stay what they were: ").count();
        assert!((1..=3).contains(&kept) && ended.words.contains("tls.key: No such file"), "{ended:?}");
    }
}

#[test]
fn files_that_are_no_identity_keep_it_from_starting() {
    let refused = |certificate: &str, key: &str, words: &[&str]| {
        let ended = run_to_end(&mut bitnetd(&["serve", "--port", "0", "--tls-cert", certificate, "--tls-key", key]));
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(words.iter().all(|word| ended.words.contains(word)) && ended.words.lines().count() < 3, "{ended:?}");
    };
    let (ecdsa, key) = (file("ecdsa.pem"), file("ecdsa.key"));
    refused("/no/such.pem", &key, &["can't read /no/such.pem"]);
    refused(&ecdsa, "/", &["can't read /"]);
    refused(&ecdsa, "/dev/zero", &["/dev/zero has more than"]);
    refused(&key, &ecdsa, &["no `BEGIN CERTIFICATE`", &key]);
    refused(&file("rsa.pem"), &key, &["not that of the certificate"]);
    refused(&ecdsa, &file("encrypted.key"), &["is encrypted", "openssl pkey"]);
    refused(&ecdsa, &file("p521.key"), &["none that can be used"]);
    let ended = run_to_end(&mut bitnetd(&["serve", "--port", "0", "--tls-cert", &ecdsa]));
    assert!(ended.words.contains("`tls_key`"), "{ended:?}");

    // What is only remarkable does not.
    let folder = Folder::new();
    let key = folder.write("key", &std::fs::read(&key).unwrap());
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let expired = file("expired.pem");
    let server = Server::start(&["--tls-cert", &expired, "--tls-key", &key]);
    let words = &server.first_words;
    assert!(words.contains("ended on Fri, 01 Jan 2021") && words.contains("every user can read the key"), "{words}");
    let mut socket = TcpStream::connect(server.address).unwrap();
    assert!(secured::connection(&Arc::new(config(false)), server.address).complete_io(&mut socket).is_err());
}

#[test]
fn the_unix_socket_stays_in_the_clear_and_who_has_no_place_is_told() {
    let folder = Folder::new();
    let path = folder.text("s");
    let server = start(&["--listen-unix", &path, "--max-connections", "3"]);
    let mut local = UnixStream::connect(&path).unwrap();
    local.write_all(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    local.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    let mut inside: Vec<Client> = (0..2).map(|_| server.connect()).collect();
    let statuses = inside.iter_mut().map(|client| client.get("/health/live")).map(|answer: Answer| answer.status);
    assert!(statuses.eq([200, 200]));
    assert_eq!(Client::clear(server.address).rest(), net::tls::NO_PLACE);
}
