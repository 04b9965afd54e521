//! Parses and validates everything before the tensor data.

use crate::cursor::Cursor;
use crate::error::shown;
use crate::{Error, Metadata, Value};
use quants::TensorType;
use std::collections::HashSet;
use std::path::Path;

/// Alignment of tensor data where the file does not say otherwise.
pub const DEFAULT_ALIGNMENT: u32 = 32;
/// Largest alignment accepted. Pages have 64 KiB at most, so that more serves nobody.
pub(crate) const MAX_ALIGNMENT: u32 = 1 << 20;
/// Longest key, in bytes, by the format's document.
const MAX_KEY: usize = 65535;
/// Longest tensor name that ggml can hold (`GGML_MAX_NAME` less the terminating NUL).
pub(crate) const MAX_TENSOR_NAME: usize = 63;
/// Most axes a tensor has in ggml.
pub(crate) const MAX_AXES: usize = 4;
/// Fewest bytes a metadata entry takes: a key of one byte with its length, a type, a value of one byte.
const MIN_ENTRY_BYTES: u64 = 8 + 1 + 4 + 1;
/// Fewest bytes a tensor entry takes: a name of one byte with its length, one axis, type and offset.
const MIN_TENSOR_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// Where a tensor is and what it looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Extents of 1 to 4 axes, none empty; `ne[0]` is the contiguous one.
    pub ne: Vec<u64>,
    /// Type of its elements.
    pub ty: TensorType,
    /// Which part of a split file it is in; 0 otherwise.
    pub part: usize,
    /// Where its data starts, counted from the start of that file.
    pub offset: u64,
    /// Size of its data in bytes.
    pub size: u64,
}

/// What one file says before its data.
pub(crate) struct Header {
    pub version: u32,
    pub alignment: u32,
    pub metadata: Metadata,
    pub tensors: Vec<TensorInfo>,
    pub warnings: Vec<String>,
}

pub(crate) fn parse(path: &Path, bytes: &[u8], part: usize) -> Result<Header, Error> {
    let mut cursor = Cursor::new(path, bytes);
    let version = version(path, bytes, &mut cursor)?;
    let n_tensors = count(&mut cursor, "number of tensors", MIN_TENSOR_BYTES)?;
    let n_entries = count(&mut cursor, "number of metadata entries", MIN_ENTRY_BYTES)?;
    let metadata = entries(&mut cursor, n_entries)?;
    let alignment = alignment(&cursor, &metadata)?;
    let mut tensors = Vec::new();
    let mut names = HashSet::new();
    for index in 0..n_tensors {
        let tensor = tensor(&mut cursor, index, alignment, part)?;
        if !names.insert(tensor.name.clone()) {
            return Err(cursor.malformed(
                &format!("tensor {}", tensor.name),
                "the name twice",
                "unique names",
            ));
        }
        tensors.push(tensor);
    }
    let warnings = place(&cursor, bytes.len() as u64, alignment, &mut tensors)?;
    Ok(Header { version, alignment, metadata, tensors, warnings })
}

fn version(path: &Path, bytes: &[u8], cursor: &mut Cursor<'_>) -> Result<u32, Error> {
    let magic = &bytes[..bytes.len().min(4)];
    if magic != b"GGUF" {
        let found = looks_like(bytes);
        return Err(Error::NotGguf { path: path.to_path_buf(), found });
    }
    cursor.u32("magic")?;
    match cursor.u32("version")? {
        version @ (2 | 3) => Ok(version),
        1 => Err(cursor.malformed("version", "1", "2 or 3; convert the file again with a current converter")),
        other @ 0x0100_0000..=0xff00_0000 if other.swap_bytes() <= 0xff => Err(cursor.malformed(
            "version",
            format!("{}, in big-endian byte order", other.swap_bytes()),
            "a little-endian file; big-endian files are not supported",
        )),
        other => Err(cursor.malformed("version", other.to_string(), "2 or 3")),
    }
}

