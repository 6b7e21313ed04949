//! The executor's side: which requests are traced, and what is known of each when it has ended.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use net::api::{self, Access};
use net::http::Request;
use net::trace::TraceContext;
use rtrb::Producer;

use super::TraceCounts;
use crate::receipts::Receipt;

/// A request that is traced.
#[derive(Debug)]
pub struct RequestSpan {
    pub trace_id: u128,
    pub span_id: u64,
    /// The client's span.
    pub parent_id: Option<u64>,
    pub state: String,
    pub method: &'static str,
    pub path: String,
    /// The path as documents write it; `None` where there is none.
    pub route: Option<String>,
    pub start: Duration,
    pub end: Duration,
    /// 0 where no answer was begun.
    pub status: u16,
    pub computed: Option<Computed>,
}

/// What computed its answer, and when.
#[derive(Debug)]
pub struct Computed {
    pub model: String,
    pub receipt: Receipt,
}

/// Decides and hands over; lives on one executor.
pub struct Tracer {
    spans: RefCell<Producer<Box<RequestSpan>>>,
    sample_ratio: f64,
    counts: Arc<TraceCounts>,
}

impl Tracer {
    pub(super) fn new(spans: Producer<Box<RequestSpan>>, sample_ratio: f64, counts: Arc<TraceCounts>) -> Self {
        Self { spans: RefCell::new(spans), sample_ratio, counts }
    }

    /// The span of a request that has just come, at `now` since 1970; `None` where it is not traced: what probes and pages
    /// ask for is not, else its client decides, or the share that is configured.
    pub fn begin(&self, request: &Request, mut random: impl FnMut() -> u64, now: Duration) -> Option<Box<RequestSpan>> {
        let (method, path) = (request.method(), request.path());
        if api::route(method, path).is_ok_and(|route| route.access() == Access::Open) {
            return None;
        }
        let context = TraceContext::of(request);
        let span_id = random() | 1;
        let trace_id = match &context {
            Some(context) if context.sampled => context.trace_id,
            Some(_) => return None,
            None => {
                let low = random();
                if !is_in_share(low, self.sample_ratio) {
                    return None;
                }
                u128::from(random() | 1) << 64 | u128::from(low)
            }
        };
        Some(Box::new(RequestSpan {
            trace_id,
            span_id,
            parent_id: context.as_ref().map(|context| context.parent_id),
            state: context.map(|context| context.state).unwrap_or_default(),
            method: method.as_str(),
            path: path.to_owned(),
            route: api::template(path),
            start: now,
            end: now,
            status: 0,
            computed: None,
        }))
    }

    /// Hands a finished one over; where there is no room it is dropped.
    pub fn end(&self, span: Box<RequestSpan>) {
        if self.spans.borrow_mut().push(span).is_err() {
            self.counts.count_dropped(1);
        }
    }
}

/// Whether a trace is among the share that is kept, by its random number: as every sampler of that kind decides.
#[expect(clippy::cast_precision_loss, reason = "a share need not be exact")]
fn is_in_share(low: u64, ratio: f64) -> bool {
    ((low >> 1) as f64) < ratio * (1_u64 << 63) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use net::http::{Connection, Limits};

    fn request(target: &str, fields: &str) -> Request {
        let mut connection = Connection::new(Limits::default());
        connection.receive(format!("GET {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n").as_bytes()).unwrap();
        connection.next().unwrap().unwrap()
    }

    #[test]
    fn the_client_decides_else_the_share_and_probes_are_never_traced() {
        let parent = |flags: &str| format!("traceparent: 00-{:032x}-{:016x}-{flags}\r\n", 7, 9);
        for (ratio, fields, wanted) in [
            (1.0, String::new(), true),
            (0.0, String::new(), false),
            (0.0, parent("01"), true),
            (1.0, parent("00"), false),
            (1.0, "traceparent: nonsense\r\n".into(), true),
            (0.0, "traceparent: nonsense\r\n".into(), false),
        ] {
            let (producer, _consumer) = rtrb::RingBuffer::new(1);
            let tracer = Tracer::new(producer, ratio, Arc::default());
            let begin = |target: &str| tracer.begin(&request(target, &fields), || 1 << 40, Duration::ZERO);
            let span = begin("/v1/models/a/status");
            assert_eq!(span.is_some(), wanted, "{ratio} {fields}");
            assert!(begin("/health/live").is_none() && begin("/metrics").is_none() && begin("/").is_none());
            assert_eq!(begin("/nothing").is_some(), wanted, "what is refused is traced as well");
            if let Some(span) = span {
                assert_eq!(span.route.as_deref(), Some("/v1/models/{id}/status"));
                assert_eq!(span.parent_id, fields.contains("-01").then_some(9));
            }
        }
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let (producer, mut consumer) = rtrb::RingBuffer::new(2);
        let counts = Arc::<TraceCounts>::default();
        let tracer = Tracer::new(producer, 1.0, Arc::clone(&counts));
        for _ in 0..5 {
            tracer.end(tracer.begin(&request("/v1/models", ""), || 3, Duration::ZERO).unwrap());
        }
        assert_eq!(counts.outcomes(), [("exported", 0), ("dropped", 3)]);
        assert!(consumer.pop().is_ok() && consumer.pop().is_ok() && consumer.pop().is_err());
    }

    #[test]
    fn a_share_is_that_share() {
        let step = u64::MAX / 1000;
        let kept = (0..1000).filter(|i| is_in_share(i * step, 0.25)).count();
        assert!((249..=251).contains(&kept), "{kept}");
        assert!(is_in_share(u64::MAX, 1.1) && !is_in_share(0, 0.0));
    }
}
