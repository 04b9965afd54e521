//! Reads importances of either format and checks every number in them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use gguf::{Gguf, TensorInfo};
use quants::TensorType;

use crate::{Entry, Error, Imatrix, legacy};

pub(crate) const TYPE_KEY: &str = "general.type";
pub(crate) const DATASETS_KEY: &str = "imatrix.datasets";
pub(crate) const CHUNK_COUNT_KEY: &str = "imatrix.chunk_count";
pub(crate) const CHUNK_SIZE_KEY: &str = "imatrix.chunk_size";

/// Most tokens that a count may hold: beyond it F32 sums had long stopped to grow.
const MAX_COUNT: f32 = (1u64 << 48) as f32;

impl Imatrix {
    /// The importances in a file of either format, told apart by how the file begins.
    ///
    /// # Errors
    /// The file can't be read, is something else, is cut short, lacks what belongs to an entry, or holds sums that are
    /// negative or not finite. The error names file and field.
    pub fn read(path: &Path) -> Result<Imatrix, Error> {
        let io = |source| Error::Io { path: path.to_path_buf(), action: "open", source };
        // Asked before opening: opening a pipe would wait for somebody to write to it.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(malformed(path, "format", "no regular file".to_owned(), "a file of importances"));
        }
        let mut file = File::open(path).map_err(io)?;
        let mut magic = [0; 4];
        let is_gguf = file.read_exact(&mut magic).is_ok() && magic == *b"GGUF";
        if is_gguf {
            return parse(path, &Gguf::open(path)?);
        }
        let bytes = std::fs::read(path).map_err(|source| Error::Io {
            path: path.to_path_buf(),
            action: "read",
            source,
        })?;
        legacy::parse(path, &bytes)
    }
}

/// What belongs to one entry.
#[derive(Default)]
struct Parts<'a> {
    sums: Option<&'a TensorInfo>,
    counts: Option<&'a TensorInfo>,
}

fn parse(path: &Path, file: &Gguf) -> Result<Imatrix, Error> {
    let metadata = file.metadata();
    if let Some(found) = metadata.str(TYPE_KEY)?.filter(|found| *found != "imatrix") {
        return Err(malformed(path, TYPE_KEY, shown(found), "imatrix"));
    }
    let missing = |key: &str| malformed(path, key, "no such key".to_owned(), "what llama-imatrix writes");
    let datasets = metadata.strings(DATASETS_KEY)?.ok_or_else(|| missing(DATASETS_KEY))?.to_vec();
    let chunk_count = metadata.u32(CHUNK_COUNT_KEY)?.ok_or_else(|| missing(CHUNK_COUNT_KEY))?;
    let chunk_size = metadata.u32(CHUNK_SIZE_KEY)?.ok_or_else(|| missing(CHUNK_SIZE_KEY))?;

    let mut parts: BTreeMap<&str, Parts<'_>> = BTreeMap::new();
    for tensor in file.tensors() {
        if let Some(name) = tensor.name.strip_suffix(".in_sum2") {
            parts.entry(name).or_default().sums = Some(tensor);
        } else if let Some(name) = tensor.name.strip_suffix(".counts") {
            parts.entry(name).or_default().counts = Some(tensor);
        }
    }
    if parts.is_empty() {
        return Err(malformed(
            path,
            "tensors",
            "none of importances".to_owned(),
            "NAME.in_sum2, NAME.counts",
        ));
    }
    let mut entries = BTreeMap::new();
    for (name, parts) in parts {
        let part = |part: Option<&'_ TensorInfo>, suffix: &str| {
            let field = format!("{name}.{suffix}");
            let tensor = part.ok_or_else(|| {
                malformed(path, &field, "no such tensor".to_owned(), "one beside the other")
            })?;
            if tensor.ty != TensorType::F32 {
                return Err(malformed(path, &field, tensor.ty.name().to_owned(), "F32"));
            }
            let values = file.data(tensor).as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
            Ok(values.collect::<Vec<f32>>())
        };
        let sums = part(parts.sums, "in_sum2")?;
        let counts = part(parts.counts, "counts")?;
        check_sums(path, name, &sums)?;
        if !sums.len().is_multiple_of(counts.len()) {
            let found = format!("{} sums for {} matrices", sums.len(), counts.len());
            return Err(malformed(path, name, found, "as many for each"));
        }
        if let Some(bad) = counts.iter().find(|count| !(0.0..=MAX_COUNT).contains(*count)) {
            return Err(malformed(path, &format!("{name}.counts"), bad.to_string(), "a number of tokens"));
        }
        let counts = counts.iter().map(|count| count.round() as u64).collect();
        entries.insert(name.to_owned(), Entry { sums, counts });
    }
    Ok(Imatrix { entries, datasets, chunk_count, chunk_size })
}

/// Checks that values are sums of squares.
pub(crate) fn check_sums(path: &Path, name: &str, sums: &[f32]) -> Result<(), Error> {
    match sums.iter().position(|sum| !(0.0..=f32::MAX).contains(sum)) {
        None => Ok(()),
        Some(at) => {
            let found = sums[at].to_string();
            Err(malformed(path, &format!("{name}: value {at}"), found, "a finite sum of squares"))
        }
    }
}

pub(crate) fn malformed(path: &Path, field: &str, found: String, expected: &str) -> Error {
    Error::Malformed {
        path: path.to_path_buf(),
        field: field.to_owned(),
        found,
        expected: expected.to_owned(),
    }
}

/// Text of a file as a message shows it.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(64).map(|c| if c.is_control() { '?' } else { c }).collect()
}
