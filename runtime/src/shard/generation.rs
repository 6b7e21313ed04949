//! A request for tokens: checked against the model, submitted as sequences, answered as one body or as a stream.

mod deadlines;
mod entry;
mod reply;
mod work;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gguf::TensorType;
use net::api::{self, DevicePreference, Ending, Endpoint, GenerateRequest, QuantizationPreference};
use net::error::{ApiError, Code};
use net::http::Request;
use net::json::Reader;

use super::admission::Refusal;
use super::choice::Choice;
use super::client::client_of;
use super::gpus::{GPU_LOOK_EVERY, GPU_WAIT_MAX, Placed};
use super::guides;
use super::models::Picked;
use super::peer::{Peer, Writer};
use super::{Inbox, RETRY_DRAINING, Served, Shard, probe, unix_time};
use crate::engine::{Command, Event, Finish};
use crate::executor::{self, Holder};
use crate::gpu;
use crate::guide::Guided;
use crate::model::Model;
use crate::receipts::{self, Receipt};
use crate::sampler::SamplingParams;
use crate::schedule::{ClientId, NewSequence, Priority, StreamId};
use crate::text::{self, CallReader};
pub use deadlines::TimeLimits;
pub(super) use deadlines::{Clock, Deadlines};
pub(super) use entry::{check_room, check_time};
use reply::Reply;
pub(super) use work::{TOKEN_BYTES, chat_tokens, check_length, check_vocabulary, messages_bytes, prompt_bytes};
use work::{Work, request_bytes};

/// Answers one request for tokens. `Ok(false)` where the connection can't go on.
///
/// # Errors
/// A refusal before the first byte of an answer was written.
pub(super) async fn run(
    shard: &Rc<Shard>,
    peer: &Rc<Peer>,
    endpoint: Endpoint,
    request: &mut Request,
    id: &str,
    writer: &mut Writer,
) -> Result<bool, ApiError> {
    let arrival = Instant::now();
    api::check_json_content_type(request)?;
    let parse = move |reader: &mut Reader, body: &mut [u8]| GenerateRequest::parse(endpoint, reader, body);
    let Some(generate) = shard.read_body(peer, request, parse).await? else { return Ok(false) };
    if shard.control.is_draining() {
        shard.metrics.requests.outcomes.refused_draining.add(1);
        return Err(ApiError::unavailable("the server is shutting down", RETRY_DRAINING));
    }
    let wanted = generate.prompt.count() * generate.n as usize;
    if wanted > shard.sequences_max {
        let message = format_args!("times prompts is {wanted}, this server takes {}", shard.sequences_max);
        return Err(ApiError::validation("n", message));
    }
    let elsewhere = entry::check_room_anywhere(shard, wanted, priority_of(generate.priority))?;
    let deadlines = Deadlines::new((&generate).into(), &shard.config.time_limits, arrival);
    if generate.device_preference == DevicePreference::Gpu && !gpu_comes(shard, peer, &generate, deadlines).await? {
        shard.metrics.requests.outcomes.cancelled.add(1);
        return Ok(false);
    }
    let picked = shard.models.pick(generate.model.as_deref())?;
    check_quantization(&generate, &picked.served.model)?;
    let (model, bytes) = (Arc::clone(&picked.served.model), request_bytes(&generate));
    let planned = shard.aside(peer, (Holder::Tokenizer, bytes), move |_| {
        let work = Work::plan(&model, endpoint, &generate);
        (work, generate)
    });
    let Some((work, generate)) = planned.await? else { return Ok(false) };
    let mut work = work?;
    let turn = (wanted, priority_of(generate.priority), elsewhere);
    work.elsewhere = entry::check_time_anywhere(shard, turn, work.prompt_tokens(), &deadlines, arrival)?;
    let Some(guides) = guides::make(shard, peer, &picked.served.model, &generate, wanted, &deadlines).await? else {
        shard.metrics.requests.outcomes.cancelled.add(1);
        return Ok(false);
    };
    work.guides = guides;
    let client = client_of(shard, peer, request);
    work::reserve_logprobs(shard, work.logprobs_bytes)?;
    let mut generation = Generation::new(shard, (peer, client), picked, id, &generate, work, arrival);
    generation.submit(&generate).await?;
    let reply = Reply::new(&generation.served.model, endpoint, request, id, &generate, &generation.work);
    generation.answer(reply, writer, deadlines).await
}

