//! A stream of the stand-in: it notes what it is given to compute and to copy, and does it when somebody waits for it.
//!
//! That is a GPU as slow as it can be: whoever reads its memory without waiting finds what was there before, what is copied
//! is what the host's memory holds by then, and what the CPU does in between is what it could do while a GPU computes.

use super::device::{StandIn, buffer_of, device_buffer_type, device_host_buffer_type};
use super::recorded::Recorded;
use crate::backend::{SetThreadPool, SetThreads};
use ggml_sys as sys;
use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::atomic::Ordering;

/// Name of the function that tells how late work ended.
pub(crate) const LATE_STATUS: &CStr = c"bruce_stand_in_late_status";

/// Status of what a stream computed when somebody waited for it, once; a stream can't return it then.
pub(crate) type LateStatus = unsafe extern "C" fn(sys::ggml_backend_t) -> sys::ggml_status;

pub(super) unsafe extern "C" fn late_status(stream: sys::ggml_backend_t) -> sys::ggml_status {
    // SAFETY: a stream of this device.
    std::mem::replace(&mut unsafe { context(stream) }.status, sys::GGML_STATUS_SUCCESS)
}

/// What a stream's context points to; one thread uses it at a time.
struct Stream {
    cpu: sys::ggml_backend_t,
    device: &'static StandIn,
    /// What it was given and has not done.
    pending: VecDeque<Work>,
    /// Of what was computed since it was last asked for.
    status: sys::ggml_status,
}

/// Whoever gives it to a stream keeps the data it is about until it has waited for it; the graph itself may go, as on GPUs.
enum Work {
    Compute(Recorded),
    Copy { from: *const u8, to: *mut u8, n_bytes: usize },
}

impl Stream {
    fn give(&mut self, work: Work) {
        self.device.n_pending.fetch_add(1, Ordering::Relaxed);
        self.pending.push_back(work);
    }

