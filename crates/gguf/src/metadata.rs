//! Metadata: entries in the file's order, found by key.

use crate::{Array, Error, Value};
use std::collections::HashMap;

/// Key-value entries; the order is that of the file, or of insertion.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    /// Where each key's entry is.
    index: HashMap<String, usize>,
}

impl PartialEq for Metadata {
    fn eq(&self, other: &Metadata) -> bool {
        self.entries == other.entries
    }
}

impl Metadata {
    /// No entries.
    pub fn new() -> Metadata {
        Metadata::default()
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|at| &self.entries[*at].1)
    }

    /// Sets the value of a key: in its place if it is there, else at the end. Returns the value it had.
    pub fn insert(&mut self, key: &str, value: impl Into<Value>) -> Option<Value> {
        let value = value.into();
        match self.index.get(key) {
            Some(at) => Some(std::mem::replace(&mut self.entries[*at].1, value)),
            None => {
                self.index.insert(key.to_owned(), self.entries.len());
                self.entries.push((key.to_owned(), value));
                None
            }
        }
    }

    /// Removes a key and returns its value.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let at = self.index.remove(key)?;
        for later in self.index.values_mut().filter(|i| **i > at) {
            *later -= 1;
        }
        Some(self.entries.remove(at).1)
    }

    /// All entries in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    fn wrong_type<T>(key: &str, value: &Value, expected: &'static str) -> Result<T, Error> {
        let found = format!("{value} ({})", value.type_name());
        Err(Error::ValueType { key: key.to_owned(), found, expected })
    }

    /// The text of a key; `None` when it is not there.
    ///
    /// # Errors
    /// [`Error::ValueType`] when it is not a string.
    pub fn str(&self, key: &str) -> Result<Option<&str>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Self::wrong_type(key, other, "a string"),
        }
    }

    /// The number of a key, of whichever integer type the file has it in; `None` when it is not there.
    ///
    /// # Errors
    /// [`Error::ValueType`] when it is not an integer or does not fit.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_integer().and_then(|v| u32::try_from(v).ok()) {
            Some(number) => Ok(Some(number)),
            None => Self::wrong_type(key, value, "a whole number from 0 to 4294967295"),
        }
    }

    /// As [`u32`](Self::u32), with 64 bits.
    ///
    /// # Errors
    /// As there.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_integer().and_then(|v| u64::try_from(v).ok()) {
            Some(number) => Ok(Some(number)),
            None => Self::wrong_type(key, value, "a whole number from 0 to 18446744073709551615"),
        }
    }

    /// The number of a key, stored as a float of either width; `None` when it is not there.
    ///
    /// # Errors
    /// [`Error::ValueType`] when it is not a float.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::F32(number)) => Ok(Some(*number)),
            Some(Value::F64(number)) => Ok(Some(*number as f32)),
            Some(other) => Self::wrong_type(key, other, "a float"),
        }
    }

    /// The truth value of a key; `None` when it is not there.
    ///
    /// # Errors
    /// [`Error::ValueType`] when it is not a bool.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(truth)) => Ok(Some(*truth)),
            Some(other) => Self::wrong_type(key, other, "a bool"),
        }
    }

    /// The array of a key, of any element type; `None` when it is not there.
    ///
    /// # Errors
    /// [`Error::ValueType`] when it is not an array.
    pub fn array(&self, key: &str) -> Result<Option<&Array>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => Ok(Some(array)),
            Some(other) => Self::wrong_type(key, other, "an array"),
        }
    }

    /// The texts of a key; `None` when it is not there.
    ///
    /// # Errors
    /// [`Error::ValueType`] when it is not an array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::String(texts))) => Ok(Some(texts)),
            Some(other) => Self::wrong_type(key, other, "an array of strings"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_keep_their_order_and_place() {
        let mut m = Metadata::new();
        m.insert("a", 1u32);
        m.insert("b", "text");
        m.insert("c", true);
        assert_eq!(m.insert("b", 2.5f32), Some("text".into()));
        assert_eq!(m.remove("a"), Some(1u32.into()));
        let keys: Vec<&str> = m.iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["b", "c"]);
        assert_eq!(m.get("c"), Some(&true.into()));
        assert_eq!(m.get("b"), Some(&2.5f32.into()));
        assert_eq!(m.get("a"), None);
    }

    #[test]
    fn numbers_are_taken_from_any_type_that_holds_them() {
        let mut m = Metadata::new();
        m.insert("small", 7u8);
        m.insert("negative", -1i32);
        m.insert("large", u64::MAX);
        m.insert("text", "7");
        assert_eq!(m.u32("small").expect("fits"), Some(7));
        assert_eq!(m.u32("absent").expect("nothing"), None);
        assert_eq!(m.u64("large").expect("fits"), Some(u64::MAX));
        for key in ["negative", "large", "text"] {
            let error = m.u32(key).expect_err("does not fit").to_string();
            assert!(error.starts_with(&format!("{key}: found ")), "{error}");
        }
    }

    #[test]
    fn the_wrong_type_is_named_with_the_value() {
        let mut m = Metadata::new();
        m.insert("key", vec![1u32, 2]);
        let error = m.str("key").expect_err("an array").to_string();
        assert_eq!(error, "key: found 2 x u32 (array), expected a string");
    }
}
