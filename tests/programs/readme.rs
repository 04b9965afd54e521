//! The commands in README.md do what it says.
//!
//! Directly above each block of shell commands stands a comment:
//! - `<!-- run -->`: the block is run here;
//! - `<!-- run: NAME -->`: the same, with the test model NAME as the folder `NAME`;
//! - `<!-- not run: REASON -->`.
//!
//! All blocks run in one folder, one after the other; `models/` is the repository's, and the programs are on the path.

use crate::support::{checkpoint, programs, root, run, stderr};
use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

struct Block {
    line: usize,
    mark: String,
    commands: String,
}

fn blocks() -> Vec<Block> {
    let text = fs::read_to_string(root().join("README.md")).expect("README.md");
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        if !matches!(line.trim(), "```sh" | "```console" | "```bash" | "```shell") {
            continue;
        }
        let commands = lines[i + 1..].iter().take_while(|line| line.trim() != "```");
        let mark = if i > 0 { lines[i - 1].trim() } else { "" };
        found.push(Block {
            line: i + 1,
            mark: mark
                .strip_prefix("<!-- ")
                .and_then(|m| m.strip_suffix(" -->"))
                .unwrap_or_default()
                .to_owned(),
            commands: commands.map(|line| format!("{line}\n")).collect(),
        });
    }
    found
}

#[test]
fn every_block_of_commands_is_run_or_says_why_not() {
    for Block { line, mark, .. } in blocks() {
        let known = mark == "run" || mark.starts_with("run: ") || mark.starts_with("not run: ");
        assert!(
            known,
            "README.md:{line}: found {mark:?} above the block, expected \"run\", \"run: MODEL\" or a reason"
        );
    }
}

#[test]
fn commands_do_what_they_say() {
    let folder = tempfile::tempdir().expect("a folder");
    symlink(root().join("models"), folder.path().join("models")).expect("a link");
    let mut n_run = 0;
    for Block { line, mark, commands } in blocks() {
        if !(mark == "run" || mark.starts_with("run: ")) {
            continue;
        }
        if let Some(name) = mark.strip_prefix("run: ") {
            let Some(model) = checkpoint(name) else { continue };
            if !folder.path().join(name).exists() {
                symlink(model, folder.path().join(name)).expect("a link");
            }
        }
        let path = std::env::join_paths(
            std::iter::once(programs().to_owned())
                .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
        );
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", &commands]).current_dir(folder.path()).stdin(Stdio::null());
        let output = run(shell.env("PATH", path.expect("a path")));
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "README.md:{line}: {}\n{said}\n{}", output.status, stderr(&output));
        n_run += 1;
    }
    assert!(n_run > 0, "README.md holds no command that is run");
}
