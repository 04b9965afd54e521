//! ggml's CPU backend: for the building machine, or as one loadable module per level of CPU.

use crate::source::Source;
use crate::{Target, link_shared, objects};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A level of x86-64 that a portable build carries, from the oldest CPU to the newest; ggml's names.
/// Each feature is the `-m` flag, and `GGML_<FEATURE>` is what ggml's start-up check of the CPU looks for.
const X86_LEVELS: &[(&str, &[&str])] = &[
    ("x64", &[]),
    ("sse42", &["sse4.2"]),
    ("haswell", &["sse4.2", "f16c", "fma", "bmi2", "avx", "avx2"]),
    ("alderlake", &["sse4.2", "f16c", "fma", "bmi2", "avx", "avx2", "avxvnni"]),
    ("skylakex", &["sse4.2", "f16c", "fma", "bmi2", "avx", "avx2", "avx512"]),
    ("icelake", &["sse4.2", "f16c", "fma", "bmi2", "avx", "avx2", "avx512", "avx512vbmi", "avx512vnni"]),
    (
        "zen4",
        &["sse4.2", "f16c", "fma", "bmi2", "avx", "avx2", "avx512", "avx512vbmi", "avx512vnni", "avx512bf16"],
    ),
];

/// `-march` for these levels would also choose instructions that ggml does not check for, hence single flags.
fn flags(feature: &str) -> Vec<String> {
    match feature {
        "avx512" => ["f", "cd", "vl", "dq", "bw"].iter().map(|s| format!("-mavx512{s}")).collect(),
        other => vec![format!("-m{other}")],
    }
}

fn definition(feature: &str) -> String {
    let name = match feature {
        "sse4.2" => "SSE42".to_owned(),
        "avxvnni" => "AVX_VNNI".to_owned(),
        "avx512" => "AVX512".to_owned(),
        other if other.starts_with("avx512") => format!("AVX512_{}", other["avx512".len()..].to_uppercase()),
        other => other.to_uppercase(),
    };
    format!("GGML_{name}")
}

fn files(source: &Source, target: &Target) -> Vec<PathBuf> {
    let dir = source.ggml.join("src/ggml-cpu");
    let mut names = vec![
        "ggml-cpu.c",
        "ggml-cpu.cpp",
        "repack.cpp",
        "hbm.cpp",
        "quants.c",
        "traits.cpp",
        "amx/amx.cpp",
        "amx/mmq.cpp",
        "binary-ops.cpp",
        "unary-ops.cpp",
        "vec.cpp",
        "ops.cpp",
        "llamafile/sgemm.cpp",
    ];
    names.extend(["tiled/tiled.cpp", "tiled/tiled-kernel.cpp"].iter().filter(|f| dir.join(f).is_file()));
    names.extend(match target.arch.as_str() {
        "x86_64" | "x86" => &["arch/x86/quants.c", "arch/x86/repack.cpp"][..],
        "aarch64" | "arm" => &["arch/arm/quants.c", "arch/arm/repack.cpp"],
        "powerpc64" => &["arch/powerpc/quants.c"],
        "loongarch64" => &["arch/loongarch/quants.c"],
        "riscv64" => &["arch/riscv/quants.c", "arch/riscv/repack.cpp"],
        "s390x" => &["arch/s390/quants.c"],
        _ => &[],
    });
    names.iter().map(|name| dir.join(name)).collect()
}

fn configure(source: &Source, build: &mut cc::Build) {
    let tile_config = Path::new(env!("CARGO_MANIFEST_DIR")).join("build/tile_config.h");
    build
        .flag("-include")
        .flag(tile_config)
        .include(source.ggml.join("src/ggml-cpu"))
        .define("GGML_USE_LLAMAFILE", None)
        .define("GGML_USE_CPU_REPACK", None);
}

/// The level that machines of an architecture are compiled for where they have it.
///
/// On x86-64 it has AVX2, FMA and F16C: ggml sums in another order with wider vectors, and has a layout and rounding of its
/// own for AMX. On AArch64 it has the dot products of Armv8.2 (Apple Silicon, Graviton 2, Raspberry Pi 5 and newer): with SVE
/// and i8mm ggml sums in another order, and with half-precision arithmetic it adds up F16 in F16. So machines would answer
/// differently; at this level they answer alike.
fn common_level(target: &Target) -> Option<&'static str> {
    match target.arch.as_str() {
        "x86_64" => Some("x86-64-v3"),
        "aarch64" => Some("armv8.2-a+dotprod"),
        _ => None,
    }
}

/// What the CPU backend is compiled for: the user's choice, else the common level where the building
/// machine has it or is not the one that the programs run on, else all that the building machine has.
pub fn level(target: &Target) -> String {
    if let Ok(level) = env::var("BRUCE_CPU") {
        return level;
    }
    let common = common_level(target).filter(|common| {
        let Some(native) = compiler_macros(&flag(target, "native")) else {
            return true; // a cross compiler, which knows no machine to compile for
        };
        let wanted = compiler_macros(&flag(target, common)).unwrap_or_default();
        FEATURES.iter().all(|(name, _)| !defines(&wanted, name) || defines(&native, name))
    });
    common.unwrap_or("native").to_owned()
}

