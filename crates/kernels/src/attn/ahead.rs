//! What is asked for of the next chunks while one is read.

use std::ops::Range;

use super::kernel::Job;
use super::plan::Task;
use super::steps::{Step, query_rows};
use super::tile::{Form, Tile};
use crate::codec::Head;
use crate::simd::{LINE, Simd};

/// With so many row blocks each of the first ones asks for its part of the next chunks. The first one alone would ask for
/// more than memory brings meanwhile, and its own operands would wait behind that.
pub(super) const SHARERS: usize = 4;

/// Visits ahead of which chunks are asked for at most, and bytes that they take: these stay in the L2 cache until then.
const WINDOW: usize = 5;
const WINDOW_BYTES: usize = 160 << 10;

/// Row blocks of `n` query rows of a group.
pub(super) fn blocks_of<S: Simd>(n: usize) -> usize {
    n.div_ceil(S::ROWS)
}

/// Whether so many row blocks share in asking.
fn share_in_asking(blocks: usize) -> bool {
    blocks >= SHARERS
}

/// The steps of a task that are still to come.
pub(super) struct Upcoming<'a> {
    job: &'a Job<'a>,
    head: usize,
    /// Rows of the band.
    rows: &'a Range<u32>,
    steps: &'a [Step],
    /// Visits among the first so many steps were asked for, and no other.
    asked: usize,
    window: usize,
}

impl<'a> Upcoming<'a> {
    pub fn new(job: &'a Job<'a>, task: &Task) -> Upcoming<'a> {
        let (begin, _, end) = job.kv.layout().tile(job.layer, task.head);
        Upcoming {
            job,
            head: task.head,
            rows: &job.plan.bands[task.band].rows,
            steps: &job.plan.steps[task.steps.clone()],
            asked: 0,
            window: (WINDOW_BYTES / (end - begin)).clamp(2, WINDOW),
        }
    }

    /// The next step.
    pub fn begin(&mut self) -> Option<Step> {
        let (&step, rest) = self.steps.split_first()?;
        self.steps = rest;
        self.asked = self.asked.saturating_sub(1);
        Some(step)
    }

    /// What a group of `n` of a visit's `all` query rows asks for while it meets the K and V `here`, in codes or not: the
    /// next chunk that was not asked for, or two if its row blocks share and those of no other group of the visit do. Few
    /// rows take a chunk faster than memory brings another one: they leave to who shares what can wait for that. It is
    /// asked for only if the group [does so](Self::have_asked).
    pub fn asks<S: Simd>(&self, codes: bool, here: (*const u8, *const u8), n: usize, all: usize) -> Asks {
        let mut asks = Asks { asked: self.asked, ..Asks::NOTHING };
        let share = |n: usize| share_in_asking(blocks_of::<S>(n));
        let shared = share(n);
        let most = if shared && !share(all - n) { 2 } else { 1 };
        let (runs, group) = (self.job.runs, self.job.plan.shape.group());
        let visits = self.steps.iter().enumerate().filter_map(|(i, step)| match *step {
            Step::Visit { run, chunk, .. } => Some((i, &runs.runs[run as usize], chunk)),
            _ => None,
        });
        let mut count = 0;
        for (i, run, chunk) in visits.take(self.window) {
            if i < self.asked {
                if !shared && share(query_rows(run, self.rows, group)) {
                    break;
                }
                continue;
            }
            let id = runs.chunks[(run.chunks.start + chunk) as usize];
            let next = self.job.kv.head(id, self.job.layer, self.head);
            count += asks.add(codes, here, next, count, most);
            asks.asked = i + 1;
            if count == most {
                break;
            }
        }
        asks
    }

    /// What [`Upcoming::asks`] said was done.
    pub fn have_asked(&mut self, asks: &Asks) {
        self.asked = asks.asked;
    }
}

