//! Plans by budget, with a device that stands in for a GPU and with a control group that limits memory.

use crate::support::{bruce_run, quantized, refused, root, run, skip, stderr, succeed};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn model() -> PathBuf {
    quantized("tinymoe", "q8_0").expect("it ships with the project")
}

fn planned(command: &mut Command) -> Value {
    serde_json::from_str(&succeed(command.arg("--dry-run=json"))).expect("JSON")
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number of bytes"))
}

fn with_device(size: &str) -> Command {
    let mut command = bruce_run();
    command.env("BRUCE_STAND_IN_DEVICES", size).env("LLAMA_ARG_CTX_SIZE", "256").arg(model());
    command
}

#[test]
fn a_plan_is_shown_and_nothing_else_done() {
    let text = succeed(bruce_run().arg(model()).args(["--dry-run", "-c", "512"]));
    for words in [
        "Plan for ",
        "context of 512 tokens",
        "dense weights",
        "KV cache",
        "tokens per second",
        "One more GB",
    ] {
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
    }
    let text = succeed(with_device("64M").args(["--dry-run", "-ncmoe", "1"]));
    assert!(text.contains("STANDIN0") && text.contains("Experts of layer 0: 4 in memory"), "{text}");
}

#[test]
fn a_budget_for_devices_is_kept_and_changes_no_answer() {
    let ask = |command: &mut Command| {
        let flags = ["-no-cnv", "-p", "Once upon a time", "-n", "12", "--temp", "0", "--no-perf"];
        succeed(command.args(flags).args(["--kernels", "ggml", "--no-repack"]))
    };
    let expected = ask(bruce_run().arg(model()).args(["-c", "256"]));
    let mut homes = Vec::new();
    for vram in ["0", "7M", "9M", "48M"] {
        let plan = planned(with_device("64M").args(["--vram", vram, "--kernels", "ggml"]));
        let limit = plan["device_limit_bytes"].as_u64().unwrap_or(0);
        assert!(number(&plan["device"]["total_bytes"]) <= limit, "{plan}");
        let experts =
            plan["experts"].as_array().expect("layers").iter().flat_map(|l| l.as_array().expect("a list"));
        homes.push(experts.filter(|home| *home == "device").count());
        assert!(plan["tokens_per_second"].as_f64().is_some_and(|speed| speed > 0.0), "{plan}");
        assert_eq!(ask(with_device("64M").args(["--vram", vram])), expected, "--vram {vram}");
    }
    assert!(homes.is_sorted() && homes.first() == Some(&0) && homes.last() == Some(&12), "{homes:?}");
}

/// Less memory than the experts need: they are streamed, and the answer is the same.
#[test]
fn a_budget_for_memory_streams_what_has_no_room() {
    let unlimited = planned(bruce_run().arg(model()).args(["-c", "256", "--kernels", "bruce"]));
    let all = number(&unlimited["memory"]["total_bytes"]);
    let ram = (all - number(&unlimited["memory"]["expert_bytes"]) / 2).to_string();
    let plan = planned(bruce_run().arg(model()).args(["-c", "256", "--kernels", "bruce", "--ram", &ram]));
    let pool = number(&plan["expert_pool_bytes"]);
    assert!(pool > 0 && pool < number(&unlimited["memory"]["expert_bytes"]), "{plan}");
    assert_eq!(unlimited["expert_pool_bytes"], Value::Null);
    let ask = |flags: &[&str]| {
        let usual =
            ["-no-cnv", "-p", "Once upon a time", "-n", "12", "--temp", "0", "-c", "256", "--no-perf"];
        succeed(bruce_run().arg(model()).args(usual).args(["--kernels", "bruce", "--no-repack"]).args(flags))
    };
    assert_eq!(ask(&["--ram", &ram]), ask(&[]));
}

/// Small models compute with ggml's kernels otherwise, which can't stream.
#[test]
fn bench_streams_small_models_too_where_a_budget_wants_it() {
    let unlimited = planned(bruce_run().arg(model()).args(["-c", "256", "--kernels", "bruce"]));
    let all = number(&unlimited["memory"]["total_bytes"]);
    let ram = (all - number(&unlimited["memory"]["expert_bytes"]) / 5).to_string();
    let bench = |flags: &[&str]| -> Value {
        let usual = ["-p", "0", "-n", "8", "-r", "1", "-t", "1", "-dev", "none", "-o", "json"];
        let text = succeed(bruce_run().arg("bench").arg(model()).args(usual).args(flags));
        serde_json::from_str(&text).expect("JSON")
    };
    let rows = bench(&["--ram", &ram]);
    assert_eq!(rows[0]["kernels"], "bruce");
    assert!(rows[0]["streamed_hit_rate"].as_f64().is_some_and(|rate| rate < 1.0), "{rows}");
    let rows = bench(&[]);
    assert_eq!((&rows[0]["kernels"], &rows[0]["streamed_hit_rate"]), (&Value::from("ggml"), &Value::Null));
}

#[test]
fn a_budget_that_is_too_small_says_what_is_needed() {
    let output = run(bruce_run().arg(model()).args(["--ram", "8M", "-p", "Hi", "-no-cnv"]));
    refused(&output, 1, &["the model needs", "KV cache", "8.39 MB may be used"]);
    let output = run(bruce_run().arg(model()).args(["--ram", "8M", "--dry-run"]));
    refused(&output, 1, &["the model needs"]);
}

