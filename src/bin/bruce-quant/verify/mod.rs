//! `bruce-quant verify`: whether a GGUF file is what it should be.

mod checks;

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::bail;
use bruce::exit::{UsageError, with_hint};
use bruce::terminal::neutral_line;
use clap::Parser;
use clap::error::ErrorKind;
use gguf::Gguf;
use serde_json::json;

const EXAMPLES: &str = "\
Examples:
  bruce-quant verify model-Q4_K_M.gguf
  bruce-quant verify model-00001-of-00003.gguf --json

Checked are the structure, every weight for NaN and infinities, the tokenizer on a few texts, the end tokens and the chat
template. Exit code 1 where something is wrong.";

/// Checks a GGUF file.
#[derive(Debug, Parser)]
#[command(name = "bruce-quant verify", after_help = EXAMPLES, max_term_width = 100)]
struct Args {
    /// The file, or any part of a split one.
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Whether a command line asks for this and not for a conversion.
pub fn is_meant(argv: &[OsString]) -> bool {
    argv.get(1).is_some_and(|word| word == "verify")
}

/// Checks the file that `argv` names and prints what was found.
///
/// # Errors
/// Where the file can't be read, or something is wrong with it.
pub fn run(argv: &[OsString]) -> Result<(), anyhow::Error> {
    let args = match Args::try_parse_from(&argv[1..]) {
        Ok(args) => args,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp) => {
            return crate::print(&error.render().to_string());
        }
        Err(error) => {
            let error = UsageError(bruce::usage::message(&error));
            return Err(with_hint(error, "bruce-quant verify --help shows the options and examples"));
        }
    };
    gguf::mmap::install_fault_handler();
    let file = Gguf::open(&args.file)?;
    let found = checks::all(&file);
    if args.json {
        crate::print(&format!(
            "{}\n",
            json!({
                "file": args.file.display().to_string(),
                "n_tensors": file.tensors().len(),
                "n_tensors_checked": found.n_checked,
                "unchecked_tensors": found.unchecked,
                "warnings": file.warnings(),
                "problems": found.problems,
            })
        ))?;
    } else {
        for warning in file.warnings() {
            eprintln!("warning: {}", neutral_line(warning));
        }
        for name in &found.unchecked {
            eprintln!("warning: {}: its type can't be decoded here; not checked", neutral_line(name));
        }
    }
    let path = args.file.display();
    let Some((first, others)) = found.problems.split_first() else {
        if args.json {
            return Ok(());
        }
        return crate::print(&format!("{}: {} tensors, nothing is wrong\n", path, file.tensors().len()));
    };
    if !args.json {
        crate::print(&found.problems.iter().map(|p| format!("{}\n", neutral_line(p))).collect::<String>())?;
    }
    match others.len() {
        0 => bail!("{path}: {first}"),
        n => bail!("{path}: {first} (and {n} more)"),
    }
}
