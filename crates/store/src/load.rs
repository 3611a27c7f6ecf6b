//! Reading: a load is a list of pieces in layer-major order, a piece a stretch of one extent of a MiB or more. Threads read
//! and verify pieces ahead of whoever takes the slices; who waits for a piece that nobody has begun reads it himself, so
//! that a load comes to its end with no thread at all.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvist_base::{CHUNK, Micros, TokenId};

use crate::crypto::{Key, Part, Sealer, TAG};
use crate::format::EXTENT;
use crate::index::{Data, NodeId, Place};
use crate::segment::SegmentFile;
use crate::state::{Canary, Shared, State, lock};
use crate::vfs::read_exact;

/// Bytes of a piece at least, where an extent has so many: the first one, so that the first layers come soon, and, twice as
/// many from one to the next, the others.
const FIRST: usize = 128 << 10;
const PIECE: usize = 1 << 20;
/// Buffers that are kept for the next pieces.
const SPARE: usize = 32;

/// The slice will not come: the chunk was damaged, could not be read, or went before it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a slice could not be loaded")
    }
}

impl std::error::Error for Lost {}

/// Which loads are read first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Somebody will want it.
    Prefetch,
    /// Somebody waits.
    Urgent,
}

/// A chunk of a stretch.
struct Wanted {
    /// Index in its extent as it was saved.
    chunk: u8,
    chain: Key,
    node: NodeId,
    place: Place,
}

/// Consecutive chunks of a load that have one source.
enum Source {
    Missing,
    Memory(Arc<Vec<u8>>),
    Disk(Box<Stretch>),
}

/// Neighbours in one extent.
struct Stretch {
    file: Arc<SegmentFile>,
    sealer: Sealer,
    /// Offset of the extent's slices.
    data: u64,
    /// Chunks in the extent that are there.
    count: usize,
    /// Which of those is the first.
    rank: usize,
    chunks: Vec<Wanted>,
    /// The piece that each layer is in.
    pieces: Vec<u32>,
}

/// What is read at once: some layers of a stretch.
struct Piece {
    source: usize,
    layers: Range<usize>,
    offset: u64,
    length: usize,
}

enum Progress {
    Pending,
    Running,
    Ready {
        bytes: Arc<Vec<u8>>,
        /// `[layer][chunk]` of the piece: does not verify.
        bad: Vec<bool>,
        /// Slices that were not taken yet.
        left: usize,
    },
    Taken,
}

type Callback = Box<dyn FnOnce() + Send>;

struct LoadState {
    pieces: Vec<Progress>,
    /// Everything before it was begun.
    next: usize,
    priority: Priority,
    /// A piece that somebody waits for who does not read himself.
    wanted: Option<usize>,
    cancelled: bool,
    /// Pieces of each layer that have not arrived.
    missing: Vec<u32>,
    /// First chunk of the load that was lost.
    lost: Option<usize>,
    read: Micros,
    opened: Micros,
    bytes: u64,
    then: Option<Callback>,
}

pub(crate) struct LoadInner {
    sources: Vec<Source>,
    pieces: Vec<Piece>,
    /// Source of each chunk, and its index there.
    chunks: Vec<(usize, usize)>,
    state: Mutex<LoadState>,
    arrived: Condvar,
}

#[derive(Default)]
pub(crate) struct LoadQueue {
    waiting: Mutex<VecDeque<Arc<LoadInner>>>,
    more: Condvar,
    /// Bytes that are read, or being read, and not taken.
    staged: AtomicU64,
    spare: Mutex<Vec<Vec<u8>>>,
    pub stop: AtomicBool,
}

/// A load under way. Dropping it gives it up.
pub struct Load {
    shared: Arc<Shared>,
    inner: Arc<LoadInner>,
}

