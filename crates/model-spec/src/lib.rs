//! What a Llama or Mixtral is in GGUF: hyperparameters, keys, tensor names and shapes.
