//! The plan as people and programs read it.

use bruce::size::bytes;
use runtime::plan::Plan;
use runtime::residency::budget::{Home, Usage};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;

/// What one more of is asked about.
const MORE_BYTES: u64 = 1_000_000_000;

/// A table of what lives where, and what is to be expected.
pub fn text(plan: &Plan, path: &Path) -> String {
    let mut out = String::new();
    let weights = plan.demand.dense_bytes.iter().sum::<u64>()
        + plan.demand.expert_bytes()
        + if plan.demand.is_tied { 0 } else { plan.demand.table_bytes };
    let name = bruce::terminal::neutral_line(&path.display().to_string());
    let _ = writeln!(out, "Plan for {name}: {} of weights, context of {} tokens", bytes(weights), plan.n_ctx);
    table(&mut out, plan);
    layers(&mut out, plan);
    if plan.is_measured {
        speed(&mut out, plan);
    }
    out
}

fn table(out: &mut String, plan: &Plan) {
    let (outlook, machine) = (&plan.outlook, &plan.machine);
    let file = Usage { expert_bytes: expert_bytes(plan, Home::File), ..Usage::default() };
    let devices = plan.devices.join(", ");
    let mut columns = Vec::new();
    if let Some(device) = machine.device {
        columns.push((devices.as_str(), outlook.device, Some(device.size_bytes)));
    }
    columns.push(("memory", outlook.memory, Some(machine.memory.size_bytes)));
    if !outlook.all_in_memory() {
        columns.push(("file", file, None));
    }
    let cell = |bytes_here: u64| if bytes_here == 0 { "-".to_owned() } else { bytes(bytes_here) };
    let mut row = |name: &str, cells: Vec<String>| {
        let cells: String = cells.iter().map(|cell| format!(" {cell:>12}")).collect();
        let _ = writeln!(out, "  {name:<22}{cells}");
    };
    row("", columns.iter().map(|(name, _, _)| (*name).to_owned()).collect());
    type Part = fn(&Usage) -> u64;
    let parts: [(&str, Part); 6] = [
        ("dense weights", |usage| usage.dense_bytes),
        ("experts", |usage| usage.expert_bytes),
        ("experts on their way", |usage| usage.staging_bytes),
        ("KV cache", |usage| usage.cache_bytes),
        ("compute buffers", |usage| usage.compute_bytes),
        ("embeddings, program", |usage| usage.other_bytes),
    ];
    for (name, part) in parts {
        if columns.iter().any(|(_, usage, _)| part(usage) > 0) {
            row(name, columns.iter().map(|(_, usage, _)| cell(part(usage))).collect());
        }
    }
    row("all", columns.iter().map(|(_, usage, _)| cell(usage.total_bytes())).collect());
    let limits = columns.iter().map(|(_, _, limit)| match limit {
        None => String::new(),
        Some(u64::MAX) => "unknown".to_owned(),
        Some(limit) => bytes(*limit),
    });
    row("may be used", limits.collect());
    if let Some(pool) = plan.pool_bytes {
        let _ = writeln!(out, "Experts are streamed through a pool of {}", bytes(pool));
    } else if !outlook.all_in_memory() {
        out.push_str("Experts in the file are read through the page cache\n");
    }
    if let Some(crossover) = &plan.crossover {
        let (copied, multiplied) = (crossover.copied_bytes_per_second, crossover.multiplied_bytes_per_second);
        let _ = writeln!(
            out,
            "Batches of {} tokens and more are computed on devices, to which experts are copied meanwhile: {}/s; the CPU multiplies {}/s with each token",
            crossover.n_tokens,
            rate(copied),
            rate(multiplied)
        );
    } else if plan.outlook.stages_experts() {
        out.push_str("Large batches are computed on devices, to which experts are copied meanwhile\n");
    } else if plan.demand.stack_bytes > 0 && plan.outlook.experts.iter().any(|home| *home != Home::Device) {
        out.push_str("Devices have no room to copy a layer's experts to for large batches\n");
    }
    if plan.pinned_device_bytes > 0 {
        let _ = writeln!(out, "  placed by -ot besides: {}", bytes(plan.pinned_device_bytes));
    }
}

