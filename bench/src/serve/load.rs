//! The event loop: starts requests when they are due, on as many connections as that takes.
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use super::Error;
use super::connection::{Connection, Flight, Outcome, Settled, Turn};
use super::epoll::{self, Epoll};
use super::report::Failure;
use super::request::Ask;
use super::schedule;
use super::wire::Place;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Arrivals {
    /// Poisson, whether or not earlier requests have been answered; latency counts from the scheduled arrival.
    Open { per_second: f64 },
    /// Each stream sends its next request when the last is answered.
    Closed { streams: u32 },
    /// At these times since the start, ascending, one for each request.
    Listed(Vec<Duration>),
}

/// One run of `requests` requests.
pub(crate) struct Load<'a> {
    pub(crate) place: Place,
    /// Makes the request of an index.
    pub(crate) ask: &'a dyn Fn(u32) -> Ask,
    pub(crate) arrivals: Arrivals,
    pub(crate) requests: u32,
    pub(crate) seed: u64,
    pub(crate) timeout: Duration,
}

impl Load<'_> {
    /// Runs to the last answer, and hands over each request as it is settled; the time that all took.
    ///
    /// # Errors
    /// [`Error::EventLoop`] if the kernel gives no epoll; a request that fails is settled.
    pub(crate) fn run(&self, settle: &mut dyn FnMut(Settled)) -> Result<Duration, Error> {
        epoll::raise_limits();
        let schedule = match &self.arrivals {
            Arrivals::Open { per_second } => schedule::poisson(self.seed, *per_second, self.requests),
            Arrivals::Closed { .. } => Vec::new(),
            Arrivals::Listed(times) => times.clone(),
        };
        let started = Instant::now();
        let mut run = Run {
            load: self,
            settle,
            epoll: Epoll::new().map_err(Error::EventLoop)?,
            schedule,
            started,
            slots: Vec::new(),
            free: Vec::new(),
            idle: Vec::new(),
            hang_ups: BinaryHeap::new(),
            next: 0,
            settled: 0,
            failed: 0,
            buffer: vec![0; READ_BYTES],
            next_tick: started,
            is_watched: std::io::stderr().is_terminal(),
        };
        let mut keys = Vec::new();
        while run.settled < self.requests {
            let now = Instant::now();
            run.start_due(now);
            run.hang_up_due(now);
            run.tick(now);
            if run.settled == self.requests {
                break;
            }
            run.epoll.wait(&mut keys, run.wait_at_most(now)).map_err(Error::EventLoop)?;
            for key in &keys {
                run.look_at(*key);
            }
        }
        run.clear_progress();
        Ok(started.elapsed())
    }
}

struct Run<'a> {
    load: &'a Load<'a>,
    settle: &'a mut dyn FnMut(Settled),
    epoll: Epoll,
    /// Arrivals since the start, where they don't follow from answers.
    schedule: Vec<Duration>,
    started: Instant,
    slots: Vec<Slot>,
    free: Vec<u32>,
    idle: Vec<u32>,
    /// When clients leave: the time, the slot, and the request that it is about.
    hang_ups: BinaryHeap<Reverse<(Instant, u32, u32)>>,
    /// The request that starts next.
    next: u32,
    settled: u32,
    failed: u32,
    buffer: Vec<u8>,
    next_tick: Instant,
    is_watched: bool,
}

#[derive(Default)]
struct Slot {
    /// Counts the slot's connections: an edge of an earlier one carries an earlier number.
    generation: u32,
    connection: Option<Connection>,
}

