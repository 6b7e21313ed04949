//! One request, one answer: what needs no sequence is answered here, the rest goes to `generation`.

use std::rc::Rc;

use net::api::{self, Component, Endpoint, ModelCard, Route};
use net::error::{ApiError, Dialect};
use net::http::{self, Body, Method, Request, Response};
use serde_json::{Value, json};

use super::client::client_of;
use super::connection::unix_ms;
use super::embeddings;
use super::peer::{Peer, Writer};
use super::{Shard, admin, generation, stats, tokens};
use crate::log;
use crate::metrics::{self, Process};
use crate::model::Model;

/// Answers `request` into `writer`; whether the connection may go on.
pub(super) async fn answer(shard: &Rc<Shard>, peer: &Rc<Peer>, request: &mut Request, writer: &mut Writer) -> bool {
    let id = shard.request_id();
    request.set_answer_time(unix_ms() / 1000);
    shard.config.origins.mark(request);
    let path = request.path().to_owned();
    let route = match api::route(request.method(), &path) {
        Ok(route) => route,
        Err(error) => return refuse(shard, writer, request, &id, &error, api::dialect_of(&path)),
    };
    let dialect = route.dialect();
    let allowed = shard.config.origins.check(request);
    let allowed = allowed.and_then(|()| check_rate(shard, peer, &route, request));
    let allowed = allowed.and_then(|()| admin::authorize(shard, peer, &route, request));
    if let Err(error) = allowed {
        return refuse(shard, writer, request, &id, &error, dialect);
    }
    let result = match route {
        Route::ChatCompletions => generation::run(shard, peer, Endpoint::Chat, request, &id, writer).await,
        Route::Responses => generation::run(shard, peer, Endpoint::Responses, request, &id, writer).await,
        Route::Completions => generation::run(shard, peer, Endpoint::Completion, request, &id, writer).await,
        Route::Inference => generation::run(shard, peer, Endpoint::Inference, request, &id, writer).await,
        Route::InferenceStream => generation::run(shard, peer, Endpoint::InferenceStream, request, &id, writer).await,
        Route::Embeddings => embeddings::run(shard, peer, request, &id, writer).await,
        Route::Tokenize => tokens::tokenize(shard, peer, request, &id, writer).await,
        Route::Detokenize => tokens::detokenize(shard, peer, request, &id, writer).await,
        route @ (Route::LoadModel | Route::SwapModel | Route::DeleteModel(_)) => {
            admin::change(shard, peer, route, request, &id, writer).await
        }
        route => plain(shard, &route, request, &id, writer).map(|()| true),
    };
    match result {
        Ok(open) => open,
        Err(error) => refuse(shard, writer, request, &id, &error, dialect),
    }
}

/// Refuses what is beyond the client's rate; who may use the Unix socket has none. Keys that are wrong count as well.
fn check_rate(shard: &Shard, peer: &Peer, route: &Route<'_>, request: &mut Request) -> Result<(), ApiError> {
    let Some(rates) = shard.control.rates.as_ref().filter(|_| !peer.is_local) else { return Ok(()) };
    let client = client_of(shard, peer, request);
    let checked = rates.check(client, route, request, shard.control.started.elapsed());
    checked.inspect_err(|_| shard.metrics.requests.outcomes.refused_rate.add(1))
}

/// Counts an answer of that status.
pub(super) fn count(shard: &Shard, writer: &mut Writer, status: u16) {
    writer.status = status;
    let class = usize::from(status / 100).clamp(1, 5);
    shard.metrics.requests.answers[class - 1].add(1);
}

fn refuse(shard: &Shard, writer: &mut Writer, request: &Request, id: &str, error: &ApiError, dialect: Dialect) -> bool {
    count(shard, writer, error.status);
    http::write_error(&mut writer.out, Some(request), id, error, dialect, unix_ms());
    true
}

