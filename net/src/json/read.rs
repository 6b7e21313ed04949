//! JSON in: simd-json onto a reused tape, then typed fields whose errors name the field.

use std::fmt;

use simd_json::prelude::{TypedValue as _, ValueAsScalar as _, ValueIntoString as _};
use simd_json::{Buffers, Tape, ValueType, tape};

use super::write::{write_f64, write_string};
use crate::error::ApiError;

/// Parser with the buffers of one shard. Unescaping happens in the body itself, so it takes the body mutably.
pub struct Reader {
    buffers: Buffers,
    tape: Tape<'static>,
}

impl Default for Reader {
    fn default() -> Self {
        Self::new()
    }
}

impl Reader {
    pub fn new() -> Self {
        Self { buffers: fresh_buffers(), tape: Tape(Vec::new()) }
    }

    /// Parses `body` as one JSON object and hands its fields to `read`.
    ///
    /// Depth is bounded by [`DEPTH_MAX`] and the parser does not recurse. Invalid UTF-8, lone surrogates, trailing
    /// data, numbers out of range and anything but an object are 400.
    pub(crate) fn object<T>(
        &mut self,
        body: &mut [u8],
        read: impl FnOnce(&Object<'_, '_>) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let body_bytes = body.len();
        let mut tape = std::mem::replace(&mut self.tape, Tape(Vec::new())).reset();
        let result = match simd_json::fill_tape(body, &mut self.buffers, &mut tape) {
            Ok(()) => Value(tape.as_value()).object(Path::Root).and_then(|object| read(&object)),
            Err(error) => Err(invalid_json(&error)),
        };
        // A huge body must not leave its tape behind: 24 bytes a node, up to a node a byte.
        if body_bytes > RETAINED_BODY_BYTES_MAX {
            self.buffers = fresh_buffers();
        } else {
            self.tape = tape.reset();
        }
        result
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("tape_capacity", &self.tape.0.capacity()).finish_non_exhaustive()
    }
}

fn fresh_buffers() -> Buffers {
    Buffers::with_max_depth(4096, DEPTH_MAX)
}

fn invalid_json(error: &simd_json::Error) -> ApiError {
    match error.error() {
        simd_json::ErrorType::DepthLimitExceeded => {
            ApiError::invalid_request(format!("JSON is nested deeper than {DEPTH_MAX}"))
        }
        kind => ApiError::invalid_request(format!("body is not valid JSON: {kind:?} near byte {}", error.index())),
    }
}

