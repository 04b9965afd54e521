//! Command lines whose first word says what is to be done instead of a conversion.

use std::ffi::{OsStr, OsString};

use clap::Parser;
use clap::error::ErrorKind;

/// The words that may come first.
pub const NAMES: &[&str] = &["verify", "card"];

/// Whether a word is one of them.
pub fn is_one(word: &OsStr) -> bool {
    NAMES.iter().any(|name| word == *name)
}

/// The subcommand's arguments; `None` where its help was asked for and has been printed.
///
/// # Errors
/// They make no sense.
pub fn arguments<T: Parser>(argv: &[OsString]) -> Result<Option<T>, anyhow::Error> {
    let command = T::command();
    let program = command.get_name().to_owned();
    let matches = command.bin_name(&program).try_get_matches_from(&argv[1..]);
    match matches.and_then(|matches| T::from_arg_matches(&matches)) {
        Ok(args) => Ok(Some(args)),
        Err(error) if error.kind() == ErrorKind::DisplayHelp => {
            crate::print(&error.render().to_string())?;
            Ok(None)
        }
        Err(error) => Err(bruce::usage::refusal(&error, "bruce-quant", NAMES, argv)),
    }
}
