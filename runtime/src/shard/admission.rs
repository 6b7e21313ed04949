//! Whether a request is taken in: arithmetic on what a shard has, may have, and takes for it. No clock, no I/O.
//!
//! A request that can be computed at once is taken. One that would wait is taken as long as there is room for it, and
//! where the time that it has is enough as far as is known; else it is refused before it costs anything.

use std::cell::Cell;
use std::time::Duration;

use net::error::{ApiError, Code};

use crate::schedule::{LONGER, Priority, prompt_seconds};

/// Shares of what a shard can have, above which requests that would wait are refused.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdmissionLimits {
    /// Sequences, of those that slots and queue take: above it all are refused.
    pub busy_max: f64,
    /// KV blocks in use, of all: above it all are refused.
    pub memory_max: f64,
    /// Sequences again: above it those of low priority are refused.
    pub queue_above: f64,
    /// Prompt tokens that wait to be computed, over all shards.
    pub queued_tokens_max: usize,
}

/// How a shard stands.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Standing {
    /// Sequences in slots and queues, and those that can be; slots of the CPU.
    pub(super) sequences: usize,
    pub(super) sequences_max: usize,
    pub(super) slots: usize,
    pub(super) kv_blocks_used: u64,
    pub(super) kv_blocks: u64,
    /// Seconds that a prompt row adds to a step, and the share of a step that prompts get; 0 where it is not known.
    pub(super) prompt_row_s: f64,
    pub(super) prompt_share: f64,
}

/// Time until a request would be computed, and until its first token, as far as is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Estimate {
    pub(super) queue: Duration,
    pub(super) first_token: Duration,
}

/// How soon a shard would come to a prompt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prospect {
    pub(super) standing: Standing,
    /// Prompt tokens that wait to be computed there, and those of this prompt that would have to be.
    pub(super) tokens_ahead: usize,
    pub(super) tokens: usize,
}

/// Why a request is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Too many sequences, or prompt tokens, wait.
    QueueFull,
    /// The queue is for others.
    LowPriority,
    Memory,
    /// It can't be done in the time that it has.
    Late(Duration),
}

/// The door of a shard, and what it remembers.
#[derive(Debug)]
pub(super) struct Admission {
    limits: AdmissionLimits,
    /// Prompt tokens of requests that have no token yet.
    pending_tokens: Cell<usize>,
    /// Moving average of the seconds that a sequence keeps its slot.
    slot_s: Cell<f64>,
}

impl Admission {
    /// For one of `shards` shards.
    pub(super) fn new(limits: AdmissionLimits, shards: usize) -> Self {
        let queued_tokens_max = limits.queued_tokens_max.div_ceil(shards.max(1));
        let limits = AdmissionLimits { queued_tokens_max, ..limits };
        Self { limits, pending_tokens: Cell::new(0), slot_s: Cell::new(0.0) }
    }

    /// Whether there is room for `wanted` more sequences.
    pub(super) fn check_room(&self, standing: &Standing, wanted: usize, priority: Priority) -> Result<(), Refusal> {
        let after = standing.sequences + wanted;
        if after > standing.sequences_max {
            return Err(Refusal::QueueFull);
        }
        let (busy, memory) = (standing.busy(), standing.memory());
        if after <= standing.slots && memory <= self.limits.memory_max {
            return Ok(());
        }
        match () {
            () if busy > self.limits.busy_max => Err(Refusal::QueueFull),
            () if memory > self.limits.memory_max => Err(Refusal::Memory),
            () if busy > self.limits.queue_above && priority == Priority::Low => Err(Refusal::LowPriority),
            () => Ok(()),
        }
    }

    /// Whether so many more prompt tokens may wait. What nobody waits for may be of any length.
    pub(super) fn check_tokens(&self, tokens: usize) -> Result<(), Refusal> {
        self.check_tokens_behind(self.pending_tokens.get(), tokens)
    }

    fn check_tokens_behind(&self, pending: usize, tokens: usize) -> Result<(), Refusal> {
        let fits = pending == 0 || pending + tokens <= self.limits.queued_tokens_max;
        if fits { Ok(()) } else { Err(Refusal::QueueFull) }
    }

    /// When `wanted` sequences would be computed on another shard, if it has room for them.
    pub(super) fn estimate_there(&self, there: &Prospect, wanted: usize, priority: Priority) -> Option<Estimate> {
        self.check_room(&there.standing, wanted, priority).ok()?;
        self.check_tokens_behind(there.tokens_ahead, there.tokens).ok()?;
        Some(self.estimate_of(there))
    }

