//! The header of a safetensors file: which tensors it holds and where.
//!
//! Layout: 8 bytes little-endian header length N; N bytes of JSON (may end in spaces); the data. The JSON is
//! one object: tensor name -> `{"dtype", "shape", "data_offsets": [begin, end)}`, offsets from the end of the
//! header, and optionally `__metadata__`, an object of strings. The data must be covered exactly: no hole, no
//! overlap, nothing behind the last tensor.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::File;
use std::path::Path;

use gguf::position::read_exact_at;
use quants::TensorType;
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};

use crate::error::{Error, Result, quoted};
use crate::json::utf8;

/// Largest header that is read, as in the reference implementation.
const MAX_HEADER: u64 = 100_000_000;
/// More axes than any weight has; keeps products and messages small.
const MAX_AXES: usize = 8;

/// One tensor of a file, sizes and position checked against the file's length.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    /// Outermost axis first, as in the file.
    pub(crate) shape: Vec<u64>,
    /// From the beginning of the file.
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

/// Element types that the format knows, with their width in bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dtype {
    pub(crate) name: &'static str,
    bits: u64,
}

const DTYPES: &[Dtype] = &[
    Dtype { name: "F32", bits: 32 },
    Dtype { name: "F16", bits: 16 },
    Dtype { name: "BF16", bits: 16 },
    Dtype { name: "F64", bits: 64 },
    Dtype { name: "BOOL", bits: 8 },
    Dtype { name: "I8", bits: 8 },
    Dtype { name: "U8", bits: 8 },
    Dtype { name: "I16", bits: 16 },
    Dtype { name: "U16", bits: 16 },
    Dtype { name: "I32", bits: 32 },
    Dtype { name: "U32", bits: 32 },
    Dtype { name: "I64", bits: 64 },
    Dtype { name: "U64", bits: 64 },
    Dtype { name: "C64", bits: 64 },
    Dtype { name: "F8_E4M3", bits: 8 },
    Dtype { name: "F8_E4M3FNUZ", bits: 8 },
    Dtype { name: "F8_E5M2", bits: 8 },
    Dtype { name: "F8_E5M2FNUZ", bits: 8 },
    Dtype { name: "F8_E8M0", bits: 8 },
    Dtype { name: "F6_E2M3", bits: 6 },
    Dtype { name: "F6_E3M2", bits: 6 },
    Dtype { name: "F4", bits: 4 },
];

impl Dtype {
    fn from_name(name: &str) -> Option<Dtype> {
        DTYPES.iter().copied().find(|d| d.name == name)
    }

    /// The type that weights of this kind are read as; `None` for what is not a plain float of 16 or 32 bits.
    pub(crate) fn weight_type(self) -> Option<TensorType> {
        match self.name {
            "F32" => Some(TensorType::F32),
            "F16" => Some(TensorType::F16),
            "BF16" => Some(TensorType::BF16),
            _ => None,
        }
    }
}

/// All tensors of the file, in the order of their data.
pub(crate) fn read_header(path: &Path, file: &File, file_size: u64) -> Result<Vec<Entry>> {
    let fail = |source| Error::Io { file: path.to_owned(), action: "cannot read the header", source };
    let mut start = vec![0; file_size.min(64) as usize];
    read_exact_at(file, &mut start, 0).map_err(fail)?;
    if let Some(what) = recognise_other(&start) {
        return Err(Error::malformed(path, "content", what, "a safetensors file"));
    }
    let Some(length) = start.first_chunk::<8>() else {
        return Err(Error::malformed(
            path,
            "size",
            format!("{file_size} bytes"),
            "at least 8 for the header length",
        ));
    };
    let length = u64::from_le_bytes(*length);
    if length == 0 || length > MAX_HEADER {
        let expected = format!("1 to {MAX_HEADER}");
        return Err(Error::malformed(path, "header length", length.to_string(), expected));
    }
    if length > file_size - 8 {
        let expected = format!("at most the {} bytes that follow (is the file truncated?)", file_size - 8);
        return Err(Error::malformed(path, "header length", length.to_string(), expected));
    }
    let mut header = vec![0; length as usize];
    read_exact_at(file, &mut header, 8).map_err(fail)?;
    parse_header(path, &header, 8 + length, file_size)
}

