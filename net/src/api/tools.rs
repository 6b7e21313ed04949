//! Functions that a model may call: `tools`, `tool_choice` and `parallel_tool_calls` of a chat, and the calls that stand in
//! its messages.

use super::constraint::{check_name, named_schema};
use crate::error::ApiError;
use crate::json::{Kind, Path, Value, items, write_string};

/// What the answers of a request may call.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tools {
    /// Not empty, names distinct.
    pub list: Vec<Tool>,
    pub choice: ToolChoice,
    /// Whether an answer may make more than one call.
    pub parallel: bool,
    /// With [`ToolChoice::Auto`]: what an answer is that calls nothing. Without, it is any text, with calls behind it or not.
    pub content: Option<JsonContent>,
}

/// An answer in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct JsonContent {
    /// Its schema, as JSON text; `None`: any object.
    pub schema: Option<String>,
    /// The field of the request that says so.
    pub field: &'static str,
}

/// A function.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tool {
    pub name: String,
    /// All that the request says of it, as JSON text.
    pub definition: String,
    /// The schema of its arguments, as JSON text with its fields in the order of the request; `None`: it takes none.
    pub parameters: Option<String>,
}

/// Whether an answer calls, and what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ToolChoice {
    /// As the model likes.
    Auto,
    /// One tool or more.
    Required,
    /// The tool of that index, once.
    Named(usize),
}

/// A call that an assistant's message made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    pub id: String,
    pub name: String,
    /// Text of a JSON object.
    pub arguments: String,
}

/// The three fields while they come in.
#[derive(Default)]
pub(super) struct Draft {
    form: Form,
    list: Vec<Tool>,
    choice: Option<Wanted>,
    parallel: Option<bool>,
}

/// How a request writes what belongs to a function.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Form {
    /// `{type: function, function: {name, ..}}`
    #[default]
    Nested,
    /// `{type: function, name, ..}`
    Flat,
}

enum Wanted {
    None,
    Auto,
    Required,
    Named(String),
    /// Some of the tools: one or more must be called, or as the model likes.
    Among {
        names: Vec<String>,
        required: bool,
    },
}

impl Draft {
    /// As the Responses API writes them.
    pub(super) fn flat() -> Self {
        Self { form: Form::Flat, ..Self::default() }
    }

