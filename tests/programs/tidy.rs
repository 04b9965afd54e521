//! Rules of the project that no compiler checks.

use crate::support::root;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a module; one that needs more answers more than one question.
const MAX_LINES: usize = 800;

/// Files under the given folders with this extension, but for what is built.
fn files(folders: &[&str], extension: &str) -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if !path.is_dir() {
                found.push(path);
            } else if name != "target" && name != "node_modules" {
                walk(&path, found);
            }
        }
    }
    let mut found = Vec::new();
    for folder in folders {
        walk(&root().join(folder), &mut found);
    }
    found.retain(|path| path.extension().is_some_and(|e| e == extension));
    found.sort();
    found
}

fn rust_files() -> Vec<PathBuf> {
    let found = files(&["src", "crates", "tests", "benches"], "rs");
    assert!(found.len() > 20, "only {} Rust files were found", found.len());
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

fn assert_none(broken: Vec<String>, rule: &str) {
    assert!(broken.is_empty(), "{rule}:\n{}", broken.join("\n"));
}

#[test]
fn modules_are_short() {
    let lines = |path: &PathBuf| fs::read_to_string(path).expect("text").lines().count();
    let long = rust_files().into_iter().filter(|path| !path.ends_with("ggml-sys/src/bindings.rs"));
    let long =
        long.filter(|path| lines(path) > MAX_LINES).map(|path| format!("{}: {}", shown(&path), lines(&path)));
    assert_none(long.collect(), "modules of more than 800 lines");
}

#[test]
fn nothing_is_left_undone() {
    // Written apart, so that this file does not find itself.
    let words =
        [concat!("to", "do!("), concat!("unimple", "mented!("), concat!("FIX", "ME"), concat!("XX", "X")];
    let mut broken = Vec::new();
    for path in rust_files() {
        for (i, line) in fs::read_to_string(&path).expect("text").lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                broken.push(format!("{}:{}: {}", shown(&path), i + 1, line.trim()));
            }
        }
    }
    assert_none(broken, "unfinished work");
}

#[test]
fn unsafe_code_stays_where_it_belongs() {
    // The tests of quants ask the linked ggml for its opinion, its benchmarks the system for the time.
    let tests = "crates/quants/src/tests/oracle.rs";
    let allowed = [
        "crates/ggml-sys/",
        "crates/ggml/",
        "crates/quants/src/arch",
        "crates/quants/benches/",
        "crates/gguf/src/mmap",
        "crates/expert-pool/src/reader/uring.rs",
        tests,
    ];
    // A comment or a lint may name it; code has it followed by a brace or a keyword.
    let uses = [
        concat!("uns", "afe {"),
        concat!("uns", "afe fn"),
        concat!("uns", "afe impl"),
        concat!("uns", "afe extern"),
    ];
    let mut broken = Vec::new();
    for path in rust_files() {
        let name = shown(&path);
        if allowed.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        for (i, line) in fs::read_to_string(&path).expect("text").lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if uses.iter().any(|word| code.contains(word)) {
                broken.push(format!("{name}:{}: {}", i + 1, line.trim()));
            }
        }
    }
    assert_none(
        broken,
        "unsafe code outside of ggml-sys, ggml, quants::arch, gguf::mmap and expert-pool's ring",
    );
}

#[test]
fn programs_do_not_panic_where_stderr_takes_nothing() {
    let words = [concat!("eprint", "!("), concat!("eprint", "ln!(")];
    let mut broken = Vec::new();
    for path in files(&["src"], "rs") {
        for (i, line) in fs::read_to_string(&path).expect("text").lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                broken.push(format!("{}:{}: {}", shown(&path), i + 1, line.trim()));
            }
        }
    }
    assert_none(broken, "lines for stderr past bruce::say!");
}

#[test]
fn nothing_names_the_machine_it_was_written_on() {
    let words = [concat!("/wo", "rk/"), concat!("/ro", "ot/")];
    let mut sources = rust_files();
    for (folder, extension) in
        [("tools", "py"), ("tools", "sh"), ("tests", "mjs"), (".ci", "run"), ("benches", "sh")]
    {
        sources.extend(files(&[folder], extension));
    }
    for name in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "BENCHMARKS.md", "Makefile"] {
        sources.extend(Some(root().join(name)).filter(|path| path.exists()));
    }
    let mut broken = Vec::new();
    for path in sources {
        for (i, line) in fs::read_to_string(&path).expect("text").lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                broken.push(format!("{}:{}: {}", shown(&path), i + 1, line.trim()));
            }
        }
    }
    assert_none(broken, "paths of one machine");
}

#[test]
fn crates_know_only_what_is_below_them() {
    // Each crate with all of ours that it may use.
    let below: [(&str, &[&str]); 11] = [
        ("expert-pool", &[]),
        ("ggml-sys", &[]),
        ("ggml", &["ggml-sys"]),
        ("quants", &[]),
        ("gguf", &["quants"]),
        ("imatrix", &["quants", "gguf"]),
        ("model-spec", &["quants", "gguf"]),
        ("checkpoint", &["quants", "gguf", "model-spec"]),
        ("convert", &["ggml-sys", "ggml", "quants", "gguf", "imatrix", "model-spec", "checkpoint"]),
        ("routing", &[]),
        ("runtime", &["expert-pool", "ggml-sys", "ggml", "quants", "gguf", "imatrix", "model-spec"]),
    ];
    let mut broken = Vec::new();
    for (name, allowed) in below {
        let manifest =
            fs::read_to_string(root().join("crates").join(name).join("Cargo.toml")).expect("a manifest");
        if !manifest.contains("[lints]\nworkspace = true") {
            broken.push(format!("crates/{name}: does not take the lints of the workspace"));
        }
        let used =
            manifest.split("\n[").find(|section| section.starts_with("dependencies]")).unwrap_or_default();
        for (other, _) in below {
            let uses = used.lines().any(|line| line.split(['.', '=', ' ']).next() == Some(other));
            if uses && !allowed.contains(&other) {
                broken.push(format!("crates/{name}: uses {other}"));
            }
        }
    }
    let listed: Vec<String> = crate::support::listing(&root().join("crates"));
    let unknown = listed.iter().filter(|name| !below.iter().any(|(known, _)| known == name));
    broken.extend(
        unknown.map(|name| format!("crates/{name}: its place among the crates is not written down here")),
    );
    assert_none(broken, "crates that do not keep to their layer");
}

#[test]
fn ggml_is_pinned_by_version_and_checksum() {
    let manifest = fs::read_to_string(root().join("vendor/ggml/Cargo.toml")).expect("the manifest");
    assert!(manifest.contains("llama-cpp-sys-2 = \"=") || manifest.contains("version = \"="), "{manifest}");
    let lock = fs::read_to_string(root().join("vendor/ggml/Cargo.lock")).expect("the lock file");
    let package =
        lock.split("[[package]]").find(|p| p.contains("name = \"llama-cpp-sys-2\"")).expect("the package");
    assert!(package.contains("checksum = "), "{package}");
}
