//! The command line, as typed: one structure for each subcommand, and the groups of flags that several share.

pub mod context;
mod foreign;
pub mod model;
pub mod reading;
pub mod sampling;
mod spelling;
pub mod values;

use crate::{bench, devices, generate, imatrix, inspect, kl_divergence, perplexity, tokenize, trace};
use bruce::exit;
use clap::builder::styling::Styles;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::io::Write;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  bruce-run model.gguf
      chat, where the model has a chat template
  bruce-run model.gguf -p \"What is a Mixture of Experts?\"
      one answer; a model without a chat template continues the text instead
  bruce-run model.gguf -no-cnv -p \"Once upon a time\" -n 64 --temp 0
      continues the text, at most 64 tokens, always the likeliest one
  bruce-run model.gguf -f question.txt -sys \"Answer briefly.\" -c 4096 -t 8
  bruce-run inspect model.gguf
  bruce-run bench model.gguf -p 512 -n 128

Flags are llama.cpp's, in its spelling too (-ngl 99, -no-cnv). Where a flag is not given, the
variable LLAMA_ARG_<FLAG> counts: LLAMA_ARG_CTX_SIZE=4096, LLAMA_ARG_N_GPU_LAYERS=99.
BRUCE_KERNEL_LEVEL=avx2 and the like make --kernels bruce do with less than the processor has;
bruce-run devices shows which levels there are.";

/// Runs GGUF models of the Llama family, dense and Mixture-of-Experts.
#[derive(Debug, Parser)]
#[command(
    name = "bruce-run",
    version = env!("BRUCE_VERSION"),
    long_version = include_str!(concat!(env!("OUT_DIR"), "/version.txt")),
    after_help = EXAMPLES,
    max_term_width = 100,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    subcommand_help_heading = "Other commands",
    subcommand_value_name = "COMMAND",
    override_usage = "bruce-run MODEL [OPTIONS]\n       bruce-run COMMAND MODEL [OPTIONS]"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    generate: generate::Args,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer or continue a text; what happens without a subcommand
    #[command(skip)]
    Generate(Box<generate::Args>),
    /// Show a file's metadata and tensors
    Inspect(inspect::Args),
    /// Show how a text is cut into tokens
    Tokenize(tokenize::Args),
    /// Measure speed, as llama-bench does
    Bench(Box<bench::Args>),
    /// Measure how well a model predicts a text, as llama-perplexity does
    Perplexity(Box<perplexity::Args>),
    /// Show which experts a text uses, and what caches of any size would make of it
    Trace(Box<trace::Args>),
    /// Measure how far a model's predictions are from another's
    KlDivergence(Box<kl_divergence::Args>),
    /// Measure which columns of the weights matter, as llama-imatrix does
    Imatrix(Box<imatrix::Args>),
    /// List the devices that models can run on
    Devices(devices::Args),
}

impl Cli {
    /// What this process was called to do, or its exit code where it was asked for help or called wrongly.
    pub fn from_command_line() -> Result<Command, ExitCode> {
        let mut command = compact(Cli::command());
        for name in command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect::<Vec<_>>() {
            command = command.mut_subcommand(name, compact);
        }
        if bruce::terminal::no_color() {
            command = command.styles(Styles::plain());
        }
        // A script's own flags are overridden by those that its caller adds, as in llama.cpp: the last one counts.
        command = command.args_override_self(true);
        command.build();
        let argv = spelling::normalise(&command, std::env::args_os()).map_err(|(message, instead)| {
            let help = "bruce-run --help shows the options and examples";
            let hint = if instead.is_empty() { help.to_owned() } else { format!("{instead}; {help}") };
            exit::finish(Err(exit::with_hint(exit::UsageError(message), hint)))
        })?;
        let parsed = command.try_get_matches_from(argv).and_then(|matches| Cli::from_arg_matches(&matches));
        match parsed {
            Ok(cli) => Ok(cli.command.unwrap_or_else(|| Command::Generate(Box::new(cli.generate)))),
            Err(error) => Err(refuse(&error)),
        }
    }
}

/// The command with a help that fits a screen or two: one line for a flag, whichever way help is asked for.
fn compact(command: clap::Command) -> clap::Command {
    let help = Arg::new("help").short('h').long("help").action(ArgAction::HelpShort).help("Print this help");
    command
        .max_term_width(100)
        .mut_args(|arg| arg.hide_env(true))
        .disable_help_flag(true)
        .arg(help.help_heading("Other options"))
}

/// Prints help where it was asked for, else one line that says what is wrong.
fn refuse(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let shown = write!(std::io::stdout(), "{}", error.render().ansi_on_terminal());
            exit::finish(shown.map_err(exit::stdout_error))
        }
        _ => {
            let command = Cli::command();
            let commands: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
            let argv: Vec<_> = std::env::args_os().collect();
            exit::finish(Err(bruce::usage::refusal(error, "bruce-run", &commands, &argv)))
        }
    }
}

trait OnTerminal {
    fn ansi_on_terminal(&self) -> String;
}

impl OnTerminal for clap::builder::StyledStr {
    /// With colours where stdout shows them.
    fn ansi_on_terminal(&self) -> String {
        use std::io::IsTerminal;
        if std::io::stdout().is_terminal() { self.ansi().to_string() } else { self.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
