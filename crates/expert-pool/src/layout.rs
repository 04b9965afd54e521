//! Which tiles there are, and where they lie.

use crate::buffer::PAGE;
use std::ops::Range;

/// One projection of one expert: a matrix of rows that lie back to back in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatrixSource {
    /// GGUF name of the tensor that holds it, for errors.
    pub name: String,
    /// Index of the file.
    pub file: usize,
    /// Where it begins there, in bytes.
    pub offset: u64,
    /// Bytes of a row.
    pub row_bytes: usize,
    /// Rows.
    pub n_rows: usize,
}

/// Which of an expert's matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projection {
    /// To hidden values, through SiLU.
    Gate,
    /// To hidden values.
    Up,
    /// Back from them.
    Down,
}

impl Projection {
    /// In the order in which they are multiplied with.
    pub const ALL: [Projection; 3] = [Projection::Gate, Projection::Up, Projection::Down];
}

/// The experts of one layer, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerSource {
    /// Gate projections.
    pub gate: Vec<MatrixSource>,
    /// Up projections; as many rows as the gates have.
    pub up: Vec<MatrixSource>,
    /// Down projections.
    pub down: Vec<MatrixSource>,
}

/// A tile and the memory around it take no more than this, but where few rows are more: few enough to begin multiplying
/// early.
const MAX_SLOT_BYTES: usize = 2 << 20;
/// And no less, where matrices are larger: enough for a disk to be at its best.
const MIN_SLOT_BYTES: usize = 1 << 20;
/// Tiles are whole multiples of this many rows, but for the last of a matrix.
pub(crate) const TILE_STEP: usize = 16;

/// A matrix cut into tiles.
#[derive(Debug)]
pub(crate) struct Matrix {
    /// Index of its (layer, expert) among the scores.
    pub score: usize,
    pub name: String,
    /// Numbers of its tiles.
    pub tiles: Range<usize>,
}

/// A tile's place in the files.
#[derive(Clone, Debug)]
pub(crate) struct TilePlace {
    pub matrix: usize,
    pub file: usize,
    /// Where the window of whole pages begins.
    pub start: u64,
    /// Where the tile begins in the window.
    pub skip: usize,
    pub len: usize,
}

impl TilePlace {
    /// Bytes of the window that must be there.
    pub fn needed(&self) -> usize {
        self.skip + self.len
    }
}

/// Bytes of whole pages that hold so many, wherever they begin in the first.
fn capacity(len: usize) -> usize {
    len.next_multiple_of(PAGE) + PAGE
}

/// Experts of a layer, as numbers of matrices.
#[derive(Debug)]
pub(crate) struct Layer {
    pub gate: Vec<usize>,
    pub up: Vec<usize>,
    pub down: Vec<usize>,
    /// Rows of the tiles of gates and ups, and of downs.
    pub tile_rows: [usize; 2],
    /// Rows of the matrices.
    pub n_rows: [usize; 2],
    /// Index of its first expert among the scores.
    pub first_score: usize,
}

impl Layer {
    pub fn n_expert(&self) -> usize {
        self.gate.len()
    }

    /// Numbers of the experts' scores, in their order.
    pub fn scores(&self) -> Range<usize> {
        self.first_score..self.first_score + self.n_expert()
    }

    /// Number of the matrix of an expert.
    pub fn matrix(&self, projection: Projection, expert: usize) -> usize {
        match projection {
            Projection::Gate => self.gate[expert],
            Projection::Up => self.up[expert],
            Projection::Down => self.down[expert],
        }
    }
}

/// Everything that a pool may hold.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    pub layers: Vec<Layer>,
    pub matrices: Vec<Matrix>,
    pub tiles: Vec<TilePlace>,
    pub n_scores: usize,
    /// Bytes of the memory for a tile: the same for all, so that each can take over from any other.
    pub slot_bytes: usize,
}

impl Layout {
    /// # Panics
    /// When a layer has no experts, or its projections don't match.
    pub fn new(layers: &[LayerSource]) -> Layout {
        let shapes: Vec<[Shape; 2]> = layers.iter().map(shapes).collect();
        let all = || shapes.iter().flatten();
        // The least memory for everything; among equals the smallest tiles.
        let limits = (MIN_SLOT_BYTES..=MAX_SLOT_BYTES).step_by(16 * PAGE);
        let cost = |limit: &usize| {
            let n_tiles: usize = all().map(|shape| shape.n_tiles(*limit) * shape.n_matrices).sum();
            n_tiles * all().map(|shape| shape.capacity(*limit)).max().unwrap_or(0)
        };
        let limit = limits.min_by_key(cost).expect("there is a size");
        let slot_bytes = all().map(|shape| shape.capacity(limit)).max().unwrap_or(0);
        let mut layout = Layout { slot_bytes, ..Layout::default() };
        for (layer, shapes) in layers.iter().zip(&shapes) {
            let tile_rows = shapes.map(|shape| shape.tile_rows(limit));
            let n_rows = shapes.map(|shape| shape.n_rows);
            let first_score = layout.n_scores;
            let mut add = |sources: &[MatrixSource], tile_rows: usize| -> Vec<usize> {
                sources
                    .iter()
                    .enumerate()
                    .map(|(expert, source)| layout.add(source, first_score + expert, tile_rows))
                    .collect()
            };
            let gate = add(&layer.gate, tile_rows[0]);
            let up = add(&layer.up, tile_rows[0]);
            let down = add(&layer.down, tile_rows[1]);
            layout.layers.push(Layer { gate, up, down, tile_rows, n_rows, first_score });
            layout.n_scores += layer.gate.len();
        }
        layout
    }

