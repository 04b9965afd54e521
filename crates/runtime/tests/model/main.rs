//! Models made from the checkpoint that ships with the project, loaded and run in every way there is.

mod attention;
mod bad_models;
mod budget;
mod device_graph;
mod fixture;
mod kernels;
mod placement;
mod saved_contexts;
mod sessions;
mod slots;
mod staging;
mod streamed_slots;
mod streaming;
