//! Ctrl-C.
//!
//! The first one stops the answer being given, where there is one; any other ends the program.

use bruce::exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// What a Ctrl-C sets instead of ending the program.
static STOPPABLE: Mutex<Option<Arc<AtomicBool>>> = Mutex::new(None);

/// Watches for Ctrl-C from now on.
///
/// # Errors
/// Where the system refuses a handler.
pub fn watch() -> Result<(), anyhow::Error> {
    ctrlc::set_handler(|| {
        let stopped = stoppable().as_ref().is_some_and(|flag| !flag.swap(true, Ordering::Relaxed));
        if !stopped {
            gguf::discard_partial_files();
            // Another thread may be inside ggml.
            ggml::exit_at_once(i32::from(exit::INTERRUPTED));
        }
    })
    .map_err(|e| anyhow::Error::new(e).context("cannot watch for Ctrl-C"))
}

/// While this lives, the first Ctrl-C sets the flag.
pub struct Stoppable(());

impl Stoppable {
    /// Clears `flag` and hands it to Ctrl-C.
    pub fn new(flag: &Arc<AtomicBool>) -> Self {
        flag.store(false, Ordering::Relaxed);
        *stoppable() = Some(Arc::clone(flag));
        Stoppable(())
    }
}

impl Drop for Stoppable {
    fn drop(&mut self) {
        *stoppable() = None;
    }
}

fn stoppable() -> MutexGuard<'static, Option<Arc<AtomicBool>>> {
    STOPPABLE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
