//! Copies to a device's memory on a stream of their own, beside what another stream computes there.

use crate::Error;
use crate::backend::{Backend, Device};
use crate::buffer::{Buffer, BufferType};
use crate::context::Context;
use crate::tensor::{Tensor, Type};
use ggml_sys as sys;

/// A stream for copies, and memory of the host that the device fetches them from by itself: a copy is begun and not
/// waited for.
///
/// It serves one thread at a time, as ggml's backends do; threads that copy at once have a stream each.
pub struct CopyStream {
    backend: Backend,
    device: Device,
    bytes: Tensor,
    is_fetched: bool,
}

impl Drop for CopyStream {
    fn drop(&mut self) {
        self.wait();
    }
}

impl CopyStream {
    /// Starts a stream on `device` with `n_bytes` to copy from, pinned where the device has such memory.
    ///
    /// # Errors
    /// [`Error::DeviceInit`], [`Error::OutOfMemory`].
    ///
    /// # Panics
    /// When `n_bytes` is 0.
    pub fn new(device: Device, n_bytes: usize) -> Result<CopyStream, Error> {
        let buffer_type = device.host_buffer_type();
        let bytes = Context::new(1).tensor("pinned", Type::I8, &[n_bytes]);
        let tensors = std::slice::from_ref(&bytes);
        Buffer::allocate(buffer_type.unwrap_or_else(BufferType::cpu), tensors, "copies to a device")?;
        Ok(CopyStream { backend: Backend::new(device)?, device, bytes, is_fetched: true })
    }

    /// The memory to copy from, after the device has fetched what was in it.
    pub fn bytes(&mut self) -> &mut [u8] {
        self.wait();
        // SAFETY: plain host memory of that size that belongs to `self`; no copy from it is under way, and none begins
        // while it is lent.
        unsafe { std::slice::from_raw_parts_mut((*self.bytes.raw()).data.cast::<u8>(), self.bytes.n_bytes()) }
    }

    /// Begins to copy the first `n_bytes` to `tensor` from its byte `offset` on. They have arrived when
    /// [`wait`](Self::wait) returns; nothing may be computed with them before.
    ///
    /// # Panics
    /// When there are not so many, the tensor is not in the memory of the stream's device, or the range leaves it.
    pub fn send(&mut self, n_bytes: usize, tensor: &Tensor, offset: usize) {
        self.wait();
        assert!(n_bytes <= self.bytes.n_bytes(), "{n_bytes} of {} bytes", self.bytes.n_bytes());
        self.check_place(tensor);
        tensor.check_range(offset, n_bytes);
        // SAFETY: the tensor lies in the device's memory and the range inside it; the bytes stay as they are until
        // `wait`, which everything that could change or free them calls first.
        unsafe {
            let data = (*self.bytes.raw()).data;
            sys::ggml_backend_tensor_set_async(self.backend.raw(), tensor.raw(), data, offset, n_bytes);
        }
        self.is_fetched = false;
    }

    /// Waits for the copy that was begun last, if it is still under way.
    pub fn wait(&mut self) {
        if !std::mem::replace(&mut self.is_fetched, true) {
            // SAFETY: a valid backend that nobody else uses.
            unsafe { sys::ggml_backend_synchronize(self.backend.raw()) };
        }
    }

    /// Copies `n_bytes` from one tensor of the device to another, at these offsets, and waits until that is done.
    ///
    /// # Panics
    /// When a tensor lies elsewhere, or a range leaves it.
    pub fn copy_within(&mut self, from: (&Tensor, usize), to: (&Tensor, usize), n_bytes: usize) {
        if n_bytes == 0 {
            return;
        }
        self.wait();
        let windows = Context::new(2);
        let [from, to] = [from, to].map(|(tensor, offset)| {
            self.check_place(tensor);
            let window = windows.tensor("window", Type::I8, &[n_bytes]);
            tensor.lend(offset, &window);
            window
        });
        // SAFETY: both windows have one layout and lie inside tensors of the device, which the caller holds until the copy
        // was waited for.
        unsafe {
            let backend = self.backend.raw();
            sys::ggml_backend_tensor_copy_async(backend, backend, from.raw(), to.raw());
            sys::ggml_backend_synchronize(backend);
        }
    }

    fn check_place(&self, tensor: &Tensor) {
        let own = self.device.buffer_type();
        assert!(tensor.place() == Some(own), "{tensor:?} is not in the memory of {}", self.device.name());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tensors of so many bytes in the memory of `device`.
    fn on(device: Device, n_bytes: usize) -> [Tensor; 2] {
        let context = Context::new(2);
        let tensors = ["a", "b"].map(|name| context.tensor(name, Type::I8, &[n_bytes]));
        Buffer::allocate(device.buffer_type(), &tensors, "a test").expect("room");
        tensors
    }

    fn read(tensor: &Tensor) -> Vec<u8> {
        let mut bytes = vec![0; tensor.n_bytes()];
        tensor.read(0, &mut bytes);
        bytes
    }

    #[test]
    fn bytes_arrive_where_they_were_sent() {
        let device = crate::stand_in::register(1, 1 << 20).expect("registered")[0];
        let [a, b] = on(device, 16);
        let [mut first, mut second] = [4, 8].map(|n| CopyStream::new(device, n).expect("a stream"));
        for round in 0..3u8 {
            first.bytes().fill(round + 1);
            first.send(4, &a, 2);
            second.bytes().fill(round + 10);
            second.send(5, &a, 8);
            // Memory that is filled again must not change what was sent.
            first.bytes().fill(round + 20);
            first.send(2, &a, 0);
            first.wait();
            second.wait();
            let [x, y, z] = [round + 20, round + 1, round + 10];
            assert_eq!(read(&a), [x, x, y, y, y, y, 0, 0, z, z, z, z, z, 0, 0, 0]);
            first.copy_within((&a, 1), (&b, 3), 6);
            assert_eq!(read(&b), [0, 0, 0, x, y, y, y, y, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
    }

    #[test]
    #[should_panic(expected = "leave tensor")]
    fn a_copy_that_leaves_its_tensor_is_our_mistake() {
        let device = crate::stand_in::register(1, 1 << 20).expect("registered")[0];
        let [a, _] = on(device, 16);
        CopyStream::new(device, 8).expect("a stream").send(8, &a, 9);
    }
}
