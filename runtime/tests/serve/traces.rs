//! Traces of requests at a collector: a whole one, and ones that refuse, hang, cut the line or are not there.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::server::{PATIENCE, Server, becomes_true, bitnetd, run_to_end};

/// What a collector does with a connection.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Takes,
    Refuses,
    Hangs,
    Cuts,
    Babbles,
}

struct Collector {
    address: SocketAddr,
    /// Head and body of each request.
    requests: Receiver<(String, Value)>,
}

impl Collector {
    fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, requests) = sync_channel(100);
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                match manner {
                    Manner::Cuts => continue,
                    Manner::Hangs => {
                        held.push(stream);
                        continue;
                    }
                    _ => {}
                }
                let request = read(&stream);
                let answer: &[u8] = match manner {
                    Manner::Takes => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
                    Manner::Refuses => b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
                    _ => b"SSH-2.0-OpenSSH_9.6 and what follows\r\n",
                };
                // A test that is over hears nothing of it.
                let _ = stream.write_all(answer);
                if sender.send(request).is_err() {
                    return;
                }
            }
        });
        Self { address, requests }
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Spans of the next batches, until there are so many.
    fn spans(&self, count: usize) -> Vec<Value> {
        let mut spans = Vec::new();
        while spans.len() < count {
            let (head, body) = self.requests.recv_timeout(PATIENCE).unwrap();
            assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n") && head.contains("application/json"), "{head}");
            let resource = &body["resourceSpans"][0];
            spans.extend(resource["scopeSpans"][0]["spans"].as_array().unwrap().iter().cloned());
        }
        spans
    }
}

fn read(stream: &TcpStream) -> (String, Value) {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
    }
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    (head, serde_json::from_slice(&body).unwrap())
}

fn attribute<'s>(span: &'s Value, key: &str) -> Option<&'s Value> {
    let found = span["attributes"].as_array()?.iter().find(|attribute| attribute["key"] == key)?;
    found["value"].as_object()?.values().next()
}

const PARENT: &str = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\ntracestate: a=1\r\n";

#[test]
fn endpoints_that_cannot_be_are_refused() {
    for (name, value, words) in [
        ("BITNET_OTLP_ENDPOINT", "https://collector:4318", ["otlp_endpoint", "TLS is not built in"]),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318", ["otlp_endpoint", "TLS is not built in"]),
        ("BITNET_OTLP_ENDPOINT", "collector:4317", ["otlp_endpoint", "http://HOST:PORT"]),
        ("BITNET_OTLP_SAMPLE_RATIO", "2", ["otlp_sample_ratio", "0 to 1"]),
        ("OTEL_EXPORTER_OTLP_HEADERS", "hidden", ["otlp_headers", "NAME=VALUE"]),
    ] {
        let ended = run_to_end(bitnetd(&["serve", "--port", "0"]).env(name, value));
        assert_eq!(ended.code, Some(1), "{name}={value}");
        assert!(words.iter().all(|word| ended.words.contains(word)), "{name}={value}: {}", ended.words);
        assert!(!ended.words.contains("hidden"), "{}", ended.words);
    }
}

