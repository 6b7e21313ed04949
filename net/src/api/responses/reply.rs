//! The object of a response and its parts, written in pieces: each of them is as long as the answer.

use std::ops::Range;

use super::super::body::{CallReply, PIECE_BYTES, beginning};
use super::super::logprobs::{Logprobs, PieceOf, Shape, Writer};
use super::super::reply::{FinishReason, Usage, write_call_id};
use crate::error::ApiError;
use crate::json::{write_escaped, write_string, write_u64};

/// What is the same in a response from its creation to its end.
#[derive(Debug)]
pub struct ResponseHead<'a> {
    /// Of the request; the ids of the response and of its message are made of it.
    pub id: u128,
    /// Unix seconds.
    pub created_s: u64,
    pub model: String,
    /// As the request has them.
    pub parameters: &'a [u8],
}

/// An answer as far as it has come.
#[derive(Clone, Copy)]
pub struct ResponseAnswer<'t, 'a> {
    pub text: &'t str,
    /// The calls that it has begun, by their index; where there are any and no text, it is no message.
    pub call_of: &'a dyn Fn(usize) -> Option<CallReply<'a>>,
    /// Of its text, where they were asked for.
    pub logprobs: Option<&'a Logprobs>,
    pub piece_of: PieceOf<'a>,
    /// Once it has ended.
    pub finish: Option<FinishReason>,
    pub usage: Usage,
    /// When it ended, in Unix seconds.
    pub completed_s: u64,
}

