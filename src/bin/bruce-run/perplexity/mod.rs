//! `bruce-run perplexity`: how well a model predicts a text, by llama-perplexity's method.
//!
//! The text is cut into [chunks](crate::chunks), and the tokens of each one's second half are scored, so that each has at
//! least half a chunk before it.

pub mod score;

use crate::chunks::{self, Chunks};
use crate::cli::model::ModelFile;
use crate::cli::reading::ReadingArgs;
use crate::cli::values::n_chunks;
use crate::logits_file::LogitsWriter;
use crate::{kl_divergence, print, text_file};
use bruce::exit::UsageError;
use bruce::usage::output_path;
use runtime::session::Session;
use runtime::tokenizer::Special;
use score::{Score, negative_log_likelihood};
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

const EXAMPLES: &str = "\
Examples:
  bruce-run perplexity model.gguf -f text.txt
  bruce-run perplexity model.gguf -f text.txt -c 2048 --chunks 16
  bruce-run perplexity model-BF16.gguf -f text.txt --save-logits base.logits
      for bruce-run kl-divergence

Values compare only between files with one tokenizer, on one text, with one -c.";

/// A chunk has a half that is scored, but for the first token of that.
const LEAST_SIZE: usize = 3;

/// Flags of `bruce-run perplexity`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: ModelFile,

    /// The text
    #[arg(short = 'f', long = "file", value_name = "FILE", required_unless_present = "kl_divergence")]
    file: Option<PathBuf>,

    /// How many chunks to score; -1: all
    #[arg(long, value_name = "N", default_value_t = -1, value_parser = n_chunks)]
    chunks: i64,

    /// Also write the log-probabilities of all tokens scored, for comparisons [--kl-divergence-base]
    #[arg(long, aliases = ["kl-divergence-base", "save-all-logits"], value_name = "LOGITS", value_parser = output_path())]
    save_logits: Option<PathBuf>,

    /// Compare with that file instead, as llama-perplexity does; see bruce-run kl-divergence
    #[arg(long, requires = "save_logits", hide_short_help = true)]
    kl_divergence: bool,

    /// As JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    reading: ReadingArgs,
}

/// Prints the perplexity after each chunk, and last with its error.
///
/// # Errors
/// Where model or text can't be read, or the text is shorter than two chunks.
pub fn run(args: &Args) -> Result<(), anyhow::Error> {
    let path = args.model.path()?;
    if let Some(base) = args.save_logits.as_deref().filter(|_| args.kl_divergence) {
        return kl_divergence::compare(&path, base, args.chunks, &args.reading, args.json);
    }
    let file = args.file.as_deref().ok_or_else(|| UsageError("missing -f FILE, the text".to_owned()))?;
    // Before the model, whose loading may take minutes.
    let text = text_file(file)?;
    let size = args.reading.size(&path)?;
    if size < LEAST_SIZE {
        return Err(UsageError(format!("-c: found {size}, expected at least {LEAST_SIZE}")).into());
    }
    let (model, options) = args.reading.load(&path, size)?;
    let chunks = Chunks::of_text(&text, file, model.tokenizer(), Special::Literal, size, args.chunks)?;
    let mut session = Session::new(&model, &options).map_err(crate::advise)?;
    let n_vocab = model.hparams().n_vocab as usize;
    let save = |path: &PathBuf| LogitsWriter::create(path, size, n_vocab, chunks.tokens());
    let mut saved = args.save_logits.as_ref().map(save).transpose()?;
    let n_chunks = chunks.n_chunks();
    if !args.json {
        bruce::say!("{} tokens, {n_chunks} chunks of {size}", chunks.n_text_tokens());
    }

    let mut score = Score::default();
    let start = Instant::now();
    for (i, chunk) in chunks.iter().enumerate() {
        let scored = chunks::decode(&mut session, chunk)?;
        for (i, next) in scored.iter().enumerate().skip(1) {
            score.add(negative_log_likelihood(session.logits(i - 1), *next as usize));
        }
        if let Some(saved) = &mut saved {
            saved.chunk(session.all_logits(scored.len() - 1), session.n_threads())?;
        }
        if i == 0 && !args.json {
            chunks::say_time_left(start, n_chunks - 1);
        }
        if !args.json {
            print(&format!("[{}]{:.4},", i + 1, score.estimate().perplexity))?;
        }
    }
    if let Some(saved) = saved {
        saved.finish()?;
    }
    let estimate = score.estimate();
    if args.json {
        return print(&format!(
            "{}\n",
            json!({
                "model": path.file_name().unwrap_or_default().to_string_lossy(),
                "perplexity": estimate.perplexity,
                "error": estimate.error,
                "n_tokens": chunks.n_text_tokens(),
                "n_chunks": n_chunks,
                "chunk_size": size,
                "n_scored": score.n_tokens(),
            })
        ));
    }
    let error = estimate.error.map_or("unknown".to_owned(), |error| format!("{error:.5}"));
    print(&format!("\nFinal estimate: PPL = {:.4} +/- {error}\n", estimate.perplexity))
}
