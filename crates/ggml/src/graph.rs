//! Graphs: operations on tensors, built now and computed later by a [`Scheduler`](crate::Scheduler).
//!
//! Every method checks the shapes that ggml would assert, so that a mistake is a panic here and not an abort there.
//! Shapes in the documentation are in ggml's order, contiguous axis first.

use crate::context::ContextInner;
use crate::custom::{self, CustomNode, Kernel, RowKernel, TileKernel};
use crate::tensor::{Tensor, Type};
use ggml_sys as sys;
use std::cell::RefCell;
use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::Arc;

/// How rotary embedding pairs up the elements of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Neighbours: (0, 1), (2, 3), ... as GGUF stores Llama.
    Interleaved,
    /// Halves: (0, n/2), (1, n/2 + 1), ...
    Halves,
}

/// Parameters of rotary position embedding; the YaRN paper's (arXiv 2309.00071) names.
#[derive(Clone, Copy, Debug)]
pub struct Rope {
    /// How many elements of a head are rotated.
    pub n_dims: usize,
    /// Which elements are pairs.
    pub style: RopeStyle,
    /// Context length before extension.
    pub n_ctx_orig: usize,
    /// Base of the frequencies.
    pub freq_base: f32,
    /// Linear scale of positions (1 / factor).
    pub freq_scale: f32,
    /// Share of extrapolation: 0 off, 1 YaRN.
    pub ext_factor: f32,
    /// Scale of the rotated values.
    pub attn_factor: f32,
    /// YaRN's upper correction bound.
    pub beta_fast: f32,
    /// YaRN's lower correction bound.
    pub beta_slow: f32,
}

/// A graph under construction or ready to compute.
pub struct Graph {
    raw: NonNull<sys::ggml_cgraph>,
    context: Arc<ContextInner>,
    /// Contexts of operands that came from elsewhere (weights, caches): they must live as long as the graph.
    operands: RefCell<Vec<Arc<ContextInner>>>,
    /// What the custom nodes point to; boxed, as the graph holds their addresses.
    #[allow(clippy::vec_box, reason = "nodes must not move when the list grows")]
    custom: RefCell<Vec<Box<CustomNode>>>,
}

// SAFETY: a graph is built and computed by one thread at a time; it holds its operands.
unsafe impl Send for Graph {}

impl Graph {
    /// An empty graph with room for `max_nodes` nodes and as many leaves.
    pub fn new(max_nodes: usize) -> Graph {
        // SAFETY: constants of the library for these arguments.
        let bytes = unsafe {
            sys::ggml_tensor_overhead() * max_nodes * 2
                + sys::ggml_graph_overhead_custom(max_nodes, false)
                + 1024
        };
        let context = ContextInner::with_bytes(bytes);
        // SAFETY: the arena was sized for this.
        let raw = unsafe { sys::ggml_new_graph_custom(context.raw(), max_nodes, false) };
        Graph {
            raw: NonNull::new(raw).expect("sized above"),
            context,
            operands: RefCell::default(),
            custom: RefCell::default(),
        }
    }

    pub(crate) fn raw(&self) -> *mut sys::ggml_cgraph {
        self.raw.as_ptr()
    }

    /// What keeps its nodes' operands alive, those from elsewhere.
    pub(crate) fn contexts(&self) -> Vec<Arc<ContextInner>> {
        self.operands.borrow().clone()
    }

    /// Nodes added so far.
    pub fn n_nodes(&self) -> usize {
        // SAFETY: a valid graph.
        unsafe { sys::ggml_graph_n_nodes(self.raw()) as usize }
    }

    /// Remembers that a node refers to `tensor`.
    fn operand(&self, tensor: &Tensor) -> *mut sys::ggml_tensor {
        let context = tensor.context();
        if !Arc::ptr_eq(context, &self.context) {
            let mut operands = self.operands.borrow_mut();
            if !operands.iter().any(|known| Arc::ptr_eq(known, context)) {
                operands.push(Arc::clone(context));
            }
        }
        tensor.raw()
    }