    /// When a request of so many prompt tokens would be computed if it were taken now.
    pub(super) fn estimate(&self, standing: &Standing, tokens: usize) -> Estimate {
        self.estimate_of(&Prospect { standing: *standing, tokens_ahead: self.pending_tokens.get(), tokens })
    }

    #[expect(clippy::cast_precision_loss, reason = "tokens and sequences are few")]
    fn estimate_of(&self, prospect: &Prospect) -> Estimate {
        let Prospect { standing, tokens_ahead, tokens } = prospect;
        let queue_s = standing.ahead() as f64 * self.slot_s.get() / standing.slots.max(1) as f64;
        let row_s = if standing.prompt_share > 0.0 { standing.prompt_row_s / standing.prompt_share } else { 0.0 };
        // Prompts of those that wait for a slot are computed while they do.
        let (others_s, own_s) = (*tokens_ahead as f64 * row_s, *tokens as f64 * row_s);
        let seconds = |s: f64| Duration::try_from_secs_f64(s).unwrap_or(Duration::MAX);
        Estimate { queue: seconds(queue_s), first_token: seconds(queue_s.max(others_s) + own_s) }
    }

    /// When the first token of a prompt would come from another shard, if that is sooner than from this one.
    pub(super) fn first_token_there(&self, here: &Prospect, there: &Prospect) -> Option<Duration> {
        if there.standing.memory() > self.limits.memory_max {
            return None;
        }
        // How long a slot is kept is not known before the first was, but that it is.
        let is_known = self.slot_s.get() > 0.0;
        if !is_known && there.standing.ahead() > here.standing.ahead() {
            return None;
        }
        let waits_only_here = here.standing.must_wait() && !there.standing.must_wait();
        // A shard that has computed no prompt yet takes as long as the other.
        let (mut here, mut there) = (*here, *there);
        let row_s = |prospect: &Prospect| prospect.standing.prompt_row_s;
        match (row_s(&here) > 0.0, row_s(&there) > 0.0) {
            (false, true) => here.standing.prompt_row_s = row_s(&there),
            (true, false) => there.standing.prompt_row_s = row_s(&here),
            _ => {}
        }
        let sooner = self.estimate_of(&there).first_token.saturating_add(WAY_THERE);
        let goes = sooner < self.estimate_of(&here).first_token || !is_known && waits_only_here;
        goes.then_some(sooner)
    }

    /// Prompt tokens that wait here.
    pub(super) fn pending_tokens(&self) -> usize {
        self.pending_tokens.get()
    }

    /// So many prompt tokens wait from now on.
    pub(super) fn add_pending(&self, tokens: usize) {
        self.pending_tokens.set(self.pending_tokens.get() + tokens);
    }

    /// So many don't wait any more.
    pub(super) fn remove_pending(&self, tokens: usize) {
        self.pending_tokens.set(self.pending_tokens.get() - tokens);
    }

    /// A sequence kept its slot for so long.
    pub(super) fn observe_slot(&self, time: Duration) {
        let (before, sample) = (self.slot_s.get(), time.as_secs_f64());
        self.slot_s.set(if before == 0.0 { sample } else { before + (sample - before) * SLOT_WEIGHT });
    }

    /// Whether a request that would wait is refused, whoever sends it.
    pub(super) fn is_full(&self, standing: &Standing) -> bool {
        let last = standing.sequences + 1 > standing.slots && standing.busy() > self.limits.busy_max;
        last || standing.sequences >= standing.sequences_max
    }
}

impl Standing {
    /// Whether one more sequence would wait for a place.
    pub(super) fn must_wait(&self) -> bool {
        self.ahead() > 0
    }

    /// Sequences that one more would wait for.
    fn ahead(&self) -> usize {
        (self.sequences + 1).saturating_sub(self.slots)
    }

    #[expect(clippy::cast_precision_loss, reason = "sequences are few")]
    fn busy(&self) -> f64 {
        self.sequences as f64 / self.sequences_max.max(1) as f64
    }

    #[expect(clippy::cast_precision_loss, reason = "blocks are few")]
    fn memory(&self) -> f64 {
        self.kv_blocks_used as f64 / self.kv_blocks.max(1) as f64
    }
}

