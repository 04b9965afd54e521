//! The work of one layer for one batch, in an order that suits what is in memory.

use std::ops::Range;
use std::sync::atomic::AtomicUsize;

/// Tiles that are multiplied together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The expert of a gate and an up; none for downs, which come from all that are taken, in their order.
    pub expert: usize,
    /// Rows of the matrices.
    pub rows: Range<usize>,
    /// Numbers of the tiles.
    pub(crate) tiles: Vec<usize>,
}

/// The work of one layer for one batch: the same for all threads.
#[derive(Debug)]
pub struct Pass {
    pub(crate) layer: usize,
    /// Gates and ups, then downs.
    pub(crate) groups: Vec<Group>,
    pub(crate) n_gate_up: usize,
    /// Pieces of work that are left of each group.
    pub(crate) left: Vec<AtomicUsize>,
    /// Rows of a tile of gates and ups, and of downs.
    pub(crate) tile_rows: [usize; 2],
}

impl Pass {
    /// Gates and ups: each group is a tile of one expert's gate, and the same rows of its up.
    pub fn gate_up(&self) -> &[Group] {
        &self.groups[..self.n_gate_up]
    }

    /// Downs: each group is the same rows of the downs of all experts taken, in the order of their numbers.
    pub fn down(&self) -> &[Group] {
        &self.groups[self.n_gate_up..]
    }

    /// Rows of a tile of gates and ups, but for the last of a matrix.
    pub fn gate_up_rows(&self) -> usize {
        self.tile_rows[0]
    }

    /// As [`gate_up_rows`](Self::gate_up_rows), of downs.
    pub fn down_rows(&self) -> usize {
        self.tile_rows[1]
    }
}
