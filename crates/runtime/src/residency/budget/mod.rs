//! What fits where under a budget, and how fast it would run: a pure function of sizes, chances and bandwidths.
//!
//! The items are the dense weights of each layer (every token reads all of them) with its KV cache, the experts of each
//! layer (a token reads those it takes), and compute buffers wherever something is computed. Fast memory goes to the dense
//! weights first, because nothing pays as much, then to experts. What the host's memory has no room for stays in the file: it
//! is streamed through a pool, or, where that can't be, read through the page cache.

mod demand;
mod device;
#[cfg(test)]
mod tests;
mod time;

pub use demand::{Demand, ExpertItem, compute_bytes, waiting_bytes};
pub use time::{Chances, TokenTime, crossover};

use device::OnDevice;

/// A memory, or a disk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Store {
    /// Bytes that may be used.
    pub size_bytes: u64,
    /// How fast weights there are read and multiplied with.
    pub bytes_per_second: f64,
}

/// How fast a file is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Disk {
    /// Bytes read in a second while nothing is computed.
    pub bytes_per_second: f64,
    /// Which share of that is read while the CPU multiplies, above 0 and up to 1: both want the processor and its memory.
    pub share_beside: f64,
    /// Which share of its own rate the CPU multiplies with meanwhile.
    pub memory_share_beside: f64,
}

impl Disk {
    /// One that has nothing to do with the memory.
    pub const fn apart(bytes_per_second: f64) -> Disk {
        Disk { bytes_per_second, share_beside: 1.0, memory_share_beside: 1.0 }
    }
}

/// What a machine has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// The devices together; `None` without any.
    pub device: Option<Store>,
    /// The host's memory.
    pub memory: Store,
    /// What holds the file.
    pub disk: Disk,
    /// What a token takes besides reading weights.
    pub seconds_per_token: f64,
}

/// How experts are read that live in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Streaming {
    /// Through the page cache. Layers that devices have some experts of are then mapped as a whole.
    Never,
    /// Through a pool, where not all experts have room.
    #[default]
    AsNeeded,
    /// Through a pool: of so many bytes, or of the memory that is left.
    Always(Option<u64>),
}

/// What the user has decided; the plan decides the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decided {
    /// Layers on devices, the output counted as one.
    pub n_gpu_layers: Option<u32>,
    /// From the first on, layers whose experts stay on the host.
    pub n_host_expert_layers: Option<u32>,
    /// For each layer its experts on devices, where the layer itself is.
    pub slots: Option<Vec<Vec<u32>>>,
    /// How experts are read that live in the file.
    pub streaming: Streaming,
    /// Whether experts are staged for large batches; where they leave as much room for other experts when `None`.
    pub stages: Option<bool>,
}

/// Of its compute buffers the host needs about this part beside devices.
const HOST_PART: u64 = 4;

/// What is placed as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Grain {
    /// All experts of a layer: those of the last layers go to the device.
    #[default]
    Layer,
    /// Each expert by itself, the likeliest first. Where the device has not all of a layer, the host has, unless experts
    /// are streamed.
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
    /// For experts on their way: from the file, or on a device for a large batch.
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
    /// Whether experts that are not on devices come from a pool.
    pub is_streamed: bool,
    /// What a token takes.
    pub time: TokenTime,
    /// Where a token finds its experts.
    pub chances: Chances,
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

    /// What a token takes with another rate of the file, and with a share of `hits`, 0 to 1, of the experts that the host
    /// computes in memory; as planned where that is `None`.
    pub fn time_with(&self, demand: &Demand, machine: &Machine, hits: Option<f64>) -> TokenTime {
        time::measured(demand, machine, self, hits)
    }

    /// Whether devices compute large batches with the host's experts, copied to them in time.
    pub fn stages_experts(&self) -> bool {
        self.device.staging_bytes > 0
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

    /// Memory for experts where they are streamed: where they live, where others are read to, and what is left besides.
    pub fn pool_bytes(&self, machine: &Machine, decided: &Decided) -> Option<u64> {
        let others = self.memory.total_bytes() - self.memory.expert_bytes - self.memory.staging_bytes;
        let left = machine.memory.size_bytes.saturating_sub(others);
        self.is_streamed.then_some(match decided.streaming {
            Streaming::Always(Some(given)) => given,
            _ => left,
        })
    }
}

/// The plan for a machine.
///
/// Experts are kept in memory where all have room, if need be with whole layers on devices instead of single experts, which
/// the host would have too. Otherwise they are streamed, if that may be.
///
/// # Errors
/// [`Shortage`] where all but the experts, with room to read experts into, does not fit in the host's memory.
pub fn plan(
    demand: &Demand,
    machine: &Machine,
    decided: &Decided,
    grain: Grain,
) -> Result<Outlook, Shortage> {
    let try_with = |grain, streams| Attempt::new(demand, machine, decided, grain, streams);
    let pool_bytes = match decided.streaming {
        Streaming::Always(pool_bytes) => pool_bytes,
        Streaming::Never | Streaming::AsNeeded => {
            let first = try_with(grain, false);
            let by_layer = if first.fits() { first } else { try_with(Grain::Layer, false) };
            if by_layer.fits() || decided.streaming == Streaming::Never {
                return by_layer.finish(None);
            }
            None
        }
    };
    try_with(grain, true).finish(pool_bytes)
}

