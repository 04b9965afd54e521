//! The bandwidths that a plan's speeds are computed from, measured on the file and the machine at hand.

use super::survey::Survey;
use crate::bandwidth::{FileMeter, Multiplier};
use crate::model::ModelOptions;
use crate::residency::budget::{Demand, Disk};
use crate::residency::repacked_types;
use crate::session::SessionOptions;
use crate::{Error, Kernels};
use ggml::{BufferType, Device, DeviceKind};
use gguf::{Gguf, TensorInfo};
use model_spec::{HyperParams, TensorId, TensorRole};
use quants::TensorType;

/// Types with a smaller part of a token's weights are not measured.
const MIN_PART: f64 = 0.08;

/// Samples of the file's rate that are taken after all else, besides the first and one for each type; and of those beside
/// multiplication.
const LAST_SAMPLES: usize = 2;
const SAMPLES_BESIDE: usize = 3;

#[derive(Clone, Copy, Debug)]
pub(super) struct Rates {
    /// Bytes of weights that devices multiply with in a second.
    pub device: f64,
    /// The CPU.
    pub memory: f64,
    pub disk: Disk,
    /// Whether the page cache was left out in reading the file.
    pub is_file_direct: bool,
    pub seconds_per_token: f64,
}

impl Rates {
    /// For plans without speeds; what is placed where does not depend on them.
    pub const UNKNOWN: Rates = Rates {
        device: 1.0,
        memory: 1.0,
        disk: Disk::apart(1.0),
        is_file_direct: false,
        seconds_per_token: 0.0,
    };

    /// Measures; what reading and multiplying leave of each other only where experts are `streamed`.
    ///
    /// # Errors
    /// Where the file can't be read, or a device fails.
    pub fn measure(
        gguf: &Gguf,
        hparams: &HyperParams,
        model: &ModelOptions,
        session: &SessionOptions,
        survey: &Survey,
        demand: &Demand,
        is_streamed: bool,
    ) -> Result<Rates, Error> {
        let kinds = kinds(gguf, demand);
        let token_bytes = demand.bytes_per_token() as u64;
        let cpu =
            Device::find(DeviceKind::Cpu).ok_or(ggml::Error::NoCpuBackend { searched: String::new() })?;
        let layouts = match survey.kernels {
            Kernels::Ggml => repacked_types(model.placement.repack, gguf.tensors()),
            Kernels::Bruce => Vec::new(),
        };
        // What is mapped is measured where it lies: how fast that is read depends on the pages it happens to be in.
        let fits = gguf.tensors().iter().map(|t| t.size).sum::<u64>() <= survey.memory_bytes;
        let is_mapped = model.use_mmap && model.expert_pool_bytes.is_none() && layouts.is_empty() && fits;
        let mut meter = FileMeter::of_model(gguf, model.expert_readers, survey.memory_bytes / 8)?;
        let multiplier = |device, room_bytes| {
            Multiplier::new(device, survey.kernels, session.n_threads, room_bytes, token_bytes)
        };
        let mut on = |device: Device, room_bytes: u64| -> Result<f64, Error> {
            let layouts: &[BufferType] = if device == cpu { &layouts } else { &[] };
            let multiplier = multiplier(device, room_bytes)?;
            let mut parts = Vec::new();
            for kind in &kinds {
                let rate = if device == cpu && is_mapped {
                    multiplier.rate_in_place(gguf, &kind.tensors)?
                } else {
                    multiplier.rate_of_copies(gguf, kind.largest(), layouts)?
                };
                parts.extend(rate.map(|rate| (kind.part, rate)));
                meter.as_mut().map_or(Ok(()), FileMeter::sample)?;
            }
            Ok(together(&parts))
        };
        // The model is not loaded yet, so that its memory is free for this.
        let memory = on(cpu, survey.memory_bytes / 4)?;
        let device = match survey.devices.first() {
            Some(device) => on(*device, (device.memory().0 / 4) as u64)?,
            None => memory,
        };
        let mut disk = Rates::UNKNOWN.disk;
        let mut is_file_direct = false;
        if let Some(mut meter) = meter {
            (0..LAST_SAMPLES).try_for_each(|_| meter.sample())?;
            let alone = meter.rate();
            disk = Disk::apart(alone.bytes_per_second);
            is_file_direct = alone.is_direct;
            let largest = kinds.iter().max_by(|a, b| a.part.total_cmp(&b.part));
            if let Some(kind) = largest.filter(|_| is_streamed) {
                let sample = || (0..SAMPLES_BESIDE).try_for_each(|_| meter.sample());
                let multiplier = multiplier(cpu, survey.memory_bytes / 4)?;
                let (sampled, share) = multiplier.beside(gguf, kind.largest(), sample)?;
                sampled?;
                meter.keep_last(SAMPLES_BESIDE);
                let beside = meter.rate().bytes_per_second / alone.bytes_per_second.max(1.0);
                disk.share_beside = beside.clamp(MIN_SHARE, 1.0);
                disk.memory_share_beside = share.max(MIN_SHARE);
            }
        }
        Ok(Rates { device, memory, disk, is_file_direct, seconds_per_token: overhead(hparams) })
    }
}

