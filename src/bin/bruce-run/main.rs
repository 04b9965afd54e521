//! bruce-run
fn main() {}
