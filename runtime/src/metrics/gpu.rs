//! The metrics of GPUs: what feeders count, and what the driver's management library says.

use std::sync::Arc;

use prometheus::TextEncoder;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

use super::Histogram;
use super::render::histogram_metric;
use crate::gpu::{FaultKind, Reading, State, Status};

/// The metrics of `devices` as Prometheus text; none where there are no devices.
///
/// # Errors
/// The encoder's, which means a name that Prometheus does not allow.
pub fn render_gpus(devices: &[Arc<Status>]) -> prometheus::Result<String> {
    if devices.is_empty() {
        return Ok(String::new());
    }
    let mut families = Families::default();
    let states = devices.iter().flat_map(|device| {
        let now = device.state();
        State::ALL.map(|state| {
            let labels = [("device", device.label()), ("state", state.name())];
            labelled_value(MetricType::GAUGE, &labels, f64::from(u8::from(state == now)))
        })
    });
    families.push("bitnet_gpu_state", "1 for the state that a GPU is in.", MetricType::GAUGE, states.collect());
    let faults = devices.iter().flat_map(|device| {
        FaultKind::ALL.map(|kind| {
            let labels = [("device", device.label()), ("kind", kind.name())];
            labelled_value(MetricType::COUNTER, &labels, count(device.faults(kind)))
        })
    });
    families.push("bitnet_gpu_faults_total", "Failures of a GPU, by kind.", MetricType::COUNTER, faults.collect());
    let counters: [Named<u64>; 7] = [
        ("bitnet_gpu_starts_total", "Times that a GPU was brought up.", |s| s.starts.get()),
        ("bitnet_gpu_self_tests_total", "Self tests that a GPU has passed.", |s| s.tests.get()),
        ("bitnet_device_fallbacks_total", "Sequences that a GPU gave back, to go on elsewhere.", |s| s.returned.get()),
        ("bitnet_gpu_tokens_total", "Tokens that a GPU has computed.", |s| s.tokens.get()),
        ("bitnet_gpu_prompt_rows_total", "Prompt positions that a GPU has computed.", |s| s.prompt_rows.get()),
        (
            "bitnet_gpu_tensor_prompt_rows_total",
            "Prompt positions whose attention a GPU has computed on tensor cores.",
            |s| s.tensor_rows.get(),
        ),
        (
            "bitnet_gpu_guides_beside_total",
            "Sets of allowed tokens that were computed beside the steps of a GPU, as they take long.",
            |s| s.guides_beside.get(),
        ),
    ];
    for (name, help, value) in counters {
        let metrics = devices
            .iter()
            .map(|device| labelled_value(MetricType::COUNTER, &[("device", device.label())], count(value(device))));
        families.push(name, help, MetricType::COUNTER, metrics.collect());
    }
    let gauges: [Named<f64>; 5] = [
        ("bitnet_gpu_sequences", "Sequences on a GPU or on their way to it.", |s| count(s.in_flight() as u64)),
        (
            "bitnet_gpu_requests_beside",
            "Sequences on a GPU whose sets of allowed tokens are computed beside the steps now.",
            |s| count(s.beside.get()),
        ),
        ("bitnet_gpu_decode_step_seconds", "Moving average of a step without prompts.", |s| s.costs().decode_s),
        ("bitnet_gpu_prefill_row_seconds", "Moving average of a prompt position.", |s| s.costs().prefill_row_s),
        ("bitnet_gpu_kv_cache_usage_ratio", "KV blocks in use.", |s| {
            count(s.kv_blocks_used.get()) / f64::from(s.kv_blocks().max(1))
        }),
    ];
    for (name, help, value) in gauges {
        let metrics = devices
            .iter()
            .map(|device| labelled_value(MetricType::GAUGE, &[("device", device.label())], value(device)));
        families.push(name, help, MetricType::GAUGE, metrics.collect());
    }
    for (name, help, kind, reading) in READINGS {
        let readings = devices.iter().filter_map(|device| Some((device, device.readings.get(reading)?)));
        let metrics: Vec<Metric> =
            readings.map(|(device, value)| labelled_value(kind, &[("device", device.label())], value)).collect();
        if !metrics.is_empty() {
            families.push(name, help, kind, metrics);
        }
    }
    let histograms: [NamedHistogram; 4] = [
        ("bitnet_gpu_step_duration_seconds", "Duration of a step of a GPU whose end was seen.", |s| &s.steps),
        ("bitnet_gpu_queue_seconds", "Wait of a sequence for a place on a GPU.", |s| &s.queue),
        ("bitnet_gpu_step_rows", "Rows of a step of a GPU.", |s| &s.rows),
        ("bitnet_gpu_batch_size", "Sequences of a step of a GPU that got a token.", |s| &s.sequences),
    ];
    for (name, help, field) in histograms {
        let metrics = devices.iter().map(|device| {
            let mut metric = histogram_metric(std::iter::once(field(device)));
            metric.set_label(labels(&[("device", device.label())]));
            metric
        });
        families.push(name, help, MetricType::HISTOGRAM, metrics.collect());
    }
    TextEncoder::new().encode_to_string(&families.0)
}

