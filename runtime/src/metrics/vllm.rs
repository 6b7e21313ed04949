//! The same numbers under the names that vLLM has for them, for the dashboards, autoscalers and gateways that read those: only
//! what means the same here. Latencies of one output token are those of [`RequestMetrics::inter_token`], as there.

use std::sync::Arc;

use prometheus::TextEncoder;
use prometheus::proto::MetricType;

use super::gpu::{Families, count, labelled_value, labels};
use super::render::histogram_metric;
use super::{Cell, Histogram, RequestMetrics, ShardMetrics};
use crate::gpu::Status;

/// The numbers of all shards and GPUs; `model` is the name of the one model that is served, if it is one.
///
/// # Errors
/// The encoder's, which means a name that Prometheus does not allow.
pub fn render_vllm(
    shards: &[Arc<ShardMetrics>],
    devices: &[Arc<Status>],
    model: Option<&str>,
) -> prometheus::Result<String> {
    let mut families = Families::default();
    let of_model: Vec<(&str, &str)> = model.map(|model| ("model_name", model)).into_iter().collect();
    let sum = |field: Count| shards.iter().map(|shard| field(shard).get()).sum::<u64>();
    let on_gpus: usize = devices.iter().map(|device| device.in_flight()).sum();
    let blocks = sum(|s| &s.step.kv_blocks) + devices.iter().map(|device| u64::from(device.kv_blocks())).sum::<u64>();
    let used = sum(|s| &s.step.kv_blocks_used) + devices.iter().map(|device| device.kv_blocks_used.get()).sum::<u64>();
    let usage = count(used) / count(blocks.max(1));
    for (name, help, value) in [
        ("vllm:num_requests_running", "Sequences in slots.", count(sum(|s| &s.step.running) + on_gpus as u64)),
        ("vllm:num_requests_waiting", "Sequences in queues.", count(sum(|s| &s.step.waiting))),
        ("vllm:kv_cache_usage_perc", "Share of the KV blocks in use, 1 for all.", usage),
        ("vllm:gpu_cache_usage_perc", "The same by its older name.", usage),
    ] {
        families.push(name, help, MetricType::GAUGE, vec![labelled_value(MetricType::GAUGE, &of_model, value)]);
    }
    let (size, number) = (kernels::attention::BLOCK.to_string(), blocks.to_string());
    let cache = [&of_model[..], &[("block_size", size.as_str()), ("num_gpu_blocks", number.as_str())]].concat();
    let help = "Positions of a KV block, and how many there are.";
    families.push(
        "vllm:cache_config_info",
        help,
        MetricType::GAUGE,
        vec![labelled_value(MetricType::GAUGE, &cache, 1.0)],
    );
    for (name, help, field) in COUNTERS {
        let value = labelled_value(MetricType::COUNTER, &of_model, count(sum(field)));
        families.push(name, help, MetricType::COUNTER, vec![value]);
    }
    let ended = ENDS.map(|(reason, field)| {
        let labels = [&of_model[..], &[("finished_reason", reason)]].concat();
        labelled_value(MetricType::COUNTER, &labels, count(sum(field)))
    });
    let help = "Sequences that ended, by reason.";
    families.push("vllm:request_success_total", help, MetricType::COUNTER, ended.into());
    for (name, help, field) in HISTOGRAMS {
        let mut metric = histogram_metric(shards.iter().map(|shard| field(&shard.requests)));
        metric.set_label(labels(&of_model));
        families.push(name, help, MetricType::HISTOGRAM, vec![metric]);
    }
    TextEncoder::new().encode_to_string(&families.0)
}

/// Name, help, and where the count is.
type Named<T> = (&'static str, &'static str, T);
type Count = fn(&ShardMetrics) -> &Cell;
type Spread = fn(&RequestMetrics) -> &Histogram;

const COUNTERS: [Named<Count>; 5] = [
    ("vllm:prompt_tokens_total", "Prompt tokens taken in.", |s| &s.requests.prompt_tokens),
    ("vllm:generation_tokens_total", "Tokens generated.", |s| &s.requests.generated_tokens),
    ("vllm:num_preemptions_total", "Sequences that gave up their slot.", |s| &s.step.preempted),
    ("vllm:prefix_cache_queries_total", "Tokens that were looked up in the KV cache.", |s| &s.step.prefix_queries),
    ("vllm:prefix_cache_hits_total", "Tokens that were found in the KV cache.", |s| &s.step.prefix_hits),
];
const ENDS: [(&str, Count); 3] = [
    ("stop", |s| &s.requests.outcomes.stop),
    ("length", |s| &s.requests.outcomes.length),
    ("abort", |s| &s.requests.outcomes.cancelled),
];
const HISTOGRAMS: [Named<Spread>; 7] = [
    ("vllm:time_to_first_token_seconds", "Arrival to first token.", |r| &r.first_token),
    ("vllm:inter_token_latency_seconds", "Token to token.", |r| &r.inter_token),
    ("vllm:time_per_output_token_seconds", "The same by its older name.", |r| &r.inter_token),
    ("vllm:e2e_request_latency_seconds", "Arrival to last token.", |r| &r.end_to_end),
    ("vllm:request_queue_time_seconds", "Arrival to a slot.", |r| &r.queue),
    ("vllm:request_prefill_time_seconds", "Slot to first token.", |r| &r.prefill),
    ("vllm:request_decode_time_seconds", "First token to last.", |r| &r.decode),
];
