//! Buffers: where the bytes of tensors lie.

use crate::Error;
use crate::tensor::Tensor;
use ggml_sys as sys;
use std::ffi::CStr;
use std::ptr::NonNull;
use std::sync::Arc;

/// A kind of memory tensors can lie in: the host's, or a device's. Lives for the whole program.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BufferType(pub(crate) NonNull<sys::ggml_backend_buffer_type>);

// SAFETY: buffer types are static descriptions that ggml never frees or changes.
unsafe impl Send for BufferType {}
// SAFETY: as above.
unsafe impl Sync for BufferType {}

impl std::fmt::Debug for BufferType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

impl BufferType {
    /// Plain host memory.
    pub fn cpu() -> BufferType {
        // SAFETY: returns a static description.
        BufferType(NonNull::new(unsafe { sys::ggml_backend_cpu_buffer_type() }).expect("always there"))
    }

    /// Its name, as `-ot` writes it: `CPU`, `CUDA0`, ...
    pub fn name(self) -> String {
        // SAFETY: the name is a static string.
        unsafe { CStr::from_ptr(sys::ggml_backend_buft_name(self.0.as_ptr())) }.to_string_lossy().into_owned()
    }

    /// Whether the CPU can read it directly.
    pub fn is_host(self) -> bool {
        // SAFETY: a static description.
        unsafe { sys::ggml_backend_buft_is_host(self.0.as_ptr()) }
    }

    /// Bytes that addresses of tensors are multiples of.
    pub fn alignment(self) -> usize {
        // SAFETY: a static description.
        unsafe { sys::ggml_backend_buft_get_alignment(self.0.as_ptr()) }.max(1)
    }

    /// Bytes that a tensor takes there, padding included.
    pub fn alloc_size(self, tensor: &Tensor) -> usize {
        // SAFETY: both are valid.
        unsafe { sys::ggml_backend_buft_get_alloc_size(self.0.as_ptr(), tensor.raw()) }
    }
}

