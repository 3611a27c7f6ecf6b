//! The attention kernel of a task: the softmax states of a band of rows, step by step, and their fold.

use std::cell::RefCell;
use std::ops::Range;

use kvist_base::{CHUNK, RunList};

use super::Queries;
use super::ahead::Pace;
use super::codes::words;
use super::plan::{APART, AttnPlan, AttnShape, Task, state_len};
use super::queries::{TOGETHER, prepare};
use super::shorts::one;
use super::steps::Step;
use super::tile::{Coded, Form, GROUP, InCodes, InShorts, State, Tile, group};
use super::upcoming::{Follow, Upcoming};
use super::values::Values;
use crate::buffer::{Aligned, SharedMut, Words};
use crate::codec::Head;
use crate::pool::Claims;
use crate::quant::dots::Dots;
use crate::simd::{PANEL, Simd, isa_entry};
use crate::{KvPool, bf16};

pub(super) struct Job<'a> {
    pub plan: &'a AttnPlan,
    pub runs: &'a RunList,
    pub kv: &'a KvPool,
    pub layer: usize,
    pub q: &'a Queries<'a>,
    pub out: SharedMut<f32>,
    pub partials: SharedMut<f32>,
}

/// A thread's memory; kept, so that a steady step allocates nothing.
pub(super) struct Scratch {
    /// Queries of a band as pairs of 16 bits, what these stand for, and the shift of each row that is prepared.
    q: Words,
    q_scales: Words,
    shifts: Vec<Option<u32>>,
    state: Words,
    /// The folded state.
    folded: Words,
    /// Scores of a group, `[query row][64]`; a row's weights in 16 bits take their place.
    scores: Aligned<[f32; GROUP * CHUNK]>,
    /// What a row's scores are reduced to before lanes meet, `[query row][PANEL]`.
    spread: Aligned<[f32; GROUP * PANEL]>,
    /// The same of how large its queries times scales of K are.
    sizes: Aligned<[f32; GROUP * PANEL]>,
    /// Scales of a chunk: of K for each token or each element, of V for each token.
    k_scales: Words,
    values: Aligned<Values>,
    coded: CodedScratch,
}

/// What an encoded chunk takes besides.
struct CodedScratch {
    /// Queries of a band, that are to meet K's scales.
    q: Words,
    /// Queries of a group times K's scales, in 16 bits.
    rows: Words,
    /// What sums of products with K begin with, for each token.
    begin: Aligned<[u32; CHUNK]>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch {
            q: Words::new(),
            q_scales: Words::new(),
            shifts: Vec::new(),
            state: Words::new(),
            folded: Words::new(),
            scores: Aligned([0.0; GROUP * CHUNK]),
            spread: Aligned([0.0; GROUP * PANEL]),
            sizes: Aligned([0.0; GROUP * PANEL]),
            k_scales: Words::new(),
            values: Aligned(Values::NOTHING),
            coded: CodedScratch { q: Words::new(), rows: Words::new(), begin: Aligned([0; CHUNK]) },
        })
    };
}

pub(super) fn with_scratch(f: impl FnOnce(&mut Scratch)) {
    SCRATCH.with_borrow_mut(f);
}

isa_entry!(pub(super) fn run_task(job: &Job<'_>, task: &Task, claims: &Claims<'_>, scratch: &mut Scratch) = whole_task,
    with avx512vnni);
// Of each form there is one per ISA, whatever calls it: these are most of this crate's code.
isa_entry!(fn groups_of_shorts(tile: Tile<'_, InShorts>, rows: Range<usize>, upcoming: &mut Upcoming<'_>) = groups,
    with avx512vnni);
isa_entry!(fn groups_of_codes(tile: Tile<'_, InCodes>, rows: Range<usize>, upcoming: &mut Upcoming<'_>) = groups,
    with avx512vnni);

