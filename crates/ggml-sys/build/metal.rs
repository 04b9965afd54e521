//! ggml's Metal backend. Its kernels are compiled by the system at start from the source embedded here.

use crate::source::Source;
use crate::{Target, compiler};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// Object files of the Metal backend; links Apple's frameworks.
pub fn compile(source: &Source, target: &Target) -> Vec<PathBuf> {
    let dir = source.ggml.join("src/ggml-metal");
    let list = |extension: &str| -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = fs::read_dir(&dir)
            .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == extension))
            .collect();
        found.sort();
        found
    };
    let mut objects = Vec::new();
    for (extension, cpp) in [("m", false), ("cpp", true)] {
        let mut build = compiler(source, target, cpp);
        build.define("GGML_METAL_EMBED_LIBRARY", None).files(list(extension));
        objects.extend(build.compile_intermediates());
    }
    let mut assembly = cc::Build::new();
    for kernel in kernels(&dir) {
        assembly.file(embed(source, target, &kernel));
    }
    objects.extend(assembly.compile_intermediates());
    for framework in ["Foundation", "Metal", "MetalKit"] {
        println!("cargo::rustc-link-lib=framework={framework}");
    }
    objects
}

/// Every kernel source that is a library of its own; the `*_common.metal` files are included by others.
fn kernels(dir: &Path) -> Vec<PathBuf> {
    let dir = dir.join("kernels");
    let mut found: Vec<PathBuf> = fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "metal"))
        .filter(|path| !path.file_stem().unwrap_or_default().to_string_lossy().ends_with("_common"))
        .collect();
    found.sort();
    found
}

/// Resolves the includes of one kernel source and writes the assembly that carries the text between the symbols
/// `ggml_metallib_<kernel>_start` and `_end`, which the backend looks for.
fn embed(source: &Source, target: &Target, kernel: &Path) -> PathBuf {
    let text = resolve(source, kernel, &mut Vec::new());
    let name = kernel.file_stem().unwrap_or_default().to_string_lossy().replace('-', "_");
    let flat = target.out.join(format!("{name}.metal"));
    fs::write(&flat, text).expect("the output directory is writable");
    let mut assembly = String::from(".section __DATA,__ggml_metallib\n");
    for (symbol, body) in [("start", format!(".incbin \"{}\"\n", flat.display())), ("end", String::new())] {
        write!(assembly, ".globl _ggml_metallib_{name}_{symbol}\n_ggml_metallib_{name}_{symbol}:\n{body}")
            .expect("a string");
    }
    let path = target.out.join(format!("{name}.s"));
    fs::write(&path, assembly).expect("the output directory is writable");
    path
}

/// The text of `file` with ggml's own headers put in place, each once.
fn resolve(source: &Source, file: &Path, seen: &mut Vec<PathBuf>) -> String {
    if seen.iter().any(|s| s == file) {
        return String::new();
    }
    seen.push(file.to_path_buf());
    let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let dir = file.parent().expect("a file in a directory");
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let trimmed = line.trim();
        let named = trimmed.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"'));
        if trimmed.contains("__embed_ggml-common.h__") {
            out += &resolve(source, &source.ggml.join("src/ggml-common.h"), seen);
        } else if let Some(name) = named {
            let candidates = [dir.join(name), dir.join("..").join(name)];
            match candidates.iter().find(|path| path.is_file()) {
                Some(path) => out += &resolve(source, path, seen),
                None => out += line,
            }
        } else if trimmed != "#pragma once" {
            out += line;
        }
        out.push('\n');
    }
    out
}
