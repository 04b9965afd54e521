//! Memory-mapped files, and what happens when one changes under us.
//!
//! # Contract
//! A mapping shows the file itself: if another process truncates it, touching the lost pages raises SIGBUS, and if
//! another process writes to it, the bytes change while we look. Rust can't make either impossible, so users of this
//! crate promise not to modify a model file while a program uses it. If the promise is broken:
//! - Truncated: where the program has called [`install_fault_handler`], it ends with exit code 1 and a message that
//!   names the file; its unfinished output files are removed. Without the handler it dies of the signal.
//! - Overwritten: weights become wrong numbers. Nothing is read or written out of bounds, because all that is used as a
//!   size or an index was copied and checked when the file was opened.
//!
//! Replacing a model by renaming another file over it is always safe: a mapping keeps the old file.
#![allow(unsafe_code)] // mapping a file, and a signal handler

use crate::Error;
use memmap2::Mmap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Maps a whole file for reading.
///
/// # Errors
/// [`Error::Map`] when the system refuses.
pub(crate) fn map(path: &Path, file: &File) -> Result<Arc<Mmap>, Error> {
    // SAFETY: the contract at the top of this module: nobody modifies the file while it is in use.
    let map = unsafe { Mmap::map(file) }.map_err(|source| {
        let size = file.metadata().map_or(0, |metadata| metadata.len());
        Error::Map { path: path.to_path_buf(), size, source }
    })?;
    // Where the file system can (XFS, and ext4 since Linux 6.16), the file is then read 2 MiB at a time and mapped by large
    // pages, which spares the processor most of its walks through page tables. Elsewhere nothing is lost.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    let map = Arc::new(map);
    #[cfg(unix)]
    fault::watch(path, &map);
    Ok(map)
}

/// Asks the system to read a range of a mapping soon. Advice only: where it is not understood nothing is lost.
pub(crate) fn will_need(map: &Mmap, offset: u64, len: u64) {
    #[cfg(unix)]
    let _ = map.advise_range(memmap2::Advice::WillNeed, offset as usize, len as usize);
    #[cfg(not(unix))]
    let _ = (map, offset, len);
}

/// Brings a range of a mapping into memory and waits for it: in the order of the file and by large reads, as faults seldom are.
/// False where the system can't do that, or not all of the range is there any more.
pub fn populate(map: &Mmap, range: Range<u64>) -> bool {
    let (start, len) = (range.start as usize, range.end.saturating_sub(range.start) as usize);
    #[cfg(target_os = "linux")]
    return map.advise_range(memmap2::Advice::PopulateRead, start, len).is_ok();
    #[cfg(all(unix, not(target_os = "linux")))]
    return map.advise_range(memmap2::Advice::WillNeed, start, len).is_ok();
    #[cfg(not(unix))]
    return false;
}

/// Lets go of the pages of a range, which count as the process's own memory until then. They are read again when touched.
pub(crate) fn release(map: &Mmap, offset: u64, len: u64) {
    #[cfg(unix)]
    {
        let advice = memmap2::UncheckedAdvice::DontNeed;
        // SAFETY: the mapping is one of a file that nobody writes to, so that pages come back as they were.
        let _ = unsafe { map.unchecked_advise_range(advice, offset as usize, len as usize) };
    }
    #[cfg(not(unix))]
    let _ = (map, offset, len);
}

/// Makes the loss of a mapped page (the file was truncated, or its disk failed) end the program with a message and
/// exit code 1 instead of the bare signal SIGBUS, and removes unfinished output files first. For programs, once, at
/// their start.
///
/// A SIGBUS that no mapping of this crate explains goes to whoever handled it before. SIGXFSZ is ignored, so that writing
/// beyond a limit on the size of files is an error of the write.
pub fn install_fault_handler() {
    #[cfg(unix)]
    fault::install();
}

#[cfg(unix)]
mod fault {
    //! The handler of SIGBUS. It runs inside whatever code touched the page, so it may only do what is
    //! async-signal-safe: it neither allocates nor waits, and takes locks only by trying.

    use super::*;
    use crate::partial;
    use std::ffi::CStr;
    use std::sync::{Mutex, OnceLock, TryLockError, Weak};

    /// A mapping, and the beginning of the message about it.
    struct Watched {
        map: Weak<Mmap>,
        start: usize,
        len: usize,
        message: Vec<u8>,
    }

    static WATCHED: Mutex<Vec<Watched>> = Mutex::new(Vec::new());

    /// What was to be done on a SIGBUS before.
    static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

