//! Metadata: entries in the file's order, found by key.

use crate::{Array, Error, Value};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Key-value entries; the order is that of the file, or of insertion.
///
/// Metadata remembers the file it was read from, so that errors can name it. Two that hold the same entries are equal,
/// wherever they come from.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    origin: Option<PathBuf>,
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

    /// No entries, of a file.
    pub(crate) fn of_file(path: &Path) -> Metadata {
        Metadata { origin: Some(path.to_path_buf()), ..Metadata::default() }
    }

    /// The file that this was read from; `None` for metadata that was put together.
    pub fn origin(&self) -> Option<&Path> {
        self.origin.as_deref()
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

    /// As [`insert`](Self::insert), where the old value is of no interest.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.insert(key, value);
    }

    /// Whether there is a value of a key.
    pub fn contains(&self, key: &str) -> bool {
        self.index.contains_key(key)
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

    fn wrong_type<T>(&self, key: &str, value: &Value, expected: &'static str) -> Result<T, Error> {
        self.wrong(key, format!("{value} ({})", value.type_name()), expected)
    }

    fn wrong_array<T>(&self, key: &str, array: &Array, expected: &'static str) -> Result<T, Error> {
        self.wrong(key, format!("{} x {} (array)", array.len(), array.type_name()), expected)
    }

    fn wrong<T>(&self, key: &str, found: String, expected: &'static str) -> Result<T, Error> {
        Err(Error::ValueType { path: self.origin.clone(), key: key.to_owned(), found, expected })
    }

    /// The text of a key; `None` when it is not there.
    ///
    /// # Errors
    /// [`Error::ValueType`] when it is not a string, or one that is not UTF-8.
    pub fn str(&self, key: &str) -> Result<Option<&str>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(raw @ Value::Bytes(_)) => self.wrong_type(key, raw, "a UTF-8 string"),
            Some(other) => self.wrong_type(key, other, "a string"),
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
            None => self.wrong_type(key, value, "a whole number from 0 to 4294967295"),
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
            None => self.wrong_type(key, value, "a whole number from 0 to 18446744073709551615"),
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
            Some(other) => self.wrong_type(key, other, "a float"),
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
            Some(other) => self.wrong_type(key, other, "a bool"),
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
            Some(other) => self.wrong_type(key, other, "an array"),
        }
    }

    /// The texts of a key; `None` when it is not there.
    ///
    /// # Errors
    /// [`Error::ValueType`] when it is not an array of strings, or when one of them is not UTF-8.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::String(texts))) => Ok(Some(texts)),
            Some(Value::Array(Array::Bytes(strings))) => {
                let raw = strings.iter().position(|string| std::str::from_utf8(string).is_err());
                let (n, expected) = (strings.len(), "UTF-8 strings (an array)");
                match raw {
                    Some(at) => {
                        let found = format!("element {at} of {n}, {}", Value::Bytes(strings[at].clone()));
                        self.wrong(key, found, expected)
                    }
                    None => self.wrong(key, format!("{n} strings as bytes (an array)"), expected),
                }
            }
            Some(other) => self.wrong_type(key, other, "an array of strings"),
        }
    }

    /// The strings of a key as bytes, UTF-8 or not; `None` when it is not there.
    ///
    /// # Errors
    /// [`Error::ValueType`] when it is not an array of strings.
    pub fn byte_strings(&self, key: &str) -> Result<Option<Vec<&[u8]>>, Error> {
        let Some(array) = self.array(key)? else { return Ok(None) };
        match array.byte_strings() {
            Some(strings) => Ok(Some(strings)),
            None => self.wrong_array(key, array, "an array of strings"),
        }
    }

    /// The floats of a key; `None` when it is not there.
    ///
    /// # Errors
    /// [`Error::ValueType`] when it is not an array of 32-bit floats.
    pub fn f32s(&self, key: &str) -> Result<Option<&[f32]>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::F32(numbers))) => Ok(Some(numbers)),
            Some(other) => self.wrong_type(key, other, "an array of f32"),
        }
    }

    /// The numbers of a key, of whichever integer type the file has them in; `None` when it is not there.
    ///
    /// # Errors
    /// [`Error::ValueType`] when it is not an array of integers or one does not fit.
    pub fn u32s(&self, key: &str) -> Result<Option<Vec<u32>>, Error> {
        let Some(array) = self.array(key)? else { return Ok(None) };
        match array.to_u32s() {
            Some(numbers) => Ok(Some(numbers)),
            None => self.wrong_array(key, array, "an array of whole numbers from 0 to 4294967295"),
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

    #[test]
    fn errors_name_the_file_where_there_is_one() {
        let mut m = Metadata::of_file(Path::new("model.gguf"));
        m.set("key", 1.5f32);
        let error = m.u32("key").expect_err("a float").to_string();
        assert_eq!(error, "model.gguf: key: found 1.5 (f32), expected a whole number from 0 to 4294967295");
        assert_eq!(m.bool("absent").expect("nothing"), None);
    }

    #[test]
    fn strings_that_are_not_utf8_are_there_as_bytes_only() {
        let mut m = Metadata::new();
        m.set("one", Value::Bytes(vec![b'a', 0xff]));
        m.set("many", Array::Bytes(vec![b"ok".to_vec(), vec![0xfe]]));
        let error = m.str("one").expect_err("raw").to_string();
        assert_eq!(error, r#"one: found "a\xff", which is not UTF-8 (string), expected a UTF-8 string"#);
        let error = m.strings("many").expect_err("raw").to_string();
        assert!(error.starts_with(r#"many: found element 1 of 2, "\xfe", which is not UTF-8, "#), "{error}");
        assert_eq!(m.byte_strings("many").expect("strings"), Some(vec![b"ok".as_slice(), &[0xfe]]));
        assert_eq!(m.get("one").and_then(Value::as_bytes), Some(b"a\xff".as_slice()));
    }

    #[test]
    fn arrays_are_checked_for_their_element_type() {
        let mut m = Metadata::new();
        m.set("floats", vec![0.5f32]);
        m.set("ints", vec![1i32, 2]);
        assert_eq!(m.f32s("floats").expect("floats"), Some([0.5].as_slice()));
        assert_eq!(m.u32s("ints").expect("numbers"), Some(vec![1, 2]));
        for error in [m.f32s("ints").map(|_| ()), m.u32s("floats").map(|_| ()), m.strings("ints").map(|_| ())]
        {
            let error = error.expect_err("another type").to_string();
            assert!(error.contains("1 x f32 (array)") || error.contains("2 x i32 (array)"), "{error}");
        }
    }
}
