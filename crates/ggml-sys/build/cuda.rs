//! ggml's CUDA backend, compiled with nvcc. tools/cuda-module.sh compiles the same files with the same flags where there is
//! no cargo; a change here belongs there too.

use crate::Target;
use crate::source::Source;
use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// Types that flash attention's vector kernels are written for, and the pairs (keys, values) that ggml compiles by default.
const ATTENTION_TYPES: [&str; 7] = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "bf16", "f16"];
const ATTENTION_PAIRS: [&str; 4] = ["q4_0-q4_0", "q8_0-q8_0", "f16-f16", "bf16-bf16"];

/// Where the toolkit's parts lie. NVIDIA's installer puts all under one root; pip's packages share one as well
/// (`nvidia/cu13`) or have one each (`nvidia/cuda_nvcc`, `nvidia/cuda_runtime`, ...).
struct Toolkit {
    nvcc: PathBuf,
    /// Major and minor number.
    version: (u32, u32),
    include: Vec<PathBuf>,
    /// Searched when linking.
    lib: Vec<PathBuf>,
    /// Searched when the program runs: the same without the stubs.
    run_time: Vec<PathBuf>,
}

fn toolkit() -> Toolkit {
    let from_env = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(env::var_os).map(PathBuf::from);
    let from_path = env::var_os("PATH")
        .map(|path| {
            env::split_paths(&path)
                // nvcc is often a link from a directory of programs into the toolkit.
                .filter_map(|dir| fs::canonicalize(dir.join("nvcc")).ok())
                .filter_map(|nvcc| nvcc.ancestors().nth(2).map(Path::to_path_buf))
                .collect::<Vec<_>>()
        })
        .unwrap_or_default();
    let usual = [PathBuf::from("/usr/local/cuda")];
    let packages = pip_packages();
    let root = from_env
        .chain(from_path)
        .chain(usual)
        .chain(packages.iter().cloned())
        .find(|root| root.join("bin/nvcc").is_file())
        .expect("no nvcc: put it on PATH, set CUDA_HOME, or pip install nvidia-cuda-nvcc and its siblings");
    let mut roots = vec![root.clone()];
    // Packages that share no root are siblings; so are those of a root that was named by hand.
    let siblings = root.parent().map(directories).unwrap_or_default();
    if packages.contains(&root) || siblings.iter().any(|s| s.join("include/cuda_runtime.h").is_file()) {
        roots.extend(siblings.into_iter().chain(packages).filter(|p| *p != root));
    }
    let existing = |names: &[&str]| -> Vec<PathBuf> {
        roots.iter().flat_map(|r| names.iter().map(|n| r.join(n))).filter(|p| p.is_dir()).collect()
    };
    let nvcc = root.join("bin/nvcc");
    Toolkit {
        version: version(&nvcc),
        nvcc,
        include: existing(&["include", "include/cccl"]),
        lib: existing(&["lib64", "lib", "lib64/stubs", "lib/stubs"]),
        run_time: existing(&["lib64", "lib"]),
    }
}

fn directories(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    found.sort();
    found
}

/// The directories of pip's `nvidia-*` packages that python3 would import.
fn pip_packages() -> Vec<PathBuf> {
    let code = "import nvidia; print('\\n'.join(nvidia.__path__))";
    let Ok(output) = Command::new("python3").args(["-c", code]).output() else { return Vec::new() };
    String::from_utf8_lossy(&output.stdout).lines().flat_map(|dir| directories(Path::new(dir))).collect()
}

fn version(nvcc: &Path) -> (u32, u32) {
    let output = Command::new(nvcc).arg("--version").output();
    let output = output.unwrap_or_else(|e| panic!("cannot run {}: {e}", nvcc.display()));
    let text = String::from_utf8_lossy(&output.stdout);
    let release = text.split("release ").nth(1).and_then(|rest| rest.split(',').next());
    let numbers = release.and_then(|r| r.split_once('.'));
    numbers
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
        .unwrap_or_else(|| panic!("{} --version names no release: {text}", nvcc.display()))
}

