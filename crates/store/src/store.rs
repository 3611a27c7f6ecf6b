use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use kvist_base::{CHUNK, DomainId, TokenId};

use crate::append::{Writer, overhead};
use crate::config::{Encryption, OpenError, StoreConfig};
use crate::format::EXTENT;
use crate::index::{Data, NodeId};
use crate::keys::Master;
use crate::load::{Load, LoadQueue, Priority};
use crate::notes::NOTE_MOST;
use crate::recover::{Recovery, check_versions};
use crate::save::{Saved, Turn};
use crate::segment::{Geometry, Phase};
use crate::state::{Canary, Shared, State, lock};
use crate::stats::{Restored, StoreStats};
use crate::vfs::{DirLock, LockError, Vfs};

/// Kind of the notes that say which paths are pinned.
pub(crate) const PIN: u8 = 255;

/// How long closing waits for what is still to be written.
const CLOSING: Duration = Duration::from_secs(10);

/// A store of chunks on disk. Clones are handles of the same store; the last one to go closes it.
#[derive(Clone)]
pub struct Store {
    owner: Arc<Owner>,
}

struct Owner {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Store {
    /// Opens the store in the directory, or makes one, and finds what is in it.
    pub fn open(vfs: Arc<dyn Vfs>, config: StoreConfig) -> Result<(Self, Restored), OpenError> {
        Self::open_with(vfs, config, Canary::None)
    }

    /// As [`Store::open`], broken on purpose.
    #[doc(hidden)]
    pub fn open_with(vfs: Arc<dyn Vfs>, config: StoreConfig, canary: Canary) -> Result<(Self, Restored), OpenError> {
        check_versions(&*vfs, &config.dir)?;
        vfs.create_dir(&config.dir)?;
        let pid = std::process::id().to_string();
        let held = vfs.lock(&config.dir.join("lock"), &pid).map_err(|e| match e {
            LockError::Held(who) => OpenError::Locked(who),
            LockError::Io(e) => OpenError::Io(e),
        })?;
        Self::build(vfs, config, canary, Some(held))
    }

    /// Looks into a store beside the process that writes it: takes no lock, writes nothing, saves nothing.
    pub fn read_only(vfs: Arc<dyn Vfs>, config: StoreConfig) -> Result<(Self, Restored), OpenError> {
        check_versions(&*vfs, &config.dir)?;
        Self::build(vfs, config, Canary::None, None)
    }

    fn build(
        vfs: Arc<dyn Vfs>,
        config: StoreConfig,
        canary: Canary,
        held: Option<Box<dyn DirLock>>,
    ) -> Result<(Self, Restored), OpenError> {
        let start = vfs.now();
        let read_only = held.is_none();
        let geometry = Geometry::new(&config.slices).ok_or(OpenError::Layout)?;
        let least = (overhead(EXTENT) + geometry.stored()) * 8;
        if !read_only && config.segment_bytes().min(config.budget / 4) < least / 8 {
            return Err(OpenError::Budget { least });
        }
        let master = match &config.encryption {
            Encryption::Off => Master::plain(),
            Encryption::Keys(file) => {
                Master::load(&*vfs, file, !read_only).map_err(|error| OpenError::Key { file: file.clone(), error })?
            }
        };
        let identity = config.identity();
        let recovery =
            Recovery { vfs: &*vfs, dir: &config.dir, identity: &identity, master: &master, geometry: &geometry };
        let (mut state, mut restored, next) = recovery.run()?;
        restored.notes = state.notes.count() as u64;
        state.notes.set_limit(config.notes);
        state.notes_durable = state.notes.waiting.is_empty();
        state.allowed = config.budget.saturating_sub(config.segment_bytes());
        if read_only {
            state.unsettled.clear();
        }
        state.index.by_hash_only = canary == Canary::CompareHashes;
        restored.seconds = (vfs.now() - start) as f64 / 1e6;
        let threads = if read_only { config.io_threads.min(1) } else { config.io_threads };
        let shared = Arc::new(Shared {
            vfs,
            geometry,
            identity,
            master,
            read_only,
            canary,
            state: Mutex::new(state),
            writer: Mutex::new(Writer { next, ..Writer::default() }),
            work: Condvar::new(),
            progress: Condvar::new(),
            loads: LoadQueue::new(config.staging),
            panics: AtomicU64::new(0),
            _lock: held,
            config,
        });
        let mut running = Vec::new();
        let spawn = |name: &str, run: fn(&Shared)| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name(name.into()).spawn(move || run(&shared))
        };
        for _ in 0..threads {
            running.push(spawn("store-read", Shared::read_loop)?);
        }
        if threads > 0 && !read_only {
            running.push(spawn("store-write", Shared::write_loop)?);
        }
        Ok((Store { owner: Arc::new(Owner { shared, threads: Mutex::new(running) }) }, restored))
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.owner.shared
    }