/// Waits while the GPUs that serve a request's model are coming up; `false` where its client went away meanwhile. What they
/// are then is seen when it is placed.
async fn gpu_comes(
    shard: &Shard,
    peer: &Peer,
    generate: &GenerateRequest,
    deadlines: Deadlines,
) -> Result<bool, ApiError> {
    let clock = Clock::new(Instant::now());
    let generation = || shard.models.pick(generate.model.as_deref()).map(|picked| picked.served.id);
    let Some(_waiting) = shard.gpus.wait(generation()?)? else { return Ok(true) };
    let until = clock.arrival + GPU_WAIT_MAX;
    // The model may be another one by now.
    while shard.gpus.is_coming(generation()?) {
        let now = Instant::now();
        if let Some(error) = deadlines.overdue(&clock, now) {
            return Err(error);
        }
        if shard.control.is_draining() {
            return Err(ApiError::unavailable("the server is shutting down", RETRY_DRAINING));
        }
        if peer.gone.get() || now >= until {
            return Ok(!peer.gone.get());
        }
        executor::sleep(GPU_LOOK_EVERY).await;
    }
    Ok(true)
}

/// A preference for what the model isn't is refused, not ignored.
fn check_quantization(generate: &GenerateRequest, model: &Model) -> Result<(), ApiError> {
    let wanted = match generate.quantization_preference {
        QuantizationPreference::Auto => return Ok(()),
        QuantizationPreference::I2s => TensorType::I2S,
        QuantizationPreference::Tl1 => TensorType::Tl1,
        QuantizationPreference::Tl2 => TensorType::Tl2,
    };
    if wanted.name() == model.quantization {
        return Ok(());
    }
    let message = format_args!("is {}, model `{}` has {}", wanted.name(), model.name, model.quantization);
    Err(ApiError::validation("quantization_preference", message))
}

/// The sequences of a request in progress. Dropping it cancels what still runs.
struct Generation<'a> {
    shard: &'a Rc<Shard>,
    peer: &'a Rc<Peer>,
    client: ClientId,
    /// What the request began with stays with it, whatever is served meanwhile.
    served: Rc<Served>,
    /// Tokens of a canary's greedy answer, and whose answer they are compared with.
    compared: Option<(Rc<Served>, Vec<u32>)>,
    id: u128,
    seed: u64,
    received_unix_ms: u64,
    failed: bool,
    /// The GPU that its sequences were given to first.
    began_on: Option<usize>,
    /// Prompt tokens, until the first token of the answer.
    pending_tokens: usize,
    /// The last prompt that was placed, and the shard that has its sequences if it is another one.
    placed: Option<(usize, Option<usize>)>,
    work: Work,
    /// The field that says what its answers must look like.
    constrained_by: &'static str,
    inbox: Rc<Inbox>,
    streams: Vec<StreamId>,
    choices: Vec<Choice>,
    clock: Clock,
    /// When the oldest token that is not in the socket was chosen.
    unwritten_since: Option<Instant>,
}