    pub(super) fn watch(path: &Path, map: &Arc<Mmap>) {
        // Control characters of a file's name don't belong on a terminal.
        let name = path.display().to_string().replace(char::is_control, "?");
        let message = format!("error: {name}: data: found no page at byte ").into_bytes();
        let (start, len) = (map.as_ptr() as usize, map.len());
        let mut watched = WATCHED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        watched.retain(|other| other.map.strong_count() > 0);
        watched.push(Watched { map: Arc::downgrade(map), start, len, message });
    }

    pub(super) fn install() {
        // SAFETY: both structures are plain data that sigaction fills or reads; ignoring a signal needs no handler; the action is complete (no mask, and
        // an alternate stack, which Rust gives its threads), and its handler has the signature that SA_SIGINFO asks for.
        unsafe {
            let mut previous: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut previous) != 0
                || PREVIOUS.set(previous).is_err()
            {
                return; // installed before
            }
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        }
    }

    extern "C" fn handle(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the system passes a valid structure, and for SIGBUS its address field is set.
        let address = unsafe { (*info).si_addr() } as usize;
        let watched = match WATCHED.try_lock() {
            Ok(watched) => Some(watched),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            // Somebody is opening a file at this moment; the page is one of ours in all likelihood.
            Err(TryLockError::WouldBlock) => None,
        };
        match &watched {
            None => write(b"error: data: found no page"),
            Some(watched) => {
                let hit = watched
                    .iter()
                    .find(|w| w.map.strong_count() > 0 && (w.start..w.start + w.len).contains(&address));
                let Some(hit) = hit else {
                    hand_on();
                    return;
                };
                write(&hit.message);
                write(decimal(address - hit.start, &mut [0; 20]));
            }
        }
        write(b", expected the file to stay as it was opened (it was truncated, or its disk fails)\n");
        partial::for_each_partial_file(remove);
        // SAFETY: ends the process without running anything else.
        unsafe { libc::_exit(1) }
    }

    /// Puts the former handler back. The instruction that faulted then runs again, and faults for that one.
    fn hand_on() {
        let previous = PREVIOUS.get().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: async-signal-safe; the action is one that sigaction itself returned.
        unsafe {
            libc::sigaction(libc::SIGBUS, previous, std::ptr::null_mut());
        }
    }

    fn write(bytes: &[u8]) {
        // SAFETY: async-signal-safe, and the bytes are valid. There is nobody to tell of a failure.
        unsafe {
            libc::write(libc::STDERR_FILENO, bytes.as_ptr().cast(), bytes.len());
        }
    }

    fn remove(path: &CStr) {
        // SAFETY: async-signal-safe, and the path ends with a NUL.
        unsafe {
            libc::unlink(path.as_ptr());
        }
    }

    /// Digits of a number, without formatting machinery, which might allocate.
    fn decimal(mut n: usize, buffer: &mut [u8; 20]) -> &[u8] {
        let mut at = buffer.len();
        loop {
            at -= 1;
            buffer[at] = b'0' + (n % 10) as u8;
            n /= 10;
            if n == 0 {
                return &buffer[at..];
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use std::io;

        #[test]
        fn numbers_are_written_in_decimal() {
            for n in [0, 7, 10, 4096, usize::MAX] {
                assert_eq!(decimal(n, &mut [0; 20]), n.to_string().as_bytes());
            }
        }

        #[test]
        #[cfg(target_os = "linux")]
        fn what_a_file_has_lost_can_not_be_populated() -> io::Result<()> {
            let file = tempfile::NamedTempFile::new()?;
            file.as_file().set_len(1 << 20)?;
            let map = map(file.path(), file.as_file()).expect("a readable file");
            assert!(populate(&map, 5000..300_000) && populate(&map, 0..1 << 20) && populate(&map, 7..7));
            file.as_file().set_len(4096)?;
            assert!(!populate(&map, 0..1 << 20));
            assert!(populate(&map, 0..100));
            Ok(())
        }

        #[test]
        fn mappings_are_watched_until_the_last_user_is_gone() -> io::Result<()> {
            let mut file = tempfile::NamedTempFile::new()?;
            io::Write::write_all(&mut file, b"GGUF")?;
            let count = || {
                let watched = WATCHED.lock().expect("not poisoned");
                let name = file.path().display().to_string();
                let ours = |w: &&Watched| String::from_utf8_lossy(&w.message).contains(&name);
                watched.iter().filter(ours).filter(|w| w.map.strong_count() > 0).count()
            };
            let map = map(file.path(), file.as_file()).expect("a readable file");
            let second = Arc::clone(&map);
            drop(map);
            assert_eq!(count(), 1);
            drop(second);
            assert_eq!(count(), 0);
            Ok(())
        }
    }
}
