//! Uniform random numbers from a 32-bit Mersenne Twister (MT19937), the generator behind `std::mt19937`.
//!
//! The constants are those of Matsumoto and Nishimura, "Mersenne Twister: a 623-dimensionally equidistributed
//! uniform pseudorandom number generator" (1998), as the C++ standard fixes them. A double is drawn the way
//! libstdc++'s `std::uniform_real_distribution<double>` does, so that a seed picks the same tokens here as in a
//! llama.cpp built with GCC on the same logits.

const N: usize = 624;
const M: usize = 397;

/// The generator's state; equal seeds give equal sequences on every machine.
#[derive(Clone)]
pub(super) struct Mt19937 {
    state: Box<[u32; N]>,
    next: usize,
}

impl Mt19937 {
    /// A generator that starts where `std::mt19937(seed)` does.
    pub(super) fn new(seed: u32) -> Self {
        let mut state = Box::new([0u32; N]);
        state[0] = seed;
        for i in 1..N {
            let before = state[i - 1];
            state[i] = (before ^ (before >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Mt19937 { state, next: N }
    }

    fn refill(&mut self) {
        for i in 0..N {
            let joined = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let twist = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (joined >> 1) ^ twist;
        }
        self.next = 0;
    }

    /// The next 32 random bits.
    pub(super) fn next_u32(&mut self) -> u32 {
        if self.next == N {
            self.refill();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// A number in `0.0..1.0`, from two draws: the first is the low word, the second the high one.
    pub(super) fn next_f64(&mut self) -> f64 {
        const WORD: f64 = 4_294_967_296.0;
        let low = f64::from(self.next_u32());
        let high = f64::from(self.next_u32());
        let unit = (low + high * WORD) / (WORD * WORD);
        // Rounding can reach 1.0, which the interval excludes.
        if unit < 1.0 { unit } else { 1.0f64.next_down() }
    }
}

#[cfg(test)]
mod tests {
    use super::Mt19937;

    #[test]
    fn the_ten_thousandth_draw_is_the_one_the_cpp_standard_names() {
        let mut rng = Mt19937::new(5489);
        let mut last = 0;
        for _ in 0..10_000 {
            last = rng.next_u32();
        }
        assert_eq!(last, 4_123_659_995);
    }

    #[test]
    fn doubles_fill_the_unit_interval_evenly() {
        let mut rng = Mt19937::new(1);
        let mut buckets = [0u32; 16];
        for _ in 0..160_000 {
            let x = rng.next_f64();
            assert!((0.0..1.0).contains(&x));
            buckets[(x * 16.0) as usize] += 1;
        }
        // 10000 expected in each, standard deviation about 97.
        assert!(buckets.iter().all(|&n| n.abs_diff(10_000) < 500), "{buckets:?}");
    }
}
