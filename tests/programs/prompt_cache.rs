//! `bruce-run --prompt-cache`.

use crate::support::{bruce_run, listing, quantized, refused, run, stderr, succeed};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

/// The answer to a text, and how many tokens of it were computed.
fn say(model: &Path, prompt: &str, flags: &[&str]) -> (Vec<Value>, u64) {
    let mut command = bruce_run();
    command.arg(model).args(["-p", prompt, "-no-cnv", "-n", "12", "--temp", "0", "-c", "512"]);
    command.args(["--kernels", "bruce", "--repeat-penalty", "1.1", "--output", "json"]).args(flags);
    let answer: Value = serde_json::from_str(&succeed(&mut command)).expect("JSON");
    let tokens = answer["tokens"].as_array().expect("a list").clone();
    (tokens, answer["timings"]["prompt_n"].as_u64().expect("a number"))
}

#[test]
fn a_shared_beginning_is_computed_once_and_answers_stay_the_same() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("cache");
    let cache = ["--prompt-cache", path.to_str().expect("a path")];
    let long = "In the beginning God created the heaven and the earth. And the earth was without form";
    let other = "In the beginning God created the heaven and the earth. And God said, Let there be light";
    let (plain, n_all) = say(&model, long, &[]);
    assert_eq!(say(&model, long, &cache), (plain.clone(), n_all));
    assert_eq!(say(&model, long, &cache), (plain, 1), "only the last token, for its logits");
    // A file that is only read stays as it is.
    let before = fs::read(&path).expect("a file");
    let (expected, n_other) = say(&model, other, &[]);
    let (found, n_rest) = say(&model, other, &[&cache[..], &["--prompt-cache-ro"]].concat());
    assert_eq!(found, expected);
    assert!(n_rest < n_other / 2, "{n_rest} of {n_other} tokens were computed");
    assert_eq!(fs::read(&path).expect("a file"), before);
    assert_eq!(say(&model, other, &cache), (expected, n_rest));
    assert_ne!(fs::read(&path).expect("a file"), before);
    assert_eq!(listing(folder.path()), ["cache"]);
}

#[test]
fn a_conversation_goes_on_where_it_ended() {
    let Some(model) = quantized("smol4x", "Q4_K_M") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("cache");
    let chat = |turns: &str| {
        let mut command = bruce_run();
        // The results of these kernels don't depend on how many tokens are computed at once.
        command.arg(&model).args([
            "--kernels",
            "bruce",
            "-cnv",
            "-n",
            "8",
            "--temp",
            "0",
            "-c",
            "512",
            "--prompt-cache",
        ]);
        command.arg(&path).arg("--prompt-cache-all").stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("started");
        child.stdin.take().expect("a pipe").write_all(turns.as_bytes()).expect("written");
        let output = child.wait_with_output().expect("ended");
        assert!(output.status.success(), "{}", stderr(&output));
        let said = stderr(&output);
        let line = said.lines().find(|line| line.starts_with("prompt eval")).expect("timings").to_owned();
        let n = line.split('/').nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        (String::from_utf8(output.stdout).expect("text"), n.expect("a number of tokens"))
    };
    let (first, n_first): (String, usize) = chat("Name a colour.\n");
    let (again, n_again) = chat("Name a colour.\n");
    assert_eq!(again, first);
    assert!(n_first > 8 && n_again < n_first, "{n_again} after {n_first}");
}

#[test]
fn what_can_not_be_used_is_refused_and_kept() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("cache");
    fs::write(&path, "somebody's notes, which are longer than a header and a sum, ".repeat(4))
        .expect("a file");
    let ask = |path: &Path, flags: &[&str]| {
        run(bruce_run().arg(&model).args(["-p", "In", "-n", "1", "--prompt-cache"]).arg(path).args(flags))
    };
    let output = ask(&path, &[]);
    refused(&output, 1, &["cache: magic: found", "expected \"BRUCE-KV\""]);
    assert!(stderr(&output).contains("hint: remove the file"), "{}", stderr(&output));
    assert!(fs::read_to_string(&path).expect("still there").starts_with("somebody's"));
    refused(&ask(&folder.path().join("no/cache"), &[]), 1, &["no/cache"]);
    refused(&ask(&folder.path().join("none"), &["--prompt-cache-ro"]), 1, &["none: cannot open"]);
    let output = run(bruce_run().arg(&model).args(["-p", "In", "--prompt-cache-all"]));
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert_eq!(listing(folder.path()), ["cache"]);
}

#[test]
fn an_empty_file_is_a_new_cache() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let file = tempfile::NamedTempFile::new().expect("a file");
    succeed(bruce_run().arg(&model).args(["-p", "In", "-n", "1", "--prompt-cache"]).arg(file.path()));
    assert!(fs::read(file.path()).expect("the cache").starts_with(b"BRUCE-KV"));
}