impl Run<'_> {
    fn start_due(&mut self, now: Instant) {
        // Starting can settle a request at once, so the loop ends by the number of requests, not by those under way.
        while self.next < self.load.requests {
            let arrival = match self.load.arrivals {
                Arrivals::Open { .. } | Arrivals::Listed(_) => self.started + self.schedule[self.next as usize],
                Arrivals::Closed { streams } if self.next - self.settled < streams => Instant::now(),
                Arrivals::Closed { .. } => return,
            };
            if arrival > now && !self.schedule.is_empty() {
                return;
            }
            let (index, ask) = (self.next, (self.load.ask)(self.next));
            self.next += 1;
            self.start(Flight::new(index, ask, arrival));
        }
    }

    fn start(&mut self, flight: Flight) {
        while let Some(slot) = self.idle.pop() {
            if let Some(connection) = &mut self.slots[slot as usize].connection {
                connection.begin(flight);
                return self.turn(slot);
            }
        }
        self.start_fresh(flight);
    }

    fn start_fresh(&mut self, flight: Flight) {
        let mut connection = match Connection::open(&self.load.place) {
            Ok(connection) => connection,
            Err(error) => return self.settle(flight.fail(Failure::Connect, error.to_string(), Instant::now())),
        };
        connection.begin(flight);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        let place = &mut self.slots[slot as usize];
        place.generation = place.generation.wrapping_add(1);
        let key = u64::from(place.generation) << 32 | u64::from(slot);
        let added = self.epoll.add(connection.fd(), key);
        place.connection = Some(connection);
        match added {
            Ok(()) => self.turn(slot),
            Err(error) => self.give_up(slot, |flight| flight.fail(Failure::Connect, error.to_string(), Instant::now())),
        }
    }

    fn look_at(&mut self, key: u64) {
        let slot = (key & u64::from(u32::MAX)) as u32;
        let place = &self.slots[slot as usize];
        if u64::from(place.generation) == key >> 32 && place.connection.is_some() {
            self.turn(slot);
        }
    }

    fn turn(&mut self, slot: u32) {
        let connection = self.slots[slot as usize].connection.as_mut().expect("a turn is given to open connections");
        match connection.turn(&mut self.buffer) {
            Turn::Wait => {
                if let Some(flight) = connection.flight()
                    && let Some(at) = flight.arm()
                {
                    self.hang_ups.push(Reverse((at, slot, flight.index)));
                }
            }
            Turn::Settled { settled, reusable } => {
                if reusable {
                    self.idle.push(slot);
                } else {
                    self.close(slot);
                }
                self.settle(settled);
            }
            Turn::Stale(flight) => {
                self.close(slot);
                self.start_fresh(*flight);
            }
            Turn::IdleClosed => {
                self.idle.retain(|idle| *idle != slot);
                self.close(slot);
            }
        }
    }

    fn close(&mut self, slot: u32) {
        self.slots[slot as usize].connection = None;
        self.free.push(slot);
    }

    /// Closes a connection whose request does not end by itself.
    fn give_up(&mut self, slot: u32, why: impl FnOnce(Flight) -> Settled) {
        let connection = self.slots[slot as usize].connection.as_mut();
        let flight = connection.and_then(Connection::abandon).expect("a request is under way");
        self.close(slot);
        self.settle(why(flight));
    }

    fn settle(&mut self, settled: Settled) {
        self.settled += 1;
        self.failed += u32::from(matches!(settled.outcome, Outcome::Failed(_)));
        (self.settle)(settled);
    }

    /// Lets clients leave whose time has come, after they have read what there is.
    fn hang_up_due(&mut self, now: Instant) {
        while let Some(&Reverse((at, slot, index))) = self.hang_ups.peek()
            && at <= now
        {
            self.hang_ups.pop();
            if self.flight_at(slot).is_some_and(|flight| flight.index == index) {
                self.turn(slot);
            }
            if self.flight_at(slot).is_some_and(|flight| flight.index == index) {
                self.give_up(slot, Flight::hang_up);
            }
        }
    }

    fn flight_at(&mut self, slot: u32) -> Option<&mut Flight> {
        self.slots[slot as usize].connection.as_mut().and_then(Connection::flight)
    }

    fn wait_at_most(&self, now: Instant) -> Duration {
        let tick = self.next_tick.saturating_duration_since(now);
        let arrival =
            self.schedule.get(self.next as usize).map(|after| (self.started + *after).saturating_duration_since(now));
        let hang_up = self.hang_ups.peek().map(|Reverse((at, ..))| at.saturating_duration_since(now));
        [arrival, hang_up].into_iter().flatten().fold(tick, Duration::min)
    }

    /// Ends what takes too long, and tells a person at a terminal how far the run is.
    fn tick(&mut self, now: Instant) {
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + TICK;
        let timeout = self.load.timeout;
        for slot in 0..self.slots.len() as u32 {
            let arrival = self.flight_at(slot).map(|flight| flight.arrival);
            if arrival.is_some_and(|arrival| now.saturating_duration_since(arrival) > timeout) {
                let message = format!("no end after {:.1} s", timeout.as_secs_f64());
                self.give_up(slot, |flight| flight.fail(Failure::Timeout, message, now));
            }
        }
        if self.is_watched {
            let (settled, requests, under_way) = (self.settled, self.load.requests, self.next - self.settled);
            let (failed, seconds) = (self.failed, now.duration_since(self.started).as_secs_f64());
            eprint!("\r\x1b[K{settled}/{requests} answered, {under_way} under way, {failed} failed, {seconds:.1} s");
            let _ = std::io::stderr().flush();
        }
    }

    fn clear_progress(&self) {
        if self.is_watched {
            eprint!("\r\x1b[K");
        }
    }
}

