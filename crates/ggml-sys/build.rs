//! Compiles ggml (its base, its CPU backend and the GPU backends asked for) and links it; never anything of llama.cpp.
//!
//! Environment:
//! - `BRUCE_GGML_SOURCE`: a ggml checkout (with `include/` and `src/`) instead of the one that `vendor/ggml` pins.
//! - `BRUCE_CPU`: what the CPU backend is compiled for, a `-march` (x86; Arm's architectures) or `-mcpu` (Arm's processors);
//!   when unset, the common level of the architecture (`x86-64-v3`, `armv8.2-a+dotprod`) where the building machine has it
//!   or builds for another architecture, else `native`.
//! - `CUDA_HOME`, `BRUCE_CUDA_ARCH` (with the feature `cuda`): the toolkit, and `native` or architectures such as `86,90`.

#[path = "build/cpu.rs"]
mod cpu;
#[path = "build/cuda.rs"]
mod cuda;
#[path = "build/metal.rs"]
mod metal;
#[path = "build/source.rs"]
mod source;
#[path = "build/vulkan.rs"]
mod vulkan;

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

/// What is compiled for which machine; read once from cargo's and the user's environment.
pub struct Target {
    /// `CARGO_CFG_TARGET_ARCH`.
    pub arch: String,
    /// `CARGO_CFG_TARGET_OS`.
    pub os: String,
    /// Whether the CPU backend comes as modules chosen at run time.
    pub portable: bool,
    /// `OUT_DIR`.
    pub out: PathBuf,
}

impl Target {
    fn from_env() -> Self {
        let var = |name: &str| env::var(name).unwrap_or_default();
        Target {
            arch: var("CARGO_CFG_TARGET_ARCH"),
            os: var("CARGO_CFG_TARGET_OS"),
            portable: feature("PORTABLE"),
            out: PathBuf::from(var("OUT_DIR")),
        }
    }
}

/// A compiler set up as all of ggml wants it: optimised whatever the cargo profile, quiet about ggml's own warnings.
pub fn compiler(source: &source::Source, target: &Target, cpp: bool) -> cc::Build {
    let mut build = cc::Build::new();
    build
        .cpp(cpp)
        .std(if cpp { "c++17" } else { "c11" })
        .opt_level(3)
        .debug(false)
        .warnings(false)
        .pic(true)
        .define("NDEBUG", None)
        .define("GGML_SCHED_MAX_COPIES", "4")
        .include(source.ggml.join("include"))
        .include(source.ggml.join("src"))
        .include(&target.out);
    match target.os.as_str() {
        "linux" | "android" => build.define("_GNU_SOURCE", None).define("_XOPEN_SOURCE", "600"),
        "macos" | "ios" => build.define("_DARWIN_C_SOURCE", None).define("_XOPEN_SOURCE", "600"),
        _ => &mut build,
    };
    if target.portable {
        build.define("GGML_BACKEND_DL", None).define("GGML_BACKEND_SHARED", None).define("GGML_SHARED", None);
    }
    build
}

/// Compiles `files` (C and C++ mixed) after `configure` has seen each compiler; returns the object files.
pub fn objects(
    source: &source::Source,
    target: &Target,
    files: &[PathBuf],
    configure: &dyn Fn(&mut cc::Build),
) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for cpp in [false, true] {
        let chosen: Vec<&PathBuf> =
            files.iter().filter(|f| (f.extension().unwrap() == "cpp") == cpp).collect();
        if chosen.is_empty() {
            continue;
        }
        let mut build = compiler(source, target, cpp);
        configure(&mut build);
        out.extend(build.files(chosen).compile_intermediates());
    }
    out
}

/// Whether a feature of this package (upper case, underscores) is on.
pub fn feature(name: &str) -> bool {
    env::var_os(format!("CARGO_FEATURE_{name}")).is_some()
}

