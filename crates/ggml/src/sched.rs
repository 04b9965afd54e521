//! The scheduler: splits a graph over backends by where its weights lie, allocates and computes it.

use crate::Error;
use crate::backend::{Backend, DeviceKind};
use crate::buffer::BufferType;
use crate::context::ContextInner;
use crate::graph::Graph;
use crate::landing::Landing;
use crate::stand_in::recorded::REPEATED_EXPERT;
use crate::tensor::{Plain, Tensor};
use ggml_sys as sys;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

/// Runs graphs over several backends, the CPU last.
pub struct Scheduler {
    raw: NonNull<sys::ggml_backend_sched>,
    /// Results of the last computation, in memory that a device copies to by itself.
    landing: Landing,
    /// What devices may be computing with; empty when they were waited for.
    under_way: Vec<Arc<ContextInner>>,
    backends: Vec<Backend>,
}

// SAFETY: used by one thread at a time through `&mut`.
unsafe impl Send for Scheduler {}

impl Drop for Scheduler {
    fn drop(&mut self) {
        // SAFETY: freed once, before the backends (fields drop after this), when nothing is being computed.
        unsafe {
            sys::ggml_backend_sched_synchronize(self.raw.as_ptr());
            sys::ggml_backend_sched_free(self.raw.as_ptr());
        }
    }
}

impl Scheduler {
    /// A scheduler over `backends`, in order of preference; the last must be the CPU. `max_nodes` bounds the graphs.
    /// `offload` lets a GPU compute large batches with weights that lie in host memory.
    ///
    /// What the CPU computes and what the caller writes lies in memory that the first device fetches from by itself, where
    /// it has such.
    pub fn new(backends: Vec<Backend>, max_nodes: usize, offload: bool) -> Scheduler {
        let mut raw: Vec<sys::ggml_backend_t> = backends.iter().map(Backend::raw).collect();
        let pinned = backends.first().and_then(|first| first.device().host_buffer_type());
        let memory_of = |backend: &Backend| match backend.device().kind() {
            DeviceKind::Cpu => pinned.unwrap_or_else(BufferType::cpu),
            _ => backend.device().buffer_type(),
        };
        let mut types: Vec<sys::ggml_backend_buffer_type_t> =
            backends.iter().map(|backend| memory_of(backend).0.as_ptr()).collect();
        // SAFETY: both arrays have one entry per backend and are copied.
        let sched = unsafe {
            sys::ggml_backend_sched_new(
                raw.as_mut_ptr(),
                types.as_mut_ptr(),
                backends.len() as i32,
                max_nodes,
                false,
                offload,
            )
        };
        let landing = Landing::new(pinned.unwrap_or_else(BufferType::cpu));
        let raw = NonNull::new(sched).expect("a small allocation");
        Scheduler { raw, landing, under_way: Vec::new(), backends }
    }

    /// The backends, in the order given.
    pub fn backends_mut(&mut self) -> &mut [Backend] {
        &mut self.backends
    }

    /// Allocates the compute buffers that `graph` needs without computing it, so that later graphs no larger fit.
    ///
    /// The graph is used up: splitting it over backends puts copies in the place of its operands, and planning the same
    /// graph again would take those copies for the real ones and give memory out twice.
    ///
    /// # Errors
    /// [`Error::GraphAllocation`].
    pub fn reserve(&mut self, graph: Graph) -> Result<(), Error> {
        // SAFETY: scheduler and graph are valid.
        let done = unsafe {
            sys::ggml_backend_sched_reset(self.raw.as_ptr());
            sys::ggml_backend_sched_reserve(self.raw.as_ptr(), graph.raw())
        };
        if done { Ok(()) } else { Err(Error::GraphAllocation { n_nodes: graph.n_nodes() }) }
    }

