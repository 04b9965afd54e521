//! Experts that are read from the file while they are used, in everything that a user does with a model.

use crate::support::{bruce_quant, bruce_run, quantized, refused, run, skip, stderr, succeed};
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);
const KERNELS: [&str; 3] = ["--kernels", "bruce", "--no-repack"];

/// Half of the bytes of a model's experts: what some of them have to be read for again and again.
fn half(model: &Path) -> String {
    let plan = succeed(bruce_run().arg(model).args(["--dry-run=json", "-c", "256", "-dev", "none"]));
    let plan: Value = serde_json::from_str(&plan).expect("JSON");
    (plan["memory"]["expert_bytes"].as_u64().expect("a number") / 2).to_string()
}

/// The greedy continuation of a text that repeats itself.
fn ask(command: &mut Command, model: &Path, flags: &[&str]) -> String {
    let text = "In the beginning God created the heaven and the earth. In the beginning God";
    command.arg(model).args(["-no-cnv", "-p", text, "-n", "24", "--temp", "0", "-c", "256", "--no-perf"]);
    succeed(command.args(KERNELS).args(flags))
}

fn with_device(memory: &str) -> Command {
    let mut command = bruce_run();
    command.env("BRUCE_STAND_IN_DEVICES", memory);
    command
}

/// The models that are at hand: a tiny one, and one that people use in an experts' version.
fn models() -> impl Iterator<Item = PathBuf> {
    [("tinymoe", "Q8_0"), ("smol4x", "Q4_K_M")].into_iter().filter_map(|(name, ty)| quantized(name, ty))
}

#[test]
fn answers_are_those_with_all_in_memory() {
    for model in models() {
        let pool = ["--expert-pool", &half(&model)];
        let expected = ask(&mut bruce_run(), &model, &[]);
        assert_eq!(ask(&mut bruce_run(), &model, &pool), expected, "{}", model.display());
        let lookup = [&pool[..], &["--lookup"]].concat();
        assert_eq!(ask(&mut bruce_run(), &model, &lookup), expected, "{}: --lookup", model.display());
        let threads = [&pool[..], &["-t", "2", "-ub", "5"]].concat();
        assert_eq!(ask(&mut bruce_run(), &model, &threads), expected, "{}: micro-batches", model.display());
    }
}

#[test]
fn a_model_in_parts_is_streamed_from_all_of_them() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let parts = folder.path().join("parts.gguf");
    succeed(
        bruce_quant().arg(&model).args(["-q", "copy", "--split-max-size", "1M", "--quiet", "-o"]).arg(&parts),
    );
    let names = crate::support::listing(folder.path());
    assert!(names.len() > 2 && names[0].contains("-00001-of-"), "{names:?}");
    let expected = ask(&mut bruce_run(), &model, &[]);
    let pool = ["--expert-pool", &half(&model)];
    assert_eq!(ask(&mut bruce_run(), &folder.path().join(&names[0]), &pool), expected);
}

#[test]
fn a_saved_context_serves_with_and_without_a_pool() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let cache = folder.path().join("cache");
    let cached = ["--prompt-cache", cache.to_str().expect("a path")];
    let expected = ask(&mut bruce_run(), &model, &[]);
    let pool = half(&model);
    let with_pool = [&cached[..], &["--expert-pool", &pool]].concat();
    assert_eq!(ask(&mut bruce_run(), &model, &with_pool), expected, "written");
    assert_eq!(ask(&mut bruce_run(), &model, &with_pool), expected, "read");
    assert_eq!(ask(&mut bruce_run(), &model, &cached), expected, "read without a pool");
}

/// tmpfs had no direct reading before Linux 6.6, and what is read there is in memory anyway.
#[test]
fn a_file_system_in_memory_is_read_from() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let Ok(folder) = tempfile::tempdir_in("/dev/shm") else {
        return skip("there is no /dev/shm to write to");
    };
    let copy = folder.path().join("model.gguf");
    fs::copy(&model, &copy).expect("a copy");
    let expected = ask(&mut bruce_run(), &model, &[]);
    assert_eq!(ask(&mut bruce_run(), &copy, &["--expert-pool", &half(&model)]), expected);
}

