//! What a trace says about each layer.

use crate::cache::{self, Policy};
use crate::trace::{EarlyGuess, LayerTrace, Trace};

/// All layers of a trace, and their means.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// In the order of the trace.
    pub layers: Vec<LayerReport>,
    /// For each policy in the order of [`Policy::ALL`]: share of hits with 0, 1, ... `n_expert` slots in every layer.
    pub hit_rates: [Vec<f64>; 4],
}

/// One layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerReport {
    /// Index of the layer in the model.
    pub layer: usize,
    /// For each expert its share of all choices; they sum to 1.
    pub shares: Vec<f64>,
    /// For each expert its share of all weight; they sum to 1.
    pub weights: Vec<f64>,
    /// Share of a token's experts that the next token takes too; `None` where no token has a next one.
    pub stickiness: Option<f64>,
    /// What the stickiness would be if tokens chose independently of each other, each expert by its share.
    pub chance: f64,
    /// Share of tokens whose likeliest expert is that of the token before; `None` as above.
    pub same_first: Option<f64>,
    /// How well the choice is known one layer early; `None` where there is no layer before.
    pub early: Option<Early>,
    /// As [`Report::hit_rates`].
    pub hit_rates: [Vec<f64>; 4],
}

/// Agreement of the router with its own choice one layer early.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Early {
    /// Share of tokens whose likeliest expert was foreseen as the likeliest.
    pub top_1: f64,
    /// Share of the experts taken that were among those foreseen.
    pub top_k: f64,
    /// Share of tokens all of whose experts were foreseen, in any order.
    pub all: f64,
}

impl Report {
    /// The report on a valid trace.
    ///
    /// # Panics
    /// When the trace is not [valid](Trace::validate).
    pub fn new(trace: &Trace) -> Report {
        assert_eq!(trace.validate(), Ok(()), "a valid trace");
        let layers: Vec<LayerReport> = trace.layers.iter().map(|layer| layer_report(trace, layer)).collect();
        let hit_rates = std::array::from_fn(|policy| {
            let curves: Vec<&[f64]> = layers.iter().map(|layer| &layer.hit_rates[policy][..]).collect();
            mean_curve(&curves, trace.n_expert + 1)
        });
        Report { layers, hit_rates }
    }

    /// Mean over the layers that have the value; `None` where none has.
    pub fn mean(&self, value: impl Fn(&LayerReport) -> Option<f64>) -> Option<f64> {
        mean(self.layers.iter().filter_map(value))
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0usize), |(sum, n), value| (sum + value, n + 1));
    (n > 0).then(|| sum / n as f64)
}

fn mean_curve(curves: &[&[f64]], len: usize) -> Vec<f64> {
    (0..len).map(|i| mean(curves.iter().map(|curve| curve[i])).unwrap_or(0.0)).collect()
}

fn layer_report(trace: &Trace, layer: &LayerTrace) -> LayerReport {
    let (n_expert, n_used) = (trace.n_expert, trace.n_used);
    let mut counts = vec![0.0; n_expert];
    let mut weights = vec![0.0; n_expert];
    for (expert, weight) in layer.experts.iter().zip(&layer.weights) {
        counts[*expert as usize] += 1.0;
        weights[*expert as usize] += f64::from(*weight);
    }
    let shares = to_shares(counts);
    let neighbours = || {
        trace.sequence_ranges().flat_map(|range| range.skip(1)).map(|token| {
            let at = |token: usize| &layer.experts[token * n_used..(token + 1) * n_used];
            (at(token - 1), at(token))
        })
    };
    let kept = mean(neighbours().map(|(before, now)| common(before, now) as f64 / n_used as f64));
    let same_first = mean(neighbours().map(|(before, now)| f64::from(u8::from(before[0] == now[0]))));
    LayerReport {
        layer: layer.layer,
        chance: shares.iter().map(|share| share * share).sum::<f64>() * n_used as f64,
        shares,
        weights: to_shares(weights),
        stickiness: kept,
        same_first,
        early: layer.early.as_ref().and_then(|guess| early(layer, guess, n_used)),
        hit_rates: Policy::ALL.map(|policy| cache::curve(policy, &layer.experts, n_used, n_expert)),
    }
}

