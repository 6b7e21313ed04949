//! Servers of several shards inside the test: what each computes for the others, and what breaks on purpose.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use super::*;
use crate::config::Settings;
use crate::engine::faults::{self, Fault, Turn};
use crate::falls::FALLS_MAX;
use crate::registry::State;

/// A server on a thread of this process, whose end is asked for by a signal to that thread alone. One at a time, since
/// faults strike by the number of a shard.
struct Server {
    address: SocketAddr,
    thread: libc::pid_t,
    join: JoinHandle<Result<(), Error>>,
    _turn: Turn,
}

impl Server {
    /// With so many shards of one worker each, whether there are as many cores or not.
    fn start(shards: usize) -> Self {
        Self::start_on(shards, "auto")
    }

    fn start_on(shards: usize, io: &str) -> Self {
        let turn = Turn::take();
        let settings = Settings { port: Some(0), kv_cache_mb: Some(64), workers: Some(1), ..Settings::default() };
        Self::start_with(shards, Settings { io: Some(io.into()), ..settings }, turn)
    }

    /// With places for so many sequences, and none to wait.
    fn start_small(shards: usize, slots: usize) -> Self {
        let turn = Turn::take();
        let settings = Settings { port: Some(0), kv_cache_mb: Some(64), workers: Some(1), ..Settings::default() };
        let (max_concurrent_requests, max_queued_requests) = (Some(slots), Some(0));
        Self::start_with(shards, Settings { max_concurrent_requests, max_queued_requests, ..settings }, turn)
    }

    fn start_with(shards: usize, settings: Settings, turn: Turn) -> Self {
        let config = settings.clone().validate().unwrap();
        let reload = Reload::new(settings.clone(), None, settings);
        let mut plan = Plan::make(&config).unwrap();
        let place = plan.placement.shards[0].clone();
        let cpus = place.executor.iter().chain(&place.workers).copied().collect::<Vec<_>>();
        let shard = |index: usize| tuning::ShardPlacement { workers: vec![cpus[index % cpus.len()]], ..place.clone() };
        plan.placement.shards = (0..shards).map(shard).collect();
        let address = plan.address.unwrap();
        let started = crate::registry::load_all(&config, &plan.placement, &State::default(), &|_, _| {}).unwrap();
        let (told, thread) = std::sync::mpsc::sync_channel(1);
        let join = std::thread::spawn(move || {
            let signals = Signals::block().unwrap();
            // SAFETY: no pointers are involved.
            told.send(unsafe { libc::gettid() }).unwrap();
            serve(&config, &plan, Models { started, state: None }, &signals, &reload)
        });
        Self { address, _turn: turn, thread: thread.recv().unwrap(), join }
    }

    fn connect(&self) -> TcpStream {
        let deadline = Instant::now() + PATIENCE;
        let client = loop {
            match TcpStream::connect(self.address) {
                Ok(client) => break client,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            pause(Duration::from_millis(10));
        };
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client
    }

    /// All that is said to `request`.
    fn answer(&self, request: &str) -> String {
        let mut client = self.connect();
        client.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn stream(&self) -> String {
        let body = r#"{"prompt":"Once","max_tokens":60,"stream":true,"ignore_eos":true,"temperature":0}"#;
        let head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
        let length = body.len();
        self.answer(&format!("{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"))
    }

    /// Several at a time.
    fn streams(&self) -> Vec<String> {
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..STREAMS).map(|_| scope.spawn(|| self.stream())).collect();
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        })
    }

    /// A connection of each shard.
    fn clients(&self, shards: usize) -> Vec<Client> {
        let mut clients: Vec<Option<Client>> = (0..shards).map(|_| None).collect();
        let mut others = Vec::new();
        while clients.iter().any(Option::is_none) {
            let mut client = Client(BufReader::new(self.connect()));
            let echo = client.complete(&json!({"prompt": "x", "max_tokens": 0, "echo": true}));
            let id = echo["id"].as_str().unwrap().trim_start_matches("cmpl-");
            let receipt = client.ask(&format!("GET /v1/receipts/{id} HTTP/1.1\r\nHost: x\r\n\r\n"));
            let shard = usize::try_from(receipt["shard"].as_u64().unwrap()).unwrap();
            // Those that are not needed stay open, so that the next goes elsewhere.
            others.extend(clients[shard].replace(client));
            assert!(others.len() < 100, "a shard gets no connection");
        }
        clients.into_iter().flatten().collect()
    }

    /// The sum of a metric's samples.
    fn metric(&self, name: &str) -> f64 {
        let page = self.answer("GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let samples =
            page.lines().filter_map(|line| line.strip_prefix(name)).filter(|line| line.starts_with([' ', '{']));
        samples.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
    }

    fn becomes_quiet(&self) {
        let deadline = Instant::now() + PATIENCE;
        let busy = ["bitnet_requests_running", "bitnet_requests_waiting", "bitnet_kv_cache_usage_ratio"];
        while busy.iter().any(|name| self.metric(name) > 0.0) {
            assert!(Instant::now() < deadline, "it still computes");
            pause(Duration::from_millis(5));
        }
    }

    fn end(self) -> Result<(), Error> {
        // SAFETY: no pointers are involved; the thread has the signal blocked and waits for it.
        unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), self.thread, libc::SIGTERM) };
        self.join.join().unwrap()
    }
}

