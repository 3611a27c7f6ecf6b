//! A group of query rows against one chunk.
//!
//! Per chunk, `S = q K^T` for a block of query rows, masked, plus what V's scales make of it ([`super::values`]),
//! `p = 2^(S - top)` in 16 bits ([`shorts`]), `top` being the row's largest in the chunk, then `O += p V 2^(top - m)`, and `l`
//! likewise. `m` is raised to `top` where that is much larger, and O and l are scaled down then. A row that sees nothing of a
//! chunk is left untouched, whatever its block mates see. K and V of the chunk stay in the L1 cache while all row blocks
//! pass.

use kvist_base::{CHUNK, Run};

use super::ahead::{Ahead, Pace, asking, may_share};
use super::block::{cover, tile_block};
use super::codes;
use super::kernel::Job;
use super::plan::{APART, AttnShape, Canary};
use super::shorts::{self, code_dots, short_dots};
use super::upcoming::Follow;
use super::values::Values;
use crate::elementwise::cap_lanes;
use crate::quant::dots::Dots;
use crate::simd::{AT_ONCE, PANEL, Simd, block_sizes};

/// Query rows that meet K of a chunk before the first of them meets V, at most.
pub(super) const GROUP: usize = 32;

const _: () = assert!(GROUP.is_multiple_of(AT_ONCE), "rows are reduced so many at once");

/// One number for each row of a group, in whole vectors.
pub(super) const FACTORS: usize = GROUP.next_multiple_of(PANEL);

/// Vectors of scores whose exponentials are computed side by side.
pub(super) const EXPS: usize = 4;

/// Token pairs of a chunk.
const PAIRS: usize = CHUNK / 2;

/// What a row's largest score may be above `m`, in the log2 domain: `m` is raised only to what is above that, so that O is scaled
/// once or twice in a segment.
const LEAP: f32 = 8.0;

/// Softmax state of query rows: the output so far is `o / l`, both relative to `m` (log2 domain), which is about the largest
/// score, scales of V included. `m` is -inf where nothing was seen yet, and `o` anything.
#[derive(Clone, Copy)]
pub(super) struct State {
    pub m: *mut f32,
    pub l: *mut f32,
    pub o: *mut f32,
}

impl State {
    /// # Safety
    /// `at` is valid for `n * (padded + 2)` elements.
    pub unsafe fn new(shape: AttnShape, at: *mut f32, n: usize) -> State {
        let end = n * shape.padded();
        // SAFETY: the caller's contract.
        unsafe { State { o: at, m: at.add(end), l: at.add(end + n) } }
    }

    /// Nothing was seen yet.
    ///
    /// # Safety
    /// As [`State::new`], and the elements belong to the caller.
    pub unsafe fn clear(self, n: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            std::slice::from_raw_parts_mut(self.m, n).fill(f32::NEG_INFINITY);
            std::slice::from_raw_parts_mut(self.l, n).fill(0.0);
        }
    }
}

/// What meets the codes of an encoded chunk.
#[derive(Clone, Copy)]
pub(super) struct Coded {
    /// Queries of the band in [halves](codes::half), [`AttnShape::apart_coded`] from row to row.
    pub q: *const u32,
    /// Room for the queries of a group times scales, [`GROUP`] rows that are [`APART`].
    pub rows: *mut u32,
    /// `[64]`: what products with K's codes begin with, where what meets these has no sign.
    pub begin: *mut u32,
}

/// What K and V of a tile are, known when the hot loops are compiled.
pub(super) trait Form {
    /// Whether they are codes of 8 bits in the pool.
    const CODES: bool;
    fn coded(&self) -> Option<&Coded>;
}

/// 16 bits: kv16.
pub(super) struct InShorts;

impl Form for InShorts {
    const CODES: bool = false;

    #[inline(always)]
    fn coded(&self) -> Option<&Coded> {
        None
    }
}

/// 8 bits: kv8.
pub(super) struct InCodes(pub Coded);

impl Form for InCodes {
    const CODES: bool = true;

