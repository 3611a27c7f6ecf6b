//! Directories that go away, and caches of Hugging Face downloads as `huggingface_hub` lays them out.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// The files of the model compiled into the program.
pub const SMALL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/model");
/// A model of random weights in several shards.
pub const SHARDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../model/tests/fixtures/qwen2-sharded");

pub struct TempDir(pub PathBuf);

impl TempDir {
    pub fn new() -> TempDir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("kvist-test-{}-{n}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        TempDir(path)
    }

    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A model's directory in a cache.
pub struct Repo(pub PathBuf);

impl Repo {
    pub fn new(cache: &TempDir, id: &str) -> Repo {
        let dir = cache.0.join(format!("models--{}", id.replace('/', "--")));
        for part in ["blobs", "refs", "snapshots"] {
            fs::create_dir_all(dir.join(part)).unwrap();
        }
        Repo(dir)
    }

    pub fn set_ref(&self, name: &str, commit: &str) -> &Repo {
        let path = self.0.join("refs").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, commit).unwrap();
        self
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        let dir = self.0.join("snapshots").join(commit);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// A file of a commit: a relative link into the blobs.
    pub fn file(&self, commit: &str, name: &str, bytes: &[u8]) -> &Repo {
        let blob = format!("{commit}-{}", name.replace('/', "-"));
        let path = self.0.join("blobs").join(&blob);
        // It may be a link to one of the originals.
        let _ = fs::remove_file(&path);
        fs::write(path, bytes).unwrap();
        self.link(commit, name, &blob)
    }

    pub fn link(&self, commit: &str, name: &str, blob: &str) -> &Repo {
        let link = self.snapshot(commit).join(name);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        let up = "../".repeat(2 + name.matches('/').count());
        symlink(format!("{up}blobs/{blob}"), link).unwrap();
        self
    }

    /// The files of a directory as a commit; their blobs are links themselves, as in a cache that shares blobs.
    pub fn copy(&self, commit: &str, dir: &str) -> &Repo {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let blob = format!("{commit}-{name}");
            symlink(entry.path(), self.0.join("blobs").join(&blob)).unwrap();
            self.link(commit, &name, &blob);
        }
        self
    }

    pub fn remove(&self, commit: &str, name: &str) -> &Repo {
        fs::remove_file(self.snapshot(commit).join(name)).unwrap();
        self
    }
}

pub fn read(dir: &str, name: &str) -> Vec<u8> {
    fs::read(Path::new(dir).join(name)).unwrap()
}
