//! What is asked for of the next chunks while one is read.

use std::cell::Cell;
use std::ops::Range;

use kvist_base::CHUNK;

use super::kernel::Job;
use super::plan::Task;
use super::steps::{Step, query_rows};
use super::tile::{Form, Tile};
use crate::codec::Head;
use crate::simd::{Ask, LINE, Simd};

/// With so many row blocks all of them share in asking. The first one alone would ask for more than memory brings meanwhile,
/// and its own operands would wait behind that.
const SHARERS: usize = 4;

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
            if shared {
                asks.places[count] = place(&next);
            } else {
                asks.follow(codes, here, &next);
            }
            asks.asked = i + 1;
            count += 1;
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

/// Addresses from and to which something lies.
type Place = [usize; 2];

/// Where the K and V of a chunk are, with their scales.
fn place(head: &Head) -> Place {
    [head.k as usize, head.v_scales as usize + CHUNK * size_of::<u16>()]
}

/// What a group asks for.
#[derive(Clone, Copy)]
pub(super) struct Asks {
    /// By few row blocks, of which the first one asks: bytes from K of the chunk that it meets to what is asked for while
    /// it reads K, as many bytes as it reads. The same of V.
    k: Option<isize>,
    v: Option<isize>,
    /// By those that share.
    places: [Place; 2],
    /// What [`Upcoming::asked`] will be.
    asked: usize,
}

impl Asks {
    pub const NOTHING: Asks = Asks { k: None, v: None, places: [[0; 2]; 2], asked: 0 };

    /// What comes after the K and V of a chunk, in codes or not.
    fn follow(&mut self, codes: bool, (k, v): (*const u8, *const u8), next: &Head) {
        let from = |here: *const u8, next: *const u8| Some(next as isize - here as isize);
        self.k = from(k, next.k);
        // K and V of codes take what K alone takes in 16 bits.
        self.v = if next.eight && !codes { None } else { from(v, next.v) };
    }
}

/// What is asked for in the course of a loop.
#[derive(Clone, Copy)]
pub(super) enum Ahead {
    Nothing,
    /// From here on, so many bytes with two steps: those of a line at most.
    Line(*const u8, usize),
    /// The same of two lines.
    Lines(*const u8, usize),
    /// As many bytes as are read, from here on.
    All(*const u8),
}

/// Asks for so many lines with two steps of a loop, from there on, of which so many bytes are new each time.
#[derive(Clone, Copy)]
pub(super) struct Paced<const LINES: usize>(pub *const u8, pub usize);

impl<const LINES: usize> Ask for Paced<LINES> {
    #[inline(always)]
    unsafe fn ask<S: Simd>(self, _: usize, _: usize, _: usize) {}

    #[inline(always)]
    unsafe fn ask_two<S: Simd>(self, _: usize, i: usize, _: usize) {
        for line in 0..LINES {
            // SAFETY: any address may be asked for.
            unsafe { S::prefetch(self.0.wrapping_add(i / 2 * self.1 + line * LINE).cast()) };
        }
    }
}

/// Lines that a row asks for between scores and outputs, at most, while loops have room for the rest.
const BETWEEN: usize = 6;

/// How what row blocks share in asking for is spread over all that a group does. A core waits for a dozen lines at a time:
/// with more of them on their way its own operands wait as well, wherever they come from.
#[derive(Default)]
pub(super) struct Pace {
    /// What is still to be asked for.
    places: Cell<[Place; 2]>,
    /// New bytes with two steps for each pair of a step's vectors, in 1/2^16.
    rate: usize,
    /// Lines for each row between scores and outputs.
    between: usize,
}

impl Pace {
    /// For `rows` rows in so many blocks, of this head size.
    fn new(places: [Place; 2], rows: usize, blocks: usize, dim: usize) -> Pace {
        /// Pairs of a step's vectors in the widest loops.
        const WIDTH: usize = 64;
        let lines = places.map(|[from, to]| (to - from).div_ceil(LINE));
        // The loop in which the first place ends goes on behind it.
        let lines = lines[0] + if lines[1] > 0 { lines[1] + (dim / 2).max(CHUNK / 2) } else { 0 };
        // Of all loops: K has `dim / 2` steps of 64 pairs, V 32 of `dim`.
        let pairs = 2 * blocks * CHUNK * (dim / 2);
        let room = 2 * (pairs / 2 / WIDTH);
        let between = lines.div_ceil(4 * rows).min(BETWEEN).max(lines.saturating_sub(room).div_ceil(rows));
        let left = lines.saturating_sub(between * rows);
        Pace { places: Cell::new(places), rate: ((left * LINE * 2) << 16) / pairs, between }
    }

    /// The next `bytes`, or what else is left of a place.
    #[inline(always)]
    fn take(&self, bytes: usize) -> Option<*const u8> {
        let [[mut from, mut to], then] = self.places.get();
        let mut later = then;
        if from >= to {
            [from, to] = then;
            later = [0; 2];
            if from >= to {
                return None;
            }
        }
        self.places.set([[from + bytes, to], later]);
        Some(std::ptr::without_provenance(from))
    }