/// Asks the system to back fresh memory with large pages: weights are read faster when processors walk through fewer page
/// tables (a quarter more tokens in decoding, BENCHMARKS.md). Advice only.
fn advise_large_pages(base: *mut u8, size: usize) {
    #[cfg(target_os = "linux")]
    {
        const LARGE_PAGE: usize = 2 << 20;
        let skip = base.align_offset(LARGE_PAGE);
        let whole = size.saturating_sub(skip) / LARGE_PAGE * LARGE_PAGE;
        if whole > 0 {
            // SAFETY: whole pages inside memory that is the buffer's own; the advice changes no byte of it.
            unsafe { libc::madvise(base.wrapping_add(skip).cast(), whole, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (base, size);
}

/// The buffer itself, and what the memory beneath it belongs to.
pub(crate) struct BufferInner {
    raw: NonNull<sys::ggml_backend_buffer>,
    /// Dropped after the buffer: the mapping that a wrapped buffer points into.
    _owner: Option<Arc<memmap2::Mmap>>,
}

// SAFETY: freed once, by the last owner; everything else only reads the handle.
unsafe impl Send for BufferInner {}
// SAFETY: as above.
unsafe impl Sync for BufferInner {}

impl Drop for BufferInner {
    fn drop(&mut self) {
        // SAFETY: the last owner; contexts whose tensors lie here hold an owner each.
        unsafe { sys::ggml_backend_buffer_free(self.raw.as_ptr()) };
    }
}

/// Memory with tensors in it.
#[derive(Clone)]
pub struct Buffer {
    inner: Arc<BufferInner>,
}

impl Buffer {
    /// Allocates memory of the given type and lays `tensors` out in it; `what` names the purpose in errors.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn allocate(buffer_type: BufferType, tensors: &[Tensor], what: &str) -> Result<Buffer, Error> {
        let alignment = buffer_type.alignment();
        let mut offsets = Vec::with_capacity(tensors.len());
        let mut size = 0usize;
        for tensor in tensors {
            size = size.next_multiple_of(alignment);
            offsets.push(size);
            size += buffer_type.alloc_size(tensor);
        }
        // SAFETY: the type is valid; ggml returns null when the memory is not to be had.
        let raw = unsafe { sys::ggml_backend_buft_alloc_buffer(buffer_type.0.as_ptr(), size.max(1)) };
        let out_of_memory = || Error::OutOfMemory {
            buffer_type: buffer_type.name(),
            size_bytes: size,
            what: what.to_owned(),
        };
        let raw = NonNull::new(raw).ok_or_else(out_of_memory)?;
        let inner = Arc::new(BufferInner { raw, _owner: None });
        // SAFETY: a valid buffer.
        let base = unsafe { sys::ggml_backend_buffer_get_base(raw.as_ptr()) };
        if buffer_type.is_host() {
            advise_large_pages(base.cast(), size);
        }
        for (tensor, offset) in tensors.iter().zip(offsets) {
            // SAFETY: every offset was laid out inside the buffer above.
            unsafe { place(&inner, tensor, base.cast::<u8>().wrapping_add(offset)) };
        }
        Ok(Buffer { inner })
    }

    /// Lends a mapped file as a buffer, from its first byte on; the CPU reads it in place, and nothing may be written.
    /// The mapping is kept until the buffer is gone.
    ///
    /// # Panics
    /// When the mapping is empty.
    pub fn from_mapping(map: Arc<memmap2::Mmap>) -> Buffer {
        assert!(!map.is_empty(), "an empty file can't be a buffer");
        // SAFETY: a mapping starts at a page, so it is aligned, and it is kept valid by the owner stored below; ggml
        // neither frees it nor writes to tensors whose buffer holds weights.
        let raw = unsafe { sys::ggml_backend_cpu_buffer_from_ptr(map.as_ptr().cast_mut().cast(), map.len()) };
        let raw = NonNull::new(raw).expect("a small allocation");
        Buffer { inner: Arc::new(BufferInner { raw, _owner: Some(map) }) }
    }

    /// Gives `tensor` its place at `offset` bytes into the buffer.
    ///
    /// # Panics
    /// When it would leave the buffer (devices may pad tensors) or has a place already.
    pub fn place(&self, tensor: &Tensor, offset: usize) {
        assert!(!tensor.is_allocated(), "{tensor:?} has a place already");
        // SAFETY: a valid buffer and a valid tensor.
        let size = unsafe { sys::ggml_backend_buffer_get_alloc_size(self.inner.raw.as_ptr(), tensor.raw()) };
        let end = offset.checked_add(size).expect("a range in memory");
        assert!(end <= self.size(), "{tensor:?} at {offset} leaves a buffer of {} bytes", self.size());
        // SAFETY: a valid buffer, and the range was checked.
        unsafe {
            let base = sys::ggml_backend_buffer_get_base(self.inner.raw.as_ptr()).cast::<u8>();
            place(&self.inner, tensor, base.wrapping_add(offset));
        }
    }

    /// Says that the buffer holds weights, so that the scheduler runs operations where they lie.
    pub fn set_weights(&self) {
        // SAFETY: a valid buffer.
        unsafe {
            sys::ggml_backend_buffer_set_usage(
                self.inner.raw.as_ptr(),
                sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS,
            )
        };
    }

    /// Fills the whole buffer with a byte.
    pub fn clear(&self, value: u8) {
        // SAFETY: a valid buffer.
        unsafe { sys::ggml_backend_buffer_clear(self.inner.raw.as_ptr(), value) };
    }

    /// Size in bytes.
    pub fn size(&self) -> usize {
        // SAFETY: a valid buffer.
        unsafe { sys::ggml_backend_buffer_get_size(self.inner.raw.as_ptr()) }
    }
}

/// # Safety
/// `address` and the tensor's bytes after it lie inside `buffer`.
unsafe fn place(buffer: &Arc<BufferInner>, tensor: &Tensor, address: *mut u8) {
    // SAFETY: as the caller promises; ggml records buffer and address in the tensor.
    let status = unsafe { sys::ggml_backend_tensor_alloc(buffer.raw.as_ptr(), tensor.raw(), address.cast()) };
    assert_eq!(status, sys::GGML_STATUS_SUCCESS, "{tensor:?} could not be placed");
    tensor.context().keep(Arc::clone(buffer));
}
