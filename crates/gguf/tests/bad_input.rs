//! Every way in which a GGUF container can be wrong: one line that names file, field, what was found and what was
//! expected. What a model's metadata must say is `model-spec`'s to test.

mod support;

use support::*;

/// Asserts that the file is refused with exactly this reason.
#[track_caller]
fn refuses(file: &Raw, reason: &str) {
    assert_eq!(refused(&file.bytes()), reason);
}

#[test]
fn the_tiny_file_itself_is_accepted() {
    accepted(&Raw::tiny().bytes(), |gguf| {
        assert_eq!(gguf.warnings(), [""; 0]);
        assert_eq!(gguf.metadata().len(), 3);
        assert_eq!(gguf.data(&gguf.tensors()[1]), (33..=96).collect::<Vec<u8>>());
    });
}

#[test]
fn version_2_is_accepted() {
    let mut file = Raw::tiny();
    file.version = 2;
    assert_eq!(accepted(&file.bytes(), |gguf| gguf.version()), 2);
}

const NOT_GGUF: &str = ", expected a GGUF file, which begins with \"GGUF\"";

#[track_caller]
fn is_taken_for(bytes: &[u8], what: &str) {
    assert_eq!(refused(bytes), format!("format: found {what}{NOT_GGUF}"));
}

#[test]
fn empty_file() {
    is_taken_for(b"", "an empty file");
}

#[test]
fn html_page() {
    for page in ["<!DOCTYPE html><html>", "\n  <html lang=\"en\">", "<?xml version=\"1.0\"?><Error>"] {
        is_taken_for(page.as_bytes(), "a web page (the download went wrong)");
    }
}

#[test]
fn git_lfs_pointer() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4368438944\n";
    is_taken_for(
        pointer.as_bytes(),
        "a git-lfs pointer (the file itself was not downloaded: run `git lfs pull`)",
    );
}

#[test]
fn text_archives_and_other_models() {
    is_taken_for(b"Entry not found", "text that begins with \"Entry not found\"");
    is_taken_for(b"PK\x03\x04\x00\x00\x08\x08rest", "a zip archive (a PyTorch checkpoint?)");
    is_taken_for(b"tjgg\x03\0\0\0rest", "a GGML file from before GGUF (convert the model again)");
    let safetensors = b"\x20\0\0\0\0\0\0\0{\"__metadata__\":{}}";
    is_taken_for(safetensors, "what looks like safetensors (give bruce-quant the model's directory)");
}

#[test]
fn directory_and_pipe() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let error = gguf::Gguf::open(dir.path()).expect_err("a directory");
    assert_eq!(reason(&error, dir.path()), format!("format: found a directory{NOT_GGUF}"));
    std::fs::write(dir.path().join("config.json"), "{}").expect("written");
    let error = gguf::Gguf::open(dir.path()).expect_err("a directory");
    let found = "a directory with a checkpoint (bruce-quant makes a GGUF file of it)";
    assert_eq!(reason(&error, dir.path()), format!("format: found {found}{NOT_GGUF}"));
    let pipe = dir.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no mkfifo here");
        return;
    }
    let error = gguf::Gguf::open(&pipe).expect_err("a pipe");
    assert_eq!(reason(&error, &pipe), format!("format: found a device, pipe or socket{NOT_GGUF}"));
}

#[test]
fn no_such_file() {
    let error = gguf::Gguf::open("/nowhere/model.gguf".as_ref()).expect_err("nothing there").to_string();
    assert!(error.starts_with("/nowhere/model.gguf: cannot open: No such file"), "{error}");
}

