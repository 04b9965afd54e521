//! `bruce-quant verify` on good files and damaged ones.

use crate::support::{bruce_quant, checkpoint, quantized, refused, root, run, succeed};
use gguf::Gguf;
use serde_json::Value;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A copy of a file with some of its bytes changed.
fn damaged(model: &Path, folder: &Path, damage: impl FnOnce(&Gguf, &mut [u8])) -> PathBuf {
    let mut bytes = fs::read(model).expect("a file");
    damage(&Gguf::open(model).expect("a model"), &mut bytes);
    let path = folder.join("damaged.gguf");
    fs::write(&path, bytes).expect("a file");
    path
}

/// Where one of `n` equal parts of a tensor lies in its file.
fn part_of(file: &Gguf, name: &str, part: u64, n: u64) -> Range<usize> {
    let tensor = file.tensor(name).unwrap_or_else(|| panic!("no {name}"));
    let size = tensor.size / n;
    let start = (tensor.offset + part * size) as usize;
    start..start + size as usize
}

fn swap(bytes: &mut [u8], a: Range<usize>, b: Range<usize>) {
    let first = bytes[a.clone()].to_vec();
    bytes.copy_within(b.clone(), a.start);
    bytes[b].copy_from_slice(&first);
}

fn against(model: &Path, source: &Path) -> Command {
    let mut command = bruce_quant();
    command.arg("verify").arg(model).arg("--against").arg(source);
    command
}

/// The report, of which every problem must hold all words of one of `expected`, in order.
fn problems(model: &Path, source: &Path, expected: &[&[&str]]) -> Value {
    let output = run(against(model, source).arg("--json"));
    assert_eq!(output.status.code(), Some(i32::from(!expected.is_empty())));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let found = report["problems"].as_array().expect("a list");
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (problem, words) in found.iter().zip(expected) {
        let text = problem.as_str().expect("a text");
        assert!(words.iter().all(|word| text.contains(word)), "{words:?} are not in: {text}");
    }
    report
}

#[test]
fn what_bruce_quant_writes_is_right() {
    for file_type in ["F32", "Q8_0", "Q4_K_M"] {
        let Some(model) = quantized("tinymoe", file_type) else { return };
        let text = succeed(bruce_quant().arg("verify").arg(&model));
        assert!(text.contains("nothing is wrong"), "{text}");
    }
}

#[test]
fn a_damaged_scale_is_found_with_its_expert() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let mut bytes = fs::read(&model).expect("a file");
    let name = "blk.1.ffn_up_exps.weight";
    let at = {
        let file = gguf::Gguf::open(&model).expect("a model");
        let tensor = file.tensor(name).expect("experts");
        (tensor.offset + tensor.size / 4 * 2) as usize
    };
    bytes[at..at + 2].copy_from_slice(&0x7e00u16.to_le_bytes());
    let folder = tempfile::tempdir().expect("a folder");
    let damaged = folder.path().join("damaged.gguf");
    fs::write(&damaged, bytes).expect("a file");
    refused(&run(bruce_quant().arg("verify").arg(&damaged)), 1, &["damaged.gguf", name, "NaN", "expert 2"]);
    let output = run(bruce_quant().args(["verify", "--json"]).arg(&damaged));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["problems"].as_array().map(Vec::len), Some(1), "{report}");
    refused(&run(bruce_quant().arg("verify")), 2, &["FILE"]);
}

#[test]
fn every_weight_is_compared_whatever_the_layouts() {
    let source = checkpoint("tinymoe").expect("it ships");
    let folder = tempfile::tempdir().expect("a folder");
    let split = folder.path().join("split.gguf");
    let options = ["-q", "q4_k", "--expert-layout", "split", "--split-max-size", "2M", "--quiet", "-o"];
    succeed(bruce_quant().arg(&source).args(options).arg(&split));
    let parts = folder.path().join("split-00002-of-00002.gguf");
    let stacked = quantized("tinymoe", "Q4_K_M").expect("it ships");
    let bf16 = quantized("tinymoe", "BF16").expect("it ships");
    let of_checkpoint = problems(&stacked, &source, &[]);
    assert_eq!(of_checkpoint["source_is_recorded_one"], true, "{of_checkpoint}");
    // The same numbers come out against the checkpoint, a file of its values, and in the other layout.
    let mut same = vec![problems(&stacked, &bf16, &[])];
    let split = if parts.exists() { parts } else { folder.path().join("split-00001-of-00003.gguf") };
    same.push(problems(&split, &source, &[]));
    for other in same {
        assert_eq!(other["total"], of_checkpoint["total"]);
        assert_eq!(other["roles"], of_checkpoint["roles"]);
    }
    let total = &of_checkpoint["total"];
    let n = Gguf::open(&stacked).expect("a file");
    let n: u64 = n.tensors().iter().map(|t| t.ne.iter().product::<u64>()).sum();
    assert_eq!(total["n_weights"].as_u64(), Some(n));
    let relative = total["relative_rmse"].as_f64().expect("a number");
    assert!((0.01..0.1).contains(&relative), "{total}");
    // What is not rounded is the same.
    let report = problems(&quantized("tinymoe", "F32").expect("it ships"), &source, &[]);
    assert_eq!(
        (report["total"]["rmse"].as_f64(), report["total"]["cosine"].as_f64()),
        (Some(0.0), Some(1.0))
    );
}

