//! Whether a request for tokens is taken: by this shard, or by another where this one has no room or time for it.

use std::time::Instant;

use net::api;
use net::error::ApiError;

use super::{Deadlines, priority_of};
use crate::schedule::Priority;
use crate::shard::Shard;
use crate::shard::admission::{Estimate, Refusal};

/// Refuses what there is no room for, before its text is cut into tokens.
pub(in crate::shard) fn check_room(shard: &Shard, wanted: usize, priority: api::Priority) -> Result<(), ApiError> {
    let room = shard.admission.check_room(&shard.standing(), wanted, priority_of(priority));
    room.map_err(|refusal| refuse(shard, refusal))
}

/// Refuses prompts of so many tokens that would come too late.
pub(in crate::shard) fn check_time(
    shard: &Shard,
    tokens: usize,
    deadlines: &Deadlines,
    arrival: Instant,
) -> Result<(), ApiError> {
    let in_time = |estimate: &Estimate| !deadlines.will_miss(arrival, estimate);
    time_here(shard, tokens, &in_time).map_err(|refusal| refuse(shard, refusal))
}

fn time_here(shard: &Shard, tokens: usize, in_time: &impl Fn(&Estimate) -> bool) -> Result<(), Refusal> {
    let estimate = shard.admission.estimate(&shard.standing(), tokens);
    if in_time(&estimate) { shard.admission.check_tokens(tokens) } else { Err(Refusal::Late(estimate.first_token)) }
}

/// Refuses what no shard has room for, as [`check_room`]; whether only another one has.
pub(super) fn check_room_anywhere(shard: &Shard, wanted: usize, priority: Priority) -> Result<bool, ApiError> {
    match shard.admission.check_room(&shard.standing(), wanted, priority) {
        Ok(()) => Ok(false),
        Err(_) if shard.hosts.would_take(shard, (wanted, 0), priority, |_| true) => Ok(true),
        Err(refusal) => Err(refuse(shard, refusal)),
    }
}

/// Refuses so many prompt tokens of `wanted` sequences that would come too late on every shard that has room; whether
/// another shard than this has to compute them. `elsewhere`: this one has no room.
pub(super) fn check_time_anywhere(
    shard: &Shard,
    (wanted, priority, elsewhere): (usize, Priority, bool),
    tokens: usize,
    deadlines: &Deadlines,
    arrival: Instant,
) -> Result<bool, ApiError> {
    let in_time = |estimate: &Estimate| !deadlines.will_miss(arrival, estimate);
    let here = time_here(shard, tokens, &in_time);
    if here.is_ok() && !elsewhere {
        return Ok(false);
    }
    if shard.hosts.would_take(shard, (wanted, tokens), priority, in_time) {
        return Ok(true);
    }
    Err(refuse(shard, here.err().unwrap_or(Refusal::QueueFull)))
}

fn refuse(shard: &Shard, refusal: Refusal) -> ApiError {
    let outcomes = &shard.metrics.requests.outcomes;
    let count = match refusal {
        Refusal::QueueFull | Refusal::LowPriority => &outcomes.refused_queue,
        Refusal::Memory => &outcomes.refused_memory,
        Refusal::Late(_) => &outcomes.refused_deadline,
    };
    count.add(1);
    refusal.into()
}
