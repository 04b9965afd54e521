//! Opens what is to be converted.

use checkpoint::Checkpoint;
use convert::{GgufModel, Input};

use crate::config::{self, Config};

/// The checkpoint directory or GGUF file, its headers read and checked, and what is odd about it.
pub fn open(config: &Config) -> Result<(Box<dyn Input>, Vec<String>), anyhow::Error> {
    // What is neither is for the checkpoint's error to say.
    if config.model.metadata().is_ok_and(|m| !m.is_dir()) {
        let model =
            GgufModel::open(&config.model, config.open.ignore_unknown_tensors).map_err(config::advise)?;
        let warnings = model.warnings().to_vec();
        return Ok((Box::new(model), warnings));
    }
    let checkpoint = Checkpoint::open_with(&config.model, &config.open)?;
    let warnings = checkpoint.warnings().to_vec();
    Ok((Box::new(checkpoint), warnings))
}
