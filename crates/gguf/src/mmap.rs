//! Memory-mapped files, and what happens when one changes under us.
//!
//! A mapping shows the file itself: if another process truncates it, touching the lost pages raises SIGBUS, and if
//! another process writes to it, the bytes change while we look. Rust can't make that impossible, so the contract is:
//! do not modify a model file while a program uses it. A truncation ends the program with an error message instead of
//! a bare signal where [`install_fault_handler`] was called; bytes that change give wrong numbers but no undefined
//! behaviour beyond them, because everything that is used as an index or size was copied and checked when the file
//! was opened.
#![allow(unsafe_code)] // mapping a file, and a signal handler

use crate::Error;
use memmap2::Mmap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// Maps a whole file for reading.
///
/// # Errors
/// [`Error::Io`] when the system refuses.
pub(crate) fn map(path: &Path, file: &File) -> Result<Arc<Mmap>, Error> {
    // SAFETY: the contract at the top of this module: nobody modifies the file while it is in use.
    let map = unsafe { Mmap::map(file) }.map_err(Error::io(path, "map"))?;
    Ok(Arc::new(map))
}

/// Makes a SIGBUS (a mapped file was truncated, or its disk failed) end the program with a message and exit code 1.
/// For programs, once, at their start.
pub fn install_fault_handler() {
    #[cfg(unix)]
    {
        extern "C" fn fault(_: libc::c_int) {
            const MESSAGE: &[u8] =
                b"error: a mapped file: found a page that can't be read, expected the file to stay as it was opened (truncated or replaced while in use, or a disk error)\n";
            // SAFETY: write and _exit are async-signal-safe, and the message is a constant.
            unsafe {
                libc::write(2, MESSAGE.as_ptr().cast(), MESSAGE.len());
                libc::_exit(1);
            }
        }
        // SAFETY: the action is zeroed (no flags, empty mask) before its handler is set, and the handler only calls
        // async-signal-safe functions.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = fault as *const () as usize;
            libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
        }
    }
}
