//! Which task computes what: built once per step, used by every layer.

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering::AcqRel, Ordering::Relaxed};

use kvist_base::{CHUNK, ChunkLayout, RunList, SEGMENT, StepCounters};

use super::codes::half;
use super::steps::{Pick, Step, StepList, mark_light, visit_cost};
use crate::buffer::Words;
use crate::simd::PANEL;

/// Query rows (rows times heads per kv-head) of a band at most: their states then stay in the L2 cache.
pub(super) const BAND: usize = 128;

/// A band is cut into segments when it takes more than this part of a thread's fair share of the step.
const SPLIT: usize = 3;

/// f32 elements that the states of bands cut into segments take at most (128 MiB). Bands past it are computed whole,
/// with the same result: a prompt's end in a context of 128k tokens on many cores would want several times as much.
const PARTIALS: usize = 1 << 25;

/// Heads of a layer. Head `h` reads kv-head `h / (heads / kv_heads)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttnShape {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

/// Largest head size.
pub(super) const HEAD_DIM: usize = 256;

/// Words from one prepared query row to the next, whatever the head size, so that loops know it.
pub(super) const APART: usize = lines(HEAD_DIM / 2);

impl AttnShape {
    /// Query rows of a row and kv-head.
    pub(super) fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    /// The same of query rows that are to meet scales of K.
    pub(super) fn apart_coded(self) -> usize {
        lines(half(self.head_dim))
    }

    /// f32 elements between the output rows of a state: whole vectors on every ISA.
    pub(super) fn padded(self) -> usize {
        self.head_dim.next_multiple_of(PANEL)
    }
}

/// An odd number of cache lines: otherwise rows of a group would meet in some sets of the L1 cache.
const fn lines(words: usize) -> usize {
    words.next_multiple_of(PANEL) | PANEL
}

/// A deliberate violation of the numerics contract, for tests that must notice it.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Canary {
    #[default]
    None,
    /// Segments are folded in the order in which they happen to finish.
    FoldByCompletion,
    /// The running maximum is taken over a block of rows.
    BlockWideRescale,
}

/// Rows that are worked on together.
#[derive(Clone, Debug)]
pub(super) struct Band {
    pub rows: Range<u32>,
    pub parts: Range<usize>,
}

/// One segment of a band.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// Range of [`AttnPlan::picks`].
    pub picks: Range<usize>,
    /// Where the states of a band cut into segments lie, `[kv-head]` of [`state_len`].
    pub partial: usize,
    pub chunks: usize,
    cost: usize,
}

/// Work of one thread: a kv-head and a band, all segments or one of them.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub head: usize,
    pub band: usize,
    pub part: Option<usize>,
    /// Range of [`AttnPlan::steps`].
    pub steps: Range<usize>,
    /// How many states they have at a time.
    pub states: usize,
    cost: usize,
}

/// Counts down the segments of a band and kv-head.
#[derive(Debug, Default)]
struct Gather {
    left: AtomicU32,
    completed: AtomicU32,
}

/// How a step's attention is divided among threads. The result does not depend on it. Kept and rebuilt, so that a
/// steady step allocates nothing.
#[derive(Debug)]
pub struct AttnPlan {
    pub(super) shape: AttnShape,
    pub(super) cap: Option<f32>,
    pub(super) rows: usize,
    pub(super) bands: Vec<Band>,
    pub(super) parts: Vec<Part>,
    /// Runs of each part, ascending for every row.
    picks: Vec<Pick>,
    /// What the tasks do; those of a band's heads do the same.
    pub(super) steps: Vec<Step>,
    pub(super) tasks: Vec<Task>,
    pub(super) partials: Words,
    pub(super) canary: Canary,
    gathers: Vec<Gather>,
    /// `[kv-head][part]`: the parts of a band in the order of their completion; used by the canary.
    order: Vec<AtomicU32>,
    /// What it was built for, as a check.
    built_for: (usize, usize),
}

impl AttnPlan {
    /// An empty plan for layers of this shape.
    ///
    /// # Panics
    /// When `heads` is no multiple of `kv_heads`, or `head_dim` is odd, zero or more than 256.
    pub fn new(shape: AttnShape) -> AttnPlan {
        Self::with_canary(shape, Canary::None)
    }

