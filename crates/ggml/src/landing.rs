//! Where results of a graph arrive on the host.

use crate::Error;
use crate::buffer::{Buffer, BufferType};
use crate::context::Context;
use crate::tensor::{Plain, Tensor, Type};
use std::ops::Range;

/// Memory of the host with results of a graph one behind the other; of a kind that a device copies to by itself, where there
/// is one: other copies pass through memory of the driver, and the thread waits for each.
pub(crate) struct Landing {
    buffer_type: BufferType,
    /// `None` before something is fetched.
    bytes: Option<Tensor>,
    places: Vec<Range<usize>>,
}

/// Bytes that places are multiples of: enough for every kind of number.
const ALIGNMENT: usize = 64;

impl Landing {
    /// Nothing yet.
    pub fn new(buffer_type: BufferType) -> Landing {
        Landing { buffer_type, bytes: None, places: Vec::new() }
    }

    /// Makes room for `results`; what was there before is gone. Nothing may be on its way here.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn lay_out(&mut self, results: &[Tensor]) -> Result<(), Error> {
        let mut end = 0usize;
        self.places.clear();
        for tensor in results {
            let start = end.next_multiple_of(ALIGNMENT);
            end = start + tensor.n_bytes();
            self.places.push(start..end);
        }
        if self.bytes.as_ref().map_or(0, Tensor::n_bytes) < end {
            let bytes = Context::new(1).tensor("landing", Type::I8, &[end.next_power_of_two()]);
            Buffer::allocate(self.buffer_type, std::slice::from_ref(&bytes), "results of a graph")?;
            self.bytes = Some(bytes);
        }
        Ok(())
    }

    /// Where each result goes.
    pub fn places(&self) -> impl Iterator<Item = *mut u8> {
        let base = self.base();
        self.places.iter().map(move |place| base.wrapping_add(place.start))
    }

    /// The numbers that arrived at a place, after they were waited for.
    ///
    /// # Panics
    /// When there is no such place, or no whole numbers in it.
    pub fn numbers<T: Plain>(&self, index: usize) -> &[T] {
        let place = &self.places[index];
        assert!(place.len().is_multiple_of(size_of::<T>()) && ALIGNMENT.is_multiple_of(align_of::<T>()));
        let first = self.base().wrapping_add(place.start).cast::<T>();
        assert!(first.is_aligned(), "host buffers are aligned for all numbers");
        // SAFETY: plain host memory of that size, which belongs to `self` and is written only while `self` is borrowed
        // mutably; all bits are numbers.
        unsafe { std::slice::from_raw_parts(first, place.len() / size_of::<T>()) }
    }

    fn base(&self) -> *mut u8 {
        // SAFETY: a tensor's struct is alive as long as its handle.
        self.bytes.as_ref().map_or(std::ptr::null_mut(), |bytes| unsafe { (*bytes.raw()).data.cast() })
    }
}
