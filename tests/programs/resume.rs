//! Outputs in parts, and runs that go on where another was interrupted.

use crate::support::{bruce_quant, listing, quantized, refused, root, run, succeed, tool};
use gguf::Gguf;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

fn assert_same(found: &Path, expected: &Path) {
    let same = fs::read(found).expect("a file") == fs::read(expected).expect("a file");
    assert!(same, "{} is not {}", found.display(), expected.display());
}

#[test]
fn parts_hold_what_the_whole_file_holds() {
    let Some(whole) = quantized("tinymoe", "Q8_0") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    succeed(bruce_quant().arg(&whole).args(["-q", "copy", "--split-max-size", "1M", "-o"]).arg(&path));
    let names = listing(folder.path());
    assert!(names.len() > 2 && names[0] == format!("model-00001-of-{:05}.gguf", names.len()), "{names:?}");
    let last = folder.path().join(names.last().expect("a part"));
    assert_eq!(Gguf::open(&last).expect("all parts").parts().len(), names.len());
    let merged = folder.path().join("merged.gguf");
    succeed(bruce_quant().arg(&last).args(["-q", "copy", "-o"]).arg(&merged));
    assert_same(&merged, &whole);
    let kept = folder.path().join("kept.gguf");
    succeed(bruce_quant().arg(&last).args(["-q", "copy", "--keep-split", "-o"]).arg(&kept));
    for name in &names {
        assert_same(&folder.path().join(name.replace("model", "kept")), &folder.path().join(name));
    }
}

#[test]
fn a_killed_run_is_finished_by_the_next_with_the_same_bytes() {
    // A type that takes its time.
    let Some(expected) = quantized("tinymoe", "IQ3_S") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    let journal = folder.path().join(".model.gguf.journal");
    let resume = || {
        let mut command = bruce_quant();
        command
            .arg(root().join("models/tiny-moe"))
            .args(["-q", "iq3_s", "--resume", "-t", "1", "-o"])
            .arg(&path);
        command
    };
    let mut child = resume().stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("bruce-quant");
    let begun = Instant::now();
    let noted = || fs::read_to_string(&journal).unwrap_or_default();
    // Until something is certainly on the disk.
    while begun.elapsed() < Duration::from_secs(60)
        && child.try_wait().expect("a status").is_none()
        && !noted().contains("done")
    {
        sleep(Duration::from_millis(1));
    }
    let _ = child.kill();
    child.wait().expect("an end");
    assert!(!path.exists(), "it was too quick to be interrupted");
    let done = noted();
    assert!(done.contains("done"), "{done}");
    succeed(&mut resume());
    assert_same(&path, &expected);
    assert_eq!(listing(folder.path()), ["model.gguf"]);
}

#[test]
fn what_another_run_left_is_not_taken_for_this_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    let Some(expected) = quantized("tinymoe", "Q8_0") else { return };
    fs::write(folder.path().join(".model.gguf.journal"), "bruce-quant journal 1\nplan 0\ndone 5\n")
        .expect("a file");
    fs::copy(&expected, folder.path().join(".model.gguf.partial")).expect("a file");
    let mut command = bruce_quant();
    command.arg(root().join("models/tiny-moe")).args(["-q", "q8_0", "--resume", "-o"]).arg(&path);
    succeed(&mut command);
    assert_same(&path, &expected);
    assert_eq!(listing(folder.path()), ["model.gguf"]);
}

#[test]
fn after_failing_system_calls_the_next_run_finishes() {
    if !tool(Command::new("strace").args(["-o", "/dev/null", "true"])) {
        return;
    }
    let Some(expected) = quantized("tinymoe", "Q8_0") else { return };
    for fail in [
        "fallocate,ftruncate:error=ENOSPC",
        "pwrite64:error=ENOSPC:when=9+",
        "pwrite64:error=EIO:when=20",
        "pwrite64:signal=KILL:when=12",
        "fsync,fdatasync:error=EIO:when=1",
        "fsync,fdatasync:signal=KILL:when=2",
        "link,linkat,rename,renameat,renameat2:error=EIO",
        "link,linkat:signal=KILL",
        "unlink,unlinkat:signal=KILL",
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.gguf");
        let arguments = ["-q", "q8_0", "--resume", "-o"];
        let mut command = Command::new("strace");
        command.args(["-f", "-o", "/dev/null", "-e", &format!("inject={fail}")]);
        command
            .arg(env!("CARGO_BIN_EXE_bruce-quant"))
            .arg(root().join("models/tiny-moe"))
            .args(arguments)
            .arg(&path);
        let output = run(&mut command);
        if !path.exists() {
            assert!(!output.status.success(), "{fail}: success without the output");
            succeed(bruce_quant().arg(root().join("models/tiny-moe")).args(arguments).arg(&path));
            assert_eq!(listing(folder.path()), ["model.gguf"], "{fail}");
        }
        assert_same(&path, &expected);
    }
}

#[test]
fn sizes_of_parts_have_a_unit() {
    for size in ["4", "0G", "1.5G", "G", "-1M", "99999999999999999999G"] {
        let mut command = bruce_quant();
        let argument = format!("--split-max-size={size}");
        refused(
            &run(command.arg(root().join("models/tiny-moe")).args(["-q", "q8_0", &argument])),
            2,
            &["split-max-size"],
        );
    }
}
