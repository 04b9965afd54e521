//! Which experts have copies on devices: the user's word, layer by layer.

use super::PlacementOptions;
use crate::Error;
use gguf::TensorInfo;
use model_spec::{HyperParams, TensorId};

/// Experts of each layer that have a copy in the memory of the layer's device. A layer whose experts all have one lies
/// on the device like a dense layer, without a copy on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpertSlots {
    /// The first so many of every layer.
    Uniform(u32),
    /// The first so many of each layer.
    PerLayer(Vec<u32>),
    /// These of each layer, by number.
    Experts(Vec<Vec<u32>>),
}

impl ExpertSlots {
    /// The experts of a layer, each below `n_expert` and named once.
    pub(crate) fn of_layer(&self, layer: u32, n_expert: u32) -> Vec<u32> {
        let first = |n: u32| (0..n.min(n_expert)).collect();
        match self {
            ExpertSlots::Uniform(n) => first(*n),
            ExpertSlots::PerLayer(counts) => first(counts.get(layer as usize).copied().unwrap_or(0)),
            ExpertSlots::Experts(experts) => experts.get(layer as usize).cloned().unwrap_or_default(),
        }
    }

    /// Refuses what the model has no layers or experts for.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub(crate) fn check(&self, hparams: &HyperParams) -> Result<(), Error> {
        if !hparams.is_moe() {
            return wrong("a model without experts".to_owned(), "a model with experts".to_owned());
        }
        let (n_layer, n_expert) = (hparams.n_layer as usize, hparams.n_expert);
        let (n_given, most) = match self {
            ExpertSlots::Uniform(n) => (n_layer, Some(n)),
            ExpertSlots::PerLayer(counts) => (counts.len(), counts.iter().max()),
            ExpertSlots::Experts(experts) => (experts.len(), None),
        };
        if n_given != n_layer {
            return wrong(format!("{n_given} numbers"), format!("one, or one for each of {n_layer} layers"));
        }
        if let Some(most) = most.filter(|most| **most > n_expert) {
            return wrong(most.to_string(), format!("0 to {n_expert}, the experts of a layer"));
        }
        for layer in 0..hparams.n_layer {
            let mut experts = self.of_layer(layer, n_expert);
            experts.sort_unstable();
            let twice = experts.windows(2).any(|pair| pair[0] == pair[1]);
            if twice || experts.last().is_some_and(|last| *last >= n_expert) {
                return wrong(
                    format!("experts {experts:?} of layer {layer}"),
                    format!("each of 0 to {} at most once", n_expert - 1),
                );
            }
        }
        Ok(())
    }
}

fn wrong(found: String, expected: String) -> Result<(), Error> {
    Err(Error::Option { option: "--expert-slots", found, expected })
}

/// Refuses what does not fit the model or contradicts other options.
pub(super) fn check(
    slots: &ExpertSlots,
    hparams: &HyperParams,
    tensors: &[TensorInfo],
    options: &PlacementOptions,
    n_devices: usize,
) -> Result<(), Error> {
    slots.check(hparams)?;
    let n_expert = hparams.n_expert;
    if n_devices == 0 && (0..hparams.n_layer).any(|layer| !slots.of_layer(layer, n_expert).is_empty()) {
        return wrong("no GPU that they could be on".to_owned(), "one (see bruce-run devices)".to_owned());
    }
    if options.cpu_moe || options.n_cpu_moe > 0 {
        let found = "--cpu-moe or --n-cpu-moe beside it".to_owned();
        return wrong(found, "one of them (0 slots keep a layer's experts on the host)".to_owned());
    }
    for (regex, buffer) in &options.overrides {
        let is_expert = |name: &str| TensorId::parse(name).is_some_and(|id| id.is_expert());
        if let Some(tensor) = tensors.iter().find(|t| is_expert(&t.name) && regex.is_match(&t.name)) {
            let found = format!("--override-tensor {regex}={buffer}, which matches {}", tensor.name);
            return wrong(found, "rules for other tensors than experts beside it".to_owned());
        }
    }
    Ok(())
}
