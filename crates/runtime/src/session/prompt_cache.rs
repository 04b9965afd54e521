//! A session's tokens and cells in a file, so that a later run need not compute them again.
//!
//! Little-endian throughout:
//!
//! | bytes | |
//! |---|---|
//! | 8 | `BRUCEKV` and 0 |
//! | 4 | version, 1 |
//! | 8 | identity of model and computation, see `identity` |
//! | 4, 4 | ggml's numbers of the types of keys and of values |
//! | 8 | number of tokens |
//! | 4 each | tokens |
//! | | for each layer and each head of keys the keys of all tokens, then in the same way the values, as the cache has them |
//! | 8 | checksum of everything before it |

use super::Session;
use crate::Error;
use gguf::{NewFile, Overwrite};
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::Path;

const MAGIC: [u8; 8] = *b"BRUCEKV\0";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 36;
const CHECKSUM_BYTES: usize = 8;
/// Bytes of each tensor that tell models with the same shapes apart.
const SAMPLE_BYTES: usize = 64;

impl Session {
    /// Writes `tokens`, which are the first of this context, and their cells to `path`, in the place of what is there.
    ///
    /// # Errors
    /// [`Error::Gguf`] where writing fails; the file that was there stays then.
    ///
    /// # Panics
    /// When the context does not hold so many tokens.
    pub fn save_prompt(&self, path: &Path, tokens: &[u32]) -> Result<(), Error> {
        assert!(tokens.len() <= self.n_past, "{} tokens of {}", tokens.len(), self.n_past);
        let mut file = NewFile::create(path, Overwrite::Replace)?;
        let mut checksum = Checksum::default();
        let mut append = |bytes: &[u8]| {
            checksum.add(bytes);
            file.append(bytes)
        };
        append(&self.header(tokens.len()))?;
        append(&tokens.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>())?;
        let mut cells = Vec::new();
        for part in self.parts(tokens.len()) {
            cells.resize(part.n_bytes, 0);
            part.tensor.read(part.offset, &mut cells);
            append(&cells)?;
        }
        let sum = checksum.finish();
        file.append(&sum.to_le_bytes())?;
        Ok(file.finish()?)
    }

