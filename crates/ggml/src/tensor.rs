//! Tensors: named shapes with a type, whose bytes lie in a buffer.

use crate::Error;
use crate::buffer::BufferType;
use crate::context::ContextInner;
use ggml_sys as sys;
use std::ffi::CStr;
use std::ptr::NonNull;
use std::sync::Arc;

/// A tensor type of the linked ggml, known to exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Type(sys::ggml_type);

impl Type {
    /// 32-bit floats.
    pub const F32: Type = Type(sys::GGML_TYPE_F32);
    /// 16-bit IEEE floats.
    pub const F16: Type = Type(sys::GGML_TYPE_F16);
    /// Bytes.
    pub const I8: Type = Type(sys::GGML_TYPE_I8);
    /// 32-bit integers.
    pub const I32: Type = Type(sys::GGML_TYPE_I32);
    /// 64-bit integers.
    pub const I64: Type = Type(sys::GGML_TYPE_I64);

    /// The type with this number.
    ///
    /// # Errors
    /// [`Error::UnknownType`] when the linked ggml has no such type.
    pub fn from_id(id: u32) -> Result<Type, Error> {
        // SAFETY: both functions only index a static table, and the index is checked first.
        let known = id < sys::GGML_TYPE_COUNT && unsafe { sys::ggml_blck_size(id) } > 0;
        if known { Ok(Type(id)) } else { Err(Error::UnknownType { id }) }
    }

    /// ggml's number of the type.
    pub fn id(self) -> u32 {
        self.0
    }

    /// Elements in a block.
    pub fn block_len(self) -> usize {
        // SAFETY: the type exists.
        unsafe { sys::ggml_blck_size(self.0) as usize }
    }

    /// Bytes in a row of `n` elements; `n` must be a whole number of blocks.
    pub fn row_bytes(self, n: usize) -> usize {
        assert!(n.is_multiple_of(self.block_len()), "a row of {n} elements is not a whole number of blocks");
        // SAFETY: the type exists and the row is whole.
        unsafe { sys::ggml_row_size(self.0, n as i64) }
    }

    /// Whether a matrix of this type can be multiplied with activations on the CPU.
    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }
}

/// A tensor; a cheap handle that keeps the context (and so the buffer) it lives in alive.
#[derive(Clone)]
pub struct Tensor {
    raw: NonNull<sys::ggml_tensor>,
    context: Arc<ContextInner>,
}

// SAFETY: a handle gives shared access to plain metadata that is written only while the tensor is created; reading and
// writing the bytes goes through ggml's buffer functions, whose callers take `&mut` (see `Tensor::write`), run while no
// graph computes, or write what no result of a running graph depends on: the runtime's slots for experts.
unsafe impl Send for Tensor {}
// SAFETY: as above.
unsafe impl Sync for Tensor {}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{:?}", self.name(), self.ne())
    }
}

impl Tensor {
    /// # Safety
    /// `raw` was created in `context`.
    pub(crate) unsafe fn new(raw: *mut sys::ggml_tensor, context: &Arc<ContextInner>) -> Tensor {
        let raw = NonNull::new(raw).expect("the context was sized for all its tensors");
        Tensor { raw, context: Arc::clone(context) }
    }

    pub(crate) fn raw(&self) -> *mut sys::ggml_tensor {
        self.raw.as_ptr()
    }

    pub(crate) fn context(&self) -> &Arc<ContextInner> {
        &self.context
    }

    fn get(&self) -> &sys::ggml_tensor {
        // SAFETY: the context that holds the struct is alive as long as `self`.
        unsafe { self.raw.as_ref() }
    }

    /// Extent of each of the four axes; `ne[0]` is the contiguous one.
    pub fn ne(&self) -> [usize; 4] {
        self.get().ne.map(|n| n as usize)
    }

    /// Distance in bytes between neighbours along each axis.
    pub fn nb(&self) -> [usize; 4] {
        self.get().nb
    }

    /// The type of the elements.
    pub fn ty(&self) -> Type {
        Type(self.get().type_)
    }

    /// Size of the data in bytes.
    pub fn n_bytes(&self) -> usize {
        // SAFETY: the tensor is valid.
        unsafe { sys::ggml_nbytes(self.raw()) }
    }

    /// Number of elements.
    pub fn n_elements(&self) -> usize {
        self.ne().iter().product()
    }

    /// The name it was created with.
    pub fn name(&self) -> String {
        // SAFETY: the name is a NUL-terminated array inside the struct.
        unsafe { CStr::from_ptr(self.get().name.as_ptr()) }.to_string_lossy().into_owned()
    }

