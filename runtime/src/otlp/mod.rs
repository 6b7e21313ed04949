//! Traces of requests for an OpenTelemetry collector: executors hand records of finished requests over, a thread of its own
//! sends them as OTLP/HTTP in JSON. Nobody waits for it: what does not fit or can't be sent is counted and dropped.

mod encode;
mod exporter;
mod post;
mod tracer;

use std::sync::atomic::{AtomicU64, Ordering};

pub use exporter::{Exporter, start};
pub use post::{Endpoint, NoEndpoint};
pub use tracer::{Computed, RequestSpan, Tracer};

/// Where traces go, and which.
#[derive(Clone, Debug)]
pub struct OtlpConfig {
    pub endpoint: Endpoint,
    /// Fields of each request to the collector; may hold secrets.
    pub headers: Headers,
    pub service_name: String,
    /// Share of the requests without a trace of their own that are traced.
    pub sample_ratio: f64,
}

/// Names and values, which are not shown.
#[derive(Clone, Default)]
pub struct Headers(pub Vec<(String, String)>);

impl std::fmt::Debug for Headers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// What became of the traces of requests.
#[derive(Debug, Default)]
pub struct TraceCounts {
    exported: AtomicU64,
    dropped: AtomicU64,
}

impl TraceCounts {
    fn count_exported(&self, count: usize) {
        self.exported.fetch_add(count as u64, Ordering::Relaxed);
    }

    fn count_dropped(&self, count: usize) {
        self.dropped.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// By outcome.
    pub fn outcomes(&self) -> [(&'static str, u64); 2] {
        [("exported", self.exported.load(Ordering::Relaxed)), ("dropped", self.dropped.load(Ordering::Relaxed))]
    }
}
