//! Where ggml's source lies and which version it is.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A ggml source tree.
pub struct Source {
    /// The directory with `include/` and `src/`.
    pub ggml: PathBuf,
    /// ggml's own version number, such as `0.26.0`.
    pub version: String,
    /// Where the source came from: the pinned package with its version, or `custom`.
    pub origin: String,
}

/// The source that `BRUCE_GGML_SOURCE` names, else the one that `vendor/ggml` pins.
///
/// Cargo is asked where the pinned package lies (and downloads it when it is not there yet), so that its checksum
/// has been compared with the lock file's by the time anything is compiled.
pub fn locate() -> Source {
    let (ggml, origin) = match env::var_os("BRUCE_GGML_SOURCE") {
        Some(path) => (PathBuf::from(path), "custom".to_owned()),
        None => pinned(),
    };
    assert!(
        ggml.join("include/ggml.h").is_file(),
        "no ggml source at {} (include/ggml.h is missing); check BRUCE_GGML_SOURCE or vendor/ggml",
        ggml.display()
    );
    let version = version(&ggml);
    Source { ggml, version, origin }
}

fn pinned() -> (PathBuf, String) {
    let manifest_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let manifest = manifest_dir.join("../../vendor/ggml/Cargo.toml");
    println!("cargo::rerun-if-changed={}", manifest.display());
    println!("cargo::rerun-if-changed={}", manifest.with_file_name("Cargo.lock").display());
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["metadata", "--format-version", "1", "--locked", "--manifest-path"]).arg(&manifest);
    let output = command.output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    assert!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo metadata writes JSON");
    let package = metadata["packages"]
        .as_array()
        .and_then(|packages| packages.iter().find(|p| p["name"] == "llama-cpp-sys-2"))
        .unwrap_or_else(|| panic!("{} does not name llama-cpp-sys-2", manifest.display()));
    let root = Path::new(package["manifest_path"].as_str().expect("a path")).parent().expect("a parent");
    let origin = format!("llama-cpp-sys-2 {}", package["version"].as_str().unwrap_or("?"));
    (root.join("llama.cpp/ggml"), origin)
}

/// ggml keeps its version in three `set(GGML_VERSION_* n)` lines of its CMakeLists.txt.
fn version(ggml: &Path) -> String {
    let cmake = fs::read_to_string(ggml.join("CMakeLists.txt")).unwrap_or_default();
    let part = |name: &str| {
        let prefix = format!("set(GGML_VERSION_{name} ");
        cmake
            .lines()
            .find_map(|line| line.trim().strip_prefix(&prefix)?.strip_suffix(')'))
            .unwrap_or("?")
            .to_owned()
    };
    format!("{}.{}.{}", part("MAJOR"), part("MINOR"), part("PATCH"))
}

impl Source {
    /// Writes the `ggml-version.h` that ggml's own build would generate.
    pub fn write_version_header(&self, out: &Path) {
        let text = format!(
            "#pragma once\n#define GGML_VERSION \"{}\"\n#define GGML_COMMIT \"{}\"\n",
            self.version, self.origin
        );
        fs::write(out.join("ggml-version.h"), text).expect("the output directory is writable");
    }
}
