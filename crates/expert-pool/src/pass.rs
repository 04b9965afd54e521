//! The work of one layer for one batch, in an order that suits what is in memory.

use std::ops::Range;
use std::sync::atomic::AtomicUsize;

/// Which of the batches that pass a layer one after the other, before the next layer is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// From 0.
    pub index: usize,
    /// How many there are.
    pub count: usize,
}

impl Part {
    /// The only one.
    pub const WHOLE: Part = Part { index: 0, count: 1 };

    /// Whether the same layer is passed again.
    pub(crate) fn is_followed(self) -> bool {
        self.index + 1 < self.count
    }
}

/// What a layer asks for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Its number.
    pub layer: usize,
    /// For which batch.
    pub part: Part,
    /// Experts taken, ascending, with the number of tokens that took each.
    pub experts: &'a [(usize, usize)],
    /// Tokens of the batch.
    pub n_tokens: usize,
    /// Rows of a piece of work on gates and ups, and on downs.
    pub steps: [usize; 2],
    /// Experts that the next layer will likely take, a guess that may name what isn't there.
    pub next: &'a [usize],
}

impl<'a> Request<'a> {
    /// What a single token asks for, in pieces of whole tiles; what comes next is not known.
    pub fn of_token(layer: usize, experts: &'a [(usize, usize)]) -> Request<'a> {
        Request { layer, part: Part::WHOLE, experts, n_tokens: 1, steps: [usize::MAX; 2], next: &[] }
    }
}

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

/// The work of one layer for one batch, which may be one of [several](Part): the same for all threads.
#[derive(Debug)]
pub struct Pass {
    pub(crate) layer: usize,
    pub(crate) part: Part,
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
