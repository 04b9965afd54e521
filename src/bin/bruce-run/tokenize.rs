//! `bruce-run tokenize`: how a text is cut into tokens.

use crate::cli::model::ModelFile;
use crate::cli::values::unescape;
use crate::{print, text_file};
use anyhow::Context;
use bruce::exit::{UsageError, with_hint};
use gguf::Gguf;
use runtime::tokenizer::{AddBos, Special, TokenId, Tokenizer};
use serde_json::json;
use std::fmt::Write;
use std::io::Read;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  bruce-run tokenize model.gguf -p \"Hello world\"
  bruce-run tokenize model.gguf -f prompt.txt --ids
  cat prompt.txt | bruce-run tokenize model.gguf --stdin --show-count";

/// Flags of `bruce-run tokenize`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    file: ModelFile,

    /// The text
    #[arg(short, long, value_name = "TEXT", conflicts_with_all = ["text_file", "stdin"])]
    prompt: Option<String>,

    /// A file with the text
    #[arg(short = 'f', long = "file", value_name = "FILE", conflicts_with = "stdin")]
    text_file: Option<PathBuf>,

    /// Read the text from stdin
    #[arg(long)]
    stdin: bool,

    /// Only the ids, as a list
    #[arg(long, conflicts_with = "json")]
    ids: bool,

    /// Put no BOS token in front
    #[arg(long)]
    no_bos: bool,

    /// Take the names of control tokens as text
    #[arg(long, overrides_with = "parse_special")]
    no_parse_special: bool,

    /// The default; undoes --no-parse-special
    #[arg(long, hide = true, overrides_with = "no_parse_special")]
    parse_special: bool,

    /// Print the number of tokens last
    #[arg(long)]
    show_count: bool,

    /// Leave escapes such as \n as they are
    #[arg(long, overrides_with = "escape")]
    no_escape: bool,

    /// Resolve escapes such as \n (the default)
    #[arg(short, long, overrides_with = "no_escape")]
    escape: bool,

    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Prints a line for each token, or the ids alone.
///
/// # Errors
/// Where no text is given, the file has no usable tokenizer, or stdout can't be written.
pub fn run(args: &Args) -> Result<(), anyhow::Error> {
    let path = args.file.path()?;
    if args.prompt.is_none() && args.text_file.is_none() && !args.stdin {
        let usage = UsageError("no text is given".to_owned());
        return Err(with_hint(usage, "give it with -p TEXT, -f FILE or --stdin"));
    }
    let gguf = Gguf::open(&path)?;
    let tokenizer = Tokenizer::from_metadata(gguf.metadata()).with_context(|| path.display().to_string())?;
    for warning in gguf.warnings().iter().chain(tokenizer.warnings()) {
        bruce::say!("warning: {}", bruce::terminal::neutral_line(warning));
    }
    let special = if args.no_parse_special { Special::Literal } else { Special::Parse };
    let add_bos = if args.no_bos { AddBos::Never } else { AddBos::Auto };
    let ids = tokenizer.encode(&text(args)?, special, add_bos);
    print(&report(args, &tokenizer, &ids))
}

fn text(args: &Args) -> Result<String, anyhow::Error> {
    let text = match (&args.prompt, &args.text_file) {
        (Some(prompt), _) => prompt.clone(),
        (None, Some(path)) => text_file(path)?,
        (None, None) => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("stdin: cannot read")?;
            text
        }
    };
    Ok(if args.no_escape { text } else { unescape(&text) })
}

fn report(args: &Args, tokenizer: &Tokenizer, ids: &[TokenId]) -> String {
    let mut out = String::new();
    if args.json {
        let piece = |id: TokenId| String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned();
        let tokens: Vec<_> = ids.iter().map(|id| json!({"id": id, "text": piece(*id)})).collect();
        let _ = writeln!(out, "{}", json!({"count": ids.len(), "ids": ids, "tokens": tokens}));
        return out;
    }
    if args.ids {
        let list: Vec<String> = ids.iter().map(TokenId::to_string).collect();
        let _ = writeln!(out, "[{}]", list.join(", "));
    } else {
        for &id in ids {
            // Bytes of a split character are shown as such.
            let bytes = tokenizer.token_bytes(id);
            let shown = match std::str::from_utf8(bytes) {
                Ok(text) => bruce::terminal::neutral_line(text),
                Err(_) => bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect(),
            };
            let _ = writeln!(out, "{id:6} -> '{shown}'");
        }
    }
    if args.show_count {
        let _ = writeln!(out, "Total number of tokens: {}", ids.len());
    }
    out
}