/// The share of each step that prompts get, one more than `prompts`, beside `decoding` sequences whose steps take
/// `decode_s` without any, and `crowd_s` once most of them decode.
pub(super) fn prompt_share(target_s: f64, (decode_s, crowd_s): (f64, f64), decoding: usize, prompts: usize) -> f64 {
    if decoding == 0 || decode_s <= 0.0 {
        return 1.0;
    }
    let prompt_s = prompt_seconds((decode_s, crowd_s), target_s - decode_s, prompts + 1, decoding, LONGER);
    prompt_s / (prompt_s + decode_s)
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::QueueFull => Self::overloaded("the queue is full", RETRY_FULL),
            Refusal::LowPriority => Self::overloaded("the queue is kept for higher priorities", RETRY_SOON),
            Refusal::Memory => Self::new(503, Code::MemoryExhausted, "the memory for contexts is nearly used up")
                .with_retry_after(RETRY_FULL),
            Refusal::Late(estimate) => Self::overloaded(
                format!("it would take {} ms to come to this request, which is more than it may", estimate.as_millis()),
                estimate.clamp(RETRY_SOON, RETRY_LATE_MAX),
            ),
        }
    }
}

/// Weight of one sequence in the moving average of all.
const SLOT_WEIGHT: f64 = 0.1;
/// What a sequence must gain by going to another shard: the wake-ups between there and here.
const WAY_THERE: Duration = Duration::from_micros(200);
const RETRY_SOON: Duration = Duration::from_secs(2);
const RETRY_FULL: Duration = Duration::from_secs(5);
const RETRY_LATE_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: AdmissionLimits =
        AdmissionLimits { busy_max: 0.9, memory_max: 0.85, queue_above: 0.7, queued_tokens_max: 1000 };

    fn standing(sequences: usize) -> Standing {
        Standing {
            sequences,
            sequences_max: 50,
            slots: 10,
            kv_blocks_used: 10,
            kv_blocks: 100,
            prompt_row_s: 0.01,
            prompt_share: 0.5,
        }
    }

    #[test]
    fn what_can_be_computed_at_once_is_taken_and_the_queue_closes_step_by_step() {
        let door = Admission::new(LIMITS, 1);
        let room = |sequences, priority| door.check_room(&standing(sequences), 1, priority);
        assert_eq!(room(9, Priority::Low), Ok(()));
        assert_eq!(room(35, Priority::Low), Ok(()));
        assert_eq!((room(36, Priority::Low), room(36, Priority::Normal)), (Err(Refusal::LowPriority), Ok(())));
        assert_eq!((room(45, Priority::High), room(46, Priority::High)), (Ok(()), Err(Refusal::QueueFull)));
        assert_eq!(door.check_room(&standing(40), 11, Priority::High), Err(Refusal::QueueFull));
        assert_eq!((door.is_full(&standing(45)), door.is_full(&standing(46))), (false, true));
        // Where there is no queue, a free slot is enough.
        let slots_only = |sequences| Standing { sequences_max: 10, ..standing(sequences) };
        assert_eq!(door.check_room(&slots_only(9), 1, Priority::Low), Ok(()));
        assert!(!door.is_full(&slots_only(9)) && door.is_full(&slots_only(10)));
    }

    #[test]
    fn a_full_memory_refuses_with_its_own_reason() {
        let door = Admission::new(LIMITS, 1);
        let short = Standing { kv_blocks_used: 86, ..standing(3) };
        assert_eq!(door.check_room(&short, 1, Priority::High), Err(Refusal::Memory));
        let error = ApiError::from(Refusal::Memory);
        assert_eq!((error.status, error.retry_after), (503, Some(Duration::from_secs(5))));
        let off = Admission::new(AdmissionLimits { memory_max: 1.0, ..LIMITS }, 1);
        assert_eq!(off.check_room(&short, 1, Priority::High), Ok(()));
    }

    #[test]
    fn waiting_prompt_tokens_are_bounded_but_one_prompt_may_be_long() {
        let door = Admission::new(LIMITS, 2);
        assert_eq!(door.check_tokens(5000), Ok(()));
        door.add_pending(400);
        assert_eq!((door.check_tokens(100), door.check_tokens(101)), (Ok(()), Err(Refusal::QueueFull)));
        door.remove_pending(400);
        assert_eq!(door.check_tokens(501), Ok(()));
    }

    #[test]
    fn the_wait_follows_from_slots_and_prompts() {
        let door = Admission::new(LIMITS, 1);
        assert_eq!(door.estimate(&Standing { prompt_share: 0.0, ..standing(40) }, 100), Estimate::default());
        door.observe_slot(Duration::from_secs(4));
        door.add_pending(50);
        // 20 ms a row, ten slots that are kept 4 s each, and five who come first.
        let ms = Duration::from_millis;
        assert_eq!(door.estimate(&standing(3), 100), Estimate { queue: ms(0), first_token: ms(3000) });
        assert_eq!(door.estimate(&standing(14), 100), Estimate { queue: ms(2000), first_token: ms(4000) });
        (0..100).for_each(|_| door.observe_slot(Duration::from_secs(8)));
        assert!(door.estimate(&standing(14), 0).queue > ms(3900));
    }

    #[test]
    fn a_prompt_goes_where_its_first_token_comes_sooner_and_never_into_a_longer_wait() {
        let door = Admission::new(LIMITS, 2);
        let at = |sequences, tokens_ahead, tokens| Prospect { standing: standing(sequences), tokens_ahead, tokens };
        let there = |here: &Prospect, there: &Prospect| door.first_token_there(here, there).is_some();
        // 20 ms a row: 100 rows here, 4 of them there.
        assert!(there(&at(0, 0, 100), &at(0, 0, 4)));
        assert!(there(&at(0, 0, 100), &at(9, 95, 4)), "prompts that wait there are shorter");
        assert!(!there(&at(0, 0, 100), &at(9, 96, 4)), "it would wait as long as computing takes");
        assert!(!there(&at(0, 0, 4), &at(0, 0, 4)), "the way is longer");
        assert!(!there(&at(0, 0, 100), &at(10, 0, 4)), "nobody knows when a slot comes free");
        assert!(there(&at(10, 0, 100), &at(10, 0, 4)), "nor here");
        door.observe_slot(Duration::from_secs(4));
        // A slot comes free every 400 ms.
        assert!(there(&at(0, 0, 100), &at(13, 0, 4)) && !there(&at(0, 0, 100), &at(14, 0, 4)));
        let full = Prospect { standing: Standing { kv_blocks_used: 86, ..standing(0) }, ..at(0, 0, 4) };
        assert!(!there(&at(0, 0, 100), &full), "its memory is full");
    }

    #[test]
    fn a_lone_prompt_gets_less_of_the_steps_than_the_target_leaves_and_many_get_more() {
        let share = |decoding, prompts| prompt_share(0.05, (0.0035, 0.004), decoding, prompts);
        assert_eq!((share(0, 0), prompt_share(0.05, (0.0, 0.0), 4, 0)), (1.0, 1.0));
        assert!((share(16, 0) - 2.1 / 5.6).abs() < 1e-9);
        assert!((share(16, 31) - 2.0 / 3.0).abs() < 1e-9);
        assert!((share(1, 1000) - 46.5 / 50.0).abs() < 1e-9, "as far as the target goes");
        assert!((prompt_share(0.05, (0.1, 0.1), 10, 0) - 0.4 / 1.4).abs() < 1e-9, "which decoding alone misses");
        assert!((prompt_share(0.05, (0.1, 0.2), 10, 1000) - 1.8 / 2.8).abs() < 1e-9);
    }

    #[test]
    fn who_would_wait_for_a_place_goes_where_there_is_one() {
        let door = Admission::new(LIMITS, 2);
        let at = |sequences| Prospect { standing: standing(sequences), tokens_ahead: 0, tokens: 10 };
        let goes = |here, there| door.first_token_there(&at(here), &at(there)).is_some();
        assert!(goes(10, 9), "nobody knows how long it would wait, but that it would");
        assert!(!goes(10, 10) && !goes(9, 9));
        door.observe_slot(Duration::from_secs(4));
        assert!(goes(10, 9) && goes(14, 10) && !goes(10, 14));
        assert!(door.estimate_there(&at(46), 1, Priority::High).is_none(), "its queue is full");
        assert!(door.estimate_there(&Prospect { tokens_ahead: 500, ..at(0) }, 1, Priority::High).is_none());
        assert_eq!(door.estimate_there(&at(10), 1, Priority::High).map(|there| there.queue.as_millis()), Some(400));
    }

    #[test]
    fn what_a_prompt_takes_is_the_same_where_none_was_computed_yet() {
        let door = Admission::new(LIMITS, 2);
        let at = |prompt_row_s, tokens| Prospect {
            standing: Standing { prompt_row_s, ..standing(0) },
            tokens_ahead: 0,
            tokens,
        };
        assert!(door.first_token_there(&at(0.0, 100), &at(0.01, 4)).is_some());
        assert!(door.first_token_there(&at(0.01, 100), &at(0.0, 4)).is_some());
        assert!(door.first_token_there(&at(0.0, 100), &at(0.0, 4)).is_none(), "nothing is known to be gained");
    }

    #[test]
    fn every_refusal_says_when_to_come_back() {
        let late = |ms| ApiError::from(Refusal::Late(Duration::from_millis(ms))).retry_after.unwrap();
        assert_eq!([1, 7000, 1_000_000].map(|ms| late(ms).as_secs()), [2, 7, 60]);
        for refusal in [Refusal::QueueFull, Refusal::LowPriority, Refusal::Memory] {
            assert!(ApiError::from(refusal).retry_after.unwrap() >= Duration::from_secs(2));
        }
    }
}
