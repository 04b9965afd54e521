//! Nodes of a graph as back ends see them, for tests of what they recognise.

use crate::graph::Graph;
use ggml_sys as sys;
use std::ffi::CStr;

/// One operation of a graph. Two nodes are equal where a back end that has recorded the one may replay it for the other:
/// all that differs is the contents of what they read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// ggml's name: `MUL_MAT`, `VIEW`, ...
    pub op: String,
    /// Tells nodes and sources apart.
    pub id: usize,
    /// Extents, contiguous axis first.
    pub ne: [usize; 4],
    /// Distances in bytes.
    pub nb: [usize; 4],
    /// What it reads: nodes, weights, inputs.
    pub sources: Vec<usize>,
    /// Whose bytes it is a view of.
    pub view_of: Option<usize>,
    /// Where its bytes are; 0 before the scheduler has placed it.
    pub address: usize,
    /// Whether it is read after the computation.
    pub is_output: bool,
}

impl Graph {
    /// All nodes in the order of computation. What the scheduler has copied to another device is read from the copy.
    pub fn nodes(&self) -> Vec<Node> {
        let node = |index: usize| {
            // SAFETY: the graph is valid and holds its nodes and their sources, and the index runs below their number;
            // names of operations are static.
            let (tensor, op) = unsafe {
                let tensor = &*sys::ggml_graph_node(self.raw(), index as i32);
                (tensor, CStr::from_ptr(sys::ggml_op_name(tensor.op)))
            };
            let id = |tensor: *mut sys::ggml_tensor| (!tensor.is_null()).then_some(tensor.addr());
            Node {
                op: op.to_string_lossy().into_owned(),
                id: std::ptr::from_ref(tensor).addr(),
                ne: tensor.ne.map(|n| n as usize),
                nb: tensor.nb,
                sources: tensor.src.into_iter().filter_map(id).collect(),
                view_of: id(tensor.view_src),
                address: tensor.data.addr(),
                is_output: tensor.flags & sys::GGML_TENSOR_FLAG_OUTPUT as i32 != 0,
            }
        };
        (0..self.n_nodes()).map(node).collect()
    }
}
