//! The thread that compiles constraints, so that none holds up a shard. What was compiled last is kept: clients send the
//! same schema again and again.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use llguidance::api::{GrammarInit, TopLevelGrammar};
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{Logger, Matcher, ParserFactory};
use net::api::{Constraint, ToolChoice};
use rtrb::{Consumer, Producer};
use serde_json::Value;

use super::calls;
use super::grammar::{grammar, json_grammar, refused};
use super::marker::Marker;
use super::memory::{Memory, Share};
use super::vocabulary::vocabulary;
use super::{Guide, GuideError, MEMORY_BYTES_LEAST, MEMORY_SHARE, limits};
use crate::mailbox::Doorbell;
use crate::model::Model;
use crate::text::{CALL_OPEN, Tokenizer};

/// The way to the thread; every executor has one. The thread ends when all are gone.
#[derive(Clone)]
pub struct Compiler {
    jobs: SyncSender<Job>,
}

/// Where a guide for each answer of a request arrives, once; abandoned where the thread broke down over it.
pub type Compiled = Consumer<Result<Vec<Guide>, GuideError>>;

struct Job {
    tokenizer: Arc<Tokenizer>,
    /// Tokens that the model scores.
    vocab: usize,
    constraint: Constraint,
    count: usize,
    reply: Producer<Result<Vec<Guide>, GuideError>>,
    /// Counts the replies of the shard, then wakes it.
    replies: Arc<AtomicU64>,
    bell: Arc<Doorbell>,
}

impl Compiler {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start() -> io::Result<Self> {
        let (jobs, queue) = sync_channel(JOBS_MAX);
        let thread = std::thread::Builder::new().name("grammars".into()).stack_size(STACK_BYTES);
        thread.spawn(move || compile_all(&queue))?;
        Ok(Self { jobs })
    }

    /// Has `constraint` compiled for `count` answers of `model`; `None` where too many wait already. Every reply adds one to
    /// `replies` and rings `bell`.
    pub fn compile(
        &self,
        model: &Model,
        constraint: Constraint,
        count: usize,
        (replies, bell): (&Arc<AtomicU64>, &Arc<Doorbell>),
    ) -> Option<Compiled> {
        let (reply, compiled) = rtrb::RingBuffer::new(1);
        let (replies, bell) = (Arc::clone(replies), Arc::clone(bell));
        let job = Job {
            tokenizer: Arc::clone(&model.tokenizer),
            vocab: model.weights.params.vocab,
            constraint,
            count,
            reply,
            replies,
            bell,
        };
        match self.jobs.try_send(job) {
            Ok(()) => Some(compiled),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => None,
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.replies.fetch_add(1, Ordering::SeqCst);
        self.bell.ring();
    }
}

fn compile_all(queue: &Receiver<Job>) {
    let free_bytes = tuning::memory::available_memory_bytes().unwrap_or(0);
    let memory = Memory::new((free_bytes / MEMORY_SHARE).max(MEMORY_BYTES_LEAST));
    let mut library = Library::within(&memory);
    while let Ok(mut job) = queue.recv() {
        // Whoever asked may have left meanwhile.
        if job.reply.is_abandoned() {
            continue;
        }
        let guides =
            catch_unwind(AssertUnwindSafe(|| library.guides((&job.tokenizer, job.vocab), &job.constraint, job.count)));
        let guides = guides.unwrap_or_else(|_| {
            library = Library::within(&memory);
            Err(refused("the compiler broke down over it"))
        });
        // One that left has no use for it.
        let _ = job.reply.push(guides);
    }
}

/// What was made lately, the latest last.
pub(crate) struct Library {
    memory: Arc<Memory>,
    factories: Vec<(Arc<Tokenizer>, usize, Arc<ParserFactory>)>,
    guides: Vec<(Arc<Tokenizer>, Constraint, Guide)>,
}

/// One whose guides may take any memory.
#[cfg(test)]
impl Default for Library {
    fn default() -> Self {
        Self::within(&Memory::new(u64::MAX))
    }
}

impl Library {
    pub(super) fn within(memory: &Arc<Memory>) -> Self {
        Self { memory: Arc::clone(memory), factories: Vec::new(), guides: Vec::new() }
    }

