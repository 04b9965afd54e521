//! `bruce-quant --target-size`, `--target-bpw` and `--recipe moe`: files of a size that was asked for.

use crate::support::{bruce_quant, bruce_run, checkpoint, listing, quantized, refused, run, succeed};
use gguf::Gguf;
use quants::TensorType;
use std::fs;
use std::path::{Path, PathBuf};

/// The only file that these arguments make of a model, in `folder`, which was empty.
fn made(model: &Path, folder: &Path, arguments: &[&str]) -> PathBuf {
    succeed(bruce_quant().arg(model).args(arguments).args(["--quiet", "-o"]).arg(folder));
    let names = listing(folder);
    assert_eq!(names.len(), 1, "{names:?}");
    folder.join(&names[0])
}

fn size(path: &Path) -> u64 {
    path.metadata().expect("a file").len()
}

#[test]
fn a_file_keeps_to_the_size_and_runs() {
    let model = checkpoint("tinymoe").expect("it ships with the project");
    let folder = tempfile::tempdir().expect("a folder");
    let path = made(&model, folder.path(), &["--target-size", "1.5M", "--threads", "2"]);
    let name = path.file_name().expect("a name").to_string_lossy().into_owned();
    assert!(name.starts_with("tiny-moe-1.5M-Q"), "{name}");
    let found = size(&path);
    assert!(found <= 1_500_000 && found > 1_450_000, "{found} bytes");
    succeed(bruce_quant().arg("verify").arg(&path));
    let answer = succeed(bruce_run().arg(&path).args(["-p", "Once", "-n", "4", "--temp", "0"]));
    assert!(!answer.trim().is_empty());

    let again = tempfile::tempdir().expect("a folder");
    let again = made(&model, again.path(), &["--target-size", "1500k", "--threads", "1"]);
    assert!(again.to_string_lossy().contains("-1500k-Q"), "{}", again.display());
    let same = fs::read(&again).expect("a file") == fs::read(&path).expect("a file");
    assert!(same, "one thread gave other bytes than two");
}

#[test]
fn bits_per_weight_are_those_of_the_tensors() {
    let model = checkpoint("tinymoe").expect("it ships with the project");
    let plan = succeed(bruce_quant().arg(&model).args(["--target-bpw", "5", "--dry-run"]));
    assert!(plan.starts_with("models") || plan.contains("tiny-moe-5bpw-Q"), "{plan}");
    let (before, _) = plan.split_once(" bits per weight").expect("the totals");
    let bits: f64 = before.rsplit_once(' ').expect("a number").1.parse().expect("a number");
    assert!(bits <= 5.0 && bits > 4.9, "{bits} bits per weight");
}

#[test]
fn experts_that_stand_apart_and_parts_keep_to_the_size_too() {
    let model = checkpoint("tinymoe").expect("it ships with the project");
    let folder = tempfile::tempdir().expect("a folder");
    let options =
        ["--target-size", "1.6M", "--expert-layout", "split", "--split-max-size", "1M", "--quiet", "-o"];
    succeed(bruce_quant().arg(&model).args(options).arg(folder.path()));
    let names = listing(folder.path());
    assert!(names.len() > 1, "{names:?}");
    let total: u64 = names.iter().map(|name| size(&folder.path().join(name))).sum();
    assert!(total <= 1_600_000 && total > 1_500_000, "{total} bytes");
    let file = Gguf::open(&folder.path().join(&names[0])).expect("a file");
    assert!(file.tensor("blk.0.ffn_up.3.weight").is_some());
}

#[test]
fn a_gguf_file_is_made_smaller_and_rules_are_kept() {
    let input = quantized("tinymoe", "BF16").expect("it ships with the project");
    let folder = tempfile::tempdir().expect("a folder");
    let rules = ["--tensor-type", "attn_v=q5_0", "--output-tensor-type", "q6_k"];
    let path = made(&input, folder.path(), &[&["--target-size", "2M"], &rules[..]].concat());
    assert!(size(&path) <= 2_000_000);
    let file = Gguf::open(&path).expect("a file");
    let ty = |name: &str| file.tensor(name).expect("the tensor").ty;
    assert_eq!(ty("blk.0.attn_v.weight"), TensorType::Q5_0);
    assert_eq!(ty("blk.0.attn_norm.weight"), TensorType::F32);
}