    /// What the store was opened with.
    pub fn config(&self) -> &StoreConfig {
        &self.shared().config
    }

    /// Makes a domain known under its name: its key is found, or made.
    pub fn register(&self, domain: DomainId, name: &str) -> std::io::Result<()> {
        let shared = self.shared();
        let mut state = shared.state();
        let state = &mut *state;
        let keys = state.keys.as_mut().expect("a store has keys");
        let keys = match keys.domains.get(name) {
            Some(keys) => keys.clone(),
            None if shared.read_only => return Err(std::io::ErrorKind::NotFound.into()),
            None if name.len() > 4096 => return Err(std::io::ErrorKind::InvalidInput.into()),
            None => keys.make(&*shared.vfs, name)?,
        };
        let at = state.index.tree(name, &keys, [0; 16], &shared.identity);
        state.bound.insert(domain, at);
        Ok(())
    }

    /// Whether a domain of this name has a key.
    pub fn knows(&self, name: &str) -> bool {
        self.shared().state().keys.as_ref().is_some_and(|keys| keys.domains.contains_key(name))
    }

    /// Makes `domain` stand for another tree of the domain that `of` stands for: of paths whose KV follows from their tokens
    /// and from what `variant` is a digest of, as where KV was carried over a cut. Zeros are the tree of exact paths.
    /// `false`: `of` is not known.
    pub fn register_variant(&self, domain: DomainId, of: DomainId, variant: [u8; 16]) -> bool {
        let mut state = self.shared().state();
        let Some(&of) = state.bound.get(&of) else { return false };
        let (name, keys) = (state.index.domains[of].name.clone(), state.index.domains[of].keys.clone());
        let at = state.index.tree(&name, &keys, variant, &self.shared().identity);
        state.bound.insert(domain, at);
        true
    }

    /// Tokens of whole chunks from chunk `from` on that could be loaded now, those that still wait to be written included.
    pub fn probe(&self, domain: DomainId, tokens: &[TokenId], from: usize) -> usize {
        let state = self.shared().state();
        let Some(&domain) = state.bound.get(&domain) else { return 0 };
        let path = state.index.walk(domain, tokens).skip(from);
        path.take_while(|&id| state.index.node(id).present()).count() * CHUNK
    }

    /// As [`Store::probe`], of what a crash would leave.
    pub fn probe_durable(&self, domain: DomainId, tokens: &[TokenId], from: usize) -> usize {
        let state = self.shared().state();
        let Some(&domain) = state.bound.get(&domain) else { return 0 };
        let path = state.index.walk(domain, tokens).skip(from);
        path.take_while(|&id| state.is_durable(id)).count() * CHUNK
    }

    /// Starts to load `chunks` of the path of `tokens`. What is not there is lost at once.
    ///
    /// # Panics
    /// If `chunks` ends behind the last whole chunk of `tokens`.
    pub fn load(&self, domain: DomainId, tokens: &[TokenId], chunks: Range<usize>, priority: Priority) -> Load {
        self.begin_load(domain, tokens, chunks, priority, false)
    }

