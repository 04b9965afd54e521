//! The context of a session in a file: its tokens with their keys and values, so that they need not be computed again.
//!
//! All numbers are little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `BRUCE-KV` |
//! | 4 | version, 1 |
//! | 4 | number of layers |
//! | 4, 4 | ggml's numbers of the types of keys and of values |
//! | 8 | number of tokens `n` |
//! | 32 | what the values follow from: [`identity`] |
//! | 4 n | the tokens |
//! | | for each layer the keys of all tokens, then their values, head by head |
//! | 32 | SHA-256 of everything before |
//!
//! A file is read only by the model it was written with. It is written like every output: under its name when complete.

use crate::Error;
use crate::kv_cache::{Cells, KvCache};
use crate::model::Model;
use gguf::{NewFile, Overwrite};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

const MAGIC: [u8; 8] = *b"BRUCE-KV";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 64;
const SUM_BYTES: usize = 32;

/// Writes the first `tokens.len()` cells of `cache` as `path`, in place of a file that is there.
pub(crate) fn write(model: &Model, cache: &KvCache, tokens: &[u32], path: &Path) -> Result<(), Error> {
    let mut file = NewFile::create(path, Overwrite::Replace)?;
    let mut sum = Sha256::new();
    let mut append = |bytes: &[u8]| {
        sum.update(bytes);
        file.append(bytes)
    };
    append(&Header::of(model, cache, tokens.len()).to_bytes())?;
    append(&tokens.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>())?;
    for cells in cache.cells() {
        cells.save(tokens.len(), &mut append)?;
    }
    file.append(&sum.finalize())?;
    Ok(file.finish()?)
}

/// Fills the cells of `cache`, of which there are `n_ctx`, from a file, and gives the tokens they belong to. Tokens
/// that there is no room for are left out.
///
/// Where this fails, the cells hold zeros.
pub(crate) fn read(model: &Model, cache: &KvCache, n_ctx: usize, path: &Path) -> Result<Vec<u32>, Error> {
    let result = Reading::open(model, cache, path).and_then(|mut reading| {
        let tokens = reading.tokens(model.hparams().n_vocab)?;
        let n_kept = tokens.len().min(n_ctx);
        for cells in cache.cells() {
            cells.restore(tokens.len(), n_kept, |piece| reading.fill(piece))?;
        }
        reading.check_sum()?;
        Ok(tokens[..n_kept].to_vec())
    });
    if result.is_err() {
        cache.clear();
    }
    result
}

/// What the keys and values of a token follow from, besides the tokens before it: hyperparameters, rotary embedding,
/// experts used, and the weights, of which the directory and three samples of each tensor are taken.
fn identity(model: &Model) -> [u8; 32] {
    const SAMPLE_BYTES: usize = 256;
    let mut sum = Sha256::new();
    let settings = (model.hparams(), model.rope(), model.n_expert_used());
    sum.update(format!("{settings:?}"));
    for tensor in model.gguf().tensors() {
        sum.update(format!("{} {} {:?}", tensor.name, tensor.ty.name(), tensor.ne));
        let data = model.gguf().data(tensor);
        for start in [0, data.len() / 2, data.len().saturating_sub(SAMPLE_BYTES)] {
            sum.update(&data[start..data.len().min(start + SAMPLE_BYTES)]);
        }
    }
    sum.finalize().into()
}

/// The part of fixed size.
struct Header {
    n_layers: u32,
    type_k: u32,
    type_v: u32,
    n_tokens: u64,
    identity: [u8; 32],
}

impl Header {
    fn of(model: &Model, cache: &KvCache, n_tokens: usize) -> Header {
        let layer = cache.layer(0);
        Header {
            n_layers: model.hparams().n_layer,
            type_k: layer.keys.ty().id(),
            type_v: layer.values.ty().id(),
            n_tokens: n_tokens as u64,
            identity: identity(model),
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for number in [VERSION, self.n_layers, self.type_k, self.type_v] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.n_tokens.to_le_bytes());
        bytes.extend(self.identity);
        bytes
    }
}

