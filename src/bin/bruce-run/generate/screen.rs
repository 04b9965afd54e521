//! The answer on its way to whoever reads it.

use bruce::exit::stdout_error;
use bruce::terminal::neutral_text;
use std::io::{IsTerminal, Write};

/// Stdout as the place where text appears piece by piece.
pub struct Screen {
    is_terminal: bool,
    at_line_start: bool,
}

impl Screen {
    /// Stdout of this process.
    pub fn new() -> Self {
        Screen { is_terminal: std::io::stdout().is_terminal(), at_line_start: true }
    }

    /// Shows text at once. On a terminal, what would steer it is written out instead.
    ///
    /// # Errors
    /// Where stdout can't be written.
    pub fn show(&mut self, text: &str) -> Result<(), anyhow::Error> {
        let mut stdout = std::io::stdout().lock();
        let shown = if self.is_terminal { neutral_text(text) } else { text.to_owned() };
        stdout.write_all(shown.as_bytes()).and_then(|()| stdout.flush()).map_err(stdout_error)?;
        if !text.is_empty() {
            self.at_line_start = text.ends_with('\n');
        }
        Ok(())
    }

    /// Ends the line, if one was begun.
    ///
    /// # Errors
    /// Where stdout can't be written.
    pub fn end_line(&mut self) -> Result<(), anyhow::Error> {
        if self.at_line_start { Ok(()) } else { self.show("\n") }
    }
}
