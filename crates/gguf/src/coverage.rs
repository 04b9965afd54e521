//! Which bytes of a range have been written: a set of disjoint intervals.

use std::collections::BTreeMap;
use std::ops::Range;

/// Disjoint intervals, start to end; neighbours are merged, so that writing in order keeps one.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    intervals: BTreeMap<u64, u64>,
}

impl Coverage {
    pub fn add(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        // Of the intervals that begin at or before the end, the last ones may touch the new one.
        while let Some((&other_start, &other_end)) = self.intervals.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            self.intervals.remove(&other_start);
            start = start.min(other_start);
            end = end.max(other_end);
        }
        self.intervals.insert(start, end);
    }

    /// Number of bytes covered.
    pub fn total(&self) -> u64 {
        self.intervals.iter().map(|(start, end)| end - start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_written_twice_count_once() {
        let mut coverage = Coverage::default();
        coverage.add(0..10);
        coverage.add(5..10);
        coverage.add(7..7);
        assert_eq!(coverage.total(), 10);
    }

    #[test]
    fn neighbours_become_one_in_any_order() {
        let mut coverage = Coverage::default();
        for start in [40, 0, 20, 60, 10, 50, 30] {
            coverage.add(start..start + 10);
        }
        assert_eq!(coverage.intervals, BTreeMap::from([(0, 70)]));
    }

    proptest::proptest! {
        #[test]
        fn equals_a_set_of_bytes(ranges in proptest::collection::vec((0u64..64, 0u64..16), 0..20)) {
            let mut coverage = Coverage::default();
            let mut bytes = std::collections::BTreeSet::new();
            for (start, len) in ranges {
                coverage.add(start..start + len);
                bytes.extend(start..start + len);
                proptest::prop_assert_eq!(coverage.total(), bytes.len() as u64);
            }
        }
    }
}