fn main() {
    for name in ["BRUCE_GGML_SOURCE", "BRUCE_CPU", "BRUCE_CUDA_ARCH", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    for path in ["build.rs", "build", "wrapper.h"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let target = Target::from_env();
    let source = source::locate();
    source.write_version_header(&target.out);

    #[cfg(feature = "bindgen")]
    generate_bindings(&source);

    let mut backends = vec!["cpu"];
    // Object files of everything that is linked into the program itself.
    let mut linked = base(&source, &target);
    let mut registry = vec!["GGML_USE_CPU"];
    let features = if target.portable {
        registry.clear();
        String::new()
    } else {
        let (objects, features) = cpu::native(&source, &target);
        linked.extend(objects);
        features
    };
    // GPU backends are linked in like the CPU's, or become modules in a portable build: name, objects, libraries.
    let mut modules: Vec<(&str, Vec<PathBuf>, Vec<OsString>)> = Vec::new();
    if feature("CUDA") {
        let cuda = cuda::compile(&source, &target);
        let libraries = cuda::LIBRARIES.map(|name| cuda.libraries.join(format!("lib{name}.so")));
        if target.portable {
            modules.push(("ggml-cuda", cuda.objects, libraries.map(OsString::from).into()));
        } else {
            linked.extend(cuda.objects);
            registry.push("GGML_USE_CUDA");
            println!("cargo::rustc-link-search=native={}", cuda.libraries.display());
            for name in cuda::LIBRARIES {
                println!("cargo::rustc-link-lib=dylib={name}");
            }
            let run_time: Vec<String> = cuda.run_time.iter().map(|dir| dir.display().to_string()).collect();
            println!("cargo::metadata=rpath={}", run_time.join(":"));
        }
        backends.push("cuda");
    }
    if feature("METAL") {
        linked.extend(metal::compile(&source, &target));
        registry.push("GGML_USE_METAL");
        backends.push("metal");
    }
    if feature("VULKAN") {
        let objects = vulkan::compile(&source, &target);
        if target.portable {
            modules.push(("ggml-vulkan", objects, vec!["-lvulkan".into()]));
        } else {
            linked.extend(objects);
            registry.push("GGML_USE_VULKAN");
            println!("cargo::rustc-link-lib=dylib=vulkan");
        }
        backends.push("vulkan");
    }
    let files = ["ggml-backend-dl.cpp", "ggml-backend-reg.cpp"].map(|f| source.ggml.join("src").join(f));
    linked.extend(objects(&source, &target, &files, &|build| {
        for name in &registry {
            build.define(name, None);
        }
    }));

    if target.portable {
        let base = link_shared(&target, "ggml-base", &linked, &[]);
        cpu::variants(&source, &target, &base);
        for (name, objects, mut libraries) in modules {
            libraries.insert(0, base.clone().into());
            link_shared(&target, name, &objects, &libraries);
        }
        println!("cargo::rustc-link-search=native={}", target.out.display());
        println!("cargo::rustc-link-lib=dylib=ggml-base");
    } else {
        cc::Build::new().cpp(true).objects(&linked).compile("ggml");
    }
    // Read by the build script of the programs (DEP_GGML_*) and by this crate.
    let cpu = if target.portable { "chosen at run time".into() } else { cpu::level(&target) };
    println!("cargo::metadata=version={}", source.version);
    println!("cargo::metadata=origin={}", source.origin);
    println!("cargo::metadata=backends={}", backends.join(" "));
    println!("cargo::metadata=cpu={cpu}");
    println!(
        "cargo::metadata=libdir={}",
        if target.portable { target.out.display().to_string() } else { String::new() }
    );
    println!("cargo::rustc-env=GGML_CPU_FEATURES={features}");
}

/// ggml-base: tensors, graphs, allocation, scheduling and quantization, without architecture flags, so that
/// quantized bytes are the same everywhere.
fn base(source: &source::Source, target: &Target) -> Vec<PathBuf> {
    let names = [
        "ggml.c",
        "ggml.cpp",
        "ggml-alloc.c",
        "ggml-backend.cpp",
        "ggml-backend-meta.cpp",
        "ggml-opt.cpp",
        "ggml-threading.cpp",
        "ggml-quants.c",
        "gguf.cpp", // ggml-opt and the meta backend refer to it; Bruce never calls it
    ];
    let files: Vec<PathBuf> = names.iter().map(|f| source.ggml.join("src").join(f)).collect();
    objects(source, target, &files, &|build| {
        build.flag_if_supported("-ffp-contract=off");
        if target.portable {
            build.define("GGML_BUILD", None);
        }
    })
}

/// Links `objects` into `lib<name>.so` in the output directory, with libraries named by path or as `-l<name>`, and returns
/// its path.
pub fn link_shared(target: &Target, name: &str, objects: &[PathBuf], libraries: &[OsString]) -> PathBuf {
    let path = target.out.join(format!("lib{name}.so"));
    let mut command = cc::Build::new().cpp(true).get_compiler().to_command();
    command.arg("-shared").arg("-o").arg(&path).args(objects).args(libraries).args([
        "-lm",
        "-lpthread",
        "-ldl",
    ]);
    command.arg("-Wl,-rpath,$ORIGIN").arg(format!("-Wl,-soname,lib{name}.so"));
    let status = command.status().unwrap_or_else(|e| panic!("cannot run the linker {command:?}: {e}"));
    assert!(status.success(), "linking {} failed: {command:?}", path.display());
    path
}

/// Writes `src/bindings.rs` anew from the headers. Enums come in as integers; only what is used comes in at all.
#[cfg(feature = "bindgen")]
fn generate_bindings(source: &source::Source) {
    let allowed = std::fs::read_to_string("bindings.allow").expect("bindings.allow lists what is bound");
    let include = source.ggml.join("include");
    let mut builder = bindgen::Builder::default()
        .header("wrapper.h")
        .clang_arg(format!("-I{}", include.display()))
        .clang_arg(format!("-I{}", source.ggml.join("src").display()))
        .generate_comments(false)
        .layout_tests(false)
        .prepend_enum_name(false)
        .derive_default(false)
        .merge_extern_blocks(true)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .allowlist_recursively(true);
    for line in allowed.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        builder = builder.allowlist_item(line);
    }
    println!("cargo::rerun-if-changed=bindings.allow");
    builder.generate().expect("bindgen").write_to_file("src/bindings.rs").expect("src/bindings.rs");
}
