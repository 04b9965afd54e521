//! What has been published about other readers of the format, as files: each must be an ordinary error here.
//!
//! Those of the list in the design that are not about the container have no test here: CVE-2025-49847 and 2025-52566
//! (lengths of token texts, the tokenizer's to check).

mod support;

use support::*;

#[track_caller]
fn refused_for(file: &Raw, beginning: &str) {
    let reason = refused(&file.bytes());
    assert!(reason.starts_with(beginning), "{reason}");
}

/// llama.cpp wrote the extents of a tensor with more than four axes past the end of an array.
#[test]
fn cve_2024_21802_more_axes_than_there_is_room_for() {
    let file = Raw::new().tensor("t", &[1; 200], 0, 0).data(64);
    refused_for(&file, "tensor t: found 200 axes, expected 1 to 4");
}

/// llama.cpp multiplied the length of an array of strings with the size of one without checking for overflow.
#[test]
fn cve_2024_21825_string_array_whose_size_wraps() {
    for len in [u64::MAX / 16 + 2, (1 << 60) + 1] {
        let file = Raw::new().entry("key", ARRAY, &array(STRING, len, &[string("a"), string("b")].concat()));
        refused_for(&file, "key: found the end of the file after ");
    }
}

/// The same for arrays of numbers.
#[test]
fn cve_2024_21825_number_array_whose_size_wraps() {
    let file = Raw::new().entry("key", ARRAY, &array(U64, (1 << 61) + 1, &[0; 16]));
    refused_for(&file, "key: found the end of the file after ");
}

/// llama.cpp multiplied the number of tensors with the size of a description of one.
#[test]
fn cve_2024_21836_tensor_count_that_wraps() {
    let mut file = Raw::tiny();
    file.n_tensors = u64::MAX / 88 + 2;
    refused_for(&file, "number of tensors: found 209622091746699452, expected at most ");
}

/// llama.cpp allocated a string's length plus one, which is nothing for the largest length.
#[test]
fn cve_2024_23496_string_length_plus_one_wraps() {
    let mut value = u64::MAX.to_le_bytes().to_vec();
    value.extend([0x41; 512]);
    refused_for(&Raw::new().entry("key", STRING, &value), "key: found the end of the file after ");
}

/// llama.cpp multiplied the number of metadata entries with the size of one.
#[test]
fn cve_2024_23605_entry_count_that_wraps() {
    let mut file = Raw::tiny();
    file.n_entries = u64::MAX / 56 + 2;
    refused_for(&file, "number of metadata entries: found 329406144173384852, expected at most ");
}

/// llama.cpp freed entries it had not come to read when one before them was cut short.
#[test]
fn cve_2024_32878_entries_that_end_early() {
    let mut file = Raw::new().entry("first", U8, &[7]);
    file = file.entry("last", ARRAY, &array(STRING, 1, &string("x")));
    file.n_entries += 5;
    let whole = file.header();
    for cut in 0..whole.len() - 24 {
        let reason = refused(&whole[..whole.len() - cut]);
        assert!(reason.contains(": found "), "{reason}");
    }
}

/// llama.cpp followed a null pointer where the name of a tensor could not be read.
#[test]
fn cve_2024_41130_tensor_name_that_is_not_there() {
    let file = Raw::tiny();
    let mut bytes = file.bytes();
    // The length of the last tensor's name, which is one byte long.
    let at = file.header().len() - (8 + 1 + 4 + 16 + 4 + 8);
    assert_eq!(bytes[at..at + 8], 1u64.to_le_bytes());
    bytes[at..at + 8].fill(0xff);
    let reason = refused(&bytes);
    assert!(reason.starts_with("tensor entry 1: found the end of the file after "), "{reason}");
}

/// Ollama crashed on a file that holds the magic bytes and nothing else.
#[test]
fn cve_2024_39720_magic_bytes_alone() {
    assert_eq!(refused(b"GGUF"), "version: found the end of the file after 4 bytes, expected at least 8");
    assert!(refused(b"GGUF\x03\0\0\0").starts_with("number of tensors: found the end of the file after 8"));
}

