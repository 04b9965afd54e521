//! What fits where under a budget, and how fast it would run: a pure function of sizes, chances and bandwidths.
//!
//! The items are the dense weights of each layer (every token reads all of them) with its KV cache, the experts of each
//! layer (a token reads those it takes), and compute buffers wherever something is computed. Fast memory goes to the dense
//! weights first, because nothing pays as much, then to experts. Decoding is bound by reading weights, so a token takes the
//! sum over all places of the bytes read there by the place's bandwidth, and a time that does not depend on where things
//! are; work in two places at once would be faster. Only reading the file is counted beside computing, as it is done so.

mod demand;
#[cfg(test)]
mod tests;

pub use demand::{Demand, ExpertItem, compute_bytes};

/// A memory, or a disk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Store {
    /// Bytes that may be used.
    pub size_bytes: u64,
    /// How fast weights there are read and multiplied with.
    pub bytes_per_second: f64,
}

/// What a machine has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// The devices together; `None` without any.
    pub device: Option<Store>,
    /// The host's memory.
    pub memory: Store,
    /// How fast the file is read, in bytes per second.
    pub file_bytes_per_second: f64,
    /// What a token takes besides reading weights.
    pub seconds_per_token: f64,
}

/// What the user has decided; the plan decides the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decided {
    /// Layers on devices, the output counted as one.
    pub n_gpu_layers: Option<u32>,
    /// From the first on, layers whose experts stay on the host.
    pub n_host_expert_layers: Option<u32>,
}

/// Of its compute buffers the host needs about this part beside devices.
const HOST_PART: u64 = 4;

/// What is placed as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Grain {
    /// All experts of a layer: those of the last layers go to the device.
    #[default]
    Layer,
    /// Each expert by itself, the likeliest first. Where the device has not all of a layer, the host has.
    Expert,
}

/// Where an item lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// A device's memory.
    Device,
    /// The host's memory.
    Memory,
    /// The file: it is read when a token takes it.
    File,
}

/// Bytes in use in one kind of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Weights that every token reads.
    pub dense_bytes: u64,
    /// Experts that live here.
    pub expert_bytes: u64,
    /// Slots for experts that live in the file.
    pub staging_bytes: u64,
    /// KV cache.
    pub cache_bytes: u64,
    /// Compute buffers.
    pub compute_bytes: u64,
    /// Embeddings, and what the program needs.
    pub other_bytes: u64,
}

impl Usage {
    /// All of it.
    pub fn total_bytes(&self) -> u64 {
        let parts = [
            self.dense_bytes,
            self.expert_bytes,
            self.staging_bytes,
            self.cache_bytes,
            self.compute_bytes,
            self.other_bytes,
        ];
        parts.iter().fold(0, |sum, part| sum.saturating_add(*part))
    }
}

/// What a token takes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenTime {
    /// Seconds for weights on devices.
    pub device: f64,
    /// Seconds for weights in the host's memory, those read from the file included.
    pub memory: f64,
    /// Seconds of waiting for the file: experts are multiplied while others are being read.
    pub file: f64,
    /// Seconds for the rest.
    pub rest: f64,
}

impl TokenTime {
    /// Seconds in all.
    pub fn total(&self) -> f64 {
        self.device + self.memory + self.file + self.rest
    }
}

/// The plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Outlook {
    /// Layers whose dense weights and KV cache are on devices, counted from the output, which is one too.
    pub n_gpu_layers: u32,
    /// Of each expert, in the order of [`Demand::experts`].
    pub experts: Vec<Home>,
    /// On the devices.
    pub device: Usage,
    /// In the host's memory.
    pub memory: Usage,
    /// What a token takes.
    pub time: TokenTime,
}

/// The least that is needed does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} bytes of memory are needed at least, and {available_bytes} may be used", needed.total_bytes())]
pub struct Shortage {
    /// In the host's memory.
    pub needed: Usage,
    /// There.
    pub available_bytes: u64,
}

impl Outlook {
    /// Tokens decoded in a second.
    pub fn tokens_per_second(&self) -> f64 {
        1.0 / self.time.total()
    }

    /// How many experts have this home.
    pub fn count(&self, home: Home) -> usize {
        self.experts.iter().filter(|at| **at == home).count()
    }

    /// Whether all experts are in memory, of devices or the host.
    pub fn all_in_memory(&self) -> bool {
        self.count(Home::File) == 0
    }

    /// From the first on, layers none of whose experts are on a device.
    pub fn n_host_expert_layers(&self, demand: &Demand) -> u32 {
        let first = self.experts.iter().position(|home| *home == Home::Device).unwrap_or(self.experts.len());
        (first / demand.n_expert.max(1) as usize) as u32
    }

