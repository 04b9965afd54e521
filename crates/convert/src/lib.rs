//! From a checkpoint or a GGUF file to quantized GGUF files: the plan, then its execution.
//!
//! [`Plan::new`] decides everything from headers alone: every output tensor with its name, shape, type and the
//! slices of the input it is made of, the metadata, the place of every byte. A dry run prints the plan; tests
//! compare it; [`execute`] follows it. Execution reads each weight once, in pieces of whole rows, and writes each
//! piece to every output where it belongs, so the input is read once however many outputs there are, memory
//! does not grow with the tensors, and the bytes do not depend on the number of threads.
//!
//! [`compare`] goes the other way and holds a file against what it was made of.
//!
//! Two things happen to a weight on its way: rows of query and key projections change places (checkpoints keep
//! the rotary halves apart, GGUF interleaves them), and values are rounded to the type the [`Recipe`] chose.

mod block;
mod chunk;
mod compare;
mod error;
mod execute;
mod fit;
mod gguf_input;
mod importance;
mod input;
mod journal;
mod measure;
mod metadata;
mod plan;
pub mod provenance;
mod recipe;

pub use compare::{Compared, Comparison, Deviation, Totals, compare, min_cosine};
pub use error::Error;
pub use execute::{
    NoProgress, Options as ExecuteOptions, OutputSummary, Progress, Summary, execute, finished_outputs,
};
pub use fit::{Fit, Target, fit};
pub use gguf_input::GgufModel;
pub use importance::Importance;
pub use input::{Input, Origin};
pub use plan::{
    Destination, ExpertLayout, Options, OutputPlan, Plan, PlannedTensor, RowOrder, Source, Split, Step, Via,
};
pub use provenance::{Provenance, fingerprint};
pub use recipe::{ExpertTypes, Recipe, RuleError, Rules, TypeRule, Untyped, tensor_type};
