//! The step plan: pure data that says what one forward pass computes, and the traits on both sides of it.

use std::fmt;
use std::ops::Range;

use crate::{CHUNK, ChunkId, ChunkLayout, SEGMENT, TokenId};

/// Where a row's K and V go. Nothing below the engine derives a slot from a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub chunk: ChunkId,
    pub slot: u8,
}

/// One query token of a step. Rows of one sequence are consecutive and ascending; sequences that share nodes are
/// neighbours (depth-first tree order), so that every run covers one interval of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub token: TokenId,
    /// Place of the token on its path: the RoPE position.
    pub position: u32,
    /// Position at birth minus place, in tokens: its key is turned by `position + shift`. A multiple of [`CHUNK`], 0 on
    /// every exact path, and that of the chunk in which it lies.
    pub shift: u32,
    /// `None` for a row whose KV is already in the tree (the last token of a fully matched prompt).
    pub write: Option<Slot>,
    /// Whether the logits after this token are wanted.
    pub logits: bool,
}

/// Consecutive chunks of a path that one interval of rows attends to. A run never crosses a multiple of [`SEGMENT`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Rows of the plan.
    pub rows: Range<u32>,
    /// Index on the rows' paths of the first chunk: its slot 0 stands at position `place * CHUNK`.
    pub place: u32,
    /// Range of [`RunList::chunks`].
    pub chunks: Range<u32>,
    /// Position at birth minus place, in tokens; a multiple of [`CHUNK`], 0 on every exact path. A query meets the
    /// chunk with the rotation of `position + shift`.
    pub shift: u32,
    /// Offset into [`RunList::masks`] of `[chunk][row]` masks of visible slots; `None`: every row sees every slot.
    pub masks: Option<u32>,
}

impl Run {
    /// Index of the softmax segment that the run belongs to.
    pub fn segment(&self) -> usize {
        self.place as usize * CHUNK / SEGMENT
    }
}

/// What the rows of a step attend to, for one class of layers. Runs are in ascending order of `place` for each row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunList {
    pub runs: Vec<Run>,
    pub chunks: Vec<ChunkId>,
    pub masks: Vec<u64>,
}

impl RunList {
    pub fn clear(&mut self) {
        self.runs.clear();
        self.chunks.clear();
        self.masks.clear();
    }

    /// Mask of the `chunk`-th chunk of `run` for plan row `row` (which must lie in the run's interval).
    pub fn mask(&self, run: &Run, chunk: u32, row: u32) -> u64 {
        match run.masks {
            None => u64::MAX,
            Some(at) => self.masks[(at + chunk * (run.rows.end - run.rows.start) + row - run.rows.start) as usize],
        }
    }

    /// The same attention with the tree off: each row has runs of its own, nothing is read for two rows at once.
    pub fn unshared(&self, rows: u32) -> RunList {
        let mut out = RunList::default();
        for row in 0..rows {
            let mut mine: Vec<&Run> = self.runs.iter().filter(|r| r.rows.contains(&row)).collect();
            mine.sort_by_key(|r| r.place);
            for run in mine {
                let chunks = out.chunks.len() as u32;
                out.chunks.extend_from_slice(&self.chunks[run.chunks.start as usize..run.chunks.end as usize]);
                let masks = run.masks.map(|_| out.masks.len() as u32);
                if masks.is_some() {
                    let n = run.chunks.end - run.chunks.start;
                    out.masks.extend((0..n).map(|c| self.mask(run, c, row)));
                }
                let end = out.chunks.len() as u32;
                out.runs.push(Run {
                    rows: row..row + 1,
                    place: run.place,
                    chunks: chunks..end,
                    shift: run.shift,
                    masks,
                });
            }
        }
        out
    }
}

/// Work on chunks before the first layer runs, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prepare {
    /// A chunk just allocated: every byte becomes zero.
    Zero(ChunkId),
    /// The first `n` slots of `from`, all layers, are copied to the same slots of `to`.
    Copy { from: ChunkId, to: ChunkId, n: u8 },
    /// A chunk whose slices have all come from a tier: [`Residency::fill`] gives every layer without blocking.
    Install(ChunkId),
}

/// A chunk that the step fills: once its last rows are written, each layer encodes `from`, an open slab, into `to`.
/// Rows that lie in the chunk attend to `from`, whatever the step holds of it; rows after it attend to `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    pub from: ChunkId,
    pub to: ChunkId,
}

