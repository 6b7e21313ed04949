//! What a stream asks for, and its state while it is computed.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kernels::attention::BLOCK;

use super::clients::{ClientId, ClientIndex};
use crate::forward::Step;
use crate::guide::{Beside, Guided};
use crate::kv::blocks_for;
use crate::sampler::{History, SamplingParams};
use crate::speculate::Draft;

/// Names a stream of tokens between executor and leader; the executor gives them out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// Who goes first among those that wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    Low,
    #[default]
    Normal,
    High,
}

impl Priority {
    /// How much longer than one of high priority a sequence waits for its turn: after that time it goes before those
    /// of high priority that come then, so that none starves.
    fn patience(self) -> Duration {
        match self {
            Self::High => Duration::ZERO,
            Self::Normal => Duration::from_secs(15),
            Self::Low => Duration::from_secs(60),
        }
    }
}

/// A prompt whose own tokens are asked for their probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scoring {
    /// Best tokens told beside each.
    pub top: u8,
    /// Positions whose next token was scored.
    pub done: usize,
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
    pub arrival: Instant,
    pub client: ClientId,
    pub priority: Priority,
    pub sampling: SamplingParams,
    /// Whether a token that ends the generation ends the sequence.
    pub stop_at_end: bool,
    /// What its answer must look like, as far as that has come.
    pub guide: Option<Guided>,
    /// What its client expects it to be, of which drafts look at [`LOOK_BACK_MAX`](crate::speculate::LOOK_BACK_MAX) tokens; drafts come from it.
    pub predicted: Arc<[u32]>,
    pub scoring: Option<Scoring>,
}

/// Who keeps its blocks where they run short, the least of all first: by arrival, later by the patience of its priority.
/// It never changes, so that whoever stays gets to be the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank(Instant, StreamId);

/// Whose turn it is, among those that wait for a slot and among prompts that want rows: the earliest goes first. Later
/// than the rank by what its prompt takes, so that short prompts go before long ones that came at about the same time,
/// and by no more, so that nobody is overtaken for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Due(Instant, StreamId);

impl Rank {
    /// The turn of one whose prompt takes `rows` rows of `row_s` seconds.
    #[expect(clippy::cast_precision_loss, reason = "rows are few")]
    pub(super) fn due(self, rows: usize, row_s: f64) -> Due {
        let prompt_s = (rows as f64 * row_s * LENGTH_WEIGHT).min(LENGTH_SECONDS_MAX);
        Due(self.0 + Duration::from_secs_f64(prompt_s), self.1)
    }
}

/// A sequence in the queue.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) new: NewSequence,
    pub(super) client: ClientIndex,
    /// Its turn among those that wait.
    pub(super) due: Due,
    /// Where it was in a slot before: how many of its positions were found in the cache then.
    pub(super) cached_before: Option<usize>,
}

/// A sequence in a slot.
pub struct Sequence {
    pub stream: StreamId,
    /// Prompt and answer so far.
    pub tokens: Vec<u32>,
    pub prompt_len: usize,
    /// Positions whose keys and values are in the cache, or will be before a later step reads them. On a device that has
    /// steps under way it may be one more than there are tokens: that of the token to come.
    pub computed: usize,
    /// Positions that were found in the cache when it began, and whether it is still its first time in a slot.
    pub(super) cached: usize,
    pub(super) is_first_time: bool,
    pub tokens_max: usize,
    pub arrival: Instant,
    pub client: ClientId,
    pub(super) client_index: ClientIndex,
    pub(super) due: Due,
    pub priority: Priority,
    pub sampling: SamplingParams,
    pub stop_at_end: bool,
    /// What its answer must look like, as far as that has come.
    pub guide: Option<Guided>,
    pub predicted: Arc<[u32]>,
    pub scoring: Option<Scoring>,
    /// What penalties look at.
    pub history: History,
    /// What may come next.
    pub draft: Draft,
    /// Its next set of allowed tokens has no turn in the step being formed.
    pub(super) sits_out: bool,
}

impl NewSequence {
    /// One of normal priority that has nothing of its answer yet.
    #[must_use]
    pub fn new(
        stream: StreamId,
        tokens: Vec<u32>,
        tokens_max: usize,
        sampling: SamplingParams,
        arrival: Instant,
    ) -> Self {
        let (client, priority) = (ClientId::default(), Priority::Normal);
        Self {
            stream,
            tokens,
            generated: 0,
            tokens_max,
            arrival,
            client,
            priority,
            sampling,
            stop_at_end: true,
            guide: None,
            predicted: Arc::default(),
            scoring: None,
        }
    }

    /// Tokens that may begin as others have computed them: all but the last, whose logits are asked for in any case, and
    /// those before a token that is to be scored.
    pub(super) fn adoptable(&self) -> &[u32] {
        let end = self.tokens.len() - 1;
        &self.tokens[..self.scoring.map_or(end, |scoring| scoring.done.min(end))]
    }

    /// Has `beside`'s owner, who has it from now on, told where its guide comes back from elsewhere.
    pub fn follow_guide(&self, beside: &Beside) {
        if let Some(guide) = &self.guide {
            guide.follow(beside);
        }
    }