impl<'a> Generation<'a> {
    fn new(
        shard: &'a Rc<Shard>,
        (peer, client): (&'a Rc<Peer>, ClientId),
        picked: Picked,
        id: &str,
        generate: &GenerateRequest,
        work: Work,
        arrival: Instant,
    ) -> Self {
        let wanted = work.prompts.len() * work.n as usize;
        let inbox = Rc::new(Inbox {
            events: Default::default(),
            wake: Rc::clone(&peer.wake),
            cut: Cell::new(false),
            device: Cell::new(None),
        });
        let requests = &shard.metrics.requests;
        requests.started.add(1);
        let Picked { served, reference } = picked;
        served.metrics.requests.add(1);
        // Other samplings and several sequences differ for reasons of their own.
        let greedy = generate.temperature == 0.0 && wanted == 1 && is_plain(generate);
        let reference = reference.filter(|other| greedy && other.facts.tokenizer == served.facts.tokenizer);
        let seed = generate.seed.or(shard.config.fixed_seed).unwrap_or_else(|| shard.next_random());
        requests.active.add(1);
        let pending_tokens = work.prompt_tokens();
        requests.prompt_tokens.add(pending_tokens as u64);
        shard.admission.add_pending(pending_tokens);
        let clock = Clock::new(arrival);
        Self {
            shard,
            peer,
            client,
            served,
            compared: reference.map(|other| (other, Vec::with_capacity(work.tokens_max[0]))),
            id: receipts::parse_id(id).unwrap_or_default(),
            seed,
            received_unix_ms: u64::try_from(unix_time().as_millis()).unwrap_or(u64::MAX),
            failed: false,
            began_on: None,
            pending_tokens,
            placed: None,
            work,
            constrained_by: generate.constrained_by,
            inbox,
            streams: Vec::with_capacity(wanted),
            choices: Vec::with_capacity(wanted),
            clock,
            unwritten_since: None,
        }
    }

    /// Hands all sequences to those who compute them.
    async fn submit(&mut self, generate: &GenerateRequest) -> Result<(), ApiError> {
        for prompt in 0..self.work.prompts.len() {
            for _ in 0..self.work.n {
                self.start(generate, prompt)?;
                // Each has a copy of its prompt.
                executor::give_way().await;
            }
        }
        Ok(())
    }

    fn start(&mut self, generate: &GenerateRequest, prompt: usize) -> Result<(), ApiError> {
        let index = self.choices.len();
        let Work { prompts, tokens_max, ending, with_logprobs, .. } = &self.work;
        let reader = generate.tools().map(|tools| CallReader::new(Arc::clone(tools), &text::forced(tools)));
        let place = u32::try_from(index).expect("bounded by the schema");
        let mut choice = Choice::new(place, prompt, ending, *with_logprobs, reader);
        choice.token_ids = generate.return_token_ids.then(Vec::new);
        let scoring = self.work.scoring;
        if scoring.is_some() {
            choice.logprobs.push_first(prompts[prompt][0]);
        } else if tokens_max[prompt] == 0 {
            choice.end(Finish::Length);
            self.choices.push(choice);
            return Ok(());
        }
        let stream = StreamId(self.shard.next_id());
        let ends = self.served.model.tokenizer.end_of_generation();
        let sampling = sampling(generate, self.seed.wrapping_add(index as u64), (ends, prompts[prompt].len()));
        let (tokens, tokens_max) = (prompts[prompt].clone(), tokens_max[prompt]);
        let mut sequence = Box::new(NewSequence {
            client: self.client,
            priority: priority_of(generate.priority),
            stop_at_end: !generate.ignore_eos,
            guide: self.work.guides.pop().map(Guided::from),
            predicted: Arc::clone(&self.work.predicted),
            scoring,
            ..NewSequence::new(stream, tokens, tokens_max, sampling, self.clock.arrival)
        });
        let work = gpu::Work { prompt_tokens: sequence.tokens.len(), tokens_max: sequence.tokens_max };
        // Only CPUs score prompts.
        let preference = if scoring.is_some() { DevicePreference::Cpu } else { generate.device_preference };
        let device = self.shard.gpus.place(self.shard, preference, self.served.id, work).inspect_err(|_| {
            self.shard.metrics.requests.outcomes.refused_queue.add(1);
        })?;
        self.shard.streams.borrow_mut().insert(stream, (Rc::clone(&self.inbox), index));
        self.streams.push(stream);
        self.choices.push(choice);
        self.inbox.device.set(device);
        self.began_on = self.began_on.or(device);
        if let Some(device) = device {
            let must = preference == DevicePreference::Gpu;
            self.shard.gpus.start(Placed { device, generation: self.served.id, must, moved: false }, sequence);
            return Ok(());
        }
        if let Some(host) = self.host_of(prompt, sequence.priority) {
            match self.shard.hosts.start(host, self.served.id, sequence) {
                Ok(()) => {
                    self.shard.metrics.requests.routed.add(1);
                    return Ok(());
                }
                Err(back) => sequence = back,
            }
        }
        if !self.shard.start(Command::Start { generation: self.served.id, sequence }) {
            self.shard.streams.borrow_mut().remove(&stream);
            self.shard.metrics.requests.outcomes.refused_queue.add(1);
            return Err(queue_full());
        }
        Ok(())
    }

    /// The other shard that computes the sequences of a prompt, which keep together. Its tokens wait there, not here.
    fn host_of(&mut self, prompt: usize, priority: Priority) -> Option<usize> {
        if let Some((_, host)) = self.placed.filter(|(placed, _)| *placed == prompt) {
            return host;
        }
        let tokens = &self.work.prompts[prompt];
        let turn = (priority, self.work.elsewhere);
        let host = self.shard.hosts.choose(self.shard, &self.served, tokens, turn);
        if host.is_some() {
            self.pending_tokens -= tokens.len();
            self.shard.admission.remove_pending(tokens.len());
        }
        self.placed = Some((prompt, host));
        host
    }

    /// Answers as the tokens come. `Ok(false)` where the client is gone.
    async fn answer(
        &mut self,
        mut reply: Reply<'_>,
        writer: &mut Writer,
        deadlines: Deadlines,
    ) -> Result<bool, ApiError> {
        let mut next_comment = Instant::now() + COMMENT_EVERY;
        loop {
            let all_sent = loop {
                if writer.is_full() || executor::is_long() || !self.go_on(&mut reply, writer) {
                    break false;
                }
                let Some((index, event, at)) = self.next_event() else { break true };
                if let Err(error) = self.take(index, event, at, &mut reply, writer) {
                    return self.fail(&mut reply, writer, error).await;
                }
            };
            if all_sent && self.choices.iter().all(|choice| choice.finish.is_some()) {
                self.record();
                self.compare();
                self.work.device = self.inbox.device.get();
                let answer = (&*self.served.model, &self.choices[..], &self.work, &self.clock);
                if !reply.is_stream() {
                    return Ok(reply.send_whole(self.shard, self.peer, answer, writer).await);
                }
                reply.finish(self.shard, answer, writer);
                let sent = writer.flush().await.is_ok();
                self.written(Instant::now());
                return Ok(sent && !reply.ends_by_close());
            }
            if writer.flush().await.is_err() || self.peer.gone.get() {
                self.shard.metrics.requests.outcomes.cancelled.add(1);
                return Ok(false);
            }
            let now = Instant::now();
            if reply.is_stream() {
                self.written(now);
            }
            if !all_sent {
                executor::give_way().await;
                continue;
            }
            if !self.inbox.events.borrow().is_empty() {
                continue;
            }
            if self.inbox.cut.get() {
                let error = ApiError::unavailable("the server is shutting down", RETRY_DRAINING);
                return self.fail(&mut reply, writer, error).await;
            }
            if let Some(error) = deadlines.overdue(&self.clock, now) {
                return self.fail(&mut reply, writer, error).await;
            }
            if now >= next_comment {
                reply.keep_alive(self.shard, writer);
                next_comment = now + COMMENT_EVERY;
                continue;
            }
            reply.leave_words(writer);
            self.peer.wake_at.set(Some(deadlines.next(&self.clock).min(next_comment)));
            self.peer.wake.wait().await;
            self.peer.wake_at.set(None);
        }
    }

    /// Writes on where a choice has more to send than was room for; whether nothing is left of it.
    fn go_on(&mut self, reply: &mut Reply<'_>, writer: &mut Writer) -> bool {
        let choices = &mut self.choices;
        let is_over = choices.iter().all(|choice| choice.finish.is_some());
        reply.go_on((self.shard, &self.served.model, &self.work), choices, is_over, writer)
    }

    /// All tokens so far are in the socket.
    fn written(&mut self, now: Instant) {
        if let Some(since) = self.unwritten_since.take() {
            self.shard.metrics.requests.token_write.observe_duration(now.saturating_duration_since(since));
        }
    }

    fn next_event(&self) -> Option<(usize, Event, Instant)> {
        self.inbox.events.borrow_mut().pop_front()
    }

    fn take(
        &mut self,
        index: usize,
        event: Event,
        at: Instant,
        reply: &mut Reply<'_>,
        writer: &mut Writer,
    ) -> Result<(), ApiError> {
        let choice = &mut self.choices[index];
        match event {
            Event::Admitted(_) => self.clock.admitted = self.clock.admitted.or(Some(at)),
            Event::Cached { tokens, .. } => choice.cached_tokens = tokens as u64,
            Event::Returned(_) => unreachable!("the shard hands these to its leader"),
            Event::Embedding { .. } => unreachable!("a model that generates was asked"),
            Event::Refused(_) => {
                self.shard.metrics.requests.outcomes.refused_queue.add(1);
                return Err(queue_full());
            }
            Event::Scored { tokens, .. } => choice.score(&tokens),
            // A stop string ended the choice already; its sequence is being cancelled.
            _ if choice.finish.is_some() => {}
            Event::Token { stream, sampled, at: chosen, finish } => {
                self.clock.token(self.shard, &self.served, at);
                self.unwritten_since.get_or_insert(chosen);
                self.shard.admission.remove_pending(std::mem::take(&mut self.pending_tokens));
                if let Some((_, tokens)) = &mut self.compared {
                    tokens.push(sampled.token);
                }
                choice.push(&self.served.model, &sampled, finish);
                if finish.is_none() && choice.finish.is_some() {
                    self.shard.cancel(stream);
                }
                let answer = (&**self.shard, &*self.served.model, &self.work);
                reply.token(answer, choice, sampled.token, &self.clock, writer);
            }
            Event::End { finish: Finish::Unguided, .. } => {
                self.shard.metrics.requests.outcomes.failed.add(1);
                self.failed = true;
                return Err(guides::too_complex(self.constrained_by));
            }
            Event::End { finish: finish @ (Finish::Failed | Finish::Lost), .. } => {
                self.shard.metrics.requests.outcomes.failed.add(1);
                self.failed = true;
                if finish == Finish::Lost {
                    return Err(lost());
                }
                self.served.metrics.failed.add(1);
                return Err(ApiError::new(500, Code::InferenceFailed, "the model gave no usable scores"));
            }
            Event::End { finish, .. } => {
                choice.end(finish);
                reply.end((self.shard, &self.served.model, &self.work), choice, writer);
            }
        }
        Ok(())
    }

    /// An error answer, or an error event where the answer has begun.
    async fn fail(&mut self, reply: &mut Reply<'_>, writer: &mut Writer, error: ApiError) -> Result<bool, ApiError> {
        if !reply.has_begun() {
            return Err(error);
        }
        reply.error(writer, &error);
        // The answer ends here either way.
        let _ = writer.flush().await;
        Ok(false)
    }

    /// Has a canary's answer compared with the other generation's, if no other comparison is on its way.
    fn compare(&mut self) {
        let Some((reference, answer)) = self.compared.take() else { return };
        if !self.shard.comparing.replace(true) {
            let (shard, canary) = (Rc::clone(self.shard), Rc::clone(&self.served));
            let prompt = self.work.prompts[0].clone().into_boxed_slice();
            executor::spawn(probe::compare(shard, canary, reference, prompt, answer));
        }
    }

    fn receipt(&self) -> Receipt {
        let finish = |reason| self.choices.iter().all(|choice| choice.finish.is_some_and(|finish| reason == finish));
        let ended = !self.choices.is_empty() && self.choices.iter().all(|choice| choice.finish.is_some());
        let since = |at: Instant| u64::try_from(at.saturating_duration_since(self.clock.arrival).as_micros());
        let us = |at| since(at).unwrap_or(u64::MAX);
        Receipt {
            id: self.id,
            generation: self.served.id.0,
            outcome: match () {
                () if self.failed || self.shard.is_broken() => receipts::Outcome::Failed,
                () if !ended => receipts::Outcome::Cancelled,
                () if finish(api::FinishReason::Length) => receipts::Outcome::Length,
                () => receipts::Outcome::Stop,
            },
            device: match (self.inbox.device.get(), self.began_on) {
                (Some(device), _) => receipts::Device::Gpu(self.shard.gpus.ordinal(device)),
                (None, Some(_)) => receipts::Device::CpuInPlaceOfGpu,
                (None, None) => receipts::Device::Cpu,
            },
            sequences: u32::try_from(self.choices.len()).unwrap_or(u32::MAX),
            seed: self.seed,
            prompt_tokens: self.work.prompts.iter().map(|prompt| prompt.len() as u64).sum(),
            completion_tokens: self.choices.iter().map(|choice| choice.tokens).sum(),
            received_unix_ms: self.received_unix_ms,
            queue_us: self.clock.admitted.map_or(0, us),
            first_token_us: self.clock.first_token.map(us),
            total_us: us(Instant::now()),
        }
    }

    fn record(&self) {
        use net::api::FinishReason;
        let requests = &self.shard.metrics.requests;
        for choice in &self.choices {
            match choice.finish {
                Some(FinishReason::Length) => requests.outcomes.length.add(1),
                _ => requests.outcomes.stop.add(1),
            }
            requests.generated_tokens.add(choice.tokens);
            self.served.metrics.generated_tokens.add(choice.tokens);
        }
        self.served.metrics.succeeded.add(1);
        let Clock { arrival, admitted, first_token, last_token } = &self.clock;
        let (Some(first), Some(last)) = (*first_token, last_token.get()) else { return };
        let admitted = admitted.unwrap_or(*arrival);
        self.shard.admission.observe_slot(last.saturating_duration_since(admitted));
        requests.queue.observe_duration(admitted.saturating_duration_since(*arrival));
        requests.prefill.observe_duration(first.saturating_duration_since(admitted));
        requests.decode.observe_duration(last.saturating_duration_since(first));
        requests.end_to_end.observe_duration(last.saturating_duration_since(*arrival));
        let tokens: u64 = self.choices.iter().map(|choice| choice.tokens).sum();
        requests.tokens_per_second.observe(rate(tokens, last.saturating_duration_since(*arrival)));
    }
}

impl Drop for Generation<'_> {
    fn drop(&mut self) {
        for stream in &self.streams {
            self.shard.cancel(*stream);
        }
        self.shard.admission.remove_pending(self.pending_tokens);
        self.shard.logprobs_bytes.set(self.shard.logprobs_bytes.get().saturating_sub(self.work.logprobs_bytes));
        let receipt = self.receipt();
        self.shard.control.receipts[self.shard.index].write(&receipt);
        self.peer.computed(&self.served.model.name, receipt);
        let active = &self.shard.metrics.requests.active;
        active.set(active.get() - 1);
    }
}

