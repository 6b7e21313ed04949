//! Log-probabilities of an answer, kept as numbers until they are written: a token has 21 of them, and an answer may have
//! a hundred thousand tokens.

use std::ops::Range;

use crate::json::{write_f32, write_string, write_string_lossy, write_u64};

/// The bytes of a token, not always UTF-8.
pub type PieceOf<'p> = &'p dyn Fn(u32) -> &'p [u8];

/// Natural logarithms of the probabilities of chosen tokens, and of the best ones at the position of each.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Logprobs {
    chosen: Vec<Chosen>,
    top: Vec<(u32, f32)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Chosen {
    token: u32,
    /// None for the first token of a prompt.
    logprob: Option<f32>,
    /// Where its best tokens end among all.
    top_end: usize,
}

impl Logprobs {
    pub fn push(&mut self, token: u32, logprob: f32, top: &[(u32, f32)]) {
        self.top.extend_from_slice(top);
        self.chosen.push(Chosen { token, logprob: Some(logprob), top_end: self.top.len() });
    }

    /// The first token of a prompt, which nothing foretells.
    pub fn push_first(&mut self, token: u32) {
        self.chosen.push(Chosen { token, logprob: None, top_end: self.top.len() });
    }

    /// Bytes of a token and so many best ones.
    pub const fn bytes_of_token(top: usize) -> usize {
        size_of::<Chosen>() + top * size_of::<(u32, f32)>()
    }

    /// Characters that the tokens of `range` begin.
    pub fn chars(&self, range: Range<usize>, piece_of: PieceOf<'_>) -> usize {
        self.chosen[range].iter().map(|chosen| chars_begun(piece_of(chosen.token))).sum()
    }

    /// Chosen tokens.
    pub fn len(&self) -> usize {
        self.chosen.len()
    }

    pub fn is_empty(&self) -> bool {
        self.chosen.is_empty()
    }

    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Keeps the first `len` chosen tokens.
    pub fn truncate(&mut self, len: usize) {
        self.chosen.truncate(len);
        self.top.truncate(self.chosen.last().map_or(0, |chosen| chosen.top_end));
    }

    fn top_of(&self, at: usize) -> &[(u32, f32)] {
        let start = if at == 0 { 0 } else { self.chosen[at - 1].top_end };
        &self.top[start..self.chosen[at].top_end]
    }
}

/// How an endpoint writes them: as rows of columns, each an array over the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `{"content":[{token,logprob,bytes,top_logprobs}]}`
    Chat,
    /// Four parallel arrays.
    Completion,
}

impl Shape {
    pub(crate) fn columns(self) -> usize {
        match self {
            Self::Chat => 1,
            Self::Completion => 4,
        }
    }

    /// What stands before the first token of a column.
    pub(crate) fn open(self, column: usize) -> &'static [u8] {
        match (self, column) {
            (Self::Chat, _) => b"{\"content\":[",
            (Self::Completion, 0) => b"{\"tokens\":[",
            (Self::Completion, 1) => b"],\"token_logprobs\":[",
            (Self::Completion, 2) => b"],\"top_logprobs\":[",
            (Self::Completion, _) => b"],\"text_offset\":[",
        }
    }

    /// By how much a token's entries in all columns may be longer than that in the first.
    fn row_factor(self) -> usize {
        match self {
            Self::Chat => 1,
            Self::Completion => 32,
        }
    }

    /// What stands behind the last column.
    pub(crate) fn close(self) -> &'static [u8] {
        match self {
            Self::Chat => b"],\"refusal\":null}",
            Self::Completion => b"]}",
        }
    }
}

/// Writes one column after the other, token by token.
#[derive(Clone, Copy)]
pub(crate) struct Writer<'a, 'p> {
    pub(crate) shape: Shape,
    pub(crate) logprobs: &'a Logprobs,
    pub(crate) piece_of: PieceOf<'p>,
}

