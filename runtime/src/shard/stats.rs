//! `GET /v1/stats`: what the server has done in a time, from totals that the main thread keeps.

use net::api::StatsRequest;
use net::error::ApiError;
use net::http::Request;
use serde_json::{Value, json};

use super::Shard;
use super::admin::rfc3339;
use super::answer::device_list;
use crate::metrics::{Count, Spread, Timed, Totals};

/// Appends the answer to `request`.
pub(super) fn write_stats(shard: &Shard, request: &Request, body: &mut Vec<u8>) -> Result<(), ApiError> {
    let wanted = StatsRequest::parse(request.query())?;
    let (control, range_s) = (&shard.control, wanted.hours * 3600);
    let uptime = control.started.elapsed();
    let now = control.totals(uptime.as_secs());
    let earlier = control.history.before(now.seconds, range_s);
    let between = now.since(&earlier);
    let since_unix_s = control.started_unix_s + earlier.seconds;
    let covered_s = uptime.as_secs_f64() - float(earlier.seconds);
    let mut stats = json!({
        "time_range_seconds": range_s,
        "since": rfc3339(since_unix_s * 1000),
        "covered_seconds": covered_s,
        "server_stats": server_stats(shard, &between, uptime.as_secs_f64()),
        "inference_stats": inference_stats(shard, &between, covered_s),
        "device_stats": device_stats(shard, &between, covered_s),
        "batch_stats": batch_stats(shard, &between),
    });
    if wanted.include_details {
        let timeline = timeline(shard, &earlier, &now, range_s);
        stats["details"] = json!({"shards": shards(shard), "timeline": timeline});
    }
    body.extend_from_slice(stats.to_string().as_bytes());
    Ok(())
}

fn server_stats(shard: &Shard, between: &Totals, uptime_s: f64) -> Value {
    let control = &shard.control;
    let swaps: Value = control.swaps().into_iter().map(|(name, count)| (name.to_owned(), json!(count))).collect();
    let connections: u64 = control.metrics.iter().map(|shard| shard.requests.connections.get()).sum();
    let answers = [Count::Succeeded, Count::Redirected, Count::ClientErrors, Count::ServerErrors];
    json!({
        "started_at": rfc3339(control.started_unix_s * 1000),
        "uptime_seconds": uptime_s,
        "draining": control.is_draining(),
        "shards": control.metrics.len(),
        "workers": control.workers,
        "connections": connections,
        "responses_total": answers.iter().map(|count| between.count(*count)).sum::<u64>(),
        "responses": {
            "2xx": between.count(Count::Succeeded),
            "3xx": between.count(Count::Redirected),
            "4xx": between.count(Count::ClientErrors),
            "5xx": between.count(Count::ServerErrors),
        },
        "shard_restarts": between.count(Count::ShardRestarts),
        "executor_restarts": between.count(Count::ExecutorRestarts),
        "swaps_since_start": swaps,
    })
}

fn inference_stats(shard: &Shard, between: &Totals, covered_s: f64) -> Value {
    let rate = |count: u64| if covered_s > 0.0 { float(count) / covered_s } else { 0.0 };
    let (queries, hits) = (between.count(Count::PrefixQueries), between.count(Count::PrefixHits));
    json!({
        "requests_started": between.count(Count::Started),
        "requests_active": shard.control.active_requests(),
        "requests_per_second": rate(between.count(Count::Started)),
        "sequences_finished": {
            "stop": between.count(Count::Stop),
            "length": between.count(Count::Length),
            "cancelled": between.count(Count::Cancelled),
            "failed": between.count(Count::Failed),
        },
        "rejected": {
            "queue_full": between.count(Count::RefusedQueue),
            "memory": between.count(Count::RefusedMemory),
            "deadline": between.count(Count::RefusedDeadline),
            "draining": between.count(Count::RefusedDraining),
            "connections": between.count(Count::RefusedConnections),
            "rate_limit": between.count(Count::RefusedRate),
        },
        "prompt_tokens": between.count(Count::PromptTokens),
        "generated_tokens": between.count(Count::GeneratedTokens),
        "generated_tokens_per_second": rate(between.count(Count::GeneratedTokens)),
        "prefix_cache_hit_ratio": (queries > 0).then(|| float(hits) / float(queries)),
        "time_to_first_token_ms": milliseconds(&between.spread(Timed::FirstToken)),
        "inter_token_ms": milliseconds(&between.spread(Timed::InterToken)),
        "queue_ms": milliseconds(&between.spread(Timed::Queue)),
        "request_ms": milliseconds(&between.spread(Timed::Request)),
    })
}

