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

/// Chunks that a band's rows meet, from which on it ends where the next row shares none with them; or earlier, so that there are
/// bands for all threads.
const ENOUGH: usize = 32;

/// Heads of a chunk that light visits meet one after the other, at most. Their K and V lie side by side, and the hardware goes on for
/// a quarter of a head's behind the end of what is read in order.
const TOGETHER: usize = 8;

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
    /// Whether all visits are light.
    pub light: bool,
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

/// Work of one thread: some kv-heads and a band, all segments or one of them.
#[derive(Clone, Debug)]
pub(super) struct Task {
    /// Each step is done for one after the other.
    pub heads: Range<usize>,
    pub band: usize,
    pub part: Option<usize>,
    /// Range of [`AttnPlan::steps`].
    pub steps: Range<usize>,
    /// How many states they have at a time.
    pub states: usize,
    cost: usize,
}

/// Between a row and the one before it.
#[derive(Clone, Debug, Default)]
struct End {
    /// Runs that both meet: those that begin here less those that end here, then all.
    common: i32,
    /// Chunks of the runs that begin here.
    chunks: usize,
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
    ends: Vec<End>,
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
            ends: Vec::new(),
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
        self.find_ends(runs);
        let most = self.ends.iter().map(|end| end.chunks).sum::<usize>() / (threads * SPLIT);
        let (mut first, mut chunks) = (0, 0);
        for end in 1..=rows {
            chunks += self.ends[end - 1].chunks;
            let next = &self.ends[end];
            let apart = next.common == 0 && (chunks >= ENOUGH || chunks + next.chunks > most);
            if apart || end == rows || end - first == (BAND / group).max(1) {
                self.push_band(runs, first as u32..end as u32);
                (first, chunks) = (end, 0);
            }
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
            // Heads of a task that takes `cost` for each.
            let together = |cost: usize| match (band.light, threads) {
                (false, _) => 1,
                (true, 1) => TOGETHER,
                (true, _) => (limit / cost.max(1)).clamp(1, TOGETHER),
            };
            let few = band.light && together(cost) < TOGETHER.min(kv_heads);
            let split = parts.len() > 1 && (by_completion || threads > 1 && (cost > limit || few) && room);
            // Where own chunks come in between, most heads that make even shares are left whole, the others let threads
            // finish together.
            let whole = match split {
                false => kv_heads,
                true if by_completion || between.is_empty() => 0,
                true => kv_heads * 2 / 3 / threads * threads,
            };
            let mut push = |heads: Range<usize>, part, steps: Range<usize>, states, cost| {
                let tasks = heads.len().div_ceil(if by_completion { 1 } else { together(cost) });
                let each = heads.len().div_ceil(tasks.max(1)).max(1);
                self.tasks.extend(heads.clone().step_by(each).map(|first| {
                    let heads = first..heads.end.min(first + each);
                    let cost = cost * heads.len();
                    Task { heads, band: b, part, steps: steps.clone(), states, cost }
                }));
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
        self.tasks.sort_unstable_by_key(|task| (Reverse(task.cost), task.band, task.part, task.heads.start));
        if by_completion {
            // On an idle machine the first thread may do all of them before another one wakes: in order, always.
            self.tasks.reverse();
        }
        self.partials.grow(partials);
        self.gathers.resize_with(self.bands.len() * kv_heads, Gather::default);
        self.order.resize_with(self.parts.len() * kv_heads, AtomicU32::default);
    }

    /// Where rows share nothing with the ones before them.
    fn find_ends(&mut self, runs: &RunList) {
        self.ends.clear();
        self.ends.resize(self.rows + 1, End::default());
        for run in runs.runs.iter().filter(|run| run.rows.start < run.rows.end) {
            let [start, end] = [run.rows.start, run.rows.end].map(|row| (row as usize).min(self.rows));
            self.ends[start].chunks += run.chunks.len();
            self.ends[(start + 1).min(end)].common += 1;
            self.ends[end].common -= 1;
        }
        let mut common = 0;
        for end in &mut self.ends {
            common += end.common;
            end.common = common;
        }
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
        let light = self.picks[from..].iter().all(|pick| pick.light);
        self.bands.push(Band { rows, parts: parts..self.parts.len(), light });
    }

    /// Before each layer.
    pub(super) fn restart(&mut self, runs: &RunList) {
        assert_eq!(self.built_for, (runs.runs.len(), runs.chunks.len()), "the plan was built for other runs");
        for (i, gather) in self.gathers.iter_mut().enumerate() {
            *gather.left.get_mut() = self.bands[i / self.shape.kv_heads].parts.len() as u32;
            *gather.completed.get_mut() = 0;
        }
    }

    /// Notes that a segment of a band and head is complete. True for the last one of them: it folds.
    pub(super) fn complete(&self, band: usize, head: usize, part: usize) -> bool {
        let gather = &self.gathers[band * self.shape.kv_heads + head];
        let nth = gather.completed.fetch_add(1, Relaxed) as usize;
        let at = head * self.parts.len() + self.bands[band].parts.start + nth;
        if self.canary == Canary::FoldByCompletion {
            self.order[at].store(part as u32, Relaxed);
        }
        gather.left.fetch_sub(1, AcqRel) == 1
    }

    /// The `i`-th part of the band to be folded.
    pub(super) fn fold_order(&self, band: usize, head: usize, i: usize) -> usize {
        let part = self.bands[band].parts.start + i;
        match self.canary {
            Canary::FoldByCompletion => self.order[head * self.parts.len() + part].load(Relaxed) as usize,
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

#[cfg(test)]
mod tests {
    use kvist_base::{ChunkId, Run};

    use super::*;

    /// Each `rows` rows share `chunks` chunks, and nothing else, `nodes` times.
    fn apart(nodes: u32, rows: u32, chunks: u32) -> RunList {
        let mut runs = RunList::default();
        for node in 0..nodes {
            let rows = node * rows..(node + 1) * rows;
            for place in (0..chunks).step_by(SEGMENT / CHUNK) {
                let at = runs.chunks.len() as u32;
                let end = chunks.min(place + (SEGMENT / CHUNK) as u32);
                runs.chunks.extend((place..end).map(|place| ChunkId(node * chunks + place)));
                runs.runs.push(Run { rows: rows.clone(), place, chunks: at..at + end - place, shift: 0, masks: None });
            }
        }
        runs
    }

    const SHAPE: AttnShape = AttnShape { heads: 32, kv_heads: 8, head_dim: 64 };

    /// Visits that take memory were tasks of one head each, so that a quarter of what the hardware brought in was the beginning of
    /// a head that another thread met, or this one much later.
    #[test]
    fn heads_of_light_visits_stay_together_as_long_as_threads_finish_together() {
        for threads in [1, 2, 16] {
            for (nodes, rows, chunks) in
                [(1, 1, 4), (1, 1, 64), (3, 2, 40), (8, 1, 4), (32, 1, 1), (32, 1, 32), (100, 4, 3)]
            {
                let runs = apart(nodes, rows, chunks);
                let mut plan = AttnPlan::new(SHAPE);
                plan.build(&runs, (nodes * rows) as usize, threads);
                let case = format!("{threads} threads, {nodes} times {rows} rows on {chunks} chunks");
                let mut visits = vec![0; runs.runs.len() * SHAPE.kv_heads];
                for task in &plan.tasks {
                    let band = &plan.bands[task.band];
                    assert!(band.light && (band.rows.start % rows, band.rows.end % rows) == (0, 0), "{case}: {band:?}");
                    for step in &plan.steps[task.steps.clone()] {
                        if let Step::Visit { run, .. } = *step {
                            task.heads.clone().for_each(|head| visits[run as usize * SHAPE.kv_heads + head] += 1);
                        }
                    }
                }
                let expected = runs.runs.iter().flat_map(|run| [run.chunks.len(); SHAPE.kv_heads]);
                assert!(visits.into_iter().eq(expected), "{case}");
                let (least, most) = plan
                    .tasks
                    .iter()
                    .fold((usize::MAX, 0), |(least, most), task| (least.min(task.heads.len()), most.max(task.cost)));
                let total: usize = plan.tasks.iter().map(|task| task.cost).sum();
                let enough = (nodes * chunks.div_ceil(8)) as usize >= SPLIT * threads;
                assert!(least == TOGETHER || threads > 1 && !enough, "{case}: {least} heads");
                assert!(
                    most <= total / (threads * SPLIT) || least < TOGETHER || threads == 1,
                    "{case}: {most} of {total}"
                );
                assert!(
                    plan.tasks.len() >= (2 * threads).min(SHAPE.kv_heads) || threads == 1,
                    "{case}: {}",
                    plan.tasks.len()
                );
            }
        }
    }

    #[test]
    fn bands_end_where_rows_share_nothing() {
        let mut runs = apart(4, 8, 40);
        let mut plan = AttnPlan::new(AttnShape { heads: 1, kv_heads: 1, head_dim: 64 });
        let rows = |plan: &AttnPlan| plan.bands.iter().map(|band| band.rows.clone()).collect::<Vec<_>>();
        plan.build(&runs, 32, 1);
        assert_eq!(rows(&plan), [0..8, 8..16, 16..24, 24..32]);
        // Of few chunks they do not end yet, and of what all rows meet they are as large as they may be.
        plan.build(&apart(8, 4, 4), 32, 1);
        assert_eq!(rows(&plan), [0..8, 8..16, 16..24, 24..32]);
        runs.runs[0].rows = 0..32;
        plan.build(&runs, 32, 1);
        assert_eq!(rows(&plan).as_slice(), std::slice::from_ref(&(0..32)));
    }
}