/// A connection that is kept.
struct Client(BufReader<TcpStream>);

impl Client {
    fn post(&mut self, body: &Value) {
        let body = body.to_string();
        let head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
        let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
        self.0.get_mut().write_all(request.as_bytes()).unwrap();
    }

    /// The JSON answer to a request for tokens.
    fn complete(&mut self, body: &Value) -> Value {
        self.post(body);
        self.json()
    }

    fn ask(&mut self, request: &str) -> Value {
        self.0.get_mut().write_all(request.as_bytes()).unwrap();
        self.json()
    }

    fn json(&mut self) -> Value {
        let mut length = 0;
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).unwrap();
            let line = line.to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    /// Reads a stream up to its first token.
    fn first_token(&mut self) {
        let mut line = String::new();
        while !line.starts_with("data: ") {
            line.clear();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "the connection ended");
        }
    }

    /// All that comes up to the first event of a stream, or the end.
    fn head(&mut self) -> String {
        let mut text = String::new();
        while !text.contains("\ndata: ") && self.0.read_line(&mut text).unwrap() > 0 {}
        text
    }

    /// All that comes until a stream ends.
    fn rest(&mut self) -> String {
        let mut text = String::new();
        while !text.ends_with("\r\n0\r\n\r\n") && self.0.read_line(&mut text).unwrap() > 0 {}
        text
    }
}

