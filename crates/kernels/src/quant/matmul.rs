//! Batch-invariant product of quantised rows and quantised weights.

use std::cell::RefCell;
use std::mem::MaybeUninit;

use super::QuantKind::{Q4_0, Q4K, Q5_0, Q5K, Q6K, Q8_0};
use super::dots::Dots;
use super::packed::GROUP;
use super::rows::Group;
use super::unpack::{By4, By4Min, By5, By5Min, By6, ByBytes, Form, GROUPS, Unpacked, unpack};
use super::{PackedQuant, QuantRows};
use crate::buffer::SharedMut;
use crate::simd::{PANEL, isa_entry};
use crate::{Isa, Pool};

/// Rows that one tile handles at most.
const TILE_ROWS: usize = 96;

/// Panels that one tile handles at most.
const TILE_PANELS: usize = 8;

/// What may be kept of x from panel to panel: half of an L2 cache of 512 KiB.
const L2_BYTES: usize = 256 << 10;

struct Job<'a> {
    x: &'a [Group],
    /// Groups of a row.
    groups: usize,
    w: &'a PackedQuant,
    y: SharedMut<f32>,
    /// Elements of y from one row to the next.
    stride: usize,
    add: bool,
}

#[derive(Clone, Copy)]
struct Tile {
    rows: (usize, usize),
    panels: (usize, usize),
}

