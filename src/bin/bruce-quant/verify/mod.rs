//! `bruce-quant verify`: whether a GGUF file is what it should be, and how far it is from what it was made of.

mod checks;
mod report;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::bail;
use bruce::terminal::neutral_line;
use clap::Parser;
use convert::Input;
use gguf::Gguf;

use crate::{input, progress, subcommand};

const EXAMPLES: &str = "\
Examples:
  bruce-quant verify model-Q4_K_M.gguf
  bruce-quant verify model-00001-of-00003.gguf --json
  bruce-quant verify model-Q4_K_M.gguf --against BurningBruce-004
      compares every weight with the checkpoint's own, expert by expert
  bruce-quant verify model-Q4_K_M.gguf --against model-BF16.gguf --worst 30

Checked are the structure, every weight for NaN and infinities, the tokenizer on a few texts, the
end tokens and the chat template. With --against also: tensors that are missing, left over or of
another shape, other hyperparameters, experts in each other's places, and tensors whose cosine to
the source is below what their type explains: 0.999 for floats and Q8_0, 0.995 Q6_K, 0.99 5 bits,
0.96 4 bits, 0.9 3 bits, 0.7 Q2_K and IQ2, 0.4 IQ1, 0.1 TQ. Exit code 1 where something is wrong.";

/// Checks a GGUF file.
#[derive(Debug, Parser)]
#[command(name = "bruce-quant verify", after_help = EXAMPLES, max_term_width = 100)]
struct Args {
    /// The file, or any part of a split one.
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// What it was made of: a checkpoint directory or a GGUF file (of several parts, any one).
    #[arg(long, value_name = "SOURCE")]
    against: Option<PathBuf>,

    /// How many of the tensors that are farthest from the source are shown; --json has all.
    #[arg(long, value_name = "N", default_value_t = 10, requires = "against")]
    worst: usize,

    /// Number of threads [default: one per core].
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,

    /// As JSON.
    #[arg(long)]
    json: bool,

    /// Print errors only.
    #[arg(long, conflicts_with = "json")]
    quiet: bool,
}

/// Checks the file that `argv` names and prints what was found.
///
/// # Errors
/// Where the file or the source can't be read, or something is wrong with the file.
pub fn run(argv: &[OsString]) -> Result<(), anyhow::Error> {
    let Some(args) = subcommand::arguments::<Args>(argv)? else { return Ok(()) };
    gguf::mmap::install_fault_handler();
    let file = Gguf::open(&args.file)?;
    let source: Option<Box<dyn Input>> = match &args.against {
        Some(path) => Some(input::open(path, &checkpoint::OpenOptions::default())?.0),
        None => None,
    };
    let begun = Instant::now();
    let drawn = progress::draw(args.json || args.quiet);
    let threads = args.threads.map_or(0, usize::from);
    let compared = convert::compare(&file, source.as_deref(), threads, drawn.as_ref());
    drop(drawn);
    let mut found = compared?;
    let elapsed = begun.elapsed();
    let mut problems = checks::metadata(&file);
    problems.append(&mut found.problems);
    let made_of_it = match &source {
        Some(source) => {
            report::recorded_source(&file).map(|r| convert::fingerprint(source.as_ref()).map(|f| f == r))
        }
        None => None,
    }
    .transpose()?;
    found.warnings.splice(0..0, file.warnings().iter().cloned());

    if args.json {
        let against = args.against.as_deref();
        crate::print(&format!("{}\n", report::json(&file, against, made_of_it, &found, &problems)))?;
    } else if !args.quiet {
        for warning in &found.warnings {
            bruce::say!("warning: {}", neutral_line(warning));
        }
        for name in &found.unchecked {
            bruce::say!("warning: {}: its type holds no weights; not checked", neutral_line(name));
        }
        let mut text = String::new();
        if source.is_some() {
            text.push_str(&report::tables(&found, args.worst));
        }
        text.push_str(&report::verdict(&file, &found, &problems, elapsed));
        crate::print(&text)?;
    }
    let path = args.file.display();
    match problems.split_first() {
        None => Ok(()),
        Some((first, [])) => bail!("{path}: {first}"),
        Some((first, others)) => bail!("{path}: {first} (and {} more)", others.len()),
    }
}
