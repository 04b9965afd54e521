//! The weight files of a directory: one safetensors file, or many with an index.
//!
//! An index (model.safetensors.index.json) maps tensor names to file names. It and the shards' own headers
//! must agree: every tensor in exactly one shard, and in the one that the index names.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::path::PathBuf;

use serde_json::Value;

use crate::directory::{self, Directory};
use crate::error::{Error, Result, list, quoted};
use crate::json::kind;
use crate::safetensors::{self, Entry};

const INDEX: &str = "model.safetensors.index.json";
/// Room for a million tensors; real indices have a few thousand.
const MAX_INDEX_SIZE: u64 = 100_000_000;
/// File names of weights that torch pickled.
const PICKLES: &[&str] = &[".bin", ".pt", ".pth", ".ckpt"];

/// One open weight file.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    /// In the order of their names, as llama.cpp's converter goes through them.
    pub(crate) entries: Vec<Entry>,
}

/// Every weight file, in the order of their names.
pub(crate) fn open(dir: &Directory) -> Result<Vec<Shard>> {
    let index = read_index(dir)?;
    let names = match &index {
        Some(index) => index.values().cloned().collect::<BTreeSet<_>>().into_iter().collect(),
        None => names_without_index(dir)?,
    };
    let mut shards = Vec::with_capacity(names.len());
    let mut missing = Vec::new();
    for name in &names {
        match dir.file(name)? {
            Some((file, size)) => {
                let path = dir.join(name);
                let mut entries = safetensors::read_header(&path, &file, size)?;
                entries.sort_by(|a, b| a.name.cmp(&b.name));
                shards.push(Shard { path, file, entries });
            }
            None => missing.push(name.clone()),
        }
    }
    if !missing.is_empty() {
        let file = if index.is_some() { dir.join(INDEX) } else { dir.path().to_owned() };
        return Err(Error::MissingShards { file, names: missing, expected: names.len() });
    }
    let holder = check_unique(&shards)?;
    if let Some(index) = index {
        check_against_index(dir, &names, &index, &holder)?;
    }
    Ok(shards)
}

/// Tensor name to file name.
fn read_index(dir: &Directory) -> Result<Option<HashMap<String, String>>> {
    let Some(map) = dir.read_json(INDEX, MAX_INDEX_SIZE)? else { return Ok(None) };
    let file = dir.join(INDEX);
    let Some(Value::Object(weight_map)) = map.get("weight_map") else {
        let found = map.get("weight_map").map_or("no such key".into(), kind);
        return Err(Error::malformed(file, "weight_map", found, "an object of tensor and file names"));
    };
    let mut index = HashMap::with_capacity(weight_map.len());
    for (tensor, shard) in weight_map {
        let malformed = |found, expected| {
            Error::malformed(&file, format!("weight_map: {}", quoted(tensor)), found, expected)
        };
        let Value::String(shard) = shard else { return Err(malformed(kind(shard), "a file name")) };
        if !directory::is_inside(shard) {
            return Err(malformed(quoted(shard), directory::INSIDE));
        }
        index.insert(tensor.clone(), shard.clone());
    }
    if index.is_empty() {
        return Err(Error::malformed(file, "weight_map", "no tensors", "at least one"));
    }
    Ok(Some(index))
}

/// model.safetensors, or the files numbered `model-00001-of-0000N.safetensors`.
fn names_without_index(dir: &Directory) -> Result<Vec<String>> {
    let all = dir.names()?;
    let is_weights = |name: &&String| name.starts_with("model") && name.ends_with(".safetensors");
    let names: Vec<String> = all.iter().filter(is_weights).cloned().collect();
    if names.is_empty() {
        let pickles: Vec<String> =
            all.iter().filter(|n| PICKLES.iter().any(|end| n.ends_with(end))).cloned().collect();
        if !pickles.is_empty() {
            return Err(Error::PickleOnly { dir: dir.path().to_owned(), names: pickles });
        }
        let other: Vec<String> = all.iter().filter(|n| n.ends_with(".safetensors")).cloned().collect();
        let found = if other.is_empty() { "no safetensors file".into() } else { list(&other, 8) };
        let expected = format!("model.safetensors, or {INDEX} and its shards");
        return Err(Error::malformed(dir.path(), "weights", found, expected));
    }
    if names.iter().any(|n| n == "model.safetensors") {
        return Ok(vec!["model.safetensors".into()]);
    }
    match names.iter().find_map(|n| numbered(n)) {
        // A count beyond what a directory listing could answer for is not worth naming file by file.
        Some(count) if count <= 99_999 => {
            Ok((1..=count).map(|i| format!("model-{i:05}-of-{count:05}.safetensors")).collect())
        }
        _ => Ok(names),
    }
}

/// The count in `model-00001-of-00003.safetensors`.
fn numbered(name: &str) -> Option<u32> {
    let (number, count) = name.strip_prefix("model-")?.strip_suffix(".safetensors")?.split_once("-of-")?;
    let digits = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    if digits(number) && digits(count) { count.parse().ok() } else { None }
}

/// Tensor name to index of the shard that holds it.
fn check_unique(shards: &[Shard]) -> Result<HashMap<&str, usize>> {
    let mut holder = HashMap::new();
    for (i, shard) in shards.iter().enumerate() {
        for entry in &shard.entries {
            if let Some(first) = holder.insert(entry.name.as_str(), i) {
                let other = quoted(&shards[first].path.file_name().unwrap_or_default().to_string_lossy());
                let what = format!("tensor {}", quoted(&entry.name));
                let found = format!("the same name in {other}");
                return Err(Error::malformed(&shard.path, what, found, "each tensor in one shard"));
            }
        }
    }
    Ok(holder)
}

fn check_against_index(
    dir: &Directory,
    names: &[String],
    index: &HashMap<String, String>,
    holder: &HashMap<&str, usize>,
) -> Result<()> {
    let mut nowhere: Vec<&str> =
        index.keys().filter(|n| !holder.contains_key(n.as_str())).map(String::as_str).collect();
    if !nowhere.is_empty() {
        nowhere.sort_unstable();
        let found = format!("{} tensors that no shard holds: {}", nowhere.len(), list(&nowhere, 16));
        return Err(Error::malformed(dir.join(INDEX), "weight_map", found, "tensors of the shards"));
    }
    let mut unlisted: Vec<&str> = holder.keys().filter(|n| !index.contains_key(**n)).copied().collect();
    if !unlisted.is_empty() {
        unlisted.sort_unstable();
        let found = format!("{} tensors of the shards left out: {}", unlisted.len(), list(&unlisted, 16));
        return Err(Error::malformed(dir.join(INDEX), "weight_map", found, "every tensor of the shards"));
    }
    for (tensor, shard) in index {
        let holding = &names[holder[tensor.as_str()]];
        if holding != shard {
            let what = format!("weight_map: {}", quoted(tensor));
            return Err(Error::malformed(dir.join(INDEX), what, quoted(shard), quoted(holding)));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "shards_tests.rs"]
mod tests;
