//! Where outputs go, and whether they may and can go there.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use bruce::exit::{self, UsageError};
use bruce::size;
use convert::{Input, Plan};
use model_spec::FileType;

use crate::config::{Config, Fitted};

/// The path of every output, in the order of the plan.
pub fn paths(config: &Config, plan: &Plan) -> Result<Vec<PathBuf>, anyhow::Error> {
    let dir = match &config.output {
        Some(path) if path.is_dir() => path.clone(),
        Some(path) if plan.outputs.len() == 1 => {
            if ends_as_directory(path) {
                bail!("{}: found no such directory, expected one to write into", path.display());
            }
            return Ok(vec![path.clone()]);
        }
        Some(path) => {
            let what = format!("-o {}: expected a directory, as there are several types", path.display());
            return Err(UsageError(what).into());
        }
        None => beside(&config.model)?,
    };
    let mut name = file_name_part(&base_name(config, plan));
    // The type stays last, where clients of hubs look for it.
    if let Fitted::ToTarget(_, size) = &config.fitted {
        name = format!("{name}-{}", file_name_part(size));
    }
    Ok(plan.outputs.iter().map(|o| dir.join(format!("{name}-{}.gguf", o.file_type))).collect())
}

/// Directory names that say nothing about the model in them.
const NAMELESS: &[&str] =
    &["model", "models", "merged", "merge", "output", "out", "checkpoint", "hf", "final"];

/// What the files are called: as the user says, else as the directory or file is called, else as the model is. The
/// directory comes before the model because that is the name its owner sees, spelled as they spell it.
fn base_name(config: &Config, plan: &Plan) -> String {
    if config.plan.name.is_none()
        && config.model.is_file()
        && let Some(name) = config.model.file_name()
    {
        return without_type(&name.to_string_lossy()).to_owned();
    }
    let directory = config.model.canonicalize().ok();
    let directory =
        directory.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    let is_hash = |name: &str| name.len() >= 32 && name.bytes().all(|b| b.is_ascii_hexdigit());
    let is_cached = config.model.canonicalize().is_ok_and(|model| checkpoint::hub_cache_of(&model).is_some());
    match directory {
        Some(name)
            if config.plan.name.is_none()
                && !NAMELESS.contains(&name.to_lowercase().as_str())
                && !is_hash(&name)
                && !is_cached =>
        {
            name
        }
        _ => plan.name.clone(),
    }
}

/// The name of a GGUF file without what its outputs have of their own: `m-BF16-00001-of-00002.gguf` is `m`.
pub fn without_type(file_name: &str) -> &str {
    let name = file_name.strip_suffix(".gguf").unwrap_or(file_name);
    let name = gguf::SplitName::of(Path::new(file_name)).map_or(name, |part| &name[..part.prefix().len()]);
    match name.rsplit_once(['-', '.']) {
        // File types have numbers too, but no file is called by them.
        Some((stem, ty))
            if !stem.is_empty() && ty.parse::<u32>().is_err() && FileType::from_name(ty).is_some() =>
        {
            stem
        }
        _ => name,
    }
}

fn ends_as_directory(path: &Path) -> bool {
    let text = path.as_os_str().as_encoded_bytes();
    text.ends_with(b"/")
        || matches!(path.components().next_back(), Some(Component::CurDir | Component::ParentDir))
}

/// The directory that holds the checkpoint directory or GGUF file; for one in the hub's cache, which others keep, the
/// working directory.
fn beside(model: &Path) -> Result<PathBuf, anyhow::Error> {
    let whole = model.canonicalize().with_context(|| format!("{}: cannot resolve", model.display()))?;
    if checkpoint::hub_cache_of(&whole).is_some() {
        return Ok(PathBuf::new());
    }
    let parent = whole.parent().map(Path::to_owned).unwrap_or(whole);
    // Shown as it was typed, where that means the same.
    match model.parent() {
        Some(typed) if typed.as_os_str().is_empty() && model.components().count() == 1 => {
            let is_name = matches!(model.components().next(), Some(Component::Normal(_)));
            // A slash at the end would make the link look like the directory.
            let is_link = model.components().collect::<PathBuf>().is_symlink();
            Ok(if is_name && !is_link { PathBuf::new() } else { parent })
        }
        _ => Ok(parent),
    }
}

/// A name as part of a file name: spaces become hyphens, what a file name cannot hold goes.
fn file_name_part(name: &str) -> String {
    let kept = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
    let mut out: String = name.trim().chars().map(|c| if kept(c) { c } else { '-' }).collect();
    while out.contains("--") {
        out = out.replace("--", "-");
    }
    // At most 255 bytes fit a file name, type and suffix included; a leading dot would hide the file.
    while out.len() > 200 {
        out.pop();
    }
    let out = out.trim_matches(['-', '.']);
    if out.is_empty() { "model".to_owned() } else { out.to_owned() }
}

