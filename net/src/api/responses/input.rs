//! The items of an `input`, as messages of a chat.

use std::collections::HashSet;

use super::super::constraint::check_name;
use super::super::messages::{MESSAGES_MAX, Message, Role, content, parse_role};
use super::super::tools::{TOOL_CALLS_MAX, ToolCall, arguments, call_id};
use super::message;
use crate::error::ApiError;
use crate::json::{Kind, Object, Path, Value, items};

/// A text of the user, or items: messages, calls, what was said to them, and reasoning that is empty.
pub(super) fn parse(value: Value<'_, '_>, path: Path<'_>) -> Result<Vec<Message>, ApiError> {
    let array = match value.kind() {
        Kind::String(text) => return Ok(vec![message(Role::User, text.to_owned())]),
        Kind::Array(array) => array,
        _ => return Err(ApiError::validation(path, "must be a string or an array of items")),
    };
    if array.is_empty() {
        return Err(ApiError::validation(path, "must not be empty"));
    }
    if array.len() > MESSAGES_MAX {
        let got = array.len();
        return Err(ApiError::validation(path, format_args!("has {got} items, limit {MESSAGES_MAX}")));
    }
    let mut messages = Vec::with_capacity(array.len());
    let mut call_ids = HashSet::new();
    for (index, item) in items(&array).enumerate() {
        let path = Path::Index(&path, index);
        let object = item.object(path)?;
        let kind = object.fields().find(|(key, _)| *key == "type");
        let kind = kind.map(|(key, value)| value.str(Path::Field(&path, key))).transpose()?;
        match kind {
            None | Some("message") => messages.push(spoken(&object, path)?),
            Some("function_call") => {
                let call = call(&object, path)?;
                call_ids.insert(call.id.clone());
                add_call(&mut messages, call, path)?;
            }
            Some("function_call_output") => messages.push(output(&object, path, &call_ids)?),
            Some("reasoning") => check_reasoning(&object, path)?,
            Some("item_reference") => {
                let message = "of item_reference is not supported: nothing is kept here, send the item itself";
                return Err(ApiError::validation(Path::Field(&path, "type"), message));
            }
            Some(_) => {
                let message = "must be one of message, function_call, function_call_output, reasoning";
                return Err(ApiError::validation(Path::Field(&path, "type"), message));
            }
        }
    }
    Ok(messages)
}

fn required(path: Path<'_>, name: &str) -> ApiError {
    ApiError::validation(Path::Field(&path, name), "is required")
}

fn spoken(object: &Object<'_, '_>, path: Path<'_>) -> Result<Message, ApiError> {
    let (mut role, mut said) = (None, None);
    for (key, value) in object.fields() {
        let path = Path::Field(&path, key);
        match key {
            "role" => role = Some(parse_role(value, path)?),
            "content" => said = Some(content(value, path, PARTS)?),
            _ => {}
        }
    }
    match role.ok_or_else(|| required(path, "role"))? {
        Role::Tool => {
            let message = "must be one of system, developer, user, assistant; send a function_call_output";
            Err(ApiError::validation(Path::Field(&path, "role"), message))
        }
        role => Ok(message(role, said.ok_or_else(|| required(path, "content"))?)),
    }
}

fn call(object: &Object<'_, '_>, path: Path<'_>) -> Result<ToolCall, ApiError> {
    let (mut id, mut name, mut text) = (None, None, None);
    for (key, value) in object.fields() {
        let path = Path::Field(&path, key);
        match key {
            "call_id" => id = Some(call_id(value, path)?),
            "name" => name = Some(value.str(path)?),
            "arguments" => text = Some(arguments(value, path)?),
            _ => {}
        }
    }
    let name = check_name(name, path)?.to_owned();
    let id = id.ok_or_else(|| required(path, "call_id"))?;
    Ok(ToolCall { id, name, arguments: text.ok_or_else(|| required(path, "arguments"))? })
}

/// Calls stand in the message before them, if that is the assistant's.
fn add_call(messages: &mut Vec<Message>, call: ToolCall, path: Path<'_>) -> Result<(), ApiError> {
    if messages.last().is_none_or(|last| last.role != Role::Assistant) {
        messages.push(message(Role::Assistant, String::new()));
    }
    let calls = &mut messages.last_mut().expect("pushed above if there was none").tool_calls;
    if calls.len() == TOOL_CALLS_MAX {
        return Err(ApiError::validation(path, format_args!("is a call too many in a row, limit {TOOL_CALLS_MAX}")));
    }
    calls.push(call);
    Ok(())
}

fn output(object: &Object<'_, '_>, path: Path<'_>, call_ids: &HashSet<String>) -> Result<Message, ApiError> {
    let (mut id, mut said) = (None, None);
    for (key, value) in object.fields() {
        let path = Path::Field(&path, key);
        match key {
            "call_id" => id = Some(call_id(value, path)?),
            "output" => said = Some(content(value, path, PARTS)?),
            _ => {}
        }
    }
    let id = id.ok_or_else(|| required(path, "call_id"))?;
    if !call_ids.contains(&id) {
        let message = "is that of no function_call before it; nothing is kept here, send the call as well";
        return Err(ApiError::validation(Path::Field(&path, "call_id"), message));
    }
    let said = said.ok_or_else(|| required(path, "output"))?;
    Ok(Message { tool_call_id: Some(id), ..message(Role::Tool, said) })
}

/// No reasoning of other models can be given to this one, nor unsealed.
fn check_reasoning(object: &Object<'_, '_>, path: Path<'_>) -> Result<(), ApiError> {
    for (key, value) in object.fields() {
        if matches!(key, "summary" | "content" | "encrypted_content") && !value.is_neutral() {
            return Err(ApiError::validation(Path::Field(&path, key), "of reasoning must be empty"));
        }
    }
    Ok(())
}

/// Parts of text, as those who wrote them call them; some clients leave OpenAI's older word.
pub(in crate::api) const PARTS: &[&str] = &["input_text", "output_text", "text"];
