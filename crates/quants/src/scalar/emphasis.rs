//! How much the error of each weight counts where the importance of its column is known: the importance times the root
//! of the weight's square and the mean square around it, so that large weights count more, and small ones not nothing.

/// The sum of the squares, added up in order.
pub(crate) fn sum_of_squares(weights: &[f32]) -> f32 {
    let mut sum = 0.0;
    for x in weights {
        sum += x * x;
    }
    sum
}

/// `importance * sqrt(mean_square + weight^2)` of each weight.
#[inline]
pub(crate) fn emphasize<const N: usize>(
    weights: &[f32; N],
    importance: &[f32; N],
    mean_square: f32,
) -> [f32; N] {
    std::array::from_fn(|i| importance[i] * (mean_square + weights[i] * weights[i]).sqrt())
}
