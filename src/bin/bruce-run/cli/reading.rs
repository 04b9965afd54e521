//! Flags of the commands that read a text in chunks and measure something: how the model is loaded and computes.

use super::context::ContextArgs;
use super::model::{LoadArgs, PlacementArgs};
use crate::chunks::DEFAULT_SIZE;
use crate::plan;
use runtime::Kernels;
use runtime::model::Model;
use runtime::session::SessionOptions;
use std::path::Path;
use std::sync::Arc;

/// As for answers, but that the size of the context is that of a chunk.
#[derive(Debug, clap::Args)]
#[command(mut_arg("ctx_size", |arg| arg.help("Tokens of a chunk; 0: what the model was trained with [default: 512]")))]
pub struct ReadingArgs {
    #[command(flatten)]
    load: LoadArgs,

    #[command(flatten)]
    placement: PlacementArgs,

    #[command(flatten)]
    context: ContextArgs,
}

impl ReadingArgs {
    /// Tokens of a chunk, where a number was given.
    pub fn asked_size(&self) -> Option<usize> {
        self.context.ctx_size.filter(|n| *n > 0).map(|n| n as usize)
    }

    /// Tokens of a chunk that the model in a file reads.
    ///
    /// # Errors
    /// Where the file has to be asked and can't be read.
    pub fn size(&self, path: &Path) -> Result<usize, anyhow::Error> {
        match self.context.ctx_size {
            Some(0) => Ok(plan::hyper_params(path)?.n_ctx_train as usize),
            _ => Ok(self.asked_size().unwrap_or(DEFAULT_SIZE)),
        }
    }

    /// The model, loaded as planned for chunks of `size` tokens, and the options of a session that holds one.
    ///
    /// # Errors
    /// As [`plan::load`].
    pub fn load(&self, path: &Path, size: usize) -> Result<(Arc<Model>, SessionOptions), anyhow::Error> {
        self.load_as(&self.load, path, size)
    }

    /// The same for a session that looks at the inputs of products. Only ggml's kernels show them, so the plan is made for
    /// these, which can't stream experts: what has no room in memory is read as pages of the mapped file.
    ///
    /// # Errors
    /// As [`plan::load`].
    pub fn load_tapped(
        &self,
        path: &Path,
        size: usize,
    ) -> Result<(Arc<Model>, SessionOptions), anyhow::Error> {
        self.load_as(&self.load.with_default_kernels(Kernels::Ggml), path, size)
    }

    fn load_as(
        &self,
        load: &LoadArgs,
        path: &Path,
        size: usize,
    ) -> Result<(Arc<Model>, SessionOptions), anyhow::Error> {
        let mut options = SessionOptions { n_ctx: size as u32, ..self.context.options() };
        let model = plan::load(path, load, &self.placement, &mut options, false)?;
        Ok((model, options))
    }
}
