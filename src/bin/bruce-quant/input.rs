//! Opens what is to be converted.

use std::path::{Path, PathBuf};

use bruce::exit;
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
    let checkpoint = Checkpoint::open_with(path, options).map_err(|error| match hint(path, &error) {
        Some(hint) => exit::with_hint(error, hint),
        None => error.into(),
    })?;
    let warnings = checkpoint.warnings().to_vec();
    Ok((Box::new(checkpoint), warnings))
}

/// What to do about a checkpoint that can't be read, where that is known.
fn hint(path: &Path, error: &checkpoint::Error) -> Option<String> {
    if is_hub_name(path) {
        return Some(format!(
            "nothing is downloaded: hf download {} --local-dir DIRECTORY, then bruce-quant DIRECTORY",
            path.display()
        ));
    }
    if matches!(error, checkpoint::Error::UnknownTensors { .. }) {
        return Some("--ignore-unknown-tensors leaves them out".to_owned());
    }
    let file = only_gguf_files(path)?;
    Some(format!("it holds a GGUF file, which goes in by its own name: bruce-quant {}", file.display()))
}

/// The first GGUF file of a directory that has no part of a checkpoint's model in it.
fn only_gguf_files(path: &Path) -> Option<PathBuf> {
    let mut files: Vec<PathBuf> = path.read_dir().ok()?.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let has =
        |extension: &str| files.iter().position(|file| file.extension().is_some_and(|e| e == extension));
    match has("safetensors") {
        Some(_) => None,
        None => has("gguf").map(|at| files.swap_remove(at)),
    }
}

/// Whether a path that leads nowhere reads as a model's name on the hub, `user/name`.
fn is_hub_name(path: &Path) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let words: Vec<&str> = path.to_str().unwrap_or_default().split('/').collect();
    let is_word = |word: &&str| !word.is_empty() && word.chars().all(part) && !word.starts_with('.');
    words.len() == 2 && words.iter().all(is_word) && !path.exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_the_hub_are_two_words() {
        for (path, is_name) in [
            ("mistralai/Mixtral-8x7B-v0.1", true),
            ("./models", false),
            ("../models", false),
            ("/models", false),
            ("models", false),
            ("a/b/c", false),
            ("src/bin", false),
        ] {
            assert_eq!(is_hub_name(Path::new(path)), is_name, "{path}");
        }
    }
}
