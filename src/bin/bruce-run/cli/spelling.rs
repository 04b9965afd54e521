//! llama.cpp's way of writing flags, turned into clap's.
//!
//! llama.cpp takes names of several letters after one hyphen (`-ngl 99`), underscores for hyphens
//! (`--n_gpu_layers`), and whatever stands after a flag that has a value as that value, even where it begins with a
//! hyphen (`-p "- a list"`). clap takes none of these, so a command line is rewritten before clap sees it: short
//! names are aliases of long ones there, and a value is tied to its flag with `=`.

use super::foreign::known_elsewhere;
use clap::{Arg, Command};
use std::ffi::{OsStr, OsString};

/// The command line as clap reads it. `root` has been built ([`Command::build`]); `argv` begins with the program's
/// name.
///
/// # Errors
/// The first flag that only llama.cpp has: what it is called here, and what there is instead.
pub fn normalise(
    root: &Command,
    argv: impl IntoIterator<Item = OsString>,
) -> Result<Vec<OsString>, (String, &'static str)> {
    let mut argv = argv.into_iter().peekable();
    let mut out: Vec<OsString> = argv.next().into_iter().collect();
    let mut command = root;
    while let Some(token) = argv.next() {
        if token == "--" {
            out.push(token);
            out.extend(argv);
            break;
        }
        let Some((arg, value)) = find(command, &token) else {
            if let Some(elsewhere) = known_elsewhere(&token) {
                return Err(elsewhere);
            }
            // A subcommand comes first or not at all.
            if let Some(sub) = token.to_str().filter(|_| out.len() == 1).and_then(|t| root.find_subcommand(t))
            {
                command = sub;
            }
            out.push(token);
            continue;
        };
        let value = match value {
            None if takes_next(arg, argv.peek().map(OsString::as_os_str)) => argv.next(),
            value => value,
        };
        out.push(spelled(arg, value));
    }
    Ok(out)
}

/// The argument that a token names, and the value tied to it with `=`.
fn find<'a>(command: &'a Command, token: &OsStr) -> Option<(&'a Arg, Option<OsString>)> {
    let text = token.to_str()?;
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(OsString::from(value))),
        None => (text, None),
    };
    let arg = if let Some(name) = name.strip_prefix("--") {
        let name = name.replace('_', "-");
        command.get_arguments().find(|arg| has_long(arg, &name))
    } else {
        let name = name.strip_prefix('-')?;
        let is_short = |arg: &&Arg| arg.get_short().is_some_and(|letter| name.chars().eq([letter]));
        let mut arguments = command.get_arguments();
        arguments.find(is_short).or_else(|| command.get_arguments().find(|arg| has_long(arg, name)))
    }?;
    Some((arg, value))
}

fn has_long(arg: &Arg, name: &str) -> bool {
    arg.get_long() == Some(name) || arg.get_all_aliases().is_some_and(|all| all.contains(&name))
}

/// Whether the token after a flag is its value.
fn takes_next(arg: &Arg, next: Option<&OsStr>) -> bool {
    let Some(next) = next.filter(|_| arg.get_action().takes_values()) else { return false };
    let optional = arg.get_num_args().is_some_and(|range| range.min_values() == 0);
    // A value that may be left out is taken only where it can be nothing else.
    !optional
        || next.to_str().is_some_and(|next| arg.get_possible_values().iter().any(|v| v.matches(next, true)))
}

fn spelled(arg: &Arg, value: Option<OsString>) -> OsString {
    let mut token = OsString::from(match (arg.get_long(), arg.get_short()) {
        (Some(long), _) => format!("--{long}"),
        (None, Some(short)) => format!("-{short}"),
        (None, None) => String::new(),
    });
    if let Some(value) = value {
        token.push("=");
        token.push(value);
    }
    token
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ArgAction;

    fn command() -> Command {
        let mut command = Command::new("x")
            .arg(Arg::new("file"))
            .arg(Arg::new("prompt").short('p').long("prompt"))
            .arg(Arg::new("layers").long("n-gpu-layers").alias("ngl"))
            .arg(Arg::new("fa").long("flash-attn").alias("fa").num_args(0..=1).value_parser(["on", "off"]))
            .arg(Arg::new("cnv").long("conversation").aliases(["cnv", "i"]).action(ArgAction::SetTrue))
            .arg(Arg::new("st").long("single-turn").alias("st").action(ArgAction::SetTrue))
            .subcommand(Command::new("sub").arg(Arg::new("pg").long("pg")));
        command.build();
        command
    }

    fn check(given: &[&str], expected: &[&str]) {
        let argv = std::iter::once("x").chain(given.iter().copied()).map(OsString::from);
        let out = normalise(&command(), argv).expect("flags of our own");
        let out: Vec<&str> = out[1..].iter().map(|t| t.to_str().unwrap_or("")).collect();
        assert_eq!(out, expected);
    }

    #[test]
    fn several_letters_after_one_hyphen() {
        check(&["m.gguf", "-ngl", "99", "-st"], &["m.gguf", "--n-gpu-layers=99", "--single-turn"]);
        check(&["-i", "-cnv", "-p", "x"], &["--conversation", "--conversation", "--prompt=x"]);
        check(&["--n_gpu_layers", "4"], &["--n-gpu-layers=4"]);
        check(&["--n_gpu_layers=4"], &["--n-gpu-layers=4"]);
    }

    #[test]
    fn a_value_is_whatever_follows() {
        check(&["-p", "-ngl", "m"], &["--prompt=-ngl", "m"]);
        check(&["-p", ""], &["--prompt="]);
        check(&["-p", "a=b"], &["--prompt=a=b"]);
        check(&["-p"], &["--prompt"]);
    }

    #[test]
    fn an_optional_value_is_taken_only_where_it_fits() {
        check(&["-fa", "on", "m"], &["--flash-attn=on", "m"]);
        check(&["-fa", "m"], &["--flash-attn", "m"]);
        check(&["-fa"], &["--flash-attn"]);
    }

    #[test]
    fn flags_are_those_of_the_subcommand() {
        check(&["sub", "-pg", "1,2", "-ngl", "3"], &["sub", "--pg=1,2", "-ngl", "3"]);
        check(&["m", "sub", "-pg", "1"], &["m", "sub", "-pg", "1"]);
    }

    #[test]
    fn a_flag_that_only_llama_cpp_has_is_none_of_several_short_ones() {
        let refused = |words: &[&str]| {
            let argv = std::iter::once("x").chain(words.iter().copied()).map(OsString::from);
            normalise(&command(), argv).err().map(|(message, _)| message)
        };
        assert!(refused(&["m", "-hf", "a/b"]).is_some_and(|message| message.starts_with("-hf: ")));
        // It is a value here.
        assert_eq!(refused(&["-p", "-hf"]), None);
        assert_eq!(refused(&["--", "-hf"]), None);
    }

    #[test]
    fn nothing_is_rewritten_after_two_hyphens() {
        check(&["--", "-ngl", "1"], &["--", "-ngl", "1"]);
        check(&["-unknown", "-5"], &["-unknown", "-5"]);
    }
}
