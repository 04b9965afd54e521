//! What fits where under a budget, and how fast it would run: a pure function of sizes, chances and bandwidths.
//!
//! The items are the dense weights (every token reads all of them), the experts of each layer (a token reads those it
//! takes), and what is needed besides: KV cache and compute buffers. Fast memory goes to the dense weights first, because
//! nothing pays as much, then to the experts that tokens take most often. Decoding is bound by reading, so a token takes
//! the sum over all places of the bytes read there by the place's bandwidth; work in two places at once would be faster.

use gguf::TensorInfo;
use model_spec::{HyperParams, TensorId, TensorRole};

/// One expert of one layer: all of its projections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertItem {
    /// Index of the layer.
    pub layer: u32,
    /// Index of the expert.
    pub expert: u32,
    /// Its weights.
    pub size_bytes: u64,
    /// Chance that a token takes it, 0 to 1.
    pub chance: f64,
}

/// What a model asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Demand {
    /// Weights that every token reads.
    pub dense_bytes: u64,
    /// Tables of which a token reads one row: the embeddings. They stay on the host.
    pub table_bytes: u64,
    /// KV cache and compute buffers; they lie where the dense weights do.
    pub working_bytes: u64,
    /// In the order of layers and experts.
    pub experts: Vec<ExpertItem>,
    /// Experts that a token takes in each layer.
    pub n_used: u32,
}

/// A memory, or a disk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Store {
    /// Bytes that may be used.
    pub size_bytes: u64,
    /// How fast it is read.
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

/// The plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Outlook {
    /// Of the dense weights, the KV cache and the compute buffers.
    pub dense: Home,
    /// Of each expert, in the order of [`Demand::experts`].
    pub experts: Vec<Home>,
    /// Bytes in use on the devices.
    pub device_bytes: u64,
    /// Bytes in use in the host's memory, staging for streamed experts included.
    pub memory_bytes: u64,
    /// Tokens decoded per second, as far as reading goes.
    pub tokens_per_second: f64,
}

/// The least that is needed does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{needed_bytes} bytes of memory are needed for all but the experts, and for those being read; {available_bytes} may be used"
)]
pub struct Shortage {
    /// In the host's memory.
    pub needed_bytes: u64,
    /// There.
    pub available_bytes: u64,
}

impl Demand {
    /// The demand of a file's tensors. `chance` tells how likely a token takes an expert of a layer, as a trace has it;
    /// where it doesn't, all experts of the layer are equally likely.
    pub fn new(
        hparams: &HyperParams,
        tensors: &[TensorInfo],
        n_used: u32,
        working_bytes: u64,
        chance: impl Fn(u32, u32) -> Option<f64>,
    ) -> Demand {
        let n_expert = hparams.n_expert;
        let even = if n_expert == 0 { 0.0 } else { f64::from(n_used) / f64::from(n_expert) };
        let experts = (0..hparams.n_layer).flat_map(|layer| (0..n_expert).map(move |expert| (layer, expert)));
        let experts = experts.map(|(layer, expert)| ExpertItem {
            layer,
            expert,
            size_bytes: 0,
            chance: chance(layer, expert).unwrap_or(even).clamp(0.0, 1.0),
        });
        let mut demand = Demand { working_bytes, n_used, experts: experts.collect(), ..Demand::default() };
        let is_tied = !tensors.iter().any(|t| t.name == TensorId::global(TensorRole::Output).name());
        for tensor in tensors {
            let Some(id) = TensorId::parse(&tensor.name) else { continue };
            let of_layer = id.layer.filter(|layer| *layer < hparams.n_layer).map(|layer| layer * n_expert);
            match (of_layer, id.expert) {
                (Some(first), Some(expert)) if expert < n_expert => {
                    demand.experts[(first + expert) as usize].size_bytes += tensor.size;
                }
                (Some(first), None) if id.role.unstacked().is_some() && n_expert > 0 => {
                    for item in &mut demand.experts[first as usize..(first + n_expert) as usize] {
                        item.size_bytes += tensor.size / u64::from(n_expert);
                    }
                }
                _ if id.role == TensorRole::TokenEmbd => {
                    demand.table_bytes += tensor.size;
                    if is_tied {
                        demand.dense_bytes += tensor.size;
                    }
                }
                _ => demand.dense_bytes += tensor.size,
            }
        }
        demand
    }