    /// Takes the field `key`; false if it is none of these.
    pub(super) fn field(&mut self, key: &str, value: Value<'_, '_>, path: Path<'_>) -> Result<bool, ApiError> {
        match key {
            "tools" => self.list = tools(value, path, self.form)?,
            "tool_choice" => self.choice = Some(wanted(value, path, self.form)?),
            "parallel_tool_calls" => self.parallel = Some(value.bool(path)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What may be called; nothing where there is nothing, or none of it.
    pub(super) fn finish(mut self) -> Result<Option<Tools>, ApiError> {
        let choice = match self.choice {
            Some(Wanted::None) => return Ok(None),
            None | Some(Wanted::Auto) => ToolChoice::Auto,
            Some(Wanted::Required) => ToolChoice::Required,
            Some(Wanted::Named(name)) => {
                let index = self.list.iter().position(|tool| tool.name == name);
                let path = if self.form == Form::Flat { "tool_choice.name" } else { "tool_choice.function.name" };
                let missing = || ApiError::validation(path, "is the name of none of `tools`");
                ToolChoice::Named(index.ok_or_else(missing)?)
            }
            Some(Wanted::Among { names, required }) => {
                if let Some(at) = names.iter().position(|name| self.list.iter().all(|tool| tool.name != *name)) {
                    let path = match self.form {
                        Form::Flat => format!("tool_choice.tools[{at}].name"),
                        Form::Nested => format!("tool_choice.allowed_tools.tools[{at}].function.name"),
                    };
                    return Err(ApiError::validation(path, "is the name of none of `tools`"));
                }
                self.list.retain(|tool| names.contains(&tool.name));
                if required { ToolChoice::Required } else { ToolChoice::Auto }
            }
        };
        if self.list.is_empty() {
            return match choice {
                ToolChoice::Auto => Ok(None),
                _ => Err(ApiError::validation("tool_choice", "is allowed with `tools` only")),
            };
        }
        Ok(Some(Tools { list: self.list, choice, parallel: self.parallel.unwrap_or(true), content: None }))
    }
}

fn tools(value: Value<'_, '_>, path: Path<'_>, form: Form) -> Result<Vec<Tool>, ApiError> {
    let array = value.array(path)?;
    if array.len() > TOOLS_MAX {
        return Err(ApiError::validation(path, format_args!("has {} tools, limit {TOOLS_MAX}", array.len())));
    }
    let (mut bytes, mut list) = (0, Vec::<Tool>::with_capacity(array.len()));
    for (index, item) in items(&array).enumerate() {
        let path_of = Path::Index(&path, index);
        let tool = if form == Form::Flat { flat_tool(item, path_of) } else { tool(item, path_of) }?;
        bytes += tool.definition.len();
        if bytes > TOOLS_BYTES_MAX {
            return Err(ApiError::validation(path, format_args!("have more than {TOOLS_BYTES_MAX} bytes")));
        }
        if let Some(other) = list.iter().position(|other| other.name == tool.name) {
            let message = format_args!("is that of {}", Path::Index(&path, other));
            return Err(ApiError::validation(name_path(path_of, form), message));
        }
        list.push(tool);
    }
    Ok(list)
}

fn tool(value: Value<'_, '_>, path: Path<'_>) -> Result<Tool, ApiError> {
    let (mut kind, mut function) = (None, None);
    for (key, value) in value.object(path)?.fields() {
        let path = Path::Field(&path, key);
        match key {
            "type" => kind = Some(value.str(path)?),
            "function" => function = Some(named_schema(value, path, "parameters")?),
            _ => {}
        }
    }
    check_kind(kind, path)?;
    let missing = || ApiError::validation(Path::Field(&path, "function"), "is required");
    let (name, parameters) = function.ok_or_else(missing)?;
    let mut definition = Vec::new();
    let fits = value.write(&mut definition, TOOLS_BYTES_MAX);
    Ok(Tool { name, definition: definition_text(definition, fits, path)?, parameters })
}

/// Its definition is nested, as models know it.
fn flat_tool(value: Value<'_, '_>, path: Path<'_>) -> Result<Tool, ApiError> {
    let object = value.object(path)?;
    let kind = object.fields().find(|(key, _)| *key == "type");
    check_kind(kind.map(|(key, value)| value.str(Path::Field(&path, key))).transpose()?, path)?;
    let (name, parameters) = named_schema(value, path, "parameters")?;
    let mut definition = b"{\"type\":\"function\",\"function\":{".to_vec();
    let (start, mut fits) = (definition.len(), true);
    for (key, value) in object.fields().filter(|(key, _)| *key != "type") {
        if matches!(key, "async" | "defer_loading") && !value.is_neutral() {
            return Err(ApiError::not_supported(Path::Field(&path, key)));
        }
        if definition.len() > start {
            definition.push(b',');
        }
        write_string(&mut definition, key);
        definition.push(b':');
        fits = fits && value.write(&mut definition, TOOLS_BYTES_MAX);
    }
    definition.extend_from_slice(b"}}");
    Ok(Tool { name, definition: definition_text(definition, fits, path)?, parameters })
}

fn definition_text(definition: Vec<u8>, fits: bool, path: Path<'_>) -> Result<String, ApiError> {
    if !fits {
        return Err(ApiError::validation(path, format_args!("has more than {TOOLS_BYTES_MAX} bytes")));
    }
    Ok(String::from_utf8(definition).expect("JSON is written as UTF-8"))
}

fn wanted(value: Value<'_, '_>, path: Path<'_>, form: Form) -> Result<Wanted, ApiError> {
    match value.kind() {
        Kind::String("none") => return Ok(Wanted::None),
        Kind::String("auto") => return Ok(Wanted::Auto),
        Kind::String("required") => return Ok(Wanted::Required),
        Kind::Object => {}
        _ => return Err(ApiError::validation(path, "must be none, auto, required or an object that names a function")),
    }
    let object = value.object(path)?;
    let mut fields = object.fields();
    match form {
        Form::Flat => {
            if fields.any(|(key, value)| key == "type" && matches!(value.kind(), Kind::String(ALLOWED))) {
                return among(value, path, form);
            }
        }
        Form::Nested => {
            if let Some((key, value)) = fields.find(|(key, _)| *key == ALLOWED) {
                return among(value, Path::Field(&path, key), form);
            }
        }
    }
    named(value, path, form).map(Wanted::Named)
}

/// The name of a function that is to be called.
fn named(value: Value<'_, '_>, path: Path<'_>, form: Form) -> Result<String, ApiError> {
    let (mut kind, mut name) = (None, None);
    for (key, value) in value.object(path)?.fields() {
        let path = Path::Field(&path, key);
        match key {
            "type" => kind = Some(value.str(path)?),
            "name" if form == Form::Flat => name = Some(value.str(path)?),
            "function" if form == Form::Nested => {
                for (key, value) in value.object(path)?.fields() {
                    if key == "name" {
                        name = Some(value.str(Path::Field(&path, key))?);
                    }
                }
            }
            _ => {}
        }
    }
    check_kind(kind, path)?;
    let name = name.ok_or_else(|| ApiError::validation(name_path(path, form), "is required"))?;
    Ok(name.to_owned())
}

/// OpenAI's `{mode, tools}`.
fn among(value: Value<'_, '_>, path: Path<'_>, form: Form) -> Result<Wanted, ApiError> {
    let (mut required, mut names) = (None, None);
    for (key, value) in value.object(path)?.fields() {
        let path = Path::Field(&path, key);
        match key {
            "mode" => {
                required = Some(match value.str(path)? {
                    "auto" => false,
                    "required" => true,
                    _ => return Err(ApiError::validation(path, "must be auto or required")),
                });
            }
            "tools" => {
                let array = value.array(path)?;
                if !(1..=TOOLS_MAX).contains(&array.len()) {
                    return Err(ApiError::validation(path, format_args!("must name 1..={TOOLS_MAX} tools")));
                }
                let of = items(&array).enumerate().map(|(index, item)| named(item, Path::Index(&path, index), form));
                names = Some(of.collect::<Result<Vec<_>, _>>()?);
            }
            _ => {}
        }
    }
    let missing = |field: &str| ApiError::validation(Path::Field(&path, field), "is required");
    let required = required.ok_or_else(|| missing("mode"))?;
    Ok(Wanted::Among { names: names.ok_or_else(|| missing("tools"))?, required })
}

/// The calls of an assistant's message.
pub(super) fn calls(value: Value<'_, '_>, path: Path<'_>) -> Result<Vec<ToolCall>, ApiError> {
    let array = value.array(path)?;
    if array.len() > TOOL_CALLS_MAX {
        return Err(ApiError::validation(path, format_args!("has {} calls, limit {TOOL_CALLS_MAX}", array.len())));
    }
    items(&array).enumerate().map(|(index, item)| call(item, Path::Index(&path, index))).collect()
}

fn call(value: Value<'_, '_>, path: Path<'_>) -> Result<ToolCall, ApiError> {
    let (mut kind, mut id, mut name, mut arguments) = (Some("function"), None, None, String::from("{}"));
    for (key, value) in value.object(path)?.fields() {
        let path = Path::Field(&path, key);
        match key {
            "type" => kind = Some(value.str(path)?),
            "id" => id = Some(call_id(value, path)?),
            "function" => {
                for (key, value) in value.object(path)?.fields() {
                    let path = Path::Field(&path, key);
                    match key {
                        "name" => name = Some(value.str(path)?),
                        "arguments" => arguments = self::arguments(value, path)?,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    check_kind(kind, path)?;
    let id = id.ok_or_else(|| ApiError::validation(Path::Field(&path, "id"), "is required"))?;
    let name = check_name(name, Path::Field(&path, "function"))?.to_owned();
    Ok(ToolCall { id, name, arguments })
}

/// The text of a JSON object; an empty one stands for `{}`.
pub(super) fn arguments(value: Value<'_, '_>, path: Path<'_>) -> Result<String, ApiError> {
    let text = value.str(path)?.trim();
    if text.is_empty() {
        return Ok("{}".into());
    }
    match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(ApiError::validation(path, "must be the text of a JSON object")),
    }
}

/// Which call is meant.
pub(super) fn call_id(value: Value<'_, '_>, path: Path<'_>) -> Result<String, ApiError> {
    let id = value.str(path)?;
    if id.is_empty() || id.len() > CALL_ID_BYTES_MAX {
        let message = format_args!("must have 1..={CALL_ID_BYTES_MAX} bytes, got {}", id.len());
        return Err(ApiError::validation(path, message));
    }
    Ok(id.to_owned())
}

fn check_kind(kind: Option<&str>, path: Path<'_>) -> Result<(), ApiError> {
    match kind {
        Some("function") => Ok(()),
        Some(_) => Err(ApiError::validation(Path::Field(&path, "type"), "other than function is not supported")),
        None => Err(ApiError::validation(Path::Field(&path, "type"), "is required")),
    }
}

fn name_path(path: Path<'_>, form: Form) -> String {
    format!("{path}{}", if form == Form::Flat { ".name" } else { ".function.name" })
}

const ALLOWED: &str = "allowed_tools";
/// As many as OpenAI takes.
pub(super) const TOOLS_MAX: usize = 128;
/// Of all tools of a request, as JSON without spaces.
pub(super) const TOOLS_BYTES_MAX: usize = 256 << 10;
/// Calls of one message.
pub(super) const TOOL_CALLS_MAX: usize = 128;
pub(super) const CALL_ID_BYTES_MAX: usize = 256;
