//! Devices, and backends running on them.

use crate::Error;
use crate::buffer::BufferType;
use crate::stand_in::stream::{LATE_STATUS, LateStatus};
use crate::tensor::{Tensor, Type};
use crate::threads::ThreadPool;
use ggml_sys as sys;
use std::ffi::{CStr, CString, c_void};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceKind {
    /// The host's processor and memory.
    Cpu,
    /// A card with memory of its own.
    Gpu,
    /// A GPU that shares the host's memory.
    IntegratedGpu,
    /// Something that helps the CPU with single operations.
    Accelerator,
}

/// A device that ggml can compute on; lives for the whole program.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Device(pub(crate) NonNull<sys::ggml_backend_device>);

// SAFETY: devices are registered once and never freed.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

/// ggml's list of devices is not synchronised: read while it is listed, written while backends are added to it.
pub(crate) static REGISTRY: RwLock<()> = RwLock::new(());

/// Every device of every backend that is linked or was loaded.
pub fn devices() -> Vec<Device> {
    let _guard = REGISTRY.read().unwrap_or_else(|p| p.into_inner());
    // SAFETY: indices run below the count, and nobody adds to the list meanwhile.
    unsafe {
        (0..sys::ggml_backend_dev_count())
            .filter_map(|i| NonNull::new(sys::ggml_backend_dev_get(i)).map(Device))
            .collect()
    }
}

/// Loads backend modules that lie beside the program or, in a portable build, beside ggml's library, and makes sure that
/// there is a CPU backend. In a build that links its CPU backend this only looks for modules of GPUs. Adds the stand-in
/// devices that the environment asks for.
///
/// # Errors
/// [`Error::NoCpuBackend`], and [`Error::Setting`] when the environment asks for something else than devices.
pub fn load_backends() -> Result<(), Error> {
    static LOADED: std::sync::Once = std::sync::Once::new();
    let beside = std::env::current_exe().ok().and_then(|p| p.parent().map(|d| d.to_path_buf()));
    let library = if sys::PORTABLE { library_directory() } else { None };
    let mut places: Vec<PathBuf> = [library, beside].into_iter().flatten().collect();
    places.dedup();
    LOADED.call_once(|| {
        for place in &places {
            let has_module = std::fs::read_dir(place).is_ok_and(|dir| {
                dir.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libggml-"))
            });
            let Ok(path) = CString::new(place.to_string_lossy().as_bytes()) else { continue };
            if has_module {
                let _guard = REGISTRY.write().unwrap_or_else(|p| p.into_inner());
                // SAFETY: a NUL-terminated path; ggml loads only modules that score above zero on this machine.
                unsafe { sys::ggml_backend_load_all_from_path(path.as_ptr()) };
            }
            if Device::find(DeviceKind::Cpu).is_some() && sys::PORTABLE {
                break;
            }
        }
    });
    if Device::find(DeviceKind::Cpu).is_none() {
        let searched = places.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
        return Err(Error::NoCpuBackend { searched });
    }
    crate::stand_in::register_from_env()?;
    Ok(())
}

/// Where the dynamic linker found ggml's own library: its modules are installed with it. Asking the linker keeps paths of
/// the building machine out of what is shipped.
#[cfg(unix)]
fn library_directory() -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    // SAFETY: the struct is plain data, and all-zero is a valid value of it.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: the address is that of a function in the library, and `info` is a place to write to; the name it is given
    // belongs to the linker and lives as long as the library.
    let name = unsafe {
        if libc::dladdr(sys::ggml_version as *const c_void, &mut info) == 0 || info.dli_fname.is_null() {
            return None;
        }
        CStr::from_ptr(info.dli_fname)
    };
    let path = PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes()));
    std::fs::canonicalize(path).ok()?.parent().map(PathBuf::from)
}

#[cfg(not(unix))]
fn library_directory() -> Option<PathBuf> {
    None
}

impl Device {
    /// The first device of a kind.
    pub fn find(kind: DeviceKind) -> Option<Device> {
        devices().into_iter().find(|d| d.kind() == kind)
    }

    /// Short name: `CPU`, `CUDA0`, ...
    pub fn name(self) -> String {
        // SAFETY: a static string.
        unsafe { CStr::from_ptr(sys::ggml_backend_dev_name(self.0.as_ptr())) }.to_string_lossy().into_owned()
    }

    /// What the vendor calls it.
    pub fn description(self) -> String {
        // SAFETY: a static string.
        unsafe { CStr::from_ptr(sys::ggml_backend_dev_description(self.0.as_ptr())) }
            .to_string_lossy()
            .into_owned()
    }

