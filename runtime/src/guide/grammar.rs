//! A constraint as the grammar library takes it.

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use net::api::Constraint;
use serde_json::{Value, json};

use super::calls;
use super::schema;
use super::{ALTERNATIVES_MAX, DEPTH_MAX, GuideError};

pub(super) fn grammar(constraint: &Constraint) -> Result<TopLevelGrammar, GuideError> {
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
        Constraint::Grammar(text) => GrammarWithLexer::from_lark(lark(text)?),
        Constraint::Tools(tools) => GrammarWithLexer::from_lark(calls::lark(tools)?),
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

fn lark(text: &str) -> Result<String, GuideError> {
    if text.contains("::=") {
        return Err(GuideError::Gbnf);
    }
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