/// What the management library says; absent where it does not.
const READINGS: [(&str, &str, MetricType, Reading); 11] = [
    ("bitnet_gpu_utilization_ratio", "Share of time in which kernels ran.", MetricType::GAUGE, Reading::Utilization),
    (
        "bitnet_gpu_memory_utilization_ratio",
        "Share of time in which memory was accessed.",
        MetricType::GAUGE,
        Reading::MemoryUtilization,
    ),
    ("bitnet_gpu_memory_used_bytes", "Memory in use, by any process.", MetricType::GAUGE, Reading::MemoryUsedBytes),
    ("bitnet_gpu_temperature_celsius", "Temperature.", MetricType::GAUGE, Reading::TemperatureCelsius),
    ("bitnet_gpu_power_watts", "Power drawn.", MetricType::GAUGE, Reading::PowerWatts),
    ("bitnet_gpu_clock_hertz", "Clock of the multiprocessors.", MetricType::GAUGE, Reading::ClockHertz),
    ("bitnet_gpu_memory_clock_hertz", "Clock of the memory.", MetricType::GAUGE, Reading::MemoryClockHertz),
    (
        "bitnet_gpu_ecc_corrected_total",
        "Memory errors that were corrected, since the driver was loaded.",
        MetricType::COUNTER,
        Reading::EccCorrected,
    ),
    (
        "bitnet_gpu_ecc_uncorrected_total",
        "Memory errors that were not, since the driver was loaded.",
        MetricType::COUNTER,
        Reading::EccUncorrected,
    ),
    ("bitnet_gpu_xid_errors_total", "Critical errors of the driver.", MetricType::COUNTER, Reading::XidErrors),
    ("bitnet_gpu_last_xid", "Number of the last critical error.", MetricType::GAUGE, Reading::LastXid),
];

/// Name, help, and where the value is.
type Named<T> = (&'static str, &'static str, fn(&Status) -> T);
type NamedHistogram = (&'static str, &'static str, fn(&Status) -> &Histogram);

#[derive(Default)]
pub(super) struct Families(pub(super) Vec<MetricFamily>);

impl Families {
    pub(super) fn push(&mut self, name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.0.push(family);
    }
}

pub(super) fn labels(pairs: &[(&str, &str)]) -> Vec<LabelPair> {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    pairs.iter().map(pair).collect()
}

pub(super) fn labelled_value(kind: MetricType, pairs: &[(&str, &str)], value: f64) -> Metric {
    let mut metric = Metric::from_label(labels(pairs));
    if kind == MetricType::COUNTER {
        let mut counter = Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    metric
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
pub(super) fn count(value: u64) -> f64 {
    value as f64
}
