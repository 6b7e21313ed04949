//! Which rows the next step computes: pure logic, no clock, no threads.
//!
//! Sequences wait, take a slot, begin where the cache knows their prompt, then go through the rest of it in chunks and
//! through their answer a row a step. Decode rows come first in every step; chunks fill what the time of a step leaves.
//! Among those that wait for a slot or for prompt rows, clients that have had little go first, then priority, arrival and
//! the length of the prompt decide; the time that anybody can be overtaken is bounded. KV blocks are taken as positions come; where they run short, who ranks last
//! goes back to the queue with its tokens, to be computed again later: the first always goes on.

mod clients;
mod cost;
mod pace;
mod sequence;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use kernels::attention::BLOCK;

use crate::forward::Step;
use crate::guide::{Beside, Guided};
use crate::kv::BlockTables;

pub use clients::ClientId;
use clients::{Clients, QUANTUM_ROWS};
pub use cost::{CostModel, PromptBudget, StepRows};
pub use pace::{Demand, LONGER, LONGER_ON_GPUS, Pace, prompt_seconds};
pub use sequence::{NewSequence, Priority, Scoring, Sequence, StreamId};
use sequence::{Rank, Waiting};

/// The queue is full; the sequence comes back.
#[derive(Debug)]
pub struct QueueFull(pub Box<NewSequence>);

/// Who feels what a step takes besides its own sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Company {
    Nobody,
    /// Sequences of other schedulers.
    Others,
    /// Those of the step before: it goes on with them whatever else there is.
    Ahead,
}

/// What has happened in a scheduler, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tokens that were looked up in the cache, and those that were found.
    pub prefix_queries: u64,
    pub prefix_hits: u64,
    /// Sequences that were pushed out of their slots.
    pub preempted: u64,
    /// Guides that came back from beside the steps.
    pub guides_beside: u64,
}

/// Slots, queue and the order among them.
pub struct Scheduler {
    slots: Vec<Option<Sequence>>,
    /// By turn.
    waiting: VecDeque<Waiting>,
    waiting_max: usize,
    /// Tokens of those that wait.
    waiting_tokens: usize,
    /// Taken slots by rank: who decodes and gets blocks first, and from the end who is pushed out.
    order: Vec<usize>,
    /// Slots whose prompts want rows, as they take turns in the step being formed.
    prompts: Vec<usize>,
    clients: Clients,
    /// Most rows of a step that give logits: one for each slot, and more for those that are scored.
    logits_max: usize,
    /// Whether keys and values of answers are shared, as those of prompts are.
    shares_answers: bool,
    /// The slot behind the last one that had its turn where sets of allowed tokens take turns.
    sets_from: usize,
    /// Whether the step being formed has rows without those of this scheduler.
    has_rows_ahead: bool,
    /// What a prompt row takes, as far as is known.
    row_s: f64,
    counts: Counts,
}

impl Scheduler {
    /// For `slots` sequences at a time and `waiting_max` more in the queue.
    #[must_use]
    pub fn new(slots: usize, waiting_max: usize) -> Self {
        Self {
            slots: (0..slots).map(|_| None).collect(),
            waiting: VecDeque::with_capacity(waiting_max + slots),
            waiting_max,
            waiting_tokens: 0,
            order: Vec::with_capacity(slots),
            prompts: Vec::with_capacity(slots),
            clients: Clients::with_capacity(waiting_max + slots),
            logits_max: slots,
            shares_answers: true,
            sets_from: 0,
            has_rows_ahead: false,
            row_s: 0.0,
            counts: Counts::default(),
        }
    }

    /// The same for steps of up to `logits_max` rows with logits, at least one for each slot.
    #[must_use]
    pub fn with_logits(self, logits_max: usize) -> Self {
        Self { logits_max: logits_max.max(self.logits_max), ..self }
    }

    /// The same where keys and values of an answer are none for a prompt, nor the other way round.
    #[must_use]
    pub fn sharing_prompts_only(self) -> Self {
        Self { shares_answers: false, ..self }
    }

    /// How many of `tokens` tokens are shared, where `prompt_len` of them are a prompt.
    fn shared(&self, tokens: usize, prompt_len: usize) -> usize {
        if self.shares_answers { tokens } else { tokens.min(prompt_len) }
    }

