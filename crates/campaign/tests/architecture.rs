//! ARCHITECTURE.md's boundaries, checked: who may use whom, where `unsafe` and tokio may appear, how long a file may
//! get.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Crate -> the crates of this workspace that it may use.
const ARROWS: [(&str, &[&str]); 12] = [
    ("base", &[]),
    ("kernels", &["base"]),
    ("weights", &["base"]),
    ("text", &["base"]),
    ("cache", &["base"]),
    ("store", &["base"]),
    ("model", &["base", "kernels", "weights"]),
    ("engine", &["base", "cache", "store"]),
    ("sim", &["base", "cache", "engine"]),
    ("server", &["base", "cache", "store", "engine", "text"]),
    ("kvist", &["base", "kernels", "weights", "text", "cache", "store", "model", "engine", "sim", "server"]),
    ("campaign", &["base", "kernels", "weights", "text", "cache", "store", "model", "engine", "sim", "server"]),
];

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("crates/").to_path_buf()
}

/// `[dependencies]` of a crate: package name by name.
fn dependencies(name: &str) -> Vec<String> {
    let text = fs::read_to_string(crates().join(name).join("Cargo.toml")).expect("a manifest");
    let section = text.split("\n[").find(|s| s.starts_with("dependencies]")).unwrap_or_default();
    section
        .lines()
        .skip(1)
        .filter_map(|l| l.split(['.', '=', ' ']).next())
        .filter(|d| !d.is_empty() && !d.starts_with('#'))
        .map(String::from)
        .collect()
}

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

#[test]
fn arrows_point_one_way() {
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    for entry in fs::read_dir(crates()).expect("crates/").flatten() {
        let name = entry.file_name().into_string().expect("a plain name");
        let allowed = allowed.get(name.as_str()).unwrap_or_else(|| panic!("crate {name} is not on the map"));
        for dependency in dependencies(&name) {
            if let Some(used) = dependency.strip_prefix("kvist-") {
                assert!(allowed.contains(&used), "{name} must not use {used}");
            }
        }
    }
}

#[test]
fn tokio_stays_at_the_edge() {
    for (name, _) in ARROWS {
        let edge = ["server", "kvist"].contains(&name);
        for dependency in dependencies(name) {
            assert!(edge || !["tokio", "axum", "hyper"].contains(&dependency.as_str()), "{name} uses {dependency}");
        }
    }
    assert!(dependencies("base").is_empty(), "base uses the standard library only");
}

#[test]
fn unsafe_is_confined() {
    for (name, _) in ARROWS {
        if name == "kernels" {
            continue;
        }
        for root in ["lib.rs", "main.rs"] {
            let path = crates().join(name).join("src").join(root);
            if let Ok(text) = fs::read_to_string(&path) {
                assert!(text.contains("#![forbid(unsafe_code)]"), "{} must forbid unsafe code", path.display());
            }
        }
    }
}

/// A file says one thing; past 800 lines it says several.
#[test]
fn files_stay_short() {
    let mut files = Vec::new();
    sources(&crates(), &mut files);
    for file in files {
        let lines = fs::read_to_string(&file).expect("a source").lines().count();
        assert!(lines <= 800, "{} has {lines} lines", file.display());
    }
}

/// The cache and the engine must be replayable: no clock, no threads, no I/O, no environment.
#[test]
fn the_core_is_pure() {
    let banned =
        ["std::time", "Instant::now", "SystemTime", "std::fs", "std::net", "std::thread", "std::env", "async fn"];
    for name in ["cache", "engine"] {
        let mut files = Vec::new();
        sources(&crates().join(name).join("src"), &mut files);
        for file in files {
            let text = fs::read_to_string(&file).expect("a source");
            for word in banned {
                assert!(!text.contains(word), "{} names {word}", file.display());
            }
        }
    }
}
