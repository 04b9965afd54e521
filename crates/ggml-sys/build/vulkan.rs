//! ggml's Vulkan backend: its shader generator is compiled and run first, then the backend with what it wrote.

use crate::source::Source;
use crate::{Target, compiler};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Extensions of the shader language that ggml uses where `glslc` knows them: its probe shader, and the macro.
const EXTENSIONS: &[(&str, &str)] = &[
    ("coopmat", "GGML_VULKAN_COOPMAT_GLSLC_SUPPORT"),
    ("coopmat2", "GGML_VULKAN_COOPMAT2_GLSLC_SUPPORT"),
    ("coopmat2_decode_vector", "GGML_VULKAN_COOPMAT2_DECODE_VECTOR_GLSLC_SUPPORT"),
    ("integer_dot", "GGML_VULKAN_INTEGER_DOT_GLSLC_SUPPORT"),
    ("bfloat16", "GGML_VULKAN_BFLOAT16_GLSLC_SUPPORT"),
    ("float_e2m1", "GGML_VULKAN_FLOAT_E2M1_GLSLC_SUPPORT"),
    ("float_e4m3", "GGML_VULKAN_FLOAT_E4M3_GLSLC_SUPPORT"),
];

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    assert!(output.status.success(), "{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
}

fn with_extension(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .collect();
    found.sort();
    found
}

/// Object files of the Vulkan backend; needs `glslc` on PATH, SPIRV-Headers, the Vulkan loader, and headers of Vulkan
/// 1.3.272 or newer (Debian 12 has older ones).
pub fn compile(source: &Source, target: &Target) -> Vec<PathBuf> {
    let dir = source.ggml.join("src/ggml-vulkan");
    let shaders = dir.join("vulkan-shaders");
    let known: Vec<&str> = EXTENSIONS
        .iter()
        .filter(|(probe, _)| {
            let file = shaders.join(format!("feature-tests/{probe}.comp"));
            let args = ["-o", "/dev/null", "-fshader-stage=compute", "--target-env=vulkan1.3"];
            Command::new("glslc").args(args).arg(file).output().is_ok_and(|output| output.status.success())
        })
        .map(|(_, macro_name)| *macro_name)
        .collect();

    let generator = target.out.join("vulkan-shaders-gen");
    let mut command = cc::Build::new().cpp(true).std("c++17").get_compiler().to_command();
    command.args(known.iter().map(|name| format!("-D{name}")));
    command.arg(shaders.join("vulkan-shaders-gen.cpp")).arg("-o").arg(&generator).arg("-lpthread");
    run(&mut command);

    let header = target.out.join("ggml-vulkan-shaders.hpp");
    let spirv = target.out.join("vulkan-shaders.spv");
    let mut generated = Vec::new();
    run(Command::new(&generator).arg("--output-dir").arg(&spirv).arg("--target-hpp").arg(&header));
    for shader in with_extension(&shaders, "comp") {
        let name = shader.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let cpp = target.out.join(format!("{name}.cpp"));
        let mut command = Command::new(&generator);
        command.args(["--glslc", "glslc", "--source"]).arg(&shader).arg("--output-dir").arg(&spirv);
        run(command.arg("--target-hpp").arg(&header).arg("--target-cpp").arg(&cpp));
        generated.push(cpp);
    }

    let mut build = compiler(source, target, true);
    for name in known {
        build.define(name, None);
    }
    build.include(&dir).files(with_extension(&dir, "cpp")).files(generated).compile_intermediates()
}
