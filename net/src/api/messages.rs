//! Chat messages with text contents and calls of tools.

use super::tools::{self, ToolCall};
use crate::error::ApiError;
use crate::json::{Kind, Object, Path, Value, items};

/// Who speaks. OpenAI's `developer` is read as system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    System,
    User,
    Assistant,
    Tool,
}

impl Role {
    /// The word that chat templates know.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub role: Role,
    /// Text; the parts of an array are joined by line ends.
    pub content: String,
    pub name: Option<String>,
    /// With role assistant: what it called. The content may be empty then.
    pub tool_calls: Vec<ToolCall>,
    /// With role tool: which call this answers.
    pub tool_call_id: Option<String>,
}

/// A non-empty array of messages.
pub(super) fn parse(value: Value<'_, '_>, path: Path<'_>) -> Result<Vec<Message>, ApiError> {
    let array = value.array(path)?;
    if array.is_empty() {
        return Err(ApiError::validation(path, "must not be empty"));
    }
    if array.len() > MESSAGES_MAX {
        let got = array.len();
        return Err(ApiError::validation(path, format_args!("has {got} messages, limit {MESSAGES_MAX}")));
    }
    items(&array)
        .enumerate()
        .map(|(index, item)| {
            let path = Path::Index(&path, index);
            message(&item.object(path)?, path)
        })
        .collect()
}

fn message(object: &Object<'_, '_>, path: Path<'_>) -> Result<Message, ApiError> {
    let (mut role, mut text, mut name, mut tool_call_id) = (None, None, None, None);
    let mut tool_calls = Vec::new();
    for (key, value) in object.fields() {
        let path = Path::Field(&path, key);
        match key {
            "role" => role = Some(parse_role(value, path)?),
            "content" => text = Some(content(value, path, PARTS)?),
            "name" => name = Some(value.str(path)?.to_owned()),
            "tool_call_id" => tool_call_id = Some(tools::call_id(value, path)?),
            "tool_calls" => tool_calls = tools::calls(value, path)?,
            "function_call" | "audio" if !value.is_neutral() => {
                return Err(ApiError::not_supported(path));
            }
            _ => {}
        }
    }
    let role = role.ok_or_else(|| ApiError::validation(Path::Field(&path, "role"), "is required"))?;
    if role != Role::Assistant && !tool_calls.is_empty() {
        return Err(ApiError::validation(Path::Field(&path, "tool_calls"), "is allowed with role assistant only"));
    }
    let text = text.or_else(|| (!tool_calls.is_empty()).then(String::new));
    let content = text.ok_or_else(|| ApiError::validation(Path::Field(&path, "content"), "is required"))?;
    if role == Role::Tool && tool_call_id.is_none() {
        return Err(ApiError::validation(Path::Field(&path, "tool_call_id"), "is required with role tool"));
    }
    Ok(Message { role, content, name, tool_calls, tool_call_id })
}

/// The text of OpenAI's `{type: content, content}`.
pub(super) fn prediction(value: Value<'_, '_>, path: Path<'_>) -> Result<String, ApiError> {
    let (mut kind, mut text) = (None, None);
    for (key, value) in value.object(path)?.fields() {
        let path = Path::Field(&path, key);
        match key {
            "type" => kind = Some(value.str(path)?),
            "content" => text = Some(content(value, path, PARTS)?),
            _ => {}
        }
    }
    if kind != Some("content") {
        return Err(ApiError::validation(Path::Field(&path, "type"), "must be content"));
    }
    let path = Path::Field(&path, "content");
    let text = text.ok_or_else(|| ApiError::validation(path, "is required"))?;
    if text.len() > PREDICTION_BYTES_MAX {
        let message = format_args!("has {} bytes, limit {PREDICTION_BYTES_MAX}", text.len());
        return Err(ApiError::validation(path, message));
    }
    Ok(text)
}

pub(super) fn parse_role(value: Value<'_, '_>, path: Path<'_>) -> Result<Role, ApiError> {
    match value.str(path)? {
        "system" | "developer" => Ok(Role::System),
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        "tool" => Ok(Role::Tool),
        _ => Err(ApiError::validation(path, "must be one of system, developer, user, assistant, tool")),
    }
}

/// A text, or parts of text of these `kinds`, joined by line ends.
pub(super) fn content(value: Value<'_, '_>, path: Path<'_>, kinds: &[&str]) -> Result<String, ApiError> {
    let array = match value.kind() {
        Kind::String(text) => return Ok(text.to_owned()),
        Kind::Array(array) => array,
        _ => return Err(ApiError::validation(path, "must be a string or an array of text parts")),
    };
    if array.is_empty() {
        return Err(ApiError::validation(path, "must not be empty"));
    }
    let mut joined = String::new();
    for (index, item) in items(&array).enumerate() {
        let path = Path::Index(&path, index);
        if index > 0 {
            joined.push('\n');
        }
        joined.push_str(text_part(&item.object(path)?, path, kinds)?);
    }
    Ok(joined)
}

fn text_part<'i>(object: &Object<'_, 'i>, path: Path<'_>, kinds: &[&str]) -> Result<&'i str, ApiError> {
    let (mut kind, mut text) = (None, None);
    for (key, value) in object.fields() {
        let path = Path::Field(&path, key);
        match key {
            "type" => kind = Some(value.str(path)?),
            "text" => text = Some(value.str(path)?),
            _ => {}
        }
    }
    match kind {
        Some(kind) if kinds.contains(&kind) => {
            text.ok_or_else(|| ApiError::validation(Path::Field(&path, "text"), "is required"))
        }
        Some(_) => {
            let message = format_args!("other than {} is not supported", kinds.join(", "));
            Err(ApiError::validation(Path::Field(&path, "type"), message))
        }
        None => Err(ApiError::validation(Path::Field(&path, "type"), "is required")),
    }
}

pub(super) const PREDICTION_BYTES_MAX: usize = 64 << 10;
/// What a part of text is called.
const PARTS: &[&str] = &["text"];
/// Far more turns than fit in any context this server has.
pub(super) const MESSAGES_MAX: usize = 4096;
