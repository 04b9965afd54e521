//! Builds files byte by byte, right and wrong ones, and looks at what the reader says about them.
#![allow(dead_code, reason = "each test program uses a part")]

use gguf::Gguf;
use std::path::Path;

pub const U8: u32 = 0;
pub const U32: u32 = 4;
pub const I32: u32 = 5;
pub const F32: u32 = 6;
pub const BOOL: u32 = 7;
pub const STRING: u32 = 8;
pub const ARRAY: u32 = 9;
pub const U64: u32 = 10;

/// A string as the format stores it.
pub fn string(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

/// An array as the format stores it, after its type; `len` need not be true.
pub fn array(ty: u32, len: u64, elements: &[u8]) -> Vec<u8> {
    [&ty.to_le_bytes()[..], &len.to_le_bytes(), elements].concat()
}

/// A file whose every field can be chosen freely.
pub struct Raw {
    pub magic: [u8; 4],
    pub version: u32,
    pub n_tensors: u64,
    pub n_entries: u64,
    entries: Vec<u8>,
    tensors: Vec<u8>,
    alignment: usize,
    data: Vec<u8>,
}

impl Raw {
    /// A file without entries and tensors.
    pub fn new() -> Raw {
        Raw {
            magic: *b"GGUF",
            version: 3,
            n_tensors: 0,
            n_entries: 0,
            entries: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
            data: Vec::new(),
        }
    }

    /// A small file that is all right: three entries, and F32 tensors "a" (8 values) and "b" (4 by 4).
    pub fn tiny() -> Raw {
        Raw::new()
            .entry("general.architecture", STRING, &string("llama"))
            .entry("flag", BOOL, &[1])
            .entry("list", ARRAY, &array(STRING, 2, &[string("x"), string("yz")].concat()))
            .tensor("a", &[8], 0, 0)
            .tensor("b", &[4, 4], 0, 32)
            .data(96)
    }

    /// Adds an entry and counts it.
    pub fn entry(mut self, key: impl AsRef<[u8]>, ty: u32, value: &[u8]) -> Raw {
        self.entries.extend(string(key));
        self.entries.extend(ty.to_le_bytes());
        self.entries.extend(value);
        self.n_entries += 1;
        self
    }

    /// Adds a tensor and counts it; `offset` is within the data.
    pub fn tensor(mut self, name: impl AsRef<[u8]>, ne: &[u64], ty: u32, offset: u64) -> Raw {
        self.tensors.extend(string(name));
        self.tensors.extend((ne.len() as u32).to_le_bytes());
        ne.iter().for_each(|n| self.tensors.extend(n.to_le_bytes()));
        self.tensors.extend(ty.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self.n_tensors += 1;
        self
    }

    /// Adds bytes to the data, which count up from 1.
    pub fn data(mut self, n: usize) -> Raw {
        let first = self.data.len();
        self.data.extend((first..first + n).map(|i| (i + 1) as u8));
        self
    }

    /// Pads the header to another multiple, without saying so in an entry.
    pub fn aligned(mut self, alignment: usize) -> Raw {
        self.alignment = alignment;
        self
    }

    /// Everything before the data, without padding.
    pub fn header(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.magic);
        out.extend(self.version.to_le_bytes());
        out.extend(self.n_tensors.to_le_bytes());
        out.extend(self.n_entries.to_le_bytes());
        out.extend(&self.entries);
        out.extend(&self.tensors);
        out
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.header();
        if self.n_tensors > 0 {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
        }
        out.extend(&self.data);
        out
    }
}

/// The file at `path` opened; panics when it is refused.
pub fn open(path: &Path) -> Gguf {
    Gguf::open(path).unwrap_or_else(|error| panic!("{error}"))
}

/// Opens a file of these bytes and gives what `look` says about it.
pub fn accepted<T>(bytes: &[u8], look: impl FnOnce(&Gguf) -> T) -> T {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).expect("a writable folder");
    look(&open(&path))
}

/// The reason why a file of these bytes is refused, without the file's name, after checking its form.
pub fn refused(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).expect("a writable folder");
    let error = Gguf::open(&path).expect_err("a file that must be refused");
    reason(&error, &path)
}

/// The message of an error without the file's name, after checking its form.
pub fn reason(error: &gguf::Error, path: &Path) -> String {
    let message = error.to_string();
    assert_eq!(error.path(), Some(path), "{message}");
    let rest = message.strip_prefix(&format!("{}: ", path.display()));
    let rest = rest.unwrap_or_else(|| panic!("{message:?} does not begin with the file"));
    assert!(!message.contains(char::is_control), "{message:?} is not one harmless line");
    assert!(rest.contains(": found ") && rest.contains(", "), "{message:?} has no field or finding");
    rest.to_owned()
}