fn plain(
    shard: &Shard,
    route: &Route<'_>,
    request: &mut Request,
    id: &str,
    writer: &mut Writer,
) -> Result<(), ApiError> {
    let mut body = Vec::with_capacity(512);
    let mut status = 200;
    match route {
        Route::Models => {
            let models = shard.models.all();
            let cards: Vec<_> = models.iter().map(|served| card(shard, &served.model)).collect();
            api::write_models(&mut body, &cards);
        }
        Route::Model(name) => api::write_model(&mut body, &card(shard, &shard.models.active(Some(name))?.model)),
        Route::ModelStatus(name) => admin::write_status(shard, name, &mut body)?,
        Route::Receipt(id) => admin::write_receipt(shard, id, &mut body)?,
        Route::HealthLive => api::write_health(&mut body, "healthy", unix_ms(), &[]),
        Route::HealthReady => status = ready(shard, &mut body),
        Route::Health => status = health(shard, &mut body),
        Route::Devices => devices(shard, &mut body),
        Route::Stats => stats::write_stats(shard, request, &mut body)?,
        Route::OpenApi => body.extend_from_slice(api::openapi()),
        Route::Metrics => return metrics(shard, request, id, writer),
        Route::Page => {
            count(shard, writer, 200);
            PAGE_FIELDS.iter().for_each(|(name, value)| request.add_answer_field(name, value));
            let response = Response::new(request, id, 200, "text/html; charset=utf-8", Body::Length(0));
            response.write(&mut writer.out, PAGE, request.method() == Method::Head);
            return Ok(());
        }
        Route::Options(allow) => {
            count(shard, writer, 204);
            shard.config.origins.mark_preflight(request, allow);
            let response = Response::new(request, id, 204, "", Body::None);
            Response { allow: Some(allow), ..response }.write_head(&mut writer.out);
            return Ok(());
        }
        Route::ChatCompletions | Route::Responses | Route::Completions | Route::Inference | Route::InferenceStream => {
            unreachable!("answered by generation")
        }
        Route::Embeddings => unreachable!("answered by embeddings"),
        Route::Tokenize | Route::Detokenize => unreachable!("answered by tokens"),
        Route::LoadModel | Route::SwapModel | Route::DeleteModel(_) => unreachable!("answered by the control thread"),
    }
    count(shard, writer, status);
    http::write_json(&mut writer.out, request, id, status, &body);
    Ok(())
}

fn card<'m>(shard: &Shard, model: &'m Model) -> ModelCard<'m> {
    let context = u32::try_from(model.weights.context).unwrap_or(u32::MAX);
    let params = &model.weights.params;
    let dimensions = params.pooling.map(|_| u32::try_from(params.hidden).unwrap_or(u32::MAX));
    ModelCard { id: &model.name, created_s: shard.control.started_unix_s, context_max: context, dimensions }
}

/// What computes here, and what of it is not used.
fn devices(shard: &Shard, body: &mut Vec<u8>) {
    let generation = shard.models.pick(None).ok();
    let model = generation.map(|picked| {
        let model = &picked.served.model;
        json!({"id": model.name, "quantization": model.quantization})
    });
    let list = json!({"object": "list", "data": device_list(shard), "model": model,
        "unused_gpus": shard.control.inventory.unused});
    body.extend_from_slice(list.to_string().as_bytes());
}

/// The CPUs of every shard, and every GPU that the driver lists.
pub(super) fn device_list(shard: &Shard) -> Vec<Value> {
    let inventory = &shard.control.inventory;
    let gpus = inventory.cards.iter().enumerate().map(|(ordinal, card)| {
        let used = inventory.devices.iter().find(|device| device.ordinal == ordinal);
        let state = used.map_or("unused", |device| device.state().name());
        let reason = if used.is_some() { None } else { inventory.unused.clone() };
        let costs = used.map(|device| device.costs());
        json!({"id": format!("cuda:{ordinal}"), "kind": "gpu", "name": card.name, "state": state,
            "reason": reason, "compute_capability": card.capability, "kernels": card.image,
            "prompt_attention": used.map(|device| device.prompt_attention.name()),
            "memory_bytes": card.memory_bytes, "multiprocessors": card.multiprocessors,
            "sequences": used.map(|device| device.in_flight()), "sequences_max": used.map(|device| device.slots),
            "decode_step_ms": costs.map(|costs| costs.decode_s * 1e3),
            "prefill_ms_per_token": costs.map(|costs| costs.prefill_row_s * 1e3)})
    });
    let places = shard.control.cpus.iter().map(|place| {
        json!({"id": "cpu", "kind": "cpu", "node": place.node, "cpus": place.cpus, "state": "healthy",
            "isa": shard.config.isa.name()})
    });
    places.chain(gpus).collect()
}

