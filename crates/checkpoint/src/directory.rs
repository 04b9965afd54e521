//! Files of one checkpoint directory, opened without being led elsewhere.
//!
//! Names come from an index written by a stranger, and directories arrive as archives: a name must stay inside
//! the directory, also through symbolic links, and must be a regular file. One layout is let through: the Hub
//! cache, where `models--X/snapshots/REV/FILE` links to `models--X/blobs/HASH`.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result, quoted};
use crate::json;

/// A directory and where it really is.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    real: PathBuf,
}

impl Directory {
    pub(crate) fn open(path: &Path) -> Result<Directory> {
        let fail = |source| Error::Io { file: path.to_owned(), action: "cannot open", source };
        let real = path.canonicalize().map_err(fail)?;
        if !real.is_dir() {
            return Err(Error::malformed(
                path,
                "checkpoint",
                "a file",
                "a directory with config.json and *.safetensors",
            ));
        }
        Ok(Directory { path: path.to_owned(), real })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What the hub calls the model, where this is one in its cache: `name` of `models--org--name/snapshots/REV`.
    pub(crate) fn hub_name(&self) -> Option<String> {
        let cached = hub_cache_of(&self.real)?.file_name()?.to_str()?.strip_prefix("models--")?;
        cached.rsplit("--").next().filter(|name| !name.is_empty()).map(str::to_owned)
    }

    /// Where it is without links.
    pub(crate) fn real(&self) -> &Path {
        &self.real
    }

    /// The path of `name` as messages show it.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// File names in the directory, sorted; those that are not UTF-8 are left out.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        let fail = |source| Error::Io { file: self.path.clone(), action: "cannot list", source };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(fail)? {
            if let Ok(name) = entry.map_err(fail)?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// The name without links and only if it stays inside; `None` where there is no such file.
    fn resolve(&self, name: &str) -> Result<Option<PathBuf>> {
        if !is_inside(name) {
            return Err(Error::malformed(&self.path, "file name", quoted(name), INSIDE));
        }
        let path = self.path.join(name);
        let real = match path.canonicalize() {
            Ok(real) => real,
            Err(e) if e.kind() == io::ErrorKind::NotFound && path.is_symlink() => {
                return Err(Error::malformed(
                    path,
                    "file",
                    "a link to nothing",
                    "a file (a download unfinished?)",
                ));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Io { file: path, action: "cannot open", source }),
        };
        if real.starts_with(&self.real) || self.is_hub_blob(&real) {
            return Ok(Some(real));
        }
        let found = format!("a link to {}", quoted(&real.to_string_lossy()));
        Err(Error::malformed(path, "file", found, "a file inside the checkpoint directory (copy it there)"))
    }

    fn is_hub_blob(&self, real: &Path) -> bool {
        hub_cache_of(&self.real).is_some_and(|model| Some(model.join("blobs").as_path()) == real.parent())
    }

    /// The file and its length, or `None` where there is none of that name.
    pub(crate) fn file(&self, name: &str) -> Result<Option<(File, u64)>> {
        let Some(real) = self.resolve(name)? else { return Ok(None) };
        let path = self.path.join(name);
        let fail = |source| Error::Io { file: path.clone(), action: "cannot open", source };
        let file = open_without_blocking(&real).map_err(fail)?;
        let meta = file.metadata().map_err(fail)?;
        if !meta.is_file() {
            return Err(Error::malformed(path, "file", file_kind(&meta), "a regular file"));
        }
        Ok(Some((file, meta.len())))
    }

    /// The whole file, or `None` where there is none of that name.
    ///
    /// # Errors
    /// Longer than `limit` bytes, apart from what [`Directory::file`] refuses.
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some((file, len)) = self.file(name)? else { return Ok(None) };
        let path = self.path.join(name);
        if len > limit {
            return Err(Error::malformed(path, "size", format!("{len} bytes"), format!("at most {limit}")));
        }
        let mut bytes = Vec::with_capacity(len as usize);
        let read = file.take(limit).read_to_end(&mut bytes);
        read.map_err(|source| Error::Io { file: path, action: "cannot read", source })?;
        Ok(Some(bytes))
    }

    /// The JSON object in the file, or `None` where there is none of that name.
    pub(crate) fn read_json(&self, name: &str, limit: u64) -> Result<Option<Map<String, Value>>> {
        let Some(bytes) = self.read(name, limit)? else { return Ok(None) };
        json::parse_object(&self.join(name), &bytes).map(Some)
    }
}

/// What the names of a checkpoint's files are expected to be.
pub(crate) const INSIDE: &str = "a name inside the checkpoint directory";

/// Whether a name can't lead out of the directory that it is looked for in.
pub(crate) fn is_inside(name: &str) -> bool {
    !name.is_empty() && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

/// Opening a FIFO for reading would otherwise wait for a writer for ever.
#[cfg(unix)]
fn open_without_blocking(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)
}

#[cfg(not(unix))]
fn open_without_blocking(path: &Path) -> io::Result<File> {
    File::open(path)
}

fn file_kind(meta: &std::fs::Metadata) -> &'static str {
    if meta.is_dir() {
        return "a directory";
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if meta.file_type().is_fifo() {
            return "a FIFO";
        }
    }
    "a device or socket"
}

/// The model's folder in the hub's cache, for a directory that is one of its snapshots: `models--org--name` of
/// `models--org--name/snapshots/REV`.
pub fn hub_cache_of(real: &Path) -> Option<&Path> {
    let snapshots =
        real.parent().filter(|parent| parent.file_name().is_some_and(|name| name == "snapshots"))?;
    snapshots.parent().filter(|model| model.join("blobs").is_dir())
}
