//! What is converted: a checkpoint directory or a GGUF file, seen the same way.
//!
//! Both hold weights under [`TensorId`]s, each a run of rows somewhere in a file, one per expert whichever layout the
//! files have. They differ in what they say about themselves, in how query and key rows are ordered, and in whether types
//! of single tensors mean anything: a GGUF file's were chosen by somebody, a checkpoint's were not.

use std::path::Path;

use checkpoint::{Checkpoint, Weight};
use gguf::Metadata;
use model_spec::{FileType, HyperParams, TensorId};

use crate::plan::Options;
use crate::{Error, metadata};

/// Where weights come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A checkpoint of the Hugging Face world: rotary halves apart, vectors in any float type.
    Checkpoint,
    /// A GGUF file: rows in their final order, vectors in the type they are to have.
    Gguf,
}

/// A model to be converted: its numbers, its metadata, and its weights, read piece by piece.
pub trait Input: Sync {
    /// What it is.
    fn origin(&self) -> Origin;

    /// The directory or file as it was given.
    fn path(&self) -> &Path;

    /// The files that hold weights; [`Weight::shard`] counts in them.
    fn files(&self) -> Vec<&Path>;

    /// The model's numbers.
    fn hparams(&self) -> &HyperParams;

    /// Every weight, in any order.
    fn weights(&self) -> Box<dyn Iterator<Item = (&TensorId, &Weight)> + '_>;

    /// The weight of one tensor; `None` for what this model does not have.
    fn weight(&self, id: &TensorId) -> Option<&Weight>;

    /// Divisors of the rotary frequencies that are computed and not among the weights.
    fn rope_freqs(&self) -> Option<&[f32]>;

    /// The model's name; empty where it has none.
    fn name(&self) -> &str;

    /// The file type that it is in; `None` where that means nothing.
    fn file_type(&self) -> Option<FileType>;

    /// The metadata of an output of one file type, for a model called `name`.
    fn metadata(&self, file_type: FileType, name: &str, options: &Options) -> Metadata;

    /// Fills `buf` with the bytes of `weight` from `offset` (within the weight) on. From any thread.
    ///
    /// # Errors
    /// The file cannot be read that far, as when it was truncated meanwhile.
    fn read(&self, weight: &Weight, offset: u64, buf: &mut [u8]) -> Result<(), Error>;

    /// Tells the system that this part of a weight will be read soon. Advice only.
    fn read_soon(&self, weight: &Weight, offset: u64, len: u64) {
        let _ = (weight, offset, len);
    }
}

impl Input for Checkpoint {
    fn origin(&self) -> Origin {
        Origin::Checkpoint
    }

    fn path(&self) -> &Path {
        self.dir()
    }

    fn files(&self) -> Vec<&Path> {
        self.shards().collect()
    }

    fn hparams(&self) -> &HyperParams {
        self.hparams()
    }

    fn weights(&self) -> Box<dyn Iterator<Item = (&TensorId, &Weight)> + '_> {
        Box::new(self.weights())
    }

    fn weight(&self, id: &TensorId) -> Option<&Weight> {
        self.weight(id)
    }

    fn rope_freqs(&self) -> Option<&[f32]> {
        self.rope_freqs()
    }

    fn name(&self) -> &str {
        &self.card().name
    }

    fn file_type(&self) -> Option<FileType> {
        None
    }

    fn metadata(&self, file_type: FileType, name: &str, options: &Options) -> Metadata {
        metadata::for_output(self, file_type, name, options)
    }

    fn read(&self, weight: &Weight, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        Ok(self.read(weight, offset, buf)?)
    }

    fn read_soon(&self, weight: &Weight, offset: u64, len: u64) {
        self.read_soon(weight, offset, len);
    }
}
