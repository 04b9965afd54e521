//! Opens a GGUF file, or all parts of a split one, and lends its tensors.

use crate::error::kind_of;
use crate::header::{self, Header, TensorInfo};
use crate::split::{SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS};
use crate::{Error, Metadata, SplitName, mmap};
use memmap2::Mmap;
use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An opened file: metadata and tensors are checked, data is mapped and read where it is used.
pub struct Gguf {
    path: PathBuf,
    paths: Vec<PathBuf>,
    maps: Vec<Arc<Mmap>>,
    version: u32,
    alignment: u32,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    index: HashMap<String, usize>,
    warnings: Vec<String>,
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gguf({}, {} tensors)", self.path.display(), self.tensors.len())
    }
}

impl Gguf {
    /// Opens a file and validates everything in it but the tensors' data. Any part of a split file
    /// (`name-00001-of-00003.gguf`) opens all of them.
    ///
    /// # Errors
    /// Names file and field, with what was found and what was expected.
    pub fn open(path: &Path) -> Result<Gguf, Error> {
        let (map, first) = open_one(path, 0)?;
        let n_parts = split_number(path, &first.metadata, SPLIT_COUNT)?.unwrap_or(0);
        if n_parts > 1 {
            return Self::open_split(path, n_parts);
        }
        Self::assemble(path, vec![(path.to_path_buf(), map, first)])
    }

    fn open_split(path: &Path, n_parts: u32) -> Result<Gguf, Error> {
        let Some(name) = SplitName::of(path) else {
            let found = format!("{n_parts}, in a file of another name");
            let expected =
                "a name that ends in -0000I-of-0000N.gguf, by which the other parts are found".to_owned();
            return Err(malformed(path, SPLIT_COUNT, found, expected));
        };
        if name.n_parts() != n_parts {
            let expected = format!("{}, as in the file's name", name.n_parts());
            return Err(malformed(path, SPLIT_COUNT, n_parts.to_string(), expected));
        }
        let paths: Vec<PathBuf> = (0..n_parts).map(|i| name.part(i)).collect();
        let missing: Vec<PathBuf> = paths.iter().filter(|p| !p.exists()).cloned().collect();
        if !missing.is_empty() {
            return Err(Error::MissingParts { path: path.to_path_buf(), missing, expected: paths.len() });
        }
        let mut parts = Vec::new();
        for (index, part) in paths.into_iter().enumerate() {
            let (map, header) = open_one(&part, index)?;
            // The first part's count is the one that was followed; the others may leave it out.
            for (key, expected, needed) in
                [(SPLIT_NO, index as u32, true), (SPLIT_COUNT, n_parts, index == 0)]
            {
                let found = split_number(&part, &header.metadata, key)?;
                if found != Some(expected) && (needed || found.is_some()) {
                    let found = found.map_or("no such key".to_owned(), |n| n.to_string());
                    return Err(malformed(&part, key, found, expected.to_string()));
                }
            }
            parts.push((part, map, header));
        }
        let n_tensors: usize = parts.iter().map(|(_, _, header)| header.tensors.len()).sum();
        for (index, (part, _, header)) in parts.iter().enumerate() {
            let declared = split_number(part, &header.metadata, SPLIT_TENSORS)?;
            if declared.is_some_and(|n| n as usize != n_tensors) || (declared.is_none() && index == 0) {
                let found = declared.map_or("no such key".to_owned(), |n| n.to_string());
                return Err(malformed(part, SPLIT_TENSORS, found, format!("{n_tensors}, as the parts hold")));
            }
        }
        Self::assemble(path, parts)
    }

