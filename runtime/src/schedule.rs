//! Which rows the next step computes: pure logic, no clock, no threads.
//!
//! Sequences wait in bounded order of priority and arrival, take a slot and all the KV blocks that they can need,
//! then go through their prompt in chunks and through their answer a row a step. Decode rows come first in every step;
//! chunks fill what the row budget leaves.

use std::collections::VecDeque;

use crate::forward::Step;
use crate::kv::BlockTables;
use crate::sampler::{History, SamplingParams};
use crate::speculate::Draft;

/// Names a stream of tokens between executor and leader; the executor gives them out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamId(pub u64);

/// Who goes first among those that wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    Low,
    #[default]
    Normal,
    High,
}

/// What a stream asks for. `tokens` is not empty; with those still to come it is within the context.
#[derive(Debug)]
pub struct NewSequence {
    pub stream: StreamId,
    /// The prompt, then what another device has given of the answer already.
    pub tokens: Vec<u32>,
    /// How many of `tokens` belong to the answer.
    pub generated: usize,
    /// Most tokens of the answer, those given included.
    pub tokens_max: usize,
    pub priority: Priority,
    pub sampling: SamplingParams,
    /// Whether a token that ends the generation ends the sequence.
    pub stop_at_end: bool,
}

/// A sequence in a slot.
pub struct Sequence {
    pub stream: StreamId,
    /// Prompt and answer so far.
    pub tokens: Vec<u32>,
    pub prompt_len: usize,
    /// Positions whose keys and values are in the cache.
    pub computed: usize,
    pub tokens_max: usize,
    pub priority: Priority,
    pub sampling: SamplingParams,
    pub stop_at_end: bool,
    /// What penalties look at.
    pub history: History,
    /// What may come next.
    pub draft: Draft,
}

impl Sequence {
    /// Tokens of the answer so far.
    #[must_use]
    pub fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Adds a token of the answer.
    pub fn push(&mut self, token: u32) {
        self.tokens.push(token);
        self.history.push_output(token);
    }

    /// Says which logits of the row just added the sampler will look at.
    fn want(&self, step: &mut Step) {
        if let Some(reach) = self.sampling.reach() {
            step.want_best(reach, self.sampling.changed(&self.history));
        }
    }

    /// Tokens whose keys and values are not in the cache: one while it decodes.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }
}

/// The queue is full; the sequence comes back.
#[derive(Debug)]
pub struct QueueFull(pub NewSequence);

/// Slots, queue and the order among them.
pub struct Scheduler {
    slots: Vec<Option<Sequence>>,
    waiting: VecDeque<NewSequence>,
    waiting_max: usize,
    /// Slots in order of arrival: who gets prefill rows first.
    order: Vec<usize>,
}

impl Scheduler {
    /// For `slots` sequences at a time and `waiting_max` more in the queue.
    #[must_use]
    pub fn new(slots: usize, waiting_max: usize) -> Self {
        Self {
            slots: (0..slots).map(|_| None).collect(),
            waiting: VecDeque::with_capacity(waiting_max + slots),
            waiting_max,
            order: Vec::with_capacity(slots),
        }
    }

    /// Takes a sequence into the queue. Free slots count as places in it, since those who wait move on at the next
    /// [`Scheduler::admit`] only, and many may come before that.
    ///
    /// # Errors
    /// When the queue is full.
    pub fn submit(&mut self, sequence: NewSequence) -> Result<(), QueueFull> {
        if self.waiting.len() + self.order.len() >= self.waiting_max + self.slots.len() {
            return Err(QueueFull(sequence));
        }
        let behind = self.waiting.iter().rposition(|other| other.priority >= sequence.priority);
        self.waiting.insert(behind.map_or(0, |at| at + 1), sequence);
        Ok(())
    }

    /// Takes in a sequence that was accepted before, ahead of those of its priority that wait. Never refused: what
    /// other devices hold is bounded.
    pub fn resume(&mut self, sequence: NewSequence) {
        let ahead = self.waiting.iter().rposition(|other| other.priority > sequence.priority);
        self.waiting.insert(ahead.map_or(0, |at| at + 1), sequence);
    }

