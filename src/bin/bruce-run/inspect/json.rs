//! The report for programs.

use super::View;
use super::totals::{by_type, n_weights, total};
use gguf::{Gguf, Value};
use serde_json::{Map, Value as Json, json};

/// Elements of an array that are given unless all are wanted.
const ELEMENTS_SHOWN: usize = 8;

/// One JSON object and a line end.
pub fn report(gguf: &Gguf, view: View) -> String {
    let sum = total(gguf);
    let mut object = Map::new();
    let mut set = |key: &str, value: Json| object.insert(key.to_owned(), value);
    set("file", json!(gguf.path().display().to_string()));
    set("parts", gguf.parts().iter().map(|part| part.display().to_string()).collect());
    set("version", json!(gguf.version()));
    set("alignment", json!(gguf.alignment()));
    set("file_size_bytes", json!(gguf.file_size()));
    set("n_tensors", json!(sum.n_tensors));
    set("n_weights", json!(sum.n_weights));
    set("tensor_size_bytes", json!(sum.size_bytes));
    set("bits_per_weight", json!(sum.bits_per_weight()));
    set("types", types(gguf));
    if view.metadata {
        let entries = gguf.metadata().iter().map(|(key, value)| (key.to_owned(), entry(value, view.full)));
        set("metadata", Json::Object(entries.collect()));
    }
    if view.tensors {
        set("tensors", tensors(gguf));
    }
    format!("{:#}\n", Json::Object(object))
}

fn types(gguf: &Gguf) -> Json {
    let entry = |total: super::totals::Total| json!({"n_tensors": total.n_tensors, "n_weights": total.n_weights, "size_bytes": total.size_bytes});
    Json::Object(by_type(gguf).into_iter().map(|(ty, total)| (ty.name().to_owned(), entry(total))).collect())
}

fn tensors(gguf: &Gguf) -> Json {
    let entry = |tensor: &gguf::TensorInfo| {
        json!({
            "name": tensor.name,
            "type": tensor.ty.name(),
            "ne": tensor.ne.to_vec(),
            "n_weights": n_weights(tensor),
            "size_bytes": tensor.size,
            "part": tensor.part,
            "offset": tensor.offset,
        })
    };
    gguf.tensors().iter().map(entry).collect()
}

/// Type and value; of a long array its length and beginning.
fn entry(value: &Value, full: bool) -> Json {
    match value {
        Value::Array(array) => {
            let n_given = if full { array.len() } else { array.len().min(ELEMENTS_SHOWN) };
            let given: Vec<Json> = (0..n_given).filter_map(|i| array.get(i)).map(|v| scalar(&v)).collect();
            let name = if n_given < array.len() { "first" } else { "value" };
            json!({"type": "array", "element_type": array.type_name(), "length": array.len(), name: given})
        }
        other => json!({"type": other.type_name(), "value": scalar(other)}),
    }
}

fn scalar(value: &Value) -> Json {
    match value {
        // JSON has no NaN and no infinities.
        Value::F32(v) if !v.is_finite() => json!(v.to_string()),
        Value::F64(v) if !v.is_finite() => json!(v.to_string()),
        Value::F32(v) => json!(v),
        Value::F64(v) => json!(v),
        Value::Bool(v) => json!(v),
        Value::String(v) => json!(v),
        Value::U64(v) => json!(v),
        other => json!(other.as_integer().and_then(|v| i64::try_from(v).ok())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_type_and_value() {
        assert_eq!(entry(&Value::U8(3), false), json!({"type": "u8", "value": 3}));
        assert_eq!(entry(&Value::U64(u64::MAX), false), json!({"type": "u64", "value": u64::MAX}));
        assert_eq!(entry(&Value::I8(-3), false), json!({"type": "i8", "value": -3}));
        assert_eq!(entry(&Value::F32(f32::NAN), false), json!({"type": "f32", "value": "NaN"}));
        assert_eq!(entry(&"a\u{1b}".into(), false), json!({"type": "string", "value": "a\u{1b}"}));
    }

    #[test]
    fn long_arrays_are_given_in_part() {
        let long = Value::from((0..20i32).collect::<Vec<_>>());
        let part = entry(&long, false);
        assert_eq!((&part["length"], part["first"].as_array().map(Vec::len)), (&json!(20), Some(8)));
        assert_eq!(entry(&long, true)["value"].as_array().map(Vec::len), Some(20));
    }
}
