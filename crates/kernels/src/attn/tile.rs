//! A group of query rows against one chunk.
//!
//! Per chunk, `S = q K^T` for a block of query rows, masked, the running maximum of each row raised, `p = 2^(S - m)`
//! rounded to bf16, `l` and `O` scaled by `2^(m_old - m)`, then `O += p V`. A row that sees nothing of a chunk is left
//! untouched, whatever its block mates see. K and V of the chunk stay in the L1 cache while all row blocks pass.

use std::marker::PhantomData;

use kvist_base::{CHUNK, Run};

use super::block::{cover, first_block, tile_block};
use super::kernel::Job;
use super::plan::Canary;
use crate::elementwise::cap_lanes;
use crate::simd::{AT_ONCE, PANEL, Simd, block_sizes, dots};

/// Query rows that meet K of a chunk before the first of them meets V: K and q, then V and O fit the L1 cache.
pub(super) const GROUP: usize = 24;

const _: () = assert!(GROUP.is_multiple_of(AT_ONCE), "rows are reduced so many at once");

/// One number for each row of a group, in whole vectors.
const FACTORS: usize = GROUP.next_multiple_of(PANEL);

/// Vectors of scores whose exponentials are computed side by side.
const EXPS: usize = 4;

/// Rounded to bf16 it is no infinity, as the largest f32 would be.
const BF16_MAX: f32 = f32::from_bits(0x7f7f_0000);

/// Token pairs of a chunk.
const PAIRS: usize = CHUNK / 2;

/// Softmax state of query rows: the output so far is `o / l`, relative to the maximum `m` (log2 domain). `m` is -inf
/// where nothing was seen yet.
#[derive(Clone, Copy)]
pub(super) struct State {
    pub m: *mut f32,
    pub l: *mut f32,
    pub o: *mut f32,
}

impl State {
    /// # Safety
    /// `at` is valid for `n * (padded + 2)` elements.
    pub unsafe fn new(at: *mut f32, n: usize) -> State {
        // SAFETY: the caller's contract.
        unsafe { State { m: at, l: at.add(n), o: at.add(2 * n) } }
    }
}

/// What scales the operands that meet the codes of an encoded chunk.
#[derive(Clone, Copy)]
pub(super) struct Coded {
    /// Queries of the band in f32, `[query row][dim]` in the order of K's pairs.
    pub q: *const f32,
    /// Room for prepared queries of a group.
    pub scaled: *mut u32,
    /// `[dim]` in the order of K's pairs, over [`Simd::CODE`], as those of V.
    pub k_scales: *const f32,
    /// `[64]`.
    pub v_scales: *const f32,
}

/// What K and V of a tile are, known when the hot loops are compiled.
pub(super) trait Form {
    /// Codes, which are widened on the way.
    const CODES: bool;
    /// What they are widened to is kept.
    const KEEP: bool;
}

/// bf16, also of a chunk whose codes were widened before.
pub(super) struct InWords;

impl Form for InWords {
    const CODES: bool = false;
    const KEEP: bool = false;
}

/// For few rows.
pub(super) struct InCodes;

impl Form for InCodes {
    const CODES: bool = true;
    const KEEP: bool = false;
}

/// For the first block of many rows.
struct Fresh;

impl Form for Fresh {
    const CODES: bool = true;
    const KEEP: bool = true;
}

/// Codes of a chunk that the first block of rows widens, and keeps in the place of the tile's words.
#[derive(Clone, Copy)]
pub(super) struct Unwidened {
    pub k: *const i8,
    pub v: *const i8,
    /// As of a tile.
    pub ahead: isize,
}

/// What the groups of one band, head and chunk have in common.
pub(super) struct Tile<'a, F: Form> {
    pub form: PhantomData<F>,
    pub job: &'a Job<'a>,
    pub run: &'a Run,
    /// Which chunk of the run.
    pub chunk: u32,
    /// First row of the band.
    pub first: u32,
    pub k: *const u32,
    pub v: *const u32,
    /// With an encoded chunk.
    pub coded: Option<Coded>,
    pub q: *const u32,
    pub state: State,
    pub scores: *mut f32,
    /// [`PANEL`] elements for each of [`GROUP`] rows.
    pub spread: *mut f32,
    /// Bytes from this chunk's K and V to those of the next one; 0 if there is none.
    pub ahead: isize,
    /// The codes of K and V where these are still to be written.
    pub unwidened: Option<Unwidened>,
    /// With [`Form::KEEP`], where what K and V are widened to goes.
    pub kept: [*mut u32; 2],
}

