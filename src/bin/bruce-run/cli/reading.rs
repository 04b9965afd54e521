//! Flags of the commands that read a text in chunks and measure something: how the model is loaded and computes.

use super::context::ContextArgs;
use super::model::{LoadArgs, PlacementArgs};
use crate::chunks::DEFAULT_SIZE;
use crate::plan;
use runtime::model::Model;
use runtime::session::SessionOptions;
use std::path::Path;
use std::sync::Arc;

/// As for answers, but that the size of the context is that of a chunk.
#[derive(Debug, clap::Args)]
pub struct ReadingArgs {
    #[command(flatten)]
    load: LoadArgs,

    #[command(flatten)]
    placement: PlacementArgs,

    #[command(flatten)]
    context: ContextArgs,
}

impl ReadingArgs {
    /// Tokens of a chunk, where that was said.
    pub fn asked_size(&self) -> Option<usize> {
        self.context.ctx_size.filter(|n| *n > 0).map(|n| n as usize)
    }

    /// Tokens of a chunk.
    pub fn size(&self) -> usize {
        self.asked_size().unwrap_or(DEFAULT_SIZE as usize)
    }

    /// Options of a session that holds a chunk of `size` tokens.
    pub fn session(&self, size: usize) -> SessionOptions {
        SessionOptions { n_ctx: size as u32, ..self.context.options() }
    }

    /// The model, loaded as planned, and the options of a session that holds a chunk.
    ///
    /// # Errors
    /// As [`plan::load`].
    pub fn load(&self, path: &Path) -> Result<(Arc<Model>, SessionOptions), anyhow::Error> {
        let mut options = self.session(self.size());
        let model = plan::load(path, &self.load, &self.placement, &mut options, false)?;
        Ok((model, options))
    }
}