impl Writer<'_, '_> {
    /// Appends what `column` says of token `at`, where `from` is the first of this piece of text; `offset` counts the
    /// characters before it and goes on to the next one's.
    pub(crate) fn write(&self, out: &mut Vec<u8>, column: usize, at: usize, from: usize, offset: &mut usize) {
        if at > from {
            out.push(b',');
        }
        let Chosen { token, logprob, .. } = self.logprobs.chosen[at];
        match (self.shape, column) {
            (Shape::Chat, _) => self.write_chat_token(out, at),
            (Shape::Completion, 0) => write_key(out, (self.piece_of)(token)),
            (Shape::Completion, 1) => match logprob {
                Some(logprob) => write_logprob(out, logprob),
                None => out.extend_from_slice(b"null"),
            },
            (Shape::Completion, 2) => self.write_completion_top(out, at),
            (Shape::Completion, _) => {
                write_u64(out, *offset as u64);
                *offset += chars_begun((self.piece_of)(token));
            }
        }
    }

    fn write_chat_token(&self, out: &mut Vec<u8>, at: usize) {
        let Chosen { token, logprob, .. } = self.logprobs.chosen[at];
        // A chat's prompt is not echoed.
        write_token(out, (self.piece_of)(token), logprob.unwrap_or(f32::NEG_INFINITY));
        out.extend_from_slice(b",\"top_logprobs\":[");
        for (index, &(token, logprob)) in self.logprobs.top_of(at).iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            write_token(out, (self.piece_of)(token), logprob);
            out.push(b'}');
        }
        out.extend_from_slice(b"]}");
    }

    fn write_completion_top(&self, out: &mut Vec<u8>, at: usize) {
        let top = self.logprobs.top_of(at);
        if top.is_empty() {
            return out.extend_from_slice(b"null");
        }
        for (index, &(token, logprob)) in top.iter().enumerate() {
            out.push(if index == 0 { b'{' } else { b',' });
            write_key(out, (self.piece_of)(token));
            out.push(b':');
            write_logprob(out, logprob);
        }
        out.push(b'}');
    }

    /// Appends the object of the tokens from `from` on, as many as take about `bytes_max`, but one if there is any; the first
    /// that was left out. `offset` as for [`Self::write`].
    pub(crate) fn write_from(&self, out: &mut Vec<u8>, from: usize, offset: usize, bytes_max: usize) -> usize {
        let mut end = self.logprobs.len();
        for column in 0..self.shape.columns() {
            out.extend_from_slice(self.shape.open(column));
            let mut offset = offset;
            let start = out.len();
            for at in from..end {
                self.write(out, column, at, from, &mut offset);
                if column == 0 && (out.len() - start) * self.shape.row_factor() >= bytes_max {
                    end = at + 1;
                    break;
                }
            }
        }
        out.extend_from_slice(self.shape.close());
        end
    }
}

/// Continuation bytes belong to a character that an earlier token began.
fn chars_begun(piece: &[u8]) -> usize {
    piece.iter().filter(|&&byte| byte & 0xc0 != 0x80).count()
}

/// An object left open for more fields.
fn write_token(out: &mut Vec<u8>, piece: &[u8], logprob: f32) {
    out.extend_from_slice(b"{\"token\":");
    write_string_lossy(out, piece);
    out.extend_from_slice(b",\"logprob\":");
    write_logprob(out, logprob);
    out.extend_from_slice(b",\"bytes\":");
    write_byte_array(out, piece);
}

/// OpenAI's floor for what is practically impossible; JSON has no -inf.
fn write_logprob(out: &mut Vec<u8>, logprob: f32) {
    write_f32(out, logprob.max(-9999.0));
}

/// A piece as a key: `bytes:\xNN..` as OpenAI spells what is not UTF-8, so that keys stay distinct.
fn write_key(out: &mut Vec<u8>, piece: &[u8]) {
    match str::from_utf8(piece) {
        Ok(text) => write_string(out, text),
        Err(_) => {
            let mut key = String::from("bytes:");
            piece.iter().for_each(|byte| key.push_str(&format!("\\x{byte:02x}")));
            write_string(out, &key);
        }
    }
}

pub(crate) fn write_byte_array(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'[');
    for (at, byte) in bytes.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write_u64(out, u64::from(*byte));
    }
    out.push(b']');
}
