//! Other shards that compute sequences of this one, since their caches know how these begin.
//!
//! A request stays on the shard that has its connection: only its sequences go, by the rings of [`crate::engine::Host`],
//! and only where that is sooner. What the caches know is read from [`crate::kv::KnownBlocks`], the rest from what every
//! shard counts anyway.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::Duration;

use super::admission::Prospect;
use super::{Served, Shard, Standing};
use crate::engine::{Command, Event, GenerationId, Host};
use crate::kv::block_hashes;
use crate::schedule::{NewSequence, StreamId};

/// The other shards and the streams that they have.
pub(super) struct Hosts {
    /// By shard; none for this one, and none at all where caches are not shared.
    hosts: Vec<Option<Host>>,
    /// Most streams at each.
    streams_max: usize,
    placed: RefCell<HashMap<StreamId, usize>>,
    counts: Vec<Cell<usize>>,
}

impl Hosts {
    pub(super) fn new(hosts: Vec<Option<Host>>, streams_max: usize) -> Self {
        let counts = hosts.iter().map(|_| Cell::new(0)).collect();
        Self { hosts, streams_max, placed: RefCell::default(), counts }
    }

    /// Whether none has sent anything that was not taken yet.
    pub(super) fn are_quiet(&self) -> bool {
        self.hosts.iter().flatten().all(Host::is_quiet)
    }

    /// Streams that are on other shards.
    pub(super) fn placed(&self) -> usize {
        self.placed.borrow().len()
    }

    /// Where a stream is, if not here.
    pub(super) fn host_of(&self, stream: StreamId) -> Option<usize> {
        self.placed.borrow().get(&stream).copied()
    }

    /// The shard that gives the first token behind `tokens` soonest, if that is not this one.
    pub(super) fn choose(&self, shard: &Shard, served: &Served, tokens: &[u32]) -> Option<usize> {
        // The last token is computed in any case.
        let before_last = tokens.get(..tokens.len().checked_sub(1)?)?;
        if self.hosts.is_empty() || served.known.is_empty() || before_last.len() < kernels::attention::BLOCK {
            return None;
        }
        let hashes: Vec<u64> = block_hashes(before_last).collect();
        let known = |index: usize| served.known[index].positions(&hashes);
        let own_known = known(shard.index);
        let mut own = None;
        let mut soonest: Option<(usize, Duration)> = None;
        for (index, host) in self.hosts.iter().enumerate() {
            let Some(host) = host else { continue };
            let known = known(index);
            if known <= own_known || !self.has_room(index, host) {
                continue;
            }
            let here = own.get_or_insert_with(|| self.here(shard, tokens.len(), own_known));
            let there = self.there(shard, index, tokens.len() - known);
            let Some(first_token) = shard.admission.first_token_there(here, &there) else { continue };
            if soonest.is_none_or(|(_, time)| first_token < time) {
                soonest = Some((index, first_token));
            }
        }
        soonest.map(|(index, _)| index)
    }

    /// Of a prompt of so many `tokens`, which are counted as waiting here already.
    fn here(&self, shard: &Shard, tokens: usize, known: usize) -> Prospect {
        let standing = shard.standing_of(shard.index);
        let sequences = standing.sequences.max(shard.streams.borrow().len() - self.placed());
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

    /// Whether one more stream, and the cancellations of all that are there, have room.
    fn has_room(&self, index: usize, host: &Host) -> bool {
        let count = self.counts[index].get();
        count < self.streams_max && host.room() > count + 1
    }

    /// Sends a sequence to the shard that [`Hosts::choose`] named; it comes back where there is no room any more.
    pub(super) fn start(
        &self,
        index: usize,
        generation: GenerationId,
        sequence: Box<NewSequence>,
    ) -> Result<(), Box<NewSequence>> {
        let host = self.hosts[index].as_ref().expect("it was chosen");
        if !self.has_room(index, host) {
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