    #[inline(always)]
    fn coded(&self) -> Option<&Coded> {
        Some(&self.0)
    }
}

/// Rows of a group that meet K or V, as [`short_dots`] takes them: [`APART`], or those of V [`CHUNK`] words.
struct Rows {
    at: *const u32,
    /// What 16 bits stand for, over their values.
    scales: [f32; FACTORS],
}

/// What the groups of one band, head and chunk have in common.
pub(super) struct Tile<'a, F: Form> {
    pub form: F,
    pub job: &'a Job<'a>,
    pub run: &'a Run,
    /// Which chunk of the run.
    pub chunk: u32,
    /// First row of the band.
    pub first: u32,
    pub k: *const u8,
    pub v: *const u8,
    /// kv8: `[dim]`. kv16: `[64]`.
    pub k_scales: *const f32,
    /// Of V's scales.
    pub values: &'a Values,
    pub q: *const u32,
    /// What 16 bits of the band's queries stand for, over their values.
    pub q_scales: *const f32,
    pub state: State,
    pub scores: *mut f32,
    /// [`PANEL`] elements for each of [`GROUP`] rows.
    pub spread: *mut f32,
    /// The same again, for sizes of queries that meet scales of K.
    pub sizes: *mut f32,
    /// Whether a group has met the chunk.
    pub met: bool,
    /// Whether all row blocks of the running group ask, and for what.
    pub even: bool,
    pub follow: Follow,
    pub pace: Pace,
}

impl<'a, F: Form> Tile<'a, F> {
    pub fn with<G: Form>(self, form: G) -> Tile<'a, G> {
        let Tile { job, run, chunk, first, k, v, k_scales, values, .. } = self;
        let Tile { q, q_scales, state, scores, spread, sizes, met, even, follow, pace, .. } = self;
        Tile {
            form,
            job,
            run,
            chunk,
            first,
            k,
            v,
            k_scales,
            values,
            q,
            q_scales,
            state,
            scores,
            spread,
            sizes,
            met,
            even,
            follow,
            pace,
        }
    }

    /// [`Form::CODES`], of a form that has no name.
    #[inline(always)]
    pub fn in_codes(&self) -> bool {
        F::CODES
    }
}

