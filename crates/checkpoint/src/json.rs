//! JSON files read strictly: UTF-8, no duplicate keys, no numbers beyond f64, bounded size and depth.
//!
//! Two readers that disagree about which of two equal keys wins read two different models from one file, so
//! a duplicate key is an error here.

use std::fmt;
use std::path::Path;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error::{Error, Result, quoted};

/// The document in `bytes`; `file` names it in errors.
pub(crate) fn parse(file: &Path, bytes: &[u8]) -> Result<Value> {
    let text = utf8(file, bytes)?;
    let value: Strict = serde_json::from_str(text)
        .map_err(|e| Error::malformed(file, "JSON", e.to_string(), "a valid document"))?;
    Ok(value.0)
}

/// The document in `bytes`, whose outermost value must be an object.
pub(crate) fn parse_object(file: &Path, bytes: &[u8]) -> Result<Map<String, Value>> {
    match parse(file, bytes)? {
        Value::Object(map) => Ok(map),
        other => Err(Error::malformed(file, "JSON", kind(&other), "an object")),
    }
}

pub(crate) fn utf8<'a>(file: &Path, bytes: &'a [u8]) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|e| {
        Error::malformed(file, "text", format!("an invalid byte at offset {}", e.valid_up_to()), "UTF-8")
    })
}

/// A short description of `value` for the "found" part of a message.
pub(crate) fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(s) => quoted(s),
        Value::Array(a) => format!("an array of {}", a.len()),
        Value::Object(o) => format!("an object of {}", o.len()),
    }
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(de::Error::custom(format_args!("duplicate key {}", quoted(&key))));
            }
            let Strict(value) = entries.next_value()?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &[u8]) -> String {
        parse(Path::new("x.json"), text).unwrap_err().to_string()
    }

    #[test]
    fn duplicate_keys_are_named() {
        let message = error(br#"{"a": 1, "b": {"c": 1, "c": 2}}"#);
        assert!(message.contains("duplicate key \"c\""), "{message}");
    }

    #[test]
    fn numbers_beyond_f64_are_refused() {
        assert!(error(br#"{"a": 1e400}"#).contains("out of range"));
    }

    #[test]
    fn deep_nesting_is_refused_without_a_stack_overflow() {
        assert!(error("[".repeat(1_000_000).as_bytes()).contains("recursion"));
    }

    #[test]
    fn bytes_that_are_not_utf8_are_located() {
        assert!(error(b"{\"\xff\": 1}").contains("offset 2"));
    }

    #[test]
    fn key_order_is_kept() {
        let map = parse_object(Path::new("x"), br#"{"z": 1, "a": 2, "m": 3}"#).unwrap();
        assert_eq!(map.keys().collect::<Vec<_>>(), ["z", "a", "m"]);
    }
}