    /// Slots that experts are read into when they live in the file: those of one layer, twice, so that one can be read
    /// while the other computes.
    fn staging_bytes(&self) -> u64 {
        let largest = self.experts.iter().map(|item| item.size_bytes).max().unwrap_or(0);
        2 * u64::from(self.n_used) * largest
    }
}

/// The plan for a machine.
///
/// # Errors
/// [`Shortage`] where all but the experts, with room to read experts into, does not fit.
pub fn plan(demand: &Demand, machine: &Machine) -> Result<Outlook, Shortage> {
    let fixed = demand.dense_bytes.saturating_add(demand.working_bytes);
    let on_device = machine.device.is_some_and(|device| fixed <= device.size_bytes);
    let dense = if on_device { Home::Device } else { Home::Memory };
    let mut device_bytes = if on_device { fixed } else { 0 };
    // A tied output matrix on the host is the table itself.
    let resident = if on_device { demand.table_bytes } else { fixed.saturating_add(demand.table_bytes) };

    // Without the dense weights, the device has room for experts alone.
    let device_limit = machine.device.map_or(0, |device| device.size_bytes);
    let mut order: Vec<usize> = (0..demand.experts.len()).collect();
    order.sort_by(|a, b| demand.experts[*b].chance.total_cmp(&demand.experts[*a].chance));
    let mut homes = vec![Home::File; demand.experts.len()];
    fill(demand, &order, &mut homes, Home::Device, &mut device_bytes, device_limit);

    // Either all the rest fits, or a part of the memory is for what is being read.
    let left = |homes: &[Home]| -> u64 {
        let items = demand.experts.iter().zip(homes).filter(|(_, home)| **home == Home::File);
        items.map(|(item, _)| item.size_bytes).sum()
    };
    let available_bytes = machine.memory.size_bytes;
    let everything = resident.saturating_add(left(&homes));
    let mut memory_bytes = if everything <= available_bytes {
        resident
    } else {
        resident.saturating_add(demand.staging_bytes())
    };
    if memory_bytes > available_bytes {
        return Err(Shortage { needed_bytes: memory_bytes.min(everything), available_bytes });
    }
    fill(demand, &order, &mut homes, Home::Memory, &mut memory_bytes, available_bytes);
    let tokens_per_second = 1.0 / seconds_per_token(demand, machine, dense, &homes);
    Ok(Outlook { dense, experts: homes, device_bytes, memory_bytes, tokens_per_second })
}

/// Gives `home` to the experts without one, in this order, as far as they fit.
fn fill(
    demand: &Demand,
    order: &[usize],
    homes: &mut [Home],
    home: Home,
    used_bytes: &mut u64,
    limit_bytes: u64,
) {
    for &index in order.iter() {
        let with_it = used_bytes.saturating_add(demand.experts[index].size_bytes);
        if homes[index] == Home::File && with_it <= limit_bytes {
            homes[index] = home;
            *used_bytes = with_it;
        }
    }
}

fn seconds_per_token(demand: &Demand, machine: &Machine, dense: Home, homes: &[Home]) -> f64 {
    let rate = |home: Home| match home {
        Home::Device => machine.device.map_or(f64::INFINITY, |device| device.bytes_per_second),
        Home::Memory => machine.memory.bytes_per_second,
        Home::File => machine.file_bytes_per_second,
    };
    let read = demand.experts.iter().zip(homes);
    let experts: f64 = read.map(|(item, home)| item.chance * item.size_bytes as f64 / rate(*home)).sum();
    demand.dense_bytes as f64 / rate(dense) + experts
}

