//! Which batches devices compute with the host's experts, from short measurements.

use super::Plan;
use crate::bandwidth::{Multiplier, copy_rate};
use crate::model::ModelOptions;
use crate::plan::survey::Survey;
use crate::residency::budget::crossover;
use crate::session::SessionOptions;
use crate::{Error, Kernels};
use ggml::{Device, DeviceKind};
use gguf::Gguf;

/// From how many tokens on a batch has experts staged, and what that follows from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Crossover {
    /// Tokens.
    pub n_tokens: u32,
    /// Bytes that a device takes in a second.
    pub copied_bytes_per_second: f64,
    /// Bytes of weights that the CPU multiplies with a token's activations in a second, in a batch.
    pub multiplied_bytes_per_second: f64,
}

/// Tokens of the batch that is measured: an expert gets its part of a large one.
const N_TOKENS: usize = 128;
/// Bytes that are copied from.
const SOURCE_BYTES: usize = 64 << 20;

impl Plan {
    /// Measures which batches have experts staged, where the plan has room for that; takes about a quarter of a second.
    /// `model` and `session` are those that the plan was made for.
    ///
    /// # Errors
    /// Where a device fails or memory is short.
    pub fn measure_crossover(
        &mut self,
        gguf: &Gguf,
        model: &ModelOptions,
        session: &SessionOptions,
    ) -> Result<(), Error> {
        let Some(device) = self.machine.device.filter(|_| self.outlook.stages_experts()) else {
            return Ok(());
        };
        let survey = Survey::new(gguf, model, &super::Budget::default())?;
        let experts = gguf.tensors().iter().filter(|tensor| super::is_expert(&tensor.name));
        let (Some(first), Some(largest)) = (survey.devices.first(), experts.max_by_key(|tensor| tensor.size))
        else {
            return Ok(());
        };
        let cpu =
            Device::find(DeviceKind::Cpu).ok_or(ggml::Error::NoCpuBackend { searched: String::new() })?;
        let bytes = gguf.data(largest);
        let copied = copy_rate(*first, &bytes[..bytes.len().min(SOURCE_BYTES)], device.size_bytes / 4)?;
        // As many tokens as an expert gets of a batch; ggml's kernels gain more from many.
        let n_rows = N_TOKENS * self.demand.n_used.max(1) as usize / self.demand.n_expert.max(1) as usize;
        let kernels = if self.pool_bytes.is_some() { Kernels::Bruce } else { survey.kernels };
        let (room_bytes, token_bytes) = (self.machine.memory.size_bytes / 4, SOURCE_BYTES as u64);
        let threads = if session.n_threads_batch == 0 { session.n_threads } else { session.n_threads_batch };
        let multiplier =
            Multiplier::new(cpu, kernels, threads, room_bytes, token_bytes)?.with_tokens(n_rows.max(1));
        let multiplied = multiplier.rate_of_copies(gguf, largest, &[])?;
        if let (Some(copied), Some(multiplied)) = (copied, multiplied) {
            let (n_used, n_expert) = (self.demand.n_used, self.demand.n_expert);
            let chances = &self.outlook.chances;
            let on_host = chances.memory + chances.file;
            let share = if on_host > 0.0 { chances.file / on_host } else { 0.0 };
            let reading = match self.is_measured && share > 0.0 {
                true => share * copied / self.machine.disk.bytes_per_second,
                false => 0.0,
            };
            self.crossover = Some(Crossover {
                n_tokens: crossover(copied, multiplied, reading, n_used, n_expert),
                copied_bytes_per_second: copied,
                multiplied_bytes_per_second: multiplied,
            });
        }
        Ok(())
    }
}
