//! A GGUF file as input: its tensors as weights, one per expert, and its metadata carried over.
//!
//! The header is checked through [`Gguf`]; weights are read by position and not through its mapping, as a checkpoint's
//! are: a file that shrinks meanwhile gives an error.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use checkpoint::Weight;
use gguf::position::{read_exact_at, read_soon};
use gguf::{Gguf, Metadata, TensorInfo};
use model_spec::{FileType, HyperParams, TensorId, TensorRole, keys};
use quants::TensorType;

use crate::Error;
use crate::input::{Input, Origin};
use crate::metadata::QUANTIZATION_VERSION;
use crate::plan::Options;

/// Most names that an error lists.
const MAX_LISTED: usize = 16;

/// A GGUF file of the Llama architecture (Llama, Mistral, Mixtral) in one or several parts, every header read and
/// checked.
#[derive(Debug)]
pub struct GgufModel {
    gguf: Gguf,
    files: Vec<File>,
    hparams: HyperParams,
    name: String,
    weights: Vec<(TensorId, Weight)>,
    index: HashMap<TensorId, usize>,
    warnings: Vec<String>,
}

impl GgufModel {
    /// Opens a file, or all parts of a split one given by any of them, and checks that the model is whole.
    /// With `ignore_unknown` tensors that no Llama or Mixtral has are left out, with a warning.
    ///
    /// # Errors
    /// The file is malformed, of another architecture, lacks tensors, or has unknown ones.
    pub fn open(path: &Path, ignore_unknown: bool) -> Result<GgufModel, Error> {
        let gguf = Gguf::open(path)?;
        let hparams = HyperParams::from_gguf(&gguf)?;
        let mut warnings = gguf.warnings().to_vec();
        let mut weights = Vec::new();
        let mut unknown = Vec::new();
        for tensor in gguf.tensors() {
            match TensorId::parse(&tensor.name).filter(|id| id.layer.is_none_or(|n| n < hparams.n_layer)) {
                Some(id) => add_weights(&gguf, &hparams, id, tensor, &mut weights)?,
                None => unknown.push(tensor.name.clone()),
            }
        }
        if !unknown.is_empty() {
            let (file, names) = (path.to_owned(), shortened(&unknown));
            let error = Error::UnknownTensors { file, n: unknown.len(), names };
            if !ignore_unknown {
                return Err(error);
            }
            warnings.push(format!("{error}; they are left out"));
        }
        let mut index = HashMap::new();
        for (i, (id, weight)) in weights.iter().enumerate() {
            if index.insert(*id, i).is_some() {
                let (file, tensor) = (gguf.parts()[weight.shard].clone(), weight.source_name.clone());
                return Err(Error::ExpertTwice { file, tensor, expert: id.name() });
            }
        }
        check_whole(path, &hparams, &index)?;
        let mut files = Vec::new();
        for part in gguf.parts() {
            let open = File::open(part);
            files.push(open.map_err(|source| Error::Read { file: part.clone(), source })?);
        }
        let name = gguf.metadata().str(keys::GENERAL_NAME)?.unwrap_or_default().to_owned();
        Ok(GgufModel { gguf, files, hparams, name, weights, index, warnings })
    }

    /// What is odd but usable, one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The file: metadata, parts, tensors.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// The type that most weights have.
    fn commonest_type(&self) -> Option<TensorType> {
        let mut sizes: HashMap<TensorType, u64> = HashMap::new();
        for (_, weight) in &self.weights {
            *sizes.entry(weight.dtype).or_default() += weight.rows * weight.cols;
        }
        sizes.into_iter().max_by_key(|(ty, n)| (*n, ty.id())).map(|(ty, _)| ty)
    }
}

/// The weights that a tensor holds: itself, or one for each expert.
fn add_weights(
    gguf: &Gguf,
    hparams: &HyperParams,
    id: TensorId,
    tensor: &TensorInfo,
    weights: &mut Vec<(TensorId, Weight)>,
) -> Result<(), Error> {
    let whole = Weight {
        source_name: tensor.name.clone(),
        shard: tensor.part,
        dtype: tensor.ty,
        rows: tensor.ne.iter().skip(1).product(),
        cols: tensor.ne[0],
        offset: tensor.offset,
        size: tensor.size,
    };
    // Extents of one at the end do not count, as in ggml.
    let expected = id.ne(hparams);
    let without_ones = |ne: &[u64]| {
        let n = ne.iter().rposition(|n| *n != 1).map_or(1, |last| last + 1);
        ne[..n].to_vec()
    };
    if without_ones(&tensor.ne) != without_ones(&expected) {
        let (file, found) = (gguf.parts()[tensor.part].clone(), tensor.ne.clone());
        return Err(Error::Shape { file, tensor: tensor.name.clone(), found, expected });
    }
    let Some(role) = id.role.unstacked() else {
        weights.push((id, whole));
        return Ok(());
    };
    let n = u64::from(hparams.n_expert);
    for expert in 0..n {
        let (rows, size) = (whole.rows / n, whole.size / n);
        let offset = whole.offset + expert * size;
        let id = TensorId { role, expert: Some(expert as u32), ..id };
        weights.push((id, Weight { rows, size, offset, ..whole.clone() }));
    }
    Ok(())
}

