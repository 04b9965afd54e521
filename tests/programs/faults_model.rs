//! Models that are not what they should be, and command lines that make no sense.

use crate::support::{
    bruce_quant, bruce_run, listing, quantized, refused, run, stderr, succeed, tiny_moe_copy,
};
use gguf::{Gguf, Layout, Metadata, Overwrite, TensorSpec, Value, Writer};
use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn command_lines_that_make_no_sense_are_usage_errors() {
    type Case<'a> = (&'a mut dyn FnMut() -> Command, &'a [&'a str], &'a str);
    let cases: [Case<'_>; 9] = [
        (&mut bruce_quant, &[], "MODEL"),
        (&mut bruce_quant, &["model"], "quant"),
        (&mut bruce_quant, &["model", "-q", "q4_k", "--frce"], "--frce"),
        (&mut bruce_quant, &["model", "-q", "q4_k", "-t", "0"], "0"),
        (&mut bruce_quant, &["model", "-q", "q4_k,q4_k"], "twice"),
        (&mut bruce_quant, &["model", "-q", ""], "expected"),
        (&mut bruce_run, &[], "model"),
        (&mut bruce_run, &["model.gguf", "--tmp", "0"], "--tmp"),
        (&mut bruce_run, &["model.gguf", "-n", "many"], "many"),
    ];
    for (program, args, word) in cases {
        refused(&run(program().args(args)), 2, &[word]);
    }
}

#[test]
fn help_shows_examples_and_version_shows_what_was_built() {
    for program in [bruce_quant, bruce_run] {
        let help = succeed(program().arg("--help"));
        assert!(help.contains("Examples:") && help.contains(".gguf"), "{help}");
        let version = succeed(program().arg("--version"));
        assert!(version.contains(env!("CARGO_PKG_VERSION")) && version.contains("ggml"), "{version}");
    }
}

#[test]
fn what_is_no_checkpoint_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    fs::write(&file, "").expect("a file");
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).expect("a folder");
    for (model, word) in [(folder.path().join("missing"), "missing"), (file, "file"), (empty, "config.json")]
    {
        let output =
            run(bruce_quant().arg(&model).args(["-q", "q8_0", "-o"]).arg(folder.path().join("out.gguf")));
        refused(&output, 1, &[word]);
        assert!(!listing(folder.path()).contains(&"out.gguf".to_owned()));
    }
}

/// Quantizes a damaged copy of tiny-moe and expects a refusal that has `words` in it, and nothing left.
fn damaged(damage: impl FnOnce(&Path), words: &[&str]) {
    let model = tiny_moe_copy();
    damage(model.path());
    let folder = tempfile::tempdir().expect("a folder");
    let output =
        run(bruce_quant().arg(model.path()).args(["-q", "q8_0", "-o"]).arg(folder.path().join("out.gguf")));
    refused(&output, 1, words);
    assert!(listing(folder.path()).is_empty(), "left {:?}", listing(folder.path()));
}

fn cut(path: &Path, len: u64) {
    fs::OpenOptions::new().write(true).open(path).and_then(|f| f.set_len(len)).expect("a shorter file");
}

#[test]
fn cut_weights_are_refused() {
    for len in [0, 7, 8, 100, 4000, 1_000_000, 8_012_111] {
        damaged(|model| cut(&model.join("model.safetensors"), len), &["model.safetensors"]);
    }
}

#[test]
fn a_pointer_in_place_of_weights_is_named() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 8012112\n";
    damaged(|model| fs::write(model.join("model.safetensors"), pointer).expect("a file"), &["git-lfs"]);
}

#[test]
fn pickled_weights_are_refused_with_advice() {
    damaged(
        |model| {
            fs::rename(model.join("model.safetensors"), model.join("pytorch_model.bin"))
                .expect("another name");
        },
        &["safetensors"],
    );
}

#[test]
fn a_missing_or_broken_tokenizer_is_refused() {
    damaged(|model| fs::remove_file(model.join("tokenizer.model")).expect("one file less"), &["tokenizer"]);
    damaged(|model| cut(&model.join("tokenizer.model"), 1000), &["tokenizer.model"]);
}

#[test]
fn another_architecture_is_refused_with_the_supported_ones() {
    damaged(
        |model| {
            let path = model.join("config.json");
            let config = fs::read_to_string(&path).expect("the config");
            let config = config.replace("MixtralForCausalLM", "GPTBigCodeForCausalLM\\u001b[2J");
            fs::write(path, config).expect("a file");
        },
        &["GPTBigCodeForCausalLM", "Mixtral"],
    );
}

#[test]
fn messages_about_files_of_strangers_hold_no_escape_sequences() {
    let model = tiny_moe_copy();
    let path = model.path().join("config.json");
    let config = fs::read_to_string(&path).expect("the config");
    fs::write(&path, config.replace("MixtralForCausalLM", "\\u001b[31mEvil\\u0007")).expect("a file");
    let output = run(bruce_quant().arg(model.path()).args(["-q", "q8_0", "--dry-run"]));
    refused(&output, 1, &["Evil"]);
    assert!(!output.stderr.contains(&0x1b) && !output.stderr.contains(&7), "{:?}", stderr(&output));
}

