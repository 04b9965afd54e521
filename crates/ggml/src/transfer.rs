//! Copies to a device's memory on a stream of their own, beside what another stream computes there.
//!
//! Bytes go through [`Pinned`] memory, which the device fetches by itself: a copy is begun and not waited for. Who wants
//! to fill the memory again waits for that one copy, where the device has events, and else for the stream.

use crate::Error;
use crate::backend::{Backend, Device};
use crate::buffer::{Buffer, BufferType};
use crate::context::Context;
use crate::tensor::{Tensor, Type};
use ggml_sys as sys;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard};

/// A stream for copies; shared by the threads that fill memory for it.
pub struct CopyStream {
    backend: Mutex<Backend>,
    device: Device,
}

impl CopyStream {
    /// Starts a stream on `device`.
    ///
    /// # Errors
    /// [`Error::DeviceInit`].
    pub fn new(device: Device) -> Result<Arc<CopyStream>, Error> {
        Ok(Arc::new(CopyStream { backend: Mutex::new(Backend::new(device)?), device }))
    }

    /// Memory of `n_bytes` to copy from, pinned where the device has such.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    ///
    /// # Panics
    /// When `n_bytes` is 0.
    pub fn pinned(self: &Arc<Self>, n_bytes: usize) -> Result<Pinned, Error> {
        // SAFETY: a registered device.
        let own = unsafe { sys::ggml_backend_dev_host_buffer_type(self.device.0.as_ptr()) };
        let buffer_type = NonNull::new(own).map(BufferType).filter(|own| own.is_host());
        let bytes = Context::new(1).tensor("pinned", Type::I8, &[n_bytes]);
        let tensors = std::slice::from_ref(&bytes);
        Buffer::allocate(buffer_type.unwrap_or_else(BufferType::cpu), tensors, "copies to a device")?;
        // SAFETY: a registered device; null where it has no events.
        let event = NonNull::new(unsafe { sys::ggml_backend_event_new(self.device.0.as_ptr()) });
        Ok(Pinned { bytes, event, stream: Arc::clone(self), is_fetched: true })
    }

    /// Copies `n_bytes` from one tensor of the device to another, at these offsets, and waits until that is done.
    ///
    /// # Panics
    /// When a tensor lies elsewhere, or a range leaves it.
    pub fn copy_within(&self, from: (&Tensor, usize), to: (&Tensor, usize), n_bytes: usize) {
        if n_bytes == 0 {
            return;
        }
        let windows = Context::new(2);
        let [from, to] = [from, to].map(|(tensor, offset)| {
            assert!(self.holds(tensor), "{tensor:?} is not in the memory of {}", self.device.name());
            let window = windows.tensor("window", Type::I8, &[n_bytes]);
            tensor.lend(offset, &window);
            window
        });
        let backend = self.lock();
        // SAFETY: both windows have one layout and lie inside tensors of the device, which the caller holds until the copy
        // was waited for.
        unsafe {
            sys::ggml_backend_tensor_copy_async(backend.raw(), backend.raw(), from.raw(), to.raw());
            sys::ggml_backend_synchronize(backend.raw());
        }
    }

    fn holds(&self, tensor: &Tensor) -> bool {
        tensor.place() == Some(self.device.buffer_type())
    }

    fn lock(&self) -> MutexGuard<'_, Backend> {
        self.backend.lock().unwrap_or_else(|p| p.into_inner())
    }
}

/// Memory of the host that a device fetches bytes from.
pub struct Pinned {
    bytes: Tensor,
    /// Recorded behind the last copy.
    event: Option<NonNull<sys::ggml_backend_event>>,
    stream: Arc<CopyStream>,
    is_fetched: bool,
}

// SAFETY: the event is used through `&mut` only.
unsafe impl Send for Pinned {}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.wait();
        if let Some(event) = self.event {
            // SAFETY: made by this device and freed once.
            unsafe { sys::ggml_backend_event_free(event.as_ptr()) };
        }
    }
}

impl Pinned {
    /// Its bytes, after the device has fetched what was in them.
    pub fn bytes(&mut self) -> &mut [u8] {
        self.wait();
        // SAFETY: plain host memory of that size that belongs to `self`; no copy from it is under way, and none begins
        // while it is lent.
        unsafe { std::slice::from_raw_parts_mut((*self.bytes.raw()).data.cast::<u8>(), self.bytes.n_bytes()) }
    }

    /// Begins to copy the first `n_bytes` to `tensor` from its byte `offset` on. The copy has arrived when
    /// [`wait`](Self::wait) returns; nothing may be computed with those bytes before.
    ///
    /// # Panics
    /// When there are not so many, the tensor is not in the memory of the stream's device, or the range leaves it.
    pub fn send(&mut self, n_bytes: usize, tensor: &Tensor, offset: usize) {
        self.wait();
        assert!(n_bytes <= self.bytes.n_bytes(), "{n_bytes} of {} bytes", self.bytes.n_bytes());
        assert!(self.stream.holds(tensor), "{tensor:?} is not in the memory of the stream's device");
        tensor.check_range(offset, n_bytes);
        let backend = self.stream.lock();
        // SAFETY: the tensor lies in the device's memory and the range inside it; the bytes stay as they are until
        // `wait`, which everything that could change or free them calls first.
        unsafe {
            let data = (*self.bytes.raw()).data;
            sys::ggml_backend_tensor_set_async(backend.raw(), tensor.raw(), data, offset, n_bytes);
            if let Some(event) = self.event {
                sys::ggml_backend_event_record(event.as_ptr(), backend.raw());
            }
        }
        self.is_fetched = false;
    }

    /// Waits for the copy that was begun last, if it is still under way.
    pub fn wait(&mut self) {
        if std::mem::replace(&mut self.is_fetched, true) {
            return;
        }
        match self.event {
            // SAFETY: an event of this device that was recorded by `send`.
            Some(event) => unsafe { sys::ggml_backend_event_synchronize(event.as_ptr()) },
            // SAFETY: a valid backend, which nobody else uses while it is locked.
            None => unsafe { sys::ggml_backend_synchronize(self.stream.lock().raw()) },
        }
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
        let stream = CopyStream::new(device).expect("a stream");
        let [mut first, mut second] = [4, 8].map(|n| stream.pinned(n).expect("memory"));
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
            stream.copy_within((&a, 1), (&b, 3), 6);
            assert_eq!(read(&b), [0, 0, 0, x, y, y, y, y, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
    }

    #[test]
    #[should_panic(expected = "leave tensor")]
    fn a_copy_that_leaves_its_tensor_is_our_mistake() {
        let device = crate::stand_in::register(1, 1 << 20).expect("registered")[0];
        let [a, _] = on(device, 16);
        let stream = CopyStream::new(device).expect("a stream");
        stream.pinned(8).expect("memory").send(8, &a, 9);
    }
}