impl Clock {
    fn token(&mut self, shard: &Shard, served: &Served, at: Instant) {
        let requests = &shard.metrics.requests;
        match self.last_token.replace(Some(at)) {
            None => {
                self.first_token = Some(at);
                requests.first_token.observe_duration(at.saturating_duration_since(self.arrival));
            }
            Some(last) => {
                let gap = at.saturating_duration_since(last);
                requests.inter_token.observe_duration(gap);
                served.metrics.gaps.add(1);
                served.metrics.gaps_us.add(u64::try_from(gap.as_micros()).unwrap_or(u64::MAX));
            }
        }
    }
}

/// Tokens per second; 0 where no time has passed.
#[expect(clippy::cast_precision_loss, reason = "token counts are small")]
pub(super) fn rate(tokens: u64, elapsed: Duration) -> f64 {
    if elapsed.is_zero() { 0.0 } else { tokens as f64 / elapsed.as_secs_f64() }
}

/// Whether nothing but the model decides the tokens.
fn is_plain(generate: &GenerateRequest) -> bool {
    generate.repetition_penalty == 1.0
        && generate.frequency_penalty == 0.0
        && generate.presence_penalty == 0.0
        && generate.logit_bias.is_empty()
        && generate.ending == Ending::default()
        && generate.constraint.is_none()
        && !generate.ignore_eos
}