/// An answer under way that would take long.
fn begin(model: &Path) -> Child {
    let mut command = bruce_run();
    command.arg(model).args(["-p", "In the beginning", "-n", "20000", "--ignore-eos", "--temp", "0"]);
    command.args(["--expert-pool", &half(model)]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("bruce-run");
    let mut seen = [0; 1];
    child.stdout.as_mut().expect("a pipe").read_exact(&mut seen).expect("an answer");
    child
}

#[test]
fn a_file_cut_short_while_it_is_streamed_is_an_error_with_its_name() {
    let Some(model) = quantized("tiny4", "BF16") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let copy = folder.path().join("model.gguf");
    fs::copy(&model, &copy).expect("a copy");
    let mut child = begin(&copy);
    let mut stdout = child.stdout.take().expect("a pipe");
    fs::OpenOptions::new().write(true).open(&copy).expect("the copy").set_len(4096).expect("a shorter file");
    let reader = std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
    let output = child.wait_with_output().expect("an end");
    let _ = reader.join();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let said = stderr(&output);
    assert!(said.contains("model.gguf: tensor ") && said.contains("truncated while in use"), "{said}");
}

#[test]
fn ctrl_c_ends_a_streamed_answer() {
    let Some(model) = quantized("tiny4", "BF16") else { return };
    let child = begin(&model);
    succeed(Command::new("kill").args(["-s", "INT"]).arg(child.id().to_string()));
    let started = Instant::now();
    let output = child.wait_with_output().expect("an end");
    assert!(started.elapsed() < PATIENCE, "it went on");
    assert_eq!(output.status.code(), Some(130), "{}\n{}", output.status, stderr(&output));
}

#[test]
fn a_conversation_is_the_same_while_its_experts_are_streamed() {
    let Some(model) = quantized("smol4x", "Q4_K_M") else { return };
    let chat = |flags: &[&str]| {
        let mut command = bruce_run();
        command.arg(&model).args(["-cnv", "-n", "12", "--temp", "0", "-c", "512", "--no-perf"]).args(KERNELS);
        command.args(flags).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("started");
        let turns = b"Name a colour.\nAnd another one.\nWhich did you like more?\n";
        child.stdin.take().expect("a pipe").write_all(turns).expect("written");
        let output = child.wait_with_output().expect("ended");
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).expect("text")
    };
    let expected = chat(&[]);
    assert!(expected.lines().count() >= 3, "{expected}");
    assert_eq!(chat(&["--expert-pool", &half(&model)]), expected);
}

/// Single tokens are computed by the same kernels in the same places, so the text must be the same.
#[test]
fn a_device_and_a_pool_share_the_experts() {
    for model in models() {
        let pool = half(&model);
        for place in [&["--expert-slots", "2", "--fixed-experts"][..], &["-ncmoe", "2"], &["-cmoe"]] {
            let flags = [place, &["-ngl", "all", "-ub", "1"]].concat();
            let expected = ask(&mut with_device("600M"), &model, &flags);
            let flags = [&flags[..], &["--expert-pool", &pool]].concat();
            assert_eq!(ask(&mut with_device("600M"), &model, &flags), expected, "{flags:?}");
        }
    }
}

#[test]
fn what_a_device_and_a_pool_did_is_told() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let mut command = with_device("64M");
    command.arg(&model).args(["-no-cnv", "-p", "In the beginning", "-n", "8", "--temp", "0", "-c", "256"]);
    command.args(["-ngl", "all", "--expert-slots", "2", "--expert-pool", &half(&model)]);
    let output = run(&mut command);
    let told = stderr(&output);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("experts streamed =") && told.contains("experts on GPUs ="), "{told}");
}

