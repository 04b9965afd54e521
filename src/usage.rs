//! What is said of a command line that makes no sense.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::exit::{UsageError, with_hint};

/// A command line that clap does not take, as the error that a program ends with: what is wrong in one line, and as the
/// hint what may have been meant.
///
/// `argv` begins with the program's name, which `program` is too; `commands` are the words that may come first.
pub fn refusal(error: &clap::Error, program: &str, commands: &[&str], argv: &[OsString]) -> anyhow::Error {
    let command = commands.iter().find(|command| argv.get(1).is_some_and(|first| *first == ***command));
    let of_command = command.map(|command| format!(" {command}")).unwrap_or_default();
    let help = format!("{program}{of_command} --help shows the options and examples");
    let (message, meant) = match surplus(error).map(|word| misplaced(&word, commands, argv)) {
        Some((message, meant)) => (message, meant.map(|command| format!("{program} {command}"))),
        None => (message(error), suggestion(error)),
    };
    let help = match in_llama_quantizes_order(program, argv) {
        true => {
            format!("llama-quantize's order is not taken: bruce-quant IN.gguf -q Q4_K_M -o OUT.gguf; {help}")
        }
        false => help,
    };
    let hint = match meant {
        Some(meant) => format!("did you mean {meant}? {help}"),
        None => help,
    };
    with_hint(UsageError(message), hint)
}

/// Reads the path of a file to be written. `-` is refused: such files are written beside their names and renamed, so
/// they can't go to stdout, and nobody who types it means a file of that name.
pub fn output_path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(|path| match path.as_encoded_bytes() {
        b"-" => Err("expected the name of a file, as this does not go to stdout"),
        _ => Ok(PathBuf::from(path)),
    })
}

/// The known word that a mistyped one is likeliest to stand for: at most a third of its letters are others, missing,
/// left over or exchanged. Case, hyphens, underscores and dots don't count.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let letters = |text: &str| -> Vec<char> {
        text.to_lowercase().chars().filter(|c| !matches!(c, '-' | '_' | '.')).collect()
    };
    let word = letters(word);
    let far = |known: &&str| distance(&word, &letters(known));
    let best = known.into_iter().min_by_key(far)?;
    (far(&best) * 3 <= word.len()).then_some(best)
}

/// How many letters must be replaced, left out, put in or exchanged with their neighbour to make one word of another.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(before[j - 2] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

/// Whether somebody called llama-quantize: the input, the output perhaps, and the type, without a flag.
fn in_llama_quantizes_order(program: &str, argv: &[OsString]) -> bool {
    let words = argv.get(1..).unwrap_or_default();
    program == "bruce-quant"
        && matches!(words.len(), 2..=4)
        && words.iter().all(|word| !word.as_encoded_bytes().starts_with(b"-"))
        && Path::new(&words[0]).exists()
}

/// The word, no flag, that a command line has too many.
fn surplus(error: &clap::Error) -> Option<String> {
    let word = match error.kind() {
        ErrorKind::UnknownArgument => error.get(ContextKind::InvalidArg),
        ErrorKind::ArgumentConflict => error.get(ContextKind::InvalidSubcommand),
        _ => None,
    };
    match word {
        Some(ContextValue::String(word)) if !word.starts_with('-') => Some(word.clone()),
        _ => None,
    }
}

/// What is said of a word too many, and the command that may have been meant.
fn misplaced<'a>(word: &str, commands: &[&'a str], argv: &[OsString]) -> (String, Option<&'a str>) {
    let is_there = argv.get(1).is_some_and(|first| Path::new(first).exists());
    let first = argv.get(1).map(|first| first.to_string_lossy()).unwrap_or_default();
    if let Some(command) = commands.iter().find(|command| **command == word) {
        return (format!("found {word} behind other arguments, expected commands first"), Some(command));
    }
    if !first.starts_with('-') && !commands.contains(&&*first) && !is_there {
        let known = commands.join(", ");
        let message =
            format!("{first}: found neither a command nor a model, expected a model or one of {known}");
        return (message, nearest(&first, commands.iter().copied()));
    }
    (format!("found a further argument {word:?}, expected none"), None)
}