fn device_stats(shard: &Shard, between: &Totals, covered_s: f64) -> Value {
    let cpu_s = float(between.cpu_us) / 1e6;
    let available_s = covered_s * float(shard.control.workers.max(1) as u64);
    json!({
        "devices": device_list(shard),
        "cpu_seconds": cpu_s,
        "cpu_utilization_ratio": if available_s > 0.0 { cpu_s / available_s } else { 0.0 },
        "memory_resident_bytes": shard.rss_bytes.get(),
    })
}

/// Of the steps that CPUs computed.
fn batch_stats(shard: &Shard, between: &Totals) -> Value {
    let steps = || shard.control.metrics.iter().map(|shard| &shard.step);
    let sum = |field: fn(&crate::metrics::StepMetrics) -> u64| steps().map(field).sum::<u64>();
    let (used, all) = (sum(|step| step.kv_blocks_used.get()), sum(|step| step.kv_blocks.get()));
    json!({
        "steps": between.spread(Timed::Step).count(),
        "step_ms": milliseconds(&between.spread(Timed::Step)),
        "rows_mean": between.spread(Timed::StepRows).mean(),
        "sequences_mean": between.spread(Timed::StepSequences).mean(),
        "running": sum(|step| step.running.get()),
        "waiting": sum(|step| step.waiting.get()),
        "kv_cache_usage_ratio": if all > 0 { float(used) / float(all) } else { 0.0 },
        "preemptions": between.count(Count::Preempted),
        "drafted_tokens": between.count(Count::Drafted),
        "accepted_tokens": between.count(Count::Accepted),
    })
}

fn shards(shard: &Shard) -> Vec<Value> {
    let shards = shard.control.metrics.iter().enumerate().map(|(index, shard)| {
        let (step, requests) = (&shard.step, &shard.requests);
        json!({"shard": index, "requests_active": requests.active.get(), "connections": requests.connections.get(),
            "running": step.running.get(), "waiting": step.waiting.get(),
            "kv_blocks_used": step.kv_blocks_used.get(), "kv_blocks": step.kv_blocks.get()})
    });
    shards.collect()
}

/// What was done from one end of a minute or an hour to the next, up to now.
fn timeline(shard: &Shard, earlier: &Totals, now: &Totals, range_s: u64) -> Vec<Value> {
    let mut ends = shard.control.history.within(now.seconds, range_s);
    ends.push(now.clone());
    let starts = std::iter::once(earlier).chain(&ends);
    let parts = starts.zip(&ends).map(|(start, end)| {
        let between = end.since(start);
        json!({
            "ended_at": rfc3339((shard.control.started_unix_s + end.seconds) * 1000),
            "seconds": between.seconds,
            "requests_started": between.count(Count::Started),
            "requests_failed": between.count(Count::Failed),
            "generated_tokens": between.count(Count::GeneratedTokens),
            "time_to_first_token_ms": milliseconds(&between.spread(Timed::FirstToken)),
        })
    });
    parts.collect()
}

/// Quantiles are as exact as buckets are narrow.
fn milliseconds(spread: &Spread) -> Value {
    let ms = |seconds: Option<f64>| seconds.map(|seconds| seconds * 1e3);
    json!({"count": spread.count(), "mean": ms(spread.mean()), "p50": ms(spread.quantile(0.5)),
        "p95": ms(spread.quantile(0.95)), "p99": ms(spread.quantile(0.99))})
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
fn float(count: u64) -> f64 {
    count as f64
}
