//! Cross-validation: does a loaded model compute what its file says? Its logits on some texts are compared with those of
//! a reference: our own forward pass in f64 over the decoded weights, another model, or recorded logits. Its packed
//! weights are compared with the file's bit by bit.

mod compare;
mod npz;
mod reference;
mod tensors;

use std::time::{Duration, Instant};

use kernels::Isa;
use kernels::attention::KvType;
use serde::Serialize;

use crate::model::{self, Model, Source};
use crate::replay::Replay;

pub use compare::{Choice, Choices, Position, Scores};
pub use npz::{NpzError, Recorded};
pub use tensors::{TensorDifference, TensorReport};

use compare::Comparison;

/// What to compare with.
pub enum Reference<'a> {
    /// The forward pass in f64 over the weights of the model's own file.
    Own,
    /// Another model with the same vocabulary.
    Model { source: &'a Source, model: &'a Model },
    /// Logits from elsewhere.
    Recorded(&'a Recorded),
}

/// How much to compare and what to ask for.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Least share of positions whose best token is the reference's.
    pub min_accuracy: f64,
    /// Texts, at most: paragraphs of `text`, or built-in ones.
    pub samples: usize,
    /// Positions of all texts together, at most.
    pub positions_max: Option<usize>,
    /// Paragraphs with an empty line between them.
    pub text: Option<&'a str>,
    pub threads: usize,
    /// How the model, not its reference, keeps keys and values.
    pub kv_type: KvType,
    /// When to give up.
    pub deadline: Option<Instant>,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub reference: &'static str,
    pub min_accuracy: f64,
    pub samples: usize,
    #[serde(flatten)]
    pub scores: Scores,
    pub tensors: TensorReport,
    /// The positions that differ most, worst first.
    pub worst_positions: Vec<Position>,
}

/// Why a model is not as good as its reference.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Rejection {
    #[error("accuracy {accuracy:.4} is below {min_accuracy}{worst}")]
    Accuracy { accuracy: f64, min_accuracy: f64, worst: String },
    #[error("{different} of {checked} tensors are not what the file holds{worst}")]
    Tensors { different: usize, checked: usize, worst: String },
}

/// Why there is no comparison.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Model(#[from] model::Error),
    #[error("can't start a thread")]
    Thread(#[source] std::io::Error),
    #[error("the time for it is over")]
    Timeout,
    #[error("it would take {} s, more than the time for it", .0.as_secs())]
    TooSlow(Duration),
    #[error("the text has no paragraph of two tokens or more")]
    NoText,
    #[error("the vocabularies differ: {ours} and {theirs} tokens")]
    Vocabulary { ours: usize, theirs: usize },
    #[error("one is an embedding model and the other is none, or its vectors are of another length")]
    Kind,
    #[error("recorded logits can't be compared with an embedding model, which has none")]
    NoLogits,
    #[error("the tokenizers differ on {text:?}")]
    Tokenizer { text: String },
    #[error("the recorded sequence of {found} tokens is longer than the model's context of {context}")]
    TooLong { found: usize, context: usize },
    #[error("the recorded token {token} is not in the vocabulary of {vocab}")]
    Token { token: u32, vocab: usize },
}

impl Report {
    /// Whether the model may be served.
    ///
    /// # Errors
    /// What is not good enough, with the worst tensors or positions.
    pub fn verdict(&self) -> Result<(), Rejection> {
        let (checked, different) = (self.tensors.checked, self.tensors.different);
        // Another model may well hold other weights; the model's own file may not.
        if different > 0 && self.reference == OWN {
            let worst = named("; worst are ", self.tensors.worst.iter().map(ToString::to_string));
            return Err(Rejection::Tensors { different, checked, worst });
        }
        // Not a comparison with `<`, which a NaN would pass.
        if self.scores.accuracy >= self.min_accuracy {
            return Ok(());
        }
        let tensors = named("; worst tensors are ", self.tensors.worst.iter().map(ToString::to_string));
        let positions = named("; worst positions are ", self.worst_positions.iter().map(ToString::to_string));
        let (accuracy, min_accuracy) = (self.scores.accuracy, self.min_accuracy);
        Err(Rejection::Accuracy { accuracy, min_accuracy, worst: tensors + &positions })
    }
}