    /// Forgets every sequence; what was counted stays.
    pub fn clear(&mut self) {
        let counts = std::mem::take(&mut self.counts);
        *self = Self {
            counts,
            shares_answers: self.shares_answers,
            ..Self::new(self.slots.len(), self.waiting_max).with_logits(self.logits_max)
        };
    }

    /// Takes a sequence into the queue. Free slots count as places in it, since those who wait move on at the next
    /// [`Scheduler::admit`] only, and many may come before that.
    ///
    /// # Errors
    /// When the queue is full.
    pub fn submit(&mut self, sequence: NewSequence) -> Result<(), QueueFull> {
        if self.waiting.len() + self.order.len() >= self.waiting_max + self.slots.len() {
            return Err(QueueFull(Box::new(sequence)));
        }
        self.resume(sequence);
        Ok(())
    }

    /// Takes in a sequence that was accepted before. Never refused: what other devices hold is bounded.
    pub fn resume(&mut self, sequence: NewSequence) {
        let client = self.clients.join(sequence.client);
        let due = sequence.rank().due(sequence.tokens.len(), self.row_s);
        self.enqueue(Waiting { new: sequence, client, due, cached_before: None });
    }

    fn enqueue(&mut self, waiting: Waiting) {
        let at = self.waiting.partition_point(|other| other.due < waiting.due);
        self.waiting_tokens += waiting.new.tokens.len();
        self.waiting.insert(at, waiting);
    }

    fn stop_waiting(&mut self, at: usize) -> Waiting {
        let waiting = self.waiting.remove(at).expect("whoever waits was looked up");
        self.waiting_tokens -= waiting.new.tokens.len();
        waiting
    }

    /// Who waits and is next: the first whose client is not ahead of another that waits.
    fn next(&self) -> Option<usize> {
        let served = |waiting: &Waiting| self.clients.served(waiting.client);
        let least = self.waiting.iter().map(served).min()?;
        self.waiting.iter().position(|waiting| served(waiting) <= least + QUANTUM_ROWS)
    }

    /// Takes everything out, as sequences that can be resumed elsewhere: those in slots first, by rank.
    pub fn take_all(&mut self, kv: &mut BlockTables) -> Vec<NewSequence> {
        let mut taken = Vec::with_capacity(self.order.len() + self.waiting.len());
        for slot in std::mem::take(&mut self.order) {
            let sequence = self.slots[slot].take().expect("ordered slots are taken");
            kv.release(slot);
            self.clients.leave(sequence.client_index);
            taken.push(sequence.into_new());
        }
        self.waiting_tokens = 0;
        for waiting in self.waiting.drain(..) {
            self.clients.leave(waiting.client);
            taken.push(waiting.new);
        }
        taken
    }

    /// Forgets a stream wherever it is; its blocks are free at once. Unknown streams have ended already.
    pub fn cancel(&mut self, stream: StreamId, kv: &mut BlockTables) {
        if let Some(at) = self.waiting.iter().position(|waiting| waiting.new.stream == stream) {
            let waiting = self.stop_waiting(at);
            self.clients.leave(waiting.client);
            return;
        }
        let slot = self.slots.iter().position(|slot| slot.as_ref().is_some_and(|s| s.stream == stream));
        if let Some(slot) = slot {
            self.finish(slot, kv);
        }
    }

    /// Frees a slot and its blocks.
    pub fn finish(&mut self, slot: usize, kv: &mut BlockTables) {
        if let Some(sequence) = self.leave(slot, kv) {
            self.clients.leave(sequence.client_index);
        }
    }

    /// Takes the sequence out of `slot`. What it has computed stays known as long as nobody needs the place.
    fn leave(&mut self, slot: usize, kv: &mut BlockTables) -> Option<Sequence> {
        self.order.retain(|other| *other != slot);
        let sequence = self.slots[slot].take()?;
        let stored = sequence.stored();
        kv.publish(slot, &stored[..self.shared(stored.len(), sequence.prompt_len)]);
        kv.release(slot);
        Some(sequence)
    }

    /// Pushes out the sequence that ranks last.
    fn preempt_last(&mut self, kv: &mut BlockTables) {
        let slot = *self.order.last().expect("somebody holds the blocks");
        let sequence = self.leave(slot, kv).expect("ordered slots are taken");
        self.counts.preempted += 1;
        self.enqueue(sequence.into_waiting());
    }

