//! Adds up what was collected on several texts.

use crate::{Entry, Imatrix};

/// Two entries of one name that are of different weights.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: found {found}, expected {expected}, as in what was collected before")]
pub struct Mismatch {
    /// The weight.
    pub name: String,
    /// Sums and counts in the file that was to be added.
    pub found: String,
    /// Those that were there.
    pub expected: String,
}

impl Imatrix {
    /// Adds sums and counts of another text, as llama-imatrix's `--in-file` does. Those of the legacy format are means
    /// times calls; they become sums with the tokens in a chunk of `self`.
    ///
    /// # Errors
    /// A weight has another size there; `self` is then as it was.
    pub fn add(&mut self, other: &Imatrix) -> Result<(), Mismatch> {
        let scale = if other.chunk_size == 0 { u64::from(self.chunk_size.max(1)) } else { 1 };
        for (name, entry) in &other.entries {
            let Some(old) = self.entries.get(name) else { continue };
            let broadcast = old.counts.len() == 1 || entry.counts.len() == 1;
            if old.sums.len() != entry.sums.len() || (old.counts.len() != entry.counts.len() && !broadcast) {
                let shown = |e: &Entry| format!("{} sums and {} counts", e.sums.len(), e.counts.len());
                return Err(Mismatch { name: name.clone(), found: shown(entry), expected: shown(old) });
            }
        }
        for (name, entry) in &other.entries {
            let sums = entry.sums.iter().map(|sum| sum * scale as f32);
            let counts = entry.counts.iter().map(|count| count * scale);
            match self.entries.get_mut(name) {
                None => {
                    self.entries.insert(name.clone(), Entry::new(sums.collect(), counts.collect()));
                }
                Some(old) => {
                    old.sums.iter_mut().zip(sums).for_each(|(old, new)| *old += new);
                    let counts: Vec<u64> = counts.collect();
                    // One count for a stack is that of each of its matrices.
                    let n = old.counts.len().max(counts.len());
                    let at = |list: &[u64], i: usize| if list.len() == 1 { list[0] } else { list[i] };
                    old.counts = (0..n).map(|i| at(&old.counts, i) + at(&counts, i)).collect();
                }
            }
        }
        self.datasets.extend(other.datasets.iter().cloned());
        Ok(())
    }

    /// Sets the number of chunks to what the counts say, as llama-imatrix does.
    pub fn count_chunks(&mut self) {
        let most = self.entries.values().flat_map(|entry| &entry.counts).max().copied().unwrap_or(0);
        self.chunk_count = u32::try_from(most / u64::from(self.chunk_size.max(1))).unwrap_or(u32::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imatrix(chunk_size: u32, entries: &[(&str, Vec<f32>, Vec<u64>)]) -> Imatrix {
        let entries = entries.iter().map(|(n, s, c)| ((*n).to_owned(), Entry::new(s.clone(), c.clone())));
        Imatrix { entries: entries.collect(), datasets: vec!["t".to_owned()], chunk_count: 0, chunk_size }
    }

    #[test]
    fn sums_and_counts_add_up() {
        let mut total = imatrix(4, &[("a", vec![1.0, 2.0], vec![8])]);
        let more = imatrix(4, &[("a", vec![3.0, 4.0], vec![4]), ("b", vec![5.0], vec![4])]);
        total.add(&more).expect("equal sizes");
        total.count_chunks();
        assert_eq!(total.entries["a"], Entry::new(vec![4.0, 6.0], vec![12]));
        assert_eq!(total.entries["b"], Entry::new(vec![5.0], vec![4]));
        assert_eq!((total.chunk_count, total.datasets.len()), (3, 2));
    }

    #[test]
    fn the_legacy_format_counts_calls() {
        let mut total = imatrix(4, &[("e", vec![1.0, 1.0], vec![4, 0])]);
        total.add(&imatrix(0, &[("e", vec![0.5, 2.0], vec![3])])).expect("equal sizes");
        assert_eq!(total.entries["e"], Entry::new(vec![3.0, 9.0], vec![16, 12]));
    }

    #[test]
    fn other_sizes_are_refused_and_nothing_changes() {
        let mut total = imatrix(4, &[("a", vec![1.0], vec![4]), ("e", vec![1.0; 6], vec![1, 2])]);
        let before = total.clone();
        for other in [
            imatrix(4, &[("a", vec![1.0], vec![4]), ("e", vec![1.0; 4], vec![1, 2])]),
            imatrix(4, &[("e", vec![1.0; 6], vec![1, 2, 3])]),
        ] {
            assert_eq!(total.add(&other).expect_err("refused").name, "e");
            assert_eq!(total, before);
        }
    }
}