fn named(what: &str, items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.take(NAMED_MAX).collect();
    if items.is_empty() { String::new() } else { format!("{what}{}", items.join(", ")) }
}

/// Compares `model`, loaded from `source`, with `reference`. `progress` gets work done and work in all.
///
/// # Errors
/// When there is nothing to compare, the reference can't be read, or the time is over. A bad result is no error: see
/// [`Report::verdict`].
pub fn cross_validate(
    source: &Source,
    model: &Model,
    reference: &Reference<'_>,
    options: &Options<'_>,
    progress: &dyn Fn(u64, u64),
) -> Result<Report, Error> {
    let clock = Clock { deadline: options.deadline };
    let sequences = match reference {
        Reference::Recorded(_) if model.weights.params.pooling.is_some() => return Err(Error::NoLogits),
        Reference::Recorded(recorded) => recorded.checked_sequences(model)?,
        Reference::Own => sequences(model, options, SEQUENCE_TOKENS_MAX)?,
        Reference::Model { .. } => sequences(model, options, MODEL_TOKENS_MAX)?,
    };
    let tensors = match reference {
        Reference::Model { source: other, .. } => tensors::against_file(source, other, clock)?,
        _ => tensors::against_own_file(source, model, clock)?,
    };
    let mut comparison = Comparison::default();
    let name = match reference {
        Reference::Own => {
            let theirs = reference::logits(source, model, &sequences, (options.threads, clock), progress)?;
            compare_all(model, options, clock, &sequences, &theirs, &mut comparison)?;
            OWN
        }
        Reference::Model { model: other, .. } => {
            same_tokens(model, other, options)?;
            let theirs = replayed(other, options, KvType::F16, clock, &sequences)?;
            compare_all(model, options, clock, &sequences, &theirs, &mut comparison)?;
            "model"
        }
        Reference::Recorded(recorded) => {
            compare_all(model, options, clock, &sequences, recorded.logits(), &mut comparison)?;
            "recorded"
        }
    };
    let (scores, worst_positions) = comparison.finish(POSITIONS_SHOWN);
    let (min_accuracy, samples) = (options.min_accuracy, sequences.len());
    Ok(Report { reference: name, min_accuracy, samples, scores, tensors, worst_positions })
}

/// Logits of every sequence, row by row.
type Logits = Vec<Vec<f32>>;

fn compare_all(
    model: &Model,
    options: &Options<'_>,
    clock: Clock,
    sequences: &[Vec<u32>],
    theirs: &[Vec<f32>],
    comparison: &mut Comparison,
) -> Result<(), Error> {
    let ours = replayed(model, options, options.kv_type, clock, sequences)?;
    let params = &model.weights.params;
    let width = params.output_width();
    for (sample, tokens) in sequences.iter().enumerate() {
        let rows = ours[sample].chunks_exact(width).zip(theirs[sample].chunks_exact(width));
        for (position, (ours, theirs)) in rows.enumerate() {
            match params.pooling {
                Some(_) => comparison.add_states((sample, position), ours, theirs),
                None => comparison.add((sample, position), ours, theirs, tokens.get(position + 1).copied()),
            }
        }
    }
    Ok(())
}

