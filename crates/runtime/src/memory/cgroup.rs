//! What control groups leave of the memory, in both versions that Linux has.
//!
//! A process is in one group of each hierarchy (`/proc/self/cgroup`), and limits of the groups above it hold too. Where a
//! hierarchy is mounted, and which of its groups is the mount's root, is in `/proc/self/mountinfo`: in a container the own
//! group is often the root of the mount, and the path from outside is not to be found below it.
//!
//! Formats: `cgroups(7)`, `proc_pid_mountinfo(5)`, and the kernel's `admin-guide/cgroup-v1/memory.rst` and
//! `admin-guide/cgroup-v2.rst`.

use std::fs;
use std::path::{Path, PathBuf};

/// The tightest of the limits that hold for this process, less what is in use there. Pages of files can be dropped, so
/// that they don't count as used. `None` where there is no limit. Files are looked for below `root`, which is `/` but in
/// tests.
pub(super) fn available_bytes(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).ok()?;
    let free = mounts.lines().filter_map(Mount::parse).filter_map(|mount| {
        let directory = mount.directory(root, group_path(&groups, mount.version)?);
        least_free(mount.version, &directory, &below(root, &mount.point))
    });
    free.min()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    /// A hierarchy of its own for memory.
    One,
    /// One hierarchy for all resources.
    Two,
}

/// A mounted hierarchy that may limit memory.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    version: Version,
    /// The group that is the root of the mount.
    group: String,
    /// Where it is mounted.
    point: PathBuf,
}

impl Mount {
    /// From a line of mountinfo: number, parent, device, root, mount point, options, optional fields up to `-`, type,
    /// source, options of the file system.
    fn parse(line: &str) -> Option<Mount> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (group, point) = (unescaped(mount.next()?), unescaped(mount.next()?));
        let mut file_system = file_system.split(' ');
        let version = match file_system.next()? {
            "cgroup" if file_system.nth(1)?.split(',').any(|option| option == "memory") => Version::One,
            "cgroup2" => Version::Two,
            _ => return None,
        };
        Some(Mount { version, group, point: PathBuf::from(point) })
    }

    /// The directory of the group at `path`, as far as the mount shows it.
    fn directory(&self, root: &Path, path: &str) -> PathBuf {
        let point = below(root, &self.point);
        let inside = Path::new(path).strip_prefix(&self.group).unwrap_or(Path::new(path));
        let inside = inside.strip_prefix("/").unwrap_or(inside);
        let directory = point.join(inside);
        // A path that leads out of the mount begins with `..`.
        if !inside.starts_with("..") && directory.is_dir() { directory } else { point }
    }
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Spaces, tabs, line ends and backslashes are written as octal numbers.
fn unescaped(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escape, character)| text.replace(escape, character))
}

/// The process's group in the hierarchy, from lines `number:controllers:path`.
fn group_path(groups: &str, version: Version) -> Option<&str> {
    groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let is_it = match version {
            Version::One => controllers.split(',').any(|controller| controller == "memory"),
            Version::Two => number == "0" && controllers.is_empty(),
        };
        is_it.then_some(path)
    })
}

/// The least that a group, or one above it up to `top`, leaves.
fn least_free(version: Version, group: &Path, top: &Path) -> Option<u64> {
    let mut directory = group.to_path_buf();
    let mut least: Option<u64> = None;
    loop {
        if let Some(free) = free_in(version, &directory) {
            least = Some(least.map_or(free, |l| l.min(free)));
        }
        // In version 1 a group may leave those below it to themselves.
        if directory == top
            || !directory.pop()
            || number(&directory, "memory.use_hierarchy").is_some_and(|hierarchical| hierarchical == 0)
        {
            return least;
        }
    }
}

fn number(directory: &Path, name: &str) -> Option<u64> {
    fs::read_to_string(directory.join(name)).ok()?.trim().parse().ok()
}

