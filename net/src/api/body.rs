//! JSON bodies of any length, written piece by piece: whoever sends them does something else in between, and holds no more
//! of them than a piece.

use super::embeddings::{EncodingFormat, write_vector};
use super::logprobs::{Logprobs, PieceOf, Shape, Writer, write_byte_array};
use super::reply::{FinishReason, Usage, write_call_id, write_usage};
use crate::json::{write_escaped, write_string, write_u64};

/// About so many bytes are written at a time.
pub const PIECE_BYTES: usize = 16 << 10;

/// One answer of a completion.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'a> {
    pub index: u32,
    /// The prompt, where it is to be repeated before the text.
    pub echo: &'a str,
    pub text: &'a str,
    /// Of a chat; with them, a text that is empty is none.
    pub calls: &'a [CallReply<'a>],
    pub finish_reason: FinishReason,
    pub logprobs: Option<&'a Logprobs>,
    /// Where they were asked for.
    pub token_ids: Option<TokenIds<'a>>,
}

/// The tokens of an answer as numbers.
#[derive(Debug, Clone, Copy)]
pub struct TokenIds<'a> {
    /// Of the prompt, which is never empty; empty where it was sent before.
    pub prompt: &'a [u32],
    /// All that were generated, those of a stop string and the one that ends it, too.
    pub answer: &'a [u32],
}

/// A call of a tool.
#[derive(Debug, Clone, Copy)]
pub struct CallReply<'a> {
    pub id: u128,
    pub name: &'a str,
    /// JSON text, which may be cut short where the answer is.
    pub arguments: &'a str,
    pub is_complete: bool,
}

/// The body of a completion that is sent as a whole.
pub struct CompletionBody<'a, 'p> {
    shape: Shape,
    id: &'a str,
    created_s: u64,
    model: &'a str,
    choices: &'a [Choice<'a>],
    usage: Usage,
    piece_of: PieceOf<'p>,
    place: Place,
    /// Characters before the next token of the choice.
    offset: usize,
}

/// What comes next.
#[derive(Clone, Copy)]
enum Place {
    Head,
    Open {
        choice: usize,
    },
    /// The text from byte `from` on, prompt and answer together.
    Text {
        choice: usize,
        from: usize,
    },
    /// The arguments of a call from byte `from` on.
    Call {
        choice: usize,
        call: usize,
        from: usize,
    },
    Logprobs {
        choice: usize,
        column: usize,
        token: usize,
    },
    Close {
        choice: usize,
    },
    /// The ids from `from` on.
    Ids {
        choice: usize,
        of: IdsOf,
        from: usize,
    },
    Tail,
    Done,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum IdsOf {
    /// Of a completion, which may have several.
    Prompt,
    Answer,
    /// Of a chat.
    OnlyPrompt,
}

impl<'a, 'p> CompletionBody<'a, 'p> {
    /// OpenAI's `chat.completion`. `created_s` is Unix seconds.
    pub fn chat(
        id: &'a str,
        created_s: u64,
        model: &'a str,
        choices: &'a [Choice<'a>],
        usage: Usage,
        piece_of: PieceOf<'p>,
    ) -> Self {
        let place = Place::Head;
        Self { shape: Shape::Chat, id, created_s, model, choices, usage, piece_of, place, offset: 0 }
    }

