//! Calls of tools in an answer, read piece by piece: text before them stays text, of a call nothing does.
//!
//! A call is a JSON object behind a marker, as models of the Hermes kind write it:
//! `<tool_call>\n{"name": "f", "arguments": {..}}\n</tool_call>`. What only begins like one is text.

use std::sync::Arc;

use net::api::Tools;

/// Reads one answer.
#[derive(Clone, Debug)]
pub struct CallReader {
    tools: Arc<Tools>,
    place: Place,
    /// What stands between a marker and the arguments, as far as it has come.
    head: String,
    calls: Vec<Call>,
}

/// A call that has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Index of its tool.
    pub tool: usize,
    /// JSON text as far as it has come.
    pub arguments: String,
    pub is_complete: bool,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    /// Outside of calls; so many bytes of a marker have come.
    Outside(usize),
    Head,
    Arguments(Nesting),
}

/// Where in a JSON text.
#[derive(Clone, Copy, Debug, Default)]
struct Nesting {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl CallReader {
    /// One for an answer whose beginning, `prefix`, stands in the prompt.
    pub fn new(tools: Arc<Tools>, prefix: &str) -> Self {
        let mut reader = Self { tools, place: Place::Outside(0), head: String::new(), calls: Vec::new() };
        reader.push(prefix, &mut String::new());
        reader
    }

    /// Takes in `text` and appends to `content` what is certain to be no part of a call.
    pub fn push(&mut self, text: &str, content: &mut String) {
        let mut rest = text;
        while !rest.is_empty() {
            rest = match self.place {
                Place::Outside(matched) => self.outside(matched, rest, content),
                Place::Head => self.head(rest, content),
                Place::Arguments(nesting) => self.arguments(nesting, rest),
            };
        }
    }

    /// The end of the answer: what only began like a marker is text.
    pub fn finish(&mut self, content: &mut String) {
        if let Place::Outside(matched) = self.place {
            self.release(&CALL_OPEN[..matched], content);
            self.place = Place::Outside(0);
        }
    }

    /// Calls that have begun.
    pub fn calls(&self) -> &[Call] {
        &self.calls
    }

    /// Whether all that has come is text.
    pub fn is_in_text(&self) -> bool {
        self.calls.is_empty() && matches!(self.place, Place::Outside(0))
    }

    /// Whether it called, and every call has come to its end.
    pub fn has_called(&self) -> bool {
        self.calls.last().is_some_and(|call| call.is_complete) && !matches!(self.place, Place::Head)
    }

    fn outside<'t>(&mut self, matched: usize, rest: &'t str, content: &mut String) -> &'t str {
        if matched == 0 {
            let Some(at) = rest.find('<') else {
                self.release(rest, content);
                return "";
            };
            self.release(&rest[..at], content);
            self.place = Place::Outside(1);
            return &rest[at + 1..];
        }
        if rest.as_bytes()[0] != CALL_OPEN.as_bytes()[matched] {
            // Nothing of the marker but its first byte begins it anew.
            self.release(&CALL_OPEN[..matched], content);
            self.place = Place::Outside(0);
            return rest;
        }
        self.place = if matched + 1 == CALL_OPEN.len() { Place::Head } else { Place::Outside(matched + 1) };
        &rest[1..]
    }

    /// Between calls and behind them nothing is text.
    fn release(&self, text: &str, content: &mut String) {
        if self.calls.is_empty() {
            content.push_str(text);
        }
    }

    fn head<'t>(&mut self, rest: &'t str, content: &mut String) -> &'t str {
        for (at, c) in rest.char_indices() {
            self.head.push(c);
            let rest = &rest[at + c.len_utf8()..];
            match read_head(&self.head, &self.tools) {
                Head::Unfinished => {}
                Head::Of(tool) => {
                    self.head.clear();
                    self.calls.push(Call { tool, arguments: String::new(), is_complete: false });
                    self.place = Place::Arguments(Nesting::default());
                    return rest;
                }
                Head::None => {
                    self.release(CALL_OPEN, content);
                    self.place = Place::Outside(0);
                    // All but its last character fits a head, so that this goes no deeper.
                    let head = std::mem::take(&mut self.head);
                    self.push(&head, content);
                    return rest;
                }
            }
        }
        ""
    }

    fn arguments<'t>(&mut self, mut nesting: Nesting, rest: &'t str) -> &'t str {
        let call = self.calls.last_mut().expect("arguments are those of a call");
        let rest = if call.arguments.is_empty() { rest.trim_start() } else { rest };
        let end = rest.bytes().position(|byte| nesting.ends_with(byte));
        let part = &rest[..end.map_or(rest.len(), |end| end + 1)];
        call.arguments.push_str(part);
        call.is_complete = end.is_some();
        self.place = if call.is_complete { Place::Outside(0) } else { Place::Arguments(nesting) };
        &rest[part.len()..]
    }
}

