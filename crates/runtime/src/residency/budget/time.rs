//! How long a token takes where its weights are in several places.
//!
//! Decoding is bound by reading weights: what is in one place takes its bytes by the place's bandwidth, and a time is added
//! that does not depend on where things are. What is done at once counts once: a device computes the experts it has of a
//! layer while the CPU computes the others, and of each layer the file is read while the CPU multiplies.

use super::{Demand, ExpertItem, Home, Machine, Outlook};

/// What a token takes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenTime {
    /// Seconds for weights on devices, but for those in which the CPU computes other experts of the same layer.
    pub device: f64,
    /// Seconds for weights in the host's memory, those read from the file included.
    pub memory: f64,
    /// Seconds of waiting for the file: experts are multiplied while others are being read.
    pub file: f64,
    /// Seconds for the rest.
    pub rest: f64,
}

impl TokenTime {
    /// Seconds in all.
    pub fn total(&self) -> f64 {
        self.device + self.memory + self.file + self.rest
    }
}

/// Where a token finds the bytes of its experts: shares that add up to 1, or 0 of each without experts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Chances {
    /// On a device.
    pub device: f64,
    /// In the host's memory.
    pub memory: f64,
    /// In the file only.
    pub file: f64,
}

/// Tokens from which on a batch is computed faster by a device, to which a layer's experts are copied beside computing, than by
/// the CPU. `copied` bytes arrive in a second, the CPU multiplies `multiplied` bytes of weights with a token's activations in
/// a second, and a layer's experts are read from a file in `reading` of the time that copying them takes (0 where they are
/// in memory). Of a layer's `n_expert` experts a token takes `n_used`.
pub fn crossover(copied: f64, multiplied: f64, reading: f64, n_used: u32, n_expert: u32) -> u32 {
    let of_token = f64::from(n_used.max(1)) / f64::from(n_expert.max(1));
    let tokens = multiplied / copied * reading.max(1.0) / of_token;
    // A batch of one is decoding.
    (tokens.ceil() as u32).max(2)
}

/// What a token takes with dense weights of `n_gpu` layers on devices and experts at `homes`, and where it finds these. A
/// pool has room for `more_bytes` of those that live in the file: it keeps parts of experts too.
pub(super) fn of_token(
    demand: &Demand,
    machine: &Machine,
    n_gpu: usize,
    homes: &[Home],
    more_bytes: u64,
) -> (TokenTime, Chances) {
    let device_rate = machine.device.map_or(f64::INFINITY, |device| device.bytes_per_second);
    let memory_rate = machine.memory.bytes_per_second;
    let n_expert = demand.n_expert.max(1) as usize;
    let (mut device, mut memory) = (0.0, 0.0);
    let (mut reads, mut on_hosts) = (Reads::default(), Vec::new());
    for (items, homes) in demand.experts.chunks(n_expert).zip(homes.chunks(n_expert)) {
        let layer = Reads::of(items, homes);
        let on_host = (layer.memory + layer.file) / memory_rate;
        memory += on_host;
        device += beside(layer.device / device_rate, on_host, layer.hit_rate(), demand.n_used) - on_host;
        reads.add(&layer);
        on_hosts.push(layer.memory + layer.file);
    }
    reads.keep(demand, homes, more_bytes);
    let (host, on_device) = demand.dense_bytes.split_at(demand.dense_bytes.len() - n_gpu);
    let dense = |bytes: &[u64]| bytes.iter().sum::<u64>() as f64;
    let time = TokenTime {
        device: dense(on_device) / device_rate + device,
        memory: dense(host) / memory_rate + memory,
        file: on_hosts.iter().map(|bytes| waiting(machine, demand.n_used, *bytes, reads.misses())).sum(),
        rest: machine.seconds_per_token,
    };
    (time, reads.chances())
}

/// Seconds of waiting for the file in a layer of which a token takes `bytes` of experts from the host, in `n_used` choices, each
/// of which is in the file with a chance of `misses`. What is in the file is read while all are multiplied, and with no
/// more than a layer's work at once: so a layer without misses does not make up for one with many.
fn waiting(machine: &Machine, n_used: u32, bytes: f64, misses: f64) -> f64 {
    if bytes <= 0.0 || misses <= 0.0 {
        return 0.0;
    }
    let n = n_used.max(1);
    let waits = chances_of(n, misses.min(1.0)).enumerate().map(|(n_misses, chance)| {
        let read = bytes * n_misses as f64 / f64::from(n);
        chance * (while_reading(machine, bytes, read) - bytes / machine.memory.bytes_per_second)
    });
    waits.sum()
}

