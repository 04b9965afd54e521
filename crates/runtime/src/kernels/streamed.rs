//! The feed-forward network of experts that are read while they are multiplied with.
//!
//! As in `experts`, but tiles come from an [`expert_pool::Pool`], in the order in which they arrive. Which piece of work
//! comes first changes no result: each is a dot product of two rows, and a token's experts are added up within one piece.
//! Where tiles won't come, results are zeros, and the session asks the pool why.
//!
//! Experts that a device computes are left out, and nothing of them is read.

use super::experts::{Bank, Ours, add_results, of_choices};
use super::grouping::Grouping;
use super::projection::with_scratch;
use super::silu::silu_product;
use expert_pool::{Lease, Part, Pass, Pool, Request};
use ggml::{Output, Sources, Tensor, TileKernel, Tiles};
use std::ops::Range;
use std::sync::Arc;

/// Where the experts of a layer come from.
pub(crate) struct Stream {
    /// The pool.
    pub pool: Arc<Pool>,
    /// The layer's number in it.
    pub layer: usize,
    /// Which of the batches that pass the layer.
    pub part: Part,
    /// A weight in host memory that the layer computes with.
    pub anchor: Tensor,
    /// `[n_used, n_tokens]`, I32: what the next layer will likely take; None where nobody can say.
    pub early: Option<Tensor>,
}

/// Threads that pieces of work are made for; how many there will be isn't known when these are laid out.
const THREADS: usize = 8;

/// Kernels for gate and up and for down, for a batch of `n_tokens`; `early` is the operand of the first that tells what the
/// next layer will take, `ours` what tells either which experts it computes.
pub(super) fn kernels(
    stream: &Stream,
    [gate, up, down]: [Bank; 3],
    n_tokens: usize,
    early: Option<usize>,
    ours: [Ours; 2],
) -> (Arc<dyn TileKernel>, Arc<dyn TileKernel>) {
    let gates = gate.tile_rows(n_tokens, THREADS).min(up.tile_rows(n_tokens, THREADS));
    let steps = [gates, down.tile_rows(n_tokens, THREADS)];
    let entry = Entry { pool: Arc::clone(&stream.pool), layer: stream.layer, part: stream.part, steps };
    let [of_hidden, of_down] = ours;
    let gate_up = GateUp { entry: entry.clone(), gate, up, early, ours: of_hidden };
    (Arc::new(gate_up), Arc::new(Down { entry, down, ours: of_down }))
}

#[derive(Clone)]
struct Entry {
    pool: Arc<Pool>,
    layer: usize,
    part: Part,
    /// Rows of a piece of work, of gates and ups and of downs.
    steps: [usize; 2],
}

impl Entry {
    /// The work on these experts of the grouping.
    fn enter(&self, grouping: &Grouping, experts: &[usize], n_used: usize, next: &[usize]) -> Arc<Pass> {
        let experts: Vec<(usize, usize)> = experts.iter().map(|e| (*e, grouping.of(*e).len())).collect();
        let n_tokens = grouping.choices.len() / n_used.max(1);
        let Entry { layer, part, steps, .. } = *self;
        self.pool.enter(&Request { layer, part, experts: &experts, n_tokens, steps, next })
    }
}

/// Experts that are chosen and computed here, and those that are computed elsewhere.
fn parted(grouping: &Grouping, is_ours: impl Fn(usize) -> bool) -> (Vec<usize>, Vec<usize>) {
    grouping.active.iter().map(|expert| *expert as usize).partition(|expert| is_ours(*expert))
}

/// The lease that a thread holds, for one piece of work after the other of the same group.
struct Held<'a> {
    pool: &'a Pool,
    pass: &'a Pass,
    lease: Option<Lease<'a>>,
}

impl<'a> Held<'a> {
    /// The tiles of a group; None where they won't come.
    fn get(&mut self, group: usize) -> Option<&mut Lease<'a>> {
        if self.lease.as_ref().is_none_or(|lease| lease.group() != group) {
            // Nobody may wait while holding something.
            self.lease = None;
            self.lease = self.pool.lease(self.pass, group);
        }
        self.lease.as_mut()
    }
}

/// The rows of the `index`-th piece of work within tiles of `tile_rows` rows: number of the group, and rows; none past the
/// end of a matrix.
fn piece(
    index: usize,
    groups: &[expert_pool::Group],
    tile_rows: usize,
    step: usize,
) -> Option<(usize, Range<usize>)> {
    let per_tile = tile_rows.div_ceil(step);
    let group = &groups[index / per_tile];
    let first = group.rows.start + index % per_tile * step;
    (first < group.rows.end).then(|| (index / per_tile, first..(first + step).min(group.rows.end)))
}

/// As the kernel of the same name of experts in memory; one more operand may name the experts that the next layer takes.
struct GateUp {
    entry: Entry,
    gate: Bank,
    up: Bank,
    early: Option<usize>,
    ours: Ours,
}

