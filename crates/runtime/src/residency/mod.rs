//! Where each weight lives: one map from tensor (and expert) to a device's memory.
//!
//! The map is made from the headers alone, before a byte is read. The graph does not know it: the scheduler runs an
//! operation where its weights lie, and an [expert bank](crate::model::ExpertBank) splits the experts of a layer into
//! one group for each place and type. So a new policy changes this map and nothing else.
//!
//! Rules, the first that applies: `-ot REGEX=BUFFER`, matched against the GGUF name; experts of the first `-ncmoe`
//! layers (all with `-cmoe`) on the host; those of layers with [`ExpertSlots`] for some on the host too, with copies of
//! these on the layer's device; the last `-ngl` layers on the devices, split by free memory, where the output
//! matrix counts as one layer after the last; the rest, and always the token embeddings, on the host. These are
//! llama.cpp's rules and names.

pub mod budget;
mod slots;

pub use slots::ExpertSlots;

use crate::{Error, memory};
use ggml::{BufferType, Device, DeviceKind};
use gguf::TensorInfo;
use model_spec::{HyperParams, TensorId, TensorRole};
use regex::Regex;

/// How many layers go to the devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GpuLayers {
    /// As many as fit in the devices' free memory.
    #[default]
    Auto,
    /// This many, counted from the output backwards.
    Count(u32),
    /// All.
    All,
}

/// Whether weights that the CPU multiplies with are kept in ggml's repacked layout, a copy in memory, instead of being
/// read from the mapped file.
///
/// llama.cpp repacks by default, and its results differ in the last bits from those of the plain layout; so equality
/// with it token by token wants the same choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repack {
    /// Where the copy leaves at least half of the free memory.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never: loading takes no time and the page cache is the only copy.
    Off,
}

/// What the user says about placement.
#[derive(Clone, Debug, Default)]
pub struct PlacementOptions {
    /// `-ngl`.
    pub n_gpu_layers: GpuLayers,
    /// `-ncmoe`: experts of this many layers, from the first on, stay on the host.
    pub n_cpu_moe: u32,
    /// `-cmoe`: all experts stay on the host.
    pub cpu_moe: bool,
    /// `-ot`: names that match go to the buffer type so named.
    pub overrides: Vec<(Regex, String)>,
    /// `-dev`: the devices to use, by name; all GPUs when `None`, none when empty.
    pub devices: Option<Vec<String>>,
    /// `--repack`.
    pub repack: Repack,
    /// `-ts`: share of the layers of each device; by free memory when empty.
    pub tensor_split: Vec<f32>,
    /// `--expert-slots`: experts of each layer on devices that have a copy in its device's memory, while the host keeps
    /// all; `None` places experts like other weights.
    pub expert_slots: Option<ExpertSlots>,
    /// `--fixed-experts`: the experts in the slots stay the same, whatever is asked for.
    pub fixed_experts: bool,
}

/// Free memory of a device that is left alone where nothing is planned, for its compute buffers and the KV cache.
const DEVICE_RESERVE_BYTES: u64 = 512 << 20;

/// Of `free_bytes` of a device's memory, what a plan leaves alone: drivers and libraries take memory that nobody tells.
pub(crate) fn reserve_bytes(free_bytes: u64) -> u64 {
    (free_bytes / 16).min(256 << 20)
}

/// The finished map.
#[derive(Debug)]
pub struct Placement {
    devices: Vec<Device>,
    host: BufferType,
    /// For each layer, and last the output: index into `devices`, or the host.
    layers: Vec<Option<usize>>,
    overrides: Vec<(Regex, BufferType)>,
    host_experts_below: u32,
    /// Layouts of its own that the CPU may keep weights in.
    repacked: Vec<BufferType>,
    n_expert: u32,
    /// For each layer the experts that are to have a slot; none where experts are placed like other weights.
    slots: Vec<Vec<u32>>,
}

