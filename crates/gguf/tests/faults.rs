//! What happens when the system fails, or somebody interferes: in programs of their own, which are this test program
//! started again.
#![cfg(target_os = "linux")]

mod support;

use gguf::{Gguf, Layout, Metadata, Overwrite, TensorSpec, Writer};
use quants::TensorType;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const FOLDER: &str = "GGUF_TEST_FOLDER";

fn folder_of_child() -> PathBuf {
    std::env::var_os(FOLDER).expect("started by another test").into()
}

/// Command and arguments that run one of the children below.
fn child(name: &str) -> Vec<OsString> {
    let program = std::env::current_exe().expect("this program").into_os_string();
    let arguments = ["--ignored", "--exact", name, "--nocapture", "--test-threads=1"].map(OsString::from);
    [vec![program], arguments.to_vec()].concat()
}

fn run(command: &[OsString], folder: &Path) -> Output {
    let mut process = Command::new(&command[0]);
    process.args(&command[1..]).env(FOLDER, folder).output().expect("a program that starts")
}

fn strace_works() -> bool {
    let tried = Command::new("strace").args(["-qq", "-e", "trace=none", "true"]).status();
    let works = tried.is_ok_and(|status| status.success());
    if !works {
        eprintln!("skipped: no strace that works here");
    }
    works
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn one_tensor(n_bytes: u64) -> Layout {
    let spec = TensorSpec { name: "t".to_owned(), ne: vec![n_bytes], ty: TensorType::I8 };
    Layout::new(&Metadata::new(), &[spec], 32).expect("a possible layout")
}

fn write(target: &Path, overwrite: Overwrite, byte: u8) -> Result<u64, gguf::Error> {
    let writer = Writer::create(target, one_tensor(256), overwrite)?;
    for at in (0..256).step_by(64) {
        writer.write_at(0, at, &[byte; 64])?;
    }
    writer.finish()
}

/// Replaces `old.gguf` and makes `new.gguf`; says what failed.
#[test]
#[ignore = "a child of the tests below"]
fn child_that_writes() {
    for (name, overwrite) in [("old.gguf", Overwrite::Replace), ("new.gguf", Overwrite::Refuse)] {
        if let Err(error) = write(&folder_of_child().join(name), overwrite, 2) {
            println!("failed: {error}");
        }
    }
}

/// Each system call that writing takes, failing each time it is made: the target is the old file or the new one.
#[test]
fn every_failing_system_call_leaves_the_old_file_or_the_new_one() {
    if !strace_works() {
        return;
    }
    let mut n_failed = 0;
    for (calls, error, times) in [
        ("pwrite64", "ENOSPC", 10),
        ("pwrite64", "EIO", 10),
        ("pwrite64", "EINTR", 10), // to be tried again
        ("ftruncate,fsync,fdatasync", "EIO", 6),
        ("/^rename,/^link", "EIO", 2),
        ("/^rename,/^link", "ENOSPC", 2),
    ] {
        for time in 1..=times {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let old = dir.path().join("old.gguf");
            write(&old, Overwrite::Refuse, 1).expect("a writable folder");
            let before = fs::read(&old).expect("the old file");
            let inject = format!("inject={calls}:error={error}:when={time}");
            let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &inject, "--"].map(OsString::from);
            let output = run(&[strace.to_vec(), child("child_that_writes")].concat(), dir.path());
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{inject}: {said}{}", String::from_utf8_lossy(&output.stderr));

            let after = fs::read(&old).expect("a file");
            let is_new = support::open(&old).data(&support::open(&old).tensors()[0]) == [2; 256];
            assert!(after == before || is_new, "{inject}: neither the old file nor the new one");
            let mut allowed = vec!["old.gguf".to_owned()];
            let new = dir.path().join("new.gguf");
            if new.exists() {
                allowed.insert(0, "new.gguf".to_owned());
                assert_eq!(support::open(&new).data(&support::open(&new).tensors()[0]), [2; 256]);
            }
            assert_eq!(names(dir.path()), allowed, "{inject}");
            let complete = is_new && new.exists();
            assert!(complete || said.contains("failed: "), "{inject}: nothing was said: {said}");
            n_failed += usize::from(said.contains("failed: "));
        }
    }
    assert!(n_failed >= 20, "only {n_failed} faults had an effect");
}