/// Checks that every tensor is there that such a model computes with.
fn check_whole(path: &Path, hparams: &HyperParams, index: &HashMap<TensorId, usize>) -> Result<(), Error> {
    use TensorRole::*;
    let mut needed = vec![TensorId::global(TokenEmbd), TensorId::global(OutputNorm)];
    for layer in 0..hparams.n_layer {
        let in_layer = [AttnNorm, AttnQ, AttnK, AttnV, AttnOutput, FfnNorm];
        needed.extend(in_layer.map(|role| TensorId::in_layer(role, layer)));
        let projections = [FfnGate, FfnUp, FfnDown];
        if hparams.is_moe() {
            needed.push(TensorId::in_layer(FfnGateInp, layer));
            for expert in 0..hparams.n_expert {
                needed.extend(projections.map(|role| TensorId::of_expert(role, layer, expert)));
            }
        } else {
            needed.extend(projections.map(|role| TensorId::in_layer(role, layer)));
        }
    }
    let missing: Vec<String> =
        needed.iter().filter(|id| !index.contains_key(id)).map(TensorId::name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let (file, n, names) = (path.to_owned(), missing.len(), shortened(&missing));
    Err(Error::MissingTensors { file, n, expected: needed.len(), names })
}

fn shortened(names: &[String]) -> String {
    let mut text = names[..names.len().min(MAX_LISTED)].join(", ");
    if names.len() > MAX_LISTED {
        text.push_str(&format!(" and {} more", names.len() - MAX_LISTED));
    }
    text
}

impl Input for GgufModel {
    fn origin(&self) -> Origin {
        Origin::Gguf
    }

    fn path(&self) -> &Path {
        self.gguf.path()
    }

    fn files(&self) -> Vec<&Path> {
        self.gguf.parts().iter().map(PathBuf::as_path).collect()
    }

    fn hparams(&self) -> &HyperParams {
        &self.hparams
    }

    fn weights(&self) -> Box<dyn Iterator<Item = (&TensorId, &Weight)> + '_> {
        Box::new(self.weights.iter().map(|(id, weight)| (id, weight)))
    }

    fn weight(&self, id: &TensorId) -> Option<&Weight> {
        self.index.get(id).map(|i| &self.weights[*i].1)
    }

    fn rope_freqs(&self) -> Option<&[f32]> {
        None
    }

    fn name(&self) -> &str {
        &self.name
    }

    /// What `general.file_type` says, or the file type named after the commonest type.
    fn file_type(&self) -> Option<FileType> {
        let stated = self.gguf.metadata().u32(keys::GENERAL_FILE_TYPE).ok().flatten();
        stated
            .and_then(FileType::from_id)
            .or_else(|| self.commonest_type().and_then(|ty| FileType::from_name(ty.name())))
    }

    /// As llama-quantize carries it over: every entry in its place, but for those about parts, and the two about
    /// quantization at the end.
    fn metadata(&self, file_type: FileType, name: &str, options: &Options) -> Metadata {
        let mut metadata = Metadata::new();
        for (key, value) in self.gguf.metadata().iter() {
            let of_this_file = key.starts_with("split.")
                || [keys::GENERAL_QUANTIZATION_VERSION, keys::GENERAL_FILE_TYPE].contains(&key);
            if !of_this_file {
                metadata.set(key, value.clone());
            }
        }
        if options.name.is_some() {
            metadata.set(keys::GENERAL_NAME, name);
        }
        metadata.set(keys::GENERAL_QUANTIZATION_VERSION, QUANTIZATION_VERSION);
        metadata.set(keys::GENERAL_FILE_TYPE, file_type.id());
        metadata
    }

    fn read(&self, weight: &Weight, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let file = &self.files[weight.shard];
        read_exact_at(file, buf, weight.offset + offset)
            .map_err(|source| Error::Read { file: self.gguf.parts()[weight.shard].clone(), source })
    }

    fn read_soon(&self, weight: &Weight, offset: u64, len: u64) {
        read_soon(&self.files[weight.shard], weight.offset + offset, len);
    }
}