/// `n <= GROUP` query rows from `at` of the band against a chunk; whether one of them sees something of it.
///
/// # Safety
/// The ISA of `S` is available, the tile's pointers are those of its job, and the rows' state and the scores belong to
/// the caller.
#[inline(always)]
pub(super) unsafe fn group<S: Dots, F: Form>(tile: &Tile<'_, F>, at: usize, n: usize) -> bool {
    let plan = tile.job.plan;
    let mut masks = [u64::MAX; GROUP];
    if tile.run.masks.is_some() {
        mask_rows(tile, at, &mut masks[..n]);
        if masks[..n].iter().all(|&mask| mask == 0) {
            return false;
        }
    }
    let mut largest = [f32::NEG_INFINITY; FACTORS];
    let mut alpha = [1.0; FACTORS];
    // SAFETY: rows `at..at + n` lie in the band; `scores` has room for `n` rows, `spread` for `GROUP`.
    unsafe {
        tile.ask_between::<S>(0);
        let mut q = Rows { at: tile.q.add(at * APART), scales: [1.0; FACTORS] };
        if let Some(coded) = tile.form.coded() {
            let scales = codes::queries::<S>(coded, (tile.k_scales, tile.sizes), plan.shape, at, n, tile.first_of_k());
            q = Rows { at: coded.rows, scales };
        } else {
            q.scales[..n].copy_from_slice(std::slice::from_raw_parts(tile.q_scales.add(at), n));
        }
        let mut row = 0;
        while row < n {
            let size = if finds_begin::<S, F>(tile, row) { first_size::<S>(n) } else { block_size::<S>(n - row) };
            tile_block!(S, size, scores(tile, &q, row));
            row += size;
        }
        tile.ask_between::<S>(1);
        if let Some(cap) = plan.cap {
            cap_scores::<S>(tile.scores, n, cap, tile.values);
        }
        if plan.cap.is_some() || tile.run.masks.is_some() {
            for (r, &mask) in masks[..n].iter().enumerate() {
                largest_of_row::<S>(tile.scores.add(r * CHUNK), mask, tile.spread.add(r * PANEL));
            }
        }
        reduce::<S, true>(tile.spread, &mut largest, n);
        if plan.canary == Canary::BlockWideRescale {
            let top = largest[..n].iter().copied().fold(f32::NEG_INFINITY, f32::max);
            for (of, _) in largest.iter_mut().zip(&masks[..n]).filter(|(_, mask)| **mask != 0) {
                *of = top;
            }
        }
        let mut p = Rows { at: tile.scores.cast(), scales: [0.0; FACTORS] };
        raise::<S>(tile.state.m.add(at), &largest, (&mut alpha, &mut p.scales), n);
        tile.ask_between::<S>(2);
        shorts::weights::<S, F>(tile.values, tile.scores, &largest, n, tile.spread, &tile.pace);
        tile.ask_between::<S>(3);
        let mut sums = [0.0; FACTORS];
        reduce::<S, false>(tile.spread, &mut sums, n);
        for i in (0..n).step_by(S::LANES) {
            let (l, rows) = (tile.state.l.add(at + i), S::LANES.min(n - i));
            let [alpha, beta, sum] = [&alpha, &p.scales, &sums].map(|of| of.as_ptr().add(i));
            let scaled = S::mul(S::load_n(l, rows), S::load(alpha));
            S::store_n(l, rows, S::fma(S::load(sum), S::load(beta), scaled));
            let beta = p.scales.as_mut_ptr().add(i);
            S::store(beta, S::mul(S::load(beta), S::splat(const { 1.0 / shorts::one::<F>() })));
        }
        scale_down::<S>(tile, at, &alpha[..n]);
        let mut row = 0;
        while row < n {
            let size = block_size::<S>(n - row);
            tile_block!(S, size, outputs(tile, &p, at, row, &masks));
            row += size;
        }
    }
    true
}

/// What each query row from `at` of the band on sees of the chunk.
fn mask_rows<F: Form>(tile: &Tile<'_, F>, at: usize, masks: &mut [u64]) {
    let size = tile.job.plan.shape.group();
    let (mut row, mut left) = (tile.first + (at / size) as u32, size - at % size);
    let mut mask = tile.job.runs.mask(tile.run, tile.chunk, row);
    for of_row in masks {
        if left == 0 {
            row += 1;
            left = size;
            mask = tile.job.runs.mask(tile.run, tile.chunk, row);
        }
        left -= 1;
        *of_row = mask;
    }
}

/// The sum, or the largest, of the lanes of each row of `spread`.
///
/// # Safety
/// The ISA of `S` is available; `spread` has rows up to the next multiple of [`AT_ONCE`].
#[inline(always)]
pub(super) unsafe fn reduce<S: Simd, const LARGEST: bool>(spread: *const f32, to: &mut [f32; FACTORS], n: usize) {
    // SAFETY: `GROUP` and `FACTORS` are such multiples.
    unsafe {
        for i in (0..n).step_by(AT_ONCE) {
            let mut rows = [S::splat(0.0); AT_ONCE];
            for (r, row) in rows.iter_mut().enumerate() {
                *row = S::load(spread.add((i + r) * PANEL));
            }
            S::reduce_each::<LARGEST>(rows, to.as_mut_ptr().add(i));
        }
    }
}

/// The next of several blocks of almost equal size.
#[inline(always)]
fn block_size<S: Simd>(rows: usize) -> usize {
    let sizes: [u8; GROUP + 1] = const { block_sizes(S::ROWS) };
    sizes[rows] as usize
}

/// Whether the block of this row finds out what its sums and those of the others [begin](Coded::begin) with.
#[inline(always)]
fn finds_begin<S: Dots, F: Form>(tile: &Tile<'_, F>, row: usize) -> bool {
    S::DIGITS && F::CODES && row == 0 && !tile.met
}