/// Runs a file that is no model.
fn run_file(bytes: &[u8], words: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    fs::write(&path, bytes).expect("a file");
    for args in [&["-p", "Hello"][..], &["-n", "1"]] {
        refused(&run(bruce_run().arg(&path).args(args)), 1, words);
    }
    refused(&run(bruce_run().arg("inspect").arg(&path)), 1, words);
}

#[test]
fn what_is_no_gguf_is_named() {
    run_file(b"", &["model.gguf", "empty"]);
    run_file(b"<!DOCTYPE html>\n<html><head><title>Sign in</title>", &["model.gguf", "web page"]);
    run_file(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", &["git-lfs"]);
    run_file(b"PK\x03\x04 a zip file or a pickled checkpoint", &["model.gguf", "zip archive"]);
    run_file(
        b"GGUF\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01",
        &["big-endian"],
    );
    run_file(b"GGUF\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", &["version", "1"]);
}

#[test]
fn a_folder_or_nothing_in_place_of_a_model_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    refused(&run(bruce_run().arg(folder.path()).args(["-p", "Hello"])), 1, &["director"]);
    refused(&run(bruce_run().arg(folder.path().join("no.gguf")).args(["-p", "Hello"])), 1, &["no.gguf"]);
}

#[test]
fn a_model_cut_short_is_refused() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let whole = fs::read(&model).expect("the model");
    for len in [3, 4, 8, 23, 24, 100, 5000, whole.len() / 2, whole.len() - 1] {
        run_file(&whole[..len], &["model.gguf"]);
    }
}

/// A copy of tiny-moe's GGUF with changed metadata.
fn with_metadata(path: &Path, change: impl FnOnce(&mut Metadata)) {
    let model = quantized("tinymoe", "Q8_0").expect("tiny-moe ships with the project");
    let source = Gguf::open(&model).expect("our own file");
    let mut metadata = source.metadata().clone();
    change(&mut metadata);
    let specs: Vec<TensorSpec> = source
        .tensors()
        .iter()
        .map(|t| TensorSpec { name: t.name.clone(), ne: t.ne.clone(), ty: t.ty })
        .collect();
    let layout = Layout::new(&metadata, &specs, 32).expect("a layout");
    let writer = Writer::create(path, layout, Overwrite::Replace).expect("a writer");
    for (i, tensor) in source.tensors().iter().enumerate() {
        writer.write_at(i, 0, source.data(tensor)).expect("a tensor");
    }
    writer.finish().expect("a file");
}

#[test]
fn metadata_that_contradicts_itself_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    let cases: [(&str, Value); 12] = [
        ("general.architecture", Value::String("mamba".into())),
        ("llama.block_count", Value::U32(0)),
        ("llama.block_count", Value::U32(u32::MAX)),
        ("llama.attention.head_count", Value::U32(0)),
        ("llama.attention.head_count", Value::U32(5)),
        ("llama.expert_used_count", Value::U32(5)),
        ("llama.expert_count", Value::U32(1025)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(f32::NAN)),
        ("llama.rope.freq_base", Value::F32(0.0)),
        ("llama.embedding_length", Value::String("256".into())),
        ("tokenizer.ggml.bos_token_id", Value::U32(2048)),
        ("tokenizer.ggml.scores", Value::U32(1)),
    ];
    for (key, value) in cases {
        with_metadata(&path, |metadata| drop(metadata.insert(key, value.clone())));
        let output = run(bruce_run().arg(&path).args(["-p", "Hello", "-n", "1"]));
        let word = key.rsplit('.').next().expect("a word");
        refused(&output, 1, &["model.gguf", word]);
    }
}

#[test]
fn a_terminal_does_not_obey_a_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    with_metadata(&path, |metadata| {
        metadata.insert("general.name", Value::String("\u{1b}]0;owned\u{7}".into()));
        let Some(Value::Array(gguf::Array::String(tokens))) = metadata.get("tokenizer.ggml.tokens") else {
            panic!("no tokens");
        };
        let mut tokens = tokens.clone();
        // The likeliest words after the prompt below begin with this piece.
        let the = tokens.iter().position(|t| t == "\u{2581}the").expect("the");
        tokens[the] = "\u{2581}the\u{1b}[31m".into();
        metadata.insert("tokenizer.ggml.tokens", Value::Array(gguf::Array::String(tokens)));
    });
    let shown = |args: &str| {
        let program = env!("CARGO_BIN_EXE_bruce-run");
        let mut script = Command::new("script");
        script
            .args(["-qefc", &format!("'{program}' {args}"), "/dev/null"])
            .env("TERM", "dumb")
            .env("NO_COLOR", "1");
        script
    };
    if !crate::support::tool(Command::new("script").args(["-qefc", "true", "/dev/null"])) {
        return;
    }
    let inspected = succeed(&mut shown(&format!("inspect '{}'", path.display())));
    assert!(inspected.contains("owned") && !inspected.contains("\u{1b}]0;"), "{inspected:?}");
    let args = format!("'{}' -p 'In the beginning God created' -n 24 --temp 0 -no-cnv", path.display());
    let answer = succeed(&mut shown(&args));
    assert!(answer.contains("[31m") && !answer.contains("\u{1b}[31m"), "{answer:?}");
}
