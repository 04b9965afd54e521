//! A device that stands in for a GPU where none is at hand: memory of its own, a budget, and the CPU's arithmetic.
//!
//! To ggml it is a GPU like any other. Its buffers are not host memory, so the scheduler splits graphs at its border and
//! copies what crosses it; an allocation beyond its budget fails as on a full card; a tensor that lies elsewhere when it
//! computes is an error, as it would be a fault on a card; so is an expert that a token names twice, where kernels of GPUs
//! would compute it once; custom nodes (which are host functions) are not for it; it
//! computes and copies when somebody waits for it, and not before. What it can't show is anything about time, copies beside
//! computing, or the arithmetic of real GPU kernels: results equal the CPU's.
//!
//! Tests register one with [`register`]; the programs do so when [`VARIABLE`] is set, so that placement, budgets and
//! streaming can be tried from outside.

pub(crate) mod device;
mod memory;
pub(crate) mod recorded;
pub(crate) mod stream;

use crate::backend::{Device, DeviceKind, REGISTRY};
use crate::{Error, load_backends};
use std::sync::Mutex;

/// Environment variable with the memory of each device, such as `512M,2G`; plain numbers are bytes.
pub const VARIABLE: &str = "BRUCE_STAND_IN_DEVICES";

/// How many devices exist so far; numbers their names.
static COUNT: Mutex<usize> = Mutex::new(0);

/// Adds `n_devices` stand-ins with `bytes_each` bytes of memory; they are named `STANDIN0`, `STANDIN1`, ... in the order
/// of all calls, and live for the whole program.
///
/// # Errors
/// [`Error::NoCpuBackend`], because something has to compute.
pub fn register(n_devices: usize, bytes_each: usize) -> Result<Vec<Device>, Error> {
    load_backends()?;
    add(&vec![bytes_each; n_devices])
}

/// How often the host has read a stand-in's memory while the device had work to do: a real one would have been computing
/// then. 0 for devices of another kind.
pub fn reads_beside_work(device: Device) -> usize {
    device::reads_beside_work(device)
}

/// Adds the devices that [`VARIABLE`] asks for, once: later calls, and calls without the variable, add nothing.
///
/// # Errors
/// [`Error::Setting`] when the variable is not a list of sizes; [`Error::NoCpuBackend`] when no CPU backend is loaded
/// yet.
pub fn register_from_env() -> Result<Vec<Device>, Error> {
    static DONE: Mutex<bool> = Mutex::new(false);
    let mut done = DONE.lock().unwrap_or_else(|p| p.into_inner());
    let Some(text) = std::env::var_os(VARIABLE).filter(|text| !text.is_empty() && !*done) else {
        return Ok(Vec::new());
    };
    let text = text.to_string_lossy();
    let sizes: Option<Vec<usize>> = text.split(',').map(|part| size(part.trim())).collect();
    let sizes = sizes.ok_or_else(|| Error::Setting {
        name: VARIABLE,
        found: text.escape_debug().to_string(),
        expected: "sizes such as 512M,2G",
    })?;
    let devices = add(&sizes)?;
    *done = true;
    Ok(devices)
}

fn add(sizes: &[usize]) -> Result<Vec<Device>, Error> {
    let cpu = Device::find(DeviceKind::Cpu)
        .ok_or_else(|| Error::NoCpuBackend { searched: "for a stand-in to compute with".to_owned() })?;
    let mut count = COUNT.lock().unwrap_or_else(|p| p.into_inner());
    let names = (*count..).map(|i| format!("STANDIN{i}"));
    let guard = REGISTRY.write().unwrap_or_else(|p| p.into_inner());
    let devices = device::register(names.zip(sizes.iter().copied()), cpu);
    drop(guard);
    *count += sizes.len();
    Ok(devices)
}

/// Bytes from a number with an optional binary unit: `1024`, `64K`, `512M`, `2G`, `512MiB`.
fn size(text: &str) -> Option<usize> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_uppercase().trim_end_matches("IB").trim_end_matches('B') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return None,
    };
    number.parse::<usize>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(size("4096"), Some(4096));
        assert_eq!(size("64k"), Some(64 << 10));
        assert_eq!(size("512M"), Some(512 << 20));
        assert_eq!(size("2GiB"), Some(2 << 30));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "M", "-1", "1.5G", "12 M", "1T", "99999999999999999999", "18446744073709551615K"] {
            assert_eq!(size(text), None, "{text:?}");
        }
    }
}
