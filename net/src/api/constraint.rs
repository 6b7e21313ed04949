//! What an answer must look like: `response_format`, `regex`, `choice`, `grammar`, what vLLM and llama-server call these, and
//! `tools`, as far as that can be told without a model.

use std::sync::Arc;

use super::tools::Tools;
use crate::error::ApiError;
use crate::json::{Kind, Path, Value, items};

/// The one form that every answer of a request has.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Constraint {
    /// Any JSON object.
    JsonObject,
    /// A JSON schema, as JSON text with its fields in the order of the request.
    JsonSchema(String),
    /// A regular expression that the whole answer matches.
    Regex(String),
    /// One of these, none of them empty.
    Choice(Vec<String>),
    /// A context-free grammar, GBNF or Lark.
    Grammar(String),
    /// Text with calls of these, or calls alone.
    Tools(Arc<Tools>),
}

/// The field that `key` names, if it says what an answer must look like.
pub(super) fn field(key: &str) -> Option<&'static str> {
    FIELDS.into_iter().find(|field| *field == key)
}

/// The constraint that `field`, one of these, asks for, if it asks for any.
pub(super) fn parse(field: &str, value: Value<'_, '_>, path: Path<'_>) -> Result<Option<Constraint>, ApiError> {
    match field {
        "response_format" => response_format(value, path),
        "structured_outputs" => structured_outputs(value, path),
        "regex" | "guided_regex" => text(value, path).map(|text| Some(Constraint::Regex(text))),
        "grammar" | "guided_grammar" => text(value, path).map(|text| Some(Constraint::Grammar(text))),
        "choice" | "guided_choice" => choice(value, path).map(|choices| Some(Constraint::Choice(choices))),
        _ => schema_text(value, path).map(|schema| Some(Constraint::JsonSchema(schema))),
    }
}

/// vLLM's object with one of these.
fn structured_outputs(value: Value<'_, '_>, path: Path<'_>) -> Result<Option<Constraint>, ApiError> {
    let mut found = None;
    for (key, value) in value.object(path)?.fields() {
        let inner = Path::Field(&path, key);
        let constraint = match key {
            "json" | "regex" | "choice" | "grammar" => parse(key, value, inner)?,
            "json_object" => value.bool(inner)?.then_some(Constraint::JsonObject),
            _ if value.is_neutral() => None,
            _ => return Err(ApiError::not_supported(inner)),
        };
        if constraint.is_some() && std::mem::replace(&mut found, constraint).is_some() {
            return Err(ApiError::validation(inner, "is one constraint too many"));
        }
    }
    Ok(found)
}

/// OpenAI's, and llama-server's schema beside the type.
fn response_format(value: Value<'_, '_>, path: Path<'_>) -> Result<Option<Constraint>, ApiError> {
    let (mut kind, mut named, mut schema) = (None, None, None);
    for (key, value) in value.object(path)?.fields() {
        match key {
            "type" => kind = Some(value.str(Path::Field(&path, key))?),
            "json_schema" => named = Some(json_schema(value, Path::Field(&path, key))?),
            "schema" => schema = Some(Constraint::JsonSchema(schema_text(value, Path::Field(&path, key))?)),
            _ => {}
        }
    }
    match (kind, named.or(schema.clone())) {
        (Some("text"), _) => Ok(None),
        (Some("json_object"), _) => Ok(Some(schema.unwrap_or(Constraint::JsonObject))),
        (Some("json_schema"), Some(constraint)) => Ok(Some(constraint)),
        (Some("json_schema"), None) => Err(ApiError::validation(Path::Field(&path, "json_schema"), "is required")),
        (Some(_), _) => {
            let message = "must be one of text, json_object, json_schema";
            Err(ApiError::validation(Path::Field(&path, "type"), message))
        }
        (None, _) => Err(ApiError::validation(Path::Field(&path, "type"), "is required")),
    }
}