/// Budgets for both memories, neither of which holds the experts.
#[test]
fn a_plan_for_two_short_memories_is_shown_and_followed() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let planned = |flags: &[&str]| -> Value {
        let mut command = with_device("64M");
        command.arg(&model).args(["-c", "256", "--dry-run=json"]).args(flags);
        serde_json::from_str(&succeed(&mut command)).expect("JSON")
    };
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{value} is no number of bytes"));
    let all = planned(&["-b", "32"]);
    let experts = number(&all["device"]["expert_bytes"]);
    // Buffers of larger batches would take more than the experts of this model.
    let vram = ((number(&all["device"]["total_bytes"]) - experts * 3 / 4) * 16 / 15).to_string();
    let host = number(&all["memory"]["other_bytes"]) + number(&all["device"]["compute_bytes"]);
    let ram = (host + experts / 3 + experts / 8).to_string();
    let budgets = ["--vram", &vram, "--ram", &ram, "-b", "32"];
    let plan = planned(&budgets);
    let chances =
        ["device", "memory", "file"].map(|at| plan["expert_chances"][at].as_f64().expect("a share"));
    assert!(chances[0] > 0.0 && chances[2] > 0.0, "{plan}");
    assert!((chances.iter().sum::<f64>() - 1.0).abs() < 1e-6, "{plan}");
    assert!(number(&plan["expert_pool_bytes"]) > 0 && plan["devices"][0] == "STANDIN0", "{plan}");
    assert!(number(&plan["device"]["total_bytes"]) <= number(&plan["device_limit_bytes"]), "{plan}");
    assert!(plan["tokens_per_second"].as_f64().is_some_and(|speed| speed > 0.0), "{plan}");
    for share in ["file_share_beside", "memory_share_beside"] {
        assert!(plan[share].as_f64().is_some_and(|share| share > 0.0 && share <= 1.0), "{share}: {plan}");
        assert_eq!(all[share], 1.0, "nothing is read beside anything");
    }

    let text = succeed(with_device("64M").arg(&model).args(["-c", "256", "--dry-run"]).args(budgets));
    for words in [
        "STANDIN0",
        "streamed through a pool of",
        "on devices, ",
        " streamed",
        "finds its experts:",
        "Beside each other: the file at",
    ] {
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
    }
    let mut command = with_device("64M");
    command.arg(&model).args(["-no-cnv", "-p", "In the beginning", "-n", "8", "-c", "256"]).args(budgets);
    let output = run(&mut command);
    let told = stderr(&output);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("experts streamed =") && told.contains("experts on GPUs ="), "{told}");
}

#[test]
fn a_device_that_is_too_small_beside_a_pool_says_what_is_needed() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let flags = ["-ngl", "all", "--expert-slots", "3", "--expert-pool", "64M", "-p", "Hi", "-no-cnv"];
    let output = run(with_device("1M").arg(&model).args(flags));
    refused(&output, 1, &["STANDIN0", "are needed for weights", "1.05 MB are free"]);
    let output = run(bruce_run().arg(&model).args(["--expert-pool", "1K", "-p", "Hi", "-no-cnv"]));
    refused(&output, 1, &["--expert-pool", "found 1024 bytes", "at least for this model"]);
}

#[test]
fn a_bench_tells_what_the_disk_gave_and_what_a_plan_with_that_expects() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let text = folder.path().join("text");
    fs::write(&text, "In the beginning God created the heaven and the earth.").expect("written");
    let mut command = bruce_run();
    command.arg("bench").arg(&model).args(["-p", "0", "-n", "16", "-r", "2", "-t", "1", "-dev", "none"]);
    command.args(["--expert-pool", &half(&model), "-o", "json", "-f"]).arg(&text);
    let output = run(&mut command);
    let told = stderr(&output);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("by the disk before and after") && told.contains("is read again"), "{told}");
    let rows: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let number = |name: &str| rows[0][name].as_f64().unwrap_or_else(|| panic!("no {name} in {rows}"));
    assert!((0.0..1.0).contains(&number("streamed_hit_rate")), "{rows}");
    for name in ["streamed_bytes_per_token", "streamed_bytes_per_second", "disk_bytes_per_second"] {
        assert!(number(name) > 0.0, "{name}: {rows}");
    }
    for name in ["expected_ts", "expected_with_disk_ts", "expected_with_disk_and_hits_ts"] {
        assert!(number(name) > 0.0, "{name}: {rows}");
    }

    fs::write(&text, "").expect("written");
    refused(&run(&mut command), 1, &["text", "found no tokens"]);
}
