//! Whether this machine has the CPU that ggml's CPU backend was compiled for.

use crate::Error;

/// Nothing where the CPU has every instruction set that the linked CPU backend uses.
///
/// # Errors
/// [`Error::UnsupportedCpu`] names what is missing, so that a program can say so instead of dying of an illegal
/// instruction. A portable build chooses its CPU module at run time and always passes.
pub fn check_cpu() -> Result<(), Error> {
    let missing: Vec<&str> =
        ggml_sys::BUILD_CPU_FEATURES.split(',').filter(|name| !name.is_empty() && !has(name)).collect();
    if missing.is_empty() { Ok(()) } else { Err(Error::UnsupportedCpu { missing: missing.join(", ") }) }
}

#[cfg(target_arch = "x86_64")]
fn has(feature: &str) -> bool {
    macro_rules! detect {
        ($($name:tt),*) => { match feature { $($name => std::arch::is_x86_feature_detected!($name),)* _ => false } };
    }
    detect!(
        "sse3",
        "ssse3",
        "sse4.1",
        "sse4.2",
        "popcnt",
        "avx",
        "avx2",
        "fma",
        "f16c",
        "bmi1",
        "bmi2",
        "lzcnt",
        "movbe",
        "avx512f",
        "avx512bw",
        "avx512cd",
        "avx512dq",
        "avx512vl",
        "avx512vbmi",
        "avx512vnni",
        "avx512bf16",
        "avxvnni"
    )
}

#[cfg(target_arch = "aarch64")]
fn has(feature: &str) -> bool {
    macro_rules! detect {
        ($($name:tt),*) => { match feature { $($name => std::arch::is_aarch64_feature_detected!($name),)* _ => false } };
    }
    detect!(
        "lse", "bf16", "fcma", "crc", "dotprod", "fhm", "fp16", "frintts", "jsconv", "i8mm", "rdm", "sve",
        "sve2"
    )
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has(_: &str) -> bool {
    true
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_machine_that_built_it_passes() {
        super::check_cpu().expect("built for this machine");
    }

    #[test]
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn every_feature_the_build_may_ask_for_is_known() {
        // A name the table lacks counts as missing and would lock the program out of every machine.
        for name in ggml_sys::BUILD_CPU_FEATURES.split(',').filter(|n| !n.is_empty()) {
            assert!(super::has(name), "{name}");
        }
        assert!(!super::has("no such feature"));
    }
}