/// What one group leaves; `None` without a limit.
fn free_in(version: Version, directory: &Path) -> Option<u64> {
    let (limit, used, prefix) = match version {
        Version::One => ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        Version::Two => ("memory.max", "memory.current", ""),
    };
    // Version 2 writes "max" where there is no limit, version 1 a number close to the largest there is.
    let limit = number(directory, limit).filter(|limit| *limit < 1 << 62)?;
    let used = number(directory, used)?;
    let stat = fs::read_to_string(directory.join("memory.stat")).unwrap_or_default();
    let field = |name: &str| -> u64 {
        let of_line = |line: &str| line.strip_prefix(prefix)?.strip_prefix(name)?.trim().parse().ok();
        stat.lines().find_map(of_line).unwrap_or(0)
    };
    // Not all that is cached: files in memory (tmpfs) can't be dropped, and are in neither list.
    let files = field("active_file ").saturating_add(field("inactive_file "));
    Some(limit.saturating_sub(used.saturating_sub(files)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file system with these files.
    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        }
        root
    }

    fn available(files: &[(&str, &str)]) -> Option<u64> {
        available_bytes(system(files).path())
    }

    const MOUNT_2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const MOUNT_1: &str = "\
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn version_2_counts_all_that_can_not_be_dropped() {
        let stat = "anon 200\nfile 500\ninactive_file 300\nactive_file 100\nshmem 100\n";
        let files = [
            ("proc/self/cgroup", "0::/user/me\n"),
            ("proc/self/mountinfo", MOUNT_2),
            ("sys/fs/cgroup/user/me/memory.max", "1000\n"),
            ("sys/fs/cgroup/user/me/memory.current", "700\n"),
            ("sys/fs/cgroup/user/me/memory.stat", stat),
            ("sys/fs/cgroup/user/memory.max", "max\n"),
            ("sys/fs/cgroup/user/memory.current", "900\n"),
        ];
        assert_eq!(available(&files), Some(700));
        let unlimited = files.map(|(name, text)| (name, if text == "1000\n" { "max\n" } else { text }));
        assert_eq!(available(&unlimited), None);
    }

    #[test]
    fn version_1_counts_groups_below() {
        let files = [
            ("proc/self/cgroup", "4:memory:/a/b\n1:cpu:/other\n0::/\n"),
            ("proc/self/mountinfo", MOUNT_1),
            ("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "5000\n"),
            ("sys/fs/cgroup/memory/a/b/memory.usage_in_bytes", "1000\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "3000\n"),
            ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "2500\n"),
            (
                "sys/fs/cgroup/memory/a/memory.stat",
                "inactive_file 1\ntotal_inactive_file 1000\ntotal_active_file 500\n",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "8000\n"),
        ];
        assert_eq!(available(&files), Some(2000));
        let mut apart = files.to_vec();
        apart.push(("sys/fs/cgroup/memory/a/memory.use_hierarchy", "0\n"));
        assert_eq!(available(&apart), Some(4000));
    }

    #[test]
    fn a_container_sees_its_own_group_as_the_root() {
        let limited = [
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "4096\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "96\n"),
        ];
        // The mount's root is the group itself, or a name that is not to be found, or one outside of the name space.
        for (group, mounted) in [("/docker/abc", "/docker/abc"), ("/docker/abc", "/"), ("/../abc", "/")] {
            let groups = format!("4:memory:{group}\n");
            let mount = format!("35 31 0:32 {mounted} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
            let mut files =
                vec![("proc/self/cgroup", groups.as_str()), ("proc/self/mountinfo", mount.as_str())];
            files.extend(limited);
            assert_eq!(available(&files), Some(4000), "{group} below {mounted}");
        }
    }

    #[test]
    fn what_is_not_there_or_makes_no_sense_is_no_limit() {
        assert_eq!(available(&[]), None);
        let nonsense =
            [("proc/self/cgroup", "memory\n0::\n"), ("proc/self/mountinfo", "1 2 3 - x\n - cgroup\n")];
        assert_eq!(available(&nonsense), None);
        let no_numbers = [
            ("proc/self/cgroup", "4:memory:/\n"),
            ("proc/self/mountinfo", MOUNT_1),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "many\n"),
        ];
        assert_eq!(available(&no_numbers), None);
    }

    #[test]
    fn mount_points_may_have_spaces() {
        let mount = Mount::parse("1 2 0:3 / /a\\040b rw - cgroup2 none rw").expect("a mount");
        assert_eq!(mount, Mount { version: Version::Two, group: "/".into(), point: "/a b".into() });
    }
}
