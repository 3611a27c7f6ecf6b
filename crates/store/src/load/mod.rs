//! Reading: a load is a list of pieces in layer-major order, a piece a stretch of one extent of about a MiB. Threads read
//! and verify pieces ahead of whoever takes the slices, as far as there is room for what was not taken; who waits for a
//! piece that nobody has begun reads it himself, so that a load comes to its end with no thread at all.

mod plan;
mod read;

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvist_base::{CHUNK, Micros, TokenId};

use self::plan::{Piece, Source};
pub(crate) use self::read::LoadQueue;
use crate::state::{Shared, lock};

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
    /// Somebody waits for this layer, who does not read himself: it is read whatever room there is.
    needed: Option<usize>,
    /// There is no room for the next piece before others are taken.
    held: bool,
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
                needed: None,
                held: false,
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
            self.loads.add(Arc::clone(&inner));
        }
        Load { shared: Arc::clone(self), inner }
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
        let at = stretch.piece(layer, i);
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
                    if state.needed < Some(layer) {
                        state.needed = Some(layer);
                        drop(state);
                        self.shared.loads.wake();
                        state = lock(&self.inner.state);
                        continue;
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
                    let good = !bad[piece.slice(layer, i)];
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
        let mut state = lock(&self.inner.state);
        if std::mem::replace(&mut state.priority, priority) != priority {
            state.held = false;
        }
        drop(state);
        self.shared.loads.wake();
    }

    /// Waits for all slices of the layers up to `layer`, which are read whatever room there is. False: nothing came for
    /// `patience`.
    pub fn wait_layer(&self, layer: usize, patience: Duration) -> bool {
        {
            let mut state = lock(&self.inner.state);
            (state.needed, state.held) = (state.needed.max(Some(layer)), false);
        }
        self.shared.loads.wake();
        let mut state = lock(&self.inner.state);
        let mut progress = (state.bytes, Instant::now());
        while state.missing[..=layer].iter().any(|&n| n > 0) {
            if state.bytes > progress.0 {
                progress = (state.bytes, Instant::now());
            }
            let left = patience.saturating_sub(progress.1.elapsed());
            if left.is_zero() {
                return false;
            }
            state = self.inner.arrived.wait_timeout(state, left).map_or_else(|e| e.into_inner().0, |r| r.0);
        }
        true
    }

    /// Whether it goes on only when somebody takes what has come: there is no room for more.
    pub fn held(&self) -> bool {
        lock(&self.inner.state).held
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
        self.shared.loads.remove(&self.inner);
    }
}