/// The order in which a file is made durable: all writes, fsync, its name, fsync of the folder.
#[test]
fn a_name_is_given_after_the_bytes_are_durable_and_is_made_durable_itself() {
    if !strace_works() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (folder, trace) = (dir.path().join("folder"), dir.path().join("trace"));
    fs::create_dir(&folder).expect("a folder");
    write(&folder.join("old.gguf"), Overwrite::Refuse, 1).expect("a writable folder");
    let calls = "trace=pwrite64,fsync,/^rename,/^link";
    let mut strace = ["strace", "-f", "-qq", "-y", "-e", calls, "-o"].map(OsString::from).to_vec();
    strace.extend([trace.clone().into_os_string(), "--".into()]);
    let output = run(&[strace, child("child_that_writes")].concat(), &folder);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let trace = fs::read_to_string(trace).expect("what strace wrote");
    let mut order: Vec<&str> = trace
        .lines()
        .filter(|line| line.contains(&folder.display().to_string()))
        .map(|line| match line {
            _ if line.contains("pwrite64(") => "write",
            _ if line.contains("fsync(") && line.contains(".partial>") => "fsync the file",
            _ if line.contains("fsync(") => "fsync the folder",
            _ => "name",
        })
        .collect();
    order.dedup();
    let one = ["write", "fsync the file", "name", "fsync the folder"];
    assert_eq!(order, [one, one].concat(), "{trace}");
}

/// Opens a model larger than the address space allowed.
#[test]
#[ignore = "a child of the tests below"]
fn child_with_little_address_space() {
    match Gguf::open(&folder_of_child().join("model.gguf")) {
        Ok(_) => println!("opened"),
        Err(error) => println!("failed: {error}"),
    }
}

#[test]
fn a_limit_of_address_space_is_an_error_that_names_the_need() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("model.gguf");
    let size = 1u64 << 36;
    let header = one_tensor(size).header().to_vec();
    fs::write(&path, &header).expect("a writable folder");
    let sparse = fs::OpenOptions::new().write(true).open(&path);
    let total = header.len() as u64 + size;
    if sparse.and_then(|file| file.set_len(total)).is_err() {
        eprintln!("skipped: no sparse files here");
        return;
    }
    let limited = ["prlimit", "--as=4294967296", "--"].map(OsString::from).to_vec();
    if !Command::new(&limited[0]).args(&limited[1..]).arg("true").status().is_ok_and(|s| s.success()) {
        eprintln!("skipped: no prlimit here");
        return;
    }
    let output = run(&[limited, child("child_with_little_address_space")].concat(), dir.path());
    let said = String::from_utf8_lossy(&output.stdout);
    let reason = format!("failed: {}: mapping: found Cannot allocate memory", path.display());
    assert!(said.contains(&reason), "{said}");
    assert!(said.contains(&format!(", expected {total} bytes of address space")), "{said}");
}

/// Begins a file, then waits to be killed.
#[test]
#[ignore = "a child of the tests below"]
fn child_that_is_killed() {
    let target = folder_of_child().join("old.gguf");
    let writer = Writer::create(&target, one_tensor(256), Overwrite::Replace).expect("a writable folder");
    writer.write_at(0, 0, &[2; 128]).expect("room");
    let pid = std::process::id().to_string();
    let _ = Command::new("kill").args(["-9", &pid]).status();
    std::thread::sleep(std::time::Duration::from_secs(10));
}

#[test]
fn a_killed_program_leaves_the_old_file() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let old = dir.path().join("old.gguf");
    write(&old, Overwrite::Refuse, 1).expect("a writable folder");
    let before = fs::read(&old).expect("the old file");
    let output = run(&child("child_that_is_killed"), dir.path());
    assert_eq!(output.status.code(), None, "it was killed");
    assert_eq!(fs::read(&old).expect("the old file"), before);
}

