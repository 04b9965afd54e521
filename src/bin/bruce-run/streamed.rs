//! What is told about experts that were read while they were used.

use bruce::size::{bytes, seconds};
use runtime::StreamStatistics;
use std::time::Duration;

/// How often experts were in memory or came there in time, what was read, and how much of the time the disk alone would have taken.
pub fn line(done: &StreamStatistics, n_tokens: usize, time: Duration) -> String {
    let asked = done.asked_bytes();
    if done.read_bytes == 0 && done.needed_bytes() == 0 {
        return format!("all of {} in memory; nothing was read", bytes(asked));
    }
    let share = 100.0 * done.least_time().as_secs_f64() / time.as_secs_f64().max(1e-9);
    format!(
        "{:.1} % of {} in memory, {:.1} % read ahead in time; {} read for each token, {}/s, {} waited; {share:.0} % of the disk's limit",
        100.0 * done.hit_rate(),
        bytes(asked),
        100.0 * done.ahead_bytes as f64 / asked.max(1) as f64,
        bytes(done.read_bytes / n_tokens.max(1) as u64),
        bytes(done.bandwidth() as u64),
        seconds(done.waiting.as_secs_f64()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nothing_was_read_no_disk_is_spoken_of() {
        let done = StreamStatistics { hit_bytes: 6_000_000, ..StreamStatistics::default() };
        assert_eq!(line(&done, 4, Duration::from_secs(2)), "all of 6.00 MB in memory; nothing was read");
    }

    #[test]
    fn the_limit_is_the_time_that_misses_take_to_read() {
        let done = StreamStatistics {
            hit_bytes: 6_000_000,
            ahead_bytes: 500_000,
            missed_bytes: 1_500_000,
            read_bytes: 4_000_000,
            reading: Duration::from_secs(2),
            waiting: Duration::from_millis(500),
        };
        assert_eq!(
            line(&done, 4, Duration::from_secs(2)),
            "75.0 % of 8.00 MB in memory, 6.2 % read ahead in time; 1.00 MB read for each token, 2.00 MB/s, 0.50 s waited; 50 % of the disk's limit"
        );
    }
}
