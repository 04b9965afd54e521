//! How much memory there is to use: the machine's, or what a cgroup leaves of it.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes that can be allocated without pushing the machine, or the cgroup this process is in, over its limit;
/// `None` where the system does not say.
pub fn available_bytes() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| meminfo_available(&text));
    match (machine, cgroup_available()) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn meminfo_available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The tightest limit among this process's cgroup (version 2) and its parents, less what they use. File pages can be
/// dropped, so only the rest counts as used.
fn cgroup_available() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let root = Path::new("/sys/fs/cgroup");
    let mut directory: PathBuf = root.join(path.trim_start_matches('/'));
    let mut least: Option<u64> = None;
    loop {
        if let Some(free) = group_free(&directory) {
            least = Some(least.map_or(free, |l| l.min(free)));
        }
        if directory == root || !directory.pop() {
            return least;
        }
    }
}

fn group_free(directory: &Path) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(directory.join(name)).ok()?.trim().parse::<u64>().ok();
    let limit = number("memory.max")?;
    let used = number("memory.current")?;
    let stat = fs::read_to_string(directory.join("memory.stat")).unwrap_or_default();
    let file: u64 =
        stat.lines().find_map(|line| line.strip_prefix("file ")?.trim().parse().ok()).unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(file)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_linux_writes() {
        let text = "MemTotal:       24000000 kB\nMemFree:  100 kB\nMemAvailable:    1000 kB\n";
        assert_eq!(meminfo_available(text), Some(1_024_000));
        assert_eq!(meminfo_available("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn a_group_with_a_limit_leaves_what_is_not_used() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("written");
        write("memory.max", "1000\n");
        write("memory.current", "700\n");
        write("memory.stat", "anon 200\nfile 500\n");
        assert_eq!(group_free(dir.path()), Some(800));
        write("memory.max", "max\n");
        assert_eq!(group_free(dir.path()), None);
    }
}
