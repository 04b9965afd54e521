//! The types that tensors get by file type, rule and importance matrix, against what llama-quantize gives them
//! (`tests/golden`).

use crate::support::{bruce_quant, bruce_run, checkpoint, golden, refused, run, stderr, succeed};
use gguf::{Gguf, Overwrite};
use imatrix::{Entry, Imatrix};
use quants::TensorType;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

fn sha256(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// The rows of a golden table below its head, in columns.
fn rows(table: &str) -> Vec<Vec<String>> {
    let rows: Vec<Vec<String>> =
        golden(table).lines().skip(1).map(|line| line.split('\t').map(str::to_owned).collect()).collect();
    assert!(!rows.is_empty(), "{table} is empty");
    rows
}

/// The types of all tensors by file type, as a dry run shows them.
fn planned(model: &Path, file_types: &[&str], options: &[&str]) -> HashMap<String, BTreeMap<String, String>> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = bruce_quant();
    command
        .arg(model)
        .args(["-q", &file_types.join(","), "--dry-run", "-o"])
        .arg(folder.path())
        .args(options);
    let mut outputs = HashMap::new();
    let mut types = &mut BTreeMap::new();
    for line in succeed(&mut command).lines() {
        if let Some(name) = line.strip_suffix(".gguf") {
            let file_type = name.rsplit_once('-').expect("name and type").1.to_owned();
            types = outputs.entry(file_type).or_default();
        } else if let [name, ty, ..] = line.split_whitespace().collect::<Vec<_>>()[..]
            && name.ends_with(".weight")
        {
            types.insert(name.to_owned(), ty.to_owned());
        }
    }
    outputs
}

/// Importances for every matrix of a model, all alike: which types are chosen depends on their being there alone.
fn any_importances(model: &Path, folder: &Path) -> PathBuf {
    let all = folder.join("bf16.gguf");
    succeed(bruce_quant().arg(model).args(["-q", "bf16", "--quiet", "-o"]).arg(&all));
    let file = Gguf::open(&all).expect("our own file");
    let matrices = file.tensors().iter().filter(|t| t.ty == TensorType::BF16 && t.name.starts_with("blk."));
    let entry = |t: &gguf::TensorInfo| {
        let n_mats = *t.ne.get(2).unwrap_or(&1) as usize;
        (t.name.clone(), Entry::new(vec![3.0; t.ne[0] as usize * n_mats], vec![2; n_mats]))
    };
    let imatrix = Imatrix { entries: matrices.map(entry).collect(), ..Imatrix::default() };
    let path = folder.join("imatrix.gguf");
    imatrix.write(&path, Overwrite::Replace).expect("a file of importances");
    std::fs::remove_file(all).expect("the file is there");
    path
}

fn compare_recipes(model: &str) {
    let Some(folder) = checkpoint(model) else { return };
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let importances = any_importances(&folder, temporary.path());
    let table = rows("recipes.tsv");
    for (with, options) in
        [("no", vec![]), ("yes", vec!["--imatrix", importances.to_str().expect("a path of UTF-8")])]
    {
        let facts: Vec<_> = table.iter().filter(|row| row[0] == model && row[2] == with).collect();
        let file_types: Vec<&str> = facts.iter().map(|row| row[1].as_str()).collect();
        assert!(file_types.len() > 20, "{model} is hardly in the table");
        let planned = planned(&folder, &file_types, &options);
        for row in facts {
            let types = &planned[&row[1]];
            let lines: String = types.iter().map(|(name, ty)| format!("{name} {ty}\n")).collect();
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            types.values().for_each(|ty| *counts.entry(ty).or_default() += 1);
            let counts: Vec<String> = counts.iter().map(|(ty, n)| format!("{ty}:{n}")).collect();
            assert_eq!(counts.join(" "), row[3], "{model} {} importances: {with}", row[1]);
            assert_eq!(sha256(lines), row[4], "{model} {} importances: {with}", row[1]);
        }
    }
}

#[test]
fn tensors_get_the_types_that_llama_quantize_gives_them() {
    for model in ["tinymoe", "tiny3", "tiny4", "tiny8", "tinyd", "smol4x"] {
        compare_recipes(model);
    }
}

#[test]
fn types_that_need_importances_are_refused_without() {
    let model = checkpoint("tinymoe").expect("it ships");
    for file_type in ["iq2_xxs", "iq1_m", "q2_k_s", "iq3_xxs"] {
        let output = run(bruce_quant().arg(&model).args(["-q", file_type, "--dry-run"]));
        refused(&output, 1, &["found type", "without importances"]);
    }
}

#[test]
fn importances_of_another_model_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("imatrix.gguf");
    let entry = Entry::new(vec![1.0; 256 * 3], vec![1; 3]);
    let entries = [("blk.0.ffn_up_exps.weight".to_owned(), entry)].into();
    Imatrix { entries, ..Imatrix::default() }.write(&path, Overwrite::Refuse).expect("a file");
    let model = checkpoint("tinymoe").expect("it ships");
    let output = run(bruce_quant().arg(&model).args(["-q", "q4_k", "--dry-run", "--imatrix"]).arg(&path));
    refused(
        &output,
        1,
        &["imatrix.gguf: blk.0.ffn_up_exps.weight", "found importances of 768 columns", "1024"],
    );
}