    /// `granted`: room is kept for all of it.
    pub(crate) fn begin_load(
        &self,
        domain: DomainId,
        tokens: &[TokenId],
        chunks: Range<usize>,
        priority: Priority,
        granted: bool,
    ) -> Load {
        let bound = self.shared().state().bound.get(&domain).copied();
        self.shared().load(bound, tokens, chunks, priority, granted)
    }

    /// Queues chunks to be written: those of `path` from chunk `first` to its end. Never blocks on the disk.
    ///
    /// # Panics
    /// If `path` is not `first` chunks and these, or a chunk has not the bytes of a chunk.
    pub fn save(&self, domain: DomainId, path: &[TokenId], first: usize, chunks: Vec<Vec<u8>>) -> Saved {
        let bound = self.shared().state().bound.get(&domain).copied();
        self.shared().save(bound, path, first, chunks)
    }

    /// The last number of [`Saved::Queued`] up to which everything is durable, or will never be.
    pub fn durable(&self) -> u64 {
        self.shared().state().durable
    }

    /// Waits until everything that was queued is durable; `false` if it is not within `timeout`, or saving pauses.
    pub fn flush(&self, timeout: Duration) -> bool {
        let shared = self.shared();
        let ticket = {
            let mut state = shared.state();
            state.flush += 1;
            state.ticket
        };
        let done = |state: &State| state.durable >= ticket && !state.waiting() && state.notes_durable;
        let start = std::time::Instant::now();
        let result = if self.manual() {
            loop {
                let turn = shared.turn();
                let state = shared.state();
                if state.health.why.is_some() || turn != Turn::Worked {
                    break done(&state);
                }
            }
        } else {
            shared.work.notify_all();
            let mut state = shared.state();
            loop {
                let left = timeout.saturating_sub(start.elapsed());
                if done(&state) || left.is_zero() || state.health.why.is_some() {
                    break done(&state);
                }
                let wait = left.min(Duration::from_millis(100));
                state = shared.progress.wait_timeout(state, wait).map_or_else(|e| e.into_inner().0, |r| r.0);
            }
        };
        shared.state().flush -= 1;
        result
    }

    fn manual(&self) -> bool {
        self.shared().config.io_threads == 0
    }

    /// One piece of background work, where the store has no threads of its own.
    pub fn turn(&self) -> Turn {
        self.shared().turn()
    }

    /// Reads one piece of a load, where the store has no threads of its own; whether there was one.
    pub fn read_turn(&self) -> bool {
        self.shared().read_turn()
    }

    pub fn stats(&self) -> StoreStats {
        let shared = self.shared();
        let state = shared.state();
        let c = &state.counters;
        let seconds = |micros: u64| micros as f64 / 1e6;
        let foreign = state.segments.values().filter(|s| s.phase == Phase::Foreign).map(|s| s.bytes).sum();
        let (bytes, live) = (state.bytes(), state.live());
        StoreStats {
            entries: state.index.ids().filter(|&id| state.index.node(id).present()).count() as u64,
            budget: shared.config.budget,
            bytes,
            live,
            dead: bytes.saturating_sub(live + foreign),
            foreign,
            segments: state.segments.len() as u64,
            queued: state.queued,
            notes: state.notes.count() as u64,
            written: c.written,
            copied: c.copied,
            read: c.read,
            saved: c.saved,
            known: c.known,
            refused_full: c.full,
            refused_off: c.off,
            not_admitted: c.not_admitted,
            loads: c.loads,
            loaded: c.loaded,
            lost: c.lost,
            corrupt: c.corrupt,
            read_errors: c.read_errors,
            write_errors: c.write_errors,
            sync_errors: c.sync_errors,
            evicted: c.evicted,
            returned: c.returned,
            read_seconds: seconds(c.read_time),
            open_seconds: seconds(c.open_time),
            write_seconds: seconds(c.write_time),
            sync_seconds: seconds(c.sync_time),
            syncs: c.syncs,
            degraded: state.health.why.clone(),
            panics: shared.panics.load(Ordering::Relaxed),
        }
    }

