//! What goes wrong while experts are copied to a device that stands in for a GPU.

use crate::support::{bruce_run, quantized, refused, run, skip, stderr, succeed, tool};
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// Every token goes through the stacks, of which there are two for three layers.
const STAGED: [&str; 6] = ["-ngl", "all", "-cmoe", "--stage-experts", "1", "--no-perf"];
/// All experts in memory that is mapped, and some of them in a pool.
const SUPPLIES: [&[&str]; 2] = [&[], &["--expert-pool", "1M"]];

/// An answer that would take long.
fn long(command: &mut Command, model: &Path, supply: &[&str]) {
    command.env("BRUCE_STAND_IN_DEVICES", "256M").arg(model).args(STAGED).args(supply);
    command.args(["-no-cnv", "-p", "In the beginning", "-n", "20000", "-c", "20480", "--ignore-eos"]);
    command.args(["-t", "1", "--kernels", "bruce"]);
}

/// Begins it, and returns when there is something to see.
fn begin(model: &Path, supply: &[&str]) -> Child {
    let mut command = bruce_run();
    long(&mut command, model, supply);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("bruce-run");
    let mut seen = [0; 1];
    child.stdout.as_mut().expect("a pipe").read_exact(&mut seen).expect("an answer");
    child
}

/// What a program says until it ends.
fn end(mut child: Child) -> Output {
    let mut stdout = child.stdout.take().expect("a pipe");
    let reader = std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
    let output = child.wait_with_output().expect("an end");
    let _ = reader.join();
    output
}

#[test]
fn a_file_cut_short_while_it_is_copied_from_is_an_error_with_its_name() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    for supply in SUPPLIES {
        let folder = tempfile::tempdir().expect("a folder");
        let copy = folder.path().join("model.gguf");
        fs::copy(&model, &copy).expect("a copy");
        let child = begin(&copy, supply);
        fs::OpenOptions::new().write(true).open(&copy).and_then(|file| file.set_len(4096)).expect("shorter");
        let output = end(child);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{supply:?}: {}\n{said}", output.status);
        assert!(said.contains("model.gguf: ") && said.contains("truncated"), "{supply:?}: {said}");
    }
}

#[test]
fn a_disk_that_fails_while_it_is_copied_from_is_an_error_with_the_file() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    if !tool(Command::new("strace").args(["-o", "/dev/null", "true"])) {
        return;
    }
    let mut command = Command::new("strace");
    // The numbers are each thread's; the main thread reads less when the model is loaded.
    let fails = ["-e", "trace=pread64", "-e", "inject=pread64:error=EIO:when=300+"];
    command.args(["-f", "-o", "/dev/null"]).args(fails).arg(env!("CARGO_BIN_EXE_bruce-run"));
    long(&mut command, &model, SUPPLIES[1]);
    let output = run(&mut command);
    refused(&output, 1, &["tinymoe-Q8_0.gguf: tensor blk.", "os error 5"]);
}

#[test]
fn ctrl_c_ends_an_answer_whose_experts_are_copied() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    for supply in SUPPLIES {
        let child = begin(&model, supply);
        succeed(Command::new("kill").args(["-s", "INT"]).arg(child.id().to_string()));
        let output = end(child);
        assert_eq!(output.status.code(), Some(130), "{supply:?}: {}\n{}", output.status, stderr(&output));
    }
}

#[test]
fn without_memory_for_stacks_the_cpu_computes_unless_they_are_asked_for() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let ask = |memory: &str, staged: &str| {
        let mut command = bruce_run();
        command.env("BRUCE_STAND_IN_DEVICES", memory).arg(&model).args(["-ngl", "all", "-cmoe", "-c", "256"]);
        command.args(["-no-cnv", "-p", "In the beginning", "-n", "8", "--temp", "0", "--kernels", "ggml"]);
        run(command.args(["--stage-experts", staged]))
    };
    // Stacks have two of three layers of experts, and those are nearly all of the model.
    let len = fs::metadata(&model).expect("a file").len();
    let sizes = (10..40).map(|number| (len * number / 20).to_string());
    let mut found = false;
    for memory in sizes {
        let [must, may, without] = ["2", "auto", "off"].map(|staged| ask(&memory, staged));
        if without.status.success() && !must.status.success() {
            refused(&must, 1, &["STANDIN0", "staging experts"]);
            assert!(stderr(&must).contains("--stage-experts auto"), "{}", stderr(&must));
            assert!(may.status.success(), "{memory}: {}", stderr(&may));
            assert_eq!(may.stdout, without.stdout, "{memory}");
            found = true;
            break;
        }
    }
    if !found {
        skip("no size of memory has room for everything but stacks");
    }
}
