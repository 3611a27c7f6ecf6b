use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use kvist_base::Micros;

use super::{DirLock, LockError, Vfs, VfsFile};

/// Another system whose disk is slower than it is: reads queue up behind each other at so many bytes a second, each after
/// so long. For experiments: what a slower disk would be like can be tried on a faster one.
pub struct SlowVfs {
    inner: Arc<dyn Vfs>,
    disk: Arc<Disk>,
}

struct Disk {
    bytes_per_second: f64,
    latency: Duration,
    /// When it is done with what it was asked for so far.
    free: Mutex<Instant>,
}

struct SlowFile {
    inner: Arc<dyn VfsFile>,
    disk: Arc<Disk>,
}

impl SlowVfs {
    pub fn new(inner: Arc<dyn Vfs>, bytes_per_second: f64, latency: Duration) -> Self {
        SlowVfs { inner, disk: Arc::new(Disk { bytes_per_second, latency, free: Mutex::new(Instant::now()) }) }
    }

    fn wrap(&self, inner: Arc<dyn VfsFile>) -> Arc<dyn VfsFile> {
        Arc::new(SlowFile { inner, disk: Arc::clone(&self.disk) })
    }
}

impl VfsFile for SlowFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let n = self.inner.read_at(buffer, offset)?;
        let done = {
            let mut free = self.disk.free.lock().unwrap_or_else(PoisonError::into_inner);
            let took = Duration::from_secs_f64(n as f64 / self.disk.bytes_per_second);
            *free = (*free).max(Instant::now()) + took;
            *free + self.disk.latency
        };
        sleep(done.saturating_duration_since(Instant::now()));
        Ok(n)
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<usize> {
        self.inner.write_at(buffer, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn allocated(&self) -> io::Result<u64> {
        self.inner.allocated()
    }

    fn forget_cache(&self) {
        self.inner.forget_cache();
    }
}

impl Vfs for SlowVfs {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.inner.create_dir(dir)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        Ok(self.wrap(self.inner.open(path)?))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        Ok(self.wrap(self.inner.create(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.inner.list(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.inner.sync_dir(dir)
    }

    fn lock(&self, path: &Path, text: &str) -> Result<Box<dyn DirLock>, LockError> {
        self.inner.lock(path, text)
    }

    fn free(&self, dir: &Path) -> io::Result<u64> {
        self.inner.free(dir)
    }

    fn secret(&self, path: &Path, make: Option<&[u8]>) -> io::Result<Vec<u8>> {
        self.inner.secret(path, make)
    }

    fn now(&self) -> Micros {
        self.inner.now()
    }

    fn unix(&self) -> u64 {
        self.inner.unix()
    }

    fn random(&self, out: &mut [u8]) -> io::Result<()> {
        self.inner.random(out)
    }
}
