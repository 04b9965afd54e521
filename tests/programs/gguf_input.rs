//! `bruce-quant` fed with GGUF files. That a file equals the one that llama-quantize makes of the same input was checked
//! against llama-quantize itself; here files are held against those made from the checkpoint, which golden facts prove.

use crate::support::{bruce_quant, checkpoint, listing, quantized, refused, run, stderr, succeed};
use gguf::Gguf;
use quants::TensorType;
use std::fs;
use std::path::{Path, PathBuf};

/// A file made from another by `bruce-quant`.
fn made_from(input: &Path, folder: &Path, arguments: &[&str]) -> PathBuf {
    let output = folder.join(format!("{}.gguf", listing(folder).len()));
    succeed(bruce_quant().arg(input).args(arguments).arg("-o").arg(&output));
    output
}

fn assert_same(found: &Path, expected: &Path) {
    let same = fs::read(found).expect("a file") == fs::read(expected).expect("a file");
    assert!(same, "{} is not {}", found.display(), expected.display());
}

/// The same model, made of something else or with other options.
fn assert_same_but_for_the_making(found: &Path, expected: &Path) {
    let (a, b) = (Gguf::open(found).expect("a model"), Gguf::open(expected).expect("a model"));
    assert_eq!(entries(&a), entries(&b));
    let names =
        |file: &Gguf| file.tensors().iter().map(|t| (t.name.clone(), t.ne.clone(), t.ty)).collect::<Vec<_>>();
    assert_eq!(names(&a), names(&b));
    for (x, y) in a.tensors().iter().zip(b.tensors()) {
        assert!(
            a.data(x) == b.data(y),
            "{}: {} is not as in {}",
            x.name,
            found.display(),
            expected.display()
        );
    }
}

/// Metadata but for what the file says about its making.
fn entries(file: &Gguf) -> Vec<(String, gguf::Value)> {
    let all = file.metadata().iter().map(|(key, value)| (key.to_owned(), value.clone()));
    all.filter(|(key, _)| !key.starts_with("bruce.")).collect()
}

#[test]
fn a_16_bit_file_gives_what_the_checkpoint_gives() {
    for (model, types) in [("tinymoe", ["Q8_0", "Q4_K_M", "Q6_K"]), ("tiny8", ["Q4_K_M", "Q4_K_S", "Q8_0"])] {
        let Some(input) = quantized(model, "BF16") else { return };
        let folder = tempfile::tempdir().expect("a folder");
        for ty in types {
            let expected = quantized(model, ty).expect("made from the same checkpoint");
            assert_same_but_for_the_making(&made_from(&input, folder.path(), &["-q", ty]), &expected);
        }
    }
}

#[test]
fn experts_are_stacked_and_split_without_touching_a_weight() {
    let Some(stacked) = quantized("tinymoe", "Q4_K_M") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let split = made_from(&stacked, folder.path(), &["-q", "copy", "--expert-layout", "split"]);
    let opened = Gguf::open(&split).expect("a file");
    assert!(
        opened.tensor("blk.0.ffn_up.3.weight").is_some()
            && opened.tensor("blk.0.ffn_up_exps.weight").is_none()
    );
    assert_same(&made_from(&split, folder.path(), &["-q", "copy"]), &stacked);
    let of_checkpoint = folder.path().join("split.gguf");
    let model = checkpoint("tinymoe").expect("it ships with the project");
    let mut command = bruce_quant();
    command.arg(model).args(["-q", "q4_k", "--expert-layout", "split", "-o"]).arg(&of_checkpoint);
    succeed(&mut command);
    assert_same_but_for_the_making(&split, &of_checkpoint);
}

#[test]
fn experts_of_different_types_are_not_stacked_as_they_are() {
    let Some(stacked) = quantized("tinymoe", "F16") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let split = made_from(&stacked, folder.path(), &["-q", "copy", "--expert-layout", "split"]);
    // F16 (1) becomes BF16 (30) in the entry of one expert: name, two axes, extents, type.
    let mut bytes = fs::read(&split).expect("the file");
    let name = b"blk.1.ffn_down.2.weight";
    let at = bytes.windows(name.len()).position(|w| w == name).expect("the entry") + name.len() + 4 + 16;
    assert_eq!(bytes[at..at + 4], [1, 0, 0, 0]);
    bytes[at] = 30;
    fs::write(&split, bytes).expect("the file");
    let output = folder.path().join("refused.gguf");
    let mut command = bruce_quant();
    let said = run(command.arg(&split).args(["-q", "copy", "-o"]).arg(&output));
    refused(&said, 1, &["blk.1.ffn_down_exps.weight", "F16", "BF16"]);
    assert!(!output.exists());
    made_from(&split, folder.path(), &["-q", "copy", "--expert-layout", "split"]);
}