    /// Bytes of loads that are read and not taken.
    pub fn staged(&self) -> u64 {
        self.shared().loads.staged()
    }

    /// Keeps a small record: the newest of a key counts, and of all of them the newest, as many as the budget for notes
    /// holds. Whether it was taken: not if it is larger than [`NOTE_MOST`], or the domain is not known.
    pub fn put_note(&self, domain: DomainId, kind: u8, key: &[u8], value: &[u8]) -> bool {
        kind != PIN && self.note(domain, kind, key, Some(value))
    }

    fn note(&self, domain: DomainId, kind: u8, key: &[u8], value: Option<&[u8]>) -> bool {
        let shared = self.shared();
        let mut state = shared.state();
        let known = state.bound.get(&domain).copied().filter(|&d| !state.index.domains[d].gone);
        let fits = key.len() + value.map_or(0, <[u8]>::len) <= NOTE_MOST;
        let Some(domain) = known.filter(|_| fits && !shared.read_only) else { return false };
        // Later processes give out higher numbers even if they cannot read what this one wrote.
        let least = shared.vfs.unix() << 20;
        if state.notes.put(domain, kind, key, value, least) {
            state.notes_durable = false;
            shared.work.notify_all();
        }
        true
    }

    /// Keys and values of a domain's notes of a kind, the oldest first.
    pub fn notes(&self, domain: DomainId, kind: u8) -> Vec<(Vec<u8>, Vec<u8>)> {
        let state = self.shared().state();
        state.bound.get(&domain).map_or(Vec::new(), |&domain| state.notes.list(domain, kind))
    }

    /// Keeps the chunks of a path from eviction, or no longer; across restarts, too. How many chunks of it are here: none if
    /// nothing could be noted of it, as for more than [`PIN_MOST`] tokens.
    pub fn pin(&self, domain: DomainId, tokens: &[TokenId], keep: bool) -> usize {
        let bytes: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
        if !self.note(domain, PIN, &bytes, keep.then_some(&[])) {
            return 0;
        }
        let mut state = self.shared().state();
        let Some(&domain) = state.bound.get(&domain) else { return 0 };
        pin(&mut state, domain, tokens, keep)
    }
}

/// Tokens of a path that can be pinned, at most.
pub const PIN_MOST: usize = NOTE_MOST / size_of::<TokenId>();

pub(crate) fn tokens_of(bytes: &[u8]) -> Vec<TokenId> {
    bytes.as_chunks::<4>().0.iter().map(|b| TokenId::from_le_bytes(*b)).collect()
}

/// A node with children stays anyway: the last one of the path is what is pinned.
pub(crate) fn pin(state: &mut State, domain: usize, tokens: &[TokenId], keep: bool) -> usize {
    let path: Vec<NodeId> = state.index.walk(domain, tokens).collect();
    if let Some(&last) = path.last() {
        state.index.node_mut(last).pinned = keep;
        state.index.prune(last);
    }
    path.len()
}

impl State {
    /// Whether a crash would leave the chunk.
    pub fn is_durable(&self, id: NodeId) -> bool {
        let Data::Stored(place) = self.index.node(id).data else { return false };
        let Some(segment) = self.segments.get(&place.segment) else { return false };
        let extent = &segment.extents[place.extent as usize];
        extent.offset + extent.total <= segment.durable.next_multiple_of(crate::format::ALIGN)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let shared = &self.shared;
        {
            let mut state = shared.state();
            state.stop = true;
            state.stop_by = shared.vfs.now() + CLOSING.as_micros() as u64;
        }
        shared.work.notify_all();
        shared.loads.shut();
        let threads = std::mem::take(&mut *lock(&self.threads));
        if threads.is_empty() {
            let end = std::time::Instant::now() + CLOSING;
            while shared.turn() == Turn::Worked && std::time::Instant::now() < end {}
        }
        for thread in threads {
            let _ = thread.join();
        }
        // A segment that is not ended is read record by record next time, and nothing worse.
        let _ = shared.close(&mut lock(&shared.writer));
        shared.remove_doomed();
    }
}
