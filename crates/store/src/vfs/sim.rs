use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvist_base::Micros;

use super::{DirLock, LockError, Vfs, VfsFile};
use crate::random::Random;

/// Bytes that a disk writes at a time: of a write that power cuts, any set of these may be there.
const SECTOR: u64 = 512;

/// What becomes of writes, and of names, that were not synced when power fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Only the process died: everything is there.
    Nothing,
    /// Nothing of it is there.
    All,
    /// Each is there or not.
    Subset,
    /// The first of them are there.
    Prefix,
    /// Each sector of each write is there or not.
    Torn,
    /// Some are there, written in another order.
    Reordered,
}

impl Loss {
    pub const EVERY: [Loss; 6] = [Loss::Nothing, Loss::All, Loss::Subset, Loss::Prefix, Loss::Torn, Loss::Reordered];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The device fails.
    Eio,
    /// The disk is full; operations that take no room are not touched.
    Enospc,
    /// Half of the bytes.
    Short,
    /// A signal came first.
    Eintr,
}

/// Something that goes wrong at the `at`-th operation, counted from the beginning.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub at: u64,
    pub kind: FaultKind,
    /// And at every one after it.
    pub sticky: bool,
}

#[derive(Clone)]
enum Op {
    Create {
        path: PathBuf,
        inode: usize,
    },
    Write {
        inode: usize,
        offset: u64,
        bytes: Arc<[u8]>,
    },
    Sync {
        inode: usize,
    },
    /// A sync that failed: what it was to write may or may not be there, and no later sync writes it.
    FailedSync {
        inode: usize,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
        inode: usize,
    },
    Remove {
        path: PathBuf,
    },
    SyncDir,
}

#[derive(Default)]
struct Disk {
    files: Vec<Vec<u8>>,
    names: BTreeMap<PathBuf, usize>,
    secrets: BTreeMap<PathBuf, Vec<u8>>,
    /// What was there before the first operation.
    first: BTreeMap<PathBuf, Vec<u8>>,
    log: Vec<Op>,
    operations: u64,
    fault: Option<Fault>,
    capacity: Option<u64>,
    lying: bool,
    random: Random,
}

/// A file system in memory that logs what is done to it, so that any moment of its life can be the one when power fails;
/// with a clock that stands still unless told and randomness from a seed. Clones are the same system.
#[derive(Clone)]
pub struct SimVfs {
    disk: Arc<Mutex<Disk>>,
    held: Arc<AtomicBool>,
    now: Arc<Mutex<Micros>>,
}

struct SimFile {
    disk: Arc<Mutex<Disk>>,
    inode: usize,
}

struct SimLock(Arc<AtomicBool>);

impl DirLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

fn lock(disk: &Mutex<Disk>) -> MutexGuard<'_, Disk> {
    disk.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Disk {
    /// Counts an operation; says what goes wrong with it.
    fn operation(&mut self) -> Option<FaultKind> {
        let n = self.operations;
        self.operations += 1;
        let fault = self.fault?;
        (n == fault.at || fault.sticky && n > fault.at).then_some(fault.kind)
    }

    /// An operation that succeeds as a whole or fails; `grows`: it takes room.
    fn whole(&mut self, grows: bool) -> io::Result<()> {
        match self.operation() {
            Some(FaultKind::Eio) => Err(io::Error::from_raw_os_error(5)),
            Some(FaultKind::Enospc) if grows => Err(io::Error::from_raw_os_error(28)),
            _ => Ok(()),
        }
    }

    /// An operation on `n` bytes: of how many it is.
    fn partial(&mut self, n: usize, grows: bool) -> io::Result<usize> {
        match self.operation() {
            Some(FaultKind::Eio) => Err(io::Error::from_raw_os_error(5)),
            Some(FaultKind::Enospc) if grows => Err(io::Error::from_raw_os_error(28)),
            // A sticky signal would never let anything through; every other attempt does.
            Some(FaultKind::Eintr) if self.operations.is_multiple_of(2) || !self.fault.is_some_and(|f| f.sticky) => {
                Err(io::ErrorKind::Interrupted.into())
            }
            Some(FaultKind::Short) => Ok(n.div_ceil(2)),
            _ => Ok(n),
        }
    }

    fn used(&self) -> u64 {
        self.names.values().map(|&i| self.files[i].len() as u64).sum()
    }
}

fn write(file: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let (from, to) = (offset as usize, offset as usize + bytes.len());
    if file.len() < to {
        file.resize(to, 0);
    }
    file[from..to].copy_from_slice(bytes);
}