/// What a file that is not GGUF seems to be.
fn looks_like(bytes: &[u8]) -> String {
    let start = bytes.trim_ascii_start();
    let begins =
        |prefix: &[u8]| start.len() >= prefix.len() && start[..prefix.len()].eq_ignore_ascii_case(prefix);
    if bytes.is_empty() {
        "an empty file".into()
    } else if begins(b"version https://git-lfs") {
        "a git-lfs pointer (the file itself was not downloaded: run `git lfs pull`)".into()
    } else if begins(b"<!doctype") || begins(b"<html") || begins(b"<?xml") {
        "a web page (the download went wrong)".into()
    } else if begins(b"PK\x03\x04") {
        "a zip archive (a PyTorch checkpoint?)".into()
    } else if begins(b"ggml") || begins(b"lmgg") || begins(b"tjgg") || begins(b"fmgg") {
        "a GGML file from before GGUF (convert the model again)".into()
    } else if bytes.len() > 9 && bytes[8] == b'{' {
        "what looks like safetensors (give bruce-quant the model's directory)".into()
    } else if bytes.starts_with(b"FUGG") {
        "a big-endian GGUF file (only little-endian ones are supported)".into()
    } else if b"GGUF".starts_with(bytes) {
        format!("only {} bytes", bytes.len())
    } else {
        let start = &bytes[..bytes.len().min(32)];
        match start.iter().all(|b| matches!(b, b' '..=b'~' | b'\t' | b'\r' | b'\n')) {
            true => format!("text that begins with {}", Value::from_bytes(start)),
            false => format!("bytes {:02x?}", &start[..start.len().min(4)]),
        }
    }
}

fn count(cursor: &mut Cursor<'_>, field: &str, min_bytes: u64) -> Result<u64, Error> {
    let n = cursor.u64(field)?;
    if n > cursor.remaining() / min_bytes {
        let expected =
            format!("at most {}, which is what the file's size allows", cursor.remaining() / min_bytes);
        return Err(cursor.malformed(field, n.to_string(), expected));
    }
    Ok(n)
}

fn entries(cursor: &mut Cursor<'_>, n: u64) -> Result<Metadata, Error> {
    let mut metadata = Metadata::of_file(cursor.path());
    for index in 0..n {
        let field = format!("metadata entry {index}");
        let key = cursor.string(&field)?;
        check_key(key).map_err(|(found, expected)| cursor.malformed(&field, found, expected))?;
        let ty = cursor.u32(key)?;
        let value = cursor.value(ty, key)?;
        if metadata.insert(key, value).is_some() {
            return Err(cursor.malformed(key, "the key twice", "unique keys"));
        }
    }
    Ok(metadata)
}

/// What is wrong with a key, and what would be right.
pub(crate) fn check_key(key: &str) -> Result<(), (String, String)> {
    if key.is_empty() {
        Err(("an empty key".into(), "a name".into()))
    } else if key.len() > MAX_KEY {
        Err((format!("a key of {} bytes", key.len()), format!("at most {MAX_KEY}")))
    } else if key.chars().any(char::is_control) {
        Err((format!("key \"{}\"", shown(key)), "a name without control characters".into()))
    } else {
        Ok(())
    }
}

fn alignment(cursor: &Cursor<'_>, metadata: &Metadata) -> Result<u32, Error> {
    const KEY: &str = "general.alignment";
    match metadata.get(KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(n)) if n.is_power_of_two() && *n <= MAX_ALIGNMENT => Ok(*n),
        Some(Value::U32(n)) => {
            Err(cursor.malformed(KEY, n.to_string(), format!("a power of two up to {MAX_ALIGNMENT}")))
        }
        Some(other) => Err(cursor.malformed(KEY, format!("{other} ({})", other.type_name()), "a u32")),
    }
}

fn tensor(cursor: &mut Cursor<'_>, index: u64, alignment: u32, part: usize) -> Result<TensorInfo, Error> {
    let field = format!("tensor entry {index}");
    let name = cursor.string(&field)?.to_owned();
    check_name(&name).map_err(|(found, expected)| cursor.malformed(&field, found, expected))?;
    let field = format!("tensor {name}");
    let n_axes = cursor.u32(&field)?;
    if !(1..=MAX_AXES as u32).contains(&n_axes) {
        return Err(cursor.malformed(&field, format!("{n_axes} axes"), format!("1 to {MAX_AXES}")));
    }
    let ne = (0..n_axes).map(|_| cursor.u64(&field)).collect::<Result<Vec<u64>, Error>>()?;
    let id = cursor.u32(&field)?;
    let offset = cursor.u64(&field)?;
    let ty = TensorType::from_id(id)
        .ok_or_else(|| cursor.malformed(&field, format!("type {id}"), "a type that ggml has"))?;
    let size = size_bytes(ty, &ne).map_err(|(found, expected)| cursor.malformed(&field, found, expected))?;
    if !offset.is_multiple_of(u64::from(alignment)) {
        return Err(cursor.malformed(
            &field,
            format!("offset {offset}"),
            format!("a multiple of {alignment}"),
        ));
    }
    Ok(TensorInfo { name, ne, ty, part, offset, size })
}

