//! Raw bindings to ggml.