    /// Memory for experts where not all have room: where they live, where others are read to, and what is left besides.
    pub fn pool_bytes(&self, machine: &Machine) -> u64 {
        let others = self.memory.total_bytes() - self.memory.expert_bytes - self.memory.staging_bytes;
        machine.memory.size_bytes.saturating_sub(others)
    }
}

/// The plan for a machine.
///
/// # Errors
/// [`Shortage`] where all but the experts, with room to read experts into, does not fit in the host's memory.
pub fn plan(demand: &Demand, machine: &Machine, decided: Decided, grain: Grain) -> Result<Outlook, Shortage> {
    let mut homes = vec![Home::File; demand.experts.len()];
    let (n_gpu_layers, device) = fill_device(demand, machine, decided, grain, &mut homes);
    let n_gpu = n_gpu_layers as usize;
    let n_host = demand.dense_bytes.len() - n_gpu;
    let mut dense_bytes: u64 = demand.dense_bytes[..n_host].iter().sum();
    if demand.is_tied && n_gpu == 0 {
        dense_bytes = dense_bytes.saturating_sub(demand.table_bytes);
    }
    // Devices compute large batches.
    let compute_bytes = match device.compute_bytes {
        0 => demand.compute_bytes,
        _ => demand.compute_bytes / HOST_PART,
    };
    let n_host_layers = (n_host as u64).min(u64::from(demand.n_layer()));
    let resident = Usage {
        dense_bytes,
        cache_bytes: n_host_layers * demand.cache_bytes,
        compute_bytes,
        other_bytes: demand.table_bytes.saturating_add(demand.program_bytes),
        ..Usage::default()
    };
    // Either all the rest fits, or a part of the memory is for what is being read.
    let mirrored = mirrored_bytes(demand, &homes);
    let left: u64 = items(demand, &homes, Home::File).map(|item| item.size_bytes).sum();
    let available_bytes = machine.memory.size_bytes;
    let everything = Usage { expert_bytes: left.saturating_add(mirrored), ..resident };
    let staged = Usage { staging_bytes: demand.staging_bytes(), ..resident };
    if everything.total_bytes() > available_bytes && mirrored > 0 {
        // There is no memory for keeping experts twice.
        return plan(demand, machine, decided, Grain::Layer);
    }
    let mut memory = if everything.total_bytes() <= available_bytes { resident } else { staged };
    if memory.total_bytes() > available_bytes {
        let least = if staged.total_bytes() < everything.total_bytes() { staged } else { everything };
        return Err(Shortage { needed: least, available_bytes });
    }
    let room = available_bytes - memory.total_bytes();
    memory.expert_bytes = fill(demand, &by_chance(demand), &mut homes, Home::Memory, room) + mirrored;
    let time = token_time(demand, machine, n_gpu, &homes);
    Ok(Outlook { n_gpu_layers, experts: homes, device, memory, time })
}

/// Chooses what goes to the devices; the number of layers there, and what they take.
fn fill_device(
    demand: &Demand,
    machine: &Machine,
    decided: Decided,
    grain: Grain,
    homes: &mut [Home],
) -> (u32, Usage) {
    let Some(device) = machine.device else { return (0, Usage::default()) };
    let all = demand.dense_bytes.len();
    let expert_bytes = demand.expert_bytes();
    // Where all is on devices, nothing is copied there.
    let everything = Usage {
        dense_bytes: demand.dense_bytes.iter().sum(),
        expert_bytes,
        cache_bytes: demand.cache_bytes * u64::from(demand.n_layer()),
        compute_bytes: demand.compute_bytes,
        ..Usage::default()
    };
    let is_free = decided.n_gpu_layers.is_none_or(|n| n as usize >= all)
        && decided.n_host_expert_layers.unwrap_or(0) == 0;
    if is_free && everything.total_bytes() <= device.size_bytes {
        homes.fill(Home::Device);
        return (all as u32, everything);
    }
    let usage = |n: usize| {
        let dense_bytes = demand.dense_bytes.iter().rev().take(n).sum();
        let cache_bytes = demand.cache_bytes * n.saturating_sub(1) as u64; // the output has none
        let is_used = n > 0 || decided.n_gpu_layers.is_some();
        let compute_bytes = if is_used { demand.compute_bytes + demand.largest_bytes } else { 0 };
        Usage { dense_bytes, cache_bytes, compute_bytes, ..Usage::default() }
    };
    let fits = |n: &usize| usage(*n).total_bytes() <= device.size_bytes;
    let n = match decided.n_gpu_layers {
        Some(n) => (n as usize).min(all),
        None => (0..=all).rev().find(fits).unwrap_or(0),
    };
    let mut used = usage(n);
    if n == 0 {
        return (0, used);
    }
    let room = device.size_bytes.saturating_sub(used.total_bytes());
    // Experts of layers that are on the device; where the user has named layers, exactly those.
    let first = (all - n) as u32;
    let first = decided.n_host_expert_layers.map_or(first, |n| n.max(first));
    let on_device = |index: &usize| demand.experts[*index].layer >= first;
    if decided.n_gpu_layers.is_some() && decided.n_host_expert_layers.is_some() {
        let chosen: Vec<usize> = (0..homes.len()).filter(on_device).collect();
        used.expert_bytes = fill(demand, &chosen, homes, Home::Device, u64::MAX);
    } else if grain == Grain::Expert {
        let mut chosen = by_chance(demand);
        chosen.retain(on_device);
        used.expert_bytes = fill(demand, &chosen, homes, Home::Device, room);
    } else {
        for layer in (first..demand.n_layer()).rev() {
            let experts: Vec<usize> =
                (0..homes.len()).filter(|i| demand.experts[*i].layer == layer).collect();
            let size: u64 = experts.iter().map(|i| demand.experts[*i].size_bytes).sum();
            if size > room - used.expert_bytes {
                break;
            }
            used.expert_bytes += fill(demand, &experts, homes, Home::Device, size);
        }
    }
    (n as u32, used)
}

