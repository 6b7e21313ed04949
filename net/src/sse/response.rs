//! Events of a response: each has a name, which its data repeats as `type`, and a number. They come one by one, long ones in
//! pieces.

use super::Framing;
use crate::api::{
    Cursor, FinishReason, Logprobs, PIECE_BYTES, PieceOf, ResponseAnswer, ResponseHead, Spans, State, beginning,
    write_item_id, write_logprobs, write_message_id,
};
use crate::error::ApiError;
use crate::json::{write_string, write_u64};

/// One stream.
#[derive(Debug)]
pub struct ResponseStream<'a> {
    framing: Framing,
    head: ResponseHead<'a>,
    stage: Stage,
    /// How much of a long event was written.
    cursor: Cursor,
    /// Of the next event.
    sequence: u64,
    /// Of the item in progress, `,"item_id":..,"output_index":..`.
    place: Vec<u8>,
    /// Items that have begun.
    items: u64,
    /// The text so far, which the events at its end repeat.
    text: String,
    /// Log-probabilities that were sent with it.
    logprobs: usize,
    /// Calls that have ended, and bytes of the next one's arguments that were sent.
    calls: usize,
    arguments: usize,
    /// When it ended, in Unix seconds.
    completed_s: u64,
}

/// The event that comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Created,
    InProgress,
    /// An item or the end, whatever comes.
    Between,
    MessageAdded,
    PartAdded,
    Text,
    TextDone,
    PartDone,
    MessageDone,
    CallAdded,
    Arguments,
    ArgumentsDone,
    CallDone,
    Ended,
    Over,
}

impl<'a> ResponseStream<'a> {
    pub fn new(framing: Framing, head: ResponseHead<'a>) -> Self {
        Self {
            framing,
            head,
            stage: Stage::Created,
            cursor: Cursor::default(),
            sequence: 0,
            place: Vec::with_capacity(96),
            items: 0,
            text: String::new(),
            logprobs: 0,
            calls: 0,
            arguments: 0,
            completed_s: 0,
        }
    }

    /// The number of the next event.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Whether an event was begun and has no end yet.
    pub fn is_within_event(&self) -> bool {
        self.cursor.has_begun()
    }

    /// Whether the last event was written.
    pub fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// Appends the next event, or a piece of it; whether there was one. `text` is what is new of the answer's; it is emptied
    /// once it was written. Of an `answer` that has ended all is written by and by.
    pub fn advance(&mut self, out: &mut Vec<u8>, text: &mut String, answer: &ResponseAnswer<'_, '_>) -> bool {
        loop {
            match self.stage {
                Stage::Between => self.stage = self.next_item(text, answer),
                Stage::Text if text.is_empty() && !self.owes_logprobs(answer) => {
                    if answer.finish.is_none() && (answer.call_of)(0).is_none() {
                        return false;
                    }
                    self.stage = Stage::TextDone;
                }
                Stage::Text => {
                    self.text_delta(out, text, answer);
                    return true;
                }
                Stage::Arguments => {
                    let Some(call) = (answer.call_of)(self.calls) else { return false };
                    let rest = &call.arguments[self.arguments..];
                    if !rest.is_empty() {
                        self.arguments_delta(out, beginning(rest));
                        return true;
                    }
                    if !call.is_complete && answer.finish.is_none() {
                        return false;
                    }
                    self.stage = Stage::ArgumentsDone;
                }
                Stage::Over => return false,
                _ => {
                    self.whole(out, answer);
                    return true;
                }
            }
            if self.stage == Stage::Between {
                return false;
            }
        }
    }

    /// Appends what ends a stream whose last event was written.
    pub fn end(&self, out: &mut Vec<u8>) {
        self.framing.end(out);
    }

    /// Appends what is left to say where the answer fails after its first byte, no event being under way, and the body's end.
    pub fn fail(&mut self, out: &mut Vec<u8>, error: &ApiError) {
        let created = (self.stage == Stage::Created).then_some(("response.created", State::InProgress));
        for (name, state) in created.into_iter().chain([("response.failed", State::Failed(error))]) {
            let mut spans = self.event(name);
            spans.json().extend_from_slice(b",\"response\":");
            spans.response(&self.head, state);
            spans.json().extend_from_slice(b"}\n\n");
            let (mut cursor, mut done) = (Cursor::default(), false);
            while !done {
                self.framing.frame(out, |out| done = spans.write_piece(&mut cursor, &|_| &[], out));
            }
            self.sequence += 1;
        }
        self.stage = Stage::Over;
        self.framing.end(out);
    }