#[test]
fn quantized_weights_are_quantized_again_only_on_request() {
    let Some(input) = quantized("tinymoe", "Q8_0") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("model.gguf");
    let mut command = bruce_quant();
    let said = run(command.arg(&input).args(["-q", "q4_k", "-o"]).arg(&output));
    refused(&said, 1, &["output.weight", "Q8_0", "expected F32, F16 or BF16"]);
    assert!(stderr(&said).contains("--allow-requantize") && !output.exists());
    let again = made_from(&input, folder.path(), &["-q", "q4_k", "--allow-requantize"]);
    let (again, direct) =
        (Gguf::open(&again).expect("a file"), quantized("tinymoe", "Q4_K_M").expect("a file"));
    let direct = Gguf::open(&direct).expect("a file");
    assert_eq!(entries(&again), entries(&direct));
    let types = |file: &Gguf| file.tensors().iter().map(|t| (t.name.clone(), t.ty)).collect::<Vec<_>>();
    assert_eq!(types(&again), types(&direct));
    assert!(types(&again).iter().any(|(_, ty)| *ty == TensorType::Q6_K));
}

#[test]
fn a_name_is_put_in_place_of_the_old_one() {
    let Some(input) = quantized("tinymoe", "Q8_0") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let renamed =
        Gguf::open(&made_from(&input, folder.path(), &["-q", "copy", "--name", "Other"])).expect("a file");
    assert_eq!(renamed.metadata().str("general.name").expect("a text"), Some("Other"));
    let before = Gguf::open(&input).expect("a file");
    let keys = |file: &Gguf| file.metadata().iter().map(|(key, _)| key.to_owned()).collect::<Vec<_>>();
    assert_eq!(keys(&renamed), keys(&before));
}

#[test]
fn outputs_are_called_as_the_input_but_for_the_type() {
    let Some(input) = quantized("tinymoe", "BF16") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    fs::copy(&input, folder.path().join("model.bf16.gguf")).expect("a copy");
    succeed(bruce_quant().arg(folder.path().join("model.bf16.gguf")).args(["-q", "q8_0,q4_k"]));
    assert_eq!(listing(folder.path()), ["model-Q4_K_M.gguf", "model-Q8_0.gguf", "model.bf16.gguf"]);
}

#[test]
fn the_input_is_never_replaced() {
    let Some(input) = quantized("tinymoe", "Q8_0") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let copy = folder.path().join("model-Q8_0.gguf");
    fs::copy(&input, &copy).expect("a copy");
    refused(&run(bruce_quant().arg(&copy).args(["-q", "copy", "--force"])), 1, &["found the input"]);
    assert_same(&copy, &input);
}

#[test]
fn damaged_files_are_refused_with_what_is_wrong() {
    let Some(input) = quantized("tinymoe", "BF16") else { return };
    let good = fs::read(&input).expect("a file");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("damaged.gguf");
    let replaced = |from: &[u8], to: &[u8]| {
        assert_eq!(from.len(), to.len());
        let mut bytes = good.clone();
        let places: Vec<usize> =
            bytes.windows(from.len()).enumerate().filter(|(_, w)| *w == from).map(|(at, _)| at).collect();
        assert!(!places.is_empty(), "nothing to replace");
        places.iter().for_each(|at| bytes[*at..at + to.len()].copy_from_slice(to));
        bytes
    };
    let data =
        Gguf::open(&input).expect("a file").tensor("blk.1.attn_q.weight").expect("a tensor").offset as usize;
    let mut nan = good.clone();
    nan[data + 6..data + 8].copy_from_slice(&[0xc0, 0x7f]);
    let cases: [(Vec<u8>, &[&str]); 5] = [
        (
            replaced(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0gemma"),
            &["general.architecture", "gemma"],
        ),
        (
            replaced(b"blk.2.attn_v.weight", b"blk.2.attn_w.weight"),
            &["unknown tensors", "blk.2.attn_w.weight"],
        ),
        (
            replaced(b"blk.2.attn_v.weight", b"blk.9.attn_v.weight"),
            &["unknown tensors", "blk.9.attn_v.weight"],
        ),
        (nan, &["blk.1.attn_q.weight", "[0, 3]", "NaN"]),
        (good[..good.len() - 4096].to_vec(), &["damaged.gguf"]),
    ];
    for (bytes, words) in cases {
        fs::write(&path, bytes).expect("a file");
        let mut command = bruce_quant();
        refused(
            &run(command.arg(&path).args(["-q", "q8_0", "-o"]).arg(folder.path().join("x.gguf"))),
            1,
            words,
        );
        assert_eq!(listing(folder.path()), ["damaged.gguf"]);
    }
    fs::write(&path, replaced(b"blk.2.attn_v.weight", b"blk.2.attn_w.weight")).expect("a file");
    let mut command = bruce_quant();
    let said = run(command.arg(&path).args(["-q", "q8_0", "--ignore-unknown-tensors"]));
    refused(&said, 1, &["missing blk.2.attn_v.weight"]);
}