/// What clap takes for the intention behind a flag or a value, where the two are as near as [`nearest`] wants them or one
/// begins the other: clap finds a likeness in everything (`--i` for `--mirostat`).
fn suggestion(error: &clap::Error) -> Option<String> {
    let first = |kind: ContextKind| match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) => texts.first().cloned(),
        _ => None,
    };
    let (given, meant) = match error.kind() {
        ErrorKind::InvalidValue => (ContextKind::InvalidValue, ContextKind::SuggestedValue),
        _ => (ContextKind::InvalidArg, ContextKind::SuggestedArg),
    };
    let (given, meant) = (first(given)?, first(meant)?);
    (meant.starts_with(&given) || nearest(&given, [meant.as_str()]).is_some()).then_some(meant)
}

/// clap's message without its own prefix and usage: one line.
fn message(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::MissingRequiredArgument
        && let Some(ContextValue::Strings(missing)) = error.get(ContextKind::InvalidArg)
    {
        return format!("missing {}", missing.join(" and "));
    }
    let text = error.render().to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let line = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    plainly(line.strip_prefix("error: ").unwrap_or(&line))
}

/// The message with what Rust says of a text that is no number in plain words.
fn plainly(message: &str) -> String {
    const SAID: &[(&str, &str)] = &[
        ("invalid digit found in string", "expected a whole number"),
        ("cannot parse integer from empty string", "expected a whole number"),
        ("number too large to fit in target type", "expected a smaller number"),
        ("number too small to fit in target type", "expected a larger number"),
        ("invalid float literal", "expected a number"),
        ("cannot parse float from empty string", "expected a number"),
    ];
    match SAID.iter().find_map(|(rust, plain)| Some((message.strip_suffix(rust)?, plain))) {
        Some((front, plain)) => format!("{front}{plain}"),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_files() {
        let parse = |path: &str| {
            let arg = clap::Arg::new("output").value_parser(output_path());
            let matches = clap::Command::new("program").arg(arg).try_get_matches_from(["program", path])?;
            Ok::<_, clap::Error>(matches.get_one::<PathBuf>("output").cloned())
        };
        assert_eq!(parse("./-").expect("a file"), Some(PathBuf::from("./-")));
        assert!(message(&parse("-").expect_err("stdout")).contains("does not go to stdout"));
    }

    #[test]
    fn mistyped_words_find_what_was_meant() {
        let commands = ["inspect", "tokenize", "bench", "perplexity", "verify"];
        for (word, meant) in [
            ("benhc", Some("bench")),
            ("Bench", Some("bench")),
            ("verfy", Some("verify")),
            ("perplexty", Some("perplexity")),
            ("serve", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, commands), meant, "{word}");
        }
        let types = ["Q4_K_S", "Q4_K_M", "Q5_K_M", "IQ4_XS", "Q8_0"];
        for (word, meant) in [("q4km", "Q4_K_M"), ("q4_km", "Q4_K_M"), ("iq4-xs", "IQ4_XS"), ("q80", "Q8_0")]
        {
            assert_eq!(nearest(word, types), Some(meant), "{word}");
        }
    }

    #[test]
    fn the_distance_counts_edits() {
        let far = |a: &str, b: &str| distance(&a.chars().collect::<Vec<_>>(), &b.chars().collect::<Vec<_>>());
        for (a, b, edits) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("abc", "abc", 0),
            ("abc", "acb", 1),
            ("abc", "abd", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(far(a, b), edits, "{a} {b}");
            assert_eq!(far(b, a), edits, "{b} {a}");
        }
    }

    #[test]
    fn numbers_are_spoken_of_plainly() {
        let rust = "abc".parse::<u32>().expect_err("no number");
        assert_eq!(plainly(&format!("invalid value: {rust}")), "invalid value: expected a whole number");
        let rust = "abc".parse::<f32>().expect_err("no number");
        assert_eq!(plainly(&format!("invalid value: {rust}")), "invalid value: expected a number");
        assert_eq!(plainly("expected a size"), "expected a size");
    }
}