/// A file being read, as far as it has come.
struct Reading<'a> {
    path: &'a Path,
    file: File,
    sum: Sha256,
    n_tokens: usize,
}

impl Reading<'_> {
    /// Reads the header and holds it against the model and the file's size.
    fn open<'a>(model: &Model, cache: &KvCache, path: &'a Path) -> Result<Reading<'a>, Error> {
        let cannot = |action: &'static str| io_error(path, action);
        let file = File::open(path).map_err(cannot("open"))?;
        let size = file.metadata().map_err(cannot("open"))?.len();
        let mut reading = Reading { path, file, sum: Sha256::new(), n_tokens: 0 };
        if size < (HEADER_BYTES + SUM_BYTES) as u64 {
            return Err(reading.wrong(
                "size",
                format!("{size} bytes"),
                "a file of a saved context".to_owned(),
            ));
        }
        let mut bytes = [0; HEADER_BYTES];
        reading.fill(&mut bytes)?;
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let mut expected = Header::of(model, cache, 0);
        if bytes[..8] != MAGIC {
            let found = format!("{:?}", String::from_utf8_lossy(&bytes[..8]));
            return Err(reading.wrong("magic", found, "\"BRUCE-KV\"".to_owned()));
        }
        for (field, at, wanted) in [("version", 8, VERSION), ("number of layers", 12, expected.n_layers)] {
            if number(at) != wanted {
                return Err(reading.wrong(field, number(at).to_string(), wanted.to_string()));
            }
        }
        for (field, at, wanted) in
            [("type of keys", 16, expected.type_k), ("type of values", 20, expected.type_v)]
        {
            if number(at) != wanted {
                let name = |id| quants::TensorType::from_id(id).map_or("an unknown one", |ty| ty.name());
                return Err(reading.wrong(field, name(number(at)).to_owned(), name(wanted).to_owned()));
            }
        }
        if bytes[32..64] != expected.identity {
            let found = "another model's, or another number of experts or other rope settings".to_owned();
            return Err(reading.wrong("model", found, format!("that of {}", model.gguf().path().display())));
        }
        expected.n_tokens = u64::from(number(24)) | u64::from(number(28)) << 32;
        let per_token: usize = 4 + cache.cells().map(Cells::cell_bytes).sum::<usize>();
        let wanted = u128::from(expected.n_tokens) * per_token as u128 + (HEADER_BYTES + SUM_BYTES) as u128;
        if u128::from(size) != wanted {
            let expected = format!("{wanted} bytes for {} tokens", expected.n_tokens);
            return Err(reading.wrong("size", format!("{size} bytes"), expected));
        }
        reading.n_tokens = expected.n_tokens as usize;
        Ok(reading)
    }

    fn tokens(&mut self, n_vocab: u32) -> Result<Vec<u32>, Error> {
        let mut bytes = vec![0; 4 * self.n_tokens];
        self.fill(&mut bytes)?;
        let ids = bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let ids: Vec<u32> = ids.collect();
        match ids.iter().find(|id| **id >= n_vocab) {
            Some(id) => Err(self.wrong("tokens", id.to_string(), format!("ids below {n_vocab}"))),
            None => Ok(ids),
        }
    }

    fn check_sum(mut self) -> Result<(), Error> {
        let mut found = [0; SUM_BYTES];
        self.file.read_exact(&mut found).map_err(io_error(self.path, "read"))?;
        if self.sum.finalize_reset()[..] == found[..] {
            return Ok(());
        }
        let expected = "what the sum at its end says".to_owned();
        Err(self.wrong("contents", "damaged bytes".to_owned(), expected))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        self.file.read_exact(bytes).map_err(io_error(self.path, "read"))?;
        self.sum.update(bytes);
        Ok(())
    }

    fn wrong(&self, field: &'static str, found: String, expected: String) -> Error {
        Error::SavedContext { path: self.path.to_path_buf(), field, found, expected }
    }
}

fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| gguf::Error::Io { path: path.to_path_buf(), action, source }.into()
}
