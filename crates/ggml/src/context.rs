//! Contexts: arenas that hold tensor metadata, and keep alive the buffers the data lies in.

use crate::buffer::BufferInner;
use crate::tensor::{Tensor, Type};
use ggml_sys as sys;
use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

/// The arena itself, shared by the handle and all of its tensors.
pub(crate) struct ContextInner {
    raw: NonNull<sys::ggml_context>,
    /// Creating tensors moves a pointer inside the arena, so one at a time.
    creating: Mutex<()>,
    /// Where tensors of this context have their data.
    buffers: Mutex<Vec<Arc<BufferInner>>>,
}

// SAFETY: the arena is written only under `creating`; freed once, by the last owner.
unsafe impl Send for ContextInner {}
// SAFETY: as above.
unsafe impl Sync for ContextInner {}

impl Drop for ContextInner {
    fn drop(&mut self) {
        // SAFETY: the last owner is gone, and tensors hold an owner each.
        unsafe { sys::ggml_free(self.raw.as_ptr()) };
    }
}

impl ContextInner {
    pub(crate) fn with_bytes(size: usize) -> Arc<ContextInner> {
        let params =
            sys::ggml_init_params { mem_size: size, mem_buffer: std::ptr::null_mut(), no_alloc: true };
        // SAFETY: plain parameters; ggml owns the memory it allocates.
        let raw = NonNull::new(unsafe { sys::ggml_init(params) }).expect("memory for tensor metadata");
        Arc::new(ContextInner { raw, creating: Mutex::new(()), buffers: Mutex::new(Vec::new()) })
    }

    pub(crate) fn raw(&self) -> *mut sys::ggml_context {
        self.raw.as_ptr()
    }

    /// Keeps `buffer` alive as long as any tensor of this context.
    pub(crate) fn keep(&self, buffer: Arc<BufferInner>) {
        self.buffers.lock().unwrap_or_else(|p| p.into_inner()).push(buffer);
    }
}

/// An arena for a known number of tensors without data; places for their data come from a
/// [`Buffer`](crate::Buffer).
pub struct Context {
    inner: Arc<ContextInner>,
}

impl Context {
    /// Room for `n_tensors` tensors and views.
    pub fn new(n_tensors: usize) -> Context {
        // SAFETY: a constant of the library.
        let overhead = unsafe { sys::ggml_tensor_overhead() };
        Context { inner: ContextInner::with_bytes(overhead * (n_tensors + 1)) }
    }

    /// A tensor of the given shape (1 to 4 axes, `ne[0]` contiguous), with no data yet. A name longer than ggml keeps
    /// (63 bytes) is cut.
    ///
    /// # Panics
    /// When the shape is empty, has an extent 0 or too many axes, its size overflows, or its rows are not whole blocks.
    pub fn tensor(&self, name: &str, ty: Type, ne: &[usize]) -> Tensor {
        assert!(matches!(ne.len(), 1..=4), "{name}: {} axes", ne.len());
        assert!(ne.iter().all(|n| *n > 0), "{name}: an axis of {ne:?} is empty");
        let rows = ne[1..].iter().try_fold(1usize, |product, n| product.checked_mul(*n));
        let bytes = rows.and_then(|rows| rows.checked_mul(ty.row_bytes(ne[0])));
        assert!(bytes.is_some_and(|b| b <= isize::MAX as usize), "{name}: the size of {ne:?} overflows");
        let extents: Vec<i64> = ne.iter().map(|n| *n as i64).collect();
        let guard = self.inner.creating.lock().unwrap_or_else(|p| p.into_inner());
        // SAFETY: the type exists, extents are positive and their product fits; the arena is locked.
        let raw =
            unsafe { sys::ggml_new_tensor(self.inner.raw(), ty.id(), ne.len() as i32, extents.as_ptr()) };
        drop(guard);
        // SAFETY: just created in this context.
        let tensor = unsafe { Tensor::new(raw, &self.inner) };
        let name = CString::new(name.replace('\0', "")).expect("NULs are gone");
        // SAFETY: the tensor is valid and ggml copies the name.
        unsafe { sys::ggml_set_name(tensor.raw(), name.as_ptr()) };
        tensor
    }

    /// A tensor whose owner changes its values between computations, with a place of its own beside the graphs that read
    /// it. The scheduler copies it to another device at once, without waiting for what its own device is computing,
    /// as it does with a graph's inputs.
    ///
    /// # Panics
    /// As [`tensor`](Self::tensor).
    pub fn table(&self, name: &str, ty: Type, ne: &[usize]) -> Tensor {
        let tensor = self.tensor(name, ty, ne);
        // SAFETY: a valid tensor that was just created and that nothing else refers to.
        unsafe { sys::ggml_set_input(tensor.raw()) };
        tensor
    }

    /// A tensor of `ne[2]` matrices that lie `stride` bytes apart, as a file may hold them; it can only be placed
    /// where that layout already is, not allocated.
    ///
    /// # Panics
    /// As [`tensor`](Self::tensor), and when the matrices would overlap.
    pub fn strided_tensor(&self, name: &str, ty: Type, ne: [usize; 3], stride: usize) -> Tensor {
        let tensor = self.tensor(name, ty, &ne);
        let matrix = ty.row_bytes(ne[0]) * ne[1];
        assert!(stride >= matrix, "{name}: matrices of {matrix} bytes overlap at a distance of {stride}");
        // SAFETY: the tensor was just created and nothing else refers to it; ggml computes sizes and addresses from
        // these strides.
        unsafe {
            (*tensor.raw()).nb[2] = stride;
            (*tensor.raw()).nb[3] = stride * ne[2];
        }
        tensor
    }
}
