//! What a request's answers must look like, compiled by a thread of its own while the shard goes on.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use net::api::GenerateRequest;
use net::error::{ApiError, Code};

use super::generation::{Clock, Deadlines, lost};
use super::peer::Peer;
use super::{RETRY_DRAINING, Shard};
use crate::executor::Signal;
use crate::guide::{Compiler, Guide, GuideError};
use crate::model::Model;

/// The requests of a shard that wait for the compiler.
pub(super) struct Guides {
    compiler: Compiler,
    /// Replies that have come in all, and those that were noticed.
    replies: Arc<AtomicU64>,
    noticed: Cell<u64>,
    waiting: RefCell<HashMap<u64, Rc<Signal>>>,
}

impl Guides {
    pub(super) fn new(compiler: Compiler) -> Self {
        Self { compiler, replies: Arc::default(), noticed: Cell::new(0), waiting: RefCell::default() }
    }

    /// Whether replies have come that nobody was woken for.
    pub(super) fn have_come(&self) -> bool {
        self.replies.load(Ordering::SeqCst) != self.noticed.get()
    }

    /// Wakes those who wait, if any reply has come.
    pub(super) fn deliver(&self) {
        if self.have_come() {
            self.noticed.set(self.replies.load(Ordering::SeqCst));
            self.waiting.borrow().values().for_each(|wake| wake.notify());
        }
    }

    /// Wakes those who wait, as the server ends.
    pub(super) fn cut(&self) {
        self.waiting.borrow().values().for_each(|wake| wake.notify());
    }
}

/// One who waits, until it is dropped.
struct Waiting<'a>(&'a Guides, u64);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.borrow_mut().remove(&self.1);
    }
}

/// A guide for each of `count` answers, none where they may be anything; `None` where the client has gone meanwhile.
///
/// # Errors
/// 400 with the reason where the constraint can't be compiled; 503 where too many are compiled already, or other answers'
/// guides take the memory for all.
pub(super) async fn make(
    shard: &Shard,
    peer: &Peer,
    model: &Model,
    generate: &GenerateRequest,
    count: usize,
    deadlines: &Deadlines,
) -> Result<Option<Vec<Guide>>, ApiError> {
    let Some(constraint) = &generate.constraint else { return Ok(Some(Vec::new())) };
    let guides = &shard.guides;
    let replies = (&guides.replies, &shard.doorbell);
    let Some(mut compiled) = guides.compiler.compile(model, constraint.clone(), count, replies) else {
        let message = "too many grammars and schemas are being compiled";
        return Err(ApiError::unavailable(message, RETRY_COMPILER));
    };
    let clock = Clock::new(Instant::now());
    let waiting = Waiting(guides, shard.next_id());
    guides.waiting.borrow_mut().insert(waiting.1, Rc::clone(&peer.wake));
    loop {
        // Asked before the reply is looked for: what is abandoned after its reply has one.
        let is_abandoned = compiled.is_abandoned();
        match compiled.pop() {
            Ok(made) => {
                let refused = |error: GuideError| match error {
                    GuideError::Memory => no_memory(),
                    error => ApiError::validation(error.field(generate.constrained_by, generate.is_response()), error),
                };
                return made.map(Some).map_err(refused);
            }
            Err(_) if is_abandoned => return Err(lost()),
            Err(_) => {}
        }
        if shard.control.is_cutting() {
            return Err(ApiError::unavailable("the server is shutting down", RETRY_DRAINING));
        }
        if let Some(error) = deadlines.overdue(&clock, Instant::now()) {
            return Err(error);
        }
        if peer.gone.get() {
            return Ok(None);
        }
        peer.wake_at.set(Some(deadlines.next(&clock)));
        peer.wake.wait().await;
        peer.wake_at.set(None);
    }
}

/// 400: the answer can't go on within the work that is allowed for a token.
pub(super) fn too_complex(field: &'static str) -> ApiError {
    ApiError::validation(field, "became too complex at this place of the answer: simplify it")
}

/// 503: the guides of other answers take the memory for all.
fn no_memory() -> ApiError {
    let message = "the grammars and schemas of other answers take all the memory that they may";
    ApiError::new(503, Code::MemoryExhausted, message).with_retry_after(RETRY_MEMORY)
}

/// Some of these answers have ended by then.
const RETRY_MEMORY: Duration = Duration::from_secs(5);
/// Nothing takes the compiler longer, about.
const RETRY_COMPILER: Duration = Duration::from_secs(1);