/// # Safety
/// The ISA of `S` is available; `job` is what the plan was built for; no other task writes the same part of the plan.
#[inline(always)]
unsafe fn whole_task<S: Dots>(job: &Job<'_>, task: &Task, claims: &Claims<'_>, scratch: &mut Scratch) {
    let shape = job.plan.shape;
    let band = &job.plan.bands[task.band];
    let n = band.rows.len() * shape.group();
    let len = state_len(shape, band.rows.len());
    let heads = task.heads.len();
    scratch.shifts.clear();
    scratch.shifts.resize(heads * band.rows.len(), None);
    scratch.q.grow(heads * n * APART);
    scratch.q_scales.grow(heads * n);
    scratch.k_scales.grow(shape.head_dim.max(CHUNK) + 2 * PANEL);
    if job.kv.is_coded() {
        scratch.coded.q.grow(heads * n * shape.apart_coded() + PANEL);
        scratch.coded.rows.grow(GROUP * APART);
    }
    scratch.folded.grow(heads * len);
    if task.part.is_none() {
        scratch.state.grow(heads * task.states * len);
    }
    // SAFETY: states lie in the scratch or in this part's place of `partials`, each of `len` elements. The band's rows
    // and these heads of the output are written by the task that folds, and there is one.
    unsafe {
        let partial = |part: usize, head: usize| job.partials.get().add(job.plan.parts[part].partial + head * len);
        let states: *mut f32 = scratch.state.as_mut_ptr();
        let state = |i: u32, head: usize| {
            let at = match task.part {
                Some(part) => partial(part, head),
                None => states.add(((head - task.heads.start) * task.states + i as usize) * len),
            };
            State::new(shape, at, n)
        };
        let folded: *mut f32 = scratch.folded.as_mut_ptr();
        let folded = |head: usize| State::new(shape, folded.add((head - task.heads.start) * len), n);
        // Whatever else there is of a row of which nothing was seen counts for nothing.
        task.heads.clone().for_each(|head| std::slice::from_raw_parts_mut(folded(head).m, n).fill(f32::NEG_INFINITY));
        let mut upcoming = Upcoming::new(job, task, claims);
        while let Some((step, head)) = upcoming.begin::<S>() {
            match step {
                Step::Begin { state: i } => state(i, head).clear(n),
                Step::Visit { state: i, run, chunk } => {
                    visit::<S>(job, task, (run, chunk), head, scratch, state(i, head), &mut upcoming);
                }
                Step::Fold { state: i } => fold::<S>(folded(head), state(i, head), n, shape),
            }
        }
        for head in task.heads.clone() {
            if let Some(part) = task.part {
                if !job.plan.complete(task.band, head, part) {
                    continue;
                }
                for i in 0..band.parts.len() {
                    let part = job.plan.fold_order(task.band, head, i);
                    fold::<S>(folded(head), State::new(shape, partial(part, head), n), n, shape);
                }
            }
            finish(job, &band.rows, head, folded(head));
        }
    }
}

/// The band's rows of a run meet one of its chunks.
///
/// # Safety
/// As [`whole_task`]; `state` is that of the band's rows.
#[inline(always)]
unsafe fn visit<S: Dots>(
    job: &Job<'_>,
    task: &Task,
    (run, chunk): (u32, u32),
    head: usize,
    scratch: &mut Scratch,
    state: State,
    upcoming: &mut Upcoming<'_>,
) {
    let (shape, runs, rows) = (job.plan.shape, job.runs, &job.plan.bands[task.band].rows);
    let group_size = shape.group();
    // Rows of the scratch's queries before those of this head.
    let before = (head - task.heads.start) * rows.len();
    let run = &runs.runs[run as usize];
    let (a, b) = (run.rows.start.max(rows.start), run.rows.end.min(rows.end));
    if a >= b {
        return;
    }
    // SAFETY: tiles lie in the pool, which checks the chunk; query rows lie in the band.
    unsafe {
        // Of several shifts, runs in between may have prepared another one.
        if chunk == 0 || job.q.shifts.len() > 1 {
            prepare_queries::<S>(job, (rows.start, before), a..b, run.shift, head, scratch);
        }
        let (begin, end) = ((a - rows.start) as usize * group_size, (b - rows.start) as usize * group_size);
        let id = runs.chunks[(run.chunks.start + chunk) as usize];
        let kv = job.kv.head(id, job.layer, head);
        scales::<S>(&kv, shape.head_dim, scratch);
        let tile = Tile {
            form: InShorts,
            job,
            run,
            chunk,
            first: rows.start,
            k: kv.k,
            v: kv.v,
            k_scales: scratch.k_scales.as_ptr(),
            values: &scratch.values.0,
            q: scratch.q.as_ptr::<u32>().add(before * group_size * APART),
            q_scales: scratch.q_scales.as_ptr::<f32>().add(before * group_size),
            state,
            scores: scratch.scores.0.as_mut_ptr(),
            spread: scratch.spread.0.as_mut_ptr(),
            sizes: scratch.sizes.0.as_mut_ptr(),
            met: false,
            even: false,
            follow: Follow::NOTHING,
            pace: Pace::default(),
        };
        if kv.eight {
            let CodedScratch { q, rows, begin: first } = &mut scratch.coded;
            let q = q.as_ptr::<u32>().add(before * group_size * shape.apart_coded());
            let coded = Coded { q, rows: rows.as_mut_ptr(), begin: first.0.as_mut_ptr() };
            groups_of_codes(S::ISA, tile.with(InCodes(coded)), begin..end, upcoming);
        } else {
            groups_of_shorts(S::ISA, tile, begin..end, upcoming);
        }
    }
}

