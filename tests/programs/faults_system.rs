//! What the system does to a running program: signals, full disks, failing calls, closed pipes, little memory.

use crate::support::{
    bruce_quant, bruce_run, checkpoint, listing, quantized, refused, root, run, skip, stderr, succeed, tool,
};
use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);

fn signal(child: &Child, name: &str) {
    succeed(Command::new("kill").args(["-s", name]).arg(child.id().to_string()));
}

/// Starts quantizing a model that takes seconds, and returns when the temporary file is there.
fn begin_to_quantize(model: &Path, output: &Path) -> Child {
    let mut command = bruce_quant();
    command.arg(model).args(["-q", "q4_k", "-t", "1", "--force", "-o"]).arg(output);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("bruce-quant");
    let folder = output.parent().expect("a folder");
    let name = output.file_name().expect("a name").to_string_lossy();
    let started = Instant::now();
    while !listing(folder).iter().any(|other| *other != name) {
        if let Some(status) = child.try_wait().expect("a status") {
            let mut said = String::new();
            child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
            panic!("ended before anything was seen: {status}\n{said}");
        }
        assert!(started.elapsed() < PATIENCE, "nothing was begun");
        sleep(Duration::from_millis(1));
    }
    child
}

#[test]
fn ctrl_c_ends_with_130_and_leaves_nothing() {
    let Some(model) = checkpoint("tiny4") else { return };
    for name in ["INT", "TERM"] {
        let folder = tempfile::tempdir().expect("a folder");
        let child = begin_to_quantize(&model, &folder.path().join("model.gguf"));
        signal(&child, name);
        let output = child.wait_with_output().expect("an end");
        assert_eq!(output.status.code(), Some(130), "SIG{name}: {}\n{}", output.status, stderr(&output));
        assert!(listing(folder.path()).is_empty(), "SIG{name}: left {:?}", listing(folder.path()));
    }
}

#[test]
fn a_killed_run_leaves_the_old_file_as_it_was() {
    let Some(model) = checkpoint("tiny4") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    fs::write(&path, "the old file").expect("a file");
    let child = begin_to_quantize(&model, &path);
    signal(&child, "KILL");
    let output = child.wait_with_output().expect("an end");
    assert_eq!(output.status.signal(), Some(9));
    assert_eq!(fs::read(&path).expect("the old file"), b"the old file");
}

#[test]
fn a_file_size_limit_is_an_error_and_leaves_nothing() {
    if !tool(Command::new("prlimit").args(["--fsize=1000000", "true"])) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new("prlimit");
    command.args(["--fsize=1000000", env!("CARGO_BIN_EXE_bruce-quant")]).arg(root().join("models/tiny-moe"));
    let output = run(command.args(["-q", "q8_0", "-o"]).arg(folder.path().join("model.gguf")));
    refused(&output, 1, &["model.gguf"]);
    assert!(listing(folder.path()).is_empty(), "left {:?}", listing(folder.path()));
}

#[test]
fn failing_system_calls_leave_the_old_file() {
    if !tool(Command::new("strace").args(["-o", "/dev/null", "true"])) {
        return;
    }
    let fails = [
        "fallocate,ftruncate:error=ENOSPC",
        "pwrite64:error=ENOSPC:when=1",
        "pwrite64:error=ENOSPC:when=9+",
        "pwrite64:error=EIO:when=20",
        "fsync,fdatasync:error=EIO:when=1",
        "rename,renameat,renameat2,link,linkat:error=EIO",
    ];
    for fail in fails {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.gguf");
        fs::write(&path, "the old file").expect("a file");
        let calls = fail.split(':').next().expect("names");
        let mut command = Command::new("strace");
        command.args([
            "-f",
            "-o",
            "/dev/null",
            "-e",
            &format!("trace={calls}"),
            "-e",
            &format!("inject={fail}"),
        ]);
        command.arg(env!("CARGO_BIN_EXE_bruce-quant")).arg(root().join("models/tiny-moe"));
        let output = run(command.args(["-q", "q8_0", "--force", "-o"]).arg(&path));
        let written = fs::read(&path).expect("a file");
        if output.status.success() {
            // The call was not needed, or there was another way.
            assert_eq!(&written[..4], b"GGUF", "{fail}: success without the output");
        } else {
            refused(&output, 1, &["model.gguf"]);
            assert_eq!(written, b"the old file", "{fail}");
        }
        assert_eq!(listing(folder.path()), ["model.gguf"], "{fail}");
    }
}

