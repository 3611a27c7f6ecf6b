//! What the operating system lets this process have.

use std::fs;
use std::path::{Path, PathBuf};

/// Cores that may be used: affinity mask and cgroup quota count.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The CPU's name.
pub fn cpu() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("model name"))?;
    Some(line.trim_start_matches([' ', '\t', ':']).to_owned())
}

/// What is known of cores and caches, `None` where the system does not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cores {
    pub online: Option<usize>,
    /// By the affinity mask.
    pub affinity: Option<usize>,
    pub numa_nodes: Option<usize>,
    /// Bytes of all last-level caches of the machine together.
    pub cache: Option<u64>,
}

impl Cores {
    pub fn of_machine() -> Cores {
        let read = |file: &str| fs::read_to_string(file).ok();
        let system = Path::new("/sys/devices/system");
        let status = read("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let online = fs::read_to_string(system.join("cpu/online")).ok();
        Cores {
            online: online.as_deref().and_then(ids),
            affinity: mask.and_then(ids),
            numa_nodes: fs::read_to_string(system.join("node/online")).ok().as_deref().and_then(ids),
            cache: online.as_deref().and_then(|online| last_level_caches(&system.join("cpu"), ids(online)?)),
        }
    }
}

/// How many ids a list such as `0-3,8` has.
fn ids(list: &str) -> Option<usize> {
    let range = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        Some(to.parse::<usize>().ok()?.checked_sub(from.parse().ok()?)? + 1)
    };
    list.trim().split(',').map(range).sum()
}

fn last_level_caches(cpus: &Path, online: usize) -> Option<u64> {
    let read = |index: &Path, file: &str| fs::read_to_string(index.join(file)).ok();
    let (mut level, mut found) = (0, None);
    for index in fs::read_dir(cpus.join("cpu0/cache")).ok()?.flatten().map(|entry| entry.path()) {
        let number = |file: &str| read(&index, file)?.trim().parse::<u32>().ok();
        let size = read(&index, "size").and_then(|size| size.trim().strip_suffix('K')?.parse::<u64>().ok());
        let shared = read(&index, "shared_cpu_list").as_deref().and_then(ids);
        if let (Some(at), Some(size), Some(shared)) = (number("level"), size, shared)
            && at > level
        {
            (level, found) = (at, Some(size * 1024 * online.div_ceil(shared.max(1)) as u64));
        }
    }
    found
}

/// Memory of the machine.
pub fn total_memory() -> Option<u64> {
    meminfo(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal")
}

/// The tightest cgroup limit above this process.
pub fn cgroup_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    Some(tightest_group(Path::new("/sys/fs/cgroup"), &groups)?.limit)
}

/// How the kernel gives out transparent huge pages: `always`, `madvise` or `never`.
pub fn huge_pages() -> Option<String> {
    let text = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok()?;
    chosen(&text).map(str::to_owned)
}

/// The word in brackets.
fn chosen(text: &str) -> Option<&str> {
    Some(text.split_once('[')?.1.split_once(']')?.0)
}

/// Bytes of address space that this process may have, `None` where there is no limit.
pub fn address_space() -> Option<u64> {
    soft_limit(&fs::read_to_string("/proc/self/limits").ok()?, "Max address space")
}

/// Memory that can be had without pushing anyone out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    pub bytes: u64,
    /// Whether a cgroup's limit leaves less than the machine has.
    pub cgroup: bool,
}

impl Free {
    /// Why it is not more.
    pub fn words(self) -> &'static str {
        if self.cgroup { " under the cgroup's limit" } else { "" }
    }
}

/// What is free, `None` where the system does not tell: the kernel's estimate, or what is left below the tightest cgroup
/// limit above this process.
pub fn free_memory() -> Option<Free> {
    let system = meminfo(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable")?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let rest = tightest_group(Path::new("/sys/fs/cgroup"), &groups).map(|group| group.rest);
    Some(match rest.filter(|rest| *rest < system) {
        Some(bytes) => Free { bytes, cgroup: true },
        None => Free { bytes: system, cgroup: false },
    })
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

/// Bytes that a cgroup grants, and that are left of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Group {
    limit: u64,
    rest: u64,
}

/// The group that grants least, of all from this process's own up to the root.
fn tightest_group(root: &Path, groups: &str) -> Option<Group> {
    let mut least: Option<Group> = None;
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
                if least.is_none_or(|least| rest < least.rest) {
                    least = Some(Group { limit, rest });
                }
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
    fn lists_and_choices_are_read() {
        assert_eq!((ids("0-3,8\n"), ids("0"), ids("2-1"), ids("")), (Some(5), Some(1), None, None));
        assert_eq!(chosen("always [madvise] never\n"), Some("madvise"));
        assert_eq!(chosen("madvise"), None);
        let cores = Cores::of_machine();
        assert!(cores.affinity.is_none_or(|n| n >= threads()), "{cores:?} {}", threads());
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
        assert_eq!(tightest_group(&root, "0::/a/b\n"), Some(Group { limit: 1000, rest: 400 }));
        assert_eq!(tightest_group(&root, "0::/other\n"), None);
        assert_eq!(tightest_group(&root, ""), None);
        fs::remove_dir_all(&root).unwrap();
    }
}