    /// Appends a short event of an error, and the body's end.
    pub fn error(&self, out: &mut Vec<u8>, error: &ApiError) {
        self.framing.frame(out, |out| {
            write_event(out, "error", self.sequence);
            out.extend_from_slice(b",\"code\":\"");
            out.extend_from_slice(error.code.as_str().as_bytes());
            out.extend_from_slice(b"\",\"message\":");
            write_string(out, &error.message);
            out.extend_from_slice(b",\"param\":");
            match &error.param {
                Some(param) => write_string(out, param),
                None => out.extend_from_slice(b"null"),
            }
            out.extend_from_slice(b"}\n\n");
        });
        self.framing.end(out);
    }

    /// Appends a keep-alive comment.
    pub fn keep_alive(&self, out: &mut Vec<u8>) {
        self.framing.keep_alive(out);
    }

    fn next_item(&self, text: &str, answer: &ResponseAnswer<'_, '_>) -> Stage {
        let is_over = answer.finish.is_some();
        let calls = (answer.call_of)(self.calls).is_some();
        match () {
            () if self.items == 0 && (!text.is_empty() || is_over && !calls) => Stage::MessageAdded,
            () if calls => Stage::CallAdded,
            () if is_over => Stage::Ended,
            () => Stage::Between,
        }
    }

    fn owes_logprobs(&self, answer: &ResponseAnswer<'_, '_>) -> bool {
        answer.finish.is_some() && answer.logprobs.is_some_and(|logprobs| self.logprobs < logprobs.len())
    }

    fn text_delta(&mut self, out: &mut Vec<u8>, text: &mut String, answer: &ResponseAnswer<'_, '_>) {
        self.framing.frame(out, |out| {
            write_event(out, "response.output_text.delta", self.sequence);
            out.extend_from_slice(&self.place);
            out.extend_from_slice(b",\"content_index\":0,\"delta\":");
            write_string(out, text);
            out.extend_from_slice(b",\"logprobs\":[");
            if let Some(logprobs) = answer.logprobs {
                self.logprobs = write_some(out, (logprobs, answer.piece_of), self.logprobs);
            }
            out.extend_from_slice(b"]}\n\n");
        });
        self.sequence += 1;
        self.text.push_str(text);
        text.clear();
    }

    fn arguments_delta(&mut self, out: &mut Vec<u8>, piece: &str) {
        self.framing.frame(out, |out| {
            write_event(out, "response.function_call_arguments.delta", self.sequence);
            out.extend_from_slice(&self.place);
            out.extend_from_slice(b",\"delta\":");
            write_string(out, piece);
            out.extend_from_slice(b"}\n\n");
        });
        self.sequence += 1;
        self.arguments += piece.len();
    }

    /// Appends a piece of the event of this stage, and goes on to the next stage with the last.
    fn whole(&mut self, out: &mut Vec<u8>, answer: &ResponseAnswer<'_, '_>) {
        if !self.cursor.has_begun() {
            self.open_item(answer);
            self.completed_s = answer.completed_s;
        }
        let text = std::mem::take(&mut self.text);
        let answer = ResponseAnswer { text: &text, completed_s: self.completed_s, ..*answer };
        let (mut cursor, mut done) = (self.cursor, false);
        let spans = self.spans(&answer);
        self.framing.frame(out, |out| done = spans.write_piece(&mut cursor, answer.piece_of, out));
        drop(spans);
        self.cursor = cursor;
        if done {
            self.cursor = Cursor::default();
            self.sequence += 1;
            self.stage = self.next_stage();
        }
        self.text = text;
    }

    /// Takes note of an item that begins.
    fn open_item(&mut self, answer: &ResponseAnswer<'_, '_>) {
        if !matches!(self.stage, Stage::MessageAdded | Stage::CallAdded) {
            return;
        }
        self.place.clear();
        self.place.extend_from_slice(b",\"item_id\":");
        match (answer.call_of)(self.calls) {
            Some(call) if self.stage == Stage::CallAdded => write_item_id(&mut self.place, call.id),
            _ => write_message_id(&mut self.place, &self.head),
        }
        self.place.extend_from_slice(b",\"output_index\":");
        write_u64(&mut self.place, self.items);
        self.items += 1;
        self.arguments = 0;
    }