#[test]
fn a_request_is_one_span_with_its_parts_below_the_clients_span() {
    let collector = Collector::start(Manner::Takes);
    let mut command = bitnetd(&["serve", "--port", "0"]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint());
    command.env("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=a%20b").env("OTEL_SERVICE_NAME", "tested");
    let server = Server::spawn(&mut command);
    let body =
        json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "ignore_eos": true, "stream": true});
    let answer = server.connect().request("POST", "/v1/chat/completions", PARENT, &body.to_string());
    let id = answer.header("x-request-id").unwrap().to_owned();
    assert_eq!(answer.chunks().len(), 6);
    let (head, batch) = collector.requests.recv_timeout(PATIENCE).unwrap();
    assert!(head.contains("\r\nx-tenant: a b\r\n"), "{head}");
    assert!(batch["resourceSpans"][0]["resource"].to_string().contains("tested"), "{batch}");
    let spans = batch["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap();
    let names: Vec<&str> = spans.iter().map(|span| span["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["POST /v1/chat/completions", "queue", "prefill", "decode"]);
    let span = &spans[0];
    assert_eq!(span["traceId"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!((&span["parentSpanId"], &span["traceState"]), (&json!("00f067aa0ba902b7"), &json!("a=1")));
    for (key, value) in [
        ("http.request.method", "POST"),
        ("http.route", "/v1/chat/completions"),
        ("http.response.status_code", "200"),
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.request.model", "bitnetd-tiny"),
        ("gen_ai.usage.output_tokens", "4"),
        ("bitnetd.request_id", &id),
        ("bitnetd.device", "cpu"),
    ] {
        assert_eq!(attribute(span, key), Some(&json!(value)), "{key} in {span}");
    }
    let reasons = attribute(span, "gen_ai.response.finish_reasons").unwrap();
    assert_eq!(reasons["values"][0]["stringValue"], "length");
    let time = |span: &Value, name: &str| span[name].as_str().unwrap().parse::<u64>().unwrap();
    let mut last = time(span, "startTimeUnixNano");
    for part in &spans[1..] {
        assert_eq!((&part["parentSpanId"], time(part, "startTimeUnixNano")), (&span["spanId"], last), "{part}");
        last = time(part, "endTimeUnixNano");
        assert!(last >= time(part, "startTimeUnixNano") && last <= time(span, "endTimeUnixNano"), "{part}");
    }

    // Probes have none, nor has what its client does not keep; what is refused has one, with a trace of its own.
    assert_eq!(server.get("/health/ready").status, 200);
    let not_kept = PARENT.replace("-01\r\n", "-00\r\n");
    assert_eq!(server.connect().request("GET", "/v1/models", &not_kept, "").status, 200);
    assert_eq!(server.connect().request("GET", "/v1/models/none", "traceparent: 00-x\r\n", "").status, 404);
    let spans = collector.spans(1);
    assert_eq!((spans.len(), &spans[0]["name"]), (1, &json!("GET /v1/models/{id}")));
    assert!(spans[0].get("parentSpanId").is_none() && spans[0]["traceId"] != span["traceId"]);
    assert_eq!(attribute(&spans[0], "http.response.status_code"), Some(&json!("404")));

    // What has not been sent yet is sent at the end.
    server.post("/v1/tokenize", r#"{"content":"a"}"#);
    server.terminate();
    assert_eq!(server.ended().code, Some(0));
    assert_eq!(collector.spans(1)[0]["name"], "POST /v1/tokenize");
}

#[test]
fn no_trace_is_kept_of_a_share_of_nothing() {
    let collector = Collector::start(Manner::Takes);
    let server = Server::start(&["--otlp-endpoint", &collector.endpoint(), "--otlp-sample-ratio", "0"]);
    for _ in 0..10 {
        server.get("/v1/models");
    }
    server.terminate();
    assert_eq!(server.ended().code, Some(0));
    assert!(collector.requests.try_recv().is_err());
}

#[test]
fn a_collector_that_does_not_take_traces_costs_nothing_but_traces() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let manners = [Some(Manner::Refuses), Some(Manner::Hangs), Some(Manner::Cuts), Some(Manner::Babbles), None];
    let checks = manners.map(|manner| {
        std::thread::spawn(move || {
            let collector = manner.map(Collector::start);
            let endpoint = collector.as_ref().map_or(format!("http://{nobody}"), Collector::endpoint);
            let server = Server::start(&["--otlp-endpoint", &endpoint, "--drain-timeout", "20"]);
            let ask = || server.ask("/v1/completions", &json!({"prompt": "a", "max_tokens": 2, "temperature": 0}));
            let first = ask();
            let dropped = || {
                let text = server.get("/metrics").text();
                let line = text.lines().find(|line| line.starts_with("bitnet_traces_total{outcome=\"dropped\"}"));
                line.unwrap().rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()
            };
            assert!(becomes_true(PATIENCE, || dropped() >= 1.0));
            for _ in 0..20 {
                assert_eq!(ask()["choices"], first["choices"]);
            }
            server.terminate();
            let asked = Instant::now();
            let ended = server.ended();
            assert_eq!(ended.code, Some(0), "{}", ended.words);
            assert!(asked.elapsed() < Duration::from_secs(40), "the end waits {:?}", asked.elapsed());
            let lines = ended.words.lines().filter(|line| line.contains("traces can't be sent"));
            assert_eq!(lines.count(), 1, "{}", ended.words);
        })
    });
    for check in checks {
        check.join().unwrap();
    }
}
