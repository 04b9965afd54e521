//! Stamps what the programs were built from into `--version`, and says where they find the shared libraries of a portable
//! build. Compiles nothing.
//!
//! Sets for the crate `bruce`:
//! - `BRUCE_VERSION`: the version, with the commit in a git checkout (`0.1.0 (1a2b3c4d5-dirty)`);
//! - `BRUCE_GGML`, `BRUCE_BACKENDS`, `BRUCE_CPU_LEVEL`: which ggml, its backends and what the CPU code was compiled for;
//! - `$OUT_DIR/version.txt`: all of these as the lines of `--version`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is compiled into the programs: only changes to these make a build "dirty".
const SOURCES: &[&str] = &["Cargo.toml", "Cargo.lock", "build.rs", "src", "crates", "vendor"];

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    for path in SOURCES.iter().map(|name| root.join(name)).filter(|path| path.exists()) {
        println!("cargo::rerun-if-changed={}", path.display());
    }

    let package = env::var("CARGO_PKG_VERSION").expect("set by cargo");
    let version = match commit(&root) {
        Some(commit) => format!("{package} ({commit})"),
        None => package,
    };
    let ggml = format!("{} ({})", from_ggml("VERSION"), from_ggml("ORIGIN"));
    let (backends, cpu) = (from_ggml("BACKENDS"), from_ggml("CPU"));
    println!("cargo::rustc-env=BRUCE_VERSION={version}");
    println!("cargo::rustc-env=BRUCE_GGML={ggml}");
    println!("cargo::rustc-env=BRUCE_BACKENDS={backends}");
    println!("cargo::rustc-env=BRUCE_CPU_LEVEL={cpu}");
    let text = format!("{version}\nggml {ggml}\nbackends: {backends}\nCPU: {cpu}");
    fs::write(out.join("version.txt"), text).expect("the output directory is writable");

    // A toolkit outside the linker's usual directories; only where the program stays on the machine that built it.
    for directory in from_ggml("RPATH").split(':').filter(|directory| !directory.is_empty()) {
        println!("cargo::rustc-link-arg-bins=-Wl,-rpath,{directory}");
    }
    let libraries = from_ggml("LIBDIR");
    if !libraries.is_empty() {
        // Installed, the libraries lie beside the programs; before that, where the build left them.
        println!("cargo::rustc-link-arg-bins=-Wl,-rpath,$ORIGIN");
        println!("cargo::rustc-link-arg-bins=-Wl,-rpath,{}", in_place(Path::new(&libraries)));
    }
}

/// A fact that the build script of ggml-sys passes on.
fn from_ggml(key: &str) -> String {
    env::var(format!("DEP_GGML_{key}")).unwrap_or_default()
}

/// Short commit of the checkout, marked where the sources differ from it; `None` outside of git, and in a source
/// archive that was unpacked inside somebody else's checkout.
fn commit(root: &Path) -> Option<String> {
    let top = git(root, &["rev-parse", "--show-toplevel"])?;
    if fs::canonicalize(top).ok()? != fs::canonicalize(root).ok()? {
        return None;
    }
    // A commit moves the branch that HEAD names; a checkout changes HEAD; packing refs moves them to packed-refs.
    let branch = git(root, &["symbolic-ref", "--quiet", "HEAD"]);
    for name in [Some("HEAD"), branch.as_deref(), Some("packed-refs")].into_iter().flatten() {
        let file = git(root, &["rev-parse", "--git-path", name]).map(|path| root.join(path));
        // A missing file would make cargo run this script each time.
        if let Some(file) = file.filter(|file| file.is_file()) {
            println!("cargo::rerun-if-changed={}", file.display());
        }
    }
    let commit = git(root, &["rev-parse", "--short=9", "HEAD"])?;
    let changes = git(root, &[&["status", "--porcelain", "--"], SOURCES].concat())?;
    Some(if changes.is_empty() { commit } else { format!("{commit}-dirty") })
}

/// What git prints, trimmed; `None` where git is missing or fails.
fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    // Without the option `git status` rewrites the index, under the nose of a git that is running.
    let mut command = Command::new("git");
    command.arg("--no-optional-locks").arg("-C").arg(root).args(arguments);
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

/// `libraries` as seen from the programs in `target/<profile>`, so that no path of the building machine is shipped; as
/// it is where cargo keeps its build directory elsewhere.
fn in_place(libraries: &Path) -> String {
    // <profile>/build/<package>-<hash>/out
    let profile = libraries.ancestors().nth(3);
    match profile.and_then(|profile| libraries.strip_prefix(profile).ok()) {
        Some(relative) if relative.starts_with("build") => format!("$ORIGIN/{}", relative.display()),
        _ => libraries.display().to_string(),
    }
}
