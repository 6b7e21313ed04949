//! A `bitnetd serve` of our own: started on a free port, watched, asked for its metrics, ended.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use serde_json::Value;

use crate::clients::{Answer, Client};
use crate::secured;

pub(crate) const MODEL: &str = "bitnetd-tiny";
/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A running server; dropping it kills it.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    /// What its clients trust, where it speaks TLS.
    trust: Option<Arc<ClientConfig>>,
    /// What it said on standard error until it listened.
    pub(crate) first_words: String,
    further_words: Option<JoinHandle<String>>,
}

/// How a server ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) words: String,
}

/// `bitnetd` with `arguments` and without our own environment's settings.
pub(crate) fn bitnetd(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnetd"));
    let ours = |name: &str| name.starts_with("BITNET_") || name.starts_with("OTEL_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| ours(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Runs a command that is expected to end by itself.
pub(crate) fn run_to_end(command: &mut Command) -> Ended {
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let code = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        pause(Duration::from_millis(5));
    };
    let mut words = String::new();
    child.stderr.take().unwrap().read_to_string(&mut words).unwrap();
    Ended { code, words }
}

impl Server {
    /// Serves the model of the binary on a free port, with further arguments; by one worker unless they choose: those of
    /// two servers at once, on the same cores, would mostly wait for each other.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let chosen = arguments.iter().any(|name| ["--workers", "--shards", "--config"].contains(name));
        Self::start_on_all_cores(&[if chosen { &[] } else { &["--workers", "1"][..] }, arguments].concat())
    }

    /// The same by as many workers as the server takes by itself.
    pub(crate) fn start_on_all_cores(arguments: &[&str]) -> Self {
        let mut command = bitnetd(&["serve", "--port", "0"]);
        command.args(arguments);
        Self::spawn(&mut command)
    }

    /// Runs `command` until it says where it listens.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        Self::try_spawn(command).unwrap_or_else(|words| panic!("the server ended: {words}"))
    }

    /// The same, or what it said where it ended before.
    pub(crate) fn try_spawn(command: &mut Command) -> Result<Self, String> {
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut first_words = String::new();
        loop {
            let start = first_words.len();
            let count = lines.read_line(&mut first_words).unwrap();
            if count == 0 {
                child.wait().unwrap();
                return Err(first_words);
            }
            let Some((_, place)) = first_words[start..].split_once(" on http") else { continue };
            let trust = place.starts_with('s').then(|| Arc::new(secured::config(false)));
            let Some((_, address)) = place.split_once("://") else { continue };
            let address = address.trim().parse().unwrap();
            let further_words = std::thread::spawn(move || {
                let mut words = String::new();
                lines.read_to_string(&mut words).unwrap();
                words
            });
            return Ok(Self { child, address, trust, first_words, further_words: Some(further_words) });
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end.
    pub(crate) fn terminate(&self) {
        self.signal("TERM");
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for its end.
    pub(crate) fn ended(self) -> Ended {
        self.ended_within(PATIENCE).expect("the server does not end")
    }

    /// Waits for its end; kills one that has none within `time`.
    pub(crate) fn ended_within(mut self, time: Duration) -> Option<Ended> {
        let deadline = Instant::now() + time;
        let code = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status.code();
            }
            if Instant::now() > deadline {
                return None;
            }
            pause(Duration::from_millis(5));
        };
        Some(Ended { code, words: self.further_words.take().unwrap().join().unwrap() })
    }

    pub(crate) fn connect(&self) -> Client {
        match &self.trust {
            None => Client::clear(self.address),
            Some(config) => Client::secure(self.address, config),
        }
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.connect().get(path)
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> Answer {
        self.connect().post(path, body.as_bytes())
    }

    /// The JSON answer to a request that must succeed.
    pub(crate) fn ask(&self, path: &str, body: &Value) -> Value {
        let answer = self.post(path, &body.to_string());
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// The sum of a metric's samples.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let mut found = text.lines().filter(|line| line.starts_with(name)).peekable();
        assert!(found.peek().is_some(), "no {name} in\n{text}");
        let values = found.filter(|line| line[name.len()..].starts_with([' ', '{']));
        values.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
    }

    /// Waits until nothing runs, waits or holds KV blocks any more.
    pub(crate) fn becomes_quiet(&self) -> bool {
        let names = ["bitnet_requests_running", "bitnet_requests_waiting", "bitnet_kv_cache_usage_ratio"];
        becomes_true(PATIENCE, || names.iter().all(|name| self.metric(name) == 0.0))
    }

    /// Sequences whose client left before they were through.
    pub(crate) fn cancelled(&self) -> f64 {
        self.metric("bitnet_request_success_total{finish_reason=\"cancelled\"}")
    }

    /// Memory that it has.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// Open descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Processor time so far.
    pub(crate) fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended already is no concern.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether `condition` holds within `time`.
pub(crate) fn becomes_true(time: Duration, condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + time;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        pause(Duration::from_millis(10));
    }
}

#[expect(clippy::disallowed_methods, reason = "a client that waits for another process")]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}
