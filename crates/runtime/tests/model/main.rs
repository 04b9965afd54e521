//! Models made from the checkpoint that ships with the project, loaded and run in every way there is.

mod bad_models;
mod fixture;
mod kernels;
mod placement;
mod sessions;
mod streaming;
