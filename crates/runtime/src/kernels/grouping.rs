//! Which tokens take which expert.

use std::cell::RefCell;
use std::ops::Range;

/// The choices of a batch, sorted by expert; those of one expert keep the order of the tokens.
#[derive(Default)]
pub(super) struct Grouping {
    /// Where each expert's choices begin in `choices`, and last where they end.
    starts: Vec<u32>,
    /// Number of a choice: token * n_used + rank.
    pub choices: Vec<u32>,
    /// Experts that are chosen at all, in order.
    pub active: Vec<u32>,
}

impl Grouping {
    /// What `work` makes of the grouping of `ids`, an expert for each choice. A device that failed leaves any numbers;
    /// nobody wants what follows, but it must be experts: numbers that are none count as the first.
    pub fn with<R>(ids: &[i32], n_expert: usize, work: impl FnOnce(&Grouping) -> R) -> R {
        thread_local! {
            static KEPT: RefCell<Grouping> = RefCell::default();
        }
        KEPT.with_borrow_mut(|grouping| {
            grouping.group(ids, n_expert);
            work(grouping)
        })
    }

    /// Places of an expert's choices.
    pub fn of(&self, expert: usize) -> Range<usize> {
        self.starts[expert] as usize..self.starts[expert + 1] as usize
    }

    fn group(&mut self, ids: &[i32], n_expert: usize) {
        // Counted one place further than they begin, so that filling moves each start to where it belongs.
        self.starts.clear();
        self.starts.resize(n_expert + 2, 0);
        let expert_of = |id: i32| usize::try_from(id).ok().filter(|e| *e < n_expert).unwrap_or(0);
        for id in ids {
            self.starts[expert_of(*id) + 2] += 1;
        }
        for expert in 2..n_expert + 2 {
            self.starts[expert] += self.starts[expert - 1];
        }
        self.choices.clear();
        self.choices.resize(ids.len(), 0);
        for (choice, id) in (0..).zip(ids) {
            let place = &mut self.starts[expert_of(*id) + 1];
            self.choices[*place as usize] = choice;
            *place += 1;
        }
        self.starts.truncate(n_expert + 1);
        self.active.clear();
        let starts = &self.starts;
        self.active.extend((0..n_expert as u32).filter(|e| starts[*e as usize] < starts[*e as usize + 1]));
    }
}

#[cfg(test)]
mod tests {
    use super::Grouping;

    #[test]
    fn choices_are_sorted_by_expert_and_keep_the_order_of_tokens() {
        // Three tokens with two experts each, of four.
        Grouping::with(&[2, 0, 2, 3, 0, 2], 4, |grouping| {
            assert_eq!(grouping.choices, [1, 4, 0, 2, 5, 3]);
            assert_eq!(
                (grouping.of(0), grouping.of(1), grouping.of(2), grouping.of(3)),
                (0..2, 2..2, 2..5, 5..6)
            );
            assert_eq!(grouping.active, [0, 2, 3]);
        });
    }

    #[test]
    fn any_numbers_are_grouped() {
        Grouping::with(&[4, 3, -1, i32::MIN, 0, i32::MAX], 4, |grouping| {
            assert_eq!(grouping.choices, [0, 2, 3, 4, 5, 1]);
            assert_eq!((grouping.of(0), grouping.of(3)), (0..5, 5..6));
            assert_eq!(grouping.active, [0, 3]);
        });
    }
}
