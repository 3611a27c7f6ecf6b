//! Which of the next chunks a group of query rows asks for.
//!
//! Memory is to be busy all the time, and never with more than it has room for: what it has no room for is dropped, and waited
//! for when it is read. Chunks that many rows meet take arithmetic, rows' own ones memory. So what has to be there when the
//! next of many rows begins is asked for all the way up to it: by many rows as much as memory brings meanwhile, the rest by few.

use std::ops::Range;

use kvist_base::{CHUNK, Run};

use super::ahead::{Pace, may_share};
use super::kernel::Job;
use super::plan::{AttnPlan, AttnShape, Task};
use super::steps::{Step, query_rows};
use super::tile::GROUP;
use crate::codec::Head;
use crate::pool::Claims;
use crate::simd::{LINE, Simd};

/// So many row blocks are many rows: they take arithmetic, and ask for what few rows have no time for.
const SHARERS: usize = 4;

const _: () = assert!(2 * SHARERS >= PLACES, "each place may end in a loop of its own");

/// Visits ahead of which chunks are asked for at most, and bytes that they take: these stay in the L2 cache until then.
const WINDOW: usize = 5;
const WINDOW_BYTES: usize = 168 << 10;

/// Places that a group asks for, at most: those chunks, and the rest of one.
pub(super) const PLACES: usize = WINDOW + 1;

/// Query rows of light bands from which on they ask evenly for the next tile. What fewer rows ask for comes too late then.
const EVEN: usize = 10;

/// Bytes that a single row block asks for between its loops, at most.
const BURSTS: usize = 128 * LINE;

/// Row blocks of `n` query rows of a group.
pub(super) fn blocks_of<S: Simd>(n: usize) -> usize {
    n.div_ceil(S::ROWS)
}

/// Whether so many row blocks share in asking.
pub(super) fn share_in_asking(blocks: usize) -> bool {
    blocks >= SHARERS
}

/// Whether all row blocks of `n` query rows ask, each for as much: of few rows as well, where none of their blocks is too small to.
/// If the first one asked for everything, memory would drop some of it, and be idle beside the others.
pub(super) fn ask_evenly<S: Simd>(n: usize) -> bool {
    let blocks = blocks_of::<S>(n);
    share_in_asking(blocks) || blocks > 1 && may_share::<S>(n / blocks)
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

/// Where the scales of K and those of V are.
fn scales(head: &Head) -> [Place; 2] {
    [[head.k_scales as usize, head.v as usize], [head.v_scales as usize, place(head)[1]]]
}

/// What few rows that follow ask for: bytes from K of the chunk that they meet to what is asked for while they read K, as many
/// bytes as they read. The same of V. And where the next scales of both are, which are what a visit reads first.
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
        Follow { k: from(k, next.k), v: then, scales: scales(next) }
    }

    /// V of the chunk, and then K of the next one.
    fn half((k, v): (*const u8, *const u8), next: Option<&Head>) -> Follow {
        let from = |here: *const u8, next: *const u8| Some(next as isize - here as isize);
        Follow { k: from(k, v), v: next.and_then(|next| from(v, next.k)), scales: next.map_or([NOWHERE; 2], scales) }
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

    /// All of a place, evenly.
    fn even(place: Place) -> Asks {
        let mut asks = Asks::NOTHING;
        asks.places[0] = place;
        asks
    }
}

/// What is still to come of a task.
pub(super) struct Upcoming<'a> {
    job: &'a Job<'a>,
    task: &'a Task,
    left: Left<'a>,
    /// Visits among the first so many steps of heads were asked for, and no other.
    asked: usize,
    /// What was left of the last of them.
    rest: Place,
    window: usize,
    claims: &'a Claims<'a>,
    /// The first visit of the next task, once it is claimed.
    then: Option<Coming<'a>>,
}

/// Steps of a task, each with one of its heads after the other.
#[derive(Clone)]
struct Left<'a> {
    steps: &'a [Step],
    heads: Range<usize>,
    /// Which one is next.
    head: usize,
}

impl<'a> Left<'a> {
    fn of(plan: &'a AttnPlan, task: &Task) -> Left<'a> {
        Left { steps: &plan.steps[task.steps.clone()], heads: task.heads.clone(), head: task.heads.start }
    }
}

impl Iterator for Left<'_> {
    type Item = (Step, usize);

