//! GBNF, llama.cpp's language of grammars, in terms of what the grammar library takes.

mod lark;
mod parse;
mod terminals;
#[cfg(test)]
mod tests;

pub(super) use lark::{Translated, translate};

/// A grammar as it was written.
#[derive(Debug)]
struct Grammar {
    rules: Vec<Expr>,
    root: usize,
}

/// What a rule stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Expr {
    /// One code point of these ranges, which are sorted, apart and not empty.
    Chars(Vec<(u32, u32)>),
    Sequence(Vec<Self>),
    Alternatives(Vec<Self>),
    /// At least so often, and at most, if there is a most.
    Repeat(Box<Self>, u32, Option<u32>),
    /// A rule of that index.
    Rule(usize),
}

/// Why a text is no grammar, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("in line {line}, {fault}")]
pub struct GbnfError {
    line: usize,
    fault: Fault,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Fault {
    #[error("a rule must begin with its name")]
    Name,
    #[error("`::=` must follow the name of a rule")]
    Is,
    #[error("`{0}` is not expected")]
    Unexpected(char),
    #[error("`{0}` is not closed")]
    Open(char),
    #[error("a set of characters is empty")]
    NoChars,
    #[error("a range of characters ends before it begins")]
    Range,
    #[error("`\\{0}` is no escape: there are \\x, \\u, \\U, \\t, \\r, \\n, \\\\, \\\", \\[ and \\]")]
    Escape(char),
    #[error("an escape lacks hexadecimal digits")]
    Digits,
    #[error("an escape names no character")]
    CodePoint,
    #[error("`{0}` repeats nothing")]
    RepeatsNothing(char),
    #[error("a repetition must have the form {{m}}, {{m,}} or {{m,n}}")]
    Repetition,
    #[error("a repetition has more than {REPETITIONS_MAX}")]
    Repetitions,
    #[error("a repetition's most is less than its least")]
    Order,
    #[error("it is nested deeper than {DEPTH_MAX}")]
    Depth,
    #[error("tokens (`<..>`) are not supported")]
    Tokens,
    #[error("rule `{0}` is defined again")]
    Again(String),
    #[error("rule `{0}` is not defined")]
    Undefined(String),
    #[error("the rule `root`, where every answer begins, is missing")]
    NoRoot,
}

/// Groups within groups, and repetitions of repetitions.
const DEPTH_MAX: usize = 100;
const REPETITIONS_MAX: u32 = 2000;
/// Of a rule's name in an error.
const NAME_CHARS_MAX: usize = 64;
/// The last code point, and those before the last that are no characters.
const CODE_POINT_MAX: u32 = 0x10_ffff;
const SURROGATES: (u32, u32) = (0xd800, 0xdfff);