/// Experts in both lists.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().filter(|expert| b.contains(expert)).count()
}

/// Divided by their sum; as they are where that is 0.
fn to_shares(mut values: Vec<f64>) -> Vec<f64> {
    let sum: f64 = values.iter().sum();
    if sum > 0.0 {
        values.iter_mut().for_each(|value| *value /= sum);
    }
    values
}

fn early(layer: &LayerTrace, guess: &EarlyGuess, n_used: usize) -> Option<Early> {
    let pairs = || layer.experts.chunks_exact(n_used).zip(guess.0.chunks_exact(n_used));
    let share = |value: &dyn Fn(&[u32], &[u32]) -> f64| mean(pairs().map(|(taken, seen)| value(taken, seen)));
    Some(Early {
        top_1: share(&|taken, seen| f64::from(u8::from(taken[0] == seen[0])))?,
        top_k: share(&|taken, seen| common(taken, seen) as f64 / n_used as f64)?,
        all: share(&|taken, seen| f64::from(u8::from(common(taken, seen) == n_used)))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(experts: Vec<u32>, early: Option<Vec<u32>>, sequences: Vec<usize>) -> Trace {
        let n = experts.len();
        Trace {
            n_expert: 4,
            n_used: 2,
            tokens: vec![7; n / 2],
            sequences,
            layers: vec![LayerTrace {
                layer: 3,
                experts,
                weights: [0.75, 0.25].repeat(n / 2),
                early: early.map(EarlyGuess),
            }],
            ..Trace::default()
        }
    }

    #[test]
    fn shares_and_weights_sum_to_one() {
        let report = Report::new(&trace(vec![0, 1, 0, 2, 0, 1, 1, 0], None, vec![4]));
        let layer = &report.layers[0];
        assert_eq!(layer.layer, 3);
        assert_eq!(layer.shares, [0.5, 0.375, 0.125, 0.0]);
        assert_eq!(layer.weights, [(3.0 * 0.75 + 0.25) / 4.0, (0.75 + 0.5) / 4.0, 0.25 / 4.0, 0.0]);
        assert_eq!(layer.chance, (0.25 + 0.140625 + 0.015625) * 2.0);
        assert_eq!(layer.early, None);
        assert_eq!(report.hit_rates[1], [0.0, 0.5, 0.875, 1.0, 1.0]);
    }

    #[test]
    fn neighbours_are_those_of_one_sequence() {
        let experts = vec![0, 1, 1, 0, 2, 3, 2, 0];
        let whole = Report::new(&trace(experts.clone(), None, vec![4]));
        assert_eq!(whole.layers[0].stickiness, Some((1.0 + 0.0 + 0.5) / 3.0));
        assert_eq!(whole.layers[0].same_first, Some(1.0 / 3.0));
        let cut = Report::new(&trace(experts.clone(), None, vec![2, 2]));
        assert_eq!(cut.layers[0].stickiness, Some(0.75));
        let single = Report::new(&trace(experts, None, vec![1; 4]));
        assert_eq!((single.layers[0].stickiness, single.layers[0].same_first), (None, None));
    }

    #[test]
    fn what_was_foreseen_is_counted_by_rank_and_by_set() {
        let report = Report::new(&trace(vec![0, 1, 2, 3], Some(vec![1, 0, 2, 1]), vec![2]));
        assert_eq!(report.layers[0].early, Some(Early { top_1: 0.5, top_k: 0.75, all: 0.5 }));
        assert_eq!(report.mean(|layer| layer.early.map(|e| e.top_k)), Some(0.75));
    }

    #[test]
    fn an_empty_trace_has_an_empty_report() {
        let report = Report::new(&trace(vec![], Some(vec![]), vec![]));
        assert_eq!(report.layers[0].shares, [0.0; 4]);
        assert_eq!(report.layers[0].early, None);
        assert_eq!(report.mean(|layer| layer.stickiness), None);
    }
}
