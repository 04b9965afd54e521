//! bruce-quant
fn main() {}