impl Nesting {
    /// Takes one byte; whether it is the last of the text.
    fn ends_with(&mut self, byte: u8) -> bool {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

/// What a text behind a marker is.
#[derive(Debug, PartialEq, Eq)]
enum Head {
    /// No call.
    None,
    Unfinished,
    /// A call of the tool with that index, up to its arguments.
    Of(usize),
}

fn read_head(text: &str, tools: &Tools) -> Head {
    let unfinished = |begins: bool| if begins { Head::Unfinished } else { Head::None };
    let space = text.len() - text.trim_start_matches([' ', '\t', '\n']).len();
    if space > SPACE_MAX {
        return Head::None;
    }
    let Some(rest) = text[space..].strip_prefix(NAME_OPEN) else {
        return unfinished(NAME_OPEN.starts_with(&text[space..]));
    };
    let Some(end) = rest.find('"') else {
        return unfinished(tools.list.iter().any(|tool| tool.name.starts_with(rest)));
    };
    match tools.list.iter().position(|tool| tool.name == rest[..end]) {
        Some(tool) if rest[end..] == *ARGUMENTS_OPEN => Head::Of(tool),
        Some(_) => unfinished(ARGUMENTS_OPEN.starts_with(&rest[end..])),
        None => Head::None,
    }
}

/// How a call begins and ends in the text of an answer.
pub const CALL_OPEN: &str = "<tool_call>";
pub const CALL_CLOSE: &str = "</tool_call>";
/// Before a name, and from a name to its arguments.
pub const NAME_OPEN: &str = "{\"name\": \"";
pub const ARGUMENTS_OPEN: &str = "\", \"arguments\":";
/// Spaces and line ends in a row between the parts of a call.
pub const SPACE_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use net::api::{Tool, ToolChoice};
    use proptest::prelude::*;

    use super::*;

    fn tools() -> Arc<Tools> {
        let tool = |name: &str| Tool { name: name.into(), definition: "{}".into(), parameters: None };
        let list = ["get", "get_weather", "f-2"].map(tool).to_vec();
        Arc::new(Tools { list, choice: ToolChoice::Auto, parallel: true, content: None })
    }

    /// Content, calls, and whether it has called, of an answer that comes in these pieces.
    fn read<'p>(prefix: &str, pieces: impl IntoIterator<Item = &'p str>) -> (String, Vec<Call>, bool) {
        let (mut reader, mut content) = (CallReader::new(tools(), prefix), String::new());
        for piece in pieces {
            reader.push(piece, &mut content);
        }
        reader.finish(&mut content);
        (content, reader.calls().to_vec(), reader.has_called())
    }

    fn call(tool: usize, arguments: &str, is_complete: bool) -> Call {
        Call { tool, arguments: arguments.into(), is_complete }
    }

    /// The cuts of a text at one place and at two, and into characters.
    fn assert_everywhere(text: &str, expected: &(String, Vec<Call>, bool)) {
        let places: Vec<usize> = (0..=text.len()).filter(|at| text.is_char_boundary(*at)).collect();
        for (i, &first) in places.iter().enumerate() {
            for &second in &places[i..] {
                let pieces = [&text[..first], &text[first..second], &text[second..]];
                assert_eq!(&read("", pieces), expected, "{pieces:?}");
            }
        }
        let characters = text.char_indices().map(|(at, c)| &text[at..at + c.len_utf8()]);
        assert_eq!(&read("", characters), expected, "{text}");
    }

