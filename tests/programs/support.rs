//! What the tests share: where things are, how programs are run, what is skipped.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{LazyLock, Mutex};

/// Root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file of `tests/golden`, as text.
pub fn golden(name: &str) -> String {
    let path = root().join("tests/golden").join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The lines of a golden JSON Lines file.
pub fn golden_lines(name: &str) -> Vec<serde_json::Value> {
    golden(name).lines().map(|line| serde_json::from_str(line).expect("a JSON object")).collect()
}

/// `bruce-quant`, ready for arguments.
pub fn bruce_quant() -> Command {
    program(env!("CARGO_BIN_EXE_bruce-quant"))
}

/// `bruce-run`, ready for arguments.
pub fn bruce_run() -> Command {
    program(env!("CARGO_BIN_EXE_bruce-run"))
}

/// The folder that holds both programs.
pub fn programs() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_bruce-run")).parent().expect("a folder")
}

fn program(path: &str) -> Command {
    let mut command = Command::new(path);
    // What the developer has set must not change what is tested.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LLAMA_ARG_"))
    {
        command.env_remove(name);
    }
    // Tests run beside each other, and ggml's threads wait for each other by spinning.
    command.env("LLAMA_ARG_THREADS", "1");
    command.stdin(Stdio::null());
    command
}

/// Runs the command and gives stdout.
///
/// # Panics
/// It fails.
pub fn succeed(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?} ended with {}\n{}", output.status, stderr(&output));
    String::from_utf8(output.stdout).expect("UTF-8 on stdout")
}

/// Runs the command to its end.
pub fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// What a program said on stderr.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Says that the running test cannot do its work here, and why. Return after it.
pub fn skip(why: &str) {
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    let line = format!("skipped: {test}: {why}\n");
    // Not eprint!, which the test runner hides for tests that pass.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(list) = std::env::var_os("BRUCE_SKIPPED")
        && let Ok(mut list) = fs::OpenOptions::new().append(true).create(true).open(list)
    {
        let _ = list.write_all(line.as_bytes());
    }
}

/// A folder that `variable` names, or `.cache/<default>`. `None`, with a word about it, where neither is there.
///
/// # Panics
/// The variable is set, and the folder is not there.
fn provided(variable: &str, default: &str, made_by: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        let path = PathBuf::from(path);
        assert!(path.is_dir(), "{variable}={}: no such folder; {made_by} makes it", path.display());
        return Some(path);
    }
    let path = root().join(".cache").join(default);
    if !path.is_dir() {
        skip(&format!("{made_by} was not run"));
        return None;
    }
    Some(path)
}

/// The checkpoint of a name: `tinymoe`, which ships with the project, or one of those that `make models` makes.
pub fn checkpoint(name: &str) -> Option<PathBuf> {
    if name == "tinymoe" {
        return Some(root().join("models/tiny-moe"));
    }
    let path = provided("BRUCE_TEST_MODELS", "test-models", "make models")?.join(name);
    if !path.is_dir() {
        assert!(std::env::var_os("BRUCE_TEST_MODELS").is_none(), "{}: no such folder", path.display());
        skip(&format!("the test model {name} was not made"));
        return None;
    }
    Some(path)
}

/// The folder of the prebuilt llama.cpp.
pub fn oracle() -> Option<PathBuf> {
    provided("BRUCE_ORACLE", "oracle", "make oracle")
}

/// A test model as `bruce-quant` writes it, in the type that `-q` takes. It is written once for all tests.
pub fn quantized(name: &str, file_type: &str) -> Option<PathBuf> {
    static WRITTEN: LazyLock<Mutex<HashMap<(String, String), PathBuf>>> = LazyLock::new(Mutex::default);
    let checkpoint = checkpoint(name)?;
    let key = (name.to_owned(), file_type.to_owned());
    let mut written = WRITTEN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(path) = written.get(&key) {
        return Some(path.clone());
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("programs");
    fs::create_dir_all(&folder).expect("a folder for models");
    let path = folder.join(format!("{name}-{file_type}.gguf"));
    succeed(bruce_quant().arg(checkpoint).args(["-q", file_type, "--force", "--quiet", "-o"]).arg(&path));
    written.insert(key, path.clone());
    Some(path)
}

/// Whether a tool of the system is there and works; if not, the test is to be skipped.
pub fn tool(command: &mut Command) -> bool {
    let works = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if works.is_ok_and(|status| status.success()) {
        return true;
    }
    skip(&format!("{:?} does not work here", command.get_program()));
    false
}

/// Names of what is in a folder, sorted.
pub fn listing(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A copy of `models/tiny-moe` in a new folder, to be damaged.
pub fn tiny_moe_copy() -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a temporary folder");
    let source = root().join("models/tiny-moe");
    for name in listing(&source) {
        fs::copy(source.join(&name), copy.path().join(&name)).expect("a copy");
    }
    copy
}

/// Checks that a program refused its work as it should: the exit code, one line `error: ...` with all of `words` in it, at
/// most a hint after it, and nothing that looks like our bug.
///
/// # Panics
/// It did not.
pub fn refused(output: &Output, code: i32, words: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(code), "ended with {}; it said:\n{said}", output.status);
    assert!(!said.contains("panicked"), "{said}");
    let lines: Vec<&str> = said.lines().filter(|line| !line.starts_with("warning: ")).collect();
    let (error, hints) = lines.split_first().unwrap_or_else(|| panic!("nothing on stderr"));
    assert!(error.starts_with("error: "), "{said}");
    assert!(
        hints.len() <= 1 && hints.iter().all(|line| line.starts_with("hint: ")),
        "more than one line:\n{said}"
    );
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}
