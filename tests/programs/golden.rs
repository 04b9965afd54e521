//! Files that `bruce-quant` writes, against what llama.cpp makes of the same checkpoints (`tests/golden`).

use crate::support::{checkpoint, golden, quantized};
use gguf::{Array, Gguf, Value};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// Compares our file of a model with the golden facts `<facts>-<type>`.
fn compare(model: &str, facts: &str, file_type: &str) {
    let Some(path) = quantized(model, file_type) else { return };
    let file = Gguf::open(&path).expect("our own file");
    compare_tensors(&file, &format!("{facts}-{file_type}.tensors.tsv"));
    compare_metadata(&file, &format!("{facts}-{file_type}.kv.json"));
}

fn compare_tensors(file: &Gguf, facts: &str) {
    let ours: BTreeMap<String, String> = file
        .tensors()
        .iter()
        .map(|t| {
            let ne: Vec<String> = t.ne.iter().map(u64::to_string).collect();
            (
                t.name.clone(),
                format!("{}\t{}\t{}", t.ty.name(), ne.join(","), hex(&Sha256::digest(file.data(t)))),
            )
        })
        .collect();
    let theirs: BTreeMap<String, String> = golden(facts)
        .lines()
        .skip(1)
        .map(|line| line.split_once('\t').expect("columns"))
        .map(|(name, rest)| (name.to_owned(), rest.to_owned()))
        .collect();
    assert!(!theirs.is_empty(), "{facts} is empty");
    let different: Vec<String> = theirs
        .iter()
        .filter(|(name, fact)| ours.get(*name) != Some(fact))
        .map(|(name, fact)| format!("{name}: found {:?}, expected {fact:?}", ours.get(name)))
        .chain(
            ours.keys()
                .filter(|name| !theirs.contains_key(*name))
                .map(|name| format!("{name}: not in llama.cpp's")),
        )
        .collect();
    let n = different.len();
    assert!(
        different.is_empty(),
        "{facts}: {n} of {} tensors differ, such as\n{}",
        ours.len(),
        first(&different)
    );
}

fn compare_metadata(file: &Gguf, facts: &str) {
    // Written by us alone: who made the file, of what and how.
    const OURS_ALONE: [&str; 4] =
        ["general.quantized_by", "bruce.version", "bruce.command", "bruce.source.fingerprint"];
    let theirs: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&golden(facts)).expect("a JSON object");
    assert!(!theirs.is_empty(), "{facts} is empty");
    let mut different = Vec::new();
    for (key, fact) in &theirs {
        let found = file.metadata().get(key).map(described);
        // Their name comes from the name of the folder, which is not the same here.
        if key != "general.name" && found.as_ref() != Some(&without_ends(fact)) {
            different.push(format!("{key}: found {found:?}, expected {fact}"));
        }
    }
    for (key, value) in file.metadata().iter() {
        if !theirs.contains_key(key) && !OURS_ALONE.contains(&key) {
            different.push(format!("{key}: found {}, expected none", described(value)));
        }
    }
    assert!(different.is_empty(), "{facts}: {} keys differ, such as\n{}", different.len(), first(&different));
}

fn first(list: &[String]) -> String {
    list.iter().take(5).map(String::as_str).collect::<Vec<_>>().join("\n")
}

/// A golden fact without the two ends of a long array, for which the hash speaks.
fn without_ends(fact: &serde_json::Value) -> serde_json::Value {
    let mut fact = fact.clone();
    if let Some(array) = fact["value"].as_object_mut() {
        array.remove("first");
        array.remove("last");
    }
    fact
}

/// A value as the golden files describe it.
fn described(value: &Value) -> serde_json::Value {
    use serde_json::json;
    let (kind, value) = match value {
        Value::U8(v) => ("UINT8", json!(v)),
        Value::I8(v) => ("INT8", json!(v)),
        Value::U16(v) => ("UINT16", json!(v)),
        Value::I16(v) => ("INT16", json!(v)),
        Value::U32(v) => ("UINT32", json!(v)),
        Value::I32(v) => ("INT32", json!(v)),
        Value::F32(v) => ("FLOAT32", json!(f64::from(*v))),
        Value::Bool(v) => ("BOOL", json!(v)),
        Value::String(v) => ("STRING", json!(v)),
        Value::Bytes(v) => panic!("a text that is not UTF-8: {v:?}"),
        Value::U64(v) => ("UINT64", json!(v)),
        Value::I64(v) => ("INT64", json!(v)),
        Value::F64(v) => ("FLOAT64", json!(v)),
        Value::Array(array) => {
            let (kind, items) = elements(array);
            return json!({"type": ["ARRAY", kind], "value": long_or_whole(&items)});
        }
    };
    json!({"type": [kind], "value": value})
}