#[test]
fn targets_that_cannot_be_met_are_refused_with_the_least_that_can() {
    let model = checkpoint("tinymoe").expect("it ships with the project");
    let with = |arguments: &[&str]| run(bruce_quant().arg(&model).args(arguments).arg("--dry-run"));
    let output = with(&["--target-size", "100k"]);
    refused(&output, 1, &["target: found 100000 bytes, expected", "bytes at least"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("hint: with --imatrix"), "{said}");
    let least = said.split_once("expected ").and_then(|(_, rest)| rest.split_once(' ')).expect("a number").0;
    assert!(with(&["--target-size", least]).status.success(), "{least} bytes");
    refused(&with(&["--target-size", "12X"]), 2, &["12X", "12G"]);
    refused(&with(&["--target-bpw", "0"]), 2, &["bits per weight"]);
    refused(&with(&["--target-size", "2M", "-q", "q4_k"]), 2, &["--quant"]);
    let plan = String::from_utf8(with(&["--target-size", "1T"]).stdout).expect("UTF-8");
    assert!(plan.contains("-1T-BF16.gguf"), "{plan}");
}

#[test]
fn the_recipe_for_experts_is_never_larger() {
    for name in ["tinymoe", "tiny3", "tiny4", "tiny8"] {
        let Some(model) = checkpoint(name) else { return };
        let sizes = |options: &[&str]| -> Vec<u64> {
            let types = "q2_k,q3_k_m,q4_k_s,q4_k_m,q5_k_m,q6_k,bf16";
            let plan = succeed(bruce_quant().arg(&model).args(["-q", types, "--dry-run"]).args(options));
            let bytes = |line: &str| line.split_once(" bytes), ")?.0.rsplit_once('(')?.1.parse().ok();
            plan.lines().filter_map(bytes).collect()
        };
        let (theirs, ours) = (sizes(&[]), sizes(&["--recipe", "moe"]));
        assert_eq!(theirs.len(), 7);
        assert!(
            // The command in the metadata is longer.
            ours.iter().zip(&theirs).all(|(o, t)| *o <= t + 32 && *o > t / 100 * 95),
            "{name}: {ours:?}, {theirs:?}"
        );
        // The types of single tensors, without the totals.
        let types = |options: &[&str]| -> Vec<String> {
            let plan = succeed(bruce_quant().arg(&model).args(["-q", "q3_k_m", "--dry-run"]).args(options));
            plan.lines().filter(|line| line.contains(".weight")).map(str::to_owned).collect()
        };
        assert_ne!(types(&[]), types(&["--recipe", "moe"]), "{name}: nothing was shifted");
        assert!(theirs[6].abs_diff(ours[6]) <= 32);
    }
}

#[test]
fn where_nothing_is_clearly_better_tensors_are_llama_cpp_s() {
    let model = checkpoint("tinymoe").expect("it ships with the project");
    let folder = tempfile::tempdir().expect("a folder");
    let (theirs, ours) = (folder.path().join("theirs.gguf"), folder.path().join("ours.gguf"));
    succeed(bruce_quant().arg(&model).args(["-q", "q5_k_m", "--quiet", "-o"]).arg(&theirs));
    let mut moe = bruce_quant();
    moe.arg(&model).args(["-q", "q5_k_m", "--recipe", "moe", "-o"]).arg(&ours);
    let output = run(&mut moe);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("note: --recipe moe: Q5_K_M keeps"), "{said}");
    let (theirs, ours) = (Gguf::open(&theirs).expect("a file"), Gguf::open(&ours).expect("a file"));
    for tensor in theirs.tensors() {
        let other = ours.tensor(&tensor.name).expect("the same tensors");
        assert_eq!((other.ty, ours.data(other)), (tensor.ty, theirs.data(tensor)), "{}", tensor.name);
    }
    // A type that has nothing to be shifted is not passed over in silence.
    let output = run(bruce_quant().arg(&model).args(["-q", "q8_0", "--recipe", "moe", "--dry-run"]));
    assert!(String::from_utf8_lossy(&output.stderr).contains("note: --recipe moe: Q8_0 keeps"));
}