/// Rows of such a block, at most: two steps at once take registers for the codes of both.
const fn first_rows<S: Simd>() -> usize {
    if S::ROWS > 2 { S::ROWS - 2 } else { 1 }
}

/// The size of such a block.
#[inline(always)]
fn first_size<S: Simd>(rows: usize) -> usize {
    let sizes: [u8; GROUP + 1] = const { block_sizes(first_rows::<S>()) };
    sizes[rows] as usize
}

/// Scores of `R` query rows from `from` of the group; the largest of a row is one of its lanes of `spread`.
///
/// # Safety
/// As [`group`].
#[inline(always)]
unsafe fn scores<S: Dots, const R: usize, const V: usize>(tile: &Tile<'_, impl Form>, q: &Rows, from: usize) {
    // SAFETY: passed on.
    unsafe {
        if const { (CHUNK / S::LANES).is_multiple_of(V) } {
            for token in (0..CHUNK).step_by(V * S::LANES) {
                tokens::<S, R, V>(token, tile, q, from);
            }
        } else {
            cover!(S, R, V, (0, CHUNK / S::LANES), tokens(token, tile, q, from));
        }
    }
}

/// [`scores`] of `V` vectors of tokens.
///
/// # Safety
/// As [`group`].
#[inline(always)]
unsafe fn tokens<S: Dots, const R: usize, const V: usize>(
    token: usize,
    tile: &Tile<'_, impl Form>,
    q: &Rows,
    from: usize,
) {
    let pairs = tile.job.plan.shape.head_dim / 2;
    let ahead = tile.ahead_of_k(token, V * S::LANES, pairs, from);
    // SAFETY: K has `pairs` steps of 64 words, or half as many in codes; q has `R` rows.
    unsafe {
        let x = q.at.add(from * APART);
        let scores = tile.scores.add(from * CHUNK + token);
        let (mut begin, k) = ([S::four(&0); V], (tile.k, token, CHUNK));
        let finds = finds_begin::<S, _>(tile, from);
        let kept = tile.form.coded().filter(|_| S::DIGITS).map(|coded| coded.begin.add(token));
        if let Some(kept) = kept.filter(|_| !finds) {
            for (v, begin) in begin.iter_mut().enumerate() {
                *begin = S::words(kept.add(v * S::LANES));
            }
        }
        let sums = if const { R <= first_rows::<S>() } && finds {
            products::<S, _, true, APART, { codes::SECOND }, R, V>(tile, &mut begin, ahead, k, x, pairs)
        } else {
            products::<S, _, false, APART, { codes::SECOND }, R, V>(tile, &mut begin, ahead, k, x, pairs)
        };
        if let Some(kept) = kept.filter(|_| finds) {
            for (v, &begin) in begin.iter().enumerate() {
                S::store_words(kept.add(v * S::LANES), begin);
            }
        }
        let (mut of_tokens, mut logs) = ([S::splat(1.0); V], [S::splat(0.0); V]);
        if !tile.in_codes() {
            for (v, scale) in of_tokens.iter_mut().enumerate() {
                *scale = S::load(tile.k_scales.add(token + v * S::LANES));
            }
        }
        // Where scores are capped, that comes first.
        if tile.job.plan.cap.is_none() {
            for (v, log) in logs.iter_mut().enumerate() {
                *log = S::load(tile.values.logs.as_ptr().add(token + v * S::LANES));
            }
        }
        // By reference: by value the sums would go to the stack first.
        for (r, sums) in sums.iter().enumerate() {
            let spread = tile.spread.add((from + r) * PANEL);
            let mut largest = if token == 0 { S::splat(f32::NEG_INFINITY) } else { S::load(spread) };
            for (v, &sum) in sums.iter().enumerate() {
                let (sum, scale) = (S::float(sum), S::splat(q.scales[from + r]));
                let score = if tile.in_codes() {
                    S::fma(sum, scale, logs[v])
                } else {
                    S::fma(S::mul(sum, scale), of_tokens[v], logs[v])
                };
                S::store(scores.add(r * CHUNK + v * S::LANES), score);
                // What is no number raises nothing, here as in `raise`: no score is above the maximum.
                largest = S::max(score, largest);
            }
            S::store(spread, largest);
        }
    }
}

