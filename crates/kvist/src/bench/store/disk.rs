//! The disk under the store: how fast it is at best, and a slow one in front of it.

use std::fs::read_to_string;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvist_base::Micros;
use kvist_store::vfs::{DirLock, LockError, RealVfs, Vfs, VfsFile};

use crate::bench::figures::{Random, seconds};
use crate::failure::{Failure, Result};

/// Bytes of the file that is read for the bandwidth.
const FILE: usize = 256 << 20;
/// Bytes of one read of one thread alone, and of each of several.
const READS: [usize; 2] = [4 << 20, 1 << 20];

/// Sequential reads past the page cache, in the store's own file system.
pub struct Sequential {
    file: Arc<dyn VfsFile>,
    threads: usize,
    /// Bytes per second of every look: one thread, and all of them.
    pub rates: [Vec<f64>; 2],
}

impl Sequential {
    pub fn new(dir: &Path, threads: usize) -> Result<Sequential> {
        let wrong = |e: io::Error| Failure::new(format!("{}: {e}", dir.display()), "--dir DIR, with 1 GiB free");
        let write = || {
            let file = RealVfs::new().create(&dir.join("sequential"))?;
            // Nothing that a disk could make less of.
            let mut random = Random(3);
            let block: Vec<u8> = (0..READS[0] / 8).flat_map(|_| random.next().to_le_bytes()).collect();
            let mut at = 0;
            while at < FILE {
                at += file.write_at(&block[at % block.len()..], at as u64)?;
            }
            file.sync_data()?;
            io::Result::Ok(file)
        };
        Ok(Sequential { file: write().map_err(wrong)?, threads, rates: [vec![], vec![]] })
    }

    /// Measures once more.
    pub fn look(&mut self) {
        for (k, threads) in [1, self.threads].into_iter().enumerate() {
            self.file.forget_cache();
            let part = FILE / threads;
            let taken = seconds(|| {
                std::thread::scope(|scope| {
                    for thread in 0..threads {
                        let file = &self.file;
                        scope.spawn(move || {
                            let mut buffer = vec![0; READS[k]];
                            let mut at = thread * part;
                            while at < (thread + 1) * part {
                                let most = buffer.len().min((thread + 1) * part - at);
                                match file.read_at(&mut buffer[..most], at as u64) {
                                    Ok(n) if n > 0 => at += n,
                                    _ => return,
                                }
                            }
                        });
                    }
                });
            });
            self.rates[k].push((part * threads) as f64 / taken);
        }
    }

    /// The best of all looks, bytes per second.
    pub fn best(&self) -> f64 {
        self.rates.iter().flatten().copied().fold(0.0, f64::max)
    }
}

/// Bytes that this process had fetched from devices so far, where the system tells.
pub fn device_bytes() -> Option<u64> {
    let text = read_to_string("/proc/self/io").ok()?;
    text.lines().find_map(|line| line.strip_prefix("read_bytes: "))?.parse().ok()
}

/// The system, with a disk that gives so many bytes in a second.
pub struct Throttled {
    real: RealVfs,
    pace: Arc<Pace>,
}

struct Pace {
    rate: f64,
    /// When the disk is done with what was asked for.
    busy: Mutex<Instant>,
}

struct Slow {
    file: Arc<dyn VfsFile>,
    pace: Arc<Pace>,
}

/// Bytes that come at once: a page cache's read-ahead.
const GRAIN: usize = 64 << 10;

impl Throttled {
    pub fn new(rate: f64) -> Throttled {
        Throttled { real: RealVfs::new(), pace: Arc::new(Pace { rate, busy: Mutex::new(Instant::now()) }) }
    }
}

impl Pace {
    fn wait(&self, bytes: usize) {
        let until = {
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            *busy = (*busy).max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / self.rate);
            *busy
        };
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
    }
}

impl VfsFile for Slow {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let most = buffer.len().min(GRAIN);
        let n = self.file.read_at(&mut buffer[..most], offset)?;
        self.pace.wait(n);
        Ok(n)
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<usize> {
        self.file.write_at(buffer, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn allocated(&self) -> io::Result<u64> {
        self.file.allocated()
    }

    fn forget_cache(&self) {
        self.file.forget_cache();
    }
}

impl Vfs for Throttled {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.real.create_dir(dir)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        Ok(Arc::new(Slow { file: self.real.open(path)?, pace: Arc::clone(&self.pace) }))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        Ok(Arc::new(Slow { file: self.real.create(path)?, pace: Arc::clone(&self.pace) }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.real.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.real.remove(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.real.list(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.real.sync_dir(dir)
    }

    fn lock(&self, path: &Path, text: &str) -> std::result::Result<Box<dyn DirLock>, LockError> {
        self.real.lock(path, text)
    }

    fn free(&self, dir: &Path) -> io::Result<u64> {
        self.real.free(dir)
    }

    fn secret(&self, path: &Path, make: Option<&[u8]>) -> io::Result<Vec<u8>> {
        self.real.secret(path, make)
    }

    fn now(&self) -> Micros {
        self.real.now()
    }

    fn unix(&self) -> u64 {
        self.real.unix()
    }

    fn random(&self, out: &mut [u8]) -> io::Result<()> {
        self.real.random(out)
    }
}