/// What a group asks for.
#[derive(Clone, Copy)]
pub(super) struct Asks {
    /// Bytes from K of the chunk that it meets to what it asks for while it reads K, as many bytes as it reads: from up
    /// to two places. The same of V.
    k: [Option<isize>; 2],
    v: [Option<isize>; 2],
    /// What [`Upcoming::asked`] will be.
    asked: usize,
}

impl Asks {
    pub const NOTHING: Asks = Asks { k: [None; 2], v: [None; 2], asked: 0 };

    /// Adds what comes after the K and V of a chunk, in codes or not, as place `at` of at most `most`; how many places
    /// that takes.
    fn add(&mut self, codes: bool, (k, v): (*const u8, *const u8), next: Head, at: usize, most: usize) -> usize {
        let from = |here: *const u8, next: *const u8| Some(next as isize - here as isize);
        (self.k[at], self.v[at]) = (from(k, next.k), from(v, next.v));
        match (codes, next.eight) {
            // It takes twice the bytes that codes do: the second half of each.
            (true, false) if at + 1 < most => {
                let codes_of_k = next.k_scales as usize - next.k as usize;
                let codes_of_v = next.v_scales as usize - next.v as usize;
                self.k[at + 1] = self.k[at].map(|k| k + (codes_of_k / 2) as isize);
                self.v[at + 1] = self.v[at].map(|v| v + (codes_of_v / 2) as isize);
                2
            }
            // K and V of codes take what K alone takes in 16 bits.
            (false, true) => {
                self.v[at] = None;
                1
            }
            _ => 1,
        }
    }
}

/// What is asked for in the course of a loop.
#[derive(Clone, Copy)]
pub(super) enum Ahead {
    Nothing,
    /// As many bytes as are read, but at most a line a step, from here on.
    Line(*const u8),
    /// The same from two places.
    Lines([*const u8; 2]),
    /// As many bytes as are read, from here on.
    All(*const u8),
}

/// Which line of a step of `width` bytes, `column` bytes from the first of its operand, row block `block` of so many asks
/// for where they share, at either place. Line `i` of the operand's steps is for sharer `i % SHARERS`, however they are
/// cut into loops. The first blocks are sharers of the first place, the last ones, from the third sharer on, of the second:
/// few have a line of both.
fn share(column: usize, width: usize, block: usize, blocks: usize) -> [Option<usize>; 2] {
    let line = |sharer: usize| (sharer + SHARERS - column / LINE % SHARERS) % SHARERS;
    let sharers = [Some(block), (block + SHARERS).checked_sub(blocks).map(|sharer| (sharer + SHARERS / 2) % SHARERS)];
    sharers.map(|sharer| sharer.filter(|&sharer| sharer < SHARERS).map(line).filter(|line| line * LINE < width))
}

/// Whether blocks of so many rows and bytes a step may have a line of both places.
pub(super) const fn has_two<S: Simd>(rows: usize, bytes: usize) -> bool {
    // Groups that share have blocks of almost equal size.
    rows > S::ROWS / 2 && bytes > SHARERS / 2 * LINE
}

