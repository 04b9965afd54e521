//! The model card: a README.md for the Hugging Face hub, made of what GGUF files say about themselves.

mod facts;
mod quality;
mod text;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};
use bruce::exit::with_hint;
use bruce::terminal::neutral_line;
use clap::Parser;
use gguf::{NewFile, Overwrite};

use crate::subcommand;

const EXAMPLES: &str = "\
Examples:
  bruce-quant card BurningBruce-004-*.gguf
      writes README.md beside the files
  bruce-run kl-divergence M-Q4_K_M.gguf --base base.logits --json >> quality.json
  bruce-quant card M-*.gguf --quality quality.json --repo me/M-GGUF --base-model me/M --force
      puts what was measured into the table of files

Everything in the card comes from the files' metadata: licence, base models, tags, languages,
experts, command. Of a file in parts any part stands for all.";

/// What a card says that no file knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct CardOptions {
    /// Where the files will be on the hub, for the commands in the card.
    #[arg(long, value_name = "USER/NAME", help_heading = "Model card")]
    pub repo: Option<String>,

    /// The model on the hub that was quantized (repeatable) [default: what the files' metadata say].
    #[arg(long, value_name = "USER/NAME", help_heading = "Model card")]
    pub base_model: Vec<String>,

    /// Measured quality: what bruce-run perplexity --json and kl-divergence --json print, one or many in a file (repeatable).
    #[arg(long, value_name = "FILE", help_heading = "Model card")]
    pub quality: Vec<PathBuf>,
}

/// Writes a model card (README.md) for GGUF files of one model.
#[derive(Debug, Parser)]
#[command(name = "bruce-quant card", after_help = EXAMPLES, max_term_width = 100)]
struct Args {
    /// The files.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,

    /// The card [default: README.md beside the first file].
    #[arg(short, long, value_name = "PATH", value_parser = bruce::usage::output_path())]
    output: Option<PathBuf>,

    /// Replace a card that exists.
    #[arg(short, long)]
    force: bool,

    /// Print errors only.
    #[arg(long)]
    quiet: bool,

    #[command(flatten)]
    card: CardOptions,
}

/// Writes the card that `argv` asks for.
///
/// # Errors
/// A file can't be read, files are of several models, or a card is there already.
pub fn run(argv: &[OsString]) -> Result<(), anyhow::Error> {
    let Some(args) = subcommand::arguments::<Args>(argv)? else { return Ok(()) };
    gguf::mmap::install_fault_handler();
    let path = args.output.unwrap_or_else(|| beside(&args.files[0]));
    check_free(&path, args.force)?;
    write(&args.files, &path, &args.card, args.force, args.quiet)
}

/// The card of files of which this is the first.
pub fn beside(first: &Path) -> PathBuf {
    first.with_file_name("README.md")
}

/// Refuses to replace a card that nobody has asked to replace.
pub fn check_free(path: &Path, force: bool) -> Result<(), anyhow::Error> {
    if path.is_dir() {
        bail!("{}: found a directory, expected a file to write", path.display());
    }
    if path.exists() && !force {
        let error = anyhow!("{}: model card: found an existing file, expected none", path.display());
        return Err(with_hint(error, "--force replaces it"));
    }
    Ok(())
}

/// Writes the card of `files` to `path`, whole or not at all.
///
/// # Errors
/// A file can't be read or written, or files are of several models.
pub fn write(
    files: &[PathBuf],
    path: &Path,
    options: &CardOptions,
    force: bool,
    quiet: bool,
) -> Result<(), anyhow::Error> {
    // Read first: hashing many gigabytes takes longer than finding a mistake in here.
    let measured = quality::read(&options.quality)?;
    let model = facts::read(files, quiet)?;
    let unused = measured.iter().filter(|m| !model.files.iter().any(|file| m.is_of(file)));
    if !quiet {
        for measured in unused {
            bruce::say!(
                "warning: {}: measured, but not among the files of the card",
                neutral_line(&measured.model)
            );
        }
    }
    let text = text::card(&model, &measured, options);
    let overwrite = if force { Overwrite::Replace } else { Overwrite::Refuse };
    let mut file = NewFile::create(path, overwrite)?;
    file.append(text.as_bytes())?;
    file.finish()?;
    if quiet {
        Ok(())
    } else {
        crate::print(&format!("{}: model card\n", neutral_line(&path.to_string_lossy())))
    }
}
