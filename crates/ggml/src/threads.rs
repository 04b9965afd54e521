//! Threads of the CPU backend that stay between graphs.

use crate::backend::{Device, DeviceKind};
use ggml_sys as sys;
use std::ptr::NonNull;

type New = unsafe extern "C" fn(*mut sys::ggml_threadpool_params) -> sys::ggml_threadpool_t;
type Free = unsafe extern "C" fn(sys::ggml_threadpool_t);

/// A set of threads that CPU backends compute with.
pub struct ThreadPool {
    raw: NonNull<sys::ggml_threadpool>,
    free: Free,
    n_threads: usize,
}

// SAFETY: the pool synchronises itself; it is freed once.
unsafe impl Send for ThreadPool {}
// SAFETY: as above.
unsafe impl Sync for ThreadPool {}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        // SAFETY: freed once, after every backend that held the pool is gone.
        unsafe { (self.free)(self.raw.as_ptr()) };
    }
}

impl ThreadPool {
    /// A pool of `n_threads` (at least one); `None` where no CPU backend is there or the threads can't be started.
    pub fn new(n_threads: usize) -> Option<ThreadPool> {
        let n_threads = n_threads.clamp(1, sys::GGML_MAX_N_THREADS as usize);
        let cpu = Device::find(DeviceKind::Cpu)?;
        // SAFETY: these are the types that ggml documents for these names.
        let (new, free) = unsafe {
            (cpu.function::<New>(c"ggml_threadpool_new")?, cpu.function::<Free>(c"ggml_threadpool_free")?)
        };
        // SAFETY: parameters are plain data that ggml fills in and copies.
        let raw = unsafe {
            let mut params = sys::ggml_threadpool_params_default(n_threads as i32);
            new(&mut params)
        };
        Some(ThreadPool { raw: NonNull::new(raw)?, free, n_threads })
    }

    pub(crate) fn raw(&self) -> sys::ggml_threadpool_t {
        self.raw.as_ptr()
    }

    /// How many threads compute.
    pub fn n_threads(&self) -> usize {
        self.n_threads
    }
}