impl Shared {
    /// Plans a load of `range` of the chunks of `tokens` and queues it.
    pub(crate) fn load(
        self: &Arc<Self>,
        domain: Option<usize>,
        tokens: &[TokenId],
        range: Range<usize>,
        priority: Priority,
    ) -> Load {
        assert!(range.end * CHUNK <= tokens.len(), "chunks {range:?} of {} tokens", tokens.len());
        let (mut sources, chunks) = {
            let mut state = self.state();
            state.counters.loads += 1;
            self.sources(&mut state, domain, &tokens[..range.end * CHUNK], range)
        };
        let pieces = self.pieces(&mut sources);
        let mut missing = vec![0; self.geometry.layers()];
        pieces.iter().for_each(|p| p.layers.clone().for_each(|l| missing[l] += 1));
        let lost = chunks.iter().position(|c| matches!(sources[c.0], Source::Missing));
        let inner = Arc::new(LoadInner {
            state: Mutex::new(LoadState {
                pieces: pieces.iter().map(|_| Progress::Pending).collect(),
                next: 0,
                priority,
                wanted: None,
                cancelled: false,
                missing,
                lost,
                read: 0,
                opened: 0,
                bytes: 0,
                then: None,
            }),
            sources,
            pieces,
            chunks,
            arrived: Condvar::new(),
        });
        if !inner.pieces.is_empty() {
            lock(&self.loads.waiting).push_back(Arc::clone(&inner));
            self.loads.more.notify_all();
        }
        Load { shared: Arc::clone(self), inner }
    }

    fn sources(
        &self,
        state: &mut State,
        domain: Option<usize>,
        tokens: &[TokenId],
        range: Range<usize>,
    ) -> (Vec<Source>, Vec<(usize, usize)>) {
        let now = self.vfs.now() as i64;
        let nodes: Vec<NodeId> = domain.map_or(Vec::new(), |d| state.index.walk(d, tokens).collect());
        let mut sources = Vec::new();
        let mut chunks = Vec::with_capacity(range.len());
        for i in range {
            let Some(&id) = nodes.get(i) else {
                sources.push(Source::Missing);
                chunks.push((sources.len() - 1, 0));
                continue;
            };
            state.index.touch(id, now);
            let node = state.index.node(id);
            let place = match &node.data {
                Data::Absent => {
                    sources.push(Source::Missing);
                    chunks.push((sources.len() - 1, 0));
                    continue;
                }
                Data::Queued(bytes) => {
                    sources.push(Source::Memory(Arc::clone(bytes)));
                    chunks.push((sources.len() - 1, 0));
                    continue;
                }
                Data::Stored(place) => *place,
            };
            let Some(segment) = state.segments.get(&place.segment) else {
                sources.push(Source::Missing);
                chunks.push((sources.len() - 1, 0));
                continue;
            };
            let extent = &segment.extents[place.extent as usize];
            let rank = extent.rank(place.chunk);
            let wanted = Wanted { chunk: place.chunk, chain: node.chain, node: id, place };
            if let Some(Source::Disk(stretch)) = sources.last_mut() {
                let last = stretch.chunks.last().expect("a stretch has chunks").place;
                if (last.segment, last.extent) == (place.segment, place.extent)
                    && stretch.rank + stretch.chunks.len() == rank
                {
                    stretch.chunks.push(wanted);
                    chunks.push((sources.len() - 1, rank));
                    continue;
                }
            }
            let key = state.index.domains[extent.domain].keys.key;
            sources.push(Source::Disk(Box::new(Stretch {
                file: Arc::clone(&segment.file),
                sealer: self.sealer(&key, &extent.id),
                data: extent.data,
                count: extent.count(),
                rank,
                chunks: vec![wanted],
                pieces: Vec::new(),
            })));
            chunks.push((sources.len() - 1, rank));
        }
        // Ranks become indices into stretches.
        for (source, at) in &mut chunks {
            if let Source::Disk(stretch) = &sources[*source] {
                *at -= stretch.rank;
            }
        }
        (sources, chunks)
    }

