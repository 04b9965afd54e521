//! Hugging Face checkpoint directories: shards, configuration, tokenizer, expert layouts.