/// Type and elements of an array, each element as Python's `json.dumps` writes it.
fn elements(array: &Array) -> (&'static str, Vec<String>) {
    fn plain<T: ToString>(items: &[T]) -> Vec<String> {
        items.iter().map(ToString::to_string).collect()
    }
    match array {
        Array::U8(v) => ("UINT8", plain(v)),
        Array::I8(v) => ("INT8", plain(v)),
        Array::U16(v) => ("UINT16", plain(v)),
        Array::I16(v) => ("INT16", plain(v)),
        Array::U32(v) => ("UINT32", plain(v)),
        Array::I32(v) => ("INT32", plain(v)),
        Array::U64(v) => ("UINT64", plain(v)),
        Array::I64(v) => ("INT64", plain(v)),
        Array::Bool(v) => ("BOOL", plain(v)),
        Array::F32(v) => ("FLOAT32", v.iter().map(|v| format!("{:?}", f64::from(*v))).collect()),
        Array::F64(v) => ("FLOAT64", v.iter().map(|v| format!("{v:?}")).collect()),
        Array::String(v) => {
            ("STRING", v.iter().map(|v| serde_json::to_string(v).expect("a string")).collect())
        }
        Array::Bytes(v) => panic!("texts of which some are not UTF-8: {} of them", v.len()),
    }
}

fn long_or_whole(items: &[String]) -> serde_json::Value {
    let joined = format!("[{}]", items.join(", "));
    if items.len() > 64 {
        return serde_json::json!({"len": items.len(), "sha256": hex(&Sha256::digest(joined.as_bytes()))});
    }
    serde_json::from_str(&joined).expect("a JSON array")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn sha256_of_file(path: &Path) -> String {
    let mut file = std::fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).expect("bytes") {
            0 => return hex(&hasher.finalize()),
            n => hasher.update(&buffer[..n]),
        }
    }
}

#[test]
fn makers_write_the_bytes_that_the_hashes_belong_to() {
    for line in golden("checkpoints.sha256").lines() {
        let (expected, file) = line.split_once("  ").expect("hash and file");
        let (model, file) = file.split_once('/').expect("model and file");
        let Some(folder) = checkpoint(model) else { continue };
        let found = sha256_of_file(&folder.join(file));
        assert_eq!(found, expected, "{model}/{file}: the maker wrote other bytes; is it another numpy?");
    }
}

#[test]
fn tiny_moe_in_every_type() {
    for file_type in ["BF16", "Q8_0", "Q4_K_M", "Q4_K_S", "Q5_K_M", "Q6_K"] {
        compare("tinymoe", "tinymoe", file_type);
    }
}

#[test]
fn four_experts() {
    for file_type in ["BF16", "Q8_0", "Q4_K_M", "Q5_K_M", "Q6_K"] {
        compare("tiny4", "tiny4", file_type);
    }
}

#[test]
fn experts_fused_as_mergekit_writes_them_now_give_the_same_tensors() {
    compare("tiny4f", "tiny4", "Q4_K_M");
    compare("tiny4f", "tiny4", "BF16");
}

#[test]
fn eight_experts() {
    for file_type in ["Q8_0", "Q4_K_M", "Q4_K_S"] {
        compare("tiny8", "tiny8", file_type);
    }
}

#[test]
fn three_experts() {
    for file_type in ["Q4_K_M", "Q5_K_M"] {
        compare("tiny3", "tiny3", file_type);
    }
}

#[test]
fn a_dense_mistral() {
    for file_type in ["Q4_K_M", "Q6_K"] {
        compare("tinyd", "tinyd", file_type);
    }
}

#[test]
fn a_real_model_in_three_shards() {
    for file_type in ["BF16", "Q8_0", "Q4_K_M"] {
        compare("smol4x", "smol4x", file_type);
    }
}
