use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::fixture;

fn read(bytes: &[u8]) -> Result<Vec<Entry>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    std::fs::write(&path, bytes).unwrap();
    let file = File::open(&path).unwrap();
    read_header(&PathBuf::from("model.safetensors"), &file, bytes.len() as u64)
}

fn error(bytes: &[u8]) -> String {
    read(bytes).unwrap_err().to_string()
}

/// What is said about a header with this text and 16 bytes of data.
fn header_error(header: &str) -> String {
    error(&fixture::safetensors(header.as_bytes(), 16))
}

/// What is said about one tensor with these members and 16 bytes of data.
fn tensor_error(members: &str) -> String {
    header_error(&format!("{{\"t\": {{{members}}}}}"))
}

const GOOD: &str = r#"{"b": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [8, 16]}, "__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}   "#;

#[test]
fn a_header_in_any_order_with_spaces_behind_it() {
    let entries = read(&fixture::safetensors(GOOD.as_bytes(), 16)).unwrap();
    let start = 8 + GOOD.len() as u64;
    let names: Vec<_> = entries.iter().map(|e| (e.name.as_str(), e.offset - start, e.size)).collect();
    assert_eq!(names, [("a", 0, 8), ("b", 8, 8)]);
    assert_eq!(entries[1].shape, [2, 2]);
    assert_eq!(entries[1].dtype.weight_type(), Some(TensorType::BF16));
}

#[test]
fn under_8_bytes() {
    assert!(error(b"").contains("an empty file"));
    assert!(error(&[1, 0, 0]).contains("found 3 bytes, expected at least 8"));
}

#[test]
fn header_length_0() {
    assert!(error(&[0; 24]).contains("header length: found 0"));
}

#[test]
fn header_length_past_the_end() {
    let mut bytes = fixture::safetensors(b"{}", 0);
    bytes[0] = 3;
    assert!(error(&bytes).contains("header length: found 3, expected at most the 2 bytes that follow"));
}

#[test]
fn header_length_over_100_mb() {
    for length in [100_000_001, u64::MAX] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend([b' '; 64]);
        assert!(error(&bytes).contains(&format!("header length: found {length}")), "{length}");
    }
}

#[test]
fn header_not_utf8() {
    assert!(error(&fixture::safetensors(b"{\"\xff\xfe\": 1}", 0)).contains("offset 2, expected UTF-8"));
}

