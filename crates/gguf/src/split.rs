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

#[cfg(test)]
mod tests {
    use super::*;

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