    /// Positions that the sequence can come to hold.
    #[must_use]
    pub fn positions_max(&self) -> usize {
        self.tokens.len() - self.generated + self.tokens_max
    }

    pub(super) fn rank(&self) -> Rank {
        Rank(self.arrival + self.priority.patience(), self.stream)
    }

    /// Blocks that it needs to begin and to go on for a while.
    pub(super) fn blocks_wanted(&self) -> usize {
        blocks_wanted(self.tokens.len(), self.positions_max())
    }
}

impl Sequence {
    /// One that begins with `cached` positions; the rows of its prompt take `row_s` seconds each.
    pub(super) fn start(waiting: Waiting, cached: usize, row_s: f64) -> Self {
        let Waiting { new, client, cached_before, .. } = waiting;
        let due = new.rank().due(new.tokens.len() - cached, row_s);
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
            computed: cached,
            cached: cached_before.unwrap_or(cached),
            is_first_time: cached_before.is_none(),
            tokens_max: new.tokens_max,
            arrival: new.arrival,
            client: new.client,
            client_index: client,
            due,
            priority: new.priority,
            sampling: new.sampling,
            stop_at_end: new.stop_at_end,
            guide: new.guide,
            predicted: new.predicted,
            scoring: new.scoring,
            history,
            draft: Draft::default(),
            sits_out: false,
        }
    }

    pub(super) fn into_waiting(self) -> Waiting {
        // It goes before those of its priority that have not been in a slot.
        let (due, client) = (self.rank().due(0, 0.0), self.client_index);
        Waiting { cached_before: Some(self.cached), client, due, new: self.into_new() }
    }

    pub(super) fn into_new(self) -> NewSequence {
        NewSequence {
            stream: self.stream,
            generated: self.generated(),
            tokens: self.tokens,
            tokens_max: self.tokens_max,
            arrival: self.arrival,
            client: self.client,
            priority: self.priority,
            sampling: self.sampling,
            stop_at_end: self.stop_at_end,
            guide: self.guide,
            predicted: self.predicted,
            scoring: self.scoring,
        }
    }

    /// Tokens of the answer so far.
    #[must_use]
    pub fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Tokens of the prompt that were found in the cache.
    #[must_use]
    pub fn cached(&self) -> usize {
        self.cached
    }

    /// Whether nothing was computed for it yet.
    #[must_use]
    pub fn is_at_its_beginning(&self) -> bool {
        self.is_first_time && self.computed == self.cached
    }

    /// Adds a token of the answer.
    pub fn push(&mut self, token: u32) {
        self.tokens.push(token);
        self.history.push_output(token);
        let is_last = self.generated() >= self.tokens_max;
        match &mut self.guide {
            Some(guide) if is_last => guide.push(token),
            Some(guide) => guide.push_or_later(token),
            None => {}
        }
    }

    /// Whether a guide says which tokens may come next.
    #[must_use]
    pub fn is_guided(&self) -> bool {
        self.guide.as_ref().is_some_and(Guided::is_at_work)
    }

    /// Whether it waits for its guide, which computes beside the steps what may come next.
    #[must_use]
    pub fn waits_for_guide(&self) -> bool {
        self.guide.as_ref().is_some_and(Guided::is_beside)
    }

    /// Whether it wants a row of the next step for its next token.
    pub(super) fn decodes(&self) -> bool {
        self.pending() == 1 && !self.waits_for_guide()
    }

    /// Tokens whose keys and values are not in the cache: one while it decodes, none while its next token is on its way.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.tokens.len().saturating_sub(self.computed)
    }

    /// Tokens whose keys and values are in the cache.
    pub(super) fn stored(&self) -> &[u32] {
        &self.tokens[..self.computed.min(self.tokens.len())]
    }

    pub(super) fn rank(&self) -> Rank {
        Rank(self.arrival + self.priority.patience(), self.stream)
    }

    pub(super) fn blocks_wanted(&self) -> usize {
        blocks_wanted(self.tokens.len(), self.prompt_len + self.tokens_max)
    }

    /// Those of `positions` whose logits score the next token of the prompt.
    #[must_use]
    pub fn scored(&self, positions: Range<usize>) -> Range<usize> {
        let Some(scoring) = self.scoring else { return positions.end..positions.end };
        let end = positions.end.min(self.prompt_len - 1);
        positions.start.max(scoring.done).min(end)..end
    }

    /// Says which logits of the row just added the sampler will look at, for the token `ahead` places after the next one.
    pub(super) fn want(&self, step: &mut Step, ahead: usize) {
        // The best of all tokens need not be the best of those that are allowed.
        if self.is_guided() {
            return;
        }
        if let Some(reach) = self.sampling.reach((self.tokens.len() + ahead) as u64) {
            step.want_best(reach, self.sampling.changed(&self.history));
        }
    }
}

/// How many times what its prompt takes a sequence lets others go first.
const LENGTH_WEIGHT: f64 = 4.0;
/// And for no longer than this.
const LENGTH_SECONDS_MAX: f64 = 60.0;

/// With a block to spare, so that who is let in is not pushed out by its own first tokens.
fn blocks_wanted(tokens: usize, positions_max: usize) -> usize {
    blocks_for((tokens + BLOCK).min(positions_max))
}
