//! Calls of tools as a grammar, each with arguments of its tool's schema, and what an answer may be in their place.

use std::fmt::Write as _;

use net::api::{JsonContent, Tool, ToolChoice, Tools};
use serde_json::{Value, json};

use super::GuideError;
use super::grammar::{bounded, quoted, refused};
use crate::text::{ARGUMENTS_OPEN, CALL_CLOSE, CALL_OPEN, NAME_OPEN, SPACE_MAX};

/// What follows the beginning of a call that the model wrote, or that stands in the prompt; where what is no call has a form,
/// all of an answer. `is_token`: a call may begin with a control token of that name.
pub(super) fn lark(tools: &Tools, is_token: bool) -> Result<String, GuideError> {
    let mut rules = String::new();
    let may_be_called = |index| !matches!(tools.choice, ToolChoice::Named(named) if named != index);
    for (index, tool) in tools.list.iter().enumerate().filter(|(index, _)| may_be_called(*index)) {
        let schema = arguments(tool).map_err(|reason| GuideError::Tool(index, Box::new(reason)))?;
        let head = quoted(&format!("{}{ARGUMENTS_OPEN}", tool.name));
        writeln!(rules, "args_{index}: \" \"? %json {schema}\ncall_{index}: {head} args_{index}")
            .expect("memory takes it");
    }
    if let ToolChoice::Named(index) = tools.choice {
        return Ok(format!("start: args_{index}\n{rules}"));
    }
    let any: Vec<String> = (0..tools.list.len()).map(|index| format!("call_{index}")).collect();
    writeln!(rules, "call: {}\ngap: SPACE?\nSPACE: /[ \\t\\n]{{1,{SPACE_MAX}}}/", any.join(" | "))
        .expect("memory takes it");
    let (open, close, name) = (quoted(CALL_OPEN), quoted(CALL_CLOSE), quoted(NAME_OPEN));
    let more = match tools.parallel {
        true => format!("\"}}\" gap {close} (gap {open} gap {name} call \"}}\" gap {close})~0..{MORE_CALLS_MAX} gap"),
        false => String::new(),
    };
    if let Some(content) = &tools.content {
        let schema = schema(content).map_err(|reason| GuideError::Content(content.field, Box::new(reason)))?;
        let begin = if is_token { format!("({open} | {CALL_OPEN})") } else { open };
        return Ok(format!(
            "start: calls | content\ncalls: {begin} gap {name} call {more}\ncontent: %json {schema}\n{rules}"
        ));
    }
    Ok(match tools.choice {
        ToolChoice::Auto => format!("start: gap {name} call {more}\n{rules}"),
        ToolChoice::Required if tools.list.len() == 1 => format!("start: args_0 {more}\n{rules}"),
        _ => format!("start: call {more}\n{rules}"),
    })
}

/// The schema of what is no call.
pub(super) fn schema(content: &JsonContent) -> Result<Value, GuideError> {
    match &content.schema {
        Some(text) => bounded(serde_json::from_str(text).map_err(|error| refused(&error.to_string()))?),
        None => bounded(json!({"type": "object"})),
    }
}

/// The schema of a tool's arguments, which are an object.
pub(super) fn arguments(tool: &Tool) -> Result<Value, GuideError> {
    let Some(text) = &tool.parameters else {
        return bounded(json!({"type": "object", "properties": {}, "additionalProperties": false}));
    };
    let mut schema: Value = serde_json::from_str(text).map_err(|error| refused(&error.to_string()))?;
    let fields = schema.as_object_mut().expect("the request's parser wants an object");
    if fields.entry("type").or_insert_with(|| "object".into()) != "object" {
        return Err(GuideError::Arguments);
    }
    bounded(schema)
}

/// Calls of one answer beside the first.
const MORE_CALLS_MAX: usize = 31;