impl TileKernel for GateUp {
    fn run(&self, sources: &Sources<'_>, tiles: &mut Tiles<'_>, output: &Output<'_>) {
        let n_ff = self.gate.n_rows();
        let step = self.entry.steps[0];
        let mut next: Vec<usize> = Vec::new();
        for id in self.early.map_or(&[][..], |operand| sources.values::<i32>(operand)) {
            if !next.contains(&(*id as usize)) {
                next.push(*id as usize);
            }
        }
        Grouping::with(sources.values(0), self.gate.experts.len(), |grouping| {
            let (ours, others) = parted(grouping, self.ours.with(sources));
            let pass = self.entry.enter(grouping, &ours, sources.ne(0)[0], &next);
            let mut held = Held { pool: &self.entry.pool, pass: &pass, lease: None };
            let groups = pass.gate_up();
            let n_pieces = groups.len() * pass.gate_up_rows().div_ceil(step);
            with_scratch(|scratch| {
                while let Some(index) = tiles.take(n_pieces + others.len()) {
                    if index >= n_pieces {
                        // The rows are quantized next, whoever computes them.
                        let zeros = scratch.at_least(n_ff);
                        zeros.fill(0.0);
                        let choices = grouping.of(others[index - n_pieces]);
                        choices.for_each(|place| output.write(place * n_ff, zeros));
                        continue;
                    }
                    let Some((number, rows)) = piece(index, groups, pass.gate_up_rows(), step) else {
                        continue;
                    };
                    let group = &groups[number];
                    let choices = grouping.of(group.expert);
                    let n = choices.len() * rows.len();
                    let (gates, ups) = scratch.at_least(2 * n).split_at_mut(n);
                    match held.get(number) {
                        Some(lease) => {
                            for (tile, (bank, out)) in
                                [(&self.gate, &mut *gates), (&self.up, &mut *ups)].into_iter().enumerate()
                            {
                                let (matrix, operand) = &bank.experts[group.expert];
                                let bytes = matrix.rows_of_tile(lease.tile(tile), group.rows.start, &rows);
                                matrix.multiply_bytes(bytes, of_choices(sources, *operand, &choices), out);
                            }
                            silu_product(gates, ups);
                            lease.done();
                        }
                        None => gates.fill(0.0),
                    }
                    for (place, hidden) in choices.zip(gates.chunks_exact(rows.len())) {
                        output.write(place * n_ff + rows.start, hidden);
                    }
                }
            });
        });
    }
}

/// As the kernel of the same name of experts in memory.
struct Down {
    entry: Entry,
    down: Bank,
    ours: Ours,
}

impl TileKernel for Down {
    fn run(&self, sources: &Sources<'_>, tiles: &mut Tiles<'_>, output: &Output<'_>) {
        let n_embd = self.down.n_rows();
        let step = self.entry.steps[1];
        let [n_used, n_tokens, ..] = sources.ne(0);
        let weights: &[f32] = sources.values(1);
        Grouping::with(sources.values(0), self.down.experts.len(), |grouping| {
            let (ours, _) = parted(grouping, self.ours.with(sources));
            let pass = self.entry.enter(grouping, &ours, n_used, &[]);
            let mut held = Held { pool: &self.entry.pool, pass: &pass, lease: None };
            let groups = pass.down();
            let n_pieces = groups.len() * pass.down_rows().div_ceil(step);
            let most = ours.iter().map(|e| grouping.of(*e).len()).max().unwrap_or(0);
            with_scratch(|scratch| {
                while let Some(index) = tiles.take(n_pieces) {
                    let Some((number, rows)) = piece(index, groups, pass.down_rows(), step) else {
                        continue;
                    };
                    let n_rows = rows.len();
                    let n_sums = n_tokens * n_rows;
                    let scratch = scratch.at_least(n_sums + most * n_rows);
                    let (sums, results) = scratch.split_at_mut(n_sums);
                    sums.fill(0.0);
                    if !ours.is_empty()
                        && let Some(lease) = held.get(pass.gate_up().len() + number)
                    {
                        for (tile, expert) in ours.iter().enumerate() {
                            let choices = grouping.of(*expert);
                            let (matrix, operand) = &self.down.experts[*expert];
                            let first = groups[number].rows.start;
                            let bytes = matrix.rows_of_tile(lease.tile(tile), first, &rows);
                            let row_bytes = sources.ne(*operand)[0];
                            let hidden: &[u8] = sources.values(*operand);
                            let hidden = &hidden[choices.start * row_bytes..choices.end * row_bytes];
                            matrix.multiply_bytes(bytes, hidden, results);
                            add_results(&grouping.choices[choices], weights, n_used, n_rows, results, sums);
                        }
                        lease.done();
                    }
                    for (token, sums) in sums.chunks_exact(n_rows).enumerate() {
                        output.write(token * n_embd + rows.start, sums);
                    }
                }
            });
        });
    }
}