    /// Does what was given, in its order.
    ///
    /// # Safety
    /// What the work points to is still there.
    unsafe fn run(&mut self) {
        while let Some(work) = self.pending.pop_front() {
            match work {
                Work::Compute(graph) => {
                    // SAFETY: as the caller promises.
                    let status = unsafe { graph.compute(self.cpu) };
                    if self.status == sys::GGML_STATUS_SUCCESS {
                        self.status = status;
                    }
                }
                // SAFETY: as the caller promises; ggml has checked the range.
                Work::Copy { from, to, n_bytes } => unsafe { to.copy_from_nonoverlapping(from, n_bytes) },
            }
            self.device.n_pending.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// # Safety
/// `stream` was made by `start_stream`, and nobody else uses it.
unsafe fn context<'a>(stream: sys::ggml_backend_t) -> &'a mut Stream {
    // SAFETY: as the caller promises.
    unsafe { &mut *(*stream).context.cast::<Stream>() }
}

pub(super) unsafe extern "C" fn set_threads(stream: sys::ggml_backend_t, n_threads: i32) {
    // SAFETY: a stream of this device; the type is what ggml documents for the name.
    unsafe {
        if let Some(set) =
            StandIn::of((*stream).device).cpu.function::<SetThreads>(c"ggml_backend_set_n_threads")
        {
            set(context(stream).cpu, n_threads);
        }
    }
}

pub(super) unsafe extern "C" fn set_thread_pool(stream: sys::ggml_backend_t, pool: sys::ggml_threadpool_t) {
    // SAFETY: as above; the caller keeps the pool alive.
    unsafe {
        let cpu = StandIn::of((*stream).device).cpu;
        if let Some(set) = cpu.function::<SetThreadPool>(c"ggml_backend_cpu_set_threadpool") {
            set(context(stream).cpu, pool);
        }
    }
}

pub(super) unsafe extern "C" fn start_stream(
    device: sys::ggml_backend_dev_t,
    _: *const c_char,
) -> sys::ggml_backend_t {
    // Only compared by address and content, never written.
    static GUID: sys::ggml_guid = *b"bruce stand-in 0";
    // SAFETY: a device of this kind; the CPU's device lives for ever.
    let cpu = unsafe { sys::ggml_backend_dev_init(StandIn::of(device).cpu.0.as_ptr(), null()) };
    if cpu.is_null() {
        return null_mut();
    }
    let iface = sys::ggml_backend_i {
        get_name: Some(stream_name),
        free: Some(end_stream),
        set_tensor_async: Some(set_tensor_later),
        get_tensor_async: Some(get_tensor_later),
        set_tensor_2d_async: None,
        get_tensor_2d_async: None,
        cpy_tensor_async: Some(fetch_tensor_later),
        synchronize: Some(wait),
        graph_plan_create: None,
        graph_plan_free: None,
        graph_plan_update: None,
        graph_plan_compute: None,
        graph_compute: Some(compute),
        event_record: None,
        event_wait: None,
        graph_optimize: None,
    };
    let guid = (&raw const GUID).cast_mut();
    // SAFETY: a device of this kind.
    let place = unsafe { StandIn::of(device) };
    let status = sys::GGML_STATUS_SUCCESS;
    let stream = Stream { cpu, device: place, pending: VecDeque::new(), status };
    let context = Box::into_raw(Box::new(stream)).cast();
    Box::into_raw(Box::new(sys::ggml_backend { guid, iface, device, context }))
}

unsafe extern "C" fn stream_name(stream: sys::ggml_backend_t) -> *const c_char {
    // SAFETY: a stream of this device.
    unsafe { StandIn::of((*stream).device) }.name()
}

unsafe extern "C" fn end_stream(stream: sys::ggml_backend_t) {
    // SAFETY: ggml frees a stream once; `start_stream` boxed it and its context, which owns the backend inside.
    unsafe {
        let context = Box::from_raw((*stream).context.cast::<Stream>());
        context.device.n_pending.fetch_sub(context.pending.len(), Ordering::Relaxed);
        sys::ggml_backend_free(context.cpu);
        drop(Box::from_raw(stream));
    }
}

unsafe extern "C" fn compute(stream: sys::ggml_backend_t, graph: *mut sys::ggml_cgraph) -> sys::ggml_status {
    // SAFETY: a stream of this device and a graph that the scheduler has allocated.
    unsafe {
        let own = device_buffer_type((*stream).device);
        for i in 0..sys::ggml_graph_n_nodes(graph) {
            let node = sys::ggml_graph_node(graph, i);
            if !lies_in(own, node) {
                return sys::GGML_STATUS_FAILED;
            }
        }
        context(stream).give(Work::Compute(Recorded::new(graph)));
    }
    sys::GGML_STATUS_SUCCESS
}

/// Does what was given.
unsafe extern "C" fn wait(stream: sys::ggml_backend_t) {
    // SAFETY: a stream of this device; what it was given is kept until this returns.
    unsafe { context(stream).run() };
}

unsafe extern "C" fn set_tensor_later(
    stream: sys::ggml_backend_t,
    tensor: *mut sys::ggml_tensor,
    data: *const c_void,
    offset: usize,
    n_bytes: usize,
) {
    // SAFETY: ggml passes a stream of this device and a tensor with a place, and has checked the range.
    unsafe {
        let to = (*tensor).data.cast::<u8>().add(offset);
        context(stream).give(Work::Copy { from: data.cast(), to, n_bytes });
    }
}

unsafe extern "C" fn get_tensor_later(
    stream: sys::ggml_backend_t,
    tensor: *const sys::ggml_tensor,
    data: *mut c_void,
    offset: usize,
    n_bytes: usize,
) {
    // SAFETY: as above; what is written to stays until somebody has waited.
    unsafe {
        let from = (*tensor).data.cast::<u8>().add(offset);
        context(stream).give(Work::Copy { from, to: data.cast(), n_bytes });
    }
}

/// From memory of the host that the device fetches from; all else is for ggml to copy at once.
unsafe extern "C" fn fetch_tensor_later(
    _: sys::ggml_backend_t,
    stream: sys::ggml_backend_t,
    source: *const sys::ggml_tensor,
    target: *mut sys::ggml_tensor,
) -> bool {
    // SAFETY: ggml passes a stream of this device and two tensors of one layout with places; the source stays until
    // somebody has waited.
    unsafe {
        let (host, own) = (buffer_of(source), buffer_of(target));
        let is_pinned = !host.is_null() && (*host).buft == device_host_buffer_type((*stream).device);
        let is_own = !own.is_null() && (*own).buft == device_buffer_type((*stream).device);
        if is_pinned && is_own {
            let n_bytes = sys::ggml_nbytes(source);
            context(stream).give(Work::Copy {
                from: (*source).data.cast(),
                to: (*target).data.cast(),
                n_bytes,
            });
        }
        is_pinned && is_own
    }
}

/// Whether a node and all it reads lie in the given memory; a view by itself touches nothing.
///
/// # Safety
/// `node` is valid.
unsafe fn lies_in(own: sys::ggml_backend_buffer_type_t, node: *const sys::ggml_tensor) -> bool {
    // SAFETY: as the caller promises, and a node's operands live as long as the node.
    unsafe {
        let here = |tensor: *const sys::ggml_tensor| {
            let buffer = buffer_of(tensor);
            !buffer.is_null() && (*buffer).buft == own
        };
        match (*node).op {
            sys::GGML_OP_NONE
            | sys::GGML_OP_RESHAPE
            | sys::GGML_OP_VIEW
            | sys::GGML_OP_PERMUTE
            | sys::GGML_OP_TRANSPOSE => true,
            _ => here(node) && (*node).src.iter().all(|src| src.is_null() || here(*src)),
        }
    }
}