#[test]
fn exchanged_and_permuted_tensors_are_named() {
    let source = checkpoint("tinymoe").expect("it ships");
    let model = quantized("tinymoe", "Q8_0").expect("it ships");
    let folder = tempfile::tempdir().expect("a folder");
    let name = "blk.1.ffn_up_exps.weight";
    let exchanged = damaged(&model, folder.path(), |file, bytes| {
        swap(bytes, part_of(file, name, 0, 4), part_of(file, name, 2, 4));
    });
    let output = run(against(&exchanged, &source).arg("--json"));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let found = report["problems"].to_string();
    for words in [["blk.1.ffn_up_exps.weight expert 0", "experts.2.w3"], ["expert 2", "experts.0.w3"]] {
        assert!(words.iter().all(|word| found.contains(word)), "{words:?}: {found}");
    }
    assert!(!found.contains("expert 1:") && !found.contains("attn"), "{found}");

    // Rows of the query projection as the checkpoint has them.
    let unpermuted =
        damaged(&quantized("tinymoe", "F32").expect("it ships"), folder.path(), |file, bytes| {
            let n_head =
                u64::from(file.metadata().u32("llama.attention.head_count").expect("a number").unwrap());
            let name = "blk.0.attn_q.weight";
            for head in 0..n_head {
                let rows: Vec<u8> = bytes[part_of(file, name, head, n_head)].to_vec();
                let row = file.tensor(name).expect("it").ne[0] as usize * 4;
                let n = rows.len() / row;
                let at = part_of(file, name, head, n_head).start;
                for i in 0..n {
                    let from = if i < n / 2 { 2 * i } else { 2 * (i - n / 2) + 1 };
                    bytes[at + i * row..at + (i + 1) * row]
                        .copy_from_slice(&rows[from * row..(from + 1) * row]);
                }
            }
        });
    problems(&unpermuted, &source, &[&["blk.0.attn_q.weight", "cosine", "rotary halves not interleaved"]]);
    refused(
        &run(&mut against(&unpermuted, &source)),
        1,
        &["damaged.gguf", "blk.0.attn_q.weight", "0.999 for F32"],
    );
}

#[test]
fn experts_that_are_much_alike_are_told_apart() {
    // Experts of real merges differ by a few percent, less than 2 bits leave of a weight.
    let folder = tempfile::tempdir().expect("a folder");
    let name = "blk.0.ffn_gate_exps.weight";
    let alike = damaged(&quantized("tinymoe", "F32").expect("it ships"), folder.path(), |file, bytes| {
        let first = bytes[part_of(file, name, 0, 4)].to_vec();
        for expert in 1..4 {
            let own = part_of(file, name, expert, 4);
            for (weight, base) in bytes[own].chunks_exact_mut(4).zip(first.chunks_exact(4)) {
                let own = f32::from_le_bytes(weight.try_into().expect("four bytes"));
                let base = f32::from_le_bytes(base.try_into().expect("four bytes"));
                weight.copy_from_slice(&(base + 0.1 * own).to_le_bytes());
            }
        }
    });
    let source = folder.path().join("alike.gguf");
    fs::rename(alike, &source).expect("a name");
    let model = folder.path().join("q4.gguf");
    succeed(bruce_quant().arg(&source).args(["-q", "q4_k", "--pure", "--quiet", "-o"]).arg(&model));
    problems(&model, &source, &[]);
    let exchanged = damaged(&model, folder.path(), |file, bytes| {
        swap(bytes, part_of(file, name, 1, 4), part_of(file, name, 3, 4));
    });
    problems(
        &exchanged,
        &source,
        &[
            &["ffn_gate_exps.weight expert 1", "ffn_gate", "nearer"],
            &["ffn_gate_exps.weight expert 3", "nearer"],
        ],
    );
    let twice = damaged(&model, folder.path(), |file, bytes| {
        let own = part_of(file, name, 1, 4);
        bytes.copy_within(own, part_of(file, name, 3, 4).start);
    });
    problems(&twice, &source, &[&["ffn_gate_exps.weight expert 3", "found the weights of", "ffn_gate"]]);
}

#[test]
fn experts_that_rounding_takes_back_to_one_grid_are_not_taken_for_exchanged() {
    // Its experts are one network, which had been quantized before, each with noise of its own.
    let (Some(model), Some(source)) = (quantized("smol4x", "Q4_K_M"), checkpoint("smol4x")) else { return };
    problems(&model, &source, &[]);
}

