//! Safe handles over ggml: contexts, tensors, graphs, devices, buffers and the scheduler.
//!
//! ggml is a C library that trusts its caller: it aborts the process on a shape it does not expect, and its tensors
//! point into contexts and buffers that somebody else must keep alive. This crate owns both concerns. A [`Tensor`]
//! keeps its context alive, a context keeps the buffers its tensors lie in alive, and a [`Graph`] keeps every context
//! its nodes refer to alive; shapes are checked in Rust before ggml sees them, so that a mistake is a Rust panic with
//! a location (our bug) and never an abort. Nobody above this crate sees a raw pointer.
//!
//! Shapes are given in ggml's order: `ne[0]` is the contiguous axis.
#![allow(unsafe_code)] // the one crate above the bindings that may: it turns C handles into owned ones

mod backend;
mod buffer;
mod context;
mod cpu;
mod custom;
mod error;
mod exit;
mod graph;
mod landing;
mod node;
pub mod quantize;
mod sched;
pub mod stand_in;
mod tensor;
mod threads;
mod transfer;

pub use backend::{Backend, Device, DeviceKind, devices, load_backends};
pub use buffer::{Buffer, BufferType};
pub use context::Context;
pub use cpu::check_cpu;
pub use custom::{Element, Output, RowKernel, Rows, Sources, TileKernel, Tiles};
pub use error::Error;
pub use exit::exit_at_once;
pub use graph::{Graph, Rope, RopeStyle};
pub use node::Node;
pub use sched::Scheduler;
pub use tensor::{Tensor, Type};
pub use threads::ThreadPool;
pub use transfer::CopyStream;

/// Where ggml's log lines go: level and text.
pub type LogSink = fn(u32, &str);

/// Sends ggml's own log lines to `sink` (level as ggml numbers it: 1 debug, 2 info, 3 warning, 4 error); the last
/// call wins. Without it ggml writes to standard error.
pub fn set_log(sink: LogSink) {
    static SINK: std::sync::Mutex<Option<LogSink>> = std::sync::Mutex::new(None);
    extern "C" fn forward(level: u32, text: *const std::ffi::c_char, _: *mut std::ffi::c_void) {
        if text.is_null() {
            return;
        }
        // SAFETY: ggml passes a NUL-terminated string that lives for the call.
        let text = unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy();
        let sink = *SINK.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(sink) = sink {
            sink(level, &text);
        }
    }
    *SINK.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(sink);
    // SAFETY: `forward` is a plain function that lives for the whole program and needs no user data.
    unsafe { ggml_sys::ggml_log_set(Some(forward), std::ptr::null_mut()) };
}