/// Ollama read beyond the end of a file whose header promised more than it held.
#[test]
fn cve_2024_12055_header_that_promises_more() {
    let file = Raw::new().tensor("t", &[1 << 20], 0, 0).data(64);
    refused_for(&file, "tensor t: found the end of the file after ");
}

/// Ollama failed on files without the metadata it took for granted. Here a missing key is an answer like others.
#[test]
fn cve_2025_0312_no_metadata() {
    accepted(&Raw::new().tensor("t", &[8], 0, 0).data(32).bytes(), |gguf| {
        assert!(gguf.metadata().is_empty());
        assert_eq!(gguf.metadata().str("general.architecture").expect("no error"), None);
        assert_eq!(gguf.metadata().u32("llama.block_count").expect("no error"), None);
    });
}

/// Ollama allocated what a length asked for before looking at what was there.
#[test]
fn cve_2025_0315_lengths_that_ask_for_all_memory() {
    for ty in [U8, U32, U64, STRING, BOOL] {
        let file = Raw::new().entry("key", ARRAY, &array(ty, 1 << 40, &[0; 64]));
        refused_for(&file, "key: found the end of the file after ");
    }
    let value = [&(1u64 << 40).to_le_bytes()[..], &[0x41; 64]].concat();
    refused_for(&Raw::new().entry("key", STRING, &value), "key: found the end of the file after ");
}

/// llama.cpp added up tensor sizes until the sum wrapped and allocated that.
#[test]
fn cve_2025_53630_sum_of_sizes_wraps() {
    let n = (1u64 << 61) - 8; // in bytes 2^63 - 32 twice, and 64 more make 2^64
    let file = Raw::new().tensor("a", &[n], 0, 0).tensor("b", &[n], 0, 4 * n).tensor("c", &[16], 0, 8 * n);
    refused_for(&file.data(64), "tensor a: found the end of the file after ");
    let file = Raw::new().tensor("a", &[(1 << 60) - 8], 0, 0).tensor("b", &[8], 0, u64::MAX - 31).data(64);
    refused_for(&file, "tensor a: found the end of the file after ");
}

/// The check for that could be passed with room for descriptions added to a sum that did not wrap yet.
#[test]
fn cve_2026_27940_sum_of_sizes_just_below_the_limit() {
    let near = (u64::MAX - 512) / 32 * 32;
    let file = Raw::new().tensor("a", &[8], 0, 0).tensor("b", &[8], 0, near).data(64);
    refused_for(&file, "tensor b: found the end of the file after ");
}

/// llama.cpp computed the size of a tensor with a product that wrapped to a few megabytes.
#[test]
fn cve_2026_33298_tensor_of_exabytes_that_seems_small() {
    let file = Raw::new().tensor("t", &[1152, (1 << 42) + 1, 1 << 20], 0, 0).data(64);
    refused_for(&file, "tensor t: found shape [1152, 4398046511105, 1048576], expected ");
    let file = Raw::new().tensor("t", &[1024, (1 << 52) + 1], 0, 0).data(64);
    refused_for(&file, "tensor t: found shape [1024, 4503599627370497] of F32, expected a size that fits");
}

/// A size of 2^64 - 16 is none after rounding up to the alignment (ggml-org/llama.cpp, issue 26978).
#[test]
fn size_that_wraps_when_it_is_padded() {
    let file = Raw::new().tensor("t", &[4, (1 << 30) - 1, (1 << 30) + 1], 0, 0).data(256);
    refused_for(&file, "tensor t: found shape [4, 1073741823, 1073741825] of F32, expected ");
    let file = Raw::new().tensor("t", &[(1 << 61) - 1], 0, 0).data(256);
    refused_for(&file, "tensor t: found the end of the file after ");
}

/// A product that wraps to something negative passed as small (ggml-org/llama.cpp, issue 27203).
#[test]
fn element_count_that_turns_negative() {
    let file = Raw::new().tensor("t", &[i64::MAX as u64, 2], 24, 0).data(256);
    refused_for(&file, "tensor t: found shape [9223372036854775807, 2], expected a number of elements");
}
