//! Request schemas of tokenize and detokenize.

use super::messages::{self, Message};
use crate::error::ApiError;
use crate::json::{Object, Path, Reader, Value, items};

/// What to tokenise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenizeInput {
    Content(String),
    /// Rendered with the model's chat template first.
    Messages(Vec<Message>),
}

/// `POST /v1/tokenize`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizeRequest {
    pub model: Option<String>,
    pub input: TokenizeInput,
    /// Add BOS as the model asks (=false).
    pub add_special: bool,
    /// Read special tokens in the text as such (=true).
    pub parse_special: bool,
    /// Answer with pieces beside the ids (=false).
    pub with_pieces: bool,
}

impl TokenizeRequest {
    /// # Errors
    /// 400 as every schema here; `content` or `messages` is required, not both.
    pub fn parse(reader: &mut Reader, body: &mut [u8]) -> Result<Self, ApiError> {
        reader.object(body, Self::from_object)
    }

    fn from_object(object: &Object<'_, '_>) -> Result<Self, ApiError> {
        let (mut model, mut content, mut messages) = (None, None, None);
        let (mut add_special, mut parse_special, mut with_pieces) = (false, true, false);
        for (key, value) in object.fields() {
            let path = Path::Field(&Path::Root, key);
            match key {
                "model" => model = Some(value.str(path)?.to_owned()),
                "content" => content = Some(value.str(path)?.to_owned()),
                "messages" => messages = Some(messages::parse(value, path)?),
                "add_special" => add_special = value.bool(path)?,
                "parse_special" => parse_special = value.bool(path)?,
                "with_pieces" => with_pieces = value.bool(path)?,
                _ => return Err(ApiError::validation(path, "is not a known field")),
            }
        }
        let input = match (content, messages) {
            (Some(content), None) => TokenizeInput::Content(content),
            (None, Some(messages)) => TokenizeInput::Messages(messages),
            (None, None) => return Err(ApiError::validation("content", "or `messages` is required")),
            (Some(_), Some(_)) => return Err(ApiError::validation("content", "and `messages` exclude each other")),
        };
        Ok(Self { model, input, add_special, parse_special, with_pieces })
    }
}

/// `POST /v1/detokenize`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetokenizeRequest {
    pub model: Option<String>,
    /// Not yet compared with the vocabulary.
    pub tokens: Vec<u32>,
}

impl DetokenizeRequest {
    /// # Errors
    /// 400 as every schema here; `tokens` is required and may be empty.
    pub fn parse(reader: &mut Reader, body: &mut [u8]) -> Result<Self, ApiError> {
        reader.object(body, |object| {
            let (mut model, mut tokens) = (None, None);
            for (key, value) in object.fields() {
                let path = Path::Field(&Path::Root, key);
                match key {
                    "model" => model = Some(value.str(path)?.to_owned()),
                    "tokens" => tokens = Some(token_ids(value, path)?),
                    _ => return Err(ApiError::validation(path, "is not a known field")),
                }
            }
            let tokens = tokens.ok_or_else(|| ApiError::validation("tokens", "is required"))?;
            Ok(Self { model, tokens })
        })
    }
}

/// An array of token ids.
pub(super) fn token_ids(value: Value<'_, '_>, path: Path<'_>) -> Result<Vec<u32>, ApiError> {
    let array = value.array(path)?;
    items(&array).enumerate().map(|(index, item)| item.u32(Path::Index(&path, index), 0)).collect()
}