#[test]
fn a_device_that_is_too_small_for_the_layers_asked_for_is_an_error() {
    let output = run(with_device("1M").args(["-ngl", "99", "-p", "Hi", "-no-cnv"]));
    refused(&output, 1, &["STANDIN0", "are needed for weights", "1.05 MB are free"]);
    assert!(stderr(&output).contains("warning: the layers asked for take"), "{}", stderr(&output));
    // Left alone, it is not used.
    succeed(with_device("1M").args(["-p", "Hi", "-no-cnv", "-n", "1"]));
}

#[test]
fn a_context_that_a_device_can_not_hold_is_an_error() {
    let output = run(with_device("32M").args(["-ngl", "99", "-p", "Hi", "-no-cnv", "-c", "65536"]));
    refused(&output, 1, &["STANDIN0: a context of 65536 tokens needs", "for the KV cache", "are free"]);
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (flag, value) in [("--vram", "many"), ("--ram", "-1G"), ("--dry-run=yaml", "")] {
        let mut command = bruce_run();
        command.arg(model()).arg(flag);
        if !value.is_empty() {
            command.arg(value);
        }
        refused(&run(&mut command), 2, &[flag.split('=').next().expect("a flag")]);
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), "{}").expect("written");
    let output = run(bruce_run().arg(model()).arg("--trace").arg(file.path()).arg("--dry-run"));
    refused(&output, 1, &["no routing trace"]);
    let output = run(bruce_run().arg("trace").arg(model()).args(["--chunks", "0", "-f"]).arg(file.path()));
    refused(&output, 2, &["--chunks", "expected 1 or more"]);
}

#[test]
fn a_trace_decides_which_experts_count() {
    let folder = tempfile::tempdir().expect("a folder");
    let (text, trace) = (folder.path().join("text"), folder.path().join("trace.json"));
    fs::write(&text, "Once upon a time there was a small model that had four experts. ").expect("written");
    succeed(bruce_run().arg("trace").arg(model()).arg("-f").arg(&text).arg("-o").arg(&trace));
    let plan = planned(bruce_run().arg(model()).args(["-c", "256", "--trace"]).arg(&trace));
    let even = planned(bruce_run().arg(model()).args(["-c", "256"]));
    let per_token = |plan: &Value| plan["bytes_per_token"].as_f64().expect("a number");
    assert!((per_token(&plan) / per_token(&even) - 1.0).abs() < 0.01, "each token takes two experts");
}

/// A control group with a limit; gone when dropped.
struct Group(PathBuf);

impl Group {
    /// `None`, with a word about it, where this process may not make one.
    fn new(limit_bytes: u64) -> Option<Group> {
        let name = format!("bruce-test-{}", std::process::id());
        let places = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        for (mount, limit) in places {
            let group = Path::new(mount).join(&name);
            if !Path::new(mount).join("cgroup.procs").exists() || fs::create_dir(&group).is_err() {
                continue;
            }
            let group = Group(group);
            if fs::write(group.0.join(limit), limit_bytes.to_string()).is_ok() {
                return Some(group);
            }
        }
        skip("no control group for memory can be made here");
        None
    }

    /// `bruce-run` inside of it.
    fn bruce_run(&self) -> Command {
        let plain = bruce_run();
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]);
        command.arg(self.0.join("cgroup.procs")).arg(plain.get_program());
        for (name, value) in plain.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn the_limit_of_a_control_group_is_what_may_be_used() {
    const LIMIT: u64 = 96 << 20;
    let Some(group) = Group::new(LIMIT) else { return };
    let plan = planned(group.bruce_run().arg(model()).args(["-c", "256"]));
    let limit = number(&plan["memory_limit_bytes"]);
    assert!(limit < LIMIT && limit > LIMIT / 2, "{limit}");
    // A cache beyond the limit is an error; without one the process would be killed.
    let output = run(group.bruce_run().arg(model()).args(["-c", "262144", "-p", "Hi", "-no-cnv", "-n", "1"]));
    refused(&output, 1, &["a context of 262144 tokens needs", "are free"]);
    succeed(group.bruce_run().arg(model()).args(["-p", "Hi", "-no-cnv", "-n", "1", "-c", "256"]));
}

#[test]
fn what_a_control_group_has_no_room_for_is_not_locked() {
    let Some(model) = quantized("smol4x", "Q4_K_M") else { return };
    let Some(group) = Group::new(256 << 20) else { return };
    let output =
        run(group.bruce_run().arg(model).args(["--mlock", "-c", "256", "-p", "Hi", "-no-cnv", "-n", "1"]));
    refused(&output, 1, &["--mlock: ", "are to be locked, and", "are free"]);
}

#[test]
fn importances_are_collected_in_a_control_group_that_is_too_small_for_the_model() {
    let Some(model) = quantized("smol4x", "Q4_K_M") else { return };
    let Some(group) = Group::new(256 << 20) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("imatrix.gguf");
    let text = root().join("models/tiny-moe/heldout.txt");
    let flags = ["-c", "64", "--chunks", "1", "-f"];
    succeed(group.bruce_run().arg("imatrix").arg(model).args(flags).arg(text).arg("-o").arg(&output));
    assert!(output.is_file());
}
