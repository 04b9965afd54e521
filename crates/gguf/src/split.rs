//! Names and metadata of files in parts, as llama-gguf-split makes them.
//!
//! Part I of N is called `prefix-0000I-of-0000N.gguf` and says the same in its metadata: `split.no` (u16, from 0),
//! `split.count` (u16), `split.tensors.count` (i32, over all parts). The model's own metadata is in the first part.

use std::path::{Path, PathBuf};

pub(crate) const SPLIT_COUNT: &str = "split.count";
pub(crate) const SPLIT_NO: &str = "split.no";
pub(crate) const SPLIT_TENSORS: &str = "split.tensors.count";

/// What the name of a part says: `dir/name-00002-of-00003.gguf` is a part of `dir/name` in 3 parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitName {
    directory: PathBuf,
    prefix: String,
    n_parts: u32,
}

impl SplitName {
    /// What the name of a file says; `None` where it is not that of a part.
    pub fn of(path: &Path) -> Option<SplitName> {
        let text = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, n) = text.rsplit_once("-of-")?;
        let (prefix, i) = rest.rsplit_once('-')?;
        if [i, n].iter().any(|digits| digits.len() != 5 || !digits.bytes().all(|b| b.is_ascii_digit())) {
            return None;
        }
        let directory = path.parent().unwrap_or(Path::new("")).to_path_buf();
        Some(SplitName { directory, prefix: prefix.to_owned(), n_parts: n.parse().ok()? })
    }

    /// The name without its number.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Number of parts.
    pub fn n_parts(&self) -> u32 {
        self.n_parts
    }

    /// Path of a part, counted from 0 as in the metadata; names count from 1.
    pub fn part(&self, index: u32) -> PathBuf {
        self.directory.join(format!("{}-{:05}-of-{:05}.gguf", self.prefix, index + 1, self.n_parts))
    }
}

/// The files of an output called `target` that has so many parts: one keeps the name, several add their numbers to it.
pub(crate) fn file_names(target: &Path, n_parts: usize) -> Vec<PathBuf> {
    if n_parts == 1 {
        return vec![target.to_path_buf()];
    }
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let prefix = name.strip_suffix(".gguf").unwrap_or(&name).to_owned();
    let directory = target.parent().unwrap_or(Path::new("")).to_path_buf();
    let split = SplitName { directory, prefix, n_parts: n_parts as u32 };
    (0..split.n_parts).map(|i| split.part(i)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_in_parts_add_numbers_to_the_name() {
        assert_eq!(file_names(Path::new("dir/m.gguf"), 1), [Path::new("dir/m.gguf")]);
        let parts = file_names(Path::new("dir/m.gguf"), 2);
        assert_eq!(parts, [Path::new("dir/m-00001-of-00002.gguf"), Path::new("dir/m-00002-of-00002.gguf")]);
        assert_eq!(SplitName::of(&parts[1]).expect("a part").part(0), parts[0]);
    }

    #[test]
    fn names_of_parts_lead_to_all_parts() {
        let name = SplitName::of(Path::new("dir/a-00002-of-b-00002-of-00010.gguf")).expect("a part");
        assert_eq!(name.n_parts, 10);
        assert_eq!(name.part(0), Path::new("dir/a-00002-of-b-00001-of-00010.gguf"));
        assert_eq!(name.part(9), Path::new("dir/a-00002-of-b-00010-of-00010.gguf"));
        for other in
            ["a.gguf", "a-2-of-3.gguf", "a-00001-of-00003", "a-00001-of-+0003.gguf", "00001-of-00003.gguf"]
        {
            assert!(SplitName::of(Path::new(other)).is_none(), "{other}");
        }
    }
}