fn ready(shard: &Shard, body: &mut Vec<u8>) -> u16 {
    let full = shard.admission.is_full(&shard.standing());
    let no_model = shard.models.all().is_empty();
    let ready = shard.control.is_ready() && !full && !no_model;
    let message = match (shard.control.is_draining(), full, no_model, ready) {
        (true, ..) => "draining",
        (_, true, ..) => "the queue is full",
        (_, _, true, _) => "no model is loaded",
        (.., true) => "ready",
        _ => "starting",
    };
    let component = Component { name: "server", status: if ready { "healthy" } else { "unhealthy" }, message };
    api::write_health(body, component.status, unix_ms(), &[component]);
    if ready { 200 } else { 503 }
}

fn health(shard: &Shard, body: &mut Vec<u8>) -> u16 {
    let metrics = &shard.metrics;
    let server = if shard.control.is_draining() {
        Component { name: "server", status: "unhealthy", message: "draining" }
    } else if shard.control.is_ready() {
        Component { name: "server", status: "healthy", message: "ready" }
    } else {
        Component { name: "server", status: "unhealthy", message: "starting" }
    };
    let models = shard.models.all();
    let names: Vec<&str> = models.iter().map(|served| served.model.name.as_str()).collect();
    let names = names.join(", ");
    let model = Component {
        name: "model",
        status: if models.is_empty() { "unhealthy" } else { "healthy" },
        message: if models.is_empty() { "none is loaded" } else { &names },
    };
    let queue = format!(
        "{} running, {} waiting, {} of {} KV blocks in use, shard {}",
        metrics.step.running.get(),
        metrics.step.waiting.get(),
        metrics.step.kv_blocks_used.get(),
        metrics.step.kv_blocks.get(),
        shard.index
    );
    let full = shard.admission.is_full(&shard.standing());
    let queue = Component { name: "queue", status: if full { "degraded" } else { "healthy" }, message: &queue };
    let status = match (server.status, model.status, queue.status) {
        ("unhealthy", ..) | (_, "unhealthy", _) => "unhealthy",
        (.., status) => status,
    };
    api::write_health(body, status, unix_ms(), &[server, model, queue]);
    if status == "healthy" { 200 } else { 503 }
}

fn metrics(shard: &Shard, request: &Request, id: &str, writer: &mut Writer) -> Result<(), ApiError> {
    if !shard.config.prometheus {
        return Err(ApiError::path_not_found());
    }
    let process = Process {
        rss_bytes: shard.rss_bytes.get(),
        model_load_seconds: shard.models.all().iter().map(|served| served.model.load_time.as_secs_f64()).sum(),
        uptime_seconds: shard.control.started.elapsed().as_secs_f64(),
        cpu_seconds: cpu_seconds(),
        cpus: shard.control.workers,
        log_lines_dropped: log::dropped(),
        traces: shard.control.traces.outcomes(),
        tls: shard.terms().identity.as_ref().map(|identity| identity.not_after_unix_s()),
    };
    let failed = |error: prometheus::Error| ApiError::internal(error.to_string());
    let mut text = metrics::render(&shard.control.metrics, process, &shard.control.swaps()).map_err(failed)?;
    let devices = &shard.control.inventory.devices;
    text += &metrics::render_gpus(devices).map_err(failed)?;
    if shard.config.vllm_metrics {
        let served = shard.models.all();
        let model = if let [only] = &served[..] { Some(only.model.name.as_str()) } else { None };
        text += &metrics::render_vllm(&shard.control.metrics, devices, model).map_err(failed)?;
    }
    count(shard, writer, 200);
    let mut kind = "text/plain; version=0.0.4; charset=utf-8";
    if metrics::is_preferred(request.header_str("accept").unwrap_or_default()) {
        (text, kind) = (metrics::from_prometheus(&text), metrics::OPENMETRICS);
    }
    let response = Response::new(request, id, 200, kind, Body::Length(0));
    response.write(&mut writer.out, text.as_bytes(), request.method() == Method::Head);
    Ok(())
}

/// Cpu time of all threads since the start of the process.
#[expect(unsafe_code, reason = "a clock system call")]
#[expect(clippy::cast_precision_loss, reason = "seconds and nanoseconds are small")]
pub(super) fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the timespec is writable.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// One file, nothing from elsewhere; it draws what `/metrics` says.
const PAGE: &[u8] = include_bytes!("page/index.html");
/// No other page may frame it, and browsers take it for what it is. What it may load stands in the page.
const PAGE_FIELDS: [(&str, &str); 4] = [
    ("Content-Security-Policy", "frame-ancestors 'none'"),
    ("X-Frame-Options", "DENY"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
];
