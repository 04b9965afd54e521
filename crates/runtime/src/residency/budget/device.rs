//! What goes to devices.

use super::{Decided, Demand, Grain, Home, Store, Usage, by_chance, fill};

/// What devices hold.
#[derive(Clone, Debug, Default)]
pub(super) struct OnDevice {
    /// Layers whose dense weights and KV cache are there, counted from the output, which is one too.
    pub n_layers: u32,
    /// [`Home::Device`] for experts that are there, [`Home::File`] for the others.
    pub homes: Vec<Home>,
    /// Bytes there.
    pub usage: Usage,
}

impl OnDevice {
    /// Fills the devices as far as they go. Experts that are left will be `streamed`, or mapped and copied for large batches.
    pub fn choose(
        demand: &Demand,
        device: Option<Store>,
        decided: &Decided,
        grain: Grain,
        streamed: bool,
    ) -> OnDevice {
        let nothing = OnDevice { homes: vec![Home::File; demand.experts.len()], ..OnDevice::default() };
        let Some(device) = device else { return nothing };
        let all = demand.dense_bytes.len();
        // Where all is on devices, nothing is copied there.
        let everything = Usage {
            dense_bytes: demand.dense_bytes.iter().sum(),
            expert_bytes: demand.expert_bytes(),
            cache_bytes: demand.cache_bytes * u64::from(demand.n_layer()),
            compute_bytes: demand.compute_bytes,
            ..Usage::default()
        };
        let is_free = decided.n_gpu_layers.is_none_or(|n| n as usize >= all)
            && decided.n_host_expert_layers.unwrap_or(0) == 0
            && decided.slots.is_none();
        if is_free && everything.total_bytes() <= device.size_bytes {
            let homes = vec![Home::Device; demand.experts.len()];
            return OnDevice { n_layers: all as u32, homes, usage: everything };
        }
        let usage = |n: usize, staged: bool| -> Usage {
            let is_used = n > 0 || decided.n_gpu_layers.is_some();
            let copied_bytes = match (streamed || staged, n == all) {
                (false, _) => demand.largest_bytes,
                (true, false) => demand.largest_dense_bytes,
                (true, true) => 0,
            };
            let waiting_bytes = if streamed || staged { demand.waiting_bytes[1] } else { 0 };
            Usage {
                dense_bytes: demand.dense_bytes.iter().rev().take(n).sum(),
                expert_bytes: in_slots(demand, decided, n)
                    .iter()
                    .map(|i| demand.experts[*i].size_bytes)
                    .sum(),
                cache_bytes: demand.cache_bytes * n.saturating_sub(1) as u64, // the output has none
                compute_bytes: if is_used { demand.compute_bytes + waiting_bytes + copied_bytes } else { 0 },
                staging_bytes: if staged { demand.stack_bytes } else { 0 },
                ..Usage::default()
            }
        };
        let fits = |n: &usize| usage(*n, false).total_bytes() <= device.size_bytes;
        let n = match decided.n_gpu_layers {
            Some(n) => (n as usize).min(all),
            None => (0..=all).rev().find(fits).unwrap_or(0),
        };
        // Stacks make large batches faster and leave less room for experts, which all tokens gain from.
        let room = |staged: bool| device.size_bytes.checked_sub(usage(n, staged).total_bytes());
        let is_worth_it = |left: u64| decided.stages == Some(true) || left >= demand.stack_bytes;
        let staged = n > 0
            && demand.stack_bytes > 0
            && decided.stages != Some(false)
            && room(true).is_some_and(is_worth_it);
        let mut chosen = OnDevice { n_layers: n as u32, usage: usage(n, staged), ..nothing };
        if n > 0 {
            let room = device.size_bytes.saturating_sub(chosen.usage.total_bytes());
            chosen.usage.expert_bytes = place_experts(demand, decided, grain, n, room, &mut chosen.homes);
        }
        let first = (all - n) * demand.n_expert as usize;
        if staged && chosen.homes.iter().skip(first).all(|home| *home == Home::Device) {
            // No layer on a device has experts elsewhere.
            chosen.usage.staging_bytes = 0;
        }
        chosen
    }
}

/// The experts that the user has put on devices, if `n` layers are there.
fn in_slots(demand: &Demand, decided: &Decided, n: usize) -> Vec<usize> {
    let first = demand.dense_bytes.len() - n;
    let n_expert = demand.n_expert as usize;
    let layers = decided.slots.iter().flatten().enumerate().skip(first);
    let indices = layers
        .flat_map(|(layer, experts)| experts.iter().map(move |expert| layer * n_expert + *expert as usize));
    indices.filter(|index| *index < demand.experts.len()).collect()
}

/// Chooses experts of the last `n` layers for `room` bytes, or those that the user has chosen; what they take.
fn place_experts(
    demand: &Demand,
    decided: &Decided,
    grain: Grain,
    n: usize,
    room: u64,
    homes: &mut [Home],
) -> u64 {
    if decided.slots.is_some() {
        return fill(demand, &in_slots(demand, decided, n), homes, Home::Device, u64::MAX);
    }
    let first = (demand.dense_bytes.len() - n) as u32;
    let first = decided.n_host_expert_layers.map_or(first, |n| n.max(first));
    let on_device = |index: &usize| demand.experts[*index].layer >= first;
    if decided.n_gpu_layers.is_some() && decided.n_host_expert_layers.is_some() {
        let chosen: Vec<usize> = (0..homes.len()).filter(on_device).collect();
        return fill(demand, &chosen, homes, Home::Device, u64::MAX);
    }
    if grain == Grain::Expert {
        let mut chosen = by_chance(demand);
        chosen.retain(on_device);
        return fill(demand, &chosen, homes, Home::Device, room);
    }
    let mut used = 0;
    for layer in (first..demand.n_layer()).rev() {
        let experts: Vec<usize> = (0..homes.len()).filter(|i| demand.experts[*i].layer == layer).collect();
        let size: u64 = experts.iter().map(|i| demand.experts[*i].size_bytes).sum();
        if size > room - used {
            break;
        }
        used += fill(demand, &experts, homes, Home::Device, size);
    }
    used
}
