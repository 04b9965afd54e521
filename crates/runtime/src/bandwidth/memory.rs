//! How fast threads read memory when they do nothing else.

use super::cache::last_level_bytes;
use memmap2::MmapMut;
use std::hint::black_box;
use std::io;
use std::time::Instant;

/// Bytes that a measurement reads, at least and at most: between, it is a multiple of what caches hold.
const MIN_BYTES: u64 = 256 << 20;
const MAX_BYTES: u64 = 1 << 30;
/// Streams in which a thread reads its share, as kernels do; which way is fastest depends on the machine.
const STREAMS: [usize; 2] = [1, 8];
const PASSES_EACH: usize = 3;
/// Words of a stream that are read at a time.
const RUN: usize = 32;

/// Memory that is read to see how fast that goes.
pub struct Memory {
    bytes: MmapMut,
}

impl Memory {
    /// Takes memory, in large pages where the system has them.
    ///
    /// # Errors
    /// Where there is none.
    pub fn new() -> io::Result<Self> {
        let n_bytes = (2 * last_level_bytes().unwrap_or(0)).clamp(MIN_BYTES, MAX_BYTES);
        let mut bytes = MmapMut::map_anon(n_bytes as usize)?;
        #[cfg(target_os = "linux")]
        let _ = bytes.advise(memmap2::Advice::HugePage);
        // Pages that were never written are all the same one.
        bytes.fill(1);
        Ok(Memory { bytes })
    }

    /// Bytes a second that `n_threads` threads read together: the best of a few passes, in one stream and in several.
    pub fn read_rate(&self, n_threads: u32) -> f64 {
        let words = self.bytes.as_chunks::<8>().0;
        let share = words.len().div_ceil(n_threads.max(1) as usize);
        let pass = |n_streams: usize| {
            let start = Instant::now();
            std::thread::scope(|scope| {
                for words in words.chunks(share) {
                    scope.spawn(move || black_box(sum(words, n_streams)));
                }
            });
            self.bytes.len() as f64 / start.elapsed().as_secs_f64().max(1e-9)
        };
        STREAMS.iter().cycle().take(PASSES_EACH * STREAMS.len()).map(|n| pass(*n)).fold(0.0, f64::max)
    }
}

/// All words together, read in so many streams at once.
fn sum(words: &[[u8; 8]], n_streams: usize) -> u64 {
    let share = words.len() / n_streams / RUN * RUN;
    // Sixteen sums, so that loads never wait for an addition.
    let mut sums = [0u64; 16];
    let mut add = |words: &[[u8; 8]]| {
        // Of a length that the compiler knows, so that it makes vectors of them.
        let (chunks, rest) = words.as_chunks::<16>();
        for chunk in chunks {
            for (sum, word) in sums.iter_mut().zip(chunk) {
                *sum ^= u64::from_ne_bytes(*word);
            }
        }
        for (sum, word) in sums.iter_mut().zip(rest) {
            *sum ^= u64::from_ne_bytes(*word);
        }
    };
    for at in (0..share).step_by(RUN) {
        for stream in words.chunks_exact(share).take(n_streams) {
            add(&stream[at..at + RUN]);
        }
    }
    add(&words[n_streams * share..]);
    sums.iter().fold(0, |all, sum| all ^ sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read() {
        let words: Vec<u64> = (1..=1000).collect();
        let bytes: Vec<[u8; 8]> = words.iter().map(|word| word.to_ne_bytes()).collect();
        for n_streams in STREAMS {
            assert_eq!(sum(&bytes, n_streams), words.iter().fold(0, |all, word| all ^ word), "{n_streams}");
        }
    }
}