    /// # Safety
    /// `raw` was just created in this graph's context.
    unsafe fn node(&self, raw: *mut sys::ggml_tensor) -> Tensor {
        // SAFETY: as the caller promises.
        unsafe { Tensor::new(raw, &self.context) }
    }

    fn ctx(&self) -> *mut sys::ggml_context {
        self.context.raw()
    }

    /// A tensor that the caller fills before each computation.
    pub fn input(&self, name: &str, ty: Type, ne: &[usize]) -> Tensor {
        assert!(matches!(ne.len(), 1..=4) && ne.iter().all(|n| *n > 0), "{name}: shape {ne:?}");
        let extents: Vec<i64> = ne.iter().map(|n| *n as i64).collect();
        // SAFETY: the type exists and the extents are positive.
        unsafe {
            let raw = sys::ggml_new_tensor(self.ctx(), ty.id(), ne.len() as i32, extents.as_ptr());
            sys::ggml_set_input(raw);
            let tensor = self.node(raw);
            self.name(&tensor, name);
            tensor
        }
    }

    /// Names a node, for the scheduler's and the user's eyes.
    pub fn name(&self, tensor: &Tensor, name: &str) {
        let name = CString::new(name.replace('\0', "")).expect("NULs are gone");
        // SAFETY: a valid tensor; ggml copies the name.
        unsafe { sys::ggml_set_name(tensor.raw(), name.as_ptr()) };
    }

    /// Marks a result that is read after the computation, and adds what it depends on.
    pub fn output(&self, tensor: &Tensor) {
        // SAFETY: a valid tensor of this graph.
        unsafe { sys::ggml_set_output(tensor.raw()) };
        self.expand(tensor);
    }

    /// Adds `tensor` and all it depends on to the order of computation.
    pub fn expand(&self, tensor: &Tensor) {
        // SAFETY: graph and tensor are valid.
        unsafe { sys::ggml_build_forward_expand(self.raw(), self.operand(tensor)) };
    }

    /// `a + b`, where `b` is repeated to the shape of `a`.
    pub fn add(&self, a: &Tensor, b: &Tensor) -> Tensor {
        repeats(b, a, "add");
        // SAFETY: operands are valid and `b` can be repeated to `a`.
        unsafe { self.node(sys::ggml_add(self.ctx(), self.operand(a), self.operand(b))) }
    }

    /// `a * b` element by element, where `b` is repeated to the shape of `a`.
    pub fn mul(&self, a: &Tensor, b: &Tensor) -> Tensor {
        repeats(b, a, "mul");
        // SAFETY: as in `add`.
        unsafe { self.node(sys::ggml_mul(self.ctx(), self.operand(a), self.operand(b))) }
    }

    /// `a / b` element by element, where `b` is repeated to the shape of `a`.
    pub fn div(&self, a: &Tensor, b: &Tensor) -> Tensor {
        repeats(b, a, "div");
        // SAFETY: as in `add`.
        unsafe { self.node(sys::ggml_div(self.ctx(), self.operand(a), self.operand(b))) }
    }

    /// Every element limited to `min..=max`.
    pub fn clamp(&self, a: &Tensor, min: f32, max: f32) -> Tensor {
        // SAFETY: a valid operand.
        unsafe { self.node(sys::ggml_clamp(self.ctx(), self.operand(a), min, max)) }
    }

    /// Sum of each row: `[n, ...]` to `[1, ...]`.
    pub fn sum_rows(&self, a: &Tensor) -> Tensor {
        // SAFETY: a valid operand.
        unsafe { self.node(sys::ggml_sum_rows(self.ctx(), self.operand(a))) }
    }

    /// Each row divided by its root mean square (with `eps` under the root).
    pub fn rms_norm(&self, a: &Tensor, eps: f32) -> Tensor {
        // SAFETY: a valid operand.
        unsafe { self.node(sys::ggml_rms_norm(self.ctx(), self.operand(a), eps)) }
    }