impl<'a, F: Form> Tile<'a, F> {
    #[inline(always)]
    pub fn of<G: Form>(&self) -> Tile<'a, G> {
        let &Tile { job, run, chunk, first, k, v, coded, q, state, scores, spread, ahead, unwidened, kept, .. } = self;
        let form = PhantomData;
        Tile { form, job, run, chunk, first, k, v, coded, q, state, scores, spread, ahead, unwidened, kept }
    }

    /// The tile of a first block.
    #[inline(always)]
    fn fresh(&self, from: Unwidened) -> Tile<'a, Fresh> {
        let Unwidened { k, v, ahead } = from;
        Tile { k: k.cast(), v: v.cast(), ahead, kept: [self.k.cast_mut(), self.v.cast_mut()], ..self.of() }
    }

    #[inline(always)]
    fn in_codes(&self) -> bool {
        F::CODES
    }

    /// Where what K (0) or V (1) is widened to from column `column` on goes.
    #[inline(always)]
    fn keep(&self, part: usize, column: usize) -> Option<*mut u32> {
        F::KEEP.then(|| self.kept[part].wrapping_add(column))
    }
}

/// `n <= GROUP` query rows from `at` of the band against a chunk; at least [`Simd::ROWS`] where the tile has
/// [`Tile::unwidened`]. Whether any of them sees the chunk: if not, nothing was done.
///
/// # Safety
/// The ISA of `S` is available, the tile's pointers are those of its job, and the rows' state and the scores belong to
/// the caller. K and V that are to be written are the caller's, too, with a vector of room behind V.
#[inline(always)]
pub(super) unsafe fn group<S: Simd, F: Form>(tile: &Tile<'_, F>, at: usize, n: usize) -> bool {
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
        let q_row = plan.shape.head_dim / 2 * S::PAIR;
        let q = match &tile.coded {
            None => tile.q.add(at * q_row),
            Some(coded) => {
                for r in 0..n {
                    scale_query::<S>(coded, plan.shape.head_dim, at + r, r);
                }
                coded.scaled
            }
        };
        let mut row = 0;
        if const { S::KEEPS && !F::CODES }
            && let Some(from) = tile.unwidened
        {
            first_block!(S, scores(&tile.fresh(from), q, 0));
            row = S::ROWS;
        }
        while row < n {
            let size = block_size::<S>(n - row);
            tile_block!(S, size, scores(tile, q.add(row * q_row), row));
            row += size;
        }
        if let Some(cap) = plan.cap {
            cap_scores::<S>(tile.scores, n, cap);
        }
        for (r, &mask) in masks[..n].iter().enumerate() {
            largest_of_row::<S>(tile.scores.add(r * CHUNK), mask, tile.spread.add(r * PANEL));
        }
        reduce::<S, true>(tile.spread, &mut largest, n);
        if plan.canary == Canary::BlockWideRescale {
            let top = largest[..n].iter().copied().fold(f32::NEG_INFINITY, f32::max);
            for (of, _) in largest.iter_mut().zip(&masks[..n]).filter(|(_, mask)| **mask != 0) {
                *of = top;
            }
        }
        raise::<S>(tile.state.m.add(at), &mut largest, &mut alpha, n);
        match &tile.coded {
            None => weigh_rows::<S, false>(tile.scores, std::ptr::null(), &largest, &masks[..n], tile.spread),
            Some(coded) => weigh_rows::<S, true>(tile.scores, coded.v_scales, &largest, &masks[..n], tile.spread),
        }
        let mut sums = [0.0; FACTORS];
        reduce::<S, false>(tile.spread, &mut sums, n);
        for i in (0..n).step_by(S::LANES) {
            let (l, rows) = (tile.state.l.add(at + i), S::LANES.min(n - i));
            let scaled = S::mul(S::load_n(l, rows), S::load(alpha.as_ptr().add(i)));
            S::store_n(l, rows, S::add(scaled, S::load(sums.as_ptr().add(i))));
        }
        row = 0;
        if const { S::KEEPS && !F::CODES }
            && let Some(from) = tile.unwidened
        {
            first_block!(S, outputs(&tile.fresh(from), at, 0, &alpha, &masks));
            row = S::ROWS;
        }
        while row < n {
            let size = block_size::<S>(n - row);
            tile_block!(S, size, outputs(tile, at + row, row, &alpha, &masks));
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
unsafe fn reduce<S: Simd, const LARGEST: bool>(spread: *const f32, to: &mut [f32; FACTORS], n: usize) {
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

/// Prepares query row `at` of the band times the scales of K as row `to` of the group. What overflows stays finite, so
/// that codes of zero give zero.
///
/// # Safety
/// As [`group`]. A vector behind the row is written: rows are scaled in ascending order.
#[inline(always)]
unsafe fn scale_query<S: Simd>(coded: &Coded, dim: usize, at: usize, to: usize) {
    const TOGETHER: usize = 4;
    // SAFETY: the caller's contract; all four have room for a vector behind their last element.
    unsafe {
        let (q, out) = (coded.q.add(at * dim), coded.scaled.add(to * dim / 2 * S::PAIR));
        let mut i = 0;
        while i + TOGETHER * S::LANES <= dim {
            scale::<S, TOGETHER>(q.add(i), coded.k_scales.add(i), out.add(i / 2 * S::PAIR));
            i += TOGETHER * S::LANES;
        }
        while i < dim {
            scale::<S, 1>(q.add(i), coded.k_scales.add(i), out.add(i / 2 * S::PAIR));
            i += S::LANES;
        }
    }
}

/// `N` vectors of [`scale_query`].
///
/// # Safety
/// The ISA of `S` is available and the pointers are valid for so many.
#[inline(always)]
unsafe fn scale<S: Simd, const N: usize>(q: *const f32, scales: *const f32, out: *mut u32) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut all = [S::splat(0.0); N];
        for (i, x) in all.iter_mut().enumerate() {
            *x = S::mul(S::load(q.add(i * S::LANES)), S::load(scales.add(i * S::LANES)));
            let most = const { BF16_MAX / S::CODE };
            *x = S::max(S::splat(-most), S::min(S::splat(most), *x));
        }
        S::store_pairs(out, all);
    }
}

/// Scores of prepared query rows, stored from row `to` of the group.
///
/// # Safety
/// As [`group`].
#[inline(always)]
unsafe fn scores<S: Simd, const R: usize, const V: usize>(tile: &Tile<'_, impl Form>, q: *const u32, to: usize) {
    // SAFETY: passed on.
    unsafe {
        if const { (CHUNK / S::LANES).is_multiple_of(V) } {
            for token in (0..CHUNK).step_by(V * S::LANES) {
                tokens::<S, R, V>(token, tile, q, to);
            }
        } else {
            cover!(S, R, V, CHUNK / S::LANES, tokens(token, tile, q, to));
        }
    }
}

/// [`scores`] of `V` vectors of tokens.
///
/// # Safety
/// As [`group`].
#[inline(always)]
unsafe fn tokens<S: Simd, const R: usize, const V: usize>(
    token: usize,
    tile: &Tile<'_, impl Form>,
    q: *const u32,
    to: usize,
) {
    let dim = tile.job.plan.shape.head_dim;
    let q_row = dim / 2 * S::PAIR;
    let ahead = if to == 0 { tile.ahead } else { 0 };
    // SAFETY: K has `dim / 2` steps of 64 words; q has `R` rows.
    unsafe {
        let mut acc = [[S::splat(0.0); V]; R];
        let k = tile.k.add(token);
        if tile.in_codes() {
            let k = tile.k.cast::<i8>().add(2 * token);
            let next = next_codes(tile.k, ahead, token, dim / 2);
            dots_codes::<S, R, V>(&mut acc, k, CHUNK, q, q_row, dim / 2, next, tile.keep(0, token));
        } else if ahead == 0 {
            dots::<S, R, V, false>(&mut acc, k, CHUNK, PANEL, q, q_row, dim / 2, std::ptr::null());
        } else {
            let next = tile.k.wrapping_byte_offset(ahead).wrapping_add(token * dim / 2);
            dots::<S, R, V, true>(&mut acc, k, CHUNK, PANEL, q, q_row, dim / 2, next);
        }
        let scores = tile.scores.add(to * CHUNK + token);
        // By reference: by value the sums would go to the stack first.
        for (r, acc) in acc.iter().enumerate() {
            for (v, &x) in acc.iter().enumerate() {
                S::store(scores.add(r * CHUNK + v * S::LANES), x);
            }
        }
    }
}

/// Which part of the next chunk's tile at `codes`, if there is one, to ask for on the way through columns from `column`
/// of this one.
fn next_codes(codes: *const u32, ahead: isize, column: usize, pairs: usize) -> Option<*const i8> {
    (ahead != 0).then(|| codes.cast::<i8>().wrapping_offset(ahead).wrapping_add(2 * column * pairs))
}

/// [`dots`] with codes, `stride` pairs apart; what they are widened to goes to `keep`, as far apart. Meanwhile as many
/// bytes as are read here are asked for from `next` on, line after line.
///
/// # Safety
/// As [`dots`]; `keep` is valid where codes are read.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "two strided operands")]
unsafe fn dots_codes<S: Simd, const R: usize, const V: usize>(
    acc: &mut [[S::F; V]; R],
    codes: *const i8,
    stride: usize,
    x: *const u32,
    row: usize,
    pairs: usize,
    next: Option<*const i8>,
    keep: Option<*mut u32>,
) {
    const LINE: usize = 64;
    let bytes = 2 * V * S::LANES;
    // SAFETY: the caller's contract; any address may be asked for.
    unsafe {
        for i in 0..pairs {
            if let Some(next) = next {
                // The lines that begin in a step's part, which is of whole lines or less than one.
                if const { (2 * V * S::LANES).is_multiple_of(LINE) } {
                    for at in (0..bytes).step_by(LINE) {
                        S::prefetch(next.wrapping_add(i * bytes + at).cast());
                    }
                } else {
                    let line = (i * bytes).next_multiple_of(LINE);
                    if line < (i + 1) * bytes {
                        S::prefetch(next.wrapping_add(line).cast());
                    }
                }
            }
            let keep = keep.map(|words| words.add(i * stride));
            S::step_codes(acc, codes.add(2 * i * stride), x.add(i * S::PAIR), row, keep);
        }
    }
}

/// `O = O * alpha + p V` for `R` query rows from `at` of the band, rows from `from` of the group.
///
/// # Safety
/// As [`group`].
#[inline(always)]
unsafe fn outputs<S: Simd, const R: usize, const V: usize>(
    tile: &Tile<'_, impl Form>,
    at: usize,
    from: usize,
    alpha: &[f32; FACTORS],
    masks: &[u64; GROUP],
) {
    let vectors = tile.job.plan.shape.head_dim.div_ceil(S::LANES);
    // SAFETY: passed on.
    unsafe {
        cover!(S, R, V, vectors, columns(column, tile, at, from, alpha, masks));
    }
}

/// Caps the scores of `n` rows. They are in the log2 domain, and stay there.
///
/// # Safety
/// The ISA of `S` is available and `scores` valid for `n` rows.
#[inline(always)]
unsafe fn cap_scores<S: Simd>(scores: *mut f32, n: usize, cap: f32) {
    // SAFETY: offsets stay inside the rows.
    unsafe {
        for i in (0..n * CHUNK).step_by(S::LANES) {
            let x = S::load(scores.add(i));
            S::store(scores.add(i), cap_lanes::<S>(x, 1.0 / cap, cap * std::f32::consts::LOG2_E));
        }
    }
}

/// Scores of the slots that the row does not see become -inf. The largest score is one of the lanes of `spread`.
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
            // What is no number raises nothing, here as in `raise`: no score is above the maximum.
            largest = S::max(s, largest);
        }
        S::store(spread, largest);
    }
}

