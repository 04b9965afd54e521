//! What can go wrong between Rust and ggml.

/// An error from ggml or from the machine beneath it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A buffer could not be allocated.
    #[error("{buffer_type}: out of memory: {size_bytes} bytes were needed for {what}")]
    OutOfMemory {
        /// The buffer type (`CPU`, `CUDA0`, ...).
        buffer_type: String,
        /// How much was asked for.
        size_bytes: usize,
        /// What it was for.
        what: String,
    },
    /// The scheduler could not allocate a graph's intermediate results.
    #[error("out of memory: the compute buffers of a graph of {n_nodes} nodes could not be allocated")]
    GraphAllocation {
        /// Nodes in the graph.
        n_nodes: usize,
    },
    /// The computation was stopped on request.
    #[error("the computation was stopped")]
    Aborted,
    /// A backend failed while computing.
    #[error("computing the graph failed with ggml status {status}")]
    Compute {
        /// `ggml_status`.
        status: i32,
    },
    /// A device computes products by expert with kernels that take a token's experts to differ, and they don't.
    #[error("a token names an expert twice, which kernels of GPUs compute once")]
    RepeatedExpert,
    /// A tensor type number that the linked ggml does not have.
    #[error("tensor type {id} is unknown to the linked ggml")]
    UnknownType {
        /// The number as stored in a file.
        id: u32,
    },
    /// The processor lacks instructions that this program was compiled for.
    #[error(
        "this program was compiled for a CPU with {missing}, which this machine lacks; use a portable build, or build with BRUCE_CPU set to this machine's level"
    )]
    UnsupportedCpu {
        /// The features that are missing.
        missing: String,
    },
    /// A weight that can't be quantized.
    #[error("weight {index}: found {value}, expected a finite number up to 65504")]
    Weight {
        /// Its position among the weights given.
        index: usize,
        /// The weight.
        value: f32,
    },
    /// An importance that weights can't be quantized by.
    #[error("importance of column {column}: found {value}, expected 0 to 1e18")]
    Importance {
        /// The column.
        column: usize,
        /// The importance.
        value: f32,
    },
    /// No device can run models.
    #[error("no CPU backend was found: {searched}")]
    NoCpuBackend {
        /// Where it was looked for.
        searched: String,
    },
    /// A device refused to start.
    #[error("device {device} could not be initialised")]
    DeviceInit {
        /// The device's name.
        device: String,
    },
    /// An environment variable holds what it can't.
    #[error("{name}: found \"{found}\", expected {expected}")]
    Setting {
        /// The variable.
        name: &'static str,
        /// Its value.
        found: String,
        /// What it may hold.
        expected: &'static str,
    },
}
