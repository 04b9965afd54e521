//! What the subcommands of `bruce-run` print.

use crate::support::{bruce_quant, bruce_run, quantized, refused, run, succeed, tiny_moe_copy};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

/// The subcommand's JSON for a test model.
fn json(command: &mut Command) -> Value {
    let text = succeed(command);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// Runs with text on stdin.
fn fed(command: &mut Command, text: &str) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a program");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("the text is read");
    let output = child.wait_with_output().expect("an end");
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn inspect_shows_what_a_file_holds() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let text = succeed(bruce_run().arg("inspect").arg(&model));
    for word in ["general.architecture", "llama", "string[2048]", "blk.2.ffn_up_exps.weight", "256 x 256 x 4"]
    {
        assert!(text.contains(word), "{word} is not in:\n{text}");
    }
    let metadata = succeed(bruce_run().args(["inspect", "--metadata"]).arg(&model));
    assert!(metadata.contains("llama.expert_count") && !metadata.contains("ffn_up_exps"), "{metadata}");
    let tensors = succeed(bruce_run().args(["inspect", "--tensors"]).arg(&model));
    assert!(!tensors.contains("llama.expert_count") && tensors.contains("ffn_up_exps"), "{tensors}");
}

#[test]
fn inspect_in_json_adds_up() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let report = json(bruce_run().args(["inspect", "--json"]).arg(&model));
    assert_eq!(report["metadata"]["llama.expert_count"]["value"], 4);
    assert_eq!(report["metadata"]["tokenizer.ggml.tokens"]["length"], 2048);
    assert_eq!(report["file_size_bytes"], fs::metadata(&model).expect("a file").len());
    let sum = |list: &Value, key: &str| -> u64 {
        let values: Vec<&Value> = match list {
            Value::Array(list) => list.iter().collect(),
            Value::Object(map) => map.values().collect(),
            _ => panic!("no list"),
        };
        values.iter().map(|v| v[key].as_u64().expect("a number")).sum()
    };
    for key in ["n_weights", "size_bytes"] {
        assert_eq!(sum(&report["tensors"], key), sum(&report["types"], key), "{key}");
    }
    assert_eq!(
        sum(&report["types"], "n_tensors"),
        report["tensors"].as_array().expect("a list").len() as u64
    );
    let full = json(bruce_run().args(["inspect", "--json", "--full"]).arg(&model));
    assert_eq!(full["metadata"]["tokenizer.ggml.tokens"]["value"].as_array().map(Vec::len), Some(2048));
}

#[test]
fn tokenize_takes_text_from_everywhere() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("text");
    fs::write(&file, "In the beginning").expect("a file");
    let tokenize = || {
        let mut command = bruce_run();
        command.arg("tokenize").arg(&model);
        command
    };
    let given = succeed(tokenize().args(["--ids", "-p", "In the beginning"]));
    assert!(given.starts_with("[1, ") && given.ends_with("]\n"), "{given}");
    assert_eq!(succeed(tokenize().arg("--ids").arg("-f").arg(&file)), given);
    assert_eq!(fed(tokenize().args(["--ids", "--stdin"]), "In the beginning"), given);
    assert_eq!(fed(tokenize().args(["--ids", "--stdin"]), r"In the\x20beginning"), given);
    let bare = succeed(tokenize().args(["--ids", "--no-bos", "-p", "In the beginning"]));
    assert_eq!(bare, given.replace("[1, ", "["));
    let lines = succeed(tokenize().args(["--show-count", "-p", "In the beginning"]));
    assert!(lines.starts_with("     1 -> '<s>'\n") && lines.contains("Total number of tokens: "), "{lines}");
    let count = lines.lines().count() - 1;
    assert!(lines.ends_with(&format!(": {count}\n")), "{lines}");
    let report = json(tokenize().args(["--json", "-p", "In the beginning"]));
    assert_eq!(report["count"], count);
}

#[test]
fn a_typed_control_token_is_text_where_asked() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let ids = |flag: &str| {
        let mut command = bruce_run();
        json(command.arg("tokenize").arg(&model).args(["--ids", "--no-bos", flag, "-p", "</s>"]))
    };
    assert_eq!(ids("--parse-special"), serde_json::json!([2]));
    assert!(ids("--no-parse-special").as_array().is_some_and(|list| list.len() > 1));
}

#[test]
fn tokenize_without_a_text_is_a_usage_error() {
    refused(&run(bruce_run().args(["tokenize", "model.gguf"])), 2, &["text"]);
    refused(&run(bruce_run().args(["tokenize", "model.gguf", "-p", "a", "--stdin"])), 2, &["--stdin"]);
}

