//! The GGUF container: a validating, memory-mapped reader and a streaming writer.
