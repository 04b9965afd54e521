//! Experts that are read from the file: what each repetition found in memory, what the disk gave around it, and what a plan
//! with these figures expects.
//!
//! Disks of virtual machines are twice as fast in one minute as in the next, and which experts are taken is known only
//! afterwards. So a plan's error has three parts: the disk, the hits, and what is left is the plan's own.

use super::stats::mean;
use gguf::Gguf;
use runtime::bandwidth::FileMeter;
use runtime::plan::Plan;
use runtime::{Error, StreamReaders, StreamStatistics};
use std::time::Duration;

/// Samples of the disk before and after each repetition.
const N_SAMPLES: usize = 3;

/// Measures the disk around repetitions.
pub struct Disk(FileMeter);

impl Disk {
    /// A meter for the file of a model; `None` where that has no experts.
    ///
    /// # Errors
    /// Where it can't be read.
    pub fn new(gguf: &Gguf, readers: StreamReaders) -> Result<Option<Disk>, Error> {
        // The model has taken what it may, or will.
        Ok(FileMeter::of_model(gguf, readers, 0)?.map(Disk))
    }

    /// Takes a few samples, and forgets those that were taken before the last call.
    ///
    /// # Errors
    /// Where the file can't be read.
    pub fn sample(&mut self) -> Result<(), Error> {
        self.0.keep_last(N_SAMPLES);
        (0..N_SAMPLES).try_for_each(|_| self.0.sample())
    }

    /// Bytes a second: the median of the samples of the last two calls.
    pub fn rate(&self) -> f64 {
        self.0.rate().bytes_per_second
    }
}

/// One repetition.
#[derive(Clone, Copy, Debug)]
pub struct Repetition {
    /// What the pool did.
    pub done: StreamStatistics,
    /// How long it took.
    pub time: Duration,
    /// Tokens.
    pub n_tokens: u32,
    /// Bytes a second that the disk gave right before and after.
    pub disk: f64,
}

impl Repetition {
    /// The least share of the time in which the disk can give what was missing, 0 to 1, at the rate at which it was read.
    fn of_limit(&self) -> f64 {
        self.done.least_time().as_secs_f64() / self.time.as_secs_f64().max(1e-9)
    }
}

/// What all repetitions of a test did, on average.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Streamed {
    /// Share of the experts' bytes found in memory.
    pub hit_rate: f64,
    /// Bytes read for each token.
    pub bytes_per_token: f64,
    /// Bytes a second while reading.
    pub read_rate: f64,
    /// Bytes a second that the disk gave before and after.
    pub disk_rate: f64,
    /// Share of the time that reading what was missing would have taken alone.
    pub of_limit: f64,
    /// Single tokens a second that the plan expects at that rate of the disk; `None` without a plan.
    pub expected_with_disk: Option<f64>,
    /// And with as many hits.
    pub expected_with_both: Option<f64>,
}

impl Streamed {
    /// Of these repetitions, where there are any; `plan` is that of the model.
    pub fn of(repetitions: &[Repetition], plan: Option<&Plan>) -> Option<Streamed> {
        if repetitions.is_empty() {
            return None;
        }
        let average = |of: &dyn Fn(&Repetition) -> f64| mean(&repetitions.iter().map(of).collect::<Vec<_>>());
        let expected = |hits: &dyn Fn(&Repetition) -> Option<f64>| {
            plan.map(|plan| average(&|r| plan.tokens_per_second_with(r.disk, hits(r))))
        };
        Some(Streamed {
            hit_rate: average(&|r| r.done.hit_rate()),
            bytes_per_token: average(&|r| r.done.read_bytes as f64 / f64::from(r.n_tokens.max(1))),
            read_rate: average(&|r| r.done.bandwidth()),
            disk_rate: average(&|r| r.disk),
            of_limit: average(&Repetition::of_limit),
            expected_with_disk: expected(&|_| None),
            expected_with_both: expected(&|r| Some(r.done.hit_rate())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_are_averaged() {
        let repetition = |hits: u64, seconds, disk| Repetition {
            done: StreamStatistics {
                hit_bytes: hits,
                ahead_bytes: 0,
                missed_bytes: 100 - hits,
                read_bytes: 200,
                reading: Duration::from_secs(2),
                waiting: Duration::ZERO,
            },
            time: Duration::from_secs(seconds),
            n_tokens: 4,
            disk,
        };
        assert_eq!(Streamed::of(&[], None), None);
        let found = Streamed::of(&[repetition(20, 1, 10.0), repetition(60, 2, 30.0)], None);
        let found = found.expect("two repetitions");
        assert_eq!((found.hit_rate, found.bytes_per_token, found.disk_rate), (0.4, 50.0, 20.0));
        // 80 of 100 bytes a second in one second, 40 in two.
        assert!((found.of_limit - 0.5).abs() < 1e-9, "{found:?}");
        assert_eq!((found.read_rate, found.expected_with_both), (100.0, None));
    }
}