/// All of the band's query rows that meet a chunk.
///
/// # Safety
/// As [`group`].
#[inline(always)]
unsafe fn groups<S: Dots>(mut tile: Tile<'_, impl Form>, rows: Range<usize>, upcoming: &mut Upcoming<'_>) {
    for at in rows.clone().step_by(GROUP) {
        let n = GROUP.min(rows.end - at);
        let asks = upcoming.asks::<S>(tile.in_codes(), (tile.k, tile.v), n, rows.end - at);
        tile.ask::<S>(n, asks);
        // SAFETY: passed on.
        if unsafe { group::<S, _>(&tile, at, n) } {
            tile.met = true;
            upcoming.have_asked(&asks);
        }
    }
}

/// Brings the scales of a chunk into the scratch.
///
/// # Safety
/// As [`whole_task`]; `kv` is a head of this size.
#[inline(always)]
unsafe fn scales<S: Simd>(kv: &Head, dim: usize, scratch: &mut Scratch) {
    // SAFETY: K has a scale for each element or token, V one for each token.
    unsafe {
        let (k_scales, count) = (scratch.k_scales.as_mut_ptr::<f32>(), if kv.eight { dim } else { CHUNK });
        let whole = count / S::LANES * S::LANES;
        for i in (0..whole).step_by(S::LANES) {
            S::store(k_scales.add(i), S::load_bf16(kv.k_scales.add(i)));
        }
        for i in whole..count {
            *k_scales.add(i) = bf16::to_f32(*kv.k_scales.add(i));
        }
        let most = if kv.eight { const { one::<InCodes>() } } else { const { one::<InShorts>() } };
        scratch.values.0.set(&*kv.v_scales.cast(), most);
    }
}

/// Prepares the queries of `rows` for runs of `shift`, unless they are.
///
/// # Safety
/// As [`whole_task`]; `rows` lie in the band that begins at `first`, whose rows are those from `before` on of the scratch.
#[inline(always)]
unsafe fn prepare_queries<S: Dots>(
    job: &Job<'_>,
    (first, before): (u32, usize),
    rows: Range<u32>,
    shift: u32,
    head: usize,
    scratch: &mut Scratch,
) {
    let shape = job.plan.shape;
    let (group, dim) = (shape.group(), shape.head_dim);
    let set = job.q.shifts.iter().position(|&s| s == shift).expect("every shift of the runs has queries");
    let apart = shape.heads * dim;
    // Those of a row's heads lie side by side, and the next row's far from them.
    let of_row =
        |row: u32| &job.q.data[(set * job.plan.rows + row as usize) * apart + head * group * dim..][..group * dim];
    let (mut some, mut places): ([&[u16]; TOGETHER], _) = ([&[]; TOGETHER], [0; TOGETHER]);
    let mut n = 0;
    for row in rows.clone() {
        let local = before + (row - first) as usize;
        if scratch.shifts[local] == Some(shift) {
            continue;
        }
        scratch.shifts[local] = Some(shift);
        for (i, q) in of_row(row).chunks_exact(dim).enumerate() {
            (some[n], places[n]) = (q, local * group + i);
            n += 1;
            if n == TOGETHER {
                // SAFETY: the scratch has room for every query row of the band.
                unsafe { queries_at::<S>(job, &some, &places, scratch) };
                n = 0;
            }
        }
    }
    if n > 0 {
        // SAFETY: likewise.
        unsafe { queries_at::<S>(job, &some[..n], &places[..n], scratch) };
    }
}