/// What the file is instead, where its first bytes say so.
fn recognise_other(start: &[u8]) -> Option<&'static str> {
    let text = start.trim_ascii_start();
    if start.is_empty() {
        Some("an empty file")
    } else if start.starts_with(b"version https://git-lfs") {
        Some("a git-lfs pointer (run `git lfs pull`, or download the file itself)")
    } else if text.starts_with(b"<!DOCTYPE") || text.starts_with(b"<!doctype") || text.starts_with(b"<html") {
        Some("an HTML page (the download went wrong)")
    } else if start.starts_with(b"PK\x03\x04") || start.starts_with(b"\x80\x02") {
        Some("a PyTorch pickle")
    } else if start.starts_with(b"GGUF") {
        Some("a GGUF file")
    } else {
        None
    }
}

fn parse_header(path: &Path, header: &[u8], data_start: u64, file_size: u64) -> Result<Vec<Entry>> {
    let text = utf8(path, header)?;
    let raw: RawHeader = serde_json::from_str(text)
        .map_err(|e| Error::malformed(path, "header", e.to_string(), "a valid safetensors header"))?;
    let data_size = file_size - data_start;
    let mut entries = Vec::with_capacity(raw.0.len());
    for (name, raw) in raw.0 {
        entries.push(check_entry(path, name, raw, data_start, data_size)?);
    }
    entries.sort_by_key(|e| (e.offset, e.size));
    let mut end = data_start;
    for e in &entries {
        if e.offset != end {
            let what = format!("tensor {}: data_offsets", quoted(&e.name));
            let begin = e.offset - data_start;
            let how = if e.offset > end { "a hole before it" } else { "an overlap with another tensor" };
            let expected = (end - data_start).to_string();
            return Err(Error::malformed(path, what, format!("begin {begin} ({how})"), expected));
        }
        end = e.offset + e.size;
    }
    if end != file_size {
        let found = format!("{} bytes behind the last tensor", file_size - end);
        return Err(Error::malformed(path, "data", found, "none"));
    }
    Ok(entries)
}

fn check_entry(path: &Path, name: String, raw: RawEntry, data_start: u64, data_size: u64) -> Result<Entry> {
    let what = |field: &str| format!("tensor {}: {field}", quoted(&name));
    let bad =
        |field: &str, found: String, expected: String| Error::malformed(path, what(field), found, expected);
    let dtype = Dtype::from_name(&raw.dtype)
        .ok_or_else(|| bad("dtype", quoted(&raw.dtype), "F32, F16 or BF16".into()))?;
    if raw.shape.len() > MAX_AXES {
        return Err(bad("shape", format!("{} axes", raw.shape.len()), format!("at most {MAX_AXES}")));
    }
    let bits = raw.shape.iter().try_fold(dtype.bits, |n, &axis| n.checked_mul(axis));
    let bits =
        bits.ok_or_else(|| bad("shape", format!("{:?}", raw.shape), "a size below 2^64 bits".into()))?;
    let (begin, end) = (raw.data_offsets[0], raw.data_offsets[1]);
    let found = format!("[{begin}, {end}]");
    if begin > end {
        return Err(bad("data_offsets", found, "begin <= end".into()));
    }
    if end > data_size {
        let expected = format!("an end within the file's {data_size} bytes of data (is the file truncated?)");
        return Err(bad("data_offsets", found, expected));
    }
    if bits % 8 != 0 || end - begin != bits / 8 {
        let expected = format!("{} bytes for shape {:?} of {}", bits.div_ceil(8), raw.shape, dtype.name);
        return Err(bad("data_offsets", format!("{} bytes", end - begin), expected));
    }
    Ok(Entry { dtype, shape: raw.shape, offset: data_start + begin, size: end - begin, name })
}

/// Tensors in the order of the JSON text.
struct RawHeader(Vec<(String, RawEntry)>);

/// Typed rather than a JSON tree: negative and fractional numbers, unknown fields, nesting and duplicate
/// fields are refused while reading, and memory stays near the size of the text.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut seen = HashSet::new();
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    let context = |e: A::Error| de::Error::custom(format_args!("{}: {e}", quoted(&name)));
                    if !seen.insert(name.clone()) {
                        return Err(context(de::Error::custom("duplicate key")));
                    }
                    if name == "__metadata__" {
                        map.next_value::<BTreeMap<String, String>>().map_err(context)?;
                    } else {
                        let entry = map.next_value().map_err(context)?;
                        entries.push((name, entry));
                    }
                }
                Ok(RawHeader(entries))
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

#[cfg(test)]
#[path = "safetensors_tests.rs"]
mod tests;