impl Placement {
    /// Decides for a model with these tensors.
    ///
    /// # Errors
    /// [`Error::Option`] when a device or buffer type is named that does not exist.
    pub fn plan(
        hparams: &HyperParams,
        tensors: &[TensorInfo],
        options: &PlacementOptions,
    ) -> Result<Self, Error> {
        let devices = chosen_devices(options.devices.as_deref())?;
        let overrides = options
            .overrides
            .iter()
            .map(|(regex, name)| Ok((regex.clone(), buffer_type(name)?)))
            .collect::<Result<_, Error>>()?;
        let n_layer = hparams.n_layer;
        let mut placement = Placement {
            devices,
            host: BufferType::cpu(),
            layers: vec![None; n_layer as usize + 1],
            overrides,
            host_experts_below: if options.cpu_moe { u32::MAX } else { options.n_cpu_moe },
            repacked: repacked_types(options.repack, tensors),
            n_expert: hparams.n_expert,
            slots: Vec::new(),
        };
        if let Some(slots) = &options.expert_slots {
            slots::check(slots, hparams, tensors, options, placement.devices.len())?;
            placement.slots = (0..n_layer).map(|layer| slots.of_layer(layer, hparams.n_expert)).collect();
        }
        let free: Vec<u64> = placement.devices.iter().map(|d| d.memory().0 as u64).collect();
        let n_gpu = if placement.devices.is_empty() {
            0
        } else {
            match options.n_gpu_layers {
                GpuLayers::All => n_layer + 1,
                GpuLayers::Count(n) => n.min(n_layer + 1),
                GpuLayers::Auto => placement.layers_that_fit(tensors, &free),
            }
        };
        let shares = shares(&options.tensor_split, &free);
        let first = n_layer + 1 - n_gpu;
        for layer in first..=n_layer {
            let position = f64::from(layer - first) / f64::from(n_gpu);
            let device = shares.iter().position(|end| position < *end).unwrap_or(shares.len() - 1);
            placement.layers[layer as usize] = Some(device);
        }
        Ok(placement)
    }

    /// How many layers, from the output backwards, the devices hold together with room to compute.
    fn layers_that_fit(&self, tensors: &[TensorInfo], free: &[u64]) -> u32 {
        let mut sizes = vec![0u64; self.layers.len()];
        for tensor in tensors {
            if let Some(id) = TensorId::parse(&tensor.name) {
                let pinned = self.overrides.iter().any(|(regex, _)| regex.is_match(&tensor.name));
                if !pinned {
                    sizes[self.layer_of(&id)] += self.device_bytes(&id, tensor.size);
                }
            }
        }
        let mut room: u64 = free.iter().map(|f| f.saturating_sub(DEVICE_RESERVE_BYTES)).sum();
        let mut n = 0;
        for size in sizes.iter().rev() {
            match room.checked_sub(*size) {
                Some(rest) => room = rest,
                None => break,
            }
            n += 1;
        }
        n
    }

    /// Bytes on the device of a tensor in one of its layers.
    fn device_bytes(&self, id: &TensorId, size: u64) -> u64 {
        if !self.stays_on_host(id) {
            return size;
        }
        let in_slots = id.layer.and_then(|layer| self.slots.get(layer as usize));
        let Some(in_slots) = in_slots.filter(|_| id.is_expert()) else { return 0 };
        match id.expert {
            Some(expert) => size * u64::from(in_slots.contains(&expert)),
            None => size / u64::from(self.n_expert.max(1)) * in_slots.len() as u64,
        }
    }

    fn layer_of(&self, id: &TensorId) -> usize {
        id.layer.map_or(self.layers.len() - 1, |layer| (layer as usize).min(self.layers.len() - 1))
    }

    fn stays_on_host(&self, id: &TensorId) -> bool {
        id.role == TensorRole::TokenEmbd
            || (id.is_expert() && id.layer.is_some_and(|l| l < self.host_experts_below || self.has_misses(l)))
    }

    /// Whether the layer's device, if it has one, is to hold some of its experts only.
    fn has_misses(&self, layer: u32) -> bool {
        self.slots.get(layer as usize).is_some_and(|experts| experts.len() < self.n_expert as usize)
    }

    /// The experts of a layer that have copies in slots when the model is loaded, and where the slots are; `None` where
    /// each expert has one place only.
    pub fn slots(&self, layer: u32) -> Option<(BufferType, &[u32])> {
        let device = self.layers[layer as usize]?;
        let experts = self.slots.get(layer as usize).filter(|e| !e.is_empty() && self.has_misses(layer))?;
        Some((self.devices[device].buffer_type(), experts))
    }

    /// Where the tensor of this name goes.
    pub fn place(&self, name: &str, id: &TensorId) -> BufferType {
        if let Some((_, buffer)) = self.overrides.iter().find(|(regex, _)| regex.is_match(name)) {
            return *buffer;
        }
        if self.stays_on_host(id) {
            return self.host;
        }
        self.layers[self.layer_of(id)].map_or(self.host, |device| self.devices[device].buffer_type())
    }

