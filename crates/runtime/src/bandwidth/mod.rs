//! How fast this machine reads: memory, files, and weights that it multiplies with.
//!
//! Each measurement takes a fraction of a second and shares the machine with whatever else runs, as the model will.

mod disk;
mod memory;
mod weights;

pub use disk::{FileRate, file_rate};
pub use memory::Memory;
pub use weights::{Multiplier, Sample};

/// The middle one, or the mean of the two middle ones; 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_middle_of_measurements() {
        assert_eq!(median(vec![]), 0.0);
        assert_eq!(median(vec![3.0, 1.0, 9.0]), 3.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 9.0]), 3.0);
    }
}