    /// Bytes of compute buffer on each backend, by its kind of memory (pinned memory is the host's), that `graph` would need; the graph is used up, as in
    /// [`reserve`](Self::reserve).
    pub fn measure(&mut self, graph: Graph) -> Vec<(BufferType, u64)> {
        let mut sizes = vec![0; self.backends.len()];
        // SAFETY: scheduler and graph are valid, one size per backend.
        unsafe {
            sys::ggml_backend_sched_reset(self.raw.as_ptr());
            sys::ggml_backend_sched_reserve_size(self.raw.as_ptr(), graph.raw(), sizes.as_mut_ptr());
            sys::ggml_backend_sched_reset(self.raw.as_ptr());
        }
        let types = self.backends.iter().map(|backend| backend.device().buffer_type());
        types.zip(sizes.into_iter().map(|size| size as u64)).collect()
    }

    /// Gives every node of `graph` a place, forgetting the graph before it. Inputs may be written afterwards, and the
    /// graph computed any number of times, but it must be new: see [`reserve`](Self::reserve).
    ///
    /// # Errors
    /// [`Error::GraphAllocation`].
    pub fn allocate(&mut self, graph: &Graph) -> Result<(), Error> {
        // SAFETY: scheduler and graph are valid.
        let done = unsafe {
            sys::ggml_backend_sched_reset(self.raw.as_ptr());
            sys::ggml_backend_sched_alloc_graph(self.raw.as_ptr(), graph.raw())
        };
        if done { Ok(()) } else { Err(Error::GraphAllocation { n_nodes: graph.n_nodes() }) }
    }

    /// Computes the graph that was allocated last.
    ///
    /// # Errors
    /// [`Error::Aborted`] when the abort flag was set, [`Error::RepeatedExpert`], [`Error::Compute`] otherwise.
    ///
    /// # Panics
    /// Where the kernel of a custom node did.
    pub fn compute(&mut self, graph: &Graph) -> Result<(), Error> {
        self.compute_and_fetch(graph, &[])
    }

    /// As [`compute`](Self::compute), and copies `results` of the graph to the host: all of them behind the computation, and
    /// waits once. [`result`](Self::result) lends them afterwards.
    ///
    /// # Errors
    /// As [`compute`](Self::compute), and [`Error::OutOfMemory`].
    pub fn compute_and_fetch(&mut self, graph: &Graph, results: &[Tensor]) -> Result<(), Error> {
        self.landing.lay_out(results)?;
        let status = self.launch(graph, results);
        let done = self.wait_after(status);
        graph.resume_panic();
        done
    }

    /// Begins to compute the graph that was allocated last: devices go on when this returns. Meanwhile the next graph may be
    /// [allocated](Self::allocate), but what the caller writes, inputs included, must wait for [`wait`](Self::wait).
    ///
    /// # Errors
    /// As [`compute`](Self::compute); nothing is under way then.
    ///
    /// # Panics
    /// As [`compute`](Self::compute).
    pub fn start(&mut self, graph: &Graph) -> Result<(), Error> {
        let status = self.launch(graph, &[]);
        let done = if status == sys::GGML_STATUS_SUCCESS { Ok(()) } else { self.wait_after(status) };
        graph.resume_panic();
        done
    }

    /// Waits until what was [started](Self::start) is done.
    ///
    /// # Errors
    /// As [`compute`](Self::compute).
    pub fn wait(&mut self) -> Result<(), Error> {
        self.wait_after(sys::GGML_STATUS_SUCCESS)
    }

    fn launch(&mut self, graph: &Graph, results: &[Tensor]) -> sys::ggml_status {
        self.under_way.extend(graph.contexts());
        // SAFETY: the graph was allocated by this scheduler, and what its nodes read is kept until it was waited for; backends
        // need no graph beyond the call. What is fetched goes to memory that nobody looks at before that either, and a result
        // lies where its backend put it.
        unsafe {
            let raw = self.raw.as_ptr();
            let status = sys::ggml_backend_sched_graph_compute_async(raw, graph.raw());
            if status == sys::GGML_STATUS_SUCCESS {
                for (tensor, place) in results.iter().zip(self.landing.places()) {
                    let backend = sys::ggml_backend_sched_get_tensor_backend(raw, tensor.raw());
                    assert!(!backend.is_null(), "{tensor:?} is no result of the graph");
                    let n_bytes = tensor.n_bytes();
                    sys::ggml_backend_tensor_get_async(backend, tensor.raw(), place.cast(), 0, n_bytes);
                }
            }
            status
        }
    }