    /// Moves waiting sequences into free slots, by turn, as far as slots and KV blocks go. Calls `admitted` for each
    /// that comes in for the first time.
    pub fn admit(&mut self, kv: &mut BlockTables, mut admitted: impl FnMut(StreamId)) {
        while let Some(next) = self.next() {
            let new = &self.waiting[next].new;
            let Some(slot) = self.slots.iter().position(Option::is_none) else { return };
            let adoptable = new.adoptable();
            let shared = self.shared(adoptable.len(), new.tokens.len() - new.generated);
            let cached = kv.adopt(slot, &adoptable[..shared]);
            if kv.blocks_free() < new.blocks_wanted() - cached / BLOCK + self.blocks_owed(kv) {
                kv.release(slot);
                return;
            }
            let waiting = self.stop_waiting(next);
            if waiting.cached_before.is_none() {
                admitted(waiting.new.stream);
                self.counts.prefix_queries += waiting.new.tokens.len() as u64;
                self.counts.prefix_hits += cached as u64;
            }
            let rank = waiting.new.rank();
            self.slots[slot] = Some(Sequence::start(waiting, cached, self.row_s));
            let at = self.order.partition_point(|other| self.rank(*other) < rank);
            self.order.insert(at, slot);
        }
    }

    /// Blocks that the running sequences will soon take.
    fn blocks_owed(&self, kv: &BlockTables) -> usize {
        let owed = |slot: &usize| self.taken(*slot).blocks_wanted().saturating_sub(kv.table(*slot).len());
        self.order.iter().map(owed).sum()
    }

    /// Fills `step` with decode rows and their drafts, then with prompt chunks within `budget`, at most `rows_max` rows in
    /// all, and takes their blocks. `false` where there is nothing to compute.
    pub fn form(&mut self, step: &mut Step, kv: &mut BlockTables, rows_max: usize, mut budget: PromptBudget) -> bool {
        step.clear();
        self.row_s = budget.row_s;
        self.publish(kv);
        self.push_decodes(step, kv, rows_max);
        if step.tokens.is_empty() && !self.has_rows_ahead && self.let_all_in() {
            // Those whose turn it was have no blocks.
            self.push_decodes(step, kv, rows_max);
        }
        if step.tokens.is_empty() && budget.rows_max == 0 {
            // Whoever was to decode alone has been pushed out.
            budget = PromptBudget::of_rows(BLOCK);
        }
        budget.rows_max = budget.rows_max.min(rows_max - step.tokens.len());
        self.push_prompts(step, kv, budget);
        // Whoever waits for a token that is on its way goes on after it, and who waits for its guide after that.
        let waits = |slot: &usize| self.taken(*slot).pending() == 0 || self.taken(*slot).waits_for_guide();
        if self.order.iter().any(waits) {
            return !step.tokens.is_empty();
        }
        while step.tokens.is_empty() && !budget.is_spent() && self.order.len() > 1 {
            self.preempt_last(kv);
            self.push_prompts(step, kv, budget);
        }
        !step.tokens.is_empty()
    }

    /// Makes known what the last step has computed.
    fn publish(&self, kv: &mut BlockTables) {
        if !kv.shares() {
            return;
        }
        for &slot in &self.order {
            let sequence = self.taken(slot);
            let stored = sequence.stored();
            let shared = self.shared(stored.len(), sequence.prompt_len);
            if shared / BLOCK > kv.published(slot) {
                kv.publish(slot, &stored[..shared]);
            }
        }
    }

    /// Whether any sequence in a slot has no slow guide, so that it would feel slow sets in steps.
    pub fn has_quick(&mut self, beside: &Beside) -> bool {
        let is_slow = |sequence: &mut Sequence| sequence.guide.as_mut().is_some_and(|guide| guide.is_slow(beside));
        self.slots.iter_mut().flatten().any(|sequence| !is_slow(sequence))
    }

    /// Has the next sets of slow guides computed beside the steps, where others feel these or they are very slow.
    pub fn step_aside(&mut self, beside: &mut Beside, is_felt: bool) {
        let decoding = self.slots.iter_mut().flatten().filter(|sequence| sequence.decodes());
        decoding.filter_map(|sequence| sequence.guide.as_mut()).for_each(|guide| {
            guide.step_aside_if_slow(beside, is_felt);
        });
    }

