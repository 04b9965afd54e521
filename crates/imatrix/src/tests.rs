//! Files of both formats, whole and damaged.

use std::fs;
use std::path::PathBuf;

use gguf::{Layout, Metadata, Overwrite, TensorSpec, Value, Writer};
use quants::TensorType;
use tempfile::TempDir;

use crate::{Entry, Imatrix};

fn sample() -> Imatrix {
    let entries = [
        ("blk.0.attn_q.weight", Entry::new(vec![2.0, 4.0, 8.0], vec![4])),
        ("blk.0.ffn_up_exps.weight", Entry::new(vec![1.0, 2.0, 0.0, 0.0, 9.0, 3.0], vec![2, 0, 3])),
    ];
    Imatrix {
        entries: entries.map(|(name, entry)| (name.to_owned(), entry)).into(),
        datasets: vec!["calibration.txt".to_owned()],
        chunk_count: 7,
        chunk_size: 512,
    }
}

fn written(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("imatrix");
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn refused(bytes: &[u8]) -> String {
    let (_folder, path) = written(bytes);
    let said = Imatrix::read(&path).unwrap_err().to_string();
    said.strip_prefix(&format!("{}: ", path.display())).expect("the file's name first").to_owned()
}

#[test]
fn what_is_written_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("imatrix.gguf");
    sample().write(&path, Overwrite::Refuse).unwrap();
    assert_eq!(Imatrix::read(&path).unwrap(), sample());
    let said = sample().write(&path, Overwrite::Refuse).unwrap_err().to_string();
    assert!(said.contains("existing file"), "{said}");
}

#[test]
fn sums_are_divided_by_the_tokens_of_each_expert() {
    let entry = &sample().entries["blk.0.ffn_up_exps.weight"];
    assert_eq!(entry.importance(), [0.5, 1.0, 1.0, 1.0, 3.0, 1.0]);
}

/// A legacy file: entries of name, calls and values, then whatever `tail` is.
fn legacy(entries: &[(&str, i32, &[f32])], tail: &[u8]) -> Vec<u8> {
    let mut bytes = (entries.len() as i32).to_le_bytes().to_vec();
    for (name, n_calls, values) in entries {
        bytes.extend((name.len() as i32).to_le_bytes());
        bytes.extend(name.as_bytes());
        bytes.extend(n_calls.to_le_bytes());
        bytes.extend((values.len() as i32).to_le_bytes());
        bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    }
    bytes.extend(tail);
    bytes
}

#[test]
fn the_legacy_format_is_read_with_and_without_its_tail() {
    let mut tail = 7i32.to_le_bytes().to_vec();
    tail.extend(3i32.to_le_bytes());
    tail.extend(b"a.b");
    let entries: &[(&str, i32, &[f32])] = &[("x.weight", 4, &[2.0, 8.0]), ("y.weight", 0, &[3.0])];
    let (_folder, path) = written(&legacy(entries, &tail));
    let imatrix = Imatrix::read(&path).unwrap();
    assert_eq!((imatrix.chunk_count, imatrix.datasets), (7, vec!["a.b".to_owned()]));
    assert_eq!(imatrix.entries["x.weight"].importance(), [0.5, 2.0]);
    assert_eq!(imatrix.entries["y.weight"].importance(), [3.0]);
    let (_folder, path) = written(&legacy(entries, &[]));
    let imatrix = Imatrix::read(&path).unwrap();
    assert_eq!((imatrix.chunk_count, imatrix.datasets.len(), imatrix.entries.len()), (0, 0, 2));
}

#[test]
fn a_legacy_file_cut_anywhere_is_refused() {
    let whole = legacy(&[("x.weight", 4, &[2.0, 8.0]), ("y.weight", 1, &[3.0])], &[]);
    for n in 0..whole.len() {
        refused(&whole[..n]);
    }
    assert!(refused(&whole[..20]).contains("expected"), "{}", refused(&whole[..20]));
}

