//! Which of the next chunks a group of query rows asks for.
//!
//! Memory is to be busy all the time, and never with more than it has room for: what it has no room for is dropped, and waited
//! for when it is read. Chunks that many rows meet take arithmetic, rows' own ones memory. So what has to be there when the
//! next of many rows begins is asked for all the way up to it: by many rows as much as memory brings meanwhile, the rest by few.

use std::ops::Range;

use kvist_base::{CHUNK, Run};

use super::ahead::Pace;
use super::kernel::Job;
use super::plan::Task;
use super::steps::{Step, query_rows};
use crate::codec::Head;
use crate::simd::{LINE, Simd};

/// With so many row blocks all of them share in asking. The first one alone would ask for more than memory brings meanwhile,
/// and its own operands would wait behind that.
const SHARERS: usize = 4;

const _: () = assert!(2 * SHARERS >= PLACES, "each place may end in a loop of its own");

/// Visits ahead of which chunks are asked for at most, and bytes that they take: these stay in the L2 cache until then.
const WINDOW: usize = 5;
const WINDOW_BYTES: usize = 168 << 10;

/// Places that a group asks for, at most: those chunks, and the rest of one.
pub(super) const PLACES: usize = WINDOW + 1;

/// Bytes that few rows ask for between their loops, at most.
const BURSTS: usize = 128 * LINE;

/// Row blocks of `n` query rows of a group.
pub(super) fn blocks_of<S: Simd>(n: usize) -> usize {
    n.div_ceil(S::ROWS)
}

/// Whether so many row blocks share in asking.
pub(super) fn share_in_asking(blocks: usize) -> bool {
    blocks >= SHARERS
}

/// Addresses from and to which something lies.
pub(super) type Place = [usize; 2];

pub(super) const NOWHERE: Place = [0; 2];

pub(super) fn bytes([from, to]: Place) -> usize {
    to - from
}

/// Where the K and V of a chunk are, with their scales.
fn place(head: &Head) -> Place {
    [head.k as usize, head.v_scales as usize + CHUNK * size_of::<u16>()]
}

/// What few rows that follow ask for: bytes from K of the chunk that they meet to what is asked for while they read K, as many
/// bytes as they read. The same of V. And where the scales of both are, which are what a visit reads first.
#[derive(Clone, Copy)]
pub(super) struct Follow {
    pub k: Option<isize>,
    pub v: Option<isize>,
    pub scales: [Place; 2],
}

impl Follow {
    pub const NOTHING: Follow = Follow { k: None, v: None, scales: [NOWHERE; 2] };

    /// What comes after the K and V of a chunk, in codes or not.
    fn new(codes: bool, (k, v): (*const u8, *const u8), next: &Head) -> Follow {
        let from = |here: *const u8, next: *const u8| Some(next as isize - here as isize);
        // K and V of codes take what K alone takes in 16 bits.
        let then = if next.eight && !codes { None } else { from(v, next.v) };
        let scales = [[next.k_scales as usize, next.v as usize], [next.v_scales as usize, place(next)[1]]];
        Follow { k: from(k, next.k), v: then, scales }
    }
}

/// What a group asks for.
#[derive(Clone, Copy)]
pub(super) struct Asks {
    pub follow: Follow,
    /// In the course of the group.
    pub places: [Place; PLACES],
    /// What [`Upcoming::asked`] and [`Upcoming::rest`] will be.
    asked: usize,
    rest: Place,
}

