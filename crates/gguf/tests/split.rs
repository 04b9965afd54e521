//! Split files: one model in several parts, found by their names and checked by their metadata.

mod support;

use gguf::{Error, Gguf};
use std::path::{Path, PathBuf};
use support::*;

const U16: u32 = 2;

/// A part with the given numbers; one tensor named after it.
fn part(no: u16, count: u16, n_tensors: i32) -> Raw {
    Raw::new()
        .entry("general.name", STRING, &string(format!("part {no}")))
        .entry("split.no", U16, &no.to_le_bytes())
        .entry("split.count", U16, &count.to_le_bytes())
        .entry("split.tensors.count", I32, &n_tensors.to_le_bytes())
        .tensor(format!("t{no}"), &[8], 0, 0)
        .data(32 + usize::from(no))
}

struct Folder {
    dir: tempfile::TempDir,
}

impl Folder {
    /// Three parts that belong together.
    fn of_three() -> Folder {
        let folder = Folder { dir: tempfile::tempdir().expect("a temporary folder") };
        (0..3).for_each(|no| folder.put(no + 1, &part(no, 3, 3)));
        folder
    }

    fn path(&self, number: u16) -> PathBuf {
        self.dir.path().join(format!("m-{number:05}-of-00003.gguf"))
    }

    fn put(&self, number: u16, file: &Raw) {
        std::fs::write(self.path(number), file.bytes()).expect("a writable folder");
    }

    /// Why the parts are refused, and the file that the error names.
    #[track_caller]
    fn refused(&self, named: u16) -> String {
        let error = Gguf::open(&self.path(1)).expect_err("parts that don't belong together");
        reason(&error, &self.path(named))
    }
}

#[test]
fn any_part_opens_all() {
    let folder = Folder::of_three();
    for number in 1..=3 {
        let gguf = open(&folder.path(number));
        assert_eq!(gguf.path(), folder.path(number));
        assert_eq!(gguf.parts(), [folder.path(1), folder.path(2), folder.path(3)]);
        let names: Vec<&str> = gguf.tensors().iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["t0", "t1", "t2"]);
        assert_eq!(gguf.metadata().str("general.name").expect("a string"), Some("part 0"));
        for (index, tensor) in gguf.tensors().iter().enumerate() {
            assert_eq!(tensor.part, index);
            assert_eq!(gguf.data(tensor), (1..=32).collect::<Vec<u8>>());
        }
        let sizes: u64 = (1..=3).map(|n| std::fs::metadata(folder.path(n)).expect("a part").len()).sum();
        assert_eq!(gguf.file_size(), sizes);
        // The second and third part have one and two bytes too many.
        assert_eq!(gguf.warnings().len(), 2);
        assert!(gguf.warnings()[1].starts_with(&folder.path(3).display().to_string()));
    }
}

#[test]
fn all_missing_parts_are_listed() {
    let folder = Folder::of_three();
    std::fs::remove_file(folder.path(1)).expect("a part");
    std::fs::remove_file(folder.path(2)).expect("a part");
    let error = Gguf::open(&folder.path(3)).expect_err("parts are missing");
    assert!(matches!(&error, Error::MissingParts { missing, expected: 3, .. } if missing.len() == 2));
    let (one, two) = (folder.path(1), folder.path(2));
    let expected = format!("parts: found 1 of 3, missing {}, {}", one.display(), two.display());
    assert_eq!(reason(&error, &folder.path(3)), expected);
}

#[test]
fn a_renamed_part_does_not_find_the_others() {
    let folder = Folder::of_three();
    let renamed = folder.dir.path().join("model.gguf");
    std::fs::rename(folder.path(1), &renamed).expect("a part");
    let error = Gguf::open(&renamed).expect_err("no other parts");
    let expected = "a name that ends in -0000I-of-0000N.gguf, by which the other parts are found";
    assert_eq!(
        reason(&error, &renamed),
        format!("split.count: found 3, in a file of another name, expected {expected}")
    );
}

#[test]
fn a_count_that_is_not_the_names_is_an_error() {
    let folder = Folder::of_three();
    folder.put(1, &part(0, 4, 3));
    assert_eq!(folder.refused(1), "split.count: found 4, expected 3, as in the file's name");
    folder.put(1, &part(0, 3, 3));
    folder.put(2, &part(1, 2, 3));
    assert_eq!(folder.refused(2), "split.count: found 2, expected 3");
}

#[test]
fn parts_in_the_wrong_order_are_an_error() {
    let folder = Folder::of_three();
    folder.put(2, &part(2, 3, 3));
    assert_eq!(folder.refused(2), "split.no: found 2, expected 1");
    folder.put(2, &Raw::new().tensor("t1", &[8], 0, 0).data(32));
    assert_eq!(folder.refused(2), "split.no: found no such key, expected 1");
}

#[test]
fn a_tensor_count_that_is_not_true_is_an_error() {
    let folder = Folder::of_three();
    folder.put(1, &part(0, 3, 4));
    assert_eq!(folder.refused(1), "split.tensors.count: found 4, expected 3, as the parts hold");
    folder.put(1, &part(0, 3, 3));
    folder.put(3, &part(2, 3, 2));
    assert_eq!(folder.refused(3), "split.tensors.count: found 2, expected 3, as the parts hold");
    folder.put(3, &part(2, 3, -1));
    let expected = "expected a whole number from 0 to 4294967295";
    assert_eq!(folder.refused(3), format!("split.tensors.count: found -1 (i32), {expected}"));
}

#[test]
fn a_tensor_in_two_parts_is_an_error() {
    let folder = Folder::of_three();
    let twice = Raw::new().entry("split.no", U16, &[1, 0]).tensor("t0", &[8], 0, 0).data(32);
    folder.put(2, &twice);
    assert_eq!(folder.refused(2), "tensor t0: found the name of one in another part, expected unique names");
}

#[test]
fn a_damaged_part_is_named() {
    let folder = Folder::of_three();
    std::fs::write(folder.path(2), b"version https://git-lfs.github.com/spec/v1\n").expect("a part");
    assert!(folder.refused(2).starts_with("format: found a git-lfs pointer"));
}

#[test]
fn a_part_that_stands_alone_by_its_metadata_is_a_file() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("m-00001-of-00003.gguf");
    std::fs::write(&path, Raw::tiny().bytes()).expect("a writable folder");
    assert_eq!(open(&path).parts(), [path]);
    let single = dir.path().join("single.gguf");
    std::fs::write(&single, part(0, 1, 1).bytes()).expect("a writable folder");
    assert_eq!(open(&single).tensors().len(), 1);
}

#[test]
fn parts_are_found_in_the_folder_one_is_in() {
    let folder = Folder::of_three();
    let link = folder.dir.path().join("elsewhere");
    std::fs::create_dir(&link).expect("a folder");
    let moved = link.join("m-00002-of-00003.gguf");
    std::fs::rename(folder.path(2), &moved).expect("a part");
    let error = Gguf::open(&moved).expect_err("the others are elsewhere");
    let missing = |n: u16| link.join(Path::new(&format!("m-{n:05}-of-00003.gguf")));
    assert!(matches!(error, Error::MissingParts { missing: m, .. } if m == [missing(1), missing(3)]));
}