/// Tokens per second with `extra_bytes` more on the device and, second, with as much more memory instead; `None` where
/// there is no device, or it still does not fit.
pub fn with_more(demand: &Demand, machine: &Machine, extra_bytes: u64) -> (Option<f64>, Option<f64>) {
    let more = |store: Store| Store { size_bytes: store.size_bytes.saturating_add(extra_bytes), ..store };
    let speed = |machine: Machine| plan(demand, &machine).ok().map(|outlook| outlook.tokens_per_second);
    let device = machine.device.and_then(|device| speed(Machine { device: Some(more(device)), ..*machine }));
    (device, speed(Machine { memory: more(machine.memory), ..*machine }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: f64 = 1e9;

    /// A 4x7B model, top 2, at Q4_K_M: 32 layers of 4 experts.
    fn four_times_seven(working: f64) -> Demand {
        let item = |index: u32| ExpertItem {
            layer: index / 4,
            expert: index % 4,
            size_bytes: (13.65 * GB / 128.0) as u64,
            chance: 0.5,
        };
        Demand {
            dense_bytes: (0.88 * GB) as u64,
            table_bytes: (0.07 * GB) as u64,
            working_bytes: (working * GB) as u64,
            experts: (0..128).map(item).collect(),
            n_used: 2,
        }
    }

    fn store(gigabytes: f64, gigabytes_per_second: f64) -> Store {
        Store { size_bytes: (gigabytes * GB) as u64, bytes_per_second: gigabytes_per_second * GB }
    }

    fn machine(device: Option<Store>, memory: Store) -> Machine {
        Machine { device, memory, file_bytes_per_second: 3.0 * GB }
    }

    fn count(outlook: &Outlook, home: Home) -> usize {
        outlook.experts.iter().filter(|at| **at == home).count()
    }

    #[test]
    fn speed_is_what_the_bandwidths_allow() {
        // (0.88 + 6.83 h) / device + 6.83 (1 - h) / memory, with h of the experts on the device.
        for (device, memory, expected) in [(store(12.0, 360.0), 40.0, 14.3), (store(8.0, 272.0), 65.0, 13.0)]
        {
            let outlook =
                plan(&four_times_seven(1.8), &machine(Some(device), store(32.0, memory))).expect("it fits");
            let h = count(&outlook, Home::Device) as f64 / 128.0;
            let rate = device.bytes_per_second / GB;
            let by_hand = 1.0 / ((0.88 + 6.825 * h) / rate + 6.825 * (1.0 - h) / memory);
            assert!((outlook.tokens_per_second / by_hand - 1.0).abs() < 1e-3, "{outlook:?}");
            assert!(
                (outlook.tokens_per_second / expected - 1.0).abs() < 0.05,
                "{}",
                outlook.tokens_per_second
            );
            assert_eq!(count(&outlook, Home::File), 0);
        }
    }

    #[test]
    fn budgets_are_kept_and_more_is_never_slower() {
        let demand = four_times_seven(0.5);
        let mut before = 0.0;
        for tenths in 20..200u32 {
            let size = f64::from(tenths) / 10.0;
            let machine = machine(Some(store(size / 2.0, 300.0)), store(size, 40.0));
            let outlook = plan(&demand, &machine).expect("it fits");
            assert!(outlook.device_bytes <= machine.device.expect("a device").size_bytes, "{size} GB");
            assert!(outlook.memory_bytes <= machine.memory.size_bytes, "{size} GB");
            assert!(outlook.tokens_per_second >= before, "{size} GB");
            before = outlook.tokens_per_second;
        }
        let machine = machine(Some(store(6.0, 300.0)), store(6.0, 40.0));
        let now = plan(&demand, &machine).expect("it fits").tokens_per_second;
        let (device, memory) = with_more(&demand, &machine, 1_000_000_000);
        assert!(device > Some(now) && memory > Some(now), "{now}: {device:?} {memory:?}");
    }

    #[test]
    fn the_experts_taken_most_often_come_first() {
        let mut demand = four_times_seven(0.0);
        demand.experts.iter_mut().for_each(|item| item.chance = if item.expert == 3 { 0.9 } else { 0.3 });
        let outlook = plan(&demand, &machine(None, store(6.0, 40.0))).expect("it fits");
        let kept = |expert: u32| {
            let items = demand.experts.iter().zip(&outlook.experts);
            items.filter(|(item, home)| item.expert == expert && **home == Home::Memory).count()
        };
        assert_eq!(kept(3), 32);
        assert!(kept(0) < 32 && count(&outlook, Home::Device) == 0);
        assert_eq!(outlook.dense, Home::Memory);
    }

    #[test]
    fn what_can_not_fit_says_how_much_it_needs() {
        let demand = four_times_seven(0.5);
        let error = plan(&demand, &machine(None, store(1.0, 40.0))).expect_err("dense weights and cache");
        assert!(error.needed_bytes > 1_800_000_000 && error.available_bytes == 1_000_000_000, "{error}");
        let error = error.to_string();
        assert!(error.contains("bytes of memory are needed"), "{error}");
        let exactly = plan(&demand, &machine(None, store(15.1, 40.0))).expect("all of it");
        assert_eq!(count(&exactly, Home::Memory), 128);
    }
}