/// Checks that nothing is in the way of the outputs, but for those that are `finished` already.
pub fn check(
    config: &Config,
    input: &dyn Input,
    plan: &Plan,
    paths: &[PathBuf],
    finished: &[usize],
) -> Result<(), anyhow::Error> {
    let unfinished = plan.outputs.iter().zip(paths).enumerate().filter(|(i, _)| !finished.contains(i));
    let files = unfinished.flat_map(|(_, (output, path))| output.layout.file_names(path));
    for path in &files.collect::<Vec<_>>() {
        let parent = parent_of(path);
        let meta = parent.metadata().with_context(|| format!("{}: output directory", parent.display()))?;
        if !meta.is_dir() {
            bail!("{}: found a file, expected a directory", parent.display());
        }
        let Ok(meta) = path.metadata() else { continue };
        if meta.is_dir() {
            bail!("{}: output: found a directory, expected a file", path.display());
        }
        if !meta.is_file() {
            let kind = if meta.file_type().is_fifo() { "a pipe" } else { "a device or socket" };
            bail!("{}: output: found {kind}, expected a file", path.display());
        }
        if let Some(input) = same_file_in(input, &meta) {
            bail!("{}: output: found the input {}, expected another file", path.display(), input.display());
        }
        if config.force && !is_gguf(path) {
            bail!("{}: output: found a file that is not GGUF, expected one to replace", path.display());
        }
        if !config.force {
            let error = anyhow!("{}: output: found an existing file, expected none", path.display());
            return Err(exit::with_hint(error, "--force replaces it"));
        }
    }
    Ok(())
}

/// Whether a file is GGUF by its name, as a damaged one may be, or by its beginning.
fn is_gguf(path: &Path) -> bool {
    let begins = || {
        let mut magic = [0; 4];
        File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"GGUF"
    };
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) || begins()
}

/// The path of the model card beside the outputs, which may be written.
///
/// # Errors
/// A file is there, and either may not be replaced or belongs to the input.
pub fn card_path(config: &Config, input: &dyn Input, paths: &[PathBuf]) -> Result<PathBuf, anyhow::Error> {
    let path = crate::card::beside(&paths[0]);
    if let Ok(meta) = path.metadata()
        && let Some(input) = same_file_in(input, &meta)
    {
        bail!("{}: model card: found the input's {}, expected another file", path.display(), input.display());
    }
    crate::card::check_free(&path, config.force)?;
    Ok(path)
}

/// The file of the input, of a checkpoint any file in its directory, that `meta` belongs to, directly or by link.
fn same_file_in(input: &dyn Input, meta: &std::fs::Metadata) -> Option<PathBuf> {
    let beside = std::fs::read_dir(input.path()).into_iter().flatten();
    let beside = beside.filter_map(|entry| Some(entry.ok()?.path()));
    input
        .files()
        .into_iter()
        .map(Path::to_owned)
        .chain(beside)
        .find(|path| path.metadata().is_ok_and(|m| (m.dev(), m.ino()) == (meta.dev(), meta.ino())))
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// What one file system has and is asked for.
pub struct Room {
    /// A directory on it.
    pub dir: PathBuf,
    /// Bytes that a user may still write.
    pub free: u64,
    /// Bytes of the outputs that go there.
    pub needed: u64,
}

impl Room {
    /// Whether the outputs fit.
    pub fn is_enough(&self) -> bool {
        self.needed <= self.free
    }
}

/// The file systems that outputs go to. One whose free space cannot be learned is left out.
pub fn rooms(plan: &Plan, paths: &[PathBuf]) -> Result<Vec<Room>, anyhow::Error> {
    let mut rooms: Vec<(u64, Room)> = Vec::new();
    for (output, path) in plan.outputs.iter().zip(paths) {
        let dir = parent_of(path);
        let Ok(meta) = dir.metadata() else { continue };
        // What an interrupted run left is used again, or makes room.
        let left = gguf::Writer::resumable_files(path, &output.layout);
        let held: u64 = left.iter().filter_map(|file| Some(file.metadata().ok()?.blocks() * 512)).sum();
        let needed = output.layout.total_size().saturating_sub(held);
        if let Some((_, room)) = rooms.iter_mut().find(|(dev, _)| *dev == meta.dev()) {
            room.needed += needed;
            continue;
        }
        let Ok(stat) = rustix::fs::statvfs(dir) else { continue };
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        rooms.push((meta.dev(), Room { dir: dir.to_owned(), free, needed }));
    }
    Ok(rooms.into_iter().map(|(_, room)| room).collect())
}

/// Refuses to begin what the disk has no room for.
pub fn check_room(rooms: &[Room]) -> Result<(), anyhow::Error> {
    match rooms.iter().find(|room| !room.is_enough()) {
        None => Ok(()),
        Some(room) => Err(exit::with_hint(
            anyhow!(
                "{}: disk space: found {} free, expected {}",
                room.dir.display(),
                size::bytes(room.free),
                size::bytes(room.needed)
            ),
            "-o writes to another disk",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_file_names() {
        assert_eq!(file_name_part("BurningBruce 004"), "BurningBruce-004");
        assert_eq!(file_name_part("  a/b\\c  d "), "a-b-c-d");
        assert_eq!(file_name_part("../../etc/passwd"), "etc-passwd");
        assert_eq!(file_name_part("\u{1b}[2J"), "2J");
        assert_eq!(file_name_part("…"), "model");
        for (file, name) in [
            ("model-BF16.gguf", "model"),
            ("mixtral-8x7b-v0.1.Q4_K_M.gguf", "mixtral-8x7b-v0.1"),
            ("m-f16-00002-of-00003.gguf", "m"),
            ("m-00002-of-00003.gguf", "m"),
            ("m-1.gguf", "m-1"),
            ("m", "m"),
        ] {
            assert_eq!(without_type(file), name, "{file}");
        }
        assert!(file_name_part(&"ü".repeat(300)).len() <= 200);
    }
}
