//! Fields with a shape of their own: prompts, stop strings, logit bias, penalty factors, priority.

use super::generate::{Priority, Prompt};
use super::tokens::token_ids;
use crate::error::ApiError;
use crate::json::{Kind, Path, Value, items};

/// string | [string] | [id] | [[id]], as OpenAI's completions and embeddings take it.
pub(super) fn prompt(value: Value<'_, '_>, path: Path<'_>, count_max: usize) -> Result<Prompt, ApiError> {
    let wrong = || ApiError::validation(path, "must be a string, strings, token ids or arrays of token ids");
    let array = match value.kind() {
        Kind::String(text) => return Ok(Prompt::Text(vec![text.to_owned()])),
        Kind::Array(array) => array,
        _ => return Err(wrong()),
    };
    let Some(first) = items(&array).next() else { return Err(ApiError::validation(path, "must not be empty")) };
    if first.is_integer() {
        return Ok(Prompt::Tokens(vec![token_ids(value, path)?]));
    }
    if array.len() > count_max {
        let message = format_args!("has {} entries, limit {count_max}", array.len());
        return Err(ApiError::validation(path, message));
    }
    let indexed = items(&array).enumerate();
    match first.kind() {
        Kind::String(_) => {
            let texts = indexed.map(|(index, item)| item.str(Path::Index(&path, index)).map(str::to_owned));
            texts.collect::<Result<_, _>>().map(Prompt::Text)
        }
        Kind::Array(_) => {
            let prompts = indexed.map(|(index, item)| {
                let path = Path::Index(&path, index);
                let ids = token_ids(item, path)?;
                if ids.is_empty() { Err(ApiError::validation(path, "must not be empty")) } else { Ok(ids) }
            });
            prompts.collect::<Result<_, _>>().map(Prompt::Tokens)
        }
        _ => Err(wrong()),
    }
}

/// A time of at least a millisecond.
pub(super) fn milliseconds(value: Value<'_, '_>, path: Path<'_>) -> Result<u64, ApiError> {
    Ok(value.integer(path, 1, i64::MAX)?.cast_unsigned())
}

/// A factor that logits are divided by: 0 would make them infinite.
pub(super) fn penalty_factor(value: Value<'_, '_>, path: Path<'_>) -> Result<f32, ApiError> {
    let factor = value.number(path, 0.0, 2.0)?;
    if factor > 0.0 { Ok(factor) } else { Err(ApiError::validation(path, "must be above 0 and at most 2")) }
}

pub(super) fn logit_bias(value: Value<'_, '_>, path: Path<'_>) -> Result<Vec<(u32, f32)>, ApiError> {
    let object = value.map(path, LOGIT_BIAS_MAX)?;
    let mut biases = Vec::new();
    for (key, value) in object.fields() {
        let path = Path::Field(&path, key);
        let is_plain = key.bytes().all(|byte| byte.is_ascii_digit());
        let id = key.parse().ok().filter(|_| is_plain);
        let id: u32 = id.ok_or_else(|| ApiError::validation(path, "must be named by a token id"))?;
        biases.push((id, value.number(path, -100.0, 100.0)?));
    }
    biases.sort_by_key(|&(id, _)| id);
    match biases.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(ApiError::validation(path, format_args!("names token {} twice", pair[0].0))),
        None => Ok(biases),
    }
}

pub(super) fn stop(
    value: Value<'_, '_>,
    path: Path<'_>,
    count_max: usize,
    chars_max: usize,
) -> Result<Vec<String>, ApiError> {
    let check = |value: Value<'_, '_>, path: Path<'_>| {
        let text = value.str(path)?;
        if text.is_empty() || text.chars().count() > chars_max {
            return Err(ApiError::validation(path, format_args!("must have 1..={chars_max} characters")));
        }
        Ok(text.to_owned())
    };
    let Kind::Array(array) = value.kind() else {
        return Ok(vec![check(value, path)?]);
    };
    if array.len() > count_max {
        let got = array.len();
        return Err(ApiError::validation(path, format_args!("has {got} strings, limit {count_max}")));
    }
    items(&array).enumerate().map(|(index, item)| check(item, Path::Index(&path, index))).collect()
}

/// One of our words, or vLLM's integer, which is 0 if nothing is said and goes earlier the lower it is: its sign decides.
pub(super) fn priority(value: Value<'_, '_>, path: Path<'_>) -> Result<Priority, ApiError> {
    match value.kind() {
        Kind::String("low") => Ok(Priority::Low),
        Kind::String("normal") => Ok(Priority::Normal),
        Kind::String("high") => Ok(Priority::High),
        Kind::Number if value.is_integer() => Ok(match value.integer(path, i64::MIN, i64::MAX)? {
            ..0 => Priority::High,
            0 => Priority::Normal,
            1.. => Priority::Low,
        }),
        _ => Err(ApiError::validation(path, "must be one of low, normal, high, or an integer: below 0 is high")),
    }
}

/// Entries of one logit_bias.
pub(super) const LOGIT_BIAS_MAX: usize = 1024;
