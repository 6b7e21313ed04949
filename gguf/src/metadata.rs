//! Metadata: typed values that borrow from the file, and getters that say what was wrong with which key.

use std::fmt;

use crate::error::{Error, clip};

/// The type of a value; the discriminant is its id in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ValueKind {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueKind {
    pub fn from_id(id: u32) -> Option<Self> {
        const KINDS: [ValueKind; 13] = [
            ValueKind::U8,
            ValueKind::I8,
            ValueKind::U16,
            ValueKind::I16,
            ValueKind::U32,
            ValueKind::I32,
            ValueKind::F32,
            ValueKind::Bool,
            ValueKind::String,
            ValueKind::Array,
            ValueKind::U64,
            ValueKind::I64,
            ValueKind::F64,
        ];
        KINDS.get(usize::try_from(id).ok()?).copied()
    }

    pub fn id(self) -> u32 {
        self as u32
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }

    /// Bytes of a value, `None` for strings and arrays.
    pub fn fixed_bytes(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }
}

/// A metadata value. Strings are bytes: some vocabularies hold invalid UTF-8.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(&'a [u8]),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl<'a> Value<'a> {
    pub fn kind(&self) -> ValueKind {
        match self {
            Self::U8(_) => ValueKind::U8,
            Self::I8(_) => ValueKind::I8,
            Self::U16(_) => ValueKind::U16,
            Self::I16(_) => ValueKind::I16,
            Self::U32(_) => ValueKind::U32,
            Self::I32(_) => ValueKind::I32,
            Self::F32(_) => ValueKind::F32,
            Self::Bool(_) => ValueKind::Bool,
            Self::String(_) => ValueKind::String,
            Self::Array(_) => ValueKind::Array,
            Self::U64(_) => ValueKind::U64,
            Self::I64(_) => ValueKind::I64,
            Self::F64(_) => ValueKind::F64,
        }
    }

    /// The value of a string that is UTF-8.
    pub fn to_str(&self) -> Option<&'a str> {
        match self {
            Self::String(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// The value of an integer of any width.
    pub fn to_integer(&self) -> Option<i128> {
        match *self {
            Self::U8(v) => Some(v.into()),
            Self::I8(v) => Some(v.into()),
            Self::U16(v) => Some(v.into()),
            Self::I16(v) => Some(v.into()),
            Self::U32(v) => Some(v.into()),
            Self::I32(v) => Some(v.into()),
            Self::U64(v) => Some(v.into()),
            Self::I64(v) => Some(v.into()),
            _ => None,
        }
    }

    /// A value of fixed size from its bytes; `None` for strings, arrays, too few bytes and a bool above 1.
    pub(crate) fn from_bytes(kind: ValueKind, bytes: &'a [u8]) -> Option<Self> {
        fn first<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
            bytes.first_chunk().copied()
        }
        Some(match kind {
            ValueKind::U8 => Self::U8(u8::from_le_bytes(first(bytes)?)),
            ValueKind::I8 => Self::I8(i8::from_le_bytes(first(bytes)?)),
            ValueKind::U16 => Self::U16(u16::from_le_bytes(first(bytes)?)),
            ValueKind::I16 => Self::I16(i16::from_le_bytes(first(bytes)?)),
            ValueKind::U32 => Self::U32(u32::from_le_bytes(first(bytes)?)),
            ValueKind::I32 => Self::I32(i32::from_le_bytes(first(bytes)?)),
            ValueKind::F32 => Self::F32(f32::from_le_bytes(first(bytes)?)),
            ValueKind::U64 => Self::U64(u64::from_le_bytes(first(bytes)?)),
            ValueKind::I64 => Self::I64(i64::from_le_bytes(first(bytes)?)),
            ValueKind::F64 => Self::F64(f64::from_le_bytes(first(bytes)?)),
            ValueKind::Bool => Self::Bool(match first::<1>(bytes)? {
                [0] => false,
                [1] => true,
                _ => return None,
            }),
            ValueKind::String | ValueKind::Array => return None,
        })
    }
}