thread_local! {
    /// Sums of the running tile, `[panels][rows][16]`.
    static SUMS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `y = x w^T`, or `y += x w^T` with `add`. w is `[n][k]`; row `r` of the result is `y[r * stride..][..n]`, so that
/// matrices of different formats can fill parts of the same rows.
///
/// Each output is one sum over groups of 32 in ascending order: its bits do not depend on the other rows, on n, or on
/// threads. What a group adds is exact but for the rounding of the last few f32 operations.
///
/// # Panics
/// When a length does not fit or the machine cannot run `isa`.
pub fn matmul_quant(isa: Isa, pool: &Pool, x: &QuantRows, w: &PackedQuant, y: &mut [f32], stride: usize, add: bool) {
    isa.require();
    let (rows, n, k) = (x.rows(), w.n(), w.k());
    if rows == 0 || n == 0 {
        return;
    }
    assert_eq!(x.k(), k, "inputs");
    let end = (rows - 1).checked_mul(stride).and_then(|last| last.checked_add(n));
    assert!(stride >= n && end.is_some_and(|end| end <= y.len()), "{rows} rows of {n}, {stride} apart, in {}", y.len());
    let job = Job { x: x.groups(), groups: k / GROUP, w, y: SharedMut::new(y), stride, add };
    let panels = n.div_ceil(PANEL);
    // Several tiles per thread where there is enough to do; fewer rows at once only when panels do not suffice.
    let want = if pool.threads() == 1 { 1 } else { pool.threads() * 4 };
    let wide = (panels / want).clamp(1, TILE_PANELS);
    let columns = panels.div_ceil(wide);
    let tall = (rows * columns / want).clamp(24, TILE_ROWS).next_multiple_of(8);
    let bands = rows.div_ceil(tall);
    pool.run(bands * columns, &|t| {
        let (band, column) = (t / columns, t % columns);
        let tile = Tile {
            rows: (band * tall, rows.min((band + 1) * tall)),
            panels: (column * wide, panels.min((column + 1) * wide)),
        };
        SUMS.with_borrow_mut(|sums| {
            let len = wide * tall * PANEL;
            if sums.len() < len {
                sums.resize(len, 0.0);
            }
            // SAFETY: `isa` is available; tiles cover disjoint parts of y; the lengths were checked above.
            unsafe { run_tile(isa, &job, tile, sums) };
        });
    });
}

isa_entry!(fn run_tile(job: &Job<'_>, tile: Tile, sums: &mut [f32]) = tile_of_kind);

/// # Safety
/// The ISA of `S` is available; the tile lies inside the job; `sums` has 16 elements for each of its rows and panels.
#[inline(always)]
unsafe fn tile_of_kind<S: Dots>(job: &Job<'_>, tile: Tile, sums: &mut [f32]) {
    // SAFETY: passed on.
    unsafe {
        match job.w.kind() {
            Q8_0 => tile_rows::<S, ByBytes>(job, tile, sums),
            Q4_0 => tile_rows::<S, By4>(job, tile, sums),
            Q5_0 => tile_rows::<S, By5>(job, tile, sums),
            Q4K => tile_rows::<S, By4Min>(job, tile, sums),
            Q5K => tile_rows::<S, By5Min>(job, tile, sums),
            Q6K => tile_rows::<S, By6>(job, tile, sums),
        }
    }
}

/// # Safety
/// As [`tile_of_kind`].
#[inline(always)]
unsafe fn tile_rows<S: Dots, F: Form>(job: &Job<'_>, tile: Tile, sums: &mut [f32]) {
    let rows = tile.rows.1 - tile.rows.0;
    // One panel after the other is one stream of memory. Where x does not stay in the cache from panel to panel, its
    // part for several at once does.
    let many = if rows * job.groups * size_of::<Group>() <= L2_BYTES { 1 } else { TILE_PANELS };
    let mut unpacked = MaybeUninit::<Unpacked>::uninit();
    // SAFETY: passed on; `unpack` writes what `block` reads.
    unsafe {
        for first in (tile.panels.0..tile.panels.1).step_by(many) {
            let panels = (first, tile.panels.1.min(first + many));
            sums[..(panels.1 - panels.0) * rows * PANEL].fill(0.0);
            for group in (0..job.groups).step_by(GROUPS) {
                let groups = GROUPS.min(job.groups - group);
                for panel in panels.0..panels.1 {
                    let codes = unpack::<S, F>(job.w, panel * job.groups + group, groups, unpacked.as_mut_ptr());
                    let sums = sums.as_mut_ptr().add((panel - panels.0) * rows * PANEL);
                    let x = job.x.as_ptr().add(tile.rows.0 * job.groups + group);
                    let mut r = 0;
                    while r < rows {
                        let (x, sums) = (x.add(r * job.groups), sums.add(r * PANEL));
                        r += blocks::<S, F>(rows - r, x, job.groups, groups, codes, unpacked.as_ptr(), sums);
                    }
                }
            }
            for panel in panels.0..panels.1 {
                for r in 0..rows {
                    let sums = sums.as_ptr().add(((panel - panels.0) * rows + r) * PANEL);
                    store::<S>(job, tile.rows.0 + r, panel, sums);
                }
            }
        }
    }
}

/// One block of the largest size that `rows` rows fill; returns its rows.
///
/// # Safety
/// As [`block`].
#[inline(always)]
unsafe fn blocks<S: Dots, F: Form>(
    rows: usize,
    x: *const Group,
    stride: usize,
    groups: usize,
    codes: *const u32,
    unpacked: *const Unpacked,
    sums: *mut f32,
) -> usize {
    // SAFETY: passed on.
    unsafe {
        match (S::LANES, rows) {
            (4, 2..) => block::<S, F, 2, 4>(x, stride, groups, codes, unpacked, sums),
            (4, _) => block::<S, F, 1, 4>(x, stride, groups, codes, unpacked, sums),
            (8, 4..) => block::<S, F, 4, 2>(x, stride, groups, codes, unpacked, sums),
            (8, 2..) => block::<S, F, 2, 2>(x, stride, groups, codes, unpacked, sums),
            (8, _) => block::<S, F, 1, 2>(x, stride, groups, codes, unpacked, sums),
            (16, 8..) => block::<S, F, 8, 1>(x, stride, groups, codes, unpacked, sums),
            (16, 4..) => block::<S, F, 4, 1>(x, stride, groups, codes, unpacked, sums),
            (16, 2..) => block::<S, F, 2, 1>(x, stride, groups, codes, unpacked, sums),
            (16, _) => block::<S, F, 1, 1>(x, stride, groups, codes, unpacked, sums),
            (lanes, _) => unreachable!("no block of {lanes} lanes"),
        }
    }
}

/// Adds `groups` groups to the sums of `R` rows, which are `stride` groups apart in x; returns `R`.
///
/// # Safety
/// The ISA of `S` is available; `x`, `codes` and `unpacked` hold that many groups, `sums` 16 elements for each row.
#[inline(always)]
unsafe fn block<S: Dots, F: Form, const R: usize, const V: usize>(
    x: *const Group,
    stride: usize,
    groups: usize,
    codes: *const u32,
    unpacked: *const Unpacked,
    sums: *mut f32,
) -> usize {
    // SAFETY: the contract above; V vectors are a panel.
    unsafe {
        let mut acc = [[S::splat(0.0); V]; R];
        for (r, acc) in acc.iter_mut().enumerate() {
            for (v, acc) in acc.iter_mut().enumerate() {
                *acc = S::load(sums.add(r * PANEL + v * S::LANES));
            }
        }
        for g in 0..groups {
            for half in 0..GROUP / 4 / F::STEPS {
                let mut dots = [[S::words([0; PANEL].as_ptr()); V]; R];
                for (r, dots) in dots.iter_mut().enumerate() {
                    let x = x.add(r * stride + g);
                    let start = match F::STEPS {
                        8 => &raw const (*x).whole,
                        _ => &raw const (*x).halves[half],
                    };
                    *dots = [if F::WIDE { S::start::<true>(start, 0) } else { S::start::<false>(start, F::CENTRE) }; V];
                }
                for s in half * F::STEPS..(half + 1) * F::STEPS {
                    let w = codes.add((g * GROUP / 4 + s) * PANEL);
                    for (r, dots) in dots.iter_mut().enumerate() {
                        let x = S::four(&raw const (*x.add(r * stride + g)).codes[s]);
                        for (v, dot) in dots.iter_mut().enumerate() {
                            let w = S::words(w.add(v * S::LANES));
                            *dot = if F::WIDE { S::dot::<true>(*dot, w, x) } else { S::dot::<false>(*dot, w, x) };
                        }
                    }
                }
                let scales = (&raw const (*unpacked).scales[g][half]).cast::<f32>();
                let lifts = (&raw const (*unpacked).lifts[g]).cast::<f32>();
                for (r, (acc, dots)) in acc.iter_mut().zip(dots).enumerate() {
                    let x = x.add(r * stride + g);
                    for (v, (acc, dot)) in acc.iter_mut().zip(dots).enumerate() {
                        let total = if F::WIDE { S::total::<true>(dot) } else { S::total::<false>(dot) };
                        let scale = S::mul(S::load(scales.add(v * S::LANES)), S::splat((*x).scale));
                        *acc = S::fma(total, scale, *acc);
                        if F::MIN {
                            *acc = S::fma(S::load(lifts.add(v * S::LANES)), S::splat((*x).sum), *acc);
                        }
                    }
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            for (v, acc) in acc.into_iter().enumerate() {
                S::store(sums.add(r * PANEL + v * S::LANES), acc);
            }
        }
    }
    R
}

/// Stores or adds the sums of one row and panel, as many as there are outputs.
///
/// # Safety
/// As [`tile_of_kind`], for 16 sums.
#[inline(always)]
unsafe fn store<S: Dots>(job: &Job<'_>, row: usize, panel: usize, sums: *const f32) {
    for v in (0..PANEL).step_by(S::LANES) {
        let column = panel * PANEL + v;
        if column >= job.w.n() {
            break;
        }
        let n = S::LANES.min(job.w.n() - column);
        // SAFETY: n outputs are left in this row of y.
        unsafe {
            let (y, sum) = (job.y.get().add(row * job.stride + column), S::load(sums.add(v)));
            if n == S::LANES {
                S::store(y, if job.add { S::add(S::load(y), sum) } else { sum });
            } else {
                S::store_n(y, n, if job.add { S::add(S::load_n(y, n), sum) } else { sum });
            }
        }
    }
}