/// Where a value stands, written as `messages[0].content` only if an error needs it.
#[derive(Clone, Copy)]
pub(crate) enum Path<'p> {
    Root,
    Field(&'p Self, &'p str),
    Index(&'p Self, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Root => Ok(()),
            // A client may send a name of any length; the answer need not repeat all of it.
            Self::Field(Path::Root, name) => write!(f, "{:.64}", name.escape_debug().to_string()),
            Self::Field(parent, name) => write!(f, "{parent}.{:.64}", name.escape_debug().to_string()),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// What a value is.
pub(crate) enum Kind<'t, 'i> {
    Null,
    Bool(bool),
    Number,
    String(&'i str),
    Array(tape::Array<'t, 'i>),
    Object,
}

/// A parsed value; each typed getter refuses other types by name.
#[derive(Clone, Copy)]
pub(crate) struct Value<'t, 'i>(tape::Value<'t, 'i>);

impl<'t, 'i> Value<'t, 'i> {
    pub(crate) fn kind(self) -> Kind<'t, 'i> {
        match self.0.value_type() {
            ValueType::Null => Kind::Null,
            ValueType::Bool => Kind::Bool(self.0.as_bool().unwrap_or_default()),
            ValueType::String => self.0.into_string().map_or(Kind::Null, Kind::String),
            ValueType::Array => self.0.as_array().map_or(Kind::Null, Kind::Array),
            ValueType::Object => Kind::Object,
            _ => Kind::Number,
        }
    }

    pub(crate) fn is_null(self) -> bool {
        matches!(self.kind(), Kind::Null)
    }

    /// What an error says that it got: a number as it is, a text or more by its kind alone.
    fn shown(self) -> String {
        match self.kind() {
            Kind::Null => "null".to_owned(),
            Kind::Bool(value) => value.to_string(),
            Kind::String(_) => "a string".to_owned(),
            Kind::Array(_) => "an array".to_owned(),
            Kind::Object => "an object".to_owned(),
            Kind::Number => {
                let integer = self.0.as_i64().map(i128::from).or_else(|| self.0.as_u64().map(i128::from));
                let float = self.0.as_f64().unwrap_or_default();
                match integer {
                    Some(value) => value.to_string(),
                    None if (1e-4..1e15).contains(&float.abs()) => float.to_string(),
                    None => format!("{float:e}"),
                }
            }
        }
    }

    /// null, false, 0, "", [] and {} ask for nothing.
    pub(crate) fn is_neutral(self) -> bool {
        match self.kind() {
            Kind::Null => true,
            Kind::Bool(value) => !value,
            Kind::Number => self.0.as_u64() == Some(0) || self.0.as_f64() == Some(0.0),
            Kind::String(text) => text.is_empty(),
            Kind::Array(items) => items.is_empty(),
            Kind::Object => self.0.as_object().is_none_or(|object| object.is_empty()),
        }
    }

    pub(crate) fn is_one(self) -> bool {
        self.as_integer() == Some(1)
    }

    pub(crate) fn bool(self, path: Path<'_>) -> Result<bool, ApiError> {
        self.0
            .as_bool()
            .ok_or_else(|| ApiError::validation(path, format_args!("must be true or false, got {}", self.shown())))
    }

    pub(crate) fn str(self, path: Path<'_>) -> Result<&'i str, ApiError> {
        self.0
            .into_string()
            .ok_or_else(|| ApiError::validation(path, format_args!("must be a string, got {}", self.shown())))
    }

    pub(crate) fn array(self, path: Path<'_>) -> Result<tape::Array<'t, 'i>, ApiError> {
        self.0
            .as_array()
            .ok_or_else(|| ApiError::validation(path, format_args!("must be an array, got {}", self.shown())))
    }

    /// An integer in `min..=max`; 3.0 counts as one, since some clients have no integers.
    pub(crate) fn integer(self, path: Path<'_>, min: i64, max: i64) -> Result<i64, ApiError> {
        self.as_integer().filter(|value| (min..=max).contains(value)).ok_or_else(|| {
            ApiError::validation(path, format_args!("must be an integer in {min}..={max}, got {}", self.shown()))
        })
    }

    /// A token id or a count: an integer in `min..=u32::MAX`.
    pub(crate) fn u32(self, path: Path<'_>, min: u32) -> Result<u32, ApiError> {
        let value = self.integer(path, i64::from(min), i64::from(u32::MAX))?;
        Ok(u32::try_from(value).expect("the range was checked"))
    }

    pub(crate) fn is_integer(self) -> bool {
        self.as_integer().is_some()
    }

    fn as_integer(self) -> Option<i64> {
        // 2^53: beyond it a float no longer tells neighbours apart.
        const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
        self.0.as_i64().or_else(|| {
            let value = self.0.as_f64()?;
            (value.trunc() == value && value.abs() <= EXACT_MAX).then_some(value as i64)
        })
    }

    /// A finite number in `min..=max`.
    pub(crate) fn number(self, path: Path<'_>, min: f64, max: f64) -> Result<f32, ApiError> {
        let value = match self.0.value_type() {
            ValueType::I64 => self.0.as_i64().map(|value| value as f64),
            ValueType::U64 => self.0.as_u64().map(|value| value as f64),
            ValueType::F64 => self.0.as_f64(),
            _ => None,
        };
        value.filter(|value| (min..=max).contains(value)).map(|value| value as f32).ok_or_else(|| {
            ApiError::validation(path, format_args!("must be a number in {min}..={max}, got {}", self.shown()))
        })
    }

    /// An object without repeated keys.
    pub(crate) fn object(self, path: Path<'_>) -> Result<Object<'t, 'i>, ApiError> {
        let object = self.0.as_object().ok_or_else(|| match path {
            Path::Root => ApiError::invalid_request("body must be a JSON object"),
            _ => ApiError::validation(path, format_args!("must be an object, got {}", self.shown())),
        })?;
        if object.len() > FIELDS_MAX {
            return Err(ApiError::invalid_request(format!(
                "an object has {} fields, limit {FIELDS_MAX}",
                object.len()
            )));
        }
        // Pairs, not a set: objects here have about ten fields.
        for (count, key) in object.keys().enumerate() {
            if object.keys().take(count).any(|earlier| earlier == key) {
                let repeated = Path::Field(&path, key).to_string();
                return Err(ApiError::invalid_request(format!("field `{repeated}` is repeated")).with_param(repeated));
            }
        }
        Ok(Object(object))
    }

    /// Appends the value as JSON without spaces, fields in their order; false once that has more than `bytes_max` bytes.
    pub(crate) fn write(self, out: &mut Vec<u8>, bytes_max: usize) -> bool {
        match self.kind() {
            Kind::Null => out.extend_from_slice(b"null"),
            Kind::Bool(value) => out.extend_from_slice(if value { b"true" } else { b"false" }),
            Kind::String(text) => write_string(out, text),
            Kind::Number => self.write_number(out),
            Kind::Array(array) => {
                out.push(b'[');
                for (index, item) in items(&array).enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    if !item.write(out, bytes_max) {
                        return false;
                    }
                }
                out.push(b']');
            }
            Kind::Object => {
                out.push(b'{');
                for (index, (key, value)) in self.0.as_object().iter().flat_map(tape::Object::iter).enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    write_string(out, key);
                    out.push(b':');
                    if !Value(value).write(out, bytes_max) {
                        return false;
                    }
                }
                out.push(b'}');
            }
        }
        out.len() <= bytes_max
    }

    fn write_number(self, out: &mut Vec<u8>) {
        match (self.0.as_i64(), self.0.as_u64()) {
            (Some(value), _) => out.extend_from_slice(value.to_string().as_bytes()),
            (None, Some(value)) => out.extend_from_slice(value.to_string().as_bytes()),
            (None, None) => write_f64(out, self.0.as_f64().unwrap_or_default()),
        }
    }

    /// The pairs of an object used as a map, of at most `entries_max`; keys may repeat.
    pub(crate) fn map(self, path: Path<'_>, entries_max: usize) -> Result<Object<'t, 'i>, ApiError> {
        let object = self.0.as_object();
        let object = object
            .ok_or_else(|| ApiError::validation(path, format_args!("must be an object, got {}", self.shown())))?;
        if object.len() > entries_max {
            let got = object.len();
            return Err(ApiError::validation(path, format_args!("has {got} entries, limit {entries_max}")));
        }
        Ok(Object(object))
    }
}

/// The fields of an object.
pub(crate) struct Object<'t, 'i>(tape::Object<'t, 'i>);

impl<'t, 'i> Object<'t, 'i> {
    /// Fields that are not null, in their order: null means absent everywhere.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&'i str, Value<'t, 'i>)> {
        self.0.iter().map(|(key, value)| (key, Value(value))).filter(|(_, value)| !value.is_null())
    }
}

/// The items of an array.
pub(crate) fn items<'t, 'i>(array: &tape::Array<'t, 'i>) -> impl Iterator<Item = Value<'t, 'i>> + use<'t, 'i> {
    array.iter().map(Value)
}

/// Nesting of arrays and objects; a tool schema of ordinary size stays under 20.
const DEPTH_MAX: usize = 64;
/// Fields of one interpreted object; the largest schema has about 60.
const FIELDS_MAX: usize = 128;
/// Bodies up to this size keep their buffers for the next one.
const RETAINED_BODY_BYTES_MAX: usize = 256 << 10;
