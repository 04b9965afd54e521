//! The real programs, run as a user runs them, and held against facts from elsewhere.
//!
//! What a test needs beyond the repository (models made by `make models`, the llama.cpp of `make oracle`, a tool of the
//! system) it asks `support` for; where it is not there the test says `skipped: ...` and passes. `make test` lists what was
//! skipped, and with `BRUCE_TEST_MODELS` and `BRUCE_ORACLE` set nothing that needs these may be skipped.

mod answer;
mod answers;
mod budget;
mod card;
mod command_line;
mod commands;
mod expert_slots;
mod faults_model;
mod faults_output;
mod faults_staging;
mod faults_system;
mod gguf_input;
mod golden;
mod gpu;
mod hf_logits;
mod llama_cpp_oracle;
mod measure;
mod prompt_cache;
mod readme;
mod recipes;
mod resume;
mod sizes;
mod streaming;
mod support;
mod tidy;
mod types;
mod verify;