    pub(crate) fn guides(
        &mut self,
        (tokenizer, vocab): (&Arc<Tokenizer>, usize),
        constraint: &Constraint,
        count: usize,
    ) -> Result<Vec<Guide>, GuideError> {
        let is_it =
            |(of, known, _): &(Arc<Tokenizer>, Constraint, Guide)| Arc::ptr_eq(of, tokenizer) && known == constraint;
        let found = self.guides.iter().position(is_it).map(|at| self.guides.remove(at));
        let guide = match found {
            Some((_, _, guide)) => guide,
            None => {
                let factory = self.factory(tokenizer, vocab)?;
                let compiled = compile((&factory, &self.memory), constraint);
                compiled.map_err(|error| at_fault((&factory, &self.memory), constraint, error))?
            }
        };
        let copies: Option<Vec<Guide>> = (0..count).map(|_| guide.copy()).collect();
        if self.guides.len() == GUIDES_KEPT {
            self.guides.remove(0);
        }
        self.guides.push((Arc::clone(tokenizer), constraint.clone(), guide));
        copies.ok_or(GuideError::Memory)
    }

    fn factory(&mut self, tokenizer: &Arc<Tokenizer>, vocab: usize) -> Result<Arc<ParserFactory>, GuideError> {
        let found = self.factories.iter().find(|(of, len, _)| Arc::ptr_eq(of, tokenizer) && *len == vocab);
        if let Some((_, _, factory)) = found {
            return Ok(Arc::clone(factory));
        }
        let tokens = vocabulary(tokenizer, vocab).ok_or(GuideError::NoEnd)?;
        let mut factory = ParserFactory::new_simple(&tokens).map_err(|error| refused(&error.to_string()))?;
        factory.quiet();
        if self.factories.len() == VOCABULARIES_KEPT {
            // Models that have left go with it.
            let (gone, _, _) = self.factories.remove(0);
            self.guides.retain(|(of, _, _)| !Arc::ptr_eq(of, &gone));
        }
        let factory = Arc::new(factory);
        self.factories.push((Arc::clone(tokenizer), vocab, Arc::clone(&factory)));
        Ok(factory)
    }
}

/// A vocabulary, and the memory for guides.
type Place<'p> = (&'p ParserFactory, &'p Arc<Memory>);

fn compile((factory, memory): Place<'_>, constraint: &Constraint) -> Result<Guide, GuideError> {
    if let Constraint::Tools(tools) = constraint
        && let Some(content) = &tools.content
    {
        // Beside calls nobody would see that it allows no text.
        let alone = calls::schema(content).and_then(|schema| alone((factory, memory), schema));
        alone.map_err(|reason| GuideError::Content(content.field, Box::new(reason)))?;
    }
    let share = memory.share().ok_or(GuideError::Memory)?;
    let words = factory.tok_env();
    let is_free = matches!(constraint, Constraint::Tools(tools)
        if tools.choice == ToolChoice::Auto && tools.content.is_none());
    let marker = is_free.then(|| Marker::new(words.clone(), CALL_OPEN));
    let is_token = words.tok_trie().get_special_token(CALL_OPEN).is_some();
    guide(factory, grammar(constraint, is_token)?, share, marker)
}

fn guide(
    factory: &ParserFactory,
    grammar: TopLevelGrammar,
    share: Share,
    marker: Option<Marker>,
) -> Result<Guide, GuideError> {
    let caps = InferenceCapabilities::default();
    let grammar = GrammarInit::Serialized(grammar);
    let parser = factory.create_parser_from_init_ext(grammar, Logger::new(0, 0), caps, limits());
    let matcher = Matcher::new(parser);
    if let Some(error) = matcher.get_error() {
        return Err(refused(&error));
    }
    let mut guide = Guide::new(matcher, share, marker);
    // Finds what even the first token can't be chosen by, and makes what all copies begin with.
    if guide.allowed().is_none() {
        return Err(refused(&guide.matcher.get_error().unwrap_or_else(|| "it allows no text".into())));
    }
    Ok(guide)
}

/// A guide for values of a schema.
fn alone((factory, memory): Place<'_>, schema: Value) -> Result<Guide, GuideError> {
    let share = memory.share().ok_or(GuideError::Memory)?;
    guide(factory, TopLevelGrammar::from_grammar(json_grammar(schema)?), share, None)
}

/// The error, and which tool is to blame if one of them alone fails too.
fn at_fault(place: Place<'_>, constraint: &Constraint, error: GuideError) -> GuideError {
    let Constraint::Tools(tools) = constraint else { return error };
    let fails = |tool| match calls::arguments(tool).and_then(|schema| alone(place, schema)) {
        Err(GuideError::Memory) | Ok(_) => None,
        Err(error) => Some(error),
    };
    let mut tools = tools.list.iter().enumerate();
    tools.find_map(|(index, tool)| Some(GuideError::Tool(index, Box::new(fails(tool)?)))).unwrap_or(error)
}

/// Constraints that wait to be compiled.
const JOBS_MAX: usize = 64;
/// Compiled constraints that are kept, and vocabularies.
const GUIDES_KEPT: usize = 32;
const VOCABULARIES_KEPT: usize = 4;
/// The compiler of schemas recurses.
pub(super) const STACK_BYTES: usize = 64 << 20;
