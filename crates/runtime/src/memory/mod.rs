//! How much memory there is to use: the machine's, or what control groups leave of it.

mod cgroup;
mod free;

pub(crate) use free::Free;

use std::fs;
use std::path::Path;

/// Bytes that can be allocated without pushing the machine, or a control group that this process is in, over its limit;
/// `None` where the system does not say.
pub fn available_bytes() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| meminfo_available(&text));
    match (machine, cgroup::available_bytes(Path::new("/"))) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn meminfo_available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_linux_writes() {
        let text = "MemTotal:       24000000 kB\nMemFree:  100 kB\nMemAvailable:    1000 kB\n";
        assert_eq!(meminfo_available(text), Some(1_024_000));
        assert_eq!(meminfo_available("MemTotal: 1 kB\n"), None);
        assert_eq!(meminfo_available("MemAvailable: 18446744073709551615 kB\n"), None);
    }
}
