//! What the machine could do at best, to hold results against: how fast it reads memory, and how much a token needs.

use super::Test;
use super::measure::Outcome;
use runtime::Model;
use std::hint::black_box;
use std::time::Instant;

/// Bytes that a measurement of memory reads: more than caches hold for long.
const BUFFER_BYTES: usize = 256 << 20;
const PASSES: usize = 4;

/// Memory that is read to see how fast that goes.
pub struct Memory {
    words: Vec<u64>,
}

impl Memory {
    /// Takes the memory.
    pub fn new() -> Memory {
        // Written, as pages that never were are all the same one.
        Memory { words: (0..BUFFER_BYTES as u64 / 8).collect() }
    }

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

/// What a test reached of what there is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reached {
    /// Bytes of weights and of cached keys and values that a single token reads.
    pub bytes_per_token: f64,
    /// Billions of bytes a second, where tokens were computed one by one.
    pub gb_per_s: Option<f64>,
    /// Billions of multiplications and additions with weights a second.
    pub gop_per_s: f64,
    /// Billions of bytes a second that the machine was seen to read with as many threads.
    pub limit_gb_per_s: f64,
}

/// How far `outcome` of `test` came.
pub fn reached(test: &Test, outcome: &Outcome) -> Reached {
    let work = outcome.model.work_per_token();
    let rate = super::stats::median(&outcome.samples.rates());
    // The mean length of the context while single tokens are computed.
    let n_past = f64::from(test.n_depth) + f64::from(test.n_gen) / 2.0;
    let bytes_per_token = work.bytes as f64 + n_past * cell_bytes(&outcome.model, test);
    Reached {
        bytes_per_token,
        gb_per_s: (test.n_prompt == 0).then_some(bytes_per_token * rate / 1e9),
        gop_per_s: 2.0 * work.weights as f64 * rate / 1e9,
        limit_gb_per_s: outcome.read_rate / 1e9,
    }
}

/// Bytes of the keys and values of one token.
fn cell_bytes(model: &Model, test: &Test) -> f64 {
    let h = model.hparams();
    let row = |ty: quants::TensorType, dim: u32| ty.row_bytes(u64::from(dim)).unwrap_or(0) as f64;
    let heads = f64::from(h.n_head_kv) * f64::from(h.n_layer);
    heads * (row(test.type_k, h.head_dim_k) + row(test.type_v, h.head_dim_v))
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
