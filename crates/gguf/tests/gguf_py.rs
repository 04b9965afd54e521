//! Files of llama.cpp's own writer in Python (`tests/data/make-from-gguf-py.py`): read rightly, written byte for byte.

mod support;

use gguf::{Array, DEFAULT_ALIGNMENT, Layout, Metadata, Overwrite, TensorSpec, Value, Writer};
use quants::TensorType;
use std::path::PathBuf;
use support::open;

fn data(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "data", name].iter().collect()
}

/// What the script puts in, in its order.
fn metadata() -> Metadata {
    let mut m = Metadata::new();
    m.set("general.architecture", "llama");
    m.set("u8", 200u8);
    m.set("i8", -100i8);
    m.set("u16", 60000u16);
    m.set("i16", -30000i16);
    m.set("u32", 4_000_000_000u32);
    m.set("i32", -2_000_000_000i32);
    m.set("f32", 0.1f32);
    m.set("bool", true);
    m.set("string", "tränk ▁");
    m.set("u64", (1u64 << 63) + 1);
    m.set("i64", -(1i64 << 62));
    m.set("f64", 0.1f64);
    m.set("strings", Array::from(["<unk>", "▁a", ""].map(str::to_owned).to_vec()));
    m.set("i32s", vec![1i32, -2, 3]);
    m.set("f32s", vec![0.5f32, -0.25]);
    m.set("bools", vec![true, false]);
    m
}

fn tensors() -> Vec<TensorSpec> {
    [
        ("token_embd.weight", vec![5, 3], TensorType::F32),
        ("output_norm.weight", vec![5], TensorType::F16),
        ("output.weight", vec![32, 2], TensorType::Q8_0),
    ]
    .map(|(name, ne, ty)| TensorSpec { name: name.to_owned(), ne, ty })
    .to_vec()
}

#[test]
fn a_file_of_gguf_py_is_read_as_it_was_meant() {
    let gguf = open(&data("from-gguf-py.gguf"));
    assert_eq!(gguf.warnings(), [""; 0]);
    assert_eq!((gguf.version(), gguf.alignment()), (3, DEFAULT_ALIGNMENT));
    assert_eq!(*gguf.metadata(), metadata());
    let read: Vec<TensorSpec> = gguf
        .tensors()
        .iter()
        .map(|t| TensorSpec { name: t.name.clone(), ne: t.ne.clone(), ty: t.ty })
        .collect();
    assert_eq!(read, tensors());
    let floats: Vec<u8> = (0..15).flat_map(|n| (n as f32).to_le_bytes()).collect();
    assert_eq!(gguf.data(&gguf.tensors()[0]), floats);
    assert_eq!(gguf.data(&gguf.tensors()[2]), (0..68).collect::<Vec<u8>>());
}

/// Writes what the file holds, and compares.
fn is_written_alike(name: &str, metadata: &Metadata, alignment: u32) {
    let original = data(name);
    let gguf = open(&original);
    let layout = Layout::new(metadata, &tensors(), alignment).expect("a possible layout");
    for (index, tensor) in gguf.tensors().iter().enumerate() {
        assert_eq!(layout.tensor_range(index).start, tensor.offset);
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let copy = dir.path().join(name);
    let writer = Writer::create(&copy, layout, Overwrite::Refuse).expect("a writable folder");
    for (index, tensor) in gguf.tensors().iter().enumerate() {
        writer.write_at(index, 0, gguf.data(tensor)).expect("room");
    }
    let size = writer.finish().expect("a complete file");
    let (written, expected) = (std::fs::read(&copy), std::fs::read(&original));
    let (written, expected) = (written.expect("the copy"), expected.expect("the original"));
    assert_eq!(size, expected.len() as u64);
    assert!(written == expected, "{name} is not written as gguf-py writes it");
}

#[test]
fn the_same_contents_are_the_same_bytes() {
    is_written_alike("from-gguf-py.gguf", &metadata(), DEFAULT_ALIGNMENT);
}

#[test]
fn another_alignment_is_recorded_at_the_end_as_gguf_py_does() {
    is_written_alike("from-gguf-py-aligned-64.gguf", &metadata(), 64);
    let mut stated = metadata();
    stated.set("general.alignment", 64u32);
    is_written_alike("from-gguf-py-aligned-64.gguf", &stated, 64);
}

#[test]
fn an_alignment_that_the_metadata_contradicts_is_an_error() {
    for (stated, used) in [(Value::U32(64), 32), (Value::U64(32), 32), (Value::U32(32), 64)] {
        let mut metadata = metadata();
        metadata.set("general.alignment", stated.clone());
        let error = Layout::new(&metadata, &tensors(), used).expect_err("a contradiction").to_string();
        assert_eq!(error, format!("general.alignment: found {stated}, expected {used}"));
    }
}
