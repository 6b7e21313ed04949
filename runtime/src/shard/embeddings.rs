//! A request for embeddings: every input is a sequence of its own; a few run at a time, the next when one has ended.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use net::api::{self, EmbeddingsBody, EmbeddingsRequest, Prompt};
use net::error::{ApiError, Code, Dialect};
use net::http::{self, Request};

use super::body;
use super::client::client_of;
use super::connection::unix_ms;
use super::generation::{
    Clock, Deadlines, check_length, check_room, check_time, check_vocabulary, lost, priority_of, prompt_bytes,
    queue_full,
};
use super::peer::{Peer, Writer};
use super::{Inbox, RETRY_DRAINING, Served, Shard, unix_time};
use crate::engine::{Command, Event, Finish};
use crate::executor::Holder;
use crate::model::Model;
use crate::receipts::{self, Receipt};
use crate::sampler::SamplingParams;
use crate::schedule::{ClientId, NewSequence, Priority, StreamId};

/// Answers one request for embeddings. `Ok(false)` where the connection can't go on.
///
/// # Errors
/// A refusal; nothing of an answer was written then.
pub(super) async fn run(
    shard: &Rc<Shard>,
    peer: &Rc<Peer>,
    request: &mut Request,
    id: &str,
    writer: &mut Writer,
) -> Result<bool, ApiError> {
    let arrival = Instant::now();
    api::check_json_content_type(request)?;
    let Some(wanted) = shard.read_body(peer, request, EmbeddingsRequest::parse).await? else { return Ok(false) };
    if shard.control.is_draining() {
        shard.metrics.requests.outcomes.refused_draining.add(1);
        return Err(ApiError::unavailable("the server is shutting down", RETRY_DRAINING));
    }
    // The first input wants a place, others come when there is one.
    check_room(shard, 1, wanted.priority)?;
    let served = shard.models.pick(wanted.model.as_deref())?.served;
    let (model, bytes) = (Arc::clone(&served.model), prompt_bytes(&wanted.input));
    let inputs = shard.aside(peer, (Holder::Tokenizer, bytes), move |_| (inputs(&model, &wanted), wanted));
    let Some((inputs, wanted)) = inputs.await? else { return Ok(false) };
    let inputs = inputs?;
    let deadlines = Deadlines::new((&wanted).into(), &shard.config.time_limits, arrival);
    check_time(shard, inputs.iter().map(Vec::len).sum(), &deadlines, arrival)?;
    let turn = (client_of(shard, peer, request), priority_of(wanted.priority));
    writer.part_with(|out| http::write_last_error(out, request, id, &lost(), Dialect::OpenAi, unix_ms()));
    let mut embedding = Embedding::new(shard, peer, served, id, inputs, turn, arrival);
    if !embedding.collect(deadlines).await? {
        return Ok(false);
    }
    embedding.record();
    let vectors = embedding.vectors.iter().map(|vector| vector.as_deref().expect("all inputs have ended"));
    let vectors: Vec<&[f32]> = vectors.collect();
    let (model, prompt_tokens) = (embedding.served.model.name.as_str(), embedding.prompt_tokens);
    let mut vectors =
        EmbeddingsBody { model, vectors: &vectors, format: wanted.encoding_format, prompt_tokens, written: 0 };
    Ok(body::send(shard, peer, request, id, writer, |out| vectors.write_piece(out)).await)
}

/// The tokens of each input, checked against the model.
fn inputs(model: &Model, wanted: &EmbeddingsRequest) -> Result<Vec<Vec<u32>>, ApiError> {
    let params = &model.weights.params;
    if params.pooling.is_none() {
        let message = format!("model `{}` generates text and gives no embeddings", model.name);
        return Err(ApiError::new(400, Code::InvalidRequest, message).with_param("model"));
    }
    if let Some(got) = wanted.dimensions.filter(|got| *got as usize != params.hidden) {
        let message =
            format_args!("is {got}, the vectors of this model have {} and are not made to be cut", params.hidden);
        return Err(ApiError::validation("dimensions", message));
    }
    let inputs = match &wanted.input {
        Prompt::Text(texts) => texts.iter().map(|text| tokens(model, text)).collect::<Result<_, _>>()?,
        Prompt::Tokens(inputs) => {
            inputs.iter().try_for_each(|tokens| check_vocabulary(model, tokens, "input"))?;
            inputs.clone()
        }
        Prompt::Messages(_) => unreachable!("the schema of embeddings has no messages"),
    };
    for (index, tokens) in inputs.iter().enumerate() {
        let (got, context) = (tokens.len(), model.weights.context);
        if got == 0 || got > context {
            let message = format_args!("has {got} tokens, 1 to {context} are possible");
            return Err(ApiError::validation(format_args!("input[{index}]"), message));
        }
    }
    Ok(inputs)
}