#[test]
fn legacy_numbers_that_cannot_be_are_refused() {
    assert!(refused(b"").starts_with("number of entries: found the end of the file"));
    assert!(refused(&(-1i32).to_le_bytes()).starts_with("number of entries: found -1"));
    assert!(refused(&legacy(&[("x", 1, &[f32::NAN])], &[])).contains("x: value 0: found NaN"));
    assert!(refused(&legacy(&[("x", 1, &[1.0, -2.0])], &[])).contains("x: value 1: found -2"));
    assert!(refused(&legacy(&[("x", 1, &[1.0]), ("x", 1, &[1.0])], &[])).contains("x: found a second entry"));
    assert!(refused(&legacy(&[("x\n", 1, &[1.0])], &[])).contains("entry 0: name: found x?"));
    // A huge count must not become a huge reservation.
    let mut huge = legacy(&[("x", 1, &[1.0])], &[]);
    huge[13..17].copy_from_slice(&i32::MAX.to_le_bytes());
    assert!(refused(&huge).contains("x: number of values: found 2147483647"), "{}", refused(&huge));
}

/// A GGUF file with the given keys and F32 tensors.
fn gguf_file(keys: &[(&str, Value)], tensors: &[(&str, &[u64], &[f32])]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    let mut metadata = Metadata::new();
    keys.iter().for_each(|(key, value)| metadata.set(key, value.clone()));
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|(name, ne, _)| TensorSpec { name: (*name).to_owned(), ne: ne.to_vec(), ty: TensorType::F32 })
        .collect();
    let writer =
        Writer::create(&path, Layout::new(&metadata, &specs, 32).unwrap(), Overwrite::Refuse).unwrap();
    for (i, (_, _, values)) in tensors.iter().enumerate() {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        writer.write_at(i, 0, &bytes).unwrap();
    }
    writer.finish().unwrap();
    fs::read(&path).unwrap()
}

#[test]
fn gguf_files_that_hold_something_else_are_refused() {
    let keys = || {
        vec![
            ("general.type", Value::from("imatrix")),
            ("imatrix.datasets", Value::from(vec!["a".to_owned()])),
            ("imatrix.chunk_count", Value::from(1u32)),
            ("imatrix.chunk_size", Value::from(512u32)),
        ]
    };
    let sums: (&str, &[u64], &[f32]) = ("x.in_sum2", &[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    let counts: (&str, &[u64], &[f32]) = ("x.counts", &[1, 2], &[5.0, 6.0]);
    let (_folder, path) = written(&gguf_file(&keys(), &[sums, counts]));
    assert_eq!(Imatrix::read(&path).unwrap().entries["x"].counts, [5, 6]);

    let mut model = keys();
    model[0].1 = Value::from("model");
    assert_eq!(refused(&gguf_file(&model, &[sums, counts])), "general.type: found model, expected imatrix");
    for missing in 1..4 {
        let mut fewer = keys();
        let (key, _) = fewer.remove(missing);
        assert!(
            refused(&gguf_file(&fewer, &[sums, counts])).starts_with(&format!("{key}: found no such key"))
        );
    }
    let said = |tensors: &[(&str, &[u64], &[f32])]| refused(&gguf_file(&keys(), tensors));
    assert!(said(&[]).starts_with("tensors: found none"));
    assert!(said(&[sums]).starts_with("x.counts: found no such tensor"));
    assert!(said(&[counts]).starts_with("x.in_sum2: found no such tensor"));
    let three: (&str, &[u64], &[f32]) = ("x.counts", &[1, 3], &[5.0, 6.0, 7.0]);
    assert!(said(&[sums, three]).starts_with("x: found 4 sums for 3 matrices"));
    let negative: (&str, &[u64], &[f32]) = ("x.counts", &[1, 2], &[5.0, -1.0]);
    assert!(said(&[sums, negative]).starts_with("x.counts: found -1"));
    let infinite: (&str, &[u64], &[f32]) = ("x.in_sum2", &[2, 2], &[1.0, 2.0, f32::INFINITY, 4.0]);
    assert!(said(&[infinite, counts]).starts_with("x: value 2: found inf"));
}
