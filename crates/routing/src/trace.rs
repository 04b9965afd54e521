//! The record itself.

use crate::Error;
use std::ops::Range;

/// Which experts each token of a text took, layer by layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// The model's name, for people.
    pub model: String,
    /// Experts of a layer.
    pub n_expert: usize,
    /// Experts that each token takes.
    pub n_used: usize,
    /// Where each expert came from, by index; empty where nobody knows.
    pub expert_names: Vec<String>,
    /// The tokens, sequence after sequence.
    pub tokens: Vec<u32>,
    /// Number of tokens of each sequence; a sequence was read into an empty context.
    pub sequences: Vec<usize>,
    /// The layers with a router, in order.
    pub layers: Vec<LayerTrace>,
}

/// What one layer's router did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerTrace {
    /// Index of the layer in the model.
    pub layer: usize,
    /// `[n_tokens][n_used]`: the experts each token took, the likeliest first.
    pub experts: Vec<u32>,
    /// `[n_tokens][n_used]`: their weights, which sum to 1 for each token.
    pub weights: Vec<f32>,
    /// `[n_tokens][n_used]`: the experts this router would have chosen one layer early: its norm and matrix applied to the
    /// hidden state that the layer before it routes by. `None` for the first layer.
    pub early: Option<EarlyGuess>,
}

/// Experts foreseen, `[n_tokens][n_used]`, the likeliest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EarlyGuess(pub Vec<u32>);

impl Trace {
    /// Number of tokens of all sequences.
    pub fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// The tokens of each sequence, as ranges of indices.
    pub fn sequence_ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.sequences.iter().scan(0, |end, n| {
            let start = *end;
            *end += n;
            Some(start..*end)
        })
    }

    /// The name of an expert; `expert 3` where nobody knows.
    pub fn expert_name(&self, expert: usize) -> String {
        self.expert_names.get(expert).cloned().unwrap_or_else(|| format!("expert {expert}"))
    }

    /// Whether every part has the size and range that the others ask for.
    ///
    /// # Errors
    /// [`Error::Field`] names the first that has not.
    pub fn validate(&self) -> Result<(), Error> {
        let wrong = |field: &str, found: String, expected: String| {
            Err(Error::Field { field: field.to_owned(), found, expected })
        };
        if !(1..=u16::MAX as usize).contains(&self.n_expert) {
            return wrong("n_expert", self.n_expert.to_string(), "1 to 65535".to_owned());
        }
        if !(1..=self.n_expert).contains(&self.n_used) {
            return wrong("n_used", self.n_used.to_string(), format!("1 to {}", self.n_expert));
        }
        if !self.expert_names.is_empty() && self.expert_names.len() != self.n_expert {
            let found = format!("{} names", self.expert_names.len());
            return wrong("expert_names", found, format!("none or {}", self.n_expert));
        }
        let n_tokens = self.n_tokens();
        let in_sequences = self.sequences.iter().try_fold(0usize, |sum, n| sum.checked_add(*n));
        if in_sequences != Some(n_tokens) {
            return wrong(
                "sequences",
                format!("{:?}", self.sequences),
                format!("a sum of {n_tokens} tokens"),
            );
        }
        let n = n_tokens.saturating_mul(self.n_used);
        for (index, layer) in self.layers.iter().enumerate() {
            let field = |name: &str| format!("layers[{index}].{name}");
            if index > 0 && layer.layer <= self.layers[index - 1].layer {
                return wrong(&field("layer"), layer.layer.to_string(), "rising layers".to_owned());
            }
            if layer.weights.len() != n {
                return wrong(&field("weights"), format!("{} numbers", layer.weights.len()), format!("{n}"));
            }
            if let Some(weight) = layer.weights.iter().find(|w| !(0.0..=1.001).contains(*w)) {
                return wrong(&field("weights"), weight.to_string(), "0 to 1".to_owned());
            }
            self.check_choices(&field("experts"), &layer.experts, n)?;
            if let Some(EarlyGuess(early)) = &layer.early {
                self.check_choices(&field("early"), early, n)?;
            }
        }
        Ok(())
    }

    /// `n` experts, no token twice the same.
    fn check_choices(&self, field: &str, experts: &[u32], n: usize) -> Result<(), Error> {
        let wrong =
            |found: String, expected: String| Err(Error::Field { field: field.to_owned(), found, expected });
        if experts.len() != n {
            return wrong(format!("{} numbers", experts.len()), n.to_string());
        }
        if let Some(expert) = experts.iter().find(|e| **e as usize >= self.n_expert) {
            return wrong(expert.to_string(), format!("an expert below {}", self.n_expert));
        }
        let twice = |taken: &[u32]| taken.iter().enumerate().any(|(i, e)| taken[..i].contains(e));
        match experts.chunks_exact(self.n_used).find(|taken| twice(taken)) {
            Some(taken) => wrong(format!("{taken:?}"), "different experts for a token".to_owned()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace() -> Trace {
        Trace {
            n_expert: 4,
            n_used: 2,
            tokens: vec![1, 2, 3],
            sequences: vec![2, 1],
            layers: vec![LayerTrace {
                layer: 0,
                experts: vec![0, 1, 2, 3, 3, 0],
                weights: vec![0.5; 6],
                early: None,
            }],
            ..Trace::default()
        }
    }

    #[test]
    fn sequences_follow_each_other() {
        assert_eq!(trace().sequence_ranges().collect::<Vec<_>>(), [0..2, 2..3]);
        assert_eq!(trace().validate(), Ok(()));
    }

    #[test]
    fn an_expert_without_a_name_is_numbered() {
        let mut trace = trace();
        assert_eq!(trace.expert_name(3), "expert 3");
        trace.expert_names = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        assert_eq!(trace.expert_name(3), "d");
    }

    type Damage = fn(&mut Trace);

    #[test]
    fn what_does_not_fit_is_named() {
        let cases: [(&str, Damage); 9] = [
            ("n_expert", |t| t.n_expert = 0),
            ("n_used", |t| t.n_used = 5),
            ("expert_names", |t| t.expert_names = vec!["a".to_owned()]),
            ("sequences", |t| t.sequences = vec![usize::MAX, 4]),
            ("layers[0].weights", |t| t.layers[0].weights.truncate(5)),
            ("layers[0].weights", |t| t.layers[0].weights[1] = f32::NAN),
            ("layers[0].experts", |t| t.layers[0].experts[5] = 4),
            ("layers[0].experts", |t| t.layers[0].experts[5] = 3),
            ("layers[0].early", |t| t.layers[0].early = Some(EarlyGuess(vec![0]))),
        ];
        for (name, damage) in cases {
            let mut trace = trace();
            damage(&mut trace);
            match trace.validate() {
                Err(Error::Field { field, .. }) => assert_eq!(field, name),
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}