/// An array as it lies in the file: checked when the file was parsed, decoded when read.
#[derive(Clone, Copy, PartialEq)]
pub struct Array<'a> {
    kind: ValueKind,
    len: usize,
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// `bytes` holds `len` elements of `kind`, which is not `Array`.
    pub(crate) fn new(kind: ValueKind, len: usize, bytes: &'a [u8]) -> Self {
        Self { kind, len, bytes }
    }

    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    pub fn kind(&self) -> ValueKind {
        self.kind
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Element `index`; strings are walked from the start, other elements are found at once.
    pub fn get(&self, index: usize) -> Option<Value<'a>> {
        match self.kind.fixed_bytes() {
            Some(width) => Value::from_bytes(self.kind, self.bytes.get(index.checked_mul(width)?..)?),
            None => self.iter().nth(index),
        }
    }

    pub fn iter(&self) -> ArrayIter<'a> {
        ArrayIter { kind: self.kind, left: self.len, bytes: self.bytes }
    }
}

impl fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}; {}]", self.kind.name(), self.len)
    }
}

impl<'a> IntoIterator for Array<'a> {
    type Item = Value<'a>;
    type IntoIter = ArrayIter<'a>;
    fn into_iter(self) -> ArrayIter<'a> {
        self.iter()
    }
}

/// The elements of an [`Array`].
#[derive(Clone, Debug)]
pub struct ArrayIter<'a> {
    kind: ValueKind,
    left: usize,
    bytes: &'a [u8],
}

impl<'a> Iterator for ArrayIter<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        if let Some(width) = self.kind.fixed_bytes() {
            let value = Value::from_bytes(self.kind, self.bytes)?;
            self.bytes = &self.bytes[width..];
            return Some(value);
        }
        let (length, rest) = self.bytes.split_first_chunk()?;
        let (string, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        self.bytes = rest;
        Some(Value::String(string))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for ArrayIter<'_> {}

/// The strings of an array, in order.
#[derive(Clone, Debug)]
pub struct Strings<'a>(ArrayIter<'a>);

impl<'a> Iterator for Strings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        match self.0.next()? {
            Value::String(bytes) => Some(bytes),
            _ => None,
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for Strings<'_> {}

/// An array of f32.
#[derive(Clone, Copy, Debug)]
pub struct F32s<'a>(Array<'a>);

impl<'a> F32s<'a> {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn get(&self, index: usize) -> Option<f32> {
        match self.0.get(index)? {
            Value::F32(value) => Some(value),
            _ => None,
        }
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = f32> + use<'a> {
        let (chunks, _) = self.0.bytes.as_chunks();
        chunks.iter().map(|&chunk| f32::from_le_bytes(chunk))
    }
}

/// An array of integers of any width, each of which fits an i32.
#[derive(Clone, Copy, Debug)]
pub struct I32s<'a>(Array<'a>);

impl<'a> I32s<'a> {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn get(&self, index: usize) -> Option<i32> {
        i32::try_from(self.0.get(index)?.to_integer()?).ok()
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = i32> + use<'a> {
        self.0.iter().map(|value| {
            let integer = value.to_integer().expect("the getter admits integers only");
            i32::try_from(integer).expect("the getter has tried every element")
        })
    }
}

/// The key-value pairs of a file, in its order, each key once.
#[derive(Clone, Debug, Default)]
pub struct Metadata<'a> {
    entries: Vec<(&'a str, Value<'a>)>,
    /// Indices of `entries` in the order of their keys.
    by_key: Vec<u32>,
}

impl<'a> Metadata<'a> {
    pub(crate) fn new(entries: Vec<(&'a str, Value<'a>)>) -> Result<Self, Error> {
        let mut by_key: Vec<u32> = (0..).take(entries.len()).collect();
        let key = |index: u32| entries[index as usize].0;
        by_key.sort_unstable_by_key(|&index| key(index));
        match by_key.windows(2).find(|pair| key(pair[0]) == key(pair[1])) {
            Some(pair) => Err(Error::DuplicateKey { key: clip(key(pair[0])) }),
            None => Ok(Self { entries, by_key }),
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn get(&self, key: &str) -> Option<&Value<'a>> {
        let found = self.by_key.binary_search_by_key(&key, |&index| self.entries[index as usize].0).ok()?;
        Some(&self.entries[self.by_key[found] as usize].1)
    }

    /// Keys and values in the file's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&'a str, &Value<'a>)> {
        self.entries.iter().map(|(key, value)| (*key, value))
    }