    /// Whether it has a place in a buffer.
    pub fn is_allocated(&self) -> bool {
        !self.get().buffer.is_null() || (!self.get().view_src.is_null() && !self.get().data.is_null())
    }

    /// Whether it is a weight in host memory, in the layout of files.
    pub fn is_host_weight(&self) -> bool {
        let tensor = self.get();
        if tensor.buffer.is_null() || tensor.data.is_null() {
            return false;
        }
        // SAFETY: a tensor's buffer lives as long as its context.
        unsafe {
            sys::ggml_backend_buffer_is_host(tensor.buffer)
                && sys::ggml_backend_buffer_get_usage(tensor.buffer) == sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS
        }
    }

    /// Whether it lies in host memory, in the layout of files.
    pub fn is_host(&self) -> bool {
        let tensor = self.get();
        // SAFETY: a tensor's buffer lives as long as its context.
        !tensor.buffer.is_null()
            && !tensor.data.is_null()
            && unsafe { sys::ggml_backend_buffer_is_host(tensor.buffer) }
    }

    /// Copies `bytes` into the tensor at `offset`, to whichever device it lies on.
    ///
    /// # Panics
    /// When the tensor has no place yet or the range leaves it.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        self.check_range(offset, bytes.len());
        // SAFETY: the tensor is allocated and the range lies inside it.
        unsafe { sys::ggml_backend_tensor_set(self.raw(), bytes.as_ptr().cast(), offset, bytes.len()) };
    }

    /// Copies from the tensor at `offset` into `bytes`.
    ///
    /// # Panics
    /// As [`write`](Self::write).
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        self.check_range(offset, bytes.len());
        // SAFETY: the tensor is allocated and the range lies inside it.
        unsafe { sys::ggml_backend_tensor_get(self.raw(), bytes.as_mut_ptr().cast(), offset, bytes.len()) };
    }

    /// Writes plain numbers from the first element on.
    ///
    /// # Panics
    /// As [`write`](Self::write).
    pub fn write_values<T: Plain>(&self, values: &[T]) {
        // SAFETY: `Plain` types have no padding and no invalid bit patterns.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
        self.write(0, bytes);
    }

    /// Reads plain numbers, starting at element `first`.
    ///
    /// # Panics
    /// As [`write`](Self::write).
    pub fn read_values<T: Plain>(&self, first: usize, values: &mut [T]) {
        let len = size_of_val(values);
        // SAFETY: `Plain` types have no padding and accept every bit pattern.
        let bytes = unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), len) };
        self.read(first * size_of::<T>(), bytes);
    }

    /// The kind of memory it lies in; `None` without a place.
    pub fn place(&self) -> Option<BufferType> {
        let buffer = NonNull::new(self.buffer())?;
        // SAFETY: a tensor's buffer lives as long as its context.
        NonNull::new(unsafe { sys::ggml_backend_buffer_get_type(buffer.as_ptr()) }).map(BufferType)
    }

    fn buffer(&self) -> sys::ggml_backend_buffer_t {
        let tensor = self.get();
        // SAFETY: the origin of a view lives as long as the view.
        if tensor.view_src.is_null() { tensor.buffer } else { unsafe { (*tensor.view_src).buffer } }
    }

    /// Gives `window`, which has no place yet, the bytes of this tensor from `offset` on. The caller keeps this tensor as
    /// long as the window is used.
    ///
    /// # Panics
    /// As [`write`](Self::write).
    pub(crate) fn lend(&self, offset: usize, window: &Tensor) {
        self.check_range(offset, window.n_bytes());
        assert!(!window.is_allocated(), "{window:?} has a place already");
        // SAFETY: the range lies inside this tensor, and the window is nobody else's.
        unsafe {
            (*window.raw()).buffer = self.buffer();
            (*window.raw()).data = self.get().data.cast::<u8>().add(offset).cast();
        }
    }

    pub(crate) fn check_range(&self, offset: usize, len: usize) {
        assert!(self.is_allocated(), "tensor {self:?} has no place in a buffer yet");
        let end = offset.checked_add(len).expect("a range in memory");
        assert!(
            end <= self.n_bytes(),
            "bytes {offset}..{end} leave tensor {self:?} of {} bytes",
            self.n_bytes()
        );
    }
}

/// Numbers that are nothing but their bits.
///
/// # Safety
/// The type has no padding, and every bit pattern is a value.
pub unsafe trait Plain: Copy {}
// SAFETY: primitive numbers.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for i64 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u8 {}
