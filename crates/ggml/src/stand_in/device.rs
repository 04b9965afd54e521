//! The stand-in as ggml sees it: registry entry and device, whose [streams](super::stream) hand the work to a CPU backend
//! inside.

use super::memory::{self, Budget};
use super::stream::{LATE_STATUS, LateStatus, late_status, set_thread_pool, set_threads, start_stream};
use crate::backend::{Device, SetThreadPool, SetThreads};
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
    /// Graphs and copies that streams were given and have not done.
    pub(super) n_pending: AtomicUsize,
    /// Reads of its memory by the host while there were some.
    n_reads_beside_work: AtomicUsize,
    pub(super) cpu: Device,
    /// These refer to this very struct, so they are filled in once it has its place.
    buffer_type: sys::ggml_backend_buffer_type,
    host_buffer_type: sys::ggml_backend_buffer_type,
    raw: sys::ggml_backend_device,
}

impl StandIn {
    /// # Safety
    /// `device` is one that `register` made.
    pub(super) unsafe fn of(device: sys::ggml_backend_dev_t) -> &'static StandIn {
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
        get_host_buffer_type: Some(device_host_buffer_type),
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
        host_buffer_type: memory::host_buffer_type(null_mut(), null()),
        raw: sys::ggml_backend_device { iface, reg: registry, context: null_mut() },
    }));
    // SAFETY: just leaked and known to nobody else.
    unsafe {
        let raw = &raw mut (*place).raw;
        (*raw).context = place.cast();
        (*place).buffer_type = memory::buffer_type(raw, place);
        (*place).host_buffer_type = memory::host_buffer_type(raw, place);
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

/// The CPU's settings that make sense for a stream of this device. No callback to stop it: GPUs compute what they were
/// given to its end.
unsafe extern "C" fn registry_function(_: sys::ggml_backend_reg_t, name: *const c_char) -> *mut c_void {
    // SAFETY: ggml passes a NUL-terminated name.
    match unsafe { CStr::from_ptr(name) }.to_bytes() {
        b"ggml_backend_set_n_threads" => set_threads as SetThreads as *mut c_void,
        b"ggml_backend_cpu_set_threadpool" => set_thread_pool as SetThreadPool as *mut c_void,
        name if name == LATE_STATUS.to_bytes() => late_status as LateStatus as *mut c_void,
        _ => null_mut(),
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
                host_buffer: true,
                buffer_from_host_ptr: false,
                events: false,
                mmap_support: false,
            },
        });
    }
}

pub(super) unsafe extern "C" fn device_buffer_type(
    device: sys::ggml_backend_dev_t,
) -> sys::ggml_backend_buffer_type_t {
    // SAFETY: a device of this kind.
    (&raw const unsafe { StandIn::of(device) }.buffer_type).cast_mut()
}

pub(super) unsafe extern "C" fn device_host_buffer_type(
    device: sys::ggml_backend_dev_t,
) -> sys::ggml_backend_buffer_type_t {
    // SAFETY: a device of this kind.
    (&raw const unsafe { StandIn::of(device) }.host_buffer_type).cast_mut()
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
            // No kernel, as on CUDA.
            sys::GGML_OP_FLASH_ATTN_EXT
                if [(*op).src[1], (*op).src[2]].iter().any(|kv| (**kv).type_ == sys::GGML_TYPE_IQ4_NL) =>
            {
                false
            }
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
