//! A graph as a stream was given it: computed later, whatever becomes of the graph meanwhile, and with what kernels of GPUs
//! ask of their operands.
//!
//! It is cut before products that such kernels would get wrong if an expert were named twice, so that the numbers of
//! experts can be looked at when they are known.

use ggml_sys as sys;
use std::collections::{HashMap, HashSet};
use std::ptr::{NonNull, null_mut};

/// Status of a graph in which a token names an expert twice where kernels of GPUs would leave one of them out.
pub(crate) const REPEATED_EXPERT: sys::ggml_status = -100;

/// Nodes that are computed in a row.
struct Piece {
    context: NonNull<sys::ggml_context>,
    graph: *mut sys::ggml_cgraph,
    /// Numbers of experts that must differ within each token.
    ids: Option<sys::ggml_tensor>,
}

impl Drop for Piece {
    fn drop(&mut self) {
        // SAFETY: made by `record`, freed once.
        unsafe { sys::ggml_free(self.context.as_ptr()) };
    }
}

/// Copies of a graph's nodes, whose operands lie where the originals did.
pub(super) struct Recorded(Vec<Piece>);

impl Recorded {
    /// # Safety
    /// `graph` is valid, and all in it has a place.
    pub unsafe fn new(graph: *mut sys::ggml_cgraph) -> Recorded {
        // SAFETY: as the caller promises; indices run below the number of nodes.
        unsafe {
            let n_nodes = sys::ggml_graph_n_nodes(graph);
            let nodes: Vec<*mut sys::ggml_tensor> =
                (0..n_nodes).map(|i| sys::ggml_graph_node(graph, i)).collect();
            let mut pieces = Vec::new();
            let mut rest = &nodes[..];
            while !rest.is_empty() {
                let next = rest.iter().skip(1).position(|node| wants_distinct_experts(*node));
                let (piece, after) = rest.split_at(next.map_or(rest.len(), |before| before + 1));
                pieces.push(record(piece));
                rest = after;
            }
            Recorded(pieces)
        }
    }

    /// Computes on `cpu`.
    ///
    /// # Safety
    /// What the nodes read and write is still there, and nobody else uses `cpu`.
    pub unsafe fn compute(&self, cpu: sys::ggml_backend_t) -> sys::ggml_status {
        let mut status = sys::GGML_STATUS_SUCCESS;
        for piece in &self.0 {
            // SAFETY: as the caller promises.
            unsafe {
                // The host may go on with the results before it asks for the status: these must be of use.
                if piece.ids.is_some_and(|ids| names_an_expert_twice(&ids)) {
                    status = REPEATED_EXPERT;
                }
                match sys::ggml_backend_graph_compute(cpu, piece.graph) {
                    sys::GGML_STATUS_SUCCESS => {}
                    failed => return failed,
                }
            }
        }
        status
    }
}

/// Whether a node multiplies by kernels, on some GPU, that look for each expert among a token's choices and take the first.
///
/// CUDA's do for batches (`mmid.cu`), and for weights that are not quantized for single tokens too (`mmf.cuh`); Vulkan's and
/// Metal's for batches. For single tokens and quantized weights all have kernels that go through the choices.
///
/// # Safety
/// `node` is valid.
unsafe fn wants_distinct_experts(node: *const sys::ggml_tensor) -> bool {
    // SAFETY: as the caller promises; a product by expert has three operands.
    unsafe {
        if (*node).op != sys::GGML_OP_MUL_MAT_ID {
            return false;
        }
        let [weights, _, ids, ..] = (*node).src;
        let [n_used, n_tokens, ..] = (*ids).ne;
        n_used > 1 && (n_tokens > 1 || sys::ggml_blck_size((*weights).type_) == 1)
    }
}

/// # Safety
/// `ids` has a place, with I32 in it.
unsafe fn names_an_expert_twice(ids: &sys::ggml_tensor) -> bool {
    let [n_used, n_tokens, ..] = ids.ne.map(|n| n as usize);
    // SAFETY: as the caller promises; the index lies inside.
    let at = |token: usize, choice: usize| unsafe {
        ids.data.cast::<u8>().add(token * ids.nb[1] + choice * ids.nb[0]).cast::<i32>().read_unaligned()
    };
    (0..n_tokens).any(|token| (1..n_used).any(|i| (0..i).any(|j| at(token, i) == at(token, j))))
}

/// # Safety
/// The nodes are valid, follow each other in one graph, and all that they read has a place.
unsafe fn record(nodes: &[*mut sys::ggml_tensor]) -> Piece {
    // SAFETY: as the caller promises. The arena is sized for a copy of each node and each operand; copies of operands from
    // before are leaves, so that each node that is expanded adds itself only.
    unsafe {
        let own: HashSet<_> = nodes.iter().copied().collect();
        let sources = |node: &*mut sys::ggml_tensor| (**node).src.into_iter().filter(|src| !src.is_null());
        let mut copies: HashMap<*mut sys::ggml_tensor, *mut sys::ggml_tensor> = HashMap::new();
        copies.extend(nodes.iter().copied().chain(nodes.iter().flat_map(sources)).map(|t| (t, null_mut())));
        let n_bytes =
            sys::ggml_tensor_overhead() * copies.len() + sys::ggml_graph_overhead_custom(copies.len(), false);
        let params =
            sys::ggml_init_params { mem_size: n_bytes + 1024, mem_buffer: null_mut(), no_alloc: true };
        let context = NonNull::new(sys::ggml_init(params)).expect("memory for a graph");
        let graph = sys::ggml_new_graph_custom(context.as_ptr(), copies.len(), false);
        for (original, copy) in &mut copies {
            *copy = sys::ggml_new_tensor(context.as_ptr(), sys::GGML_TYPE_I8, 1, [1].as_ptr());
            **copy = **original;
            (**copy).view_src = null_mut();
            if !own.contains(original) {
                (**copy).op = sys::GGML_OP_NONE;
                (**copy).src = [null_mut(); sys::GGML_MAX_SRC as usize];
            }
        }
        for node in nodes {
            let copy = copies[node];
            (*copy).src = (*copy).src.map(|src| if src.is_null() { src } else { copies[&src] });
            sys::ggml_build_forward_expand(graph, copy);
        }
        let ids = wants_distinct_experts(nodes[0]).then(|| *(*nodes[0]).src[2]);
        Piece { context, graph, ids }
    }
}