/// Of a rate, what is left beside something else, at the least: below, one of both was not there by chance.
const MIN_SHARE: f64 = 0.05;

/// What a token takes besides weights, as measured: norms, rotary embedding, attention over a short context, and waiting
/// of threads for each other, in each layer; sampling at the end.
fn overhead(hparams: &HyperParams) -> f64 {
    30e-6 * f64::from(hparams.n_layer) + 2e-9 * f64::from(hparams.n_vocab)
}

/// Weights of one type.
struct Kind<'a> {
    ty: TensorType,
    /// Their part of what a token reads.
    part: f64,
    tensors: Vec<&'a TensorInfo>,
}

impl<'a> Kind<'a> {
    fn largest(&self) -> &'a TensorInfo {
        self.tensors.iter().max_by_key(|tensor| tensor.size).expect("a kind has tensors")
    }
}

/// The types that most of a token's weights have.
fn kinds<'a>(gguf: &'a Gguf, demand: &Demand) -> Vec<Kind<'a>> {
    let mut kinds: Vec<Kind<'a>> = Vec::new();
    let mut total = 0.0;
    for tensor in gguf.tensors() {
        let Some(id) = TensorId::parse(&tensor.name) else { continue };
        let is_table = id.role == TensorRole::TokenEmbd && !demand.is_tied;
        if is_table || tensor.ne.iter().filter(|n| **n > 1).count() < 2 {
            continue;
        }
        let share =
            if id.is_expert() { f64::from(demand.n_used) / f64::from(demand.n_expert.max(1)) } else { 1.0 };
        let bytes = tensor.size as f64 * share;
        total += bytes;
        match kinds.iter_mut().find(|kind| kind.ty == tensor.ty) {
            Some(kind) => {
                kind.part += bytes;
                kind.tensors.push(tensor);
            }
            None => kinds.push(Kind { ty: tensor.ty, part: bytes, tensors: vec![tensor] }),
        }
    }
    kinds.iter_mut().for_each(|kind| kind.part /= total);
    kinds.retain(|kind| kind.part >= MIN_PART);
    kinds
}

/// What decoding reaches of the best round over matrices, as measured: threads wait for each other more often, and caches
/// hold other things meanwhile.
const EFFICIENCY: f64 = 0.94;

/// The rate of all in a token, from parts and their rates.
fn together(parts: &[(f64, f64)]) -> f64 {
    let whole: f64 = parts.iter().map(|(part, _)| part).sum();
    let time: f64 = parts.iter().map(|(part, rate)| part / rate).sum();
    if time > 0.0 { EFFICIENCY * whole / time } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_type_counts_by_its_time() {
        assert_eq!(together(&[(0.5, 10.0)]), 10.0 * EFFICIENCY);
        assert!((together(&[(0.5, 10.0), (0.5, 30.0)]) - 15.0 * EFFICIENCY).abs() < 1e-9);
        assert_eq!(together(&[]), 1.0);
    }
}
