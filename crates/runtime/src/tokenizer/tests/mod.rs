//! Whole tokenizers: against the original libraries' ids, on text that tries to be something else, and on vocabularies
//! that are broken.

mod advisories;
mod borders;
mod fixtures;
mod hostile;
mod originals;
