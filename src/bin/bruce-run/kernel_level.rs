//! Which instruction set our kernels use: the best that the processor has, or what the environment names.

use bruce::exit::UsageError;
use quants::matmul::Level;

/// The variable that names a level.
pub const VARIABLE: &str = "BRUCE_KERNEL_LEVEL";

/// Makes kernels use the level that [`VARIABLE`] names, if it is set; for measuring what a lesser processor would do. To be
/// called before anything is computed.
///
/// # Errors
/// [`UsageError`] for a level that does not exist or that this processor lacks.
pub fn choose() -> Result<(), anyhow::Error> {
    let wanted = std::env::var_os(VARIABLE).unwrap_or_default();
    if wanted.is_empty() {
        return Ok(());
    }
    let level = Level::all_supported().into_iter().find(|level| wanted == level.name());
    let Some(level) = level else {
        let wanted = wanted.to_string_lossy();
        let supported = supported();
        let message =
            format!("{VARIABLE}: found {wanted}, expected one of {supported}, which this processor has");
        return Err(UsageError(message).into());
    };
    level.choose();
    Ok(())
}

/// The names of all levels that this processor has, the slowest first.
pub fn supported() -> String {
    Level::all_supported().iter().map(|level| level.name()).collect::<Vec<_>>().join(", ")
}
