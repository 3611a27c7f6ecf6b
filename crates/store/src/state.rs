//! What the threads of a store share.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use kvist_base::{DomainId, Micros};

use crate::append::Writer;
use crate::config::StoreConfig;
use crate::crypto::{Key, Sealer};
use crate::index::{Data, Index, NodeId, Place};
use crate::keys::{KeyTable, Master};
use crate::load::LoadQueue;
use crate::notes::Notes;
use crate::segment::{Geometry, Phase, Segment, SegmentFile};
use crate::stats::Counters;
use crate::vfs::{DirLock, Vfs};

/// Ways to break the store on purpose, so that tests can show that they would notice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Canary {
    #[default]
    None,
    /// Tags are not looked at.
    SkipTags,
    /// Slices are handed out before they are verified.
    PublishBeforeVerify,
    /// Chunks match by a hash of their tokens.
    CompareHashes,
    /// Saves count as durable before they are synced.
    SkipSync,
    /// A sync that failed is tried again, as if that meant anything.
    RetrySync,
    /// What waiting requests want goes like anything else.
    IgnoreWants,
}

/// A run of chunks that waits to be written; each of its nodes is the parent of the next.
pub(crate) struct Job {
    pub nodes: Vec<(NodeId, Arc<Vec<u8>>)>,
    pub ticket: u64,
}

/// Whether saving works.
#[derive(Default)]
pub(crate) struct Health {
    /// Why it does not.
    pub why: Option<String>,
    /// When it is tried again.
    pub retry: Micros,
    /// Failures since it last worked.
    pub failures: u32,
}

/// Chunks that were evicted lately, by the beginnings of their names: a statistic, nothing is found by it.
#[derive(Default)]
pub(crate) struct Ghosts {
    names: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Ghosts {
    const MOST: usize = 1 << 16;

    fn name(chain: &Key) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|i| chain[i]))
    }

    pub fn add(&mut self, chain: &Key) {
        let name = Self::name(chain);
        if self.names.insert(name) {
            self.order.push_back(name);
        }
        if self.order.len() > Self::MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.names.remove(&oldest);
        }
    }

    /// Whether the chunk was evicted; it counts once.
    pub fn take(&mut self, chain: &Key) -> bool {
        self.names.remove(&Self::name(chain))
    }
}

#[derive(Default)]
pub(crate) struct State {
    pub index: Index,
    pub segments: BTreeMap<u64, Segment>,
    /// Files that are to be removed as soon as nobody reads them.
    pub doomed: Vec<(Arc<SegmentFile>, u64)>,
    /// The tree that each number stands for.
    pub bound: HashMap<DomainId, usize>,
    pub keys: Option<KeyTable>,
    /// Extents that an earlier process may not have made durable: (segment, index). They are written again.
    pub unsettled: Vec<(u64, u32)>,
    pub queue: VecDeque<Job>,
    /// Bytes in `queue`, and in what is being written.
    pub queued: u64,
    pub notes: Notes,
    /// Nothing was noted since the last sync that followed the last note.
    pub notes_durable: bool,
    /// Numbers of the last save, and of the last one of which everything up to it is durable or gone.
    pub ticket: u64,
    pub durable: u64,
    /// Tickets that are being written now.
    pub writing: Vec<u64>,
    pub health: Health,
    pub counters: Counters,
    pub ghosts: Ghosts,
    /// Bytes that files may take, when the writer last looked.
    pub allowed: u64,
    /// Somebody waits for everything to be durable.
    pub flush: u32,
    pub stop: bool,
    /// When closing no longer waits for what is still to be written.
    pub stop_by: Micros,
}

pub(crate) struct Shared {
    pub vfs: Arc<dyn Vfs>,
    pub config: StoreConfig,
    pub geometry: Geometry,
    /// Of this store's fingerprint.
    pub identity: Key,
    pub master: Master,
    pub read_only: bool,
    pub canary: Canary,
    pub state: Mutex<State>,
    /// Held while segments are written, copied or removed.
    pub writer: Mutex<Writer>,
    /// There is something to write, or to stop for.
    pub work: Condvar,
    /// Something was written or became durable.
    pub progress: Condvar,
    pub loads: LoadQueue,
    pub panics: AtomicU64,
    pub _lock: Option<Box<dyn DirLock>>,
}

/// A lock whose holder panicked is as good as any other: what it guards is changed in single steps, or rebuilt.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.config.dir.join(name)
    }

    pub fn sealer(&self, domain_key: &Key, id: &crate::crypto::RecordId) -> Sealer {
        Sealer::new(self.master.mode, domain_key, id)
    }

    pub fn panicked(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }
}

impl State {
    /// Whether there is something to write.
    pub fn waiting(&self) -> bool {
        !self.queue.is_empty() || !self.notes.waiting.is_empty() || !self.unsettled.is_empty()
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.segments.values().map(|s| s.bytes).sum::<u64>() + self.doomed.iter().map(|(_, bytes)| bytes).sum::<u64>()
    }

    /// Bytes on disk that chunks take which can be found.
    pub fn live(&self) -> u64 {
        self.segments.values().filter(|s| s.phase != Phase::Foreign).map(|s| s.live).sum()
    }

    /// Where a chunk is no longer wanted.
    fn vacate(&mut self, place: Place, stored: u64) {
        let Some(segment) = self.segments.get_mut(&place.segment) else { return };
        let extent = &mut segment.extents[place.extent as usize];
        if extent.nodes[usize::from(place.chunk)].take().is_some() {
            segment.live = segment.live.saturating_sub(stored);
        }
    }

    /// The chunk is not here any more; what is below it stays.
    pub fn drop_chunk(&mut self, id: NodeId, stored: u64) {
        let node = self.index.node_mut(id);
        if let Data::Stored(place) = std::mem::replace(&mut node.data, Data::Absent) {
            self.vacate(place, stored);
        }
        self.index.prune(id);
    }

    /// The chunk is at `place` now.
    pub fn store_chunk(&mut self, id: NodeId, place: Place, stored: u64) {
        let node = self.index.node_mut(id);
        if let Data::Stored(old) = std::mem::replace(&mut node.data, Data::Stored(place)) {
            self.vacate(old, stored);
        }
        let segment = self.segments.get_mut(&place.segment).expect("chunks are stored in segments that are there");
        segment.extents[place.extent as usize].nodes[usize::from(place.chunk)] = Some(id);
        segment.live += stored;
        self.index.refresh(id);
    }

    /// Everything up to the last save that was taken from the queue is durable.
    pub fn advance_durable(&mut self) {
        let waiting = self.queue.iter().map(|job| job.ticket).chain(self.writing.iter().copied()).min();
        self.durable = waiting.map_or(self.ticket, |ticket| ticket - 1);
    }
}
