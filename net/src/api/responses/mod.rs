//! OpenAI's Responses API, without a memory: its requests are read as those of a chat, and what its answers repeat of them is
//! kept.

mod input;
mod reply;

use super::constraint::{self, Constraint};
use super::generate::{GenerateRequest, LOGPROBS_MAX, Prompt};
use super::messages::{Message, Role};
use super::rendering;
use crate::error::ApiError;
use crate::json::{Path, Value, items};
pub(super) use input::PARTS;
pub(crate) use reply::{Cursor, Spans, State, write_item_id, write_logprobs, write_message_id};
pub use reply::{ResponseAnswer, ResponseBody, ResponseHead};

/// The fields of its own while they come in.
#[derive(Default)]
pub(super) struct Draft {
    messages: Option<Vec<Message>>,
    instructions: Option<String>,
    max_output_tokens: Option<u32>,
    wants_logprobs: bool,
    top_logprobs: Option<u32>,
    format: Option<Vec<u8>>,
    effort: Option<Vec<u8>>,
    /// What is repeated of the request, as JSON.
    repeated: Vec<(&'static str, Vec<u8>)>,
    /// Of all that is repeated.
    repeated_bytes: usize,
}

impl Draft {
    /// Takes the field `key`; false if it is none of these.
    pub(super) fn field(&mut self, key: &str, value: Value<'_, '_>, path: Path<'_>) -> Result<bool, ApiError> {
        match key {
            "input" => self.messages = Some(input::parse(value, path)?),
            "instructions" => self.instructions = Some(value.str(path)?.to_owned()),
            "max_output_tokens" => self.max_output_tokens = Some(value.u32(path, 1)?),
            // Of tools that a server runs, which are refused.
            "max_tool_calls" => _ = value.u32(path, 1)?,
            "include" => self.wants_logprobs = include(value, path)?,
            "top_logprobs" => self.top_logprobs = Some(value.integer(path, 0, LOGPROBS_MAX)? as u32),
            "metadata" => check_metadata(value, path)?,
            "safety_identifier" | "prompt_cache_key" => _ = value.str(path)?,
            // Nothing is kept either way, and the answer says so.
            "store" => _ = value.bool(path)?,
            "background" => {
                if value.bool(path)? {
                    return Err(ApiError::validation(path, "is not supported: an answer comes with its request"));
                }
            }
            "truncation" => {
                if value.str(path)? != "disabled" {
                    let message = "must be disabled: an input that does not fit the context is refused, never cut";
                    return Err(ApiError::validation(path, message));
                }
            }
            "previous_response_id" | "conversation" => {
                let message = "is not supported: nothing is kept here, send the whole conversation as `input`";
                return Err(ApiError::validation(path, message));
            }
            "prompt" => {
                let message = "is not supported: no templates are kept here, send `instructions` and `input`";
                return Err(ApiError::validation(path, message));
            }
            "context_management" | "moderation" if !value.is_neutral() => return Err(ApiError::not_supported(path)),
            "logprobs" if !value.is_neutral() => {
                return Err(ApiError::validation(path, format_args!("is asked for by `include`: [\"{LOGPROBS}\"]")));
            }
            "messages" => return Err(ApiError::validation(path, "belongs to /v1/chat/completions; send `input`")),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The constraint of `text`, if it has any.
    pub(super) fn text(&mut self, value: Value<'_, '_>, path: Path<'_>) -> Result<Option<Constraint>, ApiError> {
        let mut constraint = None;
        for (key, value) in value.object(path)?.fields() {
            if key == "format" {
                constraint = format(value, Path::Field(&path, key))?;
                self.format = Some(self.written(value, Path::Field(&path, key))?);
            }
        }
        Ok(constraint)
    }

    /// Takes `reasoning`: its effort is a variable of the chat template. Summaries are of items that no answer has.
    pub(super) fn reasoning(
        &mut self,
        rendering: &mut rendering::Draft,
        value: Value<'_, '_>,
        path: Path<'_>,
    ) -> Result<(), ApiError> {
        for (key, value) in value.object(path)?.fields() {
            if key == "effort" {
                rendering.effort(value, Path::Field(&path, key))?;
                self.effort = Some(self.written(value, Path::Field(&path, key))?);
            }
        }
        Ok(())
    }

    /// Takes note of a field that is well-formed, if answers repeat it.
    pub(super) fn keep(&mut self, key: &str, value: Value<'_, '_>, path: Path<'_>) -> Result<(), ApiError> {
        if let Some((name, _)) = REPEATED.iter().find(|(name, _)| *name == key) {
            let written = self.written(value, path)?;
            self.repeated.push((name, written));
        }
        Ok(())
    }

    /// A value as JSON without spaces. Escapes may make it several times as long as it came in, so all of them are counted.
    fn written(&mut self, value: Value<'_, '_>, path: Path<'_>) -> Result<Vec<u8>, ApiError> {
        let mut out = Vec::new();
        if !value.write(&mut out, REPEATED_BYTES_MAX - self.repeated_bytes) {
            let message = format_args!("is repeated by answers, which repeat {REPEATED_BYTES_MAX} bytes at most");
            return Err(ApiError::validation(path, message));
        }
        out.shrink_to_fit();
        self.repeated_bytes += out.len();
        Ok(out)
    }

    /// Completes `request` by what is written otherwise than in a chat; the prompt.
    pub(super) fn finish(self, request: &mut GenerateRequest) -> Result<Option<Prompt>, ApiError> {
        if request.n != 1 {
            return Err(ApiError::validation("n", "is 1 on this endpoint"));
        }
        request.max_tokens = self.max_output_tokens.or(request.max_tokens);
        if self.wants_logprobs {
            request.logprobs = Some(self.top_logprobs.unwrap_or(0));
        } else if self.top_logprobs.is_some_and(|count| count > 0) {
            let message = format_args!("is allowed with `include`: [\"{LOGPROBS}\"] only");
            return Err(ApiError::validation("top_logprobs", message));
        }
        request.parameters = Some(self.parameters());
        let Some(mut messages) = self.messages else { return Ok(None) };
        if messages.is_empty() {
            return Err(ApiError::validation("input", "has no message"));
        }
        if let Some(content) = self.instructions {
            messages.insert(0, message(Role::System, content));
        }
        Ok(Some(Prompt::Messages(messages)))
    }

    /// What an answer repeats of its request, as the last fields of its object.
    fn parameters(&self) -> Box<[u8]> {
        let mut out = Vec::with_capacity(512 + self.repeated.iter().map(|(_, value)| value.len()).sum::<usize>());
        for (name, default) in REPEATED {
            let given = self.repeated.iter().find(|(key, _)| *key == name);
            out.extend_from_slice(b",\"");
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\":");
            out.extend_from_slice(given.map_or(default.as_bytes(), |(_, value)| value));
        }
        out.extend_from_slice(b",\"text\":{\"format\":");
        out.extend_from_slice(self.format.as_deref().unwrap_or(b"{\"type\":\"text\"}"));
        out.extend_from_slice(b"},\"reasoning\":{\"effort\":");
        out.extend_from_slice(self.effort.as_deref().unwrap_or(b"null"));
        out.extend_from_slice(FIXED);
        out.into()
    }
}

/// A message of text alone.
fn message(role: Role, content: String) -> Message {
    Message { role, content, name: None, tool_calls: Vec::new(), tool_call_id: None }
}

/// Whether log-probabilities are among what is to be included. The rest belongs to items that no answer has.
fn include(value: Value<'_, '_>, path: Path<'_>) -> Result<bool, ApiError> {
    let mut wants_logprobs = false;
    for (index, item) in items(&value.array(path)?).enumerate() {
        let path = Path::Index(&path, index);
        let name = item.str(path)?;
        if !INCLUDABLE.contains(&name) {
            return Err(ApiError::validation(path, format_args!("must be one of {}", INCLUDABLE.join(", "))));
        }
        wants_logprobs |= name == LOGPROBS;
    }
    Ok(wants_logprobs)
}

/// Refuses what OpenAI would.
fn check_metadata(value: Value<'_, '_>, path: Path<'_>) -> Result<(), ApiError> {
    let object = value.object(path)?;
    if object.fields().count() > METADATA_PAIRS_MAX {
        return Err(ApiError::validation(path, format_args!("has more than {METADATA_PAIRS_MAX} pairs")));
    }
    for (key, value) in object.fields() {
        let path = Path::Field(&path, key);
        if key.chars().count() > METADATA_NAME_CHARS_MAX {
            return Err(ApiError::validation(
                path,
                format_args!("has a name above {METADATA_NAME_CHARS_MAX} characters"),
            ));
        }
        if value.str(path)?.chars().count() > METADATA_CHARS_MAX {
            return Err(ApiError::validation(path, format_args!("has more than {METADATA_CHARS_MAX} characters")));
        }
    }
    Ok(())
}

/// The constraint of `{type, name, schema}`.
fn format(value: Value<'_, '_>, path: Path<'_>) -> Result<Option<Constraint>, ApiError> {
    let kind = value.object(path)?.fields().find(|(key, _)| *key == "type");
    let path_of_kind = Path::Field(&path, "type");
    let (_, kind) = kind.ok_or_else(|| ApiError::validation(path_of_kind, "is required"))?;
    match kind.str(path_of_kind)? {
        "text" => Ok(None),
        "json_object" => Ok(Some(Constraint::JsonObject)),
        "json_schema" => {
            let (_, schema) = constraint::named_schema(value, path, "schema")?;
            let schema = schema.ok_or_else(|| ApiError::validation(Path::Field(&path, "schema"), "is required"))?;
            Ok(Some(Constraint::JsonSchema(schema)))
        }
        _ => Err(ApiError::validation(path_of_kind, "must be one of text, json_object, json_schema")),
    }
}

const LOGPROBS: &str = "message.output_text.logprobs";
/// What OpenAI's clients may ask for.
pub(super) const INCLUDABLE: [&str; 8] = [
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    LOGPROBS,
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
];
/// Of the fields that an answer repeats, which are kept until it ends.
const REPEATED_BYTES_MAX: usize = 1 << 20;
/// Fields of a request that its answers repeat, and what they say where it has none.
const REPEATED: [(&str, &str); 13] = [
    ("instructions", "null"),
    ("max_output_tokens", "null"),
    ("max_tool_calls", "null"),
    ("metadata", "{}"),
    ("parallel_tool_calls", "true"),
    ("prompt_cache_key", "null"),
    ("safety_identifier", "null"),
    ("temperature", "1.0"),
    ("tool_choice", "\"auto\""),
    ("tools", "[]"),
    ("top_logprobs", "0"),
    ("top_p", "1.0"),
    ("user", "null"),
];
/// What is the same of all answers.
const FIXED: &[u8] =
    b",\"summary\":null},\"background\":false,\"previous_response_id\":null,\"service_tier\":\"default\",\
    \"store\":false,\"truncation\":\"disabled\"";
pub(super) const METADATA_PAIRS_MAX: usize = 16;
pub(super) const METADATA_NAME_CHARS_MAX: usize = 64;
pub(super) const METADATA_CHARS_MAX: usize = 512;