/// Raises the maxima `m` of `n` rows to those in `largest`, which become the raised ones, and fills in the factors for
/// what was computed relative to the old ones.
///
/// # Safety
/// The ISA of `S` is available and `m` valid for `n` rows.
#[inline(always)]
unsafe fn raise<S: Simd>(m: *mut f32, largest: &mut [f32; FACTORS], alpha: &mut [f32; FACTORS], n: usize) {
    // SAFETY: whole vectors of the arrays, and the rows that there are of `m`.
    unsafe {
        for i in (0..n).step_by(S::LANES) {
            let rows = S::LANES.min(n - i);
            let old = S::load_n(m.add(i), rows);
            // The first only where it is larger: what is no number raises nothing.
            let top = S::max(S::load(largest.as_ptr().add(i)), old);
            S::store(largest.as_mut_ptr().add(i), top);
            S::store_n(m.add(i), rows, top);
            let [factor] = S::exp2_each::<1, true>([S::sub(old, top)]);
            S::store(alpha.as_mut_ptr().add(i), factor);
        }
    }
}

/// Replaces rows' scores by the rounded weights relative to their maxima `tops`, as prepared pairs; a row's sum is that
/// of its lanes of `spread`. With `SCALE`, the weights are multiplied with the scales of V, after the sum.
///
/// # Safety
/// The ISA of `S` is available; `scores` is valid for the rows of the masks, and `spread` for a vector of each.
#[inline(always)]
unsafe fn weigh_rows<S: Simd, const SCALE: bool>(
    scores: *mut f32,
    scales: *const f32,
    tops: &[f32; FACTORS],
    masks: &[u64],
    spread: *mut f32,
) {
    for (r, &mask) in masks.iter().enumerate() {
        // SAFETY: the caller's contract.
        unsafe {
            // l times 1 plus 0, or 0 times 0 plus 0, is what it was.
            let mut sum = S::splat(0.0);
            if mask != 0 {
                sum = weigh_row::<S, SCALE>(scores.add(r * CHUNK), scales, tops[r]);
            }
            S::store(spread.add(r * PANEL), sum);
        }
    }
}