    #[inline(always)]
    fn next(&mut self) -> Option<(Step, usize)> {
        let ((&step, rest), head) = (self.steps.split_first()?, self.head);
        self.head += 1;
        if self.head == self.heads.end {
            (self.steps, self.head) = (rest, self.heads.start);
        }
        Some((step, head))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let len = self.steps.len() * self.heads.len() - (self.head - self.heads.start);
        (len, Some(len))
    }
}

impl ExactSizeIterator for Left<'_> {}

/// A visit to come.
#[derive(Clone, Copy)]
struct Coming<'a> {
    /// After how many steps of heads it is over.
    end: usize,
    run: &'a Run,
    /// Which of the run's chunks.
    chunk: u32,
    head: usize,
    /// Rows of the band.
    rows: &'a Range<u32>,
}

impl<'a> Upcoming<'a> {
    pub fn new(job: &'a Job<'a>, task: &'a Task, claims: &'a Claims<'a>) -> Upcoming<'a> {
        let (begin, _, end) = job.kv.layout().tile(job.layer, task.heads.start);
        Upcoming {
            job,
            task,
            left: Left::of(job.plan, task),
            asked: 0,
            rest: NOWHERE,
            window: (WINDOW_BYTES / (end - begin)).clamp(2, WINDOW),
            claims,
            then: None,
        }
    }

    /// The next step, and for which head. The last visit but one, or the only one, claims the next task, whose first chunk can be
    /// asked for from then on; the last one asks for where its rows' results go and for that task's queries.
    pub fn begin<S: Simd>(&mut self) -> Option<(Step, usize)> {
        let (step, head) = self.left.next()?;
        self.asked = self.asked.saturating_sub(1);
        if self.asked == 0 {
            self.rest = NOWHERE;
        }
        let left = visits(self.job, self.task, self.left.clone()).take(2).count();
        if left < 2 && matches!(step, Step::Visit { .. }) {
            let plan = self.job.plan;
            let next = self.claims.next().map(|next| &plan.tasks[next]);
            self.then = next.and_then(|task| visits(self.job, task, Left::of(plan, task)).next());
            if left == 0 && self.task.part.is_none() {
                self.ask_for_rows::<S, f32>(self.job.out.get(), 0, self.task);
            }
            if let (0, Some(task), Some(then)) = (left, next, self.then) {
                let set = self.job.q.shifts.iter().position(|&shift| shift == then.run.shift);
                self.ask_for_rows::<S, u16>(self.job.q.data.as_ptr(), set.unwrap_or(0), task);
            }
        }
        Some((step, head))
    }

    /// Asks for the first of a task's rows in `[set][row][head][head_dim]`, queries or results.
    fn ask_for_rows<S: Simd, T>(&self, all: *const T, set: usize, task: &Task) {
        let AttnShape { heads, head_dim, .. } = self.job.plan.shape;
        let (group, of_row) = (self.job.plan.shape.group(), self.job.plan.shape.group() * task.heads.len());
        for row in self.job.plan.bands[task.band].rows.clone().take(GROUP.div_ceil(of_row)) {
            let at = ((set * self.job.plan.rows + row as usize) * heads + task.heads.start * group) * head_dim;
            let from = all.wrapping_add(at) as usize;
            let to = from + of_row.min(GROUP) * head_dim * size_of::<T>();
            let (first, lines) = (from / LINE * LINE, to.div_ceil(LINE) - from / LINE);
            // SAFETY: any address may be asked for; a row has a line at least.
            unsafe { S::prefetch_lines(std::ptr::without_provenance(first), lines) };
        }
    }

    /// The visits to come.
    fn visits(&self) -> impl Iterator<Item = Coming<'a>> + Clone {
        visits(self.job, self.task, self.left.clone()).take(self.window)
    }

    /// What a group of `n` query rows asks for while it meets the K and V `here`, in codes or not, if its visit has `left` rows
    /// to go, these included. It is asked for only if the group [does so](Self::have_asked).
    pub fn asks<S: Simd>(&self, codes: bool, here: (*const u8, *const u8), n: usize, left: usize) -> Asks {
        if self.job.plan.bands[self.task.band].light {
            let next = visits(self.job, self.task, self.left.clone()).next().or(self.then);
            let next = next.map(|next| self.head(&next));
            // Half a tile ahead memory is busier than a whole one ahead, where tiles lie side by side.
            return match next {
                Some(next) if n >= EVEN => Asks::even(place(&next)),
                next => Asks { follow: Follow::half(here, next.as_ref()), ..Asks::NOTHING },
            };
        }
        match self.then {
            None => self.asks_of::<S>(self.visits(), (codes, here), n, left),
            Some(then) => {
                let then = Coming { end: self.left.len() + 1, ..then };
                self.asks_of::<S>(self.visits().chain([then]), (codes, here), n, left)
            }
        }
    }

