//! Reads the format that llama-imatrix wrote until 2025, and still does under `--output-format dat`.

use std::path::Path;

use crate::read::{check_sums, malformed, shown};
use crate::{Entry, Error, Imatrix};

/// What a file's bytes hold.
///
/// # Errors
/// The file ends too early, a number is impossible, a name is there twice or is no text, a value is not finite.
pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Imatrix, Error> {
    let mut cursor = Cursor { path, rest: bytes };
    let n_entries = cursor.count("number of entries", 1)?;
    let mut imatrix = Imatrix::default();
    for index in 0..n_entries {
        let field = format!("entry {index}");
        let n_name = cursor.count(&format!("{field}: length of the name"), 1)?;
        let name = cursor.take(&format!("{field}: name"), n_name)?;
        let name = std::str::from_utf8(name)
            .ok()
            .filter(|name| !name.contains(char::is_control))
            .ok_or_else(|| {
                let found = shown(&String::from_utf8_lossy(name));
                malformed(path, &format!("{field}: name"), found, "the name of a tensor")
            })?
            .to_owned();
        let n_calls = cursor.number(&format!("{name}: number of calls"))?;
        let n_values = cursor.count(&format!("{name}: number of values"), 1)?;
        let n_bytes = n_values.saturating_mul(4);
        let values = cursor.take(&format!("{name}: values"), n_bytes)?;
        let sums: Vec<f32> = values.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        check_sums(path, &name, &sums)?;
        // Without calls the values are taken as they are, which a single one leaves them.
        let counts = vec![u64::try_from(n_calls).unwrap_or(0).max(1)];
        if imatrix.entries.insert(name.clone(), Entry { sums, counts }).is_some() {
            return Err(malformed(path, &name, "a second entry".to_owned(), "one for each tensor"));
        }
    }
    // What follows was added later, and a cut file is as good as one from before.
    if let Ok(n_chunks) = cursor.number("number of chunks") {
        imatrix.chunk_count = u32::try_from(n_chunks).unwrap_or(0);
        let dataset = cursor.count("length of the dataset's name", 1).ok();
        if let Some(name) = dataset.and_then(|n| cursor.take("dataset", n).ok()) {
            imatrix.datasets.push(String::from_utf8_lossy(name).into_owned());
        }
    }
    Ok(imatrix)
}

struct Cursor<'a> {
    path: &'a Path,
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, field: &str, n: usize) -> Result<&'a [u8], Error> {
        let Some((taken, rest)) = self.rest.split_at_checked(n) else {
            let found = format!("the end of the file after {} bytes", self.rest.len());
            return Err(malformed(self.path, field, found, &format!("{n} bytes")));
        };
        self.rest = rest;
        Ok(taken)
    }

    fn number(&mut self, field: &str) -> Result<i32, Error> {
        let bytes = self.take(field, 4)?;
        Ok(i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// A number of things of which there are at least `least`, and each takes at least a byte.
    fn count(&mut self, field: &str, least: usize) -> Result<usize, Error> {
        let found = self.number(field)?;
        match usize::try_from(found) {
            Ok(n) if n >= least && n <= self.rest.len() => Ok(n),
            _ => {
                let expected = format!("{least} to {}, in a legacy file of importances", self.rest.len());
                Err(malformed(self.path, field, found.to_string(), &expected))
            }
        }
    }
}
