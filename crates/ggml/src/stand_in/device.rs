//! The stand-in as ggml sees it: registry entry, device and stream, which hand the work to a CPU backend inside.
//!
//! A stream only notes what it is given to compute, and does it when somebody waits for it. That is a GPU as slow as it
//! can be: whoever reads its memory without waiting finds what was there before, and what the CPU does in between is what
//! it could do while a GPU computes.

use super::memory::{self, Budget};
use crate::backend::{Device, SetAbort, SetThreadPool, SetThreads};
use ggml_sys as sys;
use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::{NonNull, null, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};

/// From this many columns on a multiplication is worth carrying its weights here; CUDA's figure.
const MIN_OFFLOAD_BATCH: i64 = 32;

/// One device; never freed, as ggml keeps pointers to it for the whole program.
pub(super) struct StandIn {
    name: CString,
    budget: Budget,
    /// Graphs that streams were given and have not computed.
    n_pending: AtomicUsize,
    /// Reads of its memory by the host while there were some.
    n_reads_beside_work: AtomicUsize,
    cpu: Device,
    /// Both refer to this very struct, so they are filled in once it has its place.
    buffer_type: sys::ggml_backend_buffer_type,
    raw: sys::ggml_backend_device,
}

impl StandIn {
    /// # Safety
    /// `device` is one that `register` made.
    unsafe fn of(device: sys::ggml_backend_dev_t) -> &'static StandIn {
        // SAFETY: its context is the struct, which is never freed.
        unsafe { &*(*device).context.cast::<StandIn>() }
    }

    /// # Safety
    /// `buffer_type` is one of a device that `register` made.
    pub(super) unsafe fn of_type(buffer_type: sys::ggml_backend_buffer_type_t) -> &'static StandIn {
        // SAFETY: as above.
        unsafe { &*(*buffer_type).context.cast::<StandIn>() }
    }

    pub(super) fn name(&self) -> *const c_char {
        self.name.as_ptr()
    }

    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// The host reads its memory.
    pub(super) fn note_read(&self) {
        if self.n_pending.load(Ordering::Relaxed) > 0 {
            self.n_reads_beside_work.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// How often the host read the device's memory while a stream had something to compute; 0 for devices of another kind.
pub(super) fn reads_beside_work(device: Device) -> usize {
    // SAFETY: the type of the function of this name.
    let is_ours = unsafe { device.function::<LateStatus>(LATE_STATUS) }.is_some();
    if !is_ours {
        return 0;
    }
    // SAFETY: a device of this kind.
    unsafe { StandIn::of(device.0.as_ptr()) }.n_reads_beside_work.load(Ordering::Relaxed)
}

/// Name of the function that tells how late work ended.
pub(crate) const LATE_STATUS: &CStr = c"bruce_stand_in_late_status";

/// Status of what a stream computed when somebody waited for it, once; a stream can't return it then.
pub(crate) type LateStatus = unsafe extern "C" fn(sys::ggml_backend_t) -> sys::ggml_status;

unsafe extern "C" fn late_status(stream: sys::ggml_backend_t) -> sys::ggml_status {
    // SAFETY: a stream of this device, which one thread uses at a time.
    let stream = unsafe { &mut *(*stream).context.cast::<Stream>() };
    std::mem::replace(&mut stream.status, sys::GGML_STATUS_SUCCESS)
}

/// What a stream's context points to.
struct Stream {
    cpu: sys::ggml_backend_t,
    /// Whoever gives a graph to a stream keeps it until it has waited for it.
    pending: Vec<*mut sys::ggml_cgraph>,
    /// Of what was computed since it was last asked for.
    status: sys::ggml_status,
}

/// The devices of one registry entry.
struct Registry {
    raw: sys::ggml_backend_reg,
    devices: Vec<*mut sys::ggml_backend_device>,
}

/// Makes devices of these names and sizes that compute on `cpu`, and enters them with ggml. The caller keeps others
/// away from ggml's registry meanwhile.
pub(super) fn register(devices: impl Iterator<Item = (String, usize)>, cpu: Device) -> Vec<Device> {
    let iface = sys::ggml_backend_reg_i {
        get_name: Some(registry_name),
        get_device_count: Some(registry_count),
        get_device: Some(registry_device),
        get_proc_address: Some(registry_function),
    };
    let raw = sys::ggml_backend_reg {
        api_version: sys::GGML_BACKEND_API_VERSION as i32,
        iface,
        context: null_mut(),
    };
    let registry = Box::into_raw(Box::new(Registry { raw, devices: Vec::new() }));
    // SAFETY: the box was just leaked and nobody else knows it yet, so that it may be written until it is registered;
    // `place` makes devices that live for ever.
    unsafe {
        let entry = &raw mut (*registry).raw;
        (*entry).context = registry.cast();
        let placed: Vec<_> = devices.map(|(name, size)| place(name, size, cpu, entry)).collect();
        (*registry).devices.clone_from(&placed);
        sys::ggml_backend_register(entry);
        placed.into_iter().filter_map(NonNull::new).map(Device).collect()
    }
}

/// # Safety
/// `registry` lives for ever.
unsafe fn place(
    name: String,
    size: usize,
    cpu: Device,
    registry: sys::ggml_backend_reg_t,
) -> *mut sys::ggml_backend_device {
    let iface = sys::ggml_backend_device_i {
        get_name: Some(device_name),
        get_description: Some(device_description),
        get_memory: Some(device_memory),
        get_type: Some(device_type),
        get_props: Some(device_properties),
        init_backend: Some(start_stream),
        get_buffer_type: Some(device_buffer_type),
        get_host_buffer_type: None,
        buffer_from_host_ptr: None,
        supports_op: Some(supports_op),
        supports_buft: Some(supports_buffer_type),
        offload_op: Some(offload_op),
        event_new: None,
        event_free: None,
        event_synchronize: None,
    };
    let place = Box::into_raw(Box::new(StandIn {
        name: CString::new(name).unwrap_or_default(),
        budget: Budget::new(size),
        n_pending: AtomicUsize::new(0),
        n_reads_beside_work: AtomicUsize::new(0),
        cpu,
        buffer_type: memory::buffer_type(null_mut(), null()),
        raw: sys::ggml_backend_device { iface, reg: registry, context: null_mut() },
    }));
    // SAFETY: just leaked and known to nobody else.
    unsafe {
        let raw = &raw mut (*place).raw;
        (*raw).context = place.cast();
        (*place).buffer_type = memory::buffer_type(raw, place);
        raw
    }
}

unsafe extern "C" fn registry_name(_: sys::ggml_backend_reg_t) -> *const c_char {
    c"STANDIN".as_ptr()
}

unsafe extern "C" fn registry_count(registry: sys::ggml_backend_reg_t) -> usize {
    // SAFETY: the context of an entry that `register` made.
    unsafe { &*(*registry).context.cast::<Registry>() }.devices.len()
}

unsafe extern "C" fn registry_device(
    registry: sys::ggml_backend_reg_t,
    index: usize,
) -> sys::ggml_backend_dev_t {
    // SAFETY: as above.
    unsafe { &*(*registry).context.cast::<Registry>() }.devices.get(index).copied().unwrap_or(null_mut())
}

/// The CPU's settings that make sense for a stream of this device.
unsafe extern "C" fn registry_function(_: sys::ggml_backend_reg_t, name: *const c_char) -> *mut c_void {
    // SAFETY: ggml passes a NUL-terminated name.
    match unsafe { CStr::from_ptr(name) }.to_bytes() {
        b"ggml_backend_set_n_threads" => set_threads as SetThreads as *mut c_void,
        b"ggml_backend_cpu_set_threadpool" => set_thread_pool as SetThreadPool as *mut c_void,
        b"ggml_backend_set_abort_callback" => set_abort as SetAbort as *mut c_void,
        name if name == LATE_STATUS.to_bytes() => late_status as LateStatus as *mut c_void,
        _ => null_mut(),
    }
}

unsafe extern "C" fn set_threads(stream: sys::ggml_backend_t, n_threads: i32) {
    // SAFETY: a stream of this device; the type is what ggml documents for the name.
    unsafe {
        if let Some(set) =
            StandIn::of((*stream).device).cpu.function::<SetThreads>(c"ggml_backend_set_n_threads")
        {
            set(inner(stream), n_threads);
        }
    }
}

unsafe extern "C" fn set_thread_pool(stream: sys::ggml_backend_t, pool: sys::ggml_threadpool_t) {
    // SAFETY: as above; the caller keeps the pool alive.
    unsafe {
        let cpu = StandIn::of((*stream).device).cpu;
        if let Some(set) = cpu.function::<SetThreadPool>(c"ggml_backend_cpu_set_threadpool") {
            set(inner(stream), pool);
        }
    }
}

unsafe extern "C" fn set_abort(
    stream: sys::ggml_backend_t,
    callback: Option<crate::backend::AbortCallback>,
    data: *mut c_void,
) {
    // SAFETY: as above; the caller keeps `data` alive.
    unsafe {
        let cpu = StandIn::of((*stream).device).cpu;
        if let Some(set) = cpu.function::<SetAbort>(c"ggml_backend_set_abort_callback") {
            set(inner(stream), callback, data);
        }
    }
}

unsafe extern "C" fn device_name(device: sys::ggml_backend_dev_t) -> *const c_char {
    // SAFETY: ggml passes a device of this kind; so below.
    unsafe { StandIn::of(device) }.name()
}

unsafe extern "C" fn device_description(_: sys::ggml_backend_dev_t) -> *const c_char {
    c"stand-in for a GPU, computed by the CPU".as_ptr()
}

unsafe extern "C" fn device_memory(device: sys::ggml_backend_dev_t, free: *mut usize, total: *mut usize) {
    // SAFETY: a device of this kind and two places to write to.
    unsafe {
        let budget = StandIn::of(device).budget();
        *free = budget.free();
        *total = budget.total();
    }
}

unsafe extern "C" fn device_type(_: sys::ggml_backend_dev_t) -> sys::ggml_backend_dev_type {
    sys::GGML_BACKEND_DEVICE_TYPE_GPU
}

unsafe extern "C" fn device_properties(
    device: sys::ggml_backend_dev_t,
    properties: *mut sys::ggml_backend_dev_props,
) {
    // SAFETY: a device of this kind and a place to write to.
    unsafe {
        let this = StandIn::of(device);
        properties.write(sys::ggml_backend_dev_props {
            name: this.name(),
            description: device_description(device),
            memory_free: this.budget.free(),
            memory_total: this.budget.total(),
            type_: sys::GGML_BACKEND_DEVICE_TYPE_GPU,
            device_id: null(),
            caps: sys::ggml_backend_dev_caps {
                async_: true,
                host_buffer: false,
                buffer_from_host_ptr: false,
                events: false,
                mmap_support: false,
            },
        });
    }
}

unsafe extern "C" fn device_buffer_type(device: sys::ggml_backend_dev_t) -> sys::ggml_backend_buffer_type_t {
    // SAFETY: a device of this kind.
    (&raw const unsafe { StandIn::of(device) }.buffer_type).cast_mut()
}

unsafe extern "C" fn supports_buffer_type(
    device: sys::ggml_backend_dev_t,
    buffer_type: sys::ggml_backend_buffer_type_t,
) -> bool {
    // SAFETY: a device of this kind.
    buffer_type == unsafe { device_buffer_type(device) }
}

unsafe extern "C" fn supports_op(device: sys::ggml_backend_dev_t, op: *const sys::ggml_tensor) -> bool {
    // SAFETY: a device of this kind and a valid node.
    unsafe {
        match (*op).op {
            // Host functions.
            sys::GGML_OP_CUSTOM
            | sys::GGML_OP_MAP_CUSTOM1
            | sys::GGML_OP_MAP_CUSTOM2
            | sys::GGML_OP_MAP_CUSTOM3 => false,
            _ => sys::ggml_backend_dev_supports_op(StandIn::of(device).cpu.0.as_ptr(), op),
        }
    }
}

unsafe extern "C" fn offload_op(_: sys::ggml_backend_dev_t, op: *const sys::ggml_tensor) -> bool {
    // SAFETY: ggml passes a valid node.
    let (op, ne) = unsafe { ((*op).op, (*op).ne) };
    match op {
        sys::GGML_OP_MUL_MAT => ne[1] >= MIN_OFFLOAD_BATCH,
        sys::GGML_OP_MUL_MAT_ID => ne[2] >= MIN_OFFLOAD_BATCH,
        _ => false,
    }
}

/// The stream's CPU backend.
///
/// # Safety
/// `stream` was made by `start_stream`.
unsafe fn inner(stream: sys::ggml_backend_t) -> sys::ggml_backend_t {
    // SAFETY: as the caller promises.
    unsafe { (*(*stream).context.cast::<Stream>()).cpu }
}

unsafe extern "C" fn start_stream(device: sys::ggml_backend_dev_t, _: *const c_char) -> sys::ggml_backend_t {
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
        set_tensor_async: None,
        get_tensor_async: None,
        set_tensor_2d_async: None,
        get_tensor_2d_async: None,
        cpy_tensor_async: None,
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
    let stream = Stream { cpu, pending: Vec::new(), status: sys::GGML_STATUS_SUCCESS };
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
        StandIn::of((*stream).device).n_pending.fetch_sub(context.pending.len(), Ordering::Relaxed);
        sys::ggml_backend_free(context.cpu);
        drop(Box::from_raw(stream));
    }
}

/// The buffer that holds a tensor's bytes, or null.
///
/// # Safety
/// `tensor` is valid.
pub(super) unsafe fn buffer_of(tensor: *const sys::ggml_tensor) -> sys::ggml_backend_buffer_t {
    // SAFETY: as the caller promises; a view's origin is valid as long as the view.
    unsafe {
        let origin = if (*tensor).view_src.is_null() { tensor } else { (*tensor).view_src };
        (*origin).buffer
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
        StandIn::of((*stream).device).n_pending.fetch_add(1, Ordering::Relaxed);
        (*(*stream).context.cast::<Stream>()).pending.push(graph);
    }
    sys::GGML_STATUS_SUCCESS
}

/// Computes what was given, in its order.
unsafe extern "C" fn wait(stream: sys::ggml_backend_t) {
    // SAFETY: a stream of this device, which one thread uses at a time; its graphs are kept until this returns.
    unsafe {
        let context = &mut *(*stream).context.cast::<Stream>();
        for graph in context.pending.drain(..) {
            let status = sys::ggml_backend_graph_compute(context.cpu, graph);
            StandIn::of((*stream).device).n_pending.fetch_sub(1, Ordering::Relaxed);
            if context.status == sys::GGML_STATUS_SUCCESS {
                context.status = status;
            }
        }
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