    /// OpenAI's `text_completion`. `created_s` is Unix seconds.
    pub fn completion(
        id: &'a str,
        created_s: u64,
        model: &'a str,
        choices: &'a [Choice<'a>],
        usage: Usage,
        piece_of: PieceOf<'p>,
    ) -> Self {
        Self { shape: Shape::Completion, ..Self::chat(id, created_s, model, choices, usage, piece_of) }
    }

    /// Appends the next piece; whether it was the last.
    pub fn write_piece(&mut self, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        while out.len() - start < PIECE_BYTES && !matches!(self.place, Place::Done) {
            self.place = self.step(out);
        }
        matches!(self.place, Place::Done)
    }

    fn step(&mut self, out: &mut Vec<u8>) -> Place {
        match self.place {
            Place::Head => {
                self.write_head(out);
                self.open(0)
            }
            Place::Open { choice } => {
                if choice > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(b"{\"index\":");
                let Choice { index, text, calls, .. } = self.choices[choice];
                write_u64(out, u64::from(index));
                if text.is_empty() && !calls.is_empty() {
                    out.extend_from_slice(b",\"message\":{\"role\":\"assistant\",\"content\":null");
                    return Place::Call { choice, call: 0, from: 0 };
                }
                out.extend_from_slice(match self.shape {
                    Shape::Chat => b",\"message\":{\"role\":\"assistant\",\"content\":\"",
                    Shape::Completion => b",\"text\":\"",
                });
                Place::Text { choice, from: 0 }
            }
            Place::Text { choice, from } => self.write_text(out, choice, from),
            Place::Call { choice, call, from } => self.write_call(out, choice, call, from),
            Place::Logprobs { choice, column, token } => self.write_logprobs(out, choice, column, token),
            Place::Close { choice } => {
                out.extend_from_slice(b",\"finish_reason\":\"");
                out.extend_from_slice(self.choices[choice].finish_reason.as_str().as_bytes());
                out.push(b'"');
                if self.choices[choice].token_ids.is_some() {
                    let of = if self.shape == Shape::Chat { IdsOf::Answer } else { IdsOf::Prompt };
                    return Place::Ids { choice, of, from: 0 };
                }
                out.push(b'}');
                self.open(choice + 1)
            }
            Place::Ids { choice, of, from } => self.write_ids(out, choice, of, from),
            Place::Tail => {
                out.extend_from_slice(b"],\"usage\":");
                write_usage(out, &self.usage);
                if self.shape == Shape::Chat && self.choices.first().is_some_and(|choice| choice.token_ids.is_some()) {
                    return Place::Ids { choice: 0, of: IdsOf::OnlyPrompt, from: 0 };
                }
                out.push(b'}');
                Place::Done
            }
            Place::Done => Place::Done,
        }
    }

    fn open(&self, choice: usize) -> Place {
        if choice < self.choices.len() { Place::Open { choice } } else { Place::Tail }
    }

    fn write_head(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"id\":");
        write_string(out, self.id);
        out.extend_from_slice(match self.shape {
            Shape::Chat => b",\"object\":\"chat.completion\",\"created\":".as_slice(),
            Shape::Completion => b",\"object\":\"text_completion\",\"created\":",
        });
        write_u64(out, self.created_s);
        out.extend_from_slice(b",\"model\":");
        write_string(out, self.model);
        out.extend_from_slice(b",\"choices\":[");
    }

    fn write_text(&mut self, out: &mut Vec<u8>, choice: usize, from: usize) -> Place {
        let Choice { echo, text, .. } = self.choices[choice];
        let rest = if from < echo.len() { &echo[from..] } else { &text[from - echo.len()..] };
        if !rest.is_empty() {
            let part = beginning(rest);
            write_escaped(out, part.as_bytes());
            return Place::Text { choice, from: from + part.len() };
        }
        out.push(b'"');
        match self.shape {
            Shape::Chat => Place::Call { choice, call: 0, from: 0 },
            Shape::Completion => self.end_message(out, choice),
        }
    }

    fn write_call(&self, out: &mut Vec<u8>, choice: usize, call: usize, from: usize) -> Place {
        let calls = self.choices[choice].calls;
        let Some(CallReply { id, name, arguments, .. }) = calls.get(call) else {
            if !calls.is_empty() {
                out.push(b']');
            }
            out.extend_from_slice(b",\"refusal\":null}");
            return self.end_message(out, choice);
        };
        if from == 0 {
            out.extend_from_slice(if call == 0 { b",\"tool_calls\":[{\"id\":" } else { b",{\"id\":".as_slice() });
            write_call_id(out, *id);
            out.extend_from_slice(b",\"type\":\"function\",\"function\":{\"name\":");
            write_string(out, name);
            out.extend_from_slice(b",\"arguments\":\"");
        }
        let rest = &arguments[from..];
        let part = beginning(rest);
        write_escaped(out, part.as_bytes());
        if part.len() < rest.len() {
            return Place::Call { choice, call, from: from + part.len() };
        }
        out.extend_from_slice(b"\"}}");
        Place::Call { choice, call: call + 1, from: 0 }
    }

    fn end_message(&self, out: &mut Vec<u8>, choice: usize) -> Place {
        out.extend_from_slice(b",\"logprobs\":");
        if self.choices[choice].logprobs.is_some() {
            return Place::Logprobs { choice, column: 0, token: 0 };
        }
        out.extend_from_slice(b"null");
        Place::Close { choice }
    }

    fn write_ids(&self, out: &mut Vec<u8>, choice: usize, of: IdsOf, from: usize) -> Place {
        let ids = self.choices[choice].token_ids.expect("the place of one that has them");
        let (name, ids) = match of {
            IdsOf::Answer => (TOKEN_IDS, ids.answer),
            IdsOf::Prompt | IdsOf::OnlyPrompt => (PROMPT_TOKEN_IDS, ids.prompt),
        };
        if from == 0 {
            out.extend_from_slice(name);
        }
        let end = ids.len().min(from + IDS_AT_ONCE);
        write_ids(out, &ids[from..end], from > 0);
        if end < ids.len() {
            return Place::Ids { choice, of, from: end };
        }
        out.push(b']');
        if of == IdsOf::Prompt {
            return Place::Ids { choice, of: IdsOf::Answer, from: 0 };
        }
        out.push(b'}');
        if of == IdsOf::OnlyPrompt { Place::Done } else { self.open(choice + 1) }
    }

    fn write_logprobs(&mut self, out: &mut Vec<u8>, choice: usize, column: usize, token: usize) -> Place {
        let logprobs = self.choices[choice].logprobs.expect("the place of one that has them");
        if column == self.shape.columns() {
            out.extend_from_slice(self.shape.close());
            return Place::Close { choice };
        }
        if token == 0 {
            out.extend_from_slice(self.shape.open(column));
            self.offset = 0;
        }
        if token == logprobs.len() {
            return Place::Logprobs { choice, column: column + 1, token: 0 };
        }
        let writer = Writer { shape: self.shape, logprobs, piece_of: self.piece_of };
        writer.write(out, column, token, 0, &mut self.offset);
        Place::Logprobs { choice, column, token: token + 1 }
    }
}

