//! The thread that sends spans in batches, and gives a collector that does not take them time to come back.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rtrb::Consumer;

use super::encode::encode;
use super::post::{Failure, post};
use super::{OtlpConfig, RequestSpan, TraceCounts, Tracer};
use crate::log::{info, warning};

/// Sends what is left when it is dropped, for [`FLUSH_MAX`] at most.
pub struct Exporter {
    stop: Option<SyncSender<()>>,
    thread: JoinHandle<()>,
}

/// Tracers of `shards` shards, and the thread that sends what they hand over.
///
/// # Errors
/// When the thread can't be started.
pub fn start(config: &OtlpConfig, shards: usize, counts: &Arc<TraceCounts>) -> io::Result<(Vec<Tracer>, Exporter)> {
    let (producers, consumers): (Vec<_>, Vec<_>) = (0..shards).map(|_| rtrb::RingBuffer::new(SPANS_MAX)).unzip();
    let tracer = |producer| Tracer::new(producer, config.sample_ratio, Arc::clone(counts));
    let (stop, stopped) = mpsc::sync_channel(1);
    let sending = Sending {
        config: config.clone(),
        spans: consumers,
        counts: Arc::clone(counts),
        failures: 0,
        batch: Vec::with_capacity(BATCH_MAX),
    };
    let thread = std::thread::Builder::new().name("otlp".into()).spawn(move || sending.run(&stopped))?;
    Ok((producers.into_iter().map(tracer).collect(), Exporter { stop: Some(stop), thread }))
}

impl Drop for Exporter {
    fn drop(&mut self) {
        drop(self.stop.take());
        let deadline = Instant::now() + FLUSH_MAX;
        while !self.thread.is_finished() && Instant::now() < deadline {
            pause(Duration::from_millis(5));
        }
    }
}

struct Sending {
    config: OtlpConfig,
    /// Of each shard.
    spans: Vec<Consumer<Box<RequestSpan>>>,
    counts: Arc<TraceCounts>,
    /// In a row.
    failures: u32,
    batch: Vec<RequestSpan>,
}

impl Sending {
    fn run(mut self, stopped: &Receiver<()>) {
        let mut wait = SEND_EVERY;
        loop {
            let ends = !matches!(stopped.recv_timeout(wait), Err(RecvTimeoutError::Timeout));
            // One that has not taken anything of late gets one chance at the end.
            let took = self.send_all(if ends { FLUSH_MAX } else { SEND_MAX });
            if ends {
                return;
            }
            wait = if took { SEND_EVERY } else { back_off(self.failures) };
        }
    }

    /// Sends until nothing is left; `false` where the collector did not take a batch.
    fn send_all(&mut self, time: Duration) -> bool {
        loop {
            for spans in &mut self.spans {
                let room = BATCH_MAX - self.batch.len();
                self.batch.extend(std::iter::from_fn(|| spans.pop().ok().map(|span| *span)).take(room));
            }
            if self.batch.is_empty() {
                return true;
            }
            let body = encode(&self.config.service_name, &self.batch);
            let sent = post(&self.config.endpoint, TRACES_PATH, &self.config.headers, &body, time);
            let count = self.batch.len();
            self.batch.clear();
            match sent {
                Ok(()) => self.took(count),
                Err(failure) => {
                    self.failed(count, &failure);
                    return false;
                }
            }
        }
    }

    fn took(&mut self, count: usize) {
        self.counts.count_exported(count);
        if std::mem::take(&mut self.failures) > 0 {
            info!("traces go to {} again", self.config.endpoint);
        }
    }

    fn failed(&mut self, count: usize, failure: &Failure) {
        self.counts.count_dropped(count);
        if self.failures == 0 {
            warning!("traces can't be sent to {} and are dropped until they can: {failure}", self.config.endpoint);
        }
        self.failures = self.failures.saturating_add(1);
    }
}

fn back_off(failures: u32) -> Duration {
    (SEND_EVERY * 2_u32.saturating_pow(failures.min(10))).min(BACK_OFF_MAX)
}

#[expect(clippy::disallowed_methods, reason = "the main thread waits for the last traces as the server ends")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

const TRACES_PATH: &str = "/v1/traces";
/// Finished requests of a shard that may wait to be sent.
const SPANS_MAX: usize = 2048;
/// Requests of one batch.
const BATCH_MAX: usize = 512;
const SEND_EVERY: Duration = Duration::from_millis(500);
/// The longest that a batch may take.
const SEND_MAX: Duration = Duration::from_secs(5);
const BACK_OFF_MAX: Duration = Duration::from_secs(60);
/// The longest that the end of the server waits for the last traces.
const FLUSH_MAX: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_that_fails_gets_ever_more_time_up_to_a_minute() {
        let waits: Vec<u128> = [1, 2, 3, 9, 1000].map(|failures| back_off(failures).as_millis()).to_vec();
        assert_eq!(waits, [1000, 2000, 4000, 60_000, 60_000]);
    }
}