    /// Takes everything out, as sequences that can be resumed elsewhere: those in slots first, by age.
    pub fn take_all(&mut self, kv: &mut BlockTables) -> Vec<NewSequence> {
        let mut taken = Vec::with_capacity(self.order.len() + self.waiting.len());
        for slot in std::mem::take(&mut self.order) {
            let sequence = self.slots[slot].take().expect("ordered slots are taken");
            kv.release(slot);
            taken.push(sequence.into_new());
        }
        taken.extend(self.waiting.drain(..));
        taken
    }

    /// Forgets a stream wherever it is; its blocks are free at once. Unknown streams have ended already.
    pub fn cancel(&mut self, stream: StreamId, kv: &mut BlockTables) {
        self.waiting.retain(|waiting| waiting.stream != stream);
        let slot = self.slots.iter().position(|slot| slot.as_ref().is_some_and(|s| s.stream == stream));
        if let Some(slot) = slot {
            self.finish(slot, kv);
        }
    }

    /// Frees a slot and its blocks.
    pub fn finish(&mut self, slot: usize, kv: &mut BlockTables) {
        self.slots[slot] = None;
        self.order.retain(|other| *other != slot);
        kv.release(slot);
    }

    /// Moves waiting sequences into free slots, first come first served within a priority, as far as slots and KV
    /// blocks go. Calls `admitted` for each.
    pub fn admit(&mut self, kv: &mut BlockTables, mut admitted: impl FnMut(StreamId)) {
        while let Some(next) = self.waiting.front() {
            let Some(slot) = self.slots.iter().position(Option::is_none) else { return };
            if kv.reserve(slot, next.positions_max()).is_err() {
                return;
            }
            let next = self.waiting.pop_front().expect("looked at above");
            admitted(next.stream);
            self.slots[slot] = Some(Sequence::start(next));
            self.order.push(slot);
        }
    }

    /// Fills `step` with decode rows and their drafts, then with prompt chunks of at most `prefill_rows` in all, within `rows_max`.
    /// `false` where there is nothing to compute.
    pub fn form(&self, step: &mut Step, rows_max: usize, prefill_rows: usize) -> bool {
        step.clear();
        for &slot in &self.order {
            let sequence = self.slots[slot].as_ref().expect("ordered slots are taken");
            if sequence.pending() == 1 && step.tokens.len() < rows_max {
                step.push(slot, sequence.computed, &sequence.tokens[sequence.computed..], true);
                sequence.want(step);
                for token in sequence.draft.rows() {
                    step.push_draft(*token);
                    sequence.want(step);
                }
            }
        }
        let mut budget = prefill_rows.min(rows_max - step.tokens.len());
        for &slot in &self.order {
            let sequence = self.slots[slot].as_ref().expect("ordered slots are taken");
            let pending = sequence.pending();
            if pending > 1 && budget > 0 {
                let chunk = pending.min(budget);
                let tokens = &sequence.tokens[sequence.computed..sequence.computed + chunk];
                step.push(slot, sequence.computed, tokens, chunk == pending);
                if chunk == pending {
                    sequence.want(step);
                }
                budget -= chunk;
            }
        }
        !step.tokens.is_empty()
    }

    /// The sequence in `slot`.
    #[must_use]
    pub fn sequence(&self, slot: usize) -> Option<&Sequence> {
        self.slots[slot].as_ref()
    }

    /// The sequence in `slot`, to advance it.
    pub fn sequence_mut(&mut self, slot: usize) -> Option<&mut Sequence> {
        self.slots[slot].as_mut()
    }

    /// Sequences in slots.
    #[must_use]
    pub fn running(&self) -> usize {
        self.order.len()
    }

    /// Sequences in the queue.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The sequences that decode, by slot.
    pub fn decoding_mut(&mut self) -> impl Iterator<Item = &mut Sequence> {
        self.slots.iter_mut().flatten().filter(|sequence| sequence.pending() == 1)
    }

    /// Whether any running sequence decodes, that is, would feel a long step.
    #[must_use]
    pub fn decoding(&self) -> usize {
        self.slots.iter().flatten().filter(|sequence| sequence.pending() == 1).count()
    }
}

