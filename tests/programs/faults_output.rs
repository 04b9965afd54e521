//! Where `bruce-quant` is told to write: what is in the way stays as it is, and half a file is never left.

use crate::support::{bruce_quant, listing, refused, root, run, skip, stderr, succeed, tiny_moe_copy, tool};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

fn quantize_to(output: &Path) -> Command {
    let mut command = bruce_quant();
    command.arg(root().join("models/tiny-moe")).args(["-q", "q8_0", "-o"]).arg(output);
    command
}

#[test]
fn an_existing_file_is_replaced_only_with_force() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    fs::write(&path, "precious").expect("a file");
    refused(&run(&mut quantize_to(&path)), 1, &["model.gguf", "exist"]);
    assert_eq!(fs::read(&path).expect("the file"), b"precious");
    succeed(quantize_to(&path).arg("--force"));
    assert_eq!(&fs::read(&path).expect("the file")[..4], b"GGUF");
    assert_eq!(listing(folder.path()), ["model.gguf"]);
}

#[test]
fn without_a_folder_there_is_no_output() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("missing/model.gguf");
    refused(&run(&mut quantize_to(&path)), 1, &["missing"]);
    assert!(listing(folder.path()).is_empty());
}

#[test]
fn a_file_in_place_of_the_folder_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("file"), "").expect("a file");
    refused(&run(&mut quantize_to(&folder.path().join("file/model.gguf"))), 1, &["file"]);
    assert_eq!(listing(folder.path()), ["file"]);
}

#[test]
fn a_folder_that_may_not_be_written_to_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let closed = folder.path().join("closed");
    fs::create_dir(&closed).expect("a folder");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).expect("permissions");
    let is_root = fs::write(closed.join("probe"), "").is_ok();
    let path = closed.join("model.gguf");
    if !is_root {
        refused(&run(&mut quantize_to(&path)), 1, &["closed", "ermission"]);
    } else {
        // Root writes anywhere, unless it has given up that capability.
        fs::remove_file(closed.join("probe")).expect("one file less");
        let humbly = ["--bounding-set", "-dac_override,-dac_read_search"];
        if !tool(Command::new("setpriv").args(humbly).arg("true")) {
            return;
        }
        let mut command = Command::new("setpriv");
        command.args(humbly).arg(env!("CARGO_BIN_EXE_bruce-quant")).arg(root().join("models/tiny-moe"));
        refused(&run(command.args(["-q", "q8_0", "-o"]).arg(&path)), 1, &["closed", "ermission"]);
    }
    assert!(listing(&closed).is_empty());
}

#[test]
fn a_folder_as_output_receives_the_default_name() {
    let folder = tempfile::tempdir().expect("a folder");
    succeed(&mut quantize_to(folder.path()));
    assert_eq!(listing(folder.path()), ["tiny-moe-Q8_0.gguf"]);
}

#[test]
fn a_pipe_or_device_as_output_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let pipe = folder.path().join("model.gguf");
    if tool(Command::new("mkfifo").arg(&pipe)) {
        refused(&run(quantize_to(&pipe).arg("--force")), 1, &["model.gguf", "pipe"]);
        assert_eq!(listing(folder.path()), ["model.gguf"]);
    }
    refused(&run(quantize_to(Path::new("/dev/null")).arg("--force")), 1, &["/dev/null"]);
}

#[test]
fn the_input_is_never_the_output() {
    let model = tiny_moe_copy();
    let weights = model.path().join("model.safetensors");
    let before = fs::read(&weights).expect("weights");
    let elsewhere = tempfile::tempdir().expect("a folder");
    let (soft, hard) = (elsewhere.path().join("soft.gguf"), elsewhere.path().join("hard.gguf"));
    symlink(&weights, &soft).expect("a link");
    let mut outputs = vec![weights.clone(), soft];
    // The folder for temporary files may be another file system, where no hard link reaches.
    match fs::hard_link(&weights, &hard) {
        Ok(()) => outputs.push(hard),
        Err(e) => skip(&format!("no hard link: {e}")),
    }
    for output in outputs {
        let mut command = bruce_quant();
        command.arg(model.path()).args(["-q", "q8_0", "--force", "-o"]).arg(&output);
        refused(&run(&mut command), 1, &["input"]);
        assert_eq!(fs::read(&weights).expect("weights"), before, "after writing to {}", output.display());
    }
}

