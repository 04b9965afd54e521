//! Metadata values: numbers, texts and arrays of them.
//!
//! The format wants strings to be UTF-8, but files exist whose vocabularies hold raw bytes, and llama.cpp loads them.
//! So a string that is not UTF-8 is kept as it is, in a variant of its own, and everything else is plain [`String`]s.

use crate::error::shown;

/// A metadata value, with the type it has in the file.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the other variants are the format's types")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    /// A string of the file that is not UTF-8.
    Bytes(Vec<u8>),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array value; all elements have one type. Arrays of arrays are not part of the format as anybody writes it.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the other variants are the format's types")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    /// Strings of the file of which at least one is not UTF-8.
    Bytes(Vec<Vec<u8>>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

pub(crate) const TYPE_BOOL: u32 = 7;
pub(crate) const TYPE_STRING: u32 = 8;
pub(crate) const TYPE_ARRAY: u32 = 9;
/// Number of value types.
pub(crate) const TYPE_COUNT: u32 = 13;

/// The format's name of a value type.
pub(crate) fn type_name(id: u32) -> &'static str {
    const NAMES: [&str; TYPE_COUNT as usize] =
        ["u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"];
    NAMES.get(id as usize).copied().unwrap_or("unknown")
}

impl Value {
    /// The type's number in the file.
    pub(crate) fn type_id(&self) -> u32 {
        match self {
            Value::U8(_) => 0,
            Value::I8(_) => 1,
            Value::U16(_) => 2,
            Value::I16(_) => 3,
            Value::U32(_) => 4,
            Value::I32(_) => 5,
            Value::F32(_) => 6,
            Value::Bool(_) => TYPE_BOOL,
            Value::String(_) | Value::Bytes(_) => TYPE_STRING,
            Value::Array(_) => TYPE_ARRAY,
            Value::U64(_) => 10,
            Value::I64(_) => 11,
            Value::F64(_) => 12,
        }
    }

    /// The type as the format's document names it: `u32`, `string`, `array`.
    pub fn type_name(&self) -> &'static str {
        type_name(self.type_id())
    }

    /// A string of the file: text where it is UTF-8, else its bytes.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Value {
        match std::str::from_utf8(bytes) {
            Ok(text) => Value::String(text.to_owned()),
            Err(_) => Value::Bytes(bytes.to_vec()),
        }
    }

    /// The text of a string; `None` for others and for strings that are not UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The bytes of a string, UTF-8 or not; `None` for others.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Value::String(text) => Some(text.as_bytes()),
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The value of any integer type; `None` for others.
    pub fn as_integer(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::U64(v) => v.into(),
            Value::I64(v) => v.into(),
            _ => return None,
        })
    }
}

impl std::fmt::Display for Value {
    /// The value as a person reads it; long texts and arrays are cut.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::U8(v) => v.fmt(f),
            Value::I8(v) => v.fmt(f),
            Value::U16(v) => v.fmt(f),
            Value::I16(v) => v.fmt(f),
            Value::U32(v) => v.fmt(f),
            Value::I32(v) => v.fmt(f),
            Value::F32(v) => v.fmt(f),
            Value::Bool(v) => v.fmt(f),
            Value::String(v) => write!(f, "\"{}\"", shown(v)),
            Value::Bytes(v) => write!(
                f,
                "\"{}\", which is not UTF-8",
                shown(&v.utf8_chunks().fold(String::new(), |text, chunk| {
                    let bad: String = chunk.invalid().iter().map(|b| format!("\\x{b:02x}")).collect();
                    text + chunk.valid() + &bad
                },))
            ),
            Value::Array(v) => write!(f, "{} x {}", v.len(), type_name(v.type_id())),
            Value::U64(v) => v.fmt(f),
            Value::I64(v) => v.fmt(f),
            Value::F64(v) => v.fmt(f),
        }
    }
}

impl Array {
    /// The element type's number in the file.
    pub(crate) fn type_id(&self) -> u32 {
        match self {
            Array::U8(_) => 0,
            Array::I8(_) => 1,
            Array::U16(_) => 2,
            Array::I16(_) => 3,
            Array::U32(_) => 4,
            Array::I32(_) => 5,
            Array::F32(_) => 6,
            Array::Bool(_) => TYPE_BOOL,
            Array::String(_) | Array::Bytes(_) => TYPE_STRING,
            Array::U64(_) => 10,
            Array::I64(_) => 11,
            Array::F64(_) => 12,
        }
    }