#[test]
fn the_file_is_whole_on_disk_before_it_has_its_name() {
    let trace = tempfile::NamedTempFile::new().expect("a file");
    if !tool(Command::new("strace").args(["-o", "/dev/null", "true"])) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new("strace");
    let calls = "trace=pwrite64,fsync,fdatasync,rename,renameat,renameat2,link,linkat";
    command.args(["-f", "-e", calls, "-o"]).arg(trace.path());
    command.arg(env!("CARGO_BIN_EXE_bruce-quant")).arg(root().join("models/tiny-moe"));
    succeed(command.args(["-q", "q8_0", "-o"]).arg(folder.path().join("model.gguf")));
    let calls: Vec<String> = fs::read_to_string(trace.path())
        .expect("the trace")
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1)?.split_once('('))
        .map(|(call, _)| call.to_owned())
        .collect();
    let last_write = calls.iter().rposition(|call| call == "pwrite64").expect("writes");
    let name_given = calls
        .iter()
        .position(|call| call.starts_with("rename") || call.starts_with("link"))
        .expect("a rename");
    let is_sync = |call: &String| call == "fsync" || call == "fdatasync";
    assert!(last_write < name_given, "{calls:?}");
    assert!(calls[last_write..name_given].iter().any(is_sync), "the file is not synced before: {calls:?}");
    assert!(calls[name_given..].iter().any(is_sync), "the folder is not synced after: {calls:?}");
}

#[test]
fn a_reader_of_stdout_that_leaves_is_no_error() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let source = root().join("models/tiny-moe");
    let folder = tempfile::tempdir().expect("a folder");
    let mut plan = bruce_quant();
    plan.arg(&source).args(["-q", "q8_0", "--dry-run", "-o"]).arg(folder.path().join("x.gguf"));
    let mut inspect = bruce_run();
    inspect.arg("inspect").arg(&model);
    let mut answer = bruce_run();
    answer.arg(&model).args(["-p", "In the beginning", "-n", "200", "--temp", "0"]);
    for command in [&mut plan, &mut inspect, &mut answer] {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a program");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("an end");
        assert!(output.status.success(), "{command:?}: {}\n{}", output.status, stderr(&output));
        assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
    }
}

#[test]
fn stdout_that_takes_nothing_is_an_error() {
    let Ok(full) = fs::OpenOptions::new().write(true).open("/dev/full") else {
        return skip("there is no /dev/full");
    };
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    refused(&run(bruce_run().arg("inspect").arg(&model).stdout(full)), 1, &["stdout"]);
}

#[test]
fn a_context_larger_than_memory_is_refused_with_the_need() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let output = run(bruce_run().arg(&model).args(["-p", "In the beginning", "-n", "1", "-c", "1000000000"]));
    // 3 layers, keys and values, 2 heads of 64, 2 bytes each: 1.5 TB.
    refused(&output, 1, &["1.5"]);
}

#[test]
fn ctrl_c_stops_an_answer() {
    let Some(model) = quantized("tiny4", "Q8_0") else { return };
    let mut command = bruce_run();
    command.arg(&model).args(["-p", "In the beginning", "-n", "20000", "--ignore-eos", "--temp", "0"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("bruce-run");
    let mut seen = [0; 1];
    child.stdout.as_mut().expect("a pipe").read_exact(&mut seen).expect("an answer");
    signal(&child, "INT");
    let started = Instant::now();
    let output = child.wait_with_output().expect("an end");
    assert!(started.elapsed() < PATIENCE, "it went on");
    assert_eq!(output.status.code(), Some(130), "{}\n{}", output.status, stderr(&output));
}

#[test]
fn a_model_cut_short_while_it_runs_is_an_error_and_no_crash() {
    let Some(model) = quantized("tiny4", "BF16") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let copy = folder.path().join("model.gguf");
    fs::copy(&model, &copy).expect("a copy");
    let mut command = bruce_run();
    command.arg(&copy).args(["-p", "In the beginning", "-n", "20000", "--ignore-eos", "--temp", "0"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("bruce-run");
    let mut stdout = child.stdout.take().expect("a pipe");
    let mut seen = [0; 1];
    stdout.read_exact(&mut seen).expect("an answer");
    let file = fs::OpenOptions::new().write(true).open(&copy).expect("the copy");
    file.set_len(4096).expect("a shorter file");
    let reader = std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
    let output = child.wait_with_output().expect("an end");
    let _ = reader.join();
    refused(&output, 1, &["model.gguf"]);
}
