//! The methods of Python's `str`, `dict` and `list` that chat templates call.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind, Output, State};

/// `value.method(args)`, for methods that minijinja's values lack.
///
/// # Errors
/// `UnknownMethod` for a method that is not here, else what is wrong with the arguments.
pub(super) fn call_method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            state.consume_fuel(text.len() as u64 / 64)?;
            string_method(text, method, args)
        }
        ValueKind::Map => map_method(value, method, args),
        ValueKind::Seq | ValueKind::Iterable => sequence_method(value, method, args),
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

/// Prints a value as Python does: `None`, `True`, `False`.
pub(super) fn print(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let word = match value.kind() {
        ValueKind::None => "None",
        ValueKind::Bool if value.is_true() => "True",
        ValueKind::Bool => "False",
        _ => return minijinja::escape_formatter(out, state, value),
    };
    out.write_str(word).map_err(Error::from)
}

fn string_method(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let strip_set = || -> Result<_, Error> {
        let set = optional_text(args, 0)?;
        Ok(move |c: char| set.map_or(c.is_whitespace(), |set| set.contains(c)))
    };
    Ok(match method {
        "strip" => text.trim_matches(strip_set()?).into(),
        "lstrip" => text.trim_start_matches(strip_set()?).into(),
        "rstrip" => text.trim_end_matches(strip_set()?).into(),
        "upper" => text.to_uppercase().into(),
        "lower" => text.to_lowercase().into(),
        "title" => title(text).into(),
        "capitalize" => capitalize(text).into(),
        "startswith" => any_text(args, |part| text.starts_with(part))?.into(),
        "endswith" => any_text(args, |part| text.ends_with(part))?.into(),
        "replace" => replace(text, required_text(args, 0)?, required_text(args, 1)?, limit(args, 2)?)?.into(),
        "split" => split(text, args)?,
        "rsplit" => rsplit(text, args)?,
        "splitlines" => text.lines().map(Value::from).collect::<Vec<_>>().into(),
        "join" => {
            let parts: Vec<Value> = argument(args, 0)?.try_iter()?.collect();
            let parts: Option<Vec<&str>> = parts.iter().map(Value::as_str).collect();
            let parts = parts.ok_or_else(|| invalid("join takes strings"))?;
            check_size(parts.iter().fold(0, |sum: usize, part| sum.saturating_add(part.len() + text.len())))?;
            parts.join(text).into()
        }
        "count" => text.matches(required_text(args, 0)?).count().into(),
        "find" => position(text, text.find(required_text(args, 0)?)).into(),
        "rfind" => position(text, text.rfind(required_text(args, 0)?)).into(),
        "removeprefix" => text.strip_prefix(required_text(args, 0)?).unwrap_or(text).into(),
        "removesuffix" => text.strip_suffix(required_text(args, 0)?).unwrap_or(text).into(),
        "isspace" => (!text.is_empty() && text.chars().all(char::is_whitespace)).into(),
        "isdigit" => (!text.is_empty() && text.chars().all(char::is_numeric)).into(),
        "isalpha" => (!text.is_empty() && text.chars().all(char::is_alphabetic)).into(),
        "isalnum" => (!text.is_empty() && text.chars().all(char::is_alphanumeric)).into(),
        "isupper" => (text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase)).into(),
        "islower" => (text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase)).into(),
        _ => return Err(ErrorKind::UnknownMethod.into()),
    })
}

fn map_method(map: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let keys = || map.try_iter();
    Ok(match method {
        "items" => keys()?
            .map(|key| Ok(Value::from(vec![key.clone(), map.get_item(&key)?])))
            .collect::<Result<Vec<_>, Error>>()?
            .into(),
        "keys" => keys()?.collect::<Vec<_>>().into(),
        "values" => keys()?.map(|key| map.get_item(&key)).collect::<Result<Vec<_>, Error>>()?.into(),
        "get" => match map.get_item(argument(args, 0)?)? {
            value if value.is_undefined() => args.get(1).cloned().unwrap_or_else(|| Value::from(())),
            value => value,
        },
        _ => return Err(ErrorKind::UnknownMethod.into()),
    })
}

