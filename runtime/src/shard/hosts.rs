//! Other shards that compute sequences of this one, since their caches know how these begin, or they have a place where
//! this one has none.
//!
//! A request stays on the shard that has its connection: only its sequences go, by the rings of [`crate::engine::Host`],
//! and only where that is sooner. What the caches know is read from [`crate::kv::KnownBlocks`], the rest from what every
//! shard counts anyway.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::Duration;

use super::admission::{Estimate, Prospect};
use super::{Served, Shard, Standing};
use crate::engine::{Command, Event, GenerationId, Host};
use crate::kv::block_hashes;
use crate::schedule::{NewSequence, Priority, StreamId};

/// The other shards and the streams that they have.
pub(super) struct Hosts {
    /// By shard; none for this one.
    hosts: Vec<Option<Host>>,
    /// Most streams at each.
    streams_max: usize,
    placed: RefCell<HashMap<StreamId, usize>>,
    counts: Vec<Cell<usize>>,
    /// How often each had given up on this shard when it was last looked at.
    cuts: Vec<Cell<u64>>,
}

impl Hosts {
    pub(super) fn new(hosts: Vec<Option<Host>>, streams_max: usize) -> Self {
        let counts = hosts.iter().map(|_| Cell::new(0)).collect();
        let cuts = hosts.iter().map(|_| Cell::new(0)).collect();
        Self { hosts, streams_max, placed: RefCell::default(), counts, cuts }
    }

    /// Whether none has sent anything that was not taken yet.
    pub(super) fn are_quiet(&self) -> bool {
        self.others().all(|(index, host)| host.is_quiet() && host.cuts() == self.cuts[index].get())
    }

    /// A shard that has given up on this one since this was last asked.
    pub(super) fn take_cut(&self) -> Option<usize> {
        let (index, host) = self.others().find(|(index, host)| host.cuts() != self.cuts[*index].get())?;
        self.cuts[index].set(host.cuts());
        Some(index)
    }

    /// Streams that are on other shards.
    pub(super) fn placed(&self) -> usize {
        self.placed.borrow().len()
    }

    /// Where a stream is, if not here.
    pub(super) fn host_of(&self, stream: StreamId) -> Option<usize> {
        self.placed.borrow().get(&stream).copied()
    }

    fn others(&self) -> impl Iterator<Item = (usize, &Host)> {
        self.hosts.iter().enumerate().filter_map(|(index, host)| Some((index, host.as_ref()?)))
    }

    /// Whether another shard has room for `wanted` sequences of `tokens` prompt tokens in all, where this one has none;
    /// `in_time` judges when they would be computed.
    pub(super) fn would_take(
        &self,
        shard: &Shard,
        (wanted, tokens): (usize, usize),
        priority: Priority,
        in_time: impl Fn(&Estimate) -> bool,
    ) -> bool {
        self.others().filter(|(index, host)| self.has_room(*index, host, wanted)).any(|(index, _)| {
            let there = self.there(shard, index, tokens);
            shard.admission.estimate_there(&there, wanted, priority).is_some_and(|estimate| in_time(&estimate))
        })
    }

    /// The shard that gives the first token behind `tokens` soonest, if that is not this one. Others are asked whose caches
    /// know more of them; all, where they would wait for a place here or this shard refuses them (`must_go`).
    pub(super) fn choose(
        &self,
        shard: &Shard,
        served: &Served,
        tokens: &[u32],
        (priority, must_go): (Priority, bool),
    ) -> Option<usize> {
        self.others().next()?;
        // Every shard closes a generation once none takes it any more: another may have let go of one that this one still has.
        if !shard.models.is_routed(served.id) {
            return None;
        }
        // The last token is computed in any case.
        let before_last = tokens.get(..tokens.len().checked_sub(1)?)?;
        let hashes: Vec<u64> = if served.known.is_empty() { vec![] } else { block_hashes(before_last).collect() };
        let known = |index: usize| served.known.get(index).map_or(0, |known| known.positions(&hashes));
        let own_known = known(shard.index);
        let here = self.here(shard, tokens.len(), own_known);
        let may_go = must_go || here.standing.must_wait();
        let mut soonest: Option<(usize, Duration)> = None;
        for (index, host) in self.others() {
            let known = known(index);
            if known <= own_known && !may_go || !self.has_room(index, host, 1) {
                continue;
            }
            let there = self.there(shard, index, tokens.len() - known);
            let Some(estimate) = shard.admission.estimate_there(&there, 1, priority) else { continue };
            // Here it would not come at all.
            let sooner =
                if must_go { Some(estimate.first_token) } else { shard.admission.first_token_there(&here, &there) };
            let Some(first_token) = sooner else { continue };
            if soonest.is_none_or(|(_, time)| first_token < time) {
                soonest = Some((index, first_token));
            }
        }
        soonest.map(|(index, _)| index)
    }

    /// Of a prompt of so many `tokens`, which are counted as waiting here already.
    fn here(&self, shard: &Shard, tokens: usize, known: usize) -> Prospect {
        let standing = shard.standing_of(shard.index);
        // The one to be placed is among them.
        let sequences = standing.sequences.max(shard.own_streams().saturating_sub(1));
        let tokens_ahead = shard.admission.pending_tokens().saturating_sub(tokens);
        Prospect { standing: Standing { sequences, ..standing }, tokens_ahead, tokens: tokens - known }
    }

    fn there(&self, shard: &Shard, index: usize, tokens: usize) -> Prospect {
        let standing = shard.standing_of(index);
        // Those on their way are not counted there yet.
        let sequences = standing.sequences.max(self.counts[index].get());
        let tokens_ahead = shard.control.metrics[index].step.prompt_tokens.get();
        let tokens_ahead = usize::try_from(tokens_ahead).unwrap_or(usize::MAX);
        Prospect { standing: Standing { sequences, ..standing }, tokens_ahead, tokens }
    }

    /// Whether so many more streams, and the cancellations of all that are there, have room.
    fn has_room(&self, index: usize, host: &Host, wanted: usize) -> bool {
        let count = self.counts[index].get();
        count + wanted <= self.streams_max && host.room() > count + wanted
    }

    /// Sends a sequence to the shard that [`Hosts::choose`] named; it comes back where there is no room any more.
    pub(super) fn start(
        &self,
        index: usize,
        generation: GenerationId,
        sequence: Box<NewSequence>,
    ) -> Result<(), Box<NewSequence>> {
        let host = self.hosts[index].as_ref().expect("it was chosen");
        if !self.has_room(index, host, 1) {
            return Err(sequence);
        }
        self.placed.borrow_mut().insert(sequence.stream, index);
        self.counts[index].set(self.counts[index].get() + 1);
        host.send(Command::Resume { generation, sequence });
        Ok(())
    }

    /// Whether a stream is cancelled on another shard; `false` where it is on none.
    pub(super) fn cancel(&self, stream: StreamId) -> bool {
        let Some(index) = self.forget(stream) else { return false };
        self.hosts[index].as_ref().expect("it has the stream").send(Command::Cancel(stream));
        true
    }

    fn forget(&self, stream: StreamId) -> Option<usize> {
        let index = self.placed.borrow_mut().remove(&stream)?;
        self.counts[index].set(self.counts[index].get() - 1);
        Some(index)
    }

    /// Takes what the others have sent.
    pub(super) fn receive(&self, mut take: impl FnMut(Event)) {
        for host in self.hosts.iter().flatten() {
            let mut events = host.events.borrow_mut();
            while let Ok(event) = events.pop() {
                if event.is_last() {
                    self.forget(event.stream());
                }
                take(event);
            }
        }
    }
}