    /// The same of these visits.
    #[inline(always)]
    fn asks_of<S: Simd>(
        &self,
        visits: impl Iterator<Item = Coming<'a>> + Clone,
        here: (bool, (*const u8, *const u8)),
        n: usize,
        left: usize,
    ) -> Asks {
        let (group, dim) = (self.job.plan.shape.group(), self.job.plan.shape.head_dim);
        let many = |coming: &Coming<'_>| share_in_asking(blocks_of::<S>(query_rows(coming.run, coming.rows, group)));
        let shares = share_in_asking(blocks_of::<S>(n));
        let next = visits.clone().position(|coming| many(&coming));
        if !shares && next.is_none() {
            return self.follow::<S>(visits, here, n);
        }
        let (mut places, mut ends, mut count) = ([self.rest; PLACES], [self.asked; PLACES], 1);
        let unasked =
            visits.clone().take(next.map_or(WINDOW, |next| next + 1)).filter(|coming| coming.end > self.asked);
        for coming in unasked {
            (places[count], ends[count]) = (place(&self.head(&coming)), coming.end);
            count += 1;
        }
        // More than few rows can ask for between their loops they follow, once the rest is asked for.
        let mut all: usize = places[..count].iter().copied().map(bytes).sum();
        if !shares && next.is_some_and(|few| all > (few + 1) * BURSTS) {
            if bytes(self.rest) == 0 {
                return self.follow::<S>(visits, here, n);
            }
            (count, all) = (1, bytes(self.rest));
        }
        let room = if ask_evenly::<S>(n) { Pace::room(blocks_of::<S>(n), dim) } else { BURSTS };
        let mut due = (all * n).div_ceil(left).min(room);
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

    /// The next chunk that was not asked for: as many bytes as are read, or evenly.
    #[inline(always)]
    fn follow<S: Simd>(
        &self,
        mut visits: impl Iterator<Item = Coming<'a>>,
        (codes, here): (bool, (*const u8, *const u8)),
        n: usize,
    ) -> Asks {
        let Some(coming) = visits.find(|coming| coming.end > self.asked) else {
            return Asks { asked: self.asked, ..Asks::NOTHING };
        };
        let next = self.head(&coming);
        let follow = || Asks { follow: Follow::new(codes, here, &next), ..Asks::NOTHING };
        Asks { asked: coming.end, ..if ask_evenly::<S>(n) { Asks::even(place(&next)) } else { follow() } }
    }

    fn head(&self, coming: &Coming<'_>) -> Head {
        let id = self.job.runs.chunks[(coming.run.chunks.start + coming.chunk) as usize];
        self.job.kv.head(id, self.job.layer, coming.head)
    }

    /// What [`Upcoming::asks`] said was done.
    pub fn have_asked(&mut self, asks: &Asks) {
        (self.asked, self.rest) = (asks.asked, asks.rest);
    }
}

/// The visits of what is left of a task.
fn visits<'a>(job: &'a Job<'a>, task: &Task, left: Left<'a>) -> impl Iterator<Item = Coming<'a>> + Clone {
    let (runs, rows) = (&job.runs.runs, &job.plan.bands[task.band].rows);
    let visit = move |(i, (step, head)): (usize, (Step, usize))| match step {
        Step::Visit { run, chunk, .. } => Some(Coming { end: i + 1, run: &runs[run as usize], chunk, head, rows }),
        _ => None,
    };
    left.enumerate().filter_map(visit)
}

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

    /// Of the chunks of a task, in the order in which they are met: bytes that had been asked for by then. Nothing is asked for
    /// twice, or after it was met. Tasks know which one comes next if they `follow`.
    fn asked_of_each<S: Simd>(
        kv: &KvPool,
        rows: u32,
        group: usize,
        (common, own): (u32, u32),
        threads: usize,
        follow: bool,
    ) -> Vec<Vec<usize>> {
        let mut runs = tree(rows, common, own);
        runs.chunks = (0..runs.chunks.len() as u32).map(ChunkId).collect();
        let plan = built(&runs, rows, group, threads);
        let q = Queries { data: &[], shifts: &[] };
        let (out, partials) = (SharedMut::new(&mut []), SharedMut::new(&mut []));
        let job = Job { plan: &plan, runs: &runs, kv, layer: 0, q: &q, out, partials };
        let mut asked = Vec::<Place>::new();
        let of_task = |i| {
            let (task, mut of_each) = (&plan.tasks[i], Vec::new());
            let next = Some(i + 1).filter(|&next| follow && next < plan.tasks.len());
            let claims = Claims::followed_by(next);
            let mut upcoming = Upcoming::new(&job, task, &claims);
            while let Some((step, head)) = upcoming.begin::<S>() {
                let Step::Visit { run, chunk, .. } = step else { continue };
                let run = &runs.runs[run as usize];
                let here = kv.head(runs.chunks[(run.chunks.start + chunk) as usize], 0, head);
                let [from, to] = place(&here);
                let (of_this, others): (Vec<_>, Vec<_>) = asked.iter().partition(|&&[a, b]| from <= a && b <= to);
                of_each.push(of_this.iter().copied().map(bytes).sum());
                asked = others;
                let all = query_rows(run, &plan.bands[task.band].rows, group);
                for at in (0..all).step_by(GROUP) {
                    let asks = upcoming.asks::<S>(false, (here.k, here.v), GROUP.min(all - at), all - at);
                    let at = |here: *const u8, next: Option<isize>| Some(here.wrapping_offset(next?) as usize);
                    let next = match (at(here.k, asks.follow.k), at(here.v, asks.follow.v)) {
                        // Of a chunk of which K was asked for it is asked for V as well.
                        (Some(v), next) if v == here.v as usize => {
                            if let Some(asked) = of_each.last_mut().filter(|asked| **asked > 0) {
                                *asked = to - from;
                            }
                            next.map(|k| [k, k + (here.v as usize - from)])
                        }
                        (k, _) => k.map(|k| [k, k + (to - from)]),
                    };
                    for place in asks.places.into_iter().chain(next).filter(|&place| bytes(place) > 0) {
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
            assert!(next.is_some() || asked.is_empty(), "{rows} rows, {common} + {own}: what is not met");
            of_each
        };
        (0..plan.tasks.len()).map(of_task).collect()
    }

    #[test]
    fn each_chunk_but_the_first_is_asked_for_before_it_is_met() {
        let kv = KvPool::new(ChunkLayout::new(Codec::Kv16, &KINDS), 2200).expect("memory");
        let whole = bytes(place(&kv.head(ChunkId(0), 0, 0)));
        for (rows, group) in [(1, 1), (9, 1), (32, 1), (47, 1), (32, 4), (70, 2)] {
            for (common, own) in [(0, 20), (5, 0), (8, 1), (12, 9), (20, 30), (40, 2)] {
                for threads in [1, 2, 16] {
                    for of_each in asked_of_each::<Portable>(&kv, rows, group, (common, own), threads, false) {
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

    /// The first chunk of a task was not asked for, and the visit took more than twice as long as the others.
    #[test]
    fn the_first_chunk_of_the_next_task_is_asked_for() {
        let kv = KvPool::new(ChunkLayout::new(Codec::Kv16, &KINDS), 2200).expect("memory");
        let whole = bytes(place(&kv.head(ChunkId(0), 0, 0)));
        for (rows, group) in [(1, 1), (9, 1), (32, 1), (47, 1), (32, 4)] {
            for (common, own) in [(0, 20), (5, 0), (8, 1), (12, 9), (1, 0)] {
                for threads in [1, 2] {
                    let tasks = asked_of_each::<Portable>(&kv, rows, group, (common, own), threads, true);
                    let firsts: Vec<usize> = tasks.iter().map(|of_each| of_each[0]).collect();
                    let case =
                        format!("{rows} rows of {group}, {common} + {own}, {threads} threads: {firsts:?} of {whole}");
                    // One row's heads may be one task.
                    assert!(
                        firsts[0] == 0 && (firsts.len() > 1 || rows * group as u32 <= 16 && threads == 1),
                        "{case}"
                    );
                    assert!(firsts[1..].iter().all(|&asked| asked >= whole * 9 / 10), "{case}");
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
            let [of_each] = &asked_of_each::<Portable>(&kv, rows, 1, (common, own), 1, false)[..1] else {
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
            let [of_each] = &asked_of_each::<crate::simd::Avx512>(&kv, rows, 1, (common, own), 1, false)[..1] else {
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