/// What a `json_schema` asks for. Without a schema it is any object, as OpenAI's reference has it optional.
fn json_schema(value: Value<'_, '_>, path: Path<'_>) -> Result<Constraint, ApiError> {
    let (_, schema) = named_schema(value, path, "schema")?;
    Ok(schema.map_or(Constraint::JsonObject, Constraint::JsonSchema))
}

/// Name and schema of OpenAI's `{name, description, strict}` with a schema in `field`. Every schema is kept to, `strict` or
/// not.
///
/// # Errors
/// 400 with the field: a wrong type, a name that is none, a schema that is too long.
pub(super) fn named_schema(
    value: Value<'_, '_>,
    path: Path<'_>,
    field: &str,
) -> Result<(String, Option<String>), ApiError> {
    let (mut schema, mut name) = (None, None);
    for (key, value) in value.object(path)?.fields() {
        let path = Path::Field(&path, key);
        match key {
            "name" => name = Some(value.str(path)?),
            "description" => _ = value.str(path)?,
            "strict" => _ = value.bool(path)?,
            key if key == field => schema = Some(schema_text(value, path)?),
            _ => {}
        }
    }
    Ok((check_name(name, path)?.to_owned(), schema))
}

/// The text of a JSON schema.
fn schema_text(value: Value<'_, '_>, path: Path<'_>) -> Result<String, ApiError> {
    if !matches!(value.kind(), Kind::Object) {
        return Err(ApiError::validation(path, "must be an object"));
    }
    let mut text = Vec::new();
    if !value.write(&mut text, SCHEMA_BYTES_MAX) {
        return Err(ApiError::validation(path, format_args!("has more than {SCHEMA_BYTES_MAX} bytes")));
    }
    Ok(String::from_utf8(text).expect("JSON is written as UTF-8"))
}

fn text(value: Value<'_, '_>, path: Path<'_>) -> Result<String, ApiError> {
    let text = value.str(path)?;
    if text.is_empty() || text.len() > GRAMMAR_BYTES_MAX {
        let message = format_args!("must have 1..={GRAMMAR_BYTES_MAX} bytes, got {}", text.len());
        return Err(ApiError::validation(path, message));
    }
    Ok(text.to_owned())
}

fn choice(value: Value<'_, '_>, path: Path<'_>) -> Result<Vec<String>, ApiError> {
    let array = value.array(path)?;
    let count = array.len();
    if !(1..=CHOICES_MAX).contains(&count) {
        return Err(ApiError::validation(path, format_args!("must have 1..={CHOICES_MAX} strings, got {count}")));
    }
    let mut bytes = 0;
    let mut choices = Vec::with_capacity(count);
    for (index, item) in items(&array).enumerate() {
        let text = item.str(Path::Index(&path, index))?;
        if text.is_empty() {
            return Err(ApiError::validation(Path::Index(&path, index), "must not be empty"));
        }
        bytes += text.len();
        choices.push(text.to_owned());
    }
    if bytes > GRAMMAR_BYTES_MAX {
        return Err(ApiError::validation(path, format_args!("has {bytes} bytes, limit {GRAMMAR_BYTES_MAX}")));
    }
    Ok(choices)
}

/// The `name` of what stands at `path`, if OpenAI would take it as that of a schema or a function.
pub(super) fn check_name<'n>(name: Option<&'n str>, path: Path<'_>) -> Result<&'n str, ApiError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    let is_name = |name: &&str| (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed);
    name.filter(is_name).ok_or_else(|| {
        let message = format_args!("must have 1..={NAME_BYTES_MAX} letters, digits, _ and -");
        ApiError::validation(Path::Field(&path, "name"), message)
    })
}

/// Fields of a request that say it.
const FIELDS: [&str; 10] = [
    "response_format",
    "regex",
    "choice",
    "grammar",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "json_schema",
];
/// Of a schema without spaces.
pub(super) const SCHEMA_BYTES_MAX: usize = 128 << 10;
/// Of a grammar, a regular expression, and all choices together.
pub(super) const GRAMMAR_BYTES_MAX: usize = 64 << 10;
pub(super) const CHOICES_MAX: usize = 1024;
pub(super) const NAME_BYTES_MAX: usize = 64;
