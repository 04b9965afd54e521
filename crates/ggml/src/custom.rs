//! Custom nodes: work of our own in the middle of a graph, done by the threads of the CPU backend.
//!
//! All threads of the pool enter a node together and share its work through a counter: whoever is free takes the next
//! piece. Two kinds of node differ in how the result is written, so that no two threads ever hold the same memory: a
//! [`RowKernel`] gets each row of the result as a slice of its own, a [`TileKernel`] stores values through
//! [`Output`], wherever its piece of work ends up. What one node writes, the next one reads: ggml lets no thread
//! enter a node before all have left the one before it, and so phases of one computation are successive nodes.

use crate::tensor::{Plain, Tensor, Type};
use ggml_sys as sys;
use std::any::Any;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Work whose result is made row by row.
pub trait RowKernel: Send + Sync {
    /// Fills rows as long as there are any; runs once on each thread.
    fn run(&self, sources: &Sources<'_>, rows: &mut Rows<'_>);
}

/// Work whose pieces are strewn over the result.
pub trait TileKernel: Send + Sync {
    /// Does pieces as long as there are any; runs once on each thread.
    fn run(&self, sources: &Sources<'_>, tiles: &mut Tiles<'_>, output: &Output<'_>);
}

#[derive(Clone)]
pub(crate) enum Kernel {
    Rows(Arc<dyn RowKernel>),
    Tiles(Arc<dyn TileKernel>),
}

/// What a custom node needs while its graph lives.
pub(crate) struct CustomNode {
    kernel: Kernel,
    /// The next piece of work; zero between computations.
    next: AtomicUsize,
    /// Threads that are through; zero between computations.
    left: AtomicUsize,
    /// What the first panic on any thread said.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl CustomNode {
    pub(crate) fn new(kernel: Kernel) -> Box<CustomNode> {
        let (next, left) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Box::new(CustomNode { kernel, next, left, panic: Mutex::new(None) })
    }

    pub(crate) fn user_data(&self) -> *mut c_void {
        std::ptr::from_ref(self).cast_mut().cast()
    }

    /// The panic of the last computation, if there was one.
    pub(crate) fn take_panic(&self) -> Option<Box<dyn Any + Send>> {
        self.panic.lock().unwrap_or_else(|p| p.into_inner()).take()
    }
}

/// What ggml calls on each thread.
///
/// # Safety
/// `user_data` is a [`CustomNode`], `dst` a computed node of F32 or bytes whose sources are computed, and all of
/// `n_threads` threads make this call, each with its own number, before any makes it again.
pub(crate) unsafe extern "C" fn run(
    dst: *mut sys::ggml_tensor,
    thread: i32,
    n_threads: i32,
    user_data: *mut c_void,
) {
    // SAFETY: as the caller promises; the graph keeps the node.
    let (node, tensor) = unsafe { (&*user_data.cast::<CustomNode>(), &*dst) };
    let done = catch_unwind(AssertUnwindSafe(|| {
        let sources = Sources {
            raw: &tensor.src,
            thread: thread as usize,
            n_threads: n_threads as usize,
            _tensors: PhantomData,
        };
        assert!(!tensor.data.is_null(), "a custom node has no place");
        // SAFETY: `dst` is valid.
        let size = unsafe { sys::ggml_nbytes(dst) };
        match &node.kernel {
            Kernel::Rows(kernel) => {
                let mut rows = Rows {
                    next: &node.next,
                    data: tensor.data.cast(),
                    row_bytes: tensor.nb[1],
                    n_rows: size / tensor.nb[1],
                    _result: PhantomData,
                };
                kernel.run(&sources, &mut rows);
            }
            Kernel::Tiles(kernel) => {
                let output = Output { data: tensor.data.cast(), len: size / 4, _result: PhantomData };
                kernel.run(&sources, &mut Tiles { next: &node.next }, &output);
            }
        }
    }));
    if let Err(panic) = done {
        node.panic.lock().unwrap_or_else(|p| p.into_inner()).get_or_insert(panic);
    }
    if node.left.fetch_add(1, Ordering::AcqRel) + 1 == n_threads as usize {
        node.next.store(0, Ordering::Relaxed);
        node.left.store(0, Ordering::Release);
    }
}

/// The operands of a custom node, computed and in host memory.
pub struct Sources<'a> {
    raw: &'a [*mut sys::ggml_tensor],
    thread: usize,
    n_threads: usize,
    _tensors: PhantomData<&'a ()>,
}