pub(super) fn priority_of(priority: api::Priority) -> Priority {
    match priority {
        api::Priority::Low => Priority::Low,
        api::Priority::Normal => Priority::Normal,
        api::Priority::High => Priority::High,
    }
}

/// `ends`: tokens that end any text.
fn sampling(generate: &GenerateRequest, seed: u64, (ends, prompt_len): (&[u32], usize)) -> SamplingParams {
    let Ending { tokens, tokens_min, .. } = &generate.ending;
    let forbidden = if *tokens_min > 0 { [ends, tokens.as_slice()].concat() } else { Vec::new() };
    SamplingParams {
        forbidden,
        forbidden_until: prompt_len as u64 + u64::from(*tokens_min),
        temperature: generate.temperature,
        top_k: generate.top_k,
        top_p: generate.top_p,
        min_p: generate.min_p,
        repetition_penalty: generate.repetition_penalty,
        frequency_penalty: generate.frequency_penalty,
        presence_penalty: generate.presence_penalty,
        logit_bias: generate.logit_bias.clone(),
        seed,
        logprobs: generate.logprobs.map(work::best_told),
    }
}

pub(super) fn queue_full() -> ApiError {
    Refusal::QueueFull.into()
}

/// 500: a thread of the shard broke down while it computed the answer.
pub(super) fn lost() -> ApiError {
    let message = "the shard that computed the answer broke down; it is back: try again";
    ApiError::new(500, Code::InferenceFailed, message).with_retry_after(RETRY_LOST)
}

/// A shard that broke down is back in less.
const RETRY_LOST: Duration = Duration::from_secs(1);
/// Comments keep a connection alive while a request waits.
const COMMENT_EVERY: Duration = Duration::from_secs(15);