    fn pieces(&self, sources: &mut [Source]) -> Vec<Piece> {
        let g = &self.geometry;
        let mut pieces = Vec::new();
        for (source, stretch) in sources.iter().enumerate() {
            let Source::Disk(stretch) = stretch else { continue };
            let n = stretch.chunks.len();
            let end =
                |layer: usize| g.slice(stretch.count, layer, stretch.rank + n - 1) + (g.slices[layer] + TAG) as u64;
            let (mut from, mut least) = (0, FIRST);
            while from < g.layers() {
                let start = g.slice(stretch.count, from, stretch.rank);
                let mut to = from + 1;
                // What lies between the layers' stretches is read for nothing: at most as much as is wanted.
                while to < g.layers() && ((end(to - 1) - start) as usize) < least && 2 * n >= stretch.count {
                    to += 1;
                }
                let length = (end(to - 1) - start) as usize;
                pieces.push(Piece { source, layers: from..to, offset: stretch.data + start, length });
                (from, least) = (to, (2 * least).min(PIECE));
            }
        }
        pieces.sort_by_key(|p| (p.layers.start, p.source));
        for (i, piece) in pieces.iter().enumerate() {
            if let Source::Disk(stretch) = &mut sources[piece.source] {
                stretch.pieces.resize(g.layers(), 0);
                stretch.pieces[piece.layers.clone()].fill(i as u32);
            }
        }
        pieces
    }

