//! ggml's CUDA backend, compiled with nvcc.

use crate::Target;
use crate::source::Source;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// Architectures a build without `BRUCE_CUDA_ARCH` is for: Turing to Ada as machine code, later ones from PTX.
const DEFAULT_ARCHITECTURES: &str = "75,80,86,89,90";

/// Where the toolkit's parts lie. NVIDIA's installer puts all under one root; pip's packages share one as well
/// (`nvidia/cu13`) or have one each (`nvidia/cuda_nvcc`, `nvidia/cuda_runtime`, ...).
struct Toolkit {
    nvcc: PathBuf,
    include: Vec<PathBuf>,
    lib: Vec<PathBuf>,
}

fn toolkit() -> Toolkit {
    let from_env = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(env::var_os).map(PathBuf::from);
    let from_path = env::var_os("PATH")
        .map(|path| {
            env::split_paths(&path).filter_map(|dir| dir.parent().map(Path::to_path_buf)).collect::<Vec<_>>()
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
    if packages.contains(&root) {
        roots.extend(packages.into_iter().filter(|p| *p != root));
    }
    let existing = |names: &[&str]| -> Vec<PathBuf> {
        roots.iter().flat_map(|r| names.iter().map(|n| r.join(n))).filter(|p| p.is_dir()).collect()
    };
    Toolkit {
        nvcc: root.join("bin/nvcc"),
        include: existing(&["include", "include/cccl"]),
        lib: existing(&["lib64", "lib"]),
    }
}

/// The directories of pip's `nvidia-*` packages that python3 would import.
fn pip_packages() -> Vec<PathBuf> {
    let code = "import nvidia; print('\\n'.join(nvidia.__path__))";
    let Ok(output) = Command::new("python3").args(["-c", code]).output() else { return Vec::new() };
    let mut found: Vec<PathBuf> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|dir| fs::read_dir(dir).ok())
        .flat_map(|dir| dir.flatten().map(|entry| entry.path()))
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    found
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
    // Flash attention's vector kernels: only for key and value caches of one type, as ggml's own default build.
    let vector = ["f16-f16", "q4_0-q4_0", "q8_0-q8_0", "bf16-bf16"]
        .map(|pair| format!("fattn-vec-instance-{pair}.cu"));
    files.extend(in_dir(&dir.join("template-instances")).into_iter().filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        !name.starts_with("fattn-vec") || vector.iter().any(|v| *v == name)
    }));
    files.sort();
    files
}

fn architecture_flags() -> Vec<String> {
    let list = env::var("BRUCE_CUDA_ARCH").unwrap_or_else(|_| DEFAULT_ARCHITECTURES.to_owned());
    let mut flags: Vec<String> =
        list.split(',').map(|arch| format!("-gencode=arch=compute_{0},code=sm_{0}", arch.trim())).collect();
    if let Some(last) = list.split(',').next_back() {
        flags.push(format!("-gencode=arch=compute_{0},code=compute_{0}", last.trim()));
    }
    flags
}

/// Object files of the CUDA backend; links the CUDA libraries.
pub fn compile(source: &Source, target: &Target) -> Vec<PathBuf> {
    let toolkit = toolkit();
    let out = target.out.join("cuda");
    fs::create_dir_all(&out).expect("the output directory is writable");
    let jobs: usize = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let files = files(source);
    let objects: Vec<PathBuf> =
        files.iter().map(|f| out.join(f.file_name().expect("a file")).with_extension("o")).collect();
    let queue = Mutex::new(files.iter().zip(&objects));
    let next = || queue.lock().expect("no compile panics while it holds the queue").next();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some((file, object)) = next() {
                    compile_one(&toolkit, source, target, file, object);
                }
            });
        }
    });
    for dir in &toolkit.lib {
        println!("cargo::rustc-link-search=native={}", dir.display());
        println!("cargo::rustc-link-search=native={}/stubs", dir.display());
    }
    for library in ["cudart", "cublas", "cublasLt", "cuda"] {
        println!("cargo::rustc-link-lib=dylib={library}");
    }
    objects
}

fn compile_one(toolkit: &Toolkit, source: &Source, target: &Target, file: &Path, object: &Path) {
    let mut command = Command::new(&toolkit.nvcc);
    command.args([
        "-std=c++17",
        "-O3",
        "-DNDEBUG",
        "-use_fast_math",
        "-extended-lambda",
        "-Xcompiler",
        "-fPIC",
        "-w",
    ]);
    command.args([
        "-DGGML_CUDA_USE_GRAPHS",
        "-DGGML_SCHED_MAX_COPIES=4",
        "-D_GNU_SOURCE",
        "-D_XOPEN_SOURCE=600",
    ]);
    command.args(architecture_flags());
    if target.portable {
        command.args(["-DGGML_BACKEND_SHARED", "-DGGML_SHARED"]);
    }
    for dir in toolkit.include.iter().chain([&source.ggml.join("include"), &source.ggml.join("src")]) {
        command.arg("-I").arg(dir);
    }
    command.arg("-c").arg(file).arg("-o").arg(object);
    let output = command.output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    assert!(output.status.success(), "{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
}
