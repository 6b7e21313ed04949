//! A request for embeddings: every input is a sequence of its own; a few run at a time, the next when one has ended.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use net::api::{self, EmbeddingsRequest, Prompt};
use net::error::{ApiError, Code};
use net::http::{self, Request};

use super::answer::count;
use super::generation::{check_length, check_vocabulary, lost, priority_of, queue_full};
use super::peer::{Peer, Writer};
use super::{Inbox, RETRY_DRAINING, Served, Shard, unix_time};
use crate::engine::{Command, Event, Finish};
use crate::model::Model;
use crate::receipts::{self, Receipt};
use crate::sampler::SamplingParams;
use crate::schedule::{NewSequence, Priority, StreamId};

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
    let wanted = EmbeddingsRequest::parse(&mut shard.json.borrow_mut(), &mut request.body)?;
    if shard.control.is_draining() {
        shard.metrics.requests.outcomes.refused_draining.add(1);
        return Err(ApiError::unavailable("the server is shutting down", RETRY_DRAINING));
    }
    let served = shard.models.pick(wanted.model.as_deref())?.served;
    let inputs = inputs(&served.model, &wanted)?;
    let timeout = wanted.timeout_ms.map_or(shard.config.request_timeout, Duration::from_millis);
    let mut embedding = Embedding::new(shard, peer, served, id, inputs, (arrival, priority_of(wanted.priority)));
    if !embedding.collect(arrival + timeout).await? {
        return Ok(false);
    }
    let mut body = Vec::new();
    let vectors = embedding.vectors.iter().map(|vector| vector.as_deref().expect("all inputs have ended"));
    let name = &embedding.served.model.name;
    api::write_embeddings(&mut body, name, vectors, wanted.encoding_format, embedding.prompt_tokens);
    embedding.record();
    count(shard, 200);
    http::write_json(&mut writer.out, request, id, 200, &body);
    Ok(true)
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
    /// Inputs that were sent to the leader so far, and how many of them have not ended.
    sent: usize,
    running: Vec<StreamId>,
    vectors: Vec<Option<Box<[f32]>>>,
    inbox: Rc<Inbox>,
    priority: Priority,
    prompt_tokens: u64,
    received_unix_ms: u64,
    arrival: Instant,
    admitted: Option<Instant>,
    failed: bool,
}

impl<'a> Embedding<'a> {
    fn new(
        shard: &'a Rc<Shard>,
        peer: &'a Rc<Peer>,
        served: Rc<Served>,
        id: &str,
        inputs: Vec<Vec<u32>>,
        (arrival, priority): (Instant, Priority),
    ) -> Self {
        let prompt_tokens = inputs.iter().map(|tokens| tokens.len() as u64).sum();
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
            priority,
            prompt_tokens,
            received_unix_ms: u64::try_from(unix_time().as_millis()).unwrap_or(u64::MAX),
            arrival,
            admitted: None,
            failed: false,
        }
    }

    /// Has all inputs computed. `Ok(false)` where the client is gone.
    async fn collect(&mut self, deadline: Instant) -> Result<bool, ApiError> {
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
            if Instant::now() >= deadline {
                return Err(ApiError::new(408, Code::InferenceFailed, "the request took longer than its timeout"));
            }
            self.peer.wake_at.set(Some(deadline));
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
            priority: self.priority,
            ..NewSequence::new(stream, tokens, 0, SamplingParams::default(), self.arrival)
        };
        shard.streams.borrow_mut().insert(stream, (Rc::clone(&self.inbox), self.sent));
        let sent = shard.start(Command::Start { generation: self.served.id, sequence: Box::new(sequence) });
        if sent {
            self.running.push(stream);
            self.sent += 1;
        } else {
            shard.streams.borrow_mut().remove(&stream);
        }
        sent
    }

    fn take(&mut self, index: usize, event: Event, at: Instant) -> Result<(), ApiError> {
        let stream = event.stream();
        match event {
            Event::Admitted(_) => self.admitted = self.admitted.or(Some(at)),
            Event::Embedding { vector, .. } => {
                self.running.retain(|running| *running != stream);
                self.vectors[index] = Some(vector);
            }
            Event::Refused(_) => {
                self.shard.metrics.requests.outcomes.refused_queue.add(1);
                return Err(queue_full());
            }
            Event::Cached { .. } => {}
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
        let admitted = self.admitted.unwrap_or(self.arrival);
        requests.queue.observe_duration(admitted.saturating_duration_since(self.arrival));
        requests.prefill.observe_duration(admitted.elapsed());
        requests.end_to_end.observe_duration(self.arrival.elapsed());
    }

    fn receipt(&self) -> Receipt {
        let us = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let done = self.vectors.iter().all(Option::is_some);
        Receipt {
            id: self.id,
            generation: self.served.id.0,
            outcome: match (self.failed, done) {
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
            queue_us: self.admitted.map_or(0, |at| us(at.saturating_duration_since(self.arrival))),
            first_token_us: None,
            total_us: us(self.arrival.elapsed()),
        }
    }
}

impl Drop for Embedding<'_> {
    fn drop(&mut self) {
        for stream in &self.running {
            self.shard.cancel(*stream);
        }
        self.shard.control.receipts[self.shard.index].write(&self.receipt());
        let active = &self.shard.metrics.requests.active;
        active.set(active.get() - 1);
    }
}
