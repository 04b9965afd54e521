//! How fast this machine reads memory, files and weights that it multiplies with, and copies weights to devices.
//!
//! Each measurement takes a fraction of a second and shares the machine with whatever else runs, as the model will.

mod cache;
mod copying;
mod disk;
mod memory;
mod weights;

pub use copying::copy_rate;
pub use disk::{FileMeter, FileRate};
pub use memory::Memory;
pub use weights::Multiplier;