    /// `silu(gate) * up`, element by element.
    pub fn swiglu(&self, gate: &Tensor, up: &Tensor) -> Tensor {
        assert_eq!(gate.ne(), up.ne(), "swiglu: shapes differ");
        // SAFETY: operands are valid and of one shape.
        unsafe { self.node(sys::ggml_swiglu_split(self.ctx(), self.operand(gate), self.operand(up))) }
    }

    /// Softmax of each row, computed in F32.
    pub fn soft_max(&self, a: &Tensor) -> Tensor {
        // SAFETY: a valid operand.
        unsafe { self.node(sys::ggml_soft_max(self.ctx(), self.operand(a))) }
    }

    /// Softmax of `a * scale + mask` by rows; `a: [n_kv, n_tokens, n_head]`, `mask: [n_kv, n_tokens]` in F16 or F32.
    pub fn soft_max_masked(&self, a: &Tensor, mask: &Tensor, scale: f32) -> Tensor {
        let (ne, m) = (a.ne(), mask.ne());
        assert!(m[0] == ne[0] && m[1] >= ne[1] && m[2] == 1 && m[3] == 1, "soft_max: mask {m:?} for {ne:?}");
        // SAFETY: operands are valid and the mask covers the rows.
        unsafe {
            self.node(sys::ggml_soft_max_ext(self.ctx(), self.operand(a), self.operand(mask), scale, 0.0))
        }
    }

    /// Indices (I32) of the `k` largest elements of each row, largest first.
    pub fn top_k(&self, a: &Tensor, k: usize) -> Tensor {
        assert!(k >= 1 && k <= a.ne()[0], "top_k: {k} of {}", a.ne()[0]);
        // SAFETY: a valid operand with at least `k` columns.
        unsafe { self.node(sys::ggml_argsort_top_k(self.ctx(), self.operand(a), k as i32)) }
    }

    /// `weight^T x`: `weight: [n_in, n_out]`, `x: [n_in, n_tokens]` to `[n_out, n_tokens]`, broadcast over axes 2, 3.
    pub fn mul_mat(&self, weight: &Tensor, x: &Tensor) -> Tensor {
        let (w, b) = (weight.ne(), x.ne());
        let fits = w[0] == b[0] && b[2].is_multiple_of(w[2]) && b[3].is_multiple_of(w[3]);
        assert!(fits, "mul_mat: {weight:?} {w:?} with {b:?}");
        // SAFETY: operands are valid and their shapes agree.
        unsafe { self.node(sys::ggml_mul_mat(self.ctx(), self.operand(weight), self.operand(x))) }
    }

    /// As [`mul_mat`](Self::mul_mat), accumulated in F32 on every device.
    pub fn mul_mat_f32(&self, weight: &Tensor, x: &Tensor) -> Tensor {
        let product = self.mul_mat(weight, x);
        // SAFETY: a node of this graph that multiplies matrices.
        unsafe { sys::ggml_mul_mat_set_prec(product.raw(), sys::GGML_PREC_F32) };
        product
    }

    /// For each token and each of its chosen experts, that expert's matrix times the token's row.
    ///
    /// `experts: [n_in, n_out, n_expert]`, `x: [n_in, 1 or k, n_tokens]`, `ids: [k, n_tokens]` (I32, each below
    /// `n_expert`, those of a token all different) to `[n_out, k, n_tokens]`.
    pub fn mul_mat_id(&self, experts: &Tensor, x: &Tensor, ids: &Tensor) -> Tensor {
        let (w, b, i) = (experts.ne(), x.ne(), ids.ne());
        let fits = w[3] == 1 && b[3] == 1 && i[2] == 1 && i[3] == 1;
        assert!(
            fits && i[1] == b[2] && w[0] == b[0] && i[0].is_multiple_of(b[1]),
            "mul_mat_id: {w:?} {b:?} {i:?}"
        );
        assert_eq!(ids.ty(), Type::I32, "mul_mat_id: ids");
        // SAFETY: operands are valid and their shapes agree.
        unsafe {
            self.node(sys::ggml_mul_mat_id(
                self.ctx(),
                self.operand(experts),
                self.operand(x),
                self.operand(ids),
            ))
        }
    }

