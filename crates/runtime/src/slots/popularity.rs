//! Which expert of a layer deserves a slot: pure arithmetic on what was asked for.

/// Tokens after which a request counts half.
pub const HALF_LIFE: f64 = 64.0;

/// Requests, decayed, that an expert must be ahead of the one whose slot it takes.
///
/// At an even pace the difference of two decayed counts is the difference of their rates times HALF_LIFE / ln 2: what
/// moving gains in about the next HALF_LIFE tokens. Copying an expert reads as much of the host's memory as computing one
/// request on the CPU, and counts of random requests differ by a few without meaning anything; so a move has to promise
/// several requests, or experts of equal rank would change places for ever.
pub const MARGIN: f64 = 8.0;

/// How often each expert of a layer was asked for lately.
#[derive(Clone, Debug)]
pub struct Popularity {
    score: Vec<f64>,
    decay: f64,
}

/// A change of places.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Swap {
    /// The expert that takes a slot.
    pub enters: u32,
    /// The expert that had it.
    pub leaves: u32,
    /// By how many requests, decayed, the one is ahead of the other.
    pub gain: f64,
}

impl Popularity {
    /// Nothing was asked for yet.
    pub fn new(n_expert: usize) -> Popularity {
        Popularity { score: vec![0.0; n_expert], decay: 0.5f64.powf(1.0 / HALF_LIFE) }
    }

    /// One token took these experts.
    ///
    /// # Panics
    /// When there is no such expert.
    pub fn observe(&mut self, taken: impl IntoIterator<Item = u32>) {
        self.score.iter_mut().for_each(|score| *score *= self.decay);
        for expert in taken {
            self.score[expert as usize] += 1.0;
        }
    }

    /// The tokens of a batch took `ids: [n_used, n_tokens]`.
    ///
    /// # Panics
    /// When there is no such expert.
    pub(crate) fn observe_batch(&mut self, ids: &[i32], n_used: usize) {
        ids.chunks(n_used).for_each(|taken| self.observe(taken.iter().map(|id| *id as u32)));
    }

    /// The most popular of the candidates that are not `inside`.
    pub fn best(&self, inside: &[u32], candidates: &[u32]) -> Option<u32> {
        let outside = candidates.iter().copied().filter(|e| !inside.contains(e));
        outside.max_by(|a, b| self.score[*a as usize].total_cmp(&self.score[*b as usize]))
    }

    /// The most popular of the candidates that are not `inside` for the least popular of those that are, where it is
    /// ahead by [`MARGIN`].
    pub fn swap(&self, inside: &[u32], candidates: &[u32]) -> Option<Swap> {
        let score = |expert: &u32| self.score[*expert as usize];
        let by_score = |a: &u32, b: &u32| score(a).total_cmp(&score(b));
        let leaves = inside.iter().copied().min_by(by_score)?;
        let enters = self.best(inside, candidates)?;
        let gain = score(&enters) - score(&leaves);
        (gain > MARGIN).then_some(Swap { enters, leaves, gain })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hits and moves of a layer with these requests (one for each token) when every swap happens at once.
    fn run(requests: impl Iterator<Item = u32>, n_expert: u32, n_slots: u32) -> (usize, usize) {
        let all: Vec<u32> = (0..n_expert).collect();
        let mut inside: Vec<u32> = (0..n_slots).collect();
        let mut popularity = Popularity::new(n_expert as usize);
        let (mut n_hits, mut n_moves) = (0, 0);
        for request in requests {
            n_hits += usize::from(inside.contains(&request));
            popularity.observe([request]);
            if let Some(swap) = popularity.swap(&inside, &all) {
                inside.retain(|expert| *expert != swap.leaves);
                inside.push(swap.enters);
                n_moves += 1;
            }
        }
        (n_hits, n_moves)
    }

    #[test]
    fn who_is_asked_for_moves_in_once() {
        let (n_hits, n_moves) = run(std::iter::repeat_n(3, 200), 4, 1);
        assert_eq!(n_moves, 1);
        assert!((185..200).contains(&n_hits), "{n_hits}");
        // Two phases, in each of which another pair is asked for in turn.
        let phases = (0..400).map(|i| if i < 200 { i % 2 } else { 2 + i % 2 });
        let (n_hits, n_moves) = run(phases, 4, 2);
        assert_eq!(n_moves, 2);
        assert!((270..400).contains(&n_hits), "{n_hits}");
    }

    #[test]
    fn equals_do_not_change_places_for_ever() {
        // A loop over all, and pseudo-random requests (a linear congruence, Numerical Recipes' constants).
        assert_eq!(run((0..4).cycle().take(4000), 4, 2).1, 0);
        let mut state = 7u32;
        let random = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 30
        });
        let (n_hits, n_moves) = run(random.take(4000), 4, 2);
        assert!(n_moves <= 4000 / 40, "{n_moves} moves in 4000 tokens");
        assert!((1800..2200).contains(&n_hits), "{n_hits}");
    }

    #[test]
    fn only_candidates_move_and_the_least_popular_makes_room() {
        let mut popularity = Popularity::new(5);
        (0..40).for_each(|_| popularity.observe([4, 3, 1]));
        let swap = popularity.swap(&[0, 1], &[0, 1, 2, 3]).expect("far ahead");
        assert_eq!((swap.enters, swap.leaves), (3, 0));
        assert!(swap.gain > MARGIN && swap.gain < 40.0);
        assert_eq!(popularity.swap(&[0, 1], &[0, 1, 2]), None);
        assert_eq!(popularity.swap(&[], &[3]), None);
        assert_eq!(popularity.swap(&[3, 4], &[0, 1, 2, 3, 4]), None);
    }
}