fn files(source: &Source) -> Vec<PathBuf> {
    let dir = source.ggml.join("src/ggml-cuda");
    let in_dir = |dir: &Path| -> Vec<PathBuf> {
        fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.extension().is_some_and(|e| e == "cu"))
            .collect()
    };
    let mut files = in_dir(&dir);
    let vector = ATTENTION_PAIRS.map(|pair| format!("fattn-vec-instance-{pair}.cu"));
    files.extend(in_dir(&dir.join("template-instances")).into_iter().filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        !name.starts_with("fattn-vec") || vector.iter().any(|v| *v == name)
    }));
    files.sort();
    files
}

/// `GGML_CUDA_FA_<K>_<V>` is 0 or 1 for every pair of types; ggml's code does not compile without them.
fn attention_definitions() -> Vec<String> {
    let mut found = vec![format!("-DGGML_CUDA_FA_QUANTS=\"{}\"", ATTENTION_PAIRS.join(","))];
    for key in ATTENTION_TYPES {
        for value in ATTENTION_TYPES {
            let there = u8::from(ATTENTION_PAIRS.contains(&format!("{key}-{value}").as_str()));
            found.push(format!("-DGGML_CUDA_FA_{}_{}={there}", key.to_uppercase(), value.to_uppercase()));
        }
    }
    found
}

/// Flags for the architectures in `BRUCE_CUDA_ARCH`: `native`, or numbers with cmake's suffixes (`-real` machine code,
/// `-virtual` code that the driver compiles at start, none for both). Without it ggml's default for this toolkit.
fn architecture_flags(version: (u32, u32)) -> Vec<String> {
    let list = env::var("BRUCE_CUDA_ARCH").unwrap_or_else(|_| {
        let mut list = String::new();
        if version < (13, 0) {
            list += "50-virtual,61-virtual,70-virtual,";
        }
        list += "75-virtual,80-virtual,86-real,89-real,90-virtual";
        if version >= (12, 8) {
            list += ",120a-real";
        }
        list
    });
    if list == "native" {
        return vec!["-arch=native".to_owned()];
    }
    let mut flags = Vec::new();
    for item in list.split([',', ';']).map(str::trim).filter(|item| !item.is_empty()) {
        let (arch, code) = match item.split_once('-') {
            None => (item, "sm_{},compute_{}"),
            Some((arch, "real")) => (arch, "sm_{}"),
            Some((arch, "virtual")) => (arch, "compute_{}"),
            Some(_) => {
                panic!("BRUCE_CUDA_ARCH: found {item}, expected a number, NUMBER-real or NUMBER-virtual")
            }
        };
        flags.push(format!("-gencode=arch=compute_{arch},code=[{}]", code.replace("{}", arch)));
    }
    assert!(!flags.is_empty(), "BRUCE_CUDA_ARCH names no architecture");
    flags
}

/// The compiled backend.
pub struct Compiled {
    pub objects: Vec<PathBuf>,
    /// Holds a `lib<name>.so` for each of [`LIBRARIES`] to link with.
    pub libraries: PathBuf,
    /// Where the toolkit's own libraries lie when the program runs.
    pub run_time: Vec<PathBuf>,
}

/// Compiles the CUDA backend.
pub fn compile(source: &Source, target: &Target) -> Compiled {
    let toolkit = toolkit();
    let out = target.out.join("cuda");
    fs::create_dir_all(&out).expect("the output directory is writable");
    let jobs: usize = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let files = files(source);
    let flags = flags(&toolkit, source, target);
    let objects: Vec<PathBuf> =
        files.iter().map(|f| out.join(f.file_name().expect("a file")).with_extension("o")).collect();
    let queue = Mutex::new(files.iter().zip(&objects));
    let next = || queue.lock().expect("no compile panics while it holds the queue").next();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some((file, object)) = next() {
                    compile_one(&toolkit, &flags, file, object);
                }
            });
        }
    });
    Compiled { objects, libraries: libraries(&toolkit, source, target), run_time: toolkit.run_time }
}

