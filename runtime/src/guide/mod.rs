//! Constrained answers: what a request's constraint allows as the next token, token by token.
//!
//! The grammars are llguidance's: an Earley parser over lexemes whose automata are made as they are needed. A constraint is
//! compiled away from every shard ([`Compiler`]); each sequence then has a [`Guide`] of its own, whose sets of tokens
//! follow from the grammar and the answer so far, and from nothing else.

mod beside;
#[cfg(test)]
mod call_tests;
mod calls;
mod compiler;
mod gbnf;
mod grammar;
mod marker;
mod memory;
mod pace;
mod schema;
#[cfg(test)]
pub(crate) mod tests;
mod vocabulary;

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use llguidance::api::ParserLimits;
use llguidance::toktrie::{SimpleVob, TokEnv};
use llguidance::{CancellationHandle, Matcher};

use crate::shared::PerWorker;
pub use beside::Beside;
use beside::Errand;
#[cfg(test)]
pub(crate) use compiler::Library;
pub use compiler::{Compiled, Compiler};
pub use gbnf::GbnfError;
use marker::Marker;
use memory::Share;
use pace::Pace;
#[cfg(test)]
pub(crate) use pace::SETS_TIME_MAX;

/// Where an answer stands in its grammar.
pub struct Guide {
    matcher: Matcher,
    /// What may come next, once that was asked.
    allowed: Option<SimpleVob>,
    failed: bool,
    /// The next token of the answer, where it was taken in before the answer has it.
    ahead: Option<u32>,
    /// The last token of the answer, where it is still to be taken in.
    later: Option<u32>,
    pace: Pace,
    /// Of the memory for all guides.
    share: Share,
    /// What its answer may begin with a text before, if that is so.
    marker: Option<Marker>,
    /// What each set takes at least.
    #[cfg(test)]
    least: Duration,
}

impl Guide {
    fn new(matcher: Matcher, share: Share, marker: Option<Marker>) -> Self {
        Self {
            matcher,
            allowed: None,
            failed: false,
            ahead: None,
            later: None,
            pace: Pace::default(),
            share,
            marker,
            #[cfg(test)]
            least: Duration::ZERO,
        }
    }

    /// One that shares nothing with it, as it stands; `None` where there is no memory for it.
    fn copy(&self) -> Option<Self> {
        let (share, marker) = (self.share.again()?, self.marker.clone());
        let (matcher, allowed) = (self.matcher.deep_clone(), self.allowed.clone());
        Some(Self { allowed, failed: self.failed, ..Self::new(matcher, share, marker) })
    }

    /// The same, whose work can be ended from elsewhere.
    fn cancellable(guide: PerWorker<Self>) -> (PerWorker<Self>, CancellationHandle) {
        let mut guide = guide;
        loop {
            if let Some(work) = guide.get_mut(0).matcher.cancellation_handle() {
                return (guide, work);
            }
            guide = guide.map(|guide| Self { matcher: guide.matcher.into_cancellable(), ..guide });
        }
    }

    /// Makes its last set one that took so long.
    #[cfg(test)]
    pub(crate) fn pretend_that_it_took(&mut self, time: Duration) {
        self.pace.observe(time);
    }

    /// One whose sets take so long at least.
    #[cfg(test)]
    pub(crate) fn taking(self, least: Duration) -> Self {
        Self { least, ..self }
    }

    /// One that rests until the answer says `open`.
    #[cfg(test)]
    pub(crate) fn behind(mut self, open: &'static str) -> Self {
        self.marker = self.matcher.tok_env().ok().map(|words| Marker::new(words, open));
        self
    }

    /// Takes in the beginning of an answer as far as it is in a token that began before, if it fits.
    fn takes(&mut self, bytes: &[u8], words: &TokEnv) -> bool {
        let tokens = words.tok_trie().greedy_tokenize(bytes);
        if words.tok_trie().decode_raw(&tokens) != bytes {
            return false;
        }
        let valid = self.matcher.validate_tokens(&tokens);
        if valid.as_ref().is_ok_and(|valid| *valid < tokens.len()) {
            return false;
        }
        self.allowed = None;
        self.failed |= valid.is_err() || self.matcher.consume_tokens(&tokens).is_err();
        true
    }

    /// The tokens that may come next, a bit for each; those that end the answer are among them where it may end. `None`
    /// where nothing may, or where that takes more work than is allowed.
    pub fn allowed(&mut self) -> Option<&[u32]> {
        if !self.is_known() {
            let Self { matcher, later, pace, .. } = self;
            #[cfg(test)]
            let until = tuning::thread_time() + self.least;
            let computed = pace.time(|| {
                later.take().map_or(Ok(()), |token| matcher.consume_token(token))?;
                #[cfg(test)]
                while tuning::thread_time() < until {}
                if matcher.is_stopped() { Ok(None) } else { matcher.compute_mask().map(Some) }
            });
            self.share.grow(self.matcher.last_step_stats().map_or(0, |stats| stats.lexer_cost));
            self.failed |= computed.is_err() || self.pace.is_over();
            self.allowed = computed.ok().flatten().filter(|_| !self.failed);
        }
        self.allowed.as_ref().map(SimpleVob::as_slice)
    }

