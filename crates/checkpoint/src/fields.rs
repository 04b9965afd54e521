//! Typed access to the members of a JSON object, with errors that name file and key.
//!
//! A missing key and `null` are the same thing: configurations use both for "as usual".

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::json::kind;

/// Members of one object of one file.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    pub(crate) file: &'a Path,
    /// Leads to the object from the top, ending in a dot; empty for the top itself.
    prefix: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(file: &'a Path, map: &'a Map<String, Value>) -> Self {
        Fields { file, prefix: "", map }
    }

    /// The object under `key`; `prefix` is `key` with a dot, as messages show it.
    pub(crate) fn object(&self, key: &str, prefix: &'a str) -> Result<Option<Fields<'a>>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { file: self.file, prefix, map })),
            Some(other) => Err(self.wrong(key, other, "an object")),
        }
    }

    /// The value under `key`, unless it is missing or null.
    pub(crate) fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Whether the key is there at all, be it null.
    pub(crate) fn contains(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    pub(crate) fn wrong(&self, key: &str, found: &Value, expected: impl Into<String>) -> Error {
        Error::malformed(self.file, format!("{}{key}", self.prefix), kind(found), expected)
    }

    pub(crate) fn missing(&self, key: &str, expected: impl Into<String>) -> Error {
        Error::malformed(self.file, format!("{}{key}", self.prefix), "no such key", expected)
    }

    /// A whole number from 1 to `max`.
    pub(crate) fn count(&self, key: &str, max: u32) -> Result<Option<u32>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        // Whole numbers may come as 32000.0 from writers that know only floats.
        let whole = value
            .as_u64()
            .or_else(|| value.as_f64().filter(|f| f.fract() == 0.0 && *f >= 0.0).map(|f| f as u64));
        match whole {
            Some(n) if (1..=u64::from(max)).contains(&n) => Ok(Some(n as u32)),
            _ => Err(self.wrong(key, value, format!("a whole number from 1 to {max}"))),
        }
    }

    /// A finite number above zero.
    pub(crate) fn positive(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_f64() {
            Some(f) if f > 0.0 && f <= f64::from(f32::MAX) => Ok(Some(f)),
            _ => Err(self.wrong(key, value, "a number above 0")),
        }
    }

    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(self.wrong(key, other, "true or false")),
        }
    }

    pub(crate) fn str(&self, key: &str) -> Result<Option<&'a str>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(self.wrong(key, other, "a string")),
        }
    }
}