    /// Waits for all backends; `status` is how what was launched went so far.
    fn wait_after(&mut self, status: sys::ggml_status) -> Result<(), Error> {
        // SAFETY: a valid scheduler.
        unsafe { sys::ggml_backend_sched_synchronize(self.raw.as_ptr()) };
        self.under_way.clear();
        // Every backend is asked, so that none keeps a status for the next time.
        let worst = |before, backend: &Backend| match backend.late_status() {
            sys::GGML_STATUS_SUCCESS => before,
            late => late,
        };
        match self.backends.iter().fold(status, worst) {
            sys::GGML_STATUS_SUCCESS => Ok(()),
            sys::GGML_STATUS_ABORTED => Err(Error::Aborted),
            REPEATED_EXPERT => Err(Error::RepeatedExpert),
            status => Err(Error::Compute { status }),
        }
    }

    /// The numbers of the `index`-th tensor that the last computation fetched.
    ///
    /// # Panics
    /// When it fetched fewer, or numbers of another size.
    pub fn result<T: Plain>(&self, index: usize) -> &[T] {
        self.landing.numbers(index)
    }

    /// As [`compute_and_fetch`](Self::compute_and_fetch), and calls `seen` with the index of each of the `watched` tensors as soon as it is
    /// computed, while what it was computed from and all that later nodes need is still in place. The backends wait
    /// meanwhile, so that this is for looking inside and not for speed.
    ///
    /// # Errors
    /// As [`compute_and_fetch`](Self::compute_and_fetch).
    pub fn compute_watched(
        &mut self,
        graph: &Graph,
        results: &[Tensor],
        watched: &[Tensor],
        seen: &mut dyn FnMut(usize),
    ) -> Result<(), Error> {
        let mut watch = Watch { watched, seen };
        // SAFETY: the callback has the type that ggml documents, and is taken away again below, before what its data
        // points to is gone: a panic inside it ends the process, as it can't cross C.
        unsafe {
            let data = (&raw mut watch).cast::<c_void>();
            sys::ggml_backend_sched_set_eval_callback(self.raw.as_ptr(), Some(node_computed), data);
        }
        let done = self.compute_and_fetch(graph, results);
        // SAFETY: as above.
        unsafe {
            sys::ggml_backend_sched_set_eval_callback(self.raw.as_ptr(), None, std::ptr::null_mut());
        }
        done
    }

    /// How many pieces the last graph was split into.
    pub fn n_splits(&self) -> usize {
        // SAFETY: a valid scheduler.
        unsafe { sys::ggml_backend_sched_get_n_splits(self.raw.as_ptr()) as usize }
    }

    /// Compute buffer sizes in bytes, by backend, as [`measure`](Self::measure) tells them.
    pub fn buffer_sizes(&self) -> Vec<(BufferType, usize)> {
        let size = |backend: &Backend| {
            // SAFETY: the backend belongs to this scheduler.
            let bytes = unsafe { sys::ggml_backend_sched_get_buffer_size(self.raw.as_ptr(), backend.raw()) };
            (backend.device().buffer_type(), bytes)
        };
        self.backends.iter().map(size).collect()
    }
}

/// What [`Scheduler::compute_watched`] hands to its callback.
struct Watch<'a> {
    watched: &'a [Tensor],
    seen: &'a mut dyn FnMut(usize),
}

/// ggml calls it twice: before it computes a node, to ask whether somebody waits for it, and after it did. Returns
/// whether somebody waits, and whether to go on.
unsafe extern "C" fn node_computed(node: *mut sys::ggml_tensor, ask: bool, data: *mut c_void) -> bool {
    // SAFETY: the data that `compute_watched` set, which nobody else uses while ggml computes.
    let watch = unsafe { &mut *data.cast::<Watch<'_>>() };
    let mut indices = (0..watch.watched.len()).filter(|i| watch.watched[*i].raw() == node);
    if ask {
        return indices.next().is_some();
    }
    indices.for_each(|i| (watch.seen)(i));
    true
}
