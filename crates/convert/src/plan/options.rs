//! What the caller of a plan decides.

use std::collections::BTreeMap;

use gguf::Value;
use model_spec::{FileType, TensorId};
use quants::TensorType;

use crate::importance::Importance;
use crate::provenance::Provenance;
use crate::recipe::Rules;

/// How the experts of a layer are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExpertLayout {
    /// One tensor per projection holds all experts; what llama.cpp loads.
    #[default]
    Stacked,
    /// One tensor per projection and expert, as in Mixtral files of early 2024.
    Split,
}

/// How an output is divided into files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Split {
    /// Not at all.
    #[default]
    None,
    /// A part ends before its data exceeds so many bytes.
    MaxBytes(u64),
    /// As the input is, if it is a GGUF file in parts.
    AsInput,
}

/// A type that weights pass through before they are quantized.
///
/// llama.cpp's way has two steps, a converter that writes 16-bit floats and a quantizer that reads them. For
/// checkpoints of the same 16-bit type nothing is lost on that way; others come out as there only if they take it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Via {
    /// None: quantize what the checkpoint holds.
    #[default]
    Source,
    /// As after `--outtype bf16`.
    Bf16,
    /// As after `--outtype f16`.
    F16,
}

/// What the caller decides.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The outputs, one per file type.
    pub file_types: Vec<FileType>,
    /// How experts are stored.
    pub expert_layout: ExpertLayout,
    /// What weights pass through.
    pub via: Via,
    /// `general.name` instead of the checkpoint's.
    pub name: Option<String>,
    /// `general.quantized_by`; what a GGUF file says is left as it is.
    pub quantized_by: Option<String>,
    /// What the user asks for about types.
    pub rules: Rules,
    /// Types that were worked out for the tensors of each output, in the order of `file_types`; outputs beyond the end
    /// follow their recipe.
    pub chosen: Vec<BTreeMap<TensorId, TensorType>>,
    /// How much each column of a weight counts.
    pub importance: Option<Importance>,
    /// Metadata to set, whatever the checkpoint says.
    pub overrides: Vec<(String, Value)>,
    /// Every tensor keeps its type, and the output the file type of the input, which is a GGUF file; `file_types`
    /// is not looked at.
    pub keep_types: bool,
    /// Whether quantized weights may be quantized again.
    pub allow_requantize: bool,
    /// Into which parts an output is divided.
    pub split: Split,
    /// Where the outputs come from, to be recorded in them.
    pub provenance: Option<Provenance>,
}
