//! Who reads the pieces of which load, and when.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::plan::{PIECE, Piece, Source, Stretch};
use super::{LoadInner, LoadState, Progress};
use crate::crypto::{Part, TAG};
use crate::index::Data;
use crate::state::{Canary, Shared, lock};
use crate::vfs::read_exact;

/// Bytes of buffers that are kept for the next pieces, at most. New memory costs as much as decrypting into it.
const SPARE: u64 = 64 << 20;

#[derive(Default)]
struct Waiting {
    loads: VecDeque<Arc<LoadInner>>,
    /// How often there may have been more to read than before.
    news: u64,
}

pub(crate) struct LoadQueue {
    waiting: Mutex<Waiting>,
    more: Condvar,
    /// Bytes that are read, or being read, and not taken.
    staged: AtomicU64,
    /// As many bytes may be.
    limit: u64,
    spare: Mutex<Spare>,
    /// Reads under way, and when one began or ended last.
    reads: Mutex<(usize, Instant)>,
    pub stop: AtomicBool,
}

impl Shared {
    /// Reads and verifies a piece that the caller has marked as running, and staged. Whatever happens, it does not stay so.
    pub(super) fn run(&self, load: &LoadInner, at: usize) {
        lock(&load.state).moved = self.loads.reads(|n| n + 1);
        let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.read_piece(load, at)));
        let (bytes, bad) = read.unwrap_or_else(|_| {
            self.panicked();
            (Vec::new(), vec![true; load.pieces[at].slices()])
        });
        self.arrive(load, at, bytes, bad);
    }

    /// A piece's bytes, and which of its slices are bad.
    fn read_piece(&self, load: &LoadInner, at: usize) -> (Vec<u8>, Vec<bool>) {
        let piece = &load.pieces[at];
        let mut bytes = self.loads.buffer(piece.length);
        let slices = piece.slices();
        let mut bad = vec![false; slices];
        let Source::Disk(stretch) = &load.sources[piece.source] else { return (bytes, bad) };
        let start = self.vfs.now();
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
        if bad.contains(&true) {
            self.damaged(stretch, piece, &bad, read.is_err());
        }
        let mut state = self.state();
        state.counters.read += piece.length as u64;
        state.counters.read_time += done - start;
        state.counters.open_time += opened - done;
        state.counters.loaded += bad.iter().filter(|b| !**b).count() as u64;
        state.counters.lost += bad.iter().filter(|b| **b).count() as u64;
        drop(state);
        (bytes, bad)
    }

    fn arrive(&self, load: &LoadInner, at: usize, bytes: Vec<u8>, bad: Vec<bool>) {
        let piece = &load.pieces[at];
        let mut state = lock(&load.state);
        state.moved = self.loads.reads(|n| n - 1);
        state.bytes += piece.length as u64;
        if at < state.rested {
            state.came = (state.came.0 + piece.length as u64, state.moved);
        }
        piece.layers.clone().for_each(|l| state.missing[l] = state.missing[l].saturating_sub(1));
        if let Some(lost) = piece.bad_chunks(&bad).next() {
            let first = load.chunks.iter().position(|&c| c == (piece.source, lost));
            state.lost = state.lost.into_iter().chain(first).min();
        }
        let mut unwanted = None;
        if state.cancelled {
            state.pieces[at] = Progress::Taken;
            unwanted = Some(bytes);
        } else if matches!(state.pieces[at], Progress::Running) {
            state.pieces[at] = Progress::Ready { bytes: Arc::new(bytes), left: bad.len(), bad };
        }
        drop(state);
        load.arrived.notify_all();
        if let Some(bytes) = unwanted {
            self.loads.release(piece.length, bytes);
        }
    }

    fn open_slices(&self, stretch: &Stretch, piece: &Piece, bytes: &mut [u8], bad: &mut [bool]) {
        let g = &self.geometry;
        for layer in piece.layers.clone() {
            for i in piece.chunks.clone() {
                let wanted = &stretch.chunks[i];
                let at = self.within(stretch, piece, layer, i);
                let (slice, rest) = bytes[at..].split_at_mut(g.slices[layer]);
                let mut tag = [0; TAG];
                tag.copy_from_slice(&rest[..TAG]);
                let part = Part::Slice { layer: layer as u32, chunk: wanted.chunk.into() };
                let good = stretch.sealer.open(part, &wanted.chain, slice, &tag);
                bad[piece.slice(layer, i)] = !good && self.canary != Canary::SkipTags;
            }
        }
    }

    /// Offset of a slice in the bytes of its piece.
    pub(super) fn within(&self, stretch: &Stretch, piece: &Piece, layer: usize, i: usize) -> usize {
        (stretch.data + self.geometry.slice(stretch.count, layer, stretch.rank + i) - piece.offset) as usize
    }

    /// Takes what does not verify out of the index: it is not offered again until it is saved again.
    fn damaged(&self, stretch: &Stretch, piece: &Piece, bad: &[bool], unreadable: bool) {
        let mut state = self.state();
        if unreadable {
            state.counters.read_errors += 1;
        }
        for i in piece.bad_chunks(bad) {
            let wanted = &stretch.chunks[i];
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

    /// Reads one piece of the most urgent load; whether there was one to read.
    pub(crate) fn read_turn(&self) -> bool {
        let Some((load, at)) = self.loads.pick() else { return false };
        self.run(&load, at);
        true
    }

    pub(crate) fn read_loop(&self) {
        while !self.loads.stop.load(Ordering::Relaxed) {
            let seen = lock(&self.loads.waiting).news;
            let turn = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.read_turn()));
            match turn {
                Ok(true) => {}
                Ok(false) => {
                    let waiting = lock(&self.loads.waiting);
                    let nothing_new =
                        |waiting: &mut Waiting| waiting.news == seen && !self.loads.stop.load(Ordering::Relaxed);
                    drop(self.loads.more.wait_while(waiting, nothing_new));
                }
                Err(_) => self.panicked(),
            }
        }
    }
}

