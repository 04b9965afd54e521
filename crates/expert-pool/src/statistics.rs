//! What a pool did.

use std::time::Duration;

/// Counters since the pool was made, or differences of two of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Statistics {
    /// Bytes of tiles that had stayed in memory when a layer asked for them, the first time where several batches pass it in turn.
    pub hit_bytes: u64,
    /// Bytes of tiles that were in memory because they had just been read, ahead of need.
    pub ahead_bytes: u64,
    /// Bytes of tiles that had to be waited for, or were on their way.
    pub missed_bytes: u64,
    /// Bytes read from the files, those ahead of need and the rounding to pages included.
    pub read_bytes: u64,
    /// Time with a read under way.
    pub reading: Duration,
    /// Time with a thread waiting for a tile.
    pub waiting: Duration,
}

impl Statistics {
    /// Bytes that layers asked for.
    pub fn asked_bytes(&self) -> u64 {
        self.hit_bytes + self.needed_bytes()
    }

    /// Bytes that layers asked for and only the files had, whether or not they came in time.
    pub fn needed_bytes(&self) -> u64 {
        self.ahead_bytes + self.missed_bytes
    }

    /// Share of the bytes asked for that had stayed in memory, 0 to 1; 1 where nothing was asked for.
    pub fn hit_rate(&self) -> f64 {
        let all = self.asked_bytes();
        if all == 0 { 1.0 } else { self.hit_bytes as f64 / all as f64 }
    }

    /// Bytes per second while reading; 0 where nothing was read.
    pub fn bandwidth(&self) -> f64 {
        let seconds = self.reading.as_secs_f64();
        if seconds > 0.0 { self.read_bytes as f64 / seconds } else { 0.0 }
    }

    /// The least time in which what was [needed](Self::needed_bytes) can be read at the [bandwidth](Self::bandwidth).
    pub fn least_time(&self) -> Duration {
        let bandwidth = self.bandwidth();
        let seconds = if bandwidth > 0.0 { self.needed_bytes() as f64 / bandwidth } else { 0.0 };
        Duration::from_secs_f64(seconds)
    }

    /// What happened between `earlier` and now.
    pub fn since(&self, earlier: &Statistics) -> Statistics {
        Statistics {
            hit_bytes: self.hit_bytes - earlier.hit_bytes,
            ahead_bytes: self.ahead_bytes - earlier.ahead_bytes,
            missed_bytes: self.missed_bytes - earlier.missed_bytes,
            read_bytes: self.read_bytes - earlier.read_bytes,
            reading: self.reading.saturating_sub(earlier.reading),
            waiting: self.waiting.saturating_sub(earlier.waiting),
        }
    }
}

/// Adds up the time during which at least one of several is at it.
#[derive(Debug, Default)]
pub(crate) struct Busy {
    n: usize,
    since: Option<std::time::Instant>,
    total: Duration,
}

impl Busy {
    pub fn enter(&mut self) {
        self.n += 1;
        self.since.get_or_insert_with(std::time::Instant::now);
    }

    pub fn leave(&mut self) {
        self.n -= 1;
        if self.n == 0 {
            self.total += self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        }
    }

    pub fn total(&self) -> Duration {
        self.total + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    pub fn is_busy(&self) -> bool {
        self.n > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_what_was_asked_for() {
        let earlier = Statistics { hit_bytes: 5, missed_bytes: 5, ..Statistics::default() };
        assert_eq!(Statistics::default().hit_rate(), 1.0);
        let now = Statistics {
            hit_bytes: 35,
            ahead_bytes: 5,
            missed_bytes: 10,
            read_bytes: 40,
            reading: Duration::from_secs(2),
            waiting: Duration::from_secs(1),
        };
        let between = now.since(&earlier);
        assert_eq!((between.hit_rate(), between.bandwidth()), (0.75, 20.0));
        assert_eq!(between.least_time(), Duration::from_millis(500));
    }

    #[test]
    fn overlapping_work_counts_once() {
        let mut busy = Busy::default();
        busy.enter();
        busy.enter();
        std::thread::sleep(Duration::from_millis(20));
        busy.leave();
        assert!(busy.is_busy());
        busy.leave();
        let total = busy.total();
        assert!(total >= Duration::from_millis(20) && !busy.is_busy());
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(busy.total(), total);
    }
}
