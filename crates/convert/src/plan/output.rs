//! A file to be written: metadata, tensors, and where everything lies.

use gguf::{Layout, Metadata};
use model_spec::{FileType, TensorId, keys};
use quants::TensorType;

use crate::Error;

/// One tensor of one output.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedTensor {
    /// Which tensor it is.
    pub id: TensorId,
    /// Its name in the file.
    pub name: String,
    /// Its shape, `ne[0]` contiguous.
    pub ne: Vec<u64>,
    /// Its type.
    pub ty: TensorType,
    /// Its size.
    pub size_bytes: u64,
    /// The source tensors it is made of, in order, each once.
    pub sources: Vec<String>,
}

impl PlannedTensor {
    pub(super) fn add_source(&mut self, name: &str) {
        if !self.sources.iter().any(|s| s == name) {
            self.sources.push(name.to_owned());
        }
    }
}

/// One file to be written.
#[derive(Debug)]
pub struct OutputPlan {
    /// The recipe its types follow.
    pub file_type: FileType,
    /// Its metadata.
    pub metadata: Metadata,
    /// Its tensors, in file order.
    pub tensors: Vec<PlannedTensor>,
    /// Where everything lies in it.
    pub layout: Layout,
}

impl OutputPlan {
    /// Number of weights in the file.
    pub fn n_weights(&self) -> u64 {
        self.tensors.iter().map(|t| t.ne.iter().product::<u64>()).sum()
    }

    /// Bits per weight, over the tensors alone.
    pub fn bits_per_weight(&self) -> f64 {
        let bytes: u64 = self.tensors.iter().map(|t| t.size_bytes).sum();
        bytes as f64 * 8.0 / self.n_weights() as f64
    }

    /// Each type in use with the number of its tensors and bytes, the largest first.
    pub fn types(&self) -> Vec<(TensorType, usize, u64)> {
        let mut types: Vec<(TensorType, usize, u64)> = Vec::new();
        for t in &self.tensors {
            match types.iter_mut().find(|row| row.0 == t.ty) {
                Some(row) => {
                    row.1 += 1;
                    row.2 += t.size_bytes;
                }
                None => types.push((t.ty, 1, t.size_bytes)),
            }
        }
        types.sort_by_key(|row| (std::cmp::Reverse(row.2), row.0.id()));
        types
    }
}

/// Alignment of tensor data; GGUF's default, and what llama.cpp writes.
const ALIGNMENT: u32 = 32;

/// The alignment of a file with this metadata.
pub(crate) fn alignment(metadata: &Metadata) -> Result<u32, Error> {
    Ok(metadata.u32(keys::GENERAL_ALIGNMENT)?.unwrap_or(ALIGNMENT))
}