    #[doc(hidden)]
    pub fn with_canary(shape: AttnShape, canary: Canary) -> AttnPlan {
        assert!(shape.kv_heads > 0 && shape.heads > 0 && shape.heads.is_multiple_of(shape.kv_heads), "{shape:?}");
        assert!((1..=HEAD_DIM).contains(&shape.head_dim) && shape.head_dim.is_multiple_of(2), "{shape:?}");
        AttnPlan {
            shape,
            cap: None,
            rows: 0,
            bands: Vec::new(),
            parts: Vec::new(),
            picks: Vec::new(),
            steps: Vec::new(),
            tasks: Vec::new(),
            partials: Words::new(),
            canary,
            gathers: Vec::new(),
            order: Vec::new(),
            built_for: (0, 0),
        }
    }

    /// The same for scores that go through `cap * tanh(score / cap)` before the softmax.
    ///
    /// # Panics
    /// When the cap is not a positive number.
    pub fn with_soft_cap(mut self, cap: Option<f32>) -> AttnPlan {
        assert!(cap.is_none_or(|cap| cap.is_finite() && cap > 0.0), "a soft-cap of {cap:?}");
        self.cap = cap;
        self
    }

    /// Divides the attention of `rows` rows among `threads` threads.
    pub fn build(&mut self, runs: &RunList, rows: usize, threads: usize) {
        self.rows = rows;
        self.built_for = (runs.runs.len(), runs.chunks.len());
        self.bands.clear();
        self.parts.clear();
        self.picks.clear();
        self.steps.clear();
        self.tasks.clear();
        let (group, kv_heads) = (self.shape.group(), self.shape.kv_heads);
        let step = (BAND / group).max(1);
        for first in (0..rows).step_by(step) {
            self.push_band(runs, first as u32..rows.min(first + step) as u32);
        }
        let total = self.parts.iter().map(|part| part.cost).sum::<usize>() * kv_heads;
        let limit = total / (threads * SPLIT);
        let by_completion = self.canary == Canary::FoldByCompletion;
        let mut partials = 0;
        for (b, band) in self.bands.iter().enumerate() {
            let parts = &mut self.parts[band.parts.clone()];
            let cost: usize = parts.iter().map(|part| part.cost).sum();
            let len = state_len(self.shape, band.rows.len());
            let room = partials + len * kv_heads * parts.len() <= PARTIALS;
            let list = StepList { runs, picks: &self.picks, rows: &band.rows, group };
            let between = list.in_between(parts);
            let split = parts.len() > 1 && (by_completion || threads > 1 && cost > limit && room);
            // Where own chunks come in between, most heads that make even shares are left whole, the others let threads
            // finish together.
            let whole = match split {
                false => kv_heads,
                true if by_completion || between.is_empty() => 0,
                true => kv_heads * 2 / 3 / threads * threads,
            };
            let mut push = |heads: Range<usize>, part, steps: Range<usize>, states, cost| {
                self.tasks.extend(heads.map(|head| Task { head, band: b, part, steps: steps.clone(), states, cost }));
            };
            let mut from = self.steps.len();
            if whole > 0 {
                list.all(parts, between.clone(), &mut self.steps);
                push(0..whole, None, from..self.steps.len(), 1 + between.len(), cost);
            }
            if split {
                for (part, of) in band.parts.clone().zip(parts) {
                    of.partial = partials;
                    partials += len * kv_heads;
                    from = self.steps.len();
                    list.one(of, &mut self.steps);
                    push(whole..kv_heads, Some(part), from..self.steps.len(), 1, of.cost);
                }
            }
        }
        // Long tasks first, so that the threads finish together.
        self.tasks.sort_unstable_by_key(|task| (Reverse(task.cost), task.band, task.part, task.head));
        if by_completion {
            // On an idle machine the first thread may do all of them before another one wakes: in order, always.
            self.tasks.reverse();
        }
        self.partials.grow(partials);
        self.gathers.resize_with(self.bands.len() * kv_heads, Gather::default);
        self.order.resize_with(self.parts.len() * kv_heads, AtomicU32::default);
    }