    /// What kind of device it is.
    pub fn kind(self) -> DeviceKind {
        // SAFETY: a registered device.
        match unsafe { sys::ggml_backend_dev_type(self.0.as_ptr()) } {
            sys::GGML_BACKEND_DEVICE_TYPE_CPU => DeviceKind::Cpu,
            sys::GGML_BACKEND_DEVICE_TYPE_GPU => DeviceKind::Gpu,
            sys::GGML_BACKEND_DEVICE_TYPE_IGPU => DeviceKind::IntegratedGpu,
            _ => DeviceKind::Accelerator,
        }
    }

    /// Free and total memory in bytes, as the device reports them.
    pub fn memory(self) -> (usize, usize) {
        let (mut free, mut total) = (0, 0);
        // SAFETY: a registered device and two places to write to.
        unsafe { sys::ggml_backend_dev_memory(self.0.as_ptr(), &mut free, &mut total) };
        (free, total)
    }

    /// The memory its backend computes in.
    pub fn buffer_type(self) -> BufferType {
        // SAFETY: a registered device; every device has a buffer type.
        BufferType(
            NonNull::new(unsafe { sys::ggml_backend_dev_buffer_type(self.0.as_ptr()) }).expect("has one"),
        )
    }

    /// Memory of the host that the device copies from and to without the processor's help, where it has such.
    pub fn host_buffer_type(self) -> Option<BufferType> {
        // SAFETY: a registered device; null where it has none.
        let own = unsafe { sys::ggml_backend_dev_host_buffer_type(self.0.as_ptr()) };
        NonNull::new(own).map(BufferType).filter(|own| own.is_host())
    }

    /// Kinds of memory that the device's backend keeps some weights in a layout of its own in (the CPU's `CPU_REPACK`),
    /// the preferred first.
    pub fn extra_buffer_types(self) -> Vec<BufferType> {
        // SAFETY: the type that ggml documents for the name.
        let Some(list) = (unsafe { self.function::<ExtraTypes>(c"ggml_backend_dev_get_extra_bufts") }) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        // SAFETY: the function returns null or an array that ends with null.
        unsafe {
            let mut next = list(self.0.as_ptr());
            while !next.is_null() && !(*next).is_null() {
                found.extend(NonNull::new(*next).map(BufferType));
                next = next.add(1);
            }
        }
        found
    }

    /// Whether the device can multiply with `weight` (of no place yet) when it lies in `buffer_type`; `by_expert` for
    /// [`mul_mat_id`](crate::Graph::mul_mat_id).
    pub fn multiplies_from(self, buffer_type: BufferType, weight: &Tensor, by_expert: bool) -> bool {
        assert!(!weight.is_allocated(), "{weight:?} has a place already");
        let graph = crate::Graph::new(4);
        let ne = weight.ne();
        let product = if by_expert {
            let x = graph.input("x", Type::F32, &[ne[0], 1, 512]);
            graph.mul_mat_id(weight, &x, &graph.input("ids", Type::I32, &[1, 512]))
        } else {
            graph.mul_mat(weight, &graph.input("x", Type::F32, &[ne[0], 512]))
        };
        // SAFETY: everything is valid; the empty buffer is there only while the question is asked, because backends
        // look at the kind of memory a weight lies in. Nobody else uses the weight meanwhile, as it has no place.
        unsafe {
            let buffer = sys::ggml_backend_buft_alloc_buffer(buffer_type.0.as_ptr(), 0);
            if buffer.is_null() {
                return false;
            }
            (*weight.raw()).buffer = buffer;
            let supported = sys::ggml_backend_dev_supports_op(self.0.as_ptr(), product.raw());
            (*weight.raw()).buffer = std::ptr::null_mut();
            sys::ggml_backend_buffer_free(buffer);
            supported
        }
    }

    /// Whether the device computes [`flash_attention`](crate::Graph::flash_attention) of `n_head` heads over keys and
    /// values of these types, heads and lengths of a head's row. Where it doesn't, the CPU would, on copies of them.
    pub fn flash_attends(
        self,
        n_head: usize,
        n_head_kv: usize,
        (k, dim_k): (Type, usize),
        (v, dim_v): (Type, usize),
    ) -> bool {
        [1, 512].into_iter().all(|n_tokens| {
            let graph = crate::Graph::new(4);
            let q = graph.input("q", Type::F32, &[dim_k, n_tokens, n_head]);
            let k = graph.input("k", k, &[dim_k, 256, n_head_kv]);
            let v = graph.input("v", v, &[dim_v, 256, n_head_kv]);
            let mask = graph.input("mask", Type::F16, &[256, n_tokens]);
            let attended = graph.flash_attention(&q, &k, &v, &mask, 1.0);
            // SAFETY: a registered device and a valid node.
            unsafe { sys::ggml_backend_dev_supports_op(self.0.as_ptr(), attended.raw()) }
        })
    }

