//! What the routers of a Mixture of Experts did with a text, and what follows from it.
//!
//! A [`Trace`] records, for each layer, which experts each token took and with what weight. [`Report`] is computed from it:
//! how evenly the experts are used, how often neighbouring tokens take the same ones, how well a layer's choice is known
//! one layer early, and what share of the requests a cache of any size would serve under four policies
//! ([`cache`]). Everything here is a pure function of the trace; nothing runs a model.

pub mod cache;
mod error;
mod json;
mod report;
pub mod svg;
mod trace;

pub use error::Error;
pub use report::{Early, LayerReport, Report};
pub use trace::{EarlyGuess, LayerTrace, Trace};
