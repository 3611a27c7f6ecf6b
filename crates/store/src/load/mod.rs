//! Reading: a load is a list of pieces in layer-major order, a piece a stretch of one extent of about a MiB. Threads read
//! and verify pieces ahead of whoever takes the slices, as far as there is room for what was not taken; who waits for a
//! piece that nobody has begun reads it himself, so that a load comes to its end with no thread at all.

mod plan;
mod read;

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvist_base::{CHUNK, TokenId};

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

struct LoadState {
    pieces: Vec<Progress>,
    /// Everything before it was begun.
    next: usize,
    priority: Priority,
    /// Somebody waits for this piece, who does not read himself: it is read whatever room there is.
    needed: Option<usize>,
    /// There is no room for the next piece before others are taken.
    held: bool,
    /// The first piece for which there was none.
    rested: usize,
    /// When a piece was begun or came last.
    moved: Instant,
    /// Bytes of pieces before the first rest, and when the last of them came.
    came: (u64, Instant),
    cancelled: bool,
    /// Pieces of each layer that have not arrived.
    missing: Vec<u32>,
    /// First chunk of the load that was lost.
    lost: Option<usize>,
    bytes: u64,
}

pub(crate) struct LoadInner {
    sources: Vec<Source>,
    pieces: Vec<Piece>,
    /// Source of each chunk, and its index there.
    chunks: Vec<(usize, usize)>,
    begun: Instant,
    /// It never rests: who began it keeps count of the room.
    granted: bool,
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
        granted: bool,
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
        let begun = Instant::now();
        let inner = Arc::new(LoadInner {
            begun,
            granted,
            state: Mutex::new(LoadState {
                pieces: pieces.iter().map(|_| Progress::Pending).collect(),
                next: 0,
                priority,
                needed: None,
                held: false,
                rested: usize::MAX,
                moved: begun,
                came: (0, begun),
                cancelled: false,
                missing,
                lost,
                bytes: 0,
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
                Progress::Running => {
                    state = self.inner.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                Progress::Pending | Progress::Taken => {
                    state.pieces[at] = Progress::Running;
                    drop(state);
                    self.shared.loads.stage(piece.length);
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

    pub fn raise(&self, priority: Priority) {
        let before = std::mem::replace(&mut lock(&self.inner.state).priority, priority);
        if before != priority {
            self.shared.loads.wake();
        }
    }

    /// Waits until a slice can be taken, which is read whatever room there is, and not by the caller. False: nothing of the
    /// load was begun nor came for `patience`.
    pub fn await_slice(&self, layer: usize, chunk: usize, patience: Duration) -> bool {
        let since = Instant::now();
        let mut state = lock(&self.inner.state);
        while let Some(at) = self.under_way(&state, layer, chunk) {
            if state.needed < Some(at) {
                state.needed = Some(at);
                drop(state);
                self.shared.loads.wake();
                state = lock(&self.inner.state);
                continue;
            }
            let left = patience.saturating_sub(state.moved.max(since).elapsed());
            if left.is_zero() {
                return false;
            }
            state = self.inner.arrived.wait_timeout(state, left).map_or_else(|e| e.into_inner().0, |r| r.0);
        }
        true
    }

    /// Whether a slice can be taken at once.
    pub fn has(&self, layer: usize, chunk: usize) -> bool {
        self.under_way(&lock(&self.inner.state), layer, chunk).is_none()
    }

    /// The piece that a slice is in, if that has not come.
    fn under_way(&self, state: &LoadState, layer: usize, chunk: usize) -> Option<usize> {
        let (source, i) = self.inner.chunks[chunk];
        let Source::Disk(stretch) = &self.inner.sources[source] else { return None };
        let at = stretch.piece(layer, i);
        matches!(state.pieces[at], Progress::Pending | Progress::Running).then_some(at)
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

    /// Bytes that came before it had to rest for the first time, and how long that took.
    pub fn pace(&self) -> (u64, Duration) {
        let (bytes, last) = lock(&self.inner.state).came;
        (bytes, last.saturating_duration_since(self.inner.begun))
    }

    /// From the beginning until something was begun or came last.
    pub fn lasted(&self) -> Duration {
        lock(&self.inner.state).moved.saturating_duration_since(self.inner.begun)
    }

    /// For how long neither it nor any other load has got on, though the disk is being read.
    pub fn stuck(&self) -> Duration {
        lock(&self.inner.state).moved.elapsed().min(self.shared.loads.stuck())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let mut state = lock(&self.inner.state);
        state.cancelled = true;
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