/// One forward pass, prefill and decode mixed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepPlan {
    pub prepare: Vec<Prepare>,
    pub rows: Vec<Row>,
    /// One list per layer class ([`crate::LayerLayout::class`]); the first covers whole paths, and
    /// [`StepPlan::fill_windows`] makes the others from it.
    pub classes: Vec<RunList>,
    /// Chunks that the step fills, where sealed chunks are encoded. In each layer between writing and attending.
    pub seals: Vec<Seal>,
    /// Chunks that may still be on their way: [`Residency::fill`] is asked for each of them in each layer.
    pub arriving: Vec<ChunkId>,
}

impl StepPlan {
    pub fn clear(&mut self) {
        self.prepare.clear();
        self.rows.clear();
        self.seals.clear();
        self.arriving.clear();
        self.classes.iter_mut().for_each(RunList::clear);
    }

    /// Checks what every executor relies on. Returns the first violation.
    pub fn check(&self, info: &ExecutorInfo) -> Result<(), String> {
        self.check_with(info, &mut Vec::new())
    }

    /// The same with memory that is kept from step to step.
    pub fn check_with(&self, info: &ExecutorInfo, seen: &mut Vec<u32>) -> Result<(), String> {
        for (i, row) in self.rows.iter().enumerate() {
            if row.token as usize >= info.vocab {
                return Err(format!("row {i}: token {} outside the vocabulary", row.token));
            }
            if row.position as usize >= info.context {
                return Err(format!("row {i}: position {} outside the context", row.position));
            }
            if !(row.shift as usize).is_multiple_of(CHUNK) {
                return Err(format!("row {i}: shift {} is no multiple of {CHUNK}", row.shift));
            }
            if row.write.is_some_and(|s| !info.open_slabs().contains(&s.chunk.0) || s.slot as usize >= CHUNK) {
                return Err(format!("row {i}: write outside the pool's open chunks"));
            }
        }
        for Seal { from, to } in &self.seals {
            if info.open.is_none() || !info.open_slabs().contains(&from.0) || to.0 >= info.chunks {
                return Err(format!("{from} cannot be sealed as {to}"));
            }
        }
        if !self.rows.is_empty() && self.classes.len() != info.layout.windows.len() {
            let (found, wanted) = (self.classes.len(), info.layout.windows.len());
            return Err(format!("{found} classes of runs for {wanted} classes of layers"));
        }
        for list in &self.classes {
            // Of each row: the place after the last chunk that it attends to so far.
            seen.clear();
            seen.resize(self.rows.len(), 0);
            for (i, run) in list.runs.iter().enumerate() {
                let n = run.chunks.end.saturating_sub(run.chunks.start);
                let first = run.place as usize * CHUNK;
                if n == 0 || run.chunks.end as usize > list.chunks.len() || run.rows.is_empty() {
                    return Err(format!("run {i}: empty or out of range"));
                }
                if run.rows.end as usize > self.rows.len() {
                    return Err(format!("run {i}: rows out of range"));
                }
                if first / SEGMENT != (first + n as usize * CHUNK - 1) / SEGMENT {
                    return Err(format!("run {i}: crosses a segment"));
                }
                if !(run.shift as usize).is_multiple_of(CHUNK) {
                    return Err(format!("run {i}: shift {} is no multiple of {CHUNK}", run.shift));
                }
                let masks = (n * (run.rows.end - run.rows.start)) as usize;
                if run.masks.is_some_and(|at| at as usize + masks > list.masks.len()) {
                    return Err(format!("run {i}: masks out of range"));
                }
                for row in run.rows.clone() {
                    // What a row sees nothing of only stands between chunks, or other rows, for which it counts.
                    let sees = |c: &u32| run.masks.is_none() || list.mask(run, *c, row) != 0;
                    let (Some(from), Some(to)) = ((0..n).find(sees), (0..n).rfind(sees)) else { continue };
                    if run.place + from < seen[row as usize] {
                        return Err(format!("run {i}: not in ascending order for row {row}"));
                    }
                    seen[row as usize] = run.place + to + 1;
                }
            }
        }
        Ok(())
    }
}