impl SimVfs {
    pub fn new(seed: u64) -> Self {
        let disk = Disk { random: Random::new(seed), ..Disk::default() };
        SimVfs { disk: Arc::new(Mutex::new(disk)), held: Arc::default(), now: Arc::default() }
    }

    /// A system that holds these files, durably.
    pub fn with_files(seed: u64, files: impl IntoIterator<Item = (PathBuf, Vec<u8>)>) -> Self {
        let vfs = SimVfs::new(seed);
        {
            let mut disk = lock(&vfs.disk);
            disk.first = files.into_iter().collect();
            for (path, bytes) in disk.first.clone() {
                let inode = disk.files.len();
                disk.files.push(bytes);
                disk.names.insert(path, inode);
            }
        }
        vfs
    }

    /// Changes made so far: each of them is a place where power may fail.
    pub fn changes(&self) -> usize {
        lock(&self.disk).log.len()
    }

    /// Operations so far, those that change nothing included.
    pub fn operations(&self) -> u64 {
        lock(&self.disk).operations
    }

    pub fn inject(&self, fault: Option<Fault>) {
        lock(&self.disk).fault = fault;
    }

    /// Bytes that fit; `None`: any number.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        lock(&self.disk).capacity = bytes;
    }

    /// From now on, syncs say that they succeeded and do nothing.
    pub fn skip_syncs(&self) {
        lock(&self.disk).lying = true;
    }

    pub fn advance(&self, by: Micros) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) += by;
    }

    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let disk = lock(&self.disk);
        disk.names.iter().map(|(path, &i)| (path.clone(), disk.files[i].clone())).collect()
    }

    /// Turns one bit of a file around.
    pub fn flip(&self, path: &Path, bit: u64) {
        let mut disk = lock(&self.disk);
        let inode = disk.names[path];
        disk.files[inode][(bit / 8) as usize] ^= 1 << (bit % 8);
    }

    /// Takes over the small files that only their owner may read.
    pub fn adopt_secrets(&self, from: &SimVfs) {
        let secrets = lock(&from.disk).secrets.clone();
        lock(&self.disk).secrets = secrets;
    }

    /// The system as it may be found after power failed behind the first `changes` changes.
    pub fn crash(&self, changes: usize, loss: Loss, seed: u64) -> SimVfs {
        let mut rng = Random::new(seed);
        let disk = lock(&self.disk);
        let mut files: Vec<Vec<u8>> = disk.first.values().cloned().collect();
        let mut names: BTreeMap<PathBuf, usize> = disk.first.keys().cloned().zip(0..).collect();
        let mut forgotten = BTreeSet::new();
        let mut pending: Vec<(usize, &Op)> = Vec::new();
        for (i, op) in disk.log[..changes].iter().enumerate() {
            match op {
                Op::Sync { inode } => pending.retain(|(at, op)| match op {
                    Op::Write { inode: other, offset, bytes } if other == inode && !forgotten.contains(at) => {
                        files.resize(files.len().max(inode + 1), Vec::new());
                        write(&mut files[*inode], *offset, bytes);
                        false
                    }
                    _ => true,
                }),
                Op::FailedSync { inode } => {
                    let theirs =
                        pending.iter().filter(|(_, op)| matches!(op, Op::Write { inode: i, .. } if i == inode));
                    forgotten.extend(theirs.map(|(at, _)| *at));
                }
                Op::SyncDir => pending.retain(|(_, op)| !apply_name(&mut names, op)),
                _ => pending.push((i, op)),
            }
        }
        match loss {
            Loss::All => pending.clear(),
            Loss::Subset | Loss::Reordered => pending.retain(|_| rng.chance(50)),
            Loss::Prefix => pending.truncate(rng.below(pending.len() + 1)),
            Loss::Nothing | Loss::Torn => {}
        }
        if loss == Loss::Reordered {
            for i in (1..pending.len()).rev() {
                pending.swap(i, rng.below(i + 1));
            }
        }
        for (_, op) in pending {
            if let Op::Write { inode, offset, bytes } = op {
                files.resize(files.len().max(inode + 1), Vec::new());
                let mut at = 0;
                while at < bytes.len() {
                    let to = bytes.len().min(((offset + at as u64) / SECTOR * SECTOR + SECTOR - offset) as usize);
                    if loss != Loss::Torn || rng.chance(50) {
                        write(&mut files[*inode], offset + at as u64, &bytes[at..to]);
                    }
                    at = to;
                }
            } else if loss != Loss::Torn || rng.chance(50) {
                apply_name(&mut names, op);
            }
        }
        let files = names.into_iter().map(|(path, i)| (path, files.get(i).cloned().unwrap_or_default()));
        let after = SimVfs::with_files(rng.word(), files);
        lock(&after.disk).secrets = disk.secrets.clone();
        after
    }
}

