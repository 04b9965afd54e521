//! Command lines whose first word says what is to be done instead of a conversion.

use std::ffi::OsString;

use bruce::exit::{UsageError, with_hint};
use clap::Parser;
use clap::error::ErrorKind;

/// Whether `argv`, which begins with the program's name, asks for `word`.
pub fn is_meant(argv: &[OsString], word: &str) -> bool {
    argv.get(1).is_some_and(|first| first == word)
}

/// The subcommand's arguments; `None` where its help was asked for and has been printed.
///
/// # Errors
/// They make no sense.
pub fn arguments<T: Parser>(argv: &[OsString]) -> Result<Option<T>, anyhow::Error> {
    match T::try_parse_from(&argv[1..]) {
        Ok(args) => Ok(Some(args)),
        Err(error) if error.kind() == ErrorKind::DisplayHelp => {
            crate::print(&error.render().to_string())?;
            Ok(None)
        }
        Err(error) => {
            let hint = format!("{} --help shows the options and examples", T::command().get_name());
            Err(with_hint(UsageError(bruce::usage::message(&error)), hint))
        }
    }
}