/// Products of `R` rows of x and `V` vectors of codes or of 16 bits, from column `column` on, for `pairs` rows of so many pairs;
/// sums start with `begin`, which is [found out](code_dots) here if `FINDS`.
///
/// # Safety
/// As [`group`].
#[inline(always)]
unsafe fn products<
    S: Dots,
    F: Form,
    const FINDS: bool,
    const ROW: usize,
    const SECOND: usize,
    const R: usize,
    const V: usize,
>(
    _: &Tile<'_, F>,
    begin: &mut [S::I; V],
    ahead: Ahead,
    (w, column, stride): (*const u8, usize, usize),
    x: *const u32,
    pairs: usize,
) -> [[S::I; V]; R] {
    let mut sums = [*begin; R];
    // SAFETY: passed on.
    unsafe {
        let w = w.add(4 * column);
        if F::CODES {
            let both = (&mut sums, begin);
            asking!(
                S,
                R,
                V * S::LANES,
                ahead,
                2 * V * S::LANES,
                pairs,
                code_dots::<S, FINDS, ROW, SECOND, R, V>(both, w, stride, x, pairs)
            );
        } else {
            asking!(
                S,
                R,
                V * S::LANES,
                ahead,
                4 * V * S::LANES,
                pairs,
                short_dots::<S, ROW, R, V>(&mut sums, w, stride, x, pairs)
            );
        }
    }
    sums
}

/// Scales O of `n` rows from `at` of the band by what is not one; where that is 0 nothing was seen before, or nothing that counts.
///
/// # Safety
/// As [`group`].
#[inline(always)]
unsafe fn scale_down<S: Simd>(tile: &Tile<'_, impl Form>, at: usize, by: &[f32]) {
    // All of them together first: it happens seldom.
    if !by.iter().fold(false, |any, &by| any | (by != 1.0)) {
        return;
    }
    let padded = tile.job.plan.shape.padded();
    for (r, &by) in by.iter().enumerate().filter(|&(_, &by)| by != 1.0) {
        // SAFETY: the state has these rows, with room for whole vectors.
        unsafe {
            let o = tile.state.o.add((at + r) * padded);
            for i in (0..padded).step_by(S::LANES) {
                // What was there may be no number.
                let scaled = if by == 0.0 { S::splat(0.0) } else { S::mul(S::load(o.add(i)), S::splat(by)) };
                S::store(o.add(i), scaled);
            }
        }
    }
}

/// `O += p V` for `R` query rows from `from` of the group, whose first one is `at` of the band, and some of the
/// vectors of O.
///
/// # Safety
/// As [`group`].
#[inline(always)]
unsafe fn outputs<S: Dots, const R: usize, const V: usize>(
    tile: &Tile<'_, impl Form>,
    p: &Rows,
    at: usize,
    from: usize,
    masks: &[u64; GROUP],
) {
    // SAFETY: passed on.
    unsafe {
        let vectors = tile.job.plan.shape.head_dim.div_ceil(S::LANES);
        cover!(S, R, V, (0, vectors), columns(column, tile, p, at, from, masks));
    }
}

/// Caps the scores of `n` rows, and adds what V's scales make of them. They are in the log2 domain, and stay there.
///
/// # Safety
/// The ISA of `S` is available and `scores` valid for `n` rows.
#[inline(always)]
unsafe fn cap_scores<S: Simd>(scores: *mut f32, n: usize, cap: f32, values: &Values) {
    // SAFETY: offsets stay inside the rows.
    unsafe {
        for i in (0..n * CHUNK).step_by(S::LANES) {
            let capped = cap_lanes::<S>(S::load(scores.add(i)), 1.0 / cap, cap * std::f32::consts::LOG2_E);
            S::store(scores.add(i), S::add(capped, S::load(values.logs.as_ptr().add(i % CHUNK))));
        }
    }
}

