use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use kvist_base::Micros;
use rustix::fs::{Advice, OFlags};

use super::{DirLock, LockError, Vfs, VfsFile};

/// The system's own files, readable by their owner only; symbolic links are not followed.
pub struct RealVfs {
    start: Instant,
}

impl RealVfs {
    pub fn new() -> Self {
        RealVfs { start: Instant::now() }
    }
}

impl Default for RealVfs {
    fn default() -> Self {
        Self::new()
    }
}

struct RealFile(File);

impl RealFile {
    fn new(file: File) -> RealFile {
        // What follows a piece is not read next, but the same layers of the next extent: reading ahead would make them wait.
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::Random);
        RealFile(file)
    }
}

struct RealLock(#[expect(dead_code, reason = "the lock is held for as long as the file is open")] File);

impl DirLock for RealLock {}

fn options() -> OpenOptions {
    let mut options = File::options();
    options.custom_flags(OFlags::NOFOLLOW.bits() as i32).mode(0o600);
    options
}

impl VfsFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(&self.0, buffer, offset)
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(&self.0, buffer, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn allocated(&self) -> io::Result<u64> {
        // `st_blocks` counts in units of 512 bytes, whatever the file system's own.
        Ok(self.0.metadata()?.blocks() * 512)
    }

    fn forget_cache(&self) {
        // Advice: nothing depends on it.
        let _ = rustix::fs::fadvise(&self.0, 0, None, Advice::DontNeed);
    }
}

impl Vfs for RealVfs {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        Ok(Arc::new(RealFile::new(options().read(true).open(path)?)))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        Ok(Arc::new(RealFile::new(options().read(true).write(true).create_new(true).open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            // Names of ours are plain ASCII.
            names.extend(entry?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn lock(&self, path: &Path, text: &str) -> Result<Box<dyn DirLock>, LockError> {
        let open = options().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = open.map_err(LockError::Io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut who = String::new();
                let _ = file.take(64).read_to_string(&mut who);
                return Err(LockError::Held(who.trim().into()));
            }
            Err(TryLockError::Error(e)) => return Err(LockError::Io(e)),
        }
        file.set_len(0).and_then(|()| file.write_all(text.as_bytes())).map_err(LockError::Io)?;
        Ok(Box::new(RealLock(file)))
    }

    fn free(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn secret(&self, path: &Path, make: Option<&[u8]>) -> io::Result<Vec<u8>> {
        match options().read(true).open(path) {
            Ok(file) => {
                let found = file.metadata()?;
                if !found.is_file() {
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
                }
                let mode = found.mode();
                if mode & 0o077 != 0 {
                    let what = format!("others may read it (mode {:o}); chmod 600 it", mode & 0o777);
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
                }
                let mut bytes = Vec::new();
                file.take(4096).read_to_end(&mut bytes)?;
                Ok(bytes)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound && make.is_some() => {
                let bytes = make.unwrap_or_default();
                let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
                // That of a bare name is empty.
                let dir = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
                self.create_dir(dir)?;
                let new = path.with_extension(format!("{}.new", std::process::id()));
                let mut file = options().write(true).create(true).truncate(true).open(&new)?;
                file.write_all(bytes)?;
                file.sync_all()?;
                // A link fails where the name is taken: of two processes that make the key at a time, one wins.
                let linked = fs::hard_link(&new, path);
                fs::remove_file(&new)?;
                match linked {
                    Ok(()) => self.sync_dir(dir).map(|()| bytes.to_vec()),
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => self.secret(path, None),
                    Err(e) => Err(e),
                }
            }
            Err(e) => Err(e),
        }
    }

    fn now(&self) -> Micros {
        self.start.elapsed().as_micros() as Micros
    }

    fn unix(&self) -> u64 {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
    }

    fn random(&self, out: &mut [u8]) -> io::Result<()> {
        getrandom::fill(out).map_err(io::Error::other)
    }
}