impl Sequence {
    fn start(new: NewSequence) -> Self {
        let mut tokens = new.tokens;
        let prompt_len = tokens.len() - new.generated;
        tokens.reserve_exact(new.tokens_max - new.generated);
        let mut history = History::with_capacity(tokens.capacity());
        history.push_prompt(&tokens[..prompt_len]);
        for &token in &tokens[prompt_len..] {
            history.push_output(token);
        }
        Self {
            stream: new.stream,
            tokens,
            prompt_len,
            computed: 0,
            tokens_max: new.tokens_max,
            priority: new.priority,
            sampling: new.sampling,
            stop_at_end: new.stop_at_end,
            history,
            draft: Draft::default(),
        }
    }

    fn into_new(self) -> NewSequence {
        NewSequence {
            stream: self.stream,
            generated: self.generated(),
            tokens: self.tokens,
            tokens_max: self.tokens_max,
            priority: self.priority,
            sampling: self.sampling,
            stop_at_end: self.stop_at_end,
        }
    }
}

impl NewSequence {
    /// Positions that the sequence can come to hold.
    #[must_use]
    pub fn positions_max(&self) -> usize {
        self.tokens.len() - self.generated + self.tokens_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(slots: usize, blocks: usize) -> BlockTables {
        BlockTables::new(128, slots, blocks)
    }

    fn sequence(id: u64, prompt: usize, tokens_max: usize, priority: Priority) -> NewSequence {
        NewSequence {
            stream: StreamId(id),
            tokens: (0..prompt as u32).collect(),
            generated: 0,
            tokens_max,
            priority,
            sampling: SamplingParams::default(),
            stop_at_end: true,
        }
    }

    fn submit(scheduler: &mut Scheduler, id: u64, prompt: usize, tokens_max: usize) {
        scheduler.submit(sequence(id, prompt, tokens_max, Priority::Normal)).unwrap();
    }

    fn admitted(scheduler: &mut Scheduler, kv: &mut BlockTables) -> Vec<u64> {
        let mut ids = Vec::new();
        scheduler.admit(kv, |stream| ids.push(stream.0));
        ids
    }

    /// Pretends that the step was computed and every complete sequence got token 7.
    fn compute(scheduler: &mut Scheduler, step: &Step) {
        for segment in &step.segments {
            let sequence = scheduler.sequence_mut(segment.slot).unwrap();
            assert_eq!(segment.first_position, sequence.computed);
            sequence.computed += segment.rows;
            if sequence.computed == sequence.tokens.len() {
                sequence.push(7);
            }
        }
    }

    #[test]
    fn a_full_queue_gives_the_sequence_back_and_free_slots_are_places_in_it() {
        let (mut scheduler, mut kv) = (Scheduler::new(1, 1), cache(1, 4));
        submit(&mut scheduler, 1, 4, 4);
        submit(&mut scheduler, 2, 4, 4);
        let refused = scheduler.submit(sequence(3, 4, 4, Priority::High)).unwrap_err();
        assert_eq!(refused.0.stream, StreamId(3));
        assert_eq!(admitted(&mut scheduler, &mut kv), [1]);
        assert!(scheduler.submit(sequence(3, 4, 4, Priority::High)).is_err());
        scheduler.cancel(StreamId(1), &mut kv);
        submit(&mut scheduler, 3, 4, 4);

        let mut scheduler = Scheduler::new(1, 0);
        submit(&mut scheduler, 1, 4, 4);
        assert!(scheduler.submit(sequence(2, 4, 4, Priority::High)).is_err());
    }

    #[test]
    fn higher_priorities_go_first_and_equals_in_order_of_arrival() {
        let (mut scheduler, mut kv) = (Scheduler::new(4, 8), cache(4, 16));
        for (id, priority) in [(1, Priority::Low), (2, Priority::Normal), (3, Priority::High), (4, Priority::Normal)] {
            scheduler.submit(sequence(id, 4, 4, priority)).unwrap();
        }
        assert_eq!(admitted(&mut scheduler, &mut kv), [3, 2, 4, 1]);
    }

    #[test]
    fn decode_rows_come_before_chunks_and_the_budget_bounds_the_chunks() {
        let (mut scheduler, mut kv) = (Scheduler::new(3, 8), cache(3, 12));
        let mut step = Step::default();
        submit(&mut scheduler, 1, 3, 8);
        admitted(&mut scheduler, &mut kv);
        assert!(scheduler.form(&mut step, 64, 64));
        compute(&mut scheduler, &step);
        submit(&mut scheduler, 2, 50, 8);
        submit(&mut scheduler, 3, 10, 8);
        admitted(&mut scheduler, &mut kv);
        assert!(scheduler.form(&mut step, 64, 20));
        let rows: Vec<usize> = step.segments.iter().map(|segment| segment.rows).collect();
        assert_eq!((rows, step.logits.as_slice()), (vec![1, 20], &[0][..]));
        compute(&mut scheduler, &step);
        assert!(scheduler.form(&mut step, 64, 40));
        let rows: Vec<usize> = step.segments.iter().map(|segment| segment.rows).collect();
        assert_eq!(rows, [1, 30, 10]);
        assert_eq!(step.logits, [0, 30, 40]);
    }

    #[test]
    fn a_sequence_waits_until_its_blocks_are_free_and_takes_them_all_at_once() {
        let (mut scheduler, mut kv) = (Scheduler::new(2, 8), cache(2, 4));
        submit(&mut scheduler, 1, 64, 60);
        submit(&mut scheduler, 2, 4, 4);
        assert_eq!(admitted(&mut scheduler, &mut kv), [1]);
        assert_eq!(kv.blocks_free(), 0);
        assert_eq!(admitted(&mut scheduler, &mut kv), [0; 0]);
        scheduler.cancel(StreamId(1), &mut kv);
        assert_eq!((admitted(&mut scheduler, &mut kv), kv.blocks_free()), (vec![2], 3));
    }

    #[test]
    fn cancelling_frees_whatever_the_stream_held_wherever_it_is() {
        let (mut scheduler, mut kv) = (Scheduler::new(1, 8), cache(1, 4));
        submit(&mut scheduler, 1, 4, 4);
        submit(&mut scheduler, 2, 4, 4);
        admitted(&mut scheduler, &mut kv);
        for id in [2, 1, 9] {
            scheduler.cancel(StreamId(id), &mut kv);
        }
        assert_eq!((scheduler.running(), scheduler.waiting(), kv.blocks_free()), (0, 0, 4));
        assert!(!scheduler.form(&mut Step::default(), 8, 8));
    }

    #[test]
    fn a_sequence_taken_out_goes_on_elsewhere_with_the_same_tokens_and_limits() {
        let (mut scheduler, mut kv) = (Scheduler::new(1, 8), cache(1, 4));
        submit(&mut scheduler, 1, 3, 5);
        submit(&mut scheduler, 2, 4, 4);
        admitted(&mut scheduler, &mut kv);
        let mut step = Step::default();
        for _ in 0..2 {
            assert!(scheduler.form(&mut step, 8, 8));
            compute(&mut scheduler, &step);
        }
        let taken = scheduler.take_all(&mut kv);
        assert_eq!((scheduler.running(), scheduler.waiting(), kv.blocks_free()), (0, 0, 4));
        assert_eq!((taken[0].tokens.as_slice(), taken[0].generated, taken[1].stream.0), (&[0, 1, 2, 7, 7][..], 2, 2));

        let (mut other, mut kv) = (Scheduler::new(1, 0), cache(1, 4));
        submit(&mut other, 3, 4, 4);
        taken.into_iter().rev().for_each(|sequence| other.resume(sequence));
        assert_eq!(admitted(&mut other, &mut kv), [1]);
        let sequence = other.sequence(0).unwrap();
        assert_eq!((sequence.prompt_len, sequence.generated(), sequence.tokens_max), (3, 2, 5));
        assert!(other.form(&mut step, 8, 8));
        assert_eq!((step.tokens.as_slice(), step.logits.as_slice()), (&[0, 1, 2, 7, 7][..], &[4][..]));
        assert_eq!(other.waiting(), 2, "nothing resumed is refused, and those who waited go on waiting");
    }
}
