//! Which tensors a file has, and in which order.
//!
//! Files of unquantized types follow llama.cpp's converter (tensors in the order of shards and, within one, of source names;
//! experts where their last part appears, gate, down, up), quantized files follow llama-quantize (by layer, then by name),
//! and so does everything made from a GGUF file.

use std::collections::HashMap;

use model_spec::{FileType, TensorId, TensorRole};

use super::{ExpertLayout, Source, Step};
use crate::input::Origin;

/// The output tensor that a source weight belongs to.
pub(crate) fn target(id: &TensorId, layout: ExpertLayout) -> TensorId {
    match (layout, id.expert, id.role.stacked()) {
        (ExpertLayout::Stacked, Some(_), Some(role)) => TensorId { role, expert: None, ..*id },
        _ => *id,
    }
}

/// Sorts output tensors by their place in the input's parts and returns the part of each; parts are counted without those
/// that have no tensors. A tensor of several sources goes where the first of them is.
pub(super) fn order_by_part(steps: &[Step], layout: ExpertLayout, order: &mut [TensorId]) -> Vec<usize> {
    let mut places: HashMap<TensorId, (usize, u64)> = HashMap::new();
    for step in steps {
        if let Source::Weight(weight) = &step.source {
            let place = (weight.shard, weight.offset);
            let known = places.entry(target(&step.id, layout)).or_insert(place);
            *known = (*known).min(place);
        }
    }
    order.sort_by_key(|id| places.get(id).copied().unwrap_or_default());
    let mut parts = Vec::new();
    let (mut part, mut last) = (0, None);
    for id in order.iter() {
        let shard = places.get(id).map_or(0, |place| place.0);
        part += usize::from(last.is_some_and(|last| last != shard));
        last = Some(shard);
        parts.push(part);
    }
    parts
}

/// The output tensors in file order.
pub(super) fn file_order(
    origin: Origin,
    steps: &[Step],
    file_type: FileType,
    layout: ExpertLayout,
) -> Vec<TensorId> {
    // Position of a tensor in the converter's output: where the last of its sources stands.
    let mut order: HashMap<TensorId, (usize, &str, u8)> = HashMap::new();
    for step in steps {
        let id = target(&step.id, layout);
        let key = match &step.source {
            Source::Computed(_) => (0, "", 0),
            Source::Weight(w) => (w.shard + 1, w.source_name.as_str(), 0),
        };
        let entry = order.entry(id).or_insert(key);
        *entry = (*entry).max(key);
    }
    // The converter emits the three stacked tensors of a layer together, when the layer's last expert has come.
    let mut complete: HashMap<Option<u32>, (usize, &str, u8)> = HashMap::new();
    for (id, key) in order.iter().filter(|(id, _)| id.role.unstacked().is_some()) {
        let entry = complete.entry(id.layer).or_insert(*key);
        *entry = (*entry).max(*key);
    }
    for (id, key) in &mut order {
        let rank = match id.role {
            TensorRole::FfnGateExps => 0,
            TensorRole::FfnDownExps => 1,
            TensorRole::FfnUpExps => 2,
            _ => continue,
        };
        let (shard, name, _) = complete[&id.layer];
        *key = (shard, name, rank);
    }

    let mut ids: Vec<TensorId> = order.keys().copied().collect();
    if origin == Origin::Gguf || file_type.default_type().is_quantized() {
        // Tensors outside the layers come first, as llama-quantize takes them for layer -1.
        ids.sort_by_cached_key(|id| (id.layer, id.name()));
    } else {
        ids.sort_by_cached_key(|id| (order[id], id.name()));
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_belong_to_the_stacked_tensor_of_their_layer() {
        let id = TensorId::of_expert(TensorRole::FfnUp, 3, 2);
        assert_eq!(target(&id, ExpertLayout::Stacked), TensorId::in_layer(TensorRole::FfnUpExps, 3));
        assert_eq!(target(&id, ExpertLayout::Split), id);
        let dense = TensorId::in_layer(TensorRole::FfnUp, 3);
        assert_eq!(target(&dense, ExpertLayout::Stacked), dense);
    }
}
