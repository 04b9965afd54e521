//! How much memory there is to use: the machine's, or what control groups leave of it.

mod cgroup;
mod free;

pub(crate) use free::Free;

use std::path::Path;

/// Bytes that can be allocated without pushing the machine, or a control group that this process is in, over its limit;
/// `None` where the system does not say.
pub fn available_bytes() -> Option<u64> {
    match (of_machine(), cgroup::available_bytes(Path::new("/"))) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(not(target_os = "macos"))]
fn of_machine() -> Option<u64> {
    meminfo_available(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

#[cfg(target_os = "macos")]
fn of_machine() -> Option<u64> {
    let output = std::process::Command::new("/usr/bin/vm_stat").output().ok()?;
    vm_stat_available(&String::from_utf8_lossy(&output.stdout))
}

#[cfg(any(test, not(target_os = "macos")))]
fn meminfo_available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Free pages, those that were read ahead of need, and those that nobody has used for a while, which macOS takes back before
/// it compresses or swaps anything.
#[cfg(any(test, target_os = "macos"))]
fn vm_stat_available(text: &str) -> Option<u64> {
    let (_, page_bytes) = text.lines().next()?.split_once("page size of ")?;
    let page_bytes: u64 = page_bytes.split_whitespace().next()?.parse().ok()?;
    let pages = |what: &str| -> Option<u64> {
        let count = text.lines().find_map(|line| line.strip_prefix(what))?;
        count.trim().trim_end_matches('.').parse().ok()
    };
    let free = pages("Pages free:")?;
    let taken_back = pages("Pages inactive:")?.checked_add(pages("Pages speculative:")?)?;
    free.checked_add(taken_back)?.checked_mul(page_bytes)
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

    #[test]
    fn reads_what_macos_writes() {
        let text = "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n\
            Pages free:                                5000.\n\
            Pages active:                            250000.\n\
            Pages inactive:                          200000.\n\
            Pages speculative:                         1000.\n\
            Pages wired down:                         90000.\n";
        assert_eq!(vm_stat_available(text), Some(206_000 * 16384));
        assert_eq!(vm_stat_available(&text.replace("16384", "huge")), None);
        assert_eq!(vm_stat_available(&text.replace("speculative", "other")), None);
        assert_eq!(vm_stat_available(&text.replace("5000", "18446744073709551615")), None);
        assert_eq!(vm_stat_available(""), None);
    }
}