    /// What a loop asks for in so many steps of `width` pairs.
    #[inline(always)]
    fn of_loop(&self, width: usize, steps: usize) -> Ahead {
        // Up, so that nothing is left.
        let bytes = (((self.rate * width) >> 16) + 1).min(2 * LINE);
        match self.take(steps / 2 * bytes) {
            None => Ahead::Nothing,
            Some(next) if bytes <= LINE => Ahead::Line(next, bytes),
            Some(next) => Ahead::Lines(next, bytes),
        }
    }

    /// Asks for what is due with each row between scores and outputs.
    ///
    /// # Safety
    /// The ISA of `S` is available.
    #[inline(always)]
    pub unsafe fn with_row<S: Simd>(&self) {
        if self.between == 0 {
            return;
        }
        if let Some(next) = self.take(self.between * LINE) {
            for line in 0..self.between {
                // SAFETY: any address may be asked for.
                unsafe { S::prefetch(next.wrapping_add(line * LINE).cast()) };
            }
        }
    }
}

/// Whether row blocks of so many rows may be those of a group that shares: these are of almost equal size.
pub(super) const fn may_share<S: Simd>(rows: usize) -> bool {
    rows > S::ROWS / 2
}

impl<F: Form> Tile<'_, F> {
    /// Begins with a group of `n` rows, which asks for this.
    pub fn ask<S: Simd>(&mut self, n: usize, asks: Asks) {
        self.blocks = blocks_of::<S>(n);
        self.asks = asks;
        self.pace = match asks.places {
            [[_, 0], _] => Pace::default(),
            places => Pace::new(places, n, self.blocks, self.job.plan.shape.head_dim),
        };
    }

    /// Whether row blocks of the running group share in asking.
    fn shares(&self) -> bool {
        share_in_asking(self.blocks)
    }

    /// What the rows from `from` of the group ask for while they read `pairs` steps of K, of `width` pairs from `column` on.
    #[inline(always)]
    pub fn ahead_of_k(&self, column: usize, width: usize, pairs: usize, from: usize) -> Ahead {
        self.ahead((self.k, self.asks.k), (column, width), pairs, from)
    }

    /// The same of V.
    #[inline(always)]
    pub fn ahead_of_v(&self, column: usize, width: usize, pairs: usize, from: usize) -> Ahead {
        self.ahead((self.v, self.asks.v), (column, width), pairs, from)
    }

    #[inline(always)]
    fn ahead(
        &self,
        (here, next): (*const u8, Option<isize>),
        (column, width): (usize, usize),
        pairs: usize,
        from: usize,
    ) -> Ahead {
        if self.shares() {
            return self.pace.of_loop(width, pairs);
        }
        let bytes = if F::CODES { 2 } else { 4 };
        match next {
            Some(next) if from == 0 => Ahead::All(here.wrapping_offset(next).wrapping_add(bytes * column * pairs)),
            _ => Ahead::Nothing,
        }
    }

    /// The first lines of the next K, if row blocks do not share in asking for it.
    #[inline(always)]
    pub fn first_of_k(&self) -> Option<*const u8> {
        self.asks.k.map(|next| self.k.wrapping_offset(next))
    }

    /// Asks for some lines of the next V between scores and outputs, if row blocks do not share: with few rows that is a tenth
    /// of the time, in which memory would have nothing to do. Part `part` of three.
    ///
    /// # Safety
    /// The ISA of `S` is available.
    #[inline(always)]
    pub unsafe fn ask_between<S: Simd>(&self, part: usize) {
        const LINES: usize = 8;
        if let Some(next) = self.asks.v {
            let next = self.v.wrapping_offset(next);
            for line in part * LINES..(part + 1) * LINES {
                // SAFETY: any address may be asked for.
                unsafe { S::prefetch(next.wrapping_add(line * LINE).cast()) };
            }
        }
    }
}

/// Calls `$f::<.., _>($args, (ask, $bytes))` for `$r` rows, which asks for what `$ahead` says; `$bytes` are read in each of
/// `$steps` steps. Forms that cannot occur are not compiled.
macro_rules! asking {
    ($s:ident, $r:ident, $ahead:expr, $bytes:expr, $steps:expr, $f:ident::<$($of:tt),*>($($arg:expr),*)) => {
        match $ahead {
            Ahead::All(next) if const { $bytes > $crate::simd::LINE } => {
                $f::<$($of),*, _>($($arg),*, ($crate::simd::All::new(next, $bytes, $steps), $bytes))
            }
            Ahead::All(next) => $f::<$($of),*, _>($($arg),*, ($crate::simd::Line(next), $bytes)),
            Ahead::Line(next, apart) if const { super::ahead::may_share::<$s>($r) } => {
                $f::<$($of),*, _>($($arg),*, (super::ahead::Paced::<1>(next, apart), $bytes))
            }
            Ahead::Lines(next, apart) if const { super::ahead::may_share::<$s>($r) } => {
                $f::<$($of),*, _>($($arg),*, (super::ahead::Paced::<2>(next, apart), $bytes))
            }
            _ => $f::<$($of),*, _>($($arg),*, ($crate::simd::Nothing, $bytes)),
        }
    };
}
pub(super) use asking;