fn tokens(model: &Model, text: &str) -> Result<Vec<u32>, ApiError> {
    check_length(model, text, "input")?;
    let mut tokens = Vec::new();
    model.tokenizer.encode(text, true, true, &mut tokens);
    Ok(tokens)
}

/// The inputs of a request in progress. Dropping it cancels what still runs.
struct Embedding<'a> {
    shard: &'a Rc<Shard>,
    peer: &'a Rc<Peer>,
    served: Rc<Served>,
    id: u128,
    inputs: Vec<Vec<u32>>,
    /// Inputs that were sent to the leader so far, and those of them that have not ended, with when they got a slot.
    sent: usize,
    running: Vec<(StreamId, Option<Instant>)>,
    vectors: Vec<Option<Box<[f32]>>>,
    inbox: Rc<Inbox>,
    client: ClientId,
    priority: Priority,
    /// Of each input, and of those that have no vector yet.
    tokens: Vec<usize>,
    pending_tokens: usize,
    prompt_tokens: u64,
    received_unix_ms: u64,
    clock: Clock,
    failed: bool,
}

impl<'a> Embedding<'a> {
    fn new(
        shard: &'a Rc<Shard>,
        peer: &'a Rc<Peer>,
        served: Rc<Served>,
        id: &str,
        inputs: Vec<Vec<u32>>,
        (client, priority): (ClientId, Priority),
        arrival: Instant,
    ) -> Self {
        let tokens: Vec<usize> = inputs.iter().map(Vec::len).collect();
        let pending_tokens = tokens.iter().sum();
        let prompt_tokens = pending_tokens as u64;
        shard.admission.add_pending(pending_tokens);
        let requests = &shard.metrics.requests;
        requests.started.add(1);
        requests.active.add(1);
        requests.prompt_tokens.add(prompt_tokens);
        served.metrics.requests.add(1);
        let inbox = Inbox {
            events: Default::default(),
            wake: Rc::clone(&peer.wake),
            cut: Cell::new(false),
            device: Cell::new(None),
        };
        Self {
            shard,
            peer,
            served,
            id: receipts::parse_id(id).unwrap_or_default(),
            sent: 0,
            running: Vec::new(),
            vectors: vec![None; inputs.len()],
            inputs,
            inbox: Rc::new(inbox),
            client,
            priority,
            tokens,
            pending_tokens,
            prompt_tokens,
            received_unix_ms: u64::try_from(unix_time().as_millis()).unwrap_or(u64::MAX),
            clock: Clock::new(arrival),
            failed: false,
        }
    }

    /// Has all inputs computed. `Ok(false)` where the client is gone.
    async fn collect(&mut self, deadlines: Deadlines) -> Result<bool, ApiError> {
        self.send()?;
        loop {
            while let Some((index, event, at)) = self.next_event() {
                self.take(index, event, at)?;
            }
            if self.running.is_empty() && self.sent == self.inputs.len() {
                return Ok(true);
            }
            self.send()?;
            if self.peer.gone.get() {
                self.shard.metrics.requests.outcomes.cancelled.add(1);
                return Ok(false);
            }
            if !self.inbox.events.borrow().is_empty() {
                continue;
            }
            if self.inbox.cut.get() {
                return Err(ApiError::unavailable("the server is shutting down", RETRY_DRAINING));
            }
            if let Some(error) = deadlines.overdue(&self.clock, Instant::now()) {
                return Err(error);
            }
            self.peer.wake_at.set(Some(deadlines.next(&self.clock)));
            self.peer.wake.wait().await;
            self.peer.wake_at.set(None);
        }
    }

    fn next_event(&self) -> Option<(usize, Event, Instant)> {
        self.inbox.events.borrow_mut().pop_front()
    }

    /// Sends inputs to the leader up to this request's share of it. Only the first may be refused: later ones wait for
    /// those that run.
    fn send(&mut self) -> Result<(), ApiError> {
        let shard = self.shard;
        while self.sent < self.inputs.len() && self.running.len() < shard.slots_max {
            if !self.try_send() {
                if self.running.is_empty() {
                    shard.metrics.requests.outcomes.refused_queue.add(1);
                    return Err(queue_full());
                }
                break;
            }
        }
        Ok(())
    }

