//! The progress bar: tensor, speed, time left. On stderr, and only where somebody watches.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use bruce::terminal::{neutral_line, stderr_has_colors};
use convert::{NoProgress, Progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Draws, or does not: nothing is drawn when quiet or when stderr is not a terminal.
pub fn draw(quiet: bool) -> Box<dyn Progress> {
    if quiet || !std::io::stderr().is_terminal() {
        return Box::new(NoProgress);
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
    let bar_part = if stderr_has_colors() { "{bar:28.cyan/dim}" } else { "{bar:28}" };
    let template =
        format!("{bar_part} {{percent:>3}} %  {{decimal_bytes_per_sec:>11}}  {{eta:>4}} left  {{wide_msg}}");
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    Box::new(Drawn(bar))
}

struct Drawn(ProgressBar);

impl Progress for Drawn {
    fn begin_measuring(&self, n: u64) {
        if let Ok(style) =
            ProgressStyle::with_template("{bar:28} {percent:>3} %  {eta:>4} left  trying types on {wide_msg}")
        {
            self.0.set_style(style.progress_chars("━╸─"));
        }
        self.0.set_length(n);
    }

    fn begin(&self, input_bytes: u64) {
        self.0.set_length(input_bytes);
        self.0.reset();
    }

    fn tensor(&self, name: &str) {
        self.0.set_message(neutral_line(name));
    }

    fn advance(&self, input_bytes: u64) {
        self.0.inc(input_bytes);
    }

    fn finishing(&self, path: &Path) {
        let name = path.file_name().unwrap_or(path.as_os_str());
        self.0.set_message(format!("flushing {} to disk", neutral_line(&name.to_string_lossy())));
    }
}

impl Drop for Drawn {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