    fn event<'s>(&self, name: &str) -> Spans<'s> {
        let mut spans = Spans::default();
        write_event(spans.json(), name, self.sequence);
        spans
    }

    fn spans<'s, 'x: 's>(&'s self, answer: &'s ResponseAnswer<'s, 'x>) -> Spans<'s> {
        let is_cut = answer.finish == Some(FinishReason::Length);
        let mut spans = self.event(match self.stage {
            Stage::Created => "response.created",
            Stage::InProgress => "response.in_progress",
            Stage::MessageAdded | Stage::CallAdded => "response.output_item.added",
            Stage::PartAdded => "response.content_part.added",
            Stage::TextDone => "response.output_text.done",
            Stage::PartDone => "response.content_part.done",
            Stage::MessageDone | Stage::CallDone => "response.output_item.done",
            Stage::ArgumentsDone => "response.function_call_arguments.done",
            Stage::Ended if is_cut => "response.incomplete",
            Stage::Ended => "response.completed",
            Stage::Between | Stage::Text | Stage::Arguments | Stage::Over => unreachable!("no event of one form"),
        });
        let call = (answer.call_of)(self.calls);
        match self.stage {
            Stage::Created | Stage::InProgress | Stage::Ended => {
                spans.json().extend_from_slice(b",\"response\":");
                let is_over = self.stage == Stage::Ended;
                spans.response(&self.head, if is_over { State::Ended(answer) } else { State::InProgress });
            }
            Stage::MessageAdded | Stage::MessageDone | Stage::CallAdded | Stage::CallDone => {
                spans.json().extend_from_slice(b",\"output_index\":");
                write_u64(spans.json(), self.items - 1);
                spans.json().extend_from_slice(b",\"item\":");
                match self.stage {
                    Stage::MessageAdded => spans.message(&self.head, None),
                    Stage::MessageDone => spans.message(&self.head, Some(answer)),
                    stage => spans.call(call.expect("it has begun"), stage == Stage::CallAdded),
                }
            }
            Stage::ArgumentsDone => {
                let call = call.expect("it has begun");
                spans.json().extend_from_slice(&self.place);
                spans.json().extend_from_slice(b",\"name\":");
                write_string(spans.json(), call.name);
                spans.json().extend_from_slice(b",\"arguments\":");
                spans.text(call.arguments);
            }
            _ => {
                spans.json().extend_from_slice(&self.place);
                spans.json().extend_from_slice(b",\"content_index\":0,");
                if self.stage == Stage::TextDone {
                    spans.json().extend_from_slice(b"\"text\":");
                    spans.text(answer.text);
                    spans.json().extend_from_slice(b",\"logprobs\":");
                    spans.logprobs(answer);
                } else {
                    spans.json().extend_from_slice(b"\"part\":");
                    spans.part(Some(answer).filter(|_| self.stage == Stage::PartDone));
                }
            }
        }
        spans.json().extend_from_slice(b"}\n\n");
        spans
    }

    fn next_stage(&mut self) -> Stage {
        match self.stage {
            Stage::Created => Stage::InProgress,
            Stage::MessageAdded => Stage::PartAdded,
            Stage::PartAdded => Stage::Text,
            Stage::TextDone => Stage::PartDone,
            Stage::PartDone => Stage::MessageDone,
            Stage::CallAdded => Stage::Arguments,
            Stage::ArgumentsDone => Stage::CallDone,
            Stage::CallDone => {
                self.calls += 1;
                Stage::Between
            }
            Stage::InProgress | Stage::MessageDone => Stage::Between,
            Stage::Ended | Stage::Over => Stage::Over,
            Stage::Between | Stage::Text | Stage::Arguments => unreachable!("no event of one form"),
        }
    }
}

/// Appends the beginning of an event, its number included.
fn write_event(out: &mut Vec<u8>, name: &str, sequence: u64) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\ndata: {\"type\":\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\",\"sequence_number\":");
    write_u64(out, sequence);
}

/// Appends those of the tokens from `from` on that make no long event, but one if there is any; the first that was left out.
fn write_some(out: &mut Vec<u8>, logprobs: (&Logprobs, PieceOf<'_>), from: usize) -> usize {
    let start = out.len();
    let mut at = from;
    while at < logprobs.0.len() && out.len() - start < PIECE_BYTES {
        write_logprobs(out, logprobs, from, at..at + 1);
        at += 1;
    }
    at
}
