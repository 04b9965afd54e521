//! What makes a plan impossible: rules that don't fit the model, types that can't be made, metadata that belies the tensors.

use std::collections::{HashMap, HashSet};

use gguf::Metadata;
use model_spec::{FileType, HyperParams, TensorId, keys};
use quants::TensorType;

use super::order::target;
use super::step::file_of;
use super::{ExpertLayout, Options, Plan, Source, Step};
use crate::input::{Input, Origin};
use crate::recipe::{self, RuleError, Rules, Untyped};
use crate::{Error, block};

/// Checks that rules fit the model.
pub(super) fn check_rules(
    plan: &mut Plan,
    rules: &Rules,
    layout: ExpertLayout,
    hparams: &HyperParams,
) -> Result<(), Error> {
    if let Some(table) = &rules.expert_types {
        table.check(hparams)?;
        if layout == ExpertLayout::Stacked {
            return Err(RuleError::new(
                "types by expert",
                "all experts of a layer in one tensor, which has one type",
                "the expert layout split",
            )
            .into());
        }
        if table.is_empty() {
            plan.warnings.push("--expert-types: the table is empty".to_owned());
        }
    }
    let ids: HashSet<TensorId> = plan.steps.iter().map(|step| target(&step.id, layout)).collect();
    for rule in rules.unused(ids.into_iter()) {
        plan.warnings.push(format!("--tensor-type {rule}: fits no tensor"));
    }
    Ok(())
}

/// Checks that the types chosen for tensors can be made of what there is.
pub(super) fn check_types<'a>(
    steps: &[Step],
    chosen: impl Iterator<Item = (&'a Untyped, &'a TensorType)>,
    file_type: FileType,
    layout: ExpertLayout,
) -> Result<(), Error> {
    let without: HashSet<TensorId> =
        steps.iter().filter(|step| step.importance.is_none()).map(|step| target(&step.id, layout)).collect();
    for (Untyped { id, .. }, ty) in chosen {
        if !block::can_quantize(*ty) {
            let (tensor, ty, file_type) = (id.name(), ty.name(), file_type.name());
            return Err(Error::CannotQuantize { tensor, ty, file_type });
        }
        if recipe::requires_importance(id, *ty, file_type) && without.contains(id) {
            return Err(Error::NeedsImportance { tensor: id.name(), ty: ty.name() });
        }
    }
    Ok(())
}

/// The types that are not the recipe's to choose, by output tensor: all where types are kept, else those of a GGUF file's
/// norms, biases and routers, which stay as they are.
pub(super) fn kept_types(
    input: &dyn Input,
    steps: &[Step],
    options: &Options,
) -> Result<HashMap<TensorId, TensorType>, Error> {
    let mut kept = HashMap::new();
    if input.origin() != Origin::Gguf {
        return Ok(kept);
    }
    for step in steps {
        let Source::Weight(weight) = &step.source else { continue };
        let id = target(&step.id, options.expert_layout);
        if !options.keep_types && recipe::is_quantizable(&id, &id.ne(input.hparams())) {
            continue;
        }
        let first = *kept.entry(id).or_insert(weight.dtype);
        if first != weight.dtype {
            let (file, tensor) = (file_of(input, weight), id.name());
            let (first, second) = (first.name(), weight.dtype.name());
            return Err(Error::MixedExperts { file, tensor, first, second });
        }
    }
    Ok(kept)
}

/// Checks that metadata that was set by hand still describes a model, and one with tensors of these shapes.
pub(super) fn check_overridden(hparams: &HyperParams, metadata: &Metadata) -> Result<(), Error> {
    let found = HyperParams::from_metadata(metadata)?;
    let shapes = |h: &HyperParams| {
        [
            (keys::BLOCK_COUNT, h.n_layer),
            (keys::EMBEDDING_LENGTH, h.n_embd),
            (keys::FEED_FORWARD_LENGTH, h.n_ff),
            (keys::HEAD_COUNT, h.n_head),
            (keys::HEAD_COUNT_KV, h.n_head_kv),
            (keys::KEY_LENGTH, h.head_dim_k),
            (keys::VALUE_LENGTH, h.head_dim_v),
            (keys::EXPERT_COUNT, h.n_expert),
        ]
    };
    for ((key, found), (_, expected)) in shapes(&found).into_iter().zip(shapes(hparams)) {
        if found != expected {
            let (found, expected) =
                (found.to_string(), format!("{expected}, as the model's tensors have it"));
            return Err(RuleError { place: format!("--override-kv {key}"), found, expected }.into());
        }
    }
    Ok(())
}

/// Checks that every weight that changes its type can be read, and is not quantized where that is not allowed.
pub(super) fn check_conversions(input: &dyn Input, steps: &[Step], options: &Options) -> Result<(), Error> {
    for step in steps {
        let Source::Weight(weight) = &step.source else { continue };
        let ty = weight.dtype;
        if step.via.is_none_or(|via| via == ty) && step.destinations.iter().all(|d| d.ty == ty) {
            continue;
        }
        let (tensor, name) = (weight.source_name.clone(), ty.name());
        if ty.is_quantized() && !options.allow_requantize {
            return Err(Error::Requantize { file: file_of(input, weight), tensor, ty: name });
        }
        if !quants::can_dequantize(ty) {
            return Err(Error::CannotDequantize { file: file_of(input, weight), tensor, ty: name });
        }
    }
    Ok(())
}
