//! From inputs of matrix products to sums of squares.
//!
//! Counted as llama-imatrix counts: every token for a plain matrix, for a stack of experts each token for every expert
//! that it takes. Sums are kept in double precision, so that long texts lose nothing.

use ::imatrix::{Entry, Imatrix};
use runtime::session::MatrixInput;
use std::collections::BTreeMap;

/// Sums of the squares of what each weight was multiplied with.
#[derive(Default)]
pub struct Collector {
    sums: BTreeMap<String, Sums>,
    with_output: bool,
}

struct Sums {
    /// `[n_mats][n_in]`.
    squares: Vec<f64>,
    counts: Vec<u64>,
}

impl Collector {
    /// Nothing collected. The output matrix is left out unless `with_output`: its importance is that of a single vector
    /// per token, and llama-quantize by default ignores it.
    pub fn new(with_output: bool) -> Collector {
        Collector { with_output, ..Collector::default() }
    }

    /// Adds one input. It is added up once, however many weights it is multiplied with.
    pub fn add(&mut self, input: &MatrixInput<'_>) {
        let n_in = input.n_in;
        let n_mats = input.experts.map_or(1, |experts| experts.n_expert);
        let mut new = Sums { squares: vec![0.0; n_in * n_mats], counts: vec![0; n_mats] };
        let rows = input.values.chunks_exact(n_in);
        match input.experts {
            None => rows.for_each(|row| new.add(0, row)),
            Some(experts) => {
                // Rows are shared by all experts of a token, or there is one for each.
                let shared = input.values.len() / n_in != experts.ids.len();
                for (i, id) in experts.ids.iter().enumerate() {
                    let row = if shared { i / experts.n_used } else { i };
                    new.add(*id as usize, &input.values[row * n_in..][..n_in]);
                }
            }
        }
        let collected = |name: &&String| self.with_output || name.as_str() != "output.weight";
        for name in input.weights.iter().filter(collected) {
            match self.sums.get_mut(name) {
                None => {
                    let copy = Sums { squares: new.squares.clone(), counts: new.counts.clone() };
                    self.sums.insert(name.clone(), copy);
                }
                Some(sums) => {
                    sums.squares.iter_mut().zip(&new.squares).for_each(|(sum, new)| *sum += new);
                    sums.counts.iter_mut().zip(&new.counts).for_each(|(sum, new)| *sum += new);
                }
            }
        }
    }

    /// What was collected, and the first weight with an input that was no number.
    pub fn finish(self) -> Result<BTreeMap<String, Entry>, String> {
        let mut entries = BTreeMap::new();
        for (name, sums) in self.sums {
            let squares: Vec<f32> = sums.squares.iter().map(|sum| *sum as f32).collect();
            if squares.iter().any(|sum| !sum.is_finite()) {
                return Err(name);
            }
            entries.insert(name, Entry::new(squares, sums.counts));
        }
        Ok(entries)
    }
}

impl Sums {
    fn add(&mut self, mat: usize, row: &[f32]) {
        let sums = &mut self.squares[mat * row.len()..][..row.len()];
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
        self.counts[mat] += 1;
    }
}

/// Experts that no token reached, by weight.
pub fn unreached(imatrix: &Imatrix) -> Vec<(&str, Vec<usize>)> {
    let none = |entry: &Entry| -> Vec<usize> {
        entry.counts.iter().enumerate().filter(|(_, count)| **count == 0).map(|(i, _)| i).collect()
    };
    let by_weight = imatrix.entries.iter().map(|(name, entry)| (name.as_str(), none(entry)));
    by_weight.filter(|(_, experts)| !experts.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::session::ExpertRows;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn every_token_counts_for_a_plain_matrix() {
        let mut collector = Collector::new(false);
        let weights = names(&["a", "b"]);
        for values in [[1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 0.0, 1.0]] {
            collector.add(&MatrixInput { weights: &weights, values: &values, n_in: 2, experts: None });
        }
        let entries = collector.finish().expect("numbers");
        for name in ["a", "b"] {
            assert_eq!(entries[name], Entry::new(vec![10.0, 22.0], vec![4]));
        }
    }

    #[test]
    fn experts_get_the_tokens_that_chose_them() {
        let weights = names(&["e"]);
        let experts = ExpertRows { ids: &[2, 0, 2, 1], n_used: 2, n_expert: 4 };
        let mut shared = Collector::new(false);
        shared.add(&MatrixInput { weights: &weights, values: &[1.0, 3.0], n_in: 1, experts: Some(experts) });
        let shared = shared.finish().expect("numbers");
        assert_eq!(shared["e"], Entry::new(vec![1.0, 9.0, 10.0, 0.0], vec![1, 1, 2, 0]));
        let mut own = Collector::new(false);
        let values = [1.0, 2.0, 3.0, 4.0];
        own.add(&MatrixInput { weights: &weights, values: &values, n_in: 1, experts: Some(experts) });
        let own = own.finish().expect("numbers");
        assert_eq!(own["e"], Entry::new(vec![4.0, 16.0, 10.0, 0.0], vec![1, 1, 2, 0]));

        let imatrix = Imatrix { entries: own, ..Imatrix::default() };
        assert_eq!(unreached(&imatrix), [("e", vec![3])]);
    }

    #[test]
    fn the_output_matrix_is_left_out_unless_wanted() {
        let weights = names(&["output.weight"]);
        for wanted in [false, true] {
            let mut collector = Collector::new(wanted);
            collector.add(&MatrixInput { weights: &weights, values: &[1.0], n_in: 1, experts: None });
            assert_eq!(collector.finish().expect("numbers").len(), usize::from(wanted));
        }
    }

    #[test]
    fn what_is_no_number_is_named() {
        let weights = names(&["a"]);
        let mut collector = Collector::new(false);
        collector.add(&MatrixInput { weights: &weights, values: &[f32::NAN], n_in: 1, experts: None });
        assert_eq!(collector.finish(), Err("a".to_owned()));
    }
}