    /// Reads and verifies a piece that the caller has marked as running. Whatever happens, it does not stay so.
    fn run(&self, load: &LoadInner, at: usize) {
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.read_piece(load, at)));
        if ran.is_err() {
            self.panicked();
            let slices = load.pieces[at].layers.len() * EXTENT;
            lock(&load.state).pieces[at] =
                Progress::Ready { bytes: Arc::default(), bad: vec![true; slices], left: slices };
            load.arrived.notify_all();
        }
    }

    fn read_piece(&self, load: &LoadInner, at: usize) {
        let piece = &load.pieces[at];
        let Source::Disk(stretch) = &load.sources[piece.source] else { return };
        self.loads.staged.fetch_add(piece.length as u64, Ordering::Relaxed);
        let mut bytes = lock(&self.loads.spare).pop().unwrap_or_default();
        let slices = piece.layers.len() * stretch.chunks.len();
        let mut bad = vec![false; slices];
        let start = self.vfs.now();
        bytes.resize(piece.length, 0);
        let read = read_exact(&*stretch.file.file, &mut bytes, piece.offset);
        let done = self.vfs.now();
        if read.is_ok() && self.canary == Canary::PublishBeforeVerify {
            let bytes = Arc::new(bytes.clone());
            lock(&load.state).pieces[at] = Progress::Ready { bytes, bad: bad.clone(), left: slices };
        }
        match &read {
            Ok(()) => self.open_slices(stretch, piece, &mut bytes, &mut bad),
            Err(_) => bad.fill(true),
        }
        let opened = self.vfs.now();
        let lost =
            (0..stretch.chunks.len()).find(|i| bad.iter().skip(*i).step_by(stretch.chunks.len()).any(|bad| *bad));
        if lost.is_some() {
            self.damaged(stretch, &bad, read.is_err());
        }
        {
            let mut state = self.state();
            state.counters.read += piece.length as u64;
            state.counters.read_time += done - start;
            state.counters.open_time += opened - done;
            state.counters.loaded += bad.iter().filter(|b| !**b).count() as u64;
            state.counters.lost += bad.iter().filter(|b| **b).count() as u64;
        }
        let mut state = lock(&load.state);
        state.read += done - start;
        state.opened += opened - done;
        state.bytes += piece.length as u64;
        piece.layers.clone().for_each(|l| state.missing[l] = state.missing[l].saturating_sub(1));
        if let Some(lost) = lost {
            let first = load.chunks.iter().position(|&c| c == (piece.source, lost));
            state.lost = state.lost.into_iter().chain(first).min();
        }
        if state.cancelled {
            state.pieces[at] = Progress::Taken;
            self.loads.release(piece.length, bytes);
        } else if self.canary != Canary::PublishBeforeVerify || read.is_err() {
            state.pieces[at] = Progress::Ready { bytes: Arc::new(bytes), bad, left: slices };
        }
        let then = if state.missing.iter().all(|&n| n == 0) { state.then.take() } else { None };
        drop(state);
        load.arrived.notify_all();
        if let Some(then) = then {
            then();
        }
    }

    fn open_slices(&self, stretch: &Stretch, piece: &Piece, bytes: &mut [u8], bad: &mut [bool]) {
        let g = &self.geometry;
        for layer in piece.layers.clone() {
            for (i, wanted) in stretch.chunks.iter().enumerate() {
                let at = self.within(stretch, piece, layer, i);
                let (slice, rest) = bytes[at..].split_at_mut(g.slices[layer]);
                let mut tag = [0; TAG];
                tag.copy_from_slice(&rest[..TAG]);
                let part = Part::Slice { layer: layer as u32, chunk: wanted.chunk.into() };
                let good = stretch.sealer.open(part, &wanted.chain, slice, &tag);
                bad[(layer - piece.layers.start) * stretch.chunks.len() + i] = !good && self.canary != Canary::SkipTags;
            }
        }
    }

    /// Offset of a slice in the bytes of its piece.
    fn within(&self, stretch: &Stretch, piece: &Piece, layer: usize, i: usize) -> usize {
        (stretch.data + self.geometry.slice(stretch.count, layer, stretch.rank + i) - piece.offset) as usize
    }

    /// Takes what does not verify out of the index: it is not offered again until it is saved again.
    fn damaged(&self, stretch: &Stretch, bad: &[bool], unreadable: bool) {
        let mut state = self.state();
        if unreadable {
            state.counters.read_errors += 1;
        }
        for (i, wanted) in stretch.chunks.iter().enumerate() {
            if bad.iter().skip(i).step_by(stretch.chunks.len()).any(|bad| *bad) {
                let there = state.index.get(wanted.node).is_some_and(|node| {
                    node.chain == wanted.chain && matches!(node.data, Data::Stored(place) if place == wanted.place)
                });
                state.counters.corrupt += u64::from(!unreadable);
                if there {
                    state.counters.evicted.damaged += 1;
                    state.drop_chunk(wanted.node, self.geometry.weight());
                }
            }
        }
    }

    /// Reads one piece of the most urgent load; whether there was one to read.
    pub(crate) fn read_turn(&self) -> bool {
        let Some((load, at)) = self.loads.pick(self.config.staging) else { return false };
        self.run(&load, at);
        true
    }

    pub(crate) fn read_loop(&self) {
        while !self.loads.stop.load(Ordering::Relaxed) {
            let turn = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.read_turn()));
            match turn {
                Ok(true) => {}
                Ok(false) => {
                    let waiting = lock(&self.loads.waiting);
                    // Whoever frees room or adds a load notifies without a lock held across both: look again soon.
                    drop(self.loads.more.wait_timeout(waiting, Duration::from_millis(50)));
                }
                Err(_) => self.panicked(),
            }
        }
    }
}

