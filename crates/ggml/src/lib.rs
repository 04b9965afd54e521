//! Safe handles over ggml: contexts, tensors, graphs, backends, buffers.
