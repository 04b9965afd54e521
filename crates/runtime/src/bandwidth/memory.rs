//! How fast threads read memory when they do nothing else.

use std::hint::black_box;
use std::time::Instant;

/// Bytes that a measurement reads: more than caches hold for long.
const BUFFER_BYTES: usize = 256 << 20;
const PASSES: usize = 4;

/// Memory that is read to see how fast that goes.
pub struct Memory {
    words: Vec<u64>,
}

impl Default for Memory {
    /// Takes the memory.
    fn default() -> Self {
        // Written, as pages that never were are all the same one.
        Memory { words: (0..BUFFER_BYTES as u64 / 8).collect() }
    }
}

impl Memory {
    /// Bytes a second that `n_threads` threads read together: the best of a few passes.
    pub fn read_rate(&self, n_threads: u32) -> f64 {
        let share = self.words.len().div_ceil(n_threads.max(1) as usize);
        let pass = || {
            let start = Instant::now();
            std::thread::scope(|scope| {
                for words in self.words.chunks(share) {
                    scope.spawn(move || black_box(sum(words)));
                }
            });
            BUFFER_BYTES as f64 / start.elapsed().as_secs_f64().max(1e-9)
        };
        (0..PASSES).map(|_| pass()).fold(0.0, f64::max)
    }
}

/// Sixteen sums, so that loads never wait for an addition.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; 16];
    for chunk in words.chunks_exact(sums.len()) {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum ^= word;
        }
    }
    sums.iter().fold(0, |all, sum| all ^ sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read() {
        let words: Vec<u64> = (1..=64).collect();
        assert_eq!(sum(&words), words.iter().fold(0, |all, word| all ^ word));
    }
}
