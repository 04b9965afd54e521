//! Output appears under its name only when it is complete, and nothing is left otherwise.

use gguf::{Error, Layout, Metadata, Overwrite, TensorSpec, Writer};
use quants::TensorType;
use std::fs;
use std::path::{Path, PathBuf};

/// Two tensors, of 32 and 12 bytes.
fn layout() -> Layout {
    let spec = |name: &str, n| TensorSpec { name: name.to_owned(), ne: vec![n], ty: TensorType::F32 };
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "llama");
    Layout::new(&metadata, &[spec("a", 8), spec("b", 3)], 32).expect("a possible layout")
}

fn fill(writer: &Writer) {
    writer.write_at(0, 0, &[1; 32]).expect("room");
    writer.write_at(1, 0, &[2; 12]).expect("room");
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let target = dir.path().join("model.gguf");
    (dir, target)
}

#[test]
fn a_file_has_its_name_only_when_it_is_complete() {
    let (dir, target) = folder();
    let writer = Writer::create(&target, layout(), Overwrite::Refuse).expect("a writable folder");
    fill(&writer);
    let during = names(dir.path());
    assert_eq!(during.len(), 1);
    assert!(during[0].starts_with(".model.gguf.") && during[0].ends_with(".partial"), "{during:?}");
    let size = writer.finish().expect("a complete file");
    assert_eq!(names(dir.path()), ["model.gguf"]);
    let bytes = fs::read(&target).expect("the file");
    assert_eq!(bytes.len() as u64, size);
    assert_eq!(bytes[..size as usize - 64], *layout().header());
    assert_eq!(bytes[size as usize - 32..], [[2; 12].as_slice(), &[0; 20]].concat());
}