/// Whether the change was one of names.
fn apply_name(names: &mut BTreeMap<PathBuf, usize>, op: &Op) -> bool {
    match op {
        Op::Create { path, inode } => drop(names.insert(path.clone(), *inode)),
        Op::Rename { from, to, inode } => {
            names.remove(from);
            names.insert(to.clone(), *inode);
        }
        Op::Remove { path } => drop(names.remove(path)),
        _ => return false,
    }
    true
}

impl VfsFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut disk = lock(&self.disk);
        let file = disk.files[self.inode].len();
        let n = buffer.len().min(file.saturating_sub(offset as usize));
        let n = if n == 0 { 0 } else { disk.partial(n, false)? };
        buffer[..n].copy_from_slice(&disk.files[self.inode][offset as usize..][..n]);
        Ok(n)
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<usize> {
        let mut disk = lock(&self.disk);
        let n = disk.partial(buffer.len(), true)?;
        let grows = (offset + n as u64).saturating_sub(disk.files[self.inode].len() as u64);
        if disk.capacity.is_some_and(|most| disk.used() + grows > most) {
            return Err(io::Error::from_raw_os_error(28));
        }
        write(&mut disk.files[self.inode], offset, &buffer[..n]);
        disk.log.push(Op::Write { inode: self.inode, offset, bytes: buffer[..n].into() });
        Ok(n)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = lock(&self.disk);
        let result = disk.whole(true);
        if !disk.lying {
            let inode = self.inode;
            disk.log.push(if result.is_ok() { Op::Sync { inode } } else { Op::FailedSync { inode } });
        }
        result
    }

    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.disk).files[self.inode].len() as u64)
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.len()?.next_multiple_of(4096))
    }
}

impl Vfs for SimVfs {
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        lock(&self.disk).whole(true)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        let mut disk = lock(&self.disk);
        disk.whole(false)?;
        let &inode = disk.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile { disk: Arc::clone(&self.disk), inode }))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        let mut disk = lock(&self.disk);
        disk.whole(true)?;
        if disk.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = disk.files.len();
        disk.files.push(Vec::new());
        disk.names.insert(path.into(), inode);
        disk.log.push(Op::Create { path: path.into(), inode });
        Ok(Arc::new(SimFile { disk: Arc::clone(&self.disk), inode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = lock(&self.disk);
        disk.whole(true)?;
        let inode = disk.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        disk.names.insert(to.into(), inode);
        disk.log.push(Op::Rename { from: from.into(), to: to.into(), inode });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = lock(&self.disk);
        disk.whole(false)?;
        disk.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        disk.log.push(Op::Remove { path: path.into() });
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut disk = lock(&self.disk);
        disk.whole(false)?;
        let names = disk.names.keys().filter_map(|path| path.strip_prefix(dir).ok()?.to_str().map(String::from));
        Ok(names.collect())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        let mut disk = lock(&self.disk);
        disk.whole(true)?;
        if !disk.lying {
            disk.log.push(Op::SyncDir);
        }
        Ok(())
    }

    fn lock(&self, _: &Path, _: &str) -> Result<Box<dyn DirLock>, LockError> {
        lock(&self.disk).whole(false).map_err(LockError::Io)?;
        match self.held.swap(true, Ordering::SeqCst) {
            true => Err(LockError::Held("somebody".into())),
            false => Ok(Box::new(SimLock(Arc::clone(&self.held)))),
        }
    }

    fn free(&self, _: &Path) -> io::Result<u64> {
        let disk = lock(&self.disk);
        Ok(disk.capacity.map_or(u64::MAX, |most| most.saturating_sub(disk.used())))
    }

    fn secret(&self, path: &Path, make: Option<&[u8]>) -> io::Result<Vec<u8>> {
        let mut disk = lock(&self.disk);
        disk.whole(make.is_some())?;
        if let Some(bytes) = disk.secrets.get(path) {
            return Ok(bytes.clone());
        }
        let bytes = make.ok_or(io::ErrorKind::NotFound)?.to_vec();
        disk.secrets.insert(path.into(), bytes.clone());
        Ok(bytes)
    }

    fn now(&self) -> Micros {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unix(&self) -> u64 {
        1_700_000_000 + self.now() / 1_000_000
    }

    fn random(&self, out: &mut [u8]) -> io::Result<()> {
        let mut disk = lock(&self.disk);
        for chunk in out.chunks_mut(8) {
            let word = disk.random.word().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        Ok(())
    }
}