    fn assemble(path: &Path, parts: Vec<(PathBuf, Arc<Mmap>, Header)>) -> Result<Gguf, Error> {
        let mut gguf = Gguf {
            path: path.to_path_buf(),
            paths: Vec::new(),
            maps: Vec::new(),
            version: parts[0].2.version,
            alignment: parts[0].2.alignment,
            metadata: Metadata::new(), // replaced by the first part's
            tensors: Vec::new(),
            index: HashMap::new(),
            warnings: Vec::new(),
        };
        for (part, map, header) in parts {
            for tensor in header.tensors {
                if gguf.index.insert(tensor.name.clone(), gguf.tensors.len()).is_some() {
                    let field = format!("tensor {}", tensor.name);
                    let found = "the name of one in another part".to_owned();
                    return Err(malformed(&part, &field, found, "unique names".to_owned()));
                }
                gguf.tensors.push(tensor);
            }
            if gguf.paths.is_empty() {
                gguf.metadata = header.metadata;
            }
            gguf.warnings.extend(header.warnings);
            gguf.paths.push(part);
            gguf.maps.push(map);
        }
        Ok(gguf)
    }

    /// The file that was opened, which may be any part of a split one.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All files: one, or the parts in order.
    pub fn parts(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Version of the format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Alignment of tensor data in bytes.
    pub fn alignment(&self) -> u32 {
        self.alignment
    }

    /// Metadata, of the first part where there are several.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// All tensors in the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of a name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).map(|at| &self.tensors[*at])
    }

    /// A tensor's bytes, where they are mapped.
    ///
    /// # Panics
    /// When `tensor` is not one of this file's.
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        let start = tensor.offset as usize;
        &self.maps[tensor.part][start..start + tensor.size as usize]
    }

    /// The mapping of a part, for those who keep using the data after the `Gguf` is gone.
    pub fn mapping(&self, part: usize) -> Arc<Mmap> {
        Arc::clone(&self.maps[part])
    }

    /// Asks the system to read the data of these tensors soon, so that later use need not wait for the disk. Returns at
    /// once; where the system can't, nothing happens.
    pub fn prefetch<'a>(&self, tensors: impl IntoIterator<Item = &'a TensorInfo>) {
        for tensor in tensors {
            mmap::will_need(&self.maps[tensor.part], tensor.offset, tensor.size);
        }
    }

    /// As [`prefetch`](Self::prefetch), for `len` bytes of one tensor's data from `offset` on.
    pub fn prefetch_part(&self, tensor: &TensorInfo, offset: u64, len: u64) {
        let len = len.min(tensor.size.saturating_sub(offset));
        mmap::will_need(&self.maps[tensor.part], tensor.offset + offset, len);
    }

    /// Lets go of the memory that `len` bytes of a tensor's data from `offset` on take; they are read again when they are
    /// used again.
    pub fn release(&self, tensor: &TensorInfo, offset: u64, len: u64) {
        let len = len.min(tensor.size.saturating_sub(offset));
        mmap::release(&self.maps[tensor.part], tensor.offset + offset, len);
    }

    /// Bytes of all files.
    pub fn file_size(&self) -> u64 {
        self.maps.iter().map(|map| map.len() as u64).sum()
    }

    /// What is odd but does no harm.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

fn malformed(path: &Path, field: &str, found: String, expected: String) -> Error {
    Error::Malformed { path: path.to_path_buf(), field: field.to_owned(), found, expected }
}

fn split_number(path: &Path, metadata: &Metadata, key: &str) -> Result<Option<u32>, Error> {
    metadata.u32(key).map_err(|error| match error {
        Error::ValueType { key, found, expected, .. } => malformed(path, &key, found, expected.to_owned()),
        other => other,
    })
}

fn open_one(path: &Path, part: usize) -> Result<(Arc<Mmap>, Header), Error> {
    // Asked before opening: opening a pipe would wait for somebody to write to it.
    let metadata = fs::metadata(path).map_err(Error::io(path, "open"))?;
    if let Some(kind) = kind_of(&metadata) {
        let found = if path.join("config.json").exists() {
            format!("{kind} with a checkpoint (bruce-quant makes a GGUF file of it)")
        } else {
            kind.to_owned()
        };
        return Err(Error::NotGguf { path: path.to_path_buf(), found });
    }
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let map = mmap::map(path, &file)?;
    let header = header::parse(path, &map, part)?;
    Ok((map, header))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opened_file_may_be_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Gguf>();
    }
}