/// How many layers are where, and for experts in several places each run of layers that are alike.
fn layers(out: &mut String, plan: &Plan) {
    let n_expert = plan.demand.n_expert as usize;
    let n_layer = plan.demand.n_layer();
    if plan.machine.device.is_some() {
        let n = plan.outlook.n_gpu_layers;
        let _ = writeln!(out, "Layers on devices: {n} of {}, the output counted as one", n_layer + 1);
    }
    let homes = &plan.outlook.experts;
    let is_streamed = plan.pool_bytes.is_some();
    let on_device = |home: &Home| *home == Home::Device;
    let is_even = homes.iter().all(|home| match is_streamed {
        // What is in the pool changes.
        true => on_device(home) == on_device(&homes[0]),
        false => *home == homes[0],
    });
    if n_expert == 0 || is_even {
        return;
    }
    let count = |layer: &[Home], home: Home| layer.iter().filter(|at| **at == home).count();
    let of_layer = |layer: &[Home]| {
        let counts = [Home::Device, Home::Memory, Home::File].map(|home| count(layer, home));
        match is_streamed {
            true => [counts[0], 0, 0, counts[1] + counts[2]],
            false => [counts[0], counts[1], counts[2], 0],
        }
    };
    let counts: Vec<[usize; 4]> = homes.chunks(n_expert).map(of_layer).collect();
    let mut first = 0;
    for run in counts.chunk_by(|a, b| a == b) {
        let last = first + run.len() - 1;
        let range = if first == last { format!("layer {first}") } else { format!("layers {first}-{last}") };
        let places: Vec<String> = run[0]
            .iter()
            .zip(["on devices", "in memory", "in the file", "streamed"])
            .filter(|(n, _)| **n > 0)
            .map(|(n, place)| format!("{n} {place}"))
            .collect();
        let _ = writeln!(out, "Experts of {range}: {}", places.join(", "));
        first += run.len();
    }
}

fn speed(out: &mut String, plan: &Plan) {
    let (machine, time) = (&plan.machine, &plan.outlook.time);
    let mut rates = Vec::new();
    if let Some(device) = machine.device {
        rates.push(format!("devices {}/s", rate(device.bytes_per_second)));
    }
    rates.push(format!("memory {}/s", rate(machine.memory.bytes_per_second)));
    let disk = &machine.disk;
    if plan.demand.n_expert > 0 {
        let how = if plan.is_file_rate_direct { "" } else { " (from the page cache)" };
        rates.push(format!("experts in the file {}/s{how}", rate(disk.bytes_per_second)));
    }
    let _ = writeln!(out, "Weights are read at: {}, measured just now", rates.join(", "));
    if plan.outlook.is_streamed {
        let percent = |share: f64| format!("{:.0} %", 100.0 * share);
        let (file, memory) = (percent(disk.share_beside), percent(disk.memory_share_beside));
        let _ = writeln!(out, "Beside each other: the file at {file} of that, memory at {memory}");
    }
    let parts: Vec<String> = [
        ("on devices", time.device),
        ("in memory", time.memory),
        ("waiting for the file", time.file),
        ("for the rest", time.rest),
    ]
    .iter()
    .filter(|(_, seconds)| *seconds > 0.0)
    .map(|(what, seconds)| format!("{} {what}", milliseconds(*seconds)))
    .collect();
    let _ = writeln!(
        out,
        "Expected: {} tokens per second, {} for each ({})",
        speed_of(plan.outlook.tokens_per_second()),
        milliseconds(time.total()),
        parts.join(", ")
    );
    found(out, plan);
    let (device, memory) = plan.with_more(MORE_BYTES);
    let now = plan.outlook.tokens_per_second();
    let said = |speed: Option<f64>, of: &str| {
        let speed = speed?;
        let gain = speed / now - 1.0;
        Some(if gain < 0.005 {
            format!("{of} nothing")
        } else {
            format!("{of} {} tokens per second (+{:.0} %)", speed_of(speed), gain * 100.0)
        })
    };
    let more: Vec<String> =
        [said(device, "on devices"), said(memory, "of memory")].into_iter().flatten().collect();
    let _ = writeln!(out, "One more GB would bring: {}", more.join(", "));
}

