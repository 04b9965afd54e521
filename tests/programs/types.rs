//! Every file type of every test model, byte for byte what llama-quantize makes (`tests/golden/types.tsv`), without
//! importances and with them in both formats.
//!
//! The i-quants below four bits take minutes, and so does the real model: these are checked where `BRUCE_GOLDEN_ALL` is
//! set, but for tiny-moe.

use crate::support::{bruce_quant, checkpoint, golden, skip, succeed};
use gguf::{Gguf, Overwrite};
use imatrix::{Entry, Imatrix};
use quants::TensorType;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// The tokens that every expert but the unreached ones saw.
const CALLS: u64 = 8;
/// The calls in the legacy file.
const LEGACY_CALLS: i32 = 3;

/// A row of the table.
struct Fact {
    model: String,
    file_type: String,
    importances: String,
    sha256: String,
}

fn facts(model: &str) -> Vec<Fact> {
    let of_row = |line: &str| {
        let columns: Vec<String> = line.split('\t').map(str::to_owned).collect();
        let [model, file_type, importances, sha256] = columns.try_into().expect("four columns");
        Fact { model, file_type, importances, sha256 }
    };
    let facts: Vec<Fact> =
        golden("types.tsv").lines().skip(1).map(of_row).filter(|fact| fact.model == model).collect();
    assert!(!facts.is_empty(), "{model} is not in types.tsv");
    facts
}

/// Whether every row is checked, whatever it takes.
fn all_are_wanted() -> bool {
    std::env::var_os("BRUCE_GOLDEN_ALL").is_some()
}

/// Whether a row is among the quick ones.
fn is_quick(fact: &Fact) -> bool {
    let is_slow = ["IQ1", "IQ2", "IQ3"].iter().any(|slow| fact.file_type.starts_with(slow));
    match fact.model.as_str() {
        "tinymoe" => true,
        "smol4x" => false,
        _ => !is_slow,
    }
}