    fn push_band(&mut self, runs: &RunList, rows: Range<u32>) {
        let (from, parts) = (self.picks.len(), self.parts.len());
        let meets = |r: &Range<u32>| r.start < rows.end && rows.start < r.end;
        let met = (0..runs.runs.len() as u32).filter(|&i| meets(&runs.runs[i as usize].rows));
        self.picks.extend(met.map(|run| Pick { run, light: false }));
        let segment = |pick: Pick| runs.runs[pick.run as usize].segment();
        self.picks[from..].sort_unstable_by_key(|&pick| (segment(pick), pick.run));
        let group = self.shape.group();
        let mut at = from;
        while at < self.picks.len() {
            let same = self.picks[at..].iter().take_while(|&&pick| segment(pick) == segment(self.picks[at])).count();
            let mut part = Part { picks: at..at + same, partial: 0, chunks: 0, cost: 0 };
            mark_light(&mut self.picks[part.picks.clone()], runs, &rows, group);
            for run in self.picks[part.picks.clone()].iter().map(|pick| &runs.runs[pick.run as usize]) {
                part.chunks += run.chunks.len();
                part.cost += run.chunks.len() * visit_cost(run, &rows, group);
            }
            self.parts.push(part);
            at += same;
        }
        self.bands.push(Band { rows, parts: parts..self.parts.len() });
    }

    /// Before each layer.
    pub(super) fn restart(&mut self, runs: &RunList) {
        assert_eq!(self.built_for, (runs.runs.len(), runs.chunks.len()), "the plan was built for other runs");
        for (i, gather) in self.gathers.iter_mut().enumerate() {
            *gather.left.get_mut() = self.bands[i / self.shape.kv_heads].parts.len() as u32;
            *gather.completed.get_mut() = 0;
        }
    }

    /// Notes that the task's segment is complete. True for the last one of its band and head: it folds.
    pub(super) fn complete(&self, task: &Task, part: usize) -> bool {
        let gather = &self.gathers[task.band * self.shape.kv_heads + task.head];
        let nth = gather.completed.fetch_add(1, Relaxed) as usize;
        let at = task.head * self.parts.len() + self.bands[task.band].parts.start + nth;
        if self.canary == Canary::FoldByCompletion {
            self.order[at].store(part as u32, Relaxed);
        }
        gather.left.fetch_sub(1, AcqRel) == 1
    }

    /// The `i`-th part of the band to be folded.
    pub(super) fn fold_order(&self, task: &Task, i: usize) -> usize {
        let part = self.bands[task.band].parts.start + i;
        match self.canary {
            Canary::FoldByCompletion => self.order[task.head * self.parts.len() + part].load(Relaxed) as usize,
            _ => part,
        }
    }
}

/// f32 elements of the softmax state of some rows and a kv-head: the padded O, m and l of each query row, in whole lines.
pub(super) fn state_len(shape: AttnShape, rows: usize) -> usize {
    (rows * shape.group() * (shape.padded() + 2)).next_multiple_of(PANEL)
}

/// Bytes of KV that the attention of a step reads in the layers of `class`: each chunk of a run once if any of its rows
/// sees a slot of it, and the same with every row reading for itself. `layout` is that of the chunks, `open` the id from
/// which on they have another one.
pub fn kv_bytes(runs: &RunList, layout: &ChunkLayout, open: Option<(u32, &ChunkLayout)>, class: usize) -> StepCounters {
    let bytes = |layout: &ChunkLayout| layout.layers.iter().filter(|l| l.class == class).map(|l| l.bytes).sum();
    let (sealed, open): (usize, _) = (bytes(layout), open.map(|(first, layout)| (first, bytes(layout))));
    let mut counters = StepCounters::default();
    for run in &runs.runs {
        for c in 0..run.chunks.len() as u32 {
            let id = runs.chunks[(run.chunks.start + c) as usize].0;
            let chunk = open.filter(|&(first, _)| id >= first).map_or(sealed, |(_, bytes)| bytes);
            let sees = run.rows.clone().filter(|&row| runs.mask(run, c, row) != 0).count();
            counters.kv_bytes_read += if sees > 0 { chunk as u64 } else { 0 };
            counters.kv_bytes_unshared += (sees * chunk) as u64;
        }
    }
    counters
}

const _: () = assert!(SEGMENT.is_multiple_of(CHUNK), "a chunk lies in one segment");