/// A row of [`weigh_rows`].
///
/// # Safety
/// The ISA of `S` is available, and `scores` valid for a chunk.
#[inline(always)]
unsafe fn weigh_row<S: Simd, const SCALE: bool>(scores: *mut f32, scales: *const f32, top: f32) -> S::F {
    // SAFETY: offsets stay inside the chunk; a prepared pair takes no more room than two scores, so that nothing is
    // overwritten before it is read.
    unsafe {
        let (mut sum, top) = (S::splat(0.0), S::splat(top));
        for i in (0..CHUNK).step_by(EXPS * S::LANES) {
            let mut e = [top; EXPS];
            for (j, e) in e.iter_mut().enumerate() {
                *e = S::sub(S::load(scores.add(i + j * S::LANES)), top);
            }
            let mut e = S::exp2_each::<EXPS, true>(e);
            let to = scores.cast::<u32>().add(i / 2 * S::PAIR);
            for (j, e) in e.iter_mut().enumerate() {
                *e = if SCALE { S::rounded(*e) } else { S::store_prepared(to.add(j * S::LANES / 2 * S::PAIR), *e) };
                sum = S::add_up(sum, *e);
                if SCALE {
                    *e = S::mul(*e, S::load(scales.add(i + j * S::LANES)));
                }
            }
            if SCALE {
                S::store_pairs(to, e);
            }
        }
        sum
    }
}