    /// `false` where the shard has no room for another sequence.
    fn try_send(&mut self) -> bool {
        let shard = self.shard;
        if shard.streams.borrow().len() >= shard.sequences_max {
            return false;
        }
        let stream = StreamId(shard.next_id());
        let tokens = std::mem::take(&mut self.inputs[self.sent]);
        let sequence = NewSequence {
            client: self.client,
            priority: self.priority,
            ..NewSequence::new(stream, tokens, 0, SamplingParams::default(), self.clock.arrival)
        };
        shard.streams.borrow_mut().insert(stream, (Rc::clone(&self.inbox), self.sent));
        let sent = shard.start(Command::Start { generation: self.served.id, sequence: Box::new(sequence) });
        if sent {
            self.running.push((stream, None));
            self.sent += 1;
        } else {
            shard.streams.borrow_mut().remove(&stream);
        }
        sent
    }

    fn take(&mut self, index: usize, event: Event, at: Instant) -> Result<(), ApiError> {
        let stream = event.stream();
        match event {
            Event::Admitted(_) => {
                self.clock.admitted = self.clock.admitted.or(Some(at));
                self.running.iter_mut().filter(|running| running.0 == stream).for_each(|running| running.1 = Some(at));
            }
            Event::Embedding { vector, .. } => {
                if let Some(running) = self.running.iter().position(|running| running.0 == stream)
                    && let (_, Some(admitted)) = self.running.swap_remove(running)
                {
                    self.shard.admission.observe_slot(at.saturating_duration_since(admitted));
                }
                self.shard.admission.remove_pending(self.tokens[index]);
                self.pending_tokens -= self.tokens[index];
                self.vectors[index] = Some(vector);
            }
            Event::Refused(_) => {
                self.shard.metrics.requests.outcomes.refused_queue.add(1);
                return Err(queue_full());
            }
            Event::Cached { .. } | Event::Scored { .. } => {}
            Event::End { finish: Finish::Lost, .. } => {
                self.shard.metrics.requests.outcomes.failed.add(1);
                self.failed = true;
                return Err(lost());
            }
            Event::End { .. } | Event::Token { .. } | Event::Returned(_) => {
                self.shard.metrics.requests.outcomes.failed.add(1);
                self.served.metrics.failed.add(1);
                self.failed = true;
                return Err(ApiError::new(500, Code::InferenceFailed, "the model gave no usable vector"));
            }
        }
        Ok(())
    }

    fn record(&self) {
        let requests = &self.shard.metrics.requests;
        requests.outcomes.stop.add(1);
        self.served.metrics.succeeded.add(1);
        let Clock { arrival, admitted, .. } = self.clock;
        let admitted = admitted.unwrap_or(arrival);
        requests.queue.observe_duration(admitted.saturating_duration_since(arrival));
        requests.prefill.observe_duration(admitted.elapsed());
        requests.end_to_end.observe_duration(arrival.elapsed());
    }

    fn receipt(&self) -> Receipt {
        let us = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let done = self.vectors.iter().all(Option::is_some);
        Receipt {
            id: self.id,
            generation: self.served.id.0,
            outcome: match (self.failed || self.shard.is_broken(), done) {
                (true, _) => receipts::Outcome::Failed,
                (_, true) => receipts::Outcome::Stop,
                _ => receipts::Outcome::Cancelled,
            },
            device: receipts::Device::Cpu,
            sequences: u32::try_from(self.vectors.len()).unwrap_or(u32::MAX),
            seed: 0,
            prompt_tokens: self.prompt_tokens,
            completion_tokens: 0,
            received_unix_ms: self.received_unix_ms,
            queue_us: self.clock.admitted.map_or(0, |at| us(at.saturating_duration_since(self.clock.arrival))),
            first_token_us: None,
            total_us: us(self.clock.arrival.elapsed()),
        }
    }
}

impl Drop for Embedding<'_> {
    fn drop(&mut self) {
        for (stream, _) in &self.running {
            self.shard.cancel(*stream);
        }
        self.shard.admission.remove_pending(self.pending_tokens);
        let receipt = self.receipt();
        self.shard.control.receipts[self.shard.index].write(&receipt);
        self.peer.computed(&self.served.model.name, receipt);
        let active = &self.shard.metrics.requests.active;
        active.set(active.get() - 1);
    }
}