    #[test]
    fn calls_are_read_however_the_text_is_cut() {
        let tricky = r#"{"a": "}\"</tool_call>\\", "b": [{"ü": {}}, "<tool_call>"]}"#;
        let one = format!("<tool_call>\n{{\"name\": \"get_weather\", \"arguments\": {tricky}}}\n</tool_call>");
        let two = "<tool_call> {\"name\": \"get\", \"arguments\":{}}</tool_call>";
        assert_everywhere(&one, &(String::new(), vec![call(1, tricky, true)], true));
        let both = format!("Só: {one}\n{two}\n");
        assert_everywhere(&both, &("Só: ".into(), vec![call(1, tricky, true), call(0, "{}", true)], true));
    }

    #[test]
    fn what_only_begins_like_a_call_is_text() {
        for text in [
            "",
            "a < b, <tool kit>, <tool_cal",
            "<<tool_call",
            "<tool_call>x",
            "<tool_call><tool_call>x",
            "<tool_call>{\"name\": \"other\", \"arguments\": {}}</tool_call>",
            "<tool_call>{\"name\": \"getter\"",
            "<tool_call>{\"name\": \"get\", \"args\": {}}",
            "<tool_call>{\"arguments\": {}, \"name\": \"get\"}</tool_call>",
            "<tool_call>\n\n\n\n\n\n\n\n\n{\"name\": \"get\", \"arguments\": {}}",
            "é</tool_call>",
        ] {
            assert_everywhere(text, &(text.into(), Vec::new(), false));
        }
        let begun = "<tool_call>é<tool_call>{\"name\": \"f-2\", \"arguments\": {\"a\": 1}}";
        assert_everywhere(begun, &("<tool_call>é".into(), vec![call(2, "{\"a\": 1}", true)], true));
    }

    #[test]
    fn a_call_that_is_cut_short_gives_what_there_is_and_no_text() {
        for head in ["<tool_call>", "<tool_call>\n{\"name\": \"get_w", "<tool_call>{\"name\": \"get\", \"arg"] {
            assert_everywhere(&format!("a{head}"), &("a".into(), Vec::new(), false));
        }
        let text = "<tool_call>{\"name\": \"get\", \"arguments\": {\"a\": \"<to";
        assert_everywhere(text, &(String::new(), vec![call(0, "{\"a\": \"<to", false)], false));
        let (content, calls, has_called) =
            read("", ["<tool_call>{\"name\": \"get\", \"arguments\": {}}</tool_call><tool_call>{\"na"]);
        assert_eq!((content.as_str(), calls.len(), has_called), ("", 1, false));
    }

    #[test]
    fn a_beginning_in_the_prompt_counts() {
        let named = "<tool_call>\n{\"name\": \"f-2\", \"arguments\":";
        assert_eq!(read(named, [" {\"a\"", ":1}"]), (String::new(), vec![call(2, "{\"a\":1}", true)], true));
        let required = "<tool_call>\n{\"name\": \"";
        let rest = ["get", "\", \"arguments\": {}", "}\n</tool_call>"];
        assert_eq!(read(required, rest), (String::new(), vec![call(0, "{}", true)], true));
        assert_eq!(read(required, ["get"]), (String::new(), Vec::new(), false));
    }

    proptest! {
        #[test]
        fn any_text_reads_the_same_in_any_pieces_and_loses_nothing_outside_of_calls(
            parts in prop::collection::vec(prop_oneof![
                Just("<tool_call>"), Just("{\"name\": \"get\""), Just(", \"arguments\": "), Just("{\"a\": ["), Just("]}"),
                Just("}"), Just("</tool_call>"), Just("<"), Just("\""), Just("\\"), Just("é"), Just("\n"),
            ], 0..14),
            step in 1usize..4,
        ) {
            let text = parts.concat();
            let whole = read("", [text.as_str()]);
            let chars: Vec<String> = text.chars().collect::<Vec<_>>().chunks(step).map(|c| c.iter().collect()).collect();
            prop_assert_eq!(&read("", chars.iter().map(String::as_str)), &whole);
            let (content, calls, has_called) = whole;
            prop_assert!(text.starts_with(&content));
            prop_assert!(!has_called || !calls.is_empty());
            for call in calls {
                prop_assert!(text.contains(&call.arguments));
            }
        }
    }
}