/// Buffers that nobody uses.
#[derive(Default)]
struct Spare {
    buffers: Vec<Vec<u8>>,
    bytes: u64,
}

impl LoadState {
    /// Whether somebody waits for the next piece.
    fn is_needed(&self) -> bool {
        Some(self.next) <= self.needed
    }
}

impl LoadQueue {
    /// `limit`: bytes that may have been read and not taken.
    pub fn new(limit: u64) -> LoadQueue {
        LoadQueue {
            waiting: Mutex::default(),
            more: Condvar::new(),
            staged: AtomicU64::new(0),
            limit,
            spare: Mutex::default(),
            reads: Mutex::new((0, Instant::now())),
            stop: AtomicBool::new(false),
        }
    }

    /// A piece of so many bytes is read.
    pub(super) fn stage(&self, length: usize) {
        self.staged.fetch_add(length as u64, Ordering::Relaxed);
    }

    /// A buffer of so many bytes, whatever they are.
    fn buffer(&self, length: usize) -> Vec<u8> {
        let mut spare = lock(&self.spare);
        let Some(mut buffer) = spare.buffers.pop() else { return vec![0; length] };
        spare.bytes -= buffer.capacity() as u64;
        drop(spare);
        buffer.resize(length, 0);
        buffer
    }

    pub(super) fn add(&self, load: Arc<LoadInner>) {
        lock(&self.waiting).loads.push_back(load);
        self.wake();
    }

    pub(super) fn remove(&self, load: &Arc<LoadInner>) {
        lock(&self.waiting).loads.retain(|other| !Arc::ptr_eq(other, load));
    }

    /// There may be something to read. Not to be called with a load's state locked.
    pub(super) fn wake(&self) {
        lock(&self.waiting).news += 1;
        self.more.notify_all();
    }

    /// The next piece to read, marked as running.
    fn pick(&self) -> Option<(Arc<LoadInner>, usize)> {
        let mut waiting = lock(&self.waiting);
        let mut order: Vec<Arc<LoadInner>> = waiting.loads.iter().cloned().collect();
        // What somebody needs changes meanwhile.
        order.sort_by_cached_key(|load| {
            let state = lock(&load.state);
            std::cmp::Reverse((state.is_needed(), state.priority))
        });
        for load in order {
            let mut state = lock(&load.state);
            while matches!(state.pieces.get(state.next), Some(p) if !matches!(p, Progress::Pending)) {
                state.next += 1;
            }
            let at = state.next;
            if state.cancelled || at == load.pieces.len() {
                drop(state);
                waiting.loads.retain(|other| !Arc::ptr_eq(other, &load));
                continue;
            }
            let staged = self.staged.load(Ordering::Relaxed) + load.pieces[at].length as u64;
            let fits = load.granted || staged <= self.limit;
            if !fits {
                state.rested = state.rested.min(at);
            }
            state.held = !fits && !state.is_needed();
            if !state.held {
                state.pieces[at] = Progress::Running;
                drop(state);
                self.stage(load.pieces[at].length);
                return Some((load, at));
            }
        }
        None
    }

    /// A buffer is no longer needed.
    pub(super) fn release(&self, length: usize, bytes: Vec<u8>) {
        self.staged.fetch_sub(length as u64, Ordering::Relaxed);
        let mut spare = lock(&self.spare);
        let size = bytes.capacity();
        if size <= 2 * PIECE && spare.bytes + size as u64 <= SPARE.min(self.limit) {
            spare.bytes += size as u64;
            spare.buffers.push(bytes);
        }
        drop(spare);
        self.wake();
    }

    fn reads(&self, count: impl Fn(usize) -> usize) -> Instant {
        let mut reads = lock(&self.reads);
        *reads = (count(reads.0), Instant::now());
        reads.1
    }

    /// For how long no read has begun or ended, while some are under way.
    pub(super) fn stuck(&self) -> Duration {
        let (reads, since) = *lock(&self.reads);
        if reads == 0 { Duration::ZERO } else { since.elapsed() }
    }

    pub fn staged(&self) -> u64 {
        self.staged.load(Ordering::Relaxed)
    }

    pub fn shut(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.wake();
    }
}