impl<F: Form> Tile<'_, F> {
    /// Whether row blocks of the running group share in asking.
    pub fn shares(&self) -> bool {
        share_in_asking(self.blocks)
    }

    /// What the rows from `from` of the group ask for while they read `pairs` steps of K, of `width` pairs from `column` on.
    #[inline(always)]
    pub fn ahead_of_k<S: Simd>(&self, column: usize, width: usize, pairs: usize, from: usize) -> Ahead {
        self.ahead::<S>(self.k, self.asks.k, (column, width), pairs, from)
    }

    /// The same of V.
    #[inline(always)]
    pub fn ahead_of_v<S: Simd>(&self, column: usize, width: usize, pairs: usize, from: usize) -> Ahead {
        self.ahead::<S>(self.v, self.asks.v, (column, width), pairs, from)
    }

    #[inline(always)]
    fn ahead<S: Simd>(
        &self,
        here: *const u8,
        places: [Option<isize>; 2],
        (column, width): (usize, usize),
        pairs: usize,
        from: usize,
    ) -> Ahead {
        let bytes = if F::CODES { 2 } else { 4 };
        let place = |next: isize| here.wrapping_offset(next).wrapping_add(bytes * column * pairs);
        if self.shares() {
            // Larger row blocks come first.
            let lines = share(bytes * column, bytes * width, from.div_ceil(S::ROWS), self.blocks);
            let [first, second] = [0, 1].map(|i| {
                let (next, line) = (places[i]?, lines[i]?);
                Some(place(next).wrapping_add(line * LINE * pairs))
            });
            match (first, second) {
                (Some(first), Some(second)) => Ahead::Lines([first, second]),
                (Some(next), None) | (None, Some(next)) => Ahead::Line(next),
                (None, None) => Ahead::Nothing,
            }
        } else {
            match places[0] {
                Some(next) if from == 0 => Ahead::All(place(next)),
                _ => Ahead::Nothing,
            }
        }
    }

    /// The first lines of the next K, if row blocks do not share in asking for it.
    #[inline(always)]
    pub fn first_of_k(&self) -> Option<*const u8> {
        if self.shares() {
            return None;
        }
        self.asks.k[0].map(|next| self.k.wrapping_offset(next))
    }

    /// Asks for some lines of the next V between scores and outputs: with few rows that is a tenth of the time, in which
    /// memory would have nothing to do. Part `part` of three.
    ///
    /// # Safety
    /// The ISA of `S` is available.
    #[inline(always)]
    pub unsafe fn ask_between<S: Simd>(&self, part: usize) {
        const LINES: usize = 8;
        if self.shares() {
            return;
        }
        if let Some(next) = self.asks.v[0] {
            let next = self.v.wrapping_offset(next);
            for line in part * LINES..(part + 1) * LINES {
                // SAFETY: any address may be asked for.
                unsafe { S::prefetch(next.wrapping_add(line * LINE).cast()) };
            }
        }
    }
}

/// Calls `$f::<.., _>($args, ask)`, which asks for what `$ahead` says; `$bytes` are read in a step. Forms that cannot occur are
/// not compiled.
macro_rules! asking {
    ($ahead:expr, $bytes:expr, $f:ident::<$s:ident, $codes:literal, $r:ident, $v:ident>($($arg:expr),*)) => {
        match $ahead {
            Ahead::Nothing => $f::<$s, $codes, $r, $v, _>($($arg),*, $crate::simd::Nothing),
            Ahead::All(next) if const { $bytes > $crate::simd::LINE } => {
                $f::<$s, $codes, $r, $v, _>($($arg),*, $crate::simd::All(next))
            }
            Ahead::Lines(next) if const { super::ahead::has_two::<$s>($r, $bytes) } => {
                $f::<$s, $codes, $r, $v, _>($($arg),*, $crate::simd::Lines(next))
            }
            Ahead::Line(next) | Ahead::Lines([next, _]) | Ahead::All(next) => {
                $f::<$s, $codes, $r, $v, _>($($arg),*, $crate::simd::Lines([next]))
            }
        }
    };
}
pub(super) use asking;

#[cfg(test)]
mod tests {
    use kvist_base::{ChunkId, ChunkLayout, Codec, LayerKind};

    use super::super::Queries;
    use super::super::steps::tests::{built, tree};
    use super::*;
    use crate::KvPool;
    use crate::buffer::SharedMut;
    use crate::simd::Portable;

    const KINDS: [LayerKind; 1] = [LayerKind::Gqa { heads: 2, dk: 64, dv: 64 }];

