//! Sums over a file's tensors.

use gguf::{Gguf, TensorInfo};
use quants::TensorType;

/// What the tensors of one type amount to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Number of tensors.
    pub n_tensors: usize,
    /// Number of weights.
    pub n_weights: u64,
    /// Bytes.
    pub size_bytes: u64,
}

impl Total {
    fn add(&mut self, tensor: &TensorInfo) {
        self.n_tensors += 1;
        self.n_weights += n_weights(tensor);
        self.size_bytes += tensor.size;
    }

    /// Bits that a weight takes; 0 where there are none.
    pub fn bits_per_weight(&self) -> f64 {
        if self.n_weights == 0 { 0.0 } else { self.size_bytes as f64 * 8.0 / self.n_weights as f64 }
    }
}

/// Number of weights of a tensor.
pub fn n_weights(tensor: &TensorInfo) -> u64 {
    tensor.ne.iter().product()
}

/// All tensors together.
pub fn total(gguf: &Gguf) -> Total {
    let mut total = Total::default();
    gguf.tensors().iter().for_each(|tensor| total.add(tensor));
    total
}

/// The types in use, that with the most bytes first.
pub fn by_type(gguf: &Gguf) -> Vec<(TensorType, Total)> {
    let mut totals: Vec<(TensorType, Total)> =
        TensorType::ALL.iter().map(|ty| (*ty, Total::default())).collect();
    for tensor in gguf.tensors() {
        if let Some((_, total)) = totals.iter_mut().find(|(ty, _)| *ty == tensor.ty) {
            total.add(tensor);
        }
    }
    totals.retain(|(_, total)| total.n_tensors > 0);
    totals.sort_by_key(|(_, total)| std::cmp::Reverse(total.size_bytes));
    totals
}

/// What the file says it is: architecture, name, size label and file type, as far as they are there.
pub fn title(gguf: &Gguf) -> String {
    use model_spec::{FileType, keys};
    let text = |key| gguf.metadata().str(key).ok().flatten().map(str::to_owned);
    let file_type = gguf.metadata().u32(keys::GENERAL_FILE_TYPE).ok().flatten();
    let file_type = file_type.map(|id| match FileType::from_id(id) {
        Some(known) => known.name().to_owned(),
        None => format!("file type {id}"),
    });
    let parts = [
        text(keys::GENERAL_ARCHITECTURE),
        text(keys::GENERAL_SIZE_LABEL),
        file_type,
        text(keys::GENERAL_NAME).map(|name| format!("\"{name}\"")),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}