#[test]
fn wrong_magic() {
    is_taken_for(b"GGUG\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "bytes [47, 47, 55, 47]");
    is_taken_for(b"\x7fELF\x02\x01\x01\0\0\0\0\0", "bytes [7f, 45, 4c, 46]");
}

#[test]
fn version_0_1_and_4() {
    let mut file = Raw::tiny();
    for (version, found, expected) in [
        (0, "0", "2 or 3"),
        (1, "1", "2 or 3; convert the file again with a current converter"),
        (4, "4", "2 or 3"),
        (u32::MAX, "4294967295", "2 or 3"),
    ] {
        file.version = version;
        refuses(&file, &format!("version: found {found}, expected {expected}"));
    }
}

#[test]
fn big_endian() {
    let expected = "expected a little-endian file; big-endian files are not supported";
    let mut file = Raw::tiny();
    file.version = 3u32.swap_bytes();
    refuses(&file, &format!("version: found 3, in big-endian byte order, {expected}"));
    let found = "a big-endian GGUF file (only little-endian ones are supported)";
    is_taken_for(b"FUGG\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", found);
}

#[test]
fn counts_beyond_the_file() {
    for count in [4, 1 << 32, 1 << 61, 1 << 63, u64::MAX] {
        let mut file = Raw::new().tensor("t", &[8], 0, 0).data(32);
        file.n_tensors = count;
        // 16 bytes are read by then, and no tensor's entry takes less than 33.
        let limit = (file.bytes().len() as u64 - 16) / 33;
        let allows = "which is what the file's size allows";
        refuses(&file, &format!("number of tensors: found {count}, expected at most {limit}, {allows}"));
        let mut file = Raw::new().entry("k", U8, &[7]);
        file.n_entries = count;
        refuses(&file, &format!("number of metadata entries: found {count}, expected at most 1, {allows}"));
    }
}

#[test]
fn more_entries_or_tensors_than_there_are() {
    let mut file = Raw::tiny();
    file.n_entries += 1;
    // The first tensor's name is then taken for a key, and its axes for a value type; and so on to the end.
    assert!(refused(&file.bytes()).contains(": found "));
    let mut file = Raw::tiny();
    file.n_tensors += 1;
    assert!(refused(&file.bytes()).starts_with("tensor entry 2: found "));
}

#[test]
fn string_length_that_wraps() {
    for len in [1 << 30, u64::MAX - 31, u64::MAX - 7, u64::MAX] {
        let value = [&len.to_le_bytes()[..], b"text"].concat();
        let file = Raw::new().entry("key", STRING, &value);
        let size = file.bytes().len() as u64;
        let needed = (size - 4).saturating_add(len);
        let end = format!("found the end of the file after {size} bytes, expected at least {needed}");
        refuses(&file, &format!("key: {end}"));
    }
}

#[test]
fn array_length_that_wraps() {
    for (ty, size) in [(U8, 1u64), (U32, 4), (BOOL, 1), (STRING, 8), (U64, 8)] {
        for len in
            [17 / size + 1, 1 << 61, 1 << 62, u64::MAX / size, (u64::MAX / size).saturating_add(1), u64::MAX]
        {
            let file = Raw::new().entry("key", ARRAY, &array(ty, len, &[0; 16]));
            let end = file.bytes().len() as u64;
            let needed = (end - 16).saturating_add(len.saturating_mul(size));
            let found = format!("found the end of the file after {end} bytes");
            refuses(&file, &format!("key: {found}, expected at least {needed}"));
        }
    }
}

#[test]
fn nested_arrays() {
    let inner = array(U8, 1, &[7]);
    let file = Raw::new().entry("key", ARRAY, &array(ARRAY, 1, &inner));
    refuses(&file, "key: found an array of arrays, expected an array of single values");
}

#[test]
fn unknown_value_type() {
    for ty in [13, 255, u32::MAX] {
        let reason = format!("key: found value type {ty}, expected a type from 0 to 12");
        refuses(&Raw::new().entry("key", ty, &[0; 8]), &reason);
        refuses(&Raw::new().entry("key", ARRAY, &array(ty, 1, &[0; 8])), &reason);
        refuses(&Raw::new().entry("key", ARRAY, &array(ty, 0, &[0; 8])), &reason);
    }
}

#[test]
fn bool_2() {
    refuses(&Raw::new().entry("key", BOOL, &[2]), "key: found bool 2, expected 0 or 1");
    let values = array(BOOL, 3, &[1, 0, 255]);
    refuses(&Raw::new().entry("key", ARRAY, &values), "key: found bool 255, expected 0 or 1");
}

#[test]
fn empty_key() {
    refuses(&Raw::tiny().entry("", U8, &[7]), "metadata entry 3: found an empty key, expected a name");
}

#[test]
fn duplicate_key() {
    let file = Raw::tiny().entry("flag", U8, &[7]);
    refuses(&file, "flag: found the key twice, expected unique keys");
}

#[test]
fn key_that_is_not_utf8() {
    let file = Raw::new().entry(b"ke\xffy", U8, &[7]);
    refuses(&file, "metadata entry 0: found \"ke\\xffy\", which is not UTF-8, expected UTF-8");
}

#[test]
fn key_with_control_characters_or_too_long() {
    let file = Raw::new().entry("a\x1b[2J", U8, &[7]);
    let expected = "expected a name without control characters";
    refuses(&file, &format!("metadata entry 0: found key \"a\\u{{1b}}[2J\", {expected}"));
    let file = Raw::new().entry("k".repeat(65536), U8, &[7]);
    refuses(&file, "metadata entry 0: found a key of 65536 bytes, expected at most 65535");
    let long = "k".repeat(65535);
    accepted(&Raw::new().entry(&long, U8, &[7]).bytes(), |gguf| {
        assert_eq!(gguf.metadata().u32(&long).expect("a number"), Some(7));
    });
}

#[test]
fn a_wrong_value_under_a_long_key_keeps_the_message_short() {
    let reason = refused(&Raw::new().entry("k".repeat(60000), BOOL, &[9]).bytes());
    assert_eq!(reason, format!("{}...: found bool 9, expected 0 or 1", "k".repeat(64)));
}

#[test]
fn strings_that_are_not_utf8_are_kept_as_they_are() {
    let tokens = array(STRING, 3, &[string("ok"), string(b"\xf0\x9f"), string("")].concat());
    let file = Raw::new().entry("raw", STRING, &string(b"\xff")).entry("tokens", ARRAY, &tokens);
    accepted(&file.bytes(), |gguf| {
        assert_eq!(gguf.metadata().get("raw"), Some(&gguf::Value::Bytes(vec![0xff])));
        let strings = gguf.metadata().byte_strings("tokens").expect("strings");
        assert_eq!(strings, Some(vec![b"ok".as_slice(), b"\xf0\x9f", b""]));
        let error = gguf.metadata().str("raw").expect_err("raw bytes");
        assert!(error.to_string().starts_with(&format!("{}: raw: found ", gguf.path().display())), "{error}");
    });
}

#[test]
fn alignment_0_3_and_2_to_31() {
    for alignment in [0, 3, 33, 1 << 21, 1 << 31, u32::MAX] {
        let file = Raw::tiny().entry("general.alignment", U32, &alignment.to_le_bytes());
        let reason = format!("general.alignment: found {alignment}, expected a power of two up to 1048576");
        refuses(&file, &reason);
    }
}

#[test]
fn alignment_of_a_wrong_type() {
    for (ty, value, found) in [
        (U64, vec![32, 0, 0, 0, 0, 0, 0, 0], "32 (u64)"),
        (I32, vec![32, 0, 0, 0], "32 (i32)"),
        (F32, vec![0, 0, 0, 66], "32 (f32)"),
        (STRING, string("32"), "\"32\" (string)"),
    ] {
        let file = Raw::tiny().entry("general.alignment", ty, &value);
        refuses(&file, &format!("general.alignment: found {found}, expected a u32"));
    }
}

#[test]
fn other_alignments_move_the_data() {
    for alignment in [1usize, 8, 64, 4096] {
        let file = Raw::new()
            .entry("general.alignment", U32, &(alignment as u32).to_le_bytes())
            .tensor("t", &[2], 0, 0)
            .aligned(alignment)
            .data(8);
        accepted(&file.bytes(), |gguf| {
            assert_eq!(gguf.alignment() as usize, alignment);
            assert_eq!(gguf.tensors()[0].offset % alignment as u64, 0);
            assert_eq!(gguf.data(&gguf.tensors()[0]), [1, 2, 3, 4, 5, 6, 7, 8]);
        });
    }
}

#[test]
fn tensor_name_empty() {
    let file = Raw::new().tensor("", &[8], 0, 0).data(32);
    refuses(&file, "tensor entry 0: found an empty name, expected a name");
}

#[test]
fn tensor_name_of_64_and_65_bytes() {
    for len in [64, 65] {
        let file = Raw::new().tensor("n".repeat(len), &[8], 0, 0).data(32);
        refuses(&file, &format!("tensor entry 0: found a name of {len} bytes, expected at most 63"));
    }
    let file = Raw::new().tensor("n".repeat(63), &[8], 0, 0).data(32);
    accepted(&file.bytes(), |gguf| assert!(gguf.tensor(&"n".repeat(63)).is_some()));
}

#[test]
fn tensor_name_with_nul_or_escape_or_not_utf8() {
    let expected = "expected a name without control characters";
    let file = Raw::new().tensor("a\0b", &[8], 0, 0).data(32);
    refuses(&file, &format!("tensor entry 0: found name \"a\\u{{0}}b\", {expected}"));
    let file = Raw::new().tensor("a\x1b]0;b\x07", &[8], 0, 0).data(32);
    refuses(&file, &format!("tensor entry 0: found name \"a\\u{{1b}}]0;b\\u{{7}}\", {expected}"));
    let file = Raw::new().tensor(b"a\xc0\x80", &[8], 0, 0).data(32);
    refuses(&file, "tensor entry 0: found \"a\\xc0\\x80\", which is not UTF-8, expected UTF-8");
}

#[test]
fn duplicate_tensor() {
    let file = Raw::new().tensor("t", &[8], 0, 0).tensor("t", &[8], 0, 32).data(64);
    refuses(&file, "tensor t: found the name twice, expected unique names");
}

#[test]
fn axes_0_and_5() {
    for ne in [&[][..], &[1, 1, 1, 1, 1]] {
        let file = Raw::new().tensor("t", ne, 0, 0).data(64);
        refuses(&file, &format!("tensor t: found {} axes, expected 1 to 4", ne.len()));
    }
}

#[test]
fn extent_0_or_negative() {
    for ne in [&[0][..], &[8, 0], &[0, u64::MAX], &[u64::MAX], &[8, 1 << 63]] {
        let file = Raw::new().tensor("t", ne, 0, 0).data(64);
        let expected = "expected extents from 1 to 9223372036854775807";
        refuses(&file, &format!("tensor t: found shape {ne:?}, {expected}"));
    }
}

#[test]
fn element_product_that_wraps() {
    for ne in [&[1 << 32, 1 << 32][..], &[1 << 62, 2], &[1 << 32, 1 << 30, 2], &[3, 1 << 62, 1, 4]] {
        let file = Raw::new().tensor("t", ne, 0, 0).data(64);
        let expected = "expected a number of elements that fits in 63 bits";
        refuses(&file, &format!("tensor t: found shape {ne:?}, {expected}"));
    }
}

#[test]
fn byte_size_that_wraps() {
    for ne in [&[1 << 62][..], &[4, (1 << 30) - 1, (1 << 30) + 1], &[1 << 61]] {
        let file = Raw::new().tensor("t", ne, 0, 0).data(64);
        let expected = "expected a size that fits in 63 bits";
        refuses(&file, &format!("tensor t: found shape {ne:?} of F32, {expected}"));
    }
}

#[test]
fn byte_size_that_wraps_where_blocks_are_counted_last() {
    // 18 bytes times the weights is just above a multiple of 2^64; 18 times the blocks is what the tensor takes.
    let ne0 = 5124095576030431008u64;
    let file = Raw::new().tensor("t", &[ne0], 2, 0).data(64);
    let (size, start) = (file.bytes().len() as u64, file.bytes().len() as u64 - 64);
    let needed = start + ne0 / 32 * 18;
    let end = format!("found the end of the file after {size} bytes");
    refuses(&file, &format!("tensor t: {end}, expected at least {needed}"));
}

#[test]
fn offsets_and_sizes_whose_sum_wraps() {
    for offset in [u64::MAX - 31, u64::MAX - 63, 1 << 63] {
        let file = Raw::new().tensor("t", &[32], 0, offset).data(128);
        let (size, start) = (file.bytes().len() as u64, file.bytes().len() as u64 - 128);
        let needed = offset.saturating_add(128).saturating_add(start);
        let end = format!("found the end of the file after {size} bytes");
        refuses(&file, &format!("tensor t: {end}, expected at least {needed}"));
    }
}

#[test]
fn unknown_type_id() {
    // 4 and 5 were withdrawn, as 31 to 33 and 36 to 38 were.
    for id in [4, 5, 31, 36, 43, 255, 1 << 31, u32::MAX] {
        let file = Raw::new().tensor("t", &[256], id, 0).data(1024);
        refuses(&file, &format!("tensor t: found type {id}, expected a type that ggml has"));
    }
}

#[test]
fn row_that_is_no_whole_number_of_blocks() {
    for (ty, name, ne0, block) in [(2, "Q4_0", 31, 32), (8, "Q8_0", 48, 32), (12, "Q4_K", 128, 256)] {
        let file = Raw::new().tensor("t", &[ne0, 256], ty, 0).data(1 << 16);
        let expected = format!("expected rows of whole blocks of {block} for {name}");
        refuses(&file, &format!("tensor t: found shape [{ne0}, 256], {expected}"));
    }
}

#[test]
fn offset_misaligned() {
    for offset in [1, 16, 31] {
        let file = Raw::new().tensor("t", &[8], 0, offset).data(64);
        refuses(&file, &format!("tensor t: found offset {offset}, expected a multiple of 32"));
    }
}

#[test]
fn tensors_that_overlap() {
    let file = Raw::new().tensor("b", &[8], 0, 32).tensor("a", &[9], 0, 0).data(64);
    refuses(&file, "tensor b: found offset 32, expected 36 or more, where tensor a ends");
    let file = Raw::new().tensor("a", &[8], 0, 0).tensor("b", &[8], 0, 0).data(64);
    refuses(&file, "tensor b: found offset 0, expected 32 or more, where tensor a ends");
}

#[test]
fn tensors_in_any_order_and_with_gaps_are_accepted() {
    let file = Raw::new().tensor("b", &[8], 0, 64).tensor("a", &[8], 0, 0).data(96);
    accepted(&file.bytes(), |gguf| {
        let names: Vec<&str> = gguf.tensors().iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["b", "a"]);
        assert_eq!(gguf.data(&gguf.tensors()[0])[0], 65);
        assert_eq!(gguf.warnings(), [""; 0]);
    });
}