#[test]
fn bench_has_llama_benchs_columns() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let bench = |format: &str| {
        let mut command = bruce_run();
        succeed(command.arg("bench").arg(&model).args(["-p", "8", "-n", "4", "-r", "2", "-o", format]))
    };
    let table = bench("md");
    assert!(table.starts_with("| model ") && table.contains(" pp8 |") && table.contains(" tg4 |"), "{table}");
    assert!(table.contains(" ± "), "{table}");
    let list: Value = serde_json::from_str(&bench("json")).expect("JSON");
    for test in list.as_array().expect("a list") {
        assert_eq!(test["samples_ns"].as_array().map(Vec::len), Some(2));
        assert!(test["avg_ts"].as_f64().is_some_and(|rate| rate > 0.0), "{test}");
        assert_eq!(test["n_prompt"].as_u64().unwrap_or(0) + test["n_gen"].as_u64().unwrap_or(0), {
            if test["n_gen"] == 0 { 8 } else { 4 }
        });
    }
    assert_eq!(bench("jsonl").lines().count(), 2);
    let values = bench("csv");
    let lines: Vec<&str> = values.lines().collect();
    assert_eq!((lines.len(), lines[0].split(',').next()), (3, Some("build_commit")));
    assert!(bench("sql").contains("INSERT INTO llama_bench (build_commit, "));
}

#[test]
fn a_bench_that_fails_leaves_no_half_table() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    for format in ["md", "json", "csv", "sql"] {
        let output = run(bruce_run().args(["bench", "missing.gguf", "-p", "8", "-n", "0", "-o", format]));
        refused(&output, 1, &["missing.gguf"]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{format}");
    }
    // What was measured before is printed as a whole.
    let flags = ["missing.gguf", "-p", "8", "-n", "0", "-r", "1", "-o", "json"];
    let output = run(bruce_run().arg("bench").arg(&model).args(flags));
    refused(&output, 1, &["missing.gguf"]);
    let list: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(list.as_array().map(Vec::len), Some(1));
}

#[test]
fn perplexity_is_llama_cpps() {
    // The 20th value of llama-perplexity on the files that llama.cpp makes of the same checkpoint.
    for (file_type, expected) in [("BF16", 38.2868), ("Q8_0", 38.2648), ("Q4_K_M", 38.5783)] {
        let Some(model) = quantized("tinymoe", file_type) else { return };
        let text = crate::support::root().join("models/tiny-moe/heldout.txt");
        let mut command = bruce_run();
        let report = json(command.arg("perplexity").arg(&model).arg("-f").arg(&text).args([
            "-c",
            "256",
            "--chunks",
            "20",
            "--kernels",
            "ggml",
            "--json",
        ]));
        let found = report["perplexity"].as_f64().expect("a number");
        assert!((found - expected).abs() < 0.02, "{file_type}: found {found:.4}, expected {expected}");
    }
}

/// 512, as llama-perplexity has it, unless `-c 0` asks for the model's own context.
#[test]
fn a_chunk_has_the_size_that_is_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model.gguf");
    let root = crate::support::root();
    let key = "llama.context_length=int:1024";
    let mut quant = bruce_quant();
    quant.arg(root.join("models/tiny-moe")).args(["-q", "q8_0", "--quiet", "--override-kv", key, "-o"]);
    succeed(quant.arg(&model));
    let size = |flags: &[&str]| {
        let mut command = bruce_run();
        command.arg("perplexity").arg(&model).arg("-f").arg(root.join("models/tiny-moe/heldout.txt"));
        json(command.args(["--chunks", "1", "--json"]).args(flags))["chunk_size"].as_u64()
    };
    assert_eq!([size(&[]), size(&["-c", "0"]), size(&["-c", "256"])], [Some(512), Some(1024), Some(256)]);
}

#[test]
fn a_text_too_short_for_perplexity_is_refused() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let mut text = tempfile::NamedTempFile::new().expect("a file");
    text.write_all(b"In the beginning").expect("a text");
    let mut command = bruce_run();
    refused(&run(command.arg("perplexity").arg(&model).arg("-f").arg(text.path())), 1, &["1024"]);
}

#[test]
fn a_chunk_too_short_to_be_scored_is_refused() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let perplexity = |size: &str| {
        let mut command = bruce_run();
        command
            .arg("perplexity")
            .arg(&model)
            .arg("-f")
            .arg(crate::support::root().join("models/tiny-moe/heldout.txt"));
        command.args(["--chunks", "2", "--json", "-c", size]);
        command
    };
    refused(&run(&mut perplexity("2")), 2, &["-c", "found 2", "at least 3"]);
    assert!(json(&mut perplexity("3"))["perplexity"].as_f64().is_some_and(|found| found > 1.0));
}