#[test]
fn a_writer_that_is_dropped_leaves_nothing() {
    let (dir, target) = folder();
    let writer = Writer::create(&target, layout(), Overwrite::Refuse).expect("a writable folder");
    fill(&writer);
    drop(writer);
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn a_file_with_a_hole_is_not_finished() {
    for (writes, tensor, found) in [
        (&[(0, 0, 32)][..], "b", "0 bytes written, expected 12"),
        (&[(0, 0, 32), (1, 0, 4), (1, 8, 4)], "b", "8 bytes written, expected 12"),
        // As many bytes as there are, but some twice.
        (&[(1, 0, 12), (0, 0, 20), (0, 8, 12)], "a", "20 bytes written, expected 32"),
    ] {
        let (dir, target) = folder();
        let writer = Writer::create(&target, layout(), Overwrite::Refuse).expect("a writable folder");
        for (tensor, offset, len) in writes {
            writer.write_at(*tensor, *offset, &vec![7; *len]).expect("room");
        }
        let error = writer.finish().expect_err("a hole").to_string();
        assert_eq!(error, format!("{}: tensor {tensor}: found {found}", target.display()));
        assert_eq!(names(dir.path()), [""; 0]);
    }
}

#[test]
fn an_existing_file_is_refused_at_once_and_not_touched() {
    let (dir, target) = folder();
    fs::write(&target, "old").expect("a writable folder");
    let error = Writer::create(&target, layout(), Overwrite::Refuse).expect_err("it exists");
    assert!(matches!(&error, Error::Exists { path } if *path == target), "{error}");
    assert_eq!(names(dir.path()), ["model.gguf"]);
    assert_eq!(fs::read(&target).expect("the old file"), b"old");
}

#[test]
fn an_existing_file_is_replaced_only_by_a_complete_one() {
    let (dir, target) = folder();
    fs::write(&target, "old").expect("a writable folder");
    let create = || Writer::create(&target, layout(), Overwrite::Replace).expect("a writable folder");
    create().finish().expect_err("nothing was written");
    assert_eq!(fs::read(&target).expect("the old file"), b"old");
    let writer = create();
    fill(&writer);
    assert_eq!(fs::read(&target).expect("the old file"), b"old");
    writer.finish().expect("a complete file");
    assert_eq!(fs::read(&target).expect("the new file")[..4], *b"GGUF");
    assert_eq!(names(dir.path()), ["model.gguf"]);
}

#[test]
fn a_file_that_somebody_else_makes_meanwhile_is_kept() {
    let (dir, target) = folder();
    let writer = Writer::create(&target, layout(), Overwrite::Refuse).expect("a writable folder");
    fill(&writer);
    fs::write(&target, "theirs").expect("a writable folder");
    let error = writer.finish().expect_err("it exists now");
    assert!(matches!(error, Error::Exists { .. }), "{error}");
    assert_eq!(fs::read(&target).expect("their file"), b"theirs");
    assert_eq!(names(dir.path()), ["model.gguf"]);
}

#[test]
fn folders_pipes_and_links_are_never_replaced() {
    let (dir, target) = folder();
    let refused = |target: &Path, found: &str| {
        for overwrite in [Overwrite::Refuse, Overwrite::Replace] {
            let error = Writer::create(target, layout(), overwrite).expect_err("not a file").to_string();
            let expected = "expected a new name or a regular file";
            assert_eq!(error, format!("{}: output: found {found}, {expected}", target.display()));
        }
    };
    refused(dir.path(), "a directory");
    refused(Path::new(""), "the name of a directory");
    refused(&dir.path().join("new/"), "the name of a directory");
    #[cfg(unix)]
    {
        fs::write(dir.path().join("real"), "old").expect("a writable folder");
        std::os::unix::fs::symlink("real", &target).expect("a link");
        refused(&target, "a symbolic link");
        fs::remove_file(&target).expect("the link");
        std::os::unix::fs::symlink("nowhere", &target).expect("a link");
        refused(&target, "a symbolic link");
        let made = std::process::Command::new("mkfifo").arg(dir.path().join("pipe")).status();
        if made.is_ok_and(|status| status.success()) {
            refused(&dir.path().join("pipe"), "a device, pipe or socket");
        } else {
            eprintln!("skipped: no mkfifo here");
        }
    }
}

#[test]
fn a_folder_that_is_not_there_is_an_error_at_once() {
    let (dir, _) = folder();
    let target = dir.path().join("nowhere/model.gguf");
    let error = Writer::create(&target, layout(), Overwrite::Refuse).expect_err("no folder").to_string();
    let expected = format!("{}: cannot create a temporary file beside it: No such file", target.display());
    assert!(error.starts_with(&expected), "{error}");
}

#[test]
fn the_longest_names_are_possible() {
    let (dir, _) = folder();
    let name = format!("{}.gguf", "ü".repeat(125));
    let writer = Writer::create(&dir.path().join(&name), layout(), Overwrite::Refuse).expect("255 bytes");
    fill(&writer);
    writer.finish().expect("a complete file");
    assert_eq!(names(dir.path()), [name]);
}

#[test]
fn two_writers_of_one_name_do_not_meet() {
    let (dir, target) = folder();
    let create = || Writer::create(&target, layout(), Overwrite::Refuse).expect("a writable folder");
    let (first, second) = (create(), create());
    fill(&first);
    fill(&second);
    first.finish().expect("the first is complete");
    assert!(matches!(second.finish(), Err(Error::Exists { .. })));
    assert_eq!(names(dir.path()), ["model.gguf"]);
}

#[test]
fn many_threads_write_the_bytes_that_one_writes() {
    const TENSOR: u64 = 1 << 16;
    let specs: Vec<TensorSpec> =
        (0..8).map(|i| TensorSpec { name: format!("t{i}"), ne: vec![TENSOR], ty: TensorType::I8 }).collect();
    let written = |n_threads: usize| {
        let (_dir, target) = folder();
        let layout = Layout::new(&Metadata::new(), &specs, 32).expect("a possible layout");
        let writer = Writer::create(&target, layout, Overwrite::Refuse).expect("a writable folder");
        std::thread::scope(|scope| {
            for thread in 0..n_threads {
                let writer = &writer;
                scope.spawn(move || {
                    // Every tensor is written by all threads, piece by piece, the last piece first.
                    for piece in (0..TENSOR / 1024).rev().filter(|p| *p as usize % n_threads == thread) {
                        for tensor in 0..8 {
                            let bytes = vec![(tensor * 64 + piece as usize) as u8; 1024];
                            writer.write_at(tensor, piece * 1024, &bytes).expect("room");
                        }
                    }
                });
            }
        });
        writer.finish().expect("a complete file");
        fs::read(&target).expect("the file")
    };
    assert!(written(1) == written(7));
}

#[test]
#[should_panic(expected = "4 bytes at 29 leave tensor a of 32 bytes")]
fn bytes_beyond_a_tensor_are_a_mistake_of_the_program() {
    let (_dir, target) = folder();
    let writer = Writer::create(&target, layout(), Overwrite::Refuse).expect("a writable folder");
    let _ = writer.write_at(0, 29, &[0; 4]);
}

#[test]
fn what_the_reader_would_refuse_is_not_laid_out() {
    let spec = |name: &str, ne: &[u64], ty| TensorSpec { name: name.to_owned(), ne: ne.to_vec(), ty };
    let good = spec("t", &[8], TensorType::F32);
    let refused = |tensors: &[TensorSpec], alignment, expected: &str| {
        let error = Layout::new(&Metadata::new(), tensors, alignment).expect_err(expected).to_string();
        assert_eq!(error, expected);
    };
    refused(&[], 24, "general.alignment: found 24, expected a power of two up to 1048576");
    refused(&[], 1 << 21, "general.alignment: found 2097152, expected a power of two up to 1048576");
    refused(&[good.clone(), good], 32, "tensor t: found the name twice, expected unique names");
    refused(&[spec("", &[8], TensorType::F32)], 32, "tensor : found an empty name, expected a name");
    refused(&[spec("t", &[], TensorType::F32)], 32, "tensor t: found 0 axes, expected 1 to 4");
    let expected = "tensor t: found shape [255], expected rows of whole blocks of 256 for Q4_K";
    refused(&[spec("t", &[255], TensorType::Q4_K)], 32, expected);
    let huge = |name| spec(name, &[1 << 62], TensorType::I8);
    let expected = "tensor b: found data beyond 63 bits, expected a smaller file";
    refused(&[huge("a"), huge("b")], 32, expected);
    let mut metadata = Metadata::new();
    metadata.set("", 1u32);
    let error = Layout::new(&metadata, &[], 32).expect_err("an empty key").to_string();
    assert_eq!(error, "metadata entry 0: found an empty key, expected a name");
}
