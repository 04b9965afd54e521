//! `bruce-run imatrix`: how much each column of each weight matters for a text, as llama-imatrix measures it.
//!
//! The text is read in [chunks](crate::chunks), and the squares of what every weight is multiplied with are added up.
//! Quantizing with the result loses least where most is multiplied.

mod collect;

use crate::chunks::{self, Chunks};
use crate::cli::model::ModelFile;
use crate::cli::reading::ReadingArgs;
use crate::cli::values::n_chunks;
use crate::perplexity::score::{Score, negative_log_likelihood};
use crate::{print, text_file};
use ::imatrix::{Entry, Imatrix};
use anyhow::anyhow;
use bruce::exit::{UsageError, with_hint};
use bruce::usage::output_path;
use collect::{Collector, unreached};
use gguf::{NewFile, Overwrite};
use runtime::session::{Logits, Session};
use runtime::tokenizer::Special;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

const EXAMPLES: &str = "\
Examples:
  bruce-run imatrix model-BF16.gguf -f calibration.txt -o imatrix.gguf
  bruce-run imatrix model-BF16.gguf -f more.txt --in-file imatrix.gguf -o imatrix.gguf
      adds another text to what was collected before
  bruce-run imatrix --in-file one.gguf --in-file two.dat -o both.gguf

llama-quantize and bruce-quant take the result with --imatrix. It is the same for a model with
stacked experts and for one with each expert in a tensor of its own.";

/// Flags of `bruce-run imatrix`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: ModelFile,

    /// The text
    #[arg(short = 'f', long = "file", value_name = "FILE", required_unless_present = "in_file")]
    file: Option<PathBuf>,

    /// The file to write; one that is there is replaced
    #[arg(short, long, alias = "output-file", value_name = "FILE", value_parser = output_path(), default_value = "imatrix.gguf")]
    output: PathBuf,

    /// Add to what was collected before, in either format; may be repeated
    #[arg(long, value_name = "FILE")]
    in_file: Vec<PathBuf>,

    /// How many chunks to read; -1: all
    #[arg(long, value_name = "N", default_value_t = -1, value_parser = n_chunks)]
    chunks: i64,

    /// Leave out the first N chunks [--from-chunk]
    #[arg(long = "chunk", alias = "from-chunk", value_name = "N", default_value_t = 0)]
    first_chunk: usize,

    /// Collect for the output matrix too
    #[arg(long)]
    process_output: bool,

    /// Read control tokens in the text as such
    #[arg(long)]
    parse_special: bool,

    /// Don't compute perplexities on the way
    #[arg(long)]
    no_ppl: bool,

    /// As JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    reading: ReadingArgs,
}

/// Collects, writes the file, and says which experts no token reached.
///
/// # Errors
/// Where a file can't be read or written, or the text is too short.
pub fn run(args: &Args) -> Result<(), anyhow::Error> {
    // Where no text is read, it is only what tokens are counted in.
    let size = match args.file {
        Some(_) => args.reading.size(&args.model.path()?)?,
        None => args.reading.asked_size().unwrap_or(chunks::DEFAULT_SIZE),
    };
    let mut total = Imatrix { chunk_size: size as u32, ..Imatrix::default() };
    for path in &args.in_file {
        total.add(&Imatrix::read(path)?).map_err(|error| anyhow!("{}: {error}", path.display()))?;
    }
    let mut score = Score::default();
    // Whether the file can be written is found out before hours of reading, not after.
    drop(NewFile::create(&args.output, Overwrite::Replace)?);
    if let Some(file) = &args.file {
        let collected = collect(args, file, size, &mut score)?;
        let this = Imatrix {
            entries: collected,
            datasets: vec![file.to_string_lossy().into_owned()],
            chunk_count: 0,
            chunk_size: size as u32,
        };
        total.add(&this).map_err(|error| anyhow!("--in-file: {error}"))?;
    }
    if total.entries.is_empty() {
        return Err(UsageError("no text with -f, and nothing collected in --in-file".to_owned()).into());
    }
    total.count_chunks();
    total.write(&args.output, Overwrite::Replace)?;
    report(args, &total, &score)
}

fn collect(
    args: &Args,
    file: &Path,
    size: usize,
    score: &mut Score,
) -> Result<BTreeMap<String, Entry>, anyhow::Error> {
    let path = args.model.path()?;
    let text = text_file(file)?;
    let (model, options) = args.reading.load_tapped(&path, size)?;
    let special = if args.parse_special { Special::Parse } else { Special::Literal };
    let mut chunks = Chunks::of_text(&text, file, model.tokenizer(), special, size, -1)?;
    if args.first_chunk >= chunks.n_chunks() {
        let (found, n) = (args.first_chunk, chunks.n_chunks());
        let error = UsageError(format!("--chunk: found {found}, expected less than the text's {n} chunks"));
        return Err(error.into());
    }
    chunks.keep(args.first_chunk, args.chunks);
    let mut session = Session::new(&model, &options).map_err(crate::advise)?;
    let n_chunks = chunks.n_chunks();
    if !args.json {
        bruce::say!("{} tokens, {n_chunks} chunks of {size}", chunks.n_text_tokens());
    }
    let mut collector = Collector::new(args.process_output);
    let start = Instant::now();
    for (i, chunk) in chunks.iter().enumerate() {
        session.truncate(0);
        let read = chunks::as_read(model.tokenizer(), chunk);
        session.decode_observed(&read, Logits::All, &mut |input| collector.add(input))?;
        if !args.no_ppl {
            for at in size / 2..size - 1 {
                score.add(negative_log_likelihood(session.logits(at), chunk[at + 1] as usize));
            }
        }
        if i == 0 && !args.json {
            chunks::say_time_left(start, n_chunks - 1);
        }
        if !args.json && !args.no_ppl {
            print(&format!("[{}]{:.4},", i + 1, score.estimate().perplexity))?;
        }
    }
    collector.finish().map_err(|name| {
        let error =
            anyhow!("{}: tensor {name}: found inputs that are not finite, expected numbers", path.display());
        with_hint(error, "bruce-quant verify shows whether the file is damaged")
    })
}

fn report(args: &Args, total: &Imatrix, score: &Score) -> Result<(), anyhow::Error> {
    let unreached = unreached(total);
    if args.json {
        let scored = score.n_tokens() > 0;
        let missing: serde_json::Map<_, _> =
            unreached.iter().map(|(name, experts)| ((*name).to_owned(), json!(experts))).collect();
        return print(&format!(
            "{}\n",
            json!({
                "output": args.output.display().to_string(),
                "n_weights": total.entries.len(),
                "n_chunks": total.chunk_count,
                "chunk_size": total.chunk_size,
                "perplexity": scored.then(|| score.estimate().perplexity),
                "unreached_experts": missing,
            })
        ));
    }
    for (name, experts) in &unreached {
        let list: Vec<String> = experts.iter().map(usize::to_string).collect();
        let (name, list) = (bruce::terminal::neutral_line(name), list.join(", "));
        bruce::say!("warning: {name}: no token reached expert {list}; a longer text may");
    }
    let estimate = score.estimate();
    if score.n_tokens() > 0 {
        let error = estimate.error.map_or("unknown".to_owned(), |error| format!("{error:.5}"));
        print(&format!("\nFinal estimate: PPL = {:.4} +/- {error}\n", estimate.perplexity))?;
    }
    let output = bruce::terminal::neutral_line(&args.output.to_string_lossy());
    print(&format!("{output}: {} weights, {} chunks\n", total.entries.len(), total.chunk_count))
}