#[test]
fn devices_name_the_cpu() {
    assert!(succeed(bruce_run().arg("devices")).contains("CPU"));
    let list = json(bruce_run().args(["devices", "--json"]));
    assert!(list.as_array().expect("a list").iter().any(|device| device["kind"] == "CPU"), "{list}");
    // Where Linux says what is free, that is not all there is.
    if cfg!(target_os = "linux") {
        let cpu = list.as_array().and_then(|list| list.iter().find(|device| device["kind"] == "CPU"));
        let bytes = |key: &str| cpu.and_then(|cpu| cpu[key].as_u64()).expect("a number");
        assert!(bytes("memory_free_bytes") < bytes("memory_total_bytes"), "{list}");
    }
}

#[test]
fn kernels_use_the_level_that_is_asked_for() {
    let with = |level: &str| {
        let mut command = bruce_run();
        command.arg("devices").env("BRUCE_KERNEL_LEVEL", level);
        command
    };
    assert!(succeed(&mut with("scalar")).contains("\nKernel level: scalar (BRUCE_KERNEL_LEVEL takes scalar"));
    let list = json(with("scalar").arg("--json"));
    assert!(
        list.as_array().expect("a list").iter().any(|device| device["kernel_level"] == "scalar"),
        "{list}"
    );
    let last_line = |command: &mut Command| succeed(command).lines().last().map(str::to_owned);
    let unset = last_line(bruce_run().arg("devices").env_remove("BRUCE_KERNEL_LEVEL"));
    assert_eq!(last_line(&mut with("")), unset);
    for level in ["avx3", "AVX2"] {
        refused(&run(&mut with(level)), 2, &["BRUCE_KERNEL_LEVEL", level, "scalar"]);
    }
}

#[test]
fn every_subcommand_has_examples() {
    for name in ["inspect", "tokenize", "bench", "perplexity", "kl-divergence", "imatrix", "devices"] {
        let help = succeed(bruce_run().args([name, "--help"]));
        assert!(help.contains("Examples:\n  bruce-run ") && help.contains(name), "{help}");
        assert_eq!(help, succeed(bruce_run().args([name, "-h"])));
    }
}

#[test]
fn llama_cpps_variables_count_where_a_flag_is_missing() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let answer = |command: &mut Command| {
        let answer = json(command.args(["-p", "In the beginning", "--temp", "0", "--output", "json"]));
        answer["tokens"].as_array().map_or(0, Vec::len)
    };
    assert_eq!(answer(bruce_run().env("LLAMA_ARG_MODEL", &model).env("LLAMA_ARG_N_PREDICT", "3")), 3);
    assert_eq!(answer(bruce_run().arg(&model).env("LLAMA_ARG_N_PREDICT", "3").args(["-n", "5"])), 5);
    // They don't get in the way of a subcommand.
    succeed(bruce_run().env("LLAMA_ARG_CTX_SIZE", "512").arg("inspect").arg(&model));
}

#[test]
fn text_is_continued_until_a_limit_a_word_or_the_end_of_the_context() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let say = |args: &[&str]| {
        let mut command = bruce_run();
        json(
            command
                .arg(&model)
                .args(["-p", "In the beginning", "--temp", "0", "--output", "json"])
                .args(args),
        )
    };
    let limited = say(&["-n", "12"]);
    assert_eq!(
        (limited["stop"].as_str(), limited["tokens"].as_array().map(Vec::len)),
        (Some("limit"), Some(12))
    );
    let text = limited["text"].as_str().expect("a text");
    let word = text.split_whitespace().nth(2).expect("three words");
    let stopped = say(&["-n", "12", "-r", word]);
    assert_eq!(stopped["stop"], "word");
    assert_eq!(stopped["text"].as_str(), text.split(word).next());
    let full = say(&["-c", "256", "--ignore-eos"]);
    assert_eq!(full["stop"], "context");
    let n_prompt = full["prompt_tokens"].as_array().map_or(0, Vec::len);
    // The last token was chosen when the context was full.
    assert_eq!(full["tokens"].as_array().map_or(0, Vec::len), 256 - n_prompt + 1);
    let shifted = say(&["-c", "256", "-n", "300", "--ignore-eos", "--context-shift"]);
    assert_eq!(
        (shifted["stop"].as_str(), shifted["tokens"].as_array().map(Vec::len)),
        (Some("limit"), Some(300))
    );
}

#[test]
fn a_pipe_is_a_prompt_and_stdout_has_only_the_text() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let run = || {
        let mut command = bruce_run();
        command.arg(&model).args(["-n", "8", "--temp", "0"]);
        command
    };
    let text = succeed(run().args(["-p", "In the beginning"]));
    assert!(text.starts_with("In the beginning"), "{text}");
    assert_eq!(fed(&mut run(), "In the beginning\n"), text);
    let bare = succeed(run().args(["-p", "In the beginning", "--no-display-prompt"]));
    assert_eq!(format!("In the beginning{bare}"), text);
}