/// Where a token finds its experts, where there are several places.
fn found(out: &mut String, plan: &Plan) {
    let chances = &plan.outlook.chances;
    let shares: Vec<String> =
        [("on devices", chances.device), ("in memory", chances.memory), ("in the file", chances.file)]
            .iter()
            .filter(|(_, share)| *share > 0.0)
            .map(|(place, share)| format!("{:.0} % {place}", share * 100.0))
            .collect();
    if shares.len() > 1 {
        let _ = writeln!(out, "A token finds its experts: {}", shares.join(", "));
    }
}

fn rate(bytes_per_second: f64) -> String {
    bytes(bytes_per_second.max(0.0) as u64)
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1e3)
}

fn speed_of(tokens_per_second: f64) -> String {
    if tokens_per_second < 9.995 {
        format!("{tokens_per_second:.2}")
    } else {
        format!("{tokens_per_second:.1}")
    }
}

fn expert_bytes(plan: &Plan, home: Home) -> u64 {
    let items = plan.demand.experts.iter().zip(&plan.outlook.experts);
    items.filter(|(_, at)| **at == home).map(|(item, _)| item.size_bytes).sum()
}

/// The same as one object.
pub fn json(plan: &Plan) -> Value {
    let usage = |usage: &Usage| {
        json!({
            "dense_bytes": usage.dense_bytes,
            "expert_bytes": usage.expert_bytes,
            "staging_bytes": usage.staging_bytes,
            "cache_bytes": usage.cache_bytes,
            "compute_bytes": usage.compute_bytes,
            "other_bytes": usage.other_bytes,
            "total_bytes": usage.total_bytes(),
        })
    };
    let (outlook, machine) = (&plan.outlook, &plan.machine);
    let homes: Vec<Value> = outlook
        .experts
        .chunks((plan.demand.n_expert as usize).max(1))
        .map(|layer| {
            layer.iter().map(|home| match home {
                Home::Device => "device",
                Home::Memory => "memory",
                Home::File => "file",
            })
        })
        .map(|layer| layer.collect::<Vec<_>>().into())
        .collect();
    let (more_device, more_memory) = plan.with_more(MORE_BYTES);
    json!({
        "n_ctx": plan.n_ctx,
        "devices": plan.devices,
        "n_gpu_layers": outlook.n_gpu_layers,
        "n_cpu_moe": outlook.n_host_expert_layers(&plan.demand),
        "experts": homes,
        "device": usage(&outlook.device),
        "memory": usage(&outlook.memory),
        "expert_pool_bytes": plan.pool_bytes,
        "stage_experts": plan.outlook.stages_experts(),
        "stage_experts_from": plan.crossover.map(|crossover| crossover.n_tokens),
        "copied_bytes_per_second": plan.crossover.map(|crossover| crossover.copied_bytes_per_second),
        "batch_bytes_per_second": plan.crossover.map(|crossover| crossover.multiplied_bytes_per_second),
        "file_expert_bytes": expert_bytes(plan, Home::File),
        "expert_chances": {
            "device": outlook.chances.device,
            "memory": outlook.chances.memory,
            "file": outlook.chances.file,
        },
        "device_limit_bytes": machine.device.map(|device| device.size_bytes),
        "memory_limit_bytes": machine.memory.size_bytes,
        "bytes_per_token": plan.demand.bytes_per_token(),
        "device_bytes_per_second": machine.device.map(|device| device.bytes_per_second),
        "memory_bytes_per_second": machine.memory.bytes_per_second,
        "file_bytes_per_second": machine.disk.bytes_per_second,
        "file_share_beside": machine.disk.share_beside,
        "memory_share_beside": machine.disk.memory_share_beside,
        "is_file_rate_direct": plan.is_file_rate_direct,
        "seconds_per_token": {
            "device": outlook.time.device,
            "memory": outlook.time.memory,
            "file": outlook.time.file,
            "rest": outlook.time.rest,
        },
        "tokens_per_second": outlook.tokens_per_second(),
        "tokens_per_second_with_1_gb_more": { "device": more_device, "memory": more_memory },
    })
}
