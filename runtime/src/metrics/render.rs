//! The Prometheus text of all shards, made when somebody asks for it.

use net::tls::Refusal;
use prometheus::proto::{Bucket, Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Result, TextEncoder};

use super::{Cell, Histogram, ShardMetrics};
use crate::executor::Holder;

/// What is known of the process as a whole.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    pub rss_bytes: u64,
    pub model_load_seconds: f64,
    pub uptime_seconds: f64,
    pub cpu_seconds: f64,
    pub cpus: usize,
    pub log_lines_dropped: u64,
    /// Traces of requests, by what became of them.
    pub traces: [(&'static str, u64); 2],
    /// Whether it speaks TLS; then until when its certificate holds, in Unix time.
    pub tls: Option<Option<u64>>,
}

/// All metrics as Prometheus text 0.0.4.
///
/// # Errors
/// The encoder's, which means a name that Prometheus does not allow.
pub fn render(
    shards: &[std::sync::Arc<ShardMetrics>],
    process: Process,
    swaps: &[(&'static str, u64)],
) -> Result<String> {
    let mut page = Page { shards, families: Vec::new() };
    page.requests();
    page.steps();
    page.holdups();
    page.process(process);
    if let Some(not_after_unix_s) = process.tls {
        page.tls(not_after_unix_s);
    }
    page.swaps(swaps);
    TextEncoder::new().encode_to_string(&page.families)
}

/// The value of a label and where its count is.
type Labelled<'a> = (&'a str, fn(&ShardMetrics) -> &Cell);

struct Page<'a> {
    shards: &'a [std::sync::Arc<ShardMetrics>],
    families: Vec<MetricFamily>,
}

impl Page<'_> {
    fn requests(&mut self) {
        self.counter("bitnet_inference_requests_total", "Requests for tokens that were taken in.", |s| {
            &s.requests.started
        });
        self.gauge("bitnet_active_inference_requests", "Requests for tokens in progress.", |s| &s.requests.active);
        self.gauge("bitnet_connections", "Open client connections.", |s| &s.requests.connections);
        self.counter("bitnet_connections_handed_over_total", "Connections that another shard accepted.", |s| {
            &s.requests.handed_over
        });
        self.counter("bitnet_prompt_tokens_total", "Prompt tokens taken in.", |s| &s.requests.prompt_tokens);
        self.counter("bitnet_generation_tokens_total", "Tokens generated.", |s| &s.requests.generated_tokens);
        self.labelled(
            "bitnet_request_success_total",
            "Requests that ended, by reason.",
            "finish_reason",
            &[
                ("stop", |s| &s.requests.outcomes.stop),
                ("length", |s| &s.requests.outcomes.length),
                ("cancelled", |s| &s.requests.outcomes.cancelled),
                ("failed", |s| &s.requests.outcomes.failed),
            ],
        );
        self.labelled(
            "bitnet_admission_rejections_total",
            "Requests refused, by reason.",
            "reason",
            &[
                ("queue_full", |s| &s.requests.outcomes.refused_queue),
                ("memory", |s| &s.requests.outcomes.refused_memory),
                ("deadline", |s| &s.requests.outcomes.refused_deadline),
                ("draining", |s| &s.requests.outcomes.refused_draining),
                ("connections", |s| &s.requests.outcomes.refused_connections),
                ("rate_limit", |s| &s.requests.outcomes.refused_rate),
            ],
        );
        self.labelled(
            "bitnet_http_responses_total",
            "HTTP answers, by class of status.",
            "class",
            &[
                ("1xx", |s| &s.requests.answers[0]),
                ("2xx", |s| &s.requests.answers[1]),
                ("3xx", |s| &s.requests.answers[2]),
                ("4xx", |s| &s.requests.answers[3]),
                ("5xx", |s| &s.requests.answers[4]),
            ],
        );
        self.histogram("bitnet_request_queue_time_seconds", "Arrival to a slot.", |s| &s.requests.queue);
        self.histogram("bitnet_request_prefill_time_seconds", "Slot to first token.", |s| &s.requests.prefill);
        self.histogram("bitnet_request_decode_time_seconds", "First token to last.", |s| &s.requests.decode);
        self.histogram("bitnet_time_to_first_token_seconds", "Arrival to first token.", |s| &s.requests.first_token);
        self.histogram("bitnet_inter_token_latency_seconds", "Token to token.", |s| &s.requests.inter_token);
        self.histogram("bitnet_token_write_seconds", "Token chosen to token in the socket.", |s| {
            &s.requests.token_write
        });
        self.histogram("bitnet_e2e_request_latency_seconds", "Arrival to last token.", |s| &s.requests.end_to_end);
        self.histogram("bitnet_inference_duration_seconds", "Arrival to last token.", |s| &s.requests.end_to_end);
        self.histogram("bitnet_tokens_per_second", "Decode speed of a request.", |s| &s.requests.tokens_per_second);
    }

    fn steps(&mut self) {
        self.histogram("bitnet_step_duration_seconds", "Duration of a forward pass.", |s| &s.step.duration);
        self.histogram("bitnet_step_rows", "Rows of a forward pass.", |s| &s.step.rows);
        self.histogram("bitnet_batch_size", "Sequences of a forward pass that got a token.", |s| &s.step.sequences);
        self.histogram("bitnet_request_first_step_seconds", "Request read to its first step.", |s| &s.step.first_step);
        self.counter("bitnet_sampled_tokens_total", "Tokens chosen, also for clients that had left.", |s| {
            &s.step.sampled_tokens
        });
        self.counter("bitnet_speculation_drafted_tokens_total", "Draft tokens that were computed.", |s| {
            &s.step.drafted_tokens
        });
        self.counter("bitnet_speculation_accepted_tokens_total", "Draft tokens that were right.", |s| {
            &s.step.accepted_tokens
        });
        self.labelled(
            "bitnet_head_rows_total",
            "Rows of the output head: decided by its screen, not decided by it, not screened.",
            "path",
            &[
                ("screened", |s| &s.step.head.screened),
                ("undecided", |s| &s.step.head.undecided),
                ("full", |s| &s.step.head.full),
            ],
        );
        self.counter("bitnet_head_exact_logits_total", "Logits computed exactly for screened rows.", |s| {
            &s.step.head.exact
        });
        self.gauge("bitnet_requests_running", "Sequences in slots.", |s| &s.step.running);
        self.gauge("bitnet_requests_waiting", "Sequences in queues.", |s| &s.step.waiting);
        self.counter("bitnet_preemptions_total", "Sequences that gave up their slot for want of KV blocks.", |s| {
            &s.step.preempted
        });
        let beside = "Sequences in slots whose sets of allowed tokens are computed beside the steps now.";
        self.gauge("bitnet_requests_beside", beside, |s| &s.step.beside);
        let beside = "Sets of allowed tokens that were computed beside the steps, as they take long.";
        self.counter("bitnet_guides_beside_total", beside, |s| &s.step.guides_beside);
        self.counter("bitnet_prefix_cache_queries_total", "Tokens that were looked up in the KV cache.", |s| {
            &s.step.prefix_queries
        });
        self.counter("bitnet_prefix_cache_hits_total", "Tokens that were found in the KV cache.", |s| {
            &s.step.prefix_hits
        });
        let routed = "Sequences that another shard computed, since its KV cache knew their beginning.";
        self.counter("bitnet_prefix_routed_sequences_total", routed, |s| &s.requests.routed);
        let (used, all) = (self.sum(|s| &s.step.kv_blocks_used), self.sum(|s| &s.step.kv_blocks));
        self.push_gauge("bitnet_kv_cache_usage_ratio", "KV blocks in use.", if all > 0.0 { used / all } else { 0.0 });
        self.gauge("bitnet_kv_cache_resident_blocks", "KV blocks that have memory, in use or not.", |s| {
            &s.step.kv_blocks_resident
        });
    }

    fn holdups(&mut self) {
        self.counter("bitnet_shard_restarts_total", "Times that a shard broke down and began anew.", |s| {
            &s.step.restarts
        });
        self.counter("bitnet_executor_restarts_total", "Times that an executor broke down and went on.", |s| {
            &s.requests.restarts
        });
        self.counter("bitnet_executor_rebuilds_total", "Times that a new executor took the place of another.", |s| {
            &s.requests.rebuilds
        });
        let aside = "Bodies, texts and conversations that were read beside an executor, since they are long.";
        self.counter("bitnet_aside_jobs_total", aside, |s| &s.requests.aside);
        let longest_us = self.shards.iter().map(|shard| shard.requests.rebuild_us.get()).max().unwrap_or(0);
        let help =
            "How long a shard had no executor the last time that it got a new one, of the shard with the longest.";
        self.push_gauge("bitnet_executor_rebuild_seconds", help, longest_us as f64 / 1e6);
        let label = |holder: &Holder| {
            let mut pair = LabelPair::default();
            pair.set_name("holder".to_owned());
            pair.set_value(holder.name().to_owned());
            vec![pair]
        };
        let shards = self.shards;
        let of = |holder: Holder| shards.iter().map(move |shard| &shard.stalls[holder as usize]);
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
        let counts = Holder::ALL.iter().map(|holder| {
            let mut counter = Counter::default();
            counter.set_value(of(*holder).map(|stalls| stalls.count.get()).sum::<u64>() as f64);
            let mut metric = Metric::from_label(label(holder));
            metric.set_counter(counter);
            metric
        });
        let counts = counts.collect();
        #[expect(clippy::cast_precision_loss, reason = "microseconds far below 2^53")]
        let longest = Holder::ALL.iter().map(|holder| {
            let mut gauge = Gauge::default();
            gauge.set_value(of(*holder).map(|stalls| stalls.longest_us.get()).max().unwrap_or(0) as f64 / 1e6);
            let mut metric = Metric::from_gauge(gauge);
            metric.set_label(label(holder));
            metric
        });
        let longest = longest.collect();
        let help = "Times that something held an executor longer than 1 ms.";
        self.push("bitnet_shard_stalls_total", help, MetricType::COUNTER, counts);
        let help = "Longest time that something held an executor, since start.";
        self.push("bitnet_shard_stall_longest_seconds", help, MetricType::GAUGE, longest);
    }

    fn tls(&mut self, not_after_unix_s: Option<u64>) {
        self.labelled(
            "bitnet_tls_handshakes_total",
            "TLS handshakes that were done, with a certificate or by a ticket of an earlier one.",
            "kind",
            &[("full", |s| &s.handshakes.full), ("resumed", |s| &s.handshakes.resumed)],
        );
        self.labelled(
            "bitnet_tls_handshake_failures_total",
            "TLS handshakes that were not done, by reason.",
            "reason",
            &[
                (Refusal::Clear.name(), |s| &s.handshakes.refused[Refusal::Clear as usize]),
                (Refusal::Malformed.name(), |s| &s.handshakes.refused[Refusal::Malformed as usize]),
                (Refusal::Incompatible.name(), |s| &s.handshakes.refused[Refusal::Incompatible as usize]),
                (Refusal::Protocol.name(), |s| &s.handshakes.refused[Refusal::Protocol as usize]),
                (Refusal::Alert.name(), |s| &s.handshakes.refused[Refusal::Alert as usize]),
                (Refusal::TooLong.name(), |s| &s.handshakes.refused[Refusal::TooLong as usize]),
                (Refusal::Internal.name(), |s| &s.handshakes.refused[Refusal::Internal as usize]),
                ("left", |s| &s.handshakes.left),
                ("timeout", |s| &s.handshakes.timed_out),
            ],
        );
        if let Some(not_after) = not_after_unix_s {
            #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
            let not_after = not_after as f64;
            let help = "When the certificate of the server ends, in Unix time.";
            self.push_gauge("bitnet_tls_certificate_expiry_timestamp_seconds", help, not_after);
        }
    }

    fn swaps(&mut self, swaps: &[(&'static str, u64)]) {
        self.by_outcome("bitnet_model_swaps_total", "Model swaps, by how they ended.", swaps);
    }

    fn by_outcome(&mut self, name: &str, help: &str, outcomes: &[(&'static str, u64)]) {
        let metric = |(outcome, count): &(&'static str, u64)| {
            let mut label = LabelPair::default();
            label.set_name("outcome".to_owned());
            label.set_value((*outcome).to_owned());
            let mut counter = Counter::default();
            #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
            counter.set_value(*count as f64);
            let mut metric = Metric::default();
            metric.set_label(vec![label]);
            metric.set_counter(counter);
            metric
        };
        let metrics = outcomes.iter().map(metric).collect();
        self.push(name, help, MetricType::COUNTER, metrics);
    }

    fn process(&mut self, process: Process) {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let (rss, cpus) = (process.rss_bytes as f64, process.cpus as f64);
        self.push_gauge("bitnet_system_memory_usage_bytes", "Resident memory of the process.", rss);
        self.push_gauge(
            "bitnet_model_load_duration_seconds",
            "How long the model took to load.",
            process.model_load_seconds,
        );
        self.push_gauge("bitnet_uptime_seconds", "Seconds since start.", process.uptime_seconds);
        let share = process.cpu_seconds / (process.uptime_seconds.max(1e-9) * cpus.max(1.0));
        self.push_gauge("bitnet_cpu_utilization_ratio", "Share of the machine's cpu time since start.", share);
        let single = |value| {
            let (mut metric, mut counter) = (Metric::default(), Counter::default());
            counter.set_value(value);
            metric.set_counter(counter);
            vec![metric]
        };
        self.by_outcome("bitnet_traces_total", "Traces of requests, by what became of them.", &process.traces);
        self.push(
            "bitnet_cpu_seconds_total",
            "Cpu time of the process.",
            MetricType::COUNTER,
            single(process.cpu_seconds),
        );
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let dropped = single(process.log_lines_dropped as f64);
        let help = "Lines of the log that nobody has read: there was no room for them to wait.";
        self.push("bitnet_log_lines_dropped_total", help, MetricType::COUNTER, dropped);
    }

    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    fn sum(&self, field: fn(&ShardMetrics) -> &Cell) -> f64 {
        self.shards.iter().map(|shard| field(shard).get()).sum::<u64>() as f64
    }

    fn counter(&mut self, name: &str, help: &str, field: fn(&ShardMetrics) -> &Cell) {
        let mut counter = Counter::default();
        counter.set_value(self.sum(field));
        let mut metric = Metric::default();
        metric.set_counter(counter);
        self.push(name, help, MetricType::COUNTER, vec![metric]);
    }

    fn gauge(&mut self, name: &str, help: &str, field: fn(&ShardMetrics) -> &Cell) {
        let value = self.sum(field);
        self.push_gauge(name, help, value);
    }

    fn push_gauge(&mut self, name: &str, help: &str, value: f64) {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        self.push(name, help, MetricType::GAUGE, vec![Metric::from_gauge(gauge)]);
    }

    fn labelled(&mut self, name: &str, help: &str, label: &str, values: &[Labelled<'_>]) {
        let metrics = values.iter().map(|(value, field)| {
            let mut pair = LabelPair::default();
            pair.set_name(label.to_owned());
            pair.set_value((*value).to_owned());
            let mut counter = Counter::default();
            counter.set_value(self.sum(*field));
            let mut metric = Metric::from_label(vec![pair]);
            metric.set_counter(counter);
            metric
        });
        let metrics = metrics.collect();
        self.push(name, help, MetricType::COUNTER, metrics);
    }

    fn histogram(&mut self, name: &str, help: &str, field: fn(&ShardMetrics) -> &Histogram) {
        let metric = histogram_metric(self.shards.iter().map(|shard| field(shard)));
        self.push(name, help, MetricType::HISTOGRAM, vec![metric]);
    }

    fn push(&mut self, name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.families.push(family);
    }
}

/// The sum of histograms that have the same bounds.
pub(super) fn histogram_metric<'h>(histograms: impl Iterator<Item = &'h Histogram> + Clone) -> Metric {
    let bounds = histograms.clone().next().map_or(&[][..], |histogram| histogram.bounds);
    let mut count = 0;
    let buckets = bounds.iter().enumerate().map(|(i, bound)| {
        count += histograms.clone().map(|histogram| histogram.counts[i].get()).sum::<u64>();
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(count);
        bucket
    });
    let buckets = buckets.collect();
    let above: u64 = histograms.clone().map(|histogram| histogram.counts[bounds.len()].get()).sum();
    let sum = histograms.map(|histogram| f64::from_bits(histogram.sum_bits.get())).sum();
    let mut histogram = prometheus::proto::Histogram::default();
    histogram.set_bucket(buckets);
    histogram.set_sample_count(count + above);
    histogram.set_sample_sum(sum);
    let mut metric = Metric::default();
    metric.set_histogram(histogram);
    metric
}