#[test]
fn a_conversation_goes_on_line_by_line_in_a_pipe() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let mut command = bruce_run();
    command.arg(&model).args(["-cnv", "--chat-template", "chatml", "-n", "6", "--temp", "0"]);
    let twice = fed(&mut command, "In the beginning\n\n/clear\nIn the beginning\n/exit\nnever read\n");
    let lines: Vec<&str> = twice.trim_end().split('\n').collect();
    assert_eq!(lines.len() % 2, 0, "{twice}");
    assert_eq!(lines[..lines.len() / 2], lines[lines.len() / 2..], "the same question after /clear");
}

#[test]
fn trace_shows_and_writes_what_the_routers_do() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let text = folder.path().join("text");
    fs::write(&text, "In the beginning God created the heaven and the earth. ".repeat(20)).expect("a file");
    let (json_path, svg_path) = (folder.path().join("trace.json"), folder.path().join("trace.svg"));
    let trace = |more: &[&str]| {
        let mut command = bruce_run();
        command.arg("trace").arg(&model).arg("-f").arg(&text).args(["-c", "64"]).args(more);
        command
    };
    let outputs = ["-o", json_path.to_str().expect("UTF-8"), "--svg", svg_path.to_str().expect("UTF-8")];
    let shown = succeed(&mut trace(&outputs));
    for word in ["2 of 4 experts", "kept", "top-k", "lru", "optimal"] {
        assert!(shown.contains(word), "{word} is not in:\n{shown}");
    }
    let svg = fs::read_to_string(&svg_path).expect("a picture");
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));

    let file: Value = serde_json::from_slice(&fs::read(&json_path).expect("a trace")).expect("JSON");
    let n_tokens = file["tokens"].as_array().expect("tokens").len();
    let layers = file["layers"].as_array().expect("layers");
    assert_eq!((layers.len(), file["n_used"].as_u64()), (3, Some(2)));
    for layer in layers {
        let experts = layer["experts"].as_array().expect("experts");
        assert_eq!(experts.len(), 2 * n_tokens);
        let sum: f64 = layer["weights"].as_array().expect("weights").iter().filter_map(Value::as_f64).sum();
        assert!((sum - n_tokens as f64).abs() < 0.01 * n_tokens as f64, "{sum} for {n_tokens} tokens");
    }
    assert!(file["sequences"].as_array().expect("chunks").iter().all(|n| n.as_u64() <= Some(64)));
    let report = json(&mut trace(&["--json"]));
    assert_eq!(report, file["report"]);
    for policy in ["lru", "pinned", "decayed", "optimal"] {
        assert_eq!(report["hit_rates"][policy][4], 1.0, "{policy} with a slot for each");
    }

    // What is there stays; so does what is read.
    refused(&run(&mut trace(&outputs)), 1, &["trace.json", "existing file"]);
    refused(&run(trace(&["--force", "-o"]).arg(&text)), 2, &["is both read and written"]);
    succeed(trace(&outputs).args(["--force", "--chunks", "1"]));
    let file: Value = serde_json::from_slice(&fs::read(&json_path).expect("a trace")).expect("JSON");
    assert_eq!(file["sequences"], serde_json::json!([64]));
}

#[test]
fn trace_wants_a_mixture_and_names_its_experts() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = folder.path().join("text");
    fs::write(&text, "In the beginning").expect("a file");
    if let Some(model) = quantized("tinyd", "Q8_0") {
        let output = run(bruce_run().arg("trace").arg(model).arg("-f").arg(&text));
        refused(&output, 1, &["without experts"]);
    }
    let merge = tiny_moe_copy();
    let recipe = "base_model: org/base\nexperts:\n- source_model: org/prose\n- source_model: /home/me/verse\n\
                  - source_model: org/base\n- source_model: org/prose\n";
    fs::write(merge.path().join("mergekit_moe_config.yml"), recipe).expect("a recipe");
    let model = folder.path().join("merge.gguf");
    succeed(bruce_quant().arg(merge.path()).args(["-q", "q8_0", "--quiet", "-o"]).arg(&model));
    let shown = succeed(bruce_run().arg("trace").arg(&model).arg("-f").arg(&text));
    let names: Vec<&str> = shown.lines().filter(|line| line.starts_with("  expert")).collect();
    let names: Vec<&str> = names.iter().filter_map(|line| line.split_whitespace().last()).collect();
    assert_eq!(names, ["org/prose", "verse", "org/base", "org/prose"], "{shown}");
}