    fn is_known(&self) -> bool {
        self.allowed.is_some() || self.failed || self.later.is_none() && self.matcher.is_stopped()
    }

    /// Takes in the next token of the answer, unless it has.
    pub fn push(&mut self, token: u32) {
        match self.ahead.take() {
            Some(ahead) => assert_eq!(ahead, token, "an answer goes on as was said"),
            None => {
                self.allowed = None;
                self.failed |= self.matcher.consume_token(token).is_err();
            }
        }
    }

    /// Takes in the next token of an answer that is sure to have it: who chooses it has time for that, others of a step may not. Not
    /// where its sets take long, as so do tokens.
    pub fn push_ahead(&mut self, token: u32) {
        if !self.pace.was_slow() {
            self.push(token);
            self.ahead = Some(token);
        }
    }

    /// Takes in the next token of the answer, where its sets take long not before the next one is asked for.
    fn push_or_later(&mut self, token: u32) {
        if self.ahead.is_none() && self.pace.was_slow() {
            (self.allowed, self.later) = (None, Some(token));
        } else {
            self.push(token);
        }
    }

    /// Whether the answer is complete, as far as its tokens have been taken in, and nothing may follow.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        !self.failed && self.later.is_none() && self.matcher.is_stopped()
    }

    /// Whether the grammar took more work than is allowed, here or before.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed
    }
}

/// A sequence's guide. While it is at work, a step samples at most one row of its sequence.
pub struct Guided {
    place: Place,
    /// The answer is free until this is seen.
    marker: Option<Marker>,
}

/// Where a guide is.
enum Place {
    Here(PerWorker<Guide>),
    /// It computes beside the steps what may come next.
    Beside(Errand),
    /// Between the two.
    Nowhere,
}

impl Guided {
    /// The guide, where the borrow checker sees that nobody else looks.
    ///
    /// # Panics
    /// While it is [beside](Self::is_beside) the steps.
    pub fn get_mut(&mut self) -> &mut Guide {
        match &mut self.place {
            Place::Here(guide) => guide.get_mut(0),
            _ => unreachable!("no sequence moves on while its guide is beside"),
        }
    }

    /// Whether its sequence must wait until it is known what may come next.
    #[must_use]
    pub fn is_beside(&self) -> bool {
        matches!(self.place, Place::Beside(_))
    }

    /// Whether its sets take longer than those that have a place in the steps.
    pub fn is_slow(&mut self, beside: &Beside) -> bool {
        self.is_beside() || self.is_at_work() && self.get_mut().pace.is_slow(beside.slow)
    }

    /// Has what may come next computed beside the steps, where that is likely to take long and is felt by others; where it takes so
    /// long that whoever comes or leaves would feel it, in any case.
    pub fn step_aside_if_slow(&mut self, beside: &mut Beside, is_felt: bool) {
        let leaves = |guide: &mut Guide| guide.pace.is_slow(beside.slow) && (is_felt || guide.pace.is_long());
        if !self.unknown().is_some_and(leaves) {
            return;
        }
        if let Place::Here(guide) = std::mem::replace(&mut self.place, Place::Nowhere) {
            self.place = match beside.begin(guide) {
                Ok(errand) => Place::Beside(errand),
                Err(guide) => Place::Here(guide),
            };
        }
    }

    /// Has `beside`'s owner told where it comes back, who has the sequence from now on.
    pub fn follow(&self, beside: &Beside) {
        if let Place::Beside(errand) = &self.place {
            errand.follow(beside);
        }
    }

    /// What its next set is likely to take of a step; nothing where that is little, known already, or computed beside.
    #[must_use]
    pub fn wanted(&mut self) -> Duration {
        self.unknown().map_or(Duration::ZERO, |guide| guide.pace.wanted())
    }

    /// What it owes before its next turn, where the sets of steps are limited.
    #[must_use]
    pub fn owed(&mut self) -> Duration {
        self.unknown().map_or(Duration::ZERO, |guide| guide.pace.owed())
    }

    /// Has it owe that much less.
    pub fn pay(&mut self, share: Duration) {
        if let Some(guide) = self.unknown() {
            guide.pace.pay(share);
        }
    }

    /// The guide, where a step would have to compute its set.
    fn unknown(&mut self) -> Option<&mut Guide> {
        if !self.is_at_work() || self.is_beside() {
            return None;
        }
        Some(self.get_mut()).filter(|guide| !guide.is_known())
    }

    /// Takes the guide back if it is done; whether it is.
    pub fn comes_back(&mut self) -> bool {
        let Place::Beside(errand) = &mut self.place else { return false };
        let Some(guide) = errand.take() else { return false };
        self.place = Place::Here(guide);
        true
    }

    /// Whether the next token must be one that the guide allows.
    #[must_use]
    pub fn is_at_work(&self) -> bool {
        self.marker.is_none()
    }

    /// Takes in the next token of the answer.
    pub fn push(&mut self, token: u32) {
        self.take_in(token, Guide::push);
    }