impl Sources<'_> {
    /// Number of this thread.
    pub fn thread(&self) -> usize {
        self.thread
    }

    /// How many threads share the work.
    pub fn n_threads(&self) -> usize {
        self.n_threads
    }

    /// Extents of the `index`-th operand.
    ///
    /// # Panics
    /// When there is none.
    pub fn ne(&self, index: usize) -> [usize; 4] {
        self.get(index).ne.map(|n| n as usize)
    }

    /// The elements of the `index`-th operand.
    ///
    /// # Panics
    /// When there is none, its type is another one, or it is not contiguous.
    pub fn values<T: Element>(&self, index: usize) -> &[T] {
        let tensor = self.get(index);
        assert_eq!(tensor.type_, T::TYPE.id(), "operand {index}: type");
        // SAFETY: a valid operand.
        let (contiguous, size) = unsafe { (sys::ggml_is_contiguous(tensor), sys::ggml_nbytes(tensor)) };
        assert!(contiguous && !tensor.data.is_null(), "operand {index}: not contiguous, or without a place");
        // SAFETY: the CPU backend runs the node, so its operands are in memory that the CPU reads; they were computed
        // before, and nothing writes them while this node runs. ggml aligns data to more than any element needs.
        unsafe { std::slice::from_raw_parts(tensor.data.cast::<T>(), size / size_of::<T>()) }
    }

    /// The bytes of the `index`-th operand, of whatever type.
    ///
    /// # Panics
    /// When there is none, or it is not contiguous.
    pub fn bytes(&self, index: usize) -> &[u8] {
        let tensor = self.get(index);
        // SAFETY: a valid operand.
        let (contiguous, size) = unsafe { (sys::ggml_is_contiguous(tensor), sys::ggml_nbytes(tensor)) };
        assert!(contiguous && !tensor.data.is_null(), "operand {index}: not contiguous, or without a place");
        // SAFETY: as in `values`.
        unsafe { std::slice::from_raw_parts(tensor.data.cast::<u8>(), size) }
    }

    /// The bytes of a weight in host memory.
    ///
    /// # Panics
    /// When [`Tensor::is_host_weight`] says no.
    pub fn weight<'s>(&'s self, weight: &'s Tensor) -> &'s [u8] {
        assert!(weight.is_host_weight(), "{weight:?} can't be read where it lies");
        // SAFETY: host memory that the tensor keeps alive. Weights are written when a model is loaded, before any
        // graph computes.
        unsafe {
            let tensor = &*weight.raw();
            std::slice::from_raw_parts(tensor.data.cast::<u8>(), sys::ggml_nbytes(tensor))
        }
    }

    fn get(&self, index: usize) -> &sys::ggml_tensor {
        let raw = self.raw.get(index).copied().filter(|raw| !raw.is_null());
        let raw = raw.unwrap_or_else(|| panic!("a custom node has no operand {index}"));
        // SAFETY: operands live as long as the graph.
        unsafe { &*raw }
    }
}

/// Types of elements that kernels read.
pub trait Element: Plain {
    /// ggml's name for it.
    const TYPE: Type;
}
impl Element for f32 {
    const TYPE: Type = Type::F32;
}
impl Element for i32 {
    const TYPE: Type = Type::I32;
}
impl Element for u8 {
    const TYPE: Type = Type::I8;
}

/// The rows of a result that nobody has taken yet.
pub struct Rows<'a> {
    next: &'a AtomicUsize,
    data: *mut u8,
    row_bytes: usize,
    n_rows: usize,
    _result: PhantomData<&'a mut [u8]>,
}

impl<'a> Rows<'a> {
    /// How many rows the result has.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Number and bytes of a row that is this thread's alone to fill.
    pub fn take(&mut self) -> Option<(usize, &'a mut [u8])> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        if index >= self.n_rows {
            return None;
        }
        // SAFETY: the result has `n_rows` rows back to back, and the counter gives each number once in a computation.
        let row =
            unsafe { std::slice::from_raw_parts_mut(self.data.add(index * self.row_bytes), self.row_bytes) };
        Some((index, row))
    }
}

/// The pieces of work that nobody has taken yet.
pub struct Tiles<'a> {
    next: &'a AtomicUsize,
}

impl Tiles<'_> {
    /// Number of a piece that is this thread's to do, of `n` in all (the same `n` on all threads).
    pub fn take(&mut self, n: usize) -> Option<usize> {
        Some(self.next.fetch_add(1, Ordering::Relaxed)).filter(|index| *index < n)
    }
}

/// The result of a [`TileKernel`]: F32 elements that all threads write.
pub struct Output<'a> {
    data: *mut u32,
    len: usize,
    _result: PhantomData<&'a [AtomicU32]>,
}

impl Output<'_> {
    /// How many elements there are.
    pub fn n_elements(&self) -> usize {
        self.len
    }

    /// Stores `values` from element `offset` on. Where two threads write the same element, one of the values stays.
    ///
    /// # Panics
    /// When the range leaves the result.
    pub fn write(&self, offset: usize, values: &[f32]) {
        let end = offset.checked_add(values.len()).filter(|end| *end <= self.len);
        assert!(end.is_some(), "{} elements at {offset} leave a result of {}", values.len(), self.len);
        for (i, value) in values.iter().enumerate() {
            // SAFETY: inside the result, which is aligned for F32 and accessed through atomics only while the node
            // runs.
            unsafe { AtomicU32::from_ptr(self.data.add(offset + i)) }
                .store(value.to_bits(), Ordering::Relaxed);
        }
    }
}
