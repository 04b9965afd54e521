//! bruce-quant: a checkpoint directory or a GGUF file goes in, quantized GGUF files come out.

mod args;
mod card;
mod command;
mod config;
mod fitted;
mod input;
mod output;
mod progress;
mod report;
mod rules;
mod subcommand;
mod verify;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use bruce::exit;
use bruce::terminal::neutral_line;

use args::Args;
use config::Config;

fn main() -> ExitCode {
    let mut argv: Vec<_> = std::env::args_os().collect();
    // `help` and `help verify`, as bruce-run and others take them; a directory of that name is meant where there is more.
    let is_help = argv.get(1).is_some_and(|first| first == "help");
    if is_help && (argv.len() == 2 || argv.len() == 3 && subcommand::is_one(&argv[2])) {
        argv.remove(1);
        argv.push("--help".into());
    }
    match argv.get(1).and_then(|first| first.to_str()) {
        Some("verify") => return exit::finish(verify::run(&argv)),
        Some("card") => return exit::finish(card::run(&argv)),
        _ => (),
    }
    let args = match Args::from_command_line(&argv) {
        Ok(args) => args,
        Err(ended) => return ended,
    };
    exit::finish(run(args))
}

fn run(args: Args) -> Result<(), anyhow::Error> {
    let mut config = Config::resolve(args)?;
    gguf::mmap::install_fault_handler();
    ctrlc::set_handler(interrupted).context("cannot watch for Ctrl-C")?;

    let (input, warnings) = input::open(&config.model, &config.open)?;
    if !config.quiet {
        for warning in warnings {
            bruce::say!("warning: {}", neutral_line(&warning));
        }
    }
    // Where types are kept, what made the weights is what made them before.
    if !config.plan.keep_types {
        let source = convert::fingerprint(input.as_ref())?;
        config.plan.provenance = Some(convert::Provenance { source, ..config.provenance.clone() });
    }
    fitted::choose(&mut config, input.as_ref())?;
    let plan = convert::Plan::new(input.as_ref(), &config.plan).map_err(config::advise)?;
    if !config.quiet {
        for warning in &plan.warnings {
            bruce::say!("warning: {}", neutral_line(warning));
        }
    }
    let paths = output::paths(&config, &plan)?;
    let rooms = output::rooms(&plan, &paths)?;
    if config.dry_run {
        return print(&report::plan(&plan, &paths, &rooms));
    }
    let finished = convert::finished_outputs(input.as_ref(), &plan, &paths, &config.execute);
    output::check(&config, input.as_ref(), &plan, &paths, &finished)?;
    output::check_room(&rooms)?;
    let card_path =
        config.card.as_ref().map(|_| output::card_path(&config, input.as_ref(), &paths)).transpose()?;
    if config.verbose {
        bruce::terminal::tell(report::plan(&plan, &paths, &rooms));
    }

    let drawn = progress::draw(config.quiet);
    let done = convert::execute(input.as_ref(), &plan, &paths, &config.execute, drawn.as_ref());
    drop(drawn);
    let summary = done.map_err(config::advise)?;
    if !config.quiet {
        print(&report::summary(&plan, &summary))?;
    }
    if let (Some(options), Some(path)) = (&config.card, card_path) {
        let files: Vec<PathBuf> = summary.outputs.iter().filter_map(|o| o.files.first().cloned()).collect();
        card::write(&files, &path, options, config.force, config.quiet)?;
    }
    Ok(())
}

/// Ctrl-C: no partial file stays behind.
fn interrupted() {
    gguf::discard_partial_files();
    bruce::say!("interrupted");
    std::process::exit(i32::from(exit::INTERRUPTED));
}

fn print(text: &str) -> Result<(), anyhow::Error> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(exit::stdout_error)
}