impl TokenIds<'_> {
    /// Appends the fields that are vLLM's to an object: the prompt's, where they are there, and the answer's.
    pub(crate) fn write(self, out: &mut Vec<u8>) {
        self.write_prompt(out);
        out.extend_from_slice(TOKEN_IDS);
        write_ids(out, self.answer, false);
        out.push(b']');
    }

    pub(crate) fn write_prompt(self, out: &mut Vec<u8>) {
        if !self.prompt.is_empty() {
            out.extend_from_slice(PROMPT_TOKEN_IDS);
            write_ids(out, self.prompt, false);
            out.push(b']');
        }
    }
}

fn write_ids(out: &mut Vec<u8>, ids: &[u32], goes_on: bool) {
    for (at, &id) in ids.iter().enumerate() {
        if at > 0 || goes_on {
            out.push(b',');
        }
        write_u64(out, u64::from(id));
    }
}

const PROMPT_TOKEN_IDS: &[u8] = b",\"prompt_token_ids\":[";
const TOKEN_IDS: &[u8] = b",\"token_ids\":[";
/// At most 11 bytes each.
const IDS_AT_ONCE: usize = PIECE_BYTES / 11;

/// OpenAI's list of embeddings, in the order of the inputs.
pub struct EmbeddingsBody<'a, V> {
    pub model: &'a str,
    pub vectors: &'a [V],
    pub format: EncodingFormat,
    pub prompt_tokens: u64,
    /// Vectors that were written.
    pub written: usize,
}

impl<V: AsRef<[f32]>> EmbeddingsBody<'_, V> {
    /// Appends the next piece, of whole vectors; whether it was the last.
    pub fn write_piece(&mut self, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        if self.written == 0 {
            out.extend_from_slice(b"{\"object\":\"list\",\"data\":[");
        }
        for vector in &self.vectors[self.written..] {
            if out.len() - start >= PIECE_BYTES {
                return false;
            }
            if self.written > 0 {
                out.push(b',');
            }
            out.extend_from_slice(b"{\"object\":\"embedding\",\"index\":");
            write_u64(out, self.written as u64);
            out.extend_from_slice(b",\"embedding\":");
            write_vector(out, vector.as_ref(), self.format);
            out.push(b'}');
            self.written += 1;
        }
        out.extend_from_slice(b"],\"model\":");
        write_string(out, self.model);
        out.extend_from_slice(b",\"usage\":{\"prompt_tokens\":");
        write_u64(out, self.prompt_tokens);
        out.extend_from_slice(b",\"total_tokens\":");
        write_u64(out, self.prompt_tokens);
        out.extend_from_slice(b"}}");
        true
    }
}

/// The answer of tokenize: ids, or with `text_of` objects of id and piece. A piece that is not UTF-8 is an array of its
/// bytes.
pub struct TokensBody<'a, 'p> {
    pub tokens: &'a [u32],
    /// What stands for a token in a text.
    pub text_of: Option<PieceOf<'p>>,
    /// Tokens that were written.
    pub written: usize,
}

impl TokensBody<'_, '_> {
    /// Appends the next piece; whether it was the last.
    pub fn write_piece(&mut self, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        if self.written == 0 {
            out.extend_from_slice(b"{\"tokens\":[");
        }
        for &id in &self.tokens[self.written..] {
            if out.len() - start >= PIECE_BYTES {
                return false;
            }
            if self.written > 0 {
                out.push(b',');
            }
            match self.text_of {
                None => write_u64(out, u64::from(id)),
                Some(text_of) => write_token(out, id, text_of(id)),
            }
            self.written += 1;
        }
        out.extend_from_slice(b"],\"count\":");
        write_u64(out, self.tokens.len() as u64);
        out.push(b'}');
        true
    }
}

