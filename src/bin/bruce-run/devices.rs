//! `bruce-run devices`: what models can run on.

use crate::{kernel_level, print};
use ggml::{Device, DeviceKind};
use quants::matmul::Level;
use serde_json::json;
use std::fmt::Write;

/// Flags of `bruce-run devices`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  bruce-run devices\n  bruce-run model.gguf -dev CUDA0 -p \"Hello\"")]
pub struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Prints one line for each device: name, kind, description, memory; then which level of our own kernels the CPU runs.
///
/// # Errors
/// Where no device is found, or stdout can't be written.
pub fn run(args: &Args) -> Result<(), anyhow::Error> {
    ggml::load_backends()?;
    let devices = ggml::devices();
    if args.json {
        let list: Vec<_> = devices
            .iter()
            .map(|device| {
                let (free, total) = memory(device);
                let is_cpu = device.kind() == DeviceKind::Cpu;
                json!({
                    "name": device.name(),
                    "kind": kind(device.kind()),
                    "description": device.description(),
                    "memory_free_bytes": free,
                    "memory_total_bytes": total,
                    "kernel_level": is_cpu.then(|| Level::current().name()),
                })
            })
            .collect();
        return print(&format!("{}\n", serde_json::Value::from(list)));
    }
    let mut text = String::new();
    for device in devices {
        let (free, total) = memory(&device);
        let _ = write!(text, "{:<10} {:<12} {}", device.name(), kind(device.kind()), device.description());
        if total > 0 {
            let (free, total) = (bruce::size::bytes(free), bruce::size::bytes(total));
            let _ = write!(text, ", {free} of {total} free");
        }
        text.push('\n');
    }
    let (level, variable) = (Level::current().name(), kernel_level::VARIABLE);
    let _ = writeln!(text, "\nKernel level: {level} ({variable} takes {})", kernel_level::supported());
    print(&text)
}

/// Bytes that are free, and all that there are. Of the host ggml says that all are free.
fn memory(device: &Device) -> (u64, u64) {
    let (free, total) = device.memory();
    match runtime::memory::available_bytes() {
        Some(available) if device.kind() == DeviceKind::Cpu => (available.min(total as u64), total as u64),
        _ => (free as u64, total as u64),
    }
}

fn kind(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Cpu => "CPU",
        DeviceKind::Gpu => "GPU",
        DeviceKind::IntegratedGpu => "iGPU",
        _ => "accelerator",
    }
}
