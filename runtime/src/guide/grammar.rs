//! A constraint as the grammar library takes it.

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use net::api::Constraint;
use serde_json::{Value, json};

use super::calls;
use super::gbnf::{self, Translated};
use super::schema;
use super::{ALTERNATIVES_MAX, DEPTH_MAX, GuideError};

/// `is_token`: a call may begin with a control token.
pub(super) fn grammar(constraint: &Constraint, is_token: bool) -> Result<TopLevelGrammar, GuideError> {
    Ok(TopLevelGrammar::from_grammar(match constraint {
        Constraint::JsonObject => json_grammar(json!({"type": "object"}))?,
        Constraint::JsonSchema(text) => {
            json_grammar(serde_json::from_str(text).map_err(|error| refused(&error.to_string()))?)?
        }
        Constraint::Regex(pattern) => {
            check_depth(pattern)?;
            if ends_escaped(pattern) {
                return Err(refused("it ends with a backslash"));
            }
            GrammarWithLexer::from_regex(whole(pattern))
        }
        Constraint::Choice(choices) => GrammarWithLexer::from_lark(one_of(choices)),
        Constraint::Grammar(text) => match language(text)? {
            Language::Lark => GrammarWithLexer::from_lark(lark(text)?),
            Language::Gbnf => match gbnf::translate(text)? {
                Translated::Regex(pattern) => GrammarWithLexer::from_regex(&pattern),
                Translated::Lark(text) => GrammarWithLexer::from_lark(text),
            },
        },
        Constraint::Tools(tools) => GrammarWithLexer::from_lark(calls::lark(tools, is_token)?),
    }))
}

/// A message of the library in one line of bounded length.
pub(super) fn refused(message: &str) -> GuideError {
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = match line.replace("<non-verbose/>", "") {
        // The library's panics are about what it was given.
        panic if panic.starts_with("panic:") => "it is beyond what the compiler can work with".into(),
        nothing if nothing.starts_with("NoExtension") => "it allows no text".into(),
        line => line,
    };
    GuideError::Refused(line.trim().chars().take(MESSAGE_CHARS_MAX).collect())
}

pub(super) fn json_grammar(schema: Value) -> Result<GrammarWithLexer, GuideError> {
    bounded(schema).map(GrammarWithLexer::from_json_schema)
}

/// A schema that is no trap, for values that are no desert.
pub(super) fn bounded(mut schema: Value) -> Result<Value, GuideError> {
    if !schema::is_bounded(&schema, ALTERNATIVES_MAX) {
        return Err(GuideError::Alternatives);
    }
    if let Some(fields) = schema.as_object_mut() {
        // A model that likes spaces must not fill its answer with them.
        fields.insert("x-guidance".into(), json!({"whitespace_pattern": WHITESPACE}));
    }
    Ok(schema)
}

/// The pattern without anchors at its ends, which say nothing where the whole answer must match.
fn whole(pattern: &str) -> &str {
    let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
    match pattern.strip_suffix('$') {
        Some(rest) if !ends_escaped(rest) => rest,
        _ => pattern,
    }
}

/// Whether what follows this text would be escaped by its last backslash.
fn ends_escaped(text: &str) -> bool {
    text.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1
}

fn one_of(choices: &[String]) -> String {
    let quoted: Vec<String> = choices.iter().map(|choice| quoted(choice)).collect();
    format!("start: CHOICE\nCHOICE: {}\n", quoted.join("\n  | "))
}

/// A text as a string of Lark, which is one of JSON without plain control characters.
pub(super) fn quoted(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// What a grammar is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Language {
    Lark,
    Gbnf,
}

/// A first line that names the language decides; else how lines begin: `start:` in Lark, `root ::=` in GBNF.
fn language(text: &str) -> Result<Language, GuideError> {
    let first = text.lines().next().unwrap_or_default().trim().trim_start_matches('#').trim();
    if text.trim_start().starts_with('#') && first.eq_ignore_ascii_case("lark") {
        return Ok(Language::Lark);
    }
    if text.trim_start().starts_with('#') && first.eq_ignore_ascii_case("gbnf") {
        return Ok(Language::Gbnf);
    }
    let is_word = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    let (mut is_lark, mut is_gbnf) = (false, false);
    for line in text.lines().map(str::trim_start) {
        let behind = line.trim_start_matches(is_word);
        let name = &line[..line.len() - behind.len()];
        let behind = behind.trim_start();
        is_gbnf |= !name.is_empty() && behind.starts_with("::=");
        is_lark |= name == "start" && behind.starts_with([':', '[']) && !behind.starts_with("::=");
    }
    match (is_lark, is_gbnf) {
        (true, true) => Err(GuideError::Language),
        (_, true) => Ok(Language::Gbnf),
        (_, false) => Ok(Language::Lark),
    }
}

fn lark(text: &str) -> Result<String, GuideError> {
    // Schemas inside of a grammar would escape the checks of schemas.
    if let Some(directive) = ["%json", "%lark"].into_iter().find(|directive| text.contains(directive)) {
        return Err(GuideError::Directive(directive));
    }
    check_depth(text)?;
    Ok(text.to_owned())
}

/// Parsers of grammars recurse: brackets are counted, wherever they stand.
fn check_depth(text: &str) -> Result<(), GuideError> {
    let mut depth = 0_usize;
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_MAX {
            return Err(GuideError::Depth);
        }
    }
    Ok(())
}

/// Between the parts of a JSON text: none, one space, or a new line and its indent.
const WHITESPACE: &str = r" |\n[ \t]{0,20}";
const MESSAGE_CHARS_MAX: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_language_of_a_grammar_is_told_by_its_rules() {
        for (text, expected) in [
            ("start: \"a\"", Ok(Language::Lark)),
            ("begin: \"a\"", Ok(Language::Lark)),
            ("x: \"::=\"\nstart: x", Ok(Language::Lark)),
            ("start[capture]: \"a\"", Ok(Language::Lark)),
            ("root ::= \"a\"", Ok(Language::Gbnf)),
            ("# text\n  root::=start\nstart ::= \"start: \"", Ok(Language::Gbnf)),
            ("a ::= \"b\"", Ok(Language::Gbnf)),
            ("start: \"a\"\nroot ::= \"b\"", Err(GuideError::Language)),
            ("# lark\nstart: \"a\"\nroot ::= \"b\"", Ok(Language::Lark)),
            ("# GBNF\nroot ::= (\nstart\n)\nstart ::= \"a\"", Ok(Language::Gbnf)),
            ("", Ok(Language::Lark)),
        ] {
            assert_eq!(language(text), expected, "{text}");
        }
    }
}
