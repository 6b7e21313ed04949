//! Endpoints around models: who may use them, what goes to the control thread, and what the shard answers itself.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use net::api::{
    self, Access, LoadRequest, ModelStatus, Performance, Receipt, Resources, Route, SwapRequest, VersionStatus,
};
use net::auth;
use net::error::ApiError;
use net::http::{self, Body, Request, Response};

use super::answer::count;
use super::peer::{Peer, Writer};
use super::{RETRY_DRAINING, Served, Shard};
use crate::executor::{self, Signal};
use crate::metrics::GenerationMetrics;
use crate::receipts;
use crate::registry::{JobReply, JobRequest, Message, Order, Outcome, busy, hex};

/// A client that waits for the control thread.
pub(super) struct Job {
    answer: RefCell<Option<Result<JobReply, ApiError>>>,
    wake: Rc<Signal>,
}

/// Refuses a request without the key that `route` wants. Where no key is configured, those who may connect to the Unix
/// socket may do everything.
pub(super) fn authorize(shard: &Shard, peer: &Peer, route: &Route<'_>, request: &Request) -> Result<(), ApiError> {
    let terms = shard.terms();
    let keys = &terms.keys;
    let scope = match route.access() {
        Access::Guarded(scope) => Some(scope),
        Access::Keyed(scope) if terms.require_authentication => scope,
        Access::Keyed(_) | Access::Open => return Ok(()),
    };
    match (keys.is_empty(), peer.is_local) {
        (true, true) => Ok(()),
        (true, false) => Err(auth::off()),
        (false, _) => auth::check(keys, request, scope, super::unix_time().as_secs()),
    }
}

/// Has the control thread do what `route` asks for. `Ok(false)` where the client is gone; the work goes on then.
pub(super) async fn change(
    shard: &Rc<Shard>,
    peer: &Rc<Peer>,
    route: Route<'_>,
    request: &mut Request,
    id: &str,
    writer: &mut Writer,
) -> Result<bool, ApiError> {
    let Some(job_request) = parse(shard, peer, route, request, id).await? else { return Ok(false) };
    if shard.control.is_draining() {
        return Err(ApiError::unavailable("the server is shutting down", RETRY_DRAINING));
    }
    if !shard.control.begin_operation() {
        return Err(busy());
    }
    let number = shard.next_id();
    let job = Rc::new(Job { answer: RefCell::default(), wake: Rc::clone(&peer.wake) });
    shard.jobs.borrow_mut().insert(number, Rc::clone(&job));
    shard.tell(Message::Job { shard: shard.index, job: number, request: Box::new(job_request) });
    let answer = loop {
        if let Some(answer) = job.answer.borrow_mut().take() {
            break answer;
        }
        if shard.control.is_cutting() {
            break Err(ApiError::unavailable("the server is shutting down", RETRY_DRAINING));
        }
        if peer.gone.get() {
            shard.jobs.borrow_mut().remove(&number);
            return Ok(false);
        }
        peer.wake.wait().await;
    };
    shard.jobs.borrow_mut().remove(&number);
    let mut body = Vec::new();
    match answer? {
        JobReply::Loaded(reply) => api::write_admin(&mut body, &reply),
        JobReply::Swapped(reply) => api::write_admin(&mut body, &reply),
        JobReply::Deleted => {
            count(shard, writer, 204);
            Response::new(request, id, 204, "", Body::None).write_head(&mut writer.out);
            return Ok(true);
        }
    }
    count(shard, writer, 200);
    http::write_json(&mut writer.out, request, id, 200, &body);
    Ok(true)
}

async fn parse(
    shard: &Shard,
    peer: &Peer,
    route: Route<'_>,
    request: &mut Request,
    id: &str,
) -> Result<Option<JobRequest>, ApiError> {
    if let Route::DeleteModel(name) = route {
        shard.models.active(Some(&name))?;
        return Ok(Some(JobRequest::Delete { name: name.into_owned() }));
    }
    api::check_json_content_type(request)?;
    if let Route::LoadModel = route {
        let load = shard.read_body(peer, request, LoadRequest::parse).await?;
        return Ok(load.map(JobRequest::Load));
    }
    let swap = shard.read_body(peer, request, SwapRequest::parse).await?;
    Ok(swap.map(|request| JobRequest::Swap { id: id.to_owned(), request }))
}

/// Tells the control thread what came of a probe, also where its task is ended.
struct Probing {
    shard: Rc<Shard>,
    order: u64,
    outcome: Option<Outcome>,
}

