//! Experts that are read from the file when tokens take them.

use super::ModelOptions;
use super::bind::Binder;
use crate::kernels::Kernels;
use crate::residency::Repack;
use crate::{Error, memory};
use expert_pool::{Files, LayerSource, MatrixSource, Options, Pool};
use ggml::BufferType;
use gguf::{Gguf, TensorInfo};
use model_spec::{HyperParams, TensorId, TensorRole};
use std::sync::Arc;

/// Settles what streaming leaves no choice about.
///
/// # Errors
/// [`Error::Option`] where something else was asked for, or the model has no experts.
pub(super) fn prepare(hparams: &HyperParams, options: &mut ModelOptions) -> Result<(), Error> {
    let refuse = |found: &str, expected: &str| {
        Err(Error::Option { option: "--expert-pool", found: found.to_owned(), expected: expected.to_owned() })
    };
    if !hparams.is_moe() {
        return refuse("a model without experts", "a Mixture of Experts");
    }
    if options.kernels == Some(Kernels::Ggml) {
        return refuse("--kernels ggml", "--kernels bruce, which multiplies while experts arrive");
    }
    options.placement.repack = Repack::Off;
    // Mapped weights could be dropped from memory, and would have to be read again page by page.
    options.use_mmap = false;
    Ok(())
}

impl Binder<'_> {
    /// Whether the experts of a layer are streamed, which those are that the host has.
    ///
    /// # Errors
    /// [`Error::Option`] where a layer has experts here and there, but in slots.
    pub(super) fn streams(&self, layer: u32) -> Result<bool, Error> {
        if self.options.expert_pool_bytes.is_none() {
            return Ok(false);
        }
        let roles = [TensorRole::FfnGate, TensorRole::FfnUp, TensorRole::FfnDown];
        let single = roles.iter().flat_map(|role| {
            (0..self.hparams.n_expert).map(|expert| TensorId::of_expert(*role, layer, expert))
        });
        let stacked = roles.iter().filter_map(|role| Some(TensorId::in_layer(role.stacked()?, layer)));
        let there = single.chain(stacked).filter(|id| self.find(id).is_some());
        let on_host: Vec<bool> =
            there.map(|id| self.placement.place(&id.name(), &id) == BufferType::cpu()).collect();
        let all = on_host.iter().all(|on_host| *on_host);
        if !all && on_host.contains(&true) {
            return Err(Error::Option {
                option: "--expert-pool",
                found: format!("rules that put experts of layer {layer} on a device and others on the host"),
                expected: "one place for a layer's experts, or --expert-slots".to_owned(),
            });
        }
        Ok(all)
    }
}

/// The matrices of one projection of `n_expert` experts: a stacked tensor, or one for each.
pub(crate) fn sources(pieces: &[&TensorInfo], n_expert: usize) -> Vec<MatrixSource> {
    let one = |info: &TensorInfo, index: u64, size: u64| {
        let n_rows = info.ne[1];
        MatrixSource {
            name: info.name.clone(),
            file: info.part,
            offset: info.offset + index * size,
            row_bytes: (size / n_rows) as usize,
            n_rows: n_rows as usize,
        }
    };
    match pieces {
        [stacked] if n_expert != 1 => {
            let size = stacked.size / n_expert as u64;
            (0..n_expert as u64).map(|index| one(stacked, index, size)).collect()
        }
        _ => pieces.iter().map(|info| one(info, 0, info.size)).collect(),
    }
}

/// The pool for these layers.
///
/// # Errors
/// [`Error::ExpertPool`]; [`Error::PoolMemory`] where the pool is more than the memory that `dense_bytes`, which have theirs,
/// leave.
pub(super) fn pool(
    gguf: &Gguf,
    layers: &[LayerSource],
    options: Options,
    dense_bytes: u64,
) -> Result<Arc<Pool>, Error> {
    let size_bytes = options.size_bytes;
    let needed = size_bytes.min(Pool::all_bytes(layers));
    if let Some(available_bytes) = memory::available_bytes().filter(|available| needed > *available) {
        return Err(Error::PoolMemory { needed_bytes: needed, dense_bytes, available_bytes });
    }
    Ok(Arc::new(Pool::new(Files::open(gguf.parts())?, layers, options)?))
}