/// The compiler's option for a level: x86 names all with `-march`, others processors with `-mcpu`, and Arm architectures
/// (`armv8.2-a+dotprod`) with `-march`.
fn flag(target: &Target, level: &str) -> String {
    let is_architecture = matches!(target.arch.as_str(), "x86_64" | "x86") || level.starts_with("armv");
    let option = if is_architecture { "march" } else { "mcpu" };
    format!("-{option}={level}")
}

/// Object files of the CPU backend for one level, and the CPU features they need (comma-separated, rustc's names).
pub fn native(source: &Source, target: &Target) -> (Vec<PathBuf>, String) {
    let flag = flag(target, &level(target));
    let objects = objects(source, target, &files(source, target), &|build| {
        configure(source, build);
        build.flag(&flag);
    });
    (objects, needed_features(&flag))
}

/// Macros that stand for instruction sets, and rustc's names of these.
const FEATURES: &[(&str, &str)] = &[
    ("__SSE3__", "sse3"),
    ("__SSSE3__", "ssse3"),
    ("__SSE4_1__", "sse4.1"),
    ("__SSE4_2__", "sse4.2"),
    ("__POPCNT__", "popcnt"),
    ("__AVX__", "avx"),
    ("__AVX2__", "avx2"),
    ("__FMA__", "fma"),
    ("__F16C__", "f16c"),
    ("__BMI__", "bmi1"),
    ("__BMI2__", "bmi2"),
    ("__LZCNT__", "lzcnt"),
    ("__MOVBE__", "movbe"),
    ("__AVX512F__", "avx512f"),
    ("__AVX512BW__", "avx512bw"),
    ("__AVX512CD__", "avx512cd"),
    ("__AVX512DQ__", "avx512dq"),
    ("__AVX512VL__", "avx512vl"),
    ("__AVX512VBMI__", "avx512vbmi"),
    ("__AVX512VNNI__", "avx512vnni"),
    ("__AVX512BF16__", "avx512bf16"),
    ("__AVXVNNI__", "avxvnni"),
    ("__ARM_FEATURE_ATOMICS", "lse"),
    ("__ARM_FEATURE_BF16_VECTOR_ARITHMETIC", "bf16"),
    ("__ARM_FEATURE_COMPLEX", "fcma"),
    ("__ARM_FEATURE_CRC32", "crc"),
    ("__ARM_FEATURE_DOTPROD", "dotprod"),
    ("__ARM_FEATURE_FP16_FML", "fhm"),
    ("__ARM_FEATURE_FP16_VECTOR_ARITHMETIC", "fp16"),
    ("__ARM_FEATURE_FRINT", "frintts"),
    ("__ARM_FEATURE_JCVT", "jsconv"),
    ("__ARM_FEATURE_MATMUL_INT8", "i8mm"),
    ("__ARM_FEATURE_QRDMX", "rdm"),
    ("__ARM_FEATURE_SVE", "sve"),
    ("__ARM_FEATURE_SVE2", "sve2"),
];

fn defines(macros: &str, name: &str) -> bool {
    macros.lines().any(|line| line.split_whitespace().nth(1) == Some(name))
}

/// The macros that the compiler defines with this flag; `None` where it does not know the flag.
fn compiler_macros(flag: &str) -> Option<String> {
    let mut command: Command = cc::Build::new().get_compiler().to_command();
    command.args([flag, "-dM", "-E", "-x", "c", "/dev/null"]);
    let output = command.output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Asks the compiler which instruction sets the flag stands for, so that the program can check at its start that
/// the CPU it runs on has them.
fn needed_features(flag: &str) -> String {
    let macros = compiler_macros(flag).unwrap_or_default();
    let needed = FEATURES.iter().filter(|(name, _)| defines(&macros, name));
    needed.map(|(_, feature)| *feature).collect::<Vec<_>>().join(",")
}

/// Builds `libggml-cpu-<level>.so` for every level; ggml loads the best one the machine supports.
pub fn variants(source: &Source, target: &Target, base: &Path) {
    assert!(
        target.arch == "x86_64" && target.os == "linux",
        "the feature `portable` is there for x86-64 Linux; elsewhere set BRUCE_CPU to the oldest CPU you ship for"
    );
    for (name, features) in X86_LEVELS {
        let define = |build: &mut cc::Build| {
            build.define("GGML_BACKEND_BUILD", None);
            for feature in *features {
                build.define(&definition(feature), None);
            }
        };
        let directory = target.out.join(name);
        let mut all = objects(source, target, &files(source, target), &|build| {
            configure(source, build);
            define(build);
            build.out_dir(&directory);
            for flag in features.iter().flat_map(|f| flags(f)) {
                build.flag(flag);
            }
        });
        // The check whether the CPU has the level must itself run on any CPU.
        let check = [source.ggml.join("src/ggml-cpu/arch/x86/cpu-feats.cpp")];
        all.extend(objects(source, target, &check, &|build| {
            define(build);
            build.out_dir(&directory);
        }));
        link_shared(target, &format!("ggml-cpu-{name}"), &all, &[base.into()]);
    }
}
