//! Where everything of a new file goes, or of several that are its parts, known before the first byte is written.

use crate::error::shown;
use crate::header::{DEFAULT_ALIGNMENT, MAX_ALIGNMENT, MAX_AXES, check_key, check_name, size_bytes};
use crate::split::{self, SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS};
use crate::{Array, Error, Metadata, Value};
use quants::TensorType;
use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name, at most 63 bytes.
    pub name: String,
    /// Extents of 1 to 4 axes, `ne[0]` contiguous.
    pub ne: Vec<u64>,
    /// Type of its elements.
    pub ty: TensorType,
}

/// The header of a new file, or of each of its parts, and the place of every tensor.
#[derive(Clone, Debug)]
pub struct Layout {
    parts: Vec<Part>,
    names: Vec<String>,
    /// Part and place of each tensor.
    places: Vec<(usize, Range<u64>)>,
}

#[derive(Clone, Debug)]
struct Part {
    header: Vec<u8>,
    size: u64,
}

const ALIGNMENT_KEY: &str = "general.alignment";

impl Layout {
    /// Lays out version 3 of the format: metadata and tensors in the order given, data in the same order. An alignment
    /// other than 32 is recorded in the metadata, as readers expect.
    ///
    /// # Errors
    /// [`Error::Layout`] when the alignment is not a power of two or contradicts the metadata, a key or name is empty,
    /// too long or there twice, or a shape is impossible: in all cases where [`Gguf`](crate::Gguf) would refuse the file.
    pub fn new(metadata: &Metadata, tensors: &[TensorSpec], alignment: u32) -> Result<Layout, Error> {
        Self::in_parts(metadata, tensors, alignment, &vec![0; tensors.len()])
    }

    /// As [`new`](Self::new), in several files; `part_of` has the part of each tensor, from 0 on and never falling. The
    /// first part has the metadata, and where there are several each says which one it is, as llama-gguf-split has it.
    ///
    /// # Errors
    /// As [`new`](Self::new); also for more than 65535 parts.
    ///
    /// # Panics
    /// When `part_of` is not as described.
    pub fn in_parts(
        metadata: &Metadata,
        tensors: &[TensorSpec],
        alignment: u32,
        part_of: &[usize],
    ) -> Result<Layout, Error> {
        assert!(part_of.len() == tensors.len() && part_of.is_sorted(), "a part for each tensor, in order");
        let n_parts = part_of.last().map_or(1, |last| last + 1);
        let Ok(split_count) = u16::try_from(n_parts) else {
            return Err(wrong(SPLIT_COUNT, n_parts.to_string(), "at most 65535 parts".to_owned()));
        };
        if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
            let expected = format!("a power of two up to {MAX_ALIGNMENT}");
            return Err(wrong(ALIGNMENT_KEY, alignment.to_string(), expected));
        }
        match metadata.get(ALIGNMENT_KEY) {
            Some(value) if *value != Value::U32(alignment) => {
                return Err(wrong(ALIGNMENT_KEY, value.to_string(), alignment.to_string()));
            }
            _ => {}
        }
        let mut seen = HashSet::new();
        if let Some(twice) = tensors.iter().find(|tensor| !seen.insert(&tensor.name)) {
            let field = format!("tensor {}", shown(&twice.name));
            return Err(wrong(&field, "the name twice".to_owned(), "unique names".to_owned()));
        }
        let mut layout = Layout { parts: Vec::new(), names: Vec::new(), places: Vec::new() };
        let mut rest = tensors;
        for part in 0..n_parts {
            let n = part_of.iter().filter(|p| **p == part).count();
            let (here, later) = rest.split_at(n);
            rest = later;
            let mut metadata = if part == 0 { Cow::Borrowed(metadata) } else { Cow::Owned(Metadata::new()) };
            if !metadata.contains(ALIGNMENT_KEY) && alignment != DEFAULT_ALIGNMENT {
                metadata.to_mut().set(ALIGNMENT_KEY, alignment);
            }
            if n_parts > 1 {
                let metadata = metadata.to_mut();
                metadata.set(SPLIT_NO, part as u16);
                metadata.set(SPLIT_COUNT, split_count);
                metadata.set(SPLIT_TENSORS, tensors.len() as i32);
            }
            layout.add_part(&metadata, here, alignment)?;
        }
        Ok(layout)
    }

    fn add_part(&mut self, metadata: &Metadata, tensors: &[TensorSpec], alignment: u32) -> Result<(), Error> {
        let mut header = Vec::new();
        header.extend(b"GGUF");
        header.extend(3u32.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((metadata.len() as u64).to_le_bytes());
        for (index, (key, value)) in metadata.iter().enumerate() {
            check_key(key)
                .map_err(|(found, expected)| wrong(&format!("metadata entry {index}"), found, expected))?;
            put_string(&mut header, key.as_bytes());
            put_value(&mut header, value);
        }
        let mut offsets = Vec::with_capacity(tensors.len());
        let mut end = 0u64;
        for tensor in tensors {
            let field = format!("tensor {}", shown(&tensor.name));
            check_name(&tensor.name).map_err(|(found, expected)| wrong(&field, found, expected))?;
            if !(1..=MAX_AXES).contains(&tensor.ne.len()) {
                return Err(wrong(&field, format!("{} axes", tensor.ne.len()), format!("1 to {MAX_AXES}")));
            }
            let size = size_bytes(tensor.ty, &tensor.ne)
                .map_err(|(found, expected)| wrong(&field, found, expected))?;
            put_string(&mut header, tensor.name.as_bytes());
            header.extend((tensor.ne.len() as u32).to_le_bytes());
            tensor.ne.iter().for_each(|n| header.extend(n.to_le_bytes()));
            header.extend(tensor.ty.id().to_le_bytes());
            header.extend(end.to_le_bytes());
            offsets.push(end..end + size);
            end = (end + size)
                .checked_next_multiple_of(u64::from(alignment))
                .filter(|end| *end <= i64::MAX as u64)
                .ok_or_else(|| {
                    wrong(&field, "data beyond 63 bits".to_owned(), "a smaller file".to_owned())
                })?;
        }
        header.resize(header.len().next_multiple_of(alignment as usize), 0);
        let start = header.len() as u64;
        let part = self.parts.len();
        self.names.extend(tensors.iter().map(|t| t.name.clone()));
        self.places.extend(offsets.into_iter().map(|r| (part, start + r.start..start + r.end)));
        self.parts.push(Part { header, size: start + end });
        Ok(())
    }

    /// Number of files.
    pub fn n_parts(&self) -> usize {
        self.parts.len()
    }

    /// Everything before the data, padding included; of the first part, where there are several.
    pub fn header(&self) -> &[u8] {
        self.part_header(0)
    }

    /// As [`header`](Self::header), of any part.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn part_header(&self, part: usize) -> &[u8] {
        &self.parts[part].header
    }

    /// Size of a finished part in bytes.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn part_size(&self, part: usize) -> u64 {
        self.parts[part].size
    }

    /// Number of tensors.
    pub fn n_tensors(&self) -> usize {
        self.places.len()
    }

    /// Name of the `index`-th tensor.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn tensor_name(&self, index: usize) -> &str {
        &self.names[index]
    }

    /// Where the data of the `index`-th tensor goes, counted from the start of its part.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn tensor_range(&self, index: usize) -> Range<u64> {
        self.places[index].1.clone()
    }

    /// The part that holds the `index`-th tensor.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn tensor_part(&self, index: usize) -> usize {
        self.places[index].0
    }

    /// Size of all finished files in bytes.
    pub fn total_size(&self) -> u64 {
        self.parts.iter().map(|part| part.size).sum()
    }

    /// The files of an output called `target`: it, or its parts.
    pub fn file_names(&self, target: &Path) -> Vec<PathBuf> {
        split::file_names(target, self.parts.len())
    }
}