    /// An integer of any width that fits; `Ok(None)` where the key is absent, as in all getters.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, Error> {
        self.integer(key, "u32")
    }

    /// An integer of any width that fits.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, Error> {
        self.integer(key, "u64")
    }

    /// A float, an f64 rounded to the nearest; or an integer that an f32 holds exactly.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let out_of_range = || Error::OutOfRange { key: clip(key), wanted: "f32" };
        match *value {
            Value::F32(value) => Ok(Some(value)),
            Value::F64(value) => {
                let rounded = value as f32;
                if rounded.is_infinite() && value.is_finite() { Err(out_of_range()) } else { Ok(Some(rounded)) }
            }
            _ => {
                let integer = value.to_integer().ok_or_else(|| wrong_type(key, "f32", value))?;
                let rounded = integer as f32;
                if rounded as i128 == integer { Ok(Some(rounded)) } else { Err(out_of_range()) }
            }
        }
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(value) => Err(wrong_type(key, "bool", value)),
        }
    }

    /// A string that is UTF-8.
    pub fn str(&self, key: &str) -> Result<Option<&'a str>, Error> {
        let Some(bytes) = self.string(key)? else { return Ok(None) };
        std::str::from_utf8(bytes).map(Some).map_err(|_| Error::NotUtf8 { key: clip(key) })
    }

    /// A string, UTF-8 or not.
    pub fn string(&self, key: &str) -> Result<Option<&'a [u8]>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(bytes)) => Ok(Some(bytes)),
            Some(value) => Err(wrong_type(key, "string", value)),
        }
    }

    /// An array of any element type.
    pub fn array(&self, key: &str) -> Result<Option<Array<'a>>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => Ok(Some(*array)),
            Some(value) => Err(wrong_type(key, "array", value)),
        }
    }

    /// An array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<Strings<'a>>, Error> {
        let array = self.array_where(key, "array of strings", |kind| kind == ValueKind::String)?;
        Ok(array.map(|array| Strings(array.iter())))
    }

    /// An array of f32.
    pub fn f32s(&self, key: &str) -> Result<Option<F32s<'a>>, Error> {
        let array = self.array_where(key, "array of f32", |kind| kind == ValueKind::F32)?;
        Ok(array.map(F32s))
    }

    /// An array of integers of any width, each of which fits an i32.
    pub fn i32s(&self, key: &str) -> Result<Option<I32s<'a>>, Error> {
        let is_integer = |kind| {
            !matches!(kind, ValueKind::F32 | ValueKind::F64 | ValueKind::Bool | ValueKind::String | ValueKind::Array)
        };
        let Some(array) = self.array_where(key, "array of i32", is_integer)? else { return Ok(None) };
        let fits = matches!(array.kind, ValueKind::I32)
            || array.iter().all(|value| value.to_integer().is_some_and(|integer| i32::try_from(integer).is_ok()));
        if fits { Ok(Some(I32s(array))) } else { Err(Error::OutOfRange { key: clip(key), wanted: "i32" }) }
    }

    fn integer<T: TryFrom<i128>>(&self, key: &str, wanted: &'static str) -> Result<Option<T>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let integer = value.to_integer().ok_or_else(|| wrong_type(key, wanted, value))?;
        T::try_from(integer).map(Some).map_err(|_| Error::OutOfRange { key: clip(key), wanted })
    }

    fn array_where(
        &self,
        key: &str,
        wanted: &'static str,
        admits: impl Fn(ValueKind) -> bool,
    ) -> Result<Option<Array<'a>>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) if admits(array.kind) => Ok(Some(*array)),
            Some(value) => Err(wrong_type(key, wanted, value)),
        }
    }
}

fn wrong_type(key: &str, wanted: &'static str, value: &Value<'_>) -> Error {
    let found = match value {
        Value::Array(array) => array_name(array.kind),
        _ => value.kind().name(),
    };
    Error::WrongType { key: clip(key), wanted, found }
}

fn array_name(kind: ValueKind) -> &'static str {
    match kind {
        ValueKind::U8 => "array of u8",
        ValueKind::I8 => "array of i8",
        ValueKind::U16 => "array of u16",
        ValueKind::I16 => "array of i16",
        ValueKind::U32 => "array of u32",
        ValueKind::I32 => "array of i32",
        ValueKind::F32 => "array of f32",
        ValueKind::Bool => "array of bool",
        ValueKind::String => "array of strings",
        ValueKind::Array => "array of arrays",
        ValueKind::U64 => "array of u64",
        ValueKind::I64 => "array of i64",
        ValueKind::F64 => "array of f64",
    }
}
