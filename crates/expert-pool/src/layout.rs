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

/// Bytes of a tile where rows allow it: enough for a disk to be at its best, few enough to begin multiplying early.
const TILE_BYTES: usize = 1 << 20;
/// Tiles are whole multiples of this many rows, but for the last of a matrix.
pub(crate) const TILE_STEP: usize = 128;

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

    /// Bytes of the buffer: the same for tiles of one size, wherever they begin, so that one can take over from another.
    pub fn capacity(&self) -> usize {
        self.len.next_multiple_of(PAGE) + PAGE
    }
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
}

impl Layout {
    /// # Panics
    /// When a layer has no experts, or its projections don't match.
    pub fn new(layers: &[LayerSource]) -> Layout {
        let mut layout = Layout::default();
        for layer in layers {
            let n_expert = layer.gate.len();
            assert!(n_expert > 0 && layer.up.len() == n_expert && layer.down.len() == n_expert, "{layer:?}");
            let hidden: Vec<&MatrixSource> = layer.gate.iter().chain(&layer.up).collect();
            let down: Vec<&MatrixSource> = layer.down.iter().collect();
            let tile_rows = [tile_rows(&hidden), tile_rows(&down)];
            let n_rows = [hidden[0].n_rows, down[0].n_rows];
            assert!(
                hidden.iter().all(|m| m.n_rows == n_rows[0]) && down.iter().all(|m| m.n_rows == n_rows[1])
            );
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
            layout.n_scores += n_expert;
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

    /// Bytes of all tiles' buffers.
    pub fn all_bytes(&self) -> usize {
        self.tiles.iter().map(TilePlace::capacity).sum()
    }

    /// Bytes of the largest buffer.
    pub fn largest_tile(&self) -> usize {
        self.tiles.iter().map(TilePlace::capacity).max().unwrap_or(0)
    }

    /// Tiles of the largest group: a gate's and an up's, or a down's of each expert.
    pub fn largest_group(&self) -> usize {
        self.layers.iter().map(|layer| layer.n_expert().max(2)).max().unwrap_or(0)
    }
}

/// As many rows as fit the widest of the matrices.
fn tile_rows(matrices: &[&MatrixSource]) -> usize {
    let widest = matrices.iter().map(|m| m.row_bytes).max().expect("a layer has experts");
    (TILE_BYTES / widest.max(1) / TILE_STEP * TILE_STEP).max(TILE_STEP)
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
        assert_eq!(tile_rows, [256, 128]); // 3360 bytes a row: 312 fit
        for (matrix, source) in
            layout.matrices.iter().zip(layer.gate.iter().chain(&layer.up).chain(&layer.down))
        {
            let mut at = source.offset;
            for tile in &layout.tiles[matrix.tiles.clone()] {
                assert_eq!(tile.start + tile.skip as u64, at);
                assert!(tile.start.is_multiple_of(PAGE as u64) && tile.skip < PAGE);
                assert!(tile.needed().next_multiple_of(PAGE) <= tile.capacity());
                assert!(tile.len.is_multiple_of(source.row_bytes));
                at += tile.len as u64;
            }
            assert_eq!(at, source.offset + (source.row_bytes * source.n_rows) as u64);
        }
        assert_eq!(layout.largest_group(), 2);
        assert!(layout.largest_tile() >= 128 * 11_760);
    }
}
