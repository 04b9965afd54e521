//! What a file was made of and how, in its own metadata: enough to make the same bytes again.
//!
//! Nothing that differs between machines or runs is recorded: no times, no directories, no number of threads.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use gguf::{Metadata, Value};
use model_spec::{TensorId, keys};
use sha2::{Digest, Sha256};

use crate::Error;
use crate::input::Input;

/// What such keys begin with.
pub const PREFIX: &str = "bruce.";
/// Version of the program.
pub const VERSION: &str = "bruce.version";
/// The options that decide the bytes, as a command line.
pub const COMMAND: &str = "bruce.command";
/// [`fingerprint`] of the source.
pub const SOURCE: &str = "bruce.source.fingerprint";

/// SHA-256 of the file of importances, which the command has by its name alone.
pub const IMATRIX: &str = "bruce.imatrix.sha256";
/// SHA-256 of the table of types by expert, likewise.
pub const EXPERT_TYPES: &str = "bruce.expert_types.sha256";
/// Keys whose values were set by hand, since the weights were made.
pub const OVERRIDES: &str = "bruce.overrides";

/// Where a file comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provenance {
    /// Version of the program.
    pub version: String,
    /// The options that decide the bytes, as a command line with `{TYPE}` for the output's own type.
    pub command: String,
    /// [`fingerprint`] of the source.
    pub source: String,
    /// [`sha256`] of the file of importances.
    pub imatrix: Option<String>,
    /// [`sha256`] of the table of types by expert.
    pub expert_types: Option<String>,
}

/// Stands for the type of the output in [`Provenance::command`].
pub const TYPE: &str = "{TYPE}";

impl Provenance {
    /// Sets the keys, in place of those of the file that was converted.
    pub(crate) fn write_metadata(&self, file_type: &str, metadata: &mut Metadata) {
        let old: Vec<String> =
            metadata.iter().map(|(key, _)| key.to_owned()).filter(|key| key.starts_with(PREFIX)).collect();
        for key in old {
            metadata.remove(&key);
        }
        before_last(metadata, |metadata| {
            metadata.set(VERSION, self.version.as_str());
            metadata.set(COMMAND, self.command.replace(TYPE, file_type).as_str());
            metadata.set(SOURCE, self.source.as_str());
            for (key, hash) in [(IMATRIX, &self.imatrix), (EXPERT_TYPES, &self.expert_types)] {
                if let Some(hash) = hash {
                    metadata.set(key, hash.as_str());
                }
            }
        });
    }
}

/// Adds entries before the two that stay last, as where a file is copied without being quantized.
fn before_last(metadata: &mut Metadata, add: impl FnOnce(&mut Metadata)) {
    let last = [keys::GENERAL_QUANTIZATION_VERSION, keys::GENERAL_FILE_TYPE];
    let last: Vec<_> = last.into_iter().filter_map(|key| Some((key, metadata.remove(key)?))).collect();
    add(metadata);
    for (key, value) in last {
        metadata.set(key, value);
    }
}

/// Notes which keys were set by hand, beside those that a copied file notes already.
pub(crate) fn note_overrides(overrides: &[(String, Value)], metadata: &mut Metadata) {
    let mut all = overridden(metadata);
    all.extend(overrides.iter().map(|(key, _)| key.clone()));
    all.sort();
    all.dedup();
    before_last(metadata, |metadata| metadata.set(OVERRIDES, all));
}

/// The keys that a file's metadata say were set by hand.
pub(crate) fn overridden(metadata: &Metadata) -> Vec<String> {
    metadata.strings(OVERRIDES).ok().flatten().map(<[String]>::to_vec).unwrap_or_default()
}

/// 64 hexadecimal digits: the SHA-256 of a file. `advance` is told how many bytes were read.
///
/// # Errors
/// It cannot be read.
pub fn sha256(path: &Path, advance: &dyn Fn(u64)) -> io::Result<String> {
    let mut file = File::open(path)?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            n => {
                hasher.update(&buffer[..n]);
                advance(n as u64);
            }
        }
    }
}

/// Bytes of each sample.
const SAMPLE: u64 = 4096;

/// 64 hexadecimal digits that tell weights of one model from those of another: the SHA-256 of the name (GGUF's, experts
/// apart), type, rows and columns of every weight, and of three samples of its bytes: 4096 from its beginning, its middle
/// and its end. How weights are divided into files and experts stacked makes no difference.
///
/// Reading all weights would take as long as many a conversion. So this finds another model, another merge or another
/// order of experts, and not a single weight that has changed: it is no check of integrity.
///
/// # Errors
/// A file cannot be read.
pub fn fingerprint(input: &dyn Input) -> Result<String, Error> {
    let mut weights: Vec<(&TensorId, &checkpoint::Weight)> = input.weights().collect();
    weights.sort_by_key(|(id, _)| **id);
    let mut hasher = Sha256::new();
    let mut sample = Vec::new();
    for (id, weight) in weights {
        let (ty, rows, cols) = (weight.dtype.name(), weight.rows, weight.cols);
        hasher.update(format!("{} {ty} {rows} {cols}\n", id.name()));
        let len = SAMPLE.min(weight.size);
        for at in [0, (weight.size - len) / 2, weight.size - len] {
            sample.resize(len as usize, 0);
            input.read(weight, at, &mut sample)?;
            hasher.update(&sample);
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
