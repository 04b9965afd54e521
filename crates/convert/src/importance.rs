//! Importances for the weights of a model, out of a file that was made for it.
//!
//! The file has an entry per matrix under the name that the matrix has in a model file: one for all experts of a layer
//! (`blk.0.ffn_up_exps.weight`), or, made from a file of split experts, one for each (`blk.0.ffn_up.3.weight`). Either
//! kind serves either layout: an expert's slice is taken out of the stacked entry.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gguf::Metadata;
use imatrix::Imatrix;
use model_spec::{HyperParams, TensorId, TensorRole};

use crate::Error;

/// How much each column of each weight counts.
#[derive(Debug, Clone, Default)]
pub struct Importance {
    path: PathBuf,
    dataset: Option<String>,
    n_chunks: u32,
    /// By tensor, `[n_mats][n_cols]`.
    entries: BTreeMap<String, Arc<[f32]>>,
    /// Which matrices of an entry no token reached, where there are any.
    unreached: BTreeMap<String, Vec<usize>>,
    /// Parts of names that were to choose entries and are in no entry's name.
    unused: Vec<String>,
}

impl Importance {
    /// The importances of a file, less the entries that `exclude` names a part of; if `include` names any, only those.
    ///
    /// # Errors
    /// The file is not one of importances, or none of its entries is left.
    pub fn read(path: &Path, include: &[String], exclude: &[String]) -> Result<Importance, Error> {
        let Imatrix { mut entries, datasets, chunk_count, .. } = Imatrix::read(path)?;
        let names = |parts: &[String], name: &str| parts.iter().any(|part| name.contains(part.as_str()));
        let is_unused = |part: &&String| !entries.keys().any(|name| name.contains(part.as_str()));
        let unused = include.iter().chain(exclude).filter(is_unused).cloned().collect();
        entries.retain(|name, _| !names(exclude, name) && (include.is_empty() || names(include, name)));
        let mut importance = Importance {
            path: path.to_owned(),
            dataset: datasets.into_iter().next(),
            n_chunks: chunk_count,
            unused,
            ..Importance::default()
        };
        for (name, entry) in entries {
            let means = entry.importance();
            let largest = means.iter().copied().fold(0.0, f32::max);
            if largest > ggml::quantize::MAX_IMPORTANCE {
                let expected = format!("mean squares up to {:e}", ggml::quantize::MAX_IMPORTANCE);
                return Err(importance.wrong(&name, largest.to_string(), expected));
            }
            let n_cols = means.len() / entry.counts.len();
            let unreached: Vec<usize> =
                (0..entry.counts.len()).filter(|i| is_unreached(&means[i * n_cols..][..n_cols])).collect();
            if !unreached.is_empty() {
                importance.unreached.insert(name.clone(), unreached);
            }
            importance.entries.insert(name, means.into());
        }
        if importance.entries.is_empty() {
            let found = "none that are not excluded".to_owned();
            return Err(importance.wrong("entries", found, "one at least".to_owned()));
        }
        Ok(importance)
    }

    /// The importances of a source weight's columns; `None` where the file says nothing about it.
    ///
    /// # Errors
    /// The entry is of another size than the tensor: the file was made for another model. (Token embeddings are not
    /// multiplied with anything; what stands there for them is ignored if it does not fit.)
    pub(crate) fn of(&self, id: &TensorId, hparams: &HyperParams) -> Result<Option<Arc<[f32]>>, Error> {
        let n_cols = id.ne(hparams)[0] as usize;
        if let Some(found) = self.entries.get(&id.name()) {
            return match found.len() == n_cols {
                true => Ok(Some(Arc::clone(found))),
                false if id.role == TensorRole::TokenEmbd => Ok(None),
                false => Err(self.other_size(&id.name(), found.len(), n_cols, 1)),
            };
        }
        let (Some(expert), Some(role)) = (id.expert, id.role.stacked()) else { return Ok(None) };
        let name = TensorId { role, expert: None, ..*id }.name();
        let Some(found) = self.entries.get(&name) else { return Ok(None) };
        let n_expert = hparams.n_expert as usize;
        if found.len() != n_cols * n_expert {
            return Err(self.other_size(&name, found.len(), n_cols, n_expert));
        }
        Ok(Some(found[expert as usize * n_cols..][..n_cols].into()))
    }

    /// What the user should know about this file and this model: weights that it says nothing about.
    pub(crate) fn warnings(&self, missing: &[TensorId]) -> Vec<String> {
        let path = self.path.display();
        let mut warnings = Vec::new();
        // Nothing is multiplied with the embeddings, and llama-imatrix leaves the output matrix out unless asked.
        let missing: Vec<String> = missing
            .iter()
            .filter(|id| !matches!(id.role, TensorRole::TokenEmbd | TensorRole::Output))
            .map(TensorId::name)
            .collect();
        if let Some(first) = missing.first() {
            warnings.push(format!("{path}: no importances for {} weights, such as {first}", missing.len()));
        }
        let mut n_experts = 0;
        let mut examples = Vec::new();
        for (name, experts) in &self.unreached {
            n_experts += experts.len();
            if examples.len() < 3 {
                examples.push(format!("{name} {experts:?}"));
            }
        }
        for part in &self.unused {
            warnings
                .push(format!("{path}: {part:?}, which was to choose importances, is in no entry's name"));
        }
        if n_experts > 0 {
            warnings.push(format!(
                "{path}: {n_experts} matrices were never reached, their columns count alike: {}",
                examples.join(", ")
            ));
        }
        warnings
    }

    /// Adds what llama-quantize says about importances in a file's metadata (tools/quantize/quantize.cpp).
    pub(crate) fn write_metadata(&self, metadata: &mut Metadata) {
        // The name alone: the bytes of an output don't depend on directories.
        let name = self.path.file_name().unwrap_or(self.path.as_os_str());
        metadata.insert("quantize.imatrix.file", cut(&name.to_string_lossy()));
        if let Some(dataset) = &self.dataset {
            metadata.insert("quantize.imatrix.dataset", cut(dataset));
        }
        metadata.insert("quantize.imatrix.entries_count", self.entries.len() as u32);
        if self.n_chunks > 0 {
            metadata.insert("quantize.imatrix.chunks_count", self.n_chunks);
        }
    }

    fn other_size(&self, name: &str, found: usize, n_cols: usize, n_mats: usize) -> Error {
        let found = format!("importances of {found} columns");
        let expected = format!("{} ({n_mats} of {n_cols}), as this model has", n_cols * n_mats);
        self.wrong(name, found, expected)
    }

    fn wrong(&self, what: &str, found: String, expected: String) -> Error {
        Error::Importance { file: self.path.clone(), what: what.to_owned(), found, expected }
    }
}

/// Whether these are the ones that stand for an expert without tokens; no calibration text gives them by itself.
fn is_unreached(means: &[f32]) -> bool {
    means.iter().all(|mean| *mean == 1.0)
}

/// The first 127 bytes, which is what llama-quantize has room for.
fn cut(text: &str) -> &str {
    let end = (0..=text.len().min(127)).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}