fn sequence_method(sequence: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let wanted = argument(args, 0);
    Ok(match method {
        "count" => {
            let wanted = wanted?;
            sequence.try_iter()?.filter(|value| value == wanted).count().into()
        }
        "index" => {
            let wanted = wanted?;
            let at = sequence.try_iter()?.position(|value| value == *wanted);
            at.ok_or_else(|| invalid("value is not in the list"))?.into()
        }
        _ => return Err(ErrorKind::UnknownMethod.into()),
    })
}

fn replace(text: &str, from: &str, to: &str, limit: Option<usize>) -> Result<String, Error> {
    let limit = limit.unwrap_or(usize::MAX);
    let places = text.matches(from).take(limit).count();
    check_size(text.len().saturating_add(places.saturating_mul(to.len())))?;
    Ok(text.replacen(from, to, limit))
}

fn check_size(bytes: usize) -> Result<(), Error> {
    if bytes <= TEXT_BYTES_MAX { Ok(()) } else { Err(invalid("text is too large")) }
}

fn split(text: &str, args: &[Value]) -> Result<Value, Error> {
    let limit = limit(args, 1)?.map_or(usize::MAX, |limit| limit.saturating_add(1));
    let parts: Vec<Value> = match optional_text(args, 0)? {
        Some("") => return Err(invalid("empty separator")),
        Some(separator) => text.splitn(limit, separator).map(Value::from).collect(),
        None => words(text, limit).into_iter().map(Value::from).collect(),
    };
    Ok(parts.into())
}

fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let limit = limit(args, 1)?.map_or(usize::MAX, |limit| limit.saturating_add(1));
    let separator = required_text(args, 0)?;
    if separator.is_empty() {
        return Err(invalid("empty separator"));
    }
    let mut parts: Vec<Value> = text.rsplitn(limit, separator).map(Value::from).collect();
    parts.reverse();
    Ok(parts.into())
}

/// Words between white space, at most `limit` parts, the last of which keeps its inner white space.
fn words(text: &str, limit: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(char::is_whitespace).filter(|_| parts.len() + 1 < limit).unwrap_or(rest.len());
        parts.push(&rest[..end]);
        rest = rest[end..].trim_start();
    }
    parts
}

fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().collect::<String>() + &chars.as_str().to_lowercase())
}

fn title(text: &str) -> String {
    let mut inside = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_alphabetic();
    }
    out
}

/// Position in characters, -1 if there is none.
fn position(text: &str, at: Option<usize>) -> i64 {
    at.and_then(|at| i64::try_from(text[..at].chars().count()).ok()).unwrap_or(-1)
}

fn any_text(args: &[Value], test: impl Fn(&str) -> bool) -> Result<bool, Error> {
    let parts = argument(args, 0)?;
    if let Some(part) = parts.as_str() {
        return Ok(test(part));
    }
    Ok(parts.try_iter()?.any(|part| part.as_str().is_some_and(&test)))
}

fn argument(args: &[Value], index: usize) -> Result<&Value, Error> {
    args.get(index).ok_or_else(|| ErrorKind::MissingArgument.into())
}

fn required_text(args: &[Value], index: usize) -> Result<&str, Error> {
    argument(args, index)?.as_str().ok_or_else(|| invalid("expected a string"))
}

fn optional_text(args: &[Value], index: usize) -> Result<Option<&str>, Error> {
    match args.get(index) {
        None => Ok(None),
        Some(value) if value.is_none() => Ok(None),
        Some(value) => value.as_str().map(Some).ok_or_else(|| invalid("expected a string")),
    }
}

/// A count; negative or absent is no limit.
fn limit(args: &[Value], index: usize) -> Result<Option<usize>, Error> {
    match args.get(index) {
        None => Ok(None),
        Some(value) => {
            let count = value.as_i64().ok_or_else(|| invalid("expected an integer"))?;
            Ok(usize::try_from(count).ok())
        }
    }
}

fn invalid(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// Longest text that a method or filter builds.
pub(super) const TEXT_BYTES_MAX: usize = 64 << 20;