/// Seconds in which the CPU multiplies with `bytes`, of which `read` are read meanwhile: beside each other until one of both
/// has ended, then what is left of the other.
fn while_reading(machine: &Machine, bytes: f64, read: f64) -> f64 {
    let Machine { memory, disk, .. } = machine;
    let multiplies = memory.bytes_per_second * disk.memory_share_beside;
    let reads = disk.bytes_per_second * disk.share_beside;
    let both = (bytes / multiplies).min(read / reads);
    let left = |all: f64, done: f64| (all - done).max(0.0);
    both + left(bytes, both * multiplies) / memory.bytes_per_second
        + left(read, both * reads) / disk.bytes_per_second
}

/// The chances that 0, 1, ... of `n` choices are of a kind, each of which is with a chance of `one`.
fn chances_of(n: u32, one: f64) -> impl Iterator<Item = f64> {
    let n = f64::from(n);
    let combinations = (0..=n as u32).scan(1.0, move |ways, k| {
        let these = *ways;
        *ways *= (n - f64::from(k)) / f64::from(k + 1);
        Some((f64::from(k), these))
    });
    combinations.map(move |(k, ways)| ways * one.powf(k) * (1.0 - one).powf(n - k))
}

/// What a token takes as planned in `outlook`, but with the file's rate in `machine` and, where they are given, as many `hits`
/// among the experts that the host computes.
pub(super) fn measured(
    demand: &Demand,
    machine: &Machine,
    outlook: &Outlook,
    hits: Option<f64>,
) -> TokenTime {
    let Chances { memory, file, .. } = outlook.chances;
    let misses = match hits {
        Some(hits) => 1.0 - hits,
        None if file > 0.0 => file / (memory + file),
        None => 0.0,
    };
    let n_expert = demand.n_expert.max(1) as usize;
    let layers = demand.experts.chunks(n_expert).zip(outlook.experts.chunks(n_expert));
    let waits = layers.map(|(items, homes)| {
        let layer = Reads::of(items, homes);
        waiting(machine, demand.n_used, layer.memory + layer.file, misses)
    });
    TokenTime { file: waits.sum(), ..outlook.time }
}

/// Seconds for the experts of a layer, where a token's `n_used` choices are on the device with a chance of `hit_rate` each:
/// the longer of both, for each number of choices that may be there. `device` and `host` are seconds on average.
fn beside(device: f64, host: f64, hit_rate: f64, n_used: u32) -> f64 {
    let (n, miss_rate) = (f64::from(n_used.max(1)), 1.0 - hit_rate);
    if hit_rate <= 0.0 || miss_rate <= 0.0 {
        return device + host;
    }
    // Of one choice.
    let (of_hit, of_miss) = (device / (n * hit_rate), host / (n * miss_rate));
    let seconds = chances_of(n_used.max(1), hit_rate).enumerate().map(|(n_hits, chance)| {
        let n_hits = n_hits as f64;
        chance * (n_hits * of_hit).max((n - n_hits) * of_miss)
    });
    seconds.sum()
}

/// Bytes of experts that a token reads on average, by where they are.
#[derive(Clone, Copy, Default)]
struct Reads {
    device: f64,
    memory: f64,
    file: f64,
}

impl Reads {
    fn of(items: &[ExpertItem], homes: &[Home]) -> Reads {
        let mut reads = Reads::default();
        for (item, home) in items.iter().zip(homes) {
            let bytes = item.chance * item.size_bytes as f64;
            match home {
                Home::Device => reads.device += bytes,
                Home::Memory => reads.memory += bytes,
                Home::File => reads.file += bytes,
            }
        }
        reads
    }

    fn add(&mut self, other: &Reads) {
        self.device += other.device;
        self.memory += other.memory;
        self.file += other.file;
    }

    /// Moves what a pool keeps of experts at home in the file, the likeliest, to memory.
    fn keep(&mut self, demand: &Demand, homes: &[Home], mut more_bytes: u64) {
        for index in super::by_chance(demand) {
            let item = &demand.experts[index];
            if homes[index] == Home::File {
                let kept = more_bytes.min(item.size_bytes);
                more_bytes -= kept;
                self.memory += item.chance * kept as f64;
                self.file -= item.chance * kept as f64;
            }
        }
        self.file = self.file.max(0.0);
    }

    fn hit_rate(&self) -> f64 {
        self.chances().device
    }

    /// Share of what the host computes that is in the file.
    fn misses(&self) -> f64 {
        if self.file > 0.0 { self.file / (self.memory + self.file) } else { 0.0 }
    }

