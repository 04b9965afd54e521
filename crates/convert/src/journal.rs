//! How far a run has certainly come: a small file beside the unfinished outputs, by which another run goes on.
//!
//! Text, one line after the other:
//!
//! | line | what |
//! |---|---|
//! | `bruce-quant journal 1` | the format |
//! | `plan <hash>` | what is being made of what: plan, layouts, size and time of every input file, the program's version |
//! | `done <n>` | chunks 0 to n-1, in reading order, are durable in every output; the last such line counts |
//!
//! A `done` line is written only after the data it speaks of has been made durable, so that losing the line costs work and
//! nothing else. A line without its end is not there. While a run is at work it holds a lock on the file.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hasher};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use gguf::PartialFile;

use crate::{Error, Input, Plan};

const FORMAT: &str = "bruce-quant journal 1";

/// The journal of a run, locked.
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    partial: PartialFile,
    fingerprint: String,
}

/// Where the journal of a run is whose first output is `target`.
pub(crate) fn path_for(target: &Path) -> PathBuf {
    gguf::hidden_name(target, ".journal")
}

impl Journal {
    /// Opens or makes the journal and locks it; returns it with the number of chunks that an earlier run of the same plan
    /// has done, `None` where there was none.
    pub fn open(target: &Path, fingerprint: String, stays: bool) -> Result<(Journal, Option<u64>), Error> {
        let path = path_for(target);
        let how = OpenOptions::new().read(true).write(true).create(true).truncate(false).to_owned();
        // Opened to stay until the lock shows that it is ours.
        let file = loop {
            let opened = PartialFile::open(path.clone(), &how, true);
            let (_, file) = opened.map_err(fail(&path, "create"))?;
            lock(&file).map_err(|source| match source.kind() {
                std::io::ErrorKind::WouldBlock => Error::Busy { path: target.to_owned() },
                _ => fail(&path, "lock")(source),
            })?;
            // The run that had the lock may have removed the file when it was done.
            if is_at(&file, &path) {
                break file;
            }
        };
        let (partial, _) = PartialFile::open(path.clone(), &how, stays).map_err(fail(&path, "create"))?;
        let mut text = Vec::new();
        (&file).take(1 << 20).read_to_end(&mut text).map_err(fail(&path, "read"))?;
        let done = parse(&text, &fingerprint);
        Ok((Journal { path, file, partial, fingerprint }, done))
    }

    /// Begins anew: nothing is done.
    pub fn restart(&mut self) -> Result<(), Error> {
        let text = format!("{FORMAT}\nplan {}\n", self.fingerprint);
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .and_then(|_| self.file.write_all(text.as_bytes()))
            .map_err(fail(&self.path, "write"))
    }

    /// Notes that the first `n` chunks are durable in every output.
    pub fn record(&self, n: u64) -> Result<(), Error> {
        let mut file = &self.file;
        file.seek(SeekFrom::End(0))
            .and_then(|_| file.write_all(format!("done {n}\n").as_bytes()))
            .map_err(fail(&self.path, "write"))
    }

    /// Makes what has been noted durable.
    pub fn sync(&self) -> Result<(), Error> {
        self.file.sync_all().map_err(fail(&self.path, "make durable"))
    }

    /// Removes it, when everything is finished.
    pub fn remove(self) {
        self.partial.remove();
    }
}

/// What the journal of a first output says is done, if there is one and it is of this plan.
pub(crate) fn peek(target: &Path, fingerprint: &str) -> Option<u64> {
    parse(&std::fs::read(path_for(target)).ok()?, fingerprint)
}

fn fail(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    let file = path.to_owned();
    move |source| Error::Journal { file, action, source }
}

#[cfg(unix)]
fn lock(file: &File) -> std::io::Result<()> {
    use rustix::fs::{FlockOperation, flock};
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        // A file system without locks.
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOLCK) => Ok(()),
        other => Ok(other?),
    }
}

/// Whether the path still leads to this file.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |m: std::fs::Metadata| (m.dev(), m.ino());
    file.metadata().ok().map(id) == path.metadata().ok().map(id)
}

#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}

#[cfg(not(unix))]
fn lock(_: &File) -> std::io::Result<()> {
    Ok(())
}

/// The chunks done, if the journal is of this plan.
fn parse(text: &[u8], fingerprint: &str) -> Option<u64> {
    let whole = &text[..text.iter().rposition(|byte| *byte == b'\n')?];
    let mut lines = std::str::from_utf8(whole).ok()?.split('\n');
    if lines.next() != Some(FORMAT) || lines.next()?.strip_prefix("plan ") != Some(fingerprint) {
        return None;
    }
    let mut done = 0;
    for line in lines {
        done = line.strip_prefix("done ")?.parse().ok()?;
    }
    Some(done)
}

/// A number that changes with everything that the outputs' bytes depend on.
pub(crate) fn fingerprint(input: &dyn Input, plan: &Plan, options: &str) -> String {
    struct Hashing(DefaultHasher);
    impl std::fmt::Write for Hashing {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.0.write(text.as_bytes());
            Ok(())
        }
    }
    let mut hash = Hashing(DefaultHasher::new());
    let _ = write!(hash, "{} {options} {:?}", env!("CARGO_PKG_VERSION"), plan.steps);
    for output in &plan.outputs {
        for part in 0..output.layout.n_parts() {
            hash.0.write(output.layout.part_header(part));
        }
    }
    for file in input.files() {
        let meta = file.metadata();
        let _ = write!(hash, "{:?}", meta.map(|m| (m.len(), m.modified().ok())).ok());
    }
    format!("{:016x}", hash.0.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_whole_line_counts() {
        let parsed = |text: &str| parse(text.as_bytes(), "ab");
        let head = "bruce-quant journal 1\nplan ab\n";
        assert_eq!(parsed(head), Some(0));
        assert_eq!(parsed(&format!("{head}done 7\ndone 12\n")), Some(12));
        assert_eq!(parsed(&format!("{head}done 7\ndone 1")), Some(7));
        assert_eq!(parsed(&format!("{head}done 7\n\0\0\0\n")), None);
        assert_eq!(parsed("bruce-quant journal 1\nplan ac\ndone 7\n"), None);
        assert_eq!(parsed("bruce-quant journal 2\nplan ab\ndone 7\n"), None);
        assert_eq!(parsed(""), None);
    }
}
