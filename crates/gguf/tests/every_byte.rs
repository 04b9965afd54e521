//! A tiny file cut at every byte, and with every bit of its header flipped: an error, or a file all of whose contents
//! can be used. Never a panic.

mod support;

use gguf::{Error, Gguf};
use std::path::{Path, PathBuf};
use support::*;

struct Folder {
    dir: tempfile::TempDir,
}

impl Folder {
    fn new() -> Folder {
        Folder { dir: tempfile::tempdir().expect("a temporary folder") }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("model.gguf")
    }

    fn open(&self, bytes: &[u8]) -> Result<Gguf, Error> {
        std::fs::write(self.path(), bytes).expect("a writable folder");
        Gguf::open(&self.path())
    }
}

/// Touches everything that a file gives out.
fn use_all(gguf: &Gguf, path: &Path) -> usize {
    let size = std::fs::metadata(path).expect("the file").len();
    assert_eq!(gguf.file_size(), size);
    let mut sum = 0;
    for tensor in gguf.tensors() {
        assert!(tensor.offset + tensor.size <= size);
        let data = gguf.data(tensor);
        assert_eq!(data.len() as u64, tensor.size);
        sum += data.iter().map(|b| *b as usize).sum::<usize>();
        assert_eq!(gguf.tensor(&tensor.name), Some(tensor));
    }
    for (key, value) in gguf.metadata().iter() {
        assert!(gguf.metadata().get(key).is_some_and(|found| std::ptr::eq(found, value)));
        sum += value.to_string().len();
    }
    sum
}

/// A file with something of everything.
fn tiny() -> Raw {
    Raw::new()
        .entry("general.architecture", STRING, &string("llama"))
        .entry("general.alignment", U32, &32u32.to_le_bytes())
        .entry("flag", BOOL, &[1])
        .entry("count", U64, &7u64.to_le_bytes())
        .entry("list", ARRAY, &array(STRING, 2, &[string("x"), string("yz")].concat()))
        .entry("numbers", ARRAY, &array(I32, 2, &[1, 0, 0, 0, 2, 0, 0, 0]))
        .tensor("a", &[32, 2], 8, 0)
        .tensor("b", &[4, 2, 1, 1], 0, 96)
        .data(128)
}

#[test]
fn every_prefix_is_an_error() {
    let (folder, whole) = (Folder::new(), tiny().bytes());
    let header = tiny().header().len();
    for len in 0..whole.len() {
        let error = folder.open(&whole[..len]).expect_err("a part of a file");
        reason(&error, &folder.path());
        let cut_short = matches!(error, Error::Truncated { .. });
        assert!(cut_short || len < header, "{len}: {error}");
    }
    use_all(&folder.open(&whole).expect("the whole file"), &folder.path());
}

#[test]
fn every_flipped_bit_is_an_error_or_a_valid_file() {
    let (folder, whole) = (Folder::new(), tiny().bytes());
    let header = tiny().header().len();
    let (mut refused, mut accepted) = (0, 0);
    for bit in 0..header * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        match folder.open(&bytes) {
            Ok(gguf) => {
                use_all(&gguf, &folder.path());
                accepted += 1;
            }
            Err(error) => {
                reason(&error, &folder.path());
                refused += 1;
            }
        }
    }
    // Letters of names and values of numbers can change into others; lengths and counts can't.
    assert!(refused > header * 4, "{refused} of {} refused", header * 8);
    assert!(accepted > header / 2, "{accepted} of {} accepted", header * 8);
}

#[test]
fn every_byte_set_to_extremes_is_an_error_or_a_valid_file() {
    let (folder, whole) = (Folder::new(), tiny().bytes());
    for at in 0..tiny().header().len() {
        for extreme in [0x00, 0x7f, 0xff] {
            let mut bytes = whole.clone();
            // Whole numbers, where one begins here.
            for len in [4, 8] {
                let end = (at + len).min(bytes.len());
                bytes[at..end].fill(extreme);
                match folder.open(&bytes) {
                    Ok(gguf) => drop(use_all(&gguf, &folder.path())),
                    Err(error) => drop(reason(&error, &folder.path())),
                }
            }
        }
    }
}