impl LoadQueue {
    /// The next piece to read, marked as running.
    fn pick(&self, limit: u64) -> Option<(Arc<LoadInner>, usize)> {
        let mut waiting = lock(&self.waiting);
        let mut order: Vec<Arc<LoadInner>> = waiting.iter().cloned().collect();
        order.sort_by_key(|load| {
            let state = lock(&load.state);
            std::cmp::Reverse((state.wanted.is_some(), state.priority))
        });
        for load in order {
            let mut state = lock(&load.state);
            while matches!(state.pieces.get(state.next), Some(p) if !matches!(p, Progress::Pending)) {
                state.next += 1;
            }
            if let Some(at) = state.wanted.take().filter(|&at| matches!(state.pieces[at], Progress::Pending)) {
                state.pieces[at] = Progress::Running;
                drop(state);
                return Some((load, at));
            }
            let at = state.next;
            if state.cancelled || at == load.pieces.len() {
                drop(state);
                waiting.retain(|other| !Arc::ptr_eq(other, &load));
                continue;
            }
            // What is only fetched ahead leaves room for what somebody waits for.
            let limit = if state.priority == Priority::Urgent { limit } else { limit / 2 };
            if self.staged.load(Ordering::Relaxed) + load.pieces[at].length as u64 <= limit {
                state.pieces[at] = Progress::Running;
                drop(state);
                return Some((load, at));
            }
        }
        None
    }

    /// A buffer is no longer needed.
    fn release(&self, length: usize, bytes: Vec<u8>) {
        self.staged.fetch_sub(length as u64, Ordering::Relaxed);
        let mut spare = lock(&self.spare);
        if spare.len() < SPARE && bytes.capacity() <= 2 * PIECE * EXTENT {
            spare.push(bytes);
        }
        drop(spare);
        self.more.notify_one();
    }

    pub fn staged(&self) -> u64 {
        self.staged.load(Ordering::Relaxed)
    }

    pub fn shut(&self) {
        self.stop.store(true, Ordering::Relaxed);
        let _waiting = lock(&self.waiting);
        self.more.notify_all();
    }
}

impl Load {
    /// Chunks that it is about.
    pub fn chunks(&self) -> usize {
        self.inner.chunks.len()
    }

    /// Copies the slice of `layer` of the `chunk`-th chunk of the range into `to`, once it has arrived and is verified. What
    /// nobody has begun to read, the caller reads.
    /// Each slice is meant to be taken once; taking it again may read it again.
    ///
    /// # Panics
    /// If `to` has not the slice's length, or there is no such slice.
    pub fn wait(&self, layer: usize, chunk: usize, to: &mut [u8]) -> Result<(), Lost> {
        self.take(layer, chunk, to, None)
    }

    /// As [`Load::wait`], but no longer than `timeout`: a slice that is late is lost, and nothing is held against its chunk.
    /// The caller does not touch the disk, unless the store has no threads.
    ///
    /// # Panics
    /// As [`Load::wait`].
    pub fn wait_for(&self, layer: usize, chunk: usize, to: &mut [u8], timeout: Duration) -> Result<(), Lost> {
        let threads = self.shared.config.io_threads > 0;
        self.take(layer, chunk, to, threads.then(|| Instant::now() + timeout))
    }

