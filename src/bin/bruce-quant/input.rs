//! Opens what is to be converted.

use std::path::Path;

use checkpoint::{Checkpoint, OpenOptions};
use convert::{GgufModel, Input};

use crate::config;

/// The checkpoint directory or GGUF file, its headers read and checked, and what is odd about it.
pub fn open(path: &Path, options: &OpenOptions) -> Result<(Box<dyn Input>, Vec<String>), anyhow::Error> {
    // What is neither is for the checkpoint's error to say.
    if path.metadata().is_ok_and(|m| !m.is_dir()) {
        let model = GgufModel::open(path, options.ignore_unknown_tensors).map_err(config::advise)?;
        let warnings = model.warnings().to_vec();
        return Ok((Box::new(model), warnings));
    }
    let checkpoint = Checkpoint::open_with(path, options)?;
    let warnings = checkpoint.warnings().to_vec();
    Ok((Box::new(checkpoint), warnings))
}