    fn chances(&self) -> Chances {
        let all = self.device + self.memory + self.file;
        let share = |bytes: f64| if all > 0.0 { bytes / all } else { 0.0 };
        Chances { device: share(self.device), memory: share(self.memory), file: share(self.file) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Demand, ExpertItem, Home};
    use super::{Reads, beside, chances_of, crossover, waiting, while_reading};
    use crate::residency::budget::{Disk, Machine, Store};

    #[test]
    fn a_pool_keeps_parts_of_experts() {
        let item = |expert: u32| ExpertItem { layer: 0, expert, size_bytes: 100, chance: 0.5 };
        let demand = Demand { experts: (0..4).map(item).collect(), n_expert: 4, ..Demand::default() };
        let homes = [Home::Memory, Home::File, Home::File, Home::File];
        let with = |more_bytes| {
            let mut reads = Reads::of(&demand.experts, &homes);
            reads.keep(&demand, &homes, more_bytes);
            (reads.memory, reads.file)
        };
        assert_eq!((with(0), with(150), with(1000)), ((50.0, 150.0), (125.0, 75.0), (200.0, 0.0)));
    }

    fn machine(disk: Disk) -> Machine {
        let memory = Store { size_bytes: 0, bytes_per_second: 10.0 };
        Machine { device: None, memory, disk, seconds_per_token: 0.0 }
    }

    #[test]
    fn a_layer_waits_for_what_it_misses_and_not_for_what_others_do() {
        let machine = machine(Disk::apart(1.0));
        // 100 bytes in two choices: 10 seconds of multiplying, and 50 or 100 of reading.
        assert_eq!((waiting(&machine, 2, 100.0, 0.0), waiting(&machine, 2, 100.0, 1.0)), (0.0, 90.0));
        let half = 0.5 * (50.0 - 10.0) + 0.25 * (100.0 - 10.0);
        assert!((waiting(&machine, 2, 100.0, 0.5) - half).abs() < 1e-9);
        // On average this would be read while others are multiplied.
        let few = waiting(&machine, 2, 100.0, 0.05);
        assert!((few - (0.095 * 40.0 + 0.0025 * 90.0)).abs() < 1e-9, "{few}");
        let all: f64 = chances_of(6, 0.3).sum();
        assert!((all - 1.0).abs() < 1e-12 && chances_of(6, 0.3).count() == 7);
    }

    #[test]
    fn reading_and_multiplying_hold_each_other_up_while_both_go_on() {
        let machine = machine(Disk { bytes_per_second: 4.0, share_beside: 0.5, memory_share_beside: 0.8 });
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-9, "{found}");
        near(while_reading(&machine, 80.0, 0.0), 8.0);
        // 10 seconds at 8 and 2 bytes a second, and then 60 bytes at 4.
        near(while_reading(&machine, 80.0, 80.0), 10.0 + 15.0);
        // 5 seconds at 8 and 2, and then 40 bytes at 10.
        near(while_reading(&machine, 80.0, 10.0), 5.0 + 4.0);
        near(waiting(&machine, 1, 80.0, 0.5), 0.5 * (25.0 - 8.0));
    }

    #[test]
    fn a_batch_is_staged_when_the_cpu_would_take_longer_than_copying() {
        // 427 MB at 20 GB/s are 21 ms; half of it times one token's activations at 100 GB/s takes 2.1 ms.
        assert_eq!(crossover(20e9, 100e9, 0.0, 2, 4), 10);
        assert_eq!(crossover(20e9, 100e9, 0.0, 1, 8), 40);
        // Where the disk takes three times as long, so many tokens more are computed meanwhile.
        assert_eq!(crossover(20e9, 100e9, 3.0, 2, 4), 30);
        assert_eq!((crossover(1e12, 1.0, 0.0, 2, 4), crossover(1.0, 1e30, 0.0, 2, 4)), (2, u32::MAX));
    }

    #[test]
    fn a_layer_takes_the_longer_of_both_for_each_number_of_hits() {
        // Two choices, half of them hits, 1 and 8 seconds each: 16, 8 and 2 with chances of 1/4, 1/2 and 1/4.
        assert!((beside(1.0, 8.0, 0.5, 2) - 8.5).abs() < 1e-12);
        assert_eq!(beside(3.0, 0.0, 1.0, 2), 3.0);
        assert_eq!(beside(0.0, 5.0, 0.0, 2), 5.0);
        // Many choices: what happens is what is likely, and the longer one counts.
        assert!((beside(10.0, 40.0, 0.5, 64) - 40.0).abs() < 0.1);
        // Never less than either, nor more than one after the other.
        for n_used in 1..6 {
            for tenths in 1..10 {
                let seconds = beside(2.0, 3.0, f64::from(tenths) / 10.0, n_used);
                assert!((3.0..=5.0 + 1e-12).contains(&seconds), "{n_used}, {tenths}: {seconds}");
            }
        }
    }
}