/// `V` vectors of columns of [`outputs`].
///
/// # Safety
/// As [`group`].
#[inline(always)]
unsafe fn columns<S: Simd, const R: usize, const V: usize>(
    column: usize,
    tile: &Tile<'_, impl Form>,
    at: usize,
    from: usize,
    alpha: &[f32; FACTORS],
    masks: &[u64; GROUP],
) {
    let shape = tile.job.plan.shape;
    let ahead = if from == 0 { tile.ahead } else { 0 };
    // SAFETY: V has 32 steps of `head_dim` words and a vector of room behind. Every word is made of the pair of codes
    // in the same place, so that what is kept beyond the end of a step is what the next one keeps there. The state has
    // `at + R` rows with room for whole vectors; `p` of the rows lies where their scores were.
    unsafe {
        let o = tile.state.o.add(at * shape.padded() + column);
        let p = tile.scores.cast::<u32>().add(from * CHUNK);
        let mut acc = [[S::splat(0.0); V]; R];
        for (r, acc) in acc.iter_mut().enumerate() {
            for (v, acc) in acc.iter_mut().enumerate() {
                *acc = S::mul(S::load(o.add(r * shape.padded() + v * S::LANES)), S::splat(alpha[from + r]));
            }
        }
        let v = tile.v.add(column);
        if tile.in_codes() {
            let v = tile.v.cast::<i8>().add(2 * column);
            let next = next_codes(tile.v, ahead, column, PAIRS);
            let keep = tile.keep(1, column);
            dots_codes::<S, R, V>(&mut acc, v, shape.head_dim, p, CHUNK, PAIRS, next, keep);
        } else if ahead == 0 {
            dots::<S, R, V, false>(&mut acc, v, shape.head_dim, PANEL, p, CHUNK, PAIRS, std::ptr::null());
        } else {
            let next = tile.v.wrapping_byte_offset(ahead).wrapping_add(column * PAIRS);
            dots::<S, R, V, true>(&mut acc, v, shape.head_dim, PANEL, p, CHUNK, PAIRS, next);
        }
        for (r, acc) in acc.iter().enumerate() {
            // A row that sees nothing keeps its state: adding zeros could still turn -0 into 0.
            if masks[from + r] != 0 {
                for (v, &x) in acc.iter().enumerate() {
                    S::store(o.add(r * shape.padded() + v * S::LANES), x);
                }
            }
        }
    }
}