#[test]
fn header_of_deep_json() {
    for header in ["[".repeat(10_000), format!("{{\"a\": {}", "{\"a\": ".repeat(10_000))] {
        assert!(header_error(&header).contains("header: found"), "{}", &header[..10]);
    }
    let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
    assert!(
        tensor_error(&format!(r#""dtype": "F32", "shape": {deep}, "data_offsets": [0, 16]"#))
            .contains("header: found")
    );
}

#[test]
fn duplicate_key() {
    let one = r#"{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}"#;
    let text = header_error(&format!("{{\"t\": {one}, \"t\": {one}}}"));
    assert!(text.contains("\"t\": duplicate key"), "{text}");
    let text = tensor_error(r#""dtype": "F32", "dtype": "F16", "shape": [4], "data_offsets": [0, 16]"#);
    assert!(text.contains("\"t\"") && text.contains("duplicate field"), "{text}");
}

#[test]
fn a_hole_between_tensors() {
    let text = header_error(
        r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}"#,
    );
    assert!(
        text.contains("tensor \"b\": data_offsets: found begin 8 (a hole before it), expected 4"),
        "{text}"
    );
}

#[test]
fn overlapping_tensors() {
    let text = header_error(
        r#"{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}, "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}"#,
    );
    assert!(text.contains("tensor \"b\": data_offsets: found begin 8 (an overlap"), "{text}");
}

#[test]
fn reversed_offsets() {
    let text = tensor_error(r#""dtype": "F32", "shape": [2], "data_offsets": [8, 0]"#);
    assert!(text.contains("found [8, 0], expected begin <= end"), "{text}");
}

#[test]
fn negative_offsets() {
    let text = tensor_error(r#""dtype": "F32", "shape": [2], "data_offsets": [-8, 0]"#);
    assert!(text.contains("\"t\"") && text.contains("-8"), "{text}");
}

#[test]
fn fractional_offsets() {
    for offsets in ["[0.0, 8]", "[0, 8.5]", "[0, 1e1]"] {
        let text = tensor_error(&format!(r#""dtype": "F32", "shape": [2], "data_offsets": {offsets}"#));
        assert!(text.contains("\"t\"") && text.contains("floating point"), "{text}");
    }
}

#[test]
fn offsets_past_the_end_of_the_file() {
    let text = tensor_error(r#""dtype": "F32", "shape": [5], "data_offsets": [0, 20]"#);
    assert!(text.contains("found [0, 20]") && text.contains("truncated"), "{text}");
}

#[test]
fn shape_overflow() {
    for shape in ["[4294967296, 4294967296]", "[18446744073709551615]", "[2305843009213693952, 2]"] {
        let text = tensor_error(&format!(r#""dtype": "F32", "shape": {shape}, "data_offsets": [0, 16]"#));
        assert!(text.contains("tensor \"t\": shape: found"), "{text}");
    }
    let text = tensor_error(r#""dtype": "F32", "shape": [18446744073709551616], "data_offsets": [0, 16]"#);
    assert!(text.contains("\"t\""), "{text}");
    let text = tensor_error(r#""dtype": "F32", "shape": [1,1,1,1,1,1,1,1,4], "data_offsets": [0, 16]"#);
    assert!(text.contains("9 axes"), "{text}");
}

#[test]
fn size_is_not_shape_times_dtype() {
    let text = tensor_error(r#""dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 16]"#);
    assert!(text.contains("found 16 bytes, expected 8 bytes for shape [2, 2] of BF16"), "{text}");
    let text = tensor_error(r#""dtype": "F4", "shape": [3], "data_offsets": [0, 1]"#);
    assert!(text.contains("expected 2 bytes"), "{text}");
}

#[test]
fn appended_data() {
    let text = tensor_error(r#""dtype": "F32", "shape": [2], "data_offsets": [0, 8]"#);
    assert!(text.contains("found 8 bytes behind the last tensor"), "{text}");
}

#[test]
fn unknown_dtype() {
    let text = tensor_error(r#""dtype": "Q4_K\u001b[2J", "shape": [4], "data_offsets": [0, 16]"#);
    assert!(text.contains(r#"tensor "t": dtype: found "Q4_K\u{1b}[2J""#), "{text}");
}

#[test]
fn unknown_or_missing_members() {
    assert!(tensor_error(r#""dtype": "F32", "shape": [4]"#).contains("missing field"));
    assert!(
        tensor_error(r#""dtype": "F32", "shape": [4], "data_offsets": [0, 16], "x": 1"#)
            .contains("unknown field")
    );
    assert!(tensor_error(r#""dtype": "F32", "shape": [4], "data_offsets": [0, 16, 16]"#).contains("\"t\""));
    assert!(header_error(r#"{"__metadata__": {"a": 1}}"#).contains("__metadata__"));
    assert!(header_error("[]").contains("header: found"));
}

#[test]
fn files_of_another_kind_are_recognised() {
    for (bytes, part) in [
        (&b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"[..], "git-lfs pointer"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b"\n <html lang=en>", "an HTML page"),
        (b"PK\x03\x04 pickle in a zip", "pickle"),
        (b"GGUF\x03\0\0\0\0\0\0\0", "a GGUF file"),
    ] {
        assert!(error(bytes).contains(part), "{part}");
    }
}

/// An accepted header must describe exactly the file it stands in.
fn check_accepted(bytes: &[u8]) {
    let Ok(entries) = read(bytes) else { return };
    let length = u64::from_le_bytes(*bytes.first_chunk::<8>().unwrap());
    let mut end = 8 + length;
    for e in &entries {
        assert_eq!(e.offset, end);
        end += e.size;
    }
    assert_eq!(end, bytes.len() as u64);
}

#[test]
fn every_prefix_is_an_error() {
    let bytes = fixture::safetensors(GOOD.as_bytes(), 16);
    for end in 0..bytes.len() {
        assert!(read(&bytes[..end]).is_err(), "{end}");
    }
}

#[test]
fn every_bit_flip_of_the_header_is_an_error_or_a_load() {
    let bytes = fixture::safetensors(GOOD.as_bytes(), 16);
    for bit in 0..(8 + GOOD.len()) * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        check_accepted(&flipped);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_text_as_header_is_an_error_or_a_load(header in ".{0,200}", data in 0usize..32) {
        check_accepted(&fixture::safetensors(header.as_bytes(), data));
    }
}