    /// Forgets what this context holds and reads what [`save_prompt`](Self::save_prompt) wrote; the tokens that it holds
    /// then. None, and an empty context, where there is no such file or it is empty.
    ///
    /// # Errors
    /// [`Error::PromptCache`] where the file is not one, is damaged, or is of another model or computation, and
    /// [`Error::PromptCacheIo`] where it can't be read; the context is empty then.
    pub fn load_prompt(&mut self, path: &Path) -> Result<Option<Vec<u32>>, Error> {
        self.truncate(0);
        let io = |source: std::io::Error| Error::PromptCacheIo { path: path.to_owned(), source };
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        let size = file.metadata().map_err(io)?.len();
        if size == 0 {
            return Ok(None);
        }
        let wrong = |field: &'static str, found: String, expected: String| {
            Err(Error::PromptCache { path: path.to_owned(), field, found, expected })
        };
        let smallest = (HEADER_BYTES + CHECKSUM_BYTES) as u64;
        if size < smallest {
            return wrong("size", format!("{size} bytes"), format!("at least {smallest}"));
        }
        let mut header = [0; HEADER_BYTES];
        file.read_exact(&mut header).map_err(io)?;
        let n_tokens = u64::from_le_bytes(header[28..36].try_into().expect("8 bytes"));
        let expected = self.header(0);
        // What each field is called, where it lies, and what it should say in words.
        let hexadecimal = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        for (field, range) in [
            ("magic", 0..8),
            ("version", 8..12),
            ("model and options", 12..20),
            ("type of keys", 20..24),
            ("type of values", 24..28),
        ] {
            let (found, expected) = (&header[range.clone()], &expected[range]);
            if found != expected {
                return wrong(field, hexadecimal(found), hexadecimal(expected));
            }
        }
        if n_tokens > self.n_ctx as u64 {
            return wrong("tokens", n_tokens.to_string(), format!("at most {}, the context", self.n_ctx));
        }
        let n_tokens = n_tokens as usize;
        let cells: usize = self.parts(n_tokens).iter().map(|part| part.n_bytes).sum();
        let expected = (HEADER_BYTES + 4 * n_tokens + cells + CHECKSUM_BYTES) as u64;
        if size != expected {
            return wrong("size", format!("{size} bytes"), format!("{expected} for {n_tokens} tokens"));
        }
        let mut checksum = Checksum::default();
        checksum.add(&header);
        let mut ids = vec![0; 4 * n_tokens];
        file.read_exact(&mut ids).map_err(io)?;
        checksum.add(&ids);
        let tokens: Vec<u32> = ids.as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id)).collect();
        let n_vocab = self.model.hparams().n_vocab;
        if let Some(id) = tokens.iter().find(|id| **id >= n_vocab) {
            return wrong("tokens", format!("token {id}"), format!("ids below {n_vocab}"));
        }
        let mut cells = Vec::new();
        for part in self.parts(n_tokens) {
            cells.resize(part.n_bytes, 0);
            file.read_exact(&mut cells).map_err(io)?;
            checksum.add(&cells);
            part.tensor.write(part.offset, &cells);
        }
        let mut sum = [0; CHECKSUM_BYTES];
        file.read_exact(&mut sum).map_err(io)?;
        let (found, expected) = (u64::from_le_bytes(sum), checksum.finish());
        if found != expected {
            return wrong("checksum", format!("{found:016x}"), format!("{expected:016x}, that of its bytes"));
        }
        self.n_past = n_tokens;
        Ok(Some(tokens))
    }

    fn header(&self, n_tokens: usize) -> Vec<u8> {
        let mut header = MAGIC.to_vec();
        header.extend(VERSION.to_le_bytes());
        header.extend(self.identity().to_le_bytes());
        header.extend(self.options.type_k.id().to_le_bytes());
        header.extend(self.options.type_v.id().to_le_bytes());
        header.extend((n_tokens as u64).to_le_bytes());
        header
    }

    /// A number that differs where cells would: metadata (the tokenizer's too), shapes, types and first bytes of all
    /// tensors, what was set in the place of metadata, and whose kernels compute.
    fn identity(&self) -> u64 {
        let (model, gguf) = (&self.model, self.model.gguf());
        let mut sum = Checksum::default();
        let said = write!(
            sum,
            "{:?} {:?} {} {:?} {}",
            model.hparams(),
            model.rope(),
            model.n_expert_used(),
            model.kernels(),
            self.options.flash_attention
        );
        let said = said.and_then(|()| {
            gguf.metadata().iter().try_for_each(|(key, value)| write!(sum, "{key}={value:?};"))
        });
        said.expect("a checksum takes everything");
        for tensor in gguf.tensors() {
            write!(sum, "{} {:?} {}", tensor.name, tensor.ne, tensor.ty.id()).expect("as above");
            let data = gguf.data(tensor);
            sum.add(&data[..data.len().min(SAMPLE_BYTES)]);
        }
        sum.finish()
    }

    /// Where the cells of `n_tokens` tokens lie.
    fn parts(&self, n_tokens: usize) -> Vec<Part> {
        let mut parts = Vec::new();
        if n_tokens == 0 {
            return parts;
        }
        for layer in 0..self.model.hparams().n_layer as usize {
            let (keys, values) = self.cache.layer(layer);
            for tensor in [keys, values] {
                let ([_, _, n_head_kv, _], nb) = (tensor.ne(), tensor.nb());
                parts.extend((0..n_head_kv).map(|head| Part {
                    tensor: tensor.clone(),
                    offset: head * nb[2],
                    n_bytes: n_tokens * nb[1],
                }));
            }
        }
        parts
    }
}

/// Cells of one head.
struct Part {
    tensor: ggml::Tensor,
    offset: usize,
    n_bytes: usize,
}

/// FNV-1a on words of 64 bits, the last of each addition filled up with zeros, and how many bytes there were. It finds
/// damage, not malice.
struct Checksum {
    hash: u64,
    n_bytes: u64,
}

impl Default for Checksum {
    fn default() -> Self {
        Checksum { hash: 0xcbf2_9ce4_8422_2325, n_bytes: 0 }
    }
}

impl Checksum {
    fn add(&mut self, bytes: &[u8]) {
        let mut mix =
            |word: u64| self.hash = (self.hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(29);
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| mix(u64::from_le_bytes(*word)));
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            mix(u64::from_le_bytes(word));
        }
        self.n_bytes += bytes.len() as u64;
    }

    fn finish(mut self) -> u64 {
        self.add(&self.n_bytes.to_le_bytes());
        self.hash
    }
}

impl std::fmt::Write for Checksum {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.add(text.as_bytes());
        Ok(())
    }
}