    fn add(&mut self, source: &MatrixSource, score: usize, tile_rows: usize) -> usize {
        let matrix = self.matrices.len();
        let first = self.tiles.len();
        for row in (0..source.n_rows).step_by(tile_rows) {
            let n_rows = tile_rows.min(source.n_rows - row);
            let offset = source.offset + row as u64 * source.row_bytes as u64;
            let start = offset / PAGE as u64 * PAGE as u64;
            let (skip, len) = ((offset - start) as usize, n_rows * source.row_bytes);
            self.tiles.push(TilePlace { matrix, file: source.file, start, skip, len });
        }
        self.matrices.push(Matrix { score, name: source.name.clone(), tiles: first..self.tiles.len() });
        matrix
    }

    /// Bytes of memory for all tiles.
    pub fn all_bytes(&self) -> usize {
        self.tiles.len() * self.slot_bytes
    }

    /// Tiles of the largest group: a gate's and an up's, or a down's of each expert.
    pub fn largest_group(&self) -> usize {
        self.layers.iter().map(|layer| layer.n_expert().max(2)).max().unwrap_or(0)
    }
}

/// Matrices that are cut alike: gates and ups of a layer, or downs.
#[derive(Clone, Copy, Debug)]
struct Shape {
    n_matrices: usize,
    n_rows: usize,
    /// Bytes of the widest row.
    row_bytes: usize,
}

impl Shape {
    fn of<'a>(matrices: impl Iterator<Item = &'a MatrixSource> + Clone) -> Shape {
        let n_rows = matrices.clone().next().expect("a layer has experts").n_rows;
        assert!(matrices.clone().all(|m| m.n_rows == n_rows), "projections of a layer match");
        let row_bytes = matrices.clone().map(|m| m.row_bytes).max().unwrap_or(0).max(1);
        Shape { n_matrices: matrices.count(), n_rows, row_bytes }
    }

    /// Rows of a tile with a capacity of at most `limit` bytes, so that the tiles of a matrix are about the same size.
    fn tile_rows(&self, limit: usize) -> usize {
        let most = ((limit - PAGE) / self.row_bytes / TILE_STEP * TILE_STEP).max(TILE_STEP);
        let n_tiles = self.n_rows.div_ceil(most).max(1);
        self.n_rows.div_ceil(n_tiles).next_multiple_of(TILE_STEP)
    }

    fn n_tiles(&self, limit: usize) -> usize {
        self.n_rows.div_ceil(self.tile_rows(limit))
    }

    /// Bytes of the memory for a tile.
    fn capacity(&self, limit: usize) -> usize {
        capacity(self.tile_rows(limit).min(self.n_rows) * self.row_bytes)
    }
}

fn shapes(layer: &LayerSource) -> [Shape; 2] {
    let n_expert = layer.gate.len();
    assert!(n_expert > 0 && layer.up.len() == n_expert && layer.down.len() == n_expert, "{layer:?}");
    [Shape::of(layer.gate.iter().chain(&layer.up)), Shape::of(layer.down.iter())]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(offset: u64, row_bytes: usize, n_rows: usize) -> MatrixSource {
        MatrixSource { name: format!("at {offset}"), file: 0, offset, row_bytes, n_rows }
    }

    #[test]
    fn tiles_cover_every_row_once_in_windows_of_whole_pages() {
        let layer = LayerSource {
            gate: vec![matrix(32, 2304, 1000), matrix(3_000_000, 3360, 1000)],
            up: vec![matrix(7_000_000, 2304, 1000), matrix(10_000_000, 2304, 1000)],
            down: vec![matrix(13_000_000, 11_760, 300), matrix(17_000_000, 11_760, 300)],
        };
        let layout = Layout::new(&[layer.clone(), layer.clone()]);
        assert_eq!(layout.layers[1].first_score, 2);
        let tile_rows = layout.layers[0].tile_rows;
        assert_eq!(tile_rows.map(|rows| rows % TILE_STEP), [0, 0]);
        for (matrix, source) in
            layout.matrices.iter().zip(layer.gate.iter().chain(&layer.up).chain(&layer.down))
        {
            let mut at = source.offset;
            for tile in &layout.tiles[matrix.tiles.clone()] {
                assert_eq!(tile.start + tile.skip as u64, at);
                assert!(tile.start.is_multiple_of(PAGE as u64) && tile.skip < PAGE);
                assert!(tile.needed().next_multiple_of(PAGE) <= layout.slot_bytes);
                assert!(tile.len.is_multiple_of(source.row_bytes));
                at += tile.len as u64;
            }
            assert_eq!(at, source.offset + (source.row_bytes * source.n_rows) as u64);
        }
        assert_eq!(layout.largest_group(), 2);
    }

    #[test]
    fn slots_suit_the_matrices() {
        // Gate and up in Q4_K, down in Q6_K and Q4_K, as large as those of a 7B model.
        let of = |row_bytes, n_rows| vec![matrix(32, row_bytes, n_rows); 4];
        let layer = |down| LayerSource { gate: of(2304, 14336), up: of(2304, 14336), down: of(down, 4096) };
        let layout = Layout::new(&[layer(8064), layer(11_760)]);
        let weights: usize = layout.tiles.iter().map(|tile| tile.len).sum();
        assert!(layout.slot_bytes >= MIN_SLOT_BYTES && layout.slot_bytes <= MAX_SLOT_BYTES);
        let wasted = layout.all_bytes() as f64 / weights as f64 - 1.0;
        assert!(wasted < 0.02, "{wasted}");
        // Small ones are tiles as they are.
        let small = |rows| LayerSource { gate: of(100, 50), up: of(100, 50), down: of(60, rows) };
        assert_eq!(Layout::new(&[small(33)]).slot_bytes, 3 * PAGE);
        assert_eq!(Layout::new(&[small(33)]).tiles.len(), 12);
    }
}
