//! How a program ends: its exit code, and the line that says why.

use std::io::ErrorKind;
use std::process::ExitCode;

use crate::terminal;

/// Success, which includes a reader of stdout that has seen enough.
pub const SUCCESS: u8 = 0;
/// Something failed.
pub const FAILURE: u8 = 1;
/// The command line makes no sense.
pub const USAGE: u8 = 2;
/// Interrupted by Ctrl-C: 128 and the number of SIGINT.
pub const INTERRUPTED: u8 = 130;

/// A command line that makes no sense, as an error among others; the program ends with [`USAGE`].
#[derive(Debug)]
pub struct UsageError(pub String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// What the user might do about an error. Attached with [`with_hint`], printed on a line of its own.
#[derive(Debug)]
struct Hinted {
    error: anyhow::Error,
    hint: String,
}

impl std::fmt::Display for Hinted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", one_line(&self.error))
    }
}

impl std::error::Error for Hinted {
    // The message covers the whole chain; only the kind of error is asked for through it.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(self.error.as_ref())
    }
}

/// The error with advice.
pub fn with_hint(error: impl Into<anyhow::Error>, hint: impl Into<String>) -> anyhow::Error {
    Hinted { error: error.into(), hint: hint.into() }.into()
}

/// Ends a program: prints the error of a failed run and gives the exit code.
///
/// A closed stdout is success: whoever read it has what they wanted.
pub fn finish(result: Result<(), anyhow::Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::from(SUCCESS),
        Err(error) if is_closed_stdout(&error) => ExitCode::from(SUCCESS),
        Err(error) => {
            crate::terminal::tell(describe(&error));
            let usage = error.chain().any(|e| e.is::<UsageError>());
            ExitCode::from(if usage { USAGE } else { FAILURE })
        }
    }
}

/// The lines printed for an error: `error: ...`, and `hint: ...` where there is advice. Control characters are
/// made visible, as messages quote files of strangers.
pub fn describe(error: &anyhow::Error) -> String {
    match error.downcast_ref::<Hinted>() {
        Some(hinted) => format!("error: {hinted}\nhint: {}\n", terminal::neutral_line(&hinted.hint)),
        None => format!("error: {}\n", one_line(error)),
    }
}

/// The chain of an error on one line, without what a cause merely repeats.
fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.ends_with(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    terminal::neutral_line(&text)
}

fn is_closed_stdout(error: &anyhow::Error) -> bool {
    error.chain().any(|e| e.is::<ClosedStdout>())
}

/// Whoever read our stdout is gone.
#[derive(Debug)]
struct ClosedStdout;

impl std::fmt::Display for ClosedStdout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stdout is closed")
    }
}

impl std::error::Error for ClosedStdout {}

/// The error of a write to stdout. A closed pipe there ends the program quietly ([`finish`]); a closed pipe
/// elsewhere is an error like any other, so it is only recognised through this function.
pub fn stdout_error(error: std::io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::BrokenPipe => ClosedStdout.into(),
        _ => anyhow::Error::new(error).context("stdout: cannot write"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn an_error_is_one_line_and_a_hint_another() {
        let error = anyhow!("bad\nfile \x1b[2J").context("model.gguf");
        assert_eq!(describe(&error), "error: model.gguf: bad\\nfile \\u{1b}[2J\n");
        let hinted = with_hint(error, "look again");
        assert_eq!(describe(&hinted), "error: model.gguf: bad\\nfile \\u{1b}[2J\nhint: look again\n");
    }

    #[test]
    fn causes_are_not_repeated() {
        let io = std::io::Error::other("disk full");
        let error = anyhow::Error::new(io).context("x: disk full");
        assert_eq!(describe(&error), "error: x: disk full\n");
    }

    #[test]
    fn exit_codes_tell_kinds_apart() {
        let code = |e: anyhow::Error| format!("{:?}", finish(Err(e)));
        let expected = |n: u8| format!("{:?}", ExitCode::from(n));
        assert_eq!(code(anyhow!("no")), expected(FAILURE));
        assert_eq!(code(UsageError("no".into()).into()), expected(USAGE));
        assert_eq!(code(with_hint(UsageError("no".into()), "yes")), expected(USAGE));
        assert_eq!(code(stdout_error(ErrorKind::BrokenPipe.into())), expected(SUCCESS));
        assert_eq!(code(std::io::Error::from(ErrorKind::BrokenPipe).into()), expected(FAILURE));
    }
}