    /// Says what all sets of allowed tokens that take long may take of the next step together, by the time of all workers. Those that
    /// want no more than their share are in every step; where they or `company` feel it, the others take turns, each step as
    /// many as fit.
    pub fn limit_sets(&mut self, most: Duration, company: Company) {
        self.has_rows_ahead = company == Company::Ahead;
        let (mut all, mut least, mut count) = (Duration::ZERO, Duration::MAX, 0);
        for sequence in self.slots.iter_mut().flatten() {
            sequence.sits_out = false;
            if sequence.decodes() {
                let set = sequence.guide.as_mut().map_or(Duration::ZERO, Guided::wanted);
                least = least.min(set);
                count += u32::from(!set.is_zero());
                all += set;
            }
        }
        let share = (most / count.max(1)).max(SET_SHARE_LEAST);
        if all > most && (least <= share || company != Company::Nobody) {
            self.take_turns(most, share, least > share);
        }
    }

    /// Chooses whose sets are in the next step, `most` in all and one at least if `is_empty` without them.
    fn take_turns(&mut self, most: Duration, share: Duration, is_empty: bool) {
        let Self { slots, sets_from, has_rows_ahead, .. } = self;
        if is_empty && !*has_rows_ahead {
            // The next turn comes at once.
            let owed = slots.iter_mut().filter_map(|slot| Some(wanting(slot, share)?.0.owed())).min();
            let early = owed.unwrap_or_default().saturating_sub(share);
            slots.iter_mut().filter_map(|slot| wanting(slot, share)).for_each(|(guide, ..)| guide.pay(early));
        }
        let (count, first, mut left) = (slots.len(), *sets_from, most.max(share));
        for slot in (first..first + count).map(|slot| slot % count) {
            let Some((guide, sits_out, wanted)) = wanting(&mut slots[slot], share) else { continue };
            let has_turn = guide.owed() <= share && !left.is_zero();
            guide.pay(share);
            *sits_out = !has_turn;
            if has_turn {
                left = left.saturating_sub(wanted);
                *sets_from = slot + 1;
            }
        }
    }

    /// Has every sequence in the next step; whether any was to sit it out.
    fn let_all_in(&mut self) -> bool {
        let mut any = false;
        for sequence in self.slots.iter_mut().flatten() {
            any |= std::mem::take(&mut sequence.sits_out);
        }
        any
    }

    fn push_decodes(&mut self, step: &mut Step, kv: &mut BlockTables, rows_max: usize) {
        // Whoever is pushed out ranks behind: nothing of it is in the step yet.
        let mut at = 0;
        while at < self.order.len() && step.tokens.len() < rows_max {
            let sequence = self.taken(self.order[at]);
            if sequence.decodes() && !sequence.sits_out && self.take_decode_blocks(at, kv) {
                let sequence = self.taken(self.order[at]);
                step.push(self.order[at], sequence.computed, &sequence.tokens[sequence.computed..], true);
                sequence.want(step, 0);
                for (ahead, token) in (1..).zip(sequence.draft.rows()) {
                    step.push_draft(*token);
                    sequence.want(step, ahead);
                }
                let client = sequence.client_index;
                self.clients.charge(client, 1);
            }
            at += 1;
        }
    }

    /// Takes blocks for the next token and the draft of the sequence at `at` of the order. Where there are none it does
    /// without its draft, then pushes out whoever ranks last: `false` where that is itself.
    fn take_decode_blocks(&mut self, at: usize, kv: &mut BlockTables) -> bool {
        let slot = self.order[at];
        loop {
            let sequence = self.slots[slot].as_mut().expect("ordered slots are taken");
            let positions = sequence.computed + 1 + sequence.draft.rows().len();
            if kv.extend(slot, positions).is_ok() {
                return true;
            }
            if !sequence.draft.rows().is_empty() {
                sequence.draft.give_up();
                continue;
            }
            self.preempt_last(kv);
            if self.order.len() <= at {
                return false;
            }
        }
    }

    /// Puts the prompts into the order of their turns: those of clients that are not ahead, then by what is due.
    fn line_up_prompts(&mut self) {
        let Self { slots, order, prompts, clients, .. } = self;
        let sequence = |slot: &usize| slots[*slot].as_ref().expect("ordered slots are taken");
        let served = |slot: &usize| clients.served(sequence(slot).client_index);
        prompts.clear();
        prompts.extend(order.iter().copied().filter(|slot| sequence(slot).pending() > 1));
        let least = prompts.iter().map(served).min().unwrap_or(0);
        prompts.sort_unstable_by_key(|slot| (served(slot) > least + QUANTUM_ROWS, sequence(slot).due));
    }

