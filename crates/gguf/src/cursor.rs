//! Reads little-endian fields one after the other from the bytes of a file, never past their end.

use crate::error::shown;
use crate::value::{self, TYPE_ARRAY, TYPE_BOOL, TYPE_COUNT, TYPE_STRING};
use crate::{Array, Error, Value};
use byteorder::{ByteOrder, LittleEndian as LE};
use std::path::Path;

pub(crate) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Cursor { path, bytes, position: 0 }
    }

    pub fn path(&self) -> &'a Path {
        self.path
    }

    pub fn position(&self) -> usize {
        self.position
    }

    pub fn remaining(&self) -> u64 {
        (self.bytes.len() - self.position) as u64
    }

    pub fn malformed(&self, field: &str, found: impl Into<String>, expected: impl Into<String>) -> Error {
        let path = self.path.to_path_buf();
        Error::Malformed { path, field: shown(field), found: found.into(), expected: expected.into() }
    }

    pub fn truncated(&self, field: &str, more: u64) -> Error {
        Error::Truncated {
            path: self.path.to_path_buf(),
            field: shown(field),
            size: self.bytes.len() as u64,
            needed: (self.position as u64).saturating_add(more),
        }
    }

    fn take(&mut self, n: u64, field: &str) -> Result<&'a [u8], Error> {
        if n > self.remaining() {
            return Err(self.truncated(field, n));
        }
        let start = self.position;
        self.position += n as usize;
        Ok(&self.bytes[start..self.position])
    }

    pub fn u32(&mut self, field: &str) -> Result<u32, Error> {
        Ok(LE::read_u32(self.take(4, field)?))
    }

    pub fn u64(&mut self, field: &str) -> Result<u64, Error> {
        Ok(LE::read_u64(self.take(8, field)?))
    }

    /// The bytes of a string; `field` names it in errors.
    fn bytes(&mut self, field: &str) -> Result<&'a [u8], Error> {
        let len = self.u64(field)?;
        self.take(len, field)
    }

    /// A string that must be UTF-8: a key or a name.
    pub fn string(&mut self, field: &str) -> Result<&'a str, Error> {
        let bytes = self.bytes(field)?;
        std::str::from_utf8(bytes)
            .map_err(|_| self.malformed(field, Value::from_bytes(bytes).to_string(), "UTF-8"))
    }

    /// A value of the given type.
    pub fn value(&mut self, ty: u32, field: &str) -> Result<Value, Error> {
        Ok(match ty {
            TYPE_STRING => Value::from_bytes(self.bytes(field)?),
            TYPE_ARRAY => Value::Array(self.array(field)?),
            _ => {
                let one = self.elements(ty, 1, field)?;
                one.get(0).expect("one element was asked for")
            }
        })
    }

    fn array(&mut self, field: &str) -> Result<Array, Error> {
        let ty = self.u32(field)?;
        let len = self.u64(field)?;
        if ty == TYPE_ARRAY {
            return Err(self.malformed(field, "an array of arrays", "an array of single values"));
        }
        if ty == TYPE_STRING {
            return self.strings(len, field);
        }
        self.elements(ty, len, field)
    }

    fn strings(&mut self, len: u64, field: &str) -> Result<Array, Error> {
        // Each string takes at least its length: so an absurd count is refused before memory is reserved for it.
        if len > self.remaining() / 8 {
            return Err(self.truncated(field, len.saturating_mul(8)));
        }
        let start = self.position;
        let mut texts = Vec::with_capacity(len as usize);
        for _ in 0..len {
            match std::str::from_utf8(self.bytes(field)?) {
                Ok(text) => texts.push(text.to_owned()),
                Err(_) => {
                    drop(texts);
                    self.position = start;
                    return self.raw_strings(len, field);
                }
            }
        }
        Ok(Array::String(texts))
    }

    fn raw_strings(&mut self, len: u64, field: &str) -> Result<Array, Error> {
        (0..len).map(|_| Ok(self.bytes(field)?.to_vec())).collect::<Result<_, Error>>().map(Array::Bytes)
    }

    /// `len` numbers or truth values of type `ty`.
    fn elements(&mut self, ty: u32, len: u64, field: &str) -> Result<Array, Error> {
        let size: u64 = match ty {
            0 | 1 | TYPE_BOOL => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            _ => {
                let found = format!("value type {ty}");
                return Err(self.malformed(field, found, format!("a type from 0 to {}", TYPE_COUNT - 1)));
            }
        };
        let bytes = self.take(len.saturating_mul(size), field)?;
        let chunks = bytes.chunks_exact(size as usize);
        Ok(match ty {
            0 => Array::U8(bytes.to_vec()),
            1 => Array::I8(bytes.iter().map(|b| *b as i8).collect()),
            2 => Array::U16(chunks.map(LE::read_u16).collect()),
            3 => Array::I16(chunks.map(LE::read_i16).collect()),
            4 => Array::U32(chunks.map(LE::read_u32).collect()),
            5 => Array::I32(chunks.map(LE::read_i32).collect()),
            6 => Array::F32(chunks.map(LE::read_f32).collect()),
            TYPE_BOOL => {
                if let Some(other) = bytes.iter().find(|b| **b > 1) {
                    return Err(self.malformed(field, format!("bool {other}"), "0 or 1"));
                }
                Array::Bool(bytes.iter().map(|b| *b == 1).collect())
            }
            10 => Array::U64(chunks.map(LE::read_u64).collect()),
            11 => Array::I64(chunks.map(LE::read_i64).collect()),
            12 => Array::F64(chunks.map(LE::read_f64).collect()),
            other => unreachable!("type {} was sized above", value::type_name(other)),
        })
    }
}
