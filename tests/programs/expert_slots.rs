//! Experts with slots on a device that stands in for a GPU.

use crate::support::{bruce_run, quantized, refused, run, stderr, succeed};
use std::process::Command;

/// `bruce-run` on a machine with one stand-in of so much memory.
fn with_device(memory: &str) -> Command {
    let mut command = bruce_run();
    command.env("BRUCE_STAND_IN_DEVICES", memory);
    command
}

#[test]
fn answers_with_slots_are_those_without() {
    let Some(model) = quantized("tinymoe", "Q4_K_M") else { return };
    // ggml's kernels, token by token: the stand-in's are the same, so the text must be.
    let ask = ["-p", "In the beginning", "-no-cnv", "-n", "48", "--temp", "0", "-t", "1", "-ub", "1"];
    let plain = ["--kernels", "ggml", "--no-repack"];
    let expected = succeed(bruce_run().arg(&model).args(ask).args(plain));
    for flags in [&["--expert-slots", "2"][..], &["--expert-slots", "3,0,1", "--fixed-experts"]] {
        let mut command = with_device("64M");
        let output = run(command.arg(&model).args(ask).args(plain).args(flags).args(["-ngl", "all", "-v"]));
        let told = stderr(&output);
        assert!(output.status.success(), "{told}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{flags:?}");
        let n_slots = if flags.len() == 2 {
            "6 slots for experts in 3 layers"
        } else {
            "4 slots for experts in 2 layers"
        };
        assert!(told.contains(n_slots) && told.contains("experts on GPUs ="), "{told}");
    }
}

#[test]
fn bench_shows_hits_and_moves() {
    let Some(model) = quantized("tinymoe", "Q4_K_M") else { return };
    let bench =
        ["-p", "0", "-n", "8", "-r", "1", "-t", "1", "-ngl", "all", "--expert-slots", "0,2", "-o", "json"];
    let found = succeed(with_device("64M").arg("bench").arg(&model).args(bench));
    let rows: serde_json::Value = serde_json::from_str(&found).expect("JSON");
    // Eight tokens with two experts in each of three layers.
    for (row, slots) in [(0, 0), (1, 2)] {
        assert_eq!(rows[row]["expert_slots"], slots, "{found}");
        let taken =
            [&rows[row]["expert_hits"], &rows[row]["expert_misses"]].map(|n| n.as_u64().expect("a count"));
        assert_eq!(taken[0] + taken[1], if slots == 0 { 0 } else { 48 }, "{found}");
        assert_eq!(taken[0] > 0, slots > 0, "{found}");
        assert!(rows[row]["expert_bytes_uploaded"].is_u64(), "{found}");
    }
}

#[test]
fn slots_that_can_not_be_are_refused() {
    let Some(model) = quantized("tinymoe", "Q4_K_M") else { return };
    let ask = ["-p", "x", "-n", "1", "-ngl", "all", "--expert-slots"];
    let none = run(bruce_run().arg(&model).args(ask).args(["3", "-dev", "none"]));
    refused(&none, 1, &["--expert-slots", "no GPU"]);
    let uneven = run(with_device("64M").arg(&model).args(ask).arg("3,1"));
    refused(&uneven, 1, &["--expert-slots", "3 layers"]);
    for flags in [&[][..], &["--dry-run"]] {
        let many = run(with_device("64M").arg(&model).args(ask).arg("9").args(flags));
        refused(&many, 1, &["--expert-slots: found 9, expected 0 to 4"]);
    }
}

#[test]
fn prompts_are_read_through_stacks_on_the_device() {
    let Some(model) = quantized("tinymoe", "Q4_K_M") else { return };
    let ask = ["-p", "In the beginning", "-no-cnv", "-n", "12", "--temp", "0", "-t", "1", "-ub", "4"];
    let place = ["--kernels", "ggml", "--no-repack", "-ngl", "all"];
    let expected = succeed(with_device("64M").arg(&model).args(ask).args(place));
    for flags in [&["-cmoe"][..], &["--expert-slots", "2", "--fixed-experts"]] {
        let staged = ["--stage-experts", "1"];
        let found = succeed(with_device("64M").arg(&model).args(ask).args(place).args(flags).args(staged));
        assert_eq!(found, expected, "{flags:?}");
    }
    let none = run(with_device("64M").arg(&model).args(ask).args(["--stage-experts", "0"]));
    refused(&none, 2, &["--stage-experts", "auto or off"]);
}

#[test]
fn plans_say_which_batches_are_staged() {
    let Some(model) = quantized("tinymoe", "Q4_K_M") else { return };
    let plan = |flags: &[&str]| -> serde_json::Value {
        let mut command = with_device("64M");
        let ask = ["--dry-run=json", "-t", "1", "-c", "256", "-ngl", "all", "--kernels", "bruce"];
        let text = succeed(command.arg(&model).args(ask).args(flags));
        serde_json::from_str(&text).expect("JSON")
    };
    let staged = plan(&["-cmoe"]);
    assert_eq!(staged["stage_experts"], true, "{staged}");
    assert!(staged["stage_experts_from"].as_u64() >= Some(2), "{staged}");
    assert!(staged["copied_bytes_per_second"].as_f64() > Some(0.0), "{staged}");
    assert!(staged["device"]["staging_bytes"].as_u64() > Some(0), "{staged}");
    for flags in [&["-cmoe", "--stage-experts", "off"][..], &[]] {
        let other = plan(flags);
        assert_eq!(other["stage_experts"], false, "{other}");
        assert_eq!(other["device"]["staging_bytes"], 0, "{other}");
    }
}