/// What is wrong with a tensor's name, and what would be right.
pub(crate) fn check_name(name: &str) -> Result<(), (String, String)> {
    if name.is_empty() {
        Err(("an empty name".into(), "a name".into()))
    } else if name.len() > MAX_TENSOR_NAME {
        Err((format!("a name of {} bytes", name.len()), format!("at most {MAX_TENSOR_NAME}")))
    } else if name.chars().any(char::is_control) {
        Err((format!("name \"{}\"", shown(name)), "a name without control characters".into()))
    } else {
        Ok(())
    }
}

/// Bytes of a tensor's data, or what is wrong with its shape and what would be right.
pub(crate) fn size_bytes(ty: TensorType, ne: &[u64]) -> Result<u64, (String, String)> {
    // ggml counts in signed 64-bit numbers.
    let shape = || format!("shape {ne:?}");
    if ne.iter().any(|n| *n == 0 || *n > i64::MAX as u64) {
        return Err((shape(), "extents from 1 to 9223372036854775807".into()));
    }
    let elements =
        ne.iter().try_fold(1u64, |product, n| product.checked_mul(*n)).filter(|n| *n <= i64::MAX as u64);
    if elements.is_none() {
        return Err((shape(), "a number of elements that fits in 63 bits".into()));
    }
    if !ne[0].is_multiple_of(ty.block_len() as u64) {
        let expected = format!("rows of whole blocks of {} for {}", ty.block_len(), ty.name());
        return Err((shape(), expected));
    }
    ty.row_bytes(ne[0])
        .and_then(|row| ne[1..].iter().try_fold(row, |product, n| product.checked_mul(*n)))
        .filter(|size| *size <= i64::MAX as u64)
        .ok_or_else(|| (format!("{} of {}", shape(), ty.name()), "a size that fits in 63 bits".into()))
}

/// Turns offsets within the data section into offsets within the file, after checking that every tensor lies inside
/// the file and none on another. Returns warnings.
fn place(
    cursor: &Cursor<'_>,
    file_size: u64,
    alignment: u32,
    tensors: &mut [TensorInfo],
) -> Result<Vec<String>, Error> {
    let start = (cursor.position() as u64).next_multiple_of(u64::from(alignment));
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|i| tensors[*i].offset);
    let mut end_of_last = 0u64;
    let mut last: Option<usize> = None;
    for index in order {
        let tensor = &tensors[index];
        let field = format!("tensor {}", tensor.name);
        if let Some(before) = last.filter(|_| tensor.offset < end_of_last) {
            let expected = format!("{end_of_last} or more, where tensor {} ends", tensors[before].name);
            return Err(cursor.malformed(&field, format!("offset {}", tensor.offset), expected));
        }
        let end = tensor.offset.checked_add(tensor.size);
        match end.and_then(|end| end.checked_add(start)) {
            Some(end) if end <= file_size => {}
            other => {
                let needed = other.unwrap_or(u64::MAX);
                return Err(Error::Truncated {
                    needed,
                    size: file_size,
                    path: cursor.path().to_path_buf(),
                    field,
                });
            }
        }
        end_of_last = tensor.offset + tensor.size;
        last = Some(index);
    }
    for tensor in tensors.iter_mut() {
        tensor.offset += start;
    }
    let end = start.saturating_add(end_of_last.next_multiple_of(u64::from(alignment)));
    let extra = file_size.saturating_sub(end);
    let mut warnings = Vec::new();
    if extra > 0 {
        warnings.push(format!(
            "{}: {extra} bytes after the end of the data are not used",
            cursor.path().display()
        ));
    }
    Ok(warnings)
}
