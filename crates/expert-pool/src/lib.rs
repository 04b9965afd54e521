//! Experts of a model that is larger than the memory: read from the file when a token takes them, and kept while they are
//! worth it.
//!
//! The unit is a tile: whole rows of one projection of one expert, 1 to 2 MiB. [Readers] fetch tiles past the page
//! cache into slots of anonymous memory, all of one size that suits the model's matrices; threads that compute wait for the tiles of a [`Lease`], multiply, and give
//! them back. What stays is decided by how often an expert was taken lately, over all layers together: an expert's chance
//! to be taken by the next token is comparable between layers, and the last time it was taken is not (a token's sweep over
//! all layers is longer than the pool, so that a shared least-recently-used list would hit nothing).
//!
//! # One pass of a layer
//! When a layer's router has decided, [`Pool::enter`] orders the work: [groups](Group) of tiles that are multiplied
//! together, those that are there first, gate and up before down. The readers fetch in the same order, and after that what
//! the next layer will likely want. Room comes from buffers that are free, then from the tiles of least worth, and last from
//! those wanted latest in this pass. So the group that is wanted first can always be completed: nobody waits while holding
//! tiles, and [`Pool::least_bytes`] are room for the largest group besides what the readers hold.
//!
//! # Batches
//! A batch of many tokens takes nearly all experts of every layer once, one layer after the other. What it has used will be
//! needed again only after all other layers; so that makes room first, and readers run ahead of the computation by no more
//! than a window. Where several batches pass a layer before the next is entered ([Part]), what one has used stays for those
//! behind it: they make one sweep, and each tile is read once for all of them if a layer fits into the pool.
//!
//! # Experts elsewhere
//! Where a device computes some experts from copies of its own, the pool is [told](Pool::set_elsewhere): it reads nothing
//! ahead of them, and what it has of them makes room first. [`Pool::read`] gives the bytes for such copies.
#![warn(missing_docs)]

mod buffer;
mod error;
mod file;
mod layout;
mod pass;
mod pool;
mod reader;
mod state;
mod statistics;

pub use error::Error;
pub use file::{Files, ReadAt};
pub use layout::{LayerSource, MatrixSource, Projection};
pub use pass::{Group, Part, Pass, Request};
pub use pool::{Lease, Options, Pool, Turn};
pub use reader::{N_READERS, Readers};
pub use statistics::Statistics;