#[test]
fn rules_that_choose_nothing_are_warned_of() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = crate::support::root().join("models/tiny-moe");
    let imatrix = any_importances(&model, folder.path());
    let warned = |options: &[&str], words: &str| {
        let output =
            run(bruce_quant().arg(&model).args(["-q", "q4_k", "--dry-run", "-o", "x.gguf"]).args(options));
        assert!(output.status.success(), "{}", stderr(&output));
        let said = stderr(&output);
        assert!(said.lines().any(|line| line.starts_with("warning: ") && line.contains(words)), "{said}");
    };
    let imatrix = imatrix.to_str().expect("a path");
    let with = |option, name| ["--imatrix", imatrix, option, name];
    warned(&with("--exclude-weights", "fnf_up"), "\"fnf_up\"");
    warned(&[&with("--include-weights", "ffn_up")[..], &["--include-weights", "fnf"]].concat(), "\"fnf\"");
    let table = folder.path().join("types.txt");
    std::fs::write(&table, "# nothing yet\n").expect("a table");
    let table = table.to_str().expect("a path");
    warned(&["--expert-layout", "split", "--expert-types", table], "the table is empty");
}

#[test]
fn experts_of_different_types_are_loaded() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (table, out) = (folder.path().join("experts.txt"), folder.path().join("mixed.gguf"));
    std::fs::write(&table, "* 0 down q8_0\n1-2 2 iq4_xs\n").expect("a table");
    let model = checkpoint("tinymoe").expect("it ships");
    let mut command = bruce_quant();
    command
        .arg(&model)
        .args(["-q", "q4_k", "--quiet", "--expert-layout", "split", "--expert-types"])
        .arg(&table);
    command.args(["--tensor-type", r"ffn_.*\.3=q6_k", "-o"]).arg(&out);
    succeed(&mut command);
    let file = Gguf::open(&out).expect("our own file");
    let ty = |name: &str| file.tensor(name).expect("a tensor").ty;
    assert_eq!(ty("blk.0.ffn_up.3.weight"), TensorType::Q6_K);
    assert_eq!(ty("blk.2.ffn_down.0.weight"), TensorType::Q8_0);
    assert_eq!(ty("blk.0.ffn_gate.2.weight"), TensorType::Q4_K);
    assert_eq!(ty("blk.1.ffn_gate.2.weight"), TensorType::IQ4_XS);
    let said =
        succeed(bruce_run().arg("-m").arg(&out).args(["-p", "In the beginning", "-n", "8", "--temp", "0"]));
    assert!(said.trim().len() > 8, "{said:?}");
    // In one tensor for all experts there is no room for this.
    let output =
        run(bruce_quant().arg(&model).args(["-q", "q4_k", "--dry-run", "--expert-types"]).arg(&table));
    refused(&output, 1, &["types by expert", "expert layout split"]);
}

#[test]
fn metadata_entries_can_be_set() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("x.gguf");
    let mut command = bruce_quant();
    command.arg(checkpoint("tinymoe").expect("it ships")).args(["-q", "q8_0", "--quiet", "-o"]).arg(&out);
    command.args(["--override-kv", "tokenizer.ggml.add_bos_token=bool:false", "--override-kv", "x.y=int:7"]);
    succeed(&mut command);
    let file = Gguf::open(&out).expect("our own file");
    assert_eq!(file.metadata().bool("tokenizer.ggml.add_bos_token").expect("a bool"), Some(false));
    assert_eq!(file.metadata().u32("x.y").expect("a number"), Some(7));
    for (text, said) in [
        ("x=int", "KEY=KIND:VALUE"),
        ("x=int:-1", "whole number"),
        ("general.alignment=int:7", "depend"),
        ("llama.block_count=str:4", "a whole number (int) for llama.block_count"),
        ("llama.rope.freq_base=int:10000", "(float) for llama.rope.freq_base"),
    ] {
        let model = checkpoint("tinymoe").expect("it ships");
        let output = run(bruce_quant().arg(model).args(["-q", "q8_0", "--dry-run", "--override-kv", text]));
        refused(&output, 2, &["--override-kv", said]);
    }
    // Of the right kind, but no such model has it, or not with these tensors.
    for (text, said) in
        [("llama.rope.freq_base=float:-1", "positive"), ("llama.block_count=int:9", "tensors")]
    {
        let model = checkpoint("tinymoe").expect("it ships");
        let output = run(bruce_quant().arg(model).args(["-q", "q8_0", "--dry-run", "--override-kv", text]));
        refused(&output, 1, &[text.split_once('=').expect("a key").0, said]);
    }
}