/// Prepares these query rows, at these places of the band.
///
/// # Safety
/// As [`whole_task`]; places lie in the band.
#[inline(always)]
unsafe fn queries_at<S: Dots>(job: &Job<'_>, some: &[&[u16]], places: &[usize], scratch: &mut Scratch) {
    let (mut to, apart) = ([std::ptr::null_mut(); TOGETHER], job.plan.shape.apart_coded());
    // SAFETY: `q` of the scratch, and what there is beside it for codes, have room for every query row of the band.
    unsafe {
        for (to, &at) in to.iter_mut().zip(places) {
            *to = scratch.q.as_mut_ptr::<u32>().add(at * APART);
        }
        let scales = prepare::<S>(some, &to);
        for ((q, &at), scale) in some.iter().zip(places).zip(scales) {
            *scratch.q_scales.as_mut_ptr::<f32>().add(at) = scale;
            if job.kv.is_coded() {
                words(q, scratch.coded.q.as_mut_ptr::<u32>().add(at * apart));
            }
        }
    }
}

/// Folds a segment's state of `n` rows into the rows' state so far.
///
/// # Safety
/// The ISA of `S` is available; both states have `n` rows and belong to the caller.
#[inline(always)]
unsafe fn fold<S: Simd>(folded: State, state: State, n: usize, shape: AttnShape) {
    let mut factors = [[0.0; PANEL]; 2];
    // SAFETY: rows of both states, which have whole vectors; m and l are not written beyond `n`.
    unsafe {
        for first in (0..n).step_by(S::LANES) {
            let rows = S::LANES.min(n - first);
            let (old, new) = (S::load_n(folded.m.add(first), rows), S::load_n(state.m.add(first), rows));
            let top = S::max(new, old);
            for (factors, m) in factors.iter_mut().zip([old, new]) {
                S::store(factors.as_mut_ptr(), S::exp2(S::sub(m, top)));
            }
            for i in 0..rows {
                let [a, b] = factors.map(|factors| factors[i]);
                let i = first + i;
                let (m, l) = (*state.m.add(i), *state.l.add(i));
                let (folded_m, folded_l) = (folded.m.add(i), folded.l.add(i));
                let at = i * shape.padded();
                let (to, o) = (folded.o.add(at), state.o.add(at));
                if m == f32::NEG_INFINITY {
                    continue;
                }
                if *folded_m == f32::NEG_INFINITY {
                    (*folded_m, *folded_l) = (m, l);
                    for at in (0..shape.padded()).step_by(S::LANES) {
                        S::store(to.add(at), S::load(o.add(at)));
                    }
                    continue;
                }
                let top = if m > *folded_m { m } else { *folded_m };
                (*folded_m, *folded_l) = (top, *folded_l * a + l * b);
                for at in (0..shape.padded()).step_by(S::LANES) {
                    let new = S::mul(S::load(o.add(at)), S::splat(b));
                    S::store(to.add(at), S::fma(S::load(to.add(at)), S::splat(a), new));
                }
            }
        }
    }
}

/// Writes the output of the band's rows: O divided by l; zeros where nothing was seen.
///
/// # Safety
/// As [`whole_task`]; `folded` is the state of the rows, whose output belongs to the caller.
#[inline(always)]
unsafe fn finish(job: &Job<'_>, rows: &Range<u32>, head: usize, folded: State) {
    let (shape, group) = (job.plan.shape, job.plan.shape.group());
    let mut i = 0;
    for row in rows.clone() {
        for of_row in 0..group {
            let at = (row as usize * shape.heads + head * group + of_row) * shape.head_dim;
            // SAFETY: row `i` of the state, and the caller's output.
            let (m, l, o, out) = unsafe {
                let o = std::slice::from_raw_parts(folded.o.add(i * shape.padded()), shape.head_dim);
                (*folded.m.add(i), *folded.l.add(i), o, job.out.slice(at, shape.head_dim))
            };
            if m == f32::NEG_INFINITY || l == 0.0 {
                out.fill(0.0);
            } else {
                let scale = 1.0 / l;
                out.iter_mut().zip(o).for_each(|(out, o)| *out = o * scale);
            }
            i += 1;
        }
    }
}