#[cfg(test)]
mod tests {
    use kvist_base::{ChunkId, ChunkLayout, Codec, LayerKind};

    use super::super::Queries;
    use super::super::steps::tests::{built, tree};
    use super::super::tile::GROUP;
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
                            for at in (0..all).step_by(GROUP) {
                                let asks = upcoming.asks::<Portable>(false, (k, v), GROUP.min(all - at), all);
                                asked.extend(asks.places.iter().map(|place| place[0]).filter(|&place| place > 0));
                                asked.extend(asks.k.map(|next| k.wrapping_offset(next) as usize));
                                upcoming.have_asked(&asks);
                            }
                        }
                        assert_eq!(asked, met.get(1..).unwrap_or(&[]), "{rows} rows, {common} + {own}");
                    }
                }
            }
        }
    }

    /// Codes of 8 bits take half the bytes of 16: K of 16 bits brings a chunk of codes.
    #[test]
    fn few_rows_ask_for_a_chunk_of_codes_while_they_read_k() {
        let kv = KvPool::with_codec(ChunkLayout::new(Codec::Kv8, &KINDS), 2, 2).expect("memory");
        let [codes, shorts] = [0, 2].map(|chunk| kv.head(ChunkId(chunk), 0, 1));
        let mut asks = Asks::NOTHING;
        asks.follow(false, (shorts.k, shorts.v), &codes);
        let from = shorts.k.wrapping_offset(asks.k.expect("a place")) as usize;
        assert_eq!((from, asks.v), (codes.k as usize, None));
        assert!(from + 64 * 64 * 2 >= codes.v as usize + 64 * 64 - 64 * 4, "all but the last lines of V");
    }

    #[test]
    fn a_place_ends_behind_the_scales() {
        let kv = KvPool::with_codec(ChunkLayout::new(Codec::Kv8, &KINDS), 2, 2).expect("memory");
        for chunk in [0, 2] {
            let [[from, to], [next, _]] = [0, 1].map(|head| place(&kv.head(ChunkId(chunk), 0, head)));
            assert_eq!((from < to, to), (true, next));
        }
    }

    /// Lines that a loop asks for.
    fn lines(ahead: Ahead, steps: usize) -> Vec<usize> {
        let (next, bytes, lines) = match ahead {
            Ahead::Line(next, bytes) => (next as usize, bytes, 1),
            Ahead::Lines(next, bytes) => (next as usize, bytes, 2),
            _ => return Vec::new(),
        };
        assert!(bytes <= lines * LINE);
        (0..steps / 2).flat_map(|i| (0..lines).map(move |line| (next + i * bytes) / LINE + line)).collect()
    }

    /// As loops of all widths do, between which rows ask as well: for each line, and for little else.
    #[test]
    fn what_is_shared_is_asked_for_in_the_course_of_all_loops() {
        for (dim, width, rows) in
            [(64_usize, 16, 24_usize), (64, 64, 19), (96, 32, 25), (128, 16, 32), (128, 64, 32), (256, 64, 32)]
        {
            let blocks = rows.div_ceil(6);
            let [narrow, wide] = [2 * (CHUNK * dim + dim + CHUNK), 2 * (2 * CHUNK * dim + 2 * CHUNK)];
            for sizes in [vec![wide], vec![narrow], vec![wide, wide], vec![wide, narrow], vec![]] {
                let mut places = [[0; 2]; 2];
                for (i, (place, bytes)) in places.iter_mut().zip(&sizes).enumerate() {
                    *place = [1 << (20 + i), (1 << (20 + i)) + bytes];
                }
                let pace = Pace::new(places, rows, blocks, dim);
                let mut asked = Vec::new();
                for _ in 0..blocks * CHUNK / width {
                    asked.extend(lines(pace.of_loop(width, dim / 2), dim / 2));
                }
                for _ in 0..rows {
                    let next = pace.take(pace.between * LINE).map_or(0..0, |next| {
                        let line = next as usize / LINE;
                        line..line + pace.between
                    });
                    asked.extend(next);
                }
                for _ in 0..blocks * dim / width {
                    asked.extend(lines(pace.of_loop(width, CHUNK / 2), CHUNK / 2));
                }
                asked.sort_unstable();
                asked.dedup();
                let case = format!("{dim} elements, {width} pairs, {rows} rows, {sizes:?} bytes");
                for line in places.iter().flat_map(|[from, to]| from / LINE..to.div_ceil(LINE)) {
                    assert!(asked.binary_search(&line).is_ok(), "{case}: line {line}");
                }
                let wanted: usize = sizes.iter().map(|bytes| bytes / LINE).sum();
                assert!(asked.len() <= wanted + wanted / 8 + 16 * sizes.len(), "{case}: {} of {wanted}", asked.len());
            }
        }
    }
}
