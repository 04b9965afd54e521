//! What there is to use: devices and their free memory, the host's, and what the user's rules take of both.

use super::Budget;
use crate::model::ModelOptions;
use crate::residency::{chosen_devices, reserve_bytes};
use crate::{Error, Kernels, memory};
use ggml::Device;
use gguf::{Gguf, TensorInfo};
use model_spec::HyperParams;

/// Of the host's free memory, this part is left alone.
const HOST_RESERVE: u64 = 32;

pub(super) struct Survey {
    pub devices: Vec<Device>,
    /// Bytes that may be used on them together.
    pub device_bytes: u64,
    /// Bytes of the host that may be used.
    pub memory_bytes: u64,
    pub kernels: Kernels,
    /// Tensors that the user's rules place, by number.
    pinned: Vec<usize>,
    pub pinned_host_bytes: u64,
    pub pinned_device_bytes: u64,
}

impl Survey {
    pub fn new(gguf: &Gguf, model: &ModelOptions, budget: &Budget) -> Result<Survey, Error> {
        let weights: u64 = gguf.tensors().iter().map(|tensor| tensor.size).sum();
        let mut survey = Survey {
            devices: match budget.vram_bytes {
                Some(0) => Vec::new(),
                _ => chosen_devices(model.placement.devices.as_deref())?,
            },
            device_bytes: 0,
            memory_bytes: memory_bytes(memory::available_bytes(), budget.ram_bytes),
            kernels: model.kernels.unwrap_or_else(|| Kernels::for_weights(weights)),
            pinned: Vec::new(),
            pinned_host_bytes: 0,
            pinned_device_bytes: 0,
        };
        for (number, tensor) in gguf.tensors().iter().enumerate() {
            let rule = model.placement.overrides.iter().find(|(regex, _)| regex.is_match(&tensor.name));
            if let Some((_, buffer)) = rule {
                survey.pinned.push(number);
                if buffer.eq_ignore_ascii_case("cpu") {
                    survey.pinned_host_bytes += tensor.size;
                } else {
                    survey.pinned_device_bytes += tensor.size;
                }
            }
        }
        let free: Vec<u64> = survey.devices.iter().map(|device| device.memory().0 as u64).collect();
        let usable = device_bytes(&free, budget.vram_bytes);
        survey.device_bytes = usable.saturating_sub(survey.pinned_device_bytes);
        Ok(survey)
    }

    /// The tensors that are to be placed.
    pub fn tensors(&self, gguf: &Gguf) -> Vec<TensorInfo> {
        let all = gguf.tensors().iter().enumerate();
        all.filter(|(number, _)| self.pinned.binary_search(number).is_err()).map(|(_, t)| t.clone()).collect()
    }
}

/// Of devices with so much free memory, what may be used: less a reserve on each, and no more than the budget.
fn device_bytes(free: &[u64], budget: Option<u64>) -> u64 {
    let total: u64 = free.iter().sum();
    let part = budget.map_or(1.0, |budget| (budget as f64 / total.max(1) as f64).min(1.0));
    let usable = free.iter().map(|free| {
        let share = (*free as f64 * part) as u64;
        share - reserve_bytes(share)
    });
    usable.sum()
}

/// Of the host's memory, what may be used.
fn memory_bytes(available: Option<u64>, budget: Option<u64>) -> u64 {
    let usable = available.map_or(u64::MAX, |free| free - free / HOST_RESERVE);
    budget.map_or(usable, |budget| budget.min(usable))
}

/// Memory that the program takes besides what is planned: code, and what is built from the vocabulary.
pub(super) fn program_bytes(hparams: &HyperParams) -> u64 {
    (40 << 20) + 700 * u64::from(hparams.n_vocab)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_reserve_is_left_on_every_device() {
        assert_eq!(device_bytes(&[8 * GIB, 8 * GIB], None), 16 * GIB - (512 << 20));
        assert_eq!(device_bytes(&[64 << 20], None), 60 << 20);
        // A budget is shared out by free memory, and has the reserve in it.
        assert_eq!(device_bytes(&[8 * GIB, 8 * GIB], Some(8 * GIB)), 8 * GIB - (512 << 20));
        assert_eq!(device_bytes(&[8 * GIB], Some(99 * GIB)), device_bytes(&[8 * GIB], None));
        assert_eq!(device_bytes(&[], Some(GIB)), 0);
    }

    #[test]
    fn a_budget_is_no_more_than_what_is_free() {
        assert_eq!(memory_bytes(Some(32 * GIB), None), 31 * GIB);
        assert_eq!(memory_bytes(Some(32 * GIB), Some(4 * GIB)), 4 * GIB);
        assert_eq!(memory_bytes(Some(32 * GIB), Some(64 * GIB)), 31 * GIB);
        assert_eq!(memory_bytes(None, Some(GIB)), GIB);
    }
}
