//! What both programs share: how they end, what they print on a terminal, how they write sizes.
//!
//! The programs themselves are `src/bin/bruce-quant` and `src/bin/bruce-run`; everything they do is in the crates of
//! the workspace. Results go to stdout, everything else to stderr. A program ends with 0 on success, 1 on failure, 2
//! when it was called wrongly and 130 when it was interrupted ([`exit`]).

pub mod exit;
pub mod size;
pub mod terminal;
pub mod usage;

/// Version of the programs, with the commit where there is one: `0.1.0 (1a2b3c4d5)`.
pub const VERSION: &str = env!("BRUCE_VERSION");

/// What `--version` prints: the version, which ggml, its backends, and the CPU it was compiled for, a line each.
pub const LONG_VERSION: &str = include_str!(concat!(env!("OUT_DIR"), "/version.txt"));

/// Prints a line to stderr, as `eprintln!` does, without a panic where stderr takes none ([`terminal::tell`]).
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => {
        $crate::terminal::tell(format_args!("{}\n", format_args!($($text)*)))
    };
}