    /// Layouts of its own that the CPU may keep weights in, the preferred first; empty where weights stay as they are.
    pub fn repacked(&self) -> &[BufferType] {
        &self.repacked
    }

    /// Where a layer's KV cache goes: where its attention is computed.
    pub fn place_cache(&self, layer: u32) -> BufferType {
        self.layers[layer as usize].map_or(self.host, |device| self.devices[device].buffer_type())
    }

    /// The devices in use, without the CPU.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// How many layers (the output counts as one) are on devices.
    pub fn n_gpu_layers(&self) -> usize {
        self.layers.iter().flatten().count()
    }
}

pub(crate) fn repacked_types(repack: Repack, tensors: &[TensorInfo]) -> Vec<BufferType> {
    let weights: u64 = tensors.iter().map(|t| t.size).sum();
    let wanted = match repack {
        Repack::On => true,
        Repack::Off => false,
        Repack::Auto => memory::available_bytes().is_none_or(|free| weights <= free / 2),
    };
    let cpu = Device::find(DeviceKind::Cpu).filter(|_| wanted);
    cpu.map(Device::extra_buffer_types).unwrap_or_default()
}

/// Where each device's share of the layers ends, as fractions of all: the user's proportions, or free memory.
fn shares(split: &[f32], free: &[u64]) -> Vec<f64> {
    let given: Vec<f64> =
        (0..free.len()).map(|i| split.get(i).map_or(0.0, |s| f64::from(*s).max(0.0))).collect();
    let parts =
        if given.iter().sum::<f64>() > 0.0 { given } else { free.iter().map(|f| *f as f64 + 1.0).collect() };
    let total: f64 = parts.iter().sum();
    let mut end = 0.0;
    parts
        .iter()
        .map(|part| {
            end += part / total;
            end
        })
        .collect()
}

fn gpus() -> Vec<Device> {
    ggml::devices()
        .into_iter()
        .filter(|d| matches!(d.kind(), DeviceKind::Gpu | DeviceKind::IntegratedGpu))
        .collect()
}

fn names(devices: &[Device]) -> String {
    if devices.is_empty() {
        "none: no GPU is there".to_owned()
    } else {
        devices.iter().map(|d| d.name()).collect::<Vec<_>>().join(", ")
    }
}

pub(crate) fn chosen_devices(wanted: Option<&[String]>) -> Result<Vec<Device>, Error> {
    let all = gpus();
    let Some(wanted) = wanted else {
        // An integrated GPU shares the host's memory and only pays where there is no card.
        let cards: Vec<Device> = all.iter().copied().filter(|d| d.kind() == DeviceKind::Gpu).collect();
        return Ok(if cards.is_empty() { all } else { cards });
    };
    wanted
        .iter()
        .filter(|name| !name.eq_ignore_ascii_case("none"))
        .map(|name| {
            all.iter().copied().find(|d| d.name().eq_ignore_ascii_case(name)).ok_or_else(|| Error::Option {
                option: "--device",
                found: name.clone(),
                expected: names(&all),
            })
        })
        .collect()
}

fn buffer_type(name: &str) -> Result<BufferType, Error> {
    let mut all = vec![BufferType::cpu()];
    all.extend(gpus().iter().map(|d| d.buffer_type()));
    all.iter().copied().find(|b| b.name().eq_ignore_ascii_case(name)).ok_or_else(|| Error::Option {
        option: "--override-tensor",
        found: name.to_owned(),
        expected: all.iter().map(|b| b.name()).collect::<Vec<_>>().join(", "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_the_users_split_or_free_memory() {
        assert_eq!(shares(&[3.0, 1.0], &[10, 10]), [0.75, 1.0]);
        assert_eq!(shares(&[], &[99, 299]), [0.25, 1.0]);
        assert_eq!(shares(&[0.0, 1.0], &[10, 10]), [0.0, 1.0]);
    }

    #[test]
    fn an_unknown_device_or_buffer_is_named_with_what_there_is() {
        let error = chosen_devices(Some(&["CUDA9".to_owned()])).expect_err("no such device").to_string();
        assert!(error.contains("CUDA9") && error.contains("--device"), "{error}");
        let error = buffer_type("Moon").expect_err("no such buffer").to_string();
        assert!(error.contains("Moon") && error.contains("CPU"), "{error}");
        assert_eq!(buffer_type("cpu").expect("always there"), BufferType::cpu());
    }
}