/// Experts on devices that the host has too, because it computes others of their layer.
fn mirrored_bytes(demand: &Demand, homes: &[Home]) -> u64 {
    let n_expert = demand.n_expert.max(1) as usize;
    let layers = demand.experts.chunks(n_expert).zip(homes.chunks(n_expert));
    let partly = layers.filter(|(_, homes)| homes.iter().any(|home| *home != Home::Device));
    let on_device = partly.flat_map(|(items, homes)| items.iter().zip(homes));
    on_device.filter(|(_, home)| **home == Home::Device).map(|(item, _)| item.size_bytes).sum()
}

/// The likeliest first; among equals one of each layer, then the next of each.
fn by_chance(demand: &Demand) -> Vec<usize> {
    let mut order: Vec<usize> = (0..demand.experts.len()).collect();
    order.sort_by(|a, b| {
        let (a, b) = (&demand.experts[*a], &demand.experts[*b]);
        b.chance.total_cmp(&a.chance).then(a.expert.cmp(&b.expert)).then(a.layer.cmp(&b.layer))
    });
    order
}

/// Gives `home` to the experts without one, in this order, as far as there is room; what they take.
fn fill(demand: &Demand, order: &[usize], homes: &mut [Home], home: Home, room_bytes: u64) -> u64 {
    let mut used = 0u64;
    for &index in order {
        let with_it = used.saturating_add(demand.experts[index].size_bytes);
        if homes[index] == Home::File && with_it <= room_bytes {
            homes[index] = home;
            used = with_it;
        }
    }
    used
}

fn items<'a>(demand: &'a Demand, homes: &'a [Home], home: Home) -> impl Iterator<Item = &'a ExpertItem> {
    demand.experts.iter().zip(homes).filter(move |(_, at)| **at == home).map(|(item, _)| item)
}

fn token_time(demand: &Demand, machine: &Machine, n_gpu: usize, homes: &[Home]) -> TokenTime {
    let reads = |home: Home| -> f64 {
        items(demand, homes, home).map(|item| item.chance * item.size_bytes as f64).sum()
    };
    let n_host = demand.dense_bytes.len() - n_gpu;
    let dense = |bytes: &[u64]| bytes.iter().sum::<u64>() as f64;
    let device_rate = machine.device.map_or(f64::INFINITY, |device| device.bytes_per_second);
    let from_file = reads(Home::File);
    let experts = (reads(Home::Memory) + from_file) / machine.memory.bytes_per_second;
    let reading = if from_file > 0.0 { from_file / machine.file_bytes_per_second } else { 0.0 };
    TokenTime {
        device: (dense(&demand.dense_bytes[n_host..]) + reads(Home::Device)) / device_rate,
        memory: dense(&demand.dense_bytes[..n_host]) / machine.memory.bytes_per_second + experts,
        file: (reading - experts).max(0.0),
        rest: machine.seconds_per_token,
    }
}

/// Tokens per second with `extra_bytes` more on the device and, second, with as much more memory instead; `None` where
/// there is no device, or it still does not fit.
pub fn with_more(
    demand: &Demand,
    machine: &Machine,
    decided: Decided,
    grain: Grain,
    extra_bytes: u64,
) -> (Option<f64>, Option<f64>) {
    let more = |store: Store| Store { size_bytes: store.size_bytes.saturating_add(extra_bytes), ..store };
    let speed = |machine: Machine| {
        plan(demand, &machine, decided, grain).ok().map(|outlook| outlook.tokens_per_second())
    };
    let device = machine.device.and_then(|device| speed(Machine { device: Some(more(device)), ..*machine }));
    (device, speed(Machine { memory: more(machine.memory), ..*machine }))
}
