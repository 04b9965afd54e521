//! Ending the program while ggml may be at work.

/// Ends the process at once, without running the destructors of C++: ggml's free its registries, which threads that
/// still load or compute would then touch. For handlers of signals; what is in Rust's buffers is lost.
pub fn exit_at_once(code: i32) -> ! {
    unsafe extern "C" {
        // SAFETY: takes any number and touches nothing of ours.
        safe fn _exit(code: std::ffi::c_int) -> !;
    }
    _exit(code)
}