#[test]
fn a_snapshot_in_the_hub_s_cache_is_read_and_left_alone() {
    let cache = tempfile::tempdir().expect("a folder");
    let model = cache.path().join("models--me--Tiny-MoE");
    let snapshot = model.join("snapshots/0123456789abcdef0123456789abcdef01234567");
    fs::create_dir_all(&snapshot).and_then(|()| fs::create_dir_all(model.join("blobs"))).expect("folders");
    let source = root().join("models/tiny-moe");
    for name in listing(&source) {
        fs::copy(source.join(&name), model.join("blobs").join(&name)).expect("a copy");
        symlink(Path::new("../../blobs").join(&name), snapshot.join(&name)).expect("a link");
    }
    let here = tempfile::tempdir().expect("a folder");
    succeed(bruce_quant().current_dir(here.path()).arg(&snapshot).args(["-q", "q8_0", "--quiet"]));
    assert_eq!(
        listing(here.path()),
        ["Tiny-MoE-Q8_0.gguf"],
        "named as the hub does, in the working directory"
    );
    assert_eq!(listing(&model.join("snapshots")).len(), 1);
    fs::remove_file(model.join("blobs/model.safetensors")).expect("the file is there");
    let output = run(bruce_quant().current_dir(here.path()).arg(&snapshot).args(["-q", "q4_k"]));
    refused(&output, 1, &["model.safetensors", "link to nothing"]);
}

#[test]
fn an_unknown_type_is_answered_with_the_known_ones() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = bruce_quant();
    command.arg(root().join("models/tiny-moe")).args(["-q", "q4_q", "-o"]).arg(folder.path());
    refused(&run(&mut command), 2, &["q4_q", "Q4_K_M", "Q8_0", "BF16"]);
    assert!(listing(folder.path()).is_empty());
}

#[test]
fn a_dry_run_shows_every_tensor_and_writes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let plan = succeed(quantize_to(&folder.path().join("model.gguf")).arg("--dry-run"));
    for tensor in crate::support::golden("tinymoe-Q8_0.tensors.tsv").lines().skip(1) {
        let name = tensor.split('\t').next().expect("a name");
        assert!(plan.contains(name), "{name} is not in the plan:\n{plan}");
    }
    assert!(listing(folder.path()).is_empty());
}

#[test]
fn the_bytes_do_not_depend_on_threads_or_company() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = root().join("models/tiny-moe");
    let mut written = Vec::new();
    for (threads, types) in [("1", "q4_k"), ("2", "q4_k"), ("7", "q8_0,q4_k,bf16")] {
        let output = folder.path().join(threads);
        fs::create_dir(&output).expect("a folder");
        succeed(bruce_quant().arg(&model).args(["-t", threads, "-q", types, "-o"]).arg(&output));
        written.push(fs::read(output.join("tiny-moe-Q4_K_M.gguf")).expect("the output"));
    }
    assert!(written.windows(2).all(|pair| pair[0] == pair[1]), "the outputs differ");
}

#[test]
fn not_enough_room_is_said_before_the_work() {
    // A file system of one megabyte, in a mount namespace of its own.
    let mount = "mkdir -p $D && mount -t tmpfs -o size=1m tmpfs $D";
    let folder = tempfile::tempdir().expect("a folder");
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).env("D", folder.path().join("small"));
        command
    };
    if !tool(&mut unshare(mount)) {
        return;
    }
    let program = env!("CARGO_BIN_EXE_bruce-quant");
    let model = root().join("models/tiny-moe");
    let script = format!(
        "{mount} && '{program}' '{}' -q q8_0 -o $D/model.gguf; code=$?; ls -A $D; exit $code",
        model.display()
    );
    let output = run(&mut unshare(&script));
    refused(&output, 1, &["free", "expected"]);
    assert!(output.stdout.is_empty(), "left behind: {}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn warnings_and_results_are_apart() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = run(&mut quantize_to(&folder.path().join("model.gguf")));
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("bits per weight"));
    assert!(!stderr(&output).contains("bits per weight"));
    let quiet = run(quantize_to(&folder.path().join("quiet.gguf")).arg("--quiet"));
    assert!(quiet.status.success() && quiet.stdout.is_empty() && quiet.stderr.is_empty());
}