    fn push_prompts(&mut self, step: &mut Step, kv: &mut BlockTables, mut budget: PromptBudget) {
        self.line_up_prompts();
        for at in 0..self.prompts.len() {
            let slot = self.prompts[at];
            if budget.is_spent() {
                return;
            }
            self.adopt(slot, kv);
            if kv.shares() && self.is_being_computed(slot, step, kv) {
                continue;
            }
            let sequence = self.taken(slot);
            let room = (kv.table(slot).len() + kv.blocks_free()) * BLOCK - sequence.computed;
            let wanted = sequence.pending() - usize::from(sequence.waits_for_guide());
            let mut chunk = budget.rows(sequence.computed, wanted).min(room);
            let scored = sequence.scored(sequence.computed..sequence.computed + chunk);
            if !scored.is_empty() {
                // From the first one on each gives logits. Whoever comes behind may want those of a last row.
                let behind = self.prompts.len() - at - 1;
                let room = self.logits_max.saturating_sub(step.logits.len() + behind);
                chunk = chunk.min(scored.start - sequence.computed + room);
            }
            if chunk == 0 {
                continue;
            }
            let (start, end) = (sequence.computed, sequence.computed + chunk);
            kv.extend(slot, end).expect("there is room");
            let is_last = end == sequence.tokens.len();
            let first_row = step.tokens.len();
            step.push(slot, start, &sequence.tokens[start..end], false);
            let scored = sequence.scored(start..end);
            step.logits.extend(scored.map(|position| first_row + position - start));
            if is_last {
                step.logits.push(first_row + chunk - 1);
                sequence.want(step, 0);
            }
            let client = sequence.client_index;
            self.clients.charge(client, chunk);
            budget.spend(start, chunk);
        }
    }

    /// Lets the prompt in `slot` go on behind what others have computed meanwhile.
    fn adopt(&mut self, slot: usize, kv: &mut BlockTables) {
        let sequence = self.taken(slot);
        let end = self.shared(sequence.tokens.len() - 1, sequence.prompt_len);
        let sequence = self.slots[slot].as_mut().expect("ordered slots are taken");
        if sequence.scoring.is_some() || sequence.computed >= end {
            return;
        }
        if sequence.computed != kv.published(slot) * BLOCK || kv.table(slot).len() != kv.published(slot) {
            return;
        }
        let adopted = kv.adopt(slot, &sequence.tokens[sequence.computed..end]);
        sequence.computed += adopted;
        if sequence.is_first_time {
            sequence.cached += adopted;
            self.counts.prefix_hits += adopted as u64;
        }
    }

    /// Whether the next block of the prompt in `slot` will be known after this step, since another sequence computes it.
    fn is_being_computed(&self, slot: usize, step: &Step, kv: &BlockTables) -> bool {
        let sequence = self.taken(slot);
        if sequence.scoring.is_some() {
            return false;
        }
        let (start, end) = (sequence.computed, sequence.computed + BLOCK);
        if start != kv.published(slot) * BLOCK || end >= sequence.tokens.len() {
            return false;
        }
        let before = (start / BLOCK).checked_sub(1);
        step.segments.iter().any(|segment| {
            (segment.first_position..segment.first_position + segment.rows).contains(&(end - 1))
                && before.is_none_or(|before| kv.table(segment.slot).get(before) == kv.table(slot).get(before))
                && self.taken(segment.slot).tokens.get(start..end) == Some(&sequence.tokens[start..end])
        })
    }

    fn taken(&self, slot: usize) -> &Sequence {
        self.slots[slot].as_ref().expect("ordered slots are taken")
    }