    /// The same, but a guide whose sets take long does so as it computes the next one: that it is complete, or has failed, is known
    /// by then.
    pub fn push_or_later(&mut self, token: u32) {
        self.take_in(token, Guide::push_or_later);
    }

    fn take_in(&mut self, token: u32, push: impl FnOnce(&mut Guide, u32)) {
        let mut marker = self.marker.take();
        let guide = self.get_mut();
        match &mut marker {
            None => push(guide, token),
            Some(found) => {
                if found.ends_with(token, guide) {
                    marker = None;
                }
            }
        }
        self.marker = marker;
    }

    /// The guide, for the worker that samples, if it is at work.
    ///
    /// # Safety
    /// Nobody else looks at it at this time.
    #[expect(unsafe_code, reason = "a row of a step is sampled by one worker")]
    #[expect(clippy::mut_from_ref, reason = "the caller vouches for exclusive use")]
    pub unsafe fn get(&self) -> Option<&mut Guide> {
        match &self.place {
            // SAFETY: the caller keeps the promise.
            Place::Here(guide) if self.is_at_work() => Some(unsafe { guide.get(0) }),
            _ => None,
        }
    }
}

impl From<Guide> for Guided {
    fn from(mut guide: Guide) -> Self {
        let marker = guide.marker.take();
        let mut guide = Some(guide);
        Self { place: Place::Here(PerWorker::new(1, || guide.take().expect("one is made"))), marker }
    }
}

impl GuideError {
    /// The field of the request that is at fault; `field` is that of the constraint, `is_flat` whether tools are written
    /// as the Responses API has them.
    pub fn field(&self, field: &'static str, is_flat: bool) -> Cow<'static, str> {
        match self {
            Self::Tool(index, _) if is_flat => format!("{field}[{index}].parameters").into(),
            Self::Tool(index, _) => format!("{field}[{index}].function.parameters").into(),
            Self::Content(field, _) => (*field).into(),
            _ => field.into(),
        }
    }
}

impl fmt::Debug for Guided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guided").finish_non_exhaustive()
    }
}

/// Why a constraint has no guide.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuideError {
    #[error("can't be kept to by this model: none of its tokens ends a text")]
    NoEnd,
    #[error("has parts that must hold together with more than {ALTERNATIVES_MAX} alternatives")]
    Alternatives,
    #[error("is nested deeper than {DEPTH_MAX}")]
    Depth,
    #[error("uses `{0}`, which is not supported in a grammar")]
    Directive(&'static str),
    #[error("looks like Lark and like GBNF: begin it with the comment `# lark` or `# gbnf`")]
    Language,
    #[error("is no GBNF: {0}")]
    Gbnf(#[from] GbnfError),
    #[error("can't be compiled: {0}")]
    Refused(String),
    #[error("must have type object, as arguments have names")]
    Arguments,
    #[error("needs more memory than other answers leave")]
    Memory,
    /// The tool of that index is at fault.
    #[error("{1}")]
    Tool(usize, Box<Self>),
    /// That field of the request is at fault, which says what an answer is that calls no tool.
    #[error("{1}")]
    Content(&'static str, Box<Self>),
}

/// What a grammar may take, so that a hostile one holds up no step for long and takes little memory.
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: ITEMS_PER_ROW_MAX,
        initial_lexer_fuel: COMPILE_FUEL,
        step_lexer_fuel: STEP_FUEL,
        step_max_items: STEP_ITEMS_MAX,
        max_lexer_states: LEXER_STATES_MAX,
        max_grammar_size: SYMBOLS_MAX,
        precompute_large_lexemes: true,
        verbose_errors: false,
    }
}

/// Alternatives of a JSON schema that are merged at one place.
const ALTERNATIVES_MAX: u64 = 4096;
/// Brackets within brackets of a grammar or a regular expression; JSON is bounded by its reader.
const DEPTH_MAX: usize = 100;
/// Symbols of a compiled grammar.
const SYMBOLS_MAX: usize = 100_000;
/// Work to make the automata of lexemes, about 50,000 a millisecond.
const COMPILE_FUEL: u64 = 1_000_000;
/// Work to extend them for one set of tokens, about 14,000 a millisecond.
const STEP_FUEL: u64 = 50_000;
/// Items of the parser for one set of tokens, about 20,000 a millisecond, and for one byte.
const STEP_ITEMS_MAX: usize = 40_000;
const ITEMS_PER_ROW_MAX: usize = 2_000;
/// States of a sequence's automata, 1 to 2 KiB each.
const LEXER_STATES_MAX: usize = 8_192;
/// What a guide is taken to have before its first token (grammars of 100 KiB take as much), what it grows by for its work,
/// and by how much at most. Most grow by less: automata of few letters by a hundredth.
const GUIDE_BYTES: u64 = 1 << 20;
const BYTES_PER_FUEL: u64 = 256;
const GROWTH_BYTES_MAX: u64 = (LEXER_STATES_MAX as u64) << 11;
/// No further guide is made where all together take more than one part in this many of the memory that is there when the
/// server starts, unless that is less than this.
const MEMORY_SHARE: u64 = 8;
const MEMORY_BYTES_LEAST: u64 = 256 << 20;
