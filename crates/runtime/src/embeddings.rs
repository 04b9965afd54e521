//! Token embeddings that stay in the file.
//!
//! A token needs one row of the table, some KB of what may be hundreds of MB. Where experts are streamed, memory is short:
//! so the rows of each micro-batch are read by position, past the page cache as experts are, and the table takes no memory.

use crate::Error;
use expert_pool::{Files, N_READERS};
use ggml::{Buffer, BufferType, Context, Tensor, Type};
use gguf::TensorInfo;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The table in the file.
pub(crate) struct Embeddings {
    files: Files,
    info: TensorInfo,
    ty: Type,
}

impl Embeddings {
    /// The table `info`, a tensor `[n_embd, n_vocab]` of these files.
    ///
    /// # Errors
    /// [`Error::Ggml`] for a type that ggml doesn't know.
    pub fn new(files: Files, info: &TensorInfo) -> Result<Embeddings, Error> {
        Ok(Embeddings { files, info: info.clone(), ty: Type::from_id(info.ty.id())? })
    }

    /// Room for the rows of `n_tokens` tokens: `[n_embd, n_tokens]` in the table's type, where the CPU looks them up.
    ///
    /// # Errors
    /// [`Error::Ggml`] where there is no memory.
    pub fn rows(&self, n_tokens: usize) -> Result<Tensor, Error> {
        let context = Context::new(1);
        let tensor = context.tensor("token_embd.rows", self.ty, &[self.info.ne[0] as usize, n_tokens]);
        // As a weight it keeps the operation on the CPU, as the table would.
        Buffer::allocate(BufferType::cpu(), std::slice::from_ref(&tensor), "embeddings")?.set_weights();
        Ok(tensor)
    }

    /// Reads the rows of `tokens`, each once, to `rows`, and tells which row is whose.
    ///
    /// # Errors
    /// [`Error::ExpertPool`] where the file can't be read.
    pub fn read(&self, tokens: &[u32], rows: &Tensor) -> Result<Vec<i32>, Error> {
        let (mut distinct, mut numbers) = (Vec::new(), HashMap::new());
        let place = |token: &u32| {
            *numbers.entry(*token).or_insert_with(|| {
                distinct.push(*token);
                distinct.len() as i32 - 1
            })
        };
        let places = tokens.iter().map(place).collect();
        let next = AtomicUsize::new(0);
        let read_some = || -> Result<(), Error> {
            loop {
                let row = next.fetch_add(1, Ordering::Relaxed);
                let Some(token) = distinct.get(row) else { return Ok(()) };
                self.read_row(*token, row, rows)?;
            }
        };
        std::thread::scope(|scope| {
            let n_readers = N_READERS.min(distinct.len());
            let others: Vec<_> = (1..n_readers).map(|_| scope.spawn(read_some)).collect();
            let mut done = read_some();
            for other in others {
                done = done.and(other.join().expect("reading does not panic"));
            }
            done
        })?;
        Ok(places)
    }

    fn read_row(&self, token: u32, row: usize, rows: &Tensor) -> Result<(), Error> {
        let n_bytes = self.ty.row_bytes(self.info.ne[0] as usize);
        let offset = self.info.offset + u64::from(token) * n_bytes as u64;
        let mut write = |at: usize, bytes: &[u8]| rows.write(row * n_bytes + at, bytes);
        Ok(self.files.read_tensor(self.info.part, offset, n_bytes as u64, &self.info.name, &mut write)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quants::TensorType;

    #[test]
    fn every_token_gets_its_row_and_each_is_read_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("table");
        // Rows of 8 numbers behind 20 bytes of something else.
        let values: Vec<f32> = (0..8 * 3000).map(|i| i as f32).collect();
        let bytes: Vec<u8> = [0; 20].into_iter().chain(values.iter().flat_map(|v| v.to_le_bytes())).collect();
        std::fs::write(&path, &bytes).expect("written");
        let info = TensorInfo {
            name: "token_embd.weight".to_owned(),
            ne: vec![8, 3000],
            ty: TensorType::F32,
            part: 0,
            offset: 20,
            size: (4 * values.len()) as u64,
        };
        let table = Embeddings::new(Files::open(std::slice::from_ref(&path)).expect("opened"), &info);
        let table = table.expect("a type");
        let rows = table.rows(6).expect("memory");
        let tokens = [7, 2999, 7, 0, 512, 2999];
        let places = table.read(&tokens, &rows).expect("read");
        assert_eq!(places, [0, 1, 0, 2, 3, 1]);
        for (token, place) in tokens.iter().zip(places) {
            let mut row = [0f32; 8];
            rows.read_values(8 * place as usize, &mut row);
            assert_eq!(row, values[8 * *token as usize..][..8], "{token}");
        }
        std::fs::write(&path, &bytes[..100]).expect("written");
        let error = table.read(&[2999], &rows).expect_err("the file is shorter").to_string();
        assert!(error.contains("token_embd.weight") && error.contains("truncated"), "{error}");
    }
}
