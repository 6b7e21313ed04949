//! How a conversation becomes a prompt, as far as a request may say so: `chat_template_kwargs`, `reasoning_effort`,
//! `add_generation_prompt`, `continue_final_message`.

use super::constraint::Constraint;
use super::generate::{GenerateRequest, Prompt};
use super::messages::Role;
use super::tools::ToolChoice;
use crate::error::ApiError;
use crate::json::{Path, Value};

/// What a request says to the model's template.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rendering {
    pub end: PromptEnd,
    /// Further variables and their values as JSON text, names distinct and none of the template's own.
    pub variables: Vec<(String, String)>,
}

/// What a prompt ends with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PromptEnd {
    /// The beginning of the assistant's turn.
    #[default]
    Opened,
    /// The last message.
    Closed,
    /// The text of the last message, which the answer goes on with: one of the assistant, not empty, without calls.
    Continued,
}

impl Rendering {
    /// Bytes of the variables.
    pub fn bytes(&self) -> usize {
        self.variables.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

/// The four fields while they come in.
#[derive(Default)]
pub(super) struct Draft {
    variables: Vec<(String, String)>,
    effort: Option<String>,
    opens: Option<bool>,
    continues: bool,
}

impl Draft {
    /// Takes the field `key`; false if it is none of these.
    pub(super) fn field(&mut self, key: &str, value: Value<'_, '_>, path: Path<'_>) -> Result<bool, ApiError> {
        match key {
            "chat_template_kwargs" => self.variables = variables(value, path)?,
            "reasoning_effort" => self.effort(value, path)?,
            "add_generation_prompt" => self.opens = Some(value.bool(path)?),
            "continue_final_message" => self.continues = value.bool(path)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    pub(super) fn effort(&mut self, value: Value<'_, '_>, path: Path<'_>) -> Result<(), ApiError> {
        let effort = value.str(path)?;
        if effort.is_empty() || effort.len() > EFFORT_BYTES_MAX {
            return Err(ApiError::validation(path, format_args!("must have 1..={EFFORT_BYTES_MAX} bytes")));
        }
        self.effort = Some(effort.to_owned());
        Ok(())
    }

    pub(super) fn finish(self, request: &GenerateRequest) -> Result<Rendering, ApiError> {
        let mut variables = self.variables;
        if let Some(effort) = self.effort.filter(|_| variables.iter().all(|(name, _)| name != EFFORT)) {
            variables.push((EFFORT.into(), serde_json::Value::from(effort).to_string()));
        }
        let end = match (self.continues, self.opens) {
            (true, Some(true)) => {
                let message = "can't go with `add_generation_prompt`, which begins a message of its own";
                return Err(ApiError::validation(CONTINUES, message));
            }
            (true, _) => PromptEnd::Continued,
            (false, Some(false)) => PromptEnd::Closed,
            (false, _) => PromptEnd::Opened,
        };
        let is_forced =
            matches!(&request.constraint, Some(Constraint::Tools(tools)) if tools.choice != ToolChoice::Auto);
        if end != PromptEnd::Opened && is_forced {
            let field = if self.continues { CONTINUES } else { "add_generation_prompt" };
            let message = "can't go with a `tool_choice` that begins the answer with a call";
            return Err(ApiError::validation(field, message));
        }
        let can_go_on = match &request.prompt {
            Prompt::Messages(messages) => messages.last().is_some_and(|last| {
                last.role == Role::Assistant && !last.content.trim().is_empty() && last.tool_calls.is_empty()
            }),
            _ => false,
        };
        if end == PromptEnd::Continued && !can_go_on {
            let message = "needs a last message of role assistant, with text and without calls";
            return Err(ApiError::validation(CONTINUES, message));
        }
        Ok(Rendering { end, variables })
    }
}

fn variables(value: Value<'_, '_>, path: Path<'_>) -> Result<Vec<(String, String)>, ApiError> {
    let mut bytes = 0;
    let mut variables = Vec::new();
    for (name, value) in value.object(path)?.fields() {
        let path_of = Path::Field(&path, name);
        if OWN.contains(&name) {
            return Err(ApiError::validation(path_of, "is what the server says to the template"));
        }
        let mut text = Vec::new();
        let fits = value.write(&mut text, TEMPLATE_BYTES_MAX);
        bytes += name.len() + text.len();
        if !fits || bytes > TEMPLATE_BYTES_MAX {
            return Err(ApiError::validation(path, format_args!("has more than {TEMPLATE_BYTES_MAX} bytes")));
        }
        variables.push((name.to_owned(), String::from_utf8(text).expect("JSON is written as UTF-8")));
    }
    Ok(variables)
}

const EFFORT: &str = "reasoning_effort";
const CONTINUES: &str = "continue_final_message";
/// What a template is told in any case.
const OWN: [&str; 6] =
    ["messages", "tools", "add_generation_prompt", "continue_final_message", "bos_token", "eos_token"];
/// Names and values of all variables, as JSON without spaces.
pub(super) const TEMPLATE_BYTES_MAX: usize = 64 << 10;
pub(super) const EFFORT_BYTES_MAX: usize = 32;
