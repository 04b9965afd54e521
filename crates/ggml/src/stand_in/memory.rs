//! The stand-in's memory: plain host memory that ggml is told nothing about, counted against a budget. And memory of the
//! host that it is said to fetch from by itself, as GPUs do from pinned pages.

use super::device::StandIn;
use ggml_sys as sys;
use std::alloc::Layout;
use std::ffi::{c_char, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Wider than the CPU's, so that code which assumes the CPU's alignment is noticed.
const ALIGNMENT: usize = 256;

/// CUDA pads the rows of quantized tensors to this many elements; so does this, because code that takes a tensor's
/// size for what it occupies works on the CPU only.
const ROW_PADDING: i64 = 512;

/// A device's memory: how much there is and how much of it is taken.
pub(super) struct Budget {
    total: usize,
    used: AtomicUsize,
}

impl Budget {
    pub(super) fn new(total: usize) -> Budget {
        Budget { total, used: AtomicUsize::new(0) }
    }

    pub(super) fn total(&self) -> usize {
        self.total
    }

    pub(super) fn free(&self) -> usize {
        self.total - self.used.load(Ordering::Relaxed)
    }

    /// Takes `size` bytes where they are left.
    fn take(&self, size: usize) -> bool {
        let more = |used: usize| used.checked_add(size).filter(|sum| *sum <= self.total);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn give_back(&self, size: usize) {
        self.used.fetch_sub(size, Ordering::Relaxed);
    }
}

/// What a buffer's context points to.
struct Allocation {
    base: *mut u8,
    layout: Layout,
    budget: &'static Budget,
}

/// The description of this memory that ggml works with; the context and the device are filled in by the device.
pub(super) fn buffer_type(
    device: sys::ggml_backend_dev_t,
    context: *const StandIn,
) -> sys::ggml_backend_buffer_type {
    let iface = sys::ggml_backend_buffer_type_i {
        get_name: Some(type_name),
        alloc_buffer: Some(allocate),
        alloc_buffer_n: None,
        get_alignment: Some(alignment),
        get_max_size: None,
        get_alloc_size: Some(alloc_size),
        get_alloc_size_n: None,
        is_host: None, // none means no
    };
    sys::ggml_backend_buffer_type { iface, device, context: context.cast_mut().cast() }
}

/// The description of host memory that the device copies from later than it is told to.
pub(super) fn host_buffer_type(
    device: sys::ggml_backend_dev_t,
    context: *const StandIn,
) -> sys::ggml_backend_buffer_type {
    let iface = sys::ggml_backend_buffer_type_i {
        get_name: Some(host_type_name),
        alloc_buffer: Some(allocate_on_host),
        alloc_buffer_n: None,
        get_alignment: Some(alignment),
        get_max_size: None,
        get_alloc_size: None,
        get_alloc_size_n: None,
        is_host: Some(yes),
    };
    sys::ggml_backend_buffer_type { iface, device, context: context.cast_mut().cast() }
}

unsafe extern "C" fn host_type_name(_: sys::ggml_backend_buffer_type_t) -> *const c_char {
    c"STANDIN_HOST".as_ptr()
}

unsafe extern "C" fn yes(_: sys::ggml_backend_buffer_type_t) -> bool {
    true
}

/// A buffer of the CPU's under this type's name.
unsafe extern "C" fn allocate_on_host(
    buffer_type: sys::ggml_backend_buffer_type_t,
    size: usize,
) -> sys::ggml_backend_buffer_t {
    // SAFETY: the CPU's type is always there; a buffer frees itself by its own functions, whatever its type is.
    unsafe {
        let buffer = sys::ggml_backend_buft_alloc_buffer(sys::ggml_backend_cpu_buffer_type(), size);
        if !buffer.is_null() {
            (*buffer).buft = buffer_type;
        }
        buffer
    }
}

const BUFFER: sys::ggml_backend_buffer_i = sys::ggml_backend_buffer_i {
    free_buffer: Some(free),
    get_base: Some(base),
    init_tensor: None,
    memset_tensor: Some(fill_tensor),
    set_tensor: Some(set_tensor),
    get_tensor: Some(get_tensor),
    set_tensor_2d: None,
    get_tensor_2d: None,
    cpy_tensor: Some(copy_tensor),
    clear: Some(clear),
    reset: None,
};

unsafe extern "C" fn type_name(buffer_type: sys::ggml_backend_buffer_type_t) -> *const c_char {
    // SAFETY: ggml passes a type that `buffer_type` made; its context is the device, which is never freed.
    unsafe { StandIn::of_type(buffer_type) }.name()
}

unsafe extern "C" fn alignment(_: sys::ggml_backend_buffer_type_t) -> usize {
    ALIGNMENT
}

unsafe extern "C" fn alloc_size(
    _: sys::ggml_backend_buffer_type_t,
    tensor: *const sys::ggml_tensor,
) -> usize {
    // SAFETY: ggml passes a valid tensor of an existing type.
    unsafe {
        let (ty, columns) = ((*tensor).type_, (*tensor).ne[0]);
        let over = columns % ROW_PADDING;
        let padding = if sys::ggml_blck_size(ty) > 1 && over != 0 {
            sys::ggml_row_size(ty, ROW_PADDING - over)
        } else {
            0
        };
        sys::ggml_nbytes(tensor) + padding
    }
}

unsafe extern "C" fn allocate(
    buffer_type: sys::ggml_backend_buffer_type_t,
    size: usize,
) -> sys::ggml_backend_buffer_t {
    // SAFETY: as in `type_name`.
    let budget = unsafe { StandIn::of_type(buffer_type) }.budget();
    let Ok(layout) = Layout::from_size_align(size.max(1), ALIGNMENT) else { return std::ptr::null_mut() };
    if !budget.take(layout.size()) {
        return std::ptr::null_mut();
    }
    // SAFETY: the layout is not empty.
    let base = unsafe { std::alloc::alloc_zeroed(layout) };
    if base.is_null() {
        budget.give_back(layout.size());
        return std::ptr::null_mut();
    }
    let context = Box::into_raw(Box::new(Allocation { base, layout, budget }));
    // SAFETY: the type lives for ever, and the context is freed by `free`.
    unsafe { sys::ggml_backend_buffer_init(buffer_type, BUFFER, context.cast(), size) }
}

/// # Safety
/// `buffer` was made by `allocate` and is not freed yet.
unsafe fn allocation<'a>(buffer: sys::ggml_backend_buffer_t) -> &'a Allocation {
    // SAFETY: as the caller promises.
    unsafe { &*(*buffer).context.cast::<Allocation>() }
}

unsafe extern "C" fn free(buffer: sys::ggml_backend_buffer_t) {
    // SAFETY: ggml frees a buffer once; `allocate` made context and memory, and neither is used again.
    unsafe {
        let allocation = Box::from_raw((*buffer).context.cast::<Allocation>());
        std::alloc::dealloc(allocation.base, allocation.layout);
        allocation.budget.give_back(allocation.layout.size());
    }
}

unsafe extern "C" fn base(buffer: sys::ggml_backend_buffer_t) -> *mut c_void {
    // SAFETY: ggml passes a buffer of this kind.
    unsafe { allocation(buffer) }.base.cast()
}

unsafe extern "C" fn clear(buffer: sys::ggml_backend_buffer_t, value: u8) {
    // SAFETY: as above; the memory has the layout's size.
    unsafe {
        let allocation = allocation(buffer);
        allocation.base.write_bytes(value, allocation.layout.size());
    }
}

unsafe extern "C" fn fill_tensor(
    _: sys::ggml_backend_buffer_t,
    tensor: *mut sys::ggml_tensor,
    value: u8,
    offset: usize,
    size: usize,
) {
    // SAFETY: ggml has checked that the range lies inside the tensor.
    unsafe { (*tensor).data.cast::<u8>().add(offset).write_bytes(value, size) };
}

unsafe extern "C" fn set_tensor(
    _: sys::ggml_backend_buffer_t,
    tensor: *mut sys::ggml_tensor,
    data: *const c_void,
    offset: usize,
    size: usize,
) {
    // SAFETY: ggml has checked the range, and host data does not overlap this memory.
    unsafe { (*tensor).data.cast::<u8>().add(offset).copy_from_nonoverlapping(data.cast(), size) };
}

unsafe extern "C" fn get_tensor(
    buffer: sys::ggml_backend_buffer_t,
    tensor: *const sys::ggml_tensor,
    data: *mut c_void,
    offset: usize,
    size: usize,
) {
    // SAFETY: as in `set_tensor`, and as in `type_name`.
    unsafe {
        StandIn::of_type((*buffer).buft).note_read();
        data.cast::<u8>().copy_from_nonoverlapping((*tensor).data.cast::<u8>().add(offset), size);
    }
}

/// Copies within one device; between devices ggml goes through the host.
unsafe extern "C" fn copy_tensor(
    buffer: sys::ggml_backend_buffer_t,
    source: *const sys::ggml_tensor,
    target: *mut sys::ggml_tensor,
) -> bool {
    // SAFETY: ggml passes two valid tensors of one layout, the target in `buffer`, and buffers that are not host memory.
    unsafe {
        let origin = super::device::buffer_of(source);
        if origin.is_null() || (*origin).buft != (*buffer).buft {
            return false;
        }
        let size = sys::ggml_nbytes(source);
        (*target).data.cast::<u8>().copy_from((*source).data.cast::<u8>(), size);
    }
    true
}