/// What is said of a response as a whole.
#[derive(Clone, Copy)]
pub(crate) enum State<'s, 'a> {
    InProgress,
    Ended(&'s ResponseAnswer<'s, 'a>),
    Failed(&'s ApiError),
}

/// JSON in parts that may be long.
#[derive(Default)]
pub(crate) struct Spans<'a>(Vec<Span<'a>>);

enum Span<'a> {
    Json(Vec<u8>),
    Shared(&'a [u8]),
    /// What stands between quotes.
    Text(&'a str),
    /// What stands between brackets.
    Logprobs(&'a Logprobs),
}

/// How much of some spans was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    span: usize,
    /// Bytes or tokens of it.
    offset: usize,
}

impl Cursor {
    pub(crate) fn has_begun(self) -> bool {
        self != Self::default()
    }
}

impl<'s> Spans<'s> {
    /// The end of what is there, for something short.
    pub(crate) fn json(&mut self) -> &mut Vec<u8> {
        if !matches!(self.0.last(), Some(Span::Json(_))) {
            self.0.push(Span::Json(Vec::with_capacity(256)));
        }
        match self.0.last_mut() {
            Some(Span::Json(json)) => json,
            _ => unreachable!("pushed above if it was none"),
        }
    }

    /// A text with its quotes.
    pub(crate) fn text(&mut self, text: &'s str) {
        self.json().push(b'"');
        self.0.push(Span::Text(text));
        self.json().push(b'"');
    }

    /// The log-probabilities of an answer's text, none where they were not asked for.
    pub(crate) fn logprobs<'a: 's>(&mut self, answer: &ResponseAnswer<'s, 'a>) {
        self.json().push(b'[');
        if let Some(logprobs) = answer.logprobs {
            self.0.push(Span::Logprobs(logprobs));
        }
        self.json().push(b']');
    }

    /// The only part of the message's content; an empty one while there is no answer.
    pub(crate) fn part<'a: 's>(&mut self, answer: Option<&ResponseAnswer<'s, 'a>>) {
        self.json().extend_from_slice(b"{\"type\":\"output_text\",\"annotations\":[],\"logprobs\":");
        match answer {
            Some(answer) => {
                self.logprobs(answer);
                self.json().extend_from_slice(b",\"text\":");
                self.text(answer.text);
            }
            None => self.json().extend_from_slice(b"[],\"text\":\"\""),
        }
        self.json().push(b'}');
    }

    /// The message, of one part once there is an answer.
    pub(crate) fn message<'a: 's>(&mut self, head: &ResponseHead<'_>, answer: Option<&ResponseAnswer<'s, 'a>>) {
        let json = self.json();
        json.extend_from_slice(b"{\"type\":\"message\",\"id\":");
        write_message_id(json, head);
        json.extend_from_slice(b",\"status\":");
        let is_cut =
            answer.is_some_and(|answer| answer.finish == Some(FinishReason::Length) && (answer.call_of)(0).is_none());
        json.extend_from_slice(match answer {
            None => b"\"in_progress\"",
            Some(_) if is_cut => b"\"incomplete\"",
            Some(_) => b"\"completed\"".as_slice(),
        });
        json.extend_from_slice(b",\"role\":\"assistant\",\"content\":[");
        if answer.is_some() {
            self.part(answer);
        }
        self.json().extend_from_slice(b"]}");
    }

    /// A call, without its arguments while it `is_open`.
    pub(crate) fn call(&mut self, call: CallReply<'s>, is_open: bool) {
        let json = self.json();
        json.extend_from_slice(b"{\"type\":\"function_call\",\"id\":");
        write_item_id(json, call.id);
        json.extend_from_slice(match (is_open, call.is_complete) {
            (true, _) => b",\"status\":\"in_progress\",\"call_id\":".as_slice(),
            (false, true) => b",\"status\":\"completed\",\"call_id\":",
            (false, false) => b",\"status\":\"incomplete\",\"call_id\":",
        });
        write_call_id(json, call.id);
        json.extend_from_slice(b",\"name\":");
        write_string(json, call.name);
        json.extend_from_slice(b",\"arguments\":");
        self.text(if is_open { "" } else { call.arguments });
        self.json().push(b'}');
    }

    /// The response.
    pub(crate) fn response<'a: 's>(&mut self, head: &'s ResponseHead<'_>, state: State<'s, 'a>) {
        let json = self.json();
        json.extend_from_slice(b"{\"id\":");
        write_hex_id(json, b"resp_", head.id);
        json.extend_from_slice(b",\"object\":\"response\",\"created_at\":");
        write_u64(json, head.created_s);
        json.extend_from_slice(b",\"model\":");
        write_string(json, &head.model);
        match state {
            State::InProgress => {
                json.extend_from_slice(b",\"status\":\"in_progress\",\"completed_at\":null,\"error\":null");
                json.extend_from_slice(b",\"incomplete_details\":null,\"output\":[],\"usage\":null");
            }
            State::Failed(error) => {
                json.extend_from_slice(b",\"status\":\"failed\",\"completed_at\":null,\"error\":{\"code\":\"");
                json.extend_from_slice(error_code(error));
                json.extend_from_slice(b"\",\"message\":");
                write_string(json, &error.message);
                json.extend_from_slice(b"},\"incomplete_details\":null,\"output\":[],\"usage\":null");
            }
            State::Ended(answer) => self.ended(head, answer),
        }
        self.0.push(Span::Shared(head.parameters));
        self.json().push(b'}');
    }

    fn ended<'a: 's>(&mut self, head: &ResponseHead<'_>, answer: &ResponseAnswer<'s, 'a>) {
        let json = self.json();
        if answer.finish == Some(FinishReason::Length) {
            json.extend_from_slice(b",\"status\":\"incomplete\",\"completed_at\":null,\"error\":null");
            json.extend_from_slice(b",\"incomplete_details\":{\"reason\":\"max_output_tokens\"},\"output\":[");
        } else {
            json.extend_from_slice(b",\"status\":\"completed\",\"completed_at\":");
            write_u64(json, answer.completed_s);
            json.extend_from_slice(b",\"error\":null,\"incomplete_details\":null,\"output\":[");
        }
        let has_message = !answer.text.is_empty() || (answer.call_of)(0).is_none();
        if has_message {
            self.message(head, Some(answer));
        }
        let calls = (0..).map_while(|index| (answer.call_of)(index));
        for (index, call) in calls.enumerate() {
            if has_message || index > 0 {
                self.json().push(b',');
            }
            self.call(call, false);
        }
        let json = self.json();
        json.extend_from_slice(b"],\"usage\":");
        write_usage(json, &answer.usage);
    }

    /// Appends about as much as [`PIECE_BYTES`] from `cursor` on; whether that was the end.
    pub(crate) fn write_piece(&self, cursor: &mut Cursor, piece_of: PieceOf<'_>, out: &mut Vec<u8>) -> bool {
        let end = out.len() + PIECE_BYTES;
        while let Some(span) = self.0.get(cursor.span) {
            if out.len() >= end {
                return false;
            }
            let (len, from) = (span.len(), cursor.offset);
            cursor.offset = match span {
                Span::Json(json) => write_bytes(out, json, from),
                Span::Shared(json) => write_bytes(out, json, from),
                Span::Text(text) => {
                    let part = beginning(&text[from..]);
                    write_escaped(out, part.as_bytes());
                    from + part.len()
                }
                Span::Logprobs(logprobs) => {
                    write_logprobs(out, (logprobs, piece_of), 0, from..len.min(from + 1));
                    len.min(from + 1)
                }
            };
            if cursor.offset == len {
                *cursor = Cursor { span: cursor.span + 1, offset: 0 };
            }
        }
        true
    }
}

impl Span<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Json(json) => json.len(),
            Self::Shared(json) => json.len(),
            Self::Text(text) => text.len(),
            Self::Logprobs(logprobs) => logprobs.len(),
        }
    }
}

