//! What the operating system lets this process have.

use std::fs;
use std::path::{Path, PathBuf};

/// Cores that may be used: affinity mask and cgroup quota count.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Bytes that can be allocated without pushing anyone out, `None` where the system does not tell: the kernel's
/// estimate, or what is left below the tightest cgroup limit above this process.
pub fn free_memory() -> Option<u64> {
    let system = meminfo(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable")?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(cgroup_rest(Path::new("/sys/fs/cgroup"), &groups).map_or(system, |rest| rest.min(system)))
}

/// Files and sockets that may be open at once, `None` where there is no limit or the system does not tell.
pub fn open_files() -> Option<u64> {
    soft_limit(&fs::read_to_string("/proc/self/limits").ok()?, "Max open files")
}

fn soft_limit(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

fn meminfo(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The least that any group from this process's own up to the root still grants.
fn cgroup_rest(root: &Path, groups: &str) -> Option<u64> {
    let mut least: Option<u64> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (base, limit, usage) = match controllers {
            "" => (root.to_path_buf(), "memory.max", "memory.current"),
            "memory" => (root.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
            _ => continue,
        };
        let number = |dir: &Path, file: &str| fs::read_to_string(dir.join(file)).ok()?.trim().parse::<u64>().ok();
        let mut dir: Option<PathBuf> = Some(base.join(path.trim_start_matches('/')));
        while let Some(at) = dir.filter(|d| d.starts_with(&base)) {
            if let (Some(limit), Some(used)) = (number(&at, limit), number(&at, usage)) {
                // Page cache counts as used, but is given back under pressure.
                let cached = fs::read_to_string(at.join("memory.stat")).unwrap_or_default();
                let cached = cached.lines().find_map(|l| l.strip_prefix("inactive_file ")?.parse().ok()).unwrap_or(0);
                let rest = limit.saturating_sub(used.saturating_sub(cached));
                least = Some(least.map_or(rest, |l| l.min(rest)));
            }
            dir = at.parent().map(Path::to_path_buf);
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal:       24650000 kB\nMemFree: 1 kB\nMemAvailable:   23000000 kB\n";
        assert_eq!(meminfo(text, "MemAvailable"), Some(23_000_000 * 1024));
        assert_eq!(meminfo(text, "MemSwap"), None);
    }

    #[test]
    fn limits_are_read() {
        let text = "Limit                     Soft Limit           Hard Limit           Units\n\
                    Max processes             unlimited            unlimited            processes\n\
                    Max open files            1024                 524288               files\n";
        assert_eq!(soft_limit(text, "Max open files"), Some(1024));
        assert_eq!(soft_limit(text, "Max processes"), None);
        assert_eq!(soft_limit(text, "Max niceness"), None);
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = std::env::temp_dir().join(format!("kvist-cgroup-{}", std::process::id()));
        let inner = root.join("a/b");
        fs::create_dir_all(&inner).unwrap();
        for (dir, limit, used) in [(&inner, "max", "500"), (&root.join("a"), "1000", "700")] {
            fs::write(dir.join("memory.max"), limit).unwrap();
            fs::write(dir.join("memory.current"), used).unwrap();
        }
        fs::write(root.join("a/memory.stat"), "anon 600\ninactive_file 100\n").unwrap();
        assert_eq!(cgroup_rest(&root, "0::/a/b\n"), Some(400));
        assert_eq!(cgroup_rest(&root, "0::/other\n"), None);
        assert_eq!(cgroup_rest(&root, ""), None);
        fs::remove_dir_all(&root).unwrap();
    }
}