fn flags(toolkit: &Toolkit, source: &Source, target: &Target) -> Vec<String> {
    let mut flags: Vec<String> = [
        "-std=c++17",
        "-O3",
        "-use_fast_math",
        "-extended-lambda",
        "-Xcompiler=-fPIC",
        "-w",
        "-DNDEBUG",
        "-D_GNU_SOURCE",
        "-D_XOPEN_SOURCE=600",
        "-DGGML_CUDA_USE_GRAPHS",
        "-DGGML_SCHED_MAX_COPIES=4",
    ]
    .map(str::to_owned)
    .into();
    if toolkit.version >= (12, 8) {
        flags.push("-compress-mode=size".to_owned());
    }
    if target.portable {
        flags.extend(
            ["BACKEND_DL", "BACKEND_SHARED", "BACKEND_BUILD", "SHARED"].map(|name| format!("-DGGML_{name}")),
        );
    }
    flags.extend(attention_definitions());
    flags.extend(architecture_flags(toolkit.version));
    let own = [source.ggml.join("include"), source.ggml.join("src")];
    flags.extend(toolkit.include.iter().chain(&own).map(|dir| format!("-I{}", dir.display())));
    flags
}

fn compile_one(toolkit: &Toolkit, flags: &[String], file: &Path, object: &Path) {
    let mut command = Command::new(&toolkit.nvcc);
    command.args(flags).arg("-c").arg(file).arg("-o").arg(object);
    let output = command.output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    assert!(output.status.success(), "{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
}

/// What the backend is linked with.
pub const LIBRARIES: [&str; 3] = ["cudart", "cublas", "cuda"];

/// A directory with a `lib<name>.so` for each of [`LIBRARIES`]. pip's packages have them with a version number in the
/// name only; the driver's comes with the driver, so where there is none a stub stands in for it until the program runs.
fn libraries(toolkit: &Toolkit, source: &Source, target: &Target) -> PathBuf {
    let out = target.out.join("cuda-libraries");
    fs::create_dir_all(&out).expect("the output directory is writable");
    for name in LIBRARIES {
        let link = out.join(format!("lib{name}.so"));
        let prefix = format!("lib{name}.so");
        let mut found: Vec<PathBuf> = toolkit
            .lib
            .iter()
            .filter_map(|dir| fs::read_dir(dir).ok())
            .flat_map(|dir| dir.flatten().map(|entry| entry.path()))
            .filter(|path| path.file_name().unwrap_or_default().to_string_lossy().starts_with(&prefix))
            .collect();
        found.sort_by_key(|path| path.as_os_str().len());
        match found.first() {
            Some(library) => {
                let _ = fs::remove_file(&link);
                link_to(library, &link);
            }
            None if name == "cuda" => driver_stub(source, &link),
            None => panic!("no lib{name}.so in {:?}", toolkit.lib),
        }
    }
    out
}

#[cfg(unix)]
fn link_to(library: &Path, link: &Path) {
    std::os::unix::fs::symlink(library, link).expect("the output directory is writable");
}

#[cfg(not(unix))]
fn link_to(library: &Path, link: &Path) {
    fs::copy(library, link).expect("the output directory is writable");
}

/// A library with the driver's name and the functions that the backend calls; never run.
fn driver_stub(source: &Source, library: &Path) {
    let mut functions = BTreeSet::new();
    for file in fs::read_dir(source.ggml.join("src/ggml-cuda")).into_iter().flatten().flatten() {
        let text = fs::read_to_string(file.path()).unwrap_or_default();
        for word in text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
            let rest = word.strip_prefix("cu").unwrap_or_default();
            if rest.starts_with(|c: char| c.is_ascii_uppercase()) {
                functions.insert(word.to_owned());
            }
        }
    }
    let text: String = functions.iter().map(|name| format!("void {name}(void) {{}}\n")).collect();
    let file = library.with_extension("c");
    fs::write(&file, text).expect("the output directory is writable");
    let mut command = cc::Build::new().get_compiler().to_command();
    command.args(["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-w", "-o"]).arg(library).arg(&file);
    let status = command.status().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    assert!(status.success(), "{command:?} failed");
}
