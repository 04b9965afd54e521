//! `bruce-run trace`: which experts the tokens of a text take, layer by layer, and what follows from it.
//!
//! The text is cut into chunks of the context's size; each is read on its own, its first token replaced by the BOS token
//! where the model begins texts with one. What is left at the end is read too.

mod names;
mod table;

use crate::cli::model::ModelFile;
use crate::cli::reading::ReadingArgs;
use crate::cli::values::n_chunks;
use crate::{print, text_file};
use anyhow::anyhow;
use bruce::exit::{UsageError, with_hint};
use bruce::usage::output_path;
use gguf::{NewFile, Overwrite};
use model_spec::keys;
use routing::{EarlyGuess, LayerTrace, Report, Trace};
use runtime::model::Model;
use runtime::routing::LayerRouting;
use runtime::session::{Logits, Session};
use runtime::tokenizer::{AddBos, Special};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  bruce-run trace model.gguf -f text.txt
      prints which experts the text uses, and what caches of any size would make of it
  bruce-run trace model.gguf -f text.txt -o trace.json --svg trace.svg
      writes every choice with its weight too, and a picture for the model card

Use real text: repeated tokens flatter every cache.";

/// Flags of `bruce-run trace`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: ModelFile,

    /// The text
    #[arg(short = 'f', long = "file", value_name = "FILE", required = true)]
    file: PathBuf,

    /// Write the trace and the report as JSON
    #[arg(short = 'o', long, value_name = "FILE", value_parser = output_path())]
    output: Option<PathBuf>,

    /// Write a picture of it
    #[arg(long, value_name = "FILE", value_parser = output_path())]
    svg: Option<PathBuf>,

    /// Replace files that are there
    #[arg(long)]
    force: bool,

    /// How many chunks to read; -1: all
    #[arg(long, value_name = "N", default_value_t = -1, value_parser = n_chunks)]
    chunks: i64,

    /// Print the report as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    reading: ReadingArgs,
}

/// Reads the text, prints the report and writes the files asked for.
///
/// # Errors
/// Where model or text can't be read, the model has no experts, or a file can't be written.
pub fn run(args: &Args) -> Result<(), anyhow::Error> {
    let path = args.model.path()?;
    let text = text_file(&args.file)?;
    for output in [&args.output, &args.svg].into_iter().flatten() {
        keep_inputs(output, &[&path, &args.file])?;
    }
    // Before the work that they are for.
    let overwrite = if args.force { Overwrite::Replace } else { Overwrite::Refuse };
    let create =
        |path: &Option<PathBuf>| path.as_ref().map(|path| NewFile::create(path, overwrite)).transpose();
    let (json_file, svg_file) = (create(&args.output)?, create(&args.svg)?);

    let size = args.reading.size(&path)?;
    let (model, options) = args.reading.load(&path, size)?;
    if !model.hparams().is_moe() {
        let error =
            anyhow!("{}: found a model without experts, expected a Mixture of Experts", path.display());
        return Err(with_hint(error, "a dense model has no router whose choices could be traced"));
    }
    let tokens = model.tokenizer().encode(&text, Special::Literal, AddBos::Auto);
    if tokens.is_empty() {
        return Err(anyhow!("{}: found no tokens, expected text", args.file.display()));
    }
    let n_chunks = tokens.len().div_ceil(size);
    let n_chunks = usize::try_from(args.chunks).map_or(n_chunks, |wanted| wanted.min(n_chunks));
    bruce::say!("{} tokens, {n_chunks} chunks of at most {size}", tokens.len());

    let mut session = Session::new(&model, &options).map_err(crate::advise)?;
    session.record_routing(true);
    let mut trace = empty_trace(&model);
    for chunk in tokens.chunks(size).take(n_chunks) {
        read_chunk(&mut session, chunk, &mut trace)?;
    }
    let report = Report::new(&trace);

    if let Some(mut file) = json_file {
        file.append(trace.to_json(&report).as_bytes())?;
        file.append(b"\n")?;
        file.finish()?;
    }
    if let Some(mut file) = svg_file {
        file.append(routing::svg::heat_map(&trace, &report).as_bytes())?;
        file.finish()?;
    }
    if args.json {
        return print(&format!("{}\n", report.to_json()));
    }
    print(&table::text(&trace, &report))
}

/// Refuses to write over what is read.
fn keep_inputs(output: &Path, inputs: &[&Path]) -> Result<(), anyhow::Error> {
    let Ok(output) = output.canonicalize() else { return Ok(()) };
    match inputs.iter().find(|input| input.canonicalize().is_ok_and(|input| input == output)) {
        Some(input) => Err(UsageError(format!("{}: is both read and written", input.display())).into()),
        None => Ok(()),
    }
}

fn empty_trace(model: &Model) -> Trace {
    let metadata = model.gguf().metadata();
    let n_expert = model.hparams().n_expert as usize;
    Trace {
        model: metadata.str(keys::GENERAL_NAME).ok().flatten().unwrap_or_default().to_owned(),
        n_expert,
        n_used: model.n_expert_used() as usize,
        expert_names: names::of_experts(metadata, n_expert),
        ..Trace::default()
    }
}

/// Reads a chunk into an empty context and adds what the routers decided.
fn read_chunk(session: &mut Session, chunk: &[u32], trace: &mut Trace) -> Result<(), runtime::Error> {
    let mut chunk = chunk.to_vec();
    let tokenizer = session.model().tokenizer();
    if let Some(bos) = tokenizer.bos().filter(|_| tokenizer.adds_bos()) {
        chunk[0] = bos;
    }
    session.truncate(0);
    session.decode(&chunk, Logits::None)?;
    for routing in session.take_routing() {
        add(routing, trace);
    }
    trace.sequences.push(chunk.len());
    trace.tokens.append(&mut chunk);
    Ok(())
}

/// Adds the decisions of one layer for some tokens.
fn add(routing: LayerRouting, trace: &mut Trace) {
    let layer = match trace.layers.iter_mut().position(|known| known.layer == routing.layer) {
        Some(index) => &mut trace.layers[index],
        None => {
            trace.layers.push(LayerTrace { layer: routing.layer, ..LayerTrace::default() });
            trace.layers.last_mut().expect("just pushed")
        }
    };
    layer.weights.extend(routing.weights());
    layer.experts.extend(routing.experts);
    if let Some(early) = routing.early {
        layer.early.get_or_insert_with(EarlyGuess::default).0.extend(early);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_follow_each_other_in_every_layer() {
        let mut trace = Trace::default();
        for first in [0, 2] {
            for layer in [1, 4] {
                let experts = vec![first, first + 1];
                let early = (layer == 4).then(|| experts.clone());
                let probabilities = vec![0.25; 8];
                add(LayerRouting { layer, n_tokens: 2, probabilities, experts, early }, &mut trace);
            }
        }
        assert_eq!(trace.layers.iter().map(|l| l.layer).collect::<Vec<_>>(), [1, 4]);
        assert_eq!(trace.layers[0].experts, [0, 1, 2, 3]);
        assert_eq!(trace.layers[0].weights, [1.0; 4]);
        assert_eq!(trace.layers[0].early, None);
        assert_eq!(trace.layers[1].early, Some(EarlyGuess(vec![0, 1, 2, 3])));
    }
}
