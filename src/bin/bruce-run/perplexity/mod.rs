//! `bruce-run perplexity`: how well a model predicts a text, by llama-perplexity's method.
//!
//! The text is cut into chunks of the context's size. Each is read on its own, its first token replaced by the BOS
//! token where the model begins texts with one, and the tokens of its second half are scored, so that each has at
//! least half a context before it. What is left at the end of the text is not used.

mod score;

use crate::cli::context::ContextArgs;
use crate::cli::model::{LoadArgs, ModelFile, PlacementArgs};
use crate::{print, text_file};
use bruce::exit::with_hint;
use runtime::model::Model;
use runtime::session::{Logits, Session, SessionOptions};
use runtime::tokenizer::{AddBos, Special, TokenId};
use score::{Score, negative_log_likelihood};
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

const EXAMPLES: &str = "\
Examples:
  bruce-run perplexity model.gguf -f text.txt
  bruce-run perplexity model.gguf -f text.txt -c 2048 --chunks 16

Values compare only between files with one tokenizer, on one text, with one -c.";

/// Size of a chunk where none is named; llama-perplexity's.
const DEFAULT_CHUNK: u32 = 512;

/// Flags of `bruce-run perplexity`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: ModelFile,

    /// The text
    #[arg(short = 'f', long = "file", value_name = "FILE", required = true)]
    file: PathBuf,

    /// How many chunks to score; -1: all
    #[arg(long, value_name = "N", default_value_t = -1)]
    chunks: i64,

    /// As JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    load: LoadArgs,

    #[command(flatten)]
    placement: PlacementArgs,

    #[command(flatten)]
    context: ContextArgs,
}

/// Prints the perplexity after each chunk, and last with its error.
///
/// # Errors
/// Where model or text can't be read, or the text is shorter than two chunks.
pub fn run(args: &Args) -> Result<(), anyhow::Error> {
    let path = args.model.path()?;
    let text = text_file(&args.file)?;
    let model = Model::load(&path, &args.load.options(&args.placement), &mut ())?;
    let tokens = model.tokenizer().encode(&text, Special::Literal, AddBos::Auto);
    let size = args.context.ctx_size.filter(|n| *n > 0).unwrap_or(DEFAULT_CHUNK) as usize;
    if tokens.len() < 2 * size {
        let error = anyhow::anyhow!(
            "{}: found {} tokens, expected at least {} (two chunks of {size})",
            args.file.display(),
            tokens.len(),
            2 * size
        );
        return Err(with_hint(error, "give a longer text, or smaller chunks with -c"));
    }
    let options = SessionOptions { n_ctx: size as u32, ..args.context.options() };
    let mut session = Session::new(&model, &options).map_err(crate::advise)?;
    let n_chunks = tokens.len() / size;
    let n_chunks = usize::try_from(args.chunks).map_or(n_chunks, |wanted| wanted.min(n_chunks));
    if !args.json {
        eprintln!("{} tokens, {n_chunks} chunks of {size}", tokens.len());
    }

    let mut score = Score::default();
    let start = Instant::now();
    for (i, chunk) in tokens.chunks_exact(size).take(n_chunks).enumerate() {
        score_chunk(&mut session, chunk, &mut score)?;
        if i == 0 && !args.json {
            let left = start.elapsed().as_secs_f64() * (n_chunks - 1) as f64;
            eprintln!("about {} to go", bruce::size::seconds(left));
        }
        if !args.json {
            print(&format!("[{}]{:.4},", i + 1, score.estimate().perplexity))?;
        }
    }
    let estimate = score.estimate();
    if args.json {
        return print(&format!(
            "{}\n",
            json!({
                "perplexity": estimate.perplexity,
                "error": estimate.error,
                "n_tokens": tokens.len(),
                "n_chunks": n_chunks,
                "chunk_size": size,
                "n_scored": score.n_tokens(),
            })
        ));
    }
    let error = estimate.error.map_or("unknown".to_owned(), |error| format!("{error:.5}"));
    print(&format!("\nFinal estimate: PPL = {:.4} +/- {error}\n", estimate.perplexity))
}

/// Reads a chunk into an empty context and scores the tokens behind its middle.
fn score_chunk(session: &mut Session, chunk: &[TokenId], score: &mut Score) -> Result<(), runtime::Error> {
    let mut chunk = chunk.to_vec();
    let tokenizer = session.model().tokenizer();
    if let Some(bos) = tokenizer.bos().filter(|_| tokenizer.adds_bos()) {
        chunk[0] = bos;
    }
    let (context, scored) = chunk.split_at(chunk.len() / 2);
    session.truncate(0);
    session.decode(context, Logits::None)?;
    session.decode(scored, Logits::All)?;
    for (i, next) in scored.iter().enumerate().skip(1) {
        score.add(negative_log_likelihood(session.logits(i - 1), *next as usize));
    }
    Ok(())
}