#[test]
fn offset_past_the_end() {
    for offset in [64, 96, 1 << 40] {
        let file = Raw::new().tensor("t", &[8], 0, offset).data(64);
        let (size, start) = (file.bytes().len() as u64, file.bytes().len() as u64 - 64);
        let end = format!("found the end of the file after {size} bytes");
        refuses(&file, &format!("tensor t: {end}, expected at least {}", start + offset + 32));
    }
}

#[test]
fn truncation_at_every_tensor_end() {
    let whole = Raw::tiny().bytes();
    let start = whole.len() - 96;
    // Nothing of "a"; a byte less than "a"; "a" alone; a byte less than everything.
    for (len, name, needed) in [(0, "a", 32), (31, "a", 32), (32, "b", 96), (64, "b", 96), (95, "b", 96)] {
        let end = format!("found the end of the file after {} bytes", start + len);
        let reason = format!("tensor {name}: {end}, expected at least {}", start + needed);
        assert_eq!(refused(&whole[..start + len]), reason);
    }
}

#[test]
fn trailing_bytes_are_a_warning() {
    let mut bytes = Raw::tiny().bytes();
    bytes.extend([0; 7]);
    let warnings = accepted(&bytes, |gguf| gguf.warnings().to_vec());
    assert_eq!(warnings.len(), 1);
    let warning = &warnings[0];
    assert!(warning.ends_with("model.gguf: 7 bytes after the end of the data are not used"), "{warning}");
}

#[test]
fn a_last_tensor_with_or_without_padding_is_fine() {
    let file = |n| Raw::new().tensor("t", &[3], 0, 0).data(n).bytes();
    for n in [12, 20, 32] {
        assert_eq!(accepted(&file(n), |gguf| gguf.warnings().to_vec()), [""; 0], "{n}");
    }
    assert_eq!(accepted(&file(33), |gguf| gguf.warnings().len()), 1);
}