    /// As [`mul_mat_id`](Self::mul_mat_id), where a token's choices may name one expert several times, which kernels of GPUs take for
    /// impossible: they leave out the repeated ones. Each choice is a token of its own here, but for single tokens and
    /// quantized experts: those have kernels that compute choice by choice.
    pub fn mul_mat_id_repeated(&self, experts: &Tensor, x: &Tensor, ids: &Tensor) -> Tensor {
        let ([n_in, given, ..], [k, n_tokens, ..]) = (x.ne(), ids.ne());
        if k == 1 || (n_tokens == 1 && experts.ty().is_quantized()) {
            return self.mul_mat_id(experts, x, ids);
        }
        let each = if given == k {
            x.clone()
        } else {
            let (n_in, k, n_tokens) = (n_in as i64, k as i64, n_tokens as i64);
            // SAFETY: a valid operand, whose second axis, of one row, is repeated.
            unsafe { self.node(sys::ggml_repeat_4d(self.ctx(), self.operand(x), n_in, k, n_tokens, 1)) }
        };
        let rows = self.reshape(&each, &[n_in, 1, k * n_tokens]);
        let product = self.mul_mat_id(experts, &rows, &self.reshape(ids, &[1, k * n_tokens]));
        self.reshape(&product, &[product.ne()[0], k, n_tokens])
    }

    /// Rows of `a` by index: `a: [n, n_rows, ...]`, `rows: [k, ...]` (I32) to `[n, k, ...]` in F32 (I32 stays).
    pub fn get_rows(&self, a: &Tensor, rows: &Tensor) -> Tensor {
        let (ne, r) = (a.ne(), rows.ne());
        assert!(ne[2] == r[1] && ne[3] == r[2] && r[3] == 1, "get_rows: {ne:?} by {r:?}");
        assert_eq!(rows.ty(), Type::I32, "get_rows: indices");
        // SAFETY: operands are valid and their shapes agree.
        unsafe { self.node(sys::ggml_get_rows(self.ctx(), self.operand(a), self.operand(rows))) }
    }

    /// Writes the rows of `b` into `a` at the indices `rows` (I64), converting to the type of `a`; returns `a`.
    pub fn set_rows(&self, a: &Tensor, b: &Tensor, rows: &Tensor) -> Tensor {
        let (ne, src, r) = (a.ne(), b.ne(), rows.ne());
        assert!(
            ne[0] == src[0] && ne[2] == src[2] && ne[3] == src[3] && src[1] == r[0],
            "set_rows: {ne:?} {src:?} {r:?}"
        );
        assert!(b.ty() == Type::F32 && rows.ty() == Type::I64, "set_rows: types");
        // SAFETY: operands are valid and their shapes agree.
        unsafe {
            self.node(sys::ggml_set_rows(self.ctx(), self.operand(a), self.operand(b), self.operand(rows)))
        }
    }

