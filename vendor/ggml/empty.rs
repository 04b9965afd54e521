//! Nothing: the manifest beside this file only pins a source.
