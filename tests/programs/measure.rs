//! What the measuring subcommands of `bruce-run` find, against llama.cpp's own programs.

use crate::support::{bruce_quant, bruce_run, listing, quantized, refused, root, run, succeed};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

fn json(command: &mut Command) -> Value {
    let text = succeed(command);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// Reads a text of tiny-moe with a model in chunks of 256.
fn read_text(command: &str, model: &Path, n_chunks: &str) -> Command {
    let mut reading = bruce_run();
    reading.arg(command).arg(model).arg("-f").arg(root().join("models/tiny-moe/heldout.txt"));
    reading.args(["-c", "256", "--chunks", n_chunks]);
    reading
}

#[test]
fn kl_divergence_is_llama_perplexitys() {
    let (Some(base), Some(model)) = (quantized("tinymoe", "BF16"), quantized("tinymoe", "Q4_K_M")) else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let logits = folder.path().join("base.logits");
    succeed(read_text("perplexity", &base, "8").args(["--kernels", "ggml", "--save-logits"]).arg(&logits));
    assert_eq!(listing(folder.path()), ["base.logits"]);
    // As llama-perplexity writes it: 8 chunks of 127 rows.
    assert_eq!(fs::metadata(&logits).expect("a file").len(), 20 + 8 * 256 * 4 + 8 * 127 * (8 + 2 * 2048));

    let found = json(bruce_run().arg("kl-divergence").arg(&model).arg("--base").arg(&logits).args([
        "--json",
        "--kernels",
        "ggml",
    ]));
    assert_eq!((found["n_chunks"].as_u64(), found["n_scored"].as_u64()), (Some(8), Some(1016)));
    // What `llama-perplexity -c 256 --chunks 8` prints for the two files, on a CPU that multiplies BF16 directly.
    for (path, expected, tolerance) in [
        ("/perplexity/value", 39.0866, 0.002),
        ("/perplexity/error", 3.6922, 0.005),
        ("/perplexity_base/value", 38.0209, 0.002),
        ("/perplexity_correlation", 0.9957, 0.001),
        ("/kld/value", 0.015606, 0.03),
        ("/kld/error", 0.002114, 0.05),
        ("/kld_percentiles/median", 0.006849, 0.03),
        ("/kld_percentiles/99", 0.093554, 0.05),
        ("/kld_percentiles/maximum", 1.431849, 0.03),
        ("/rms_delta_p/value", 0.02237, 0.03),
        ("/same_top/value", 0.92913, 0.005),
        ("/same_top/error", 0.00805, 0.05),
    ] {
        let value = found.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN);
        assert!((value / expected - 1.0).abs() <= tolerance, "{path}: {value}, expected {expected}");
    }

    // llama-perplexity's spelling, and its text.
    let mut same = bruce_run();
    same.arg("perplexity").arg(&model).args(["--kl-divergence", "--chunks", "1", "--kl-divergence-base"]);
    let text = succeed(same.arg(&logits));
    for line in ["Mean PPL(Q)                   : ", "Mean    KLD: ", "99.9%   KLD: ", "Same top p: "] {
        assert!(text.contains(&format!("\n{line}")), "{line:?} is not in:\n{text}");
    }
    // Planned for the base's chunks, not for the usual ones.
    let little = ["--kernels", "bruce", "--ram", "1M", "--base"];
    let output = run(bruce_run().arg("kl-divergence").arg(&model).args(little).arg(&logits));
    refused(&output, 1, &["the model needs", "393.2 kB for KV cache"]);
    let other_size = ["-c", "512", "--base"];
    let output = run(bruce_run().arg("kl-divergence").arg(&model).args(other_size).arg(&logits));
    refused(&output, 1, &["-c", "512", "256", "base.logits"]);

    let bytes = fs::read(&logits).expect("a file");
    fs::write(&logits, &bytes[..bytes.len() - 1]).expect("a file");
    let output = run(bruce_run().arg("kl-divergence").arg(&model).arg("--base").arg(&logits));
    refused(&output, 1, &["base.logits", "4177875", "4177876"]);
}

#[test]
fn a_model_does_not_differ_from_itself() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let logits = folder.path().join("base.logits");
    succeed(read_text("perplexity", &model, "1").arg("--save-logits").arg(&logits));
    let found = json(bruce_run().arg("kl-divergence").arg(&model).arg("--base").arg(&logits).arg("--json"));
    // What the 16 bits of a saved log-probability leave.
    let at = |path: &str| found.pointer(path).and_then(Value::as_f64).expect("a number");
    assert!(at("/kld/value").abs() < 1e-5 && at("/rms_delta_p/value") < 1e-4, "{found}");
    assert!(at("/same_top/value") > 0.98, "{found}");
}

#[test]
fn importances_do_not_depend_on_how_experts_are_stored() {
    let Some(stacked) = quantized("tinymoe", "F32") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let split = folder.path().join("split.gguf");
    let mut quant = bruce_quant();
    quant.arg(root().join("models/tiny-moe")).args([
        "-q",
        "f32",
        "--expert-layout",
        "split",
        "--quiet",
        "-o",
    ]);
    succeed(quant.arg(&split));
    let collect = |model: &Path, name: &str| {
        let output = folder.path().join(name);
        let report = json(read_text("imatrix", model, "2").arg("--json").arg("-o").arg(&output));
        assert_eq!(report["n_weights"], 3 * 8, "{report}");
        assert_eq!(report["n_chunks"], 2, "{report}");
        fs::read(&output).expect("a file")
    };
    let first = collect(&stacked, "stacked.imatrix");
    assert!(first.starts_with(b"GGUF"));
    assert!(first == collect(&split, "split.imatrix"), "the layouts differ");

    // Twice the same text is twice the chunks.
    let mut both = bruce_run();
    both.arg("imatrix").args(["-c", "256", "--json", "-o"]).arg(folder.path().join("both"));
    for name in ["stacked.imatrix", "split.imatrix"] {
        both.arg("--in-file").arg(folder.path().join(name));
    }
    assert_eq!(json(&mut both)["n_chunks"], 4);
}
