//! Text of strangers on a terminal.
//!
//! Names, metadata and generated text may hold escape sequences, which a terminal obeys: they move the cursor,
//! change its title, or worse. Everything that comes from a file or a model and goes to a terminal passes through
//! here first.

use std::io::{IsTerminal, Write};

/// Whether a character makes a terminal do something other than show it.
fn is_active(c: char) -> bool {
    // Controls of both ranges, and marks that turn the direction of what follows.
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{061c}')
}

/// The text with every active character written out (`\u{1b}`), line ends and tabs too.
pub fn neutral_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if is_active(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// The text with every active character written out, except line feeds and tabs: for text of several lines.
///
/// Works piece by piece: a stream may be cut anywhere between characters.
pub fn neutral_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => out.push(c),
            c if is_active(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// Writes to stderr and goes on where it takes nothing (closed, full, a pipe that nobody reads any more): what is said
/// beside the results is no reason to stop.
pub fn tell(text: impl std::fmt::Display) {
    let _ = std::io::stderr().write_all(text.to_string().as_bytes());
}

/// Whether stderr shows colours: it is a terminal, and NO_COLOR is unset or empty.
pub fn stderr_has_colors() -> bool {
    std::io::stderr().is_terminal() && !no_color()
}

/// Whether the user wants no colours (<https://no-color.org>).
pub fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_become_visible() {
        assert_eq!(neutral_line("a\x1b[31mb\u{9b}c\u{7}\nd\te"), "a\\u{1b}[31mb\\u{9b}c\\u{7}\\nd\\te");
        assert_eq!(neutral_text("a\x1b]0;x\u{7}\nb\t\r"), "a\\u{1b}]0;x\\u{7}\nb\t\\u{d}");
        assert_eq!(neutral_text("x\u{202e}y"), "x\\u{202e}y");
    }

    #[test]
    fn text_of_any_language_stays() {
        let text = "héllo, 世界 🦀 – مرحبا";
        assert_eq!(neutral_line(text), text);
        assert_eq!(neutral_text(text), text);
    }
}
