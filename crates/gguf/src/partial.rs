//! Files that are not finished yet, and what becomes of them when the program ends before they are.

use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, TryLockError};

/// Unfinished files of this process that must not stay behind, also as C strings: a signal handler can't make those.
struct Registry {
    files: Vec<(PathBuf, CString)>,
    /// The process is ending: no new ones.
    closed: bool,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry { files: Vec::new(), closed: false });

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Removes every unfinished file of this process, but for those that are to stay, and lets no new ones come; for the
/// handler of an interrupt, just before the process ends. Writers that are still at work fail when they finish.
pub fn discard_partial_files() {
    let mut registry = registry();
    registry.closed = true;
    for (path, _) in registry.files.drain(..) {
        // There is nobody left to tell; the name says that the file is partial.
        let _ = fs::remove_file(path);
    }
}

/// Calls `f` with each unfinished file. Neither waits nor allocates, so that a signal handler may call it.
#[cfg(unix)]
pub(crate) fn for_each_partial_file(f: impl Fn(&CStr)) {
    let registry = match REGISTRY.try_lock() {
        Ok(registry) => registry,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return,
    };
    registry.files.iter().for_each(|(_, path)| f(path));
}

/// An unfinished file. Unless it is to stay, it is removed when dropped, when the program is interrupted
/// ([`discard_partial_files`]), and when a mapped page is lost.
#[derive(Debug)]
pub struct PartialFile {
    path: PathBuf,
    stays: bool,
}

impl PartialFile {
    /// Opens or makes a file at `path` as `how` says. With `stays` it outlives this process, finished or not.
    ///
    /// # Errors
    /// Those of opening; [`io::ErrorKind::Interrupted`] after [`discard_partial_files`].
    pub fn open(path: PathBuf, how: &OpenOptions, stays: bool) -> io::Result<(PartialFile, File)> {
        let c_path = CString::new(path.as_os_str().as_encoded_bytes()).unwrap_or_default();
        // Held until the file is registered, so that an interrupt between the two can't leave it behind.
        let mut registry = registry();
        if registry.closed {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let file = how.open(&path)?;
        if !stays {
            registry.files.push((path.clone(), c_path));
        }
        Ok((PartialFile { path, stays }, file))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it in any case.
    pub fn remove(mut self) {
        self.stays = false;
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        registry().files.retain(|(path, _)| *path != self.path);
        // Gone already after a rename; otherwise there is nobody to tell.
        let _ = fs::remove_file(&self.path);
    }
}
