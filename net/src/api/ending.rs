//! Where an answer ends before its length, and what is shown there: `stop`, `stop_token_ids`, `min_tokens`,
//! `include_stop_str_in_output`, `skip_special_tokens`.

use super::fields::stop;
use super::tokens::token_ids;
use crate::error::ApiError;
use crate::json::{Path, Value};

/// What ends an answer beside the model's own end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ending {
    /// Each of at least one character.
    pub strings: Vec<String>,
    /// Not yet compared with the vocabulary.
    pub tokens: Vec<u32>,
    /// Nothing ends an answer before it has so many tokens, but its length.
    pub tokens_min: u32,
    /// Whether the string or token that ends it is part of it.
    pub shows_stop: bool,
    /// Whether control tokens are shown by their names.
    pub shows_control: bool,
}

impl Ending {
    /// Takes the field `key` of an OpenAI endpoint; false if it is none of these.
    pub(super) fn field(&mut self, key: &str, value: Value<'_, '_>, path: Path<'_>) -> Result<bool, ApiError> {
        match key {
            "stop" => self.strings = stop(value, path, 16, 1024)?,
            "stop_token_ids" => {
                let count = value.array(path)?.len();
                if count > STOP_TOKENS_MAX {
                    return Err(ApiError::validation(path, format_args!("has {count} ids, limit {STOP_TOKENS_MAX}")));
                }
                self.tokens = token_ids(value, path)?;
            }
            "min_tokens" => self.tokens_min = value.u32(path, 0)?,
            "include_stop_str_in_output" => self.shows_stop = value.bool(path)?,
            "skip_special_tokens" => self.shows_control = !value.bool(path)?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

pub(super) const STOP_TOKENS_MAX: usize = 128;