fn replayed(
    model: &Model,
    options: &Options<'_>,
    kv_type: KvType,
    clock: Clock,
    sequences: &[Vec<u32>],
) -> Result<Logits, Error> {
    let positions = sequences.iter().map(Vec::len).max().unwrap_or(0);
    let mut replay =
        Replay::new(model, Isa::detect(), kv_type, options.threads.max(1), positions).map_err(Error::Thread)?;
    let mut all = Vec::with_capacity(sequences.len());
    for tokens in sequences {
        clock.check()?;
        let mut logits = Vec::with_capacity(tokens.len() * model.weights.params.output_width());
        replay.sequence(tokens, |_, row| logits.extend_from_slice(row));
        all.push(logits);
    }
    Ok(all)
}

/// The tokens of the paragraphs, each cut to `most`.
fn sequences(model: &Model, options: &Options<'_>, most: usize) -> Result<Vec<Vec<u32>>, Error> {
    let most = most.min(model.weights.context);
    let mut sequences = Vec::new();
    let mut left = options.positions_max.unwrap_or(POSITIONS_MAX).max(2);
    for paragraph in paragraphs(options) {
        let mut tokens = Vec::new();
        model.tokenizer.encode(paragraph, true, false, &mut tokens);
        tokens.truncate(most.min(left));
        if tokens.len() >= 2 {
            left -= tokens.len();
            sequences.push(tokens);
        }
        if left < 2 || sequences.len() == options.samples.clamp(1, SAMPLES_MAX) {
            break;
        }
    }
    if sequences.is_empty() { Err(Error::NoText) } else { Ok(sequences) }
}

fn paragraphs<'a>(options: &Options<'a>) -> impl Iterator<Item = &'a str> {
    options.text.unwrap_or(TEXT).split("\n\n").map(str::trim).filter(|paragraph| !paragraph.is_empty())
}

/// Whether two models have one vocabulary and cut the texts alike.
fn same_tokens(model: &Model, other: &Model, options: &Options<'_>) -> Result<(), Error> {
    let (ours, theirs) = (model.weights.params.vocab, other.weights.params.vocab);
    if ours != theirs {
        return Err(Error::Vocabulary { ours, theirs });
    }
    if model.weights.params.output_width() != other.weights.params.output_width() {
        return Err(Error::Kind);
    }
    for text in paragraphs(options).take(SAMPLES_MAX) {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        model.tokenizer.encode(text, true, false, &mut ours);
        other.tokenizer.encode(text, true, false, &mut theirs);
        if ours != theirs {
            return Err(Error::Tokenizer { text: text.chars().take(64).collect() });
        }
    }
    Ok(())
}

/// Tells when the time is over.
#[derive(Clone, Copy)]
struct Clock {
    deadline: Option<Instant>,
}

impl Clock {
    fn check(self) -> Result<(), Error> {
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(Error::Timeout),
            _ => Ok(()),
        }
    }

    /// The same for work of which `done` of `all` equal parts have taken the time since `started`: it is given up as soon
    /// as its end is known to come too late.
    fn check_pace(self, started: Instant, done: u32, all: u32) -> Result<(), Error> {
        let whole = started.elapsed() / done.max(1) * all;
        match self.deadline {
            Some(deadline) if started + whole > deadline => Err(Error::TooSlow(whole)),
            _ => Ok(()),
        }
    }
}

/// Built-in paragraphs, plain English of many kinds.
const TEXT: &str = include_str!("text.txt");
/// Of positions at which a model must choose its reference's token.
pub const MIN_ACCURACY_DEFAULT: f64 = 0.99;
/// Texts that are compared where nothing is said.
pub const SAMPLES_DEFAULT: usize = 4;
/// Most texts of a run.
pub const SAMPLES_MAX: usize = 64;
/// Tokens of a text that are compared: as many as f64 computes in short time, and with another model.
const SEQUENCE_TOKENS_MAX: usize = 64;
const MODEL_TOKENS_MAX: usize = 1024;
/// Positions of all texts, whose logits are kept.
const POSITIONS_MAX: usize = SAMPLES_MAX * SEQUENCE_TOKENS_MAX;
const POSITIONS_SHOWN: usize = 5;
const NAMED_MAX: usize = 3;
const OWN: &str = "f64";