/// The body of a response that is sent as a whole.
pub struct ResponseBody<'s, 'a> {
    spans: Spans<'s>,
    cursor: Cursor,
    piece_of: PieceOf<'a>,
}

impl<'s, 'a: 's> ResponseBody<'s, 'a> {
    pub fn new(head: &'s ResponseHead<'_>, answer: &'s ResponseAnswer<'s, 'a>) -> Self {
        let mut spans = Spans::default();
        spans.response(head, State::Ended(answer));
        Self { spans, cursor: Cursor::default(), piece_of: answer.piece_of }
    }

    /// Appends the next piece; whether it was the last.
    pub fn write_piece(&mut self, out: &mut Vec<u8>) -> bool {
        self.spans.write_piece(&mut self.cursor, self.piece_of, out)
    }
}

/// Appends at most [`PIECE_BYTES`] of `bytes`; how many have been written then.
fn write_bytes(out: &mut Vec<u8>, bytes: &[u8], from: usize) -> usize {
    let to = bytes.len().min(from + PIECE_BYTES);
    out.extend_from_slice(&bytes[from..to]);
    to
}

/// Appends those of the tokens of a range, behind others from `start` on.
pub(crate) fn write_logprobs(
    out: &mut Vec<u8>,
    (logprobs, piece_of): (&Logprobs, PieceOf<'_>),
    start: usize,
    range: Range<usize>,
) {
    let writer = Writer { shape: Shape::Chat, logprobs, piece_of };
    for at in range {
        writer.write(out, 0, at, start, &mut 0);
    }
}

pub(crate) fn write_message_id(out: &mut Vec<u8>, head: &ResponseHead<'_>) {
    write_hex_id(out, b"msg_", head.id);
}

/// Appends the id of the item that a call is.
pub(crate) fn write_item_id(out: &mut Vec<u8>, call: u128) {
    write_hex_id(out, b"fc_", call);
}

fn write_hex_id(out: &mut Vec<u8>, prefix: &[u8], id: u128) {
    out.push(b'"');
    out.extend_from_slice(prefix);
    out.extend_from_slice(format!("{id:032x}\"").as_bytes());
}

/// No tokens are for reasoning, and what is kept of a prompt for those to come is not counted.
fn write_usage(out: &mut Vec<u8>, usage: &Usage) {
    out.extend_from_slice(b"{\"input_tokens\":");
    write_u64(out, usage.prompt_tokens);
    out.extend_from_slice(b",\"input_tokens_details\":{\"cached_tokens\":");
    write_u64(out, usage.cached_tokens);
    out.extend_from_slice(b",\"cache_write_tokens\":0},\"output_tokens\":");
    write_u64(out, usage.completion_tokens);
    out.extend_from_slice(b",\"output_tokens_details\":{\"reasoning_tokens\":0},\"total_tokens\":");
    write_u64(out, usage.prompt_tokens.saturating_add(usage.completion_tokens));
    out.push(b'}');
}

/// The word of OpenAI's for an error of that status.
fn error_code(error: &ApiError) -> &'static [u8] {
    match error.status {
        429 => b"rate_limit_exceeded",
        400 => b"invalid_prompt",
        _ => b"server_error",
    }
}
