//! `bruce-run inspect`: what a GGUF file holds, whether or not it can be run.

mod json;
mod text;
mod totals;

use crate::cli::model::ModelFile;
use crate::print;
use gguf::Gguf;

const EXAMPLES: &str = "\
Examples:
  bruce-run inspect model.gguf
  bruce-run inspect model.gguf --metadata --full
      metadata only, with long texts and arrays in full
  bruce-run inspect model.gguf --json | jq '.types'";

/// Flags of `bruce-run inspect`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    file: ModelFile,

    /// Only the metadata
    #[arg(long)]
    metadata: bool,

    /// Only the tensors
    #[arg(long)]
    tensors: bool,

    /// Long texts and arrays in full
    #[arg(long)]
    full: bool,

    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Which parts to show, and how.
#[derive(Clone, Copy)]
struct View {
    metadata: bool,
    tensors: bool,
    full: bool,
}

/// Prints summary, metadata and tensors.
///
/// # Errors
/// Where the file is no valid GGUF, or stdout can't be written.
pub fn run(args: &Args) -> Result<(), anyhow::Error> {
    let gguf = Gguf::open(&args.file.path()?)?;
    for warning in gguf.warnings() {
        bruce::say!("warning: {}", bruce::terminal::neutral_line(warning));
    }
    let all = args.metadata == args.tensors;
    let view = View { metadata: args.metadata || all, tensors: args.tensors || all, full: args.full };
    print(&if args.json { json::report(&gguf, view) } else { text::report(&gguf, view) })
}