/// The part of each tensor where a part ends before its data exceeds `max_bytes`; a larger tensor has a part of its own.
/// As llama-gguf-split counts: data with its padding, without the header.
pub fn parts_of_size(tensors: &[TensorSpec], max_bytes: u64) -> Vec<usize> {
    let (mut part, mut size, mut parts) = (0, 0u64, Vec::with_capacity(tensors.len()));
    for tensor in tensors {
        // An impossible shape is an error of the layout.
        let bytes = size_bytes(tensor.ty, &tensor.ne).unwrap_or(0).next_multiple_of(DEFAULT_ALIGNMENT.into());
        if size > 0 && size.saturating_add(bytes) > max_bytes {
            part += 1;
            size = 0;
        }
        size = size.saturating_add(bytes);
        parts.push(part);
    }
    parts
}

fn wrong(field: &str, found: String, expected: String) -> Error {
    Error::Layout { field: field.to_owned(), found, expected }
}

fn put_string(out: &mut Vec<u8>, string: &[u8]) {
    out.extend((string.len() as u64).to_le_bytes());
    out.extend(string);
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    out.extend(value.type_id().to_le_bytes());
    match value {
        Value::U8(v) => out.push(*v),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::String(v) => put_string(out, v.as_bytes()),
        Value::Bytes(v) => put_string(out, v),
        Value::Array(v) => put_array(out, v),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend(array.type_id().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend(v),
        Array::I8(v) => out.extend(v.iter().flat_map(|n| n.to_le_bytes())),
        Array::U16(v) => out.extend(v.iter().flat_map(|n| n.to_le_bytes())),
        Array::I16(v) => out.extend(v.iter().flat_map(|n| n.to_le_bytes())),
        Array::U32(v) => out.extend(v.iter().flat_map(|n| n.to_le_bytes())),
        Array::I32(v) => out.extend(v.iter().flat_map(|n| n.to_le_bytes())),
        Array::F32(v) => out.extend(v.iter().flat_map(|n| n.to_le_bytes())),
        Array::Bool(v) => out.extend(v.iter().map(|b| u8::from(*b))),
        Array::String(v) => v.iter().for_each(|text| put_string(out, text.as_bytes())),
        Array::Bytes(v) => v.iter().for_each(|string| put_string(out, string)),
        Array::U64(v) => out.extend(v.iter().flat_map(|n| n.to_le_bytes())),
        Array::I64(v) => out.extend(v.iter().flat_map(|n| n.to_le_bytes())),
        Array::F64(v) => out.extend(v.iter().flat_map(|n| n.to_le_bytes())),
    }
}
