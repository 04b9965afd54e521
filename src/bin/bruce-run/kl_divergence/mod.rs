//! `bruce-run kl-divergence`: how far a model's predictions are from those of another, by llama-perplexity's method.
//!
//! The other one, the base, has read a text before (`bruce-run perplexity --save-logits`, or llama-perplexity's
//! `--kl-divergence-base`), and its log-probabilities are in a file. The model reads the same tokens.

mod report;
mod statistics;
mod token;

use crate::cli::model::ModelFile;
use crate::cli::reading::ReadingArgs;
use crate::cli::values::n_chunks;
use crate::logits_file::LogitsReader;
use crate::{chunks, parallel, plan, print};
use anyhow::bail;
use runtime::session::Session;
use serde_json::json;
use statistics::Statistics;
use std::path::{Path, PathBuf};
use std::time::Instant;
use token::TokenDivergence;

const EXAMPLES: &str = "\
Examples:
  bruce-run perplexity model-BF16.gguf -f text.txt --save-logits base.logits
  bruce-run kl-divergence model-Q4_K_M.gguf --base base.logits
      what quantizing changed, token by token

Files of log-probabilities are llama-perplexity's; either program reads the other's.";

/// Flags of `bruce-run kl-divergence`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(mut_arg("ctx_size", |arg| arg.help("Tokens of a chunk, which are those of the base; another number is an error")))]
pub struct Args {
    #[command(flatten)]
    model: ModelFile,

    /// The log-probabilities of the base model [--kl-divergence-base]
    #[arg(long, aliases = ["kl-divergence-base", "save-all-logits"], value_name = "LOGITS", required = true)]
    base: PathBuf,

    /// How many chunks to read; -1: all of the file
    #[arg(long, value_name = "N", default_value_t = -1, value_parser = n_chunks)]
    chunks: i64,

    /// As JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    reading: ReadingArgs,
}

/// Prints the statistics after each chunk, and last all of them.
///
/// # Errors
/// Where model or file can't be read, or don't belong together.
pub fn run(args: &Args) -> Result<(), anyhow::Error> {
    let path = args.model.path()?;
    compare(&path, &args.base, args.chunks, &args.reading, args.json)
}

/// Compares a model with the base in a file, chunk by chunk, and prints the result.
///
/// # Errors
/// As [`run`].
pub fn compare(
    path: &Path,
    base: &Path,
    wanted: i64,
    reading: &ReadingArgs,
    as_json: bool,
) -> Result<(), anyhow::Error> {
    // Before the model, which is planned for chunks of this size and whose loading may take minutes.
    let n_vocab = plan::hyper_params(path)?.n_vocab as usize;
    let mut saved = LogitsReader::open(base, n_vocab)?;
    let size = saved.chunk_size();
    if let Some(found) = reading.asked_size().filter(|n| *n != size) {
        bail!("-c: found {found}, expected {size}, the size of the chunks in {}", base.display());
    }
    let (model, options) = reading.load(path, size)?;
    let mut session = Session::new(&model, &options).map_err(crate::advise)?;
    let n_chunks = usize::try_from(wanted).map_or(saved.n_chunks(), |wanted| wanted.min(saved.n_chunks()));
    if !as_json {
        bruce::say!("{n_chunks} chunks of {size}");
    }

    let mut statistics = Statistics::default();
    let start = Instant::now();
    for i in 0..n_chunks {
        let chunk = saved.tokens(i).to_vec();
        let scored = chunks::decode(&mut session, &chunk)?;
        let rows = saved.next_chunk()?;
        let (logits, n_threads) = (session.all_logits(rows.len()), session.n_threads());
        let one = |i: usize| {
            TokenDivergence::new(&logits[i * n_vocab..][..n_vocab], &rows[i], scored[i + 1] as usize)
        };
        for token in parallel::map(rows.len(), n_threads, one) {
            statistics.add(&token);
        }
        if as_json {
            continue;
        }
        if i == 0 {
            chunks::say_time_left(start, n_chunks - 1);
            print(report::HEADING)?;
        }
        print(&report::chunk(i + 1, &statistics))?;
    }
    if !as_json {
        return print(&report::text(&statistics));
    }
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut object = json!({
        "model": name(path),
        "base": name(base),
        "chunk_size": size,
        "n_chunks": n_chunks,
    });
    if let (Some(object), Some(statistics)) =
        (object.as_object_mut(), report::json(&statistics).as_object_mut())
    {
        object.append(statistics);
    }
    print(&format!("{object}\n"))
}