    #[test]
    fn each_chunk_is_asked_for_once_and_before_it_is_met() {
        let kv = KvPool::new(ChunkLayout::new(Codec::Kv16, &KINDS), 64).expect("memory");
        for (rows, group) in [(1, 1), (9, 1), (32, 1), (47, 1), (32, 4), (70, 2)] {
            for (common, own) in [(0, 20), (5, 0), (8, 1), (12, 9), (20, 30), (40, 2)] {
                let runs = tree(rows, common, own);
                for threads in [1, 2, 16] {
                    let plan = built(&runs, rows, group, threads);
                    let q = Queries { data: &[], shifts: &[] };
                    let (out, partials) = (SharedMut::new(&mut []), SharedMut::new(&mut []));
                    let job = Job { plan: &plan, runs: &runs, kv: &kv, layer: 0, q: &q, out, partials };
                    for task in &plan.tasks {
                        let (mut met, mut asked) = (Vec::new(), Vec::new());
                        let mut upcoming = Upcoming::new(&job, task);
                        loop {
                            let was_asked = upcoming.asked > 0;
                            let Some(step) = upcoming.begin() else { break };
                            let Step::Visit { run, chunk, .. } = step else { continue };
                            assert!(met.is_empty() || was_asked, "{rows} rows, {common} + {own}");
                            let run = &runs.runs[run as usize];
                            let id = runs.chunks[(run.chunks.start + chunk) as usize];
                            let Head { k, v, .. } = kv.head(id, 0, task.head);
                            met.push(k as usize);
                            let all = query_rows(run, upcoming.rows, group);
                            for at in (0..all).step_by(24) {
                                let asks = upcoming.asks::<Portable>(false, (k, v), 24.min(all - at), all);
                                asked.extend(asks.k.iter().flatten().map(|&next| k.wrapping_offset(next) as usize));
                                upcoming.have_asked(&asks);
                            }
                        }
                        assert_eq!(asked, met.get(1..).unwrap_or(&[]), "{rows} rows, {common} + {own}");
                    }
                }
            }
        }
    }

    /// Codes of 8 bits take half the bytes of 16: two places of them bring such a chunk, and K of it brings a chunk of codes.
    #[test]
    fn chunks_of_the_other_form_are_asked_for_as_a_whole() {
        let kv = KvPool::with_codec(ChunkLayout::new(Codec::Kv8, &KINDS), 2, 2).expect("memory");
        let [codes, shorts] = [0, 2].map(|chunk| kv.head(ChunkId(chunk), 0, 1));
        let read = 64 * 64;
        let mut asks = Asks::NOTHING;
        assert_eq!(asks.add(true, (codes.k, codes.v), shorts, 0, 2), 2);
        let place = |from: *const u8, next: Option<isize>| from.wrapping_offset(next.expect("a place")) as usize;
        assert_eq!(asks.k.map(|next| place(codes.k, next)), [shorts.k as usize, shorts.k as usize + read]);
        assert_eq!(asks.v.map(|next| place(codes.v, next)), [shorts.v as usize, shorts.v as usize + read]);
        let mut asks = Asks::NOTHING;
        assert_eq!(asks.add(false, (shorts.k, shorts.v), codes, 0, 1), 1);
        assert_eq!((place(shorts.k, asks.k[0]), asks.v), (codes.k as usize, [None; 2]));
        assert!(
            place(shorts.k, asks.k[0]) + 2 * read >= codes.v as usize + 64 * 64 - 64 * 4,
            "all but the last lines of V"
        );
    }

    #[test]
    fn sharers_ask_for_each_line_once() {
        for (blocks, bytes) in (SHARERS..=8).flat_map(|n| [128, 160, 256, 320, 384, 512, 768, 1024].map(|b| (n, b))) {
            for most in [32, 64, 128, 256] {
                // As the loops of each row block cut the operand's steps.
                let mut asked = [vec![0; bytes], vec![0; bytes]];
                for block in 0..blocks {
                    let mut column = 0;
                    while column < bytes {
                        let width = most.min(bytes - column);
                        for (line, asked) in share(column, width, block, blocks).iter().zip(&mut asked) {
                            if let Some(line) = line {
                                let from = column + line * LINE;
                                asked[from..(from + LINE).min(column + width)].iter_mut().for_each(|n| *n += 1);
                            }
                        }
                        column += width;
                    }
                }
                assert!(
                    asked.iter().flatten().all(|n| *n == 1),
                    "{bytes} in loops of {most}, {blocks} blocks: {asked:?}"
                );
            }
        }
    }
}
