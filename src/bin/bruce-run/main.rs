//! bruce-run: a GGUF file goes in, words come out; and what else one wants to know about such a file.

mod bench;
mod chunks;
mod cli;
mod devices;
mod generate;
mod imatrix;
mod inspect;
mod interrupt;
mod kernel_level;
mod kl_divergence;
mod logits_file;
mod parallel;
mod perplexity;
mod plan;
mod streamed;
mod tokenize;
mod trace;

use anyhow::Context;
use bruce::exit;
use cli::{Cli, Command};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

/// How a command that did not fail ended.
enum Ended {
    Done,
    Interrupted,
}

fn main() -> ExitCode {
    if let Err(error) = ggml::check_cpu() {
        return exit::finish(Err(error.into()));
    }
    gguf::mmap::install_fault_handler();
    let command = match Cli::from_command_line() {
        Ok(command) => command,
        Err(ended) => return ended,
    };
    if let Err(error) = kernel_level::choose() {
        return exit::finish(Err(error));
    }
    match run(&command) {
        Ok(Ended::Interrupted) => ExitCode::from(exit::INTERRUPTED),
        Ok(Ended::Done) => exit::finish(Ok(())),
        Err(error) => exit::finish(Err(error)),
    }
}

fn run(command: &Command) -> Result<Ended, anyhow::Error> {
    interrupt::watch()?;
    ggml::set_log(|level, text| {
        // Of ggml's own lines only errors matter; what they lead to is reported again with its context.
        if level >= 4 {
            bruce::terminal::tell(bruce::terminal::neutral_text(text));
        }
    });
    match command {
        Command::Generate(args) => return generate::run(args),
        Command::Inspect(args) => inspect::run(args)?,
        Command::Tokenize(args) => tokenize::run(args)?,
        Command::Bench(args) => bench::run(args)?,
        Command::Perplexity(args) => perplexity::run(args)?,
        Command::Trace(args) => trace::run(args)?,
        Command::KlDivergence(args) => kl_divergence::run(args)?,
        Command::Imatrix(args) => imatrix::run(args)?,
        Command::Devices(args) => devices::run(args)?,
    }
    Ok(Ended::Done)
}

/// Writes results to stdout.
fn print(text: &str) -> Result<(), anyhow::Error> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(exit::stdout_error)
}

/// A failure of the runtime, with what the user might do about it.
fn advise(error: runtime::Error) -> anyhow::Error {
    use bruce::size::{bytes, bytes_at_least};
    match error {
        runtime::Error::ContextMemory {
            place,
            n_ctx,
            needed_bytes,
            kv_bytes,
            compute_bytes,
            available_bytes,
        } => {
            let (needed, available) = (bytes(needed_bytes), bytes(available_bytes));
            let parts = match compute_bytes {
                0 => "for the KV cache alone".to_owned(),
                _ => format!("{} for the KV cache, {} for computing", bytes(kv_bytes), bytes(compute_bytes)),
            };
            let error = anyhow::anyhow!(
                "{place}: a context of {n_ctx} tokens needs {needed} ({parts}), and {available} are free"
            );
            exit::with_hint(error, "use a smaller context (-c), or a smaller cache (-ctk q8_0 -ctv q8_0)")
        }
        runtime::Error::StagingMemory { place, needed_bytes, context_bytes, available_bytes } => {
            let [needed, context, available] = [needed_bytes, context_bytes, available_bytes].map(bytes);
            let error = anyhow::anyhow!(
                "{place}: staging experts needs {needed} beside {context} for the context, and {available} are free"
            );
            exit::with_hint(
                error,
                "use a smaller micro-batch (-ub), or --stage-experts auto: the CPU reads prompts with its experts then",
            )
        }
        runtime::Error::WeightMemory { place, needed_bytes, available_bytes } => {
            let (needed, available) = (bytes(needed_bytes), bytes(available_bytes));
            let error = anyhow::anyhow!("{place}: {needed} are needed for weights, and {available} are free");
            exit::with_hint(
                error,
                "leave out -ngl, --no-mmap and --repack: what fits is planned then; or say how much may be used with --vram and --ram",
            )
        }
        runtime::Error::PoolMemory { needed_bytes, dense_bytes, available_bytes } => {
            let [needed, dense, available] = [needed_bytes, dense_bytes, available_bytes].map(bytes);
            let error = anyhow::anyhow!(
                "--expert-pool: {needed} are needed beside {dense} of other weights, and {available} are free"
            );
            exit::with_hint(error, "leave it out: the pool gets what memory is left")
        }
        runtime::Error::LockedMemory { needed_bytes, available_bytes } => {
            let (needed, available) = (bytes(needed_bytes), bytes(available_bytes));
            let error = anyhow::anyhow!("--mlock: {needed} are to be locked, and {available} are free");
            exit::with_hint(error, "leave it out: the experts that have no room are read from the file then")
        }
        runtime::Error::Shortage { needed, available_bytes } => {
            let parts: Vec<String> = runtime::plan::in_words(&needed)
                .into_iter()
                .map(|(what, size)| format!("{} for {what}", bytes(size)))
                .collect();
            let (all, available) = (bytes_at_least(needed.total_bytes()), bytes(available_bytes));
            let error = anyhow::anyhow!(
                "the model needs {all} of memory at least ({}), and {available} may be used",
                parts.join(", ")
            );
            exit::with_hint(
                error,
                "use a smaller context (-c), a smaller cache (-ctk q8_0 -ctv q8_0), smaller micro-batches (-ub 64), or a file of smaller types (bruce-quant -q)",
            )
        }
        other => other.into(),
    }
}

/// The text of a file; it must be UTF-8.
fn text_file(path: &Path) -> Result<String, anyhow::Error> {
    let bytes = std::fs::read(path).with_context(|| format!("{}: cannot read", path.display()))?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        anyhow::anyhow!("{}: byte {at}: found bytes that are no UTF-8, expected text", path.display())
    })
}
