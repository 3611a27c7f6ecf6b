//! What the store asks of the system: files, time, randomness. [`RealVfs`] is the system; [`SimVfs`] is one whose power
//! fails, whose disk breaks and whose time stands still.

mod real;
mod sim;
mod slow;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use kvist_base::Micros;

pub use real::RealVfs;
pub use sim::{Fault, FaultKind, Loss, SimVfs};
pub use slow::SlowVfs;

/// An open file. Positions are explicit, so one handle serves many threads.
pub trait VfsFile: Send + Sync {
    /// Reads some bytes, as `pread`: may be short, 0 at the end, may fail with `Interrupted`.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes some bytes, as `pwrite`.
    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<usize>;
    /// Data and length are on the medium afterwards. After an error nothing may be assumed of any byte not synced before.
    fn sync_data(&self) -> io::Result<()>;
    fn len(&self) -> io::Result<u64>;
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Bytes that the file takes on the medium.
    fn allocated(&self) -> io::Result<u64>;
    /// Asks the system to forget what it caches of the file; only measurements need it.
    fn forget_cache(&self) {}
}

/// Held for as long as the directory is ours.
pub trait DirLock: Send + Sync {}

/// Why a lock was not given.
#[derive(Debug)]
pub enum LockError {
    /// By another process; what it wrote into the file (its pid).
    Held(String),
    Io(io::Error),
}

/// A file system, a clock and a source of random bytes.
pub trait Vfs: Send + Sync {
    /// Makes a directory that only its owner may enter, and its parents; it is no error if it is there.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Opens for reading. Links are not followed.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>>;
    /// Makes a new file, for its owner only, for reading and writing. Fails if the name is taken.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Names in a directory, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Names made, changed and removed in the directory are on the medium afterwards.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes the lock file and writes `text` into it, or says who holds it.
    fn lock(&self, path: &Path, text: &str) -> Result<Box<dyn DirLock>, LockError>;
    /// Bytes that may still be written to the file system.
    fn free(&self, dir: &Path) -> io::Result<u64>;
    /// A small file that only its owner may read. Where it is missing and `make` is given, it is made, durably.
    fn secret(&self, path: &Path, make: Option<&[u8]>) -> io::Result<Vec<u8>>;
    /// Monotonic.
    fn now(&self) -> Micros;
    /// Seconds since 1970, for dates in records only.
    fn unix(&self) -> u64;
    fn random(&self, out: &mut [u8]) -> io::Result<()>;
}

/// Fills `buffer` or fails: a file that ends too early is `UnexpectedEof`.
pub(crate) fn read_exact(file: &dyn VfsFile, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let mut at = 0;
    while at < buffer.len() {
        match file.read_at(&mut buffer[at..], offset + at as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => at += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Writes all of `buffer` or fails.
pub(crate) fn write_all(file: &dyn VfsFile, buffer: &[u8], offset: u64) -> io::Result<()> {
    let mut at = 0;
    while at < buffer.len() {
        match file.write_at(&buffer[at..], offset + at as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => at += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// A whole file of at most `most` bytes.
pub(crate) fn read_small(file: &dyn VfsFile, most: u64) -> io::Result<Vec<u8>> {
    let len = file.len()?;
    if len > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{len} bytes where {most} are the most")));
    }
    let mut bytes = vec![0; len as usize];
    read_exact(file, &mut bytes, 0)?;
    Ok(bytes)
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LockError::Held(who) => write!(f, "held by {who}"),
            LockError::Io(e) => e.fmt(f),
        }
    }
}
