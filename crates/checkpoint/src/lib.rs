//! Hugging Face checkpoint directories: shards, configuration, tokenizer, expert layouts.
//!
//! [`Checkpoint::open`] reads every header and small file, checks them against each other, and says what is
//! there in the terms of `model-spec`: a [`Weight`] for each [`TensorId`], one per expert whichever layout the
//! shards have. Weights themselves are read later, piece by piece, with [`Checkpoint::read`], by position and
//! not through a mapping: a file that shrinks meanwhile gives an error, not a signal.
//!
//! Names of the Hugging Face world stop here. Rows of query and key projections keep the order they have in
//! the checkpoint (rotary halves apart); reordering them for GGUF is the converter's part.

mod card;
mod config;
mod directory;
mod error;
mod fields;
#[cfg(test)]
mod fixture;
mod front_matter;
mod json;
mod layout;
mod mergekit;
mod naming;
mod rope;
mod safetensors;
mod shards;
mod vocabulary;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use model_spec::{HyperParams, TensorId};
use quants::TensorType;

use config::Config;
use directory::Directory;

pub use card::{ModelCard, Sampling, Source};
pub use directory::hub_cache_of;
pub use error::{Error, MAX_MISSING_NAMES, Result};
pub use mergekit::{ExpertSource, Mergekit};
pub use vocabulary::{Special, TokenType, TokenizerModel, Vocabulary};

/// One logical tensor: a matrix (or vector) of floats in a shard, rows contiguous.
#[derive(Debug, Clone, PartialEq)]
pub struct Weight {
    /// The name of the tensor it is, or is a slice of, in the shard.
    pub source_name: String,
    /// Index into [`Checkpoint::shards`].
    pub shard: usize,
    /// F32, F16 or BF16.
    pub dtype: TensorType,
    /// Number of rows; 1 for a vector.
    pub rows: u64,
    /// Elements of a row (GGUF's `ne[0]`).
    pub cols: u64,
    /// From the beginning of the shard.
    pub offset: u64,
    /// `rows * cols` elements in bytes.
    pub size: u64,
}

/// What the caller decides where a checkpoint leaves a choice.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Name of the pre-tokenizer (`tokenizer.ggml.pre`) instead of the one recognised from tokenizer.json.
    pub pre_tokenizer: Option<String>,
    /// Leave out tensors that no Llama or Mixtral has, with a warning, instead of refusing the checkpoint.
    pub ignore_unknown_tensors: bool,
}

/// A checkpoint directory, every header read and checked.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    shards: Vec<(PathBuf, File)>,
    hparams: HyperParams,
    rope_freqs: Option<Vec<f32>>,
    weights: Vec<(TensorId, Weight)>,
    index: HashMap<TensorId, usize>,
    vocabulary: Vocabulary,
    card: ModelCard,
    mergekit: Option<Mergekit>,
    warnings: Vec<String>,
}

/// config.json has a few kilobytes.
const MAX_CONFIG: u64 = 16 << 20;

impl Checkpoint {
    /// Reads everything but the weights of the checkpoint in `dir` and checks it.
    ///
    /// # Errors
    /// The first thing that makes the checkpoint unusable, naming file, place, what was found and what was
    /// expected.
    pub fn open(dir: impl AsRef<Path>) -> Result<Checkpoint> {
        Checkpoint::open_with(dir, &OpenOptions::default())
    }

    /// As [`Checkpoint::open`], with choices made.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_with(dir: impl AsRef<Path>, options: &OpenOptions) -> Result<Checkpoint> {
        let dir = Directory::open(dir.as_ref())?;
        let mut warnings = Vec::new();
        let config_file = dir.join("config.json");
        let Some(map) = dir.read_json("config.json", MAX_CONFIG)? else {
            return Err(Error::malformed(config_file, "file", "none", "the model's configuration"));
        };
        let mut config = Config::read(&config_file, map, &mut warnings)?;
        let shards = shards::open(&dir)?;
        config.hparams.n_vocab = layout::embedding_rows(&shards, &config_file)?;
        let valid = config.hparams.validate();
        valid.map_err(|source| Error::HyperParams { file: config_file, source: Box::new(source) })?;
        let weights =
            layout::map(dir.path(), &config, &shards, options.ignore_unknown_tensors, &mut warnings)?;
        let pre = options.pre_tokenizer.as_deref();
        let vocabulary = vocabulary::load(&dir, &config.map, config.hparams.n_vocab, pre, &mut warnings)?;
        let mergekit = mergekit::read(&dir, &mut warnings);
        let card = card::read(&dir, &config, mergekit.as_ref(), &weights, &mut warnings);
        Ok(Checkpoint {
            dir: dir.path().to_owned(),
            shards: shards.into_iter().map(|s| (s.path, s.file)).collect(),
            hparams: config.hparams,
            rope_freqs: config.rope_freqs,
            index: weights.iter().enumerate().map(|(i, (id, _))| (*id, i)).collect(),
            weights,
            vocabulary,
            card,
            mergekit,
            warnings,
        })
    }

    /// The directory as it was given.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The shards, in the order of their names.
    pub fn shards(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.shards.iter().map(|(path, _)| path.as_path())
    }

    /// The numbers of config.json; `n_vocab` is the number of embedding rows.
    pub fn hparams(&self) -> &HyperParams {
        &self.hparams
    }

    /// Llama 3's frequency divisors, one per rotated pair, for `rope_freqs.weight`; `None` without that
    /// scaling.
    pub fn rope_freqs(&self) -> Option<&[f32]> {
        self.rope_freqs.as_deref()
    }

    /// Every weight, by shard and then by source name, the slices of one fused tensor by expert.
    pub fn weights(&self) -> impl ExactSizeIterator<Item = (&TensorId, &Weight)> {
        self.weights.iter().map(|(id, weight)| (id, weight))
    }

    /// The weight of one tensor; `None` for what this model does not have.
    pub fn weight(&self, id: &TensorId) -> Option<&Weight> {
        self.index.get(id).map(|&i| &self.weights[i].1)
    }

    /// The vocabulary, as long as the embedding has rows.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Name, licence, origin.
    pub fn card(&self) -> &ModelCard {
        &self.card
    }

    /// The recipe of the merge, where mergekit left it in the directory.
    pub fn mergekit(&self) -> Option<&Mergekit> {
        self.mergekit.as_ref()
    }

    /// What is odd but usable, one sentence each, naming files and values.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Fills `buf` with the bytes of `weight` from `offset` (within the weight) on.
    ///
    /// May be called from many threads at once.
    ///
    /// # Errors
    /// The range reaches beyond the weight, or the file cannot be read that far (truncated meanwhile).
    pub fn read(&self, weight: &Weight, offset: u64, buf: &mut [u8]) -> Result<()> {
        let (path, file) = &self.shards[weight.shard];
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > weight.size) {
            let what = format!("tensor {}", error::quoted(&weight.source_name));
            let found = format!("a read of {} bytes at {offset}", buf.len());
            return Err(Error::malformed(path, what, found, format!("a range within {} bytes", weight.size)));
        }
        gguf::position::read_exact_at(file, buf, weight.offset + offset).map_err(|source| Error::Io {
            file: path.clone(),
            action: "cannot read weights",
            source,
        })
    }

    /// Tells the system that this part of a weight will be read soon. Advice only.
    pub fn read_soon(&self, weight: &Weight, offset: u64, len: u64) {
        gguf::position::read_soon(&self.shards[weight.shard].1, weight.offset + offset, len);
    }
}
