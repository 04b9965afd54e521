//! The programs on a real device, where one is at hand: `BRUCE_GPU` names it as `bruce-run devices` does (`CUDA0`, `Vulkan0`),
//! and the programs are built with its feature. What `BRUCE_GPU_LAUNCHER` holds is put before `bruce-run`: a loader, a checker
//! of memory. `make test-vulkan` runs these tests on Mesa's Vulkan driver for CPUs.

use crate::support::{bruce_quant, bruce_run, quantized, refused, root, run, skip, succeed};
use gguf::{Gguf, Layout, TensorSpec};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Mean divergence in nats of a device's predictions from the CPU's, which round activations where devices don't and add up in
/// another order. Found with Vulkan: up to 0.0005.
const NEAR: f64 = 0.002;

/// The same where both are computed on the device, in other places. Log-probabilities are compared with a file of 16 bits.
const SAME: f64 = 0.00005;

/// The device under test.
fn gpu() -> Option<String> {
    let name = std::env::var("BRUCE_GPU").ok().filter(|name| !name.is_empty());
    if name.is_none() {
        skip("BRUCE_GPU names no device");
    }
    name
}

/// `bruce-run` where it can reach the device, behind the launcher if there is one.
fn launched() -> Command {
    let plain = bruce_run();
    let launcher = std::env::var("BRUCE_GPU_LAUNCHER").unwrap_or_default();
    let mut words = launcher.split_whitespace();
    let Some(first) = words.next() else { return plain };
    let mut command = Command::new(first);
    command.args(words).arg(plain.get_program());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// Log-probabilities of a text's first 128 tokens by `command`, kept in `file`.
fn save(mut command: Command, model: &Path, file: &Path, flags: &[&str]) {
    command.arg("perplexity").arg(model).arg("-f").arg(root().join("models/tiny-moe/heldout.txt"));
    command.args(["-c", "128", "--chunks", "1", "--save-logits"]).arg(file).args(flags);
    succeed(&mut command);
}

/// Mean divergence of the device's predictions from those in `base`.
fn divergence(gpu: &str, model: &Path, base: &Path, flags: &[&str]) -> f64 {
    let mut command = launched();
    command.arg("kl-divergence").arg(model).arg("--base").arg(base).args(["--json", "-dev", gpu]).args(flags);
    let text = succeed(&mut command);
    let found: Value = serde_json::from_str(&text).expect("JSON");
    found["kld"]["value"].as_f64().unwrap_or_else(|| panic!("no number: {text}"))
}

#[test]
fn every_placement_predicts_what_the_cpu_does() {
    let Some(gpu) = gpu() else { return };
    let Some(model) = quantized("tinymoe", "Q4_K_M") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let base = folder.path().join("base");
    let plain = ["--kernels", "bruce", "--no-repack"];
    save(launched(), &model, &base, &[&plain[..], &["-dev", "none"]].concat());
    let half = (fs::metadata(&model).expect("a model").len() / 2).to_string();
    let places: [&[&str]; 10] = [
        &["-ngl", "all"],
        &["-ngl", "all", "-fa", "off"],
        &["-ngl", "2"],
        &["-ngl", "all", "-ncmoe", "2", "--stage-experts", "off"],
        &["-ngl", "all", "-cmoe", "--stage-experts", "off"],
        &["-ngl", "all", "-cmoe", "--stage-experts", "2"],
        &["-ngl", "all", "--expert-slots", "2", "--stage-experts", "off"],
        &["-ngl", "all", "--expert-slots", "2,1,0", "--fixed-experts", "--stage-experts", "2"],
        &["-ngl", "all", "--expert-slots", "2", "--expert-pool", &half],
        &["-ngl", "all", "-cmoe", "--expert-pool", &half, "--stage-experts", "2"],
    ];
    for place in places {
        // Batches that ggml has devices take over, smaller ones, and token by token, while experts move.
        for tokens in ["64", "23", "1"] {
            let flags = [&plain[..], place, &["-ub", tokens]].concat();
            let found = divergence(&gpu, &model, &base, &flags);
            assert!(found.abs() < NEAR, "{place:?}, {tokens} tokens at once: {found}");
        }
    }
    // As llama.cpp computes: its kernels on the CPU, some weights in a layout of their own.
    for place in &places[..5] {
        let found =
            divergence(&gpu, &model, &base, &[&["--kernels", "ggml"][..], place, &["-ub", "64"]].concat());
        assert!(found.abs() < NEAR, "{place:?}, ggml's kernels: {found}");
    }
}

#[test]
fn experts_copied_to_the_device_compute_as_those_that_stay_there() {
    let Some(gpu) = gpu() else { return };
    let Some(model) = quantized("tinymoe", "Q4_K_M") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let base = folder.path().join("base");
    // Fewer than ggml by itself has devices compute with the host's weights.
    let plain = ["--kernels", "bruce", "--no-repack", "-ub", "23", "-ngl", "all"];
    save(launched(), &model, &base, &[&plain[..], &["-dev", &gpu]].concat());
    let half = (fs::metadata(&model).expect("a model").len() / 2).to_string();
    let places: [&[&str]; 4] = [
        &["-cmoe"],
        &["-ncmoe", "1"],
        &["--expert-slots", "2", "--fixed-experts"],
        &["-cmoe", "--expert-pool", &half],
    ];
    for place in places {
        let staged = [&plain[..], place, &["--stage-experts", "2"]].concat();
        let found = divergence(&gpu, &model, &base, &staged);
        assert!(found.abs() < SAME, "{place:?}: {found}");
    }
    // Or else the numbers above would be the same wherever the experts are computed.
    let by_cpu = [&plain[..], &["-cmoe", "--stage-experts", "off"]].concat();
    let found = divergence(&gpu, &model, &base, &by_cpu);
    assert!(found.abs() > SAME && found < NEAR, "experts on the CPU: {found}");
}

#[test]
fn every_type_is_multiplied_as_the_cpu_does() {
    let Some(gpu) = gpu() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let types = [
        "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m",
        "q6_k", "iq4_nl", "iq4_xs", "iq3_s",
    ];
    for name in types {
        let [model, base] = ["model.gguf", "base"].map(|file| folder.path().join(file));
        let mut quantize = bruce_quant();
        quantize
            .arg(root().join("models/tiny-moe"))
            .args(["-q", name, "--force", "--quiet", "-o"])
            .arg(&model);
        succeed(&mut quantize);
        save(launched(), &model, &base, &["-dev", "none", "--kernels", "bruce"]);
        for tokens in ["64", "1"] {
            let found = divergence(&gpu, &model, &base, &["-ngl", "all", "-ub", tokens]);
            assert!(found.abs() < NEAR, "{name}, {tokens} tokens at once: {found}");
        }
    }
}

#[test]
fn experts_move_to_the_device_while_it_answers() {
    let Some(gpu) = gpu() else { return };
    let Some(model) = quantized("tinymoe", "Q4_K_M") else { return };
    let mut command = launched();
    command.arg("bench").arg(&model).args(["-p", "0", "-n", "64", "-r", "1", "-ngl", "all", "-dev", &gpu]);
    let text = succeed(command.args(["--expert-slots", "1", "-o", "json"]));
    let rows: Value = serde_json::from_str(&text).expect("JSON");
    let count = |name: &str| rows[0][name].as_u64().unwrap_or_else(|| panic!("{name} in {text}"));
    // Two experts for each token in each of three layers.
    assert_eq!(count("expert_hits") + count("expert_misses"), 64 * 2 * 3, "{text}");
    assert!(count("expert_hits") > 0, "{text}");
}

#[test]
fn answers_are_those_of_the_cpu_for_a_while() {
    let Some(gpu) = gpu() else { return };
    let Some(model) = quantized("tinymoe", "F16") else { return };
    let ask = |mut command: Command, flags: &[&str]| {
        command.arg(&model).args(["-p", "In the beginning", "-no-cnv", "-n", "8", "--temp", "0"]).args(flags);
        succeed(&mut command)
    };
    let expected = ask(launched(), &["-dev", "none"]);
    for place in [&["-cmoe"][..], &["--expert-slots", "2"], &[]] {
        let flags = [&["-dev", &gpu, "-ngl", "all"][..], place].concat();
        assert_eq!(ask(launched(), &flags), expected, "{place:?}");
    }
}

/// A file of a model whose experts take `expert_bytes`, none of which is on the disk.
fn huge(path: &Path, expert_bytes: u64) {
    let model = quantized("tinymoe", "F32").expect("tiny-moe ships with the project");
    let source = Gguf::open(&model).expect("our own file");
    let mut metadata = source.metadata().clone();
    let n_ff = source.metadata().u32("llama.feed_forward_length").expect("a number").expect("it is there");
    let experts = |name: &str| name.contains("_exps.");
    let n_bytes: u64 = source.tensors().iter().filter(|t| experts(&t.name)).map(|t| t.size).sum();
    let times = expert_bytes / n_bytes;
    metadata.set("llama.feed_forward_length", u32::try_from(u64::from(n_ff) * times).expect("a length"));
    let specs = source.tensors().iter().map(|t| {
        let mut ne = t.ne.clone();
        if experts(&t.name) {
            ne[usize::from(!t.name.contains("_down_"))] *= times;
        }
        TensorSpec { name: t.name.clone(), ne, ty: t.ty }
    });
    let layout = Layout::new(&metadata, &specs.collect::<Vec<_>>(), 32).expect("a layout");
    fs::write(path, layout.header()).expect("a file");
    let file = fs::OpenOptions::new().write(true).open(path).expect("the file");
    file.set_len(layout.total_size()).expect("a file of that length");
}

#[test]
fn what_does_not_fit_on_the_device_is_an_error_that_says_how_much() {
    let Some(gpu) = gpu() else { return };
    let Some(model) = quantized("tinymoe", "F16") else { return };
    let ask = |model: &Path, flags: &[&str]| {
        let mut command = launched();
        command.arg(model).args(["-p", "x", "-n", "1", "-no-cnv", "-dev", &gpu, "-ngl", "all"]).args(flags);
        run(&mut command)
    };
    let context = ask(&model, &["-c", "2000000000"]);
    refused(&context, 1, &[&gpu, "context of 2000000000 tokens", "needs", "TB", "are free"]);

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("huge.gguf");
    huge(&path, 1 << 39);
    let weights = ask(&path, &["-c", "128"]);
    refused(&weights, 1, &[&gpu, "GB", "free"]);
}
