//! Where everything of a new file goes, known before the first byte is written.

use crate::error::shown;
use crate::header::{DEFAULT_ALIGNMENT, MAX_ALIGNMENT, MAX_AXES, check_key, check_name, size_bytes};
use crate::{Array, Error, Metadata, Value};
use quants::TensorType;
use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;

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

/// The header of a new file and the place of every tensor in it.
#[derive(Clone, Debug)]
pub struct Layout {
    header: Vec<u8>,
    names: Vec<String>,
    ranges: Vec<Range<u64>>,
    total_size: u64,
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
        let wrong = |field: &str, found: String, expected: String| Error::Layout {
            field: field.to_owned(),
            found,
            expected,
        };
        if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
            let expected = format!("a power of two up to {MAX_ALIGNMENT}");
            return Err(wrong(ALIGNMENT_KEY, alignment.to_string(), expected));
        }
        let mut metadata = Cow::Borrowed(metadata);
        match metadata.get(ALIGNMENT_KEY) {
            Some(value) if *value != Value::U32(alignment) => {
                return Err(wrong(ALIGNMENT_KEY, value.to_string(), alignment.to_string()));
            }
            None if alignment != DEFAULT_ALIGNMENT => {
                metadata.to_mut().insert(ALIGNMENT_KEY, alignment);
            }
            _ => {}
        }
        let mut seen = HashSet::new();
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
            if !seen.insert(&tensor.name) {
                return Err(wrong(&field, "the name twice".to_owned(), "unique names".to_owned()));
            }
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
        Ok(Layout {
            header,
            names: tensors.iter().map(|t| t.name.clone()).collect(),
            ranges: offsets.into_iter().map(|r| start + r.start..start + r.end).collect(),
            total_size: start + end,
        })
    }

    /// Everything before the data, padding included.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Number of tensors.
    pub fn n_tensors(&self) -> usize {
        self.ranges.len()
    }

    /// Name of the `index`-th tensor.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn tensor_name(&self, index: usize) -> &str {
        &self.names[index]
    }

    /// Where the data of the `index`-th tensor goes, counted from the start of the file.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn tensor_range(&self, index: usize) -> Range<u64> {
        self.ranges[index].clone()
    }

    /// Size of the finished file in bytes.
    pub fn total_size(&self) -> u64 {
        self.total_size
    }
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
