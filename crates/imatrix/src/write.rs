//! Writes importances as GGUF, as llama-imatrix does.

use std::path::Path;

use gguf::{Layout, Metadata, Overwrite, TensorSpec, Writer};
use quants::TensorType;

use crate::read::{CHUNK_COUNT_KEY, CHUNK_SIZE_KEY, DATASETS_KEY, TYPE_KEY};
use crate::{Error, Imatrix};

impl Imatrix {
    /// Writes the GGUF format, complete or not at all. llama-quantize reads it, and llama-imatrix can add to it.
    ///
    /// # Errors
    /// The file can't be written, or is there and not to be replaced; a tensor's name has more than the 55 bytes that
    /// leave room for a suffix.
    pub fn write(&self, path: &Path, overwrite: Overwrite) -> Result<(), Error> {
        let mut metadata = Metadata::new();
        metadata.set(TYPE_KEY, "imatrix");
        metadata.set(DATASETS_KEY, self.datasets.clone());
        metadata.set(CHUNK_COUNT_KEY, self.chunk_count);
        metadata.set(CHUNK_SIZE_KEY, self.chunk_size);
        let mut specs = Vec::new();
        for (name, entry) in &self.entries {
            let n_mats = entry.counts.len() as u64;
            let n_cols = entry.sums.len() as u64 / n_mats;
            for (suffix, cols) in [("in_sum2", n_cols), ("counts", 1)] {
                let (name, ne) = (format!("{name}.{suffix}"), vec![cols, n_mats]);
                specs.push(TensorSpec { name, ne, ty: TensorType::F32 });
            }
        }
        let layout = Layout::new(&metadata, &specs, gguf::DEFAULT_ALIGNMENT)?;
        let writer = Writer::create(path, layout, overwrite)?;
        for (i, entry) in self.entries.values().enumerate() {
            writer.write_at(2 * i, 0, &bytes(entry.sums.iter().copied()))?;
            writer.write_at(2 * i + 1, 0, &bytes(entry.counts.iter().map(|count| *count as f32)))?;
        }
        writer.finish()?;
        Ok(())
    }
}

fn bytes(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.flat_map(f32::to_le_bytes).collect()
}
