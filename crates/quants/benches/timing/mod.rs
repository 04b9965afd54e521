//! What the benchmark programs measure with: the time of a thread, and spreads over runs.

use std::fmt;

/// Seconds that this thread has run: what other programs take of the core does not count.
pub fn thread_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Median and quartiles. They are shown with the precision and in the width of the format, as in `{:>20.2}`.
pub struct Spread {
    /// The middle one of the values.
    pub median: f64,
    low: f64,
    high: f64,
}

impl Spread {
    /// # Panics
    /// There are no values.
    pub fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |quarters: usize| values[(values.len() - 1) * quarters / 4];
        Self { median: at(2), low: at(1), high: at(3) }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, low, high } = self;
        let (precision, width) = (f.precision().unwrap_or(1), f.width().unwrap_or(0));
        let text = format!("{median:.precision$} ({low:.precision$}-{high:.precision$})");
        write!(f, "{text:>width$}")
    }
}