/// What the handler of Ctrl-C does in programs.
#[test]
#[ignore = "a child of the tests below"]
fn child_that_is_interrupted() {
    let create = |name: &str| {
        let target = folder_of_child().join(name);
        Writer::create(&target, one_tensor(256), Overwrite::Replace).expect("a writable folder")
    };
    let (first, _second) = (create("old.gguf"), create("new.gguf"));
    first.write_at(0, 0, &[2; 256]).expect("room");
    gguf::discard_partial_files();
    // A thread that comes to its end just now does no harm.
    assert!(first.finish().is_err());
    std::process::exit(130);
}

#[test]
fn an_interrupted_program_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let old = dir.path().join("old.gguf");
    write(&old, Overwrite::Refuse, 1).expect("a writable folder");
    let before = fs::read(&old).expect("the old file");
    let output = run(&child("child_that_is_interrupted"), dir.path());
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(names(dir.path()), ["old.gguf"]);
    assert_eq!(fs::read(&old).expect("the old file"), before);
}

/// Uses a model whose file is cut off under it, while it writes another.
#[test]
#[ignore = "a child of the tests below"]
fn child_whose_model_is_truncated() {
    gguf::mmap::install_fault_handler();
    gguf::mmap::install_fault_handler();
    let path = folder_of_child().join("model.gguf");
    let gguf = Gguf::open(&path).expect("a good file");
    gguf.prefetch(gguf.tensors());
    let _writer = Writer::create(&folder_of_child().join("new.gguf"), one_tensor(256), Overwrite::Refuse);
    let map = gguf.mapping(0);
    drop(gguf); // what it lent lives on
    fs::OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(4096)).expect("truncated");
    let sum: u64 = map.iter().map(|b| u64::from(*b)).sum();
    println!("read everything: {sum}");
}

#[test]
fn a_model_truncated_while_it_is_used_is_an_error_and_no_signal() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("model.gguf");
    let writer = Writer::create(&path, one_tensor(1 << 20), Overwrite::Refuse).expect("a writable folder");
    writer.write_at(0, 0, &vec![1; 1 << 20]).expect("room");
    writer.finish().expect("a complete file");
    let output = run(&child("child_whose_model_is_truncated"), dir.path());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{:?} {said}", output.status);
    let begins = format!("error: {}: data: found no page at byte ", path.display());
    let line = said.lines().find(|line| line.starts_with(&begins));
    let rest = &line.unwrap_or_else(|| panic!("no message in {said:?}"))[begins.len()..];
    let (byte, rest) = rest.split_once(',').expect("a number and a reason");
    assert!((4096..1 << 20).contains(&byte.parse::<u64>().expect("a number")), "{byte}");
    let expected = " expected the file to stay as it was opened (it was truncated, or its disk fails)";
    assert_eq!(rest, expected);
    assert_eq!(names(dir.path()), ["model.gguf"]);
}

/// A fault that no mapping explains.
#[test]
#[ignore = "a child of the tests below"]
fn child_with_a_foreign_fault() {
    gguf::mmap::install_fault_handler();
    let pid = std::process::id().to_string();
    // To our handler, to that of Rust's library, and to the system; one that is sent before the last is handled is none.
    for _ in 0..100 {
        let _ = Command::new("kill").args(["-BUS", &pid]).status();
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

#[test]
fn a_fault_that_is_not_ours_is_left_to_others() {
    use std::os::unix::process::ExitStatusExt;
    let dir = tempfile::tempdir().expect("a temporary folder");
    let output = run(&child("child_with_a_foreign_fault"), dir.path());
    assert_eq!(output.status.signal(), Some(7), "{:?}", output.status);
    assert!(!String::from_utf8_lossy(&output.stderr).contains("error: "), "nothing of ours is said");
}