#[test]
fn missing_and_surplus_tensors_and_other_numbers_are_problems() {
    let source = checkpoint("tinymoe").expect("it ships");
    let model = quantized("tinymoe", "Q8_0").expect("it ships");
    let folder = tempfile::tempdir().expect("a folder");
    let find = |bytes: &[u8], text: &str| {
        bytes.windows(text.len()).position(|window| window == text.as_bytes()).expect("it is there")
    };
    let renamed = damaged(&model, folder.path(), |_, bytes| {
        let at = find(bytes, "blk.1.ffn_norm.weight");
        bytes[at..at + 21].copy_from_slice(b"blk.1.ffn_nerm.weight");
    });
    problems(
        &renamed,
        &source,
        &[
            &["blk.1.ffn_nerm.weight", "the source does not have"],
            &["blk.1.ffn_norm.weight", "found none", "model.layers.1"],
        ],
    );
    let other_base = damaged(&model, folder.path(), |_, bytes| {
        let at = find(bytes, "llama.rope.freq_base") + 20 + 4;
        bytes[at..at + 4].copy_from_slice(&777.0f32.to_le_bytes());
    });
    problems(&other_base, &source, &[&["llama.rope.freq_base", "found 777"]]);
    // Set on purpose it is not a problem.
    let set = folder.path().join("set.gguf");
    let option = ["-q", "q8_0", "--override-kv", "llama.rope.freq_base=float:777", "--quiet", "-o"];
    succeed(bruce_quant().arg(&source).args(option).arg(&set));
    let report = problems(&set, &source, &[]);
    assert!(report["warnings"].to_string().contains("--override-kv"), "{report}");
    // And so where weights were only copied, which keeps the command that quantized them.
    let (copy, again) = (folder.path().join("copy.gguf"), folder.path().join("again.gguf"));
    for (from, to, set) in
        [(&model, &copy, "llama.rope.freq_base=float:777"), (&copy, &again, "llama.expert_used_count=int:1")]
    {
        let option = ["-q", "copy", "--quiet", "--override-kv", set, "-o"];
        succeed(bruce_quant().arg(from).args(option).arg(to));
    }
    let report = problems(&again, &source, &[]);
    let warnings = report["warnings"].as_array().expect("a list");
    assert_eq!(warnings.iter().filter(|w| w.to_string().contains("--override-kv")).count(), 2, "{report}");
    assert_eq!(report["source_is_recorded_one"], true);
    refused(&run(&mut against(&model, &root().join("models"))), 1, &["config.json"]);
}

#[test]
fn every_type_is_looked_at() {
    let source = checkpoint("tinymoe").expect("it ships");
    let folder = tempfile::tempdir().expect("a folder");
    for file_type in ["IQ3_S", "IQ4_XS", "Q1_0", "TQ2_0", "MXFP4_MOE", "Q5_0", "Q2_K"] {
        let model = folder.path().join(format!("{file_type}.gguf"));
        succeed(bruce_quant().arg(&source).args(["-q", file_type, "--quiet", "-o"]).arg(&model));
        let report = problems(&model, &source, &[]);
        assert_eq!(report["unchecked_tensors"].as_array().map(Vec::len), Some(0), "{report}");
        assert_eq!(report["n_tensors"], report["n_tensors_checked"]);
    }
    // An exponent that stands for NaN, which ggml decodes to a number.
    let model = folder.path().join("MXFP4_MOE.gguf");
    let name = "blk.0.ffn_down_exps.weight";
    let bad = damaged(&model, folder.path(), |file, bytes| {
        let at = part_of(file, name, 3, 4).start + 2 * 17;
        bytes[at] = 0xff;
    });
    refused(&run(bruce_quant().arg("verify").arg(&bad)), 1, &[name, "expert 3", "NaN", "block 2"]);
}

#[test]
fn the_same_input_and_options_give_the_same_bytes() {
    let source = checkpoint("tinymoe").expect("it ships");
    let folder = tempfile::tempdir().expect("a folder");
    let (one, other) = (folder.path().join("one"), folder.path().join("other"));
    fs::create_dir_all(&one).and_then(|()| fs::create_dir_all(&other)).expect("folders");
    let copy = other.join("tiny-moe");
    fs::create_dir(&copy).expect("a folder");
    for entry in fs::read_dir(&source).expect("a folder") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), copy.join(entry.file_name())).expect("a copy");
    }
    succeed(bruce_quant().arg(&source).args(["-q", "q4_k,q8_0", "-t", "1", "--quiet", "-o"]).arg(&one));
    for file_type in ["q8_0", "q4_k"] {
        succeed(bruce_quant().arg(&copy).args(["--quiet", "-t", "3", "-q", file_type, "-o"]).arg(&other));
    }
    for name in ["tiny-moe-Q4_K_M.gguf", "tiny-moe-Q8_0.gguf"] {
        assert!(fs::read(one.join(name)).unwrap() == fs::read(other.join(name)).unwrap(), "{name} differs");
        let file = Gguf::open(&one.join(name)).expect("a model");
        let text = |key: &str| file.metadata().str(key).expect("a text").unwrap_or_default().to_owned();
        let file_type = name.trim_start_matches("tiny-moe-").trim_end_matches(".gguf");
        assert_eq!(text("bruce.command"), format!("bruce-quant MODEL -q {file_type}"));
        assert_eq!(text("bruce.version"), env!("CARGO_PKG_VERSION"));
        assert_eq!(text("bruce.source.fingerprint").len(), 64);
    }
}