impl Asks {
    const NOTHING: Asks = Asks { follow: Follow::NOTHING, places: [NOWHERE; PLACES], asked: 0, rest: NOWHERE };
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
    /// What was left of the last of them.
    rest: Place,
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
            rest: NOWHERE,
            window: (WINDOW_BYTES / (end - begin)).clamp(2, WINDOW),
        }
    }

    /// The next step.
    pub fn begin(&mut self) -> Option<Step> {
        let (&step, rest) = self.steps.split_first()?;
        self.steps = rest;
        self.asked = self.asked.saturating_sub(1);
        if self.asked == 0 {
            self.rest = NOWHERE;
        }
        Some(step)
    }

    /// The visits to come: after how many steps each is over, its run and which of the run's chunks.
    fn visits(&self) -> impl Iterator<Item = (usize, &'a Run, u32)> {
        let runs = self.job.runs;
        let visit = move |(i, step): (usize, &Step)| match *step {
            Step::Visit { run, chunk, .. } => Some((i + 1, &runs.runs[run as usize], chunk)),
            _ => None,
        };
        self.steps.iter().enumerate().filter_map(visit).take(self.window)
    }

    /// What a group of `n` query rows asks for while it meets the K and V `here`, in codes or not, if its visit has `left` rows
    /// to go, these included. It is asked for only if the group [does so](Self::have_asked).
    pub fn asks<S: Simd>(&self, codes: bool, here: (*const u8, *const u8), n: usize, left: usize) -> Asks {
        let (group, dim) = (self.job.plan.shape.group(), self.job.plan.shape.head_dim);
        let many = |run| share_in_asking(blocks_of::<S>(query_rows(run, self.rows, group)));
        let shares = share_in_asking(blocks_of::<S>(n));
        let next = self.visits().position(|(_, run, _)| many(run));
        if !shares && next.is_none() {
            return self.follow(codes, here);
        }
        let (mut places, mut ends, mut count) = ([self.rest; PLACES], [self.asked; PLACES], 1);
        let unasked = self.visits().take(next.map_or(WINDOW, |next| next + 1)).filter(|&(end, ..)| end > self.asked);
        for (end, run, chunk) in unasked {
            (places[count], ends[count]) = (place(&self.head(run, chunk)), end);
            count += 1;
        }
        // More than few rows can ask for between their loops they follow, once the rest is asked for.
        let mut all: usize = places[..count].iter().copied().map(bytes).sum();
        if !shares && next.is_some_and(|few| all > (few + 1) * BURSTS) {
            if bytes(self.rest) == 0 {
                return self.follow(codes, here);
            }
            (count, all) = (1, bytes(self.rest));
        }
        let mut due =
            if shares { (all * n).div_ceil(left).min(Pace::room(blocks_of::<S>(n), dim)) } else { all.min(BURSTS) };
        due = due.next_multiple_of(LINE);
        let mut asks = Asks { asked: self.asked, rest: self.rest, ..Asks::NOTHING };
        for (i, &[from, to]) in places[..count].iter().enumerate() {
            // Who follows takes whole chunks.
            if due == 0 || next.is_none() && due < to - from {
                break;
            }
            let end = to.min(from + due);
            due -= end - from;
            asks.places[i] = [from, end];
            (asks.asked, asks.rest) = (ends[i], [end, to]);
        }
        asks
    }

    /// As many bytes as are read, of the next chunk that was not asked for.
    fn follow(&self, codes: bool, here: (*const u8, *const u8)) -> Asks {
        let mut asks = Asks { asked: self.asked, ..Asks::NOTHING };
        if let Some((end, run, chunk)) = self.visits().find(|&(end, ..)| end > self.asked) {
            asks.follow = Follow::new(codes, here, &self.head(run, chunk));
            asks.asked = end;
        }
        asks
    }

    fn head(&self, run: &Run, chunk: u32) -> Head {
        let id = self.job.runs.chunks[(run.chunks.start + chunk) as usize];
        self.job.kv.head(id, self.job.layer, self.head)
    }

    /// What [`Upcoming::asks`] said was done.
    pub fn have_asked(&mut self, asks: &Asks) {
        (self.asked, self.rest) = (asks.asked, asks.rest);
    }
}

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

    /// Of the chunks of a task, in the order in which they are met: bytes that had been asked for by then. Nothing is asked for
    /// twice, or after it was met.
    fn asked_of_each<S: Simd>(
        kv: &KvPool,
        rows: u32,
        group: usize,
        (common, own): (u32, u32),
        threads: usize,
    ) -> Vec<Vec<usize>> {
        let mut runs = tree(rows, common, own);
        runs.chunks = (0..runs.chunks.len() as u32).map(ChunkId).collect();
        let plan = built(&runs, rows, group, threads);
        let q = Queries { data: &[], shifts: &[] };
        let (out, partials) = (SharedMut::new(&mut []), SharedMut::new(&mut []));
        let job = Job { plan: &plan, runs: &runs, kv, layer: 0, q: &q, out, partials };
        let of_task = |task| {
            let (mut asked, mut of_each) = (Vec::<Place>::new(), Vec::new());
            let mut upcoming = Upcoming::new(&job, task);
            while let Some(step) = upcoming.begin() {
                let Step::Visit { run, chunk, .. } = step else { continue };
                let run = &runs.runs[run as usize];
                let here = kv.head(runs.chunks[(run.chunks.start + chunk) as usize], 0, task.head);
                let [from, to] = place(&here);
                let (of_this, others): (Vec<_>, Vec<_>) = asked.iter().partition(|&&[a, b]| from <= a && b <= to);
                of_each.push(of_this.iter().copied().map(bytes).sum());
                asked = others;
                let all = query_rows(run, upcoming.rows, group);
                for at in (0..all).step_by(GROUP) {
                    let asks = upcoming.asks::<S>(false, (here.k, here.v), GROUP.min(all - at), all - at);
                    let whole =
                        asks.follow.k.map(|next| here.k.wrapping_offset(next) as usize).map(|k| [k, k + (to - from)]);
                    for place in asks.places.into_iter().chain(whole).filter(|&place| bytes(place) > 0) {
                        let twice = asked.iter().any(|&[a, b]| a < place[1] && place[0] < b);
                        assert!(
                            !twice && place != [from, to],
                            "{rows} rows, {common} + {own}: {place:x?} of {asked:x?}"
                        );
                        asked.push(place);
                    }
                    upcoming.have_asked(&asks);
                }
            }
            assert!(asked.is_empty(), "{rows} rows, {common} + {own}: what is not met");
            of_each
        };
        plan.tasks.iter().map(of_task).collect()
    }

    #[test]
    fn each_chunk_but_the_first_is_asked_for_before_it_is_met() {
        let kv = KvPool::new(ChunkLayout::new(Codec::Kv16, &KINDS), 2200).expect("memory");
        let whole = bytes(place(&kv.head(ChunkId(0), 0, 0)));
        for (rows, group) in [(1, 1), (9, 1), (32, 1), (47, 1), (32, 4), (70, 2)] {
            for (common, own) in [(0, 20), (5, 0), (8, 1), (12, 9), (20, 30), (40, 2)] {
                for threads in [1, 2, 16] {
                    for of_each in asked_of_each::<Portable>(&kv, rows, group, (common, own), threads) {
                        let case = format!("{rows} rows, {common} + {own}: {of_each:?} of {whole}");
                        if own == 0 || common == 0 || rows as usize * group < 16 {
                            assert!(of_each.iter().skip(1).all(|&asked| asked == whole), "{case}");
                        }
                        let asked: usize = of_each.iter().sum();
                        assert!(asked >= (of_each.len() - 1) * whole * 9 / 10, "{case}");
                    }
                }
            }
        }
    }

    /// Once many rows asked for the next chunk of theirs only if it was one of the next two, so that with two chunks of other rows
    /// in between nobody did, and its first rows waited for all of it.
    #[test]
    fn what_many_rows_meet_next_is_asked_for_across_what_few_meet() {
        let kv = KvPool::new(ChunkLayout::new(Codec::Kv16, &KINDS), 2200).expect("memory");
        let whole = bytes(place(&kv.head(ChunkId(0), 0, 0)));
        for (rows, common, own, most) in [(32, 32, 1, 2), (32, 32, 2, 2), (32, 16, 2, 3)] {
            let [of_each] = &asked_of_each::<Portable>(&kv, rows, 1, (common, own), 1)[..1] else {
                unreachable!("a task")
            };
            let asked: usize = of_each.iter().sum();
            assert!(asked >= (of_each.len() - 1) * whole * 9 / 10, "{common} + {own}: {of_each:?} of {whole}");
            assert!(of_each.iter().filter(|&&asked| asked == 0).count() < most, "{common} + {own}: {of_each:?}");
        }
    }

    /// Few rows that have more to ask for than fits between their loops follow, once the rest of a chunk is asked for. They once went
    /// on behind it, so that there was a rest again at each next visit, nobody followed, and a chunk was met of which most was not
    /// asked for.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn few_rows_follow_where_there_is_too_much_to_ask_for_between_loops() {
        let kv = KvPool::new(ChunkLayout::new(Codec::Kv16, &KINDS), 256).expect("memory");
        let whole = bytes(place(&kv.head(ChunkId(0), 0, 0)));
        for (rows, common, own) in [(24, 32, 3), (24, 32, 4), (24, 32, 5), (32, 32, 4)] {
            let [of_each] = &asked_of_each::<crate::simd::Avx512>(&kv, rows, 1, (common, own), 1)[..1] else {
                unreachable!("a task")
            };
            let least = of_each.iter().skip(1).min();
            assert!(least.is_some_and(|&least| least >= whole * 9 / 10), "{rows} rows, {common} + {own}: {of_each:?}");
        }
    }

    /// Codes of 8 bits take half the bytes of 16: K of 16 bits brings a chunk of codes.
    #[test]
    fn few_rows_ask_for_a_chunk_of_codes_while_they_read_k() {
        let kv = KvPool::with_codec(ChunkLayout::new(Codec::Kv8, &KINDS), 2, 2).expect("memory");
        let [codes, shorts] = [0, 2].map(|chunk| kv.head(ChunkId(chunk), 0, 1));
        let follow = Follow::new(false, (shorts.k, shorts.v), &codes);
        let from = shorts.k.wrapping_offset(follow.k.expect("a place")) as usize;
        assert_eq!((from, follow.v), (codes.k as usize, None));
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
}