    fn rank(&self, slot: usize) -> Rank {
        self.taken(slot).rank()
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

    /// All of them, in slots and in the queue.
    pub fn streams(&self) -> impl Iterator<Item = StreamId> {
        let waiting = self.waiting.iter().map(|waiting| waiting.new.stream);
        self.slots.iter().flatten().map(|sequence| sequence.stream).chain(waiting)
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

    /// Sequences in slots that wait for their guides.
    #[must_use]
    pub fn beside(&self) -> usize {
        self.slots.iter().flatten().filter(|sequence| sequence.waits_for_guide()).count()
    }

    /// Gives the guides that have come back to their sequences, also to those that were pushed out meanwhile.
    pub fn take_guides_back(&mut self) {
        let in_slots = self.slots.iter_mut().flatten().filter_map(|sequence| sequence.guide.as_mut());
        let in_queue = self.waiting.iter_mut().filter_map(|waiting| waiting.new.guide.as_mut());
        self.counts.guides_beside += in_slots.chain(in_queue).map(|guide| u64::from(guide.comes_back())).sum::<u64>();
    }

    /// Prompt tokens that are still to be computed, in slots and in the queue.
    #[must_use]
    pub fn prompt_tokens(&self) -> usize {
        let pending = self.order.iter().map(|slot| self.taken(*slot).pending()).filter(|pending| *pending > 1);
        self.waiting_tokens + pending.sum::<usize>()
    }

    /// What has happened since this was last asked.
    pub fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// The sequences that decode, by slot.
    pub fn decoding_mut(&mut self) -> impl Iterator<Item = &mut Sequence> {
        self.slots.iter_mut().flatten().filter(|sequence| sequence.pending() == 1)
    }

    /// Sequences that have no token yet, in slots and in the queue.
    #[must_use]
    pub fn prompts(&self) -> usize {
        self.waiting.len() + self.slots.iter().flatten().filter(|sequence| sequence.pending() > 1).count()
    }

    /// Who wants something of the next step.
    #[must_use]
    pub fn demand(&self) -> Demand {
        let (mut crowd, free) = (StepRows::default(), self.slots.len() - self.order.len());
        let in_slots = self.slots.iter().flatten();
        let decodes = |sequence: &&Sequence| sequence.pending() <= 1 && !sequence.waits_for_guide();
        in_slots.clone().filter(decodes).for_each(|sequence| {
            crowd.add_decode(sequence.tokens.len(), 1);
        });
        let prompts = in_slots.filter(|sequence| sequence.pending() > 1).map(|sequence| sequence.tokens.len());
        let prompts = prompts.chain(self.waiting.iter().take(free).map(|waiting| waiting.new.tokens.len()));
        prompts.skip(1).for_each(|tokens| crowd.add_decode(tokens, 1));
        Demand { decodes: self.decode_rows(), crowd, prompts: self.prompts() }
    }

    /// What the sequences that decode will add to the next step, but for their drafts.
    #[must_use]
    pub fn decode_rows(&self) -> StepRows {
        let mut rows = StepRows::default();
        let decodes = |sequence: &&Sequence| sequence.pending() == 1 && !sequence.waits_for_guide();
        let decoding = self.slots.iter().flatten().filter(decodes);
        decoding.for_each(|sequence| rows.add_decode(sequence.computed, 1));
        rows
    }

    /// What a formed step has, before its sequences move on. A single row of one that was cancelled meanwhile counts as
    /// one that decodes.
    #[must_use]
    pub fn rows_of(&self, step: &Step) -> StepRows {
        let mut rows = StepRows::default();
        for segment in &step.segments {
            let sequence = self.sequence(segment.slot);
            match sequence.map_or(segment.rows, Sequence::pending) {
                1 => rows.add_decode(segment.first_position, segment.rows),
                _ => rows.add_prompt(segment.first_position, segment.rows),
            }
        }
        rows
    }

    /// Running sequences that decode and don't wait for their guides.
    #[must_use]
    pub fn decoding(&self) -> usize {
        let decodes = |sequence: &&Sequence| sequence.pending() == 1 && !sequence.waits_for_guide();
        self.slots.iter().flatten().filter(decodes).count()
    }
}

/// The guide of a slot's sequence, where its next set takes more than `share` of a step, whether it sits out, and what it takes.
fn wanting(slot: &mut Option<Sequence>, share: Duration) -> Option<(&mut Guided, &mut bool, Duration)> {
    let Sequence { guide, sits_out, .. } = slot.as_mut().filter(|sequence| sequence.decodes())?;
    let guide = guide.as_mut()?;
    let wanted = guide.wanted();
    (wanted > share).then_some((guide, sits_out, wanted))
}

/// The least that a set which takes long has of a step: so each has its turn in a thousand steps at the latest.
const SET_SHARE_LEAST: Duration = Duration::from_micros(2);