impl Probing {
    fn end(mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Probing {
    fn drop(&mut self) {
        let outcome = self.outcome.take().unwrap_or_else(super::probe::broken);
        self.shard.done(self.order, outcome);
    }
}

impl Shard {
    /// Does what the control thread says.
    pub(super) fn obey(self: &Rc<Self>, orders: &mut rtrb::Consumer<Order>) {
        while let Ok(order) = orders.pop() {
            match order {
                Order::Open { order, served, lane } => {
                    self.models.open(served);
                    self.command(crate::engine::Command::Open(lane));
                    self.done(order, Outcome::Done);
                }
                Order::Route { order, name, active, canary } => {
                    self.models.route(&name, active, canary);
                    self.done(order, Outcome::Done);
                }
                Order::Close { order, generation } => {
                    self.models.close(generation);
                    self.gpus.close(generation);
                    self.close_generations();
                    self.done(order, Outcome::Done);
                }
                Order::Probe { order, generation, prompt, tokens_max } => {
                    let shard = Rc::clone(self);
                    let served = self.models.generation(generation).expect("a generation is probed while it is held");
                    let probing = Probing { shard: Rc::clone(self), order, outcome: None };
                    executor::spawn(async move {
                        let run = super::probe::run_when_there_is_room(&shard, &served, &prompt, tokens_max);
                        probing.end(run.await);
                    });
                }
                Order::Answer { job, answer } => {
                    if let Some(job) = self.jobs.borrow().get(&job) {
                        *job.answer.borrow_mut() = Some(*answer);
                        job.wake.notify();
                    }
                }
            }
        }
    }

    /// Tells the leader of closed generations that no request has any more: one that has taken its generation may still be
    /// on its way to the leader, and what a device gives back goes on there.
    pub(super) fn close_generations(&self) {
        while let Some(generation) = self.models.take_left() {
            self.command(crate::engine::Command::Close(generation));
        }
    }

    /// Wakes those who wait for the control thread, as the server ends.
    pub(super) fn cut_jobs(&self) {
        self.jobs.borrow().values().for_each(|job| job.wake.notify());
    }

    fn done(&self, order: u64, outcome: Outcome) {
        self.tell(Message::Done { order, outcome });
    }

    /// The channel has room for every order and every job that can be on its way; a control thread that is gone has
    /// no use for either.
    fn tell(&self, message: Message) {
        if let Err(std::sync::mpsc::TrySendError::Full(_)) = self.outbox.try_send(message) {
            unreachable!("messages are fewer than orders and jobs");
        }
    }
}

/// `GET /v1/models/{id}/status`
pub(super) fn write_status(shard: &Shard, name: &str, body: &mut Vec<u8>) -> Result<(), ApiError> {
    let active = shard.models.active(Some(name))?;
    let versions = shard.models.versions(name);
    let performance = performance(&active.everywhere);
    let total =
        |field: fn(&crate::registry::Facts) -> u64| versions.iter().map(|(served, _)| field(&served.facts)).sum();
    api::write_admin(
        body,
        &ModelStatus {
            model_id: name.to_owned(),
            health: if performance.requests_failed == 0 { "healthy" } else { "degraded" },
            operation_in_progress: shard.control.is_operating(),
            resources: Resources {
                weights_bytes: total(|facts| facts.replicas_bytes()),
                kv_cache_bytes: total(|facts| facts.kv_bytes),
                replicas: total(|facts| facts.replicas),
            },
            performance,
            versions: versions.iter().map(|(served, state)| version(served, state)).collect(),
        },
    );
    Ok(())
}

fn version(served: &Served, state: &'static str) -> VersionStatus {
    VersionStatus {
        generation: served.id.0,
        state,
        metadata: served.facts.metadata(),
        loaded_at: rfc3339(served.facts.loaded_unix_ms),
        load_time_ms: served.facts.load_time.as_secs_f64() * 1e3,
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn performance(metrics: &[Arc<GenerationMetrics>]) -> Performance {
    let sum = |field: fn(&GenerationMetrics) -> u64| -> u64 { metrics.iter().map(|shard| field(shard)).sum() };
    let (gaps, gaps_us) = (sum(|m| m.gaps.get()), sum(|m| m.gaps_us.get()));
    Performance {
        requests_total: sum(|m| m.requests.get()),
        requests_failed: sum(|m| m.failed.get()),
        generated_tokens: sum(|m| m.generated_tokens.get()),
        running: sum(|m| m.running.get()),
        waiting: sum(|m| m.waiting.get()),
        mean_inter_token_ms: (gaps > 0).then(|| gaps_us as f64 / gaps as f64 / 1e3),
    }
}

/// `GET /v1/receipts/{request_id}`
#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
pub(super) fn write_receipt(shard: &Shard, id: &str, body: &mut Vec<u8>) -> Result<(), ApiError> {
    let missing =
        || ApiError::new(404, net::error::Code::InvalidRequest, "no such receipt: the last requests have one");
    let number = receipts::parse_id(id).ok_or_else(missing)?;
    let found = shard.control.receipts.iter().enumerate().find_map(|(i, receipts)| Some((i, receipts.find(number)?)));
    let (index, receipt) = found.ok_or_else(missing)?;
    let facts = shard.models.facts(crate::engine::GenerationId(receipt.generation)).ok_or_else(missing)?;
    let ms = |us: u64| us as f64 / 1e3;
    api::write_admin(
        body,
        &Receipt {
            request_id: id.to_owned(),
            model_id: facts.name.clone(),
            model_sha256: hex(&facts.sha256),
            generation: receipt.generation,
            quantization: facts.quantization.to_owned(),
            kernels: format!("{} on {}", facts.quantization, shard.config.isa.name()),
            isa: shard.config.isa.name().to_owned(),
            device: receipt.device.name(),
            fallback: receipt.device == receipts::Device::CpuInPlaceOfGpu,
            shard: index,
            seed: receipt.seed,
            prompt_tokens: receipt.prompt_tokens,
            completion_tokens: receipt.completion_tokens,
            sequences: u64::from(receipt.sequences),
            outcome: receipt.outcome.as_str(),
            received_at: rfc3339(receipt.received_unix_ms),
            queue_ms: ms(receipt.queue_us),
            first_token_ms: receipt.first_token_us.map(ms),
            total_ms: ms(receipt.total_us),
        },
    );
    Ok(())
}

pub(super) fn rfc3339(unix_ms: u64) -> String {
    let mut text = Vec::with_capacity(24);
    net::date::write_rfc3339(&mut text, unix_ms);
    String::from_utf8(text).expect("dates are ASCII")
}