/// Scores of the slots that the row does not see become -inf. The largest of the others is one of the lanes of `spread`.
///
/// # Safety
/// The ISA of `S` is available, `scores` valid for a chunk and `spread` for a vector.
#[inline(always)]
unsafe fn largest_of_row<S: Simd>(scores: *mut f32, mask: u64, spread: *mut f32) {
    // SAFETY: offsets stay inside the chunk.
    unsafe {
        let mut largest = S::splat(f32::NEG_INFINITY);
        for i in (0..CHUNK).step_by(S::LANES) {
            let mut s = S::load(scores.add(i));
            if mask != u64::MAX {
                s = S::select((mask >> i) as u32 & ((1 << S::LANES) - 1), s, S::splat(f32::NEG_INFINITY));
                S::store(scores.add(i), s);
            }
            largest = S::max(s, largest);
        }
        S::store(spread, largest);
    }
}

/// Raises `m` of `n` rows to the largest of a chunk where these [leap](LEAP), and fills in the factors for what was computed
/// relative to the old ones, 0 where there was nothing, and for what is relative to the largest.
///
/// # Safety
/// The ISA of `S` is available and `m` valid for `n` rows.
#[inline(always)]
unsafe fn raise<S: Simd>(
    m: *mut f32,
    largest: &[f32; FACTORS],
    (of_old, of_new): (&mut [f32; FACTORS], &mut [f32; FACTORS]),
    n: usize,
) {
    // SAFETY: whole vectors of the arrays, and the rows that there are of `m`.
    unsafe {
        for i in (0..n).step_by(S::LANES) {
            let rows = S::LANES.min(n - i);
            let (old, top) = (S::load_n(m.add(i), rows), S::load(largest.as_ptr().add(i)));
            let raised = S::select_ge(S::add(old, S::splat(LEAP)), top, old, top);
            S::store_n(m.add(i), rows, raised);
            let [old, new] = S::exp2_each::<2, true>([S::sub(old, raised), S::sub(top, raised)]);
            S::store(of_old.as_mut_ptr().add(i), old);
            S::store(of_new.as_mut_ptr().add(i), new);
        }
    }
}

/// `V` vectors of columns of [`outputs`].
///
/// # Safety
/// As [`group`].
#[inline(always)]
unsafe fn columns<S: Dots, const R: usize, const V: usize>(
    column: usize,
    tile: &Tile<'_, impl Form>,
    p: &Rows,
    at: usize,
    from: usize,
    masks: &[u64; GROUP],
) {
    let shape = tile.job.plan.shape;
    let ahead = tile.ahead_of_v(column, V * S::LANES, PAIRS, from);
    // SAFETY: V has 32 steps of `head_dim` words, or 16 in codes, and a vector of room behind. The state has
    // `at + from + R` rows with room for whole vectors.
    unsafe {
        let o = tile.state.o.add((at + from) * shape.padded() + column);
        let x = p.at.add(from * CHUNK);
        let (mut nothing, v) = ([S::four(&0); V], (tile.v, column, shape.head_dim));
        // Loops of the widest vectors are short enough to be unrolled where their number is known, but all forms of them
        // would take more room than there is for decoded instructions.
        let pairs = if S::LANES == PANEL && may_share::<S>(R) && !tile.in_codes() {
            std::hint::black_box(PAIRS)
        } else {
            PAIRS
        };
        let sums = products::<S, _, false, CHUNK, { shorts::SECOND }, R, V>(tile, &mut nothing, ahead, v, x, pairs);
        for (r, sums) in sums.iter().enumerate() {
            // A row that sees nothing keeps its state: adding zeros could still turn -0 into 0.
            if masks[from + r] == 0 {
                continue;
            }
            for (v, &sum) in sums.iter().enumerate() {
                let o = o.add(r * shape.padded() + v * S::LANES);
                S::store(o, S::fma(S::float(sum), S::splat(p.scales[from + r]), S::load(o)));
            }
        }
    }
}
