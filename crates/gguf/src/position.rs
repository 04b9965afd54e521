//! Files read and written by position, from several threads at once: nobody relies on the position that a file keeps.

use std::fs::File;
use std::io;

/// Fills `bytes` with what lies at `offset`.
///
/// # Errors
/// As the system has it; [`io::ErrorKind::UnexpectedEof`] where the file ends before.
pub fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset);
    #[cfg(windows)]
    windows::read_exact_at(file, bytes, offset)
}

/// Writes all of `bytes` at `offset`.
///
/// # Errors
/// As the system has it.
pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::write_all_at(file, bytes, offset);
    #[cfg(windows)]
    windows::write_all_at(file, bytes, offset)
}

/// Tells the system that `len` bytes at `offset` will be read soon (0: all that follow). Advice only.
pub fn read_soon(file: &File, offset: u64, len: u64) {
    #[cfg(target_os = "linux")]
    let _ = rustix::fs::fadvise(file, offset, std::num::NonZeroU64::new(len), rustix::fs::Advice::WillNeed);
    #[cfg(target_os = "macos")]
    let _ = rustix::fs::fcntl_rdadvise(file, offset, len);
    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    let _ = (file, offset, len);
}

/// A call may do a part of the work, or none where a signal came.
#[cfg(windows)]
mod windows {
    use std::fs::File;
    use std::io;
    use std::os::windows::fs::FileExt;

    pub(super) fn read_exact_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = done(file.seek_read(bytes, offset), io::ErrorKind::UnexpectedEof)?;
            bytes = &mut bytes[n..];
            offset += n as u64;
        }
        Ok(())
    }

    pub(super) fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = done(file.seek_write(bytes, offset), io::ErrorKind::WriteZero)?;
            bytes = &bytes[n..];
            offset += n as u64;
        }
        Ok(())
    }

    /// How many bytes a call moved; `at_end` is the error where it can move none.
    fn done(result: io::Result<usize>, at_end: io::ErrorKind) -> io::Result<usize> {
        match result {
            Ok(0) => Err(at_end.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_at_an_offset_is_read_there_and_no_further() {
        let file = tempfile::tempfile().expect("a file");
        write_all_at(&file, b"abc", 5).expect("room");
        write_all_at(&file, b"x", 0).expect("room");
        let mut bytes = [0; 3];
        read_exact_at(&file, &mut bytes, 4).expect("it is there");
        assert_eq!(&bytes, b"\0ab");
        let error = read_exact_at(&file, &mut bytes, 6).expect_err("two bytes are left");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        read_soon(&file, 0, 0);
    }
}
