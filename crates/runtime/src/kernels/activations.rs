//! Activations, quantized for the kernels: rows of bytes.

use super::grouping::Grouping;
use ggml::{Graph, RowKernel, Rows, Sources, Tensor};
use quants::matmul::ActivationKind;
use std::sync::Arc;

/// Quantizes rows of its first operand.
struct Quantize {
    kind: ActivationKind,
    order: Order,
}

/// Which row of the operand goes where.
#[derive(Clone, Copy)]
pub(super) enum Order {
    /// Each to its own place.
    Same,
    /// Each token's row to the places of the experts it takes; the second operand are their ids.
    ByExpert { n_expert: usize },
}

impl RowKernel for Quantize {
    fn run(&self, sources: &Sources<'_>, rows: &mut Rows<'_>) {
        let n_cols = sources.ne(0)[0];
        let values: &[f32] = sources.values(0);
        let quantize = |row: &mut [u8], from: usize| {
            self.kind.quantize(&values[from * n_cols..(from + 1) * n_cols], row);
        };
        match self.order {
            Order::Same => {
                while let Some((index, row)) = rows.take() {
                    quantize(row, index);
                }
            }
            Order::ByExpert { n_expert } => Grouping::with(sources.values(1), n_expert, |grouping| {
                let n_used = sources.ne(1)[0];
                while let Some((index, row)) = rows.take() {
                    quantize(row, grouping.choices[index] as usize / n_used);
                }
            }),
        }
    }
}

/// `x: [n_cols, n_rows]`, F32, contiguous, as rows of `kind`; computed where `anchor` lies, a weight on the host.
pub(crate) fn quantized(g: &Graph, x: &Tensor, kind: ActivationKind, anchor: &Tensor) -> Tensor {
    quantized_along(g, x, kind, anchor, &[])
}

/// As [`quantized`]; `along` are brought to the host with `x`, for nodes that follow.
pub(super) fn quantized_along(
    g: &Graph,
    x: &Tensor,
    kind: ActivationKind,
    anchor: &Tensor,
    along: &[&Tensor],
) -> Tensor {
    let [n_cols, n_rows, ..] = x.ne();
    let kernel = Arc::new(Quantize { kind, order: Order::Same });
    g.custom_rows(kind.row_bytes(n_cols), n_rows, &[&[x, anchor], along].concat(), kernel)
}

/// `x: [n_cols, n_tokens]` as rows of `kind`, one for each of the choices `ids: [n_used, n_tokens]`, sorted by expert;
/// `along` as in [`quantized_along`].
pub(super) fn quantized_by_expert(
    g: &Graph,
    x: &Tensor,
    ids: &Tensor,
    n_expert: usize,
    kind: ActivationKind,
    anchor: &Tensor,
    along: &[&Tensor],
) -> Tensor {
    let n_cols = x.ne()[0];
    let kernel = Arc::new(Quantize { kind, order: Order::ByExpert { n_expert } });
    let operands = [&[x, ids, anchor], along].concat();
    g.custom_rows(kind.row_bytes(n_cols), ids.n_elements(), &operands, kernel)
}