fn write_token(out: &mut Vec<u8>, id: u32, piece: &[u8]) {
    out.extend_from_slice(b"{\"id\":");
    write_u64(out, u64::from(id));
    out.extend_from_slice(b",\"piece\":");
    match str::from_utf8(piece) {
        Ok(text) => write_string(out, text),
        Err(_) => write_byte_array(out, piece),
    }
    out.push(b'}');
}

/// The answer of detokenize; what is not UTF-8 is U+FFFD by now.
pub struct ContentBody<'a> {
    pub content: &'a str,
    /// Bytes that were written; none while it has not begun.
    pub written: Option<usize>,
}

impl ContentBody<'_> {
    /// Appends the next piece; whether it was the last.
    pub fn write_piece(&mut self, out: &mut Vec<u8>) -> bool {
        if self.written.is_none() {
            out.extend_from_slice(b"{\"content\":\"");
        }
        let rest = &self.content[self.written.unwrap_or(0)..];
        let part = beginning(rest);
        write_escaped(out, part.as_bytes());
        self.written = Some(self.content.len() - rest.len() + part.len());
        if part.len() < rest.len() {
            return false;
        }
        out.extend_from_slice(b"\"}");
        true
    }
}

/// What of a text is written at a time.
pub fn beginning(text: &str) -> &str {
    let mut end = text.len().min(PIECE_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(mut write: impl FnMut(&mut Vec<u8>) -> bool) -> (Vec<usize>, serde_json::Value) {
        let (mut out, mut lengths) = (Vec::new(), Vec::new());
        loop {
            let start = out.len();
            let done = write(&mut out);
            lengths.push(out.len() - start);
            if done {
                return (lengths, serde_json::from_slice(&out).unwrap());
            }
        }
    }

    fn piece(token: u32) -> &'static [u8] {
        [b"ab".as_slice(), b"\xc3", b"\xa9 ", b"\x01"][token as usize % 4]
    }

    #[test]
    fn an_answer_of_many_tokens_is_the_same_in_pieces_and_no_piece_is_long() {
        let mut logprobs = Logprobs::default();
        let top: Vec<(u32, f32)> = (0..20).map(|token| (token, -0.5 * token as f32)).collect();
        (0..300).for_each(|token| logprobs.push(token, -1.5, &top));
        let (echo, text) = ("\u{1}\u{fc}".repeat(10_000), "\u{1f600}".repeat(10_000));
        let ids: Vec<u32> = (0..50_000).map(|id| u32::MAX - id).collect();
        let choice = |index, logprobs: Option<_>| {
            let finish_reason = FinishReason::Stop;
            let token_ids = logprobs.map(|_| TokenIds { prompt: &ids, answer: &ids[1..] });
            Choice { index, echo: &echo, text: &text, calls: &[], finish_reason, logprobs, token_ids }
        };
        let choices = [choice(0, Some(&logprobs)), choice(1, None), choice(2, Some(&logprobs))];
        let usage = Usage { prompt_tokens: 1, completion_tokens: 900, cached_tokens: 0 };
        let mut body = CompletionBody::completion("c", 9, "m", &choices, usage, &piece);
        let (lengths, json) = pieces(|out| body.write_piece(out));
        // A text of control characters is six times as long in JSON.
        assert!(lengths.iter().all(|length| *length < 8 * PIECE_BYTES), "{lengths:?}");
        assert!(lengths.len() > 20);
        for index in [0, 2] {
            assert_eq!(json["choices"][index]["text"].as_str(), Some(&*format!("{echo}{text}")));
            let written = &json["choices"][index]["logprobs"];
            assert_eq!(written["token_logprobs"].as_array().unwrap().len(), 300);
            assert_eq!(written["tokens"][2], "bytes:\\xa9\\x20");
            assert_eq!(written["text_offset"][299], 299 / 4 * 5 + 4);
            assert_eq!(written["top_logprobs"][299]["ab"], -8.0, "the last of a name counts");
            let choice = &json["choices"][index];
            assert_eq!((&choice["prompt_token_ids"], &choice["token_ids"]), (&ids.clone().into(), &ids[1..].into()));
        }
        assert!(json["choices"][1]["logprobs"].is_null() && json["choices"][1].get("token_ids").is_none());
        let mut body = CompletionBody::chat("c", 9, "m", &choices, usage, &piece);
        let (lengths, json) = pieces(|out| body.write_piece(out));
        assert!(lengths.iter().all(|length| *length < 8 * PIECE_BYTES), "{lengths:?}");
        assert_eq!(json["choices"][2]["logprobs"]["content"][299]["top_logprobs"][19]["logprob"], -9.5);
        assert_eq!(json["usage"]["total_tokens"], 901);
        assert_eq!(
            (&json["prompt_token_ids"], &json["choices"][2]["token_ids"]),
            (&ids.clone().into(), &ids[1..].into())
        );
        assert!(json["choices"][2].get("prompt_token_ids").is_none());
    }

    #[test]
    fn calls_follow_the_text_or_stand_in_its_place() {
        let long = format!("{{\"a\":\"{}\"}}", "\u{e9}\"".repeat(20_000));
        let calls = [
            CallReply { id: 1, name: "f", arguments: &long, is_complete: true },
            CallReply { id: u128::MAX, name: "g", arguments: "", is_complete: true },
            CallReply { id: 2, name: "h", arguments: "{}", is_complete: true },
        ];
        let choice = |index, text, calls| {
            let finish_reason = FinishReason::ToolCalls;
            Choice { index, echo: "", text, calls, finish_reason, logprobs: None, token_ids: None }
        };
        let choices = [choice(0, "", &calls[..]), choice(1, "Well:", &calls[2..]), choice(2, "", &[])];
        let mut body = CompletionBody::chat("c", 9, "m", &choices, Usage::default(), &piece);
        let (lengths, json) = pieces(|out| body.write_piece(out));
        assert!(lengths.len() > 2 && lengths.iter().all(|length| *length < 8 * PIECE_BYTES), "{lengths:?}");
        let message = &json["choices"][0]["message"];
        assert!(message["content"].is_null() && message["refusal"].is_null(), "{message}");
        let made = message["tool_calls"].as_array().unwrap();
        assert_eq!((made.len(), made[0]["function"]["arguments"].as_str()), (3, Some(&*long)));
        let second = serde_json::json!({"id": format!("call_{}", "f".repeat(32)), "type": "function",
            "function": {"name": "g", "arguments": ""}});
        assert_eq!(made[1], second);
        let message = &json["choices"][1]["message"];
        assert_eq!((&message["content"], message["tool_calls"].as_array().unwrap().len()), (&"Well:".into(), 1));
        assert_eq!(
            (&json["choices"][1]["finish_reason"], &json["choices"][1]["logprobs"]),
            (&"tool_calls".into(), &serde_json::Value::Null)
        );
        let message = json["choices"][2]["message"].as_object().unwrap();
        assert!(message["content"] == "" && !message.contains_key("tool_calls"), "{message:?}");
    }

    #[test]
    fn an_answer_without_choices_is_whole() {
        let mut body = CompletionBody::chat("c", 9, "m", &[], Usage::default(), &piece);
        let (lengths, json) = pieces(|out| body.write_piece(out));
        assert_eq!((lengths.len(), &json["choices"]), (1, &serde_json::json!([])));
    }

    #[test]
    fn many_vectors_and_tokens_come_in_pieces() {
        let vectors: Vec<Vec<f32>> = (0..100).map(|index| vec![index as f32; 256]).collect();
        for format in [EncodingFormat::Float, EncodingFormat::Base64] {
            let mut body = EmbeddingsBody { model: "m", vectors: &vectors, format, prompt_tokens: 7, written: 0 };
            let (lengths, json) = pieces(|out| body.write_piece(out));
            assert!(lengths.len() > 4 && lengths.iter().all(|length| *length < 2 * PIECE_BYTES), "{lengths:?}");
            assert_eq!(json["data"].as_array().unwrap().len(), 100);
            assert_eq!(json["data"][99]["index"], 99);
        }
        let tokens: Vec<u32> = (0..50_000).collect();
        let mut body = TokensBody { tokens: &tokens, text_of: Some(&piece), written: 0 };
        let (lengths, json) = pieces(|out| body.write_piece(out));
        assert!(lengths.len() > 10 && lengths.iter().all(|length| *length < 2 * PIECE_BYTES), "{lengths:?}");
        assert_eq!((&json["tokens"][49_997]["piece"], &json["count"]), (&serde_json::json!([195]), &50_000.into()));
        let content = "\u{e9}".repeat(40_000);
        let mut body = ContentBody { content: &content, written: None };
        let (lengths, json) = pieces(|out| body.write_piece(out));
        assert_eq!((lengths.len(), json["content"].as_str()), (5, Some(&*content)));
    }
}