/// A choice of what is on devices, and what the rest takes of the host's memory.
struct Attempt<'a> {
    demand: &'a Demand,
    machine: &'a Machine,
    on_device: OnDevice,
    streams: bool,
    /// The host's memory without experts.
    resident: Usage,
    /// Experts that are not on devices.
    left_bytes: u64,
    /// Experts that are in both memories.
    mirrored_bytes: u64,
}

impl<'a> Attempt<'a> {
    fn new(
        demand: &'a Demand,
        machine: &'a Machine,
        decided: &Decided,
        grain: Grain,
        streams: bool,
    ) -> Attempt<'a> {
        let on_device = OnDevice::choose(demand, machine.device, decided, grain, streams);
        let n_gpu = on_device.n_layers as usize;
        let n_host = demand.dense_bytes.len() - n_gpu;
        let mut dense_bytes: u64 = demand.dense_bytes[..n_host].iter().sum();
        if demand.is_tied && n_gpu == 0 {
            dense_bytes = dense_bytes.saturating_sub(demand.table_bytes);
        }
        // Devices compute large batches, but for streamed experts.
        let compute_bytes = match (on_device.usage.compute_bytes, streams) {
            (0, _) => demand.compute_bytes,
            (_, false) => demand.compute_bytes / HOST_PART,
            (_, true) => demand.beside_bytes.max(demand.compute_bytes / HOST_PART),
        };
        let stages = on_device.usage.staging_bytes > 0;
        let pinned_bytes = if stages { demand.pinned_bytes } else { 0 };
        let waiting_bytes = if streams || stages { demand.waiting_bytes[0] } else { 0 };
        let compute_bytes = compute_bytes + waiting_bytes + pinned_bytes;
        let left_bytes = items(demand, &on_device.homes, Home::File).map(|item| item.size_bytes).sum();
        let reads_rows = streams && left_bytes > 0 && !demand.is_tied;
        let table_bytes = if reads_rows { demand.rows_bytes } else { demand.table_bytes };
        let resident = Usage {
            dense_bytes,
            cache_bytes: (n_host as u64).min(u64::from(demand.n_layer())) * demand.cache_bytes,
            compute_bytes,
            other_bytes: table_bytes.saturating_add(demand.program_bytes),
            ..Usage::default()
        };
        let mirrored_bytes = if streams { 0 } else { mirrored_bytes(demand, &on_device.homes) };
        Attempt { demand, machine, on_device, streams, resident, left_bytes, mirrored_bytes }
    }

    /// With all experts in memory.
    fn everything(&self) -> Usage {
        Usage { expert_bytes: self.left_bytes.saturating_add(self.mirrored_bytes), ..self.resident }
    }

    fn fits(&self) -> bool {
        self.everything().total_bytes() <= self.machine.memory.size_bytes
    }

    /// Gives the host's memory to experts; to a pool of `pool_bytes` if that is given.
    fn finish(self, pool_bytes: Option<u64>) -> Result<Outlook, Shortage> {
        let Attempt { demand, machine, resident, .. } = self;
        let available_bytes = machine.memory.size_bytes;
        let staging_bytes = demand.staging_bytes();
        let staged = Usage { staging_bytes, ..resident };
        let least = match pool_bytes {
            Some(bytes) => {
                let expert_bytes = bytes.min(self.left_bytes).saturating_sub(staging_bytes);
                Usage { expert_bytes, ..staged }
            }
            None if self.fits() && !self.streams => self.everything(),
            // Either all the rest fits, or a part of the memory is for what is being read.
            None if staged.total_bytes() < self.everything().total_bytes() => staged,
            None => self.everything(),
        };
        if least.total_bytes() > available_bytes {
            return Err(Shortage { needed: least, available_bytes });
        }
        let in_memory = self.fits() && !self.streams;
        let mut memory = if in_memory { resident } else { staged };
        let room = match pool_bytes {
            Some(bytes) => bytes.saturating_sub(staging_bytes),
            None => available_bytes.saturating_sub(memory.total_bytes()),
        };
        let OnDevice { n_layers, mut homes, usage: device } = self.on_device;
        memory.expert_bytes = fill(demand, &by_chance(demand), &mut homes, Home::Memory, room);
        let more_bytes = match self.streams {
            true => room.saturating_sub(memory.expert_bytes).saturating_add(staging_bytes),
            false => 0,
        };
        if in_memory {
            memory.expert_bytes += self.mirrored_bytes;
        }
        let (time, chances) = time::of_token(demand, machine, n_layers as usize, &homes, more_bytes);
        Ok(Outlook {
            n_gpu_layers: n_layers,
            experts: homes,
            device,
            memory,
            is_streamed: self.streams && self.left_bytes > 0,
            time,
            chances,
        })
    }
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

/// Tokens per second with `extra_bytes` more on the device and, second, with as much more memory instead; `None` where
/// there is no device, or it still does not fit.
pub fn with_more(
    demand: &Demand,
    machine: &Machine,
    decided: &Decided,
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