    /// Rotary position embedding of `a: [head_dim, n_head, n_tokens]` by `positions: [n_tokens]` (I32);
    /// `factors: [n_dims / 2]` divide the frequencies.
    pub fn rope(&self, a: &Tensor, positions: &Tensor, factors: Option<&Tensor>, rope: &Rope) -> Tensor {
        assert!(a.ne()[2] == positions.ne()[0] && positions.ty() == Type::I32, "rope: positions of {a:?}");
        assert!(
            rope.n_dims.is_multiple_of(2) && rope.n_dims <= a.ne()[0],
            "rope: {} of {:?}",
            rope.n_dims,
            a.ne()
        );
        if let Some(factors) = factors {
            assert!(factors.ty() == Type::F32 && factors.ne()[0] >= rope.n_dims / 2, "rope: factors");
        }
        let mode = match rope.style {
            RopeStyle::Interleaved => 0,
            RopeStyle::Halves => sys::GGML_ROPE_TYPE_NEOX as i32,
        };
        let factors = factors.map_or(std::ptr::null_mut(), |f| self.operand(f));
        // SAFETY: operands are valid and their shapes agree; null stands for no factors.
        unsafe {
            self.node(sys::ggml_rope_ext(
                self.ctx(),
                self.operand(a),
                self.operand(positions),
                factors,
                rope.n_dims as i32,
                mode,
                rope.n_ctx_orig as i32,
                rope.freq_base,
                rope.freq_scale,
                rope.ext_factor,
                rope.attn_factor,
                rope.beta_fast,
                rope.beta_slow,
            ))
        }
    }