/// A slice that will not come: its rows must be re-planned without the chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone(pub ChunkId);

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a slice of {} was lost", self.0)
    }
}

impl std::error::Error for Gone {}

/// Brings the slices of chunks that are still on their way.
pub trait Residency: Sync {
    /// Blocks until the chunk's slice of `layer` is there or given up. A slice that comes from a tier is put into `to`,
    /// its place in the pool, and the answer is true; false: it is in its place already.
    ///
    /// # Errors
    /// When the slice will not come, or not in time.
    fn fill(&self, layer: usize, chunk: ChunkId, to: &mut [u8]) -> Result<bool, Gone>;
}

/// Everything is in memory.
pub struct AllResident;

impl Residency for AllResident {
    fn fill(&self, _: usize, _: ChunkId, _: &mut [u8]) -> Result<bool, Gone> {
        Ok(false)
    }
}

/// What became of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOutcome {
    /// Its KV is written; no logits were asked for.
    Done,
    /// Its KV is written and its logits are the given row of [`StepOutput::logits`].
    Logits(u32),
    /// It needed a lost chunk. None of its KV is valid; its slots are zero again.
    Lost(ChunkId),
}

/// Bytes of KV that one step's attention read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepCounters {
    /// Bytes of K and V that the plan's runs cover, each run counted once however many rows share it.
    pub kv_bytes_read: u64,
    /// The same with each row counted by itself.
    pub kv_bytes_unshared: u64,
}

/// Result of a step; kept and refilled from step to step.
#[derive(Clone, Debug, Default)]
pub struct StepOutput {
    /// One per row of the plan.
    pub outcomes: Vec<RowOutcome>,
    /// `[wanted rows][vocab]`, f32, as the model gives them.
    pub logits: Vec<f32>,
    /// Chunks that were to come, in [`StepPlan::arriving`] or by [`Prepare::Install`], and did not, whether rows were
    /// lost with them or not. While every row is lost the others may be asked for again.
    pub gone: Vec<ChunkId>,
    pub counters: StepCounters,
}

/// Slabs for chunks that are open, where sealed ones are encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenPool {
    pub layout: ChunkLayout,
    /// Two at least: while an open chunk is copied, both copies are held.
    pub chunks: u32,
}

/// What an executor is: fixed for its lifetime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutorInfo {
    pub vocab: usize,
    /// Tokens in a sequence at most.
    pub context: usize,
    /// Of the chunks `0..chunks`: of all chunks, or of the sealed ones if `open` is there.
    pub layout: ChunkLayout,
    /// Chunks in the pool.
    pub chunks: u32,
    /// Open chunks have slabs of their own, with the ids from `chunks` on.
    pub open: Option<OpenPool>,
    /// Human-readable: ISA path, threads, dtype.
    pub name: String,
}

impl ExecutorInfo {
    /// Ids of the slabs that rows are written to.
    pub fn open_slabs(&self) -> Range<u32> {
        self.open.as_ref().map_or(0..self.chunks, |open| self.chunks..self.chunks + open.chunks)
    }

    /// Bytes of all slabs.
    pub fn kv_bytes(&self) -> u64 {
        let bytes = |layout: &ChunkLayout, chunks: u32| layout.bytes as u64 * u64::from(chunks);
        bytes(&self.layout, self.chunks) + self.open.as_ref().map_or(0, |open| bytes(&open.layout, open.chunks))
    }
}

/// Runs steps over a pool of KV chunks that it owns.
///
/// The bits of a row's logits and KV depend on the token ids of its path alone: not on the other rows, the order of
/// rows, how its prefix was cut into steps, or the number of threads.
pub trait Executor: Send {
    fn info(&self) -> &ExecutorInfo;

    /// Runs one step. Does not fail: what could not be computed is `Lost` in `out`.
    ///
    /// # Panics
    /// On a plan that [`StepPlan::check`] refuses.
    fn step(&mut self, plan: &StepPlan, residency: &dyn Residency, out: &mut StepOutput);

    /// Runs pieces of other work between steps, several at a time where the executor has threads.
    fn run(&self, pieces: usize, piece: &(dyn Fn(usize) + Sync)) {
        (0..pieces).for_each(piece);
    }

    /// Appends the bytes of a chunk, all layers, as every tier holds them.
    fn read_chunk(&self, chunk: ChunkId, out: &mut Vec<u8>);
}