    /// The element type as the format's document names it.
    pub fn type_name(&self) -> &'static str {
        type_name(self.type_id())
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(v) => v.len(),
            Array::I8(v) => v.len(),
            Array::U16(v) => v.len(),
            Array::I16(v) => v.len(),
            Array::U32(v) => v.len(),
            Array::I32(v) => v.len(),
            Array::F32(v) => v.len(),
            Array::Bool(v) => v.len(),
            Array::String(v) => v.len(),
            Array::Bytes(v) => v.len(),
            Array::U64(v) => v.len(),
            Array::I64(v) => v.len(),
            Array::F64(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One element as a value of its own; `None` past the end.
    pub fn get(&self, index: usize) -> Option<Value> {
        Some(match self {
            Array::U8(v) => Value::U8(*v.get(index)?),
            Array::I8(v) => Value::I8(*v.get(index)?),
            Array::U16(v) => Value::U16(*v.get(index)?),
            Array::I16(v) => Value::I16(*v.get(index)?),
            Array::U32(v) => Value::U32(*v.get(index)?),
            Array::I32(v) => Value::I32(*v.get(index)?),
            Array::F32(v) => Value::F32(*v.get(index)?),
            Array::Bool(v) => Value::Bool(*v.get(index)?),
            Array::String(v) => Value::String(v.get(index)?.clone()),
            Array::Bytes(v) => Value::from_bytes(v.get(index)?),
            Array::U64(v) => Value::U64(*v.get(index)?),
            Array::I64(v) => Value::I64(*v.get(index)?),
            Array::F64(v) => Value::F64(*v.get(index)?),
        })
    }
}

macro_rules! from {
    ($($ty:ty => $variant:ident),* $(,)?) => { $(
        impl From<$ty> for Value {
            fn from(value: $ty) -> Value {
                Value::$variant(value)
            }
        }
        impl From<Vec<$ty>> for Array {
            fn from(values: Vec<$ty>) -> Array {
                Array::$variant(values)
            }
        }
        impl From<Vec<$ty>> for Value {
            fn from(values: Vec<$ty>) -> Value {
                Value::Array(Array::$variant(values))
            }
        }
    )* };
}
from!(
    u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, f32 => F32, bool => Bool, String => String,
    u64 => U64, i64 => I64, f64 => F64,
);

impl Array {
    /// The strings' bytes, UTF-8 or not; `None` for arrays of something else.
    pub fn byte_strings(&self) -> Option<Vec<&[u8]>> {
        match self {
            Array::String(texts) => Some(texts.iter().map(String::as_bytes).collect()),
            Array::Bytes(strings) => Some(strings.iter().map(Vec::as_slice).collect()),
            _ => None,
        }
    }

    /// The whole numbers of any integer type that holds them, if each is one that fits into 32 bits.
    pub fn to_u32s(&self) -> Option<Vec<u32>> {
        fn all<T: Copy + TryInto<u32>>(numbers: &[T]) -> Option<Vec<u32>> {
            numbers.iter().map(|n| (*n).try_into().ok()).collect()
        }
        match self {
            Array::U8(v) => all(v),
            Array::I8(v) => all(v),
            Array::U16(v) => all(v),
            Array::I16(v) => all(v),
            Array::U32(v) => all(v),
            Array::I32(v) => all(v),
            Array::U64(v) => all(v),
            Array::I64(v) => all(v),
            _ => None,
        }
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Value {
        Value::String(value.to_owned())
    }
}

impl From<Array> for Value {
    fn from(value: Array) -> Value {
        Value::Array(value)
    }
}

impl From<&[u8]> for Value {
    /// A string, UTF-8 or not.
    fn from(bytes: &[u8]) -> Value {
        Value::from_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_short_and_harmless() {
        for (value, shown) in [
            (Value::from(7u16), "7"),
            (Value::from(-0.5f32), "-0.5"),
            (Value::from("a\x1b[1m"), "\"a\\u{1b}[1m\""),
            (Value::from(b"a\xff\xfeb".as_slice()), "\"a\\xff\\xfeb\", which is not UTF-8"),
            (Value::from(vec![true, false]), "2 x bool"),
            (Value::from(vec!["x".to_owned()]), "1 x string"),
        ] {
            assert_eq!(value.to_string(), shown);
        }
    }

    #[test]
    fn an_element_of_raw_strings_is_text_where_it_is_utf8() {
        let array = Array::Bytes(vec![b"ok".to_vec(), vec![0xff]]);
        assert_eq!(array.get(0), Some("ok".into()));
        assert_eq!(array.get(1), Some(Value::Bytes(vec![0xff])));
        assert_eq!(array.get(2), None);
        assert_eq!(array.byte_strings(), Some(vec![b"ok".as_slice(), &[0xff]]));
    }

    #[test]
    fn whole_numbers_are_taken_from_any_type_that_holds_them() {
        assert_eq!(Array::I8(vec![0, 127]).to_u32s(), Some(vec![0, 127]));
        assert_eq!(Array::U64(vec![u64::from(u32::MAX)]).to_u32s(), Some(vec![u32::MAX]));
        assert_eq!(Array::U64(vec![u64::from(u32::MAX) + 1]).to_u32s(), None);
        assert_eq!(Array::I32(vec![1, -1]).to_u32s(), None);
        assert_eq!(Array::F32(vec![1.0]).to_u32s(), None);
    }
}