    /// Attention in one pass: `q: [head_dim, n_tokens, n_head]`, `k: [head_dim, n_kv, n_head_kv]`,
    /// `v: [head_dim_v, n_kv, n_head_kv]`, `mask: [n_kv, n_tokens]` (F16) to `[head_dim_v, n_head, n_tokens]`,
    /// accumulated in F32.
    pub fn flash_attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor, scale: f32) -> Tensor {
        let (qn, kn, vn, mn) = (q.ne(), k.ne(), v.ne(), mask.ne());
        assert!(
            qn[0] == kn[0] && qn[2].is_multiple_of(kn[2]) && kn[1] == vn[1] && kn[2] == vn[2],
            "attention: {qn:?} {kn:?} {vn:?}"
        );
        assert!(
            mask.ty() == Type::F16 && mn[0] == kn[1] && mn[1] >= qn[1],
            "attention: mask {mn:?} for {qn:?}"
        );
        // SAFETY: operands are valid and their shapes agree.
        unsafe {
            let raw = sys::ggml_flash_attn_ext(
                self.ctx(),
                self.operand(q),
                self.operand(k),
                self.operand(v),
                self.operand(mask),
                scale,
                0.0,
                0.0,
            );
            sys::ggml_flash_attn_ext_set_prec(raw, sys::GGML_PREC_F32);
            self.node(raw)
        }
    }

    /// Rows of `row_bytes` bytes each (I8, `[row_bytes, n_rows]`), filled by `kernel` on the CPU. The scheduler places
    /// the node by the weights among its `sources`, of which there are at most nine.
    pub fn custom_rows(
        &self,
        row_bytes: usize,
        n_rows: usize,
        sources: &[&Tensor],
        kernel: Arc<dyn RowKernel>,
    ) -> Tensor {
        self.custom(Type::I8, &[row_bytes, n_rows], sources, Kernel::Rows(kernel))
    }

    /// I32 of shape `ne`, whose rows are filled by `kernel` on the CPU; sources as in [`custom_rows`](Self::custom_rows).
    pub fn custom_ints(&self, ne: &[usize], sources: &[&Tensor], kernel: Arc<dyn RowKernel>) -> Tensor {
        self.custom(Type::I32, ne, sources, Kernel::Rows(kernel))
    }

    /// F32 of shape `ne`, computed by `kernel` on the CPU; sources as in [`custom_rows`](Self::custom_rows).
    pub fn custom_tiles(&self, ne: &[usize], sources: &[&Tensor], kernel: Arc<dyn TileKernel>) -> Tensor {
        self.custom(Type::F32, ne, sources, Kernel::Tiles(kernel))
    }

    fn custom(&self, ty: Type, ne: &[usize], sources: &[&Tensor], kernel: Kernel) -> Tensor {
        assert!(matches!(ne.len(), 1..=4) && ne.iter().all(|n| *n > 0), "custom: shape {ne:?}");
        assert!(sources.len() < sys::GGML_MAX_SRC as usize, "custom: {} sources", sources.len());
        let node = CustomNode::new(kernel);
        let mut sources: Vec<_> = sources.iter().map(|source| self.operand(source)).collect();
        let at = |i: usize| ne.get(i).copied().unwrap_or(1) as i64;
        // SAFETY: operands are valid and not too many; the node that ggml hands back to `run` is kept by this graph,
        // at an address that does not change.
        let raw = unsafe {
            sys::ggml_custom_4d(
                self.ctx(),
                ty.id(),
                at(0),
                at(1),
                at(2),
                at(3),
                sources.as_mut_ptr(),
                sources.len() as i32,
                Some(custom::run),
                sys::GGML_N_TASKS_MAX,
                node.user_data(),
            )
        };
        self.custom.borrow_mut().push(node);
        // SAFETY: just created.
        unsafe { self.node(raw) }
    }

    /// Goes on with a panic that a custom node's kernel raised while the graph was computed.
    pub(crate) fn resume_panic(&self) {
        if let Some(panic) = self.custom.borrow().iter().find_map(|node| node.take_panic()) {
            std::panic::resume_unwind(panic);
        }
    }

    /// The same contiguous elements under another shape.
    pub fn reshape(&self, a: &Tensor, ne: &[usize]) -> Tensor {
        assert_eq!(ne.iter().product::<usize>(), a.n_elements(), "reshape: {:?} to {ne:?}", a.ne());
        let at = |i: usize| ne.get(i).copied().unwrap_or(1) as i64;
        // SAFETY: a valid operand with as many elements.
        unsafe {
            assert!(sys::ggml_is_contiguous(a.raw()), "reshape: {a:?} is not contiguous");
            self.node(sys::ggml_reshape_4d(self.ctx(), self.operand(a), at(0), at(1), at(2), at(3)))
        }
    }

    /// A window on `a`: extents `ne`, strides `nb` in bytes for axes 1 and 2, starting `offset` bytes in.
    pub fn view(&self, a: &Tensor, ne: [usize; 3], nb: [usize; 2], offset: usize) -> Tensor {
        let row = a.ty().row_bytes(ne[0]);
        let last = offset + (ne[1] - 1) * nb[0] + (ne[2] - 1) * nb[1] + row;
        assert!(last <= a.n_bytes(), "view: bytes up to {last} of {a:?} with {}", a.n_bytes());
        // SAFETY: a valid operand, and the window lies inside it.
        unsafe {
            self.node(sys::ggml_view_3d(
                self.ctx(),
                self.operand(a),
                ne[0] as i64,
                ne[1] as i64,
                ne[2] as i64,
                nb[0],
                nb[1],
                offset,
            ))
        }
    }

    /// The axes in another order: axis `i` of `a` becomes axis `axes[i]`. No data moves.
    pub fn permute(&self, a: &Tensor, axes: [i32; 4]) -> Tensor {
        let mut sorted = axes;
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 1, 2, 3], "permute: {axes:?}");
        // SAFETY: a valid operand and a permutation.
        unsafe {
            self.node(sys::ggml_permute(self.ctx(), self.operand(a), axes[0], axes[1], axes[2], axes[3]))
        }
    }

    /// A contiguous copy.
    pub fn contiguous(&self, a: &Tensor) -> Tensor {
        // SAFETY: a valid operand.
        unsafe { self.node(sys::ggml_cont(self.ctx(), self.operand(a))) }
    }

    /// A copy in another type.
    pub fn cast(&self, a: &Tensor, ty: Type) -> Tensor {
        // SAFETY: a valid operand and an existing type.
        unsafe { self.node(sys::ggml_cast(self.ctx(), self.operand(a), ty.id())) }
    }
}

/// Panics unless `b` can be repeated to the shape of `a`, as ggml's binary operations want.
fn repeats(b: &Tensor, a: &Tensor, what: &str) {
    let fits = a.ne().iter().zip(b.ne()).all(|(n, m)| n.is_multiple_of(m));
    assert!(fits, "{what}: {:?} does not repeat to {:?}", b.ne(), a.ne());
}