/// A request whose answer begins with 200 tokens of its own kind.
fn body(kind: u32, max_tokens: u32, stream: bool) -> Value {
    let prompt: Vec<u32> = (0..200).map(|i| 300 + (i * 7 + kind * 31) % 1000).collect();
    json!({"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true, "stream": stream})
}

fn cached(answer: &Value) -> u64 {
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or_else(|| panic!("{answer}"))
}

const ROUTED: &str = "bitnet_prefix_routed_sequences_total";

#[test]
fn a_prompt_is_computed_by_the_shard_that_knows_its_beginning() {
    for shards in [2, 3] {
        let server = Server::start(shards);
        let mut clients = server.clients(shards);
        for (home, kind) in (0..shards).zip(0..) {
            let first = clients[home].complete(&body(kind, 20, false));
            assert_eq!((cached(&first), server.metric(ROUTED)), (0, f64::from(kind) * (shards - 1) as f64));
            for client in &mut clients {
                let again = client.complete(&body(kind, 20, false));
                assert_eq!((cached(&again), &again["choices"]), (192, &first["choices"]));
            }
        }
        // A stream comes the same way; one whose client leaves is given up where it is computed.
        clients[1].post(&body(0, 20, true));
        let stream = clients[1].rest();
        let expected = clients[0].complete(&body(0, 20, false));
        assert_eq!(text(&stream).as_deref(), expected["choices"][0]["text"].as_str(), "{stream}");
        clients[1].post(&body(0, 1000, true));
        clients[1].first_token();
        drop(clients);
        server.becomes_quiet();
        assert_eq!(server.metric(ROUTED), (shards * (shards - 1) + 2) as f64);
        let outcome = server.end();
        assert!(outcome.is_ok(), "{outcome:?}");
    }
}

#[test]
fn what_a_shard_has_no_place_for_is_computed_by_one_that_has() {
    let server = Server::start_small(2, 2);
    let (mut clients, mut second) = (server.clients(2), server.clients(2).remove(0));
    let alone = clients[0].complete(&body(1, 20, false));
    let deadline = Instant::now() + PATIENCE;
    // Until the first stream has lasted long enough for the second request to find its place taken.
    while server.metric(ROUTED) == 0.0 {
        assert!(Instant::now() < deadline, "nobody finds a shard full");
        clients[0].post(&body(0, 200, true));
        clients[0].first_token();
        assert_eq!(second.complete(&body(1, 20, false))["choices"], alone["choices"], "whoever computes it");
        let stream = clients[0].rest();
        assert!(stream.contains("[DONE]"), "{stream}");
    }
    drop((clients, second));
    server.becomes_quiet();
    let outcome = server.end();
    assert!(outcome.is_ok(), "{outcome:?}");
}

#[test]
fn a_host_that_breaks_down_ends_its_guests_and_nobody_else() {
    let server = Server::start(3);
    let mut clients = server.clients(3);
    let alone = clients[1].complete(&body(1, 200, false));
    clients[0].complete(&body(0, 20, false));
    faults::inject(Fault::Leader, 0);
    clients[1].post(&body(1, 200, true));
    clients[2].post(&body(0, 200, true));
    let (own, guest) = (clients[1].rest(), clients[2].rest());
    assert!(guest.contains("broke down") && text(&guest).is_none(), "{guest}");
    assert_eq!(text(&own).as_deref(), alone["choices"][0]["text"].as_str(), "{own}");
    // What its cache knew is forgotten everywhere, so nothing is sent there for it.
    let routed = server.metric(ROUTED);
    let again = clients[1].complete(&body(0, 20, false));
    assert_eq!((cached(&again), server.metric(ROUTED)), (0, routed));
    clients[0].complete(&body(2, 20, false));
    assert_eq!((cached(&clients[1].complete(&body(2, 20, false))), server.metric(ROUTED)), (192, routed + 1.0));
    drop(clients);
    server.becomes_quiet();
    let outcome = server.end();
    assert!(outcome.is_ok(), "{outcome:?}");
}

#[test]
fn what_breaks_down_beside_the_steps_ends_its_own_answer_and_a_leader_those_that_are_beside() {
    let server = Server::start(1);
    let connect = || Client(BufReader::new(server.connect()));
    let alone = connect().complete(&body(1, 100, false));
    // Which hardly ever comes to its end.
    let ambiguous = "# lark\nstart: e \"~\"\ne: e e | /[a-z ]/";
    let slow = json!({"prompt": "Once", "max_tokens": 900, "temperature": 1, "grammar": ambiguous, "stream": true});
    for fault in [Fault::Guide, Fault::Leader, Fault::Worker] {
        let is_guide = matches!(fault, Fault::Guide);
        let mut clients = [connect(), connect()];
        clients[0].post(&slow);
        if !is_guide {
            clients[1].post(&body(1, 1000, true));
            clients[1].first_token();
        }
        let deadline = Instant::now() + PATIENCE;
        while server.metric("bitnet_requests_beside") == 0.0 {
            assert!(Instant::now() < deadline, "no guide is beside");
            pause(Duration::from_millis(5));
        }
        faults::inject(fault, 0);
        if is_guide {
            let rest = clients[0].rest();
            assert!(rest.contains("error") && text(&rest).is_none(), "{rest}");
            let free = clients[1].complete(&body(1, 100, false));
            assert_eq!(free["choices"], alone["choices"], "{free}");
        } else {
            for client in &mut clients {
                let rest = client.rest();
                assert!(rest.contains("broke down") && text(&rest).is_none(), "{rest}");
            }
        }
        drop(clients);
        server.becomes_quiet();
        assert_eq!(server.metric("bitnet_requests_beside"), 0.0);
        let free = connect().complete(&body(1, 100, false));
        assert_eq!(free["choices"], alone["choices"], "{free}");
    }
    let outcome = server.end();
    assert!(outcome.is_ok(), "{outcome:?}");
}

#[test]
fn an_executor_that_breaks_down_ends_its_own_streams_and_goes_on() {
    let server = Server::start(2);
    let (mut clients, mut idle) = (server.clients(2), server.clients(2));
    let alone = clients[1].complete(&body(1, 200, false));
    faults::inject(Fault::Executor, 0);
    clients[1].post(&body(1, 200, true));
    clients[0].post(&body(0, 200, false));
    let broken = clients[0].json();
    assert!(broken["error"]["message"].as_str().unwrap().contains("broke down"), "{broken}");
    let other = clients[1].rest();
    assert_eq!(text(&other).as_deref(), alone["choices"][0]["text"].as_str(), "{other}");
    // Connections stay, and those that come find it as it was.
    for client in [&mut clients[0], &mut idle[0], &mut server.clients(2)[0]] {
        assert_eq!(client.complete(&body(1, 200, false))["choices"], alone["choices"]);
    }
    faults::inject(Fault::Accept, 0);
    let deadline = Instant::now() + PATIENCE;
    while faults::is_pending() {
        assert!(Instant::now() < deadline, "shard 0 accepts nobody");
        drop(server.connect());
    }
    faults::inject(Fault::Timer, 0);
    while faults::is_pending() {
        assert!(Instant::now() < deadline, "shard 0 keeps no time");
        pause(Duration::from_millis(1));
    }
    assert_eq!(idle[0].complete(&body(1, 200, false))["choices"], alone["choices"]);
    let others = server.clients(2);
    while server.metric("bitnet_connections") < (clients.len() + idle.len() + others.len()) as f64 {
        assert!(Instant::now() < deadline, "nobody counts connections any more");
        pause(Duration::from_millis(5));
    }
    assert_eq!(server.metric("bitnet_executor_restarts_total"), 3.0);
    assert_eq!(server.metric("bitnet_shard_restarts_total"), 0.0);
    drop((clients, idle, others));
    server.becomes_quiet();
    let outcome = server.end();
    assert!(outcome.is_ok(), "{outcome:?}");
}

#[test]
fn a_driver_that_breaks_down_closes_its_own_connections_and_another_executor_follows() {
    for io in ["auto", "epoll"] {
        let server = Server::start_on(2, io);
        let (mut clients, mut idle) = (server.clients(2), server.clients(2));
        let alone = clients[1].complete(&body(1, 60, false));
        let whole = clients[0].complete(&body(0, 60, false));
        let deadline = Instant::now() + PATIENCE;
        let broken = loop {
            assert!(Instant::now() < deadline, "shard 0 comes to the end of every stream");
            clients[1].post(&body(1, 60, true));
            clients[0].post(&body(0, 300, true));
            let mut stream = clients[0].head();
            faults::inject(Fault::Driver, 0);
            stream += &clients[0].rest();
            let beside = clients[1].rest();
            assert_eq!(text(&beside).as_deref(), alone["choices"][0]["text"].as_str(), "{beside}");
            if stream.contains("[DONE]") {
                // It came to its end first: the next one meets the fault.
                continue;
            }
            if stream.contains("data: ") {
                break stream;
            }
            assert!(stream.starts_with("HTTP/1.1 500 ") && stream.contains("broke down"), "{stream}");
            clients = server.clients(2);
        };
        let last = broken.lines().rfind(|line| line.starts_with("data: ")).unwrap();
        assert!(last.contains("broke down"), "the error is the last event: {broken}");
        assert!(broken.ends_with("0\r\n\r\n"), "the answer has its end: {broken}");
        // Its connections are closed, also those that asked for nothing; other shards' stay.
        for gone in [&mut clients[0], &mut idle[0]] {
            assert_eq!(gone.0.read(&mut [0; 1]).unwrap_or(0), 0);
        }
        assert_eq!(idle[1].complete(&body(1, 60, false))["choices"], alone["choices"]);
        // Nothing is left of what was cut, and those that come are served as before.
        server.becomes_quiet();
        assert_eq!(server.metric("bitnet_active_inference_requests"), 0.0);
        assert_eq!(server.clients(2)[0].complete(&body(0, 60, false))["choices"], whole["choices"]);
        let seconds = server.metric("bitnet_executor_rebuild_seconds");
        println!("{io}: a new executor after {:.2} ms", seconds * 1e3);
        assert!(seconds > 0.0 && seconds < PATIENCE.as_secs_f64());
        assert!(server.metric("bitnet_executor_rebuilds_total") >= 1.0);
        drop((clients, idle));
        let outcome = server.end();
        assert!(outcome.is_ok(), "{outcome:?}");
    }
}

#[test]
fn a_request_that_waits_under_a_driver_that_breaks_down_gets_an_error_of_its_own() {
    let server = Server::start(1);
    let mut client = server.clients(1).remove(0);
    faults::inject(Fault::Driver, 0);
    let deadline = Instant::now() + PATIENCE;
    let broken = loop {
        assert!(Instant::now() < deadline, "the fault strikes nobody");
        let answer = client.complete(&body(0, 50, false));
        if answer["choices"].is_null() {
            break answer;
        }
    };
    assert!(broken["error"]["message"].as_str().unwrap().contains("broke down"), "{broken}");
    assert_eq!(client.0.read(&mut [0; 1]).unwrap_or(0), 0);
    let answer = server.clients(1)[0].complete(&body(0, 50, false));
    assert!(answer["choices"][0]["text"].is_string(), "{answer}");
    assert_eq!(server.metric("bitnet_executor_rebuilds_total"), 1.0);
    let outcome = server.end();
    assert!(outcome.is_ok(), "{outcome:?}");
}

#[test]
fn an_executor_that_breaks_down_too_often_ends_the_server() {
    let server = Server::start(2);
    let mut clients = server.clients(2);
    for _ in 0..FALLS_MAX {
        faults::inject(Fault::Executor, 0);
        let broken = clients[0].complete(&body(0, 20, false));
        assert!(broken["error"]["message"].as_str().unwrap().contains("broke down"), "{broken}");
    }
    faults::inject(Fault::Executor, 0);
    clients[0].post(&body(0, 20, false));
    let deadline = Instant::now() + PATIENCE;
    while !server.join.is_finished() {
        assert!(Instant::now() < deadline, "it goes on");
        pause(Duration::from_millis(5));
    }
    let outcome = server.join.join().unwrap();
    assert!(matches!(outcome, Err(Error::Start { what: "a shard's executor", .. })), "{outcome:?}");
}

#[test]
fn a_drain_lets_streams_on_other_shards_end_well() {
    let server = Server::start(2);
    let mut clients = server.clients(2);
    let whole = clients[0].complete(&body(0, 300, false));
    clients[1].post(&body(0, 300, true));
    clients[1].first_token();
    let mut client = clients.pop().unwrap();
    drop(clients);
    let reader = std::thread::spawn(move || client.rest());
    let outcome = server.end();
    assert!(outcome.is_ok(), "{outcome:?}");
    let stream = reader.join().unwrap();
    assert!(stream.contains("[DONE]"), "{stream}");
    let text = text(&stream).unwrap();
    assert!(whole["choices"][0]["text"].as_str().unwrap().ends_with(&text), "{text}");
}

/// The text of a stream that ended well.
fn text(answer: &str) -> Option<String> {
    let chunks = answer.lines().filter_map(|line| line.strip_prefix("data: "));
    let parse = |chunk: &str| serde_json::from_str::<Value>(chunk).ok();
    let text = |chunk: Value| chunk["choices"][0]["text"].as_str().map(str::to_owned);
    let whole = answer.contains("data: [DONE]") && !answer.contains("data: {\"error\":");
    whole.then(|| chunks.filter_map(parse).filter_map(text).collect())
}

#[test]
fn a_shard_that_breaks_down_ends_its_own_streams_and_is_back() {
    let server = Server::start(2);
    let alone = text(&server.stream()).expect("nothing is wrong yet");
    for fault in [Fault::Leader, Fault::Worker] {
        faults::inject(fault, 0);
        let deadline = Instant::now() + PATIENCE;
        let mut answers = Vec::new();
        while faults::is_pending() {
            assert!(Instant::now() < deadline, "{fault:?}: shard 0 gets no stream");
            answers.extend(server.streams());
        }
        let (whole, broken): (Vec<&String>, Vec<&String>) = answers.iter().partition(|answer| text(answer).is_some());
        assert!(broken.iter().any(|answer| answer.contains("data: {\"error\":")), "{fault:?}: {broken:?}");
        for answer in broken {
            assert!(answer.contains("broke down") && !answer.contains("[DONE]"), "{answer}");
        }
        assert!(whole.iter().all(|answer| text(answer).as_ref() == Some(&alone)), "{fault:?}: others go on");
        let again = server.streams();
        assert!(again.iter().all(|answer| text(answer).as_ref() == Some(&alone)), "{fault:?}: it is back");
    }
    let metrics = server.answer("GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(metrics.contains("bitnet_shard_restarts_total 2\n"), "{metrics}");
    let outcome = server.end();
    assert!(outcome.is_ok(), "{outcome:?}");
}

const PATIENCE: Duration = Duration::from_secs(60);
const STREAMS: usize = 8;