fn sha256(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// The hash over name, type, shape and bytes of all tensors, sorted by name.
fn digest(file: &Gguf) -> String {
    let mut lines: Vec<String> = file
        .tensors()
        .iter()
        .map(|t| {
            let ne: Vec<String> = t.ne.iter().map(u64::to_string).collect();
            format!("{} {} {} {}\n", t.name, t.ty.name(), ne.join(","), sha256(file.data(t)))
        })
        .collect();
    lines.sort();
    sha256(lines.concat())
}

fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

/// Sums of squares from 1/128 to 1024, as `tools/make-golden-types.py` invents them: SplitMix64 from the name's hash on.
fn invented(name: &str, n: usize) -> Vec<f32> {
    let seed = fnv1a(name);
    let sum = |i: usize| {
        let mut x = seed.wrapping_add((i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^= x >> 31;
        ((x & 1023) as f32 + 1.0) / (1_u32 << (x >> 10 & 7)) as f32
    };
    (0..n).map(sum).collect()
}

/// Importances for every matrix of the layers. Of every fourth stack, counted by the hash of the name, no token reached
/// the last matrix.
fn importances(model: &Path, folder: &Path) -> Vec<(String, Entry)> {
    let all = folder.join("bf16.gguf");
    succeed(bruce_quant().arg(model).args(["-q", "bf16", "--via", "bf16", "--quiet", "-o"]).arg(&all));
    let file = Gguf::open(&all).expect("our own file");
    let matrices = file.tensors().iter().filter(|t| t.ty == TensorType::BF16 && t.name.starts_with("blk."));
    let entry = |t: &gguf::TensorInfo| {
        let n_mats = *t.ne.get(2).unwrap_or(&1) as usize;
        let mut counts = vec![CALLS; n_mats];
        if n_mats > 1 && fnv1a(&t.name).is_multiple_of(4) {
            counts[n_mats - 1] = 0;
        }
        (t.name.clone(), Entry::new(invented(&t.name, t.ne[0] as usize * n_mats), counts))
    };
    let entries = matrices.map(entry).collect();
    fs::remove_file(all).expect("the file is there");
    entries
}

/// The importances as a file of the format that the table names.
fn write_importances(format: &str, entries: &[(String, Entry)], folder: &Path) -> PathBuf {
    let path = folder.join(format!("imatrix.{format}"));
    if format == "gguf" {
        let imatrix = Imatrix { entries: entries.iter().cloned().collect(), ..Imatrix::default() };
        imatrix.write(&path, Overwrite::Replace).expect("a file of importances");
        return path;
    }
    let mut bytes = Vec::new();
    let number = |bytes: &mut Vec<u8>, n: usize| bytes.extend((n as i32).to_le_bytes());
    number(&mut bytes, entries.len());
    for (name, entry) in entries {
        number(&mut bytes, name.len());
        bytes.extend(name.as_bytes());
        bytes.extend(LEGACY_CALLS.to_le_bytes());
        number(&mut bytes, entry.sums.len());
        bytes.extend(entry.sums.iter().flat_map(|sum| sum.to_le_bytes()));
    }
    number(&mut bytes, 1);
    number(&mut bytes, "invented".len());
    bytes.extend(b"invented");
    fs::write(&path, bytes).expect("a file of importances");
    path
}

fn compare(model: &str) {
    let (facts, slow): (Vec<Fact>, Vec<Fact>) =
        facts(model).into_iter().partition(|fact| all_are_wanted() || is_quick(fact));
    if !slow.is_empty() {
        let mut names: Vec<&str> = slow.iter().map(|fact| fact.file_type.as_str()).collect();
        names.dedup();
        let (n, names) = (slow.len(), names.join(", "));
        skip(&format!("{n} rows of {model} are for BRUCE_GOLDEN_ALL=1, as they take minutes: {names}"));
    }
    if facts.is_empty() {
        return;
    }
    let Some(checkpoint) = checkpoint(model) else { return };
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
    let entries = importances(&checkpoint, folder.path());
    let mut different = Vec::new();
    for format in ["no", "gguf", "dat"] {
        let facts: Vec<&Fact> = facts.iter().filter(|fact| fact.importances == format).collect();
        // Several from one read, but not all at a time, for the disk's sake.
        for facts in facts.chunks(6) {
            let file_types: Vec<&str> = facts.iter().map(|fact| fact.file_type.as_str()).collect();
            let mut command = bruce_quant();
            command.arg(&checkpoint).args(["-q", &file_types.join(","), "--via", "bf16", "--quiet"]);
            command.args(["--name", "x", "-o"]).arg(folder.path());
            if format != "no" {
                command.arg("--imatrix").arg(write_importances(format, &entries, folder.path()));
            }
            succeed(&mut command);
            for fact in facts {
                let path = folder.path().join(format!("x-{}.gguf", fact.file_type));
                let file = Gguf::open(&path).expect("our own file");
                if digest(&file) != fact.sha256 {
                    different.push(format!("{} importances: {format}", fact.file_type));
                }
                let entries = file.metadata().u32("quantize.imatrix.entries_count").expect("a number");
                assert_eq!(entries.is_some(), format != "no");
                drop(file);
                fs::remove_file(path).expect("our own file");
            }
        }
    }
    assert!(different.is_empty(), "{model}: other bytes than llama-quantize's for {different:?}");
}

#[test]
fn tiny_moe_in_all_types() {
    compare("tinymoe");
}

#[test]
fn three_experts_in_all_types() {
    compare("tiny3");
}

#[test]
fn four_experts_in_all_types() {
    compare("tiny4");
}

#[test]
fn eight_experts_in_all_types() {
    compare("tiny8");
}

#[test]
fn a_dense_mistral_in_all_types() {
    compare("tinyd");
}

#[test]
fn a_real_model_in_all_types() {
    compare("smol4x");
}