const READ_BYTES: usize = 64 << 10;
const TICK: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::fake_server::{self, Behaviour, Fault};
    use crate::serve::prompt::Prompts;
    use crate::serve::report::{Report, Slo};
    use crate::serve::request::{Endpoint, RequestTemplate};
    use crate::serve::{client, url::Url};
    use serde_json::Value;
    use std::net::SocketAddr;

    const STEADY: Behaviour = Behaviour {
        tokens: 5,
        first_token: Duration::from_millis(20),
        gap: Duration::from_millis(10),
        fault: Fault::None,
        requests_per_connection: 0,
    };

    fn template(address: SocketAddr, endpoint: Endpoint) -> RequestTemplate {
        RequestTemplate {
            endpoint,
            whole: false,
            url: format!("http://{address}").parse().unwrap(),
            model: None,
            max_tokens: 5,
            temperature: 0.0,
            ignore_eos: false,
            api_key: None,
            prompts: Prompts::new(1, 8, 1.0),
        }
    }

    fn run(
        template: &RequestTemplate,
        address: SocketAddr,
        arrivals: Arrivals,
        requests: u32,
        timeout_s: f64,
    ) -> Value {
        let mut report = Report::new(Slo::default());
        let (ask, timeout) = (|index| template.ask(index), Duration::from_secs_f64(timeout_s));
        let load = Load { place: Place::clear(address), ask: &ask, arrivals, requests, seed: 1, timeout };
        let elapsed = load.run(&mut |settled| report.add(&settled)).unwrap();
        report.set_elapsed(elapsed);
        report.to_json(template.endpoint.name(), "", &load.arrivals, 1)
    }

    fn load(address: SocketAddr, endpoint: Endpoint, arrivals: Arrivals, requests: u32) -> Value {
        run(&template(address, endpoint), address, arrivals, requests, 120.0)
    }

    fn failures(fault: Fault) -> Value {
        let address = fake_server::start(Behaviour { fault, ..STEADY });
        load(address, Endpoint::Chat, Arrivals::Closed { streams: 2 }, 4)["requests"]["failures"].clone()
    }

    #[test]
    fn every_endpoint_is_measured_in_a_closed_loop() {
        let address = fake_server::start(STEADY);
        for endpoint in [Endpoint::Chat, Endpoint::Completions, Endpoint::Inference] {
            let report = load(address, endpoint, Arrivals::Closed { streams: 4 }, 12);
            assert_eq!(report["requests"]["finished"], 12, "{report}");
            assert_eq!(report["tokens"], 60);
            assert_eq!((&report["ttft_ms"]["n"], &report["itl_ms"]["n"]), (&Value::from(12), &Value::from(48)));
            // The lower bounds are certain; a busy machine may add to them.
            assert!(report["ttft_ms"]["p50"].as_f64().unwrap() >= 20.0);
            assert!(report["end_to_end_ms"]["p50"].as_f64().unwrap() >= 60.0);
            // A token that is read late makes the mean gap of its request shorter, but all of them together are the gaps.
            let [gap, mean_gap] = ["itl_ms", "tpot_ms"].map(|name| report[name]["mean"].as_f64().unwrap());
            assert!((0.98..1.02).contains(&(mean_gap / gap)), "{report}");
        }
    }

    #[test]
    fn open_loop_counts_from_the_scheduled_arrival() {
        let address = fake_server::start(STEADY);
        let report = load(address, Endpoint::Chat, Arrivals::Open { per_second: 200.0 }, 40);
        assert_eq!(report["requests"]["finished"], 40, "{report}");
        assert!(report["ttft_ms"]["p50"].as_f64().unwrap() >= 20.0);
        assert_eq!(report["rate_per_s"], 200.0);
        let last = schedule::poisson(1, 200.0, 40)[39].as_secs_f64();
        assert!(report["elapsed_s"].as_f64().unwrap() >= last);
    }

    #[test]
    fn a_thousand_streams_at_once() {
        let address = fake_server::start(Behaviour { first_token: Duration::from_millis(500), ..STEADY });
        let report = load(address, Endpoint::Chat, Arrivals::Closed { streams: 1000 }, 1000);
        assert_eq!(report["requests"]["finished"], 1000, "{report}");
        assert_eq!(report["tokens"], 5000);
    }

    #[test]
    fn listed_arrivals_come_at_their_times() {
        let address = fake_server::start(STEADY);
        let times = [0, 0, 150].map(Duration::from_millis).to_vec();
        let report = load(address, Endpoint::Chat, Arrivals::Listed(times), 3);
        assert_eq!(report["requests"]["finished"], 3, "{report}");
        assert!(report["elapsed_s"].as_f64().unwrap() >= 0.21);
    }

    #[test]
    fn clients_that_hang_up_have_read_what_there_was() {
        let address = fake_server::start(Behaviour { tokens: 1000, ..STEADY });
        let template = template(address, Endpoint::Inference);
        // Every second one leaves, between its second token and its end.
        let ask = |index| {
            let hang_up_after = (index % 2 == 0).then_some(Duration::from_millis(15));
            let tokens = Ask { hang_up_after, ..template.ask(index) };
            if index % 2 == 0 { tokens } else { Ask::get(&template.url, "/v1/models", None) }
        };
        let load = Load {
            place: Place::clear(address),
            ask: &ask,
            arrivals: Arrivals::Closed { streams: 4 },
            requests: 12,
            seed: 1,
            timeout: Duration::from_secs(120),
        };
        let (mut left, mut answered) = (Vec::new(), 0);
        load.run(&mut |settled| match settled.outcome {
            Outcome::HungUp { tokens, .. } => left.push(tokens),
            Outcome::Finished(_) => answered += 1,
            Outcome::Failed(failed) => panic!("{failed:?}"),
        })
        .unwrap();
        assert_eq!((left.len(), answered), (6, 6));
        assert!(left.iter().all(|tokens| (1..1000).contains(tokens)), "{left:?}");
    }

    #[test]
    fn connection_closed_while_idle_costs_no_request() {
        let address = fake_server::start(Behaviour { requests_per_connection: 2, ..STEADY });
        let report = load(address, Endpoint::Chat, Arrivals::Closed { streams: 3 }, 30);
        assert_eq!(report["requests"]["finished"], 30, "{report}");
    }

    #[test]
    fn each_fault_is_told_by_its_name() {
        let expected = [
            (Fault::Status(429), "429", "no room"),
            (Fault::CutAfterTwoTokens, "cut", "closed before the end of the response"),
            (Fault::ErrorEvent, "stream", "lost a shard"),
            (Fault::NoDone, "stream", "the stream ended without its last event"),
            (Fault::Garbage, "malformed", "response head is malformed"),
        ];
        for (fault, name, message) in expected {
            let failures = failures(fault);
            assert_eq!(
                (&failures[name]["count"], failures[name]["first"].as_str()),
                (&Value::from(4), Some(message)),
                "{failures}"
            );
        }
    }

    #[test]
    fn silence_times_out_and_refused_connections_are_counted() {
        let address = fake_server::start(Behaviour { fault: Fault::Silence, ..STEADY });
        let arrivals = Arrivals::Closed { streams: 2 };
        let report = run(&template(address, Endpoint::Chat), address, arrivals.clone(), 3, 0.2);
        assert_eq!(report["requests"]["failures"]["timeout"]["count"], 3);

        let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let report = load(unused, Endpoint::Chat, arrivals, 3);
        assert_eq!(report["requests"]["failures"]["connect"]["count"], 3, "{report}");
    }

    #[test]
    fn questions_before_the_load_are_answered() {
        let address = fake_server::start(STEADY);
        let url: Url = format!("http://{address}").parse().unwrap();
        assert_eq!(client::first_model(&url, &Place::clear(address), None).as_deref(), Some("fake"));
        let ratio = client::words_per_token(&url, &Place::clear(address), None).unwrap();
        assert!((0.49..0.51).contains(&ratio), "{ratio}");
    }
}
