//! A step that a device was given, and which sequences wait for it.

use std::time::{Duration, Instant};

use super::super::device::{Want, token_of};
use crate::forward::{Segment, Step};
use crate::kv::BlockTables;
use crate::schedule::{Scheduler, Sequence, StepRows, StreamId};

/// A step that the device was given.
pub(super) struct Flight {
    pub(super) step: Step,
    pub(super) wants: Vec<Want>,
    /// Rows of each segment whose attention is computed on tensor cores, the first ones.
    pub(super) tensor_rows: Vec<usize>,
    /// Who has the slot of each segment: it may be another stream's when the step is done.
    pub(super) streams: Vec<StreamId>,
    pub(super) begun: Instant,
    pub(super) expected: Duration,
    /// Rows that want all scores have sets of allowed tokens to compute before.
    pub(super) sets_due: bool,
    /// It may have been done for long before that was seen.
    pub(super) is_unseen: bool,
}

impl Flight {
    pub(super) fn new(slots: usize, now: Instant) -> Self {
        Self {
            step: Step::default(),
            wants: Vec::with_capacity(slots),
            tensor_rows: Vec::with_capacity(slots),
            streams: Vec::with_capacity(slots),
            begun: now,
            expected: Duration::ZERO,
            sets_due: false,
            is_unseen: false,
        }
    }

    /// Of nobody.
    pub(super) fn clear(&mut self) {
        self.step.clear();
        self.wants.clear();
        self.streams.clear();
        self.tensor_rows.clear();
    }

    /// Sequences that go on after this step whatever token it gives them, unless that token ends them; their rows are added.
    pub(super) fn continuing(&self, scheduler: &Scheduler, rows: &mut StepRows) -> usize {
        let with_logits = self.step.segments.iter().zip(&self.streams).filter(|(s, _)| has_logits(&self.step, s));
        let goes_on = with_logits.filter(|(s, stream)| goes_on(scheduler.sequence(s.slot), s, **stream));
        goes_on.inspect(|(segment, _)| rows.add_decode(segment.first_position + segment.rows, 1)).count()
    }

    /// Adds to `next`, which follows this step, a row for each sequence that goes on.
    pub(super) fn extend(
        &self,
        scheduler: &mut Scheduler,
        tables: &mut BlockTables,
        next: &mut Self,
        ranked_max: usize,
    ) {
        let mut entries = 0;
        for (segment, stream) in self.step.segments.iter().zip(&self.streams) {
            if !has_logits(&self.step, segment) {
                continue;
            }
            entries += 1;
            // One whose token is chosen here goes on once it is.
            if self.wants[entries - 1] == Want::Scores {
                continue;
            }
            if !goes_on(scheduler.sequence(segment.slot), segment, *stream) {
                continue;
            }
            let sequence = scheduler.sequence_mut(segment.slot).expect("it goes on");
            // Without a block for it, it waits like others that have none.
            if tables.extend(segment.slot, sequence.computed + 1).is_err() {
                continue;
            }
            next.step.push(segment.slot, sequence.computed, &[token_of(entries - 1)], true);
            next.streams.push(sequence.stream);
            next.tensor_rows.push(0);
            sequence.computed += 1;
            next.wants.push(want(sequence, sequence.computed, ranked_max));
        }
    }
}

/// What is wanted of the logits that give a sequence's token at `position`; draws among more than `ranked_max` best are made here.
pub(super) fn want(sequence: &Sequence, position: usize, ranked_max: usize) -> Want {
    let (sampling, position) = (&sequence.sampling, position as u64);
    if sequence.is_guided() {
        return Want::Scores;
    }
    if sampling.takes_best() {
        return Want::Best;
    }
    if let Some(draw) = sampling.plain_draw(position) {
        return Want::Drawn(draw);
    }
    let ranked = sampling.ranked_draw(position).filter(|ranked| ranked.count as usize <= ranked_max);
    ranked.map_or(Want::Scores, Want::Ranked)
}

/// Whether the logits of a segment's last row are wanted.
pub(super) fn has_logits(step: &Step, segment: &Segment) -> bool {
    step.logits.binary_search(&(segment.first_row + segment.rows - 1)).is_ok()
}

/// Whether the sequence of a slot is `stream`'s and its next token is the one that `segment` gives. It may have been pushed
/// out and come back since: then only what it still lacks is taken.
pub(super) fn waits_for(sequence: Option<&Sequence>, segment: &Segment, stream: StreamId) -> bool {
    let end = segment.first_position + segment.rows;
    sequence.is_some_and(|sequence| sequence.stream == stream && sequence.tokens.len() == end)
}

/// Whether it also has room for a token after that one, and nothing else to compute before.
fn goes_on(sequence: Option<&Sequence>, segment: &Segment, stream: StreamId) -> bool {
    let has_room = |sequence: &Sequence| sequence.generated() + 1 < sequence.tokens_max && sequence.pending() == 0;
    // The token of one with a guide is not known before it is chosen here.
    waits_for(sequence, segment, stream) && sequence.is_some_and(|sequence| has_room(sequence) && !sequence.is_guided())
}