    fn take(&self, layer: usize, chunk: usize, to: &mut [u8], until: Option<Instant>) -> Result<(), Lost> {
        assert_eq!(to.len(), self.shared.geometry.slices[layer], "bytes of a slice of layer {layer}");
        let (source, i) = self.inner.chunks[chunk];
        let stretch = match &self.inner.sources[source] {
            Source::Missing => return Err(Lost),
            Source::Memory(bytes) => {
                to.copy_from_slice(&bytes[self.shared.geometry.plain(layer)..][..to.len()]);
                return Ok(());
            }
            Source::Disk(stretch) => stretch,
        };
        let at = stretch.pieces[layer] as usize;
        let piece = &self.inner.pieces[at];
        let mut state = lock(&self.inner.state);
        loop {
            match &state.pieces[at] {
                Progress::Running if until.is_none() => {
                    state = self.inner.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                Progress::Running | Progress::Pending if until.is_some() => {
                    let left = until.map_or(Duration::ZERO, |t| t.saturating_duration_since(Instant::now()));
                    if left.is_zero() {
                        return Err(Lost);
                    }
                    if matches!(state.pieces[at], Progress::Pending) {
                        state.wanted = Some(at);
                        self.shared.loads.more.notify_one();
                    }
                    state = self.inner.arrived.wait_timeout(state, left).map_or_else(|e| e.into_inner().0, |r| r.0);
                }
                Progress::Running | Progress::Pending | Progress::Taken => {
                    state.pieces[at] = Progress::Running;
                    drop(state);
                    self.shared.run(&self.inner, at);
                    state = lock(&self.inner.state);
                }
                Progress::Ready { bytes, bad, .. } => {
                    let good = !bad[(layer - piece.layers.start) * stretch.chunks.len() + i];
                    let bytes = Arc::clone(bytes);
                    drop(state);
                    if good {
                        let from = self.shared.within(stretch, piece, layer, i);
                        to.copy_from_slice(&bytes[from..from + to.len()]);
                    }
                    drop(bytes);
                    self.took(at);
                    return if good { Ok(()) } else { Err(Lost) };
                }
            }
        }
    }

    fn took(&self, at: usize) {
        let mut state = lock(&self.inner.state);
        let Progress::Ready { left, bad, .. } = &mut state.pieces[at] else { return };
        *left = left.saturating_sub(1);
        // What was lost stays known.
        if *left > 0 || bad.contains(&true) {
            return;
        }
        if let Progress::Ready { bytes, .. } = std::mem::replace(&mut state.pieces[at], Progress::Taken) {
            drop(state);
            self.shared.loads.release(self.inner.pieces[at].length, Arc::into_inner(bytes).unwrap_or_default());
        }
    }

    /// Layers, from the first on, of which every slice has arrived or is lost.
    pub fn layers(&self) -> usize {
        let state = lock(&self.inner.state);
        state.missing.iter().take_while(|&&n| n == 0).count()
    }

    /// Whether everything has arrived or is lost.
    pub fn done(&self) -> bool {
        lock(&self.inner.state).missing.iter().all(|&n| n == 0)
    }

    /// The first chunk of the range of which a slice is known to be lost.
    pub fn lost(&self) -> Option<usize> {
        lock(&self.inner.state).lost
    }

    /// Calls `then` when everything has arrived or is lost, on the thread that read the last piece, or now.
    pub fn then(&self, then: impl FnOnce() + Send + 'static) {
        let mut state = lock(&self.inner.state);
        if state.missing.iter().any(|&n| n > 0) {
            state.then = Some(Box::new(then));
            return;
        }
        drop(state);
        then();
    }

    pub fn raise(&self, priority: Priority) {
        lock(&self.inner.state).priority = priority;
        self.shared.loads.more.notify_all();
    }

    /// Bytes on disk that the load reads, all in all.
    pub fn total_bytes(&self) -> u64 {
        self.inner.pieces.iter().map(|p| p.length as u64).sum()
    }

    /// Bytes read so far.
    pub fn bytes(&self) -> u64 {
        lock(&self.inner.state).bytes
    }

    /// Microseconds spent reading, and verifying and decrypting; sums over threads.
    pub fn times(&self) -> (Micros, Micros) {
        let state = lock(&self.inner.state);
        (state.read, state.opened)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let mut state = lock(&self.inner.state);
        state.cancelled = true;
        state.then = None;
        let mut buffers = Vec::new();
        for (i, piece) in state.pieces.iter_mut().enumerate() {
            if matches!(piece, Progress::Ready { .. })
                && let Progress::Ready { bytes, .. } = std::mem::replace(piece, Progress::Taken)
            {
                buffers.push((i, bytes));
            }
        }
        drop(state);
        for (i, bytes) in buffers {
            self.shared.loads.release(self.inner.pieces[i].length, Arc::into_inner(bytes).unwrap_or_default());
        }
        lock(&self.shared.loads.waiting).retain(|other| !Arc::ptr_eq(other, &self.inner));
    }
}