    /// A function that the device's backend offers by name.
    ///
    /// # Safety
    /// `F` is the function-pointer type that ggml documents for `name`.
    pub(crate) unsafe fn function<F: Copy>(self, name: &CStr) -> Option<F> {
        assert_eq!(size_of::<F>(), size_of::<*mut c_void>());
        // SAFETY: a registered device has a registry entry; the name is NUL-terminated.
        let address = unsafe {
            let registry = sys::ggml_backend_dev_backend_reg(self.0.as_ptr());
            sys::ggml_backend_reg_get_proc_address(registry, name.as_ptr())
        };
        // SAFETY: the caller names the type of the function.
        (!address.is_null()).then(|| unsafe { std::mem::transmute_copy(&address) })
    }
}

type ExtraTypes = unsafe extern "C" fn(sys::ggml_backend_dev_t) -> *mut sys::ggml_backend_buffer_type_t;
pub(crate) type SetThreads = unsafe extern "C" fn(sys::ggml_backend_t, i32);
pub(crate) type SetThreadPool = unsafe extern "C" fn(sys::ggml_backend_t, sys::ggml_threadpool_t);
pub(crate) type AbortCallback = unsafe extern "C" fn(*mut c_void) -> bool;
pub(crate) type SetAbort = unsafe extern "C" fn(sys::ggml_backend_t, Option<AbortCallback>, *mut c_void);

/// A stream of work on a device.
pub struct Backend {
    raw: NonNull<sys::ggml_backend>,
    device: Device,
    /// Read by the abort callback, so it must outlive the backend.
    abort: Option<Arc<AtomicBool>>,
    pool: Option<Arc<ThreadPool>>,
    /// A stand-in's work ends after the call that asked for it, and so does its status.
    late_status: Option<LateStatus>,
}

// SAFETY: a backend is used by one thread at a time, which `&mut` in the scheduler ensures.
unsafe impl Send for Backend {}

impl Drop for Backend {
    fn drop(&mut self) {
        // SAFETY: freed once; the scheduler that used it is gone by then.
        unsafe { sys::ggml_backend_free(self.raw.as_ptr()) };
    }
}

impl Backend {
    /// Starts a stream on `device`.
    ///
    /// # Errors
    /// [`Error::DeviceInit`].
    pub fn new(device: Device) -> Result<Backend, Error> {
        // SAFETY: a registered device; no parameters.
        let raw = unsafe { sys::ggml_backend_dev_init(device.0.as_ptr(), std::ptr::null()) };
        let raw = NonNull::new(raw).ok_or_else(|| Error::DeviceInit { device: device.name() })?;
        // SAFETY: the type of the function of this name.
        let late_status = unsafe { device.function::<LateStatus>(LATE_STATUS) };
        Ok(Backend { raw, device, abort: None, pool: None, late_status })
    }

    pub(crate) fn raw(&self) -> sys::ggml_backend_t {
        self.raw.as_ptr()
    }

    /// How the work ended that was waited for since the last call, where the backend's own calls can't say.
    pub(crate) fn late_status(&self) -> sys::ggml_status {
        // SAFETY: the backend is valid and nobody else uses it.
        self.late_status.map_or(sys::GGML_STATUS_SUCCESS, |status| unsafe { status(self.raw()) })
    }

    /// The device it runs on.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Computes with the threads of `pool` from now on; only the CPU has threads, others ignore it.
    pub fn set_threads(&mut self, pool: &Arc<ThreadPool>) {
        if self.pool.as_ref().is_some_and(|current| Arc::ptr_eq(current, pool)) {
            return;
        }
        // SAFETY: these are the types that ggml documents for these names.
        let (count, threads) = unsafe {
            (
                self.device.function::<SetThreads>(c"ggml_backend_set_n_threads"),
                self.device.function::<SetThreadPool>(c"ggml_backend_cpu_set_threadpool"),
            )
        };
        // SAFETY: the backend is valid and the pool is kept alive by `self`.
        unsafe {
            if let Some(set) = count {
                set(self.raw(), pool.n_threads() as i32);
            }
            if let Some(set) = threads {
                set(self.raw(), pool.raw());
            }
        }
        self.pool = Some(Arc::clone(pool));
    }

    /// Stops a running computation soon after `flag` becomes true; only the CPU backend listens.
    pub fn set_abort(&mut self, flag: Arc<AtomicBool>) {
        unsafe extern "C" fn stop(data: *mut c_void) -> bool {
            // SAFETY: `data` is the flag, kept alive by the backend.
            unsafe { &*data.cast::<AtomicBool>() }.load(Ordering::Relaxed)
        }
        // SAFETY: the type that ggml documents for the name; the flag outlives the backend.
        unsafe {
            if let Some(set) = self.device.function::<SetAbort>(c"ggml_backend_set_abort_callback") {
                set(self.raw(), Some(stop), Arc::as_ptr(&flag).cast_mut().cast());
            }
        }
        self.abort = Some(flag);
    }
}
