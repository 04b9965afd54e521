//! From a checkpoint to a quantized GGUF: the plan, then its execution.
